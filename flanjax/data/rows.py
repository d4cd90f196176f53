"""The stream of rows: windows of addresses, planned into rows, read by address.

Which examples row r of window w holds is a pure function of the order and the row lengths: nothing before it has to be
planned, read or remembered, and every host that asks gets the same answer.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
from jaxtyping import Int64

from flanjax.data.cache import CachedTask, Example
from flanjax.data.packing import Batch, Overlong, RowLengths, is_overlong, pack_rows, plan_window, truncate
from flanjax.data.placeholders import NO_PROMPT, Placeholders
from flanjax.data.shuffling import hash64, permute


class Order(Protocol):
    """Where the examples of a stream come from: `MixtureOrder`, or `InOrder`."""

    def addresses(self, start: int, stop: int) -> Int64[np.ndarray, "positions 2"]:
        """(task, example) of positions from start up to stop; fewer at the end, none after it."""


class InOrder:
    """Every example of every task once, task after task."""

    def __init__(self, sizes: Sequence[int]):
        self._starts = np.cumsum([0, *sizes], dtype=np.int64)

    def addresses(self, start: int, stop: int) -> Int64[np.ndarray, "positions 2"]:
        """(task, example) of these positions."""
        position = np.arange(start, max(start, min(stop, int(self._starts[-1]))), dtype=np.int64)
        task = np.searchsorted(self._starts[1:], position, side="right")
        return np.stack([task, position - self._starts[task]], axis=1)


class ExampleStore:
    """Lengths and examples of many tasks by address, each task asked once for all it has to give.

    Both are with the placeholders of a prompt in front of the inputs, where there is one; it is the text that is cut.
    """

    def __init__(self, tasks: Sequence[CachedTask], placeholders: Placeholders = NO_PROMPT):
        self._tasks = tasks
        self._placeholders = placeholders
        self._numbers = placeholders.numbers([task.name for task in tasks])

    def lengths(self, addresses: Int64[np.ndarray, "examples 2"]) -> Int64[np.ndarray, "examples 2"]:
        """Tokens of inputs and targets."""
        result = np.zeros((len(addresses), 2), dtype=np.int64)
        for task, positions in _by_task(addresses):
            result[positions] = self._tasks[task].lengths[addresses[positions, 1]]
        result[:, 0] += self._placeholders.length
        return result

    def read(self, addresses: Int64[np.ndarray, "examples 2"], row_lengths: RowLengths) -> list[Example]:
        """The examples, in this order, cut to what fits such rows."""
        found: dict[int, Example] = {}
        room = self._placeholders.text_room(row_lengths)
        for task, positions in _by_task(addresses):
            cut = [truncate(example, room) for example in self._tasks[task].read(addresses[positions, 1])]
            number = self._numbers[task]
            examples = [replace(x, inputs=self._placeholders.before(x.inputs, number)) for x in cut]
            found.update(zip(positions.tolist(), examples, strict=True))
        return [found[position] for position in range(len(addresses))]


def _by_task(addresses: Int64[np.ndarray, "examples 2"]) -> list[tuple[int, np.ndarray]]:
    order = np.argsort(addresses[:, 0], kind="stable")
    tasks, starts = np.unique(addresses[order, 0], return_index=True)
    return list(zip(tasks.tolist(), np.split(order, starts[1:]), strict=True)) if len(tasks) else []


class RowStream:
    """Rows of addresses, window by window.

    Args:
        store: where the addresses lead.
        order: the order of the examples.
        row_lengths: of a row's two sides, or of its only one.
        window: examples planned together.
        overlong: "drop" leaves over-long examples out; otherwise they are truncated when read.
        pack: whether examples share rows.
        prefix_lm: whether a decoder's rows mark what is inputs.
        seed: shuffles the rows of each window, which are planned longest first; None leaves them.
    """

    def __init__(
        self,
        store: ExampleStore,
        order: Order,
        row_lengths: RowLengths,
        *,
        window: int,
        overlong: Overlong,
        pack: bool,
        prefix_lm: bool,
        seed: int | None,
    ):
        self.row_lengths = row_lengths
        self._store = store
        self._order = order
        self._window = window
        self._overlong = overlong
        self._pack = pack
        self._prefix_lm = prefix_lm
        self._seed = seed

    def rows(self, window: int) -> list[Int64[np.ndarray, "examples 2"]] | None:
        """The rows of a window as addresses of their examples; None past the last window."""
        addresses = self._order.addresses(window * self._window, (window + 1) * self._window)
        if not len(addresses):
            return None
        lengths = self._store.lengths(addresses)
        if self._overlong == "drop":
            kept = ~is_overlong(lengths, self.row_lengths)
            addresses, lengths = addresses[kept], lengths[kept]
        planned = [addresses[row] for row in plan_window(lengths, self.row_lengths, pack=self._pack)]
        if self._seed is None or not self._pack or not planned:
            return planned
        key = hash64(self._seed % (1 << 64), 2, window)
        return [planned[row] for row in permute(np.arange(len(planned)), len(planned), key)]

    def read(self, rows: Sequence[Int64[np.ndarray, "examples 2"]]) -> list[list[Example]]:
        """The examples of rows, cut to the row's lengths."""
        if not rows:
            return []
        examples = self._store.read(np.concatenate(rows), self.row_lengths)
        ends = np.cumsum([len(row) for row in rows]).tolist()
        return [examples[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]

    def batch(self, rows: Sequence[Sequence[Example]]) -> Batch:
        """The arrays of these rows."""
        return pack_rows(rows, self.row_lengths, prefix_lm=self._prefix_lm)
