"""What a mixture is made of: examples, tokens, realised shares and lengths of each task.

    cached_statistics(CachedMixture.open(cache_dir, "flan", "train"))        all of it, from the length indexes alone
    sampled_statistics("flan", tasks, vocabulary=vocabulary, sample=500)     without a cache, from rendered samples

Shares are those that the loader's order realises under the rates, not the rates themselves. Two tasks with equal rates
of which one has targets of 2 tokens and the other of 98 have half of the examples each, and 2 % and 98 % of the loss.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from flanjax.data.cache import FEATURES, CachedMixture, FeatureStatistics, feature_statistics
from flanjax.data.mixing import MixtureOrder, Rates, resolve_rates
from flanjax.data.rendering import tokenized
from flanjax.data.sampling import drawn_rows
from flanjax.data.sources import bad_row_policy
from flanjax.data.tasks import TextTask
from flanjax.data.vocabularies import Vocabulary

Feature = Literal["inputs", "targets"]


@dataclass(frozen=True, kw_only=True)
class TaskStatistics:
    """One task of a mixture.

    Attributes:
        name: the task.
        examples: how many it has; estimated from the sample where `measured` is smaller.
        measured: of how many the lengths are.
        rate: as resolved, not normalised.
        features: tokens, the EOS counted, of inputs and targets of the measured examples.
        example_share: its part of the mixture's examples.
        token_shares: its part of the mixture's tokens of inputs and of targets.
    """

    name: str
    examples: int
    measured: int
    rate: float
    features: Mapping[str, FeatureStatistics]
    example_share: float
    token_shares: Mapping[str, float]

    def mean(self, feature: Feature) -> float:
        """Tokens of an example."""
        return self.features[feature].tokens / max(self.measured, 1)


@dataclass(frozen=True, kw_only=True)
class MixtureStatistics:
    """A mixture, task by task.

    Attributes:
        name: the mixture.
        split: the split.
        tasks: those that have the split, in the mixture's order; also those of rate 0.
        left_out: (task, reason) of tasks that have no example in the split.
    """

    name: str
    split: str
    tasks: tuple[TaskStatistics, ...]
    left_out: tuple[tuple[str, str], ...] = ()

    @property
    def examples(self) -> int:
        """Of all tasks together."""
        return sum(task.examples for task in self.tasks)

    def mean(self, feature: Feature) -> float:
        """Tokens of an example of the mixture."""
        return sum(task.example_share * task.mean(feature) for task in self.tasks)

    def histogram(self, feature: Feature) -> dict[int, float]:
        """Share of the mixture's examples in each bin of lengths, {upper bound: share}, ascending, without gaps.

        Examples of 3 and 4 tokens at equal rates with ones of 20 give {4: 0.5, 8: 0.0, 16: 0.0, 32: 0.5}.
        """
        shares: dict[int, float] = {}
        for task in self.tasks:
            for bound, share in histogram(task, feature).items():
                shares[bound] = shares.get(bound, 0.0) + task.example_share * share
        return _without_gaps(shares)


def histogram(task: TaskStatistics, feature: Feature) -> dict[int, float]:
    """Share of a task's examples in each bin of lengths, {upper bound: share}, ascending, without gaps."""
    counts = task.features[feature].histogram
    return _without_gaps({int(bound): count / max(task.measured, 1) for bound, count in counts.items()})


def _without_gaps(shares: Mapping[int, float]) -> dict[int, float]:
    if not shares:
        return {}
    bound, found = min(shares), {}
    while bound <= max(shares):
        found[bound] = shares.get(bound, 0.0)
        bound *= 2
    return found


def cached_statistics(mixture: CachedMixture, *, rates: Rates = "mixture") -> MixtureStatistics:
    """Statistics of all examples of a mixture in a cache; no record is read.

    Raises:
        MixingError: the rates do not fit the mixture.
    """
    measured = [
        _Measured(
            name=task.name,
            examples=len(task),
            measured=len(task),
            features={name: feature_statistics(task.lengths[:, column]) for column, name in enumerate(FEATURES)},
        )
        for task in mixture.tasks
    ]
    return _statistics(mixture.name, mixture.split, measured, rates, mixture.rates)


def sampled_statistics(
    name: str,
    tasks: Iterable[tuple[TextTask, float | None]],
    *,
    vocabulary: Vocabulary,
    split: str = "train",
    seed: int = 0,
    sample: int = 500,
    rates: Rates = "mixture",
    policy: str = "error",
) -> MixtureStatistics:
    """Statistics of a mixture without a cache: all rows are counted, a sample of each task is rendered and tokenised.

    Args:
        name: of the mixture.
        tasks: its tasks with their registered rates, None for their numbers of examples.
        vocabulary: tokenises.
        split: the split; tasks that have none such are left out, and named.
        seed: draws the sample, and renders it.
        sample: rows of each task. Their share that gives examples is taken for that of all rows.
        rates: as the loader's.
        policy: for malformed rows, "error" or "skip".

    Raises:
        BadRow: a row is malformed and the policy is "error", or a file cannot be read.
        MixingError: the rates do not fit the mixture, or no task has an example.
    """
    found: list[tuple[_Measured, float | None]] = []
    left_out: list[tuple[str, str]] = []
    for task, rate in tasks:
        if split not in task.splits:
            left_out.append((task.name, f"it has no split {split!r}"))
            continue
        measured = _sampled(task, split, vocabulary=vocabulary, seed=seed, sample=sample, policy=policy)
        if measured.measured:
            found.append((measured, rate))
        else:
            left_out.append((task.name, f"no row of split {split!r} gave an example"))
    return _statistics(
        name, split, [one for one, _ in found], rates, [rate for _, rate in found], left_out=tuple(left_out)
    )


@dataclass(frozen=True, kw_only=True)
class _Measured:
    name: str
    examples: int
    measured: int
    features: dict[str, FeatureStatistics]


def _sampled(task: TextTask, split: str, *, vocabulary: Vocabulary, seed: int, sample: int, policy: str) -> _Measured:
    with bad_row_policy(policy):
        drawn = drawn_rows(task, split, sample, seed=seed)
    made = tokenized(task, split, drawn.rows, seed=seed, vocabulary=vocabulary, policy=policy)
    lengths = np.array([(one.inputs, one.targets) for one in made.examples], dtype=np.int64).reshape(-1, 2)
    return _Measured(
        name=task.name,
        examples=round(drawn.seen * len(lengths) / max(len(drawn.rows), 1)),
        measured=len(lengths),
        features={name: feature_statistics(lengths[:, column]) for column, name in enumerate(FEATURES)},
    )


def _statistics(
    name: str,
    split: str,
    measured: Sequence[_Measured],
    rates: Rates,
    registered: Sequence[float | None],
    *,
    left_out: tuple[tuple[str, str], ...] = (),
) -> MixtureStatistics:
    sizes = [one.examples for one in measured]
    resolved = resolve_rates(rates, [one.name for one in measured], sizes, registered)
    shares = MixtureOrder(sizes, resolved, seed=0).shares.tolist()
    # Tokens of each task in an example of the mixture, [feature, task].
    means = [[one.features[feature].tokens / max(one.measured, 1) for one in measured] for feature in FEATURES]
    tokens = np.asarray(means) * shares
    token_shares = tokens / np.maximum(tokens.sum(axis=1, keepdims=True), 1e-9)
    return MixtureStatistics(
        name=name,
        split=split,
        tasks=tuple(
            TaskStatistics(
                name=one.name,
                examples=one.examples,
                measured=one.measured,
                rate=resolved[number],
                features=one.features,
                example_share=shares[number],
                token_shares=dict(zip(FEATURES, token_shares[:, number].tolist(), strict=True)),
            )
            for number, one in enumerate(measured)
        ),
        left_out=left_out,
    )
