"""P3: published prompts read whole, the same prompts rendered from raw rows, and xP3 by language."""

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from flanjax.tasks import p3
from flanjax.tasks.flan_counts import P3_SUBSETS
from flanjax.tasks.flan_datasets_base import MissingDataset
from flanjax.tasks.p3_subsets import P3_DATASETS, subset_name
from hypothesis import given
from hypothesis import strategies as st

from flanjax.data.promptsource import read_promptsource
from flanjax.data.rendering import rows_of, texts_of
from flanjax.data.sources import BadRow
from flanjax.data.tasks import Family, TextTask
from flanjax.data.vocabularies import ByteTokens
from flanjax.errors import FlanjaxError


def task(family: Family, name: str) -> TextTask:
    return next(task for task in family.tasks if task.name == name)


def texts(one: TextTask, split: str = "train", seed: int = 0) -> list[tuple[str, str]]:
    made = texts_of(one, split, rows_of(one, split, seed=seed), seed=seed, tokenizer=ByteTokens())
    return [(text.inputs, text.targets) for _, text in made]


def test_every_published_prompt_is_an_example_with_its_own_words(test_data: Path) -> None:
    folder = test_data / "t0_p3_samples"
    family = p3.family(str(folder), missing="skip", languages=())
    names = {file.name.removesuffix(".jsonl.gz") for file in folder.glob("*.gz")}
    assert {task.name for task in family.tasks} == {f"p3_{name}" for name in names}
    assert len(names) == 229
    total = 0
    for name in sorted(names):
        published = [
            json.loads(line) for line in gzip.decompress((folder / f"{name}.jsonl.gz").read_bytes()).splitlines()
        ]
        made = texts(task(family, f"p3_{name}"))
        assert made == [
            (row["prompt"].strip(), row["completion"].removesuffix("<|endoftext|>").strip()) for row in published
        ]
        total += len(made)
    assert total == 42_223


def test_one_published_prompt_as_it_stands(test_data: Path) -> None:
    family = p3.family(str(test_data / "t0_p3_samples"))
    inputs, targets = texts(task(family, "p3_wiqa_effect_with_string_answer"))[1]
    assert inputs == (
        "Process:\n- Water in the clouds becomes very cold\n- The cold water forms ice crystals\n- The ice crystals "
        "grow by absorbing surrounding water droplets\n- Form snowflakes\n- The snowflakes fall to the ground.\n\n"
        "Question:\nsuppose less cubes will have water to freeze happens, how will it affect LESS snow.\n\nHow does "
        "the supposed perturbation influence the second effect mentioned. Answer by more, less or no effect"
    )
    assert targets == "no effect"
    flat = p3.family(str(test_data / "t0_p3_samples"), flatten=True)
    assert texts(task(flat, "p3_wiqa_effect_with_string_answer"))[1][0] == inputs.replace("\n", " ")


def test_subsets_are_named_after_datasets_and_templates(test_data: Path) -> None:
    assert subset_name("paws_labeled_final", "PAWS-ANLI GPT3-no-label") == "paws_labeled_final_PAWS_ANLI_GPT3_no_label"
    for dataset in P3_DATASETS.values():
        file = test_data / "promptsource" / "templates" / dataset.templates / "templates.yaml"
        published = {subset_name(dataset.name, template) for template in read_promptsource(str(file))}
        assert set(dataset.subsets) <= published


def test_flan_2022_keeps_193_subsets_of_three_types() -> None:
    types = Counter(subset.type for subset in P3_SUBSETS.values())
    assert types == {"t0_question_answer": 104, "t0_multiple_choice": 70, "t0_separated_options": 19}
    assert sum(p3.family().mixtures["p3_flan2022"].values()) == 2_724_840


def test_t0_s_large_datasets_count_as_500_000() -> None:
    rates = p3.family().mixtures["t0_train"]
    assert rates["p3_quarel_logic_test"] == 1940
    assert sum(rate for name, rate in rates.items() if name.startswith("p3_amazon_polarity_")) == pytest.approx(500_000)
    assert not any("race" in name or "web_questions" in name for name in rates)


def test_raw_rows_in_promptsource_s_templates_are_the_published_prompts(test_data: Path, tmp_path: Path) -> None:
    templates = test_data / "promptsource" / "templates"
    row = {"text": "They won the cup.", "label": 1}
    (tmp_path / "ag_news").mkdir()
    (tmp_path / "ag_news" / "train.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({"label": 1}) + "\n")
    family = p3.family(str(tmp_path), templates=str(templates), missing="skip", languages=())
    assert len(family.tasks) == len(P3_DATASETS["ag_news"].subsets) == 7
    one = task(family, "p3_ag_news_classify_with_choices")
    (_, place, first), (_, second_place, second) = rows_of(one, "train", seed=0)
    text = one.text(first, 0, place, split="train", seed=0, tokenizer=ByteTokens())
    assert text is not None
    assert text.inputs == (
        "They won the cup. \nIs this a piece of news regarding world politics, sports, business, or science and "
        "technology?"
    )
    assert text.targets == "Sports"
    with pytest.raises(BadRow, match=r"train.jsonl:2: template 'classify_with_choices'"):
        one.text(second, 1, second_place, split="train", seed=0, tokenizer=ByteTokens())
    published = texts(task(p3.family(str(test_data / "t0_p3_samples")), "p3_ag_news_classify_with_choices"))
    assert published[0][0].splitlines()[1:] == text.inputs.splitlines()[1:]  # the same words around another text


def test_answer_choices_make_options(tmp_path: Path) -> None:
    row = {"inputs_pretokenized": "Is it so?\n", "targets_pretokenized": "\nYes", "answer_choices": ["No", "Yes"]}
    row |= {"inputs": [1, 2], "targets": [3]}
    assert p3.instance(row, "f:1", options=True) == {"prompt": "Is it so?", "answer": "Yes", "options": ["No", "Yes"]}
    assert p3.instance(row, "f:1", options=False) == {"prompt": "Is it so?", "answer": "Yes"}
    with pytest.raises(BadRow, match="f:2: field 'answer_choices' is missing"):
        p3.instance({"prompt": "a", "completion": "b"}, "f:2", options=True)
    with pytest.raises(BadRow, match="f:3: the target 'Perhaps' is none of"):
        p3.instance({**row, "targets_pretokenized": "Perhaps"}, "f:3", options=True)
    (tmp_path / "quarel_logic_test").mkdir()
    (tmp_path / "quarel_logic_test" / "train-00000.jsonl").write_text(json.dumps(row))
    assert texts(task(p3.family(str(tmp_path)), "p3_quarel_logic_test")) == [("Is it so?", "Yes")]


def test_xp3_has_a_task_for_each_language(tmp_path: Path) -> None:
    for language, count in (("sw", 150), ("yo", 3)):
        (tmp_path / language).mkdir()
        rows = [{"inputs": f"{language} {number}", "targets": "ndiyo"} for number in range(count)]
        (tmp_path / language / "xp3_a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    family = p3.family(xp3_dir=str(tmp_path), languages=("sw", "yo"))
    assert family.mixtures["xp3"] == {"xp3_sw": None, "xp3_yo": None}
    assert texts(task(family, "xp3_sw"), "validation") == [("sw 0", "ndiyo"), ("sw 100", "ndiyo")]
    assert len(texts(task(family, "xp3_sw"))) == 148
    with pytest.raises(FlanjaxError, match="'klingon' is none of xP3's"):
        p3.family(languages=("klingon",))
    assert len(set(p3.LANGUAGES)) == len(p3.LANGUAGES)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingDataset, match=r"quarel_logic_test: .*'hub' reads it"):
        next(task(p3.family(str(tmp_path)), "p3_quarel_logic_test").source["train"](0))
    with pytest.raises(MissingDataset, match="none of 339 datasets is there"):
        p3.family(str(tmp_path), missing="skip")


VALUES = st.none() | st.integers() | st.text() | st.lists(st.text(), max_size=2) | st.dictionaries(st.text(), st.text())
ROWS = st.dictionaries(
    st.sampled_from(["inputs", "targets", "prompt", "completion", "answer_choices", "inputs_pretokenized"]), VALUES
)


@given(row=ROWS, options=st.booleans())
def test_a_damaged_row_gives_an_instance_or_an_error_with_its_place(row: dict[str, Any], options: bool) -> None:
    message, made = "", None
    try:
        made = p3.instance(row, "file:4", options=options)
    except BadRow as error:
        message = str(error)
    assert message.startswith("file:4: ") == (made is None)
