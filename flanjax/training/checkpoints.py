"""Checkpoints of a run, over Orbax v1: `checkpoints/<step>/` holds `params` and `optimizer`, and as metadata the
position in the data and the configuration.

A checkpoint counts only with Orbax's completion marker; a folder without it was cut short by a kill and is passed
over. Saving is asynchronous. Nothing is unpickled: arrays are OCDBT, the rest is JSON.
"""

import dataclasses
import errno
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from flanjax.errors import FlanjaxError
from flanjax.models.t5 import Params
from flanjax.training.step import TrainState

_MARKERS = ("commit_success.txt", "_CHECKPOINT_METADATA")


class CheckpointError(FlanjaxError):
    """A checkpoint that is missing, of another model, or cannot be written."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Restored:
    """What a checkpoint holds: the state, the position in the data, and the configuration of the run that wrote it."""

    state: TrainState
    position: Mapping[str, Any]
    config: Mapping[str, Any]


class Checkpoints:
    """The checkpoints of one run.

    Arguments:
      folder: `checkpoints/` of the run directory.
      keep_latest: newest ones to keep.
      keep_best: best ones to keep beside them, by `best_metric` of the values given to `save`.
      best_metric: a name among those values.
      best_is_lowest: whether a low value is good.
      notice: told of folders that were passed over.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep_latest: int = 2,
        keep_best: int = 0,
        best_metric: str = "validation/loss",
        best_is_lowest: bool = True,
        notice: Callable[[str], None] = lambda message: None,
    ):
        self.folder = folder.absolute()
        folder.mkdir(parents=True, exist_ok=True)
        for step in _half_written(self.folder):
            notice(f"{self.folder / step} was never finished and is passed over")
        policies = ocp.training.preservation_policies
        keep = [policies.LatestN(keep_latest)]
        if keep_best:
            best = policies.BestN(
                get_metric_fn=lambda metrics: metrics[best_metric],
                reverse=best_is_lowest,
                n=keep_best,
                keep_checkpoints_without_metrics=False,
            )
            keep.append(best)
        self._best_metric = best_metric if keep_best else None
        self._orbax = ocp.training.Checkpointer(self.folder, preservation_policy=policies.AnyPreservationPolicy(keep))
        self._saving: Any = None

    def latest(self) -> int | None:
        """The newest whole step, None where there is none."""
        steps = whole_steps(self.folder)
        return steps[-1] if steps else None

    def save(
        self, step: int, state: TrainState, position: Mapping[str, Any], config: Mapping[str, Any], **values: float
    ) -> None:
        """Starts to write a checkpoint; the arrays may be given away as soon as this returns.

        Raises:
          CheckpointError: the one before could not be written; the older ones are whole.
        """
        self.wait()
        if (self.folder / str(step)).exists():
            # What a kill left of this very step; whole ones are never written twice.
            self._orbax.delete(step, missing_ok=True)
        metrics = {self._best_metric: values[self._best_metric]} if self._best_metric in values else None
        optimizer = {name: value for name, value in state._asdict().items() if name != "params"}
        try:
            self._saving = self._orbax.save_checkpointables_async(
                step,
                {"params": state.params, "optimizer": optimizer},
                force=True,
                metrics=metrics,
                custom_metadata={"position": dict(position), "config": dict(config)},
            )
        except OSError as error:
            raise _cannot_write(self.folder, error) from error

    def wait(self) -> None:
        """Until the checkpoint being written is on the disk.

        Raises:
          CheckpointError: it could not be written.
        """
        saving, self._saving = self._saving, None
        if saving is None:
            return
        try:
            saving.result()
        except (OSError, ValueError, RuntimeError) as error:
            raise _cannot_write(self.folder, error) from error

    def restore(self, step: int, layout: TrainState) -> Restored:
        """The checkpoint of a step, placed as `layout` says, on whatever mesh that is.

        Arguments:
          step: a whole one.
          layout: `jax.ShapeDtypeStruct` with shardings.

        Raises:
          CheckpointError: it is of another model or optimizer; every differing path is named.
        """
        found = self._orbax.checkpointables_metadata(step)
        optimizer = {name: value for name, value in layout._asdict().items() if name != "params"}
        wanted = {"params": layout.params, "optimizer": optimizer}
        differences = [line for name, tree in wanted.items() for line in _differences(name, found.metadata[name], tree)]
        if differences:
            raise CheckpointError(
                f"{self.folder / str(step)} is of another model or optimizer than this run:\n  "
                + "\n  ".join(differences)
                + "\nuse another MODEL_DIR, or the settings the checkpoint was written with"
            )
        loaded = self._orbax.load_checkpointables(step, wanted)
        metadata = self.metadata(step)
        return Restored(
            state=TrainState(params=loaded["params"], **loaded["optimizer"]),
            position=metadata["position"],
            config=metadata["config"],
        )

    def metadata(self, step: int) -> Mapping[str, Any]:
        """`position` and `config` of a step, without its arrays."""
        return self._orbax.checkpointables_metadata(step).custom_metadata

    def close(self) -> None:
        """Waits for what is being written, and ends.

        Raises:
          CheckpointError: it could not be written.
        """
        try:
            self.wait()
        finally:
            self._orbax.close()


def whole_steps(folder: Path) -> list[int]:
    """Steps of the whole checkpoints in a folder, ascending."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(int(path.name) for path in found if path.name.isdecimal() and _is_whole(path))


def _is_whole(path: Path) -> bool:
    return all((path / marker).is_file() for marker in _MARKERS)


def _half_written(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not _is_whole(path))


def restore_params(folder: Path, step: int | None = None) -> tuple[Params, int]:
    """The parameters of one checkpoint as numpy arrays, and its step; the newest unless a step is given.

    Raises:
      CheckpointError: there is no such checkpoint; the message lists those there are.
    """
    folder = folder.absolute()
    steps = whole_steps(folder)
    if not steps:
        raise CheckpointError(f"{folder}: there is no whole checkpoint; is this the MODEL_DIR of a run that saved one?")
    if step is None:
        step = steps[-1]
    elif step not in steps:
        raise CheckpointError(
            f"{folder}: there is no checkpoint of step {step}; there are {', '.join(map(str, steps))}"
        )
    with ocp.training.Checkpointer(folder) as orbax:
        metadata = orbax.checkpointables_metadata(step).metadata["params"]
        as_numpy = jax.tree.map(lambda leaf: np.empty((), leaf.dtype), metadata)
        loaded = orbax.load_checkpointables(step, {"params": as_numpy})
    return loaded["params"], step


def _differences(name: str, found: Any, wanted: Any) -> list[str]:
    """Where two trees differ in paths or shapes, one line each; at most twenty."""
    shapes = [
        {
            f"{name}/{'/'.join(_key(key) for key in path)}": tuple(leaf.shape)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for tree in (found, wanted)
    ]
    there, here = shapes
    lines = [f"{path}: {there[path]} in the checkpoint, not in this run" for path in there.keys() - here.keys()]
    lines += [f"{path}: {here[path]} in this run, not in the checkpoint" for path in here.keys() - there.keys()]
    lines += [
        f"{path}: {there[path]} in the checkpoint, {here[path]} in this run"
        for path in there.keys() & here.keys()
        if there[path] != here[path]
    ]
    return sorted(lines)[:20]


def _key(key: Any) -> str:
    return str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key))))


def _cannot_write(folder: Path, error: BaseException) -> CheckpointError:
    full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
    reason = "the disk is full" if full else str(error)
    return CheckpointError(
        f"a checkpoint could not be written to {folder}: {reason}. The older ones are whole: "
        "make room and give the same command again"
    )
