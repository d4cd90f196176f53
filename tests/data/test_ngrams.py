"""Runs of words are found whatever is around them, likeness is measured as defined, records are read whole."""

import json
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from flanjax.data.draws import Draw
from flanjax.data.ngrams import EvaluationIndex, NearDuplicates, common_runs, evaluation_texts, hashed_words, runs

words = st.lists(st.sampled_from([f"w{number}" for number in range(30)]), max_size=40)


@given(words=words, length=st.integers(1, 15))
def test_equal_runs_have_equal_hashes_and_no_others(words: list[str], length: int) -> None:
    found = runs(hashed_words(" ".join(words)), length).tolist()
    texts = [tuple(words[start : start + length]) for start in range(len(words) - length + 1)]
    assert len(found) == len(texts)
    assert [[one == other for other in found] for one in found] == [[one == other for other in texts] for one in texts]


def test_what_a_word_is() -> None:
    def same(one: str, other: str) -> bool:
        return hashed_words(one).tolist() == hashed_words(other).tolist()

    assert same("The cat, (sat)!", "the CAT sat")
    assert not same("the cat", "cat the")
    assert len(hashed_words("今天天气很好 ok")) == 7
    assert len(hashed_words("")) == 0
    # A digest that changes would change which near duplicates a linter finds.
    assert runs(hashed_words("the cat sat"), 2).tolist() == [669351294395012835, 16110912694600634027]


@settings(deadline=None)
@given(before=words, shared=st.lists(st.sampled_from("abcdefgh"), min_size=13, max_size=20), after=words)
def test_a_shared_run_is_found_wherever_it_is(before: list[str], shared: list[str], after: list[str]) -> None:
    index = EvaluationIndex([("other", "z " * 20), ("exam", " ".join(["x", *shared, "y"]))])
    overlap = index.overlap(hashed_words(" ".join([*before, *shared, *after])))
    assert overlap is not None
    assert overlap.place == "exam"
    assert overlap.runs >= len(shared) - 12
    assert overlap.of == max(len(before) + len(shared) + len(after) - 12, 0)
    assert index.overlap(hashed_words(" ".join([*before, *shared[:12], *after]))) is None or shared[12] in after[:1]


def test_what_many_evaluation_texts_have_is_their_format() -> None:
    head = "answer the following question by naming one of the four options that are given below"
    texts = [(f"exam:{number}", f"{head} {' '.join(f'q{number}w{n}' for n in range(15))}") for number in range(11)]
    assert EvaluationIndex(texts).overlap(hashed_words(head)) is None
    assert EvaluationIndex(texts[:10]).overlap(hashed_words(head)) is not None
    assert EvaluationIndex(texts).overlap(hashed_words(texts[7][1])).place == "exam:7"
    assert EvaluationIndex([]).overlap(hashed_words(head)) is None


def similar_pair(number: int, jaccard: float, size: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Two sets of runs of which so large a part of the union is in both."""
    draw = Draw("pair", number)
    union = np.array([draw.below(1 << 62) for _ in range(size)], dtype=np.uint64)
    both = round(jaccard * size)
    middle = both + (size - both) // 2
    return union[:middle], np.concatenate([union[:both], union[middle:]])


def test_alike_texts_are_found_and_unlike_ones_are_not() -> None:
    found = {}
    for jaccard in (0.2, 0.5, 0.9):
        near = NearDuplicates()
        hits = []
        for number in range(200):
            one, other = similar_pair(number, jaccard)
            assert near.add(one, ("first", number)) is None
            hits.append(near.add(other, ("second", number)))
        assert set(hits) <= {None, *(("first", number) for number in range(200))}
        assert all(hit in (None, ("first", number)) for number, hit in enumerate(hits))
        found[jaccard] = sum(hit is not None for hit in hits) / 200
    assert found[0.9] > 0.95
    assert found[0.5] < 0.05
    assert found[0.2] == 0


def test_few_runs_are_not_compared() -> None:
    near = NearDuplicates()
    assert [near.add(np.arange(7, dtype=np.uint64), number) for number in range(2)] == [None, None]
    assert [near.add(np.arange(8, dtype=np.uint64), number) for number in range(2)] == [None, 0]


def test_runs_of_a_template() -> None:
    texts = [np.array([1, 1, 2, 100 + number], dtype=np.uint64) for number in range(6)]
    assert common_runs(texts).tolist() == [1, 2]
    assert common_runs(texts[:3]).tolist() == [], "three texts have no template"
    many = [np.array([number // 5], dtype=np.uint64) for number in range(200)]
    assert common_runs(many).tolist() == [], "five of two hundred are not so many"


def test_texts_of_records(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(
        json.dumps(
            {"name": "exam", "examples": [{"input": "one", "target": "1"}, {"input": "two", "options": ["x", "y"]}]}
        )
    )
    (tmp_path / "b.csv").write_text("who,what\nann,a\nbob,b\n")
    (tmp_path / "c.jsonl").write_text('{"q": "three", "n": 3}\n')
    found = [(place.removeprefix(f"{tmp_path}/"), text) for place, text in evaluation_texts(str(tmp_path))]
    assert found == [
        ("a.json:1", "one\n1"),
        ("a.json:1, text 2", "two\nx\ny"),
        ("a.json:1, text 3", "exam"),
        ("b.csv:1", "who what"),
        ("b.csv:2", "ann\na"),
        ("b.csv:3", "bob\nb"),
        ("c.jsonl:1", "three"),
    ]


def test_every_mmlu_question_is_there(test_data: Path) -> None:
    texts = list(evaluation_texts(str(test_data / "mmlu" / "data" / "test" / "a*_test.csv")))
    lines = sum(1 for file in (test_data / "mmlu" / "data" / "test").glob("a*_test.csv") for _ in _rows(file))
    assert len(texts) == lines > 300


def _rows(file: Path) -> list[list[str]]:
    import csv

    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.reader(stream))
