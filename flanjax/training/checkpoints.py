"""Checkpoints of a run, over Orbax v1: one small door to saving, keeping, finding and restoring.

    checkpoints/<step>/params, optimizer     arrays (OCDBT)
    checkpoints/<step>/data, config          JSON: where the run is in its data, and what the run is

Saving is asynchronous. Orbax writes under another name and renames, so a kill never leaves a folder that looks whole;
what is whole is checked again all the same (`whole_steps`), as copies and deletions are cut short too. Nothing is
ever unpickled.
"""

import dataclasses
import errno
import functools
import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from flanjax.errors import FlanjaxError
from flanjax.files import write_whole
from flanjax.models.parameters import Params
from flanjax.training.step import TrainState

_MARKER = "_CHECKPOINT_METADATA"
_CONTENTS = (
    "params/_METADATA",
    "params/manifest.ocdbt",
    "optimizer/_METADATA",
    "optimizer/manifest.ocdbt",
    "data/data.json",
    "config/data.json",
)
_ASIDE = ".incomplete"
_SHOWN_DIFFERENCES = 10


class CheckpointError(FlanjaxError):
    """A checkpoint that is missing, damaged, of another model, or cannot be written."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Restored:
    """What a checkpoint holds: the state, and where the run was in its data."""

    state: TrainState
    position: Mapping[str, Any]


class Checkpoints:
    """The checkpoints of one run; a context manager. Nothing is written before the first `save`.

    Arguments:
      folder: `checkpoints/` of the run directory.
      keep_latest: newest ones to keep.
      keep_best: best ones to keep beside them, by `best_metric` of the values given to `save`.
      best_metric: a name among those values.
      best_is_lowest: whether a low value is good.
      notice: told of folders that are passed over.
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
        self._keep = _preservation(keep_latest, keep_best, best_is_lowest)
        self._best_metric = best_metric
        self._notice = notice
        self._orbax: Any = None
        self._saving: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            self.close()
        except CheckpointError as failure:
            if error is None:
                raise
            # The first error is the one to see.
            if not isinstance(error, CheckpointError):
                self._notice(str(failure))

    def latest(self) -> int | None:
        """The newest whole step, None where there is none."""
        steps = whole_steps(self.folder)
        return steps[-1] if steps else None

    def report_unfinished(self) -> None:
        """Gives notice of every folder that a checkpoint was begun in and not finished."""
        for name in _half_written(self.folder):
            self._notice(f"{self.folder / name} was never finished and is passed over")

    def check_room(self, layout: TrainState) -> None:
        """Refuses to start a run whose first checkpoint cannot fit on the disk.

        Raises:
          CheckpointError: there is less room than one checkpoint takes.
        """
        needed = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(_arrays(layout)))
        there = next(parent for parent in (self.folder, *self.folder.parents) if parent.exists())
        free = shutil.disk_usage(there).free
        if free < needed:
            raise CheckpointError(
                f"{there} has {free / 2**30:.1f} GiB left and a checkpoint of this run takes {needed / 2**30:.1f} GiB: "
                "make room, or give another MODEL_DIR"
            )

    def save(
        self,
        step: int,
        state: TrainState,
        position: Mapping[str, Any],
        config: Mapping[str, Any],
        values: Mapping[str, float] | None = None,
    ) -> None:
        """Starts to write a checkpoint; the arrays may be given away as soon as this returns.

        Arguments:
          step: its name.
          state: the state after that step.
          position: where the run is in its data, as JSON holds it.
          config: the resolved configuration, as JSON holds it.
          values: what was measured at this step, for keeping the best.

        Raises:
          CheckpointError: this or the one before could not be written; the older ones are whole.
        """
        self.wait()
        best = (values or {}).get(self._best_metric)
        arrays = _arrays(state)
        try:
            self._saving = self._writer().save_checkpointables_async(
                step,
                {**arrays, "data": dict(position), "config": dict(config)},
                force=True,
                metrics=None if best is None else {"best": float(best)},
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise self._cannot_write(error) from error

    def amend(self, step: int, position: Mapping[str, Any]) -> None:
        """Replaces the position of a whole checkpoint, at once or not at all."""
        self.wait()
        if step in whole_steps(self.folder) and jax.process_index() == 0:
            write_whole(self.folder / str(step) / "data" / "data.json", json.dumps(position))

    def poll(self) -> None:
        """Takes note of a save that has ended, without waiting for one that has not.

        Raises:
          CheckpointError: it could not be written.
        """
        if self._saving is not None and not self._orbax.is_saving_in_progress():
            self.wait()

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
            raise self._cannot_write(error) from error

    def config(self, step: int) -> Mapping[str, Any]:
        """The resolved configuration of the run that wrote a checkpoint."""
        return _read_json(self.folder / str(step) / "config" / "data.json")

    def restore(self, step: int, layout: TrainState) -> Restored:
        """The checkpoint of a step, placed as `layout` says, on whatever mesh that is.

        Arguments:
          step: a whole one.
          layout: a `TrainState` of `jax.ShapeDtypeStruct` with shardings.

        Raises:
          CheckpointError: it is of another model or optimizer (every differing path is named), or damaged.
        """
        path = self.folder / str(step)
        wanted = _arrays(layout)
        try:
            with _context():
                _refuse_differences(path, _found(path), wanted)
                loaded = ocp.load_checkpointables(path, wanted)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise _cannot_read(path, error) from error
        position = _read_json(path / "data" / "data.json")
        return Restored(state=TrainState(params=loaded["params"], **loaded["optimizer"]), position=position)

    def close(self) -> None:
        """Waits for what is being written, and ends.

        Raises:
          CheckpointError: it could not be written.
        """
        orbax, self._orbax = self._orbax, None
        try:
            self.wait()
        finally:
            if orbax is not None:
                try:
                    orbax.close()
                except (OSError, ValueError, RuntimeError) as error:
                    # Orbax raises what a save in the background died of once more.
                    raise self._cannot_write(error) from error

    def _writer(self) -> Any:
        if self._orbax is None:
            if jax.process_index() == 0:
                self._put_aside()
            self._orbax = ocp.training.Checkpointer(
                self.folder, context=_context(), preservation_policy=self._keep, cleanup_tmp_directories=True
            )
        return self._orbax

    def _put_aside(self) -> None:
        """Renames unfinished steps: Orbax would count them among the newest, and refuse to write them.

        What was put aside before is removed then, so that these folders do not add up.
        """
        unfinished = [name for name in _half_written(self.folder) if name.isdecimal()]
        if unfinished:
            for older in self.folder.glob(f"*{_ASIDE}"):
                shutil.rmtree(older)
        for name in unfinished:
            (self.folder / name).rename(self.folder / f"{name}{_ASIDE}")

    def _cannot_write(self, error: BaseException) -> CheckpointError:
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in str(error)
        whole = ", ".join(map(str, whole_steps(self.folder))) or "none"
        return CheckpointError(
            f"a checkpoint could not be written to {self.folder}: {'the disk is full' if full else error}. "
            f"Whole checkpoints there: {whole}. Make room and give the same command again: it goes on from the last one"
        )


def whole_steps(folder: Path) -> list[int]:
    """Steps of the whole checkpoints in a folder, ascending."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(int(path.name) for path in found if path.name.isdecimal() and _is_whole(path))


def restore_params(
    folder: Path, step: int | None = None, layout: Mapping[str, jax.ShapeDtypeStruct] | None = None
) -> tuple[Params, int]:
    """The parameters of one checkpoint, and its step; the newest unless a step is given.

    Arguments:
      folder: `checkpoints/` of the run directory.
      step: of the checkpoint.
      layout: shapes with their shardings, by path; a parameter that has one and is of its shape is read straight onto
        its devices. All others are numpy arrays.

    Raises:
      CheckpointError: there is no such checkpoint (the message lists those there are), or it is damaged.
    """
    folder = folder.absolute()
    steps = whole_steps(folder)
    if not steps:
        raise CheckpointError(f"{folder}: there is no whole checkpoint; is this the MODEL_DIR of a run that saved one?")
    if step is not None and step not in steps:
        raise CheckpointError(
            f"{folder}: there is no checkpoint of step {step}; there are {', '.join(map(str, steps))}"
        )
    step = steps[-1] if step is None else step
    path = folder / str(step)
    try:
        with _context(alone=True):
            target = functools.partial(_target, layout=layout or {})
            targets = jax.tree_util.tree_map_with_path(target, _found(path)["params"])
            return ocp.load_checkpointables(path, {"params": targets})["params"], step
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise _cannot_read(path, error) from error


def _target(
    path: tuple[Any, ...], leaf: Any, layout: Mapping[str, jax.ShapeDtypeStruct]
) -> jax.ShapeDtypeStruct | np.ndarray:
    wanted = layout.get("/".join(str(entry.key) for entry in path))
    if wanted is None or wanted.shape != tuple(leaf.shape):
        return np.empty(leaf.shape, leaf.dtype)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=wanted.sharding)


def _context(*, alone: bool = False) -> ocp.Context:
    """Orbax's settings: two of the four parts are JSON, whatever they look like.

    `alone`, a process reads for itself, without waiting for others that may not be reading.
    """
    registry = ocp.handlers.local_registry()
    for name in ("data", "config"):
        registry.add(ocp.handlers.JsonHandler, checkpointable_name=name)
    context = ocp.Context()
    context.checkpointables.registry = registry
    if alone and jax.process_count() > 1:
        context.multiprocessing.primary_host = None
        context.multiprocessing.active_processes = {jax.process_index()}
    return context


def _found(path: Path) -> Mapping[str, Any]:
    """Paths, shapes and dtypes of what a checkpoint holds."""
    found = ocp.checkpointables_metadata(path).metadata
    for name in ("params", "optimizer"):
        # Orbax gives a warning and None where it cannot read the description of an array.
        if found.get(name) is None:
            raise ValueError(f"{name} is damaged")
    return found


def _preservation(keep_latest: int, keep_best: int, best_is_lowest: bool) -> Any:
    policies = ocp.training.preservation_policies
    worst = math.inf if best_is_lowest else -math.inf

    def rank(metrics: Mapping[str, float]) -> float:
        value = metrics["best"]
        return worst if math.isnan(value) else value

    # Orbax keeps the end of the ascending order, or of the descending one where it is reversed.
    best = policies.BestN(
        get_metric_fn=rank, reverse=best_is_lowest, n=keep_best, keep_checkpoints_without_metrics=False
    )
    return policies.AnyPreservationPolicy([policies.LatestN(keep_latest), *([best] if keep_best else [])])


def _arrays(state: TrainState) -> dict[str, Any]:
    """The parts that hold arrays: the parameters that move, and everything else a step changes."""
    rest = state._asdict()
    del rest["frozen"]
    return {"params": rest.pop("params"), "optimizer": rest}


def _is_whole(path: Path) -> bool:
    try:
        committed = json.loads((path / _MARKER).read_text()).get("commit_timestamp_nsecs") is not None
    except (OSError, ValueError):
        return False
    return committed and all((path / name).is_file() for name in _CONTENTS)


def _half_written(folder: Path) -> list[str]:
    """Names of folders that a checkpoint was begun in: temporary ones, and steps that miss something."""
    found = [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    return sorted(path.name for path in found if path.suffix != _ASIDE and not _is_whole(path))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise _cannot_read(path, error) from error


def _cannot_read(path: Path, error: BaseException) -> CheckpointError:
    return CheckpointError(
        f"{path} cannot be read: {error}. If it is damaged, remove it, and the same command goes on from the one before"
    )


def _refuse_differences(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Compares paths and shapes of a checkpoint with those of the run."""
    there, here = (_shapes({name: tree[name] for name in wanted}) for tree in (found, wanted))
    lines = [
        f"{name}: {there.get(name, 'absent')} in the checkpoint, {here.get(name, 'absent')} in this run"
        for name in sorted(there.keys() | here.keys())
        if there.get(name) != here.get(name)
    ]
    if len(lines) > _SHOWN_DIFFERENCES:
        lines[_SHOWN_DIFFERENCES:] = [f"and {len(lines) - _SHOWN_DIFFERENCES} more"]
    if lines:
        raise CheckpointError(
            f"{path} is of another model or optimizer than this run:\n  "
            + "\n  ".join(lines)
            + "\nuse another MODEL_DIR, or the settings the checkpoint was written with"
        )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {
        "/".join(_key(key) for key in path): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _key(key: Any) -> str:
    return str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))))
