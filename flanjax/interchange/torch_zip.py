"""Tensors of a file that `torch.save` wrote, without unpickling it.

Such a file is a zip archive: `data.pkl` describes a dict of tensors, `data/<key>` holds the bytes of each storage. The
description is a program for pickle's machine, which may call anything. Here it is disassembled (`pickletools.genops`)
and only the few instructions that a dict of tensors needs are followed, on a stack of plain descriptions; nothing is
imported or called, and any other instruction or name is refused.
"""

import contextlib
import dataclasses
import math
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from flanjax.interchange.folders import ModelFolderError
from flanjax.interchange.stored import Lazy, Slices, lazy

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

    def of(self, values: np.ndarray) -> np.ndarray:
        """The view that it is of all values of its storage."""
        strides = [stride * values.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(values[self.offset :], self.shape, strides)


_MARK = object()
_LOCAL_HEADER = struct.Struct("<26x2H")  # in front of a member: 26 bytes, the lengths of its name and of what is extra


def read_torch_zip(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a dict by name, in their own dtypes, by the archive's checksums.

    Raises:
      ModelFolderError: no such file, not such an archive, anything in it that is no dict of float tensors (with the
        instruction and its position), or storages that are not as described.
    """
    with _opened(Path(path)) as archive:
        return {name: archive.read(tensor) for name, tensor in archive.tensors().items()}


def stored_torch_zip(path: str | Path) -> dict[str, Lazy]:
    """The same as they lie in the file, of which what is asked for is read.

    Raises:
      ModelFolderError: as `read_torch_zip`; when a tensor is read, the file has become shorter.
    """
    with _opened(Path(path)) as archive:
        return {name: archive.stored(tensor) for name, tensor in archive.tensors().items()}


@contextlib.contextmanager
def _opened(path: Path) -> Iterator["_Archive"]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield _Archive(path, archive)
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

    def tensors(self) -> dict[str, _Tensor]:
        """What the description says, compared with the storages that are there."""
        order = f"{self._root}byteorder"
        if order in self._archive.namelist() and self._archive.read(order) != b"little":
            raise ModelFolderError(f"{self._path}: it was written on a big-endian machine, which is not read")
        described = _follow(self._path, self._archive.read(f"{self._root}data.pkl"))
        for name, tensor in described.items():
            self._check(name, tensor)
        return described

    def read(self, tensor: _Tensor) -> np.ndarray:
        """Its values."""
        values: np.ndarray = np.frombuffer(self._archive.read(self._member(tensor)), tensor.storage.dtype)
        return tensor.of(values).copy()

    def stored(self, tensor: _Tensor) -> Lazy:
        """Its values where they lie."""
        path, storage = self._path, tensor.storage
        header = self._archive.getinfo(self._member(tensor)).header_offset
        with path.open("rb") as file:
            file.seek(header)
            start = header + _LOCAL_HEADER.size + sum(_LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size)))

        def part(slices: Slices) -> np.ndarray:
            try:
                return tensor.of(np.memmap(path, storage.dtype, "r", start, (storage.size,)))[slices]
            except (OSError, ValueError) as error:
                raise ModelFolderError(f"{path}: has changed since it was opened ({error})") from error

        return lazy(tensor.shape, storage.dtype, part)

    def _member(self, tensor: _Tensor) -> str:
        return f"{self._root}data/{tensor.storage.key}"

    def _check(self, name: str, tensor: _Tensor) -> None:
        member, storage = self._member(tensor), tensor.storage
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
        try:
            tensor.of(np.empty(0, storage.dtype))  # a view that nobody reads
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
        elif name == "BUILD":  # a module's state is an OrderedDict that has attributes, its modules' versions
            stack.pop()
            if not isinstance(stack[-1], dict):
                raise ValueError("attributes of something else than a dict")
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
