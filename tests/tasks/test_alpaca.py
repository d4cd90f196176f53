"""Alpaca's prompt letter for letter, every published field in its place, and errors that name the row."""

import json

import pytest
from flanjax.tasks.alpaca import family

from flanjax.data.records import RecordsError
from flanjax.data.sources import BadRow, bad_row_policy
from flanjax.errors import FlanjaxError

RECORD = {"instruction": "Name the capital.", "input": "France", "output": "Paris"}


@pytest.fixture
def published(test_data):
    """100 published records, which also have the text that Alpaca is trained on."""
    return test_data / "alpaca" / "alpaca_tiny.json"


def test_every_published_record_gives_the_published_text(published, texts):
    task = family(data_dir=str(published)).tasks[0]
    records = json.loads(published.read_text())
    made = texts(task, "validation") + texts(task, "train")
    assert [f"{text.inputs}\n{text.targets}" for text in made] == [record["text"] for record in records]
    assert sum(bool(record["input"]) for record in records) == sum("### Input:" in text.inputs for text in made) > 0


def test_one_published_example_as_text(published, texts):
    first = texts(family(data_dir=str(published)).tasks[0], "validation")[0]
    assert first.inputs == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nGive three tips for staying healthy.\n\n### Response:"
    )
    assert first.targets.startswith("1.Eat a balanced diet and make sure to include plenty of fruits and vegetables.")


def test_the_plain_style_is_the_instruction_and_its_input(written, texts, tmp_path):
    written(tmp_path / "alpaca_data.json", [RECORD, {**RECORD, "input": ""}, {**RECORD, "input": None}])
    alpaca = family(data_dir=str(tmp_path), style="plain").tasks[0]
    made = texts(alpaca, "validation") + texts(alpaca, "train")
    assert [text.inputs for text in made] == ["Name the capital.\n\nFrance", *["Name the capital."] * 2]
    assert [text.targets for text in made] == ["Paris"] * 3


def test_braces_in_the_data_stay(written, texts, tmp_path):
    written(tmp_path / "alpaca_data.json", [{**RECORD, "instruction": "{input} {0}", "input": "{instruction}"}])
    (text,) = texts(family(data_dir=str(tmp_path), style="plain").tasks[0], "validation")
    assert text.inputs == "{input} {0}\n\n{instruction}"


def test_the_three_tasks_read_their_own_files(written, texts, tmp_path):
    for file in ("alpaca_data.json", "alpaca_gpt4_data.json", "alpaca_gpt4_data_zh.json"):
        written(tmp_path / file, [{**RECORD, "output": file}])
    made = family(data_dir=str(tmp_path), gpt4_dir=str(tmp_path))
    assert list(made.mixtures) == [task.name for task in made.tasks] == ["alpaca", "alpaca_gpt4", "alpaca_gpt4_zh"]
    assert [text.targets for task in made.tasks for text in texts(task, "validation")] == [
        *("alpaca_data.json", "alpaca_gpt4_data.json", "alpaca_gpt4_data_zh.json")
    ]


def test_every_hundredth_row_is_validation_and_the_sizes_say_so(written, texts, tmp_path):
    written(tmp_path / "alpaca_data.json", [{**RECORD, "output": str(number)} for number in range(250)])
    alpaca = family(data_dir=str(tmp_path)).tasks[0]
    assert [text.targets for text in texts(alpaca, "validation")] == ["0", "100", "200"]
    assert len(texts(alpaca, "train")) == 247
    assert alpaca.examples == {"train": 52_002 - 521, "validation": 521}


def test_a_malformed_row_is_named_and_may_be_skipped(written, texts, tmp_path):
    file = written(tmp_path / "alpaca_data.json", [RECORD, {"instruction": "Go"}, RECORD])
    alpaca = family(data_dir=str(tmp_path)).tasks[0]
    with pytest.raises(BadRow, match=rf"{file}:2: field 'output' is missing: .*Go"):
        texts(alpaca)
    with bad_row_policy("skip") as found:
        assert len(texts(alpaca)) == 1
    assert found.skipped == 1


def test_what_is_not_there_and_what_is_not_known_is_said(tmp_path, texts):
    with pytest.raises(FlanjaxError, match=r"style='alpacca' .did you mean 'alpaca'"):
        family(style="alpacca")
    alpaca = family(data_dir=str(tmp_path)).tasks[0]
    with pytest.raises(RecordsError, match=rf"{tmp_path} has none of alpaca_data.json"):
        texts(alpaca)


def test_any_row_gives_text_or_an_error_with_its_place(fuzzed, tmp_path):
    alpaca = family(data_dir=str(tmp_path)).tasks[0]
    fuzzed(alpaca, "validation", tmp_path / "alpaca_data.json", RECORD)
