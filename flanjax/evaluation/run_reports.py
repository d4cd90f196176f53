"""What suites gave while a run was trained: the last evaluation and the best one, as folders of its run directory.

    evaluations/last/        report.json, .md, .html, the answers, evaluation.json: as `flanjax.evaluate` writes them
    evaluations/best/        the same of the step with the best value of `TrainConfig.best_metric`

Two of them, of one run or of several, are compared by `python -m flanjax.evaluate --compare`.
"""

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flanjax.evaluation.measuring import SETTINGS, write_evaluation
from flanjax.evaluation.report import Measured

FOLDER = "evaluations"
LAST, BEST = "last", "best"


def keep_evaluation(
    run_dir: Path,
    step: int,
    measured: Mapping[str, Measured],
    settings: Mapping[str, Any],
    *,
    metric: str,
    value: float,
    lowest: bool,
) -> None:
    """Puts an evaluation in the place of the last one, and of the best one if it is better.

    A best one of this step or a later one is of a run that was killed and went on from before: it is replaced, and
    comes again.

    Arguments:
      run_dir: the run directory.
      step: that was evaluated.
      measured: of each suite.
      settings: how it was measured, as `flanjax.evaluate` says it.
      metric: what evaluations are compared by.
      value: of it at this step.
      lowest: whether a low value is good.

    Raises:
      FileError: a file cannot be written; each folder is whole or not there.
    """
    settings = {"model": str(run_dir), "step": step, **settings, "best": {"metric": metric, "value": value}}
    _replace(run_dir / FOLDER / LAST, settings, measured)
    before = _best(run_dir)
    if before is None or before[0] != metric or before[1] >= step or _better(value, before[2], lowest):
        _replace(run_dir / FOLDER / BEST, settings, measured)


def _better(value: float, before: float, lowest: bool) -> bool:
    """Whether a value is no worse; of equal ones the later checkpoint is kept, and so is its evaluation."""
    if math.isnan(value) or math.isnan(before):
        return math.isnan(before)
    return value <= before if lowest else value >= before


def _best(run_dir: Path) -> tuple[str, int, float] | None:
    """Metric, step and value of the best evaluation that is there."""
    try:
        settings = json.loads((run_dir / FOLDER / BEST / SETTINGS).read_text())
        return settings["best"]["metric"], settings["step"], settings["best"]["value"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _replace(folder: Path, settings: Mapping[str, Any], measured: Mapping[str, Measured]) -> None:
    new = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(new, ignore_errors=True)
    write_evaluation(new, f"{settings['model']}, step {settings['step']}", measured, settings)
    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)
