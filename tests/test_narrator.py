"""What a run tells: the answers of every evaluation are kept once, whatever a kill did to the file or to the steps."""

import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import create_autospec

import jax
import pytest

from flanjax.console import Console, byte_size
from flanjax.evaluation.answers import Answer, Question, Report
from flanjax.evaluation.evaluators import MixtureEvaluator
from flanjax.evaluation.metrics import score
from flanjax.models.config import T5Config
from flanjax.narrator import Narrator, parameter_table, size_rows
from flanjax.sharding.mesh import MeshConfig, make_mesh
from flanjax.training.optimizers import OptimizerConfig, make_optimizer
from flanjax.training.step import MemoryUse, StateLayout
from flanjax.tuning.lora import LoRA
from flanjax.tuning.method import Method
from flanjax.tuning.partition import trainable_axes
from flanjax.tuning.quantize import NF4
from flanjax.tuning.select import Train


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
            evaluators={mixture: create_autospec(MixtureEvaluator, instance=True, report=None) for mixture in mixtures},
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


def test_the_table_of_sizes_counts_what_a_run_holds() -> None:
    model = T5Config(
        vocab_size=50, embed_dim=8, num_heads=2, head_dim=4, mlp_dim=16, num_encoder_layers=1, num_decoder_layers=2,
        added=(LoRA(rank=2, targets=".*/wo", dtype="bfloat16"),),
    )  # fmt: skip
    optimizer = make_optimizer(OptimizerConfig(name="adamw"), trainable_axes(model), total_steps=1)
    layout = StateLayout.of(model, optimizer, make_mesh(MeshConfig(), jax.devices()[:1]))
    # A [16, 2] and B [2, 8] of three layers; two moments of four bytes and the counters of Adam and its schedule.
    trained = 3 * (16 * 2 + 2 * 8)
    attention, mlp = 4 * 8 * 8, 3 * 8 * 16
    layers = (attention + mlp + 2 * 8) + 2 * (2 * attention + mlp + 3 * 8)
    frozen = 2 * 50 * 8 + 2 * 2 * 32 + 2 * 8 + layers
    weights, state = 2 * trained, 8 * trained + 8
    assert size_rows(layout, model) == [
        ("trainable", f"{trained}", "4", f"{weights} B", f"{4 * trained} B", byte_size(state)),
        ("frozen", f"{frozen:,}", "29", byte_size(4 * frozen), "0 B", "0 B"),
        ("all", f"{trained + frozen:,}", "33", byte_size(weights + 4 * frozen), f"{4 * trained} B", byte_size(state)),
    ]


def test_the_table_of_sizes_counts_weights_and_not_bytes_of_codes() -> None:
    base = T5Config(
        vocab_size=50, embed_dim=8, num_heads=2, head_dim=4, mlp_dim=16, num_encoder_layers=1, num_decoder_layers=2
    )

    def numbers(*methods: Method) -> list[str]:
        model = dataclasses.replace(base, added=methods)
        optimizer = make_optimizer(OptimizerConfig(name="adamw"), trainable_axes(model), total_steps=1)
        return [row[1] for row in size_rows(StateLayout.of(model, optimizer, mesh), model)]

    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    assert numbers(NF4(block=4, double_block=3), LoRA(rank=2)) == numbers(LoRA(rank=2))
    assert numbers(NF4(block=8, double=False), LoRA(rank=2), Train()) == numbers(LoRA(rank=2), Train())


def test_a_parameter_is_listed_with_the_factor_of_its_rate() -> None:
    model = T5Config(
        vocab_size=50, embed_dim=8, num_heads=2, head_dim=4, mlp_dim=16, num_encoder_layers=1, num_decoder_layers=2,
        added=(LoRA(rank=2, targets=".*/wo"),),
    )  # fmt: skip
    config = OptimizerConfig(name="adamw", rate_factors={".*/lora/b": 16.0}, layer_decay=0.5)
    optimizer = make_optimizer(config, trainable_axes(model), total_steps=1, stacks=model.stacks)
    layout = StateLayout.of(model, optimizer, make_mesh(MeshConfig(), jax.devices()[:1]))
    table = parameter_table(SimpleNamespace(model=model, run=SimpleNamespace(optimizer=config)), layout)
    ends = {line.split()[0]: re.findall(r"trainable.*|frozen", line)[0] for line in table.splitlines()}
    assert ends["encoder/layers/mlp/wo/lora/a"] == "trainable x 0.125"
    assert ends["decoder/layers/mlp/wo/lora/a"] == "trainable x 0.25 0.5"
    assert ends["decoder/layers/mlp/wo/lora/b"] == "trainable x 4 8"
    assert ends["decoder/layers/mlp/wo/kernel"] == "frozen"


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        ((80 * 2**20, 64 * 2**20), "it fits: a device has 64.0 MiB, 24.0 MiB are left"),
        ((80 * 2**20, 32 * 2**20), "it does not fit: a device has 32.0 MiB, 8.0 MiB are missing. Raise MICROBATCHES"),
        ((None, None), "whether it fits is not known"),
    ],
)
def test_the_memory_of_a_step_is_compared_with_the_smallest_device(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], limits: tuple[int | None, ...], told: str
) -> None:
    one = narrator(tmp_path)
    stats = [None if limit is None else {"bytes_limit": limit, "bytes_in_use": 5} for limit in limits]
    devices = [SimpleNamespace(memory_stats=lambda found=found: found) for found in stats]
    one._prepared.mesh = SimpleNamespace(local_devices=devices)
    parts = {"arguments": 30, "outputs": 30, "aliased": 30, "temporaries": 8, "code": 2}
    one.memory(MemoryUse(**{name: size * 2**20 for name, size in parts.items()}))
    out = capsys.readouterr().out
    assert "memory per device: 40.0 MiB" in out
    assert told in out
