"""The order is a pure function of (seed, position), covers what it must, and realises the rates; rates as in seqio."""

import collections
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flanjax.data.mixing import MixingError, MixtureOrder, Proportional, resolve_rates
from flanjax.data.shuffling import hash64, permute

few = settings(max_examples=40, deadline=None)


@few
@given(size=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
def test_permute_is_a_permutation(size: int, key: int) -> None:
    sent = permute(np.arange(size), size, hash64(key))
    assert sorted(sent.tolist()) == list(range(size))


def test_permute_of_many_sizes_at_once_is_each_of_them() -> None:
    sizes = np.array([1, 2, 3, 100, 4097, 2**40])
    index = sizes - 1
    keys = hash64(7, np.arange(len(sizes)))
    one_by_one = [int(permute(index[i : i + 1], int(sizes[i]), keys[i])[0]) for i in range(len(sizes))]
    assert permute(index, sizes, keys).tolist() == one_by_one


@pytest.mark.parametrize("size", [2, 3, 5, 8, 12])
def test_permutations_of_different_keys_are_spread_evenly(size: int) -> None:
    keys = 4000
    index = np.tile(np.arange(size), keys)
    sent = permute(index, size, np.repeat(hash64(np.arange(keys)), size)).reshape(keys, size)
    expected = keys / size
    counts = np.array([np.bincount(sent[:, place], minlength=size) for place in range(size)])
    assert np.all(np.abs(counts - expected) < 5 * np.sqrt(expected)), counts
    following = np.mean((sent[:, 1] - sent[:, 0]) % size == 1)
    assert abs(following - 1 / (size - 1 if size > 1 else 1)) < 0.05


def test_values_do_not_change_between_versions() -> None:
    # A run that is resumed after an upgrade must meet the order it left.
    assert permute(np.arange(10), 10, hash64(1, 2)).tolist() == [6, 2, 0, 9, 7, 1, 5, 4, 8, 3]
    order = MixtureOrder([3, 5], [3, 5], seed=0).addresses(0, 6)
    assert order.tolist() == [[1, 3], [0, 2], [1, 1], [0, 1], [1, 0], [1, 2]]


mixtures = st.lists(st.tuples(st.integers(1, 60), st.floats(0.5, 50)), min_size=1, max_size=6)


@few
@given(mixture=mixtures, seed=st.integers(-5, 2**63), start=st.integers(0, 10**12))
def test_any_part_of_the_order_is_that_part(mixture: list[tuple[int, float]], seed: int, start: int) -> None:
    sizes, rates = zip(*mixture, strict=True)
    order, again = (MixtureOrder(sizes, rates, seed) for _ in range(2))
    whole = order.addresses(start, start + 50)
    np.testing.assert_array_equal(again.addresses(start + 20, start + 30), whole[20:30])
    assert again[start + 7] == tuple(whole[7])
    assert np.all(whole >= 0)
    assert np.all(whole[:, 1] < np.array(sizes)[whole[:, 0]])


@few
@given(sizes=st.lists(st.integers(1, 60), min_size=1, max_size=6), seed=st.integers(0, 100), epochs=st.integers(1, 3))
def test_proportional_rates_give_every_example_once_an_epoch(sizes: list[int], seed: int, epochs: int) -> None:
    order = MixtureOrder(sizes, [0.1 * size for size in sizes], seed, epochs)
    everything = sorted((task, example) for task, size in enumerate(sizes) for example in range(size))
    assert order.length == epochs * len(everything)
    passes = [order.addresses(epoch * len(everything), (epoch + 1) * len(everything)) for epoch in range(epochs)]
    for one in passes:
        assert sorted(map(tuple, one.tolist())) == everything
    assert len(order.addresses(order.length, order.length + 10)) == 0
    assert len(order.addresses(order.length - 1, order.length + 10)) == 1
    with pytest.raises(IndexError):
        order[order.length]


@few
@given(mixture=mixtures, seed=st.integers(0, 100))
def test_over_whole_blocks_a_task_uses_its_examples_evenly(mixture: list[tuple[int, float]], seed: int) -> None:
    sizes, rates = zip(*mixture, strict=True)
    order = MixtureOrder(sizes, rates, seed)
    blocks = max(1, min(5, 20_000 // order.block))
    addresses = order.addresses(0, blocks * order.block)
    for task, size in enumerate(sizes):
        times = np.bincount(addresses[addresses[:, 0] == task, 1], minlength=size)
        assert times.max() - times.min() <= 1


def test_epochs_and_seeds_are_shuffled_differently() -> None:
    sizes, rates = [500, 300], [500, 300]
    order = MixtureOrder(sizes, rates, seed=0)
    first, second = order.addresses(0, 800), order.addresses(800, 1600)
    other = MixtureOrder(sizes, rates, seed=1).addresses(0, 800)
    for one, two in ((first, second), (first, other), (second, other)):
        assert np.mean(np.all(one == two, axis=1)) < 0.02
    # Globally shuffled: tasks and examples do not come in their own order.
    assert 0.4 < np.mean(np.diff(first[first[:, 0] == 0, 1]) > 0) < 0.6
    assert abs(np.mean(first[:400, 0]) - np.mean(first[400:, 0])) < 0.15


@pytest.mark.parametrize(
    ("sizes", "rates"),
    [([10, 10], [1, 3]), ([3, 2000, 50], [1, 1, 1]), ([5, 5], [1, 1000]), ([100] * 30, list(range(1, 31)))],
)
def test_rates_are_realised(sizes: Sequence[int], rates: Sequence[float]) -> None:
    order = MixtureOrder(sizes, rates, seed=3)
    wanted = np.array(rates) / sum(rates)
    np.testing.assert_allclose(order.shares, wanted, rtol=0.011)
    drawn = order.addresses(0, 100_000)[:, 0]
    counted = np.bincount(drawn, minlength=len(rates)) / len(drawn)
    np.testing.assert_allclose(counted, wanted, rtol=0.02, atol=0.002)


def test_a_task_of_rate_zero_never_comes() -> None:
    order = MixtureOrder([10, 0, 10], [1, 0, 0], seed=0, epochs=2)
    assert order.length == 20
    assert set(order.addresses(0, 20)[:, 0].tolist()) == {0}


@pytest.mark.parametrize("cap", [None, 500])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_proportional_rates_are_those_of_seqio(cap: int | None, temperature: float, scale: float) -> None:
    seqio = pytest.importorskip("seqio")

    class Task:
        cache_dir = "somewhere"

        def __init__(self, examples: int):
            self.examples = examples

        def get_cached_stats(self, split: str) -> dict[str, int]:
            return {"examples": self.examples}

    sizes = [3, 200, 499, 500, 501, 10**6]
    reference = [seqio.mixing_rate_num_examples(Task(size), cap, scale, temperature) for size in sizes]
    proportional = Proportional(cap=cap, temperature=temperature, scale=scale)
    assert resolve_rates(proportional, [str(size) for size in sizes], sizes, [None] * len(sizes)) == reference


NAMES, SIZES = ["add", "sort", "count"], [10, 20, 0]


def test_rates_resolve() -> None:
    assert resolve_rates("mixture", NAMES[:2], SIZES[:2], [2, 0.5]) == [2.0, 0.5]
    assert resolve_rates("mixture", NAMES, SIZES, [None] * 3) == [10.0, 20.0, 0.0]
    assert resolve_rates({"add": 1, "sort": 0, "count": 0}, NAMES, SIZES, [None] * 3) == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("rates", "registered", "message"),
    [
        ({"add": 1, "sort": 1, "coutn": 1}, None, r"'coutn', which is not in the mixture \(did you mean 'count'\?\)"),
        ({"add": 1}, None, "rates lack sort, count"),
        ({"add": 1, "sort": 1, "count": 1}, None, "'count' has rate 1.0 but no examples"),
        ({"add": 0, "sort": 0, "count": 0}, None, "all 3 tasks .* rate 0"),
        ({"add": -1, "sort": 0, "count": 0}, None, "'add' has rate -1"),
        ({"add": float("nan"), "sort": 0, "count": 0}, None, "'add' has rate nan"),
        ("mixture", [1.0, None, 1.0], "'sort' is registered without a rate"),
        ("proportional", [1.0] * 3, "give 'mixture'"),
    ],
)
def test_rates_that_do_not_fit(rates: object, registered: list[float | None] | None, message: str) -> None:
    with pytest.raises(MixingError, match=message):
        resolve_rates(rates, NAMES, SIZES, registered or [None] * 3)


def test_what_cannot_be_an_order() -> None:
    with pytest.raises(MixingError, match="mixture is empty"):
        resolve_rates("mixture", [], [], [])
    with pytest.raises(MixingError, match="nothing to train on"):
        MixtureOrder([10], [0], seed=0)
    with pytest.raises(MixingError, match="epochs=0"):
        MixtureOrder([10], [1], seed=0, epochs=0)
    with pytest.raises(MixingError, match="positive"):
        Proportional(temperature=0)


def test_a_thousand_tasks_share_a_block() -> None:
    sizes = np.random.default_rng(0).integers(1, 2000, 1000).tolist()
    rates = resolve_rates(Proportional(cap=300), [str(i) for i in range(1000)], sizes, [None] * 1000)
    drawn = collections.Counter(MixtureOrder(sizes, rates, seed=0).addresses(10**9, 10**9 + 50_000)[:, 0].tolist())
    assert len(drawn) > 950
    assert max(drawn.values()) < 2.2 * 50_000 * 300 / sum(rates)
