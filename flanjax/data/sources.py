"""Rows of files, with errors that name the file, the line and the field, and a policy for malformed ones.

A reader raises `BadRow`, or calls `report_bad_row`, which raises it under the policy "error" and counts it under
"skip". Materialising sets the policy for as long as a task is read (`bad_row_policy`); outside of it rows are strict.

`json_lines({"train": "reviews.jsonl"}, fields=("review", "label"))` is a seqio source whose examples are
{"review": string, "label": string}, ready for the preprocessors of an ordinary seqio task.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import itertools
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from flanjax.errors import FlanjaxError

if TYPE_CHECKING:
    import seqio
    import tensorflow as tf

T = TypeVar("T")
POLICIES = ("error", "skip")
_CHUNK = 128
_UNREADABLE = (OSError, EOFError, zlib.error)  # a file that is not there, or a packed one that is cut or damaged


class BadRow(FlanjaxError):
    """A row that is not what its reader expects; the message has the place, the field and an excerpt."""


@dataclass(kw_only=True)
class BadRows:
    """What became of the malformed rows while a policy was in force."""

    policy: str = "error"
    skipped: int = 0
    first: list[str] = field(default_factory=list)
    error: BadRow | None = None


# Readers run in TensorFlow's threads, where a context variable would not be seen.
_current = BadRows()


def check_policy(policy: str) -> None:
    """Raises FlanjaxError for anything but "error" and "skip"."""
    if policy not in POLICIES:
        raise FlanjaxError(f"on_bad_row={policy!r} is not a policy: give one of {', '.join(POLICIES)}")


@contextlib.contextmanager
def bad_row_policy(policy: str) -> Iterator[BadRows]:
    """Sets the policy, "error" or "skip", and yields the record that fills as rows are read."""
    global _current
    check_policy(policy)
    before, _current = _current, BadRows(policy=policy)
    try:
        yield _current
    finally:
        _current = before


def report_bad_row(error: BadRow, *, always: bool = False) -> None:
    """Raises the error, or counts it, as the policy says; `always` raises it: a whole file cannot be skipped."""
    if always or _current.policy == "error":
        _current.error = error
        raise error
    _current.skipped += 1
    if len(_current.first) < 3:
        _current.first.append(str(error))


def read_text(file: Path) -> str:
    """The text of a file in UTF-8, unpacked when its name ends in .gz.

    Raises:
        BadRow: it is missing, damaged or not UTF-8.
    """
    try:
        content = file.read_bytes()
        return (gzip.decompress(content) if file.suffix == ".gz" else content).decode("utf-8")
    except (*_UNREADABLE, UnicodeDecodeError) as error:
        raise BadRow(f"{file} cannot be read: {error}") from error


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file; raises BadRow with the line where it is none."""
    return _object(read_text(file), str(file), 1)


def read_json_lines(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Pairs of "file:line" and object for each line that is not blank; lines that hold no object are reported.

    Raises:
        BadRow: the file is missing, or cut or damaged from some line on, whatever the policy.
    """
    for number, line in _lines(file):
        if not line.strip():
            continue
        try:
            row = _object(line.decode("utf-8").strip(), str(file), number)
        except UnicodeDecodeError as error:
            report_bad_row(BadRow(f"{file}:{number}: not UTF-8 ({error.reason}): {excerpt(line)}"))
        except BadRow as error:
            report_bad_row(error)
        else:
            yield f"{file}:{number}", row


def text_field(row: Mapping[str, Any], name: str, place: str) -> str:
    """A field that must be a string; raises BadRow with the place, the field and an excerpt of the row."""
    if name not in row:
        raise BadRow(f"{place}: field {name!r} is missing: {excerpt(row)}")
    if not isinstance(row[name], str):
        raise BadRow(f"{place}: field {name!r} must be a string, not {type(row[name]).__name__}: {excerpt(row)}")
    try:
        row[name].encode()
    except UnicodeEncodeError as error:
        # JSON can say \ud800, which is half of a character.
        half = f"\\u{ord(row[name][error.start]):04x}"
        raise BadRow(f"{place}: field {name!r} has {half}, half of a character: {excerpt(row)}") from error
    return row[name]


def string_dataset(rows: Callable[[], Iterator[Mapping[str, str]]], fields: Sequence[str]) -> tf.data.Dataset:
    """A dataset of string scalars from a generator of rows that have these fields.

    Rows cross into TensorFlow by the hundred, which is twenty times as fast as one by one.
    """
    import tensorflow as tf

    def chunks() -> Iterator[dict[str, list[str]]]:
        for chunk in batched(rows(), _CHUNK):
            yield {name: [row[name] for row in chunk] for name in fields}

    signature = dict.fromkeys(fields, tf.TensorSpec([None], tf.string))
    return tf.data.Dataset.from_generator(chunks, output_signature=signature).unbatch()


def batched(items: Iterator[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last one shorter."""
    while chunk := list(itertools.islice(items, size)):
        yield chunk


def json_lines(files: Mapping[str, str | Path], *, fields: Sequence[str]) -> seqio.FunctionDataSource:
    """A seqio source over JSON-lines files, one a split; every field is a string.

    Args:
        files: file of each split; .gz is unpacked.
        fields: what every row must have; other keys of a row are ignored.
    """
    import seqio

    paths = {split: Path(file) for split, file in files.items()}
    return seqio.FunctionDataSource(
        functools.partial(_json_lines_dataset, files=paths, fields=tuple(fields)), splits=tuple(paths)
    )


def _json_lines_dataset(
    split: str, shuffle_files: bool, seed: int | None = None, *, files: Mapping[str, Path], fields: tuple[str, ...]
) -> tf.data.Dataset:
    del shuffle_files, seed  # the loader shuffles

    def rows() -> Iterator[dict[str, str]]:
        for place, row in read_json_lines(files[split]):
            try:
                example = {name: text_field(row, name, place) for name in fields}
            except BadRow as error:
                report_bad_row(error)
            else:
                yield example

    if not files[split].is_file():
        raise BadRow(f"{files[split]}, the {split!r} split, is not there")
    return string_dataset(rows, fields)


def _lines(file: Path) -> Iterator[tuple[int, bytes]]:
    number = 0
    try:
        with (gzip.open if file.suffix == ".gz" else open)(file, "rb") as stream:
            for number, line in enumerate(stream, 1):
                yield number, line
    except _UNREADABLE as error:
        report_bad_row(BadRow(f"{file}:{number + 1}: cannot be read: {error}"), always=True)


def _object(text: str, file: str, line: int) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        # One line of a JSON-lines file is a text of its own: its first line is line `line` of the file.
        place = f"{file}:{line + error.lineno - 1}"
        raise BadRow(f"{place}: not JSON ({error.msg}, column {error.colno}): {excerpt(text)}") from error
    if not isinstance(value, dict):
        raise BadRow(f"{file}:{line}: a JSON object is expected, not {type(value).__name__}: {excerpt(text)}")
    return value


def excerpt(content: Any) -> str:
    """The beginning of a row or a text, for a message."""
    text = content if isinstance(content, str) else repr(content)
    return text.strip()[:80] + ("..." if len(text.strip()) > 80 else "")
