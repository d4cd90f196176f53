"""How GGUF files hold numbers: plain, or in blocks that share scales (ggml's `block_q4_1`, `block_q4_K`, ...).

    Q4_1.numbers(blocks)    # blocks [..., n] of 20 bytes -> float32 [..., n, 32]

A block of Q4_1 is a scale d and a minimum m in float16 and 16 bytes q; number i is `d * q + m` with q the low half of
byte i for i below 16, and the high half of byte i - 16 above. With d = 0.5, m = -1 and first byte 0x31, number 0 is
-0.5 and number 16 is 0.5. The types with a K have blocks of 256; 16 or 32 neighbours have a scale, and where the type
has one a minimum, of a few bits each, which the block's own d and dmin multiply; the minimum is subtracted.
"""

import dataclasses
from collections.abc import Callable, Mapping

import ml_dtypes
import numpy as np
from jaxtyping import Float, UInt8

_BLOCK = 32
_K_BLOCK = 256


@dataclasses.dataclass(frozen=True)
class TensorType:
    """One way to hold numbers.

    Attributes:
      name: ggml's.
      block: how a block lies in the file.
      size: numbers in a block.
      dtype: of the numbers that come out.
      numbers: blocks [...] to their numbers [..., size]; exact, except that those of quantised types are rounded to
        float32 as ggml rounds them.
    """

    name: str
    block: np.dtype
    size: int
    dtype: np.dtype
    numbers: Callable[[np.ndarray], np.ndarray]


def _plain(name: str, stored: str | type) -> TensorType:
    dtype = np.dtype(stored)
    return TensorType(name, dtype, 1, dtype, lambda blocks: blocks[..., None])


def _quantised(
    name: str, fields: list[tuple], numbers: Callable[[np.ndarray], np.ndarray], size: int = _BLOCK
) -> TensorType:
    return TensorType(name, np.dtype(fields), size, np.dtype(np.float32), numbers)


def _halves(packed: UInt8[np.ndarray, "... 16"]) -> UInt8[np.ndarray, "... 32"]:
    return np.concatenate([packed & 15, packed >> 4], axis=-1)


def _column(values: Float[np.ndarray, "..."]) -> Float[np.ndarray, "... 1"]:
    return values.astype(np.float32)[..., None]


def _q8_0(blocks: np.ndarray) -> Float[np.ndarray, "... 32"]:
    return _column(blocks["d"]) * blocks["q"].astype(np.float32)


def _q4_0(blocks: np.ndarray) -> Float[np.ndarray, "... 32"]:
    return _column(blocks["d"]) * (_halves(blocks["q"]).astype(np.float32) - np.float32(8))


def _q4_1(blocks: np.ndarray) -> Float[np.ndarray, "... 32"]:
    return _column(blocks["d"]) * _halves(blocks["q"]).astype(np.float32) + _column(blocks["m"])


def _fifth_bits(blocks: np.ndarray) -> UInt8[np.ndarray, "... 32"]:
    """Halves with a bit more each, of four bytes in which it lies."""
    return _halves(blocks["q"]) | np.unpackbits(blocks["high"], axis=-1, bitorder="little") << 4


def _q5_0(blocks: np.ndarray) -> Float[np.ndarray, "... 32"]:
    return _column(blocks["d"]) * (_fifth_bits(blocks).astype(np.float32) - np.float32(16))


def _q5_1(blocks: np.ndarray) -> Float[np.ndarray, "... 32"]:
    return _column(blocks["d"]) * _fifth_bits(blocks).astype(np.float32) + _column(blocks["m"])


def _bits(packed: UInt8[np.ndarray, "... bytes"], width: int, count: int) -> UInt8[np.ndarray, "... numbers"]:
    """Numbers of `count` bits: of each run of `width` bytes first their lowest bits, then the next ones."""
    shifts = np.arange(0, 8, count, dtype=np.uint8)[:, None]
    runs = packed.reshape(*packed.shape[:-1], -1, 1, width) >> shifts & (2**count - 1)
    return runs.reshape(*packed.shape[:-1], -1)


def _of_groups(q: np.ndarray, scales: np.ndarray, minima: np.ndarray | None = None) -> Float[np.ndarray, "... 256"]:
    """`scale * q - minimum`, one of each for neighbours."""
    grouped = scales[..., None] * q.astype(np.float32).reshape(*scales.shape, -1)
    return (grouped if minima is None else grouped - minima[..., None]).reshape(q.shape)


def _scales_and_minima(blocks: np.ndarray) -> tuple[Float[np.ndarray, "... 8"], Float[np.ndarray, "... 8"]]:
    """Of Q4_K and Q5_K: six bits each in twelve bytes, the upper two of the last four where the first have room."""
    first, second, rest = np.split(blocks["scales"], 3, axis=-1)
    scales = np.concatenate([first & 63, rest & 15 | first >> 6 << 4], axis=-1)
    minima = np.concatenate([second & 63, rest >> 4 | second >> 6 << 4], axis=-1)
    return _column(blocks["d"]) * scales.astype(np.float32), _column(blocks["dmin"]) * minima.astype(np.float32)


def _q2_k(blocks: np.ndarray) -> Float[np.ndarray, "... 256"]:
    scales = _column(blocks["d"]) * (blocks["scales"] & 15).astype(np.float32)
    return _of_groups(_bits(blocks["q"], 32, 2), scales, _column(blocks["dmin"]) * (blocks["scales"] >> 4).astype("f4"))


def _q3_k(blocks: np.ndarray) -> Float[np.ndarray, "... 256"]:
    low, high = blocks["scales"][..., :8], blocks["scales"][..., 8:]
    scales = (_bits(low, 8, 4) | _bits(high, 4, 2) << 4).astype(np.float32) - np.float32(32)
    q = (_bits(blocks["q"], 32, 2) | _bits(blocks["high"], 32, 1) << 2).astype(np.float32) - np.float32(4)
    return _of_groups(q, _column(blocks["d"]) * scales)


def _q4_k(blocks: np.ndarray) -> Float[np.ndarray, "... 256"]:
    return _of_groups(_bits(blocks["q"], 32, 4), *_scales_and_minima(blocks))


def _q5_k(blocks: np.ndarray) -> Float[np.ndarray, "... 256"]:
    return _of_groups(_bits(blocks["q"], 32, 4) | _bits(blocks["high"], 32, 1) << 4, *_scales_and_minima(blocks))


def _q6_k(blocks: np.ndarray) -> Float[np.ndarray, "... 256"]:
    q = (_bits(blocks["q"], 64, 4) | _bits(blocks["high"], 32, 2) << 4).astype(np.float32) - np.float32(32)
    return _of_groups(q, _column(blocks["d"]) * blocks["scales"].astype(np.float32))


_D, _DMIN, _SCALES = ("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12)

# By ggml's number of the type.
TYPES: Mapping[int, TensorType] = {
    0: _plain("F32", "<f4"),
    1: _plain("F16", "<f2"),
    30: _plain("BF16", ml_dtypes.bfloat16),
    2: _quantised("Q4_0", [_D, ("q", "u1", 16)], _q4_0),
    3: _quantised("Q4_1", [_D, ("m", "<f2"), ("q", "u1", 16)], _q4_1),
    6: _quantised("Q5_0", [_D, ("high", "u1", 4), ("q", "u1", 16)], _q5_0),
    7: _quantised("Q5_1", [_D, ("m", "<f2"), ("high", "u1", 4), ("q", "u1", 16)], _q5_1),
    8: _quantised("Q8_0", [_D, ("q", "i1", 32)], _q8_0),
    10: _quantised("Q2_K", [("scales", "u1", 16), ("q", "u1", 64), _D, _DMIN], _q2_k, _K_BLOCK),
    11: _quantised("Q3_K", [("high", "u1", 32), ("q", "u1", 64), _SCALES, _D], _q3_k, _K_BLOCK),
    12: _quantised("Q4_K", [_D, _DMIN, _SCALES, ("q", "u1", 128)], _q4_k, _K_BLOCK),
    13: _quantised("Q5_K", [_D, _DMIN, _SCALES, ("high", "u1", 32), ("q", "u1", 128)], _q5_k, _K_BLOCK),
    14: _quantised("Q6_K", [("q", "u1", 128), ("high", "u1", 64), ("scales", "i1", 16), _D], _q6_k, _K_BLOCK),
}

# Those that are refused, so that the message can name them.
OTHER_TYPES: Mapping[int, str] = {
    **{9: "Q8_1", 15: "Q8_K"},
    **dict(enumerate(("IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS"), start=16)),
    **dict(enumerate(("I8", "I16", "I32", "I64", "F64", "IQ1_M"), start=24)),
    **{34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0"},
}
