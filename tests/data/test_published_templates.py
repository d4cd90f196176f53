"""A copy of FLAN's templates, in Python or JSON, becomes task types; nothing of the copy is run."""

import json

import pytest

from flanjax.data.draws import Draw
from flanjax.data.prompts import Arm, PromptError, TypeTemplate, render_arm
from flanjax.data.published_templates import flan_key, read_flan_templates, with_names
from flanjax.data.tasks import Context

OWN = {
    "PATTERNS": {
        "facts": [
            ["Given {fact}:\n{claim}?\n\n{options_}", "{answer}"],
            ["{claim}\n{options_}\nPick one.", "{answer}"],
            ["Claim something.", "{claim}"],
        ],
        "news": [["{text}\nShort:", "{summary}"], ["{text} TLDR", " {summary}"], ["Expand {summary}", "{text}"]],
        "chat": [["{dialog_}", "{answer}"], ["Before {answer}?", "{dialog_}"]],
        "sums": [["{question}", "{chain_of_thought} So {answer}."], ["{question} Why?", "{cot}"]],
    },
    "FEWSHOT_PATTERNS": {
        "facts": [
            {"inputs": "{claim} ({options_})", "targets": "{answer}", "inputs_prefix": "C: ", "targets_prefix": "T: "},
            {
                **{"inputs": "{fact}", "targets": "{claim}", "x_y_delimiter": " => ", "example_separator": "\n"},
                **{"in_template_mix": False, "input_pattern": "About {{claim}}.\n{{inputs}}{final_suffix}"},
            },
        ]
    },
    "INLINE_FS_PATTERNS": {"facts": [["{ex_claim} was {ex_answer}. And {claim}?", "{answer}"]]},
}
OLDER = {"PATTERNS": {"facts": [["Is {claim} so?\n{options_}", "{answer}"], *OWN["PATTERNS"]["facts"][1:]]}}
PYTHON = '''
"""Templates."""
import os
os.makedirs("/nowhere/at/all")
raise SystemExit("this file was run")
PATTERNS = %r
@dataclasses.dataclass
class FewShotPattern:
  inputs: str
FEWSHOT_PATTERNS = {"facts": [%s]}
FEWSHOT_PATTERNS["other"] = FEWSHOT_PATTERNS["facts"]
PATTERNS["other"] = PATTERNS["facts"]
PATTERNS_NO_OPTIONS = copy.deepcopy(PATTERNS)
for name in PATTERNS_NO_OPTIONS:
  PATTERNS[name] = None
INLINE_FS_PATTERNS = %r
'''


@pytest.fixture
def copies(tmp_path):
    """The same templates as JSON and as Python, and the older ones."""
    for name, content in (("new.json", OWN), ("old.json", OLDER)):
        (tmp_path / name).write_text(json.dumps(content))
    patterns = {key: [tuple(pair) for pair in pairs] for key, pairs in OWN["PATTERNS"].items()}
    calls = [
        f"FewShotPattern({', '.join(f'{name}={value!r}' for name, value in pattern.items())})"
        for pattern in OWN["FEWSHOT_PATTERNS"]["facts"]
    ]
    (tmp_path / "new.py").write_text(PYTHON % (patterns, ", ".join(calls), OWN["INLINE_FS_PATTERNS"]))
    (tmp_path / "old.py").write_text(f"PATTERNS = {OLDER['PATTERNS']!r}")
    return tmp_path


def test_python_and_json_say_the_same_and_python_is_not_run(copies):
    from_json = read_flan_templates(str(copies / "new.json"), branched=str(copies / "old.json"))
    from_python = read_flan_templates(str(copies / "new.py"), branched=str(copies / "old.py"))
    assert from_python.pop("other").templates == from_json["facts"].templates
    assert from_python == from_json
    assert sorted(from_json) == ["chat", "facts", "facts_inline", "news", "sums"]


def test_placeholders_become_ours(copies):
    types = read_flan_templates(str(copies / "new.json"))
    assert types["facts"].fields == ("claim", "fact")
    assert types["facts"].templates[0].inputs == "Given {fact}:\n{claim}?\n\n{options}"
    assert types["news"].fields == ("text",)
    assert [(one.inputs, one.targets) for one in types["news"].templates] == [
        ("{text}\nShort:", "{answer}"),
        ("{text} TLDR", " {answer}"),
        ("Expand {answer}", "{text}"),
    ]
    assert types["chat"].fields == ("history",)
    assert [(one.inputs, one.targets) for one in types["chat"].templates] == [
        ("{dialog}", "{answer}"),
        ("Before {answer}?", "{history}"),
    ]
    assert types["sums"].rationale
    assert [one.targets for one in types["sums"].templates] == ["{rationale} So {answer}.", "{rationale}"]
    assert types["facts_inline"].fields == ("claim", "ex_answer", "ex_claim")


def test_without_options_the_older_wording_is_taken_and_the_block_deleted(copies):
    types = read_flan_templates(str(copies / "new.json"), branched=str(copies / "old.json"))
    assert [one.inputs for one in types["facts"].hidden] == ["Is {claim} so?", "{claim}\nPick one.", "Claim something."]
    newest = read_flan_templates(str(copies / "new.json"))["facts"].hidden
    assert [one.inputs for one in newest] == ["Given {fact}:\n{claim}?", "{claim}\nPick one.", "Claim something."]
    assert types["news"].hidden == ()


def test_the_layout_of_few_shot_templates(copies):
    first, second = read_flan_templates(str(copies / "new.json"))["facts"].few_shot
    layout = {"delimiter": "\n\n", "separator": "\n\n\n", "inputs_prefix": "C: ", "targets_prefix": "T: "}
    assert first == TypeTemplate(inputs="{claim} ({options})", **layout)
    assert second == TypeTemplate(
        inputs="{fact}", targets="{claim}", delimiter=" => ", separator="\n", opening="About {claim}.\n", mixed=False
    )
    hidden = read_flan_templates(str(copies / "new.json"))["facts"].few_shot_hidden
    assert [one.inputs for one in hidden] == ["{claim}", "{fact}"]


def test_fields_can_be_renamed(copies):
    type = with_names(read_flan_templates(str(copies / "new.json"))["facts"], {"claim": "hypothesis", "none": "x"})
    assert type.fields == ("hypothesis", "fact")
    assert type.templates[0].inputs == "Given {fact}:\n{hypothesis}?\n\n{options}"
    assert type.few_shot[1].opening == "About {hypothesis}.\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("PATTERNS = {'a': [('{q}', open('x').read())]}", r"t\.py:1: not a literal: open\('x'\)\.read\(\)"),
        ("PATTERNS = {'a': [('{q}',)]}", r"t\.py: PATTERNS\['a'\]\[0\] is no template"),
        ("PATTERNS = {'a': [('{q', 'x')]}", r"t\.py: templates of 'a': expected '}'"),
        ("x = 1", r"t\.py has no PATTERNS"),
        ("PATTERNS = {", r"t\.py is no file of templates"),
        ("PATTERNS = {'a': [('{}', 'x')]}", r"t\.py: templates of 'a': '' is no name of a field"),
        (
            "PATTERNS = {'a': [('q', 'x')]}\nFEWSHOT_PATTERNS = {'a': [FewShotPattern(inputs='{q}')]}",
            r"FEWSHOT_PATTERNS\['a'\]\[0\] is no template",
        ),
        (
            "PATTERNS = {'a': [('q', 'x')]}\n"
            "FEWSHOT_PATTERNS = {'a': [FewShotPattern(inputs='q', targets='x', final_suffix='end')]}",
            r"t\.py: templates of 'a': .*more than an opening",
        ),
    ],
)
def test_a_file_that_is_none_says_where(tmp_path, content, message):
    (tmp_path / "t.py").write_text(content)
    with pytest.raises(PromptError, match=message):
        read_flan_templates(str(tmp_path / "t.py"))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(PromptError, match=r"none\.json is no file of templates"):
        read_flan_templates(str(tmp_path / "none.json"))


@pytest.fixture(scope="module")
def published(test_data):
    folder = test_data / "flan"
    return read_flan_templates(str(folder / "v2_templates.json"), branched=str(folder / "v2_templates_branched.json"))


def test_the_published_collection_is_whole(published, test_data):
    assert len(published) == 120 + 1
    assert sum(len(type.templates) for key, type in published.items() if key != "natinst_v2_inline") == 1290
    assert sum(bool(type.few_shot) for type in published.values()) == 119
    assert {len(type.few_shot) for type in published.values() if type.few_shot} == {10}
    assert len(read_flan_templates(str(test_data / "flan" / "v1_templates.json"))) == 61
    still = [
        template.inputs
        for type in published.values()
        for template in (type.hidden or type.templates)
        if "options" in template.inputs.lower().replace("{options}", "") or "choose" in template.inputs.lower()
    ]
    assert len(still) == 6


class Words:
    def encode(self, text):
        return text.split()


def an_instance(type, number):
    fields = {name: f"{name} {number}" for name in type.fields if name != "history"}
    more = {"options": ["yes", "no"], "answer": "yes", "rationale": "it is known", "history": [f"hi {number}"]}
    return {**fields, **more}


def test_every_published_type_renders_in_every_arm(published):
    for key, type in published.items():
        pool = [an_instance(type, number) for number in range(1, 8)]
        for arm in Arm:
            for seed in range(15):
                draw = Draw(key, arm, seed)
                context = Context(draw=draw, split="train", tokenizer=Words(), seed=seed, place="here")
                text = render_arm(type, an_instance(type, 0), context, arm, pool)
                assert text is not None, (key, arm)
                assert "{" not in text.inputs + text.targets, (key, arm)
                assert text.targets.strip(), (key, arm)


@pytest.mark.parametrize(
    ("task", "key"),
    [
        *(("para_crawl_enes", "para_crawl"), ("wmt16_translate_deen", "wmt16_translate"), ("arc_easy", "arc")),
        *(("anli_r3", "anli"), ("mnli_matched", "mnli"), ("rte", "rte"), ("wmt14_enfr", "wmt14_enfr")),
    ],
)
def test_a_task_has_the_templates_of_its_key(published, task, key):
    assert flan_key(task) == key
    assert key in published
