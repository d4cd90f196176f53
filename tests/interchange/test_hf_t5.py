"""Hugging Face T5 folders: read exactly, written exactly, refused clearly."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from flanjax.interchange.folders import ModelFolderError
from flanjax.interchange.hf_t5 import hf_places, read_hf_t5, write_hf_t5
from flanjax.interchange.stored import in_memory
from flanjax.models.config import Compute, T5Config
from flanjax.models.t5 import abstract_params, build, init_params

COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
RELPOS = "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
TINY = T5Config(
    vocab_size=40, embed_dim=16, num_heads=2, head_dim=4, mlp_dim=24, num_encoder_layers=2, num_decoder_layers=2
)


def tensors(folder):
    """All tensors of a folder, of however many files."""
    return {name: array for file in folder.glob("*.safetensors") for name, array in load_file(file).items()}


def canonical(folder):
    return {name: array for name, array in tensors(folder).items() if name not in COPIES}


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


def logits_of(config, params, batch, *, scan_layers=True):
    @jax.jit
    def logits(params, batch):
        model = build(config, Compute(scan_layers=scan_layers), params)
        return model.logits(model(batch))

    return np.asarray(logits(in_memory(params), batch))


def padded_batch(vocab_size, lengths=(150, 37, 1), decoder_length=40):
    """Three rows of random tokens, the encoder side padded to the longest."""
    rng = np.random.default_rng(0)
    real = np.arange(max(lengths)) < np.array(lengths)[:, None]
    decoder_tokens = rng.integers(3, vocab_size, (len(lengths), decoder_length))
    decoder_tokens[:, 0] = 0
    return {
        "encoder_input_tokens": (rng.integers(3, vocab_size, real.shape) * real).astype(np.int32),
        "encoder_segment_ids": real.astype(np.int32),
        "decoder_input_tokens": decoder_tokens.astype(np.int32),
        "decoder_segment_ids": np.ones_like(decoder_tokens, np.int32),
    }


def torch_logits(folder, batch):
    import torch
    from transformers import T5ForConditionalGeneration

    model = T5ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(
            input_ids=torch.tensor(batch["encoder_input_tokens"], dtype=torch.long),
            attention_mask=torch.tensor(batch["encoder_segment_ids"], dtype=torch.long),
            decoder_input_ids=torch.tensor(batch["decoder_input_tokens"], dtype=torch.long),
        ).logits.numpy()


# --- the same function ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scan_layers", [True, False])
@pytest.mark.parametrize("variant", ["v1.0", "v1.1", "flan"])
def test_logits_agree_with_transformers(hf_folder, variant, scan_layers):
    folder = hf_folder(variant)
    config, params = read_hf_t5(folder)
    batch = padded_batch(config.vocab_size)
    expected = torch_logits(folder, batch)
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(logits_of(config, params, batch, scan_layers=scan_layers), expected, atol=1e-4)


@pytest.mark.parametrize("variant", ["v1.0", "v1.1"])
def test_transformers_reads_what_flanjax_initialised(tmp_path, variant):
    config = TINY if variant == "v1.1" else dataclasses.replace(TINY, tied_head=True, mlp_activations=("relu",))
    params = init_params(config, seed=1)
    write_hf_t5(tmp_path / "out", config, params, None)
    batch = padded_batch(config.vocab_size, lengths=(9, 5))
    np.testing.assert_allclose(
        torch_logits(tmp_path / "out", batch), logits_of(config, params, batch), atol=1e-4, rtol=1e-4
    )


def test_chronos_fixture_is_read_as_tied_although_its_config_says_nothing(test_data):
    folder = test_data / "fixtures" / "dummy-chronos-model"
    config, params = read_hf_t5(folder)
    assert config.tied_head
    assert config.mlp_activations == ("relu",)
    batch = padded_batch(config.vocab_size, lengths=(12, 7))
    np.testing.assert_allclose(logits_of(config, params, batch), torch_logits(folder, batch), atol=1e-4)


# --- the same bits -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("variant", ["v1.0", "v1.1"])
def test_import_then_export_keeps_every_bit(hf_folder, tmp_path, variant, dtype):
    folder = hf_folder(variant, dtype=dtype)
    config, params = read_hf_t5(folder)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    write_hf_t5(tmp_path / "out", config, params, None, source=folder)
    assert_same_bits(canonical(folder), tensors(tmp_path / "out"))


def test_sharded_folders_both_ways(hf_folder, tmp_path):
    folder = hf_folder("flan", max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    config, params = read_hf_t5(folder)
    write_hf_t5(tmp_path / "out", config, params, None, shard_bytes=15_000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = sorted(tmp_path.glob("out/*.safetensors"))
    assert len(files) > 2
    assert set(index["weight_map"].values()) == {file.name for file in files}
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in tensors(tmp_path / "out").values())
    assert_same_bits(canonical(folder), tensors(tmp_path / "out"))
    jax.tree.map(np.testing.assert_array_equal, read_hf_t5(tmp_path / "out")[1], params)
    batch = padded_batch(config.vocab_size, lengths=(6, 4))
    np.testing.assert_array_equal(torch_logits(tmp_path / "out", batch), torch_logits(folder, batch))


configs = st.builds(
    T5Config,
    vocab_size=st.integers(8, 20),
    embed_dim=st.sampled_from([4, 8]),
    num_heads=st.integers(1, 3),
    head_dim=st.sampled_from([2, 4]),
    mlp_dim=st.integers(1, 9),
    num_encoder_layers=st.integers(1, 3),
    num_decoder_layers=st.integers(1, 3),
    mlp_activations=st.sampled_from([("relu",), ("gelu",), ("gelu", "linear"), ("silu", "linear")]),
    tied_head=st.booleans(),
    dropout_rate=st.sampled_from([0.0, 0.1]),
    relpos_per_layer=st.booleans(),
    relpos_buckets=st.sampled_from([8, 32]),
)


@settings(max_examples=15, deadline=None)
@given(config=configs, seed=st.integers(0, 3))
def test_export_then_import_is_the_identity(tmp_path_factory, config, seed):
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), abstract_params(config))
    folder = tmp_path_factory.mktemp("round") / "out"
    write_hf_t5(folder, config, params, None)
    read_config, read_params = read_hf_t5(folder)
    assert read_config == config
    assert jax.tree.structure(read_params) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, read_params, params)


@settings(max_examples=15, deadline=None)
@given(config=configs)
def test_every_parameter_element_has_one_place(config):
    places = hf_places(config)
    assert len({(place.path, place.layer) for place in places.values()}) == len(places)
    covered = sum(int(np.prod(place.hf_shape)) for place in places.values())
    assert covered == sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(abstract_params(config)))
    assert ("lm_head.weight" in places) == (not config.tied_head)


def test_harmless_config_keys_and_generation_config_survive(hf_folder, tmp_path):
    folder = hf_folder()
    extras = {"task_specific_params": {"summarization": {"num_beams": 4}}, "n_positions": 512, "my_note": "kept"}
    edit_json(folder / "config.json", **extras)
    (folder / "generation_config.json").write_text('{"num_beams": 4}')
    (folder / "README.md").write_text("# Mine")
    write_hf_t5(tmp_path / "out", *read_hf_t5(folder), None, source=folder)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {key: written[key] for key in extras} == extras
    assert (tmp_path / "out" / "generation_config.json").read_text() == '{"num_beams": 4}'
    assert (tmp_path / "out" / "README.md").read_text() == "# Mine"


@pytest.mark.parametrize(("tied", "flag"), [(True, True), (False, False)])
def test_written_config_has_both_flags_and_both_tensors(tmp_path, tied, flag):
    config = dataclasses.replace(TINY, tied_head=tied)
    write_hf_t5(tmp_path / "out", config, init_params(config, seed=0), None)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (written["tie_word_embeddings"], written["scale_decoder_outputs"]) == (flag, flag)
    names = tensors(tmp_path / "out").keys()
    assert "shared.weight" in names
    assert ("lm_head.weight" in names) == (not tied)
    assert (tmp_path / "out" / "model.safetensors").stat().st_mode & 0o044


# --- reading tensors, not flags ------------------------------------------------------------------------------------


def test_a_different_head_is_untied_whatever_tie_word_embeddings_says(hf_folder):
    folder = hf_folder("v1.1")
    edit_json(folder / "config.json", tie_word_embeddings=True, scale_decoder_outputs=None)
    assert not read_hf_t5(folder)[0].tied_head


def test_an_equal_head_is_tied_where_the_output_is_scaled(hf_folder):
    folder = hf_folder("v1.0")
    edit_tensors(folder, {"lm_head.weight": tensors(folder)["shared.weight"]})
    config, params = read_hf_t5(folder)
    assert config.tied_head
    assert "logits_dense" not in params["decoder"]


@pytest.mark.parametrize("stored_head", [True, False])
def test_tied_without_the_scale_becomes_untied_with_the_same_logits(hf_folder, stored_head):
    folder = hf_folder("v1.1")
    shared = tensors(folder)["shared.weight"]
    edit_tensors(folder, {"lm_head.weight": shared} if stored_head else {}, drop=["lm_head.weight"])
    edit_json(folder / "config.json", tie_word_embeddings=True, scale_decoder_outputs=False)
    edit_json(folder / "config.json", tie_word_embeddings=False)
    config, params = read_hf_t5(folder)
    assert not config.tied_head
    batch = padded_batch(config.vocab_size, lengths=(6, 4))
    np.testing.assert_allclose(logits_of(config, params, batch), torch_logits(folder, batch), atol=1e-4)


def test_copies_of_the_embedding_and_the_unused_table_are_tolerated(hf_folder):
    folder = hf_folder("v1.0")
    config, params = read_hf_t5(folder)
    params = in_memory(params)
    stored = tensors(folder)
    extra = dict.fromkeys(COPIES, stored["shared.weight"])
    extra["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = stored[RELPOS]
    edit_tensors(folder, extra)
    assert read_hf_t5(folder)[0] == config
    jax.tree.map(np.testing.assert_array_equal, read_hf_t5(folder)[1], params)
    edit_tensors(folder, drop=["shared.weight"])
    jax.tree.map(np.testing.assert_array_equal, read_hf_t5(folder)[1], params)


def test_num_decoder_layers_defaults_to_num_layers(hf_folder):
    folder = hf_folder()
    edit_json(folder / "config.json", num_decoder_layers=None)
    assert read_hf_t5(folder)[0].num_decoder_layers == 2


# --- refused -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "longt5"}, "model_type is 'longt5'"),
        ({"quantization_config": {"bits": 8}}, "quantization_config"),
        ({"tie_encoder_decoder": True}, "tie_encoder_decoder"),
        ({"is_encoder_decoder": False}, "is_encoder_decoder is False"),
        ({"decoder_start_token_id": 5}, "decoder_start_token_id is 5"),
        ({"d_model": None}, "d_model is missing"),
        ({"d_model": "32"}, "d_model is '32'"),
        ({"num_heads": 2.5}, "num_heads is 2.5"),
        ({"num_layers": 0}, "num_encoder_layers"),
        ({"dropout_rate": 1.5}, "dropout_rate"),
        ({"feed_forward_proj": "gelu", "dense_act_fn": None, "is_gated_act": None}, "feed_forward_proj is 'gelu'"),
        ({"feed_forward_proj": "gated-mish", "dense_act_fn": None}, "feed_forward_proj is 'gated-mish'"),
        ({"dense_act_fn": "relu"}, "dense_act_fn is 'relu'"),
        ({"is_gated_act": False}, "is_gated_act is False"),
        ({"scale_decoder_outputs": True}, "scale_decoder_outputs is true"),
    ],
)
def test_a_config_that_means_another_function_is_refused_by_name(hf_folder, changes, message):
    folder = hf_folder("v1.1")
    edit_json(folder / "config.json", **changes)
    with pytest.raises(ModelFolderError, match=message) as caught:
        read_hf_t5(folder)
    assert str(folder / "config.json") in str(caught.value)


def test_all_tensors_that_do_not_fit_are_listed_at_once(hf_folder):
    folder = hf_folder("v1.1")
    name = "encoder.block.0.layer.0.SelfAttention.q.weight"
    extra = {
        "adapter.weight": np.zeros(3, np.float32),
        name: np.zeros((2, 2), np.float32),
        "encoder.final_layer_norm.weight": np.zeros(32, np.int8),
    }
    edit_tensors(folder, extra, drop=[RELPOS, "decoder.final_layer_norm.weight"])
    with pytest.raises(ModelFolderError) as caught:
        read_hf_t5(folder)
    text = str(caught.value)
    for line in (
        f"missing: {RELPOS} (32, 3)",
        "missing: decoder.final_layer_norm.weight",
        "unknown: adapter.weight",
        f"wrong shape: {name} is (2, 2), the configuration asks for (24, 32)",
        "wrong type: encoder.final_layer_norm.weight is I8",
    ):
        assert line in text


def test_an_untied_model_without_its_head_is_refused(hf_folder):
    folder = hf_folder("v1.1")
    edit_tensors(folder, drop=["lm_head.weight"])
    edit_json(folder / "config.json", tie_word_embeddings=False, scale_decoder_outputs=None)
    with pytest.raises(ModelFolderError, match=r"missing: lm_head\.weight"):
        read_hf_t5(folder)


def test_a_second_embedding_is_refused(hf_folder):
    folder = hf_folder("v1.0")
    edit_tensors(folder, {COPIES[1]: tensors(folder)["shared.weight"] + 1})
    with pytest.raises(ModelFolderError, match=r"decoder\.embed_tokens\.weight differs from shared\.weight"):
        read_hf_t5(folder)


def test_paths_that_are_no_model_folder(hf_folder, tmp_path):
    with pytest.raises(ModelFolderError, match="no such folder"):
        read_hf_t5(tmp_path / "absent")
    with pytest.raises(ModelFolderError, match=r"config\.json: No such file"):
        read_hf_t5(tmp_path)
    folder = hf_folder()
    weights = folder / "model.safetensors"
    weights.rename(folder / "moved")
    with pytest.raises(ModelFolderError, match=r"neither model\.safetensors nor"):
        read_hf_t5(folder)
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelFolderError, match=r"pytorch_model\.bin.*save_pretrained"):
        read_hf_t5(folder)
    (folder / "config.json").write_text('{"d_model": 3,\n}')
    with pytest.raises(ModelFolderError, match=r"config\.json:2:1: not valid JSON"):
        read_hf_t5(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(ModelFolderError, match="expected a JSON object, found list"):
        read_hf_t5(folder)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_file_is_named(hf_folder, keep):
    path = hf_folder() / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelFolderError, match=r"model\.safetensors: truncated or not a safetensors file"):
        read_hf_t5(path.parent)


def test_a_broken_index_is_explained(hf_folder):
    folder = hf_folder(max_shard_size="20KB")
    index = folder / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    shard = weight_map["shared.weight"]
    edit_json(index, weight_map={**weight_map, "ghost.weight": shard})
    with pytest.raises(ModelFolderError, match=rf"ghost\.weight \({shard}\)"):
        read_hf_t5(folder)
    edit_json(index, weight_map={**weight_map, "shared.weight": "../model.safetensors"})
    with pytest.raises(ModelFolderError, match="not the name of a file in this folder"):
        read_hf_t5(folder)
    edit_json(index, weight_map=[])
    with pytest.raises(ModelFolderError, match="weight_map must map"):
        read_hf_t5(folder)
    edit_json(index, weight_map=weight_map)
    (folder / shard).unlink()
    with pytest.raises(ModelFolderError, match=f"names files that are not there: {shard}"):
        read_hf_t5(folder)


# --- whole or absent -----------------------------------------------------------------------------------------------


@pytest.fixture
def tiny_params():
    return init_params(TINY, seed=0)


def test_nothing_is_overwritten(tmp_path, tiny_params):
    (tmp_path / "out").mkdir()
    write_hf_t5(tmp_path / "out", TINY, tiny_params, None)  # an empty folder is fine
    with pytest.raises(ModelFolderError, match="not empty"):
        write_hf_t5(tmp_path / "out", TINY, tiny_params, None)
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelFolderError, match="this is a file"):
        write_hf_t5(tmp_path / "file", TINY, tiny_params, None)


def test_a_full_disk_leaves_nothing_behind(tmp_path, tiny_params, fill_the_disk):
    fill_the_disk()
    with pytest.raises(ModelFolderError, match="cannot be written: No space left on device"):
        write_hf_t5(tmp_path / "deep" / "out", TINY, tiny_params, None)
    assert list((tmp_path / "deep").iterdir()) == []


def test_values_beyond_float16_are_refused_by_name_and_leave_nothing(tmp_path, tiny_params):
    tiny_params["decoder"]["decoder_norm"]["scale"] = np.full(16, 1e5, np.float32)
    with pytest.raises(ModelFolderError, match=r"decoder\.final_layer_norm\.weight has values beyond float16"):
        write_hf_t5(tmp_path / "out", TINY, tiny_params, None, dtype="float16")
    assert list(tmp_path.iterdir()) == []
    write_hf_t5(tmp_path / "out", TINY, tiny_params, None, dtype="bfloat16")
    assert {array.dtype for array in tensors(tmp_path / "out").values()} == {np.dtype(ml_dtypes.bfloat16)}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_parameters_of_another_model_are_refused(tmp_path, tiny_params):
    with pytest.raises(ModelFolderError, match="decoder/logits_dense/kernel: \\(16, 40\\), expected none"):
        write_hf_t5(tmp_path / "out", dataclasses.replace(TINY, tied_head=True), tiny_params, None)
    with pytest.raises(ModelFolderError, match="dtype is 'int8'"):
        write_hf_t5(tmp_path / "out", TINY, tiny_params, None, dtype="int8")
    twice = dataclasses.replace(TINY, mlp_activations=("relu", "relu"))
    with pytest.raises(ModelFolderError, match="no feed_forward_proj"):
        write_hf_t5(tmp_path / "out", twice, tiny_params, None)
    assert list(tmp_path.iterdir()) == []


def test_model_card_carries_the_recipe(tmp_path, tiny_params):
    recipe = {"Base model": "flan-t5-small", "Steps": "300", "Mixture": "a|b"}
    write_hf_t5(tmp_path / "mine", TINY, tiny_params, None, recipe=recipe)
    card = (tmp_path / "mine" / "README.md").read_text()
    for text in (
        "# mine",
        "| Base model | flan-t5-small |",
        "| Steps | 300 |",
        "a\\|b",
        "## Licence",
        "from_pretrained",
    ):
        assert text in card


# --- the real model ------------------------------------------------------------------------------------------------


def test_flan_t5_small_first_step_logits(flan_t5_small, test_data):
    golden = json.loads((test_data / "checkpoints" / "flan_t5_small_int8" / "expected_greedy.json").read_text())
    config, params = read_hf_t5(flan_t5_small)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 76_961_152
    rows = [example["input_ids"] for example in golden]
    tokens = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = ids
    ones = np.ones((len(rows), 1), np.int32)
    batch = {
        "encoder_input_tokens": tokens,
        "encoder_segment_ids": (tokens != 0).astype(np.int32),
        "decoder_input_tokens": 0 * ones,
        "decoder_segment_ids": ones,
    }
    logits = logits_of(config, params, batch)[:, 0]
    for row, example in zip(logits, golden, strict=True):
        ids, expected = zip(*example["first_step_top5"], strict=True)
        np.testing.assert_allclose(row[list(ids)], expected, atol=1e-3)
        assert np.argsort(-row)[:5].tolist() == list(ids)


def test_flan_t5_small_through_transformers(flan_t5_small, test_data):
    import torch
    from transformers import AutoTokenizer, T5ForConditionalGeneration

    golden = json.loads((test_data / "checkpoints" / "flan_t5_small_int8" / "expected_greedy.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(flan_t5_small)
    model = T5ForConditionalGeneration.from_pretrained(flan_t5_small).eval()
    batch = tokenizer([example["input"] for example in golden], return_tensors="pt", padding=True)
    with torch.no_grad():
        answers = model.generate(**batch, max_new_tokens=40, do_sample=False)
    for answer, example in zip(answers.tolist(), golden, strict=True):
        assert answer[: len(example["greedy_ids"])] == example["greedy_ids"]


def test_the_dequantizing_tool_explains_itself(test_data, tmp_path):
    tool = Path(__file__).parents[2] / "tools" / "dequantize_flan_t5_small.py"
    vocab, source = test_data / "vocab" / "t5", tmp_path / "int8"
    command = [sys.executable, tool, source, vocab, tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "scales.json" in done.stderr
    source.mkdir()
    (source / "model.int8.safetensors.gz").write_bytes(b"not gzip")
    (source / "scales.json").write_text("{}")
    (source / "config.json").write_text('{"tie_word_embeddings": false}')
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "truncated or damaged" in done.stderr) == (2, True)
    assert not (tmp_path / "out").exists()
