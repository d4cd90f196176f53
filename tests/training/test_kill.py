"""Processes that are killed or told to stop: the same command ends the run as if nothing had happened."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from flanjax.files import read_json_lines
from flanjax.training.checkpoints import restore_params, whole_steps

SCRIPT = Path(__file__).parent / "tiny_run.py"
LOOP = {"train_steps": 40, "log_every": 3, "eval_every": 8, "checkpoint_every": 5}


@pytest.fixture(scope="module")
def environment():
    return {**os.environ, "XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


def start(folder, environment, **loop):
    command = [sys.executable, str(SCRIPT), str(folder), json.dumps({**LOOP, **loop})]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def finish(folder, environment):
    output, errors = start(folder, environment).communicate(timeout=300)
    assert "ended at 40 None" in output, errors
    return output


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, environment):
    folder = tmp_path_factory.mktemp("uninterrupted")
    finish(folder, environment)
    return folder


def assert_same_run(folder, reference):
    ours, theirs = (restore_params(f / "checkpoints")[0] for f in (folder, reference))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    ours, theirs = (
        [(line["step"], line["split"], line["values"]) for line in read_json_lines(f / "metrics.jsonl")]
        for f in (folder, reference)
    )
    assert ours == theirs


def wait_for(process, words):
    for line in process.stdout:
        if line.startswith(words):
            return
    raise AssertionError(process.stderr.read())


def wait_for_step(process, step):
    """Until the run is at this step, past it, or over: one that goes on from a checkpoint may begin past it."""
    for line in process.stdout:
        if line.startswith("step ") and int(line.split()[1]) >= step:
            return
    assert process.wait() == 0, process.stderr.read()


def test_killed_at_random_points_equals_uninterrupted(tmp_path, environment, uninterrupted):
    seed = random.randrange(10**6)
    print("seed", seed)
    chance = random.Random(seed)
    for step in sorted(chance.sample(range(2, 38), 3)):
        process = start(tmp_path, environment)
        wait_for_step(process, step)
        time.sleep(chance.uniform(0, 0.1))
        process.kill()
        process.communicate()
    output = finish(tmp_path, environment)
    assert whole_steps(tmp_path / "checkpoints")[-1] == 40
    assert "checkpoint of step" in output
    assert_same_run(tmp_path, uninterrupted)


def test_terminated_while_xla_compiles_leaves_at_once_and_cleanly(tmp_path, environment):
    # Without the cache, and with all of XLA's passes, the step takes long enough to compile.
    slow = {key: value for key, value in environment.items() if key != "JAX_COMPILATION_CACHE_DIR"}
    process = start(tmp_path, {**slow, "JAX_DISABLE_MOST_OPTIMIZATIONS": "0", "JAX_ENABLE_COMPILATION_CACHE": "0"})
    wait_for(process, "compiling")
    time.sleep(1.5)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.count("Traceback")) == (0, 0), errors
    assert "ended at 0 SIGTERM, work left behind True" in output


def test_interrupted_by_hand_saves(tmp_path, environment, uninterrupted):
    folder = tmp_path / "run"
    process = start(folder, environment, hold=8)
    wait_for_step(process, 6)
    process.send_signal(signal.SIGINT)
    (tmp_path / "run.go").touch()
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "SIGINT" in output
    # Step 6 is told of right after it where its checkpoint waits for it, and else one step late.
    assert whole_steps(folder / "checkpoints")[-1] in (6, 7, 8, 9)
    finish(folder, environment)
    assert_same_run(folder, uninterrupted)
