"""The plots of an evaluation's report, each from its figures (`flanjax.evaluation.report.summarize`) to a PNG."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

_TASKS = 60


def plot_averages(summaries: Sequence[Mapping[str, Any]]) -> bytes:
    """The first metric of each benchmark with its interval, and the baselines as marks beside it."""
    figure = _figure(9, 0.8 + 0.55 * len(summaries))
    axes = figure.subplots()
    names = sorted({name for summary in summaries for name in summary["baselines"]})
    for place, summary in enumerate(summaries):
        metric, found = next(iter(summary["metrics"].items()))
        reach = [[max(found["mean"] - found["low"], 0)], [max(found["high"] - found["mean"], 0)]]
        axes.barh(place, found["mean"], xerr=reach, color="0.8", ecolor="black", capsize=3)
        for number, name in enumerate(names):
            if name in summary["baselines"]:
                label = None if any(name in earlier["baselines"] for earlier in summaries[:place]) else name
                value = summary["baselines"][name][metric]
                axes.plot(value, place, "osd^vP*X"[number % 8], color=f"C{number}", label=label)
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
    axes.barh(ordered, [scores[name] for name in ordered], color="0.6")
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize="x-small")
    axes.set_xlim(0, 100)
    axes.set_xlabel(f"{metric}, percent")
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
