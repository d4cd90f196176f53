"""GGUF files of decoders: read into flanjax's parameters, or rewritten as a Hugging Face folder.

    config, params = read_gguf("SmolLM2-135M-Instruct.Q4_1.gguf")       # leaves that are dequantised when indexed
    convert_gguf("SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2")          # weights, config.json, tokenizer.json

The metadata are first said as the `config.json` of the same model, and from there on it is read as any Hugging Face
folder is (`flanjax.interchange.hf_decoder`). Two things lie otherwise than there: the architecture `llama` has the
rotated pairs of queries and keys side by side, numbers 2i and 2i + 1 of a head, where Hugging Face has i and i + half;
and the norms of Gemma have the 1 added that `rms_plus_one` adds. Both are undone.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import unflatten_dict

from flanjax.interchange.folders import ModelFolderError, new_folder, require_new, write_json
from flanjax.interchange.gguf_file import GgufFile, GgufTensor, read_gguf_file
from flanjax.interchange.gguf_tokenizer import special_ids, tokenizer_files
from flanjax.interchange.hf_decoder import CONFIG, Place, hf_places, parse_config
from flanjax.interchange.hf_decoder_families import Family
from flanjax.interchange.hf_decoder_keys import Keys
from flanjax.interchange.safetensors_files import FLOATS, NewTensor, disagreements, in_dtype, write_tensors
from flanjax.interchange.stored import StoredArray, cast, gather, lazy, taken
from flanjax.models.decoder_config import DecoderConfig, Rotary
from flanjax.models.parameters import Params
from flanjax.models.positions import rotary_frequencies

_ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma", "gemma2")
_SIDE_BY_SIDE = ("llama",)
_EMBEDDING, _HEAD, _ROTARY = "token_embd.weight", "output.weight", "rope_freqs.weight"
_LLAMA3_LENGTH = 8192  # that Llama 3 was trained with before it was stretched
_BLOCK = "decoder/layers"
_NAMES = {
    "token_embedder": "token_embd",
    f"{_BLOCK}/pre_self_attention_layer_norm": "blk.{}.attn_norm",
    f"{_BLOCK}/self_attention/query": "blk.{}.attn_q",
    f"{_BLOCK}/self_attention/key": "blk.{}.attn_k",
    f"{_BLOCK}/self_attention/value": "blk.{}.attn_v",
    f"{_BLOCK}/self_attention/out": "blk.{}.attn_output",
    f"{_BLOCK}/self_attention/query_norm": "blk.{}.attn_q_norm",
    f"{_BLOCK}/self_attention/key_norm": "blk.{}.attn_k_norm",
    f"{_BLOCK}/post_self_attention_layer_norm": "blk.{}.post_attention_norm",
    f"{_BLOCK}/pre_mlp_layer_norm": "blk.{}.ffn_norm",
    f"{_BLOCK}/mlp/wi_0": "blk.{}.ffn_gate",
    f"{_BLOCK}/mlp/wi_1": "blk.{}.ffn_up",
    f"{_BLOCK}/mlp/wo": "blk.{}.ffn_down",
    f"{_BLOCK}/post_mlp_layer_norm": "blk.{}.post_ffw_norm",
    "decoder/decoder_norm": "output_norm",
    "decoder/logits_dense": "output",
}


@dataclasses.dataclass(frozen=True)
class GgufDecoder:
    """A file whose metadata and tensors fit each other.

    Attributes:
      file: as it lies there.
      hf_config: the content of `config.json` for it.
      family: Hugging Face's.
      config: the model.
      tensors: under Hugging Face's names and in its layout; read when they are indexed.
    """

    file: GgufFile
    hf_config: dict[str, Any]
    family: Family
    config: DecoderConfig
    tensors: Mapping[str, StoredArray]


def read_gguf(path: str | Path) -> tuple[DecoderConfig, Params]:
    """The configuration and the parameters, float32 leaves that are read and dequantised when they are indexed.

    Raises:
      ModelFolderError: as `open_gguf`.
    """
    decoder = open_gguf(path)
    leaves = gather(
        (place.paths[0], place.layer, place.split(cast(decoder.tensors[name], np.float32))[0])
        for name, place in hf_places(decoder.family, decoder.config).items()
    )
    return decoder.config, unflatten_dict(leaves, sep="/")


def convert_gguf(path: str | Path, output: str | Path, *, dtype: str | None = None) -> None:
    """Writes the new Hugging Face folder `output`: config.json, safetensors, generation_config.json, tokenizer.

    Arguments:
      path: the GGUF file.
      output: a new folder; it appears whole or not at all.
      dtype: of all tensors; by default each keeps its own, and quantised ones become float32.

    Raises:
      ModelFolderError: as `open_gguf` and `tokenizer_files`; `output` is not new; an unknown dtype.
    """
    if dtype not in (None, *FLOATS):
        raise ModelFolderError(f"dtype is {dtype!r}: choose one of {', '.join(FLOATS)}")
    require_new(Path(output))
    decoder = open_gguf(path)

    def tensor(name: str, stored: StoredArray) -> NewTensor:
        written = dtype or str(stored.dtype)
        return NewTensor(stored.shape, written, lambda: in_dtype(name, np.asarray(stored), written))

    tensors = {name: tensor(name, stored) for name, stored in decoder.tensors.items()}
    ids, tokenizer = special_ids(decoder.file), tokenizer_files(decoder.file)
    with new_folder(Path(output)) as folder:
        main = dtype or str(decoder.file.tensors[_EMBEDDING].dtype)
        architectures = [decoder.family.architecture]
        said = {**decoder.hf_config, **ids, "architectures": architectures, "torch_dtype": main}
        write_json(folder / CONFIG, said)
        write_json(folder / "generation_config.json", ids)
        for name, content in tokenizer.items():
            (folder / name).write_bytes(content)
        write_tensors(folder, tensors)


def open_gguf(path: str | Path) -> GgufDecoder:
    """Opens a file of a decoder; headers only, no weights are read.

    Raises:
      ModelFolderError: as `read_gguf_file`; an architecture that is not read; metadata that are missing, wrong, or
        unknown and may change the function; tensors that do not fit them, all in one message.
    """
    file = read_gguf_file(path)
    architecture = file.metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in _ARCHITECTURES:
        raise ModelFolderError(
            f"{file.path}: general.architecture is {architecture!r}: read are {', '.join(_ARCHITECTURES)}; for another "
            "decoder take its Hugging Face folder"
        )
    hf_config = _hf_config(file, architecture)
    family, config = parse_config(file.path, hf_config)
    places = hf_places(family, config)
    names = {name: _gguf_name(place) for name, place in places.items()}
    tensors = {name: tensor for name, tensor in file.tensors.items() if name != _ROTARY}
    if wrong := disagreements({names[name]: place.hf_shape for name, place in places.items()}, tensors):
        raise ModelFolderError(f"{file.path}: tensors do not fit the metadata:\n  " + "\n  ".join(wrong))
    laid = {name: _as_hugging_face(tensors[names[name]], place, config, architecture) for name, place in places.items()}
    return GgufDecoder(file, hf_config, family, config, laid)


def _gguf_name(place: Place) -> str:
    module, _, leaf = place.paths[0].rpartition("/")
    return f"{_NAMES[module].format(place.layer)}.{'bias' if leaf == 'bias' else 'weight'}"


def _as_hugging_face(tensor: GgufTensor, place: Place, config: DecoderConfig, architecture: str) -> StoredArray:
    """The tensor with its rows in Hugging Face's order and its norm as Hugging Face counts it."""
    module, _, leaf = place.paths[0].rpartition("/")
    if architecture in _SIDE_BY_SIDE and module.endswith(("/query", "/key")):
        pairs = np.arange(tensor.shape[0]).reshape(-1, config.head_dim // 2, 2)
        return taken(tensor, 0, pairs.swapaxes(1, 2).ravel())
    if config.norm == "rms_plus_one" and leaf == "scale":
        return lazy(tensor.shape, tensor.dtype, lambda slices: tensor[slices] - tensor.dtype.type(1))
    return tensor


def _hf_config(file: GgufFile, architecture: str) -> dict[str, Any]:
    """The content of `config.json` that says what the metadata say."""
    prefix = f"{architecture}."
    said = {key: value for key, value in file.metadata.items() if key.startswith(prefix)}
    keys = Keys(
        file.path, {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in said.items()}
    )

    def whole(key: str, default: int | None = None) -> int:
        return keys.whole(prefix + key, default)

    def only(key: str, value: Any, reason: str) -> None:
        keys.only(prefix + key, value, reason)

    if _EMBEDDING not in file.tensors:
        raise ModelFolderError(f"{file.path}: there is no tensor {_EMBEDDING}: this is no whole model")
    vocab_size = file.tensors[_EMBEDDING].shape[0]
    only("vocab_size", vocab_size, f"{_EMBEDDING} has as many rows")
    if whole("block_count") > len(file.tensors):
        raise keys.error(f"{prefix}block_count", f"the file has {len(file.tensors)} tensors")
    embed, heads = whole("embedding_length"), whole("attention.head_count")
    head_dim = whole("attention.key_length", embed // heads)
    only("attention.value_length", head_dim, "values are as wide as keys")
    only("rope.dimension_count", head_dim, "whole heads are rotated")
    only("expert_count", 0, "mixtures of experts are not read")
    only("expert_used_count", 0, "mixtures of experts are not read")
    hf_config = {
        "vocab_size": vocab_size,
        "tie_word_embeddings": _HEAD not in file.tensors,
        "max_position_embeddings": whole("context_length"),
        "hidden_size": embed,
        "num_hidden_layers": whole("block_count"),
        "intermediate_size": whole("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": whole("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "rms_norm_eps": keys.number(f"{prefix}attention.layer_norm_rms_epsilon"),
        "rope_theta": keys.number(f"{prefix}rope.freq_base", 10_000.0),
        **_family_keys(file, keys, architecture),
    }
    scaling, by_divisors = _scaling(keys, prefix), _llama3_scaling(file, head_dim, hf_config["rope_theta"])
    if scaling and by_divisors:
        raise keys.error(f"{prefix}rope.scaling.type", f"the tensor {_ROTARY} scales the positions too")
    if scaling or by_divisors:
        hf_config["rope_scaling"] = scaling or by_divisors
    keys.check_rest()
    return hf_config


def _family_keys(file: GgufFile, keys: Keys, architecture: str) -> dict[str, Any]:
    """The keys that only some families have."""
    prefix = f"{architecture}."
    window = f"{prefix}attention.sliding_window"
    if architecture == "llama":
        keys.only(f"{prefix}tensor_data_layout", "Meta AI original pth", "rotated pairs lie side by side")
        if window in file.metadata:
            return {"model_type": "mistral", "sliding_window": keys.whole(window), "hidden_act": "silu"}
        biases = {"attention_bias": "attn_q.bias", "mlp_bias": "ffn_up.bias"}
        has = {key: f"blk.0.{name}" in file.tensors for key, name in biases.items()}
        return {"model_type": "llama", "hidden_act": "silu", **has}
    if architecture in ("gemma", "gemma2"):
        activation = {"model_type": architecture, "hidden_activation": "gelu_pytorch_tanh"}
        if architecture == "gemma":
            return activation
        layers, embed, heads = (
            keys.whole(prefix + key) for key in ("block_count", "embedding_length", "attention.head_count")
        )
        head_dim = keys.whole(f"{prefix}attention.key_length")
        return {
            **activation,
            "sliding_window": keys.whole(window),
            "attn_logit_softcapping": keys.number(f"{prefix}attn_logit_softcapping"),
            "final_logit_softcapping": keys.number(f"{prefix}final_logit_softcapping"),
            # The files do not say it; as llama.cpp, which knows the 27B by its 46 layers.
            "query_pre_attn_scalar": embed // heads if layers == 46 else head_dim,
        }
    return {"model_type": architecture, "hidden_act": "silu"}


def _scaling(keys: Keys, prefix: str) -> dict[str, Any] | None:
    """What stretches the rotary positions, as `rope_scaling` says it."""
    scaling = f"{prefix}rope.scaling."
    kind = keys.choice(f"{scaling}type", {"none": "", "linear": "linear", "yarn": "yarn"}, "")
    keys.get(f"{scaling}finetuned")  # says nothing about the function
    factor = keys.number(f"{scaling}factor", 1.0)
    if not kind:
        return None
    said: dict[str, Any] = {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        said["original_max_position_embeddings"] = keys.whole(f"{scaling}original_context_length")
    return said


def _llama3_scaling(file: GgufFile, head_dim: int, theta: float) -> dict[str, Any] | None:
    """Llama 3.1's scaling, of which the file has only what each frequency is divided by.

    Raises:
      ModelFolderError: the divisors are not those of Llama 3.1 and its successors.
    """
    if _ROTARY not in file.tensors:
        return None
    divisors = np.asarray(file.tensors[_ROTARY])
    factor = float(divisors.max())
    said: dict[str, Any] = {"factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    fits = divisors.shape == (head_dim // 2,) and factor >= 1 and theta > 1
    if fits:
        scaled = Rotary(theta=theta, scaling="llama3", original_max_positions=_LLAMA3_LENGTH, **said)
        expected = rotary_frequencies(Rotary(theta=theta), head_dim) / rotary_frequencies(scaled, head_dim)
        fits = np.allclose(divisors, expected, rtol=1e-4)
    if not fits:
        raise ModelFolderError(
            f"{file.path}: {_ROTARY} is not the scaling of Llama 3.1 with the factor {factor:g}: take the model's "
            "Hugging Face folder, whose config.json says what it is"
        )
    return {"rope_type": "llama3", **said, "original_max_position_embeddings": _LLAMA3_LENGTH}
