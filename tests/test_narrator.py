"""What a run tells: the answers of every evaluation are kept once, whatever a kill did to the file or to the steps."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from flanjax.console import Console
from flanjax.evaluation.answers import Answer, Question, Report
from flanjax.evaluation.metrics import score
from flanjax.narrator import Narrator


def report(mixture: str, step: int) -> Report:
    """One answer, which says where it comes from."""
    question = Question(task=f"{mixture}_task", inputs=(1,), prompt="prompt", references=("wanted",))
    answer = Answer(question=question, text=f"{mixture} at {step}")
    overall = score([answer.text], [question.references])
    return Report(
        answers=(answer,), scores=({"exact_match": 0.0},), overall=overall, by_task={f"{mixture}_task": overall}
    )


def narrator(folder: Path, *mixtures: str) -> Narrator:
    evaluation = SimpleNamespace(metrics=("exact_match",))
    return Narrator(
        Console(),
        SimpleNamespace(
            run=SimpleNamespace(model_dir=str(folder), evaluation=evaluation),
            evaluators={mixture: SimpleNamespace(report=None) for mixture in mixtures},
        ),
    )


def evaluate(told: Narrator, step: int) -> None:
    """As the training loop does it: all are measured, then all are told."""
    for mixture, evaluator in told._prepared.evaluators.items():
        evaluator.report = report(mixture, step)
    for mixture in told._prepared.evaluators:
        told.logged(step, mixture, {"loss": 1.0})


def kept(folder: Path) -> list[tuple[int, str, str]]:
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    return [(line["step"], line["mixture"], line["answer"]) for line in lines]


def expected(steps: list[int], mixtures: tuple[str, ...]) -> list[tuple[int, str, str]]:
    return [(step, mixture, f"{mixture} at {step}") for step in steps for mixture in mixtures]


def test_a_cut_line_is_passed_over(tmp_path: Path) -> None:
    told = narrator(tmp_path, "a")
    evaluate(told, 0)
    evaluate(told, 2)
    path = tmp_path / "samples.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    narrator(tmp_path, "a").answers()
    evaluate(narrator(tmp_path, "a"), 4)
    assert kept(tmp_path) == expected([0, 4], ("a",))


@pytest.mark.parametrize("mixtures", [("a", "b"), ("b", "a"), ("b", "c", "a")], ids="".join)
def test_every_evaluation_keeps_the_answers_of_all_mixtures_once(tmp_path: Path, mixtures: tuple[str, ...]) -> None:
    told = narrator(tmp_path, *mixtures)
    for step in (0, 2, 4):
        evaluate(told, step)
    assert kept(tmp_path) == expected([0, 2, 4], mixtures)


@pytest.mark.parametrize("mixtures", [("a", "b"), ("b", "a")], ids="".join)
def test_a_run_that_goes_on_from_before_leaves_out_what_will_come_again(
    tmp_path: Path, mixtures: tuple[str, ...]
) -> None:
    for step in (0, 2, 4, 6):
        evaluate(narrator(tmp_path, *mixtures), step)
    resumed = narrator(tmp_path, *mixtures)
    evaluate(resumed, 4)
    assert kept(tmp_path) == expected([0, 2, 4], mixtures)
