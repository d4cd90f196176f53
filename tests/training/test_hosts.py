"""Two processes with four devices each are one run: what they compute, save and resume is what one process does."""

import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from flanjax.files import read_json_lines
from flanjax.training.checkpoints import restore_params, whole_steps

SCRIPT = Path(__file__).parent / "tiny_run.py"
LOOP = {"train_steps": 12, "log_every": 3, "eval_every": 0, "checkpoint_every": 5}
HOSTS = 2


@pytest.fixture(scope="module")
def start(coordinator_address):
    return functools.partial(_start, coordinator_address)


def _start(address, folder, **loop):
    # Without the compilation cache, which process 0 alone may find its programs in: Gloo waits 30 seconds for a process
    # that compiles one.
    quick = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_ENABLE_COMPILATION_CACHE": "0"}
    environment = {**os.environ, **quick, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}

    def process(index):
        command = [sys.executable, SCRIPT, folder, json.dumps({**LOOP, **loop}), address, str(HOSTS), str(index)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)

    return [process(index) for index in range(HOSTS)]


def ends(processes):
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * HOSTS, "\n---\n".join(outputs)
    return [next(line for line in output.splitlines() if line.startswith("ended at")) for output in outputs]


@pytest.fixture(scope="module")
def together(start, tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    assert ends(start(folder)) == ["ended at 12 None, work left behind False"] * HOSTS
    return folder


def values(folder):
    return [(line["step"], line["split"], line["values"]) for line in read_json_lines(folder / "metrics.jsonl")]


def test_two_hosts_equal_one(together, tmp_path, tiny_run):
    alone = tiny_run.start(tmp_path, **LOOP)
    ours, step = restore_params(together / "checkpoints")
    assert step == alone.step == 12
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), ours, jax.device_get(alone.params)
    )
    lines, expected = values(together), values(tmp_path)
    assert [line[:2] for line in lines] == [line[:2] for line in expected]
    for (*_, found), (*_, wanted) in zip(lines, expected, strict=True):
        assert found == pytest.approx(wanted, rel=1e-3, abs=1e-4)


def test_a_signal_to_one_host_stops_both_after_the_same_step_and_the_run_resumes(start, together, tmp_path):
    folder = tmp_path / "run"
    processes = start(folder, hold=4)
    for line in processes[1].stdout:
        if line.startswith("step 2"):
            break
    processes[1].send_signal(signal.SIGTERM)
    (tmp_path / "run.go").touch()
    first, second = ends(processes)
    assert first == second
    assert "SIGTERM, work left behind False" in first
    step = int(first.split()[2])
    assert 2 <= step < 12
    assert whole_steps(folder / "checkpoints")[-1] == step
    assert ends(start(folder)) == ["ended at 12 None, work left behind False"] * HOSTS
    ours, theirs = (restore_params(f / "checkpoints")[0] for f in (folder, together))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert values(folder) == values(together)
