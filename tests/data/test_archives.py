"""Nothing of an archive lands outside of its folder or is anything but a file; of a refused one nothing is there."""

import contextlib
import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flanjax.data.archives import ArchiveError, Limits, unpack

Entry = tuple[str, bytes | None, str]  # name, content, and what it is: a letter of `TYPES`
TYPES = {"f": tarfile.REGTYPE, "d": tarfile.DIRTYPE, "s": tarfile.SYMTYPE, "h": tarfile.LNKTYPE, "p": tarfile.FIFOTYPE}


def make_tar(path: Path, *entries: Entry, mode: str = "w") -> Path:
    """`content` is where a link leads."""
    with tarfile.open(path, mode) as tar:
        for name, content, kind in entries:
            info = tarfile.TarInfo(name)
            info.type = TYPES[kind]
            if kind in "sh":
                info.linkname = (content or b"").decode()
            elif kind == "f":
                info.size = len(content or b"")
            tar.addfile(info, io.BytesIO(content or b"") if kind == "f" else None)
    return path


def make_zip(path: Path, *entries: Entry) -> Path:
    modes = {"f": stat.S_IFREG, "s": stat.S_IFLNK, "p": stat.S_IFIFO}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content, kind in entries:
            info = zipfile.ZipInfo(name + "/" if kind == "d" else name)
            info.external_attr = (modes.get(kind, 0) | 0o644) << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            opened.writestr(info, content or b"")
    return path


def make_zst(path: Path, *entries: Entry) -> Path:
    plain = make_tar(path.with_name("plain"), *entries).read_bytes()
    with pyarrow.output_stream(str(path), compression="zstd") as stream:
        stream.write(plain)
    return path


MAKERS: dict[str, Callable[..., Path]] = {
    "zip": make_zip,
    "tar": make_tar,
    "tar.gz": lambda path, *entries: make_tar(path, *entries, mode="w:gz"),
    "tar.xz": lambda path, *entries: make_tar(path, *entries, mode="w:xz"),
    "tar.zst": make_zst,
}
MAKE = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
BOTH = pytest.mark.parametrize("make", [make_zip, make_tar])


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in" / "archive"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "out" / "data"


def tree(folder: Path) -> dict[str, bytes]:
    assert not [path for path in folder.rglob("*") if path.is_symlink()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@MAKE
def test_files_come_out_as_they_went_in(make: Callable[..., Path], archive: Path, folder: Path) -> None:
    entries = [("a", None, "d"), ("a/b.json", b"[1]", "f"), ("./c.txt", b"", "f"), ("größe/表.json", b"{}", "f")]
    found = unpack(make(archive, *entries), folder)
    assert tree(folder) == {"a/b.json": b"[1]", "c.txt": b"", "größe/表.json": b"{}"}
    assert found == {name: len(content) for name, content in tree(folder).items()}
    assert not [name for name in os.listdir(folder) if name.startswith(".unpacking")]


def test_files_of_the_same_name_are_replaced_and_others_kept(archive: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in ("mine", "both"):
        (folder / name).write_text("old")
    unpack(make_zip(archive, ("both", b"new", "f")), folder)
    assert tree(folder) == {"mine": b"old", "both": b"new"}


LEADING_OUT = ["{outside}/evil", "../evil", "a/../../evil", "a/..", "..", "C:\\evil", "..\\evil", "a\\b"]


@BOTH
@pytest.mark.parametrize("name", LEADING_OUT)
def test_paths_that_lead_out_are_refused(make: Callable[..., Path], name: str, archive: Path, folder: Path) -> None:
    make(archive, ("good", b"1", "f"), (name.format(outside=folder.parent.parent), b"2", "f"))
    with pytest.raises(ArchiveError, match=r"a member that leads out of it|cannot be unpacked: OutsideDest"):
        unpack(archive, folder)
    assert tree(folder.parent.parent) == {"in/archive": archive.read_bytes()}


@BOTH
@pytest.mark.parametrize("target", ["/etc/passwd", "../../secret", "..", "a", "nowhere", "other", "."])
def test_links_that_do_not_lead_to_a_file_of_the_archive_are_refused(
    make: Callable[..., Path], target: str, archive: Path, folder: Path
) -> None:
    folder.mkdir(parents=True)
    (folder / "nowhere").write_text("of the folder, not of the archive")
    make(archive, ("a/file", b"1", "f"), ("link", target.encode(), "s"), ("other", b"link", "s"))
    with pytest.raises(ArchiveError, match=r"which is no file of it|cannot be unpacked: (AbsoluteLink|LinkOutside)"):
        unpack(archive, folder)
    assert set(tree(folder)) == {"nowhere"}


@BOTH
def test_nothing_is_written_through_a_link(make: Callable[..., Path], archive: Path, folder: Path) -> None:
    outside = folder.parent / "outside"
    outside.mkdir(parents=True)
    for target in (b"../outside", b"a", str(outside).encode()):
        make(archive, ("a/file", b"1", "f"), ("link", target, "s"), ("link/evil", b"2", "f"))
        with pytest.raises(ArchiveError):
            unpack(archive, folder)
        assert not list(outside.iterdir())
        assert not tree(folder)


@BOTH
def test_links_within_become_copies(make: Callable[..., Path], archive: Path, folder: Path) -> None:
    make(archive, ("b/second", b"../first", "s"), ("first", b"a/file", "s"), ("a/file", b"text", "f"))
    unpack(archive, folder)
    assert tree(folder) == dict.fromkeys(("a/file", "first", "b/second"), b"text")


def test_hard_links(archive: Path, folder: Path) -> None:
    unpack(make_tar(archive, ("a/file", b"text", "f"), ("b/same", b"a/file", "h")), folder)
    assert tree(folder) == {"a/file": b"text", "b/same": b"text"}
    for target in (b"/etc/passwd", b"../secret", b"nothing"):
        with pytest.raises(ArchiveError):
            unpack(make_tar(archive, ("b/same", target, "h")), folder)


@BOTH
def test_devices_are_refused(make: Callable[..., Path], archive: Path, folder: Path) -> None:
    make(archive, ("file", b"1", "f"), ("pipe", None, "p"))
    with pytest.raises(ArchiveError, match=r"a device or the like|SpecialFileError"):
        unpack(archive, folder)
    assert not tree(folder)


@MAKE
def test_bombs_are_refused(make: Callable[..., Path], archive: Path, folder: Path) -> None:
    make(archive, ("zeros", bytes(1 << 22), "f"))
    tight = Limits(ratio=20, small=1 << 20)
    if archive.stat().st_size < 1 << 17:  # a bare tar is no bomb
        with pytest.raises(ArchiveError, match="would become more than 1,048,576 bytes"):
            unpack(archive, folder, tight)
        assert not tree(folder)
    assert unpack(archive, folder) == {"zeros": 1 << 22}, "small archives may be as repetitive as they like"
    with pytest.raises(ArchiveError, match="would become more than 1,000,000 bytes"):
        unpack(archive, folder, Limits(bytes=1_000_000))


@BOTH
def test_copies_of_links_count(make: Callable[..., Path], archive: Path, folder: Path) -> None:
    links = [(f"link{number}", b"file", "s") for number in range(20)]
    make(archive, ("file", os.urandom(1000), "f"), *links)
    with pytest.raises(ArchiveError, match="would become more than 10,000 bytes"):
        unpack(archive, folder, Limits(bytes=10_000))
    with pytest.raises(ArchiveError, match="more than 20 members"):
        unpack(archive, folder, Limits(members=20))


@BOTH
@pytest.mark.parametrize("entries", [[("a", b"1", "f"), ("a/b", b"2", "f")], [("a/b", b"1", "f"), ("a", b"2", "f")]])
def test_what_is_a_file_and_a_folder(
    make: Callable[..., Path], entries: list[Entry], archive: Path, folder: Path
) -> None:
    with pytest.raises(ArchiveError, match="both as a file and as a folder"):
        unpack(make(archive, *entries), folder)
    with pytest.raises(ArchiveError, match="two members named 'a'"):
        unpack(make_tar(archive, ("a", b"1", "f"), ("./a", b"2", "f")), folder)


def test_names_that_are_not_utf8(archive: Path, folder: Path) -> None:
    with tarfile.open(archive, "w", encoding="latin-1", format=tarfile.GNU_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo("größe"))
    with pytest.raises(ArchiveError, match="cannot be unpacked: UnicodeDecodeError"):
        unpack(archive, folder)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\3\4 but no zip", b"\x28\xb5\x2f\xfd but no zstd"])
def test_what_is_no_archive(content: bytes, archive: Path, folder: Path) -> None:
    archive.write_bytes(content)
    with pytest.raises(ArchiveError, match="cannot be unpacked"):
        unpack(archive, folder)
    with pytest.raises(ArchiveError, match="has no files in it"):
        unpack(make_zip(archive), folder)


@settings(max_examples=100, deadline=None)
@given(kind=st.sampled_from(sorted(MAKERS)), damage=st.data())
def test_a_damaged_archive_is_refused_or_harmless(
    kind: str, damage: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = tmp_path_factory.mktemp("damaged")
    entries = [(f"folder/{number}", bytes(range(256)) * 4, "f") for number in range(3)]
    content = bytearray(MAKERS[kind](place / "archive", *entries).read_bytes())
    cut = damage.draw(st.integers(0, len(content)))
    if cut < len(content):
        content[cut] ^= damage.draw(st.integers(1, 255))
    (place / "archive").write_bytes(content[: damage.draw(st.integers(0, len(content)))])
    before = set(place.rglob("*"))
    with contextlib.suppress(ArchiveError):
        unpack(place / "archive", place / "out")
    assert sum(len(found) for found in tree(place / "out").values()) <= 3 * 1024
    assert not [path for path in (place / "out").rglob("*") if ".unpacking" in path.name]
    assert {path for path in place.rglob("*") if place / "out" not in (path, *path.parents)} == before
