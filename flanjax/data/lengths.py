"""Row lengths from the length index: what FEATURE_LENGTHS = "auto" chooses.

Rows of habit, 1024 and 256 say, compute a decoder that is nearly empty where answers are short. Here candidate rows
are packed, on paper, with a sample of the mixture, and the ones that compute least for an example win.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Int64

from flanjax.data.packing import PackingError, RowLengths, plan_window, row_sizes

# Of an encoder-decoder's rows, and of a decoder's.
MAX_ROW_LENGTHS = (2048, 512)
MAX_POSITIONS = 2048
MAX_OVERLONG_SHARE = 0.001
# Candidates that cost so little more than the cheapest count as equal, and the smaller row is taken.
_TIE = 1.01
_DECODER_ROOM = (1.0, 1.15, 1.3, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0)


@dataclass(frozen=True, kw_only=True)
class RowCost:
    """What a row costs to compute, in encoder tokens without their attention scores.

    A row of E and D tokens costs E (1 + E/A) + D (decoder_token + (D + E)/A), a decoder's of L positions L (1 + L/A),
    where a token's own matrix products cost 1. The defaults are near all T5 1.1 sizes:
    a decoder token has a cross-attention and a row of logits more than an encoder token (1.1 times for XXL, 1.7 for
    small), and scores over A = 5,000 positions cost as much as all of a token's matrix products (3,600 for small).
    """

    decoder_token: float = 1.5
    attention_length: float = 5000.0

    def __call__(self, row_lengths: RowLengths) -> float:
        """The cost of one row."""
        first, *other = row_lengths
        cost = first * (1 + first / self.attention_length)
        for decoder in other:
            cost += decoder * (self.decoder_token + (decoder + first) / self.attention_length)
        return cost


@dataclass(frozen=True, kw_only=True)
class PackingFigures:
    """How a sample fills rows: the padding's share of each side, and examples in a row."""

    padding: tuple[float, ...]
    rows: int
    examples: int


def packing_figures(
    lengths: Int[np.ndarray, "examples 2"], row_lengths: RowLengths, *, window: int = 2048, pack: bool = True
) -> PackingFigures:
    """Packs consecutive windows on paper, over-long examples truncated."""
    windows = [lengths[start : start + window] for start in range(0, len(lengths), window)]
    rows = sum(len(plan_window(part, row_lengths, pack=pack)) for part in windows)
    padding = 1 - _kept_tokens(lengths, row_lengths) / (max(rows, 1) * np.asarray(row_lengths))
    return PackingFigures(padding=tuple(padding.tolist()), rows=rows, examples=len(lengths))


def _kept_tokens(lengths: Int[np.ndarray, "examples 2"], row_lengths: RowLengths) -> Int64[np.ndarray, " sides"]:
    """Tokens of all examples on each side, over-long ones cut."""
    return np.minimum(row_sizes(lengths, row_lengths), np.asarray(row_lengths)).sum(axis=0, dtype=np.int64)


def choose_feature_lengths(
    lengths: Int[np.ndarray, "examples 2"],
    *,
    cost: RowCost | None = None,
    limits: RowLengths = MAX_ROW_LENGTHS,
    window: int = 2048,
    pack: bool = True,
) -> RowLengths:
    """The row lengths that compute least for an example of a mixture: (encoder, decoder), or (positions,).

    Rows are long enough that at most one example in a thousand is over-long, unless that passes `limits`. Candidates
    are multiples of 64 (of 128 above 512, of 256 above 1,024) and, of a decoder side, of 8.

    Args:
        lengths: a sample of the mixture, at its rates, in its order.
        cost: the cost model of a row.
        limits: the longest rows to consider; of two sides, or of a decoder's one.
        window: examples packed together.
        pack: whether examples share rows at all.

    Raises:
        PackingError: the sample is empty.
    """
    if not len(lengths):
        raise PackingError("feature lengths cannot be chosen from no examples: give them as numbers")
    cost = cost or RowCost()
    share = 1 - MAX_OVERLONG_SHARE / len(limits)
    needed = np.quantile(row_sizes(lengths, limits), share, axis=0, method="higher")
    smallest = tuple(int(min(need, limit)) for need, limit in zip(needed, limits, strict=True))
    candidates = _candidates(lengths, smallest, limits)

    def least(row: RowLengths) -> float:
        # No plan has fewer rows than the tokens of the fuller side would fill.
        tokens = _kept_tokens(lengths, row)
        return cost(row) * max(1.0 if not pack else 0.0, float((tokens / np.asarray(row)).max()) / len(lengths))

    costs: dict[RowLengths, float] = {}
    for row in sorted(candidates, key=lambda row: (least(row), row)):
        if costs and least(row) > _TIE * min(costs.values()):
            break
        figures = packing_figures(lengths[: 2 * window], row, window=window, pack=pack)
        costs[row] = cost(row) * figures.rows / figures.examples
    return min(row for row in costs if costs[row] <= _TIE * min(costs.values()))


def _candidates(lengths: Int[np.ndarray, "examples 2"], smallest: RowLengths, limits: RowLengths) -> set[RowLengths]:
    """First lengths up to four times what is needed; decoder lengths from what an encoder row brings with it."""
    found: set[RowLengths] = set()
    first = _round_up(smallest[0], 64)
    while not found or first <= min(limits[0], max(4 * smallest[0], 512)):
        if len(limits) == 1:
            found.add((min(first, limits[0]),))
        else:
            means = np.minimum(lengths, np.asarray(smallest)).mean(axis=0)
            brought = [room * means[1] / means[0] * first for room in _DECODER_ROOM]
            found |= {(first, _round_up(int(min(max(tokens, smallest[1]), limits[1])), 8)) for tokens in brought}
        first += 64 if first < 512 else 128 if first < 1024 else 256
    return found


def _round_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple
