"""A split of a seqio task to be answered, and what the task's own metrics say of the answers.

    held = HeldOut.read(task, "validation", vocabulary)
    held.metrics(range(2), ["4", "yes"])                # {"accuracy": 0.5}, of its first two examples

The task's preprocessors run on the model's vocabulary; its postprocessor, `metric_fns` and `metric_objs` are asked as
`seqio.Evaluator` asks them, and give what they give there. Score metrics take the log-likelihood of a target, which is
summed over its tokens, EOS included, as T5X gives it to them; `aux_values` are {"scores": those of the answers}, as
T5X's `temperature_sample` gives them (its beam search divides them by a power of the length).
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from flanjax.data.seqio_stream import StreamError, failure, preprocessed
from flanjax.data.seqio_vocabularies import seqio_vocabulary
from flanjax.data.sources import bad_row_policy
from flanjax.data.vocabularies import Vocabulary

_Output = seqio.metrics.ModelOutputType


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOut:
    """The examples of a split, in file order, with everything that the task's preprocessors left in them.

    Attributes:
        task: over the model's vocabulary.
        vocabulary: of the model.
        examples: arrays by field.
    """

    task: seqio.Task
    vocabulary: Vocabulary
    examples: Sequence[dict[str, Any]]

    @staticmethod
    def read(
        task: seqio.Task, split: str, vocabulary: Vocabulary, *, seed: int = 0, limit: int | None = None
    ) -> "HeldOut":
        """Reads the first `limit` examples of a split, or all.

        Raises:
            FlanjaxError: the task's own code or data failed, or it has a metric that asks for what is not given.
        """
        for metric in task.metric_objs:
            if metric.model_output_type not in (_Output.PREDICTION, _Output.SCORE, _Output.PREDICTION_WITH_AUX):
                name = getattr(metric, "__name__", type(metric).__name__)
                raise StreamError(
                    f"task {task.name!r} has a metric, {name}, over "
                    f"{_Output.to_str(metric.model_output_type)}, which is not given: metrics take (targets, "
                    "predictions), (targets, scores) or (targets, predictions, aux_values)"
                )
        tf.config.set_visible_devices([], "GPU")  # which are the model's
        task, dataset = preprocessed(task, split, seqio_vocabulary(vocabulary), seed=seed)
        with bad_row_policy("error") as bad_rows:
            try:
                examples = list(itertools.islice(tfds.as_numpy(dataset), limit))
            except Exception as error:
                raise bad_rows.error or StreamError(f"task {task.name!r}, {split}: {failure(error)}") from error
        return HeldOut(task=task, vocabulary=vocabulary, examples=examples)

    @property
    def is_scored(self) -> bool:
        """Whether a metric asks for the log-likelihoods of the targets."""
        return any(metric.model_output_type == _Output.SCORE for metric in self.task.metric_objs)

    @property
    def has_aux(self) -> bool:
        """Whether a metric asks for the log-likelihoods of the answers."""
        return any(metric.model_output_type == _Output.PREDICTION_WITH_AUX for metric in self.task.metric_objs)

    def text(self, number: int, side: str) -> str:
        """The inputs or targets of an example, before they were tokenised where the task kept that."""
        example = self.examples[number]
        if f"{side}_pretokenized" in example:
            return str(tf.compat.as_text(example[f"{side}_pretokenized"]))
        return self.vocabulary.decode(self.ids(number, side))

    def ids(self, number: int, side: str) -> list[int]:
        """The token ids of the inputs or targets of an example, as the task made them."""
        return [int(token) for token in self.examples[number][side]]

    def metrics(
        self,
        numbers: Sequence[int],
        texts: Sequence[str],
        scores: Sequence[float] = (),
        text_scores: Sequence[float] = (),
    ) -> dict[str, Any]:
        """What the task's metrics give for answers to the examples of these numbers: numbers, or texts by name.

        Arguments:
            numbers: of the examples that were answered.
            texts: the answers.
            scores: log-likelihoods of the targets; empty where no metric asks for them.
            text_scores: log-likelihoods of the answers; empty likewise.

        Raises:
            StreamError: a metric failed.
        """
        examples = [self.examples[number] for number in numbers]
        where = np.stack([np.zeros(len(examples), np.int32), np.arange(len(examples), dtype=np.int32)], axis=1)
        features = self.task.output_features
        found: dict[str, Any] = {}
        for metric in self.task.metric_objs:
            output: Any = np.array(scores)
            if metric.model_output_type != _Output.SCORE:
                output = self._answers(metric, texts)
            if metric.model_output_type == _Output.PREDICTION_WITH_AUX:
                output = output, {"scores": np.array(text_scores)}
            try:
                made = metric.from_model_output(
                    examples, output, features, mask=np.ones(len(examples), np.int32), indices_2d=where
                )
                if isinstance(made, seqio.metrics.CollectingMetric):
                    values, _ = made.actual_compute(examples, features)
                else:
                    values = made.compute()
            except Exception as error:
                raise StreamError(f"task {self.task.name!r}: a metric failed: {failure(error)}") from error
            if twice := found.keys() & values.keys():
                raise StreamError(f"task {self.task.name!r} has two metrics of the name {twice.pop()!r}")
            found |= {name: _plain(value) for name, value in values.items()}
        return found

    def _answers(self, metric: Any, texts: Sequence[str]) -> np.ndarray:
        legacy = isinstance(metric, seqio.metrics.PassthroughLegacyMetric)
        if legacy and metric.model_output_type == _Output.PREDICTION:  # which takes texts as they are
            return np.array([*texts, None], dtype=object)[:-1]
        ids = [self.vocabulary.as_targets(self.vocabulary.encode(text)) for text in texts]
        padded = np.zeros((len(ids), max(map(len, ids), default=0)), np.int32)
        for row, answer in zip(padded, ids, strict=True):
            row[: len(answer)] = answer
        return padded


def _plain(value: Any) -> Any:
    """A number, or a text where it is none."""
    if isinstance(value, seqio.metrics.Text):
        return str(value.textdata)
    value = value.value if isinstance(value, seqio.metrics.Scalar) else value
    return float(value) if np.ndim(value) == 0 and np.isreal(value) else f"a {type(value).__name__}"
