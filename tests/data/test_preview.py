"""A preview shows the text that was encoded and the tokens, segments and weights that a model gets, and no others."""

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flanjax.data.packing import PackingError
from flanjax.data.preview import PreviewedRow, Span, preview
from flanjax.data.records import read_records
from flanjax.data.sampling import first_rows
from flanjax.data.sources import BadRow, bad_row_policy, text_field
from flanjax.data.tasks import Context, Row, Text, TextTask
from flanjax.data.vocabularies import Vocabulary


@pytest.fixture(scope="module")
def t5(t5_spiece: Path) -> Vocabulary:
    return Vocabulary.from_file(t5_spiece)


def given_rows(seed: int, *, rows: tuple[tuple[str, str], ...]) -> Iterator[tuple[str, Row]]:
    del seed
    for number, (inputs, targets) in enumerate(rows, 1):
        yield f"made_up:{number}", {"inputs": inputs, "targets": targets}


def render(row: Row, context: Context) -> Text | None:
    if row["inputs"] == "leave out":
        return None
    return Text(inputs=text_field(row, "inputs", context.place), targets=text_field(row, "targets", context.place))


def shown(vocabulary: Vocabulary, *pairs: tuple[str, str], **options: object) -> list[PreviewedRow]:
    task = TextTask(name="made_up", source={"train": functools.partial(given_rows, rows=pairs)}, render=render)
    rows = first_rows(task, "train", len(pairs), seed=0).rows
    return preview(task, "train", rows, vocabulary=vocabulary, seed=0, **options)


def test_an_example_literally(t5: Vocabulary) -> None:
    (row,) = shown(t5, ("Are {x} good?\nYes", "good"), row_lengths=(16, 8))
    assert row.inputs == tuple(
        Span(text, kind, segment=1, weight=0)
        for text, kind in [
            ("Are", "piece"),
            (" ", "piece"),
            ("{", "unknown"),
            ("x", "piece"),
            ("}", "unknown"),
            (" good", "piece"),
            ("?", "piece"),
            ("\nYes", "space"),
            ("", "end"),
        ]
    )
    assert row.targets == (Span("good", "piece", segment=1, weight=1), Span("", "end", segment=1, weight=1))
    assert row.padding == (7, 6)
    (example,) = row.examples
    assert (example.number, example.place, example.segment, example.truncated) == (0, "made_up:1", 1, False)
    assert example.text.inputs == "Are {x} good?\nYes"


def test_examples_share_a_row_with_segments_of_their_own(t5: Vocabulary) -> None:
    (row,) = shown(t5, ("one", "a"), ("leave out", ""), ("two three", "b c"), row_lengths=(32, 16))
    assert [(one.number, one.place, one.segment) for one in row.examples] == [(0, "made_up:1", 1), (2, "made_up:3", 2)]
    for side, texts in ((row.inputs, ("one", "two three")), (row.targets, ("a", "b c"))):
        for segment, text in enumerate(texts, 1):
            assert "".join(span.text for span in side if span.segment == segment) == text
    assert {span.weight for span in row.inputs} == {0}
    assert {span.weight for span in row.targets} == {1}
    apart = shown(t5, ("one", "a"), ("two three", "b c"), row_lengths=(32, 16), pack=False)
    assert [[one.number for one in row.examples] for row in apart] == [[0], [1]]


def test_what_does_not_fit_is_cut_as_the_loader_cuts_it(t5: Vocabulary) -> None:
    (row,) = shown(t5, ("one two three four five six", "a"), row_lengths=(4, 2))
    assert [span.text for span in row.inputs] == ["one", " two", " three", ""]
    assert row.inputs[-1].kind == "end"
    assert row.examples[0].truncated
    with pytest.raises(PackingError, match="targets=1"):
        shown(t5, ("one", "a"), row_lengths=(4, 1))


def test_no_examples(t5: Vocabulary) -> None:
    assert shown(t5) == []
    assert shown(t5, ("leave out", "")) == []


def test_malformed_rows_follow_the_policy(t5: Vocabulary) -> None:
    pairs = (("fine", "a"), ("not fine", 3))
    with pytest.raises(BadRow, match="made_up:2: field 'targets' must be a string"):
        shown(t5, *pairs)
    with bad_row_policy("skip") as bad:
        assert len(shown(t5, *pairs)) == 1
    assert bad.skipped == 1


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@settings(max_examples=80, deadline=None)
@given(pairs=st.lists(st.tuples(texts, texts), min_size=1, max_size=5))
def test_spans_are_the_tokens_that_are_encoded(t5: Vocabulary, pairs: list[tuple[str, str]]) -> None:
    rows = shown(t5, *pairs)
    examples = sorted((example.number, row, example) for row in rows for example in row.examples)
    assert [number for number, _, _ in examples] == list(range(len(pairs)))
    for number, row, example in examples:
        for side, text in ((row.inputs, pairs[number][0]), (row.targets, pairs[number][1])):
            spans = [span for span in side if span.segment == example.segment]
            ids = t5.encode(text)
            assert [span.kind == "unknown" for span in spans[:-1]] == [token == t5.unk_id for token in ids]
            assert spans[-1].kind == "end"
            assert "".join(span.text for span in spans) in text


def test_alpaca(t5: Vocabulary, test_data: Path) -> None:
    records = [row for _, row in read_records(test_data / "alpaca" / "alpaca_tiny.json")][:40]
    rows = shown(t5, *((row["instruction"], row["output"]) for row in records))
    assert sum(len(row.examples) for row in rows) == 40
    used = np.sum([len(row.inputs) for row in rows])
    assert used == sum(len(t5.encode(row["instruction"])) + 1 for row in records)
