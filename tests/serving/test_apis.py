"""Both APIs over the real engine, asked by the real client: what it says is what `flanjax.load` says."""

import asyncio
import dataclasses
import math

import openai
import pytest
from lm_eval.models.openai_completions import LocalCompletionsAPI

import flanjax
from flanjax.generation.decoding import DecodingConfig
from flanjax.generation.generate import generate
from flanjax.generation.scoring import score
from flanjax.models import decoder
from flanjax.tuning.prompt import PromptTuning
from tests.generation.conftest import with_room_for
from tests.serving.conftest import loud, running

PROMPTS = ["Who are you?", "Vicuna is", "Can you help me with 3 things", "Vicuna is"]
pytestmark = pytest.mark.usefixtures("quick_compilation")
DRAWN = {"temperature": 0.9, "top_p": 0.9, "seed": 3}
MESSAGES = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Who are you?"}]


@pytest.fixture(scope="module")
def llama_server(llama):
    with running(llama, slots=4) as server:
        yield server


@pytest.fixture(scope="module")
def t5_server(t5_model):
    with running(t5_model, slots=4, max_length=64) as server:
        yield server


@pytest.fixture(params=["llama", "t5"])
def served(request):
    """A server and the model behind it."""
    model = request.getfixturevalue("llama" if request.param == "llama" else "t5_model")
    return request.getfixturevalue(f"{request.param}_server"), model


def complete(server, prompt, **given):
    return server.client().completions.create(model="tiny", prompt=prompt, **({"max_tokens": 12} | given))


def chat(server, messages=MESSAGES, **given):
    return server.client().chat.completions.create(model="tiny", messages=messages, **given)


def texts(answer):
    assert [choice.index for choice in answer.choices] == list(range(len(answer.choices)))
    return [choice.text for choice in answer.choices]


# --- the answers are those of Model.generate -----------------------------------------------------------------------


@pytest.mark.parametrize("how", [{"temperature": 0}, {**DRAWN, "n": 2}], ids=("greedy", "drawn"))
def test_answers_are_those_of_generate(served, how):
    server, model = served
    options = {("num_samples" if name == "n" else name): value for name, value in how.items()}
    assert texts(complete(server, PROMPTS, **how)) == model.generate(PROMPTS, 12, **options)


def test_extensions_have_their_meaning_in_generate(llama_server, llama):
    more = {"top_k": 20, "min_p": 0.05, "repetition_penalty": 1.3}
    answer = complete(llama_server, PROMPTS[:2], **DRAWN, extra_body=more)
    assert texts(answer) == llama.generate(PROMPTS[:2], 12, **DRAWN, **more)


def test_prompts_in_token_ids(served):
    server, model = served
    ids = [model.vocabulary.as_inputs(model.vocabulary.encode(text)) for text in PROMPTS]
    assert texts(complete(server, ids, temperature=0)) == model.generate(PROMPTS, 12)
    assert texts(complete(server, ids[0], temperature=0)) == model.generate(PROMPTS[:1], 12)


def test_stop_texts_end_an_answer(served):
    server, model = served
    (whole,) = model.generate(PROMPTS[:1], 24)
    stop = whole[len(whole) // 2 :][:2]
    answer = complete(server, PROMPTS[0], temperature=0, max_tokens=24, stop=[stop, "never"])
    assert texts(answer) == [whole[: whole.index(stop)]] == model.generate(PROMPTS[:1], 24, stop=(stop,))
    assert answer.choices[0].finish_reason == "stop"
    stream = complete(server, PROMPTS[0], temperature=0, max_tokens=24, stop=stop, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == answer.choices[0].text


def test_without_a_seed_draws_differ(llama_server):
    drawn = {complete(llama_server, "a", temperature=1.5, max_tokens=16).choices[0].text for _ in range(4)}
    assert len(drawn) > 1
    again = [complete(llama_server, "a", temperature=1.5, seed=seed).choices[0].text for seed in (7, 7 + 2**32, -1, -1)]
    assert again[0] == again[1]
    assert again[2] == again[3]


def test_chats_are_those_of_model_chat(llama_server, llama):
    answer = chat(llama_server, max_tokens=12, **DRAWN, n=2)
    assert [choice.message.content for choice in answer.choices] == llama.chat([MESSAGES], 12, **DRAWN, num_samples=2)
    assert {choice.message.role for choice in answer.choices} == {"assistant"}
    parts = [{"type": "text", "text": "Who "}, {"type": "text", "text": "are you?"}]
    same = [{"role": "developer", "content": "Be kind."}, {"role": "user", "content": parts, "name": "Ann"}]
    told = chat(llama_server, same, max_completion_tokens=12, **DRAWN, n=2)
    assert [choice.message.content for choice in told.choices] == [choice.message.content for choice in answer.choices]
    room = 128 - answer.usage.prompt_tokens
    (most,) = llama.chat([MESSAGES], room)
    assert chat(llama_server, temperature=0).choices[0].message.content == most, "without max_tokens all that fits"


# --- streams -------------------------------------------------------------------------------------------------------


def test_streams_are_the_same_answers_in_pieces(served):
    server, _ = served
    whole = complete(server, PROMPTS, **DRAWN, n=2)
    stream = complete(server, PROMPTS, **DRAWN, n=2, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    said, ends = [""] * 8, [None] * 8
    for choice in (choice for chunk in chunks[:-1] for choice in chunk.choices):
        assert ends[choice.index] is None, "nothing follows an end"
        said[choice.index] += choice.text
        ends[choice.index] = choice.finish_reason
    assert said == texts(whole)
    assert ends == [choice.finish_reason for choice in whole.choices]
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert len({(chunk.id, chunk.created, chunk.model, chunk.object) for chunk in chunks}) == 1


def test_streams_of_chats_with_the_asynchronous_client(llama_server):
    async def ask():
        async with llama_server.async_client() as client:
            given = {"model": "tiny", "messages": MESSAGES, "max_tokens": 12, **DRAWN, "logprobs": True}
            whole = await client.chat.completions.create(**given)
            stream = await client.chat.completions.create(**given, stream=True)
            return whole, [chunk async for chunk in stream]

    whole, chunks = asyncio.run(ask())
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert [chunk.usage for chunk in chunks] == [None] * len(chunks)
    told = [token for chunk in chunks if chunk.choices[0].logprobs for token in chunk.choices[0].logprobs.content]
    assert told == whole.choices[0].logprobs.content


# --- log-probabilities ---------------------------------------------------------------------------------------------


def test_logprobs_are_the_scores_of_the_answer(served):
    server, model = served
    given = {"temperature": 1.2, "seed": 5, "logprobs": 3}
    (choice,) = complete(server, PROMPTS[2], **given).choices
    told = choice.logprobs
    assert "".join(told.tokens) == choice.text
    assert [choice.text[at : at + len(token)] for at, token in zip(told.text_offset, told.tokens, strict=True)] == (
        told.tokens
    )
    ids = model.vocabulary.as_inputs(model.vocabulary.encode(PROMPTS[2]))
    where = (model.config, model.compute, model.params, [ids])
    how = DecodingConfig(max_new_tokens=12, temperature=1.2, seed=5, eos_ids=(model.vocabulary.eos_id,))
    (scored,) = score(*where, generate(*where, how))
    assert told.token_logprobs == pytest.approx(scored.logprobs, abs=1e-3)
    for token, logprob, top in zip(told.tokens, told.token_logprobs, told.top_logprobs, strict=True):
        assert top[token] >= logprob
        assert 3 <= len(top) <= 4 or model.vocabulary.separate_inputs, "its tokens of no text are many"
        assert max(top.values()) >= logprob
    (bare,) = complete(server, PROMPTS[2], **{**given, "logprobs": 0}).choices
    assert bare.logprobs.token_logprobs == pytest.approx(told.token_logprobs, abs=1e-3)
    assert bare.logprobs.top_logprobs is None


def test_logprobs_of_chats(llama_server):
    (choice,) = chat(llama_server, max_tokens=12, **DRAWN, logprobs=True, top_logprobs=4).choices
    told = choice.logprobs.content
    said = bytes(byte for token in told for byte in token.bytes or [])
    assert said.decode() == choice.message.content
    for token in told:
        values = [top.logprob for top in token.top_logprobs]
        assert len(values) == 4
        assert values == sorted(values, reverse=True)
        assert sum(map(math.exp, values)) < 1.001
        assert token.logprob <= values[0]


@pytest.fixture(scope="module")
def stories_model(stories):
    return flanjax.load(stories)


@pytest.fixture(scope="module")
def stories_server(stories_model):
    """A decoder whose vocabulary is of SentencePiece: a text alone begins without the space before its first word."""
    with running(stories_model, slots=4, max_length=64) as server:
        yield server


@pytest.mark.parametrize("name", ["llama", "stories"])
def test_an_echoed_prompt_and_its_answer_are_one_text(request, name):
    server = request.getfixturevalue(f"{name}_server")
    vocabulary = request.getfixturevalue("llama" if name == "llama" else "stories_model").vocabulary
    prompts = [vocabulary.as_inputs(vocabulary.encode(text)) for text in ("Once upon a time", "One day,", "Sé")]
    given = {"echo": True, "temperature": 0, "max_tokens": 12, "logprobs": 0}
    answer = complete(server, prompts, **given)
    streamed = [[] for _ in prompts]
    for chunk in complete(server, prompts, **given, stream=True):
        for choice in chunk.choices:
            streamed[choice.index].append(choice)
    for prompt, choice, pieces in zip(prompts, answer.choices, streamed, strict=True):
        (alone,) = complete(server, [prompt], **given | {"echo": False}).choices
        assert choice.text.endswith(alone.text)
        assert choice.text.startswith(vocabulary.decode(prompt))
        made = generate_ids(server, prompt)
        assert choice.text == vocabulary.decode([*prompt, *made])
        assert "".join(piece.text for piece in pieces) == choice.text
        told = choice.logprobs
        names = {text for text in vocabulary.control_tokens}
        spelled = [(token, at) for token, at in zip(told.tokens, told.text_offset, strict=True) if token not in names]
        assert "".join(token for token, _ in spelled) == choice.text.rstrip("\N{REPLACEMENT CHARACTER}")
        assert all(choice.text[at:].startswith(token) for token, at in spelled)
        assert [at for piece in pieces for at in piece.logprobs.text_offset] == told.text_offset


def generate_ids(server, prompt):
    """Token ids of the greedy answer."""
    model = server.service._model
    how = DecodingConfig(max_new_tokens=12, eos_ids=model.eos_ids)
    return generate(model.config, model.compute, model.params, [prompt], how)[0]


@pytest.mark.parametrize("most", [0, 1])
@pytest.mark.parametrize("stream", [False, True])
def test_echoed_prompts_are_scored_as_lm_evaluation_harness_reads_them(llama_server, llama, most, stream):
    encode = llama.vocabulary.encode
    pairs = [("Who are", " you?"), ("Can you help", " me with 3 things and more"), ("Vicuna", " is")]
    (greedy,) = llama.generate(["Who are"], 3)
    pairs.append(("Who are", greedy))
    inputs = [encode(text + end) for text, end in pairs]
    lengths = [len(encode(text)) for text, _ in pairs]
    given = {"max_tokens": most, "logprobs": 1, "echo": True, "temperature": 0}
    if stream:
        choices = [{"index": i, "logprobs": {}} for i in range(len(pairs))]
        for chunk in complete(llama_server, inputs, **given, stream=True):
            for choice in chunk.choices:
                for name, values in choice.logprobs.model_dump().items():
                    choices[choice.index]["logprobs"].setdefault(name, []).extend(values)
        answer = {"choices": choices}
    else:
        answer = complete(llama_server, inputs, **given).model_dump()
        assert [choice["text"].startswith("".join(pair)) for choice, pair in zip(answer["choices"], pairs, strict=True)]
    if most == 0:  # the harness asks for one token and leaves its place out
        for choice in answer["choices"]:
            for values in choice["logprobs"].values():
                values.append(None)
    found = LocalCompletionsAPI.parse_logprobs(answer, inputs, lengths)
    expected = llama.score_continuations(*zip(*pairs, strict=True))
    assert [total for total, _ in found] == pytest.approx(expected, abs=1e-3)
    assert [is_greedy for _, is_greedy in found] == [False, False, False, True]
    assert all(choice["logprobs"]["token_logprobs"][0] is None for choice in answer["choices"])


# --- numbers, and many at once -------------------------------------------------------------------------------------


def test_usage_counts_tokens(served):
    server, model = served
    answer = complete(server, PROMPTS[:2], temperature=0, n=2, logprobs=0)
    encoded = [model.vocabulary.as_inputs(model.vocabulary.encode(text)) for text in PROMPTS[:2]]
    made = sum(len(choice.logprobs.tokens) for choice in answer.choices)
    assert answer.usage.prompt_tokens == sum(map(len, encoded))
    assert (answer.usage.completion_tokens, answer.usage.total_tokens) == (made, made + answer.usage.prompt_tokens)
    lengths = [len(choice.logprobs.tokens) for choice in answer.choices]
    assert [choice.finish_reason for choice in answer.choices] == ["length" if n == 12 else "stop" for n in lengths]


def test_many_clients_get_their_own_answers_in_fewer_steps(llama_server, llama):
    asked = [
        {"prompt": f"{PROMPTS[i % 4]} {i}", "max_tokens": 4 + i % 9, "temperature": i % 3 / 2, "seed": i}
        for i in range(64)
    ]

    async def ask():
        async with llama_server.async_client() as client:

            async def one(given, *, stream):
                answer = await client.completions.create(model="tiny", **given, stream=stream)
                if not stream:
                    return answer.choices[0].text
                return "".join([chunk.choices[0].text async for chunk in answer])

            return await asyncio.gather(*(one(given, stream=i % 2 == 0) for i, given in enumerate(asked)))

    before = llama_server.engine.steps
    found = asyncio.run(ask())
    expected = []
    for given in asked:
        rest = {name: value for name, value in given.items() if name in ("temperature", "seed")}
        expected += llama.generate([given["prompt"]], given["max_tokens"], **rest)
    assert found == expected
    assert llama_server.engine.steps - before < sum(given["max_tokens"] for given in asked) / 2


# --- what a model cannot do ----------------------------------------------------------------------------------------


def test_an_encoder_decoder_echoes_nothing_and_chats_only_with_a_template(t5_server):
    with pytest.raises(openai.BadRequestError, match="encoder-decoder") as refused:
        complete(t5_server, "yes", echo=True)
    assert refused.value.param == "echo"
    with pytest.raises(openai.BadRequestError, match="no chat template") as refused:
        chat(t5_server)
    assert refused.value.code == "no_chat_template"


def test_a_prompt_longer_than_the_model(llama_server):
    with pytest.raises(openai.BadRequestError, match="128 tokens") as refused:
        complete(llama_server, "word " * 200)
    assert refused.value.code == "context_length_exceeded"


# --- the engine ----------------------------------------------------------------------------------------------------


def test_learnt_prompts_of_tasks_are_models_of_their_own(llama):
    config = dataclasses.replace(llama.config, added=(PromptTuning(length=3, tasks=("sort", "add")),))
    model = dataclasses.replace(llama, config=config, params=loud(decoder.init_params(config, 1)))
    with running(model, slots=4) as server:
        client = server.client()
        assert [one.id for one in client.models.list()] == ["tiny:sort", "tiny:add"]
        given = {"prompt": PROMPTS[0], "temperature": 0, "max_tokens": 6}
        found = [client.completions.create(model=f"tiny:{task}", **given).choices[0].text for task in ("sort", "add")]
        assert found == [model.generate(PROMPTS[:1], 6, prompt=task)[0] for task in ("sort", "add")]
        with pytest.raises(openai.NotFoundError, match="tiny:sort, tiny:add"):
            client.completions.create(model="tiny", **given)
        with pytest.raises(openai.BadRequestError, match="model is missing"):
            client.completions.create(model=None, **given)


def test_answers_that_are_too_much_together_are_made_with_fewer_at_once(llama_server, llama, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("flanjax.generation.engine.advance", with_room_for(2))
        found = complete(llama_server, PROMPTS, **DRAWN)
        assert texts(found) == llama.generate(PROMPTS, 12, **DRAWN, batch_size=1)
        said = [""] * len(PROMPTS)
        for chunk in complete(llama_server, PROMPTS, **DRAWN, stream=True):
            for choice in chunk.choices:
                said[choice.index] += choice.text
        assert said == texts(found)
        assert llama_server.service.health()[0] == 200
    assert texts(complete(llama_server, PROMPTS, **DRAWN)) == texts(found)


def test_an_answer_that_is_too_much_alone_is_refused_and_no_other(llama_server, llama, monkeypatch):
    prompts = [*PROMPTS[:2], "a prompt of a length of its own", PROMPTS[2]]
    odd = llama.vocabulary.encode(prompts[2])
    assert len(odd) not in {len(llama.vocabulary.encode(text)) for text in PROMPTS}

    async def ask():
        async with llama_server.async_client() as client:
            given = {"model": "tiny", "max_tokens": 12, "temperature": 0}
            asked = [client.completions.create(**given, prompt=prompt) for prompt in prompts]
            return await asyncio.gather(*asked, return_exceptions=True)

    with monkeypatch.context() as patched:
        patched.setattr("flanjax.generation.engine.advance", with_room_for(4, odd))
        found = asyncio.run(ask())
        refused = found.pop(2)
        assert isinstance(refused, openai.BadRequestError)
        assert refused.code == "out_of_memory"
        assert "RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.): shorten the prompt" in str(refused)
        assert llama_server.service.health()[0] == 200
    assert [answer.choices[0].text for answer in found] == llama.generate([*PROMPTS[:2], PROMPTS[2]], 12)
    assert texts(complete(llama_server, prompts[2], temperature=0)) == llama.generate(prompts[2:3], 12)


def test_a_step_that_fails_is_told_and_the_next_request_is_answered(llama_server, llama, monkeypatch):
    def fail():
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(llama_server.engine, "_advance", fail)
        with pytest.raises(openai.InternalServerError, match="out of memory"):
            complete(llama_server, PROMPTS[0])
        with pytest.raises(openai.InternalServerError, match="out of memory"):
            list(complete(llama_server, PROMPTS[0], stream=True))
        assert llama_server.service.health()[0] == 503
    assert texts(complete(llama_server, PROMPTS[:1], temperature=0)) == llama.generate(PROMPTS[:1], 12)
    assert llama_server.service.health()[0] == 200
