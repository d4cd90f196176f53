"""What the doors show a person: start-up lines, live progress, tables, answers.

On a terminal progress is one live bar; in a log file it is a plain line every few seconds. Only doors use this;
library code reports through callables and typed reports.
"""

import sys
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console as RichConsole
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

PLAIN_LINE_SECONDS = 10.0


class Console:
    """Prints for one door; a context manager, so that a live bar is always closed before anything else is printed.

    Of several processes that are one run, one prints; the others are `quiet`.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        # A log file has no width of its own, and tables would be cut to 80.
        width = None if sys.stdout.isatty() else 160
        self._out = RichConsole(highlight=False, soft_wrap=True, quiet=quiet, width=width)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(),
            console=self._out,
            transient=True,
        )
        self._bars: dict[str, TaskID] = {}
        self._last_plain = 0.0

    def __enter__(self) -> Self:
        if self._out.is_terminal:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def line(self, text: str = "") -> None:
        """One line of plain text."""
        self._out.print(escape(text))

    def lines(self, texts: Iterable[str]) -> None:
        """Several lines."""
        for text in texts:
            self.line(text)

    def heading(self, text: str) -> None:
        """A line that starts a part of the output."""
        self._out.print(f"\n[bold]{escape(text)}[/bold]")

    def notice(self, text: str) -> None:
        """Something the person should know, though nothing failed."""
        self._out.print(f"[yellow]notice:[/yellow] {escape(text)}")

    def styled(self, parts: Iterable[tuple[str, str]]) -> None:
        """One paragraph of (text, style) parts; where nothing shows styles, a bar stands between parts."""
        text = Text()
        for number, (part, style) in enumerate(parts):
            if number and not self._out.is_terminal:
                text.append("|")
            text.append(part, style)
        self._out.print(text)

    def ask(self, question: str) -> str:
        """A person's answer."""
        return self._out.input(escape(question))

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """A small table; every column but the first is aligned to the right."""
        table = Table(box=None, pad_edge=False)
        for number, column in enumerate(columns):
            table.add_column(column, justify="left" if number == 0 else "right")
        for row in rows:
            table.add_row(*(escape(str(cell)) for cell in row))
        self._out.print(table)

    def progress(self, name: str, done: int, total: int | None, status: str = "") -> None:
        """Moves the bar `name`, made on first use, to `done` of `total`; `status` stands beside it."""
        if self._out.is_terminal:
            if name not in self._bars:
                self._bars[name] = self._progress.add_task(escape(name), total=total, status="")
            self._progress.update(self._bars[name], completed=done, total=total, status=escape(status))
        elif time.monotonic() - self._last_plain >= PLAIN_LINE_SECONDS:
            self._last_plain = time.monotonic()
            self.line(f"{name} {done}{'' if total is None else f'/{total}'}  {status}")

    def close_progress(self, name: str) -> None:
        """Takes the bar `name` away."""
        if name in self._bars:
            self._progress.remove_task(self._bars.pop(name))


def duration(seconds: float) -> str:
    """`75.2` -> `1:15`; hours when there are any."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def byte_size(count: float) -> str:
    """`307_844_608` -> `293.6 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.1f} {unit}" if unit != "B" else f"{int(count)} B"
        count /= 1024
    raise AssertionError("unreachable: the loop ends at GiB")
