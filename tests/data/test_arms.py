"""What each arm shows of an instance as literal text; exemplars within a token budget; the same draw, the same text."""

import dataclasses
import re

import hypothesis
import hypothesis.strategies as st
import pytest

from flanjax.data.draws import Draw
from flanjax.data.options import RELEASE, BlockStyles, Styles
from flanjax.data.prompts import SEPARATORS, Arm, ArmSettings, PromptError, TaskType, TypeTemplate, render_arm
from flanjax.data.sources import BadRow
from flanjax.data.tasks import Context
from flanjax.data.vocabularies import Vocabulary


class Characters:
    """A vocabulary of characters, in which the tokens of two texts are those of both together."""

    def encode(self, text):
        return [ord(character) for character in text]

    def decode(self, ids):
        return "".join(map(chr, ids))


ANIMALS = TaskType(
    name="animals",
    fields=("animal",),
    templates=(TypeTemplate(inputs="What does a {animal} say?\n{options}\nIt says:"),),
    hidden=(TypeTemplate(inputs="What does a {animal} say?\nIt says:"),),
    few_shot=(
        TypeTemplate(inputs="{animal}?\n{options}", inputs_prefix="Q: ", targets_prefix="A: "),
        TypeTemplate(inputs="Voice of a {animal}\n{options}", delimiter=" -> ", separator="\n--\n"),
    ),
    few_shot_hidden=(
        TypeTemplate(inputs="{animal}?", inputs_prefix="Q: ", targets_prefix="A: ", delimiter=" "),
        TypeTemplate(inputs="Voice of a {animal}", delimiter=" -> ", separator="\n--\n"),
    ),
)
REASONED = TaskType(
    name="sums",
    fields=("question",),
    templates=(TypeTemplate(inputs="{question} Think first.", targets="{rationale} The answer is {answer}."),),
    rationale=True,
)
REASONED_BACKWARDS = TaskType(
    name="sums_inverted",
    fields=("question",),
    templates=(TypeTemplate(inputs="{rationale} So {answer}. What was asked?", targets="{question}"),),
    rationale=True,
)
TALK = TaskType(name="talk", fields=("history",), templates=(TypeTemplate(inputs="Go on.\n{dialog}", delimiter=" "),))
TALK_BACKWARDS = TaskType(
    name="talk_inverted",
    fields=("history",),
    templates=(TypeTemplate(inputs="What came before this? {answer}", targets="{history}"),),
)
DEFINED = TaskType(
    name="defined",
    fields=("definition", "input"),
    templates=(TypeTemplate(inputs="{definition}\n{input}"),),
    few_shot=(TypeTemplate(inputs="{input}", opening="{definition}\n\n", delimiter=" = "),),
)
ONE_STYLE = Styles(
    options=BlockStyles(starts=("Choices:",), names=((" (a). ", " (b). ", " (c). "),), ends=(";",)),
    dialog=BlockStyles(starts=("Phone call:",), names=(("\nP1: ", "\nP2: "),)),
)
VOICES = {"dog": "woof", "cat": "meow", "cow": "moo", "owl": "hoo", "pig": "oink", "duck": "quack", "bee": "buzz"}


def animal(name, **more):
    others = sorted(voice for other, voice in VOICES.items() if other != name)[:1]
    return {"animal": name, "options": [*others, VOICES[name]], "answer": VOICES[name], **more}


def context(seed=0, place="animals.jsonl:7"):
    return Context(draw=Draw(seed), split="train", tokenizer=Characters(), seed=seed, place=place)


def shown(type, instance, arm, exemplars=(), seed=0, **settings):
    text = render_arm(
        type, instance, context(seed), arm, exemplars, settings=ArmSettings(**{"styles": ONE_STYLE, **settings})
    )
    return None if text is None else (text.inputs, text.targets)


POOL = [animal(name) for name in VOICES]
SUMS = [
    {"question": f"{one} + {one}?", "rationale": f"Twice {one} is {2 * one}.", "answer": str(2 * one)}
    for one in range(1, 4)
]
TALKS = [
    {"history": ["Hello.", "Hi. Rain again?"], "answer": "Yes."},
    {"history": ["Tea?"], "answer": "Please."},
    {"history": ["Bye."], "answer": "See you."},
]
DOUBLES = [{"definition": "Double it.", "input": str(number), "answer": str(2 * number)} for number in range(5)]


@pytest.mark.parametrize(
    ("type", "instance", "arm", "exemplars", "inputs", "targets"),
    [
        (
            *(ANIMALS, animal("cat"), Arm.ZSOPT, ()),
            *("What does a cat say?\nChoices: (a). buzz; (b). meow;\nIt says:", "(b)."),
        ),
        (ANIMALS, animal("cat"), Arm.ZSNOOPT, (), "What does a cat say?\nIt says:", "meow"),
        (
            *(ANIMALS, animal("cat"), Arm.FSOPT_FIVE, POOL),
            "Voice of a cow\nOPTIONS:\n- buzz\n- moo -> moo\n\n\n"
            "Q: dog?\nOPTIONS:\n- buzz\n- woof\nA: woof\n\n\n"
            "Q: owl?\nOPTIONS:\n- buzz\n- hoo\nA: hoo\n\n\n"
            "Q: pig?\nOPTIONS:\n- buzz\n- oink\nA: oink\n\n\n"
            "Voice of a duck\nOPTIONS:\n- buzz\n- quack -> quack\n\n\n"
            "Q: cat?\nOPTIONS:\n- buzz\n- meow\nA:",
            "meow",
        ),
        (
            *(ANIMALS, animal("cat"), Arm.FSOPT_X, POOL),
            "Q: cow?\nOPTIONS:\n- buzz\n- moo\nA: moo\n\n"
            "Q: bee?\nOPTIONS:\n- hoo\n- buzz\nA: buzz\n\n"
            "Q: dog?\nOPTIONS:\n- buzz\n- woof\nA: woof\n\n"
            "Q: cat?\nOPTIONS:\n- buzz\n- meow\nA:",
            "meow",
        ),
        (
            *(ANIMALS, animal("cat"), Arm.FSNOOPT, POOL),
            *("Q: cow? A: moo\n\nQ: bee? A: buzz\n\nQ: dog? A: woof\n\nQ: cat? A:", "meow"),
        ),
        (REASONED, SUMS[2], Arm.ZSOPT, (), "3 + 3? Think first.", "Twice 3 is 6. The answer is 6."),
        (
            *(REASONED, SUMS[2], Arm.FSOPT_X, SUMS),
            "2 + 2? Think first.\nTwice 2 is 4. The answer is 4.\n\n"
            "1 + 1? Think first.\nTwice 1 is 2. The answer is 2.\n\n"
            "3 + 3? Think first.\n",
            "Twice 3 is 6. The answer is 6.",
        ),
        (REASONED_BACKWARDS, SUMS[2], Arm.ZSOPT, (), "Twice 3 is 6. So 6. What was asked?", "3 + 3?"),
        (
            *(REASONED_BACKWARDS, SUMS[2], Arm.FSOPT_FIVE, SUMS),
            "Twice 2 is 4. So 4. What was asked?\n2 + 2?\n\n\n"
            "Twice 1 is 2. So 2. What was asked?\n1 + 1?\n\n\n"
            "Twice 3 is 6. So 6. What was asked?\n",
            "3 + 3?",
        ),
        (TALK, TALKS[0], Arm.ZSOPT, (), "Go on.\nPhone call:\nP1: Hello.\nP2: Hi. Rain again?\nP1:", "Yes."),
        (
            *(TALK, TALKS[0], Arm.FSOPT_X, TALKS),
            "Go on.\nDIALOG:\n- Tea?\n- Please.\n\n"
            "Go on.\nDIALOG:\n- Bye.\n- See you.\n\n"
            "Go on.\nDIALOG:\n- Hello.\n- Hi. Rain again?\n-",
            "Yes.",
        ),
        (
            *(TALK_BACKWARDS, TALKS[0], Arm.ZSOPT, (), "What came before this? Yes."),
            "DIALOG:\n- Hello.\n- Hi. Rain again?",
        ),
        (
            *(TALK_BACKWARDS, TALKS[0], Arm.FSOPT_X, TALKS),
            "What came before this? Please.\nDIALOG:\n- Tea?\n\n"
            "What came before this? See you.\nDIALOG:\n- Bye.\n\n"
            "What came before this? Yes.\n",
            "DIALOG:\n- Hello.\n- Hi. Rain again?",
        ),
        (DEFINED, DOUBLES[4], Arm.FSOPT_X, DOUBLES[:4], "Double it.\n\n1 = 2\n\n3 = 6\n\n0 = 0\n\n4 =", "8"),
    ],
)
def test_each_arm_as_literal_text(type, instance, arm, exemplars, inputs, targets):
    assert shown(type, instance, arm, exemplars) == (inputs, targets)


ANIMAL_NAMES = st.sampled_from(sorted(VOICES))
ARMS = st.sampled_from(list(Arm))
FEW_SHOT = st.sampled_from([arm for arm in Arm if not arm.zero_shot])
SEEDS = st.integers(0, 10**9)


@hypothesis.given(ANIMAL_NAMES, ARMS, SEEDS)
def test_the_same_draw_gives_the_same_text(name, arm, seed):
    first, second = (render_arm(ANIMALS, animal(name), context(seed), arm, POOL) for _ in range(2))
    assert first == second
    assert first is not None


@hypothesis.given(ANIMAL_NAMES, SEEDS, st.booleans())
def test_a_rewritten_answer_stands_before_its_option(name, seed, release):
    settings = ArmSettings(styles=RELEASE) if release else ArmSettings()
    text = render_arm(ANIMALS, animal(name), context(seed), Arm.ZSOPT, settings=settings)
    answer = VOICES[name]
    if text.targets != answer:
        assert text.inputs.count(f"{text.targets} {answer}") == 1
    assert answer in text.inputs


@hypothesis.given(ANIMAL_NAMES, SEEDS)
def test_an_answer_is_not_rewritten_where_no_options_are_shown(name, seed):
    for arm in (Arm.ZSNOOPT, Arm.FSNOOPT):
        text = render_arm(ANIMALS, animal(name), context(seed), arm, POOL)
        assert text.targets == VOICES[name]
        assert "OPTIONS" not in text.inputs


@hypothesis.given(st.lists(ANIMAL_NAMES, min_size=1, max_size=12), ANIMAL_NAMES, FEW_SHOT, SEEDS)
def test_no_exemplar_asks_what_the_query_asks(names, name, arm, seed):
    pool = [animal(other, note=index) for index, other in enumerate(names)]
    text = render_arm(ANIMALS, animal(name), context(seed), arm, pool)
    if set(names) == {name}:
        assert text is None
    else:
        assert text.inputs.count(f"{name}?") + text.inputs.count(f"Voice of a {name}") == 1


@hypothesis.given(FEW_SHOT, SEEDS)
def test_there_are_as_many_exemplars_as_the_arm_has(arm, seed):
    text = render_arm(ANIMALS, animal("cat"), context(seed), arm, POOL)
    shots = text.inputs.count("?") + text.inputs.count("Voice") - 1
    assert shots == 5 if arm is Arm.FSOPT_FIVE else shots in (2, 3)


def test_separators_and_numbers_of_shots_are_drawn():
    five = [render_arm(REASONED, SUMS[0], context(seed), Arm.FSOPT_FIVE, SUMS).inputs for seed in range(60)]
    assert {max(re.findall("\n+", text)) for text in five} == set(SEPARATORS)
    x = [render_arm(ANIMALS, animal("cat"), context(seed), Arm.FSOPT_X, POOL).inputs for seed in range(60)]
    assert {text.count("?") + text.count("Voice") - 1 for text in x} == {2, 3}


@hypothesis.given(
    st.lists(st.integers(1, 400), min_size=1, max_size=12), st.integers(1, 400), st.integers(0, 1200), FEW_SHOT, SEEDS
)
def test_the_budget_holds_for_all_exemplars(lengths, length, budget, arm, seed):
    pool = [animal("dog", animal=f"{index}" + "x" * size) for index, size in enumerate(lengths)]
    query = animal("cat", animal="y" * length)
    text = render_arm(ANIMALS, query, context(seed), arm, pool, settings=ArmSettings(budget=budget))
    around = 60  # no more than that stands around a name: prefixes, options, separators
    if text is None:
        assert max(lengths) + length + 2 * around > budget
        return
    assert len(text.inputs) <= budget
    if sum(sorted(lengths)[-5:]) + length + 6 * around <= budget:
        shots = text.inputs.count("woof") // 2 if arm.shows_options else text.inputs.count("woof")
        assert shots == min(len(lengths), 5) if arm is Arm.FSOPT_FIVE else shots in (2, 3, len(lengths))


def test_a_query_beside_which_nothing_fits_is_left_out_or_rendered_zero_shot():
    long = [animal("dog", animal="x" * 500)]
    for arm, instead in ((Arm.FSOPT_FIVE, Arm.ZSOPT), (Arm.FSOPT_X, Arm.ZSOPT), (Arm.FSNOOPT, Arm.ZSNOOPT)):
        assert shown(ANIMALS, animal("cat"), arm, long, budget=300) is None
        fallen_back = shown(ANIMALS, animal("cat"), arm, long, budget=300, zero_shot_instead=True)
        assert fallen_back == shown(ANIMALS, animal("cat"), instead)


def test_the_budget_holds_with_the_t5_vocabulary(t5_spiece):
    vocabulary = Vocabulary.from_file(t5_spiece)
    words = ["the", "quick", "fox,", "1,234", "years", "old;", "(over)", "Straße", "überlange", "Hunde."]
    pool = [
        {
            "question": " ".join(Draw(index).choice(words) for _ in range(60 * index)),
            "answer": str(index),
            "rationale": "So.",
        }
        for index in range(1, 12)
    ]
    for seed in range(40):
        at = dataclasses.replace(context(seed), tokenizer=vocabulary)
        text = render_arm(REASONED, pool[seed % 5], at, Arm.FSOPT_FIVE, pool)
        assert text is None or len(vocabulary.encode(text.inputs)) <= 1920


def test_few_shot_without_a_pool_is_refused():
    with pytest.raises(PromptError, match="animals: the arm fsopt_x shows exemplars"):
        render_arm(ANIMALS, animal("cat"), context(), Arm.FSOPT_X)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (TypeTemplate(inputs="{animal} {colour}"), "asks for colour"),
        (TypeTemplate(inputs="{animal}", targets="{rationale}"), "asks for rationale"),
        (TypeTemplate(inputs="{dialog}"), "asks for dialog"),
        (TypeTemplate(inputs="{animal}", opening="{definition}"), "asks for definition"),
        (TypeTemplate(inputs="{animal!r}"), "asks for animalr"),
        (TypeTemplate(inputs="{animal:>9}"), "asks for animal>9"),
        (TypeTemplate(inputs="{animal.__class__}"), "asks for animal.__class__"),
        (TypeTemplate(inputs="{}"), "asks for , but"),
    ],
)
@pytest.mark.parametrize("where", ["templates", "hidden", "few_shot", "few_shot_hidden"])
def test_an_unknown_field_is_refused_when_the_type_is_made(template, message, where):
    with pytest.raises(PromptError, match=message):
        dataclasses.replace(ANIMALS, **{where: (template,)})


def test_braces_of_a_row_are_text():
    text = render_arm(ANIMALS, animal("cat", animal="{cat} {0} {{x}}"), context(), Arm.ZSNOOPT)
    assert text.inputs == "What does a {cat} {0} {{x}} say?\nIt says:"


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=()), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@hypothesis.given(
    st.dictionaries(
        st.sampled_from(["animal", "history", "question", "rationale", "answer", "options"]), ANYTHING, max_size=6
    ),
    st.sampled_from([(ANIMALS, POOL), (REASONED, SUMS), (TALK, TALKS), (TALK_BACKWARDS, TALKS)]),
    ARMS,
    SEEDS,
)
def test_any_instance_gives_text_or_a_bad_row_with_its_place(instance, kind, arm, seed):
    type, pool = kind
    try:
        text = render_arm(type, instance, context(seed), arm, pool)
    except BadRow as error:
        text, message = None, str(error)
    assert text is not None or message.startswith("animals.jsonl:7: field '")


def test_a_bad_exemplar_is_called_one():
    with pytest.raises(BadRow, match=r"animals\.jsonl:7: an exemplar: field 'answer' is missing"):
        render_arm(ANIMALS, animal("cat"), context(), Arm.FSNOOPT, [{"animal": "dog"}])
