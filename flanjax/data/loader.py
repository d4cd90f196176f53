"""Batches for training and evaluation, from the cache, without TensorFlow.

    order of the mixture -> windows of addresses -> rows planned from lengths -> this host's rows read -> a batch

The global stream of rows does not depend on the number of hosts; a batch is the next `batch_rows` rows of it, and a
host reads its contiguous part of them. A position is {"window", "row"}: going there plans one window, and replays none.
"""

import json
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import grain

from flanjax.data.cache import FEATURES, CachedMixture, CachedTask, Example
from flanjax.data.lengths import MAX_POSITIONS, MAX_ROW_LENGTHS, choose_feature_lengths, packing_figures
from flanjax.data.mixing import MixtureOrder, Rates, resolve_rates
from flanjax.data.packing import Batch, Layout, Overlong, RowLengths, check_overlong, check_row_lengths, is_overlong
from flanjax.data.placeholders import NO_PROMPT, Placeholders
from flanjax.data.report import LoaderReport, survey
from flanjax.data.rows import ExampleStore, InOrder, RowStream
from flanjax.data.selection import Select, check_selection, select
from flanjax.errors import FlanjaxError

# Row lengths are chosen and padding is reported from so many examples of the mixture.
_SAMPLE = 8192


class LoaderError(FlanjaxError):
    """A loader asked for what cannot be: hosts that do not divide the batch, a state of other data, too few rows."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What a run trains on.

    Args:
        mixture: name of a mixture in the cache.
        cache_dir: the cache.
        feature_lengths: tokens of a row, {"inputs": E, "targets": D}, or {"tokens": L} of a decoder's, or "auto" to
            choose them from the length index.
        layout: whose rows: "encoder_decoder", "causal", or "prefix_lm", a decoder that sees all of its inputs; None
            for what the run's model has, an encoder-decoder's where there is no model.
        batch_rows: rows of a batch over all hosts.
        seed: chooses the order of the examples.
        rates: "mixture", a mapping of tasks to numbers, or `mixing.Proportional`.
        epochs: passes over as many examples as the mixture has, or None to go on for ever.
        window: examples planned together.
        overlong: what becomes of examples longer than a row: "truncate" (see `packing.truncate`), "drop" or "error".
        pack: whether examples share rows.
        examples_per_task: train on so many examples of each task, or on this part of them where it is below 1; None
            takes all. It comes before the rates: a task counts as one that has no others, and an epoch is shorter.
        select: which ones, "random" (of `seed` and the task's name) or "longest_targets".

    Raises:
        LoaderError, PackingError, SelectionError: a value makes no sense.
    """

    mixture: str
    cache_dir: str
    feature_lengths: Literal["auto"] | Mapping[str, int] = "auto"
    layout: Layout | None = None
    batch_rows: int
    seed: int = 0
    rates: Rates = "mixture"
    epochs: int | None = None
    window: int = 2048
    overlong: Overlong = "truncate"
    pack: bool = True
    examples_per_task: int | float | None = None
    select: Select = "random"

    def __post_init__(self) -> None:
        if self.batch_rows < 1 or self.window < 1:
            raise LoaderError(f"batch_rows={self.batch_rows}, window={self.window}: both must be 1 or more")
        check_overlong(self.overlong)
        check_selection(self.examples_per_task, self.select)
        if self.layout is not None and self.layout not in get_args(Layout):
            raise LoaderError(f"layout={self.layout!r}: give one of {', '.join(get_args(Layout))}")
        if self.feature_lengths != "auto":
            check_row_lengths(self._given_lengths())

    def _given_lengths(self) -> RowLengths:
        """Those that were given as numbers, of the rows of the layout."""
        lengths = self.feature_lengths
        wanted = {"encoder_decoder": (FEATURES,), None: (FEATURES, ("tokens",))}.get(self.layout, (("tokens",),))
        for names in wanted:
            if isinstance(lengths, Mapping) and set(lengths) == set(names):
                return tuple(lengths[name] for name in names)
        shown = " or ".join(f"{{{', '.join(f'{name!r}: N' for name in names)}}}" for names in wanted)
        raise LoaderError(f"feature_lengths={lengths!r}: give 'auto' or {shown}")


class PackedBatches(Iterator[Batch]):
    """The training batches, of each the part of one host, made ahead on a thread.

    Attributes:
        mixture: the opened mixture, with all examples; its vocabulary is `mixture.vocabulary`.
        row_lengths: (encoder, decoder) tokens of a row, or (positions,) of a decoder's; given or chosen.
        report: the figures of the start-up lines.

    Args:
        config: what to train on.
        split: the split of every task.
        rows: the rows of a batch that this host makes, ascending; None for all.
        prefetch: batches made ahead; 0 makes them when asked.
        placeholders: positions in front of every example's inputs, for a learnt prompt.
        longest: positions that a decoder has; no longer rows are chosen for it.

    Raises:
        FlanjaxError: the cache, the rates, the lengths or the hosts do not allow it, or a task has no prompt; each says
            what to do.
    """

    def __init__(
        self,
        config: DataConfig,
        *,
        split: str = "train",
        rows: Sequence[int] | None = None,
        prefetch: int = 2,
        placeholders: Placeholders = NO_PROMPT,
        longest: int | None = None,
    ):
        self.mixture = CachedMixture.open(config.cache_dir, config.mixture, split)
        tasks = [select(task, config.examples_per_task, config.select, seed=config.seed) for task in self.mixture.tasks]
        sizes = [len(task) for task in tasks]
        rates = resolve_rates(config.rates, [task.name for task in tasks], sizes, self.mixture.rates)
        order = MixtureOrder(sizes, rates, config.seed, config.epochs)
        store = ExampleStore(tasks, placeholders)
        self.row_lengths = _row_lengths(config, store, sizes, rates, longest)
        self.report = _report(config, tasks, order, store, self.row_lengths, placeholders)
        stream = RowStream(
            store,
            order,
            self.row_lengths,
            window=config.window,
            overlong=config.overlong,
            pack=config.pack,
            prefix_lm=config.layout == "prefix_lm",
            seed=config.seed,
        )
        self._rows = _BatchDataset(stream, config.batch_rows, rows, pad_last=False)
        # Closed at the interpreter's exit at the latest: a thread of Grain's that outlives its modules complains.
        self._open = [_prefetched(self._rows, prefetch)]
        self._finish = weakref.finalize(self, _close, self._open)

    def __next__(self) -> Batch:
        """The next batch: int32 arrays [rows of this host, length].

        Raises:
            StopIteration: the epochs are over; rows that fill no batch are left out, see `dropped_rows`.
            CacheError: a shard is damaged.
            LoaderError: the loader is closed, or the data does not fill one batch.
        """
        return next(self._batches)

    @property
    def _batches(self) -> grain.DatasetIterator[Batch]:
        if not self._open:
            raise LoaderError("this loader is closed: open another one")
        return self._open[0]

    @property
    def dropped_rows(self) -> int:
        """Rows left out because the data ended before they filled a batch; 0 until then."""
        return self._rows.dropped_rows

    def get_state(self) -> dict[str, int]:
        """Where the next batch begins: {"window", "row"}, for JSON."""
        return dict(self._batches.get_state())

    def set_state(self, state: Mapping[str, int]) -> None:
        """Goes to a position in the stream that `get_state` gave, here or on any other number of hosts.

        Raises:
            LoaderError: it is no position of this stream.
        """
        self._batches.set_state(dict(state))

    def close(self) -> None:
        """Ends the thread; no batch can be taken afterwards."""
        self._finish()


def eval_batches(
    tasks: Sequence[CachedTask],
    row_lengths: RowLengths,
    batch_rows: int,
    *,
    rows: Sequence[int] | None = None,
    window: int = 2048,
    overlong: Overlong = "truncate",
    pack: bool = True,
    prefix_lm: bool = False,
    max_examples_per_task: int | None = None,
    placeholders: Placeholders = NO_PROMPT,
) -> Iterator[Batch]:
    """Every example of the tasks once, in order; the last batch is filled up with empty rows.

    All hosts get the same number of batches.

    Args:
        tasks: opened splits, `CachedMixture.open(...).tasks` say.
        row_lengths: (encoder, decoder) tokens of a row, or (positions,) of a decoder's.
        batch_rows: rows of a batch over all hosts.
        rows: the rows of a batch that this host makes, ascending; None for all.
        window: examples planned together.
        overlong: "truncate" or "drop".
        pack: whether examples share rows.
        prefix_lm: whether a decoder's rows mark what is inputs.
        max_examples_per_task: take no more than the first so many of each task.
        placeholders: as `PackedBatches`.

    Raises:
        FlanjaxError: as `PackedBatches`.
    """
    check_overlong(overlong)
    check_row_lengths(row_lengths)
    placeholders.text_room(row_lengths)
    order = InOrder([min(len(task), max_examples_per_task or len(task)) for task in tasks])
    store = ExampleStore(tasks, placeholders)
    stream = RowStream(
        store, order, row_lengths, window=window, overlong=overlong, pack=pack, prefix_lm=prefix_lm, seed=None
    )
    return _finite(_prefetched(_BatchDataset(stream, batch_rows, rows, pad_last=True), 2))


def _close(open_batches: list[grain.DatasetIterator[Batch]]) -> None:
    while open_batches:
        open_batches.pop().close()


def _finite(batches: grain.DatasetIterator[Batch]) -> Iterator[Batch]:
    try:
        yield from batches
    finally:
        batches.close()


def _prefetched(dataset: "_BatchDataset", batches: int) -> grain.DatasetIterator[Batch]:
    return iter(grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=batches))


def _row_lengths(
    config: DataConfig, store: ExampleStore, sizes: Sequence[int], rates: Sequence[float], longest: int | None
) -> RowLengths:
    if config.feature_lengths != "auto":
        return config._given_lengths()
    # A fixed seed: another seed of the run must not compile other shapes.
    sample = MixtureOrder(sizes, rates, seed=0, epochs=config.epochs).addresses(0, _SAMPLE)
    two = config.layout in (None, "encoder_decoder")
    limits = MAX_ROW_LENGTHS if two else (min(longest or MAX_POSITIONS, MAX_POSITIONS),)
    return choose_feature_lengths(store.lengths(sample), limits=limits, window=config.window, pack=config.pack)


def _report(
    config: DataConfig,
    tasks: Sequence[CachedTask],
    order: MixtureOrder,
    store: ExampleStore,
    row_lengths: RowLengths,
    placeholders: Placeholders,
) -> LoaderReport:
    text_room = placeholders.text_room(row_lengths)
    lengths = store.lengths(order.addresses(0, _SAMPLE))
    kept = lengths[~is_overlong(lengths, row_lengths)] if config.overlong == "drop" else lengths
    packing = packing_figures(kept, row_lengths, window=config.window, pack=config.pack)
    return LoaderReport(
        mixture=config.mixture,
        row_lengths=row_lengths,
        prompt_length=placeholders.length,
        chosen=config.feature_lengths == "auto",
        overlong=config.overlong,
        packing=packing,
        batch_rows=config.batch_rows,
        rows=None if order.length is None else packing.rows * order.length // len(lengths),
        tasks=survey(tasks, order.shares, text_room, config.overlong),
    )


class _BatchDataset(grain.IterDataset[Batch]):
    """Batches of a row stream as a Grain dataset, for Grain to prefetch."""

    def __init__(self, stream: RowStream, batch_rows: int, rows: Sequence[int] | None, *, pad_last: bool):
        super().__init__()
        mine = set(range(batch_rows) if rows is None else rows)
        if not mine <= set(range(batch_rows)):
            raise LoaderError(f"rows {sorted(mine)} are not all among the {batch_rows} of a batch")
        self.stream = stream
        self.batch_rows = batch_rows
        self.mine = mine
        self.pad_last = pad_last
        self.dropped_rows = 0

    def __iter__(self) -> "_BatchIterator":
        return _BatchIterator(self)


class _BatchIterator(grain.DatasetIterator[Batch]):
    """The position in the stream, and the rows of the window that were read but not yet given out."""

    def __init__(self, dataset: _BatchDataset):
        super().__init__()
        self._dataset = dataset
        self._seek(0, 0)

    def _seek(self, window: int, row: int) -> None:
        self._next = (window, row)
        self._read_to = (window, row)
        # Rows not yet given out: the position after each, and its examples where it is this host's.
        self._waiting: deque[tuple[tuple[int, int], list[Example] | None]] = deque()

    def __next__(self) -> Batch:
        dataset = self._dataset
        while len(self._waiting) < dataset.batch_rows:
            if not self._read_window():
                self._end_of_stream()
                break
        batch = [self._waiting.popleft() for _ in range(dataset.batch_rows)]
        self._next = batch[-1][0]
        return dataset.stream.batch([examples for _, examples in batch if examples is not None])

    def _read_window(self) -> bool:
        """Plans the next window and reads this host's rows of it, all at once; False past the last window."""
        window, first = self._read_to
        rows = self._dataset.stream.rows(window)
        if rows is None:
            return False
        if first > max(0, len(rows) - 1):
            raise LoaderError(f"window {window} has {len(rows)} rows, none at {first}: this position is of other data")
        place = {row: (len(self._waiting) + row - first) % self._dataset.batch_rows for row in range(first, len(rows))}
        mine = [row for row in place if place[row] in self._dataset.mine]
        examples = dict(zip(mine, self._dataset.stream.read([rows[row] for row in mine]), strict=True))
        for row in place:
            after = (window, row + 1) if row + 1 < len(rows) else (window + 1, 0)
            self._waiting.append((after, examples.get(row)))
        self._read_to = (window + 1, 0)
        return True

    def _end_of_stream(self) -> None:
        dataset, left = self._dataset, len(self._waiting)
        if left and dataset.pad_last:
            end = self._waiting[-1][0]
            empty = range(left, dataset.batch_rows)
            self._waiting.extend((end, [] if row in dataset.mine else None) for row in empty)
            return
        if left and self._next == (0, 0):
            raise LoaderError(
                f"the data has {left} rows in all, fewer than one batch of {dataset.batch_rows}: "
                f"take a smaller batch_rows, or more epochs"
            )
        dataset.dropped_rows = left
        raise StopIteration

    def get_state(self) -> dict[str, Any]:
        return {"window": self._next[0], "row": self._next[1]}

    def set_state(self, state: dict[str, Any]) -> None:
        try:
            window, row = int(state["window"]), int(state["row"])
        except (KeyError, TypeError, ValueError) as error:
            raise LoaderError(f"{json.dumps(state, default=str)} is no position of a stream of rows") from error
        if window < 0 or row < 0:
            raise LoaderError(f"window {window}, row {row} is no position of a stream of rows")
        self._seek(window, row)

    def __str__(self) -> str:
        return "PackedBatches"
