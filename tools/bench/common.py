"""Shared by the benchmarks: programs measured in turn, each in a process of its own, and what is printed of them.

    contenders = [Contender("flanjax", build_flanjax, shapes, cores=2), Contender("transformers", ...)]
    seconds = in_turn(contenders, repetitions=5)         # {"flanjax": [1.9, 2.0, ...], "transformers": [...]}
    print_ratio(times_faster(seconds, "flanjax", "transformers"), "train step")

Only one of them works at any moment: what else the machine does falls on all alike, so ratios hold where seconds
do not. A `build` function runs in the child, imports what it measures, and returns the piece of work to repeat.
"""

import argparse
import functools
import importlib.metadata
import multiprocessing
import os
import platform
import statistics
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("FLANJAX_TEST_DATA", ROOT.parent / "shared" / "data"))
SUPER_NI = "super_natural_instructions"


class Contender:
    """A program in its own process that does its piece of work when asked, warmed up once.

    Arguments:
      name: what the table calls it.
      build: called with `arguments` in the child; returns the work, a function without arguments.
      cores: CPU cores the child may use; None leaves all of them.
    """

    def __init__(self, name: str, build: Callable[..., Callable[[], Any]], *arguments: Any, cores: int | None = None):
        context = multiprocessing.get_context("spawn")
        self.name = name
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, cores, build, arguments), daemon=True)
        self._process.start()
        theirs.close()
        self.first_seconds, self.first_result = self._answer()

    def run(self) -> tuple[float, Any]:
        """Does the work once: its seconds, and what it returned."""
        self._pipe.send("run")
        return self._answer()

    def close(self) -> None:
        """Ends the process."""
        self._pipe.close()
        self._process.join()

    def _answer(self) -> tuple[float, Any]:
        seconds, result = self._pipe.recv()
        if isinstance(result, _Failure):
            raise SystemExit(f"{self.name} failed:\n{result.text}")
        return seconds, result


class _Failure:
    def __init__(self, text: str):
        self.text = text


def _serve(pipe: Connection, cores: int | None, build: Callable[..., Callable[[], Any]], arguments: Sequence) -> None:
    # Before any library counts the cores: XLA and OpenMP size their pools by the affinity of the process.
    if cores is not None:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    try:
        work = build(*arguments)
        while True:
            start = time.perf_counter()
            result = work()
            pipe.send((time.perf_counter() - start, result))
            pipe.recv()
    except EOFError:
        pass
    except BaseException:
        pipe.send((0.0, _Failure(traceback.format_exc())))


def in_turn(contenders: Sequence[Contender], repetitions: int) -> dict[str, list[float]]:
    """Seconds of each contender, round after round."""
    rounds = [[contender.run()[0] for contender in contenders] for _ in range(repetitions)]
    return {contender.name: [times[i] for times in rounds] for i, contender in enumerate(contenders)}


def print_ratio(ratio: float, claim: str) -> None:
    """One of the lines that the documentation quotes."""
    print(f"RATIO {ratio:.2f}  {claim}", flush=True)


def times_faster(seconds: Mapping[str, Sequence[float]], ours: str, theirs: str) -> float:
    """How many times faster `ours` is, by medians."""
    return statistics.median(seconds[theirs]) / statistics.median(seconds[ours])


def print_seconds(contender: Contender, seconds: Sequence[float]) -> None:
    """One line of a table: median, spread, and the first call, which compiles."""
    median, low, high = statistics.median(seconds), min(seconds), max(seconds)
    print(
        f"{contender.name:34s} {median:8.3f} s   (of {len(seconds)}: {low:.3f} to {high:.3f}; "
        f"first {contender.first_seconds:.1f})",
        flush=True,
    )


def machine(cores: int | None = None) -> str:
    """The machine and the versions that a figure belongs to."""
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    pairs = [line.partition(":") for line in cpuinfo.split("\n\n")[0].splitlines()]
    facts = {key.strip(): value.strip() for key, _, value in pairs}
    known = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    flags = [flag for flag in known if flag in facts.get("flags", "").split()]
    versions = " ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "torch", "transformers"))
    used = cores or len(os.sched_getaffinity(0))
    name = facts.get("model name", platform.machine())
    return f"{name} ({', '.join(flags)}), {used} cores, Python {platform.python_version()}, {versions}"


def parser(text: str | None) -> argparse.ArgumentParser:
    """The flags that every benchmark has."""
    result = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--smoke", action="store_true", help="tiny shapes, few repetitions: does it run at all")
    result.add_argument("--cores", type=int, help="CPU cores that each program may use (default: all)")
    return result


def add_data_flags(arguments: argparse.ArgumentParser) -> None:
    """Flags of the benchmarks that read Super-NaturalInstructions."""
    arguments.add_argument("--data", type=Path, default=DATA, help="folder with super_natural_instructions and vocab")
    arguments.add_argument("--cache_dir", type=Path, default=ROOT / "runs" / "bench_cache", help="kept between runs")


def super_ni_cache(data: Path, cache_dir: Path, *, tasks: int | None = None) -> None:
    """Materialises Super-NaturalInstructions, in a process of its own: TensorFlow must not weigh on what is measured.

    Every instance of every task is a training example, in the encoding with the definition and two demonstrations.

    Arguments:
      data: the folder of real data, with `super_natural_instructions` and `vocab/t5` in it.
      cache_dir: the cache; what is already there is kept.
      tasks: take the first so many tasks; None takes all.
    """
    source = cache_dir / "source"
    (source / "tasks").mkdir(parents=True, exist_ok=True)
    (source / "splits" / "default").mkdir(parents=True, exist_ok=True)
    (source / "splits" / "default" / "test_tasks.txt").touch()  # empty: nothing is held out
    for file in sorted((data / SUPER_NI / "tasks").glob("*.json"))[:tasks]:
        link = source / "tasks" / file.name
        if not link.exists():
            link.symlink_to(file.resolve())
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_materialize, args=(source, data / "vocab" / "t5", cache_dir), daemon=True)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit("materialising failed")


def _materialize(source: Path, vocabulary: Path, cache_dir: Path) -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from flanjax.data.materialize import materialize
    from flanjax.data.vocabularies import VocabularySource

    everything = {"train_instances_per_task": None, "validation_instances_per_task": 0}
    materialize(
        mixture=SUPER_NI,
        cache_dir=cache_dir,
        vocabulary=VocabularySource(path=str(vocabulary / "spiece.model")),
        tasks={"flanjax.tasks.natural_instructions": {"data_dir": str(source), **everything}},
        splits=("train",),
    )


@functools.cache
def shuffled_examples(cache_dir: Path) -> list[Any]:
    """The examples of the cache in one fixed random order, the same for every contender."""
    import numpy as np

    from flanjax.data.cache import CachedMixture

    tasks = CachedMixture.open(cache_dir, SUPER_NI, "train").tasks
    examples = [example for task in tasks for example in task.read(range(len(task)))]
    return [examples[i] for i in np.random.default_rng(0).permutation(len(examples))]
