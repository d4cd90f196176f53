"""Processed logits are those of transformers, and draws follow the probabilities, each row's its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flanjax.generation.decoding import DecodingConfig, DecodingError
from flanjax.generation.sampling import (
    Processors,
    choose,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalize_repetition,
    row_keys,
    row_number,
    sample_numbers,
)

VOCAB = 50


def random_logits(seed):
    return np.random.default_rng(seed).normal(scale=3, size=(6, VOCAB)).astype(np.float32)


@pytest.fixture(scope="module")
def theirs():
    return pytest.importorskip("transformers").generation.logits_process


def assert_as_transformers(ours, processor, logits, ids=((),) * 6):
    import torch

    wanted = processor(torch.tensor(np.array(ids, int)), torch.tensor(logits)).numpy()
    np.testing.assert_array_equal(np.isneginf(ours), np.isneginf(wanted))
    np.testing.assert_allclose(ours, wanted, rtol=1e-6)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), k=st.integers(1, 60), p=st.floats(0.05, 0.99), penalty=st.floats(0.3, 4))
def test_each_processor_is_that_of_transformers(theirs, seed, k, p, penalty):
    logits = random_logits(seed)
    assert_as_transformers(keep_top_k(jnp.array(logits), np.array([k])), theirs.TopKLogitsWarper(k), logits)
    assert_as_transformers(keep_top_p(jnp.array(logits), np.float32(p)), theirs.TopPLogitsWarper(p), logits)
    assert_as_transformers(keep_min_p(jnp.array(logits), np.float32(p)), theirs.MinPLogitsWarper(p), logits)
    ids = np.random.default_rng(seed).integers(0, VOCAB, (6, 9))
    seen = np.zeros((6, VOCAB), bool)
    seen[np.arange(6)[:, None], ids] = True
    ours = penalize_repetition(jnp.array(logits), seen, penalty)
    assert_as_transformers(ours, theirs.RepetitionPenaltyLogitsProcessor(penalty), logits, ids)


def test_all_of_them_in_the_order_of_transformers(theirs):
    logits, ids = random_logits(3), np.random.default_rng(3).integers(0, VOCAB, (6, 9))
    seen = np.zeros((6, VOCAB), bool)
    seen[np.arange(6)[:, None], ids] = True
    decoding = DecodingConfig(temperature=1.7, top_k=20, top_p=0.9, min_p=0.05, repetition_penalty=1.3)
    chain = theirs.LogitsProcessorList(
        [
            theirs.RepetitionPenaltyLogitsProcessor(1.3),
            theirs.TemperatureLogitsWarper(1.7),
            theirs.TopKLogitsWarper(20),
            theirs.TopPLogitsWarper(0.9),
            theirs.MinPLogitsWarper(0.05),
        ]
    )
    ours = Processors.of([decoding])(jnp.array(logits), seen)
    assert_as_transformers(ours, chain, logits, ids)
    assert 1 < np.isfinite(ours).sum(axis=1).min() < 20
    assert (Processors.of([DecodingConfig()])(jnp.array(logits), None) == logits).all()


def test_a_row_is_processed_by_its_own_values_and_no_others():
    logits, seen = random_logits(4), np.random.default_rng(4).random((6, VOCAB)) < 0.2
    rows = [
        DecodingConfig(),
        DecodingConfig(temperature=0.3, top_k=3),
        DecodingConfig(temperature=2, top_p=0.5),
        DecodingConfig(temperature=1, min_p=0.3),
        DecodingConfig(repetition_penalty=3),
        DecodingConfig(temperature=1.7, top_k=20, top_p=0.9, min_p=0.05, repetition_penalty=1.3),
    ]
    together = Processors.of(rows)(jnp.array(logits), seen)
    for row, decoding in enumerate(rows):
        alone = Processors.of([decoding])(jnp.array(logits[[row]]), seen[[row]])
        np.testing.assert_array_equal(together[row], alone[0])
    assert len({int(count) for count in np.isfinite(together).sum(axis=1)}) > 3


def test_draws_follow_the_probabilities():
    logits, count = jnp.array([1.0, 0.0, -1.0, 2.0, -jnp.inf, 0.5]), 20_000
    numbers = np.array([row_number([7, 8], sample) for sample in range(count)], np.uint32)
    keys = row_keys(np.full(count, 5, np.uint32), numbers)
    everyone = np.ones(count, bool)
    rows, third, fourth = jnp.tile(logits, (count, 1)), np.full(count, 3), np.full(count, 4)
    drawn = choose(rows, keys, third, everyone)
    found = np.bincount(drawn, minlength=6)
    expected = np.asarray(jax.nn.softmax(logits)) * count
    assert found[4] == 0
    likely = expected > 0
    chi_square = ((found - expected)[likely] ** 2 / expected[likely]).sum()
    assert 0.2 < chi_square < 14.9  # of 4 degrees of freedom: 0.5 % on either side
    assert (choose(rows, keys, third, everyone) == drawn).all()
    later = choose(rows, keys, fourth, everyone)
    assert 0.2 < (later == drawn).mean() < 0.5, "steps are independent: sum of p squared is 0.36"
    some = choose(rows, keys, np.where(everyone.cumsum() % 2, third, fourth), everyone.cumsum() % 3 > 0)
    wanted = np.where(everyone.cumsum() % 2, drawn, later)
    assert (some == np.where(everyone.cumsum() % 3 > 0, wanted, 3)).all(), "the rest takes the likeliest"


def test_numbers_are_of_the_ids_and_the_sample():
    numbers = [list(samples) for samples in sample_numbers([[5, 6], [7], [5, 6]], 2)]
    assert numbers == [[0, 1], [0, 1], [2, 3]], "the same input again is more samples of it"
    assert row_number([5, 6], 1)[1] == 1
    assert row_number([5, 6], 0)[0] == row_number((5, 6), 1)[0] != row_number([7], 0)[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0: it must be a whole number of at least 1"),
        ({"temperature": -1}, "temperature is -1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": 1, "top_p": 0}, "top_p is 0"),
        ({"temperature": 1, "min_p": 1.5}, r"min_p is 1\.5"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
        ({"seed": 2**32}, r"seed is 4294967296: it must be below 2\*\*32"),
        ({"num_beams": 2, "early_stopping": "always"}, "early_stopping is 'always'"),
        ({"stop": ("",)}, "stop is"),
        ({"eos_ids": (True,)}, "eos_ids is"),
        ({"top_k": 5}, "top_k chooses what is drawn, but temperature 0 draws nothing"),
        ({"num_samples": 2}, "num_samples=2 with temperature 0 and one beam"),
        ({"length_penalty": 0.5}, "set num_beams"),
        ({"num_beams": 2, "temperature": 1}, "beam search draws nothing"),
        ({"num_beams": 2, "num_samples": 3}, "num_samples is 3: there are only num_beams=2"),
        ({"num_beams": 2, "stop": "x"}, "beam search does not look for stop texts"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(DecodingError, match=message):
        DecodingConfig(**settings)
