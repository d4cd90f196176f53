import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flanjax.generation.batches import length_bucket
from flanjax.generation.greedy import EOS_ID, greedy
from flanjax.generation.slots import advance, read
from flanjax.models.config import Compute, T5Config
from flanjax.models.t5 import build, init_params

CONFIG = T5Config(
    vocab_size=32,
    embed_dim=16,
    num_heads=2,
    head_dim=4,
    mlp_dim=24,
    num_encoder_layers=2,
    num_decoder_layers=2,
)
INPUTS = [[5, 6, 1], [7, 1], [9, 3, 3, 8, 4, 4, 10, 11, 12, 1], [9, 9, 1], [30, 1]]


@pytest.fixture(scope="module")
def params():
    """Random, with a head that often says EOS, so that rows end at different lengths, and never padding."""
    params = init_params(CONFIG, 3)
    head = params["decoder"]["logits_dense"]["kernel"]
    params["decoder"]["logits_dense"]["kernel"] = head.at[:, EOS_ID].multiply(2.5).at[:, 0].set(0)
    return params


@functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
def padded_logits(params, tokens, shifted):
    model = build(CONFIG, Compute(), params)
    segments = (tokens > 0).astype(jnp.int32)
    return model.logits(model.decode(shifted, jnp.ones_like(shifted), model.encode(tokens, segments), segments))[0]


def forced_logits(params, inputs, targets):
    """Uncached logits [length, vocab] of one pair."""
    tokens, shifted = np.zeros((2, 1, 12), np.int32)
    tokens[0, : len(inputs)], shifted[0, 1 : len(targets)] = inputs, targets[:-1]
    return padded_logits(params, tokens, shifted)[: len(targets)]


@given(length=st.integers(1, 5000))
def test_buckets_hold_the_length_and_waste_less_than_half(length):
    bucket = length_bucket(length)
    assert bucket >= length
    assert bucket < 8 + 1.5 * length
    assert length_bucket(bucket) == bucket


def test_every_token_is_the_most_likely_one(params):
    answers = greedy(CONFIG, Compute(), params, INPUTS, 12)
    assert len({len(answer) for answer in answers}) > 1, "the rows should end at different lengths"
    for inputs, answer in zip(INPUTS, answers, strict=True):
        ended = [*answer, EOS_ID] if len(answer) < 12 else answer
        assert forced_logits(params, inputs, ended).argmax(-1).tolist() == ended
        assert EOS_ID not in answer
        assert 0 not in answer


def test_a_row_does_not_depend_on_its_neighbours(params):
    together = greedy(CONFIG, Compute(), params, INPUTS, 12)
    assert [greedy(CONFIG, Compute(), params, [row], 12)[0] for row in INPUTS] == together
    assert greedy(CONFIG, Compute(), params, INPUTS[::-1], 12, batch_rows=2)[::-1] == together


def test_the_limit_is_a_prefix_and_needs_no_new_program(params):
    longest = greedy(CONFIG, Compute(), params, INPUTS, 8)
    compiled = read._cache_size(), advance._cache_size()
    for limit in (7, 3, 1):
        assert greedy(CONFIG, Compute(), params, INPUTS, limit) == [answer[:limit] for answer in longest]
    assert greedy(CONFIG, Compute(), params, [[9, 1], *INPUTS[1:]], 8)[1:] == longest[1:]
    assert (read._cache_size(), advance._cache_size()) == compiled


def test_nothing_in_nothing_out(params):
    assert greedy(CONFIG, Compute(), params, [], 4) == []
