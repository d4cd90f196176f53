"""From the rows of a text task to tokens: in order, a chunk at a time, without TensorFlow.

    rows_of(task, "train", seed=0)                    (number, place, row)
    -> tokenized(task, "train", chunk, ...)           examples, with what was left out

A chunk's examples depend on nothing but the chunk, the seed and the vocabulary, so that chunks may be made anywhere.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from flanjax.data.cache import EncodedExample, Example, encode_example
from flanjax.data.chat import Chat, ChatExample
from flanjax.data.conversations import whole_conversations
from flanjax.data.fingerprints import fingerprint
from flanjax.data.source_files import SourceFiles
from flanjax.data.sources import BadRow, BadRows, bad_row_policy, report_bad_row
from flanjax.data.tasks import Row, Text, TextTask, Tokenizer
from flanjax.data.vocabularies import ByteTokens, Vocabulary

CHUNK_ROWS = 256

NumberedRow = tuple[int, str, Row]  # its number in the split from 0 on, its place in the files, and the row


@dataclass(kw_only=True)
class Tokenized:
    """The examples of a chunk of rows, and what became of the rows that gave none."""

    examples: list[EncodedExample] = field(default_factory=list)
    dropped_empty_targets: int = 0
    bad_rows: BadRows = field(default_factory=BadRows)


def rows_of(task: TextTask, split: str, *, seed: int, chat: Chat | None = None) -> Iterator[NumberedRow]:
    """The numbered rows of a split, in file order; for a chat that takes conversations whole they are those."""
    rows = task.source[split](seed)
    if chat is not None and chat.takes_whole(split) and task.whole:
        rows = whole_conversations(rows)
    for number, (place, row) in enumerate(rows):
        yield number, place, row


def texts_of(
    task: TextTask, split: str, rows: Iterable[NumberedRow], *, seed: int, tokenizer: Tokenizer, chat: bool = False
) -> Iterator[tuple[int, Text]]:
    """The text of each row that has one, with the row's number; malformed rows are reported as the policy says."""
    for number, place, row in rows:
        try:
            text = task.text(row, number, place, split=split, seed=seed, tokenizer=tokenizer, chat=chat)
        except BadRow as error:
            report_bad_row(error)
            continue
        if text is not None:
            yield number, text


def tokenized(
    task: TextTask,
    split: str,
    rows: Sequence[NumberedRow],
    *,
    seed: int,
    vocabulary: Vocabulary,
    policy: str,
    chat: Chat | None = None,
) -> Tokenized:
    """The examples of a chunk of rows: under a chat template, or with BOS and EOS as the vocabulary has them.

    Splits other than "train" carry their text.

    Raises:
        BadRow: a row is malformed and the policy is "error".
        ChatTemplateError: the template cannot tell the assistant's words.
    """
    made = Tokenized()
    with bad_row_policy(policy) as made.bad_rows:
        pairs = list(texts_of(task, split, rows, seed=seed, tokenizer=vocabulary, chat=chat is not None))
        if chat is not None:
            places = {number: place for number, place, _ in rows}
            for number, text in pairs:
                _add_chat(made, chat, task, split, number, text, places[number])
            return made
    inputs = vocabulary.encode_batch([text.inputs for _, text in pairs])
    targets = vocabulary.encode_batch([text.targets for _, text in pairs])
    for (number, text), source, target in zip(pairs, inputs, targets, strict=True):
        if not target:
            made.dropped_empty_targets += 1
            continue
        kept = None if split == "train" else kept_text(task, split, number, text)
        example = Example(
            inputs=np.array(vocabulary.as_inputs(source), dtype=np.int32),
            targets=np.array(vocabulary.as_targets(target), dtype=np.int32),
            text=kept,
        )
        made.examples.append(encode_example(example))
    return made


def _add_chat(made: Tokenized, chat: Chat, task: TextTask, split: str, number: int, text: Text, place: str) -> None:
    """Adds the examples of one conversation."""
    try:
        found = chat.examples(text.conversation, place)
    except BadRow as error:
        report_bad_row(error)
        return
    if not found:
        made.dropped_empty_targets += 1
    for one in found:
        kept = None
        if split != "train":
            answered = replace(text, inputs=one.prompt, targets=text.targets if len(found) == 1 else one.reply)
            kept = kept_text(task, split, number, answered)
        made.examples.append(encode_example(chat_example(one, kept)))


def chat_example(found: ChatExample, text: dict[str, Any] | None = None) -> Example:
    """A conversation's tokens as the cache takes them."""
    return Example(
        inputs=np.array(found.inputs, dtype=np.int32),
        targets=np.array(found.targets, dtype=np.int32),
        target_weights=None if all(found.weights) else np.array(found.weights, dtype=np.uint8),
        text=text,
    )


def training_text(task: TextTask, split: str, *, seed: int, limit: int, bad_rows: BadRows) -> Iterator[str]:
    """Inputs and targets of the first `limit` examples, for a vocabulary to be trained on.

    Raises:
        BadRow: a row is malformed and the policy of `bad_rows` is "error".
    """
    with bad_row_policy(bad_rows):
        texts = texts_of(task, split, rows_of(task, split, seed=seed), seed=seed, tokenizer=ByteTokens())
        for _, text in itertools.islice(texts, limit):
            yield from (text.inputs, text.targets)


def text_fingerprint(
    task: TextTask, split: str, *, seed: int, vocabulary_id: str, version: int, files: SourceFiles, chat: str = ""
) -> str:
    """A digest of everything that decides what a split holds: code, options, data files, vocabulary, template and seed.

    The local files that it is made from are added to `files`.
    """
    made_of = [version, task.name, split, seed, vocabulary_id, task.source[split], task.render]
    made_of += [chat] if chat else []
    return fingerprint(made_of, files)


def kept_text(task: TextTask, split: str, number: int, text: Text) -> dict[str, Any]:
    """What evaluation reads beside the tokens."""
    return {
        "inputs": text.inputs,
        "targets": text.targets,
        "references": list(text.references or (text.targets,)),
        "id": text.id or f"{task.name}-{split}-{number}",
    }
