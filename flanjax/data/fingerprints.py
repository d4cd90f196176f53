"""Digests of code and configuration, to see whether anything changed that decides what a task produces.

`fingerprint(value)` walks a value (functions with their closures and defaults, partials, dataclasses, containers) and
digests what it finds: the source file of every function and class, every captured value, the contents of every file
that a captured path or string names, and names, sizes and times of the files in a folder that one names. Functions of
the project's and the user's own modules are followed to what they refer to; libraries count by their source file.
Nothing in it depends on addresses, hash seeds or the order of dictionaries, so two processes agree.
"""

import dataclasses
import enum
import functools
import hashlib
import inspect
import json
import os
import re
import sysconfig
import types
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np

from flanjax.data.source_files import SourceFiles

_LIBRARIES = tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
_HASHED_WHOLE = 64 << 20  # larger data files count by size and time of change


def fingerprint(value: Any, files: SourceFiles | None = None) -> str:
    """The hex sha256 of a value, of the code it refers to and of the files it names, which are added to `files`."""
    walk = _Walk(SourceFiles() if files is None else files)
    return hashlib.sha256(json.dumps(walk.describe(value), sort_keys=True).encode()).hexdigest()


def file_identity(path: str | os.PathLike[str]) -> list[Any]:
    """Name and contents of a local file; name, size and time of change where it is large."""
    status = os.stat(path)
    if status.st_size > _HASHED_WHOLE:
        return [os.path.basename(path), status.st_size, status.st_mtime_ns]
    return [os.path.basename(path), hashlib.sha256(Path(path).read_bytes()).hexdigest()]


def is_own_code(file: str | None, module: str | None) -> bool:
    """Whether a module is flanjax's or the user's own, and no library's."""
    if module is not None and module.split(".")[0] == "flanjax":
        return True
    return file is not None and os.path.isfile(file) and not os.path.abspath(file).startswith(_LIBRARIES)


class _Walk:
    """One walk over a value; it remembers what it has described, so that cycles end."""

    def __init__(self, files: SourceFiles) -> None:
        self._files = files
        self._met: dict[int, int] = {}
        self._kept_alive: list[Any] = []  # or an id could be given to a second object

    def describe(self, value: Any) -> Any:
        """A JSON value that is equal for equal content."""
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, str):
            return self._path(value) if _is_file(value) or self._files.names_folder(value) else value
        if isinstance(value, bytes):
            return ["bytes", value.hex()]
        if isinstance(value, enum.Enum):
            return [type(value).__qualname__, value.name]
        if isinstance(value, os.PathLike):
            return self._path(value)
        if isinstance(value, re.Pattern):
            return ["pattern", value.pattern, value.flags]
        if isinstance(value, np.ndarray | np.generic):
            return ["array", str(value.dtype), list(value.shape), hashlib.sha256(value.tobytes()).hexdigest()]
        if isinstance(value, types.ModuleType):
            return ["module", value.__name__, _source_digest(getattr(value, "__file__", None))]
        if id(value) in self._met:
            return ["met", self._met[id(value)]]
        self._met[id(value)] = len(self._met)
        self._kept_alive.append(value)
        return self._describe_compound(value)

    def _describe_compound(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return ["mapping", *([str(key), self.describe(value[key])] for key in sorted(value, key=str))]
        if isinstance(value, Set):
            return ["set", *sorted(json.dumps(self.describe(item)) for item in value)]
        if isinstance(value, Sequence):
            return ["sequence", *(self.describe(item) for item in value)]
        if isinstance(value, functools.partial):
            return ["partial", self.describe(value.func), self.describe(value.args), self.describe(value.keywords)]
        if isinstance(value, types.MethodType):
            return ["method", self.describe(value.__func__), self.describe(value.__self__)]
        if isinstance(value, types.FunctionType):
            return self._describe_function(value)
        if isinstance(value, type):
            return ["class", value.__qualname__, _class_digest(value)]
        if hasattr(value, "__wrapped__"):  # functools.cache and its like
            return ["wrapped", self.describe(value.__wrapped__)]
        return self._describe_object(value)

    def _describe_function(self, function: types.FunctionType) -> Any:
        code = function.__code__
        captured = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
        refers_to = {}
        if is_own_code(code.co_filename, function.__module__):
            names = sorted(_global_names(code) & function.__globals__.keys())
            refers_to = {name: self._describe_global(function.__globals__[name]) for name in names}
        return [
            *("function", code.co_qualname, _source_digest(code.co_filename)),
            *(self.describe(captured), self.describe(function.__defaults__), self.describe(function.__kwdefaults__)),
            *([name, described] for name, described in refers_to.items()),
        ]

    def _describe_global(self, value: Any) -> Any:
        """A module's name that a function refers to: code and plain values, but no live objects (loggers, caches)."""
        plain = (str, int, float, bool, bytes, tuple, list, dict, set, frozenset, functools.partial, os.PathLike)
        code = (types.FunctionType, types.MethodType, types.ModuleType, type)
        if isinstance(value, (*plain, *code)) or hasattr(value, "__wrapped__") or dataclasses.is_dataclass(value):
            return self.describe(value)
        return ["object", type(value).__qualname__]

    def _describe_object(self, value: Any) -> Any:
        kind = type(value)
        head = ["object", kind.__qualname__, _class_digest(kind)]
        own = kind.__module__.split(".")[0] in ("flanjax", "seqio") or is_own_code(_class_file(kind), kind.__module__)
        if own and hasattr(value, "__dict__"):
            return [*head, self.describe(vars(value))]
        return head

    def _path(self, value: str | os.PathLike[str]) -> Any:
        path = Path(value)
        if path.is_file():
            self._files.add(path)
            return ["file", *file_identity(path)]
        if path.is_dir():
            return ["folder", path.name, self._files.folder_digest(path)]
        return ["path", str(value)]


def _is_file(value: str) -> bool:
    return len(value) < 1024 and "\n" not in value and "\0" not in value and os.path.isfile(value)


def _is_filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _global_names(code: types.CodeType) -> set[str]:
    """Every name that a function, or a function inside of it, may look up in its module."""
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*(_global_names(constant) for constant in inner))


def _class_file(kind: type) -> str | None:
    try:
        return inspect.getfile(kind)
    except (TypeError, OSError):
        return None


def _class_digest(kind: type) -> str | None:
    return _source_digest(_class_file(kind))


def _source_digest(file: str | None) -> str | None:
    """The digest of a source file; None for code that has none (built in, or typed at a prompt)."""
    if file is None or not os.path.isfile(file):
        return None
    status = os.stat(file)
    return _digest(file, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _digest(file: str, size: int, modified: int) -> str:
    del size, modified  # they tell the cache when the file has changed
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()
