"""Hugging Face folders of decoders: the function transformers computes, the same bits back, refused clearly."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from flanjax.interchange.folders import ModelFolderError
from flanjax.interchange.hf_decoder import (
    hf_decoder_config,
    hf_places,
    parse_config,
    read_hf_decoder,
    write_hf_decoder,
)
from flanjax.interchange.hf_decoder_families import FAMILIES
from flanjax.interchange.stored import in_memory
from flanjax.models.config import Compute
from flanjax.models.decoder import abstract_params, build, init_params
from flanjax.models.decoder_config import DecoderConfig, Rotary
from flanjax.models.positions import rounded_alibi_bias

VOCAB = 64
LLAMA = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
GPT2 = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
NEOX = {name: value for name, value in LLAMA.items() if name != "num_key_value_heads"}
OPT = {**NEOX, "ffn_dim": 40}
OPT.pop("intermediate_size")
FALCON = {**NEOX, "ffn_hidden_size": 48}
FALCON.pop("intermediate_size")
RW = {"alibi": True, "parallel_attn": False, "multi_query": False, "bias": True}

TINY = DecoderConfig(
    vocab_size=8, embed_dim=4, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=2, mlp_dim=4, max_positions=9
)


def scaled(kind, **settings):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 500.0, **settings}}


# Name: the model_type, and what its transformers configuration is given.
VARIANTS = {
    "llama2": ("llama", {**LLAMA, "num_key_value_heads": 4}),
    "llama_biases_tied": ("llama", {**LLAMA, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "llama_wide_heads": ("llama", {**LLAMA, "head_dim": 12, "hidden_act": "gelu"}),
    "llama3": (
        "llama",
        {
            **LLAMA,
            **scaled(
                "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16
            ),
        },
    ),
    "llama_linear": ("llama", {**LLAMA, **scaled("linear", factor=4.0)}),
    "llama_dynamic": ("llama", {**LLAMA, "max_position_embeddings": 8, **scaled("dynamic", factor=4.0)}),
    "llama_yarn": (
        "llama",
        {**LLAMA, **scaled("yarn", factor=4.0, original_max_position_embeddings=16, beta_fast=8, beta_slow=0.5)},
    ),
    "mistral": ("mistral", {**LLAMA, "sliding_window": 5}),
    "mistral_no_window": ("mistral", {**LLAMA, "sliding_window": None}),
    "qwen2": ("qwen2", LLAMA),
    "qwen2_window": ("qwen2", {**LLAMA, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    "qwen3": ("qwen3", {**LLAMA, "head_dim": 16, "tie_word_embeddings": True}),
    "gemma": ("gemma", {**LLAMA, "head_dim": 16, "num_key_value_heads": 1}),
    "gemma2": (
        "gemma2",
        {**LLAMA, "head_dim": 16, "sliding_window": 4, "query_pre_attn_scalar": 24, "num_hidden_layers": 3},
    ),
    "gemma2_plain": (
        "gemma2",
        {
            **LLAMA,
            "head_dim": 16,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "layer_types": ["full_attention"] * 2,
        },
    ),
    "gpt2": ("gpt2", GPT2),
    "gpt2_untied": ("gpt2", {**GPT2, "tie_word_embeddings": False, "scale_attn_weights": False, "n_inner": 24}),
    "gpt_bigcode": ("gpt_bigcode", GPT2),
    "gpt_bigcode_multi_head": ("gpt_bigcode", {**GPT2, "multi_query": False}),
    "pythia": ("gpt_neox", NEOX),
    "neox_sequential": (
        "gpt_neox",
        {**NEOX, "use_parallel_residual": False, "rotary_pct": 1.0, "attention_bias": False},
    ),
    "opt": ("opt", OPT),
    "opt_no_bias": ("opt", {**OPT, "enable_bias": False}),
    "opt_350m": ("opt", {**OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 16}),
    "opt_post_norm": ("opt", {**OPT, "do_layer_norm_before": False, "tie_word_embeddings": False}),
    "opt_narrow": ("opt", {**OPT, "word_embed_proj_dim": 16, "tie_word_embeddings": False}),
    "bloom": ("bloom", {"vocab_size": VOCAB, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "bloom_six_heads": ("bloom", {"vocab_size": VOCAB, "hidden_size": 36, "n_layer": 2, "n_head": 6}),
    "falcon_7b": ("falcon", FALCON),
    "falcon_40b": ("falcon", {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon_11b": (
        "falcon",
        {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    ),
    "falcon_sequential": ("falcon", {**FALCON, "parallel_attn": False, "multi_query": False, "bias": True}),
    "falcon_rw": ("falcon", {**FALCON, **RW, "hidden_size": 48, "num_attention_heads": 12}),
    "falcon_alibi_parallel": ("falcon", {**FALCON, **RW, "parallel_attn": True, "bias": False}),
    "gptj": ("gptj", {**GPT2, "rotary_dim": 4}),
    "gptj_whole_heads": ("gptj", {**GPT2, "rotary_dim": 8, "n_inner": 24, "activation_function": "relu"}),
    "codegen": ("codegen", {**GPT2, "rotary_dim": 4}),
    "codegen_eight_heads": ("codegen", {**GPT2, "n_embd": 48, "n_head": 8, "rotary_dim": 2, "n_inner": 40}),
    "phi": ("phi", {**LLAMA, "num_key_value_heads": 4}),
    "glm": ("glm", {**LLAMA, "head_dim": 12, "pad_token_id": 0}),
    "glm_no_bias_whole_heads": (
        "glm",
        {**LLAMA, "head_dim": 8, "pad_token_id": 0, "attention_bias": False, "partial_rotary_factor": 1.0},
    ),
    "phi_normed": ("phi", {**LLAMA, "qk_layernorm": True}),
}


@functools.cache
def model_of(variant):
    return random_model(*VARIANTS[variant])


def random_model(model_type, settings, seed=0):
    """A random model whose norms and biases are random too, not ones and zeros."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    config = AutoConfig.for_model(model_type, **settings)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=implementation_of(config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.2)
    return model.eval()


def implementation_of(config):
    """Eager, without which transformers leaves out soft caps; but eager adds a Falcon's ALiBi twice (5.23)."""
    return "sdpa" if getattr(config, "alibi", False) else "eager"


@pytest.fixture
def hf_folder(tmp_path):
    """A function that saves a tiny model as transformers does and gives the folder."""

    def save(variant="llama2", *, dtype="float32", max_shard_size="5GB"):
        import torch

        folder = tmp_path / "hf"
        model = model_of(variant)
        if dtype != "float32":
            import copy

            model = copy.deepcopy(model).to(getattr(torch, dtype))
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        return folder

    return save


def tensors(folder):
    """All tensors of a folder, of however many files."""
    return {name: array for file in folder.glob("*.safetensors") for name, array in load_file(file).items()}


def assert_same_bits(left, right):
    assert left.keys() == right.keys()
    for name, array in left.items():
        assert array.dtype == right[name].dtype, name
        np.testing.assert_array_equal(array.view(f"u{array.itemsize}"), right[name].view(f"u{array.itemsize}"), name)


def edit_json(path, **changes):
    value = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: v for key, v in value.items() if v is not None}))


def edit_tensors(folder, changes=(), drop=()):
    path = folder / "model.safetensors"
    stored = {name: array for name, array in load_file(path).items() if name not in drop}
    save_file({**stored, **dict(changes)}, path, metadata={"format": "pt"})


TOKENS = np.random.default_rng(0).integers(3, VOCAB, (2, 20)).astype(np.int32)


def logits_of(config, params, tokens=TOKENS):
    @jax.jit
    def logits(params, tokens):
        model = build(config, Compute(), params)
        return model.logits(model.decode(tokens, np.ones(tokens.shape, np.int32)))

    return np.asarray(logits(in_memory(params), tokens))


def torch_logits(model, tokens=TOKENS):
    import torch

    with torch.no_grad():
        return model(input_ids=torch.tensor(tokens, dtype=torch.long)).logits.numpy()


def opened(folder):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    implementation = implementation_of(AutoConfig.from_pretrained(folder))
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=implementation).eval()


# --- the same function and the same bits ---------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_agree_with_transformers_and_every_bit_comes_back(hf_folder, tmp_path, variant):
    folder = hf_folder(variant)
    config, params = read_hf_decoder(folder)
    expected = torch_logits(model_of(variant))
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(logits_of(config, params), expected, atol=1e-4, rtol=0)
    write_hf_decoder(tmp_path / "out", config, params, source=folder)
    assert_same_bits(tensors(folder), tensors(tmp_path / "out"))
    before, after = (json.loads((path / "config.json").read_text()) for path in (folder, tmp_path / "out"))
    assert {key: value for key, value in before.items() if key != "dtype"}.items() <= after.items()


def random_settings(model_type, seed):
    """Sizes of every kind, in this family's names."""
    rng = np.random.default_rng([seed, *model_type.encode()])
    heads, head_dim = int(rng.choice([2, 4, 6])), int(rng.choice([8, 12, 16]))
    heads = 4 if model_type == "codegen" else heads
    sizes = {
        "vocab_size": int(rng.integers(40, 90)),
        "hidden_size": heads * head_dim,
        "num_hidden_layers": int(rng.integers(1, 5)),
        "num_attention_heads": heads,
        "num_key_value_heads": int(rng.choice([1, 2, heads])),
        "head_dim": int(rng.choice([4, 10, head_dim])),
        "intermediate_size": int(rng.integers(20, 60)),
        "max_position_embeddings": int(rng.integers(41, 99)),
        "sliding_window": int(rng.integers(1, 50)),
    }
    gpt2 = dict(hidden_size="n_embd", num_hidden_layers="n_layer", num_attention_heads="n_head",
                intermediate_size="n_inner", max_position_embeddings="n_positions")  # fmt: skip
    names = {
        "gpt2": gpt2,
        "gpt_bigcode": gpt2,
        "gptj": gpt2,
        "codegen": gpt2,
        "opt": {"intermediate_size": "ffn_dim"},
        "bloom": {
            "num_hidden_layers": "n_layer",
            "num_attention_heads": "n_head",
            "intermediate_size": None,
            "max_position_embeddings": None,
        },
        "falcon": {"intermediate_size": "ffn_hidden_size"},
    }.get(model_type, {})
    if model_type in ("gpt2", "gpt_bigcode", "gptj", "codegen", "opt", "bloom", "falcon", "gpt_neox", "phi"):
        names = {**names, "head_dim": None, "sliding_window": None}
        names = names if model_type == "phi" else {**names, "num_key_value_heads": None}
    elif model_type in ("llama", "gemma", "glm"):
        names = {"sliding_window": None}
    elif model_type == "qwen2":
        names = {"head_dim": None}
    if model_type == "glm":
        sizes |= {"head_dim": head_dim, "pad_token_id": 0}
    if model_type in ("gptj", "codegen"):
        sizes["rotary_dim"] = int(rng.choice([2, 6, head_dim]))
    if model_type == "opt":
        sizes |= {"do_layer_norm_before": bool(rng.integers(2)), "word_embed_proj_dim": int(rng.choice([6, 40]))}
    if model_type.startswith("qwen"):
        sizes |= {"use_sliding_window": True, "max_window_layers": int(rng.integers(0, 3))}
    return {names.get(key, key): value for key, value in sizes.items() if names.get(key, key) is not None}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    "model_type", [name for name in FAMILIES if name not in ("chatglm", "moss")]
)  # which transformers does not have
def test_logits_of_random_sizes_agree_with_transformers(tmp_path, model_type, seed):
    settings = random_settings(model_type, seed)
    model = random_model(model_type, settings, seed)
    model.save_pretrained(tmp_path / "hf")
    config, params = read_hf_decoder(tmp_path / "hf")
    tokens = np.random.default_rng(seed).integers(3, settings["vocab_size"], (1, 40)).astype(np.int32)
    expected = torch_logits(model, tokens)
    np.testing.assert_allclose(logits_of(config, params, tokens), expected, atol=1e-4, rtol=0)


def test_falcons_alibi_is_rounded_where_transformers_rounds_it(hf_folder):
    import torch
    from transformers.models.falcon.modeling_falcon import build_alibi_tensor

    for heads in (4, 6, 12, 32, 64, 71):
        expected = build_alibi_tensor(torch.ones(1, 2048, dtype=torch.long), heads, torch.float32)[:, 0].numpy()
        config = dataclasses.replace(TINY, num_heads=heads, positions="alibi", alibi_rounded=True)
        ours = jax.jit(rounded_alibi_bias, static_argnums=1)(np.arange(2048)[None], config)[0, :, 0]
        np.testing.assert_array_equal(ours, expected, str(heads))
    tokens = np.random.default_rng(1).integers(3, VOCAB, (1, 400)).astype(np.int32)
    found = logits_of(*read_hf_decoder(hf_folder("falcon_rw")), tokens)
    np.testing.assert_allclose(found, torch_logits(model_of("falcon_rw"), tokens), atol=1e-4, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_transformers_reads_a_config_that_is_written_without_a_source(hf_folder, tmp_path, variant):
    config, params = read_hf_decoder(hf_folder(variant))
    write_hf_decoder(tmp_path / "out", config, params, model_type=VARIANTS[variant][0])
    again, params_again = read_hf_decoder(tmp_path / "out")
    assert dataclasses.replace(again, attention_scale=None, max_positions=1, windowed=(True,)) == dataclasses.replace(
        config, attention_scale=None, max_positions=1, windowed=(True,)
    )
    assert (again.window_of_layers, again.query_scale) == (config.window_of_layers, pytest.approx(config.query_scale))
    jax.tree.map(np.testing.assert_array_equal, params_again, params)
    np.testing.assert_allclose(torch_logits(opened(tmp_path / "out")), torch_logits(model_of(variant)), atol=1e-5)


@pytest.mark.parametrize(
    ("variant", "dtype"), [("llama3", "bfloat16"), ("gpt2", "float16"), ("falcon_40b", "bfloat16")]
)
def test_half_precision_keeps_every_bit(hf_folder, tmp_path, variant, dtype):
    folder = hf_folder(variant, dtype=dtype)
    config, params = read_hf_decoder(folder)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    write_hf_decoder(tmp_path / "out", config, params, source=folder)
    assert_same_bits(tensors(folder), tensors(tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == dtype


@pytest.mark.parametrize("variant", ["qwen3", "gpt_bigcode"])
def test_sharded_folders_both_ways(hf_folder, tmp_path, variant):
    folder = hf_folder(variant, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    config, params = read_hf_decoder(folder)
    write_hf_decoder(tmp_path / "out", config, params, source=folder, shard_bytes=15_000)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    assert_same_bits(tensors(folder), tensors(tmp_path / "out"))
    np.testing.assert_array_equal(torch_logits(opened(tmp_path / "out")), torch_logits(opened(folder)))


def test_the_three_of_one_tensor_by_example():
    config = dataclasses.replace(
        TINY, num_heads=4, num_kv_heads=2, head_dim=1, rotary=Rotary(), positions="none", norm="layer", qkv_bias=True,
        out_bias=True, mlp_bias=True, mlp_activations=("exact_gelu",), residual="parallel",
    )  # fmt: skip
    place = hf_places(FAMILIES["falcon"], config)["transformer.h.0.self_attention.query_key_value.bias"]
    parts = [np.array([0, 1, 2, 3]), np.array([10, 11]), np.array([20, 21])]
    fused = place.join(parts)
    assert fused.tolist() == [0, 1, 10, 20, 2, 3, 11, 21]
    assert [np.asarray(part).tolist() for part in place.split(fused)] == [part.tolist() for part in parts]


def test_the_four_parts_of_a_codegen_by_example():
    config = parse_config(
        Path("config.json"),
        {"model_type": "codegen", "vocab_size": 8, "n_embd": 8, "n_layer": 1, "n_head": 4, "rotary_dim": 2},
    )[1]
    place = hf_places(FAMILIES["codegen"], config)["transformer.h.0.attn.qkv_proj.weight"]
    assert [path.split("/")[-2] for path in place.paths] == ["query", "value", "key"]
    head = np.arange(8) // 2
    parts = [np.tile(kind + head, (8, 1)) for kind in (100, 300, 200)]
    fused = np.asarray(place.join(parts))
    assert fused[:, 0].tolist() == [x + part for part in range(4) for x in (100, 100, 300, 300, 200, 200)]
    assert [np.asarray(part).tolist() for part in place.split(fused)] == [part.tolist() for part in parts]


def test_a_moss_is_a_codegen_under_another_name(hf_folder, tmp_path):
    folder = hf_folder("codegen")
    codegen = read_hf_decoder(folder)[0]
    stored = tensors(folder)
    mask = np.tril(np.ones((1, 1, 64, 64), bool))
    edit_tensors(folder, {f"transformer.h.{layer}.attn.causal_mask": mask for layer in range(2)})
    edit_json(folder / "config.json", model_type="moss", architectures=["MossForCausalLM"], wbits=32, groupsize=128)
    config, params = read_hf_decoder(folder)
    assert config == codegen
    np.testing.assert_allclose(logits_of(config, params), torch_logits(model_of("codegen")), atol=1e-4, rtol=0)
    write_hf_decoder(tmp_path / "out", config, params, source=folder)
    assert_same_bits(tensors(tmp_path / "out"), stored)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == ["MossForCausalLM"]
    write_hf_decoder(tmp_path / "codegen", config, params, source=folder, model_type="codegen")
    np.testing.assert_allclose(torch_logits(opened(tmp_path / "codegen")), torch_logits(model_of("codegen")), atol=1e-5)
    edit_json(folder / "config.json", wbits=4)
    with pytest.raises(ModelFolderError, match=r"wbits is 4.*quantised"):
        read_hf_decoder(folder)


def test_as_many_numbers_of_a_head_are_rotated_as_the_file_says():
    for head_dim in range(2, 129, 2):
        for rotated in range(2, head_dim + 1, 2):
            keys = {"model_type": "gptj", "vocab_size": 8, "n_embd": head_dim, "n_layer": 1, "n_head": 1}
            config = parse_config(Path("config.json"), {**keys, "rotary_dim": rotated})[1]
            assert config.rotary_dim == rotated


configs = st.builds(
    DecoderConfig,
    vocab_size=st.integers(8, 20),
    embed_dim=st.sampled_from([4, 8]),
    num_layers=st.integers(1, 3),
    num_heads=st.just(4),
    num_kv_heads=st.sampled_from([1, 2, 4]),
    head_dim=st.sampled_from([2, 4]),
    mlp_dim=st.integers(1, 9),
    mlp_activations=st.sampled_from([("silu", "linear"), ("relu", "linear")]),
    window=st.sampled_from([0, 3]),
    tied_head=st.booleans(),
    max_positions=st.integers(1, 99),
    rotary=st.sampled_from([Rotary(), Rotary(theta=7.0, scaling="yarn", factor=2.0, original_max_positions=9)]),
)


@settings(max_examples=15, deadline=None)
@given(config=configs, seed=st.integers(0, 3))
def test_export_then_import_is_the_identity(tmp_path_factory, config, seed):
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), abstract_params(config))
    folder = tmp_path_factory.mktemp("round") / "out"
    write_hf_decoder(folder, config, params)
    read_config, read_params = read_hf_decoder(folder)
    assert read_config == config
    assert json.loads((folder / "config.json").read_text())["model_type"] == ("mistral" if config.window else "llama")
    jax.tree.map(np.testing.assert_array_equal, read_params, params)


@pytest.mark.parametrize("variant", ["gemma2", "gpt2", "bloom", "falcon_40b", "phi", "opt_350m", "codegen"])
def test_every_parameter_element_has_one_place(hf_folder, variant):
    config, _ = read_hf_decoder(hf_folder(variant))
    places = hf_places(FAMILIES[VARIANTS[variant][0]], config)
    parts = [(path, place.layer) for place in places.values() for path in place.paths]
    assert len(set(parts)) == len(parts)
    covered = sum(int(np.prod(place.hf_shape)) for place in places.values())
    assert covered == sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(abstract_params(config)))


# --- the many spellings of one model -------------------------------------------------------------------------------


def test_rotary_keys_of_transformers_4_and_5_are_read_alike(hf_folder):
    folder = hf_folder("llama3")
    five = read_hf_decoder(folder)[0]
    scaling = json.loads((folder / "config.json").read_text())["rope_parameters"]
    scaling["type"] = scaling.pop("rope_type")
    edit_json(folder / "config.json", rope_parameters=None, rope_scaling=scaling, rope_theta=scaling.pop("rope_theta"))
    assert read_hf_decoder(folder)[0] == five


def test_files_without_the_prefix_and_with_masks_are_read(hf_folder):
    folder = hf_folder("gpt2")
    config, params = read_hf_decoder(folder)
    params = in_memory(params)
    short = {name.removeprefix("transformer."): array for name, array in tensors(folder).items()}
    masks = {"h.0.attn.bias": np.ones((1, 1, 64, 64), np.float32), "h.0.attn.masked_bias": np.float32([-1e4])}
    save_file({**short, **masks}, folder / "model.safetensors")
    again, params_again = read_hf_decoder(folder)
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, params_again, params)


NULLABLE = ("sliding_window", "attn_logit_softcapping", "final_logit_softcapping")


def test_an_absent_key_has_the_default_of_transformers_and_null_is_none(hf_folder):
    folder = hf_folder("gemma2_plain")
    edit_json(folder / "config.json", layer_types=None)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **dict.fromkeys(NULLABLE)}))
    config, _ = read_hf_decoder(folder)
    assert (config.window, config.attention_softcap, config.logits_softcap) == (0, 0, 0)
    edit_json(path)  # drops what is null
    config, _ = read_hf_decoder(folder)
    assert (config.window, config.attention_softcap, config.logits_softcap) == (4096, 50, 30)
    assert config.window_of_layers == (True, False)


def test_old_names_of_keys(hf_folder):
    folder = hf_folder("bloom")
    config, _ = read_hf_decoder(folder)
    old = {"n_embed": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "skip_bias_add": True, "n_inner": None}
    edit_json(folder / "config.json", hidden_size=None, n_head=None, n_layer=None, **old)
    assert read_hf_decoder(folder)[0] == config


def test_a_stored_copy_of_a_tied_head_is_checked(hf_folder):
    folder = hf_folder("opt")
    embedding = tensors(folder)["model.decoder.embed_tokens.weight"]
    before = read_hf_decoder(folder)
    edit_tensors(folder, {"lm_head.weight": embedding})
    assert read_hf_decoder(folder)[0] == before[0]
    edit_tensors(folder, {"lm_head.weight": embedding + 1})
    with pytest.raises(ModelFolderError, match=r"tie_word_embeddings is true, but lm_head\.weight differs"):
        read_hf_decoder(folder)
    edit_json(folder / "config.json", tie_word_embeddings=False)
    assert not read_hf_decoder(folder)[0].tied_head


def test_what_stands_beside_the_weights_is_carried_along(hf_folder, tmp_path):
    folder = hf_folder("llama2")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "README.md").write_text("# Mine")
    (folder / "modeling.py").write_text("raise SystemExit")
    edit_json(folder / "config.json", task_specific_params={"a": 1}, auto_map={"AutoModel": "modeling.X"})
    config, params = read_hf_decoder(folder)
    write_hf_decoder(tmp_path / "out", dataclasses.replace(config, layer_norm_epsilon=1e-3), params, source=folder)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (written["task_specific_params"], written["rms_norm_eps"]) == ({"a": 1}, 1e-3)
    assert "auto_map" not in written
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"
    assert (tmp_path / "out" / "README.md").read_text() == "# Mine"
    assert not (tmp_path / "out" / "modeling.py").exists()
    assert (tmp_path / "out" / "model.safetensors").stat().st_mode & 0o044


# --- refused -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "change", "message"),
    [
        ("llama2", {"model_type": "mamba"}, "model_type is 'mamba'.*llama, mistral"),
        ("llama2", {"hidden_act": "quick_gelu"}, "hidden_act is 'quick_gelu'.*silu"),
        ("llama2", {"attn_temperature": 2.0, "nope_layers": [1]}, "unknown keys attn_temperature, nope_layers"),
        ("llama2", {"quantization_config": {"bits": 4}}, "quantization_config.*dequantise"),
        ("llama2", {"hidden_size": "32"}, "hidden_size is '32'"),
        ("llama2", {"tie_word_embeddings": 1}, "tie_word_embeddings is 1"),
        ("llama2", {"num_key_value_heads": 3}, "cannot share"),
        ("llama2", {"rope_parameters": {"rope_type": "longrope"}}, "rope_type is 'longrope'"),
        ("llama2", {"rope_parameters": {"rope_type": "linear"}}, "factor is missing"),
        ("llama2", {"rope_parameters": {"rope_type": "default", "mscale": 2}}, "unknown keys mscale.*rope_parameters"),
        ("llama2", {"rope_parameters": []}, "rope_parameters is .*an object"),
        ("qwen2", {"layer_types": ["full_attention", "chunked_attention"]}, "layer_types.*sliding_attention"),
        ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention.*later"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ("opt", {"_remove_final_layer_norm": True}, "_remove_final_layer_norm is True.*last norm"),
        ("bloom", {"apply_residual_connection_post_layernorm": True}, "after the norm"),
        ("phi", {"tie_word_embeddings": True}, "head_bias"),
        ("gptj", {"rotary_dim": 10}, "rotary_dim is 10: a head has 8"),
        ("gptj", {"scale_attn_weights": False}, "scale_attn_weights is False"),
        ("codegen", {"n_head": 2}, "n_head is 2.*4 equal parts"),
        ("codegen", {"head_dim": 8}, "head_dim is 8.*CodeGen2"),
    ],
)
def test_what_would_change_the_function_is_named(hf_folder, variant, change, message):
    folder = hf_folder(variant)
    edit_json(folder / "config.json", **change)
    with pytest.raises(ModelFolderError, match=message) as error:
        read_hf_decoder(folder)
    assert "config.json" in str(error.value)


def test_a_missing_size_is_named(hf_folder):
    folder = hf_folder("llama2")
    edit_json(folder / "config.json", intermediate_size=None)
    with pytest.raises(ModelFolderError, match=r"config\.json: intermediate_size is missing"):
        read_hf_decoder(folder)


def test_all_tensors_that_do_not_fit_are_listed_at_once(hf_folder):
    folder = hf_folder("llama2")
    name = "model.layers.1.mlp.up_proj.weight"
    edit_tensors(
        folder,
        {name: np.zeros((2, 2), np.float32), "adapter.weight": np.zeros(3, np.float32),
         "model.norm.weight": np.zeros(32, np.int8)},
        drop=["model.layers.0.self_attn.k_proj.weight", "lm_head.weight"],
    )  # fmt: skip
    with pytest.raises(ModelFolderError) as error:
        read_hf_decoder(folder)
    for line in (
        "missing: model.layers.0.self_attn.k_proj.weight (32, 32)",
        "missing: lm_head.weight (64, 32)",
        "unknown: adapter.weight (3,)",
        f"wrong shape: {name} is (2, 2), the configuration asks for (40, 32)",
        "wrong type: model.norm.weight is I8",
    ):
        assert line in str(error.value)


def test_pickled_weights_are_refused_with_the_remedy(hf_folder):
    folder = hf_folder("llama2")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelFolderError, match=r"pytorch_model\.bin.*AutoModelForCausalLM.*save_pretrained"):
        read_hf_decoder(folder)
    with pytest.raises(ModelFolderError, match="no such folder"):
        read_hf_decoder(folder / "absent")


# --- whole or absent -----------------------------------------------------------------------------------------------


def test_nothing_is_half_written(tmp_path, monkeypatch, fill_the_disk):
    params = init_params(TINY, 0)
    params["decoder"]["decoder_norm"]["scale"] = np.full(4, 1e5, np.float32)
    with pytest.raises(ModelFolderError, match=r"model\.norm\.weight has values beyond float16"):
        write_hf_decoder(tmp_path / "out", TINY, params, dtype="float16")
    assert list(tmp_path.iterdir()) == []

    fill_the_disk()
    with pytest.raises(ModelFolderError, match="No space left on device"):
        write_hf_decoder(tmp_path / "out", TINY, params)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    write_hf_decoder(tmp_path / "out", TINY, params)
    with pytest.raises(ModelFolderError, match="not empty"):
        write_hf_decoder(tmp_path / "out", TINY, params)


def test_models_that_a_family_cannot_say_are_refused(tmp_path):
    odd = dataclasses.replace(TINY, norm="layer", positions="none")
    with pytest.raises(ModelFolderError, match=r"no config\.json says.*llama loses norm, positions"):
        hf_decoder_config(odd)
    with pytest.raises(ModelFolderError, match=r"gpt2 loses .*num_kv_heads"):
        write_hf_decoder(tmp_path / "out", TINY, init_params(TINY, 0), model_type="gpt2")
    with pytest.raises(ModelFolderError, match=r"decoder/logits_dense/kernel: \(4, 8\), expected none"):
        write_hf_decoder(tmp_path / "out", dataclasses.replace(TINY, tied_head=True), init_params(TINY, 0))
    with pytest.raises(ModelFolderError, match="dtype is 'int8'"):
        write_hf_decoder(tmp_path / "out", TINY, init_params(TINY, 0), dtype="int8")
    with pytest.raises(ModelFolderError, match="model_type is 'mamba'"):
        write_hf_decoder(tmp_path / "out", TINY, init_params(TINY, 0), model_type="mamba")
    assert list(tmp_path.iterdir()) == []
