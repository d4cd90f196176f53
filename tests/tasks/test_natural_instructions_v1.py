"""The published tasks, every instance once; the authors' encoding to the letter; the paper's evaluation tasks."""

import gzip
import json

import pytest
from flanjax.tasks.natural_instructions_v1 import (
    ENCODINGS,
    EVALUATION_TASKS,
    TASKS,
    TEST_MIXTURE,
    TRAIN_MIXTURE,
    NaturalInstructionsV1Error,
    family,
    read_task,
)

from flanjax.data.records import RecordsError
from flanjax.data.rendering import rows_of, texts_of
from flanjax.data.sources import BadRow, bad_row_policy


class Words:
    def encode(self, text):
        return text.split()

    def decode(self, ids):
        return " ".join(ids)


def texts(task, split, seed=0):
    return [text for _, text in texts_of(task, split, rows_of(task, split, seed=seed), seed=seed, tokenizer=Words())]


def by_name(found):
    return {task.name: task for task in found.tasks}


def test_every_published_instance_is_a_row_once(test_data):
    folder = test_data / "natural_instructions_v1"
    files = sorted((folder / "tasks").glob("*.json.gz"))
    found = family(str(folder), held_out=())
    assert [task.name for task in found.tasks] == [file.name.split(".")[0] for file in files]
    total = 0
    for file, task in zip(files, found.tasks, strict=True):
        published = json.loads(gzip.decompress(file.read_bytes()))
        rows = [row for _, row in read_task(str(file))]
        assert [(row["input"], row["outputs"]) for row in rows] == [
            (instance["input"], instance["output"]) for instance in published["Instances"]
        ]
        assert rows[0]["instructions"]["fields"] == {
            name: published[name] for name in ("Definition", "Prompt", "Things to Avoid", "Emphasis & Caution")
        }
        assert [len(list(rows_of(task, split, seed=0))) for split in task.splits] == [
            len(rows) - -(-len(rows) // 100),
            -(-len(rows) // 100),
        ]
        total += len(rows)
    assert (len(files), total) == (48, 9417)


def test_the_list_of_tasks_has_the_published_names(test_data):
    files = (test_data / "natural_instructions_v1" / "tasks").glob("*.json.gz")
    assert {file.name.split(".")[0] for file in files} < set(TASKS)
    assert len(TASKS) == 61
    assert (TASKS[0], TASKS[60]) == ("subtask001_quoref_question_generation", "subtask061_ropes_answer_generation")


def test_the_evaluation_tasks_are_two_of_each_category(test_data):
    kinds = ("question_generation", "wrong_answer_generation", "winogrande_answer_generation", "question_modification")
    assert [sum(kind in task for task in EVALUATION_TASKS) for kind in kinds] == [2, 2, 1, 1]
    assert len(EVALUATION_TASKS) == 12
    found = family(str(test_data / "natural_instructions_v1"))
    # subtask002 is not in this copy
    assert set(found.mixtures[TEST_MIXTURE]) == set(EVALUATION_TASKS) - {"subtask002_quoref_answer_generation"}
    assert set(found.mixtures[TRAIN_MIXTURE]) == {task.name for task in found.tasks} - set(EVALUATION_TASKS)


def test_a_rendered_published_example(test_data):
    found = by_name(family(str(test_data / "natural_instructions_v1"), encoding="full"))
    text = texts(found["subtask039_qasc_find_overlapping_words"], "test")[0]
    assert text.inputs == (
        "Definition: Generate an overlapping word between the given two sentences. When you find the overlapping words,"
        ' they don\'t have to match exactly, e.g., "survival" and "survive" are valid overlapping words.\n'
        "Prompt: Write down an overlapping word between the given two sentences.\n"
        'Things to Avoid: Little words like "the" or "of" don\'t count! You must generate significant words which are '
        "not the stop words.\n"
        "Negative Example1- \n"
        "input: Sentence1: soil is formed by rocks eroding. \nSentence2: rain can help form soil.\n"
        "output: soil, form, formed.\n"
        'reason: Here Sentence1 contains "formed" and Sentence2 contains "form". As per the given instructions, they '
        'should be treated as the same because of their same base form. A good answer would have been either "soil" or '
        '"form".\n'
        "Negative Example2- \n"
        "input: Sentence1: a protractor is used for measuring the angles of a triangular object. \n"
        "Sentence2: a prism has a triangular shape.\n"
        "output: a, triangular.\n"
        'reason: Even though the word "a" is also common, it is better not to be reported since it adds very little to '
        "the meaning. So, it's a bad answer.\n"
        "Positive Example1- \n"
        "input: Sentence1: pesticides cause pollution. \nSentence2: pollution can harm animals.\n"
        "output: pollution.\n"
        'reason: The word "pollution" is common to Sentence1 and Sentence2. So, it\'s a good answer.\n'
        "Positive Example2- \n"
        "input: Sentence1: a solar panel converts sunlight into electricity. \n"
        "Sentence2: sunlight comes from the sun.\n"
        "output: sunlight.\n"
        'reason: The word "sunlight" is common to both sentences. So, it\'s a good answer.\n'
        "input: Sentence1: Parasites are organisms that live off a host. \n"
        "Sentence2: roundworms may be free-living or live off a host.\n"
        "output:"
    )
    assert (text.targets, len(text.references)) == ("host", 3)
    assert text.id == "subtask039_qasc_find_overlapping_words-1"


TASK = {
    **{"Title": "t", "Prompt": "Answer. ", "Definition": "Define it.", "Things to Avoid": "-"},
    "Emphasis & Caution": "Be careful.",
    "Examples": {
        "Positive Examples": [{"input": f"p{n}", "output": f"q{n}", "reason": f"r{n}"} for n in range(3)],
        "Negative Examples": [{"input": "n", "output": "m", "reason": "bad", "suggestion": "do better"}],
    },
    "Instances": [{"input": f"i{n}", "output": ["a", "b", "c"]} for n in range(20)],
}


@pytest.fixture
def write(tmp_path):
    def written(task=TASK, name="subtask001_x"):
        (tmp_path / "tasks").mkdir(exist_ok=True)
        (tmp_path / "tasks" / f"{name}.json").write_text(task if isinstance(task, str) else json.dumps(task))
        return str(tmp_path)

    return written


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("none", "input: i0\noutput:"),
        ("prompt", "Prompt: Answer.\ninput: i0\noutput:"),
        ("prompt_definition", "Definition: Define it.\nPrompt: Answer.\ninput: i0\noutput:"),
        ("prompt_avoid", "Prompt: Answer.\ninput: i0\noutput:"),
        ("prompt_caution", "Prompt: Answer.\nEmphasis & Caution: Be careful.\ninput: i0\noutput:"),
        (
            "no_examples",
            "Definition: Define it.\nPrompt: Answer.\nEmphasis & Caution: Be careful.\ninput: i0\noutput:",
        ),
        ("positives", "input: p0\noutput: q0\ninput: p1\noutput: q1\ninput: i0\noutput:"),
        (
            "prompt_definition_positives",
            "Definition: Define it.\nPrompt: Answer.\ninput: p0\noutput: q0\ninput: p1\noutput: q1\ninput: i0\noutput:",
        ),
        (
            "full",
            "Definition: Define it.\nPrompt: Answer.\nEmphasis & Caution: Be careful.\n"
            "Negative Example1- \ninput: n\noutput: m\nreason: bad\nsuggestion: do better\n"
            "Positive Example1- \ninput: p0\noutput: q0\nreason: r0\n"
            "Positive Example2- \ninput: p1\noutput: q1\nreason: r1\ninput: i0\noutput:",
        ),
    ],
)
def test_the_encodings(write, encoding, expected):
    assert set(ENCODINGS) >= {encoding}
    (task,) = family(write(), encoding=encoding, held_out=()).tasks
    assert texts(task, "validation")[0].inputs == expected


def test_examples_that_do_not_fit_are_left_out_and_what_is_too_long_is_cut(write):
    folder = write()
    whole = texts(family(folder, held_out=()).tasks[0], "validation")[0].inputs
    for max_source in range(4, len(whole.split()) + 2):
        text = texts(family(folder, held_out=(), max_source=max_source).tasks[0], "validation")[0]
        assert len(text.inputs.split()) + 1 <= max_source
    assert text.inputs == whole
    shorter = texts(family(folder, held_out=(), max_source=len(whole.split())).tasks[0], "validation")[0]
    assert "Positive Example1-" in shorter.inputs
    assert "Positive Example2-" not in shorter.inputs
    assert shorter.inputs.endswith("input: i0\noutput:")


def test_training_draws_an_output_and_evaluation_has_them_all(write):
    (task,) = family(write(), held_out=()).tasks
    drawn = [text.targets for text in texts(task, "train")]
    assert set(drawn) == {"a", "b", "c"}
    assert drawn == [text.targets for text in texts(task, "train")]
    assert drawn != [text.targets for text in texts(task, "train", seed=1)]
    assert [(text.targets, text.references) for text in texts(task, "validation")] == [("a", ("a", "b", "c"))]


def test_patterns_hold_tasks_out(write):
    write(name="subtask003_mctaco_y")
    folder = write(name="subtask039_qasc_z")
    found = family(folder, held_out="*_mctaco_*", test_instances_per_task=5)
    assert set(found.mixtures[TEST_MIXTURE]) == {"subtask003_mctaco_y"}
    assert set(found.mixtures[TRAIN_MIXTURE]) == {"subtask039_qasc_z"}
    held_out = by_name(found)["subtask003_mctaco_y"]
    assert held_out.splits == ("test", "validation")
    assert [text.inputs.splitlines()[-2] for text in texts(held_out, "test")] == [f"input: i{n}" for n in range(5)]
    with pytest.raises(NaturalInstructionsV1Error, match=r"held_out: no task matches '\*_drop2_\*'"):
        family(folder, held_out=["*_drop2_*"])
    with pytest.raises(NaturalInstructionsV1Error, match=r"encoding='pos': give one of none, prompt"):
        family(folder, encoding="pos")


def test_training_instances_can_be_capped(write):
    (task,) = family(write(), held_out=(), train_instances_per_task=7).tasks
    assert [len(texts(task, split)) for split in task.splits] == [6, 1]


def test_a_folder_without_tasks_is_refused(tmp_path):
    with pytest.raises(RecordsError, match="there is no such file"):
        family(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Definition": None}, r"subtask001_x\.json:1: field 'Definition' must be a string"),
        ({"Examples": []}, r"field 'Examples' must be an object"),
        ({"Examples": {"Positive Examples": []}}, r"field 'Negative Examples' must be a list"),
        ({"Examples": TASK["Examples"] | {"Positive Examples": ["x"]}}, r"Positive Examples, number 1: an object is"),
        ({"Instances": {}}, r"field 'Instances' must be a list"),
    ],
)
def test_a_file_that_is_no_task_is_never_skipped(write, change, message):
    (task,) = family(write(TASK | change), held_out=()).tasks
    with bad_row_policy("skip"), pytest.raises(BadRow, match=message):
        texts(task, "train")


@pytest.mark.parametrize("content", ["", "[]", "{"])
def test_a_file_that_holds_nothing_is_named(write, content):
    (task,) = family(write(content), held_out=()).tasks
    with bad_row_policy("skip"), pytest.raises(BadRow, match=r"subtask001_x\.json"):
        texts(task, "train")


def test_a_malformed_instance_is_named_and_skipped_as_the_policy_says(write):
    instances = [
        {"input": "a", "output": "b"},
        {"input": "a", "output": []},
        {"output": ["b"]},
        7,
        TASK["Instances"][0],
    ]
    (task,) = family(write(TASK | {"Instances": instances}), held_out=()).tasks
    with pytest.raises(BadRow, match=r"subtask001_x\.json:1: instance 2: field 'output' must be"):
        texts(task, "train")
    with bad_row_policy("skip") as bad:
        assert [text.targets for text in texts(task, "validation")] == ["b"]
        assert len(texts(task, "train")) == 1
    assert bad.skipped == 6  # three, in each of the two splits
