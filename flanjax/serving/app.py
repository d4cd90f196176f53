"""The server's routes, as an ASGI application: what comes in is checked, what goes out is whole or a stream of events.

    app = make_app(service)         # for uvicorn; `flanjax.serving.server` runs it

    POST /v1/completions, POST /v1/chat/completions, GET /v1/models, GET /v1/models/NAME, GET /health

A client that goes away lets go of its answers. One that reads slowly gets larger chunks (`flanjax.serving.driver`) and
holds nobody up; one that does not read at all loses its answers when its request's time is over, and then its
connection (`flanjax.serving.server`). Bodies must be JSON by their content type too: a page in somebody's browser
cannot send that to a server of theirs without being asked first.
"""

import asyncio
import contextlib
import hmac
import json
import time
from collections.abc import Callable, Coroutine
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from flanjax.generation.engine import Piece
from flanjax.serving.answers import Writer
from flanjax.serving.driver import Answers, joined
from flanjax.serving.errors import ApiError
from flanjax.serving.fields import Fields
from flanjax.serving.requests import Job
from flanjax.serving.service import Service

_EVENTS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache", "x-accel-buffering": "no"}
_LAST_WORD = 1.0  # seconds for the reason why a stream ends early
_READ_ON = 8  # bodies' worth of a body too large that are read, so that its sender comes to read the answer
_NOTHING = Piece(tokens=(), text="", logprobs=(), finish="length")  # of a prompt that is echoed alone


def make_app(service: Service) -> Starlette:
    """The application over a service that has been started or will be."""
    here = _Endpoints(service)
    routes = [
        Route("/health", here.health, methods=["GET"]),
        Route("/v1/models", here.models, methods=["GET"]),
        Route("/v1/models/{name:path}", here.model, methods=["GET"]),
        Route("/v1/completions", here.completions, methods=["POST"]),
        Route("/v1/chat/completions", here.chat_completions, methods=["POST"]),
    ]
    handlers: dict[Any, Any] = {ApiError: _api_error, HTTPException: _http_error, Exception: _bug}
    handlers[ClientDisconnect] = _gone
    return Starlette(routes=routes, exception_handlers=handlers)


class _Endpoints:
    """What is at each address."""

    def __init__(self, service: Service):
        self._service = service
        self._created = int(time.time())

    async def health(self, request: Request) -> Response:
        """Whether requests are answered: 200, or 503 with the reason. It needs no key."""
        status, body = self._service.health()
        return JSONResponse(body, status)

    async def models(self, request: Request) -> Response:
        """The names that the model is asked by."""
        self._require_key(request)
        self._service.require_open()
        return JSONResponse({"object": "list", "data": [self._described(name) for name in self._service.reader.names]})

    async def model(self, request: Request) -> Response:
        """One of them."""
        self._require_key(request)
        self._service.require_open()
        return JSONResponse(self._described(self._service.reader.known(request.path_params["name"])))

    async def completions(self, request: Request) -> Response:
        """Texts that go on from prompts, or answer them."""
        return await self._ask(request, lambda fields: self._service.reader.completion(fields))

    async def chat_completions(self, request: Request) -> Response:
        """What the assistant says next."""
        return await self._ask(request, lambda fields: self._service.reader.chat(fields))

    async def _ask(self, request: Request, read: Callable[[Fields], Job]) -> Response:
        self._require_key(request)
        self._service.require_open()
        deadline = asyncio.get_running_loop().time() + self._service.settings.timeout
        try:
            async with asyncio.timeout_at(deadline):
                body = await self._body(request)
                # In a thread, for a long text takes long to tokenize.
                job = await asyncio.to_thread(lambda: read(Fields.of(body)))
        except TimeoutError as error:
            raise ApiError(408, "the request did not come to its end in time", code="timeout") from error
        return _Reply(self._service, job, deadline)

    async def _body(self, request: Request) -> bytes:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise ApiError(415, f"content-type is {kind!r}: it must be application/json")
        most, size, parts = self._service.settings.max_body, 0, []
        async for part in request.stream():
            size += len(part)
            if size <= most:
                parts.append(part)
            elif size > _READ_ON * most:
                break
        if size > most:
            raise ApiError(413, f"the body has more than {most} bytes, which this server does not take")
        return b"".join(parts)

    def _require_key(self, request: Request) -> None:
        key = self._service.settings.api_key
        if key is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        # Compared in the time that it takes whatever is wrong with it.
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode("latin-1"), key.encode()):
            raise ApiError(401, "the key is missing or wrong: send it as a bearer token", code="invalid_api_key")

    def _described(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._created, "owned_by": "flanjax"}


class _Reply(Response):
    """The answer to a request that has been understood."""

    def __init__(self, service: Service, job: Job, deadline: float):
        self._service, self._job, self._deadline = service, job, deadline
        self._started = False
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def tell(message: Message) -> None:
            self._started = True
            await send(message)

        try:
            async with asyncio.timeout_at(self._deadline):
                await _while_connected(receive, self._answer(scope, receive, tell))
            return
        except TimeoutError:
            seconds = self._service.settings.timeout
            error = ApiError(504, f"the answer was not there after {seconds:g} seconds", code="timeout")
        except ApiError as refused:
            error = refused
        if not self._started:
            await _refusal(error)(scope, receive, send)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORD):
                await send(_body(_event(error.body()), more=False))

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._service.driver.admit(self._job.answers) as answers:
            writer = await self._service.writer(self._job, answers)
            answers.submit(self._job.rows())
            if self._job.stream:
                await self._stream(answers, writer, send)
            else:
                await JSONResponse(writer.whole(await self._whole(answers)))(scope, receive, send)

    async def _whole(self, answers: Answers) -> list[Piece]:
        if self._job.decoding is None:
            return [_NOTHING] * self._job.answers
        pieces: list[list[Piece]] = [[] for _ in answers.rows]
        async for came in answers:
            for row, piece in came:
                pieces[row].append(piece)
        return [joined(of_row) for of_row in pieces]

    async def _stream(self, answers: Answers, writer: Writer, send: Send) -> None:
        headers = [(name.encode(), value.encode()) for name, value in _EVENTS.items()]
        begin = {"type": "http.response.start", "status": 200, "headers": headers}
        if self._job.decoding is None:
            chunks = [*writer.first(), *(writer.chunk(number, _NOTHING) for number in range(self._job.answers))]
            await send(begin)
            await send(_body(b"".join(map(_event, chunks))))
        async for came in answers:
            first = [] if self._started else list(writer.first())
            if not self._started:  # until now a refusal could have its own status
                await send(begin)
            chunks = [*first, *(writer.chunk(row, piece) for row, piece in came)]
            await send(_body(b"".join(map(_event, chunks))))
        await send(_body(b"".join(map(_event, writer.last())) + b"data: [DONE]\n\n", more=False))


async def _while_connected(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Does the work, or gives it up when the client goes away."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(gone())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _event(value: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(value, ensure_ascii=False, allow_nan=False)}\n\n".encode()


def _body(content: bytes, *, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": content, "more_body": more}


def _refusal(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body(), error.status, error.headers)


async def _api_error(request: Request, error: ApiError) -> Response:
    return _refusal(error)


async def _http_error(request: Request, error: HTTPException) -> Response:
    path = f"{request.method} {request.url.path}"
    return JSONResponse(ApiError(error.status_code, f"{path}: {error.detail}").body(), error.status_code, error.headers)


async def _gone(request: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=400)  # nobody reads it


async def _bug(request: Request, error: Exception) -> Response:
    return _refusal(ApiError(500, f"the server failed at this request: {type(error).__name__}"))
