"""The official encoding, letter for letter; the official split; and errors that name the instance."""

import gzip
import json
from pathlib import Path

import fsspec
import pytest
from flanjax.tasks.natural_instructions import (
    ENCODINGS,
    TEST_MIXTURE,
    TRAIN_MIXTURE,
    NaturalInstructionsError,
    encode_source,
    family,
    read_task,
)

from flanjax.data.cache import CachedMixture, CachedTask
from flanjax.data.materialize import MaterializeError, materialize
from flanjax.data.rendering import rows_of, texts_of, training_text
from flanjax.data.sources import BadRow, BadRows, bad_row_policy
from flanjax.data.vocabularies import VocabularySource, train_vocabulary

MODULE = "flanjax.tasks.natural_instructions"


class Words:
    """A vocabulary of one token a word; white space is kept by decoding what was encoded."""

    def encode(self, text):
        return text.split()

    def decode(self, tokens):
        return " ".join(tokens)


INSTANCE = {
    "definition": " Say whether it is a fruit ",
    "positives": [
        {"input": "plum", "output": "yes", "explanation": "It grows on a tree."},
        {"input": "Is it a saw?", "output": "no"},
        {"input": "pear", "output": "yes"},
    ],
    "negatives": [{"input": "fig", "output": "no", "explanation": "It is one"}],
    "input": "apple\n",
}


def _task(count=6, *, definition="Repeat the word.", output=list):
    instances = [
        {"id": f"id-{number}", "input": f"word {number}", "output": [f"word {number}"] if output is list else "word"}
        for number in range(count)
    ]
    shots = [{"input": "red", "output": "red", "explanation": "It is the same."}] * 2
    return {
        "Definition": [definition],
        "Positive Examples": shots,
        "Negative Examples": shots[:1],
        "Instances": instances,
    }


@pytest.fixture
def data_dir(tmp_path):
    """data_dir({"task1_x": {...}}, test=["task1_x"]) writes the published layout."""

    def write(tasks, test=()):
        root = tmp_path / "natural-instructions"
        for folder in ("tasks", "splits/default"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        for name, task in tasks.items():
            (root / "tasks" / f"{name}.json").write_text(json.dumps(task))
        (root / "splits" / "default" / "test_tasks.txt").write_text("\n".join(["task9_elsewhere", *test]) + "\n")
        return str(root)

    return write


def task_of(folder, name="task1_x", **options):
    """One task of a folder."""
    (found,) = [task for task in family(folder, **options).tasks if task.name == name]
    return found


def texts(task, split, seed=1):
    """Its rendered examples."""
    return [text for _, text in texts_of(task, split, rows_of(task, split, seed=seed), seed=seed, tokenizer=Words())]


def tasks_of(found, mixture):
    """The names of a mixture's tasks."""
    return list(found.mixtures[mixture])


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    texts = [f"Definition: Repeat the word {n}. Positive Example {n} - Input: red Output: word" for n in range(50)]
    path = train_vocabulary(texts, 60, tmp_path_factory.mktemp("vocabulary") / "spiece.model").path
    return VocabularySource(path=str(path), extra_ids=0)


def test_every_part_of_the_official_text():
    both = ENCODINGS["def_pos2_expl"]
    assert encode_source(INSTANCE, both, Words(), 1000) == (
        "Definition: Say whether it is a fruit.\n\n"
        " Positive Example 1 -\nInput: plum.\n Output: yes.\n Explanation: It grows on a tree.\n\n"
        " Positive Example 2 -\nInput: Is it a saw?\n Output: no.\n\n"
        "Now complete the following example -\nInput: apple.\nOutput: "
    )
    assert encode_source(INSTANCE, ENCODINGS["def_pos2_neg2"], Words(), 1000) == (
        "Definition: Say whether it is a fruit.\n\n"
        " Positive Example 1 -\nInput: plum.\n Output: yes.\n\n"
        " Positive Example 2 -\nInput: Is it a saw?\n Output: no.\n\n"
        " Negative Example 1 -\nInput: fig.\n Output: no.\n\n"
        "Now complete the following example -\nInput: apple.\nOutput: "
    )
    assert encode_source(INSTANCE, ENCODINGS["pos2"], Words(), 1000).startswith(" Positive Example 1 -\nInput: plum.")
    assert encode_source(INSTANCE, ENCODINGS["def"], Words(), 1000) == (
        "Definition: Say whether it is a fruit.\n\nNow complete the following example -\nInput: apple.\nOutput: "
    )


def test_a_real_instance_in_the_official_text(test_data):
    file = test_data / "super_natural_instructions" / "tasks" / "task1393_superglue_copa_text_completion.json"
    assert encode_source(read_task(file)[0], ENCODINGS["def_pos2"], Words(), 1024) == (
        "Definition: In this task, you are given a premise sentence, two possible options and a question word. If the "
        "question was cause you should select the option that is a possible cause of the premise sentence, and if the "
        "question word was effect you should find the option which is a possible effect of the premise sentence. "
        'Answer with "A" or "B".\n\n'
        " Positive Example 1 -\n"
        "Input: The animal species became endangered. (A) Their habitat was destroyed. (B) Their predators went "
        "extinct., Question: cause.\n"
        " Output: A.\n\n"
        " Positive Example 2 -\n"
        "Input: The bar closed. (A) It was crowded. (B) It was 3 AM., Question: cause.\n"
        " Output: B.\n\n"
        "Now complete the following example -\n"
        "Input: The man fell unconscious. (A) The assailant struck the man in the head. (B) The assailant took the "
        "man's wallet., Question: cause.\n"
        "Output: "
    )


@pytest.mark.parametrize("positives", [0, 1, 2])
def test_examples_are_added_while_everything_fits(positives):
    encoding = ENCODINGS["def_pos2"]
    needed = (
        len(
            Words().encode(
                encode_source({**INSTANCE, "positives": INSTANCE["positives"][:positives]}, encoding, Words(), 1000)
            )
        )
        + 1
    )
    for limit, expected in ((needed, positives), (needed - 1, positives - 1)):
        text = encode_source(INSTANCE, encoding, Words(), limit)
        assert text.count("Positive Example") == max(expected, 0)
        assert len(Words().encode(text)) + 1 <= limit


def test_the_first_example_that_does_not_fit_ends_its_kind():
    long = {"input": "word " * 100, "output": "yes"}
    instance = {**INSTANCE, "positives": [long, INSTANCE["positives"][0]]}
    text = encode_source(instance, ENCODINGS["def_pos2_neg2"], Words(), 60)
    assert "Positive" not in text
    assert "Negative Example 1" in text


def test_a_query_that_is_too_long_is_cut():
    instance = {**INSTANCE, "input": "word " * 100}
    tokens = encode_source(instance, ENCODINGS["def"], Words(), 20).split()
    assert len(tokens) == 19
    assert tokens[:3] == ["Definition:", "Say", "whether"]


def test_a_vocabulary_is_trained_on_what_fits_and_not_on_its_first_bytes(data_dir):
    task = _task(8)
    for instance in task["Instances"]:
        instance["input"] = "wörd " * 30 + "end"
    long = task_of(data_dir({"task1_x": task}), max_source=150)
    inputs = list(training_text(long, "train", seed=0, limit=2, bad_rows=BadRows()))[::2]
    # 400 bytes: far more than 150, but no more than 150 tokens of four bytes.
    assert all(text.startswith("Definition: Repeat the word.") for text in inputs)
    assert all(text.count("Positive Example") == 2 for text in inputs)
    assert all("wörd end.\nOutput: " in text for text in inputs)
    short = task_of(data_dir({"task1_x": task}), max_source=40)
    (text, _) = training_text(short, "train", seed=0, limit=1, bad_rows=BadRows())
    assert len(text.encode()) == 4 * 39


def test_an_empty_input_keeps_the_official_oddity():
    assert "Input: .\nOutput: " in encode_source({**INSTANCE, "input": " "}, ENCODINGS["def"], Words(), 100)


def test_the_official_split(data_dir, vocabulary, tmp_path):
    folder = data_dir({f"task{n}_x": _task(30) for n in (1, 2, 3)}, test=["task2_x"])
    options = {
        "data_dir": folder,
        "train_instances_per_task": 8,
        "validation_instances_per_task": 4,
        "test_instances_per_task": 5,
    }
    for mixture in (TRAIN_MIXTURE, TEST_MIXTURE):
        materialize(
            mixture=mixture,
            cache_dir=tmp_path / "cache",
            vocabulary=vocabulary,
            tasks={MODULE: options},
            splits=("train", "validation", "test"),
        )
    train = CachedMixture.open(tmp_path / "cache", TRAIN_MIXTURE, "train")
    assert [(task.name, len(task)) for task in train.tasks] == [("task1_x", 8), ("task3_x", 8)]
    for split in ("test", "validation"):
        (task,) = CachedMixture.open(tmp_path / "cache", TEST_MIXTURE, split).tasks
        assert [example.text["id"] for example in task.read(range(5))] == [f"id-{n}" for n in range(5)]
        assert len(task) == 5

    held_out = CachedTask.open(tmp_path / "cache", "task1_x", "validation")
    asked = {example.text["targets"] for example in held_out.read(range(4))}
    decode = train.vocabulary.decode
    trained = {decode(example.targets) for example in train.tasks[0].read(range(8))}
    assert len(asked) == 4
    assert len(trained) == 8
    assert not asked & trained
    assert trained != {f"word {n}" for n in range(8)}  # drawn, not the first ones


def test_rows_of_a_training_task():
    from flanjax.tasks.natural_instructions import _training_rows

    rows = [{"id": str(number)} for number in range(20)]

    def ids(split, **sizes):
        return [row["id"] for row in _training_rows(rows, split, 5, **sizes)]

    assert len(ids("train", train=None, validation=6)) == 14
    assert len(ids("train", train=100, validation=6)) == 14
    assert len(ids("train", train=10, validation=100)) == 10
    everything = ids("train", train=None, validation=6) + ids("validation", train=None, validation=6)
    assert sorted(everything) == sorted(row["id"] for row in rows)


def test_strings_lists_packed_files_and_repeated_ids(data_dir):
    folder = data_dir({"task1_x": _task(2, output=str)})
    path = f"{folder}/tasks/task2_x.json.gz"
    task = _task(3)
    task["Definition"] = "A plain string"
    for instance in task["Instances"]:
        instance["id"] = "the same"
    with gzip.open(path, "wt") as file:
        json.dump(task, file)
    assert tasks_of(family(folder), TRAIN_MIXTURE) == ["task1_x", "task2_x"]
    rows = [row for _, row in task_of(folder, "task2_x").source["train"](0)]
    assert [row["id"] for row in rows] == ["the same"] * len(rows)
    assert rows[0]["definition"] == "A plain string"
    _, row = next(task_of(folder).source["train"](0))
    assert row["outputs"] == ["word"]


def test_one_of_several_outputs_is_trained_on_and_all_are_references(data_dir):
    task = _task(40)
    for instance in task["Instances"]:
        instance["output"] = ["one", "two", "three"]
    rows = texts(task_of(data_dir({"task1_x": task}), validation_instances_per_task=5), "train")
    assert {row.targets for row in rows} == {"one", "two", "three"}
    assert all(row.references == ("one", "two", "three") for row in rows)


def test_random_draws_every_encoding_and_evaluates_with_one(data_dir):
    folder = data_dir({"task1_x": _task(60)})
    task = task_of(folder, encoding="random", train_instances_per_task=None, validation_instances_per_task=10)
    shapes = {
        (text.startswith("Definition"), text.count("Positive"), text.count("Negative"), text.count("Explanation"))
        for text in (row.inputs for row in texts(task, "train"))
    }
    assert shapes == {(True, 0, 0, 0), (False, 2, 0, 0), (True, 2, 0, 0), (True, 2, 1, 0), (True, 2, 0, 2)}
    validation = [row.inputs for row in texts(task, "validation")]
    assert all(text.startswith("Definition") and text.count("Positive") == 2 for text in validation)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output": 3}, r"task1_x\.json: instance 2: field 'output' must be a string or a list of strings"),
        ({"output": []}, r"instance 2: field 'output'"),
        ({"output": ["word", "\ud800"]}, r"instance 2: field 'output' has \\ud800, half of a character"),
        ({"input": None}, r"instance 2: field 'input' must be a string, not NoneType"),
    ],
)
def test_a_malformed_instance_is_named_or_skipped(data_dir, vocabulary, tmp_path, change, message):
    task = _task(6)
    task["Instances"][1].update(change)
    folder = data_dir({"task1_x": task})
    arguments = {
        "mixture": TRAIN_MIXTURE,
        "cache_dir": tmp_path / "cache",
        "vocabulary": vocabulary,
        "tasks": {MODULE: {"data_dir": folder}},
    }
    with pytest.raises(MaterializeError, match=message):
        materialize(**arguments)
    report = materialize(**arguments, on_bad_row="skip", splits=("train",))
    assert [(split.examples, split.skipped_bad_rows) for split in report.splits] == [(3, 1)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"Definition": ["x"],\n "Instances": [', r"task1_x\.json:2: not JSON"),
        ("{}", "field 'Definition' must be a string"),
        ('{"Definition": "x", "Positive Examples": [{"input": "a"}], "Instances": []}', "number 1: field 'output'"),
        ('{"Definition": "x", "Instances": {}}', "field 'Instances' must be a list"),
    ],
)
def test_a_file_that_is_no_task_is_never_skipped(tmp_path, content, message):
    file = tmp_path / "task1_x.json"
    file.write_text(content)
    with bad_row_policy("skip"), pytest.raises(BadRow, match=message):
        read_task(file)


def test_more_tasks_can_be_held_out(data_dir):
    folder = data_dir({f"task{n}_x": _task(3) for n in (1, 2, 10, 11)}, test=["task2_x"])
    found = family(folder, held_out=["task1?_*"])
    assert tasks_of(found, TEST_MIXTURE) == ["task10_x", "task11_x", "task2_x"]
    assert tasks_of(found, TRAIN_MIXTURE) == ["task1_x"]


def test_a_name_that_seqio_does_not_allow_is_held_out_all_the_same(data_dir):
    names = ["task1_x", "task602_wikitext-103_answer_generation", "task603_wikitext-2"]
    found = family(data_dir({name: _task(3) for name in names}, test=names[1:2]), held_out="task603_wikitext-*")
    assert tasks_of(found, TEST_MIXTURE) == ["task602_wikitext_103_answer_generation", "task603_wikitext_2"]
    assert tasks_of(found, TRAIN_MIXTURE) == ["task1_x"]


def test_two_files_of_one_task_are_refused(data_dir):
    folder = data_dir({"task1_a-b": _task(3), "task1_a_b": _task(3)})
    with pytest.raises(NaturalInstructionsError, match=r"a-b\.json and .*a_b\.json are both task task1_a_b"):
        family(folder)


@pytest.mark.parametrize(
    ("lists", "expected"),
    [
        ({"train_tasks.txt": "task1_x\ntask2_x\ntask8_not_in_this_copy\n"}, ["task1_x"]),
        ({"excluded_tasks.txt": "task3_x\n"}, ["task1_x", "task4_x"]),
        ({"train_tasks.txt": "task4_x\n", "excluded_tasks.txt": "task3_x\n"}, ["task4_x"]),
        ({}, ["task1_x", "task3_x", "task4_x"]),
    ],
)
def test_the_lists_decide_what_is_trained_on(data_dir, lists, expected):
    folder = data_dir({f"task{n}_x": _task(3) for n in (1, 2, 3, 4)}, test=["task2_x"])
    for name, content in lists.items():
        (Path(folder) / "splits" / "default" / name).write_text(content)
    found = family(folder)
    assert tasks_of(found, TRAIN_MIXTURE) == expected
    assert tasks_of(found, TEST_MIXTURE) == ["task2_x"]


def test_an_address_gives_what_a_folder_gives(data_dir):
    folder = data_dir({f"task{n}_x": _task(5) for n in (1, 2)}, test=["task2_x"])
    memory = fsspec.filesystem("memory")
    memory.put(folder, "/ni", recursive=True)
    try:
        found = family("memory://ni")
        assert found.mixtures == family(folder).mixtures
        assert texts(task_of("memory://ni"), "train") == texts(task_of(folder), "train")
    finally:
        memory.rm("/ni", recursive=True)


def test_the_folder_of_the_published_archive_is_found(data_dir, tmp_path, monkeypatch):
    Path(data_dir({"task1_x": _task(5)})).rename(tmp_path / "natural-instructions-master")
    monkeypatch.setenv("FLANJAX_DATA_DIR", str(tmp_path))
    assert family().mixtures[TRAIN_MIXTURE] == {}
    (tmp_path / "super_natural_instructions").mkdir()
    (tmp_path / "natural-instructions-master").rename(
        tmp_path / "super_natural_instructions" / "natural-instructions-master"
    )
    assert family().mixtures[TRAIN_MIXTURE] == {"task1_x": 1.0}


def test_what_does_not_fit_is_named(data_dir, tmp_path):
    folder = data_dir({"task1_x": _task(3)})
    with pytest.raises(NaturalInstructionsError, match=r"no folder .*nowhere.tasks"):
        family(str(tmp_path / "nowhere"))
    with pytest.raises(NaturalInstructionsError, match=r"encoding='pos3': give one of def, pos2"):
        family(folder, encoding="pos3")
    with pytest.raises(NaturalInstructionsError, match=r"no list of test tasks at .*gone\.txt"):
        family(folder, split_list=str(tmp_path / "gone.txt"))
    with pytest.raises(NaturalInstructionsError, match=r"matches 'task7\*'"):
        family(folder, held_out=["task7*"])


def test_the_published_sample(test_data, t5_spiece, tmp_path):
    """The official test list finds its two tasks in the sample, and real lengths keep to max_source."""
    found = family(str(test_data / "super_natural_instructions"))
    assert tasks_of(found, TEST_MIXTURE) == [
        "task1393_superglue_copa_text_completion",
        "task957_e2e_nlg_text_generation_generate",
    ]
    assert len(tasks_of(found, TRAIN_MIXTURE)) == 57
    options = {"data_dir": str(test_data / "super_natural_instructions"), "max_source": 256}
    materialize(
        mixture="task711_mmmlu_answer_generation_high_school_us_history",
        cache_dir=tmp_path,
        vocabulary=VocabularySource(path=str(t5_spiece)),
        tasks={MODULE: options},
        splits=("validation",),
    )
    task = CachedTask.open(tmp_path, "task711_mmmlu_answer_generation_high_school_us_history", "validation")
    assert len(task) == 10
    assert task.lengths[:, 0].max() <= 257  # a cut text may be tokenised anew into one token more
    assert task.read([0])[0].text["inputs"].startswith("Definition: The following are multiple choice")
