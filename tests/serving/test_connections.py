"""Clients that go away, that read slowly or never, and that do not come to the point: nobody else is held up."""

import asyncio
import contextlib
import json
import socket
import threading
import time

import pytest

from flanjax.serving.app import make_app
from flanjax.serving.server import _Server
from tests.serving.conftest import WORDS, ScriptedEngine, ask, events, request, running, until


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_lets_go_of_its_answers(scripted, stream):
    scripted.engine.pause_at = 3 if stream else 0
    with socket.create_connection(("127.0.0.1", scripted.port)) as client:
        client.sendall(request({"prompt": WORDS, "max_tokens": 50, "n": 3, "stream": stream}))
        if stream:
            assert client.recv(10_000).startswith(b"HTTP/1.1 200 ")
        until(lambda: scripted.service.driver.rows == 3)
        until(lambda: not scripted.engine.go.is_set())
    until(lambda: scripted.service.driver.rows == 0)
    scripted.engine.go.set()
    assert ask(scripted)[0] == 200
    assert len(scripted.engine.cancelled) == 3
    assert scripted.engine.steps < 50


def slow_stream(server, may_send, sent, **given):
    """A stream to a client that takes no more while `may_send` is clear; runs in the server's loop."""
    body = json.dumps({"prompt": WORDS, "stream": True, **given}).encode()
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive():
        if messages:
            return messages.pop()
        return await asyncio.Future()

    async def send(message):
        sent.append(message)
        while not may_send.is_set():
            await asyncio.sleep(0.005)

    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "query_string": b""}
    scope |= {"headers": [(b"content-type", b"application/json")], "http_version": "1.1", "asgi": {"version": "3.0"}}
    return asyncio.run_coroutine_threadsafe(make_app(server.service)(scope, receive, send), server.loop)


def test_a_slow_client_holds_nobody_up_and_misses_nothing(scripted):
    may_send, sent = threading.Event(), []
    done = slow_stream(scripted, may_send, sent, max_tokens=60)
    until(lambda: sent)
    whole = ask(scripted, max_tokens=60)
    until(lambda: scripted.engine.steps >= 60)
    assert len(sent) == 1, "it still holds the first message"
    may_send.set()
    done.result(30)
    chunks, last = events(b"".join(message.get("body", b"") for message in sent).decode())
    assert last == "[DONE]"
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole[2]["choices"][0]["text"]
    assert len(chunks) < 60, "what waited came together"
    assert sum(message.get("more_body") is False for message in sent) == 1


def test_a_client_that_never_reads_is_cut_off(llama):
    with running(llama, make_engine=ScriptedEngine, timeout=0.5) as server:
        sent = []
        slow_stream(server, threading.Event(), sent, max_tokens=60).result(30)
        assert server.service.driver.rows == 0
        assert sent[0]["type"] == "http.response.start"


LITTLE = 4096  # bytes that the system keeps for a socket
LARGE = {
    "messages": [{"role": "user", "content": "Hi"}],
    "max_tokens": 90,
    "n": 8,
    "logprobs": True,
    "top_logprobs": 20,
}


@pytest.fixture
def connections(monkeypatch):
    """Those of the servers that are made in the test; what stands still for half a second is ended."""
    servers = []

    class Watched(_Server):
        def __init__(self, *given):
            super().__init__(*given)
            servers.append(self)

    monkeypatch.setattr("flanjax.serving.server._Server", Watched)
    monkeypatch.setattr("flanjax.serving.server._STILL", 0.5)
    return lambda: set.union(*(server.server_state.connections for server in servers))


def reader(server, answer):
    """A connection that has asked for an answer and has read none of it."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, LITTLE)
    client.settimeout(30)
    client.connect(("127.0.0.1", server.port))
    client.sendall(request(answer))
    return client


def rest(client):
    """What comes until the connection ends."""
    parts = []
    with client, contextlib.suppress(ConnectionResetError):
        while part := client.recv(65_536):
            parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize("stream", [False, True])
def test_a_connection_that_is_never_read_ends(llama, connections, stream):
    answer = LARGE | {"stream": stream}
    with running(llama, make_engine=ScriptedEngine, timeout=2, buffer=LITTLE) as server:
        client = reader(server, answer)
        until(lambda: server.engine.steps >= 90)
        until(lambda: server.service.driver.rows == 0)
        until(lambda: not connections())
        assert len(rest(client)) < 100_000, "and not all when it reads after all"
        assert len(rest(reader(server, answer))) > 300_000
        assert ask(server)[0] == 200


def test_a_connection_that_is_read_slowly_does_not_end(llama, connections):
    with running(llama, make_engine=ScriptedEngine, buffer=LITTLE) as server:
        with reader(server, LARGE) as client:
            came = 0
            for _ in range(20):
                came += len(client.recv(16_384))
                time.sleep(0.1)
            assert connections()
            came += len(rest(client))
        assert came > 300_000


def test_a_request_whose_head_does_not_come_ends(llama, connections):
    with running(llama, make_engine=ScriptedEngine) as server:
        for begun in (b"", b"POST /v1/comp", request({"prompt": WORDS}) + b"POST"):
            with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
                client.sendall(begun)
                until(connections)
                assert rest(client).startswith(b"HTTP/1.1 200 " if begun.endswith(b"}POST") else b"")
            until(lambda: not connections())


def test_a_request_has_its_time(llama):
    with running(llama, make_engine=ScriptedEngine, timeout=0.3) as server:
        server.engine.go.clear()
        status, _, body = ask(server)
        assert (status, body["error"]["code"]) == (504, "timeout")
        assert server.service.driver.rows == 0
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n")
            client.sendall(b"content-length: 100\r\n\r\n{")
            assert client.recv(1000).startswith(b"HTTP/1.1 408 ")
        server.engine.go.set()
        assert ask(server)[0] == 200
