"""Files that are whole or not there, whenever the process is killed, and lists of JSON lines read back.

Only a file that is appended to can be cut short; `read_json_lines` passes over what a kill left of its last line. What
takes hours to write is a `ResumableFile`, which goes on after a kill as if there had been none.
"""

import contextlib
import errno
import fcntl
import glob
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from flanjax.errors import FlanjaxError


class FileError(FlanjaxError):
    """A file that cannot be written."""


def address_of(place: str | os.PathLike[str]) -> str | None:
    """The address that a place is, None for a path of this machine; `Path` makes one slash of the two in an address.

    Worked example: "gs://bucket/model/" and `Path("gs://bucket/model")` are "gs://bucket/model".
    """
    found = re.fullmatch(r"([a-z][a-z0-9+]+):/{1,2}([^/].*)", str(place))
    return found and f"{found[1]}://{found[2].rstrip('/')}"


def require_path(place: str | os.PathLike[str]) -> None:
    """Refuses an address where something is to be written; as a path it would be a folder `gs:` of this one.

    Raises:
      FileError: it is one.
    """
    if (address := address_of(place)) is not None:
        raise FileError(
            f"{address} is an address, and nothing is written to one: give a path of this machine, and copy it there "
            "afterwards, or mount it"
        )


def write_whole(path: Path, content: str | bytes) -> None:
    """Replaces a file in one step, so that no reader, no kill and no power cut ever sees half of it.

    Arguments:
      path: the file; its folder is made.
      content: bytes, or text that is written as UTF-8.

    Raises:
      FileError: the disk is full or refuses, or it is an address; the file is as it was.
    """
    require_path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")  # two processes may write the same file
    with _explained(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as stream:
                stream.write(content.encode() if isinstance(content, str) else content)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(partial, path)
        except OSError:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or error
        raise FileError(
            f"{path} could not be written: {reason}. Mend that and give the same command again; the file is as it was"
        ) from error


class ResumableFile:
    """A long file that is written part by part, and goes on after a kill as if there had been none.

        with ResumableFile(Path("answers.jsonl")) as file:
            file.require({"model": "runs/demo"})                      # refused where it was begun with another
            for number in range(file.progress.get("rows", 0), 1000):  # what is there is not made again
                file.append(line(number), {"rows": number + 1})
            file.finish()

    It grows as PATH.partial, which is renamed once it is whole. PATH.settings.json says how many bytes of that are
    whole parts (the rest is cut off), what the writer wants to know to go on, and, for good, the settings that the
    file was made with. One process writes at a time: the partial file is locked.

    Attributes:
      progress: what was given with the last whole part; empty where there is none.
      whole: whether the file was finished before; nothing is written then.
      size: bytes there are.

    Raises:
      FileError: it cannot be written, is an address, another process writes it, or its parts are damaged.
    """

    def __init__(self, path: Path):
        require_path(path)
        self.path = path
        self._partial, self._record = (path.with_name(path.name + end) for end in (".partial", ".settings.json"))
        self._settings: dict[str, Any] = {}
        self.whole = path.exists()
        self._stream = None if self.whole else self._locked()
        try:
            self._before = self._read_record()
            self.progress: dict[str, Any] = self._before.get("progress", {})
            self.size = int(self._before.get("bytes", 0))
            if self._stream is not None:
                with _explained(path):
                    self._stream.truncate(self.size)
        except BaseException:
            self.close()
            raise

    def _locked(self) -> Any:
        with _explained(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            stream = self._partial.open("ab", buffering=0)
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                mine = self._partial.exists() and os.path.samestat(os.fstat(stream.fileno()), self._partial.stat())
            except BlockingIOError:
                mine = False
        if not mine:
            stream.close()
            raise FileError(f"another process is writing {self.path}: wait until it has finished, or end it")
        for left in self.path.parent.glob(f".{glob.escape(self._record.name)}.*.partial"):  # by a kill in write_whole
            left.unlink(missing_ok=True)
        return stream

    def _read_record(self) -> dict[str, Any]:
        there = None if self._stream is None else os.fstat(self._stream.fileno()).st_size
        if there == 0:  # of a file that was finished and removed
            self._record.unlink(missing_ok=True)
        if not self._record.exists():
            if self.whole:
                raise FileError(f"{self.path} is there already, without {self._record.name}: give another output")
            return {}
        try:
            record = dict(json.loads(self._record.read_text()))
            complete = there is None or there >= record["bytes"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FileError(f"{self._record} is damaged ({error}): {self._anew()}") from error
        if not complete:
            raise FileError(f"{self._partial} has {there} bytes, not {record['bytes']} as written: {self._anew()}")
        return record

    def _anew(self) -> str:
        return f"to begin anew remove {self.path if self.whole else self._partial}, or give another output"

    def require(self, settings: Mapping[str, Any]) -> None:
        """Adds settings, which decide what is written; a file that was begun with others is refused.

        Raises:
          FileError: they differ; the message has the names and both values.
        """
        settings = json.loads(json.dumps(settings))
        self._settings |= settings
        before = self._before.get("settings", self._settings)
        if changed := [name for name, value in settings.items() if name not in before or before[name] != value]:
            told = "; ".join(f"{name} was {before.get(name)!r} and is {settings[name]!r} now" for name in changed)
            done = "made" if self.whole else "begun"
            raise FileError(f"{self.path} was {done} with other settings: {told}. Give those again; {self._anew()}")

    def append(self, content: bytes, progress: Mapping[str, Any]) -> None:
        """Writes one more part, and what is to be known after it to go on.

        Raises:
          FileError: the disk is full or refuses; what was whole before still is.
        """
        assert self._stream is not None, "the file is whole"
        with _explained(self.path):
            rest = memoryview(content)
            while rest:
                rest = rest[self._stream.write(rest) :]
            os.fsync(self._stream.fileno())
        self.size, self.progress = self.size + len(content), dict(progress)
        record = {"settings": self._settings, "progress": self.progress, "bytes": self.size}
        write_whole(self._record, json.dumps(record, indent=2) + "\n")

    def finish(self) -> None:
        """Gives the file its name: all parts are there."""
        with _explained(self.path):
            os.replace(self._partial, self.path)
        self.whole = True

    def close(self) -> None:
        """Lets another process write it; an unfinished one can be gone on with."""
        if self._stream is not None:
            self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


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
