"""The tokenizer in a GGUF file's metadata as the `tokenizer.json` and `tokenizer_config.json` of a Hugging Face folder.

    vocabulary = gguf_vocabulary("SmolLM2-135M-Instruct.Q4_1.gguf")
    files = tokenizer_files(read_gguf_file("SmolLM2-135M-Instruct.Q4_1.gguf"))

`tokenizer.ggml.model` is `gpt2`, byte-level BPE with its merges and, in `tokenizer.ggml.pre`, the name of the rule that
cuts text into words first; or `llama`, SentencePiece's BPE, which has scores and no merges: two pieces merge where
together they are a piece, the best score first. What llama.cpp supposes where a key is absent is supposed here.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from flanjax.data.hf_vocabulary import HFVocabulary
from flanjax.data.sentencepiece_tokenizer import to_tokenizer
from flanjax.interchange.folders import ModelFolderError, json_text
from flanjax.interchange.gguf_file import GgufFile, read_gguf_file
from flanjax.interchange.tokenizer import SPECIAL_TOKENS, TOKENIZER, TOKENIZER_CONFIG

_PREFIX = "tokenizer.ggml."
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4
# Hugging Face's names of special tokens and GGUF's of their ids.
_NAMED = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _words(digits: str) -> Any:
    """Words as tiktoken's cl100k_base cuts them, with this many digits together."""
    pattern = Regex(f"{_CONTRACTIONS}|{_LETTERS}|{digits}|{_REST}")
    return _sequence(pre_tokenizers.Split(pattern, "isolated"), _bytes(use_regex=False))


def _bytes(*, use_regex: bool = True) -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def _sequence(*steps: Any) -> Any:
    return pre_tokenizers.Sequence(list(steps))


@dataclasses.dataclass(frozen=True)
class _Rule:
    """How a byte-level BPE cuts text, by the name that llama.cpp gives it.

    Attributes:
      words: makes the pre-tokenizer.
      whole_words: whether a word that is a token is never made of merges.
      bos: whether BOS is added where the file does not say.
      normalizer: makes what is done to the text first.
    """

    words: Callable[[], Any]
    whole_words: bool = False
    bos: bool = False
    normalizer: Callable[[], Any] | None = None


_GPT2 = _Rule(_bytes)
_SINGLE_DIGITS = _Rule(lambda: _sequence(pre_tokenizers.Digits(individual_digits=True), _bytes()))
_LLAMA3 = _Rule(lambda: _words(r"\p{N}{1,3}"), whole_words=True, bos=True)
_RULES: Mapping[str, _Rule] = {
    **dict.fromkeys(("gpt-2", "gpt2"), _GPT2),
    **dict.fromkeys(("smollm", "starcoder"), _SINGLE_DIGITS),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), _LLAMA3),
    "qwen2": _Rule(lambda: _words(r"\p{N}"), normalizer=normalizers.NFC),
}


def gguf_vocabulary(path: str | Path) -> HFVocabulary:
    """The vocabulary in a file, with its chat template.

    Raises:
      ModelFolderError: as `read_gguf_file` and `build_gguf_tokenizer`.
    """
    path = Path(path)
    return HFVocabulary(tokenizer_files(read_gguf_file(path)), path=path)


def tokenizer_files(file: GgufFile) -> dict[str, bytes]:
    """The tokenizer's files of a Hugging Face folder, by name.

    Raises:
      ModelFolderError: as `build_gguf_tokenizer`.
    """
    metadata = _Metadata(file)
    names = metadata.special()
    config = {
        **names,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": metadata.adds("bos"),
        "add_eos_token": metadata.adds("eos"),
        "added_tokens_decoder": {
            str(number): {"content": token.content, "special": token.special, "normalized": False}
            | {"single_word": False, "lstrip": False, "rstrip": False}
            for number, token in metadata.added().items()
        },
    }
    if template := metadata.text("tokenizer.chat_template", ""):
        config["chat_template"] = template
    contents = {
        TOKENIZER: build_gguf_tokenizer(file).to_str(pretty=True),
        TOKENIZER_CONFIG: json_text(config),
        SPECIAL_TOKENS: json_text(names),
    }
    return {name: content.encode() for name, content in contents.items()}


def special_ids(file: GgufFile) -> dict[str, int | list[int]]:
    """The ids of special tokens as `generation_config.json` has them; where a turn has an end of its own, both ends.

    Raises:
      ModelFolderError: there is no tokenizer, or an id is none of its tokens.
    """
    metadata = _Metadata(file)
    ids: dict[str, int | list[int]] = {
        f"{name}_id": number
        for name, key in _NAMED.items()
        if name != "unk_token" and (number := metadata.id(key)) is not None
    }
    turn = metadata.id("eot")
    if turn is not None and turn != metadata.id("eos"):
        ids["eos_token_id"] = [number for number in (metadata.id("eos"), turn) if number is not None]
    return ids


def build_gguf_tokenizer(file: GgufFile) -> Tokenizer:
    """The tokenizer in a file's metadata.

    Raises:
      ModelFolderError: there is none, it is of a kind that is not read, or its parts do not fit each other.
    """
    metadata = _Metadata(file)
    try:
        tokenizer = (_sentencepiece if metadata.is_sentencepiece else _byte_level)(metadata)
        # Control tokens are found in text as they stand, and so are those that somebody defined.
        tokenizer.add_tokens(list(metadata.added().values()))
        if ends := _ends(metadata):
            tokenizer.post_processor = ends
    except ModelFolderError:
        raise
    except Exception as error:  # the library raises no class of its own
        raise ModelFolderError(f"{file.path}: its tokenizer cannot be built: {error}") from error
    return tokenizer


class _Metadata:
    """The keys of a tokenizer, with their types checked."""

    def __init__(self, file: GgufFile):
        self._file = file
        self.tokens = self._texts("tokens")
        kind = self.text(f"{_PREFIX}model")
        if kind not in ("gpt2", "llama"):
            raise self.error(
                f"{_PREFIX}model", f"is {kind!r}; read are gpt2 (byte-level BPE) and llama (SentencePiece)"
            )
        self.is_sentencepiece = kind == "llama"

    def error(self, key: str, text: str) -> ModelFolderError:
        return ModelFolderError(
            f"{self._file.path}: {key} {text}. The weights alone are read by flanjax.interchange.gguf.read_gguf; the "
            "tokenizer is then that of the model's Hugging Face folder"
        )

    def text(self, key: str, default: str | None = None) -> str:
        value = self._file.metadata.get(key, default)
        if not isinstance(value, str):
            raise self.error(key, "is missing, or no text")
        return value

    def _texts(self, key: str) -> list[str]:
        value = self._file.metadata.get(_PREFIX + key)
        if not isinstance(value, list) or not value:
            raise self.error(_PREFIX + key, "is missing, or no list of texts")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self._file.metadata.get(_PREFIX + key, default)
        if not isinstance(value, bool):
            raise self.error(_PREFIX + key, f"is {value!r}, and not true or false")
        return value

    def numbers(self, key: str) -> np.ndarray:
        """One number for each token."""
        value = self._file.metadata.get(_PREFIX + key)
        if not isinstance(value, np.ndarray) or len(value) != len(self.tokens):
            raise self.error(_PREFIX + key, f"must have a number for each of the {len(self.tokens)} tokens")
        return value

    @property
    def merges(self) -> list[tuple[str, str]]:
        merges = []
        for merge in self._texts("merges"):
            left, space, right = merge.partition(" ")
            if not space or " " in right:
                raise self.error(f"{_PREFIX}merges", f"has {merge!r}, which is no pair")
            merges.append((left, right))
        return merges

    @property
    def rule(self) -> _Rule:
        name = self.text(f"{_PREFIX}pre")
        if name not in _RULES:
            raise self.error(f"{_PREFIX}pre", f"is {name!r}; read are {', '.join(_RULES)}")
        return _RULES[name]

    def vocabulary(self) -> dict[str, int]:
        ids = {token: number for number, token in enumerate(self.tokens)}
        if len(ids) != len(self.tokens):
            twice = next(token for number, token in enumerate(self.tokens) if ids[token] != number)
            raise self.error(f"{_PREFIX}tokens", f"has {twice!r} twice")
        return ids

    def id(self, name: str) -> int | None:
        """Of a special token."""
        number = self._file.metadata.get(f"{_PREFIX}{name}_token_id")
        if number is None:
            return None
        if type(number) is not int or not 0 <= number < len(self.tokens):
            raise self.error(
                f"{_PREFIX}{name}_token_id", f"is {number!r}, which is none of the {len(self.tokens)} tokens"
            )
        return number

    def special(self) -> dict[str, str]:
        """The special tokens under Hugging Face's names."""
        return {name: self.tokens[number] for name, key in _NAMED.items() if (number := self.id(key)) is not None}

    def adds(self, name: str) -> bool:
        """Whether `bos` or `eos` is put around every text."""
        default = name == "bos" and (self.is_sentencepiece or self.rule.bos)
        return self.flag(f"add_{name}_token", default) and self.id(name) is not None

    def added(self) -> dict[int, AddedToken]:
        """The tokens that are found in text before it is cut, by their ids."""
        types = self.numbers("token_type")
        kinds = {_CONTROL: True, _USER_DEFINED: False, **({_UNKNOWN: True} if self.is_sentencepiece else {})}
        return {
            number: AddedToken(self.tokens[number], special=kinds[kind], normalized=False)
            for number, kind in enumerate(types.tolist())
            if kind in kinds
        }


def _byte_level(metadata: _Metadata) -> Tokenizer:
    rule = metadata.rule
    tokenizer = Tokenizer(BPE(metadata.vocabulary(), metadata.merges, ignore_merges=rule.whole_words))
    if rule.normalizer:
        tokenizer.normalizer = rule.normalizer()
    tokenizer.pre_tokenizer = rule.words()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(metadata: _Metadata) -> Tokenizer:
    """By way of the SentencePiece model that the file was made of, whose types of pieces have the same numbers."""
    metadata.vocabulary()
    types = metadata.numbers("token_type")
    model = ModelProto()
    for token, score, kind in zip(metadata.tokens, metadata.numbers("scores"), types, strict=True):
        model.pieces.add(piece=token, score=float(score), type=int(kind))
    unknown = metadata.id("unknown")
    model.trainer_spec.model_type = model.trainer_spec.BPE
    model.trainer_spec.unk_id = 0 if unknown is None else unknown
    model.trainer_spec.byte_fallback = bool((types == model.SentencePiece.BYTE).any())
    model.normalizer_spec.add_dummy_prefix = metadata.flag("add_space_prefix", True)
    model.normalizer_spec.remove_extra_whitespaces = False
    return to_tokenizer(model.SerializeToString())


def _ends(metadata: _Metadata) -> Any:
    """What puts BOS before and EOS after a text; None where neither is."""
    around = {}
    for name in ("bos", "eos"):
        number = metadata.id(name)
        around[name] = [] if number is None or not metadata.adds(name) else [(metadata.tokens[number], number)]
    if not any(around.values()):
        return None
    (before, after) = ([token for token, _ in around[name]] for name in ("bos", "eos"))
    return processors.TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", *after, *(f"{token}:1" for token in before), "$B:1", *(f"{token}:1" for token in after)],
        special_tokens=around["bos"] + around["eos"],
    )
