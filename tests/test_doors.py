"""The doors' own promises: flags, gin files found by name, overrides without quoting, errors with a suggestion."""

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flanjax import doors


@dataclasses.dataclass(frozen=True, kw_only=True)
class Widget:
    """A stand-in for a library configuration."""

    embed_dim: int
    layers: int = 2
    rate: float | None = None
    gated: bool = False

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise doors.FlanjaxError(f"layers is {self.layers}: there must be one")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A stand-in for a run."""

    widget: Widget
    model_dir: str
    tasks: dict = dataclasses.field(default_factory=dict)


GIN = """
MODEL_DIR = "somewhere"
DATA_DIR = "data"
Job.widget = @Widget()
Job.model_dir = %MODEL_DIR
Job.tasks = {"a": {"folder": %DATA_DIR}}
Widget.embed_dim = 3
"""


@pytest.fixture
def gin_file(tmp_path: Path) -> Path:
    path = tmp_path / "job.gin"
    path.write_text(GIN)
    return path


def build(*argv: str) -> Job:
    parser = doors.gin_parser("flanjax.test", "a test")
    _, sources = doors.parse_gin_flags(parser, argv)
    doors.configure(sources, [Widget, Job])
    job = doors.build(Job)
    assert isinstance(job, Job)
    return job


def test_a_gin_file_becomes_typed_objects(gin_file: Path) -> None:
    assert build(f"--gin_file={gin_file}") == Job(
        widget=Widget(embed_dim=3), model_dir="somewhere", tasks={"a": {"folder": "data"}}
    )


@pytest.mark.parametrize("value", ["/data/run1", "gs://bucket/a b", "flan_t5_3b", "it's", "a=b"])
def test_overrides_need_no_quotes(gin_file: Path, value: str) -> None:
    assert build(f"--gin_file={gin_file}", f"--gin.MODEL_DIR={value}").model_dir == value


@pytest.mark.parametrize(("text", "value"), [("7", 7), ("-1", -1), ("1e3", 1e3), ("None", None)])
def test_overrides_keep_literals(gin_file: Path, text: str, value: float | None) -> None:
    assert build(f"--gin_file={gin_file}", f"--gin.Widget.rate={text}").widget.rate == value


def test_the_home_folder_is_put_in(gin_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert build(f"--gin_file={gin_file}", "--gin.MODEL_DIR=~/run").model_dir == "/home/me/run"


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("Widget.gated=false", "Widget.gated is 'false': it must be True or False"),
        ("Widget.gated=0", "Widget.gated is 0: it must be True or False"),
        ("Widget.embed_dim=wide", "Widget.embed_dim is 'wide': it must be a whole number"),
        ("Widget.embed_dim=1e3", "Widget.embed_dim is 1000.0: it must be a whole number"),
        ("Widget.embed_dim=True", "Widget.embed_dim is True: it must be a whole number"),
        ("Widget.rate=high", "Widget.rate is 'high': it must be a number or None"),
        ("MODEL_DIR=2024", "Job.model_dir is 2024: it must be a text; a text that looks like a number is given as"),
        ("Widget.layers=0", "Widget: layers is 0: there must be one"),
    ],
)
def test_a_value_that_a_field_cannot_have_is_refused(gin_file: Path, argument: str, words: str) -> None:
    with pytest.raises(doors.GinError) as error:
        build(f"--gin_file={gin_file}", f"--gin.{argument}")
    assert str(error.value).startswith(words)
    assert "configurable" not in str(error.value)


def test_a_number_in_quotes_is_a_text(gin_file: Path) -> None:
    assert build(f"--gin_file={gin_file}", "--gin.MODEL_DIR='2024'").model_dir == "2024"


def test_the_folders_that_are_searched_exist() -> None:
    assert all(folder.is_dir() for folder in doors.config_folders())


def test_later_files_override_earlier_ones(gin_file: Path, tmp_path: Path) -> None:
    later = tmp_path / "later.gin"
    later.write_text("Widget.layers = 9\n")
    assert build(f"--gin_file={gin_file}", f"--gin_file={later}").widget.layers == 9


def test_an_include_is_found_beside_its_file(gin_file: Path) -> None:
    outer = gin_file.parent / "outer.gin"
    outer.write_text("include 'job.gin'\nWidget.layers = 4\n")
    assert build(f"--gin_file={outer}").widget.layers == 4


def test_a_file_that_includes_itself_is_refused(gin_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(gin_file.parent)
    Path("outer.gin").write_text("include 'inner.gin'\n")
    Path("inner.gin").write_text("include 'job.gin'\ninclude 'outer.gin'\n")
    with pytest.raises(doors.GinError, match=r"outer\.gin includes itself.*inner\.gin"):
        build("--gin_file=outer.gin")


def test_texts_and_comments_of_a_file_name_no_macros(gin_file: Path) -> None:
    gin_file.write_text(GIN.replace('"somewhere"', '"100%SURE#1"') + "# %OTHER\n")
    assert build(f"--gin_file={gin_file}").model_dir == "100%SURE#1"


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--gin.MODEL_DRI=x", ["MODEL_DRI", "'MODEL_DIR'"]),
        ("--gin.model_dir=x", ["model_dir", "'MODEL_DIR'"]),
        ("--gin.Job.tasks={'a': ", ["--gin.Job.tasks", "EOF"]),
        ("--gin.Widget.embd_dim=4", ["embd_dim", "'embed_dim'"]),
        ("--gin.Wigdet.embed_dim=4", ["Wigdet", "'Widget'"]),
        ("--gin_file=dmo.gin", ["dmo.gin", "'demo.gin'"]),
        ("--gin.MODEL_DIR", ["equals sign"]),
    ],
)
def test_an_unknown_name_suggests_the_nearest(gin_file: Path, argument: str, words: list[str]) -> None:
    with pytest.raises(doors.GinError) as error:
        build(f"--gin_file={gin_file}", argument)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("SPARE = 1\n", ["SPARE", "used nowhere"]),
        ("model_dir = 'x'\n", ["model_dir", "used nowhere", "'MODEL_DIR'"]),
        ("Job.model_dir = %OTHER\n", ["OTHER must be set", "--gin.OTHER=VALUE"]),
        ("Widget.layers =\n", ["job.gin"]),
    ],
)
def test_a_faulty_file_is_explained(gin_file: Path, line: str, words: list[str]) -> None:
    gin_file.write_text(GIN + line)
    with pytest.raises(doors.GinError) as error:
        build(f"--gin_file={gin_file}")
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bare.gin"
    path.write_text("Job.widget = @Widget()\nJob.model_dir = 'x'\n")
    with pytest.raises(doors.GinError, match=r"Widget: 'embed_dim' must be set"):
        build(f"--gin_file={path}")


def test_an_expected_error_has_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def door() -> int:
        raise doors.GinError("the thing, the place, the remedy")

    assert doors.run_door(door) == 2
    assert capsys.readouterr().err == "error: the thing, the place, the remedy\n"


@pytest.mark.parametrize("module", ["train", "materialize", "export", "convert", "infer", "chat"])
def test_help_imports_nothing_heavy(module: str) -> None:
    code = (
        f"import sys, flanjax.{module} as door\n"
        "try: door.main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'jax', 'numpy', 'tensorflow', 'gin'} & set(sys.modules), sorted(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"flanjax.{module}" in done.stdout


def test_a_terminated_training_takes_its_materialising_along() -> None:
    child = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    parent = f"import sys; from flanjax.train import _run_process; _run_process([sys.executable, '-c', {child!r}])"
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    number = int(process.stdout.readline())
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)
