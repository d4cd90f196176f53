"""What README and docs show is what works: the README's own-data example is run word for word, every command parses."""

import importlib
import inspect
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flanjax import data_door, doors, materialize
from flanjax.data.catalog import find, is_path, shipped
from flanjax.run import CONFIGURABLES, Run
from flanjax.tuning.lora import ALL_LINEAR, LoRA
from flanjax.tuning.select import LAYER_NORMS

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Values for what a page leaves to its reader.
REQUIRED = {"MODEL_DIR": "runs/x", "INIT_FROM": "model", "DATA_DIR": "data", "VOCABULARY": "spiece.model"}


def code(page: Path) -> list[list[str]]:
    """The indented blocks of a page, without their indent; an empty line between indented ones ends none."""
    blocks = re.findall(r"^ {4}.*\n(?:^ {4}.*\n|^\n(?=\n* {4}))*", page.read_text() + "\n", flags=re.MULTILINE)
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
    assert run.tuning or run.optimizer.layer_decay
    head = doors.find_gin_file(name).read_text()
    assert f"`{name}`" in (ROOT / "docs" / "tuning.md").read_text()
    assert f"--gin_file=finetune.gin --gin_file={name}" in head
    assert "# Published: " in head or "# Our choice, all of it" in head


OF_ELECTRA = {
    "name": "adamw",
    "learning_rate": 1e-4,
    "layer_decay": 0.8,
    "weight_decay": 0.01,
    "epsilon": 1e-6,
    "schedule": "linear",
    "warmup_ratio": 0.1,
    "global_norm_clip": 1.0,
}
OF_T_FEW = {
    "name": "adafactor",
    "schedule": "linear",
    "warmup_steps": 0,
    "warmup_ratio": 0.06,
    "final_fraction": 0.0,
    "global_norm_clip": 1.0,
}
QLORA = {"rank": 64, "alpha": 16, "dropout": 0.1}
CLIPPED = {"name": "adamw", "schedule": "constant", "warmup_steps": 0, "learning_rate": 2e-4, "global_norm_clip": 0.3}
OF_LESTER = {
    "name": "adafactor",
    "schedule": "constant",
    "warmup_steps": 0,
    "learning_rate": 0.3,
    "decay_rate": 0.8,
    "multiply_by_parameter_scale": False,
    "weight_decay": 1e-5,
}


@pytest.mark.parametrize(
    ("name", "tuning", "optimizer"),
    [
        ("lora.gin", [{"rank": 8, "alpha": 8}], {}),
        ("lora_plus.gin", [{"rank": 8, "alpha": 8}], {"rate_factors": ((".*/lora/b", 16.0),)}),
        ("rslora.gin", [{"rank": 64, "rank_stabilized": True}], {}),
        ("dora.gin", [{"rank": 32, "alpha": 64, "dropout": 0.05, "dora": True}], {"learning_rate": 2e-4}),
        (
            "pissa.gin",
            [{"rank": 128, "alpha": 128}],
            {"learning_rate": 2e-5, "schedule": "cosine", "warmup_ratio": 0.03},
        ),
        ("lora_all_linear.gin", [{**QLORA, "targets": ALL_LINEAR}], CLIPPED),
        (
            "qlora.gin",
            [{"block": 64, "double_block": 256, "double": True}, {**QLORA, "targets": ALL_LINEAR, "dtype": "bfloat16"}],
            CLIPPED,
        ),
        ("ia3.gin", [{}], {**OF_T_FEW, "learning_rate": 3e-3}),
        ("layer_norms.gin", [{"parameters": LAYER_NORMS}], {**OF_T_FEW, "learning_rate": 3e-4}),
        ("prompt.gin", [{"length": 100, "init": "vocabulary", "vocabulary_ids": 5000}], OF_LESTER),
        ("prefix_mlp.gin", [{"length": 200, "hidden_dim": 800}], {"learning_rate": 5e-5, "schedule": "linear"}),
        ("houlsby.gin", [{"style": "houlsby", "bottleneck": 64}], {"learning_rate": 3e-4}),
        ("parallel.gin", [{"style": "parallel", "bottleneck": 512, "scale": 4.0}], {"learning_rate": 5e-5}),
        ("pfeiffer.gin", [{"style": "pfeiffer", "bottleneck": 768 // 16}], {}),
        ("bitfit.gin", [{}], {"learning_rate": 3e-4}),
        ("freeze.gin", [{"parameters": "token_embedder/.*"}], {"name": "adafactor"}),
        ("layer_decay.gin", [], OF_ELECTRA),
    ],
)
def test_a_tuning_file_has_the_published_settings(
    name: str, tuning: list[dict[str, object]], optimizer: dict[str, object]
) -> None:
    overrides = tuple((macro, repr("x")) for macro in ("MODEL_DIR", "INIT_FROM", "MIXTURE"))
    doors.configure(doors.GinSources(files=("finetune.gin", name), overrides=overrides), CONFIGURABLES)
    run = doors.build(Run)
    for found, published in zip((*run.tuning, run.optimizer), (*tuning, optimizer), strict=True):
        assert {field: getattr(found, field) for field in published} == published
    if name in ("ia3.gin", "layer_norms.gin"):
        assert run.train.train_steps == 1000
    if name == "prompt.gin":
        assert (run.loss.z_loss, run.loss.label_smoothing) == (1e-4, 0.0)
    if name == "qlora.gin":
        assert run.compute.dtype == "bfloat16"


def test_a_tuning_file_follows_a_models_own_run_file_too() -> None:
    overrides = tuple((macro, repr("x")) for macro in ("MODEL_DIR", "INIT_FROM", "DATA_DIR", "MIXTURE"))
    doors.configure(doors.GinSources(files=("flan_t5_small.gin", "lora.gin"), overrides=overrides), CONFIGURABLES)
    run = doors.build(Run)
    assert isinstance(run, Run)
    assert run.tuning == (LoRA(rank=8, alpha=8),)
    assert (run.optimizer.name, run.optimizer.learning_rate) == ("adamw", 1e-3)
    assert run.model is not None
    assert run.model.embed_dim == 512


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


def test_the_selection_macros_reach_the_loader() -> None:
    given = {"MODEL_DIR": "x", "INIT_FROM": "x", "MIXTURE": "x", "SELECT": "longest_targets", "EXAMPLES_PER_TASK": 0.1}
    overrides = tuple((name, repr(value)) for name, value in given.items())
    doors.configure(doors.GinSources(files=("finetune.gin",), overrides=overrides), CONFIGURABLES)
    run = doors.build(Run)
    assert isinstance(run, Run)
    assert (run.data.examples_per_task, run.data.select) == (0.1, "longest_targets")


def test_the_task_table_has_every_module_with_its_mixtures_and_options() -> None:
    text = (ROOT / "docs" / "data.md").read_text()
    rows = re.findall(r"^\| `(flanjax\.tasks\.\w+)` \|([^|]*)\|([^|]*)\|", text, flags=re.MULTILINE)
    assert [module for module, _, _ in rows] == sorted(shipped())
    for module, mixtures, options in rows:
        described = inspect.signature(importlib.import_module(module).family).parameters
        assert set(re.findall(r"`(\w+)`", options)) == set(described), module
        assert set(re.findall(r"`(\w+)`", mixtures)) == set(shipped()[module].mixtures), module
        for name, default in re.findall(r"`(\w+)` \((\w+(?:\.\d+)?)\)", options):
            given = described[name].default
            assert default == ("all" if given is None else str(given)), (module, name)


def test_the_tables_of_datasets_have_every_module() -> None:
    text = (ROOT / "docs" / "datasets.md").read_text() + (ROOT / "docs" / "datasets_flan.md").read_text()
    for module in shipped().keys() - {"flanjax.tasks.demo"}:
        name = module.rpartition(".")[2]
        assert re.search(rf"^\| `{name}`|--tasks={module}\b", text, flags=re.MULTILINE), name


def data_commands() -> list[tuple[str, list[str]]]:
    """The commands of the pages that look at data or materialise, as (module, arguments)."""
    found = [shlex.split(command)[2:] for page in PAGES for command in commands(page)]
    doors_of_data = ("flanjax.data", "flanjax.materialize")
    return [(module, rest) for module, *rest in found if module in doors_of_data]


def test_commands_on_data_name_what_exists() -> None:
    parsers = {"flanjax.data": data_door._parser(), "flanjax.materialize": materialize._parser()}
    own = {"my_tasks", "my_seqio_tasks"}
    checked = 0
    for module, arguments in data_commands():
        arguments = [argument for argument in arguments if argument != "..." and not argument.startswith("--gin.")]
        flags = parsers[module].parse_args(arguments)
        name = flags.name if module == "flanjax.data" else flags.mixture
        if name is not None and not own & set(flags.tasks) and not is_path(name):
            assert find(name).rates, name
            assert set(flags.tasks) <= {find(name).module}
            checked += 1
    assert checked > 5


@pytest.fixture
def reader(tmp_path: Path, test_data: Path, t5_spiece: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a reader of docs/data.md, with what the page's commands name, and the modules that it shows."""
    for file, source in {
        "spiece.model": t5_spiece,
        "data/alpaca/alpaca_data.json": test_data / "alpaca" / "alpaca_tiny.json",
        "data/mmlu/anatomy_test.csv": test_data / "mmlu" / "data" / "test" / "anatomy_test.csv",
    }.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).symlink_to(source)
    (tmp_path / "reviews.jsonl").write_text(reviews(12))
    for split in ("train", "validation"):
        (tmp_path / f"{split}.tsv").write_text("Sort these words: b, a\ta, b\n")
    for block in code(ROOT / "docs" / "data.md"):
        if block[0].endswith("tasks.py"):
            (tmp_path / block[0].removeprefix("# ")).write_text("\n".join(block) + "\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("FLANJAX_DATA_DIR", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    shipped.cache_clear()
    yield tmp_path
    shipped.cache_clear()
    for name in ("my_tasks", "my_seqio_tasks"):
        sys.modules.pop(name, None)


def reviews(count: int) -> str:
    """A file of reviews, of which a short model can learn to answer."""
    judged = [(f"It was {'very ' * (n % 3)}{word}.", word) for n in range(count) for word in ("good", "bad")]
    return "".join(json.dumps({"instruction": text, "output": word}) + "\n" for text, word in judged)


def test_the_commands_of_the_data_page_do_what_it_says(reader: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = {}
    for command in commands(ROOT / "docs" / "data.md"):
        _, _, module, *arguments = shlex.split(command)
        if module == "flanjax.train" or "fetch" in arguments:
            continue  # the one is built above, for the other tests/test_data_door.py has a server
        door = data_door.main if module == "flanjax.data" else materialize.main
        assert door(arguments) == 0, (command, capsys.readouterr().err)
        shown[command.removeprefix(f"python -m {module} ")] = capsys.readouterr().out
    assert "flanjax.tasks.alpaca" in shown["list"]
    assert (reader / "lengths.png").is_file()
    mine = next(out for arguments, out in shown.items() if arguments.startswith("show mine"))
    assert "my_reviews, train" in mine
    assert "|\nIt| was|" in mine
    written = [out for out in shown.values() if "materialized alpaca: 100 examples" in out]
    assert [out.count("2 of 2 splits written") for out in written] == [1, 1, 1], "each has a seed of its own"
    assert any("materialized my_task: 2 examples" in out for out in shown.values())
    assert any("materialized reviews: 24 examples" in out for out in shown.values())


def test_the_readme_tunes_a_readers_own_data(tiny: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    shutil.copytree(tiny / "whole_hf", tmp_path / "flan-t5-small")
    (tmp_path / "reviews.jsonl").write_text(reviews(60))
    own = [c for c in commands(ROOT / "README.md") if "reviews.jsonl" in c or "flanjax.export" in c]
    lint, train, export = own
    short = " --gin.TRAIN_STEPS=2 --gin.BATCH_ROWS=2 --gin.EvaluationConfig.questions=1"
    for command in (lint, train + short, export):
        line = f"{shlex.quote(sys.executable)} {command.removeprefix('python ')}"
        done = subprocess.run(
            line, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (python,) = [block for block in code(ROOT / "README.md") if block[0] == "import flanjax"]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(python)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
