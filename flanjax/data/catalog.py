"""The shipped families, and what a name means: a mixture, a task or a dataset of one of them, or a file of one's own.

    shipped()                                {"flanjax.tasks.dolly": Family(...), ...}
    find("dolly").module                     "flanjax.tasks.dolly"
    resolve("reviews.jsonl", {})             ("reviews", {"flanjax.tasks.own": {"path": "reviews.jsonl"}})

Describing a family reads no data, so that all of them are there in a moment, without TensorFlow.
"""

import functools
import os
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flanjax.data.cache import is_cached
from flanjax.data.records import FORMATS, format_of
from flanjax.data.registry import load_family
from flanjax.data.tasks import Family, TextTask
from flanjax.errors import FlanjaxError, nearest

PACKAGE = "flanjax.tasks"
OWN = f"{PACKAGE}.own"

Modules = Mapping[str, Mapping[str, Any]]


class CatalogError(FlanjaxError):
    """A name that no family has."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What a name means: its module, the family, and the tasks with their rates (None: the number of examples)."""

    name: str
    module: str
    family: Family
    rates: Mapping[str, float | None]

    @property
    def tasks(self) -> list[TextTask]:
        """The tasks, in the order of `rates`."""
        by_name = {task.name: task for task in self.family.tasks}
        return [by_name[name] for name in self.rates]


@functools.cache
def shipped() -> Mapping[str, Family]:
    """Every module of tasks/ that describes a family, with its default options."""
    package = __import__(PACKAGE, fromlist=["__path__"])
    names = sorted(f"{PACKAGE}.{module.name}" for module in pkgutil.iter_modules(package.__path__))
    families = {name: load_family(name, {}) for name in names}
    return {name: family for name, family in families.items() if family is not None}


def find(name: str, modules: Modules | None = None) -> Entry:
    """The mixture or task of this name, or the mixture or tasks of the dataset of this name.

    Args:
        name: what is looked for; a path or an address means one's own data there.
        modules: task modules with options, which are asked first; then the shipped ones.

    Raises:
        CatalogError: no family has it; the message has the nearest name.
    """
    name, modules = resolve(name, modules or {})
    asked = {module: load_family(module, options) for module, options in modules.items()}
    families = {module: family for module, family in {**asked, **shipped(), **asked}.items() if family is not None}
    for module, family in families.items():
        if (rates := _meant(family, name)) is not None:
            return Entry(name=name, module=module, family=family, rates=rates)
    known = {known for family in families.values() for known in _names(family)}
    raise CatalogError(
        f"no mixture, task or dataset {name!r}{nearest(name, sorted(known))}; `python -m flanjax.data list` shows all, "
        "and a file of your own is given by its path"
    )


def resolve(mixture: str, modules: Modules) -> tuple[str, dict[str, Mapping[str, Any]]]:
    """A mixture and the task modules that bring it; a path or an address becomes a task of one's own data.

    Raises:
        FlanjaxError: there is nothing to read at the path, or its records have no known form.
    """
    modules = dict(modules)
    if not is_path(mixture):
        return mixture, modules
    options = {**modules.get(OWN, {}), "path": mixture}
    family = load_family(OWN, options)
    assert family is not None
    modules[OWN] = options
    return next(iter(family.mixtures)), modules


def resolve_all(
    mixtures: Sequence[str], modules: Modules, cache_dir: str | Path
) -> tuple[list[str], dict[str, Mapping[str, Any]]]:
    """Mixtures and the task modules that bring them, where `modules` names none.

    The name of a shipped mixture brings its module, unless the cache has it already: without modules it is taken as it
    was written. See `resolve` for paths, which bring a module in any case.
    """
    names, found = [], dict(modules)
    for mixture in mixtures:
        name, found = resolve(mixture, found)
        names.append(name)
        if not modules and name == mixture and not is_cached(cache_dir, name):
            module = module_of(name)
            if module is not None:
                found.setdefault(module, {})
    return names, found


def is_path(mixture: str) -> bool:
    """Whether a mixture's name is meant as a file, a folder or an address: no registered name looks like one."""
    return "/" in mixture or os.sep in mixture or format_of(mixture) in FORMATS


def module_of(name: str) -> str | None:
    """The shipped module that has this mixture or task; None where none has."""
    for module, family in shipped().items():
        if name in family.mixtures or any(task.name == name for task in family.tasks):
            return module
    return None


def _meant(family: Family, name: str) -> Mapping[str, float | None] | None:
    if name in family.mixtures:
        return family.mixtures[name]
    if any(task.name == name for task in family.tasks):
        return {name: 1.0}
    if any(dataset.name == name for dataset in family.datasets):
        of_its_name = [rates for mixture, rates in family.mixtures.items() if mixture.startswith(name)]
        return of_its_name[0] if of_its_name else {task.name: None for task in family.tasks}
    return None


def _names(family: Family) -> set[str]:
    return {*family.mixtures, *(task.name for task in family.tasks), *(dataset.name for dataset in family.datasets)}
