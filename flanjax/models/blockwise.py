"""Attention in blocks of queries and keys, for a CPU: a pair of blocks in which nothing is seen is never computed.

    out = blockwise(q, k, v, bias, mask, softcap)       # as `flanjax.models.attention.attention`

A packed row's mask is a band of squares, a causal one's a triangle: of the pairs of blocks that cover them, half and
more are empty, which ones is found out once the mask is there. The softmax is collected over a query's blocks, and
weights are computed again in the backward pass (Dao et al. 2022, arXiv 2205.14135), so that only the scores of one
pair exist, which a core's cache holds. Query heads that share a key head are rows of one product.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from flanjax.models.parameters import ATTENTION

# The largest block. Smaller ones leave out more of a packed row, and pay for more pairs where nothing is left out: 256
# is within a tenth of the best of 128 and 256 for rows of 512 and 1,024 with one to eight segments.
BLOCK = 256

# Finite, so that a query without a key gives zeros and not NaN; the largest score starts from half of it, so that
# weights of masked keys are zero also in blocks before the first key that is seen.
_MASKED = -1e30


class _Pairs(NamedTuple):
    """Numbers of the pairs of blocks, those that are computed first, and how many these are."""

    order: Int[Array, " pairs"]
    active: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class _Blocks:
    """How arrays are cut. Folded arrays are [batch * blocks, kv_heads, group * block, head_dim]."""

    batch: int
    heads: int
    kv_heads: int
    query_block: int
    key_block: int
    query_blocks: int  # of a row
    key_blocks: int

    @classmethod
    def of(cls, q: Array, k: Array) -> "_Blocks":
        (batch, queries, heads, _), (_, keys, kv_heads, _) = q.shape, k.shape
        query_blocks, key_blocks = (math.ceil(length / BLOCK) for length in (queries, keys))
        sizes = math.ceil(queries / query_blocks), math.ceil(keys / key_blocks)
        return cls(batch, heads, kv_heads, *sizes, query_blocks, key_blocks)

    def padded(self, x: Array, queries: int | None = None, keys: int | None = None) -> Array:
        """`x` with zeros added to these axes up to whole blocks."""
        room = [(0, 0)] * x.ndim
        if queries is not None:
            room[queries] = (0, self.query_blocks * self.query_block - x.shape[queries])
        if keys is not None:
            room[keys] = (0, self.key_blocks * self.key_block - x.shape[keys])
        return jnp.pad(x, room)

    def fold_queries(self, x: Float[Array, "batch queries heads d"]) -> Float[Array, "blocks kv_heads rows d"]:
        """Query blocks, in each the rows of all heads that share a key head."""
        return self._fold(self.padded(x, queries=1), self.query_block)

    def fold_keys(self, x: Float[Array, "batch keys kv_heads d"]) -> Float[Array, "blocks kv_heads rows d"]:
        """Key blocks, or blocks of values."""
        return self._fold(self.padded(x, keys=1), self.key_block)

    def _fold(self, x: Array, block: int) -> Array:
        x = x.reshape(self.batch, -1, block, self.kv_heads, x.shape[2] // self.kv_heads, x.shape[3])
        return x.transpose(0, 1, 3, 4, 2, 5).reshape(-1, self.kv_heads, x.shape[4] * block, x.shape[5])

    def unfold(self, x: Array, like: Array, block: int) -> Array:
        """The inverse of folding, without the padding."""
        x = x.reshape(self.batch, -1, self.kv_heads, x.shape[2] // block, block, x.shape[3])
        x = x.transpose(0, 1, 4, 2, 3, 5).reshape(self.batch, -1, like.shape[2], x.shape[5])
        return x[:, : like.shape[1]].astype(like.dtype)

    def pairs(self, mask: Bool[Array, "batch 1 queries keys"]) -> _Pairs:
        """The pairs in which a query sees a key, in order, before the others."""
        blocks = mask.reshape(-1, self.query_blocks, self.query_block, self.key_blocks, self.key_block)
        seen = blocks.any(axis=(2, 4)).reshape(-1)
        return _Pairs(jnp.argsort(~seen, stable=True).astype(jnp.int32), seen.sum(dtype=jnp.int32))

    def numbers(self, pair: Array) -> tuple[Array, Array, Array]:
        """Row, block of queries and block of keys of a pair."""
        row, rest = jnp.divmod(pair, self.query_blocks * self.key_blocks)
        return row, *jnp.divmod(rest, self.key_blocks)

    def corner(self, queries: Array, keys: Array) -> tuple[Array, Array]:
        """Where the pair begins in a [queries, keys] array."""
        return queries * self.query_block, keys * self.key_block


class _Operands(NamedTuple):
    """Folded queries, keys and values; bias and mask, padded to whole blocks; what is computed."""

    q: Float[Array, "query_blocks kv_heads group_rows head_dim"]
    k: Float[Array, "key_blocks kv_heads rows head_dim"]
    v: Float[Array, "key_blocks kv_heads rows head_dim"]
    bias: Float[Array, "1 heads queries keys"] | None
    mask: Bool[Array, "batch 1 queries keys"]
    pairs: _Pairs

    @classmethod
    def of(cls, blocks: _Blocks, q: Array, k: Array, v: Array, bias: Array | None, mask: Array | None) -> "_Operands":
        if mask is None:
            mask = jnp.ones((1, 1, q.shape[1], k.shape[1]), bool)
        mask = blocks.padded(jnp.broadcast_to(mask, (blocks.batch, *mask.shape[1:])), 2, 3)
        bias = None if bias is None else blocks.padded(bias, 2, 3)
        folded = blocks.fold_queries(q), blocks.fold_keys(k), blocks.fold_keys(v)
        return cls(*folded, bias, mask, blocks.pairs(mask))


class _Pair(NamedTuple):
    """A pair of blocks: where it lies in the folded arrays and in a [queries, keys] one, and its masked scores."""

    queries: Array
    keys: Array
    corner: tuple[Array, Array]
    scores: Float[Array, "kv_heads queries keys"]
    slope: Float[Array, "kv_heads queries keys"] | None  # of the soft cap


def _pair(number: Array, blocks: _Blocks, x: _Operands, softcap: float) -> _Pair:
    row, i, j = blocks.numbers(x.pairs.order[number])
    queries, keys, corner = row * blocks.query_blocks + i, row * blocks.key_blocks + j, blocks.corner(i, j)
    size, zero = (blocks.query_block, blocks.key_block), jnp.zeros_like(row)
    scores = jnp.einsum("hqd,hkd->hqk", x.q[queries], x.k[keys], preferred_element_type=jnp.float32)
    slope = None
    if softcap:
        bounded = jnp.tanh(scores / softcap)
        scores, slope = softcap * bounded, 1 - jnp.square(bounded)
    if x.bias is not None:
        bias = jax.lax.dynamic_slice(x.bias, (zero, zero, *corner), (1, blocks.heads, *size))
        scores = scores + bias.reshape(scores.shape)
    mask = jax.lax.dynamic_slice(x.mask, (row, zero, *corner), (1, 1, *size))
    mask = jnp.broadcast_to(mask, (blocks.kv_heads, blocks.heads // blocks.kv_heads, *size)).reshape(scores.shape)
    return _Pair(queries, keys, corner, jnp.where(mask, scores, _MASKED), slope)


def _for_each(count: Array, body: Callable[[Array, Any], Any], state: Any) -> Any:
    """`state = body(i, state)` for i below count."""
    # Not a scan: differentiating the scan over layers around it would split this loop, and keep the bias and the mask
    # of every pair as arrays of their own.
    step = lambda loop: (loop[0] + 1, body(*loop))  # noqa: E731
    return jax.lax.while_loop(lambda loop: loop[0] < count, step, (jnp.int32(0), state))[1]


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def blockwise(
    q: Float[Array, "batch queries heads head_dim"],
    k: Float[Array, "batch keys kv_heads head_dim"],
    v: Float[Array, "batch keys kv_heads head_dim"],
    bias: Float[Array, "1 heads queries keys"] | None,
    mask: Bool[Array, "#batch 1 queries keys"] | None,
    softcap: float,
) -> Float[Array, "batch queries heads head_dim"]:
    """`softmax(softcap(q k^T) + bias) v` over the keys that the mask allows; a query that sees no key gets zeros."""
    return _forward(q, k, v, bias, mask, softcap)[0]


def _forward(
    q: Array, k: Array, v: Array, bias: Array | None, mask: Array | None, softcap: float
) -> tuple[Array, tuple]:
    blocks = _Blocks.of(q, k)
    x = _Operands.of(blocks, q, k, v, bias, mask)

    def body(number: Array, sums: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        out, total, largest = sums
        pair = _pair(number, blocks, x, softcap)
        at = pair.queries
        new = jnp.maximum(largest[at], pair.scores.max(axis=-1))
        weights, fade = jnp.exp(pair.scores - new[..., None]), jnp.exp(largest[at] - new)
        added = jnp.einsum("hqk,hkd->hqd", weights.astype(v.dtype), x.v[pair.keys], preferred_element_type=jnp.float32)
        out = out.at[at].set(out[at] * fade[..., None] + added)
        return out, total.at[at].set(total[at] * fade + weights.sum(axis=-1)), largest.at[at].set(new)

    shape = x.q.shape
    start = jnp.zeros(shape, jnp.float32), jnp.zeros(shape[:-1]), jnp.full(shape[:-1], _MASKED / 2)
    out, total, largest = _for_each(x.pairs.active, body, start)
    total = jnp.where(total > 0, total, 1)
    result = blocks.unfold(out / total[..., None], q, blocks.query_block)
    kept = checkpoint_name((result, largest + jnp.log(total)), ATTENTION)
    return kept[0], (q, k, v, bias, mask, x.pairs, *kept)


def _backward(softcap: float, saved: tuple, g: Array) -> tuple:
    q, k, v, bias, mask, pairs, result, log_total = saved
    blocks = _Blocks.of(q, k)
    x = _Operands.of(blocks, q, k, v, bias, mask)._replace(pairs=pairs)
    g_folded = blocks.fold_queries(g)
    along = (g.astype(jnp.float32) * result.astype(jnp.float32)).sum(axis=-1, keepdims=True)
    along = blocks.fold_queries(along)

    def body(number: Array, gradients: tuple) -> tuple:
        """The gradients with what one pair of blocks adds to them."""
        dq, dk, dv, dbias = gradients
        pair = _pair(number, blocks, x, softcap)
        at, to = pair.queries, pair.keys
        product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
        weights = jnp.exp(pair.scores - log_total[at][..., None])
        scores = weights * (product("hqd,hkd->hqk", g_folded[at], x.v[to]) - along[at])
        if dbias is not None:
            corner = (jnp.zeros_like(at), jnp.zeros_like(at), *pair.corner)
            added = scores.reshape(1, blocks.heads, blocks.query_block, blocks.key_block)
            added = added + jax.lax.dynamic_slice(dbias, corner, added.shape)
            dbias = jax.lax.dynamic_update_slice(dbias, added, corner)
        if pair.slope is not None:
            scores = scores * pair.slope
        scores, weights = scores.astype(q.dtype), weights.astype(q.dtype)
        dq = dq.at[at].add(product("hqk,hkd->hqd", scores, x.k[to]))
        # The narrow operand first: as scores^T q these two products run at half the rate on XLA:CPU.
        dk = dk.at[to].add(product("hqd,hqk->hdk", x.q[at], scores).swapaxes(1, 2))
        dv = dv.at[to].add(product("hqd,hqk->hdk", g_folded[at], weights).swapaxes(1, 2))
        return dq, dk, dv, dbias

    start = jax.tree.map(lambda a: jnp.zeros(a.shape, jnp.float32), (x.q, x.k, x.v, x.bias))
    dq, dk, dv, dbias = _for_each(pairs.active, body, start)
    if bias is not None:
        dbias = dbias[:, :, : bias.shape[2], : bias.shape[3]].astype(bias.dtype)
    of_keys = functools.partial(blocks.unfold, block=blocks.key_block)
    return blocks.unfold(dq, q, blocks.query_block), of_keys(dk, k), of_keys(dv, v), dbias, None


blockwise.defvjp(_forward, _backward)
