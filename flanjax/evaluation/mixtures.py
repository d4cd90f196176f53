"""The held-out split of any mixture as a benchmark, with the metrics that its tasks bring.

    benchmark = of_mixture(find("my_mixture", {"my_seqio_tasks": {}}), vocabulary)
    result = evaluate(benchmark, predict(benchmark, model))
    benchmark.tables[OWN_METRICS](result)               # {"my_task": {"accuracy": 81.0, "perplexity": 7.2}}

Tasks are text tasks (`flanjax.data.tasks`) or written in seqio, for which TensorFlow is loaded: their postprocessor and
their metrics get what `seqio.Evaluator` gives them. Exact match and ROUGE stand beside, over all tasks. A task without
the split is left out.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from flanjax.data.catalog import Modules, resolve_all
from flanjax.data.registry import AnyTask, find_mixture, register_modules
from flanjax.data.tasks import TextTask
from flanjax.data.vocabularies import Vocabulary
from flanjax.evaluation.benchmark import Benchmark, BenchmarkError, Instance, Outcome, Result, TableRows
from flanjax.evaluation.held_out import held_out, own_metrics, read_text, score_text

if TYPE_CHECKING:
    from flanjax.data.seqio_evaluation import HeldOut

OWN_METRICS = "Metrics of the tasks"
SPLITS = ("validation", "test")  # the first that a task has, where none is named
MAX_NEW_TOKENS = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """A mixture's tasks, each with the split of it that is evaluated."""

    name: str
    tasks: Sequence[tuple[AnyTask, str]]


def find(mixture: str, modules: Modules, *, split: str | None = None) -> Found:
    """The tasks of a mixture or task, or of a path of one's own data, that have the split.

    Raises:
      FlanjaxError: there is no such mixture or module, or no task of it has the split.
    """
    (name,), modules = resolve_all([mixture], modules, None)
    register_modules(modules)
    tasks = find_mixture(name).tasks
    wanted = SPLITS if split is None else (split,)
    chosen = [(task, next(one for one in wanted if one in task.splits)) for task in tasks if {*wanted} & {*task.splits}]
    if not chosen:
        there = sorted({one for task in tasks for one in task.splits})
        raise BenchmarkError(f"{mixture} has no split {' or '.join(wanted)}; its tasks have {', '.join(there)}")
    return Found(name=name, tasks=chosen)


def of_mixture(
    found: Found, vocabulary: Vocabulary, *, limit: int | None = None, max_new_tokens: int | None = None, seed: int = 0
) -> Benchmark:
    """The benchmark of a mixture's held-out examples.

    Arguments:
      found: of `find`.
      vocabulary: of the model.
      limit: examples of each seqio task that are read; None for all.
      max_new_tokens: of an answer; None for 128.
      seed: of what the tasks draw.

    Raises:
      FlanjaxError: the code or the data of a task failed, or it has a metric that asks for what is not given.
    """
    parts, of_seqio = [], {}
    for split in dict.fromkeys(split for _, split in found.tasks):
        texts = [task for task, one in found.tasks if one == split and isinstance(task, TextTask)]
        if texts:
            parts.append(held_out(found.name, texts, split=split, tokenizer=vocabulary, seed=seed))
    for task, split in found.tasks:
        if not isinstance(task, TextTask):
            from flanjax.data.seqio_evaluation import HeldOut

            of_seqio[task.name] = HeldOut.read(task, split, vocabulary, seed=seed, limit=limit)
    texts = [task for task, _ in found.tasks if isinstance(task, TextTask)]
    own = any(task.metric_fns for task in texts) or any(held.task.metric_objs for held in of_seqio.values())
    scored = any(held.is_scored for held in of_seqio.values())
    return Benchmark(
        name=found.name,
        load=functools.partial(_instances, parts, of_seqio, scored),
        read=read_text,
        score=score_text,
        metrics=("rougeL", "exact_match", "rouge1"),
        mode="both" if scored else "generate",
        max_new_tokens=max_new_tokens or MAX_NEW_TOKENS,
        tables={OWN_METRICS: functools.partial(_own_metrics, texts, of_seqio)} if own else {},
    )


def _instances(parts: Sequence[Benchmark], of_seqio: "Mapping[str, HeldOut]", scored: bool) -> Iterator[Instance]:
    for part in parts:
        for instance in part.load():
            # All of a mixture are scored where one is; nobody asks for those of a text task.
            yield dataclasses.replace(instance, choices=instance.references[:1]) if scored else instance
    for name, held in of_seqio.items():
        for number, example in enumerate(held.examples):
            target = held.text(number, "targets")
            yield Instance(
                id=f"{name}/{number}",
                task=name,
                prompt=held.text(number, "inputs"),
                references=_references(example) or (target,),
                choices=(target,) if scored else (),
                ids=tuple(held.ids(number, "inputs")),
                choice_ids=(tuple(held.ids(number, "targets")),) if scored else (),
            )


def _references(example: Mapping[str, Any]) -> tuple[str, ...]:
    """All accepted answers, of a text task that was made a seqio task."""
    return tuple(text.decode() for text in example["references"].tolist()) if "references" in example else ()


def _own_metrics(texts: Sequence[TextTask], of_seqio: "Mapping[str, HeldOut]", result: Result) -> TableRows:
    rows = dict(own_metrics(result, texts))
    for name, held in of_seqio.items():
        outcomes = [outcome for outcome in result.outcomes if outcome.instance.task == name]
        numbers = [int(outcome.instance.id.rpartition("/")[2]) for outcome in outcomes]
        answers = [outcome.prediction.text for outcome in outcomes]
        scores = [_score(outcome) for outcome in outcomes] if held.is_scored else []
        written = [_text_score(outcome) for outcome in outcomes] if held.has_aux else []
        if outcomes and (values := held.metrics(numbers, answers, scores, written)):
            rows[name] = values
    return cast(TableRows, rows)


def _score(outcome: Outcome) -> float:
    (score,) = outcome.prediction.loglikelihoods or (-math.inf,)
    return score


def _text_score(outcome: Outcome) -> float:
    score = outcome.prediction.text_loglikelihood
    if score is None:
        raise BenchmarkError(
            f"the prediction of {outcome.instance.id!r} has no text_loglikelihood, which a metric of its task asks "
            "for: predict it anew"
        )
    return score
