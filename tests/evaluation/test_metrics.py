"""Exact match and ROUGE, as the official Super-NaturalInstructions evaluation counts them."""

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flanjax.evaluation.metrics import (
    METRICS,
    MetricError,
    exact_match,
    normalize_answer,
    rouge_1,
    rouge_l,
    score,
    score_by_task,
)

texts = st.text(max_size=40)


def test_normalisation_keeps_articles():
    assert normalize_answer("  The  Answer, is: B. ") == "the answer is b"
    assert normalize_answer("don't\tstop\n") == "dont stop"
    assert normalize_answer("¿Qué?") == "¿qué"  # ASCII punctuation alone is removed


@settings(max_examples=100, deadline=None)
@given(text=texts)
def test_normalisation_is_idempotent_and_squeezed(text):
    once = normalize_answer(text)
    assert normalize_answer(once) == once
    assert not set(once) & set(string.punctuation)
    assert once == " ".join(once.split())


@settings(max_examples=100, deadline=None)
@given(text=texts, others=st.lists(texts, max_size=3))
def test_a_prediction_matches_itself_among_any_references(text, others):
    decorated = f"  {text}!! "
    assert exact_match(decorated, [*others, text]) == 1.0


words = st.lists(st.sampled_from(["cat", "cats", "sat", "mat", "runs", "a"]), min_size=1, max_size=8).map(" ".join)


@settings(max_examples=100, deadline=None)
@given(prediction=words, references=st.lists(words, min_size=1, max_size=3))
def test_rouge_lies_between_zero_and_one_and_takes_the_best_reference(prediction, references):
    for metric in (rouge_1, rouge_l):
        best = metric(prediction, references)
        assert 0 <= best <= 1
        assert best == max(metric(prediction, [reference]) for reference in references)
        assert metric(prediction, [*references, prediction]) == pytest.approx(1.0)
    assert rouge_l(prediction, references) <= rouge_1(prediction, references) + 1e-9


def test_rouge_values():
    # Longest common subsequence "the cat sat" of 3 and 6 words: precision 1, recall 1/2.
    assert rouge_l("the cat sat", ["the cat sat on the mat"]) == pytest.approx(2 / 3)
    assert rouge_1("sat cat the", ["the cat sat"]) == 1.0
    assert rouge_l("sat cat the", ["the cat sat"]) == pytest.approx(1 / 3)
    assert rouge_l("running", ["runs"]) == 1.0  # stemmed
    assert rouge_l("", ["word"]) == 0.0


def test_means_run_over_instances_and_are_percentages():
    overall, by_task = score_by_task(["a", "b", "a"], ["yes", "No.", "maybe"], [["yes"], ["no", "never"], ["yes"]])
    assert overall.instances == 3
    assert overall.metrics["exact_match"] == 66.6667
    assert list(by_task) == ["a", "b"]
    assert by_task["a"].metrics["exact_match"] == 50.0
    assert by_task["b"].metrics == dict.fromkeys(METRICS, 100.0)
    assert (by_task["a"].instances, by_task["b"].instances) == (2, 1)


@settings(max_examples=30, deadline=None)
@given(rows=st.lists(st.tuples(st.sampled_from("ab"), words, words), min_size=1, max_size=8))
def test_tasks_weighted_by_instances_give_the_overall_mean(rows):
    tasks, predictions, answers = zip(*rows, strict=True)
    references = [[answer] for answer in answers]
    overall, by_task = score_by_task(tasks, predictions, references)
    assert overall == score(predictions, references)
    for name in METRICS:
        weighted = sum(scores.instances * scores.metrics[name] for scores in by_task.values()) / overall.instances
        assert weighted == pytest.approx(overall.metrics[name], abs=1e-3)


def test_what_does_not_belong_together_is_refused():
    with pytest.raises(MetricError, match="2 predictions for 1 lists"):
        score(["a", "b"], [["a"]])
    with pytest.raises(MetricError, match="1 task names for 2 predictions"):
        score_by_task(["t"], ["a", "b"], [["a"], ["b"]])
    with pytest.raises(MetricError, match="no predictions"):
        score([], [])
    with pytest.raises(MetricError, match="'a': give a list of at least one"):
        score(["a"], [[]])
    with pytest.raises(MetricError, match="give a list"):
        exact_match("a", "a")
