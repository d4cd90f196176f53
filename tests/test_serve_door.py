"""`python -m flanjax.serve` as a process: its lines, its key, its end."""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import jax
import numpy as np
import openai
import pytest

import flanjax
from flanjax import serve
from flanjax.data.vocabularies import Vocabulary
from flanjax.interchange.hf_decoder import write_hf_decoder
from flanjax.models.decoder import init_params
from flanjax.models.decoder_config import DecoderConfig

KEY = "secret"
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(bpe_folder, tmp_path_factory):
    """A small Llama without a chat template."""
    vocabulary = Vocabulary.from_file(bpe_folder)
    config = DecoderConfig(
        vocab_size=vocabulary.size, embed_dim=16, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=16, mlp_dim=16,
        max_positions=2048,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("models") / "little"
    params = jax.tree.map(np.asarray, init_params(config, 0))
    write_hf_decoder(folder, config, params, vocabulary, model_type="llama")
    return folder


# The door with an engine that takes its time, and compiles nothing.
SLOW = """
import sys
import flanjax
from flanjax import serve
from flanjax.serving import service
from tests.serving.conftest import SlowEngine, slow_score
service.Engine, service.score = SlowEngine, slow_score
sys.exit(serve.main(sys.argv[1:]))
"""


@contextlib.contextmanager
def server(folder, *flags, slow=False):
    """The process and a client for it, once it is ready."""
    door = ["-c", SLOW] if slow else ["-m", "flanjax.serve"]
    command = [sys.executable, *door, f"--model={folder}", "--port=0", "--slots=2", *flags]
    environment = os.environ | {serve.API_KEY: KEY, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("serving"):
                break
        assert lines, process.stderr.read()
        found = re.fullmatch(r"serving little at (http://127\.0\.0\.1:\d+/v1)\n", lines[-1])
        assert found, (lines, process.stderr.read())
        yield process, openai.OpenAI(base_url=found[1], api_key=KEY, max_retries=0, timeout=180)
    finally:
        process.kill()
        process.communicate()


def health(client):
    try:
        answer = urllib.request.urlopen(str(client.base_url).replace("/v1/", "/health"))
    except urllib.error.HTTPError as refused:
        answer = refused
    return {"code": answer.status, **json.loads(answer.read())}


def ended(process):
    out, error = process.communicate(timeout=180)
    return process.returncode, out, error


def test_a_model_is_served(folder):
    with server(folder) as (process, client):
        assert [model.id for model in client.models.list()] == ["little"]
        (choice,) = client.completions.create(model="little", prompt="a", max_tokens=8, temperature=0).choices
        assert [choice.text] == flanjax.load(folder).generate(["a"], 8)
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="other").models.list()
        process.send_signal(signal.SIGTERM)
        assert ended(process) == (0, "ended\n", "")


def test_what_is_under_way_ends_and_nothing_new_begins(folder):
    with server(folder, slow=True) as (process, client):
        given = {"model": "little", "prompt": "a b c", "max_tokens": 200}
        stream = client.completions.create(**given, stream=True)
        pieces = [next(stream)]
        process.send_signal(signal.SIGTERM)
        while (now := health(client))["code"] == 200:
            pass
        assert (now["code"], now["status"]) == (503, "shutting_down")
        with pytest.raises(openai.InternalServerError, match="shutting down") as refused:
            client.completions.create(**given)
        assert refused.value.status_code == 503
        pieces += stream
        assert pieces[-1].choices[0].finish_reason == "length"
        said = "".join(piece.choices[0].text for piece in pieces)
        ids = Vocabulary.from_file(folder).encode("a b c")
        assert said == Vocabulary.from_file(folder).decode((ids * 200)[:200])
        assert ended(process) == (0, "ended\n", "")


def test_prompts_that_are_being_scored_have_their_time_too(folder):
    with server(folder, slow=True) as (process, client), ThreadPoolExecutor() as pool:
        given = {"model": "little", "prompt": "a b c", "max_tokens": 0, "echo": True, "logprobs": 0}
        answer = pool.submit(client.completions.create, **given)
        while health(client)["answers"] == 0:
            pass
        process.send_signal(signal.SIGTERM)
        assert set(answer.result().choices[0].logprobs.token_logprobs) == {None, -1.0}
        assert ended(process) == (0, "ended\n", "")


def test_what_does_not_end_in_time_is_told(folder):
    with server(folder, "--grace=0.1", slow=True) as (process, client):
        stream = client.completions.create(model="little", prompt="a", max_tokens=1000, stream=True)
        next(stream)
        process.send_signal(signal.SIGINT)
        with pytest.raises(openai.APIError, match="shutting down"):
            list(stream)
        assert ended(process) == (0, "ended\n", "")


def test_a_second_signal_does_not_wait(folder):
    with server(folder, slow=True) as (process, client):
        stream = client.completions.create(model="little", prompt="a", max_tokens=1000, stream=True)
        next(stream)
        process.send_signal(signal.SIGTERM)
        while health(client)["code"] == 200:
            pass
        process.send_signal(signal.SIGTERM)
        with pytest.raises((openai.APIError, httpx2.TransportError)):
            list(stream)
        assert ended(process)[:2] == (0, "ended\n")


def test_the_commands_of_the_page_are_taken():
    page = (ROOT / "docs" / "inference.md").read_text()
    found = re.findall(r"^ {4}python -m flanjax\.serve (.+)$", page, flags=re.MULTILINE)
    assert found
    for arguments in found:
        assert serve._parser().parse_args(shlex.split(arguments)).model


def test_a_model_that_is_not_there(tmp_path, capfd):
    assert serve.main([f"--model={tmp_path}", "--port=0"]) == 2
    assert str(tmp_path) in capfd.readouterr().err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--api_key=x", "--api_key_file=y"], "both given"),
        (["--api_key="], "empty key"),
        (["--api_key_file=nowhere"], "cannot be read"),
        (["--host=256.0.0.1"], "cannot listen"),
        (["--port=99999"], "cannot listen"),
        (["--slots=0"], "slots is 0"),
        (["--timeout=nan"], "timeout is nan"),
    ],
)
def test_flags_that_make_no_sense(flags, says, capfd):
    assert serve.main(["--model=x", "--port=0", *flags]) == 2
    assert says in capfd.readouterr().err


def test_the_key_comes_from_a_file_before_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv(serve.API_KEY, "of the environment")
    (tmp_path / "key").write_text("of the file\nmore\n")
    parse = serve._parser().parse_args
    assert serve._api_key(parse(["--model=x", f"--api_key_file={tmp_path / 'key'}"])) == "of the file"
    assert serve._api_key(parse(["--model=x"])) == "of the environment"
    monkeypatch.delenv(serve.API_KEY)
    assert serve._api_key(parse(["--model=x"])) is None
