"""InstructionWild: the published instructions, which have no answers, and the file of those that do."""

import json

import pytest
from flanjax.tasks.instruction_wild import family

from flanjax.data.sources import BadRow

RECORD = {"instruction": "Write a haiku.", "input": "", "output": "Old pond"}


def _tasks(folder, **options):
    return {task.name: task for task in family(data_dir=str(folder), **options).tasks}


@pytest.mark.parametrize(
    ("name", "file"),
    [("instruction_wild_seed", "data/seed_prompts_en.jsonl"), ("instruction_wild_v2", "data_v2/user_1.jsonl")],
)
def test_the_published_instructions_are_prompts_without_targets(name, file, test_data, texts):
    folder = test_data / "instruction_wild"
    made = texts(_tasks(folder, style="plain")[name], "test")
    lines = (folder / file).read_text().splitlines()
    assert [text.inputs for text in made] == [json.loads(line)["instruction"] for line in lines]
    assert len(made) == 429
    assert {text.targets for text in made} == {""}
    assert made[1].inputs == "What is there one of in every corner and two of in every room?"


def test_the_answered_instructions_are_the_mixtures(written, texts, tmp_path):
    written(tmp_path / "instinwild_en.json", [RECORD])
    written(tmp_path / "data" / "instinwild_ch.json", [{**RECORD, "output": "古池"}])
    tasks = _tasks(tmp_path, style="plain")
    assert [text.targets for text in texts(tasks["instruction_wild"], "validation")] == ["Old pond"]
    assert [text.targets for text in texts(tasks["instruction_wild_zh"], "validation")] == ["古池"]
    assert set(family().mixtures) == {"instruction_wild", "instruction_wild_zh"}


def test_all_files_of_users_are_read_and_a_broken_line_is_named(written, texts, tmp_path):
    written(tmp_path / "data_v2" / "user_1.jsonl", [{"instruction": "One"}])
    second = tmp_path / "data_v2" / "user_2.jsonl"
    second.write_text('{"instruction": "Two"}\n{"instruction": "Three"\n')
    task = _tasks(tmp_path)["instruction_wild_v2"]
    with pytest.raises(BadRow, match=rf"{second}:2: not JSON"):
        texts(task, "test")
    written(second, [{"instruction": "Two"}])
    assert len(texts(task, "test")) == 2


def test_any_row_gives_text_or_an_error_with_its_place(fuzzed, tmp_path):
    tasks = _tasks(tmp_path)
    fuzzed(tasks["instruction_wild"], "validation", tmp_path / "instinwild_en.json", RECORD)
    fuzzed(tasks["instruction_wild_v2"], "test", tmp_path / "user_1.jsonl", {"instruction": "Go"})
