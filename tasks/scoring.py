"""Postprocessor and metrics that tasks give to seqio, so that a T5X evaluation of them scores as ours does."""

from collections.abc import Mapping, Sequence
from typing import Any

from flanjax.evaluation.metrics import score


def references(output: str, *, example: Mapping[str, Any] | None = None, is_target: bool = False) -> Any:
    """A seqio postprocessor: all accepted answers of a target, the text of a prediction."""
    if not is_target or example is None:
        return output
    accepted = example["references"]
    return [text.decode() for text in (accepted.tolist() if accepted.ndim else [accepted.item()])]


def super_ni_scores(targets: Sequence[Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
    """Exact match and ROUGE, in percent, as the official Super-NaturalInstructions evaluation defines them."""
    return dict(score(predictions, targets).metrics)


def exact_match(targets: Sequence[Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
    """Percentage of predictions that equal an accepted answer, case and punctuation aside."""
    return {"exact_match": score(predictions, targets).metrics["exact_match"]}
