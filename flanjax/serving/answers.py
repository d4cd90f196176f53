"""Pieces of answers as the API's objects: whole ones, and the chunks of a stream.

    writer = CompletionWriter(job, decode=vocabulary.decode, names={1: "</s>"})
    writer.whole([Piece(tokens=(8, 9), text="Four.", logprobs=(), finish="stop")])
    # {"id": "cmpl-...", "object": "text_completion", "choices": [{"index": 0, "text": "Four.", ...}], "usage": ...}

Formats: https://platform.openai.com/docs/api-reference, completions and chat, each with its streamed objects.
"""

import abc
import math
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from flanjax.generation.engine import Piece, TokenLogprob
from flanjax.generation.stopping import Decode, whole_characters
from flanjax.serving.driver import joined
from flanjax.serving.requests import Job

Object = dict[str, Any]
_CONTEXT = 8  # tokens before one that may change how it reads
_LEAST = -9999.0  # JSON has no infinity
_UNKNOWN = TokenLogprob(math.nan, ())  # nothing stands before the first token of a prompt


class Spelled(NamedTuple):
    """A token in its place, as text.

    Attributes:
      text: what it adds to the text before it: "" of half a character, which is the next token's.
      logprob: natural logarithm; None of the first token of a prompt.
      top: texts and natural logarithms of the likeliest tokens.
      offset: characters before it.
      is_control: whether its text is the name of a token of control, which is not part of the answer.
    """

    text: str
    logprob: float | None
    top: tuple[tuple[str, float], ...]
    offset: int
    is_control: bool


class Speller:
    """Tells the text of one token after another; together they are the text of all.

    Arguments:
      decode: makes text of token ids.
      names: texts of the tokens of control, by id.
    """

    def __init__(self, decode: Decode, names: Mapping[int, str]):
        self._decode, self._names = decode, names
        self._before: list[int] = []  # the last few tokens
        self._whole = 0  # as many of them as end in a whole character, some way before the last
        self._known = ""  # their text without half a character
        self._offset = 0

    def spell(self, token: int, told: TokenLogprob) -> Spelled:
        """The next token and what might have stood in its place."""
        others = tuple((self._text(other), _finite(value)) for other, value in told.top)
        text, offset, is_control = self._text(token), self._offset, token in self._names
        if not is_control:
            whole = self._decode([*self._before, token])
            text = whole_characters(text)
            self._before.append(token)
            # Of a row of bytes some tokenizers take back whole characters until the last one is whole again.
            self._known, self._offset = max(self._known, whole_characters(whole), key=len), offset + len(text)
            if len(self._before) - self._whole >= _CONTEXT and whole == whole_characters(whole):
                self._before = self._before[self._whole :]
                self._known, self._whole = self._decode(self._before), len(self._before)
        logprob = None if math.isnan(told.logprob) else _finite(told.logprob)
        return Spelled(text, logprob, others, offset, is_control)

    def _text(self, token: int) -> str:
        return self._names.get(token) or self._decode([*self._before, token])[len(self._known) :]


def _finite(logprob: float) -> float:
    return logprob if logprob > _LEAST else _LEAST


class Writer(abc.ABC):
    """Writes the answers to one request.

    Arguments:
      job: the request.
      decode: makes text of token ids.
      names: as `Speller`.
    """

    prefix: str
    object: str
    chunk_object: str

    def __init__(self, job: Job, *, decode: Decode, names: Mapping[int, str]):
        self._job = job
        self._spellers = [Speller(decode, names) for _ in range(job.answers)]
        self._tokens = 0
        self._head = {"id": f"{self.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": job.model}

    def whole(self, pieces: Sequence[Piece]) -> Object:
        """All answers, a piece for each."""
        self._tokens += sum(len(piece.tokens) for piece in pieces)
        told = [joined([self._before(index), piece]) for index, piece in enumerate(pieces)]
        choices = [self._choice(index, piece, self._spelled(index, piece)) for index, piece in enumerate(told)]
        return self._head | {"object": self.object, "choices": choices, "usage": self._usage()}

    def first(self) -> Iterator[Object]:
        """The chunks that come before any answer."""
        yield from ()

    def chunk(self, index: int, piece: Piece) -> Object:
        """A further piece of one answer."""
        self._tokens += len(piece.tokens)
        return self._chunk([self._delta(index, piece, self._spelled(index, piece))])

    def last(self) -> Iterator[Object]:
        """The chunks that come after all answers."""
        if self._job.include_usage:
            yield self._chunk([]) | {"usage": self._usage()}

    @abc.abstractmethod
    def _choice(self, index: int, piece: Piece, spelled: list[Spelled] | None) -> Object:
        """An answer in a whole object."""

    @abc.abstractmethod
    def _delta(self, index: int, piece: Piece, spelled: list[Spelled] | None) -> Object:
        """A piece of an answer in a chunk."""

    def _before(self, index: int) -> Piece:
        """What stands before an answer."""
        return Piece(tokens=(), text="", logprobs=(), finish=None)

    def _spelled(self, index: int, piece: Piece) -> list[Spelled] | None:
        if self._job.logprobs is None:
            return None
        spell = self._spellers[index].spell
        return [spell(token, told) for token, told in zip(piece.tokens, piece.logprobs, strict=True)]

    def _chunk(self, choices: list[Object]) -> Object:
        usage = {"usage": None} if self._job.include_usage else {}
        return self._head | {"object": self.chunk_object, "choices": choices} | usage

    def _usage(self) -> Object:
        prompts = sum(map(len, self._job.inputs))
        return {"prompt_tokens": prompts, "completion_tokens": self._tokens, "total_tokens": prompts + self._tokens}


class CompletionWriter(Writer):
    """The objects of /v1/completions.

    Arguments:
      job: the request.
      decode: makes text of token ids.
      names: as `Speller`.
      scores: of each prompt that is echoed with log-probabilities, those of its tokens after the first.
    """

    prefix, object, chunk_object = "cmpl", "text_completion", "text_completion"

    def __init__(
        self,
        job: Job,
        *,
        decode: Decode,
        names: Mapping[int, str],
        scores: Sequence[Sequence[TokenLogprob]] = (),
    ):
        super().__init__(job, decode=decode, names=names)
        self._scores = scores

    def first(self) -> Iterator[Object]:
        """The echoed prompts."""
        for index in range(len(self._spellers) if self._job.echo is not None else 0):
            piece = self._before(index)
            yield self._chunk([self._delta(index, piece, self._spelled(index, piece))])

    def _before(self, index: int) -> Piece:
        number = index // self._job.samples
        if self._job.echo is None:
            return super()._before(index)
        tokens, text = self._job.inputs[number], self._job.echo[number]
        if self._job.logprobs is None:
            return Piece(tokens=tokens, text=text, logprobs=(), finish=None)
        return Piece(tokens=tokens, text=text, logprobs=(_UNKNOWN, *self._scores[number]), finish=None)

    def _choice(self, index: int, piece: Piece, spelled: list[Spelled] | None) -> Object:
        logprobs = None
        if spelled is not None:
            logprobs = {
                "tokens": [token.text for token in spelled],
                "token_logprobs": [token.logprob for token in spelled],
                "top_logprobs": [_by_text(token) for token in spelled] if self._job.logprobs else None,
                "text_offset": [token.offset for token in spelled],
            }
        return {"index": index, "text": piece.text, "logprobs": logprobs, "finish_reason": piece.finish}

    _delta = _choice


class ChatWriter(Writer):
    """The objects of /v1/chat/completions."""

    prefix, object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def first(self) -> Iterator[Object]:
        """Whose words these are."""
        for index in range(len(self._spellers)):
            delta = {"role": "assistant", "content": ""}
            yield self._chunk([{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}])

    def _choice(self, index: int, piece: Piece, spelled: list[Spelled] | None) -> Object:
        message = {"role": "assistant", "content": piece.text, "refusal": None}
        return {"index": index, "message": message, "logprobs": _content(spelled), "finish_reason": piece.finish}

    def _delta(self, index: int, piece: Piece, spelled: list[Spelled] | None) -> Object:
        delta = {"content": piece.text} if piece.text else {}
        return {"index": index, "delta": delta, "logprobs": _content(spelled), "finish_reason": piece.finish}


def _by_text(token: Spelled) -> dict[str, float] | None:
    """The likeliest tokens of a place and the one that stands there; of equal texts the likeliest."""
    if token.logprob is None:
        return None
    found: dict[str, float] = {}
    for text, logprob in (*token.top, (token.text, token.logprob)):
        found.setdefault(text, logprob)
    return found


def _content(spelled: list[Spelled] | None) -> Object | None:
    if spelled is None:
        return None
    content = []
    for token in spelled:
        top = [{"token": text, "logprob": value, "bytes": list(text.encode())} for text, value in token.top]
        # The bytes of all tokens are those of the answer, to which a token of control adds none.
        own = None if token.is_control else list(token.text.encode())
        content.append({"token": token.text, "logprob": token.logprob, "bytes": own, "top_logprobs": top})
    return {"content": content, "refusal": None}
