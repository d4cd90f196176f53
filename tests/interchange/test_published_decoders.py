"""The published config.json of each family says what the gin file of that size says."""

import dataclasses
from pathlib import Path

import gin
import pytest

from flanjax.doors import GinSources, configure
from flanjax.interchange.hf_decoder import hf_decoder_config, parse_config
from flanjax.models.decoder_config import DecoderConfig, Rotary

MODELS = Path(__file__).parents[2] / "gin_configs" / "models"
COMMON = {"initializer_range": 0.02, "torch_dtype": "bfloat16", "transformers_version": "4.40.0", "use_cache": True}
SUMMARY = {"summary_activation": None, "summary_first_dropout": 0.1, "summary_proj_to_labels": True,
           "summary_type": "cls_index", "summary_use_proj": True}  # fmt: skip
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
CODEGEN = {**COMMON, **SUMMARY, "activation_function": "gelu_new", "attn_pdrop": 0.0, "embd_pdrop": 0.0,
           "gradient_checkpointing": False, "layer_norm_epsilon": 1e-5, "n_inner": None, "n_positions": 2048,
           "resid_pdrop": 0.0, "scale_attn_weights": True, "tie_word_embeddings": False,
           "tokenizer_class": "GPT2Tokenizer"}  # fmt: skip
LLAMA = {**COMMON, "model_type": "llama", "hidden_act": "silu", "pretraining_tp": 1, "rms_norm_eps": 1e-5}
LLAMA_31_ROPE = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_type": "llama3",
                 "original_max_position_embeddings": 8192}  # fmt: skip
QWEN = {**COMMON, "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "use_sliding_window": False}
GEMMA = {**COMMON, "attention_bias": False, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6,
         "max_position_embeddings": 8192, "rope_theta": 10000.0, "vocab_size": 256000, "pad_token_id": 0}  # fmt: skip
NEOX = {**COMMON, "model_type": "gpt_neox", "hidden_act": "gelu", "layer_norm_eps": 1e-5, "rotary_emb_base": 10000,
        "rotary_pct": 0.25, "use_parallel_residual": True, "max_position_embeddings": 2048,
        "tie_word_embeddings": False}  # fmt: skip
FALCON = {**COMMON, "model_type": "falcon", "alibi": False, "apply_residual_connection_post_layernorm": False,
          "attention_dropout": 0.0, "auto_map": {"AutoConfig": "configuration_falcon.FalconConfig"}, "bias": False,
          "hidden_dropout": 0.0, "layer_norm_epsilon": 1e-5, "multi_query": True, "parallel_attn": True,
          "vocab_size": 65024}  # fmt: skip


def sizes(*values):
    return dict(zip(SIZES, values, strict=False))


PUBLISHED = {
    "llama_2_13b": {**LLAMA, **sizes(5120, 40, 40, 40, 13824), "vocab_size": 32000, "max_position_embeddings": 4096,
                    "rope_scaling": None, "tie_word_embeddings": False},
    "llama_3_1_8b": {**LLAMA, **sizes(4096, 32, 32, 8, 14336), "vocab_size": 128256, "max_position_embeddings": 131072,
                     "rope_scaling": LLAMA_31_ROPE, "rope_theta": 500000.0, "attention_bias": False, "mlp_bias": False,
                     "eos_token_id": [128001, 128008, 128009], "tie_word_embeddings": False},
    "smollm2_135m": {**LLAMA, **sizes(576, 30, 9, 3, 1536), "vocab_size": 49152, "max_position_embeddings": 8192,
                     "is_llama_config": True, "rope_interleaved": False, "rope_theta": 100000, "rope_scaling": None,
                     "tie_word_embeddings": True},
    "mistral_7b": {**LLAMA, "model_type": "mistral", **sizes(4096, 32, 32, 8, 14336), "vocab_size": 32000,
                   "max_position_embeddings": 32768, "sliding_window": 4096, "rope_theta": 10000.0,
                   "tie_word_embeddings": False},
    "qwen_2_5_7b": {**QWEN, "model_type": "qwen2", **sizes(3584, 28, 28, 4, 18944), "vocab_size": 152064,
                    "max_position_embeddings": 131072, "max_window_layers": 28, "sliding_window": 131072,
                    "use_mrope": False, "tie_word_embeddings": False},
    "qwen_3_0_6b": {**QWEN, "model_type": "qwen3", **sizes(1024, 28, 16, 8, 3072), "vocab_size": 151936,
                    "head_dim": 128, "attention_bias": False, "max_position_embeddings": 40960, "rope_scaling": None,
                    "max_window_layers": 28, "sliding_window": None, "tie_word_embeddings": True},
    "gemma_2b": {**GEMMA, "model_type": "gemma", **sizes(2048, 18, 8, 1, 16384), "hidden_act": "gelu",
                 "hidden_activation": None, "rope_scaling": None},
    "gemma_2_9b": {**GEMMA, "model_type": "gemma2", **sizes(3584, 42, 16, 8, 14336), "attn_logit_softcapping": 50.0,
                   "final_logit_softcapping": 30.0, "hidden_activation": "gelu_pytorch_tanh", "sliding_window": 4096,
                   "sliding_window_size": 4096, "query_pre_attn_scalar": 256, "cache_implementation": "hybrid"},
    "gpt2": {**COMMON, **SUMMARY, "model_type": "gpt2", "activation_function": "gelu_new", "attn_pdrop": 0.1,
             "embd_pdrop": 0.1, "resid_pdrop": 0.1, "layer_norm_epsilon": 1e-5, "n_ctx": 1024, "n_embd": 768,
             "n_head": 12, "n_layer": 12, "n_positions": 1024, "vocab_size": 50257,
             "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}}},
    "pythia_6_9b": {**NEOX, **sizes(4096, 32, 32), "intermediate_size": 16384, "vocab_size": 50432},
    "opt_6_7b": {"model_type": "opt", "_remove_final_layer_norm": False, "activation_dropout": 0.0, "init_std": 0.02,
                 "activation_function": "relu", "attention_dropout": 0.0, "do_layer_norm_before": True, "dropout": 0.1,
                 "ffn_dim": 16384, "hidden_size": 4096, "word_embed_proj_dim": 4096, "layerdrop": 0.0,
                 "max_position_embeddings": 2048, "num_attention_heads": 32, "num_hidden_layers": 32, "prefix": "</s>",
                 "vocab_size": 50272},
    "opt_350m": {"model_type": "opt", "activation_dropout": 0.0, "activation_function": "relu", "bos_token_id": 2,
                 "attention_dropout": 0.0, "do_layer_norm_before": False, "dropout": 0.1, "ffn_dim": 4096,
                 "hidden_size": 1024, "init_std": 0.02, "layerdrop": 0.0, "max_position_embeddings": 2048,
                 "num_attention_heads": 16, "num_hidden_layers": 24, "prefix": "</s>", "vocab_size": 50272,
                 "word_embed_proj_dim": 512},
    "bloom_560m": {**COMMON, "model_type": "bloom", "apply_residual_connection_post_layernorm": False,
                   "attention_softmax_in_fp32": True, "bias_dropout_fusion": True, "masked_softmax_fusion": True,
                   "layer_norm_epsilon": 1e-5, "n_embed": 1024, "n_inner": None, "n_layer": 24, "offset_alibi": 100,
                   "num_attention_heads": 16, "pretraining_tp": 1, "skip_bias_add": True, "skip_bias_add_qkv": False,
                   "seq_length": 2048, "unk_token_id": 0, "vocab_size": 250880},
    "falcon_rw_1b": {**FALCON, **sizes(2048, 24, 32), "num_kv_heads": 32, "alibi": True, "bias": True,
                     "multi_query": False, "parallel_attn": False, "new_decoder_architecture": False,
                     "vocab_size": 50304},
    "falcon_rw_7b": {**FALCON, "hidden_size": 4096, "n_layer": 36, "n_head": 64, "alibi": True, "bias": True,
                     "multi_query": False, "parallel_attn": False},
    "falcon_7b": {**FALCON, **sizes(4544, 32, 71), "new_decoder_architecture": False},
    "falcon_40b": {**FALCON, **sizes(8192, 60, 128), "new_decoder_architecture": True, "num_kv_heads": 8},
    "starcoder": {**COMMON, **SUMMARY, "model_type": "gpt_bigcode", "activation_function": "gelu", "n_embd": 6144,
                  "attention_softmax_in_fp32": True, "scale_attention_softmax_in_fp32": True, "multi_query": True,
                  "inference_runner": 0, "layer_norm_epsilon": 1e-5, "max_batch_size": None, "n_head": 48,
                  "max_sequence_length": None, "n_inner": 24576, "n_layer": 40, "n_positions": 8192,
                  "pad_key_length": True, "pre_allocate_kv_cache": False, "scale_attn_weights": True,
                  "validate_runner_input": True, "vocab_size": 49152},
    "chatglm2_6b": {"_name_or_path": "THUDM/chatglm2-6b", "model_type": "chatglm", "add_bias_linear": False,
                    "add_qkv_bias": True, "apply_query_key_layer_scaling": True, "architectures": ["ChatGLMModel"],
                    "apply_residual_connection_post_layernorm": False, "attention_dropout": 0.0,
                    "attention_softmax_in_fp32": True, "bias_dropout_fusion": True, "classifier_dropout": None,
                    "auto_map": {"AutoConfig": "configuration_chatglm.ChatGLMConfig"}, "eos_token_id": 2,
                    "ffn_hidden_size": 13696, "fp32_residual_connection": False, "hidden_dropout": 0.0,
                    "hidden_size": 4096, "kv_channels": 128, "layernorm_epsilon": 1e-05, "multi_query_attention": True,
                    "multi_query_group_num": 2, "num_attention_heads": 32, "num_layers": 28, "original_rope": True,
                    "pad_token_id": 0, "padded_vocab_size": 65024, "post_layer_norm": True, "pre_seq_len": None,
                    "prefix_projection": False, "quantization_bit": 0, "rmsnorm": True, "seq_length": 32768,
                    "tie_word_embeddings": False, "torch_dtype": "float16", "transformers_version": "4.30.2",
                    "use_cache": True, "vocab_size": 65024},
    "gptj_6b": {**CODEGEN, "model_type": "gptj", "n_embd": 4096, "n_head": 16, "n_layer": 28, "rotary": True,
                "rotary_dim": 64, "vocab_size": 50400},
    "codegen_350m": {**CODEGEN, "model_type": "codegen", "n_ctx": 2048, "n_embd": 1024, "n_head": 16, "n_layer": 20,
                     "rotary_dim": 32, "vocab_size": 51200},
    "codegen_2b": {**CODEGEN, "model_type": "codegen", "n_ctx": 2048, "n_embd": 2560, "n_head": 32, "n_layer": 32,
                   "rotary_dim": 64, "vocab_size": 51200},
    "codegen_6b": {**CODEGEN, "model_type": "codegen", "n_ctx": 2048, "n_embd": 4096, "n_head": 16, "n_layer": 33,
                   "rotary_dim": 64, "vocab_size": 51200},
    "codegen_16b": {**CODEGEN, "model_type": "codegen", "n_ctx": 2048, "n_embd": 6144, "n_head": 24, "n_layer": 34,
                    "rotary_dim": 64, "vocab_size": 51200},
    "moss_16b": {**CODEGEN, "model_type": "moss", "auto_map": {"AutoConfig": "configuration_moss.MossConfig"},
                 "n_ctx": 2048, "n_embd": 6144, "n_head": 24, "n_layer": 34, "rotary_dim": 64, "vocab_size": 107008},
    "phi_2": {**COMMON, "model_type": "phi", **sizes(2560, 32, 32, 32, 10240), "hidden_act": "gelu_new",
              "embd_pdrop": 0.0, "resid_pdrop": 0.1, "layer_norm_eps": 1e-5, "max_position_embeddings": 2048,
              "partial_rotary_factor": 0.4, "qk_layernorm": False, "rope_scaling": None, "rope_theta": 10000.0,
              "tie_word_embeddings": False, "vocab_size": 51200},
}  # fmt: skip


@pytest.fixture(autouse=True)
def clear_gin():
    yield
    gin.clear_config()


def meaning(config):
    """Every field, those that can be said in several ways as what they come to."""
    return {
        **dataclasses.asdict(config),
        "attention_scale": pytest.approx(config.query_scale),
        "windowed": config.window_of_layers,
        "max_positions": None if config.positions == "alibi" else config.max_positions,
    }


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_configuration_is_that_of_the_gin_file(name):
    configure(GinSources(files=(str(MODELS / f"{name}.gin"),)), [DecoderConfig, Rotary])
    config = gin.get_configurable("DecoderConfig")()
    published = parse_config(Path("config.json"), PUBLISHED[name])[1]
    assert meaning(published) == meaning(config)
    again = parse_config(Path("config.json"), hf_decoder_config(config, PUBLISHED[name]["model_type"]))[1]
    assert meaning(again) == meaning(config)
