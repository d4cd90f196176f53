"""Records come back as they were written, each with its place, in any format; damage is an error with the file."""

import bz2
import functools
import gzip
import http.server
import json
import lzma
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flanjax.data import records
from flanjax.data.fetch import SOURCES_FILE
from flanjax.data.records import (
    FORMATS,
    RecordsError,
    read_arrow,
    read_json,
    read_json_file,
    read_json_lines,
    read_parquet,
    read_records,
    read_table,
    record_files,
)
from flanjax.data.sources import BadRow, bad_row_policy

ROWS: list[dict[str, Any]] = [{"n": number, "text": f"line {number}\nmäßig \N{GRINNING FACE}"} for number in range(5)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def zstd(content: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
}


def rows(path: str | Path) -> list[dict[str, Any]]:
    return [row for _, row in read_records(path)]


def lines(path: str | Path) -> list[int]:
    """The lines that the records of a file are said to begin at."""
    return [int(place.removeprefix(f"{path}:")) for place, _ in read_records(path)]


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.lists(st.dictionaries(st.text(max_size=8), JSON, max_size=4), max_size=6)
BLANKS = st.text(alphabet=" \t\r\n", max_size=4)


@st.composite
def spaced(draw: Callable[..., Any], array: bool) -> tuple[list[dict[str, Any]], str, list[int]]:
    """Objects, JSON text that has them with blanks of any kind around, and the line that each begins at."""
    objects = draw(OBJECTS)
    text, starts = draw(BLANKS) + ("[" if array else ""), []
    for number, one in enumerate(objects):
        text += draw(BLANKS)
        starts.append(text.count("\n") + 1)
        dumped = json.dumps(one, ensure_ascii=draw(st.booleans()), indent=draw(st.none() | st.integers(0, 2)))
        text += dumped + draw(BLANKS)
        if number + 1 < len(objects):
            text += "," if array else " "
    return objects, text + ("]" if array else "") + draw(BLANKS), starts


@pytest.mark.parametrize("array", [True, False])
@pytest.mark.parametrize("block", [1, 7, 1 << 16])
def test_json_comes_back_with_its_lines(
    array: bool, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "_BLOCK", block)  # records, numbers and escapes then lie across blocks

    @given(spaced(array))
    def check(written: tuple[list[dict[str, Any]], str, list[int]]) -> None:
        objects, text, starts = written
        file = write(tmp_path / "objects.json", text)
        assert rows(file) == objects
        assert lines(file) == starts

    check()


@pytest.mark.parametrize("ending", PACKED)
@given(OBJECTS)
def test_json_lines_come_back_with_their_lines(
    tmp_path_factory: pytest.TempPathFactory, ending: str, objects: list[dict[str, Any]]
) -> None:
    file = tmp_path_factory.getbasetemp() / f"objects.jsonl{ending}"
    text = "\n".join(json.dumps(one) + "\n" for one in objects)  # with blank lines between them
    write(file, PACKED[ending](text.encode()))
    assert rows(file) == objects
    assert lines(file) == list(range(1, 2 * len(objects), 2))


QUOTE = '"'
CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)


@pytest.mark.parametrize(("ending", "delimiter"), [("csv", ","), ("tsv", "\t")])
@given(table=st.lists(st.tuples(CELLS, CELLS), max_size=5))
def test_tables_come_back(
    tmp_path_factory: pytest.TempPathFactory, ending: str, delimiter: str, table: list[tuple[str, str]]
) -> None:
    quoted = [[f'"{cell.replace(QUOTE, QUOTE * 2)}"' for cell in row] for row in table]
    text = "".join(delimiter.join(row) + "\r\n" for row in [["a", "b"], *quoted])
    file = write(tmp_path_factory.getbasetemp() / f"table.{ending}", text)
    assert rows(file) == [{"a": a, "b": b} for a, b in table]


def test_a_row_of_a_table_is_at_its_first_line(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.csv", '\n"a","b"\n\n1,"two\nlines"\n2,"say ""so"", please"\n')
    assert list(read_records(file)) == [
        (f"{file}:4", {"a": "1", "b": "two\nlines"}),
        (f"{file}:6", {"a": "2", "b": 'say "so", please'}),
    ]


def test_a_table_without_header_or_quotes(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.txt", '"Why?\tbecause\nHow?\tso "it" is\n')
    found = [row for _, row in read_table(str(file), names=("question", "answer"), quoted=False)]
    assert found == [{"question": '"Why?', "answer": "because"}, {"question": "How?", "answer": 'so "it" is'}]


@pytest.mark.parametrize(
    ("content", "message", "kept"),
    [
        ("a,b\n1,2\n3\n4,5\n", "rows.csv:3: 1 columns, not 2: ['3']", 2),
        ("a,b\n1,2\n3,4,5\n", "rows.csv:3: 3 columns, not 2: ['3', '4', '5']", 1),
        ('a,b\n1,2\n3,"never closed\n4,5\n', "rows.csv:3: not ','-separated: unexpected end of data", 1),
        ('a,b\n1,2\n"3"3,4\n5,6\n', "rows.csv:3: not ','-separated: ',' expected after '\"'", 2),
        (b"a,b\n1,\xff\n3,4\n", "rows.csv:2: not UTF-8: ['1', '\\udcff']", 1),
    ],
)
def test_a_malformed_row_of_a_table(tmp_path: Path, content: str | bytes, message: str, kept: int) -> None:
    file = write(tmp_path / "rows.csv", content)
    with pytest.raises(BadRow) as error:
        rows(file)
    assert str(error.value) == f"{tmp_path}/{message}"
    with bad_row_policy("skip") as bad:
        assert len(rows(file)) == kept
    assert (bad.skipped, bad.first) == (1, [f"{tmp_path}/{message}"])


@pytest.mark.parametrize("header", [b"a,a\n", b"a,\xff\n"])
def test_a_malformed_header_is_never_skipped(tmp_path: Path, header: bytes) -> None:
    file = write(tmp_path / "rows.csv", header + b"1,2\n")
    with bad_row_policy("skip"), pytest.raises(BadRow, match=r"rows\.csv:1: (two columns are called 'a'|not UTF-8)"):
        rows(file)


def test_an_array_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_BLOCK", 64)
    read = 0
    original = records._Scanner._fill

    def counted(self: Any) -> bool:
        nonlocal read
        held = len(self._buffer) - self._position
        more = original(self)
        read += len(self._buffer) - held
        return more

    monkeypatch.setattr(records._Scanner, "_fill", counted)
    file = write(tmp_path / "many.json", "[" + ", ".join(LINES.splitlines() * 100) + "]")
    found = read_json_file(str(file))
    assert [next(found)[1] for _ in range(3)] == ROWS[:3]
    assert read < 1000 < file.stat().st_size
    # An error is told where it is, without the rest of the file being read for an end of the record.
    spoilt = LINES.splitlines()[0].replace('"text"', "text")
    file = write(tmp_path / "spoilt.json", "[\n" + ",\n".join([spoilt, *LINES.splitlines() * 100]) + "]")
    read = 0
    with pytest.raises(BadRow, match=r"spoilt\.json:2: not JSON .Expecting property name"):
        next(read_json_file(str(file)))
    assert read < 1000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"a": 1},\n\n{"a": }]', 'x.json:3: not JSON (Expecting value): {"a": }]'),
        ('[{"a": 1}\n{"a": 2}]', 'x.json:2: not JSON (a comma or ] is expected): {"a": 2}]'),
        ('[{"a": 1},\n{"a": "open', 'x.json:2: not JSON (Unterminated string starting at): {"a": "open'),
        ('[{"a": 1},\n', "x.json:2: not JSON (the array is cut short): "),
        ('[{"a": 1}]\n[{"a": 2}]', 'x.json:2: not JSON (nothing is expected after the array): [{"a": 2}]'),
        ('{"a": 1}\nplain text', "x.json:2: not JSON (Expecting value): plain text"),
        ('{"a": ' + "[" * 100_000, "x.json:1: not JSON (maximum recursion depth exceeded"),
        ('\n{"a": ' + "1" * 9999 + "}", "x.json:2: not JSON (Exceeds the limit"),
        (b'[{"a": 1}, \xff]', "x.json:1: not JSON (Expecting value): \\udcff]"),
    ],
)
def test_a_json_file_that_is_none_is_never_skipped(tmp_path: Path, content: str | bytes, message: str) -> None:
    file = write(tmp_path / "x.json", content)
    with bad_row_policy("skip") as bad, pytest.raises(BadRow) as error:
        rows(file)
    assert str(error.value).startswith(f"{tmp_path}/{message}")
    assert bad.error is error.value


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"a": 1},\n12,\n{"a": 3}]', "x.json:2: a JSON object is expected, not int"),
        (b'[{"a": 1},\n[{"a": 2}],\n{"a": 3}]', "x.json:2: a JSON object is expected, not list"),
        (b'[{"a": 1},\n{"a": "\xff"},\n{"a": 3}]', 'x.json:2: not UTF-8: {"a": "\\udcff"}'),
    ],
)
def test_a_value_that_is_no_record_follows_the_policy(tmp_path: Path, content: bytes, message: str) -> None:
    file = write(tmp_path / "x.json", content)
    with pytest.raises(BadRow) as error:
        rows(file)
    assert str(error.value) == f"{tmp_path}/{message}"
    with bad_row_policy("skip") as bad:
        assert [row["a"] for row in rows(file)] == [1, 3]
    assert bad.skipped == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"a": ' + b"[" * 100_000, "x.jsonl:2: not JSON (maximum recursion depth"),
        (b'{"a": ' + b"1" * 9999 + b"}", "x.jsonl:2: not JSON (Exceeds the limit"),
        (b'{"a": "\xff"}', "x.jsonl:2: not UTF-8"),
        (b'"text"', "x.jsonl:2: a JSON object is expected, not str"),
    ],
)
def test_a_malformed_line_follows_the_policy(tmp_path: Path, line: bytes, message: str) -> None:
    file = write(tmp_path / "x.jsonl", b'{"a": 1}\n' + line + b'\n{"a": 3}\n')
    with pytest.raises(BadRow) as error:
        rows(file)
    assert str(error.value).startswith(f"{tmp_path}/{message}")
    with bad_row_policy("skip") as bad:
        assert [row["a"] for row in rows(file)] == [1, 3]
    assert bad.skipped == 1


def test_one_object_may_be_a_whole_file(tmp_path: Path) -> None:
    file = write(tmp_path / "one.json", "\ufeff" + json.dumps(ROWS[0], indent=1))
    assert rows(file) == [ROWS[0]]
    assert read_json(file) == ROWS[0]
    with pytest.raises(BadRow, match=r"many\.json:1: a JSON object is expected, not list"):
        read_json(write(tmp_path / "many.json", json.dumps(ROWS)))
    with pytest.raises(BadRow, match=r"deep\.json: cannot be read: RecursionError: maximum recursion depth"):
        read_json(write(tmp_path / "deep.json", '{"a": ' + "[" * 100_000))


def parquet(file: Path) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), file, row_group_size=2)
    return file


def test_columnar_files(tmp_path: Path) -> None:
    file = parquet(tmp_path / "rows.parquet")
    assert list(read_parquet(str(file))) == [(f"{file}: row {n}", row) for n, row in enumerate(ROWS, 1)]
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"), num_shards=2)
    folder = tmp_path / "saved"
    assert {path.name for path in folder.iterdir()} > {"dataset_info.json", "state.json"}
    assert [Path(file).name for file in record_files(folder)] == [
        "data-00000-of-00002.arrow",
        "data-00001-of-00002.arrow",
    ]
    assert rows(folder) == ROWS
    first = str(folder / "data-00000-of-00002.arrow")
    assert next(iter(read_arrow(first))) == (f"{first}: row 1", ROWS[0])


def test_offsets_beyond_the_data_do_not_end_the_process(tmp_path: Path) -> None:
    table = pyarrow.table({"text": ["four", "more"]})
    file = tmp_path / "rows.arrow"
    with pyarrow.ipc.new_stream(str(file), table.schema) as stream:
        stream.write_table(table)
    assert rows(file) == [{"text": "four"}, {"text": "more"}]
    ends = (4).to_bytes(4, "little") + (8).to_bytes(4, "little")  # of the two texts in the column's bytes
    content = file.read_bytes()
    assert content.count(ends) == 1
    file.write_bytes(content.replace(ends, (4).to_bytes(4, "little") + (1 << 30).to_bytes(4, "little")))
    with pytest.raises(BadRow, match=r"rows\.arrow: cannot be read: "):
        rows(file)


@pytest.mark.parametrize("ending", PACKED)
@pytest.mark.parametrize("format", ["json", "jsonl", "csv"])
def test_packed_files_read_the_same(tmp_path: Path, format: str, ending: str) -> None:
    text = {"json": json.dumps(ROWS), "jsonl": LINES, "csv": "n,text\n1,one\n"}[format]
    file = write(tmp_path / f"rows.{format}{ending}", PACKED[ending](text.encode()))
    assert rows(file) == ([{"n": "1", "text": "one"}] if format == "csv" else ROWS)


@pytest.mark.parametrize("format", ["json", "jsonl", "csv"])
@pytest.mark.parametrize("ending", [ending for ending in PACKED if ending])
def test_a_packed_file_that_was_cut_is_never_taken_for_whole(tmp_path: Path, format: str, ending: str) -> None:
    text = {"json": LINES, "jsonl": LINES, "csv": "n,text\n" + "1,one\n" * 99}[format]
    file = write(tmp_path / f"rows.{format}{ending}", PACKED[ending](text.encode())[:-10])
    with bad_row_policy("skip"), pytest.raises(BadRow, match=rf"rows\.{format}{ending}.*cannot be read: "):
        rows(file)


def test_files_of_several_packed_parts(tmp_path: Path) -> None:
    for ending, packed in PACKED.items():
        halves = (packed(half.encode()) for half in (LINES[: len(LINES) // 2], LINES[len(LINES) // 2 :]))
        assert rows(write(tmp_path / f"rows.jsonl{ending}", b"".join(halves))) == ROWS


def test_the_files_of_a_folder_or_a_pattern(tmp_path: Path) -> None:
    for number, name in enumerate(("b.jsonl", "a.json.gz", "sub/c.csv", "readme.md", ".cache/d.json", "sub/.e.json")):
        content = f"x\n{number}\n" if name.endswith("csv") else json.dumps({"x": str(number)})
        write(tmp_path / name, gzip.compress(content.encode()) if name.endswith(".gz") else content)
    write(tmp_path / SOURCES_FILE, '{"dataset": "made_up"}')
    assert rows(tmp_path) == [{"x": "1"}, {"x": "0"}, {"x": "2"}]
    assert [Path(file).name for file in record_files(tmp_path)] == ["a.json.gz", "b.jsonl", "c.csv"]
    assert rows(tmp_path / "[ab].json*") == [{"x": "1"}, {"x": "0"}]
    assert record_files(tmp_path, (".md",)) == [str(tmp_path / "readme.md")]
    assert rows(write(tmp_path / "with[brackets].json", '{"x": "3"}')) == [{"x": "3"}]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.json", "absent.json: there is no such file"),
        ("absent/*.json", "there is no such file"),
        ("empty", "no file of a known format"),
        ("notes.md", f"notes.md: its name ends in none of the known formats: {', '.join(FORMATS)}"),
        ("*.md", "notes.md: its name ends in none of the known formats"),
    ],
)
def test_where_there_is_nothing_to_read(tmp_path: Path, name: str, message: str) -> None:
    write(tmp_path / "notes.md", "text")
    write(tmp_path / "empty" / "notes.md", "text")
    with pytest.raises(RecordsError) as error:
        rows(tmp_path / name)
    assert message in str(error.value)


@pytest.mark.parametrize("address", ["nowhere://data/x.json", "http://127.0.0.1:9/x.json"])
def test_an_address_that_does_not_answer(address: str) -> None:
    with pytest.raises(RecordsError, match=address):
        rows(address)


def test_an_address_is_read_like_a_file() -> None:
    for name, content in (("b.jsonl", LINES.encode()), ("a.json.gz", gzip.compress(LINES.encode()))):
        with fsspec.open(f"memory://records/{name}", "wb") as stream:
            stream.write(content)
    assert record_files("memory://records") == ["memory:///records/a.json.gz", "memory:///records/b.jsonl"]
    assert rows("memory://records") == ROWS + ROWS
    assert rows("memory://records/b*") == ROWS
    place, _ = next(iter(read_records("memory://records/b.jsonl")))
    assert place == "memory:///records/b.jsonl:1"


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; a file whose name has "fails" in it is an error of the server's when it is opened to be read."""

    def do_GET(self) -> None:
        if "fails" in self.path:
            self.send_error(500)
        else:
            super().do_GET()

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of a server of the folder `tmp_path`."""
    handler = functools.partial(Handler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as found:
        thread = threading.Thread(target=found.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{found.server_port}"
        found.shutdown()
        thread.join()


def test_a_file_on_a_server(server: str, tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", LINES)
    parquet(tmp_path / "rows.parquet")
    assert list(read_records(f"{server}/rows.jsonl")) == [
        (f"{server}/rows.jsonl:{number}", row) for number, row in enumerate(ROWS, 1)
    ]
    assert rows(f"{server}/rows.parquet") == ROWS
    with pytest.raises(RecordsError, match=r"absent\.jsonl: there is no such file"):
        rows(f"{server}/absent.jsonl")
    with pytest.raises(BadRow, match=rf"{server}/fails\.jsonl:1: cannot be read: FileNotFoundError: "):
        list(read_json_lines(f"{server}/fails.jsonl"))


WHOLE = {
    "x.json": json.dumps(ROWS).encode(),
    "x.jsonl": LINES.encode(),
    "x.csv": b'n,text\n1,"one, two"\n2,three\n',
    **{f"x.jsonl{ending}": pack(LINES.encode()) for ending, pack in PACKED.items() if ending},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A file of each format, by its name."""
    folder = tmp_path_factory.mktemp("whole")
    datasets.Dataset.from_list(ROWS).save_to_disk(str(folder / "saved"))
    arrow = next((folder / "saved").glob("*.arrow")).read_bytes()
    return {**WHOLE, "x.parquet": parquet(folder / "x.parquet").read_bytes(), "x.arrow": arrow}


@given(data=st.data())
@example(data=None)
def test_damaged_bytes_give_rows_or_an_error_with_the_file(
    whole: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory, data: Any
) -> None:
    for name, content in whole.items():
        damaged = bytearray(content)
        if data is not None:
            at = data.draw(st.integers(0, len(content) - 1))
            damaged[at : at + data.draw(st.integers(0, 40))] = data.draw(st.binary(max_size=8))
        file = write(tmp_path_factory.getbasetemp() / "damaged" / name, bytes(damaged))
        found, failure = [], ""
        try:
            found = rows(file)
        except BadRow as error:
            failure = str(error)
        assert not failure or failure.startswith(f"{file}:")
        assert all(isinstance(row, dict) for row in found)
        assert data is not None or (found and not failure), "undamaged, it is read"
