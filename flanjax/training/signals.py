"""Stopping politely: SIGTERM and Ctrl-C become a flag that the loop polls, also while XLA compiles.

A compilation cannot be cancelled. `interruptible` runs it on a thread and watches the flag, so that a process that is
told to go can save and leave within its grace period; the thread is left behind (see `exit_now`).

Of several processes none may leave a computation that the others are in: there a SIGTERM to any one of them, as a
preempted host gets it, is passed on, and all stop after the same step.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self, TypeVar

import jax
from jax.experimental import multihost_utils

Result = TypeVar("Result")
_POLL_SECONDS = 0.05


class StopSignals:
    """While it is entered, SIGTERM and SIGINT are remembered instead of ending the process.

    Calling it says whether one came. A second signal ends the process as usual. Outside the main thread, where Python
    takes no handlers, nothing is caught. Of several processes both count as SIGTERM, and are seen only between steps.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __call__(self) -> bool:
        """Whether a signal came."""
        return self.name is not None

    def after_step(self, step: int) -> None:
        """Takes note of a signal to another process; called by each of several processes after each step."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.name = signal.Signals.SIGTERM.name

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self
        if jax.process_count() == 1:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._remember)
        else:
            # jax's own handler notices SIGTERM and passes it on to the other processes.
            self._previous[signal.SIGINT] = signal.signal(signal.SIGINT, lambda *_: signal.raise_signal(signal.SIGTERM))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.name is not None:
            signal.signal(number, self._previous[signal.Signals(number)])
            signal.raise_signal(number)
        self.name = signal.Signals(number).name


class LeftBehind(Exception):
    """The work was not finished when the process was told to stop; its thread goes on."""


def interruptible(work: Callable[[], Result], should_stop: Callable[[], bool]) -> Result:
    """`work()`, on a thread of its own; exceptions come back to the caller.

    Raises:
      LeftBehind: `should_stop` said so before the work was done.
    """
    outcome: list[Result] = []
    failure: list[BaseException] = []

    def do() -> None:
        try:
            outcome.append(work())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=do, daemon=True, name="interruptible")
    thread.start()
    while thread.is_alive():
        thread.join(_POLL_SECONDS)
        if should_stop() and thread.is_alive():
            # Work that looks at the flag itself ends by itself in a moment.
            thread.join(1.0)
            if thread.is_alive():
                raise LeftBehind
    if failure:
        raise failure[0]
    return outcome[0]


def exit_now(status: int) -> None:
    """Ends the process without waiting for threads that cannot be stopped; streams are flushed first."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
