"""A measurement goes on from the answers that it has, wherever it was cut, and ends as one that was never cut."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flanjax.evaluation.benchmark import Benchmark, BenchmarkError, Instance, Mode, Written
from flanjax.evaluation.held_out import read_text, score_text
from flanjax.evaluation.measuring import ask, chosen, measure, questions_of

COUNT, AT_ONCE = 11, 4


def instances() -> Iterator[Instance]:
    for number in range(COUNT):
        yield Instance(
            id=f"q{number}", task=f"t{number % 2}", prompt=f"{number}\u2028", references=("a",), choices=("a", "b")
        )


def benchmark(mode: Mode) -> Benchmark:
    return Benchmark(
        name="made-up", load=instances, read=read_text, score=score_text, metrics=("exact_match",), mode=mode
    )


@dataclasses.dataclass
class Told:
    """Answers that depend on who is asked together, as rounding may have it, and notes who was."""

    batches: list[list[str]] = dataclasses.field(default_factory=list)

    def generate(self, asked: Sequence[Instance], max_new_tokens: int, stop: Sequence[str]) -> list[Written]:
        self.batches.append([each.id for each in asked])
        return [Written(f"{each.id}\n\u2028 of {len(asked)}", -1 / 3 / len(asked)) for each in asked]

    def loglikelihoods(self, asked: Sequence[Instance]) -> list[tuple[float, ...]]:
        self.batches.append([each.id for each in asked])
        return [(-1 / 3 / len(asked), float("-inf")) for _ in asked]


@pytest.mark.parametrize("mode", ["generate", "choices"])
@given(cut=st.integers(0, 1200))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_cut_anywhere_it_ends_the_same_and_asks_for_nothing_twice(mode: Mode, cut: int, tmp_path: Path) -> None:
    file, whole = tmp_path / "made-up.answers.jsonl", Told()
    file.unlink(missing_ok=True)

    def plain(model: Told) -> list[tuple[str, str, float | None, tuple[float, ...]]]:
        return [
            (p.id, p.text, p.text_loglikelihood, p.loglikelihoods)
            for p in ask(benchmark(mode), model, file=file, at_once=AT_ONCE)
        ]

    expected = plain(whole)
    content = file.read_bytes()
    file.write_bytes(content[:cut])
    resumed = Told()
    assert plain(resumed) == expected
    kept = min(content[:cut].count(b"\n"), COUNT)
    if content[:cut].endswith(b"}"):
        kept += 1  # a line that wants only its end is whole
    done = kept if kept == COUNT else kept // AT_ONCE * AT_ONCE
    assert resumed.batches == whole.batches[-(-done // AT_ONCE) :]
    assert [json.loads(line)["id"] for line in file.read_bytes().split(b"\n")[:-1]] == [f"q{i}" for i in range(COUNT)]


def test_answers_to_other_questions_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "made-up.answers.jsonl"
    file.write_text("".join(json.dumps({"id": f"p{i}", "prediction": "x"}) + "\n" for i in range(AT_ONCE)))
    with pytest.raises(BenchmarkError, match=r"answers\.jsonl has an answer to 'p0' where 'q0' is asked: remove it"):
        list(ask(benchmark("generate"), Told(), file=file, at_once=AT_ONCE))


def test_time_is_that_of_all_answers_whenever_they_were_given(tmp_path: Path) -> None:
    file = tmp_path / "made-up.answers.jsonl"
    file.write_text(
        "".join(json.dumps({"id": f"q{i}", "prediction": "x", "seconds": 2.0}) + "\n" for i in range(AT_ONCE))
    )
    measured = measure(benchmark("generate"), lambda form: ask(form, Told(), file=file, at_once=AT_ONCE), len)
    assert measured.seconds == pytest.approx(2.0 * AT_ONCE, abs=0.5)
    assert {"majority-label", "random-label"} <= measured.baselines.keys()


def test_questions_are_known_by_what_is_asked() -> None:
    count, digest = questions_of(benchmark("generate"))
    assert count == COUNT
    other = dataclasses.replace(
        benchmark("generate"),
        load=lambda: (
            dataclasses.replace(each, prompt=each.prompt + " ") if each.id == "q7" else each for each in instances()
        ),
    )
    assert questions_of(other)[1] != digest == questions_of(benchmark("choices"))[1]


def test_one_folder_is_of_one_dataset(test_data: Path) -> None:
    assert chosen(["gsm8k", "gsm8k-direct"], str(test_data / "gsm8k"), limit=2).keys() == {"gsm8k", "gsm8k-direct"}
    with pytest.raises(BenchmarkError, match=r"folder of one dataset, and the suites gsm8k, ifeval are of several"):
        chosen(["gsm8k", "ifeval"], str(test_data / "gsm8k"))
