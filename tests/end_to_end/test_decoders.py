"""A decoder from the shipped gin file: it trains, is killed and resumed, is tuned by LoRA, exported, and asked."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import flanjax as library
from flanjax.files import read_json_lines
from flanjax.models.decoder import build
from tests.end_to_end.conftest import Flanjax

STEPS = 6


@pytest.fixture(scope="module")
def arguments(stories: Path, test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """alpaca_llama.gin on the real stories260K and a hundred records of Alpaca, in rows of 192 tokens."""
    tasks = {
        "flanjax.tasks.alpaca": {"data_dir": str(test_data / "alpaca" / "alpaca_tiny.json"), "style": "plain"},
        "flanjax.tasks.demo": {"train_examples": 2, "validation_examples": 1},
    }
    given = {
        "INIT_FROM": stories,
        "TASKS": tasks,
        "EVAL_MIXTURES": ("demo_heldout",),
        "CACHE_DIR": tmp_path_factory.mktemp("decoders") / "cache",
        "FEATURE_LENGTHS": {"tokens": 192},
        "BATCH_ROWS": 4,
        "TRAIN_STEPS": STEPS,
        "LEARNING_RATE": 1e-3,
        "EVAL_EVERY": 3,
        "CHECKPOINT_EVERY": 2,
        "Compute.dtype": "float32",
        "OptimizerConfig.warmup_steps": 0,
        "TrainConfig.eval_at_start": True,
        "TrainConfig.log_every": 1,
        "EvaluationConfig.questions": 3,
        "EvaluationConfig.max_new_tokens": 8,
    }
    return ["--gin_file=alpaca_llama.gin", *(f"--gin.{name}={value}" for name, value in given.items())]


@pytest.fixture(scope="module")
def whole(arguments: list[str], flanjax: Flanjax, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the finished run `run`, its export `hf` and what it said, `log`."""
    folder = tmp_path_factory.mktemp("whole")
    done = flanjax("train", *arguments, f"--gin.MODEL_DIR={folder / 'run'}", f"--gin.EXPORT_TO={folder / 'hf'}")
    (folder / "log").write_text(done.stdout)
    return folder


@pytest.fixture(scope="module")
def records(test_data: Path) -> list[tuple[str, str]]:
    """Eight short pairs that it is trained on."""
    published = json.loads((test_data / "alpaca" / "alpaca_tiny.json").read_text())
    pairs = [(one["instruction"], one["output"]) for one in published if not one["input"]]
    return [pair for pair in pairs if sum(map(len, pair)) < 300][:8]


def likelihood(model: Path, records: list[tuple[str, str]]) -> float:
    inputs, targets = zip(*records, strict=True)
    return sum(library.load(model).score(inputs, targets))


def test_it_learns_and_says_what_it_does(whole: Path, stories: Path, records: list[tuple[str, str]]) -> None:
    log = (whole / "log").read_text()
    assert "rows of 192 tokens (as given)" in log
    assert "transformers.AutoModelForCausalLM.from_pretrained" in log
    lines = read_json_lines(whole / "run" / "metrics.jsonl")
    assert len([line for line in lines if line["split"] == "train"]) == STEPS
    held_out = [line for line in lines if line["split"] == "demo_heldout"]
    assert [line["step"] for line in held_out] == [0, 3, 6]
    assert held_out[-1]["values"]["loss"] < held_out[0]["values"]["loss"] - 0.2
    assert likelihood(whole / "run", records) > likelihood(stories, records) + 100
    samples = read_json_lines(whole / "run" / "samples.jsonl")
    assert {line["step"] for line in samples} == {0, 3, 6}


def test_killed_and_resumed_equals_uninterrupted(
    arguments: list[str], whole: Path, environment: dict[str, str], flanjax: Flanjax, tmp_path: Path
) -> None:
    # Whether it is evaluated does not change what it becomes.
    quick = ["--gin.EVAL_EVERY=0", "--gin.TrainConfig.eval_at_start=False"]
    flags = [*arguments, *quick, f"--gin.MODEL_DIR={tmp_path / 'run'}", f"--gin.EXPORT_TO={tmp_path / 'hf'}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "flanjax.train", *flags], env=environment, stdout=subprocess.DEVNULL
    )
    checkpoints = tmp_path / "run" / "checkpoints"
    while process.poll() is None and not any(checkpoints.glob("[0-9]*")):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it was killed"
    done = flanjax("train", *flags)
    assert "resum" in done.stdout
    ours, theirs = (load_file(folder / "hf" / "model.safetensors") for folder in (tmp_path, whole))
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)


def test_the_export_opens_in_transformers_and_says_the_same(whole: Path, stories: Path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(whole / "hf").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(whole / "hf")
    ours, exported = library.load(whole / "run"), library.load(whole / "hf")
    texts = ["Once upon a time", "Lily and her mom went to"]
    answers = ours.generate(texts, max_new_tokens=12)
    assert exported.generate(texts, max_new_tokens=12) == answers
    for text, answer in zip(texts, answers, strict=True):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        assert ids[0].tolist() == ours.vocabulary.as_inputs(ours.vocabulary.encode(text))
        with torch.no_grad():
            generated = theirs.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
            logits = theirs(ids).logits[0].numpy()
        assert ours.vocabulary.decode(generated.tolist()) == answer
        model, tokens = build(ours.config, ours.compute, ours.params), np.asarray(ids)
        np.testing.assert_allclose(model.logits(model.decode(tokens, np.ones_like(tokens)))[0], logits, atol=1e-4)
    config = json.loads((whole / "hf" / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert "| Mixture | alpaca |" in (whole / "hf" / "README.md").read_text()
    # It was trained: these are not the weights it began with.
    before = load_file(stories / "model.safetensors")
    assert any(
        not np.array_equal(array, before[name]) for name, array in load_file(whole / "hf" / "model.safetensors").items()
    )


def test_lora_learns_in_two_projections_and_merges_into_the_same_model(
    arguments: list[str], flanjax: Flanjax, stories: Path, records: list[tuple[str, str]], tmp_path: Path
) -> None:
    flags = [arguments[0], "--gin_file=lora.gin", *arguments[1:], f"--gin.MODEL_DIR={tmp_path / 'run'}"]
    flags += ["--gin.LEARNING_RATE=3e-3", "--gin.EVAL_EVERY=0", "--gin.TrainConfig.eval_at_start=False"]
    flanjax("train", *flags, f"--gin.EXPORT_TO={tmp_path / 'hf'}")
    tuned, merged = (likelihood(tmp_path / name, records) for name in ("run", "hf"))
    assert tuned > likelihood(stories, records) + 30
    assert merged == pytest.approx(tuned, rel=1e-4)
    before, after = (load_file(folder / "model.safetensors") for folder in (stories, tmp_path / "hf"))
    moved = {name.split(".")[-2] for name, array in after.items() if not np.array_equal(array, before[name])}
    assert moved == {"q_proj", "v_proj"}


def test_smollm2_learns_alpaca_by_lora_in_its_own_template(
    flanjax: Flanjax, smollm2: Path, test_data: Path, tmp_path: Path
) -> None:
    data = test_data / "llama_factory" / "alpaca_en_demo.json"
    given = {
        "INIT_FROM": smollm2,
        "MIXTURE": "alpaca_en_demo",
        "TASKS": {"flanjax.tasks.own": {"path": str(data), "validation": 20}},
        "CACHE_DIR": tmp_path / "cache",
        "MODEL_DIR": tmp_path / "run",
        "EXPORT_TO": tmp_path / "hf",
        "FEATURE_LENGTHS": {"tokens": 256},
        "TRAIN_STEPS": 6,
        "EVAL_EVERY": 6,
        "CHECKPOINT_EVERY": 6,
        "LEARNING_RATE": 3e-3,
        "EvaluationConfig.loss_examples": 12,
        "EvaluationConfig.questions": 1,
        "EvaluationConfig.max_new_tokens": 4,
    }
    overrides = [f"--gin.{name}={value}" for name, value in given.items()]
    flanjax("train", "--gin_file=smollm2_alpaca.gin", "--gin_file=lora.gin", *overrides)
    lines = read_json_lines(tmp_path / "run" / "metrics.jsonl")
    before, after = (line["values"]["loss"] for line in lines if line["split"] != "train")
    assert after < before - 0.02
    weights, tuned = (load_file(folder / "model.safetensors") for folder in (smollm2, tmp_path / "hf"))
    moved = {name.split(".")[-2] for name, array in tuned.items() if not np.array_equal(array, weights[name])}
    assert moved == {"q_proj", "v_proj"}
    # What is asked in the template that travelled with it is answered alike by the run and by the merged export.
    question = [{"role": "user", "content": "What is the capital of France?"}]
    answers = [library.load(tmp_path / name).chat([question], max_new_tokens=8)[0] for name in ("run", "hf")]
    assert answers[0] == answers[1]
    assert "Paris" in answers[0]
