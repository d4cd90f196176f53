"""Training on a quantised base: codes stay bit for bit, eight devices equal one, resumed equals uninterrupted."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flanjax.interchange.hf_t5 import read_hf_t5
from flanjax.models.config import Compute
from flanjax.models.model import init_params
from flanjax.sharding.mesh import MeshConfig, make_mesh
from flanjax.training.checkpoints import restore_params
from flanjax.training.losses import LossConfig
from flanjax.training.optimizers import OptimizerConfig, make_optimizer
from flanjax.training.schedules import make_schedule
from flanjax.training.step import StateLayout, batch_shapes, compile_step, make_train_step, put_batch
from flanjax.tuning.lora import ALL_LINEAR, LoRA
from flanjax.tuning.partition import begin, flatten, trainable_axes, unflatten
from flanjax.tuning.quantize import NF4

ADAMW = OptimizerConfig(name="adamw", learning_rate=0.01)
METHODS = (NF4(block=8, double_block=3), LoRA(rank=2, targets=ALL_LINEAR))


def first(model, seed=0):
    """The parameters of a run on a random base."""
    base = init_params(dataclasses.replace(model, added=()), seed)
    return begin(model, base, lambda text: [], seed)


@pytest.fixture(scope="module")
def program(tiny_run):
    return functools.cache(
        lambda added=METHODS, base=tiny_run.TINY, **options: tiny_run.Program(
            dataclasses.replace(base, added=added, dropout_rate=0), ADAMW, **options
        )
    )


def run(program, tiny_run, steps):
    """The last state, from adapters of which none is zero, and the losses."""
    params = first(program.model)
    rng = np.random.default_rng(0)
    adapters = {path: p for path, p in flatten(params).items() if "/lora/" in path}
    moved = {path: 0.1 * rng.standard_normal(p.shape, np.float32) for path, p in adapters.items()}
    start = program.layout.start(unflatten(flatten(params) | moved), program.optimizer)
    state, history = program.run([tiny_run.batch_for(program.model, 0)] * steps, start)
    return state, [metrics.loss / metrics.tokens for metrics in history]


def test_codes_stay_bit_for_bit_and_adapters_learn(program, tiny_run):
    state, losses = run(program(), tiny_run, 8)
    before, frozen = flatten(first(program().model)), flatten(state.frozen)
    assert {path.rpartition("/kernel/")[2] for path in frozen if "/kernel/" in path} == {
        "codes",
        "absmax",
        "nested_absmax",
        "nested_offset",
    }
    for path, value in frozen.items():
        np.testing.assert_array_equal(value, before[path], err_msg=path)
    assert all("/lora/" in path for path in flatten(state.params))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    "mesh",
    [MeshConfig(data=8), MeshConfig(data=2, fsdp=2, model=2), MeshConfig(data=1, fsdp=4, model=2)],
    ids=["data", "mixed", "scales_whole"],
)
@pytest.mark.parametrize("base", ["TINY", "DECODER_ONLY"])
def test_eight_devices_equal_one(program, tiny_run, base, mesh):
    alone, expected = run(program(base=getattr(tiny_run, base)), tiny_run, 2)
    sharded = program(base=getattr(tiny_run, base), mesh=mesh)
    spread, losses = run(sharded, tiny_run, 2)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), spread.params, alone.params)
    jax.tree.map(np.testing.assert_array_equal, spread.frozen, alone.frozen)
    frozen = sharded.layout.state.frozen
    kernel = frozen.get("encoder", frozen["decoder"])["layers"]["mlp"]["wi_0"]["kernel"]

    def part(name):
        return kernel[name].sharding.shard_shape(kernel[name].shape)[1:]

    # As the kernel of 16 x 32 lies, two codes a byte; two scales do not divide by four.
    assert part("codes") == (8 // mesh.fsdp, 32 // mesh.model)
    assert part("absmax") == (2 if mesh.fsdp == 4 else 2 // mesh.fsdp, 32 // mesh.model)


def test_a_step_holds_codes_and_no_kernels(program, tiny_run):
    quantized, plain = program(), program(METHODS[1:])

    def size(tree):
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

    kernels = sum(
        leaf.size * 4
        for path, leaf in flatten(plain.layout.state.frozen).items()
        if "/layers/" in path and path.endswith("/kernel")
    )
    codes = sum(size(leaf) for path, leaf in flatten(quantized.layout.state.frozen).items() if "/kernel/" in path)
    assert size(quantized.layout.state.frozen) == size(plain.layout.state.frozen) - kernels + codes
    saved = plain.compiled.memory.arguments - quantized.compiled.memory.arguments
    assert abs(saved - (kernels - codes)) < 0.01 * kernels  # the compiler may pad small arrays
    assert quantized.compiled.memory.aliased == size(quantized.layout.state)


def test_resumed_equals_uninterrupted(tiny_run, tmp_path):
    model = dataclasses.replace(tiny_run.TINY, added=(METHODS[0], LoRA(rank=2, dropout=0.1)))

    def train(folder, steps):
        return tiny_run.start(
            tmp_path / folder,
            model=model,
            optimizer=ADAMW,
            initial_params=lambda shardings: first(model),
            train_steps=steps,
            eval_every=4,
            log_every=1,
        )

    whole = train("whole", 8)
    train("parts", 3)
    resumed = train("parts", 8)
    tiny_run.assert_same_run(resumed, tmp_path / "parts", whole, tmp_path / "whole")
    saved, _ = restore_params(tmp_path / "parts" / "checkpoints")
    assert saved
    assert all("/lora/" in path for path in flatten(saved))


def test_a_few_steps_teach_the_quantised_flan_t5_small(flan_t5_small):
    base, own = read_hf_t5(flan_t5_small)
    model = dataclasses.replace(base, added=(NF4(), LoRA(rank=4, dtype="bfloat16")), dropout_rate=0)
    optimizer = make_optimizer(ADAMW, trainable_axes(model), total_steps=4)
    layout = StateLayout.of(model, optimizer, make_mesh(MeshConfig(), jax.devices()[:1]))
    step = make_train_step(
        model,
        Compute(dtype="bfloat16"),
        LossConfig(),
        optimizer,
        make_schedule(ADAMW, 4),
        layout,
        seed=0,
    )
    shapes = batch_shapes(2, 16, 8, layout.mesh)
    compiled = compile_step(step, layout, shapes)
    state = layout.start(begin(model, own, lambda text: [], 0), optimizer)
    rng = np.random.default_rng(0)
    batch = {name: np.ones(shape.shape, np.int32) for name, shape in shapes.items()}  # one segment, all of it a target
    batch["encoder_input_tokens"] = rng.integers(3, 32000, (2, 16), np.int32)
    batch["decoder_target_tokens"] = rng.integers(3, 32000, (2, 8), np.int32)
    batch["decoder_input_tokens"] = np.pad(batch["decoder_target_tokens"], ((0, 0), (1, 0)))[:, :-1]
    losses = []
    for _ in range(4):
        state, metrics = compiled(state, put_batch(batch, layout.mesh))
        losses.append(float(metrics.loss / metrics.tokens))
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("bfloat16")}
    assert losses[-1] < losses[0] - 0.1
