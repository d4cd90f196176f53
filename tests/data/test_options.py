"""Blocks list what they are given, and the target is what the block shows."""

import json

import hypothesis
import hypothesis.strategies as st
import pytest

from flanjax.data.draws import Draw
from flanjax.data.options import DIALOG, DISTINCT, OPTIONS, PLAIN, RELEASE, Block

TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=("Z", "C")), min_size=1, max_size=8)
STYLES = st.sampled_from([RELEASE, DISTINCT])


@hypothesis.given(STYLES, st.lists(TEXTS, min_size=1, max_size=26, unique=True), st.integers(0, 10**6), st.data())
def test_the_target_is_the_answer_or_the_name_of_the_answer_alone(styles, options, seed, data):
    block = styles.options.draw(Draw(seed), len(options))
    index = data.draw(st.integers(0, len(options) - 1))
    target = block.target(options[index], options)
    named = [option for position, option in enumerate(options) if block.name(position).strip() == target]
    if len(block.names) == 1:
        assert target == options[index]
    elif len(options) > 1:
        assert named == [options[index]]
        assert block.name(index) + options[index] + block.end in block.text(options)


@hypothesis.given(STYLES, st.lists(TEXTS, min_size=1, max_size=60), st.integers(0, 10**6))
def test_a_block_has_all_items_in_order(styles, items, seed):
    for kind in (styles.options, styles.dialog):
        block = kind.draw(Draw(seed), len(items) if kind is styles.options else 0)
        rest = block.text(items)
        assert rest.startswith(block.start)
        rest = rest.removeprefix(block.start)
        for index, item in enumerate(items):
            assert rest.startswith(block.name(index) + item + block.end)
            rest = rest.removeprefix(block.name(index) + item + block.end)
        assert rest == ""


def test_an_answer_beside_the_options_stays_as_it_is():
    lettered = Block(start="", names=(" a. ", " b. "))
    assert lettered.target("maybe", ["yes", "no"]) == "maybe"
    assert lettered.target(" no ", ["yes", "no"]) == "b."
    assert lettered.target("no", ["no"]) == "a."


def test_blocks_as_literal_text():
    assert OPTIONS.text(["yes", "no"]) == "OPTIONS:\n- yes\n- no"
    assert DIALOG.text(["Hi.", "Hello."], open_ended=True) == "DIALOG:\n- Hi.\n- Hello.\n-"
    speakers = Block(start="Phone call:", names=("\nP1: ", "\nP2: "))
    assert speakers.text(["Hi.", "Hello.", "Rain?"], open_ended=True) == (
        "Phone call:\nP1: Hi.\nP2: Hello.\nP1: Rain?\nP2:"
    )
    numbered = Block(start="Choices:", names=(" (i). ", " (ii). "), end=";")
    assert numbered.text(["yes", "no"]) == "Choices: (i). yes; (ii). no;"
    assert numbered.target("no", ["yes", "no"]) == "(ii)."


def test_the_release_has_as_many_styles_as_were_counted():
    assert (len(RELEASE.options.starts), len(RELEASE.options.names), len(RELEASE.options.ends)) == (16, 87, 3)
    assert sum(len(set(names)) == 26 for names in RELEASE.options.names) == 64
    assert (len(RELEASE.dialog.starts), len(RELEASE.dialog.names)) == (13, 50)


def test_distinct_styles_are_those_of_the_release_once():
    assert set(DISTINCT.options.names) == set(RELEASE.options.names)
    assert len(DISTINCT.options.names) == len(set(DISTINCT.options.names)) == 63
    assert set(DISTINCT.dialog.names) == set(RELEASE.dialog.names)
    assert len(DISTINCT.dialog.names) == 49
    assert all(start.count(":") <= 1 for start in DISTINCT.dialog.starts)


def test_plain_styles_are_those_of_few_shot_prompts():
    for seed in range(20):
        assert PLAIN.options.draw(Draw(seed), 30) == OPTIONS
        assert PLAIN.dialog.draw(Draw(seed)) == DIALOG


def test_the_start_strings_are_the_published_ones(test_data):
    published = json.loads((test_data / "flan" / "v2_templates.json").read_text())
    assert list(RELEASE.options.starts) == published["OPT_START_STRING_CANDIDATES"]
    assert list(RELEASE.dialog.starts) == published["DIALOG_START_STRING_CANDIDATES"]


@pytest.mark.parametrize("count", [27, 100])
def test_more_options_than_letters_are_bullets(count):
    names = {DISTINCT.options.draw(Draw(seed), count).names for seed in range(300)}
    assert len(names) == 23
    assert all(len(style) == 1 for style in names)
