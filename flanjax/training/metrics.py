"""What a run measured, three times: metrics.jsonl for programs, event files for TensorBoard, loss.png for people.

A line of metrics.jsonl is {"step", "split", "values", "seconds", ...}; numbers are written so that they read back as
the same float. On resume the lines past the restored step are cut away, so the file of a run that was killed equals
that of one that was not, but for the timings beside `values`.

`clu.metric_writers`, the usual way to event files, imports TensorFlow when it is imported, and training must not; the
files are written with tensorboard's own record writer.
"""

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

LOG = "metrics.jsonl"
PLOT = "loss.png"
EVENTS = "tensorboard"


class MetricsLog:
    """The three records of one run; only the first host writes.

    Arguments:
      run_dir: where they go.
      step: the step that was restored; what is logged past it is cut away.
      write: False on hosts that must not write.
    """

    def __init__(self, run_dir: Path, *, step: int, write: bool = True):
        self._path = run_dir / LOG
        self._plot = run_dir / PLOT
        self._write = write
        if not write:
            return
        run_dir.mkdir(parents=True, exist_ok=True)
        _cut(self._path, step)
        self._file = self._path.open("a")
        self._events = _EventFile(run_dir / EVENTS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def add(self, step: int, split: str, values: Mapping[str, float], **timings: float) -> None:
        """One line; `timings` are what differs between two equal runs."""
        if not self._write:
            return
        line: dict[str, Any] = {"step": step, "split": split, "values": dict(values), **timings}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        self._events.add(step, {f"{split}/{name}": value for name, value in {**values, **timings}.items()})

    def plot(self) -> None:
        """Draws loss.png from the whole log."""
        if self._write:
            draw_losses(read_log(self._path), self._plot)

    def close(self) -> None:
        """Ends the files."""
        if self._write:
            self._file.close()
            self._events.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; one that a kill cut short is left out."""
    lines = []
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines


def _cut(path: Path, step: int) -> None:
    if path.exists():
        kept = [line for line in read_log(path) if line["step"] <= step and step > 0]
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(partial, path)


class _EventFile:
    """Scalars as TensorBoard reads them."""

    def __init__(self, folder: Path):
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns()}.{os.getpid()}"
        self._stream = (folder / name).open("wb")
        self._writer = RecordWriter(self._stream)
        self._event = event_pb2.Event
        self._put(self._event(wall_time=time.time(), file_version="brain.Event:2"))

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


def draw_losses(lines: list[dict[str, Any]], path: Path) -> None:
    """Training loss (as logged, and smoothed) and held-out losses over steps, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
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
    partial = path.with_suffix(".partial.png")
    figure.savefig(partial, dpi=120)
    os.replace(partial, path)


def _has_loss(line: Mapping[str, Any], split: str) -> bool:
    return line["split"] == split and math.isfinite(line["values"].get("loss", math.nan))


def _smoothed(values: tuple[float, ...], keep: float = 0.8) -> list[float]:
    """Exponential moving average, corrected for its start: constant values stay as they are."""
    average, weight, result = 0.0, 0.0, []
    for value in values:
        average = keep * average + (1 - keep) * value
        weight = keep * weight + (1 - keep)
        result.append(average / weight)
    return result
