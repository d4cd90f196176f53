"""A service on a socket, until a signal ends it.

    asyncio.run(serve(service, socket.create_server(("127.0.0.1", 8000)), grace=30, on_ready=lambda: print("ready")))

SIGTERM and SIGINT: new requests get 503 and `/health` says so, those under way have `grace` seconds to end, then they
are ended with an error. A second signal does not wait.

A connection that stands still is ended: one whose client takes nothing of what is written to it when it is to be
closed, and one on which the head of a request does not come to its end. uvicorn waits for either without an end.
"""

import asyncio
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn

from flanjax.serving.app import make_app
from flanjax.serving.errors import ApiError
from flanjax.serving.service import Service

_TICK = 0.05  # seconds between looks whether all answers have ended
_FAREWELL = 2  # seconds for connections to take what is written
_LAST_STEP = 10.0  # seconds for the engine's thread to come to an end
_STILL = 30.0  # seconds that a connection may stand still, at least; at most twice as many


class _Server(uvicorn.Server):
    def __init__(self, service: Service, grace: float):
        super().__init__(
            uvicorn.Config(
                make_app(service),
                lifespan="off",
                ws="none",
                log_config=None,  # it would close the handlers of everybody else
                log_level="error",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=_FAREWELL,
            )
        )
        self._service, self._grace = service, grace
        self._loop = asyncio.get_running_loop()

    async def end_still_connections(self) -> None:
        """Looks after connections, as the module has it, until it is cancelled."""
        before: dict[Any, Any] = {}
        while True:
            await asyncio.sleep(_STILL)
            now: dict[Any, Any] = {}
            for connection in list[Any](self.server_state.connections):
                cycle, transport = connection.cycle, connection.transport  # the last request, or None, and its socket
                if cycle is None or cycle.response_complete or transport.is_closing():
                    now[connection] = cycle, transport.get_write_buffer_size()
                    if now[connection] == before.get(connection):
                        transport.abort()
            before = now

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._service.draining:
            self.should_exit = self.force_exit = True
        else:
            self._service.draining = True
            self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        self._draining = self._loop.create_task(self._let_end())

    async def _let_end(self) -> None:
        try:
            async with asyncio.timeout(self._grace):
                while self._service.driver.rows:
                    await asyncio.sleep(_TICK)
        except TimeoutError:
            self._service.driver.refuse_all(ApiError(503, "the server is shutting down", code="shutting_down"))
        self.should_exit = True


async def serve(service: Service, listening: socket.socket, *, grace: float, on_ready: Callable[[], None]) -> None:
    """Opens the model and serves it until a signal.

    Arguments:
      service: not started yet.
      listening: a listening socket; it is closed.
      grace: seconds that requests under way get at the end.
      on_ready: called when the first request can be answered.

    Raises:
      FlanjaxError: the model cannot be opened.
    """
    service.start()
    server, ready = _Server(service, grace), service.driver.ready
    running = asyncio.create_task(server.serve(sockets=[listening]))
    watching = asyncio.create_task(server.end_still_connections())
    try:
        await asyncio.wait([running, ready], return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            ready.result()
            on_ready()
        await asyncio.wait([running])
    finally:
        server.should_exit = True
        await running
        watching.cancel()
        service.driver.stop(_LAST_STEP)
