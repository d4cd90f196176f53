"""Greedy decoding with a key-value cache, and the log-likelihood of given targets.

Both take lists of token ids of any length. Examples are sorted by length, cut into batches and padded to a few
shapes (powers of two and the halves between them), so that a program is compiled once for each shape and reused. A
row sees only itself: its neighbours in the batch, and the padding, do not change its answer.
"""

import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from flanjax.models.config import Compute, T5Config
from flanjax.models.t5 import Params, build
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


def _padded(rows: Sequence[Tokens], count: int) -> np.ndarray:
    """Rows of ids as int32 [count, bucket of the longest]; empty rows fill up the count."""
    tokens = np.full((count, length_bucket(max(map(len, rows)))), PAD_ID, np.int32)
    for row, ids in zip(tokens, rows, strict=False):
        row[: len(ids)] = ids
    return tokens


def _segments(rows: Sequence[Tokens], tokens: np.ndarray) -> np.ndarray:
    """1 on the ids of each row, 0 on its padding; from the lengths, for a pad id inside a row is a token."""
    lengths = np.zeros(len(tokens), np.int32)
    lengths[: len(rows)] = [len(ids) for ids in rows]
    return (np.arange(tokens.shape[1]) < lengths[:, None]).astype(np.int32)


def _behind_prompts(config: T5Config, inputs: Sequence[Tokens], prompts: Sequence[int] | None) -> Sequence[Tokens]:
    """The inputs behind the placeholders of the model's learnt prompt (`flanjax.models.prompts`), where it has one."""
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


@functools.partial(jax.jit, static_argnames=("config", "compute", "max_length"))
def _decode(
    config: T5Config,
    compute: Compute,
    params: Params,
    tokens: Int[Array, "batch encoder_length"],
    segments: Int[Array, "batch encoder_length"],
    limit: Int[Array, ""],
    max_length: int,
) -> Int[Array, "batch max_length"]:
    """Token ids, ending in EOS where a row ended, padding after it; stops when all rows have, or at the limit."""
    model = build(config, compute, params)
    cache = model.start_cache(model.encode(tokens, segments), segments, max_length)
    batch = tokens.shape[0]

    def unfinished(state: tuple) -> Bool[Array, ""]:
        step, _, done, _, _ = state
        return (step < limit) & ~done.all()

    def extend(state: tuple) -> tuple:
        step, last, done, output, cache = state
        hidden, cache = model.decode_step(last, step, cache)
        token = jnp.argmax(model.logits(hidden), axis=-1).astype(jnp.int32)
        token = jnp.where(done, PAD_ID, token)
        return step + 1, token, done | (token == EOS_ID), output.at[:, step].set(token), cache

    start = jnp.full((batch,), PAD_ID, jnp.int32)
    output = jnp.full((batch, max_length), PAD_ID, jnp.int32)
    # A row without input is one that fills up the batch.
    done = ~segments.any(axis=1)
    decoded = jax.lax.while_loop(unfinished, extend, (jnp.int32(0), start, done, output, cache))[3]
    return constrain(decoded, None, None)  # whole on every host, as each of them reads it


def greedy(
    config: T5Config,
    compute: Compute,
    params: Params,
    inputs: Sequence[Tokens],
    max_new_tokens: int,
    *,
    prompts: Sequence[int] | None = None,
    batch_rows: int = 16,
) -> list[list[int]]:
    """The most likely next token, again and again, until EOS or `max_new_tokens`.

    Arguments:
      config: the model.
      compute: how to run it.
      params: its parameters.
      inputs: encoder token ids, EOS included where the model expects one.
      max_new_tokens: tokens at most, the EOS not counted in the answer.
      prompts: for a model with a learnt prompt for each task (`config.prompt_tasks`), the number of each input's.
      batch_rows: examples decoded together.

    Returns:
      One list of ids for each input, in order, up to and without EOS, without padding.

    Raises:
      ValueError: not as many numbers of prompts as inputs, or one that there is not.
    """
    inputs = _behind_prompts(config, inputs, prompts)
    answers: list[list[int]] = [[] for _ in inputs]
    for batch in _batches([len(ids) for ids in inputs], batch_rows):
        rows = [inputs[i] for i in batch]
        tokens = _padded(rows, _row_bucket(len(rows)))
        decoded = _decode(
            config,
            compute,
            params,
            tokens,
            _segments(rows, tokens),
            jnp.int32(max_new_tokens),
            max_length=length_bucket(max_new_tokens),
        )
        for i, ids in zip(batch, np.asarray(decoded), strict=False):
            ended = np.flatnonzero(ids == EOS_ID)
            ids = ids[: ended[0]] if len(ended) else ids
            answers[i] = [int(token) for token in ids if token != PAD_ID]
    return answers


@functools.partial(jax.jit, static_argnames=("config", "compute"))
def _score(
    config: T5Config,
    compute: Compute,
    params: Params,
    tokens: Int[Array, "batch encoder_length"],
    segments: Int[Array, "batch encoder_length"],
    targets: Int[Array, "batch length"],
    target_segments: Int[Array, "batch length"],
) -> Float[Array, " batch"]:
    model = build(config, compute, params)
    shifted = jnp.pad(targets[:, :-1], ((0, 0), (1, 0)), constant_values=PAD_ID)
    hidden = model.decode(shifted, target_segments, model.encode(tokens, segments), segments)

    def row(xs: tuple[Array, Array, Array]) -> Float[Array, ""]:
        hidden, targets, weights = xs
        logits = model.logits(hidden)
        chosen = jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
        return jnp.sum((chosen - jax.nn.logsumexp(logits, axis=1)) * weights)

    # A row at a time: float32 logits of the whole batch would be its largest array by far.
    return constrain(jax.lax.map(row, (hidden, targets, target_segments)), None)


def score(
    config: T5Config,
    compute: Compute,
    params: Params,
    inputs: Sequence[Tokens],
    targets: Sequence[Tokens],
    *,
    prompts: Sequence[int] | None = None,
    batch_rows: int = 16,
) -> list[float]:
    """Natural-log likelihood of each target given its input, summed over the target's tokens, in float32.

    Arguments:
      config: the model.
      compute: how to run it.
      params: its parameters.
      inputs: encoder token ids.
      targets: decoder token ids, as many lists as inputs; EOS counts where it is given.
      prompts: as `greedy`.
      batch_rows: pairs scored together.

    Raises:
      ValueError: not as many targets, or numbers of prompts, as inputs, or a number that there is not.
    """
    if len(inputs) != len(targets):
        raise ValueError(f"{len(inputs)} inputs but {len(targets)} targets: each input needs its target")
    inputs = _behind_prompts(config, inputs, prompts)
    scores = [0.0] * len(inputs)
    for batch in _batches([max(len(x), len(y)) for x, y in zip(inputs, targets, strict=True)], batch_rows):
        rows, wanted = [inputs[i] for i in batch], [targets[i] for i in batch]
        tokens, labels = _padded(rows, _row_bucket(len(rows))), _padded(wanted, _row_bucket(len(rows)))
        sums = _score(config, compute, params, tokens, _segments(rows, tokens), labels, _segments(wanted, labels))
        for i, total in zip(batch, np.asarray(sums), strict=False):
            scores[i] = float(total)
    return scores
