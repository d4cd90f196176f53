"""A SentencePiece model as a tokenizer of the `tokenizers` library, for models that come with `tokenizer.model` alone.

    tokenizer = to_tokenizer(Path("Llama-2-7b/tokenizer.model").read_bytes())       BPE with byte fallback, or unigram
    tokenizer.encode("Hi", add_special_tokens=False).ids                           the ids that SentencePiece gives

Merges are not stored in a SentencePiece model: each piece is made of the two that the trainer had joined, and the
better its score the earlier it was joined (https://github.com/google/sentencepiece, `model_type=bpe`).
"""

from collections.abc import Iterator, Sequence
from typing import Any

from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram

from flanjax.errors import FlanjaxError

SPACE = "▁"


class SentencePieceError(FlanjaxError):
    """A SentencePiece model that the `tokenizers` library has no equal of."""


def parse(model: bytes) -> Any:
    """The model as a message of SentencePiece's own format.

    Raises:
        SentencePieceError: it is none.
    """
    proto = ModelProto()
    try:
        proto.ParseFromString(model)
    except Exception as error:
        raise SentencePieceError(f"this is not a SentencePiece model ({error})") from error
    return proto


def to_tokenizer(model: bytes) -> Tokenizer:
    """The tokenizer with the ids of a model; tokens of control are special, nothing is put around a text.

    Raises:
        SentencePieceError: it is no SentencePiece model, or neither a BPE nor a unigram model.
    """
    proto = parse(model)
    kinds, pieces = proto.SentencePiece, [(piece.piece, piece.score) for piece in proto.pieces]
    kind, unk = proto.trainer_spec.model_type, proto.trainer_spec.unk_id
    if kind == proto.trainer_spec.UNIGRAM:
        tokenizer = Tokenizer(Unigram(pieces, unk_id=unk, byte_fallback=proto.trainer_spec.byte_fallback))
    elif kind == proto.trainer_spec.BPE:
        ids = {piece: id_ for id_, (piece, _) in enumerate(pieces)}
        merges = list(_merges(pieces, ids))
        unknown = pieces[unk][0]
        tokenizer = Tokenizer(
            BPE(ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=proto.trainer_spec.byte_fallback)
        )
    else:
        raise SentencePieceError(
            "this SentencePiece model is neither BPE nor unigram: there is no tokenizer.json for it"
        )
    set_spaces(tokenizer, proto)
    control = [piece.piece for piece in proto.pieces if piece.type in (kinds.CONTROL, kinds.UNKNOWN)]
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in control])
    defined = [piece.piece for piece in proto.pieces if piece.type == kinds.USER_DEFINED]
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in defined])
    return tokenizer


def set_spaces(tokenizer: Tokenizer, proto: Any) -> None:
    """Has a tokenizer treat spaces and characters as a model does: its character map, runs of spaces, `▁` in front."""
    spec = proto.normalizer_spec
    steps: list[Any] = [normalizers.Precompiled(spec.precompiled_charsmap)] if spec.precompiled_charsmap else []
    if spec.remove_extra_whitespaces:
        # After the character map, which has made tabs and newlines into spaces.
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if proto.trainer_spec.model_type == proto.trainer_spec.UNIGRAM:
        scheme = "always" if spec.add_dummy_prefix else "never"
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=scheme, split=True)
        tokenizer.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme=scheme, split=True)
    else:
        # Pieces of BPE may have spaces inside: nothing is cut at them, and the one in front comes before any other.
        steps += [normalizers.Prepend(SPACE)] if spec.add_dummy_prefix else []
        steps += [normalizers.Replace(" ", SPACE)]
        first = [decoders.Strip(" ", 1, 0)] if spec.add_dummy_prefix else []
        spaced: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *first]
        tokenizer.decoder = decoders.Sequence(spaced)
    if steps:
        tokenizer.normalizer = normalizers.Sequence(steps)


def _merges(pieces: Sequence[tuple[str, float]], ids: dict[str, int]) -> Iterator[tuple[str, str]]:
    """The pairs of pieces that are joined, the best first."""
    found = []
    for piece, score in pieces:
        pairs = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        known = sorted((ids[left], ids[right], left, right) for left, right in pairs if left in ids and right in ids)
        found += [(score, left, right) for _, _, left, right in known]
    for _, left, right in sorted(found, key=lambda merge: -merge[0]):
        yield left, right
