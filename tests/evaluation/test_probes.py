"""Baselines, perturbations and word lists: what is learned, what is copied, and what a rough question costs."""

import dataclasses
import functools
import itertools
import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flanjax.data.draws import Draw
from flanjax.data.sources import BadRow
from flanjax.data.tasks import Turn
from flanjax.evaluation.baselines import baselines
from flanjax.evaluation.bbh import bbh
from flanjax.evaluation.benchmark import Benchmark, BenchmarkError, Instance, Prediction, evaluate, likeliest
from flanjax.evaluation.flan2021 import flan2021
from flanjax.evaluation.gsm8k import gsm8k
from flanjax.evaluation.held_out import read_text, score_text
from flanjax.evaluation.ifeval import ifeval
from flanjax.evaluation.mmlu import mmlu
from flanjax.evaluation.perturbation_words import FEMALE, FILLERS, MISSPELLINGS, NAMES, SYNONYMS
from flanjax.evaluation.perturbations import (
    PERTURBATIONS,
    contraction,
    expansion,
    lower_case,
    mild_mix,
    misspelling,
    perturbed,
    read_misspellings,
    typos,
    worst_case,
)
from flanjax.evaluation.suites import first_of_each_task
from flanjax.evaluation.super_ni import super_ni
from flanjax.evaluation.truthfulqa import truthfulqa
from flanjax.evaluation.word_lists import GENDER, associations, read_words, representation, toxic_fraction

texts = st.text(st.sampled_from("abcXYZ is not don't  \n.,é"), max_size=60)
some_words = st.sampled_from(
    ["He", "his", "uncle", "Jack", "jack", "Emily", "big", "Large", "because", "it", "is", "not", "¿"]
)
sentences = st.lists(some_words, max_size=12).map(" ".join)
THAT = functools.partial(PERTURBATIONS["dialect"], words={"this": ["dis"], "big": ["huge", "vast"]})
CHANGES = {**PERTURBATIONS, "dialect": THAT}


@pytest.fixture(scope="module")
def copa_and_e2e(test_data):
    return super_ni(test_data / "super_natural_instructions", instances_per_task=40)


def figures(benchmark, seed=0):
    """Of each baseline its averages, by metric."""
    results = {name: evaluate(benchmark, found) for name, found in baselines(benchmark, seed).items()}
    return {name: {metric: r.average(metric) for metric in benchmark.metrics} for name, r in results.items()}


def test_baselines_of_super_natural_instructions(copa_and_e2e):
    found = figures(copa_and_e2e)
    assert list(found) == ["copy-input", "copy-demonstration", "majority-label", "random-label"]
    assert found["copy-input"]["exact_match"] == 0
    assert found["copy-input"]["rougeL"] > 5
    assert found == figures(copa_and_e2e)
    assert found["random-label"] != figures(copa_and_e2e, seed=1)["random-label"]
    copa = evaluate(copa_and_e2e, baselines(copa_and_e2e)["majority-label"]).by_task("exact_match")
    labels = Counter(i.references[0] for i in copa_and_e2e.load() if i.task.startswith("task1393"))
    assert copa["task1393_superglue_copa_text_completion"] == pytest.approx(100 * max(labels.values()) / 40)
    demonstrations = baselines(copa_and_e2e)["copy-demonstration"]
    for instance, prediction in zip(copa_and_e2e.load(), demonstrations, strict=True):
        assert prediction.text in instance.demonstrations


def test_no_label_guessed_alone_beats_the_majority(test_data):
    for benchmark in (mmlu(test_data / "mmlu" / "data"), bbh(test_data / "bbh", prompting="cot")):
        found = figures(benchmark)
        (metric,) = benchmark.metrics
        assert found["majority-label"][metric] > found["random-label"][metric]
        assert found["random-label"][metric] > 5
        assert ("copy-input" in found) == (benchmark.mode == "generate")


def test_a_guess_is_one_of_the_choices_however_few_the_instances_are(test_data):
    benchmark = mmlu(test_data / "mmlu" / "data", form="flan", shots=0, mode="generate")
    few = dataclasses.replace(benchmark, load=lambda: itertools.islice(benchmark.load(), 0, None, 40))
    found = figures(few)
    assert found["random-label"]["exact_match"] == pytest.approx(25, abs=6)
    assert {prediction.text for prediction in baselines(few)["random-label"]} == {"(A)", "(B)", "(C)", "(D)"}


def test_of_a_part_of_a_test_set_labels_are_those_of_the_whole(test_data):
    benchmark = mmlu(test_data / "mmlu" / "data", shots=0)
    few = first_of_each_task(benchmark, 1)
    alone, informed = (evaluate(few, baselines(few, whole=whole)["random-label"]) for whole in (None, benchmark))
    assert alone.outcomes == informed.outcomes  # four letters either way
    assert evaluate(few, baselines(few)["majority-label"]).average("accuracy") == 100  # each task's only answer
    (common,) = {
        tuple(baselines(part, whole=benchmark)["majority-label"][:1])
        for part in (few, first_of_each_task(benchmark, 2))
    }
    counts = Counter(i.correct for i in benchmark.load() if i.task == "abstract_algebra")
    assert evaluate(few, baselines(few, whole=benchmark)["majority-label"]).average("accuracy") < 50
    assert likeliest(common[0]) == counts.most_common(1)[0][0][0]


def test_baselines_say_an_answer_as_it_is_read(test_data):
    found = figures(gsm8k(test_data / "gsm8k"))
    assert found["majority-label"]["exact_match"] == found["majority-label"]["flexible"] > 1
    assert found["copy-input"]["exact_match"] == 0


def test_baselines_without_answers_are_left_out(test_data):
    assert list(baselines(ifeval(test_data / "ifeval" / "input_data.jsonl"))) == ["copy-input"]
    found = baselines(truthfulqa(test_data / "truthfulqa" / "TruthfulQA.csv"))
    assert list(found) == ["random-label"]  # no two questions have the same choices
    assert set(found["random-label"][0].loglikelihoods) == {0.0, -math.inf}


@settings(max_examples=80)
@given(text=texts | sentences, name=st.sampled_from(sorted(CHANGES)), key=st.integers(0, 3))
def test_a_perturbation_is_a_function_of_text_and_seed(text, name, key):
    assert CHANGES[name](text, Draw(key)) == CHANGES[name](text, Draw(key))


@given(text=sentences, key=st.integers(0, 3))
def test_words_are_exchanged_for_those_of_their_list_and_no_others(text, key):
    words = text.split()
    lists = {"gender": FEMALE, "synonym": SYNONYMS, "misspelling": MISSPELLINGS}
    for name, listed in lists.items():
        found = PERTURBATIONS[name](text, Draw(key)).split()
        assert len(found) == len(words)
        for before, after in zip(words, found, strict=True):
            assert after == before or after.lower() in listed[before.lower()]
            assert after[0].isupper() == before[0].isupper()
    female = PERTURBATIONS["gender"](text, Draw(key))
    assert not {word.lower() for word in female.split()} & {"he", "his", "uncle"}
    assert PERTURBATIONS["gender"](female, Draw(key)) == female
    renamed = PERTURBATIONS["names"](text, Draw(key)).split()
    others = {before: after for before, after in zip(words, renamed, strict=True) if before != after}
    assert others.keys() == {"Jack", "Emily"} & set(words)  # "jack" is no name
    for name, other in others.items():
        assert other in NAMES[name == "Emily"][1]
        assert renamed.count(other) == words.count(name)


def test_fillers_are_beside_words_that_stay():
    text = "one two three four " * 100
    found = PERTURBATIONS["filler_words"](text, Draw(0))
    assert len(found.split()) > len(text.split()) + 20
    rest = found
    for filler in FILLERS:
        rest = rest.replace(f" {filler} ", " ")
    assert rest == text


@given(text=texts, key=st.integers(0, 3))
def test_what_a_perturbation_leaves_alone(text, key):
    assert PERTURBATIONS["space"](text, Draw(key)).replace(" ", "") == text.replace(" ", "")
    assert typos(text, Draw(key), rate=0.0) == text
    hit = typos(text, Draw(key), rate=1.0)
    assert len(hit) == len(text)
    assert all((a == b) == (not a.isascii() or not a.isalpha()) for a, b in zip(text, hit, strict=True))
    assert [a.isupper() for a in hit] == [a.isupper() for a in text]
    assert mild_mix(text, Draw(key)) == mild_mix(text, Draw(key)).lower()


def test_perturbations_of_a_sentence():
    draw = Draw(0)
    text = "She is not here, I am sure. It IS NOT available; What is it"
    assert lower_case("ABC d", draw) == "abc d"
    assert contraction(text, draw) == "She's not here, I'm sure. It's NOT available; What's it"
    assert contraction("They do not say that she is", draw) == "They don't say that she is"
    assert expansion("She isn't here, I'm sure. Don't. CAN'T", draw) == "She is not here, I am sure. Do not. CANNOT"
    assert misspelling("Because it is available", draw, rate=1.0) == "Becuase it is availible"
    assert misspelling("Because it is available", draw, rate=0.0) == "Because it is available"
    assert PERTURBATIONS["gender"]("HIS uncle said he saw him. The", draw) == "HER aunt said she saw her. The"
    assert THAT("This is this", draw) == "Dis is dis"
    reworded = {PERTURBATIONS["paraphrase"]("It is not a big ocean.", Draw(key)) for key in range(20)}
    assert reworded == {"It is not a large sea.", "It's not a large sea."}


def test_a_rate_is_the_share_of_letters_that_are_hit():
    text = "a" * 4000
    hits = {
        name: sum(a != "a" for a in PERTURBATIONS[name](text, Draw(0))) / 4000 for name in ("typos_easy", "typos_hard")
    }
    assert hits == {"typos_easy": pytest.approx(0.1, abs=0.02), "typos_hard": pytest.approx(0.5, abs=0.03)}


def test_what_changes_what_is_right_changes_references_and_choices_alike(test_data, tmp_path):
    truth = truthfulqa(test_data / "truthfulqa" / "TruthfulQA.csv")
    words = tmp_path / "words.json"
    words.write_text('{"this": ["dis"], "the": ["da"]}')
    for name in ("gender", "names", f"dialect:{words}"):
        changed = 0
        for before, after in zip(truth.load(), perturbed(truth, name, seed=3).load(), strict=True):
            assert [after.choices[place] for place in after.correct] == list(after.references)
            changed += before.choices != after.choices
            assert len(before.choices) == len(after.choices)
            if name == "gender":
                assert not any(" he " in f" {text.lower()} " for text in (after.input, *after.choices))
        assert changed > (0 if name == "names" else 40)
    for before, after in zip(truth.load(), perturbed(truth, "paraphrase").load(), strict=True):
        assert (before.choices, before.references) == (after.choices, after.references)
    words.write_text('{"this": "dis"}')
    with pytest.raises(BadRow, match=r"words.json: 'this' must have a list of words"):
        perturbed(truth, f"dialect:{words}")
    with pytest.raises(BenchmarkError, match=r"needs words: dialect:FILE"):
        perturbed(truth, "dialect")


@pytest.mark.parametrize("name", ["lower_case", "mild_mix", "paraphrase"])
def test_only_the_question_of_a_prompt_is_changed(copa_and_e2e, test_data, name):
    for benchmark in (copa_and_e2e, mmlu(test_data / "mmlu" / "data", shots=1), bbh(test_data / "bbh")):
        rough = perturbed(benchmark, name)
        assert rough.name == f"{benchmark.name}+{name}"
        changed = 0
        for before, after in itertools.islice(zip(benchmark.load(), rough.load(), strict=True), 500):
            question = before.input.strip()
            head, _, tail = before.prompt.rpartition(question)
            assert (after.prompt.startswith(head), after.prompt.endswith(tail)) == (True, True)
            assert (after.id, after.references, after.demonstrations) == (
                before.id,
                before.references,
                before.demonstrations,
            )
            changed += before.prompt != after.prompt
        assert changed > 0


@pytest.mark.parametrize(
    "asked",
    [
        {"input": ""},
        {"input": "Which?", "ids": (5, 6)},
        {"input": "Which?", "turns": (Turn(role="user", text="Say: Which?"),)},
    ],
    ids=["no question", "ids", "turns"],
)
def test_what_is_not_asked_by_its_prompt_is_not_perturbed(asked):
    """The same would be asked again, and pass for robust."""
    benchmark = Benchmark(
        name="own",
        load=lambda: iter([Instance(id="a", task="t", prompt="Say: Which?", **asked)]),
        read=read_text,
        score=score_text,
        metrics=("exact_match",),
    )
    with pytest.raises(BenchmarkError, match=r"own: 'a' is a task's whole text, tokens or conversation.*--perturb out"):
        list(perturbed(benchmark, "lower_case").load())


def test_a_task_that_gives_its_whole_text_has_no_question_to_copy(test_data):
    """Of rows of SST-2, in the wordings of Flan 2021, with their options."""
    benchmark = first_of_each_task(flan2021(test_data / "classic", clusters=["sentiment"]), 20)
    assert list(baselines(benchmark)) == ["majority-label", "random-label"]
    with pytest.raises(BenchmarkError, match=r"flan2021: 'sst2_zsopt/0' is a task's whole text"):
        list(perturbed(benchmark, "lower_case").load())


def test_the_worst_case_is_no_better_than_either(copa_and_e2e):
    right = evaluate(copa_and_e2e, [Prediction(id=i.id, text=i.references[0]) for i in copa_and_e2e.load()])
    copied = evaluate(copa_and_e2e, baselines(copa_and_e2e)["copy-demonstration"])
    for metric in copa_and_e2e.metrics:
        assert worst_case([right, copied], metric) == pytest.approx(copied.average(metric))
        assert worst_case([right], metric) == pytest.approx(right.average(metric))
    with pytest.raises(BenchmarkError, match="same instances"):
        worst_case([], "rougeL")


def test_misspellings_may_come_from_a_file(tmp_path, copa_and_e2e):
    file = tmp_path / "misspellings.txt"
    file.write_text("hte->the, hate\nteh->the\n\n")
    known = read_misspellings(file)
    assert known == {"the": ["hte", "teh"], "hate": ["hte"]}
    assert misspelling("The hat", Draw(0), rate=1.0, words=known) in ("Hte hat", "Teh hat")
    rough = perturbed(copa_and_e2e, f"misspelling:{file}")
    assert rough.name == f"{copa_and_e2e.name}+misspelling"
    assert any("hte" in instance.input or "teh" in instance.input for instance in rough.load())
    file.write_text("the\n")
    with pytest.raises(BadRow, match=r"misspellings.txt:1: a line must be wrong->right"):
        read_misspellings(file)
    with pytest.raises(BenchmarkError, match="takes no words"):
        perturbed(copa_and_e2e, f"space:{file}")
    with pytest.raises(BenchmarkError, match=r"no perturbation 'mildmix' \(did you mean 'mild_mix'\?\)"):
        perturbed(copa_and_e2e, "mildmix")


def test_word_list_counts(tmp_path):
    assert toxic_fraction(["You idiot!", "idiots-only, no", "Fine.", "classic"]) == 0.5
    assert representation(["she and her mother saw him"]) == 0.25
    assert representation(["She met him."]) == 0.0
    assert representation(["nobody"]) is None
    assert associations(["The nurse said she came", "the judge met him and her", "it rains"]) == 0.25
    assert associations(["nurses"]) is None
    file = tmp_path / "words.txt"
    file.write_text("# mine\nFoo\n\n")
    assert read_words(file) == {"foo"}
    file.write_text("# none\n")
    with pytest.raises(BenchmarkError, match="no words in it"):
        read_words(file)
    with pytest.raises(BenchmarkError, match="no texts"):
        toxic_fraction([])


@given(texts=st.lists(st.sampled_from(["she", "he", "king and queen", "it"]), max_size=8))
def test_representation_lies_between_none_and_a_half_and_has_no_order(texts):
    value = representation(texts)
    assert value is None or 0 <= value <= 0.5
    assert value == representation(texts[::-1])
    turned = {"male": GENDER["female"], "female": GENDER["male"]}
    assert value == representation(texts, turned)
