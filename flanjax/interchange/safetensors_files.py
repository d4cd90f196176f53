"""A folder of safetensors files as one mapping from tensor name to array, whole or sharded, read one tensor at a time.

A sharded folder holds `model.safetensors.index.json`, whose `weight_map` gives the file of every tensor. Pickled
weights are refused: reading them runs code from the folder.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import ml_dtypes  # noqa: F401  (registers bfloat16 with numpy)
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from flanjax.interchange.folders import ModelFolderError, read_json, write_json
from flanjax.interchange.stored import StoredArray

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000  # the size at which transformers splits
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack")
FLOATS = ("float32", "bfloat16", "float16")  # what weights are read from
_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor as its file's header describes it; `dtype` is a numpy name, or safetensors' code for the others."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str


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
    if pickled := [name for name in _PICKLED if (folder / name).exists()]:
        raise ModelFolderError(
            f"{folder}: only {pickled[0]} here, which is not safetensors; convert it once where transformers and the "
            "framework that wrote it are installed: "
            f"{auto_class}.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER, safe_serialization=True)"
        )
    raise ModelFolderError(f"{folder}: neither {WEIGHTS} nor {INDEX} in this folder")


def file_tensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file by name; its header only.

    Raises:
      ModelFolderError: it is absent, truncated or corrupt.
    """
    with _opened(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
        return {
            name: StoredTensor(path, name, tuple(s.get_shape()), _DTYPES.get(s.get_dtype(), s.get_dtype()))
            for name, s in slices.items()
        }


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


def _opened(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="np")
    except SafetensorError as error:
        raise ModelFolderError(
            f"{path}: truncated or not a safetensors file ({error}); copy or download it again"
        ) from error
    except OSError as error:
        raise ModelFolderError(f"{path}: {error.strerror or error}") from error


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


def read_tensors(tensors: Mapping[str, StoredTensor]) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor as `(key, array in its stored dtype)`, file by file, one in memory at a time."""
    for path in sorted({tensor.file for tensor in tensors.values()}):
        with _opened(path) as file:
            for key, tensor in tensors.items():
                if tensor.file == path:
                    yield key, file.get_tensor(tensor.name)


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


def cast(name: str, array: np.ndarray, dtype: str) -> np.ndarray:
    """`array` in the dtype of the file.

    Raises:
      ModelFolderError: a value is beyond float16.
    """
    with np.errstate(over="ignore"):
        stored = array.astype(dtype)
    if dtype == "float16" and np.isinf(stored).any() and not np.isinf(array).any():
        raise ModelFolderError(f"{name} has values beyond float16 (65504): export as float32 or bfloat16")
    return stored


def write_tensors(folder: Path, tensors: Mapping[str, NewTensor], shard_bytes: int = SHARD_BYTES) -> None:
    """Writes `tensors` into `folder` in their order: one file, or shards of at most `shard_bytes` with an index.

    Holds the arrays of one shard at a time. A tensor larger than a shard gets a file of its own.
    """
    shards = _plan_shards(tensors, shard_bytes)
    if len(shards) == 1:
        _write_shard(folder / WEIGHTS, shards[0], tensors)
        return
    weight_map = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(folder / file, names, tensors)
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


def _write_shard(path: Path, names: Iterable[str], tensors: Mapping[str, NewTensor]) -> None:
    write_file(path, {name: tensors[name].array() for name in names})


def write_file(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes one file that torch libraries open.

    Raises:
      ModelFolderError: the disk refuses.
    """
    # safetensors writes the buffer as it lies in memory, so a transposed view must be copied first.
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    try:
        save_file(arrays, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise ModelFolderError(f"{path}: cannot be written: {error}") from error
