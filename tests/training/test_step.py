"""One step: the same update however the batch is cut or spread; non-finite steps leave no trace but a count."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flanjax.models.t5 import build, init_params
from flanjax.sharding.mesh import MeshConfig
from flanjax.training.interfaces import TrainingError
from flanjax.training.losses import LossConfig
from flanjax.training.optimizers import OptimizerConfig
from flanjax.training.step import (
    make_eval_step,
    put_batch,
)

ADAFACTOR = OptimizerConfig(learning_rate=0.05, min_dim_size_to_factor=16, warmup_steps=2)
ADAMW = OptimizerConfig(name="adamw", learning_rate=0.01, weight_decay=0.01, global_norm_clip=1.0)


@pytest.fixture(scope="module")
def program(tiny_run):
    """Makes `Program`s; the same arguments give the same one, as compiling takes seconds."""

    def make(*, optimizer=ADAFACTOR, dropout=0.0, **options):
        return tiny_run.Program(dataclasses.replace(tiny_run.TINY, dropout_rate=dropout), optimizer, **options)

    return functools.cache(make)


def assert_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(("optimizer", "microbatches"), [(ADAFACTOR, 4), (ADAMW, 2)], ids=["adafactor", "adamw"])
def test_microbatches_give_the_update_of_the_whole_batch(program, tiny_run, optimizer, microbatches):
    batches = [tiny_run.random_batch(seed) for seed in range(3)]
    for batch in batches:
        # Half of the micro-batches have a single target token, or none.
        batch["decoder_loss_weights"][1::2, 1:] = 0
        batch["decoder_loss_weights"][1] = 0
    whole, whole_metrics = program(optimizer=optimizer).run(batches)
    cut, cut_metrics = program(optimizer=optimizer, microbatches=microbatches).run(batches)
    assert_close(whole.params, cut.params, rtol=2e-4, atol=2e-5)
    assert_close(whole_metrics, cut_metrics, rtol=2e-4)


def test_a_batch_seen_again_and_again_is_learnt(program, tiny_run):
    _, metrics = program().run([tiny_run.random_batch(0)] * 20)
    assert metrics[-1].loss < 0.8 * metrics[0].loss


MESHES = [MeshConfig(data=8), MeshConfig(data=1, fsdp=8), MeshConfig(data=2, fsdp=2, model=2)]


@pytest.mark.parametrize("mesh", MESHES, ids=["data", "fsdp", "mixed"])
def test_eight_devices_equal_one(program, tiny_run, mesh):
    batches = [tiny_run.random_batch(seed) for seed in range(3)]
    alone, expected = program(dropout=0.1).run(batches)
    sharded = program(dropout=0.1, mesh=mesh)
    spread, metrics = sharded.run(batches)
    assert_close([m.loss for m in metrics], [m.loss for m in expected], rtol=1e-5)
    assert_close(spread.params, alone.params, rtol=1e-3, atol=1e-4)
    sizes = dict(data=mesh.data, fsdp=mesh.fsdp, model=mesh.model)
    kernel = sharded.layout.state.params["encoder"]["layers"]["mlp"]["wi_0"]["kernel"]
    shard = kernel.sharding.shard_shape(kernel.shape)
    assert shard == (2, 16 // sizes["fsdp"], 32 // sizes["model"])


def test_factored_moments_are_spread_as_their_parameter(program):
    layout = program(mesh=MeshConfig(data=2, fsdp=2, model=2)).layout
    moments = [leaf for leaf in jax.tree.leaves(layout.state.opt_state) if leaf.shape == (3, 32)]
    assert moments
    assert all(leaf.sharding.shard_shape(leaf.shape) == (3, 16) for leaf in moments)


@pytest.mark.parametrize("kind", ["weight", "parameter"])
def test_a_non_finite_step_changes_nothing_and_is_counted(program, tiny_run, kind):
    tiny = program()
    good = [tiny_run.random_batch(seed) for seed in range(3)]
    before, _ = tiny.run(good[:1])
    # Weights are whole numbers in a batch; one that overflows the sum stands for whatever went wrong.
    if kind == "weight":
        state, metrics = _run_with_infinite_loss(tiny, good, tiny_run)
    else:
        state = jax.device_put(before, tiny.layout.shardings)
        norm = state.params["encoder"]["encoder_norm"]
        norm["scale"] = norm["scale"].at[3].set(jnp.nan)
        before = jax.device_get(state)
        state, metrics = tiny.run(good[1:], state)
    assert_equal((state.params, state.opt_state), (before.params, before.opt_state))
    assert (state.step, state.skipped, state.skipped_in_a_row) == (3, 2, 2)
    assert [m.skipped for m in metrics] == [1, 1]
    assert not np.isfinite(metrics[-1].grad_norm)


def _run_with_infinite_loss(program, good, tiny_run):
    compiled, history = jax.jit(program.step), []
    with jax.set_mesh(program.mesh):
        state, _ = compiled(program.start(), put_batch(good[0], program.mesh))
        for batch in good[1:]:
            weights = batch["decoder_loss_weights"].astype(np.float32)
            weights[0, 0] = np.inf
            state, metrics = compiled(state, put_batch(batch | {"decoder_loss_weights": weights}, program.mesh))
            history.append(jax.device_get(metrics))
    return jax.device_get(state), history


def test_a_good_step_ends_a_row_of_skipped_ones_and_the_schedule_waited(program, tiny_run):
    tiny = program()
    state = tiny.start()._replace(step=jnp.int32(5), skipped=jnp.int32(4), skipped_in_a_row=jnp.int32(3))
    state, (metrics,) = tiny.run([tiny_run.random_batch(0)], jax.device_put(state, tiny.layout.shardings))
    assert (state.step, state.skipped, state.skipped_in_a_row) == (6, 4, 0)
    # One update was made before (5 steps, 4 skipped): half of the two-step warm-up.
    np.testing.assert_allclose(metrics.learning_rate, 0.025)


def test_the_learning_rate_shown_is_the_optimizers(program, tiny_run):
    sgd_like = OptimizerConfig(learning_rate=0.05, warmup_steps=4, multiply_by_parameter_scale=False)
    tiny = program(optimizer=sgd_like)
    _, metrics = tiny.run([tiny_run.random_batch(seed) for seed in range(3)])
    np.testing.assert_allclose([m.learning_rate for m in metrics], [0, 0.0125, 0.025], rtol=1e-6)


def test_dropout_depends_on_seed_step_and_microbatch_only(program, tiny_run):
    batch = tiny_run.random_batch(0)
    tiny = program(dropout=0.1)
    first, again = tiny.run([batch])[1][0], tiny.run([batch])[1][0]
    assert first == again
    later = tiny.start()._replace(step=jnp.int32(1))
    other = tiny.run([batch], jax.device_put(later, tiny.layout.shardings))[1][0]
    assert other.loss != first.loss


def test_the_metrics_are_sums_over_the_batch(program, tiny_run):
    batch = tiny_run.random_batch(0)
    tiny = program()
    _, (metrics,) = tiny.run([batch])
    model = build(tiny.model, tiny_run.FLOAT32, init_params(tiny.model, seed=0))
    logits = model.logits(model(batch))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["decoder_target_tokens"])
    expected = np.sum(losses * batch["decoder_loss_weights"])
    np.testing.assert_allclose(metrics.loss - metrics.z_loss, expected, rtol=1e-5)
    assert metrics.tokens == metrics.decoder_tokens == batch["decoder_segment_ids"].sum()
    assert metrics.encoder_tokens == batch["encoder_segment_ids"].sum()
    assert metrics.encoder_slots == batch["encoder_segment_ids"].size


def test_evaluation_has_no_dropout_and_equals_the_training_loss_without(program, tiny_run):
    batch = tiny_run.random_batch(0)
    _, (expected,) = program().run([batch])
    tiny = program(dropout=0.1, mesh=MeshConfig(data=2, fsdp=2, model=2))
    evaluate = make_eval_step(tiny.model, tiny_run.FLOAT32, LossConfig(), tiny.mesh)
    with jax.set_mesh(tiny.mesh):
        sums = evaluate(tiny.start().params, put_batch(batch, tiny.mesh))
    np.testing.assert_allclose(sums.loss, expected.loss, rtol=1e-5)
    assert sums.tokens == expected.tokens


def test_the_compiler_tells_the_memory_of_one_device(program):
    alone = program().compiled.memory
    spread = program(mesh=MeshConfig(data=1, fsdp=8)).compiled.memory
    assert alone.total >= alone.arguments > 0
    assert alone.aliased > 0, "the state is not donated"
    assert spread.arguments < alone.arguments / 3


def test_rows_that_do_not_divide_are_refused(program):
    with pytest.raises(TrainingError, match="multiple of 24"):
        program(mesh=MeshConfig(data=8), microbatches=3)
