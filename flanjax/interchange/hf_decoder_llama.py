"""Llama and the families that descend from it, as Hugging Face says them: RMS norms, rotary positions, gated blocks.

For each family: `config.json` to fields of `DecoderConfig`, back again, and what its modules are called.
"""

from typing import Any

from flanjax.interchange.hf_decoder_keys import ACTIVATIONS, Keys, read_rotary, rotary_keys
from flanjax.models.decoder_config import DecoderConfig

Fields = dict[str, Any]
_LAYER, _ATTENTION = "decoder/layers", "decoder/layers/self_attention"


def _unless(value: Any, *, none: Any) -> Any:
    return None if value == none else value


def read_llama_like(keys: Keys, *, head_dim_is_given: bool = False, rotary_fraction: float = 1.0) -> Fields:
    """What all of them say alike."""
    embed, heads = keys.whole("hidden_size"), keys.whole("num_attention_heads")
    positions = keys.whole("max_position_embeddings")
    head_dim = keys.whole("head_dim", None if head_dim_is_given else embed // heads)
    return {
        "embed_dim": embed,
        "num_heads": heads,
        "head_dim": head_dim,
        "num_layers": keys.whole("num_hidden_layers"),
        "num_kv_heads": keys.whole("num_key_value_heads", heads),
        "mlp_dim": keys.whole("intermediate_size"),
        "max_positions": positions,
        "rotary": read_rotary(keys, positions, rotary_fraction),
    }


def _read_rms(keys: Keys, *, head_dim_is_given: bool = False, rotary_fraction: float = 1.0) -> Fields:
    fields = read_llama_like(keys, head_dim_is_given=head_dim_is_given, rotary_fraction=rotary_fraction)
    return {**fields, "layer_norm_epsilon": keys.number("rms_norm_eps", 1e-6)}


def _gated(keys: Keys) -> Fields:
    return {"mlp_activations": (keys.choice("hidden_act", ACTIVATIONS, "silu"), "linear")}


def read_llama_gated(keys: Keys, *, rotary_fraction: float) -> Fields:
    """RMS norms and a gated block, where the head's width and the number of key heads have no default to trust."""
    _require_kv_heads(keys)
    return {**_read_rms(keys, head_dim_is_given=True, rotary_fraction=rotary_fraction), **_gated(keys)}


def write_llama_like(config: DecoderConfig) -> Fields:
    """The keys that all of them have."""
    return {
        "hidden_size": config.embed_dim,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "num_hidden_layers": config.num_layers,
        "intermediate_size": config.mlp_dim,
        "max_position_embeddings": config.max_positions,
        **rotary_keys(config.rotary),
    }


def write_llama_rms(config: DecoderConfig) -> Fields:
    """The keys of those that have RMS norms."""
    return {
        **write_llama_like(config),
        "head_dim": config.head_dim,
        "rms_norm_eps": config.layer_norm_epsilon,
        "hidden_act": hf_activation(config),
    }


def hf_activation(config: DecoderConfig) -> str:
    """Hugging Face's name of the first activation."""
    return {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}[config.mlp_activations[0]]


def read_llama(keys: Keys) -> Fields:
    """A Llama's `config.json` as fields of `DecoderConfig`."""
    bias = keys.flag("attention_bias", False)
    biases = {"qkv_bias": bias, "out_bias": bias, "mlp_bias": keys.flag("mlp_bias", False)}
    return {**_read_rms(keys), **_gated(keys), **biases}


def write_llama(config: DecoderConfig) -> Fields:
    """A Llama's keys of `config.json`."""
    return {**write_llama_rms(config), "attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias}


def _require_kv_heads(keys: Keys) -> None:
    """Transformers' defaults of some families are the numbers of one size, which would be a guess for another."""
    keys.whole("num_key_value_heads")


def _window(keys: Keys) -> int:
    """`sliding_window`, which is off where it is null."""
    return int(keys.number_or_none("sliding_window", 4096))


def read_mistral(keys: Keys) -> Fields:
    """A Mistral's `config.json` as fields of `DecoderConfig`."""
    _require_kv_heads(keys)
    return {**_read_rms(keys), **_gated(keys), "window": _window(keys)}


def write_mistral(config: DecoderConfig) -> Fields:
    """A Mistral's keys of `config.json`."""
    return {**write_llama_rms(config), "sliding_window": _unless(config.window, none=0)}


def _read_windows(keys: Keys, layers: int, default: list[bool]) -> tuple[bool, ...]:
    """Which layers have the window: `layer_types`, or the family's rule."""
    types = {"sliding_attention": True, "full_attention": False}
    windowed = keys.choices("layer_types", types, layers)
    return tuple(default if windowed is None else windowed)


def _write_windows(config: DecoderConfig) -> list[str]:
    return ["sliding_attention" if windowed else "full_attention" for windowed in config.window_of_layers]


def _read_qwen(keys: Keys) -> Fields:
    _require_kv_heads(keys)
    used, window = keys.flag("use_sliding_window", False), _window(keys)
    layers, first = keys.whole("num_hidden_layers"), keys.whole("max_window_layers", 28, least=0)
    windowed = _read_windows(keys, layers, [used and window > 0 and layer >= first for layer in range(layers)])
    if not used or not any(windowed):
        window, windowed = 0, (True,)
    return {**_gated(keys), "window": window, "windowed": windowed}


def write_qwen(config: DecoderConfig) -> Fields:
    """A Qwen 2's keys of `config.json`."""
    used = any(config.window_of_layers)
    return {
        **write_llama_rms(config),
        "use_sliding_window": used,
        "sliding_window": config.window if used else None,
        "max_window_layers": config.window_of_layers.index(True) if used else config.num_layers,
        "layer_types": _write_windows(config),
    }


def read_qwen2(keys: Keys) -> Fields:
    """A Qwen 2's `config.json` as fields of `DecoderConfig`."""
    return {**_read_rms(keys), **_read_qwen(keys), "qkv_bias": True}


def read_qwen3(keys: Keys) -> Fields:
    """A Qwen 3's `config.json` as fields of `DecoderConfig`."""
    bias = keys.flag("attention_bias", False)
    fields = {**_read_rms(keys, head_dim_is_given=True), **_read_qwen(keys)}
    return {**fields, "qk_norm": True, "qkv_bias": bias, "out_bias": bias}


def write_qwen3(config: DecoderConfig) -> Fields:
    """A Qwen 3's keys of `config.json`."""
    return {**write_qwen(config), "attention_bias": config.qkv_bias}


def _read_gemma_like(keys: Keys) -> Fields:
    _require_kv_heads(keys)
    bias = keys.flag("attention_bias", False)
    fields = _read_rms(keys, head_dim_is_given=True)
    scale = fields["embed_dim"] ** 0.5
    return {**fields, "norm": "rms_plus_one", "embedding_scale": scale, "qkv_bias": bias, "out_bias": bias}


# Gemma says "gelu" and has always computed the tanh approximation.
_GEMMA_ACTIVATIONS = {"gelu_pytorch_tanh": "gelu", "gelu": "gelu"}


def read_gemma(keys: Keys) -> Fields:
    """A Gemma's `config.json` as fields of `DecoderConfig`."""
    activation = keys.choice("hidden_act", _GEMMA_ACTIVATIONS, "gelu")
    return {
        **_read_gemma_like(keys),
        "mlp_activations": (keys.choice("hidden_activation", _GEMMA_ACTIVATIONS, activation), "linear"),
    }


def write_gemma(config: DecoderConfig) -> Fields:
    """A Gemma's keys of `config.json`."""
    activation = {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"}
    return {**write_llama_rms(config), **activation, "attention_bias": config.qkv_bias}


def read_gemma2(keys: Keys) -> Fields:
    """A Gemma 2's `config.json` as fields of `DecoderConfig`."""
    fields = _read_gemma_like(keys)
    keys.choice("hidden_act", _GEMMA_ACTIVATIONS, "gelu")
    layers, window = fields["num_layers"], _window(keys)
    keys.only("sliding_window_size", window, "sliding_window says otherwise")
    windowed = _read_windows(keys, layers, [layer % 2 == 0 for layer in range(layers)])
    return {
        **fields,
        "mlp_activations": (keys.choice("hidden_activation", ACTIVATIONS, "gelu"), "linear"),
        "post_norms": True,
        "window": window if any(windowed) else 0,
        "windowed": windowed if window and any(windowed) else (True,),
        "attention_scale": keys.number("query_pre_attn_scalar", 256) ** -0.5,
        "attention_softcap": keys.number_or_none("attn_logit_softcapping", 50.0),
        "logits_softcap": keys.number_or_none("final_logit_softcapping", 30.0),
    }


def write_gemma2(config: DecoderConfig) -> Fields:
    """A Gemma 2's keys of `config.json`."""
    fields = write_llama_rms(config)
    scalar = config.query_scale**-2
    return {
        **{key: value for key, value in fields.items() if key != "hidden_act"},
        "hidden_activation": fields["hidden_act"],
        "attention_bias": config.qkv_bias,
        # transformers wants a window even where no layer has one.
        "sliding_window": config.window or config.max_positions,
        "layer_types": _write_windows(config),
        # A whole number in every published file; squaring a root misses it by a rounding.
        "query_pre_attn_scalar": round(scalar) if abs(scalar - round(scalar)) < 1e-6 * scalar else scalar,
        "attn_logit_softcapping": _unless(config.attention_softcap, none=0),
        "final_logit_softcapping": _unless(config.logits_softcap, none=0),
    }


def llama_modules(config: DecoderConfig) -> dict[str, str]:
    """A Llama's names of modules."""
    layer = "model.layers.{}"
    names = {
        "token_embedder": "model.embed_tokens",
        f"{_LAYER}/pre_self_attention_layer_norm": f"{layer}.input_layernorm",
        f"{_LAYER}/pre_mlp_layer_norm": f"{layer}.post_attention_layernorm",
        f"{_ATTENTION}/query_norm": f"{layer}.self_attn.q_norm",
        f"{_ATTENTION}/key_norm": f"{layer}.self_attn.k_norm",
        **projections(f"{layer}.self_attn", "o_proj"),
        f"{_LAYER}/mlp/wi_0": f"{layer}.mlp.gate_proj",
        f"{_LAYER}/mlp/wi_1": f"{layer}.mlp.up_proj",
        f"{_LAYER}/mlp/wo": f"{layer}.mlp.down_proj",
        "decoder/decoder_norm": "model.norm",
        "decoder/logits_dense": "lm_head",
    }
    if config.post_norms:
        names |= {
            f"{_LAYER}/post_self_attention_layer_norm": f"{layer}.post_attention_layernorm",
            f"{_LAYER}/pre_mlp_layer_norm": f"{layer}.pre_feedforward_layernorm",
            f"{_LAYER}/post_mlp_layer_norm": f"{layer}.post_feedforward_layernorm",
        }
    return names


def projections(module: str, out: str) -> dict[str, str]:
    """Queries, keys, values and output that are modules of their own."""
    names = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": out}
    return {f"{_ATTENTION}/{ours}": f"{module}.{theirs}" for ours, theirs in names.items()}
