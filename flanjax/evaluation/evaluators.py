"""Held-out measurements of live parameters: loss over a mixture, and answers decoded and scored.

An evaluator is called by the training loop with the parameters as they lie on the mesh; it returns early, with what it
has, once `should_stop()` says so.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jax.sharding import Mesh

from flanjax.data.vocabularies import Vocabulary
from flanjax.evaluation.answers import Question, Report, answer
from flanjax.generation.greedy import greedy
from flanjax.models.config import Compute, T5Config
from flanjax.models.t5 import Params
from flanjax.training.interfaces import Batch
from flanjax.training.losses import LossConfig
from flanjax.training.step import make_eval_step, put_batch

DECODE_ROWS = 32


class Stopped(Exception):
    """Ends a decoding early; never leaves this module."""


class MixtureEvaluator:
    """Loss, accuracy of single tokens, and scores of answers on one held-out mixture.

    Attributes:
      report: the answers of the last call, None before it or where it was stopped.

    Arguments:
      model: the model.
      compute: how it is computed.
      loss: of training; the z-loss is left out of what is reported.
      mesh: where the parameters lie.
      batches: gives the held-out batches of this host, anew at each call.
      questions: what is answered; may be empty.
      vocabulary: turns answers into text.
      max_new_tokens: longest answer.
      metrics: names of `flanjax.evaluation.metrics.METRICS` to report.
    """

    def __init__(
        self,
        *,
        model: T5Config,
        compute: Compute,
        loss: LossConfig,
        mesh: Mesh,
        batches: Callable[[], Iterable[Batch]],
        questions: Sequence[Question],
        vocabulary: Vocabulary,
        max_new_tokens: int,
        metrics: Sequence[str],
    ):
        self.report: Report | None = None
        self._model = model
        self._compute = compute
        self._mesh = mesh
        self._batches = batches
        self._questions = questions
        self._vocabulary = vocabulary
        self._max_new_tokens = max_new_tokens
        self._metrics = metrics
        self._eval_step = make_eval_step(model, compute, loss, mesh)

    def __call__(self, params: Params, should_stop: Callable[[], bool]) -> dict[str, float]:
        """Values by name: `loss` (natural logarithm, mean over target tokens), `token_accuracy`, and the metrics."""
        self.report = None
        values = self._losses(params, should_stop)
        if self._questions and not should_stop():
            try:
                self.report = answer(self._questions, lambda inputs: self._generate(params, inputs, should_stop))
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

    def _generate(self, params: Params, inputs: list[list[int]], should_stop: Callable[[], bool]) -> list[str]:
        if should_stop():
            raise Stopped
        ids = greedy(self._model, self._compute, params, inputs, self._max_new_tokens, batch_rows=DECODE_ROWS)
        return [self._vocabulary.decode(answer) for answer in ids]
