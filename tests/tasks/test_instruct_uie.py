"""Dataset folders are tasks; answers in the format that the published instructions name; labels as they are spelled."""

import json
import pathlib
import re

import pytest
from flanjax.tasks.instruct_uie import CLASSIFICATION, EXTRACTION, family

from flanjax.data.rendering import rows_of, texts_of
from flanjax.data.sources import BadRow
from flanjax.errors import FlanjaxError


def texts(task, split, seed=0):
    return [text for _, text in texts_of(task, split, rows_of(task, split, seed=seed), seed=seed, tokenizer=None)]


def named(found, name):
    (task,) = [task for task in found.tasks if task.name == name]
    return task


def test_every_file_of_the_published_benchmark_is_a_split_and_every_record_a_text(test_data):
    found = family(cl_data_dir=str(test_data / "cl_benchmark"))
    read = 0
    for folder in sorted((test_data / "cl_benchmark").glob("*/*/")):
        labels = json.loads((folder / "labels.json").read_text())
        name = "_".join(re.findall("[a-z0-9]+", f"cl_benchmark {folder.parent.name} {folder.name}".lower()))
        task = named(found, name)
        assert set(task.splits) == {file.stem for file in folder.glob("t*.json")}
        for split in task.splits:
            records = json.loads((folder / f"{split}.json").read_text())
            agreed = [record for record in records if record["label"] != "-"]
            made = texts(task, split)
            assert [text.targets for text in made] == [record["label"] for record in agreed]
            assert all(
                text.inputs.endswith(f"\nOption: {', '.join(labels)}\n{record['sentence'].strip()}\nAnswer:")
                for text, record in zip(made, agreed, strict=True)
            )
            read += 1
    assert read == len(list((test_data / "cl_benchmark").glob("*/*/t*.json"))) == 24


def test_the_mixture_has_what_can_be_trained_on(test_data):
    found = family(cl_data_dir=str(test_data / "cl_benchmark"))
    assert "cl_benchmark_tc_dbpedia" in {task.name for task in found.tasks}  # its copy has a test file only
    assert "cl_benchmark_tc_dbpedia" not in found.mixtures["cl_benchmark"]
    assert len(found.mixtures["cl_benchmark"]) == 13


def test_a_rendered_example_of_the_benchmark(test_data):
    task = named(family(cl_data_dir=str(test_data / "cl_benchmark")), "cl_benchmark_sc_sst_2")
    text = texts(task, "train")[0]
    assert text.inputs == (
        "Which of the given sentiments does the text express?\nOption: Good, Bad\n"
        "Text: does n't deserve a passing grade ( even on a curve ) .\nAnswer:"
    )
    assert text.targets == "Bad"


def test_the_published_lists_are_the_published_datasets(test_data):
    configs = test_data / "instruct_uie" / "multi_task_configs"
    listed = json.loads((configs / "train_tasks.json").read_text())
    for kind, names in EXTRACTION.items():
        published = {re.sub(r"_sample_\d+$", "", entry["dataset name"]) for entry in listed[kind]}
        assert set(names) == published
    assert sum(len(names) for names in CLASSIFICATION.values()) == 15


@pytest.fixture
def write(tmp_path):
    def written(kind, labels, *records, name="Some data"):
        folder = tmp_path / kind / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "labels.json").write_text(json.dumps(labels))
        (folder / "train.json").write_text(json.dumps(records))
        return str(tmp_path)

    return written


NER = {"sentence": "Ada  Lovelace lived in London.", "entities": []}
PERSON, PLACE = {"name": "Ada  Lovelace", "type": "person"}, {"name": "London", "type": "location"}


def relation(kind, head="Ada", tail="London"):
    return {"type": kind, "head": {"name": head, "type": "x"}, "tail": {"name": tail, "type": "y"}}


ARGUMENT = {"name": "Ada", "role": "Agent"}


@pytest.mark.parametrize(
    ("kind", "labels", "record", "answer"),
    [
        ("NER", ["person"], NER | {"entities": [PERSON, PLACE]}, "person: Ada Lovelace; location: London"),
        ("NER", ["person"], NER, "None"),
        ("NER", ["person"], NER | {"entities": [PERSON | {"type": "NA"}, PLACE | {"type": ""}]}, "None"),
        ("RE", ["lives in"], {"sentence": "s", "relations": [relation("lives in")]}, "lives in: Ada, London"),
        (
            "RE",
            ["lives in"],
            {"sentence": "s", "relations": [relation("a"), relation("NA"), relation("b", "x", "y")]},
            "a: Ada, London; b: x, y",
        ),
        ("RE", ["lives in"], {"sentence": "s", "relations": [relation("NA")]}, "None"),
        (
            "EE",
            [["Move"], ["Agent"]],
            {"sentence": "s", "events": [{"type": "Move", "trigger": "left", "arguments": [ARGUMENT, ARGUMENT]}]},
            "(type: Move, trigger: left, arguments: (name: Ada, role: Agent), (name: Ada, role: Agent))",
        ),
        (
            "EE",
            [["Move"], ["Agent"]],
            {"sentence": "s", "events": [{"type": "Move", "trigger": "left", "arguments": []}]},
            "(type: Move, trigger: left, arguments: None)",
        ),
        ("EE", [["Move"], ["Agent"]], {"sentence": "s", "events": []}, "None"),
        ("NER", [], {"Instance": {"instruction": "Find in {0}:", "sentence": "s", "label": " x"}}, "x"),
    ],
)
def test_an_answer_is_in_the_published_format(write, kind, labels, record, answer):
    task = family(write(kind, labels, record)).tasks[0]
    assert task.name == f"instruct_uie_{kind.lower()}_some_data"
    assert [text.targets for text in texts(task, "train")] == [answer]


TWO = {"sentence": "s", "entities": [PERSON, PERSON, PLACE]}
PAIRS = {
    "sentence": "s",
    "relations": [relation("a"), relation("b"), relation("a", "x", "y"), relation("NA", "u", "v")],
}
EVENTS = {
    "sentence": "s",
    "events": [
        {"type": "Move", "trigger": "left", "arguments": [ARGUMENT, {"name": "Rome", "role": "Place"}]},
        {"type": "Die", "trigger": "died", "arguments": []},
        {"type": "NA", "trigger": "was", "arguments": []},
    ],
}


@pytest.mark.parametrize(
    ("whole", "labels", "record", "part", "expected"),
    [
        ("NER", ["x"], TWO, "es", [("x", None, "Ada Lovelace, London")]),
        (
            *("NER", ["x"], TWO, "et"),
            [("x", "Entities: Ada Lovelace, London", "person: Ada Lovelace; person: Ada Lovelace; location: London")],
        ),
        ("NER", ["x"], NER, "es", [("x", None, "None")]),
        ("NER", ["x"], NER, "et", []),
        ("RE", ["a", "b"], PAIRS, "ep", [("a, b", None, "Ada, London; x, y")]),
        (
            *("RE", ["a", "b"], PAIRS, "epr"),
            [("a, b", "Pairs: Ada, London; x, y", "a: Ada, London; b: Ada, London; a: x, y")],
        ),
        ("RE", ["a"], {"sentence": "s", "relations": []}, "epr", []),
        ("EE", [["Move", "Die"], ["Agent"]], EVENTS, "eet", [("Move, Die", None, "Move: left; Die: died")]),
        (
            *("EE", [["Move", "Die"], ["Agent"]], EVENTS, "eea"),
            [
                ("Agent", "Event type: Move. Trigger: left.", "Ada: Agent; Rome: Place"),
                ("Agent", "Event type: Die. Trigger: died.", "None"),
            ],
        ),
    ],
)
def test_the_auxiliary_tasks_ask_for_a_part(write, whole, labels, record, part, expected):
    folder = write(whole, labels, record)
    task = named(family(folder), f"instruct_uie_{part}_some_data")
    made = []
    for text in texts(task, "train"):
        _, options, sentence, *given, cue = text.inputs.split("\n")
        assert (sentence, cue) in (("Text: s", "Answer:"), ("Text: Ada  Lovelace lived in London.", "Answer:"))
        made.append((options.removeprefix("Option: "), *(given or [None]), text.targets))
    assert made == expected
    assert len(family(folder, auxiliary=False).mixtures["instruct_uie"]) == 1
    assert len(family(folder).mixtures["instruct_uie"]) == 3


def test_a_rendered_example_with_the_published_instructions(write, test_data):
    config = str(test_data / "instruct_uie" / "instruction_config.json")
    published = [entry["instruction"].strip() for entry in json.loads(pathlib.Path(config).read_text())["NER"]]
    path = write("NER", ["person", "NA", "location"], *[NER | {"entities": [PERSON]}] * 30)
    task = family(path, instructions=config).tasks[0]
    text = texts(task, "train")[0]
    assert text.inputs.endswith("\nOption: person, location\nText: Ada  Lovelace lived in London.\nAnswer:")
    assert text.targets == "person: Ada Lovelace"
    assert {text.inputs.split("\n")[0] for text in texts(task, "train")} == set(published)
    assert texts(task, "train") == texts(task, "train")
    assert texts(task, "train", seed=1) != texts(task, "train")


def test_options_of_events_are_types_and_roles(write):
    path = write("EE", [["Move", "Die"], ["Agent", "Place"]], {"sentence": "s", "events": []})
    (text,) = texts(family(path).tasks[0], "train")
    assert "\nOption: Event type: Move, Die. Arguments type: Agent, Place.\nText: s\n" in text.inputs


def test_a_label_is_spelled_as_in_the_list(tmp_path, write):
    write("SC", ["Very Good", "Bad"], {"sentence": "s", "label": " very  good"}, {"sentence": "s", "label": "-"})
    (task,) = [task for task in family(cl_data_dir=str(tmp_path)).tasks if task.name.startswith("cl_benchmark")]
    assert [text.targets for text in texts(task, "train")] == ["Very Good"]


@pytest.mark.parametrize(
    ("kind", "labels", "record", "message"),
    [
        ("NER", ["a"], {"sentence": "s"}, r"train\.json:1: field 'entities' must be a list of objects"),
        ("NER", ["a"], {"sentence": "s", "entities": [{"type": "a"}]}, r"train\.json:1: field 'name' is missing"),
        (
            "RE",
            ["a"],
            {"sentence": "s", "relations": [{"type": "a", "head": 1}]},
            r"json:1: field 'head' must be an ob",
        ),
        ("NER", ["a"], {"entities": []}, r"train\.json:1: field 'sentence' is missing"),
        ("NER", {"a": 1}, NER, r"labels\.json: a list of labels, or of two lists, is expected"),
        (
            "EE",
            [["a"]],
            {"sentence": "s", "events": []},
            r"labels\.json: event types and roles are expected, not 1 lists",
        ),
        ("NER", [1], NER, r"labels\.json: field 'label' must be a string"),
    ],
)
def test_what_is_malformed_is_named(write, kind, labels, record, message):
    task = family(write(kind, labels, record)).tasks[0]
    with pytest.raises(BadRow, match=message):
        texts(task, "train")


def test_an_unknown_label_is_named(tmp_path, write):
    write("SC", ["Good", "Bad"], {"sentence": "s", "label": "Ugly"})
    (task,) = [task for task in family(cl_data_dir=str(tmp_path)).tasks if task.name.startswith("cl_benchmark")]
    with pytest.raises(BadRow, match=r"train\.json:1: field 'label' is 'Ugly', which is none of Good, Bad"):
        texts(task, "train")


def test_a_folder_without_datasets_is_refused(tmp_path):
    with pytest.raises(FlanjaxError, match=r"no dataset folder such as NER/<name>/train\.json in it"):
        family(str(tmp_path))
