"""GPT-J, CodeGen and MOSS, as Hugging Face says them: both blocks behind one norm, the start of each head rotated.

The three compute one function; the difference is how queries, keys and values lie in the file. GPT-J has a tensor for
each. CodeGen (Nijkamp et al. 2022, arXiv 2203.13474) has them in one, as it was trained on four cores: four parts, each
with the queries, the values and the keys of a quarter of the heads. MOSS (`moss`, which transformers does not have) is
a CodeGen trained further, with its names and its tensors; the code that it comes with is never run here.

Worked example: of CodeGen 16B's `transformer.h.1.attn.qkv_proj.weight` [18432, 6144] the second part begins at row
4608: 1536 rows of `query`, heads 6 to 11 of layer 1 of `decoder/layers/self_attention`, then as many of `value` and of
`key`.
"""

import math

from flanjax.interchange.hf_decoder_keys import ACTIVATIONS, Keys
from flanjax.interchange.hf_decoder_llama import Fields, hf_activation, projections
from flanjax.models.decoder_config import DecoderConfig, Rotary

_LAYER, _ATTENTION = "decoder/layers", "decoder/layers/self_attention"
CODEGEN_PARTS = 4


def read_gptj(keys: Keys) -> Fields:
    """A GPT-J's `config.json` as fields of `DecoderConfig`."""
    embed, heads = keys.whole("n_embd"), keys.whole("n_head")
    head_dim = embed // heads
    rotated = keys.whole("rotary_dim", None if "rotary_dim" in keys.raw else 64)
    if rotated > head_dim:
        raise keys.error("rotary_dim", f"a head has {head_dim} numbers")
    keys.only("rotary", True, "it has other positions")
    keys.only("scale_attn_weights", True, "transformers scales them whatever it says")
    return {
        "norm": "layer",
        "layer_norm_epsilon": keys.number("layer_norm_epsilon", 1e-5),
        "mlp_activations": (keys.choice("activation_function", ACTIVATIONS, "gelu"),),
        "embed_dim": embed,
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": head_dim,
        "num_layers": keys.whole("n_layer"),
        "mlp_dim": keys.whole("n_inner", 4 * embed),
        "max_positions": keys.whole("n_positions", 2048),
        "rotary": Rotary(fraction=_fraction(rotated, head_dim), interleaved=True),
        "residual": "parallel_one_norm",
        "mlp_bias": True,
        "head_bias": True,
    }


def _fraction(rotated: int, head_dim: int) -> float:
    """Of a head; the quotient may have been rounded to less than `rotated` of its numbers."""
    fraction = rotated / head_dim
    return fraction if int(head_dim * fraction) == rotated else math.nextafter(fraction, 1)


def write_gptj(config: DecoderConfig) -> Fields:
    """A GPT-J's keys of `config.json`, and a CodeGen's."""
    return {
        "n_embd": config.embed_dim,
        "n_head": config.num_heads,
        "n_layer": config.num_layers,
        "n_inner": config.mlp_dim,
        "n_positions": config.max_positions,
        "rotary_dim": config.rotary_dim,
        "activation_function": hf_activation(config),
        "layer_norm_epsilon": config.layer_norm_epsilon,
    }


def gptj_modules(_: DecoderConfig) -> dict[str, str]:
    """A GPT-J's names of modules."""
    layer = "transformer.h.{}"
    return {
        "token_embedder": "transformer.wte",
        f"{_LAYER}/pre_self_attention_layer_norm": f"{layer}.ln_1",
        **projections(f"{layer}.attn", "out_proj"),
        f"{_LAYER}/mlp/wi": f"{layer}.mlp.fc_in",
        f"{_LAYER}/mlp/wo": f"{layer}.mlp.fc_out",
        "decoder/decoder_norm": "transformer.ln_f",
        "decoder/logits_dense": "lm_head",
    }


def read_codegen(keys: Keys) -> Fields:
    """A CodeGen's `config.json` as fields of `DecoderConfig`, and a MOSS's."""
    if keys.whole("n_head") % CODEGEN_PARTS:
        raise keys.error("n_head", f"a CodeGen's heads lie in {CODEGEN_PARTS} equal parts")
    keys.only("head_dim", None, "it is a CodeGen2, whose own code may lay out queries, keys and values otherwise")
    keys.only("wbits", 32, "its weights are quantised")
    keys.only("groupsize", 128, "of quantised weights")
    return read_gptj(keys)


def codegen_modules(config: DecoderConfig) -> dict[str, str]:
    """A CodeGen's names of modules."""
    names = gptj_modules(config)
    for part in ("query", "key", "value"):
        del names[f"{_ATTENTION}/{part}"]
    return {**names, f"{_ATTENTION}/query+value+key": "transformer.h.{}.attn.qkv_proj"}
