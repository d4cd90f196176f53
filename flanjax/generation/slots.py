"""What continuous batching computes: rows of a key-value cache, each at its own position of its own answer.

    cache = empty(config, compute, rows=16, length=64, inputs=64)
    start = read(config, compute, params, tokens, segments, prefix_lm=False)            # [inputs]
    cache = put(cache, start, places=[3], sources=[0])                                  # input 0 into row 3
    cache, made = advance(config, compute, params, cache, rows, until=16, ...)          # up to 16 tokens more a row

What a row is (`Rows`) lies with the host, which knows each token anyway, and goes to the device with each call; the
keys and values and what each row has `seen` stay there. A program depends on the number of rows, the length of the
cache and of the inputs, and on how many likeliest tokens are asked for: never on what the rows are.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flanjax.generation.batches import PAD_ID
from flanjax.generation.cache import Cache, Start, prefill
from flanjax.generation.sampling import Processors, choose, row_keys
from flanjax.models import decoder, t5
from flanjax.models.config import Compute
from flanjax.models.decoder_config import DecoderConfig
from flanjax.models.model import ModelConfig, build
from flanjax.models.parameters import Apart, Params, each_layer
from flanjax.sharding.rules import constrain

STEPS = 16  # at most between two looks of the host


class Rows(NamedTuple):
    """What the host says of each row; of one that is not `active` only that.

    Attributes:
      last: the token that enters next.
      position: where it enters the cache.
      made: tokens of the answer that are there.
      limit: tokens at most.
      active: whether it goes on.
      seed: of what is drawn.
      numbers: of `sampling.row_number`.
      eos_ids: what ends it, filled up with -1.
      processors: its sampling values.
    """

    last: Int[Array, " rows"]
    position: Int[Array, " rows"]
    made: Int[Array, " rows"]
    limit: Int[Array, " rows"]
    active: Bool[Array, " rows"]
    seed: Int[Array, " rows"]
    numbers: Int[Array, "rows 2"]
    eos_ids: Int[Array, "rows eos"]
    processors: Processors


class Kept(NamedTuple):
    """What stays on the device."""

    cache: Cache
    seen: Bool[Array, "rows vocab"]


class Made(NamedTuple):
    """New tokens of each row, its first `counts` columns, the end token included; by the model's own distribution."""

    counts: Int[Array, " rows"]
    tokens: Int[Array, "rows steps"]
    logprobs: Float[Array, "rows steps"]  # 0 where none are asked for
    top_ids: Int[Array, "rows steps top"]
    top_logprobs: Float[Array, "rows steps top"]


@functools.partial(jax.jit, static_argnames=("config", "compute", "rows", "length", "inputs", "apart"))
def empty(config: ModelConfig, compute: Compute, *, rows: int, length: int, inputs: int, apart: bool = False) -> Kept:
    """No row yet, with room for `length` tokens of a row, and for `inputs` of what an encoder reads.

    Keys and values are `Apart` where the parameters are.
    """

    def zeros(layers: int, heads: int, length: int) -> Array | Apart:
        shape = (rows, heads, length, config.head_dim)
        if apart:
            return Apart(jnp.zeros(shape, compute.jax_dtype) for _ in range(layers))
        return constrain(jnp.zeros((layers, *shape), compute.jax_dtype), None, "batch", None, None, None)

    if isinstance(config, DecoderConfig):
        own = zeros(config.num_layers, config.num_kv_heads, length)
        cache: Cache = decoder.Cache(own, own)
    else:
        own, cross = (zeros(config.num_decoder_layers, config.num_heads, x) for x in (length, inputs))
        cache = t5.Cache(own, own, cross, cross, jnp.zeros((rows, inputs), bool))
    return Kept(cache, jnp.zeros((rows, config.vocab_size), bool))


@functools.partial(jax.jit, static_argnames=("config", "compute", "prefix_lm"))
def read(
    config: ModelConfig,
    compute: Compute,
    params: Params,
    tokens: Int[Array, "batch length"],
    segments: Int[Array, "batch length"],
    *,
    prefix_lm: bool,
) -> Start:
    """Inputs as `cache.prefill` reads them, with no room behind them."""
    return prefill(build(config, compute, params), tokens, segments, 0, prefix_lm=prefix_lm)


@functools.partial(jax.jit, donate_argnames=("kept",))
def put(kept: Kept, start: Start, places: Int[Array, " n"], sources: Int[Array, " n"]) -> Kept:
    """The rows `places` begin anew with these of the inputs that were read; a place beyond the rows is none."""
    new = start.cache._asdict()
    if isinstance(kept.cache, t5.Cache):
        new = {name: new[name] for name in ("cross_keys", "cross_values", "cross_mask")}
        # False beyond the input, where the row may have had a longer one before.
        room = kept.cache.cross_mask.shape[1] - new["cross_mask"].shape[1]
        new["cross_mask"] = jnp.pad(new["cross_mask"], ((0, 0), (0, room)))

    def placed(name: str, x: Array) -> Any:
        def place(old: Array, new: Array) -> Array:
            return old.at[places, :, : new.shape[2]].set(new[sources], mode="drop")

        old = getattr(kept.cache, name)
        return old.at[places].set(x[sources], mode="drop") if name == "cross_mask" else each_layer(place, old, x)

    cache = kept.cache._replace(**{name: placed(name, x) for name, x in new.items()})
    return Kept(cache, kept.seen.at[places].set(start.seen[sources], mode="drop"))


@functools.partial(jax.jit, static_argnames=("length", "inputs"))
def resized(kept: Kept, sources: Int[Array, " rows"] | None, *, length: int, inputs: int) -> Kept:
    """Rows with more room or less, that go on from these ones, or each from itself.

    A source that there is not makes an empty row.
    """

    def moved(name: str, x: Any) -> Any:
        """One entry of the cache with its rows taken from `sources`, cut or padded to its length."""
        lengthwise, wanted = 1 if name == "cross_mask" else 2, inputs if name.startswith("cross") else length

        def move(x: Array) -> Array:
            x = x if sources is None else x.at[sources].get(mode="fill", fill_value=0)
            if wanted < x.shape[lengthwise]:
                return jax.lax.slice_in_dim(x, 0, wanted, axis=lengthwise)
            return jnp.pad(x, [(0, wanted - size if i == lengthwise else 0) for i, size in enumerate(x.shape)])

        return move(x) if name == "cross_mask" else each_layer(move, x)

    cache = kept.cache._replace(**{name: moved(name, x) for name, x in kept.cache._asdict().items()})
    seen = kept.seen if sources is None else kept.seen.at[sources].get(mode="fill", fill_value=False)
    return Kept(cache, seen)


class _Loop(NamedTuple):
    step: Int[Array, ""]
    rows: Rows
    kept: Kept
    new: Any  # keys and values that the cache does not have yet
    position: Int[Array, " rows"]  # where they belong
    made: Made

    def cache(self) -> Cache:
        """With the new keys and values."""
        return self.kept.cache.written(self.new, self.position)


@functools.partial(jax.jit, static_argnames=("config", "compute", "top"), donate_argnames=("kept",))
def advance(
    config: ModelConfig,
    compute: Compute,
    params: Params,
    kept: Kept,
    rows: Rows,
    until: Int[Array, ""],
    early: Bool[Array, ""],
    scored: Bool[Array, ""],
    *,
    top: int,
) -> tuple[Kept, Made]:
    """Up to `until` tokens more of each active row, at most `STEPS`; with `early` none after one has ended.

    Log-probabilities are made where they are asked for by `scored`, and `top` of the likeliest tokens.
    """
    model: Any = build(config, compute, params)
    keys, first, count = row_keys(rows.seed, rows.numbers), rows, len(rows.last)

    def unfinished(loop: _Loop) -> Bool[Array, ""]:
        some_ended = (loop.rows.active != first.active).any()
        return (loop.step < until) & loop.rows.active.any() & ~(early & some_ended)

    def extend(loop: _Loop) -> _Loop:
        """One token more for every row."""
        rows, made, at = loop.rows, loop.made, loop.step
        # Written before anything reads, and not after: it would not be known that the reading is over, and all copied.
        cache, position = loop.cache(), rows.position
        hidden, new = model.decode_one(rows.last, position, cache)
        logits = model.logits(hidden)
        processors, active = rows.processors, rows.active
        drawn = choose(processors(logits, loop.kept.seen), keys, rows.made, processors.temperature > 0)
        token = jnp.where(active, drawn, PAD_ID)
        chosen, (likeliest, ids) = _scores(logits, token, scored, top)
        seen = loop.kept.seen.at[jnp.arange(count), token].max(active)
        ended = (token[:, None] == rows.eos_ids).any(axis=1) | (rows.made + 1 >= rows.limit)
        rows = rows._replace(
            last=token, position=rows.position + active, made=rows.made + active, active=active & ~ended
        )
        made = Made(
            counts=rows.made - first.made,
            tokens=made.tokens.at[:, at].set(token),
            logprobs=made.logprobs.at[:, at].set(chosen),
            top_ids=made.top_ids.at[:, at].set(ids),
            top_logprobs=made.top_logprobs.at[:, at].set(likeliest),
        )
        return _Loop(at + 1, rows, Kept(cache, seen), new, position, made)

    nothing = Made(
        jnp.zeros(count, jnp.int32),
        jnp.full((count, STEPS), PAD_ID, jnp.int32),
        jnp.zeros((count, STEPS)),
        jnp.zeros((count, STEPS, top), jnp.int32),
        jnp.zeros((count, STEPS, top)),
    )
    rows = jax.tree.map(jnp.asarray, rows)
    # At first something that is written over before it is read.
    new = jax.tree.map(lambda x: jnp.zeros_like(x[..., :1, :]), kept.cache[:2])
    loop = jax.lax.while_loop(unfinished, extend, _Loop(jnp.int32(0), rows, kept, new, rows.position, nothing))
    # Whole on every host, as each of them reads it.
    made = Made(*(constrain(x, *[None] * x.ndim) for x in loop.made))
    return loop.kept._replace(cache=loop.cache()), made


def _scores(
    logits: Float[Array, "rows vocab"], token: Int[Array, " rows"], scored: Bool[Array, ""], top: int
) -> tuple[Float[Array, " rows"], tuple[Float[Array, "rows top"], Int[Array, "rows top"]]]:
    """Log-probabilities of the tokens, and of the likeliest ones with their ids."""

    def likelihoods() -> tuple[Array, tuple[Array, Array]]:
        total = jax.nn.logsumexp(logits, axis=-1)
        values, ids = jax.lax.top_k(logits, top)
        own = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
        return own - total, (values - total[:, None], ids)

    def none() -> tuple[Array, tuple[Array, Array]]:
        return jnp.zeros(len(token)), (jnp.zeros((len(token), top)), jnp.zeros((len(token), top), jnp.int32))

    return jax.lax.cond(scored, likelihoods, none)
