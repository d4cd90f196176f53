"""The published recipe at its published size: a dry run compiles it on any machine, and says what it needs."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def published(test_data: Path, flan_t5_small: Path, t5_spiece: Path, tmp_path: Path) -> list[str]:
    """What flan_t5_recipe.gin leaves to its reader, with one of the datasets of Flan 2022."""
    (tmp_path / "data" / "flan_cot").mkdir(parents=True)
    shutil.copy(test_data / "flan" / "cot_data" / "qasc_train.tsv.gz", tmp_path / "data" / "flan_cot")
    values = {"DATA_DIR": tmp_path / "data", "MISSING": "skip", "VOCABULARY": t5_spiece, "INIT_FROM": flan_t5_small}
    values |= {name: tmp_path / name for name in ("MODEL_DIR", "CACHE_DIR")}
    return [f"--gin.{name}={value}" for name, value in values.items()]


def test_flan_t5_small_passes_a_dry_run(published: list[str], tmp_path: Path, flanjax: Callable) -> None:
    told = flanjax("train", "--gin_file=flan_t5_small.gin", *published, "--dry_run").stdout
    assert "rows of 1024 input and 256 target tokens (as given)" in told
    assert "76,961,152 parameters" in told
    assert "memory per device" in told
    assert not (tmp_path / "MODEL_DIR").exists()


def test_flan_t5_base_does_not_start_from_small(published: list[str], tmp_path: Path, flanjax: Callable) -> None:
    done = flanjax("train", "--gin_file=flan_t5_base.gin", *published, "--dry_run", status=2)
    assert "holds another model: embed_dim is 512 there, 768 in the run" in done.stderr
    # Before anything is materialised for it.
    assert not (tmp_path / "CACHE_DIR").exists()
