"""What a cache was made from is compared with what is asked for: every change is noticed, and nothing else is."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from flanjax.data.materialize import MaterializeReport, materialize
from flanjax.data.provenance import Request, code_identities, is_current
from flanjax.data.source_files import SourceFiles, changes, stamp_of
from flanjax.data.vocabularies import Vocabulary, VocabularySource

HELPER = "FIELDS = ('inputs', 'targets')\n"
TASKS = """
    import seqio
    from {helper} import FIELDS
    from flanjax.data.seqio_tasks import add_mixture, add_task, json_lines, text_features

    def register(folder, names=("one", "two"), rate=1.0):
        for name in names:
            files = {{split: f"{{folder}}/{{name}}-{{split}}.jsonl" for split in ("train", "validation")}}
            add_task(
                name,
                source=json_lines(files, fields=FIELDS),
                preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
                output_features=text_features(),
            )
        add_mixture("lines", names, default_rate=rate)
"""
# Everything is in the module, as in one written for T5X.
PLAIN = """
    import seqio

    FEATURE = seqio.Feature(seqio.SentencePieceVocabulary({vocabulary!r}, extra_ids=0))
    seqio.TaskRegistry.add(
        "plain",
        source=seqio.TextLineDataSource({{"train": "{folder}/part-*.txt"}}),
        preprocessors=[
            seqio.map_over_dataset(lambda line: {{"inputs": line, "targets": line}}),
            seqio.preprocessors.tokenize,
            seqio.preprocessors.append_eos,
        ],
        output_features={{"inputs": FEATURE, "targets": FEATURE}},
    )
"""


@dataclass
class Project:
    """Data, task modules, and a cache made from them."""

    root: Path
    request: Request
    mixture: str = "lines"

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def cache(self) -> Path:
        return self.root / "data" / "cache"  # in the data's folder, where it must not count as data

    def materialize(self, **options: object) -> MaterializeReport:
        fields = {name: getattr(self.request, name) for name in ("tasks", "vocabulary", "seed", "splits")}
        return materialize(mixture=self.mixture, cache_dir=self.cache, **{**fields, **options})

    def differs(self) -> str:
        """What a run with this request is told; the empty string where the cache is used without a word."""
        notices: list[str] = []
        current = is_current(
            self.cache, {self.mixture: ["train"]}, self.request, notice=notices.append, ignored=[self.cache]
        )
        assert current or notices
        return ("" if current else "again: ") + " ".join(notices)


def write_rows(file: Path, count: int) -> None:
    words = ["alpha", "beta", "gamma", "delta"]
    rows = ({"inputs": f"{words[i % 4]} {words[i // 4 % 4]}", "targets": words[i % 3]} for i in range(count))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def project(tmp_path: Path, module: Callable[[str], str], tiny_vocabulary: Vocabulary) -> Project:
    (tmp_path / "data").mkdir()
    for name in ("one", "two", "three"):
        for split in ("train", "validation"):
            write_rows(tmp_path / "data" / f"{name}-{split}.jsonl", 30)
    tasks = {module(TASKS.format(helper=module(HELPER))): {"folder": str(tmp_path / "data")}}
    vocabulary = VocabularySource(path=str(tiny_vocabulary.path), extra_ids=100)
    return Project(tmp_path, Request(tasks=tasks, vocabulary=vocabulary, seed=0, splits=("train", "validation")))


def test_nothing_changed_is_no_word(project: Project) -> None:
    project.materialize()
    assert project.differs() == ""
    (project.cache / "more").write_text("the cache's own files are no data")
    assert project.differs() == ""


def option(name: str, value: object) -> Callable[[Project], None]:
    def change(project: Project) -> None:
        tasks = {module: {**options, name: value} for module, options in project.request.tasks.items()}
        project.request = replace(project.request, tasks=tasks)

    return change


def asked(**fields: object) -> Callable[[Project], None]:
    def change(project: Project) -> None:
        project.request = replace(project.request, **fields)

    return change


def appended(pattern: str, text: str) -> Callable[[Project], None]:
    def change(project: Project) -> None:
        files = project.root.glob(pattern)
        with open(max(files, key=lambda file: file.stat().st_size), "a") as stream:
            stream.write(text)

    return change


def edited_helper(project: Project) -> None:
    (helper,) = [file for file in (project.root / "modules").glob("*.py") if file.read_text() == HELPER]
    helper.write_text(HELPER + "# another comment\n")


def another_module(project: Project) -> None:
    project.request = replace(project.request, tasks={"other_tasks": {}})


CHANGES = {
    "option": (option("names", ["one", "three"]), r"option names of \w+ was not given, it is \['one', 'three'\]"),
    "module": (another_module, "other_tasks was not among"),
    "seed": (asked(seed=1), "its seed is 0, the run's is 1"),
    "vocabulary": (asked(vocabulary=VocabularySource(train_size=20)), "to be given, the run's is to be 20 pieces"),
    "own": (asked(vocabulary=VocabularySource()), "the run's is to be the tasks' own"),
    "split": (asked(splits=("train", "test")), "was not asked for split test"),
    "file": (appended("data/one-train.jsonl", "\n"), r"data/one-train\.jsonl has changed"),
    "more": (lambda project: (project.data / "new.jsonl").write_text(""), r"data/new\.jsonl has changed"),
    "fewer": (lambda project: (project.data / "three-train.jsonl").unlink(), r"three-train\.jsonl has changed"),
    "code": (appended("modules/*.py", "# a comment\n"), r"the code of user_tasks_\w+ has changed"),
    "helper": (edited_helper, r"the code of user_tasks_\w+ has changed"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_is_named(project: Project, what: str) -> None:
    project.materialize()
    change, words = CHANGES[what]
    change(project)
    told = project.differs()
    assert told.startswith("again: lines has to be materialised again: ")
    assert re.search(words, told), told


@pytest.mark.parametrize("what", ["seed", "file", "option"])
def test_what_was_materialised_again_is_current(project: Project, what: str) -> None:
    project.materialize()
    CHANGES[what][0](project)
    report = project.materialize()
    assert any(split.written for split in report.splits)
    assert project.differs() == ""


def test_another_size_of_the_trained_vocabulary(project: Project) -> None:
    asked(vocabulary=VocabularySource(train_size=16))(project)
    first = project.materialize().vocabulary
    assert project.differs() == ""
    asked(vocabulary=VocabularySource(train_size=18))(project)
    assert "was to be 16 pieces and 100 extra ids" in project.differs()
    assert project.materialize().vocabulary.size == first.size + 2
    assert project.differs() == ""
    # A run that brings the same pieces in a file asks for the same.
    asked(vocabulary=VocabularySource(path=str(project.materialize().vocabulary.path)))(project)
    assert project.differs() == ""


def test_a_false_alarm_writes_nothing(project: Project) -> None:
    project.materialize()
    os.utime(project.data / "one-train.jsonl", (1, 1))
    assert "one-train.jsonl has changed" in project.differs()
    assert not any(split.written for split in project.materialize().splits)
    assert project.differs() == ""


def test_a_cache_written_by_hand_is_taken(project: Project) -> None:
    with open(project.data / "one-train.jsonl", "a") as stream:
        stream.write("{\n")
    project.materialize(on_bad_row="skip", splits=("train", "validation", "test"))
    assert project.differs() == ""
    # Without task modules nothing can be asked of a cache but its vocabulary.
    asked(tasks={}, seed=5)(project)
    assert project.differs() == ""


def test_sources_that_are_gone_are_in_the_cache(project: Project) -> None:
    project.materialize()
    shutil.move(project.cache, project.root / "kept")
    shutil.rmtree(project.data)
    shutil.move(project.root / "kept", project.cache)
    shutil.rmtree(project.root / "modules")
    (name,) = project.request.tasks
    sys.path_importer_cache.clear()
    # The folder is there again, because the cache lies in it; without its files it is no longer the same.
    assert project.differs().startswith("again: ")
    project.cache.rename(project.root / "elsewhere")
    project.data.rmdir()
    gone = Elsewhere(project.root, project.request)
    assert gone.differs() == (f"lines is used as it was materialised: no longer there is module {name}; {project.data}")
    asked(seed=1)(gone)
    assert gone.differs().startswith("again: ")


class Elsewhere(Project):
    @property
    def cache(self) -> Path:
        return self.root / "elsewhere"


def test_files_that_a_module_names_itself(
    tmp_path: Path, module: Callable[[str], str], tiny_vocabulary: Vocabulary
) -> None:
    shutil.copy(tiny_vocabulary.path, tmp_path / "own.model")
    (tmp_path / "part-1.txt").write_text("alpha beta\n")
    tasks = {module(PLAIN.format(vocabulary=str(tmp_path / "own.model"), folder=tmp_path)): {}}
    request = Request(tasks=tasks, vocabulary=VocabularySource(), seed=0, splits=("train", "validation"))
    project = Project(tmp_path, request, mixture="plain")
    project.materialize()
    assert project.differs() == ""
    (tmp_path / "part-2.txt").write_text("gamma\n")
    assert "part-2.txt has changed" in project.differs()
    (tmp_path / "own.model").write_bytes((tmp_path / "own.model").read_bytes() + b"\0")
    assert "own.model has changed" in project.differs()


def test_code_is_found_without_being_imported(tmp_path: Path) -> None:
    for name, source in {
        "pkg/__init__.py": "raise SystemExit('imported')",
        "pkg/tasks.py": "from . import near\nimport pkg.far, seqio\ndef f():\n    from .deep.down import x\n",
        "pkg/near.py": "import json, no_such_library",
        "pkg/far.py": "syntax error",
        "pkg/deep/__init__.py": "",
        "pkg/deep/down.py": "import pkg.tasks",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(source)
    code = (
        "import json, sys; from flanjax.data.provenance import code_identities\n"
        "found = code_identities(['pkg.tasks'])\n"
        "assert not {'tensorflow', 'seqio', 'pkg'} & set(sys.modules)\n"
        "print(json.dumps(found))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {name for name, it in found.items() if it} == {
        *("pkg", "pkg.deep.down", "pkg.far", "pkg.near", "pkg.tasks", "seqio"),
    }
    assert found["no_such_library"] is None
    assert found["seqio"].startswith("0.")


def test_the_shipped_tasks_name_what_they_are_written_in() -> None:
    identities = set(code_identities(["flanjax.tasks.demo"]))
    assert {"flanjax.tasks.demo_instances", "flanjax.tasks.demo_prompts", "flanjax.data.prompts"} <= identities
    assert "seqio" not in identities


def test_folders_and_patterns_are_stamped(tmp_path: Path) -> None:
    for name in ("a/b/one.json", "a/two.json", "a/.three", "a/.DS_Store", "a/.git/four", "a/out/made.json", "c/five"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "a" / "linked").symlink_to(tmp_path / "c")
    (tmp_path / "a" / "twice").symlink_to(tmp_path / "c")
    (tmp_path / "c" / "around").symlink_to(tmp_path / "a")
    folder = str(tmp_path / "a")
    stamp = stamp_of(folder, [os.path.realpath(tmp_path / "a" / "out")])
    assert stamp is not None
    assert list(stamp) == [".three", "b/one.json", "linked/five", "two.json"]
    (tmp_path / "c" / "five").write_text("other words")
    assert changes(folder, stamp, stamp_of(folder, [str(tmp_path / "a" / "out")]) or {}) == [f"{folder}/linked/five"]
    assert stamp["two.json"][0] == len("a/two.json")
    assert list(stamp_of(f"{folder}/*.json") or {}) == [f"{folder}/two.json"]
    assert stamp_of(f"{folder}/nothing") is None
    assert list(SourceFiles({"m": {"x": [folder], "y": f"{folder}/two.json", "z": "/"}}).roots()) == [folder]
