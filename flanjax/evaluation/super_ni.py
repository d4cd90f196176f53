"""Super-NaturalInstructions' official test: 119 English tasks, 100 instances each, ROUGE-L and exact match.

    super_ni("data/super_natural_instructions")      # tasks/*.json, splits/default/test_tasks.txt
    official_table(result)            # {"Textual Entailment": {"metric": "exact_match", "score": 41.2}, ...}

Prompts are Tk-Instruct's (`flanjax.tasks.natural_instructions`). Figures are means over all instances. Each category,
which is the first that a task names, has the one metric that the paper reports for it. Sources: Wang et al. 2022 (arXiv
2204.07705) and its published evaluation.

The benchmark brings two probes of Kung and Peng (arXiv 2305.11383); a model that scores as well on them has learnt the
form of an answer and not the task. "simplified definition" says no more than what an answer looks like: one of the
labels, where a task has few, or else a text. "delusive examples" gives the demonstrations outputs of other instances,
wrong but of the right form. Here they are put to any model; the paper trains with them as well, and simplifies by hand.
"""

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from flanjax.data.draws import Draw
from flanjax.data.records import read_json, record_files
from flanjax.data.registry import load_family
from flanjax.data.sources import BadRow
from flanjax.data.tasks import Row, Rows, TextTask, Tokenizer
from flanjax.evaluation.benchmark import Benchmark, BenchmarkError, Instance, Result
from flanjax.evaluation.held_out import held_out
from flanjax.evaluation.metrics import METRICS, byte_pieces

Probe = Literal["simplified definition", "delusive examples"]
FAMILY = "flanjax.tasks.natural_instructions"
TEST_MIXTURE = "super_natural_instructions_test"
POSITIVES = {"def": 0, "pos2": 2, "def_pos2": 2, "def_pos2_neg2": 2, "def_pos2_expl": 2}
CATEGORY_METRICS = {
    "Textual Entailment": "exact_match",
    "Cause Effect Classification": "exact_match",
    "Coreference Resolution": "exact_match",
    "Dialogue Act Recognition": "exact_match",
    "Answerability Classification": "exact_match",
    "Word Analogy": "exact_match",
    "Overlap Extraction": "rougeL",
    "Keyword Tagging": "rougeL",
    "Question Rewriting": "rougeL",
    "Title Generation": "rougeL",
    "Data to Text": "rougeL",
    "Grammar Error Correction": "rougeL",
}


def super_ni(
    data_dir: str | Path,
    *,
    track: Literal["english", "xlingual"] = "english",
    tasks: Sequence[str] | None = None,
    instances_per_task: int = 100,
    encoding: str = "def_pos2",
    tokenizer: Tokenizer | None = None,
    max_source: int = 1024,
    seed: int = 0,
) -> Benchmark:
    """The first instances of each test task that is in the folder; metrics `rougeL`, `exact_match`, `rouge1`.

    Args:
      data_dir: a copy of the published repository.
      track: "english" tests splits/default/test_tasks.txt. "xlingual" tests splits/xlingual/test_tasks.txt, and has
        for words the pieces of GPT-2's tokenizer, which has to be in gpt2/ of the folder.
      tasks: other tasks than the listed ones.
      instances_per_task: the official test has 100.
      encoding: one of `POSITIVES`.
      tokenizer: of the model; examples that do not fit are left out, and a longer input is cut. None cuts nothing.
      max_source: tokens of an input, its end-of-sequence id included.
      seed: of the outputs that delusive examples get.

    Raises:
      BenchmarkError: an encoding or a track that there is not.
      FlanjaxError: the folder is no copy of the repository, or has not the tasks, or not the tokenizer.
    """
    if encoding not in POSITIVES or track not in ("english", "xlingual"):
        raise BenchmarkError(
            f"super_ni: encoding={encoding!r}, track={track!r}: give one of {', '.join(POSITIVES)}, "
            "and english or xlingual"
        )
    options: dict[str, Any] = {"data_dir": str(data_dir), "encoding": encoding, "max_source": max_source}
    words = None
    if track == "xlingual":
        options |= {"split_list": f"{data_dir}/splits/xlingual/test_tasks.txt"}
        words = byte_pieces(Path(data_dir) / "gpt2")
    options |= {"test_instances_per_task": instances_per_task, "held_out": tuple(tasks or ())}
    family = load_family(FAMILY, options)
    assert family is not None
    wanted = set(tasks or family.mixtures[TEST_MIXTURE])
    shots = POSITIVES[encoding]

    def asked(probe: Probe | None) -> Benchmark:
        """The benchmark as it is, or with a probe."""
        benchmark = held_out(
            f"super_ni-{encoding}{'-xlingual' if words else ''}" + (f"-{probe.split()[0]}" if probe else ""),
            [task for task in family.tasks if task.name in wanted],
            tokenizer=tokenizer,
            change=functools.partial(_probe, probe, shots, seed) if probe else None,
            words=words,
            seed=seed,
        )
        load = functools.partial(_with_categories, Path(data_dir), shots, benchmark.load)
        return dataclasses.replace(benchmark, load=load)

    probes: dict[Probe, bool] = {"simplified definition": encoding.startswith("def"), "delusive examples": shots > 0}
    return dataclasses.replace(
        asked(None),
        probes={probe: asked(probe) for probe, there in probes.items() if there},
        tables={"Categories, each by the metric that the paper reports": official_table},
    )


def official_table(result: Result) -> dict[str, dict[str, str | float]]:
    """Of each category its metric and mean in percent; categories outside the paper's twelve have ROUGE-L."""
    means = {metric: result.by_category(metric) for metric in METRICS}
    chosen = {category: CATEGORY_METRICS.get(category, "rougeL") for category in means["rougeL"]}
    return {category: {"metric": metric, "score": means[metric][category]} for category, metric in chosen.items()}


def _with_categories(folder: Path, shots: int, load: Callable[[], Iterator[Instance]]) -> Iterator[Instance]:
    files = {Path(file).name.split(".json")[0]: file for file in record_files(folder / "tasks")}
    categories: dict[str, str] = {}
    for instance in load():
        if instance.task not in categories:
            categories[instance.task] = _category(files[instance.task])
        row = instance.details["row"]
        question = row["input"].strip()
        there = min(shots, len(row["positives"]))
        shown = sum(f" Positive Example {number} -" in instance.prompt for number in range(1, there + 1))
        yield dataclasses.replace(
            instance,
            id=row["id"],
            category=categories[instance.task],
            input=_shown(question, instance.prompt),
            demonstrations=tuple(example["output"] for example in row["positives"][:shown]),
            cut=shown < there or question not in instance.prompt,
            details={},
        )


def _shown(question: str, prompt: str) -> str:
    """What the prompt has of the question: of one that was cut to fit, what follows its label."""
    return question if question in prompt else prompt.rpartition("Input: ")[2]


def _category(file: str) -> str:
    categories = read_json(file).get("Categories")
    if not isinstance(categories, list) or not categories or not isinstance(categories[0], str):
        raise BadRow(f"{file}: field 'Categories' must be a list of names")
    return categories[0]


def _probe(probe: Probe, shots: int, seed: int, row: Row, task: TextTask, number: int) -> Row:
    """The row with the definition simplified, or with outputs of the task for its examples that are wrong."""
    outputs = _outputs(task.source["test"])
    if probe == "simplified definition":
        return {**row, "definition": _simplified(outputs)}
    draw = Draw("delusive", seed, task.name)
    wrong = []
    for example in row["positives"][:shots]:
        others = [output for output in outputs if output != example["output"]]
        unhelpful = [output for output in others if output not in row["outputs"]]  # if that leaves any
        wrong.append(example | {"output": draw.choice(unhelpful or others or list(outputs))})
    return {**row, "positives": wrong}


def _simplified(outputs: Mapping[str, int]) -> str:
    """What an output may be: one of the labels where each comes five times in the mean."""
    if sum(outputs.values()) < 5 * len(outputs):
        return "The output is a text."
    return f"The output is one of: {', '.join(outputs)}."


@functools.lru_cache(maxsize=1)
def _outputs(rows: Rows) -> Mapping[str, int]:
    """How often a task has each output, in their order; its rows are read once, for all of them follow each other."""
    counts = Counter(row["outputs"][0] for _, row in rows(0))
    return dict(sorted(counts.items()))
