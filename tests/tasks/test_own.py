"""Own data: every form and format, local or at an address, split as its files say, or refused with the reason."""

import gzip
import json
import pickle

import fsspec
import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest
from flanjax.tasks.own import OwnDataError, family

from flanjax.data.fingerprints import fingerprint
from flanjax.data.records import RecordsError
from flanjax.data.schemas import SchemaError
from flanjax.data.sources import BadRow, bad_row_policy
from flanjax.errors import FlanjaxError

RECORDS = [{"instruction": "Name a plum.", "input": "", "output": f"plum {number}"} for number in range(3)]


def _task(path, **options):
    (task,) = family(str(path), **options).tasks
    return task


def _title(path, **options):
    return family(str(path), **options).datasets[0].title


def _targets(texts, task, split):
    return [text.targets for text in texts(task, split)]


def test_without_a_path_there_is_nothing_to_list():
    made = family()
    assert (list(made.tasks), dict(made.mixtures)) == ([], {})


@pytest.mark.parametrize(
    ("file", "title", "rows"),
    [
        ("alpaca/alpaca_tiny.json", "own data: 1 file, Alpaca form (instruction, input, output)", 100),
        ("llama_factory/alpaca_en_demo.json", "own data: 1 file, Alpaca form (instruction, input, output)", 999),
        ("llama_factory/glaive_toolcall_en_demo.json", "own data: 1 file, ShareGPT form (conversations, tools)", 957),
        ("llama_factory/dpo_en_demo.json.gz", "own data: 1 file, preference form (conversations, chosen)", 300),
        ("llama_factory/v1_sft_demo.jsonl", "own data: 1 file, messages form (messages)", 500),
        ("fastchat/dummy_conversation.json", "own data: 1 file, ShareGPT form (conversations)", 1000),
        ("gsm8k/train.jsonl.gz", "own data: 1 file, question/answer form (question, answer)", 7473),
        (
            "t0_p3_samples/adversarial_qa_dbert_based_on.jsonl.gz",
            "own data: 1 file, prompt/completion form (prompt, completion)",
            200,
        ),
    ],
)
def test_published_files_are_read_whole(file, title, rows, test_data, texts):
    task = _task(test_data / file)
    assert _title(test_data / file) == title
    assert len(texts(task, "train")) + len(texts(task, "validation")) == rows


def test_one_published_conversation_as_text(test_data, texts):
    made = texts(_task(test_data / "llama_factory" / "glaive_toolcall_en_demo.json"), "validation")
    call = made[1]
    assert call.inputs.startswith('[{"name": "search_recipes"')
    assert call.inputs.endswith(
        "\nUser: Hi, I have some ingredients and I want to cook something. Can you help me find a recipe?"
        "\nAssistant: Of course! I can help you with that. Please tell me what ingredients you have."
        "\nUser: I have chicken, bell peppers, and rice.\nAssistant:"
    )
    assert call.targets == (
        '{"name": "search_recipes", "arguments": {"ingredients": ["chicken", "bell peppers", "rice"]}}'
    )


def _json(folder):
    (folder / "mine.json").write_text(json.dumps(RECORDS))
    return folder / "mine.json"


def _json_lines(folder):
    (folder / "mine.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, RECORDS)).encode()))
    return folder / "mine.jsonl.gz"


def _csv(folder):
    rows = "".join(f'"{record["instruction"]}",,{record["output"]}\n' for record in RECORDS)
    (folder / "mine.csv").write_text("instruction,input,output\n" + rows)
    return folder / "mine.csv"


def _tsv(folder):
    rows = "".join(f"{record['instruction']}\t\t{record['output']}\n" for record in RECORDS)
    (folder / "mine.tsv").write_text("instruction\tinput\toutput\n" + rows)
    return folder / "mine.tsv"


def _parquet(folder):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS), folder / "mine.parquet")
    return folder / "mine.parquet"


def _saved_to_disk(folder):
    table = pyarrow.Table.from_pylist(RECORDS)
    (folder / "mine").mkdir()
    with pyarrow.ipc.new_stream(str(folder / "mine" / "data-00000-of-00001.arrow"), table.schema) as stream:
        stream.write_table(table)
    for file in ("dataset_info.json", "state.json"):
        (folder / "mine" / file).write_text('{"features": {}}')
    return folder / "mine"


def _address(folder):
    address = f"memory://{folder.name}/mine.jsonl"
    with fsspec.open(address, "w") as stream:
        stream.write("\n".join(map(json.dumps, RECORDS)))
    return address


@pytest.mark.parametrize("write", [_json, _json_lines, _csv, _tsv, _parquet, _saved_to_disk, _address])
def test_every_format_gives_the_same_task(write, tmp_path, texts):
    path = write(tmp_path)
    task = _task(path)
    assert task.name == "mine"
    assert family(str(path)).mixtures == {"mine": {"mine": 1.0}}
    assert _title(path) == "own data: 1 file, Alpaca form (instruction, input, output)"
    assert [(text.inputs, text.targets) for text in texts(task, "validation")] == [("Name a plum.", "plum 0")]
    assert _targets(texts, task, "train") == ["plum 1", "plum 2"]


def test_a_format_can_be_told_where_the_name_does_not(written, texts, tmp_path):
    file = written(tmp_path / "download", RECORDS)
    with pytest.raises(RecordsError, match="none of the known formats"):
        _task(file)
    assert _targets(texts, _task(file, format="jsonl"), "train") == ["plum 1", "plum 2"]
    with pytest.raises(OwnDataError, match=r"format='jsonlines' .did you mean 'json"):
        _task(file, format="jsonlines")


@pytest.mark.parametrize(
    "names",
    [
        ("train.jsonl", "validation.jsonl", "test.jsonl"),
        ("train-00000-of-00001.jsonl", "dev-00000-of-00001.jsonl", "test-00000-of-00001.jsonl"),
        ("data/train/part-0.jsonl", "data/valid/part-0.jsonl", "data/test/part-0.jsonl"),
        ("my_train_set.jsonl", "my_val_set.jsonl", "my_test_set.jsonl"),
    ],
)
def test_the_names_of_files_and_folders_say_the_splits(names, written, texts, tmp_path):
    for name, record in zip(names, RECORDS, strict=True):
        written(tmp_path / "test" / "mine" / name, [record])
    task = _task(tmp_path / "test" / "mine")
    assert task.splits == ("train", "validation", "test")
    assert [_targets(texts, task, split) for split in task.splits] == [["plum 0"], ["plum 1"], ["plum 2"]]


def test_shards_are_one_split_in_order(written, texts, tmp_path):
    for number, record in enumerate(RECORDS):
        written(tmp_path / "mine" / f"train-0000{number}-of-00003.jsonl", [record])
    for path in (tmp_path / "mine", tmp_path / "mine" / "train-*.jsonl"):
        task = _task(path, validation=0)
        assert (task.name, task.splits) == ("mine", ("train",))
        assert _targets(texts, task, "train") == ["plum 0", "plum 1", "plum 2"]
        assert _title(path) == "own data: 3 files, Alpaca form (instruction, input, output)"


def test_train_alone_gives_some_up_for_validation(written, texts, tmp_path):
    task = _task(written(tmp_path / "plums" / "train.jsonl", RECORDS), validation=2)
    assert (task.name, task.splits) == ("plums", ("train", "validation"))
    assert _targets(texts, task, "validation") == ["plum 0", "plum 2"]


def test_a_conversation_is_split_as_one(written, texts, tmp_path):
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}] * 2
    task = _task(written(tmp_path / "chats.jsonl", [{"conversations": turns}] * 3), validation=2)
    assert [len(texts(task, split)) for split in task.splits] == [2, 4]


def test_some_files_without_a_split_are_refused(written, tmp_path):
    for name in ("train.jsonl", "test.jsonl", "extra.jsonl"):
        written(tmp_path / "mine" / name, RECORDS)
    with pytest.raises(
        OwnDataError, match=r"extra.jsonl has no split in its name, though other files have .test, train"
    ):
        _task(tmp_path / "mine")


def test_names(written, tmp_path):
    assert _task(written(tmp_path / "my data-set.v2.jsonl", RECORDS)).name == "my_data_set_v2"
    assert _task(written(tmp_path / "a.jsonl", RECORDS), name="mine:2").name == "mine:2"
    with pytest.raises(OwnDataError, match=r"name='my data': a task's name has letters, digits and _ \. : only"):
        _task(tmp_path / "a.jsonl", name="my data")


def test_columns_of_other_names(written, texts, tmp_path):
    file = written(tmp_path / "mine.jsonl", [{"frage": "1 + 2", "antwort": "3"}])
    with pytest.raises(SchemaError, match=rf"{file}:1: it has no known form"):
        _task(file)
    task = _task(file, fields={"instruction": "frage", "output": "antwort"})
    assert [(text.inputs, text.targets) for text in texts(task, "validation")] == [("1 + 2", "3")]
    with pytest.raises(SchemaError, match=r"has no column 'fragen' .did you mean 'frage'.*: frage, antwort"):
        _task(file, fields={"instruction": "fragen"})


def test_a_task_can_be_sent_and_is_told_apart_by_its_records_and_options(written, tmp_path):
    file = tmp_path / "mine.jsonl"
    prints = []
    for records, options in ((RECORDS, {}), (RECORDS[:2], {}), (RECORDS[:2], {"fields": {"context": "input"}})):
        task = pickle.loads(pickle.dumps(_task(written(file, records), **options)))
        prints.append(fingerprint([task.source, task.render]))
    assert len(set(prints)) == 3
    assert prints[1] == fingerprint([_task(file).source, _task(file).render])


def test_a_system_text_comes_first_and_the_style_goes_around_both(written, texts, tmp_path):
    file = written(tmp_path / "mine.jsonl", [{**RECORDS[0], "system": "Be brief."}])
    assert texts(_task(file), "validation")[0].inputs == "Be brief.\n\nName a plum."
    alpaca = texts(_task(file, style="alpaca"), "validation")[0].inputs
    assert alpaca.endswith("### Instruction:\nBe brief.\n\nName a plum.\n\n### Response:")
    with pytest.raises(FlanjaxError, match="style='chat'"):
        _task(file, style="chat")


def test_a_record_of_another_form_is_a_bad_row(written, texts, tmp_path):
    file = written(tmp_path / "mine.jsonl", [RECORDS[0], {"prompt": "Go", "completion": "Gone"}, RECORDS[1]])
    task = _task(file)
    with pytest.raises(BadRow, match=rf"{file}:2: field 'instruction' is missing, of the Alpaca form"):
        texts(task)
    with bad_row_policy("skip") as found:
        assert _targets(texts, task, "train") == ["plum 1"]
    assert found.skipped == 1


def test_nothing_to_read_is_said(tmp_path):
    with pytest.raises(RecordsError, match="there is no such file"):
        _task(tmp_path / "absent.jsonl")
    (tmp_path / "mine.jsonl").write_text("\n")
    with pytest.raises(OwnDataError, match=r"mine.jsonl: there is no record in it"):
        _task(tmp_path / "mine.jsonl")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").write_text("{}")
    with pytest.raises(OwnDataError, match="only what describes them"):
        _task(tmp_path / "saved")


def test_a_malformed_first_line_is_left_to_the_reading(texts, tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text("{\n" + json.dumps(RECORDS[0]) + "\n")
    task = _task(file)
    with pytest.raises(BadRow, match=rf"{file}:1: not JSON"):
        texts(task)


@pytest.mark.parametrize(
    "record",
    [
        {**RECORDS[0], "history": [["Hi", "Hello!"]], "system": "Be brief."},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}], "tools": [{}]},
        {
            "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
            "chosen": {"role": "assistant", "content": "Hello!"},
        },
    ],
)
def test_any_row_gives_text_or_an_error_with_its_place(record, written, fuzzed, tmp_path):
    file = tmp_path / "mine.jsonl"
    fuzzed(_task(written(file, [record])), "validation", file, record)
