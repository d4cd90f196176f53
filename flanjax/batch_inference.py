"""Lines of a file as a model is asked them, and as its answers, scores or reasons for neither are written.

    answers = Answers(model, DecodingConfig(max_new_tokens=8))
    answers([(1, b'{"input": "Is 7 odd?"}'), (2, b"oops")])
    # [{"input": "Is 7 odd?", "prediction": "yes", "finish": "stop"}, {"error": "line 2: not JSON (...): oops"}]

What is wrong with a row is written in its place and keeps no other from its answer. `flanjax.infer` is the door.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from flanjax.data.chat import own_chat
from flanjax.data.placeholders import Placeholders
from flanjax.data.records import json_record
from flanjax.data.sources import BadRow, text_field
from flanjax.data.tasks import Turn
from flanjax.errors import FlanjaxError
from flanjax.generation.decoding import DecodingConfig
from flanjax.generation.engine import Engine, Request
from flanjax.generation.generate import generate
from flanjax.generation.scoring import Score, score
from flanjax.loading import Model
from flanjax.models.decoder import require_positions
from flanjax.models.decoder_config import DecoderConfig

Row = dict[str, Any]
Told = Callable[[int, int], None]  # rows of the window that are done, tokens made or scored for them

INPUTS = ("input", "inputs", "messages")
TARGETS = ("target", "targets")
ANSWERED = ("prediction", "finish", "error")
SCORED = ("score", "scores", "error")


class Asked(NamedTuple):
    """What a model gets of a row.

    Attributes:
      ids: of the input.
      prompt: the number of its learnt prompt.
      eos_ids: what ends an answer.
      targets: ids of what is scored.
      listed: whether the row has a list of targets.
    """

    ids: list[int]
    prompt: int
    eos_ids: tuple[int, ...]
    targets: list[list[int]]
    listed: bool


_Ids = tuple[list[int], tuple[int, ...], list[list[int]]]  # of the input, what ends an answer, of targets


class Reader:
    """Makes of a row what the model gets.

    Arguments:
      model: of `flanjax.load`.
      new_tokens: room that an answer needs; None where targets are scored instead.
      eos: whether a target ends in what ends an answer.
      max_length: tokens of input and answer at most; None for as many positions as a decoder was made for.
    """

    def __init__(self, model: Model, new_tokens: int | None, *, eos: bool = True, max_length: int | None = None):
        self._model, self._vocabulary, self._new_tokens, self._eos = model, model.vocabulary, new_tokens, eos
        self._chat = own_chat(model.vocabulary)
        self._prompts = Placeholders(model.config.prompt_length, model.config.prompt_tasks)
        decoder = model.config if isinstance(model.config, DecoderConfig) else None
        self._decoder, self._most = decoder, decoder.text_positions if decoder and max_length is None else max_length

    def read(self, row: Row, place: str) -> Asked:
        """What the model gets of the row.

        Raises:
          FlanjaxError: a field is missing, wrong or empty, there is one that will be written, the chat template refuses
            the messages, no prompt is of the row's task, or it is too long.
        """
        for name in SCORED if self._new_tokens is None else ANSWERED:
            if name in row:
                raise BadRow(f"{place}: field {name!r} would be overwritten: give it another name")
        given = [name for name in INPUTS if name in row]
        if len(given) != 1:
            raise BadRow(f"{place}: one of the fields {', '.join(INPUTS)} is expected, and it has {given or 'none'}")
        texts = self._targets(row, place) if self._new_tokens is None else []
        chat = given == ["messages"]
        ids, ends, targets = self._chat_ids(row, texts, place) if chat else self._ids(row, given[0], texts, place)
        prompt = self._prompts.number(text_field(row, "task", place) if self._prompts.tasks else "")
        asked = Asked(ids, prompt, ends, targets, isinstance(row.get(TARGETS[1]), list))
        self._require_room(asked, place)
        return asked

    def _ids(self, row: Row, name: str, texts: Sequence[str], place: str) -> _Ids:
        vocabulary = self._vocabulary
        ids = vocabulary.encode(_filled(row, name, place))
        if not ids:
            raise BadRow(f"{place}: field {name!r} has nothing in it that the vocabulary has a token for")
        end = [vocabulary.eos_id] * self._eos
        return vocabulary.as_inputs(ids), self._model.eos_ids, [vocabulary.encode(text) + end for text in texts]

    def _chat_ids(self, row: Row, texts: Sequence[str], place: str) -> _Ids:
        if self._chat is None:
            raise BadRow(
                f"{place}: messages need a chat template, and {self._vocabulary.path} brings none: give `input`"
            )
        messages = row["messages"]
        if not isinstance(messages, list) or not messages or not all(isinstance(one, dict) for one in messages):
            raise BadRow(f"{place}: field 'messages' must be a list of objects with role and content")
        turns = [
            Turn(role=_filled(one, "role", place), text=text_field(one, "content", place), learnt=False)
            for one in messages
        ]
        if turns[-1].role == "assistant":
            raise BadRow(f"{place}: the last message is the assistant's own: take it out, or score it as the target")
        ends, targets = self._model.chat_eos_ids(self._chat), []
        for text in texts:
            (example,) = self._chat.examples([*turns, Turn(role="assistant", text=text)], place)
            counted = [id_ for id_, weight in zip(example.targets, example.weights, strict=True) if weight]
            targets.append(counted if self._eos or counted[-1] not in ends else counted[:-1])
        return self._chat.prompt(messages), ends, targets

    def _targets(self, row: Row, place: str) -> list[str]:
        given = [name for name in TARGETS if name in row]
        if len(given) != 1:
            raise BadRow(f"{place}: one of the fields {', '.join(TARGETS)} is expected, and it has {given or 'none'}")
        value = row[given[0]]
        texts = value if isinstance(value, list) else [value]
        if not texts:
            raise BadRow(f"{place}: field {given[0]!r} is empty")
        return [_filled({given[0]: text}, given[0], place) for text in texts]

    def _require_room(self, asked: Asked, place: str) -> None:
        added = max(map(len, asked.targets), default=0) if self._new_tokens is None else self._new_tokens
        length = self._model.config.prompt_length + len(asked.ids) + added
        if self._most is not None and length > self._most:
            what = "of the longest target" if self._new_tokens is None else "for an answer"
            raise BadRow(
                f"{place}: {length - added} tokens and {added} {what} are more than {self._most}: shorten it, or give "
                "another max_length"
            )
        if self._decoder is not None and (self._new_tokens is not None or self._decoder.positions == "learned"):
            require_positions(self._decoder, length)


def _filled(row: Mapping[str, Any], name: str, place: str) -> str:
    text = text_field(row, name, place)
    if not text.strip():
        raise BadRow(f"{place}: field {name!r} is empty")
    return text


class Answers:
    """Makes of lines the rows that are written for them.

    Arguments:
      model: of `flanjax.load`.
      decoding: how answers are made, what ends them apart; None for scores in their place.
      eos: whether the end of a target is scored.
      max_length: as `Reader` has it.
      batch_size: rows that go through the model together.
    """

    def __init__(
        self,
        model: Model,
        decoding: DecodingConfig | None,
        *,
        eos: bool = True,
        max_length: int | None = None,
        batch_size: int = 16,
    ):
        self._model, self._decoding, self._batch_size = model, decoding, batch_size
        new_tokens = None if decoding is None else decoding.max_new_tokens
        self._reader = Reader(model, new_tokens, eos=eos, max_length=max_length)
        self._parts = model.config, model.compute, model.params

    def __call__(self, lines: Sequence[tuple[int, bytes]], told: Told = lambda rows, tokens: None) -> list[Row]:
        """A row for each numbered line: all that it says, and an answer, scores, or an error in their place."""
        rows: list[Row] = [{} for _ in lines]
        asked: dict[int, Asked] = {}
        for at, (number, line) in enumerate(lines):
            place = f"line {number}"
            try:
                rows[at] |= json_record(line, place)
                asked[at] = self._reader.read(rows[at], place)
            except FlanjaxError as error:
                rows[at]["error"] = str(error) if str(error).startswith(place) else f"{place}: {error}"
        # Neighbours of like length: less padding, fewer programs.
        order = sorted(asked, key=lambda at: len(asked[at].ids))
        chosen = [asked[at] for at in order]
        if self._decoding is None:
            found = self._scores(chosen)
        else:
            found = self._answers(chosen, told) if self._decoding.num_beams == 1 else self._beams(chosen)
        for at, made in zip(order, found, strict=True):
            rows[at] |= made if "error" not in made else {"error": f"line {lines[at][0]}: {made['error']}"}
        return rows

    def _text(self, ids: Sequence[int]) -> str:
        return self._model.vocabulary.decode(list(ids))

    def _answers(self, asked: Sequence[Asked], told: Told) -> list[Row]:
        assert self._decoding is not None
        # An engine's shapes follow from what it had before: with a new one a window's answers are its own, to the bit.
        engine = Engine(*self._parts, slots=self._batch_size, decode=self._text, prefix_lm=self._model.prefix_lm)
        samples = range(self._decoding.num_samples)
        submitted: list[list[Request]] = []
        for each in asked:
            decoding = dataclasses.replace(self._decoding, eos_ids=each.eos_ids)
            submitted.append(
                [engine.submit(each.ids, decoding, sample=number, prompt=each.prompt) for number in samples]
            )
        waiting = [request for requests in submitted for request in requests]
        done = tokens = 0
        while engine.run_once():
            ended = [request for request in waiting if request.done]
            if ended:
                waiting = [request for request in waiting if not request.done]
                done, tokens = done + len(ended), tokens + sum(len(request.ids) for request in ended)
                told(done // len(samples), tokens)
        return [_answer_row([_Answer(one.text, one.finish, one.error) for one in each]) for each in submitted]

    def _beams(self, asked: Sequence[Asked]) -> list[Row]:
        assert self._decoding is not None
        rows: dict[int, Row] = {}
        samples, limit = self._decoding.num_samples, self._decoding.max_new_tokens
        for eos_ids in dict.fromkeys(each.eos_ids for each in asked):  # chats end in another way than texts
            of = [at for at, each in enumerate(asked) if each.eos_ids == eos_ids]
            found = generate(
                *self._parts,
                [asked[at].ids for at in of],
                dataclasses.replace(self._decoding, eos_ids=eos_ids),
                prefix_lm=self._model.prefix_lm,
                prompts=[asked[at].prompt for at in of],
                batch_rows=self._batch_size,
            )
            made = [_Answer(self._text(ids), "length" if len(ids) == limit else "stop") for ids in found]
            rows |= {at: _answer_row(made[n * samples : (n + 1) * samples]) for n, at in enumerate(of)}
        return [rows[at] for at in range(len(asked))]

    def _scores(self, asked: Sequence[Asked]) -> list[Row]:
        pairs = [(each, target) for each in asked for target in each.targets]
        found = iter(
            score(
                *self._parts,
                [each.ids for each, _ in pairs],
                [target for _, target in pairs],
                prefix_lm=self._model.prefix_lm,
                prompts=[each.prompt for each, _ in pairs],
                batch_rows=self._batch_size,
            )
        )
        return [_score_row([next(found) for _ in each.targets], listed=each.listed) for each in asked]


class _Answer(NamedTuple):
    text: str
    finish: str | None
    error: Exception | None = None


def _answer_row(samples: Sequence[_Answer]) -> Row:
    for one in samples:
        if one.error is not None:
            return {"error": f"{type(one.error).__name__}: {one.error}"}
    if len(samples) == 1:
        return {"prediction": samples[0].text, "finish": samples[0].finish}
    return {"prediction": [one.text for one in samples], "finish": [one.finish for one in samples]}


def _score_row(scores: Sequence[Score], *, listed: bool) -> Row:
    if not all(math.isfinite(one.total) for one in scores):
        return {"error": "a log-likelihood is no finite number: the model's weights may be damaged"}
    told = [{"total": one.total, "logprobs": one.logprobs, "is_greedy": one.is_greedy} for one in scores]
    return {"scores": told} if listed else {"score": told[0]}
