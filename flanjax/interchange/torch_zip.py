"""Tensors of a file that `torch.save` wrote, without unpickling it.

Such a file is a zip archive: `data.pkl` describes a dict of tensors, `data/<key>` holds the bytes of each storage. The
description is a program for pickle's machine, which may call anything. Here it is disassembled (`pickletools.genops`)
and only the few instructions that a dict of tensors needs are followed, on a stack of plain descriptions; nothing is
imported or called, and any other instruction or name is refused.
"""

import dataclasses
import math
import pickletools
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from flanjax.interchange.folders import ModelFolderError

_DTYPES: dict[str, type] = {
    "torch FloatStorage": np.float32,
    "torch DoubleStorage": np.float64,
    "torch HalfStorage": np.float16,
    "torch BFloat16Storage": ml_dtypes.bfloat16,
}
_TENSOR, _DICT = "torch._utils _rebuild_tensor_v2", "collections OrderedDict"
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
    "NEWFALSE": lambda: False,
    "NEWTRUE": lambda: True,
}
_VALUES = {"BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclasses.dataclass(frozen=True)
class _Name:
    """A function or class that the description mentions."""

    name: str


@dataclasses.dataclass(frozen=True)
class _Storage:
    key: str
    dtype: type
    size: int


@dataclasses.dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


_MARK = object()


def read_torch_zip(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a dict by name, in their own dtypes.

    Raises:
      ModelFolderError: no such file, not such an archive, anything in it that is no dict of float tensors (with the
        instruction and its position), or storages that are not as described.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            return _Archive(path, archive).tensors()
    except OSError as error:
        raise ModelFolderError(f"{path}: {error.strerror or error}") from error
    except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError) as error:
        raise ModelFolderError(
            f"{path}: truncated, or not a zip archive of torch.save ({error}); torch before 1.6 wrote plain pickles, "
            "which are not read: open it there with weights_only=True and save it again"
        ) from error


class _Archive:
    def __init__(self, path: Path, archive: zipfile.ZipFile):
        self._path, self._archive = path, archive
        found = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(found) != 1:
            raise ModelFolderError(f"{path}: a zip archive without a data.pkl: not what torch.save writes")
        self._root = found[0].removesuffix("data.pkl")

    def tensors(self) -> dict[str, np.ndarray]:
        order = f"{self._root}byteorder"
        if order in self._archive.namelist() and self._archive.read(order) != b"little":
            raise ModelFolderError(f"{self._path}: it was written on a big-endian machine, which is not read")
        described = _follow(self._path, self._archive.read(f"{self._root}data.pkl"))
        return {name: self._array(name, tensor) for name, tensor in described.items()}

    def _array(self, name: str, tensor: _Tensor) -> np.ndarray:
        member, storage = f"{self._root}data/{tensor.storage.key}", tensor.storage
        itemsize = np.dtype(storage.dtype).itemsize
        try:
            stored = self._archive.getinfo(member)
        except KeyError as error:
            raise ModelFolderError(f"{self._path}: {name}: its storage {member} is not in the archive") from error
        last = tensor.offset + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True))
        if stored.compress_type != zipfile.ZIP_STORED or stored.file_size != storage.size * itemsize:
            raise ModelFolderError(
                f"{self._path}: {name}: {member} has {stored.file_size} bytes, described are {storage.size} values of "
                f"{itemsize}"
            )
        if 0 not in tensor.shape and max(last + 1, math.prod(tensor.shape)) > storage.size:
            raise ModelFolderError(
                f"{self._path}: {name} {tensor.shape} reaches beyond the {storage.size} values of its storage"
            )
        values: np.ndarray = np.frombuffer(self._archive.read(member), storage.dtype)
        strides = [stride * itemsize for stride in tensor.strides]
        try:
            return np.lib.stride_tricks.as_strided(values[tensor.offset :], tensor.shape, strides).copy()
        except (ValueError, OverflowError) as error:  # a stride of an axis of one, or an empty shape, beyond 64 bits
            raise ModelFolderError(
                f"{self._path}: {name} {tensor.shape} with strides {tensor.strides}: {error}"
            ) from error


def _follow(path: Path, program: bytes) -> dict[str, _Tensor]:
    """The dict that the description describes."""
    machine, where = _Machine(), "its beginning"
    try:
        for opcode, argument, position in pickletools.genops(program):
            where = f"{opcode.name} at byte {position}"
            machine.step(opcode.name, argument)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise ModelFolderError(f"{path}: data.pkl: {where}: {error}; only a dict of float tensors is read") from error
    found = machine.stack[0] if len(machine.stack) == 1 else None
    if not isinstance(found, dict) or not all(isinstance(tensor, _Tensor) for tensor in found.values()):
        raise ModelFolderError(f"{path}: it describes something else than a dict of float tensors, which alone is read")
    return {str(name): tensor for name, tensor in found.items()}


class _Machine:
    """The instructions of pickle's machine that make a dict of tensors; its objects are descriptions."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """One instruction; raises ValueError and the like for any that is not among them."""
        stack = self.stack
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name in _VALUES:
            stack.append(argument)
        elif name == "MARK":
            stack.append(_MARK)
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self._memo[len(self._memo) if argument is None else argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name == "TUPLE":
            stack.append(tuple(self._since_mark()))
        elif name in _TUPLES:
            stack.append(tuple(stack.pop() for _ in range(_TUPLES[name]))[::-1])
        elif name == "GLOBAL" and argument in (_TENSOR, _DICT, *_DTYPES):
            stack.append(_Name(argument))
        elif name == "BINPERSID":
            _, kind, key, _, size = stack.pop()
            stack.append(_Storage(key, _DTYPES[kind.name], size))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(_described(function, arguments))
        elif name in ("SETITEM", "SETITEMS"):
            items = self._since_mark() if name == "SETITEMS" else [stack.pop(), stack.pop()][::-1]
            stack[-1].update(zip(items[::2], items[1::2], strict=True))
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise ValueError("this is refused" if argument is None else f"{argument!r} is refused")

    def _since_mark(self) -> list[Any]:
        at = max(i for i, item in enumerate(self.stack) if item is _MARK)
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items


def _described(function: Any, arguments: tuple[Any, ...]) -> Any:
    """What one of the two calls that are known would have made."""
    if function == _Name(_DICT) and arguments == ():
        return {}
    if function != _Name(_TENSOR):
        raise ValueError(f"{function!r} is called")
    storage, offset, shape, strides, *_ = arguments
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, _Storage) or any(type(n) is not int or n < 0 for n in (*numbers, storage.size)):
        raise ValueError(f"a tensor of {arguments!r}")
    if len(shape) != len(strides) or not isinstance(storage.key, str):
        raise ValueError(f"a tensor of {arguments!r}")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))
