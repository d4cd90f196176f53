"""`python -m flanjax.serve` as a process: its lines, its key, its end."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import jax
import numpy as np
import openai
import pytest

from flanjax import serve
from flanjax.data.vocabularies import Vocabulary
from flanjax.interchange.hf_decoder import write_hf_decoder
from flanjax.models.decoder import init_params
from flanjax.models.decoder_config import DecoderConfig

KEY = "secret"


@pytest.fixture(scope="module")
def folder(bpe_folder, tmp_path_factory):
    """A small Llama without a chat template."""
    vocabulary = Vocabulary.from_file(bpe_folder)
    config = DecoderConfig(
        vocab_size=vocabulary.size, embed_dim=16, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=16, mlp_dim=16,
        max_positions=8192,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("models") / "little"
    params = jax.tree.map(np.asarray, init_params(config, 0))
    write_hf_decoder(folder, config, params, vocabulary, model_type="llama")
    return folder


@contextlib.contextmanager
def server(folder, *flags):
    """The process and its address, once it is ready."""
    command = [sys.executable, "-m", "flanjax.serve", f"--model={folder}", "--port=0", "--slots=2", *flags]
    environment = os.environ | {serve.API_KEY: KEY, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
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
        yield process, openai.OpenAI(base_url=found[1], api_key=KEY, max_retries=0, timeout=60)
    finally:
        process.kill()
        process.communicate()


def status(client):
    try:
        answer = urllib.request.urlopen(str(client.base_url).replace("/v1/", "/health"))
    except urllib.error.HTTPError as refused:
        answer = refused
    return answer.status, json.loads(answer.read())["status"]


def ended(process):
    out, error = process.communicate(timeout=60)
    return process.returncode, out, error


def test_what_is_under_way_ends_and_nothing_new_begins(folder):
    with server(folder) as (process, client):
        assert [model.id for model in client.models.list()] == ["little"]
        given = {"model": "little", "prompt": "a", "max_tokens": 4000, "seed": 1}
        stream = client.completions.create(**given, stream=True)
        pieces = [next(stream)]
        process.send_signal(signal.SIGTERM)
        while (health := status(client))[0] == 200:
            pass
        assert health == (503, "shutting_down")
        with pytest.raises(openai.InternalServerError, match="shutting down") as refused:
            client.completions.create(**given)
        assert refused.value.status_code == 503
        pieces += stream
        assert pieces[-1].choices[0].finish_reason in ("stop", "length")
        assert len(pieces) > 10
        assert ended(process) == (0, "ended\n", "")


def test_what_does_not_end_in_time_is_told(folder):
    with server(folder, "--grace=0.2", "--max_length=8000") as (process, client):
        stream = client.completions.create(
            model="little",
            prompt="a",
            max_tokens=7900,
            stream=True,
            temperature=0,
            extra_body={"repetition_penalty": 0.1},
        )
        next(stream)
        process.send_signal(signal.SIGINT)
        with pytest.raises(openai.APIError, match="shutting down"):
            list(stream)
        assert ended(process) == (0, "ended\n", "")


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
