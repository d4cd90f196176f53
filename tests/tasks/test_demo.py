"""The demo's answers are right, its splits are disjoint, and every target survives the vocabulary trained on it."""

import datetime
import re

import pytest
from flanjax.tasks import demo
from flanjax.tasks.demo_instances import CATEGORIES, DAYS, GENERATORS, NUMBER_WORDS, instance, split_of
from flanjax.tasks.demo_prompts import PROMPTS

from flanjax.data.cache import CachedMixture, CachedTask, task_folder
from flanjax.data.materialize import materialize
from flanjax.data.prompts import Draw
from flanjax.data.registry import add_family
from flanjax.data.tasks import Family
from flanjax.data.vocabularies import VocabularySource, train_vocabulary

HELD_OUT = "who_lives"
TASKS = sorted(GENERATORS)


def _sample(task, count=150):
    return [instance(task, "train", index) for index in range(count)]


def test_there_are_enough_tasks_and_each_has_all_styles():
    assert set(PROMPTS) == set(GENERATORS)
    assert len(GENERATORS) - 1 >= 14
    for prompts in PROMPTS.values():
        assert len(prompts.zero_shot) >= 3
        assert len(prompts.few_shot) >= 1
        assert len(prompts.chain_of_thought) >= 1


@pytest.mark.parametrize("task", TASKS)
def test_an_instance_depends_on_its_arguments_alone(task):
    assert instance(task, "train", 5) == instance(task, "train", 5)
    assert len({str(instance(task, "train", index)) for index in range(100)}) > 75


def test_instances_stay_what_they_are():
    # Caches are compared by their bytes: a change here is a change of the demo.
    fields = instance("sort_words", "train", 0)
    assert fields == {
        "words": "cat, knife, cherry",
        "answer": "cat cherry knife",
        "rationale": "cat comes first, knife comes last.",
    }


@pytest.mark.parametrize("task", TASKS)
def test_templates_ask_for_fields_that_exist(task):
    PROMPTS[task].check(sorted(instance(task, "train", 0)))


@pytest.mark.parametrize("task", TASKS)
def test_validation_is_never_seen_in_training(task):
    """Not the instance, and not its text in any template."""
    train, validation = _sample(task, 1800), [instance(task, "validation", index) for index in range(64)]
    assert all(split_of(task, fields) == "train" for fields in train)
    assert all(split_of(task, fields) == "validation" for fields in validation)
    for template in PROMPTS[task].zero_shot:
        seen = {template.render(fields) for fields in train}
        assert not seen & {template.render(fields) for fields in validation}


@pytest.mark.parametrize("task", TASKS)
def test_a_chain_of_thought_ends_in_its_answer(task):
    for fields in _sample(task, 20):
        for template in PROMPTS[task].chain_of_thought:
            inputs, targets = template.render(fields)
            assert targets.endswith(f" The answer is {fields['answer']}.")
            assert inputs not in {other.render(fields)[0] for other in PROMPTS[task].zero_shot}


def _facts(text):
    return dict(re.findall(r"(\w+) (?:has the|likes|lives in) (\w+)\.", text))


def _person(fields, key):
    return next(name for name, thing in _facts(fields["facts"]).items() if thing == fields[key])


def _arithmetic(fields):
    amount = NUMBER_WORDS.index(fields["change"].split()[1]) * (1 if "gets" in fields["change"] else -1)
    return NUMBER_WORDS[NUMBER_WORDS.index(fields["first"]) + amount]


def _weekday(fields):
    monday = datetime.date(2024, 1, 1) + datetime.timedelta(DAYS.index(fields["day"]))
    days = NUMBER_WORDS.index(fields["count"].split()[0])
    return (monday + datetime.timedelta(days)).strftime("%A")


def _odd_one(fields):
    words = fields["words"].split(", ")
    kinds = {word: next(kind for kind, members in CATEGORIES.items() if word in members) for word in words}
    (answer,) = [word for word in words if list(kinds.values()).count(kinds[word]) == 1]
    return answer


def _units(fields):
    seconds = {"hours": 3600, "minutes": 60, "days": 86400, "weeks": 7 * 86400, "years": 12, "months": 1}
    sizes = {**seconds, "metres": 100, "centimetres": 1, "kilometres": 100_000}
    amount, unit = fields["amount"].split()
    return f"{int(amount) * sizes[unit] // sizes[fields['target']]} {fields['target']}"


def _date(fields):
    day, month, year = (int(part) for part in fields["date"].split(" / "))
    date = datetime.date(year, month, day)
    return f"{date.day} {date.strftime('%B %Y')}"


# How a reader would answer, from the fields that the question shows.
ANSWERS = {
    "pick_word": lambda f: re.findall(r"\w+", f["words"])[0 if f["which"] == "first" else -1],
    "reverse_words": lambda f: " ".join(f["words"].split(", ")[::-1]),
    "sort_words": lambda f: " ".join(sorted(f["words"].split(", "))),
    "sort_numbers": lambda f: " ".join(sorted(f["numbers"].split(", "), key=int)),
    "compare_numbers": lambda f: (max if f["which"] == "larger" else min)([f["first"], f["second"]], key=int),
    "count_items": lambda f: str(f["words"].count(",") + 1),
    "odd_one_out": _odd_one,
    "lookup_field": lambda f: dict(pair.split(": ") for pair in f["record"].split("; "))[f["key"]],
    "extract_email": lambda f: re.search(r"\S+@\S+", f["sentence"])[0],
    "yes_no": lambda f: "yes" if _facts(f["facts"])[f["name"]] == f["thing"] else "no",
    "who_has": lambda f: _person(f, "thing"),
    "what_has": lambda f: _facts(f["facts"])[f["name"]],
    "who_likes": lambda f: _person(f, "colour"),
    "where_lives": lambda f: _facts(f["facts"])[f["name"]],
    "who_lives": lambda f: _person(f, "city"),
    "add_words": _arithmetic,
    "days_later": _weekday,
    "format_date": _date,
    "convert_units": _units,
}


@pytest.mark.parametrize("task", sorted(ANSWERS))
def test_answers_are_what_a_reader_would_say(task):
    for fields in _sample(task):
        assert ANSWERS[task](fields) == fields["answer"], fields


@pytest.mark.parametrize("task", ["yes_no", "pick_word", "compare_numbers", "add_words", "count_items"])
def test_no_answer_is_worth_guessing(task):
    answers = [fields["answer"] for fields in _sample(task, 400)]
    assert max(answers.count(answer) for answer in set(answers)) < 0.6 * len(answers)


def _texts(task, split, count):
    """What the task gives to read and to write, without TensorFlow."""
    pool = [instance(task, "train", index) for index in range(8)] if split == "train" else None
    for index in range(count):
        yield PROMPTS[task].render(instance(task, split, index), Draw(task, index), pool)


def test_every_text_survives_a_vocabulary_of_the_demo(tmp_path):
    texts = [text for task in TASKS if task != HELD_OUT for pair in _texts(task, "train", 200) for text in pair]
    vocabulary = train_vocabulary(texts, 400, tmp_path / "spiece.model")
    for task in TASKS:
        for inputs, targets in _texts(task, "validation", 64):
            assert vocabulary.unk_id not in vocabulary.encode(inputs)
            assert vocabulary.decode(vocabulary.encode(targets)) == targets


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Three of the demo's tasks and the held-out one, with a vocabulary of their own."""
    folder = tmp_path_factory.mktemp("demo")
    few = dict.fromkeys(["demo_format_date", "demo_opposite", "demo_who_has"], 1.0)
    add_family(demo.family(train_examples=40, validation_examples=4))
    add_family(Family(tasks=(), mixtures={"few": few}))
    report = materialize(mixture="few", cache_dir=folder, vocabulary=VocabularySource(train_size=150), tasks={})
    vocabulary = VocabularySource(path=str(report.vocabulary.path))
    materialize(mixture="demo_heldout", cache_dir=folder, vocabulary=vocabulary, tasks={})
    return folder


def test_the_mixtures(cache):
    trained = set(demo.family().mixtures["demo"])
    assert trained == {f"demo_{task}" for task in TASKS if task != HELD_OUT}
    heldout = CachedMixture.open(cache, "demo_heldout", "validation")
    assert [task.name for task in heldout.tasks] == [f"demo_{HELD_OUT}"]
    assert heldout.vocabulary.identity == CachedMixture.open(cache, "few", "train").vocabulary.identity
    assert not task_folder(cache, f"demo_{HELD_OUT}", "train").exists()


def test_validation_is_zero_shot_with_bare_answers(cache):
    task = CachedTask.open(cache, "demo_format_date", "validation")
    for index, example in enumerate(task.read(range(len(task)))):
        fields = instance("format_date", "validation", index)
        assert example.text["references"] == [fields["answer"]]
        assert example.text["targets"] == fields["answer"]
        assert example.text["id"] == f"demo_format_date-validation-{index}"
        assert example.text["inputs"] in {template.render(fields)[0] for template in PROMPTS["format_date"].zero_shot}


def test_training_mixes_the_styles(cache):
    opened = CachedMixture.open(cache, "few", "train")
    texts = [
        (opened.vocabulary.decode(example.inputs), opened.vocabulary.decode(example.targets))
        for task in opened.tasks
        for example in task.read(range(len(task)))
    ]
    thinking = sum("The answer is" in targets for _, targets in texts) / len(texts)
    assert 0.05 < thinking < 0.3
    bare = {fields["answer"] for fields in (instance("opposite", "train", index) for index in range(40))}
    assert any(inputs.startswith("Give the opposite.") and targets in bare for inputs, targets in texts)


def test_seqio_metrics_score_references():
    import numpy as np
    from flanjax.tasks.scoring import exact_match

    from flanjax.data.seqio_tasks import references

    example = {"references": np.array(b"plum")}
    assert references("x", example=example, is_target=True) == ["plum"]
    assert references("pear", example=example, is_target=False) == "pear"
    assert exact_match([["plum"], ["pear", "fig"]], ["Plum.", "melon"]) == {"exact_match": 50.0}


def test_the_seed_chooses_the_template():
    fields = instance("opposite", "train", 0)
    assert len({PROMPTS["opposite"].render(fields, Draw(seed), [])[0] for seed in range(40)}) >= 4
