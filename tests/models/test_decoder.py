"""What packing, looping, recomputing, caching and sharding must not change, for decoders made of every part."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flanjax.models.attention import attention, segment_mask
from flanjax.models.config import Compute, ModelConfigError
from flanjax.models.decoder import abstract_params, build, init_params, logical_axes
from flanjax.models.decoder_config import DecoderConfig, Rotary
from flanjax.models.positions import alibi_slopes, rotary_angles, rotate
from flanjax.sharding.mesh import MeshConfig, make_mesh
from flanjax.sharding.rules import batch_sharding, param_shardings

LLAMA = DecoderConfig(
    vocab_size=64, embed_dim=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=24, init_stddev=0.3
)
PLAIN = {"norm": "layer", "mlp_activations": ("exact_gelu",), "num_kv_heads": 4}
BIASES = {"qkv_bias": True, "out_bias": True, "mlp_bias": True}
CONFIGS = {
    "llama": LLAMA,
    "gemma2": dataclasses.replace(
        LLAMA,
        norm="rms_plus_one",
        post_norms=True,
        window=4,
        windowed=(True, False),
        attention_softcap=2.0,
        logits_softcap=3.0,
        attention_scale=0.2,
        embedding_scale=4.0,
        tied_head=True,
        mlp_activations=("gelu", "linear"),
    ),
    "neox": dataclasses.replace(LLAMA, **PLAIN, **BIASES, residual="parallel", rotary=Rotary(fraction=0.5)),
    "phi": dataclasses.replace(LLAMA, **PLAIN, **BIASES, residual="parallel_one_norm", head_bias=True),
    "bloom": dataclasses.replace(LLAMA, **PLAIN, **BIASES, positions="alibi", embedding_norm=True),
    "falcon_rw": dataclasses.replace(
        LLAMA,
        **{**PLAIN, **BIASES, "num_heads": 12, "num_kv_heads": 12},  # with slopes that are no powers of 2
        positions="alibi",
        alibi_scale=0.4,
        alibi_rounded=True,
    ),
    "opt": dataclasses.replace(LLAMA, **PLAIN, positions="learned", max_positions=40, position_offset=2),
    "opt_350m": dataclasses.replace(
        LLAMA,
        **PLAIN,
        **BIASES,
        positions="learned",
        max_positions=40,
        residual="sequential_post_norm",
        word_embed_dim=8,
        tied_head=True,
    ),
    "narrow": dataclasses.replace(LLAMA, word_embed_dim=8, head_bias=True),
    "post_norm": dataclasses.replace(LLAMA, residual="sequential_post_norm"),
    "qwen3": dataclasses.replace(LLAMA, num_kv_heads=1, qk_norm=True, window=3, qkv_bias=True),
    "dynamic": dataclasses.replace(LLAMA, rotary=Rotary(scaling="dynamic", factor=2.0, original_max_positions=6)),
    "yarn": dataclasses.replace(LLAMA, rotary=Rotary(scaling="yarn", factor=4.0, original_max_positions=16)),
    "glm": dataclasses.replace(LLAMA, qkv_bias=True, rotary=Rotary(fraction=0.5, interleaved=True)),
    "none": dataclasses.replace(LLAMA, positions="none"),
}
pytestmark = pytest.mark.usefixtures("quick_compilation")

# Nothing here is run often enough to repay LLVM's optimisations.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture(params=CONFIGS)
def config(request) -> DecoderConfig:
    return CONFIGS[request.param]


@functools.cache
def random_params(config):
    """Norms and biases random as well, so that none of them can be left out unseen."""
    params = init_params(config, 0)
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(1)
    return jax.tree.unflatten(tree, [leaf + rng.normal(0, 0.1, leaf.shape).astype(np.float32) for leaf in leaves])


def pack(rows, length):
    """Rows of token lists in T5X's feature names, each token list a segment."""
    names = ["decoder_input_tokens", "decoder_segment_ids", "decoder_positions", "decoder_target_tokens"]
    batch = {name: np.zeros((len(rows), length), np.int32) for name in names}
    for r, row in enumerate(rows):
        start = 0
        for segment, tokens in enumerate(row, start=1):
            part = slice(start, start + len(tokens))
            batch["decoder_input_tokens"][r, part] = tokens
            batch["decoder_target_tokens"][r, part] = tokens[::-1]
            batch["decoder_segment_ids"][r, part] = segment
            batch["decoder_positions"][r, part] = range(len(tokens))
            start = part.stop
    return batch


@functools.cache
def texts():
    rng = np.random.default_rng(0)
    return [rng.integers(1, 64, length).tolist() for length in (9, 5, 7, 12, 3)]


def loss_and_logits(config, compute, params, batch, dropout_key=None):
    """Summed cross-entropy and logits of all tokens; those of padding are 0, for they mean nothing."""
    model = build(config, compute, params)
    logits = model.logits(model(batch, dropout_key=dropout_key))
    chosen = jnp.take_along_axis(logits, batch["decoder_target_tokens"][..., None], axis=-1)[..., 0]
    real = batch["decoder_segment_ids"] > 0
    return jnp.sum((jax.nn.logsumexp(logits, axis=-1) - chosen) * real), logits * real[..., None]


@functools.partial(quick_jit, static_argnums=(0, 1))
def run(config, compute, params, batch, dropout_key=None):
    """((loss, logits), gradients)."""
    function = functools.partial(loss_and_logits, config, compute)
    return jax.value_and_grad(function, has_aux=True)(params, batch, dropout_key)


@functools.partial(quick_jit, static_argnums=(0, 1))
def logits_of(config, compute, params, batch):
    model = build(config, compute, params)
    return model.logits(model(batch))


def assert_close(ours, reference, atol=5e-5):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=atol), ours, reference)


# --- packing, order, windows ---------------------------------------------------------------------------------------


def test_packed_equals_unpacked(config):
    params = random_params(config)
    packed, unpacked = pack([texts()[:3], texts()[3:]], 24), pack([[text] for text in texts()], 12)
    (loss, logits), gradients = run(config, Compute(), params, packed)
    (loss_alone, logits_alone), gradients_alone = run(config, Compute(), params, unpacked)
    assert_close(logits[packed["decoder_segment_ids"] > 0], logits_alone[unpacked["decoder_segment_ids"] > 0])
    assert_close(loss, loss_alone, atol=1e-3)
    assert_close(gradients, gradients_alone, atol=2e-3)
    assert all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients["decoder"]["layers"]["mlp"]))


def test_positions_are_those_of_the_segments_where_none_are_given(config):
    batch = pack([texts()[:3]], 24)
    alone = {name: value for name, value in batch.items() if name != "decoder_positions"}
    ours, again = (logits_of(config, Compute(), random_params(config), b) for b in (alone, batch))
    real = batch["decoder_segment_ids"] > 0
    np.testing.assert_array_equal(ours[real], again[real])


def test_a_token_sees_no_later_one(config):
    params, batch = random_params(config), pack([[texts()[3]]], 12)
    other = {**batch, "decoder_input_tokens": batch["decoder_input_tokens"].copy()}
    other["decoder_input_tokens"][:, 7:] = batch["decoder_input_tokens"][:, 7:] % 63 + 1
    before, after = (logits_of(config, Compute(), params, b) for b in (batch, other))
    np.testing.assert_array_equal(before[:, :7], after[:, :7])
    assert (jnp.abs(before - after)[:, 7:].max(axis=-1) > 1e-4).all()


def test_a_token_sees_as_far_back_as_the_windows_of_its_layers():
    config = dataclasses.replace(LLAMA, window=3)
    params, batch = random_params(config), pack([[texts()[3]]], 12)
    other = {**batch, "decoder_input_tokens": batch["decoder_input_tokens"].copy()}
    other["decoder_input_tokens"][:, 0] = other["decoder_input_tokens"][:, 0] % 63 + 1

    def reach(config):
        """Positions whose logits the first token has changed."""
        before, after = (logits_of(config, Compute(), params, b) for b in (batch, other))
        return np.flatnonzero(jnp.abs(before - after)[0].max(axis=-1) > 0).tolist()

    assert reach(config) == [0, 1, 2, 3, 4]  # two layers, each two tokens further
    assert reach(dataclasses.replace(config, windowed=(True, False))) == list(range(12))
    assert reach(dataclasses.replace(config, window=0)) == list(range(12))


def test_the_masks_by_example():
    segments = jnp.array([[1, 1, 1, 2, 2, 0]])
    mask = segment_mask(segments, segments, causal=True, window=2, bidirectional=jnp.array([[1, 1, 0, 0, 0, 0]]))
    assert mask[0, 0].astype(int).tolist() == [
        [1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 0],
    ]


def test_a_prefix_sees_itself_and_nothing_after_it():
    params, batch = random_params(LLAMA), pack([[texts()[3]]], 12)
    batch["decoder_causal_attention"] = (np.arange(12) < 5).astype(np.int32)[None]

    def changed(position):
        other = {**batch, "decoder_input_tokens": batch["decoder_input_tokens"].copy()}
        other["decoder_input_tokens"][:, position] = other["decoder_input_tokens"][:, position] % 63 + 1
        before, after = (logits_of(LLAMA, Compute(), params, b) for b in (batch, other))
        return np.flatnonzero(jnp.abs(before - after)[0].max(axis=-1) > 0).tolist()

    assert changed(4) == list(range(12))
    assert changed(5) == list(range(5, 12))


# --- the same function, however it is computed ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gemma2", "opt_350m"])
def test_scan_equals_unrolled_and_recomputed(name):
    config = dataclasses.replace(CONFIGS[name], dropout_rate=0.3)
    params, batch, key = random_params(config), pack([texts()[:3]], 24), jax.random.key(3)
    reference = run(config, Compute(), params, batch, key)
    assert not np.allclose(reference[0][1], run(config, Compute(), params, batch)[0][1])
    for compute in (Compute(scan_layers=False, attention="xla"), Compute(remat="minimal"), Compute(remat="full")):
        assert_close(run(config, compute, params, batch, key), reference, atol=1e-3)


def test_cached_decoding_equals_teacher_forcing(config):
    if config.rotary.scaling == "dynamic":
        config = dataclasses.replace(config, rotary=dataclasses.replace(config.rotary, original_max_positions=16))
    batch = pack([[text[:9]] for text in texts()[:4]], 9)
    model = build(config, Compute(scan_layers=config.norm == "rms"), random_params(config))
    forced = model(batch)
    cache = model.start_cache(batch=4, max_length=11)
    step = quick_jit(lambda tokens, position, cache: model.decode_step(tokens, position, cache))
    for position in range(9):
        hidden, cache = step(batch["decoder_input_tokens"][:, position], position, cache)
        rows = batch["decoder_segment_ids"][:, position] > 0
        assert_close(model.logits(hidden)[rows], model.logits(forced)[rows, position])


@pytest.mark.parametrize("name", ["gemma2", "neox"])
def test_bfloat16_is_close_to_float32(name):
    config = CONFIGS[name]
    params, batch = random_params(config), pack([texts()[:3]], 24)
    (loss, _), _ = run(config, Compute(), params, batch)
    (loss16, logits16), gradients16 = run(config, Compute(dtype="bfloat16"), params, batch)
    assert logits16.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(gradients16))
    np.testing.assert_allclose(loss16, loss, rtol=0.05)


@pytest.mark.parametrize("name", ["gemma2", "dynamic"])
def test_empty_rows_stay_finite(name):
    config = CONFIGS[name]
    outputs = run(config, Compute(), random_params(config), pack([[]], 6))
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(outputs))
    assert outputs[0][0] == 0


MESHES = {
    "fsdp": MeshConfig(data=1, fsdp=8),
    "mixed": MeshConfig(data=2, fsdp=2, model=2),
    "heads": MeshConfig(model=8),
}


@pytest.mark.parametrize(
    ("name", "mesh"),
    [("llama", "fsdp"), ("gemma2", "mixed"), ("opt", "mixed"), ("qwen3", "heads"), ("opt_350m", "mixed")],
)
def test_eight_devices_equal_one(name, mesh):
    config, mesh = CONFIGS[name], make_mesh(MESHES[mesh])
    batch = pack([[text[:6], text[6:]] for text in (*texts(), *texts()[:3])], 12)
    alone = jax.device_get(run(config, Compute(attention="xla"), init_params(config, 0), batch))
    shardings, _ = param_shardings(logical_axes(config), abstract_params(config), mesh)
    with jax.set_mesh(mesh):
        params = jax.jit(init_params, static_argnums=(0, 1), out_shardings=shardings)(config, 0)
        spread = run(config, Compute(), params, jax.device_put(batch, batch_sharding(mesh)))
    assert any(len(leaf.sharding.device_set) == 8 for leaf in jax.tree.leaves(params))
    assert_close(spread[0][0], alone[0][0])
    assert_close(spread[1], alone[1], atol=2e-3)


# --- parts ---------------------------------------------------------------------------------------------------------


def test_grouped_and_capped_attention_by_hand():
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(1, 3, heads, 4)).astype(np.float32) for heads in (4, 2, 2))
    scores = np.stack([q[0, :, h] @ k[0, :, h // 2].T for h in range(4)])
    weights = np.exp(1.5 * np.tanh(scores / 1.5))
    weights /= weights.sum(-1, keepdims=True)
    expected = np.stack([weights[h] @ v[0, :, h // 2] for h in range(4)], axis=1)[None]
    np.testing.assert_allclose(attention(q, k, v, softcap=1.5), expected, rtol=1e-5)
    np.testing.assert_allclose(attention(q, k, v, softcap=1.5, implementation="blockwise"), expected, rtol=1e-5)


@pytest.mark.parametrize("scaling", ["none", "linear", "llama3", "yarn"])
def test_rotated_products_depend_on_the_distance_alone(scaling):
    rotary = Rotary(scaling=scaling, factor=1.0 if scaling == "none" else 8.0, original_max_positions=16)
    config = dataclasses.replace(LLAMA, rotary=rotary)
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, 1, 1, 1, 8)).astype(np.float32)

    def product(query, key):
        angles = [rotary_angles(config, jnp.array([[p]]), jnp.array([[99]])) for p in (query, key)]
        return float(jnp.sum(rotate(q, angles[0]) * rotate(k, angles[1])))

    np.testing.assert_allclose(product(50, 47), product(7, 4), rtol=1e-4)
    assert abs(product(50, 47) - product(50, 46)) > 1e-4


def test_interleaved_pairs_are_the_halves_in_another_order():
    config = dataclasses.replace(LLAMA, rotary=Rotary(fraction=0.75))
    angles = rotary_angles(config, jnp.array([[5, 9]]), jnp.array([[99]]))
    x = np.random.default_rng(0).normal(size=(1, 2, 3, 8)).astype(np.float32)
    order = np.array([0, 2, 4, 1, 3, 5, 6, 7])  # the last two are not rotated
    found = rotate(x, angles, interleaved=True)
    np.testing.assert_allclose(found[..., order], rotate(x[..., order], angles), rtol=1e-6)
    np.testing.assert_array_equal(found[..., 6:], x[..., 6:])


def test_alibi_slopes_as_published():
    assert alibi_slopes(8).tolist() == [2.0**-i for i in range(1, 9)]
    assert alibi_slopes(6).tolist() == pytest.approx([2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3])


def test_blocks_have_no_place_for_rounded_alibi():
    config = CONFIGS["falcon_rw"]
    with pytest.raises(ModelConfigError, match="'blockwise' takes one bias for all rows"):
        logits_of(config, Compute(attention="blockwise"), random_params(config), pack([texts()[:1]], 12))


def test_fresh_norms_change_nothing_and_depend_on_the_seed_alone():
    config = CONFIGS["gemma2"]
    params = init_params(config, 0)
    assert (params["decoder"]["decoder_norm"]["scale"] == 0).all()
    assert (init_params(LLAMA, 0)["decoder"]["decoder_norm"]["scale"] == 1).all()
    key = params["decoder"]["layers"]["self_attention"]["key"]["kernel"]
    np.testing.assert_allclose(jnp.std(key), config.init_stddev, rtol=0.1)
    assert not np.array_equal(key, init_params(config, 1)["decoder"]["layers"]["self_attention"]["key"]["kernel"])


def test_trees_agree(config):
    shapes, axes = abstract_params(config), logical_axes(config)
    ranks = jax.tree.map(lambda a, leaf: len(a) == leaf.ndim, axes, shapes, is_leaf=lambda x: isinstance(x, tuple))
    assert all(jax.tree.leaves(ranks))
    assert jax.tree.map(lambda x: x.shape, init_params(config, 0)) == jax.tree.map(lambda x: x.shape, shapes)
    assert ("logits_dense" in axes["decoder"]) is not config.tied_head
    assert ("bias" in axes["decoder"]["layers"]["mlp"]["wo"]) is config.mlp_bias
    assert axes["decoder"]["layers"]["self_attention"]["key"]["kernel"] == ("layers", "embed", "heads")


# --- the configuration ---------------------------------------------------------------------------------------------


def test_json_round_trip_compares_equal_and_hashes(config):
    again = DecoderConfig(**json.loads(json.dumps(dataclasses.asdict(config))))
    assert again == config
    assert hash(again) == hash(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": 0}, "DecoderConfig.num_layers is 0"),
        ({"window": -1}, "DecoderConfig.window is -1"),
        ({"num_kv_heads": 3}, "the 4 query heads cannot share"),
        ({"norm": "batch"}, "'batch'.*rms, rms_plus_one, layer"),
        ({"positions": "sinus"}, "'sinus'.*rotary, alibi, learned, none"),
        ({"residual": "none"}, "sequential, sequential_post_norm, parallel"),
        ({"mlp_activations": ("swish",)}, "'swish'"),
        ({"mlp_activations": ()}, "one activation, or two"),
        ({"dropout_rate": 1.0}, r"\[0, 1\)"),
        ({"windowed": ()}, "windowed"),
        ({"head_bias": True, "tied_head": True}, "head_bias"),
        ({"residual": "sequential_post_norm", "post_norms": True}, "post_norms is set"),
        ({"word_embed_dim": 16}, "word_embed_dim is 16, as embed_dim is"),
        ({"word_embed_dim": -1}, "word_embed_dim is -1"),
        ({"alibi_rounded": True}, "alibi_rounded True.*'rotary'"),
        ({"positions": "alibi", "alibi_scale": 0.0}, "alibi_scale is 0.0"),
        ({"rotary": Rotary(fraction=0.4)}, "turns 3 of the 8"),
        ({"head_dim": 2, "rotary": Rotary(scaling="dynamic", original_max_positions=9)}, "at least 4"),
    ],
)
def test_bad_model_names_the_field(change, message):
    with pytest.raises(ModelConfigError, match=message):
        dataclasses.replace(LLAMA, **change)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scaling": "longrope"}, "'longrope'.*llama3, yarn"),
        ({"scaling": "yarn"}, "original_max_positions"),
        ({"factor": 0.5}, "factor at least 1"),
        ({"scaling": "llama3", "original_max_positions": 8, "low_freq_factor": 4.0}, "low_freq_factor is 4"),
    ],
)
def test_bad_rotary_names_the_field(fields, message):
    with pytest.raises(ModelConfigError, match=message):
        Rotary(**fields)


def test_caches_that_cannot_be_right_are_refused():
    for name, message in (("opt", "learned 40"), ("dynamic", "dynamic scaling")):
        model = build(CONFIGS[name], Compute(), random_params(CONFIGS[name]))
        with pytest.raises(ModelConfigError, match=message):
            model.start_cache(1, 41)


def test_positions_beyond_a_learned_table_are_not_a_number():
    config = dataclasses.replace(CONFIGS["opt"], max_positions=5)
    batch = pack([texts()[1:2] * 2, texts()[1:2], texts()[:1]], 12)
    logits = logits_of(config, Compute(), random_params(config), batch)
    assert jnp.isfinite(logits[:2]).all()  # segments of 5, and padding of 7
    assert jnp.isnan(logits[2]).all()  # a segment of 9


def test_foreign_parameters_are_named():
    params = init_params(LLAMA, 0)
    with pytest.raises(ModelConfigError, match="unknown parameters decoder/logits_dense/kernel"):
        build(dataclasses.replace(LLAMA, tied_head=True), Compute(), params)
    with pytest.raises(ModelConfigError, match=r"self_attention/key/bias .*missing"):
        build(dataclasses.replace(LLAMA, qkv_bias=True), Compute(), params)
