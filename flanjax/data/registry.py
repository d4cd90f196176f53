"""The tasks and mixtures that task modules bring, and finding a mixture among them.

A task module is any importable module. One with `family(**options)` describes text tasks (`flanjax.data.tasks`), which
need no TensorFlow. One with `register(**options)`, or with neither, fills seqio's registry when it is called or
imported, as modules written for T5X do; the text tasks are in that registry then as well, so that such a module's
mixtures may name them. A family may be described again with other options: the later one replaces the earlier.
"""

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from flanjax.data.fingerprints import is_own_code
from flanjax.data.provenance import code_identities
from flanjax.data.tasks import Family, TextTask
from flanjax.errors import FlanjaxError, nearest

if TYPE_CHECKING:
    import seqio


AnyTask: TypeAlias = "TextTask | seqio.Task"


class TaskError(FlanjaxError):
    """A task module that cannot be imported, or a mixture that is not registered."""


text_tasks: dict[str, TextTask] = {}
text_mixtures: dict[str, Mapping[str, float | None]] = {}


def add_family(family: Family) -> None:
    """Registers a family's tasks and mixtures, in place of what has their names.

    Raises:
        TaskError: a mixture names a task that is not there.
    """
    text_tasks.update({task.name: task for task in family.tasks})
    for name, rates in family.mixtures.items():
        if missing := [task for task in rates if task not in text_tasks]:
            raise TaskError(f"mixture {name!r} names task {missing[0]!r}, which is not registered")
        if rates:
            text_mixtures[name] = rates
        else:
            text_mixtures.pop(name, None)


def load_family(module: str, options: Mapping[str, Any]) -> Family | None:
    """The family that a module describes; None for a module that does not.

    Raises:
        TaskError: it is not found or fails, or does not take an option.
    """
    describe = getattr(_imported(module), "family", None)
    return _called(module, describe, options) if describe is not None else None


def register_modules(modules: Mapping[str, Mapping[str, Any]]) -> None:
    """Imports task modules and takes in what they describe or register.

    Raises:
        TaskError: a module is not found or fails, takes no options but is given some, or refuses one.
    """
    written_in_seqio = []
    for name, options in modules.items():
        if "seqio" in code_identities([name]):
            written_in_seqio.append(name)  # once the text tasks that it may name are there
        elif (family := load_family(name, options)) is not None:
            add_family(family)
        else:
            _register(name, options)
    if written_in_seqio:
        _tell_seqio(Family(tasks=tuple(text_tasks.values()), mixtures=text_mixtures))
    for name in written_in_seqio:
        if (family := load_family(name, modules[name])) is not None:
            add_family(family)
            _tell_seqio(family)
        else:
            _register(name, modules[name])


def _tell_seqio(family: Family) -> None:
    from flanjax.data import seqio_tasks

    seqio_tasks.add_family(family)


def _register(name: str, options: Mapping[str, Any]) -> None:
    """Imports a module that fills seqio's registry by itself, and calls its `register`, if it has one."""
    register = getattr(_imported(name), "register", None)
    if register is not None:
        _called(name, register, options)
    elif options:
        raise TaskError(f"task module {name!r} has neither family() nor register(), so it takes no options: {options}")


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except FlanjaxError:
        raise
    except ImportError as error:
        raise TaskError(
            f"task module {name!r} cannot be imported: {error}; a module of your own must be importable, for "
            "instance from the current folder or through PYTHONPATH"
        ) from error
    except Exception as error:
        raise TaskError(f"task module {name!r} cannot be imported: {_failure(error)}") from error


def _called(name: str, function: Callable[..., Any], options: Mapping[str, Any]) -> Any:
    _check_options(name, function, options)
    try:
        return function(**options)
    except FlanjaxError:
        raise
    except Exception as error:
        raise TaskError(f"task module {name!r} cannot be registered with {dict(options)}: {_failure(error)}") from error


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
    """A registered mixture, or a single task as a mixture of one; `rated` says the rate of each task."""

    name: str
    tasks: tuple[AnyTask, ...]
    rated: "Mapping[str, float | None] | seqio.Mixture"

    def rates(self, examples: Mapping[tuple[str, str], int]) -> list[float | None]:
        """The rate of each task; None where seqio's rate function fails.

        Args:
            examples: by task and split, for tasks whose rate is the number of their examples.
        """
        if isinstance(self.rated, Mapping):
            rates = [self.rated[task.name] for task in self.tasks]
            return [
                _size(task.name, examples) if rate is None else rate
                for task, rate in zip(self.tasks, rates, strict=True)
            ]
        by_name = {task.name: task for task in self.rated.tasks}
        tasks = [by_name[task.name] for task in self.tasks]
        for task in tasks:
            _answer_from(task, examples)
        try:
            return [_rate(self.rated, task) for task in tasks]
        finally:
            for task in tasks:
                vars(task).pop("get_cached_stats")
                vars(task).pop("num_input_examples")


def find_mixture(name: str) -> Found:
    """The tasks of a registered mixture or task, in order of their names.

    Raises:
        TaskError: nothing of this name is registered; the message has the nearest name.
    """
    if name in text_mixtures:
        rates = text_mixtures[name]
        return Found(name=name, tasks=tuple(text_tasks[task] for task in sorted(rates)), rated=rates)
    if name in text_tasks:
        return Found(name=name, tasks=(text_tasks[name],), rated={name: 1.0})
    known, tasks = set(text_mixtures), set(text_tasks)
    if "seqio" in sys.modules:  # or no module has filled its registry
        import seqio

        if name in seqio.MixtureRegistry.names():
            mixture = seqio.MixtureRegistry.get(name)
            found = tuple(text_tasks.get(task.name, task) for task in mixture.tasks)
            return Found(name=name, tasks=found, rated=mixture)
        if name in seqio.TaskRegistry.names():
            return Found(name=name, tasks=(seqio.TaskRegistry.get(name),), rated={name: 1.0})
        known |= set(seqio.MixtureRegistry.names())
        tasks |= set(seqio.TaskRegistry.names())
    raise TaskError(
        f"no mixture or task {name!r} is registered{nearest(name, [*sorted(known), *tasks])}; "
        f"known mixtures: {', '.join(sorted(known)) or 'none'}; name the module that registers it among the tasks"
    )


def _size(task: str, examples: Mapping[tuple[str, str], int]) -> float | None:
    return float(examples[task, "train"]) if (task, "train") in examples else 1.0


def _answer_from(task: "seqio.Task", examples: Mapping[tuple[str, str], int]) -> None:
    """Lets a task tell the counts of our cache, where seqio would look for a cache of its own."""
    task.get_cached_stats = lambda split="train": {"examples": examples[task.name, split]}
    task.num_input_examples = lambda split: examples[task.name, split]


def _rate(mixture: "seqio.Mixture", task: "seqio.Task") -> float | None:
    try:
        return float(mixture.get_rate(task))
    except (AssertionError, TypeError, ValueError, KeyError):
        return None
