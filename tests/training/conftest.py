"""The tiny run of `tiny_run.py`, for the tests and for the processes they start."""

import importlib.util
import pathlib
import types
from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def _quick_compilation() -> Iterator[None]:
    """XLA takes a third of the time for programs that run for milliseconds; no property here depends on it."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="session")
def tiny_run() -> types.ModuleType:
    """The module `tiny_run.py`: a tiny T5, batches for it, and a run."""
    spec = importlib.util.spec_from_file_location("tiny_run", pathlib.Path(__file__).parent / "tiny_run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
