"""Families with layer norms and biases, as Hugging Face says them: GPT-2, BigCode, NeoX, OPT, BLOOM, Falcon, Phi.

For each family: `config.json` to fields of `DecoderConfig`, back again, and what its modules are called.
"""

from flanjax.interchange.hf_decoder_keys import ACTIVATIONS, Keys, read_rotary, rotary_keys
from flanjax.interchange.hf_decoder_llama import (
    Fields,
    hf_activation,
    llama_modules,
    projections,
    read_llama_like,
    write_llama_like,
)
from flanjax.models.decoder_config import DecoderConfig

_LAYER, _ATTENTION = "decoder/layers", "decoder/layers/self_attention"
_QKV = f"{_ATTENTION}/query+key+value"


def _layer_norms(keys: Keys, epsilon: str | None, activation: str, default: str, *, bias: bool = True) -> Fields:
    return {
        "norm": "layer",
        "layer_norm_epsilon": 1e-5 if epsilon is None else keys.number(epsilon, 1e-5),
        "mlp_activations": (keys.choice(activation, ACTIVATIONS, default),),
        "qkv_bias": bias,
        "out_bias": bias,
        "mlp_bias": bias,
    }


def read_gpt2(keys: Keys) -> Fields:
    """A GPT-2's `config.json` as fields of `DecoderConfig`."""
    embed, heads = keys.whole("n_embd"), keys.whole("n_head")
    scaled = keys.flag("scale_attn_weights", True)
    keys.only("scale_attn_by_inverse_layer_idx", False, "attention is scaled differently in every layer")
    return {
        **_layer_norms(keys, "layer_norm_epsilon", "activation_function", "gelu"),
        "embed_dim": embed,
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": embed // heads,
        "num_layers": keys.whole("n_layer"),
        "mlp_dim": keys.whole("n_inner", 4 * embed),
        "positions": "learned",
        "max_positions": keys.whole("n_positions"),
        "attention_scale": None if scaled else 1.0,
    }


def write_gpt2(config: DecoderConfig) -> Fields:
    """A GPT-2's keys of `config.json`."""
    return {
        "n_embd": config.embed_dim,
        "n_head": config.num_heads,
        "n_layer": config.num_layers,
        "n_inner": config.mlp_dim,
        "n_positions": config.max_positions,
        "activation_function": hf_activation(config),
        "layer_norm_epsilon": config.layer_norm_epsilon,
        "scale_attn_weights": config.attention_scale is None,
    }


def gpt2_modules(_: DecoderConfig) -> dict[str, str]:
    """A GPT-2's names of modules."""
    layer = "transformer.h.{}"
    return {
        "token_embedder": "transformer.wte",
        "decoder/position_embedder": "transformer.wpe",
        f"{_LAYER}/pre_self_attention_layer_norm": f"{layer}.ln_1",
        f"{_LAYER}/pre_mlp_layer_norm": f"{layer}.ln_2",
        _QKV: f"{layer}.attn.c_attn",
        f"{_ATTENTION}/out": f"{layer}.attn.c_proj",
        f"{_LAYER}/mlp/wi": f"{layer}.mlp.c_fc",
        f"{_LAYER}/mlp/wo": f"{layer}.mlp.c_proj",
        "decoder/decoder_norm": "transformer.ln_f",
        "decoder/logits_dense": "lm_head",
    }


def read_gpt_bigcode(keys: Keys) -> Fields:
    """A GPT-BigCode's `config.json` as fields of `DecoderConfig`."""
    fields = read_gpt2(keys)
    heads = 1 if keys.flag("multi_query", True) else fields["num_heads"]
    keys.only("num_key_value_heads", heads, "multi_query says otherwise")
    return {**fields, "num_kv_heads": heads}


def write_gpt_bigcode(config: DecoderConfig) -> Fields:
    """A GPT-BigCode's keys of `config.json`."""
    return {**write_gpt2(config), "multi_query": config.num_kv_heads == 1}


def read_gpt_neox(keys: Keys) -> Fields:
    """A GPT-NeoX's `config.json` as fields of `DecoderConfig`."""
    embed, heads = keys.whole("hidden_size"), keys.whole("num_attention_heads")
    positions = keys.whole("max_position_embeddings", 2048)
    bias = keys.flag("attention_bias", True)
    parallel = keys.flag("use_parallel_residual", True)
    return {
        **_layer_norms(keys, "layer_norm_eps", "hidden_act", "exact_gelu"),
        "qkv_bias": bias,
        "out_bias": bias,
        "embed_dim": embed,
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": embed // heads,
        "num_layers": keys.whole("num_hidden_layers"),
        "mlp_dim": keys.whole("intermediate_size"),
        "max_positions": positions,
        "rotary": read_rotary(keys, positions, 0.25, theta_key="rotary_emb_base", fraction_key="rotary_pct"),
        "residual": "parallel" if parallel else "sequential",
    }


def write_gpt_neox(config: DecoderConfig) -> Fields:
    """A GPT-NeoX's keys of `config.json`."""
    return {
        "hidden_size": config.embed_dim,
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "intermediate_size": config.mlp_dim,
        "max_position_embeddings": config.max_positions,
        "layer_norm_eps": config.layer_norm_epsilon,
        "hidden_act": hf_activation(config),
        "attention_bias": config.qkv_bias,
        "use_parallel_residual": config.residual == "parallel",
        **rotary_keys(config.rotary, theta_key="rotary_emb_base", fraction_key="rotary_pct"),
    }


def gpt_neox_modules(_: DecoderConfig) -> dict[str, str]:
    """A GPT-NeoX's names of modules."""
    layer = "gpt_neox.layers.{}"
    return {
        "token_embedder": "gpt_neox.embed_in",
        f"{_LAYER}/pre_self_attention_layer_norm": f"{layer}.input_layernorm",
        f"{_LAYER}/pre_mlp_layer_norm": f"{layer}.post_attention_layernorm",
        _QKV: f"{layer}.attention.query_key_value",
        f"{_ATTENTION}/out": f"{layer}.attention.dense",
        f"{_LAYER}/mlp/wi": f"{layer}.mlp.dense_h_to_4h",
        f"{_LAYER}/mlp/wo": f"{layer}.mlp.dense_4h_to_h",
        "decoder/decoder_norm": "gpt_neox.final_layer_norm",
        "decoder/logits_dense": "embed_out",
    }


def read_opt(keys: Keys) -> Fields:
    """An OPT's `config.json` as fields of `DecoderConfig`."""
    embed, heads = keys.whole("hidden_size"), keys.whole("num_attention_heads")
    word_embed = keys.whole("word_embed_proj_dim", embed)
    norms_before = keys.flag("do_layer_norm_before", True)
    if keys.flag("_remove_final_layer_norm", False) and norms_before:
        raise keys.error("_remove_final_layer_norm", "only False is supported (the last norm is missing)")
    keys.only("layer_norm_elementwise_affine", True, "its norms have no parameters")
    return {
        **_layer_norms(keys, None, "activation_function", "relu", bias=keys.flag("enable_bias", True)),
        "embed_dim": embed,
        "word_embed_dim": 0 if word_embed == embed else word_embed,
        "residual": "sequential" if norms_before else "sequential_post_norm",
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": embed // heads,
        "num_layers": keys.whole("num_hidden_layers"),
        "mlp_dim": keys.whole("ffn_dim"),
        "positions": "learned",
        "max_positions": keys.whole("max_position_embeddings"),
        "position_offset": 2,
    }


def write_opt(config: DecoderConfig) -> Fields:
    """An OPT's keys of `config.json`."""
    return {
        "hidden_size": config.embed_dim,
        "word_embed_proj_dim": config.input_dim,
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "ffn_dim": config.mlp_dim,
        "max_position_embeddings": config.max_positions,
        "activation_function": hf_activation(config),
        "enable_bias": config.qkv_bias,
        "do_layer_norm_before": config.residual == "sequential",
    }


def opt_modules(_: DecoderConfig) -> dict[str, str]:
    """An OPT's names of modules."""
    layer = "model.decoder.layers.{}"
    # The norms of a layer have these names wherever they stand.
    norms = {
        f"{_LAYER}/{place}_{block}_layer_norm": f"{layer}.{name}"
        for place in ("pre", "post")
        for block, name in (("self_attention", "self_attn_layer_norm"), ("mlp", "final_layer_norm"))
    }
    return {
        "token_embedder": "model.decoder.embed_tokens",
        "decoder/position_embedder": "model.decoder.embed_positions",
        "decoder/project_in": "model.decoder.project_in",
        "decoder/project_out": "model.decoder.project_out",
        **norms,
        **projections(f"{layer}.self_attn", "out_proj"),
        f"{_LAYER}/mlp/wi": f"{layer}.fc1",
        f"{_LAYER}/mlp/wo": f"{layer}.fc2",
        "decoder/decoder_norm": "model.decoder.final_layer_norm",
        "decoder/logits_dense": "lm_head",
    }


def read_bloom(keys: Keys) -> Fields:
    """A BLOOM's `config.json` as fields of `DecoderConfig`."""
    embed, heads = keys.whole(("hidden_size", "n_embed")), keys.whole(("n_head", "num_attention_heads"))
    keys.only("apply_residual_connection_post_layernorm", False, "its residual starts after the norm")
    keys.only("n_inner", 4 * embed, "the feed-forward block of a BLOOM is four times as wide as the model")
    return {
        "norm": "layer",
        "layer_norm_epsilon": keys.number("layer_norm_epsilon", 1e-5),
        "mlp_activations": ("gelu",),
        **dict.fromkeys(("qkv_bias", "out_bias", "mlp_bias", "embedding_norm"), True),
        "embed_dim": embed,
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": embed // heads,
        "num_layers": keys.whole(("n_layer", "num_hidden_layers")),
        "mlp_dim": 4 * embed,
        "positions": "alibi",
    }


def write_bloom(config: DecoderConfig) -> Fields:
    """A BLOOM's keys of `config.json`."""
    return {
        "hidden_size": config.embed_dim,
        "n_head": config.num_heads,
        "n_layer": config.num_layers,
        "layer_norm_epsilon": config.layer_norm_epsilon,
    }


def bloom_modules(_: DecoderConfig) -> dict[str, str]:
    """A BLOOM's names of modules."""
    return {
        **_falcon_names("post_attention_layernorm"),
        "decoder/embedding_norm": "transformer.word_embeddings_layernorm",
    }


def _falcon_names(pre_mlp_norm: str, pre_attention_norm: str = "input_layernorm") -> dict[str, str]:
    layer = "transformer.h.{}"
    return {
        "token_embedder": "transformer.word_embeddings",
        f"{_LAYER}/pre_self_attention_layer_norm": f"{layer}.{pre_attention_norm}",
        f"{_LAYER}/pre_mlp_layer_norm": f"{layer}.{pre_mlp_norm}",
        _QKV: f"{layer}.self_attention.query_key_value",
        f"{_ATTENTION}/out": f"{layer}.self_attention.dense",
        f"{_LAYER}/mlp/wi": f"{layer}.mlp.dense_h_to_4h",
        f"{_LAYER}/mlp/wo": f"{layer}.mlp.dense_4h_to_h",
        "decoder/decoder_norm": "transformer.ln_f",
        "decoder/logits_dense": "lm_head",
    }


def read_falcon(keys: Keys) -> Fields:
    """A Falcon's `config.json` as fields of `DecoderConfig`."""
    embed = keys.whole(("hidden_size", "n_embed"))
    heads = keys.whole(("num_attention_heads", "n_head"))
    positions = keys.whole("max_position_embeddings", 2048)
    new = keys.flag("new_decoder_architecture", False)
    parallel = keys.flag("parallel_attn", True)
    multi_query = keys.flag("multi_query", True)
    kv_heads = keys.whole(("num_kv_heads", "n_head_kv"), heads)
    norms = keys.whole("num_ln_in_parallel_attn", 2 if new and parallel else 1)
    keys.only("apply_residual_connection_post_layernorm", False, "its residual starts after the norm")
    alibi = keys.flag("alibi", False)
    if new:
        keys.only("parallel_attn", True, "with new_decoder_architecture")
    elif parallel:
        keys.only("num_ln_in_parallel_attn", 1, "without new_decoder_architecture")
    residual = "sequential" if not parallel else "parallel" if norms == 2 else "parallel_one_norm"
    return {
        **_layer_norms(keys, "layer_norm_epsilon", "activation", "exact_gelu", bias=keys.flag("bias", False)),
        "embed_dim": embed,
        "num_heads": heads,
        "num_kv_heads": kv_heads if new else 1 if multi_query else heads,
        "head_dim": embed // heads,
        "num_layers": keys.whole(("num_hidden_layers", "n_layer")),
        "mlp_dim": keys.whole("ffn_hidden_size", 4 * embed),
        "max_positions": positions,
        "positions": "alibi" if alibi else "rotary",
        "rotary": read_rotary(keys, positions),
        "alibi_scale": (embed // heads) ** -0.5 if alibi else 1.0,
        "alibi_rounded": alibi,
        "residual": residual,
    }


def write_falcon(config: DecoderConfig) -> Fields:
    """A Falcon's keys of `config.json`."""
    new = config.residual == "parallel" or config.num_kv_heads not in (1, config.num_heads)
    return {
        "hidden_size": config.embed_dim,
        "num_attention_heads": config.num_heads,
        "num_kv_heads": config.num_kv_heads,
        "num_hidden_layers": config.num_layers,
        "ffn_hidden_size": config.mlp_dim,
        "max_position_embeddings": config.max_positions,
        "layer_norm_epsilon": config.layer_norm_epsilon,
        "activation": hf_activation(config),
        "bias": config.qkv_bias,
        "alibi": config.positions == "alibi",
        "new_decoder_architecture": new,
        "multi_query": config.num_kv_heads == 1,
        "parallel_attn": config.residual != "sequential",
        "num_ln_in_parallel_attn": (2 if config.residual == "parallel" else 1) if new else None,
        **rotary_keys(config.rotary),
    }


def falcon_modules(config: DecoderConfig) -> dict[str, str]:
    """A Falcon's names of modules."""
    return (
        _falcon_names("ln_mlp", "ln_attn")
        if config.residual == "parallel"
        else _falcon_names("post_attention_layernorm")
    )


def read_phi(keys: Keys) -> Fields:
    """A Phi's `config.json` as fields of `DecoderConfig`."""
    fields = {**read_llama_like(keys), **_layer_norms(keys, "layer_norm_eps", "hidden_act", "gelu")}
    keys.only("head_dim", fields["embed_dim"] // fields["num_heads"], "a Phi has no head_dim of its own")
    rotary = read_rotary(keys, fields["max_positions"], 0.5)
    qk_norm = keys.flag("qk_layernorm", False)
    return {**fields, "rotary": rotary, "qk_norm": qk_norm, "residual": "parallel_one_norm", "head_bias": True}


def write_phi(config: DecoderConfig) -> Fields:
    """A Phi's keys of `config.json`."""
    return {
        **write_llama_like(config),
        "layer_norm_eps": config.layer_norm_epsilon,
        "hidden_act": hf_activation(config),
        "qk_layernorm": config.qk_norm,
    }


def phi_modules(config: DecoderConfig) -> dict[str, str]:
    """A Phi's names of modules."""
    layer = "model.layers.{}"
    return {
        **llama_modules(config),
        **projections(f"{layer}.self_attn", "dense"),
        f"{_ATTENTION}/query_norm": f"{layer}.self_attn.q_layernorm",
        f"{_ATTENTION}/key_norm": f"{layer}.self_attn.k_layernorm",
        f"{_LAYER}/mlp/wi": f"{layer}.mlp.fc1",
        f"{_LAYER}/mlp/wo": f"{layer}.mlp.fc2",
        "decoder/decoder_norm": "model.final_layernorm",
    }
