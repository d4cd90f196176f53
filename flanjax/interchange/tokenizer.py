"""Tokenizer files of a Hugging Face T5 folder: built from a SentencePiece model, or copied where the source has them.

`tokenizer.json` holds the same unigram pieces and scores, SentencePiece's own character map as normaliser, `▁` for
spaces, `</s>` at the end, and the sentinels `<extra_id_*>` on top, so `AutoTokenizer` gives the ids of `Vocabulary`.
"""

import shutil
from pathlib import Path
from typing import Any

from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram

from flanjax.data.vocabularies import MODEL_FILE, Vocabulary
from flanjax.interchange.folders import ModelFolderError, read_json, write_json

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
_FILES = (MODEL_FILE, TOKENIZER, TOKENIZER_CONFIG, SPECIAL_TOKENS, "added_tokens.json", "chat_template.jinja")
_SPACE = "▁"


def read_vocabulary(folder: Path) -> Vocabulary:
    """The vocabulary of a Hugging Face T5 folder.

    Raises:
      ModelFolderError: no `spiece.model`, or tokens added that SentencePiece does not know.
    """
    if not (folder / MODEL_FILE).is_file():
        raise ModelFolderError(
            f"{folder}: no {MODEL_FILE}, so text cannot be turned into tokens; copy it from the model this one was "
            "trained from (recent transformers saves tokenizer.json alone)"
        )
    extra_ids, special = 100, {"<pad>", "</s>", "<unk>"}
    if (folder / TOKENIZER_CONFIG).is_file():
        config = read_json(folder / TOKENIZER_CONFIG)
        extra_ids = config.get("extra_ids", extra_ids)
        added = config.get("added_tokens_decoder") or {}
        names = {entry["content"] for entry in added.values() if isinstance(entry, dict) and "content" in entry}
        special |= {f"<extra_id_{number}>" for number in range(extra_ids)}
        if unknown := sorted(names - special):
            raise ModelFolderError(
                f"{folder / TOKENIZER_CONFIG}: added_tokens_decoder adds {', '.join(map(repr, unknown))}, which "
                f"{MODEL_FILE} cannot encode"
            )
    return Vocabulary.from_file(folder / MODEL_FILE, extra_ids=extra_ids)


def has_pieces_of(folder: Path, vocabulary: Vocabulary) -> bool:
    """Whether each id of the folder's `tokenizer.json` is the piece that it is of `vocabulary`.

    Sentinels and other tokens on top of the pieces are not looked at.

    Raises:
      ModelFolderError: there is no such file, or it is no tokenizer.
    """
    try:
        tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    except Exception as error:  # the library raises no class of its own
        raise ModelFolderError(f"{folder / TOKENIZER}: not a tokenizer that can be read: {error}") from error
    return all(tokenizer.id_to_token(id_) == piece.piece for id_, piece in enumerate(_parse(vocabulary).pieces))


def write_tokenizer(folder: Path, vocabulary: Vocabulary | None, source: Path | None = None) -> None:
    """Puts tokenizer files into `folder`: those of `source` byte for byte, else built from `vocabulary`, else none."""
    if source is not None and (source / TOKENIZER).is_file():
        for name in _FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
        return
    if vocabulary is None:
        return
    (folder / MODEL_FILE).write_bytes(vocabulary.model)
    build_tokenizer(vocabulary).save(str(folder / TOKENIZER))
    names = _special_tokens(vocabulary)
    write_json(folder / SPECIAL_TOKENS, names)
    write_json(
        folder / TOKENIZER_CONFIG, {**names, "tokenizer_class": "T5Tokenizer", "extra_ids": vocabulary.extra_ids}
    )


def _sentinels(vocabulary: Vocabulary) -> list[str]:
    return [f"<extra_id_{number}>" for number in range(vocabulary.extra_ids)]


def _special_tokens(vocabulary: Vocabulary) -> dict[str, Any]:
    pieces = _parse(vocabulary).pieces
    names: dict[str, Any] = {
        "pad_token": pieces[vocabulary.pad_id].piece,
        "eos_token": pieces[vocabulary.eos_id].piece,
        "unk_token": pieces[vocabulary.unk_id].piece,
    }
    return {**names, "additional_special_tokens": _sentinels(vocabulary)}


def _parse(vocabulary: Vocabulary) -> Any:
    proto = ModelProto()
    proto.ParseFromString(vocabulary.model)
    return proto


def build_tokenizer(vocabulary: Vocabulary) -> Tokenizer:
    """The same tokenization for the `tokenizers` library; it appends the end of sequence, `Vocabulary` does not.

    Raises:
      ModelFolderError: the SentencePiece model is not a unigram model.
    """
    proto = _parse(vocabulary)
    if proto.trainer_spec.model_type != proto.trainer_spec.UNIGRAM:
        raise ModelFolderError(f"{vocabulary.path}: not a unigram SentencePiece model, which T5's tokenizer needs")
    sentinels = _sentinels(vocabulary)
    pieces = [(piece.piece, piece.score) for piece in proto.pieces] + [(name, 0.0) for name in reversed(sentinels)]
    tokenizer = Tokenizer(Unigram(pieces, unk_id=vocabulary.unk_id, byte_fallback=False))
    charsmap = proto.normalizer_spec.precompiled_charsmap
    # SentencePiece drops spaces at both ends and squeezes runs, after its character map has made tabs and newlines
    # into spaces.
    squeeze = [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Precompiled(charsmap), *squeeze] if charsmap else squeeze)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="always", split=True)
    tokenizer.decoder = decoders.Metaspace(replacement=_SPACE, prepend_scheme="always", split=True)
    special = _special_tokens(vocabulary)
    eos = special["eos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["$A", eos], pair=["$A", eos, "$B", eos], special_tokens=[(eos, vocabulary.eos_id)]
    )
    names = [special["pad_token"], eos, special["unk_token"], *reversed(sentinels)]
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in names])
    return tokenizer
