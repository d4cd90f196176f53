"""IFEval: 541 prompts with instructions that can be checked by rule, such as "do not use any commas".

    benchmark = ifeval("data/ifeval/input_data.jsonl")
    result = evaluate(benchmark, predictions)
    result.average("prompt_strict")          # prompts whose instructions are all followed, in percent
    by_instruction(result, "strict")         # {"punctuation:no_comma": 95.5, ...}

Strict takes a response as it is. Loose also takes it without its first line, without its last, without both, and each
of these without asterisks: an instruction is followed where it is followed in one of the eight. Prompt accuracy is a
mean over prompts, instruction accuracy one over all instructions. Source: Zhou et al. 2023 (arXiv 2311.07911).
"""

import collections
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from flanjax.data.records import read_json_lines
from flanjax.data.sources import BadRow, excerpt, text_field
from flanjax.evaluation.benchmark import Benchmark, Instance, Prediction, Result, Scores, made
from flanjax.evaluation.ifeval_rules import Detect, RuleError, check_arguments, follows
from flanjax.evaluation.languages import identify


def ifeval(file: str | Path, *, detect: Detect = identify) -> Benchmark:
    """The prompts of the published file; metrics `prompt_strict`, `instruction_strict`, and the two of `loose`.

    Args:
      file: JSON lines of {"key", "prompt", "instruction_id_list", "kwargs"}.
      detect: the language of a text as an ISO 639-1 code, or None; `langdetect.detect` is what was published with it.
    """
    return Benchmark(
        name="ifeval",
        load=functools.partial(_instances, file),
        read=lambda instance, prediction: prediction.text,
        score=functools.partial(_score, detect),
        metrics=("prompt_strict", "instruction_strict", "prompt_loose", "instruction_loose"),
        max_new_tokens=1280,
        tables={"Instructions": instruction_table},
    )


def loose_forms(response: str) -> list[str]:
    """The eight texts that loose accuracy takes: with and without asterisks, first and last line."""
    lines = response.split("\n")
    cut = [response, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return cut + [text.replace("*", "") for text in cut]


def by_instruction(result: Result, how: Literal["strict", "loose"]) -> dict[str, float]:
    """Of each instruction type the percentage that was followed, in order of the names."""
    followed: dict[str, list[float]] = collections.defaultdict(list)
    for outcome in result.outcomes:
        types = outcome.instance.details["instructions"]
        for name, value in zip(types, outcome.scores[f"instruction_{how}"], strict=True):
            followed[name].append(value)
    return {name: 100 * sum(values) / len(values) for name, values in sorted(followed.items())}


def instruction_table(result: Result) -> dict[str, dict[str, float]]:
    """Of each instruction type the percentages that were followed strictly and loosely."""
    strict, loose = by_instruction(result, "strict"), by_instruction(result, "loose")
    return {name: {"strict": strict[name], "loose": loose[name]} for name in strict}


def _instances(file: str | Path) -> Iterator[Instance]:
    return made(read_json_lines(file), _instance)


def _instance(number: int, place: str, row: Any) -> Instance:
    prompt = text_field(row, "prompt", place)
    instructions, arguments = row.get("instruction_id_list"), row.get("kwargs")
    if (
        not isinstance(instructions, list)
        or not isinstance(arguments, list)
        or not (0 < len(instructions) == len(arguments))
        or not all(isinstance(name, str) for name in instructions)
        or not all(isinstance(given, dict) for given in arguments)
    ):
        raise BadRow(
            f"{place}: fields 'instruction_id_list' and 'kwargs' must be lists of as many names and objects: "
            f"{excerpt(row)}"
        )
    for name, given in zip(instructions, arguments, strict=True):
        try:
            check_arguments(name, given)
        except RuleError as error:
            raise BadRow(f"{place}: {error}") from error
    groups = sorted({name.split(":")[0] for name in instructions})
    return Instance(
        id=str(row.get("key", number)),
        task=f"{len(instructions)} instruction{'s' if len(instructions) > 1 else ''}",
        category=groups[0] if len(groups) == 1 else "several kinds",
        prompt=prompt,
        input=prompt,
        details={"instructions": tuple(instructions), "arguments": tuple(arguments)},
    )


def _score(detect: Detect, instance: Instance, prediction: Prediction, answer: str) -> Scores:
    asked = list(zip(instance.details["instructions"], instance.details["arguments"], strict=True))
    scores: dict[str, tuple[float, ...]] = {}
    for how, forms in (("strict", [answer]), ("loose", loose_forms(answer))):
        followed = [any(follows(name, form, given, detect) for form in forms) for name, given in asked]
        scores[f"prompt_{how}"] = (float(all(followed)),)
        scores[f"instruction_{how}"] = tuple(map(float, followed))
    return scores
