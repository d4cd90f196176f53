"""Every benchmark runs on tiny shapes and prints its ratios; no figure is asserted."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from flanjax.interchange.hf_decoder import write_hf_decoder
from flanjax.models.config import Compute
from flanjax.models.model import init_params
from flanjax.sharding.mesh import MeshConfig, make_mesh
from flanjax.training.losses import LossConfig
from flanjax.training.step import loss_sums

TINY_RUN = """
include "common.gin"

MIXTURE = "demo"
EVAL_MIXTURES = "demo_heldout"
TASKS = {"flanjax.tasks.demo": {"train_examples": 8, "validation_examples": 2}}
BATCH_ROWS = 2
LEARNING_RATE = 1e-2
VocabularySource.train_size = 300
T5Config.vocab_size = 408
T5Config.embed_dim = 16
T5Config.num_heads = 2
T5Config.head_dim = 8
T5Config.mlp_dim = 32
T5Config.num_encoder_layers = 1
T5Config.num_decoder_layers = 1
"""
BENCH = Path(__file__).resolve().parents[2] / "tools" / "bench"


def output(name: str, *flags: str) -> str:
    """What a tiny run prints."""
    # One device, as a person who runs it has.
    environment = {**os.environ, "XLA_FLAGS": re.sub(r"\S*device_count\S*", "", os.environ.get("XLA_FLAGS", ""))}
    command = [sys.executable, str(BENCH / f"{name}.py"), "--smoke", *flags]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def smoke(name: str, *flags: str) -> list[str]:
    """What the RATIO lines of a tiny run compare."""
    lines = re.findall(r"^RATIO ([\d.]+)  (.*)$", output(name, *flags), re.MULTILINE)
    assert all(float(ratio) > 0 for ratio, _ in lines)
    return [claim for _, claim in lines]


@pytest.fixture(scope="module")
def flags(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Where the data is, and one cache for all."""
    return f"--data={test_data}", f"--cache_dir={tmp_path_factory.mktemp('cache')}"


def test_train_step_compares_both_forms_with_transformers() -> None:
    assert smoke("train_step", "--dtype=bfloat16") == [
        "train step, bfloat16: flanjax unrolled against transformers",
        "train step, bfloat16: flanjax scanned against transformers",
    ]


def test_decoder_step_compares_both_forms_with_transformers() -> None:
    assert smoke("decoder_step") == [
        "decoder train step, float32: flanjax unrolled against transformers",
        "decoder train step, float32: flanjax scanned against transformers",
    ]


def test_decoder_step_gives_both_the_same_rows_of_segments_apart(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import torch
    import transformers

    monkeypatch.syspath_prepend(str(BENCH))
    decoder_step = importlib.import_module("decoder_step")
    shapes = decoder_step.SMOKE
    config = decoder_step.decoder_config(shapes)
    params = init_params(config, 0)
    write_hf_decoder(tmp_path, config, params, model_type="llama")
    model = transformers.LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    sums = loss_sums(config, Compute(), LossConfig(z_loss=0.0), params, decoder_step.packed_rows(shapes), mesh)
    rows = decoder_step.torch_rows(shapes)
    assert float(sums.tokens) == shapes.rows * shapes.length
    assert float(sums.loss / sums.tokens) == pytest.approx(model(**rows).loss.item(), abs=1e-5)
    # As one sequence a row it would be another loss.
    assert model(**{**rows, "position_ids": None}).loss.item() != pytest.approx(model(**rows).loss.item(), abs=1e-5)


def test_chat_compares_packed_rows_with_both_ways_to_pad(smollm2: Path, test_data: Path, tmp_path: Path) -> None:
    conversations = test_data / "fastchat" / "dummy_conversation.json"
    flags = f"--tokenizer={smollm2}", f"--conversations={conversations}", f"--cache_dir={tmp_path}"
    assert smoke("chat", *flags) == [
        "useful tokens/s of chats: flanjax, packed, against transformers, padded to the longest of 8",
        "useful tokens/s of chats: flanjax, packed, against transformers, padded to 512",
    ]


def test_data_compares_the_loader_with_packers_and_with_the_step(flags: tuple[str, str]) -> None:
    claims = smoke("data", *flags)
    assert len(claims) == 7
    assert claims[0] == "tokens/s: flanjax, planned against seqio"
    assert claims[-1] == "tokens/s: the loader against what the train step takes"


def test_end_to_end_compares_whole_loops(flags: tuple[str, str]) -> None:
    claims = smoke("end_to_end", *flags)
    assert claims == ["real tokens/s of the whole loop: flanjax, packed, against transformers, padded"]


def test_tuning_compares_a_method_with_peft() -> None:
    assert smoke("tuning", "--methods=lora", "--scan") == [
        "step time: lora, flanjax against peft",
        "peak memory: lora, peft's over flanjax's",
    ]


def test_tuning_gives_both_sides_the_same_tokens_and_prints_both_losses() -> None:
    methods = ("dora", "pissa", "prefix", "p_tuning")
    printed = output("tuning", f"--methods={','.join(methods)}", "--scan")
    losses = dict(re.findall(r"^(\w+, \w+) .* ([\d.]+)$", printed, re.MULTILINE))
    assert losses.keys() == {f"{name}, {side}" for name in methods for side in ("flanjax", "peft")}
    # Random weights of one size know nothing: the mean over the vocabulary of 512, and a little.
    assert all(abs(float(loss) - 6.24) < 1.5 for loss in losses.values()), losses


def test_rows_of_tuning_are_the_same_tokens_packed_and_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    tuning = importlib.import_module("tuning")
    shapes = tuning.train_step.SMOKE
    inputs, targets = tuning.tokens_of(shapes)
    for prompt in (0, 5):
        batch = tuning.packed(shapes, prompt)
        np.testing.assert_array_equal(batch["encoder_input_tokens"][:, prompt:], inputs)
        np.testing.assert_array_equal(batch["decoder_target_tokens"], targets)
        assert not batch["encoder_input_tokens"][:, :prompt].any()
        assert batch["encoder_segment_ids"].max() == (1 if prompt else shapes.segments)


def test_tuning_says_what_a_method_costs_without_weights() -> None:
    printed = output("tuning", "--methods=full,houlsby", "--compile_only", "--scan", "--remat=full")
    columns = {line.split()[0]: line.split()[1:] for line in printed.splitlines() if line[:4] in ("full", "houl")}
    trained = {name: int(values[0].replace(",", "")) for name, values in columns.items()}
    # Two encoder layers with two adapters and two norms, two decoder layers with three, and two norms at the ends.
    adapter = 32 * 64 + 64 + 64 * 32 + 32
    assert trained == {"full": 82_432, "houlsby": 10 * adapter + 10 * 32 + 2 * 32}


def test_tuning_measures_what_a_method_learns(tmp_path: Path) -> None:
    run = tmp_path / "run.gin"
    run.write_text(TINY_RUN)
    printed = output(
        "tuning", "--methods=lora", "--quality_steps=2", f"--quality_run={run}", f"--cache_dir={tmp_path / 'cache'}"
    )
    losses = re.findall(r"^QUALITY lora +(\w+): loss ([\d.]+) -> ([\d.]+) after 2 steps$", printed, re.MULTILINE)
    assert [name for name, *_ in losses] == ["demo", "demo_heldout"]
    assert all(before != after for _, before, after in losses)


def test_materializing_is_compared_with_seqio_and_datasets(test_data: Path) -> None:
    assert smoke("materialize", f"--data={test_data}") == [
        "examples/s of one core: flanjax against seqio, cache_tasks_main",
        "examples/s of one core: flanjax against datasets.map",
        "peak memory: flanjax at 16 times the rows, to once",
    ]


def test_loading_is_measured_beside_transformers() -> None:
    printed = output("loading")
    lines = re.findall(
        r"^(\w[^\n]*?)  +[\d.]+ s \(CPU +[\d.]+\) +peak +\d+ MB, parameters +(\d+) MB", printed, re.MULTILINE
    )
    assert lines == [
        ("flanjax, 1 device", "5"),
        ("flanjax, 8 devices", "5"),
        ("transformers, from_pretrained", "5"),
        ("flanjax, folder to folder", "0"),
        ("transformers, folder to folder", "0"),
    ]
    assert len(re.findall(r"^RATIO ", printed, re.MULTILINE)) == len(lines)


def test_scoring_is_compared_with_the_harnesss_own_model(test_data: Path, flan_t5_small: Path) -> None:
    printed = output("scoring", f"--data={test_data}", f"--model={flan_t5_small}")
    assert re.findall(r"^RATIO [\d.]+  (.*)$", printed, re.M) == [
        "scoring MMLU, flan_t5_small: flanjax against hf",
    ]
    (apart, same) = re.findall(r"^8 requests: .* at most ([\d.e-]+) apart, is_greedy equal in (\d+)$", printed, re.M)[0]
    assert float(apart) < 1e-3
    assert same == "8"


def test_generate_compares_greedy_answers_with_transformers(stories: Path) -> None:
    assert smoke("generate", f"--model={stories}") == [
        "greedy answers, float32: flanjax against transformers, as they come",
        "greedy answers, float32: flanjax against transformers, by length",
    ]
    assert "slope" in output("generate", f"--model={stories}", "--per_token=3")
