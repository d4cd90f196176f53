"""A service on a socket, until a signal ends it.

    asyncio.run(serve(service, socket.create_server(("127.0.0.1", 8000)), grace=30, on_ready=lambda: print("ready")))

SIGTERM and SIGINT: new requests get 503 and `/health` says so, those under way have `grace` seconds to end, then they
are ended with an error. A second signal does not wait.
"""

import asyncio
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from flanjax.serving.app import make_app
from flanjax.serving.errors import ApiError
from flanjax.serving.service import Service

_TICK = 0.05  # seconds between looks whether all answers have ended
_FAREWELL = 2  # seconds for connections to take what is written
_LAST_STEP = 10.0  # seconds for the engine's thread to come to an end


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
    try:
        await asyncio.wait([running, ready], return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            ready.result()
            on_ready()
        await asyncio.wait([running])
    finally:
        server.should_exit = True
        await running
        service.driver.stop(_LAST_STEP)
