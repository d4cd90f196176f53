"""The tokenizers of Hugging Face decoders as vocabularies: `tokenizer.json` with its `tokenizer_config.json`.

    vocabulary = HFVocabulary.read(Path("SmolLM2-135M-Instruct/tokenizer.json"))
    vocabulary.encode("Hi <|im_end|>")                what is typed is text, and ends no turn
    vocabulary.encode_rendered("Hi<|im_end|>")        what a template writes is a token: [(.., 0, 2), (2, 2, 12)]

The ids are those of `transformers.AutoTokenizer` (with `split_special_tokens` for `encode`). Which tokens begin, end
and fill a sequence is said by tokenizer_config.json, or else special_tokens_map.json; a `tokenizer.json` alone must
have one of the usual names for its end. Formats: https://huggingface.co/docs/tokenizers, and transformers' reading.
"""

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Encoding, Tokenizer, processors

from flanjax.data.sentencepiece_tokenizer import parse, to_tokenizer
from flanjax.data.vocabularies import (
    CHAT_TEMPLATE_FILE,
    LLAMA_MODEL_FILE,
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
    Vocabulary,
    VocabularyError,
    chat_templates,
    json_object,
)

SPECIAL_TOKENS_FILE = "special_tokens_map.json"
_BESIDE = (TOKENIZER_CONFIG_FILE, SPECIAL_TOKENS_FILE, CHAT_TEMPLATE_FILE)
_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
# Tokenizers around a SentencePiece model that put something else in front than Llama's.
_OF_CODE = ("ChatGLMTokenizer",)
# What a tokenizer.json that comes alone may call the end of a sequence, the first that it has.
_USUAL_ENDS = ("<|im_end|>", "<|eot_id|>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "</s>")


class HFVocabulary(Vocabulary):
    """A tokenizer of the `tokenizers` library with the tokens that its configuration names.

    Args:
        content: the files by name; `tokenizer.json` must be among them.
        path: of `tokenizer.json`, for messages.

    Raises:
        VocabularyError: a file is damaged, names a token that the tokenizer does not have, or none says which token
            ends a sequence.
    """

    def __init__(self, content: Mapping[str, bytes], *, path: Path):
        self.path = path
        self._files = dict(content)
        config = self._json(TOKENIZER_CONFIG_FILE)
        if path.name == LLAMA_MODEL_FILE and config.get("tokenizer_class") in _OF_CODE:
            raise VocabularyError(
                f"{path} is of a {config['tokenizer_class']}, whose tokens of control are in Python code, which is not "
                f"run: give a {TOKENIZER_FILE} that has them, or another vocabulary"
            )
        self._tokenizer = self._opened(config)
        self.size = self._tokenizer.get_vocab_size(with_added_tokens=True)
        named = self._named(config)
        self.special_tokens = named
        added = self._tokenizer.get_added_tokens_decoder()
        self.control_tokens = {token.content: id_ for id_, token in added.items() if token.special}
        self.control_tokens |= {token: self._id(token) for token in named.values()}
        self.bos_id = self._id(named["bos_token"]) if "bos_token" in named else None
        self.unk_id = self._id(named["unk_token"]) if "unk_token" in named else None
        self.eos_id = self._id(named["eos_token"])
        self.pad_id = self._id(named["pad_token"]) if "pad_token" in named else self.eos_id
        self.prefix, self.suffix = self._around()
        self.own_templates = chat_templates({path.parent / name: text for name, text in self._files.items()})
        self._control_ids = frozenset(self.control_tokens.values())
        self.sha256 = hashlib.sha256(self._files[TOKENIZER_FILE]).hexdigest()
        decides = [self.sha256, sorted(self.control_tokens.items()), self.eos_id, self.pad_id, self.prefix, self.suffix]
        self.identity = hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:16]

    @classmethod
    def read(cls, file: Path) -> "HFVocabulary":
        """Reads a `tokenizer.json`, or a SentencePiece model that has no such file, and what lies beside it.

        Raises:
            VocabularyError: there is no such file, or see the class.
        """
        try:
            content = {TOKENIZER_FILE: file.read_bytes()} if file.suffix == ".json" else _converted(file)
            for name in _BESIDE:
                if (file.parent / name).is_file():
                    content[name] = (file.parent / name).read_bytes()
        except OSError as error:
            raise VocabularyError(f"no vocabulary at {file} ({error.strerror})") from error
        return cls(content, path=file)

    def files(self) -> Mapping[str, bytes]:
        """The files as they were read."""
        return self._files

    @property
    def tokens(self) -> Mapping[str, int]:
        """The id of each token."""
        return self._tokenizer.get_vocab(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        """The ids of a text as data: "</s>" in it is text."""
        return self._as_data.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, on one thread."""
        return [self.encode(text) for text in texts]

    def encode_rendered(self, text: str) -> list[tuple[int, int, int]]:
        """(id, start, end) of each token of a text that a template made, in characters; tokens of control are read.

        Tokens that are bytes of one character have all of it as theirs.
        """
        return _spans(self._tokenizer.encode(text, add_special_tokens=False))

    def pieces(self, text: str) -> list[tuple[int, str]]:
        """The ids of a text as data, each with the part of the text it stands for; joined they are the text."""
        found, done = [], 0
        for id_, _, end in _spans(self._as_data.encode(text, add_special_tokens=False)):
            found.append((id_, text[done:end]))
            done = max(done, end)
        return found

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids up to the first end of sequence, without tokens of control; ids past the end are left out."""
        kept = []
        for token in ids:
            if token == self.eos_id:
                break
            if token < self.size and token not in self._control_ids:
                kept.append(int(token))
        return self._tokenizer.decode(kept, skip_special_tokens=True)

    @functools.cached_property
    def _as_data(self) -> Tokenizer:
        """The same tokenizer, to which no text is a token of control."""
        state = json.loads(self._tokenizer.to_str())
        if state["model"]["type"] == "Unigram":
            # Its control tokens are pieces like others, and would be found as such: under a name that nobody types.
            for number, piece in enumerate(state["model"]["vocab"]):
                if piece[0] in self.control_tokens and number != state["model"]["unk_id"]:
                    piece[0] = f"\0{number}"
        tokenizer = Tokenizer.from_str(json.dumps(state))
        tokenizer.encode_special_tokens = True
        return tokenizer

    def _json(self, name: str) -> Mapping[str, Any]:
        """One of the files as an object; empty where there is none."""
        return json_object(self.path.parent / name, self._files.get(name, b"{}"))

    def _opened(self, config: Mapping[str, Any]) -> Tokenizer:
        """The tokenizer with the tokens that the configuration adds to it."""
        try:
            tokenizer = Tokenizer.from_str(self._files[TOKENIZER_FILE].decode())
        except Exception as error:  # the library raises no class of its own
            raise VocabularyError(f"{self.path} is not a tokenizer that can be read: {error}") from error
        tokenizer.no_padding()
        tokenizer.no_truncation()
        there = tokenizer.get_added_tokens_decoder()
        described = config.get("added_tokens_decoder") or {}
        try:
            added = sorted(
                (int(key), {name: entry[name] for name in _ADDED if name in entry or name == "content"})
                for key, entry in described.items()
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise VocabularyError(
                f"{self.path.parent / TOKENIZER_CONFIG_FILE}: added_tokens_decoder must have an object for each id "
                f"({error})"
            ) from error
        for key, entry in added:
            if key in there:
                continue
            tokenizer.add_tokens([AddedToken(**entry)])
            if tokenizer.token_to_id(entry["content"]) != key:
                raise VocabularyError(
                    f"{self.path.parent / TOKENIZER_CONFIG_FILE}: added_tokens_decoder has {entry['content']!r} as "
                    f"{key}, which {TOKENIZER_FILE} makes {tokenizer.token_to_id(entry['content'])}: the two files are "
                    "of different tokenizers"
                )
        return tokenizer

    def _id(self, token: str) -> int:
        found = self._tokenizer.token_to_id(token)
        if found is None:
            raise VocabularyError(
                f"{self.path.parent / TOKENIZER_CONFIG_FILE} names the token {token!r}, which {self.path} does not "
                "have: add it to the tokenizer and the model's embedding, or name one that is there"
            )
        return int(found)

    def _named(self, config: Mapping[str, Any]) -> dict[str, str]:
        """The special tokens by their names."""
        elsewhere = self._json(SPECIAL_TOKENS_FILE)
        named = {}
        for name in _NAMED:
            token = config[name] if name in config else elsewhere.get(name)
            token = token.get("content") if isinstance(token, dict) else token
            if token:
                named[name] = str(token)
        if "eos_token" not in named:
            usual = [token for token in _USUAL_ENDS if self._tokenizer.token_to_id(token) is not None]
            if config or not usual:
                raise VocabularyError(
                    f"nothing beside {self.path} says which token ends a sequence: set eos_token in "
                    f"{TOKENIZER_CONFIG_FILE}"
                )
            named["eos_token"] = usual[0]
        return named

    def _around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What tokenizer.json puts before and after a text; `add_bos_token` beside it counts for nothing.

        An end counts where nothing is put in front, as T5 has it: what begins with BOS is a decoder's, whose targets
        follow its inputs.
        """
        put = self._tokenizer.encode("a", add_special_tokens=True)
        own = [number for number, special in enumerate(put.special_tokens_mask) if not special]
        if not own:
            return (), ()
        before, after = tuple(put.ids[: own[0]]), tuple(put.ids[own[-1] + 1 :])
        return before, () if before else after


_ADDED = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")


def _converted(file: Path) -> dict[str, bytes]:
    """The files of a tokenizer that is a SentencePiece model, BOS in front as Llama has it."""
    proto = parse(model := file.read_bytes())
    names = {"bos_token": proto.trainer_spec.bos_id, "eos_token": proto.trainer_spec.eos_id}
    named = {name: proto.pieces[id_].piece for name, id_ in names.items() if id_ >= 0}
    named["unk_token"] = proto.pieces[proto.trainer_spec.unk_id].piece
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **named}
    tokenizer = to_tokenizer(model)
    if bos := named.get("bos_token"):
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[bos, "$A"], pair=[bos, "$A", bos, "$B"], special_tokens=[(bos, proto.trainer_spec.bos_id)]
        )
    return {
        TOKENIZER_FILE: tokenizer.to_str(pretty=True).encode(),
        TOKENIZER_CONFIG_FILE: json.dumps(config, indent=2).encode(),
    }


def _spans(encoding: Encoding) -> list[tuple[int, int, int]]:
    return [(id_, start, end) for id_, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)]
