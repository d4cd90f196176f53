"""FastChat's conversations: every reply once; what the cleaning leaves out; pieces of long conversations."""

import json

import pytest
from flanjax.tasks.sharegpt import family

from flanjax.data.rendering import rows_of, texts_of
from flanjax.data.sources import BadRow


class Words:
    def encode(self, text):
        return text.split()

    def decode(self, ids):
        return " ".join(ids)


def texts(path, split="train", **options):
    task = family(str(path), **options).tasks[0]
    return [text for _, text in texts_of(task, split, rows_of(task, split, seed=0), seed=0, tokenizer=Words())]


def test_every_reply_of_the_published_sample_is_an_example(test_data):
    path = test_data / "fastchat" / "dummy_conversation.json"
    published = [
        turn["value"].strip()
        for record in json.loads(path.read_text())
        for turn in record["conversations"]
        if turn["from"] == "gpt"
    ]
    found = texts(path) + texts(path, "validation")
    assert len(found) == 1000
    assert sorted(text.targets for text in found) == sorted(published)
    assert len({text.id for text in found}) == len(found)


def test_a_rendered_example(test_data):
    text = texts(test_data / "fastchat" / "dummy_conversation.json")[2]
    assert text.id == "identity_2-2"
    assert text.inputs == (
        "User: What is up?\nAssistant: Hello! How can I help you today?\nUser: Who are you?\nAssistant:"
    )
    assert text.targets == (
        "You can call me Vicuna, and I was trained by Large Model Systems Organization (LMSYS) researchers as a "
        "language model."
    )


def chat(*turns, **fields):
    return {"id": "a", "conversations": [{"from": speaker, "value": text} for speaker, text in turns], **fields}


@pytest.fixture
def write(tmp_path):
    def written(*records):
        # The first conversation is validation.
        path = tmp_path / "chat.json"
        path.write_text(json.dumps([chat(("human", "first"), ("gpt", "reply"), language="en"), *records], indent=1))
        return path

    return written


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ([("human", "Hi"), ("gpt", "Ho")], ["Ho"]),
        ([("gpt", "Welcome"), ("human", "Hi"), ("chatgpt", "Ho")], ["Ho"]),
        ([("system", "Be brief."), ("user", "Hi"), ("bard", "Ho")], ["Ho"]),
        ([("human", "Hi"), ("gpt", "Ho"), ("human", "And?")], ["Ho"]),
        ([("human", "Hi")], []),
        ([("gpt", "Ho")], []),
        ([], []),
        ([("human", "Hi"), ("human", "Hi"), ("gpt", "Ho")], []),
        ([("human", "Hi"), ("gpt", " "), ("human", "Hi"), ("gpt", "Ho")], []),
    ],
)
def test_what_the_cleaning_keeps(write, turns, expected):
    assert [text.targets for text in texts(write(chat(*turns)))] == expected


def test_a_system_text_comes_first(write):
    path = write(chat(("gpt", "Welcome"), ("system", "Be brief."), ("user", "Hi"), ("bard", "Ho")))
    assert texts(path)[0].inputs == "Be brief.\nUser: Hi\nAssistant:"


def test_languages_are_chosen_by_their_field(write):
    chats = [
        chat(("human", "Hi"), ("gpt", name), **{field: name}) for field, name in (("lang", "de"), ("language", "en"))
    ]
    assert [text.targets for text in texts(write(*chats), languages=["de"])] == ["de"]
    with pytest.raises(BadRow, match=r"chat\.json:\d+: field 'language' is missing"):
        texts(write(chat(("human", "Hi"), ("gpt", "Ho"))), languages="en")


def test_long_conversations_are_cut_into_pieces(write):
    path = write(chat(("human", "a b"), ("gpt", "c d"), ("human", "e"), ("gpt", "f"), ("human", "g"), ("gpt", "h")))
    assert [text.inputs for text in texts(path, max_conversation=8)] == [
        "User: a b\nAssistant:",
        "User: e\nAssistant:",
        "User: e\nAssistant: f\nUser: g\nAssistant:",
    ]


def test_a_malformed_turn_is_named(write):
    with pytest.raises(BadRow, match=r"chat\.json:\d+: message 2: field 'from' is 'parrot'"):
        texts(write(chat(("human", "Hi"), ("parrot", "Ho"))))
