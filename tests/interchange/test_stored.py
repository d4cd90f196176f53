"""Arrays in files: the part asked for is that of the whole, nothing beyond it is read, and devices get their own."""

import dataclasses

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from flanjax.interchange.stored import cast, in_memory, lazy, place, stacked, taken, transposed
from flanjax.models.config import T5Config
from flanjax.models.t5 import init_params
from flanjax.sharding.mesh import MeshConfig, make_mesh
from flanjax.tuning.ia3 import IA3
from flanjax.tuning.lora import LoRA
from flanjax.tuning.partition import begin, merged
from flanjax.tuning.prompt import PromptTuning
from flanjax.tuning.quantize import NF4


class Counted:
    """An array that counts the numbers read from it."""

    def __init__(self, array):
        self.array, self.numbers = array, 0
        self.lazy = lazy(array.shape, array.dtype, self._part)

    def _part(self, slices):
        part = self.array[slices]
        self.numbers += part.size
        return part


def counted(shape, dtype=np.float32, seed=0):
    return Counted(np.random.default_rng(seed).normal(size=shape).astype(dtype))


def views():
    """A lazy array of each kind, the whole that it should be, and its sources."""
    a, b = counted((6, 8), seed=1), counted((6, 8), seed=2)
    halves = np.array([0, 2, 4, 1, 3, 5])
    heads = np.array([2, 3, 6, 7])
    return {
        "itself": (a.lazy, a.array, (a,)),
        "transposed": (transposed(a.lazy), a.array.T, (a,)),
        "stacked": (stacked([a.lazy, b.lazy]), np.stack([a.array, b.array]), (a, b)),
        "permuted": (
            transposed(stacked([a.lazy, b.lazy]), (2, 0, 1)),
            np.stack([a.array, b.array]).transpose(2, 0, 1),
            (a, b),
        ),
        "part": (taken(a.lazy, 1, range(2, 5)), a.array[:, 2:5], (a,)),
        "interleaved": (taken(a.lazy, -1, heads), a.array[:, heads], (a,)),
        "reordered": (taken(a.lazy, 0, halves), a.array[halves], (a,)),
        "all at once": (
            stacked([transposed(taken(taken(x.lazy, 0, halves), 1, heads)) for x in (a, b)]),
            np.stack([x.array[halves][:, heads].T for x in (a, b)]),
            (a, b),
        ),
        "cast": (cast(counted((3,), ml_dtypes.bfloat16).lazy, np.float32),
                 counted((3,), ml_dtypes.bfloat16).array.astype(np.float32), ()),
        "arrays in memory": (stacked([a.array, transposed(b.array.T.copy())]), np.stack([a.array, b.array]), ()),
    }  # fmt: skip


@pytest.mark.parametrize("kind", views())
@given(data=st.data())
def test_a_part_is_that_of_the_whole_and_nothing_else_is_read(kind, data):
    array, whole, sources = views()[kind]
    assert (array.shape, array.dtype) == (whole.shape, whole.dtype)
    slices = tuple(
        slice(*sorted(data.draw(st.tuples(st.integers(0, size), st.integers(0, size))))) for size in whole.shape
    )
    part = array[slices]
    np.testing.assert_array_equal(part, whole[slices])
    assert part.dtype == whole.dtype
    assert part.flags.c_contiguous
    assert part.flags.writeable
    assert sum(source.numbers for source in sources) == (part.size if sources else 0)


@pytest.mark.parametrize("kind", views())
def test_the_whole_is_an_array(kind):
    array, whole, _ = views()[kind]
    np.testing.assert_array_equal(np.asarray(array), whole)
    assert np.asarray(array, np.float64).dtype == np.float64
    with pytest.raises(ValueError, match="read into a new one"):
        np.asarray(array, copy=False)


@pytest.mark.parametrize("index", [0, (0, 0), (slice(None),), (slice(None), slice(0, 4, 2)), ...])
def test_an_index_that_is_not_a_slice_for_each_axis_is_refused(index):
    with pytest.raises(IndexError, match=r"shape \(6, 8\) that lies in a file takes a slice without a step"):
        counted((6, 8)).lazy[index]


SHARDINGS = {
    "rows": PartitionSpec("fsdp"),
    "columns": PartitionSpec(None, "model"),
    "blocks": PartitionSpec("fsdp", "model"),
    "whole everywhere": PartitionSpec(),
}


@pytest.mark.parametrize("spec", SHARDINGS.values(), ids=SHARDINGS)
def test_every_number_is_read_once_and_lies_where_it_should(spec):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, model=2))
    source = counted((8, 4))
    before = source.array.copy()
    sharding = NamedSharding(mesh, spec)
    placed = place({"kernel": transposed(source.lazy)}, {"kernel": sharding})["kernel"]
    assert source.numbers == source.array.size
    source.array[...] = 0.0  # the devices' values are their own
    assert placed.sharding == sharding
    np.testing.assert_array_equal(placed, before.T)
    for shard in placed.addressable_shards:
        np.testing.assert_array_equal(shard.data, before.T[shard.index])


def test_a_large_shard_is_put_together_on_its_devices(monkeypatch):
    monkeypatch.setattr("flanjax.interchange.stored._IN_FLIGHT", 3 * 4 * 4)  # three rows
    source = counted((10, 8))
    sharding = NamedSharding(make_mesh(MeshConfig(data=4, model=2)), PartitionSpec(None, "model"))
    placed = place({"kernel": source.lazy}, sharding)["kernel"]
    assert source.numbers == source.array.size
    np.testing.assert_array_equal(placed, source.array)
    for shard in placed.addressable_shards:
        np.testing.assert_array_equal(shard.data, source.array[shard.index])


def test_devices_that_hold_the_same_do_not_overwrite_each_other():
    placed = place({"a": counted((8, 4)).lazy}, NamedSharding(make_mesh(MeshConfig()), PartitionSpec()))["a"]
    first, second = (shard.data for shard in placed.addressable_shards[:2])
    expected = np.array(second)
    jax.jit(lambda x: x + 1, donate_argnums=0)(first).block_until_ready()
    np.testing.assert_array_equal(second, expected)


def test_arrays_in_memory_and_on_devices_are_placed_too():
    sharding = SingleDeviceSharding(jax.devices()[3])
    array, scalar = np.arange(6.0, dtype=np.float32).reshape(2, 3), np.float32(2)
    placed = place({"a": array, "b": {"c": jax.numpy.asarray(array), "d": np.asarray(scalar)}}, sharding)
    expected = array.copy()
    array[...] = 0.0
    assert {leaf.sharding for leaf in jax.tree.leaves(placed)} == {sharding}
    np.testing.assert_array_equal(placed["a"], expected)
    np.testing.assert_array_equal(placed["b"]["c"], expected)
    np.testing.assert_array_equal(placed["b"]["d"], scalar)


MODEL = T5Config(
    vocab_size=24, embed_dim=8, num_heads=2, head_dim=4, mlp_dim=12, num_encoder_layers=2, num_decoder_layers=2
)


@pytest.mark.parametrize(
    "method",
    [
        LoRA(rank=2, init="pissa", dora=True),
        NF4(block=4, double=False),
        PromptTuning(length=3, init="vocabulary", vocabulary_ids=20),
        IA3(),
    ],
    ids=lambda method: type(method).__name__,
)
def test_tuning_begins_and_is_merged_on_files_as_in_memory(method):
    model, base = dataclasses.replace(MODEL, added=(method,)), in_memory(init_params(MODEL, 0))
    files = jax.tree.map(lambda leaf: lazy(leaf.shape, leaf.dtype, leaf.__getitem__), base)
    begun = [begin(model, params, lambda text: [3], 1) for params in (files, base)]
    jax.tree.map(np.testing.assert_array_equal, *map(in_memory, begun))
    if isinstance(method, LoRA | IA3):
        jax.tree.map(np.testing.assert_array_equal, *(in_memory(merged(model, params)[1]) for params in begun))


def test_in_memory_reads_everything():
    source = counted((3, 2))
    whole = in_memory({"a": source.lazy, "b": np.ones(2)})
    assert isinstance(whole["a"], np.ndarray)
    np.testing.assert_array_equal(whole["a"], source.array)
