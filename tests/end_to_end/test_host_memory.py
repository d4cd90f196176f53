"""Memory that a CPU's programs give back stays the process's where training asks for it, and goes back where not."""

import platform
import subprocess
import sys

import pytest

PAGES = (1 << 28) // 4096  # of an array of 256 MB

# The faults of a program that makes such arrays, once it has run a few times.
FAULTS = """
import resource
import jax, jax.numpy as jnp

program = jax.jit(lambda x: x @ x[:64] @ x[:64])
x = jnp.ones((1 << 20, 1 << 6))
for _ in range(8):
    program(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
program(x).block_until_ready()
print("faults", resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
KEEPING = "from flanjax.sharding.host_memory import keep_freed_memory\nkeep_freed_memory()\n"

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc is not glibc's")


def faults(code: str, environment: dict[str, str]) -> int:
    """What `FAULTS` counts in a process of its own, after this code."""
    command = [sys.executable, "-c", code + FAULTS]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout.rpartition("faults ")[2])


def test_a_program_that_runs_again_takes_the_memory_it_gave_back(environment: dict[str, str]) -> None:
    assert faults("", environment) > PAGES // 2
    assert faults(KEEPING, environment) < PAGES // 20


def test_the_door_of_training_keeps_it(arguments: list[str], environment: dict[str, str]) -> None:
    assert faults(f"from flanjax.train import main\nmain({[*arguments, '--dry_run']})\n", environment) < PAGES // 20
