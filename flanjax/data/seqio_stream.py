"""One split of a seqio task as a stream of tokenised examples, under any vocabulary and one seed.

The task's own preprocessors run unchanged, on the features of the vocabulary that the run brings. Nothing is shuffled,
trimmed or repeated: that is the loader's work.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from flanjax.data.cache import FEATURES, Example
from flanjax.data.chat import Chat
from flanjax.data.fingerprints import file_identity, fingerprint
from flanjax.data.rendering import chat_example
from flanjax.data.seqio_vocabularies import SeqioVocabulary
from flanjax.data.source_files import SourceFiles
from flanjax.data.sources import BadRow, BadRows, report_bad_row
from flanjax.data.tasks import Text
from flanjax.data.vocabularies import ByteTokens, Vocabulary
from flanjax.errors import FlanjaxError

_BATCH = 256


class StreamError(FlanjaxError):
    """A task that does not produce tokenised inputs and targets."""


def own_vocabulary(tasks: tuple[seqio.Task, ...]) -> Vocabulary:
    """The vocabulary that the tasks themselves were registered with.

    Raises:
        StreamError: they have another kind of vocabulary, or not all of them the same.
    """
    found = {}
    for task in tasks:
        for name, feature in task.output_features.items():
            vocabulary = feature.vocabulary
            if isinstance(vocabulary, SeqioVocabulary):
                found[str(vocabulary.vocabulary.path), 0] = f"{task.name}, {name}"
                continue
            if not isinstance(vocabulary, seqio.SentencePieceVocabulary):
                raise StreamError(
                    f"task {task.name!r} brings no SentencePiece vocabulary for {name} "
                    f"({type(vocabulary).__name__}): give a vocabulary file, or a size to train one"
                )
            found[str(vocabulary.sentencepiece_model_file), vocabulary.extra_ids] = f"{task.name}, {name}"
    if len(found) != 1:
        raise StreamError(f"the tasks bring several vocabularies, {found}: give one vocabulary file for all of them")
    ((file, extra_ids),) = found
    return Vocabulary.from_file(file, extra_ids)


def task_fingerprint(
    task: seqio.Task, split: str, *, seed: int, vocabulary_id: str, version: int, files: SourceFiles, chat: str = ""
) -> str:
    """A digest of everything that decides what this split holds: code, data files, features, vocabulary and seed.

    The local files that it is made from are added to `files`.
    """
    features = {name: [feature.dtype.name, feature.rank] for name, feature in task.output_features.items()}
    source: Any = vars(task.source)
    if isinstance(task.source, seqio.FileDataSource):
        # The files of this split alone: a change in another split's file leaves this one as it is.
        patterns = task.source._split_to_filepattern[split]
        for pattern in [patterns] if isinstance(patterns, str | os.PathLike) else patterns:
            if _is_local(str(pattern)):
                files.add(pattern)
        shards = [file_identity(file) if _is_local(file) else file for file in task.source.list_shards(split)]
        source = [shards, task.source._reader]
    code = [type(task.source), source, task.preprocessors]
    made_of: list[Any] = [version, task.name, split, seed, vocabulary_id, features, code]
    return fingerprint([*made_of, chat] if chat else made_of, files)


def preprocessed(
    task: seqio.Task, split: str, vocabulary: seqio.Vocabulary, *, seed: int
) -> tuple[seqio.Task, tf.data.Dataset]:
    """The task over a vocabulary, and the dataset of one split with all of its fields, in file order.

    Every task has its own stream of seeds, the same for all of its splits, so that a source may divide one shuffle of
    its rows among them.

    Raises:
        StreamError: the preprocessed examples have no `inputs` or no `targets`, or these are not integers [tokens].
    """
    features = task.output_features.items()
    task = task.replace(output_features={name: replace(feature, vocabulary=vocabulary) for name, feature in features})
    task_seed = int.from_bytes(hashlib.sha256(f"{seed}/{task.name}".encode()).digest()[:4]) >> 1
    # Ops that a task left unseeded draw from this, and so does seqio's own stream of seeds.
    tf.random.set_seed(task_seed)
    dataset = task.preprocess_precache(_source_dataset(task.source, split, task_seed), seed=task_seed)
    dataset = task.preprocess_postcache(dataset, sequence_length=None, seed=task_seed)
    for name in FEATURES:
        spec = dataset.element_spec.get(name)
        if not isinstance(spec, tf.TensorSpec) or not spec.dtype.is_integer or spec.shape.rank != 1:
            raise StreamError(
                f"task {task.name!r} gives {name} = {spec}, integers [tokens] are needed: do its preprocessors make "
                "`inputs` and `targets` and end in seqio.preprocessors.tokenize and append_eos?"
            )
    options = tf.data.Options()
    options.deterministic = True
    # One thread: most of the work is Python's, and ops that hold a random state keep one order.
    options.threading.private_threadpool_size = 1
    return task, dataset.with_options(options)


def open_dataset(task: seqio.Task, split: str, vocabulary: seqio.Vocabulary, *, seed: int) -> tf.data.Dataset:
    """The preprocessed dataset of one split with what a cache keeps of it.

    Raises:
        StreamError: as `preprocessed`.
    """
    _, dataset = preprocessed(task, split, vocabulary, seed=seed)
    wanted = [*FEATURES, *(f"{name}_pretokenized" for name in FEATURES), "references", "id"]
    present = [name for name in wanted if name in dataset.element_spec]
    return dataset.map(lambda example: {name: example[name] for name in present})


def examples(
    dataset: tf.data.Dataset,
    vocabulary: Vocabulary,
    *,
    task: str,
    split: str,
    counters: MutableMapping[str, int],
    bad_rows: BadRows,
    chat: Chat | None = None,
) -> Iterator[Example]:
    """The examples to write, under a chat template where there is one.

    Empty targets are left out and counted, and skipped rows are counted at the end.

    BOS and EOS are around both as the vocabulary has them, whether or not the task put EOS there. Splits other than
    "train" carry their text.

    Raises:
        FlanjaxError: the task's own code or data failed; the message has its reason.
    """
    try:
        for number, row in enumerate(_rows(dataset)):
            inputs, targets = (_without_eos(row[name], vocabulary) for name in FEATURES)
            if not targets:
                counters["dropped_empty_targets"] += 1
                continue
            tokens = {"inputs": inputs, "targets": targets}
            name = f"{task}-{split}-{number}"
            text = _text(row, tokens, vocabulary, name) if chat is not None or split != "train" else None
            if chat is not None:
                assert text is not None
                said = Text(inputs=text["inputs"], targets=text["targets"])
                try:
                    made = chat.examples(said.conversation, name)
                except BadRow as error:
                    report_bad_row(error)
                    continue
                for one in made:
                    yield chat_example(one, None if split == "train" else {**text, "inputs": one.prompt})
                continue
            yield Example(
                inputs=np.array(vocabulary.as_inputs(inputs), dtype=np.int32),
                targets=np.array(vocabulary.as_targets(targets), dtype=np.int32),
                text=text,
            )
    except FlanjaxError:
        raise
    except Exception as error:
        raise bad_rows.error or StreamError(failure(error)) from error
    counters["skipped_bad_rows"] = bad_rows.skipped


def texts(task: seqio.Task, split: str, *, seed: int, limit: int, bad_rows: BadRows) -> Iterator[str]:
    """Inputs and targets of the first `limit` examples as text, before any vocabulary.

    The task is run over bytes, which any text survives, and read back.

    Raises:
        FlanjaxError: the task's own code or data failed.
    """
    vocabulary = _StandIn()
    try:
        for row in _rows(open_dataset(task, split, vocabulary, seed=seed).take(limit)):
            for name in FEATURES:
                yield vocabulary.decode(row[name].tolist())
    except FlanjaxError:
        raise
    except Exception as error:
        raise bad_rows.error or StreamError(f"task {task.name!r}, {split}: {failure(error)}") from error


class _StandIn(seqio.ByteVocabulary):
    """Bytes in TensorFlow's graph; a task that counts or cuts tokens in Python gets `ByteTokens`."""

    def encode(self, s: str | bytes) -> list[int]:
        """See `ByteTokens`."""
        return ByteTokens().encode(s)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of tokens of either kind; a character that was cut in two is left out."""
        return b"".join(_bytes_of(int(token)) for token in ids).decode(errors="ignore")


def _bytes_of(token: int) -> bytes:
    if 0 <= token < 3:  # padding, end of sequence, unknown
        return b""
    return bytes([token - 3]) if 3 <= token < 259 else token.to_bytes(4, signed=True).rstrip(b"\0")


def _source_dataset(source: seqio.DataSource, split: str, seed: int) -> tf.data.Dataset:
    try:
        return source.get_dataset(split=split, shuffle=False, seed=seed)
    except ValueError:
        # seqio refuses a seed for a source function that has no such argument; unshuffled, it has no use for one.
        return source.get_dataset(split=split, shuffle=False)


def _rows(dataset: tf.data.Dataset) -> Iterator[dict[str, np.ndarray]]:
    """The examples one by one; they leave TensorFlow by the hundred, which is several times as fast."""
    for batch in dataset.ragged_batch(_BATCH):
        columns = [_column(batch[name]) for name in batch]
        for values in zip(*columns, strict=True):
            yield dict(zip(batch, values, strict=True))


def _column(values: tf.Tensor | tf.RaggedTensor) -> Sequence[Any]:
    if isinstance(values, tf.RaggedTensor):
        return np.split(values.values.numpy(), values.row_splits.numpy()[1:-1])
    return values.numpy()


def _is_local(file: str) -> bool:
    return "://" not in file


def _without_eos(tokens: np.ndarray, vocabulary: Vocabulary) -> list[int]:
    ids = [int(token) for token in tokens]
    return ids[:-1] if ids and ids[-1] == vocabulary.eos_id else ids


def _text(
    row: dict[str, np.ndarray], tokens: Mapping[str, list[int]], vocabulary: Vocabulary, default_id: str
) -> dict[str, Any]:
    text: dict[str, Any] = {}
    for name in FEATURES:
        pretokenized = row.get(f"{name}_pretokenized")
        text[name] = _string(pretokenized) if pretokenized is not None else vocabulary.decode(tokens[name])
    references = np.atleast_1d(row["references"]).tolist() if "references" in row else [text["targets"]]
    text["references"] = [_string(reference) for reference in references]
    text["id"] = _string(row.get("id", default_id))
    return text


def _string(value: Any) -> str:
    value = value.item() if isinstance(value, np.ndarray | np.generic) else value
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value)


def failure(error: Exception) -> str:
    """What went wrong in a task, without TensorFlow's trail of node names; the place is the innermost Python frame."""
    text = getattr(error, "message", None) or f"{type(error).__name__}: {error}"
    head = text.split("Traceback (most recent call last)")[0].strip()
    head = head.split("}}")[-1].strip() if head.startswith("{{") else head
    frames = [line.strip() for line in text.splitlines() if line.strip().startswith('File "')]
    return f"{head} ({frames[-1]})" if frames else head
