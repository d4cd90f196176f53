"""GSM8K: grade-school arithmetic in words, direct and with a chain of thought.

    gsm8k("data/gsm8k", prompting="cot", shots=5)        # test.jsonl, and train.jsonl for demonstrations

    Question: Natalia sold clips to 48 of her friends in April, ...
    Answer: Natalia sold 48/2 = 24 clips in May. ... #### 72

A published answer ends in `#### 72`. Demonstrations are the first rows of the training file. In a "direct" prompt they
have the number alone. Sources: Cobbe et al. 2021 (arXiv 2110.14168) for the data, the marker and the exact match of
numbers without thousands separators; the flexible reading, the last number of the text, is lm-evaluation-harness's.
The probe by delusive examples (`delusive`) gives each demonstration the answer of another training row, another number.
One deviation: demonstrations lose the calculator annotations <<48/2=24>>, which are no words, and which T5 cannot read.
"""

import functools
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from flanjax.data.draws import Draw
from flanjax.data.records import read_json_lines
from flanjax.data.sources import BadRow, excerpt, text_field
from flanjax.evaluation.benchmark import Benchmark, BenchmarkError, Instance, Prediction, Scores, made, until
from flanjax.evaluation.delusive import with_delusive, wrong_output

_MARKED = re.compile(r"#### *\$?(-?[0-9.,]+)")
_NUMBER = re.compile(r"-?\$?[0-9][0-9,]*(?:\.[0-9]+)?")
_ANNOTATION = re.compile(r"<<[^>]*>>")
STOP = ("Question:", "</s>", "<|im_end|>")


def gsm8k(
    data_dir: str | Path, *, prompting: Literal["direct", "cot"] = "cot", shots: int = 5, seed: int = 0
) -> Benchmark:
    """The 1,319 test problems; metrics `exact_match` of the number after the marker, `flexible` of the last number.

    In direct prompts the answer is the first number, and both metrics are the same.

    Args:
      data_dir: with test.jsonl and, for demonstrations, train.jsonl; they may be compressed.
      prompting: "direct" asks for the number, "cot" for the way to it.
      shots: demonstrations; without any, a chain of thought is asked for by "Let's think step by step."
      seed: of what delusive examples answer.

    Raises:
      BenchmarkError: another prompting.
    """
    if prompting not in ("direct", "cot"):
        raise BenchmarkError(f"gsm8k: prompting={prompting!r}: give direct or cot")
    load = functools.partial(_instances, Path(data_dir), prompting, shots)
    benchmark = Benchmark(
        name=f"gsm8k-{prompting}-{shots}shot",
        load=load,
        read=_read_marked if prompting == "cot" else _read_first,
        score=_score if prompting == "cot" else _score_direct,
        metrics=("exact_match", "flexible"),
        max_new_tokens=256 if prompting == "cot" else 16,
        stop=STOP,
        say="#### {}".format if prompting == "cot" else str,
    )
    return with_delusive(benchmark, functools.partial(load, seed)) if shots else benchmark


def marked_number(text: str) -> str | None:
    """The number after `####`, without thousands separators; None where there is none.

    Worked example: `marked_number("5 * 200 = 1,000 #### 1,000.") == "1000"`.
    """
    match = _MARKED.search(text)
    return None if match is None else match[1].replace(",", "").rstrip(".") or None


def numbers(text: str) -> list[str]:
    """All numbers of a text in order, without thousands separators and dollar signs."""
    return [match.replace(",", "").replace("$", "") for match in _NUMBER.findall(text)]


def _instances(folder: Path, prompting: str, shots: int, delusive: int | None = None) -> Iterator[Instance]:
    """All instances; after wrong demonstrations where `delusive` is the seed of those."""
    shown = _solved(folder, prompting, None if delusive is not None else shots) if shots else []
    demonstrations = [answer for _, answer, _ in shown[:shots]]
    if delusive is not None:
        draw, place = Draw("delusive", delusive, "gsm8k"), _file(folder, "train")
        demonstrations = [
            wrong_output(draw, answer, [other for _, other, n in shown if n != number], place)
            for _, answer, number in shown[:shots]
        ]
    before = "".join(
        f"Question: {question}\nAnswer: {answer}\n\n"
        for (question, _, _), answer in zip(shown, demonstrations, strict=False)
    )
    cue = " Let's think step by step." if prompting == "cot" and not shots else ""

    def make(number: int, place: str, row: Any) -> Instance:
        """The instance of a row."""
        question, _, answer = _problem(place, row)
        return Instance(
            id=f"test/{number}",
            task="gsm8k",
            prompt=f"{before}Question: {question}\nAnswer:{cue}",
            references=(answer,),
            input=question,
            demonstrations=tuple(demonstrations),
        )

    return made(read_json_lines(_file(folder, "test")), make)


def _solved(folder: Path, prompting: str, count: int | None) -> list[tuple[str, str, str]]:
    """Question, answer as it is shown, and number of the first training rows; None takes all."""
    found = []
    for place, row in itertools.islice(read_json_lines(_file(folder, "train")), count):
        question, solution, number = _problem(place, row)
        found.append((question, number if prompting == "direct" else f"{solution} #### {number}", number))
    return found


def _file(folder: Path, split: str) -> str:
    names = (f"{split}.jsonl", f"{split}.jsonl.gz")
    for name in names:
        if (folder / name).exists():
            return str(folder / name)
    raise BadRow(f"{folder}: there is no {' or '.join(names)}: give GSM8K's folder")


def _problem(place: str, row: Any) -> tuple[str, str, str]:
    """Question, solution without marker and annotations, and number of a published row."""
    question, answer = text_field(row, "question", place), text_field(row, "answer", place)
    number = marked_number(answer)
    if number is None or not _NUMBER.fullmatch(number):
        raise BadRow(f"{place}: field 'answer' has no number after ####: {excerpt(answer[-60:])}")
    return question, _ANNOTATION.sub("", answer.split("####")[0]).strip(), number


def _read_marked(instance: Instance, prediction: Prediction) -> str:
    return marked_number(until(prediction.text, STOP)) or ""


def _read_first(instance: Instance, prediction: Prediction) -> str:
    return next(iter(numbers(until(prediction.text, STOP))), "")


def _score(instance: Instance, prediction: Prediction, answer: str) -> Scores:
    last = next(iter(numbers(until(prediction.text, STOP))[::-1]), "")
    (right,) = instance.references
    return {"exact_match": (float(answer == right),), "flexible": (float(_same(last, right)),)}


def _score_direct(instance: Instance, prediction: Prediction, answer: str) -> Scores:
    value = float(_same(answer, instance.references[0]))
    return {"exact_match": (value,), "flexible": (value,)}


def _same(answer: str, right: str) -> bool:
    return answer != "" and float(answer) == float(right)
