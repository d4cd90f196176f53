"""The published samples: every record once, its fields as they are; tasks of their own; caps; splits."""

import gzip
import json
from collections import Counter

import pytest
from flanjax.tasks.instructdial import NONE_OF_THE_ABOVE, TASKS, family

from flanjax.data.rendering import rows_of, texts_of
from flanjax.data.sources import BadRow, bad_row_policy


def rows(path, task="instructdial", splits=("train", "validation", "test"), **options):
    (found,) = [made for made in family(str(path), **options).tasks if made.name == task]
    return [row for split in splits for _, _, row in rows_of(found, split, seed=0)]


@pytest.fixture(scope="module")
def published(test_data):
    with gzip.open(test_data / "instructdial" / "sample_text2text.json.gz", "rt") as stream:
        return [json.loads(line) for line in stream]


def test_every_published_record_is_a_row_once(test_data, published):
    def key(record):
        return json.dumps(record, sort_keys=True)

    found = rows(test_data / "instructdial" / "sample_text2text.json.gz")
    assert sorted(found, key=key) == sorted(published, key=key)
    assert len(found) == 1000
    assert len(rows(test_data / "instructdial" / "sample_seqfile.json")) == 100


def test_the_published_tasks_are_those_of_the_sample(published):
    assert {record["task"].removesuffix(NONE_OF_THE_ABOVE) for record in published} == set(TASKS)


def test_each_task_has_its_records(test_data, published):
    counts = Counter(record["task"].removesuffix(NONE_OF_THE_ABOVE) for record in published)
    path = test_data / "instructdial" / "sample_text2text.json.gz"
    for task in ("slot_present", "nli_classification", "summarization"):
        found = rows(path, f"instructdial_{task}", tasks=task)
        assert len(found) == counts[task] > 0
        assert {row["task"].removesuffix(NONE_OF_THE_ABOVE) for row in found} == {task}


def test_a_rendered_example(test_data):
    task = family(str(test_data / "instructdial" / "sample_text2text.json.gz")).tasks[0]
    texts = texts_of(task, "train", rows_of(task, "train", seed=0), seed=0, tokenizer=None)
    text = [next(texts), next(texts)][1][1]
    assert text.inputs == (
        "Instruction: Generate a missing utterance in the conversation that can substitute the <mask> token\n"
        "Input: [CONTEXT] <mask> [ENDOFTURN] Oh , not yet . At least have one for the road . [ENDOFTURN] No , thanks "
        "all the same . [ENDOFTURN] Well , I am sorry you have to leave so early . [ENDOFTURN] Thank you very much . "
        "I really had a good time . [ENDOFTURN] Well , thank you for coming . [ENDOFTURN] So see you . [ENDOFTURN] "
        "Bye . [ENDOFDIALOGUE] [QUESTION] Here is the missing utterance that can take place of <mask>"
    )
    assert text.targets == "I really should be on my way ."
    assert text.references == (text.targets,)


@pytest.fixture
def write(tmp_path):
    def written(*records):
        path = tmp_path / "all.json"
        default = {
            "prompt": "p",
            "output": "o",
            "all_outputs": ["o", "p"],
            "task": "summarization",
            "dataset": "samsum",
        }
        path.write_text("\n".join(json.dumps(default | record) for record in records))
        return path

    return written


def test_records_go_to_the_split_they_name_and_the_unparted_ones_to_two(write):
    path = write(
        *({"index": number} for number in range(100)),
        {"index": 100, "split": "train"},
        {"index": 101, "split": "valid"},
        {"index": 102, "split": "test"},
    )
    indices = {split: [row["index"] for row in rows(path, splits=[split])] for split in ("train", "validation", "test")}
    assert indices == {"train": list(range(1, 100)), "validation": [0, 100, 101], "test": [102]}


def test_caps_are_for_each_task_and_each_dataset_in_it(write):
    pairs = [("a", "x"), ("a", "x"), ("a", "y"), ("a", "y"), ("b", "x"), ("b", "x"), ("b", "x")]
    path = write({}, *({"task": task, "dataset": dataset} for task, dataset in pairs))

    def kept(**caps):
        return [(row["task"], row["dataset"]) for row in rows(path, splits=["train"], **caps)]

    assert kept() == pairs
    assert kept(max_per_task=2) == [("a", "x"), ("a", "x"), ("b", "x"), ("b", "x")]
    assert kept(max_per_dataset=1) == [("a", "x"), ("a", "y"), ("b", "x")]
    assert kept(max_per_task=1, max_per_dataset=1) == [("a", "x"), ("b", "x")]


def test_every_accepted_output_is_a_reference(write):
    task = family(str(write({}))).tasks[0]
    ((_, text),) = texts_of(task, "validation", rows_of(task, "validation", seed=0), seed=0, tokenizer=None)
    assert text.references == ("o", "p")


def test_a_malformed_record_is_named_and_counted_once(write):
    path = write({"split": "dev-ish"}, {"task": None}, {})
    with pytest.raises(BadRow, match=r"all\.json:1: field 'split' is 'dev-ish', which is none of train"):
        rows(path, splits=["train"])
    with bad_row_policy("skip") as bad:
        assert len(rows(path, splits=["train", "test"])) == 0
    assert bad.skipped == 2
