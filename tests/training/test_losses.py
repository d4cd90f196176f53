"""Chunked cross-entropy: equal to the plain one, in values and gradients, however it is cut."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flanjax.models.head import Head
from flanjax.training.losses import LossConfig, LossConfigError, cross_entropy

EMBED, VOCAB = 16, 50


HEADS = {
    "matrix": {},
    "bias": {"bias": True},
    "cap": {"softcap": 1.5},
    "both": {"bias": True, "softcap": 1.5},
    "tied": {"tied": True, "softcap": 1.5},
}


def problem(tokens=24, seed=0, dtype=np.float32, *, bias=False, softcap=0.0, tied=False):
    rng = np.random.default_rng(seed)
    hidden = jnp.asarray(rng.normal(size=(tokens, EMBED)), dtype)
    kernel = jnp.asarray(rng.normal(size=(EMBED, VOCAB)) * 0.5, jnp.float32)
    kernel = kernel.T if tied else kernel
    head = Head(kernel, jnp.asarray(rng.normal(size=VOCAB), jnp.float32) if bias else None, softcap, tied)
    targets = jnp.asarray(rng.integers(0, VOCAB, tokens), jnp.int32)
    weights = jnp.asarray(rng.integers(0, 2, tokens), jnp.int32)
    return hidden, head, targets, weights


def plain(hidden, head, targets, weights, config):
    """The definition, over one float32 array of all logits."""
    logits = hidden @ (head.kernel.T if head.tied else head.kernel)
    logits = logits if head.bias is None else logits + head.bias
    logits = head.softcap * jnp.tanh(logits / head.softcap) if head.softcap else logits
    on = 1 - config.label_smoothing
    off = config.label_smoothing / (VOCAB - 1)
    soft = jax.nn.one_hot(targets, VOCAB) * (on - off) + off
    entropy = -(on * math.log(on) + (VOCAB - 1) * off * math.log(off or 1))
    log_z = jax.nn.logsumexp(logits, axis=-1)
    z_loss = config.z_loss * log_z**2
    losses = optax.softmax_cross_entropy(logits, soft) - entropy + z_loss
    return jnp.sum(losses * weights), jnp.sum(z_loss * weights)


def value_and_gradients(function, hidden, head):
    return jax.jit(jax.value_and_grad(function, argnums=(0, 1)))(hidden, head)


@settings(max_examples=10, deadline=None)
@given(
    tokens=st.integers(1, 30),
    chunk=st.integers(1, 32),
    z_loss=st.sampled_from([0.0, 1e-4, 0.1]),
    smoothing=st.sampled_from([0.0, 0.1]),
    parts=st.sampled_from(sorted(HEADS)),
)
def test_any_chunk_size_and_head_equal_the_definition(tokens, chunk, z_loss, smoothing, parts):
    hidden, head, targets, weights = problem(tokens, **HEADS[parts])
    config = LossConfig(z_loss=z_loss, label_smoothing=smoothing, chunk_tokens=chunk)
    value, gradients = value_and_gradients(
        lambda h, w: cross_entropy(h, w, targets, weights, config).loss, hidden, head
    )
    expected, expected_gradients = value_and_gradients(
        lambda h, w: plain(h, w, targets, weights, config)[0], hidden, head
    )
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), gradients, expected_gradients)


def test_an_embedding_as_head_is_not_copied():
    embedding = jax.ShapeDtypeStruct((1024, EMBED), jnp.float32)
    hidden, _, targets, weights = problem(tokens=16)
    config = LossConfig(chunk_tokens=4)

    def temporaries(head):
        gradient = jax.grad(lambda w, h: cross_entropy(h, head(w), targets, weights, config).loss, argnums=(0, 1))
        return jax.jit(gradient).lower(embedding, hidden).compile().memory_analysis().temp_size_in_bytes

    turned = temporaries(lambda w: Head(w.T))
    assert temporaries(lambda w: Head(w, tied=True)) <= turned - 1024 * EMBED * 4


def test_without_extras_it_is_optax_cross_entropy():
    hidden, head, targets, weights = problem()
    sums = cross_entropy(hidden, head, targets, weights, LossConfig(z_loss=0.0, chunk_tokens=7))
    losses = optax.softmax_cross_entropy_with_integer_labels(hidden @ head.kernel, targets)
    np.testing.assert_allclose(sums.loss, jnp.sum(losses * weights), rtol=1e-5)
    assert sums.z_loss == 0


def test_sums_of_z_loss_correct_and_tokens():
    hidden, head, targets, weights = problem()
    config = LossConfig(z_loss=0.01, chunk_tokens=5)
    sums = cross_entropy(hidden, head, targets, weights, config)
    np.testing.assert_allclose(sums.z_loss, plain(hidden, head, targets, weights, config)[1], rtol=1e-5)
    assert sums.tokens == weights.sum()
    assert sums.correct == jnp.sum((jnp.argmax(hidden @ head.kernel, axis=-1) == targets) * weights)


def test_a_perfect_prediction_under_smoothing_costs_nothing():
    smoothing, vocab = 0.2, 8
    probabilities = np.full(vocab, smoothing / (vocab - 1), np.float32)
    probabilities[3] = 1 - smoothing
    head = Head(jnp.log(probabilities)[None])
    config = LossConfig(z_loss=0.0, label_smoothing=smoothing)
    sums = cross_entropy(jnp.ones((1, 1)), head, jnp.array([3]), jnp.ones(1), config)
    np.testing.assert_allclose(sums.loss, 0, atol=1e-6)


def test_the_gradient_scales_with_its_cotangent():
    hidden, head, targets, weights = problem(bias=True, softcap=2.0)
    config = LossConfig()

    def loss(hidden, head, scale):
        return scale * cross_entropy(hidden, head, targets, weights, config).loss

    once = jax.grad(loss, argnums=(0, 1))(hidden, head, 1.0)
    thrice = jax.grad(loss, argnums=(0, 1))(hidden, head, 3.0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(3 * a, b, rtol=1e-6), once, thrice)


def test_only_the_loss_carries_a_gradient():
    hidden, head, targets, weights = problem()
    gradient = jax.grad(lambda h: sum(cross_entropy(h, head, targets, weights, LossConfig())[1:]))(hidden)
    assert not gradient.any()


@pytest.mark.parametrize("shards", [2, 4, 8])
def test_shards_change_the_order_of_the_sum_only(shards):
    hidden, head, targets, weights = problem(tokens=48, bias=True, softcap=2.0)
    config = LossConfig(chunk_tokens=3)

    def loss(hidden, head, shards):
        return cross_entropy(hidden, head, targets, weights, config, shards=shards).loss

    value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(hidden, head, shards)
    expected, expected_gradients = jax.value_and_grad(loss, argnums=(0, 1))(hidden, head, 1)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), gradients, expected_gradients)


def test_evaluation_computes_one_product_and_training_three():
    hidden, head, targets, weights = problem()

    def loss(hidden, head):
        return cross_entropy(hidden, head, targets, weights, LossConfig()).loss

    def products(function):
        return str(jax.make_jaxpr(function)(hidden, head)).count("dot_general")

    assert products(loss) == 1
    assert products(jax.grad(loss, argnums=(0, 1))) == 3


def test_logits_of_the_whole_batch_never_exist():
    hidden, head, targets, weights = problem(tokens=4096)
    config = LossConfig(chunk_tokens=64)
    gradient = jax.jit(jax.grad(lambda h, w: cross_entropy(h, w, targets, weights, config).loss, argnums=(0, 1)))
    memory = gradient.lower(hidden, head).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4096 * VOCAB * 4


@pytest.mark.parametrize("parts", HEADS)
def test_bfloat16_hidden_gives_bfloat16_and_float32_gradients(parts):
    hidden, head, targets, weights = problem(dtype=jnp.bfloat16, **HEADS[parts])
    d_hidden, d_head = jax.grad(lambda h, w: cross_entropy(h, w, targets, weights, LossConfig()).loss, argnums=(0, 1))(
        hidden, head
    )
    assert d_hidden.dtype == jnp.bfloat16
    assert all(d.dtype == jnp.float32 for d in jax.tree.leaves(d_head))
    exact = jax.grad(lambda h, w: plain(h, w, targets, weights, LossConfig())[0], argnums=1)(
        hidden.astype(jnp.float32), head
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=0.05), d_head, exact)


def test_padding_tokens_do_not_matter():
    hidden, head, targets, weights = problem()
    other = jnp.where(weights == 0, (targets + 7) % VOCAB, targets)
    a = cross_entropy(hidden, head, targets, weights, LossConfig())
    b = cross_entropy(hidden, head, other, weights, LossConfig())
    assert a == b


@pytest.mark.parametrize("bad", [{"z_loss": -1.0}, {"label_smoothing": 1.0}, {"chunk_tokens": 0}])
def test_values_outside_their_range_are_named(bad):
    with pytest.raises(LossConfigError, match=next(iter(bad))):
        LossConfig(**bad)
