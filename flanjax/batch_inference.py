"""Lines of a file as a model is asked them, and as its answers, scores or reasons for neither are written.

    answers = Answers(model, DecodingConfig(max_new_tokens=8))
    answers([(1, b'{"input": "Is 7 odd?"}'), (2, b"oops")])
    # [{"input": "Is 7 odd?", "prediction": "yes", "finish": "stop"}, {"error": "line 2: not JSON (...): oops"}]

What is wrong with a row, or that it alone is too much for the memory, is written in its place and keeps no other from
its answer. `flanjax.infer` is the door.
"""

import dataclasses
import gc
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
from flanjax.generation.engine import Engine, Request, is_out_of_memory
from flanjax.generation.generate import beam_search
from flanjax.generation.scoring import Score, score
from flanjax.generation.stopping import Finish
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
        asked = dict(sorted(asked.items(), key=lambda item: len(item[1].ids)))
        window = _Window(told)
        self._make(asked, window)
        for at, made in window.rows.items():
            rows[at] |= made if "error" not in made else {"error": f"line {lines[at][0]}: {made['error']}"}
        return rows

    def _make(self, asked: Mapping[int, Asked], window: "_Window") -> None:
        """Fills the window; what is too much for the memory together is tried in halves, down to a row alone."""
        try:
            if self._decoding is None:
                self._score(asked, window)
            elif self._decoding.num_beams == 1:
                self._answer(asked, window, self._decoding)
            else:
                self._search(asked, window, self._decoding)
            return
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).partition("\n")[0] or type(error).__name__
        gc.collect()  # the error and its frames are one another's, and have what was on the device
        left = [(at, each) for at, each in asked.items() if at not in window.rows]
        if len(left) == len(asked) == 1:
            window.put(left[0][0], {"error": f"too much for the memory, even alone ({reason}): shorten it"}, 0)
            return
        middle = (len(left) + 1) // 2
        for part in (left[:middle], left[middle:]):
            self._make(dict(part), window)

    def _text(self, ids: Sequence[int]) -> str:
        return self._model.vocabulary.decode(list(ids))

    def _answer(self, asked: Mapping[int, Asked], window: "_Window", decoding: DecodingConfig) -> None:
        # An engine's shapes follow from what it had before: with a new one a window's answers are its own, to the bit.
        engine = Engine(*self._parts, slots=self._batch_size, decode=self._text, prefix_lm=self._model.prefix_lm)
        under_way: dict[int, list[Request]] = {}
        for at, each in asked.items():
            own = dataclasses.replace(decoding, eos_ids=each.eos_ids)
            samples = range(decoding.num_samples)
            under_way[at] = [engine.submit(each.ids, own, sample=n, prompt=each.prompt) for n in samples]
        failed = None
        while engine.run_once():
            for at in [at for at, requests in under_way.items() if all(one.done for one in requests)]:
                requests = under_way.pop(at)
                error = next((one.error for one in requests if one.error is not None), None)
                if error is None:
                    tokens = sum(len(one.ids) for one in requests)
                    window.put(at, _answer_row([(one.text, one.finish) for one in requests]), tokens)
                failed = failed or error
        if failed is not None:
            raise failed

    def _search(self, asked: Mapping[int, Asked], window: "_Window", decoding: DecodingConfig) -> None:
        for eos_ids in dict.fromkeys(each.eos_ids for each in asked.values()):  # chats end in another way than texts
            of = [at for at, each in asked.items() if each.eos_ids == eos_ids]
            for start in range(0, len(of), self._batch_size):
                batch = of[start : start + self._batch_size]
                found = beam_search(
                    *self._parts,
                    [asked[at].ids for at in batch],
                    dataclasses.replace(decoding, eos_ids=eos_ids),
                    prefix_lm=self._model.prefix_lm,
                    prompts=[asked[at].prompt for at in batch],
                    batch_rows=self._batch_size,
                )
                for at, best in zip(batch, found, strict=True):
                    tokens = sum(len(one.ids) for one in best)
                    window.put(at, _answer_row([(self._text(one.ids), one.finish) for one in best]), tokens)

    def _score(self, asked: Mapping[int, Asked], window: "_Window") -> None:
        pairs = [(at, number) for at, each in asked.items() for number in range(len(each.targets))]
        found: dict[int, dict[int, Score]] = {at: {} for at in asked}

        def on_score(pair: int, one: Score) -> None:
            at, number = pairs[pair]
            own, listed = found[at], asked[at].listed
            own[number] = one
            if len(own) == len(asked[at].targets):
                scores = [own[number] for number in sorted(own)]
                window.put(at, _score_row(scores, listed=listed), sum(len(each.logprobs) for each in scores))

        score(
            *self._parts,
            [asked[at].ids for at, _ in pairs],
            [asked[at].targets[number] for at, number in pairs],
            prefix_lm=self._model.prefix_lm,
            prompts=[asked[at].prompt for at, _ in pairs],
            batch_rows=self._batch_size,
            on_score=on_score,
        )


class _Window:
    """What is written for the rows of a window that are done, by their places in it, told as they come."""

    def __init__(self, told: Told):
        self.rows: dict[int, Row] = {}
        self._tokens, self._told = 0, told

    def put(self, at: int, row: Row, tokens: int) -> None:
        self.rows[at], self._tokens = row, self._tokens + tokens
        self._told(len(self.rows), self._tokens)


def _answer_row(samples: Sequence[tuple[str, Finish | None]]) -> Row:
    texts, finishes = zip(*samples, strict=True)
    if len(samples) == 1:
        return {"prediction": texts[0], "finish": finishes[0]}
    return {"prediction": list(texts), "finish": list(finishes)}


def _score_row(scores: Sequence[Score], *, listed: bool) -> Row:
    if not all(math.isfinite(one.total) for one in scores):
        return {"error": "a log-likelihood is no finite number: the model's weights may be damaged"}
    told = [{"total": one.total, "logprobs": one.logprobs, "is_greedy": one.is_greedy} for one in scores]
    return {"scores": told} if listed else {"score": told[0]}
