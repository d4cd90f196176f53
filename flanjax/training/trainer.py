"""The training loop: steps, log, evaluations, checkpoints, and a polite end.

Everything that happens at a step happens in one order: the step, its log line, its evaluation, its checkpoint. A
checkpoint holds the state, the position in the data and the sums that wait for the next log line, so a run that goes
on from it computes and logs, bit for bit, what one that was never stopped does.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from flanjax.models.config import Compute, T5Config
from flanjax.models.t5 import Params, logical_axes
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
from flanjax.training.metrics import MetricsLog
from flanjax.training.optimizers import OptimizerConfig, make_optimizer
from flanjax.training.schedules import make_schedule
from flanjax.training.signals import LeftBehind, StopSignals, interruptible
from flanjax.training.step import (
    CompiledStep,
    StateLayout,
    StepMetrics,
    TrainState,
    compile_step,
    make_train_step,
    put_batch,
)

# Not sums over steps: the log line shows the last one.
_LAST = ("grad_norm", "learning_rate", "skipped_in_a_row")


def train(
    *,
    model: T5Config,
    compute: Compute,
    loss: LossConfig,
    optimizer: OptimizerConfig,
    config: TrainConfig,
    mesh: Mesh,
    rules: Rules = DEFAULT_RULES,
    batches: BatchIterator,
    initial_params: Callable[[Params], Params],
    evaluators: Mapping[str, Evaluator] | None = None,
    run_dir: Path,
    run_config: Mapping[str, Any],
    fixed_keys: tuple[str, ...] = ("model", "vocabulary", "data"),
    free_keys: tuple[str, ...] = ("data.cache_dir",),
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
        checkpoint. It may return numpy or jax arrays, already placed or not.
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
    transform = make_optimizer(optimizer, logical_axes(model), total_steps=config.train_steps)
    layout = StateLayout.of(model, transform, mesh, rules)
    checkpoints = Checkpoints(
        run_dir / "checkpoints",
        keep_latest=config.keep_latest,
        keep_best=config.keep_best,
        best_metric=config.best_metric,
        best_is_lowest=config.best_is_lowest,
        notice=told.notice,
    )
    with StopSignals() as stop, jax.set_mesh(mesh):
        step = checkpoints.latest()
        if step is None:
            state, sums = layout.start(initial_params(layout.shardings.params), transform), _Sums()
        else:
            _check_config(checkpoints.metadata(step)["config"], run_config, fixed_keys, free_keys, run_dir)
            restored = checkpoints.restore(step, layout.state)
            batches.set_state(restored.position["batches"])
            state, sums = restored.state, _Sums(**restored.position["sums"])
            told.notice(f"going on from the checkpoint of step {step} in {run_dir}")
        train_step = make_train_step(
            model,
            compute,
            loss,
            transform,
            make_schedule(optimizer, config.train_steps),
            layout,
            seed=config.seed,
            microbatches=config.microbatches,
        )
        with MetricsLog(run_dir, step=step or 0, write=jax.process_index() == 0) as log:
            loop = _Loop(
                config=config,
                mesh=mesh,
                layout=layout,
                train_step=train_step,
                batches=batches,
                evaluators=evaluators or {},
                checkpoints=checkpoints,
                run_config=run_config,
                log=log,
                told=told,
                stop=stop,
                state=state,
                step=step or 0,
                sums=sums,
            )
            return loop.run()


@dataclasses.dataclass
class _Sums:
    """What the steps since the last log line measured; saved with a checkpoint, so that its line comes out the same."""

    steps: int = 0
    values: dict[str, float] = dataclasses.field(default_factory=dict)

    def add(self, metrics: StepMetrics) -> None:
        self.steps += 1
        for name, value in metrics._asdict().items():
            before = 0.0 if name in _LAST else self.values.get(name, 0.0)
            self.values[name] = before + float(value)

    def line(self) -> dict[str, float]:
        """Means over tokens and positions, for the log."""
        v = self.values
        tokens = max(v["tokens"], 1.0)
        return {
            "loss": (v["loss"] - v["z_loss"]) / tokens,
            "z_loss": v["z_loss"] / tokens,
            "token_accuracy": v["correct"] / tokens,
            "target_tokens": v["tokens"],
            "encoder_padding": 1 - v["encoder_tokens"] / max(v["encoder_slots"], 1.0),
            "decoder_padding": 1 - v["decoder_tokens"] / max(v["decoder_slots"], 1.0),
            "skipped": v["skipped"],
            "grad_norm": v["grad_norm"],
            "learning_rate": v["learning_rate"],
        }


@dataclasses.dataclass(kw_only=True)
class _Loop:
    """One call of `train`: what stays the same, and the state that moves."""

    config: TrainConfig
    mesh: Mesh
    layout: StateLayout
    train_step: Callable[..., Any]
    batches: BatchIterator
    evaluators: Mapping[str, Evaluator]
    checkpoints: Checkpoints
    run_config: Mapping[str, Any]
    log: MetricsLog
    told: Observer
    stop: StopSignals
    state: TrainState
    step: int
    sums: _Sums

    def __post_init__(self) -> None:
        self._unread: StepMetrics | None = None
        self._position: Mapping[str, Any] = self.batches.get_state()
        self._values: dict[str, float] = {}
        self._saved = self.step
        self._line_started = time.monotonic()
        self._spent_elsewhere = 0.0
        self._last_batch: dict[str, jax.Array] | None = None

    def run(self) -> TrainResult:
        try:
            if self.config.eval_at_start and self.step == 0:
                self._evaluate()
            self._steps()
        except LeftBehind:
            return self._end(left_behind=True)
        return self._end(left_behind=False)

    def _steps(self) -> None:
        compiled: CompiledStep | None = None
        while self.step < self.config.train_steps and not self.stop():
            batch = self._next_batch()
            if batch is None:
                self.told.notice(f"the data ended at step {self.step} of {self.config.train_steps}")
                return
            if compiled is None:
                compiled = self._compile(batch)
                self._line_started, self._spent_elsewhere = time.monotonic(), 0.0
                if self.stop():
                    return
            self.state, metrics = compiled(self.state, batch)
            self._position = self.batches.get_state()
            self.step += 1
            # The step before is read while this one runs.
            self._read()
            self._unread = metrics
            self._events()

    def _next_batch(self) -> dict[str, jax.Array] | None:
        try:
            return put_batch(next(self.batches), self.mesh)
        except StopIteration:
            return None

    def _compile(self, batch: dict[str, jax.Array]) -> CompiledStep:
        def compile_in_mesh() -> CompiledStep:
            return compile_step(self.train_step, self.layout, batch)

        return interruptible(compile_in_mesh, self.stop)

    def _events(self) -> None:
        """What is due after the step just taken."""
        last = self.step == self.config.train_steps
        if last or self.step % self.config.log_every == 0:
            self._read()
            self._log()
        if self.config.eval_every and (last or self.step % self.config.eval_every == 0):
            self._evaluate()
        if last or (self.config.checkpoint_every and self.step % self.config.checkpoint_every == 0):
            self._save()

    def _read(self) -> None:
        """Takes the numbers of the step that was not read yet; refuses to go on after too many bad ones."""
        if self._unread is None:
            return
        metrics = jax.device_get(self._unread)
        self._unread = None
        self.sums.add(metrics)
        self._tell_progress()
        if metrics.skipped:
            self.told.notice(
                f"the loss or its gradient was not finite near step {self.step}: the update was skipped "
                f"({int(metrics.skipped_in_a_row)} in a row)"
            )
        if metrics.skipped_in_a_row >= self.config.stop_after_skipped:
            raise TrainingError(
                f"{int(metrics.skipped_in_a_row)} steps in a row up to step {self.step} were not finite and were "
                f"skipped; the last checkpoint is of step {self.checkpoints.latest() or 0}. Try a lower learning rate "
                "or a longer warm-up, OptimizerConfig.global_norm_clip=1.0, or look for bad rows in the data"
            )

    def _seconds(self) -> float:
        return max(time.monotonic() - self._line_started - self._spent_elsewhere, 1e-9)

    def _tell_progress(self) -> None:
        line, v = self.sums.line(), self.sums.values
        seconds = self._seconds()
        self.told.progress(
            Progress(
                step=self.step,
                train_steps=self.config.train_steps,
                loss=line["loss"],
                tokens_per_second=(v["encoder_tokens"] + v["decoder_tokens"]) / seconds,
                encoder_padding=line["encoder_padding"],
                decoder_padding=line["decoder_padding"],
                seconds_left=seconds / self.sums.steps * (self.config.train_steps - self.step),
            )
        )

    def _log(self) -> None:
        if not self.sums.steps:
            return
        line, seconds, v = self.sums.line(), self._seconds(), self.sums.values
        tokens_per_second = (v["encoder_tokens"] + v["decoder_tokens"]) / seconds
        self.log.add(self.step, "train", line, seconds=seconds, tokens_per_second=tokens_per_second)
        self.told.logged(self.step, "train", line)
        self.sums = _Sums()
        self._line_started, self._spent_elsewhere = time.monotonic(), 0.0

    def _evaluate(self) -> None:
        self._read()
        started = time.monotonic()
        self._values = {}
        params = self.state.params
        for name, evaluator in self.evaluators.items():

            def measure(evaluator: Evaluator = evaluator) -> Mapping[str, float]:
                with jax.set_mesh(self.mesh):
                    return evaluator(params, self.stop)

            begun = time.monotonic()
            values = interruptible(measure, self.stop)
            if self.stop():
                return
            self.log.add(self.step, name, values, seconds=time.monotonic() - begun)
            self.told.logged(self.step, name, values)
            self._values |= {f"{name}/{key}": value for key, value in values.items()}
        self._spent_elsewhere += time.monotonic() - started

    def _save(self) -> None:
        self._read()
        position = {"batches": dict(self._position), "sums": dataclasses.asdict(self.sums)}
        started = time.monotonic()
        self.checkpoints.save(self.step, self.state, position, self.run_config, **self._values)
        self._saved = self.step
        self._spent_elsewhere += time.monotonic() - started

    def _end(self, *, left_behind: bool) -> TrainResult:
        self._read()
        if self.step > self._saved:
            # An evaluation of this step that was cut short is made up for on resume only if the step is not saved.
            self._save()
        self.checkpoints.close()
        self.log.plot()
        return TrainResult(
            step=self.step,
            params=self.state.params,
            stopped_by=self.stop.name,
            skipped=int(jax.device_get(self.state.skipped)),
            work_left_behind=left_behind,
        )


def _check_config(
    saved: Mapping[str, Any],
    current: Mapping[str, Any],
    fixed: tuple[str, ...],
    free: tuple[str, ...],
    run_dir: Path,
) -> None:
    """Refuses to go on with another model, vocabulary or data than the checkpoint was written with."""
    before, now = _flat(saved), _flat(current)
    differing = [
        f"{key}: it was {before.get(key)!r}, now it is {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if _covered(key, fixed) and not _covered(key, free) and before.get(key) != now.get(key)
    ]
    if differing:
        raise TrainingError(
            f"{run_dir} holds a run with other settings, which cannot go on under these:\n  "
            + "\n  ".join(differing)
            + "\nset them back, or give another MODEL_DIR"
        )


def _covered(key: str, prefixes: tuple[str, ...]) -> bool:
    return any(key == prefix or key.startswith(prefix + ".") for prefix in prefixes)


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, Mapping):
        return {prefix: np.asarray(tree).tolist() if isinstance(tree, tuple | np.generic) else tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
