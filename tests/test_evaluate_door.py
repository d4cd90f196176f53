"""`python -m flanjax.evaluate`: published test sets asked of tiny models, the report, and two runs compared."""

import dataclasses
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import flanjax
from flanjax import evaluate
from flanjax.data.tasks import Turn
from flanjax.data.vocabularies import Vocabulary, train_vocabulary
from flanjax.evaluation.asking import Asked
from flanjax.evaluation.benchmark import Benchmark, BenchmarkError, Instance, read_predictions
from flanjax.evaluation.benchmark import evaluate as scored
from flanjax.evaluation.calibration import confidences_of, expected_calibration_error
from flanjax.evaluation.gsm8k import gsm8k
from flanjax.evaluation.suites import SUITES, first_of_each_task
from flanjax.interchange.any_model import write_hf_model
from flanjax.models.config import T5Config
from flanjax.models.decoder_config import DecoderConfig
from flanjax.models.model import ModelConfig, init_params

T5 = T5Config(
    vocab_size=64, embed_dim=16, num_heads=2, head_dim=4, mlp_dim=24, num_encoder_layers=1, num_decoder_layers=1
)
DECODER = DecoderConfig(
    vocab_size=64, embed_dim=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=24, init_stddev=0.2
)

GPT2 = dataclasses.replace(
    DECODER,
    num_kv_heads=2,
    norm="layer",
    mlp_activations=("gelu",),
    qkv_bias=True,
    out_bias=True,
    mlp_bias=True,
    positions="learned",
    max_positions=4096,
)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    texts = [f"Question {i}: which of these is {i * 7}? Answer (A) yes, (B) no" for i in range(40)]
    return train_vocabulary(texts, 40, tmp_path_factory.mktemp("vocabulary") / "spiece.model", extra_ids=10)


def folder_of(config: ModelConfig, vocabulary: Vocabulary, folder: Path, seed: int = 3) -> Path:
    write_hf_model(folder, config, jax.tree.map(np.asarray, init_params(config, seed)), vocabulary)
    return folder


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory, vocabulary: Vocabulary) -> Path:
    return folder_of(T5, vocabulary, tmp_path_factory.mktemp("models") / "t5")


@pytest.fixture(scope="module")
def mmlu(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two subjects."""
    folder = tmp_path_factory.mktemp("mmlu")
    for split in ("dev", "test"):
        (folder / split).mkdir()
        for subject in ("anatomy", "virology"):
            name = f"{subject}_{split}.csv"
            (folder / split / name).symlink_to(test_data / "mmlu" / "data" / split / name)
    return folder


def run(*flags: str) -> int:
    return evaluate.main(flags)


@pytest.fixture(scope="module")
def report(t5: Path, mmlu: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("reports") / "first"
    flags = (f"--model={t5}", "--suite=mmlu-flan", f"--data={mmlu}", f"--output={output}", "--limit=4")
    assert run(*flags, "--perturb=lower_case") == 0
    return output


def test_a_report_has_the_figures_of_the_answers_beside_guesses_and_other_forms(report: Path, mmlu: Path) -> None:
    (found,) = json.loads((report / "report.json").read_text())["benchmarks"]
    benchmark = first_of_each_task(SUITES["mmlu-flan"].benchmark(str(mmlu)), 4)
    again = scored(benchmark, read_predictions(report / f"{benchmark.name}.answers.jsonl"))
    assert found["instances"] == len(again.outcomes) == 8
    assert found["metrics"]["accuracy"]["mean"] == pytest.approx(again.average("accuracy"), abs=1e-4)
    assert {"majority-label", "random-label"} <= found["baselines"].keys()
    assert found["robustness"].keys() == {"lower_case", "worst of all"}
    confidences, right = confidences_of(again)
    calibration = expected_calibration_error(confidences, right)
    assert calibration > 0
    assert found["calibration"]["ece_10_bin"] == pytest.approx(calibration, abs=1e-4)
    assert "mmlu-flan" in (report / "report.md").read_text()
    assert "<html" in (report / "report.html").read_text()


@pytest.mark.parametrize("config", [T5, DECODER], ids=["t5", "decoder"])
def test_choices_get_their_log_likelihood_after_the_prompt(
    config: ModelConfig, vocabulary: Vocabulary, mmlu: Path, tmp_path: Path
) -> None:
    model = flanjax.load(folder_of(config, vocabulary, tmp_path / "model"))
    instance = next(SUITES["mmlu-flan"].benchmark(str(mmlu)).load())
    (found,) = evaluate._asked(model, chat=False, batch_size=16).loglikelihoods([instance])
    alone = [
        model.score_continuations([instance.prompt], [f" {choice}"], batch_size=1)[0] for choice in instance.choices
    ]
    np.testing.assert_allclose(found, alone, rtol=1e-5)
    np.testing.assert_allclose(found, model.score([instance.prompt] * 4, instance.choices, eos=False), rtol=1e-5)
    assert len(set(found)) > 1


def test_a_chat_is_asked_in_the_models_own_template(t5: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(t5, tmp_path / "chat")
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %} yes")
    model, asked = (
        flanjax.load(folder),
        [
            Instance(id="a", task="t", prompt="Question 3: which"),
            Instance(
                id="b", task="t", prompt="", turns=(Turn(role="user", text="Answer"), Turn(role="assistant", text="no"))
            ),
        ],
    )
    written = evaluate._asked(model, chat=True, batch_size=2).generate(asked, 6, ())
    assert all(one.loglikelihood < 0 for one in written if one.loglikelihood is not None)
    found = [one.text for one in written]
    assert found == model.generate(["Question 3: which yes", "Answerno yes"], 6)
    messages = [[{"role": turn.role, "content": turn.text} for turn in each.conversation] for each in asked]
    assert found == model.chat(messages, 6)
    with pytest.raises(BenchmarkError, match="brings no chat template"):
        evaluate._asked(flanjax.load(t5), chat=True, batch_size=2)


def test_texts_are_generated_up_to_a_stop(
    t5: Path, test_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a letter of a model that knows nothing: its first answer says which."""
    data, output, name = test_data / "gsm8k", tmp_path / "report", "gsm8k-direct"
    benchmark = first_of_each_task(SUITES[name].benchmark(str(data)), 3)
    whole = flanjax.load(t5).generate([each.prompt for each in benchmark.load()], benchmark.max_new_tokens)
    stop = whole[0][len(whole[0]) // 2]

    def stopping(folder: Path) -> Benchmark:
        return dataclasses.replace(gsm8k(folder, prompting="direct"), stop=(stop,))

    monkeypatch.setitem(SUITES, name, dataclasses.replace(SUITES[name], make=stopping))
    assert run(f"--model={t5}", f"--suite={name}", f"--data={data}", f"--output={output}", "--limit=3") == 0
    (found,) = json.loads((output / "report.json").read_text())["benchmarks"]
    assert (found["benchmark"], found["instances"]) == ("gsm8k-direct-5shot", 3)
    assert found["probes"].keys() == {"delusive examples"}
    kept = list(read_predictions(output / "gsm8k-direct-5shot.answers.jsonl"))
    assert [each.text for each in kept] == [text.split(stop)[0] for text in whole] != whole
    assert found["metrics"]["exact_match"]["mean"] == scored(benchmark, kept).average("exact_match")


def test_a_report_of_super_ni_has_its_probes_what_was_cut_and_what_it_was_measured_with(
    t5: Path, test_data: Path, tmp_path: Path
) -> None:
    output, words = tmp_path / "report", tmp_path / "words.json"
    words.write_text('{"the": ["da"]}')
    flags = (f"--model={t5}", "--suite=super_ni", f"--data={test_data / 'super_natural_instructions'}", "--limit=2")
    assert run(*flags, f"--perturb=dialect:{words}", f"--output={output}") == 0
    report = json.loads((output / "report.json").read_text())
    assert report["facts"]["jax"] == jax.__version__
    assert report["facts"]["parameters"] == f"{sum(leaf.size for leaf in jax.tree.leaves(init_params(T5, 3))):,}"
    (found,) = report["benchmarks"]
    assert found["probes"].keys() == {"simplified definition", "delusive examples"}
    for probe in found["probes"].values():
        figure = probe["rougeL"]
        assert figure["mean"] - figure["difference"] == pytest.approx(found["metrics"]["rougeL"]["mean"], abs=1e-3)
    assert 100 < found["lengths"]["mean"] <= found["lengths"]["longest"] <= 1024
    assert found["lengths"]["cut"] == 0
    assert found["efficiency"]["prompt_tokens_per_second"] > found["efficiency"]["answer_tokens_per_second"] > 0
    assert found["robustness"].keys() == {f"dialect:{words}", "worst of all"}
    assert "| the model, delusive examples |" in (output / "report.md").read_text()


def test_two_runs_are_compared_on_the_same_questions(
    report: Path, t5: Path, vocabulary: Vocabulary, mmlu: Path, tmp_path: Path
) -> None:
    """From what they kept: the data of one are gone."""
    other, data = folder_of(T5, vocabulary, tmp_path / "other", seed=4), shutil.copytree(mmlu, tmp_path / "data")
    second = tmp_path / "mine" / report.name
    flags = ("--suite=mmlu-flan", f"--data={data}", "--limit=4")
    assert run(f"--model={other}", *flags, f"--output={second}") == 0
    shutil.rmtree(data)

    def compared(one: Path, two: Path, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        assert run("--compare", str(one), str(two), f"--output={tmp_path / name}") == 0
        comparison = json.loads((tmp_path / name / "comparison.json").read_text())
        (gain,) = comparison["metrics"]
        return comparison, gain

    _, same = compared(report, report, "same")
    assert (same["difference"], same["better"], same["worse"], same["p_value"]) == (0.0, 0, 0, 1.0)
    comparison, gain = compared(second, report, "both")
    assert (comparison["first"], comparison["second"]) == ("mine/first", f"{report.parent.name}/first")
    assert "| mine/first |" in (tmp_path / "both" / "comparison.md").read_text()
    assert gain["difference"] == pytest.approx(gain["second"] - gain["first"], abs=1e-3)
    assert gain["better"] + gain["worse"] + gain["equal"] == 8
    assert (same["prompts"], gain["prompts"]) == ("the same", "the same")


def test_of_two_runs_that_were_not_asked_alike_a_comparison_says_so(
    report: Path, t5: Path, mmlu: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shutil.copytree(mmlu, tmp_path / "data")
    question = next((data / "test").iterdir())
    question.write_text("x" + question.read_text())
    flags = (f"--model={t5}", "--suite=mmlu-flan", f"--data={data}", "--limit=4")
    assert run(*flags, f"--output={tmp_path / 'edited'}") == 0
    in_chat = shutil.copytree(report, tmp_path / "chat")
    settings = json.loads((report / "evaluation.json").read_text())
    (in_chat / "evaluation.json").write_text(json.dumps(settings | {"chat": True}))
    capsys.readouterr()
    for other, said in ((tmp_path / "edited", "other ones"), (in_chat, "one in a chat template")):
        (gain,) = evaluate.compare(report, other, tmp_path / "both")
        assert gain["prompts"] == said
        assert run("--compare", str(report), str(other), f"--output={tmp_path / 'both'}") == 0
        assert said in capsys.readouterr().out
        assert f"| {said} |" in (tmp_path / "both" / "comparison.md").read_text()


def test_a_question_beyond_the_positions_of_a_model_is_refused_before_any_is_asked(
    vocabulary: Vocabulary, mmlu: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = dataclasses.replace(GPT2, max_positions=100)
    for config, status in ((short, 2), (GPT2, 0)):
        folder = folder_of(config, vocabulary, tmp_path / str(config.max_positions))
        output = tmp_path / f"report_{config.max_positions}"
        assert (
            run(f"--model={folder}", "--suite=mmlu-flan", f"--data={mmlu}", f"--output={output}", "--limit=2") == status
        )
        error = capsys.readouterr().err
        assert ("mmlu-flan-0shot, anatomy/0: " in error and "(max_positions)" in error) == (status == 2)
        assert output.exists() == (status == 0)


def test_what_cannot_be_measured_is_refused_before_the_model_is_read(
    mmlu: Path, report: Path, test_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = tmp_path / "none"
    for flags, said in {
        ("--suite=mlmu", f"--data={mmlu}"): "did you mean 'mmlu'?",
        ("--suite=mmlu", f"--data={nowhere}"): f"{nowhere}: there is nothing",
        ("--suite=mmlu", "--suite=bbh", f"--data={mmlu}"): "folder of one dataset",
        ("--suite=mmlu", f"--data={mmlu}", "--chat"): "leave --chat out",
        ("--suite=mmlu", f"--data={mmlu}", "--limit=0"): "1 at the least",
        ("--suite=mmlu", f"--data={mmlu}", "--perturb=typo"): "no perturbation 'typo'",
        ("--suite=flan2021", f"--data={test_data / 'classic'}", "--perturb=space"): "leave --perturb out",
    }.items():
        assert run(f"--model={nowhere}", *flags, f"--output={tmp_path / 'report'}") == 2
        assert said in capsys.readouterr().err
    assert run(f"--model={nowhere}", "--suite=mmlu", f"--data={mmlu}", "--output=gs://bucket/report") == 2
    assert "gs://bucket/report is an address" in capsys.readouterr().err
    assert run("--compare", str(report), str(nowhere), f"--output={tmp_path / 'report'}") == 2
    assert "no evaluation lies there" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


ANSWERS = "mmlu-flan-0shot.answers.jsonl"


def without_times(folder: Path) -> tuple[object, list[object]]:
    """A report and its answers without what the clock said."""
    summary = json.loads((folder / "report.json").read_text())
    for each in summary["benchmarks"]:
        del each["efficiency"]
    lines = [json.loads(line) for line in (folder / ANSWERS).read_text().splitlines()]
    return summary, [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def test_an_evaluation_that_was_killed_goes_on_and_ends_as_one_that_was_not(
    t5: Path, mmlu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = (f"--model={t5}", "--suite=mmlu-flan", f"--data={mmlu}", "--limit=90")
    assert run(*flags, f"--output={tmp_path / 'whole'}") == 0
    command = [sys.executable, "-m", "flanjax.evaluate", *flags, f"--output={tmp_path / 'killed'}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    answers = tmp_path / "killed" / ANSWERS
    while not (answers.exists() and answers.read_bytes().count(b"\n")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    process.kill()
    process.wait()
    there = answers.read_bytes()
    assert b'"scores"' not in there, "it was done before it was killed"
    answers.write_bytes(there[:-5])  # as a kill may cut the last line short
    kept = there[:-5].count(b"\n") // 64 * 64
    asked: list[int] = []
    loglikelihoods = Asked.loglikelihoods

    def counted(self: Asked, instances: Sequence[Instance]) -> list[tuple[float, ...]]:
        asked.append(len(instances))
        return loglikelihoods(self, instances)

    monkeypatch.setattr(Asked, "loglikelihoods", counted)
    assert run(*flags, f"--output={tmp_path / 'killed'}") == 0
    assert sum(asked) == 180 - kept
    assert without_times(tmp_path / "killed") == without_times(tmp_path / "whole")
    assert run(*flags, f"--output={tmp_path / 'killed'}") == 0
    assert sum(asked) == 180 - kept, "what is whole is not asked again"
    assert without_times(tmp_path / "killed") == without_times(tmp_path / "whole")


def test_a_folder_goes_on_with_its_own_model_questions_and_settings_alone(
    report: Path, t5: Path, vocabulary: Vocabulary, mmlu: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = folder_of(T5, vocabulary, tmp_path / "other", seed=4)
    moved = shutil.copytree(t5, tmp_path / "moved")
    before = (report / "report.json").read_bytes()
    flags = ("--suite=mmlu-flan", "--perturb=lower_case", f"--output={report}")
    for model, changed, said in [
        (other, ("--limit=4",), "parameters: it was"),
        (t5, ("--limit=5",), "limit: it was 4, now it is 5"),
        (t5, ("--limit=4", "--seed=1"), "seed: it was 0, now it is 1"),
        (t5, ("--limit=4", "--suite=mmlu"), "suites: it was ['mmlu-flan'], now it is ['mmlu-flan', 'mmlu']"),
    ]:
        assert run(f"--model={model}", *flags, *changed, f"--data={mmlu}") == 2
        error = capsys.readouterr().err
        assert said in error
        assert "give another --output" in error
        assert (report / "report.json").read_bytes() == before
    data = shutil.copytree(mmlu, tmp_path / "data")
    assert run(f"--model={moved}", *flags, "--limit=4", f"--data={data}") == 0, "where they lie is of no account"
    question = next((data / "test").iterdir())
    text = question.read_text()
    question.unlink()
    question.write_text("x" + text)
    assert run(f"--model={t5}", *flags, "--limit=4", f"--data={data}") == 2
    assert "questions: it was" in capsys.readouterr().err


def test_suites_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--suite=list") == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in SUITES)
