"""Benchmarks by name: what `python -m flanjax.evaluate --suite=NAME` knows, and where the files of each lie.

benchmark = SUITES["mmlu-flan"].benchmark("data/mmlu")
benchmark = first_of_each_task(benchmark, 10)
"""

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from flanjax.data.tasks import Tokenizer, dataset_folder
from flanjax.errors import nearest
from flanjax.evaluation.bbh import bbh
from flanjax.evaluation.benchmark import Benchmark, BenchmarkError, Instance
from flanjax.evaluation.flan2021 import flan2021
from flanjax.evaluation.gsm8k import gsm8k
from flanjax.evaluation.ifeval import ifeval
from flanjax.evaluation.mmlu import mmlu
from flanjax.evaluation.super_ni import super_ni
from flanjax.evaluation.truthfulqa import truthfulqa


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suite:
    """A benchmark that has a name.

    Attributes:
      make: the benchmark over a folder or file; where prompts have a length, `tokenizer` counts it.
      dataset: its folder is `dataset_folder(dataset)` where none is given; "" for the folder of all datasets.
      inside: what in that folder `make` takes, where it is there.
      says: one line for a list of all.
      fitted: whether prompts are cut to a length in tokens of the model.
    """

    make: Callable[..., Benchmark]
    dataset: str
    inside: str = ""
    says: str
    fitted: bool = False

    def place(self, data: str = "") -> Path:
        """What the benchmark is read from: `data`, or the dataset's own folder.

        Raises:
          BenchmarkError: nothing is there.
        """
        folder = Path(dataset_folder(self.dataset, data))
        if not folder.exists():
            raise BenchmarkError(
                f"{folder}: there is nothing; --data names a copy of {self.dataset or 'the folders of its datasets'}"
            )
        return folder / self.inside if (folder / self.inside).exists() else folder

    def benchmark(self, data: str = "", tokenizer: Tokenizer | None = None) -> Benchmark:
        """The benchmark over `data`, or over the dataset's own folder; without a tokenizer no prompt is cut.

        Raises:
          FlanjaxError: nothing is there, or it is no copy of the dataset.
        """
        return self.make(self.place(data), tokenizer=tokenizer) if self.fitted else self.make(self.place(data))


SUITES: dict[str, Suite] = {
    "super_ni": Suite(
        make=super_ni,
        dataset="super_natural_instructions",
        inside="natural-instructions-master",
        says="Super-NaturalInstructions' official test, two positives",
        fitted=True,
    ),
    "super_ni-xlingual": Suite(
        make=functools.partial(super_ni, track="xlingual"),
        dataset="super_natural_instructions",
        inside="natural-instructions-master",
        says="its cross-lingual track; GPT-2's tokenizer has to be in gpt2/ of its folder",
        fitted=True,
    ),
    "mmlu": Suite(make=mmlu, dataset="mmlu", inside="data", says="MMLU as published, 5 shots, letters scored"),
    "mmlu-flan": Suite(
        make=functools.partial(mmlu, form="flan", shots=0), dataset="mmlu", inside="data", says="MMLU in Flan's prompt"
    ),
    "mmlu-flan-5shot": Suite(
        make=functools.partial(mmlu, form="flan", shots=5),
        dataset="mmlu",
        inside="data",
        says="the same after 5 shots, as Flan-T5's figures are, letters scored",
    ),
    "mmlu-flan-cot": Suite(
        make=functools.partial(mmlu, form="flan", shots=0, mode="generate", cot=True),
        dataset="mmlu",
        inside="data",
        says="MMLU in Flan's prompt, with a chain of thought",
    ),
    "mmlu-flan-cot-4shot": Suite(
        make=functools.partial(mmlu, form="flan", shots=4, mode="generate", cot=True),
        dataset="mmlu",
        inside="data",
        says="the same after four published chains of thought; mmlu-cot.json has to be in its folder",
    ),
    "flan2021": Suite(
        make=flan2021, dataset="", says="Flan 2021, zero-shot: a folder for each dataset, those that are there"
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
    """The benchmark, and its probes, with the first `count` instances of each task alone; None takes all.

    Raises:
      BenchmarkError: the count is below 1.
    """
    if count is None:
        return benchmark
    if count < 1:
        raise BenchmarkError(f"{count} instances of each task: it must be 1 at the least")
    probes = {name: first_of_each_task(probe, count) for name, probe in benchmark.probes.items()}
    return dataclasses.replace(
        benchmark, load=functools.partial(_first, benchmark, count), probes=probes, whole=benchmark
    )


def _first(benchmark: Benchmark, count: int) -> Iterator[Instance]:
    taken: Counter[str] = Counter()
    for instance in benchmark.load():
        taken[instance.task] += 1
        if taken[instance.task] <= count:
            yield instance
