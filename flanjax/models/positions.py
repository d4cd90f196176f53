"""T5's relative-position bias: a small table per stack, looked up by the bucketed distance of key and query.

The bias is computed once per stack and handed to every layer as an array [1, heads, queries, keys]. Distances count
rows of the packed sequence: a segment is contiguous, so inside it they equal the distances of the unpacked example.
"""

import functools
import math

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from flanjax.models.config import T5Config
from flanjax.models.layers import parameter


@functools.cache
def _bucket_of_distance(buckets: int, max_distance: int) -> np.ndarray:
    """The bucket of every distance 0..max_distance: exact up to half the buckets, then logarithmic."""
    exact = buckets // 2
    distance = np.arange(max_distance + 1)
    # float32 as in the published implementations, whose rounding decides the bucket at exact powers.
    ratio = np.maximum(distance, exact).astype(np.float32) / np.float32(exact)
    logarithmic = np.log(ratio) / np.float32(math.log(max_distance / exact)) * np.float32(buckets - exact)
    far = np.minimum(exact + logarithmic.astype(np.int32), buckets - 1)
    return np.where(distance < exact, distance, far).astype(np.int32)


def relative_position_buckets(
    relative_position: Int[Array, "*shape"], *, bidirectional: bool, buckets: int = 32, max_distance: int = 128
) -> Int[Array, "*shape"]:
    """The table row of each relative position (key index minus query index).

    Bidirectional (encoder): half of the buckets for keys at or before the query, half for keys after it. Causal
    (decoder): all buckets for the past; a key after the query shares bucket 0 (and is masked anyway).
    """
    distance = -relative_position
    offset = jnp.zeros_like(distance)
    if bidirectional:
        buckets //= 2
        offset = jnp.where(distance < 0, buckets, 0)
        distance = jnp.abs(distance)
    table = jnp.asarray(_bucket_of_distance(buckets, max_distance))
    return offset + table[jnp.clip(distance, 0, max_distance)]


class RelativePositionBias(nnx.Module):
    """The table `rel_embedding` [heads, buckets] of one stack."""

    def __init__(self, config: T5Config, *, bidirectional: bool):
        self.bidirectional = bidirectional
        self.max_distance = config.relpos_max_distance
        self.rel_embedding = parameter(
            (config.num_heads, config.relpos_buckets), ("heads", "relpos_buckets"), config.embed_dim**-0.5
        )

    def __call__(
        self, query_positions: Int[Array, " queries"], key_positions: Int[Array, " keys"]
    ) -> Float[Array, "1 heads queries keys"]:
        """The float32 bias of every (query, key) pair of positions."""
        table = self.rel_embedding[...]
        buckets = relative_position_buckets(
            key_positions[None, :] - query_positions[:, None],
            bidirectional=self.bidirectional,
            buckets=table.shape[1],
            max_distance=self.max_distance,
        )
        return table[:, buckets][None]

    def of_prefix(
        self, query_positions: Int[Array, "batch queries"], length: int
    ) -> Float[Array, "batch heads queries length"]:
        """The bias of `length` keys that lie right before position 0, the last of them at distance 1 from it."""
        relative = jnp.arange(-length, 0) - query_positions[..., None]
        table = self.rel_embedding[...]
        buckets = relative_position_buckets(
            relative, bidirectional=self.bidirectional, buckets=table.shape[1], max_distance=self.max_distance
        )
        return jnp.moveaxis(table[:, buckets], 0, 1)
