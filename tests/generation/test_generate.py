"""Drawn answers: each row's own, the same again from the same seed, shown as they come, cut at stop texts."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flanjax.generation.batches import behind_prompts, padded
from flanjax.generation.cache import prefill
from flanjax.generation.decoding import DecodingConfig
from flanjax.generation.generate import generate
from flanjax.generation.slots import advance, read
from flanjax.generation.stopping import Answer, before_stop, settled, until_stop
from flanjax.models.config import Compute
from flanjax.models.model import abstract_params, build, init_params, logical_axes
from flanjax.sharding.mesh import MeshConfig, make_mesh
from flanjax.sharding.rules import param_shardings
from flanjax.tuning.lora import ALL_LINEAR, LoRA
from flanjax.tuning.partition import flatten, unflatten
from flanjax.tuning.prompt import PromptTuning
from tests.generation.conftest import EOS, INPUTS

KINDS = ("t5", "llama")
LIMIT = 12
pytestmark = pytest.mark.usefixtures("quick_compilation")


def adapted(pair):
    """The model with LoRA that has moved, and the plain one with the same kernels."""
    method = LoRA(rank=2, alpha=4, targets=ALL_LINEAR)
    config = dataclasses.replace(pair.config, added=(method,))
    own, rng = flatten(init_params(config, 0)), np.random.default_rng(0)
    own = {path: rng.normal(scale=0.3, size=x.shape).astype(np.float32) for path, x in own.items() if "/lora/" in path}
    own |= flatten(pair.params)
    merged = pair._replace(params=unflatten(dict(method.merge(own))))
    return pair._replace(config=config, params=unflatten(own)), merged


def drawn(kind, **options):
    return DecodingConfig(**{"max_new_tokens": LIMIT, "eos_ids": EOS[kind], "temperature": 0.7} | options)


def words(ids):
    """A text of one to three letters a token."""
    return "".join("abcdefghij"[token % 10] * (1 + token % 3) for token in ids)


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_with_a_repetition_penalty_as_transformers(pairs, kind):
    wanted = pairs[kind].transformers_answers(INPUTS, max_new_tokens=LIMIT, repetition_penalty=1.8)
    penalized = drawn(kind, temperature=0, repetition_penalty=1.8)
    assert pairs[kind].answers(penalized) == wanted
    assert pairs[kind].answers(dataclasses.replace(penalized, repetition_penalty=1.0)) != wanted


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_the_same_alone_and_in_any_batch(pairs, kind):
    pair, decoding = pairs[kind], drawn(kind, num_samples=2, top_p=0.95, repetition_penalty=1.1)
    together = pair.answers(decoding)
    assert len(set(map(tuple, together))) > len(INPUTS), "samples should differ"
    assert [ids for row in INPUTS for ids in pair.answers(decoding, [row])] == together
    turned = pair.answers(decoding, INPUTS[::-1], batch_rows=2)
    assert [ids for i in range(len(INPUTS))[::-1] for ids in turned[2 * i : 2 * i + 2]] == together
    # One input asked twice is two samples of it.
    twice = pair.answers(dataclasses.replace(decoding, num_samples=1), [row for row in INPUTS for _ in range(2)])
    assert twice == together


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_draws_for_each_row_its_own_too(pairs, kind):
    pair, decoding = pairs[kind], drawn(kind, num_samples=2, top_p=0.95)
    run = functools.partial(generate, pair.config, Compute(dtype="bfloat16"), pair.params)
    together = run(INPUTS, decoding)
    assert len(set(map(tuple, together))) > len(INPUTS), "samples should differ"
    assert run(INPUTS[1:2], decoding) == together[2:4]


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_is_an_answer_and_no_new_program(pairs, kind):
    pair = pairs[kind]
    first = pair.answers(drawn(kind, seed=1))
    compiled = read._cache_size(), advance._cache_size()
    assert pair.answers(drawn(kind, seed=1)) == first
    assert pair.answers(drawn(kind, seed=2)) != first
    assert pair.answers(drawn(kind, seed=1, temperature=3)) != first
    assert (read._cache_size(), advance._cache_size()) == compiled
    # Nearly 0 draws what is most likely.
    assert pair.answers(drawn(kind, temperature=1e-4)) == pair.answers(drawn(kind, temperature=0))


def test_only_the_words_of_a_text_count_as_repeated(pairs):
    def seen(config, params, inputs, count):
        def of_prefill(params):
            return prefill(build(config, Compute(), params), *padded(inputs, count), 8).seen

        return [np.flatnonzero(row).tolist() for row in jax.jit(of_prefill)(params)]

    config = dataclasses.replace(pairs["llama"].config, added=(PromptTuning(length=3, tasks=("a", "b")),))
    inputs = behind_prompts(config, [[5, 0, 7], [9]], [0, 1])
    assert seen(config, init_params(config, 0), inputs, 4) == [[0, 5, 7], [9], [], []]
    # What an encoder-decoder answers repeats none of its input, but its start token, as transformers has it.
    assert seen(pairs["t5"].config, pairs["t5"].params, [[5, 6, 7]], 1) == [[0]]


@pytest.mark.parametrize("options", [{"num_samples": 2}, {"temperature": 0, "num_beams": 2}], ids=["drawn", "beams"])
def test_adapters_apply_as_if_they_were_merged(pairs, options):
    unmerged, merged = adapted(pairs["llama"])
    answers = unmerged.answers(drawn("llama", **options))
    assert answers == merged.answers(drawn("llama", **options))
    assert answers != pairs["llama"].answers(drawn("llama", **options))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{"num_samples": 2}, {"temperature": 0, "num_beams": 2}], ids=["drawn", "beams"])
def test_eight_devices_equal_one(pairs, kind, options):
    pair, decoding = pairs[kind], drawn(kind, **options)
    inputs = (INPUTS * 2)[:8]
    alone = pair.answers(decoding, inputs)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, model=2))
    shardings, _ = param_shardings(logical_axes(pair.config), abstract_params(pair.config), mesh)
    with jax.set_mesh(mesh):
        spread = jax.device_put(pair.params, shardings)
        assert generate(pair.config, Compute(), spread, inputs, decoding) == alone


@pytest.mark.parametrize("kind", KINDS)
def test_a_stop_text_ends_an_answer_at_the_token_that_completes_it(pairs, kind):
    pair, decoding = pairs[kind], drawn(kind, max_new_tokens=40, temperature=0)
    whole = [words(ids) for ids in pair.answers(decoding)]
    stop = (max(whole, key=len)[20:23], "zz")
    stopped = dataclasses.replace(decoding, stop=stop)
    found = pair.answers(stopped, decode=words)
    assert any(before_stop(words(ids), stop)[1] for ids in found)
    for ids, text in zip(found, whole, strict=True):
        assert before_stop(words(ids), stop) == before_stop(text, stop)
        assert not before_stop(words(ids[:-1]), stop)[1]
    shown = [""] * len(INPUTS)

    def show(row, sample, piece):
        assert piece
        assert sample == 0
        shown[row] += piece

    assert pair.answers(stopped, decode=words, on_text=show) == found
    assert shown == [before_stop(text, stop)[0] for text in whole]


@given(
    text=st.text("ab", max_size=12),
    stop=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 12), max_size=4),
)
def test_what_is_shown_is_never_taken_back(text, stop, cuts):
    answer, pieces = Answer(stop, "".join), []
    for cut in sorted(cuts):
        assert text.startswith(settled(text[:cut], stop))
        pieces.append(answer.grow(list(text[:cut]), ended=False))
    pieces.append(answer.grow(list(text), ended=True))
    tokens, stopped = until_stop(list(text), stop, "".join)
    assert "".join(pieces) == answer.text == before_stop("".join(tokens), stop)[0]
    assert (answer.tokens, answer.stopped) == (tokens, stopped)
    assert stopped == any(one in text for one in stop)
    assert not stopped or not any(one in "".join(tokens[:-1]) for one in stop)


def test_a_character_in_parts_is_shown_whole():
    assert settled("caf\ufffd", ()) == "caf"
    assert settled("4\n", ("\n\n",)) == "4"
    assert settled("4\n", ()) == "4\n"
    assert before_stop("one END two STOP", ("STOP", "END")) == ("one ", True)


def test_what_needs_a_text_says_so(pairs):
    with pytest.raises(ValueError, match="need decode"):
        pairs["t5"].answers(drawn("t5", stop="x"))
    with pytest.raises(ValueError, match="beam search has no text before its end"):
        pairs["t5"].answers(drawn("t5", temperature=0, num_beams=2), decode=words, on_text=print)
    assert pairs["t5"].answers(drawn("t5"), []) == []
    assert np.shape(pairs["t5"].answers(drawn("t5", num_samples=3, max_new_tokens=1), [[5]]))[0] == 3
