"""Flan 2022: published shares, caps and counts, one task for each Super-NI task, rationales and conversations."""

import csv
import gzip
import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flanjax.tasks import flan2022, flan2022_parts
from flanjax.tasks.flan2022 import CAPS, SHARES, capped, nested
from flanjax.tasks.flan_counts import COT_COUNTS, DIALOG_COUNTS, FLAN_COUNTS, P3_SUBSETS
from flanjax.tasks.flan_counts_niv2 import niv2_counts
from flanjax.tasks.flan_datasets_base import MissingDataset
from hypothesis import given
from hypothesis import strategies as st

from flanjax.data.fingerprints import fingerprint
from flanjax.data.mixing import MixtureOrder
from flanjax.data.rendering import rows_of, texts_of
from flanjax.data.sources import BadRow
from flanjax.data.tasks import Family, TextTask
from flanjax.data.vocabularies import ByteTokens
from flanjax.errors import FlanjaxError

TALK = ["I know about Kesha.", "Who is she?", "A singer.", "Where from?", "Los Angeles.", "Any hits?", "Tik Tok."]


@pytest.fixture(scope="module")
def folder(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published files at hand, and hand-made conversations, under the names of their datasets."""
    root = tmp_path_factory.mktemp("flan2022")
    (root / "p3").symlink_to(test_data / "t0_p3_samples")
    (root / "super_natural_instructions").symlink_to(test_data / "super_natural_instructions")
    (root / "sst2").symlink_to(test_data / "classic" / "sst2")
    (root / "flan_cot").mkdir()
    for file in (test_data / "flan" / "cot_data").iterdir():
        (root / "flan_cot" / file.name).symlink_to(file)
    (root / "flan_cot" / "qed_train.tsv").write_text("who sang it\tKesha\tThe song\\nis hers.\n")
    (root / "wiki_dialog").mkdir()
    (root / "wiki_dialog" / "train-00000-of-00099.jsonl").write_text(json.dumps({"utterances": TALK}) + "\n")
    (root / "qrecc").mkdir()
    turns = [{"Context": TALK[1:], "Turn_no": number, "Question": "q", "Answer": "a"} for number in (6, 7)]
    (root / "qrecc" / "qrecc_train.json").write_text(json.dumps(turns))
    return root


@pytest.fixture(scope="module")
def family(folder: Path) -> Family:
    return flan2022.family(str(folder))


def task(family: Family, name: str) -> TextTask:
    return next(task for task in family.tasks if task.name == f"flan2022_{name}")


def texts(one: TextTask, count: int | None = None, seed: int = 0) -> list[Any]:
    rows = itertools.islice(rows_of(one, "train", seed=seed), count)
    return [text for _, text in texts_of(one, "train", rows, seed=seed, tokenizer=ByteTokens())]


RATES = st.dictionaries(st.sampled_from("uvwxyz"), st.floats(0.1, 100), max_size=4)


@given(st.dictionaries(st.sampled_from("abc"), st.tuples(st.floats(0.1, 10), RATES), max_size=3))
def test_a_mixture_of_mixtures_gives_each_its_share(parts: dict[str, Any]) -> None:
    shares = {name: share for name, (share, _) in parts.items()}
    apart = {name: {f"{name}{task}": rate for task, rate in rates.items()} for name, (_, rates) in parts.items()}
    flat = nested(shares, apart)
    for name, rates in apart.items():
        if rates:
            assert sum(flat[task] for task in rates) == pytest.approx(shares[name])
            assert [flat[task] / shares[name] * sum(rates.values()) for task in rates] == pytest.approx(
                list(rates.values())
            )
    assert len(flat) == sum(map(len, apart.values()))


def test_a_mixture_without_tasks_leaves_its_share_and_a_task_of_two_has_both() -> None:
    assert nested({"a": 1, "b": 3}, {"a": {"x": 5, "y": 5}, "b": {"z": 7}}) == {"x": 0.5, "y": 0.5, "z": 3.0}
    assert nested({"a": 1, "b": 3}, {"a": {"x": 1}, "b": {}}) == {"x": 1.0}
    assert nested({"a": 1, "b": 3}, {"a": {"x": 1}, "b": {"x": 1}}) == {"x": 4.0}


@pytest.mark.parametrize(
    ("part", "counts", "totals"),
    [
        ("flan2021_submix", FLAN_COUNTS, (1_495_430, 1_468_341, 1_467_202)),
        ("t0_submix", {name: subset.counts for name, subset in P3_SUBSETS.items()}, (2_724_840, 2_618_050, 2_617_670)),
        ("cot_submix", COT_COUNTS, (74_730, 74_730, 74_760)),
        ("dialog_submix", DIALOG_COUNTS, (210_170, 210_170, 210_170)),
    ],
)
def test_capped_counts_add_up_to_the_published_totals(part: str, counts: Any, totals: tuple[int, int, int]) -> None:
    few_shot = capped(counts, "fsopt", CAPS[part])
    assert sum(capped(counts, "zsopt", CAPS[part]).values()) == totals[0]
    assert sum(rate for name, rate in few_shot.items() if name.endswith("_x")) == totals[1]
    assert sum(rate for name, rate in few_shot.items() if name.endswith("_five")) == totals[2]
    assert sum(capped(counts, "fsnoopt", CAPS[part]).values()) == totals[1]


def test_everything_is_listed_without_any_file() -> None:
    family = flan2022.family()
    names = [task.name for task in family.tasks]
    assert len(names) == len(set(names)) == 5 * (71 + 193) + 3 * (2 * 9 + 2 * 2 + 1556)
    assert set(itertools.chain.from_iterable(family.mixtures.values())) == set(names)
    assert all(re.fullmatch(r"[\w.:]+", name) for name in names)


@pytest.mark.parametrize("mixture", SHARES)
def test_parts_arms_and_inversions_have_their_published_shares(mixture: str) -> None:
    family = flan2022.family()
    rates = family.mixtures[mixture]
    total = sum(rates.values())
    for part, percent in SHARES[mixture].items():
        inside = {name: rates[name] for name in family.mixtures[part]}
        assert sum(inside.values()) / total == pytest.approx(percent / sum(SHARES[mixture].values()))
        arms = Counter[str]()
        for name, rate in inside.items():
            arms[name.rpartition("_")[2].replace("five", "fsopt").replace("x", "fsopt")] += rate
        assert list(arms.values()) == pytest.approx([sum(arms.values()) / len(arms)] * len(arms))
        assert len(arms) == (4 if part in ("flan2021_submix", "t0_submix") else 2)
    cot = family.mixtures["cot_submix"]
    inverted = sum(rate for name, rate in cot.items() if "_inversion_" in name)
    assert inverted / sum(cot.values()) == pytest.approx(0.3 / 1.3)
    assert ("flan2022_qrecc_zsopt" in rates) == ("dialog_submix" in SHARES[mixture])


def test_examples_are_drawn_in_the_published_shares() -> None:
    family = flan2022.family()
    rates = family.mixtures["flan2022_release"]
    part_of = {name: part for part in SHARES["flan2022_release"] for name in family.mixtures[part]}
    order = MixtureOrder([1000] * len(rates), list(rates.values()), seed=3)
    drawn = 200_000
    parts = [part_of[name] for name in rates]
    seen = Counter(parts[index] for index in order.addresses(0, drawn)[:, 0])
    for part, percent in SHARES["flan2022_release"].items():
        share = percent / 100
        assert abs(seen[part] / drawn - share) < 5 * np.sqrt(share * (1 - share) / drawn)


def test_tasks_made_from_mmlu_are_left_out_by_their_numbers(test_data: Path) -> None:
    file = test_data / "super_natural_instructions" / "flan_NATINST_META_DATA.json.gz"
    published = json.loads(gzip.decompress(file.read_bytes()))
    made_from_mmlu = {name for name in published if "mmmlu" in name}
    assert len(made_from_mmlu) == 57
    assert {name for name in published if flan2022_parts.is_mmlu(name)} == made_from_mmlu
    kept = flan2022_parts.niv2_names()
    assert made_from_mmlu.isdisjoint(kept)
    assert len(kept) == len(niv2_counts()) - 57 == 1556
    with pytest.raises(ValueError, match="no name of a Super-NaturalInstructions task"):
        flan2022_parts.is_mmlu("mmlu_anatomy")


def test_super_ni_tasks_and_counts_are_those_of_the_metadata_each_once(test_data: Path) -> None:
    file = test_data / "super_natural_instructions" / "flan_NATINST_META_DATA.json.gz"
    published = json.loads(gzip.decompress(file.read_bytes()))

    def plain(name: str) -> str:
        return name.split(".")[0].replace("-", "_")

    assert {plain(name): count for name, count in niv2_counts().items()} == {
        plain(name): entry["number_examples"] for name, entry in published.items()
    }
    rates = flan2022.family().mixtures["niv2_submix"]
    assert max(rates.values()) / rates[
        "flan2022_task004_mctaco_answer_generation_event_duration_zsopt"
    ] == pytest.approx(5000 / niv2_counts()["task004_mctaco_answer_generation_event_duration"])


def test_super_ni_shows_definition_positive_examples_or_other_instances(family: Family, folder: Path) -> None:
    name = "task1393_superglue_copa_text_completion"
    published = json.loads((folder / "super_natural_instructions" / "tasks" / f"{name}.json").read_text())
    for arm in ("zsopt", "fsopt_five", "fsopt_x"):
        made = texts(task(family, f"{name}_{arm}"))
        assert len(made) == len(published["Instances"]) == 200
        for text, instance in zip(made, published["Instances"], strict=True):
            assert published["Definition"][0] in text.inputs
            assert instance["input"] in text.inputs
            assert text.targets in instance["output"] == list(text.references)
    shown = texts(task(family, f"{name}_fsopt_five"))
    assert all(any(one["input"] in text.inputs for one in published["Positive Examples"]) for text in shown)


@pytest.mark.parametrize("name", ["gsm8k", "strategyqa", "creak", "qasc", "ecqa", "sensemaking", "aqua"])
def test_rationales_are_those_of_the_published_table(family: Family, folder: Path, name: str) -> None:
    file = folder / "flan_cot" / f"{name}_train.tsv.gz"
    with gzip.open(file, "rt", newline="") as stream:
        table = list(csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    full = f"{'stream' if name == 'aqua' else 'cot'}_{name}"
    rows = list(task(family, f"{full}_zsopt").source["train"](0))
    made = [flan2022_parts.cot(row, place) for place, row in rows]
    assert [(one["question"], one["answer"], one["rationale"]) for one in made] == [
        tuple(field.replace("\\n", "\n").strip() for field in line) for line in table
    ]
    assert abs(len(made) - COT_COUNTS[full].five_shot) <= 6
    if name == "gsm8k":
        assert len(made) == 7473


def test_a_rationale_is_asked_for_and_given_as_literal_text(family: Family) -> None:
    (text,) = texts(task(family, "stream_qed_zsopt"))
    assert "who sang it" in text.inputs
    assert "The song\nis hers." in text.targets
    assert "Kesha" in text.targets
    (inverted,) = texts(task(family, "stream_qed_inversion_zsopt"))
    assert "who sang it" in inverted.targets
    assert "who sang it" not in inverted.inputs


def test_flan_s_own_wording_is_read_from_a_copy(folder: Path, test_data: Path) -> None:
    file = test_data / "flan" / "v2_templates.json"
    family = flan2022.family(str(folder), templates=str(file))
    published = json.loads(file.read_text())["PATTERNS"]["cot_creak"]
    (text,) = texts(task(family, "cot_creak_zsopt"), 1)
    instance = flan2022_parts.cot(*reversed(next(task(family, "cot_creak_zsopt").source["train"](0))))
    fields = {"question": instance["question"], "answer": instance["answer"], "cot": instance["rationale"]}
    fields["chain_of_thought"] = fields["cot"]
    assert text.inputs in [inputs.format_map(fields) for inputs, _ in published]
    assert text.targets in [targets.format_map(fields) for _, targets in published]
    keys = {task.render.key for task in family.tasks if "natinst" not in task.render.type.name}
    assert {
        "cot_input_inversion_gsm8k",
        "stream_input_inversion_qed",
        "qrecc_input_inversion",
        "t0_multiple_choice",
    } <= keys
    known = set(json.loads(file.read_text())["PATTERNS"])
    assert keys - known == {None}
    assert texts(task(family, "task1393_superglue_copa_text_completion_fsopt_x"), 1)


def test_gsm8k_s_own_lines_are_read_as_well(test_data: Path) -> None:
    lines = gzip.decompress((test_data / "gsm8k" / "train.jsonl.gz").read_bytes()).splitlines()
    made = [flan2022_parts.cot(json.loads(line), "f:1") for line in lines]
    assert len(made) == 7473
    assert made[0]["answer"] == "72"
    assert made[0]["rationale"] == (
        "Natalia sold 48/2 = 24 clips in May.\nNatalia sold 48+24 = 72 clips altogether in April and May."
    )
    assert not any("<<" in one["rationale"] or "####" in one["rationale"] for one in made)
    with pytest.raises(BadRow, match="f:2: field 'rationale' is missing"):
        flan2022_parts.cot({"question": "q", "answer": "72"}, "f:2")


def test_a_reply_answers_what_was_said_before_it(family: Family) -> None:
    instance = flan2022_parts.wiki_dialog({"utterances": TALK}, "f:1")
    assert instance is not None
    turn = len(instance["history"])
    assert turn % 2 == 1
    assert [*instance["history"], instance["answer"]] == TALK[1 : turn + 2]
    drawn = {
        len(
            flan2022_parts.wiki_dialog({"utterances": ["Hello.", *(f"{seed} {turn}" for turn in range(100))]}, "")[
                "history"
            ]
        )
        for seed in range(200)
    }
    assert drawn == set(range(1, 41, 2))  # at most the first twenty pairs
    assert flan2022_parts.wiki_dialog({"utterances": TALK[:2]}, "f:1") is None
    assert len(texts(task(family, "qrecc_zsopt"))) == 1  # the sixth turn is too early
    (text,) = texts(task(family, "wiki_dialog_inversion_zsopt"))
    assert text.targets.count(TALK[1]) == 1


def test_p3_has_its_choices_shown_apart_only_where_they_are_published(family: Family) -> None:
    with pytest.raises(BadRow, match=r"qasc_is_correct_1.jsonl.gz:1: field 'answer_choices' is missing"):
        texts(task(family, "qasc_is_correct_1_zsopt"), 1)
    (text,) = texts(task(family, "quarel_logic_test_zsopt"), 1)
    assert text.references == (text.targets,) or not text.references


def test_what_is_not_there_is_left_out_and_told(folder: Path, tmp_path: Path) -> None:
    family = flan2022.family(str(folder), missing="skip")
    title = family.datasets[0].title
    assert "flan2021_submix 1 of 71" in title
    assert "t0_submix 108 of 193" in title
    assert "niv2_submix 3 of 1,556" in title
    assert "cot_submix 16 of 18" in title  # e-SNLI is not there
    assert {"flan2022_sst2_zsopt", "flan2022_stream_qed_zsopt"} <= set(family.mixtures["flan2022_paper"])
    assert "flan2022_cot_esnli_zsopt" not in family.mixtures["cot_submix"]
    total = sum(family.mixtures["flan2022_paper"].values())
    assert sum(
        family.mixtures["flan2022_paper"][f"flan2022_sst2_{arm}"] for arm in ("zsopt", "zsnoopt")
    ) == pytest.approx(total * 46 / 99.9 / 2)
    with pytest.raises(MissingDataset, match="nothing of Flan 2022"):
        flan2022.family(str(tmp_path), missing="skip")


def test_what_is_not_there_is_an_error_when_it_is_asked_for(tmp_path: Path) -> None:
    family = flan2022.family(str(tmp_path))
    for name, remedy in (
        ("cot_esnli_zsopt", "fetch flan_cot"),
        ("xsum_zsopt", "fetch xsum"),
        ("quarel_logic_test_zsopt", "fetch p3"),
        ("task001_quoref_question_generation_zsopt", "fetch super_natural_instructions"),
    ):
        with pytest.raises(MissingDataset, match=remedy):
            next(task(family, name).source["train"](0))


def test_a_limit_leaves_rows_out_and_rates_as_they_are(folder: Path) -> None:
    limited = flan2022.family(str(folder), limit=3)
    for name in ("sst2_zsopt", "cot_creak_fsopt_x", "quarel_logic_test_zsnoopt"):
        assert len(list(task(limited, name).source["train"](0))) == 3
    assert limited.mixtures == flan2022.family(str(folder)).mixtures


def test_counted_rates_are_left_to_the_cache() -> None:
    family = flan2022.family(rates="counted")
    assert set(family.mixtures["flan2022_release"].values()) == {None}
    with pytest.raises(FlanjaxError, match="rates='counts': give one of published, counted"):
        flan2022.family(rates="counts")


def test_a_task_is_known_again_and_by_its_options(folder: Path) -> None:
    def prints(**options: Any) -> list[str]:
        family = flan2022.family(str(folder), **options)
        names = ("sst2_fsopt_x", "cot_creak_zsopt", "task1393_superglue_copa_text_completion_fsopt_x")
        return [fingerprint([task(family, name).source["train"], task(family, name).render]) for name in names]

    assert prints() == prints()
    assert not set(prints()) & set(prints(styles="release"))


def test_same_seed_same_bytes_in_two_processes(folder: Path) -> None:
    code = f"import test_flan2022; print(test_flan2022.digest({str(folder)!r}, 5))"
    environment = {**os.environ, "PYTHONHASHSEED": "9", "PYTHONPATH": str(Path(__file__).parent)}
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert other.stdout.strip() == digest(str(folder), 5) != digest(str(folder), 6)


def digest(folder: str, seed: int) -> str:
    """Of the first texts of a task of each part."""
    family = flan2022.family(folder)
    made = hashlib.sha256()
    for name in ("cot_creak", "task1393_superglue_copa_text_completion", "quarel_logic_test", "sst2", "wiki_dialog"):
        for arm in ("zsopt", "fsopt_five", "fsopt_x"):
            for text in texts(task(family, f"{name}_{arm}"), 10, seed):
                made.update(f"{text.inputs}\0{text.targets}\0".encode())
    return made.hexdigest()


FIELDS = ["question", "answer", "rationale", "utterances", "context", "turn_id", "Turn_no", "Context"]
JUNK = st.none() | st.integers() | st.text() | st.lists(st.text() | st.integers(), max_size=5)


@given(st.dictionaries(st.sampled_from(FIELDS), JUNK), st.sampled_from(["cot", "wiki_dialog", "qrecc"]))
def test_a_damaged_row_gives_an_instance_or_an_error_with_its_place(row: dict[str, Any], name: str) -> None:
    message = ""
    try:
        getattr(flan2022_parts, name)(row, "file:6")
    except BadRow as error:
        message = str(error)
    assert not message or message.startswith("file:6: ")
