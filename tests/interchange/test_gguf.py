"""GGUF files of decoders: the model of the Hugging Face folder that they were made of, or refused by name."""

import functools
import json
import re

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from flanjax import convert
from flanjax.errors import FlanjaxError
from flanjax.interchange.any_model import read_model, read_model_config, vocabulary_of
from flanjax.interchange.folders import ModelFolderError
from flanjax.interchange.gguf import convert_gguf, open_gguf, read_gguf
from flanjax.interchange.gguf_tokenizer import gguf_vocabulary
from flanjax.interchange.hf_decoder import read_hf_decoder

SIZES = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}
LLAMA3 = {
    **{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    **{"original_max_position_embeddings": 8192, "rope_theta": 500_000.0},
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 10_000.0}
# Name: GGUF's architecture, the model_type, and what its transformers configuration is given.
VARIANTS = {
    "llama": ("llama", "llama", SIZES),
    "llama_biases_tied": (
        "llama",
        "llama",
        {**SIZES, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "llama3": ("llama", "llama", {**SIZES, "rope_parameters": LLAMA3}),
    "llama_linear": (
        "llama",
        "llama",
        {**SIZES, "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}},
    ),
    "mistral": ("llama", "mistral", {**SIZES, "sliding_window": 5}),
    "qwen2": ("qwen2", "qwen2", SIZES),
    "qwen2_yarn": ("qwen2", "qwen2", {**SIZES, "rope_parameters": YARN}),
    "qwen3": ("qwen3", "qwen3", {**SIZES, "head_dim": 24, "tie_word_embeddings": True}),
    "gemma": ("gemma", "gemma", {**SIZES, "head_dim": 24}),
    "gemma2": ("gemma2", "gemma2", {**SIZES, "head_dim": 24, "sliding_window": 4, "query_pre_attn_scalar": 24}),
}
# A whole tokenizer of the kind that each of these files needs.
TOKENIZER = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "▁", "a", "b", "ab", "▁ab"],
    "tokenizer.ggml.scores": [0.0, 0.0, 0.0, -3.0, -4.0, -5.0, -1.0, -2.0],
    "tokenizer.ggml.token_type": [2, 3, 3, 1, 1, 1, 1, 1],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.unknown_token_id": 0,
}


@functools.cache
def model_of(variant):
    """A random model whose norms and biases are random too; its numbers are those of float16, scaled."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    _, model_type, settings = VARIANTS[variant]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.2)
            parameter.copy_(parameter.half().float())
    return model.eval()


def metadata_of(variant):
    """What llama.cpp's converter writes of the configuration."""
    architecture, _, settings = VARIANTS[variant]
    config = model_of(variant).config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters
    said = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": rope["rope_theta"],
        "vocab_size": config.vocab_size,
    }
    if architecture == "llama":
        said["rope.dimension_count"] = head_dim
    if "head_dim" in settings:
        said |= {"attention.key_length": head_dim, "attention.value_length": head_dim}
    if rope["rope_type"] in ("linear", "yarn"):
        said |= {"rope.scaling.type": rope["rope_type"], "rope.scaling.factor": rope["factor"]}
    if rope["rope_type"] == "yarn":
        said["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
    if "sliding_window" in settings:
        said["attention.sliding_window"] = config.sliding_window
    if architecture == "gemma2":
        said["attn_logit_softcapping"] = config.attn_logit_softcapping
        said["final_logit_softcapping"] = config.final_logit_softcapping
    return {f"{architecture}.{key}": value for key, value in said.items()}


def tensors_of(variant):
    """What llama.cpp's converter makes of the tensors, under the names of the gguf package."""
    import gguf

    architecture, _, _ = VARIANTS[variant]
    model = model_of(variant)
    number = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(number, model.config.num_hidden_layers)
    heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}
    written = {}
    for name, parameter in model.named_parameters():
        array = parameter.detach().numpy()
        module = name.split(".")[-2]
        if architecture == "llama" and module in heads:
            halves = array.reshape(heads[module], 2, -1, *array.shape[1:])
            array = halves.swapaxes(1, 2).reshape(array.shape)
        if architecture.startswith("gemma") and array.ndim == 1:
            array = array + 1
        written[names.get_name(name, (".weight", ".bias"))] = np.ascontiguousarray(array)
    if variant == "llama3":
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](model.config, "cpu")
        plain = 1 / LLAMA3["rope_theta"] ** (np.arange(0, 16, 2) / 16)
        written["rope_freqs.weight"] = (plain / scaled.numpy()).astype(np.float32)
    return written


@pytest.fixture
def made(tmp_path, write_gguf):
    """A function that gives a variant's Hugging Face folder and its GGUF file."""

    def make(variant="llama", types="F32", *, change=(), drop=(), tensors=()):
        folder = tmp_path / "hf"
        if not folder.exists():
            model_of(variant).save_pretrained(folder)
        metadata = {**TOKENIZER, **metadata_of(variant), **dict(change)}
        metadata = {key: value for key, value in metadata.items() if key not in drop}
        arrays = {name: array for name, array in tensors_of(variant).items() if name not in drop}
        path = tmp_path / "model.gguf"
        return folder, write_gguf(path, VARIANTS[variant][0], metadata, {**arrays, **dict(tensors)}, types)

    return make


# --- the same model --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_file_is_the_folder_that_it_was_made_of(made, tmp_path, variant):
    folder, path = made(variant)
    config, params = read_hf_decoder(folder)
    gguf_config, gguf_params = read_gguf(path)
    assert gguf_config == config
    jax.tree.map(np.testing.assert_array_equal, gguf_params, params)
    convert_gguf(path, tmp_path / "out")
    again_config, again = read_hf_decoder(tmp_path / "out")
    assert again_config == config
    jax.tree.map(np.testing.assert_array_equal, again, params)
    assert load_file(folder / "model.safetensors").keys() == load_file(tmp_path / "out" / "model.safetensors").keys()


@pytest.mark.parametrize("variant", ["llama", "qwen2", "gemma2"])
def test_transformers_reads_the_same_weights_from_the_file(made, tmp_path, variant):
    import torch
    from transformers import AutoModelForCausalLM

    _, path = made(variant, "Q8_0")
    convert_gguf(path, tmp_path / "out")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32).state_dict()
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name


@pytest.mark.parametrize("types", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_every_type_comes_out_exactly_and_keeps_its_precision(made, tmp_path, types):
    _, path = made("llama", types)
    _, params = read_gguf(path)
    convert_gguf(path, tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, params, read_hf_decoder(tmp_path / "out")[1])
    written = load_file(tmp_path / "out" / "model.safetensors")
    precise = {"F16": "float16", "BF16": "bfloat16"}.get(types, "float32")
    assert {str(array.dtype) for array in written.values() if array.ndim > 1} == {precise}
    assert {str(array.dtype) for array in written.values() if array.ndim == 1} == {"float32"}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["torch_dtype"], config["architectures"]) == (precise, ["LlamaForCausalLM"])
    convert_gguf(path, tmp_path / "half", dtype="bfloat16")
    assert {str(array.dtype) for array in load_file(tmp_path / "half" / "model.safetensors").values()} == {"bfloat16"}


def test_leaves_are_read_where_they_are_indexed(made, monkeypatch):
    _, path = made("llama", "Q4_1")
    _, params = read_gguf(path)
    opened = []
    memmap = np.memmap
    monkeypatch.setattr(np, "memmap", lambda *arguments: (opened.append(arguments[3]), memmap(*arguments))[1])
    query = params["decoder"]["layers"]["self_attention"]["query"]["kernel"]
    assert (query.shape, query.dtype) == ((2, 64, 64), np.float32)
    assert not opened
    part = query[1:2, 32:64, 0:16]
    start = open_gguf(path).file.tensors["blk.1.attn_q.weight"].start
    assert set(opened) == {start}
    np.testing.assert_array_equal(part, np.asarray(query)[1:2, 32:64, 0:16])


def test_it_is_one_of_the_models_that_there_are(made, tmp_path):
    folder, path = made("qwen2")
    convert_gguf(path, tmp_path / "out")
    assert read_model_config(path) == read_model_config(folder)
    jax.tree.map(np.testing.assert_array_equal, read_model(path)[1], read_model(folder)[1])
    assert vocabulary_of(path).identity == vocabulary_of(tmp_path / "out").identity


def test_the_door_converts_it(made, tmp_path, capsys):
    _, path = made("llama", "Q8_0")
    assert convert.main([f"--input={path}", f"--output={tmp_path / 'out'}", "--format=hf"]) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 'out'}\n"
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        *("config.json", "generation_config.json", "model.safetensors", "special_tokens_map.json"),
        *("tokenizer.json", "tokenizer_config.json"),
    ]
    flags = [f"--input={tmp_path / 'none.gguf'}", f"--output={tmp_path / 'more'}", "--format=hf"]
    assert convert.main(flags) == 2
    assert "none.gguf: No such file" in capsys.readouterr().err
    assert convert.main([f"--input={path}", *flags[1:], f"--adapter={tmp_path}"]) == 2
    assert "is a GGUF file: convert it first" in capsys.readouterr().err
    assert not (tmp_path / "more").exists()


# --- refused by name -------------------------------------------------------------------------------------------------

REFUSED = [
    ({"change": {"llama.rope.dimension_count": 8}}, "llama.rope.dimension_count is 8: only 16 is supported"),
    ({"change": {"llama.expert_count": 8}}, "llama.expert_count is 8: only 0 is supported .mixtures of experts"),
    ({"change": {"llama.attention.clamp_kqv": 8.0}}, "unknown keys llama.attention.clamp_kqv: they may change"),
    ({"change": {"llama.attention.head_count_kv": [2, 4]}}, "llama.attention.head_count_kv is .*: it must be a whole"),
    ({"change": {"llama.rope.scaling.type": "longrope"}}, "'longrope': supported are none, linear, yarn"),
    ({"change": {"llama.vocab_size": 63}}, "llama.vocab_size is 63: only 64 is supported .token_embd.weight has"),
    ({"change": {"llama.attention.head_count_kv": 3}}, "num_kv_heads is 3"),
    ({"change": {"llama.block_count": 4_000_000_000}}, "llama.block_count is 4000000000: the file has 21 tensors"),
    ({"change": {"llama.vocab_size": [64, 64]}}, r"llama.vocab_size is \[64, 64\]: only 64 is supported"),
    ({"drop": ["llama.block_count"]}, "llama.block_count is missing"),
    ({"drop": ["token_embd.weight"]}, "no tensor token_embd.weight"),
    (
        {"drop": ["blk.1.ffn_up.weight"], "tensors": {"x": np.ones((1, 1), np.float32)}},
        r"tensors do not fit the metadata:(?s:.)*missing: blk.1.ffn_up.weight \(96, 64\)(?s:.)*unknown: x \(1, 1\)",
    ),
    ({"tensors": {"rope_freqs.weight": np.linspace(1, 4, 8, dtype=np.float32)}}, "not the scaling of Llama 3.1"),
    (
        {
            "change": {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0},
            "tensors": {"rope_freqs.weight": np.ones(8, np.float32)},
        },
        "llama.rope.scaling.type is 'linear': the tensor rope_freqs.weight scales the positions too",
    ),
    ({"tensors": {"rope_freqs.weight": np.zeros(8, np.float32)}}, "not the scaling of Llama 3.1"),
]


@pytest.mark.parametrize(("wrong", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_what_would_change_the_function_is_named(made, tmp_path, wrong, message):
    _, path = made("llama", **wrong)
    with pytest.raises(ModelFolderError, match=f"{re.escape(str(path))}: .*{message}"):
        read_gguf(path)
    with pytest.raises(ModelFolderError):
        convert_gguf(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def whole_file(tmp_path_factory, write_gguf):
    path = tmp_path_factory.mktemp("whole") / "model.gguf"
    tensors = tensors_of("llama3")
    write_gguf(path, "llama", {**TOKENIZER, **metadata_of("llama3")}, tensors, "Q4_0")
    return path.read_bytes(), min(stored.start for stored in open_gguf(path).file.tensors.values())


@given(data=st.data())
@settings(max_examples=150)
@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered")
def test_damaged_files_are_read_or_refused(whole_file, tmp_path_factory, data):
    content, header = whole_file
    damaged = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(24, header - 8))
        size = data.draw(st.sampled_from((1, 4, 8)))
        damaged[place : place + size] = data.draw(st.binary(min_size=size, max_size=size))
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    path.write_bytes(damaged)
    try:
        decoder, vocabulary = open_gguf(path), gguf_vocabulary(path)
    except FlanjaxError as error:
        message = str(error)
    else:
        message = f"{path} {decoder.config} {vocabulary.size}"
    assert str(path) in message


def test_another_architecture_is_named(tmp_path, write_gguf):
    path = write_gguf(tmp_path / "other.gguf", "mamba", {})
    with pytest.raises(ModelFolderError, match=r"general\.architecture is 'mamba': read are llama, qwen2, "):
        read_gguf(path)


def test_nothing_is_overwritten_and_a_wrong_dtype_is_named(made, tmp_path):
    folder, path = made("llama")
    before = sorted(folder.iterdir())
    with pytest.raises(ModelFolderError, match="the folder is not empty"):
        convert_gguf(path, folder)
    assert sorted(folder.iterdir()) == before
    with pytest.raises(ModelFolderError, match="dtype is 'int8': choose one of float32"):
        convert_gguf(path, tmp_path / "out", dtype="int8")
    assert not (tmp_path / "out").exists()
