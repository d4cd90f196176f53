"""Bad rows are named by file, line and field; a policy decides what they cost."""

import gzip
import json

import pytest

from flanjax.data.records import read_json, read_json_lines
from flanjax.data.seqio_tasks import json_lines, string_dataset
from flanjax.data.sources import BadRow, bad_row_policy, report_bad_row, text_field
from flanjax.errors import FlanjaxError

ROWS = ['{"q": "two and two?", "a": "four"}', "", '{"q": "one and one?", "a": "two", "extra": 1}']


def _write(path, lines):
    path.write_text("\n".join(lines) + "\n")
    return path


def test_rows_carry_their_place(tmp_path):
    file = _write(tmp_path / "rows.jsonl", ROWS)
    assert [place for place, _ in read_json_lines(file)] == [f"{file}:1", f"{file}:3"]


def test_packed_files_read_the_same(tmp_path):
    packed = tmp_path / "rows.jsonl.gz"
    packed.write_bytes(gzip.compress(("\n".join(ROWS)).encode()))
    assert [row["a"] for _, row in read_json_lines(packed)] == ["four", "two"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"q": "cut', r"rows\.jsonl:2: not JSON .*column.*\{\"q\": \"cut"),
        ("[1, 2]", r"rows\.jsonl:2: a JSON object is expected, not list"),
        ("12", r"rows\.jsonl:2: a JSON object is expected, not int"),
    ],
)
def test_a_line_that_is_no_object_is_named(tmp_path, line, message):
    file = _write(tmp_path / "rows.jsonl", [ROWS[0], line, ROWS[2]])
    with pytest.raises(BadRow, match=message):
        list(read_json_lines(file))
    with bad_row_policy("skip") as bad_rows:
        assert len(list(read_json_lines(file))) == 2
    assert bad_rows.skipped == 1
    assert "rows.jsonl:2" in bad_rows.first[0]


def test_bytes_that_are_no_text_are_named(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"q": "a"}\n{"q": "\xff"}\n')
    with pytest.raises(BadRow, match=r"rows\.jsonl:2: not UTF-8"):
        list(read_json_lines(file))


@pytest.mark.parametrize(
    "damage", [lambda packed: packed[:-12], lambda packed: packed[:40] + b"\xff" * 9 + packed[49:]]
)
def test_a_packed_file_that_is_cut_or_damaged_is_named(tmp_path, damage):
    rows = [json.dumps({"q": f"{number:x}", "a": str(number**7)}) for number in range(50)]
    file = tmp_path / "rows.jsonl.gz"
    file.write_bytes(damage(gzip.compress("\n".join(rows).encode())))
    with pytest.raises(BadRow, match=r"rows\.jsonl\.gz: cannot be read"):
        read_json(file)
    # Never skipped: nobody knows what is missing.
    with bad_row_policy("skip") as bad_rows, pytest.raises(BadRow, match=r"rows\.jsonl\.gz:\d+: cannot be read"):
        list(read_json_lines(file))
    assert bad_rows.error is not None


def test_half_a_character_is_named(tmp_path):
    file = _write(
        tmp_path / "rows.jsonl", [ROWS[0], '{"q": "a\\ud83d", "a": "b"}', '{"q": "a\\ud83d\\ude00", "a": "b"}']
    )
    source = json_lines({"train": file}, fields=("q", "a"))
    with bad_row_policy("skip") as bad_rows:
        rows = list(source.get_dataset("train", shuffle=False).as_numpy_iterator())
    assert [row["q"].decode() for row in rows] == ["two and two?", "a\N{GRINNING FACE}"]
    assert bad_rows.skipped == 1
    assert r"rows.jsonl:2: field 'q' has \ud83d, half of a character" in bad_rows.first[0]


@pytest.mark.parametrize(
    ("row", "message"),
    [({"q": "x"}, "here: field 'a' is missing"), ({"a": 3}, "here: field 'a' must be a string, not int")],
)
def test_a_bad_field_is_named(row, message):
    with pytest.raises(BadRow, match=message):
        text_field(row, "a", "here")


def test_a_json_file_names_its_line(tmp_path):
    file = _write(tmp_path / "task.json", ["{", '"a": 1,', '"b": }'])
    with pytest.raises(BadRow, match=r"task\.json:3: not JSON"):
        read_json(file)
    with pytest.raises(BadRow, match=r"missing\.json: cannot be read: No such file"):
        read_json(tmp_path / "missing.json")


def test_a_whole_file_is_never_skipped():
    with bad_row_policy("skip") as bad_rows, pytest.raises(BadRow):
        report_bad_row(BadRow("no task at all"), always=True)
    assert bad_rows.error is not None


def test_an_unknown_policy_is_refused():
    with pytest.raises(FlanjaxError, match="on_bad_row='ignore' is not a policy"), bad_row_policy("ignore"):
        pass


def test_json_lines_is_a_seqio_source(tmp_path):
    file = _write(tmp_path / "rows.jsonl", ROWS)
    source = json_lines({"train": file}, fields=("q", "a"))
    rows = list(source.get_dataset("train", shuffle=False, seed=3).as_numpy_iterator())
    assert rows == [{"q": b"two and two?", "a": b"four"}, {"q": b"one and one?", "a": b"two"}]


def test_a_string_dataset_keeps_order_over_many_chunks():
    rows = [{"n": str(number)} for number in range(1000)]
    numbers = [int(row["n"]) for row in string_dataset(lambda: iter(rows), ["n"]).as_numpy_iterator()]
    assert numbers == list(range(1000))


def test_rows_survive_as_they_were_written(tmp_path):
    text = 'tabs\t, quotes ", {braces} and ünïcödé'
    file = _write(tmp_path / "rows.jsonl", [json.dumps({"q": text, "a": ""})])
    (row,) = json_lines({"train": file}, fields=("q", "a")).get_dataset("train", shuffle=False).as_numpy_iterator()
    assert row["q"].decode() == text
