"""Published test sets on a run's schedule: the figures of `flanjax.evaluate`, interrupted, resumed, the best kept."""

import dataclasses
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flanjax import evaluate
from flanjax.console import Console
from flanjax.data.cache import Example
from flanjax.data.cache_writer import write_mixture, write_split
from flanjax.data.chat_templates import find_template
from flanjax.data.loader import DataConfig
from flanjax.data.vocabularies import Vocabulary, VocabularySource
from flanjax.evaluation import measuring
from flanjax.evaluation.asking import Asked
from flanjax.evaluation.benchmark import BenchmarkError, Instance, Prediction
from flanjax.evaluation.benchmark import evaluate as scored
from flanjax.evaluation.evaluators import EvaluationConfig, EvaluationError
from flanjax.evaluation.measuring import chosen
from flanjax.evaluation.report import Measured
from flanjax.evaluation.run_reports import keep_evaluation
from flanjax.files import read_json_lines
from flanjax.models.config import Compute, T5Config
from flanjax.models.decoder_config import DecoderConfig
from flanjax.narrator import Narrator
from flanjax.run import Prepared, Run, RunError, describe, prepare, train_run
from flanjax.sharding.mesh import MeshConfig
from flanjax.training.checkpoints import whole_steps
from flanjax.training.interfaces import TrainConfig, TrainResult
from flanjax.training.losses import LossConfig
from flanjax.training.optimizers import OptimizerConfig
from flanjax.tuning.prompt import PromptTuning

pytestmark = pytest.mark.usefixtures("quick_compilation")

MODEL = T5Config(
    vocab_size=32128, embed_dim=8, num_heads=2, head_dim=4, mlp_dim=16, num_encoder_layers=1, num_decoder_layers=1
)
DECODER = DecoderConfig(
    vocab_size=32128, embed_dim=8, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=4, mlp_dim=16, init_stddev=0.2
)
LOOP = TrainConfig(train_steps=4, eval_every=2, checkpoint_every=1, log_every=1, keep_latest=1, keep_best=1)
SUITE, CHOICES = "super_ni", "mmlu-flan"


@pytest.fixture(scope="module")
def super_ni(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two short tasks of the official test in a copy of the repository of their own."""
    folder, source = tmp_path_factory.mktemp("super_ni"), test_data / "super_natural_instructions"
    (folder / "splits" / "default").mkdir(parents=True)
    names = [path.name.split(".json")[0] for path in (source / "tasks").iterdir()]
    test = (source / "splits" / "default" / "test_tasks.txt").read_text().split()
    found = sorted({*names} & {*test}, key=lambda name: next((source / "tasks").glob(f"{name}.json*")).stat().st_size)
    (folder / "splits" / "default" / "test_tasks.txt").write_text("".join(f"{name}\n" for name in found[:2]))
    (folder / "tasks").mkdir()
    for name in found[:2]:
        file = next((source / "tasks").glob(f"{name}.json*"))
        (folder / "tasks" / file.name).symlink_to(file)
    return folder


@pytest.fixture(scope="module")
def cache(t5_spiece: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture "mix" with held-out examples, under the real vocabulary, and "chats", which says to have a template."""
    folder, vocabulary = tmp_path_factory.mktemp("cache"), Vocabulary.from_file(t5_spiece)
    for split, count in (("train", 40), ("validation", 4)):
        texts = [{"inputs": f"Say {n}", "targets": str(n)} for n in range(count)]
        examples = (
            Example(
                **{side: np.array([*vocabulary.encode(each[side]), 1]) for side in ("inputs", "targets")},
                text=None if split == "train" else each,
            )
            for each in texts
        )
        made = {"vocabulary_id": vocabulary.identity, "fingerprint": "made up", "seed": 0}
        write_split(folder, "mix_task", split, examples, **made)
    tasks = [{"task": "mix_task", "rate": None, "splits": dict.fromkeys(("train", "validation"), "made up")}]
    write_mixture(folder, "mix", vocabulary, seed=0, tasks=tasks)
    template = find_template("vicuna", vocabulary)
    write_mixture(folder, "chats", vocabulary, seed=0, tasks=tasks, chat_template=template)
    return folder


@pytest.fixture
def run(cache: Path, super_ni: Path, tmp_path: Path) -> Run:
    return Run(
        model_dir=str(tmp_path / "run"),
        model=DECODER,
        compute=Compute(),
        mesh=MeshConfig(),
        init_from=None,
        tasks={},
        vocabulary=VocabularySource(),
        data=DataConfig(mixture="mix", cache_dir=str(cache), feature_lengths={"tokens": 16}, batch_rows=8),
        loss=LossConfig(),
        optimizer=OptimizerConfig(learning_rate=0.01),
        train=LOOP,
        evaluation=EvaluationConfig(questions=0, suites=SUITE, suite_data=str(super_ni), suite_limit=2),
        export_to=None,
    )


def prepared(run: Run, **changes: Any) -> Prepared:
    def materialize(mixtures: Sequence[str]) -> None:
        raise AssertionError(f"{mixtures} are in the cache")

    return prepare(dataclasses.replace(run, **changes), materialize, lambda notice: None)


def trained(run: Run, **changes: Any) -> TrainResult:
    ready = prepared(run, **changes)
    describe(ready, "", "")
    with Console(quiet=True) as console:
        narrator = Narrator(console, ready)
        result = train_run(ready, narrator)
        narrator.answers()
    return result


def log(folder: Path) -> list[tuple[int, str, dict[str, float]]]:
    return [(line["step"], line["split"], line["values"]) for line in read_json_lines(folder / "metrics.jsonl")]


def tensorboard(folder: Path, tag: str) -> list[tuple[int, float]]:
    """The values of a curve, read in a process of its own, for TensorBoard's reader loads TensorFlow."""
    code = (
        "from tensorboard.backend.event_processing.event_accumulator import EventAccumulator\n"
        f"events = EventAccumulator({str(folder / 'tensorboard')!r}); events.Reload()\n"
        f"print([[e.step, e.value] for e in events.Scalars({tag!r})])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [(step, value) for step, value in json.loads(done.stdout.strip().splitlines()[-1])]


def answers(folder: Path) -> list[dict[str, Any]]:
    (file,) = folder.glob("*def_pos2.answers.jsonl")
    return [{key: value for key, value in line.items() if key != "seconds"} for line in read_json_lines(file)]


def assert_same_answers(folder: Path, other: Path) -> None:
    """To rounding in the probabilities: live and loaded parameters lie on other devices, and are other programs'."""
    one, two = answers(folder), answers(other)
    likelihoods = [[answer.pop("text_loglikelihood") for answer in found] for found in (one, two)]
    assert one == two
    assert likelihoods[0] == pytest.approx(likelihoods[1], rel=1e-4)


def test_a_suite_in_training_gives_what_the_door_gives_of_its_checkpoint_and_the_best_is_kept(
    run: Run, super_ni: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training spreads over eight devices, the door takes one."""
    folder = Path(run.model_dir)
    trained(run, train=dataclasses.replace(LOOP, best_metric=f"{SUITE}/rougeL"))
    values = {step: found for step, split, found in log(folder) if split == SUITE}
    assert [*values] == [2, 4]
    assert values[4].keys() == {"rougeL", "exact_match", "rouge1"}
    assert tensorboard(folder, f"{SUITE}/rougeL") == [(step, pytest.approx(values[step]["rougeL"])) for step in values]
    flags = (f"--model={folder}", f"--suite={SUITE}", f"--data={super_ni}", "--limit=2")
    assert evaluate.main((*flags, f"--output={tmp_path / 'door'}")) == 0
    (report,) = json.loads((tmp_path / "door" / "report.json").read_text())["benchmarks"]
    assert {name: each["mean"] for name, each in report["metrics"].items()} == pytest.approx(values[4], abs=1e-4)
    last, best = folder / "evaluations" / "last", folder / "evaluations" / "best"
    assert_same_answers(last, tmp_path / "door")
    assert len(answers(last)) == 4
    assert any(answer["prediction"] for answer in answers(last))
    assert "<html" in (last / "report.html").read_text()
    highest = max(values, key=lambda step: (values[step]["rougeL"], step))
    settings = json.loads((best / "evaluation.json").read_text())
    assert (settings["step"], settings["best"]["value"]) == (highest, values[highest]["rougeL"])
    assert highest in whole_steps(folder / "checkpoints")
    assert evaluate.main(("--compare", str(tmp_path / "door"), str(last), f"--output={tmp_path / 'both'}")) == 0
    compared = json.loads((tmp_path / "both" / "comparison.json").read_text())["metrics"]
    assert [each["difference"] for each in compared] == [0.0] * 3


def test_stopped_within_a_suite_there_is_nothing_of_it_and_resumed_equals_uninterrupted(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    trained(run, model_dir=str(whole))
    asked: list[int] = []
    generate = Asked.generate

    def stopped(self: Asked, instances: Sequence[Instance], *how: Any) -> list[str]:
        asked.append(len(instances))
        if len(asked) == 2:
            signal.raise_signal(signal.SIGTERM)
        return generate(self, instances, *how)

    monkeypatch.setattr(Asked, "generate", stopped)
    result = trained(run, model_dir=str(parts))
    assert (result.step, result.stopped_by) == (4, "SIGTERM")
    assert [line for line in log(parts) if line[0] == 4 and line[1] != "train"] == []
    assert json.loads((parts / "evaluations" / "last" / "evaluation.json").read_text())["step"] == 2
    assert trained(run, model_dir=str(parts)).stopped_by is None
    assert log(parts) == log(whole)
    for kept in ("last", "best"):
        assert answers(parts / "evaluations" / kept) == answers(whole / "evaluations" / kept)
        settings = [json.loads((f / "evaluations" / kept / "evaluation.json").read_text()) for f in (parts, whole)]
        assert settings[0]["step"] == settings[1]["step"]


def test_a_suite_is_asked_in_the_template_of_the_run(run: Run, super_ni: Path, tmp_path: Path) -> None:
    chats = dataclasses.replace(run.data, mixture="chats")
    once = dataclasses.replace(LOOP, train_steps=1, keep_best=0)
    in_template = dataclasses.replace(run.evaluation, suite_chat=True)
    found = {}
    for name, evaluation in {"plain": run.evaluation, "chat": in_template}.items():
        trained(
            run, model_dir=str(tmp_path / name), data=chats, chat_template="vicuna", train=once, evaluation=evaluation
        )
        found[name] = answers(tmp_path / name / "evaluations" / "last")
    assert [each["prediction"] for each in found["plain"]] != [each["prediction"] for each in found["chat"]]
    flags = (f"--model={tmp_path / 'chat'}", f"--suite={SUITE}", f"--data={super_ni}", "--limit=2", "--chat")
    assert evaluate.main((*flags, f"--output={tmp_path / 'door'}")) == 0
    assert_same_answers(tmp_path / "door", tmp_path / "chat" / "evaluations" / "last")


def test_choices_are_scored_on_a_mesh_as_on_one_device(run: Run, test_data: Path, tmp_path: Path) -> None:
    for split in ("dev", "test"):
        (tmp_path / "mmlu" / split).mkdir(parents=True)
        name = f"virology_{split}.csv"
        (tmp_path / "mmlu" / split / name).symlink_to(test_data / "mmlu" / "data" / split / name)
    suites = EvaluationConfig(questions=0, suites=CHOICES, suite_data=str(tmp_path / "mmlu"), suite_limit=5)
    once = dataclasses.replace(LOOP, train_steps=1, keep_best=0)
    for name, config in {"decoder": DECODER, "t5": MODEL}.items():
        lengths = {"tokens": 16} if config is DECODER else {"inputs": 16, "targets": 8}
        data = dataclasses.replace(run.data, feature_lengths=lengths)
        mesh = MeshConfig(data=2, fsdp=2, model=2)
        trained(run, model=config, data=data, evaluation=suites, mesh=mesh, train=once, model_dir=str(tmp_path / name))
        flags = (f"--model={tmp_path / name}", f"--suite={CHOICES}", f"--data={tmp_path / 'mmlu'}", "--limit=5")
        assert evaluate.main((*flags, f"--output={tmp_path / name / 'door'}")) == 0
        found, expected = (
            [line["loglikelihoods"] for line in read_json_lines(next(folder.glob("*.answers.jsonl")))]
            for folder in (tmp_path / name / "evaluations" / "last", tmp_path / name / "door")
        )
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_what_cannot_be_asked_is_refused_at_the_start(run: Run, super_ni: Path, tmp_path: Path) -> None:
    evaluation = run.evaluation
    with pytest.raises(BenchmarkError, match=r"there is no suite 'super-ni' .did you mean 'super_ni'"):
        EvaluationConfig(suites="super-ni")
    with pytest.raises(EvaluationError, match=r"suite_limit is 0: .* at least 1, or None for all"):
        EvaluationConfig(suite_limit=0)
    for changed, said in [
        ({"suite_data": str(tmp_path / "none")}, "none: there is nothing"),
        ({"suites": ("super_ni", "gsm8k")}, "folder of one dataset, and the suites super_ni, gsm8k are of several"),
        ({"suite_chat": True}, "the run has none: set CHAT_TEMPLATE"),
    ]:
        with pytest.raises((BenchmarkError, RunError), match=said):
            prepared(run, evaluation=dataclasses.replace(evaluation, **changed))
    with pytest.raises(
        RunError, match=r"best_metric=super_ni/rogueL: .* mean 'super_ni/rougeL'.*; there are mix/loss,"
    ):
        prepared(run, train=dataclasses.replace(LOOP, best_metric="super_ni/rogueL"))
    short = dataclasses.replace(DECODER, positions="learned", max_positions=200)
    with pytest.raises(BenchmarkError, match=r"super_ni-def_pos2, task\S+: \d+ tokens, and up to 128 of an answer"):
        prepared(run, model=short)
    prompts = PromptTuning(length=2, init="random", tasks=("mix_task",))
    with pytest.raises(Exception, match=r"task 'task\S+' has no prompt"):
        prepared(run, tuning=(prompts,))


def test_without_a_held_out_split_the_best_is_by_the_first_suite(run: Run) -> None:
    ready = prepared(run, evaluation=dataclasses.replace(run.evaluation, split="train_not_there"))
    assert (ready.run.train.best_metric, ready.run.train.lowest_is_best) == ("super_ni/rougeL", False)
    assert (prepared(run).run.train.best_metric, prepared(run).run.train.lowest_is_best) == ("mix/loss", True)


@pytest.mark.parametrize("lowest", [False, True])
def test_the_best_evaluation_is_kept_and_what_a_killed_run_left_is_not(
    lowest: bool, super_ni: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "write_report", lambda folder, *how, **more: (folder / "report.json").touch())
    (benchmark,) = chosen([SUITE], str(super_ni), limit=1).values()
    measured = Measured(
        result=scored(benchmark, [Prediction(id=each.id, text="x") for each in benchmark.load()]), seconds=1.0
    )

    def keep(step: int, value: float, metric: str = "a/b") -> None:
        how = {"metric": metric, "value": value, "lowest": lowest}
        keep_evaluation(tmp_path, step, {SUITE: measured}, {"suites": [], "seed": 0}, **how)

    def steps() -> tuple[int, ...]:
        folders = (tmp_path / "evaluations" / name / "evaluation.json" for name in ("last", "best"))
        return tuple(json.loads(file.read_text())["step"] for file in folders)

    sign = -1 if lowest else 1
    keep(2, float("nan"))
    assert steps() == (2, 2)
    keep(4, 1.0)
    assert steps() == (4, 4)
    keep(6, 1.0 - sign)
    assert steps() == (6, 4)
    keep(8, 1.0 + sign)
    assert steps() == (8, 8)
    keep(6, 1.0 - sign)
    assert steps() == (6, 6), "that of step 8 is of a run that was killed"
    keep(8, 1.0 - 2 * sign, "another/metric")
    assert steps() == (8, 8)
