"""What is asked of an evaluation is checked before anything is read or computed."""

from typing import Any

import pytest

from flanjax.evaluation.evaluators import EvaluationConfig, EvaluationError


@pytest.mark.parametrize("name", ["mixtures", "metrics"])
@pytest.mark.parametrize("given", ["rougeL", ("rougeL",), ["rougeL"]], ids=["text", "tuple", "list"])
def test_a_lone_name_is_one_name(name: str, given: Any) -> None:
    assert getattr(EvaluationConfig(**{name: given}), name) == ("rougeL",)


@pytest.mark.parametrize("given", ["", None, ()])
def test_no_mixtures_are_none(given: Any) -> None:
    assert EvaluationConfig(mixtures=given).mixtures == ()


def test_an_unknown_metric_names_the_nearest_and_all() -> None:
    with pytest.raises(EvaluationError, match=r"'rogueL' \(did you mean 'rougeL'\?\); there are exact_match, rouge1"):
        EvaluationConfig(metrics=("exact_match", "rogueL"))


@pytest.mark.parametrize(
    ("name", "value", "least"),
    [
        ("loss_examples", 0, 1),
        ("loss_examples", -5, 1),
        ("questions", -1, 0),
        ("questions", None, 0),
        ("max_new_tokens", 0, 1),
        ("max_new_tokens", 1.5, 1),
    ],
)
def test_a_number_out_of_range_is_named(name: str, value: Any, least: int) -> None:
    with pytest.raises(EvaluationError, match=rf"{name} is {value}: .* at least {least}"):
        EvaluationConfig(**{name: value})


def test_the_ends_of_the_ranges_are_in_them() -> None:
    least = EvaluationConfig(loss_examples=None, questions=0, max_new_tokens=1)
    assert (least.loss_examples, least.questions, least.max_new_tokens) == (None, 0, 1)
    assert EvaluationConfig(loss_examples=1).loss_examples == 1
