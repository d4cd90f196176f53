"""The tiny run of `tiny_run.py`, for the tests and for the processes they start."""

import importlib.util
import pathlib
import types

import pytest


@pytest.fixture(scope="module", autouse=True)
def _quick_compilation(quick_compilation: None) -> None:
    """For the whole room: no property here depends on how well a program is optimized."""


@pytest.fixture(scope="session")
def tiny_run() -> types.ModuleType:
    """The module `tiny_run.py`: a tiny T5, batches for it, and a run."""
    spec = importlib.util.spec_from_file_location("tiny_run", pathlib.Path(__file__).parent / "tiny_run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
