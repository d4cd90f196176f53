"""BitFit: where biases are added, what they do, and that no plain T5 has room for them."""

import dataclasses

import jax
import numpy as np
import pytest

from flanjax.models.config import Compute
from flanjax.models.t5 import abstract_params, build
from flanjax.tuning.bitfit import BitFit
from flanjax.tuning.method import TuningError
from flanjax.tuning.partition import Partition, added_paths, flatten, merged, unflatten

from .conftest import GATED, PLAIN


def biases(base, **fields):
    """Paths of what has a bias."""
    paths = added_paths(dataclasses.replace(base, added=(BitFit(**fields),)))
    assert all(path.endswith("/bitfit/bias") for path in paths)
    return {path.removesuffix("/bitfit/bias") for path in paths}


@pytest.mark.parametrize("base", [GATED, PLAIN], ids=["gated", "plain"])
def test_every_projection_and_norm_of_the_layers_has_a_bias_but_the_keys(base):
    own = (path.rpartition("/")[0] for path in flatten(abstract_params(base)) if "/layers/" in path)
    assert biases(base) == {path for path in own if not path.endswith("/key")}


def test_a_bias_is_as_wide_as_what_it_is_added_to():
    shapes = flatten(abstract_params(dataclasses.replace(GATED, added=(BitFit(),))))
    assert shapes["encoder/layers/mlp/wi_0/bitfit/bias"].shape == (2, 32)
    assert shapes["decoder/layers/self_attention/query/bitfit/bias"].shape == (3, 8)
    assert shapes["decoder/layers/pre_mlp_layer_norm/bitfit/bias"].shape == (3, 16)


@pytest.mark.parametrize("target", ["mlp/wo", "pre_mlp_layer_norm"])
def test_a_bias_is_added_to_the_output(tuned, target):
    model, params = tuned(GATED, BitFit(targets=f"encoder/layers/{target}"), moved=True)
    first = build(model, Compute(), params).encoder.layers
    layer = jax.tree.map(lambda p: p[0], first)
    module = layer.mlp.wo if target == "mlp/wo" else layer.pre_mlp_layer_norm
    x = np.random.default_rng(0).standard_normal((2, 3, module.shape[0])).astype(np.float32)
    bias = np.asarray(module.bitfit.bias[...])
    assert np.abs(bias).min() > 0
    out = np.asarray(module(x))
    if target == "mlp/wo":
        plain = x @ np.asarray(module.kernel[...])
    else:
        plain = x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-6) * np.asarray(module.scale[...])
    np.testing.assert_allclose(out, plain + bias, rtol=1e-4, atol=1e-5)


def test_a_key_bias_changes_nothing(tuned, batch):
    model, params = tuned(GATED, BitFit(targets=".*/key"), moved=True)
    own = {path: value for path, value in flatten(params).items() if path not in added_paths(model)}
    with_bias, without = build(model, Compute(), params), build(GATED, Compute(), unflatten(own))
    np.testing.assert_allclose(with_bias(batch), without(batch), rtol=1e-4, atol=1e-4)


def test_biases_are_not_merged(tuned):
    with pytest.raises(TuningError, match=r"BitFit cannot be merged: .*no biases.*flanjax\.load opens"):
        merged(*tuned(GATED, BitFit()))


def test_targets_that_are_not_there_are_refused_with_the_nearest():
    with pytest.raises(TuningError, match=r"BitFit\.targets = '\.\*/pre_mlp_norm' .*did you mean 'pre_mlp_layer_norm'"):
        Partition.of(dataclasses.replace(GATED, added=(BitFit(targets=".*/pre_mlp_norm"),)))
    with pytest.raises(TuningError, match=r"BitFit\.targets = '\(wo' is no regular expression"):
        BitFit(targets="(wo")
