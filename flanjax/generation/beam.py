"""Beam search as `transformers` does it: the best `num_beams` unfinished hypotheses of each input, and the best whole.

    search(config, compute, params, tokens, segments, DecodingConfig(num_beams=4), max_length=32)   # [inputs, 32]

With n tokens a hypothesis has the sum of their log-likelihoods; unfinished ones are compared by the sum, whole ones by
their worth, sum / n ** length_penalty. From each step's best candidates those that end in EOS become whole, if they are
among the first `num_beams`; the best others go on. An input has ended once its unfinished hypotheses cannot become
better than its whole ones, as `early_stopping` guesses it; its neighbours do not change what is found for it.
"""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from flanjax.generation.batches import PAD_ID
from flanjax.generation.cache import Cache, Start, prefill, reordered, step
from flanjax.generation.decoding import DecodingConfig
from flanjax.generation.sampling import Processors
from flanjax.generation.stopping import Finish
from flanjax.models.config import Compute
from flanjax.models.model import ModelConfig, build
from flanjax.models.parameters import Params
from flanjax.sharding.rules import constrain

NEVER = -1.0e9  # the worth of what is not there


class Hypothesis(NamedTuple):
    """A whole one that was found.

    Attributes:
      ids: up to and without EOS, without padding.
      worth: log-likelihood / n ** length_penalty, over its n tokens with EOS; `sequences_scores` of `transformers`.
      finish: "stop" for EOS, "length" for the limit.
    """

    ids: list[int]
    worth: float
    finish: Finish


class Beams(NamedTuple):
    """A search under way; `seen` only where repetition is penalized."""

    step: Int[Array, ""]
    sums: Float[Array, "batch beams"]  # of unfinished hypotheses, falling
    running: Int[Array, "batch beams max_length"]
    worths: Float[Array, "batch beams"]  # of whole hypotheses, falling; `NEVER` where there is none yet
    whole: Int[Array, "batch beams max_length"]
    open: Bool[Array, " batch"]
    last: Int[Array, " rows"]
    position: Int[Array, " rows"]
    cache: Cache
    seen: Bool[Array, "batch beams vocab"] | None


class Rules(NamedTuple):
    """What decides between hypotheses, as arrays so that other numbers are no other program."""

    limit: Int[Array, ""]
    length_penalty: Float[Array, ""]
    eos_ids: Int[Array, " eos"]


def _begin(start: Start, batch: int, num_beams: int, max_length: int, *, remembers: bool) -> Beams:
    """One hypothesis without a token for each input, in the first of its beams."""
    ids = jnp.full((batch, num_beams, max_length), PAD_ID, jnp.int32)
    nothing = jnp.full((batch, num_beams), NEVER)
    return Beams(
        step=jnp.int32(0),
        sums=nothing.at[:, 0].set(0.0),
        running=ids,
        worths=nothing,
        whole=ids,
        open=~start.empty.reshape(batch, num_beams)[:, 0],
        last=start.last,
        position=start.position,
        cache=start.cache,
        seen=start.seen.reshape(batch, num_beams, -1) if remembers else None,
    )


def _pick(x: Array, index: Int[Array, "batch picked"]) -> Array:
    """Of [batch, beams, ...] the picked beams of each input."""
    return jnp.take_along_axis(x, index.reshape(*index.shape, *[1] * (x.ndim - 2)), axis=1)


def _is_open(
    sums: Array, worths: Array, length: Array, early_stopping: bool | Literal["never"], rules: Rules
) -> Bool[Array, " batch"]:
    """Whether an unfinished hypothesis of an input may still become better than the worst of its whole ones."""
    full = worths[:, -1] > NEVER / 2
    if early_stopping is True:
        return ~full
    furthest = length
    if early_stopping == "never":
        furthest = jnp.where(rules.length_penalty > 0, rules.limit, length)
    return ~full | (sums[:, 0] / furthest.astype(jnp.float32) ** rules.length_penalty > worths[:, -1])


def _extend(
    beams: Beams, logits: Array, early_stopping: bool | Literal["never"], rules: Rules, processors: Processors
) -> Beams:
    """One token more for every hypothesis; logits [batch * beams, vocab]."""
    batch, count, _ = beams.running.shape
    vocab = logits.shape[-1]
    seen = None if beams.seen is None else beams.seen.reshape(-1, vocab)
    likelihoods = processors(jax.nn.log_softmax(logits), seen).reshape(batch, count, vocab)
    # So many that `num_beams` are left to go on if all EOS of all beams are among them.
    kept = max(2, 1 + len(rules.eos_ids)) * count
    sums, index = jax.lax.top_k((beams.sums[..., None] + likelihoods).reshape(batch, -1), min(kept, count * vocab))
    parents, tokens = index // vocab, (index % vocab).astype(jnp.int32)
    candidates = _pick(beams.running, parents).at[:, :, beams.step].set(tokens)
    length = beams.step + 1
    ended = jnp.isin(tokens, rules.eos_ids) | (length == rules.limit)

    can_end = ended & (jnp.arange(sums.shape[1]) < count) & beams.open[:, None]
    worths = jnp.where(can_end, sums / length.astype(jnp.float32) ** rules.length_penalty, NEVER)
    worths, best = jax.lax.top_k(jnp.concatenate([beams.worths, worths], axis=1), count)
    whole = _pick(jnp.concatenate([beams.whole, candidates], axis=1), best)

    sums, onward = jax.lax.top_k(jnp.where(ended, sums + NEVER, sums), count)
    parents, tokens = _pick(parents, onward), _pick(tokens, onward)
    rows = (jnp.arange(batch)[:, None] * count + parents).reshape(-1)
    if beams.seen is not None:
        among = (jnp.arange(batch)[:, None], jnp.arange(count), tokens)
        seen = _pick(beams.seen, parents).at[among].set(True)
    return Beams(
        step=length,
        sums=sums,
        running=_pick(candidates, onward),
        worths=worths,
        whole=whole,
        open=beams.open & _is_open(sums, worths, length, early_stopping, rules),
        last=tokens.reshape(-1),
        position=beams.position + 1,
        cache=reordered(beams.cache, rows),
        seen=seen,
    )


@functools.partial(
    jax.jit,
    static_argnames=("config", "compute", "max_length", "prefix_lm", "num_beams", "early_stopping", "remembers"),
)
def _search(
    config: ModelConfig,
    compute: Compute,
    params: Params,
    tokens: Int[Array, "batch length"],
    segments: Int[Array, "batch length"],
    processors: Processors,
    rules: Rules,
    *,
    num_beams: int,
    early_stopping: bool | Literal["never"],
    max_length: int,
    prefix_lm: bool,
    remembers: bool,
) -> tuple[Int[Array, "batch beams max_length"], Float[Array, "batch beams"]]:
    model = build(config, compute, params)
    start = prefill(model, tokens, segments, max_length, prefix_lm=prefix_lm).repeated(num_beams)

    def extend(beams: Beams) -> Beams:
        logits, cache = step(model, beams.last, beams.position, beams.cache)
        return _extend(beams._replace(cache=cache), logits, early_stopping, rules, processors)

    def unfinished(beams: Beams) -> Any:
        return (beams.step < rules.limit) & beams.open.any()

    begun = _begin(start, len(tokens), num_beams, max_length, remembers=remembers)
    found: Beams = jax.lax.while_loop(unfinished, extend, begun)
    # Whole on every host, as each of them reads these.
    return constrain(found.whole, None, None, None), constrain(found.worths, None, None)


def search(
    config: ModelConfig,
    compute: Compute,
    params: Params,
    tokens: np.ndarray,
    segments: np.ndarray,
    decoding: DecodingConfig,
    *,
    max_length: int,
    prefix_lm: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """The best hypotheses of each input.

    Arguments:
      config: the model.
      compute: how to run it.
      params: its parameters.
      tokens: [inputs, length], as `generation.cache.prefill` takes them.
      segments: [inputs, length], 0 on padding; an input without a token is one that fills up the batch.
      decoding: the search.
      max_length: room for tokens, at least `max_new_tokens`.
      prefix_lm: whether a decoder's inputs all see each other.

    Returns:
      Ids [inputs, num_samples, max_new_tokens] of the hypotheses, by falling worth, each with EOS and padding after it
      or up to the limit; and what they are worth, [inputs, num_samples].
    """
    rules = Rules(
        jnp.int32(decoding.max_new_tokens),
        jnp.float32(decoding.length_penalty),
        jnp.array(decoding.eos_ids, jnp.int32),
    )
    ids, worths = _search(
        config,
        compute,
        params,
        tokens,
        segments,
        Processors.of([decoding]),
        rules,
        num_beams=decoding.num_beams,
        early_stopping=decoding.early_stopping,
        max_length=max_length,
        prefix_lm=prefix_lm,
        remembers=decoding.repetition_penalty != 1,
    )
    count = decoding.num_samples
    return np.asarray(ids)[:, :count, : decoding.max_new_tokens], np.asarray(worths)[:, :count]
