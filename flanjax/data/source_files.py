"""The local files and folders that tasks are made from, known again by size and time of change.

`stat` is cheap: a folder of a thousand task files is looked through in milliseconds, so that it can be done before
every training. Files whose names are hidden count, hidden folders (`.git`, `.cache`) do not; links are followed.
"""

import glob
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

# Of each file its size in bytes and time of change in nanoseconds; the name "" is the path itself.
Stamp = dict[str, list[int]]
# What file managers leave in the folders that they show.
_NO_DATA = (".DS_Store", ".directory", "desktop.ini", "Thumbs.db")


class SourceFiles:
    """The files and folders that were named while tasks were registered and fingerprinted, each stamped once.

    Args:
        options: what tasks were registered with; the existing paths among them count.
        ignored: folders that do not, also where they lie in one that does: caches, runs.

    Attributes:
        stamps: absolute path -> its stamp when it was first met.
    """

    def __init__(self, options: Any = None, ignored: Iterable[str | os.PathLike[str]] = ()) -> None:
        self._ignored = [os.path.realpath(folder) for folder in ignored]
        self._named = set(existing_paths(options))
        self._digests: dict[str, str] = {}
        self.stamps: dict[str, Stamp] = {}
        for path in self._named:
            self.add(path)

    def add(self, path: str | os.PathLike[str]) -> None:
        """Stamps a file, a folder with all that is in it, or a pattern of files; what is not there is passed over."""
        key = os.path.abspath(path)
        if key not in self.stamps and (stamp := stamp_of(key, self._ignored)) is not None:
            self.stamps[key] = stamp

    def names_folder(self, text: str) -> bool:
        """Whether a string is meant as a folder: "train" rarely is, even where there happens to be one."""
        return (text in self._named or os.sep in text) and _exists(text) and os.path.isdir(text)

    def folder_digest(self, folder: str | os.PathLike[str]) -> str:
        """A digest of names, sizes and times of the files in a folder and below it."""
        self.add(folder)
        key = os.path.abspath(folder)
        if key not in self._digests:
            self._digests[key] = hashlib.sha256(json.dumps(self.stamps.get(key, {})).encode()).hexdigest()
        return self._digests[key]

    def roots(self) -> dict[str, Stamp]:
        """The stamps, without those of files that a stamped folder has already."""

        def covered(path: str) -> bool:
            return any(os.path.relpath(path, parent) in self.stamps.get(parent, ()) for parent in _parents(path))

        return {path: stamp for path, stamp in sorted(self.stamps.items()) if not covered(path)}


def stamp_of(path: str, ignored: Iterable[str] = ()) -> Stamp | None:
    """The stamp of a file, of a folder, or of the files that match a pattern; None where there is nothing.

    Args:
        path: absolute.
        ignored: real paths of folders that are left out.
    """
    if os.path.isdir(path):
        found = ((os.path.relpath(file, path), file) for file in _files_below(path, set(ignored)))
        return dict(sorted((name, stamp) for name, file in found if (stamp := _size_and_time(file))))
    if stamp := _size_and_time(path):
        return {"": stamp}
    matching = sorted(glob.glob(path)) if glob.has_magic(path) else []
    return {file: stamp for file in matching if (stamp := _size_and_time(file))} or None


def changes(path: str, before: Stamp, now: Stamp) -> list[str]:
    """The files that were added, removed or changed, by absolute path."""
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    return [os.path.join(path, name) if name else path for name in names]


def existing_paths(value: Any) -> Iterator[str]:
    """Every string and path in nested options that names something that is there."""
    if isinstance(value, str | os.PathLike):
        text = os.fspath(value)
        if isinstance(text, str) and _exists(text):
            yield text
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from existing_paths(item)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from existing_paths(item)


def _files_below(folder: str, ignored: set[str]) -> Iterator[str]:
    """Files at any depth, also behind links to folders; a folder that several links lead to counts once."""
    seen = set(ignored)
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__pycache__")))
        yield from (os.path.join(place, name) for name in files if name not in _NO_DATA)


def _size_and_time(file: str) -> list[int] | None:
    try:
        status = os.stat(file)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _exists(text: str) -> bool:
    # A separator alone is one, and not the root of the disk.
    named = 0 < len(text) < 1024 and not {"\n", "\0"} & set(text) and text.strip(os.sep) != ""
    return named and os.path.exists(text)


def _parents(path: str) -> Iterator[str]:
    while (parent := os.path.dirname(path)) != path:
        yield parent
        path = parent
