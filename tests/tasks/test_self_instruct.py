"""Self-Instruct's published seed and test tasks, field by field; both training files; Unnatural Instructions."""

import json

import pytest
from flanjax.tasks.self_instruct import family

from flanjax.data.sources import BadRow

MADE = {"instruction": "Name the capital.", "input": "France", "output": "Paris"}
UNNATURAL = {
    "instruction": "Say what the animal eats.",
    "instances": [
        {
            "input": "A cow stands there.",
            "instruction_with_input": "Say what the animal eats.\nA cow stands there.",
            "constraints": "The output must be one word.",
            "output": "Grass",
        },
        {
            "input": "A cat lies there.",
            "instruction_with_input": "Say what the animal eats.\nA cat lies there.",
            "constraints": "None.",
            "output": "Mice",
        },
    ],
    "reformulations": [
        {
            "instruction": "What does it eat? {INPUT}",
            "input": "A cow stands there.",
            "instruction_with_input": "What does it eat? A cow stands there.",
            "output": "Grass",
        }
    ],
}


def _tasks(**options):
    return {task.name: task for task in family(**options).tasks}


@pytest.mark.parametrize(
    ("file", "name", "split", "count"),
    [
        ("user_oriented_instructions.jsonl", "self_instruct", "test", 252),
        ("seed_tasks.jsonl", "self_instruct_seed", "train", 175),
    ],
)
def test_every_instance_of_the_published_tasks_is_a_row(file, name, split, count, test_data, texts):
    task = _tasks(data_dir=str(test_data / "self_instruct"))[name]
    records = [json.loads(line) for line in (test_data / "self_instruct" / file).read_text().splitlines()]
    instances = [(record["instruction"], instance) for record in records for instance in record["instances"]]
    made = texts(task, split)
    assert len(made) == len(instances) == count == task.examples[split]
    for text, (instruction, instance) in zip(made, instances, strict=True):
        assert text.inputs == (f"{instruction}\n\n{instance['input']}" if instance["input"] else instruction)
        assert text.targets == instance["output"]


def test_one_published_example_as_text(test_data, texts):
    text = texts(_tasks(data_dir=str(test_data / "self_instruct"))["self_instruct_seed"])[1]
    assert text.inputs == "What is the relation between the given pairs?\n\nNight : Day :: Right : Left"
    assert text.targets == "The relation between the given pairs is that they are opposites."


def test_the_instances_file_is_in_the_style_and_the_finetuning_file_as_it_is(written, texts, tmp_path):
    file = written(tmp_path / "all_instances_82K.jsonl", [MADE])
    (text,) = texts(_tasks(data_dir=str(tmp_path))["self_instruct"], "validation")
    assert (text.inputs, text.targets) == ("Name the capital.\n\nFrance", "Paris")
    prompt = {"prompt": "Task: Name the capital.\nInput: France\nOutput:", "completion": " Paris<|endoftext|>"}
    file = written(tmp_path / "gpt3_finetuning_data.jsonl", [prompt])
    task = _tasks(data_dir=file)["self_instruct"]
    (text,) = texts(task, "validation")
    assert (text.inputs, text.targets) == (prompt["prompt"], "Paris")
    assert task.splits == ("train", "validation"), "a file alone has no test tasks"


def test_unnatural_instructions_are_as_the_authors_joined_them(written, texts, tmp_path):
    written(tmp_path / "core_data.jsonl", [{key: UNNATURAL[key] for key in ("instruction", "instances")}])
    written(tmp_path / "full_data.jsonl", [UNNATURAL])
    tasks = _tasks(unnatural_dir=str(tmp_path))
    core = texts(tasks["unnatural_instructions"], "validation") + texts(tasks["unnatural_instructions"])
    assert [(text.inputs, text.targets) for text in core] == [
        ("Say what the animal eats.\nA cow stands there.\nConstraints: The output must be one word.", "Grass"),
        ("Say what the animal eats.\nA cat lies there.", "Mice"),
    ]
    full = texts(tasks["unnatural_instructions_full"], "validation") + texts(tasks["unnatural_instructions_full"])
    assert full[:2] == core
    assert [(text.inputs, text.targets) for text in full[2:]] == [("What does it eat? A cow stands there.", "Grass")]
    bare = _tasks(unnatural_dir=str(tmp_path), constraints=False)["unnatural_instructions"]
    assert "Constraints" not in texts(bare, "validation")[0].inputs


def test_an_instruction_and_its_paraphrases_are_on_one_side(written, texts, tmp_path):
    written(tmp_path / "full_data.jsonl", [UNNATURAL] * 101)
    full = _tasks(unnatural_dir=str(tmp_path))["unnatural_instructions_full"]
    assert [len(texts(full, split)) for split in ("train", "validation")] == [3 * 99, 3 * 2]


def test_a_task_without_instances_is_a_bad_row(written, texts, tmp_path):
    file = written(tmp_path / "seed_tasks.jsonl", [{"instruction": "Go", "instances": "none"}])
    with pytest.raises(BadRow, match=f"{file}:1: field 'instances' must be a list of objects"):
        texts(_tasks(data_dir=str(tmp_path))["self_instruct_seed"])


def test_the_mixtures_are_the_trainable_tasks():
    assert set(family().mixtures) == {"self_instruct", "unnatural_instructions", "unnatural_instructions_full"}


@pytest.mark.parametrize(
    ("name", "split", "file", "record"),
    [
        ("self_instruct", "validation", "all_instances_82K.jsonl", MADE),
        ("self_instruct", "validation", "all_instances_82K.jsonl", {"prompt": "Go", "completion": "Gone"}),
        ("self_instruct_seed", "train", "seed_tasks.jsonl", {"instruction": "Go", "instances": [MADE]}),
        ("unnatural_instructions_full", "validation", "full_data.jsonl", UNNATURAL),
    ],
)
def test_any_row_gives_text_or_an_error_with_its_place(name, split, file, record, fuzzed, tmp_path):
    tasks = _tasks(data_dir=str(tmp_path), unnatural_dir=str(tmp_path))
    fuzzed(tasks[name], split, tmp_path / file, record)
