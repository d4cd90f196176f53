"""Benchmarks by name: what `python -m flanjax.evaluate --suite=NAME` knows, and where the files of each lie.

benchmark = SUITES["mmlu-flan"].benchmark("data/mmlu")
benchmark = first_of_each_task(benchmark, 10)
"""

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from flanjax.data.tasks import dataset_folder
from flanjax.errors import nearest
from flanjax.evaluation.bbh import bbh
from flanjax.evaluation.benchmark import Benchmark, BenchmarkError, Instance
from flanjax.evaluation.gsm8k import gsm8k
from flanjax.evaluation.ifeval import ifeval
from flanjax.evaluation.mmlu import mmlu
from flanjax.evaluation.super_ni import super_ni
from flanjax.evaluation.truthfulqa import truthfulqa


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suite:
    """A benchmark that has a name.

    Attributes:
      make: the benchmark over a folder or file.
      dataset: its folder is `dataset_folder(dataset)` where none is given.
      inside: what in that folder `make` takes, where it is there.
      says: one line for a list of all.
    """

    make: Callable[[Path], Benchmark]
    dataset: str
    inside: str = ""
    says: str

    def place(self, data: str = "") -> Path:
        """What the benchmark is read from: `data`, or the dataset's own folder.

        Raises:
          BenchmarkError: nothing is there.
        """
        folder = Path(dataset_folder(self.dataset, data))
        if not folder.exists():
            raise BenchmarkError(f"{folder}: there is nothing; --data names a copy of {self.dataset}")
        return folder / self.inside if (folder / self.inside).exists() else folder

    def benchmark(self, data: str = "") -> Benchmark:
        """The benchmark over `data`, or over the dataset's own folder.

        Raises:
          FlanjaxError: nothing is there, or it is no copy of the dataset.
        """
        return self.make(self.place(data))


SUITES: dict[str, Suite] = {
    "super_ni": Suite(
        make=super_ni, dataset="natural_instructions", says="Super-NaturalInstructions' official test, two positives"
    ),
    "super_ni-delusive": Suite(
        make=functools.partial(super_ni, examples="delusive"),
        dataset="natural_instructions",
        says="the same with outputs of its demonstrations exchanged (Kung and Peng 2023)",
    ),
    "mmlu": Suite(make=mmlu, dataset="mmlu", inside="data", says="MMLU as published, 5 shots, letters scored"),
    "mmlu-flan": Suite(
        make=functools.partial(mmlu, form="flan", shots=0), dataset="mmlu", inside="data", says="MMLU in Flan's prompt"
    ),
    "mmlu-flan-cot": Suite(
        make=functools.partial(mmlu, form="flan", shots=0, mode="generate", cot=True),
        dataset="mmlu",
        inside="data",
        says="MMLU in Flan's prompt, with a chain of thought",
    ),
    "bbh": Suite(make=bbh, dataset="bbh", says="BIG-Bench Hard, 3 shots, direct"),
    "bbh-cot": Suite(
        make=functools.partial(bbh, prompting="cot"), dataset="bbh", says="BIG-Bench Hard, 3 shots, chains of thought"
    ),
    "gsm8k": Suite(make=gsm8k, dataset="gsm8k", says="GSM8K, 5 shots, chains of thought"),
    "gsm8k-direct": Suite(
        make=functools.partial(gsm8k, prompting="direct"), dataset="gsm8k", says="GSM8K, 5 shots, the number alone"
    ),
    "truthfulqa": Suite(
        make=truthfulqa, dataset="truthfulqa", inside="TruthfulQA.csv", says="TruthfulQA, multiple choice 1, 2 and 3"
    ),
    "ifeval": Suite(make=ifeval, dataset="ifeval", inside="input_data.jsonl", says="IFEval, strict and loose"),
}


def suite(name: str) -> Suite:
    """The suite of that name.

    Raises:
      BenchmarkError: there is none; the message has the nearest one.
    """
    if name not in SUITES:
        raise BenchmarkError(f"there is no suite {name!r}{nearest(name, SUITES)}; there are {', '.join(SUITES)}")
    return SUITES[name]


def first_of_each_task(benchmark: Benchmark, count: int | None) -> Benchmark:
    """The benchmark with the first `count` instances of each task alone; None takes all.

    Raises:
      BenchmarkError: the count is below 1.
    """
    if count is None:
        return benchmark
    if count < 1:
        raise BenchmarkError(f"{count} instances of each task: it must be 1 at the least")
    return dataclasses.replace(benchmark, load=functools.partial(_first, benchmark, count))


def _first(benchmark: Benchmark, count: int) -> Iterator[Instance]:
    taken: Counter[str] = Counter()
    for instance in benchmark.load():
        taken[instance.task] += 1
        if taken[instance.task] <= count:
            yield instance
