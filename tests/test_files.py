"""A file is as it was or as it should be, never in between; lines that a kill cut short are passed over."""

import errno
import json
import os
from pathlib import Path

import pytest

from flanjax.files import FileError, read_json_lines, write_whole


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
