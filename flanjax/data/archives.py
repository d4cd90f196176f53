"""Unpacks archives that strangers made: zip, and tar as it is or packed with gzip, bzip2, xz or zstd.

    unpack("data.zip", "data/alpaca")    {"alpaca_data.json": 22773992}, the files that are there now

Nothing is written outside of the folder, and nothing but plain files and folders is written into it: a link to a file
of the archive becomes a copy of that file, and any other link, a device, a path that is absolute or has "..", and more
bytes than the limits allow are refused. A refused archive leaves no file behind: all of it is unpacked beside its place
before anything is moved there. `tarfile`'s own data filter is asked as well, but not relied on: those of Python 3.11.7
and others let links lead out (https://nvd.nist.gov/vuln/detail/CVE-2025-4517).
"""

import os
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import IO

from flanjax.errors import FlanjaxError

_CHUNK = 1 << 20
_MAX_LINK = 4096
_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, LZMAError, EOFError, ValueError, RuntimeError)


class ArchiveError(FlanjaxError):
    """An archive that is damaged, of an unknown kind, or that would do harm."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What an archive may become.

    Attributes:
        bytes: of all its files together.
        members: how many.
        ratio: unpacked bytes for each packed one; texts have 3 to 30, a bomb has thousands.
        small: so many bytes are allowed whatever the ratio.
    """

    bytes: int = 500 << 30
    members: int = 2_000_000
    ratio: float = 250.0
    small: int = 64 << 20


@dataclass(frozen=True, kw_only=True)
class _Member:
    """One entry: a folder, a file, or a link with where it leads, seen from the archive's root."""

    name: str
    link: str | None = None
    folder: bool = False
    content: IO[bytes] | None = None


def unpack(archive: str | Path, folder: str | Path, limits: Limits | None = None) -> dict[str, int]:
    """Unpacks an archive into a folder, replacing files of the same names.

    Returns:
        The files' paths in the folder, with their bytes.

    Raises:
        ArchiveError: it is damaged, or refused; the folder is as it was.
        OSError: the disk is full or refuses; files may have been replaced, each one whole.
    """
    archive, folder = Path(archive), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=folder) as temporary:
        writer = _Writer(archive, Path(temporary), limits or Limits())
        try:
            with _members(archive) as members:
                for member in members:
                    writer.write(member)
            writer.copy_links()
        except (OSError, *_DAMAGED) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # of the disk; a damaged stream has no number
            raise ArchiveError(f"{archive} cannot be unpacked: {type(error).__name__}: {error}") from error
        if not writer.files:
            raise ArchiveError(f"{archive} has no files in it")
        for name in writer.files:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(Path(temporary) / name, target)
    return writer.files


@dataclass
class _Writer:
    """Writes members below a folder of its own, and counts them."""

    archive: Path
    folder: Path
    limits: Limits
    files: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._links: dict[str, str] = {}
        self._bytes = 0
        self._members = 0
        packed = self.archive.stat().st_size
        self._most = int(min(self.limits.bytes, max(self.limits.small, self.limits.ratio * packed)))

    def write(self, member: _Member) -> None:
        """Writes one member; a link waits until the files are there.

        Raises:
            ArchiveError: it is refused.
        """
        self._members += 1
        if self._members > self.limits.members:
            raise ArchiveError(f"{self.archive} has more than {self.limits.members:,} members: it is not unpacked")
        name = self._checked(member.name)
        if name in self.files or name in self._links:
            raise ArchiveError(f"{self.archive} has two members named {name!r}: it is not unpacked")
        if member.link is not None:
            self._links[name] = member.link
        elif member.content is not None:
            self._copy(name, member.content)
        elif member.folder:
            with self._clashes(name):
                (self.folder / name).mkdir(parents=True, exist_ok=True)

    def copy_links(self) -> None:
        """Copies the files that links lead to.

        Raises:
            ArchiveError: a link leads to what is no file of the archive.
        """
        for name, first in self._links.items():
            target, passed = first, {name}
            while target in self._links and target not in passed:
                passed.add(target)
                target = self._links[target]
            if target not in self.files:
                raise ArchiveError(
                    f"{self.archive} has a link, {name!r}, to {target!r}, which is no file of it: it is not unpacked"
                )
            with (self.folder / target).open("rb") as content:
                self._copy(name, content)

    def _copy(self, name: str, content: IO[bytes]) -> None:
        path = self.folder / name
        size = 0
        with self._clashes(name):
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = path.open("xb")
        with stream:
            while chunk := content.read(_CHUNK):
                size += len(chunk)
                self._bytes += len(chunk)
                if self._bytes > self._most:
                    raise ArchiveError(
                        f"{self.archive} would become more than {self._most:,} bytes, from "
                        f"{self.archive.stat().st_size:,}, which no dataset does: it is not unpacked"
                    )
                stream.write(chunk)
        self.files[name] = size

    @contextmanager
    def _clashes(self, name: str) -> Iterator[None]:
        try:
            yield
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            raise ArchiveError(f"{self.archive} has {name!r} both as a file and as a folder, or twice") from error

    def _checked(self, name: str) -> str:
        """The member's path below the folder, written one way."""
        parts = PurePosixPath(name).parts
        if name.startswith("/") or ".." in parts or any(sign in name for sign in "\\\0") or name[1:2] == ":":
            raise ArchiveError(f"{self.archive} has a member that leads out of it, {name!r}: it is not unpacked")
        return str(PurePosixPath(*parts))


@contextmanager
def _members(archive: Path) -> Iterator[Iterator[_Member]]:
    """The members of an archive, each to be used before the next is taken."""
    with archive.open("rb") as stream:
        magic = stream.read(4)
    if magic in (b"PK\3\4", b"PK\5\6"):
        with zipfile.ZipFile(archive, metadata_encoding="utf-8") as opened:
            yield _zip_members(opened, archive)
    elif magic == b"\x28\xb5\x2f\xfd":
        import pyarrow

        with (
            pyarrow.input_stream(str(archive), compression="zstd") as unpacked,
            tarfile.open(fileobj=unpacked, mode="r|", encoding="utf-8", errors="strict") as tar,
        ):
            yield _tar_members(tar, archive)
    else:
        with tarfile.open(archive, encoding="utf-8", errors="strict") as tar:
            yield _tar_members(tar, archive)


def _zip_members(opened: zipfile.ZipFile, archive: Path) -> Iterator[_Member]:
    for info in opened.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        if info.is_dir():
            yield _Member(name=info.filename, folder=True)
        elif kind == stat.S_IFLNK:
            with opened.open(info) as content:
                yield _Member(name=info.filename, link=_led_to(info.filename, content.read(_MAX_LINK).decode()))
        elif kind in (0, stat.S_IFREG):
            with opened.open(info) as content:
                yield _Member(name=info.filename, content=content)
        else:
            raise ArchiveError(f"{archive} has a device or the like, {info.filename!r}: it is not unpacked")


def _tar_members(tar: tarfile.TarFile, archive: Path) -> Iterator[_Member]:
    for info in tar:
        tarfile.data_filter(info, os.devnull)  # any folder: none of them is written to here
        if info.isdir():
            yield _Member(name=info.name, folder=True)
        elif info.issym():
            yield _Member(name=info.name, link=_led_to(info.name, info.linkname))
        elif info.islnk():
            yield _Member(name=info.name, link=os.path.normpath(info.linkname))
        elif info.isfile():
            yield _Member(name=info.name, content=tar.extractfile(info))
        else:
            raise ArchiveError(f"{archive} has a device or the like, {info.name!r}: it is not unpacked")


def _led_to(name: str, target: str) -> str:
    """Where a symbolic link leads, seen from the archive's root; what leads out of it is found to be no file of it."""
    return os.path.normpath(os.path.join(os.path.dirname(name), target))
