"""Schedules follow their formulas; optimizers treat stacked layers as layers and decay what they should."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flanjax.training.optimizers import OptimizerConfig, OptimizerError, make_optimizer, rate_factors
from flanjax.training.schedules import ScheduleConfig, ScheduleError, make_schedule


def rates(config, total, steps):
    schedule = make_schedule(config, total)
    return [float(schedule(s)) for s in steps]


def test_constant_after_a_linear_warmup():
    config = ScheduleConfig(schedule="constant", learning_rate=2.0, warmup_steps=4)
    np.testing.assert_allclose(rates(config, 100, [0, 1, 4, 50]), [0, 0.5, 2, 2])


def test_linear_ends_at_its_final_fraction():
    config = ScheduleConfig(schedule="linear", learning_rate=1.0, warmup_steps=10, final_fraction=0.1)
    np.testing.assert_allclose(rates(config, 110, [5, 10, 60, 110, 500]), [0.5, 1, 0.55, 0.1, 0.1], rtol=1e-6)


def test_cosine_is_half_way_in_the_middle():
    config = ScheduleConfig(schedule="cosine", learning_rate=1.0, warmup_steps=10)
    np.testing.assert_allclose(rates(config, 110, [10, 60, 110]), [1, 0.5, 0], atol=1e-6)


def test_rsqrt_is_that_of_t5x():
    config = ScheduleConfig(schedule="rsqrt", learning_rate=1.0, warmup_steps=100)
    expected = [0, 0.5 / 10, 0.1, 1 / math.sqrt(400)]
    np.testing.assert_allclose(rates(config, 1000, [0, 50, 100, 400]), expected, rtol=1e-6)


def test_rsqrt_of_t5_pretraining_is_held_without_a_ramp():
    config = ScheduleConfig(schedule="rsqrt", learning_rate=1.0, rsqrt_hold_steps=10_000)
    np.testing.assert_allclose(rates(config, 100_000, [0, 9_999, 40_000]), [0.01, 0.01, 0.005], rtol=1e-6)


def test_a_warm_up_told_as_a_share_is_that_many_steps():
    for name in ("constant", "linear", "cosine", "rsqrt"):
        for total, steps in ((1000, 60), (20, 2), (1001, 61)):
            shared = ScheduleConfig(schedule=name, learning_rate=3.0, warmup_ratio=0.06)
            counted = ScheduleConfig(schedule=name, learning_rate=3.0, warmup_steps=steps)
            assert rates(shared, total, range(total)[::7]) == rates(counted, total, range(total)[::7])


def test_schedules_that_cannot_be_are_refused():
    with pytest.raises(ScheduleError, match="warmup_ratio is 6"):
        ScheduleConfig(warmup_ratio=6)
    with pytest.raises(ScheduleError, match="set one of them to 0"):
        ScheduleConfig(warmup_ratio=0.06, warmup_steps=60)
    with pytest.raises(ScheduleError, match="choose one of"):
        ScheduleConfig(schedule="triangle")
    with pytest.raises(ScheduleError, match="shorten the warm-up"):
        make_schedule(ScheduleConfig(schedule="cosine", warmup_steps=10), 10)


AXES = {
    "encoder": {"layers": {"kernel": ("layers", "embed", "mlp"), "scale": ("layers", "embed")}, "scale": ("embed",)},
    "decoder": {
        "layers": {"kernel": ("layers", "embed", "mlp")},
        "relpos_bias": {"rel_embedding": ("heads", "relpos_buckets")},
    },
    "table": {"embedding": ("vocab", "embed")},
}
SHAPES = {
    "encoder": {"layers": {"kernel": (3, 8, 12), "scale": (3, 8)}, "scale": (8,)},
    "decoder": {"layers": {"kernel": (2, 8, 12)}, "relpos_bias": {"rel_embedding": (4, 6)}},
    "table": {"embedding": (20, 8)},
}


def random_tree(seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape) * rng.uniform(0.1, 10), jnp.float32),
        SHAPES,
        is_leaf=lambda x: isinstance(x, tuple),
    )


LAYERS = {"encoder": 3, "decoder": 2, "table": 0}


def unstack(tree, layer):
    """`layers` of [layers, ...] leaves replaced by `layer_0`, `layer_1`, ...: `layer(leaf, i)` of each leaf."""

    def one(stack, module):
        layers = module.pop("layers", None)
        for i in range(LAYERS[stack]):
            module[f"layer_{i}"] = {name: layer(leaf, i) for name, leaf in layers.items()}
        return module

    return {stack: one(stack, dict(module)) for stack, module in tree.items()}


def take(leaf, i):
    return leaf[i]


def without_layers(axes, _):
    return axes[1:]


def run(config, axes, params, gradients, stacks=None):
    optimizer = make_optimizer(config, axes, total_steps=100, stacks=stacks)
    state = optimizer.init(params)

    @jax.jit
    def step(gradient, state, params):
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    for gradient in gradients:
        params, state = step(gradient, state, params)
    return params


@pytest.mark.parametrize("beta1", [None, 0.9])
@pytest.mark.parametrize("name", ["adafactor", "adamw"])
def test_stacked_layers_are_updated_as_single_layers(name, beta1):
    config = OptimizerConfig(
        name=name, learning_rate=0.1, min_dim_size_to_factor=8, beta1=beta1, weight_decay=0.01, global_norm_clip=5.0
    )
    params, gradients = random_tree(0), [random_tree(seed) for seed in (1, 2, 3)]
    stacked = run(config, AXES, params, gradients)
    single = run(config, unstack(AXES, without_layers), unstack(params, take), [unstack(g, take) for g in gradients])
    # Differently shaped programs round differently, by an ulp or two.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7), unstack(stacked, take), single)


def test_adafactor_follows_the_paper_for_one_factored_matrix():
    shape, steps, rate = (8, 12), 3, 0.1
    axes, params = {"kernel": ("embed", "mlp")}, {"kernel": random_tree(0)["encoder"]["layers"]["kernel"][0]}
    gradients = [{"kernel": random_tree(s)["encoder"]["layers"]["kernel"][0]} for s in range(1, 1 + steps)]
    config = OptimizerConfig(learning_rate=rate, min_dim_size_to_factor=8)
    got = run(config, axes, params, gradients)["kernel"]

    def rms(x):
        return np.sqrt(np.mean(np.square(x)))

    p = np.asarray(params["kernel"], np.float64)
    rows, columns = np.zeros(shape[0]), np.zeros(shape[1])
    for t, gradient in enumerate(gradients, start=1):
        g = np.asarray(gradient["kernel"], np.float64)
        keep = 1 - t**-0.8
        rows = keep * rows + (1 - keep) * np.mean(g**2 + 1e-30, axis=1)
        columns = keep * columns + (1 - keep) * np.mean(g**2 + 1e-30, axis=0)
        y = g / np.sqrt(rows / rows.mean())[:, None] / np.sqrt(columns)[None]
        p = p - rate * max(1e-3, rms(p)) * y / max(1, rms(y))
    np.testing.assert_allclose(got, p, rtol=2e-5)


def test_weight_decay_leaves_norms_and_position_tables_alone():
    for name in ("adafactor", "adamw"):
        params = random_tree(0)
        zero = jax.tree.map(jnp.zeros_like, params)
        config = OptimizerConfig(name=name, learning_rate=0.5, weight_decay=0.1)
        after = run(config, AXES, params, [zero])
        kept = 1 - 0.1 * (0.5 if name == "adamw" else 1.0)
        np.testing.assert_allclose(after["table"]["embedding"], kept * params["table"]["embedding"], rtol=1e-6)
        for path in ("encoder.scale", "encoder.layers.scale", "decoder.relpos_bias.rel_embedding"):
            a, b = after, params
            for key in path.split("."):
                a, b = a[key], b[key]
            assert (a == b).all(), path


def test_the_global_norm_is_clipped_over_everything():
    params = random_tree(0)
    gradient = random_tree(1)
    config = OptimizerConfig(name="adamw", learning_rate=1.0, global_norm_clip=1.0)
    clipped = make_optimizer(config, AXES, total_steps=1)
    state = clipped.update(gradient, clipped.init(params), params)[1]
    moment = next(s for s in jax.tree.leaves(state, is_leaf=lambda s: hasattr(s, "mu")) if hasattr(s, "mu")).mu
    np.testing.assert_allclose(optax.global_norm(moment), 0.1, rtol=1e-5)


BOTH = [
    OptimizerConfig(name="adamw", learning_rate=0.1, weight_decay=0.1, schedule="linear"),
    OptimizerConfig(learning_rate=0.1, weight_decay=0.1, schedule="linear", beta1=0.9, min_dim_size_to_factor=8),
]
both = pytest.mark.parametrize("config", BOTH, ids=lambda config: config.name)


def test_lora_plus_is_two_optimizers():
    axes = {"wo": {"lora": {"a": ("embed", "rank"), "b": ("rank", "mlp")}}}
    rng = np.random.default_rng(0)
    trees = [{"wo": {"lora": {"a": rng.normal(size=(6, 2)), "b": rng.normal(size=(2, 4))}}} for _ in range(4)]
    params, *gradients = [jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree) for tree in trees]
    config = dataclasses.replace(BOTH[0], rate_factors={".*/lora/b": 16.0})
    found = run(config, axes, params, gradients)["wo"]["lora"]
    for part, factor in (("a", 1), ("b", 16)):
        rate = optax.linear_schedule(factor * 0.1, 0, 100)
        alone = optax.adamw(rate, weight_decay=0.1)
        own = params["wo"]["lora"][part]
        state = alone.init(own)
        for gradient in gradients:
            updates, state = alone.update(gradient["wo"]["lora"][part], state, own)
            own = optax.apply_updates(own, updates)
        np.testing.assert_allclose(found[part], own, rtol=1e-5)


@both
def test_a_factor_is_another_learning_rate(config):
    params, gradients = random_tree(0), [random_tree(seed) for seed in (1, 2, 3)]
    factors = {"encoder/layers/kernel": 3.0, "encoder/.*": 0.5, "table/embedding": 2}
    found = run(dataclasses.replace(config, rate_factors=factors), AXES, params, gradients)
    for path, factor in {
        "encoder.layers.kernel": 3, "encoder.layers.scale": 0.5, "encoder.scale": 0.5, "decoder.layers.kernel": 1,
        "decoder.relpos_bias.rel_embedding": 1, "table.embedding": 2,
    }.items():  # fmt: skip
        own = run(dataclasses.replace(config, learning_rate=factor * 0.1), AXES, params, gradients)
        a, b = found, own
        for key in path.split("."):
            a, b = a[key], b[key]
        np.testing.assert_allclose(a, b, rtol=1e-5, err_msg=path)


def embedded(tree):
    """The table where the token embedding is."""
    tree = dict(tree)
    return {"token_embedder": tree.pop("table"), **tree}


STACKS = {"encoder": 3, "decoder": 2}


@both
def test_layer_decay_is_another_learning_rate_for_each_layer(config):
    params, gradients = embedded(random_tree(0)), [embedded(random_tree(seed)) for seed in (1, 2)]
    found = run(dataclasses.replace(config, layer_decay=0.5), embedded(AXES), params, gradients, STACKS)

    @functools.cache
    def alone(exponent):
        own = dataclasses.replace(config, learning_rate=0.1 * 0.5**exponent)
        return run(own, embedded(AXES), params, gradients)

    def equal(a, b):
        np.testing.assert_allclose(a, b, rtol=1e-5)

    for layer in range(3):
        for name in ("kernel", "scale"):
            equal(found["encoder"]["layers"][name][layer], alone(5 - layer)["encoder"]["layers"][name][layer])
    for layer in range(2):
        equal(found["decoder"]["layers"]["kernel"][layer], alone(2 - layer)["decoder"]["layers"]["kernel"][layer])
    equal(found["token_embedder"]["embedding"], alone(6)["token_embedder"]["embedding"])
    equal(found["encoder"]["scale"], alone(0)["encoder"]["scale"])
    equal(found["decoder"]["relpos_bias"]["rel_embedding"], alone(0)["decoder"]["relpos_bias"]["rel_embedding"])


def test_every_parameter_has_one_factor():
    config = OptimizerConfig(layer_decay=0.5, rate_factors={".*kernel": 2, "decoder/.*": 3})
    factors = rate_factors(config, embedded(AXES), {"encoder": 1, "decoder": 2})
    assert jax.tree.structure(factors) == jax.tree.structure(embedded(random_tree(0)))
    assert factors["token_embedder"]["embedding"] == 1 / 16
    assert factors["encoder"]["layers"]["kernel"].tolist() == [[[2 / 8]]]
    assert factors["encoder"]["layers"]["scale"].tolist() == [[1 / 8]]
    assert factors["encoder"]["scale"] == 1
    assert factors["decoder"]["layers"]["kernel"].tolist() == [[[2 / 4]], [[2 / 2]]]
    assert factors["decoder"]["relpos_bias"]["rel_embedding"] == 3


@both
def test_a_run_may_take_up_factors_or_leave_them_off(config):
    grouped = dataclasses.replace(config, rate_factors={"encoder/.*": 2.0}, layer_decay=0.9)
    params = embedded(random_tree(0))
    states = [
        jax.eval_shape(make_optimizer(each, embedded(AXES), total_steps=9, stacks=STACKS).init, params)
        for each in (config, grouped)
    ]
    assert states[0] == states[1]


@both
def test_a_state_is_held_where_the_gradient_is_not_finite(config):
    params, gradient = embedded(random_tree(0)), embedded(random_tree(1))
    optimizer = make_optimizer(config, embedded(AXES), total_steps=9)
    update = jax.jit(lambda finite, state: optimizer.update(gradient, state, params, finite=finite)[1])
    first = update(True, optimizer.init(params))
    held, second = update(False, first), update(True, first)
    jax.tree.map(np.testing.assert_array_equal, held, first)
    assert any(not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True))


def test_the_moments_of_adamw_are_written_where_the_old_ones_lie():
    """XLA:CPU copies both before, where the pass over the parameters computes them once more from the old ones."""
    params = {"kernel": jnp.ones((256, 1024))}
    optimizer = make_optimizer(OptimizerConfig(name="adamw"), {"kernel": ("embed", "mlp")}, total_steps=9)

    def step(params, state, gradient, finite):
        updates, state = optimizer.update(gradient, state, params, finite=finite)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, optimizer.init(params), params, True).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < params["kernel"].nbytes / 8


@both
def test_parameters_in_bfloat16_are_updated_in_float32(config):
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), random_tree(0))
    gradients = [jax.tree.map(lambda g: g.astype(jnp.bfloat16), random_tree(seed)) for seed in range(1, 9)]
    whole = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    optimizer = make_optimizer(config, AXES, total_steps=100)
    state, state32 = optimizer.init(params), optimizer.init(whole)
    update = jax.jit(optimizer.update)
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        exact, state32 = update(jax.tree.map(lambda g: g.astype(jnp.float32), gradient), state32, whole)
    jax.tree.map(np.testing.assert_array_equal, (updates, state), (exact, state32))
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("float32"), jnp.dtype("int32")}
    moved = optax.apply_updates(params, updates)
    assert {leaf.dtype for leaf in jax.tree.leaves(moved)} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize(
    ("fields", "stacks", "message"),
    [
        ({"rate_factors": {".*/kernal": 2}}, STACKS, r"rate_factors = '\.\*/kernal' matches nothing .*mean 'kernel'"),
        ({"rate_factors": {".*": 2, ".*scale": 3}}, STACKS, "rate_factors: '.*scale' decides nothing"),
        ({"layer_decay": 0.5}, None, "layer_decay = 0.5: .*layers are below those of .*; make_optimizer .*no stacks"),
        ({"layer_decay": 0.5}, {"encoder": 3}, "layers are below those of decoder/layers/kernel"),
    ],
)
def test_factors_that_do_not_fit_are_named(fields, stacks, message):
    with pytest.raises(OptimizerError, match=message):
        make_optimizer(OptimizerConfig(**fields), AXES, total_steps=1, stacks=stacks)


@pytest.mark.parametrize(
    "bad",
    [
        {"name": "sgdx"},
        {"step_offset": 5},
        {"global_norm_clip": 0.0},
        {"layer_decay": 0.0},
        {"layer_decay": 1.5},
        {"rate_factors": {".*": 0.0}},
        {"rate_factors": {"(": 1.0}},
        {"rate_factors": [3]},
    ],
)
def test_settings_that_cannot_be_are_named(bad):
    with pytest.raises(OptimizerError, match=next(iter(bad))):
        OptimizerConfig(**bad)
