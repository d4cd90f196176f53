"""The materialising door: a run's gin file says the same to it as to training, and flags change that."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from flanjax.data.cache import CachedMixture, CachedTask
from flanjax.data.vocabularies import Vocabulary
from flanjax.materialize import main

TASKS = """
    import seqio
    from flanjax.data.seqio_tasks import add_mixture, add_task, json_lines, text_features

    def register(file):
        add_task(
            "rows",
            # One file serves all splits.
            source=json_lines(dict.fromkeys(("train", "validation", "test"), file), fields=("inputs", "targets")),
            preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
            output_features=text_features(),
        )
"""
GIN = """
include "common.gin"
MODEL_DIR = "unused"
MIXTURE = "rows"
TRAIN_STEPS = 1
LEARNING_RATE = 1.0
TASKS = {{"{module}": {{"file": "{folder}/rows.jsonl"}}}}
CACHE_DIR = "{folder}/cache"
VOCABULARY = "{vocabulary}"
SEED = 2
TASK_SEED = 3
T5Config.vocab_size = 200
T5Config.embed_dim = 4
T5Config.num_heads = 1
T5Config.head_dim = 4
T5Config.mlp_dim = 4
T5Config.num_encoder_layers = 1
T5Config.num_decoder_layers = 1
"""


@pytest.fixture
def door(
    tmp_path: Path, module: Callable[[str], str], tiny_vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., int]:
    """door("--flag=...") runs the door on a gin file, over a task with one bad row."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"inputs": "alpha", "targets": target}) + "\n" for target in ("beta", None, "", "gamma"))
    )
    values = {"module": module(TASKS), "folder": tmp_path, "vocabulary": tiny_vocabulary.path}
    (tmp_path / "rows.gin").write_text(GIN.format(**values))
    return lambda *flags: main([f"--gin_file={tmp_path / 'rows.gin'}", *flags])


def test_a_bad_row_stops_or_is_told_by_split(
    tmp_path: Path, door: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert door() == 2
    assert "rows.jsonl:2: field 'targets' must be a string" in capsys.readouterr().err
    assert door("--gin.ON_BAD_ROW=skip") == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "rows: skipped bad rows: 1 in train, 1 in validation" in told
    assert "rows: dropped empty targets: 1 in train, 1 in validation" in told
    assert "the first bad row: " in told
    assert "rows.jsonl:2: field 'targets' must be" in told
    assert door("--gin.ON_BAD_ROW=skip", "--on_bad_row=error") == 2
    assert CachedTask.open(tmp_path / "cache", "rows", "train").manifest.seed == 3


@pytest.mark.parametrize(
    ("flags", "splits"),
    [
        ([], {"train", "validation"}),
        (["--gin.EvaluationConfig.split=test"], {"train", "test"}),
        (["--splits=test,validation"], {"test", "validation"}),
    ],
)
def test_the_splits_are_those_that_the_run_reads(
    tmp_path: Path, door: Callable[..., int], flags: list[str], splits: set[str]
) -> None:
    assert door("--on_bad_row=skip", *flags) == 0
    assert {path.name for path in (tmp_path / "cache" / "tasks" / "rows").iterdir()} == splits
    for split in splits:
        assert len(CachedMixture.open(tmp_path / "cache", "rows", split).tasks[0]) == 2


@pytest.mark.parametrize("option", ["names=[1,", "names={a}", "names=@x", "names"])
def test_a_malformed_option_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str) -> None:
    assert main(["--mixture=m", f"--cache_dir={tmp_path}", "--tasks=t", f"--option={option}"]) == 2
    assert f"error: --option={option}: " in capsys.readouterr().err


def test_the_door_takes_a_chat_template_and_tells_what_does_not_fit(
    bpe_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "qa.jsonl").write_text('{"prompt": "1 + 1", "completion": "2"}\n')
    flags = [f"--mixture={tmp_path / 'qa.jsonl'}", f"--cache_dir={tmp_path / 'c'}", f"--vocabulary={bpe_folder}"]
    assert main([*flags, "--option=validation=0", "--chat_template=gemma", "--workers=1"]) == 0
    printed = capsys.readouterr().out
    assert "<start_of_turn>, <end_of_turn>, which the tokenizer reads as text" in " ".join(printed.split())
    assert CachedMixture.open(tmp_path / "c", "qa", "train").chat_template.name == "gemma"
    assert main([*flags, "--chat_template=gema"]) == 2
    assert "CHAT_TEMPLATE='gema' (did you mean 'gemma'" in capsys.readouterr().err
