"""Tiny models of either kind and real rows for `python -m flanjax.infer`, and what reads and writes rows."""

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from flanjax import infer
from flanjax.data.chat_templates import named_templates
from flanjax.data.vocabularies import Vocabulary, train_vocabulary
from flanjax.interchange.any_model import write_hf_model
from flanjax.models.config import T5Config
from flanjax.models.decoder_config import DecoderConfig
from flanjax.models.model import ModelConfig, init_params

T5 = T5Config(
    vocab_size=320, embed_dim=16, num_heads=2, head_dim=4, mlp_dim=24, num_encoder_layers=1, num_decoder_layers=1
)
DECODER = DecoderConfig(
    vocab_size=704, embed_dim=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=24, init_stddev=0.2,
    max_positions=160,
)  # fmt: skip
NEW = 6
SMALL = ("--batch_size=4", "--window=5")
WAYS: dict[str, dict[str, Any]] = {
    "answers": {"max_new_tokens": NEW, "temperature": 1.0, "num_samples": 2},
    "beams": {"max_new_tokens": NEW, "num_beams": 2},
    "scores": {"mode": "score"},
}

Row = dict[str, Any]


def save(config: ModelConfig, vocabulary: Vocabulary, folder: Path, seed: int = 3) -> Path:
    # Three times the usual deviations: a fresh model says nearly the same whatever it is asked.
    params = jax.tree.map(lambda leaf: np.asarray(leaf) * 3, init_params(config, seed))
    write_hf_model(folder, config, params, vocabulary)
    return folder


@pytest.fixture(scope="package")
def instances(test_data: Path) -> list[Row]:
    """Real rows of Super-NaturalInstructions: id, input, and output, which is carried over."""
    tasks = test_data / "super_natural_instructions" / "tasks"
    file = tasks / "task1393_superglue_copa_text_completion.json"
    return list(json.loads(file.read_text())["Instances"][:12])


@pytest.fixture(scope="package")
def questions(test_data: Path) -> list[Row]:
    """Real rows of AlpacaEval and GSM8K as chats, with a target each."""
    with gzip.open(test_data / "alpaca_eval" / "text_davinci_003" / "model_outputs.json.gz") as stream:
        alpaca = [(row["instruction"], row["output"]) for row in json.load(stream)]
    with (test_data / "gsm8k" / "test.jsonl").open() as lines:
        gsm8k = [(row["question"], row["answer"]) for row in map(json.loads, lines)]
    pairs = [pair for pair in (*alpaca, *gsm8k) if all(pair)]
    chosen = sorted(pairs, key=lambda pair: len(pair[0]) + len(pair[1]))[:8]
    return [{"messages": [{"role": "user", "content": asked}], "target": said} for asked, said in chosen]


@pytest.fixture(scope="package")
def t5(tmp_path_factory: pytest.TempPathFactory, instances: list[Row]) -> Path:
    folder = tmp_path_factory.mktemp("t5")
    texts = [row["input"] for row in instances]
    return save(T5, train_vocabulary(texts, 200, folder / "spiece.model", extra_ids=10), folder / "model")


@pytest.fixture(scope="package")
def chat(tmp_path_factory: pytest.TempPathFactory, bpe_folder: Path) -> Path:
    """A tiny Llama with ChatML."""
    folder = tmp_path_factory.mktemp("chat")
    shutil.copytree(bpe_folder, folder / "vocabulary")
    (folder / "vocabulary" / "chat_template.jinja").write_text(named_templates()["chatml"])
    return save(DECODER, Vocabulary.from_file(folder / "vocabulary"), folder / "model")


def write(path: Path, rows: list[Any]) -> Path:
    """A line for each row; a text is a line as it is."""
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(*flags: str) -> int:
    return infer.main(flags)


@pytest.fixture(scope="package")
def answered(t5: Path, instances: list[Row], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Rows, and what one uninterrupted call makes of them."""
    folder = tmp_path_factory.mktemp("answered")
    source = write(folder / "rows.jsonl", instances)
    output = folder / "new" / "answers.jsonl"
    assert run(f"--model={t5}", f"--input={source}", f"--output={output}", f"--max_new_tokens={NEW}", *SMALL) == 0
    return source, output
