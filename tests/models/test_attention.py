import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("masking", ["rows", "shared", None])
def test_per_head_equals_xla_with_gradients(with_bias, masking):
    q, k, v, bias = arrays(queries=6, keys=6)
    mask = {"rows": segment_mask(SEGMENTS, SEGMENTS), "shared": jnp.tri(6, dtype=bool)[None, None], None: None}[masking]

    def run(implementation):
        def loss(q, k, v, bias):
            out = attention(q, k, v, bias=bias if with_bias else None, mask=mask, implementation=implementation)
            return jnp.sum(jnp.sin(out) * jnp.arange(out.size).reshape(out.shape)), out

        return jax.grad(loss, argnums=(0, 1, 2, 3), has_aux=True)(q, k, v, bias)

    for ours, reference in zip(jax.tree.leaves(run("per_head")), jax.tree.leaves(run("xla")), strict=True):
        np.testing.assert_allclose(ours, reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("implementation", ["xla", "per_head"])
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
