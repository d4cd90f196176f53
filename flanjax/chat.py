"""Talks with a model in a terminal: `python -m flanjax.chat --model=DIR [--system=TEXT] [--temperature=0.7]`.

    > Hi
    Hello! How can I help you?
    > /reset

A line is a message; the answer comes word by word, in the model's chat template and with all that was said before.
/reset forgets that, /system TEXT sets the system text, /quit and Ctrl-D leave, Ctrl-C stops an answer. Lines from a
pipe are answered one after the other: answers go to stdout, what else there is to say to stderr. A model without a
template answers each line alone.
"""

import argparse
import contextlib
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from flanjax import doors

if TYPE_CHECKING:  # a door that only prints its help imports no jax
    from flanjax.loading import Model

_MOST_NEW = 256
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_COMMANDS = "/reset forgets what was said, /system TEXT sets the system text (alone: none), /quit leaves"

Message = dict[str, str]
Show = Callable[[str], None]


class Talk:
    """A conversation with a model.

    Attributes:
      messages: what was said so far, after the system text.
      system: the system text; "" for none.

    Arguments:
      model: of `flanjax.load`.
      show: is given each piece of an answer as it comes.
      tell: is given what else a person should know, a line each.
      options: of `Model.chat`.
    """

    def __init__(self, model: "Model", show: Show, tell: Show, **options: Any):
        from flanjax.data.chat import own_chat
        from flanjax.models.decoder_config import DecoderConfig

        self.messages: list[Message] = []
        self.system = ""
        self._model, self._show, self._tell = model, show, tell
        self._options = {"max_new_tokens": _MOST_NEW, **options}
        self._chat = own_chat(model.vocabulary)
        config = model.config
        self._positions = config.text_positions if isinstance(config, DecoderConfig) else None

    def introduce(self) -> None:
        """Tells how to use it and what it can hold."""
        room = "" if self._positions is None else f"; it holds {self._positions:,} tokens, answers among them"
        self._tell(f"{_COMMANDS}{room}")
        if self._chat is None:
            self._tell("this model has no chat template: each line is answered alone, without what was said before")

    def set_system(self, text: str) -> None:
        """Takes a system text for what comes, unless the template refuses it.

        Raises:
          FlanjaxError: there is no template, or it has no place for one.
        """
        from flanjax.errors import FlanjaxError

        if self._chat is None and text:
            raise FlanjaxError("without a chat template there is no place for a system text")
        if self._chat is not None and text:
            self._chat.prompt([_message("system", text), _message("user", "Hi")])
        self.system = text

    def say(self, text: str) -> None:
        """Answers a line. What Ctrl-C stops stays as far as it was shown.

        Raises:
          FlanjaxError: the line is too long, or it has what is read as a token of control; it is forgotten.
        """
        if self._chat is None:
            self._require_room(len(self._model.vocabulary.encode(text)) + 1)
            self._answer(lambda on_text: self._model.generate([text], on_text=on_text, **self._options))
            return
        asked = [*self.messages, _message("user", text)]
        begin = [_message("system", self.system)] * bool(self.system)
        while not self._fits(length := len(self._chat.prompt([*begin, *asked]))):
            later = [at for at, message in enumerate(asked) if at and message["role"] == "user"]
            if not later:
                self._require_room(length)
            asked = asked[later[0] :]
        if left_out := len(self.messages) + 1 - len(asked):
            self._tell(
                f"the oldest {left_out} messages are left out from here on: more than {self._positions:,} tokens"
            )
        answer = self._answer(lambda on_text: self._model.chat([[*begin, *asked]], on_text=on_text, **self._options))
        self.messages = [*asked, _message("assistant", answer)] if answer.strip() else asked[:-1]

    def _answer(self, ask: Callable[[Callable[[int, int, str], None]], Any]) -> str:
        shown: list[str] = []
        with _ctrl_c_noted() as pressed:

            def on_text(row: int, sample: int, piece: str) -> None:
                if pressed.is_set():
                    raise KeyboardInterrupt
                shown.append(piece)
                self._show(piece)

            try:
                ask(on_text)
            except KeyboardInterrupt:
                pressed.set()
            self._show("\n")
            if pressed.is_set():
                self._tell("stopped")
        return "".join(shown)

    def _fits(self, length: int) -> bool:
        return self._positions is None or length + self._options["max_new_tokens"] <= self._positions

    def _require_room(self, length: int) -> None:
        from flanjax.errors import FlanjaxError

        if not self._fits(length):
            raise FlanjaxError(
                f"{length:,} tokens and {self._options['max_new_tokens']:,} for an answer are more than the "
                f"{self._positions:,} that the model holds: say it in fewer words, or give a smaller --max_new_tokens"
            )


@contextlib.contextmanager
def _ctrl_c_noted() -> Iterator[threading.Event]:
    """Is set by Ctrl-C; a second one interrupts at once.

    Python drops an exception that a signal raises within a destructor or a callback of the garbage collector, as jax
    has them, and the answer would go on.
    """
    pressed = threading.Event()

    def note(*_: object) -> None:
        pressed.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def _message(role: str, text: str) -> Message:
    return {"role": role, "content": text}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m flanjax.chat", description="Talks with a model in a terminal.")
    doors.add_model_flags(parser)
    parser.add_argument("--system", default="", metavar="TEXT", help="the system text to begin with")
    parser.add_argument(
        "--prompt", metavar="TASK", help="whose learnt prompt is used, where there is one for each task"
    )
    one_answer = ("num_samples", "num_beams", "length_penalty", "early_stopping")
    doors.add_decoding_flags(parser, leaving_out=one_answer)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The door: flags in, a conversation; returns the exit status."""
    flags = _parser().parse_args(argv)
    return doors.run_door(lambda: _main(flags))


def _main(flags: argparse.Namespace) -> int:
    from flanjax.generation.decoding import DecodingConfig
    from flanjax.loading import load

    options = doors.decoding_options(flags)
    DecodingConfig(**options)  # refuses what it has to before the model is read
    model = load(flags.model, adapter=flags.adapter, step=flags.step, mesh=doors.mesh_of(flags))
    talk = Talk(model, _show, _tell, prompt=flags.prompt, **options)
    if flags.system:
        talk.set_system(flags.system)
    interactive = sys.stdin.isatty()
    if interactive:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # lines can be edited and called up again
    else:
        sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
    talk.introduce()
    try:
        return _converse(talk, interactive)
    except BrokenPipeError:  # who reads the answers has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _converse(talk: Talk, interactive: bool) -> int:
    from flanjax.errors import FlanjaxError

    while True:
        try:
            line = input("> " if interactive else "").strip()
        except EOFError:
            if interactive:
                print()
            return 0
        except KeyboardInterrupt:
            if not interactive:
                raise
            print()
            continue
        command, _, rest = line.partition(" ")
        try:
            if command == "/quit":
                return 0
            if command == "/reset":
                talk.messages = []
            elif command == "/system":
                talk.set_system(rest.strip())
            elif command.startswith("/") and command[1:].isalpha():
                _tell(f"there is no {command}: {_COMMANDS}")
            elif line:
                talk.say(line)
        except FlanjaxError as error:
            _tell(f"error: {error}")


def _show(piece: str) -> None:
    # A model may say what a terminal takes for a command.
    print(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", piece) if sys.stdout.isatty() else piece, end="", flush=True)


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
