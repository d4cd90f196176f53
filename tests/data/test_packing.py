"""A plan holds every example once and no row too much, is dense on real lengths, and rows are laid out as in T5X."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flanjax.data.cache import Example
from flanjax.data.packing import (
    PackingError,
    check_overlong,
    check_row_lengths,
    is_overlong,
    pack_rows,
    plan_window,
    truncate,
)

few = settings(max_examples=60, deadline=None)


def example(inputs: list[int], targets: list[int]) -> Example:
    return Example(inputs=np.array(inputs, dtype=np.int32), targets=np.array(targets, dtype=np.int32))


def test_the_worked_example() -> None:
    row = pack_rows([[example([5, 6, 1], [8, 1]), example([7, 1], [9, 4, 1])]], (6, 6))
    assert {name: values[0].tolist() for name, values in row.items()} == {
        "encoder_input_tokens": [5, 6, 1, 7, 1, 0],
        "encoder_segment_ids": [1, 1, 1, 2, 2, 0],
        "encoder_positions": [0, 1, 2, 0, 1, 0],
        "decoder_target_tokens": [8, 1, 9, 4, 1, 0],
        "decoder_input_tokens": [0, 8, 0, 9, 4, 0],
        "decoder_loss_weights": [1, 1, 1, 1, 1, 0],
        "decoder_segment_ids": [1, 1, 2, 2, 2, 0],
        "decoder_positions": [0, 1, 0, 1, 2, 0],
    }
    assert {values.dtype for values in row.values()} == {np.dtype(np.int32)}


sides = st.lists(st.integers(1, 9), min_size=1, max_size=6)
batches = st.lists(st.lists(st.tuples(sides, sides), max_size=4), max_size=4)


@few
@given(batch=batches)
def test_rows_unpack_to_their_examples(batch: list[list[tuple[list[int], list[int]]]]) -> None:
    packed = pack_rows([[example(*sides) for sides in row] for row in batch], (24, 25))
    assert {name: values.shape for name, values in packed.items() if name.startswith("enc")} == {
        name: (len(batch), 24) for name in ("encoder_input_tokens", "encoder_segment_ids", "encoder_positions")
    }
    for number, row in enumerate(batch):
        side = {name: values[number] for name, values in packed.items()}
        for segment, (inputs, targets) in enumerate(row, start=1):
            encoder, decoder = side["encoder_segment_ids"] == segment, side["decoder_segment_ids"] == segment
            assert side["encoder_input_tokens"][encoder].tolist() == inputs
            assert side["encoder_positions"][encoder].tolist() == list(range(len(inputs)))
            assert side["decoder_target_tokens"][decoder].tolist() == targets
            assert side["decoder_input_tokens"][decoder].tolist() == [0, *targets[:-1]]
            assert side["decoder_positions"][decoder].tolist() == list(range(len(targets)))
        for name in ("encoder", "decoder"):
            padding = side[f"{name}_segment_ids"] == 0
            used = int((~padding).sum())
            assert not padding[:used].any(), "a row's tokens stand at its head"
            assert used == sum(len(sides[name == "decoder"]) for sides in row)
            assert not side[f"{name}_positions"][padding].any()
        np.testing.assert_array_equal(side["decoder_loss_weights"], side["decoder_segment_ids"] > 0)
        assert not side["decoder_target_tokens"][side["decoder_segment_ids"] == 0].any()


def test_target_tokens_without_weight_are_read_and_not_learnt() -> None:
    weighted = Example(inputs=np.array([5, 1]), targets=np.array([8, 9, 1]), target_weights=np.array([1, 0, 1]))
    row = {name: values[0] for name, values in pack_rows([[example([7, 1], [4, 1]), weighted]], (6, 6)).items()}
    assert row["decoder_target_tokens"].tolist() == [4, 1, 8, 9, 1, 0]
    assert row["decoder_input_tokens"].tolist() == [0, 4, 0, 8, 9, 0]
    assert row["decoder_loss_weights"].tolist() == [1, 1, 1, 0, 1, 0]
    cut = truncate(weighted, (2, 2))
    assert (cut.targets.tolist(), cut.target_weights) == ([8, 1], pytest.approx([1, 1]))


def test_a_row_that_is_too_short_is_refused() -> None:
    with pytest.raises(PackingError, match="row 1 holds 7 tokens, its length is 6"):
        pack_rows([[example([1], [1])], [example([2] * 7, [1])]], (6, 6))


def test_truncation_keeps_the_end_of_sequence_last() -> None:
    cut = truncate(example([5, 6, 7, 8, 1], [9, 8, 7, 1]), (3, 2))
    assert (cut.inputs.tolist(), cut.targets.tolist()) == ([5, 6, 1], [9, 1])
    whole = example([5, 6, 1], [9, 1])
    assert truncate(whole, (3, 2)) is whole


lengths = st.lists(st.tuples(st.integers(1, 90), st.integers(1, 40)), max_size=120)


@few
@given(window=lengths, encoder=st.integers(2, 80), decoder=st.integers(2, 30))
def test_a_plan_is_a_partition_that_fits(window: list[tuple[int, int]], encoder: int, decoder: int) -> None:
    array = np.array(window, dtype=np.uint32).reshape(-1, 2)
    rows = plan_window(array, (encoder, decoder))
    assert sorted(index for row in rows for index in row) == list(range(len(window)))
    clipped = np.minimum(array, (encoder, decoder)).astype(int)
    for row in rows:
        assert row == sorted(row)
        assert row, "a row without examples"
        assert np.all(clipped[row].sum(axis=0) <= (encoder, decoder))
    assert plan_window(array, (encoder, decoder)) == rows


@few
@given(window=lengths)
def test_without_packing_a_row_is_an_example(window: list[tuple[int, int]]) -> None:
    rows = plan_window(np.array(window, dtype=np.uint32).reshape(-1, 2), (64, 16), pack=False)
    assert rows == [[index] for index in range(len(window))]


@few
@given(
    sizes=st.lists(st.integers(1, 64), min_size=1, max_size=100),
    decoder=st.sampled_from([64, 100, 10_000]),
)
def test_few_rows_are_less_than_half_full(sizes: list[int], decoder: int) -> None:
    # Two rows at most half full on both sides would have been one.
    window = np.array([(size, min(size, decoder)) for size in sizes])
    rows = plan_window(window, (64, decoder))
    half_empty = [row for row in rows if np.all(window[row].sum(axis=0) <= (32, decoder / 2))]
    assert len(half_empty) <= 1


def fill(lengths: np.ndarray, row_lengths: tuple[int, int], window: int = 2048) -> np.ndarray:
    """What part of each side of the rows is real, over whole windows."""
    whole = lengths[: len(lengths) // window * window].astype(np.int64)
    rows = sum(len(plan_window(whole[start : start + window], row_lengths)) for start in range(0, len(whole), window))
    return np.minimum(whole, row_lengths).sum(axis=0) / (rows * np.array(row_lengths))


@pytest.mark.parametrize("encoding", ["zero-shot", "two-shot"])
def test_windows_of_super_ni_are_full(super_ni_lengths: dict[str, np.ndarray], encoding: str) -> None:
    assert fill(super_ni_lengths[encoding], (1024, 256))[0] >= 0.99


def test_rows_are_full_on_the_tighter_side() -> None:
    random = np.random.default_rng(0)
    window = np.stack([random.integers(5, 301, 4096), random.integers(1, 61, 4096)], axis=1)
    assert fill(window, (512, 128))[0] >= 0.975
    assert fill(window, (512, 80))[1] >= 0.975


def test_rows_and_policies_that_make_no_sense() -> None:
    with pytest.raises(PackingError, match="targets=1: give 2 or more"):
        check_row_lengths((512, 1))
    with pytest.raises(PackingError, match="'split': give one of truncate, drop, error"):
        check_overlong("split")
    assert is_overlong(np.array([[5, 2], [6, 2], [5, 3]]), (5, 2)).tolist() == [False, True, True]
