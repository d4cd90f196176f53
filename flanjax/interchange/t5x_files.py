"""The files of a T5X checkpoint: which tensors there are, and each one's data when it is asked for.

Two formats are read and written; they are read from a folder or from an address (`gs://`, `http://`, `s3://`):

checkpoint_1000/
  checkpoint                                      msgpack: names, each with an array or with what TensorStore opens
  target.encoder.encoder_norm.scale/.zarray, 0    a zarr array for each larger tensor; "/" in its name became "."

- T5X's own, versions 2 and 3 of t5x/checkpoints.py: `checkpoint` holds {version, optimizer: {target, state}}. Version 2
  kept the bits of bfloat16 as uint16. A checkpoint may be that one file, all arrays in it.
- Orbax's, as T5X writes it: leaves are `PLACEHOLDER://NAME`, or the names are in `_METADATA` alone; the arrays are zarr
  folders or lie together in one OCDBT store. They are {version, optimizer: {target, state}} in `checkpoint_1000` until
  2022, and {target, state} in its folder `state` from 2023 on, which is what is written.

Worked example: `open_checkpoint("checkpoint_1000").opened("target")["encoder/encoder_norm/scale"]` has shape (512,),
and nothing of it has been read; `np.asarray` of it reads the one chunk there is.
"""

import dataclasses
import functools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import tensorstore as ts
from flax import nnx
from flax.serialization import msgpack_restore, msgpack_serialize
from numpy.typing import DTypeLike

from flanjax.files import address_of
from flanjax.interchange.folders import ModelFolderError
from flanjax.interchange.stored import Lazy, Slices, StoredArray
from flanjax.tuning.partition import unflatten

CHECKPOINT = "checkpoint"
METADATA = "_METADATA"
STATE = "state"
VERSION = 3
CHUNK_BYTES = 64 * 2**20
_MARKS = (CHECKPOINT, METADATA, f"{STATE}/{CHECKPOINT}", f"{STATE}/{METADATA}")
_OPTIMIZER = ("optimizer", "_optimizer")
_OCDBT = "manifest.ocdbt"
_KEY_OF_DICT = 2  # of Orbax's kinds of keys
_PLACEHOLDER = "PLACEHOLDER://"
_TENSORFLOW = b"model_checkpoint_path:"
# A chunk that is not there would be read as zeros, and zeros would not be written.
_WHOLE = {"fill_missing_data_reads": False, "store_data_equal_to_fill_value": True}
# A host that does not answer is given up after seconds; TensorStore's own 32 tries take minutes.
_CONTEXT = {name: {"max_retries": 4} for name in ("http_request_retries", "gcs_request_retries", "s3_request_retries")}


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint says of itself; its arrays are not opened yet.

    Attributes:
      where: the folder or address, for messages.
      contents: {"target": parameters, "state": the optimizer's}, each by name, as the file has them.
      version: of T5X's own format; None for Orbax's.
      folder: where the arrays lie.
    """

    where: str
    contents: Mapping[str, Mapping[str, Any]]
    version: int | None
    folder: ts.KvStore

    def opened(self, part: str, names: Iterable[str] | None = None) -> dict[str, StoredArray]:
        """The arrays of one part by name, or some of them; their headers are read and no data.

        Raises:
          ModelFolderError: arrays are not there, are damaged or are not what `checkpoint` says; all are listed.
        """
        leaves = {name: self.contents[part][name] for name in self.contents[part] if names is None or name in names}
        inline = {name: np.asarray(leaf) for name, leaf in leaves.items() if isinstance(leaf, np.ndarray | np.generic)}
        waiting = {name: self._open(name, leaf) for name, leaf in leaves.items() if name not in inline}
        found: dict[str, StoredArray] = dict(inline)
        wrong = []
        for name, store in waiting.items():
            try:
                found[name] = self._array(name, store.result(), leaves[name])
            except ValueError as error:
                wrong.append(f"{name}: {_reason(error)}")
        if wrong:
            raise ModelFolderError(f"{self.where}: arrays that cannot be opened:\n  " + "\n  ".join(wrong))
        return found

    @property
    def step(self) -> int:
        """The training step of the checkpoint; 0 where it does not say."""
        step = self.opened("state", ["step"]).get("step")
        return 0 if step is None else int(np.asarray(step))

    @property
    def left_out(self) -> str:
        """What a person should know who takes the parameters alone."""
        moments = sum(name.startswith("param_states/") for name in self.contents["state"])
        state = f"its optimizer's state ({moments} arrays) is left out" if moments else "no optimizer's state is in it"
        return f"{self.where}: step {self.step}; {state}"

    @functools.cached_property
    def _placeholders(self) -> tuple[dict[str, Any], ts.KvStore]:
        """What TensorStore opens Orbax's arrays with, which `checkpoint` does not say, and the store they are in."""
        spec = {"driver": "zarr3" if _orbax_metadata(self.folder, self.where).get("use_zarr3") else "zarr"}
        if _read(self.folder, _OCDBT, self.where) is None:
            return {**spec, **_WHOLE}, self.folder
        base = {"driver": "ocdbt", "base": self.folder.spec().to_json()}
        return spec, ts.KvStore.open(base, context=_context()).result()

    def _open(self, name: str, leaf: Any) -> ts.Future:
        if isinstance(leaf, str):
            spec, folder = self._placeholders
            path = leaf.removeprefix(_PLACEHOLDER)
        else:
            spec, folder, path = {"driver": "zarr", **_WHOLE}, self.folder, _path_of(self.where, name, leaf)
        return ts.open(spec, kvstore=folder / f"{path}/", open=True, context=_context())

    def _array(self, name: str, store: ts.TensorStore, leaf: Any) -> StoredArray:
        dtype = store.dtype.numpy_dtype
        if isinstance(leaf, Mapping):
            is_there = list(store.shape), store.dtype.name
            said = (leaf.get("metadata") or {}).get("shape", is_there[0]), leaf.get("dtype", is_there[1])
            if said != is_there:
                raise ValueError(f"it is {is_there[0]} {is_there[1]}, by {CHECKPOINT} {said[0]} {said[1]}")
            if self.version == 2 and dtype == np.uint16:
                dtype = np.dtype("bfloat16")

        def fill(slices: Slices, out: np.ndarray) -> None:
            """Reads slices of the stored tensor into `out`; damage is an error that names it."""
            try:
                if dtype != store.dtype.numpy_dtype:
                    out[...] = store[slices].read().result().view(dtype)
                else:
                    # Chunk by chunk into where it is to be: no second copy of the tensor.
                    target = ts.array(out)
                    target.write(ts.cast(store[slices], target.dtype)).result()
            except ValueError as error:
                raise ModelFolderError(f"{self.where}: {name}: {_reason(error)}; copy or download it again") from error

        return Lazy(store.shape, dtype, fill)


@functools.cache
def _context() -> ts.Context:
    return ts.Context(_CONTEXT)


def _reason(error: Exception) -> str:
    """TensorStore's message without the specifications that it appends."""
    return re.sub(r" \[[\w ]+=.*", "", str(error), flags=re.DOTALL).removeprefix("NOT_FOUND: ")


def _store(place: str | Path) -> ts.KvStore:
    """The files under a folder or an address."""
    address = address_of(place)
    spec = {"driver": "file", "path": f"{Path(place).absolute()}/"} if address is None else f"{address}/"
    try:
        return ts.KvStore.open(spec, context=_context()).result()
    except ValueError as error:
        raise ModelFolderError(f"{place}: TensorStore does not open this address ({_reason(error)})") from error


def _read(folder: ts.KvStore, name: str, where: str) -> bytes | None:
    try:
        found = folder.read(name).result()
    except (ValueError, RuntimeError, OSError) as error:
        raise ModelFolderError(f"{where}/{name}: cannot be read: {_reason(error)}") from error
    return found.value if found.state == "value" else None


def is_t5x(place: str | Path) -> bool:
    """Whether a folder, a file or an address is a T5X checkpoint, or holds folders `checkpoint_<step>` of such.

    A folder with a `config.json` is a Hugging Face folder or a run, whatever else is in it.
    """
    if (address := address_of(place)) is not None:
        folder = _store(address)
        return any(_read(folder, name, address) is not None for name in _MARKS)
    place = Path(place)
    if place.is_file():
        return re.fullmatch(r"checkpoint|.*\.checkpoint(_\d+)?", place.name) is not None
    if (place / "config.json").exists():
        return False
    return _is_checkpoint(place) or bool(_steps(place))


def _is_checkpoint(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _MARKS)


def _steps(folder: Path) -> list[Path]:
    numbered = [path for path in folder.glob("checkpoint_*") if re.fullmatch(r"checkpoint_\d+", path.name)]
    return sorted(filter(_is_checkpoint, numbered), key=lambda path: int(path.name.partition("_")[2]))


def open_checkpoint(place: str | Path) -> Checkpoint:
    """What the checkpoint at `place` holds: a folder `checkpoint_<step>`, its file `checkpoint`, or an address of one.

    Raises:
      ModelFolderError: there is none (a folder of several lists them), it is truncated or damaged, its version is
        not read, or it is a TensorFlow checkpoint.
    """
    where = address_of(place) or str(place)
    file = CHECKPOINT
    if address_of(place) is None and Path(place).is_file():
        place, file = Path(place).parent, Path(place).name
    folder = _store(place)
    for part in (folder, folder / f"{STATE}/"):
        if (content := _read(part, file, where)) is not None:
            return _from_content(part, where, file, content)
        if _read(part, METADATA, where) is not None:
            return _from_metadata(part, where)
    raise ModelFolderError(f"{where}: {_none_here(where)}")


def _from_content(folder: ts.KvStore, where: str, file: str, content: bytes) -> Checkpoint:
    if content.startswith(_TENSORFLOW):
        raise ModelFolderError(
            f"{where}: a TensorFlow checkpoint of Mesh TensorFlow; read its variables where TensorFlow is installed "
            "and give them to flanjax.interchange.t5x_mesh.from_mesh_tensorflow"
        )
    try:
        # Arrays are made of their bytes by shape and dtype; nothing is unpickled.
        tree = msgpack_restore(content)
    except (ValueError, TypeError, KeyError, AssertionError, msgpack.UnpackException) as error:
        raise ModelFolderError(
            f"{where}: {file} is truncated or no msgpack file ({str(error) or type(error).__name__}); copy or download "
            "it again"
        ) from error
    return _from_msgpack(folder, where, tree)


def _flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    flat = nnx.traversals.flatten_mapping(tree, is_leaf=_is_spec)
    return {"/".join(path): leaf for path, leaf in flat.items()}


def _from_msgpack(folder: ts.KvStore, where: str, tree: Any) -> Checkpoint:
    tree = tree if isinstance(tree, dict) else {}
    state = next((tree[name] for name in _OPTIMIZER if name in tree), tree)
    if not isinstance(state, dict) or not isinstance(state.get("target"), dict):
        raise ModelFolderError(
            f"{where}: no T5X checkpoint of version 2 or 3: optimizer/target is not in it, only "
            f"{', '.join(map(str, tree)) or 'data'}"
        )
    leaves = _flatten(state)
    if strange := [name for name, leaf in leaves.items() if not _is_leaf(leaf)]:
        raise ModelFolderError(f"{where}: {strange[0]} is no array and nothing that tells where one is")
    contents = _parts(leaves)
    version = None
    if not any(isinstance(leaf, str) for part in contents.values() for leaf in part.values()):
        version = tree.get("version", 0)
        if version not in (2, VERSION):
            raise ModelFolderError(
                f"{where}: version {version} of T5X's format; read are 2 and 3. Open it with the T5X that wrote it and "
                "save it again"
            )
    return Checkpoint(where, contents, version, folder)


def _from_metadata(folder: ts.KvStore, where: str) -> Checkpoint:
    leaves = {}
    try:
        for entry in _orbax_metadata(folder, where).get("tree_metadata", {}).values():
            keys = [str(part["key"]) for part in entry["key_metadata"]]
            if not entry["value_metadata"].get("skip_deserialize"):
                leaves["/".join(keys[keys[0] in _OPTIMIZER :])] = _PLACEHOLDER + ".".join(keys)
    except (KeyError, TypeError, AttributeError) as error:
        raise ModelFolderError(f"{where}/{METADATA}: not as Orbax writes it: {error!r}") from error
    contents = _parts(leaves)
    if not contents["target"]:
        raise ModelFolderError(f"{where}: {_none_here(where)}")
    return Checkpoint(where, contents, None, folder)


def _none_here(where: str) -> str:
    if address_of(where) is not None:
        return f"there is no file {CHECKPOINT}; give the address of one step, ending in checkpoint_<step>"
    if not Path(where).exists():
        return "there is no such folder"
    if steps := [path.name for path in _steps(Path(where))]:
        return f"this folder holds checkpoints, give one of them: {', '.join(steps)}"
    return f"no T5X checkpoint: neither {CHECKPOINT} nor folders checkpoint_<step> are in it"


def _orbax_metadata(folder: ts.KvStore, where: str) -> dict[str, Any]:
    content = _read(folder, METADATA, where)
    try:
        return dict(json.loads(content or b"{}"))
    except (ValueError, TypeError) as error:
        raise ModelFolderError(f"{where}/{METADATA}: not valid JSON: {error}") from error


def _parts(leaves: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    parts: dict[str, dict[str, Any]] = {"target": {}, "state": {}}
    for name, leaf in leaves.items():
        part, _, rest = name.partition("/")
        # What an optimizer has no use for is None.
        if part in parts and leaf is not None:
            parts[part][rest] = np.asarray(leaf) if isinstance(leaf, int | float) else leaf
    return parts


def _is_leaf(leaf: Any) -> bool:
    if isinstance(leaf, str):
        return leaf.startswith(_PLACEHOLDER)
    spec = isinstance(leaf, Mapping) and isinstance(leaf["kvstore"], Mapping)
    return spec or leaf is None or isinstance(leaf, np.ndarray | np.generic | int | float)


def _is_spec(_: Any, node: Any) -> bool:
    return isinstance(node, Mapping) and node.keys() >= {"driver", "kvstore"}


def _path_of(where: str, name: str, spec: Mapping[str, Any]) -> str:
    """Where under the checkpoint a TensorStore specification's array lies; its bucket is a dummy, its driver any."""
    store = spec["kvstore"]
    # Before TensorStore 0.1.14 the path stood beside the store.
    path = str(store.get("path", spec.get("path", "")))
    if spec["driver"] != "zarr" or store.get("driver") not in ("file", "gfile", "gcs"):
        raise ModelFolderError(
            f"{where}: {name} is kept by TensorStore's {spec['driver']} on {store.get('driver')}; T5X writes zarr on "
            "file, gfile or gcs"
        )
    if not path.strip("/") or path.startswith("/") or ".." in path.split("/"):
        raise ModelFolderError(f"{where}: {name} lies at {path!r}, which is no folder in this checkpoint")
    return path.rstrip("/")


def chunk_shape(shape: Sequence[int], itemsize: int) -> list[int]:
    """The chunks that T5X keeps an array in: equal ones of at most 64 MiB, made by dividing the longest axis.

    Worked example: float32 [32128, 4096] is 502 MiB. Divisors of 32128 below it are 16064, 8032, 4016, and
    [4016, 4096], 62.75 MiB, is the first that fits.
    """
    chunk = list(shape)
    while math.prod(chunk) * itemsize > CHUNK_BYTES:
        axis = chunk.index(max(chunk))
        chunk[axis] = next(size for size in range(chunk[axis] - 1, 0, -1) if shape[axis] % size == 0)
    return chunk


def spec_of(name: str, shape: Sequence[int], dtype: DTypeLike) -> dict[str, Any]:
    """What stands in `checkpoint` for a tensor that has a folder of its own."""
    dtype = np.dtype(dtype)
    return {
        "driver": "zarr",
        "dtype": dtype.name,
        "kvstore": {"driver": "file", "path": f"{name.replace('/', '.')}/"},
        "metadata": {
            "chunks": chunk_shape(shape, dtype.itemsize),
            "compressor": {"id": "gzip", "level": 1},
            "shape": list(shape),
        },
    }


def write_arrays(folder: Path, arrays: Mapping[str, np.ndarray], part: str) -> dict[str, dict[str, Any]]:
    """Writes tensors of one part into the checkpoint in `folder`, all at once; returns their specifications by name.

    Raises:
      ModelFolderError: the disk refuses.
    """
    specs = {name: spec_of(f"{part}/{name}", array.shape, array.dtype) for name, array in arrays.items()}
    try:
        waiting = []
        for name, spec in specs.items():
            placed = {**spec, **_WHOLE, "kvstore": {"driver": "file", "path": f"{folder / spec['kvstore']['path']}/"}}
            store = ts.open(placed, create=True, open=True, context=_context()).result()
            waiting.append(store.write(arrays[name]))
        for written in waiting:
            written.result()
    except (ValueError, RuntimeError) as error:
        raise ModelFolderError(f"{folder}: cannot be written: {_reason(error)}") from error
    return specs


def write_contents(folder: Path, target: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Writes the file `checkpoint`, version 3; leaves by name are arrays or specifications."""
    optimizer = {"target": unflatten(target), "state": unflatten(state)}
    (folder / CHECKPOINT).write_bytes(msgpack_serialize({"version": VERSION, "optimizer": optimizer}))


def write_metadata(folder: Path, names: Iterable[str]) -> None:
    """Writes the file `_METADATA`, in which Orbax has the names of a tree; each array lies in a folder of its name."""
    tree = {}
    for keys in (name.split("/") for name in names):
        tree[str(tuple(keys))] = {
            "key_metadata": [{"key": key, "key_type": _KEY_OF_DICT} for key in keys],
            "value_metadata": {"value_type": "np.ndarray", "skip_deserialize": False},
        }
    stores = {"use_ocdbt": False, "use_zarr3": False, "store_array_data_equal_to_fill_value": True}
    (folder / METADATA).write_text(json.dumps({"tree_metadata": tree, **stores, "custom_metadata": None}))
