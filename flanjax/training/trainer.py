"""The training loop: steps, log, evaluations, checkpoints, and a polite end.

Everything that falls on a step happens in one order: the step, its log line, its evaluation, its checkpoint. A
checkpoint holds the state, the position in the data, the sums that wait for the next log line, and which line and
evaluation were the last, so a run that goes on from it computes and logs, bit for bit, what one that was never stopped
does.

The loop runs one step ahead of what it reads: the numbers of a step are fetched while the next one is computed.
A signal is acted upon between two steps, within an evaluation and while XLA compiles; with several processes between
two steps only, where all of them stop together.
"""

import copy
import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from flanjax.models.config import Compute
from flanjax.models.model import ModelConfig
from flanjax.models.parameters import Params
from flanjax.sharding.hosts import agree, is_first, row_shards_of_host, wait_for_all
from flanjax.sharding.rules import DEFAULT_RULES, Rules
from flanjax.training.checkpoints import Checkpoints
from flanjax.training.interfaces import (
    BatchIterator,
    Evaluator,
    Observer,
    Progress,
    Silence,
    TrainConfig,
    TrainingError,
    TrainResult,
)
from flanjax.training.losses import LossConfig
from flanjax.training.metrics import MetricsLog, Window
from flanjax.training.optimizers import OptimizerConfig, make_optimizer
from flanjax.training.resume import check_config
from flanjax.training.schedules import make_schedule
from flanjax.training.signals import LeftBehind, StopSignals, interruptible
from flanjax.training.step import (
    DeviceBatch,
    StateLayout,
    StepMetrics,
    TrainState,
    TrainStep,
    check_rows,
    compile_step,
    make_train_step,
    put_batch,
)
from flanjax.tuning.partition import trainable_axes

FIXED_KEYS = ("model", "base", "adapter", "tuning", "vocabulary", "chat_template", "data", "optimizer.name")
FREE_KEYS = ("data.cache_dir", "chat_template.name")


def train(
    *,
    model: ModelConfig,
    compute: Compute,
    loss: LossConfig,
    optimizer: OptimizerConfig,
    config: TrainConfig,
    mesh: Mesh,
    rules: Rules = DEFAULT_RULES,
    batches: BatchIterator,
    initial_params: Callable[[Params], Params],
    initial_optimizer: Callable[[Any], Any] | None = None,
    evaluators: Mapping[str, Evaluator] | None = None,
    run_dir: Path,
    run_config: Mapping[str, Any],
    fixed_keys: tuple[str, ...] = FIXED_KEYS,
    free_keys: tuple[str, ...] = FREE_KEYS,
    observer: Observer | None = None,
) -> TrainResult:
    """Trains from the latest checkpoint in `run_dir`, or from `initial_params`, to `config.train_steps`.

    Arguments:
      model: what the model is.
      compute: how it is computed.
      loss: z-loss, smoothing, chunks.
      optimizer: optimizer and schedule.
      config: the loop.
      mesh: devices, from `flanjax.sharding.mesh.make_mesh`.
      rules: which mesh axis each logical axis lies on.
      batches: this host's batches.
      initial_params: gives the first parameters; called with the tree of their shardings, and only where there is no
        checkpoint, or where some parameters do not move: a checkpoint does not have those. It may return numpy or jax
        arrays, already placed or not.
      initial_optimizer: turns the optimizer's first state into the one that training begins with; only where there is
        no checkpoint. None leaves it.
      evaluators: held-out measurements by name.
      run_dir: `checkpoints/`, `metrics.jsonl`, `tensorboard/` and `loss.png` are written here.
      run_config: the resolved configuration, as JSON holds it; saved with every checkpoint.
      fixed_keys: dotted keys of `run_config`, prefixes included, that must be as they were on resume.
      free_keys: keys under `fixed_keys` that may differ all the same.
      observer: who is told.

    Raises:
      FlanjaxError: the checkpoint is of another model or data, the disk is full, too many steps were not finite.
    """
    told = observer or Silence()
    transform = make_optimizer(optimizer, trainable_axes(model), total_steps=config.train_steps, stacks=model.stacks)
    schedule = make_schedule(optimizer, config.train_steps)
    layout = StateLayout.of(model, transform, mesh, rules)
    step = make_train_step(
        model, compute, loss, transform, schedule, layout, seed=config.seed, microbatches=config.microbatches
    )
    checkpoints = _checkpoints(run_dir, config, evaluators or {}, told)
    with StopSignals() as stop, jax.set_mesh(mesh), checkpoints:
        checkpoints.report_unfinished()
        latest = checkpoints.latest()
        agree(f"the latest checkpoint in {run_dir}", f"step {latest}")
        if latest is None:
            place, state = _Place(), _first_state(layout, transform, initial_params, initial_optimizer)
        else:
            saved = checkpoints.config(latest)
            check_config(saved, run_config, fixed=fixed_keys, free=free_keys, where=str(run_dir))
            place, state = _resume(latest, checkpoints, layout, batches, initial_params)
            told.notice(_going_on(latest, config.train_steps, run_dir))
        if place.step < config.train_steps:
            checkpoints.check_room(layout.state)
        with MetricsLog(run_dir, logged=place.logged, evaluated=place.evaluated, write=is_first()) as log:
            loop = _Loop(
                config=config,
                layout=layout,
                train_step=step,
                batches=batches,
                evaluators=evaluators or {},
                checkpoints=checkpoints,
                run_config=run_config,
                log=log,
                told=told,
                stop=stop,
                state=state,
                place=place,
            )
            return loop.run()


def _checkpoints(
    run_dir: Path, config: TrainConfig, evaluators: Mapping[str, Evaluator], told: Observer
) -> Checkpoints:
    """The run's checkpoints; the best are those of the first evaluation's loss where nothing else is named."""
    return Checkpoints(
        run_dir / "checkpoints",
        keep_latest=config.keep_latest,
        keep_best=config.keep_best,
        best_metric=config.best_metric or f"{next(iter(evaluators), '')}/loss",
        best_is_lowest=config.lowest_is_best,
        notice=told.notice,
    )


def _first_state(
    layout: StateLayout,
    optimizer: optax.GradientTransformation,
    initial_params: Callable[[Params], Params],
    initial_optimizer: Callable[[Any], Any] | None,
) -> TrainState:
    """What a run without a checkpoint begins with."""
    state = layout.start(initial_params(layout.shardings.all_params), optimizer)
    return state if initial_optimizer is None else layout.with_optimizer(state, initial_optimizer(state.opt_state))


def _going_on(step: int, train_steps: int, run_dir: Path) -> str:
    if step < train_steps:
        return f"going on from the checkpoint of step {step} in {run_dir}"
    whole = "is whole" if step == train_steps else f"is past the {train_steps} steps asked for"
    return f"{run_dir} has a checkpoint of step {step} and {whole}: nothing is trained; more TRAIN_STEPS would go on"


def _resume(
    step: int,
    checkpoints: Checkpoints,
    layout: StateLayout,
    batches: BatchIterator,
    initial_params: Callable[[Params], Params],
) -> tuple["_Place", TrainState]:
    """The place and the state of a checkpoint, with `batches` set to go on from there."""
    restored = checkpoints.restore(step, layout.state)
    batches.set_state(restored.position["batches"])
    place, state = _Place.of(step, restored.position), restored.state
    if layout.state.frozen:  # no checkpoint has them
        _, frozen = layout.place(initial_params(layout.shardings.all_params))
        state = state._replace(frozen=frozen)
    return place, state


@dataclasses.dataclass
class _Place:
    """Where a run is; with the state, all that a checkpoint has to bring back."""

    step: int = 0
    logged: int = 0  # the step of the last log line
    evaluated: int = -1  # the last step whose evaluation is complete
    window: Window = dataclasses.field(default_factory=Window)

    @classmethod
    def of(cls, step: int, saved: Mapping[str, Any]) -> "_Place":
        return cls(step, saved["logged"], saved["evaluated"], Window(**saved["window"]))

    def saved(self, batches: Mapping[str, Any]) -> dict[str, Any]:
        """As JSON holds it."""
        rest = {"logged": self.logged, "evaluated": self.evaluated, "window": dataclasses.asdict(self.window)}
        return {"batches": dict(batches), **rest}


class _Clock:
    """Seconds, steps and tokens since the last log line; what is not training is taken out."""

    def __init__(self) -> None:
        self.steps, self.tokens = 0, 0.0
        self._start = time.monotonic()

    def add(self, metrics: StepMetrics) -> None:
        self.steps += 1
        self.tokens += float(metrics.encoder_tokens + metrics.decoder_tokens)

    def without(self, seconds: float) -> None:
        self._start += seconds

    @property
    def seconds(self) -> float:
        return max(time.monotonic() - self._start, 1e-9)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


@dataclasses.dataclass(kw_only=True)
class _Loop:
    """One call of `train`: what stays the same, and what moves."""

    config: TrainConfig
    layout: StateLayout
    train_step: TrainStep
    batches: BatchIterator
    evaluators: Mapping[str, Evaluator]
    checkpoints: Checkpoints
    run_config: Mapping[str, Any]
    log: MetricsLog
    told: Observer
    stop: StopSignals
    state: TrainState
    place: _Place

    def __post_init__(self) -> None:
        self._position = self.batches.get_state()
        self._unread: tuple[int, StepMetrics] | None = None
        self._values: dict[str, float] = {}
        self._saved, self._place_saved = self.place.step, copy.deepcopy(self.place)
        self._clock = _Clock()

    def run(self) -> TrainResult:
        """Trains on, saves and evaluates to the end, or to where it is told to stop."""
        left_behind = False
        try:
            if self.place.step < self.config.train_steps:
                self._train()
            if not self.stop():
                self._finish()
        except LeftBehind:
            left_behind = True
        self._read()
        if self.stop():
            self.told.notice(f"{self.stop.name}: stopping at step {self.place.step}")
        if self.place.step > self._saved:
            self._save()
        elif self.place != self._place_saved:
            # A signal had cut short what falls on this step, and it was made up for just now.
            self.checkpoints.amend(self.place.step, self.place.saved(self._position))
        self.checkpoints.wait()
        if not self.stop():
            self.log.plot(last=True)
        return TrainResult(
            step=self.place.step,
            params=self.state.all_params,
            stopped_by=self.stop.name,
            skipped=int(jax.device_get(self.state.skipped)),
            work_left_behind=left_behind,
        )

    def _train(self) -> None:
        """Steps until the last one, a signal, or the end of the data."""
        batch = self._next_batch()
        self._evaluate_if_due()
        if batch is None or self.stop():
            return
        shapes = batch
        compiled = interruptible(lambda: compile_step(self.train_step, self.layout, shapes), self.stop)
        # One process may find the program in the compilation cache while another compiles for minutes, which is longer
        # than the libraries that carry collectives wait for each other.
        wait_for_all("compiled")
        self._clock = _Clock()
        while batch is not None and not self.stop():
            self.state, metrics = compiled(self.state, batch)
            self.place.step += 1
            self.stop.after_step(self.place.step)
            self._position = self.batches.get_state()
            self._read()
            self._unread = self.place.step, metrics
            self._periodic()
            batch = self._next_batch() if self.place.step < self.config.train_steps else None

    def _next_batch(self) -> DeviceBatch | None:
        try:
            batch = next(self.batches)
        except StopIteration:
            self.told.notice(f"the data ended at step {self.place.step} of {self.config.train_steps}")
            return None
        rows = row_shards_of_host(self.layout.mesh).batch_rows(len(next(iter(batch.values()))))
        check_rows(rows, self.config.microbatches, self.layout.mesh)
        return put_batch(batch, self.layout.mesh)

    def _periodic(self) -> None:
        """What is due after the step just taken."""
        self.checkpoints.poll()
        if self.place.step % self.config.log_every == 0 or self.place.step == self.config.train_steps:
            self._log()
        self._evaluate_if_due()
        every = self.config.checkpoint_every
        if every and self.place.step % every == 0 and not self.stop():
            self._save()

    def _finish(self) -> None:
        """What is due after the last step and was not done there."""
        self._log()
        if self.config.eval_every and self.place.step > self.place.evaluated:
            self._evaluate()

    def _read(self) -> None:
        """Takes in the numbers of the step not read yet; refuses to go on after too many bad ones."""
        if self._unread is None:
            return
        (step, unread), self._unread = self._unread, None
        metrics = jax.device_get(unread)
        self.place.window.add(metrics)
        self._clock.add(metrics)
        values, left = self.place.window.values(), self.config.train_steps - step
        self.told.progress(
            Progress(
                step=step,
                train_steps=self.config.train_steps,
                loss=values["loss"],
                tokens_per_second=self._clock.tokens_per_second,
                encoder_padding=values.get("encoder_padding"),
                decoder_padding=values["decoder_padding"],
                seconds_left=left * self._clock.seconds / self._clock.steps,
            )
        )
        if metrics.skipped:
            self._skipped(step, int(metrics.skipped_in_a_row))

    def _skipped(self, step: int, in_a_row: int) -> None:
        self.told.notice(f"step {step}: loss or gradient not finite, the update was skipped ({in_a_row} in a row)")
        if in_a_row >= self.config.stop_after_skipped:
            latest = self.checkpoints.latest()
            saved = "there is no checkpoint yet" if latest is None else f"the last checkpoint is of step {latest}"
            raise TrainingError(
                f"step {step}: loss or gradient were not finite {in_a_row} times in a row. Each of these updates was "
                f"skipped, so no parameter is lost; {saved}. "
                "Try a lower learning rate, a longer warm-up or OptimizerConfig.global_norm_clip = 1.0, and look for "
                "bad rows in the data"
            )

    def _log(self) -> None:
        self._read()
        if not self.place.window.steps:
            return
        values, clock = self.place.window.values(), self._clock
        step = self.place.step
        self.log.add(step, "train", values, seconds=clock.seconds, tokens_per_second=clock.tokens_per_second)
        self.told.logged(step, "train", values)
        self.place.window, self.place.logged, self._clock = Window(), step, _Clock()

    def _evaluate_if_due(self) -> None:
        step, every = self.place.step, self.config.eval_every
        due = self.config.eval_at_start if step == 0 else every and step % every == 0
        if due and step > self.place.evaluated and not self.stop():
            self._evaluate()

    def _evaluate(self) -> None:
        """All evaluators, then all their lines: an evaluation is complete or leaves nothing."""
        self._read()
        begun = time.monotonic()
        found: dict[str, tuple[Mapping[str, float], float]] = {}
        for name, evaluator in self.evaluators.items():
            start = time.monotonic()
            values = interruptible(functools.partial(self._measure, evaluator), self.stop)
            if self.stop():
                return
            found[name] = values, time.monotonic() - start
        for name, (values, seconds) in found.items():
            self.log.add(self.place.step, name, values, seconds=seconds)
            self.told.logged(self.place.step, name, values)
        self._values = {f"{name}/{key}": value for name, (values, _) in found.items() for key, value in values.items()}
        self.place.evaluated = self.place.step
        self.log.plot()
        self._clock.without(time.monotonic() - begun)

    def _measure(self, evaluator: Evaluator) -> Mapping[str, float]:
        # The mesh that is set belongs to a thread, and this runs on one of its own.
        with jax.set_mesh(self.layout.mesh):
            return evaluator(self.state.all_params, self.stop)

    def _save(self) -> None:
        self._read()
        begun = time.monotonic()
        self.log.sync()
        values = self._values if self.place.evaluated == self.place.step else None
        position = self.place.saved(self._position)
        self.checkpoints.save(self.place.step, self.state, position, self.run_config, values)
        self._saved, self._place_saved = self.place.step, copy.deepcopy(self.place)
        self._clock.without(time.monotonic() - begun)
