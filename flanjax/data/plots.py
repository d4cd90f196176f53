"""Pictures of a mixture: the lengths of its examples, as a PNG."""

import io
from pathlib import Path

from flanjax.data.cache import FEATURES
from flanjax.data.statistics import Feature, MixtureStatistics, histogram
from flanjax.files import write_whole

_DRAWN_TASKS = 8


def draw_lengths(statistics: MixtureStatistics, path: str | Path) -> None:
    """Writes the histograms of inputs and targets: bars for the mixture, lines for the tasks of the largest shares.

    Bins are powers of two: the bar at 64 is the share of examples with 33 to 64 tokens.

    Raises:
        FileError: the file cannot be written.
    """
    # Without pyplot: it keeps figures for a screen, and picks a backend for one.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{statistics.name}, {statistics.split}: {statistics.examples:,} examples")
    largest = sorted(statistics.tasks, key=lambda task: -task.example_share)[:_DRAWN_TASKS]
    bins: dict[Feature, dict[int, float]] = {
        "inputs": statistics.histogram("inputs"),
        "targets": statistics.histogram("targets"),
    }
    panels = figure.subplots(1, len(FEATURES), sharey=True)
    for axes, (feature, shares) in zip(panels, bins.items(), strict=True):
        places = {bound: place for place, bound in enumerate(shares)}
        axes.bar(list(places.values()), list(shares.values()), color="0.85", label="the mixture")
        for task in largest:
            # A task of rate 0 may have bins that the mixture has not.
            line = {places[bound]: share for bound, share in histogram(task, feature).items() if bound in places}
            axes.plot(list(line), list(line.values()), marker="o", markersize=3, linewidth=1, label=task.name)
        axes.set_xticks(list(places.values()), [str(bound) for bound in places], rotation=45)
        axes.set_xlabel(f"tokens of {feature}, up to (mean {statistics.mean(feature):,.1f})")
    panels[0].set_ylabel("share of examples")
    panels[-1].legend(fontsize="small")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    write_whole(Path(path), picture.getvalue())
