"""Files that are whole or not there, whenever the process is killed, and lists of JSON lines read back.

Only a file that is appended to can be cut short; `read_json_lines` passes over what a kill left of its last line.
"""

import contextlib
import errno
import json
import os
from pathlib import Path
from typing import Any

from flanjax.errors import FlanjaxError


class FileError(FlanjaxError):
    """A file that cannot be written."""


def write_whole(path: Path, content: str | bytes) -> None:
    """Replaces a file in one step, so that no reader, no kill and no power cut ever sees half of it.

    Arguments:
      path: the file; its folder is made.
      content: bytes, or text that is written as UTF-8.

    Raises:
      FileError: the disk is full or refuses; the file is as it was.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")  # two processes may write the same file
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or error
        raise FileError(
            f"{path} could not be written: {reason}. Mend that and give the same command again; the file is as it was"
        ) from error


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a .jsonl file, none where there is no file; a line that a kill cut short is left out."""
    lines = []
    # Not `splitlines`: a text in a line may hold characters that it takes for ends of lines.
    for line in path.read_bytes().split(b"\n") if path.exists() else ():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines
