"""Values chosen by regular expressions of paths: the first pattern that matches the whole of a path decides.

    {".*/wo": 16, "decoder/.*": 4}       wo of both stacks has 16, what else is in the decoder 4, the rest the default

They are kept as a tuple of pairs: hashable, and in the given order even after a detour through JSON.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from flanjax.errors import FlanjaxError, nearest

Patterns = tuple[tuple[str, Any], ...]
Value = TypeVar("Value")


def as_patterns(given: Mapping[str, Any] | Iterable[tuple[str, Any]], name: str, error: type[FlanjaxError]) -> Patterns:
    """A mapping, or the pairs of one, as a tuple of pairs.

    Arguments:
      given: of regular expressions to values.
      name: what it is called where it was given, for the message.
      error: raised where there are no pairs, or a pattern is none.
    """
    try:
        pairs = tuple((pattern, value) for pattern, value in (given.items() if isinstance(given, Mapping) else given))
    except (TypeError, ValueError) as failure:
        raise error(f"{name} is {given!r}: it must map regular expressions to values, {{'.*/wo': 16}}") from failure
    for pattern, _ in pairs:
        check_pattern(pattern, name, error)
    return pairs


def check_pattern(pattern: Any, name: str, error: type[FlanjaxError]) -> None:
    """Raises `error` for what is no regular expression."""
    try:
        re.compile(pattern)
    except (re.error, TypeError) as failure:
        raise error(f"{name} = {pattern!r} is no regular expression: {failure}") from failure


def decide(patterns: Patterns, path: str, default: Value) -> Value:
    """The value of the first pattern that matches the whole path."""
    return next((value for pattern, value in patterns if re.fullmatch(pattern, path)), default)


def check_each_decides(patterns: Patterns, paths: Sequence[str], name: str, error: type[FlanjaxError]) -> None:
    """Raises `error` for a pattern that decides nothing: it matches no path, or only what earlier ones have matched."""
    left = list(paths)
    for pattern, _ in patterns:
        matched = {path for path in paths if re.fullmatch(pattern, path)}
        if not matched:
            raise error(unmatched(pattern, paths, name))
        if not matched & set(left):
            raise error(f"{name}: {pattern!r} decides nothing, for patterns before it match all that it matches")
        left = [path for path in left if path not in matched]


def unmatched(pattern: Any, candidates: Sequence[str], name: str) -> str:
    """The message of a pattern that none of the candidates matches, with the nearest names."""
    last = str(pattern).rstrip("/").rpartition("/")[2].strip("()[].*$^")
    names = sorted({path.rpartition("/")[2] for path in candidates})
    return (
        f"{name} = {pattern!r} matches nothing in this model{nearest(last, names)}. A pattern has to match a whole "
        f"path, such as {candidates[0]!r} with '.*/{candidates[0].rpartition('/')[2]}'; the last parts of the paths "
        f"are {', '.join(names)}"
    )
