"""Materialising: every task of a mixture is tokenised once and written to the cache. TensorFlow ends here.

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
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flanjax.data.cache import (
    FEATURES,
    FORMAT,
    CacheError,
    Example,
    Manifest,
    read_manifest,
    task_folder,
    vocabulary_folder,
)
from flanjax.data.cache_writer import up_to_date, write_mixture, write_split
from flanjax.data.fingerprints import fingerprint
from flanjax.data.provenance import Request, code_identities, record
from flanjax.data.source_files import SourceFiles
from flanjax.data.sources import BadRows, bad_row_policy, check_policy
from flanjax.data.vocabularies import Vocabulary, VocabularyError, VocabularySource, train_vocabulary
from flanjax.errors import FlanjaxError
from flanjax.files import FileError

if TYPE_CHECKING:
    import seqio

    from flanjax.data.registry import Found

Progress = Callable[[str, str, int, int | None], None]

VOCABULARY_EXAMPLES = 20_000  # most examples whose text a vocabulary is trained on, shared evenly among the tasks


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
        progress: called with (task, split, examples done, examples in all if known).

    Raises:
        MaterializeError: at least one task failed; the splits that did not are in the cache.
        CacheError: the disk is full or refuses.
        FlanjaxError: the mixture, a task module or the vocabulary is not there.
    """
    started = time.monotonic()
    check_policy(on_bad_row)
    _load_tensorflow()
    from flanjax.data.registry import find_mixture, register_modules

    # Stamped before anything is read: what changes meanwhile is noticed the next time.
    request = Request(tasks=tasks, vocabulary=vocabulary, seed=seed, splits=splits)
    code, files = code_identities(tasks), SourceFiles(tasks, ignored=[cache_dir])
    register_modules(tasks)
    found = find_mixture(mixture)
    wanted = [(task, split) for task in found.tasks for split in splits if split in task.splits]
    if not wanted:
        raise MaterializeError(f"no task of {mixture!r} has a split {' or '.join(splits)}: {_splits_there(found)}")
    cache = Path(cache_dir)
    resolved = _resolve_vocabulary(cache, found, vocabulary, seed=seed, on_bad_row=on_bad_row, files=files)
    writer = _Writer(cache, resolved, seed=seed, on_bad_row=on_bad_row, files=files, progress=progress)
    reports, failures = [], []
    for task, split in wanted:
        try:
            reports.append(writer.split(task, split))
        except CacheError:
            raise  # the disk: every other task would fail as well
        except FlanjaxError as error:
            failures.append(f"{task.name}, {split}: {error}")
    if failures:
        raise MaterializeError(
            f"{len(failures)} of {len(wanted)} task splits failed, the others are in {cache}; "
            "the next call does only what is missing.\n" + "\n".join(failures)
        )
    made_from = record(request, code, files.roots())
    notes = _write_mixture(cache, found, resolved, reports, seed=seed, made_from=made_from)
    notes += _absent_splits(found, splits)
    seconds = time.monotonic() - started
    return MaterializeReport(
        mixture=mixture, vocabulary=resolved, splits=tuple(reports), notes=tuple(notes), seconds=seconds
    )


class _Writer:
    """Writes splits under one vocabulary, seed and policy; `files` learns what they are made from."""

    def __init__(
        self,
        cache: Path,
        vocabulary: Vocabulary,
        *,
        seed: int,
        on_bad_row: str,
        files: SourceFiles,
        progress: Progress | None,
    ) -> None:
        import seqio

        self.cache = cache
        self.vocabulary = vocabulary
        self.seed = seed
        self.on_bad_row = on_bad_row
        self.files = files
        self.progress = progress or (lambda *_: None)
        self._seqio_vocabulary = seqio.SentencePieceVocabulary(str(vocabulary.path), vocabulary.extra_ids)

    def split(self, task: "seqio.Task", split: str) -> SplitReport:
        """Writes one split unless the cache has it already."""
        from flanjax.data.seqio_stream import task_fingerprint

        started = time.monotonic()
        identity = self.vocabulary.identity
        fingerprint = task_fingerprint(
            task, split, seed=self.seed, vocabulary_id=identity, version=FORMAT, files=self.files
        )
        manifest = self._cached(task.name, split, fingerprint)
        written, first_bad_row = manifest is None, None
        if manifest is None:
            manifest, first_bad_row = self._write(task, split, fingerprint)
        else:
            self.progress(task.name, split, manifest.examples, manifest.examples)
        return SplitReport(
            task=task.name,
            split=split,
            fingerprint=fingerprint,
            examples=manifest.examples,
            tokens={name: manifest.features[name].tokens for name in FEATURES},
            written=written,
            dropped_empty_targets=manifest.dropped_empty_targets,
            skipped_bad_rows=manifest.skipped_bad_rows,
            first_bad_row=first_bad_row,
            seconds=time.monotonic() - started,
        )

    def _cached(self, task: str, split: str, fingerprint: str) -> Manifest | None:
        if not up_to_date(self.cache, task, split, fingerprint):
            return None
        manifest = read_manifest(task_folder(self.cache, task, split))
        # What was written while skipping bad rows must not pass where they are errors.
        refused = manifest is not None and manifest.skipped_bad_rows and self.on_bad_row == "error"
        return None if refused else manifest

    def _write(self, task: "seqio.Task", split: str, fingerprint: str) -> tuple[Manifest, str | None]:
        """Writes a split; returns its manifest and the first of the rows that were skipped."""
        from flanjax.data.seqio_stream import examples, open_dataset

        counters = {"dropped_empty_targets": 0, "skipped_bad_rows": 0}
        with bad_row_policy(self.on_bad_row) as bad_rows:
            try:
                dataset = open_dataset(task, split, self._seqio_vocabulary, seed=self.seed)
            except FlanjaxError:
                raise
            except Exception as error:
                raise MaterializeError(f"{type(error).__name__}: {error}") from error
            stream = examples(
                dataset, self.vocabulary, task=task.name, split=split, counters=counters, bad_rows=bad_rows
            )
            manifest = write_split(
                self.cache,
                task.name,
                split,
                self._counted(stream, task, split),
                vocabulary_id=self.vocabulary.identity,
                fingerprint=fingerprint,
                seed=self.seed,
                counters=counters,
            )
            return manifest, next(iter(bad_rows.first), None)

    def _counted(self, stream: Iterator[Example], task: "seqio.Task", split: str) -> Iterator[Example]:
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


def _resolve_vocabulary(
    cache: Path, found: "Found", source: VocabularySource, *, seed: int, on_bad_row: str, files: SourceFiles
) -> Vocabulary:
    """The run's vocabulary, stored in the cache."""
    if source.train_size is not None:
        with bad_row_policy(on_bad_row) as bad_rows:
            return _trained_vocabulary(cache, found, source, seed=seed, bad_rows=bad_rows, files=files)
    if source.path is not None:
        vocabulary = Vocabulary.from_file(source.path, source.extra_ids)
    else:
        from flanjax.data.seqio_stream import own_vocabulary

        vocabulary = own_vocabulary(found.tasks)
        files.add(vocabulary.path)
    return _stored(cache, vocabulary)


def _stored(cache: Path, vocabulary: Vocabulary) -> Vocabulary:
    folder = vocabulary_folder(cache, vocabulary.identity)
    try:
        vocabulary.save(folder)
    except (OSError, FileError) as error:
        raise CacheError(f"cannot write {folder}: {error}; free some space or give another cache folder") from error
    return Vocabulary.load(folder)


def _trained_vocabulary(
    cache: Path, found: "Found", source: VocabularySource, *, seed: int, bad_rows: BadRows, files: SourceFiles
) -> Vocabulary:
    """A vocabulary of the mixture's training text; `vocabularies/trained` remembers which one a text has given.

    Raises:
        MaterializeError: no task of the mixture has a training split.
        VocabularyError: the text does not allow this size.
    """
    from flanjax.data.seqio_stream import task_fingerprint, texts

    tasks = [task for task in found.tasks if "train" in task.splits]
    if not tasks:
        raise MaterializeError(
            f"no task of {found.name!r} has a train split to train a vocabulary on: give the vocabulary of the mixture "
            f"that is trained, for instance a spiece.model under {cache / 'vocabularies'}"
        )
    limit = max(VOCABULARY_EXAMPLES // len(tasks), 1)
    prints = [
        task_fingerprint(task, "train", seed=seed, vocabulary_id="", version=FORMAT, files=files) for task in tasks
    ]
    asked = [source.train_size, source.extra_ids, limit, prints, fingerprint(texts)]
    key = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]
    remembered = cache / "vocabularies" / "trained" / f"{key}.json"
    try:
        identity = json.loads(remembered.read_text())["vocabulary"]
        return Vocabulary.load(vocabulary_folder(cache, identity))
    except (OSError, ValueError, KeyError, TypeError, VocabularyError):
        pass  # not trained yet, or not whole
    text = (line for task in tasks for line in texts(task, "train", seed=seed, limit=limit, bad_rows=bad_rows))
    try:
        remembered.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=remembered.parent) as folder:
            assert source.train_size is not None
            model = train_vocabulary(text, source.train_size, Path(folder) / "model", extra_ids=source.extra_ids)
            vocabulary = _stored(cache, model)
            (Path(folder) / "key").write_text(json.dumps({"vocabulary": vocabulary.identity}) + "\n")
            os.replace(Path(folder) / "key", remembered)
    except OSError as error:
        raise CacheError(f"cannot write {remembered}: {error}; free some space or give another folder") from error
    return vocabulary


def _write_mixture(
    cache: Path,
    found: "Found",
    vocabulary: Vocabulary,
    reports: list[SplitReport],
    *,
    seed: int,
    made_from: Mapping[str, Any],
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
    write_mixture(cache, found.name, vocabulary, seed=seed, tasks=entries, made_from=made_from)
    without = [task.name for task, rate in zip(found.tasks, rates, strict=True) if rate is None]
    return [f"seqio gives no rate for {', '.join(without)}: give rates for training"] if without else []


def _absent_splits(found: "Found", splits: Sequence[str]) -> list[str]:
    notes = []
    for split in splits:
        absent = [task.name for task in found.tasks if split not in task.splits]
        if absent:
            named = ", ".join(absent[:3]) + (", ..." if len(absent) > 3 else "")
            notes.append(f"{len(absent)} of {len(found.tasks)} tasks have no split {split!r}: {named}")
    return notes


def _splits_there(found: "Found") -> str:
    there = sorted({split for task in found.tasks for split in task.splits})
    return f"it has {', '.join(there)}" if there else "it is empty"


def _known_size(task: "seqio.Task", split: str) -> int | None:
    try:
        return task.num_input_examples(split)
    except (KeyError, ValueError, OSError):
        return None
