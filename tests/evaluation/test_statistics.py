"""Bootstrap intervals, paired tests and calibration: properties, and agreement with scipy."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flanjax.evaluation.benchmark import Benchmark, BenchmarkError, Instance, Outcome, Prediction, Result
from flanjax.evaluation.calibration import confidences_of, expected_calibration_error, reliability
from flanjax.evaluation.significance import compare, interval


def result_of(values, tasks=None, average="instances", mode="generate"):
    """A result with the metric "m": one tuple of values an instance."""
    benchmark = Benchmark(
        name="own", load=lambda: iter(()), read=None, score=None, metrics=("m",), average=average, mode=mode
    )
    tasks = tasks or ["t"] * len(values)
    outcomes = tuple(
        Outcome(
            instance=Instance(id=str(number), task=task, category=task, prompt="p"),
            prediction=Prediction(id=str(number)),
            answer="",
            scores={"m": value},
        )
        for number, (task, value) in enumerate(zip(tasks, values, strict=True))
    )
    return Result(benchmark=benchmark, outcomes=outcomes)


ones = st.lists(st.sampled_from([(0.0,), (1.0,), (0.5,), (1.0, 0.0), ()]), min_size=1, max_size=12).filter(any)
averages = st.sampled_from(["instances", "tasks", "categories"])


@settings(max_examples=50)
@given(values=ones, average=averages, seed=st.integers(0, 5))
def test_an_interval_holds_only_possible_averages_and_depends_on_its_seed_alone(values, average, seed):
    result = result_of(values, ["a" if n % 2 else "b" for n in range(len(values))], average)
    found = interval(result, "m", samples=50, seed=seed)
    assert found == interval(result, "m", samples=50, seed=seed)
    assert found.mean == pytest.approx(result.average("m"))
    each = [value for one in values for value in one]
    assert 100 * min(each) - 1e-9 <= found.low <= found.high <= 100 * max(each) + 1e-9


@given(value=st.floats(0, 1), count=st.integers(1, 9))
def test_equal_scores_have_no_spread(value, count):
    found = interval(result_of([(value,)] * count), "m", samples=20)
    assert (found.low, found.high) == (pytest.approx(found.mean), pytest.approx(found.mean))


def test_instances_that_are_alone_in_their_tasks_are_as_sure_as_those_of_one_task():
    values = [(float(number % 3 == 0),) for number in range(30)]
    names = [str(number) for number in range(30)]
    alone, together = (
        interval(result_of(values, names, average), "m", samples=2000) for average in ("tasks", "instances")
    )
    assert alone.mean == together.mean
    assert (alone.low, alone.high) == (pytest.approx(together.low, abs=3.4), pytest.approx(together.high, abs=3.4))
    worse = result_of([(0.0,)] * 30, names, "tasks")
    gain = compare(worse, result_of(values, names, "tasks"), "m")
    assert 10 < gain.low < gain.difference < gain.high


def test_an_interval_is_scipys():
    from scipy import stats

    values = np.random.default_rng(3).integers(0, 2, 200).astype(float)
    found = interval(result_of([(value,) for value in values]), "m", samples=4000)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=7).confidence_interval
    assert found.low == pytest.approx(100 * theirs.low, abs=0.8)
    assert found.high == pytest.approx(100 * theirs.high, abs=0.8)


def test_a_wider_level_gives_a_wider_interval_and_more_instances_a_narrower_one():
    values = [(float(n % 3 == 0),) for n in range(60)]
    narrow, wide = (interval(result_of(values), "m", level=level) for level in (0.5, 0.99))
    assert wide.low < narrow.low <= narrow.mean <= narrow.high < wide.high
    many = interval(result_of(values * 10), "m", level=0.99)
    assert many.high - many.low < (wide.high - wide.low) / 2


@settings(max_examples=40)
@given(pairs=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=10), average=averages)
def test_a_comparison_turned_round_is_its_negative(pairs, average):
    one, two = (result_of([(pair[side],) for pair in pairs], average=average) for side in (0, 1))
    forth, back = compare(one, two, "m", samples=40), compare(two, one, "m", samples=40)
    assert forth.difference == pytest.approx(two.average("m") - one.average("m"), abs=1e-6)
    assert (forth.difference, forth.low) == (pytest.approx(-back.difference), pytest.approx(-back.high, abs=1e-6))
    assert forth.p_value == pytest.approx(back.p_value)
    assert 0 < forth.p_value <= 1
    assert (forth.better, forth.worse, forth.equal) == (back.worse, back.better, back.equal)
    assert compare(one, one, "m", samples=40).p_value == 1.0


def test_the_p_value_is_that_of_scipys_paired_permutation_test():
    from scipy import stats

    generator = np.random.default_rng(1)
    first = generator.integers(0, 2, 80).astype(float)
    second = np.where(generator.random(80) < 0.2, 1.0, first)
    found = compare(result_of([(x,) for x in first]), result_of([(x,) for x in second]), "m", samples=4000)

    def difference(a, b, axis):
        return np.mean(b - a, axis=axis)

    theirs = stats.permutation_test(
        (first, second), difference, permutation_type="samples", vectorized=True, n_resamples=4000, rng=2
    )
    assert found.p_value == pytest.approx(theirs.pvalue, abs=0.01)
    assert found.difference == pytest.approx(100 * theirs.statistic)
    assert found.low > 0


def test_what_cannot_be_compared_is_refused():
    one = result_of([(1.0,), (0.0,)])
    with pytest.raises(BenchmarkError, match="not of the same instances"):
        compare(one, result_of([(1.0,)]), "m")
    with pytest.raises(BenchmarkError, match="not as many values"):
        compare(one, result_of([(1.0,), (0.0, 1.0)]), "m")
    with pytest.raises(BenchmarkError, match="no instance has the metric 'other'"):
        interval(one, "other")
    with pytest.raises(BenchmarkError, match=r"level=1\.5"):
        interval(one, "m", level=1.5)


probabilities = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40)
binnings = st.sampled_from(["mass", "width"])


@given(rows=probabilities, binning=binnings, bins=st.integers(1, 12), order=st.randoms())
def test_the_calibration_error_is_a_mean_distance_that_no_order_changes(rows, binning, bins, order):
    shuffled = list(rows)
    order.shuffle(shuffled)
    errors = [
        expected_calibration_error(np.array(c), np.array(r), bins=bins, binning=binning)
        for c, r in (zip(*rows, strict=True), zip(*shuffled, strict=True))
    ]
    assert 0 <= errors[0] <= 1
    assert errors[0] == pytest.approx(errors[1])
    confidences, right = (np.array(column, float) for column in zip(*rows, strict=True))
    found = reliability(confidences, right, bins=bins, binning=binning)
    assert sum(each.instances for each in found) == len(rows)
    assert len(found) <= bins
    assert errors[0] >= abs(confidences.mean() - right.mean()) - 1e-9  # what one bin has


def test_calibration_values():
    right = np.array([True, False, True, True])
    assert expected_calibration_error(np.full(4, 0.75), right) == pytest.approx(0)
    assert expected_calibration_error(np.ones(4), right) == pytest.approx(0.25)
    assert expected_calibration_error(np.array([0.9, 0.9]), np.array([True, False])) == pytest.approx(0.4)
    confidences = np.array([0.05, 0.15, 0.95, 0.95])
    by_width = reliability(confidences, right, binning="width")
    assert [(each.instances, each.accuracy) for each in by_width] == [(1, 1.0), (1, 0.0), (2, 1.0)]
    assert [each.instances for each in reliability(confidences, right, bins=2)] == [2, 2]
    with pytest.raises(BenchmarkError, match="not between 0 and 1"):
        reliability(np.array([1.5]), np.array([True]))
    with pytest.raises(BenchmarkError, match="0 confidences"):
        reliability(np.array([]), np.array([]))


def test_confidences_are_the_softmax_of_the_choices():
    instance = Instance(id="a", task="t", prompt="p", choices=("x", "y"), correct=(1,))
    base = result_of([(1.0,)], mode="choices")
    prediction = Prediction(id="a", loglikelihoods=(float(np.log(0.1)), float(np.log(0.3))))
    outcome = Outcome(instance=instance, prediction=prediction, answer="y", scores={"m": (1.0,)})
    confidences, right = confidences_of(Result(benchmark=base.benchmark, outcomes=(outcome,)))
    assert (confidences[0], right[0]) == (pytest.approx(0.75), True)


def test_confidences_in_texts_are_their_probabilities_and_right_is_an_exact_match():
    """By hand: probabilities in two bins, of which 1 of 2 and 2 of 3 are right."""
    rows = [(0.1, 0.0), (0.2, 1.0), (0.6, 1.0), (0.8, 0.0), (1.0, 1.0), (0.9, None)]
    base = result_of([(1.0,)]).benchmark
    benchmark = dataclasses.replace(base, metrics=("exact_match", "flexible"))
    outcomes = tuple(
        Outcome(
            instance=Instance(id=str(n), task="t", prompt="p"),
            prediction=Prediction(id=str(n), text="x", text_loglikelihood=math.log(probability)),
            answer="x",
            # A translation has none, and is left out.
            scores={"bleu": (0.5,)} if right is None else {"exact_match": (right,), "flexible": (1.0,)},
        )
        for n, (probability, right) in enumerate(rows)
    )
    result = Result(benchmark=benchmark, outcomes=outcomes)
    confidences, right = confidences_of(result)
    assert confidences.tolist() == pytest.approx([0.1, 0.2, 0.6, 0.8, 1.0])
    assert right.tolist() == [False, True, True, False, True]
    error = (2 * abs(0.5 - 0.15) + 3 * abs(2 / 3 - 0.8)) / 5
    assert expected_calibration_error(confidences, right, bins=2, binning="width") == pytest.approx(error)
    assert expected_calibration_error(confidences, right) == pytest.approx((0.1 + 0.8 + 0.4 + 0.8 + 0) / 5)
    assert expected_calibration_error(confidences, right, bins=1) == pytest.approx(abs(3 / 5 - 2.7 / 5))

    assert confidences_of(dataclasses.replace(result, benchmark=base)) is None, "judged by another metric"
    for value in (None, math.nan, -math.inf):
        untold = dataclasses.replace(outcomes[0], prediction=Prediction(id="0", text_loglikelihood=value))
        assert confidences_of(dataclasses.replace(result, outcomes=(untold, *outcomes[1:]))) is None
