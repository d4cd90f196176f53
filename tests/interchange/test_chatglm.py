"""ChatGLM2 folders: the function of GLM-4, which transformers has, under other names; the same bits back."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from flanjax.data.vocabularies import VocabularyError
from flanjax.interchange.folders import ModelFolderError
from flanjax.interchange.hf_decoder import read_hf_decoder, write_hf_decoder
from flanjax.interchange.stored import in_memory
from flanjax.interchange.tokenizer import read_vocabulary
from flanjax.models.config import Compute
from flanjax.models.decoder import abstract_params, build
from flanjax.models.decoder_config import DecoderConfig, Rotary

LAYERS, EMBED, HEADS, KV_HEADS, HEAD_DIM, MLP, VOCAB = 2, 32, 4, 2, 12, 40, 64
CONFIG = {
    "model_type": "chatglm",
    "architectures": ["ChatGLMModel"],
    "auto_map": {"AutoConfig": "configuration_chatglm.ChatGLMConfig"},
    "padded_vocab_size": VOCAB,
    "hidden_size": EMBED,
    "num_layers": LAYERS,
    "num_attention_heads": HEADS,
    "multi_query_attention": True,
    "multi_query_group_num": KV_HEADS,
    "kv_channels": HEAD_DIM,
    "ffn_hidden_size": MLP,
    "layernorm_epsilon": 1e-5,
    "rmsnorm": True,
    "add_qkv_bias": True,
    "add_bias_linear": False,
    "original_rope": True,
    "post_layer_norm": True,
    "apply_residual_connection_post_layernorm": False,
    "pre_seq_len": None,
    "quantization_bit": 0,
    "seq_length": 64,
    "torch_dtype": "float32",
}
TOKENS = np.random.default_rng(0).integers(3, VOCAB, (2, 20)).astype(np.int32)


@pytest.fixture(scope="module")
def glm() -> Any:
    """A random GLM-4 whose norms and biases are random too."""
    import torch
    from transformers import GlmConfig, GlmForCausalLM

    torch.manual_seed(0)
    config = GlmConfig(
        vocab_size=VOCAB, hidden_size=EMBED, intermediate_size=MLP, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS, head_dim=HEAD_DIM, rms_norm_eps=1e-5, pad_token_id=0, max_position_embeddings=64,
    )  # fmt: skip
    model = GlmForCausalLM._from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.2)
    return model.eval()


def chatglm_tensors(glm: Any) -> dict[str, np.ndarray]:
    """A GLM-4's tensors under the names that ChatGLM2 has for them."""
    ours = {name: tensor.detach().numpy() for name, tensor in glm.named_parameters()}
    whole = {
        "model.embed_tokens.weight": "transformer.embedding.word_embeddings.weight",
        "model.norm.weight": "transformer.encoder.final_layernorm.weight",
        "lm_head.weight": "transformer.output_layer.weight",
    }
    layered = {
        "input_layernorm.weight": "input_layernorm.weight",
        "self_attn.o_proj.weight": "self_attention.dense.weight",
        "post_attention_layernorm.weight": "post_attention_layernorm.weight",
        "mlp.gate_up_proj.weight": "mlp.dense_h_to_4h.weight",
        "mlp.down_proj.weight": "mlp.dense_4h_to_h.weight",
    }
    tensors = {theirs: ours.pop(name) for name, theirs in whole.items()}
    for layer in range(LAYERS):
        before, after = f"model.layers.{layer}", f"transformer.encoder.layers.{layer}"
        tensors |= {f"{after}.{theirs}": ours.pop(f"{before}.{name}") for name, theirs in layered.items()}
        for kind in ("weight", "bias"):
            parts = [ours.pop(f"{before}.self_attn.{part}_proj.{kind}") for part in "qkv"]
            tensors[f"{after}.self_attention.query_key_value.{kind}"] = np.concatenate(parts)
    assert not ours
    return tensors


@pytest.fixture
def folder(glm: Any, tmp_path: Path) -> Path:
    """What THUDM publishes, but small: its configuration, tensors under its names, and a buffer that says nothing."""
    path = tmp_path / "chatglm"
    path.mkdir()
    buffer = {"transformer.rotary_pos_emb.inv_freq": np.ones(3, np.float32)}
    save_file({**chatglm_tensors(glm), **buffer}, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps(CONFIG))
    (path / "modeling_chatglm.py").write_text("raise SystemExit")
    (path / "tokenizer.model").write_bytes(b"pieces")
    return path


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_logits_are_those_of_glm_under_other_names(folder: Path, glm: Any) -> None:
    import torch

    config, params = read_hf_decoder(folder)
    assert config.rotary == Rotary(fraction=0.5, interleaved=True)

    @jax.jit
    def logits(params: Any, tokens: jax.Array) -> jax.Array:
        model = build(config, Compute(), params)
        return model.logits(model.decode(tokens, np.ones(tokens.shape, np.int32)))

    with torch.no_grad():
        expected = glm(input_ids=torch.tensor(TOKENS, dtype=torch.long)).logits.numpy()
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(logits(in_memory(params), TOKENS), expected, atol=1e-4, rtol=0)


def test_import_then_export_keeps_every_bit_and_no_code(folder: Path, tmp_path: Path) -> None:
    write_hf_decoder(tmp_path / "out", *read_hf_decoder(folder), source=folder)
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "out"))
    del before["transformer.rotary_pos_emb.inv_freq"]
    assert before.keys() == after.keys()
    for name, array in before.items():
        np.testing.assert_array_equal(array.view(np.uint32), after[name].view(np.uint32), name)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written == {key: value for key, value in CONFIG.items() if key != "auto_map"}
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.model"}


def test_a_chatglm_may_be_written_as_a_glm_that_transformers_opens(folder: Path, glm: Any, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    write_hf_decoder(tmp_path / "out", *read_hf_decoder(folder), model_type="glm")
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32, attn_implementation="eager")
    for (name, theirs), (same, own) in zip(opened.named_parameters(), glm.named_parameters(), strict=True):
        assert name == same
        assert torch.equal(theirs, own), name
    with torch.no_grad():
        tokens = torch.tensor(TOKENS, dtype=torch.long)
        assert torch.equal(opened.eval()(input_ids=tokens).logits, glm(input_ids=tokens).logits)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_export_then_import_is_the_identity(tmp_path: Path, bias: bool, norm: str) -> None:
    config = DecoderConfig(
        vocab_size=10, embed_dim=8, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=4, mlp_dim=6, norm=norm,
        rotary=Rotary(fraction=0.5, interleaved=True), qkv_bias=bias, out_bias=bias, mlp_bias=bias, max_positions=9,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), abstract_params(config))
    write_hf_decoder(tmp_path / "out", config, params, model_type="chatglm")
    again, read = read_hf_decoder(tmp_path / "out")
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, read, params)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"multi_query_attention": None}, "multi_query_attention is None: only true"),
        ({"apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm is True"),
        ({"post_layer_norm": False}, "post_layer_norm is False"),
        ({"original_rope": False}, "original_rope is False"),
        ({"rope_ratio": 50}, "rope_ratio is 50.*ChatGLM3"),
        ({"quantization_bit": 4}, "quantization_bit is 4.*quantised"),
        ({"pre_seq_len": 128}, "pre_seq_len is 128.*prefix"),
        ({"vocab_size": 65}, "vocab_size is 65.*padded_vocab_size"),
        ({"padded_vocab_size": None}, "padded_vocab_size is missing"),
        ({"position_encoding_2d": True}, "unknown keys position_encoding_2d"),
    ],
)
def test_another_function_is_refused_by_name(folder: Path, changes: dict[str, Any], message: str) -> None:
    edit(folder, **changes)
    with pytest.raises(ModelFolderError, match=message):
        read_hf_decoder(folder)


def test_only_a_decoder_that_turns_neighbours_is_a_chatglm(folder: Path, tmp_path: Path) -> None:
    config, params = read_hf_decoder(folder)
    with pytest.raises(ModelFolderError, match=r"llama loses .*rotary"):
        write_hf_decoder(tmp_path / "out", config, params, model_type="llama")


def test_its_tokenizer_is_refused_for_what_its_code_adds(folder: Path, test_data: Path) -> None:
    (folder / "tokenizer.model").write_bytes((test_data / "vocab" / "torchtune_tiny" / "m.model").read_bytes())
    assert read_vocabulary(folder).bos_id == 1, "as Llama has it"
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "ChatGLMTokenizer"}')
    with pytest.raises(VocabularyError, match=r"tokenizer\.model is of a ChatGLMTokenizer.*give a tokenizer\.json"):
        read_vocabulary(folder)
