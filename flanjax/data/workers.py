"""Where chunks of rows are tokenised: in this process at first, in several as soon as there are many.

`Workers.submit` takes a chunk and gives a future. What it gives is the same wherever it was made, so that the number of
processes changes the time alone. A worker finds its tasks by describing their modules again: nothing of a task travels.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from flanjax.data.chat import Chat
from flanjax.data.chat_templates import ChatTemplate
from flanjax.data.registry import register_modules, text_tasks
from flanjax.data.rendering import NumberedRow, Tokenized, tokenized
from flanjax.data.tasks import TextTask
from flanjax.data.vocabularies import Vocabulary
from flanjax.errors import FlanjaxError

_FIRST_CHUNKS = 8  # processes take about a second to start, in which one of them does as much


class WorkersError(FlanjaxError):
    """Worker processes that ended before their work did."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a process needs to tokenise any chunk: task modules with options, the vocabulary, seed, policy, template."""

    modules: Mapping[str, Mapping[str, Any]]
    vocabulary: str
    extra_ids: int
    seed: int
    on_bad_row: str
    chat_template: ChatTemplate | None = None


class Tokenizing:
    """A process's own side of the work: the tasks and the vocabulary of a setting."""

    def __init__(self, setting: Setting, vocabulary: Vocabulary | None = None) -> None:
        self._setting = setting
        self._vocabulary = vocabulary or Vocabulary.from_file(setting.vocabulary, setting.extra_ids)
        template = setting.chat_template
        self.chat = None if template is None else Chat(template, self._vocabulary)

    @classmethod
    def elsewhere(cls, setting: Setting) -> "Tokenizing":
        """In a process that has no tasks yet."""
        register_modules(setting.modules)
        return cls(setting)

    def task(self, name: str) -> TextTask:
        """A task of the setting."""
        return text_tasks[name]

    def __call__(self, task: str, split: str, rows: Sequence[NumberedRow]) -> Tokenized:
        """The examples of a chunk; see `tokenized`."""
        return tokenized(
            self.task(task),
            split,
            rows,
            seed=self._setting.seed,
            vocabulary=self._vocabulary,
            policy=self._setting.on_bad_row,
            chat=self.chat,
        )


class Workers:
    """Tokenises chunks; a context manager, at whose end no process is left.

    Args:
        setting: what they are given.
        vocabulary: the setting's, already opened.
        count: processes; 1 works in this one.
    """

    def __init__(self, setting: Setting, vocabulary: Vocabulary, count: int) -> None:
        self.count = count
        self.setting = setting
        self._here = Tokenizing(setting, vocabulary)
        self.chat = self._here.chat
        self._submitted = 0
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def submit(self, task: str, split: str, rows: Sequence[NumberedRow]) -> "Future[Tokenized]":
        """Begins a chunk; the future may hold the exception that the chunk ended in."""
        self._submitted += 1
        if self.count > 1 and self._submitted > _FIRST_CHUNKS:
            return self._processes().submit(_tokenize, task, split, rows)
        done: Future[Tokenized] = Future()
        try:
            done.set_result(self._here(task, split, rows))
        except Exception as error:
            done.set_exception(error)
        return done

    @staticmethod
    def result(future: "Future[Tokenized]") -> Tokenized:
        """What a chunk gave.

        Raises:
            WorkersError: a process was killed, or could not start.
        """
        try:
            return future.result()
        except BrokenProcessPool as error:
            raise WorkersError(
                f"a worker process ended before its work did ({error}): was it killed for want of memory? "
                "--workers=1 works in one process"
            ) from error

    def _processes(self) -> ProcessPoolExecutor:
        if self._pool is None:
            # Not forked: threads of this process, TensorFlow's among them, would be missing in the children.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.count, context, initializer=_start, initargs=(self.setting,))
        return self._pool


def available_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


_worker: Tokenizing | None = None


def _start(setting: Setting) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of them; the first process ends the others
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker = Tokenizing.elsewhere(setting)


def _end_with_parent() -> None:
    """A killed parent cannot end its children, and they would wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _tokenize(task: str, split: str, rows: Sequence[NumberedRow]) -> Tokenized:
    assert _worker is not None
    return _worker(task, split, rows)
