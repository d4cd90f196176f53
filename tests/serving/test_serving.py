"""What the server holds to whatever is asked: queue, limits, keys, failures.

The engine is scripted, so that these are told by its steps and not by a clock.
"""

import asyncio
import http.client
import json
import socket
import threading

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flanjax.errors import FlanjaxError
from flanjax.generation.scoring import Score
from flanjax.serving.errors import ApiError
from flanjax.serving.server import serve
from flanjax.serving.service import Service, Settings
from tests.serving.conftest import WORDS, ScriptedEngine, ask, get, post, request, running, until

# --- many at once --------------------------------------------------------------------------------------------------


def test_many_clients_share_steps(llama):
    async def together(server):
        async with server.async_client() as client:
            asked = [client.completions.create(model="tiny", prompt=f"{WORDS} {i}", max_tokens=8) for i in range(64)]
            return await asyncio.gather(*asked)

    with running(llama, make_engine=ScriptedEngine, slots=16, max_queue=48) as server:
        server.engine.go.clear()
        loop = threading.Thread(target=lambda: found.extend(asyncio.run(together(server))))
        found = []
        loop.start()
        until(lambda: server.service.driver.rows == 64)
        server.engine.go.set()
        loop.join()
    prompts = [llama.vocabulary.encode(f"{WORDS} {i}") for i in range(64)]
    assert [one.choices[0].text for one in found] == [llama.vocabulary.decode((ids * 8)[:8]) for ids in prompts]
    assert server.engine.steps <= 64 * 8 / 16 + 1, "one by one it would be 512"


def asking(server, count):
    """Answers to so many requests as they come, and the threads that wait for them; all are under way."""
    found = []
    threads = [threading.Thread(target=lambda: found.append(ask(server))) for _ in range(count)]
    for thread in threads:
        thread.start()
    until(lambda: server.service.driver.rows == count)
    return found, threads


def test_a_full_queue_is_told_and_empties(scripted):
    scripted.engine.go.clear()
    found, threads = asking(scripted, 8)
    status, headers, body = ask(scripted)
    assert (status, body["error"]["code"], headers["retry-after"]) == (429, "queue_full", "1")
    assert ask(scripted, n=9)[0] == 400, "which no empty queue would take"
    scripted.engine.go.set()
    for thread in threads:
        thread.join()
    assert [status for status, _, _ in found] == [200] * 8
    until(lambda: scripted.service.driver.rows == 0)  # let go of after the last byte is sent
    assert ask(scripted)[0] == 200


@pytest.mark.parametrize("stream", [False, True])
def test_more_answers_than_it_could_ever_take_are_refused_before_anything_is_made_for_them(
    scripted, monkeypatch, stream
):
    monkeypatch.setattr("flanjax.serving.answers.Speller", lambda *_: pytest.fail("made for an answer"))
    monkeypatch.setattr(type(scripted.service.reader._vocabulary), "encode", lambda *_: pytest.fail("tokenized"))
    for prompt, n in (([[5]] * 3000, 128), (["x"] * 3000, 1), (["x"] * 5, 2), (WORDS, 9)):
        for more in ({}, {"echo": True, "max_tokens": 0}, {"echo": True, "max_tokens": 0, "logprobs": 1}):
            status, _, body = ask(scripted, prompt=prompt, n=n, stream=stream, **more)
            assert (status, body["error"]["param"]) == (400, "prompt")
            assert "this server takes at most 8" in body["error"]["message"]
    chat = {"messages": [{"role": "user", "content": "Hi"}], "n": 9, "stream": stream}
    monkeypatch.undo()
    status, _, body = post(scripted, "/v1/chat/completions", chat)
    assert (status, body["error"]["param"]) == (400, "n")


@pytest.fixture
def scoring(monkeypatch):
    """While this is clear, prompts that are to be scored wait in the engine's thread."""
    go = threading.Event()

    def scored(*model, **how):
        go.wait(30)
        return [Score((-1.0,) * len(target), True, ((),) * len(target)) for target in model[-1]]

    monkeypatch.setattr("flanjax.serving.service.score", scored)
    yield go
    go.set()


ECHO = {"echo": True, "max_tokens": 0, "logprobs": 0, "prompt": [WORDS] * 5}


def test_prompts_that_are_scored_are_in_the_queue(scripted, scoring):
    found = []
    thread = threading.Thread(target=lambda: found.append(ask(scripted, **ECHO)))
    thread.start()
    until(lambda: scripted.service.driver.rows == 5)
    status, _, body = ask(scripted, n=4)
    assert (status, body["error"]["code"]) == (429, "queue_full")
    assert ask(scripted, **ECHO)[0] == 429
    assert get(scripted, "/health")[1]["answers"] == 5
    scoring.set()
    thread.join()
    ((status, _, body),) = found
    assert (status, [choice["text"] for choice in body["choices"]]) == (200, [WORDS] * 5)
    until(lambda: scripted.service.driver.rows == 0)


def test_prompts_that_are_scored_are_let_go_of_and_ended_as_answers_are(scripted, scoring):
    with socket.create_connection(("127.0.0.1", scripted.port)) as client:
        client.sendall(request(ECHO))
        until(lambda: scripted.service.driver.rows == 5)
    until(lambda: scripted.service.driver.rows == 0)
    found = []
    thread = threading.Thread(target=lambda: found.append(ask(scripted, **ECHO)))
    thread.start()
    until(lambda: scripted.service.driver.rows == 5)
    scripted.loop.call_soon_threadsafe(scripted.service.driver.refuse_all, ApiError(503, "the end"))
    thread.join()
    assert [(status, body["error"]["message"]) for status, _, body in found] == [(503, "the end")]


# --- the engine and the model --------------------------------------------------------------------------------------


def test_a_failing_engine_is_told_to_everybody(scripted):
    scripted.engine.go.clear()
    found, threads = asking(scripted, 3)
    scripted.engine.broken = RuntimeError("out of memory")
    scripted.engine.go.set()
    for thread in threads:
        thread.join()
    found.append(ask(scripted))
    assert [(status, body["error"]["type"]) for status, _, body in found] == [(500, "server_error")] * 4
    assert all("out of memory" in body["error"]["message"] for _, _, body in found)
    status, body = get(scripted, "/health")
    assert (status, body["status"]) == (503, "engine_failed")
    with pytest.raises(openai.InternalServerError, match="out of memory"):
        scripted.client().completions.create(model="tiny", prompt=WORDS)
    scripted.engine.broken = None
    assert ask(scripted)[0] == 200, "it may have been that request alone"
    assert get(scripted, "/health")[0] == 200


def test_a_stream_that_has_begun_ends_with_the_reason(scripted):
    scripted.engine.pause_at = 3
    stream = scripted.client().completions.create(model="tiny", prompt=WORDS, max_tokens=100, stream=True)
    next(stream)
    scripted.engine.broken = RuntimeError("out of memory")
    scripted.engine.go.set()
    with pytest.raises(openai.APIError, match="out of memory"):
        list(stream)


def test_an_answer_that_fails_alone_fails_alone(scripted, monkeypatch):
    monkeypatch.setattr(scripted.engine, "fails", "odd one")
    status, _, body = ask(scripted, prompt=["an odd one out", WORDS])
    assert (status, "cannot be spelled" in body["error"]["message"]) == (500, True)
    assert ask(scripted)[0] == 200
    assert get(scripted, "/health")[0] == 200


def test_a_refusal_of_the_engine_is_the_clients(scripted, monkeypatch):
    errors = [(FlanjaxError("too many positions"), 400), (MemoryError("too much"), 400), (RuntimeError("broken"), 500)]
    for error, status in errors:

        def refuse(*given, error=error, **more):
            raise error

        with monkeypatch.context() as patched:
            patched.setattr(scripted.engine, "submit", refuse)
            answer = ask(scripted)
        assert (answer[0], str(error) in answer[2]["error"]["message"]) == (status, True)
        assert ask(scripted)[0] == 200


def test_requests_wait_for_no_model_that_is_being_loaded(llama):
    loaded = threading.Event()

    def slowly():
        loaded.wait(30)
        return llama

    with running(slowly, make_engine=ScriptedEngine, wait=False) as server:
        status, headers, body = ask(server)
        assert (status, body["error"]["code"], headers["retry-after"]) == (503, "loading", "2")
        assert get(server, "/health") == (503, {"status": "loading", "message": "the model is being loaded"})
        loaded.set()
        until(lambda: get(server, "/health")[0] == 200)
        assert ask(server)[0] == 200


def test_a_model_that_cannot_be_opened_ends_the_server():
    def no_model():
        raise FlanjaxError("no such folder")

    async def main(listening):
        await serve(Service(no_model, Settings(name="x")), listening, grace=1, on_ready=lambda: None)

    with pytest.raises(FlanjaxError, match="no such folder"):
        asyncio.run(main(socket.create_server(("127.0.0.1", 0))))


# --- what is refused -----------------------------------------------------------------------------------------------


def test_names_and_health(scripted):
    assert [model.id for model in scripted.client().models.list()] == ["tiny"]
    assert scripted.client().models.retrieve("tiny").owned_by == "flanjax"
    assert get(scripted, "/health") == (200, {"status": "ready", "answers": 0, "slots": 4})
    with pytest.raises(openai.NotFoundError, match="did you mean 'tiny'") as error:
        scripted.client().completions.create(model="tinny", prompt="x")
    assert error.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        scripted.client().models.retrieve("other")


def test_addresses_that_are_not_there(scripted):
    for path, method, status in (("/v1/chat", "GET", 404), ("/v1/completions", "GET", 405), ("/x", "POST", 404)):
        connection = http.client.HTTPConnection("127.0.0.1", scripted.port, timeout=30)
        connection.request(method, path)
        answer = connection.getresponse()
        assert answer.status == status
        assert path in json.loads(answer.read())["error"]["message"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[1]", "must be a JSON object"),
        (b'{"prompt": NaN}', "NaN"),
        (b'{"prompt": "\\ud800"}', "surrogates"),
        (b'{"prompt": "\xff"}', "not valid JSON"),
        (b"[" * 10_000, "not valid JSON"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b"{}", "prompt is missing"),
        (b'{"prompt": []}', "prompt is []"),
        (b'{"prompt": "x", "temprature": 1}', "did you mean 'temperature'"),
    ],
)
def test_malformed_bodies(scripted, body, says):
    status, _, answer = post(scripted, "/v1/completions", body)
    assert status == 400
    assert says in answer["error"]["message"]
    assert answer["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", [0, 10**6]),
        ("prompt", [[]]),
        ("prompt", ["a", [1]]),
        ("max_tokens", 0),
        ("max_tokens", True),
        ("max_tokens", 1000),
        ("temperature", -1),
        ("temperature", "hot"),
        ("temperature", 10**400),
        ("top_p", 1.5),
        ("n", 0),
        ("n", 10**6),
        ("stop", ["x"] * 17),
        ("stop", [""]),
        ("logprobs", 21),
        ("best_of", 2),
        ("suffix", "x"),
        ("presence_penalty", 0.5),
        ("logit_bias", {"5": 1}),
        ("stream", "yes"),
        ("stream_options", {"include_usage": True}),
        ("repetition_penalty", 0),
    ],
)
def test_fields_that_are_refused(scripted, field, value):
    status, _, body = ask(scripted, **{field: value})
    assert (status, body["error"]["param"]) == (400, field)


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": ["hi"]}, "messages"),
        ({"messages": [{"role": "cat", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "end<|im_end|>"}]}, "messages"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"max_completion_tokens": 1000}, "max_completion_tokens"),
    ],
)
def test_fields_of_a_chat_that_are_refused(scripted, given, param):
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]} | given
    status, _, answer = post(scripted, "/v1/chat/completions", body)
    assert (status, answer["error"]["param"]) == (400, param)


def test_what_changes_nothing_is_taken(scripted):
    given = {"user": "me", "best_of": 1, "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}}
    assert ask(scripted, suffix=None, top_p=0.5, temperature=0, **given)[0] == 200


def test_bodies_too_large(scripted):
    assert ask(scripted, prompt="x" * 30_000)[0] == 413
    assert ask(scripted, prompt="x" * 1_000_000)[0] == 413
    connection = http.client.HTTPConnection("127.0.0.1", scripted.port, timeout=30)
    parts = (b"x" * 1000 for _ in range(50))
    connection.request("POST", "/v1/completions", parts, {"content-type": "application/json"}, encode_chunked=True)
    assert connection.getresponse().status == 413


def test_other_kinds_of_bodies(scripted):
    status, _, body = post(scripted, "/v1/completions", {"prompt": "x"}, kind="text/plain")
    assert (status, "application/json" in body["error"]["message"]) == (415, True)


def test_a_key_is_asked_for(llama):
    with running(llama, make_engine=ScriptedEngine, api_key="sésame") as server:
        for headers in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": "sésame"},
            {"authorization": "Basic x"},
        ):
            headers = {name: value.encode() for name, value in headers.items()}
            status, answered, body = post(server, "/v1/completions", {"prompt": "x"}, headers=headers)
            assert (status, body["error"]["code"]) == (401, "invalid_api_key")
            assert answered["www-authenticate"] == "Bearer"
            assert get(server, "/v1/models", headers)[0] == 401
        assert get(server, "/health")[0] == 200
        right = {"authorization": "Bearer sésame".encode()}
        assert post(server, "/v1/completions", {"prompt": "x"}, headers=right)[0] == 200
        with pytest.raises(openai.AuthenticationError):
            server.client(api_key="none").completions.create(model="tiny", prompt="x")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
COMMON = ("model", "max_tokens", "temperature", "top_p", "n", "stop", "seed", "logprobs", "stream", "stream_options")
COMMON += ("presence_penalty", "frequency_penalty", "logit_bias", "user", "top_k", "min_p", "repetition_penalty")
COMPLETION = (*COMMON, "prompt", "best_of", "suffix")
CHAT = (
    *COMMON,
    "messages",
    "top_logprobs",
    "max_completion_tokens",
    "tools",
    "tool_choice",
    "response_format",
    "store",
)


def test_no_field_of_any_type_fails_the_server(scripted):
    @given(st.dictionaries(st.sampled_from(COMPLETION), VALUES, max_size=3))
    @settings(max_examples=60)
    def completions(fields):
        assert ask(scripted, **fields)[0] in (200, 400, 404, 429)

    @given(st.dictionaries(st.sampled_from(CHAT), VALUES, max_size=3), st.lists(VALUES, max_size=2))
    @settings(max_examples=60)
    def chats(fields, parts):
        message = {"role": "user", "content": [{"type": "text", "text": "Hi"}, *parts]}
        body = {"messages": [message], "max_tokens": 4} | fields
        assert post(scripted, "/v1/chat/completions", body)[0] in (200, 400, 404, 429)

    completions()
    chats()
    assert get(scripted, "/health") == (200, {"status": "ready", "answers": 0, "slots": 4})
