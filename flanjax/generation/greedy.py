"""Greedy decoding with a key-value cache, and the log-likelihood of given targets, for models of either kind.

    greedy(config, compute, params, [[5, 6, 1], [7, 1]], max_new_tokens=32)          -> [[8, 9], [4]]
    score(config, compute, params, [[5, 6, 1], [7, 1]], [[8, 9, 1], [4, 1]])         -> [-2.3, -0.7]

Both take lists of token ids of any length. An encoder-decoder answers its inputs, a decoder goes on from them. Examples
are sorted by length, cut into batches and padded to a few shapes (powers of two and the halves between them), so that a
program is compiled once for each shape and reused. A row sees only itself: its neighbours in the batch, and the
padding, do not change its answer.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from flanjax.data.cache import Example
from flanjax.data.packing import pack_rows
from flanjax.models.config import Compute, T5Config
from flanjax.models.decoder import require_positions
from flanjax.models.decoder_config import DecoderConfig
from flanjax.models.model import ModelConfig, build
from flanjax.models.parameters import Params
from flanjax.sharding.rules import constrain

PAD_ID = 0
EOS_ID = 1

Tokens = Sequence[int]


def length_bucket(length: int, smallest: int = 8) -> int:
    """The smallest of 8, 12, 16, 24, 32, 48, ... that holds `length`."""
    size = smallest
    while size < length:
        size = size + size // 2 if size & (size - 1) == 0 else size // 3 * 4
    return size


def _row_bucket(rows: int) -> int:
    return 1 << (rows - 1).bit_length()


def _padded(rows: Sequence[Tokens], count: int, *, left: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Rows of ids as int32 [count, bucket of the longest], and 1 on the ids of each row, 0 on its padding.

    Empty rows fill up the count; padding follows the ids, or stands before them.
    """
    length = length_bucket(max(map(len, rows)))
    tokens, segments = np.full((count, length), PAD_ID, np.int32), np.zeros((count, length), np.int32)
    for row, ids in enumerate(rows):
        place = slice(length - len(ids), length) if left else slice(len(ids))
        tokens[row, place], segments[row, place] = ids, 1
    return tokens, segments


def _behind_prompts(config: ModelConfig, inputs: Sequence[Tokens], prompts: Sequence[int] | None) -> Sequence[Tokens]:
    """The inputs behind the placeholders of the model's learnt prompt (`flanjax.models.prompts`), where it has one."""
    if isinstance(config, DecoderConfig) and not all(map(len, inputs)):
        raise ValueError("an input without a token: a decoder goes on from one at the least, such as BOS")
    if not config.prompt_length:
        return inputs
    numbers = [0] * len(inputs) if prompts is None and not config.prompt_tasks else prompts
    if numbers is None or len(numbers) != len(inputs):
        raise ValueError(f"{len(inputs)} inputs need as many numbers of prompts, not {numbers}")
    if not set(numbers) <= set(range(max(len(config.prompt_tasks), 1))):
        raise ValueError(f"prompts {sorted(set(numbers))}: the model's are numbered from 0, {config.prompt_tasks}")
    return [[number] * config.prompt_length + list(ids) for number, ids in zip(numbers, inputs, strict=True)]


def _batches(lengths: Sequence[int], batch_rows: int) -> Iterator[list[int]]:
    """Indices of examples of like length, at most `batch_rows` at a time."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    for start in range(0, len(order), batch_rows):
        yield order[start : start + batch_rows]


Step = Callable[[Array, Array, Any], tuple[Array, Any]]  # last token, number of the step, cache -> logits, cache


def _extend(
    step_of: Step,
    last: Int[Array, " batch"],
    cache: Any,
    done: Bool[Array, " batch"],
    limit: Int[Array, ""],
    max_length: int,
    eos_ids: Int[Array, " eos"],
) -> Int[Array, "batch max_length"]:
    """Token ids, ending in EOS where a row ended, padding after it; stops when all rows have, or at the limit."""

    def unfinished(state: tuple) -> Bool[Array, ""]:
        step, _, done, _, _ = state
        return (step < limit) & ~done.all()

    def extend(state: tuple) -> tuple:
        step, last, done, output, cache = state
        logits, cache = step_of(last, step, cache)
        token = jnp.where(done, PAD_ID, jnp.argmax(logits, axis=-1).astype(jnp.int32))
        return step + 1, token, done | jnp.isin(token, eos_ids), output.at[:, step].set(token), cache

    output = jnp.full((len(last), max_length), PAD_ID, jnp.int32)
    decoded = jax.lax.while_loop(unfinished, extend, (jnp.int32(0), last, done, output, cache))[3]
    return constrain(decoded, None, None)  # whole on every host, as each of them reads it


@functools.partial(jax.jit, static_argnames=("config", "compute", "max_length"))
def _decode(
    config: T5Config,
    compute: Compute,
    params: Params,
    tokens: Int[Array, "batch encoder_length"],
    segments: Int[Array, "batch encoder_length"],
    limit: Int[Array, ""],
    eos_ids: Int[Array, " eos"],
    max_length: int,
) -> Int[Array, "batch max_length"]:
    """The answers of an encoder-decoder; as `_extend`."""
    model = build(config, compute, params)
    cache = model.start_cache(model.encode(tokens, segments), segments, max_length)

    def step_of(last: Array, step: Array, cache: Any) -> tuple[Array, Any]:
        hidden, cache = model.decode_step(last, step, cache)
        return model.logits(hidden), cache

    start = jnp.full(len(tokens), PAD_ID, jnp.int32)
    # A row without input is one that fills up the batch.
    return _extend(step_of, start, cache, ~segments.any(axis=1), limit, max_length, eos_ids)


@functools.partial(jax.jit, static_argnames=("config", "compute", "max_length", "prefix_lm"))
def _continue(
    config: DecoderConfig,
    compute: Compute,
    params: Params,
    tokens: Int[Array, "batch length"],
    segments: Int[Array, "batch length"],
    limit: Int[Array, ""],
    eos_ids: Int[Array, " eos"],
    max_length: int,
    prefix_lm: bool,
) -> Int[Array, "batch max_length"]:
    """What a decoder adds to texts that all end in the last column; as `_extend`."""
    model = build(config, compute, params)
    length = tokens.shape[1]
    seen = segments if prefix_lm else None
    cache = model.prefill(tokens, segments, length + max_length, bidirectional=seen)

    def step_of(last: Array, step: Array, cache: Any) -> tuple[Array, Any]:
        # The last token of the text enters again, in its own place, so that there is one way to the next token.
        hidden, cache = model.decode_step(last, length - 1 + step, cache)
        return model.logits(hidden), cache

    return _extend(step_of, tokens[:, -1], cache, ~segments.any(axis=1), limit, max_length, eos_ids)


def greedy(
    config: ModelConfig,
    compute: Compute,
    params: Params,
    inputs: Sequence[Tokens],
    max_new_tokens: int,
    *,
    eos_ids: Sequence[int] = (EOS_ID,),
    prefix_lm: bool = False,
    prompts: Sequence[int] | None = None,
    batch_rows: int = 16,
) -> list[list[int]]:
    """The most likely next token, again and again, until EOS or `max_new_tokens`.

    Arguments:
      config: the model.
      compute: how to run it.
      params: its parameters.
      inputs: token ids, BOS or EOS included where the model expects one; a decoder's are not empty.
      max_new_tokens: tokens at most, the EOS not counted in the answer.
      eos_ids: any of these ends an answer.
      prefix_lm: whether a decoder's inputs all see each other, as it was trained.
      prompts: for a model with a learnt prompt for each task (`config.prompt_tasks`), the number of each input's.
      batch_rows: examples decoded together.

    Returns:
      One list of ids for each input, in order, up to and without EOS, without padding.

    Raises:
      ValueError: not as many numbers of prompts as inputs, or one that there is not; an empty input of a decoder.
      ModelConfigError: the longest answer would be beyond the positions that a decoder has.
    """
    inputs = _behind_prompts(config, inputs, prompts)
    if isinstance(config, DecoderConfig):
        require_positions(config, max(map(len, inputs), default=0) + max_new_tokens)
    answers: list[list[int]] = [[] for _ in inputs]
    ends, of_decoder = np.array(eos_ids, np.int32), isinstance(config, DecoderConfig)
    for batch in _batches([len(ids) for ids in inputs], batch_rows):
        rows = [inputs[i] for i in batch]
        texts = _padded(rows, _row_bucket(len(rows)), left=of_decoder)
        how = {"limit": jnp.int32(max_new_tokens), "eos_ids": ends, "max_length": length_bucket(max_new_tokens)}
        if isinstance(config, DecoderConfig):
            decoded = _continue(config, compute, params, *texts, **how, prefix_lm=prefix_lm)
        else:
            decoded = _decode(config, compute, params, *texts, **how)
        for i, ids in zip(batch, np.asarray(decoded), strict=False):
            ended = np.flatnonzero(np.isin(ids, ends))
            ids = ids[: ended[0] if len(ended) else max_new_tokens].tolist()
            answers[i] = ids if of_decoder else [token for token in ids if token != PAD_ID]  # 0 may be a decoder's word
    return answers


@functools.partial(jax.jit, static_argnames=("config", "compute"))
def _score(
    config: ModelConfig, compute: Compute, params: Params, batch: dict[str, Int[Array, "batch length"]]
) -> Float[Array, " batch"]:
    """The summed log-likelihood of each row's weighted targets; a batch is as in training."""
    model = build(config, compute, params)

    def row(xs: tuple[Array, Array, Array]) -> Float[Array, ""]:
        hidden, targets, weights = xs
        logits = model.logits(hidden)
        chosen = jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
        return jnp.sum((chosen - jax.nn.logsumexp(logits, axis=1)) * weights)

    # A row at a time: float32 logits of the whole batch would be its largest array by far.
    rows = (model(batch), batch["decoder_target_tokens"], batch["decoder_loss_weights"])
    return constrain(jax.lax.map(row, rows), None)


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
) -> list[float]:
    """Natural-log likelihood of each target given its input, summed over the target's tokens, in float32.

    Arguments:
      config: the model.
      compute: how to run it.
      params: its parameters.
      inputs: token ids; a decoder's are not empty.
      targets: token ids, as many lists as inputs; EOS counts where it is given.
      prefix_lm: as `greedy`.
      prompts: as `greedy`.
      batch_rows: pairs scored together.

    Raises:
      ValueError: not as many targets, or numbers of prompts, as inputs, or a number that there is not; an empty input
        of a decoder.
    """
    if len(inputs) != len(targets):
        raise ValueError(f"{len(inputs)} inputs but {len(targets)} targets: each input needs its target")
    inputs = _behind_prompts(config, inputs, prompts)
    examples = [
        Example(inputs=np.array(x, np.int32), targets=np.array(y, np.int32))
        for x, y in zip(inputs, targets, strict=True)
    ]
    scores = [0.0] * len(inputs)
    for batch in _batches([max(len(x.inputs), len(x.targets)) for x in examples], batch_rows):
        rows = [[examples[i]] for i in batch] + [[]] * (_row_bucket(len(batch)) - len(batch))
        packed = pack_rows(rows, _row_lengths(config, [examples[i] for i in batch]), prefix_lm=prefix_lm)
        for i, total in zip(batch, np.asarray(_score(config, compute, params, packed)), strict=False):
            scores[i] = float(total)
    return scores


def _row_lengths(config: ModelConfig, examples: Sequence[Example]) -> tuple[int, ...]:
    """Rows that hold any of these examples."""
    if isinstance(config, DecoderConfig):
        return (length_bucket(max(len(x.inputs) + len(x.targets) for x in examples)),)
    return tuple(length_bucket(max(len(getattr(x, side)) for x in examples)) for side in ("inputs", "targets"))
