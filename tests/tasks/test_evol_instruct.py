"""WizardLM and WizardCoder: the forms of their files, and the published test instructions."""

import json

import pytest
from flanjax.tasks.evol_instruct import family

from flanjax.data.rendering import rows_of, tokenized
from flanjax.data.sources import BadRow
from flanjax.data.vocabularies import Vocabulary

RECORD = {"instruction": "Sort a list.", "output": "sorted(items)"}
V2 = {
    "idx": "a",
    "conversations": [{"from": "human", "value": "Sort a list."}, {"from": "gpt", "value": "sorted(items)"}],
}
FILES = {
    "wizardlm": ("alpaca_evol_instruct_70k.json", RECORD),
    "wizardlm_v2": ("WizardLM_evol_instruct_V2_143k.json", V2),
    "wizardcoder": ("EvolInstruct-Code-80k.json", RECORD),
}


def _tasks(folder, **options):
    return {task.name: task for task in family(data_dir=str(folder), code_dir=str(folder), **options).tasks}


@pytest.mark.parametrize("name", FILES)
def test_every_file_gives_the_same_text_in_the_style(name, written, texts, tmp_path):
    file, record = FILES[name]
    written(tmp_path / file, [record])
    (plain,) = texts(_tasks(tmp_path, style="plain")[name], "validation")
    assert (plain.inputs, plain.targets) == ("Sort a list.", "sorted(items)")
    (alpaca,) = texts(_tasks(tmp_path)[name], "validation")
    assert alpaca.inputs.endswith("### Instruction:\nSort a list.\n\n### Response:")


def test_a_longer_conversation_is_no_record_of_v2(written, texts, tmp_path):
    file, record = FILES["wizardlm_v2"]
    path = written(tmp_path / file, [{"conversations": record["conversations"] * 2}])
    with pytest.raises(BadRow, match=f"{path}:1: one question and one answer are expected"):
        texts(_tasks(tmp_path)["wizardlm_v2"], "validation")


def test_the_published_test_instructions_have_no_targets_and_no_mixture(test_data, texts):
    prompts = _tasks(test_data / "wizardlm", style="plain")["wizardlm_prompts"]
    lines = (test_data / "wizardlm" / "WizardLM_testset.jsonl").read_text().splitlines()
    made = texts(prompts, "test")
    assert [text.inputs for text in made] == [json.loads(line)["Instruction"] for line in lines]
    assert len(made) == prompts.examples["test"] == 218
    assert {text.targets for text in made} == {""}
    assert made[4].inputs == "f(x) = 6x^2 - 2* x + 0.4, so f(4) ="
    assert set(family().mixtures) == set(FILES)


def test_materialising_leaves_out_what_has_no_target(test_data, t5_spiece):
    prompts = _tasks(test_data / "wizardlm")["wizardlm_prompts"]
    rows = list(rows_of(prompts, "test", seed=0))
    vocabulary = Vocabulary.from_file(t5_spiece)
    made = tokenized(prompts, "test", rows, seed=0, vocabulary=vocabulary, policy="error")
    assert (made.examples, made.dropped_empty_targets) == ([], 218)


@pytest.mark.parametrize("name", FILES)
def test_any_row_gives_text_or_an_error_with_its_place(name, fuzzed, tmp_path):
    file, record = FILES[name]
    fuzzed(_tasks(tmp_path)[name], "validation", tmp_path / file, record)
