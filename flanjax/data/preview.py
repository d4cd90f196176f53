"""Rendered examples as a model meets them: token by token, in the packed row where they land.

    for row in preview(task, "train", first_rows(task, "train", 3, seed=0).rows, vocabulary=vocabulary, seed=0):
        row.inputs     (Span("Sort", "piece", segment=1, weight=0), Span("<", "unknown", segment=1, weight=0), ...)

A span is one token: the part of the text that it stands for, and what a door may colour it by. Spans joined are the
text that was encoded. What tokens cannot say is "unknown" or "space": T5's have no `<`, no `{` and no line end.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from flanjax.data.cache import Example
from flanjax.data.chat import Chat
from flanjax.data.lengths import choose_feature_lengths
from flanjax.data.packing import Batch, RowLengths, check_row_lengths, pack_rows, plan_window, truncate
from flanjax.data.rendering import NumberedRow, texts_of
from flanjax.data.tasks import Text, TextTask
from flanjax.data.vocabularies import Vocabulary

Kind = Literal["piece", "unknown", "space", "end"]


@dataclass(frozen=True)
class Span:
    """One token.

    Attributes:
        text: the part of the text it stands for; empty for an end of sequence that no template has written.
        kind: "piece"; "unknown" where the vocabulary has no piece for it; "space" where a space stands for other white
            space; "end" for the end of sequence.
        segment: number of its example in the row, from 1 on.
        weight: its weight in the loss; 0 throughout the inputs.
    """

    text: str
    kind: Kind
    segment: int
    weight: int


@dataclass(frozen=True, kw_only=True)
class PreviewedExample:
    """An example, the place of its row in the files, and its segment in the packed row."""

    number: int
    place: str
    text: Text
    segment: int
    truncated: bool


@dataclass(frozen=True, kw_only=True)
class PreviewedRow:
    """A packed row: its examples, its tokens on both sides, and how many positions of each side are padding."""

    examples: tuple[PreviewedExample, ...]
    inputs: tuple[Span, ...]
    targets: tuple[Span, ...]
    padding: tuple[int, int]


@dataclass(frozen=True)
class _Encoded:
    number: int
    place: str
    text: Text
    inputs: list[tuple[int, str]]
    targets: list[tuple[int, str]]
    weights: tuple[int, ...]

    def example(self) -> Example:
        sides = (np.array([token for token, _ in side], dtype=np.int32) for side in (self.inputs, self.targets))
        inputs, targets = sides
        return Example(inputs=inputs, targets=targets, target_weights=np.array(self.weights, dtype=np.uint8))


def preview(
    task: TextTask,
    split: str,
    rows: Sequence[NumberedRow],
    *,
    vocabulary: Vocabulary,
    seed: int,
    row_lengths: tuple[int, int] | None = None,
    pack: bool = True,
    chat: Chat | None = None,
) -> list[PreviewedRow]:
    """The packed rows of some rows of a task; see `flanjax.data.sampling` for which.

    Args:
        task: the task.
        split: its split.
        rows: which to render; those that the task leaves out are left out.
        vocabulary: tokenises.
        seed: of the rendering.
        row_lengths: (encoder, decoder) tokens of a row; None chooses them from these examples. What is longer is cut.
        pack: whether examples share rows.
        chat: the template that makes their text.

    Raises:
        BadRow: a row is malformed, and the policy is "error".
        PackingError: the lengths are too small for anything.
    """
    examples = list(_encoded(task, split, rows, vocabulary=vocabulary, seed=seed, chat=chat))
    if not examples:
        return []
    lengths = np.array([(len(one.inputs), len(one.targets)) for one in examples], dtype=np.int64)
    room = row_lengths or choose_feature_lengths(lengths, pack=pack)
    check_row_lengths(room)
    plan = sorted(plan_window(lengths, room, pack=pack))
    batch = pack_rows([[truncate(examples[index].example(), room) for index in row] for row in plan], room)
    return [
        _row(batch, number, [examples[index] for index in row], room, vocabulary) for number, row in enumerate(plan)
    ]


def _encoded(
    task: TextTask,
    split: str,
    rows: Sequence[NumberedRow],
    *,
    vocabulary: Vocabulary,
    seed: int,
    chat: Chat | None,
) -> Iterator[_Encoded]:
    places = {number: place for number, place, _ in rows}
    before, after = ([(id_, "") for id_ in side] for side in (vocabulary.prefix, vocabulary.suffix))
    for number, text in texts_of(task, split, rows, seed=seed, tokenizer=vocabulary, chat=chat is not None):
        if chat is not None:
            for one in chat.examples(text.conversation, places[number]):
                inputs = list(zip(one.inputs, one.pieces, strict=False))
                targets = list(zip(one.targets, one.pieces[len(inputs) :], strict=True))
                yield _Encoded(number, places[number], text, inputs, targets, one.weights)
            continue
        inputs = [*before, *vocabulary.pieces(text.inputs), *after]
        targets = [*vocabulary.pieces(text.targets), (vocabulary.eos_id, "")]
        yield _Encoded(number, places[number], text, inputs, targets, (1,) * len(targets))


def _row(
    batch: Batch, number: int, examples: Sequence[_Encoded], room: RowLengths, vocabulary: Vocabulary
) -> PreviewedRow:
    """A row read back from the arrays that a model gets."""
    encoder, decoder = batch["encoder_segment_ids"][number], batch["decoder_segment_ids"][number]
    weights = batch["decoder_loss_weights"][number]
    inputs = _spans([_cut(one.inputs, room[0]) for one in examples], encoder, np.zeros_like(encoder), vocabulary)
    targets = _spans([_cut(one.targets, room[1]) for one in examples], decoder, weights, vocabulary)
    return PreviewedRow(
        examples=tuple(
            PreviewedExample(
                number=one.number,
                place=one.place,
                text=one.text,
                segment=segment,
                truncated=len(one.inputs) > room[0] or len(one.targets) > room[1],
            )
            for segment, one in enumerate(examples, 1)
        ),
        inputs=inputs,
        targets=targets,
        padding=(int(np.sum(encoder == 0)), int(np.sum(decoder == 0))),
    )


def _cut(tokens: list[tuple[int, str]], limit: int) -> list[tuple[int, str]]:
    """As `truncate` cuts: the last token, the end of sequence, stays."""
    return tokens if len(tokens) <= limit else [*tokens[: limit - 1], tokens[-1]]


def _spans(
    sides: Sequence[list[tuple[int, str]]], segments: np.ndarray, weights: np.ndarray, vocabulary: Vocabulary
) -> tuple[Span, ...]:
    tokens = [token for side in sides for token in side]
    used = segments > 0
    return tuple(
        Span(text, _kind(token, text, vocabulary), int(segment), int(weight))
        for (token, text), segment, weight in zip(tokens, segments[used], weights[used], strict=True)
    )


def _kind(token: int, text: str, vocabulary: Vocabulary) -> Kind:
    if token == vocabulary.eos_id:
        return "end"
    if token == vocabulary.unk_id:
        return "unknown"
    white = text[: len(text) - len(text.lstrip())]
    return "space" if white not in ("", " ") else "piece"
