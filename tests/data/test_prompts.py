"""Prompts are a pure function of fields and draw."""

import collections

import pytest

from flanjax.data.prompts import CHAIN_OF_THOUGHT, Draw, FewShotTemplate, PromptError, Prompts, Template

OPPOSITES = Prompts(
    zero_shot=(Template(inputs="What is the opposite of {word}?"), Template(inputs="{word}, reversed:")),
    few_shot=(FewShotTemplate(layout=Template(inputs="Q: {word} A:"), shots=1, separator=" "),),
    chain_of_thought=(Template(inputs="Opposite of {word}? Think first.", targets=CHAIN_OF_THOUGHT),),
)
HOT = {"word": "hot", "answer": "cold", "rationale": "Hot and cold are opposites."}
POOL = [
    {"word": "up", "answer": "down", "rationale": "It is known."},
    {"word": "big", "answer": "small", "rationale": "It is known."},
    HOT,
]


def test_the_three_styles_of_the_docstring():
    assert OPPOSITES.zero_shot[0].render(HOT) == ("What is the opposite of hot?", "cold")
    assert OPPOSITES.few_shot[0].render(HOT, POOL[:1]) == ("Q: up A: down Q: hot A:", "cold")
    assert OPPOSITES.chain_of_thought[0].render(HOT) == (
        "Opposite of hot? Think first.",
        "Hot and cold are opposites. The answer is cold.",
    )


def test_opening_and_separator_stand_where_the_docstring_says():
    template = FewShotTemplate(
        layout=Template(inputs="{word}"), opening="Opposites", delimiter=" -> ", separator=" | ", shots=2
    )
    assert template.render(HOT, POOL[:2])[0] == "Opposites | up -> down | big -> small | hot"


def test_a_draw_is_the_same_everywhere():
    # These values must never change: caches are compared by their bytes.
    draw = Draw("task", "train", 7)
    assert [draw.below(100) for _ in range(6)] == [30, 70, 9, 29, 40, 3]
    assert Draw(1, 2).sample(range(6), 6) != Draw(2, 1).sample(range(6), 6)


def test_draws_cover_their_range_and_nothing_else():
    draw = Draw(0)
    assert {draw.below(3) for _ in range(100)} == {0, 1, 2}
    assert {draw.between(2, 4) for _ in range(100)} == {2, 3, 4}
    assert {draw.weighted("abc", (1, 0, 2)) for _ in range(100)} == {"a", "c"}
    for _ in range(20):
        assert sorted(draw.sample("abcde", 5)) == list("abcde")


def test_training_mixes_the_styles_in_their_shares():
    starts = collections.Counter(OPPOSITES.render(HOT, Draw(index), POOL)[0].split()[0] for index in range(2000))
    _, few_shot, chain_of_thought = OPPOSITES.shares
    assert starts["Q:"] / 2000 == pytest.approx(few_shot, abs=0.02)
    assert starts["Opposite"] / 2000 == pytest.approx(chain_of_thought, abs=0.02)
    assert starts["What"] > 400
    assert starts["hot,"] > 400


def test_a_query_is_never_its_own_exemplar():
    inputs = [OPPOSITES.render(HOT, Draw(index), POOL)[0] for index in range(300)]
    few_shot = [text for text in inputs if text.startswith("Q:")]
    assert few_shot
    assert all("cold" not in text for text in few_shot)


def test_evaluation_is_zero_shot():
    assert {OPPOSITES.render(HOT, Draw(index), None) for index in range(50)} == {
        ("What is the opposite of hot?", "cold"),
        ("hot, reversed:", "cold"),
    }


def test_a_style_without_templates_is_never_drawn():
    only = Prompts(zero_shot=(Template(inputs="{word}"),))
    assert {only.render(HOT, Draw(index), POOL)[0] for index in range(50)} == {"hot"}


def test_an_unknown_field_is_named():
    with pytest.raises(PromptError, match=r"'What is the opposite of \{word\}\?'.*asks for word.*only answer"):
        OPPOSITES.check(["answer", "rationale"])
