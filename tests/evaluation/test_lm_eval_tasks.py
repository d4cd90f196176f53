"""The same instance gives the same prompt, and the same text the same verdict, as in lm-evaluation-harness 0.4.13.

Its task files are read from the installed package, its data are ours. Where the two differ on purpose, a test says how.
"""

import csv
import gzip
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flanjax.evaluation.bbh import bbh
from flanjax.evaluation.benchmark import Benchmark, BenchmarkError, Instance, Prediction, until
from flanjax.evaluation.gsm8k import gsm8k
from flanjax.evaluation.ifeval import ifeval
from flanjax.evaluation.ifeval_rules import RULES, follows
from flanjax.evaluation.mmlu import CATEGORIES, mmlu
from flanjax.evaluation.suites import SUITES, first_of_each_task
from flanjax.evaluation.truthfulqa import truthfulqa

ROWS = 4  # of each task


def harness_task(file: str, **splits: list[dict[str, Any]]) -> Any:
    """A task of the harness over rows of ours."""
    import datasets
    import lm_eval.tasks
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    found = {name: datasets.Dataset.from_list(rows) for name, rows in splits.items()}
    config = load_yaml(Path(lm_eval.tasks.__file__).parent / file)
    return ConfigurableTask(config={**config, "custom_dataset": lambda **_: found})


def verdicts(task: Any, document: dict[str, Any], texts: Sequence[str]) -> dict[str, list[float]]:
    """Of each of the harness's filters whether each text is right."""
    from lm_eval.api.instance import Instance as Request

    requests = [Request("generate_until", document, ("", {}), 0) for _ in texts]
    for request, text in zip(requests, texts, strict=True):
        request.resps = [until(text, task.config.generation_kwargs["until"])]
    for each in task._filters:  # for all at once: one of them makes a table of all signs each time
        each.apply(requests)
    return {
        name: [task.process_results(document, [each.filtered_resps[name]])["exact_match"] for each in requests]
        for name in requests[0].filtered_resps
    }


def scored(benchmark: Benchmark, instance: Instance, text: str) -> dict[str, float]:
    prediction = Prediction(id=instance.id, text=text)
    scores = benchmark.score(instance, prediction, benchmark.read(instance, prediction))
    return {name: value for name, (value,) in scores.items()}


def mmlu_rows(folder: Path, split: str, subject: str) -> list[dict[str, Any]]:
    with open(folder / split / f"{subject}_{split}.csv", newline="") as stream:
        return [
            {"question": row[0], "choices": row[1:5], "answer": "ABCD".index(row[5])}
            for _, row in zip(range(max(ROWS, 5)), csv.reader(stream), strict=False)
        ]


@pytest.fixture(scope="module")
def thoughts(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MMLU with mmlu-cot.json as it was published, made from the demonstrations of the harness."""
    folder = tmp_path_factory.mktemp("mmlu")
    prompts = {}
    for subject in CATEGORIES:
        task = harness_task(
            f"mmlu/flan_cot_fewshot/mmlu_{subject}.yaml", test=mmlu_rows(test_data / "mmlu" / "data", "test", subject)
        )
        shown = [f"Q: {each['question'].strip()}\nA: {each['target']}" for each in task.config.fewshot_config.samples]
        prompts[subject] = "\n\n".join([task.config.description, *shown])
    (folder / "mmlu-cot.json").write_text(json.dumps(prompts))
    for split in ("dev", "test"):
        (folder / split).symlink_to(test_data / "mmlu" / "data" / split)
    return folder


MMLU = {
    "default": (5, {}),
    "flan_n_shot/loglikelihood": (5, {"form": "flan"}),
    "flan_n_shot/generative": (0, {"form": "flan", "mode": "generate"}),
    "flan_cot_zeroshot": (0, {"form": "flan", "mode": "generate", "cot": True}),
    "flan_cot_fewshot": (4, {"form": "flan", "mode": "generate", "cot": True}),
}


@pytest.mark.parametrize("kind", MMLU)
def test_prompts_of_mmlu(thoughts: Path, kind: str) -> None:
    shots, options = MMLU[kind]
    if kind == "flan_n_shot/loglikelihood":
        assert SUITES["mmlu-flan-5shot"].make.keywords == {"shots": shots, **options}
    ours: dict[str, list[Instance]] = {}
    for instance in mmlu(thoughts, shots=shots, **options).load():
        ours.setdefault(instance.task, []).append(instance)
    for subject in CATEGORIES:
        rows = mmlu_rows(thoughts, "test", subject)
        task = harness_task(
            f"mmlu/{kind}/mmlu_{subject}.yaml", test=rows, validation=rows, dev=mmlu_rows(thoughts, "dev", subject)
        )
        for row, instance in zip(rows[:ROWS], ours[subject], strict=False):
            prompt = task.fewshot_context(row, num_fewshot=shots)
            if kind == "flan_cot_fewshot":  # its files have no blank line after descriptions, and several after answers
                prompt = prompt.replace(task.config.description, f"{task.config.description}\n\n", 1)
                prompt = re.sub(r"\s+\n\nQ: ", "\n\nQ: ", prompt).lstrip()
            assert instance.prompt == prompt
            if task.OUTPUT_TYPE == "multiple_choice":
                assert list(instance.choices) == task.doc_to_choice(row)
                assert instance.correct == (task.doc_to_target(row),)
            else:
                assert instance.references == (task.doc_to_target(row),)


def test_delusive_chains_of_thought_of_mmlu_are_those_of_other_letters(thoughts: Path) -> None:
    benchmark = mmlu(thoughts, form="flan", mode="generate", shots=4, cot=True)
    (probe,) = benchmark.probes.values()
    for before, after in zip(*(first_of_each_task(one, 1).load() for one in (benchmark, probe)), strict=True):
        assert all(a != b for a, b in zip(before.demonstrations, after.demonstrations, strict=True))
        (questions, chains), (same, others) = (
            zip(*(each.split("\nA:", 1) for each in one.prompt.strip().split("\n\nQ: ")[1:]), strict=True)
            for one in (before, after)
        )
        assert same == questions
        assert {*others} <= {*chains}
        assert all(a != b for a, b in zip(chains[:-1], others[:-1], strict=True))


def test_chains_of_thought_of_mmlu_have_to_be_there(test_data: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"form": "flan", "mode": "generate", "cot": True}
    with pytest.raises(BenchmarkError, match=r"mmlu-cot.json is not there: .* shots=0"):
        list(mmlu(test_data / "mmlu" / "data", **options).load())


pieces = st.lists(
    st.sampled_from(
        [*"ABCD", *(f"({letter})" for letter in "ABCD"), "the ", "The answer is ", "answer is ", "no, ", " ", "."]
    ),
    max_size=7,
).map("".join)
ROW = {"question": "Which?", "choices": ["one", "two", "three", "four"], "answer": 1}


@settings(max_examples=10, deadline=None)
@given(texts=st.lists(pieces, min_size=40, max_size=60))
def test_answers_to_mmlu_are_read_alike(
    texts: list[str], mmlu_answers: dict[str, tuple[Any, Benchmark, Instance]]
) -> None:
    task, benchmark, instance = mmlu_answers["flan_n_shot/generative"]
    found = verdicts(task, ROW, texts)
    for text, strict, flexible in zip(texts, found["strict-match"], found["flexible-extract"], strict=True):
        ours = scored(benchmark, instance, text)
        # Strictly it wants "(B)" to the letter; case, brackets and white space are no part of an answer here.
        assert ours["exact_match"] >= strict
        if re.search(r"\([A-D]\)", text):
            assert ours["flexible"] == flexible
    task, benchmark, instance = mmlu_answers["flan_cot_zeroshot"]
    found = verdicts(task, ROW, texts)
    for text, strict, flexible in zip(texts, found["strict-match"], found["flexible-extract"], strict=True):
        ours = scored(benchmark, instance, text)
        if text.endswith("."):  # its pattern takes the last sign of the line off the answer, a full stop or not
            assert ours["exact_match"] == strict
        if "answer" not in text and re.search(r"\([A-D]\)", text):
            assert ours["flexible"] == flexible


@pytest.fixture(scope="module")
def mmlu_answers() -> dict[str, tuple[Any, Benchmark, Instance]]:
    """Of two ways of prompting the harness's task, ours, and the instance of ROW."""
    instance = Instance(id="a", task="t", prompt="p", references=("(B)",), choices=("(A)", "(B)", "(C)", "(D)"))
    return {
        kind: (
            harness_task(f"mmlu/{kind}/mmlu_anatomy.yaml", test=[ROW], validation=[ROW], dev=[ROW]),
            mmlu("nowhere", shots=0, **MMLU[kind][1]),
            instance,
        )
        for kind in ("flan_n_shot/generative", "flan_cot_zeroshot")
    }


@pytest.mark.parametrize("prompting", ["direct", "cot"])
def test_prompts_of_bbh(test_data: Path, prompting: str) -> None:
    folder = test_data / "bbh"
    ours: dict[str, list[Instance]] = {}
    for instance in bbh(folder, prompting=prompting).load():
        ours.setdefault(instance.task, []).append(instance)
    assert len(ours) == 27
    for name, instances in ours.items():
        rows = json.loads((folder / "bbh" / f"{name}.json").read_text())["examples"][:ROWS]
        task = harness_task(f"bbh/{'cot_' * (prompting == 'cot')}fewshot/{name}.yaml", test=rows)
        for row, instance in zip(rows, instances, strict=False):
            prompt = task.fewshot_context(row, num_fewshot=3)
            if name == "sports_understanding":  # published with a space there
                prompt = prompt.replace("step by step.\n", "step by step. ", 3 * (prompting == "cot"))
            assert instance.prompt == prompt
            assert instance.references == (task.doc_to_target(row),)


def test_answers_to_bbh_are_read_alike(test_data: Path) -> None:
    """The published chains of thought, each after the question before it, and answers of other tasks."""
    benchmark = bbh(test_data / "bbh", prompting="cot")
    found = set()
    for instance in list(benchmark.load())[::50]:
        row = {"input": instance.input, "target": instance.references[0]}
        task = harness_task(f"bbh/cot_fewshot/{instance.task}.yaml", test=[row])
        right = f"So the answer is {row['target']}."
        for text in (
            right,
            *instance.demonstrations,
            *(each.replace(". So", ". Then so") for each in instance.demonstrations),
        ):
            text = text.replace("Q", "q")  # at every Q it ends a text, for it stops at "Q" and not at "Q:"
            if text.count("answer is ") > 1 or instance.task in ("dyck_languages", "word_sorting"):
                continue  # it takes the first answer of several, and of these tasks what follows the first full stop
            ((theirs,),) = verdicts(task, row, [text]).values()
            assert scored(benchmark, instance, text)["exact_match"] == theirs, (instance.id, text)
            found.add(theirs)
    assert found == {0.0, 1.0}


def test_prompts_and_answers_of_gsm8k(test_data: Path) -> None:
    folder = test_data / "gsm8k"
    rows = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()][:200]
    task = harness_task("gsm8k/gsm8k.yaml", train=rows, test=rows)
    benchmark = gsm8k(folder, shots=1)
    shown = json.loads(gzip.decompress((folder / "train.jsonl.gz").read_bytes()).splitlines()[0])
    for number, (row, instance) in enumerate(zip(rows, benchmark.load(), strict=False)):
        demonstration = f"{task.doc_to_text(shown)} {task.doc_to_target(shown)}"
        # Demonstrations lose the annotations of the calculator, and the line break that T5 cannot write.
        demonstration = re.sub(r"<<[^>]*>>", "", demonstration).replace("\n#### ", " #### ")
        assert instance.prompt == f"{demonstration}\n\n{task.doc_to_text(row)}"
        other = rows[number - 1]["answer"]
        texts = [row["answer"], other, row["answer"].replace("####", "so"), other.replace("####", "####  $"), "none"]
        found = verdicts(task, row, texts)
        for text, strict, flexible in zip(texts, found["strict-match"], found["flexible-extract"], strict=True):
            ours = scored(benchmark, instance, text)
            if "####  $" not in text:  # a price after the marker is an answer here
                assert ours["exact_match"] == strict, text
            assert ours["flexible"] == flexible, text


def test_prompts_and_scores_of_truthfulqa(test_data: Path, tmp_path: Path) -> None:
    from lm_eval.tasks.truthfulqa.utils import process_results_mc2

    file = test_data / "truthfulqa" / "TruthfulQA.csv"
    with open(file, newline="") as stream:
        rows = [
            {"question": row["Question"].strip(), "mc1_targets": {"choices": ["x"]}} for row in csv.DictReader(stream)
        ]
    task = harness_task("truthfulqa/truthfulqa_mc1.yaml", validation=rows)
    primer = tmp_path / "primer.txt"
    primer.write_text(task.doc_to_text(rows[0]).rpartition("\n\nQ: ")[0])
    draws = np.random.default_rng(5)
    benchmark = truthfulqa(file, primer=primer)
    for row, instance in zip(rows, benchmark.load(), strict=True):
        assert instance.prompt == task.doc_to_text(row)
        values = draws.uniform(-40, -1, len(instance.choices))
        true = len(instance.correct)
        prediction = Prediction(id=instance.id, loglikelihoods=tuple(values))
        found = benchmark.score(instance, prediction, "")
        labels = [1] * true + [0] * (len(values) - true)
        document = {"mc2_targets": {"labels": labels}}
        theirs = process_results_mc2(document, [(value, False) for value in values])
        assert found["mc2"][0] == pytest.approx(theirs["acc"])
        one = [values[instance.details["best"]], *values[true:]]  # MC1 has the best answer and the false ones
        assert found["mc1"] == (float(np.argmax(one) == 0),)


NEED_A_MODEL = {"length_constraints:number_sentences", "change_case:capital_word_frequency"}  # NLTK's Punkt, a download


def test_rules_of_ifeval_say_the_same_of_real_answers(test_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import langdetect
    import nltk

    monkeypatch.setattr(nltk.data, "find", lambda *_: None)  # or it asks the network for Punkt
    monkeypatch.setattr(langdetect.DetectorFactory, "seed", 0)
    from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT

    assert set(RULES) == set(INSTRUCTION_DICT)
    texts = []
    for model in ("alpaca-7b", "text_davinci_003"):
        file = test_data / "alpaca_eval" / model / "model_outputs.json.gz"
        texts += [row["output"] for row in json.loads(gzip.decompress(file.read_bytes()))]
    kinds = (
        lambda text: text,
        lambda text: "* " + text.replace(". ", ".\n\n***\n\n", 2).upper(),
        lambda text: f"<<{text.replace(',', '')}>>\n```json\n{{}}\n```",
        lambda text: f'"{text.lower()} P.S. [a] [b]"',
    )
    said: dict[str, set[bool]] = {name: set() for name in RULES if name not in NEED_A_MODEL}
    for number, instance in enumerate(ifeval(test_data / "ifeval" / "input_data.jsonl").load()):
        assert instance.prompt == instance.input
        response = kinds[number % 4](texts[number * 2])
        for name, arguments in zip(instance.details["instructions"], instance.details["arguments"], strict=True):
            if name in NEED_A_MODEL or arguments.get("letter") in ("#", "!"):  # it draws a letter in place of a sign
                continue
            rule = INSTRUCTION_DICT[name](name)
            rule.build_description(**{key: value for key, value in arguments.items() if value})
            theirs = bool(rule.check_following(response))
            assert follows(name, response, arguments, detect=langdetect.detect) == theirs, (name, arguments, response)
            said[name].add(theirs)
    assert sum(len(values) == 2 for values in said.values()) > len(said) / 2  # both verdicts occur
