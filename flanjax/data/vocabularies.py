"""Vocabularies: text to token ids and back, read and trained without TensorFlow.

    vocabulary = Vocabulary.from_file("spiece.model")       T5's SentencePiece, in this module
    vocabulary = Vocabulary.from_file("SmolLM2-135M")       a folder with tokenizer.json (`flanjax.data.hf_vocabulary`)
    vocabulary = Vocabulary.from_file("bytes")              ByT5's UTF-8 bytes (`flanjax.data.byte_vocabulary`)
    vocabulary.as_inputs(vocabulary.encode("Hi"))           as a model of this vocabulary meets it, BOS or EOS included

A SentencePiece vocabulary is a model file plus `extra_ids` sentinel pieces on top of it, numbered downwards as T5 and
seqio do: with T5's 32,000 pieces and 100 extra ids, `<extra_id_0>` is 32099 and `<extra_id_99>` is 32000. Ids 0, 1 and
2 are padding, end of sequence and unknown. Equal vocabularies have the same `identity`, which is what a cache and a run
remember of theirs.
"""

import abc
import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import sentencepiece
from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]

from flanjax.errors import FlanjaxError
from flanjax.files import write_whole

MODEL_FILE = "spiece.model"
TOKENIZER_FILE = "tokenizer.json"
LLAMA_MODEL_FILE = "tokenizer.model"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
DESCRIPTION_FILE = "vocabulary.json"
CHAT_TEMPLATE_FILE = "chat_template.jinja"
BYTES = "bytes"


class VocabularyError(FlanjaxError):
    """A vocabulary that is missing, unreadable, or cannot be trained as asked."""


@dataclass(frozen=True, kw_only=True)
class VocabularySource:
    """Where a vocabulary comes from: a file, or training on the mixture; with neither, the task's own is used.

    Args:
        path: a file, a folder of a Hugging Face model, or "bytes"; see `Vocabulary.from_file`.
        train_size: train a SentencePiece model with this many pieces, the extra ids not counted.
        extra_ids: sentinel pieces added on top of a SentencePiece model.

    Raises:
        VocabularyError: both a path and a size are given, or a number makes no sense.
    """

    path: str | None = None
    train_size: int | None = None
    extra_ids: int = 100

    def __post_init__(self) -> None:
        if self.path is not None and self.train_size is not None:
            raise VocabularyError(
                f"VocabularySource has both path={self.path!r} and train_size={self.train_size}: give one of them"
            )
        if self.extra_ids < 0:
            raise VocabularyError(f"VocabularySource.extra_ids={self.extra_ids} must not be negative")


class Vocabulary(abc.ABC):
    """Text to token ids and back; what is asked of it whichever library does it.

    Attributes:
        size: number of ids.
        identity: 16 hex digits, equal for vocabularies that give equal ids.
        sha256: hex digest of the file that holds the pieces.
        path: that file.
        extra_ids: number of sentinels on top of a SentencePiece model.
        pad_id: what rows are filled with.
        eos_id: ends a target.
        unk_id: stands for what has no piece; None where everything has one.
        bos_id: begins a sequence; None where there is no such token.
        prefix: what stands before inputs.
        suffix: what stands after inputs.
        special_tokens: the names of special tokens that a chat template may write: {"bos_token": "<s>", ...}.
        control_tokens: id of each text that is read as one token of control where a template writes it.
        own_templates: the chat templates that it brings, by name; the usual one is "default".
    """

    size: int
    identity: str
    sha256: str
    path: Path
    extra_ids: int = 0
    pad_id: int
    eos_id: int
    unk_id: int | None
    bos_id: int | None = None
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    special_tokens: Mapping[str, str] = MappingProxyType({})
    control_tokens: Mapping[str, int] = MappingProxyType({})
    own_templates: Mapping[str, str] = MappingProxyType({})

    @staticmethod
    def from_file(path: str | os.PathLike[str], extra_ids: int = 100) -> "Vocabulary":
        """Reads a vocabulary.

        Args:
            path: a SentencePiece model with T5's special ids, a `tokenizer.json`, Llama's `tokenizer.model`, or a
                folder with one of them; of a folder the first that it has of `spiece.model`, `tokenizer.json` and
                `tokenizer.model`. "bytes", or a folder or `tokenizer_config.json` of a ByT5, for UTF-8 bytes.
            extra_ids: sentinels on top of a SentencePiece model.

        Raises:
            VocabularyError: there is no such file, it cannot be read, or its special tokens are not told.
        """
        from flanjax.data.byte_vocabulary import Bytes, is_byte_folder

        file = Path(path)
        if str(path) == BYTES:
            return Bytes()
        if file.is_dir():
            names = (MODEL_FILE, TOKENIZER_FILE, LLAMA_MODEL_FILE)
            there = [name for name in names if (file / name).is_file()]
            file = file / next(iter(there), TOKENIZER_CONFIG_FILE if is_byte_folder(file) else MODEL_FILE)
        if file.name == TOKENIZER_CONFIG_FILE:
            return Bytes.read(file)
        if file.suffix == ".gguf":
            raise VocabularyError(
                f"{file} is a GGUF file: give the folder that python -m flanjax.convert --input={file.name} "
                "--output=FOLDER --format=hf makes of it"
            )
        if file.suffix == ".json" or file.name == LLAMA_MODEL_FILE:
            from flanjax.data.hf_vocabulary import HFVocabulary

            return HFVocabulary.read(file)
        return SentencePieces.read(file, extra_ids)

    @staticmethod
    def load(folder: str | os.PathLike[str]) -> "Vocabulary":
        """Reads a folder written by `save` and checks that the vocabulary is the one that was saved.

        Raises:
            VocabularyError: a file is missing, unreadable, or not the one described beside it.
        """
        description_file = Path(folder) / DESCRIPTION_FILE
        try:
            description = json.loads(description_file.read_text())
            sha256, extra_ids = description["sha256"], int(description["extra_ids"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise VocabularyError(f"{description_file} is missing or unreadable ({error!r})") from error
        vocabulary = Vocabulary.from_file(folder, extra_ids)
        if vocabulary.sha256 != sha256 or vocabulary.identity != description.get("identity", vocabulary.identity):
            raise VocabularyError(
                f"{vocabulary.path} is not the model that {description_file} describes: sha256 differs"
            )
        return vocabulary

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes its files and `vocabulary.json` {"sha256", "extra_ids", "size", "identity"} into a folder."""
        files = self.files()
        for name, content in files.items():
            write_whole(Path(folder) / name, content)
        if CHAT_TEMPLATE_FILE not in files:  # an older one would be taken for its own
            (Path(folder) / CHAT_TEMPLATE_FILE).unlink(missing_ok=True)
        described = {"sha256": self.sha256, "extra_ids": self.extra_ids, "size": self.size, "identity": self.identity}
        write_whole(Path(folder) / DESCRIPTION_FILE, json.dumps(described) + "\n")

    @abc.abstractmethod
    def files(self) -> Mapping[str, bytes]:
        """The files that it can be read from again, by name."""

    @abc.abstractmethod
    def encode(self, text: str) -> list[int]:
        """The ids of a text as data: nothing is put around it, and no text in it becomes a token of control."""

    @abc.abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, on one thread."""

    @abc.abstractmethod
    def encode_rendered(self, text: str) -> list[tuple[int, int, int]]:
        """(id, start, end) of each token of a text that a template made, in characters; tokens of control are read."""

    @abc.abstractmethod
    def pieces(self, text: str) -> list[tuple[int, str]]:
        """The ids of a text, each with the part of the text it stands for."""

    @abc.abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids up to the first end of sequence; padding and other tokens of control are left out."""

    @property
    def separate_inputs(self) -> bool:
        """Whether inputs end as a sequence of their own, for an encoder; if not, targets go on where they stop."""
        return bool(self.suffix)

    def as_inputs(self, ids: Sequence[int]) -> list[int]:
        """The ids of an example's inputs: BOS before them where the vocabulary has it so, EOS after T5's."""
        return [*self.prefix, *ids, *self.suffix]

    def as_targets(self, ids: Sequence[int]) -> list[int]:
        """The ids of an example's targets, which end in EOS."""
        return [*ids, self.eos_id]

    @property
    def _template_file(self) -> Mapping[str, bytes]:
        """`chat_template.jinja` with its usual template; empty where there is none."""
        template = self.own_templates.get("default")
        return {} if template is None else {CHAT_TEMPLATE_FILE: template.encode()}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r}, size={self.size}, identity={self.identity})"


class SentencePieces(Vocabulary):
    """A SentencePiece model with T5's special ids and sentinels.

    Encodes and decodes exactly as `seqio.SentencePieceVocabulary(path, extra_ids)` does.

    Attributes:
        model: bytes of the SentencePiece model, without the sentinels.
    """

    pad_id = 0
    eos_id = 1
    unk_id = 2
    suffix = (1,)

    def __init__(self, model: bytes, *, extra_ids: int = 100, path: Path):
        self.model = model
        self.extra_ids = extra_ids
        self.path = path
        self.sha256 = hashlib.sha256(model).hexdigest()
        self.identity = hashlib.sha256(model + str(extra_ids).encode()).hexdigest()[:16]
        self._processor = _load_processor(model, extra_ids, path)
        self.size = self._processor.get_piece_size()

    @classmethod
    def read(cls, file: Path, extra_ids: int = 100) -> "SentencePieces":
        """Reads a SentencePiece model file.

        Raises:
            VocabularyError: there is no such file, it is no SentencePiece model, or its special ids are not T5's.
        """
        try:
            model = file.read_bytes()
        except OSError as error:
            raise VocabularyError(
                f"no vocabulary at {file} ({error.strerror}): give a SentencePiece model file, a {TOKENIZER_FILE}, or "
                f"a folder that holds {MODEL_FILE} or {TOKENIZER_FILE}"
            ) from error
        vocabulary = cls(model, extra_ids=extra_ids, path=file)
        vocabulary.own_templates = chat_templates_in(file.parent)
        return vocabulary

    def files(self) -> Mapping[str, bytes]:
        """`spiece.model`, and the chat template where there is one."""
        return {MODEL_FILE: self.model, **self._template_file}

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without an end-of-sequence id; `</s>` in it is text."""
        return self._processor.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, on one thread."""
        return self._processor.encode(texts, num_threads=1) if texts else []

    def encode_rendered(self, text: str) -> list[tuple[int, int, int]]:
        """(id, start, end) of each token, in characters; `</s>` is text."""
        characters = [number for number, character in enumerate(text) for _ in character.encode()] + [len(text)]
        encoded = self._processor.encode(text, return_type="proto")
        return [(piece.id, characters[piece.begin], characters[piece.end]) for piece in encoded.pieces]

    def pieces(self, text: str) -> list[tuple[int, str]]:
        """The ids of a text, each with the part of the text it stands for; white space at the ends belongs to none."""
        encoded = self._processor.encode(text, return_type="proto")
        return [(piece.id, piece.surface) for piece in encoded.pieces]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids up to the first end of sequence; padding is left out, ids past the end are unknown."""
        kept = []
        for token in ids:
            if token == self.eos_id:
                break
            if token != self.pad_id:
                kept.append(int(token) if token < self.size else self.unk_id)
        return self._processor.decode(kept) if kept else ""

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, extra_ids={self.extra_ids})"


def json_object(path: Path, content: bytes) -> Mapping[str, Any]:
    """What a file of this content holds.

    Raises:
        VocabularyError: it is no JSON, or no object.
    """
    try:
        value = json.loads(content)
    except ValueError as error:
        raise VocabularyError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise VocabularyError(f"{path}: a JSON object is expected, not {type(value).__name__}")
    return value


def chat_templates(files: Mapping[Path, bytes]) -> dict[str, str]:
    """The chat templates among the files of a tokenizer's folder, by name; the usual one is "default".

    That is chat_template.jinja, or `chat_template` of tokenizer_config.json: one text, or several with names.

    Raises:
        VocabularyError: a file is damaged.
    """
    by_name = {path.name: (path, content) for path, content in files.items()}
    if CHAT_TEMPLATE_FILE in by_name:
        path, content = by_name[CHAT_TEMPLATE_FILE]
        try:
            return {"default": content.decode()}
        except UnicodeDecodeError as error:
            raise VocabularyError(f"{path} is not UTF-8 text: {error}") from error
    if TOKENIZER_CONFIG_FILE not in by_name:
        return {}
    path, content = by_name[TOKENIZER_CONFIG_FILE]
    given = json_object(path, content).get("chat_template")
    if isinstance(given, str):
        return {"default": given}
    try:
        return {str(entry["name"]): str(entry["template"]) for entry in given or ()}
    except (TypeError, KeyError) as error:
        raise VocabularyError(
            f'{path}: chat_template is neither a text nor a list of {{"name", "template"}}'
        ) from error


def chat_templates_in(folder: Path) -> dict[str, str]:
    """The chat templates of the tokenizer in a folder, by name, as `chat_templates`.

    Raises:
        VocabularyError: a file is damaged.
    """
    beside = [folder / name for name in (TOKENIZER_CONFIG_FILE, CHAT_TEMPLATE_FILE)]
    return chat_templates({path: path.read_bytes() for path in beside if path.is_file()})


class ByteTokens:
    """Stands for the vocabulary where there is none yet: four bytes a token, about what SentencePiece makes of English.

    A text that fits so many tokens here fits there, and is not cut to a quarter.
    """

    def encode(self, text: str | bytes) -> list[int]:
        """Four bytes a token, an int32; the last one is filled up with zeros."""
        content = text if isinstance(text, bytes) else text.encode()
        chunks = (content[start : start + 4].ljust(4, b"\0") for start in range(0, len(content), 4))
        return [int.from_bytes(chunk, signed=True) for chunk in chunks]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; a character that was cut in two is left out."""
        parts = (int(token).to_bytes(4, signed=True).rstrip(b"\0") for token in ids)
        return b"".join(parts).decode(errors="ignore")


def train_vocabulary(
    texts: Iterable[str], size: int, output: str | os.PathLike[str], *, extra_ids: int = 100
) -> SentencePieces:
    """Trains a unigram SentencePiece model with T5's special ids and writes it to a file.

    Every character of the texts becomes a piece. The same texts in the same order give the same bytes. All texts are
    held in memory by the trainer: give a sample of a large mixture.

    Args:
        texts: each is cut at line ends; other whitespace is normalised as in T5.
        size: number of pieces, the extra ids not counted.
        output: the model file to write; its folder is made.
        extra_ids: sentinels of the returned vocabulary (they are not stored in the file).

    Raises:
        VocabularyError: there is no text, or its characters and words do not allow this size.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(texts),
            model_writer=model,
            vocab_size=size,
            model_type="unigram",
            character_coverage=1.0,
            max_sentence_length=1 << 16,
            pad_id=SentencePieces.pad_id,
            eos_id=SentencePieces.eos_id,
            unk_id=SentencePieces.unk_id,
            bos_id=-1,
            byte_fallback=False,
            # More threads add up counts in whatever order they finish, and the bytes would change from run to run.
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise VocabularyError(_training_failure(size, str(error))) from error
    write_whole(Path(output), model.getvalue())
    return SentencePieces(model.getvalue(), extra_ids=extra_ids, path=Path(output))


def _lines(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        yield from (line for line in text.splitlines() if line.strip())


def _training_failure(size: int, reason: str) -> str:
    if largest := re.search(r"value <= (\d+)", reason):
        return f"cannot train a vocabulary of {size} pieces: the text allows at most {largest[1]}; ask for fewer"
    if smallest := re.search(r"required_chars\. \d+ vs (\d+)", reason):
        return (
            f"cannot train a vocabulary of {size} pieces: the text's characters alone need {smallest[1]}; ask for more"
        )
    if "sentences_.empty()" in reason:
        return "cannot train a vocabulary: the mixture gave no text"
    return f"cannot train a vocabulary of {size} pieces: {reason}"


def _load_processor(model: bytes, extra_ids: int, path: Path) -> sentencepiece.SentencePieceProcessor:
    """A processor over the model with the sentinels appended as user-defined pieces."""
    proto = ModelProto()
    processor = sentencepiece.SentencePieceProcessor()
    try:
        proto.ParseFromString(model)
        for number in reversed(range(extra_ids)):
            proto.pieces.add(piece=f"▁<extra_id_{number}>", score=0.0, type=proto.SentencePiece.USER_DEFINED)
        processor.load_from_serialized_proto(proto.SerializeToString())
    except Exception as error:
        raise VocabularyError(f"{path} is not a SentencePiece model ({error})") from error
    special = (processor.pad_id(), processor.eos_id(), processor.unk_id())
    if special != (SentencePieces.pad_id, SentencePieces.eos_id, SentencePieces.unk_id):
        raise VocabularyError(
            f"{path} has pad, eos, unk = {special}, T5 needs (0, 1, 2): train a vocabulary with flanjax, or take T5's"
        )
    return processor
