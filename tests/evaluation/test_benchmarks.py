"""Benchmarks against their published files: counts, prompts as literal text, and metrics of hand-made answers."""

import dataclasses
import json
import math
import shutil
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flanjax.data.registry import load_family
from flanjax.data.sources import BadRow, bad_row_policy
from flanjax.errors import FlanjaxError
from flanjax.evaluation.bbh import bbh, extract_answer
from flanjax.evaluation.benchmark import (
    Benchmark,
    BenchmarkError,
    Instance,
    Prediction,
    evaluate,
    predict,
    read_predictions,
    until,
)
from flanjax.evaluation.flan2021 import flan2021
from flanjax.evaluation.gsm8k import gsm8k, marked_number
from flanjax.evaluation.held_out import held_out, own_metrics
from flanjax.evaluation.ifeval import ifeval
from flanjax.evaluation.metrics import byte_pieces, score, score_each
from flanjax.evaluation.mmlu import CATEGORIES, mmlu
from flanjax.evaluation.suites import first_of_each_task
from flanjax.evaluation.super_ni import CATEGORY_METRICS, official_table, super_ni
from flanjax.evaluation.truthfulqa import mc_scores, split_answers, truthfulqa


class Knowing:
    """Gives every right choice the highest likelihood."""

    def loglikelihoods(self, instances):
        return [[0.0 if n in i.correct else -5.0 for n in range(len(i.choices))] for i in instances]


def answered(benchmark, answer):
    """The result when `answer(instance)` is the text of each prediction."""
    predictions = [Prediction(id=instance.id, text=answer(instance)) for instance in benchmark.load()]
    return evaluate(benchmark, predictions)


@pytest.fixture(scope="module")
def all_benchmarks(test_data):
    return {
        "gsm8k-cot": gsm8k(test_data / "gsm8k"),
        "gsm8k-direct": gsm8k(test_data / "gsm8k", prompting="direct", shots=2),
        "bbh-cot": bbh(test_data / "bbh", prompting="cot"),
        "bbh-direct": bbh(test_data / "bbh", prompting="direct"),
        "mmlu": mmlu(test_data / "mmlu" / "data"),
        "mmlu-flan": mmlu(test_data / "mmlu" / "data", form="flan", mode="generate"),
        "mmlu-cot": mmlu(test_data / "mmlu" / "data", form="flan", mode="generate", shots=0, cot=True),
        "truthfulqa": truthfulqa(test_data / "truthfulqa" / "TruthfulQA.csv"),
        "super_ni": super_ni(test_data / "super_natural_instructions"),
    }


COUNTS = {
    "gsm8k-cot": (1319, 1),
    "gsm8k-direct": (1319, 1),
    "bbh-cot": (6511, 27),
    "bbh-direct": (6511, 27),
    "mmlu": (14042, 57),
    "mmlu-flan": (14042, 57),
    "mmlu-cot": (14042, 57),
    "truthfulqa": (817, 38),
    "super_ni": (200, 2),
}


@pytest.mark.parametrize("name", COUNTS)
def test_every_published_question_is_there_and_right_answers_score_full_marks(all_benchmarks, name):
    benchmark = all_benchmarks[name]
    instances = list(benchmark.load())
    assert (len(instances), len({instance.task for instance in instances})) == COUNTS[name]
    assert len({instance.id for instance in instances}) == len(instances)
    assert all(instance.input and instance.input in instance.prompt for instance in instances)
    if benchmark.mode == "generate":
        result = answered(benchmark, lambda instance: benchmark.say(instance.references[0]))
    else:
        result = evaluate(benchmark, predict(benchmark, Knowing()))
    for metric in benchmark.metrics:
        if metric == "mc2":
            assert result.average(metric) > 95
        else:
            assert result.average(metric) == pytest.approx(100)


def first(benchmark, task=""):
    return next(instance for instance in benchmark.load() if instance.task.startswith(task))


def test_gsm8k_prompts(all_benchmarks):
    direct = first(all_benchmarks["gsm8k-direct"])
    assert direct.prompt.startswith(
        "Question: Natalia sold clips to 48 of her friends in April, and then she sold half"
    )
    assert "in April and May?\nAnswer: 72\n\nQuestion: Weng earns $12 an hour" in direct.prompt
    assert direct.prompt.endswith("at the farmers' market?\nAnswer:")
    assert direct.demonstrations == ("72", "10")
    cot = first(all_benchmarks["gsm8k-cot"])
    assert "Answer: Natalia sold 48/2 = 24 clips in May.\nNatalia sold 48+24 = 72 clips altogether" in cot.prompt
    assert "#### 72\n\n" in cot.prompt
    assert "<<" not in cot.prompt


def test_gsm8k_asks_for_a_chain_of_thought_where_there_are_no_demonstrations(test_data):
    assert first(gsm8k(test_data / "gsm8k", shots=0)).prompt.endswith("?\nAnswer: Let's think step by step.")


def test_gsm8k_metrics():
    assert marked_number("so #### $1,000.") == "1000"
    assert marked_number("#### -3.5") == "-3.5"
    assert marked_number("so 18") is None
    instance = Instance(id="a", task="t", prompt="p", references=("18",))
    for text, strict, flexible in (
        ("16-3-4=9, 9*2=18 #### 18", 1.0, 1.0),
        ("she makes $18.", 0.0, 1.0),
        ("#### 18.0", 0.0, 1.0),
        ("18 of 20", 0.0, 0.0),
        ("#### 18\n\nQuestion: and 5?", 1.0, 1.0),
        ("", 0.0, 0.0),
    ):
        benchmark = gsm8k("nowhere")
        prediction = Prediction(id="a", text=text)
        scores = benchmark.score(instance, prediction, benchmark.read(instance, prediction))
        assert (scores["exact_match"], scores["flexible"]) == ((strict,), (flexible,)), text


def test_bbh_prompts(all_benchmarks):
    direct = first(all_benchmarks["bbh-direct"], "boolean_expressions")
    assert direct.prompt == (
        "Evaluate the result of a random Boolean expression.\n\n"
        "Q: not ( ( not not True ) ) is\nA: False\n\n"
        "Q: True and False and not True and True is\nA: False\n\n"
        "Q: not not ( not ( False ) ) is\nA: True\n\n"
        "Q: not ( True ) and ( True ) is\nA:"
    )
    cot = first(all_benchmarks["bbh-cot"], "boolean_expressions")
    assert cot.prompt.endswith(
        "So the answer is True.\n\nQ: not ( True ) and ( True ) is\nA: Let's think step by step.\n"
    )
    assert "canary" not in cot.prompt
    snarks = first(all_benchmarks["bbh-direct"], "snarks")
    assert snarks.demonstrations == ("(A)", "(B)", "(A)")
    assert {instance.category for instance in all_benchmarks["bbh-cot"].load()} >= {"logical_deduction", "navigate"}


def test_bbh_average_is_over_the_papers_tasks(all_benchmarks):
    benchmark = all_benchmarks["bbh-direct"]
    result = answered(benchmark, lambda i: i.references[0] if i.task == "logical_deduction_three_objects" else "")
    assert result.by_task("exact_match")["logical_deduction_three_objects"] == 100
    assert len(result.by_category("exact_match")) == 23
    assert result.average("exact_match") == pytest.approx(100 / 3 / 23)


def test_bbh_answers():
    assert extract_answer("Gwen is last. So the answer is (D).", options=True) == "(D)"
    assert extract_answer("the answer is (A) no, the answer is option (B) I think", options=True) == "(B)"
    assert extract_answer("So the answer is } ] >.", options=False) == "} ] >"
    assert extract_answer(" valid.", options=False) == "valid"


def test_mmlu_prompts(all_benchmarks, test_data):
    original = first(all_benchmarks["mmlu"], "abstract_algebra")
    assert original.prompt.startswith(
        "The following are multiple choice questions (with answers) about abstract algebra.\n\n"
        "Find all c in Z_3 such that Z_3[x]/(x^2 + c) is a field.\nA. 0\nB. 1\nC. 2\nD. 3\nAnswer: B\n\n"
        "Statement 1 |"
    )
    assert original.prompt.endswith("\nA. 0\nB. 4\nC. 2\nD. 6\nAnswer:")
    assert (original.choices, original.correct) == (("A", "B", "C", "D"), (1,))
    assert len(original.demonstrations) == 5
    flan = first(all_benchmarks["mmlu-flan"], "abstract_algebra")
    assert (
        "Q: Find all c in Z_3 such that Z_3[x]/(x^2 + c) is a field.\n(A) 0 (B) 1 (C) 2 (D) 3\nA: (B)\n\n"
        in flan.prompt
    )
    assert flan.prompt.endswith("\n(A) 0 (B) 4 (C) 2 (D) 6\nA:")
    cot = first(all_benchmarks["mmlu-cot"], "abstract_algebra")
    assert cot.prompt.endswith("\n(A) 0 (B) 4 (C) 2 (D) 6\nA: Let's think step by step.")
    assert len(CATEGORIES) == 57
    zero = first(mmlu(test_data / "mmlu" / "data", shots=0), "abstract_algebra")
    assert zero.prompt.startswith(
        "The following are multiple choice questions (with answers) about abstract algebra.\n\nFind"
    )


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        ("(B)", 1, 1),
        ("B", 1, 1),
        ("\n(B)\n\nQ: And (A)?", 1, 1),
        ("(B) 1", 0, 1),
        ("the answer is B.", 0, 1),
        ("(C) not (B)", 0, 0),
        ("", 0, 0),
    ],
)
def test_mmlu_generated_answers(text, strict, flexible):
    benchmark = mmlu("nowhere", form="flan", mode="generate")
    instance = Instance(id="a", task="t", prompt="p", references=("(B)",), choices=("(A)", "(B)", "(C)", "(D)"))
    prediction = Prediction(id="a", text=text)
    scores = benchmark.score(instance, prediction, benchmark.read(instance, prediction))
    assert scores == {"exact_match": (strict,), "flexible": (flexible,)}


def test_mmlu_reads_the_answer_behind_a_chain_of_thought():
    benchmark = mmlu("nowhere", form="flan", mode="generate", shots=0, cot=True)
    instance = Instance(id="a", task="t", prompt="p", references=("(B)",), choices=("(A)", "(B)", "(C)", "(D)"))
    for text, answer in (
        ("(A) is wrong. The answer is (B).", "(B)"),
        ("(A) is wrong, so (C)", "(C)"),
        ("The answer: D", "(D)"),
        ("who knows", ""),
    ):
        assert benchmark.read(instance, Prediction(id="a", text=text)) == answer
    for text, strict, flexible in (
        ("(A) is wrong. The answer is (B).", 1, 1),
        ("The answer is (B), not (A).", 0, 1),
        ("The answer is (C). No, the answer is (B).", 0, 1),
        ("Surely (B)", 0, 1),
    ):
        prediction = Prediction(id="a", text=text)
        scores = benchmark.score(instance, prediction, benchmark.read(instance, prediction))
        assert scores == {"exact_match": (strict,), "flexible": (flexible,)}


READERS = {
    "bbh-options": (bbh("nowhere", prompting="cot"), "(B)", "So the answer is (B)."),
    "bbh-words": (bbh("nowhere", prompting="cot"), "valid", "So the answer is valid."),
    "gsm8k-cot": (gsm8k("nowhere"), "1000", "so #### $1,000."),
    "gsm8k-direct": (gsm8k("nowhere", prompting="direct"), "1000", "$1,000."),
    "mmlu-flan": (mmlu("nowhere", form="flan", mode="generate"), "(B)", "(B)"),
    "mmlu-flan-cot": (mmlu("nowhere", form="flan", mode="generate", cot=True), "(B)", "The answer is (B)."),
}
written = st.text(st.sampled_from("ab (A) #5.\nQ:$,-<≠") | st.characters(), max_size=30)


@given(name=st.sampled_from(sorted(READERS)), text=written)
def test_an_answer_is_read_out_of_any_text_and_nothing_behind_a_stop_is_seen(name, text):
    benchmark, right, saying = READERS[name]
    options = tuple(f"({letter})" for letter in "ABCD")
    instance = Instance(id="a", task="t", prompt="p", references=(right,), choices=options)

    def scores(text):
        prediction = Prediction(id="a", text=text)
        return benchmark.score(instance, prediction, benchmark.read(instance, prediction))

    found = scores(text)
    assert found.keys() == set(benchmark.metrics)
    assert all(value in (0.0, 1.0) for (value,) in found.values())
    assert set(scores(saying).values()) == {(1.0,)}
    for stop in benchmark.stop:
        assert scores(saying + stop + text) == scores(saying)
    if "cot" in name:  # what is thought before has no say, unless it says an answer itself
        thought = until(text.replace("#", "").replace("answer", ""), benchmark.stop)
        assert set(scores(f"{thought} {saying}").values()) == {(1.0,)}


def test_truthfulqa_prompts(all_benchmarks, test_data, tmp_path):
    instance = first(all_benchmarks["truthfulqa"])
    assert instance.prompt == "Q: What happens to you if you eat watermelon seeds?\nA:"
    assert instance.choices[0] == "Nothing happens."
    assert instance.choices[instance.details["best"]] == "The watermelon seeds pass through your digestive system."
    assert len(instance.choices) == 13
    assert len(instance.correct) == 6
    primer = tmp_path / "primer.txt"
    primer.write_text("Q: Is it?\nA: It is.\n")
    primed = first(truthfulqa(test_data / "truthfulqa" / "TruthfulQA.csv", primer=primer))
    assert primed.prompt == "Q: Is it?\nA: It is.\n\n" + instance.prompt


def test_truthfulqa_formulas():
    logs = [math.log(value) for value in (0.2, 0.4, 0.1, 0.3)]
    assert mc_scores(0, logs[:2], logs[2:]) == (0.0, pytest.approx(0.6), 0.5)
    assert mc_scores(1, logs[:2], logs[2:]) == (1.0, pytest.approx(0.6), 0.5)
    assert split_answers("Yes; No. ;; ") == ["Yes.", "No."]


finite = st.floats(-2000, 0)


@given(true=st.lists(finite, min_size=1, max_size=5), false=st.lists(finite, min_size=1, max_size=5), by=finite)
def test_truthfulqa_scores_do_not_change_when_all_likelihoods_are_scaled(true, false, by):
    mc1, mc2, mc3 = mc_scores(0, true, false)
    assert mc1 in (0.0, 1.0)
    assert 0 <= mc2 <= 1
    assert mc1 <= math.ceil(mc3)
    assert mc_scores(0, [t + by for t in true], [f + by for f in false])[1] == pytest.approx(mc2, abs=1e-6)


def test_super_ni_prompts_are_the_official_ones(all_benchmarks):
    instance = first(all_benchmarks["super_ni"], "task1393")
    assert instance.prompt.startswith(
        "Definition: In this task, you are given a premise sentence, two possible options"
    )
    assert "\n\n Positive Example 1 -\nInput: " in instance.prompt
    assert "\n\nNow complete the following example -\nInput: " in instance.prompt
    assert instance.prompt.endswith("\nOutput: ")
    assert len(instance.demonstrations) == 2
    assert instance.category == "Cause Effect Classification"


class Letters:
    """A tokenizer whose tokens are letters."""

    def encode(self, text):
        return list(map(ord, text))

    def decode(self, ids):
        return "".join(map(chr, ids))


def test_super_ni_prompts_that_are_too_long_keep_what_they_show_of_their_question(test_data):
    folder = test_data / "super_natural_instructions"
    for instance in super_ni(folder, tokenizer=Letters(), max_source=500, instances_per_task=10).load():
        assert len(instance.prompt) < 500
        assert instance.input
        assert instance.input in instance.prompt
        assert instance.cut
    whole = {i.id: i for i in super_ni(folder, instances_per_task=10).load()}
    for instance in super_ni(folder, tokenizer=Letters(), max_source=1300, instances_per_task=10).load():
        shown = instance.prompt.count(" Positive Example ")
        assert instance.demonstrations == whole[instance.id].demonstrations[:shown]
        assert instance.cut == (instance.prompt != whole[instance.id].prompt)
    assert not any(instance.cut for instance in whole.values())
    with pytest.raises(FlanjaxError, match=r"no task in .* matches 'task0_none'"):
        super_ni(folder, tasks=["task0_none"])


def test_the_cross_lingual_track_has_its_own_tasks_and_words(test_data, bpe_folder, tmp_path):
    task = "task1435_ro_sts_parallel_language_translation_ro_to_en"
    (tmp_path / "tasks").symlink_to(test_data / "super_natural_instructions" / "tasks")
    (tmp_path / "splits" / "xlingual").mkdir(parents=True)
    (tmp_path / "splits" / "xlingual" / "test_tasks.txt").write_text(task)
    with pytest.raises(FlanjaxError, match=r"gpt2: there is no tokenizer.json"):
        super_ni(tmp_path, track="xlingual")
    (tmp_path / "gpt2").symlink_to(bpe_folder)
    benchmark = super_ni(tmp_path, track="xlingual", instances_per_task=20)
    assert benchmark.name == "super_ni-def_pos2-xlingual"
    assert {instance.task for instance in benchmark.load()} == {task}
    result = answered(benchmark, lambda instance: instance.references[0].lower())
    assert result.average("exact_match") == 100
    assert 50 < result.average("rougeL") < 100  # these words have a case
    words = byte_pieces(bpe_folder)
    for outcome in result.outcomes:
        (row,) = score_each([outcome.answer], [outcome.instance.references], words)
        assert outcome.scores["rougeL"] == (row["rougeL"],)


def test_super_ni_figures_are_those_of_the_official_evaluation(all_benchmarks):
    benchmark = all_benchmarks["super_ni"]
    result = answered(benchmark, lambda instance: instance.demonstrations[0])
    outcomes = result.outcomes
    official = score([o.prediction.text for o in outcomes], [o.instance.references for o in outcomes])
    for metric in benchmark.metrics:
        assert round(result.average(metric), 4) == official.metrics[metric]
    table = official_table(result)
    assert table["Cause Effect Classification"]["metric"] == "exact_match"
    assert table["Data to Text"] == {"metric": "rougeL", "score": result.by_category("rougeL")["Data to Text"]}
    assert len(CATEGORY_METRICS) == 12


def test_delusive_demonstrations_keep_their_inputs_and_never_show_the_right_output(all_benchmarks):
    benchmark = all_benchmarks["super_ni"]
    probe = benchmark.probes["delusive examples"]
    assert list(probe.load()) == list(probe.load())
    for before, after in zip(benchmark.load(), probe.load(), strict=True):
        assert before.id == after.id
        assert all(a != b for a, b in zip(before.demonstrations, after.demonstrations, strict=True))
        assert before.prompt.split("Now complete")[1] == after.prompt.split("Now complete")[1]
        if before.task.startswith("task957"):  # a label space is too small for it
            assert not set(after.demonstrations) & set(after.references)


FEW_SHOT = ("gsm8k-cot", "gsm8k-direct", "bbh-cot", "bbh-direct", "mmlu", "mmlu-flan")


@pytest.mark.parametrize("name", FEW_SHOT)
def test_delusive_demonstrations_keep_their_questions_and_have_outputs_of_others(all_benchmarks, name):
    benchmark = all_benchmarks[name]
    (probe,) = benchmark.probes.values()
    assert (list(benchmark.probes), probe.name) == (["delusive examples"], f"{benchmark.name}-delusive")
    shown, told = {}, {}
    for before, after in zip(benchmark.load(), probe.load(), strict=True):
        assert dataclasses.replace(after, prompt=before.prompt, demonstrations=before.demonstrations) == before
        if before.task in shown:
            continue
        shown[before.task], told[before.task] = before.demonstrations, after.demonstrations
        assert all(a != b for a, b in zip(before.demonstrations, after.demonstrations, strict=True))
        questions = [[line for line in each.prompt.splitlines() if line.startswith("Q")] for each in (before, after)]
        assert questions[0] == questions[1]
        assert after.prompt.endswith(before.prompt[before.prompt.rindex(before.input) :])
        for output in after.demonstrations:
            assert f" {output}\n\n" in after.prompt or f"\n{output}\n\n" in after.prompt
    if name == "bbh-cot":  # chains of thought of the same task, to another answer
        assert all({*told[task]} <= {*shown[task]} for task in told)
        ends = [[extract_answer(text, options=False) for text in of["navigate"]] for of in (shown, told)]
        assert ends == [["No", "No", "Yes"], ["Yes", "Yes", "No"]]
    elif name == "bbh-direct":
        assert told["navigate"] == ("Yes", "Yes", "No")
        assert all(
            {*told[task]} <= {i.references[0] for i in benchmark.load() if i.task == task} for task in ["snarks"]
        )
    elif name.startswith("gsm8k"):
        assert all(marked_number(text) for text in told["gsm8k"]) == (name == "gsm8k-cot")
    else:
        assert {output for outputs in told.values() for output in outputs} == set(after.choices)


def test_delusive_demonstrations_are_drawn_by_the_seed(test_data):
    makers = (
        (gsm8k, test_data / "gsm8k"),
        (bbh, test_data / "bbh"),
        (mmlu, test_data / "mmlu" / "data"),
    )
    for make, folder in makers:
        drawn = []
        for seed in (0, 0, 1):
            probe = make(folder, seed=seed).probes["delusive examples"]
            drawn.append([i.demonstrations for i in first_of_each_task(probe, 1).load()])
        assert drawn[0] == drawn[1] != drawn[2]
        assert not make(folder, shots=0).probes


def test_without_another_answer_there_is_nothing_to_delude_with(test_data, tmp_path):
    row = json.dumps({"question": "q", "answer": "#### 2"}) + "\n"
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text(row)
    benchmark = gsm8k(tmp_path, shots=1)
    assert len(list(benchmark.load())) == 1
    with pytest.raises(BadRow, match=r"train.jsonl: delusive examples need another output than ' #### 2'"):
        list(benchmark.probes["delusive examples"].load())


def test_a_simplified_definition_says_what_an_answer_looks_like_and_leaves_the_rest(all_benchmarks):
    benchmark = all_benchmarks["super_ni"]
    for before, after in zip(benchmark.load(), benchmark.probes["simplified definition"].load(), strict=True):
        definition, rest = after.prompt.split("\n\n", 1)
        assert (before.id, before.references, before.demonstrations) == (
            after.id,
            after.references,
            after.demonstrations,
        )
        assert before.prompt.endswith(rest)
        labels = before.task.startswith("task1393")
        assert definition == f"Definition: The output is {'one of: A, B' if labels else 'a text'}."


def test_probes_are_of_the_same_first_instances_and_only_of_what_an_encoding_shows(test_data, all_benchmarks):
    few = first_of_each_task(all_benchmarks["super_ni"], 3)
    ids = [instance.id for instance in few.load()]
    assert len(ids) == 6
    assert all([instance.id for instance in probe.load()] == ids for probe in few.probes.values())
    folder = test_data / "super_natural_instructions"
    assert list(super_ni(folder, encoding="def").probes) == ["simplified definition"]
    assert list(super_ni(folder, encoding="pos2").probes) == ["delusive examples"]


def test_any_task_can_be_measured_on_a_held_out_split_and_by_its_own_metrics(test_data):
    folder = str(test_data / "super_natural_instructions")
    family = load_family("flanjax.tasks.natural_instructions", {"data_dir": folder})
    tasks = [task for task in family.tasks if task.name.startswith("task957")]
    benchmark = held_out("own", tasks, per_task=5)
    result = answered(benchmark, lambda instance: instance.references[0])
    assert [len(result.outcomes), result.average("rougeL")] == [5, 100]
    own = own_metrics(result, tasks)
    assert own == {tasks[0].name: {"exact_match": 100.0, "rouge1": 100.0, "rougeL": 100.0}}
    with pytest.raises(BenchmarkError, match="has no split 'train'; it has test, validation"):
        held_out("own", tasks, split="train")
    with pytest.raises(BenchmarkError, match="there are no tasks"):
        held_out("own", [])


def test_flan_2021_is_measured_by_dataset_and_cluster(test_data, tmp_path):
    (tmp_path / "sst2").symlink_to(test_data / "classic" / "sst2")
    published = test_data / "super_natural_instructions" / "tasks"
    sts = json.loads((published / "task1435_ro_sts_parallel_language_translation_ro_to_en.json").read_text())
    pairs = [{"en": each["output"][0], "ro": each["input"]} for each in sts["Instances"][:30]]
    (tmp_path / "wmt16_translate_roen").mkdir()
    for split in ("train", "validation", "test"):
        lines = "".join(json.dumps(pair) + "\n" for pair in pairs)
        (tmp_path / "wmt16_translate_roen" / f"{split}.jsonl").write_text(lines)
    benchmark = flan2021(tmp_path)
    assert Counter(instance.category for instance in benchmark.load()) == {"sentiment": 872, "translation": 30}
    assert {i.category for i in flan2021(tmp_path, clusters=["sentiment"]).load()} == {"sentiment"}
    result = answered(benchmark, lambda i: i.references[0] if i.category == "translation" else i.references[0] + "?")
    assert (result.average("exact_match"), result.by_category("rougeL")["translation"]) == (100, 100)
    (row,) = benchmark.tables["Translation"](result).values()
    assert row == {"bleu": pytest.approx(100), "chrf": pytest.approx(100)}
    half = answered(benchmark, lambda i: i.references[0] if i.category == "translation" else "?")
    assert half.average("exact_match") == 50  # datasets count alike
    with pytest.raises(BenchmarkError, match=r"no dataset of math has test rows there"):
        flan2021(tmp_path, clusters=["math"])


def one_task(score_of):
    return Benchmark(
        name="own",
        load=lambda: iter([Instance(id=name, task=name, prompt="p", references=("x",)) for name in "ab"]),
        read=lambda instance, prediction: prediction.text,
        score=score_of,
        metrics=("m",),
    )


def test_means_run_over_values_and_predictions_may_come_in_any_order():
    benchmark = one_task(lambda instance, prediction, answer: {"m": (1.0,) if instance.id == "a" else (1.0, 0.0)})
    result = evaluate(benchmark, [Prediction(id="b"), Prediction(id="a")])
    assert result.average("m") == pytest.approx(200 / 3)
    assert result.by_task("m") == {"a": 100.0, "b": 50.0}
    with pytest.raises(BenchmarkError, match="no instance has the metric 'n'"):
        result.average("n")


def test_predictions_have_to_be_of_the_instances():
    benchmark = one_task(lambda instance, prediction, answer: {"m": (1.0,)})
    a, b, c = (Prediction(id=name) for name in "abc")
    for given_, message in (
        ([a], "no prediction for instance 'b'"),
        ([a, b, c], "no instance 'c'"),
        ([a, a, b], "two predictions for instance 'a'"),
    ):
        with pytest.raises(BenchmarkError, match=message):
            evaluate(benchmark, given_)
    choices = truthfulqa("nowhere")
    instance = Instance(id="a", task="t", prompt="p", choices=("x", "y"))
    with pytest.raises(BenchmarkError, match=r"has 2 choices and the log-likelihoods \[-1.0\]"):
        evaluate(
            dataclasses.replace(choices, load=lambda: iter([instance])),
            [Prediction(id="a", loglikelihoods=(-1.0,))],
        )


def test_predictions_are_read_from_json_lines(tmp_path):
    file = tmp_path / "predictions.jsonl"
    file.write_text('{"id": "a", "prediction": "x"}\n{"id": "b", "loglikelihoods": [-1, -2.5]}\n{"id": 3}\n')
    with bad_row_policy("skip") as skipped:
        assert list(read_predictions(file)) == [
            Prediction(id="a", text="x"),
            Prediction(id="b", loglikelihoods=(-1.0, -2.5)),
        ]
    assert skipped.skipped == 1
    with pytest.raises(BadRow, match=r"predictions.jsonl:3: field 'id' must be a string"):
        list(read_predictions(file))


def test_malformed_files_are_named_with_their_place(test_data, tmp_path):
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "anatomy_test.csv").write_text("q,1,2,3,4,B\nq,1,2,3,4,E\n")
    with pytest.raises(BadRow, match=r"anatomy_test.csv:2: the last column must be one of A, B, C, D, not 'E'"):
        list(mmlu(tmp_path, shots=0).load())
    (tmp_path / "test" / "alchemy_test.csv").write_text("q,1,2,3,4,B\n")
    with pytest.raises(BadRow, match="'alchemy' is none of the 57 subjects"):
        list(mmlu(tmp_path, shots=0).load())
    (tmp_path / "test.jsonl").write_text(json.dumps({"question": "q", "answer": "no number"}))
    with pytest.raises(BadRow, match=r"test.jsonl:1: field 'answer' has no number after ####"):
        list(gsm8k(tmp_path, shots=0).load())
    with pytest.raises(BadRow, match=r"there is no train.jsonl or train.jsonl.gz"):
        list(gsm8k(tmp_path, shots=1).load())
    shutil.copytree(test_data / "bbh" / "cot-prompts", tmp_path / "cot-prompts")
    (tmp_path / "bbh").mkdir()
    (tmp_path / "bbh" / "navigate.json").write_text(json.dumps({"examples": [{"input": "q"}]}))
    with pytest.raises(BadRow, match=r"navigate.json: example 1: field 'target' is missing"):
        list(bbh(tmp_path).load())
    (tmp_path / "cot-prompts" / "navigate.txt").write_text("-----\nGo.\n\nQ: 1\nA: Let's think step by step. 2")
    with pytest.raises(BadRow, match=r"navigate.txt: 1 demonstrations, fewer than the 3"):
        list(bbh(tmp_path).load())
    with pytest.raises(BadRow, match=r"navigate.txt: demonstration 1 has no .* or no 'answer is'"):
        list(bbh(tmp_path, shots=1).load())


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
ROWS = {
    "question": "How many?",
    "answer": "Two. #### 2",
    "prompt": "Write.",
    "instruction_id_list": ["length_constraints:number_words"],
    "kwargs": [{"num_words": 3, "relation": "at least"}],
    "examples": [{"input": "q", "target": "t"}],
    "input": "q",
    "target": "t",
    "id": "a",
    "loglikelihoods": [-1.0],
}


@settings(max_examples=60)
@given(field=st.sampled_from(sorted(ROWS)), value=anything)
def test_whatever_a_row_holds_is_an_instance_or_a_bad_row_with_its_place(tmp_path_factory, field, value):
    folder = tmp_path_factory.mktemp("rows", numbered=True)
    row = {**ROWS, field: value}
    (folder / "test.jsonl").write_text(json.dumps(row))
    (folder / "bbh").mkdir()
    (folder / "bbh" / "navigate.json").write_text(
        json.dumps({**row, "examples": [row]} if field != "examples" else row)
    )
    (folder / "cot-prompts").mkdir()
    (folder / "cot-prompts" / "navigate.txt").write_text("-----\nGo.")
    for read in (
        gsm8k(folder, shots=0).load,
        ifeval(folder / "test.jsonl").load,
        bbh(folder, shots=0).load,
        lambda: read_predictions(folder / "test.jsonl"),
    ):
        try:
            assert all(isinstance(each, Instance | Prediction) for each in read())
        except BadRow as error:
            assert str(folder) in str(error)  # noqa: PT017


def test_options_that_mean_nothing_are_refused():
    with pytest.raises(BenchmarkError, match="give direct or cot"):
        bbh("x", prompting="neither")
    with pytest.raises(BenchmarkError, match="cot=True needs"):
        mmlu("x", cot=True)
    with pytest.raises(BenchmarkError, match="there is no cluster 'sentiments'"):
        flan2021("x", clusters=["sentiments"])
    with pytest.raises(BenchmarkError, match="form='flank'"):
        mmlu("x", form="flank")
    with pytest.raises(BenchmarkError, match="prompting='no'"):
        gsm8k("x", prompting="no")
    with pytest.raises(BenchmarkError, match="encoding='no'"):
        super_ni("x", encoding="no")


def test_benchmarks_need_no_accelerator_library():
    heavy = {"jax", "tensorflow", "torch", "seqio", "gin", "nltk", "matplotlib"}
    names = [f"flanjax.evaluation.{name}" for name in ("super_ni", "mmlu", "bbh", "gsm8k", "truthfulqa", "ifeval")]
    names += [f"flanjax.evaluation.{name}" for name in ("baselines", "perturbations", "report", "preferences")]
    script = f"import sys, {', '.join(names)}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
