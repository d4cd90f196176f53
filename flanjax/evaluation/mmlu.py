"""MMLU: 57 subjects of four-way questions, in the original and in Flan's prompts.

    mmlu("data/mmlu/data", form="flan", shots=5)          # dev/*_dev.csv, test/*_test.csv

    original  The following are multiple choice questions      flan  Q: Which bone is ...?
              (with answers) about anatomy.                          (A) the ulna (B) ... (C) ... (D) ...
                                                                     A:
              Which bone is ...?
              A. the ulna
              ...
              Answer:

Mode "choices" compares the likelihoods of the four letters ("A" or "(A)"), "generate" reads a letter out of a text:
strictly, where it is all that was written, and flexibly, the first option in it. After a chain of thought it is all
that follows "answer is" in the line or, flexibly, the option after the last "answer is", or else the last option.

Demonstrations are the first of the subject's dev file; those with a chain of thought are the ones published with
Flan-PaLM in mmlu-cot.json, subject -> prompt, which lies beside dev/ and test/. The probe by delusive examples
(`delusive`) gives each another letter, or the chain of thought of one with another letter. Sources: Hendrycks et al.
2020 (arXiv 2009.03300) for the data, the categories and the mean over instances; Chung et al. 2022 (arXiv 2210.11416)
for chains of thought; lm-evaluation-harness for the Flan form.
"""

import functools
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from flanjax.data.draws import Draw
from flanjax.data.records import read_json, read_table, record_files
from flanjax.data.sources import BadRow, text_field
from flanjax.evaluation.benchmark import (
    Benchmark,
    BenchmarkError,
    Instance,
    Mode,
    Prediction,
    Scores,
    made,
    read_choice,
    score_choice,
    until,
)
from flanjax.evaluation.delusive import with_delusive, wrong_output
from flanjax.evaluation.metrics import normalize_answer

Form = Literal["original", "flan"]
LETTERS = "ABCD"
COLUMNS = ("question", *LETTERS, "answer")
_HUMANITIES = """formal_logic high_school_european_history high_school_us_history high_school_world_history
international_law jurisprudence logical_fallacies moral_disputes moral_scenarios philosophy prehistory professional_law
world_religions"""
_SOCIAL = """econometrics high_school_geography high_school_government_and_politics high_school_macroeconomics
high_school_microeconomics high_school_psychology human_sexuality professional_psychology public_relations
security_studies sociology us_foreign_policy"""
_STEM = """abstract_algebra astronomy college_biology college_chemistry college_computer_science college_mathematics
college_physics computer_security conceptual_physics electrical_engineering elementary_mathematics high_school_biology
high_school_chemistry high_school_computer_science high_school_mathematics high_school_physics high_school_statistics
machine_learning"""
_OTHER = """anatomy business_ethics clinical_knowledge college_medicine global_facts human_aging management marketing
medical_genetics miscellaneous nutrition professional_accounting professional_medicine virology"""
CATEGORIES = {
    subject: category
    for category, subjects in {
        "humanities": _HUMANITIES,
        "social sciences": _SOCIAL,
        "STEM": _STEM,
        "other": _OTHER,
    }.items()
    for subject in subjects.split()
}
_LETTER = re.compile(r"\(?\b([A-D])\b\)?")
_OPTION = re.compile(r"\(([A-D])\)")
_SHOWN = re.compile(r"\(([A-Z])\)")  # one published chain of thought ends in (E)
_CUES = re.compile(r"answer(?: is)?:? ", re.IGNORECASE)
_STRICT_CUES = re.compile(r"answer is |The answer: |The final answer: ")
_THOUGHT = " Let's think step by step."
_ENDS = ("</s>", "Q:", "<|im_end|>")


def mmlu(
    data_dir: str | Path,
    *,
    form: Form = "original",
    shots: int = 5,
    mode: Mode = "choices",
    cot: bool = False,
    seed: int = 0,
) -> Benchmark:
    """The test questions of every subject in the folder; metric `accuracy`, or `exact_match` and `flexible` of texts.

    Args:
      data_dir: with test/ and, for demonstrations, dev/.
      form: "original" or "flan".
      shots: demonstrations, at most five.
      mode: whether letters are scored or a text is generated.
      cot: asks for a chain of thought by "Let's think step by step."; of the Flan form, generated.
      seed: of what delusive examples answer.

    Raises:
      BenchmarkError: options that do not go together.
    """
    if form not in ("original", "flan") or mode not in ("choices", "generate") or not 0 <= shots <= 5:
        raise BenchmarkError(
            f"mmlu: form={form!r}, mode={mode!r}, shots={shots}: give original or flan, choices or generate, 0 to 5"
        )
    if cot and (form, mode) != ("flan", "generate"):
        raise BenchmarkError('mmlu: cot=True needs form="flan" and mode="generate"')
    generated = mode == "generate"
    load = functools.partial(_instances, Path(data_dir), form, shots, cot)
    benchmark = Benchmark(
        name=f"mmlu-{form}{'-cot' if cot else ''}-{shots}shot" + ("-generate" if generated else ""),
        load=load,
        read=(_read_thought if cot else _read_text) if generated else read_choice,
        score=(_score_thought if cot else _score_text) if generated else score_choice,
        metrics=("exact_match", "flexible") if generated else ("accuracy",),
        mode=mode,
        max_new_tokens=256 if cot else 8,
        stop=_ENDS if cot else (*_ENDS, "\n"),
        say="The answer is {}.".format if cot else str,
    )
    return with_delusive(benchmark, functools.partial(load, seed)) if shots else benchmark


def _instances(folder: Path, form: Form, shots: int, cot: bool, delusive: int | None = None) -> Iterator[Instance]:
    """All instances; after wrong demonstrations where `delusive` is the seed of those."""
    published = _published_thoughts(folder / "mmlu-cot.json") if cot and shots else {}
    for file in record_files(folder / "test"):
        subject = Path(file).name.split("_test.csv")[0]
        if subject not in CATEGORIES:
            raise BadRow(f"{file}: {subject!r} is none of the 57 subjects of MMLU")
        before = f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"
        draw = None if delusive is None else Draw("delusive", delusive, subject)
        letters: list[str] = []
        if published:
            thoughts = _thoughts(published, subject, shots, folder / "mmlu-cot.json")
            if draw is not None:
                thoughts = _wrong_thoughts(thoughts, draw, f"{folder / 'mmlu-cot.json'}: {subject}")
            letters = [_choice(form, letter) for letter, _ in thoughts]
            before += "".join(text for _, text in thoughts)
        elif shots:
            dev = read_table(str(folder / "dev" / f"{subject}_dev.csv"), names=COLUMNS)
            for place, row in itertools.islice(dev, shots):
                letter = _letter(row, place)
                letters.append(
                    _choice(form, wrong_output(draw, letter, LETTERS, place) if draw is not None else letter)
                )
                before += f"{_question(form, row)} {letters[-1]}\n\n"
        make = functools.partial(_instance, form, subject, before, tuple(letters), _THOUGHT if cot else "")
        yield from made(read_table(file, names=COLUMNS), make)


def _published_thoughts(file: Path) -> dict[str, Any]:
    if not file.exists():
        raise BenchmarkError(f"{file} is not there: chains of thought are shown from it; ask with shots=0 without it")
    return dict(read_json(file))


def _thoughts(published: dict[str, Any], subject: str, shots: int, file: Path) -> list[tuple[str, str]]:
    """The letter and the text of the first demonstrations of a subject."""
    _, *texts = text_field(published, subject, str(file)).strip().split("\n\nQ: ")
    if len(texts) < shots:
        raise BadRow(f"{file}: {subject} has {len(texts)} demonstrations, fewer than the {shots} that are asked for")
    found = []
    for number, text in enumerate(texts[:shots], 1):
        cues = list(_CUES.finditer(text))
        letter = _SHOWN.match(text, cues[-1].end()) if cues else None
        if letter is None:
            raise BadRow(f"{file}: demonstration {number} of {subject} does not end in an answer")
        found.append((letter[1], f"Q: {text.strip()}\n\n"))
    return found


def _wrong_thoughts(thoughts: list[tuple[str, str]], draw: Draw, place: str) -> list[tuple[str, str]]:
    """Each question with the letter and the chain of thought of another one, that has another letter."""
    letters = {text.partition("\nA:")[2]: letter for letter, text in thoughts}
    found = []
    for right, text in thoughts:
        question, cue, thought = text.partition("\nA:")
        others = [other for other, letter in letters.items() if letter != right]
        shown = wrong_output(draw, thought, others, place)
        found.append((letters[shown], f"{question}{cue}{shown}"))
    return found


def _instance(
    form: Form, subject: str, before: str, letters: tuple[str, ...], cue: str, number: int, place: str, row: Any
) -> Instance:
    right = LETTERS.index(_letter(row, place))
    choices = tuple(_choice(form, letter) for letter in LETTERS)
    return Instance(
        id=f"{subject}/{number}",
        task=subject,
        category=CATEGORIES[subject],
        prompt=before + _question(form, row) + cue,
        references=(choices[right],),
        choices=choices,
        correct=(right,),
        input=row["question"].strip(),
        demonstrations=letters,
    )


def _letter(row: Any, place: str) -> str:
    if len(row["answer"]) != 1 or row["answer"] not in LETTERS:
        raise BadRow(f"{place}: the last column must be one of A, B, C, D, not {row['answer']!r}")
    return str(row["answer"])


def _choice(form: Form, letter: str) -> str:
    return letter if form == "original" else f"({letter})"


def _question(form: Form, row: Any) -> str:
    if form == "original":
        return "\n".join([row["question"].strip(), *(f"{letter}. {row[letter]}" for letter in LETTERS), "Answer:"])
    options = " ".join(f"({letter}) {row[letter]}" for letter in LETTERS)
    return f"Q: {row['question'].strip()}\n{options}\nA:"


def _read_text(instance: Instance, prediction: Prediction) -> str:
    return _first_option(instance, _written(prediction))


def _read_thought(instance: Instance, prediction: Prediction) -> str:
    """The option after the last "answer is", or else the last option."""
    text = until(prediction.text, _ENDS)
    cues = list(_CUES.finditer(text))
    if cues and (answer := _first_option(instance, text[cues[-1].end() :])):
        return answer
    options = _OPTION.findall(text)
    return instance.choices[LETTERS.index(options[-1])] if options else ""


def _written(prediction: Prediction) -> str:
    """The first line that is not blank, as far as no other question begins in it."""
    return until(prediction.text.strip(), (*_ENDS, "\n"))


def _first_option(instance: Instance, text: str) -> str:
    match = _OPTION.search(text) or _LETTER.search(text)
    return instance.choices[LETTERS.index(match[1])] if match else ""


def _score_text(instance: Instance, prediction: Prediction, answer: str) -> Scores:
    (right,) = instance.references
    strict = normalize_answer(_written(prediction)) == normalize_answer(right)
    return {"exact_match": (float(strict),), "flexible": (float(answer == right),)}


def _score_thought(instance: Instance, prediction: Prediction, answer: str) -> Scores:
    (right,) = instance.references
    text = until(prediction.text, _ENDS)
    cue = _STRICT_CUES.search(text)
    stated = normalize_answer(until(text[cue.end() :], "\n")) if cue else ""
    return {"exact_match": (float(stated == normalize_answer(right)),), "flexible": (float(answer == right),)}
