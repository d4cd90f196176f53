"""BIG-Bench Hard: 23 tasks in 27 files, with the published three-shot prompts, direct and chain-of-thought.

    bbh("data/bbh", prompting="cot")        # bbh/*.json and cot-prompts/*.txt

    {the prompt file below its line of dashes}          chain of thought
                                                        Q: {input}
                                                        A: Let's think step by step.

Direct ("answer-only") prompts are the same files with the rationales taken out: `Q: ...\\nA: False`. An answer is what
follows the last "answer is ", less its full stop, or the whole of a direct text; among options the first letter in it
counts. The figure is exact match, a mean over the 23 tasks of the paper, three of whose files count as one where they
differ in the number of objects: those are the categories here. The probe by delusive examples (`delusive`) gives each
demonstration another answer of the task, or the chain of thought of a demonstration with another answer. Source: Suzgun
et al. 2022 (arXiv 2210.09261).
"""

import functools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from flanjax.data.draws import Draw
from flanjax.data.records import read_json, read_lines, record_files
from flanjax.data.sources import BadRow, text_field
from flanjax.evaluation.benchmark import Benchmark, BenchmarkError, Instance, Prediction, Scores, made, until
from flanjax.evaluation.delusive import with_delusive, wrong_output

CUE = "A: Let's think step by step."
STOP = ("\n\nQ:", "\nQ:", "</s>", "<|im_end|>")
_OPTION = re.compile(r"\([A-Z]\)")
_OBJECTS = re.compile(r"_(three|five|seven)_objects$")


def bbh(
    data_dir: str | Path, *, prompting: Literal["direct", "cot"] = "direct", shots: int = 3, seed: int = 0
) -> Benchmark:
    """The 6,511 questions; metric `exact_match`, averaged over the paper's 23 tasks (categories).

    Args:
      data_dir: a copy of the published repository, with bbh/ and cot-prompts/.
      prompting: "direct" or "cot".
      shots: of the three published demonstrations, the first so many; 0 leaves the task's description.
      seed: of what delusive examples answer.

    Raises:
      BenchmarkError: another prompting, or more shots than there are.
    """
    if prompting not in ("direct", "cot") or not 0 <= shots <= 3:
        raise BenchmarkError(f"bbh: prompting={prompting!r}, shots={shots}: give direct or cot, and 0 to 3 shots")
    load = functools.partial(_instances, Path(data_dir), prompting == "cot", shots)
    benchmark = Benchmark(
        name=f"bbh-{prompting}-{shots}shot",
        load=load,
        read=_read,
        score=_score,
        metrics=("exact_match",),
        average="categories",
        max_new_tokens=1024 if prompting == "cot" else 64,
        stop=STOP,
    )
    return with_delusive(benchmark, functools.partial(load, seed)) if shots else benchmark


def extract_answer(text: str, options: bool) -> str:
    """The answer in a text, as the published exact match wants it.

    Worked example: `extract_answer("Gwen is last. So the answer is (D).", options=True) == "(D)"`.
    """
    answer = text.split("answer is ")[-1].strip()
    if options and (match := _OPTION.search(answer)):
        return match[0]
    return answer.removesuffix(".").strip()


def _instances(folder: Path, cot: bool, shots: int, delusive: int | None = None) -> Iterator[Instance]:
    """All instances; after wrong demonstrations where `delusive` is the seed of those."""
    for file in record_files(folder / "bbh"):
        task = Path(file).name.split(".json")[0]
        rows = [(f"{file}: example {n}", row) for n, row in enumerate(_examples(file), 1)]
        place = f"{folder / 'cot-prompts' / task}.txt"
        description, published = _published(place, shots)
        outputs = [rationale if cot else extract_answer(rationale, options=False) for _, rationale in published]
        if delusive is not None:
            others = outputs if cot else _targets(rows)
            outputs = _wrong(outputs, others, Draw("delusive", delusive, task), place)
        cue = CUE if cot else "A: "
        shown = list(zip((question for question, _ in published), outputs, strict=True))[:shots]
        before = "".join([f"{description}\n\n", *(f"Q: {question}{cue}{output}\n\n" for question, output in shown)])
        make = functools.partial(_instance, task, before, tuple(output.strip() for _, output in shown), cot)
        yield from made(rows, make)


def _targets(rows: Sequence[tuple[str, Any]]) -> list[str]:
    found = (row.get("target") for _, row in rows if isinstance(row, dict))
    return [target for target in found if isinstance(target, str)]


def _wrong(outputs: Sequence[str], others: Sequence[str], draw: Draw, place: str) -> list[str]:
    """For each demonstration another output, with another answer."""

    def answer(text: str) -> str:
        return extract_answer(text, options=False)

    return [
        wrong_output(draw, output, [other for other in others if answer(other) != answer(output)], place)
        for output in outputs
    ]


def _instance(
    task: str, before: str, answers: tuple[str, ...], cot: bool, number: int, place: str, row: Any
) -> Instance:
    if not isinstance(row, dict):
        raise BadRow(f"{place}: an object is expected, not {type(row).__name__}")
    question = text_field(row, "input", place)
    cue = f"{CUE}\n" if cot else "A:"
    return Instance(
        id=f"{task}/{number}",
        task=task,
        category=_OBJECTS.sub("", task),
        prompt=f"{before}Q: {question}\n{cue}",
        references=(text_field(row, "target", place),),
        input=question,
        demonstrations=answers,
    )


def _examples(file: str) -> list[Any]:
    examples = read_json(file).get("examples")
    if not isinstance(examples, list):
        raise BadRow(f"{file}: field 'examples' must be a list")
    return examples


def _published(file: str, shots: int) -> tuple[str, list[tuple[str, str]]]:
    """The description of a task, and of each published demonstration the question and its chain of thought."""
    text = b"".join(line for _, line in read_lines(file)).decode(errors="replace").replace("\r\n", "\n")
    description, *published = text.split("-----\n", 1)[-1].strip().split("\n\nQ: ")
    if len(published) < shots:
        raise BadRow(f"{file}: {len(published)} demonstrations, fewer than the {shots} that are asked for")
    found = []
    for number, demonstration in enumerate(published, 1):
        question, cue, rationale = demonstration.partition(CUE)
        if not cue or "answer is " not in rationale:
            raise BadRow(f"{file}: demonstration {number} has no {CUE!r} or no 'answer is'")
        found.append((question, rationale))
    return description, found


def _read(instance: Instance, prediction: Prediction) -> str:
    options = _OPTION.fullmatch(instance.references[0]) is not None
    return extract_answer(until(prediction.text, STOP), options)


def _score(instance: Instance, prediction: Prediction, answer: str) -> Scores:
    return {"exact_match": (float(answer == instance.references[0]),)}
