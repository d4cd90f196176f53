"""The forms that records of instruction data have: which one a record has, and what it says.

    schema = detect({"instruction": "Add.", "input": "1, 2", "output": "3"}, "sums.json:2")
    str(schema)                        "Alpaca form (instruction, input, output)"
    schema.read(record, place)         Pair(instruction="Add.", input="1, 2", output="3"), or a Conversation

    instruction, output                Alpaca; also instruction, response (Dolly), input, output, and question or query
                                       with answer or response
    prompt, completion                 also prompt, response; a preference's prompt, chosen, of which chosen is learnt
    inputs, targets                    also inputs_pretokenized, targets_pretokenized, as P3 has them
    conversations, messages            turns {from, value} (ShareGPT) or {role, content}, or strings in turn (LIMA);
                                       with chosen, that is the last turn

Any of them may have a system text (`system`, `system_prompt`), `tools` and what was said before (`history`, pairs of
texts), and those without turns may have context (`input`, `context`). A text alone is refused: nothing in it says what
is asked and what answered.
"""

import difflib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from flanjax.data.sources import BadRow, excerpt, text_field
from flanjax.data.tasks import Turn
from flanjax.errors import FlanjaxError, nearest


class SchemaError(FlanjaxError):
    """A record of no known form, or names of columns that it does not have."""


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """Turns in order, a system turn first where there is one; at least one is the assistant's.

    The first `given` turns are there to be answered only: what the assistant says in them is not to be learnt.
    """

    turns: tuple[Turn, ...]
    given: int = 0


@dataclass(frozen=True, kw_only=True)
class Pair:
    """An instruction, what it is about (empty where it needs nothing), and the output."""

    instruction: str
    input: str = ""
    output: str
    system: str = ""


ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bard", "bing", "model", "chatbot"), "assistant"),
    # A call of a tool is the model's to write, and what the tool says is given to it.
    **dict.fromkeys(("function_call", "tool_call"), "assistant"),
    **dict.fromkeys(("observation", "function", "function_response", "tool", "tool_response"), "tool"),
}

_CONTEXT = ("input", "context")
_SYSTEM = ("system", "system_prompt")
_OTHERS = (*_SYSTEM, "history", "tools")
_CHATS = ("conversations", "messages", "conversation")
_CHOICES = ("choices", "options")
_TEXTS = ("text", "content", "document")


@dataclass(frozen=True, kw_only=True)
class Schema:
    """One form of record.

    Attributes:
        name: what people call it.
        prompt: the column of what is asked, or of the turns.
        reply: the column of the answer; empty where the turns have it.
        fields: the record's own names of columns, by the names here.
        columns: those that the record had in which the form was found.
    """

    name: str
    prompt: str
    reply: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)
    columns: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} form ({', '.join(self.columns or self._required)})"

    @property
    def _required(self) -> tuple[str, ...]:
        return (self.prompt, self.reply) if self.reply else (self.prompt,)

    @property
    def _context(self) -> tuple[str, ...]:
        return () if self.prompt in _CHATS else tuple(name for name in _CONTEXT if name not in self._required)

    def read(self, record: Mapping[str, Any], place: str) -> Pair | Conversation:
        """What a record says.

        Raises:
            BadRow: it is not of this form; the message has the place and the field.
        """
        for name in self._required:
            if self._column(name) not in record:
                raise BadRow(f"{place}: field {self._column(name)!r} is missing, of the {self}: {excerpt(record)}")
        context = [text for name in self._context if (text := self._text(record, name, place))]
        system = "\n\n".join(filter(None, (self._text(record, name, place) for name in (*_SYSTEM, "tools"))))
        prompt, reply = record[self._column(self.prompt)], record[self._column(self.reply)] if self.reply else None
        history = record.get(self._column("history")) or []
        if self.reply and not history and not any(isinstance(value, list | dict) for value in (prompt, reply)):
            instruction, output = (text_field(record, self._column(name), place) for name in self._required)
            return Pair(instruction=instruction, input="\n\n".join(context), output=output, system=system)
        turns = [Turn(role="system", text=system)] if system else []
        turns += _pairs(history, place)
        asked = self._asked(prompt, f"{place}, {self._column(self.prompt)}")
        if context:
            asked[-1] = replace(asked[-1], text="\n\n".join((asked[-1].text, *context)))
        answered = _turns(reply, "assistant", f"{place}, {self._column(self.reply)}") if self.reply else []
        again = bool(answered) and answered[0].role != "assistant"  # the reply is the whole conversation
        turns += answered if again else asked + answered
        if all(turn.role != "assistant" for turn in turns):
            raise BadRow(f"{place}: no turn is the assistant's: {excerpt(record)}")
        given = 0 if history or not self.reply else len(turns) - (1 if again else len(answered))
        return Conversation(turns=tuple(turns), given=given)

    def _asked(self, prompt: Any, place: str) -> list[Turn]:
        if self.prompt in _CHATS and isinstance(prompt, list) and prompt and isinstance(prompt[0], str):
            return _in_turn(prompt, place)
        return _turns(prompt, "user", place)

    def _column(self, name: str) -> str:
        return self.fields.get(name, name)

    def _text(self, record: Mapping[str, Any], name: str, place: str) -> str:
        """The text of an optional column; empty where there is none."""
        if name == "tools" and isinstance(value := record.get(self._column(name)), list | dict):
            return json.dumps(value, ensure_ascii=False, default=str) if value else ""
        return optional_text(record, self._column(name), place)


_FORMS = (
    Schema(name="Alpaca", prompt="instruction", reply="output"),
    Schema(name="Dolly", prompt="instruction", reply="response"),
    Schema(name="preference", prompt="prompt", reply="chosen"),
    *(Schema(name="preference", prompt=chat, reply="chosen") for chat in _CHATS),
    *(Schema(name="chat", prompt=chat) for chat in _CHATS),
    Schema(name="prompt/completion", prompt="prompt", reply="completion"),
    Schema(name="prompt/response", prompt="prompt", reply="response"),
    Schema(name="P3", prompt="inputs_pretokenized", reply="targets_pretokenized"),
    Schema(name="inputs/targets", prompt="inputs", reply="targets"),
    Schema(name="question/answer", prompt="question", reply="answer"),
    Schema(name="question/response", prompt="question", reply="response"),
    Schema(name="query/response", prompt="query", reply="response"),
    Schema(name="input/output", prompt="input", reply="output"),
)


def optional_text(record: Mapping[str, Any], name: str, place: str) -> str:
    """A text that need not be there, or may be null; raises BadRow for anything else but a string."""
    return text_field(record, name, place) if record.get(name) is not None else ""


def detect(record: Mapping[str, Any], place: str = "the record", fields: Mapping[str, str] | None = None) -> Schema:
    """The form of a record, by its columns.

    Args:
        record: one as it was read.
        place: where it was read, for errors.
        fields: its names of columns, by the names that the forms have: {"output": "answer"}.

    Raises:
        SchemaError: no form has these columns; the message has the reason and the nearest form.
    """
    fields = dict(fields or {})
    known = dict.fromkeys(name for form in _FORMS for name in (*form._required, *_CONTEXT, *_OTHERS))
    for name, column in fields.items():
        if name not in known:
            raise SchemaError(
                f"fields: {name!r} is no column of any form{nearest(name, known)}; {', '.join(known)} are"
            )
        if column not in record:
            raise SchemaError(f"{place} has no column {column!r}{nearest(column, record)}: {', '.join(record)}")
    names = {*record, *fields} - ({*fields.values()} - {*fields})
    for form in _FORMS:
        if not names.issuperset(form._required):
            continue
        if form.prompt in ("question", "query") and (lost := names.intersection(_CHOICES)):
            raise SchemaError(
                f"{place} has a question with {min(lost)}, which the {form} has no place for: write them into the "
                "question first"
            )
        used = (*form._required, *(name for name in (*form._context, *_OTHERS) if name in names))
        columns = tuple(sorted((fields.get(name, name) for name in used), key=list(record).index))
        name = _chat_name(record[fields.get(form.prompt, form.prompt)]) if form.name == "chat" else form.name
        return replace(form, name=name, fields=fields, columns=columns)
    raise SchemaError(f"{place}: {_reason(names)}; the record's columns: {', '.join(map(str, record)) or 'none'}")


def _reason(names: Iterable[str]) -> str:
    """Why there is no form with these columns."""
    names = set(names)
    if (texts := names.intersection(_TEXTS)) and all(names.isdisjoint(form._required) for form in _FORMS):
        return f"it is plain text ({min(texts)}), in which nothing says what is asked and what is to be answered"
    form = max(_FORMS, key=lambda form: _likeness(form, names))
    lacks = [name for name in form._required if name not in names]
    return (
        f"it has no known form; the nearest is the {form}, for which it lacks "
        f"{', '.join(repr(name) + nearest(name, names) for name in lacks)}. Your own names can be told: "
        f'fields={{"{lacks[-1]}": "its name in your file"}}'
    )


def _likeness(form: Schema, names: Iterable[str]) -> float:
    """How near names come to the columns that a form has to have: 1 where all are there."""
    best = [max((_ratio(name, other.lower()) for other in names), default=0.0) for name in form._required]
    return sum(best) / len(best)


def _ratio(name: str, other: str) -> float:
    return difflib.SequenceMatcher(None, name, other).ratio()


def _chat_name(turns: Any) -> str:
    """What a form of turns is called."""
    first = turns[0] if isinstance(turns, list) and turns else None
    if isinstance(first, str):
        return "LIMA"
    return "ShareGPT" if isinstance(first, Mapping) and "from" in first else "messages"


def _turns(value: Any, role: str, place: str) -> list[Turn]:
    """The turns in a value: a text in the given role, one turn, or several."""
    if isinstance(value, str):
        return [Turn(role=role, text=text_field({role: value}, role, place))]
    if isinstance(value, Mapping):
        return [_turn(value, place)]
    if not isinstance(value, list) or not value:
        raise BadRow(f"{place}: a text or turns are expected: {excerpt(value)}")
    return [_turn(turn, f"{place}[{number}]") for number, turn in enumerate(value)]


def _in_turn(texts: Sequence[Any], place: str) -> list[Turn]:
    """Texts of which the user says the first, the assistant the second, and so on."""
    roles = itertools.cycle(("user", "assistant"))
    said = zip(texts, roles, itertools.count())
    return [Turn(role=role, text=text_field({role: text}, role, f"{place}[{at}]")) for text, role, at in said]


def _turn(turn: Any, place: str) -> Turn:
    if not isinstance(turn, Mapping):
        raise BadRow(f"{place}: a turn is expected, {{from, value}} or {{role, content}}: {excerpt(turn)}")
    who, what = ("from", "value") if "from" in turn else ("role", "content")
    role = text_field(turn, who, place)
    if role not in ROLES:
        raise BadRow(f"{place}: {who} {role!r} is no known role{nearest(role, ROLES)}: {excerpt(turn)}")
    if isinstance(turn.get(what), list):
        return Turn(role=ROLES[role], text="".join(_part(part, place) for part in turn[what]))
    return Turn(role=ROLES[role], text=text_field(turn, what, place))


def _part(part: Any, place: str) -> str:
    """The text of one part of a content."""
    if not isinstance(part, Mapping) or part.get("type") != "text":
        raise BadRow(f"{place}: a part of the content is not text: {excerpt(part)}")
    return text_field(part, "value" if "value" in part else "text", place)


def _pairs(history: Any, place: str) -> list[Turn]:
    """The turns before the last exchange, given as pairs of texts."""
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise BadRow(f"{place}: field 'history' must be pairs of texts: {excerpt(history)}")
    return _in_turn([text for pair in history for text in pair], f"{place}, history")
