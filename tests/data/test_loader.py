"""One stream of rows, whatever the hosts; resumed anywhere it goes on as it would have; nothing is lost unsaid."""

import itertools
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from flanjax.data.cache import CachedMixture, CacheError
from flanjax.data.lengths import MAX_OVERLONG_SHARE
from flanjax.data.loader import DataConfig, LoaderError, PackedBatches, eval_batches
from flanjax.data.mixing import MixingError, Proportional
from flanjax.data.packing import Batch, PackingError

RANDOM = np.random.default_rng(0)
TASKS = {
    "add": [(int(n), 3) for n in RANDOM.integers(3, 20, 60)],
    "sort": [(int(n), int(n) // 2 + 1) for n in RANDOM.integers(3, 12, 40)],
}
TOTAL = 100
ROWS = {"inputs": 32, "targets": 12}


@pytest.fixture
def config(make_cache: Callable[..., Path]) -> Callable[..., DataConfig]:
    cache = make_cache(TASKS)

    def make(**options: object) -> DataConfig:
        settings = {"feature_lengths": ROWS, "batch_rows": 4, "window": 16, **options}
        return DataConfig(mixture="mix", cache_dir=str(cache), **settings)

    return make


def take(batches: Iterable[Batch], count: int) -> list[Batch]:
    return list(itertools.islice(batches, count))


def assert_equal(one: list[Batch], two: list[Batch]) -> None:
    assert len(one) == len(two)
    for first, second in zip(one, two, strict=True):
        assert first.keys() == second.keys()
        for name in first:
            np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def examples_of(batches: Iterable[Batch]) -> Counter[int]:
    """How often each example (known by the first token of its inputs) is in the batches, both sides agreeing."""
    found: Counter[int] = Counter()
    for batch in batches:
        for row in range(len(batch["encoder_segment_ids"])):
            segments, targets = batch["encoder_segment_ids"][row], batch["decoder_segment_ids"][row]
            assert segments.max(initial=0) == targets.max(initial=0)
            for segment in range(1, segments.max(initial=0) + 1):
                first = int(batch["encoder_input_tokens"][row][segments == segment][0])
                assert batch["decoder_target_tokens"][row][targets == segment][0] == first
                found[first] += 1
    return found


EVERYTHING = Counter(
    {1000 * task + index + 2: 1 for task, name in enumerate(TASKS) for index in range(len(TASKS[name]))}
)


def test_shapes_and_names(config: Callable[..., DataConfig]) -> None:
    batch = next(PackedBatches(config()))
    assert {name: (values.shape, values.dtype) for name, values in batch.items()} == {
        **{f"encoder_{name}": ((4, 32), np.int32) for name in ("input_tokens", "segment_ids", "positions")},
        **{
            f"decoder_{name}": ((4, 12), np.int32)
            for name in ("input_tokens", "target_tokens", "loss_weights", "segment_ids", "positions")
        },
    }


@pytest.mark.parametrize("pack", [True, False])
def test_an_epoch_is_every_example_once(config: Callable[..., DataConfig], pack: bool) -> None:
    batches = PackedBatches(config(epochs=1, batch_rows=1, pack=pack))
    found = examples_of(batches)
    assert found == EVERYTHING
    assert batches.dropped_rows == 0
    with pytest.raises(StopIteration):
        next(batches)


def test_rows_that_fill_no_batch_are_counted(config: Callable[..., DataConfig]) -> None:
    rows = len(list(PackedBatches(config(epochs=2, batch_rows=1))))
    batches = PackedBatches(config(epochs=2, batch_rows=7))
    taken = len(list(batches))
    assert rows % 7
    assert (taken, batches.dropped_rows) == divmod(rows, 7)


@pytest.mark.parametrize("overlong", ["truncate", "drop"])
def test_the_end_of_the_data_is_told_beforehand(config: Callable[..., DataConfig], overlong: str) -> None:
    batches = PackedBatches(config(epochs=1, batch_rows=3, window=100, feature_lengths=SMALL, overlong=overlong))
    taken = len(list(batches))
    assert taken > 1
    (line,) = [line for line in batches.report.lines() if "ends" in line]
    assert line.startswith(f"the data ends after about {taken} batches of 3 rows")
    assert not any("ends" in line for line in PackedBatches(config()).report.lines())


def test_the_seed_decides_the_order(config: Callable[..., DataConfig]) -> None:
    one, again, other = (take(PackedBatches(config(seed=seed)), 5) for seed in (1, 1, 2))
    assert_equal(one, again)
    assert any(np.any(a["encoder_input_tokens"] != b["encoder_input_tokens"]) for a, b in zip(one, other, strict=True))


def test_rows_of_a_window_are_not_sorted_by_length(config: Callable[..., DataConfig]) -> None:
    used = [
        int((batch["encoder_segment_ids"] > 0).sum())
        for batch in PackedBatches(config(epochs=1, batch_rows=1, window=100))
    ]
    assert used != sorted(used)
    assert used != sorted(used, reverse=True)
    counts = [int(b["encoder_segment_ids"].max()) for b in PackedBatches(config(epochs=1, batch_rows=1, window=100))]
    half = len(counts) // 2
    assert abs(np.mean(counts[:half]) - np.mean(counts[half:])) < 1.5


@pytest.mark.parametrize("hosts", [2, 4])
def test_any_number_of_hosts_reads_the_same_rows(config: Callable[..., DataConfig], hosts: int) -> None:
    whole = list(PackedBatches(config(epochs=2)))
    # Of host 1, say, rows 1 and 3: a host's rows need not lie side by side.
    parts = [list(PackedBatches(config(epochs=2), rows=range(host, 4, hosts))) for host in range(hosts)]
    joined = [
        {name: np.stack([part[row % hosts][name][row // hosts] for row in range(4)]) for name in part[0]}
        for part in zip(*parts, strict=True)
    ]
    assert_equal(joined, whole)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_resumed_at_every_position_it_goes_on_as_it_would_have(
    config: Callable[..., DataConfig], prefetch: int
) -> None:
    batches = PackedBatches(config(epochs=2, batch_rows=3), prefetch=prefetch)
    states, whole = [batches.get_state()], []
    for batch in batches:
        whole.append(batch)
        states.append(json.loads(json.dumps(batches.get_state())))
    assert len({tuple(state.values()) for state in states}) == len(states)
    assert set(states[0]) == {"window", "row"}
    resumed = PackedBatches(config(epochs=2, batch_rows=3), prefetch=prefetch)
    for position, state in enumerate(states):
        resumed.set_state(state)
        assert resumed.get_state() == state
        assert_equal(list(resumed), whole[position:])


def test_resumed_on_another_number_of_hosts(config: Callable[..., DataConfig]) -> None:
    batches = PackedBatches(config())
    take(batches, 5)
    state, following = batches.get_state(), next(batches)
    for host in range(2):
        part = PackedBatches(config(), rows=[2 * host, 2 * host + 1])
        part.set_state(state)
        assert_equal([next(part)], [{name: values[2 * host : 2 * host + 2] for name, values in following.items()}])


def test_a_far_position_is_as_near_as_the_first(config: Callable[..., DataConfig]) -> None:
    batches = PackedBatches(config())
    batches.set_state({"window": 10**9, "row": 1})
    assert examples_of([next(batches)]).total() >= 4
    assert batches.get_state()["window"] >= 10**9


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"window": 0, "row": 99}, "none at 99"),
        ({"window": -1, "row": 0}, "no position"),
        ({"step": 3}, "no position"),
        ({"window": None, "row": 0}, "no position"),
    ],
)
def test_states_of_something_else(config: Callable[..., DataConfig], state: dict, message: str) -> None:
    def go_there() -> None:
        batches = PackedBatches(config())
        batches.set_state(state)
        next(batches)

    with pytest.raises(LoaderError, match=message):
        go_there()


def test_rates_decide_what_comes(config: Callable[..., DataConfig]) -> None:
    found = examples_of(take(PackedBatches(config(rates={"add": 0, "sort": 1})), 40))
    assert min(found) >= 1000
    found = examples_of(take(PackedBatches(config(rates={"add": 3, "sort": 1})), 200))
    share = sum(count for first, count in found.items() if first < 1000) / found.total()
    assert share == pytest.approx(0.75, abs=0.03)
    report = PackedBatches(config(rates=Proportional(cap=40))).report
    assert [task.example_share for task in report.tasks] == pytest.approx([0.5, 0.5], abs=0.006)


SMALL = {"inputs": 10, "targets": 4}


def test_overlong_examples_are_truncated_and_counted(config: Callable[..., DataConfig]) -> None:
    batches = PackedBatches(config(feature_lengths=SMALL, epochs=1, batch_rows=1))
    over = [[(i > 10, t > 4) for i, t in lengths] for lengths in TASKS.values()]
    assert [task.overlong_sides[0] for task in batches.report.tasks] == [sum(i for i, _ in task) for task in over]
    assert [task.overlong_sides[1] for task in batches.report.tasks] == [sum(t for _, t in task) for task in over]
    taken = list(batches)
    assert examples_of(taken) == EVERYTHING
    for batch in taken:
        for side in ("encoder_input", "decoder_target"):
            ids, tokens = batch[f"{side[:7]}_segment_ids"][0], batch[f"{side}_tokens"][0]
            assert all(tokens[ids == segment][-1] == 1 for segment in range(1, ids.max() + 1))


def test_overlong_examples_are_dropped_and_counted(config: Callable[..., DataConfig]) -> None:
    batches = PackedBatches(config(feature_lengths=SMALL, epochs=1, batch_rows=1, overlong="drop"))
    kept = {
        1000 * number + index + 2
        for number, lengths in enumerate(TASKS.values())
        for index, (inputs, targets) in enumerate(lengths)
        if inputs <= 10 and targets <= 4
    }
    assert examples_of(batches) == Counter(dict.fromkeys(kept, 1))
    assert sum(task.overlong for task in batches.report.tasks) == TOTAL - len(kept)
    assert f"{TOTAL - len(kept)} examples" in batches.report.lines()[2]
    assert "are dropped" in batches.report.lines()[2]


def test_overlong_examples_are_errors(config: Callable[..., DataConfig]) -> None:
    first = next(index for index, (inputs, _) in enumerate(TASKS["add"]) if inputs > 10)
    with pytest.raises(PackingError, match=rf"example {first} of task 'add' has {TASKS['add'][first][0]} input"):
        PackedBatches(config(feature_lengths=SMALL, overlong="error"))
    assert examples_of(take(PackedBatches(config(overlong="error")), 1))


def test_nothing_left_after_dropping(config: Callable[..., DataConfig]) -> None:
    with pytest.raises(PackingError, match="all 60 examples of task 'add' are longer"):
        PackedBatches(config(feature_lengths={"inputs": 2, "targets": 2}, overlong="drop"))


def test_row_lengths_are_chosen_from_the_index(make_cache: Callable[..., Path]) -> None:
    cache = make_cache({"add": [(50, 9)] * 30, "sort": [(100, 12)] * 30})
    batches = PackedBatches(DataConfig(mixture="mix", cache_dir=str(cache), batch_rows=2))
    encoder, decoder = batches.row_lengths
    assert next(batches)["decoder_target_tokens"].shape == (2, decoder)
    assert encoder % 64 == 0
    lines = batches.report.lines()
    assert lines[0] == "mixture mix: 2 tasks, 60 examples"
    assert lines[1].startswith(f"rows of {encoder} input and {decoder} target tokens (chosen from the lengths)")
    assert "% of inputs" in lines[1]
    assert "% of targets" in lines[1]
    assert lines[2] == "no example is longer than a row"
    assert len(lines) == 5
    assert sum(task.token_share for task in batches.report.tasks) == pytest.approx(1)
    assert batches.report.tasks[1].token_share == pytest.approx(112 / 171, abs=0.01)


@pytest.mark.parametrize("lengths", [ROWS, SMALL], ids=["all fit", "some are over-long"])
@pytest.mark.parametrize("overlong", ["truncate", "drop"])
def test_padding_reported_is_padding_met(
    config: Callable[..., DataConfig], lengths: dict[str, int], overlong: str
) -> None:
    batches = PackedBatches(config(epochs=1, batch_rows=1, window=100, feature_lengths=lengths, overlong=overlong))
    report = batches.report
    taken = list(batches)
    assert report.packing.rows == len(taken)
    for side, padding in (("encoder", report.packing.padding[0]), ("decoder", report.packing.padding[1])):
        assert padding == pytest.approx(np.mean([batch[f"{side}_segment_ids"] == 0 for batch in taken]))


def test_super_ni_is_chosen_rows_nearly_full(
    super_ni_lengths: dict[str, np.ndarray], make_cache: Callable[..., Path]
) -> None:
    lengths = [tuple(row) for row in super_ni_lengths["two-shot"][:4096].tolist()]
    cache = make_cache({"super_ni": lengths}, shard_examples=2048)
    batches = PackedBatches(DataConfig(mixture="mix", cache_dir=str(cache), batch_rows=8))
    taken = take(batches, 60)
    padding = np.mean([batch["encoder_segment_ids"] == 0 for batch in taken])
    assert padding < 0.015
    assert sum(task.overlong for task in batches.report.tasks) <= MAX_OVERLONG_SHARE * len(lengths)


@pytest.mark.parametrize("hosts", [1, 2])
@pytest.mark.parametrize("pack", [True, False])
def test_evaluation_sees_everything_once(config: Callable[..., DataConfig], hosts: int, pack: bool) -> None:
    tasks = CachedMixture.open(config().cache_dir, "mix", "train").tasks
    parts = [
        list(eval_batches(tasks, (32, 12), 8, rows=range(host, 8, hosts), window=16, pack=pack))
        for host in range(hosts)
    ]
    assert len({len(part) for part in parts}) == 1
    assert {batch["encoder_input_tokens"].shape for part in parts for batch in part} == {(8 // hosts, 32)}
    assert sum((examples_of(part) for part in parts), Counter()) == EVERYTHING
    last = parts[-1][-1]
    assert last["decoder_loss_weights"].sum(axis=1).min() == 0, "the last batch was to be filled with empty rows"


def test_evaluation_of_the_first_examples(config: Callable[..., DataConfig]) -> None:
    tasks = CachedMixture.open(config().cache_dir, "mix", "train").tasks
    found = examples_of(eval_batches(tasks, (32, 12), 4, max_examples_per_task=3))
    assert sorted(found) == [2, 3, 4, 1002, 1003, 1004]
    assert list(eval_batches([], (32, 12), 4)) == []


def test_a_damaged_shard_ends_the_stream(config: Callable[..., DataConfig]) -> None:
    options = config(epochs=1)
    shard = next(Path(options.cache_dir).glob("tasks/add/train/data-00003-*"))
    content = bytearray(shard.read_bytes())
    content[200] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CacheError, match=r"data-00003.*is damaged.*flanjax\.materialize"):
        list(PackedBatches(options))


def test_configurations_that_make_no_sense(config: Callable[..., DataConfig], make_cache: Callable[..., Path]) -> None:
    for options, error, message in (
        ({"batch_rows": 0}, LoaderError, "batch_rows=0"),
        ({"window": 0}, LoaderError, "window=0"),
        ({"feature_lengths": "car"}, LoaderError, "give 'auto' or"),
        ({"feature_lengths": {"inputs": 5}}, LoaderError, "give 'auto' or"),
        ({"feature_lengths": {"inputs": 5, "targets": 1}}, PackingError, "targets=1: give 2 or more"),
        ({"overlong": "cut"}, PackingError, "overlong='cut'"),
    ):
        with pytest.raises(error, match=message):
            config(**options)
    for options, error, message in (
        ({"rates": {"add": 0, "sort": 0}}, MixingError, "nothing to train on"),
        ({"rates": {"adds": 1}}, MixingError, "did you mean 'add'"),
        ({"epochs": 0}, MixingError, "epochs=0"),
    ):
        with pytest.raises(error, match=message):
            PackedBatches(config(**options))
    with pytest.raises(LoaderError, match=r"rows \[3, 4\] are not all among the 4"):
        PackedBatches(config(), rows=[3, 4])
    with pytest.raises(LoaderError, match="fewer than one batch of 500"):
        next(PackedBatches(config(epochs=1, batch_rows=500)))
    empty = make_cache({"add": []}, rates={"add": 1.0}, folder="empty")
    with pytest.raises(MixingError, match=r"'add' has rate 1\.0 but no examples"):
        PackedBatches(DataConfig(mixture="mix", cache_dir=str(empty), batch_rows=2))


def test_a_closed_loader(config: Callable[..., DataConfig]) -> None:
    batches = PackedBatches(config())
    next(batches)
    batches.close()
    batches.close()
    with pytest.raises(LoaderError, match="closed"):
        next(batches)


def test_reading_never_imports_tensorflow(config: Callable[..., DataConfig]) -> None:
    options = config()
    script = f"""
import sys
from flanjax.data.loader import DataConfig, PackedBatches
batches = PackedBatches(DataConfig(mixture="mix", cache_dir={options.cache_dir!r}, batch_rows=2))
next(batches)
loaded = sorted({{"tensorflow", "seqio", "clu", "torch", "gin"}} & set(sys.modules))
assert not loaded, loaded
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert "Traceback" not in done.stderr, "a loader that is left open ends quietly"
