"""Either kind of model behind one set of functions, and what a run keeps of its configuration."""

import dataclasses
import json

import pytest

from flanjax.models.config import ModelConfigError, T5Config
from flanjax.models.decoder_config import DecoderConfig, Rotary
from flanjax.models.model import model_from_settings, model_settings, require_t5
from flanjax.tuning.lora import LoRA
from flanjax.tuning.p_tuning import PTuning
from flanjax.tuning.prompt import PromptTuning

DECODER = DecoderConfig(
    vocab_size=64,
    embed_dim=16,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_dim=24,
    rotary=Rotary(scaling="yarn", factor=4.0, original_max_positions=16),
    window=4,
    windowed=(True, False),
)
T5 = T5Config(embed_dim=8, num_heads=2, head_dim=4, mlp_dim=12, num_encoder_layers=1, num_decoder_layers=2)
METHODS = (LoRA(rank=2), PromptTuning(length=3))


@pytest.mark.parametrize("config", [T5, DECODER], ids=["t5", "decoder"])
def test_settings_give_the_configuration_back_after_a_detour_through_json(config):
    settings = json.loads(json.dumps(model_settings(dataclasses.replace(config, added=METHODS))))
    assert "added" not in settings
    assert model_from_settings(settings) == config
    assert model_from_settings(settings, METHODS) == dataclasses.replace(config, added=METHODS)


def test_settings_of_a_t5_are_its_fields_alone_as_in_runs_from_before_there_were_decoders():
    fields = {field.name for field in dataclasses.fields(T5Config)} - {"added", "relpos_per_layer"}
    assert model_settings(T5).keys() == fields
    umt5 = dataclasses.replace(T5, relpos_per_layer=True)
    assert model_from_settings(model_settings(umt5)) == umt5
    assert model_settings(DECODER)["kind"] == "decoder"


def test_settings_of_another_kind_are_refused():
    with pytest.raises(ModelConfigError, match="kind 'rnn' is not known"):
        model_from_settings({"kind": "rnn", "embed_dim": 4})
    with pytest.raises(TypeError, match="num_encoder_layers"):
        model_from_settings({**model_settings(T5), "kind": "decoder"})


def test_both_kinds_say_the_same_of_what_methods_add():
    for config in (T5, DECODER):
        tuned = dataclasses.replace(config, added=(LoRA(dropout=0.1), PromptTuning(length=3, tasks=("a", "b"))))
        assert (tuned.prompt_length, tuned.prompt_tasks) == (3, ("a", "b"))
        assert tuned.draws_dropout
        assert not config.draws_dropout
        with pytest.raises(ModelConfigError, match=r"PromptTuning and PTuning: a model has one prompt"):
            dataclasses.replace(config, added=(PromptTuning(), PTuning()))
    assert (T5.stacks, DECODER.stacks) == ({"encoder": 1, "decoder": 2}, {"decoder": 3})


def test_what_takes_a_t5_alone_says_so():
    assert require_t5(T5, "this") is T5
    with pytest.raises(ModelConfigError, match="this takes a T5, and this model is a decoder"):
        require_t5(DECODER, "this")
