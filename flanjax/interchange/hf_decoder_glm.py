"""GLM-4 and ChatGLM2, as Hugging Face says them: grouped queries, interleaved rotary positions on half of each head.

The two compute one function under different names. GLM-4 (`glm`) is in transformers. ChatGLM2 and 3 (`chatglm`, Du et
al. 2022, arXiv 2103.10360, second generation) come with code of their own, which is never run here: what their keys and
tensors mean is that of the published `configuration_chatglm.py` and `modeling_chatglm.py`.

Worked example: `transformer.encoder.layers.1.mlp.dense_h_to_4h.weight` [27392, 4096] of ChatGLM2 6B is `wi_0` and
`wi_1` [4096, 13696] of `decoder/layers/mlp`, layer 1, one after the other.
"""

import dataclasses

from flanjax.interchange.hf_decoder_keys import Keys
from flanjax.interchange.hf_decoder_llama import Fields, llama_modules, read_llama_gated, write_llama_rms
from flanjax.models.decoder_config import DecoderConfig, Rotary

_LAYER, _ATTENTION = "decoder/layers", "decoder/layers/self_attention"
_PADDING = 151_329
_GATE_AND_UP = f"{_LAYER}/mlp/wi_0+wi_1"


def read_glm(keys: Keys) -> Fields:
    """A GLM-4's `config.json` as fields of `DecoderConfig`."""
    fields = read_llama_gated(keys, rotary_fraction=0.5)
    return {
        **fields,
        "rotary": dataclasses.replace(fields["rotary"], interleaved=True),
        "qkv_bias": keys.flag("attention_bias", True),
    }


def write_glm(config: DecoderConfig) -> Fields:
    """A GLM-4's keys of `config.json`."""
    keys = {**write_llama_rms(config), "attention_bias": config.qkv_bias}
    # transformers takes the published model's padding for granted, and refuses it where the vocabulary ends before.
    return keys if config.vocab_size > _PADDING else {**keys, "pad_token_id": None}


def glm_modules(config: DecoderConfig) -> dict[str, str]:
    """A GLM-4's names of modules."""
    names = llama_modules(config)
    del names[f"{_LAYER}/mlp/wi_0"], names[f"{_LAYER}/mlp/wi_1"]
    return {**names, _GATE_AND_UP: "model.layers.{}.mlp.gate_up_proj"}


def read_chatglm(keys: Keys) -> Fields:
    """A ChatGLM2's `config.json` as fields of `DecoderConfig`."""
    _refuse_other_functions(keys)
    bias = keys.flag("add_bias_linear", False)
    return {
        "embed_dim": keys.whole("hidden_size"),
        "num_layers": keys.whole("num_layers"),
        "num_heads": keys.whole("num_attention_heads"),
        "num_kv_heads": keys.whole("multi_query_group_num", 1),
        "head_dim": keys.whole("kv_channels", 128),
        "mlp_dim": keys.whole("ffn_hidden_size"),
        "mlp_activations": ("silu", "linear"),
        "norm": "rms" if keys.flag("rmsnorm", True) else "layer",
        "layer_norm_epsilon": keys.number("layernorm_epsilon", 1e-5),
        "max_positions": keys.whole("seq_length", 2048),
        "rotary": Rotary(fraction=0.5, interleaved=True),
        "qkv_bias": keys.flag("add_qkv_bias", False) or bias,
        "out_bias": bias,
        "mlp_bias": bias,
    }


def _refuse_other_functions(keys: Keys) -> None:
    if not keys.flag("multi_query_attention", False):
        raise keys.error("multi_query_attention", "only true is supported (heads lie in another order without it)")
    keys.only("apply_residual_connection_post_layernorm", False, "the residual is taken after the norm")
    keys.only("post_layer_norm", True, "there is no norm after the last layer")
    keys.only("original_rope", True, "it has other rotary positions")
    # ChatGLM2 32k divides the positions by it, ChatGLM3 32k multiplies theta, and nothing in the file tells them apart.
    keys.only("rope_ratio", 1, "it means one thing in ChatGLM2 and another in ChatGLM3")
    keys.only("quantization_bit", 0, "its weights are quantised")
    keys.only("pre_seq_len", None, "it has a learnt prefix")
    keys.only("tie_word_embeddings", False, "it has a head of its own")
    keys.only("vocab_size", keys.raw.get("padded_vocab_size"), "padded_vocab_size says otherwise")


def write_chatglm(config: DecoderConfig) -> Fields:
    """A ChatGLM2's keys of `config.json`."""
    return {
        "padded_vocab_size": config.vocab_size,
        "hidden_size": config.embed_dim,
        "num_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "multi_query_attention": True,
        "multi_query_group_num": config.num_kv_heads,
        "kv_channels": config.head_dim,
        "ffn_hidden_size": config.mlp_dim,
        "rmsnorm": config.norm == "rms",
        "layernorm_epsilon": config.layer_norm_epsilon,
        "seq_length": config.max_positions,
        "original_rope": True,
        "add_qkv_bias": config.qkv_bias,
        "add_bias_linear": config.mlp_bias,
        "apply_residual_connection_post_layernorm": False,
        "post_layer_norm": True,
    }


def chatglm_modules(config: DecoderConfig) -> dict[str, str]:
    """A ChatGLM2's names of modules."""
    layer = "transformer.encoder.layers.{}"
    return {
        "token_embedder": "transformer.embedding.word_embeddings",
        f"{_LAYER}/pre_self_attention_layer_norm": f"{layer}.input_layernorm",
        f"{_ATTENTION}/query+key+value": f"{layer}.self_attention.query_key_value",
        f"{_ATTENTION}/out": f"{layer}.self_attention.dense",
        f"{_LAYER}/pre_mlp_layer_norm": f"{layer}.post_attention_layernorm",
        _GATE_AND_UP: f"{layer}.mlp.dense_h_to_4h",
        f"{_LAYER}/mlp/wo": f"{layer}.mlp.dense_4h_to_h",
        "decoder/decoder_norm": "transformer.encoder.final_layernorm",
        "decoder/logits_dense": "transformer.output_layer",
    }
