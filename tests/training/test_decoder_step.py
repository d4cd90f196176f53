"""Training a decoder: neither packing, nor micro-batches, nor a mesh, nor how layers are run changes the gradient."""

import dataclasses
import functools
import json

import jax
import numpy as np
import optax
import pytest

from flanjax.models.config import Compute
from flanjax.models.model import build, init_params, model_from_settings, model_settings
from flanjax.sharding.mesh import MeshConfig, make_mesh
from flanjax.training.checkpoints import restore_params
from flanjax.training.losses import LossConfig
from flanjax.training.optimizers import OptimizerConfig
from flanjax.training.step import loss_sums, make_eval_step, put_batch
from flanjax.tuning.lora import LoRA
from flanjax.tuning.partition import Partition, begin, flatten
from flanjax.tuning.quantize import NF4
from flanjax.tuning.select import Train

LOSS = LossConfig(z_loss=1e-2, label_smoothing=0.1, chunk_tokens=16)
ADAMW = OptimizerConfig(name="adamw", learning_rate=0.01, weight_decay=0.01, global_norm_clip=1.0)


@pytest.fixture(scope="module")
def quiet(tiny_run):
    """The decoder without dropout."""
    return dataclasses.replace(tiny_run.DECODER_ONLY, dropout_rate=0.0)


@pytest.fixture(scope="module")
def program(tiny_run, quiet):
    def make(model=quiet, *, optimizer=ADAMW, **options):
        return tiny_run.Program(model, optimizer, **options)

    return functools.cache(make)


@pytest.fixture(scope="module")
def rows(tiny_run):
    return [tiny_run.batch_for(tiny_run.DECODER_ONLY, seed) for seed in range(3)]


def assert_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


@functools.partial(jax.jit, static_argnums=(0, 1))
def gradient(model, compute, params, batch):
    """Sums of the loss, and their gradient."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])

    def loss(params):
        sums = loss_sums(model, compute, LOSS, params, batch, mesh)
        return sums.loss, sums

    return jax.grad(loss, has_aux=True)(params)


def moved(model):
    """Away from biases that are zero."""
    rng = np.random.default_rng(0)
    params = jax.device_get(init_params(model, 0))
    return jax.tree.map(lambda p: p + 0.1 * rng.standard_normal(p.shape, np.float32), params)


@pytest.mark.parametrize("prefix_lm", [False, True], ids=["causal", "prefix_lm"])
def test_packed_equals_unpacked_in_loss_and_gradient(tiny_run, quiet, prefix_lm):
    examples, length = tiny_run.random_examples(0), tiny_run.ENCODER
    packed = tiny_run.causal_rows(examples, length)
    unpacked = tiny_run.causal_rows([[one] for row in examples for one in row], length)
    if prefix_lm:
        for batch in (packed, unpacked):
            # The positions before the first target, which predict nothing that is learnt but for the last of them.
            inputs = np.pad(batch["decoder_loss_weights"], ((0, 0), (1, 0)))[:, :-1] == 0
            first = np.diff(batch["decoder_segment_ids"], prepend=0, axis=1) != 0
            prefix = (inputs | first) & (batch["decoder_segment_ids"] != 0)
            batch["decoder_causal_attention"] = prefix.astype(np.int32)
    params = moved(quiet)
    grads, sums = gradient(quiet, Compute(), params, packed)
    expected_grads, expected = gradient(quiet, Compute(), params, unpacked)
    assert_close(sums, expected, rtol=1e-5)
    assert_close(grads, expected_grads, rtol=1e-4, atol=1e-4)
    assert sums.tokens == sum(len(targets) for row in examples for _, targets in row)


def test_the_loss_is_that_of_the_models_logits(quiet, rows):
    params, batch = moved(quiet), rows[0]
    model = build(quiet, Compute(), params)
    logits = model.logits(model(batch))
    assert np.abs(logits).max() < quiet.logits_softcap
    soft = optax.smooth_labels(jax.nn.one_hot(batch["decoder_target_tokens"], 64), 0.1 * 64 / 63)
    entropy = -(0.9 * np.log(0.9) + 0.1 * np.log(0.1 / 63))
    z_loss = LOSS.z_loss * np.square(jax.nn.logsumexp(logits, axis=-1))
    losses = optax.softmax_cross_entropy(logits, soft) - entropy + z_loss
    _, sums = gradient(quiet, Compute(), params, batch)
    weights = batch["decoder_loss_weights"]
    np.testing.assert_allclose(sums.loss, np.sum(losses * weights), rtol=1e-5)
    np.testing.assert_allclose(sums.z_loss, np.sum(z_loss * weights), rtol=1e-5)


def test_scanned_equals_unrolled_equals_recomputed(quiet, rows):
    params = moved(quiet)
    expected = gradient(quiet, Compute(scan_layers=False), params, rows[0])
    for compute in (Compute(), Compute(remat="full"), Compute(remat="minimal", scan_layers=False)):
        assert_close(gradient(quiet, compute, params, rows[0]), expected, rtol=1e-4, atol=1e-4)


def test_microbatches_give_the_update_of_the_whole_batch(program, rows):
    rows = [{name: array.copy() for name, array in batch.items()} for batch in rows]
    for batch in rows:
        # The micro-batches have very different numbers of targets.
        batch["decoder_loss_weights"][1::2, 5:] = 0
    whole, whole_metrics = program().run(rows)
    cut, cut_metrics = program(microbatches=4).run(rows)
    assert_close(whole.params, cut.params, rtol=2e-4, atol=2e-5)
    assert_close(whole_metrics, cut_metrics, rtol=2e-4)


@pytest.mark.parametrize(
    "mesh", [MeshConfig(data=1, fsdp=8), MeshConfig(data=2, fsdp=2, model=2)], ids=["fsdp", "mixed"]
)
def test_eight_devices_equal_one(program, tiny_run, rows, mesh):
    alone, expected = program(tiny_run.DECODER_ONLY).run(rows)
    sharded = program(tiny_run.DECODER_ONLY, mesh=mesh)
    spread, metrics = sharded.run(rows)
    assert_close([m.loss for m in metrics], [m.loss for m in expected], rtol=1e-5)
    assert_close(spread.params, alone.params, rtol=1e-3, atol=1e-4)
    kernel = sharded.layout.state.params["decoder"]["layers"]["mlp"]["wi_0"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (2, 16 // mesh.fsdp, 32 // mesh.model)


def test_metrics_count_what_a_decoder_has_and_evaluation_agrees(program, quiet, rows):
    tiny, batch = program(), rows[0]
    _, (metrics,) = tiny.run([batch])
    assert (metrics.encoder_tokens, metrics.encoder_slots) == (0, 0)
    assert metrics.decoder_tokens == np.count_nonzero(batch["decoder_segment_ids"])
    assert metrics.tokens == batch["decoder_loss_weights"].sum() < metrics.decoder_tokens
    with jax.set_mesh(tiny.mesh):
        evaluate = make_eval_step(quiet, Compute(), LossConfig(), tiny.mesh)
        sums = evaluate(tiny.start().params, put_batch(batch, tiny.mesh))
    np.testing.assert_allclose(sums.loss, metrics.loss, rtol=1e-5)


@pytest.mark.parametrize(
    "methods",
    [(LoRA(rank=2, dora=True), Train(parameters=".*_bias|decoder/decoder_norm/.*")), (NF4(block=8), LoRA(rank=2))],
    ids=["dora", "nf4"],
)
def test_what_is_frozen_stays_to_the_bit_and_the_rest_learns(program, quiet, rows, methods):
    tuned = dataclasses.replace(quiet, added=methods)
    tiny = program(tuned, mesh=MeshConfig(data=2, fsdp=2, model=2))
    start = tiny.layout.start(begin(tuned, init_params(quiet, 0), lambda text: [], 0), tiny.optimizer)
    before = jax.device_get(start)
    state, metrics = tiny.run(rows[:1] * 8, start)
    jax.tree.map(np.testing.assert_array_equal, state.frozen, before.frozen)
    assert metrics[-1].loss < metrics[0].loss
    labels = Partition.of(tuned).labels
    changed = flatten(jax.tree.map(lambda a, b: not np.array_equal(a, b), state.params, before.params))
    assert set(changed) == {path for path, label in labels.items() if label == "trainable"}
    assert all(changed.values())


def test_a_run_that_was_stopped_is_that_which_was_not_and_knows_its_model(tiny_run, quiet, tmp_path):
    def start(folder, steps):
        return tiny_run.start(
            folder,
            model=quiet,
            initial_params=lambda shardings: jax.device_get(init_params(quiet, 0)),
            run_config={"model": json.loads(json.dumps(model_settings(quiet)))},
            train_steps=steps,
            evaluators={},
            eval_every=0,
        )

    whole = start(tmp_path / "whole", 6)
    start(tmp_path / "stopped", 3)
    resumed = start(tmp_path / "stopped", 6)
    jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)
    params, step = restore_params(tmp_path / "stopped" / "checkpoints")
    assert step == 6
    jax.tree.map(np.testing.assert_array_equal, params, jax.device_get(whole.params))
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["values"]["loss"] > 0
    assert "encoder_padding" not in lines[-1]["values"]
    assert model_from_settings(json.loads(json.dumps(model_settings(quiet)))) == quiet
