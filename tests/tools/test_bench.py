"""Every benchmark runs on tiny shapes and prints its ratios; no figure is asserted."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "tools" / "bench"


def smoke(name: str, *flags: str) -> list[str]:
    """What the RATIO lines of a tiny run compare."""
    # One device, as a person who runs it has.
    environment = {**os.environ, "XLA_FLAGS": re.sub(r"\S*device_count\S*", "", os.environ.get("XLA_FLAGS", ""))}
    command = [sys.executable, str(BENCH / f"{name}.py"), "--smoke", *flags]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = re.findall(r"^RATIO ([\d.]+)  (.*)$", done.stdout, re.MULTILINE)
    assert all(float(ratio) > 0 for ratio, _ in lines)
    return [claim for _, claim in lines]


@pytest.fixture(scope="module")
def flags(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Where the data is, and one cache for all."""
    return f"--data={test_data}", f"--cache_dir={tmp_path_factory.mktemp('cache')}"


def test_train_step_compares_both_forms_with_transformers() -> None:
    assert smoke("train_step", "--dtype=bfloat16") == [
        "train step, bfloat16: flanjax unrolled against transformers",
        "train step, bfloat16: flanjax scanned against transformers",
    ]


def test_data_compares_the_loader_with_packers_and_with_the_step(flags: tuple[str, str]) -> None:
    claims = smoke("data", *flags)
    assert len(claims) == 7
    assert claims[0] == "tokens/s: flanjax, planned against seqio"
    assert claims[-1] == "tokens/s: the loader against what the train step takes"


def test_end_to_end_compares_whole_loops(flags: tuple[str, str]) -> None:
    claims = smoke("end_to_end", *flags)
    assert claims == ["real tokens/s of the whole loop: flanjax, packed, against transformers, padded"]
