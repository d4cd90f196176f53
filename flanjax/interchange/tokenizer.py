"""Tokenizer files of a Hugging Face folder: those of the vocabulary, or copied where the source has them.

Of a T5 vocabulary `tokenizer.json` is built: the same unigram pieces and scores, SentencePiece's own character map as
normaliser, `▁` for spaces, `</s>` at the end, and the sentinels `<extra_id_*>` on top, so that `AutoTokenizer` gives
the ids of the vocabulary. The chat template that a model was trained with goes into tokenizer_config.json, whatever the
source had there: `apply_chat_template` then gives the text of training.
"""

import shutil
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, processors
from tokenizers.models import Unigram

from flanjax.data.byte_vocabulary import is_byte_folder
from flanjax.data.hf_vocabulary import CHAT_TEMPLATE_FILE, HFVocabulary
from flanjax.data.sentencepiece_tokenizer import parse, set_spaces
from flanjax.data.vocabularies import LLAMA_MODEL_FILE, MODEL_FILE, SentencePieces, Vocabulary
from flanjax.interchange.folders import ModelFolderError, read_json, write_json

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
_FILES = (MODEL_FILE, TOKENIZER, TOKENIZER_CONFIG, SPECIAL_TOKENS, "added_tokens.json", CHAT_TEMPLATE_FILE)


def has_vocabulary(folder: Path) -> bool:
    """Whether a Hugging Face folder has a tokenizer that `read_vocabulary` reads."""
    return any((folder / name).is_file() for name in (MODEL_FILE, TOKENIZER, LLAMA_MODEL_FILE)) or is_byte_folder(
        folder
    )


def read_vocabulary(folder: Path) -> Vocabulary:
    """The vocabulary of a Hugging Face folder.

    Raises:
      ModelFolderError: no tokenizer file, or tokens added that SentencePiece does not know.
      VocabularyError: a file is damaged.
    """
    if not (folder / MODEL_FILE).is_file():
        if has_vocabulary(folder):
            return Vocabulary.from_file(folder)
        raise ModelFolderError(
            f"{folder}: no {MODEL_FILE}, {TOKENIZER} or {LLAMA_MODEL_FILE}, so text cannot be turned into tokens; copy "
            "it from the model this one was trained from"
        )
    extra_ids, special = 100, {"<pad>", "</s>", "<unk>"}
    if (folder / TOKENIZER_CONFIG).is_file():
        config = read_json(folder / TOKENIZER_CONFIG)
        added = config.get("added_tokens_decoder") or {}
        names = {entry["content"] for entry in added.values() if isinstance(entry, dict) and "content" in entry}
        sentinels = sum(name.startswith("<extra_id_") for name in names)
        extra_ids = config.get("extra_ids", sentinels or extra_ids)
        special |= {f"<extra_id_{number}>" for number in range(extra_ids)}
        if unknown := sorted(names - special):
            raise ModelFolderError(
                f"{folder / TOKENIZER_CONFIG}: added_tokens_decoder adds {', '.join(map(repr, unknown))}, which "
                f"{MODEL_FILE} cannot encode"
            )
    return Vocabulary.from_file(folder / MODEL_FILE, extra_ids=extra_ids)


def has_pieces_of(own: Vocabulary, vocabulary: Vocabulary) -> bool:
    """Whether each id is the same piece in both, however the file is written that `own` was read from.

    Sentinels and other tokens on top of the pieces of a SentencePiece model are not looked at.
    """
    if isinstance(own, HFVocabulary) and isinstance(vocabulary, SentencePieces):
        tokens, pieces = own.tokens, parse(vocabulary.model).pieces
        return all(tokens.get(piece.piece) == id_ for id_, piece in enumerate(pieces))
    if isinstance(own, HFVocabulary) and isinstance(vocabulary, HFVocabulary):
        return own.tokens == vocabulary.tokens
    return own.sha256 == vocabulary.sha256


def write_tokenizer(folder: Path, vocabulary: Vocabulary | None, source: Path | None = None) -> None:
    """Puts tokenizer files into `folder`: the vocabulary's own, else those of `source` byte for byte, else none.

    The chat template of the vocabulary, that of a run which was trained on chats, is in tokenizer_config.json then.
    """
    if vocabulary is None:
        if source is not None and ((source / TOKENIZER).is_file() or is_byte_folder(source)):
            for name in _FILES:
                if (source / name).is_file():
                    shutil.copyfile(source / name, folder / name)
        return
    files = {**vocabulary.files()}
    template = files.pop(CHAT_TEMPLATE_FILE, None)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    names: dict[str, Any] = dict(vocabulary.special_tokens)
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    if isinstance(vocabulary, SentencePieces):
        build_tokenizer(vocabulary).save(str(folder / TOKENIZER))
        names = _special_tokens(vocabulary)
        config = {"tokenizer_class": "T5Tokenizer", "extra_ids": vocabulary.extra_ids}
    if SPECIAL_TOKENS not in files:
        write_json(folder / SPECIAL_TOKENS, names)
    if TOKENIZER_CONFIG not in files:
        write_json(folder / TOKENIZER_CONFIG, {**names, **config})
    if template is not None:
        path = folder / TOKENIZER_CONFIG
        write_json(path, {**read_json(path), "chat_template": template.decode()})


def _sentinels(vocabulary: SentencePieces) -> list[str]:
    return [f"<extra_id_{number}>" for number in range(vocabulary.extra_ids)]


def _special_tokens(vocabulary: SentencePieces) -> dict[str, Any]:
    pieces = parse(vocabulary.model).pieces
    names: dict[str, Any] = {
        "pad_token": pieces[vocabulary.pad_id].piece,
        "eos_token": pieces[vocabulary.eos_id].piece,
        "unk_token": pieces[vocabulary.unk_id].piece,
    }
    return {**names, "additional_special_tokens": _sentinels(vocabulary)}


def build_tokenizer(vocabulary: SentencePieces) -> Tokenizer:
    """The same tokenization for the `tokenizers` library; it appends the end of sequence, the vocabulary does not.

    Raises:
      ModelFolderError: the SentencePiece model is not a unigram model.
    """
    proto = parse(vocabulary.model)
    if proto.trainer_spec.model_type != proto.trainer_spec.UNIGRAM:
        raise ModelFolderError(f"{vocabulary.path}: not a unigram SentencePiece model, which T5's tokenizer needs")
    sentinels = _sentinels(vocabulary)
    pieces = [(piece.piece, piece.score) for piece in proto.pieces] + [(name, 0.0) for name in reversed(sentinels)]
    tokenizer = Tokenizer(Unigram(pieces, unk_id=vocabulary.unk_id, byte_fallback=False))
    set_spaces(tokenizer, proto)
    special = _special_tokens(vocabulary)
    eos = special["eos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["$A", eos], pair=["$A", eos, "$B", eos], special_tokens=[(eos, vocabulary.eos_id)]
    )
    names = [special["pad_token"], eos, special["unk_token"], *reversed(sentinels)]
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in names])
    return tokenizer
