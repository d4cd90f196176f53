"""The training loop."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from flanjax.models.config import Compute, T5Config
from flanjax.models.t5 import Params
from flanjax.sharding.rules import DEFAULT_RULES, Rules
from flanjax.training.interfaces import BatchIterator, Evaluator, Observer, Silence, TrainConfig, TrainResult
from flanjax.training.losses import LossConfig
from flanjax.training.optimizers import OptimizerConfig


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
    del model, compute, loss, optimizer, mesh, rules, batches, initial_params, evaluators, run_dir, run_config
    del fixed_keys, free_keys
    (observer or Silence()).notice(f"would train {config.train_steps} steps")
    return TrainResult(step=0, params=None, stopped_by=None)
