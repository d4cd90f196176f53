"""Held-out splits of text tasks as a benchmark: exact match and ROUGE, and the metrics that the tasks bring.

    family = load_family("flanjax.tasks.flan2021", {"data_dir": "data"})
    benchmark = held_out("flan2021", [task for task in family.tasks if task.name.startswith("rte")], split="validation")
    own_metrics(result, family.tasks)             # {"rte_type_0": {"accuracy": 81.0}}

Every family of `tasks/` can be measured like this. A task's own `metric_fns` take all of its targets and predictions,
as seqio has it, so they are asked after the answers are scored one by one. A task gives its whole prompt, in which
nobody tells the question from its wording: instances have no `input`, so it is not copied, and cannot be perturbed.
"""

import collections
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from flanjax.data.sources import BadRow, report_bad_row
from flanjax.data.tasks import Row, TextTask, Tokenizer
from flanjax.evaluation.benchmark import Benchmark, BenchmarkError, Instance, Prediction, Result, Scores
from flanjax.evaluation.metrics import Words, score_each

# (row, task, its number in the split) -> another row in its place
Change = Callable[[Row, TextTask, int], Row]


def held_out(
    name: str,
    tasks: Sequence[TextTask],
    *,
    split: str = "test",
    per_task: int | None = None,
    tokenizer: Tokenizer | None = None,
    change: Change | None = None,
    words: Words | None = None,
    seed: int = 0,
) -> Benchmark:
    """The first rows of each task's split; metrics `rougeL`, `exact_match`, `rouge1`.

    Args:
      name: of the benchmark.
      tasks: of one family or several.
      split: that all of them have.
      per_task: rows of a task; None for all.
      tokenizer: of the model, for tasks that fit their text to a length; None lets every text fit.
      change: makes another row of each, for probes.
      words: what ROUGE counts instead of stemmed words.
      seed: of what the tasks draw.

    Raises:
      BenchmarkError: no task, or one without the split.
    """
    if not tasks:
        raise BenchmarkError(f"{name}: there are no tasks: name some")
    for task in tasks:
        if split not in task.splits:
            raise BenchmarkError(f"{name}: task {task.name!r} has no split {split!r}; it has {', '.join(task.splits)}")
    return Benchmark(
        name=name,
        load=functools.partial(_instances, tasks, split, per_task, tokenizer or _Endless(), change, seed),
        read=read_text,
        score=functools.partial(score_text, words=words),
        metrics=("rougeL", "exact_match", "rouge1"),
    )


def read_text(instance: Instance, prediction: Prediction) -> str:
    """The whole text."""
    return prediction.text


def score_text(instance: Instance, prediction: Prediction, answer: str, words: Words | None = None) -> Scores:
    """Exact match and ROUGE (`flanjax.evaluation.metrics`), the best over the references."""
    (scores,) = score_each([answer], [instance.references], words)
    return {metric: (value,) for metric, value in scores.items()}


def own_metrics(result: Result, tasks: Iterable[TextTask]) -> dict[str, Mapping[str, float]]:
    """Of each task with metrics of its own what they give for all its references and answers.

    They get the references of an instance as a list, as they were registered.
    """
    answers: dict[str, tuple[list[Sequence[str]], list[str]]] = collections.defaultdict(lambda: ([], []))
    for outcome in result.outcomes:
        references, texts = answers[outcome.instance.task]
        references.append(list(outcome.instance.references))
        texts.append(outcome.answer)
    return {
        task.name: {name: value for metric in task.metric_fns for name, value in metric(*answers[task.name]).items()}
        for task in tasks
        if task.metric_fns and task.name in answers
    }


def _instances(
    tasks: Sequence[TextTask],
    split: str,
    per_task: int | None,
    tokenizer: Tokenizer,
    change: Change | None,
    seed: int,
) -> Iterator[Instance]:
    for task in tasks:
        for number, (place, row) in enumerate(itertools.islice(task.source[split](seed), per_task)):
            try:
                row = change(row, task, number) if change else row
                text = task.text(row, number, place, split=split, seed=seed, tokenizer=tokenizer)
            except BadRow as error:
                report_bad_row(error)
                continue
            if text is not None:
                yield Instance(
                    id=f"{task.name}/{number}",
                    task=task.name,
                    prompt=text.inputs,
                    turns=text.turns[:-1],
                    references=text.references or (text.targets,),
                    details={"row": row},
                )


@dataclasses.dataclass(frozen=True)
class _Endless:
    """A tokenizer for which every text fits."""

    def encode(self, text: str) -> list[int]:
        return []

    def decode(self, ids: Iterable[int]) -> str:
        raise BenchmarkError("a task cuts its text to a length: give the tokenizer of the model")
