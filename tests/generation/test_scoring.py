"""The score of a target is that of its tokens in one uncached pass over the pair alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flanjax.data.cache import Example
from flanjax.data.packing import pack_rows
from flanjax.generation.scoring import Score, score
from flanjax.models.config import Compute, T5Config
from flanjax.models.decoder_config import DecoderConfig
from flanjax.models.model import build, init_params

LLAMA = DecoderConfig(
    vocab_size=32, embed_dim=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=24, init_stddev=0.3
)
T5 = T5Config(
    vocab_size=32, embed_dim=16, num_heads=2, head_dim=4, mlp_dim=24, num_encoder_layers=2, num_decoder_layers=2
)
KINDS = {"t5": (T5, False), "llama": (LLAMA, False), "prefix_lm": (LLAMA, True)}
INPUTS = [[5, 6, 1], [7, 1], [9, 3, 3, 8, 4, 4, 10, 11, 12, 1], [9, 9, 1], [30, 1]]
TARGETS = [[4, 1], [1], [6, 7, 8, 9, 10, 11, 12, 13, 14, 1], [3, 0, 3, 1], []]
pytestmark = pytest.mark.usefixtures("quick_compilation")


@functools.cache
def params_of(config):
    # Twice the usual deviations: a fresh model says nearly the same whatever it is asked.
    return jax.tree.map(lambda leaf: leaf * 2, init_params(config, 3))


def scores_of(kind, inputs=INPUTS, targets=TARGETS, **options):
    config, prefix_lm = KINDS[kind]
    return score(config, Compute(), params_of(config), inputs, targets, prefix_lm=prefix_lm, **options)


@functools.partial(jax.jit, static_argnums=0)
def logits_of(config, params, batch):
    model = build(config, Compute(), params)
    return model.logits(model(batch))[0]


def alone(kind, inputs, target):
    """The score of one pair from all logits of a training batch of it."""
    config, prefix_lm = KINDS[kind]
    example = Example(inputs=np.array(inputs, np.int32), targets=np.array(target, np.int32))
    batch = pack_rows([[example]], (24,) if isinstance(config, DecoderConfig) else (12, 12), prefix_lm=prefix_lm)
    logits = logits_of(config, params_of(config), batch)
    at = np.flatnonzero(batch["decoder_loss_weights"][0])
    logprobs = jax.nn.log_softmax(jnp.asarray(logits)[at])[np.arange(len(target)), np.array(target, int)]
    return Score(tuple(logprobs.tolist()), logits[at].argmax(-1).tolist() == list(target))


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, rtol=1e-4, atol=1e-5)
        assert one.is_greedy == other.is_greedy


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_each_pair_alone(kind):
    found = scores_of(kind)
    assert_same(found, [alone(kind, *pair) for pair in zip(INPUTS, TARGETS, strict=True)])
    assert_same(scores_of(kind, INPUTS[::-1], TARGETS[::-1], batch_rows=2)[::-1], found)
    assert [len(score.logprobs) for score in found] == [2, 1, 10, 4, 0]
    assert found[-1] == Score((), True)


@pytest.mark.parametrize("kind", KINDS)
def test_the_greedy_answer_alone_is_greedy(kind):
    found = scores_of(kind, INPUTS[:1] * 32, [[token] for token in range(32)])
    best = int(np.argmax([score.total for score in found]))
    assert [score.is_greedy for score in found] == [token == best for token in range(32)]
    np.testing.assert_allclose(sum(np.exp(score.total) for score in found), 1, rtol=1e-5)
    then = scores_of(kind, INPUTS[:1] * 32, [[best, token] for token in range(32)])
    assert sum(score.is_greedy for score in then) == 1
    assert not any(score.is_greedy for score in scores_of(kind, INPUTS[:1] * 3, [[best - 1, x] for x in (4, 9, 20)]))


@pytest.mark.parametrize("kind", KINDS)
def test_the_likeliest_tokens_are_those_that_scores_of_each_say(kind):
    (found,) = scores_of(kind, INPUTS[:1], [[4, 1]], likeliest=5)
    assert found[:2] == scores_of(kind, INPUTS[:1], [[4, 1]])[0][:2]
    for place, before in enumerate(([], [4])):
        each = [one.logprobs[-1] for one in scores_of(kind, INPUTS[:1] * 32, [[*before, token] for token in range(32)])]
        best = sorted(range(32), key=lambda token: -each[token])[:5]
        assert [token for token, _ in found.likeliest[place]] == best
        np.testing.assert_allclose([logprob for _, logprob in found.likeliest[place]], sorted(each)[:-6:-1], rtol=1e-4)
    greedy = found.likeliest[0][0]
    (told,) = scores_of(kind, INPUTS[:1], [[greedy[0]]], likeliest=1)
    assert told.logprobs == (told.likeliest[0][0][1],), "of the same token it is the same number"


def test_what_cannot_be_scored():
    assert scores_of("t5", [], []) == []
    with pytest.raises(ValueError, match="2 inputs but 1 targets"):
        scores_of("t5", INPUTS[:2], [[1]])
    with pytest.raises(ValueError, match="an input without a token: a decoder goes on from one"):
        scores_of("llama", [[]], [[1]])
