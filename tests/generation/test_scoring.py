"""The score of a target is that of its tokens in one uncached pass over the pair alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flanjax.data.cache import Example
from flanjax.data.packing import pack_rows
from flanjax.generation.scoring import Score, score
from flanjax.generation.scoring_rows import decoder_rows, encoder_decoder_rows, shared_beginnings
from flanjax.models.config import Compute, T5Config
from flanjax.models.decoder_config import DecoderConfig
from flanjax.models.model import abstract_params, build, init_params, logical_axes
from flanjax.sharding.mesh import MeshConfig, make_mesh
from flanjax.sharding.rules import param_shardings
from flanjax.tuning.prompt import PromptTuning

LLAMA = DecoderConfig(
    vocab_size=32, embed_dim=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=24, init_stddev=0.3
)
T5 = T5Config(
    vocab_size=32, embed_dim=16, num_heads=2, head_dim=4, mlp_dim=24, num_encoder_layers=2, num_decoder_layers=2
)
KINDS = {"t5": (T5, False), "llama": (LLAMA, False), "prefix_lm": (LLAMA, True)}
PLAINLY = tuple(KINDS)
PLAIN = {"norm": "layer", "mlp_activations": ("exact_gelu",), "num_kv_heads": 4, "qkv_bias": True}
KINDS |= {
    "opt": (dataclasses.replace(LLAMA, **PLAIN, positions="learned", max_positions=96, position_offset=2), False),
    "bloom": (dataclasses.replace(LLAMA, **PLAIN, positions="alibi", embedding_norm=True), False),
    "prompted": (dataclasses.replace(LLAMA, added=(PromptTuning(length=3),)), False),
}
INPUTS = [[5, 6, 1], [7, 1], [9, 3, 3, 8, 4, 4, 10, 11, 12, 1], [9, 9, 1], [30, 1]]
TARGETS = [[4, 1], [1], [6, 7, 8, 9, 10, 11, 12, 13, 14, 1], [3, 0, 3, 1], []]
pytestmark = pytest.mark.usefixtures("quick_compilation")


@functools.cache
def params_of(config):
    # Twice the usual deviations: a fresh model says nearly the same whatever it is asked.
    return jax.tree.map(lambda leaf: leaf * 2, init_params(config, 3))


def scores_of(kind, inputs=INPUTS, targets=TARGETS, compute=None, **options):
    config, prefix_lm = KINDS[kind]
    return score(config, compute or Compute(), params_of(config), inputs, targets, prefix_lm=prefix_lm, **options)


@functools.partial(jax.jit, static_argnums=0)
def logits_of(config, params, batch):
    model = build(config, Compute(), params)
    return model.logits(model(batch))[0]


def alone(kind, inputs, target, length=24):
    """The score of one pair from all logits of a training batch of it."""
    config, prefix_lm = KINDS[kind]
    inputs = [0] * config.prompt_length + inputs
    example = Example(inputs=np.array(inputs, np.int32), targets=np.array(target, np.int32))
    lengths = (length,) if isinstance(config, DecoderConfig) else (length, length)
    batch = pack_rows([[example]], lengths, prefix_lm=prefix_lm)
    logits = logits_of(config, params_of(config), batch)
    at = np.flatnonzero(batch["decoder_loss_weights"][0])
    logprobs = jax.nn.log_softmax(jnp.asarray(logits)[at])[np.arange(len(target)), np.array(target, int)]
    return Score(tuple(logprobs.tolist()), logits[at].argmax(-1).tolist() == list(target))


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, rtol=1e-4, atol=1e-5)
        assert one.is_greedy == other.is_greedy


@pytest.mark.parametrize("kind", PLAINLY)
def test_scores_are_those_of_each_pair_alone(kind):
    found = scores_of(kind)
    assert_same(found, [alone(kind, *pair) for pair in zip(INPUTS, TARGETS, strict=True)])
    assert_same(scores_of(kind, INPUTS[::-1], TARGETS[::-1], batch_rows=2)[::-1], found)
    assert [len(score.logprobs) for score in found] == [2, 1, 10, 4, 0]
    assert found[-1] == Score((), True)


@pytest.mark.parametrize("kind", PLAINLY)
def test_the_greedy_answer_alone_is_greedy(kind):
    found = scores_of(kind, INPUTS[:1] * 32, [[token] for token in range(32)])
    best = int(np.argmax([score.total for score in found]))
    assert [score.is_greedy for score in found] == [token == best for token in range(32)]
    np.testing.assert_allclose(sum(np.exp(score.total) for score in found), 1, rtol=1e-5)
    then = scores_of(kind, INPUTS[:1] * 32, [[best, token] for token in range(32)])
    assert sum(score.is_greedy for score in then) == 1
    assert not any(score.is_greedy for score in scores_of(kind, INPUTS[:1] * 3, [[best - 1, x] for x in (4, 9, 20)]))


SHOTS = np.random.default_rng(0).integers(2, 32, 60).tolist()
QUESTIONS = [[2, *SHOTS[:length], *end] for length, end in ((50, [7]), (50, [7, 9]), (44, [5, 5]), (40, []), (4, [8]))]
CHOICES = [[3], [4], [4, 9, 1], [4, 9, 5, 5], [6, 6], [4, 9, 1]]


@pytest.mark.parametrize("kind", KINDS)
def test_what_pairs_have_in_common_changes_no_score(kind):
    """Choices that begin alike, of questions behind the same examples, in any order."""
    pairs = [(question, choice) for question in QUESTIONS for choice in CHOICES]
    order = np.random.default_rng(1).permutation(len(pairs)).tolist()
    found = scores_of(kind, *zip(*(pairs[i] for i in order), strict=True), batch_rows=3)
    assert_same(found, [alone(kind, *pairs[i], length=96) for i in order])


def test_attention_without_a_place_for_a_beginning_reads_each_context_whole():
    pairs = list(zip(*((question, [4, 9]) for question in QUESTIONS), strict=True))
    assert_same(scores_of("llama", *pairs, compute=Compute(attention="blockwise")), scores_of("llama", *pairs))


def test_what_is_read_once():
    """Tokens that the decoder reads for all pairs: few more than one pair alone has."""
    groups = shared_beginnings([tuple(question) for question in QUESTIONS])
    assert sorted((shared, len(group)) for shared, group in groups) == [(0, 1), (40, 4)]
    rows = list(decoder_rows(QUESTIONS[0], dict(enumerate(CHOICES)), begin=40, branching=True))
    assert [len(row.tokens) for row in rows] == [len(QUESTIONS[0]) - 40 + len([4, 9, 5, 6])]
    assert sorted(rows[0].places) == list(range(6))
    (row,) = encoder_decoder_rows(QUESTIONS[0], {0: [3], 1: [4], 2: [5]})
    assert (row.tokens, row.places) == ([0], {0: [0], 1: [0], 2: [0]})
    long = {i: [i, *range(2, 102)] for i in range(6)}
    assert [len(row.tokens) for row in decoder_rows([2], long, begin=0, branching=True)] == [201] * 3
    assert len(list(decoder_rows([2], long, begin=0, branching=False))) == 6


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_eight_devices_equal_one(kind):
    config = KINDS[kind][0]
    pairs = [(question, choice) for question in QUESTIONS for choice in CHOICES[:4]]
    alone = scores_of(kind, *zip(*pairs, strict=True))
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, model=2))
    shardings, _ = param_shardings(logical_axes(config), abstract_params(config), mesh)
    with jax.set_mesh(mesh):
        spread = jax.device_put(params_of(config), shardings)
        assert_same(score(config, Compute(), spread, *zip(*pairs, strict=True)), alone)


@pytest.mark.parametrize("kind", PLAINLY)
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
