"""The log-likelihood of given answers, token by token, for models of either kind.

    scores = score(config, compute, params, [[5, 6, 1], [7, 1]], [[8, 9, 1], [4, 1]])
    scores[0].logprobs, scores[0].total, scores[0].is_greedy    # (-1.5, -0.5, -0.3), -2.3, True

Inputs and targets are lists of token ids of any length. An encoder-decoder answers its inputs, a decoder goes on from
them. A pair sees only itself: its neighbours in the batch, and the padding, do not change its score.

What pairs have in common is computed once. Inputs are read once for all of their targets (`scoring_rows`), a decoder
reads once what many inputs begin with, such as the examples of a few-shot prompt, and the head is multiplied only
where a target's token is predicted.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from flanjax.generation.batches import Tokens, batches, behind_prompts, filled, length_bucket, padded, row_bucket
from flanjax.generation.scoring_rows import Row, decoder_rows, encoder_decoder_rows, shared_beginnings
from flanjax.models.config import Compute, T5Config
from flanjax.models.decoder import Beginning
from flanjax.models.decoder_config import DecoderConfig
from flanjax.models.model import Model, ModelConfig, build
from flanjax.models.parameters import Params
from flanjax.sharding.rules import constrain, mesh_of

# Places whose logits are there at once, at most; every larger bucket is a multiple of its half.
PLACES = 64


class Score(NamedTuple):
    """How likely a target is given its input.

    Attributes:
      logprobs: natural-log likelihood of each of the target's tokens after those before it, float32.
      is_greedy: whether each of them is the most likely one in its place; so too where there is none.
      likeliest: in each of their places, (id, logprob) of the likeliest tokens, falling; as many as were asked for.
    """

    logprobs: tuple[float, ...]
    is_greedy: bool
    likeliest: tuple[tuple[tuple[int, float], ...], ...] = ()

    @property
    def total(self) -> float:
        """The natural-log likelihood of the whole target: 0 of an empty one."""
        return sum(self.logprobs)


OnScore = Callable[[int, Score], None]  # number of the pair, its score


class _Told(NamedTuple):
    """What is told of each place."""

    logprobs: Float[Array, "places tokens"]  # of the tokens that were asked for
    is_best: Bool[Array, "places tokens"]
    likeliest_ids: Int[Array, "places likeliest"]
    likeliest_logprobs: Float[Array, "places likeliest"]


class _Asked(NamedTuple):
    """Of which tokens the log-likelihoods are wanted, and where."""

    places: Int[Array | np.ndarray, " places"]  # in the rows laid end to end
    tokens: Int[Array | np.ndarray, "places tokens"]


@functools.partial(jax.jit, static_argnames=("config", "compute"))
def _begin(
    config: DecoderConfig, compute: Compute, params: Params, tokens: Int[Array, "1 length"], segments: Array
) -> Beginning:
    """What rows go on from."""
    return build(config, compute, params).begin(tokens[0], segments[0])


@functools.partial(jax.jit, static_argnames=("config", "compute", "prefix_lm", "branching", "likeliest"))
def _decoder_likelihoods(
    config: DecoderConfig,
    compute: Compute,
    params: Params,
    rows: dict[str, Int[Array, "batch length"]],
    asked: _Asked,
    beginning: Beginning | None,
    *,
    prefix_lm: bool,
    branching: bool,
    likeliest: int,
) -> _Told:
    model = build(config, compute, params)
    rows = {name: constrain(jnp.asarray(x), "batch", None) for name, x in rows.items()}
    bidirectional = rows["of_inputs"] if prefix_lm else None
    hidden = model.decode(
        rows["tokens"],
        rows["segments"],
        positions=rows["positions"],
        bidirectional=bidirectional,
        beginning=beginning,
        branching=branching,
    )
    return _likelihoods(model, hidden, asked, likeliest)


@functools.partial(jax.jit, static_argnames=("config", "compute", "likeliest"))
def _encoder_decoder_likelihoods(
    config: T5Config,
    compute: Compute,
    params: Params,
    rows: dict[str, Int[Array, "batch length"]],
    asked: _Asked,
    *,
    likeliest: int,
) -> _Told:
    model = build(config, compute, params)
    rows = {name: constrain(jnp.asarray(x), "batch", None) for name, x in rows.items()}
    of_inputs, segments = rows["of_inputs"], rows["segments"]
    encoded = model.encode(rows["inputs"], of_inputs)
    hidden = model.decode(rows["tokens"], segments, encoded, of_inputs, encoder_segment_of=jnp.minimum(segments, 1))
    return _likelihoods(model, hidden, asked, likeliest)


def _likelihoods(model: Model, hidden: Float[Array, "batch length embed"], asked: _Asked, likeliest: int) -> _Told:
    """The log-likelihoods of the tokens in their places, and whether each is the most likely one there."""

    def portion(xs: tuple[Array, Array]) -> _Told:
        hidden, tokens = xs
        logits = model.logits(hidden)
        chosen, total = jnp.take_along_axis(logits, tokens, axis=1), jax.nn.logsumexp(logits, axis=1, keepdims=True)
        highest, ids = jax.lax.top_k(logits, min(likeliest, logits.shape[1]))
        return _Told(chosen - total, jnp.argmax(logits, axis=1)[:, None] == tokens, ids, highest - total)

    # Float32 logits of all places would be the largest array by far.
    size = len(asked.places) if len(asked.places) <= PLACES else PLACES // 2
    parts = [
        x.reshape(-1, size, x.shape[-1]) for x in (hidden.reshape(-1, hidden.shape[-1])[asked.places], asked.tokens)
    ]
    told = jax.lax.map(portion, tuple(parts))
    return _Told(*(constrain(x.reshape(len(asked.places), -1), None, None) for x in told))


def score(
    config: ModelConfig,
    compute: Compute,
    params: Params,
    inputs: Sequence[Tokens],
    targets: Sequence[Tokens],
    *,
    prefix_lm: bool = False,
    prompts: Sequence[int] | None = None,
    batch_rows: int = 16,
    likeliest: int = 0,
    on_score: OnScore = lambda number, score: None,
) -> list[Score]:
    """The log-likelihoods of each target's tokens given its input.

    Arguments:
      config: the model.
      compute: how to run it.
      params: its parameters; over the mesh that they lie on the rows of a batch are spread.
      inputs: token ids; a decoder's are not empty.
      targets: token ids, as many lists as inputs; EOS counts where it is given.
      prefix_lm: as `generate`.
      prompts: as `generate`.
      batch_rows: inputs read together, each with all of its targets.
      likeliest: how many of the likeliest tokens are told with each token.
      on_score: is given each score as soon as it is there, with the number of its pair.

    Raises:
      ValueError: not as many targets, or numbers of prompts, as inputs, or a number that there is not; an empty input
        of a decoder.
    """
    if len(inputs) != len(targets):
        raise ValueError(f"{len(inputs)} inputs but {len(targets)} targets: each input needs its target")
    inputs = behind_prompts(config, inputs, prompts)
    by_context: dict[tuple[int, ...], dict[int, Tokens]] = {}
    scores = [Score((), True)] * len(inputs)
    for i, (ids, target) in enumerate(zip(inputs, targets, strict=True)):
        if len(target):
            by_context.setdefault(tuple(ids), {})[i] = target
        else:
            on_score(i, scores[i])
    if isinstance(config, DecoderConfig):
        told = _by_decoder(config, compute, params, by_context, batch_rows, prefix_lm=prefix_lm, likeliest=likeliest)
    else:
        told = _by_encoder_decoder(config, compute, params, by_context, batch_rows, likeliest=likeliest)
    with mesh_of(params):
        for slots, found in told:
            for i, likelihood in _scores(slots, found):
                scores[i] = likelihood
                on_score(i, likelihood)
    return scores


_ByContext = Mapping[tuple[int, ...], Mapping[int, Tokens]]
# Of each pair, by its number: in which place its tokens are, and which they are of the tokens asked for there.
_Slots = Mapping[int, Sequence[tuple[int, int]]]


def _by_decoder(
    config: DecoderConfig,
    compute: Compute,
    params: Params,
    by_context: _ByContext,
    batch_rows: int,
    *,
    prefix_lm: bool,
    likeliest: int,
) -> Iterator[tuple[_Slots, _Told]]:
    """What is told of the pairs, a batch at a time, in any order."""
    # Where inputs see what follows them, no two have a part in common.
    goes_on = config.can_branch and not prefix_lm and compute.attention != "blockwise"
    for begin, contexts in shared_beginnings(list(by_context)) if goes_on else [(0, list(by_context))]:
        beginning = _begin(config, compute, params, *padded([contexts[0][:begin]], 1)) if begin else None
        rows = [
            row
            for context in contexts
            for row in decoder_rows(context, by_context[context], begin=begin, branching=config.can_branch)
        ]
        for chosen in batches([len(row.tokens) for row in rows], batch_rows):
            batch = [rows[i] for i in chosen]
            arrays = _arrays(batch)
            count, length = arrays["tokens"].shape
            arrays["of_inputs"] = filled([[1] * (len(row.inputs) - begin) for row in batch], count, length)
            asked, slots = _asked(batch, length)
            branching = any(max(row.segments) > 1 for row in batch)
            how = {"prefix_lm": prefix_lm, "branching": branching, "likeliest": likeliest}
            yield slots, _decoder_likelihoods(config, compute, params, arrays, asked, beginning, **how)


def _by_encoder_decoder(
    config: T5Config, compute: Compute, params: Params, by_context: _ByContext, batch_rows: int, *, likeliest: int
) -> Iterator[tuple[_Slots, _Told]]:
    """What is told of the pairs, a batch at a time, in any order."""
    rows = [row for context, targets in by_context.items() for row in encoder_decoder_rows(context, targets)]
    for chosen in batches([max(len(row.inputs), len(row.tokens)) for row in rows], batch_rows):
        batch = [rows[i] for i in chosen]
        arrays = _arrays(batch)
        arrays["inputs"], arrays["of_inputs"] = padded([row.inputs for row in batch], row_bucket(len(batch)))
        asked, slots = _asked(batch, arrays["tokens"].shape[1])
        yield slots, _encoder_decoder_likelihoods(config, compute, params, arrays, asked, likeliest=likeliest)


def _arrays(rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """What the decoder is given, int32 [bucket of rows, bucket of the longest]."""
    shape = row_bucket(len(rows)), length_bucket(max(len(row.tokens) for row in rows))
    return {name: filled([getattr(row, name) for row in rows], *shape) for name in ("tokens", "segments", "positions")}


def _asked(rows: Sequence[Row], length: int) -> tuple[_Asked, _Slots]:
    """What rows of this length are asked, each place once."""
    tokens: dict[int, dict[int, int]] = {}  # by place and token, the token's number there
    numbers: dict[int, int] = {}
    slots: dict[int, list[tuple[int, int]]] = {}
    for number, row in enumerate(rows):
        for i, places in row.places.items():
            slots[i] = []
            for place, token in zip((number * length + place for place in places), row.targets[i], strict=True):
                there = tokens.setdefault(place, {})
                slots[i].append((numbers.setdefault(place, len(numbers)), there.setdefault(token, len(there))))
    count, most = length_bucket(len(tokens)), row_bucket(max(map(len, tokens.values())))
    places = filled([list(tokens)], 1, count)[0]
    return _Asked(places, filled([list(there) for there in tokens.values()], count, most)), slots


def _scores(slots: _Slots, told: _Told) -> Iterator[tuple[int, Score]]:
    logprobs, is_best, ids, values = map(np.asarray, told)
    for i, own in slots.items():
        places, _ = at = tuple(zip(*own, strict=True))
        top = zip(ids[list(places)].tolist(), values[list(places)].tolist(), strict=True)
        likeliest = tuple(tuple(zip(*pair, strict=True)) for pair in top)
        yield i, Score(tuple(logprobs[at].tolist()), bool(is_best[at].all()), likeliest)
