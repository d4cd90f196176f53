"""The plots of an evaluation's report, each from its figures (`flanjax.evaluation.report.summarize`) to a PNG."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

_TASKS = 60


def plot_averages(summaries: Sequence[Mapping[str, Any]]) -> bytes:
    """The first metric of each benchmark with its interval, and baselines and probes as marks beside it."""
    marks = [_marks(summary) for summary in summaries]
    names = list(dict.fromkeys(name for each in marks for name in each))
    figure = _figure(9, max(0.8 + 0.55 * len(summaries), 0.6 + 0.25 * len(names)))
    axes = figure.subplots()
    for place, summary in enumerate(summaries):
        found = next(iter(summary["metrics"].values()))
        axes.barh(place, found["mean"], xerr=_reach([found]), color="0.85", ecolor="black", capsize=3)
        # One under the other, for those that are equal would hide each other.
        for step, (name, value) in enumerate(marks[place].items()):
            number = names.index(name)
            label = None if any(name in earlier for earlier in marks[:place]) else name
            height = place + 0.6 * ((step + 0.5) / len(marks[place]) - 0.5)
            axes.plot(value, height, "osd^vP*X"[number % 8], color=f"C{number}", label=label, linestyle="none")
    labels = [f"{summary['benchmark']}\n{next(iter(summary['metrics']))}" for summary in summaries]
    axes.set_yticks(range(len(summaries)), labels, fontsize="small")
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("percent; lines are 95 % intervals")
    if names:
        axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return _png(figure)


def plot_tasks(summary: Mapping[str, Any]) -> bytes:
    """The first metric of each task, the highest first; of many tasks the best and the worst."""
    metric = next(iter(summary["metrics"]))
    scores = {name: row[metric] for name, row in summary["by_task"].items() if metric in row}
    ordered = sorted(scores, key=lambda name: (-scores[name], name))
    if len(ordered) > _TASKS:
        ordered = ordered[: _TASKS // 2] + ordered[-_TASKS // 2 :]
    figure = _figure(9, 1 + 0.2 * len(ordered))
    axes = figure.subplots()
    rows = [{"mean": scores[name], **summary["by_task"][name]} for name in ordered]
    axes.barh(ordered, [scores[name] for name in ordered], xerr=_reach(rows), color="0.75", ecolor="0.3", capsize=2)
    axes.margins(y=0.01)
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize="x-small")
    axes.set_xlim(0, 100)
    axes.set_xlabel(f"{metric}, percent; lines are 95 % intervals")
    return _png(figure)


def plot_reliability(bins: Sequence[Mapping[str, Any]]) -> bytes:
    """Accuracy of each bin against its mean confidence, beside the line of perfect calibration."""
    figure = _figure(4.5, 4.5)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.7", linestyle="--", label="perfect")
    axes.plot([each["confidence"] for each in bins], [each["accuracy"] for each in bins], "o-", label="the model")
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy")
    axes.legend()
    return _png(figure)


def _marks(summary: Mapping[str, Any]) -> dict[str, float]:
    """The first metric of each baseline and probe, by name."""
    metric = next(iter(summary["metrics"]))
    found = {name: row[metric] for name, row in summary["baselines"].items()}
    return found | {name: row[metric]["mean"] for name, row in summary.get("probes", {}).items()}


def _reach(figures: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """How far intervals go below and above their means; of what has none, nowhere."""
    below = [max(each["mean"] - each.get("low", each["mean"]), 0) for each in figures]
    return [below, [max(each.get("high", each["mean"]) - each["mean"], 0) for each in figures]]


def _figure(width: float, height: float) -> Any:
    # Without pyplot: it keeps figures for a screen, and picks a backend for one.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Any) -> bytes:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=100)
    return picture.getvalue()
