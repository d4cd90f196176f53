"""Text tasks give the same bytes in this process, in several, on Beam and through seqio."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flanjax.data.cache import CachedTask
from flanjax.data.draws import Draw
from flanjax.data.materialize import MaterializeError, materialize
from flanjax.data.rendering import CHUNK_ROWS, rows_of, texts_of
from flanjax.data.sources import BadRow, bad_row_policy
from flanjax.data.tasks import Text, TextTask, all_but_last, dataset_folder, last, with_validation
from flanjax.data.vocabularies import Vocabulary, VocabularySource, train_vocabulary

# A family over JSON lines: what it draws is in the text; one row in five is left out, and some targets are empty.
MODULE = """
    import functools
    from flanjax.data.records import read_records
    from flanjax.data.sources import text_field
    from flanjax.data.tasks import Family, Text, TextTask, with_validation

    def rows(path, seed):
        return read_records(path)

    def render(row, context):
        if row.get("left_out"):
            return None
        word = text_field(row, "word", context.place)
        times = context.draw.between(1, 3)
        return Text(inputs=f"Say {word} {times} times.", targets=" ".join([word] * times), references=(word, "any"))

    def family(folder, names=("first", "second")):
        tasks = [
            TextTask(
                name=name, source=with_validation(functools.partial(rows, f"{folder}/{name}.jsonl"), 7), render=render
            )
            for name in names
        ]
        return Family(tasks=tasks, mixtures={"words": {name: None for name in names}})
"""
WORDS = ["red", "blue", "green", "apple", "pear", "plum", "cat", "dog", "cow"]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    lines = [f"Say {WORDS[i % 9]} {i} times. {WORDS[i * 5 % 9]}" for i in range(200)]
    path = train_vocabulary(lines, 60, tmp_path_factory.mktemp("vocabulary") / "spiece.model").path
    return VocabularySource(path=str(path), extra_ids=0)


@pytest.fixture
def words(tmp_path, module, vocabulary):
    """words(first=lines, second=lines) writes the two files; words.run(cache, ...) materialises them."""
    name, folder = module(MODULE), tmp_path / "published"
    folder.mkdir()

    def run(cache, **arguments):
        return materialize(
            **{
                "mixture": "words",
                "cache_dir": tmp_path / cache,
                "vocabulary": vocabulary,
                "tasks": {name: {"folder": str(folder)}},
                "seed": 3,
                **arguments,
            }
        )

    def write(**tasks):
        for task, rows in tasks.items():
            lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
            (folder / f"{task}.jsonl").write_text("\n".join(lines) + "\n")
        return run

    write.module = name
    return write


def many(count):
    """Rows of which one in five is left out and one in eleven has no target."""
    return [
        {"word": "" if n % 11 == 0 else f"{WORDS[n % 9]} {n}", **({"left_out": True} if n % 5 == 0 else {})}
        for n in range(count)
    ]


def digests(cache):
    files = sorted(path for path in Path(cache).rglob("*") if path.is_file())
    return {str(path.relative_to(cache)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def whole(words):
    """Both tasks with more chunks than one process does before others are started."""
    return words(first=many(13 * CHUNK_ROWS + 5), second=many(40))


def test_processes_and_beam_write_the_bytes_of_one_process(tmp_path, whole):
    report = whole("one", workers=1)
    assert {(split.task, split.split) for split in report.splits} == {
        (task, split) for task in ("first", "second") for split in ("train", "validation")
    }
    assert sum(split.dropped_empty_targets for split in report.splits) > 100
    whole("three", workers=3)
    whole("beam", beam=("--runner=DirectRunner",))
    assert digests(tmp_path / "one") == digests(tmp_path / "three") == digests(tmp_path / "beam")
    assert not list((tmp_path / "beam").glob(".beam-*"))


def test_seqio_gives_the_same_tokens(tmp_path, whole, words, seqio_registries):
    import seqio

    from flanjax.data.registry import load_family
    from flanjax.data.seqio_tasks import add_family

    report = whole("cache")
    add_family(load_family(words.module, {"folder": str(tmp_path / "published")}))
    spiece = seqio.SentencePieceVocabulary(str(report.vocabulary.path), 0)
    features = dict.fromkeys(("inputs", "targets"), seqio.Feature(vocabulary=spiece, add_eos=True))
    for name in ("first", "second"):
        task = seqio.TaskRegistry.get(name).replace(output_features=features)
        for split in ("train", "validation"):
            cached = CachedTask.open(tmp_path / "cache", name, split)
            rows = task.get_dataset(None, split, shuffle=False, seed=3).as_numpy_iterator()
            rows = [row for row in rows if len(row["targets"]) > 1]
            ours = cached.read(range(len(cached)))
            assert [(row["inputs"].tolist(), row["targets"].tolist()) for row in rows] == [
                (example.inputs.tolist(), example.targets.tolist()) for example in ours
            ]
            if split == "validation":
                assert [row["references"].tolist() for row in rows] == [
                    [reference.encode() for reference in example.text["references"]] for example in ours
                ]
    mixture = seqio.MixtureRegistry.get("words")
    assert {task.name for task in mixture.tasks} == {"first", "second"}


@pytest.mark.parametrize("arguments", [{"workers": 1}, {"workers": 2}, {"beam": ("--runner=DirectRunner",)}])
def test_a_bad_row_fails_its_task_alone_or_is_counted(tmp_path, words, arguments):
    rows = many(10 * CHUNK_ROWS)
    rows[9 * CHUNK_ROWS + 1] = {"word": 3}
    rows[17] = "{"
    run = words(first=rows, second=many(30))
    with pytest.raises(MaterializeError) as failure:
        run("strict", **arguments)
    message = str(failure.value)
    assert "2 of 4 task splits failed" in message or "1 of 4 task splits failed" in message
    assert "first.jsonl:18: not JSON" in message
    assert not (tmp_path / "strict" / "tasks" / "first" / "train").exists()
    assert len(CachedTask.open(tmp_path / "strict", "second", "train")) > 0
    report = run("lenient", on_bad_row="skip", splits=("train",), **arguments)
    (first,) = [split for split in report.splits if split.task == "first"]
    assert first.skipped_bad_rows == 2
    assert "first.jsonl:" in first.first_bad_row


def test_a_task_that_is_named_by_a_seqio_module(tmp_path, words, module, vocabulary):
    run = words(first=many(30), second=many(20))
    other = module(
        """
        import seqio
        seqio.MixtureRegistry.add("both", [("second", 2.0), ("first", 1.0)])
        """
    )
    tasks = {other: {}, words.module: {"folder": str(tmp_path / "published")}}
    report = run("cache", mixture="both", tasks=tasks)
    assert {split.task for split in report.splits} == {"first", "second"}
    assert json.loads((tmp_path / "cache" / "mixtures" / "both.json").read_text())["tasks"][1]["rate"] == 2.0


def test_a_killed_parent_leaves_no_process(tmp_path, words):
    words(first=many(4000 * 20), second=many(3))
    spiece = tmp_path / "spiece.model"
    train_vocabulary([f"Say {word} times" for word in WORDS], 25, spiece)
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import sys
            sys.path[:0] = {[str(tmp_path / "modules")]!r}
            from flanjax.data.materialize import materialize
            from flanjax.data.vocabularies import VocabularySource

            def progress(task, split, done, total):
                if done > 6000:
                    import multiprocessing
                    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
                    import time
                    time.sleep(600)

            if __name__ == "__main__":
                materialize(
                    mixture="words",
                    cache_dir={str(tmp_path / "killed")!r},
                    vocabulary=VocabularySource(path={str(spiece)!r}),
                    tasks={{{words.module!r}: {{"folder": {str(tmp_path / "published")!r}}}}},
                    workers=2,
                    progress=progress,
                )
            """
        )
    )
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as process:
        children = [int(number) for number in process.stdout.readline().split()]
        assert len(children) == 2
        os.kill(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    assert not (tmp_path / "killed" / "tasks" / "first" / "train").exists()


# --- the frame -----------------------------------------------------------------------------------------------------


def test_what_is_drawn_depends_on_seed_task_split_and_number():
    keys = [(0, "a", "train", 0), (1, "a", "train", 0), (0, "b", "train", 0), (0, "a", "validation", 0)]
    keys.append((0, "a", "train", 1))
    drawn = [Draw(*key).below(10**6) for key in keys]
    assert len(set(drawn)) == len(keys)
    assert drawn == [Draw(*key).below(10**6) for key in keys]


@given(st.lists(st.integers(), max_size=30), st.integers(0, 12))
def test_the_last_and_the_others_are_all(rows, count):
    assert [*all_but_last(rows, count), *last(rows, count)] == rows
    assert len(list(last(rows, count))) == min(count, len(rows))


def _numbers(seed):
    return ((f"here:{number}", {"n": number}) for number in range(25))


def test_validation_is_every_so_manieth_row():
    parts = {split: [row["n"] for _, row in rows(0)] for split, rows in with_validation(_numbers, 10).items()}
    assert parts == {"validation": [0, 10, 20], "train": [n for n in range(25) if n % 10]}


def _any_text(row, context):
    return Text(inputs=row["a"] + "x", targets=row["b"]["c"])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.dictionaries(st.sampled_from(["a", "b"]), JSON))
def test_any_row_gives_text_or_is_named_with_its_place(row):
    task = TextTask(name="any", source={}, render=_any_text)
    with bad_row_policy("skip") as bad_rows:
        texts = list(texts_of(task, "train", [(0, "rows.json:7", row)], seed=0, tokenizer=Words()))
    assert len(texts) + bad_rows.skipped == 1
    assert all("rows.json:7" in message for message in bad_rows.first)


class Words:
    """A token a word."""

    def encode(self, text):
        return text.split()

    def decode(self, ids):
        return " ".join(ids)


def test_half_a_character_is_a_bad_row():
    task = TextTask(name="any", source={}, render=_any_text)
    with pytest.raises(BadRow, match=r"file:3: it has \\ud800, half of a character"):
        task.text({"a": "\ud800", "b": {"c": "d"}}, 0, "file:3", split="train", seed=0, tokenizer=Words())


def test_a_dataset_lies_where_it_is_said(monkeypatch):
    assert dataset_folder("dolly", "there") == "there"
    assert dataset_folder("dolly", "hf://datasets/a/b") == "hf://datasets/a/b"
    monkeypatch.delenv("FLANJAX_DATA_DIR", raising=False)
    assert dataset_folder("dolly") == "data/dolly"
    monkeypatch.setenv("FLANJAX_DATA_DIR", "/somewhere")
    assert dataset_folder("dolly") == "/somewhere/dolly"


def test_rows_are_numbered_as_they_come():
    task = TextTask(name="numbers", source={"train": _numbers}, render=_any_text)
    assert [(number, place) for number, place, _ in rows_of(task, "train", seed=0)][:2] == [
        (0, "here:0"),
        (1, "here:1"),
    ]


def test_the_batch_is_the_sum_of_its_texts(vocabulary):
    opened = Vocabulary.from_file(vocabulary.path, 0)
    texts = ["Say red", "", "blue 3 times"]
    assert opened.encode_batch(texts) == [opened.encode(text) for text in texts]
    assert opened.encode_batch([]) == []
