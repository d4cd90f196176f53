"""A tuned run from the doors: `--gin_file=lora.gin` after a run's own; its checkpoint, its base, its export."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import flanjax as library

from .conftest import Flanjax


@pytest.fixture(scope="module")
def tuned(tiny: Path, flanjax: Flanjax) -> Path:
    """The tiny run with LoRA on top of the exported whole one, in `tiny / "lora"`."""
    shutil.copytree(tiny / "whole_hf", tiny / "base")
    done = flanjax("train", *arguments(tiny))
    assert "are trained" in done.stdout
    return tiny / "lora"


def arguments(tiny: Path, **changes: str) -> list[str]:
    macros = {
        "CACHE_DIR": str(tiny / "cache"),
        "MODEL_DIR": str(tiny / "lora"),
        "INIT_FROM": str(tiny / "base"),
        **changes,
    }
    files = [f"--gin_file={tiny / 'tiny.gin'}", "--gin_file=lora.gin", "--gin.LoRA.rank=2"]
    return [*files, *(f"--gin.{name}={value}" for name, value in macros.items())]


def test_a_tuned_run_is_opened_and_merged(tuned: Path, tmp_path: Path, flanjax: Flanjax) -> None:
    refused = flanjax("export", f"--run={tuned}", f"--output={tmp_path / 'hf'}", status=2)
    assert "give --merge" in refused.stderr
    assert not (tmp_path / "hf").exists()
    done = flanjax("export", f"--run={tuned}", f"--output={tmp_path / 'hf'}", "--merge")
    assert "the largest difference of a logit is" in done.stdout
    inputs, targets = ["sort: b a c", "What comes after two?"], ["a b c", "three"]
    run, plain, base = library.load(tuned), library.load(tmp_path / "hf"), library.load(tuned.parent / "base")
    np.testing.assert_allclose(run.score(inputs, targets), plain.score(inputs, targets), rtol=1e-4)
    assert np.abs(np.subtract(run.score(inputs, targets), base.score(inputs, targets))).max() > 1e-3
    assert run.generate(inputs, max_new_tokens=8) == plain.generate(inputs, max_new_tokens=8)
    assert "lora" in (tmp_path / "hf" / "README.md").read_text()


def test_the_same_command_finds_the_run_whole(tuned: Path, flanjax: Flanjax) -> None:
    before = (tuned / "metrics.jsonl").read_text()
    done = flanjax("train", *arguments(tuned.parent))
    assert "checkpoint of step 6 and is whole" in done.stdout
    assert (tuned / "metrics.jsonl").read_text() == before


def test_a_run_that_begins_from_the_bases_kernels_goes_on_and_is_merged(
    tuned: Path, tmp_path: Path, flanjax: Flanjax
) -> None:
    run = tmp_path / "run"
    fields = {
        "LoRA.init": "pissa",
        "LoRA.dora": "True",
        "LoRA.dtype": "bfloat16",
        "LoRA.rank_pattern": '{".*/value": 4}',
        "OptimizerConfig.rate_factors": '{".*/lora/b": 2.0, ".*magnitude": 0.5}',
        "OptimizerConfig.layer_decay": "0.5",
    }
    done = flanjax("train", *arguments(tuned.parent, MODEL_DIR=str(run), TRAIN_STEPS="2", **fields))
    assert "trainable" in done.stdout
    assert "optimizer state" in done.stdout
    assert re.search(r"encoder/layers/attention/value/lora/b .*\(1, 4, 16\).* trainable x 0.5\n", parameters(run))
    done = flanjax("train", *arguments(tuned.parent, MODEL_DIR=str(run), **fields))
    assert "going on from the checkpoint of step 2" in done.stdout
    flanjax("export", f"--run={run}", f"--output={tmp_path / 'hf'}", "--merge")
    inputs, targets = ["sort: b a c", "What comes after two?"], ["a b c", "three"]
    opened, plain, base = library.load(run), library.load(tmp_path / "hf"), library.load(tuned.parent / "base")
    np.testing.assert_allclose(opened.score(inputs, targets), plain.score(inputs, targets), rtol=1e-4)
    assert np.abs(np.subtract(opened.score(inputs, targets), base.score(inputs, targets))).max() > 1e-3


def parameters(run: Path) -> str:
    return (run / "parameters.txt").read_text()


def test_another_base_is_refused(tuned: Path, tmp_path: Path, flanjax: Flanjax) -> None:
    tiny = tuned.parent
    flanjax("export", f"--run={tiny / 'whole'}", f"--output={tmp_path / 'other'}", "--step=4")
    refused = flanjax("train", *arguments(tiny, INIT_FROM=str(tmp_path / "other")), status=2)
    assert "base: it was '" in refused.stderr
    shutil.copytree(tuned, tmp_path / "run")
    settings = tmp_path / "run" / "config.json"
    settings.write_text(settings.read_text().replace(str(tiny / "base"), str(tmp_path / "other")))
    refused = flanjax("export", f"--run={tmp_path / 'run'}", f"--output={tmp_path / 'hf'}", "--merge", status=2)
    assert "was tuned on a base model" in refused.stderr
    shutil.rmtree(tmp_path / "other")
    refused = flanjax("export", f"--run={tmp_path / 'run'}", f"--output={tmp_path / 'hf'}", "--merge", status=2)
    assert "has only what was tuned" in refused.stderr
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"LoRA.targets": "'.*/quary'"}, ["quary", "did you mean 'query'"]),
        ({"LoRA.rank": "99"}, ["LoRA.rank = 99 is larger than a target of 16 x 16"]),
        ({"LoRA.rnk": "3"}, ["rnk", "rank"]),
    ],
)
def test_settings_that_do_not_fit_are_refused_at_the_door(
    tuned: Path, tmp_path: Path, flanjax: Flanjax, change: dict[str, str], words: list[str]
) -> None:
    done = flanjax("train", *arguments(tuned.parent, **{"MODEL_DIR": str(tmp_path / "run"), **change}), status=2)
    assert all(word in done.stderr for word in words), done.stderr
    assert not (tmp_path / "run").exists()


def test_a_run_that_no_plain_model_can_hold_is_opened_as_it_is(tuned: Path, tmp_path: Path, flanjax: Flanjax) -> None:
    tiny, run = tuned.parent, tmp_path / "run"
    files = [f"--gin_file={tiny / 'tiny.gin'}", "--gin_file=houlsby.gin", "--gin.BottleneckAdapter.bottleneck=4"]
    macros = {"CACHE_DIR": tiny / "cache", "MODEL_DIR": run, "INIT_FROM": tiny / "base", "LEARNING_RATE": 0.01}
    flanjax("train", *files, *(f"--gin.{name}={value}" for name, value in macros.items()))
    refused = flanjax("export", f"--run={run}", f"--output={tmp_path / 'hf'}", "--merge", status=2)
    assert "BottleneckAdapter cannot be merged" in refused.stderr
    assert "flanjax.load opens it" in refused.stderr
    assert not (tmp_path / "hf").exists()
    inputs, targets = ["sort: b a c"], ["a b c"]
    adapted, base = library.load(run), library.load(tiny / "base")
    assert np.abs(np.subtract(adapted.score(inputs, targets), base.score(inputs, targets))).max() > 1e-3
    assert len(adapted.generate(inputs, max_new_tokens=8)) == 1
