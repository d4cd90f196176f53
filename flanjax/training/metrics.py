"""What a run measured, three times: metrics.jsonl for programs, event files for TensorBoard, loss.png for people.

A line of metrics.jsonl is {"step", "split", "values", "seconds", ...}. Numbers are written so that they read back as
the same float; a loss that is not finite is written as Python's json writes it (`NaN`), never left out. On resume the
lines that will come again are cut away, so the file of a run that was killed equals that of one that was not, but
for the timings beside `values`.

`clu.metric_writers`, the usual way to event files, imports TensorFlow when it is imported, and training must not; the
files are written with tensorboard's own record writer, which does not.
"""

import contextlib
import dataclasses
import errno
import io
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from flanjax.errors import FlanjaxError
from flanjax.files import read_json_lines, write_whole
from flanjax.training.step import StepMetrics

LOG = "metrics.jsonl"
PLOT = "loss.png"
EVENTS = "tensorboard"
_SECONDS_BETWEEN_PLOTS = 60.0
# Not sums over steps: a log line shows the last one.
_LAST = ("learning_rate", "skipped_in_a_row")


class MetricsError(FlanjaxError):
    """The records of a run cannot be written."""


@dataclasses.dataclass
class Window:
    """Sums over the steps since the last log line; saved with a checkpoint, so that its line comes out the same."""

    steps: int = 0
    sums: dict[str, float] = dataclasses.field(default_factory=dict)

    def add(self, metrics: StepMetrics) -> None:
        """Takes in one step, on the host."""
        self.steps += 1
        for name, value in metrics._asdict().items():
            self.sums[name] = float(value) + (0.0 if name in _LAST else self.sums.get(name, 0.0))

    @property
    def tokens(self) -> float:
        """Input and target tokens, padding left out."""
        return self.sums["encoder_tokens"] + self.sums["decoder_tokens"]

    def values(self) -> dict[str, float]:
        """Means over target tokens, positions or steps, for the log; `loss` is without the z-loss.

        A decoder's have no `encoder_padding`.
        """
        s = self.sums
        encoder = {"encoder_padding": 1 - s["encoder_tokens"] / s["encoder_slots"]} if s["encoder_slots"] else {}
        tokens = max(s["tokens"], 1.0)
        return {
            "loss": (s["loss"] - s["z_loss"]) / tokens,
            "z_loss": s["z_loss"] / tokens,
            "token_accuracy": s["correct"] / tokens,
            "target_tokens": s["tokens"],
            **encoder,
            "decoder_padding": 1 - s["decoder_tokens"] / max(s["decoder_slots"], 1.0),
            "skipped": s["skipped"],
            "grad_norm": s["grad_norm"] / self.steps,
            "learning_rate": s["learning_rate"],
        }


class MetricsLog:
    """The three records of one run; a context manager. Nothing is written before the first line.

    Arguments:
      run_dir: where they go.
      logged: the step of the last line of `train` that counts; later ones are cut away, as they will come again.
      evaluated: the same for all other lines; -1 keeps none.
      write: False on hosts that must not write.
    """

    def __init__(self, run_dir: Path, *, logged: int = 0, evaluated: int = -1, write: bool = True):
        self._run_dir = run_dir
        self._void_after = max(logged, evaluated)
        self._write = write
        self._file: Any = None
        self._events: Any = None
        self._plotted = time.monotonic()
        if write:
            _cut(run_dir / LOG, logged, evaluated)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            self.close()
        except MetricsError:
            # The first error is the one to see; on a full disk closing fails again.
            if error is None:
                raise

    def add(self, step: int, split: str, values: Mapping[str, float], **timings: float) -> None:
        """One line; `timings` are what differs between two equal runs."""
        if not self._write:
            return
        numbers = {name: float(value) for name, value in values.items()}
        with self._explained():
            self._open()
            self._file.write(json.dumps({"step": step, "split": split, "values": numbers, **timings}) + "\n")
            self._file.flush()
            self._events.add(step, {f"{split}/{name}": value for name, value in {**numbers, **timings}.items()})

    def sync(self) -> None:
        """Has the lines written so far outlive a power cut: before a checkpoint that counts on them."""
        if self._file is not None:
            with self._explained():
                os.fsync(self._file.fileno())

    def plot(self, *, last: bool = False) -> None:
        """Draws loss.png from the whole log, at most once a minute but for the last time."""
        if not self._write or not (last or time.monotonic() - self._plotted > _SECONDS_BETWEEN_PLOTS):
            return
        if lines := read_json_lines(self._run_dir / LOG):
            draw_losses(lines, self._run_dir / PLOT)
        self._plotted = time.monotonic()

    def close(self) -> None:
        """Ends the files."""
        if self._file is None:
            return
        file, self._file = self._file, None
        with self._explained():
            self._events.close()
            file.close()

    def _open(self) -> None:
        if self._file is None:
            self._run_dir.mkdir(parents=True, exist_ok=True)
            self._events = _EventFile(self._run_dir / EVENTS, self._void_after)
            self._file = (self._run_dir / LOG).open("a")

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = "the disk is full" if error.errno == errno.ENOSPC else str(error)
            raise MetricsError(
                f"the log of {self._run_dir} could not be written: {reason}. Its checkpoints are whole: mend that and "
                "give the same command again, it goes on from the last one"
            ) from error


def _cut(path: Path, logged: int, evaluated: int) -> None:
    if not path.exists():
        return
    lines = read_json_lines(path)
    kept = [line for line in lines if line["step"] <= (logged if line["split"] == "train" else evaluated)]
    write_whole(path, "".join(json.dumps(line) + "\n" for line in kept))


class _EventFile:
    """Scalars as TensorBoard reads them."""

    def __init__(self, folder: Path, void_after: int):
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time())}.{os.getpid()}.{time.time_ns()}"
        self._stream = (folder / name).open("wb")
        self._writer = RecordWriter(self._stream)
        self._event = event_pb2.Event
        self._put(self._event(wall_time=time.time(), file_version="brain.Event:2"))
        # TensorBoard then forgets the points of earlier files from this step on.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._put(self._event(wall_time=time.time(), step=void_after + 1, session_log=start))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        event = self._event(wall_time=time.time(), step=step)
        for tag, value in values.items():
            event.summary.value.add(tag=tag, simple_value=value)
        self._put(event)

    def _put(self, event: Any) -> None:
        self._writer.write(event.SerializeToString())
        self._stream.flush()

    def close(self) -> None:
        self._stream.close()


def draw_losses(lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Training loss (as logged, and smoothed) and held-out losses over steps, as a PNG."""
    # Without pyplot: it keeps figures for a screen, and picks a backend for one.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5))
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="step", ylabel="loss (natural logarithm, mean over target tokens)")
    for split in dict.fromkeys(line["split"] for line in lines):
        points = [(line["step"], line["values"]["loss"]) for line in lines if _has_loss(line, split)]
        if not points:
            continue
        steps, losses = zip(*points, strict=True)
        if split == "train":
            axes.plot(steps, losses, color="0.8", linewidth=1)
            axes.plot(steps, _smoothed(losses), color="black", label="train, smoothed")
        else:
            axes.plot(steps, losses, marker="o", markersize=4, label=split)
    if axes.lines:
        axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    write_whole(path, picture.getvalue())


def _has_loss(line: Mapping[str, Any], split: str) -> bool:
    return line["split"] == split and math.isfinite(line["values"].get("loss", math.nan))


def _smoothed(values: Sequence[float], keep: float = 0.8) -> list[float]:
    """Exponential moving average, corrected for its start: constant values stay as they are."""
    average, weight, result = 0.0, 0.0, []
    for value in values:
        average = keep * average + (1 - keep) * value
        weight = keep * weight + (1 - keep)
        result.append(average / weight)
    return result
