"""Calibration: whether answers that a model gives 80 % to are right four times in five.

    confidences, right = choice_confidences(result)
    expected_calibration_error(confidences, right)         # 0.07

The confidence in an answer is the softmax of the choices' log-likelihoods. The expected calibration error is the mean
distance of a bin's accuracy from its mean confidence, weighted by its instances. Sources: Guo et al. 2017 (arXiv
1706.04599), bins of equal width; HELM (arXiv 2211.09110), ten bins of equally many instances.
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


def choice_confidences(result: Result) -> tuple[Float[np.ndarray, "instances"], Bool[np.ndarray, "instances"]]:
    """The confidence in each answer, and whether it is right, of a benchmark whose choices are scored.

    Raises:
      BenchmarkError: its answers are generated.
    """
    if result.benchmark.mode != "choices":
        raise BenchmarkError(f"{result.benchmark.name} has no confidences: its answers are generated")
    confidences, right = [], []
    for outcome in result.outcomes:
        logs = np.array(outcome.prediction.loglikelihoods)
        confidences.append(1 / np.exp(logs - logs.max()).sum())
        right.append(likeliest(outcome.prediction) in outcome.instance.correct)
    return np.array(confidences), np.array(right)


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
