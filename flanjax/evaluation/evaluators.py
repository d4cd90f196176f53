"""Held-out measurements of live parameters: loss and answers on a mixture, and published test sets.

An evaluator is called by the training loop with the parameters as they lie on the mesh; it returns early, with what it
has, once `should_stop()` says so. A suite is measured by the code of `flanjax.evaluate`, and gives the same figures.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from jax.sharding import Mesh

from flanjax.data.placeholders import Placeholders
from flanjax.data.vocabularies import Vocabulary
from flanjax.errors import FlanjaxError, nearest
from flanjax.evaluation.answers import Question, Report, answer
from flanjax.evaluation.asking import Asked
from flanjax.evaluation.benchmark import Benchmark, Prediction
from flanjax.evaluation.measuring import ask, measure
from flanjax.evaluation.metrics import METRICS
from flanjax.evaluation.report import Measured
from flanjax.evaluation.suites import suite
from flanjax.generation.greedy import greedy
from flanjax.models.config import Compute
from flanjax.models.model import ModelConfig
from flanjax.models.parameters import Params
from flanjax.training.interfaces import Batch
from flanjax.training.losses import LossConfig
from flanjax.training.step import make_eval_step, put_batch

DECODE_ROWS = 32


class EvaluationError(FlanjaxError):
    """An evaluation that cannot be made as it was asked for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What is measured on held-out examples, and how much of it.

    Attributes:
      mixtures: held-out mixtures, evaluated beside the run's own; a lone name is one mixture.
      split: the split that is evaluated; it keeps its texts.
      loss_examples: examples of a mixture that the loss is taken over, spread evenly over its tasks; None for all.
      questions: examples of a mixture that are answered, likewise; 0 answers none.
      max_new_tokens: an answer's longest length in tokens.
      metrics: of `flanjax.evaluation.metrics.METRICS`, shown per task; a lone name is one metric.
      suites: published test sets, of `flanjax.evaluation.suites.SUITES`; a lone name is one suite.
      suite_data: where their files are, for suites of one dataset; "" for the own folder of each dataset.
      suite_limit: instances of each task of a suite; None for all.
      suite_chat: whether they are asked in the run's chat template.
      suite_seed: of guesses beside the figures of a suite, and of their intervals.

    Raises:
      FlanjaxError: a metric or a suite that does not exist, or a number outside its range.
    """

    mixtures: tuple[str, ...] = ()
    split: str = "validation"
    loss_examples: int | None = 2000
    questions: int = 200
    max_new_tokens: int = 32
    metrics: tuple[str, ...] = ("exact_match",)
    suites: tuple[str, ...] = ()
    suite_data: str = ""
    suite_limit: int | None = None
    suite_chat: bool = False
    suite_seed: int = 0

    def __post_init__(self) -> None:
        for name in ("mixtures", "metrics", "suites"):
            names = getattr(self, name) or ()
            object.__setattr__(self, name, (names,) if isinstance(names, str) else tuple(names))
        for metric in self.metrics:
            if metric not in METRICS:
                raise EvaluationError(
                    f"EvaluationConfig.metrics: there is no metric {metric!r}{nearest(metric, METRICS)}; "
                    f"there are {', '.join(METRICS)}"
                )
        for name in self.suites:
            suite(name)
        for name, least in {"loss_examples": 1, "questions": 0, "max_new_tokens": 1, "suite_limit": 1}.items():
            value, may_be_all = getattr(self, name), name in ("loss_examples", "suite_limit")
            if (not isinstance(value, int) or value < least) and not (value is None and may_be_all):
                raise EvaluationError(
                    f"EvaluationConfig.{name} is {value!r}: it must be a whole number of at least {least}"
                    f"{', or None for all' if may_be_all else ''}"
                )


class Stopped(Exception):
    """Ends a decoding early; never leaves this module."""


class SuiteEvaluator:
    """The averages of a published test set, in percent.

    Attributes:
      values: names of what a call gives.
      measured: all of the last call, None before it or where it was stopped.
      told: is called, on the evaluation's thread, with how many instances of how many are answered.

    Arguments:
      benchmark: the test set; its probes are left to `flanjax.evaluate`, for each asks everything once more.
      asked: the parameters as a model that is asked.
      seed: of the guesses that stand beside the figures.
    """

    def __init__(self, benchmark: Benchmark, asked: Callable[[Params], Asked], *, seed: int = 0):
        self.values = benchmark.metrics
        self.measured: Measured | None = None
        self.told: Callable[[int, int], None] = lambda done, total: None
        self._benchmark = dataclasses.replace(benchmark, probes={})
        self._asked = asked
        self._seed = seed

    def __call__(self, params: Params, should_stop: Callable[[], bool]) -> dict[str, float]:
        """The average of each of the benchmark's metrics."""
        self.measured, model = None, self._asked(params)
        total = sum(1 for _ in self._benchmark.load())

        def answered(form: Benchmark) -> Iterator[Prediction]:
            for done, prediction in enumerate(ask(form, model), 1):
                if should_stop():
                    raise Stopped
                self.told(done, total)
                yield prediction

        try:
            self.measured = measure(self._benchmark, answered, model.tokens, seed=self._seed)
        except Stopped:
            return {}
        return {metric: self.measured.result.average(metric) for metric in self.values}


class MixtureEvaluator:
    """Loss, accuracy of single tokens, and scores of answers on one held-out mixture.

    Attributes:
      values: names of what a call gives.
      report: the answers of the last call, None before it or where it was stopped.

    Arguments:
      model: the model.
      compute: how it is computed.
      loss: of training; the z-loss is left out of what is reported.
      mesh: where the parameters lie.
      batches: gives the held-out batches of this host, anew at each call.
      questions: what is answered; may be empty.
      prefix_lm: whether a decoder's inputs all see each other.
      vocabulary: turns answers into text.
      end_ids: what an answer may end with; None for the vocabulary's end of sequence.
      max_new_tokens: longest answer.
      metrics: names of `flanjax.evaluation.metrics.METRICS` to report.
    """

    def __init__(
        self,
        *,
        model: ModelConfig,
        compute: Compute,
        loss: LossConfig,
        mesh: Mesh,
        batches: Callable[[], Iterable[Batch]],
        questions: Sequence[Question],
        prefix_lm: bool = False,
        vocabulary: Vocabulary,
        end_ids: Sequence[int] | None = None,
        max_new_tokens: int,
        metrics: Sequence[str],
    ):
        self.values = ("loss", "token_accuracy", *(metrics if questions else ()))
        self.report: Report | None = None
        self._model = model
        self._placeholders = Placeholders(model.prompt_length, model.prompt_tasks)
        self._compute = compute
        self._mesh = mesh
        self._batches = batches
        self._questions = questions
        self._prefix_lm = prefix_lm
        self._vocabulary = vocabulary
        self._end_ids = end_ids or (vocabulary.eos_id,)
        self._max_new_tokens = max_new_tokens
        self._metrics = metrics
        self._eval_step = make_eval_step(model, compute, loss, mesh)

    def __call__(self, params: Params, should_stop: Callable[[], bool]) -> dict[str, float]:
        """Values by name: `loss` (natural logarithm, mean over target tokens), `token_accuracy`, and the metrics."""
        self.report = None
        values = self._losses(params, should_stop)
        if self._questions and not should_stop():
            try:
                self.report = answer(self._questions, lambda asked: self._generate(params, asked, should_stop))
            except Stopped:
                return values
            values |= {name: self.report.overall.metrics[name] for name in self._metrics}
        return values

    def _losses(self, params: Params, should_stop: Callable[[], bool]) -> dict[str, float]:
        sums = []
        for batch in self._batches():
            if should_stop():
                break
            sums.append(self._eval_step(params, put_batch(batch, self._mesh)))
        if not sums:
            return {}
        # Added on the host in float64: a held-out set may have more target tokens than float32 counts.
        total = np.array([[s.loss - s.z_loss, s.correct, s.tokens] for s in sums], np.float64)
        loss, correct, tokens = total.sum(axis=0)
        return {"loss": float(loss / max(tokens, 1)), "token_accuracy": float(correct / max(tokens, 1))}

    def _generate(self, params: Params, asked: Sequence[Question], should_stop: Callable[[], bool]) -> list[str]:
        if should_stop():
            raise Stopped
        ids = greedy(
            self._model,
            self._compute,
            params,
            [question.inputs for question in asked],
            self._max_new_tokens,
            eos_ids=self._end_ids,
            prefix_lm=self._prefix_lm,
            prompts=self._placeholders.numbers([question.task for question in asked]),
            batch_rows=DECODE_ROWS,
        )
        return [self._vocabulary.decode(answer) for answer in ids]
