"""Fields of published rows, checked: the same thing may have another name, place or type in another copy of a dataset.

    text_of({"passage": "..."}, "context/passage", place)         the first of the names that there is
    texts_of({"answers": {"text": ["a"]}}, "answers.text", place)     a path
    label_of({"label": "entailment"}, "label", LABELS, place)        a number, from its name or its number

Each raises BadRow with the place, the field and an excerpt of the row.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from flanjax.data.sources import BadRow, excerpt, text_field
from flanjax.data.tasks import Row


def find(row: Row, names: str, place: str) -> Any:
    """The value under the first of "a/b" that the row has, each of which may be a path such as "answers.text".

    Raises:
        BadRow: it has none of them.
    """
    for path in names.split("/"):
        value: Any = row
        for name in path.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        if value is not None:
            return value
    raise BadRow(f"{place}: field {names.replace('/', ' or ')!r} is missing: {excerpt(row)}")


def text_of(row: Row, names: str, place: str) -> str:
    """The string under one of the names; raises BadRow."""
    return text_field({names: find(row, names, place)}, names, place)


def texts_of(row: Row, names: str, place: str) -> list[str]:
    """The strings of the list under one of the names; raises BadRow."""
    values = find(row, names, place)
    if not isinstance(values, list):
        raise BadRow(f"{place}: field {names!r} must be a list, not {type(values).__name__}: {excerpt(row)}")
    return [text_field({f"{names}[{index}]": value}, f"{names}[{index}]", place) for index, value in enumerate(values)]


def number_of(row: Row, names: str, place: str) -> float:
    """The number under one of the names, which a CSV file has as text; raises BadRow."""
    value = find(row, names, place)
    try:
        number = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not math.isfinite(number):
        raise BadRow(f"{place}: field {names!r} must be a number: {excerpt(row)}")
    return number


def label_of(row: Row, names: str, labels: Sequence[str], place: str) -> int | None:
    """The number of a label, which may be published as its number, its name, or a truth value; None: unlabelled.

    Raises:
        BadRow: it is none of the labels.
    """
    value = find(row, names, place)
    if isinstance(value, bool):
        value = str(value)
    if isinstance(value, str) and value in labels:
        return labels.index(value)
    if value in (-1, "-1", "-", ""):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if isinstance(value, int) and 0 <= value < len(labels):
        return value
    raise BadRow(f"{place}: field {names!r} must be one of {', '.join(labels)}, or its number: {excerpt(row)}")


def one_of(options: Sequence[str], index: int | None, place: str) -> dict[str, Any] | None:
    """Options, and the answer among them; None without a label.

    Raises:
        BadRow: there is no such option.
    """
    if index is None:
        return None
    if not 0 <= index < len(options):
        raise BadRow(f"{place}: the answer is option {index + 1} of {len(options)}: {excerpt(list(options))}")
    return {"options": list(options), "answer": options[index]}


def first_of(answers: Sequence[str], place: str) -> dict[str, Any]:
    """The first answer, and all of them.

    Raises:
        BadRow: there is none.
    """
    if not answers:
        raise BadRow(f"{place}: there is no answer")
    return {"answer": answers[0], "answers": list(answers)}
