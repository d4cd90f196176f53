"""What methods do to decoders alone: prompts and prefixes are earlier tokens, and biases are of the model itself."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flanjax.models.config import Compute
from flanjax.models.decoder_config import DecoderConfig
from flanjax.models.model import build, init_params
from flanjax.training.optimizers import OptimizerConfig, rate_factors
from flanjax.tuning.bitfit import BitFit
from flanjax.tuning.ia3 import IA3
from flanjax.tuning.lora import ALL_LINEAR, LoRA
from flanjax.tuning.method import TuningError
from flanjax.tuning.p_tuning import PTuning
from flanjax.tuning.partition import (
    Partition,
    added_paths,
    begin,
    flatten,
    merged,
    trainable_axes,
    unflatten,
)
from flanjax.tuning.prefix import PrefixTuning
from flanjax.tuning.prompt import PromptTuning, prompt_path, prompt_table
from flanjax.tuning.quantize import NF4, dequantize
from flanjax.tuning.select import Train

from .conftest import DECODER

FLOAT32 = Compute()
LENGTH = 3
PREFIX = "decoder/layers/self_attention/prefix"
# As GPT-NeoX, BLOOM and OPT: layer norms and biases; two blocks side by side, ALiBi, learned positions.
GPT = dataclasses.replace(
    DECODER,
    num_kv_heads=4,
    norm="layer",
    post_norms=False,
    qk_norm=False,
    window=0,
    residual="parallel",
    mlp_activations=("exact_gelu",),
    qkv_bias=True,
    out_bias=True,
    mlp_bias=True,
    attention_softcap=0.0,
)
FAMILIES = {
    "grouped_windowed": DECODER,
    "parallel_biased": GPT,
    "alibi": dataclasses.replace(GPT, positions="alibi", embedding_norm=True, residual="sequential", window=4),
    # As Falcon RW and OPT 350M in one: keys biased by their positions, narrow embeddings, norms after the blocks.
    "rounded_alibi_narrow": dataclasses.replace(
        GPT,
        num_heads=12,
        num_kv_heads=12,
        positions="alibi",
        alibi_scale=0.5,
        alibi_rounded=True,
        residual="sequential_post_norm",
        word_embed_dim=8,
    ),
    "learned": dataclasses.replace(GPT, positions="learned", max_positions=16, position_offset=2, head_bias=True),
}
VECTORS = {
    "prompt": PromptTuning(length=LENGTH, tasks=("a", "b"), init="random"),
    "p_tuning": PTuning(length=LENGTH, tasks=("a", "b")),
    "prefix": PrefixTuning(length=LENGTH),
    "prefix_network": PrefixTuning(length=LENGTH, hidden_dim=5),
}
COMPOSED = {
    "lora_prompt": (LoRA(rank=2, targets=ALL_LINEAR), PromptTuning(length=LENGTH, init="random")),
    "ia3_norms": (IA3(), Train()),
    "nf4_lora_norms": (NF4(block=8), LoRA(rank=2, targets=ALL_LINEAR), Train()),
}
each_family = pytest.mark.parametrize("base", FAMILIES.values(), ids=FAMILIES)
each_vectors = pytest.mark.parametrize("method", VECTORS.values(), ids=VECTORS)


@functools.partial(jax.jit, static_argnums=(0, 4))
def hidden(model: DecoderConfig, params, tokens, segments, compute=FLOAT32):
    return build(model, compute, params).decode(tokens, segments)


def texts(*lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(2, 64, length) for length in lengths]


def with_placeholders(model, parts, numbers):
    """The texts behind the numbers of their prompts."""
    return [np.concatenate([np.full(model.prompt_length, n), part]) for part, n in zip(parts, numbers, strict=True)]


def rows_of(rows, length):
    """Tokens and segments of packed rows, int32 [rows, length]."""
    tokens, segments = np.zeros((2, len(rows), length), np.int32)
    for r, row in enumerate(rows):
        joined = np.concatenate(row)
        tokens[r, : len(joined)] = joined
        segments[r, : len(joined)] = np.repeat(np.arange(1, len(row) + 1), [len(part) for part in row])
    return tokens, segments


@each_family
@each_vectors
def test_packed_equals_unpacked(tuned, base, method):
    model, params = tuned(base, method, moved=True)
    parts = with_placeholders(model, texts(5, 2, 4), (0, 1, 0) if method.prompt_tasks else (0, 0, 0))
    packed = hidden(model, params, *rows_of([parts], 22))[0]
    alone = hidden(model, params, *rows_of([[part] for part in parts], 22))
    start = 0
    for part, own in zip(parts, alone, strict=True):
        np.testing.assert_allclose(packed[start : start + len(part)], own[: len(part)], rtol=1e-4, atol=1e-4)
        start += len(part)


@pytest.mark.parametrize("methods", COMPOSED.values(), ids=COMPOSED)
def test_composed_methods_pack_and_run_as_one_does(tuned, methods):
    model, params = tuned(DECODER, *methods, moved=True)
    parts = with_placeholders(model, texts(5, 2, 4), (0, 0, 0))
    packed = rows_of([parts], 22)
    unrolled = hidden(model, params, *packed, Compute(scan_layers=False))
    for compute in (FLOAT32, Compute(remat="full"), Compute(remat="minimal", scan_layers=False)):
        np.testing.assert_allclose(hidden(model, params, *packed, compute), unrolled, rtol=1e-5, atol=1e-5)
    alone = hidden(model, params, *rows_of([[part] for part in parts], 22))
    for start, part, own in zip(np.cumsum([0, *map(len, parts)]), parts, alone, strict=False):
        np.testing.assert_allclose(unrolled[0, start : start + len(part)], own[: len(part)], rtol=1e-4, atol=1e-4)
    before = flatten(tuned(DECODER, *methods)[1])
    for method in methods:
        rest = {path: before[path] if method.trains(path) else p for path, p in flatten(params).items()}
        effect = np.abs(hidden(model, unflatten(rest), *packed) - unrolled).max()
        assert (effect > 1e-3) != method.quantizes


@each_family
@each_vectors
def test_cached_decoding_equals_teacher_forcing_also_after_a_prefill(tuned, base, method):
    model, params = tuned(base, method, moved=True)
    parts = with_placeholders(model, texts(6, 6), (1, 0) if method.prompt_tasks else (0, 0))
    tokens, segments = rows_of([[part] for part in parts], len(parts[0]))
    forced = hidden(model, params, tokens, segments)
    built = build(model, Compute(), params)
    step = jax.jit(lambda tokens, position, cache: built.decode_step(tokens, position, cache))
    cache = built.start_cache(2, max_length=10)
    for position in range(tokens.shape[1]):
        found, cache = step(tokens[:, position], position, cache)
        np.testing.assert_allclose(found, forced[:, position], rtol=1e-4, atol=1e-4)
    # The second text is a token shorter, so that padding follows it.
    padded, there = tokens[:, :-1].copy(), np.ones_like(tokens[:, :-1])
    padded[1, -1] = there[1, -1] = 0
    cache = built.prefill(padded, there, 10)
    positions = np.array([padded.shape[1], padded.shape[1] - 1])
    found, _ = step(tokens[[0, 1], positions], positions, cache)
    np.testing.assert_allclose(found, [forced[0, -1], forced[1, -2]], rtol=1e-4, atol=1e-4)


@each_family
def test_a_prefix_of_a_texts_keys_and_values_is_that_text(tuned, base):
    _, params = tuned(base, moved=True)
    before, after = texts(LENGTH, 6)
    built = build(base, Compute(), params)
    cache = built.prefill(before[None], np.ones((1, LENGTH), np.int32), LENGTH)
    model = dataclasses.replace(base, added=(PrefixTuning(length=LENGTH),))
    prefix = {f"{PREFIX}/{name}": x[:, 0].swapaxes(1, 2) for name, x in (("key", cache.keys), ("value", cache.values))}
    found = hidden(model, unflatten(flatten(params) | prefix), *rows_of([[after]], 8))
    whole = hidden(base, params, *rows_of([[np.concatenate([before, after])]], 11))
    np.testing.assert_allclose(found[0, :6], whole[0, LENGTH : LENGTH + 6], rtol=1e-4, atol=1e-4)


@each_family
def test_a_prompt_of_embeddings_is_those_tokens(base):
    before, after = texts(LENGTH, 6)
    words = {"two words": before.tolist()}
    method = PromptTuning(length=LENGTH, init="text", init_text="two words")
    model = dataclasses.replace(base, added=(method,))
    params = begin(model, init_params(base, 0), words.__getitem__, 0)
    np.testing.assert_allclose(
        prompt_table(model, params)[0], base.embedding_scale * params["token_embedder"]["embedding"][before]
    )
    found = hidden(model, params, *rows_of([[np.zeros(LENGTH, int), after]], 9)[:1], np.ones((1, 9), np.int32))
    whole = hidden(base, init_params(base, 0), *rows_of([[before, after]], 9)[:1], np.ones((1, 9), np.int32))
    np.testing.assert_allclose(found, whole, rtol=1e-4, atol=1e-4)


@each_vectors
def test_the_vectors_alone_are_trained(tuned, method):
    model, params = tuned(DECODER, method)
    moved = {path for path, label in Partition.of(model).labels.items() if label == "trainable"}
    assert moved == added_paths(model)
    assert prompt_path(model) == "decoder/prompt/embedding"
    with pytest.raises(TuningError, match=f"{type(method).__name__} learns .* cannot be merged"):
        merged(model, params)


def test_a_prefix_has_as_many_heads_as_keys(tuned):
    _, params = tuned(DECODER, PrefixTuning(length=LENGTH))
    assert flatten(params)[f"{PREFIX}/key"].shape == (3, LENGTH, 2, 4)


@pytest.mark.parametrize(
    "methods",
    [
        (LoRA(rank=2, targets=ALL_LINEAR, dora=True),),
        (LoRA(rank=2, targets=ALL_LINEAR, init="pissa"), IA3()),
        (IA3(targets=".*/(query|key|value|wi)", input_targets=".*/(wo|out)"), BitFit()),
    ],
    ids=["dora", "pissa_ia3", "ia3_bitfit"],
)
def test_merged_equals_adapted_where_projections_have_biases(tuned, methods):
    base = FAMILIES["parallel_biased"]
    model, params = tuned(base, *methods, moved=True)
    plain, own = merged(model, params)
    assert plain == base
    rows = rows_of([texts(5, 4)], 10)
    np.testing.assert_allclose(hidden(plain, own, *rows), hidden(model, params, *rows), rtol=1e-4, atol=1e-4)


def test_dora_leaves_a_bias_out_of_the_magnitude(tuned):
    model, params = tuned(GPT, LoRA(rank=2, targets=".*/query", dora=True), moved=True)
    layer = jax.tree.map(lambda p: p[0], build(model, Compute(), params).decoder.layers)
    query = layer.self_attention.query
    bias = query.bias[...]
    assert jnp.abs(bias).max() > 0
    zero = jnp.zeros((1, 1, 16))
    np.testing.assert_allclose(query(zero)[0, 0], bias, rtol=1e-6)


def test_a_model_that_has_biases_trains_those_and_is_given_none():
    model = dataclasses.replace(FAMILIES["learned"], added=(BitFit(),))
    assert not added_paths(model)
    moved = {path for path, label in Partition.of(model).labels.items() if label == "trainable"}
    assert moved == {path for path in Partition.of(model).labels if path.endswith("/bias")}
    assert {"decoder/logits_dense/bias", "decoder/layers/self_attention/key/bias"} < moved


def test_a_model_without_biases_is_given_some(tuned):
    model = dataclasses.replace(DECODER, added=(BitFit(),))
    given = {path.removesuffix("/bitfit/bias") for path in added_paths(model)}
    own = {path.rpartition("/")[0] for path in flatten(tuned(DECODER)[1]) if "/layers/" in path}
    assert given == {path for path in own if not path.endswith("/key")}
    mixed = dataclasses.replace(DECODER, qkv_bias=True, added=(BitFit(targets=".*/(value|wo)"),))
    moved = {path for path, label in Partition.of(mixed).labels.items() if label == "trainable"}
    assert moved == {"decoder/layers/self_attention/value/bias", "decoder/layers/mlp/wo/bitfit/bias"}


def test_layer_norms_are_scales_and_biases():
    moved = {
        path
        for path, label in Partition.of(dataclasses.replace(GPT, added=(Train(),))).labels.items()
        if label == "trainable"
    }
    stems = ("layers/pre_mlp_layer_norm", "layers/pre_self_attention_layer_norm", "decoder_norm")
    assert moved == {f"decoder/{stem}/{leaf}" for stem in stems for leaf in ("scale", "bias")}


def test_a_base_in_4_bits_is_its_rounded_kernels_with_biases_as_they_were(tuned):
    model, params = tuned(GPT, NF4(block=8), LoRA(rank=2), moved=False)
    flat, own = flatten(params), {}
    for path in {path.rpartition("/")[0] for path in flat if path.endswith("/codes")}:
        parts = {part: flat[f"{path}/{part}"] for part in ("codes", "absmax", "nested_absmax", "nested_offset")}
        own[path] = jax.vmap(lambda parts: dequantize(parts, NF4.double_block))(parts)
    assert len(own) == 6
    plain = {path: value for path, value in flat.items() if "/kernel/" not in path and "/lora/" not in path}
    rows = rows_of([texts(5, 4)], 10)
    expected = hidden(GPT, unflatten(plain | own), *rows)
    np.testing.assert_allclose(hidden(model, params, *rows), expected, rtol=1e-4, atol=1e-4)


def test_rates_differ_by_pattern_and_by_depth():
    model = dataclasses.replace(DECODER, added=(LoRA(rank=2),))
    plus = OptimizerConfig(rate_factors={".*/lora/b": 16.0})
    factors = flatten(rate_factors(plus, trainable_axes(model), model.stacks))
    assert {path.rpartition("/")[2]: float(np.max(factor)) for path, factor in factors.items()} == {"a": 1, "b": 16}
    by_depth = flatten(rate_factors(OptimizerConfig(layer_decay=0.5), trainable_axes(DECODER), DECODER.stacks))
    assert np.ravel(by_depth["decoder/layers/mlp/wo/kernel"]).tolist() == [1 / 8, 1 / 4, 1 / 2]
    assert np.ravel(by_depth["token_embedder/embedding"]).tolist() == [1 / 16]
