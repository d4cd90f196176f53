"""Statistics are what counting by hand gives, shares what the loader's order realises, samples what the whole is."""

import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from flanjax.data.cache import CachedMixture
from flanjax.data.mixing import MixingError, MixtureOrder, Proportional, resolve_rates
from flanjax.data.plots import draw_lengths
from flanjax.data.records import read_records
from flanjax.data.sampling import drawn_rows, first_rows
from flanjax.data.sources import BadRow, text_field
from flanjax.data.statistics import cached_statistics, histogram, sampled_statistics
from flanjax.data.tasks import Context, Row, Rows, Text, TextTask
from flanjax.data.vocabularies import Vocabulary

TASKS = {"short": [(5, 2)] * 30, "long": [(5, 98)] * 10 + [(40, 98)] * 10}


def numbers(seed: int, *, count: int) -> Iterator[tuple[str, Row]]:
    del seed
    for number in range(count):
        yield f"numbers:{number + 1}", {"number": number}


def words(row: Row, context: Context) -> Text | None:
    del context
    number = row["number"]
    return Text(inputs="alpha " * (number % 7 + 1), targets="beta" if number % 5 else "") if number % 4 else None


def task(name: str, count: int, splits: tuple[str, ...] = ("train",)) -> TextTask:
    source: Mapping[str, Rows] = {split: functools.partial(numbers, count=count) for split in splits}
    return TextTask(name=name, source=source, render=words)


def test_counts_shares_and_lengths_from_the_index(make_cache: Callable[..., Path]) -> None:
    mixture = CachedMixture.open(make_cache(TASKS, rates={"short": 1.0, "long": 1.0}), "mix", "train")
    found = cached_statistics(mixture)
    short, long = found.tasks
    assert [(one.name, one.examples, one.measured, one.rate) for one in found.tasks] == [
        ("short", 30, 30, 1.0),
        ("long", 20, 20, 1.0),
    ]
    assert (found.examples, short.example_share, long.example_share) == (50, 0.5, 0.5)
    assert short.token_shares == pytest.approx({"inputs": 5 / 27.5, "targets": 0.02})
    assert long.token_shares == pytest.approx({"inputs": 22.5 / 27.5, "targets": 0.98})
    assert (long.mean("inputs"), long.mean("targets"), found.mean("targets")) == (22.5, 98.0, 50.0)
    assert histogram(long, "inputs") == {8: 0.5, 16: 0.0, 32: 0.0, 64: 0.5}
    assert found.histogram("inputs") == {8: 0.75, 16: 0.0, 32: 0.0, 64: 0.25}
    assert sum(found.histogram("targets").values()) == pytest.approx(1)


@pytest.mark.parametrize("rates", [Proportional(cap=25), {"short": 0, "long": 3}, {"short": 1, "long": 7}])
def test_shares_are_those_of_the_order(make_cache: Callable[..., Path], rates: object) -> None:
    mixture = CachedMixture.open(make_cache(TASKS), "mix", "train")
    found = cached_statistics(mixture, rates=rates)
    order = MixtureOrder([30, 20], resolve_rates(rates, ["short", "long"], [30, 20], [None, None]), seed=9)
    drawn = order.addresses(0, 3 * order.block)
    counted = np.bincount(drawn[:, 0], minlength=2) / len(drawn)
    assert [one.example_share for one in found.tasks] == pytest.approx(counted.tolist())
    tokens = np.array([np.mean(TASKS[name], axis=0) for name in ("short", "long")]) * counted[:, None]
    expected = tokens / tokens.sum(axis=0)
    np.testing.assert_allclose([list(one.token_shares.values()) for one in found.tasks], expected)


def test_a_sample_that_is_all_is_exact(tiny_vocabulary: Vocabulary) -> None:
    found = sampled_statistics("made_up", [(task("words", 40), None)], vocabulary=tiny_vocabulary, sample=40)
    kept = [number for number in range(40) if number % 4 and number % 5]
    (one,) = found.tasks
    assert (one.examples, one.measured, one.rate) == (len(kept), len(kept), float(len(kept)))
    expected = [len(tiny_vocabulary.encode("alpha " * (number % 7 + 1))) + 1 for number in kept]
    assert (one.features["inputs"].tokens, one.features["inputs"].max) == (sum(expected), max(expected))


def test_a_sample_estimates_the_whole(tiny_vocabulary: Vocabulary) -> None:
    tasks = [(task("small", 400), None), (task("large", 4000), None)]
    sampled = sampled_statistics("made_up", tasks, vocabulary=tiny_vocabulary, sample=300)
    whole = sampled_statistics("made_up", tasks, vocabulary=tiny_vocabulary, sample=10**6)
    for one, other in zip(sampled.tasks, whole.tasks, strict=True):
        assert one.measured < other.measured == other.examples
        assert one.examples == pytest.approx(other.examples, rel=0.1)
        assert one.example_share == pytest.approx(other.example_share, rel=0.1)
        assert one.mean("inputs") == pytest.approx(other.mean("inputs"), rel=0.1)


def test_tasks_that_give_nothing_are_named(tiny_vocabulary: Vocabulary) -> None:
    tasks = [(task("words", 40), 2.0), (task("empty", 0), 1.0), (task("other", 9, splits=("test",)), 1.0)]
    found = sampled_statistics("made_up", tasks, vocabulary=tiny_vocabulary)
    assert [one.name for one in found.tasks] == ["words"]
    assert found.left_out == (
        ("empty", "no row of split 'train' gave an example"),
        ("other", "it has no split 'train'"),
    )
    with pytest.raises(MixingError, match="the mixture is empty"):
        sampled_statistics("made_up", tasks[1:], vocabulary=tiny_vocabulary)


def broken(row: Row, context: Context) -> Text:
    return Text(inputs=text_field(row, "text", context.place), targets="beta")


def test_malformed_rows_follow_the_policy(tiny_vocabulary: Vocabulary) -> None:
    bad = TextTask(name="bad", source={"train": functools.partial(numbers, count=3)}, render=broken)
    with pytest.raises(BadRow, match="numbers:1: field 'text' is missing"):
        sampled_statistics("made_up", [(bad, None)], vocabulary=tiny_vocabulary)
    tasks = [(bad, None), (task("words", 40), None)]
    found = sampled_statistics("made_up", tasks, vocabulary=tiny_vocabulary, policy="skip")
    assert [name for name, _ in found.left_out] == ["bad"]


def test_drawn_rows_are_in_order_and_each_as_likely() -> None:
    one = task("words", 50)
    assert [number for number, _, _ in first_rows(one, "train", 5, seed=0).rows] == [0, 1, 2, 3, 4]
    drawn = drawn_rows(one, "train", 5, seed=0)
    assert drawn == drawn_rows(one, "train", 5, seed=0)
    assert drawn != drawn_rows(one, "train", 5, seed=1)
    assert drawn.seen == 50
    assert [place for _, place, _ in drawn.rows] == [f"numbers:{number + 1}" for number, _, _ in drawn.rows]
    counts = np.zeros(50)
    for seed in range(400):
        rows = [number for number, _, _ in drawn_rows(one, "train", 5, seed=seed).rows]
        assert rows == sorted(set(rows))
        counts[rows] += 1
    assert np.all(np.abs(counts - 40) < 5 * np.sqrt(40))
    everything = drawn_rows(one, "train", 99, seed=0)
    assert ([number for number, _, _ in everything.rows], everything.seen) == (list(range(50)), 50)


def gsm8k(seed: int, *, file: str) -> Iterator[tuple[str, Row]]:
    del seed
    yield from read_records(file)


def question(row: Row, context: Context) -> Text:
    return Text(inputs=text_field(row, "question", context.place), targets=text_field(row, "answer", context.place))


def test_gsm8k(test_data: Path, t5_spiece: Path, tmp_path: Path) -> None:
    source = {"test": functools.partial(gsm8k, file=str(test_data / "gsm8k" / "test.jsonl"))}
    one = TextTask(name="gsm8k", source=source, render=question)
    vocabulary = Vocabulary.from_file(t5_spiece)
    found = sampled_statistics("gsm8k", [(one, None)], vocabulary=vocabulary, split="test", sample=200)
    assert (found.examples, found.tasks[0].measured) == (1319, 200)
    rows = [row for _, row in read_records(test_data / "gsm8k" / "test.jsonl")]
    mean = np.mean([len(vocabulary.encode(row["question"])) + 1 for row in rows])
    assert found.mean("inputs") == pytest.approx(mean, rel=0.1)


def test_lengths_are_drawn(make_cache: Callable[..., Path], tmp_path: Path) -> None:
    many = {f"task_{number}": [(number + 3, 4)] * (number + 1) for number in range(12)}
    rates = {name: float(number) for number, name in enumerate(many)}
    statistics = cached_statistics(CachedMixture.open(make_cache(many, rates=rates), "mix", "train"))
    draw_lengths(statistics, tmp_path / "pictures" / "lengths.png")
    picture = matplotlib.image.imread(tmp_path / "pictures" / "lengths.png")
    assert picture.shape[:2] == (540, 1200)
    assert picture[..., :3].std() > 0.05, "something is drawn"
    draw_lengths(statistics, tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "pictures" / "lengths.png").read_bytes()
