"""Continuous batching: each request is answered as if it were alone, whoever comes, goes or fails beside it."""

import dataclasses
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from flanjax.generation.decoding import DecodingConfig
from flanjax.generation.engine import Engine, EngineError, is_out_of_memory
from flanjax.generation.scoring import score
from flanjax.generation.slots import advance, put, read, resized
from flanjax.generation.stopping import before_stop
from flanjax.models.config import Compute
from flanjax.models.parameters import are_apart, layers_apart
from flanjax.sharding.mesh import MeshConfig, make_mesh
from tests.generation.conftest import EOS, INPUTS, with_room_for

KINDS = ("t5", "llama")
pytestmark = pytest.mark.usefixtures("quick_compilation")


def words(ids):
    """A text of one to three letters a token."""
    return "".join("abcdefghij"[token % 10] * (1 + token % 3) for token in ids)


def engine(pair, kind=Engine, **options):
    return kind(pair.config, Compute(), pair.params, **{"slots": 4, "decode": words} | options)


class Noting(Engine):
    """Keeps all tokens that were made for each request: T5's padding too, which is decoded from and not in `ids`."""

    def __init__(self, *of, **options):
        super().__init__(*of, **options)
        self.made = {}

    def _hand_out(self, job, row, made):
        self.made.setdefault(job.request, []).extend(made.tokens[row, : made.counts[row]].tolist())
        super()._hand_out(job, row, made)


def until_done(engine):
    while engine.run_once():
        pass


def ways(kind):
    """Many ways to decode, so that every row of a batch has its own."""
    of = lambda **options: DecodingConfig(**{"max_new_tokens": 12, "eos_ids": EOS[kind]} | options)  # noqa: E731
    return [
        of(),
        of(temperature=0.8, seed=3),
        of(max_new_tokens=40, eos_ids=()),
        of(temperature=1.5, top_k=5, seed=1),
        of(max_new_tokens=1),
        of(temperature=0.9, top_p=0.8, repetition_penalty=1.3),
        of(repetition_penalty=1.8),
        of(temperature=1.2, min_p=0.1, eos_ids=(7, 3)),
        of(max_new_tokens=30, stop=("aa", "jjj"), eos_ids=()),
    ]


@pytest.fixture(scope="module", params=KINDS)
def answered(request, pairs):
    """Every way of decoding of every input, all in one engine, which has counted its steps."""
    pair, ours = pairs[request.param], engine(pairs[request.param], Noting)
    asked = [(ids, decoding) for decoding in ways(request.param) for ids in INPUTS]
    requests = [ours.submit(ids, decoding, logprobs=2) for ids, decoding in asked]
    until_done(ours)
    return pair, asked, requests, ours


def test_a_request_is_answered_as_if_it_were_alone(answered):
    pair, asked, requests, _ = answered
    for (ids, decoding), request in zip(asked, requests, strict=True):
        (alone,) = pair.answers(decoding, [ids], decode=words)
        assert (request.done, request.error, request.ids) == (True, None, alone)
        whole, stopped = before_stop(words(alone), decoding.stop)
        assert request.text == whole
        if request.finish == "length":
            assert not stopped
            # T5's padding is no word, but a token that was made.
            assert len(alone) == decoding.max_new_tokens or pair.eos_ids == EOS["t5"]
        else:
            assert request.finish == "stop"
    assert {request.finish for request in requests} == {"stop", "length"}


@pytest.mark.parametrize("kind", KINDS)
def test_layers_apart_are_views_and_decode_as_stacked_ones(pairs, kind):
    pair = pairs[kind]
    apart = layers_apart(pair.params)
    kernels = [params["decoder"]["layers"]["mlp"]["wo"]["kernel"] for params in (pair.params, apart)]
    whole, (first, second) = kernels
    assert kernels[1].shape == whole.shape
    assert first.unsafe_buffer_pointer() == whole.unsafe_buffer_pointer(), "nothing is copied"
    assert second.unsafe_buffer_pointer() == whole.unsafe_buffer_pointer() + whole.nbytes // 2
    assert are_apart(apart)
    assert not are_apart(jax.device_get(pair.params))
    assert not are_apart(layers_apart({"layers": jnp.ones((2, 3), jnp.bfloat16)})), "of no numpy type"

    # Arrays of numpy are left stacked, as those of other devices are.
    found = []
    for params in (pair.params, jax.device_get(pair.params)):
        ours = engine(pair._replace(params=params))
        asked = [(ids, decoding) for decoding in ways(kind)[:3] for ids in INPUTS]
        requests = [ours.submit(ids, decoding, logprobs=0) for ids, decoding in asked]
        until_done(ours)
        found.append(requests)
    for one, other in zip(*found, strict=True):
        assert one.ids == other.ids
        np.testing.assert_allclose([x.logprob for x in one.logprobs], [x.logprob for x in other.logprobs], atol=1e-5)


def test_greedy_answers_are_those_of_transformers(answered):
    pair, _, requests, _ = answered
    assert [request.ids for request in requests[: len(INPUTS)]] == pair.transformers_answers(INPUTS, max_new_tokens=12)


def test_a_freed_slot_is_filled_while_others_go_on(answered):
    _, asked, requests, ours = answered
    steps = ours.steps
    longest = [decoding.max_new_tokens for _, decoding in asked]
    assert max(longest) < steps < sum(longest) / 2, "four slots: less than half the steps of one after the other"
    assert sum(len(request.ids) for request in requests) > 2 * steps


def test_log_probabilities_are_those_of_scoring_before_any_processor(answered):
    pair, asked, requests, ours = answered
    made = [ours.made[request] for request in requests]
    scores = score(pair.config, Compute(), pair.params, [ids for ids, _ in asked], made, likeliest=2)
    for request, tokens, wanted in zip(requests, made, scores, strict=True):
        padding = pair.eos_ids == EOS["t5"]
        places = [place for place, token in enumerate(tokens) if token or not padding][: len(request.ids)]
        assert [tokens[place] for place in places] == request.ids
        expected = [wanted.logprobs[place] for place in places]
        np.testing.assert_allclose([x.logprob for x in request.logprobs], expected, rtol=1e-4, atol=1e-4)
        for found, theirs in zip(request.logprobs, [wanted.likeliest[place] for place in places], strict=True):
            np.testing.assert_allclose([x for _, x in found.top], [x for _, x in theirs], rtol=1e-4, atol=1e-4)
            assert [i for i, _ in found.top] == [i for i, _ in theirs]
        if not padding and request.text == words(request.ids):  # no stop text cut it
            assert request.loglikelihood == pytest.approx(wanted.total, rel=1e-4, abs=1e-4), "EOS included"


@pytest.mark.parametrize("kind", KINDS)
def test_no_mix_of_requests_compiles_anything_anew(pairs, kind):
    programs = (advance, put, read, resized)

    def answer(decodings):
        ours = engine(pairs[kind])
        # All to their limits, so that rows come free at the same steps whatever is drawn.
        for decoding, limited in zip(decodings, ways(kind), strict=True):
            lengths = {"max_new_tokens": limited.max_new_tokens, "eos_ids": (), "stop": ()}
            for ids in INPUTS:
                ours.submit(ids, dataclasses.replace(decoding, **lengths), logprobs=2)
        until_done(ours)
        return [program._cache_size() for program in programs]

    # Asked here as well, for programs of other tests may have been let go of.
    compiled = answer(ways(kind))
    assert all(compiled)
    others = [dataclasses.replace(decoding, seed=11, repetition_penalty=1.4) for decoding in ways(kind)]
    assert answer(others[4:] + others[:4]) == compiled


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_are_the_answer_token_by_token(pairs, kind):
    ours, pieces, requests = engine(pairs[kind]), [], []
    for number, decoding in enumerate(ways(kind)):
        show = lambda piece, number=number: pieces.append((number, piece))  # noqa: E731
        requests.append(ours.submit(INPUTS[number % 5], decoding, on_piece=show, logprobs=0))
    until_done(ours)
    for number, request in enumerate(requests):
        own = [piece for of, piece in pieces if of == number]
        assert [token for piece in own for token in piece.tokens] == request.ids
        assert "".join(piece.text for piece in own) == request.text
        assert [x for piece in own for x in piece.logprobs] == request.logprobs
        assert [piece.finish for piece in own] == [None] * (len(own) - 1) + [request.finish]
        assert max(len(piece.tokens) for piece in own) <= 1
        assert all(score.top == () for score in request.logprobs)


def test_the_number_of_a_sample_is_that_of_generate(pairs):
    decoding = DecodingConfig(max_new_tokens=8, temperature=1, num_samples=3, eos_ids=EOS["llama"])
    ours = engine(pairs["llama"])
    requests = [ours.submit(INPUTS[0], decoding, sample=sample) for sample in range(3)]
    until_done(ours)
    assert [request.ids for request in requests] == pairs["llama"].answers(decoding, INPUTS[:1])


def test_what_fails_or_is_let_go_of_takes_no_other_with_it(pairs):
    pair, ours = pairs["llama"], engine(pairs["llama"], slots=2)
    decoding = DecodingConfig(max_new_tokens=20, eos_ids=())
    (whole,) = pair.answers(decoding, INPUTS[:1])

    def refuse(piece):
        raise OSError("the reader has gone")

    let_go = ours.submit(INPUTS[1], decoding, on_piece=lambda piece: ours.cancel(let_go))
    good = ours.submit(INPUTS[0], decoding)
    bad = ours.submit(INPUTS[1], decoding, on_piece=refuse)
    never = ours.submit(INPUTS[2], decoding)
    ours.cancel(never)
    after = ours.submit(INPUTS[0], decoding)
    until_done(ours)
    assert (good.ids, after.ids) == (whole, whole)
    assert (let_go.done, let_go.finish, len(let_go.ids)) == (True, None, 1)
    assert (bad.done, bad.finish, str(bad.error)) == (True, None, "the reader has gone")
    assert (never.done, never.finish, never.ids) == (True, None, [])
    assert ours.steps < 60


def test_a_failing_device_ends_what_is_under_way_and_not_what_waits(pairs, monkeypatch):
    ours, decoding = engine(pairs["llama"], slots=1), DecodingConfig(max_new_tokens=20, eos_ids=())
    lost, waiting = ours.submit(INPUTS[0], decoding), ours.submit(INPUTS[1], decoding)
    with monkeypatch.context() as patch:
        patch.setattr("flanjax.generation.engine.advance", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            ours.run_once()
    assert isinstance(lost.error, ZeroDivisionError)
    assert lost.done
    until_done(ours)
    assert [waiting.ids] == pairs["llama"].answers(decoding, INPUTS[1:2])


@pytest.mark.parametrize("program", ["empty", "resized", "put"])
def test_a_device_without_room_ends_those_it_was_for_and_not_what_waits(pairs, monkeypatch, program):
    ours, decoding = engine(pairs["llama"]), DecodingConfig(max_new_tokens=40, eos_ids=())
    lost = [ours.submit(INPUTS[0], decoding)]
    if program != "empty":
        assert ours.run_once()
        assert not lost[0].done
    lost += [ours.submit(ids, decoding) for ids in INPUTS[:3]]
    waiting = ours.submit(INPUTS[1], decoding)
    with monkeypatch.context() as patch:
        patch.setattr(f"flanjax.generation.engine.{program}", lambda *_, **__: [][0])
        with pytest.raises(IndexError):
            ours.run_once()
    assert [(request.done, type(request.error)) for request in lost] == [(True, IndexError)] * 4
    assert not waiting.done
    until_done(ours)
    assert [waiting.ids] == pairs["llama"].answers(decoding, INPUTS[1:2])


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_too_much_together_is_answered_with_fewer_at_once(pairs, monkeypatch, kind):
    decoding = DecodingConfig(max_new_tokens=20, temperature=0.9, seed=5, eos_ids=())
    asked = [(ids, decoding) for ids in INPUTS] + [(ids, ways(kind)[-1]) for ids in INPUTS]
    ours, told, tried = engine(pairs[kind], slots=8), {}, []
    decode = with_room_for(2)

    def advancing(*given, **more):
        tried.append(int(given[4].active.sum()))
        if len(tried) <= 3:  # there is room at first, and tokens are handed out
            return advance(*given, **more)
        return decode(*given, **more)

    monkeypatch.setattr("flanjax.generation.engine.advance", advancing)
    requests = []
    for number, (ids, way) in enumerate(asked):
        show = told.setdefault(number, []).append if number % 3 == 0 else None
        requests.append(ours.submit(ids, way, logprobs=1, on_piece=show))
    until_done(ours)
    assert tried[:5] == [8, 8, 8, 8, 4], "halves"
    assert ours._most == 8, "what comes later is not held back"
    alone = [pairs[kind].answers(way, [ids], decode=words)[0] for ids, way in asked]
    assert [(request.error, request.ids) for request in requests] == [(None, ids) for ids in alone]
    for request in requests:
        assert request.loglikelihood == pytest.approx(sum(one.logprob for one in request.logprobs), abs=1e-3)
    for number, pieces in told.items():
        if pieces:
            assert [token for piece in pieces for token in piece.tokens] == requests[number].ids, "each once"
            assert "".join(piece.text for piece in pieces) == requests[number].text
            assert pieces[-1].finish == requests[number].finish
    later = ours.submit(INPUTS[0], decoding)
    until_done(ours)
    assert later.ids == alone[0]


def test_one_that_is_too_much_alone_fails_alone(pairs, monkeypatch):
    decoding, odd = DecodingConfig(max_new_tokens=6, eos_ids=()), INPUTS[2]
    monkeypatch.setattr("flanjax.generation.engine.advance", with_room_for(8, odd))
    ours = engine(pairs["llama"], slots=8)
    requests = [ours.submit(ids, decoding) for ids in (*INPUTS, *INPUTS[:2])]
    until_done(ours)
    failed = requests.pop(2)
    assert is_out_of_memory(failed.error)
    assert failed.error.__traceback__ is None, "which would hold what is on the device"
    assert (failed.done, failed.finish) == (True, None)
    others = [*INPUTS[:2], *INPUTS[3:], *INPUTS[:2]]
    assert [request.ids for request in requests] == pairs["llama"].answers(decoding, others)


def test_a_stream_whose_tokens_do_not_come_again_is_ended_and_not_mixed(pairs, monkeypatch):
    decoding = DecodingConfig(max_new_tokens=6, eos_ids=())
    ours, pieces = engine(pairs["llama"], slots=2), []
    stream, other = ours.submit(INPUTS[0], decoding, on_piece=pieces.append), ours.submit(INPUTS[1], decoding)
    ours.run_once()
    ours._rows[0].tokens[0] += 1  # as if it had been a near tie
    with monkeypatch.context() as patch:
        patch.setattr("flanjax.generation.engine.advance", with_room_for(1))
        ours.run_once()
    until_done(ours)
    assert isinstance(stream.error, EngineError)
    assert (stream.done, len(pieces)) == (True, 1)
    assert [other.ids] == pairs["llama"].answers(decoding, INPUTS[1:2])


@jax.jit
def too_much(x):
    """A number that the device fails to make, for want of a mebibyte of gibibytes."""
    return jnp.sin(x[:, None] * x).sum() + (x[:, None] * x @ x).sum()


def test_an_input_that_cannot_be_read_takes_no_other_with_it(pairs, monkeypatch):
    pair, odd, decoding = pairs["t5"], INPUTS[3], DecodingConfig(max_new_tokens=6, eos_ids=())
    counts = []

    def reading(config, compute, params, tokens, segments, **how):
        counts.append(len(tokens))
        start = read(config, compute, params, tokens, segments, **how)
        fails = any(row[: len(odd)].tolist() == odd for row in tokens)
        return jax.tree.map(lambda x: too_much(jnp.ones(2**24)), start) if fails else start

    monkeypatch.setattr("flanjax.generation.engine.read", reading)
    ours = engine(pair, slots=16)
    before = ours.submit(INPUTS[2], dataclasses.replace(decoding, max_new_tokens=40))
    ours.run_once()
    requests = [ours.submit(ids, decoding) for ids in INPUTS]
    until_done(ours)
    assert max(counts) > 2, "it was read with others"
    failed = requests.pop(3)
    assert (failed.done, failed.finish, failed.ids) == (True, None, [])
    assert isinstance(failed.error, jax.errors.JaxRuntimeError)
    assert "RESOURCE_EXHAUSTED" in str(failed.error)
    assert [request.ids for request in requests] == pair.answers(decoding, [ids for ids in INPUTS if ids != odd])
    assert (before.error, before.finish) == (None, "length")


def test_requests_come_from_any_thread(pairs):
    ours, decoding, requests = engine(pairs["t5"]), DecodingConfig(max_new_tokens=6, eos_ids=()), {}

    def client(number):
        requests[number] = ours.submit(INPUTS[number % 5], dataclasses.replace(decoding, seed=number, temperature=1))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
        ours.run_once()
    for thread in threads:
        thread.join()
    until_done(ours)
    for number in (0, 7, 19):
        own = dataclasses.replace(decoding, seed=number, temperature=1)
        assert [requests[number].ids] == pairs["t5"].answers(own, [INPUTS[number % 5]])
    assert all(request.done for request in requests.values())


def test_what_it_cannot_do_it_says(pairs):
    with pytest.raises(ValueError, match="beam search is done by `generate`"):
        engine(pairs["t5"]).submit([5], DecodingConfig(num_beams=2))
    with pytest.raises(ValueError, match="stop texts need decode"):
        engine(pairs["t5"], decode=None).submit([5], DecodingConfig(stop=("x",)))
    with pytest.raises(ValueError, match="an input without a token"):
        engine(pairs["llama"]).submit([], DecodingConfig())
    assert not engine(pairs["t5"]).run_once()


def test_layers_are_apart_on_a_mesh_of_one_device_too():
    """As training on one CPU has its parameters: the sharding names each of the stack's axes."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    stack = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    placed = jax.device_put(stack, NamedSharding(mesh, PartitionSpec(None, None, None)))
    found = layers_apart({"layers": placed})["layers"]
    assert are_apart(found)
    for layer, expected in zip(found, stack, strict=True):
        np.testing.assert_array_equal(layer, expected)
