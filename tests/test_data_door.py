"""`python -m flanjax.data`: what list, show, stats, lint and fetch print on real files, and what they refuse."""

import functools
import http.server
import io
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flanjax.data.cache import CachedMixture
from flanjax.data.catalog import find, shipped
from flanjax.data.records import read_records
from flanjax.data.vocabularies import Vocabulary
from flanjax.data_door import main
from flanjax.materialize import main as materialize

Run = Callable[..., str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """run("list", ...) gives what the door prints; status=2 gives the error in place of that."""

    def call(*arguments: str | Path, status: int = 0) -> str:
        found = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        assert found == status, printed.err
        assert (printed.err == "") == (status == 0)
        return printed.err if status else printed.out

    return call


@pytest.fixture
def vocabulary(t5_spiece: Path) -> str:
    return f"--vocabulary={t5_spiece}"


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    """A file of one's own, each review with a character that T5's vocabulary lacks."""
    rows = [("Is {it} good?", "Yes."), ("Is it <i>bad</i>?", "No."), ("Is it good?", "It is.")]
    lines = (json.dumps({"inputs": inputs, "targets": targets}) + "\n" for inputs, targets in rows)
    (tmp_path / "reviews.jsonl").write_text("".join(lines))
    return tmp_path / "reviews.jsonl"


ALL = "--option=validation=0"  # keeps no record for validation


def test_list_shows_every_family(run: Run) -> None:
    printed = run("list")
    for module, family in shipped().items():
        assert (f"\n{module}\n" in printed) == (module != "flanjax.tasks.own")
        for dataset in family.datasets:
            (line,) = (line for line in printed.splitlines() if line.startswith(f"  {dataset.name}: "))
            assert dataset.title in line
            assert dataset.licence in line
        for name, rates in family.mixtures.items():
            assert not rates or f"{name} ({len(rates):,})" in printed


def test_list_builds_nothing() -> None:
    code = (
        "import sys; from flanjax.data_door import main\n"
        "assert main(['list']) == main(['list', 'oasst1']) == 0\n"
        "print({'jax', 'seqio', 'tensorflow', 'torch', 'pyarrow', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "\nflanjax.tasks.alpaca\n" in done.stdout
    assert done.stdout.endswith("set()\n")


def test_list_of_a_mixture(run: Run, test_data: Path) -> None:
    assert run("list", "demo_heldout") == (
        "demo_heldout, of flanjax.tasks.demo: 1 tasks\n"
        "task                splits  rate    share\n"
        "demo_who_lives  validation     1  100.00%\n"
    )
    rows = run("list", "demo").splitlines()
    assert rows[0] == "demo, of flanjax.tasks.demo: 19 tasks"
    shares = [float(row.split()[-1].rstrip("%")) for row in rows[2:]]
    assert len(shares) == 19
    assert sum(shares) == pytest.approx(100, abs=0.1)
    oasst = run("list", "oasst1")
    assert "licence: Apache-2.0; https://huggingface.co/datasets/OpenAssistant/oasst1\n" in oasst
    assert oasst.splitlines()[-1].split() == ["oasst1", "train", "validation", "by", "size"]
    assert "super_natural_instructions, of flanjax.tasks.natural_instructions: 0 tasks" in run(
        "list", "super_natural_instructions"
    )
    real = run(
        "list", "super_natural_instructions", f"--option=data_dir={test_data / 'super_natural_instructions'}"
    ).splitlines()
    files = {file.stem for file in (test_data / "super_natural_instructions" / "tasks").glob("*.json")}
    assert {row.split()[0] for row in real[3:]} < files


def test_show_alpaca(run: Run, vocabulary: str, test_data: Path) -> None:
    file = test_data / "alpaca" / "alpaca_tiny.json"
    printed = run("show", "alpaca", vocabulary, "--number=1", f"--option=data_dir={file}", "--option=style=plain")
    row = next(row for number, (_, row) in enumerate(read_records(file)) if number % 100)
    assert row["instruction"] == "What are the three primary colors?"
    assert printed == (
        "\n"
        "alpaca, train\n"
        "inputs: 8 tokens, 56 of padding\n"
        "[1; weight 0] |What| are| the| three| primary| colors|?|</s>\n"
        "targets: 13 tokens, 91 of padding\n"
        "[1; weight 1] |The| three| primary| colors| are| red|,| blue|,| and| yellow|.|</s>\n"
        f"  segment 1: row 1, {file}:1\n"
    )


def test_show_tells_places_answers_and_what_is_lost(run: Run, vocabulary: str, reviews: Path, test_data: Path) -> None:
    printed = run("show", reviews, vocabulary, ALL)
    assert "  the vocabulary has no piece for: < { }\n" in printed
    for number in (1, 2, 3):
        assert f": row {number}, {reviews}:{number}\n" in printed
    folder = test_data / "super_natural_instructions"
    name = "super_natural_instructions_test"
    printed = run("show", name, vocabulary, "--split=test", "--number=1", f"--option=data_dir={folder}")
    assert "    accepted: " in printed


def test_conversations_of_a_published_file(run: Run, vocabulary: str, test_data: Path) -> None:
    file = str(test_data / "oasst" / "en_100_tree.jsonl")
    option = f"--option=data_dir={file}"
    shown = run("show", "oasst1", vocabulary, option, "--number=1")
    assert "\n[1; weight 0] |User|:| How| to| protect| my| eyes| when| I|" in shown
    assert "\nAssistant|:|</s>\ntargets: 289 tokens, " in shown
    assert shown.endswith(f"  segment 1: row 1, {file}:2\n")
    (task,) = find("oasst1", {"flanjax.tasks.oasst": {"data_dir": file}}).tasks
    replies = sum(1 for _ in task.source["train"](0))
    counted = run("stats", "oasst1", vocabulary, option, "--sample=50").splitlines()
    assert counted[0].startswith(f"oasst1, train: {replies:,} examples; of an example ")


def test_show_a_chat_with_what_counts_in_the_loss(run: Run, bpe_folder: Path, tmp_path: Path) -> None:
    turns = [("human", "Hi"), ("gpt", "Yes"), ("human", "Hi"), ("gpt", "No")]
    said = {"system": "Be.", "conversations": [{"from": who, "value": text} for who, text in turns]}
    (tmp_path / "chats.json").write_text(json.dumps([said]))
    flags = (f"--vocabulary={bpe_folder}", "--chat_template=chatml", "--option=validation=0")
    printed = run("show", str(tmp_path / "chats.json"), *flags).replace("|", "")
    inputs = "<im_start>system\nBe.<im_end>\n<im_start>user\nHi<im_end>\n<im_start>assistant\n"
    assert inputs in printed
    middle = "[weight 0] \n<im_start>user\nHi<im_end>\n<im_start>assistant\n"
    assert f"\n[1; weight 1] Yes<im_end>{middle}[weight 1] No<im_end>[weight 0] \n" in printed
    assert printed.count("segment ") == 1


def test_show_draws_from_all_of_a_split(run: Run, vocabulary: str, reviews: Path) -> None:
    reviews.write_text("".join(json.dumps({"inputs": f"Row {n}?", "targets": "yes"}) + "\n" for n in range(200)))
    first, drawn, again, other = (
        run("show", reviews, vocabulary, ALL, "--number=2", *flags)
        for flags in ((), ("--drawn",), ("--drawn",), ("--drawn", "--seed=1"))
    )
    assert "row 1, " in first
    assert "row 2, " in first
    assert first != drawn == again != other


def test_a_terminal_shows_tokens_in_colours(
    run: Run, vocabulary: str, reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLORTERM": "truecolor", "COLUMNS": "80"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    printed = run("show", reviews, vocabulary, ALL, "--number=1")
    shades, unknown, plain = ("\x1b[36;48;5;235m", "\x1b[36;48;5;239m"), "\x1b[1;37;41m", "\x1b[0m"
    assert f"{shades[0]}it{plain}{unknown}}}{plain}{shades[0]} good{plain}{shades[1]}?{plain}" in printed
    assert "|" not in printed, "colours tell tokens apart"


def hand_count(vocabulary: Vocabulary, file: Path) -> tuple[list[int], list[int]]:
    rows = [row for _, row in read_records(file)]
    sides = ("inputs", "targets")
    inputs, targets = ([len(vocabulary.encode(row[side])) + 1 for row in rows] for side in sides)
    return inputs, targets


def test_stats_are_a_hand_count(run: Run, vocabulary: str, t5_spiece: Path, reviews: Path, tmp_path: Path) -> None:
    inputs, targets = hand_count(Vocabulary.from_file(t5_spiece), reviews)
    plot = tmp_path / "lengths.png"
    printed = run("stats", reviews, vocabulary, ALL, f"--plot={plot}").splitlines()
    mean_inputs, mean_targets = sum(inputs) / 3, sum(targets) / 3
    told = f"3 examples; of an example {mean_inputs:.1f} input and {mean_targets:.1f} target tokens"
    assert printed[0] == f"reviews, train: {told}"
    whole = ["100.00%"] * 3
    counted = [f"{mean_inputs:.1f}", f"{mean_targets:.1f}", str(max(inputs)), str(max(targets))]
    assert printed[2].split() == ["reviews", "3", *whole, *counted]
    assert printed[3] == f"lengths: {plot}"
    assert plot.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    width, height = (int.from_bytes(plot.read_bytes()[at : at + 4], "big") for at in (16, 20))
    assert (width, height) == (1200, 540)


def test_stats_of_a_cache_are_those_of_its_rows(
    run: Run,
    vocabulary: str,
    reviews: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # as the materialising door sets it
    cache = f"--cache_dir={tmp_path / 'cache'}"
    assert materialize([f"--mixture={reviews}", cache, vocabulary, ALL, "--workers=1", "--splits=train"]) == 0
    capsys.readouterr()
    assert run("stats", "reviews", cache) == run("stats", reviews, vocabulary, ALL)
    assert len(CachedMixture.open(tmp_path / "cache", "reviews", "train").tasks[0]) == 3


def test_shares_of_a_mixture(run: Run, vocabulary: str, test_data: Path) -> None:
    flags = (f"--option=cl_data_dir={test_data / 'cl_benchmark'}", vocabulary, "--sample=20")
    printed = [line.split() for line in run("stats", "cl_benchmark", *flags).splitlines()[2:] if "%" in line]
    assert len(printed) > 10
    for column in (2, 3, 4):
        assert sum(float(row[column].rstrip("%")) for row in printed) == pytest.approx(100, abs=0.2)


def test_lint_tells_what_is_where(run: Run, vocabulary: str, tmp_path: Path) -> None:
    words = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    rows: list[Any] = [
        {"inputs": "Is it good?", "targets": "Yes, it is."},
        {"inputs": "IS it  good?", "targets": "Yes, it is."},
        {"inputs": "Is it bad?", "targets": " "},
        {"inputs": f"Count: {words}", "targets": "Done."},
        {"inputs": "A {brace} is lost.", "targets": "Yes."},
        {"inputs": "Broken \ufffd text.", "targets": "Yes."},
        {"inputs": "No text.", "targets": 3},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "exam.jsonl").write_text(json.dumps({"question": f"Say {words}."}) + "\n")
    printed = run("lint", file, vocabulary, ALL, f"--against={tmp_path / 'exam.jsonl'}")
    assert printed.startswith("6 examples, compared with 1 evaluation texts\n")
    for kind, line in (("bad_row", 7), ("duplicate", 2), ("empty_targets", 3), ("leak", 4), ("encoding", 6)):
        heading, finding = printed[printed.index(f"\n{kind}: 1 (") :].splitlines()[1:3]
        assert heading.startswith(f"{kind}: 1 (")
        assert finding.startswith(f"  rows, {file}:{line}: ")
    assert f"  rows, {file}:5: the inputs lose '{{' (1), '}}' (1)\n    A {{brace}} is lost.\n" in printed


def test_lint_of_published_files(run: Run, vocabulary: str, test_data: Path) -> None:
    file = test_data / "gsm8k" / "test.jsonl"
    printed = run("lint", file, vocabulary, ALL, "--no_near", f"--against={file}")
    assert "1,319 examples, compared with 1,319 evaluation texts\n" in printed
    assert "\nleak: 1,319 (" in printed, "its own questions are in it"
    clean = run("lint", "demo_sort_words", vocabulary, "--no_near", "--option=train_examples=20")
    assert clean.startswith("20 examples\n")


FAMILY = """
import functools
from flanjax.data.records import read_records
from flanjax.data.tasks import Dataset, Download, Family, Text, TextTask, dataset_folder

def rows(folder, seed):
    yield from read_records(f"{{folder}}/plums.jsonl")

def render(row, context):
    return Text(inputs=row["q"], targets=row["a"])

def family(data_dir=""):
    source = {{"train": functools.partial(rows, dataset_folder("plums", data_dir))}}
    return Family(
        tasks=[TextTask(name="plums", source=source, render=render)],
        mixtures={{"plums": {{"plums": 1.0}}}},
        datasets=[Dataset(
            name="plums", title="Plums", paper="none", licence="CC BY 4.0", page="https://example.org",
            downloads=(Download(url="{address}/plums.jsonl", file="plums.jsonl"),),
        )],
    )
"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a folder."""

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def plums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module of one's own, whose dataset a server on this machine has; gives the folder that fetch writes to."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "plums.jsonl").write_text('{"q": "Is it a plum?", "a": "Yes."}\n')
    monkeypatch.setenv("FLANJAX_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    (tmp_path / "modules").mkdir()
    handler = functools.partial(Quiet, directory=str(tmp_path / "site"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        address = f"http://127.0.0.1:{server.server_port}"
        (tmp_path / "modules" / "plums_of_mine.py").write_text(FAMILY.format(address=address))
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield tmp_path / "data" / "plums"
        server.shutdown()
        thread.join()
    sys.modules.pop("plums_of_mine", None)


class Person(io.StringIO):
    """Somebody at a terminal."""

    def isatty(self) -> bool:
        return True


def test_fetch_asks_first(run: Run, vocabulary: str, plums: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch = functools.partial(run, "fetch", "plums", "--tasks=plums_of_mine")
    refused = "error: the licence of plums (CC BY 4.0) was not accepted: nothing was downloaded\n"
    assert fetch(status=2) == refused, "nobody is there"
    monkeypatch.setattr(sys, "stdin", Person("n\n"))
    assert fetch(status=2) == refused
    assert not plums.exists()
    monkeypatch.setattr(sys, "stdin", Person("y\n"))
    printed = fetch()
    assert "licence: CC BY 4.0\n" in printed
    assert "/plums.jsonl\n" in printed
    assert "plums.jsonl: downloaded, 36 bytes, sha256 " in printed
    assert printed.endswith(f"in {plums}\n")
    assert {file.name for file in plums.iterdir()} == {"plums.jsonl", "SOURCES.json"}
    assert "plums.jsonl: already there" in fetch()
    shown = run("show", "plums", vocabulary, "--tasks=plums_of_mine")
    assert f"  segment 1: row 1, {plums}/plums.jsonl:1\n" in shown


def test_fetch_goes_where_it_is_told(run: Run, plums: Path, tmp_path: Path) -> None:
    printed = run("fetch", "plums", "--tasks=plums_of_mine", "--accept_licence", f"--to={tmp_path / 'here'}")
    assert printed.endswith(f"in {tmp_path / 'here'}\n")
    assert (tmp_path / "here" / "plums.jsonl").read_bytes() == (tmp_path / "site" / "plums.jsonl").read_bytes()
    assert not plums.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "alpacca", "{v}"], "no mixture, task or dataset 'alpacca' (did you mean 'alpaca'"),
        (["fetch", "doly", "--accept_licence"], "no mixture, task or dataset 'doly' (did you mean 'dolly'"),
        (["list", "super_natural_instruction"], "did you mean 'super_natural_instructions'"),
        (["show", "alpaca"], "give --vocabulary: a SentencePiece model such as T5's spiece.model"),
        (["stats", "alpaca", "--vocabulary=nowhere"], "nowhere"),
        (["show", "alpaca", "{v}", "--option=data_dri=x"], "did you mean 'data_dir'"),
        (["show", "alpaca", "{v}", "--option=style"], "--option=style: write --option=NAME=VALUE"),
        (["show", "alpaca", "{v}", "--split=test"], "alpaca has no split 'test'; it has train, validation"),
        (["lint", "alpaca", "{v}", "--split=test"], "alpaca has no split 'test'; it has train, validation"),
        (["stats", "alpaca", "{v}", "--split=test"], "alpaca has no split 'test'; it has train, validation"),
        (["show", "super_natural_instructions", "{v}"], "has no tasks before its data is there: --option=data_dir="),
        (["fetch", "alpaca_gpt4_zh"], "is made of 2 datasets, fetched one by one: alpaca, alpaca_gpt4"),
        (["fetch", "radiology"], "radiology cannot be downloaded by a program: https://physionet.org"),
        (["show", "nowhere/rows.jsonl", "{v}"], "nowhere/rows.jsonl: there is no such file"),
        (["list", "alpaca", "--tasks=no_such_module"], "task module 'no_such_module' cannot be imported"),
        (["stats", "alpaca", "--cache_dir=nowhere"], "nowhere"),
    ],
)
def test_what_is_refused_and_why(
    run: Run, vocabulary: str, arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    error = run(*(argument.replace("{v}", vocabulary) for argument in arguments), status=2)
    assert error.startswith("error: ")
    assert message in error


def test_rows_that_give_no_example(run: Run, vocabulary: str, test_data: Path, tmp_path: Path) -> None:
    empty = tmp_path / "mine"
    empty.mkdir()
    (empty / "train.jsonl").write_text('{"inputs": "a", "targets": "b"}\n')
    (empty / "test.jsonl").write_text("\n")
    error = run("show", empty, vocabulary, "--split=test", status=2)
    assert error == f"error: the rows of {empty}, split 'test', give no example\n"
