"""Adafactor of a T5X checkpoint: gone on with as T5X goes on with it, begun anew on export."""

import dataclasses
from pathlib import Path

import flax.serialization
import jax
import numpy as np
import optax
import pytest

from flanjax.interchange.folders import ModelFolderError
from flanjax.interchange.t5x import write_t5x
from flanjax.interchange.t5x_files import open_checkpoint
from flanjax.interchange.t5x_optimizer import resume_adafactor
from flanjax.models.config import T5Config
from flanjax.models.t5 import abstract_params, logical_axes
from flanjax.training.optimizers import OptimizerConfig, make_optimizer
from flanjax.tuning.partition import flatten, unflatten

pytestmark = pytest.mark.usefixtures("quick_compilation")
# Long enough for factored moments, square kernels (heads), wide (wi) and tall ones (wo, embedding) among them.
CONFIG = T5Config(
    vocab_size=300, embed_dim=128, num_heads=2, mlp_dim=256, num_encoder_layers=1, num_decoder_layers=2, tied_head=True
)
STEP, RATE = 1000, 0.01


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), abstract_params(CONFIG))


@pytest.fixture(scope="module")
def checkpoint(params, tmp_path_factory) -> Path:
    """A checkpoint whose moments have values at random."""
    folder = write_t5x(tmp_path_factory.mktemp("t5x") / "model", CONFIG, params, step=STEP)
    rng = np.random.default_rng(1)
    tree = flax.serialization.msgpack_restore((folder / "checkpoint").read_bytes())
    state = flatten(tree["optimizer"]["state"])
    moments = {name: slot for name, slot in state.items() if name != "step" and slot.shape != (1,)}
    filled = {name: rng.uniform(0.5, 2, slot.shape).astype(np.float32) for name, slot in moments.items()}
    tree["optimizer"]["state"] = unflatten({**state, **filled})
    (folder / "checkpoint").write_bytes(flax.serialization.msgpack_serialize(tree))
    return folder


def rewritten(folder: Path, new: Path, change):
    """A checkpoint with other moments; its parameters are not copied, nobody asks for them."""
    tree = flax.serialization.msgpack_restore((folder / "checkpoint").read_bytes())
    tree["optimizer"]["state"] = unflatten(change(flatten(tree["optimizer"]["state"])))
    new.mkdir()
    (new / "checkpoint").write_bytes(flax.serialization.msgpack_serialize(tree))
    return open_checkpoint(new)


def optimizer_of(**changes):
    config = OptimizerConfig(**{"schedule": "constant", "learning_rate": RATE, "warmup_steps": 0, **changes})
    return make_optimizer(config, logical_axes(CONFIG), total_steps=10)


def update_of_t5x(param, grad, slots):
    """The update of one tensor by the formulas of t5x/adafactor.py, in float64."""
    param, grad = param.astype(np.float64), grad.astype(np.float64)
    decay = 1 - (STEP + 1) ** -0.8
    squared = grad**2 + 1e-30
    if slots["v"].shape == param.shape:
        update = grad / np.sqrt(decay * slots["v"] + (1 - decay) * squared)
    else:
        second, longest = np.argsort(param.shape)
        row = decay * slots["v_row"] + (1 - decay) * squared.mean(longest)
        col = decay * slots["v_col"] + (1 - decay) * squared.mean(second)
        update = grad * np.expand_dims((row / row.mean()) ** -0.5, longest) * np.expand_dims(col**-0.5, second)
    update /= max(1, np.sqrt((update**2).mean()))
    return -RATE * max(np.sqrt((param**2).mean()), 1e-3) * update


def test_the_next_update_is_that_of_t5x(checkpoint, params):
    optimizer = optimizer_of()
    state = resume_adafactor(optimizer.init(params), open_checkpoint(checkpoint), CONFIG)
    rng = np.random.default_rng(2)
    grads = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), params)
    updates, after = jax.jit(optimizer.update)(grads, state, params)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    slots = open_checkpoint(checkpoint).opened("state")
    checked = 0
    for path, update in flatten(updates).items():
        param, grad = flatten(params)[path], flatten(grads)[path]
        stack, _, rest = path.partition("/layers/")
        for layer in range(len(param)) if rest else [None]:
            name = path if layer is None else f"{stack}/layers_{layer}/{rest}"
            own = {slot: slots[f"param_states/{name}/{slot}"] for slot in ("v", "v_row", "v_col")}
            pick = slice(None) if layer is None else layer
            expected = update_of_t5x(param[pick], grad[pick], own)
            np.testing.assert_allclose(np.asarray(update)[pick], expected, rtol=2e-5, atol=1e-9, err_msg=name)
            checked += 1
    assert checked == 3 + 2 + 9 + 2 * 14


def test_the_moments_are_taken_over_bit_for_bit_and_the_schedule_is_the_runs_own(checkpoint, params):
    state = resume_adafactor(optimizer_of().init(params), open_checkpoint(checkpoint), CONFIG)
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, optax.FactoredState))
    factored = [node for node in nodes if isinstance(node, optax.FactoredState)]
    slots = open_checkpoint(checkpoint).opened("state")
    assert all((node.count == STEP).all() for node in factored)
    rows = [node.v_row["decoder"]["layers"]["mlp"]["wo"]["kernel"] for node in factored]
    (row,) = (row for row in rows if not isinstance(row, optax.MaskedNode))
    np.testing.assert_array_equal(row[1], slots["param_states/decoder/layers_1/mlp/wo/kernel/v_row"])
    others = [node for node in nodes if not isinstance(node, optax.FactoredState)]
    assert all(int(np.max(node)) == 0 for node in others)


def test_a_run_that_moves_few_parameters_takes_theirs(checkpoint, params):
    few, axes = flatten(params), flatten(logical_axes(CONFIG))
    names = [name for name in few if name.endswith("scale")]
    few, axes = unflatten({n: few[n] for n in names}), unflatten({n: axes[n] for n in names})
    config = OptimizerConfig(schedule="constant", learning_rate=RATE, warmup_steps=0)
    optimizer = make_optimizer(config, axes, total_steps=10)
    before = optimizer.init(few)
    state = resume_adafactor(before, open_checkpoint(checkpoint), CONFIG)
    assert jax.tree.structure(state) == jax.tree.structure(before)
    assert max(float(np.max(leaf)) for leaf in jax.tree.leaves(state)) == STEP


def test_what_cannot_be_gone_on_with_exactly_is_refused(checkpoint, params, tmp_path):
    opened = open_checkpoint(checkpoint)
    with pytest.raises(ModelFolderError, match="this optimizer is another"):
        resume_adafactor(optimizer_of(name="adamw").init(params), opened, CONFIG)
    with pytest.raises(ModelFolderError, match=r"decoder/layers/mlp/wo/kernel/v_row: \(2, 128\), here \(2, 1\)"):
        resume_adafactor(optimizer_of(min_dim_size_to_factor=129).init(params), opened, CONFIG)
    norm = "param_states/decoder/decoder_norm/scale"
    momentum = rewritten(checkpoint, tmp_path / "m", lambda state: {**state, f"{norm}/m": np.zeros(128, np.float32)})
    with pytest.raises(ModelFolderError, match=r"momentum \(param_states/decoder/decoder_norm/scale/m\)"):
        resume_adafactor(optimizer_of().init(params), momentum, CONFIG)
    lost = rewritten(checkpoint, tmp_path / "lost", lambda state: {n: x for n, x in state.items() if n != f"{norm}/v"})
    with pytest.raises(ModelFolderError, match=r"decoder/decoder_norm/scale/v: missing, here \(128,\)"):
        resume_adafactor(optimizer_of().init(params), lost, CONFIG)
    scanned = open_checkpoint(write_t5x(tmp_path / "scanned", CONFIG, params, scanned=True))
    with pytest.raises(ModelFolderError, match="its layers are scanned"):
        resume_adafactor(optimizer_of().init(params), scanned, CONFIG)


def test_an_exported_state_is_that_of_an_adafactor_that_begins(params, tmp_path):
    config = dataclasses.replace(CONFIG, tied_head=False)
    head = np.zeros((128, 300), np.float32)
    whole = unflatten({**flatten(params), "decoder/logits_dense/kernel": head})
    state = open_checkpoint(write_t5x(tmp_path / "plain", config, whole, step=5)).contents["state"]
    own = {name.removeprefix("param_states/decoder/"): slot.shape for name, slot in state.items()}
    assert own["layers_0/mlp/wo/kernel/v_row"] == (128,)
    assert own["layers_0/mlp/wo/kernel/v_col"] == (256,)
    assert own["layers_0/mlp/wi_0/kernel/v_row"] == (128,)
    assert own["logits_dense/kernel/v"] == (1,)
    assert own["relpos_bias/rel_embedding/v"] == (2, 32)
    assert not any(np.any(slot) for name, slot in state.items() if name != "step")
    # By the axes' names: embed is the row, whichever is longer, and layers are kept apart.
    state = open_checkpoint(write_t5x(tmp_path / "scanned", config, whole, scanned=True)).contents["state"]
    own = {name.removeprefix("param_states/decoder/decoder/"): slot.shape for name, slot in state.items()}
    assert (own["mlp/wo/kernel/v_row"], own["mlp/wo/kernel/v_col"]) == ((2, 128), (256, 2))
    assert (own["mlp/wi_0/kernel/v_row"], own["mlp/wi_0/kernel/v_col"]) == ((128, 2), (2, 256))
    assert own["relpos_bias/rel_embedding/v"] == (2, 2, 32)
    assert own["pre_mlp_layer_norm/scale/v"] == (128, 2)
