"""What single-turn families share: finding the published file, choosing rows, and the sizes of the splits."""

import gzip
import json

import fsspec
import pytest

from flanjax.data.draws import Draw
from flanjax.data.instructions import Instruct, only, published, published_files, sizes
from flanjax.data.records import RecordsError
from flanjax.data.sources import BadRow, bad_row_policy
from flanjax.data.tasks import Context, with_validation
from flanjax.errors import FlanjaxError

ROWS = [{"kind": "a"}, {"kind": "b"}, {"kind": "a"}]


def _rows(seed):
    return ((f"rows:{number}", row) for number, row in enumerate(ROWS, 1))


def test_the_first_name_that_is_there_is_read_packed_or_not(tmp_path):
    names = ("first.jsonl", "data/second-*.jsonl")
    (tmp_path / "data").mkdir()
    for number in (1, 2):
        (tmp_path / "data" / f"second-{number}.jsonl").write_text(json.dumps({"number": number}))
    assert [row["number"] for _, row in published(str(tmp_path), *names)(0)] == [1, 2]
    (tmp_path / "first.jsonl.gz").write_bytes(gzip.compress(b'{"number": 3}'))
    assert [row["number"] for _, row in published(f"{tmp_path}/", *names)(0)] == [3]
    assert published_files(str(tmp_path / "data" / "second-2.jsonl"), names) == [
        str(tmp_path / "data" / "second-2.jsonl")
    ]


def test_a_folder_may_be_an_address(tmp_path):
    address = f"memory://{tmp_path.name}"
    with fsspec.open(f"{address}/data/train-0.jsonl", "w") as stream:
        stream.write('{"number": 1}')
    assert list(published(address, "all.jsonl", "data/train-*.jsonl")(0)) == [
        (f"{address.replace('//', '///')}/data/train-0.jsonl:1", {"number": 1})
    ]


def test_a_column_without_a_name_is_none():
    context = Context(draw=Draw(0), split="train", tokenizer=None, seed=0, place="rows:1")
    text = Instruct(style="plain", input="", output="")({"instruction": "Go", "": "far"}, context)
    assert (text.inputs, text.targets) == ("Go", "")


def test_nothing_is_looked_for_before_rows_are_asked_for(tmp_path):
    rows = published(str(tmp_path / "absent"), "first.jsonl")
    with pytest.raises(RecordsError, match=r"absent has none of first.jsonl"):
        list(rows(0))


def test_only_the_rows_with_the_named_values():
    assert [place for place, _ in only(_rows, "kind", ["a"])(0)] == ["rows:1", "rows:3"]
    assert list(only(_rows, "kind", [])(0)) == list(_rows(0))
    with pytest.raises(FlanjaxError, match="no row has kind 'c'; there are a, b"):
        list(only(_rows, "kind", ["a", "c"])(0))
    with pytest.raises(BadRow, match="rows:1: field 'sort' is missing"):
        list(only(_rows, "sort", ["a"])(0))
    with bad_row_policy("skip") as found, pytest.raises(FlanjaxError, match="no row has sort 'a'; there are none"):
        list(only(_rows, "sort", ["a"])(0))
    assert found.skipped == 3


@pytest.mark.parametrize("total", [1, 99, 100, 101, 250])
def test_sizes_are_those_that_the_split_makes(total):
    parts = with_validation(lambda seed: ((str(number), {}) for number in range(total)))
    assert sizes(total) == {split: len(list(rows(0))) for split, rows in parts.items()}


def test_a_style_is_checked_at_once():
    with pytest.raises(FlanjaxError, match=r"style='plian' .did you mean 'plain'.*: the styles are alpaca, plain"):
        Instruct(style="plian")
