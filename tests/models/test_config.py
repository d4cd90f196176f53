import dataclasses
import json

import pytest

from flanjax.errors import FlanjaxError
from flanjax.models.config import Compute, T5Config


def test_json_round_trip_compares_equal_and_hashes(config):
    again = T5Config(**json.loads(json.dumps(dataclasses.asdict(config))))
    assert again == config
    assert hash(again) == hash(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 0}, "T5Config.num_heads is 0"),
        ({"embed_dim": 16.0}, "T5Config.embed_dim is 16.0"),
        ({"mlp_activations": ("swish", "linear")}, "'swish'.*gelu, linear, relu, silu"),
        ({"mlp_activations": ("gelu", "linear", "linear")}, "one activation, or two"),
        ({"dropout_rate": 1.0}, r"\[0, 1\)"),
        ({"relpos_max_distance": 3}, "relpos_max_distance 3"),
    ],
)
def test_bad_model_names_the_field(v1_1, change, message):
    with pytest.raises(FlanjaxError, match=message):
        dataclasses.replace(v1_1, **change)


def test_float16_is_refused_with_the_reason():
    with pytest.raises(FlanjaxError, match=r"wo.*65504.*bfloat16"):
        Compute(dtype="float16")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "float8"}, "float32, bfloat16"),
        ({"remat": "some"}, "'some'.*none, minimal, full"),
        ({"attention": "flash"}, "'flash'.*xla"),
    ],
)
def test_unknown_compute_lists_the_valid_names(change, message):
    with pytest.raises(FlanjaxError, match=message):
        Compute(**change)
