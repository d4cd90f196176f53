"""Hugging Face `config.json` of a T5, mT5 or UMT5 to `T5Config` and back.

The three compute one function, except that every layer of a UMT5 has its own table of relative positions. A key is
either understood here, refused by name because it would change the function that the tensors compute, or harmless and
carried along unchanged. Whether the head is tied is not read from here but from the tensors
(`flanjax.interchange.hf_t5`): transformers 4 and 5 write `tie_word_embeddings` with different meanings.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flanjax.interchange.folders import ModelFolderError, read_json
from flanjax.models.config import ModelConfigError, T5Config

CONFIG = "config.json"
UMT5 = "umt5"
ARCHITECTURES = {
    "t5": "T5ForConditionalGeneration",
    "mt5": "MT5ForConditionalGeneration",
    UMT5: "UMT5ForConditionalGeneration",
}
TIED_MT5 = "transformers 4 scales the decoder output of an mT5 whose head is tied, transformers 5 does not"
# Hugging Face key, T5Config field, transformers' default (None: must be there).
_NUMBERS: tuple[tuple[str, str, int | float | None], ...] = (
    ("vocab_size", "vocab_size", None),
    ("d_model", "embed_dim", None),
    ("d_kv", "head_dim", None),
    ("d_ff", "mlp_dim", None),
    ("num_heads", "num_heads", None),
    ("num_layers", "num_encoder_layers", None),
    ("relative_attention_num_buckets", "relpos_buckets", 32),
    ("relative_attention_max_distance", "relpos_max_distance", 128),
    ("dropout_rate", "dropout_rate", 0.1),
    ("layer_norm_epsilon", "layer_norm_epsilon", 1e-6),
)
# feed_forward_proj to activations. Plain "gelu" is the exact one in transformers, while "gated-gelu" means tanh.
_ACTIVATIONS = {
    "relu": ("relu",),
    "gelu_new": ("gelu",),
    "silu": ("silu",),
    "gated-gelu": ("gelu", "linear"),
    "gated-gelu_new": ("gelu", "linear"),
    "gated-silu": ("silu", "linear"),
    "gated-relu": ("relu", "linear"),
}
_FIXED = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0, "is_encoder_decoder": True}
_REFUSED = {
    "quantization_config": "its weights are quantised; dequantise them with the library that wrote them",
    "tie_encoder_decoder": "encoder and decoder share weights; flanjax trains them apart",
    "pruned_heads": "attention heads were removed",
    "is_decoder": "this is a decoder alone",
}
_WRITTEN = {
    *(key for key, _, _ in _NUMBERS),
    *_FIXED,
    *("model_type", "architectures", "num_decoder_layers", "feed_forward_proj", "dense_act_fn", "is_gated_act"),
    *("tie_word_embeddings", "scale_decoder_outputs", "dtype", "torch_dtype", "transformers_version"),
}


@dataclasses.dataclass(frozen=True)
class HfConfig:
    """A checked `config.json`.

    Attributes:
      path: the file.
      model_type: `t5`, `mt5` or `umt5`.
      model: what it describes, with a tied head until the tensors say otherwise.
      scales_decoder_outputs: whether transformers multiplies the decoder output by `d_model**-0.5`, as v1.0 does.
      says_scaled: the same, where the file says so by its own key and not by default.
      extras: harmless keys that flanjax does not use, to be written again on export.
    """

    path: Path
    model_type: str
    model: T5Config
    scales_decoder_outputs: bool
    says_scaled: bool | None
    extras: dict[str, Any]


def read_hf_config(folder: Path) -> HfConfig:
    """Reads and checks `config.json`.

    Raises:
      ModelFolderError: no such folder or file, another kind of model, a missing or wrong value, a key that changes the
        function and is not supported; the message names file and key.
    """
    if not folder.is_dir():
        raise ModelFolderError(f"{folder}: there is no such folder")
    path = folder / CONFIG
    raw = read_json(path)
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        raise ModelFolderError(
            f"{path}: model_type is {model_type!r}; the encoder-decoders are {', '.join(ARCHITECTURES)}"
        )
    for key, reason in _REFUSED.items():
        if raw.get(key):
            raise ModelFolderError(f"{path}: {key} is set ({reason})")
    for key, value in _FIXED.items():
        if raw.get(key) not in (None, value):
            raise ModelFolderError(f"{path}: {key} is {raw[key]!r}; T5 as flanjax trains it has {value!r}")
    fields = {field: _number(path, raw, key, default) for key, field, default in _NUMBERS}
    fields["num_decoder_layers"] = _number(path, raw, "num_decoder_layers", fields["num_encoder_layers"])
    try:
        model = T5Config(
            mlp_activations=_activations(path, raw), tied_head=True, relpos_per_layer=model_type == UMT5, **fields
        )
    except ModelConfigError as error:
        raise ModelFolderError(f"{path}: {error}") from error
    says_scaled = raw.get("scale_decoder_outputs")
    return HfConfig(
        path=path,
        model_type=model_type,
        model=model,
        # transformers 4 has the first key alone, transformers 5 turns it into the second when it loads and saves.
        scales_decoder_outputs=raw.get("tie_word_embeddings") is not False if says_scaled is None else says_scaled,
        says_scaled=says_scaled,
        extras={key: value for key, value in raw.items() if key not in _WRITTEN},
    )


def _number(path: Path, raw: Mapping[str, Any], key: str, default: Any) -> Any:
    value = raw.get(key)
    if value is None:
        value = default
    if value is None:
        raise ModelFolderError(f"{path}: {key} is missing")
    fraction = key in ("dropout_rate", "layer_norm_epsilon")
    if isinstance(value, bool) or not isinstance(value, int | float if fraction else int) or value < 0:
        raise ModelFolderError(f"{path}: {key} is {value!r}: it must be a {'' if fraction else 'whole '}number")
    return value


def _activations(path: Path, raw: Mapping[str, Any]) -> tuple[str, ...]:
    name = raw.get("feed_forward_proj") or "relu"
    if name not in _ACTIVATIONS:
        raise ModelFolderError(
            f"{path}: feed_forward_proj is {name!r}; supported are {', '.join(sorted(_ACTIVATIONS))}"
        )
    activations = _ACTIVATIONS[name]
    gated, activation = len(activations) == 2, activations[0].replace("gelu", "gelu_new")
    # transformers derives these two from feed_forward_proj, but lets the file overrule it.
    for key, derived in (("is_gated_act", gated), ("dense_act_fn", activation)):
        if raw.get(key) not in (None, derived):
            raise ModelFolderError(
                f"{path}: {key} is {raw[key]!r}, while feed_forward_proj {name!r} means {derived!r}; "
                f"remove {key} if the model was trained with the latter"
            )
    return activations


def _model_type(model: T5Config) -> str:
    """That of a model which brings none."""
    return UMT5 if model.relpos_per_layer else "t5"


def hf_architecture(model: T5Config) -> str:
    """The class of transformers for a model that brings no `model_type`."""
    return ARCHITECTURES[_model_type(model)]


def hf_config(
    model: T5Config, *, dtype: str, model_type: str | None = None, extras: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The content of `config.json` for `model`, stored in `dtype`, which both transformers 4 and 5 read rightly.

    `tie_word_embeddings` is what transformers 4 goes by; `scale_decoder_outputs` keeps its meaning in transformers 5,
    which always ties on load unless both tensors exist and differ. `model_type` is `t5`, or `umt5` for a model with
    a table in every layer, unless it is given.

    Raises:
      ModelFolderError: no `config.json`, or none of this type, says what the model is.
    """
    model_type = model_type or _model_type(model)
    if model.relpos_per_layer != (model_type == UMT5):
        raise ModelFolderError(f"relpos_per_layer is {model.relpos_per_layer}, which model_type {model_type!r} is not")
    if model_type == "mt5" and model.tied_head:
        raise ModelFolderError(f"tied_head is set and model_type 'mt5': {TIED_MT5}; write it as a 't5'")
    names = {activations: name for name, activations in reversed(_ACTIVATIONS.items())}
    if model.mlp_activations not in names:
        raise ModelFolderError(
            f"mlp_activations {model.mlp_activations!r}: transformers has no feed_forward_proj for them"
        )
    return {
        **(extras or {}),
        **{key: getattr(model, field) for key, field, _ in _NUMBERS},
        **_FIXED,
        "model_type": model_type,
        "architectures": [ARCHITECTURES[model_type]],
        "num_decoder_layers": model.num_decoder_layers,
        "feed_forward_proj": names[model.mlp_activations],
        "tie_word_embeddings": model.tied_head,
        "scale_decoder_outputs": model.tied_head,
        "torch_dtype": dtype,
    }
