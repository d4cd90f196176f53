"""What `flanjax.training.trainer.train` is given and gives back: settings, callables, reports.

The trainer knows no files but its run directory, no command line and no dataset: batches come from an iterator with
a position, evaluations from callables, and everything a person should see goes to an observer.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from flanjax.errors import FlanjaxError
from flanjax.models.parameters import Params

Batch = Mapping[str, np.ndarray]


class TrainingError(FlanjaxError):
    """A run that cannot start or go on; the message says what to try."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The loop: how long, how often, what to keep.

    Attributes:
      train_steps: optimizer steps of the whole run, resumed parts included.
      microbatches: parts a batch is computed in, one after the other; the update is that of the whole batch.
      seed: of the dropout masks.
      log_every: steps between two lines of `metrics.jsonl`; a line covers all steps since the last one.
      eval_every: steps between two evaluations, and one after the last step; 0 evaluates never.
      eval_at_start: evaluate before the first step too.
      checkpoint_every: steps between two checkpoints, and one after the last step; 0 keeps that one only.
      keep_latest: newest checkpoints to keep.
      keep_best: best checkpoints to keep beside them, by `best_metric`; a checkpoint without an evaluation of its own
        step cannot be among the best, so let `checkpoint_every` be a multiple of `eval_every`.
      best_metric: `evaluation/value`, such as `validation/loss` or `super_ni/rougeL`; None is the loss of the first
        evaluation.
      best_is_lowest: whether a low value of `best_metric` is good; None says yes of a loss, and of nothing else.
      stop_after_skipped: non-finite steps in a row that end the run.

    Raises:
      TrainingError: a value outside its range.
    """

    train_steps: int
    microbatches: int = 1
    seed: int = 0
    log_every: int = 10
    eval_every: int = 0
    eval_at_start: bool = False
    checkpoint_every: int = 1000
    keep_latest: int = 2
    keep_best: int = 0
    best_metric: str | None = None
    best_is_lowest: bool | None = None
    stop_after_skipped: int = 10

    def __post_init__(self) -> None:
        lowest = {"eval_every": 0, "checkpoint_every": 0, "keep_best": 0, "seed": 0}
        for name in ("train_steps", "microbatches", "log_every", "keep_latest", "stop_after_skipped", *lowest):
            value, least = getattr(self, name), lowest.get(name, 1)
            if not isinstance(value, int) or value < least:
                raise TrainingError(f"TrainConfig.{name} is {value!r}: it must be a whole number of at least {least}")
        if self.keep_best and not self.eval_every:
            raise TrainingError(
                f"TrainConfig.keep_best is {self.keep_best}, but nothing is evaluated: set TrainConfig.eval_every too"
            )

    @property
    def lowest_is_best(self) -> bool:
        """Whether a low value of `best_metric` is good."""
        if self.best_is_lowest is not None:
            return self.best_is_lowest
        return self.best_metric is None or self.best_metric.rpartition("/")[2] == "loss"


class BatchIterator(Protocol):
    """Endless or finite training batches of this host, from a position that can be saved and returned to."""

    def __next__(self) -> Batch:
        """The rows this host has of the next batch, int32 arrays [rows, length] by feature name."""

    def get_state(self) -> Mapping[str, Any]:
        """The position of the batch after the last one given out, as JSON holds it."""

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Makes the next batch the one at that position."""


class Evaluator(Protocol):
    """Measures parameters on held-out data; called with the mesh set."""

    def __call__(self, params: Params, should_stop: Callable[[], bool]) -> Mapping[str, float]:
        """Values by name, such as {"loss": 1.2}.

        Where `should_stop()` has become true it returns early; what it returns then is thrown away. It runs on a
        thread of its own, so that a signal is acted upon even while XLA compiles for it.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """Where the run is, for a progress line; averages cover the steps since the last line of the log.

    Attributes:
      step: steps done.
      train_steps: steps of the whole run.
      loss: mean loss of a target token.
      tokens_per_second: target and input tokens a second, padding left out.
      encoder_padding: share of encoder positions that are padding; None for a decoder.
      decoder_padding: share of decoder positions that are padding.
      seconds_left: estimate until the last step, evaluations and checkpoints left out.
    """

    step: int
    train_steps: int
    loss: float
    tokens_per_second: float
    encoder_padding: float | None
    decoder_padding: float
    seconds_left: float


class Observer(Protocol):
    """Who is told about the run. Calls come from the training loop: return quickly."""

    def progress(self, progress: Progress) -> None:
        """After every step, one step late."""

    def logged(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """A line was added to `metrics.jsonl`; split is `train` or the name of an evaluation."""

    def notice(self, message: str) -> None:
        """Something a person should know: what was resumed, saved, skipped."""


class Silence:
    """An observer that tells nobody."""

    def progress(self, progress: Progress) -> None:
        """Nothing."""

    def logged(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Nothing."""

    def notice(self, message: str) -> None:
        """Nothing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainResult:
    """How a run ended.

    Attributes:
      step: steps done; a checkpoint of this step is on the disk (none where the step is 0).
      params: the parameters, on the mesh; None where the run was stopped before it had any.
      stopped_by: `SIGTERM` or `SIGINT`, or None where the run is complete.
      skipped: non-finite steps of the whole run.
      work_left_behind: a compilation or an evaluation still runs on a thread that cannot be stopped. Python aborts
        when it ends with such a thread, so leave by `flanjax.training.signals.exit_now`.
    """

    step: int
    params: Params | None
    stopped_by: str | None
    skipped: int = 0
    work_left_behind: bool = False
