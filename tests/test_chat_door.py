"""`python -m flanjax.chat`: what a conversation keeps and drops, in memory, through a pipe and on a terminal."""

import io
import os
import pty
import select
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

import flanjax
from flanjax import chat
from flanjax.chat import Talk
from flanjax.data.chat_templates import named_templates
from flanjax.data.vocabularies import Vocabulary
from flanjax.errors import FlanjaxError
from flanjax.interchange.any_model import write_hf_model
from flanjax.loading import Model
from flanjax.models.decoder_config import DecoderConfig
from flanjax.models.model import init_params

CONFIG = DecoderConfig(
    vocab_size=704, embed_dim=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=24, init_stddev=0.6,
    max_positions=96,
)  # fmt: skip
NEW = 8

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, bpe_folder: Path) -> Path:
    """A tiny Llama with ChatML."""
    folder = tmp_path_factory.mktemp("chat")
    shutil.copytree(bpe_folder, folder / "vocabulary")
    (folder / "vocabulary" / "chat_template.jinja").write_text(named_templates()["chatml"])
    vocabulary = Vocabulary.from_file(folder / "vocabulary")
    write_hf_model(folder / "model", CONFIG, jax.tree.map(np.asarray, init_params(CONFIG, 1)), vocabulary)
    return folder / "model"


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return flanjax.load(folder)


@pytest.fixture(scope="module")
def plain(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without a template."""
    copy = tmp_path_factory.mktemp("plain") / "model"
    shutil.copytree(folder, copy)
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        (copy / name).unlink(missing_ok=True)
    return copy


class Shown:
    """What a talk has shown, and told."""

    def __init__(self, model: Model, **options: int):
        self.pieces: list[str] = []
        self.told: list[str] = []
        self.talk = Talk(model, self.pieces.append, self.told.append, **{"max_new_tokens": NEW, **options})

    def say(self, text: str) -> str:
        self.pieces.clear()
        self.talk.say(text)
        return "".join(self.pieces)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "Be brief."}


def test_what_was_said_is_part_of_what_comes(model: Model) -> None:
    shown = Shown(model)
    first, second = shown.say("Hi"), shown.say("Who are you?")
    assert len(shown.pieces) > 2
    history = [user("Hi"), assistant(first[:-1]), user("Who are you?")]
    assert [first, second] == [f"{text}\n" for text in model.chat([[user("Hi")], history], NEW)]
    assert first != second
    assert shown.talk.messages == [*history, assistant(second[:-1])]
    shown.talk.messages = []
    assert shown.say("Hi") == first
    shown.talk.messages = []
    shown.talk.set_system("Be brief.")
    assert [shown.say("Hi")] == [f"{text}\n" for text in model.chat([[SYSTEM, user("Hi")]], NEW)]


def test_an_answer_that_is_stopped_stays_as_far_as_it_came(model: Model) -> None:
    shown = Shown(model)
    whole = shown.say("Hi")
    shown.talk.messages = []

    def interrupting(piece: str) -> None:
        shown.pieces.append(piece)
        if len(shown.pieces) == 3:
            raise KeyboardInterrupt

    shown.talk._show = interrupting
    stopped = shown.say("Hi")
    assert whole.startswith(stopped[:-1])
    assert len(stopped) < len(whole)
    assert shown.told == ["stopped"]
    assert shown.talk.messages == [user("Hi"), assistant(stopped[:-1])]
    shown.talk._show = shown.pieces.append
    assert shown.say("And?") == model.chat([[*shown.talk.messages[:2], user("And?")]], NEW)[0] + "\n"


def test_the_oldest_messages_make_room_and_it_is_told(model: Model) -> None:
    shown = Shown(model)
    shown.talk.set_system("Be brief.")
    for number in range(6):
        before = shown.talk.messages
        answer = shown.say(f"Question {number}?")
        messages = [SYSTEM, *shown.talk.messages[:-1]]
        assert answer == model.chat([messages], NEW)[0] + "\n"
        assert shown.talk.messages[:-2] == before[len(before) + 2 - len(shown.talk.messages) :]
    dropped = [text for text in shown.told if "left out" in text]
    assert dropped
    assert all("more than 96 tokens" in text for text in dropped)
    assert shown.talk.messages[0]["role"] == "user"
    before = list(shown.talk.messages)
    with pytest.raises(FlanjaxError, match=r"are more than the 96 that the model holds: say it in fewer words"):
        shown.say("word " * 90)
    assert shown.talk.messages == before


def test_what_is_refused_is_forgotten(model: Model) -> None:
    shown = Shown(model)
    with pytest.raises(FlanjaxError, match="read as a token of control"):
        shown.say("Hi<|im_end|>")
    assert shown.talk.messages == []
    with pytest.raises(FlanjaxError, match="read as a token of control"):
        shown.talk.set_system("<|im_start|>")
    assert shown.talk.system == ""


def test_a_model_without_a_template_answers_each_line_alone(plain: Path) -> None:
    model = flanjax.load(plain)
    shown = Shown(model)
    shown.talk.introduce()
    assert sum("no chat template" in text for text in shown.told) == 1
    answers = [shown.say(text) for text in ("Once upon", "a time", "Once upon")]
    assert answers == [f"{text}\n" for text in model.generate(["Once upon", "a time", "Once upon"], NEW)]
    assert shown.talk.messages == []
    assert sum("no chat template" in text for text in shown.told) == 1
    with pytest.raises(FlanjaxError, match="there is no place for a system text"):
        shown.talk.set_system("Be brief.")
    with pytest.raises(FlanjaxError, match="more than the 96"):
        shown.say("word " * 90)


Converse = Callable[..., tuple[int, str, str]]


@pytest.fixture
def converse(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Converse:
    """What the door says to lines from a pipe."""

    def converse(lines: bytes, *flags: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines), encoding="utf-8"))
        status = chat.main([f"--model={folder}", f"--max_new_tokens={NEW}", *flags])
        return status, *capsys.readouterr()

    return converse


def test_lines_from_a_pipe_are_answered_on_stdout_alone(model: Model, converse: Converse) -> None:
    status, out, err = converse(b"Hi\n\n/what\n/usr/bin?\n/reset\nHi\n/system Be brief.\n/reset\nHi\n/quit\nHi\n")
    first, other = model.chat([[user("Hi")], [SYSTEM, user("Hi")]], NEW)
    path = model.chat([[user("Hi"), assistant(first), user("/usr/bin?")]], NEW)[0]
    assert (status, out) == (0, f"{first}\n{path}\n{first}\n{other}\n")
    assert "there is no /what: /reset forgets" in err
    assert "it holds 96 tokens" in err
    status, out, err = converse(b"Hi<|im_end|>\nHi", "--system=Be brief.")
    assert (status, out) == (0, f"{other}\n")
    assert "error: the conversation" in err
    assert converse(b"\xff\xfe Hi")[1] == model.chat([[user("\N{REPLACEMENT CHARACTER}" * 2 + " Hi")]], NEW)[0] + "\n"
    status, out, err = converse(b"Hi", "--top_p=0.5")
    assert (status, out) == (2, "")
    assert "top_p chooses what is drawn, but temperature 0 draws nothing" in err


def test_ctrl_c_at_the_prompt_does_not_leave_and_ctrl_d_does(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    shown, typed = Shown(model), iter([KeyboardInterrupt, "Hi", EOFError, KeyboardInterrupt])

    def type_in(prompt: str) -> str:
        line = next(typed)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr("builtins.input", type_in)
    assert chat._converse(shown.talk, interactive=True) == 0
    assert [message["role"] for message in shown.talk.messages] == ["user", "assistant"]
    with pytest.raises(KeyboardInterrupt):  # of a pipe there is no prompt to come back to
        chat._converse(shown.talk, interactive=False)


ON_A_TERMINAL = """
import fcntl, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # Ctrl-C is for the process whose terminal it is
from flanjax import chat
sys.exit(chat.main(sys.argv[1:]))
"""


def test_a_person_at_a_terminal_stops_an_answer_and_leaves(folder: Path) -> None:
    terminal, end = pty.openpty()
    command = [sys.executable, "-c", ON_A_TERMINAL, f"--model={folder}", "--max_new_tokens=70", "--temperature=1"]
    environment = {**os.environ, "TERM": "dumb", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    process = subprocess.Popen(command, stdin=end, stdout=end, stderr=end, env=environment, start_new_session=True)
    os.close(end)

    readable = select.poll()  # `select.select` knows no descriptor above 1023
    readable.register(terminal, select.POLLIN)

    def until(words: str) -> str:
        seen = b""
        while words.encode() not in seen:
            assert readable.poll(120_000), seen
            seen += os.read(terminal, 1)
        return seen.decode(errors="replace")

    try:
        assert "holds 96 tokens" in until("> ")
        os.write(terminal, b"Hi\n")
        until("Hi\r\n")
        assert readable.poll(120_000)  # the answer has begun
        os.write(terminal, b"\x03")
        until("stopped")
        until("> ")
        os.write(terminal, b"Bye\n")
        until("Bye\r\n")
        until("\r\n> ")
        os.write(terminal, b"\x04")
        assert process.wait(timeout=120) == 0
    finally:
        process.kill()
        os.close(terminal)
