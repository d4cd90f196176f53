"""Records of files in the formats that datasets are published in, one at a time, each with its place.

    read_records("alpaca_data.json")              ("alpaca_data.json:2", {"instruction": ...}), ...
    read_records("hf://datasets/user/name")       every file below, in order of the names
    read_table("train.tsv", names=("question", "answer"))

JSON (an array, which is streamed, or one object), JSON lines, CSV and TSV with a header, Parquet, and the Arrow files
of `datasets.save_to_disk`; compressed as their names say (.gz, .bz2, .xz, .zst). A path may be local or any address
that fsspec knows (https://, gs://, hf://). No more than a record, or a block of a columnar file, is held at a time.
"""

import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any

import fsspec

from flanjax.data.sources import BadRow, excerpt, report_bad_row
from flanjax.errors import FlanjaxError

Record = dict[str, Any]

FORMATS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow")
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
# What `fetch` and the `datasets` library write beside the records.
_DESCRIPTIONS = ("SOURCES.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
_BLOCK = 1 << 16
_BLANK = " \t\r\n"
_LONGEST_WORD = len("-Infinity")
_WRONG_BYTE = re.compile("[\udc80-\udcff]")  # as `surrogateescape` decodes what is not UTF-8
csv.field_size_limit(1 << 30)


class RecordsError(FlanjaxError):
    """A path with nothing to read at it."""


def read_records(path: str | os.PathLike[str]) -> Iterator[tuple[str, Record]]:
    """(place, record) pairs of a file, of a folder of files, or of a pattern such as "data/*.jsonl.gz".

    Raises:
        RecordsError: there is nothing of a known format.
        BadRow: a file is damaged, or a record malformed where the policy is "error".
    """
    for file in record_files(path):
        yield from _READERS[format_of(file)](file)


def record_files(path: str | os.PathLike[str], formats: Sequence[str] = FORMATS) -> list[str]:
    """The files that a path means, in order of their names.

    Of a folder hidden files, those of other formats, and those that only describe the records are left out.

    A reader of a format of its own, such as XML, gives the endings that it reads as `formats`.

    Raises:
        RecordsError: there is none, or the file has no known format.
    """
    text = os.fspath(path)
    try:
        system, local = fsspec.core.url_to_fs(text)
        is_pattern = any(sign in text for sign in "*?[")
        found = [local] if system.exists(local) else system.glob(local) if is_pattern else []
        if len(found) == 1 and system.isdir(found[0]):
            shown = [file for file in system.find(found[0]) if not _is_beside(os.path.relpath(file, found[0]))]
            found = [file for file in shown if format_of(file) in formats]
    except Exception as error:  # of the file system, each of which has its own
        raise RecordsError(f"{text} cannot be read: {type(error).__name__}: {error}") from error
    if not found:
        raise RecordsError(f"{text}: there is no such file, or no file of a known format ({', '.join(formats)}) in it")
    if unknown := [file for file in found if format_of(file) not in formats]:
        raise RecordsError(f"{unknown[0]}: its name ends in none of the known formats: {', '.join(formats)}")
    remote = "://" in text and not text.startswith("file://")
    return sorted(system.unstrip_protocol(file) if remote else file for file in found)


def _is_beside(file: str) -> bool:
    """Whether a file of a folder is there beside the records: a hidden one, or a description of them."""
    return re.search(r"(^|/)\.", file) is not None or os.path.basename(file) in _DESCRIPTIONS


def format_of(file: str) -> str:
    """The ending of a file's name, without that of its compression: ".jsonl" for "a.jsonl.gz"."""
    name = file.lower()
    for ending in _COMPRESSED:
        name = name.removesuffix(ending)
    return os.path.splitext(name)[1]


def read_lines(file: str) -> Iterator[tuple[int, bytes]]:
    """(number, line) pairs from 1 on, the line with its end.

    Raises:
        BadRow: the file is missing, or cut or damaged from some line on, whatever the policy.
    """
    number = 0
    with _readable(file, lambda: f"{file}:{number + 1}") as stream:
        for number, line in enumerate(stream, 1):
            yield number, line


def read_json(file: str | os.PathLike[str]) -> Record:
    """The one JSON object in a file, which may be long; raises BadRow with the line where it is none."""
    place = os.fspath(file)
    with _readable(place, lambda: place) as stream:
        try:
            text = stream.read().decode("utf-8-sig")
            value = json.loads(text)
        except json.JSONDecodeError as error:
            reason = f"not JSON ({error.msg}, column {error.colno}): {excerpt(text)}"
            raise BadRow(f"{place}:{error.lineno}: {reason}") from error
    if not isinstance(value, dict):
        raise BadRow(f"{place}:1: a JSON object is expected, not {type(value).__name__}: {excerpt(text)}")
    return value


def read_table(
    file: str, *, names: Sequence[str] | None = None, delimiter: str | None = None, quoted: bool = True
) -> Iterator[tuple[str, Record]]:
    """Rows of a CSV or TSV file, each at its first line; one with too many or too few columns is a bad one.

    Args:
        file: its path.
        names: of the columns; None takes them from the first line.
        delimiter: None: a tab where the name says .tsv or .txt, else a comma.
        quoted: whether quotation marks enclose fields, as in CSV; if not, they are characters like others.
    """
    delimiter = delimiter or ("\t" if format_of(file) in (".tsv", ".txt") else ",")
    with _readable(file, lambda: file) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
        # Strict, for else a quotation mark that is never closed takes the rest of the file into its field.
        reader = csv.reader(
            text, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE, strict=True
        )
        while True:
            place = f"{file}:{reader.line_num + 1}"
            try:
                values = next(reader, None)
            except csv.Error as error:
                report_bad_row(BadRow(f"{place}: not {delimiter!r}-separated: {error}"))
                continue
            if values is None:
                return
            if not values:
                continue  # a blank line
            if not all(map(_is_utf8, values)):
                report_bad_row(BadRow(f"{place}: not UTF-8: {excerpt(values)}"), always=names is None)
            elif names is None:
                names = values
                if again := [name for name in names if names.count(name) > 1]:
                    report_bad_row(BadRow(f"{place}: two columns are called {again[0]!r}"), always=True)
            elif len(values) != len(names):
                report_bad_row(BadRow(f"{place}: {len(values)} columns, not {len(names)}: {excerpt(values)}"))
            else:
                yield place, dict(zip(names, values, strict=True))


def _is_utf8(text: str) -> bool:
    return text.isascii() or not _WRONG_BYTE.search(text)


def read_json_file(file: str) -> Iterator[tuple[str, Record]]:
    """The objects of a JSON array, one by one; or of JSON lines under this name; or one object as a single record."""
    with _readable(file, lambda: file) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="\n")
        yield from _Scanner(text, file).records()


def read_json_lines(file: str | os.PathLike[str]) -> Iterator[tuple[str, Record]]:
    """The object of each line that is not blank; a line that holds none is a bad row."""
    file = os.fspath(file)
    for number, line in read_lines(file):
        if not line.strip():
            continue
        place = f"{file}:{number}"
        try:
            record = json_record(line, place)
        except BadRow as error:
            report_bad_row(error)
        else:
            yield place, record


def json_record(line: bytes, place: str) -> Record:
    """The one JSON object in a line; raises BadRow with the place where it is none, whatever the policy."""
    try:
        record = json.loads(line)
    except UnicodeDecodeError as error:
        raise BadRow(f"{place}: not UTF-8 ({error.reason}): {excerpt(line)}") from error
    except json.JSONDecodeError as error:
        reason = f"not JSON ({error.msg}, column {error.colno})"
        raise BadRow(f"{place}: {reason}: {excerpt(line.decode(errors='replace'))}") from error
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits, or nested too deeply
        raise BadRow(f"{place}: not JSON ({error}): {excerpt(line.decode(errors='replace'))}") from error
    if not isinstance(record, dict):
        raise BadRow(f"{place}: a JSON object is expected, not {type(record).__name__}: {excerpt(record)}")
    return record


def read_parquet(file: str) -> Iterator[tuple[str, Record]]:
    """The rows of a Parquet file; places are rows from 1 on."""
    import pyarrow.parquet

    with _readable(file, lambda: file, compression=None) as stream:
        batches = pyarrow.parquet.ParquetFile(stream).iter_batches(1024)
        yield from _numbered(file, batches)


def read_arrow(file: str) -> Iterator[tuple[str, Record]]:
    """The rows of an Arrow stream, which is what `datasets` writes; places are rows from 1 on."""
    import pyarrow.ipc

    with _readable(file, lambda: file, compression=None) as stream:
        yield from _numbered(file, pyarrow.ipc.open_stream(stream))


_READERS = {
    ".json": read_json_file,
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".csv": read_table,
    ".tsv": read_table,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
}


def _numbered(file: str, batches: Any) -> Iterator[tuple[str, Record]]:
    number = 0
    for batch in batches:
        batch.validate(full=True)  # offsets beyond the data would end the process
        for record in batch.to_pylist():
            number += 1
            yield f"{file}: row {number}", record


@contextmanager
def _readable(file: str, place: Callable[[], str], compression: str | None = "infer") -> Iterator[IO[bytes]]:
    """The opened file; what cannot be read of it becomes a BadRow that no policy skips."""
    try:
        if compression == "infer" and file.lower().endswith(".zst"):
            # zstandard, which fsspec would unpack it with, takes a file that was cut for one that has ended.
            import pyarrow

            with fsspec.open(file, "rb", compression=None) as packed:
                yield io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.PythonFile(packed, mode="r"), "zstd"))
        else:
            with fsspec.open(file, "rb", compression=compression) as stream:
                yield stream
    except FlanjaxError:
        raise
    except Exception as error:  # of a file system, a compression or a format, each of which has its own
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        report_bad_row(BadRow(f"{place()}: cannot be read: {reason}"), always=True)


class _Scanner:
    """Reads JSON values one after the other from a text stream, counting lines.

    The standard library decodes whole texts only; an array of a gigabyte must not be held in memory, and a record has
    to say its line.
    """

    def __init__(self, stream: IO[str], file: str) -> None:
        self._stream = stream
        self._file = file
        self._buffer = ""
        self._position = 0
        self._line = 1
        self._ended = False
        self._decode = json.JSONDecoder().raw_decode

    def records(self) -> Iterator[tuple[str, Record]]:
        """The records of an array, or of values in a row."""
        array = self._next() == "["
        if array:
            self._position += 1
        while (sign := self._next()) and not (array and sign == "]"):
            place = self._place()
            value, text = self._value(place)
            if not _is_utf8(text):
                report_bad_row(BadRow(f"{place}: not UTF-8: {excerpt(text)}"))
            elif not isinstance(value, dict):
                report_bad_row(BadRow(f"{place}: a JSON object is expected, not {type(value).__name__}"))
            else:
                yield place, value
            if array and (sign := self._next()) == ",":
                self._position += 1
            elif array and sign and sign != "]":
                self._fail(self._place(), "a comma or ] is expected")
        if array and not sign:
            self._fail(self._place(), "the array is cut short")
        self._position += 1
        if array and self._next():
            self._fail(self._place(), "nothing is expected after the array")

    def _place(self) -> str:
        return f"{self._file}:{self._line}"

    def _value(self, place: str) -> tuple[Any, str]:
        """The value that begins at the position, and its text; the position is then behind it."""
        while True:
            try:
                value, end = self._decode(self._buffer, self._position)
            except (ValueError, RecursionError) as error:
                if self._may_be_cut(error) and self._fill():
                    continue
                self._fail(place, getattr(error, "msg", str(error)))
            # A number at the end of the buffer may go on in what was not read yet; nothing else does.
            if end == len(self._buffer) and self._fill():
                continue
            text = self._buffer[self._position : end]
            self._line += text.count("\n")
            self._position = end
            return value, text

    def _may_be_cut(self, error: Exception) -> bool:
        """Whether more of the file may mend the value: not where an error lies before what was read last."""
        if not isinstance(error, json.JSONDecodeError):
            return False
        return error.msg.startswith("Unterminated string") or error.pos > len(self._buffer) - _LONGEST_WORD

    def _next(self) -> str:
        """The next sign that is not blank, at which the position then is; empty at the end."""
        while True:
            while self._position < len(self._buffer) and self._buffer[self._position] in _BLANK:
                self._line += self._buffer[self._position] == "\n"
                self._position += 1
            if self._position < len(self._buffer):
                return self._buffer[self._position]
            if not self._fill():
                return ""

    def _fill(self) -> bool:
        """Reads on, as much again as is held: a long record is then decoded a few times, not once a block."""
        held = self._buffer[self._position :]
        more = self._stream.read(max(_BLOCK, len(held))) if not self._ended else ""
        self._ended = not more
        if more:
            self._buffer, self._position = held + more, 0
        return bool(more)

    def _fail(self, place: str, reason: str) -> None:
        report_bad_row(BadRow(f"{place}: not JSON ({reason}): {excerpt(self._buffer[self._position :])}"), always=True)
