"""Goat: the published numbers of problems and forms of solutions, and arithmetic without an error in any line."""

import collections
import hashlib
import itertools
import json
import re
import subprocess
import sys

import hypothesis
import hypothesis.strategies as st
import pytest
from flanjax.tasks.goat import (
    TEMPLATES,
    divide,
    divide_short,
    family,
    in_words,
    multiply,
    number_between,
    problems,
    read_templates,
    strata,
)

from flanjax.data.draws import Draw
from flanjax.data.records import RecordsError
from flanjax.data.sources import BadRow
from flanjax.errors import FlanjaxError


def _value(expression):
    assert re.fullmatch(r"[\d +*()-]+", expression)
    return eval(expression)


def check_solution(row):
    """Every equation of a solution holds, and its end is the answer; division by Python's own."""
    first, sign, second = row["input"].split(" ")
    *lines, end = row["output"].split("\n")
    if sign == "/":
        if second == "0":
            assert (lines, end, row["answer"]) == ([], f"{first} / 0 is undefined", "undefined")
            return
        quotient, remainder = divmod(int(first), int(second))
        assert row["answer"] == (f"{quotient} R {remainder}" if remainder else str(quotient))
        left = int(first)
        for line in lines:
            start, middle, result = line.split(" = ")
            assert start.startswith(f"{left} - {second} * ")
            assert _value(start) == _value(middle) == int(result) >= 0
            left = int(result)
        assert end == ("Therefore, " if lines else "") + f"{row['input']} = {row['answer']}"
        assert not lines or left == remainder
        return
    assert not lines
    problem, *steps = end.split(" = ")
    assert problem == row["input"]
    assert {_value(problem), *map(_value, steps)} == {int(row["answer"])}
    assert steps[-1] == row["answer"]


def test_the_numbers_of_problems_are_the_published_ones():
    counts = collections.Counter()
    for stratum in strata():
        counts[stratum.kind] += stratum.count
    published = {"+": 304_000, "-": 304_000, "*1": 185_500, "*": 420_000, "/1": 187_800, "/": 345_000}
    assert counts == published
    assert family().tasks[0].examples["train"] == sum(published.values()) == 1_746_300


@pytest.mark.parametrize(
    ("solution", "published"),
    [
        (multiply(37, 3066), "37 * 3066 = 3066 * (30 + 7) = 3066 * 30 + 3066 * 7 = 91980 + 21462 = 113442"),
        (
            divide(5697, 47),
            "5697 - 47 * 100 = 5697 - 4700 = 997\n997 - 47 * 20 = 997 - 940 = 57\n57 - 47 * 1 = 57 - 47 = 10\n"
            "Therefore, 5697 / 47 = 121 R 10",
        ),
        (multiply(3000, 25), "3000 * 25 = 75000"),
        (
            multiply(203, 1112),
            "203 * 1112 = 1112 * (200 + 3) = 1112 * 200 + 1112 * 3 = 222400 + 3336 = 225736",
        ),
        (
            multiply(123, 456),
            "123 * 456 = 456 * (100 + 20 + 3) = 456 * 100 + 456 * 20 + 456 * 3 = 45600 + 9120 + 1368 = 54720 + 1368"
            " = 56088",
        ),
        (divide(12, 47), "12 / 47 = 0 R 12"),
        (divide(47, 47), "47 / 47 = 1"),
        (divide(4700, 47), "4700 - 47 * 100 = 4700 - 4700 = 0\nTherefore, 4700 / 47 = 100"),
        (divide_short(2, 3, 1), "7 / 2 = 3 R 1"),
        (divide_short(2, 3, 0), "6 / 2 = 3"),
        (divide_short(0, 12, 0), "12 / 0 is undefined"),
    ],
)
def test_solutions_have_the_published_form(solution, published):
    expression, output, answer = solution
    assert output == published
    assert output.endswith(answer)
    check_solution({"input": expression, "output": output, "answer": answer})


def test_every_line_of_a_sample_of_every_kind_is_right():
    rows = [row for _, row in itertools.islice(problems("train", 0.002, "", False, 3), 3000)]
    assert {row["input"].split(" ")[1] for row in rows} == {"+", "-", "*", "/"}
    for row in rows:
        check_solution(row)
        assert max(len(number) for number in re.findall(r"\d+", row["input"])) <= 18


@hypothesis.given(st.integers(0, 10**12), st.integers(0, 10**7))
def test_any_product_and_quotient_is_right(first, second):
    for expression, output, answer in (multiply(first, second), divide(first, second + 1)):
        check_solution({"input": expression, "output": output, "answer": answer})


@hypothesis.given(st.integers(0, 10**17), st.integers(0, 10**17), st.integers(0, 99))
def test_numbers_are_within_their_bounds(low, more, seed):
    assert low <= number_between(Draw(seed), low, low + more) <= low + more


def test_numbers_have_all_their_digits_at_random():
    numbers = [number_between(Draw(seed), 10**16 + 1, 10**17) for seed in range(2000)]
    last = collections.Counter(number % 10 for number in numbers)
    assert set(last) == set(range(10))
    assert max(last.values()) < 2 * min(last.values())


def test_problems_are_put_into_words_as_often_as_published():
    said = collections.Counter(in_words("12 * 3", Draw(seed)) for seed in range(4000))
    forms = {
        **{"the product of 12 and 3": 0.05, "12 times 3": 0.0475, "12 multiplied by 3": 0.0475},
        **dict.fromkeys(("12x3", "12 x 3", "12*3", "12 * 3"), 0.95 * 0.9 / 4),
    }
    assert set(said) == set(forms)
    assert all(abs(said[form] / 4000 - share) < 0.02 for form, share in forms.items())
    assert {in_words("12 / 3", Draw(seed)) for seed in range(300)} == {
        *("the quotient and remainder of 12 and 3", "12 divided by 3", "12/3", "12 / 3")
    }


def test_the_published_templates_are_read_and_otherwise_our_own(test_data, tmp_path):
    templates = read_templates(str(test_data / "goat"))
    published = json.loads((test_data / "goat" / "goat_templates.json").read_text())
    assert templates == list(published.values())
    assert len(templates) == 500
    assert read_templates(str(tmp_path), must_exist=False) == TEMPLATES
    with pytest.raises(RecordsError, match=r"goat_templates.json"):
        read_templates(str(tmp_path))


@pytest.mark.parametrize("content", ['{"1": "no place"}', '{"1": 3}', "{}", "[]"])
def test_broken_templates_are_refused(content, tmp_path):
    (tmp_path / "goat_templates.json").write_text(content)
    with pytest.raises(BadRow, match=r"goat_templates.json: an object of strings with one \{input\} each"):
        read_templates(str(tmp_path))


def test_the_text_in_each_style(texts):
    first = {style: texts(family(fraction=1e-9, style=style).tasks[0])[0] for style in ("goat", "plain", "alpaca")}
    plain = first["plain"].inputs
    assert first["goat"].inputs == f"{plain}\nAnswer:"
    assert first["alpaca"].inputs.endswith(f"### Instruction:\n{plain}\n\n### Response:")
    answer = texts(family(fraction=1e-9, working=False).tasks[0])[0].targets
    assert first["goat"].targets == first["plain"].targets == f"{first['plain'].targets.split(' = ')[0]} = {answer}"


def test_splits_seeds_and_fractions_give_what_they_say(texts):
    task = family(fraction=0.002).tasks[0]
    train, validation, other = texts(task), texts(task, "validation"), texts(task, seed=1)
    assert (len(train), len(validation)) == (task.examples["train"], task.examples["validation"])
    assert train[500:510] != other[500:510]
    assert {text.inputs for text in train[300:400]}.isdisjoint(text.inputs for text in validation[300:400])
    with pytest.raises(FlanjaxError, match="fraction=0 must be above zero"):
        family(fraction=0)
    with pytest.raises(FlanjaxError, match="style='goats'"):
        family(style="goats")


def test_the_same_seed_gives_the_same_rows_in_another_process():
    code = (
        "import hashlib; from flanjax.tasks.goat import problems\n"
        "print(hashlib.sha256(repr(list(problems('train', 1e-9, '', False, 7))).encode()).hexdigest())"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert there == hashlib.sha256(repr(list(problems("train", 1e-9, "", False, 7))).encode()).hexdigest()
