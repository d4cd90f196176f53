"""The one door to attention, and the masks of packed rows.

The bias [1, heads, queries, keys] and the boolean mask [batch, 1, queries, keys] stay apart: folding them would make
a [batch, heads, queries, keys] array of both, for every layer. There is no 1/sqrt(head_dim): T5's initialiser has it.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flanjax.models.config import ATTENTION_IMPLEMENTATIONS, ModelConfigError

# Finite, so that a row in which nothing may be attended gives a plain average and not NaN.
MASKED = -1e30


def segment_mask(
    query_segments: Int[Array, "batch queries"], key_segments: Int[Array, "batch keys"], *, causal: bool = False
) -> Bool[Array, "batch 1 queries keys"]:
    """True where a query may see a key: same segment, which is not padding (0), and with `causal` not after it."""
    queries, keys = query_segments[:, :, None], key_segments[:, None, :]
    allowed = (queries == keys) & (keys != 0)
    if causal:
        allowed &= jnp.tri(queries.shape[1], keys.shape[2], dtype=bool)
    return allowed[:, None]


def attention(
    q: Float[Array, "batch queries heads head_dim"],
    k: Float[Array, "batch keys heads head_dim"],
    v: Float[Array, "batch keys heads head_dim"],
    *,
    bias: Float[Array, "1 heads queries keys"] | None = None,
    mask: Bool[Array, "batch 1 queries keys"] | None = None,
    implementation: str = "xla",
) -> Float[Array, "batch queries heads head_dim"]:
    """Unscaled attention `softmax(q k^T + bias) v` over the keys that the mask allows; softmax in float32.

    Raises:
      ModelConfigError: the implementation is unknown.
    """
    if implementation not in ATTENTION_IMPLEMENTATIONS:
        names = ", ".join(ATTENTION_IMPLEMENTATIONS)
        raise ModelConfigError(f"attention implementation {implementation!r} is unknown: choose one of {names}")
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
    if bias is not None:
        scores += bias
    if mask is not None:
        scores = jnp.where(mask, scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1)
    return jnp.einsum("bhqk,bkhd->bqhd", weights.astype(v.dtype), v)
