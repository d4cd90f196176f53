"""CoEdIT's published splits and tasks, and Writing-Alpaca in Alpaca's form."""

from flanjax.tasks.editing import family

COEDIT = {"_id": "1", "task": "gec", "src": "Fix grammar: She go home.", "tgt": "She goes home."}
CLEAR = {"_id": "2", "task": "clarity", "src": "Make it clear: It is so.", "tgt": "So it is."}
WRITING = {"instruction": "Fix the grammar.", "input": "She go home.", "output": "She goes home."}


def test_the_instruction_is_in_the_source_and_the_published_splits_are_used(written, texts, tmp_path):
    written(tmp_path / "train.jsonl", [COEDIT, CLEAR])
    written(tmp_path / "validation.jsonl", [CLEAR])
    coedit = family(data_dir=str(tmp_path)).tasks[0]
    assert [(text.inputs, text.targets) for text in texts(coedit)] == [
        ("Fix grammar: She go home.", "She goes home."),
        ("Make it clear: It is so.", "So it is."),
    ]
    assert [text.targets for text in texts(coedit, "validation")] == ["So it is."]
    assert coedit.examples == {"train": 69_071, "validation": 1_712}


def test_only_the_named_tasks_are_read(written, texts, tmp_path):
    written(tmp_path / "train.jsonl", [COEDIT, CLEAR])
    assert [text.targets for text in texts(family(str(tmp_path), tasks=["clarity"]).tasks[0])] == ["So it is."]


def test_a_file_alone_is_split(written, texts, tmp_path):
    file = written(tmp_path / "mine.jsonl", [COEDIT, CLEAR])
    coedit = family(data_dir=file).tasks[0]
    assert [len(texts(coedit, split)) for split in ("train", "validation")] == [1, 1]


def test_parquet_as_the_hub_has_it(texts, tmp_path):
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "data").mkdir()
    for split, records in (("train", [COEDIT, CLEAR]), ("validation", [CLEAR])):
        file = tmp_path / "data" / f"{split}-00000-of-00001.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), file)
    coedit = family(data_dir=str(tmp_path)).tasks[0]
    assert [len(texts(coedit, split)) for split in ("train", "validation")] == [2, 1]


def test_writing_alpaca_is_in_alpacas_form(written, texts, tmp_path):
    written(tmp_path / "writing_alpaca.json", [WRITING])
    (text,) = texts(family(writing_dir=str(tmp_path), style="plain").tasks[1], "validation")
    assert (text.inputs, text.targets) == ("Fix the grammar.\n\nShe go home.", "She goes home.")
    assert family().mixtures == {"coedit": {"coedit": 1.0}, "writing_alpaca": {"writing_alpaca": 1.0}}


def test_any_row_gives_text_or_an_error_with_its_place(fuzzed, tmp_path):
    coedit, writing = family(data_dir=str(tmp_path), writing_dir=str(tmp_path)).tasks
    fuzzed(coedit, "validation", tmp_path / "validation.jsonl", COEDIT)
    fuzzed(writing, "validation", tmp_path / "writing_alpaca.json", WRITING)
