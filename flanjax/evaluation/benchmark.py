"""Benchmarks: published test sets as prompts, how an answer is read out, and how it is scored.

    benchmark = bbh("data/bbh", prompting="cot")
    predictions = predict(benchmark, model)                  # or read_predictions("predictions.jsonl")
    result = evaluate(benchmark, predictions)
    result.average("exact_match"), result.by_task("exact_match")["navigate"]

An instance is answered in one of two modes, or in both: "generate" (a text is written, and an answer read out of it)
and "choices" (each choice is scored by its log-likelihood after the prompt). Nothing here knows a model: `Model` is
what one has to offer. Instances are made from the published files one at a time; a malformed row is a BadRow with its
place.
"""

import collections
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NamedTuple, Protocol

from flanjax.data.records import read_json_lines
from flanjax.data.sources import BadRow, report_bad_row, text_field
from flanjax.data.tasks import Turn
from flanjax.errors import FlanjaxError

Mode = Literal["generate", "choices", "both"]
Average = Literal["instances", "tasks", "categories"]
# Of each metric the values in [0, 1] that one instance adds to its mean: one, or several such as one an instruction.
Scores = Mapping[str, tuple[float, ...]]
# A table's figures and words by column, of each of its rows by name.
TableRows = Mapping[str, Mapping[str, float | str]]


class BenchmarkError(FlanjaxError):
    """A benchmark that was asked for what it has not, or predictions that are not of its instances."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instance:
    """One question of a benchmark.

    Attributes:
      id: unique in the benchmark.
      task: the published task or subject, of which tables have a row each.
      category: the published group of tasks.
      prompt: the whole input text.
      turns: a conversation, where the question is more than one; else the prompt is one turn.
      references: texts that count as right.
      choices: in mode "choices" or "both" the texts to be scored; they follow the prompt after one space.
      ids: token ids of the prompt, of a task that makes them itself, over the vocabulary of the model.
      choice_ids: likewise of each choice, with its end.
      correct: places of the right choices.
      input: the question alone, without definition and demonstrations; "" where nobody tells it from the rest.
      demonstrations: outputs of the demonstrations in the prompt, in order.
      cut: whether something was left out of the published prompt, which would be longer than is allowed.
      details: what else a metric needs, as it was published.
    """

    id: str
    task: str
    prompt: str
    category: str = ""
    turns: tuple[Turn, ...] = ()
    references: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    ids: tuple[int, ...] = ()
    choice_ids: tuple[tuple[int, ...], ...] = ()
    correct: tuple[int, ...] = ()
    input: str = ""
    demonstrations: tuple[str, ...] = ()
    cut: bool = False
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def conversation(self) -> tuple[Turn, ...]:
        """The turns, for a chat template."""
        return self.turns or (Turn(role="user", text=self.prompt),)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a model gave for an instance: a text, or the log-likelihood (natural) of each choice.

    `text_loglikelihood` is that of the text, its end included where the model ended it; None where nobody told it.
    `seconds` is the instance's share of the time that the model took for all that were asked together.
    """

    id: str
    text: str = ""
    text_loglikelihood: float | None = None
    loglikelihoods: tuple[float, ...] = ()
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """As `read_predictions` reads it."""
        found: dict[str, Any] = {"prediction": self.text} if self.text or not self.loglikelihoods else {}
        found |= {} if self.text_loglikelihood is None else {"text_loglikelihood": self.text_loglikelihood}
        found |= {"loglikelihoods": list(self.loglikelihoods)} if self.loglikelihoods else {}
        return {"id": self.id, **found, "seconds": round(self.seconds, 6)}


class Written(NamedTuple):
    """A text of a model, and its log-likelihood as `Prediction` has it."""

    text: str
    loglikelihood: float | None = None


class Model(Protocol):
    """What answers a benchmark: a model with its tokenizer, a server, or a baseline."""

    def generate(self, instances: Sequence[Instance], max_new_tokens: int, stop: Sequence[str]) -> list[Written]:
        """A text for each instance; it may end at the first of the `stop` strings."""

    def loglikelihoods(self, instances: Sequence[Instance]) -> list[tuple[float, ...]]:
        """For each instance the log-likelihood of each of its choices."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A published test set in one way of prompting.

    Attributes:
      name: as reports say it, with the way of prompting: "bbh-cot".
      load: makes the instances anew from the files.
      read: the answer in a prediction, as it is scored and shown.
      score: the values of an instance, from (instance, prediction, answer).
      metrics: their names; the first is what the benchmark is known by.
      average: what the published figure is a mean over: all instances, or the means of tasks or of categories.
      mode: how instances are answered.
      max_new_tokens: of a generated text.
      stop: strings at which a generated text ends; T5 writes no newline, so it never meets one.
      say: a text that gives an answer, as a generated one does that is read.
      probes: the same instances asked with less or with wrong instruction, by what is changed: a model that answers
        those as well has not learnt from what was there.
      tables: what else is known of a result, by heading: rows of figures by name.
      whole: the benchmark that this one is a part of; None where it is whole.
    """

    name: str
    load: Callable[[], Iterator[Instance]]
    read: Callable[[Instance, Prediction], str]
    score: Callable[[Instance, Prediction, str], Scores]
    metrics: tuple[str, ...]
    average: Average = "instances"
    mode: Mode = "generate"
    max_new_tokens: int = 128
    stop: tuple[str, ...] = ()
    say: Callable[[str], str] = str
    probes: Mapping[str, "Benchmark"] = dataclasses.field(default_factory=dict)
    tables: Mapping[str, Callable[["Result"], TableRows]] = dataclasses.field(default_factory=dict)
    whole: "Benchmark | None" = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """An instance, what was predicted, the answer in it, and the values it got."""

    instance: Instance
    prediction: Prediction
    answer: str
    scores: Scores


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """A benchmark's outcomes, in the order of its instances; all averages are percentages."""

    benchmark: Benchmark
    outcomes: tuple[Outcome, ...]

    def average(self, metric: str) -> float:
        """The mean that the published figure is: over instances, or over the means of tasks or categories.

        Raises:
          BenchmarkError: no instance has the metric.
        """
        if self.benchmark.average == "instances":
            return mean(self.outcomes, metric)
        means = (self.by_task if self.benchmark.average == "tasks" else self.by_category)(metric)
        if not means:
            raise BenchmarkError(f"no instance has the metric {metric!r}: ask for one that the benchmark lists")
        return math.fsum(means.values()) / len(means)

    def by_task(self, metric: str) -> dict[str, float]:
        """The mean of each task that has the metric, in order of the names."""
        return _means(self.outcomes, metric, lambda outcome: outcome.instance.task)

    def by_category(self, metric: str) -> dict[str, float]:
        """The mean of each category that has the metric, in order of the names."""
        return _means(self.outcomes, metric, lambda outcome: outcome.instance.category)


def mean(outcomes: Iterable[Outcome], metric: str) -> float:
    """The mean over all values of a metric, in percent.

    Worked example: an instance with (1.0,) and one with (1.0, 0.0) have the mean 66.67.

    Raises:
      BenchmarkError: no instance has the metric.
    """
    values = [value for outcome in outcomes for value in outcome.scores.get(metric, ())]
    if not values:
        raise BenchmarkError(f"no instance has the metric {metric!r}: ask for one that the benchmark lists")
    return 100 * math.fsum(values) / len(values)


def _means(outcomes: Iterable[Outcome], metric: str, key: Callable[[Outcome], str]) -> dict[str, float]:
    groups: dict[str, list[Outcome]] = collections.defaultdict(list)
    for outcome in outcomes:
        if outcome.scores.get(metric):
            groups[key(outcome)].append(outcome)
    return {name: mean(groups[name], metric) for name in sorted(groups)}


def predict(benchmark: Benchmark, model: Model, batch_size: int = 64) -> Iterator[Prediction]:
    """The model's predictions, in order, a batch of instances at a time."""
    instances = benchmark.load()
    while batch := list(itertools.islice(instances, batch_size)):
        started = time.monotonic()
        scores: list[tuple[float, ...]] = [()] * len(batch)
        texts = [Written("")] * len(batch)
        if benchmark.mode != "generate":
            scores = model.loglikelihoods(batch)
        if benchmark.mode != "choices":
            texts = model.generate(batch, benchmark.max_new_tokens, benchmark.stop)
        share = (time.monotonic() - started) / len(batch)
        for instance, text, values in zip(batch, texts, scores, strict=True):
            yield Prediction(
                id=instance.id,
                text=text.text,
                text_loglikelihood=text.loglikelihood,
                loglikelihoods=tuple(values),
                seconds=share,
            )


def evaluate(benchmark: Benchmark, predictions: Iterable[Prediction]) -> Result:
    """Scores predictions, which may come in any order.

    Raises:
      BenchmarkError: an instance has none or two, one is of no instance, one has not a value for each choice, or
        none that is finite, or there are no instances.
    """
    named: dict[str, Prediction] = {}
    for prediction in predictions:
        if prediction.id in named:
            raise BenchmarkError(f"{benchmark.name}: two predictions for instance {prediction.id!r}: keep one")
        named[prediction.id] = prediction
    outcomes = []
    for instance in benchmark.load():
        if instance.id not in named:
            raise BenchmarkError(f"{benchmark.name}: no prediction for instance {instance.id!r}: predict it as well")
        outcomes.append(_outcome(benchmark, instance, named.pop(instance.id)))
    if named:
        raise BenchmarkError(f"{benchmark.name}: there is no instance {next(iter(named))!r}, which has a prediction")
    if not outcomes:
        raise BenchmarkError(f"{benchmark.name}: the files have no instances")
    return Result(benchmark=benchmark, outcomes=tuple(outcomes))


def _outcome(benchmark: Benchmark, instance: Instance, prediction: Prediction) -> Outcome:
    scored = benchmark.mode == "choices" or (benchmark.mode == "both" and prediction.loglikelihoods)
    if scored and (
        len(prediction.loglikelihoods) != len(instance.choices)
        or any(map(math.isnan, prediction.loglikelihoods))
        or not math.isfinite(max(prediction.loglikelihoods))
    ):
        raise BenchmarkError(
            f"{benchmark.name}: instance {instance.id!r} has {len(instance.choices)} choices and the log-likelihoods "
            f"{list(prediction.loglikelihoods)}: give a number for each, not all infinite"
        )
    answer = benchmark.read(instance, prediction)
    scores = benchmark.score(instance, prediction, answer)
    return Outcome(instance=instance, prediction=prediction, answer=answer, scores=scores)


def read_predictions(file: str | Path) -> Iterator[Prediction]:
    """Predictions from JSON lines {"id", "prediction"} (Super-NI's form), or {"id", "loglikelihoods"}, or both.

    Beside a prediction there may be its "text_loglikelihood".

    Raises:
      BadRow: a line is neither.
    """
    for place, record in read_json_lines(file):
        try:
            identity, seconds = text_field(record, "id", place), record.get("seconds", 0.0)
            if type(seconds) not in (int, float):
                raise BadRow(f"{place}: field 'seconds' must be a number")
            values = record.get("loglikelihoods", [])
            if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
                raise BadRow(f"{place}: field 'loglikelihoods' must be a list of numbers")
            written = record.get("text_loglikelihood")
            if type(written) not in (int, float, NoneType):
                raise BadRow(f"{place}: field 'text_loglikelihood' must be a number")
            text = "" if values and "prediction" not in record else text_field(record, "prediction", place)
            yield Prediction(
                id=identity,
                text=text,
                text_loglikelihood=written,
                loglikelihoods=tuple(map(float, values)),
                seconds=seconds,
            )
        except BadRow as error:
            report_bad_row(error)


def made(rows: Iterable[tuple[str, Any]], make: Callable[[int, str, Any], Instance]) -> Iterator[Instance]:
    """The instance of each (place, row), numbered from 0; a BadRow is treated as the policy says."""
    for number, (place, row) in enumerate(rows):
        try:
            yield make(number, place, row)
        except BadRow as error:
            report_bad_row(error)


def likeliest(prediction: Prediction) -> int:
    """The place of the choice with the highest log-likelihood; of equal ones the first."""
    return max(range(len(prediction.loglikelihoods)), key=prediction.loglikelihoods.__getitem__)


def read_choice(instance: Instance, prediction: Prediction) -> str:
    """The likeliest choice."""
    return instance.choices[likeliest(prediction)]


def score_choice(instance: Instance, prediction: Prediction, answer: str) -> Scores:
    """Accuracy: whether the likeliest choice is a right one."""
    del answer
    return {"accuracy": (float(likeliest(prediction) in instance.correct),)}


def until(text: str, stop: Iterable[str]) -> str:
    """The text up to the first of the stop strings, for models that write on."""
    return min((text.split(string, 1)[0] for string in stop), key=len, default=text)
