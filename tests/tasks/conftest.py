"""The texts of a task, and what has to hold for any row of one."""

import json

import hypothesis
import hypothesis.strategies as st
import pytest

from flanjax.data.rendering import rows_of, texts_of
from flanjax.data.sources import BadRow

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


class Words:
    """A vocabulary of one token a word."""

    def encode(self, text):
        return text.split()

    def decode(self, ids):
        return " ".join(ids)


@pytest.fixture(scope="session")
def texts():
    """texts(task, split, seed=0): the text of every row."""

    def read(task, split="train", seed=0):
        rows = rows_of(task, split, seed=seed)
        return [text for _, text in texts_of(task, split, rows, seed=seed, tokenizer=Words())]

    return read


@pytest.fixture(scope="session")
def written():
    """written(file, records): the file with a record a line, and its path as text."""

    def write(file, records):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(record) + "\n" for record in records))
        return str(file)

    return write


@pytest.fixture(scope="session")
def fuzzed(texts, written):
    """fuzzed(task, split, file, record): spoiled records of a file give texts, or an error with the file and line."""

    def check_all(task, split, file, record):
        outcomes = set()

        @hypothesis.example(record)
        @hypothesis.example("no record")
        @hypothesis.given(spoiled(record))
        def check(broken):
            path = written(file, [broken])
            made, failure = [], ""
            try:
                made = texts(task, split)
            except BadRow as error:
                failure = str(error)
            assert not failure or f"{path}:1" in failure
            assert all(isinstance(part, str) for text in made for part in (text.inputs, text.targets))
            outcomes.add(bool(failure))

        check()
        assert outcomes == {True, False}, "the record gives text, and what is none does not"

    return check_all


@st.composite
def spoiled(draw, value):
    """A JSON value with one thing in it, at any depth, missing or replaced by any JSON."""
    inner = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if not inner or draw(st.integers(0, 5)) == 0:
        return draw(JSON)
    at = draw(st.sampled_from(inner))
    if isinstance(value, dict) and draw(st.booleans()):
        return {key: item for key, item in value.items() if key != at}
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[at] = draw(spoiled(value[at]))
    return copy
