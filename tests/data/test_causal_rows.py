"""A decoder's rows: every token of every example once, each predicted from those before it, whatever shares the row."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flanjax.data.cache import CachedMixture, Example
from flanjax.data.cache_writer import write_mixture, write_split
from flanjax.data.lengths import MAX_OVERLONG_SHARE, choose_feature_lengths, packing_figures
from flanjax.data.loader import DataConfig, LoaderError, PackedBatches, eval_batches
from flanjax.data.packing import Batch, PackingError, is_overlong, pack_rows, plan_window, truncate
from flanjax.data.placeholders import NO_PROMPT, Placeholders
from flanjax.data.vocabularies import Vocabulary

few = settings(max_examples=60, deadline=None)
NAMES = {"input_tokens", "target_tokens", "loss_weights", "segment_ids", "positions"}


def example(inputs: list[int], targets: list[int], weights: list[int] | None = None) -> Example:
    ids = [np.array(side, dtype=np.int32) for side in (inputs, targets)]
    return Example(inputs=ids[0], targets=ids[1], target_weights=None if weights is None else np.array(weights))


def test_the_worked_example() -> None:
    row = pack_rows([[example([5, 6, 1], [8, 1]), example([7, 1], [9, 4, 1])]], (9,), prefix_lm=True)
    assert {name: values[0].tolist() for name, values in row.items()} == {
        "decoder_input_tokens": [5, 6, 1, 8, 7, 1, 9, 4, 0],
        "decoder_target_tokens": [6, 1, 8, 1, 1, 9, 4, 1, 0],
        "decoder_loss_weights": [0, 0, 1, 1, 0, 1, 1, 1, 0],
        "decoder_segment_ids": [1, 1, 1, 1, 2, 2, 2, 2, 0],
        "decoder_positions": [0, 1, 2, 3, 0, 1, 2, 3, 0],
        "decoder_causal_attention": [1, 1, 1, 0, 1, 1, 0, 0, 0],
    }
    assert {values.dtype for values in row.values()} == {np.dtype(np.int32)}


def segments_of(batch: Batch) -> list[dict[str, np.ndarray]]:
    """The features of every segment, row after row."""
    return [
        {name: values[row][ids == segment] for name, values in batch.items()}
        for row, ids in enumerate(batch["decoder_segment_ids"])
        for segment in range(1, ids.max(initial=0) + 1)
    ]


@st.composite
def examples(draw: st.DrawFn) -> Example:
    inputs = draw(st.lists(st.integers(0, 9), min_size=0, max_size=6))
    targets = draw(st.lists(st.integers(0, 9), min_size=1 if inputs else 2, max_size=6))
    weights = draw(st.none() | st.lists(st.integers(0, 1), min_size=len(targets), max_size=len(targets)))
    return example(inputs, targets, weights)


@few
@given(rows=st.lists(st.lists(examples(), max_size=4), max_size=4), prefix_lm=st.booleans())
def test_rows_unpack_to_their_examples(rows: list[list[Example]], prefix_lm: bool) -> None:
    batch = pack_rows(rows, (48,), prefix_lm=prefix_lm)
    assert {name: values.shape for name, values in batch.items()} == {
        f"decoder_{name}": (len(rows), 48) for name in NAMES | ({"causal_attention"} if prefix_lm else set())
    }
    flat = [one for row in rows for one in row]
    for one, segment in zip(flat, segments_of(batch), strict=True):
        tokens, count = [*one.inputs, *one.targets], len(one.inputs)
        weights = np.ones(len(one.targets)) if one.target_weights is None else one.target_weights
        assert segment["decoder_input_tokens"].tolist() == tokens[:-1]
        assert segment["decoder_target_tokens"].tolist() == tokens[1:]
        assert segment["decoder_loss_weights"].tolist() == [0] * (count - 1) + list(weights[0 if count else 1 :])
        assert segment["decoder_positions"].tolist() == list(range(len(tokens) - 1))
        if prefix_lm:
            of_inputs = np.arange(len(tokens) - 1) < count
            np.testing.assert_array_equal(segment["decoder_causal_attention"], of_inputs)
    for values in batch.values():
        assert not values[batch["decoder_segment_ids"] == 0].any(), "padding is 0 everywhere"


@few
@given(rows=st.lists(st.lists(examples(), max_size=4), max_size=4))
def test_a_packed_row_is_its_examples_alone(rows: list[list[Example]]) -> None:
    alone = pack_rows([[one] for row in rows for one in row], (11,), prefix_lm=True)
    for packed, single in zip(segments_of(pack_rows(rows, (48,), prefix_lm=True)), segments_of(alone), strict=True):
        for name in set(packed) - {"decoder_segment_ids"}:
            np.testing.assert_array_equal(packed[name], single[name], err_msg=name)


def test_a_row_that_is_too_short_is_refused() -> None:
    with pytest.raises(PackingError, match="row 1 holds 7 tokens, its length is 6"):
        pack_rows([[example([1], [1])], [example([2] * 7, [1])]], (6,))


@few
@given(window=st.lists(st.tuples(st.integers(0, 90), st.integers(1, 40)), max_size=120), row=st.integers(2, 80))
def test_a_plan_is_a_partition_that_fits(window: list[tuple[int, int]], row: int) -> None:
    lengths = np.array(window, dtype=np.uint32).reshape(-1, 2)
    rows = plan_window(lengths, (row,))
    assert sorted(index for planned in rows for index in planned) == list(range(len(window)))
    sizes = np.clip(lengths.astype(int).sum(axis=1) - 1, 0, row)
    assert all(sizes[planned].sum() <= row for planned in rows)
    assert plan_window(lengths, (row,), pack=False) == [[index] for index in range(len(window))]


@pytest.mark.parametrize(
    ("inputs", "targets", "cut"),
    [
        ([2, 5, 6], [8, 9, 1], ([2, 5, 6], [8, 9, 1])),  # 6 tokens are 5 positions
        ([2, 5, 6, 7], [8, 9, 1], ([2, 6, 7], [8, 9, 1])),  # the inputs' beginning, behind the first
        ([2, 5], [6, 7, 8, 9, 1], ([2, 5], [6, 7, 8, 9])),  # the targets' end
        ([2, 5, 6, 7, 8], [4, 5, 6, 7, 1], ([2, 7, 8], [4, 5, 6])),  # half of the row each
        ([2, 5, 6, 7, 8, 9], [1], ([2, 6, 7, 8, 9], [1])),
        ([], [3, 4, 5, 6, 7, 8, 1], ([], [3, 4, 5, 6, 7, 8])),
    ],
)
def test_what_is_cut(inputs: list[int], targets: list[int], cut: tuple[list[int], list[int]]) -> None:
    weights = [index % 2 for index in range(len(targets))]
    found = truncate(example(inputs, targets, weights), (5,))
    assert (found.inputs.tolist(), found.targets.tolist()) == cut
    assert found.target_weights is not None
    assert found.target_weights.tolist() == weights[: len(cut[1])]


@few
@given(one=examples(), row=st.integers(2, 12))
def test_a_cut_example_fills_its_row(one: Example, row: int) -> None:
    whole, cut = len(one.inputs) + len(one.targets), truncate(one, (row,))
    assert len(cut.inputs) + len(cut.targets) == min(whole, row + 1)
    assert len(cut.inputs) >= min(len(one.inputs), (row + 1) // 2)
    assert len(cut.targets) >= min(len(one.targets), (row + 1) // 2)
    assert (cut is one) == (whole <= row + 1)


RANDOM = np.random.default_rng(0)
TASKS = {
    name: [
        example(
            [2, *RANDOM.integers(3, 99, RANDOM.integers(1, 20))],
            [*RANDOM.integers(3, 99, size), 1],
            [*RANDOM.integers(0, 2, size), 1] if name == "chat" else None,
        )
        for size in RANDOM.integers(1, 12, 40)
    ]
    for name in ("chat", "sort")
}
ROW = 48


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, tiny_vocabulary: Vocabulary) -> Path:
    folder = tmp_path_factory.mktemp("causal") / "cache"
    settings = {"vocabulary_id": tiny_vocabulary.identity, "fingerprint": "made up", "seed": 0, "shard_examples": 7}
    for name, held in TASKS.items():
        write_split(folder, name, "train", iter(held), **settings)
    entries = [{"task": name, "rate": None, "splits": {"train": "made up"}} for name in TASKS]
    write_mixture(folder, "mix", tiny_vocabulary, seed=0, tasks=entries)
    return folder


@pytest.fixture
def config(cache: Path) -> Callable[..., DataConfig]:
    def make(**options: object) -> DataConfig:
        given = {"layout": "causal", "feature_lengths": {"tokens": ROW}, "batch_rows": 4, "window": 16, **options}
        return DataConfig(mixture="mix", cache_dir=str(cache), **given)

    return make


def texts_of(batches: Iterable[Batch], prompt: Placeholders = NO_PROMPT) -> Counter[tuple]:
    """(placeholders, tokens, weight of each as a target) of every segment; the first token is no target."""
    found: Counter[tuple] = Counter()
    for batch in batches:
        for segment in segments_of(batch):
            tokens = [segment["decoder_input_tokens"][0], *segment["decoder_target_tokens"]]
            assert tokens[:-1] == segment["decoder_input_tokens"].tolist()
            weights = [0, *segment["decoder_loss_weights"]]
            found[tuple(tokens[: prompt.length]), tuple(tokens[prompt.length :]), tuple(weights[prompt.length :])] += 1
            assert not any(weights[: prompt.length])
    return found


def expected(row: int = ROW, prompt: Placeholders = NO_PROMPT) -> Counter[tuple]:
    found: Counter[tuple] = Counter()
    for task, held in TASKS.items():
        for one in held:
            cut = truncate(one, (row - prompt.length,))
            weights = np.ones(len(cut.targets)) if cut.target_weights is None else cut.target_weights
            tokens = (*cut.inputs, *cut.targets)
            found[(prompt.number(task),) * prompt.length, tokens, (*np.zeros(len(cut.inputs)), *weights)] += 1
    return found


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("row", [ROW, 12])
def test_an_epoch_is_every_token_of_every_example_once(config: Callable[..., DataConfig], pack: bool, row: int) -> None:
    batches = PackedBatches(config(epochs=1, batch_rows=1, pack=pack, feature_lengths={"tokens": row}))
    taken = list(batches)
    assert texts_of(taken) == expected(row)
    assert {name: values.shape for name, values in taken[0].items()} == {f"decoder_{name}": (1, row) for name in NAMES}


def test_hosts_and_resuming_do_not_change_the_stream(config: Callable[..., DataConfig]) -> None:
    batches, states, whole = PackedBatches(config(epochs=2, layout="prefix_lm")), [], []
    for batch in batches:
        whole.append(batch)
        states.append(batches.get_state())
    assert "decoder_causal_attention" in whole[0]
    parts = [list(PackedBatches(config(epochs=2, layout="prefix_lm"), rows=range(host, 4, 2))) for host in range(2)]
    resumed = PackedBatches(config(epochs=2, layout="prefix_lm"))
    resumed.set_state(states[2])
    rest = list(resumed)
    assert len(rest) == len(whole) - 3
    for name in whole[0]:
        for number, batch in enumerate(whole):
            rows = np.stack([parts[row % 2][number][name][row // 2] for row in range(4)])
            np.testing.assert_array_equal(rows, batch[name])
        for ours, batch in zip(rest, whole[3:], strict=True):
            np.testing.assert_array_equal(ours[name], batch[name])


@pytest.mark.parametrize("placeholders", [Placeholders(3), Placeholders(3, ("sort", "chat"))], ids=["one", "each"])
@pytest.mark.parametrize("row", [ROW, 12])
def test_a_prompt_stands_before_every_example_and_is_never_cut(
    config: Callable[..., DataConfig], placeholders: Placeholders, row: int
) -> None:
    options = config(epochs=1, batch_rows=1, feature_lengths={"tokens": row})
    wanted = expected(row, placeholders)
    assert texts_of(PackedBatches(options, placeholders=placeholders), placeholders) == wanted
    tasks = CachedMixture.open(options.cache_dir, "mix", "train").tasks
    evaluated = eval_batches(tasks, (row,), 8, placeholders=placeholders)
    assert texts_of(evaluated, placeholders) == wanted
    with pytest.raises(PackingError, match="rows of 4 tokens have no room for a prompt of 3 positions"):
        PackedBatches(config(feature_lengths={"tokens": 4}), placeholders=placeholders)


def test_evaluation_marks_the_inputs_of_a_prefix_lm(cache: Path) -> None:
    tasks = CachedMixture.open(cache, "mix", "train").tasks
    batches = list(eval_batches(tasks, (ROW,), 8, prefix_lm=True))
    assert texts_of(batches) == expected()
    prefix = sum(int(batch["decoder_causal_attention"].sum()) for batch in batches)
    assert prefix == sum(len(one.inputs) for held in TASKS.values() for one in held)


def test_the_start_up_lines_and_what_is_over_long(config: Callable[..., DataConfig]) -> None:
    long = sum(len(one.inputs) + len(one.targets) > 13 for held in TASKS.values() for one in held)
    options = {"epochs": 1, "batch_rows": 1, "window": 80, "feature_lengths": {"tokens": 12}}
    for policy, done in (("truncate", "truncated"), ("drop", "dropped")):
        batches = PackedBatches(config(**options, overlong=policy))
        lines = batches.report.lines()
        taken = list(batches)
        padding = np.mean([batch["decoder_segment_ids"] == 0 for batch in taken])
        assert batches.report.packing.padding == pytest.approx((padding,))
        rows = f"{batches.report.packing.examples / len(taken):.1f} examples in a row"
        assert lines[1] == f"rows of 12 tokens (as given), {rows}; padding {padding:.1%}"
        assert lines[2] == f"{long} examples ({long / 80:.2%}) are longer than a row and are {done}"
        assert texts_of(taken).total() == (80 if policy == "truncate" else 80 - long)
    with pytest.raises(PackingError, match=r"input and \d+ target tokens, a row has room for 13: take longer rows"):
        PackedBatches(config(**options, overlong="error"))


def test_rows_are_chosen_within_what_the_model_has_positions_for(config: Callable[..., DataConfig]) -> None:
    free, bounded = (PackedBatches(config(feature_lengths="auto"), longest=longest) for longest in (2048, 20))
    (length,) = free.row_lengths
    assert length % 64 == 0
    assert not sum(task.overlong for task in free.report.tasks)
    assert bounded.row_lengths == (20,)
    assert "(chosen from the lengths)" in bounded.report.lines()[1]


def test_super_ni_is_chosen_rows_nearly_full(super_ni_lengths: dict[str, np.ndarray]) -> None:
    lengths = super_ni_lengths["two-shot"][:4096]
    chosen = choose_feature_lengths(lengths, limits=(2048,))
    assert is_overlong(lengths, chosen).mean() <= MAX_OVERLONG_SHARE
    assert packing_figures(lengths, chosen).padding[0] < 0.015


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "causal", "feature_lengths": {"inputs": 8, "targets": 8}}, r"give 'auto' or \{'tokens': N\}"),
        ({"layout": "encoder_decoder", "feature_lengths": {"tokens": 8}}, r"\{'inputs': N, 'targets': N\}"),
        ({"layout": None, "feature_lengths": {"token": 8}}, r"'targets': N\} or \{'tokens': N\}"),
        ({"layout": "decoder"}, "give one of encoder_decoder, causal, prefix_lm"),
    ],
)
def test_layouts_and_lengths_that_do_not_go_together(
    config: Callable[..., DataConfig], options: dict, message: str
) -> None:
    with pytest.raises(LoaderError, match=message):
        config(**options)
    with pytest.raises(PackingError, match="feature length tokens=1: give 2 or more"):
        config(feature_lengths={"tokens": 1})
    assert len(list(itertools.islice(PackedBatches(config()), 2))) == 2
