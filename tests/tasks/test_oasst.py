"""Trees and flat messages give the same threads; each reply is an example once; the selection is Guanaco's."""

import json

import pyarrow.parquet
import pytest
from flanjax.tasks.oasst import Selection, family, read_trees, tree_threads

from flanjax.data.rendering import rows_of, texts_of
from flanjax.data.sources import BadRow, bad_row_policy
from flanjax.data.vocabularies import Vocabulary


class Words:
    def encode(self, text):
        return text.split()

    def decode(self, ids):
        return " ".join(ids)


def rows(path, **options):
    task = family(str(path), **options).tasks[0]
    return [row for split in ("train", "validation") for _, _, row in rows_of(task, split, seed=0)]


def messages_of(root):
    yield root
    for reply in root.get("replies") or ():
        yield from messages_of(reply)


@pytest.fixture(scope="module")
def trees(test_data):
    """The published trees."""
    lines = (test_data / "oasst" / "en_100_tree.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_every_reply_of_the_published_trees_is_a_row_once(test_data, trees):
    published = {
        message["message_id"]: message
        for tree in trees
        for message in messages_of(tree["prompt"])
        if message["role"] == "assistant"
    }
    found = rows(test_data / "oasst" / "en_100_tree.jsonl")
    assert len(found) == len(published) == 687
    for row in found:
        message = published[row["id"]]
        assert row["turns"][-1] == ["assistant", message["text"]]
        assert [row["lang"], row["rank"], row["synthetic"]] == [
            message["lang"],
            message.get("rank"),
            message["synthetic"],
        ]
        assert [role for role, _ in row["turns"]] == ["user", "assistant"] * (len(row["turns"]) // 2)


def test_the_published_messages_of_the_same_trees_give_the_same_rows(test_data):
    assert rows(test_data / "oasst" / "en_100_message.jsonl") == rows(test_data / "oasst" / "en_100_tree.jsonl")


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_flat_messages_give_the_same_rows_as_trees(tmp_path, test_data, trees, ending):
    fields = ("message_id", "parent_id", "text", "role", "lang", "rank", "deleted", "synthetic", "review_result")
    flat = [
        {name: message.get(name) for name in (*fields, "model_name")} | {"message_tree_id": tree["message_tree_id"]}
        for tree in trees
        for message in messages_of(tree["prompt"])
    ]
    file = tmp_path / f"messages{ending}"
    if ending == ".jsonl":
        file.write_text("".join(json.dumps(message) + "\n" for message in flat))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(flat), file)
    assert rows(file) == rows(test_data / "oasst" / "en_100_tree.jsonl")


def test_a_whole_tree_is_in_one_split(test_data):
    task = family(str(test_data / "oasst" / "en_100_tree.jsonl")).tasks[0]
    prompts = [{row["turns"][0][1] for _, _, row in rows_of(task, split, seed=0)} for split in task.splits]
    assert prompts[0]
    assert prompts[1]
    assert not prompts[0] & prompts[1]


def test_the_best_reply_at_each_level_is_one_thread_a_tree(test_data, trees):
    path = test_data / "oasst" / "en_100_tree.jsonl"
    everything = {row["id"]: row for row in rows(path)}
    best = rows(path, max_rank=0)
    assert {row["id"] for row in best} < set(everything)
    by_prompt = {}
    for row in best:
        by_prompt.setdefault(row["turns"][0][1], []).append(row)
    assert len(by_prompt) == len(trees) == 100
    for thread in by_prompt.values():
        assert [len(row["turns"]) for row in thread] == list(range(2, 2 * len(thread) + 1, 2))
        assert all(row["turns"] == thread[-1]["turns"][: len(row["turns"])] for row in thread)
        assert {row["rank"] for row in thread} <= {0, None}


def test_a_rendered_example(test_data):
    task = family(str(test_data / "oasst" / "en_100_tree.jsonl"), max_source=64).tasks[0]
    text = next(
        text
        for _, text in texts_of(task, "train", rows_of(task, "train", seed=0), seed=0, tokenizer=Words())
        if text.id == "9e8c6da1-ee52-4e10-bf57-f5f365d355c2"
    )
    assert text.inputs == "User: What differences are there between ChatGPT and Instructional GPT?\nAssistant:"
    assert text.targets.startswith(
        "The main difference between ChatGPT and Instructional GPT is that ChatGPT is better"
    )


def test_real_lengths_keep_to_the_budget_and_end_with_the_question(test_data, t5_spiece):
    vocabulary = Vocabulary.from_file(t5_spiece)
    task = family(str(test_data / "oasst" / "en_100_tree.jsonl"), max_source=128).tasks[0]
    cut = 0
    for number, place, row in rows_of(task, "train", seed=0):
        text = task.text(row, number, place, split="train", seed=0, tokenizer=vocabulary)
        assert len(vocabulary.encode(text.inputs)) + 1 <= 128
        question = row["turns"][-2][1].strip()
        whole = text.inputs.endswith(f"User: {question}\nAssistant:")
        cut += not whole
        if len(vocabulary.encode(f"User: {question}\nAssistant:")) + 1 <= 128:
            assert whole
        assert text.inputs.startswith("User: ")
    assert 0 < cut < 100


def message(name, role="assistant", **fields):
    return {"message_id": name, "role": role, "text": name, "lang": "en", "replies": [], **fields}


TREE = message(
    "ask",
    "prompter",
    replies=[
        message("second", rank=1),
        message("first", rank=0, replies=[message("more", "prompter", replies=[message("end")])]),
        message("unranked"),
        message("gone", deleted=True, replies=[message("orphan", "prompter")]),
        message("spam", review_result=False),
        message("german", lang="de", rank=2),
        message("model", synthetic=True, rank=3),
    ],
)


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ({}, ["second", "first", "end", "unranked", "german", "model"]),
        ({"max_rank": 0}, ["first", "end"]),
        ({"max_rank": 1}, ["first", "end", "second"]),
        ({"languages": ("de",)}, []),
        ({"languages": ("en",)}, ["second", "first", "end", "unranked", "model"]),
        ({"keep_synthetic": False}, ["second", "first", "end", "unranked", "german"]),
        (
            {"keep_deleted": True, "keep_rejected": True},
            [*("second", "first", "end", "unranked"), "gone", "spam", "german", "model"],
        ),
    ],
)
def test_what_is_selected(selection, expected):
    assert [row["id"] for row in tree_threads(TREE, "here", Selection(**selection))] == expected


def test_a_message_apart_from_its_tree_is_named_and_the_rest_is_read(tmp_path):
    file = tmp_path / "messages.jsonl"
    flat = [
        {"message_id": "a", "parent_id": None, "role": "prompter", "text": "Hi"},
        {"message_id": "b", "parent_id": "elsewhere", "role": "assistant", "text": "Lost"},
        {"message_id": "c", "parent_id": "a", "role": "assistant", "text": "Hello!"},
    ]
    file.write_text("\n".join(json.dumps(line) for line in flat))
    with pytest.raises(BadRow, match=r"messages\.jsonl:2: message b answers elsewhere"):
        list(read_trees(str(file)))
    with bad_row_policy("skip") as bad:
        assert [row["id"] for row in rows(file)] == ["c"]
    assert bad.skipped == 2  # once for each split, both of which read the whole file


def test_a_malformed_message_is_named(tmp_path):
    file = tmp_path / "trees.jsonl"
    file.write_text(json.dumps({"prompt": message("ask", "prompter", replies=[message("odd", "janitor")])}))
    with pytest.raises(BadRow, match=r"trees\.jsonl:1: message odd: field 'role' is 'janitor'"):
        rows(file)
