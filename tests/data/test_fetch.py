"""What a fetch leaves under a file's name is whole and right, whatever the server, the network and the disk do."""

import contextlib
import errno
import gzip
import hashlib
import http.server
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import fsspec
import pytest

from flanjax.data import fetch as fetching
from flanjax.data.archives import ArchiveError
from flanjax.data.fetch import FetchError, fetch, fetched_lines, licence_lines
from flanjax.data.tasks import Dataset, Download
from flanjax.files import FileError

CONTENT = bytes(range(256)) * 8192  # 2 MiB, more than one chunk and than a socket's buffer
CUT = 16 * fetching._CHUNK
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Site:
    """A server on the loopback device that misbehaves as it is told, one answer after the other."""

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    faults: list[int] = field(default_factory=list)  # an HTTP status, or how many bytes of the body to cut after
    ranges: bool = True
    validator: str | None = "ETag"
    ignores_if_range: bool = False
    packs: bool = False  # sends gzip that nobody asked for
    requests: list[dict[str, str]] = field(default_factory=list)

    def ranges_asked(self) -> list[str | None]:
        return [request.get("Range") for request in self.requests]


def handler(site: Site) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.requests.append(dict(self.headers))
            fault = site.faults.pop(0) if site.faults else 0
            content = site.files.get(self.path.lstrip("/"))
            if content is None or 400 <= fault < 600:
                self.send_error(fault or 404)
                return
            version = f'"{hashlib.sha256(content).hexdigest()[:8]}"'
            wanted, start = self.headers.get("Range"), 0
            same = self.headers.get("If-Range") == version or site.ignores_if_range
            if wanted and site.ranges and same:
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
                if start >= len(content):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(content)}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            else:
                self.send_response(200)
            if site.packs:
                self.send_header("Content-Encoding", "gzip")
                content = gzip.compress(content, 0)
            self.send_header("Content-Length", str(len(content) - start))
            if site.validator:
                self.send_header(site.validator, version)
            self.end_headers()
            body = content[start:]
            with contextlib.suppress(ConnectionError):  # the client may have had enough
                self.wfile.write(body[:fault] if fault else body)
            self.close_connection = True

        def log_message(self, *arguments: Any) -> None:
            pass

    return Handler


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler(site)) as server:
        site.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield site
        server.shutdown()
        thread.join()


def dataset(*downloads: Download) -> Dataset:
    return Dataset(
        name="made_up",
        title="A made-up dataset",
        paper="none",
        licence="CC BY-NC 4.0",
        page="https://example.org/made_up",
        downloads=downloads,
    )


def one(site: Site, *, sha256: str | None = DIGEST, **options: Any) -> Dataset:
    site.files.setdefault("train.bin", CONTENT)
    return dataset(Download(url=f"{site.address}/train.bin", file="train.bin", sha256=sha256, **options))


def get(what: Dataset, folder: Path, **options: Any) -> list[fetching.Fetched]:
    return fetch(what, folder, **{"accept": lambda dataset: True, "wait_s": 0.001, **options})


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_file_its_digest_and_where_it_is_from(site: Site, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    (found,) = get(one(site), tmp_path, progress=lambda download, done, total: seen.append((done, total)))
    assert (tmp_path / "train.bin").read_bytes() == CONTENT
    assert names(tmp_path) == {"train.bin", "SOURCES.json"}
    assert (found.state, found.bytes, found.sha256) == ("downloaded", len(CONTENT), DIGEST)
    assert fetched_lines([found]) == [f"train.bin: downloaded, 2,097,152 bytes, sha256 {DIGEST[:16]}"]
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    source = json.loads((tmp_path / "SOURCES.json").read_text())["files"]["train.bin"]
    assert len(source.pop("date")) == len("2026-01-01")
    assert source == {
        "url": f"{site.address}/train.bin",
        "sha256": DIGEST,
        "bytes": len(CONTENT),
        "licence": "CC BY-NC 4.0",
    }


@pytest.mark.parametrize("sha256", [DIGEST, None])
def test_what_is_there_is_not_downloaded_again(site: Site, tmp_path: Path, sha256: str | None) -> None:
    get(one(site, sha256=sha256), tmp_path)
    (again,) = get(one(site, sha256=sha256), tmp_path, accept=pytest.fail)
    assert (again.state, again.sha256, len(site.requests)) == ("already there", DIGEST, 1)
    (tmp_path / "train.bin").write_bytes(b"damaged")
    (again,) = get(one(site, sha256=sha256), tmp_path)
    assert (again.state, len(site.requests)) == ("downloaded", 2)
    assert (tmp_path / "train.bin").read_bytes() == CONTENT


def test_the_licence_is_shown_and_a_refusal_downloads_nothing(site: Site, tmp_path: Path) -> None:
    asked: list[Dataset] = []
    with pytest.raises(FetchError, match=r"made_up \(CC BY-NC 4\.0\) was not accepted: nothing was downloaded"):
        get(one(site), tmp_path / "new", accept=lambda dataset: bool(asked.append(dataset)))
    assert asked == [one(site)]
    assert not site.requests
    assert not (tmp_path / "new").exists()
    assert "licence: CC BY-NC 4.0" in licence_lines(one(site))


@pytest.mark.parametrize("validator", ["ETag", "Last-Modified"])
def test_a_cut_connection_is_taken_up_where_it_was_cut(site: Site, tmp_path: Path, validator: str) -> None:
    site.validator, site.faults = validator, [CUT + 99, CUT // 2]
    get(one(site), tmp_path)
    assert (tmp_path / "train.bin").read_bytes() == CONTENT
    assert site.ranges_asked() == [None, f"bytes={CUT}-", f"bytes={CUT + CUT // 2}-"]
    assert names(tmp_path) == {"train.bin", "SOURCES.json"}


def test_another_call_goes_on_with_what_one_has_left(site: Site, tmp_path: Path) -> None:
    site.faults = [CUT]
    with pytest.raises(FetchError, match=rf"1 attempts failed, the last by .*{CUT:,} bytes are kept"):
        get(one(site), tmp_path, attempts=1)
    assert names(tmp_path) == {"train.bin.partial", "train.bin.partial.json"}
    get(one(site), tmp_path)
    assert (tmp_path / "train.bin").read_bytes() == CONTENT
    assert site.ranges_asked() == [None, f"bytes={CUT}-"]


@pytest.mark.parametrize("ignores_if_range", [False, True])
def test_parts_of_two_versions_are_not_put_together(site: Site, tmp_path: Path, ignores_if_range: bool) -> None:
    site.faults, site.ignores_if_range = [CUT], ignores_if_range
    with pytest.raises(FetchError):
        get(one(site, sha256=None), tmp_path, attempts=1)
    site.files["train.bin"] = changed = CONTENT[::-1] + b"and more"
    get(one(site, sha256=None), tmp_path)
    assert (tmp_path / "train.bin").read_bytes() == changed
    assert site.ranges_asked()[1] == f"bytes={CUT}-"


@pytest.mark.parametrize(("ranges", "validator"), [(False, "ETag"), (True, None)])
def test_a_server_that_cannot_go_on_starts_anew(
    site: Site, tmp_path: Path, ranges: bool, validator: str | None
) -> None:
    site.ranges, site.validator, site.faults = ranges, validator, [CUT]
    get(one(site), tmp_path)
    assert (tmp_path / "train.bin").read_bytes() == CONTENT
    assert site.ranges_asked() == [None, f"bytes={CUT}-" if validator else None]


def test_a_server_that_packs_what_it_sends(site: Site, tmp_path: Path) -> None:
    site.packs, site.faults = True, [CUT]
    get(one(site), tmp_path)
    assert (tmp_path / "train.bin").read_bytes() == CONTENT
    assert site.ranges_asked() == [None, None], "a range would be one of the packed bytes"


def test_all_had_arrived_but_was_not_in_place_yet(site: Site, tmp_path: Path) -> None:
    site.faults = [len(CONTENT) - 1]
    with pytest.raises(FetchError):
        get(one(site), tmp_path, attempts=1)
    (tmp_path / "train.bin.partial").write_bytes(CONTENT)
    get(one(site), tmp_path)
    assert (tmp_path / "train.bin").read_bytes() == CONTENT
    assert site.ranges_asked() == [None, f"bytes={len(CONTENT)}-"]


def test_a_partial_file_longer_than_the_whole_starts_anew(site: Site, tmp_path: Path) -> None:
    site.faults = [1000]
    with pytest.raises(FetchError):
        get(one(site), tmp_path, attempts=1)
    (tmp_path / "train.bin.partial").write_bytes(CONTENT + b"more")
    get(one(site), tmp_path)
    assert (tmp_path / "train.bin").read_bytes() == CONTENT


def test_a_server_that_stumbles_is_asked_again(site: Site, tmp_path: Path) -> None:
    site.faults = [500, 503, 429]
    get(one(site), tmp_path)
    assert (tmp_path / "train.bin").read_bytes() == CONTENT
    assert len(site.requests) == 4


def test_a_server_that_stays_down(site: Site, tmp_path: Path) -> None:
    site.faults = [500] * 9
    with pytest.raises(FetchError, match="3 attempts failed, the last by the server's answer 500 Internal"):
        get(one(site), tmp_path, attempts=3)
    assert len(site.requests) == 3
    assert not names(tmp_path)


def test_no_server_at_all(tmp_path: Path) -> None:
    nobody = dataset(Download(url="http://127.0.0.1:9/x", file="x"))
    with pytest.raises(FetchError, match="2 attempts failed, the last by ConnectionError"):
        get(nobody, tmp_path, attempts=2)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (404, r"/train\.bin is not there \(404 Not Found\): see https://example\.org/made_up"),
        (403, r"is not given to everybody \(403 Forbidden\): https://example\.org/made_up says how"),
    ],
)
def test_what_will_not_get_better_is_not_tried_again(site: Site, tmp_path: Path, status: int, message: str) -> None:
    site.faults = [status]
    with pytest.raises(FetchError, match=message):
        get(one(site), tmp_path)
    assert len(site.requests) == 1
    assert not names(tmp_path)


def test_a_wrong_file_is_removed_and_named(site: Site, tmp_path: Path) -> None:
    wrong = "0" * 64
    with pytest.raises(FetchError) as caught:
        get(one(site, sha256=wrong), tmp_path)
    assert all(part in str(caught.value) for part in (f"{site.address}/train.bin", wrong, DIGEST))
    assert not names(tmp_path)


def test_a_file_that_differs_from_the_first_download_is_refused_with_the_remedy(site: Site, tmp_path: Path) -> None:
    get(one(site, sha256=None), tmp_path)
    (tmp_path / "train.bin").unlink()
    site.files["train.bin"] = b"something else"
    with pytest.raises(FetchError, match=rf"has changed since .*{DIGEST}.* delete 'train\.bin' in .*SOURCES\.json"):
        get(one(site, sha256=None), tmp_path)
    assert names(tmp_path) == {"SOURCES.json"}
    sources = json.loads((tmp_path / "SOURCES.json").read_text())
    del sources["files"]["train.bin"]
    (tmp_path / "SOURCES.json").write_text(json.dumps(sources))
    get(one(site, sha256=None), tmp_path)
    assert (tmp_path / "train.bin").read_bytes() == b"something else"


class FullDisk:
    """A stream to a disk with room for so many bytes."""

    def __init__(self, stream: IO[bytes], room: int):
        self._stream, self._room = stream, room

    def write(self, chunk: bytes) -> int:
        self._room -= len(chunk)
        if self._room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._stream.write(chunk)

    def __enter__(self) -> "FullDisk":
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def test_a_disk_that_fills_up(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ordinary = Path.open

    def opened(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        stream = ordinary(path, mode, *arguments, **options)
        return FullDisk(stream, 1_500_000) if path.name == "train.bin.partial" and mode == "r+b" else stream

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", opened)
        with pytest.raises(FetchError, match=r"train\.bin could not be written: the disk is full\. Free some space"):
            get(one(site), tmp_path)
    assert names(tmp_path) == {"train.bin.partial", "train.bin.partial.json"}
    get(one(site), tmp_path)
    assert (tmp_path / "train.bin").read_bytes() == CONTENT
    assert str(site.ranges_asked()[1]).startswith("bytes=1")


def test_no_room_is_found_out_before_the_download(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(FetchError, match="the disk is full"):
        get(one(site), tmp_path)
    assert not names(tmp_path)


def test_two_processes_do_not_write_one_file(site: Site, tmp_path: Path) -> None:
    what = one(site)
    with (
        fetching._Partial(what.downloads[0], tmp_path / "train.bin").locked(),
        pytest.raises(FetchError, match=r"train\.bin\.partial is being written by another process"),
    ):
        get(what, tmp_path)
    assert not site.requests


def zipped(folder: Path, files: dict[str, bytes]) -> bytes:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return Path(shutil.make_archive(str(folder), "zip", folder)).read_bytes()


def test_an_archive_is_unpacked_once(site: Site, tmp_path: Path) -> None:
    site.files["train.bin"] = zipped(tmp_path / "packed", {"a/train.json": b"[1]", "test.json": b"[22]"})
    what, folder = one(site, sha256=None, unpack=True), tmp_path / "data"
    (found,) = get(what, folder)
    assert (found.state, found.unpacked) == ("downloaded", 2)
    assert fetched_lines([found])[0].endswith(", 2 files unpacked")
    assert names(folder) == {"a", "test.json", "SOURCES.json"}
    assert (folder / "a" / "train.json").read_bytes() == b"[1]"
    assert get(what, folder, accept=pytest.fail)[0].state == "already there"
    (folder / "test.json").unlink()
    assert get(what, folder)[0].state == "downloaded"
    assert (folder / "test.json").read_bytes() == b"[22]"
    assert len(site.requests) == 2


def test_files_of_an_older_archive_go(site: Site, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    site.files["train.bin"] = zipped(tmp_path / "old", {"old.json": b"[]", "both.json": b"[1]"})
    get(one(site, sha256=hashlib.sha256(site.files["train.bin"]).hexdigest(), unpack=True), folder)
    (folder / "mine.txt").write_text("not from the archive")
    site.files["train.bin"] = zipped(tmp_path / "new", {"both.json": b"[2]"})
    get(one(site, sha256=hashlib.sha256(site.files["train.bin"]).hexdigest(), unpack=True), folder)
    assert names(folder) == {"both.json", "mine.txt", "SOURCES.json"}
    assert (folder / "both.json").read_bytes() == b"[2]"


def test_a_damaged_archive_leaves_nothing(site: Site, tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=r"http://.*/train\.bin: .*cannot be unpacked"):
        get(one(site, unpack=True), tmp_path)
    assert not names(tmp_path)


def test_a_disk_that_fills_up_while_unpacking(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site.files["train.bin"] = zipped(tmp_path / "packed", {"a.json": b"[1]", "b.json": CONTENT})
    what, folder, ordinary = one(site, sha256=None, unpack=True), tmp_path / "data", Path.open

    def opened(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        stream = ordinary(path, mode, *arguments, **options)
        return FullDisk(stream, 1_000_000) if mode == "xb" else stream

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", opened)
        with pytest.raises(FetchError, match="the disk is full"):
            get(what, folder)
    assert names(folder) == {"train.bin.partial", "train.bin.partial.json"}
    get(what, folder)
    assert names(folder) == {"a.json", "b.json", "SOURCES.json"}
    assert site.ranges_asked() == [None, f"bytes={len(site.files['train.bin'])}-"]


def test_other_file_systems(tmp_path: Path) -> None:
    with fsspec.open("memory://bucket/train.bin", "wb") as stream:
        stream.write(CONTENT)
    what = dataset(Download(url="memory://bucket/train.bin", file="train.bin", sha256=DIGEST))
    get(what, tmp_path)
    assert (tmp_path / "train.bin").read_bytes() == CONTENT
    missing = dataset(Download(url="memory://bucket/nothing", file="nothing"))
    with pytest.raises(FetchError, match="memory://bucket/nothing is not there"):
        get(missing, tmp_path)
    unknown = dataset(Download(url="nosuch://bucket/x", file="x"))
    with pytest.raises(FetchError, match=r"nosuch://bucket/x cannot be opened: .*nosuch"):
        get(unknown, tmp_path)


def cut_once(at: int) -> Callable[..., Any]:
    """`AbstractBufferedFile.read` that fails once when it reaches a place."""
    left = [1]

    def read(stream: Any, size: int = -1) -> bytes:
        if left and stream.tell() >= at:
            left.pop()
            raise RuntimeError("the connection was reset")
        return stream.stream.read(size)

    return read


class CutFile:
    def __init__(self, stream: IO[bytes], read: Callable[..., Any], seeks: list[int]):
        self.stream, self._read, self._seeks = stream, read, seeks

    def __enter__(self) -> "CutFile":
        return self

    def __exit__(self, *error: object) -> None:
        self.stream.close()

    def tell(self) -> int:
        return self.stream.tell()

    def seek(self, place: int) -> None:
        self._seeks.append(place)
        self.stream.seek(place)

    def read(self, size: int = -1) -> bytes:
        return self._read(self, size)


def test_other_file_systems_go_on_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "source.bin").write_bytes(CONTENT)
    system, ordinary = type(fsspec.filesystem("file")), type(fsspec.filesystem("file")).open
    read, seeks = cut_once(1_000_000), list[int]()
    monkeypatch.setattr(system, "open", lambda *arguments, **options: CutFile(ordinary(*arguments), read, seeks))
    what = dataset(Download(url=f"file://{tmp_path}/source.bin", file="train.bin", sha256=DIGEST))
    get(what, tmp_path / "data")
    assert (tmp_path / "data" / "train.bin").read_bytes() == CONTENT
    assert seeks[0] == 0
    assert seeks[1] >= 1_000_000


def test_what_cannot_be_fetched(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"https://example\.org/made_up says how it is asked for"):
        get(dataset(), tmp_path)
    with pytest.raises(FetchError, match="hf://datasets/x is an address"):
        fetch(dataset(), "hf://datasets/x", accept=pytest.fail)
    for content in ("{", "[]", '{"files": []}', '{"files": {"x": 3}}', "{}"):
        (tmp_path / "SOURCES.json").write_text(content)
        with pytest.raises(FetchError, match=r"SOURCES\.json cannot be read"):
            get(dataset(Download(url="memory://x", file="x")), tmp_path)


def test_a_record_that_cannot_be_written_is_said(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    what = one(site)

    def refuse(path: Path, content: str) -> None:
        raise FileError(f"{path} could not be written: the disk is full")

    monkeypatch.setattr(fetching, "write_whole", refuse)
    with pytest.raises(FileError, match="the disk is full"):
        get(what, tmp_path)
    assert "train.bin" not in names(tmp_path)
