"""`python -m flanjax.infer`: a line for each line, equal to what the model says in memory."""

import dataclasses
import gzip
import json
import os
import re
import shlex
import shutil
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

import flanjax
from flanjax import chat as chat_door
from flanjax import doors, infer
from flanjax.batch_inference import Answers
from flanjax.console import Console
from flanjax.errors import FlanjaxError
from flanjax.generation.decoding import DecodingConfig
from flanjax.generation.scoring import score
from flanjax.tuning.partition import begin
from flanjax.tuning.prompt import PromptTuning
from tests.infer.conftest import NEW, SMALL, WAYS, Row, read, run, write

pytestmark = pytest.mark.usefixtures("quick_compilation")


# --- what is written -----------------------------------------------------------------------------------------------


def test_each_row_is_carried_over_with_the_answer_that_the_model_gives_in_memory(
    t5: Path, instances: list[Row], answered: tuple[Path, Path]
) -> None:
    rows = read(answered[1])
    predictions = [(row.pop("prediction"), row.pop("finish")) for row in rows]
    assert rows == instances
    expected = flanjax.load(t5).generate([row["input"] for row in instances], NEW)
    assert [text for text, _ in predictions] == expected
    assert len(set(expected)) > 3
    assert {finish for _, finish in predictions} <= {"stop", "length"}
    assert sorted(os.listdir(answered[1].parent)) == ["answers.jsonl", "answers.jsonl.settings.json"]


def test_chats_end_with_the_turn_and_stand_beside_plain_rows(chat: Path, questions: list[Row], tmp_path: Path) -> None:
    rows: list[Row] = [*questions, {"inputs": "Who are you?"}]
    done = infer.infer(chat, write(tmp_path / "rows.jsonl", rows), tmp_path / "out.jsonl", max_new_tokens=NEW)
    assert (done.rows, done.errors, done.resumed) == (len(rows), 0, 0)
    model = flanjax.load(chat)
    expected = model.chat([row["messages"] for row in questions], NEW) + model.generate(["Who are you?"], NEW)
    assert [row["prediction"] for row in read(done.output)] == expected


@pytest.mark.parametrize(
    "options",
    [{"temperature": 1.0, "num_samples": 2, "seed": 5}, {"num_beams": 3, "num_samples": 2}],
    ids=["samples", "beams"],
)
def test_several_answers_are_a_list(t5: Path, instances: list[Row], tmp_path: Path, options: Row) -> None:
    source = write(tmp_path / "rows.jsonl", instances[:5])
    flags = [f"--{name}={value}" for name, value in options.items()]
    assert run(f"--model={t5}", f"--input={source}", f"--output={tmp_path / 'out'}", "--max_new_tokens=6", *flags) == 0
    found = [row["prediction"] for row in read(tmp_path / "out")]
    flat = flanjax.load(t5).generate([row["input"] for row in instances[:5]], NEW, **options)
    assert found == [flat[at : at + 2] for at in range(0, 10, 2)]
    assert all(len(row["finish"]) == 2 for row in read(tmp_path / "out"))


@pytest.mark.parametrize("eos", [True, False])
def test_scores_are_those_in_memory(t5: Path, instances: list[Row], tmp_path: Path, eos: bool) -> None:
    rows = [{"input": row["input"], "targets": ["A", "B or A"]} for row in instances[:4]]
    rows += [{"inputs": row["input"], "target": row["output"][0]} for row in instances[4:]]
    source = write(tmp_path / "rows.jsonl", rows)
    done = infer.infer(t5, source, tmp_path / "out", mode="score", eos=eos)
    found = [each for row in read(done.output) for each in (row["scores"] if "targets" in row else [row["score"]])]
    inputs = [row["input"] for row in instances[:4] for _ in range(2)] + [row["input"] for row in instances[4:]]
    targets = ["A", "B or A"] * 4 + [row["output"][0] for row in instances[4:]]
    model = flanjax.load(t5)
    np.testing.assert_allclose([each["total"] for each in found], model.score(inputs, targets, eos=eos), rtol=1e-5)
    lengths = [len(model.vocabulary.encode(target)) + eos for target in targets]
    assert [len(each["logprobs"]) for each in found] == lengths
    assert [sum(each["logprobs"]) for each in found] == pytest.approx([each["total"] for each in found])


def test_of_a_chat_the_reply_is_scored_with_the_end_of_its_turn(
    chat: Path, questions: list[Row], tmp_path: Path
) -> None:
    done = infer.infer(chat, write(tmp_path / "rows.jsonl", questions), tmp_path / "out", mode="score", max_length=2000)
    assert done.errors == 0, done.first_errors
    model = flanjax.load(chat)
    ends = model.vocabulary.control_tokens["<|im_end|>"]
    prompts = [
        f"<|im_start|>user\n{row['messages'][0]['content']}<|im_end|>\n<|im_start|>assistant\n" for row in questions
    ]
    inputs = [[id_ for id_, _, _ in model.vocabulary.encode_rendered(text)] for text in prompts]
    targets = [[*model.vocabulary.encode(row["target"].strip()), ends] for row in questions]
    expected = score(model.config, model.compute, model.params, inputs, targets)
    np.testing.assert_allclose(
        [row["score"]["total"] for row in read(done.output)], [each.total for each in expected], rtol=1e-5
    )


def test_a_row_is_answered_with_the_prompt_of_its_task(t5: Path, instances: list[Row]) -> None:
    base = flanjax.load(t5)
    config = dataclasses.replace(base.config, added=(PromptTuning(length=3, tasks=("one", "other")),))
    model = dataclasses.replace(base, config=config, params=begin(config, base.params, base.vocabulary.encode, 0))
    tasks = ["one", "other", "third"]
    lines = [json.dumps({"input": row["input"], "task": task}) for row in instances[:4] for task in tasks]
    lines.append(json.dumps({"input": instances[0]["input"]}))
    made = Answers(model, DecodingConfig(max_new_tokens=NEW))([(n, line.encode()) for n, line in enumerate(lines, 1)])
    inputs = [row["input"] for row in instances[:4]]
    for at, task in enumerate(tasks[:2]):
        assert [row["prediction"] for row in made[at:-1:3]] == model.generate(inputs, NEW, prompt=task)
    for n in (3, 6, 9, 12):
        assert made[n - 1]["error"].startswith(f"line {n}: task 'third' has no prompt")
    assert "field 'task' is missing" in made[-1]["error"]


def test_a_compressed_file_with_blank_lines_is_read_alike(
    t5: Path, answered: tuple[Path, Path], tmp_path: Path
) -> None:
    text = "\n\n".join(answered[0].read_text().splitlines())
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    flags = (f"--model={t5}", f"--input={tmp_path / 'rows.jsonl.gz'}", f"--output={tmp_path / 'out'}")
    assert run(*flags, f"--max_new_tokens={NEW}", *SMALL) == 0
    assert (tmp_path / "out").read_bytes() == answered[1].read_bytes()


# --- rows that cannot be answered -----------------------------------------------------------------------------------


def test_a_bad_row_has_its_error_in_its_place_and_the_others_their_answers(
    t5: Path, answered: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = answered[0].read_text().splitlines()
    bad: dict[str, str] = {
        "oops": "not JSON",
        '["a list"]': "a JSON object is expected",
        '{"text": "a"}': "one of the fields input, inputs, messages is expected, and it has none",
        '{"input": "a", "inputs": "b"}': "and it has ['input', 'inputs']",
        '{"input": 3}': "field 'input' must be a string",
        '{"input": "  "}': "field 'input' is empty",
        '{"input": "\\ud800", "id": "\\ud800"}': "half of a character",
        '{"input": "a", "prediction": "b"}': "field 'prediction' would be overwritten",
        '{"messages": [{"role": "user", "content": "a"}]}': "messages need a chat template",
        '{"input": "' + "a " * 200 + '"}': "more than 100",
        "[" * 100_000: "not JSON",
    }
    mixed = [line for pair in zip(good[: len(bad)], bad, strict=True) for line in pair] + good[len(bad) :]
    source, output = write(tmp_path / "rows.jsonl", mixed), tmp_path / "out.jsonl"
    flags = (f"--model={t5}", f"--input={source}", f"--output={output}", f"--max_new_tokens={NEW}", "--max_length=100")
    assert run(*flags, *SMALL) == infer.ROWS_FAILED == 3
    told = capsys.readouterr().out
    rows = read(output)
    assert [row for row in rows if "error" not in row] == read(answered[1])
    for number, (line, words) in enumerate(bad.items()):
        at = 2 * number + 1
        assert rows[at]["error"].startswith(f"line {at + 1}: ")
        assert words in rows[at]["error"]
        if line.startswith("{"):
            assert rows[at] == {**json.loads(line), "error": rows[at]["error"]}
    assert f"{len(rows)} rows, {len(bad)} of them with an error" in told
    assert rows[1]["error"] in told
    assert run(*flags, *SMALL) == infer.ROWS_FAILED  # whole already, and still not without errors


def test_chats_that_are_refused(chat: Path, tmp_path: Path) -> None:
    def user(text: Any) -> Row:
        return {"role": "user", "content": text}

    bad: list[tuple[Any, str]] = [
        ([], "must be a list of objects"),
        ("Hi", "must be a list of objects"),
        ([{"role": "user"}], "field 'content' is missing"),
        ([user([{"type": "text", "text": "Hi"}])], "field 'content' must be a string"),
        ([user("Hi<|im_end|>")], "read as a token of control"),
        ([user("Hi"), {"role": "assistant", "content": "Ho"}], "the last message is the assistant's own"),
        ([user("word " * 300)], "are more than 160"),
    ]
    source = write(tmp_path / "rows.jsonl", [{"messages": messages} for messages, _ in bad])
    done = infer.infer(chat, source, tmp_path / "out", max_new_tokens=NEW)
    assert done.errors == len(bad)
    for number, (row, (_, words)) in enumerate(zip(read(done.output), bad, strict=True), 1):
        assert row["error"].startswith(f"line {number}: ")
        assert words in row["error"]


def test_targets_that_cannot_be_scored(t5: Path, tmp_path: Path) -> None:
    bad: list[tuple[Row, str]] = [
        ({}, "one of the fields target, targets is expected"),
        ({"target": "a", "targets": ["b"]}, "and it has ['target', 'targets']"),
        ({"targets": []}, "field 'targets' is empty"),
        ({"targets": ["a", ""]}, "field 'targets' is empty"),
        ({"target": 3}, "field 'target' must be a string"),
        ({"target": "a", "score": 1}, "field 'score' would be overwritten"),
    ]
    source = write(tmp_path / "rows.jsonl", [{"input": "a man", **row} for row, _ in bad])
    for row, (_, words) in zip(read(infer.infer(t5, source, tmp_path / "out", mode="score").output), bad, strict=True):
        assert words in row["error"]


def test_a_model_without_a_number_for_an_answer_is_told(t5: Path) -> None:
    model = flanjax.load(t5)
    broken = dataclasses.replace(model, params=jax.tree.map(lambda leaf: leaf * np.nan, model.params))
    (row,) = Answers(broken, None)([(7, b'{"input": "a man", "target": "A"}')])
    assert row["error"].startswith("line 7: a log-likelihood is no finite number")


def test_a_window_at_a_time_is_held(t5: Path, tmp_path: Path) -> None:
    size = 6_000_000
    source = write(tmp_path / "rows.jsonl", [{"text": "x" * 1000}] * (size // 1000))
    infer.infer(t5, write(tmp_path / "one.jsonl", [{"text": "x"}]), tmp_path / "one")  # imports what there is
    tracemalloc.start()
    done = infer.infer(t5, source, tmp_path / "out", window=100)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert done.errors == done.rows == size // 1000
    assert peak < size / 2


@pytest.mark.parametrize("way", WAYS)
def test_how_far_a_window_is_is_told_while_it_is_made(
    t5: Path,
    instances: list[Row],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    way: str,
) -> None:
    monkeypatch.setattr("flanjax.console.PLAIN_LINE_SECONDS", 0)
    source = write(tmp_path / "rows.jsonl", [{**row, "target": row["output"][0]} for row in instances])
    with Console() as console:
        done = infer.infer(t5, source, tmp_path / "out", batch_size=4, window=100, console=console, **WAYS[way])
    found = re.findall(r"^rows (\d+)/12  ([\d.]+) rows/s, ([\d.]+) tokens/s$", capsys.readouterr().out, re.MULTILINE)
    counts = [int(count) for count, _, _ in found]
    assert counts == sorted(counts)
    assert {4, 8, 12} <= set(counts), "of one window"
    assert done.rows == 12
    assert all(float(rows) > 0 and float(tokens) > 0 for _, rows, tokens in found)


def test_what_cannot_be_written_is_said_before_the_model_is_read(
    answered: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = answered[0]

    def told(output: Path, source: Path = rows) -> str:
        assert run("--model=no/such/model", f"--input={source}", f"--output={output}") == 2
        return capsys.readouterr().err

    (tmp_path / "file").write_text("kept")
    assert "could not be written: File exists" in told(tmp_path / "file" / "out.jsonl")
    assert "is there already, without file.settings.json: give another output" in told(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "kept"
    assert "there is no such file" in told(tmp_path / "out", tmp_path / "none.jsonl")
    assert "there is no row in it" in told(tmp_path / "out", write(tmp_path / "empty.jsonl", ["", ""]))
    assert "none of the known formats" in told(tmp_path / "out", tmp_path / "file")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1))
    assert "1 B are free there, and it will be larger than" in told(tmp_path / "out")
    monkeypatch.undo()
    assert "no/such/model" in told(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_settings_that_make_no_sense(t5: Path, answered: tuple[Path, Path], tmp_path: Path) -> None:
    for options, words in (
        ({"mode": "scores"}, "did you mean 'score'"),
        ({"mode": "score", "temperature": 1.0}, "temperature: scoring makes no answers"),
        ({"eos": False}, "no_eos: it leaves out the end of what is scored"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"window": 0}, "window is 0"),
        ({"max_length": 0}, "max_length is 0"),
        ({"temperature": -1}, "temperature is -1"),
    ):
        with pytest.raises(FlanjaxError, match=words):
            infer.infer(t5, answered[0], tmp_path / "out", **options)
    assert os.listdir(tmp_path) == []


def test_every_way_of_decoding_has_its_flag() -> None:
    fields = {field.name for field in dataclasses.fields(DecodingConfig)} - {"eos_ids"}
    given = {"temperature": 0.5, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.5, "length_penalty": 0.5}
    given |= {"early_stopping": "never", "stop": ["a", "b"]} | {
        name: 2 for name in ("max_new_tokens", "top_k", "num_samples", "seed", "num_beams")
    }
    flags = [f"--{name}={value}" for name, value in given.items() if name != "stop"]
    parsed = infer._parser().parse_args(["--model=m", "--input=i", "--output=o", *flags, "--stop=a", "--stop=b"])
    assert doors.decoding_options(parsed) == given
    assert given.keys() == fields
    parsed = infer._parser().parse_args(["--model=m", "--input=i", "--output=o", "--early_stopping=True"])
    assert doors.decoding_options(parsed) == {"early_stopping": True}


# --- real models and pages ------------------------------------------------------------------------------------------


def test_flan_t5_small_answers_and_scores_real_rows(
    flan_t5_small: Path, instances: list[Row], questions: list[Row], tmp_path: Path
) -> None:
    rows = [{"input": row["input"], "targets": ["A", "B"]} for row in instances[:2]]
    rows += [{"input": row["messages"][0]["content"], "targets": [row["target"]]} for row in questions[:1]]
    source, model = write(tmp_path / "rows.jsonl", rows), flanjax.load(flan_t5_small)
    answers = read(infer.infer(flan_t5_small, source, tmp_path / "answers", max_new_tokens=8).output)
    assert [row["prediction"] for row in answers] == model.generate([row["input"] for row in rows], 8)
    # What it says itself is what it would say, and A and B are not both.
    for row, answer in zip(rows, answers, strict=True):
        row["targets"].append(answer["prediction"])
    scored = read(infer.infer(flan_t5_small, write(source, rows), tmp_path / "scores", mode="score").output)
    inputs, targets = zip(*((row["input"], target) for row in rows for target in row["targets"]), strict=True)
    found = [each for row in scored for each in row["scores"]]
    np.testing.assert_allclose([each["total"] for each in found], model.score(inputs, targets), rtol=1e-4)
    ended = [answer["finish"] == "stop" for answer in answers]
    assert any(ended)
    assert all(row["scores"][-1]["is_greedy"] for row, stop in zip(scored, ended, strict=True) if stop)
    assert not any(row["scores"][0]["is_greedy"] and row["scores"][1]["is_greedy"] for row in scored[:2])


def test_the_page_shows_what_works(
    t5: Path, answered: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "inference.md").read_text()
    commands = re.findall(r"^    python -m flanjax\.(infer|chat) (.*)$", page, flags=re.MULTILINE)
    assert {door for door, _ in commands} == {"infer", "chat"}
    for door, flags in commands:
        flags = flags.partition(" < ")[0]
        {"infer": infer, "chat": chat_door}[door]._parser().parse_args(shlex.split(flags))
    (example,) = re.findall(r"```python\n(from flanjax\.infer.*?)```", page, flags=re.DOTALL)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo").symlink_to(t5)
    shutil.copy(answered[0], tmp_path / "rows.jsonl")
    monkeypatch.chdir(tmp_path)
    exec(example, {})
    assert len(read(tmp_path / "answers.jsonl")) == len(read(answered[1]))
