"""The one door to attention, and the masks of packed rows.

The bias, [1, heads, queries, keys] or of each row's keys [batch, heads, 1, keys], and the boolean mask
[batch, 1, queries, keys] stay apart: folding them would make a [batch, heads, queries, keys] array of both, for every
layer. There is no 1/sqrt(head_dim): T5's initialiser has it.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

from flanjax.models.blockwise import blockwise
from flanjax.models.config import ATTENTION_IMPLEMENTATIONS, ModelConfigError
from flanjax.models.parameters import Apart

# Finite, so that a row in which nothing may be attended gives a plain average and not NaN.
MASKED = -1e30


class PrefixKeys(NamedTuple):
    """Learnt keys and values that every query may see beside those of its own segment, as in prefix tuning."""

    keys: Float[Array, "prefix kv_heads head_dim"]
    values: Float[Array, "batch prefix kv_heads head_dim"]  # of each row, for dropout on them
    bias: Float[Array, "#batch #heads #queries prefix"] | None


class CachedKeys(NamedTuple):
    """Keys and values that one query of each row may see, heads before positions: so a head's keys lie together."""

    keys: Float[Array, "batch kv_heads length head_dim"]
    values: Float[Array, "batch kv_heads length head_dim"]
    bias: Float[Array, "#batch #heads length"] | None = None
    mask: Bool[Array, "#batch length"] | None = None


def segment_mask(
    query_segments: Int[Array, "batch queries"],
    key_segments: Int[Array, "batch keys"],
    *,
    causal: bool = False,
    window: int = 0,
    bidirectional: Num[Array, "batch keys"] | None = None,
    trunk: Bool[Array, "batch keys"] | None = None,
) -> Bool[Array, "batch 1 queries keys"]:
    """True where a query may see a key: same segment, which is not padding (0), and with `causal` not after it.

    A `window` lets a query see that many keys at most, itself the last of them. `bidirectional` is 1 on the tokens of
    a prefix, which see each other whatever their order (Raffel et al. 2020, prefix LM). `trunk` is True on keys that
    the other segments of their row see too.
    """
    queries, keys = query_segments[:, :, None], key_segments[:, None, :]
    allowed = ((queries == keys) if trunk is None else (queries == keys) | trunk[:, None, :]) & (keys != 0)
    if causal:
        earlier = jnp.tri(queries.shape[1], keys.shape[2], dtype=bool)
        if bidirectional is not None:
            prefix = bidirectional != 0
            earlier = earlier | (prefix[:, :, None] & prefix[:, None, :])
        allowed &= earlier
    if window:
        allowed &= ~jnp.tri(queries.shape[1], keys.shape[2], -window, dtype=bool)
    return allowed[:, None]


def attention(
    q: Float[Array, "batch queries heads head_dim"],
    k: Float[Array, "batch keys kv_heads head_dim"],
    v: Float[Array, "batch keys kv_heads head_dim"],
    *,
    bias: Float[Array, "#batch heads #queries keys"] | None = None,
    mask: Bool[Array, "batch 1 queries keys"] | None = None,
    prefix: PrefixKeys | None = None,
    softcap: float = 0.0,
    implementation: str = "xla",
) -> Float[Array, "batch queries heads head_dim"]:
    """Unscaled attention `softmax(q k^T + bias) v` over the keys that the mask allows; softmax in float32.

    The softmax is over those keys and the prefix's, if there is one; the mask and the bias are of the others alone.
    Fewer key heads than queries' serve neighbouring query heads alike (Ainslie et al. 2023, grouped queries). With a
    `softcap` the products q k^T become `softcap * tanh(q k^T / softcap)`.

    Implementations:
      xla: plain array operations, the reference.
      blockwise: blocks of queries and keys, those left out that see nothing (`flanjax.models.blockwise`). Its scores
        stay in a CPU's cache; no [batch, heads, queries, keys] array exists.
      auto: `blockwise` on a single CPU device, `xla` otherwise, with a prefix, and with a bias of each row.

    A query that sees no key at all gets something finite, which is not the same in both.

    Raises:
      ModelConfigError: the implementation is unknown, or `blockwise` with a prefix or a bias of each row.
    """
    if implementation not in ATTENTION_IMPLEMENTATIONS:
        names = ", ".join(ATTENTION_IMPLEMENTATIONS)
        raise ModelConfigError(f"attention implementation {implementation!r} is unknown: choose one of {names}")
    of_rows = bias is not None and (len(bias) > 1 or bias.shape[2] != q.shape[1])
    if implementation == "auto":
        # A loop over blocks would gather what a mesh has spread, and gains nothing for single queries.
        alone = _on_one_cpu() and q.shape[1] > 1 and prefix is None and not of_rows
        implementation = "blockwise" if alone else "xla"
    if implementation == "blockwise":
        if prefix is not None:
            raise ModelConfigError("attention 'blockwise' has no place for a prefix: use 'auto' or 'xla'")
        if of_rows:
            raise ModelConfigError(
                "attention 'blockwise' takes one bias for all rows, and rounded ALiBi has one of each: use 'auto' or "
                "'xla'"
            )
        return blockwise(q, k, v, bias, mask, softcap)
    if k.shape[2] != q.shape[2]:
        group = q.shape[2] // k.shape[2]
        k, v = (jnp.repeat(x, group, axis=2) for x in (k, v))
        if prefix is not None:
            keys, values = (jnp.repeat(x, group, axis=-2) for x in (prefix.keys, prefix.values))
            prefix = PrefixKeys(keys, values, prefix.bias)
    scores = _scores("bqhd,bkhd->bhqk", q, k, bias, mask, softcap)
    if prefix is None:
        return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores, axis=-1).astype(v.dtype), v)
    before = _scores("bqhd,phd->bhqp", q, prefix.keys, prefix.bias, None, softcap)
    weights = jax.nn.softmax(jnp.concatenate([before, scores], axis=-1), axis=-1).astype(v.dtype)
    before, weights = jnp.split(weights, [len(prefix.keys)], axis=-1)
    of_prefix = jnp.einsum("bhqp,bphd->bqhd", before, prefix.values)
    return of_prefix + jnp.einsum("bhqk,bkhd->bqhd", weights, v)


def written(
    cache: Float[Array, "layers batch kv_heads length head_dim"] | Apart,
    new: Float[Array, "layers batch kv_heads 1 head_dim"] | Apart,
    position: Int[Array, " batch"],
) -> Float[Array, "layers batch kv_heads length head_dim"] | Apart:
    """The cache with each row's new keys or values at its position, which lies inside it."""
    if isinstance(cache, Apart):
        return Apart(_written(old[None], one[None], position)[0] for old, one in zip(cache, new, strict=True))
    return _written(cache, jnp.asarray(new), position)


def _written(cache: Array, new: Array, position: Array) -> Array:
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and mesh.size > 1:
        write = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=2)
        return jax.vmap(write, (1, 1, 0), 1)(cache, new, position)
    # As lines of one matrix: for any other scatter XLA:CPU turns the whole cache, so that what is indexed comes first.
    layers, batch, heads, length, head_dim = cache.shape
    lines = jnp.arange(layers * batch * heads).reshape(layers, batch, heads) * length + position[:, None]
    flat = cache.reshape(-1, head_dim).at[lines.reshape(-1)]
    return flat.set(new.reshape(-1, head_dim), unique_indices=True, mode="promise_in_bounds").reshape(cache.shape)


def attention_of_one(
    q: Float[Array, "batch heads head_dim"], among: Sequence[CachedKeys], *, softcap: float = 0.0
) -> Float[Array, "batch heads head_dim"]:
    """`attention` of one query a row, over all of these keys together: the step of a decoding with a cache.

    A query's own key is a part beside the cache, which so is only read: writing it there first would copy the cache.
    """
    grouped = q.reshape(len(q), among[0].keys.shape[1], -1, q.shape[-1])
    parts = []
    for keys, _, bias, mask in among:
        scores = jnp.einsum("bkgd,bktd->bkgt", grouped, keys, preferred_element_type=jnp.float32)
        scores = scores.reshape(*q.shape[:2], -1)
        if softcap:
            scores = softcap * jnp.tanh(scores / softcap)
        if bias is not None:
            scores += bias
        parts.append(scores if mask is None else jnp.where(mask[:, None], scores, MASKED))
    weights = jax.nn.softmax(jnp.concatenate(parts, axis=-1), axis=-1).astype(q.dtype)
    weights = weights.reshape(*grouped.shape[:3], -1)
    ends = np.cumsum([part.keys.shape[2] for part in among])[:-1].tolist()
    found = [
        jnp.einsum("bkgt,bktd->bkgd", weight, part.values)
        for weight, part in zip(jnp.split(weights, ends, axis=-1), among, strict=True)
    ]
    return functools.reduce(jnp.add, found).reshape(q.shape)


def _on_one_cpu() -> bool:
    mesh = jax.sharding.get_abstract_mesh()
    return jax.default_backend() == "cpu" and (mesh.empty or mesh.size == 1)


def _scores(product: str, q: Array, k: Array, bias: Array | None, mask: Array | None, softcap: float = 0.0) -> Array:
    scores = jnp.einsum(product, q, k, preferred_element_type=jnp.float32)
    if softcap:
        scores = softcap * jnp.tanh(scores / softcap)
    if bias is not None:
        scores += bias
    if mask is not None:
        scores = jnp.where(mask, scores, MASKED)
    return scores
