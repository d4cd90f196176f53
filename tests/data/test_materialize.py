"""Materialising gives the same bytes for the same seed, redoes only what changed, and never leaves half a cache."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import flanjax.data.materialize
from flanjax.data.cache import CachedMixture, CachedTask, CacheError, mixture_file, task_folder
from flanjax.data.cache_writer import write_split
from flanjax.data.materialize import MaterializeError, materialize
from flanjax.data.registry import TaskError
from flanjax.data.sources import BadRow
from flanjax.data.vocabularies import Vocabulary, VocabularySource, train_vocabulary
from flanjax.errors import FlanjaxError

WORDS = ["red", "blue", "green", "apple", "pear", "plum", "cat", "dog", "cow", "one", "two", "three", "reverse"]

# A module as it would be written for T5X: nothing in it is flanjax's.
PLAIN = """
    import functools
    import seqio
    import tensorflow as tf

    VOCABULARY = seqio.SentencePieceVocabulary({vocabulary!r}, extra_ids=10)
    FEATURES = {{
        "inputs": seqio.Feature(vocabulary=VOCABULARY, add_eos=False),
        "targets": seqio.Feature(vocabulary=VOCABULARY, add_eos=True),
    }}

    @seqio.map_over_dataset
    def split_line(line):
        parts = tf.strings.split(line, "\\t")
        return {{"inputs": tf.strings.join(["reverse ", parts[0]]), "targets": parts[1]}}

    @seqio.map_over_dataset
    def add_noise(example):
        noise = tf.strings.as_string(tf.random.uniform([], 0, 2, tf.int32))
        return {{**example, "inputs": tf.strings.join([example["inputs"], " ", noise])}}

    for name in ("first_words", "second_words"):
        seqio.TaskRegistry.add(
            name,
            source=seqio.TextLineDataSource(
                split_to_filepattern={{split: f"{folder}/{{name}}-{{split}}.tsv" for split in ("train", "validation")}}
            ),
            preprocessors=[
                split_line,
                add_noise,
                seqio.preprocessors.tokenize,
                seqio.CacheDatasetPlaceholder(),
                seqio.preprocessors.append_eos_after_trim,
            ],
            output_features=FEATURES,
        )
    seqio.MixtureRegistry.add(
        "words",
        [("first_words", functools.partial(seqio.mixing_rate_num_examples, maximum=5)), ("second_words", 2)],
    )
"""

# Tasks over JSON lines, with a `register` of its own.
LINES = """
    import seqio
    from flanjax.data.seqio_tasks import add_mixture, add_task, json_lines, text_features

    def register(folder, names=("good", "other")):
        for name in names:
            add_task(
                name,
                source=json_lines({"train": f"{folder}/{name}.jsonl"}, fields=("inputs", "targets")),
                preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
                output_features=text_features(),
            )
        add_mixture("lines", names, default_rate=1.0)
"""


@pytest.fixture(scope="module")
def spiece(tmp_path_factory):
    lines = [" ".join(WORDS[(i * k + k) % len(WORDS)] for k in range(1, 6)) for i in range(200)] + ["0 1"]
    return str(train_vocabulary(lines, 36, tmp_path_factory.mktemp("vocabulary") / "spiece.model").path)


@pytest.fixture
def plain(tmp_path, module, spiece):
    """The T5X-style module and its text files."""
    for name, rows in (("first_words", 9), ("second_words", 4)):
        for split, count in (("train", rows), ("validation", 2)):
            lines = [f"{WORDS[i]} {WORDS[i + 1]}\t{WORDS[i + 1]} {WORDS[i]}" for i in range(count)]
            (tmp_path / f"{name}-{split}.tsv").write_text("\n".join(lines) + "\n")
    return module(PLAIN.format(vocabulary=spiece, folder=tmp_path))


@pytest.fixture
def lines(tmp_path, module):
    """The JSON-lines module, and a writer of its files."""
    name = module(LINES)

    def write(task, rows):
        text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)
        (tmp_path / f"{task}.jsonl").write_text(text + "\n")

    def run(spiece, **arguments):
        return materialize(
            **{
                "mixture": "lines",
                "cache_dir": tmp_path / "cache",
                "vocabulary": VocabularySource(path=spiece, extra_ids=0),
                "tasks": {name: {"folder": str(tmp_path)}},
                **arguments,
            }
        )

    return write, run


def _rows(count):
    return [{"inputs": f"reverse {WORDS[i % 9]} {WORDS[i % 7]}", "targets": WORDS[i % 5]} for i in range(count)]


def _digests(cache):
    files = sorted(path for path in Path(cache).rglob("*") if path.is_file())
    return {str(path.relative_to(cache)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_task_written_for_t5x_works_unchanged(tmp_path, plain, spiece):
    report = materialize(
        mixture="words", cache_dir=tmp_path / "cache", vocabulary=VocabularySource(), tasks={plain: {}}
    )
    assert [(split.task, split.split, split.examples, split.written) for split in report.splits] == [
        ("first_words", "train", 9, True),
        ("first_words", "validation", 2, True),
        ("second_words", "train", 4, True),
        ("second_words", "validation", 2, True),
    ]
    train = CachedMixture.open(tmp_path / "cache", "words", "train")
    assert train.rates == [5.0, 2.0]  # seqio's own rate function, over the examples that were counted
    assert train.vocabulary.identity == Vocabulary.from_file(spiece, 10).identity
    example = train.tasks[0].read([2])[0]
    assert train.vocabulary.decode(example.inputs)[:-2] == "reverse green apple"
    assert train.vocabulary.decode(example.targets) == "apple green"
    assert example.inputs[-1] == example.targets[-1] == 1  # also where the task leaves EOS out
    assert example.text is None


def test_evaluated_splits_keep_their_text(tmp_path, plain):
    materialize(mixture="words", cache_dir=tmp_path / "cache", vocabulary=VocabularySource(), tasks={plain: {}})
    (example,) = CachedTask.open(tmp_path / "cache", "second_words", "validation").read([1])
    assert example.text == {
        "inputs": example.text["inputs"],
        "targets": "green blue",
        "references": ["green blue"],
        "id": "second_words-validation-1",
    }
    assert example.text["inputs"].startswith("reverse blue green")


def test_a_cache_is_not_written_to_an_address():
    with pytest.raises(FlanjaxError, match="gs://bucket/cache is an address, and nothing is written to one"):
        materialize(mixture="words", cache_dir="gs://bucket/cache", vocabulary=VocabularySource(), tasks={})


def test_one_seed_gives_the_same_bytes_and_another_does_not(tmp_path, plain):
    # `add_noise` draws inside a map function without any seed of its own.
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        materialize(
            mixture="words", cache_dir=tmp_path / folder, vocabulary=VocabularySource(), tasks={plain: {}}, seed=seed
        )
    assert _digests(tmp_path / "a") == _digests(tmp_path / "b")
    records = "tasks/first_words/train/data-00000-of-00001.array_record"
    assert _digests(tmp_path / "a")[records] != _digests(tmp_path / "c")[records]


def test_running_again_redoes_only_what_changed(tmp_path, plain):
    def run():
        report = materialize(
            mixture="words", cache_dir=tmp_path / "cache", vocabulary=VocabularySource(), tasks={plain: {}}
        )
        return [(split.task, split.split) for split in report.splits if split.written]

    assert len(run()) == 4
    before = _digests(tmp_path / "cache")
    assert run() == []
    assert _digests(tmp_path / "cache") == before
    with open(tmp_path / "first_words-train.tsv", "a") as file:
        file.write("cow one\tone cow\n")
    assert run() == [("first_words", "train")]
    assert len(CachedTask.open(tmp_path / "cache", "first_words", "train")) == 10


def test_a_damaged_split_is_written_again(tmp_path, lines, spiece):
    write, run = lines
    for name in ("good", "other"):
        write(name, _rows(5))
    run(spiece)
    (shard,) = task_folder(tmp_path / "cache", "good", "train").glob("*.array_record")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 0xFF
    shard.write_bytes(content)
    assert [split.task for split in run(spiece, splits=("train",)).splits if split.written] == ["good"]


def test_a_call_that_was_stopped_leaves_no_mixture_of_two_seeds(tmp_path, lines, spiece, monkeypatch):
    write, run = lines
    for name in ("good", "other"):
        write(name, _rows(5))
    run(spiece)

    def stopped(cache_dir, task, *arguments, **options):
        if task == "other":
            raise KeyboardInterrupt
        return write_split(cache_dir, task, *arguments, **options)

    monkeypatch.setattr(flanjax.data.materialize, "write_split", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(spiece, seed=1)
    monkeypatch.setattr(flanjax.data.materialize, "write_split", write_split)
    with pytest.raises(CacheError, match=r"good.train was written again since mixture 'lines' was: .* stopped before"):
        CachedMixture.open(tmp_path / "cache", "lines", "train")
    assert [split.task for split in run(spiece, seed=1).splits if split.written] == ["other"]
    assert [task.manifest.seed for task in CachedMixture.open(tmp_path / "cache", "lines", "train").tasks] == [1, 1]


def test_a_task_of_two_mixtures_is_never_changed_silently(tmp_path, lines, spiece):
    write, run = lines
    for name in ("good", "other"):
        write(name, _rows(5))
    run(spiece)
    run(spiece, mixture="good")
    CachedMixture.open(tmp_path / "cache", "lines", "train")  # both were made alike
    run(spiece, mixture="good", seed=1)
    CachedMixture.open(tmp_path / "cache", "good", "train")
    with pytest.raises(CacheError, match=r"for another mixture .* a cache of its own.*--mixture=lines"):
        CachedMixture.open(tmp_path / "cache", "lines", "train")


def test_another_seed_or_vocabulary_is_written_anew(tmp_path, lines, spiece):
    write, run = lines
    for name in ("good", "other"):
        write(name, _rows(90))
    assert all(split.written for split in run(spiece).splits)
    assert all(split.written for split in run(spiece, seed=1).splits)
    trained = run(spiece, seed=1, vocabulary=VocabularySource(train_size=28, extra_ids=3))
    assert all(split.written for split in trained.splits)
    assert trained.vocabulary.size == 31
    again = run(spiece, seed=1, vocabulary=VocabularySource(train_size=28, extra_ids=3))
    assert not any(split.written for split in again.splits)
    assert again.vocabulary.identity == trained.vocabulary.identity


def test_a_trained_vocabulary_knows_its_text(tmp_path, lines, spiece):
    write, run = lines
    for name in ("good", "other"):
        write(name, [{"inputs": f"Größe {i} m²? {WORDS[i % 12]}", "targets": f"{i} €"} for i in range(40)])
    vocabulary = run(spiece, vocabulary=VocabularySource(train_size=45)).vocabulary
    for example in CachedTask.open(tmp_path / "cache", "good", "train").read(range(40)):
        assert vocabulary.unk_id not in example.targets
    assert vocabulary.decode(example.targets) == "39 €"


def test_malformed_rows_stop_or_are_counted(tmp_path, lines, spiece):
    write, run = lines
    write("good", [*_rows(3), {"inputs": "reverse"}, *_rows(2)])
    write("other", _rows(4))
    with pytest.raises(MaterializeError, match=r"1 of 2 .*\n.*good\.jsonl:4: field 'targets' is missing"):
        run(spiece)
    assert len(CachedTask.open(tmp_path / "cache", "other", "train")) == 4
    with pytest.raises(CacheError, match="not in the cache"):
        CachedTask.open(tmp_path / "cache", "good", "train")
    skipping = run(spiece, on_bad_row="skip")
    assert [(split.examples, split.skipped_bad_rows, split.written) for split in skipping.splits] == [
        (5, 1, True),
        (4, 0, False),
    ]
    assert CachedTask.open(tmp_path / "cache", "good", "train").manifest.skipped_bad_rows == 1
    assert not any(split.written for split in run(spiece, on_bad_row="skip").splits)
    with pytest.raises(MaterializeError, match=r"good\.jsonl:4"):
        run(spiece)  # what was skipped before is still an error


def test_a_vocabulary_is_trained_past_malformed_rows(lines, spiece):
    write, run = lines
    write("good", [*_rows(20), "{", *_rows(20)])
    write("other", _rows(20))
    source = VocabularySource(train_size=24)
    with pytest.raises(BadRow, match=r"good\.jsonl:21: not JSON"):
        run(spiece, vocabulary=source)
    assert run(spiece, vocabulary=source, on_bad_row="skip").splits[0].skipped_bad_rows == 1


def test_empty_targets_are_dropped_and_counted(tmp_path, lines, spiece):
    write, run = lines
    write("good", [*_rows(2), {"inputs": "red", "targets": ""}, {"inputs": "red", "targets": "  "}, *_rows(1)])
    write("other", _rows(1))
    assert [(split.examples, split.dropped_empty_targets) for split in run(spiece).splits] == [(3, 2), (1, 0)]


def test_progress_reaches_the_end_of_every_split(lines, spiece):
    write, run = lines
    write("good", _rows(450))
    write("other", _rows(3))
    calls = []
    run(spiece, progress=lambda *call: calls.append(call))
    assert calls == [
        ("good", "train", 200, None),
        ("good", "train", 400, None),
        ("good", "train", 450, 450),
        ("other", "train", 3, 3),
    ]


def test_a_failing_task_leaves_the_others_whole(tmp_path, lines, module, spiece):
    write, run = lines
    broken = module(
        """
        import seqio
        import tensorflow as tf
        from flanjax.data.seqio_tasks import add_mixture, add_task, text_features

        def _dataset(split, shuffle_files):
            def rows():
                yield {"inputs": "red", "targets": "blue"}
                raise ArithmeticError("the third wheel came off")
            text = tf.TensorSpec([], tf.string)
            return tf.data.Dataset.from_generator(rows, output_signature={"inputs": text, "targets": text})

        def register():
            add_task(
                "broken",
                source=seqio.FunctionDataSource(_dataset, splits=("train",)),
                preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
                output_features=text_features(),
            )
            add_mixture("both", ["broken", "good"], default_rate=1.0)
        """
    )
    write("good", _rows(3))
    write("other", _rows(3))
    tasks = {**_modules(run), broken: {}}
    with pytest.raises(MaterializeError, match=r"broken, train: .*the third wheel came off"):
        run(spiece, mixture="both", tasks=tasks)
    assert len(CachedTask.open(tmp_path / "cache", "good", "train")) == 3
    assert not task_folder(tmp_path / "cache", "broken", "train").exists()
    assert not mixture_file(tmp_path / "cache", "both").exists()


def _modules(run):
    """The `tasks` that a `lines` run passes by itself."""
    names = dict(zip(run.__code__.co_freevars, run.__closure__, strict=True))
    return {names["name"].cell_contents: {"folder": str(names["tmp_path"].cell_contents)}}


def test_a_full_disk_ends_everything_at_once(lines, spiece, monkeypatch):
    write, run = lines
    write("good", _rows(3))
    write("other", _rows(3))
    calls = []

    def full(cache_dir, task, *_, **__):
        calls.append(task)
        raise CacheError(f"cannot write {cache_dir}: No space left on device; free some space")

    monkeypatch.setattr(flanjax.data.materialize, "write_split", full)
    with pytest.raises(CacheError, match="No space left on device"):
        run(spiece)
    assert calls == ["good"]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"mixture": "line"}, TaskError, r"no mixture or task 'line' is registered \(did you mean 'lines'\?\)"),
        ({"tasks": {"no_such_tasks": {}}}, TaskError, "task module 'no_such_tasks' cannot be imported"),
        ({"tasks": {"json": {"data_dir": "x"}}}, TaskError, r"'json' has neither family\(\) nor register"),
        ({"splits": ("test",)}, MaterializeError, "no task of 'lines' has a split test: it has train"),
        ({"on_bad_row": "ignore"}, FlanjaxError, "on_bad_row='ignore' is not a policy"),
        ({"vocabulary": VocabularySource()}, FlanjaxError, "brings no SentencePiece vocabulary"),
        ({"vocabulary": VocabularySource(path="nowhere.model")}, FlanjaxError, r"no vocabulary at nowhere\.model"),
        ({"vocabulary": VocabularySource(train_size=9999)}, FlanjaxError, "the text allows at most"),
    ],
)
def test_what_is_not_there_is_named(lines, spiece, change, error, message):
    write, run = lines
    write("good", _rows(3))
    write("other", _rows(3))
    run(spiece)
    with pytest.raises(error, match=message):
        run(spiece, **change)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"folder": "x", "nmaes": []},
            r"unexpected keyword argument 'nmaes' \(did you mean 'names'\?\); its options are",
        ),
        ({}, r"missing a required argument: 'folder'; its options are folder, names"),
        ({"folder": "x", "names": 3}, r"TypeError: 'int' object is not iterable \(.*user_tasks_\w+\.py:\d+\)"),
    ],
)
def test_a_wrong_option_is_named(lines, spiece, options, words):
    _, run = lines
    (name,) = _modules(run)
    with pytest.raises(TaskError, match=rf"{name}' cannot be registered with .*{words}"):
        run(spiece, tasks={name: options})


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import seqio\ndef register(:\n", r"SyntaxError: .* \(.*user_tasks_\w+\.py:2\)"),
        ("import seqio\n\nregistre()\n", r"NameError: name 'registre' is not defined \(.*user_tasks_\w+\.py:3\)"),
        ("import no_such_library\n", "No module named 'no_such_library'"),
    ],
)
def test_a_task_module_that_fails_is_named_with_its_line(lines, module, spiece, code, words):
    _, run = lines
    name = module(code)
    with pytest.raises(TaskError, match=rf"task module '{name}' cannot be imported: {words}"):
        run(spiece, tasks={name: {}})


def test_an_absent_split_is_noted(lines, spiece):
    write, run = lines
    write("good", _rows(3))
    write("other", _rows(3))
    assert run(spiece).notes == ("2 of 2 tasks have no split 'validation': good, other",)


def test_a_task_alone_is_a_mixture_of_one(tmp_path, lines, spiece):
    write, run = lines
    write("good", _rows(3))
    run(spiece, mixture="good")
    assert CachedMixture.open(tmp_path / "cache", "good", "train").rates == [1.0]


TWO_DEMO_TASKS = """
import sys
from flanjax.data.materialize import materialize
from flanjax.data.registry import add_family
from flanjax.data.tasks import Family
from flanjax.data.vocabularies import VocabularySource
from flanjax.tasks import demo

def run(cache):
    add_family(demo.family(train_examples=30, validation_examples=3))
    add_family(Family(tasks=(), mixtures={"two": {"demo_opposite": 1.0, "demo_sort_words": 1.0}}))
    source = VocabularySource(train_size=120)
    return materialize(mixture="two", cache_dir=cache, vocabulary=source, tasks={}, seed=3)
"""
IN_ANOTHER_PROCESS = """
import os, sys
import flanjax.data.cache_writer

run(sys.argv[1])
print("whole", "tensorflow" in sys.modules, flush=True)

# The second run dies in the middle of its third split, as by kill -9.
write, left = flanjax.data.cache_writer._ShardWriter.write, 50

def dying(writer, example):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), 9)
    return write(writer, example)

flanjax.data.cache_writer._ShardWriter.write = dying
run(sys.argv[2])
"""


def test_another_process_writes_the_same_bytes_and_a_killed_one_leaves_nothing_half(tmp_path, seqio_registries):
    done = subprocess.run(
        [sys.executable, "-c", TWO_DEMO_TASKS + IN_ANOTHER_PROCESS, str(tmp_path / "there"), str(tmp_path / "killed")],
        env={**os.environ, "PYTHONHASHSEED": "77"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "whole False\n", done.stderr
    assert done.returncode == -9

    killed = tmp_path / "killed"
    with pytest.raises(CacheError):
        CachedMixture.open(killed, "two", "train")
    left = sorted(path.relative_to(killed / "tasks") for path in killed.glob("tasks/*/[!.]*"))
    assert [str(path) for path in left] == ["demo_opposite/train", "demo_opposite/validation"]
    for path in left:
        CachedTask.open(killed, path.parts[0], path.parts[1]).verify()

    here: dict[str, Any] = {}
    exec(TWO_DEMO_TASKS, here)
    assert [split.written for split in here["run"](killed).splits] == [False, False, True, True]
    here["run"](tmp_path / "here")
    assert _digests(tmp_path / "here") == _digests(tmp_path / "there") == _digests(killed)
