"""Tuned runs: what is frozen stays bit for bit, costs no gradient and no optimizer state, and is in no checkpoint."""

import collections
import dataclasses
import functools
import itertools
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import jaxprs_in_params
from jax.interpreters.partial_eval import dce_jaxpr

from flanjax.models.config import Compute
from flanjax.models.model import abstract_params, init_params
from flanjax.sharding.mesh import MeshConfig, make_mesh
from flanjax.training.checkpoints import restore_params
from flanjax.training.losses import LossConfig
from flanjax.training.optimizers import OptimizerConfig, make_optimizer
from flanjax.training.schedules import make_schedule
from flanjax.training.step import StateLayout, batch_shapes, loss_sums, make_train_step
from flanjax.tuning.adapter import BottleneckAdapter
from flanjax.tuning.bitfit import BitFit
from flanjax.tuning.ia3 import IA3
from flanjax.tuning.lora import ALL_LINEAR, LoRA
from flanjax.tuning.p_tuning import PTuning
from flanjax.tuning.partition import (
    FROZEN,
    TRAINABLE,
    Partition,
    added_paths,
    begin,
    flatten,
    trainable_axes,
    unflatten,
    unquantized,
)
from flanjax.tuning.patterns import decide
from flanjax.tuning.prefix import PrefixTuning
from flanjax.tuning.prompt import PromptTuning
from flanjax.tuning.quantize import NF4
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
COMPOSED = {
    "lora_prompt": (LoRA(rank=2, dropout=0.1), PromptTuning(length=3)),
    "ia3_norms": (IA3(), Train()),
    "nf4_lora_norms": (NF4(block=8), LoRA(rank=2), Train()),
}
# Of a decoder, all methods in few programs.
TOGETHER = {
    "layers": (*METHODS["dora"], *METHODS["ia3"], BottleneckAdapter(bottleneck=4), BitFit(), Train()),
    "vectors": (*METHODS["prompt"], *METHODS["prefix"]),
    "networks": (*METHODS["p_tuning"], *METHODS["prefix_of_a_network"]),
}
MESHES = {
    "data": MeshConfig(data=8),
    "fsdp": MeshConfig(data=1, fsdp=8),
    "mixed": MeshConfig(data=2, fsdp=2, model=2),
    "beyond_key_heads": MeshConfig(data=1, fsdp=2, model=4),
}
ADDED = ("dora", "all_linear", "ia3", "houlsby", "bitfit", "prompt", "p_tuning", "prefix", "prefix_of_a_network")
SPREAD = [
    *itertools.product(["TINY"], ADDED, ["data", "mixed"]),
    *itertools.product(["DECODER_ONLY"], ["layers", "vectors", "frozen_embedding"], ["mixed"]),
    ("DECODER_ONLY", "layers", "beyond_key_heads"),
    ("DECODER_ONLY", "networks", "fsdp"),
]
BESIDE = 64 * 2**10  # bytes
each = pytest.mark.parametrize("name", [name for name in METHODS if name != "full"])
ADAMW = OptimizerConfig(name="adamw", learning_rate=0.01)
# Factors by pattern, and by layer of the stacked parameters.
GROUPS = dataclasses.replace(
    ADAMW, learning_rate=0.001, rate_factors={".*/lora/b": 2.0, ".*/magnitude": 0.5}, layer_decay=0.9
)
ADAFACTOR = OptimizerConfig(learning_rate=0.02, min_dim_size_to_factor=4)


@pytest.fixture(scope="module")
def program(tiny_run):
    """Makes programs, and keeps none: all of them would take more memory maps than a process has."""

    def make(name, *, base=tiny_run.TINY, optimizer=ADAMW, **options):
        model = dataclasses.replace(base, added=(METHODS | TOGETHER)[name], dropout_rate=0)
        return tiny_run.Program(model, optimizer, **options)

    return make


def run_moved(program, batches):
    """The last state of a run from parameters of which none is zero, and the losses."""
    state, history = program.run(batches, program.start(moved=True))
    return state, [metrics.loss / metrics.tokens for metrics in history]


@each
@pytest.mark.parametrize("optimizer", [ADAMW, ADAFACTOR], ids=["adamw", "adafactor"])
def test_the_frozen_stay_bit_for_bit_and_the_others_learn(program, tiny_run, name, optimizer):
    tuned = program(name, optimizer=optimizer)
    state, history = tuned.run([tiny_run.random_batch(0)] * 8)
    before = flatten(jax.device_get(init_params(tuned.model, seed=0)))
    frozen, moved = flatten(state.frozen), flatten(state.params)
    assert frozen
    assert frozen.keys() | moved.keys() == before.keys()
    for path, value in frozen.items():
        np.testing.assert_array_equal(value, before[path], err_msg=path)
    still = [path for path, value in moved.items() if np.array_equal(value, before[path])]
    assert not still
    assert history[-1].loss < history[0].loss  # of the same tokens


# No two of its matrices have a shape in common, and no activation of a batch of 8 rows of 16 and 8 has one of theirs.
UNLIKE = {"vocab_size": 60, "embed_dim": 24, "head_dim": 10, "mlp_dim": 28}


def made(function, *args):
    """How often each shape of floats is computed anywhere in a function's program, of one layer as of the stack."""
    found = collections.Counter()

    def count(jaxpr):
        for equation in jaxpr.eqns:
            inner = list(jaxprs_in_params(equation.params))
            for one in inner:
                count(one)
            if not inner or equation.primitive.name == "scan":  # what a scan stacks is a buffer of its own
                found.update(v.aval.shape for v in equation.outvars if jnp.issubdtype(v.aval.dtype, jnp.floating))

    program = jax.make_jaxpr(function)(*args).jaxpr
    # As jit does before it lowers one: the loss computes the head's gradient in any case, for whoever asks for it.
    count(dce_jaxpr(program, [True] * len(program.outvars))[0])
    return found


@functools.cache
def shapes_made(tiny_run, methods):
    """Of the program of a step and of its loss alone; and its state, in shapes."""
    model = dataclasses.replace(tiny_run.TINY, **UNLIKE, added=methods, dropout_rate=0)
    optimizer = make_optimizer(ADAMW, trainable_axes(model), total_steps=1)
    layout = StateLayout.of(model, optimizer, make_mesh(MeshConfig(), jax.devices()[:1]))
    # What is computed again would be counted again: DoRA's and PiSSA's forward passes make kernels.
    compute, loss = Compute(remat="none"), LossConfig(chunk_tokens=16)
    step = make_train_step(model, compute, loss, optimizer, make_schedule(ADAMW, 1), layout, seed=0)
    batch = batch_shapes(tiny_run.ROWS, tiny_run.ENCODER, tiny_run.DECODER, layout.mesh)
    forward = made(
        lambda params, batch: loss_sums(model, compute, loss, params, batch, layout.mesh),
        layout.state.all_params,
        batch,
    )
    return made(step, layout.state, batch), forward, layout.state


def matrices(params):
    """Shapes of the matrices, those of a stack as they are and of one layer."""
    found = set()
    for path, leaf in flatten(params).items():
        shape = leaf.shape[1:] if "/layers/" in path else leaf.shape
        if len(shape) == 2:
            found |= {shape, leaf.shape}
    return found


@each
def test_no_gradient_of_a_frozen_matrix_is_anywhere_in_the_program(tiny_run, name):
    step, forward, state = shapes_made(tiny_run, METHODS[name])
    of_all, of_loss, _ = shapes_made(tiny_run, ())
    frozen = matrices(state.frozen) - matrices(state.params)
    assert frozen
    for shape in frozen:
        # DoRA's forward pass has kernels of its own; nothing of that shape comes on top.
        assert step[shape] == forward[shape], shape
    # Were gradients taken of everything and thrown away, they would be seen: each is, where everything moves.
    assert any(of_all[shape] > of_loss[shape] for shape in frozen)
    assert all(of_all[shape] > of_loss[shape] for shape in frozen if len(shape) == 2)


@each
def test_the_frozen_have_no_optimizer_state(program, name):
    tuned = program(name)
    trained = sum(leaf.size for leaf in jax.tree.leaves(tuned.layout.state.params))
    state = sum(leaf.size for leaf in jax.tree.leaves(tuned.layout.state.opt_state))
    assert 2 * trained <= state <= 2 * trained + 8  # AdamW's two moments, and counters
    # The state goes through in place: what comes out lies where it went in.
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tuned.layout.state))
    assert tuned.compiled.memory.aliased == held


def optax_step(program, state, batch, groups, clip):
    """The parameters after one update of gradients of everything, by `optax.partition`, frozen ones set to zero."""

    def adamw(rate):
        return optax.chain(optax.clip_by_global_norm(clip), optax.adamw(rate, weight_decay=0.0))

    params = flatten(state.all_params)
    labels = {path: groups(path) for path in params}
    rates = {label: adamw(label) for label in set(labels.values()) - {None}}
    transform = optax.partition(
        {str(label): rate for label, rate in rates.items()} | {"None": optax.set_to_zero()},
        {path: str(label) for path, label in labels.items()},
    )

    def loss(params):
        sums = loss_sums(program.model, Compute(), LossConfig(chunk_tokens=16), unflatten(params), batch, program.mesh)
        return sums.loss / sums.tokens

    gradients = jax.jit(jax.grad(loss))(params)
    assert all(np.asarray(gradient).any() for path, gradient in gradients.items() if "lora" in path)
    updates, _ = transform.update(gradients, transform.init(params), params)
    return jax.device_get(optax.apply_updates(params, updates))


def test_the_update_is_that_of_optax_partition_with_frozen_gradients_set_to_zero(tiny_run):
    model = dataclasses.replace(tiny_run.TINY, added=(LoRA(rank=2), Train()), dropout_rate=0)
    batch = tiny_run.random_batch(0)
    for factors, clip in ({}, 0.01), ({".*/lora/b": 16.0, ".*norm/.*": 0.5}, 1e9):
        program = tiny_run.Program(
            model, dataclasses.replace(ADAMW, rate_factors=factors, global_norm_clip=clip, learning_rate=1e-3)
        )
        start = jax.device_get(program.start(moved=True))
        partition = Partition.of(model)

        def group(path, factors=factors, partition=partition):
            return None if partition.labels[path] == FROZEN else 1e-3 * decide(tuple(factors.items()), path, 1.0)

        expected = optax_step(program, start, batch, group, clip)
        after, _ = program.run([batch], program.start(moved=True))
        before = flatten(start.all_params)
        for path, value in flatten(after.all_params).items():
            np.testing.assert_allclose(value, expected[path], rtol=1e-5, atol=1e-6, err_msg=path)
            assert np.array_equal(value, before[path]) == (partition.labels[path] == FROZEN)


@pytest.mark.parametrize("microbatches", [1, 4])
def test_gradients_are_float32_whatever_the_parameters_are(tiny_run, microbatches):
    """Of the same values the gradient of bfloat16 matrices is that of float32 ones, to rounding of float32."""

    def first(dtype, values=None):
        model = dataclasses.replace(
            tiny_run.TINY, added=(LoRA(rank=2, targets=ALL_LINEAR, dtype=dtype),), dropout_rate=0
        )
        program = tiny_run.Program(model, ADAMW, microbatches=microbatches)
        state = program.start(moved=True)
        if values is not None:
            state = state._replace(params=jax.tree.map(lambda v: v.astype(jnp.float32), values))
        start = jax.tree.map(jnp.copy, state.params)
        after, (metrics,) = program.run([tiny_run.random_batch(0)], state)
        return start, after.opt_state, metrics.grad_norm

    values, half, norm = first("bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(values)} == {jnp.dtype("bfloat16")}
    _, whole, expected = first("float32", values)
    np.testing.assert_allclose(norm, expected, rtol=1e-6)
    # The first moments are a tenth of the gradients.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), half, whole)


@pytest.mark.parametrize(("base", "name", "mesh"), SPREAD)
def test_eight_devices_equal_one(program, tiny_run, base, name, mesh):
    options = {"base": getattr(tiny_run, base), "optimizer": GROUPS if name == "dora" else ADAMW}
    one, eight = program(name, **options), program(name, mesh=MESHES[mesh], **options)
    batches = [tiny_run.batch_for(one.model, seed) for seed in range(3)]
    (alone, expected), (spread, losses) = run_moved(one, batches), run_moved(eight, batches)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), spread.all_params, alone.all_params
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * np.abs(b).max()),
        spread.opt_state,
        alone.opt_state,
    )
    if mesh == "data":
        return
    start = eight.start()
    trained, moments = flatten(start.params), flatten(start.opt_state[0].mu)
    split = {path for path, leaf in trained.items() if leaf.sharding.shard_shape(leaf.shape) != leaf.shape}
    assert all(any(map(method.trains, split)) for method in eight.model.added)
    assert {path: moments[path].sharding.spec for path in trained} == {
        path: leaf.sharding.spec for path, leaf in trained.items()
    }
    if name in ("dora", "all_linear", "layers") and mesh == "mixed":
        # Split along the feed-forward's units, as the kernel is.
        lora = next(path for path in trained if path.endswith("mlp/wi_0/lora/b")).removesuffix("b")
        assert trained[f"{lora}b"].sharding.shard_shape((2, 2, 32)) == (2, 2, 16)
        if name != "all_linear":
            assert trained[f"{lora}magnitude"].sharding.shard_shape((2, 32)) == (2, 16)


def test_microbatches_give_the_update_of_the_whole_batch(program, tiny_run):
    batches = [tiny_run.random_batch(seed) for seed in range(2)]
    whole, _ = run_moved(program("all_linear"), batches)
    cut, _ = run_moved(program("all_linear", microbatches=4), batches)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), whole.params, cut.params)


@pytest.fixture
def train(tiny_run):
    """train(folder, "lora", train_steps=4) runs the loop; the result, and the model."""

    def run(folder: Path, name: str, base=tiny_run.TINY, **loop):
        model = dataclasses.replace(base, added=(METHODS | COMPOSED)[name])
        return tiny_run.start(
            folder,
            model=model,
            optimizer=ADAMW,
            initial_params=lambda shardings: begin(model, init_params(base, 0), lambda text: [], 0),
            **{"eval_every": 4, "log_every": 1, **loop},
        )

    return run


@pytest.mark.parametrize(
    ("base", "name"),
    [
        *itertools.product(["TINY"], ["lora", "both", "pissa", "prompt", "prefix_of_a_network", "houlsby", "bitfit"]),
        *itertools.product(["DECODER_ONLY"], COMPOSED),
    ],
)
def test_resumed_equals_uninterrupted(train, tiny_run, tmp_path, base, name):
    start = functools.partial(train, name=name, base=getattr(tiny_run, base))
    whole = start(tmp_path / "whole", train_steps=8)
    start(tmp_path / "parts", train_steps=3)
    resumed = start(tmp_path / "parts", train_steps=8)
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


@pytest.mark.parametrize(("base", "name"), [("TINY", "lora"), *itertools.product(["DECODER_ONLY"], COMPOSED)])
def test_a_checkpoint_has_what_moves_alone(train, tiny_run, tmp_path, base, name):
    base = dataclasses.replace(getattr(tiny_run, base), vocab_size=4096)  # a quarter of a megabyte for each table
    train(tmp_path / name, name, base, train_steps=3)
    model = dataclasses.replace(base, added=(METHODS | COMPOSED)[name])
    shapes = flatten(abstract_params(model))
    moved = {path for path, label in Partition.of(model).labels.items() if label == TRAINABLE}
    assert moved >= added_paths(unquantized(model))
    trained = 4 * sum(shapes[path].size for path in moved)
    folder = tmp_path / name / "checkpoints" / "3"
    slots = 2  # the moments of AdamW
    stored = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    # Beside the numbers lie their names and shapes, and what little a checkpoint says of the run.
    assert stored <= trained * (1 + slots) + BESIDE
    assert 4 * sum(leaf.size for leaf in shapes.values()) > 2 * BESIDE  # the frozen ones would not fit in
    found, _ = restore_params(tmp_path / name / "checkpoints")
    assert flatten(found).keys() == moved
    assert sum(leaf.nbytes for leaf in flatten(found).values()) == trained
