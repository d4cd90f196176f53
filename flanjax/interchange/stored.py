"""Parameters that still lie in files: arrays of which only what is asked for is read, and placed on devices as it is.

    kernel = stacked([transposed(tensor) for tensor in layers])  # [layers, in, out] of torch's [out, in]
    kernel[0:1, :, 16:32]                                        # reads 16 rows of the first layer's tensor
    params = place({"kernel": kernel}, {"kernel": sharding})     # a host reads what its own devices hold

A reader of a checkpoint format makes one `Lazy` for each tensor of its file and puts the combinators of this module
around it until it has the shape of a parameter. Whoever takes parameters takes any `StoredArray`: a NumPy array too.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, Sharding
from numpy.typing import DTypeLike

from flanjax.interchange.folders import ModelFolderError
from flanjax.models.model import ModelConfig, abstract_params, logical_axes
from flanjax.models.parameters import Params
from flanjax.sharding.rules import param_shardings

Slices = tuple[slice, ...]
Fill = Callable[[Slices, np.ndarray], None]
_BLOCK = 2**24  # bytes that are compared at a time
_IN_FLIGHT = 2**30  # bytes between a file and a device, so far as layers or rows divide a parameter
_STRIP = 16  # rows, which in float32 fill a cache line of 64 bytes


class StoredArray(Protocol):
    """What an array in a file can do; NumPy arrays can as they are."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its axes."""

    @property
    def dtype(self) -> np.dtype:
        """Of what is read."""

    def __getitem__(self, slices: Slices, /) -> np.ndarray:
        """The part that lies in a slice of each axis; steps are 1."""

    def __array__(self, dtype: Any = None, /, *, copy: bool | None = None) -> np.ndarray:
        """The whole of it."""


@dataclasses.dataclass(frozen=True, eq=False)
class Lazy:
    """A `StoredArray` made of a function.

    Attributes:
      shape: its axes.
      dtype: of what is read.
      fill: writes the part that lies in a slice of each axis into an array of the part's shape. The slices have a start
        and a stop within the shape; the array may be a strided view, and of another type, to which it is cast.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    fill: Fill

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """How many numbers."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole once it is read."""
        return self.size * self.dtype.itemsize

    def __getitem__(self, slices: Slices) -> np.ndarray:
        return read(self, slices)

    def __array__(self, dtype: DTypeLike | None = None, *, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("an array that lies in a file is read into a new one: copy=False cannot be had")
        whole = read(self, (slice(None),) * self.ndim)
        return whole if dtype is None else whole.astype(dtype, copy=False)


def lazy(shape: Sequence[int], dtype: DTypeLike, part: Callable[[Slices], np.ndarray]) -> Lazy:
    """A `Lazy` of a function that returns the part in a slice of each axis, as a new array or as a view."""

    def fill(slices: Slices, out: np.ndarray) -> None:
        _copy(part(slices), out)

    return Lazy(tuple(shape), np.dtype(dtype), fill)


def in_file(path: Path, dtype: DTypeLike, shape: Sequence[int], offset: int) -> Lazy:
    """An array that lies in a file as it lies in memory: C order, from the byte `offset` on.

    The file is open while a part is read, and its pages count as this process's memory only so long.

    Raises:
      ModelFolderError: when it is read, the file is not there any more or has become shorter.
    """
    shape, dtype = tuple(shape), np.dtype(dtype)

    def part(slices: Slices) -> np.ndarray:
        try:
            return np.memmap(path, dtype, "r", offset, shape)[slices]
        except (OSError, ValueError) as error:
            raise ModelFolderError(f"{path}: has changed since its header was read ({error})") from error

    return lazy(shape, dtype, part)


def read(source: StoredArray, slices: Slices) -> np.ndarray:
    """The part of `source` in a slice of each axis as a new array, in C order, that nothing else refers to.

    Raises:
      IndexError: not one slice for each axis, or one with a step.
    """
    ranges = slices if isinstance(slices, tuple) else ()
    if len(ranges) != len(source.shape) or not all(isinstance(one, slice) and one.step in (None, 1) for one in ranges):
        raise IndexError(
            f"an array of shape {source.shape} that lies in a file takes a slice without a step for each axis, not "
            f"{slices}; np.asarray reads all of it, flanjax.interchange.stored.in_memory all of a model"
        )
    bounds = [one.indices(size) for one, size in zip(slices, source.shape, strict=True)]
    within = tuple(slice(start, max(start, stop)) for start, stop, _ in bounds)
    out = _aligned(tuple(one.stop - one.start for one in within), source.dtype)
    if out.size:
        _fill(source, within, out)
    return out


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An empty array at a multiple of 64 bytes, which XLA takes for a CPU device's own buffer without a copy."""
    size = math.prod(shape) * dtype.itemsize
    buffer = np.empty(size + 63, np.uint8)
    start = -buffer.ctypes.data % 64
    return buffer[start : start + size].view(dtype).reshape(shape)


def _fill(source: StoredArray, slices: Slices, out: np.ndarray) -> None:
    if isinstance(source, Lazy):
        source.fill(slices, out)
    else:
        _copy(source[slices], out)


def _copy(array: np.ndarray, out: np.ndarray) -> None:
    """`out[...] = array`; a matrix that is turned on its way goes in strips, several times as fast."""
    if array.ndim == 2 and array.strides[0] > array.strides[1] and out.strides[0] < out.strides[1]:
        for start in range(0, len(array), _STRIP):
            strip = slice(start, start + _STRIP)
            out[strip] = array[strip].astype(out.dtype, copy=False)
    else:
        out[...] = array


def transposed(source: StoredArray, axes: Sequence[int] | None = None) -> Lazy:
    """`source` with its axes in the order `axes`, reversed by default, as `np.transpose`."""
    order = tuple(range(len(source.shape)))[::-1] if axes is None else tuple(axes)
    back = tuple(int(axis) for axis in np.argsort(order))

    def fill(slices: Slices, out: np.ndarray) -> None:
        _fill(source, tuple(slices[axis] for axis in back), out.transpose(back))

    return Lazy(tuple(source.shape[axis] for axis in order), source.dtype, fill)


def stacked(sources: Sequence[StoredArray]) -> Lazy:
    """Equal shapes, one on top of the other on a new first axis; only those that are asked for are read."""
    (shape,) = {source.shape for source in sources}
    dtype = np.result_type(*(source.dtype for source in sources))

    def fill(slices: Slices, out: np.ndarray) -> None:
        first, *rest = slices
        for source, layer in zip(sources[first], out, strict=True):
            _fill(source, tuple(rest), layer)

    return Lazy((len(sources), *shape), dtype, fill)


def taken(source: StoredArray, axis: int, order: Sequence[int] | np.ndarray) -> Lazy:
    """The entries `order` of one axis in that order, as `np.take`: a part of a fused tensor, or one put in order anew.

    Only the entries that are asked for are read, neighbours in one piece. Worked example: keys of two heads of 4 that
    lie as q0 k0 v0 q1 k1 v1 are `taken(fused, 0, [4, 5, 6, 7, 16, 17, 18, 19])`.
    """
    numbers = np.asarray(order)
    axis %= len(source.shape)

    def fill(slices: Slices, out: np.ndarray) -> None:
        """Reads the entries that are asked for, neighbours in one piece, into `out`."""
        wanted = numbers[slices[axis]]
        positions = np.argsort(wanted, kind="stable")
        entries = np.moveaxis(out, axis, 0)
        for run in _runs(wanted[positions]):
            start, stop = int(wanted[positions[run.start]]), int(wanted[positions[run.stop - 1]]) + 1
            there, here = (*slices[:axis], slice(start, stop), *slices[axis + 1 :]), positions[run]
            if np.array_equal(here, np.arange(here[0], here[0] + stop - start)):
                _fill(source, there, np.moveaxis(entries[here[0] : here[-1] + 1], 0, axis))
            else:
                entries[here] = np.moveaxis(source[there], axis, 0)[wanted[here] - start]

    return Lazy((*source.shape[:axis], len(numbers), *source.shape[axis + 1 :]), source.dtype, fill)


def _runs(ascending: np.ndarray) -> Iterator[slice]:
    """Where neighbours follow each other without a gap."""
    ends = [*(np.flatnonzero(np.diff(ascending) > 1) + 1).tolist(), len(ascending)]
    start = 0
    for end in ends:
        if end > start:
            yield slice(start, end)
        start = end


def gather(parts: Iterable[tuple[str, int | None, StoredArray]]) -> dict[str, StoredArray]:
    """Parameters by path, of `(path, layer, array)`; arrays of a layer are stacked, those without one are whole."""
    whole: dict[str, StoredArray] = {}
    layers: dict[str, dict[int, StoredArray]] = {}
    for path, layer, array in parts:
        if layer is None:
            whole[path] = array
        else:
            layers.setdefault(path, {})[layer] = array
    return whole | {path: stacked([arrays[layer] for layer in sorted(arrays)]) for path, arrays in layers.items()}


def cast(source: StoredArray, dtype: DTypeLike) -> Lazy:
    """`source` in another type, as `astype`; bfloat16 and float16 become float32 exactly."""
    return Lazy(source.shape, np.dtype(dtype), lambda slices, out: _fill(source, slices, out))


def equal(one: StoredArray, other: StoredArray) -> bool:
    """Whether two arrays have the same shape and values, as `np.array_equal`; a few rows are in memory at a time."""
    if one.shape != other.shape:
        return False
    row = math.prod(one.shape[1:]) * max(one.dtype.itemsize, other.dtype.itemsize)
    rows, rest = max(1, _BLOCK // max(1, row)), (slice(None),) * (len(one.shape) - 1)
    blocks = ((slice(start, start + rows), *rest) for start in range(0, one.shape[0], rows))
    return all(np.array_equal(read(one, block), read(other, block)) for block in blocks)


def layer_of(source: StoredArray | jax.Array, layer: int | None) -> StoredArray:
    """One entry of the first axis; all of an array that has no layers (None)."""
    if not isinstance(source, Lazy):
        return np.asarray(source) if layer is None else np.asarray(source)[layer]
    if layer is None:
        return source

    def fill(slices: Slices, out: np.ndarray) -> None:
        source.fill((slice(layer, layer + 1), *slices), out[None])

    return Lazy(source.shape[1:], source.dtype, fill)


def in_memory(params: Params) -> Params:
    """All of the parameters as NumPy arrays."""
    return jax.tree.map(np.asarray, params)


def shardings_on(mesh: Mesh, model: ModelConfig) -> Params:
    """Where the parameters of a model lie on a mesh, as training has them."""
    shardings: Params = param_shardings(logical_axes(model), abstract_params(model), mesh)[0]
    return shardings


def place(params: Params, shardings: Params | Sharding) -> Params:
    """The parameters on their devices, each read from where it lies and let go of before the next.

    A host reads the shards of its own devices and no other, each once however many devices have it. Beyond what the
    devices hold, one shard of one parameter is in memory, of a large one a GiB at a time. What was read belongs to the
    devices alone: the files may be changed or removed afterwards, and NumPy arrays written to.

    Arguments:
      params: any `StoredArray`, or arrays that are on devices already and are moved.
      shardings: the same tree, or one for all.
    """
    if isinstance(shardings, Sharding):
        everywhere = shardings
        shardings = jax.tree.map(lambda _: everywhere, params)
    return jax.tree.map(_place, params, shardings)


def _place(source: StoredArray | jax.Array, sharding: Sharding) -> jax.Array:
    if isinstance(source, jax.Array):
        return jax.device_put(source, sharding)
    holders: dict[tuple[tuple[int, int, int], ...], list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(source.shape).items():
        assert index is not None
        bounds = tuple(one.indices(size) for one, size in zip(index, source.shape, strict=True))
        holders.setdefault(bounds, []).append(device)
    shards: list[jax.Array] = []
    for bounds, devices in holders.items():
        shards += _shard(source, tuple(slice(start, stop) for start, stop, _ in bounds), devices)
    return jax.make_array_from_single_device_arrays(source.shape, sharding, shards, dtype=source.dtype)


def _shard(source: StoredArray, slices: Slices, devices: Sequence[jax.Device]) -> list[jax.Array]:
    """The part of `source` in these slices on each of the devices; if it is large, put together there."""
    shape = tuple(one.stop - one.start for one in slices)
    rows = max(1, _IN_FLIGHT // max(1, math.prod(shape[1:]) * source.dtype.itemsize))
    if not shape or shape[0] <= rows:
        part = read(source, slices)
        return [jax.device_put(part, device).block_until_ready() for device in devices]
    wholes = [jnp.empty(shape, source.dtype, device=device) for device in devices]
    for first in range(0, shape[0], rows):
        start = slices[0].start + first
        part = read(source, (slice(start, min(start + rows, slices[0].stop)), *slices[1:]))
        wholes = [
            _put(whole, jax.device_put(part, device), first).block_until_ready()
            for whole, device in zip(wholes, devices, strict=True)
        ]
    return wholes


@functools.partial(jax.jit, donate_argnums=0)
def _put(whole: jax.Array, part: jax.Array, first: int) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(whole, part, first, 0)
