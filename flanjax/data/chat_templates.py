r"""Chat templates: conversations as the text that a model meets, by Jinja as Hugging Face has it.

    template = find_template("chatml", vocabulary)       or "tokenizer", the tokenizer's own; or a file, "my.jinja"
    template.render([{"role": "user", "content": "Hi"}], add_generation_prompt=True)
        '<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n'

A template gets what `transformers.PreTrainedTokenizer.apply_chat_template` gives it, and renders to the same text. It
is a stranger's program: it runs in a sandbox with bounds (`flanjax.data.template_sandbox`) and has no clock, but a
fixed day, so that the same data is rendered on every day. The named ones are in `chat_formats/`, each a published
format; what the assistant writes stands between `{% generation %}` and `{% endgeneration %}` there. A tokenizer that
puts BOS before every text has it before these as well.
"""

import dataclasses
import functools
import hashlib
import json
import os
import re
import traceback
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
from jinja2 import nodes

from flanjax.data.template_sandbox import Rendering, Sandbox, require_short, running
from flanjax.data.vocabularies import Vocabulary
from flanjax.errors import FlanjaxError, nearest

Message = Mapping[str, Any]  # {"role", "content"}

OWN = "tokenizer"  # asks for the tokenizer's own
DAY = datetime(2024, 7, 26)  # the day of Llama 3.1's template where there is no clock
_MOST_TEXT = 1 << 20  # characters of a template
_MARKED = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_CONTROL = re.compile(r"<\|[^|<>\s]{1,40}\|>|</?s>|<[a-z]+_of_[a-z]+>|<(?:bos|eos)>")


class ChatTemplateError(FlanjaxError):
    """A template that is not there, does not parse, refuses a conversation, or does what no template should."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """A template and the special tokens that it may write.

    Attributes:
        name: a name of ours, "tokenizer", or a file.
        text: Jinja.
        special_tokens: {"bos_token": "<s>", ...}.
        day: what `strftime_now` takes for now.
    """

    name: str
    text: str
    special_tokens: Mapping[str, str] = dataclasses.field(default_factory=dict)
    day: datetime = DAY

    def __post_init__(self) -> None:
        _compiled(self.name, self.text)

    @property
    def identity(self) -> str:
        """16 hex digits, equal for templates that render alike."""
        decides = [self.text, sorted(self.special_tokens.items()), self.day.isoformat()]
        return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """The arguments that make an equal one, for a file; the day is always the usual one there."""
        return {"name": self.name, "text": self.text, "special_tokens": dict(self.special_tokens)}

    @property
    def marks_replies(self) -> bool:
        """Whether it says itself what the assistant writes."""
        return _MARKED.search(self.text) is not None

    @property
    def named_tokens(self) -> tuple[str, ...]:
        """The special tokens that it asks for by name: bos_token."""
        tree = _environment.parse(self.text)
        return tuple(sorted(name for name in jinja2.meta.find_undeclared_variables(tree) if name.endswith("_token")))

    @property
    def control_tokens(self) -> tuple[str, ...]:
        """The tokens of control that it writes out: <|im_start|>."""
        tree = _environment.parse(self.text)
        texts = [node.data for node in tree.find_all(nodes.TemplateData)]
        texts += [node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)]
        return tuple(dict.fromkeys(token for text in texts for token in control_like(text)))

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """The text of a conversation; with the prompt, up to where the assistant is to speak.

        Raises:
            ChatTemplateError: the template refuses it or fails; the message has its line and reason.
        """
        return self._render(messages, add_generation_prompt, None)

    def render_marked(self, messages: Sequence[Message]) -> tuple[str, list[tuple[int, int]]]:
        """The text, and the characters (start, end) that each block of `{% generation %}` has made.

        Raises:
            ChatTemplateError: see `render`; or the template does more with such a block than write it.
        """
        text = self._render(messages, False, None)
        number = next(number for number in range(len(text) + 1) if f"\x02{number}\x03" not in text)
        mark = f"\x02{number}\x03"
        parts = self._render(messages, False, mark).split(mark)
        if "".join(parts) != text or len(parts) % 2 == 0:
            raise ChatTemplateError(
                f"chat template {self.name!r}: what it writes in a {{% generation %}} block is changed afterwards, so "
                "that the assistant's words cannot be told from others: move the block to where the text is written"
            )
        ends = [0]
        for part in parts:
            ends.append(ends[-1] + len(part))
        return text, [(ends[number], ends[number + 1]) for number in range(1, len(parts), 2)]

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool, mark: str | None) -> str:
        template = _compiled(self.name, self.text)
        plain = [{key: value for key, value in message.items() if value is not None} for message in messages]
        token = running.set(_Run(day=self.day, mark=mark))
        try:
            return template.render(
                messages=plain,
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self.special_tokens,
            )
        except Exception as error:
            raise ChatTemplateError(
                f"chat template {self.name!r}{_line(error, self.name)}: {_reason(error)}"
            ) from error
        finally:
            running.reset(token)


def control_like(text: str) -> list[str]:
    """What of a text is meant as a token of control: `<|user|>`, `</s>`, `<end_of_turn>`."""
    return _CONTROL.findall(text)


def named_templates() -> dict[str, str]:
    """The texts of the templates that come with flanjax, by name."""
    found = files("flanjax.data") / "chat_formats"
    there = sorted(file.name for file in found.iterdir() if file.name.endswith(".jinja"))
    return {name.removesuffix(".jinja"): (found / name).read_text(encoding="utf-8") for name in there}


def find_template(choice: str | None, vocabulary: Vocabulary) -> ChatTemplate | None:
    """The template that is asked for.

    Args:
        choice: "tokenizer" for the tokenizer's own, the name of one of several that it has, a name of ours, or a file;
            None for none.
        vocabulary: has the special tokens.

    Raises:
        ChatTemplateError: there is none of this name; or it does not parse, and the message has its line and reason.
    """
    if choice is None:
        return None
    own, ours = vocabulary.own_templates, named_templates()
    if choice == OWN:
        if "default" not in own:
            several = f" (it has {', '.join(own)}: name one)" if own else ""
            raise ChatTemplateError(
                f"CHAT_TEMPLATE={OWN!r}: the tokenizer {vocabulary.path} has no chat template of its own{several}; the "
                f"named ones are {', '.join(ours)}"
            )
        text = own["default"]
    elif choice in ours or choice in own:
        text = own[choice] if choice in own else _with_bos(ours[choice], vocabulary)
    elif os.path.isfile(choice):
        try:
            text = Path(choice).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ChatTemplateError(f"CHAT_TEMPLATE={choice}: cannot be read: {error}") from error
    else:
        raise ChatTemplateError(
            f"CHAT_TEMPLATE={choice!r}{nearest(choice, [*ours, *own, OWN])}: there is no such file, and the names are "
            f"{', '.join((OWN, *ours))}"
        )
    return ChatTemplate(name=choice, text=text, special_tokens=dict(vocabulary.special_tokens))


def _with_bos(text: str, vocabulary: Vocabulary) -> str:
    """A format of ours with BOS at the start of a conversation, if the tokenizer puts one before every text.

    The trainers of these formats tokenised their text as any other (`train.py` of lm-sys/FastChat and of
    tatsu-lab/stanford_alpaca; `qlora.py` of artidoro/qlora writes BOS itself).
    """
    puts_bos = vocabulary.bos_id is not None and vocabulary.prefix == (vocabulary.bos_id,)
    return "{{- bos_token }}" + text if puts_bos and "bos_token" not in text else text


@dataclasses.dataclass(kw_only=True)
class _Run(Rendering):
    """One rendering: its day, and what is put around the assistant's words."""

    day: datetime
    mark: str | None


def _run() -> _Run:
    run = running.get()
    assert isinstance(run, _Run)
    return run


class _Generation(jinja2.ext.Extension):
    """The block `{% generation %}`, which says what the assistant writes."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_written"), [], [], body).set_lineno(line)

    @jinja2.pass_context
    def _written(self, context: jinja2.runtime.Context, caller: jinja2.runtime.Macro) -> str:
        mark = _run().mark or ""
        return f"{mark}{caller()}{mark}"


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    require_short(format)
    return _run().day.strftime(format)


def _make_environment() -> Sandbox:
    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
    environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    return environment


_environment = _make_environment()


@functools.lru_cache(maxsize=64)
def _compiled(name: str, text: str) -> jinja2.Template:
    if len(text) > _MOST_TEXT:
        raise ChatTemplateError(
            f"chat template {name!r} has {len(text):,} characters: more than {_MOST_TEXT:,} are refused"
        )
    try:
        return _environment.from_string(text)
    except jinja2.TemplateSyntaxError as error:
        raise ChatTemplateError(f"chat template {name!r}, line {error.lineno}: {error.message}") from error
    except Exception as error:  # nesting too deep for Python's compiler, say
        raise ChatTemplateError(f"chat template {name!r} cannot be compiled: {_reason(error)}") from error


def _line(error: Exception, name: str) -> str:
    """Where in the template an error came up."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "<template>"]
    return f", line {frames[-1].lineno}" if frames else ""


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it calls itself without end"
    if isinstance(error, jinja2.TemplateError):
        return str(error.message or type(error).__name__)
    return f"{type(error).__name__}: {error}"
