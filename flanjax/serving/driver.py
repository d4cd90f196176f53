"""One thread that drives an engine, between an event loop and `flanjax.generation.engine`.

    driver = Driver(lambda: Engine(...), most_rows=64)
    driver.start()
    with driver.admit(1) as answers:
        answers.submit([Row(ids=(5, 6, 1), decoding=DecodingConfig())])
        async for pieces in answers:            # [(0, Piece(tokens=(8, 9), text="Four.", ...))]
            ...

Everything here but that thread belongs to one event loop. What the thread is to do goes into its inbox, and it takes
it between two steps of the engine: the loop never waits for a step. Pieces go back by `call_soon_threadsafe` and wait
in their request's `Answers`, where a reader who is slow gets them joined into one piece a row. So nothing waits for a
reader, and what waits for one is never more than the request's whole answer.
"""

import asyncio
import contextlib
import functools
import logging
import queue
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

from flanjax.errors import FlanjaxError
from flanjax.generation.decoding import DecodingConfig
from flanjax.generation.engine import Engine, Piece, Request, is_out_of_memory
from flanjax.serving.errors import ApiError

T = TypeVar("T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One answer that is wanted; the fields are the arguments of `Engine.submit`.

    With `stream` it comes in pieces, token by token; without, the engine may take many steps between two looks.
    """

    ids: tuple[int, ...]
    decoding: DecodingConfig
    sample: int = 0
    prompt: int = 0
    logprobs: int | None = None
    continues: bool = False
    stream: bool = False


class Answers:
    """The answers to one request as they come; leaving its context lets go of what is not done.

    Attributes:
      count: how many it was admitted with, which it counts for whatever it is at.
      rows: what has been submitted.
    """

    def __init__(self, driver: "Driver", count: int):
        self.count, self.rows = count, tuple[Row, ...]()
        self._driver = driver
        self._waiting: dict[int, list[Piece]] = {}
        self._unfinished: set[int] = set()
        self._called: asyncio.Future[Any] | None = None
        self._failure: ApiError | None = None
        self._news = asyncio.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._driver._close(self)

    def submit(self, rows: Sequence[Row]) -> None:
        """Queues the request's rows together."""
        self.rows, self._unfinished = tuple(rows), set(range(len(rows)))
        self._driver._inbox.put(lambda engine: self._driver._submit(engine, self))

    async def call(self, do: Callable[[], T]) -> T:
        """What `do` returns, called in the engine's thread between two steps.

        Raises:
          ApiError: the request was ended meanwhile.
        """
        if self._failure is not None:
            raise self._failure
        done: asyncio.Future[T] = self._driver._call(do)
        self._called = done
        return await done

    async def __aiter__(self) -> AsyncIterator[list[tuple[int, Piece]]]:
        """What has come since the last time: (number of the row, piece), one of each row at the most.

        Raises:
          ApiError: the engine refused a row or failed.
        """
        while self._unfinished or self._waiting:
            await self._news.wait()
            self._news.clear()
            if self._failure is not None:
                raise self._failure
            came, self._waiting = self._waiting, {}
            yield [(row, joined(pieces)) for row, pieces in came.items()]

    def _put(self, row: int, piece: Piece) -> None:
        self._waiting.setdefault(row, []).append(piece)
        if piece.finish is not None:
            self._unfinished.discard(row)
        self._news.set()

    def _fail(self, failure: ApiError) -> None:
        self._failure = failure
        self._news.set()
        if self._called is not None:
            _settle(self._called, None, failure)


def joined(pieces: Sequence[Piece]) -> Piece:
    """Pieces of one row as one."""
    if len(pieces) == 1:
        return pieces[0]
    return Piece(
        tokens=tuple(token for piece in pieces for token in piece.tokens),
        text="".join(piece.text for piece in pieces),
        logprobs=tuple(logprob for piece in pieces for logprob in piece.logprobs),
        finish=pieces[-1].finish,
    )


class Driver:
    """Drives an engine on a thread of its own.

    Attributes:
      ready: set once the engine is there; raises what opening it raised.
      failure: what a step of the engine raised; None again once an answer has come to its end since. Requests under
        way end with an error, later ones are tried.
      rows: answers under way and those that wait, of all requests that have been admitted.

    Arguments:
      open_engine: makes the engine, in that thread.
      most_rows: of all requests together; more are refused until there is room.
    """

    def __init__(self, open_engine: Callable[[], Engine], *, most_rows: int):
        self.failure: Exception | None = None
        self.rows = 0
        self._open_engine, self._most_rows = open_engine, most_rows
        self._open: set[Answers] = set()
        self._running: dict[Request, tuple[Answers, int]] = {}  # of the thread
        self._inbox: queue.SimpleQueue[Callable[[Engine], None] | None] = queue.SimpleQueue()  # None: the end
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begins to open the engine; called in the event loop."""
        self._loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = self._loop.create_future()
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """Ends the thread after the step that it is at, and waits for that at most so long."""
        self._inbox.put(None)
        self._thread.join(seconds)

    def require_ready(self) -> None:
        """Refuses a request that cannot be answered now.

        Raises:
          ApiError: the engine is not there yet.
        """
        if not self.ready.done() or self.ready.exception() is not None:
            raise ApiError(503, "the model is being loaded", code="loading", retry_after=2)

    def admit(self, count: int) -> Answers:
        """Counts a request for so many answers among those under way, until its context is left.

        Raises:
          ApiError: as `require_ready`; so many are too many now.
        """
        self.require_ready()
        if self.rows + count > self._most_rows:
            raise ApiError(
                429,
                f"{self.rows} answers are under way or wait: with {count} more there would be more than "
                f"{self._most_rows}; ask again later",
                code="queue_full",
                retry_after=1,
            )
        answers = Answers(self, count)
        self._open.add(answers)
        self.rows += count
        return answers

    def refuse_all(self, failure: ApiError) -> None:
        """Ends all requests under way with an error."""
        for answers in self._open:
            answers._fail(failure)

    def _close(self, answers: Answers) -> None:
        if answers not in self._open:
            return
        self._open.discard(answers)
        self.rows -= answers.count
        if answers._unfinished:
            self._inbox.put(lambda engine: self._cancel(engine, answers))

    def _call(self, do: Callable[[], T]) -> "asyncio.Future[T]":
        done: asyncio.Future[T] = self._loop.create_future()

        def run(engine: Engine) -> None:
            if done.done():  # whoever asked has gone
                return
            try:
                self._tell(_settle, done, do(), None)
            except Exception as error:
                self._tell(_settle, done, None, error)

        self._inbox.put(run)
        return done

    # --- the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            engine = self._open_engine()
        except Exception as error:
            self._tell(_settle, self.ready, None, error)
            return
        self._tell(_settle, self.ready, None, None)
        busy = False
        while True:
            while not busy or not self._inbox.empty():
                do = self._inbox.get()
                if do is None:
                    return
                do(engine)
                busy = True
            try:
                busy = engine.run_once()
            except Exception as error:
                _log.exception("a step of the engine failed")
                self.failure = error
                self._end_all(engine, ApiError(500, f"the engine failed: {error!r}", code="engine_failed"))
            self._hand_out()

    def _hand_out(self) -> None:
        """Tells of requests that have ended, and all of an answer that is no stream."""
        for request in [request for request in self._running if request.done]:
            answers, number = self._running.pop(request)
            if request.error is not None:
                self._tell(answers._fail, _failed(request.error))
                continue
            self.failure = None
            if not answers.rows[number].stream:
                piece = Piece(tuple(request.ids), request.text, tuple(request.logprobs), request.finish)
                self._tell(answers._put, number, piece)

    def _end_all(self, engine: Engine, failure: ApiError) -> None:
        for request, (answers, _) in self._running.items():
            engine.cancel(request)
            self._tell(answers._fail, failure)
        self._running.clear()

    def _submit(self, engine: Engine, answers: Answers) -> None:
        try:
            for number, row in enumerate(answers.rows):
                request = engine.submit(
                    row.ids,
                    row.decoding,
                    sample=row.sample,
                    prompt=row.prompt,
                    logprobs=row.logprobs,
                    continues=row.continues,
                    on_piece=functools.partial(self._tell, answers._put, number) if row.stream else None,
                )
                self._running[request] = answers, number
        except Exception as error:
            self._cancel(engine, answers)
            refused = isinstance(error, FlanjaxError | ValueError)
            self._tell(answers._fail, ApiError(400, str(error)) if refused else _failed(error))

    def _cancel(self, engine: Engine, answers: Answers) -> None:
        for request in [request for request, (whose, _) in self._running.items() if whose is answers]:
            del self._running[request]
            engine.cancel(request)

    def _tell(self, call: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody is there to be told
            self._loop.call_soon_threadsafe(call, *arguments)


def _failed(error: Exception) -> ApiError:
    if is_out_of_memory(error):  # no failure of the server, which clients would ask again after
        reason = str(error).partition("\n")[0]
        remedy = "shorten the prompt, or ask for fewer tokens"
        return ApiError(400, f"the answer is too much for the memory ({reason}): {remedy}", code="out_of_memory")
    return ApiError(500, f"the answer cannot be made: {error!r}", code="answer_failed")


def _settle(future: "asyncio.Future[Any]", value: Any, error: Exception | None) -> None:
    if future.done():  # nobody waits for it any more
        return
    if error is None:
        future.set_result(value)
    else:
        future.set_exception(error)
