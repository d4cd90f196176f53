"""Model folders: the error of this room, JSON with its place in the message, and writing that is whole or absent."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flanjax.errors import FlanjaxError
from flanjax.files import require_path


class ModelFolderError(FlanjaxError):
    """A model folder that cannot be read or written; the message names the file, key or tensor."""


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`.

    Raises:
      ModelFolderError: no such file, not JSON (with line and column), or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelFolderError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ModelFolderError(f"{path}: not UTF-8 text ({error})") from error
    except json.JSONDecodeError as error:
        raise ModelFolderError(f"{path}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}") from error
    if not isinstance(value, dict):
        raise ModelFolderError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def json_text(value: dict[str, Any]) -> str:
    """`value` as Hugging Face files have it: two spaces, sorted keys, final newline."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes `json_text(value)`."""
    path.write_text(json_text(value), encoding="utf-8")


def require_new(output: Path) -> None:
    """Checks that `output` can become a new folder, before the work of filling it.

    Raises:
      ModelFolderError: it is a file, or a folder that is not empty.
      FileError: it is an address.
    """
    require_path(output)
    if output.is_dir() and any(output.iterdir()):
        raise ModelFolderError(f"{output}: the folder is not empty; name a new one, nothing is ever overwritten")
    if output.exists() and not output.is_dir():
        raise ModelFolderError(f"{output}: this is a file; name a new folder")


@contextlib.contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A temporary folder beside `output` that takes its name when the block ends well, and vanishes when it does not.

    Raises:
      ModelFolderError: `output` exists and is not an empty folder, or the disk refuses (full, read-only).
      FileError: it is an address.
    """
    require_new(output)
    output = output.absolute()
    partial = None
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{output.name}.partial-", dir=output.parent))
        yield partial
        # Temporary folders, and files that safetensors writes, are their owner's alone; a model folder is not.
        partial.chmod(0o755)
        for path in partial.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        os.replace(partial, output)
    except OSError as error:
        raise ModelFolderError(f"{output}: cannot be written: {error.strerror or error}") from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
