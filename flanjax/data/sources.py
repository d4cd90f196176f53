"""Malformed rows: errors that name the file, the line and the field, and a policy for what becomes of them.

A reader raises `BadRow`, or calls `report_bad_row`, which raises it under the policy "error" and counts it under
"skip". Materialising sets the policy for as long as a task is read (`bad_row_policy`); outside of it rows are strict.
"""

import contextlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from flanjax.errors import FlanjaxError

POLICIES = ("error", "skip")


class BadRow(FlanjaxError):
    """A row that is not what its reader expects; the message has the place, the field and an excerpt."""


@dataclass(kw_only=True)
class BadRows:
    """What became of the malformed rows while a policy was in force."""

    policy: str = "error"
    skipped: int = 0
    first: list[str] = field(default_factory=list)
    error: BadRow | None = None


# Of each thread that has one of its own; readers of seqio tasks run in TensorFlow's threads and see the last one set.
_current = BadRows()
_of_thread = threading.local()


def check_policy(policy: str) -> None:
    """Raises FlanjaxError for anything but "error" and "skip"."""
    if policy not in POLICIES:
        raise FlanjaxError(f"on_bad_row={policy!r} is not a policy: give one of {', '.join(POLICIES)}")


@contextlib.contextmanager
def bad_row_policy(policy: str | BadRows) -> Iterator[BadRows]:
    """Sets the policy, "error" or "skip", and yields the record that fills as rows are read.

    A record that was begun before is given in place of the policy to go on with.
    """
    global _current
    if isinstance(policy, str):
        check_policy(policy)
        policy = BadRows(policy=policy)
    before, before_here = _current, getattr(_of_thread, "current", None)
    _current = _of_thread.current = policy
    try:
        yield policy
    finally:
        _current, _of_thread.current = before, before_here


def report_bad_row(error: BadRow, *, always: bool = False) -> None:
    """Raises the error, or counts it, as the policy says; `always` raises it: a whole file cannot be skipped."""
    current = getattr(_of_thread, "current", None) or _current
    if always or current.policy == "error":
        current.error = error
        raise error
    current.skipped += 1
    if len(current.first) < 3:
        current.first.append(str(error))


def text_field(row: Mapping[str, Any], name: str, place: str) -> str:
    """A field that must be a string; raises BadRow with the place, the field and an excerpt of the row."""
    if name not in row:
        raise BadRow(f"{place}: field {name!r} is missing: {excerpt(row)}")
    if not isinstance(row[name], str):
        raise BadRow(f"{place}: field {name!r} must be a string, not {type(row[name]).__name__}: {excerpt(row)}")
    try:
        row[name].encode()
    except UnicodeEncodeError as error:
        # JSON can say \ud800, which is half of a character.
        half = f"\\u{ord(row[name][error.start]):04x}"
        raise BadRow(f"{place}: field {name!r} has {half}, half of a character: {excerpt(row)}") from error
    return row[name]


def excerpt(content: Any) -> str:
    """The beginning of a row or a text, for a message."""
    text = content if isinstance(content, str) else repr(content)
    return text.strip()[:80] + ("..." if len(text.strip()) > 80 else "")
