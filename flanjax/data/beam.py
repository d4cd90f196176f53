"""Materialising on Apache Beam: the same chunks and the same writer, on as many machines as a runner has.

    materialize(..., beam=("--runner=FlinkRunner", "--flink_master=host:8081"))

A split is read on one worker and its chunks are tokenised on all; each becomes a file beside the cache, and one worker
per split writes these in order. The result is byte for byte that of a single process. Every worker must see the cache
and the data under the same paths, and have the task modules installed.
"""

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
import msgpack
from apache_beam.options.pipeline_options import PipelineOptions

from flanjax.data.cache import EncodedExample
from flanjax.data.cache_writer import write_split
from flanjax.data.chunks import End, Key, LeftOut, read_chunks
from flanjax.data.rendering import NumberedRow
from flanjax.data.sources import BadRows
from flanjax.data.workers import Setting, Tokenizing
from flanjax.errors import FlanjaxError

Chunk = tuple[int, Sequence[NumberedRow] | End]  # its number in the split, and its rows, or the end of the split
Part = tuple[int, str, dict[str, Any]]  # the number, the file of its examples, and what was left out


def write_splits(
    prints: Mapping[Key, str], *, cache: Path, setting: Setting, vocabulary_id: str, options: Sequence[str]
) -> dict[Key, dict[str, Any]]:
    """Writes splits of text tasks to the cache.

    Args:
        prints: the fingerprint of each split that is to be written.
        cache: a folder that all workers see.
        setting: what a worker needs.
        vocabulary_id: identity of the setting's vocabulary.
        options: of the pipeline, as Beam's command line has them.

    Returns:
        for each split {"first_bad_row": place or None}, or {"error": message} where it failed and was not written.
    """
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".beam-", dir=cache) as folder:
        with beam.Pipeline(options=PipelineOptions(list(options), save_main_session=False)) as pipeline:
            (
                pipeline
                | beam.Create(sorted(prints))
                | "read" >> beam.ParDo(_Read(setting))
                | beam.Reshuffle()
                | "tokenize" >> beam.ParDo(_Tokenize(setting, folder))
                | beam.GroupByKey()
                | "write" >> beam.ParDo(_Write(dict(prints), cache, setting.seed, vocabulary_id, folder))
            )
        return {key: json.loads(_outcome_file(folder, key).read_text()) for key in prints}


class _Read(beam.DoFn):
    """A split -> its numbered chunks, and its end."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting

    def setup(self) -> None:
        self._tokenizing = Tokenizing.elsewhere(self._setting)

    def process(self, element: Key) -> Iterator[tuple[Key, Chunk]]:
        """The chunks of a split, in order, and then its end."""
        task, split = element
        tokenizing, setting = self._tokenizing, self._setting
        chunks = read_chunks(
            tokenizing.task(task), split, seed=setting.seed, on_bad_row=setting.on_bad_row, chat=tokenizing.chat
        )
        for number, chunk in enumerate(chunks):
            yield element, (number, chunk)


class _Tokenize(beam.DoFn):
    """A chunk -> a file of its examples."""

    def __init__(self, setting: Setting, folder: str) -> None:
        self._setting = setting
        self._folder = folder

    def setup(self) -> None:
        self._tokenizing = Tokenizing.elsewhere(self._setting)

    def process(self, element: tuple[Key, Chunk]) -> Iterator[tuple[Key, Part]]:
        """The part that a chunk becomes; an error in it is told, not raised, for its task alone to fail."""
        key, (number, rows) = element
        if isinstance(rows, End):
            error = str(rows.error) if rows.error is not None else None
            yield key, (number, "", _left_out(rows.bad_rows, error=error))
            return
        try:
            made = self._tokenizing(*key, rows)
        except FlanjaxError as error:
            yield key, (number, "", _left_out(BadRows(), error=str(error)))
            return
        # A runner may do a chunk twice, at the same time even: whichever file is named is whole.
        with tempfile.NamedTemporaryFile(dir=self._folder, delete=False) as file:
            packer = msgpack.Packer()
            for example in made.examples:
                file.write(packer.pack(tuple(example)))
        yield key, (number, file.name, _left_out(made.bad_rows, dropped=made.dropped_empty_targets))


class _Write(beam.DoFn):
    """All parts of a split -> its folder in the cache."""

    def __init__(self, prints: dict[Key, str], cache: Path, seed: int, vocabulary_id: str, folder: str) -> None:
        self._prints = prints
        self._cache = cache
        self._seed = seed
        self._vocabulary_id = vocabulary_id
        self._folder = folder

    def process(self, element: tuple[Key, Iterable[Part]]) -> None:
        """Writes a split, and beside the parts what became of it."""
        key, grouped = element
        parts = sorted(grouped)
        left_out = LeftOut()
        try:
            write_split(
                self._cache,
                *key,
                _examples(parts, left_out),
                vocabulary_id=self._vocabulary_id,
                fingerprint=self._prints[key],
                seed=self._seed,
                counters=left_out.counters,
            )
            outcome: dict[str, Any] = {"first_bad_row": left_out.first_bad_row}
        except FlanjaxError as error:
            outcome = {"error": str(error)}
        _outcome_file(self._folder, key).write_text(json.dumps(outcome))


def _examples(parts: Sequence[Part], left_out: LeftOut) -> Iterator[EncodedExample]:
    for _, file, counts in parts:
        if counts["error"] is not None:
            raise FlanjaxError(counts["error"])
        left_out.counters["dropped_empty_targets"] += counts["dropped"]
        left_out.add_bad_rows(BadRows(skipped=counts["skipped"], first=counts["first"]))
        if file:
            with open(file, "rb") as stream:
                for example in msgpack.Unpacker(stream):
                    yield EncodedExample(*example)


def _left_out(bad_rows: BadRows, *, dropped: int = 0, error: str | None = None) -> dict[str, Any]:
    return {"dropped": dropped, "skipped": bad_rows.skipped, "first": bad_rows.first, "error": error}


def _outcome_file(folder: str, key: Key) -> Path:
    return Path(folder) / f"{key[0]}.{key[1]}.json"
