"""Tiny models behind a real server on a real socket, and an engine that does what the test wants when it wants it."""

import asyncio
import contextlib
import http.client
import json
import socket
import threading
import time
from collections import deque
from types import SimpleNamespace

import jax
import numpy as np
import openai
import pytest

import flanjax
from flanjax.data.chat_templates import named_templates
from flanjax.data.vocabularies import Vocabulary, train_vocabulary
from flanjax.generation.engine import Piece, Request, TokenLogprob
from flanjax.generation.scoring import Score
from flanjax.interchange.hf_decoder import write_hf_decoder
from flanjax.interchange.hf_t5 import write_hf_t5
from flanjax.models import decoder, t5
from flanjax.models.config import T5Config
from flanjax.models.decoder_config import DecoderConfig
from flanjax.serving.server import serve
from flanjax.serving.service import Service, Settings, engine_of

WORDS = "one two three"
SENTENCES = [f"sort {i} and {i * 7} words of March: yes or no?" for i in range(40)]


def loud(params):
    """Three times the usual deviations: a fresh model says nearly the same whatever it is asked."""
    return jax.tree.map(lambda leaf: np.asarray(leaf) * 3, params)


@pytest.fixture(scope="session")
def llama(bpe_folder, tmp_path_factory):
    """A small Llama with a chat template."""
    vocabulary = Vocabulary.from_file(bpe_folder)
    vocabulary.own_templates = {"default": named_templates()["chatml"]}
    config = DecoderConfig(
        vocab_size=vocabulary.size, embed_dim=32, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=16, mlp_dim=48,
        max_positions=128,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("serving") / "llama"
    write_hf_decoder(folder, config, loud(decoder.init_params(config, 0)), vocabulary, model_type="llama")
    model = flanjax.load(folder)
    model.vocabulary.own_templates = dict(vocabulary.own_templates)
    return model


@pytest.fixture(scope="session")
def t5_model(tmp_path_factory):
    """A small T5, which has no chat template."""
    vocabulary = train_vocabulary(SENTENCES, 40, tmp_path_factory.mktemp("vocabulary") / "spiece.model", extra_ids=10)
    config = T5Config(
        vocab_size=64, embed_dim=16, num_heads=2, head_dim=4, mlp_dim=24, num_encoder_layers=2, num_decoder_layers=2
    )
    folder = tmp_path_factory.mktemp("serving") / "t5"
    write_hf_t5(folder, config, loud(t5.init_params(config, seed=3)), vocabulary)
    return flanjax.load(folder)


class Running:
    """A server in a thread, and clients for it; `engine` once the model is there."""

    def __init__(self, service, port, loop, engines):
        self.service, self.port, self.loop, self._engines = service, port, loop, engines
        self.url = f"http://127.0.0.1:{port}"

    @property
    def engine(self):
        return self._engines[0]

    def client(self, **options):
        return openai.OpenAI(
            base_url=f"{self.url}/v1", **({"api_key": "none", "max_retries": 0, "timeout": 180} | options)
        )

    def async_client(self, **options):
        return openai.AsyncOpenAI(
            base_url=f"{self.url}/v1", **({"api_key": "none", "max_retries": 0, "timeout": 180} | options)
        )


@contextlib.contextmanager
def running(model, *, make_engine=engine_of, wait=True, buffer=None, **settings):
    """A server for a model, or for what `model()` opens, until the end of the context.

    The system keeps `buffer` bytes at most of what is sent on a connection.
    """
    found, engines, ready = [], [], threading.Event()

    def make(*given):
        engines.append(make_engine(*given))
        return engines[0]

    service = Service(model if callable(model) else lambda: model, Settings(**({"name": "tiny"} | settings)), make)
    listening = socket.create_server(("127.0.0.1", 0))
    if buffer is not None:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
    port = listening.getsockname()[1]

    async def main():
        task = asyncio.ensure_future(serve(service, listening, grace=5, on_ready=ready.set))
        found.extend((asyncio.get_running_loop(), task))
        if not wait:
            ready.set()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    assert ready.wait(300), "the server did not come up"
    loop, task = found
    try:
        yield Running(service, port, loop, engines)
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join(30)
        assert not thread.is_alive(), "the server did not end"


class ScriptedEngine:
    """Gives each request the ids of its own input again and again, one a step; a test may hold it or break it.

    Attributes:
      steps: taken so far.
      go: steps are taken only while this is set.
      pause_at: after so many steps `go` is cleared.
      broken: raised by the next step.
      cancelled: requests that were let go of.
      fails: a request with this in its input fails alone.
    """

    def __init__(self, model, settings):
        self._decode, self._slots = model.vocabulary.decode, settings.slots
        self._waiting, self._running = deque(), []
        self.steps, self.cancelled, self.broken, self.pause_at = 0, [], None, None
        self.fails = None
        self.go = threading.Event()
        self.go.set()

    def submit(self, ids, decoding, *, sample=0, prompt=0, logprobs=None, continues=False, on_piece=None):
        request = Request()
        self._waiting.append((request, tuple(ids), decoding, logprobs, on_piece))
        return request

    def cancel(self, request):
        request.done = True
        self.cancelled.append(request)
        self._waiting = deque(row for row in self._waiting if row[0] is not request)
        self._running = [row for row in self._running if row[0] is not request]

    def run_once(self):
        if self.steps == self.pause_at:
            self.pause_at = None
            self.go.clear()
        self.go.wait(60)
        if self.broken is not None and (self._waiting or self._running):
            self._running, self._waiting = [], deque()
            raise self.broken
        while self._waiting and len(self._running) < self._slots:
            self._running.append(self._waiting.popleft())
        self.steps += bool(self._running)
        for request, ids, decoding, logprobs, on_piece in self._running:
            if self.fails is not None and self.fails in self._decode(ids):
                request.done, request.error = True, ValueError("cannot be spelled")
                continue
            token = ids[len(request.ids) % len(ids)]
            before = self._decode(request.ids)
            request.ids.append(token)
            request.done = len(request.ids) == decoding.max_new_tokens
            request.finish = "length" if request.done else None
            told = () if logprobs is None else (TokenLogprob(-1.0, ((token, -1.0),) * logprobs),)
            request.text = self._decode(request.ids)
            request.logprobs.extend(told)
            if on_piece is None:
                continue
            on_piece(Piece((token,), request.text[len(before) :], told, request.finish))
        self._running = [row for row in self._running if not row[0].done]
        return bool(self._running or self._waiting)


class SlowEngine(ScriptedEngine):
    """Takes a hundredth of a second for a step; made as the real one is."""

    def __init__(self, config, compute, params, *, slots, decode, prefix_lm):
        vocabulary = SimpleNamespace(decode=decode)
        super().__init__(SimpleNamespace(vocabulary=vocabulary), SimpleNamespace(slots=slots))

    def run_once(self):
        time.sleep(0.01)
        return super().run_once()


def slow_score(config, compute, params, inputs, targets, **how):
    """Takes longer than a connection has to say goodbye."""
    time.sleep(3)
    return [Score((-1.0,) * len(target), True, ((),) * len(target)) for target in targets]


@pytest.fixture
def scripted(llama):
    """A server whose engine follows the test's script."""
    with running(llama, make_engine=ScriptedEngine, slots=4, max_queue=4, max_body=20_000) as server:
        yield server
        server.engine.go.set()


def post(server, path, body, *, headers=None, kind="application/json"):
    """The status, the headers and the object of an answer to raw bytes."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request("POST", path, content, {"content-type": kind, **(headers or {})})
    answer = connection.getresponse()
    content = answer.read()
    is_json = answer.headers["content-type"] == "application/json"
    return answer.status, answer.headers, json.loads(content) if is_json else content.decode()


def get(server, path, headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("GET", path, headers=headers or {})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def until(holds):
    """Waits for what another thread is about to do."""
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.005)


def ask(server, **given):
    return post(server, "/v1/completions", {"model": "tiny", "prompt": WORDS, "max_tokens": 8, **given})


def request(body):
    """The bytes of a request for completions, or for a chat."""
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    body = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def events(answer):
    """The objects of a stream, and what it ends with."""
    lines = [line.removeprefix("data: ") for line in answer.splitlines() if line]
    return [json.loads(line) for line in lines if line != "[DONE]"], lines[-1]
