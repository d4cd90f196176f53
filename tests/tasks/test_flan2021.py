"""Flan 2021: published files read whole, the paper's splits and rates, and text that only the seed decides."""

import csv
import hashlib
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import pytest
from flanjax.tasks import flan2021
from flanjax.tasks.flan_counts import FLAN_COUNTS
from flanjax.tasks.flan_datasets import DATASETS
from flanjax.tasks.flan_datasets_base import MissingDataset, hub_address, parse_part, sliced
from flanjax.tasks.flan_fields import text_of
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st

from flanjax.data.rendering import rows_of, texts_of
from flanjax.data.sources import BadRow
from flanjax.data.tasks import Family, TextTask
from flanjax.data.vocabularies import ByteTokens
from flanjax.errors import FlanjaxError

FEW_GLUE = {
    **{"bool_q": "BoolQ", "cb": "CB", "copa": "COPA", "multirc": "MultiRC"},
    **{"record": "ReCoRD", "rte": "RTE", "wic": "WiC", "wsc": "WSC"},
}


@pytest.fixture(scope="module")
def folder(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published files at hand, under the names of their datasets."""
    root = tmp_path_factory.mktemp("flan")
    classic = test_data / "classic"
    links = {name: classic / "FewGLUE" / published for name, published in FEW_GLUE.items()}
    links |= {
        "sst2": classic / "sst2",
        "cola": classic / "cola_public" / "raw",
        "ag_news_subset": classic / "ag_news_csv",
    }
    for name, target in links.items():
        (root / name).symlink_to(target)
    return root


def task(family: Family, name: str) -> TextTask:
    return next(task for task in family.tasks if task.name == name)


def instances(family: Family, name: str, split: str) -> list[Any]:
    rows = task(family, f"{name}_zsopt").source[split](0)
    return [DATASETS[name].instance(row, place) for place, row in rows]


def json_lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_nothing_is_read_until_rows_are_asked_for(tmp_path: Path) -> None:
    family = flan2021.family(str(tmp_path / "nowhere"))
    assert len(family.tasks) == 71 * 5
    names = [task.name for task in family.tasks]
    assert len(set(names)) == len(names)
    assert set(itertools.chain.from_iterable(family.mixtures.values())) <= set(names)
    assert len({dataset.name for dataset in family.datasets}) == len(family.datasets) == 68
    assert all(dataset.title and dataset.paper and dataset.licence and dataset.page for dataset in family.datasets)


def test_modules_need_neither_seqio_nor_jax() -> None:
    code = "import sys, flanjax.tasks.flan2022; print({'seqio', 'tensorflow', 'jax', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


@pytest.mark.parametrize("name", ["cb", "copa", "rte", "wic", "bool_q", "wsc"])
def test_superglue_rows_are_those_of_the_published_file(folder: Path, name: str) -> None:
    family = flan2021.family(str(folder), splits="published")
    published = json_lines(folder / name / "train.jsonl")
    made = instances(family, name, "train")
    assert len(made) == len(published) == 32
    answers = {
        **{"cb": ("entailment", "contradiction", "neutral"), "rte": ("entailment", "not_entailment")},
        **{name: (False, True) for name in ("wic", "bool_q", "wsc")},
    }
    for instance, row in zip(made, published, strict=True):
        if name == "copa":
            assert instance["options"] == [row["choice1"], row["choice2"]]
            assert instance["answer"] == row[f"choice{row['label'] + 1}"]
        else:
            assert instance["options"].index(instance["answer"]) == answers[name].index(row["label"])
        if name == "bool_q":
            assert (instance["context"], instance["question"]) == (row["passage"], row["question"])
        elif name == "wsc":
            assert instance["context"].replace("*", "") == row["text"]
            assert instance["question"] == f"Does *{row['target']['span2_text']}* mean {row['target']['span1_text']}?"
        else:
            fields = {"wic": ("word", "sentence1", "sentence2"), "copa": ("premise", "question")}
            kept = fields.get(name, ("premise", "hypothesis"))
            assert [instance[field] for field in kept] == [row[field] for field in kept]


def test_superglue_answers_and_queries_are_rows_of_their_own(folder: Path) -> None:
    family = flan2021.family(str(folder), splits="published")
    asked = [
        (record["passage"]["text"], question["question"], answer["text"], bool(answer["label"]))
        for record in json_lines(folder / "multirc" / "train.jsonl")
        for question in record["passage"]["questions"]
        for answer in question["answers"]
    ]
    made = instances(family, "multirc", "train")
    assert len(made) == len(asked) > 32
    for instance, (context, question, answer, right) in zip(made, asked, strict=True):
        assert instance["context"] == context
        assert instance["question"] == f"{question} Is it right to answer: {answer}?"
        assert (instance["answer"] == "yes") == right
    queries = [
        (query["query"], [answer["text"] for answer in query["answers"]])
        for record in json_lines(folder / "record" / "train.jsonl")
        for query in record["qas"]
    ]
    clozes = instances(family, "record", "train")
    assert [(cloze["query"].replace("_", "@placeholder"), cloze["answer"]) for cloze in clozes] == [
        (query, answers[0]) for query, answers in queries
    ]
    assert all(cloze["answer"] in cloze["options"] and "@highlight" not in cloze["context"] for cloze in clozes)


def test_sst2_is_the_published_table_in_the_paper_s_splits(folder: Path) -> None:
    table = [line.rsplit("\t", 1) for line in (folder / "sst2" / "train.tsv").read_text().splitlines()]
    published = [(text, ("negative", "positive")[int(label)]) for text, label in table]
    assert len(published) == 6920

    def pairs(family: Family, split: str) -> list[tuple[str, str]]:
        return [(made["text"], made["answer"]) for made in instances(family, "sst2", split)]

    family = flan2021.family(str(folder))
    assert pairs(family, "train") == published[:-200]
    assert pairs(family, "validation") == published[-200:]
    assert len(pairs(family, "test")) == 872
    whole = flan2021.family(str(folder), splits="published")
    assert pairs(whole, "train") == published
    assert "validation" not in task(whole, "sst2_zsopt").source


def test_cola_has_both_development_files_and_ag_news_its_four_topics(folder: Path) -> None:
    family = flan2021.family(str(folder), splits="published")
    lines = (folder / "cola" / "in_domain_train.tsv").read_text().splitlines()
    made = instances(family, "cola", "train")
    assert [(one["text"], one["answer"] == "acceptable") for one in made] == [
        (line.split("\t")[3], line.split("\t")[1] == "1") for line in lines
    ]
    assert len(made) == 8551
    assert len(instances(family, "cola", "test")) == 527 + 516  # GLUE's development split
    with (folder / "ag_news_subset" / "test.csv").open(newline="") as stream:
        table = list(csv.reader(stream))
    news = instances(family, "ag_news_subset", "test")
    assert len(news) == len(table) == 7600
    topics = ["World", "Sports", "Business", "Science and technology"]
    assert [(one["answer"], one["text"]) for one in news] == [
        (topics[int(number) - 1], f"{title}\n{description}") for number, title, description in table
    ]


def test_training_is_cut_at_30_000_and_validation_is_what_comes_last(tmp_path: Path) -> None:
    (tmp_path / "sst2").mkdir()
    lines = "".join(f"text {number}\t{number % 2}\n" for number in range(30_500))
    (tmp_path / "sst2" / "train.tsv").write_text(lines)
    (tmp_path / "sst2" / "dev.tsv").write_text("sentence\tlabel\nfine\t1\n")  # as GLUE has it, with a header
    family = flan2021.family(str(tmp_path), missing="skip")
    assert [made["text"] for made in instances(family, "sst2", "train")] == [f"text {i}" for i in range(30_000)]
    assert [made["text"] for made in instances(family, "sst2", "validation")] == [
        f"text {i}" for i in range(30_300, 30_500)
    ]
    assert [made["text"] for made in instances(family, "sst2", "test")] == ["fine"]


@given(st.integers(0, 12), st.none() | st.integers(-6, 6), st.none() | st.integers(-6, 6))
def test_slices_of_a_stream_are_those_of_a_list(size: int, start: int | None, stop: int | None) -> None:
    if start is not None and start < 0 and stop is not None and stop >= 0:
        return  # cannot be told without the whole stream
    assert list(sliced(iter(range(size)), start, stop)) == list(range(size))[start:stop]


def test_splits_are_written_as_tfds_writes_them() -> None:
    assert parse_part("train") == ("train", None, None)
    assert parse_part("train[:-200]") == ("train", None, -200)
    assert parse_part("validation_matched[30200:30400]") == ("validation_matched", 30200, 30400)
    with pytest.raises(ValueError, match="not a split"):
        parse_part("train[5]")
    for dataset in DATASETS.values():
        for part in vars(dataset.splits).values():
            assert not part or parse_part(part)[0]


def test_text_is_decided_by_the_seed(folder: Path) -> None:
    family = flan2021.family(str(folder), splits="published")
    row = {"premise": "The dust came off the desk.", "choice1": "I wiped it.", "choice2": "I sold it."}
    row |= {"question": "cause", "label": 0}
    text = task(family, "copa_zsopt").text(row, 3, "f:1", split="train", seed=0, tokenizer=ByteTokens())
    assert text is not None
    assert text.inputs == (
        "Think of cause and effect.\nThe dust came off the desk.\nAsked for: the cause\n"
        "Choose your answer from:\n[-] I wiped it..\n[-] I sold it.."
    )
    assert text.targets == "I wiped it."
    others = {
        task(family, "copa_zsopt").text(row, 3, "f:1", split="train", seed=seed, tokenizer=ByteTokens()).inputs
        for seed in range(8)
    }
    assert len(others) > 4


def test_same_seed_same_bytes_in_two_processes(folder: Path) -> None:
    code = f"import test_flan2021; print(test_flan2021.digest({str(folder)!r}, 1))"
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(Path(__file__).parent)}
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert other.stdout.strip() == digest(str(folder), 1)
    assert digest(str(folder), 2) != digest(str(folder), 1)


def digest(folder: str, seed: int) -> str:
    """Of the texts of some rows in every arm."""
    family = flan2021.family(folder, splits="published")
    made = hashlib.sha256()
    for name in ("cb", "wic", "sst2"):
        for arm in ("zsopt", "zsnoopt", "fsopt_five", "fsopt_x", "fsnoopt"):
            one = task(family, f"{name}_{arm}")
            rows = itertools.islice(rows_of(one, "train", seed=seed), 20)
            for number, text in texts_of(one, "train", rows, seed=seed, tokenizer=ByteTokens()):
                made.update(f"{number}\0{text.inputs}\0{text.targets}\0".encode())
    return made.hexdigest()


def test_rates_are_numbers_of_examples_up_to_3_000() -> None:
    family = flan2021.family()
    rates = family.mixtures["flan2021"]
    assert len(rates) == 69
    assert {name: rates[name] for name in ("cb_zsopt", "rte_zsopt", "snli_zsopt")} == {
        **{"cb_zsopt": 200, "rte_zsopt": 2290, "snli_zsopt": 3000}
    }
    assert "lambada_zsopt" not in rates
    assert sum(family.mixtures["flan_zsopt"].values()) == 1_495_430  # the totals of the release, in its own counts
    fewshot = family.mixtures["flan_fsopt"]
    assert sum(rate for name, rate in fewshot.items() if name.endswith("_five")) == 1_467_202
    assert sum(rate for name, rate in fewshot.items() if name.endswith("_x")) == 1_468_341
    both = flan2021.family(arms=("zsopt", "fsopt")).mixtures["flan2021"]
    assert len(both) == 3 * 69


def test_a_held_out_cluster_takes_its_like_with_it() -> None:
    family = flan2021.family(held_out_clusters=("entailment",))
    trained = {DATASETS[name.removesuffix("_zsopt")].cluster for name in family.mixtures["flan2021"]}
    assert trained == set(flan2021.CLUSTERS) - {"entailment", "paraphrase"}
    held_out = {name.removesuffix("_zsopt") for name in family.mixtures["flan2021_held_out"]}
    assert held_out == {name for name, dataset in DATASETS.items() if dataset.cluster == "entailment"}
    reading = flan2021.family(held_out_clusters="common_sense").mixtures["flan2021"]
    assert {"record_zsopt", "copa_zsopt"}.isdisjoint(reading)
    assert "squad_v1_zsopt" in reading
    assert len(flan2021.CLUSTERS) == 17


def test_what_is_not_there_is_named_or_left_out(folder: Path, tmp_path: Path) -> None:
    family = flan2021.family(str(folder))
    with pytest.raises(MissingDataset) as raised:
        next(task(family, "xsum_zsopt").source["train"](0))
    message = str(raised.value)
    assert "python -m flanjax.data fetch xsum" in message
    assert "xsum" in message.split("have no folder there: ")[1].split(", ")
    assert "sst2" not in message.split("have no folder there: ")[1].split(", ")
    kept = flan2021.family(str(folder), missing="skip")
    assert {task.name.removesuffix("_zsopt") for task in kept.tasks if task.name.endswith("_zsopt")} == {
        *FEW_GLUE,
        *("sst2", "cola"),  # of AG News there is no training file
    }
    assert "test" not in task(kept, "cb_zsopt").source
    with pytest.raises(MissingDataset, match="none of 71 datasets is there"):
        flan2021.family(str(tmp_path), missing="skip")


@pytest.mark.parametrize(
    "options",
    [
        *({"source": "web"}, {"splits": "all"}, {"missing": "maybe"}, {"arms": ["fewshot"]}, {"styles": "new"}),
        {"held_out_clusters": ["entailmnt"]},
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(FlanjaxError):
        flan2021.family(**options)


def test_a_malformed_record_has_its_line(tmp_path: Path) -> None:
    (tmp_path / "multirc").mkdir()
    (tmp_path / "multirc" / "train.jsonl").write_text('{"passage": {"text": "t", "questions": [7]}}\n')
    family = flan2021.family(str(tmp_path), splits="published")
    with pytest.raises(BadRow, match=r"train.jsonl:1: field 'passage.questions' must be a list of objects"):
        list(task(family, "multirc_zsopt").source["train"](0))
    with pytest.raises(BadRow, match=r"f:3: field 'a or b' is missing"):
        text_of({"c": 1}, "a/b", "f:3")


class InMemory(MemoryFileSystem):  # type: ignore[misc]
    """Addresses of Hugging Face, kept in memory."""

    protocol = ("hf",)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("hf://").strip("/")


def test_hugging_face_s_parquet_is_read_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow
    import pyarrow.parquet

    address = "hf://datasets/nyu-mll/glue@refs/convert/parquet/sst2/train/*.parquet"
    assert hub_address(DATASETS["sst2"], "train") == address
    assert "/plain_text/dev_r2/" in hub_address(DATASETS["anli_r2"], "validation")
    with pytest.raises(MissingDataset, match="newsroom is not published on Hugging Face"):
        hub_address(DATASETS["newsroom"], "train")
    monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, "hf", InMemory)  # instead of the real one
    with fsspec.open(address.replace("*", "0000"), "wb") as stream:
        pyarrow.parquet.write_table(pyarrow.table({"sentence": ["fine", "bad"], "label": [1, 0]}), stream)
    family = flan2021.family(source="hub", splits="published")
    assert [made["answer"] for made in instances(family, "sst2", "train")] == ["positive", "negative"]


def test_tensorflow_datasets_rows_are_what_json_can_hold() -> None:
    import tensorflow_datasets as tfds

    family = flan2021.family(source="tfds", splits="published")
    with tfds.testing.mock_data(num_examples=4, policy=tfds.testing.MockPolicy.USE_CODE):
        for name in ("sst2", "openbookqa"):
            rows = list(task(family, f"{name}_zsopt").source["train"](0))
            assert len(rows) == 4
            assert json.loads(json.dumps([row for _, row in rows])) == [row for _, row in rows]
            assert all(DATASETS[name].instance(row, place) for place, row in rows)
    with pytest.raises(MissingDataset, match="xsum is not in TensorFlow Datasets"):
        next(task(family, "xsum_zsopt").source["train"](0))


def test_what_is_known_of_a_dataset_tells_where_it_was_tried() -> None:
    tested = {dataset.name for dataset in flan2021.family().datasets if dataset.tested_on == "published file"}
    assert tested == {*FEW_GLUE, "sst2", "cola", "ag_news_subset"}
    assert all(FLAN_COUNTS[name].zero_shot > 0 for name in DATASETS)
