"""Answers of a model on held-out examples: decoded, scored per task, and kept to be read.

Examples come from a cached split that keeps its texts. The first examples of each task are taken, so that two
evaluations of one run, before and after training, are over the same ones.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from flanjax.data.cache import CachedTask
from flanjax.data.packing import Overlong, RowLengths, is_overlong, truncate
from flanjax.errors import FlanjaxError
from flanjax.evaluation.metrics import Scores, score_by_task, score_each


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """One held-out example: token ids of its input, its texts, and the answers that count as right."""

    task: str
    inputs: tuple[int, ...]
    prompt: str
    references: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """A question and what the model wrote."""

    question: Question
    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """The answers, the scores of each in [0, 1], and percentages over all instances and per task."""

    answers: tuple[Answer, ...]
    scores: tuple[Mapping[str, float], ...]
    overall: Scores
    by_task: Mapping[str, Scores]


def questions(
    tasks: Sequence[CachedTask], per_task: int, row_lengths: RowLengths, overlong: Overlong = "truncate"
) -> list[Question]:
    """The first `per_task` examples of each task; those longer than a row are cut, or left out by "drop".

    A decoder's question may fill its row, for its answer is not in it.

    Raises:
      FlanjaxError: a split without texts, such as "train".
    """
    found = []
    for task in tasks:
        first = np.arange(min(per_task, len(task)))
        if overlong == "drop":
            first = first[~is_overlong(task.lengths[: len(first)], row_lengths)]
        for example in task.read(first):
            if example.text is None:
                raise FlanjaxError(
                    f"{task.folder} keeps no texts, so answers cannot be scored against it: evaluate another split"
                )
            references = tuple(example.text.get("references") or [example.text["targets"]])
            prompt = example.text["inputs"]
            if len(row_lengths) == 1:
                example = dataclasses.replace(example, targets=example.targets[:1], target_weights=None)
            inputs = tuple(truncate(example, row_lengths).inputs.tolist())
            found.append(Question(task=task.name, inputs=inputs, prompt=prompt, references=references))
    return found


def answer(
    asked: Sequence[Question], generate: Callable[[Sequence[Question]], list[str]], batch_size: int = 64
) -> Report:
    """Decodes every question with `generate` (questions to texts, in batches) and scores the answers.

    Worked example: two questions of one task, one answered right, give `by_task["t"].metrics["exact_match"] == 50.0`.
    """
    texts: list[str] = []
    for start in range(0, len(asked), batch_size):
        texts += generate(asked[start : start + batch_size])
    references = [question.references for question in asked]
    overall, by_task = score_by_task([question.task for question in asked], texts, references)
    answers = tuple(Answer(question=question, text=text) for question, text in zip(asked, texts, strict=True))
    return Report(answers=answers, scores=tuple(score_each(texts, references)), overall=overall, by_task=by_task)
