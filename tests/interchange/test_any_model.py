"""What lies at a path is told by what is there, and read as its own reader reads it."""

import dataclasses
import json
import struct

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import flanjax
from flanjax.convert import convert
from flanjax.data.vocabularies import train_vocabulary
from flanjax.interchange.any_model import (
    HF_DECODER,
    HF_T5,
    LLAMA2C,
    format_of,
    hf_class,
    read_model,
    read_model_config,
    vocabulary_of,
    write_hf_model,
)
from flanjax.interchange.folders import ModelFolderError
from flanjax.interchange.safetensors_files import stored_tensors
from flanjax.models.config import T5Config
from flanjax.models.decoder_config import DecoderConfig
from flanjax.models.model import init_params

T5 = T5Config(
    vocab_size=48, embed_dim=8, num_heads=2, head_dim=4, mlp_dim=8, num_encoder_layers=1, num_decoder_layers=1
)
DECODER = DecoderConfig(
    vocab_size=48, embed_dim=8, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=4, mlp_dim=8, qkv_bias=True
)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    texts = [f"{i} and {i * 7} words of March" for i in range(300)]
    return train_vocabulary(texts, 40, tmp_path_factory.mktemp("vocabulary") / "spiece.model", extra_ids=4)


@pytest.mark.parametrize(("config", "kind"), [(T5, HF_T5), (DECODER, HF_DECODER)], ids=["t5", "decoder"])
def test_what_is_written_is_read_back_with_its_vocabulary_and_card(tmp_path, vocabulary, config, kind):
    params = jax.device_get(init_params(config, 0))
    write_hf_model(tmp_path / "out", config, params, vocabulary, recipe={"Mixture": "demo"})
    assert format_of(tmp_path / "out") is kind
    read, found = read_model(tmp_path / "out")
    assert read == config
    # Of a T5 the tensors alone say whether the head is tied.
    assert dataclasses.replace(read_model_config(tmp_path / "out"), tied_head=config.tied_head) == config
    jax.tree.map(np.testing.assert_array_equal, found, params)
    own = vocabulary_of(tmp_path / "out")
    assert own is not None
    assert own.sha256 == vocabulary.sha256
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| Mixture | demo |" in card
    assert ("AutoModelForCausalLM" in card) == (config is DECODER)
    transformers = pytest.importorskip("transformers")
    assert getattr(transformers, hf_class(config)).from_pretrained(tmp_path / "out").num_parameters() > 0


def test_a_real_model_in_two_forms(stories, test_data):
    other = test_data / "checkpoints" / "stories260K" / "stories260K.bin"
    assert (format_of(stories), format_of(other)) == (HF_DECODER, LLAMA2C)
    (config, params), (other_config, other_params) = read_model(stories), read_model(other)
    assert config == other_config == read_model_config(other)
    jax.tree.map(np.testing.assert_array_equal, params, other_params)
    vocabulary = vocabulary_of(stories)
    assert vocabulary is not None
    text = "Once upon a time, there was a little girl named Lily."
    assert vocabulary.decode(vocabulary.encode(text)) == text
    assert vocabulary.as_inputs(vocabulary.encode("Once upon a time")) == [1, 403, 407, 261, 378]
    assert vocabulary_of(other) is None


def test_a_decoder_is_converted_with_what_lies_beside_it(stories, test_data, tmp_path):
    convert(stories, tmp_path / "copy")
    names = {path.name for path in stories.iterdir()}
    assert {path.name for path in (tmp_path / "copy").iterdir()} == names
    assert (tmp_path / "copy" / "tokenizer.model").read_bytes() == (stories / "tokenizer.model").read_bytes()
    convert(test_data / "checkpoints" / "stories260K" / "stories260K.bin", tmp_path / "other", dtype="float32")
    copies = [load_file(folder / "model.safetensors") for folder in (stories, tmp_path / "copy", tmp_path / "other")]
    for copy in copies[1:]:
        jax.tree.map(np.testing.assert_array_equal, copy, copies[0])


def test_the_golden_text_of_a_real_model_from_its_folder(stories, test_data):
    golden = json.loads((test_data / "checkpoints" / "stories260K" / "expected_greedy.json").read_text())
    model = flanjax.load(stories)
    begun = "Once upon a time, there was a little girl"
    whole, rest = model.generate(["", begun], max_new_tokens=len(golden["token_ids"]) - 1)
    assert whole.strip() == golden["text"].strip()
    assert golden["text"].strip().startswith(begun)
    assert (begun + " " + rest.strip()).startswith(golden["text"].strip())


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pth", "model.pt"])
def test_pickled_weights_are_refused_with_what_converts_them(tmp_path, name, zipped):
    import torch

    torch.save({"a": torch.ones(3)}, tmp_path / name, _use_new_zipfile_serialization=zipped)
    message = rf"{name}: a file of weights which is not safetensors; convert it once .*AutoModelForCausalLM"
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(ModelFolderError, match=message):
            format_of(path)
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(ModelFolderError, match=rf"only {name} here, .*AutoModelForSeq2SeqLM"):
        stored_tensors(tmp_path)


def test_a_llama2c_file_of_any_width_is_no_pickle(tmp_path):
    # 640 and 1152 begin as pickles of versions 2 and 4 do.
    for width in (640, 1152):
        (tmp_path / "model.bin").write_bytes(struct.pack("<7i", width, 8, 1, 1, 1, 8, 8))
        assert format_of(tmp_path / "model.bin") is LLAMA2C


def test_what_is_no_model_says_what_one_is(tmp_path):
    with pytest.raises(ModelFolderError, match="there is no such folder or file"):
        read_model(tmp_path / "absent")
    with pytest.raises(
        ModelFolderError, match=r"no config\.json, so no model; known are a run directory .*; a Hugging"
    ):
        read_model(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(ModelFolderError, match=r"model_type is 'mamba'; the encoder-decoders are t5, .*decoders llama"):
        read_model_config(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": ["t5"]}')
    with pytest.raises(ModelFolderError, match=r"config\.json: model_type is \['t5'\]; the encoder-decoders are"):
        format_of(tmp_path)
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(ModelFolderError, match=r"notes\.txt: no model; known are"):
        read_model_config(tmp_path / "notes.txt")
