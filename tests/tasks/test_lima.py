"""LIMA: one row for each answer, with what was said before; test questions in the same words."""

import pytest
from flanjax.tasks.lima import family

from flanjax.data.sources import BadRow

ONE = {"conversations": ["Why?", "Because."], "source": "stackexchange"}
TWO = {"conversations": ["Hi", "Hello!", "And now?", "Goodbye."], "source": "multi_turn"}


def test_each_answer_is_a_row_with_all_that_was_said_before(written, texts, tmp_path):
    written(tmp_path / "train.jsonl", [ONE, TWO])
    lima = family(str(tmp_path)).tasks[0]
    assert [(text.inputs, text.targets) for text in texts(lima, "validation")] == [
        ("User: Why?\nAssistant:", "Because.")
    ]
    assert [(text.inputs, text.targets) for text in texts(lima)] == [
        ("User: Hi\nAssistant:", "Hello!"),
        ("User: Hi\nAssistant: Hello!\nUser: And now?\nAssistant:", "Goodbye."),
    ]


def test_no_conversation_is_on_both_sides(written, texts, tmp_path):
    records = [{"conversations": [f"{n}", f"a{n}", f"{n}", f"b{n}"], "source": "multi_turn"} for n in range(150)]
    written(tmp_path / "train.jsonl", records)
    lima = family(str(tmp_path)).tasks[0]
    train, validation = ({text.targets[1:] for text in texts(lima, split)} for split in ("train", "validation"))
    assert validation == {"0", "100"}
    assert len(train) == 148
    assert not train & validation


def test_only_the_named_sources_are_read(written, texts, tmp_path):
    written(tmp_path / "train.jsonl", [ONE, TWO])
    assert [text.targets for text in texts(family(str(tmp_path), ["multi_turn"]).tasks[0], "validation")] == [
        *("Hello!", "Goodbye.")
    ]


def test_the_test_questions_are_asked_as_in_training_and_have_no_target(written, texts, tmp_path):
    written(tmp_path / "test.jsonl", [{"conversations": ["Why?"], "source": "other"}])
    made = family(str(tmp_path))
    (text,) = texts(made.tasks[1], "test")
    assert (text.inputs, text.targets) == ("User: Why?\nAssistant:", "")
    assert made.mixtures == {"lima": {"lima": 1.0}}


def test_a_conversation_without_an_answer_is_a_bad_row(written, texts, tmp_path):
    file = written(tmp_path / "train.jsonl", [{"conversations": ["Why?"], "source": "other"}])
    with pytest.raises(BadRow, match=f"{file}:1: no turn is the assistant's"):
        texts(family(str(tmp_path)).tasks[0], "validation")


@pytest.mark.parametrize(("number", "split", "file"), [(0, "validation", "train.jsonl"), (1, "test", "test.jsonl")])
def test_any_row_gives_text_or_an_error_with_its_place(number, split, file, fuzzed, tmp_path):
    record = {**ONE, "conversations": ONE["conversations"][: 2 - number]}
    fuzzed(family(str(tmp_path)).tasks[number], split, tmp_path / file, record)
