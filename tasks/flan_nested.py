"""Datasets whose published files nest what TFDS publishes as rows: MultiRC and ReCoRD of SuperGLUE, QuAC.

Each function takes a record and its place and gives rows in the format of TFDS; a record that is such a row already is
given as it is. Malformed ones are reported as the policy says.
"""

from collections.abc import Callable, Iterator
from typing import Any

from flanjax.tasks.flan_fields import find, text_of, texts_of

from flanjax.data.sources import BadRow, excerpt, report_bad_row
from flanjax.data.tasks import Row


def multirc(record: Row, place: str) -> Iterator[Row]:
    """{"passage": {"text", "questions": [{"question", "answers": [{"text", "label"}]}]}}, an answer a row."""
    return _reported(_multirc, record, place)


def record(record: Row, place: str) -> Iterator[Row]:
    """{"passage": {"text", "entities": [{"start", "end"}]}, "qas": [{"query", "answers"}]}, a query a row."""
    return _reported(_record, record, place)


def quac(record: Row, place: str) -> Iterator[Row]:
    """{"context", "questions": [...], "orig_answers": {"texts": [...]}}, a question a row."""
    return _reported(_quac, record, place)


def _reported(rows: Callable[[Row, str], list[Row]], record: Row, place: str) -> Iterator[Row]:
    try:
        yield from rows(record, place)
    except BadRow as error:
        report_bad_row(error)


def _multirc(record: Row, place: str) -> list[Row]:
    if "passage" not in record:
        return [record]
    paragraph = text_of(record, "passage.text", place)
    return [
        {"paragraph": paragraph, "question": find(asked, "question", place), "answer": answer.get("text")}
        | ({"label": answer["label"]} if "label" in answer else {})
        for asked in _objects(record, "passage.questions", place)
        for answer in _objects(asked, "answers", place)
    ]


def _record(record: Row, place: str) -> list[Row]:
    if "qas" not in record:
        return [record]
    passage = text_of(record, "passage.text", place)
    entities = [_span(passage, entity, place) for entity in _objects(record, "passage.entities", place)]
    return [
        {
            "passage": passage,
            "query": find(asked, "query", place),
            "entities": list(dict.fromkeys(entities)),
            "answers": [
                text_of(answer, "text", place) for answer in _objects({"answers": [], **asked}, "answers", place)
            ],
        }
        for asked in _objects(record, "qas", place)
    ]


def _span(passage: str, entity: Row, place: str) -> str:
    start, end = (find(entity, name, place) for name in ("start", "end"))
    if not (isinstance(start, int) and isinstance(end, int) and 0 <= start <= end < len(passage)):
        raise BadRow(f"{place}: an entity from {start} to {end} is not in the passage: {excerpt(passage)}")
    return passage[start : end + 1]


def _quac(record: Row, place: str) -> list[Row]:
    if "questions" not in record:
        return [record]
    context = text_of(record, "context", place)
    questions, answers = texts_of(record, "questions", place), texts_of(record, "orig_answers.texts", place)
    if len(questions) != len(answers):
        raise BadRow(f"{place}: {len(questions)} questions and {len(answers)} answers: {excerpt(record)}")
    said = [turn for pair in zip(questions, answers, strict=True) for turn in pair]
    return [
        {
            "context": context,
            "history": said[: 2 * turn],
            "question": question,
            "orig_answer": {"text": answers[turn]},
        }
        for turn, question in enumerate(questions)
    ]


def _objects(row: Row, path: str, place: str) -> list[dict[str, Any]]:
    values = find(row, path, place)
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise BadRow(f"{place}: field {path!r} must be a list of objects: {excerpt(row)}")
    return values
