"""The command line, end to end: train, look, be killed, resume, be refused, export."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import flanjax as library

Flanjax = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., subprocess.Popen[str]]
TIMINGS = {"seconds", "tokens_per_second"}


def metrics(run: Path) -> list[dict]:
    """The log without its timings."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [_without_timings(line) for line in lines]


def _without_timings(value: dict) -> dict:
    kept = {key: item for key, item in value.items() if key not in TIMINGS}
    return {key: _without_timings(item) if isinstance(item, dict) else item for key, item in kept.items()}


def leaves(tree: dict, prefix: str = "") -> dict[str, np.ndarray]:
    flat = {}
    for key, value in tree.items():
        flat |= leaves(value, f"{prefix}{key}/") if isinstance(value, dict) else {f"{prefix}{key}": np.asarray(value)}
    return flat


def assert_same_run(left: Path, right: Path) -> None:
    assert metrics(left) == metrics(right)
    ours, theirs = (leaves(library.load(run).params) for run in (left, right))
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[path], theirs[path]) for path in ours)


# The training door, which is given no batch after the third before a file is there.
HELD = """
import pathlib, sys, time
from flanjax.data.loader import PackedBatches
from flanjax.train import main

give, given = PackedBatches.__next__, 0

def held(batches):
    global given
    while given == 3 and not pathlib.Path(sys.argv[1]).exists():
        time.sleep(0.01)
    given += 1
    return give(batches)

PackedBatches.__next__ = held
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture
def start(environment: dict[str, str]) -> Start:
    """Starts a training and does not wait for it; `until` a file is there it takes three steps at most."""

    def run(arguments: list[str], until: Path | None = None) -> subprocess.Popen[str]:
        door = ["-m", "flanjax.train"] if until is None else ["-c", HELD, str(until)]
        command = [sys.executable, *door, *arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)

    return run


def wait_for_step(run: Path, step: int, process: subprocess.Popen) -> None:
    while process.poll() is None:
        log = run / "metrics.jsonl"
        if log.exists() and any(f'"step": {step}' in line for line in log.read_text().splitlines()):
            return
        time.sleep(0.02)


def test_a_run_leaves_what_the_documentation_lists(tiny: Path) -> None:
    run = tiny / "whole"
    files = ("config.json", "config.gin", "parameters.txt", "metrics.jsonl", "samples.jsonl", "loss.png")
    assert all((run / name).is_file() for name in files)
    assert all((run / name).is_dir() for name in ("checkpoints", "tensorboard", "vocabulary"))
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((run / "config.json").read_text())["data"]["mixture"] == "demo"


def test_the_output_tells_the_run(tiny: Path) -> None:
    log = (tiny / "whole.log").read_text()
    for words in (
        "mixture demo: 19 tasks",
        "padding",
        "parameters are trained",
        "before",
        "after",
        "exact_match",
        "from_pretrained",
    ):
        assert words in log, words


def test_a_run_asked_for_again_is_whole(tiny: Path, flanjax: Flanjax) -> None:
    before = metrics(tiny / "whole")
    run = ("--gin.CACHE_DIR=" + str(tiny / "cache"), "--gin.MODEL_DIR=" + str(tiny / "whole"))
    flanjax("train", f"--gin_file={tiny / 'tiny.gin'}", *run)
    assert metrics(tiny / "whole") == before


@pytest.mark.parametrize("step", [1, 4])
def test_killed_and_resumed_equals_uninterrupted(
    tiny: Path, arguments: list[str], tmp_path: Path, flanjax: Flanjax, start: Start, step: int
) -> None:
    process = start(arguments)
    wait_for_step(tmp_path / "run", step, process)
    process.kill()
    process.wait()
    flanjax("train", *arguments)
    assert_same_run(tmp_path / "run", tiny / "whole")


def test_files_that_a_kill_cut_short_stop_no_run_and_are_written_anew(
    tiny: Path, arguments: list[str], tmp_path: Path, flanjax: Flanjax
) -> None:
    shutil.copytree(tiny / "whole", tmp_path / "run")
    before = json.loads((tmp_path / "run" / "config.json").read_text())
    for name in ("config.json", "samples.jsonl"):
        path = tmp_path / "run" / name
        path.write_bytes(path.read_bytes()[:-9])
    done = flanjax("train", *arguments)
    assert "before (step 0) and after" in done.stdout
    again = json.loads((tmp_path / "run" / "config.json").read_text())
    assert again == {**before, "model_dir": str(tmp_path / "run"), "export_to": None}


def test_sigterm_saves_and_the_same_command_goes_on(
    tiny: Path, arguments: list[str], tmp_path: Path, flanjax: Flanjax, start: Start
) -> None:
    process = start(arguments, until=tmp_path / "go")
    wait_for_step(tmp_path / "run", 2, process)
    process.send_signal(signal.SIGTERM)
    (tmp_path / "go").touch()
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert "stopped by SIGTERM" in output
    flanjax("train", *arguments)
    assert_same_run(tmp_path / "run", tiny / "whole")


def test_dry_run_shows_the_parameters_and_writes_no_run(arguments: list[str], tmp_path: Path, flanjax: Flanjax) -> None:
    done = flanjax("train", *arguments, "--dry_run")
    assert "encoder/layers/attention/query/kernel" in done.stdout
    assert "memory per device" in done.stdout
    assert "whether it fits is not known" in done.stdout or "it fits: a device has" in done.stdout
    assert not (tmp_path / "run").exists()


def test_the_best_checkpoint_is_kept_by_the_first_mixtures_loss(
    arguments: list[str], tmp_path: Path, flanjax: Flanjax
) -> None:
    # The loss falls, so the highest is not the last one's.
    options = {"keep_latest": 1, "keep_best": 1, "best_is_lowest": False, "checkpoint_every": 3}
    flanjax("train", *arguments, *(f"--gin.TrainConfig.{name}={value}" for name, value in options.items()))
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["3", "6"]


def test_training_from_a_cache_never_imports_tensorflow(arguments: list[str], environment: dict[str, str]) -> None:
    code = (
        "import subprocess, sys; from flanjax.train import main\n"
        "subprocess.run = None  # nor materialises what is there\n"
        f"assert main({arguments!r}) == 0\n"
        "assert not {'tensorflow', 'seqio', 'clu'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_exported_answers_as_the_run_does(tiny: Path) -> None:
    import torch
    import transformers

    run, exported = library.load(tiny / "whole"), library.load(tiny / "whole_hf")
    inputs, targets = ["sort: b a c", "What comes after two?"], ["a b c", "three"]
    assert run.score(inputs, targets) == exported.score(inputs, targets)
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(tiny / "whole_hf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny / "whole_hf")
    batch = tokenizer(inputs, return_tensors="pt", padding=True)
    with torch.no_grad():
        ids = theirs.generate(**batch, max_new_tokens=8, do_sample=False, num_beams=1)
    ours = run.generate(inputs, max_new_tokens=8)
    assert [run.vocabulary.decode(row) for row in ids[:, 1:].tolist()] == ours


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--gin.RATES=@Proportional()"], ["data.rates", "mixture"]),
        (["--gin.T5Config.dropout_rate=0.2"], ["model.dropout_rate", "0.2"]),
        (["--gin.SEED=1"], ["data.seed"]),
        (["--gin.TASK_SEED=1"], ["data.contents", "its seed is 0, the run's is 1"]),
    ],
)
def test_a_changed_run_is_not_resumed(
    tiny: Path, tmp_path: Path, flanjax: Flanjax, change: list[str], words: list[str]
) -> None:
    before = (tiny / "whole" / "config.json").read_text()
    # Another seed writes the cache again, which is the other tests' as well.
    shutil.copytree(tiny / "cache", tmp_path / "cache")
    run = [
        f"--gin_file={tiny / 'tiny.gin'}",
        f"--gin.CACHE_DIR={tmp_path / 'cache'}",
        f"--gin.MODEL_DIR={tiny / 'whole'}",
    ]
    done = flanjax("train", *run, *change, status=2)
    told = done.stdout + done.stderr
    assert all(word in told for word in words), told
    assert (tiny / "whole" / "config.json").read_text() == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--gin.INIT_FROM=nowhere"], ["INIT_FROM=nowhere", "no such model"]),
        (["--gin.INIT_FROM={tiny}/whole_hf", "--gin.T5Config.mlp_dim=48"], ["mlp_dim is 32 there, 48"]),
        (["--gin.Compute.dtype=float16"], ["float16", "bfloat16"]),
        (["--gin.T5Config.vocab_size=100"], ["400", "vocab_size"]),
        (["--gin.BATCH_ROWS=3", "--gin.MICROBATCHES=2"], ["3 rows", "micro-batches"]),
        (["--gin.RATES={}"], ["rate"]),
        (["--gin.TRAIN_STPES=3"], ["TRAIN_STPES", "TRAIN_STEPS"]),
        (["--gin.OptimizerConfig.name=adamm"], ["adamm", "adamw"]),
        (
            [
                "--gin.CACHE_DIR=/dev/null/cache",
                "--gin.OptimizerConfig.schedule=cosine",
                "--gin.OptimizerConfig.warmup_steps=6",
            ],
            ["warmup_steps is 6", "train longer"],
        ),
        (["--gin.EvaluationConfig.metrics=rogueL"], ["rogueL", "rougeL"]),
        (["--gin.TrainConfig.best_metric=validation/loss"], ["validation/loss", "demo/loss, ", "demo_heldout/loss, "]),
        (["--gin.TrainConfig.keep_best=1", "--gin.EVAL_EVERY=0"], ["keep_best", "eval_every"]),
    ],
)
def test_bad_input_is_explained_and_leaves_nothing(
    tiny: Path, arguments: list[str], tmp_path: Path, flanjax: Flanjax, change: list[str], words: list[str]
) -> None:
    done = flanjax("train", *arguments, *(item.replace("{tiny}", str(tiny)) for item in change), status=2)
    assert all(word in done.stderr for word in words), done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_an_unknown_mixture_names_the_nearest(arguments: list[str], flanjax: Flanjax) -> None:
    done = flanjax("train", *arguments, "--gin.MIXTURE=dmeo", status=2)
    assert "dmeo" in done.stderr
    assert "demo" in done.stderr.split("dmeo", 1)[1]


def test_another_vocabulary_than_the_models_is_refused(
    tiny: Path, arguments: list[str], tmp_path: Path, t5_spiece: Path, flanjax: Flanjax
) -> None:
    done = flanjax(
        "train",
        *arguments,
        f"--gin.CACHE_DIR={tmp_path / 'cache'}",
        f"--gin.INIT_FROM={tiny / 'whole_hf'}",
        "--gin.MIXTURE=demo_sort_words",
        "--gin.EVAL_MIXTURES=()",
        "--gin.VocabularySource.train_size=None",
        f"--gin.VOCABULARY={t5_spiece}",
        status=2,
    )
    assert "was trained with" in done.stderr
