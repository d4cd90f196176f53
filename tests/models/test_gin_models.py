"""Every published architecture parses from its gin file and has its published number of parameters."""

import math
import pathlib

import gin
import jax
import pytest

from flanjax.doors import GinSources, configure
from flanjax.models.config import T5Config
from flanjax.models.t5 import abstract_params

MODELS = pathlib.Path(__file__).resolve().parents[2] / "gin_configs" / "models"

# Parameters of the published checkpoints, the shared embedding counted once (transformers `num_parameters`).
V1_0 = {"small": 60_506_624, "base": 222_903_552, "large": 737_668_096, "3b": 2_851_598_336, "11b": 11_307_321_344}
V1_1 = {"small": 76_961_152, "base": 247_577_856, "large": 783_150_080, "xl": 2_849_757_184, "xxl": 11_135_332_352}
PUBLISHED = {f"t5_1_0_{size}": count for size, count in V1_0.items()}
for family in ("t5_1_1", "flan_t5", "t5_1_1_lm100k"):
    PUBLISHED |= {f"{family}_{size}": count for size, count in V1_1.items()}


def read_config(name: str) -> T5Config:
    configure(GinSources(files=(str(MODELS / f"{name}.gin"),)), [T5Config])
    return gin.get_configurable("T5Config")()


@pytest.fixture(autouse=True)
def clear_gin():
    yield
    gin.clear_config()


def test_every_file_is_listed_here():
    assert {path.stem for path in MODELS.glob("*.gin")} == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_count_is_the_published_one(name):
    shapes = jax.tree.leaves(abstract_params(read_config(name)))
    assert sum(math.prod(leaf.shape) for leaf in shapes) == PUBLISHED[name]


def test_the_same_size_is_the_same_model():
    for size in V1_1:
        assert read_config(f"flan_t5_{size}") == read_config(f"t5_1_1_{size}") == read_config(f"t5_1_1_lm100k_{size}")
