"""A folder of safetensors files as one mapping from tensor name to array, whole or sharded.

Reading looks at headers alone; weights stay in the files until a part of them is asked for, and are written one tensor
at a time.

    stored_tensors(folder)["lm_head.weight"].float32()[0:8, :]        # reads eight rows

A sharded folder holds `model.safetensors.index.json`, whose `weight_map` gives the file of every tensor. Pickled
weights are refused: reading them runs code from the folder.
"""

import dataclasses
import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (registers bfloat16 with numpy)
import numpy as np
from safetensors import SafetensorError, safe_open

from flanjax.interchange.folders import ModelFolderError, read_json, write_json
from flanjax.interchange.stored import Lazy, StoredArray, cast, in_file

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000  # the size at which transformers splits
# What other files of weights are called; those of a trainer's own state have safetensors beside them.
_PICKLED = ("pytorch_model*.bin", "*.pth", "*.pt", "tf_model.h5", "flax_model.msgpack", "pytorch_model.bin.index.json")
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
FLOATS = ("float32", "bfloat16", "float16")  # what weights are read from, in the order in which safetensors writes them
_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_HEADER_SIZE = struct.Struct("<Q")  # bytes of JSON, with which a file begins


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor as its file's header describes it; `dtype` is a numpy name, or safetensors' code for the others."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int  # in the file

    def float32(self) -> Lazy:
        """Its values, which are read when they are asked for; float32 holds all of `FLOATS` exactly."""
        return cast(in_file(self.file, self.dtype, self.shape, self.offset), np.float32)


def stored_tensors(folder: Path, *, auto_class: str = "AutoModelForSeq2SeqLM") -> dict[str, StoredTensor]:
    """The tensors of `folder` by name; headers only, no weights are read. `auto_class` is named in the remedy.

    Raises:
      ModelFolderError: no safetensors file (with the remedy where pickled weights lie there), an index that names an
        absent shard or a tensor its shard lacks, a truncated or corrupt file.
    """
    if (folder / INDEX).is_file():
        return _sharded_tensors(folder)
    if (folder / WEIGHTS).is_file():
        return file_tensors(folder / WEIGHTS)
    if (pickled := find_pickled(folder)) is not None:
        raise ModelFolderError(f"{folder}: only {pickled.name} here, {NOT_SAFETENSORS.format(auto_class=auto_class)}")
    raise ModelFolderError(f"{folder}: neither {WEIGHTS} nor {INDEX} in this folder")


NOT_SAFETENSORS = (
    "which is not safetensors; convert it once where transformers and the framework that wrote it are installed: "
    "{auto_class}.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER, safe_serialization=True)"
)


def find_pickled(path: Path) -> Path | None:
    """Weights that are not safetensors: the file at `path`, by its name or how it begins, or the first in a folder.

    A pickle, or the zip archive of torch.save around one, is known whatever it is called.
    """
    if path.is_dir():
        return next((file for pattern in _PICKLED for file in sorted(path.glob(pattern)) if file.is_file()), None)
    if not path.is_file():
        return None
    with path.open("rb") as file:
        begins = file.read(len(_ZIP))
    # The third byte of a pickle is an instruction; a file of llama2.c begins with a width, whose third byte is 0.
    is_pickle = begins[:1] == _PICKLE and begins[1:2] in (b"\2", b"\3", b"\4", b"\5") and begins[2:3] > b"\0"
    return path if is_pickle or begins == _ZIP or any(path.match(pattern) for pattern in _PICKLED) else None


def file_tensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file by name; its header only.

    Raises:
      ModelFolderError: it is absent, truncated or corrupt: tensors that overlap, or lie beyond the end of the file.
    """
    _check_header(path)
    with path.open("rb") as file:
        (size,) = _HEADER_SIZE.unpack(file.read(_HEADER_SIZE.size))
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    data = _HEADER_SIZE.size + size
    return {
        name: StoredTensor(
            path,
            name,
            tuple(tensor["shape"]),
            _DTYPES.get(tensor["dtype"], tensor["dtype"]),
            data + tensor["data_offsets"][0],
        )
        for name, tensor in header.items()
    }


def _check_header(path: Path) -> None:
    """Lets safetensors look at the header: that it is one, and that its tensors fill the file without a gap."""
    try:
        with safe_open(path, framework="np"):
            pass
    except SafetensorError as error:
        raise ModelFolderError(
            f"{path}: truncated or not a safetensors file ({error}); copy or download it again"
        ) from error
    except OSError as error:
        raise ModelFolderError(f"{path}: {error.strerror or error}") from error


def _sharded_tensors(folder: Path) -> dict[str, StoredTensor]:
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise ModelFolderError(f"{folder / INDEX}: weight_map must map every tensor name to a file name")
    shards = sorted(set(weight_map.values()))
    if outside := [shard for shard in shards if Path(shard).name != shard]:
        raise ModelFolderError(f"{folder / INDEX}: {outside[0]!r} is not the name of a file in this folder")
    if absent := [shard for shard in shards if not (folder / shard).is_file()]:
        raise ModelFolderError(f"{folder / INDEX}: names files that are not there: {', '.join(absent)}")
    by_shard = {shard: file_tensors(folder / shard) for shard in shards}
    if lost := [f"{name} ({shard})" for name, shard in weight_map.items() if name not in by_shard[shard]]:
        raise ModelFolderError(f"{folder / INDEX}: tensors that their file does not hold: {', '.join(lost)}")
    return {name: by_shard[shard][name] for name, shard in weight_map.items()}


def disagreements(
    expected: Mapping[str, tuple[int, ...]], stored: Mapping[str, StoredTensor] | Mapping[str, StoredArray]
) -> list[str]:
    """What of the stored tensors is missing, unknown, or of another shape or type than expected, all of it by name."""
    wrong = [f"missing: {name} {shape}" for name, shape in expected.items() if name not in stored]
    for name, tensor in stored.items():
        if name not in expected:
            wrong.append(f"unknown: {name} {tensor.shape}")
        elif tensor.shape != expected[name]:
            wrong.append(f"wrong shape: {name} is {tensor.shape}, the configuration asks for {expected[name]}")
        elif tensor.dtype not in FLOATS:
            wrong.append(f"wrong type: {name} is {tensor.dtype}, not one of {', '.join(FLOATS)}")
    return wrong


@dataclasses.dataclass(frozen=True)
class NewTensor:
    """A tensor to be written: its shape and dtype now, its array (C order, of that shape) when its turn comes."""

    shape: tuple[int, ...]
    dtype: str
    array: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Size in the file."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


def in_dtype(name: str, array: np.ndarray, dtype: str) -> np.ndarray:
    """`array` in the dtype of the file.

    Raises:
      ModelFolderError: a value is beyond float16.
    """
    with np.errstate(over="ignore"):
        stored = array.astype(dtype, copy=False)
    if dtype == "float16" and np.isinf(stored).any() and not np.isinf(array).any():
        raise ModelFolderError(f"{name} has values beyond float16 (65504): export as float32 or bfloat16")
    return stored


def write_tensors(folder: Path, tensors: Mapping[str, NewTensor], shard_bytes: int = SHARD_BYTES) -> None:
    """Writes `tensors` into `folder` in their order: one file, or shards of at most `shard_bytes` with an index.

    Holds one array at a time. A tensor larger than a shard gets a file of its own.
    """
    shards = _plan_shards(tensors, shard_bytes)
    if len(shards) == 1:
        _write(folder / WEIGHTS, tensors)
        return
    weight_map = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write(folder / file, {name: tensors[name] for name in names})
        weight_map.update(dict.fromkeys(names, file))
    total = sum(tensor.nbytes for tensor in tensors.values())
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _plan_shards(tensors: Mapping[str, NewTensor], shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    used = 0
    for name, tensor in tensors.items():
        if shards[-1] and used + tensor.nbytes > shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += tensor.nbytes
    return shards


def write_file(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes one file that torch libraries open.

    Raises:
      ModelFolderError: the disk refuses.
    """

    def tensor(array: np.ndarray) -> NewTensor:
        return NewTensor(array.shape, array.dtype.name, lambda: array)

    _write(path, {name: tensor(array) for name, array in arrays.items()})


def _write(path: Path, tensors: Mapping[str, NewTensor]) -> None:
    """The file that safetensors would write, byte for byte, without all of its tensors in memory at once."""
    ordered = sorted(tensors.items(), key=lambda item: (FLOATS.index(item[1].dtype), item[0]))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in ordered:
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": _CODES[tensor.dtype], "shape": tensor.shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _HEADER_SIZE.size)  # the first tensor lies at a multiple of its numbers' size
    try:
        with path.open("wb") as file:
            file.write(_HEADER_SIZE.pack(len(text)) + text)
            for _, tensor in ordered:
                # Bytes in C order; a transposed view must be copied first.
                file.write(np.ascontiguousarray(tensor.array()).reshape(-1).view(np.uint8).data)
    except OSError as error:
        raise ModelFolderError(f"{path}: cannot be written: {error.strerror or error}") from error
