"""QLoRA's base: kernels kept in 4-bit NormalFloat, their scales in 8 bits (Dettmers et al. 2023, arXiv 2305.14314).

    TUNING = (@NF4(), @LoRA())

    code = nearest entry of NORMAL_FLOAT to w / absmax            for each block of 64 weights along the input
    code = nearest entry of DYNAMIC to (absmax - offset) / nested_absmax       for each 256 blocks of one kernel

The blocks are those of bitsandbytes: consecutive weights of the torch layout [out, in]. Of a kernel [in, out] there is

    codes          uint8    [in / 2, out]        two codes a byte, the weight of even number in the upper half
    absmax         uint8    [in / block, out]    float32 without double quantisation
    nested_absmax  float32  [in / block * out / double_block]     counted along the input, output after output
    nested_offset  float32  []                   mean of all absmax of the kernel

which is 4.127 bits a weight. What adapters learn lies beside it in float; the codes themselves never move.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8

from flanjax.models.layers import Linear, Packed, parameter
from flanjax.models.model import ModelConfig
from flanjax.tuning.lora import ALL_LINEAR
from flanjax.tuning.method import Encode, Flat, Method, TuningError, check_pattern, no_match, projections, targets

# Quantiles of a normal distribution, scaled to [-1, 1], with a zero of its own: the table printed in the paper's
# appendix E and in bitsandbytes.
NORMAL_FLOAT = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    np.float32,
)


def _dynamic() -> np.ndarray:
    """The signed 8-bit dynamic data type (Dettmers 2015, arXiv 1511.04561; bitsandbytes' `create_dynamic_map`).

    For each exponent e of -6 to 0 the middles of 2**(6 + e) equal parts of [0.1, 1], times 10**e, with both signs; and
    0 and 1.
    """
    entries = [np.float32(0), np.float32(1)]
    for exponent in range(-6, 1):
        parts = 2 ** (6 + exponent)
        edge, low, step = np.arange(parts + 1), float(np.float32(0.1)), float(np.float32(0.9 / parts))
        # From both ends and rounded once, as torch counts: it decides the last bit.
        edges = np.where(edge < parts / 2, low + edge * step, 1 - (parts - edge) * step).astype(np.float32)
        middles = np.float32(10.0**exponent) * ((edges[:-1] + edges[1:]) / 2)
        entries += [*middles, *-middles]
    return np.sort(np.array(entries, np.float32))


DYNAMIC = _dynamic()


@dataclasses.dataclass(frozen=True, kw_only=True)
class NF4(Method):
    """Frozen kernels in 4 bits; trains nothing itself.

    Attributes:
      targets: regular expression that has to match a projection's whole path, "decoder/layers/mlp/wi_0"; the default is
        every projection of the layers. The head and the embedding stay float32.
      block: weights that share a scale; it has to divide the input size of every target.
      double_block: scales that share a second-level scale.
      double: double quantisation, scales in 8 bits; without it they are float32.

    Raises:
      TuningError: a block that is no even number of at least 2, a double_block below 1, or a pattern that is none.
    """

    name: ClassVar[str] = "nf4"
    quantizes: ClassVar[bool] = True
    targets: str = ALL_LINEAR
    block: int = 64
    double_block: int = 256
    double: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.block, int) or self.block < 2 or self.block % 2:
            raise TuningError(f"NF4.block is {self.block!r}: it must be an even number, two codes make a byte")
        if not isinstance(self.double_block, int) or self.double_block < 1:
            raise TuningError(f"NF4.double_block is {self.double_block!r}: it must be a whole number of at least 1")
        check_pattern(self, "targets")

    def attach(self, layer: nnx.Module, path: str) -> None:
        """Puts codes in the place of every target's kernel."""
        for linear in targets(layer, path, self.targets):
            if isinstance(linear.kernel, Packed):
                raise TuningError(
                    f"two methods quantize one kernel under {path}: let no other match what NF4.targets = "
                    f"{self.targets!r} matches"
                )
            linear.kernel = NF4Kernel(linear, self)

    def trains(self, path: str) -> bool:
        """Nothing."""
        return False

    def check(self, model: ModelConfig, paths: list[str]) -> None:
        """Refuses targets that are not there, and methods that would move codes."""
        packed = [path for path in paths if re.fullmatch(rf"({self.targets})/kernel/\w+", path)]
        if not packed:
            raise no_match(self, "targets", projections(paths))
        for other in model.added:
            moved = [path for path in packed if isinstance(other, Method) and other.trains(path)]
            if moved:
                raise TuningError(
                    f"{type(other).__name__} would train {moved[0]}, which is quantized: codes have no gradient. Leave "
                    "it out of what is trained, or out of NF4.targets"
                )

    def begin(self, model: ModelConfig, params: Flat, encode: Encode) -> Flat:
        """The codes of every target, and no kernel of it."""
        begun = dict(params)
        for projection in projections(params):
            if re.fullmatch(self.targets, projection):
                kernel = jnp.asarray(begun.pop(f"{projection}/kernel"))
                parts = _quantize_layers(kernel, self.block, self.double_block if self.double else None)
                begun |= {f"{projection}/kernel/{part}": value for part, value in parts.items()}
        return begun


class NF4Kernel(Packed):
    """The codes of one projection's kernel, on the kernel's axes."""

    def __init__(self, linear: Linear, method: NF4):
        size_in, size_out = linear.shape
        if size_in % method.block:
            raise TuningError(
                f"NF4.block = {method.block} does not divide the input of a target of {size_in} x {size_out}: give a "
                f"divisor of {size_in}, or other targets"
            )
        self.double_block = method.double_block
        blocks = size_in // method.block
        self.codes = parameter((size_in // 2, size_out), linear.axes, 0.0, dtype=jnp.uint8)
        self.absmax = parameter((blocks, size_out), linear.axes, 0.0, dtype=jnp.uint8 if method.double else jnp.float32)
        if method.double:
            self.nested_absmax = parameter((math.ceil(blocks * size_out / method.double_block),), ("blocks",), 0.0)
            self.nested_offset = parameter((), (), 0.0)

    def unpack(self) -> Float[Array, "in out"]:
        """The kernel, float32."""
        parts = {name: p[...] for name, p in vars(self).items() if isinstance(p, nnx.Variable)}
        return dequantize(parts, self.double_block)


def quantize(kernel: Float[Array, "in out"], block: int, double_block: int | None) -> dict[str, Array]:
    """The parts of one kernel, as the head of this file lists them.

    Arguments:
      kernel: float32; `block` divides its input size.
      block: weights that share a scale.
      double_block: scales that share a second-level scale; None for float32 scales.
    """
    size_out = kernel.shape[1]
    blocks = kernel.astype(jnp.float32).reshape(-1, block, size_out)
    absmax = jnp.abs(blocks).max(axis=1)
    codes = _nearest(_divided(blocks, absmax[:, None]), NORMAL_FLOAT).reshape(-1, 2, size_out)
    parts = {"codes": codes[:, 0] << 4 | codes[:, 1], "absmax": absmax}
    if double_block is None:
        return parts
    offset = absmax.mean()
    number = _nested_block(absmax.shape, double_block)
    rest = absmax - offset
    nested = jax.ops.segment_max(jnp.abs(rest).ravel(), number.ravel(), math.ceil(absmax.size / double_block))
    scales = _nearest(_divided(rest, nested[number]), DYNAMIC)
    return parts | {"absmax": scales, "nested_absmax": nested, "nested_offset": offset}


def dequantize(parts: Mapping[str, Array], double_block: int) -> Float[Array, "in out"]:
    """The float32 kernel that `quantize` made these parts of, rounded."""
    codes, absmax = parts["codes"], parts["absmax"]
    if "nested_absmax" in parts:
        nested = parts["nested_absmax"][_nested_block(absmax.shape, double_block)]
        absmax = _entries(DYNAMIC, absmax) * nested + parts["nested_offset"]
    pairs = jnp.stack([codes >> 4, codes & 15], axis=1)
    blocks = _entries(NORMAL_FLOAT, pairs).reshape(len(absmax), -1, codes.shape[1])
    return (blocks * absmax[:, None]).reshape(-1, codes.shape[1])


@functools.partial(jax.jit, static_argnums=(1, 2))
def _quantize_layers(kernel: Float[Array, "layers in out"], block: int, double_block: int | None) -> dict[str, Array]:
    """`quantize` of each layer, one after the other."""
    return jax.lax.map(lambda layer: quantize(layer, block, double_block), kernel)


def _divided(x: Array, scale: Array) -> Array:
    """The quotient, and 0 where both are."""
    return x / jnp.where(scale == 0, 1, scale)


def _nearest(x: Float[Array, "*shape"], table: np.ndarray) -> UInt8[Array, "*shape"]:
    """The number of the nearest entry of an ascending table; of two as near the lower."""
    return jnp.searchsorted((table[:-1] + table[1:]) / 2, x, method="compare_all").astype(jnp.uint8)


def _entries(table: np.ndarray, codes: UInt8[Array, "*shape"]) -> Float[Array, "*shape"]:
    return jnp.asarray(table).at[codes].get(mode="promise_in_bounds")


def _nested_block(shape: tuple[int, ...], double_block: int) -> Any:
    """The nested block of each block [in / block, out]: counted along the input, output after output."""
    blocks, size_out = shape
    return (jnp.arange(size_out) * blocks + jnp.arange(blocks)[:, None]) // double_block
