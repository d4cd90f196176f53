"""Metrics that tasks give to seqio, so that a T5X evaluation of them scores as ours does."""

from collections.abc import Sequence

from flanjax.evaluation.metrics import score


def super_ni_scores(targets: Sequence[Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
    """Exact match and ROUGE, in percent, as the official Super-NaturalInstructions evaluation defines them."""
    return dict(score(predictions, targets).metrics)


def exact_match(targets: Sequence[Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
    """Percentage of predictions that equal an accepted answer, case and punctuation aside."""
    return {"exact_match": score(predictions, targets).metrics["exact_match"]}
