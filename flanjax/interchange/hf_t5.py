"""Hugging Face folders of T5, mT5 and UMT5: read into flanjax's parameters and written from them, exactly.

The two differ in names, in orientation (torch keeps a linear layer's weight [out, in], flanjax its kernel [in, out])
and in that flanjax stacks the layers of a stack on a leading axis. Import then export gives the same bits. The known
traps are met here: tied or untied is decided from the tensors, `shared.weight` and an untied `lm_head.weight` are
always written, and every missing, unknown or mis-shaped tensor is listed in one message.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flanjax.data.vocabularies import Vocabulary
from flanjax.interchange.folders import ModelFolderError, new_folder, write_json
from flanjax.interchange.hf_config import CONFIG, TIED_MT5, HfConfig, hf_config, read_hf_config
from flanjax.interchange.model_card import CARD, model_card
from flanjax.interchange.safetensors_files import (
    FLOATS,
    SHARD_BYTES,
    NewTensor,
    StoredTensor,
    disagreements,
    in_dtype,
    stored_tensors,
    write_tensors,
)
from flanjax.interchange.stored import StoredArray, equal, gather, layer_of, transposed
from flanjax.interchange.tokenizer import write_tokenizer
from flanjax.models.config import T5Config
from flanjax.models.t5 import Params, abstract_params

GENERATION_CONFIG = "generation_config.json"
_EMBEDDING = "token_embedder/embedding"
_HEAD = "decoder/logits_dense/kernel"
_SHARED, _LM_HEAD = "shared.weight", "lm_head.weight"
_EMBEDDING_COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
# A table that the first T5 files carry and no T5 reads: there is no position bias in cross-attention.
_UNUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"

_ATTENTION = {"query": "q", "key": "k", "value": "v", "out": "o"}
_WHOLE = {
    _EMBEDDING: _SHARED,
    "encoder/relpos_bias/rel_embedding": "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    "encoder/encoder_norm/scale": "encoder.final_layer_norm.weight",
    "decoder/relpos_bias/rel_embedding": "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    "decoder/decoder_norm/scale": "decoder.final_layer_norm.weight",
    _HEAD: _LM_HEAD,
}
_LAYERED = {
    "encoder/layers/pre_attention_layer_norm": "encoder.block.{}.layer.0.layer_norm.weight",
    "encoder/layers/attention": "encoder.block.{}.layer.0.SelfAttention.{}.weight",
    "encoder/layers/relpos_bias": "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight",
    "encoder/layers/pre_mlp_layer_norm": "encoder.block.{}.layer.1.layer_norm.weight",
    "encoder/layers/mlp": "encoder.block.{}.layer.1.DenseReluDense.{}.weight",
    "decoder/layers/pre_self_attention_layer_norm": "decoder.block.{}.layer.0.layer_norm.weight",
    "decoder/layers/self_attention": "decoder.block.{}.layer.0.SelfAttention.{}.weight",
    "decoder/layers/relpos_bias": "decoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight",
    "decoder/layers/pre_cross_attention_layer_norm": "decoder.block.{}.layer.1.layer_norm.weight",
    "decoder/layers/encoder_decoder_attention": "decoder.block.{}.layer.1.EncDecAttention.{}.weight",
    "decoder/layers/pre_mlp_layer_norm": "decoder.block.{}.layer.2.layer_norm.weight",
    "decoder/layers/mlp": "decoder.block.{}.layer.2.DenseReluDense.{}.weight",
}


@dataclasses.dataclass(frozen=True)
class Place:
    """Where one Hugging Face tensor lies in the parameters: a path, the layer of a stacked leaf, and its shape here."""

    path: str
    layer: int | None
    shape: tuple[int, ...]

    @property
    def transposed(self) -> bool:
        """Whether torch keeps it the other way round: kernels and position tables, not the embedding."""
        return len(self.shape) == 2 and self.path != _EMBEDDING

    @property
    def hf_shape(self) -> tuple[int, ...]:
        """Its shape in the Hugging Face file."""
        return self.shape[::-1] if self.transposed else self.shape

    def of(self, array: StoredArray) -> StoredArray:
        """The file's array as it lies in the parameters."""
        return transposed(array) if self.transposed else array


def hf_places(config: T5Config) -> dict[str, Place]:
    """Every Hugging Face tensor of `config` and its place in the parameters, in the order of the parameter tree.

    Worked example: `encoder.block.1.layer.0.SelfAttention.q.weight` of a model with `embed_dim` 512 and 6 heads of 64
    lies at `encoder/layers/attention/query/kernel`, layer 1, shape (512, 384), transposed.
    """
    places = {}
    for path, leaf in _flatten(abstract_params(config)):
        if path in _WHOLE:
            places[_WHOLE[path]] = Place(path, None, leaf.shape)
            continue
        stack, *rest = path.rsplit("/", 2)
        if rest[-1] in ("scale", "rel_embedding"):
            stack, name = f"{stack}/{rest[0]}", None
        else:
            name = _ATTENTION.get(rest[0], rest[0])
        for layer in range(leaf.shape[0]):
            places[_LAYERED[stack].format(layer, name)] = Place(path, layer, leaf.shape[1:])
    return places


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


def _unflatten(leaves: Mapping[str, Any]) -> Params:
    tree: Params = {}
    for path, leaf in leaves.items():
        *folders, name = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = leaf
    return tree


def read_hf_t5(folder: str | Path) -> tuple[T5Config, Params]:
    """Reads a folder of safetensors, sharded or not: a T5 (v1.0, v1.1, LM-adapted, Flan, T0, UL2, ByT5), mT5 or UMT5.

    Returns the configuration and the parameters as they lie in the files: float32 arrays (bfloat16 and float16 are
    widened exactly) of which `flanjax.interchange.stored` reads what is asked for.

    Raises:
      ModelFolderError: the folder, its `config.json` or its tensors are missing, damaged, or of a model that is not
        a T5; all tensors that do not fit are listed at once.
    """
    folder = Path(folder)
    hf = read_hf_config(folder)
    stored = stored_tensors(folder)
    places = hf_places(dataclasses.replace(hf.model, tied_head=_LM_HEAD not in stored))
    copies = {name: stored.pop(name) for name in (*_EMBEDDING_COPIES, _UNUSED) if name in stored}
    copies.pop(_UNUSED, None)
    if _SHARED not in stored and copies:
        stored[_SHARED] = next(iter(copies.values()))
    _check(hf, places, stored)
    leaves = gather((place.path, place.layer, place.of(stored[name].float32())) for name, place in places.items())
    _check_copies(hf, copies, leaves[_EMBEDDING])
    model = _decide_head(hf, leaves)
    return model, _unflatten(leaves)


def _check(hf: HfConfig, places: Mapping[str, Place], stored: Mapping[str, StoredTensor]) -> None:
    """All disagreements between the configuration and the files, in one message."""
    wrong = disagreements({name: place.hf_shape for name, place in places.items()}, stored)
    if _LM_HEAD not in stored and not hf.scales_decoder_outputs and hf.says_scaled is None:
        wrong.append(f"missing: {_LM_HEAD} (the head is untied: tie_word_embeddings is false)")
    if wrong:
        raise ModelFolderError(f"{hf.path.parent}: tensors do not fit {hf.path.name}:\n  " + "\n  ".join(wrong))


def _check_copies(hf: HfConfig, copies: Mapping[str, StoredTensor], embedding: StoredArray) -> None:
    for name, tensor in copies.items():
        if not equal(tensor.float32(), embedding):
            raise ModelFolderError(f"{hf.path.parent}: {name} differs from {_SHARED}; a T5 has one embedding")


def _decide_head(hf: HfConfig, leaves: dict[str, StoredArray]) -> T5Config:
    """Ties or unties the head by what the tensors are; drops or adds the head's leaf to match.

    A head that equals the embedding is tied only where the decoder output is scaled. Tied without the scale is the
    untied model whose head happens to equal the embedding.
    """
    embedding, head = leaves[_EMBEDDING], leaves.get(_HEAD)
    if not hf.scales_decoder_outputs:
        leaves[_HEAD] = transposed(embedding) if head is None else head
        return dataclasses.replace(hf.model, tied_head=False)
    if head is None or equal(transposed(head), embedding):
        if hf.model_type == "mt5":
            raise ModelFolderError(
                f"{hf.path}: {TIED_MT5}, and the head is tied here; set model_type to 't5' for the former function, "
                "scale_decoder_outputs to false for the latter"
            )
        leaves.pop(_HEAD, None)
        return hf.model
    if hf.says_scaled:
        raise ModelFolderError(
            f"{hf.path}: scale_decoder_outputs is true, but {_LM_HEAD} differs from {_SHARED}: only T5 v1.0 "
            "scales, and its head is tied; set scale_decoder_outputs to false for a v1.1 or Flan-T5 model"
        )
    return dataclasses.replace(hf.model, tied_head=False)


def write_hf_t5(
    output: str | Path,
    config: T5Config,
    params: Params,
    vocabulary: Vocabulary | None,
    *,
    recipe: Mapping[str, str] | None = None,
    source: str | Path | None = None,
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a folder that transformers opens: configuration, weights, tokenizer and model card.

    Args:
      output: a new folder; it appears whole or not at all.
      config: the model.
      params: its parameters: numpy or jax arrays, or in files, of which one tensor at a time is read.
      vocabulary: for the tokenizer files; None takes those of `source`, if there are any.
      recipe: label to value, printed as a table on the model card.
      source: the Hugging Face folder that this model was read from. Its generation config, harmless configuration
        keys, model card (unless a recipe is given) and each tensor's dtype are taken over.
      dtype: dtype of all tensors; by default that of `source`, or float32.
      shard_bytes: largest weights file.

    Raises:
      ModelFolderError: `output` is not new, `dtype` is unknown or too small for a value, parameters do not fit
        `config`, or the disk refuses.
    """
    output = Path(output)
    if dtype not in (None, *FLOATS):
        raise ModelFolderError(f"dtype is {dtype!r}: choose one of {', '.join(FLOATS)}")
    extras: Mapping[str, Any] = {}
    model_type: str | None = None
    dtypes: dict[str, str] = {}
    if source is not None:
        source = Path(source)
        hf = read_hf_config(source)
        extras, model_type = hf.extras, hf.model_type
        dtypes = _stored_dtypes(source) if dtype is None else {}
    default = dtypes.get(_SHARED, dtype or "float32")
    tensors = _new_tensors(config, params, lambda name: dtypes.get(name, default))
    keys = hf_config(config, dtype=tensors[_SHARED].dtype, model_type=model_type, extras=extras)
    with new_folder(output) as folder:
        write_json(folder / CONFIG, keys)
        _write_generation_config(folder, source)
        write_tensors(folder, tensors, shard_bytes)
        write_tokenizer(folder, vocabulary, source)
        if recipe is None and source is not None and (source / CARD).is_file():
            (folder / CARD).write_bytes((source / CARD).read_bytes())
        else:
            (folder / CARD).write_text(model_card(output.name, config, recipe), encoding="utf-8")


def _stored_dtypes(source: Path) -> dict[str, str]:
    dtypes = {name: tensor.dtype for name, tensor in stored_tensors(source).items()}
    for name in _EMBEDDING_COPIES:
        if name in dtypes:
            dtypes.setdefault(_SHARED, dtypes[name])
    return dtypes


def _write_generation_config(folder: Path, source: Path | None) -> None:
    if source is not None and (source / GENERATION_CONFIG).is_file():
        (folder / GENERATION_CONFIG).write_bytes((source / GENERATION_CONFIG).read_bytes())
    else:
        write_json(folder / GENERATION_CONFIG, {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0})


def _new_tensors(config: T5Config, params: Params, dtype_of: Callable[[str], str]) -> dict[str, NewTensor]:
    leaves = dict(_flatten(params))
    expected = {path: tuple(leaf.shape) for path, leaf in _flatten(abstract_params(config))}
    given = {path: tuple(leaf.shape) for path, leaf in leaves.items()}
    if wrong := sorted(path for path in expected.keys() | given.keys() if expected.get(path) != given.get(path)):
        listed = "\n  ".join(f"{p}: {given.get(p, 'missing')}, expected {expected.get(p, 'none')}" for p in wrong)
        raise ModelFolderError(f"parameters do not fit the configuration:\n  {listed}")

    def tensor(name: str, place: Place) -> NewTensor:
        dtype = dtype_of(name)
        return NewTensor(place.hf_shape, dtype, lambda: _hf_array(name, place, leaves[place.path], dtype))

    return {name: tensor(name, place) for name, place in hf_places(config).items()}


def _hf_array(name: str, place: Place, leaf: Any, dtype: str) -> np.ndarray:
    return in_dtype(name, np.asarray(place.of(layer_of(leaf, place.layer))), dtype)
