"""Writing the cache: a split's folder appears whole or not at all.

`write_split` streams examples into a folder named `.<split>.partial` beside the final one, writes the manifest last,
and renames. A killed writer leaves only that partial folder, which no reader looks at and the next writer removes.
Memory does not grow with the number of examples.
"""

import contextlib
import fcntl
import json
import os
import shutil
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from flanjax.data.cache import (
    FEATURES,
    FORMAT,
    LENGTHS_FILE,
    MANIFEST_FILE,
    CachedTask,
    CacheError,
    EncodedExample,
    Example,
    Manifest,
    Shard,
    encode_example,
    feature_statistics,
    file_sha256,
    mixture_file,
    read_manifest,
    task_folder,
    vocabulary_folder,
)
from flanjax.data.chat_templates import ChatTemplate
from flanjax.data.vocabularies import Vocabulary
from flanjax.files import FileError, write_whole


def write_split(
    cache_dir: str | Path,
    task: str,
    split: str,
    examples: Iterable[Example | EncodedExample],
    *,
    vocabulary_id: str,
    fingerprint: str,
    seed: int,
    shard_examples: int = 65536,
    counters: Mapping[str, int] | None = None,
) -> Manifest:
    """Writes one split of a task, replacing an older one, and returns its manifest.

    Args:
        cache_dir: the cache; it is made.
        task: name of the task.
        split: name of the split.
        examples: read once, in order; an exception of theirs leaves the cache as it was.
        vocabulary_id: identity of the vocabulary of the tokens.
        fingerprint: digest of everything that decides the contents, for the writer to recognise later.
        seed: the seed the examples were made with.
        shard_examples: most examples in one shard.
        counters: "dropped_empty_targets" and "skipped_bad_rows", read when the examples have ended, so that whoever
            makes the examples may count while making them.

    Raises:
        CacheError: another process writes this split now, or the disk is full or refuses.
    """
    final = task_folder(cache_dir, task, split)
    with _partial_folder(final) as partial:
        with _disk_errors(final):
            writer = _ShardWriter(partial, shard_examples)
        for example in examples:
            with _disk_errors(final):
                writer.write(example)
        with _disk_errors(final):
            shards = writer.finish()
            lengths = np.load(partial / LENGTHS_FILE, mmap_mode="r" if shards else None)
            manifest = Manifest(
                task=task,
                split=split,
                fingerprint=fingerprint,
                seed=seed,
                vocabulary=vocabulary_id,
                examples=len(lengths),
                features={name: feature_statistics(lengths[:, column]) for column, name in enumerate(FEATURES)},
                dropped_empty_targets=(counters or {}).get("dropped_empty_targets", 0),
                skipped_bad_rows=(counters or {}).get("skipped_bad_rows", 0),
                shards=shards,
            )
            _write_text(partial / MANIFEST_FILE, manifest.to_json())
            _sync(partial)
            _replace(partial, final)
    return manifest


def write_mixture(
    cache_dir: str | Path,
    mixture: str,
    vocabulary: Vocabulary,
    *,
    seed: int,
    tasks: Iterable[Mapping[str, Any]],
    made_from: Mapping[str, Any] | None = None,
    chat_template: ChatTemplate | None = None,
) -> None:
    """Writes a mixture's file; the splits it names must have been written before.

    Args:
        cache_dir: the cache.
        mixture: name of the mixture.
        vocabulary: what all tasks were tokenised with; it is saved in the cache.
        seed: the seed of the run.
        tasks: {"task": name, "rate": float or None, "splits": {split: its fingerprint}} each.
        made_from: what was asked for and read, for `flanjax.data.provenance` to compare.
        chat_template: what the text of all tasks was made with.

    Raises:
        CacheError: the disk is full or refuses.
    """
    file = mixture_file(cache_dir, mixture)
    content = {
        "format": FORMAT,
        "mixture": mixture,
        "vocabulary": vocabulary.identity,
        "seed": seed,
        "tasks": list(tasks),
        "made_from": dict(made_from or {}),
        "chat_template": chat_template and chat_template.to_json(),
    }
    with _disk_errors(file):
        vocabulary.save(vocabulary_folder(cache_dir, vocabulary.identity))
        write_whole(file, json.dumps(content, indent=1) + "\n")
        _sync(file.parent)


def up_to_date(cache_dir: str | Path, task: str, split: str, fingerprint: str) -> bool:
    """Whether the cache holds this split with this fingerprint, every byte of it as it was written."""
    try:
        manifest = read_manifest(task_folder(cache_dir, task, split))
        if manifest is None or manifest.fingerprint != fingerprint:
            return False
        CachedTask.open(cache_dir, task, split).verify()
    except CacheError:
        return False
    return True


class _ShardWriter:
    """Records into shards of so many examples, lengths into the index; shards get their names when all are known."""

    def __init__(self, folder: Path, shard_examples: int):
        self._folder = folder
        self._shard_examples = shard_examples
        self._counts: list[int] = []
        self._shard: ArrayRecordWriter | None = None
        self._index = open(folder / LENGTHS_FILE, "wb")  # noqa: SIM115  closed by finish
        _write_lengths_header(self._index, 0)

    def write(self, example: Example | EncodedExample) -> None:
        """Adds one example."""
        if isinstance(example, Example):
            example = encode_example(example)
        if self._shard is None or self._counts[-1] == self._shard_examples:
            self._close_shard()
            self._shard = ArrayRecordWriter(str(self._folder / f"{len(self._counts):05d}"), "group_size:1")
            self._counts.append(0)
        self._shard.write(example.record)
        self._index.write(struct.pack("<II", example.inputs, example.targets))
        self._counts[-1] += 1

    def finish(self) -> tuple[Shard, ...]:
        """Brings everything to the disk and says what was written."""
        self._close_shard()
        with self._index as index:
            index.seek(0)
            _write_lengths_header(index, sum(self._counts))
            index.flush()
            os.fsync(index.fileno())
        total = len(self._counts)
        return tuple(_finish_shard(self._folder, number, total, count) for number, count in enumerate(self._counts))

    def _close_shard(self) -> None:
        if self._shard is not None:
            self._shard.close()


def _write_lengths_header(stream: BinaryIO, examples: int) -> None:
    # NumPy pads this header so that the first axis may grow in place: it has one length for every count.
    shape = (examples, len(FEATURES))
    np.lib.format.write_array_header_1_0(stream, {"descr": "<u4", "fortran_order": False, "shape": shape})


def _finish_shard(folder: Path, number: int, shards: int, examples: int) -> Shard:
    path = folder / f"data-{number:05d}-of-{shards:05d}.array_record"
    os.rename(folder / f"{number:05d}", path)
    _sync(path)
    return Shard(file=path.name, examples=examples, sha256=file_sha256(path))


@contextlib.contextmanager
def _partial_folder(final: Path) -> Iterator[Path]:
    """An empty folder beside the final one, locked for as long as it is written and removed if that fails."""
    partial = final.with_name(f".{final.name}.partial")
    with _disk_errors(final):
        partial.mkdir(parents=True, exist_ok=True)
        lock = os.open(partial, os.O_RDONLY)
    try:
        try:
            # The lock ends with its process, so what a killed writer left can be told from what is being written.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = partial.exists() and os.path.samestat(os.fstat(lock), os.stat(partial))
        except BlockingIOError:
            mine = False
        if not mine:
            raise CacheError(f"another process is writing {final}: wait until it has finished, then start again")
        _empty(partial)
        try:
            yield partial
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    finally:
        os.close(lock)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def _replace(partial: Path, final: Path) -> None:
    """Puts the finished folder in place. Between the two renames a kill leaves no folder, never half of one."""
    old = final.with_name(f".{final.name}.old")
    if old.exists():
        shutil.rmtree(old)
    if final.exists():
        os.rename(final, old)
    os.rename(partial, final)
    _sync(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def _write_text(file: Path, text: str) -> None:
    with open(file, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def _sync(path: Path) -> None:
    """Makes a file's bytes, or a folder's names, outlast a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _disk_errors(target: Path) -> Iterator[None]:
    """A disk that is full or refuses, as a CacheError; ArrayRecord reports it as a RuntimeError."""
    try:
        yield
    except (OSError, RuntimeError, FileError) as error:
        raise CacheError(f"cannot write {target}: {error}; free some space or give another cache folder") from error
