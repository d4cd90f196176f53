"""Dolly: its columns in their places, and its categories."""

import pytest
from flanjax.tasks.dolly import FILE, family

from flanjax.data.sources import BadRow
from flanjax.errors import FlanjaxError

RECORDS = [
    {"instruction": "Who led it?", "context": "Ada led it.", "response": "Ada", "category": "closed_qa"},
    {"instruction": "Name a plum.", "context": "", "response": "Mirabelle", "category": "brainstorming"},
    {"instruction": "Why is it wet?", "context": "", "response": "It rains.", "category": "open_qa"},
]


def test_a_row_is_its_instruction_with_its_context(written, texts, tmp_path):
    written(tmp_path / FILE, RECORDS)
    dolly = family(data_dir=str(tmp_path)).tasks[0]
    made = texts(dolly, "validation") + texts(dolly, "train")
    assert [(text.inputs, text.targets) for text in made] == [
        ("Who led it?\n\nAda led it.", "Ada"),
        ("Name a plum.", "Mirabelle"),
        ("Why is it wet?", "It rains."),
    ]
    assert "### Input:\nAda led it." in texts(family(str(tmp_path), style="alpaca").tasks[0], "validation")[0].inputs


def test_only_the_named_categories_are_read(written, texts, tmp_path):
    written(tmp_path / FILE, RECORDS)
    dolly = family(str(tmp_path), categories=["open_qa", "brainstorming"]).tasks[0]
    assert [text.targets for text in texts(dolly, "validation") + texts(dolly)] == ["Mirabelle", "It rains."]
    assert dolly.examples == {}


def test_a_category_that_no_row_has_is_said(written, texts, tmp_path):
    written(tmp_path / FILE, RECORDS)
    with pytest.raises(FlanjaxError, match=r"no row has category 'close_qa' .did you mean 'closed_qa'.*; there are b"):
        texts(family(str(tmp_path), categories=["close_qa"]).tasks[0])


def test_a_row_without_a_category_is_a_bad_one(written, texts, tmp_path):
    file = written(tmp_path / FILE, [{"instruction": "Go", "response": "Gone"}])
    with pytest.raises(BadRow, match=f"{file}:1: field 'category' is missing"):
        texts(family(str(tmp_path), categories=["open_qa"]).tasks[0])


def test_any_row_gives_text_or_an_error_with_its_place(fuzzed, tmp_path):
    fuzzed(family(str(tmp_path)).tasks[0], "validation", tmp_path / FILE, RECORDS[0])
