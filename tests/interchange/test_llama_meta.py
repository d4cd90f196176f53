"""Meta's own folders of a Llama: the same function as transformers' of the same tensors, and read as they lie."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from flanjax.convert import convert
from flanjax.interchange.any_model import LLAMA_META, format_of, read_model, vocabulary_of
from flanjax.interchange.folders import ModelFolderError
from flanjax.interchange.llama_meta import read_llama_meta
from flanjax.interchange.stored import in_memory
from flanjax.interchange.torch_zip import read_torch_zip, stored_torch_zip
from flanjax.models.config import Compute
from flanjax.models.decoder import build

PARAMS = {"dim": 32, "n_layers": 2, "n_heads": 4, "norm_eps": 1e-5, "multiple_of": 256, "vocab_size": -1}
GROUPED = {**PARAMS, "n_kv_heads": 2, "rope_theta": 500000.0, "ffn_dim_multiplier": 1.3}


def written(folder: Path, weights: Path, params: dict[str, Any]) -> Path:
    folder.mkdir()
    shutil.copyfile(weights, folder / "consolidated.00.pth")
    (folder / "params.json").write_text(json.dumps(params))
    return folder


@pytest.fixture(scope="module")
def published(test_data: Path) -> Path:
    """A file that torchtune is tested with."""
    return test_data / "fixtures" / "torchtune_tiny" / "tiny_fair_checkpoint.pt"


@pytest.fixture(scope="module")
def grouped(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its tensors in bfloat16, with half as many keys and values, and the frequencies that Llama 2 has beside them."""
    import torch

    tensors = torch.load(published, weights_only=True)
    halves = {name: value[:16] if ".wk." in name or ".wv." in name else value for name, value in tensors.items()}
    path = tmp_path_factory.mktemp("meta") / "grouped.pth"
    torch.save({name: value.bfloat16() for name, value in halves.items()} | {"rope.freqs": torch.ones(4)}, path)
    return path


@pytest.fixture(params=["published", "grouped"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    params = PARAMS if request.param == "published" else GROUPED
    return written(tmp_path / "meta", request.getfixturevalue(request.param), params)


def theirs(folder: Path, params: dict[str, Any]) -> Any:
    """transformers' model of the tensors: its rotated pairs are a number and the one half a head further."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    stored = torch.load(folder / "consolidated.00.pth", weights_only=True)
    kv_heads = params.get("n_kv_heads", 4)
    config = LlamaConfig(
        vocab_size=500, hidden_size=32, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=kv_heads, rms_norm_eps=1e-5, rope_theta=params.get("rope_theta", 10000.0),
    )  # fmt: skip

    def halves(weight: Any, heads: int) -> Any:
        return weight.unflatten(0, (heads, 4, 2)).transpose(1, 2).reshape(weight.shape)

    names = {"model.embed_tokens": stored["tok_embeddings.weight"], "model.norm": stored["norm.weight"]}
    names["lm_head"] = stored["output.weight"]
    for layer in range(2):
        at = {name.removeprefix(f"layers.{layer}.")[: -len(".weight")]: value for name, value in stored.items()}
        names |= {
            f"model.layers.{layer}.{name}": value
            for name, value in {
                "self_attn.q_proj": halves(at["attention.wq"], 4),
                "self_attn.k_proj": halves(at["attention.wk"], kv_heads),
                "self_attn.v_proj": at["attention.wv"],
                "self_attn.o_proj": at["attention.wo"],
                "mlp.gate_proj": at["feed_forward.w1"],
                "mlp.down_proj": at["feed_forward.w2"],
                "mlp.up_proj": at["feed_forward.w3"],
                "input_layernorm": at["attention_norm"],
                "post_attention_layernorm": at["ffn_norm"],
            }.items()
        }
    model = LlamaForCausalLM(config)
    model.load_state_dict({f"{name}.weight": value.float() for name, value in names.items()})
    return model.eval()


def test_it_is_the_model_that_transformers_has_of_the_same_tensors(folder: Path, tmp_path: Path) -> None:
    import torch

    assert format_of(folder) is LLAMA_META
    config, params = read_model(folder)
    params_json = json.loads((folder / "params.json").read_text())
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (4, params_json.get("n_kv_heads", 4), 8)
    tokens = np.random.default_rng(0).integers(500, size=(2, 11))
    model = build(config, Compute(), in_memory(params))
    found = model.logits(model.decode(jnp.asarray(tokens), jnp.ones_like(tokens)))
    with torch.no_grad():
        expected = theirs(folder, params_json)(torch.from_numpy(tokens)).logits
    assert float(expected.abs().max()) > 0.05
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_a_hugging_face_folder_is_made_of_it_with_its_tokenizer(
    folder: Path, llama_folder: Path, tmp_path: Path
) -> None:
    from transformers import LlamaForCausalLM

    shutil.copyfile(llama_folder / "tokenizer.model", folder / "tokenizer.model")
    convert(folder, tmp_path / "hf")
    made = LlamaForCausalLM.from_pretrained(tmp_path / "hf").state_dict()
    expected = theirs(folder, json.loads((folder / "params.json").read_text())).state_dict()
    assert made.keys() == expected.keys()
    assert all(bool((made[name] == expected[name]).all()) for name in made)
    own, other = vocabulary_of(folder), vocabulary_of(tmp_path / "hf")
    assert own is not None
    assert other is not None
    assert own.identity == other.identity


def test_tensors_are_read_where_they_lie_as_torch_reads_them(folder: Path) -> None:
    path = folder / "consolidated.00.pth"
    whole, stored = read_torch_zip(path), stored_torch_zip(path)
    assert whole.keys() == stored.keys()
    for name, array in whole.items():
        assert stored[name].dtype == array.dtype
        np.testing.assert_array_equal(np.asarray(stored[name]), array)
    np.testing.assert_array_equal(stored["output.weight"][3:5, 1:4], whole["output.weight"][3:5, 1:4])
    path.write_bytes(b"")
    with pytest.raises(ModelFolderError, match=r"consolidated\.00\.pth: has changed since it was opened"):
        np.asarray(stored["norm.weight"])


def test_views_of_a_storage_are_read_where_they_lie(tmp_path: Path) -> None:
    import torch

    whole = torch.arange(24.0).reshape(4, 6)
    torch.save({"transposed": whole.T, "part": whole[1:3, 2:5], "none": torch.zeros(0, 4)}, tmp_path / "views.pth")
    stored = stored_torch_zip(tmp_path / "views.pth")
    np.testing.assert_array_equal(stored["transposed"][1:3, 0:2], whole.T[1:3, :2].numpy())
    np.testing.assert_array_equal(np.asarray(stored["part"]), whole[1:3, 2:5].numpy())
    assert np.asarray(stored["none"]).shape == (0, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_heads": None}, r"params\.json: n_heads is missing"),
        ({"dim": 64}, r"dim is 64: only 32 is supported \(the tensors say otherwise\)"),
        (
            {"n_kv_heads": 2},
            r"wrong shape: layers\.0\.attention\.wk\.weight is \(32, 32\)(.|\n)*layers\.1\.attention\.wv",
        ),
        ({"use_scaled_rope": True}, r"use_scaled_rope is True: .*convert_llama_weights_to_hf"),
        ({"moe": {"num_experts": 8}}, "unknown keys moe"),
        ({"n_heads": 5}, r"wrong shape: layers\.0\.attention\.wq\.weight is \(32, 32\)"),
    ],
)
def test_what_the_tensors_do_not_fit_is_refused(
    published: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    folder = written(tmp_path / "meta", published, {**PARAMS, **change})
    with pytest.raises(ModelFolderError, match=message):
        read_llama_meta(folder)


def test_parts_and_other_tensors_are_refused(published: Path, tmp_path: Path, save: Callable[[Any], Path]) -> None:
    folder = written(tmp_path / "meta", published, PARAMS)
    shutil.copyfile(published, folder / "consolidated.01.pth")
    with pytest.raises(ModelFolderError, match=r"2 files consolidated\.\*\.pth, and one part alone is read: give the"):
        read_llama_meta(folder)
    (folder / "consolidated.01.pth").unlink()
    save({"norm.weight": np.ones(3, np.float32)}).replace(folder / "consolidated.00.pth")
    with pytest.raises(ModelFolderError, match=r"no matrix tok_embeddings\.weight, layers\.0\.attention\.wq\.weight"):
        read_llama_meta(folder)


@pytest.fixture
def save(tmp_path: Path) -> Callable[[Any], Path]:
    def write(arrays: dict[str, np.ndarray]) -> Path:
        import torch

        torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, tmp_path / "saved.pth")
        return tmp_path / "saved.pth"

    return write
