"""A pool is a uniform sample that depends on the seed alone, read once, bounded, and silent about bad rows."""

import collections
import json
import subprocess
import sys
from dataclasses import dataclass, field

import pytest

from flanjax.data.exemplars import Exemplars
from flanjax.data.fingerprints import fingerprint
from flanjax.data.records import read_json_lines
from flanjax.data.sources import BadRow, bad_row_policy, text_field


@dataclass(frozen=True)
class Counting:
    """Rows 0 .. count - 1; it notes when it is read."""

    count: int
    reads: list = field(default_factory=list, compare=False)

    def __call__(self, seed):
        self.reads.append(seed)
        return ((f"rows:{number}", {"question": str(number)}) for number in range(self.count))


@dataclass(frozen=True)
class Lines:
    file: str

    def __call__(self, seed):
        return read_json_lines(self.file)


def as_instance(row, place):
    return {"question": text_field(row, "question", place), "answer": "x"}


def odd_ones(row, place):
    return {"question": row["question"], "answer": "x"} if int(row["question"]) % 2 else None


def test_it_is_a_sample_without_repetition_and_bounded():
    for count, size in ((3, 10), (10, 10), (500, 10)):
        pool = Exemplars(source=Counting(count), to_instance=as_instance, size=size).pool(0)
        questions = [instance["question"] for instance in pool]
        assert len(questions) == len(set(questions)) == min(count, size)
        assert set(questions) <= {str(number) for number in range(count)}


def test_it_depends_on_the_seed_alone():
    def pool(seed):
        return Exemplars(source=Counting(500), to_instance=as_instance, size=20).pool(seed)

    assert pool(3) == pool(3)
    assert pool(3) != pool(4)


def test_each_row_is_as_likely_as_another():
    counts = collections.Counter()
    for seed in range(600):
        pool = Exemplars(source=Counting(30), to_instance=as_instance, size=6).pool(seed)
        counts.update(instance["question"] for instance in pool)
    assert len(counts) == 30
    assert min(counts.values()) > 80  # of 120 expected, four standard deviations below
    assert max(counts.values()) < 160


def test_the_split_is_read_once_a_seed():
    source = Counting(50)
    exemplars = Exemplars(source=source, to_instance=as_instance)
    for _ in range(3):
        exemplars.pool(7)
    exemplars.pool(8)
    assert source.reads == [7, 8]


def test_rows_that_are_no_instances_leave_their_place_to_others():
    pool = Exemplars(source=Counting(400), to_instance=odd_ones, size=10).pool(0)
    assert len(pool) == 10
    assert all(int(instance["question"]) % 2 for instance in pool)


@pytest.mark.parametrize("policy", ["error", "skip"])
def test_bad_rows_are_no_exemplars_and_are_not_reported(tmp_path, policy):
    file = tmp_path / "train.jsonl"
    file.write_text('{"question": "a"}\n{"question": 3}\nnot JSON\n{"question": "b"}\n')
    with bad_row_policy(policy) as bad:
        pool = Exemplars(source=Lines(str(file)), to_instance=as_instance).pool(0)
    assert sorted(instance["question"] for instance in pool) == ["a", "b"]
    assert bad.skipped == 0


def test_a_pool_that_was_drawn_leaves_the_fingerprint_as_it_was():
    exemplars = Exemplars(source=Counting(20, reads=[]), to_instance=as_instance)
    before = fingerprint(Exemplars(source=Counting(20), to_instance=as_instance))
    exemplars.pool(0)
    exemplars.source.reads.clear()
    assert fingerprint(exemplars) == before


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(BadRow, match=r"train\.jsonl"):
        Exemplars(source=Lines(str(tmp_path / "train.jsonl")), to_instance=as_instance).pool(0)


def test_another_process_draws_the_same_pool(tmp_path):
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps({"question": str(number)}) + "\n" for number in range(300)))
    program = (
        "import sys, functools; from flanjax.data.exemplars import Exemplars\n"
        "from flanjax.data.records import read_json_lines\n"
        "def source(seed): return read_json_lines(sys.argv[1])\n"
        "def whole(row, place): return row\n"
        "print([row['question'] for row in Exemplars(source=source, to_instance=whole, size=25).pool(5)])"
    )
    here = [row["question"] for row in Exemplars(source=Lines(str(file)), to_instance=as_instance, size=25).pool(5)]
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", program, str(file)],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": hash_seed},
        )
        assert done.stdout.strip() == str(here)
