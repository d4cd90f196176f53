"""Downloads a dataset from its official addresses into its folder, whole and checked, or says why not.

    fetch(dataset, dataset_folder("alpaca"), accept=ask)    Fetched(file="alpaca_data.json", ...), ...

    data/alpaca/alpaca_data.json                the file, under its name only when all of it is there and checked
    data/alpaca/alpaca_data.json.partial        what a cut download left; the next one goes on from there
    data/alpaca/alpaca_data.json.partial.json   which version of it that is: address, server's validator
    data/alpaca/SOURCES.json                    of each file: address, sha256, bytes, date, licence, what was unpacked

A download goes on with an HTTP range request under If-Range (https://www.rfc-editor.org/rfc/rfc9110#section-13.1.5), so
that parts of two versions are never put together; a server that knows no ranges, or gives no validator, starts anew.
Where nobody publishes a digest, that of the first download is remembered, and a file that differs later is refused.
"""

import datetime
import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from flanjax.data.archives import ArchiveError, Limits, unpack
from flanjax.data.cache import file_sha256
from flanjax.data.tasks import Dataset, Download
from flanjax.errors import FlanjaxError
from flanjax.files import write_whole

SOURCES_FILE = "SOURCES.json"
Accept = Callable[[Dataset], bool]
Progress = Callable[[Download, int, int | None], None]  # bytes of it done, and in all where the server says

_CHUNK = 1 << 16  # of which the last one, incomplete, is lost when a connection is cut
_TIMEOUT_S = (20, 60)  # to connect, and without a byte
_LONGEST_WAIT_S = 60.0
_TRY_AGAIN = (408, 425, 429, 500, 502, 503, 504)


class FetchError(FlanjaxError):
    """A dataset that cannot be fetched: not accepted, not there, not what was published, or no room for it."""


class _InterruptedError(Exception):
    """A download that may go well when it is tried again."""


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """What became of one file; `unpacked` counts the files that came out of an archive."""

    file: str
    url: str
    state: Literal["downloaded", "already there"]
    bytes: int
    sha256: str
    unpacked: int = 0


@dataclass(frozen=True, kw_only=True)
class _Stream:
    """A file's bytes from `start` on; `version` changes when the file does, None where nobody can tell."""

    start: int
    total: int | None
    version: str | None
    chunks: Iterator[bytes]


def fetch(
    dataset: Dataset,
    folder: str | Path,
    *,
    accept: Accept,
    progress: Progress = lambda download, done, total: None,
    attempts: int = 6,
    wait_s: float = 1.0,
    limits: Limits | None = None,
) -> list[Fetched]:
    """Downloads what is not yet there of a dataset, and unpacks its archives, which are not kept.

    Args:
        dataset: what to fetch.
        folder: where to; a local one, made if need be.
        accept: shows the licence (`licence_lines`) and says whether it is accepted; not asked where all is there.
        progress: told of every few kilobytes.
        attempts: how often a file is tried without any more of it arriving.
        wait_s: before the second of them; twice as long before each one after it.
        limits: what an archive may become.

    Raises:
        FetchError: the licence was not accepted, an address fails for good, a file is not the published one, or the
            disk is full; nothing incomplete has a file's name.
        ArchiveError: an archive is damaged or refused.
    """
    if "://" in str(folder):
        raise FetchError(f"{folder} is an address: {dataset.name} is fetched into a local folder")
    if not dataset.downloads:
        raise FetchError(f"{dataset.name} cannot be downloaded by a program: {dataset.page} says how it is asked for")
    folder = Path(folder)
    sources = _Sources(dataset, folder)
    found = {download.file: sources.present(download) for download in dataset.downloads}
    if None in found.values() and not accept(dataset):
        raise FetchError(f"the licence of {dataset.name} ({dataset.licence}) was not accepted: nothing was downloaded")
    return [
        found[download.file] or _fetch_one(download, sources, progress, attempts, wait_s, limits)
        for download in dataset.downloads
    ]


def licence_lines(dataset: Dataset) -> list[str]:
    """What a person reads before accepting."""
    return [
        f"{dataset.name}: {dataset.title}",
        f"licence: {dataset.licence}",
        f"published at {dataset.page}; described in {dataset.paper}",
        *(f"  {download.url}" for download in dataset.downloads),
    ]


def fetched_lines(fetched: list[Fetched]) -> list[str]:
    """What a person reads afterwards."""
    return [
        f"{one.file}: {one.state}, {one.bytes:,} bytes, sha256 {one.sha256[:16]}"
        + (f", {one.unpacked:,} files unpacked" if one.unpacked else "")
        for one in fetched
    ]


class _Sources:
    """`SOURCES.json`: where the files of a folder come from."""

    def __init__(self, dataset: Dataset, folder: Path):
        self.dataset = dataset
        self.folder = folder
        self.file = folder / SOURCES_FILE
        self._files: dict[str, dict[str, Any]] = {}
        try:
            for name, known in json.loads(self.file.read_text())["files"].items():
                self._files[name] = dict(known)
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise FetchError(f"{self.file} cannot be read ({error!r}): mend it, or delete it") from error

    def expected(self, download: Download) -> str | None:
        """The digest that the file must have: the published one, or that of the first download."""
        known = self._files.get(download.file, {})
        return download.sha256 or (known.get("sha256") if known.get("url") == download.url else None)

    def since(self, download: Download) -> str:
        """When the file was first downloaded."""
        return str(self._files[download.file].get("date"))

    def members(self, download: Download) -> dict[str, int]:
        """The files that were unpacked from an archive."""
        return dict(self._files.get(download.file, {}).get("unpacked", {}))

    def present(self, download: Download) -> Fetched | None:
        """What is there of a file already, if it is whole and the right one."""
        expected, target = self.expected(download), self.folder / download.file
        if download.unpack:
            known, members = self._files.get(download.file, {}), self.members(download)
            whole = all(_size(self.folder / name) == size for name, size in members.items())
            if not (members and whole and expected and known.get("sha256") == expected):
                return None
            size, digest = int(known.get("bytes", 0)), expected
        else:
            if not target.is_file():
                return None
            members, size, digest = {}, target.stat().st_size, file_sha256(target)
            if expected not in (None, digest):
                return None
        return Fetched(
            file=download.file,
            url=download.url,
            state="already there",
            bytes=size,
            sha256=digest,
            unpacked=len(members),
        )

    def add(self, download: Download, sha256: str, size: int, members: dict[str, int]) -> None:
        """Remembers a file."""
        self._files[download.file] = {
            "url": download.url,
            "sha256": sha256,
            "bytes": size,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "licence": self.dataset.licence,
        } | ({"unpacked": members} if download.unpack else {})
        content = {"dataset": self.dataset.name, "page": self.dataset.page, "files": self._files}
        write_whole(self.file, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _size(file: Path) -> int | None:
    return file.stat().st_size if file.is_file() else None


def _fetch_one(
    download: Download, sources: _Sources, progress: Progress, attempts: int, wait_s: float, limits: Limits | None
) -> Fetched:
    target = sources.folder / download.file
    partial = _Partial(download, target)
    try:
        with partial.locked():
            digest = partial.complete(progress, attempts, wait_s, page=sources.dataset.page)
            size = partial.path.stat().st_size
            expected = sources.expected(download)
            if expected not in (None, digest):
                partial.remove()
                raise FetchError(_mismatch(download, sources, str(expected), digest))
            members = unpack(partial.path, sources.folder, limits) if download.unpack else {}
            if not download.unpack:
                os.replace(partial.path, target)
            partial.remove()
        for stale in sources.members(download).keys() - members.keys():
            (sources.folder / stale).unlink(missing_ok=True)
        sources.add(download, digest, size, members)
    except ArchiveError as error:
        partial.remove()
        raise ArchiveError(f"{download.url}: {error}") from error
    except OSError as error:
        raise FetchError(_refusal(target, partial.path, error)) from error
    return Fetched(
        file=download.file, url=download.url, state="downloaded", bytes=size, sha256=digest, unpacked=len(members)
    )


def _mismatch(download: Download, sources: _Sources, expected: str, found: str) -> str:
    if download.sha256:
        return (
            f"{download.url} is not the published file: its sha256 is {found}, expected was {expected}; it was "
            f"removed. Try again; if it stays so, look at {sources.dataset.page} for what has changed"
        )
    return (
        f"{download.url} has changed since it was first downloaded on {sources.since(download)}: its sha256 is "
        f"{found}, expected was {expected}; it was removed. If {sources.dataset.page} says that the new one is right, "
        f"delete {download.file!r} in {sources.file} and fetch again"
    )


def _refusal(target: Path, partial: Path, error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return (
            f"{target} could not be written: the disk is full. Free some space and give the same command again; "
            f"what has arrived is kept in {partial}"
        )
    return f"{target} could not be written: {error}"


class _Partial:
    """The part of a file that has arrived, and which version of it that is."""

    def __init__(self, download: Download, target: Path):
        self.download = download
        self.path = target.with_name(f"{target.name}.partial")
        self.note = target.with_name(f"{target.name}.partial.json")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from writing the same file.

        Raises:
            FetchError: another one does.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise FetchError(f"{self.path} is being written by another process: wait for it") from error
            try:
                yield
            finally:
                if _size(self.path) == 0:
                    self.remove()

    def remove(self) -> None:
        """Forgets what has arrived."""
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def complete(self, progress: Progress, attempts: int, wait_s: float, *, page: str) -> str:
        """Downloads what is missing and returns the sha256 of the whole.

        Raises:
            FetchError: it fails for good, or too often without anything arriving.
        """
        failures, most = 0, self.path.stat().st_size
        while True:
            try:
                return self._once(progress, page)
            except _InterruptedError as error:
                reached = self.path.stat().st_size
                failures = failures + 1 if reached <= most else 1
                most = max(most, reached)
                if failures >= attempts:
                    raise FetchError(
                        f"{self.download.url} could not be downloaded, {failures} attempts failed, the last by "
                        f"{error}; {reached:,} bytes are kept in {self.path}: give the same command again to go on "
                        "from there"
                    ) from error
                time.sleep(min(wait_s * 2 ** (failures - 1), _LONGEST_WAIT_S))

    def _once(self, progress: Progress, page: str) -> str:
        have, version = self.path.stat().st_size, self._version()
        if version is None:
            have = 0
        with _open(self.download.url, have, version, page) as source, self.path.open("r+b") as stream:
            if source.total is not None:
                self._check_room(source.total - source.start)
            digest = _digest_of_start(stream, source.start)
            stream.truncate()
            self._keep_version(source.version)
            done = source.start
            for chunk in source.chunks:
                stream.write(chunk)
                digest.update(chunk)
                done += len(chunk)
                progress(self.download, done, source.total)
            stream.flush()
            os.fsync(stream.fileno())
        if source.total is not None and done < source.total:
            raise _InterruptedError(f"a connection that ended at {done:,} of {source.total:,} bytes")
        return digest.hexdigest()

    def _check_room(self, needed: int) -> None:
        free = shutil.disk_usage(self.path.parent).free
        if free < needed:
            raise OSError(errno.ENOSPC, f"{needed:,} bytes are needed, {free:,} are free")

    def _version(self) -> str | None:
        try:
            note = json.loads(self.note.read_text())
            return str(note["version"]) if note["url"] == self.download.url else None
        except (OSError, ValueError, KeyError, TypeError):
            return None  # what a kill left of the note: the download starts anew

    def _keep_version(self, version: str | None) -> None:
        if version is None:
            self.note.unlink(missing_ok=True)
        else:
            write_whole(self.note, json.dumps({"url": self.download.url, "version": version}))


def _digest_of_start(stream: IO[bytes], size: int) -> Any:
    """The running sha256 of the first bytes of a file, which is then at their end."""
    digest = hashlib.sha256()
    left = size
    while left and (chunk := stream.read(min(_CHUNK, left))):
        digest.update(chunk)
        left -= len(chunk)
    return digest


@contextmanager
def _open(url: str, have: int, version: str | None, page: str) -> Iterator[_Stream]:
    """The bytes of a file from `have` on if it is still of that version, else from the start."""
    opener = _open_http if url.startswith(("https://", "http://")) else _open_filesystem
    with opener(url, have, version, page) as stream:
        yield stream


@contextmanager
def _open_http(url: str, have: int, version: str | None, page: str) -> Iterator[_Stream]:
    import requests

    headers = {"Accept-Encoding": "identity", "User-Agent": "flanjax"}
    if have and version:
        headers |= {"Range": f"bytes={have}-", "If-Range": version}
    try:
        with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT_S) as response:
            stream = _http_stream(response, url, page) if response.status_code != 416 else None
            if stream and stream.start in (0, have) and (stream.start == 0 or stream.version in (None, version)):
                yield stream
            elif response.headers.get("Content-Range") == f"bytes */{have}":
                yield _Stream(start=have, total=have, version=version, chunks=iter(()))  # all of it is here
            else:
                with _open_http(url, 0, None, page) as whole:
                    yield whole
    except requests.exceptions.InvalidURL as error:
        raise FetchError(f"{url} is no address: {error}") from error
    except requests.RequestException as error:
        raise _InterruptedError(f"{type(error).__name__}: {error}") from error


def _http_stream(response: Any, url: str, page: str) -> _Stream:
    _check_status(response, url, page)
    headers = response.headers
    start, total = 0, None
    if response.status_code == 206:
        # "bytes 100-999/1000"
        span, _, size = headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        first = span.partition("-")[0]
        start = int(first) if first.isdigit() else -1
        total = int(size) if size.isdigit() else None
    elif headers.get("Content-Length", "").isdigit():
        total = int(headers["Content-Length"])
    # A weak ETag promises the same meaning, not the same bytes.
    etag = headers.get("ETag", "")
    version = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")
    if "Content-Encoding" in headers:
        total = version = None  # both are of the packed bytes, which are not what is kept
    return _Stream(start=start, total=total, version=version, chunks=response.iter_content(_CHUNK))


def _check_status(response: Any, url: str, page: str) -> None:
    status = f"{response.status_code} {response.reason}"
    if response.status_code in _TRY_AGAIN:
        raise _InterruptedError(f"the server's answer {status}")
    if response.status_code in (401, 403):
        raise FetchError(f"{url} is not given to everybody ({status}): {page} says how it is asked for")
    if response.status_code not in (200, 206):
        raise FetchError(f"{url} is not there ({status}): see {page} for where it is now")


@contextmanager
def _open_filesystem(url: str, have: int, version: str | None, page: str) -> Iterator[_Stream]:
    """gs://, hf:// and whatever else fsspec knows."""
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(url)
        system.invalidate_cache()
        now, total = str(system.ukey(path)), system.size(path)
        start = have if now == version and total is not None and have <= total else 0
        stream = system.open(path, "rb")
    except FileNotFoundError as error:
        raise FetchError(f"{url} is not there ({error}): see {page} for where it is now") from error
    except (ImportError, ValueError, PermissionError) as error:
        raise FetchError(f"{url} cannot be opened: {error}; {page} may say how it is asked for") from error
    except Exception as error:  # each file system has errors of its own
        raise _InterruptedError(f"{type(error).__name__}: {error}") from error
    with stream:
        stream.seek(start)
        yield _Stream(start=start, total=total, version=now, chunks=_chunks(stream))


def _chunks(stream: IO[bytes]) -> Iterator[bytes]:
    while True:
        try:
            chunk = stream.read(_CHUNK)
        except Exception as error:
            raise _InterruptedError(f"{type(error).__name__}: {error}") from error
        if not chunk:
            return
        yield chunk
