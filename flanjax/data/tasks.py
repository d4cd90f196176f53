"""Text tasks: the rows of a published dataset in, {inputs, targets} text out, in plain Python.

A family module of `tasks/` says what it has without reading anything:

    def family(data_dir: str = "") -> Family:
        source = {"train": functools.partial(read_dolly, dataset_folder("dolly", data_dir))}
        return Family(tasks=[TextTask(name="dolly", source=source, render=render)], mixtures={"dolly": {"dolly": 1.0}})

A source gives (place, row) pairs, the place being "file:line"; `render(row, context)` makes the text of one row. What
it draws comes from `context.draw`, which is a function of the seed, the task, the split and the number of the row: the
same seed gives the same bytes on any machine, in any number of processes. Materialising runs this without TensorFlow;
`flanjax.data.seqio_tasks` makes an ordinary seqio Task of it, which takes its seed from seqio and gives the same text.
"""

import dataclasses
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from flanjax.data.draws import Draw
from flanjax.data.sources import BadRow, excerpt
from flanjax.errors import FlanjaxError

T = TypeVar("T")
Row = Mapping[str, Any]  # a record as it was published: what JSON can hold
Rows = Callable[[int], Iterator[tuple[str, Row]]]  # seed -> (place, row) pairs, in file order

DATA_DIR_VARIABLE = "FLANJAX_DATA_DIR"


class Tokenizer(Protocol):
    """What a render function may ask of the run's vocabulary: to count tokens, or to cut a text at some."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without an end-of-sequence id."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """What beside its row decides a text: random choices, the split, the run's vocabulary, and the place for errors."""

    draw: Draw
    split: str
    tokenizer: Tokenizer
    seed: int
    place: str
    chat: bool = False  # a chat template makes the text of conversations, and their history is not cut here


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What one side of a conversation says.

    Attributes:
        role: "system", "user", "assistant" or "tool".
        text: what is said.
        learnt: of the assistant's: whether it is to be learnt, or was only there to be answered.
    """

    role: str
    text: str
    learnt: bool = True


@dataclass(frozen=True, kw_only=True)
class Text:
    """An input and its target; `references` are all accepted answers, where there are others than the target.

    `turns` is the conversation that they are from. Where there is none, they are one: a question and its answer.
    """

    inputs: str
    targets: str
    references: tuple[str, ...] = ()
    id: str = ""
    turns: tuple[Turn, ...] = ()

    @property
    def conversation(self) -> tuple[Turn, ...]:
        """The turns, for a chat template."""
        return self.turns or (Turn(role="user", text=self.inputs), Turn(role="assistant", text=self.targets))


Render = Callable[[Row, Context], Text | None]


@dataclass(frozen=True, kw_only=True)
class TextTask:
    """One task: where its rows come from, split by split, and how a row becomes text.

    Attributes:
        name: letters, digits and _ . : only, as seqio wants it.
        source: split -> its rows. Nothing is read before they are asked for.
        render: the text of a row; None leaves the row out. It may raise BadRow, and may take any row that JSON can
            hold: what else it raises is reported as a bad row, with its place.
        whole: whether rows that are replies of one conversation may become one example of a chat
            (`flanjax.data.conversations.whole_conversations`).
        metric_fns: seqio metrics over (references, predictions), for a T5X evaluation.
        examples: split -> number of examples as published, where that is known before reading.
    """

    name: str
    source: Mapping[str, Rows]
    render: Render
    whole: bool = True
    metric_fns: tuple[Callable[..., Mapping[str, float]], ...] = ()
    examples: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits."""
        return tuple(self.source)

    def text(
        self, row: Row, number: int, place: str, *, split: str, seed: int, tokenizer: Tokenizer, chat: bool = False
    ) -> Text | None:
        """The text of row `number` of a split; None where the task leaves it out.

        Raises:
            BadRow: the row is not what the task expects; the message has its place.
        """
        draw = Draw(seed, self.name, split, number)
        context = Context(draw=draw, split=split, tokenizer=tokenizer, seed=seed, place=place, chat=chat)
        try:
            text = self.render(row, context)
            if text is not None:
                said = (turn.text for turn in text.turns)
                "\0".join((text.inputs, text.targets, *text.references, *said)).encode()
        except FlanjaxError:
            raise
        except UnicodeEncodeError as error:
            # JSON can say \ud800, which is half of a character.
            half = f"\\u{ord(error.object[error.start]):04x}"
            raise BadRow(f"{place}: it has {half}, half of a character: {excerpt(row)}") from error
        except Exception as error:
            raise BadRow(f"{place}: {type(error).__name__}: {error}: {excerpt(row)}") from error
        return text


@dataclass(frozen=True, kw_only=True)
class Download:
    """One file of a dataset at its official address.

    Attributes:
        url: https, gs or hf.
        file: where it goes in the dataset's folder; an archive is unpacked into that folder when `unpack` is set.
        sha256: hex digest; None where nobody publishes one, and then the first download is remembered.
        unpack: a zip or tar archive.
    """

    url: str
    file: str
    sha256: str | None = None
    unpack: bool = False


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """What is known of a published dataset, for people to read and for `fetch`.

    Attributes:
        name: as in `fetch NAME`; its folder is `dataset_folder(name)`.
        title: one line.
        paper: where it is described, with its number of examples in `size` as that counts them.
        licence: of the data, as published.
        page: its home.
        downloads: its files; none where they have to be asked for, and `page` says how.
        tested_on: "published file" or "hand-made file of the published schema".
    """

    name: str
    title: str
    paper: str
    licence: str
    page: str
    size: str = ""
    downloads: tuple[Download, ...] = ()
    tested_on: str = "published file"


@dataclass(frozen=True, kw_only=True)
class Family:
    """The tasks of a module, its mixtures (task -> rate, or None for the number of examples), and its datasets."""

    tasks: Sequence[TextTask]
    mixtures: Mapping[str, Mapping[str, float | None]]
    datasets: Sequence[Dataset] = ()


def dataset_folder(name: str, data_dir: str = "") -> str:
    """Where a dataset lies: `data_dir` where it is given, or else $FLANJAX_DATA_DIR/<name>, or data/<name>.

    An address such as "hf://datasets/user/name" or "https://..." is a folder as well.
    """
    if data_dir:
        return data_dir if "://" in data_dir else os.path.expanduser(data_dir)
    return str(Path(os.environ.get(DATA_DIR_VARIABLE, "data")) / name)


def take(rows: Iterable[T], count: int) -> Iterator[T]:
    """The first `count`."""
    return itertools.islice(rows, count)


def all_but_last(rows: Iterable[T], count: int) -> Iterator[T]:
    """All but the last `count`, of which no more are held at a time."""
    held: deque[T] = deque()
    for row in rows:
        held.append(row)
        if len(held) > count:
            yield held.popleft()


def last(rows: Iterable[T], count: int) -> Iterator[T]:
    """The last `count`."""
    return iter(deque(rows, maxlen=count))


def with_validation(rows: Rows, every: int = 100) -> dict[str, Rows]:
    """Splits for a dataset that has none: each `every`-th row, from the first on, is validation, the others train."""

    return {"train": _Part(rows, every, validation=False), "validation": _Part(rows, every, validation=True)}


@dataclass(frozen=True)
class _Part:
    """One side of `with_validation`."""

    rows: Rows
    every: int
    validation: bool

    def __call__(self, seed: int) -> Iterator[tuple[str, Row]]:
        numbered = enumerate(self.rows(seed))
        return (pair for number, pair in numbered if (number % self.every == 0) == self.validation)
