"""A whole run in miniature: the demo's tasks with few instances, a model of a few thousand parameters, six steps."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

TINY_GIN = """
include "common.gin"

MIXTURE = "demo"
TASKS = {"flanjax.tasks.demo": {"train_examples": 40, "validation_examples": 2}}
EVAL_MIXTURES = "demo_heldout"
BATCH_ROWS = 4
TRAIN_STEPS = 6
LEARNING_RATE = 1e-2
EVAL_EVERY = 3
CHECKPOINT_EVERY = 2
VocabularySource.train_size = 300
TrainConfig.eval_at_start = True
TrainConfig.log_every = 1
T5Config.vocab_size = 408
T5Config.embed_dim = 16
T5Config.num_heads = 2
T5Config.head_dim = 8
T5Config.mlp_dim = 32
T5Config.num_encoder_layers = 1
T5Config.num_decoder_layers = 1
T5Config.dropout_rate = 0.1
EvaluationConfig.questions = 19
EvaluationConfig.max_new_tokens = 8
"""

Flanjax = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """One CPU device, as a user has it, and the tests' quick compilation and compile cache."""
    return {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0", "JAX_PLATFORMS": "cpu"}


@pytest.fixture(scope="session")
def flanjax(environment: dict[str, str]) -> Flanjax:
    """Runs a door in a process of its own: `flanjax("train", "--gin_file=...")`."""

    def run(door: str, *arguments: str, cwd: Path | None = None, status: int = 0) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", f"flanjax.{door}", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd, check=False)
        assert done.returncode == status, f"exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done

    return run


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, flanjax: Flanjax) -> Path:
    """A folder with `tiny.gin`, its `cache`, and the finished run `whole`, exported to `whole_hf`."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "tiny.gin").write_text(TINY_GIN)
    done = flanjax(
        "train",
        f"--gin_file={folder / 'tiny.gin'}",
        f"--gin.CACHE_DIR={folder / 'cache'}",
        f"--gin.MODEL_DIR={folder / 'whole'}",
        f"--gin.EXPORT_TO={folder / 'whole_hf'}",
    )
    (folder / "whole.log").write_text(done.stdout)
    return folder


@pytest.fixture
def arguments(tiny: Path, tmp_path: Path) -> list[str]:
    """The tiny run with a run directory of this test's own."""
    return [
        f"--gin_file={tiny / 'tiny.gin'}",
        f"--gin.CACHE_DIR={tiny / 'cache'}",
        f"--gin.MODEL_DIR={tmp_path / 'run'}",
    ]
