"""How GGUF files hold numbers: plain, or in blocks of 32 that share a scale (ggml's `block_q4_1` and its neighbours).

    Q4_1.numbers(blocks)    # blocks [..., n] of 20 bytes -> float32 [..., n, 32]

A block of Q4_1 is a scale d and a minimum m in float16 and 16 bytes q; number i is `d * q + m` with q the low half of
byte i for i below 16, and the high half of byte i - 16 above. With d = 0.5, m = -1 and first byte 0x31, number 0 is
-0.5 and number 16 is 0.5.
"""

import dataclasses
from collections.abc import Callable, Mapping

import ml_dtypes
import numpy as np
from jaxtyping import Float, UInt8

_BLOCK = 32


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


def _quantised(name: str, fields: list[tuple], numbers: Callable[[np.ndarray], np.ndarray]) -> TensorType:
    return TensorType(name, np.dtype(fields), _BLOCK, np.dtype(np.float32), numbers)


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


# By ggml's number of the type.
TYPES: Mapping[int, TensorType] = {
    0: _plain("F32", "<f4"),
    1: _plain("F16", "<f2"),
    30: _plain("BF16", ml_dtypes.bfloat16),
    2: _quantised("Q4_0", [("d", "<f2"), ("q", "u1", 16)], _q4_0),
    3: _quantised("Q4_1", [("d", "<f2"), ("m", "<f2"), ("q", "u1", 16)], _q4_1),
    8: _quantised("Q8_0", [("d", "<f2"), ("q", "i1", 32)], _q8_0),
}

# Those that are refused, so that the message can name them.
OTHER_TYPES: Mapping[int, str] = {
    **dict(enumerate(("Q5_0", "Q5_1"), start=6)),
    **dict(enumerate(("Q8_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_K"), start=9)),
    **dict(enumerate(("IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS"), start=16)),
    **dict(enumerate(("I8", "I16", "I32", "I64", "F64", "IQ1_M"), start=24)),
    **{34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0"},
}
