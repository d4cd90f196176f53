"""Eight devices compute what one computes, however the mesh is cut."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flanjax.models.config import Compute, T5Config
from flanjax.models.t5 import abstract_params, build, init_params, logical_axes
from flanjax.sharding.mesh import MeshConfig, make_mesh
from flanjax.sharding.rules import batch_sharding, param_shardings

CONFIG = T5Config(
    vocab_size=64,
    embed_dim=16,
    num_heads=2,
    head_dim=4,
    mlp_dim=24,
    num_encoder_layers=2,
    num_decoder_layers=2,
    dropout_rate=0.2,
)
MESHES = {
    "data": MeshConfig(),
    "fsdp": MeshConfig(data=1, fsdp=8),
    "model": MeshConfig(data=4, model=2),
    "model beyond heads": MeshConfig(data=1, model=8),
    "mixed": MeshConfig(data=2, fsdp=2, model=2),
}


@functools.cache
def batch():
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, 64, (8, 12)).astype(np.int32)
    segments = np.sort(rng.integers(0, 3, (8, 12)), axis=1)[:, ::-1].astype(np.int32)
    return {
        "encoder_input_tokens": tokens,
        "encoder_segment_ids": segments,
        "decoder_input_tokens": tokens[:, ::-1],
        "decoder_segment_ids": segments,
        "decoder_target_tokens": tokens,
    }


def loss(config, params, batch, key):
    model = build(config, Compute(), params)
    logits = model.logits(model(batch, dropout_key=key))
    chosen = jnp.take_along_axis(logits, batch["decoder_target_tokens"][..., None], axis=-1)[..., 0]
    return jnp.sum((jax.nn.logsumexp(logits, axis=-1) - chosen) * (batch["decoder_segment_ids"] > 0))


@functools.partial(jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0})
def step(config, params, batch, key):
    return jax.value_and_grad(functools.partial(loss, config))(params, batch, key)


@functools.cache
def alone(config):
    return jax.device_get(step(config, init_params(config, 0), batch(), jax.random.key(7)))


def assert_equals_one_device(config, mesh):
    shardings, _ = param_shardings(logical_axes(config), abstract_params(config), mesh)
    with jax.set_mesh(mesh):
        params = jax.jit(init_params, static_argnums=(0, 1), out_shardings=shardings)(config, 0)
        assert jax.tree.map(lambda p: p.sharding.spec, params) == jax.tree.map(lambda s: s.spec, shardings)
        value, gradients = step(config, params, jax.device_put(batch(), batch_sharding(mesh)), jax.random.key(7))
    np.testing.assert_allclose(value, alone(config)[0], rtol=1e-5)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=2e-4)
    jax.tree.map(close, gradients, alone(config)[1])


@pytest.mark.parametrize("name", MESHES)
def test_losses_and_gradients_equal_one_device(name):
    assert_equals_one_device(CONFIG, make_mesh(MESHES[name]))


def test_a_table_in_every_layer_equals_one_device():
    assert_equals_one_device(dataclasses.replace(CONFIG, relpos_per_layer=True), make_mesh(MESHES["mixed"]))
