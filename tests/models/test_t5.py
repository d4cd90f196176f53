"""The properties that training leans on: what packing, padding, looping and recomputing must not change."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flanjax.models.config import Compute, ModelConfigError
from flanjax.models.t5 import abstract_params, build, init_params, logical_axes


def loss_and_logits(config, compute, params, batch, dropout_key=None):
    """Summed cross-entropy and logits of the real targets; those of padding are 0, for they mean nothing."""
    model = build(config, compute, params)
    logits = model.logits(model(batch, dropout_key=dropout_key))
    chosen = jnp.take_along_axis(logits, batch["decoder_target_tokens"][..., None], axis=-1)[..., 0]
    losses = jax.nn.logsumexp(logits, axis=-1) - chosen
    weights = batch["decoder_loss_weights"]
    return jnp.sum(losses * weights), logits * weights[..., None]


# Nothing here is run often enough to repay LLVM's optimisations: without them XLA compiles three times faster.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@functools.partial(quick_jit, static_argnums=(0, 1))
def run(config, compute, params, batch, dropout_key=None):
    """((loss, logits), gradients)."""
    function = functools.partial(loss_and_logits, config, compute)
    return jax.value_and_grad(function, has_aux=True)(params, batch, dropout_key)


def assert_close(ours, reference, atol=2e-5):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=atol), ours, reference)


def test_packed_equals_unpacked(config, packed, unpacked):
    params = init_params(config, 0)
    compute = Compute(attention="xla" if config.tied_head else "blockwise")
    (loss, logits), gradients = run(config, compute, params, packed)
    (loss_alone, logits_alone), gradients_alone = run(config, compute, params, unpacked)
    real, real_alone = (batch["decoder_loss_weights"] > 0 for batch in (packed, unpacked))
    # Both list the examples in order, so the real positions line up one to one.
    assert_close(logits[real], logits_alone[real_alone])
    assert_close(loss, loss_alone)
    assert_close(gradients, gradients_alone)


def test_scan_equals_unrolled_and_recomputed(untied, packed):
    """With dropout: the keys belong to layers and sites, not to the order in which they are computed."""
    config = dataclasses.replace(untied, dropout_rate=0.3)
    params, key = init_params(config, 0), jax.random.key(3)
    reference = run(config, Compute(), params, packed, key)
    for compute in (
        Compute(scan_layers=False),
        Compute(remat="minimal"),
        Compute(remat="full", scan_layers=False, attention="xla"),
    ):
        assert_close(run(config, compute, params, packed, key), reference)


def test_padding_content_does_not_matter(config, packed):
    params = init_params(config, 0)
    rng = np.random.default_rng(5)
    noisy = dict(packed)
    for side in ("encoder", "decoder"):
        padding = packed[f"{side}_segment_ids"] == 0
        tokens = packed[f"{side}_input_tokens"]
        noisy[f"{side}_input_tokens"] = np.where(padding, rng.integers(3, 64, tokens.shape), tokens).astype(np.int32)
    (loss, logits), gradients = run(config, Compute(), params, packed)
    (noisy_loss, noisy_logits), noisy_gradients = run(config, Compute(), params, noisy)
    real = packed["decoder_loss_weights"] > 0
    assert_close(noisy_logits[real], logits[real])
    assert_close(noisy_loss, loss)
    assert_close(noisy_gradients, gradients)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_empty_rows_stay_finite(v1_1, packed, dtype):
    empty = jax.tree.map(np.zeros_like, packed)
    outputs = run(v1_1, Compute(dtype=dtype), init_params(v1_1, 0), empty)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(outputs))
    assert outputs[0][0] == 0


def test_dropout_is_a_function_of_its_key(v1_1, packed):
    config = dataclasses.replace(v1_1, dropout_rate=0.2)
    params = init_params(config, 0)
    logits = {name: run(config, Compute(), params, packed, key)[0][1] for name, key in _keys().items()}
    np.testing.assert_array_equal(logits["first"], logits["first again"])
    assert not np.allclose(logits["first"], logits["second"])
    plain = run(v1_1, Compute(), params, packed)[0][1]
    np.testing.assert_array_equal(logits["none"], plain)
    np.testing.assert_array_equal(run(v1_1, Compute(), params, packed, jax.random.key(1))[0][1], plain)


def _keys():
    return {"first": jax.random.key(1), "first again": jax.random.key(1), "second": jax.random.key(2), "none": None}


def test_dropout_differs_between_layers_and_sites(v1_1):
    from flanjax.models.layers import Dropout

    drop = Dropout(0.5, jax.random.key(0))
    ones = jnp.ones((2, 3, 400))
    masks = [drop.at(site)(ones) for site in (0, 1, "attention", "mlp_out")]
    assert len({bytes(np.asarray(mask)) for mask in masks}) == 4
    np.testing.assert_array_equal(masks[0][:, 0], masks[0][:, 2])
    assert set(np.unique(masks[0])) == {0.0, 2.0}
    assert 0.4 < (masks[0] > 0).mean() < 0.6


def distance(ours, reference):
    """Norm of the difference, relative to the reference."""
    return optax.global_norm(jax.tree.map(jnp.subtract, ours, reference)) / optax.global_norm(reference)


def test_bfloat16_is_close_to_float32(config, packed):
    params = init_params(config, 0)
    (loss, logits), gradients = run(config, Compute(), params, packed)
    (loss16, logits16), gradients16 = run(config, Compute(dtype="bfloat16"), params, packed)
    assert logits16.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(gradients16))
    real = packed["decoder_loss_weights"] > 0
    np.testing.assert_allclose(loss16, loss, rtol=0.02)
    assert distance(logits16[real], logits[real]) < 0.05
    assert distance(gradients16, gradients) < 0.1


def test_cached_decoding_equals_teacher_forcing(config, unpacked):
    model = build(config, Compute(scan_layers=config.tied_head), init_params(config, 0))
    segments = unpacked["encoder_segment_ids"]
    encoded = model.encode(unpacked["encoder_input_tokens"], segments)
    tokens = unpacked["decoder_input_tokens"]
    forced = model.decode(tokens, unpacked["decoder_segment_ids"], encoded, segments)
    real = unpacked["decoder_segment_ids"] > 0
    cache = model.start_cache(encoded, segments, max_length=9)
    step = quick_jit(lambda tokens, position, cache: model.decode_step(tokens, position, cache))
    for position in range(tokens.shape[1]):
        hidden, cache = step(tokens[:, position], position, cache)
        rows = real[:, position]
        assert_close(hidden[rows], forced[rows, position])
        assert_close(model.logits(hidden)[rows], model.logits(forced)[rows, position])


def test_init_has_t5_deviations_and_depends_on_the_seed_alone(v1_1):
    config = dataclasses.replace(v1_1, embed_dim=64, mlp_dim=128, num_heads=4, head_dim=8, vocab_size=500)
    params = init_params(config, 0)
    assert_close(jax.jit(init_params, static_argnums=(0, 1))(config, 0), params, atol=1e-6)
    encoder = params["encoder"]["layers"]
    for kernel, deviation in [
        (params["token_embedder"]["embedding"], 1.0),
        (encoder["attention"]["query"]["kernel"], (64 * 8) ** -0.5),
        (encoder["attention"]["key"]["kernel"], 64**-0.5),
        (encoder["attention"]["out"]["kernel"], 32**-0.5),
        (encoder["mlp"]["wi_0"]["kernel"], 64**-0.5),
        (encoder["mlp"]["wo"]["kernel"], 128**-0.5),
        (params["decoder"]["logits_dense"]["kernel"], 64**-0.5),
    ]:
        np.testing.assert_allclose(jnp.std(kernel), deviation, rtol=0.06)
    assert (encoder["pre_mlp_layer_norm"]["scale"] == 1).all()
    key = encoder["attention"]["key"]["kernel"]
    assert not np.array_equal(key, encoder["attention"]["value"]["kernel"])
    assert not np.array_equal(key[0], key[1])
    assert not np.array_equal(key, init_params(config, 1)["encoder"]["layers"]["attention"]["key"]["kernel"])


def test_trees_agree(config):
    shapes, axes = abstract_params(config), logical_axes(config)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), init_params(config, 0)) == jax.tree.map(
        lambda x: (x.shape, x.dtype), shapes
    )
    ranks = jax.tree.map(
        lambda names, leaf: len(names) == leaf.ndim, axes, shapes, is_leaf=lambda x: isinstance(x, tuple)
    )
    assert all(jax.tree.leaves(ranks))
    assert axes["encoder"]["layers"]["attention"]["query"]["kernel"] == ("layers", "embed", "heads")
    assert ("logits_dense" in axes["decoder"]) is not config.tied_head
    assert ("wi" in axes["decoder"]["layers"]["mlp"]) is (len(config.mlp_activations) == 1)


def test_a_table_in_every_layer_with_equal_tables_is_one_table(v1_1, packed):
    params = init_params(v1_1, 0)
    own = {**params}
    for stack, layers in v1_1.stacks.items():
        rest = {name: leaf for name, leaf in params[stack].items() if name != "relpos_bias"}
        tables = jax.tree.map(lambda table, n=layers: jnp.stack([table] * n), params[stack]["relpos_bias"])
        own[stack] = {**rest, "layers": {**rest["layers"], "relpos_bias": tables}}
    per_layer = dataclasses.replace(v1_1, relpos_per_layer=True)
    assert jax.tree.structure(own) == jax.tree.structure(init_params(per_layer, 0))
    (_, expected), shared = run(v1_1, Compute(), params, packed)
    (_, logits), gradients = run(per_layer, Compute(), own, packed)
    assert_close(logits, expected)
    # Each layer's table has its own part of the gradient of the one.
    for stack in v1_1.stacks:
        parts = gradients[stack]["layers"]["relpos_bias"]["rel_embedding"]
        assert_close(parts.sum(axis=0), shared[stack]["relpos_bias"]["rel_embedding"])
        assert not np.allclose(parts[0], parts[1])


def test_tied_head_is_the_scaled_embedding(config, packed):
    params = init_params(config, 0)
    model = build(config, Compute(), params)
    matrix = (
        params["token_embedder"]["embedding"].T if config.tied_head else params["decoder"]["logits_dense"]["kernel"]
    )
    head, hidden = model.head(), model(packed)
    np.testing.assert_array_equal(head.kernel.T if head.tied else head.kernel, matrix)
    np.testing.assert_allclose(head.logits(hidden), hidden @ matrix, rtol=1e-4, atol=1e-4)
    scale = jnp.sqrt(jnp.mean(jnp.square(hidden)))
    np.testing.assert_allclose(scale, config.embed_dim**-0.5 if config.tied_head else 1.0, rtol=1e-3)


def test_foreign_parameters_are_named(v1_1):
    params = init_params(v1_1, 0)
    name = "decoder/logits_dense/kernel"
    missing = {**params, "decoder": {k: v for k, v in params["decoder"].items() if k != "logits_dense"}}
    with pytest.raises(ModelConfigError, match=f"{name}.*missing"):
        build(v1_1, Compute(), missing)
    with pytest.raises(ModelConfigError, match=f"unknown parameters {name}"):
        build(dataclasses.replace(v1_1, tied_head=True), Compute(), params)
    with pytest.raises(ModelConfigError, match=r"kernel has shape \(16, 64\).*\(16, 65\)"):
        build(dataclasses.replace(v1_1, vocab_size=65), Compute(), params)
