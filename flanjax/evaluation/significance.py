"""How sure a figure is: bootstrap intervals of a result, and paired tests of two results on the same instances.

    interval(result, "exact_match")              # Interval(mean=54.1, low=52.9, high=55.4), 95 %
    compare(before, after, "exact_match")        # Comparison(difference=2.3, low=0.8, high=3.7, p_value=0.004, ...)

Instances are drawn with replacement, each with all values that it adds to a metric; where the published figure is a
mean over tasks or categories, they are drawn within each, and those that are alone in theirs from all such, for one
instance says nothing of how its task varies. The p-value is that of a paired permutation test: which of
two runs an instance's score came from is exchanged at random. Everything is a function of the seed. Sources: Efron 1979
for the percentile bootstrap; Koehn 2004 and Dror et al. 2018 (ACL) for paired tests in language processing.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

from flanjax.evaluation.benchmark import BenchmarkError, Outcome, Result

SAMPLES = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean and the ends of its confidence interval, in percent."""

    mean: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """What the second result has more than the first, in percentage points.

    Attributes:
      difference: of the averages.
      low: end of the bootstrap interval of the difference.
      high: its other end.
      p_value: share of random exchanges with a difference at least as far from zero; never 0.
      better: instances that score higher in the second.
      worse: instances that score lower.
      equal: all others.
    """

    difference: float
    low: float
    high: float
    p_value: float
    better: int
    worse: int
    equal: int


def interval(result: Result, metric: str, *, level: float = 0.95, samples: int = SAMPLES, seed: int = 0) -> Interval:
    """The percentile bootstrap interval of a result's average.

    Raises:
      BenchmarkError: no instance has the metric, or a level or number of samples that means nothing.
    """
    _check(level, samples)
    groups = _grouped(result, result.outcomes, metric)
    draws = np.array(_resampled(groups, samples, np.random.default_rng(seed)))
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean=_average(groups), low=float(low), high=float(high))


def compare(
    first: Result, second: Result, metric: str, *, level: float = 0.95, samples: int = SAMPLES, seed: int = 0
) -> Comparison:
    """The second result against the first, instance by instance.

    Raises:
      BenchmarkError: they are not of the same instances with as many values each, or have not the metric.
    """
    _check(level, samples)
    others = {outcome.instance.id: outcome for outcome in second.outcomes}
    if others.keys() != {outcome.instance.id for outcome in first.outcomes}:
        raise BenchmarkError(
            f"{first.benchmark.name} and {second.benchmark.name} are not of the same instances: compare "
            "runs over the same ones"
        )
    ordered = [others[outcome.instance.id] for outcome in first.outcomes]
    one, two = _grouped(first, first.outcomes, metric), _grouped(first, ordered, metric)
    if any(not np.array_equal(a[:, 1], b[:, 1]) for a, b in zip(one, two, strict=True)):
        raise BenchmarkError(f"the metric {metric!r} has not as many values an instance in both results")
    pairs = [np.concatenate([a, b], axis=1) for a, b in zip(one, two, strict=True)]
    generator = np.random.default_rng(seed)
    drawn = [_difference(_draw(pairs, generator)) for _ in range(samples)]
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    difference = _difference(pairs)
    exchanged = np.array([_difference([_exchange(pair, generator) for pair in pairs]) for _ in range(samples)])
    # As far, up to rounding; the observed assignment counts as one of those that are tried.
    as_far = int((np.abs(exchanged) >= abs(difference) - 1e-9).sum())
    gains = np.concatenate([pair[:, 2] - pair[:, 0] for pair in pairs])
    return Comparison(
        difference=difference,
        low=float(low),
        high=float(high),
        p_value=(as_far + 1) / (samples + 1),
        better=int((gains > 0).sum()),
        worse=int((gains < 0).sum()),
        equal=int((gains == 0).sum()),
    )


def _check(level: float, samples: int) -> None:
    if not 0 < level < 1 or samples < 1:
        raise BenchmarkError(f"level={level}, samples={samples}: give a level between 0 and 1 and at least one sample")


Values = Float[np.ndarray, "instances columns"]


def _grouped(result: Result, outcomes: "tuple[Outcome, ...] | list[Outcome]", metric: str) -> list[Values]:
    """Of each group that the average is over, the sum and number of values of each instance that has some."""
    groups: dict[str, list[tuple[float, int]]] = {}
    for outcome in outcomes:
        if values := outcome.scores.get(metric, ()):
            instance = outcome.instance
            name = {"instances": "", "tasks": instance.task, "categories": instance.category}[result.benchmark.average]
            groups.setdefault(name, []).append((sum(values), len(values)))
    if not groups:
        raise BenchmarkError(f"no instance has the metric {metric!r}: ask for one that the benchmark lists")
    return [np.array(groups[name], np.float64) for name in sorted(groups)]


def _average(groups: list[Values]) -> float:
    return 100 * float(np.mean([group[:, 0].sum() / group[:, 1].sum() for group in groups]))


def _difference(pairs: list[Values]) -> float:
    return _average([pair[:, 2:] for pair in pairs]) - _average([pair[:, :2] for pair in pairs])


def _draw(groups: list[Values], generator: np.random.Generator) -> list[Values]:
    """As many instances of each group, with replacement; of groups of one, from all of these."""
    alone = np.concatenate([group for group in groups if len(group) == 1] or groups)
    sources = [alone if len(group) == 1 else group for group in groups]
    return [
        source[generator.integers(len(source), size=len(group))] for group, source in zip(groups, sources, strict=True)
    ]


def _resampled(groups: list[Values], samples: int, generator: np.random.Generator) -> list[float]:
    return [_average(_draw(groups, generator)) for _ in range(samples)]


def _exchange(pair: Values, generator: np.random.Generator) -> Values:
    """Each instance's two scores, changed over with probability one half."""
    changed = generator.random(len(pair)) < 0.5
    return np.where(changed[:, None], pair[:, [2, 3, 0, 1]], pair)
