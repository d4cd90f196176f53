"""Materialising: every task of a mixture is tokenised once and written to the cache.

Text tasks are read here and tokenised in worker processes, a chunk at a time and in order, so that memory stays flat
and the bytes are the same for any number of processes. Tasks written in seqio are run in this process; TensorFlow is
loaded for them alone, and ends here.

    report = materialize(
        mixture="demo",
        cache_dir="runs/cache",
        vocabulary=VocabularySource(train_size=1000),
        tasks={"flanjax.tasks.demo": {}},
    )

A split is written again only when its fingerprint changed: the task's code and options, its data files, the vocabulary
or the seed. The same seed gives the same bytes in every process.
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flanjax.data.any_task import split_fingerprint
from flanjax.data.cache import (
    FEATURES,
    CacheError,
    EncodedExample,
    Example,
    Manifest,
    read_manifest,
    task_folder,
)
from flanjax.data.cache_writer import up_to_date, write_mixture, write_split
from flanjax.data.chat import Chat
from flanjax.data.chat_templates import ChatTemplate, find_template
from flanjax.data.chunks import Chunks, Key, LeftOut
from flanjax.data.mixture_vocabulary import resolve_vocabulary
from flanjax.data.provenance import Request, code_identities, record
from flanjax.data.registry import AnyTask, Found, find_mixture, register_modules
from flanjax.data.source_files import SourceFiles
from flanjax.data.sources import bad_row_policy, check_policy
from flanjax.data.tasks import TextTask
from flanjax.data.vocabularies import Vocabulary, VocabularySource
from flanjax.data.workers import Setting, Workers, available_cores
from flanjax.errors import FlanjaxError
from flanjax.files import require_path

if TYPE_CHECKING:
    import seqio


_SHOWN = 20  # failures that a message tells
Progress = Callable[[str, str, int, int | None], None]


class MaterializeError(FlanjaxError):
    """A mixture that could not be written as a whole."""


@dataclass(frozen=True, kw_only=True)
class SplitReport:
    """One split of one task: what the cache holds of it, and whether this call wrote it.

    `tokens` counts inputs and targets, the end-of-sequence ids included; `first_bad_row` says where the first row lies
    that this call skipped, and why; `seconds` is the time this call spent on it.
    """

    task: str
    split: str
    fingerprint: str
    examples: int
    tokens: dict[str, int]
    written: bool
    dropped_empty_targets: int
    skipped_bad_rows: int
    first_bad_row: str | None
    seconds: float


@dataclass(frozen=True, kw_only=True)
class MaterializeReport:
    """What a call of `materialize` did; `vocabulary` is the one of the whole mixture, as it lies in the cache."""

    mixture: str
    vocabulary: Vocabulary
    splits: tuple[SplitReport, ...]
    notes: tuple[str, ...]
    seconds: float


def materialize(
    *,
    mixture: str,
    cache_dir: str | os.PathLike[str],
    vocabulary: VocabularySource,
    tasks: Mapping[str, Mapping[str, Any]],
    seed: int = 0,
    splits: Sequence[str] = ("train", "validation"),
    on_bad_row: str = "error",
    chat_template: str | None = None,
    workers: int | None = None,
    beam: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> MaterializeReport:
    """Writes every task of a mixture to the cache, and then the mixture's file.

    Args:
        mixture: a registered mixture, or a task as a mixture of one.
        cache_dir: the cache; it is made.
        vocabulary: a model file, or the size of one to train on the mixture's training text; with neither, the
            tasks' own.
        tasks: task modules and the options of their `register`.
        seed: of everything that tasks draw.
        splits: a task without one of them is left out there, with a note.
        on_bad_row: "error" stops the task at a malformed row, "skip" counts it.
        chat_template: the text of every example is a chat's, made with this template: see
            `flanjax.data.chat_templates.find_template`; None takes inputs and targets as they are.
        workers: processes that tokenise; None: as many as there are cores to use.
        beam: options of an Apache Beam pipeline that does it instead (`flanjax.data.beam`).
        progress: called with (task, split, examples done, examples in all if known).

    Raises:
        MaterializeError: at least one task failed; the splits that did not are in the cache.
        CacheError: the disk is full or refuses.
        FlanjaxError: the mixture, a task module or the vocabulary is not there.
    """
    started = time.monotonic()
    require_path(cache_dir)
    check_policy(on_bad_row)
    # Stamped before anything is read: what changes meanwhile is noticed the next time.
    request = Request(tasks=tasks, vocabulary=vocabulary, seed=seed, splits=splits, chat_template=chat_template)
    code, files = code_identities(tasks), SourceFiles(tasks, ignored=[cache_dir])
    if "seqio" in code:
        _load_tensorflow()
    register_modules(tasks)
    found = find_mixture(mixture)
    wanted = [(task, split) for task in found.tasks for split in splits if split in task.splits]
    if not wanted:
        raise MaterializeError(f"no task of {mixture!r} has a split {' or '.join(splits)}: {_splits_there(found)}")
    cache = Path(cache_dir)
    resolved = resolve_vocabulary(cache, found, vocabulary, seed=seed, on_bad_row=on_bad_row, files=files)
    template = find_template(chat_template, resolved)
    chat = None if template is None else Chat(template, resolved)
    chat_notes = [] if chat is None else chat.check()
    writer = _Writer(cache, resolved, chat, seed=seed, on_bad_row=on_bad_row, files=files, progress=progress)
    setting = Setting(
        modules=tasks,
        vocabulary=str(resolved.path),
        extra_ids=resolved.extra_ids,
        seed=seed,
        on_bad_row=on_bad_row,
        chat_template=template,
    )
    # Tasks that were registered here without a module are known to no other process.
    count = (workers or available_cores()) if tasks else 1
    with Workers(setting, resolved, count) as pool:
        reports, failures = writer.write(wanted, pool, beam)
    if failures:
        more = [f"... and {len(failures) - _SHOWN} more"] if len(failures) > _SHOWN else []
        raise MaterializeError(
            f"{len(failures)} of {len(wanted)} task splits failed, the others are in {cache}; "
            "the next call does only what is missing.\n" + "\n".join([*failures[:_SHOWN], *more])
        )
    made_from = record(request, code, files.roots())
    notes = _write_mixture(cache, found, resolved, reports, seed=seed, made_from=made_from, chat_template=template)
    notes += chat_notes
    notes += _absent_splits(found, splits)
    seconds = time.monotonic() - started
    return MaterializeReport(
        mixture=mixture, vocabulary=resolved, splits=tuple(reports), notes=tuple(notes), seconds=seconds
    )


class _Writer:
    """Writes splits under one vocabulary, template, seed and policy; `files` learns what they are made from."""

    def __init__(
        self,
        cache: Path,
        vocabulary: Vocabulary,
        chat: Chat | None,
        *,
        seed: int,
        on_bad_row: str,
        files: SourceFiles,
        progress: Progress | None,
    ) -> None:
        self.cache = cache
        self.vocabulary = vocabulary
        self.chat = chat
        self.seed = seed
        self.on_bad_row = on_bad_row
        self.files = files
        self.progress = progress or (lambda *_: None)

    def write(
        self, wanted: Sequence[tuple[AnyTask, str]], workers: Workers, beam: Sequence[str] | None
    ) -> tuple[list[SplitReport], list[str]]:
        """Writes the splits that the cache does not have; returns a report of each, and what failed."""
        how: dict[str, Any] = {"seed": self.seed, "vocabulary_id": self.vocabulary.identity, "files": self.files}
        how["chat"] = "" if self.chat is None else self.chat.template.identity
        prints = {(task.name, split): split_fingerprint(task, split, **how) for task, split in wanted}
        cached = {key: self._cached(*key, print_) for key, print_ in prints.items()}
        texts = [(task, split) for task, split in wanted if isinstance(task, TextTask) and not cached[task.name, split]]
        on_beam = {} if beam is None else self._write_on_beam(texts, prints, workers.setting, beam)
        chunks = Chunks(texts, workers, seed=self.seed, on_bad_row=self.on_bad_row)
        reports, failures = [], []
        for task, split in wanted:
            started, key = time.monotonic(), (task.name, split)
            manifest, first_bad_row = cached[key], None
            written = manifest is None
            try:
                if manifest is not None:
                    self.progress(task.name, split, manifest.examples, manifest.examples)
                elif key in on_beam:
                    manifest, first_bad_row = self._written_on_beam(key, on_beam[key])
                elif isinstance(task, TextTask):
                    manifest, first_bad_row = self._write_text(task, split, prints[key], chunks)
                else:
                    manifest, first_bad_row = self._write_seqio(task, split, prints[key])
            except CacheError:
                raise  # the disk: every other task would fail as well
            except FlanjaxError as error:
                failures.append(f"{task.name}, {split}: {error}")
                continue
            reports.append(
                SplitReport(
                    task=task.name,
                    split=split,
                    fingerprint=prints[key],
                    examples=manifest.examples,
                    tokens={name: manifest.features[name].tokens for name in FEATURES},
                    written=written,
                    dropped_empty_targets=manifest.dropped_empty_targets,
                    skipped_bad_rows=manifest.skipped_bad_rows,
                    first_bad_row=first_bad_row,
                    seconds=time.monotonic() - started,
                )
            )
        return reports, failures

    def _cached(self, task: str, split: str, fingerprint: str) -> Manifest | None:
        if not up_to_date(self.cache, task, split, fingerprint):
            return None
        manifest = read_manifest(task_folder(self.cache, task, split))
        # What was written while skipping bad rows must not pass where they are errors.
        refused = manifest is not None and manifest.skipped_bad_rows and self.on_bad_row == "error"
        return None if refused else manifest

    def _write_text(self, task: TextTask, split: str, fingerprint: str, chunks: Chunks) -> tuple[Manifest, str | None]:
        """Writes a split; returns its manifest and the first of the rows that were skipped."""
        left_out = LeftOut()
        stream = chunks.examples((task.name, split), left_out)
        manifest = self._write_split(task, split, stream, fingerprint, left_out.counters)
        return manifest, left_out.first_bad_row

    def _write_on_beam(
        self,
        texts: Sequence[tuple[TextTask, str]],
        prints: Mapping[Key, str],
        setting: Setting,
        options: Sequence[str],
    ) -> dict[Key, dict[str, Any]]:
        try:
            from flanjax.data.beam import write_splits
        except ImportError as error:
            raise MaterializeError(f"Apache Beam is not installed ({error}): pip install 'flanjax[beam]'") from error
        missing = {(task.name, split): prints[task.name, split] for task, split in texts}
        return write_splits(
            missing, cache=self.cache, setting=setting, vocabulary_id=self.vocabulary.identity, options=options
        )

    def _written_on_beam(self, key: Key, outcome: Mapping[str, Any]) -> tuple[Manifest, str | None]:
        if "error" in outcome:
            raise MaterializeError(outcome["error"])
        manifest = read_manifest(task_folder(self.cache, *key))
        if manifest is None:
            raise MaterializeError(
                f"{task_folder(self.cache, *key)} is not here: the workers of the pipeline must write to this folder"
            )
        self.progress(*key, manifest.examples, manifest.examples)
        return manifest, outcome["first_bad_row"]

    def _write_seqio(self, task: "seqio.Task", split: str, fingerprint: str) -> tuple[Manifest, str | None]:
        """Runs a task written in seqio; see `_write_text`."""
        from flanjax.data.seqio_stream import examples, open_dataset
        from flanjax.data.seqio_vocabularies import seqio_vocabulary

        left_out = LeftOut()
        vocabulary = seqio_vocabulary(self.vocabulary)
        with bad_row_policy(self.on_bad_row) as bad_rows:
            try:
                dataset = open_dataset(task, split, vocabulary, seed=self.seed)
            except FlanjaxError:
                raise
            except Exception as error:
                raise MaterializeError(f"{type(error).__name__}: {error}") from error
            stream = examples(
                dataset,
                self.vocabulary,
                task=task.name,
                split=split,
                counters=left_out.counters,
                bad_rows=bad_rows,
                chat=self.chat,
            )
            manifest = self._write_split(task, split, stream, fingerprint, left_out.counters)
            return manifest, next(iter(bad_rows.first), None)

    def _write_split(
        self,
        task: AnyTask,
        split: str,
        stream: Iterator[Example | EncodedExample],
        fingerprint: str,
        counters: Mapping[str, int],
    ) -> Manifest:
        return write_split(
            self.cache,
            task.name,
            split,
            self._counted(stream, task, split),
            vocabulary_id=self.vocabulary.identity,
            fingerprint=fingerprint,
            seed=self.seed,
            counters=counters,
        )

    def _counted(
        self, stream: Iterator[Example | EncodedExample], task: AnyTask, split: str
    ) -> Iterator[Example | EncodedExample]:
        """The same stream, with a report of progress now and then."""
        total = _known_size(task, split)
        done = 0
        for done, example in enumerate(stream, 1):
            yield example
            if done % 200 == 0:
                self.progress(task.name, split, done, max(total, done) if total else None)
        self.progress(task.name, split, done, done)


def _load_tensorflow() -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with _native_stderr_closed():
        import seqio  # noqa: F401
        import tensorflow as tf

    try:
        tf.config.set_visible_devices([], "GPU")  # or TensorFlow would take the memory that training needs
    except RuntimeError:
        return  # it runs already, with whatever devices it has been given


@contextlib.contextmanager
def _native_stderr_closed() -> Iterator[None]:
    """Keeps away what native libraries say while they load, before they know their log level."""
    sys.stderr.flush()
    kept, sink = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(sink)


def _write_mixture(
    cache: Path,
    found: Found,
    vocabulary: Vocabulary,
    reports: list[SplitReport],
    *,
    seed: int,
    made_from: Mapping[str, Any],
    chat_template: ChatTemplate | None,
) -> list[str]:
    """Writes the mixture's file; returns a note if seqio has no rate for some tasks."""
    rates = found.rates({(report.task, report.split): report.examples for report in reports})
    prints: dict[str, dict[str, str]] = {task.name: {} for task in found.tasks}
    for report in reports:
        prints[report.task][report.split] = report.fingerprint
    entries = [
        {"task": task.name, "rate": rate, "splits": prints[task.name]}
        for task, rate in zip(found.tasks, rates, strict=True)
        if prints[task.name]
    ]
    write_mixture(
        cache, found.name, vocabulary, seed=seed, tasks=entries, made_from=made_from, chat_template=chat_template
    )
    without = [task.name for task, rate in zip(found.tasks, rates, strict=True) if rate is None]
    return [f"seqio gives no rate for {', '.join(without)}: give rates for training"] if without else []


def _absent_splits(found: Found, splits: Sequence[str]) -> list[str]:
    notes = []
    for split in splits:
        absent = [task.name for task in found.tasks if split not in task.splits]
        if absent:
            named = ", ".join(absent[:3]) + (", ..." if len(absent) > 3 else "")
            notes.append(f"{len(absent)} of {len(found.tasks)} tasks have no split {split!r}: {named}")
    return notes


def _splits_there(found: Found) -> str:
    there = sorted({split for task in found.tasks for split in task.splits})
    return f"it has {', '.join(there)}" if there else "it is empty"


def _known_size(task: AnyTask, split: str) -> int | None:
    if isinstance(task, TextTask):
        return task.examples.get(split)
    try:
        return task.num_input_examples(split)
    except (KeyError, ValueError, OSError):
        return None
