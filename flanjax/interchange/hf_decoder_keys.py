"""The keys of a decoder's `config.json`: read with their types checked, and none left over that might matter.

A key is understood by the family that reads it, known to change nothing that the model computes (`HARMLESS`), or
refused by name. transformers 5 keeps rotary settings in `rope_parameters`, transformers 4 in `rope_theta` and
`rope_scaling`; both are read, and the older ones are written, which both read.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from flanjax.interchange.folders import ModelFolderError
from flanjax.models.decoder_config import Rotary

Value = TypeVar("Value")
# Hugging Face's names of activations; the first of several is written.
ACTIVATIONS = {
    "silu": "silu",
    "gelu_pytorch_tanh": "gelu",
    "gelu": "exact_gelu",
    "relu": "relu",
    "relu2": "squared_relu",
    "tanh": "tanh",
    "gelu_new": "gelu",
    "gelu_fast": "gelu",
    "swish": "silu",
}
HARMLESS = {
    *("architectures", "model_type", "transformers_version", "dtype", "torch_dtype", "_name_or_path", "auto_map"),
    *("use_cache", "return_dict", "output_attentions", "output_hidden_states", "chunk_size_feed_forward", "is_decoder"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id", "prefix", "problem_type"),
    *("id2label", "label2id", "task_specific_params", "finetuning_task", "cache_implementation", "n_ctx", "seq_length"),
    # Of training: how it began, and its dropouts.
    *("initializer_range", "init_std", "attention_dropout", "hidden_dropout", "dropout", "activation_dropout"),
    *("attn_pdrop", "embd_pdrop", "resid_pdrop", "classifier_dropout", "layerdrop", "gradient_checkpointing"),
    *("summary_type", "summary_use_proj", "summary_activation", "summary_first_dropout", "summary_proj_to_labels"),
    # Of how the same numbers are computed.
    *("pretraining_tp", "slow_but_exact", "reorder_and_upcast_attn", "attention_softmax_in_fp32"),
    *("scale_attention_softmax_in_fp32", "bias_dropout_fusion", "masked_softmax_fusion", "skip_bias_add"),
    *("skip_bias_add_qkv", "offset_alibi", "inference_runner", "validate_runner_input", "pad_key_length"),
    *("pre_allocate_kv_cache", "max_sequence_length", "max_batch_size", "_attn_implementation_autoset"),
    *("_flash_attn_2_enabled", "is_llama_config", "transformers.js_config", "apply_query_key_layer_scaling"),
    *("fp32_residual_connection", "prefix_projection", "tokenizer_class"),
}
# Where one of these is set, the tensors are of another function.
_UNSUPPORTED = {
    "quantization_config": "its weights are quantised; dequantise them with the library that wrote them",
    "is_encoder_decoder": "this is an encoder-decoder",
    "add_cross_attention": "it attends to an encoder",
    "cross_attention_hidden_size": "it attends to an encoder",
    "pruned_heads": "attention heads were removed",
    "use_bidirectional_attention": "its tokens see later ones",
    "use_mrope": "it has multimodal positions",
    "rope_interleaved": "its rotary pairs lie side by side",
}
_SCALINGS = {"default": "none", "linear": "linear", "dynamic": "dynamic", "llama3": "llama3", "yarn": "yarn"}
_ROTARY_NUMBERS = {
    "linear": {"factor": "factor"},
    "dynamic": {"factor": "factor"},
    "llama3": {"factor": "factor", "low_freq_factor": "low_freq_factor", "high_freq_factor": "high_freq_factor"},
    "yarn": {
        "factor": "factor",
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
        "attention_factor": "attention_factor",
    },
}
_ORIGINAL = "original_max_position_embeddings"


class Keys:
    """One `config.json`; every key that is asked for counts as understood."""

    def __init__(self, path: Path, raw: Mapping[str, Any]):
        self.path = path
        self.raw = raw
        self.known: set[str] = set()

    def error(self, key: str, text: str) -> ModelFolderError:
        """A `ModelFolderError` that names the file, the key and its value."""
        return ModelFolderError(f"{self.path}: {key} is {self.raw.get(key)!r}: {text}")

    def get(self, keys: str | tuple[str, ...], default: Any = None) -> tuple[str, Any]:
        """The first of these names that the file has, and its value; null counts as absent."""
        names = (keys,) if isinstance(keys, str) else keys
        self.known.update(names)
        return next(((name, self.raw[name]) for name in names if self.raw.get(name) is not None), (names[0], default))

    def _required(self, keys: str | tuple[str, ...], default: Any) -> tuple[str, Any]:
        key, value = self.get(keys, default)
        if value is None:
            raise ModelFolderError(f"{self.path}: {key} is missing")
        return key, value

    def whole(self, keys: str | tuple[str, ...], default: int | None = None, *, least: int = 1) -> int:
        """A whole number; it must be there where there is no default."""
        key, value = self._required(keys, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self.error(key, f"it must be a whole number of at least {least}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A number that is not negative."""
        key, value = self._required(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            raise self.error(key, "it must be a number that is not negative")
        return value

    def number_or_none(self, key: str, default: float) -> float:
        """As `number`, where null is not the default but none at all: 0."""
        self.known.add(key)
        return 0 if key in self.raw and self.raw[key] is None else self.number(key, default)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        key, value = self._required(key, default)
        if not isinstance(value, bool):
            raise self.error(key, "it must be true or false")
        return value

    def choice(self, key: str, names: Mapping[str, Value], default: Value | None = None) -> Value:
        """What one of the known names stands for."""
        key, value = self.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str) or value not in names:
            raise self.error(key, f"supported are {', '.join(names)}")
        return names[value]

    def choices(self, key: str, names: Mapping[str, Value], count: int) -> list[Value] | None:
        """A list of known names, one for each layer; None where it is absent."""
        key, value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != count or not all(name in names for name in value):
            raise self.error(key, f"it must name one of {', '.join(names)} for each of the {count} layers")
        return [names[name] for name in value]

    def only(self, key: str, value: Any, reason: str) -> None:
        """Refuses any other value of a key that may be absent."""
        key, given = self.get(key, value)
        if given != value:
            raise self.error(key, f"only {value!r} is supported ({reason})")

    def check_rest(self) -> None:
        """Refuses what is neither understood nor harmless.

        Raises:
          ModelFolderError: such keys are there; the message names all of them.
        """
        for key, reason in _UNSUPPORTED.items():
            if self.raw.get(key):
                raise self.error(key, f"not supported ({reason})")
        allowed = self.known | HARMLESS | _UNSUPPORTED.keys()
        if unknown := sorted(key for key, value in self.raw.items() if key not in allowed and value is not None):
            raise ModelFolderError(
                f"{self.path}: unknown keys {', '.join(unknown)}: they may change what the model computes; remove "
                "those that do not"
            )


def read_rotary(
    keys: Keys,
    max_positions: int,
    fraction: float = 1.0,
    *,
    theta_key: str = "rope_theta",
    fraction_key: str = "partial_rotary_factor",
) -> Rotary:
    """The rotary settings, wherever this version of transformers keeps them.

    Raises:
      ModelFolderError: a kind of scaling, or one of its keys, that is not supported.
    """
    theta, fraction = keys.number(theta_key, 10_000.0), keys.number(fraction_key, fraction)
    place, given = keys.get(("rope_parameters", "rope_scaling"), {})
    keys.known.add("rope_scaling")
    if not isinstance(given, dict):
        raise keys.error(place, "it must be an object")
    inner = Keys(keys.path, given)
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in _SCALINGS:
        raise ModelFolderError(f"{keys.path}: {place}.rope_type is {kind!r}: supported are {', '.join(_SCALINGS)}")
    inner.known.update(("rope_type", "type"))
    numbers = {
        field: inner.number(key, getattr(Rotary(), field) if key != "factor" else None)
        for key, field in _ROTARY_NUMBERS.get(kind, {}).items()
        if key != "attention_factor" or given.get(key) is not None
    }
    settings: dict[str, Any] = {
        "theta": inner.number("rope_theta", theta),
        "fraction": inner.number("partial_rotary_factor", fraction),
        "scaling": _SCALINGS[kind],
        **numbers,
    }
    if kind in ("llama3", "yarn"):
        settings["original_max_positions"] = inner.whole(_ORIGINAL, max_positions)
    if kind == "dynamic":
        settings["original_max_positions"] = max_positions
    if kind == "yarn":
        settings["truncate"] = inner.flag("truncate", True)
    try:
        inner.check_rest()
    except ModelFolderError as error:
        raise ModelFolderError(f"{error} (in {place})") from error
    return Rotary(**settings)


def rotary_keys(
    rotary: Rotary, *, theta_key: str = "rope_theta", fraction_key: str = "partial_rotary_factor"
) -> dict[str, Any]:
    """The keys that `read_rotary` reads the same settings from."""
    keys: dict[str, Any] = {theta_key: rotary.theta, fraction_key: rotary.fraction, "rope_scaling": None}
    if rotary.scaling == "none":
        return keys
    values = dataclasses.asdict(rotary)
    scaling = {key: values[field] for key, field in _ROTARY_NUMBERS[rotary.scaling].items()}
    scaling["rope_type"] = rotary.scaling
    if rotary.scaling in ("llama3", "yarn"):
        scaling[_ORIGINAL] = rotary.original_max_positions
    if rotary.scaling == "yarn":
        scaling["truncate"] = rotary.truncate
    return {**keys, "rope_scaling": {key: value for key, value in scaling.items() if value is not None}}
