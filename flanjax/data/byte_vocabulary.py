"""ByT5's vocabulary: UTF-8 bytes, and sentinels after them (Xue et al. 2021, arXiv 2105.13626).

    vocabulary = Vocabulary.from_file("bytes")        by its name, for there is no file of pieces
    vocabulary = Vocabulary.from_file("byt5-small")   a folder whose tokenizer_config.json says ByT5Tokenizer
    vocabulary.encode("é <extra_id_0>")               [198, 172, 35, 259]

A byte b is id b + 3; 0, 1 and 2 are padding, end of sequence and unknown. `<extra_id_0>` is 259 and `<extra_id_124>`
383, upwards, as transformers' ByT5Tokenizer numbers them.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from flanjax.data.vocabularies import (
    BYTES,
    TOKENIZER_CONFIG_FILE,
    Vocabulary,
    VocabularyError,
    chat_templates_in,
)

_OFFSET = 3
_SENTINELS = _OFFSET + 256
_SENTINEL = re.compile(r"<extra_id_(0|[1-9]\d{0,5})>")
_CLASS = "ByT5Tokenizer"


def is_byte_folder(folder: Path) -> bool:
    """Whether a Hugging Face folder says that its tokenizer is ByT5's."""
    return _config(folder / TOKENIZER_CONFIG_FILE).get("tokenizer_class") == _CLASS


def _config(file: Path) -> Mapping[str, object]:
    """The object in a `tokenizer_config.json`; empty where there is none, or something else."""
    try:
        config = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


class Bytes(Vocabulary):
    """UTF-8 bytes with T5's special ids, and sentinels.

    Args:
        extra_ids: number of sentinels; every published ByT5 has 125.
        path: of the `tokenizer_config.json` that says so.
        own_templates: the chat templates that lie there.
    """

    pad_id = 0
    eos_id = 1
    unk_id = 2
    suffix = (1,)
    special_tokens: Mapping[str, str] = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    # All vocabularies of bytes have the same pieces; how many sentinels follow changes none of them.
    sha256 = hashlib.sha256(f"{BYTES} from {_OFFSET}".encode()).hexdigest()

    def __init__(
        self, *, extra_ids: int = 125, path: Path = Path(BYTES), own_templates: Mapping[str, str] = MappingProxyType({})
    ):
        self.own_templates = own_templates
        self.extra_ids = extra_ids
        self.path = path
        self.size = _SENTINELS + extra_ids
        self.identity = hashlib.sha256(f"{self.sha256} {extra_ids}".encode()).hexdigest()[:16]

    @classmethod
    def read(cls, file: Path) -> "Bytes":
        """Reads how many sentinels a `tokenizer_config.json` has, and the chat template in it or beside it.

        Raises:
            VocabularyError: it is not that of a ByT5Tokenizer, or adds other tokens than sentinels.
        """
        config = _config(file)
        if config.get("tokenizer_class") != _CLASS:
            raise VocabularyError(
                f"{file} names no {_CLASS}, so it says nothing by itself: give the folder that it lies in, with its "
                f"tokenizer, or VOCABULARY={BYTES!r} for UTF-8 bytes"
            )
        added, own_templates = config.get("added_tokens_decoder"), chat_templates_in(file.parent)
        if not isinstance(added, dict):
            extra_ids = config.get("extra_ids", 125)
            if isinstance(extra_ids, bool) or not isinstance(extra_ids, int) or extra_ids < 0:
                raise VocabularyError(f"{file}: extra_ids is {extra_ids!r}: it must be a whole number of sentinels")
            return cls(extra_ids=extra_ids, path=file, own_templates=own_templates)
        tokens = {int(id_): token.get("content") for id_, token in added.items() if int(id_) >= _OFFSET}
        wrong = {id_: token for id_, token in tokens.items() if token != f"<extra_id_{id_ - _SENTINELS}>"}
        if wrong or sorted(tokens) != list(range(_SENTINELS, _SENTINELS + len(tokens))):
            listed = ", ".join(f"{token!r} as {id_}" for id_, token in wrong.items()) or "sentinels with gaps"
            raise VocabularyError(f"{file}: added_tokens_decoder has {listed}, which a vocabulary of bytes does not")
        return cls(extra_ids=len(tokens), path=file, own_templates=own_templates)

    def files(self) -> Mapping[str, bytes]:
        """`tokenizer_config.json`, with which transformers opens a ByT5Tokenizer, and the chat template if any."""
        config = {"tokenizer_class": _CLASS, "extra_ids": self.extra_ids, **self.special_tokens}
        return {TOKENIZER_CONFIG_FILE: json.dumps(config, indent=2).encode() + b"\n", **self._template_file}

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without an end-of-sequence id; `</s>` in it is text, a sentinel is its id."""
        if "<extra_id_" not in text:
            return [byte + _OFFSET for byte in text.encode()]
        return [id_ for id_, _ in self._parts(text)]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text."""
        return [self.encode(text) for text in texts]

    def encode_rendered(self, text: str) -> list[tuple[int, int, int]]:
        """(id, start, end) of each token, in characters; the bytes of one character all have it as theirs."""
        found, start, end = [], 0, 0
        for id_, part in self._parts(text):
            if part:
                start, end = end, end + len(part)
            found.append((id_, start, end))
        return found

    def pieces(self, text: str) -> list[tuple[int, str]]:
        """The ids of a text, each with the part of the text it stands for: a character's first byte has all of it."""
        return list(self._parts(text))

    def _parts(self, text: str) -> Iterator[tuple[int, str]]:
        done = 0
        for sentinel in _SENTINEL.finditer(text):
            if int(sentinel[1]) < self.extra_ids:
                yield from _characters(text[done : sentinel.start()])
                yield _SENTINELS + int(sentinel[1]), sentinel[0]
                done = sentinel.end()
        yield from _characters(text[done:])

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids up to the first end of sequence; padding, unknown ids and broken characters are left out."""
        kept = bytearray()
        for token in ids:
            if token == self.eos_id:
                break
            if _OFFSET <= token < _SENTINELS:
                kept.append(token - _OFFSET)
            elif _SENTINELS <= token < self.size:
                kept += f"<extra_id_{token - _SENTINELS}>".encode()
        return kept.decode(errors="ignore")


def _characters(text: str) -> Iterator[tuple[int, str]]:
    for character in text:
        first, *others = character.encode()
        yield first + _OFFSET, character
        for byte in others:
            yield byte + _OFFSET, ""
