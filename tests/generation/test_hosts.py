"""Two processes with two devices each answer as one process does."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.generation.answering_host import answers

SCRIPT = Path(__file__).parent / "answering_host.py"
HOSTS = 2


def test_two_processes_answer_as_one(coordinator_address):
    # Without the compilation cache, which process 0 alone may find its programs in: Gloo waits 30 seconds for a process
    # that compiles one.
    quick = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_ENABLE_COMPILATION_CACHE": "0"}
    environment = {**os.environ, **quick, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    processes = [
        subprocess.Popen(
            [sys.executable, SCRIPT, coordinator_address, str(HOSTS), str(index)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        for index in range(HOSTS)
    ]
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * HOSTS, "\n---\n".join(outputs)
    alone = answers()
    assert len(set(map(tuple, alone["t5 drawn"]))) > 4
    for output in outputs:
        assert json.loads(output.splitlines()[-1]) == alone
