"""seqio's registry of tasks and mixtures: filling it from task modules, and finding a mixture in it.

A task module is any importable module. If it has `register(**options)`, that is called; otherwise importing it is
expected to register its tasks, as modules written for T5X do. seqio refuses a name that is taken, but `register` may be
called again with other options, so `add_task` and `add_mixture` let the later registration replace the earlier one.
"""

import importlib
import inspect
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import seqio

from flanjax.data.fingerprints import is_own_code
from flanjax.errors import FlanjaxError, nearest


class TaskError(FlanjaxError):
    """A task module that cannot be imported, or a mixture that is not registered."""


def text_features() -> dict[str, seqio.Feature]:
    """`inputs` and `targets` for a task that leaves the choice of vocabulary to the run.

    Materialising puts the run's vocabulary in place of the bytes; without one the task is an ordinary seqio task over
    bytes.
    """
    return {name: seqio.Feature(vocabulary=seqio.ByteVocabulary(), add_eos=True) for name in ("inputs", "targets")}


def add_task(name: str, **arguments: Any) -> seqio.Task:
    """`seqio.TaskRegistry.add` that replaces a task of the same name."""
    seqio.TaskRegistry.remove(name)
    return seqio.TaskRegistry.add(name, **arguments)


def add_mixture(
    name: str, tasks: Iterable[str] | Mapping[str, float], *, default_rate: float | None = None
) -> seqio.Mixture | None:
    """`seqio.MixtureRegistry.add` that replaces a mixture of the same name.

    `tasks` are names, or names with rates. seqio has no empty mixtures: without tasks, nothing has the name afterwards.
    """
    seqio.MixtureRegistry.remove(name)
    rated = list(tasks.items()) if isinstance(tasks, Mapping) else list(tasks)
    return seqio.MixtureRegistry.add(name, rated, default_rate=default_rate) if rated else None


def register_modules(modules: Mapping[str, Mapping[str, Any]]) -> None:
    """Imports task modules and calls their `register(**options)`.

    Raises:
        TaskError: a module is not found or fails, takes no options but is given some, or refuses one.
    """
    for name, options in modules.items():
        try:
            module = importlib.import_module(name)
        except FlanjaxError:
            raise
        except ImportError as error:
            raise TaskError(
                f"task module {name!r} cannot be imported: {error}; a module of your own must be importable, for "
                "instance from the current folder or through PYTHONPATH"
            ) from error
        except Exception as error:
            raise TaskError(f"task module {name!r} cannot be imported: {_failure(error)}") from error
        register = getattr(module, "register", None)
        if register is None:
            if options:
                raise TaskError(f"task module {name!r} has no register(), so it takes no options: {dict(options)}")
            continue
        _check_options(name, register, options)
        try:
            register(**options)
        except FlanjaxError:
            raise
        except Exception as error:
            raise TaskError(
                f"task module {name!r} cannot be registered with {dict(options)}: {_failure(error)}"
            ) from error


def _check_options(module: str, register: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Refuses options that `register` does not take, or lacks, before it is called."""
    signature = inspect.signature(register)
    try:
        signature.bind(**options)
    except TypeError as error:
        unknown = [name for name in options if name not in signature.parameters]
        hint = nearest(unknown[0], signature.parameters) if unknown else ""
        raise TaskError(
            f"task module {module!r} cannot be registered with {dict(options)}: {error}{hint}; its options are "
            f"{', '.join(signature.parameters) or 'none'}"
        ) from error


def _failure(error: Exception) -> str:
    """What went wrong in a task module, and where in it."""
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg} ({error.filename}:{error.lineno})"
    frames = traceback.extract_tb(error.__traceback__)
    place = [frame for frame in frames if is_own_code(frame.filename, None)] or frames
    return f"{type(error).__name__}: {error} ({place[-1].filename}:{place[-1].lineno})"


@dataclass(frozen=True, kw_only=True)
class Found:
    """A registered mixture, or a single task as a mixture of one."""

    name: str
    tasks: tuple[seqio.Task, ...]
    mixture: seqio.Mixture | None

    def rates(self, examples: Mapping[tuple[str, str], int]) -> list[float | None]:
        """The rate that seqio gives each task; None where its rate function fails.

        Args:
            examples: by task and split, for rate functions that ask a task how many examples it has.
        """
        if self.mixture is None:
            return [1.0]
        for task in self.tasks:
            _answer_from(task, examples)
        try:
            return [_rate(self.mixture, task) for task in self.tasks]
        finally:
            for task in self.tasks:
                vars(task).pop("get_cached_stats")
                vars(task).pop("num_input_examples")


def find_mixture(name: str) -> Found:
    """The tasks of a registered mixture or task, in order of their names.

    Raises:
        TaskError: nothing of this name is registered; the message has the nearest name.
    """
    if name in seqio.MixtureRegistry.names():
        mixture = seqio.MixtureRegistry.get(name)
        return Found(name=name, tasks=tuple(mixture.tasks), mixture=mixture)
    if name in seqio.TaskRegistry.names():
        return Found(name=name, tasks=(seqio.TaskRegistry.get(name),), mixture=None)
    mixtures = sorted(seqio.MixtureRegistry.names())
    raise TaskError(
        f"no mixture or task {name!r} is registered{nearest(name, [*mixtures, *seqio.TaskRegistry.names()])}; "
        f"known mixtures: {', '.join(mixtures) or 'none'}; name the module that registers it among the tasks"
    )


def _answer_from(task: seqio.Task, examples: Mapping[tuple[str, str], int]) -> None:
    """Lets a task tell the counts of our cache, where seqio would look for a cache of its own."""
    task.get_cached_stats = lambda split="train": {"examples": examples[task.name, split]}
    task.num_input_examples = lambda split: examples[task.name, split]


def _rate(mixture: seqio.Mixture, task: seqio.Task) -> float | None:
    try:
        return float(mixture.get_rate(task))
    except (AssertionError, TypeError, ValueError, KeyError):
        return None
