"""A tiny vocabulary, and caches of made-up examples whose tokens tell where they come from."""

import hashlib
import importlib
import json
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from flanjax.data.cache import Example
from flanjax.data.cache_writer import write_mixture, write_split
from flanjax.data.vocabularies import Vocabulary, train_vocabulary

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu"]

Lengths = Sequence[tuple[int, int]]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """A few hundred different lines of twelve words."""
    return [" ".join(WORDS[(i * k + k) % len(WORDS)] for k in range(1, 9)) + f" {i}" for i in range(300)]


@pytest.fixture(scope="module")
def bpe(bpe_folder: Path) -> Vocabulary:
    """A byte-level BPE with tokens of control."""
    return Vocabulary.from_file(bpe_folder)


@pytest.fixture(scope="module")
def llama(llama_folder: Path) -> Vocabulary:
    """A SentencePiece model as Llama has one."""
    return Vocabulary.from_file(llama_folder)


@pytest.fixture(scope="session")
def tiny_vocabulary(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    return train_vocabulary(texts, 48, tmp_path_factory.mktemp("vocabulary") / "spiece.model")


def numbered_examples(task: int, lengths: Lengths) -> Iterator[Example]:
    """Inputs of task t begin with 1000 t + example + 2, and every side ends in EOS."""
    for index, (inputs, targets) in enumerate(lengths):
        first = 1000 * task + index + 2
        yield Example(
            inputs=np.array([first] * (inputs - 1) + [1], dtype=np.int32),
            targets=np.array([first] * (targets - 1) + [1], dtype=np.int32),
        )


@pytest.fixture
def make_cache(tmp_path: Path, tiny_vocabulary: Vocabulary) -> Callable[..., Path]:
    """make_cache({"task": [(inputs, targets), ...]}) writes the mixture "mix" and returns the cache."""

    def make(
        tasks: Mapping[str, Lengths],
        *,
        rates: Mapping[str, float | None] | None = None,
        split: str = "train",
        shard_examples: int = 7,
        folder: str = "cache",
    ) -> Path:
        for number, (task, lengths) in enumerate(tasks.items()):
            write_split(
                tmp_path / folder,
                task,
                split,
                numbered_examples(number, lengths),
                vocabulary_id=tiny_vocabulary.identity,
                fingerprint="made up",
                seed=0,
                shard_examples=shard_examples,
            )
        entries = [{"task": task, "rate": (rates or {}).get(task), "splits": {split: "made up"}} for task in tasks]
        write_mixture(tmp_path / folder, "mix", tiny_vocabulary, seed=0, tasks=entries)
        return tmp_path / folder

    return make


@pytest.fixture
def seqio_registries() -> Iterator[None]:
    """Registrations of a test end with it."""
    import seqio

    from flanjax.data import registry

    registries = (seqio.TaskRegistry, seqio.MixtureRegistry)
    before = [dict(one._REGISTRY) for one in registries]
    texts = [(one, dict(one)) for one in (registry.text_tasks, registry.text_mixtures)]
    yield
    for one, kept in zip(registries, before, strict=True):
        one._REGISTRY = kept
    for one, kept in texts:
        one.clear()
        one.update(kept)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seqio_registries: None) -> Iterator[Callable[[str], str]]:
    """module(code) writes an importable module and returns its name."""
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    written = []

    def write(code: str) -> str:
        name = f"user_tasks_{hashlib.sha256(f'{tmp_path}{code}'.encode()).hexdigest()[:12]}"
        (folder / f"{name}.py").write_text(textwrap.dedent(code))
        importlib.invalidate_caches()
        written.append(name)
        return name

    yield write
    for name in written:
        sys.modules.pop(name, None)


@pytest.fixture(scope="session")
def super_ni_lengths(test_data: Path, t5_spiece: Path) -> dict[str, np.ndarray]:
    """Tokens [examples, 2] of the real Super-NI sample, shuffled: definition and input, and with two demonstrations."""
    vocabulary = Vocabulary.from_file(t5_spiece)
    found: dict[str, list[tuple[int, int]]] = {"zero-shot": [], "two-shot": []}
    for file in sorted((test_data / "super_natural_instructions" / "tasks").glob("*.json")):
        task = json.loads(file.read_text())
        shots = [f"Input: {shot['input']}\nOutput: {shot['output']}" for shot in task["Positive Examples"][:2]]
        head = len(vocabulary.encode(task["Definition"][0]))
        demonstrations = sum(len(vocabulary.encode(shot)) for shot in shots)
        for instance in task["Instances"]:
            inputs = head + len(vocabulary.encode(f"Input: {instance['input']}\nOutput:")) + 1
            targets = len(vocabulary.encode(instance["output"][0])) + 1
            found["zero-shot"].append((inputs, targets))
            found["two-shot"].append((inputs + demonstrations, targets))
    order = np.random.default_rng(0).permutation(len(found["zero-shot"]))
    return {name: np.array(lengths, dtype=np.uint32)[order] for name, lengths in found.items()}
