"""Where a token stands: T5's relative-position bias, ALiBi's, and rotary angles.

T5's bias is a small table per stack, looked up by the bucketed distance of key and query; ALiBi's grows with the
distance by a slope of each head. A bias is computed once per stack and handed to every layer as an array
[1, heads, queries, keys]. Distances count rows of the packed sequence: a segment is contiguous, so inside it they
equal the distances of the unpacked example. Where ALiBi is rounded the bias follows from a key's position in its
segment, [batch, heads, 1, keys]. Rotary positions turn queries and keys by angles instead, which are computed once per
stack too.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from flanjax.models.config import T5Config
from flanjax.models.decoder_config import DecoderConfig, Rotary
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
        return self.of_relative(key_positions[None, :] - query_positions[:, None])[None]

    def of_prefix(
        self, query_positions: Int[Array, "batch queries"], length: int
    ) -> Float[Array, "batch heads queries length"]:
        """The bias of `length` keys that lie right before position 0, the last of them at distance 1 from it."""
        return jnp.moveaxis(self.of_relative(jnp.arange(-length, 0) - query_positions[..., None]), 0, 1)

    def of_relative(self, relative_position: Int[Array, "*shape"]) -> Float[Array, "heads *shape"]:
        """The bias of keys at these distances from their queries, negative for earlier ones."""
        table = self.rel_embedding[...]
        buckets = relative_position_buckets(
            relative_position, bidirectional=self.bidirectional, buckets=table.shape[1], max_distance=self.max_distance
        )
        return table[:, buckets]


def alibi_slopes(num_heads: int) -> np.ndarray:
    """What each head's scores lose for every token of distance (Press et al. 2022): 2^(-8/n), 2^(-16/n), ...

    Where n, the number of heads, is no power of 2: the slopes of the next lower power, then every other one of the
    next higher.
    """

    def geometric(count: int) -> np.ndarray:
        return 2.0 ** (-8.0 / count * np.arange(1, count + 1))

    lower = 1 << (num_heads.bit_length() - 1)
    return np.concatenate([geometric(lower), geometric(2 * lower)[::2]])[:num_heads].astype(np.float32)


def _per_head(config: DecoderConfig) -> Float[Array, "1 heads 1 1"]:
    return jnp.asarray(alibi_slopes(config.num_heads) * np.float32(config.alibi_scale))[None, :, None, None]


def alibi_bias(
    query_positions: Int[Array, " queries"], key_positions: Int[Array, " keys"], config: DecoderConfig
) -> Float[Array, "1 heads queries keys"]:
    """Minus slope times distance; a key after its query is masked anyway."""
    distance = (query_positions[:, None] - key_positions[None, :]).astype(jnp.float32)
    return -_per_head(config) * distance


def alibi_bias_of_first(
    query_positions: Int[Array, "batch queries"], length: int, config: DecoderConfig
) -> Float[Array, "batch heads queries length"]:
    """The bias of the `length` keys at the positions 0, 1, ... for queries at these positions."""
    distance = (query_positions[:, None, :, None] - jnp.arange(length)).astype(jnp.float32)
    return -_per_head(config) * distance


def rounded_alibi_bias(
    key_positions: Int[Array, "batch keys"], config: DecoderConfig
) -> Float[Array, "batch heads 1 keys"]:
    """The bias of keys at these positions for every query: slope times position, both and their product in bfloat16.

    It is the bias by distance but for the rounding and for slope times query position, which is the same for all keys
    of a query and so nothing to the softmax.
    """
    # Not a cast there and back, which XLA may leave out.
    rounded = functools.partial(jax.lax.reduce_precision, exponent_bits=8, mantissa_bits=7)
    slopes = jnp.asarray(alibi_slopes(config.num_heads).astype(jnp.bfloat16).astype(np.float32))
    positions = rounded(key_positions.astype(jnp.float32))
    return config.alibi_scale * rounded(slopes[None, :, None, None] * positions[:, None, None])


class Angles(NamedTuple):
    """Cosine and sine of what each position turns each pair of numbers by; float32."""

    cos: Float[Array, "batch length pairs"]
    sin: Float[Array, "batch length pairs"]


def _yarn_ramp(rotary: Rotary, dim: int) -> np.ndarray:
    """How far each pair is divided: 0 for those that turn fast over the original length, 1 for the slow ones."""

    def dimension(turns: float) -> float:
        return dim * math.log(rotary.original_max_positions / (turns * 2 * math.pi)) / (2 * math.log(rotary.theta))

    low, high = dimension(rotary.beta_fast), dimension(rotary.beta_slow)
    if rotary.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    # As published: a ramp of no length is a step.
    width = high - low if high != low else 0.001
    return np.clip((np.arange(dim // 2, dtype=np.float32) - low) / np.float32(width), 0, 1)


def rotary_frequencies(rotary: Rotary, dim: int) -> np.ndarray:
    """Radians a position for each pair, without what depends on the length of the text."""
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    frequencies = (1 / np.float32(rotary.theta) ** exponents).astype(np.float32)
    if rotary.scaling == "linear":
        return frequencies / np.float32(rotary.factor)
    if rotary.scaling == "llama3":
        turns = rotary.original_max_positions * frequencies / (2 * math.pi)
        kept = (turns - rotary.low_freq_factor) / (rotary.high_freq_factor - rotary.low_freq_factor)
        kept = np.clip(kept, 0, 1).astype(np.float32)
        return frequencies * (kept + (1 - kept) / np.float32(rotary.factor))
    if rotary.scaling == "yarn":
        divided = _yarn_ramp(rotary, dim)
        return frequencies * (1 - divided) + frequencies / np.float32(rotary.factor) * divided
    return frequencies


def rotary_angles(
    config: DecoderConfig, positions: Int[Array, "batch length"], text_lengths: Int[Array, "#batch #length"]
) -> Angles:
    """The angles of each position in its text.

    `text_lengths` is how long the text of each position is; only `dynamic` scaling depends on it.
    """
    rotary, dim = config.rotary, config.rotary_dim
    frequencies = jnp.asarray(rotary_frequencies(rotary, dim))
    if rotary.scaling == "dynamic":
        lengths = jnp.maximum(text_lengths, rotary.original_max_positions).astype(jnp.float32)
        growth = rotary.factor * lengths / rotary.original_max_positions - (rotary.factor - 1)
        exponents = jnp.arange(0, dim, 2, dtype=jnp.float32) / (dim - 2)
        frequencies = frequencies * growth[..., None] ** -exponents
    angles = positions[..., None].astype(jnp.float32) * frequencies
    scale = 1.0
    if rotary.scaling == "yarn":
        derived = 0.1 * math.log(rotary.factor) + 1
        scale = derived if rotary.attention_factor is None else rotary.attention_factor
    return Angles(jnp.cos(angles) * scale, jnp.sin(angles) * scale)


def rotate(
    x: Float[Array, "batch length heads head_dim"], angles: Angles, *, interleaved: bool = False
) -> Float[Array, "batch length heads head_dim"]:
    """`x` with the first numbers of every head turned, in float32; `Rotary.interleaved` says which are a pair."""
    pairs = angles.cos.shape[-1]
    cos, sin = angles.cos[:, :, None], angles.sin[:, :, None]
    rotated, rest = jnp.split(x, [2 * pairs], axis=-1)
    halves = (rotated[..., ::2], rotated[..., 1::2]) if interleaved else jnp.split(rotated, 2, axis=-1)
    first, second = (half.astype(jnp.float32) for half in halves)
    turned = [half.astype(x.dtype) for half in (first * cos - second * sin, second * cos + first * sin)]
    if interleaved:
        turned = [jnp.stack(turned, axis=-1).reshape(rotated.shape)]
    return jnp.concatenate([*turned, rest], axis=-1)
