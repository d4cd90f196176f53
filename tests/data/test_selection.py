"""A selection is a task with fewer examples: the same for the same seed, and nothing else knows of it."""

import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flanjax.data.cache import CachedMixture, CachedTask
from flanjax.data.loader import DataConfig, PackedBatches
from flanjax.data.mixing import Proportional
from flanjax.data.selection import SelectionError, select

RANDOM = np.random.default_rng(0)
TASKS = {
    "add": [(int(n), 3) for n in RANDOM.integers(3, 20, 60)],
    "sort": [(int(n), int(n) // 2 + 1) for n in RANDOM.integers(3, 12, 40)],
}


@pytest.fixture
def cache(make_cache: Callable[..., Path]) -> Path:
    return make_cache(TASKS)


@pytest.fixture
def tasks(cache: Path) -> list[CachedTask]:
    return CachedMixture.open(cache, "mix", "train").tasks


def first_tokens(task: CachedTask) -> list[int]:
    return [int(example.inputs[0]) for example in task.read(range(len(task)))]


@pytest.mark.parametrize(
    ("number", "examples"), [(None, 60), (1, 1), (7, 7), (60, 60), (99, 60), (0.25, 15), (1e-9, 1)]
)
def test_so_many_different_examples_in_order(
    tasks: list[CachedTask], number: int | float | None, examples: int
) -> None:
    for how in ("random", "longest_targets"):
        chosen = select(tasks[0], number, how, seed=3)
        found = first_tokens(chosen)
        assert len(chosen) == len(found) == len(set(found)) == len(chosen.lengths) == examples
        assert found == sorted(found)
        assert chosen.lengths.tolist() == [list(TASKS["add"][first - 2]) for first in found]


def test_fewer_are_among_more_and_the_seed_and_the_task_decide(tasks: list[CachedTask]) -> None:
    ten, twenty, again, other = (
        first_tokens(select(tasks[0], number, "random", seed=seed))
        for number, seed in ((10, 0), (20, 0), (20, 0), (20, 1))
    )
    assert set(ten) < set(twenty)
    assert twenty == again
    assert twenty != other
    assert [first - 1000 for first in first_tokens(select(tasks[1], 20, "random", seed=0))] != twenty


def test_every_example_is_as_likely(tasks: list[CachedTask]) -> None:
    drawn = Counter(first for seed in range(300) for first in first_tokens(select(tasks[1], 10, "random", seed=seed)))
    assert len(drawn) == 40
    assert max(abs(count - 75) for count in drawn.values()) < 5 * np.sqrt(75)


def test_the_longest_targets_are_taken(tasks: list[CachedTask]) -> None:
    chosen = select(tasks[1], 10, "longest_targets", seed=0)
    targets = sorted((length for _, length in TASKS["sort"]), reverse=True)
    assert sorted(chosen.lengths[:, 1].tolist(), reverse=True) == targets[:10]
    ties = select(tasks[0], 5, "longest_targets", seed=0)
    assert first_tokens(ties) == [2, 3, 4, 5, 6], "all are equally long: the first ones"


def test_an_index_that_was_not_selected(tasks: list[CachedTask]) -> None:
    chosen = select(tasks[0], 3, "random", seed=0)
    assert len(chosen.read([2, 0, 2])) == 3
    for index in (3, -1):
        with pytest.raises(IndexError, match="3 examples of task 'add' are selected"):
            chosen.read([index])
    chosen.verify()


def config(cache: Path, **options: object) -> DataConfig:
    settings = {"feature_lengths": {"inputs": 32, "targets": 12}, "batch_rows": 2, "window": 16, **options}
    return DataConfig(mixture="mix", cache_dir=str(cache), **settings)


def first_of(batches: PackedBatches) -> list[int]:
    return [
        int(token)
        for batch in batches
        for row in range(2)
        for token in batch["encoder_input_tokens"][row][batch["encoder_positions"][row] == 0]
        if token > 0
    ]


def test_the_loader_trains_on_nothing_else(cache: Path, tasks: list[CachedTask]) -> None:
    batches = PackedBatches(config(cache, examples_per_task=10, epochs=4, seed=5))
    chosen = [first for task in tasks for first in first_tokens(select(task, 10, "random", seed=5))]
    found = Counter(first_of(batches))
    assert set(found) == set(chosen)
    assert max(found.values()) == 4
    assert [task.examples for task in batches.report.tasks] == [10, 10]
    assert batches.report.lines()[0] == "mixture mix: 2 tasks, 20 examples"
    part = PackedBatches(config(cache, examples_per_task=0.5, rates=Proportional()))
    assert [(task.examples, task.example_share) for task in part.report.tasks] == [(30, 0.6), (20, 0.4)]


def test_a_selected_stream_resumes_where_it_was(cache: Path) -> None:
    options = config(cache, examples_per_task=10, select="longest_targets", epochs=6)
    batches = PackedBatches(options)
    for _ in itertools.islice(batches, 3):
        pass
    resumed = PackedBatches(options)
    resumed.set_state(batches.get_state())
    following = first_of(batches)
    assert following
    assert first_of(resumed) == following


def test_selections_that_make_no_sense(cache: Path) -> None:
    for number in (0, -1, 1.0, 2.5, 0.0, float("nan"), True, "10"):
        with pytest.raises(SelectionError, match="examples_per_task="):
            config(cache, examples_per_task=number)
    with pytest.raises(SelectionError, match="select='best': give one of random, longest_targets"):
        config(cache, select="best")
