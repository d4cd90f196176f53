"""GGUF files, versions 2 and 3, little endian: metadata by key, and tensors that are read when they are indexed.

    file = read_gguf_file("SmolLM2-135M-Instruct.Q4_1.gguf")
    file.metadata["llama.block_count"]                      # 30
    file.tensors["blk.0.attn_k.weight"][0:2, 0:64]          # float32 [2, 64]; 4 of its 3,456 blocks are read

The layout is that of docs/gguf.md in the ggml repository: `GGUF`, version, number of tensors, number of keys; the keys
with typed values; name, shape, type and offset of each tensor; the tensors themselves, aligned. Shapes are turned
round, so that the last axis is the one that lies contiguously. Every length is checked against the file before
anything of that length is read or made.
"""

import contextlib
import dataclasses
import math
import mmap
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flanjax.interchange.folders import ModelFolderError
from flanjax.interchange.gguf_types import OTHER_TYPES, TYPES, TensorType
from flanjax.interchange.stored import in_file

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT = "general.alignment"
_STRING, _ARRAY, _BOOL, _FLOAT32 = 8, 9, 7, 6
_SCALARS = {
    **{0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", _FLOAT32: "<f4"},
    **{_BOOL: "<u1", 10: "<u8", 11: "<i8", 12: "<f8"},
}
_MAX_AXES = 4
_PART_BYTES = 2**22
# The fewest bytes that a key with its value, a tensor's description or a text can take.
_LEAST_KEY, _LEAST_TENSOR, _LEAST_STRING = 8 + 4 + 1, 8 + 4 + 8 + 4 + 8, 8


@dataclasses.dataclass(frozen=True)
class GgufTensor:
    """A tensor in its file; indexing reads and dequantises no more than the blocks that the slices touch.

    Attributes:
      path: the file.
      name: GGUF's.
      shape: the last axis lies contiguously in the file.
      type: how its numbers are held.
      start: its first byte.
    """

    path: Path
    name: str
    shape: tuple[int, ...]
    type: TensorType
    start: int

    @property
    def dtype(self) -> np.dtype:
        """Of the numbers that come out."""
        return self.type.dtype

    @property
    def stored_bytes(self) -> int:
        """Its size in the file."""
        return math.prod(self.shape) // self.type.size * self.type.block.itemsize

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        size = self.type.size
        start, stop, step = index[-1].indices(self.shape[-1])
        first, last = start // size, -(-stop // size)
        lying = (*self.shape[:-1], self.shape[-1] // size)
        blocks = in_file(self.path, self.type.block, lying, self.start)[(*index[:-1], slice(first, last))]
        numbers = np.empty((*blocks.shape, size), self.dtype)
        # In parts, for dequantising takes several arrays of the size of its result.
        parts = 1 + numbers.nbytes // _PART_BYTES
        for into, part in zip(np.array_split(numbers, parts), np.array_split(blocks, parts), strict=True):
            into[...] = self.type.numbers(part)
        rows = numbers.reshape(*blocks.shape[:-1], blocks.shape[-1] * size)
        return rows[..., start - first * size : stop - first * size : step]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        whole = self[(slice(None),) * len(self.shape)]
        return whole if dtype is None else whole.astype(dtype, copy=False)


@dataclasses.dataclass(frozen=True)
class GgufFile:
    """What a file says.

    Attributes:
      path: the file.
      metadata: text, number or truth value by key; an array of texts is a list, one of numbers a NumPy array. A
        float32 is given as the shortest decimal that rounds to it: 1e-05, not 9.999999747378752e-06.
      tensors: by name.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]


def is_gguf(path: Path) -> bool:
    """Whether this is no folder and is named `.gguf`, or begins as GGUF files do."""
    if path.is_dir() or path.suffix == ".gguf":
        return not path.is_dir()
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(len(_MAGIC)) == _MAGIC


def read_gguf_file(path: str | Path) -> GgufFile:
    """Reads the header; no tensor is read.

    Raises:
      ModelFolderError: the file is absent, is no GGUF of version 2 or 3, is truncated or damaged (with the byte), or
        has tensors of a type that is not read (with the remedy).
    """
    path = Path(path)
    with _mapped(path) as content:
        return _Header(path, content).file()


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap | bytes]:
    try:
        with path.open("rb") as stream:
            if not path.stat().st_size:
                yield b""
                return
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
                yield content
    except OSError as error:
        raise ModelFolderError(f"{path}: {error.strerror or error}") from error


class _Header:
    """Reads from the front, and never beyond the end."""

    def __init__(self, path: Path, content: mmap.mmap | bytes):
        self._path, self._content, self._position = path, content, 0

    def file(self) -> GgufFile:
        """Reads all but the tensors' numbers."""
        self._check_version()
        tensor_count, key_count = self._number("<u8", "number of tensors"), self._number("<u8", "number of keys")
        self._require_room(key_count, _LEAST_KEY, f"{key_count} keys")
        metadata: dict[str, Any] = {}
        for _ in range(key_count):
            key = self._text("name of a key")
            if key in metadata:
                raise self._damaged(f"the key {key} is there twice")
            metadata[key] = self._value(key, self._number("<u4", f"type of {key}"))
        self._require_room(tensor_count, _LEAST_TENSOR, f"{tensor_count} tensors")
        described = [self._described() for _ in range(tensor_count)]
        return GgufFile(self._path, metadata, self._tensors(described, self._alignment(metadata)))

    def _damaged(self, text: str) -> ModelFolderError:
        return ModelFolderError(
            f"{self._path}: at byte {self._position} of {len(self._content)}: {text}: truncated or damaged; copy or "
            "download it again"
        )

    def _check_version(self) -> None:
        if self._content[: len(_MAGIC)] != _MAGIC:
            raise ModelFolderError(f"{self._path}: it does not begin with {_MAGIC.decode()}, so it is no GGUF file")
        self._position = len(_MAGIC)
        version = self._number("<u4", "version")
        if version in _VERSIONS:
            return
        if not version & 0xFFFF:
            raise ModelFolderError(
                f"{self._path}: a big-endian GGUF file, which is not read; convert it with gguf_convert_endian of the "
                "gguf package"
            )
        raise ModelFolderError(
            f"{self._path}: version {version} of GGUF; read are {_VERSIONS}: write it anew with a present llama.cpp"
        )

    def _require_room(self, count: int, least: int, what: str) -> None:
        if count * least > len(self._content) - self._position:
            raise self._damaged(f"{what} do not fit into the rest of the file")

    def _take(self, count: int, what: str) -> bytes:
        self._require_room(count, 1, f"{what}: {count} bytes")
        self._position += count
        return self._content[self._position - count : self._position]

    def _number(self, dtype: str, what: str) -> Any:
        return np.frombuffer(self._take(np.dtype(dtype).itemsize, what), dtype)[0].item()

    def _text(self, what: str) -> str:
        # struct, for a vocabulary is a hundred thousand of these.
        (length,) = struct.unpack("<Q", self._take(8, f"length of {what}"))
        content = self._take(length, what)
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            raise self._damaged(f"{what} is not UTF-8 ({error})") from error

    def _value(self, key: str, kind: int) -> Any:
        if kind == _STRING:
            return self._text(key)
        if kind in _SCALARS:
            return self._plain(key, kind, self._scalars(key, kind, 1)[0])
        if kind != _ARRAY:
            raise self._damaged(f"{key} has a value of the unknown type {kind}")
        inner, count = self._number("<u4", f"type of {key}"), self._number("<u8", f"length of {key}")
        if inner == _STRING:
            self._require_room(count, _LEAST_STRING, f"{key}: {count} texts")
            return [self._text(key) for _ in range(count)]
        if inner not in _SCALARS:
            raise self._damaged(f"{key} is an array of the type {inner}, which is not read")
        return self._scalars(key, inner, count)

    def _scalars(self, key: str, kind: int, count: int) -> np.ndarray:
        dtype = np.dtype(_SCALARS[kind])
        return np.frombuffer(self._take(count * dtype.itemsize, f"{key}: {count} numbers"), dtype)

    def _plain(self, key: str, kind: int, value: Any) -> Any:
        if kind == _FLOAT32:
            return float(str(value))
        if kind == _BOOL and value > 1:
            raise self._damaged(f"{key} is {value}, and not true or false")
        return bool(value) if kind == _BOOL else value.item()

    def _alignment(self, metadata: Mapping[str, Any]) -> int:
        alignment = metadata.get(_ALIGNMENT, 32)
        if type(alignment) is not int or alignment < 1:
            raise self._damaged(f"{_ALIGNMENT} is {alignment!r}")
        return alignment

    def _described(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape, number of the type and offset of a tensor."""
        name = self._text("name of a tensor")
        axes = self._number("<u4", f"axes of {name}")
        if not 1 <= axes <= _MAX_AXES:
            raise self._damaged(f"{name} has {axes} axes")
        shape = tuple(self._number("<u8", f"shape of {name}") for _ in range(axes))[::-1]
        if 0 in shape:
            raise self._damaged(f"{name} has the shape {shape}")
        return name, shape, self._number("<u4", f"type of {name}"), self._number("<u8", f"offset of {name}")

    def _tensors(self, described: list[tuple[str, tuple[int, ...], int, int]], alignment: int) -> dict[str, GgufTensor]:
        if refused := {name: kind for name, _, kind, _ in described if kind not in TYPES}:
            raise self._unreadable(refused)
        begin = -(-self._position // alignment) * alignment
        tensors: dict[str, GgufTensor] = {}
        end = begin
        for name, shape, kind, offset in sorted(described, key=lambda tensor: tensor[-1]):
            tensor = GgufTensor(self._path, name, shape, TYPES[kind], begin + offset)
            if name in tensors:
                raise self._damaged(f"the tensor {name} is there twice")
            if shape[-1] % tensor.type.size:
                raise self._damaged(f"{name} {shape} is {tensor.type.name}: no whole blocks of {tensor.type.size}")
            if offset % alignment or tensor.start < end:
                raise self._damaged(
                    f"{name} at offset {offset} is not aligned to {alignment} or lies in another tensor"
                )
            end = tensor.start + tensor.stored_bytes
            if end > len(self._content):
                raise self._damaged(f"{name} {shape} would end at byte {end}")
            tensors[name] = tensor
        return tensors

    def _unreadable(self, refused: Mapping[str, int]) -> ModelFolderError:
        kinds: dict[str, list[str]] = {}
        for name, kind in refused.items():
            kinds.setdefault(OTHER_TYPES.get(kind, f"number {kind}"), []).append(name)
        listed = ", ".join(f"{kind} ({len(names)}, the first {names[0]})" for kind, names in kinds.items())
        return ModelFolderError(
            f"{self._path}: tensors of types that are not read: {listed}. Read are "
            f"{', '.join(kind.name for kind in TYPES.values())}; convert with llama.cpp: "
            f"llama-quantize --allow-requantize {self._path.name} NEW.gguf Q8_0, or take a file of one of these types"
        )
