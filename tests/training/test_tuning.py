"""Tuned runs: what is frozen stays bit for bit, costs no gradient and no optimizer state, and is in no checkpoint."""

import dataclasses
import functools
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from flanjax.models.t5 import init_params
from flanjax.sharding.mesh import MeshConfig
from flanjax.training.optimizers import OptimizerConfig
from flanjax.tuning.adapter import BottleneckAdapter
from flanjax.tuning.bitfit import BitFit
from flanjax.tuning.ia3 import IA3
from flanjax.tuning.lora import ALL_LINEAR, LoRA
from flanjax.tuning.p_tuning import PTuning
from flanjax.tuning.partition import added_paths, begin, flatten
from flanjax.tuning.prefix import PrefixTuning
from flanjax.tuning.prompt import PromptTuning
from flanjax.tuning.select import Freeze, Train

METHODS = {
    "full": (),
    "lora": (LoRA(rank=2, alpha=8, dropout=0.1),),
    "all_linear": (LoRA(rank=2, targets=ALL_LINEAR),),
    "ia3": (IA3(),),
    "norms": (Train(),),
    "frozen_embedding": (Freeze(parameters="token_embedder/.*"),),
    "both": (LoRA(rank=2), Train()),
    "houlsby": (BottleneckAdapter(bottleneck=4, dropout=0.1),),
    "parallel": (BottleneckAdapter(style="parallel", bottleneck=4, scale=4.0),),
    "bitfit": (BitFit(),),
    "prompt": (PromptTuning(length=3),),
    "p_tuning": (PTuning(length=3, encoder="lstm", hidden_dim=8),),
    "prefix": (PrefixTuning(length=3, attentions=".*attention"),),
    "prefix_of_a_network": (PrefixTuning(length=3, attentions=".*attention", hidden_dim=8),),
    "dora": (LoRA(rank=2, targets=ALL_LINEAR, dora=True),),
    "pissa": (LoRA(rank=2, dropout=0.1, init="pissa", dora=True, dtype="bfloat16"), Train()),
}
each = pytest.mark.parametrize("name", [name for name in METHODS if name != "full"])
ADAMW = OptimizerConfig(name="adamw", learning_rate=0.01)
# Factors by pattern, and by layer of the stacked parameters.
GROUPS = dataclasses.replace(
    ADAMW, learning_rate=0.001, rate_factors={".*/lora/b": 2.0, ".*/magnitude": 0.5}, layer_decay=0.9
)
ADAFACTOR = OptimizerConfig(learning_rate=0.02, min_dim_size_to_factor=4)


@pytest.fixture(scope="module")
def program(tiny_run):

    def make(name, *, optimizer=ADAMW, **options):
        return tiny_run.Program(
            dataclasses.replace(tiny_run.TINY, added=METHODS[name], dropout_rate=0), optimizer, **options
        )

    return functools.cache(make)


def run_moved(program, batches):
    """The last state of a run from parameters of which none is zero, and the losses."""
    state, history = program.run(batches, program.start(moved=True))
    return state, [metrics.loss / metrics.tokens for metrics in history]


@each
@pytest.mark.parametrize("optimizer", [ADAMW, ADAFACTOR], ids=["adamw", "adafactor"])
def test_the_frozen_stay_bit_for_bit_and_the_others_learn(program, tiny_run, name, optimizer):
    state, history = program(name, optimizer=optimizer).run([tiny_run.random_batch(0)] * 8)
    model = program(name, optimizer=optimizer).model
    before = flatten(jax.device_get(init_params(model, seed=0)))
    frozen, moved = flatten(state.frozen), flatten(state.params)
    assert frozen
    assert frozen.keys() | moved.keys() == before.keys()
    for path, value in frozen.items():
        np.testing.assert_array_equal(value, before[path], err_msg=path)
    still = [path for path, value in moved.items() if np.array_equal(value, before[path])]
    assert not still
    assert history[-1].loss < history[0].loss  # of the same tokens


@each
def test_the_frozen_have_no_gradient_and_no_optimizer_state(program, name):
    tuned, full = program(name), program("full")
    trained = sum(leaf.size for leaf in jax.tree.leaves(tuned.layout.state.params))
    state = sum(leaf.size for leaf in jax.tree.leaves(tuned.layout.state.opt_state))
    assert 2 * trained <= state <= 2 * trained + 8  # AdamW's two moments, and counters
    # The state goes through in place: what comes out lies where it went in.
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tuned.layout.state))
    assert tuned.compiled.memory.aliased == held

    def flops(program):
        return program.compiled.run.cost_analysis()["flops"]

    if name != "frozen_embedding":  # whose gradient is a scatter
        kernels = sum(leaf.size for path, leaf in flatten(full.layout.state.params).items() if path.endswith("kernel"))
        assert flops(tuned) < flops(full) - kernels  # the products of the weight gradients at the very least


@pytest.mark.parametrize("mesh", [MeshConfig(data=8), MeshConfig(data=2, fsdp=2, model=2)], ids=["data", "mixed"])
@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        ("dora", GROUPS),
        *((name, ADAMW) for name in ("all_linear", "ia3", "houlsby", "bitfit", "prompt", "p_tuning")),
        *((name, ADAMW) for name in ("prefix", "prefix_of_a_network")),
    ],
)
def test_eight_devices_equal_one(program, tiny_run, mesh, name, optimizer):
    batches = [tiny_run.random_batch(seed) for seed in range(3)]
    alone, expected = run_moved(program(name, optimizer=optimizer), batches)
    sharded = program(name, optimizer=optimizer, mesh=mesh)
    spread, losses = run_moved(sharded, batches)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), spread.all_params, alone.all_params
    )
    if name == "dora" and mesh.model > 1:
        moments = sharded.layout.state.opt_state[0].mu["encoder"]["layers"]["mlp"]["wi_0"]["lora"]
        assert moments["magnitude"].sharding.shard_shape((2, 32)) == (2, 16)
        assert moments["b"].sharding.shard_shape((2, 2, 32)) == (2, 2, 16)
    if name == "all_linear" and mesh.model > 1:
        b = sharded.layout.state.params["encoder"]["layers"]["mlp"]["wi_0"]["lora"]["b"]
        assert b.sharding.shard_shape(b.shape) == (2, 2, 16)  # split along the feed-forward's units, as the kernel is


def test_microbatches_give_the_update_of_the_whole_batch(program, tiny_run):
    batches = [tiny_run.random_batch(seed) for seed in range(2)]
    whole, _ = run_moved(program("all_linear"), batches)
    cut, _ = run_moved(program("all_linear", microbatches=4), batches)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), whole.params, cut.params)


@pytest.fixture
def train(tiny_run):
    """train(folder, "lora", train_steps=4) runs the loop; the result, and the model."""

    def run(folder: Path, name: str, **loop):
        model = dataclasses.replace(tiny_run.TINY, added=METHODS[name])
        return tiny_run.start(
            folder,
            model=model,
            optimizer=ADAMW,
            initial_params=lambda shardings: begin(model, init_params(tiny_run.TINY, 0), lambda text: [], 0),
            **{"eval_every": 4, "log_every": 1, **loop},
        )

    return run


@pytest.mark.parametrize("name", ["lora", "both", "pissa", "prompt", "prefix_of_a_network", "houlsby", "bitfit"])
def test_resumed_equals_uninterrupted(train, tiny_run, tmp_path, name):
    whole = train(tmp_path / "whole", name, train_steps=8)
    train(tmp_path / "parts", name, train_steps=3)
    resumed = train(tmp_path / "parts", name, train_steps=8)
    tiny_run.assert_same_run(resumed, tmp_path / "parts", whole, tmp_path / "whole")


def test_a_signal_from_outside_is_not_taken_for_a_difference(train, tiny_run, tmp_path):
    class Terminated(tiny_run.Batches):
        def __next__(self):
            if self.position == 2:
                signal.raise_signal(signal.SIGTERM)
            return super().__next__()

    whole = train(tmp_path / "whole", "norms", train_steps=3)
    stopped = train(tmp_path / "stopped", "norms", train_steps=3, batches=Terminated())
    with pytest.raises(AssertionError, match="SIGTERM from outside stopped a run at step 2"):
        tiny_run.assert_same_run(stopped, tmp_path / "stopped", whole, tmp_path / "whole")


def test_a_checkpoint_has_what_moves_alone(train, tiny_run, tmp_path):
    for name in ("full", "lora"):
        train(tmp_path / name, name, train_steps=3)

    def size(name, part):
        return sum(f.stat().st_size for f in (tmp_path / name / "checkpoints" / "3" / part).rglob("*") if f.is_file())

    model = dataclasses.replace(tiny_run.TINY, added=METHODS["lora"])
    trained = 4 * sum(leaf.size for leaf in flatten(init_params(model, 0)).values() if leaf.size) - 4 * sum(
        leaf.size for leaf in flatten(init_params(tiny_run.TINY, 0)).values()
    )
    assert added_paths(model)
    assert size("lora", "params") < size("full", "params")
    from flanjax.training.checkpoints import restore_params

    found, _ = restore_params(tmp_path / "lora" / "checkpoints")
    assert flatten(found).keys() == added_paths(model)
    assert sum(leaf.nbytes for leaf in flatten(found).values()) == trained
