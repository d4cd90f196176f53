"""Flan 2021's held-out clusters: each dataset zero-shot, in the wordings of its task, and a mean of each cluster.

    benchmark = flan2021("data", clusters=("entailment",))        # data/rte, data/cb, ...: those that are there
    result.by_category("exact_match")                             # {"entailment": 61.3}

A model is held out from a cluster when it was not trained on it (`flanjax.tasks.flan2021`, `held_out_clusters`); which
of them that is, only its user knows. Rows are those that the paper tests on: the published validation split where test
labels are hidden. A row is asked in one of its dataset's wordings, drawn by the seed, where the paper asks all rows in
each wording and takes the mean. Datasets count alike, whatever their size. Translations have BLEU and chrF as well,
counted over a dataset. Wordings put a row's fields and options where they like, so a question is not known apart: it is
not copied as a baseline, and perturbations are refused. Source: Wei et al. 2021 (arXiv 2109.01652).
"""

import dataclasses
import functools
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from flanjax.data.registry import load_family
from flanjax.evaluation.benchmark import Benchmark, BenchmarkError, Instance, Result
from flanjax.evaluation.held_out import held_out
from flanjax.evaluation.metrics import bleu, chrf

FAMILY = "flanjax.tasks.flan2021"
ARM = "_zsopt"  # zero-shot, with options where there are some
TRANSLATION = "translation"


def flan2021(data_dir: str | Path, *, clusters: Sequence[str] = (), seed: int = 0) -> Benchmark:
    """The test rows of every dataset in the folder; metrics `exact_match`, `rougeL`, `rouge1`, a mean over datasets.

    Args:
      data_dir: with a folder for each dataset; those that are not there are left out.
      clusters: of the paper; none for all.
      seed: of the wordings.

    Raises:
      BenchmarkError: none of the datasets is there.
      FlanjaxError: there is no such cluster.
    """
    cluster_of = _clusters(clusters)
    family = load_family(FAMILY, {"data_dir": str(data_dir), "missing": "skip"})
    assert family is not None
    tasks = [task for task in family.tasks if task.name in cluster_of and "test" in task.splits]
    if not tasks:
        raise BenchmarkError(f"{data_dir}: no dataset of {', '.join(clusters) or 'Flan 2021'} has test rows there")
    benchmark = held_out("flan2021", tasks, seed=seed)
    return dataclasses.replace(
        benchmark,
        load=functools.partial(_with_clusters, benchmark.load, cluster_of),
        metrics=("exact_match", "rougeL", "rouge1"),
        average="tasks",
        tables={"Translation": translation_table},
    )


def translation_table(result: Result) -> dict[str, dict[str, float]]:
    """Of each dataset of translations its BLEU and chrF, in percent."""
    answers: dict[str, tuple[list[str], list[Sequence[str]]]] = {}
    for outcome in result.outcomes:
        if outcome.instance.category == TRANSLATION:
            predictions, references = answers.setdefault(outcome.instance.task, ([], []))
            predictions.append(outcome.answer)
            references.append(outcome.instance.references)
    return {name: {"bleu": bleu(*found), "chrf": chrf(*found)} for name, found in answers.items()}


def _clusters(wanted: Sequence[str]) -> dict[str, str]:
    """Task -> cluster, of those wanted."""
    known = importlib.import_module(FAMILY)  # by name, as every family is
    if unknown := set(wanted) - set(known.CLUSTERS):
        raise BenchmarkError(f"flan2021: there is no cluster {min(unknown)!r}; there are {', '.join(known.CLUSTERS)}")
    return {
        f"{dataset.name}{ARM}": dataset.cluster
        for dataset in known.DATASETS.values()
        if dataset.cluster in (wanted or known.CLUSTERS)
    }


def _with_clusters(load: Callable[[], Iterator[Instance]], cluster_of: Mapping[str, str]) -> Iterator[Instance]:
    for instance in load():
        yield dataclasses.replace(instance, category=cluster_of[instance.task], details={})
