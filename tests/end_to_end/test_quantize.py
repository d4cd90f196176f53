"""A QLoRA run from the doors: trained, opened, resumed, merged into the original, and started from."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import flanjax as library
from flanjax.interchange.hf_t5 import read_hf_t5
from flanjax.interchange.stored import in_memory
from flanjax.tuning.partition import digest

from .conftest import Flanjax

TINY = ["--gin.NF4.block=8", "--gin.NF4.double_block=4", "--gin.LoRA.rank=2", "--gin.LEARNING_RATE=0.01"]


def arguments(tiny: Path, name: str, init_from: Path, *more: str) -> list[str]:
    return [
        f"--gin_file={tiny / 'tiny.gin'}",
        *more,
        f"--gin.CACHE_DIR={tiny / 'cache'}",
        f"--gin.MODEL_DIR={tiny / name}",
        f"--gin.INIT_FROM={init_from}",
    ]


@pytest.fixture(scope="module")
def qlora(tiny: Path, flanjax: Flanjax) -> Path:
    """The tiny run with `qlora.gin` on top of the exported whole one, in `tiny / "qlora"`, exported at its end."""
    shutil.copytree(tiny / "whole_hf", tiny / "qlora_base")
    files = ["--gin_file=qlora.gin", *TINY, f"--gin.EXPORT_TO={tiny / 'qlora_hf'}"]
    done = flanjax("train", *arguments(tiny, "qlora", tiny / "qlora_base", *files))
    assert "the run's base is quantized" in done.stdout
    return tiny / "qlora"


def test_it_is_merged_into_the_full_precision_original(qlora: Path, tmp_path: Path, flanjax: Flanjax) -> None:
    refused = flanjax("export", f"--run={qlora}", f"--output={tmp_path / 'hf'}", status=2)
    assert "give --merge" in refused.stderr
    done = flanjax("export", f"--run={qlora}", f"--output={tmp_path / 'hf'}", "--merge")
    assert "the largest difference of a logit is" in done.stdout
    assert "notice: the run's base is quantized" in done.stdout
    base = in_memory(read_hf_t5(qlora.parent / "qlora_base")[1])
    assert json.loads((qlora / "config.json").read_text())["base"] == digest(base)
    inputs, targets = ["sort: b a c", "What comes after two?"], ["a b c", "three"]
    run, plain = library.load(qlora), library.load(tmp_path / "hf")
    assert run.params["encoder"]["layers"]["mlp"]["wo"]["kernel"]["codes"].dtype == np.uint8
    np.testing.assert_allclose(run.score(inputs, targets), plain.score(inputs, targets), rtol=0.05)
    kernel, original = (params["decoder"]["layers"]["mlp"]["wo"]["kernel"] for params in (plain.params, base))
    # Rank 2 was added to the original: nothing of its rounding is in the difference.
    assert (np.linalg.matrix_rank(np.asarray(kernel - original), tol=1e-5) == 2).all()
    at_the_end = library.load(qlora.parent / "qlora_hf").params["decoder"]["layers"]["mlp"]["wo"]["kernel"]
    np.testing.assert_array_equal(at_the_end, kernel)


def test_the_same_command_finds_the_run_whole_and_another_run_starts_from_it(qlora: Path, flanjax: Flanjax) -> None:
    tiny = qlora.parent
    done = flanjax("train", *arguments(tiny, "qlora", tiny / "qlora_base", "--gin_file=qlora.gin", *TINY))
    assert "has a checkpoint of step 6 and is whole" in done.stdout
    done = flanjax("train", *arguments(tiny, "again", qlora, "--gin_file=qlora.gin", *TINY))
    assert "are trained" in done.stdout
    merged = read_hf_t5(tiny / "qlora_hf")[1]
    assert json.loads((tiny / "again" / "config.json").read_text())["base"] == digest(merged)
    assert library.load(tiny / "again").generate(["sort: b a c"], max_new_tokens=4)
