"""Calibration: whether answers that a model gives 80 % to are right four times in five.

    confidences, right = confidences_of(result)
    expected_calibration_error(confidences, right)         # 0.07

The confidence in a chosen answer is the softmax of the choices' log-likelihoods, that in a written one the probability
of its text. The expected calibration error is the mean distance of a bin's accuracy from its mean confidence, weighted
by its instances. Sources: Guo et al. 2017 (arXiv 1706.04599), bins of equal width; HELM (arXiv 2211.09110), ten bins of
equally many instances, written answers by exact match, and their probability not normalised by length. One deviation:
the end of a text counts where the model ended it, for without it "1" is no less likely than "12".
"""

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from flanjax.evaluation.benchmark import BenchmarkError, Result, likeliest

Binning = Literal["mass", "width"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bin:
    """The instances of one bin: how many, their mean confidence and their accuracy, both in [0, 1]."""

    instances: int
    confidence: float
    accuracy: float


def confidences_of(
    result: Result,
) -> tuple[Float[np.ndarray, "instances"], Bool[np.ndarray, "instances"]] | None:
    """The confidence in each answer, and whether it is right.

    Of written answers that is so where `exact_match` is what the benchmark is known by, over the instances that have
    it. None for other benchmarks, and where a text's log-likelihood was not told or is no finite number.
    """
    if result.benchmark.mode != "choices":
        return _of_texts(result) if result.benchmark.metrics[0] == "exact_match" else None
    confidences, right = [], []
    for outcome in result.outcomes:
        logs = np.array(outcome.prediction.loglikelihoods)
        confidences.append(1 / np.exp(logs - logs.max()).sum())
        right.append(likeliest(outcome.prediction) in outcome.instance.correct)
    return np.array(confidences), np.array(right)


def _of_texts(result: Result) -> tuple[np.ndarray, np.ndarray] | None:
    outcomes = [outcome for outcome in result.outcomes if outcome.scores.get("exact_match")]
    logs = np.array([outcome.prediction.text_loglikelihood for outcome in outcomes], float)  # NaN of None
    if not outcomes or not np.isfinite(logs).all():
        return None
    right = [min(outcome.scores["exact_match"]) == 1 for outcome in outcomes]
    return np.exp(np.minimum(logs, 0)), np.array(right)  # of rounding 0 may be passed


def reliability(
    confidences: Float[np.ndarray, "instances"],
    right: Bool[np.ndarray, "instances"],
    *,
    bins: int = 10,
    binning: Binning = "mass",
) -> list[Bin]:
    """The bins that are not empty, by rising confidence; equal confidences are in one bin.

    Args:
      confidences: in [0, 1].
      right: whether the answer is right.
      bins: how many at most.
      binning: of equal "mass" (instances) or "width".

    Raises:
      BenchmarkError: nothing to bin, unequal lengths, or numbers outside their range.
    """
    if not len(confidences) or len(confidences) != len(right) or bins < 1:
        raise BenchmarkError(f"{len(confidences)} confidences, {len(right)} answers, {bins} bins: give one for each")
    if not ((confidences >= 0) & (confidences <= 1)).all():
        raise BenchmarkError("a confidence is not between 0 and 1: give probabilities")
    if binning == "width":
        edges = np.arange(1, bins) / bins
    else:
        edges = np.array([part[-1] for part in np.array_split(np.sort(confidences), bins) if len(part)][:-1])
    place = np.searchsorted(edges, confidences, side="left")
    chosen = [place == number for number in np.unique(place)]
    return [
        Bin(
            instances=int(mask.sum()),
            confidence=float(confidences[mask].mean()),
            accuracy=float(right[mask].mean()),
        )
        for mask in chosen
    ]


def expected_calibration_error(
    confidences: Float[np.ndarray, "instances"],
    right: Bool[np.ndarray, "instances"],
    *,
    bins: int = 10,
    binning: Binning = "mass",
) -> float:
    """The weighted mean distance of accuracy from confidence, in [0, 1]; arguments as `reliability` has them.

    Worked example: confidences [0.9, 0.9], one right: one bin, |0.5 - 0.9| = 0.4.
    """
    found = reliability(confidences, right, bins=bins, binning=binning)
    return sum(each.instances * abs(each.accuracy - each.confidence) for each in found) / len(confidences)
