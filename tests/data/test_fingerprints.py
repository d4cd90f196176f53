"""A fingerprint changes when code, captured values or data files change, and for no other reason."""

import functools
import importlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from flanjax.data.fingerprints import fingerprint
from flanjax.data.source_files import SourceFiles


@dataclass
class Options:
    path: Path
    names: tuple[str, ...] = ()


def _adder(amount):
    def add(value):
        return value + amount

    return add


def test_equal_content_gives_equal_prints():
    assert fingerprint({"a": 1, "b": [2, 3.5, None]}) == fingerprint({"b": [2, 3.5, None], "a": 1})
    assert fingerprint({"x", "y", "z"}) == fingerprint({"z", "y", "x"})
    assert fingerprint(_adder(3)) == fingerprint(_adder(3))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (1, 2),
        (1, True),
        ("a", b"a"),
        ([1, [2]], [[1], 2]),
        (_adder(3), _adder(4)),
        (functools.partial(print, end=""), functools.partial(print, end=" ")),
        (Options(Path("a")), Options(Path("b"))),
        (np.arange(3), np.arange(4)),
        (np.arange(3, dtype=np.int32), np.arange(3, dtype=np.int64)),
    ],
)
def test_another_content_gives_another_print(first, second):
    assert fingerprint(first) != fingerprint(second)


def test_a_captured_file_counts_by_its_contents(tmp_path):
    file = tmp_path / "data.txt"
    file.write_text("one")
    values = [Options(file), str(file), functools.partial(print, file)]
    before = [fingerprint(value) for value in values]
    os.utime(file, (1, 1))
    assert [fingerprint(value) for value in values] == before
    file.write_text("two")
    after = [fingerprint(value) for value in values]
    assert all(new != old for new, old in zip(after, before, strict=True))


def test_a_file_in_a_captured_folder_counts(tmp_path):
    values = [Options(tmp_path), str(tmp_path), functools.partial(print, str(tmp_path))]
    before = [fingerprint(value) for value in values]
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "more.txt").write_text("x")
    assert all(fingerprint(value) != old for value, old in zip(values, before, strict=True))


def test_a_word_is_no_folder_unless_it_is_an_option(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = fingerprint("train")
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "rows.txt").write_text("x")
    assert fingerprint("train") == before
    assert fingerprint("train", SourceFiles({"module": {"data_dir": "train"}})) != before


def test_what_was_read_is_told(tmp_path):
    for name in ("a.txt", "folder/b.txt", "cache/c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    files = SourceFiles(ignored=[tmp_path / "cache"])
    before = fingerprint([str(tmp_path / "a.txt"), tmp_path], files)
    (tmp_path / "cache" / "d.txt").write_text("what is ignored changes nothing")
    assert fingerprint([str(tmp_path / "a.txt"), tmp_path], SourceFiles(ignored=[tmp_path / "cache"])) == before
    assert {path: sorted(stamp) for path, stamp in files.roots().items()} == {str(tmp_path): ["a.txt", "folder/b.txt"]}


def test_cycles_end():
    ring: list[object] = [1]
    ring.append(ring)
    assert fingerprint(ring) == fingerprint(ring)


HELPER = "LIMIT = {limit}\n\ndef helper(x):\n    return x\n"
MODULE = "from helper_{n} import helper\nNAMES = ('a', 'b')\n\ndef work(x):\n    return helper(x), NAMES\n"


def test_a_helper_of_ones_own_module_counts(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "helper_1.py").write_text(HELPER.format(limit=1))
    (tmp_path / "work_1.py").write_text(MODULE.format(n=1))
    module = importlib.import_module("work_1")
    before = fingerprint(module.work)
    (tmp_path / "helper_1.py").write_text(HELPER.format(limit=2))
    assert fingerprint(module.work) != before
    (tmp_path / "helper_1.py").write_text(HELPER.format(limit=1))
    assert fingerprint(module.work) == before
    monkeypatch.setattr(module, "NAMES", ("a", "c"))
    assert fingerprint(module.work) != before


def test_processes_with_other_hash_seeds_agree(tmp_path):
    code = "\n".join(
        [
            "import functools",
            "from flanjax.data.fingerprints import fingerprint",
            "from flanjax.data.prompts import Prompts, Template",
            "from flanjax.tasks.demo_instances import GENERATORS",
            "prompts = Prompts(zero_shot=(Template(inputs='{a}'),))",
            "print(fingerprint([functools.partial(prompts.render, draw={'x', 'y', 'z'}), GENERATORS]))",
        ]
    )
    prints = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in (1, 2)
    }
    assert len(prints) == 1
    assert len(prints.pop().strip()) == 64
