import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flanjax.models import blockwise
from flanjax.models.attention import attention, segment_mask
from flanjax.models.config import ModelConfigError

SEGMENTS = jnp.array([[1, 1, 1, 2, 2, 0], [1, 2, 2, 2, 0, 0], [0, 0, 0, 0, 0, 0]])


def arrays(queries=6, keys=6):
    rng = np.random.default_rng(1)

    def draw(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    return draw(3, queries, 2, 4), draw(3, keys, 2, 4), draw(3, keys, 2, 4), draw(1, 2, queries, keys)


def test_segment_mask_example():
    mask = segment_mask(SEGMENTS[:1], SEGMENTS[:1])[0, 0].astype(int).tolist()
    assert mask == [[1, 1, 1, 0, 0, 0]] * 3 + [[0, 0, 0, 1, 1, 0]] * 2 + [[0] * 6]
    causal = segment_mask(SEGMENTS[:1], SEGMENTS[:1], causal=True)[0, 0].astype(int).tolist()
    assert causal == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
        [0, 0, 0, 1, 1, 0],
        [0] * 6,
    ]


def test_reference_is_softmax_without_scale():
    q, k, v, bias = (np.asarray(x) for x in arrays())
    mask = np.asarray(segment_mask(SEGMENTS, SEGMENTS))
    scores = np.where(mask, np.einsum("bqhd,bkhd->bhqk", q, k) + bias, -np.inf)[:2]
    weights = np.exp(scores - scores.max(-1, keepdims=True, initial=-1e9))
    weights = weights / np.maximum(weights.sum(-1, keepdims=True), 1e-30)
    expected = np.einsum("bhqk,bkhd->bqhd", weights, v[:2])
    out = attention(*map(jnp.asarray, (q, k, v)), bias=jnp.asarray(bias), mask=jnp.asarray(mask))[:2]
    real = np.asarray(SEGMENTS[:2] != 0)
    np.testing.assert_allclose(np.asarray(out)[real], expected[real], atol=1e-5)


@pytest.mark.parametrize("block", [2, 256])
@pytest.mark.parametrize("masking", ["rows", "shared", None])
@pytest.mark.parametrize(("with_bias", "kv_heads", "softcap"), [(True, 2, 0.0), (False, 1, 0.0), (True, 1, 1.5)])
def test_blockwise_equals_xla_with_gradients(monkeypatch, block, masking, with_bias, kv_heads, softcap):
    monkeypatch.setattr(blockwise, "BLOCK", block)
    q, k, v, bias = arrays()
    bias = bias if with_bias else None
    rows = segment_mask(SEGMENTS, SEGMENTS)
    mask = {"rows": rows, "shared": jnp.tri(6, dtype=bool)[None, None], None: None}[masking]
    # What a query gets that sees nothing is not the same, and means nothing.
    weights = jnp.arange(q.size).reshape(q.shape) * (rows.any(axis=3)[:, 0, :, None, None] if masking == "rows" else 1)

    def run(implementation):
        def loss(q, k, v, bias):
            out = attention(q, k, v, bias=bias, mask=mask, softcap=softcap, implementation=implementation)
            return jnp.sum(jnp.sin(out) * weights), out * (weights != 0)

        return jax.grad(loss, argnums=(0, 1, 2, 3), has_aux=True)(q, k[:, :, :kv_heads], v[:, :, :kv_heads], bias)

    for ours, reference in zip(jax.tree.leaves(run("blockwise")), jax.tree.leaves(run("xla")), strict=True):
        np.testing.assert_allclose(ours, reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("queries", "keys"), [(5, 3), (3, 8), (7, 7)])
def test_blockwise_of_lengths_that_no_block_divides(monkeypatch, queries, keys):
    monkeypatch.setattr(blockwise, "BLOCK", 4)
    q, k, v, bias = arrays(queries, keys)
    mask = jnp.tri(queries, keys, dtype=bool)[None, None]
    out = [attention(q, k, v, bias=bias, mask=mask, implementation=name) for name in ("blockwise", "xla")]
    np.testing.assert_allclose(*out, atol=1e-5)


def test_pairs_of_blocks_in_which_nothing_is_seen_are_left_out(monkeypatch):
    monkeypatch.setattr(blockwise, "BLOCK", 2)
    q, k, v, _ = arrays()
    mask = segment_mask(SEGMENTS[:1], SEGMENTS[:1], causal=True)
    blocks = blockwise._Blocks.of(q[:1], k[:1])
    pairs = blocks.pairs(mask)
    # Segments are [1 1 | 1 2 | 2 0]: of the nine pairs, those below the diagonal that share a segment.
    seen = [(0, 0), (1, 0), (1, 1), (2, 1), (2, 2)]
    numbers = [tuple(int(x) for x in blocks.numbers(pair)[1:]) for pair in pairs.order[: int(pairs.active)]]
    assert numbers == seen
    # NaN in what is not computed changes nothing.
    poisoned = v.at[0, 4:].set(jnp.nan)
    out = attention(q[:1], k[:1], poisoned[:1], mask=mask, implementation="blockwise")
    assert jnp.isfinite(out[0, :4]).all()


@pytest.mark.parametrize("implementation", ["xla", "blockwise"])
def test_a_row_of_padding_is_finite(implementation):
    q, k, v, bias = arrays()
    mask = segment_mask(SEGMENTS, SEGMENTS)
    out, pull = jax.vjp(
        lambda *x: attention(*x[:3], bias=x[3], mask=mask, implementation=implementation), q, k, v, bias
    )
    assert all(jnp.isfinite(x).all() for x in (out, *pull(jnp.ones_like(out))))


def test_unknown_implementation_lists_the_known():
    with pytest.raises(ModelConfigError, match=r"'flash' is unknown.*xla"):
        attention(*arrays()[:3], implementation="flash")
