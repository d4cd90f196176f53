"""A file is as it was or as it should be, never in between; lines that a kill cut short are passed over."""

import errno
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flanjax.files import FileError, ResumableFile, address_of, read_json_lines, write_whole


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    for content in ("first", "second, and naïve"):
        write_whole(path, content)
        assert path.read_text(encoding="utf-8") == content
    write_whole(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert os.listdir(path.parent) == ["file.txt"]


@pytest.mark.parametrize(
    ("code", "words"), [(errno.ENOSPC, "the disk is full"), (errno.EIO, os.strerror(errno.EIO))], ids=["full", "broken"]
)
def test_what_cannot_be_written_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, words: str
) -> None:
    path = tmp_path / "file.txt"
    write_whole(path, "old")

    def refuse(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(FileError, match=rf"file\.txt could not be written: {words}\. .*same command again"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


@pytest.mark.parametrize("place", ["gs://bucket/file.txt", Path("s3://bucket/file.txt"), "https://host/a/b"])
def test_an_address_is_no_place_to_write_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str | Path) -> None:
    monkeypatch.chdir(tmp_path)
    for write in (lambda path: write_whole(path, "text"), ResumableFile):
        with pytest.raises(
            FileError, match=r"^(gs|s3|https)://[\w./]+ is an address, and nothing is written to one: give"
        ):
            write(Path(place))
    assert os.listdir(tmp_path) == []
    assert address_of(place) == str(place).replace(":/b", "://b")
    assert [address_of(path) for path in ("gs:/", "a/b", "/a:b/c", "C:\\a", "gs.txt")] == [None] * 5


def test_a_file_cut_anywhere_still_gives_its_whole_lines(tmp_path: Path) -> None:
    # U+2028 and U+0085 end a line for str.splitlines, and a cut within a character is no UTF-8.
    lines = [{"step": 1, "answer": "a\u2028b"}, {"step": 2, "answer": "\x85 é\n"}]
    texts = [(json.dumps(line, ensure_ascii=False) + "\n").encode() for line in lines]
    whole, path = b"".join(texts), tmp_path / "lines.jsonl"
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        # Without its end a line is whole all the same.
        expected = [line for line, end in zip(lines, (len(texts[0]), len(whole)), strict=True) if cut >= end - 1]
        assert read_json_lines(path) == expected, cut
    assert read_json_lines(tmp_path / "absent.jsonl") == []


# --- files that go on -----------------------------------------------------------------------------------------------

WRITER = """
import sys
from pathlib import Path
from flanjax.files import ResumableFile

with ResumableFile(Path(sys.argv[1])) as file:
    file.require({"length": 400})
    print("begun", flush=True)
    for number in range(file.progress.get("parts", 0), 400):
        file.append(f"{number}\\n".encode() * (number % 7 * 1000), {"parts": number + 1})
    file.finish()
"""


def test_a_file_goes_on_after_any_kill_as_if_there_had_been_none(tmp_path: Path) -> None:
    path, seed = tmp_path / "new" / "file", random.randrange(10**6)
    print("seed", seed)
    chance, seen = random.Random(seed), [0]
    while not path.exists():
        process = subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        if len(seen) < 6:
            time.sleep(chance.uniform(0, 0.3))
            process.kill()
        process.communicate()
        record = path.with_name("file.settings.json")
        seen.append(json.loads(record.read_text())["progress"]["parts"] if record.exists() else 0)
    assert seen == sorted(seen)
    assert path.read_bytes() == b"".join(f"{number}\n".encode() * (number % 7 * 1000) for number in range(400))
    assert sorted(os.listdir(path.parent)) == ["file", "file.settings.json"]


def begun(path: Path, **settings: int) -> ResumableFile:
    file = ResumableFile(path)
    file.require(settings)
    return file


def test_a_file_says_how_far_it_is_and_with_what_it_was_made(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with begun(path, length=3) as file:
        assert (file.progress, file.size, file.whole) == ({}, 0, False)
        file.append(b"abc", {"parts": 1})
    with path.with_name("file.partial").open("ab") as partial:
        partial.write(b"half a par")
    with begun(path, length=3) as file:
        assert (file.progress, file.size, file.whole) == ({"parts": 1}, 3, False)
        file.append(b"def", {"parts": 2})
        file.finish()
    assert path.read_bytes() == b"abcdef"
    with begun(path, length=3) as file:
        assert (file.progress, file.size, file.whole) == ({"parts": 2}, 6, True)
    for settings in ({"length": 4}, {"length": 3, "width": 1}):
        with pytest.raises(
            FileError, match=r"was made with other settings: (length was 3 and is 4|width was None and)"
        ):
            begun(path, **settings)
    path.unlink()  # with other settings from the beginning
    with begun(path, length=4) as file:
        assert (file.progress, file.size) == ({}, 0)
        file.append(b"x", {"parts": 1})
    with pytest.raises(FileError, match=r"was begun with other settings: length was 4 and is 3 now. Give those again"):
        begun(path, length=3)


def test_one_process_writes_at_a_time(tmp_path: Path) -> None:
    with begun(tmp_path / "file", length=3) as file:
        file.append(b"abc", {})
        with pytest.raises(FileError, match="another process is writing"):
            begun(tmp_path / "file", length=3)
    begun(tmp_path / "file", length=3).close()


@pytest.mark.parametrize("damage", ["{", "[]", '{"bytes": "many"}', '{"bytes": 9}'])
def test_a_file_with_damaged_parts_is_refused(tmp_path: Path, damage: str) -> None:
    with begun(tmp_path / "file", length=3) as file:
        file.append(b"abc", {})
    (tmp_path / "file.settings.json").write_text(damage)
    with pytest.raises(FileError, match=rf"to begin anew remove {tmp_path / 'file.partial'}"):
        begun(tmp_path / "file", length=3)
    assert (tmp_path / "file.partial").read_bytes() == b"abc"
