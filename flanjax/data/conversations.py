r"""Conversations: turns in, one training row for each reply of the assistant out, with as much history as fits.

    turns = turns_of(record["conversations"], place, role="from", text="value")
    rows = reply_rows(turns, id="a")             {"id": "a-1", "turns": [["user", "Hi"], ["assistant", "Hello!"]]}, ...
    ReplyText(max_source=512)(row, context)      inputs "User: Hi\nAssistant:", targets "Hello!"

A record with several replies is unrolled by its source, so that each reply is an example of its own and is seen once.
A chat template takes the conversation as a whole (`whole_conversations`): the same replies are learnt, each once.
"""

import bisect
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from flanjax.data.sources import BadRow, excerpt, report_bad_row, text_field
from flanjax.data.tasks import Context, Row, Rows, Text, Tokenizer, Turn

# A plain text has two sides: what a tool says is given to the assistant as what the user says is.
LABELS = {"user": "User: ", "assistant": "Assistant: ", "tool": "User: "}
CUE = "Assistant:"

# Who speaks, by the names that published conversations have for it.
SPEAKERS = {
    "system": "system",
    "tool": "tool",
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard"), "assistant"),
}


def turns_of(messages: Any, place: str, *, role: str = "role", text: str = "content") -> list[Turn]:
    """The turns of a list of messages, each an object with a field for who speaks and one for what is said.

    Raises:
        BadRow: it is no such list, or a message names a speaker that is not in `SPEAKERS`.
    """
    if not isinstance(messages, list):
        raise BadRow(f"{place}: a list of messages is expected, not {type(messages).__name__}: {excerpt(messages)}")
    turns = []
    for number, message in enumerate(messages, 1):
        where = f"{place}: message {number}"
        if not isinstance(message, dict):
            raise BadRow(f"{where}: an object is expected, not {type(message).__name__}: {excerpt(message)}")
        speaker = text_field(message, role, where)
        if speaker not in SPEAKERS:
            raise BadRow(f"{where}: field {role!r} is {speaker!r}, which is none of {', '.join(SPEAKERS)}")
        turns.append(Turn(role=SPEAKERS[speaker], text=text_field(message, text, where)))
    return turns


def row_turns(row: Row, place: str) -> list[Turn]:
    """The turns of a row that `reply_rows` made; raises BadRow where it is not of that kind."""
    pairs = row.get("turns")
    if not isinstance(pairs, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise BadRow(f"{place}: field 'turns' must be a list of [role, text] pairs: {excerpt(row)}")
    return turns_of([{"role": role, "content": text} for role, text in pairs], place)


def replies(turns: Sequence[Turn]) -> Iterator[tuple[Sequence[Turn], Turn]]:
    """(history, reply) for each turn of the assistant."""
    for number, turn in enumerate(turns):
        if turn.role == "assistant":
            yield turns[:number], turn


def reply_rows(turns: Sequence[Turn], *, id: Any = None, **metadata: Any) -> Iterator[dict[str, Any]]:
    """A row for each turn of the assistant: the turns up to it, that one included, and the metadata of them all.

    Where the conversation has an id, a row's is that and the number of the reply: "identity_0-1".
    """
    for number, (history, reply) in enumerate(replies(turns), 1):
        name = f"{id}-{number}" if id is not None else ""
        yield {"id": name, "turns": [[turn.role, turn.text] for turn in (*history, reply)], **metadata}


def whole_conversations(rows: Iterable[tuple[str, Row]]) -> Iterator[tuple[str, Row]]:
    """Rows of replies put together again, the last of each thread having what was learnt in those before it.

    A row whose turns begin with those of the row before it, at the same place, takes that one's part: its "learnt" has
    the numbers of the turns that are replies of such rows. What two threads of a tree share is learnt in the first.
    """
    held: tuple[str, Row] | None = None
    for place, row in rows:
        turns, learnt = row.get("turns"), []
        if not isinstance(turns, list):
            if held is not None:
                yield held
            held = None
            yield place, row
            continue
        if held is not None:
            before = held[1]["turns"]
            if held[0] == place and turns[: len(before)] == before:
                learnt = held[1]["learnt"]
            else:
                yield held
        held = (place, {**row, "learnt": [*learnt, len(turns) - 1]})
    if held is not None:
        yield held


def alternating(turns: Sequence[Turn]) -> bool:
    """Whether user and assistant take turns, the user first, after at most one system turn, and nobody is silent."""
    spoken = turns[1:] if turns and turns[0].role == "system" else turns
    return all(
        turn.role == ("user", "assistant")[number % 2] and bool(turn.text.strip()) for number, turn in enumerate(spoken)
    )


def history_text(turns: Sequence[Turn]) -> str:
    r"""The history as one text: a system text first, a line for each turn, and the cue for the assistant at the end.

    [system "Be brief.", user "Hi"] gives "Be brief.\nUser: Hi\nAssistant:".
    """
    system = [turn.text.strip() for turn in turns if turn.role == "system"]
    spoken = [LABELS[turn.role] + turn.text.strip() for turn in turns if turn.role != "system"]
    return "\n".join([*system, *spoken, CUE])


def fitted_history(turns: Sequence[Turn], tokenizer: Tokenizer, max_source: int) -> str:
    """`history_text` of the latest turns that fit `max_source` tokens, an end-of-sequence id included.

    The oldest turns are left out first, an answer together with its question; then the system text. The last turn of
    the user stays whole as long as it fits alone. If it does not, its beginning is cut off, as many tokens as it takes.
    """

    def fits(text: str) -> bool:
        return len(tokenizer.encode(text)) + 1 <= max_source

    system = [turn for turn in turns if turn.role == "system"]
    spoken = [turn for turn in turns if turn.role != "system"]
    starts = [number for number, turn in enumerate(spoken) if turn.role == "user"] or [0]
    histories = [[*system, *spoken[start:]] for start in starts] + [spoken[starts[-1] :]]
    found = bisect.bisect_left(histories, True, key=lambda history: fits(history_text(history)))
    if found < len(histories):
        return history_text(histories[found])
    *before, last = histories[-1] or [Turn(role="user", text="")]
    for kept in range(max_source, 0, -1):
        end = tokenizer.decode(tokenizer.encode(last.text)[-kept:])
        text = history_text([*before, dataclasses.replace(last, text=end)])
        if fits(text):
            return text
    return CUE


def pieces(turns: Sequence[Turn], tokenizer: Tokenizer, max_tokens: int) -> list[list[Turn]]:
    """A conversation in pieces of at most `max_tokens` tokens, cut where the user speaks; a system text heads them all.

    A question and its answer are never parted, even where they alone are too long.
    """
    system = [turn for turn in turns if turn.role == "system"]
    made: list[list[Turn]] = []
    room = 0
    for exchange in _exchanges([turn for turn in turns if turn.role != "system"]):
        length = sum(len(tokenizer.encode(LABELS[turn.role] + turn.text)) for turn in exchange)
        if not made or length > room:
            made.append([*system])
            room = max_tokens - sum(len(tokenizer.encode(turn.text)) for turn in system)
        made[-1] += exchange
        room -= length
    return made


@dataclass(frozen=True, kw_only=True)
class ReplyText:
    """A render function for the rows of `reply_rows`: the last turn is the target, those before it the input.

    Attributes:
        max_source: tokens of an input, its end-of-sequence id included; a chat template's history is not cut.
        max_conversation: a conversation is first cut into pieces of so many tokens, and a reply sees its own piece only
            (the `split_long_conversation` of Vicuna); None for one piece.
    """

    max_source: int = 1024
    max_conversation: int | None = None

    def __call__(self, row: Row, context: Context) -> Text:
        """The text of a row; raises BadRow where its last turn is not the assistant's."""
        turns = row_turns(row, context.place)
        if not turns or turns[-1].role != "assistant":
            raise BadRow(f"{context.place}: the last of the turns must be the assistant's: {excerpt(row)}")
        learnt = row.get("learnt", [len(turns) - 1])
        turns = [dataclasses.replace(turn, learnt=number in learnt) for number, turn in enumerate(turns)]
        if self.max_conversation is not None:
            turns = pieces(turns, context.tokenizer, self.max_conversation)[-1]
        cut = (
            history_text
            if context.chat
            else functools.partial(fitted_history, tokenizer=context.tokenizer, max_source=self.max_source)
        )
        return Text(
            inputs=cut(turns[:-1]), targets=turns[-1].text.strip(), id=str(row.get("id") or ""), turns=tuple(turns)
        )


@dataclass(frozen=True, kw_only=True)
class Unrolled:
    """A source that makes several rows of each record of another one.

    Splits are made of whole records before this, so that no reply is in training and its sequel in validation.

    Attributes:
        rows: the source of records.
        read: a record and its place -> its rows. What it raises is reported as a bad row, and none of them is given.
    """

    rows: Rows
    read: Callable[[Row, str], Iterable[Row]]

    def __call__(self, seed: int) -> Iterator[tuple[str, Row]]:
        """The rows of all records; those of one record share its place."""
        for place, record in self.rows(seed):
            try:
                made = list(self.read(record, place))
            except BadRow as error:
                report_bad_row(error)
                continue
            except Exception as error:
                report_bad_row(BadRow(f"{place}: {type(error).__name__}: {error}: {excerpt(record)}"))
                continue
            for row in made:
                yield place, row


def _exchanges(turns: Sequence[Turn]) -> Iterator[list[Turn]]:
    """What the user says with what is answered, in order."""
    exchange: list[Turn] = []
    for turn in turns:
        if turn.role == "user" and exchange:
            yield exchange
            exchange = []
        exchange.append(turn)
    if exchange:
        yield exchange
