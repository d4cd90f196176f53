"""Packing: which examples of a window share a row, and the arrays of packed rows.

An encoder-decoder's rows have two sides. Two examples with inputs [5, 6, 1] and [7, 1] and targets [8, 1] and
[9, 4, 1], in a row of (6, 6) tokens:

    encoder_input_tokens   5 6 1 7 1 0      decoder_target_tokens  8 1 9 4 1 0
    encoder_segment_ids    1 1 1 2 2 0      decoder_input_tokens   0 8 0 9 4 0
    encoder_positions      0 1 2 0 1 0      decoder_loss_weights   1 1 1 1 1 0
                                            decoder_segment_ids    1 1 2 2 2 0
                                            decoder_positions      0 1 0 1 2 0

A decoder's rows have one: an example is its inputs and targets one after the other, n tokens that give n - 1 positions,
each with the next token as its target. The same two examples in a row of (9,) positions:

    decoder_input_tokens      5 6 1 8 7 1 9 4 0
    decoder_target_tokens     6 1 8 1 1 9 4 1 0
    decoder_loss_weights      0 0 1 1 0 1 1 1 0      targets alone are learnt
    decoder_segment_ids       1 1 1 1 2 2 2 2 0
    decoder_positions         0 1 2 3 0 1 2 3 0
    decoder_causal_attention  1 1 1 0 1 1 0 0 0      of a prefix LM: these see each other

An example has the same segment number on both sides; 0 is padding. `decoder_loss_weights` are an example's
`target_weights` where it has some. Field names are T5X's; unlike its rows, a decoder's begin no segment with a token 0
of their own, as models of the Hugging Face hub were trained: the first token of an example is given, not learnt.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Int, Int32, Int64

from flanjax.data.cache import Example
from flanjax.data.planning import plan_rows
from flanjax.errors import FlanjaxError

Batch = dict[str, np.ndarray]
Overlong = Literal["truncate", "drop", "error"]
Layout = Literal["encoder_decoder", "causal", "prefix_lm"]
RowLengths = tuple[int, ...]  # (encoder, decoder) tokens, or (positions,) of a decoder's rows


class PackingError(FlanjaxError):
    """Examples that do not fit their rows, or row lengths that fit nothing."""


def check_row_lengths(row_lengths: RowLengths) -> None:
    """Raises PackingError where a side could not hold a token and its EOS."""
    for name, length in zip(("inputs", "targets") if len(row_lengths) == 2 else ("tokens",), row_lengths, strict=True):
        if length < 2:
            raise PackingError(f"feature length {name}={length}: give 2 or more, room for a token and its EOS")


def check_overlong(policy: str) -> None:
    """Raises PackingError where the policy for over-long examples is none of those there are."""
    if policy not in get_args(Overlong):
        raise PackingError(f"overlong={policy!r}: give one of {', '.join(get_args(Overlong))}")


def row_sizes(lengths: Int[np.ndarray, "examples 2"], row_lengths: RowLengths) -> Int64[np.ndarray, "examples sides"]:
    """What examples of these lengths take of each side of a row: (6, 2) takes (6, 2) of two, 7 of one."""
    lengths = np.asarray(lengths, dtype=np.int64)
    return lengths if len(row_lengths) == 2 else np.maximum(lengths.sum(axis=1, keepdims=True) - 1, 0)


def is_overlong(lengths: Int[np.ndarray, "examples 2"], row_lengths: RowLengths) -> Bool[np.ndarray, " examples"]:
    """Which examples are longer than a row on any side."""
    return np.any(row_sizes(lengths, row_lengths) > np.asarray(row_lengths), axis=1)


def plan_window(
    lengths: Int[np.ndarray, "examples 2"], row_lengths: RowLengths, *, pack: bool = True
) -> list[list[int]]:
    """Puts every example of a window into one row, so that the rows are few.

    An example longer than a row counts as one that fills that side: it is truncated when the row is made. With rows of
    (10, 4), lengths (6, 1), (5, 1), (4, 1), (5, 3) give the rows [1, 3] and [0, 2].

    Args:
        lengths: tokens of inputs and targets.
        row_lengths: of a row's two sides, or of its only one.
        pack: whether examples share rows; if not, each has its own, in order.

    Returns:
        Rows as lists of indices into `lengths`, ascending within a row; a pure function of the arguments. Rows come
        roughly longest example first: shuffle them before training on them.
    """
    if not pack:
        return [[index] for index in range(len(lengths))]
    clipped = np.minimum(row_sizes(lengths, row_lengths), np.asarray(row_lengths))
    if len(row_lengths) == 2:
        return [sorted(row) for row in plan_rows(clipped, (row_lengths[0], row_lengths[1]))]
    # A second side of which every example takes one token of as many as there are is never full before the first.
    both = np.concatenate([clipped, np.ones_like(clipped)], axis=1)
    return [sorted(row) for row in plan_rows(both, (row_lengths[0], row_lengths[0]))]


def truncate(example: Example, row_lengths: RowLengths) -> Example:
    """Cuts an over-long example to what fits a row.

    Of an encoder-decoder's, what is over-long from the end of a side, which keeps its last token, EOS. A decoder's
    inputs and targets may each have half of a row and what the other leaves of its half. Inputs lose what follows their
    first token, BOS, so that what is nearest to the answer stays; targets lose their end, and with it EOS: an answer
    that was cut has not ended. In a row of (5,) positions, inputs [2, 5, 6, 7] and targets [8, 9, 1] become [2, 6, 7]
    and [8, 9, 1].
    """
    if not is_overlong(np.array([[len(example.inputs), len(example.targets)]]), row_lengths)[0]:
        return example
    if len(row_lengths) == 2:
        inputs, targets = (
            np.arange(len(side)) if len(side) <= limit else np.r_[: limit - 1, len(side) - 1]
            for side, limit in zip((example.inputs, example.targets), row_lengths, strict=True)
        )
    else:
        room, length = row_lengths[0] + 1, len(example.inputs)
        targets = np.arange(min(len(example.targets), max(room - length, room - room // 2)))
        left = min(room - len(targets), length)
        inputs = np.r_[: min(left, 1), length - max(left - 1, 0) : length]
    weights = example.target_weights
    return replace(
        example,
        inputs=example.inputs[inputs],
        targets=example.targets[targets],
        target_weights=None if weights is None else weights[targets],
    )


def pack_rows(rows: Sequence[Sequence[Example]], row_lengths: RowLengths, *, prefix_lm: bool = False) -> Batch:
    """The int32 arrays [rows, length] of a batch; a row without examples is padding.

    Args:
        rows: the examples of each row.
        row_lengths: of a row's two sides, or of its only one.
        prefix_lm: of a decoder's rows: mark what is inputs, whose tokens see each other.

    Raises:
        PackingError: the examples of a row do not fit it.
    """
    row_of = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    examples = [example for row in rows for example in row]
    if len(row_lengths) == 1:
        return _pack_causal(examples, row_of, len(rows), row_lengths[0], prefix_lm)
    inputs, targets = _joined(x.inputs for x in examples), _joined(x.targets for x in examples)
    encoder = _Side(_sizes(x.inputs for x in examples), row_of, len(rows), row_lengths[0])
    decoder = _Side(_sizes(x.targets for x in examples), row_of, len(rows), row_lengths[1])
    return {
        "encoder_input_tokens": encoder.scatter(inputs),
        "encoder_segment_ids": encoder.scatter(encoder.segments),
        "encoder_positions": encoder.scatter(encoder.positions),
        "decoder_input_tokens": decoder.scatter(decoder.shifted(targets)),
        "decoder_target_tokens": decoder.scatter(targets),
        "decoder_loss_weights": decoder.scatter(_joined(map(_target_weights, examples))),
        "decoder_segment_ids": decoder.scatter(decoder.segments),
        "decoder_positions": decoder.scatter(decoder.positions),
    }


def _pack_causal(examples: list[Example], row_of: np.ndarray, rows: int, length: int, prefix_lm: bool) -> Batch:
    tokens = _joined(side for x in examples for side in (x.inputs, x.targets))
    weights = _joined(side for x in examples for side in (np.zeros(len(x.inputs)), _target_weights(x)))
    sizes = np.array([len(x.inputs) + len(x.targets) for x in examples], dtype=np.int64)
    ends = np.cumsum(sizes)
    is_first, is_last = np.zeros((2, len(tokens)), dtype=bool)
    is_first[(ends - sizes)[sizes > 0]] = True
    is_last[ends[sizes > 0] - 1] = True
    side = _Side(np.maximum(sizes - 1, 0), row_of, rows, length)
    batch = {
        "decoder_input_tokens": side.scatter(tokens[~is_last]),
        "decoder_target_tokens": side.scatter(tokens[~is_first]),
        "decoder_loss_weights": side.scatter(weights[~is_first]),
        "decoder_segment_ids": side.scatter(side.segments),
        "decoder_positions": side.scatter(side.positions),
    }
    if prefix_lm:
        of_inputs = _joined(y for x in examples for y in (np.ones(len(x.inputs)), np.zeros(len(x.targets))))
        batch["decoder_causal_attention"] = side.scatter(of_inputs[~is_last])
    return batch


def _target_weights(example: Example) -> np.ndarray:
    return np.ones(len(example.targets)) if example.target_weights is None else example.target_weights


def _joined(sequences: Iterable[np.ndarray]) -> Int32[np.ndarray, " tokens"]:
    return np.concatenate([*sequences, np.empty(0, np.int32)]).astype(np.int32)


def _sizes(sequences: Iterable[np.ndarray]) -> Int64[np.ndarray, " sequences"]:
    return np.array([len(sequence) for sequence in sequences], dtype=np.int64)


class _Side:
    """One side of all rows, laid out end to end: a handful of array operations for a batch, not for an example."""

    def __init__(self, sizes: Int64[np.ndarray, " examples"], row_of: np.ndarray, rows: int, length: int):
        row_sizes = np.bincount(row_of, weights=sizes, minlength=rows).astype(np.int64)
        if len(row_sizes) and np.max(row_sizes) > length:
            row = int(np.argmax(row_sizes))
            raise PackingError(f"row {row} holds {row_sizes[row]} tokens, its length is {length}")
        starts, total = np.cumsum(sizes) - sizes, int(np.sum(sizes))
        first_of_row = np.searchsorted(row_of, np.arange(rows))
        self._shape = (rows, length)
        self.positions = np.arange(total) - np.repeat(starts, sizes)
        self.segments = np.repeat(np.arange(len(sizes)) - first_of_row[row_of] + 1, sizes)
        self._starts = starts[sizes > 0]
        row_start = np.cumsum(row_sizes) - row_sizes
        self._place = np.arange(total) + np.repeat(np.arange(rows) * length - row_start, row_sizes)

    def shifted(self, tokens: np.ndarray) -> np.ndarray:
        """The tokens, each one place later in its segment, which begins with 0."""
        tokens = np.roll(tokens, 1)
        tokens[self._starts] = 0
        return tokens

    def scatter(self, values: np.ndarray) -> np.ndarray:
        """The values in their places of an array [rows, length]."""
        result = np.zeros(self._shape, dtype=np.int32)
        result.reshape(-1)[self._place] = values
        return result
