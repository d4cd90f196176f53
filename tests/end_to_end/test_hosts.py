"""The training door on two hosts: one run, which one of them materialises, prints and exports."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

import flanjax as library
from flanjax import evaluate

GLOO = "[Gloo] Rank 0 is connected to 1 peer ranks. Expected number of connected peer ranks is : 1"


def losses(run: Path) -> list[tuple[int, str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["split"], line["values"]["loss"]) for line in lines if "loss" in line["values"]]


def test_two_hosts_are_one_run(
    tiny: Path, tmp_path: Path, environment: dict[str, str], coordinator_address: str, test_data: Path
) -> None:
    for split in ("dev", "test"):
        (tmp_path / "mmlu" / split).mkdir(parents=True)
        file = tmp_path / "mmlu" / split / f"virology_{split}.csv"
        file.symlink_to(test_data / "mmlu" / "data" / split / file.name)
    # Without the compilation cache, which process 0 alone may find its programs in: Gloo waits 30 seconds for a process
    # that compiles one.
    both = {**environment, "JAX_ENABLE_COMPILATION_CACHE": "0"}
    both["XLA_FLAGS"] += " --xla_force_host_platform_device_count=2"
    command = [sys.executable, "-m", "flanjax.train", f"--gin_file={tiny / 'tiny.gin'}", "--process_count=2"]
    command += [f"--coordinator_address={coordinator_address}", f"--gin.CACHE_DIR={tmp_path / 'cache'}"]
    command += [f"--gin.MODEL_DIR={tmp_path / 'run'}", f"--gin.EXPORT_TO={tmp_path / 'hf'}"]
    command += ["--gin.EVAL_SUITES=mmlu-flan", f"--gin.EvaluationConfig.suite_data={tmp_path / 'mmlu'}"]
    command += ["--gin.EvaluationConfig.suite_limit=9"]
    processes = [
        subprocess.Popen(
            [*command, f"--process_index={index}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=both,
        )
        for index in range(2)
    ]
    (first, first_errors), (second, second_errors) = [process.communicate(timeout=600) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], first_errors + second_errors
    assert "4 cpu device(s): data 4" in first
    # Of the second only Gloo speaks; its threads write at once and cut each other's lines.
    assert set(re.findall("[A-Za-z]+", second)) <= set(re.findall("[A-Za-z]+", GLOO)), second

    alone, together = library.load(tiny / "whole"), library.load(tmp_path / "hf")
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-2, atol=1e-3),
        together.params,
        alone.params,
    )
    found, expected = losses(tmp_path / "run"), losses(tiny / "whole")
    assert [line[:2] for line in found] == [line[:2] for line in expected]
    np.testing.assert_allclose([line[2] for line in found], [line[2] for line in expected], rtol=1e-3)

    # A test set that both answered together, and one process alone.
    flags = (f"--model={tmp_path / 'run'}", "--suite=mmlu-flan", f"--data={tmp_path / 'mmlu'}", "--limit=9")
    assert evaluate.main((*flags, f"--output={tmp_path / 'alone'}")) == 0
    found, expected = (
        [json.loads(line)["loglikelihoods"] for line in next(folder.glob("*.answers.jsonl")).read_text().splitlines()]
        for folder in (tmp_path / "run" / "evaluations" / "last", tmp_path / "alone")
    )
    assert len(found) == 9
    np.testing.assert_allclose(found, expected, rtol=1e-4)
