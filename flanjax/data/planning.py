"""Which examples of a window share a row: two-sided bin packing, from lengths alone.

Two classic heuristics are run and the plan with fewer rows is kept. Best-fit-decreasing puts each example, longest
first, into the fullest row that still has room. Row completion opens a row with the longest example left and looks for
the examples, at the end two that fit exactly, that fill it; it wins where examples are long against the row, and loses
where both sides are tight. Both walk over lengths as bits of an integer: shifting it finds the next length that occurs.
"""

from bisect import bisect_right

import numpy as np
from jaxtyping import Int

# How many tokens a pair may leave free before one example is taken instead; more finds hardly more.
_MAX_SLACK = 8
# Where the first plan needs so few rows more than its tokens would fill, the second is not tried.
_GOOD_ENOUGH = 1.01


def plan_rows(lengths: Int[np.ndarray, "examples 2"], row_lengths: tuple[int, int]) -> list[list[int]]:
    """Rows as lists of indices, every example in one of them; no length may exceed its row's."""
    lengths, rows = np.maximum(lengths, 1).astype(np.int64), np.asarray(row_lengths)
    parts = lengths / rows
    # The side that needs more rows decides how well a row is filled; the other has to be kept to.
    main = int(np.argmax(parts.sum(axis=0)))
    order = np.argsort(-parts.max(axis=1), kind="stable").tolist()
    sides = (lengths[:, main].tolist(), lengths[:, 1 - main].tolist(), int(rows[main]), int(rows[1 - main]))
    completed = _complete_rows(order, *sides)
    if len(completed) <= _GOOD_ENOUGH * float(parts.sum(axis=0)[main]) + 1:
        return completed
    return min(completed, _best_fit_decreasing(order, *sides), key=len)


def _best_fit_decreasing(
    order: list[int], main: list[int], other: list[int], main_row: int, other_row: int
) -> list[list[int]]:
    rows: list[list[int]] = []
    other_left: list[int] = []
    open_rows: list[list[int]] = [[] for _ in range(main_row + 1)]
    occupied = 0
    for index in order:
        length, need = main[index], other[index]
        space, row = length, -1
        spaces = occupied >> length
        while spaces and row < 0:
            step = (spaces & -spaces).bit_length() - 1
            space += step
            candidates = open_rows[space]
            row = next((candidate for candidate in reversed(candidates) if other_left[candidate] >= need), -1)
            if row < 0:
                spaces >>= step + 1
                space += 1
        if row < 0:
            row, space = len(rows), main_row
            rows.append([])
            other_left.append(other_row)
        else:
            candidates.remove(row)
            if not candidates:
                occupied ^= 1 << space
        rows[row].append(index)
        other_left[row] -= need
        if space > length and other_left[row]:
            open_rows[space - length].append(row)
            occupied |= 1 << (space - length)
    return rows


def _complete_rows(
    order: list[int], main: list[int], other: list[int], main_row: int, other_row: int
) -> list[list[int]]:
    stock = _Stock(main, other, main_row)
    rows: list[list[int]] = []
    for first in order:
        if stock.taken[first]:
            continue
        stock.take(main[first], (other[first], first))
        row, left, other_left = [first], main_row - main[first], other_row - other[first]
        while left and other_left:
            chosen = stock.filling(left, other_left)
            if not chosen:
                break
            for length, (need, index) in chosen:
                stock.take(length, (need, index))
                row.append(index)
                left -= length
                other_left -= need
        rows.append(row)
    return rows


class _Stock:
    """The examples not yet in a row, by the length of their main side.

    Bit n of `_present` says that an example of length n is there, bit row - n of `_mirror` the same: shifting one
    against the other finds two lengths of a given sum in one operation.
    """

    def __init__(self, main: list[int], other: list[int], main_row: int):
        self.taken = [False] * len(main)
        self._row = main_row
        self._by_length: list[list[tuple[int, int]]] = [[] for _ in range(main_row + 1)]
        for item in sorted(zip(other, range(len(other)), strict=True)):
            self._by_length[main[item[1]]].append(item)
        self._present = sum(1 << length for length in set(main))
        self._mirror = sum(1 << (main_row - length) for length in set(main))

    def take(self, length: int, item: tuple[int, int]) -> None:
        """Removes the example `item` = (its other length, its index)."""
        items = self._by_length[length]
        del items[bisect_right(items, item) - 1]
        self.taken[item[1]] = True
        if not items:
            self._present ^= 1 << length
            self._mirror ^= 1 << (self._row - length)

    def filling(self, left: int, other_left: int) -> list[tuple[int, tuple[int, int]]]:
        """What to put next into a row with so much space: (length, item), one or two of them, or none that fits."""
        lengths = self._present & ((2 << left) - 1)
        while lengths:
            longest = lengths.bit_length() - 1
            if self._by_length[longest][0][0] <= other_left:
                break
            lengths ^= 1 << longest
        if not lengths:
            return []
        # While even the longest leaves more than half, two cannot fill the row.
        if 2 * longest >= left > longest:
            for total in range(left, max(longest, left - _MAX_SLACK), -1):
                if pair := self._pair(total, other_left):
                    return pair
        return [(longest, self._largest(longest, other_left))]

    def _pair(self, total: int, other_left: int) -> list[tuple[int, tuple[int, int]]]:
        """Two examples of this sum, the most equal first."""
        shorter = self._present & (self._mirror >> (self._row - total)) & ((2 << (total // 2)) - 1)
        while shorter:
            short = shorter.bit_length() - 1
            items, partners = self._by_length[short], self._by_length[total - short]
            if items is partners:
                if len(items) > 1 and items[0][0] + items[1][0] <= other_left:
                    return [(short, items[0]), (short, items[1])]
            elif items[0][0] + partners[0][0] <= other_left:
                long_item = self._largest(total - short, other_left - items[0][0])
                return [(total - short, long_item), (short, self._largest(short, other_left - long_item[0]))]
            shorter ^= 1 << short
        return []

    def _largest(self, length: int, other_left: int) -> tuple[int, int]:
        # The largest that fits: while there is room for a large one, it is best out of the way.
        items = self._by_length[length]
        return items[bisect_right(items, (other_left, len(self.taken))) - 1]
