"""The rows chosen from lengths hold nearly all examples whole, and compute less for an example than rows of habit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flanjax.data.lengths import MAX_OVERLONG_SHARE, RowCost, choose_feature_lengths, packing_figures
from flanjax.data.packing import PackingError, is_overlong


def cost_per_example(lengths: np.ndarray, row_lengths: tuple[int, int]) -> float:
    return RowCost()(row_lengths) * packing_figures(lengths, row_lengths).rows / len(lengths)


@pytest.mark.parametrize("encoding", ["zero-shot", "two-shot"])
def test_super_ni_rows_are_cheaper_than_rows_of_habit(super_ni_lengths: dict[str, np.ndarray], encoding: str) -> None:
    lengths = super_ni_lengths[encoding][:8192]
    chosen = choose_feature_lengths(lengths)
    assert is_overlong(lengths, chosen).mean() <= MAX_OVERLONG_SHARE
    for needed in ((chosen[0], 256), (2048, 512), (2048, 128)):
        assert cost_per_example(lengths, chosen) < cost_per_example(lengths, needed)
    figures = packing_figures(lengths, chosen)
    assert figures.padding[0] < 0.02
    habit = packing_figures(lengths, (chosen[0], 256))
    assert figures.padding[1] < habit.padding[1] - 0.1


def test_both_sides_are_filled_where_lengths_allow() -> None:
    random = np.random.default_rng(0)
    lengths = np.stack([random.integers(10, 70, 4096), random.integers(10, 70, 4096)], axis=1)
    figures = packing_figures(lengths, choose_feature_lengths(lengths))
    assert figures.padding[0] < 0.12
    assert figures.padding[1] < 0.12


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 700), st.integers(1, 300)), min_size=1, max_size=60),
    pack=st.booleans(),
)
def test_chosen_rows_are_regular_and_hold_a_small_sample_whole(lengths: list[tuple[int, int]], pack: bool) -> None:
    array = np.array(lengths)
    encoder, decoder = choose_feature_lengths(array, pack=pack)
    assert encoder % 64 == 0
    assert decoder % 8 == 0
    assert np.all(array <= (encoder, decoder))
    assert choose_feature_lengths(array, pack=pack) == (encoder, decoder)


def test_without_packing_the_smallest_row_wins() -> None:
    assert choose_feature_lengths(np.array([(100, 9)] * 50), pack=False) == (128, 16)


def test_limits_hold_against_long_examples() -> None:
    lengths = np.array([(50_000, 9_000)] * 20 + [(100, 20)] * 20)
    encoder, decoder = choose_feature_lengths(lengths, limits=(1024, 256))
    assert (encoder, decoder) == (1024, 256)


def test_figures_of_two_rows() -> None:
    figures = packing_figures(np.array([(6, 1), (4, 1), (9, 2)]), (10, 4))
    assert (figures.rows, figures.examples) == (2, 3)
    assert figures.padding[0] == pytest.approx(1 - 19 / 20)
    assert figures.padding[1] == pytest.approx(1 - 4 / 8)


def test_no_examples() -> None:
    with pytest.raises(PackingError, match="from no examples"):
        choose_feature_lengths(np.zeros((0, 2)))
