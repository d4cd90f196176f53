"""Each reply is a row, once; a history keeps to its budget and never loses the question it ends with."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flanjax.data.conversations import (
    ReplyText,
    Turn,
    alternating,
    fitted_history,
    history_text,
    pieces,
    replies,
    reply_rows,
    row_turns,
    turns_of,
)
from flanjax.data.draws import Draw
from flanjax.data.sources import BadRow
from flanjax.data.tasks import Context


class Words:
    """A token a word."""

    def encode(self, text):
        return text.split()

    def decode(self, ids):
        return " ".join(ids)


def turns(*texts, system=None):
    spoken = [Turn(role=("user", "assistant")[number % 2], text=text) for number, text in enumerate(texts)]
    return [Turn(role="system", text=system), *spoken] if system else spoken


def context(place="chat.json:3"):
    return Context(draw=Draw(0), split="train", tokenizer=Words(), seed=0, place=place)


word = st.text("abc", min_size=1, max_size=4)
texts = st.lists(st.lists(word, min_size=1, max_size=6).map(" ".join), min_size=1, max_size=9)


def test_the_text_of_a_history():
    assert history_text(turns("Hi ", "Hello!", "And?", system="Be brief.")) == (
        "Be brief.\nUser: Hi\nAssistant: Hello!\nUser: And?\nAssistant:"
    )


@given(texts)
def test_every_reply_is_a_row_once_with_all_that_came_before_it(texts):
    conversation = turns(*texts)
    rows = list(reply_rows(conversation, id="a", lang="en"))
    assert [row["turns"][-1][1] for row in rows] == texts[1::2]
    for number, row in enumerate(rows):
        assert row_turns(row, "here") == conversation[: 2 * number + 2]
        assert row["id"] == f"a-{number + 1}"
        assert row["lang"] == "en"
    assert [(list(history), reply) for history, reply in replies(conversation)] == [
        (row_turns(row, "here")[:-1], row_turns(row, "here")[-1]) for row in rows
    ]


@given(texts, st.integers(4, 40), st.booleans())
def test_a_history_keeps_to_its_budget_and_ends_with_the_last_question(texts, max_source, with_system):
    conversation = turns(*texts[: len(texts) - (len(texts) + 1) % 2], system="Be kind." if with_system else None)
    fitted = fitted_history(conversation, Words(), max_source)
    assert len(fitted.split()) + 1 <= max_source
    last = conversation[-1].text
    assert fitted.startswith(("User: ", "Be kind.\nUser: "))
    question = fitted.removesuffix("\nAssistant:").split("User: ")[-1]
    if len(f"User: {last} Assistant:".split()) + 1 <= max_source:
        assert question == last
        assert fitted.removeprefix("Be kind.\n") in history_text(conversation)
    else:
        assert last.endswith(question)
        assert len(fitted.split()) + 1 == max_source, "no more of the question is cut than has to be"


def test_the_oldest_turns_go_first_then_the_system_text_then_the_beginning_of_the_question():
    conversation = turns("one two", "three", "four five", system="Be kind.")
    whole = len(history_text(conversation).split()) + 1
    assert fitted_history(conversation, Words(), whole) == history_text(conversation)
    assert fitted_history(conversation, Words(), whole - 1) == "Be kind.\nUser: four five\nAssistant:"
    assert fitted_history(conversation, Words(), 6) == "User: four five\nAssistant:"
    assert fitted_history(conversation, Words(), 4) == "User: five\nAssistant:"


@given(texts, st.integers(1, 40))
def test_pieces_are_the_conversation_cut_before_questions(texts, max_tokens):
    conversation = turns(*texts, system="Be kind.")
    made = pieces(conversation, Words(), max_tokens)
    assert [turn for piece in made for turn in piece[1:]] == conversation[1:]
    for piece in made:
        assert piece[0].role == "system"
        assert piece[1].role == "user"
        length = sum(len(f"{turn.role}: {turn.text}".split()) for turn in piece[1:]) + 2
        assert length <= max_tokens or len(piece) <= 3


def test_a_reply_sees_only_its_own_piece():
    *_, row = reply_rows(turns("a b c", "d", "e", "f"))
    assert ReplyText()(row, context()).inputs == "User: a b c\nAssistant: d\nUser: e\nAssistant:"
    text = ReplyText(max_conversation=6)(row, context())
    assert (text.inputs, text.targets) == ("User: e\nAssistant:", "f")


@pytest.mark.parametrize(
    ("conversation", "expected"),
    [
        (turns("a", "b", "c"), True),
        (turns("a", system="s"), True),
        (turns("a", " "), False),
        (turns("a", "b")[::-1], False),
        ([*turns("a"), *turns("b")], False),
        ([*turns("a"), Turn(role="system", text="s")], False),
    ],
)
def test_who_takes_turns(conversation, expected):
    assert alternating(conversation) is expected


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("Hi", r"chat.json:3: a list of messages is expected, not str: Hi"),
        (["Hi"], r"chat.json:3: message 1: an object is expected, not str"),
        ([{"content": "Hi"}], r"chat.json:3: message 1: field 'role' is missing"),
        ([{"role": "user"}], r"chat.json:3: message 1: field 'content' is missing"),
        (
            [{"role": "narrator", "content": ""}],
            r"chat.json:3: message 1: field 'role' is 'narrator', which is none of system,",
        ),
    ],
)
def test_a_malformed_message_is_named_with_its_place(messages, message):
    with pytest.raises(BadRow, match=message):
        turns_of(messages, "chat.json:3")


@pytest.mark.parametrize("row", [{}, {"turns": 1}, {"turns": [["user"]]}, {"turns": []}, {"turns": [["user", "a"]]}])
def test_a_row_that_has_no_reply_is_a_bad_one(row):
    with pytest.raises(BadRow, match=r"chat\.json:3: .*turns"):
        ReplyText()(row, context())
