"""What a request asks for: the bodies of both APIs as one `Job`, in token ids and a `DecodingConfig`.

    reader = Reader(model, name="flan-t5-small", max_length=2048, most_answers=64)
    job = reader.completion(Fields.of(b'{"model": "flan-t5-small", "prompt": "Is 7 odd?", "temperature": 0}'))
    job.rows()                  # [Row(ids=(27, 489, ..., 1), decoding=DecodingConfig(max_new_tokens=16))]

Fields and their defaults are those of https://platform.openai.com/docs/api-reference (completions, chat); `top_k`,
`min_p` and `repetition_penalty` are extensions with the names and meanings of `DecodingConfig`. What this server does
not do is refused when it is asked for; what changes no answer (`user`, `metadata`, ...) is ignored.
"""

import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flanjax.data.chat import own_chat
from flanjax.data.chat_templates import ChatTemplateError
from flanjax.data.sources import BadRow
from flanjax.errors import nearest
from flanjax.generation.decoding import DecodingConfig, DecodingError
from flanjax.generation.stopping import whole_characters
from flanjax.loading import Model
from flanjax.serving.driver import Row
from flanjax.serving.errors import ApiError
from flanjax.serving.fields import Fields, shown

MOST_STOPS = 16
MOST_SAMPLES = 128
MOST_LOGPROBS = 20
COMPLETION_TOKENS = 16  # the completions API's default
_IGNORED = ("user", "metadata", "service_tier", "safety_identifier", "prompt_cache_key")
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


@dataclass(frozen=True, kw_only=True)
class Job:
    """A request that has been understood.

    Attributes:
      model: the name it was asked by.
      is_chat: whether it came as a chat.
      inputs: token ids of each prompt, as the model meets them.
      prompt: number of the learnt prompt.
      samples: answers for each prompt.
      decoding: of each answer; None where none is wanted (echo with `max_tokens` 0).
      logprobs: how many of the likeliest tokens are told with each token's log-probability; None for neither.
      echo: the text of each prompt, as its ids have it, which comes before its answers; None where it does not.
      stream: whether pieces are sent as they come.
      include_usage: whether a stream ends with the numbers of tokens.
    """

    model: str
    is_chat: bool = False
    inputs: tuple[tuple[int, ...], ...]
    prompt: int = 0
    samples: int = 1
    decoding: DecodingConfig | None
    logprobs: int | None = None
    echo: tuple[str, ...] | None = None
    stream: bool = False
    include_usage: bool = False

    @property
    def answers(self) -> int:
        """How many are asked for; where a prompt is echoed alone it counts as one."""
        return len(self.inputs) * self.samples

    def rows(self) -> list[Row]:
        """The answers that are wanted, those to one prompt next to each other.

        A prompt that is there twice gets further samples the second time, as `flanjax.generation.generate` has it.
        """
        if self.decoding is None:
            return []
        times: Counter[tuple[int, ...]] = Counter()
        rows = []
        for ids in self.inputs:
            for _ in range(self.samples):
                row = Row(
                    stream=self.stream,
                    ids=ids,
                    decoding=self.decoding,
                    sample=times[ids],
                    prompt=self.prompt,
                    logprobs=self.logprobs,
                    continues=self.echo is not None,
                )
                rows.append(row)
                times[ids] += 1
        return rows


class Reader:
    """Reads requests to one model.

    Attributes:
      names: what the model is asked by, and the number of the learnt prompt that each stands for.
      max_length: tokens of a prompt and its answer together.
      most_answers: to one request.

    Arguments:
      model: of `flanjax.load`.
      name: of the model. One with learnt prompts of tasks is asked as NAME:TASK.
      max_length: as above.
      most_answers: as above.
    """

    def __init__(self, model: Model, *, name: str, max_length: int, most_answers: int):
        self._model, self._vocabulary = model, model.vocabulary
        tasks = enumerate(model.config.prompt_tasks)
        self.names = {f"{name}:{task}": number for number, task in tasks} or {name: 0}
        self.max_length, self.most_answers = max_length, most_answers
        self._chat = own_chat(model.vocabulary)

    def known(self, name: str) -> str:
        """The name, if it is the model's.

        Raises:
          ApiError: it is not.
        """
        if name not in self.names:
            known = f"{nearest(name, self.names)}: the names are {', '.join(self.names)}"
            raise ApiError(404, f"there is no model {shown(name)}{known}", param="model", code="model_not_found")
        return name

    def completion(self, fields: Fields) -> Job:
        """The body of POST /v1/completions.

        Raises:
          ApiError: a field is missing, of another type, outside its range, or asks for what this server does not do.
        """
        model, prompt = self._named(fields)
        samples = fields.whole("n", 1, least=1, most=MOST_SAMPLES)
        inputs = self._prompts(fields, samples)
        echo = fields.flag("echo")
        if echo and self._vocabulary.separate_inputs:
            why = "an encoder-decoder does not go on from its input, so there is nothing to echo"
            raise ApiError(400, f"echo: {why}; score targets with Model.score", param="echo")
        most = fields.whole("max_tokens", COMPLETION_TOKENS, least=0 if echo else 1)
        fields.require_unused("best_of", "only the answers themselves are made; leave it out", samples)
        fields.require_unused("suffix", "text is only continued at its end; leave it out", "")
        logprobs = fields.whole("logprobs", None, least=0, most=MOST_LOGPROBS)
        decoding = self._decoding(fields, most, self._model.eos_ids)
        stream, include_usage = _stream(fields)
        fields.ignore(*_IGNORED)
        fields.close()
        self._require_room(inputs, most, "max_tokens")
        return Job(
            model=model,
            inputs=inputs,
            prompt=prompt,
            samples=samples,
            decoding=decoding,
            logprobs=logprobs,
            echo=tuple(whole_characters(self._vocabulary.decode(ids)) for ids in inputs) if echo else None,
            stream=stream,
            include_usage=include_usage,
        )

    def chat(self, fields: Fields) -> Job:
        """The body of POST /v1/chat/completions.

        Raises:
          ApiError: as `completion`; the model has no chat template, or it refuses the conversation.
        """
        model, prompt = self._named(fields)
        if self._chat is None:
            raise ApiError(400, "this model has no chat template: ask it at /v1/completions", code="no_chat_template")
        messages = _messages(fields)
        for name in ("tools", "functions"):
            fields.require_unused(name, "this server calls no tools; leave it out", [])
        for name in ("tool_choice", "function_call"):
            fields.require_unused(name, "this server calls no tools; leave it out", "none", "auto")
        fields.require_unused("response_format", "answers are text; leave it out", {"type": "text"})
        fields.require_unused("modalities", "answers are text; leave it out", ["text"])
        for name in ("audio", "prediction", "web_search_options", "reasoning_effort", "verbosity"):
            fields.require_unused(name, "this server does not do that; leave it out")
        fields.require_unused("store", "nothing is stored; leave it out", False)
        try:
            inputs = (tuple(self._chat.prompt(messages)),)
        except (BadRow, ChatTemplateError) as error:
            raise ApiError(400, str(error), param="messages") from error
        name = "max_completion_tokens" if fields.get("max_completion_tokens", int) is not None else "max_tokens"
        room = max(self.max_length - self._length(inputs[0]), 1)
        most, samples = fields.whole(name, room, least=1), fields.whole("n", 1, least=1, most=MOST_SAMPLES)
        self._require_few(samples, "n")
        fields.ignore("max_tokens", "parallel_tool_calls", *_IGNORED)
        self._require_room(inputs, most, name)
        wanted, top = fields.flag("logprobs"), fields.whole("top_logprobs", None, least=0, most=MOST_LOGPROBS)
        if top is not None and not wanted:
            raise ApiError(
                400, "top_logprobs is of logprobs: set logprobs to true, or leave it out", param="top_logprobs"
            )
        decoding = self._decoding(fields, most, self._model.chat_eos_ids(self._chat))
        stream, include_usage = _stream(fields)
        fields.close()
        return Job(
            model=model,
            is_chat=True,
            inputs=inputs,
            prompt=prompt,
            samples=samples,
            decoding=decoding,
            logprobs=(top or 0) if wanted else None,
            stream=stream,
            include_usage=include_usage,
        )

    def _named(self, fields: Fields) -> tuple[str, int]:
        name = fields.text("model", next(iter(self.names)) if len(self.names) == 1 else None)
        if name is None:
            fields.refuse("model", f"one of {', '.join(self.names)}")
        return self.known(name), self.names[name]

    def _prompts(self, fields: Fields, samples: int) -> tuple[tuple[int, ...], ...]:
        """The ids of all prompts."""
        given = fields.get("prompt", str, list)
        if isinstance(given, str) or (given and all(map(_is_id, given))):
            given = [given]
        self._require_few(len(given or ()) * samples, "prompt")  # before any is tokenized
        if given and all(isinstance(text, str) for text in given):
            inputs = [tuple(self._vocabulary.as_inputs(self._vocabulary.encode(text))) for text in given]
        elif given and all(isinstance(ids, list) and all(map(_is_id, ids)) for ids in given):
            inputs = [tuple(ids) for ids in given]
            if any(not 0 <= id_ < self._vocabulary.size for ids in inputs for id_ in ids):
                fields.refuse("prompt", f"token ids below {self._vocabulary.size}")
        else:
            fields.refuse("prompt", "a text, a list of texts, a list of token ids or a list of such lists")
        if not all(inputs):
            fields.refuse("prompt", "at least one token long")
        return tuple(inputs)

    def _decoding(self, fields: Fields, most: int, eos_ids: tuple[int, ...]) -> DecodingConfig | None:
        temperature = fields.number("temperature", 1.0, least=0)
        drawing = {
            "top_k": fields.whole("top_k", 0, least=0),
            "top_p": fields.number("top_p", 1.0, least=0, most=1),
            "min_p": fields.number("min_p", 0.0, least=0, most=1),
        }
        penalty, seed = fields.number("repetition_penalty", 1.0, least=0), fields.get("seed", int)
        stop = fields.get("stop", str, list) or []
        stop = [stop] if isinstance(stop, str) else stop
        if len(stop) > MOST_STOPS or not all(isinstance(text, str) and text for text in stop):
            fields.refuse("stop", f"a text or a list of at most {MOST_STOPS} texts that are not empty")
        for name in ("presence_penalty", "frequency_penalty"):
            fields.require_unused(name, "use repetition_penalty, or leave it out", 0, 0.0)
        fields.require_unused("logit_bias", "logits are not shifted here; leave it out", {})
        if most == 0:
            return None
        try:
            return DecodingConfig(
                max_new_tokens=most,
                temperature=temperature,
                # Without a draw they choose from nothing, which clients send all the same.
                **(drawing if temperature else {}),  # type: ignore[arg-type]
                repetition_penalty=penalty,
                seed=secrets.randbits(32) if seed is None else seed % 2**32,
                stop=tuple(stop),
                eos_ids=eos_ids,
            )
        except DecodingError as error:
            raise ApiError(400, str(error), param=str(error).partition(" ")[0]) from error

    def _require_few(self, answers: int, name: str) -> None:
        if answers > self.most_answers:
            raise ApiError(
                400,
                f"{answers} answers at once: this server takes at most {self.most_answers}; ask for them in several "
                "requests",
                param=name,
            )

    def _length(self, ids: Sequence[int]) -> int:
        return len(ids) + self._model.config.prompt_length

    def _require_room(self, inputs: Sequence[Sequence[int]], most: int, name: str) -> None:
        longest = max(map(self._length, inputs))
        if longest + most > self.max_length:
            raise ApiError(
                400,
                f"a prompt of {longest} tokens with {name} {most} is longer than the {self.max_length} tokens that "
                "this server takes: shorten the prompt or ask for fewer",
                param=name,
                code="context_length_exceeded",
            )


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _stream(fields: Fields) -> tuple[bool, bool]:
    """Whether pieces are wanted, and the numbers of tokens after them."""
    stream, options = fields.flag("stream"), fields.get("stream_options", dict)
    if options is None:
        return stream, False
    if not stream:
        raise ApiError(400, "stream_options are of a stream: set stream to true", param="stream_options")
    inner = Fields(options, "stream_options.")
    include_usage = inner.flag("include_usage")
    inner.ignore("include_obfuscation")
    inner.close()
    return stream, include_usage


def _messages(fields: Fields) -> list[dict[str, str]]:
    """The conversation as chat templates take it: texts alone, a developer's words as the system's."""
    given = fields.get("messages", list)
    if not given:
        fields.refuse("messages", "a list of messages, one at the least")
    messages = []
    for number, message in enumerate(given):
        if not isinstance(message, dict):
            fields.refuse("messages", 'a list of objects {"role", "content"}')
        inner = Fields(message, f"messages[{number}].")
        role = inner.text("role", "")
        if role not in _ROLES:
            inner.refuse("role", f"one of {', '.join(_ROLES)}")
        for name in ("tool_calls", "function_call"):
            inner.require_unused(name, "this server calls no tools; leave it out", [])
        for name in ("audio", "refusal"):
            inner.require_unused(name, "only texts are read; leave it out", "")
        inner.ignore("name")
        messages.append({"role": _ROLES[role], "content": _content(inner, number)})
        inner.close()
    return messages


def _content(message: Fields, number: int) -> str:
    """A message's text, or its parts' texts one after the other."""
    content = message.get("content", str, list)
    if content is None:
        message.refuse("content", "a text or a list of parts")
    if isinstance(content, str):
        return content
    texts = []
    for place, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") != "text":
            message.refuse("content", 'a text or a list of parts {"type": "text", "text": ...}: only texts are read')
        inner = Fields(part, f"messages[{number}].content[{place}].")
        inner.ignore("type")
        text = inner.get("text", str)
        if text is None:
            inner.refuse("text", "a text")
        inner.close()
        texts.append(text)
    return "".join(texts)
