"""A benchmark asked of a model, and what stands beside its figures: for `flanjax.evaluate` and for training.

    (benchmark,) = chosen(["mmlu-flan"], "data/mmlu", limit=10).values()
    measured = measure(benchmark, lambda form: ask(form, model, file=Path("a.jsonl")), model.tokens)

Answers go to their file as they come. Asked again, those that it has are not asked for: the instances are taken in
batches that are always the same, and a batch that was cut short is answered anew, so that a measurement that was
killed ends as one that was not.
"""

import dataclasses
import datetime
import hashlib
import importlib.metadata
import itertools
import json
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flanjax.data.tasks import Tokenizer
from flanjax.evaluation.baselines import baselines
from flanjax.evaluation.benchmark import (
    Benchmark,
    BenchmarkError,
    Model,
    Prediction,
    evaluate,
    predict,
    read_predictions,
)
from flanjax.evaluation.report import Measured, write_report
from flanjax.evaluation.suites import first_of_each_task, suite
from flanjax.files import read_json_lines, write_whole

SETTINGS = "evaluation.json"
AT_ONCE = 64  # instances handed to the model together; it sorts them by length

Ask = Callable[[Benchmark], Iterable[Prediction]]


def chosen(
    suites: Sequence[str], data: str = "", limit: int | None = None, tokenizer: Tokenizer | None = None
) -> dict[str, Benchmark]:
    """The benchmarks of these suites, by name.

    Arguments:
      suites: names in `flanjax.evaluation.suites.SUITES`.
      data: where their files are; "" for each dataset's own folder (`flanjax.data.tasks.dataset_folder`).
      limit: instances of each task; None for all.
      tokenizer: of the model, for prompts that are cut to a length; None cuts none.

    Raises:
      FlanjaxError: there is no such suite or no data, or one folder is given for several datasets.
    """
    if data and len({suite(name).dataset for name in suites}) > 1:
        raise BenchmarkError(
            f"{data} is the folder of one dataset, and the suites {', '.join(suites)} are of several: give one call or "
            "run the suites of one dataset, or put each under $FLANJAX_DATA_DIR"
        )
    return {name: first_of_each_task(suite(name).benchmark(data, tokenizer), limit) for name in suites}


def questions_of(benchmark: Benchmark) -> tuple[int, str]:
    """How many instances there are, and a digest of what they ask for: 16 hex digits."""
    found, count = hashlib.sha256(), 0
    for instance in benchmark.load():
        turns = [(turn.role, turn.text) for turn in instance.turns]
        asked = [instance.id, instance.task, instance.prompt, turns, instance.choices]
        found.update(json.dumps([*asked, benchmark.max_new_tokens, benchmark.stop]).encode())
        count += 1
    return count, found.hexdigest()[:16]


def ask(
    benchmark: Benchmark, model: Model, *, file: Path | None = None, at_once: int = AT_ONCE
) -> Iterator[Prediction]:
    """The model's predictions, in order; those that `file` has are taken from there, the others are added to it.

    Raises:
      BenchmarkError: the file has answers to other instances.
      FlanjaxError: the file cannot be written.
    """
    if file is None:
        yield from predict(benchmark, model, at_once)
        return
    lines, total = read_json_lines(file), sum(1 for _ in benchmark.load())
    if len(lines) < total:
        lines = lines[: len(lines) // at_once * at_once]
    write_whole(file, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    known = list(read_predictions(file))
    instances = benchmark.load()
    for prediction, instance in zip(known, instances, strict=False):
        if prediction.id != instance.id:
            raise BenchmarkError(f"{file} has an answer to {prediction.id!r} where {instance.id!r} is asked: remove it")
    yield from known
    rest = dataclasses.replace(benchmark, load=lambda: itertools.islice(benchmark.load(), len(known), None))
    with file.open("a") as stream:
        for prediction in predict(rest, model, at_once):
            stream.write(json.dumps(prediction.to_json(), ensure_ascii=False) + "\n")
            stream.flush()
            yield prediction


def measure(
    benchmark: Benchmark,
    answered: Ask,
    tokens: Callable[[str], int],
    *,
    perturbed: Mapping[str, Benchmark] | None = None,
    seed: int = 0,
) -> Measured:
    """The benchmark's result beside those of baselines, of its probes, and of other forms of its questions.

    Arguments:
      benchmark: what is measured.
      answered: gives the model's predictions on a benchmark.
      tokens: how many a text is to the model.
      perturbed: the same benchmark in other forms, by name.
      seed: of the guesses among the baselines (`flanjax.evaluation.baselines`).
    """
    result, guessed = evaluate(benchmark, answered(benchmark)), baselines(benchmark, seed, benchmark.whole)
    written = [
        outcome.instance.choices if benchmark.mode == "choices" else (outcome.prediction.text,)
        for outcome in result.outcomes
    ]
    return Measured(
        result=result,
        baselines={name: evaluate(benchmark, found) for name, found in guessed.items()},
        probes={name: evaluate(probe, answered(probe)) for name, probe in benchmark.probes.items()},
        perturbed={name: evaluate(form, answered(form)) for name, form in (perturbed or {}).items()},
        seconds=sum(outcome.prediction.seconds for outcome in result.outcomes),
        prompt_tokens=[tokens(outcome.instance.prompt) for outcome in result.outcomes],
        answer_tokens=[sum(map(tokens, texts)) for texts in written],
    )


def write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Says in a folder what is measured there and how."""
    write_whole(folder / SETTINGS, json.dumps(settings, indent=2) + "\n")


def write_evaluation(
    folder: Path,
    title: str,
    measured: Mapping[str, Measured],
    settings: Mapping[str, Any],
    facts: Mapping[str, str] | None = None,
) -> None:
    """Writes the report of suites.

    Arguments:
      folder: where; it is made.
      title: such as the model's name.
      measured: of each suite.
      settings: what was asked for; its "seed" is that of intervals.
      facts: of the model and the machine.

    Raises:
      FileError: a file cannot be written.
    """
    told = {name: json.dumps(value) for name, value in settings.items()} | dict(facts or {})
    told |= {name: importlib.metadata.version(name) for name in ("flanjax", "jax", "numpy", "rouge-score")}
    told |= {"python": platform.python_version(), "date": datetime.date.today().isoformat()}
    write_settings(folder, settings)
    write_report(folder, title, list(measured.values()), facts=told, seed=settings["seed"])
