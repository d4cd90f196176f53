"""Continuous batching: requests come and go while others are decoded, and each is answered as if it were alone.

    engine = Engine(config, compute, params, slots=16, decode=vocabulary.decode)
    request = engine.submit([5, 6, 1], DecodingConfig(temperature=0.8, seed=1), on_piece=print)
    while engine.run_once():
        pass
    request.text, request.finish            # ("Four.", "stop")

A slot is a row of the key-value cache. A waiting request takes a free slot, is read by a program for inputs of its
length, and goes on with its neighbours, token by token, in a program whose rows each have their own position, sampling
values and limit. `submit` and `cancel` may be called from any thread, `run_once` from one at a time.

What is too much for the memory together is begun again, half as many at once; what a request draws follows from itself
alone, so its answer is the same.
"""

import collections
import dataclasses
import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from flanjax.errors import FlanjaxError
from flanjax.generation.batches import PAD_ID, Tokens, behind_prompts, length_bucket, padded, row_bucket
from flanjax.generation.decoding import DecodingConfig
from flanjax.generation.sampling import Processors, row_number
from flanjax.generation.slots import STEPS, Kept, Made, Rows, advance, empty, put, read, resized
from flanjax.generation.stopping import Answer, Decode, Finish, continuing
from flanjax.models.config import Compute
from flanjax.models.decoder import require_positions
from flanjax.models.decoder_config import DecoderConfig
from flanjax.models.model import ModelConfig
from flanjax.models.parameters import Params, are_apart, layers_apart
from flanjax.sharding.rules import mesh_of

_SHORTEST = 64  # positions of a cache
_SIZES = tuple(4**n for n in range(10))  # rows decoded together, or inputs read together, so that shapes are few
_EOS_IDS = 4  # more of them in a request are another program
_log = logging.getLogger(__name__)


class EngineError(FlanjaxError):
    """An answer that came out otherwise when it was begun again."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether fewer or shorter rows might help: what else fails, a device or a program, fails for every row alike."""
    of_device = isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
    return of_device or isinstance(error, MemoryError)


class TokenLogprob(NamedTuple):
    """How likely a token was by the model's own distribution, before temperature, penalties and what is cut off.

    Attributes:
      logprob: natural logarithm of its probability.
      top: ids and natural logarithms of the likeliest tokens, falling; as many as the request asked for.
    """

    logprob: float
    top: tuple[tuple[int, float], ...]


class Piece(NamedTuple):
    """What an answer has more than before.

    Attributes:
      tokens: ids, without EOS.
      text: what no later token can change; the pieces' texts together are the request's.
      logprobs: of each of the tokens, where the request asks for them.
      finish: in the last piece, "stop" for EOS or a stop text and "length" for the limit; None before.
    """

    tokens: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprob, ...]
    finish: Finish | None


OnPiece = Callable[[Piece], None]


@dataclasses.dataclass(eq=False)
class Request:
    """A submitted input and its answer so far; made by `Engine.submit` and changed by `run_once` alone.

    Attributes:
      done: whether nothing more will come.
      ids: the answer without EOS; where a stop text ended it, the last token is the one that completed that text.
      text: the answer in words, cut before a stop text; "" for an engine without `decode`.
      finish: as in `Piece`; None before the end, for a cancelled request and for one that failed.
      logprobs: of each of `ids`, where they were asked for.
      loglikelihood: natural logarithm of the answer's probability, EOS included where that ended it; 0 where no
        log-probabilities were asked for.
      error: what reading the input, `decode` or `on_piece` raised, or that it is too much for the memory even alone; it
        ends this request alone.
    """

    done: bool = False
    ids: list[int] = dataclasses.field(default_factory=list)
    text: str = ""
    finish: Finish | None = None
    logprobs: list[TokenLogprob] = dataclasses.field(default_factory=list)
    loglikelihood: float = 0.0
    error: Exception | None = None


@dataclasses.dataclass(eq=False, kw_only=True)
class _Job:
    """A request, what it asks for, and where its row is: what `slots.Rows` says of it."""

    request: Request
    input: tuple[int, ...] = ()
    decoding: DecodingConfig
    number: tuple[int, int] = (0, 0)
    logprobs: int | None = None
    on_piece: OnPiece | None = None
    decode: Decode | None = None
    first: int = PAD_ID  # the token that enters first
    start: int = 0  # its position
    made: int = 0
    tokens: list[int] = dataclasses.field(default_factory=list)  # that were made; more while they are made again
    answer: Answer | None = None  # where its text is looked at before its end
    again: bool = False  # whether it was begun again

    @property
    def last(self) -> int:
        return self.tokens[self.made - 1] if self.made else self.first

    @property
    def position(self) -> int:
        return self.start + self.made

    def begin_again(self) -> None:
        """From its input; what was handed out stays, and has to come again."""
        self.made, self.again = 0, True
        if self.on_piece is None:
            self.tokens.clear()
            self.request.ids, self.request.text, self.request.logprobs, self.request.loglikelihood = [], "", [], 0.0
            self.answer = Answer(self.decoding.stop, self.decode) if self.answer and self.decode else None


_NONE = _Job(request=Request(), decoding=DecodingConfig())  # of a row that is free


class Engine:
    """Decodes any number of requests, `slots` at a time.

    Attributes:
      steps: of the decoder, so far; each is a token of every row under way.

    Arguments:
      config: the model, with what tuning methods added to it: adapters apply as they are.
      compute: how to run it.
      params: its parameters; over the mesh that they lie on the slots are spread.
      slots: rows decoded together.
      decode: makes text of token ids; needed for stop texts and for the text of pieces.
      prefix_lm: whether a decoder's inputs all see each other, as it was trained.
    """

    def __init__(
        self,
        config: ModelConfig,
        compute: Compute,
        params: Params,
        *,
        slots: int = 16,
        decode: Decode | None = None,
        prefix_lm: bool = False,
    ):
        self.steps = 0
        self._config, self._compute, self._params = config, compute, params
        self._stepped = layers_apart(params)
        self._slots, self._decode, self._prefix_lm = slots, decode, prefix_lm
        self._waiting: collections.deque[_Job] = collections.deque()
        self._again: collections.deque[_Job] = collections.deque()  # what is begun again, before all that waits
        self._most = slots  # rows at once; fewer while those are under way
        self._rows: list[_Job | None] = []
        self._kept: Kept | None = None
        self._length = self._inputs = _SHORTEST

    def submit(
        self,
        ids: Tokens,
        decoding: DecodingConfig,
        *,
        sample: int = 0,
        prompt: int = 0,
        logprobs: int | None = None,
        continues: bool = False,
        on_piece: OnPiece | None = None,
    ) -> Request:
        """Queues an input, from any thread. What is drawn follows from the seed, the ids and `sample` alone.

        Arguments:
          ids: BOS or EOS included where the model expects one; a decoder's are not empty.
          decoding: one answer's; `num_samples` is not looked at, each sample is a request.
          sample: the number of the sample, as `generate` counts them.
          prompt: the number of the learnt prompt, for a model with one for each task.
          logprobs: how many of the likeliest tokens are given with each token's own log-probability; None for neither.
          continues: whether the text goes on from that of the input: with the space before its first word, say.
          on_piece: is given each piece, in the thread of `run_once`; with it every token is handed out as it comes.

        Raises:
          ValueError: beams; stop texts without `decode`; an empty input of a decoder, or a number of a prompt that
            there is not.
          ModelConfigError: the longest answer would be beyond the positions that a decoder has.
        """
        config = self._config
        if decoding.num_beams > 1:
            raise ValueError("the engine decodes token by token: beam search is done by `generate`")
        if decoding.stop and self._decode is None:
            raise ValueError("stop texts need decode, which makes text of token ids")
        (whole,) = behind_prompts(config, [ids], [prompt])
        of_decoder = isinstance(config, DecoderConfig)
        if isinstance(config, DecoderConfig):
            require_positions(config, len(whole) + decoding.max_new_tokens)
        decode = self._decode
        if decode is not None and continues:
            decode = continuing(decode, ids)
        job = _Job(
            request=Request(),
            input=tuple(whole),
            decoding=decoding,
            number=row_number(whole, sample),
            logprobs=logprobs,
            on_piece=on_piece,
            decode=decode,
            # A decoder's last token enters again, in its own place.
            first=whole[-1] if of_decoder else PAD_ID,
            start=len(whole) - 1 if of_decoder else 0,
            answer=Answer(decoding.stop, decode) if decode and (decoding.stop or on_piece) else None,
        )
        self._waiting.append(job)
        return job.request

    def cancel(self, request: Request) -> None:
        """Lets go of a request, from any thread: it is `done`, without a `finish`.

        A `run_once` that is under way may still hand out a piece of it.
        """
        request.done = True

    def run_once(self) -> bool:
        """Admits waiting requests into free slots, advances all, hands out pieces; False when nothing is under way.

        What is too much for the memory is begun again, half as many at once, until those have ended; one that is too
        much alone has that as its `error`. A stream whose tokens do not come again ends with an `EngineError`.

        Raises:
          Exception: what else the device raised while it made room or decoded, after which no request is under way:
            each has it as `error`. With several processes that is want of memory too, of which only one may know.
        """
        with mesh_of(self._params):
            return self._run_once()

    def _run_once(self) -> bool:
        self._rows = [None if job is None or job.request.done else job for job in self._rows]
        admitted = self._next()
        every = [*filter(None, self._rows), *admitted]
        try:
            self._resize(admitted)
            self._admit(admitted)
            if not any(self._rows):
                return bool(admitted or self._again or self._waiting)
            made = self._advance()
        except Exception as error:
            left = [job for job in every if not job.request.done]
            self._rows, self._kept = [], None
            fewer = is_out_of_memory(error) and jax.process_count() == 1
            if not fewer or len(left) == 1:
                for job in left:
                    job.request.done, job.request.error = True, error.with_traceback(None) if fewer else error
                self._most = self._slots
            if not fewer:
                raise
            reason = str(error).partition("\n")[0]
        else:
            for row, under_way in enumerate(self._rows):
                if under_way is not None:
                    self._hand_out(under_way, row, made)
            return True
        gc.collect()  # the error and its frames are one another's, and have what was on the device
        if len(left) > 1:
            self._begin_again(left, reason)
        return True

    def _begin_again(self, jobs: Sequence[_Job], reason: str) -> None:
        """Puts jobs before all others, of which half as many may be under way together."""
        self._most = len(jobs) // 2
        _log.warning("%d answers at once are too much: %d at most begin again (%s)", len(jobs), self._most, reason)
        for job in jobs:
            job.begin_again()
        self._again.extendleft(reversed(jobs))

    def _next(self) -> list[_Job]:
        """The waiting requests that there is a slot for."""
        under_way = [job for job in self._rows if job is not None]
        if not self._again and not any(job.again for job in under_way):
            self._most = self._slots
        free, jobs = self._most - len(under_way), list[_Job]()
        for queue in (self._again, self._waiting):
            while queue and len(jobs) < free:
                job = queue.popleft()
                if not job.request.done:
                    jobs.append(job)
        return jobs

    def _resize(self, admitted: Sequence[_Job]) -> None:
        """Makes room for these and for `STEPS` tokens more, and lets go of room that is not needed any more."""
        under_way = [row for row, job in enumerate(self._rows) if job is not None]
        jobs = [*(job for job in self._rows if job is not None), *admitted]
        if not jobs:
            return
        rows = self._size(len(jobs))
        # As many positions as the longest may reach before the next look; the last token it writes is no more read.
        reach = max(job.position + min(STEPS, job.decoding.max_new_tokens - job.made) for job in jobs)
        length = _with_room(reach, self._length)
        inputs = self._inputs
        if not isinstance(self._config, DecoderConfig):
            inputs = _with_room(max(len(job.input) for job in jobs), inputs)
        if self._kept is None:
            size = {"rows": rows, "length": length, "inputs": inputs}
            self._kept = empty(self._config, self._compute, **size, apart=are_apart(self._stepped))
            self._rows = [None] * rows
        elif rows != len(self._rows):
            sources = np.full(rows, len(self._rows), np.int32)
            sources[: len(under_way)] = under_way
            self._kept = resized(self._kept, sources, length=length, inputs=inputs)
            self._rows = [self._rows[row] for row in under_way] + [None] * (rows - len(under_way))
        elif (length, inputs) != (self._length, self._inputs):
            self._kept = resized(self._kept, None, length=length, inputs=inputs)
        self._length, self._inputs = length, inputs

    def _size(self, count: int) -> int:
        """So many rows are decoded together for `count` requests: few shapes, and few rows for few requests."""
        mesh = jax.sharding.get_abstract_mesh()
        if not mesh.empty and mesh.size > 1:
            return self._most
        return min(self._most, next(size for size in _SIZES if size >= count or size >= self._most))

    def _admit(self, admitted: Sequence[_Job]) -> None:
        """Reads inputs of like length together, each once however many samples of it are asked for."""
        places = iter([row for row, job in enumerate(self._rows) if job is None])
        of_length: dict[int, dict[tuple[int, ...], list[_Job]]] = {}
        for job in admitted:
            of_length.setdefault(length_bucket(len(job.input)), {}).setdefault(job.input, []).append(job)
        for found in of_length.values():
            inputs = list(found)
            while inputs:
                least = self._size(1)
                count = max(n for n in (min(least, len(inputs)), *_SIZES) if n <= len(inputs))
                some, inputs = inputs[:count], inputs[count:]
                self._read(some, [found[ids] for ids in some], places)

    def _read(self, inputs: Sequence[tuple[int, ...]], jobs: Sequence[Sequence[_Job]], places: Iterator[int]) -> None:
        """Inputs into rows, one for each of an input's jobs; what cannot be read together is read one by one."""
        try:
            batch = padded(inputs, max(len(inputs), self._size(1)))
            start = read(self._config, self._compute, self._params, *batch, prefix_lm=self._prefix_lm)
            start = jax.block_until_ready(start)  # or the device might fail later, where others are under way
        except Exception as error:  # an input too long for the memory, say: others go on
            if len(inputs) == 1:
                for job in jobs[0]:
                    job.request.done, job.request.error = True, error
                return
            start = None
        if start is None:  # not above, where the error still holds what was read
            for ids, of_input in zip(inputs, jobs, strict=True):
                self._read([ids], [of_input], places)
            return
        pairs = [(next(places), source, job) for source, of_input in enumerate(jobs) for job in of_input]
        count = next(size for size in _SIZES if size >= len(pairs))
        into, sources = np.full((2, count), len(self._rows), np.int32)
        into[: len(pairs)], sources[: len(pairs)] = zip(*[pair[:2] for pair in pairs], strict=True)
        sources[len(pairs) :] = 0
        assert self._kept is not None
        self._kept = put(self._kept, start, into, sources)
        for place, _, job in pairs:
            self._rows[place] = job

    def _advance(self) -> Made:
        """Some tokens more for every row."""
        jobs = [job for job in self._rows if job is not None]
        asked = [job.logprobs for job in jobs if job.logprobs is not None]
        self._kept, made = advance(
            self._config,
            self._compute,
            self._stepped,
            self._kept,
            self._said_of_rows(),
            np.int32(1 if any(job.on_piece for job in jobs) else STEPS),
            np.bool_(bool(self._again or self._waiting)),
            np.bool_(bool(asked)),
            top=row_bucket(max(asked)) if any(asked) else 0,
        )
        made = jax.device_get(made)
        self.steps += int(made.counts.max())
        return made

    def _said_of_rows(self) -> Rows:
        """What the device is told of each row."""
        jobs = [_NONE if job is None else job for job in self._rows]
        asked = [job.decoding for job in jobs]
        eos = np.full((len(jobs), max(_EOS_IDS, row_bucket(max(len(x.eos_ids) for x in asked)))), -1, np.int32)
        for row, decoding in enumerate(asked):
            eos[row, : len(decoding.eos_ids)] = decoding.eos_ids
        told: dict[str, Any] = {
            "last": np.array([job.last for job in jobs], np.int32),
            "position": np.array([job.position for job in jobs], np.int32),
            "made": np.array([job.made for job in jobs], np.int32),
            "limit": np.array([x.max_new_tokens for x in asked], np.int32),
            "active": np.array([job is not None for job in self._rows]),
            "seed": np.array([x.seed for x in asked], np.uint32),
            "numbers": np.array([job.number for job in jobs], np.uint32),
            "eos_ids": eos,
        }
        return Rows(**told, processors=Processors.of(asked))

    def _hand_out(self, job: _Job, row: int, made: Made) -> None:
        """A row's new tokens to its request."""
        count = int(made.counts[row])
        tokens = made.tokens[row, :count].tolist()
        known = job.tokens[job.made : job.made + count]
        if tokens[: len(known)] != known:
            why = "it came out otherwise when it was begun again for want of memory: ask again, or with fewer at once"
            job.request.done, job.request.error = True, EngineError(why)
            return
        job.made += count
        job.tokens += tokens[len(known) :]
        ended = tokens[-1] in job.decoding.eos_ids
        finish: Finish | None = "stop" if ended else "length" if job.made == job.decoding.max_new_tokens else None
        # T5's padding is no word of its own; a decoder's id 0 may be one.
        of_decoder = isinstance(self._config, DecoderConfig)
        kept = [i for i in range(len(known), count - ended) if of_decoder or tokens[i] != PAD_ID]
        logprobs = [_logprob(made, row, i, job.logprobs) for i in kept] if job.logprobs is not None else []
        try:
            self._give(job, [tokens[i] for i in kept], logprobs, finish, float(made.logprobs[row, count - 1]) * ended)
        except Exception as error:
            job.request.done, job.request.error = True, error

    def _give(
        self, job: _Job, tokens: Sequence[int], logprobs: Sequence[TokenLogprob], finish: Finish | None, end: float
    ) -> None:
        """More of an answer; `end` is the log-probability of EOS, if that ended it."""
        request, before, text = job.request, len(job.request.ids), ""
        ids = [*request.ids, *tokens]
        if job.answer is not None:
            text = job.answer.grow(ids, ended=finish is not None)
            ids, finish = list(job.answer.tokens), "stop" if job.answer.stopped else finish
            request.text = job.answer.text
            end = 0.0 if job.answer.stopped else end
        elif finish is not None and job.decode is not None:
            request.text = job.decode(ids)
        new, scores = ids[before:], tuple(logprobs[: len(ids) - before])
        request.ids, request.finish = ids, finish
        request.logprobs.extend(scores)
        if job.logprobs is not None:
            request.loglikelihood += sum(score.logprob for score in scores) + end
        request.done |= finish is not None
        if job.on_piece is not None and (new or text or finish):
            job.on_piece(Piece(tuple(new), text, scores, finish))


def _with_room(needed: int, now: int) -> int:
    """The length of a cache that has `now` when `needed` is: another when it does not hold it, or twice as much."""
    wanted = length_bucket(needed, _SHORTEST)
    return now if wanted <= now < 2 * wanted else wanted


def _logprob(made: Made, row: int, column: int, count: int | None) -> TokenLogprob:
    ids, values = made.top_ids[row, column, :count].tolist(), made.top_logprobs[row, column, :count].tolist()
    return TokenLogprob(float(made.logprobs[row, column]), tuple(zip(ids, values, strict=True)))
