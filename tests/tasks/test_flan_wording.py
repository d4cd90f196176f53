"""The project's wording: every template renders, none is a published one, and hidden options are not spoken of."""

import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys

import pytest
from flanjax.tasks.flan_wording import TASK_TYPES, task_type

from flanjax.data.draws import Draw
from flanjax.data.prompts import Arm, PromptError, render_arm
from flanjax.data.tasks import Context
from flanjax.data.vocabularies import Vocabulary

FIELDS = {
    "nli": ("premise", "hypothesis"),
    "sentiment": ("text",),
    "reading_qa": ("context", "question"),
    "closed_qa": ("question",),
    "multiple_choice": ("question",),
    "passage_choice": ("context", "question"),
    "boolean_qa": ("context", "question"),
    "paraphrase": ("sentence1", "sentence2"),
    "sentence_similarity": ("sentence1", "sentence2"),
    "summarization": ("document",),
    "headline": ("document",),
    "data_to_text": ("data",),
    "concepts_to_text": ("concepts",),
    "translation": ("source", "source_language", "target_language"),
    "coreference": ("text", "pronoun"),
    "winogrande": ("text",),
    "word_sense": ("word", "sentence1", "sentence2"),
    "acceptability": ("text",),
    "topic": ("text",),
    "question_type": ("question",),
    "story_completion": ("context",),
    "physical_choice": ("goal",),
    "commonsense_cause": ("premise", "question"),
    "conversational_qa": ("context", "history", "question"),
    "entity_cloze": ("context", "query"),
    "true_case": ("text",),
    "fix_punctuation": ("text",),
    "word_segment": ("text",),
    "math": ("question",),
    "cot": ("question",),
    "cot_inversion": ("question",),
    "dialog_reply": ("history",),
    "dialog_inversion": ("history",),
    "last_word": ("context",),
    "t0_question_answer": ("prompt",),
    "t0_multiple_choice": ("prompt",),
    "t0_separated_options": ("prompt",),
    "natinst": ("definition", "input"),
}
WITH_OPTIONS = {
    *("nli", "sentiment", "multiple_choice", "passage_choice", "boolean_qa", "paraphrase", "sentence_similarity"),
    *("coreference", "winogrande", "word_sense", "acceptability", "topic", "question_type", "story_completion"),
    *("physical_choice", "commonsense_cause", "entity_cloze", "t0_separated_options"),
}
OPTION_WORDING = re.compile(
    r"\b(options?|choices?|choos\w+|select\w*|pick\w*|alternatives?|candidates?|list(ed)?|which of|one of th[eo]se)\b",
    re.IGNORECASE,
)


class Words:
    def encode(self, text):
        return text.split()


def an_instance(type, number=0):
    """Fields that are pairwise different and hold nothing that a template says."""
    turns = {"history": [f"Zefta {number}.", f"Zefto {number}."]} if "history" in type.fields else {}
    fields = {name: f"zq{name}{number}" for name in type.fields if name != "history"}
    return {**fields, **turns, "options": ["zyes", "zno"], "answer": "zyes", "rationale": f"zbecause{number}"}


def rendered(type, arm, seed=0, number=0):
    context = Context(draw=Draw(type.name, arm, seed), split="train", tokenizer=Words(), seed=seed, place="here")
    pool = [an_instance(type, other) for other in range(1, 9)]
    return render_arm(type, an_instance(type, number), context, arm, pool)


def test_the_types_are_those_that_datasets_count_on():
    assert {name: type.fields for name, type in TASK_TYPES.items()} == FIELDS
    assert {name for name, type in TASK_TYPES.items() if type.has_options} == WITH_OPTIONS
    assert {name for name, type in TASK_TYPES.items() if type.rationale} == {"cot", "cot_inversion"}
    assert all(task_type(name).name == name for name in FIELDS)


def test_an_unknown_type_is_named_with_the_nearest():
    with pytest.raises(PromptError, match=r"no task type 'sentimant' \(did you mean 'sentiment'\?\)"):
        task_type("sentimant")


@pytest.mark.parametrize("type", TASK_TYPES.values(), ids=TASK_TYPES)
def test_a_type_has_ten_templates_in_every_form(type):
    assert len(type.templates) >= 10
    assert len({(template.inputs, template.targets) for template in type.templates}) == len(type.templates)
    assert len(type.few_shot) == len(type.templates)
    if type.has_options:
        assert len(type.hidden) == len(type.few_shot_hidden) == len(type.templates)
    inverted = [template for template in type.templates if "{answer}" not in template.targets]
    if not type.name.endswith("_inversion"):
        assert len(inverted) <= 3
    asked = [template for template in type.templates if "{answer}" in template.targets]
    assert all(template.shows_options == type.has_options for template in asked)
    assert not any(template.shows_options for template in (*type.hidden, *type.few_shot_hidden, *inverted))


@pytest.mark.parametrize("type", TASK_TYPES.values(), ids=TASK_TYPES)
def test_every_template_renders_in_every_arm(type):
    for arm in Arm:
        for template in type.forms(arm):
            only = dict.fromkeys(("templates", "few_shot"), (template,))
            hidden = dict.fromkeys(("hidden", "few_shot_hidden"), (template,)) if type.hidden else {}
            text = rendered(dataclasses.replace(type, **only, **hidden), arm)
            whole = text.inputs + text.targets
            assert text.targets.strip()
            assert "{" not in whole
            asked = template.field_names() - {"answer", "options", "dialog", "history"}
            for name in asked:
                assert an_instance(type)[name] in whole
            if {"dialog", "history"} & template.field_names():
                assert "Zefta 0." in whole
                assert "Zefto 0." in whole


@pytest.mark.parametrize("name", sorted(WITH_OPTIONS))
def test_hidden_options_are_not_spoken_of(name):
    for arm in (Arm.ZSNOOPT, Arm.FSNOOPT):
        texts = [rendered(task_type(name), arm, seed) for seed in range(80)]
        assert not [text.inputs for text in texts if OPTION_WORDING.search(text.inputs) or "zno" in text.inputs]


@pytest.mark.parametrize("name", sorted(WITH_OPTIONS))
def test_shown_options_are_whole(name):
    for arm in (Arm.ZSOPT, Arm.FSOPT_FIVE, Arm.FSOPT_X):
        texts = [rendered(task_type(name), arm, seed) for seed in range(40)]
        asked = [text for text in texts if "zno" in text.inputs]
        assert len(asked) > 20
        assert all("zyes" in text.inputs for text in asked)


def normalised(text):
    """Words and the order of fields, whatever their names, marks and spaces."""
    return " ".join(re.findall(r"\w+|\{\}", re.sub(r"\{+[^}]*\}+", "{}", text.lower())))


def test_no_template_is_a_published_one_of_flan(test_data):
    published = set()
    for file in (test_data / "flan").glob("v*_templates*.json"):
        tables = json.loads(file.read_text())
        for table in ("PATTERNS", "INLINE_FS_PATTERNS"):
            published |= {normalised(inputs) for pairs in tables.get(table, {}).values() for inputs, _ in pairs}
        for patterns in tables.get("FEWSHOT_PATTERNS", {}).values():
            published |= {normalised(pattern["inputs"]) for pattern in patterns}
    assert len(published) > 1000
    assert copied_from(published) == []


def test_no_template_is_a_published_one_of_promptsource(test_data):
    from flanjax.data.promptsource import read_promptsource

    files = (test_data / "promptsource" / "templates").rglob("templates.yaml")
    templates = [template for file in files for template in read_promptsource(str(file)).values()]
    published = {normalised(template.jinja.partition("|||")[0]) for template in templates}
    assert len(published) > 1000
    assert copied_from(published) == []


def copied_from(published):
    """Our inputs that are published ones; fields alone, without a word, are nobody's."""
    ours = [
        template.inputs
        for type in TASK_TYPES.values()
        for template in (*type.templates, *type.hidden, *type.few_shot, *type.few_shot_hidden)
        if re.search(r"\w", re.sub(r"\{[^}]*\}", "", template.inputs))
    ]
    return sorted({text for text in ours if normalised(text) in published})


OPINIONS = [
    {"text": text, "options": ["positive", "negative"], "answer": answer}
    for text, answer in (
        *(("A joy to watch.", "positive"), ("Two wasted hours.", "negative"), ("Warm and clever.", "positive")),
        *(("It never ends.", "negative"), ("See it twice.", "positive"), ("I left early.", "negative")),
        ("A small marvel.", "positive"),
    )
]
QUESTIONS = [
    {"question": "Can a fish climb a tree?", "rationale": "Fish have no limbs.", "answer": "no"},
    {"question": "Is ice lighter than water?", "rationale": "Ice floats on water.", "answer": "yes"},
    {"question": "Do cats lay eggs?", "rationale": "Cats are mammals.", "answer": "no"},
]
TALKS = [
    {"history": ["Is it far?", "Ten minutes."], "answer": "Let us walk."},
    {"history": ["Tea or coffee?"], "answer": "Tea, please."},
    {"history": ["I lost my key."], "answer": "Look in your coat."},
]


@pytest.mark.parametrize(
    ("name", "arm", "pool", "inputs", "targets"),
    [
        (
            *("sentiment", Arm.ZSOPT, OPINIONS),
            "A joy to watch.\nName the attitude of the author.\n"
            "Choose your answer from:\n(i). positive.\n(ii). negative.\nAttitude:",
            "(i).",
        ),
        (
            *("sentiment", Arm.ZSNOOPT, OPINIONS),
            *("A joy to watch.\nWhat does the writer feel about it?\nFeeling:", "positive"),
        ),
        (
            *("sentiment", Arm.FSOPT_FIVE, OPINIONS),
            'Problem: "Two wasted hours." Is whoever wrote this pleased?\nOPTIONS:\n- positive\n- negative\n'
            "Solution: negative\n"
            "Opinion: A small marvel.\nOPTIONS:\n- positive\n- negative\nSentiment: positive\n"
            "Warm and clever.\nWhat does the writer feel about it?\nOPTIONS:\n- positive\n- negative\npositive\n"
            'Problem: "It never ends." Is whoever wrote this pleased?\nOPTIONS:\n- positive\n- negative\n'
            "Solution: negative\n"
            'Problem: "I left early." Is whoever wrote this pleased?\nOPTIONS:\n- positive\n- negative\n'
            "Solution: negative\n"
            "Opinion: A joy to watch.\nOPTIONS:\n- positive\n- negative\nSentiment:",
            "positive",
        ),
        (
            *("sentiment", Arm.FSOPT_X, OPINIONS),
            "It never ends.\nWhat does the writer feel about it?\nOPTIONS:\n- positive\n- negative\nnegative\n\n"
            "Two wasted hours.\nWhat does the writer feel about it?\nOPTIONS:\n- positive\n- negative\nnegative\n\n"
            "A joy to watch.\nWhat does the writer feel about it?\nOPTIONS:\n- positive\n- negative\n",
            "positive",
        ),
        (
            *("sentiment", Arm.FSNOOPT, OPINIONS),
            "Would the person who says this recommend it or warn of it? Two wasted hours.\n=> negative\n\n"
            "Would the person who says this recommend it or warn of it? I left early.\n=> negative\n\n"
            "Would the person who says this recommend it or warn of it? A joy to watch.\n=>",
            "positive",
        ),
        (
            *("cot", Arm.ZSOPT, QUESTIONS),
            *("A teacher solves this on the blackboard: Can a fish climb a tree?", "Fish have no limbs.\nResult: no"),
        ),
        (
            *("cot", Arm.FSOPT_X, QUESTIONS),
            "Question: Is ice lighter than water?\nReasoning and answer: Ice floats on water.\nAnswer: yes\n\n"
            "Question: Do cats lay eggs?\nReasoning and answer: Cats are mammals.\nAnswer: no\n\n"
            "Question: Can a fish climb a tree?\nReasoning and answer:",
            "Fish have no limbs.\nAnswer: no",
        ),
        (
            *("cot_inversion", Arm.ZSOPT, QUESTIONS),
            *("Justify no as the answer to this: Can a fish climb a tree?", "Fish have no limbs."),
        ),
        (
            *("cot_inversion", Arm.FSOPT_X, QUESTIONS),
            "Think of a question with the answer yes, and of the way to it.\n"
            "Is ice lighter than water?\nReasoning: Ice floats on water.\n\n"
            "Think of a question with the answer no, and of the way to it.\n"
            "Do cats lay eggs?\nReasoning: Cats are mammals.\n\n"
            "Think of a question with the answer no, and of the way to it.\n",
            "Can a fish climb a tree?\nReasoning: Fish have no limbs.",
        ),
        (
            *("dialog_reply", Arm.ZSOPT, TALKS),
            *("Conversation transcript:\nSpeaker A) Is it far?\nSpeaker B) Ten minutes.\nSpeaker A)", "Let us walk."),
        ),
        (
            *("dialog_reply", Arm.FSOPT_X, TALKS),
            "DIALOG:\n- I lost my key.\n- Look in your coat.\n\nDIALOG:\n- Tea or coffee?\n- Tea, please.\n\n"
            "DIALOG:\n- Is it far?\n- Ten minutes.\n-",
            "Let us walk.",
        ),
        (
            *("dialog_inversion", Arm.ZSOPT, TALKS),
            "Think of an exchange that leads to this remark: Let us walk.",
            "DIALOG:\n- Is it far?\n- Ten minutes.",
        ),
    ],
)
def test_each_arm_as_literal_text(name, arm, pool, inputs, targets):
    context = Context(draw=Draw(name, arm, 1), split="train", tokenizer=Words(), seed=0, place="here")
    text = render_arm(task_type(name), pool[0], context, arm, pool)
    assert (text.inputs, text.targets) == (inputs, targets)


def test_t5_can_read_every_template(t5_spiece):
    vocabulary = Vocabulary.from_file(t5_spiece)
    for type in TASK_TYPES.values():
        for template in (*type.templates, *type.hidden, *type.few_shot, *type.few_shot_hidden):
            for text in (template.solved(an_instance_of_words(template)), template.separator):
                assert vocabulary.unk_id not in vocabulary.encode(text), text


def an_instance_of_words(template):
    return dict.fromkeys(template.field_names(), "word")


def all_texts():
    return hashlib.sha256(
        "\0".join(
            f"{text.inputs}\0{text.targets}"
            for type in TASK_TYPES.values()
            for arm in Arm
            for seed in range(4)
            for text in [rendered(type, arm, seed)]
        ).encode()
    ).hexdigest()


def test_another_process_gives_the_same_text():
    program = f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r})\nimport test_flan_wording as module"
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\nprint(module.all_texts())"],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "3"},
    )
    assert done.stdout.strip() == all_texts()


def test_importing_the_wording_imports_no_framework():
    program = "import sys, flanjax.tasks.flan_wording; print({'jax', 'tensorflow', 'seqio'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
