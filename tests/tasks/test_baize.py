"""Transcripts become turns; their last, empty turn is nothing; a file for each source of topics."""

import json

import pytest
from flanjax.tasks.baize import FILES, dialogue, family

from flanjax.data.rendering import rows_of, texts_of
from flanjax.data.sources import BadRow

OPENING = "The conversation between human and AI assistant."


class Words:
    def encode(self, text):
        return text.split()

    def decode(self, ids):
        return " ".join(ids)


@pytest.fixture
def folder(tmp_path):
    """A file of two conversations for each source, as published."""
    for name, file in FILES.items():
        records = [
            {"topic": f"{name} {number}", "input": f"{OPENING}\n[|Human|] Hi\n[|AI|] {name} {number}\n[|Human|] "}
            for number in range(2)
        ]
        (tmp_path / file).write_text(json.dumps(records))
    return tmp_path


def test_each_source_is_a_task(folder):
    found = family(str(folder))
    assert [task.name for task in found.tasks] == [
        "baize_quora",
        "baize_stackoverflow",
        "baize_medquad",
        "baize_alpaca",
    ]
    for name, task in zip(FILES, found.tasks, strict=True):
        for number, split in enumerate(("validation", "train")):
            ((_, text),) = texts_of(task, split, rows_of(task, split, seed=0), seed=0, tokenizer=Words())
            assert text.inputs == f"{OPENING}\nUser: Hi\nAssistant:"
            assert text.targets == f"{name} {number}"


def turns(transcript):
    *_, last = dialogue({"topic": "t", "input": transcript}, "quora.json:7")
    return last["turns"]


def test_a_transcript_becomes_turns():
    assert turns(f"{OPENING}\n[|Human|] What?\n[|AI|] This:\n- a\n- b\n[|Human|]Why?[|AI|]So.\n[|Human|] ") == [
        ["system", OPENING],
        ["user", "What?"],
        ["assistant", "This:\n- a\n- b"],
        ["user", "Why?"],
        ["assistant", "So."],
    ]


def test_what_follows_an_empty_turn_is_left_out():
    assert turns("[|Human|] What?\n[|AI|] This.\n[|Human|] \n[|AI|] Hello?") == [
        ["user", "What?"],
        ["assistant", "This."],
    ]


@pytest.mark.parametrize(
    ("transcript", "message"),
    [
        ("Hi", r"quora\.json:7: field 'input' has no \[\|Human\|\]"),
        (None, r"quora\.json:7: field 'input' must be a string"),
        (
            "[|Human|] a [|Human|] b",
            r"quora\.json:7: turn 2 of field 'input' is of \[\|Human\|\], as the one before it",
        ),
    ],
)
def test_a_malformed_transcript_is_named(transcript, message):
    with pytest.raises(BadRow, match=message):
        list(dialogue({"topic": "t", "input": transcript}, "quora.json:7"))
