"""Packing: which examples of a window share a row, and the arrays of packed rows.

Two examples with inputs [5, 6, 1] and [7, 1] and targets [8, 1] and [9, 4, 1], in a row of 6 and 6 tokens:

    encoder_input_tokens   5 6 1 7 1 0      decoder_target_tokens  8 1 9 4 1 0
    encoder_segment_ids    1 1 1 2 2 0      decoder_input_tokens   0 8 0 9 4 0
    encoder_positions      0 1 2 0 1 0      decoder_loss_weights   1 1 1 1 1 0
                                            decoder_segment_ids    1 1 2 2 2 0
                                            decoder_positions      0 1 0 1 2 0

An example has the same segment number on both sides; 0 is padding. `decoder_loss_weights` are an example's
`target_weights` where it has some. Field names are T5X's.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Int

from flanjax.data.cache import Example
from flanjax.data.planning import plan_rows
from flanjax.errors import FlanjaxError

Batch = dict[str, np.ndarray]
Overlong = Literal["truncate", "drop", "error"]


class PackingError(FlanjaxError):
    """Examples that do not fit their rows, or row lengths that fit nothing."""


def check_row_lengths(row_lengths: tuple[int, int]) -> None:
    """Raises PackingError where a side could not hold a token and its EOS."""
    for name, length in zip(("inputs", "targets"), row_lengths, strict=True):
        if length < 2:
            raise PackingError(f"feature length {name}={length}: give 2 or more, room for a token and its EOS")


def check_overlong(policy: str) -> None:
    """Raises PackingError where the policy for over-long examples is none of those there are."""
    if policy not in get_args(Overlong):
        raise PackingError(f"overlong={policy!r}: give one of {', '.join(get_args(Overlong))}")


def is_overlong(lengths: Int[np.ndarray, "examples 2"], row_lengths: tuple[int, int]) -> Bool[np.ndarray, " examples"]:
    """Which examples are longer than a row on either side."""
    return np.any(np.asarray(lengths) > np.asarray(row_lengths), axis=1)


def plan_window(
    lengths: Int[np.ndarray, "examples 2"], row_lengths: tuple[int, int], *, pack: bool = True
) -> list[list[int]]:
    """Puts every example of a window into one row, so that the rows are few.

    An example longer than a row counts as one that fills that side: it is truncated when the row is made. With rows of
    (10, 4), lengths (6, 1), (5, 1), (4, 1), (5, 3) give the rows [1, 3] and [0, 2].

    Args:
        lengths: tokens of inputs and targets.
        row_lengths: tokens of a row's two sides.
        pack: whether examples share rows; if not, each has its own, in order.

    Returns:
        Rows as lists of indices into `lengths`, ascending within a row; a pure function of the arguments. Rows come
        roughly longest example first: shuffle them before training on them.
    """
    if not pack:
        return [[index] for index in range(len(lengths))]
    clipped = np.minimum(np.asarray(lengths, dtype=np.int64), np.asarray(row_lengths))
    return [sorted(row) for row in plan_rows(clipped, row_lengths)]


def truncate(example: Example, row_lengths: tuple[int, int]) -> Example:
    """Cuts what is over-long from the end of a side, and keeps its last token, EOS."""
    if len(example.inputs) <= row_lengths[0] and len(example.targets) <= row_lengths[1]:
        return example

    def cut(values: np.ndarray, limit: int) -> np.ndarray:
        return values if len(values) <= limit else np.concatenate([values[: limit - 1], values[-1:]])

    weights = example.target_weights
    return replace(
        example,
        inputs=cut(example.inputs, row_lengths[0]),
        targets=cut(example.targets, row_lengths[1]),
        target_weights=None if weights is None else cut(weights, row_lengths[1]),
    )


def pack_row(examples: Sequence[Example], encoder_length: int, decoder_length: int) -> Batch:
    """The arrays [length] of one row; see the example at the head of this file.

    Raises:
        PackingError: the examples do not fit.
    """
    return {name: array[0] for name, array in pack_rows([examples], (encoder_length, decoder_length)).items()}


def pack_rows(rows: Sequence[Sequence[Example]], row_lengths: tuple[int, int]) -> Batch:
    """The int32 arrays [rows, length] of a batch; a row without examples is padding.

    Raises:
        PackingError: the examples of a row do not fit it.
    """
    row_of = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    examples = [example for row in rows for example in row]
    encoder = _Side([example.inputs for example in examples], row_of, len(rows), row_lengths[0])
    decoder = _Side([example.targets for example in examples], row_of, len(rows), row_lengths[1])
    return {
        "encoder_input_tokens": encoder.scatter(encoder.tokens),
        "encoder_segment_ids": encoder.scatter(encoder.segments),
        "encoder_positions": encoder.scatter(encoder.positions),
        "decoder_input_tokens": decoder.scatter(decoder.shifted()),
        "decoder_target_tokens": decoder.scatter(decoder.tokens),
        "decoder_loss_weights": decoder.scatter(_joined(map(_target_weights, examples))),
        "decoder_segment_ids": decoder.scatter(decoder.segments),
        "decoder_positions": decoder.scatter(decoder.positions),
    }


def _target_weights(example: Example) -> np.ndarray:
    return np.ones(len(example.targets)) if example.target_weights is None else example.target_weights


def _joined(sequences: Iterable[np.ndarray]) -> np.ndarray:
    return np.concatenate([*sequences, np.empty(0, np.int32)]).astype(np.int32)


class _Side:
    """One side of all rows, laid out end to end: a handful of array operations for a batch, not for an example."""

    def __init__(self, sequences: list[np.ndarray], row_of: np.ndarray, rows: int, length: int):
        sizes = np.fromiter((len(tokens) for tokens in sequences), dtype=np.int64, count=len(sequences))
        row_sizes = np.bincount(row_of, weights=sizes, minlength=rows).astype(np.int64)
        if len(row_sizes) and np.max(row_sizes) > length:
            row = int(np.argmax(row_sizes))
            raise PackingError(f"row {row} holds {row_sizes[row]} tokens, its length is {length}")
        starts = np.cumsum(sizes) - sizes
        first_of_row = np.searchsorted(row_of, np.arange(rows))
        self._shape = (rows, length)
        self.tokens = _joined(sequences)
        self.positions = np.arange(len(self.tokens)) - np.repeat(starts, sizes)
        self.segments = np.repeat(np.arange(len(sizes)) - first_of_row[row_of] + 1, sizes)
        self._starts = starts[sizes > 0]
        row_start = np.cumsum(row_sizes) - row_sizes
        self._target = np.arange(len(self.tokens)) + np.repeat(np.arange(rows) * length - row_start, row_sizes)

    def shifted(self) -> np.ndarray:
        """The tokens, each one place later in its segment, which begins with 0."""
        tokens = np.roll(self.tokens, 1)
        tokens[self._starts] = 0
        return tokens

    def scatter(self, values: np.ndarray) -> np.ndarray:
        """The values in their places of an array [rows, length]."""
        result = np.zeros(self._shape, dtype=np.int32)
        result.reshape(-1)[self._target] = values
        return result
