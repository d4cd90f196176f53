"""BIG-Bench Hard: 23 tasks in 27 files, with the published three-shot prompts, direct and chain-of-thought.

    bbh("data/bbh", prompting="cot")        # bbh/*.json and cot-prompts/*.txt

    {the prompt file below its line of dashes}          chain of thought
                                                        Q: {input}
                                                        A: Let's think step by step.

Direct ("answer-only") prompts are the same files with the rationales taken out: `Q: ...\\nA: False`. An answer is what
follows the last "answer is ", less its full stop, or the whole of a direct text; among options the first letter in it
counts. The figure is exact match, a mean over the 23 tasks of the paper, three of whose files count as one where they
differ in the number of objects: those are the categories here. Source: Suzgun et al. 2022 (arXiv 2210.09261).
"""

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from flanjax.data.records import read_json, read_lines, record_files
from flanjax.data.sources import BadRow, text_field
from flanjax.evaluation.benchmark import Benchmark, BenchmarkError, Instance, Prediction, Scores, made, until

CUE = "A: Let's think step by step."
STOP = ("\n\nQ:", "\nQ:", "</s>", "<|im_end|>")
_OPTION = re.compile(r"\([A-Z]\)")
_OBJECTS = re.compile(r"_(three|five|seven)_objects$")


def bbh(data_dir: str | Path, *, prompting: Literal["direct", "cot"] = "direct", shots: int = 3) -> Benchmark:
    """The 6,511 questions; metric `exact_match`, averaged over the paper's 23 tasks (categories).

    Args:
      data_dir: a copy of the published repository, with bbh/ and cot-prompts/.
      prompting: "direct" or "cot".
      shots: of the three published demonstrations, the first so many; 0 leaves the task's description.

    Raises:
      BenchmarkError: another prompting, or more shots than there are.
    """
    if prompting not in ("direct", "cot") or not 0 <= shots <= 3:
        raise BenchmarkError(f"bbh: prompting={prompting!r}, shots={shots}: give direct or cot, and 0 to 3 shots")
    return Benchmark(
        name=f"bbh-{prompting}-{shots}shot",
        load=functools.partial(_instances, Path(data_dir), prompting == "cot", shots),
        read=_read,
        score=_score,
        metrics=("exact_match",),
        average="categories",
        max_new_tokens=1024 if prompting == "cot" else 64,
        stop=STOP,
    )


def extract_answer(text: str, options: bool) -> str:
    """The answer in a text, as the published exact match wants it.

    Worked example: `extract_answer("Gwen is last. So the answer is (D).", options=True) == "(D)"`.
    """
    answer = text.split("answer is ")[-1].strip()
    if options and (match := _OPTION.search(answer)):
        return match[0]
    return answer.removesuffix(".").strip()


def _instances(folder: Path, cot: bool, shots: int) -> Iterator[Instance]:
    for file in record_files(folder / "bbh"):
        task = Path(file).name.split(".json")[0]
        before, answers = _prompt(folder / "cot-prompts" / f"{task}.txt", cot, shots)
        make = functools.partial(_instance, task, before, answers, cot)
        yield from made(((f"{file}: example {n}", row) for n, row in enumerate(_examples(file), 1)), make)


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


def _prompt(file: Path, cot: bool, shots: int) -> tuple[str, tuple[str, ...]]:
    """What stands before a question: description and demonstrations; and the answers or rationales of those."""
    text = b"".join(line for _, line in read_lines(str(file))).decode(errors="replace").replace("\r\n", "\n")
    description, *published = text.split("-----\n", 1)[-1].strip().split("\n\nQ: ")
    if len(published) < shots:
        raise BadRow(f"{file}: {len(published)} demonstrations, fewer than the {shots} that are asked for")
    answers, parts = [], [description + "\n\n"]
    for number, demonstration in enumerate(published[:shots], 1):
        question, cue, rationale = demonstration.partition(CUE)
        if not cue or "answer is " not in rationale:
            raise BadRow(f"{file}: demonstration {number} has no {CUE!r} or no 'answer is'")
        answers.append(rationale.strip() if cot else extract_answer(rationale, options=False))
        parts.append(f"Q: {demonstration if cot else f'{question}A: {answers[-1]}'}\n\n")
    return "".join(parts), tuple(answers)


def _read(instance: Instance, prediction: Prediction) -> str:
    options = _OPTION.fullmatch(instance.references[0]) is not None
    return extract_answer(until(prediction.text, STOP), options)


def _score(instance: Instance, prediction: Prediction, answer: str) -> Scores:
    return {"exact_match": (float(answer == instance.references[0]),)}
