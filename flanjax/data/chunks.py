"""The rows of splits, read ahead and tokenised in order: what lies between the readers and the writer of a cache."""

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from flanjax.data.cache import EncodedExample
from flanjax.data.chat import Chat
from flanjax.data.rendering import CHUNK_ROWS, NumberedRow, Tokenized, rows_of
from flanjax.data.sources import BadRow, BadRows, bad_row_policy
from flanjax.data.tasks import TextTask
from flanjax.data.workers import Workers
from flanjax.errors import FlanjaxError

Key = tuple[str, str]  # a task and one of its splits


class LeftOut:
    """What of a split became no example."""

    def __init__(self) -> None:
        self.counters = {"dropped_empty_targets": 0, "skipped_bad_rows": 0}
        self.first_bad_row: str | None = None

    def add_bad_rows(self, bad_rows: BadRows) -> None:
        """Counts the rows that a reader or a chunk skipped."""
        self.counters["skipped_bad_rows"] += bad_rows.skipped
        self.first_bad_row = self.first_bad_row or next(iter(bad_rows.first), None)


@dataclass(frozen=True)
class End:
    """The rows of a split have been read, or reading them failed."""

    bad_rows: BadRows
    error: FlanjaxError | None


def read_chunks(
    task: TextTask, split: str, *, seed: int, on_bad_row: str, chat: Chat | None = None
) -> Iterator[list[NumberedRow] | End]:
    """The rows of a split by the chunk, and then its end; an error of its reader is in that."""
    bad_rows, error = BadRows(policy=on_bad_row), None
    try:
        rows = rows_of(task, split, seed=seed, chat=chat)
        while True:
            with bad_row_policy(bad_rows):
                chunk = list(itertools.islice(rows, CHUNK_ROWS))
            if not chunk:
                break
            yield chunk
    except FlanjaxError as failure:
        error = failure
    except Exception as failure:
        error = BadRow(f"{type(failure).__name__}: {failure}")
    yield End(bad_rows, error)


class Chunks:
    """Reads the rows of splits ahead and has them tokenised; gives the examples of one split after the other.

    So many chunks are in work at a time, over the bounds of splits, that the workers have enough to do and memory stays
    flat. A split that fails is read no further, and the next one goes on.
    """

    def __init__(self, splits: Sequence[tuple[TextTask, str]], workers: Workers, *, seed: int, on_bad_row: str) -> None:
        self._workers = workers
        self._jobs = self._read(splits, seed, on_bad_row)
        self._ahead = 4 * workers.count if workers.count > 1 else 1
        self._waiting: deque[tuple[Key, Future[Tokenized] | End]] = deque()
        self._failed: set[Key] = set()

    def examples(self, key: Key, left_out: LeftOut) -> Iterator[EncodedExample]:
        """The examples of a split; splits are asked for in order.

        Raises:
            FlanjaxError: its rows cannot be read, or one is malformed; the message has the place.
        """
        try:
            while True:
                of, outcome = self._next()
                if of != key:
                    continue  # left by a split that failed
                if isinstance(outcome, End):
                    left_out.add_bad_rows(outcome.bad_rows)
                    if outcome.error is not None:
                        raise outcome.error
                    return
                made = self._workers.result(outcome)
                left_out.counters["dropped_empty_targets"] += made.dropped_empty_targets
                left_out.add_bad_rows(made.bad_rows)
                yield from made.examples
        except BaseException:
            self._failed.add(key)
            raise

    def _next(self) -> "tuple[Key, Future[Tokenized] | End]":
        while len(self._waiting) < self._ahead and (job := next(self._jobs, None)) is not None:
            self._waiting.append(job)
        return self._waiting.popleft()

    def _read(
        self, splits: Sequence[tuple[TextTask, str]], seed: int, on_bad_row: str
    ) -> "Iterator[tuple[Key, Future[Tokenized] | End]]":
        for task, split in splits:
            key = (task.name, split)
            for chunk in read_chunks(task, split, seed=seed, on_bad_row=on_bad_row, chat=self._workers.chat):
                if key in self._failed:
                    break
                yield key, chunk if isinstance(chunk, End) else self._workers.submit(task.name, split, chunk)
