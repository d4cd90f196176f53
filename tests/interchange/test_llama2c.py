"""The real stories260K, from both of its published forms: its golden continuation, with a cache and without."""

import functools
import json
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flanjax.interchange.folders import ModelFolderError
from flanjax.interchange.hf_decoder import read_hf_decoder, write_hf_decoder
from flanjax.interchange.llama2c import read_llama2c
from flanjax.interchange.stored import in_memory
from flanjax.models.config import Compute
from flanjax.models.decoder import build


@pytest.fixture(scope="module")
def stories(test_data):
    return test_data / "checkpoints" / "stories260K"


@pytest.fixture(scope="module")
def golden(stories):
    return json.loads((stories / "expected_greedy.json").read_text())


@functools.partial(jax.jit, static_argnums=(0, 2))
def continuation(config, params, length):
    """The most likely next token, again and again, after token 1; and the cached logits that chose them."""
    model = build(config, Compute(), params)

    def extend(state, position):
        token, cache = state
        hidden, cache = model.decode_step(token, position, cache)
        logits = model.logits(hidden)
        chosen = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        return (chosen, cache), (chosen[0], logits[0])

    start = (jnp.array([1], jnp.int32), model.start_cache(batch=1, max_length=length))
    return jax.lax.scan(extend, start, jnp.arange(length - 1))[1]


@functools.partial(jax.jit, static_argnums=0)
def teacher_forced(config, params, tokens):
    model = build(config, Compute(), params)
    return model.logits(model.decode(tokens, jnp.ones_like(tokens)))


@pytest.mark.parametrize("read", [lambda f: read_hf_decoder(f / "hf"), lambda f: read_llama2c(f / "stories260K.bin")])
def test_the_golden_tokens_with_a_cache(stories, golden, read):
    config, params = read(stories)
    params = in_memory(params)
    ids = golden["token_ids"]
    chosen, cached = continuation(config, params, len(ids))
    assert [1, *chosen.tolist()] == ids
    np.testing.assert_allclose(cached[0, :16], golden["first_position_logits"], atol=1e-4)
    forced = teacher_forced(config, params, jnp.array([ids[:-1]]))[0]
    np.testing.assert_allclose(cached, forced, atol=1e-3, rtol=1e-4)
    likelihoods = jnp.take_along_axis(jax.nn.log_softmax(forced), jnp.array(ids[1:])[:, None], axis=-1)
    assert float(-likelihoods.mean()) == pytest.approx(golden["mean_nll"], abs=1e-4)


def test_both_forms_hold_the_same_model(stories):
    config, params = read_llama2c(stories / "stories260K.bin")
    hf_config, hf_params = read_hf_decoder(stories / "hf")
    assert config == hf_config
    jax.tree.map(np.testing.assert_array_equal, params, hf_params)


def test_the_folder_comes_back_byte_for_byte(stories, tmp_path):
    config, params = read_hf_decoder(stories / "hf")
    write_hf_decoder(tmp_path / "out", config, params, source=stories / "hf")
    original, written = (json.loads((path / "config.json").read_text()) for path in (stories / "hf", tmp_path / "out"))
    assert written == original
    from safetensors.numpy import load_file

    ours, theirs = (load_file(path / "model.safetensors") for path in (tmp_path / "out", stories / "hf"))
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        assert array.tobytes() == ours[name].tobytes(), name


def test_a_head_of_its_own(tmp_path):
    sizes = (4, 6, 1, 2, 1, -3, 5)
    count = 3 * 4 + 4 + 16 + 8 + 8 + 16 + 4 + 3 * 24 + 4 + 2 * 5 + 3 * 4
    numbers = np.arange(count, dtype=np.float32)
    (tmp_path / "own.bin").write_bytes(struct.pack("<7i", *sizes) + numbers.tobytes())
    config, params = read_llama2c(tmp_path / "own.bin")
    assert (config.vocab_size, config.tied_head) == (3, False)
    np.testing.assert_array_equal(params["decoder"]["logits_dense"]["kernel"], numbers[-12:].reshape(3, 4).T)
    assert build(config, Compute(), in_memory(params)).head().kernel.shape == (4, 3)


def test_other_files_are_refused(stories, tmp_path):
    path = tmp_path / "file.bin"
    with pytest.raises(ModelFolderError, match="No such file"):
        read_llama2c(path)
    content = (stories / "stories260K.bin").read_bytes()
    for wrong, message in (
        (b"", "too few"),
        (content[:-4], "its header asks for 1056540"),
        (content + b"\0", "1056541 bytes"),
        (b"ak42" * 10, "no llama2.c file"),
        (struct.pack("<7i", 64, 172, 0, 8, 4, 512, 512), "num_layers is 0"),
    ):
        path.write_bytes(wrong)
        with pytest.raises(ModelFolderError, match=message):
            read_llama2c(path)
