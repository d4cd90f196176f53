"""Random permutations that are computed, not stored: where a keyed shuffle sends index i of n.

Everything is integer arithmetic on whole arrays, so the answer is the same on every machine and with every version of
NumPy, and asking for position 10**12 costs what position 0 costs. Grain's own index shuffle is a call per index from
Python; a window of examples here is a handful of array operations.
"""

import numpy as np
from jaxtyping import Int64, UInt64
from numpy.typing import ArrayLike

_ROUNDS = 4


def hash64(*parts: ArrayLike) -> UInt64[np.ndarray, "..."]:
    """A 64-bit hash of integers, broadcast over arrays (the finaliser of SplitMix64, folded over the parts).

    https://doi.org/10.1145/2714064.2660195
    """
    state = np.zeros((), dtype=np.uint64)
    with np.errstate(over="ignore"):
        for part in parts:
            state = (state + np.uint64(0x9E3779B97F4A7C15)) ^ np.asarray(part).astype(np.uint64)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return np.asarray(state)


def permute(
    index: Int64[np.ndarray, " n"], size: int | Int64[np.ndarray, " n"], key: UInt64[np.ndarray, "..."]
) -> Int64[np.ndarray, " n"]:
    """Where the permutation of range(size) chosen by a key sends each index.

    The permutation acts on the power of two at or above `size`, by rounds of an odd multiplication and a shift, each
    of which is invertible there; an index that lands at or above `size` is sent on until it lands below
    (cycle walking, https://doi.org/10.1007/3-540-45760-7_9), which keeps the whole a permutation of range(size).

    Args:
        index: each in range(size).
        size: 1 or more, one for all or one each, below 2**50.
        key: `hash64` of whatever shall decide the permutation, one for all or one each.
    """
    limit = np.broadcast_to(np.asarray(size, dtype=np.uint64), index.shape)
    bits = np.ceil(np.log2(np.maximum(limit, 2))).astype(np.uint64)
    mask = (np.uint64(1) << bits) - np.uint64(1)
    shift = (bits + np.uint64(1)) // np.uint64(2)
    multipliers = [np.broadcast_to(hash64(key, number), index.shape) for number in range(_ROUNDS)]
    result = index.astype(np.uint64)
    walking = np.arange(len(index))
    while len(walking):
        value, here, down = result[walking], mask[walking], shift[walking]
        with np.errstate(over="ignore"):
            for multiplier in multipliers:
                factor = multiplier[walking]
                value = (value * (factor | np.uint64(1)) + (factor >> np.uint64(32))) & here
                value ^= value >> down
        result[walking] = value
        walking = walking[value >= limit[walking]]
    return result.astype(np.int64)
