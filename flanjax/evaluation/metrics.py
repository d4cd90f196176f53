"""Exact match and ROUGE of predicted texts, as the official Super-NaturalInstructions evaluation defines them.

Source: Wang et al. 2022 (arXiv 2204.07705) and its Tk-Instruct `compute_metrics`: each prediction takes the best of
its references, a mean runs over instances (never over tasks), and figures are percentages rounded to four places.
"""

import collections
import dataclasses
import functools
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flanjax.errors import FlanjaxError

METRICS = ("exact_match", "rouge1", "rougeL")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


class MetricError(FlanjaxError):
    """Predictions and references that do not belong together."""


def normalize_answer(text: str) -> str:
    """Lower case, ASCII punctuation removed, white space squeezed; articles stay.

    Worked example: `normalize_answer("  The  Answer, is: B. ") == "the answer is b"`.
    """
    return " ".join(text.lower().translate(_WITHOUT_PUNCTUATION).split())


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1.0 when the normalised prediction equals any normalised reference, else 0.0."""
    return _best(prediction, references, lambda p, r: float(normalize_answer(p) == normalize_answer(r)))


def rouge_1(prediction: str, references: Sequence[str]) -> float:
    """F1 of stemmed unigram overlap, in [0, 1]; the best over `references`."""
    return _best(prediction, references, lambda p, r: _scorer().score(r, p)["rouge1"].fmeasure)


def rouge_l(prediction: str, references: Sequence[str]) -> float:
    """F1 of the longest common subsequence of stemmed words, in [0, 1]; the best over `references`."""
    return _best(prediction, references, lambda p, r: _scorer().score(r, p)["rougeL"].fmeasure)


def _best(prediction: str, references: Sequence[str], score: Callable[[str, str], float]) -> float:
    if isinstance(references, str) or not references:
        raise MetricError(f"references of the prediction {prediction!r}: give a list of at least one text")
    return max(score(prediction, reference) for reference in references)


@functools.cache
def _scorer() -> Any:
    from rouge_score import rouge_scorer  # here: it brings nltk, which no other metric needs

    return rouge_scorer.RougeScorer(["rouge1", "rougeL"], use_stemmer=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """Percentages over `instances`, by metric name (`METRICS`)."""

    instances: int
    metrics: Mapping[str, float]


def score(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
    """All metrics, averaged over instances.

    Raises:
      MetricError: nothing to score, unequal numbers, or an instance without references.
    """
    return _mean(score_each(predictions, references))


def score_by_task(
    tasks: Sequence[str], predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[Scores, dict[str, Scores]]:
    """The metrics over all instances, and per task (or category) in order of first appearance.

    Worked example: two instances of task "a", one right, and one of "b", right: over all 66.6667 exact match (the
    mean over instances), for "a" 50.0, for "b" 100.0.

    Raises:
      MetricError: nothing to score, unequal numbers, or an instance without references.
    """
    if len(tasks) != len(predictions):
        raise MetricError(f"{len(tasks)} task names for {len(predictions)} predictions: give one for each")
    rows = score_each(predictions, references)
    by_task: dict[str, list[dict[str, float]]] = collections.defaultdict(list)
    for task, row in zip(tasks, rows, strict=True):
        by_task[task].append(row)
    return _mean(rows), {task: _mean(task_rows) for task, task_rows in by_task.items()}


def score_each(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[dict[str, float]]:
    """All metrics of each instance, in [0, 1].

    Raises:
      MetricError: unequal numbers, or an instance without references.
    """
    if len(predictions) != len(references):
        raise MetricError(f"{len(predictions)} predictions for {len(references)} lists of references")
    functions = dict(zip(METRICS, (exact_match, rouge_1, rouge_l), strict=True))
    return [
        {name: function(prediction, refs) for name, function in functions.items()}
        for prediction, refs in zip(predictions, references, strict=True)
    ]


def _mean(rows: Sequence[Mapping[str, float]]) -> Scores:
    if not rows:
        raise MetricError("no predictions to score")
    means = {name: round(100 * sum(row[name] for row in rows) / len(rows), 4) for name in METRICS}
    return Scores(instances=len(rows), metrics=means)
