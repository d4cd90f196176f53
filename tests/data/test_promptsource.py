"""PromptSource's templates give the text that P3 published; a draw decides their choices; what fails is a bad row."""

import gzip
import json
import re
import subprocess
import sys

import hypothesis
import hypothesis.strategies as st
import pytest

from flanjax.data.draws import Draw
from flanjax.data.prompts import PromptError
from flanjax.data.promptsource import Prompted, PromptTemplate, read_promptsource
from flanjax.data.sources import BadRow

FRUIT = PromptTemplate(
    name="fruit",
    jinja="Is {{name}} {{answer_choices | join(' or ')}}?\n||| {{answer_choices[label]}}",
    answer_choices="sweet ||| {{other}}",
    file="fruit.yaml",
)


def rendered(jinja, row, seed=0, **more):
    return PromptTemplate(name="t", jinja=jinja, **more).render(row, Draw(seed), "rows:3")


def test_a_template_as_literal_text():
    prompted = FRUIT.render({"name": "a plum", "other": "sour", "label": 1}, Draw(0), "fruit:1")
    assert prompted == Prompted(inputs="Is a plum sweet or sour?", targets=("sour",), options=("sweet", "sour"))
    assert prompted.text().targets == "sour"
    assert prompted.instance() == {
        "prompt": "Is a plum sweet or sour?",
        "answer": "sour",
        "options": ["sweet", "sour"],
    }


@pytest.fixture(scope="module")
def published(test_data):
    files = sorted((test_data / "promptsource" / "templates").rglob("templates.yaml"))
    assert len(files) == 279
    return [template for file in files for template in read_promptsource(str(file)).values()]


def test_every_published_template_gives_text_or_a_bad_row_with_its_name(published):
    texts = 0
    for template in published:
        names = set(re.findall(r"[A-Za-z_]\w*", template.jinja + (template.answer_choices or "")))
        row = {name: f"some {name}" for name in names - {"answer_choices"}}
        try:
            texts += template.render(row, Draw(0), "rows:3") is not None
            message = ""
        except BadRow as error:
            message = str(error)
        assert not message or message.startswith(f"rows:3: template {template.name!r}")
    assert texts > 500


def test_all_published_files_parse(published, test_data):
    templates = published
    assert len(templates) == 2085
    assert {type(template.original_task) for template in templates} == {bool}
    recommend = read_promptsource(str(test_data / "promptsource" / "templates" / "ag_news" / "templates.yaml"))[
        "recommend"
    ]
    assert (recommend.dataset, recommend.subset, recommend.metrics) == ("ag_news", "", ("Accuracy",))
    assert recommend.answer_choices == "Politician ||| Athlete ||| Business executive ||| Scientist"


def published_samples(test_data, name):
    with gzip.open(test_data / "t0_p3_samples" / f"{name}.jsonl.gz", "rt") as lines:
        for line in lines:
            sample = json.loads(line)
            yield sample["prompt"], sample["completion"].removesuffix("<|endoftext|>").strip()


SENTIMENT = " What is the sentiment expressed by the reviewer for the movie?\n"


@pytest.mark.parametrize(
    ("dataset", "name", "before", "after", "labels", "count"),
    [
        (
            *("ag_news", "classify", "", " \nWhat label best describes this news article?\n"),
            *(["World politics", "Sports", "Business", "Science and technology"], 7),
        ),
        ("rotten_tomatoes", "Reviewer_Expressed_Sentiment", "", SENTIMENT, ["negative", "positive"], 10),
        ("imdb", "Reviewer_Expressed_Sentiment", "", SENTIMENT, ["negative", "positive"], 11),
        (
            *("yelp_review_full", "format_star", "Review text:\n", "\n\nStars:\n"),
            *(["1 star", "2 stars", "3 stars", "4 stars", "5 stars"], 7),
        ),
    ],
)
def test_the_text_is_that_of_p3(test_data, dataset, name, before, after, labels, count):
    rows = [
        {"text": prompt.removeprefix(before).removesuffix(after), "label": labels.index(target)}
        for prompt, target in published_samples(test_data, f"{dataset}_{name}")
    ]
    templates = read_promptsource(str(test_data / "promptsource" / "templates" / dataset / "templates.yaml"))
    assert len(templates) == count
    for template in templates.values():
        file = f"{dataset}_{template.name.replace(' ', '_')}"
        expected = [(prompt.strip(), target) for prompt, target in published_samples(test_data, file)]
        texts = [template.render(row, Draw(0), "p3").text() for row in rows]
        assert [(text.inputs, text.targets) for text in texts] == expected, template.name
        assert len(expected) == 200


def test_a_choice_is_taken_from_the_draw():
    words = [rendered("{{['a', 'b', 'c'] | choice}} ||| {{range(9) | random}}", {}, seed) for seed in range(60)]
    assert words == [rendered("{{['a', 'b', 'c'] | choice}} ||| {{range(9) | random}}", {}, seed) for seed in range(60)]
    assert {word.inputs for word in words} == {"a", "b", "c"}
    assert len({word.targets for word in words}) == 9


def test_another_process_takes_the_same_choices():
    program = (
        "from flanjax.data.draws import Draw; from flanjax.data.promptsource import PromptTemplate\n"
        "template = PromptTemplate(name='t', jinja='{{words | choice}} ||| {{words | choice}}')\n"
        "print([template.render({'words': ['a', 'b', 'c']}, Draw(seed), '').inputs for seed in range(40)])"
    )
    runs = {
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=env).stdout
        for env in ({"PYTHONHASHSEED": "1"}, {"PYTHONHASHSEED": "2"})
    }
    here = [rendered("{{words | choice}} ||| {{words | choice}}", {"words": list("abc")}, n).inputs for n in range(40)]
    assert runs == {f"{here}\n"}


def test_the_documented_helpers():
    assert rendered("{{['a', 'b', 'a', 'c', 'b'] | most_frequent | join(', ')}} ||| x", {}).inputs == "a, b"
    assert rendered("{{[] | most_frequent}} ||| x", {}).inputs == "None"
    assert rendered(
        "{% for one, two in zip(a, b) %}{{one}}{{two}} {% endfor %} ||| x", {"a": "xy", "b": "12"}
    ).inputs == ("x1 y2")


def test_separators_of_a_row_are_text():
    row = {"text": "a ||| b", "inner": {"list": ["c|||d"]}}
    prompted = rendered("{{text}}, {{inner.list[0]}} ||| {{answer_choices[0]}}", row, answer_choices="{{text}} ||| no")
    assert prompted == Prompted(inputs="a ||| b, c|||d", targets=("a ||| b",), options=("a ||| b", "no"))


def test_several_targets_are_references():
    text = rendered("Say it ||| one ||| two", {}).text()
    assert (text.targets, text.references) == ("one", ("one", "two"))


def test_a_template_that_says_nothing_leaves_the_row_out():
    conditional = "{% if label %}{{text}} ||| {{label}}{% endif %}"
    assert rendered(conditional, {"text": "a", "label": ""}) is None
    assert rendered("{{text}} ||| {{label}}", {"text": "a", "label": ""}) is None
    assert rendered(conditional, {"text": "a", "label": "b"}).targets == ("b",)


def test_a_template_may_change_its_own_lists_and_not_the_row():
    row = {"words": ["a"]}
    jinja = "{% set more = [] %}{{more.append('x') or ''}}{{words.append('b') or ''}}{{words | join}}{{more[0]}} ||| y"
    assert rendered(jinja, row).inputs == "abx"
    assert row == {"words": ["a"]}


@pytest.mark.parametrize(
    ("jinja", "row", "message"),
    [
        ("{{text}} ||| x", {"label": 1}, r"rows:3: template 't': UndefinedError: 'text' is undefined: \{'label': 1\}"),
        ("{{[1][label]}} ||| x", {"label": 4}, "rows:3: template 't': UndefinedError"),
        ("{{1 // label}} ||| x", {"label": 0}, "rows:3: template 't': ZeroDivisionError"),
        ("{{text.__class__.__mro__}} ||| x", {"text": "a"}, "rows:3: template 't': SecurityError"),
        ("{{words | choice}} ||| x", {"words": []}, "rows:3: template 't': IndexError"),
        ("{{text}}", {"text": "a"}, "rows:3: template 't' gives no target"),
        ("a ||| b", {"answer_choices": []}, "rows:3: template 't': ValueError: a row may not have a field"),
    ],
)
def test_a_row_on_which_a_template_fails_is_a_bad_one(jinja, row, message):
    with pytest.raises(BadRow, match=message):
        rendered(jinja, row)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@hypothesis.given(st.dictionaries(st.sampled_from(["name", "other", "label"]), JSON))
def test_any_row_gives_text_or_nothing_or_a_bad_row_with_its_place(row):
    try:
        prompted, message = FRUIT.render(row, Draw(0), "fruit:1"), ""
    except BadRow as error:
        prompted, message = None, str(error)
    assert prompted is None or prompted.targets[0]
    assert not message or message.startswith("fruit:1: template 'fruit': ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("templates: {a: !!python/object/apply:os.getcwd []}", "tags that are no data"),
        ("templates: {a: !Other {name: a}}", "tags that are no data"),
        ("templates: [", "is not YAML"),
        ("dataset: a", "KeyError: 'templates'"),
        ("- 1", "TypeError"),
        ("{dataset: d, templates: {a: !Template {name: n, jinja: 3, answer_choices: null, metadata: {}}}}", "no text"),
        ("{dataset: d, templates: {a: !Template {name: n, jinja: x}}}", "KeyError"),
        (
            "{dataset: d, templates: {a: !Template {name: n, jinja: '{{', answer_choices: null, metadata: "
            "{original_task: true, choices_in_prompt: null, metrics: [], languages: []}}}}",
            "template 'n': ",
        ),
    ],
)
def test_a_file_that_is_none_is_named(tmp_path, content, message):
    file = tmp_path / "templates.yaml"
    file.write_text(content)
    with pytest.raises(PromptError, match=message) as raised:
        read_promptsource(str(file))
    assert str(file) in str(raised.value)
