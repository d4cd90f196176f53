"""Each form is found by its columns and read to what it says; everything else is refused with the reason."""

import hypothesis
import hypothesis.strategies as st
import pytest

from flanjax.data.schemas import Conversation, Pair, SchemaError, Turn, detect
from flanjax.data.sources import BadRow

PLACE = "rows.jsonl:7"
ASKED = Turn(role="user", text="Hi")
SAID = Turn(role="assistant", text="Hello!")

PAIRS = {
    "Alpaca form (instruction, output)": {"instruction": "Add.", "output": "3"},
    "Alpaca form (instruction, input, output)": {"instruction": "Add.", "input": "", "output": "3"},
    "Dolly form (instruction, context, response)": {"instruction": "Add.", "context": None, "response": "3"},
    "prompt/completion form (prompt, completion)": {"prompt": "Add.", "completion": "3"},
    "prompt/response form (prompt, response)": {"prompt": "Add.", "response": "3"},
    "preference form (prompt, chosen)": {"prompt": "Add.", "chosen": "3", "rejected": "4"},
    "inputs/targets form (inputs, targets)": {"inputs": "Add.", "targets": "3"},
    "P3 form (inputs_pretokenized, targets_pretokenized)": {
        **{"inputs": [17], "targets": [3]},
        **{"inputs_pretokenized": "Add.", "targets_pretokenized": "3"},
    },
    "question/answer form (question, answer)": {"id": 1, "question": "Add.", "answer": "3"},
    "question/response form (question, response)": {"question": "Add.", "response": "3"},
    "query/response form (query, response)": {"query": "Add.", "response": "3"},
    "input/output form (input, output)": {"input": "Add.", "output": "3"},
}

CHATS = {
    "ShareGPT form (conversations)": {
        "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]
    },
    "messages form (messages)": {
        "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
    },
    "LIMA form (conversations)": {"conversations": ["Hi", "Hello!"], "source": "wikihow"},
    "preference form (conversations, chosen)": {
        "conversations": [{"from": "human", "value": "Hi"}],
        "chosen": {"from": "gpt", "value": "Hello!"},
        "rejected": {"from": "gpt", "value": "Go away!"},
    },
    "preference form (prompt, chosen)": {
        "prompt": "Hi",
        "chosen": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}],
    },
    "prompt/completion form (prompt, completion)": {
        "prompt": [{"role": "user", "content": "Hi"}],
        "completion": [{"role": "assistant", "content": "Hello!"}],
    },
}


@pytest.mark.parametrize("title", PAIRS)
def test_a_pair_is_its_instruction_and_its_output(title):
    schema = detect(PAIRS[title], PLACE)
    assert str(schema) == title
    assert schema.read(PAIRS[title], PLACE) == Pair(instruction="Add.", output="3")


@pytest.mark.parametrize("title", CHATS)
def test_a_conversation_is_its_turns(title):
    schema = detect(CHATS[title], PLACE)
    assert str(schema) == title
    assert schema.read(CHATS[title], PLACE).turns == (ASKED, SAID)


def test_context_system_text_and_tools_are_kept():
    record = {"instruction": "Add.", "input": "1", "context": "2", "output": "3", "system": "Be exact."}
    read = detect(record, PLACE).read(record, PLACE)
    assert read == Pair(instruction="Add.", input="1\n\n2", output="3", system="Be exact.")
    chat = {**CHATS["messages form (messages)"], "system": "Be brief.", "tools": [{"name": "über"}]}
    read = detect(chat, PLACE).read(chat, PLACE)
    assert read.turns == (Turn(role="system", text='Be brief.\n\n[{"name": "über"}]'), ASKED, SAID)


def test_history_makes_a_pair_the_end_of_a_conversation():
    record = {"instruction": "And", "input": "you?", "output": "Well.", "history": [["Hi", "Hello!"]]}
    turns = (ASKED, SAID, Turn(role="user", text="And\n\nyou?"), Turn(role="assistant", text="Well."))
    assert detect(record, PLACE).read(record, PLACE) == Conversation(turns=turns)


def test_of_a_preference_and_of_a_completion_only_the_answer_is_learnt():
    before = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hm."}]
    answer = {"role": "assistant", "content": "Hello!"}
    asked = [*before, {"role": "user", "content": "Hi"}]
    for record in (
        {"prompt": asked, "completion": [answer]},
        {"messages": asked, "chosen": answer},
        {"prompt": "Hi", "chosen": [*asked, answer]},
    ):
        read = detect(record, PLACE).read(record, PLACE)
        assert (len(read.turns), read.given) == (4, 3)
    assert detect({"messages": [*before]}, PLACE).read({"messages": [*before]}, PLACE).given == 0


def test_parts_of_text_are_joined_and_others_refused():
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "value": "lo!"}]
    record = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": parts}]}
    schema = detect(record, PLACE)
    assert schema.read(record, PLACE).turns == (ASKED, SAID)
    record["messages"][0]["content"] = [{"type": "image_url", "image_url": {"url": "x.png"}}]
    with pytest.raises(BadRow, match=r"rows.jsonl:7, messages\[0\]: a part of the content is not text: .*image_url"):
        schema.read(record, PLACE)


def test_columns_of_other_names_are_told():
    record = {"frage": "Add.", "antwort": "3", "text": "1, 2"}
    schema = detect(record, PLACE, {"instruction": "frage", "output": "antwort", "input": "text"})
    assert str(schema) == "Alpaca form (frage, antwort, text)"
    assert schema.read(record, PLACE) == Pair(instruction="Add.", input="1, 2", output="3")
    with pytest.raises(BadRow, match=r"rows.jsonl:8: field 'antwort' is missing"):
        schema.read({"frage": "Add."}, "rows.jsonl:8")


def test_a_column_that_another_name_was_given_to_is_not_also_its_own():
    record = {"question": "Add.", "answer": "3"}
    schema = detect(record, PLACE, {"instruction": "question", "output": "answer"})
    assert str(schema) == "Alpaca form (question, answer)"


@pytest.mark.parametrize(
    ("record", "fields", "reason"),
    [
        ({"text": "Once upon a time"}, {}, r"rows.jsonl:7: it is plain text \(text\), in which nothing says"),
        ({"instruction": "Add.", "outputs": "3"}, {}, "nearest is the Alpaca form .* lacks 'output'.*mean 'outputs'"),
        ({"promt": "Add."}, {}, r"lacks 'prompt' \(did you mean 'promt'\?\)"),
        ({"Question": "1 + 2?", "Answers": "3"}, {}, "lacks 'question' .did you mean 'Question'"),
        ({}, {}, "the record's columns: none"),
        (
            {"question": "Add.", "answer": "C", "choices": ["1", "2", "3"]},
            {},
            "choices, which the question/answer form",
        ),
        ({"frage": "Add."}, {"instruktion": "frage"}, "'instruktion' is no column of any form .did you mean 'instruc"),
        ({"frage": "Add."}, {"instruction": "fragen"}, "has no column 'fragen' .did you mean 'frage'"),
    ],
)
def test_what_has_no_form_is_refused_with_the_reason(record, fields, reason):
    with pytest.raises(SchemaError, match=reason):
        detect(record, PLACE, fields)


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([], "a text or turns are expected"),
        ([{"from": "human", "value": "Hi"}], "no turn is the assistant's"),
        ([{"from": "humann", "value": "Hi"}], "from 'humann' is no known role .did you mean 'human'"),
        ([{"from": "human"}], "field 'value' is missing"),
        (["Hi", 3], "must be a string, not int"),
        ([["Hi", "Hello!"]], "a turn is expected"),
        ([{"from": "human", "value": "\ud800"}], "half of a character"),
    ],
)
def test_broken_turns_are_bad_rows_with_the_place(turns, reason):
    schema = detect(CHATS["ShareGPT form (conversations)"], PLACE)
    with pytest.raises(BadRow, match=f"rows.jsonl:9.*{reason}"):
        schema.read({"conversations": turns}, "rows.jsonl:9")


COLUMNS = sorted({name for record in (*PAIRS.values(), *CHATS.values()) for name in record} | {"history", "tools"})
VALUES = st.recursive(
    st.none() | st.integers() | st.text(max_size=3) | st.sampled_from(["user", "gpt"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["from", "value", "role", "content", "type", "text"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@hypothesis.given(st.dictionaries(st.sampled_from(COLUMNS), VALUES, max_size=5))
def test_any_record_is_read_or_refused_with_its_place(record):
    read, failure = None, ""
    try:
        read = detect(record, PLACE).read(record, PLACE)
    except (SchemaError, BadRow) as error:
        failure = str(error)
    assert bool(read) != failure.startswith(PLACE)
    if isinstance(read, Pair):
        assert all(isinstance(part, str) for part in (read.instruction, read.input, read.output, read.system))
    elif read:
        assert {turn.role for turn in read.turns} <= {"system", "user", "assistant"}
        assert any(turn.role == "assistant" for turn in read.turns[read.given :])
        assert all(isinstance(turn.text, str) for turn in read.turns)
