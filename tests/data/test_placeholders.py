"""Placeholders of a learnt prompt: in front of every example of every row, whatever the hosts, and never cut."""

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from flanjax.data.cache import CachedMixture
from flanjax.data.loader import DataConfig, PackedBatches, eval_batches
from flanjax.data.packing import Batch, PackingError
from flanjax.data.placeholders import Placeholders

RANDOM = np.random.default_rng(0)
TASKS = {
    "add": [(int(n), 3) for n in RANDOM.integers(3, 20, 30)],
    "sort": [(int(n), int(n) // 2 + 1) for n in RANDOM.integers(3, 12, 20)],
}
LENGTH = 4
ONE, EACH = Placeholders(LENGTH), Placeholders(LENGTH, ("sort", "add"))


@pytest.fixture
def config(make_cache: Callable[..., Path]) -> Callable[..., DataConfig]:
    cache = make_cache(TASKS)

    def make(**options: object) -> DataConfig:
        settings = {"feature_lengths": {"inputs": 32, "targets": 12}, "batch_rows": 4, "window": 16, **options}
        return DataConfig(mixture="mix", cache_dir=str(cache), **settings)

    return make


def examples_of(batches: Iterable[Batch]) -> list[tuple[int, list[int], list[int]]]:
    """(number of the example, placeholders, text) of every segment; the examples are those of `numbered_examples`."""
    found = []
    for batch in batches:
        for tokens, segments in zip(batch["encoder_input_tokens"], batch["encoder_segment_ids"], strict=True):
            for segment in range(1, segments.max(initial=0) + 1):
                own = tokens[segments == segment].tolist()
                found.append((own[LENGTH], own[:LENGTH], own[LENGTH:]))
    return sorted(found)


EXPECTED = sorted(
    (first := 1000 * task + index + 2, task, [first] * (inputs - 1) + [1])
    for task, lengths in enumerate(TASKS.values())
    for index, (inputs, _) in enumerate(lengths)
)


@pytest.mark.parametrize("placeholders", [ONE, EACH], ids=["one", "each"])
@pytest.mark.parametrize("pack", [True, False])
def test_every_example_stands_behind_the_number_of_its_prompt(
    config: Callable[..., DataConfig], placeholders: Placeholders, pack: bool
) -> None:
    batches = list(PackedBatches(config(epochs=1, batch_rows=1, pack=pack), placeholders=placeholders))
    number_of = {0: 1, 1: 0} if placeholders is EACH else {0: 0, 1: 0}
    assert examples_of(batches) == [(first, [number_of[task]] * LENGTH, text) for first, task, text in EXPECTED]
    for batch in batches:
        for row in range(len(batch["encoder_positions"])):
            segments = batch["encoder_segment_ids"][row]
            for segment in range(1, segments.max() + 1):
                positions = batch["encoder_positions"][row][segments == segment]
                np.testing.assert_array_equal(positions, np.arange(len(positions)))


def test_any_number_of_hosts_reads_the_same_rows_and_goes_on_from_any_batch(config: Callable[..., DataConfig]) -> None:
    options = config(epochs=2)
    batches = PackedBatches(options, placeholders=EACH)
    positions, whole = [batches.get_state()], []
    for batch in batches:
        whole.append(batch)
        positions.append(batches.get_state())
    parts = [list(PackedBatches(options, placeholders=EACH, rows=range(host, 4, 2))) for host in range(2)]
    resumed = PackedBatches(options, placeholders=EACH)
    resumed.set_state(positions[3])
    rest = list(resumed)
    assert len(rest) == len(whole) - 3
    for name in whole[0]:
        for number, batch in enumerate(whole):
            for row in range(4):
                np.testing.assert_array_equal(parts[row % 2][number][name][row // 2], batch[name][row])
        for ours, batch in zip(rest, whole[3:], strict=True):
            np.testing.assert_array_equal(ours[name], batch[name])


def test_what_is_cut_is_the_text(config: Callable[..., DataConfig]) -> None:
    small = {"feature_lengths": {"inputs": 10, "targets": 12}, "epochs": 1, "batch_rows": 1}
    found = examples_of(PackedBatches(config(**small), placeholders=EACH))
    assert found == [
        (first, [1 - task] * LENGTH, text if len(text) <= 6 else [*text[:5], 1]) for first, task, text in EXPECTED
    ]
    dropped = PackedBatches(config(**small, overlong="drop"), placeholders=EACH)
    assert [text for _, _, text in examples_of(dropped)] == [text for _, _, text in EXPECTED if len(text) <= 6]
    surveyed = dropped.report.tasks
    assert sum(task.overlong_sides[0] for task in surveyed) == sum(len(text) > 6 for _, _, text in EXPECTED)
    with pytest.raises(PackingError, match="a row has room for"):
        PackedBatches(config(**small, overlong="error"), placeholders=EACH)


def test_the_start_up_lines_say_what_they_count(config: Callable[..., DataConfig]) -> None:
    plain, prompted = PackedBatches(config()).report, PackedBatches(config(), placeholders=ONE).report
    assert [task.token_share for task in plain.tasks] == [task.token_share for task in prompted.tasks]
    assert any("a prompt of 4 positions is in front of every example's inputs" in line for line in prompted.lines())
    assert not any("prompt" in line for line in plain.lines())


def test_chosen_row_lengths_count_the_prompt(config: Callable[..., DataConfig]) -> None:
    long = Placeholders(100)
    batches = PackedBatches(config(feature_lengths="auto"), placeholders=long)
    assert batches.row_lengths[0] >= 100 + max(len(text) for _, _, text in EXPECTED)
    assert sum(task.overlong for task in batches.report.tasks) == 0


@pytest.mark.parametrize("pack", [True, False])
def test_evaluation_gives_every_example_its_prompt(config: Callable[..., DataConfig], pack: bool) -> None:
    tasks = CachedMixture.open(config().cache_dir, "mix", "train").tasks
    batches = list(eval_batches(tasks, (32, 12), 8, pack=pack, placeholders=EACH))
    assert examples_of(batches) == [(first, [1 - task] * LENGTH, text) for first, task, text in EXPECTED]


def test_a_prompt_without_room_or_a_task_without_a_prompt_is_refused(config: Callable[..., DataConfig]) -> None:
    tasks = CachedMixture.open(config().cache_dir, "mix", "train").tasks
    full = "rows of 32 input tokens have no room for a prompt of 31 positions and a text: take rows of 33"
    missing = r"task 'add' has no prompt.*there are those of sort, ad\. Give it one, or leave it out"
    for placeholders, message in ((Placeholders(31), full), (Placeholders(2, ("sort", "ad")), missing)):
        with pytest.raises(PackingError, match=message):
            PackedBatches(config(), placeholders=placeholders)
        with pytest.raises(PackingError, match=message):
            list(itertools.islice(eval_batches(tasks, (32, 12), 4, placeholders=placeholders), 1))
    assert next(PackedBatches(config(), placeholders=Placeholders(30)))
