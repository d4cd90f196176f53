"""What a run directory says of itself; reading its parameters is tested with `flanjax.load`."""

import json

import pytest

from flanjax.errors import FlanjaxError
from flanjax.interchange.runs import is_run, read_run, read_settings, recipe
from flanjax.models.config import T5Config
from flanjax.models.decoder_config import DecoderConfig
from flanjax.models.model import model_settings
from flanjax.tuning.lora import LoRA
from flanjax.tuning.methods import to_settings

SETTINGS = {
    "init_from": "/data/models/flan-t5-small",
    "model": {"dropout_rate": 0.1},
    "data": {"mixture": "super_ni", "rates": {"a": 2.0}, "batch_rows": 16, "row_lengths": [1024, 256]},
    "train": {"train_steps": 300, "seed": 0},
    "optimizer": {"name": "adafactor", "learning_rate": 5e-4, "schedule": "constant"},
}


def test_recipe_says_what_a_reader_needs_and_no_local_path():
    lines = recipe(SETTINGS, 250)
    assert lines["Base model"] == "flan-t5-small"
    assert lines["Mixture"] == "super_ni"
    assert lines["Row lengths in tokens (inputs, targets)"] == "1024, 256"
    assert (lines["Steps"], lines["Planned steps"]) == ("250", "300")
    assert (lines["Learning rate"], lines["Optimizer"]) == ("0.0005", "adafactor")
    assert not any("/data" in value for value in lines.values())


def test_recipe_leaves_out_what_a_run_does_not_have():
    settings = {"init_from": None, "data": {"mixture": "demo", "row_lengths": [256, 32]}}
    assert recipe(settings, 300) == {
        "Base model": "none (random parameters)",
        "Mixture": "demo",
        "Row lengths in tokens (inputs, targets)": "256, 32",
        "Steps": "300",
    }


def test_folders_that_are_no_run(tmp_path):
    assert not is_run(tmp_path)
    with pytest.raises(FlanjaxError, match="no run directory"):
        read_run(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    assert not is_run(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model": {"embed_dim": 8, "depth": 3}}))
    assert is_run(tmp_path)
    with pytest.raises(FlanjaxError, match=r"config\.json: model: .*'depth'"):
        read_run(tmp_path)


SIZES = {"vocab_size": 64, "embed_dim": 16, "num_heads": 2, "head_dim": 8, "mlp_dim": 24}


@pytest.mark.parametrize(
    "model",
    [
        T5Config(**SIZES, num_encoder_layers=1, num_decoder_layers=2, added=(LoRA(rank=2),)),
        DecoderConfig(**SIZES, num_layers=2, num_kv_heads=1, windowed=(True, False), added=(LoRA(rank=2),)),
    ],
    ids=["t5", "decoder"],
)
def test_a_run_knows_which_kind_of_model_it_has(model, tmp_path):
    settings = {"model": model_settings(model), "tuning": to_settings(model.added)}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert read_settings(tmp_path)[0] == model
