"""One model behind the API: opened on the engine's thread, asked by any number of requests at once.

service = Service(lambda: flanjax.load("runs/demo"), Settings(name="demo"))
service.start()                             # in an event loop; opens the model on a thread
job = service.reader.completion(fields)     # once `service.driver.ready` is done
with service.driver.admit(job.answers) as answers:
    answers.submit(job.rows())
    ...
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from flanjax.generation.decoding import DecodingConfig
from flanjax.generation.engine import Engine, TokenLogprob
from flanjax.generation.scoring import score
from flanjax.loading import Model
from flanjax.models.decoder import require_positions
from flanjax.models.decoder_config import DecoderConfig
from flanjax.serving.answers import ChatWriter, CompletionWriter, Writer
from flanjax.serving.driver import Answers, Driver
from flanjax.serving.errors import ApiError, ServingError
from flanjax.serving.requests import Job, Reader

DEFAULT_LENGTH = 2048  # of models whose positions have no end
_SCORED_TOGETHER = 16  # prompts that are read while the others' answers wait


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a server allows.

    Attributes:
      name: of the model, in requests.
      api_key: that requests must bring; None for none.
      slots: answers decoded together.
      max_queue: further answers that may wait for a slot.
      max_length: tokens of a prompt and its answer together; None for the model's positions, 2048 where they have no
        end.
      max_body: bytes of a request.
      timeout: seconds for a request, from the end of its head to the last byte of its answer.

    Raises:
      ServingError: a number is too small.
    """

    name: str
    api_key: str | None = None
    slots: int = 16
    max_queue: int = 256
    max_length: int | None = None
    max_body: int = 4 << 20
    timeout: float = 600.0

    def __post_init__(self) -> None:
        for name, least in {"slots": 1, "max_queue": 0, "max_length": 2, "max_body": 1}.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ServingError(f"{name} is {value}: it must be at least {least}")
        if not 0 < self.timeout < math.inf:
            raise ServingError(f"timeout is {self.timeout}: it must be a number of seconds above 0")


def engine_of(model: Model, settings: Settings) -> Engine:
    """The engine of a model, with its first programs compiled."""
    vocabulary = model.vocabulary
    engine = Engine(
        model.config,
        model.compute,
        model.params,
        slots=settings.slots,
        decode=lambda ids: vocabulary.decode(list(ids)),
        prefix_lm=model.prefix_lm,
    )
    engine.submit(vocabulary.as_inputs(vocabulary.encode("a")), DecodingConfig(max_new_tokens=2))
    while engine.run_once():
        pass
    return engine


class Service:
    """A model and its engine.

    Attributes:
      settings: what is allowed.
      driver: drives the engine; its `ready` says when the model is there.
      reader: reads requests, once the model is there.
      draining: whether the server is ending and takes nothing new.

    Arguments:
      open_model: opens the model, on the engine's thread.
      settings: as above.
      make_engine: makes its engine, there too.
    """

    reader: Reader

    def __init__(
        self,
        open_model: Callable[[], Model],
        settings: Settings,
        make_engine: Callable[[Model, Settings], Engine] = engine_of,
    ):
        self.settings, self.draining = settings, False
        self._open_model, self._make_engine = open_model, make_engine
        self._most_answers = settings.slots + settings.max_queue
        self.driver = Driver(self._open, most_rows=self._most_answers)

    def start(self) -> None:
        """Begins to open the model; called in the event loop."""
        self.driver.start()

    def require_open(self) -> None:
        """Refuses a request that cannot be answered now.

        Raises:
          ApiError: the server is ending, or the model is not there yet.
        """
        if self.draining:
            raise ApiError(503, "the server is shutting down", code="shutting_down", retry_after=5)
        self.driver.require_ready()

    def health(self) -> tuple[int, dict[str, Any]]:
        """A status of HTTP and what is the matter."""
        try:
            self.require_open()
        except ApiError as error:
            return 503, {"status": error.code, "message": error.message}
        if self.driver.failure is not None:
            return 503, {"status": "engine_failed", "message": repr(self.driver.failure)}
        return 200, {"status": "ready", "answers": self.driver.rows, "slots": self.settings.slots}

    async def writer(self, job: Job, answers: Answers) -> Writer:
        """What writes the answers to a request that has been admitted, in the form of its API."""
        scores = await self._scores(job, answers) if job.echo is not None and job.logprobs is not None else ()
        names = {id_: text for text, id_ in self._model.vocabulary.control_tokens.items()}
        names.setdefault(self._model.vocabulary.eos_id, "</s>")
        decode = self._model.vocabulary.decode
        if job.is_chat:
            return ChatWriter(job, decode=decode, names=names)
        return CompletionWriter(job, decode=decode, names=names, scores=scores)

    async def _scores(self, job: Job, answers: Answers) -> list[Sequence[TokenLogprob]]:
        """Of each prompt, the log-probabilities of its tokens after the first."""
        found: list[Sequence[TokenLogprob]] = []
        for start in range(0, len(job.inputs), _SCORED_TOGETHER):
            some = job.inputs[start : start + _SCORED_TOGETHER]
            found += await answers.call(lambda some=some: self._score(some, job))  # type: ignore[misc]
        return found

    def _score(self, inputs: Sequence[Sequence[int]], job: Job) -> list[Sequence[TokenLogprob]]:
        model = self._model
        scores = score(
            model.config,
            model.compute,
            model.params,
            [ids[:1] for ids in inputs],
            [ids[1:] for ids in inputs],
            prefix_lm=model.prefix_lm,
            prompts=[job.prompt] * len(inputs),
            likeliest=job.logprobs or 0,
        )
        return [[TokenLogprob(*told) for told in zip(each.logprobs, each.likeliest, strict=True)] for each in scores]

    def _open(self) -> Engine:
        model = self._open_model()
        config, most = model.config, self.settings.max_length
        if most is None:
            most = config.max_positions if isinstance(config, DecoderConfig) else DEFAULT_LENGTH
        if isinstance(config, DecoderConfig):
            require_positions(config, most)
        self.reader = Reader(model, name=self.settings.name, max_length=most, most_answers=self._most_answers)
        self._model = model
        return self._make_engine(model, self.settings)
