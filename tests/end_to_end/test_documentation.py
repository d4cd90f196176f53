"""What README and docs show is what works: the README's own-data example is run word for word, every command parses."""

import ast
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flanjax import doors
from flanjax.run import CONFIGURABLES, Run

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Values for what a page leaves to its reader.
REQUIRED = {"MODEL_DIR": "runs/x", "INIT_FROM": "model", "DATA_DIR": "data", "VOCABULARY": "spiece.model"}


def code(page: Path) -> list[list[str]]:
    """The indented blocks of a page, without their indent."""
    blocks = re.findall(r"(?:^ {4}.*\n)+", page.read_text() + "\n", flags=re.MULTILINE)
    return [[line[4:] for line in block.splitlines()] for block in blocks]


def commands(page: Path) -> list[str]:
    """Its `python -m flanjax...` command lines, continued lines joined."""
    text = "\n".join(line for block in code(page) for line in block).replace("\\\n", " ")
    found = re.findall(r"^python -m flanjax\.[^#\n]*", text, flags=re.MULTILINE)
    return [command.strip() for command in found]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_training_commands_name_what_exists(page: Path) -> None:
    for command in commands(page):
        _, _, module, *arguments = shlex.split(command)
        if module not in ("flanjax.train", "flanjax.materialize") or "NAME" in command or "[" in command:
            continue
        parser = doors.gin_parser(module, "")
        parser.add_argument("--dry_run", action="store_true")
        gin = [argument for argument in arguments if argument.startswith(("--gin", "--dry_run"))]
        _, sources = doors.parse_gin_flags(parser, gin)
        if not sources.files:
            continue
        macros = doors.Macros()
        for file in sources.files:
            macros.read(doors.find_gin_file(file))
        missing = macros.used - macros.defined.keys() - {name for name, _ in sources.overrides}
        required = tuple((name, repr(REQUIRED[name])) for name in sorted(missing))
        complete = doors.GinSources(files=sources.files, overrides=required + sources.overrides)
        doors.configure(complete, CONFIGURABLES)
        assert isinstance(doors.build(Run), Run)


RUNS = {path.name for path in (ROOT / "gin_configs" / "runs").glob("*.gin")}
FRAGMENTS = {"common.gin", "flan_t5_recipe.gin"}  # included by the others, not run


@pytest.mark.parametrize("name", sorted(RUNS - FRAGMENTS))
def test_every_run_file_builds(name: str) -> None:
    macros = doors.Macros()
    macros.read(doors.find_gin_file(name))
    values = {**REQUIRED, "MIXTURE": "demo", "TRAIN_STEPS": 1}
    missing = macros.used - macros.defined.keys()
    overrides = tuple((macro, repr(values[macro])) for macro in sorted(missing))
    doors.configure(doors.GinSources(files=(name,), overrides=overrides), CONFIGURABLES)
    assert isinstance(doors.build(Run), Run)


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "gin_configs" / "tuning").glob("*.gin")))
def test_every_tuning_file_builds_after_a_run_file(name: str) -> None:
    values = {**REQUIRED, "MIXTURE": "demo"}
    overrides = tuple((macro, repr(values[macro])) for macro in ("MODEL_DIR", "INIT_FROM", "MIXTURE"))
    doors.configure(doors.GinSources(files=("finetune.gin", name), overrides=overrides), CONFIGURABLES)
    run = doors.build(Run)
    assert isinstance(run, Run)
    assert run.tuning
    head = doors.find_gin_file(name).read_text()
    assert f"`{name}`" in (ROOT / "docs" / "tuning.md").read_text()
    assert f"--gin_file=finetune.gin --gin_file={name}" in head


@pytest.mark.parametrize("name", sorted(RUNS))
def test_a_run_file_tells_of_macros_that_exist(name: str) -> None:
    path = doors.find_gin_file(name)
    macros = doors.Macros()
    macros.read(path)
    head = path.read_text().split("\n\n", 1)[0]
    told = {macro for line in head.splitlines() if ":" in line for macro in re.findall(r"\b[A-Z_]{4,}\b", line)}
    assert told <= macros.used


def test_the_macro_table_is_that_of_common_gin() -> None:
    macros = doors.Macros()
    macros.read(doors.find_gin_file("common.gin"))
    rows = re.findall(r"^\| (`[A-Z_`, ]+) \|", (ROOT / "docs" / "training.md").read_text(), flags=re.MULTILINE)
    assert set(re.findall(r"[A-Z_]+", " ".join(rows))) == macros.used


def test_the_task_table_names_the_options_that_there_are() -> None:
    table = (ROOT / "docs" / "data.md").read_text()
    for module, options in re.findall(r"^\| `flanjax\.tasks\.(\w+)` \|[^|]*\|([^|]*)\|", table, flags=re.MULTILINE):
        tree = ast.parse((ROOT / "tasks" / f"{module}.py").read_text())
        (register,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "register")
        names = {argument.arg for argument in register.args.args + register.args.kwonlyargs}
        assert set(re.findall(r"`(\w+)`", options)) == names, module


def test_the_readme_tunes_a_readers_own_data(tiny: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    blocks = code(ROOT / "README.md")
    (module,) = [block for block in blocks if block[0] == "# my_tasks.py"]
    (tmp_path / "my_tasks.py").write_text("\n".join(module) + "\n")
    shutil.copytree(tiny / "whole_hf", tmp_path / "flan-t5-small")
    shutil.copy(tiny / "whole_hf" / "spiece.model", tmp_path)
    for split in ("train", "validation"):
        rows = (f"Sort these words: {a}, {b}\t{min(a, b)}, {max(a, b)}" for a in "abcdef" for b in "uvwxyz")
        (tmp_path / f"{split}.tsv").write_text("\n".join(rows) + "\n")
    train, export = [c for c in commands(ROOT / "README.md") if "MIXTURE=my_task" in c or "flanjax.export" in c]
    short = " --gin.TRAIN_STEPS=2 --gin.BATCH_ROWS=2 --gin.EvaluationConfig.questions=1"
    for command in (train + short, export):
        line = f"{shlex.quote(sys.executable)} {command.removeprefix('python ')}"
        done = subprocess.run(
            line, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (python,) = [block for block in blocks if block[0] == "import flanjax"]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(python)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
