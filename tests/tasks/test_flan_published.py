"""FLAN's wording from a user's copy renders our instances, as that copy has it."""

import json

import pytest
from flanjax.tasks.flan_published import KEYS, published_types
from flanjax.tasks.flan_wording import TASK_TYPES

from flanjax.data.draws import Draw
from flanjax.data.prompts import Arm, PromptError, render_arm
from flanjax.data.tasks import Context


class Words:
    def encode(self, text):
        return text.split()


@pytest.fixture(scope="module")
def types(test_data):
    folder = test_data / "flan"
    return published_types(str(folder / "v2_templates.json"), branched=str(folder / "v2_templates_branched.json"))


def an_instance(type, number):
    fields = {name: f"{name} {number}" for name in type.fields if name != "history"}
    return {**fields, "options": ["yes", "no"], "answer": "yes", "rationale": "so", "history": [f"hi {number}"]}


def rendered(type, arm, seed):
    context = Context(draw=Draw(type.name, arm, seed), split="train", tokenizer=Words(), seed=seed, place="here")
    pool = [an_instance(type, number) for number in range(1, 8)]
    return render_arm(type, an_instance(type, 0), context, arm, pool)


def test_all_keys_are_in_the_published_file(types):
    assert set(types) == set(KEYS)
    assert len(types) == 80


def test_the_fields_and_options_are_those_of_our_type(types):
    for key, (name, _) in KEYS.items():
        assert types[key].fields == TASK_TYPES[name].fields
        assert types[key].has_options == TASK_TYPES[name].has_options, key
        assert types[key].rationale == TASK_TYPES[name].rationale, key
        assert len(types[key].templates) >= 6


def test_every_arm_renders(types):
    for type in types.values():
        for arm in Arm:
            for seed in range(10):
                text = rendered(type, arm, seed)
                assert text.targets.strip()
                assert "{" not in text.inputs + text.targets


@pytest.mark.parametrize(
    ("key", "published"),
    [
        ("trivia_qa", {"question": "question 0", "answer": "yes"}),
        ("cnn_dailymail", {"text": "document 0", "highlights": "yes"}),
        ("wiki_lingua_english_en", {"source": "document 0", "target": "yes"}),
        (
            "wmt14_enfr",
            {"sent1": "source 0", "sent2": "yes", "lang1": "source_language 0", "lang2": "target_language 0"},
        ),
    ],
)
def test_zero_shot_text_is_the_published_template(types, test_data, key, published):
    patterns = json.loads((test_data / "flan" / "v2_templates.json").read_text())["PATTERNS"]
    texts = [rendered(types[key], Arm.ZSOPT, seed) for seed in range(120)]
    expected = {(inputs.format(**published), targets.format(**published)) for inputs, targets in patterns[key]}
    assert {(text.inputs, text.targets) for text in texts} == expected


def test_a_file_without_the_keys_has_no_types(tmp_path):
    (tmp_path / "own.json").write_text(json.dumps({"PATTERNS": {"other": [["{a}", "{answer}"]]}}))
    assert published_types(str(tmp_path / "own.json")) == {}
    (tmp_path / "own.json").write_text(json.dumps({"PATTERNS": {"rte": [["{a}", "{answer}"]]}}))
    with pytest.raises(PromptError, match="rte: all templates ask for more than premise, hypothesis"):
        published_types(str(tmp_path / "own.json"))
