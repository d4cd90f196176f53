import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import PartitionSpec as P

from flanjax.models.config import T5Config
from flanjax.models.t5 import abstract_params, logical_axes
from flanjax.sharding.mesh import MeshConfig, ShardingError, make_mesh
from flanjax.sharding.rules import DEFAULT_RULES, batch_sharding, constrain, param_shardings, state_shardings

CONFIG = T5Config(
    vocab_size=256,
    embed_dim=128,
    num_heads=4,
    head_dim=8,
    mlp_dim=256,
    num_encoder_layers=2,
    num_decoder_layers=2,
)


@pytest.fixture
def mesh():
    return make_mesh(MeshConfig(data=2, fsdp=2, model=2))


@pytest.fixture
def shardings(mesh):
    return param_shardings(logical_axes(CONFIG), abstract_params(CONFIG), mesh)[0]


def test_parameters_lie_by_the_table(shardings):
    assert shardings["token_embedder"]["embedding"].spec == P("model", "fsdp")
    layers = shardings["encoder"]["layers"]
    assert layers["attention"]["query"]["kernel"].spec == P(None, "fsdp", "model")
    assert layers["mlp"]["wo"]["kernel"].spec == P(None, "model", "fsdp")
    assert shardings["decoder"]["logits_dense"]["kernel"].spec == P("fsdp", "model")
    assert shardings["encoder"]["relpos_bias"]["rel_embedding"].spec == P("model", None)


def test_every_axis_of_the_model_has_a_rule(mesh):
    for missing in ("embed", "relpos_buckets"):
        rules = tuple(rule for rule in DEFAULT_RULES if rule[0] != missing)
        with pytest.raises(ShardingError, match=rf"parameter \w+/.*'{missing}'"):
            param_shardings(logical_axes(CONFIG), abstract_params(CONFIG), mesh, rules)


def test_an_uncovered_parameter_is_named(mesh):
    axes, shapes = {"lora": {"a": ("embed", "planes")}}, {"lora": {"a": jax.ShapeDtypeStruct((128, 4), jnp.float32)}}
    with pytest.raises(ShardingError, match="parameter lora/a: no sharding rule for axis 'planes'"):
        param_shardings(axes, shapes, mesh)


def test_what_does_not_divide_stays_whole_and_is_noted(mesh):
    axes = {"a": {"kernel": ("embed", "heads")}, "b": ("embed",)}
    shapes = {"a": {"kernel": jnp.zeros((128, 3))}, "b": jnp.zeros(4)}
    shardings, notes = param_shardings(axes, shapes, mesh)
    assert shardings["a"]["kernel"].spec == P("fsdp", None)
    assert len(notes) == 1
    assert "a/kernel" in notes[0]
    assert "heads of 3" in notes[0]


def test_a_mesh_axis_splits_an_array_once(mesh):
    shardings, notes = param_shardings({"a": ("heads", "mlp")}, {"a": jnp.zeros((4, 4))}, mesh)
    assert shardings["a"].spec == P("model", None)
    assert notes == []


def test_the_batch_lies_over_data_and_fsdp(mesh):
    rows = jax.device_put(jnp.zeros((8, 3)), batch_sharding(mesh))
    assert {shard.data.shape for shard in rows.addressable_shards} == {(2, 3)}


def test_constrain_needs_no_mesh_and_follows_one(mesh):
    x = jnp.ones((8, 4, 128))
    assert constrain(x, "batch", None, "mlp") is x
    with jax.set_mesh(mesh):
        held = jax.jit(lambda x: constrain(x, "batch", None, "mlp"))(x)
        odd = jax.jit(lambda x: constrain(x, "batch", None, None))(x[:3])
    assert held.sharding.spec == P(("data", "fsdp"), None, "model")
    assert odd.shape == (3, 4, 128)


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.adamw(1e-3),
        optax.partition(
            {"all": optax.adamw(1e-3), "none": optax.set_to_zero()}, lambda p: jax.tree.map(lambda _: "all", p)
        ),
    ],
)
def test_moments_lie_as_their_parameter(mesh, shardings, optimizer):
    params = abstract_params(CONFIG)
    state = jax.eval_shape(optimizer.init, params)
    placed = state_shardings(state, params, shardings, mesh)
    assert jax.tree.structure(placed) == jax.tree.structure(state)
    specs = sorted(str(s.spec) for s in jax.tree.leaves(placed) if s.spec != P())
    assert specs == sorted([str(s.spec) for s in jax.tree.leaves(shardings)] * 2)


def test_factored_moments_lie_as_what_is_left_of_their_parameter(mesh, shardings):
    params = abstract_params(CONFIG)
    state = jax.eval_shape(optax.scale_by_factored_rms(min_dim_size_to_factor=128).init, params)
    placed = state_shardings(state, params, shardings, mesh)
    assert state.v_row["token_embedder"]["embedding"].shape == (128,)
    assert placed.v_row["token_embedder"]["embedding"].spec == P("fsdp")
    assert placed.v_col["token_embedder"]["embedding"].spec == P("model")
    assert placed.v["token_embedder"]["embedding"].spec == P()
    assert placed.count.spec == P()
