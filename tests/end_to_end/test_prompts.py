"""Prompt tuning from the doors: a prompt for each task, trained in packed rows, evaluated, and asked for by name."""

from pathlib import Path

import numpy as np
import pytest

import flanjax as library
from flanjax.errors import FlanjaxError
from flanjax.files import read_json_lines
from flanjax.loading import LoadingError

from .conftest import Flanjax


def tasks_of(tiny: Path) -> list[str]:
    return sorted(folder.name for folder in (tiny / "cache" / "tasks").iterdir() if folder.is_dir())


def arguments(tiny: Path, **changes: str) -> list[str]:
    macros = {
        "CACHE_DIR": str(tiny / "cache"),
        "MODEL_DIR": str(tiny / "prompts"),
        "INIT_FROM": str(tiny / "whole"),
        "PromptTuning.length": "5",
        "PromptTuning.tasks": str(tuple(tasks_of(tiny))),
        **changes,
    }
    files = [f"--gin_file={tiny / 'tiny.gin'}", "--gin_file=prompt.gin"]
    return [*files, *(f"--gin.{name}={value}" for name, value in macros.items())]


@pytest.fixture(scope="module")
def prompted(tiny: Path, flanjax: Flanjax) -> Path:
    done = flanjax("train", *arguments(tiny))
    assert "a prompt of 5 positions is in front of every example's inputs" in done.stdout
    assert f"{len(tasks_of(tiny)) * 5 * 16:,} of " in done.stdout
    return tiny / "prompts"


def test_each_task_is_answered_with_its_own_prompt(prompted: Path) -> None:
    model, inputs, targets = library.load(prompted), ["sort: b a c"], ["a b c"]
    one, other = (model.score(inputs, targets, prompt=task)[0] for task in ("demo_sort_words", "demo_opposite"))
    assert np.isfinite([one, other]).all()
    assert one != other
    assert model.generate(inputs, 8, prompt="demo_sort_words") == model.generate(inputs, 8, prompt="demo_sort_words")
    for prompt in (None, "demo_sort_wurds"):
        with pytest.raises(FlanjaxError, match="demo_sort_words"):
            model.generate(inputs, 8, prompt=prompt)
    with pytest.raises(LoadingError, match="none to choose from"):
        library.load(prompted.parent / "whole").generate(inputs, 8, prompt="demo_opposite")
    # The held-out mixture was answered too, and its only task is not one that was trained on.
    assert {line["mixture"] for line in read_json_lines(prompted / "samples.jsonl")} == {"demo", "demo_heldout"}


def test_it_cannot_be_merged(prompted: Path, tmp_path: Path, flanjax: Flanjax) -> None:
    refused = flanjax("export", f"--run={prompted}", f"--output={tmp_path / 'hf'}", "--merge", status=2)
    assert "cannot be merged" in refused.stderr
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"PromptTuning.tasks": "('demo_sort_words',)"}, ["has no prompt", "there are those of demo_sort_words"]),
        (
            {"PromptTuning.length": "70", "FEATURE_LENGTHS": '{"inputs": 64, "targets": 32}'},
            ["rows of 64 input tokens have no room for a prompt of 70 positions"],
        ),
        (
            {"PromptTuning.init": "file", "PromptTuning.init_file": "nowhere.npy"},
            ["PromptTuning.init_file=nowhere.npy cannot be read"],
        ),
        (
            {"TUNING": "(@PrefixTuning(),)", "Compute.attention": "blockwise"},
            ["'blockwise' has no place for a prefix", "Compute.attention"],
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    tiny: Path, tmp_path: Path, flanjax: Flanjax, change: dict[str, str], words: list[str]
) -> None:
    done = flanjax("train", *arguments(tiny, MODEL_DIR=str(tmp_path / "run"), **change), status=2)
    assert all(word in done.stderr for word in words), done.stderr
    assert not (tmp_path / "run").exists()
