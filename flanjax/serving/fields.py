"""The fields of a request's JSON object, each read once with its type and range.

    fields = Fields.of(b'{"model": "m", "temperature": 0.5}')
    fields.number("temperature", 1.0, least=0)      # 0.5
    fields.text("model", "")                        # "m"
    fields.close()                                  # refuses what nobody has asked for

As in the API, null stands for a field that is not there.
"""

import json
import math
import sys
from collections.abc import Mapping
from typing import Any, NoReturn, TypeVar

from flanjax.errors import nearest
from flanjax.serving.errors import ApiError

D = TypeVar("D")

_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "an object",
}
_SHOWN = 100  # characters of a value in a message


class Fields:
    """A JSON object whose fields are read by name.

    Arguments:
      values: the object.
      place: what stands before names in messages, such as "messages[0].".
    """

    def __init__(self, values: Mapping[str, Any], place: str = ""):
        self._values = {name: value for name, value in values.items() if value is not None}
        self._place = place
        self._known: set[str] = set()

    @classmethod
    def of(cls, body: bytes) -> "Fields":
        """The object that a request's body is.

        Raises:
          ApiError: it is no JSON, no object, or has half of a surrogate pair in a text.
        """
        try:
            values = json.loads(body, parse_constant=_no_number)
            json.dumps(values, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            raise ApiError(400, f"the body is not valid JSON: {error}") from error
        if not isinstance(values, dict):
            raise ApiError(400, f"the body is {shown(values)}: it must be a JSON object")
        return cls(values)

    def get(self, name: str, *kinds: type) -> Any:
        """The value of a field, which is of one of the kinds; None where there is none."""
        self._known.add(name)
        value = self._values.get(name)
        if value is not None and not any(_is(value, kind) for kind in kinds):
            self.refuse(name, " or ".join(_KINDS[kind] for kind in kinds))
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """True or false."""
        value = self.get(name, bool)
        return default if value is None else value

    def text(self, name: str, default: D) -> str | D:
        """A text."""
        value = self.get(name, str)
        return default if value is None else value

    def whole(self, name: str, default: D, *, least: int, most: int | None = None) -> int | D:
        """A whole number in a range."""
        value = self.get(name, int)
        if value is not None and (value < least or (most is not None and value > most)):
            self.refuse(name, f"at least {least}" if most is None else f"from {least} to {most}")
        return default if value is None else value

    def number(self, name: str, default: float, *, least: float, most: float = math.inf) -> float:
        """A finite number in a range."""
        value = self.get(name, float)
        if value is not None and not least <= value <= min(most, sys.float_info.max):
            self.refuse(name, f"at least {least}" if most == math.inf else f"from {least} to {most}")
        return default if value is None else float(value)

    def require_unused(self, name: str, why: str, *harmless: Any) -> None:
        """Refuses a field whose value is none of the harmless ones."""
        self._known.add(name)
        value = self._values.get(name)
        if value is not None and not any(type(value) is type(one) and value == one for one in harmless):
            raise ApiError(400, f"{self._place}{name} is {shown(value)}: {why}", param=f"{self._place}{name}")

    def ignore(self, *names: str) -> None:
        """Fields that change nothing here."""
        self._known.update(names)

    def refuse(self, name: str, wanted: str) -> NoReturn:
        """Says what a field must be.

        Raises:
          ApiError: always.
        """
        value, name = self._values.get(name), f"{self._place}{name}"
        if value is None:
            raise ApiError(400, f"{name} is missing: it must be {wanted}", param=name)
        raise ApiError(400, f"{name} is {shown(value)}: it must be {wanted}", param=name)

    def close(self) -> None:
        """Refuses fields that were not asked for: a misspelt one would do nothing without a word."""
        for name in self._values:
            if name not in self._known:
                near = nearest(name, self._known)
                raise ApiError(400, f"{self._place}{name}: there is no such field{near}", param=f"{self._place}{name}")


def shown(value: Any) -> str:
    """A value for a message, not all of a long one."""
    text = json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def _is(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float) if kind is float else isinstance(value, kind)


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")
