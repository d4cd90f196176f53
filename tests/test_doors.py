"""The doors' own promises: flags, gin files found by name, overrides without quoting, errors with a suggestion."""

import dataclasses
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


@pytest.mark.parametrize(("text", "value"), [("7", 7), ("-1", -1), ("1e3", 1e3)])
def test_overrides_keep_literals(gin_file: Path, text: str, value: float) -> None:
    assert build(f"--gin_file={gin_file}", f"--gin.Widget.embed_dim={text}").widget.embed_dim == value


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


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--gin.MODEL_DRI=x", ["MODEL_DRI", "'MODEL_DIR'"]),
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


@pytest.mark.parametrize("module", ["train", "materialize", "export", "convert"])
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
