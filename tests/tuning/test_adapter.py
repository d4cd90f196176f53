"""Bottleneck adapters: the three published formulas by hand, what is trained, what cannot be merged."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from flanjax.models.config import Compute, T5Config
from flanjax.models.layers import NO_DROPOUT, Dropout, Mlp, MultiHeadAttention
from flanjax.models.t5 import abstract_params, build, init_params
from flanjax.tuning.adapter import Bottleneck, BottleneckAdapter
from flanjax.tuning.lora import LoRA
from flanjax.tuning.method import TuningError
from flanjax.tuning.partition import Partition, added_paths, flatten, merged
from flanjax.tuning.select import Train

from .conftest import GATED

EVERYWHERE = {
    f"{stack}/layers/{block}"
    for stack, names in {
        "encoder": ("attention", "mlp"),
        "decoder": ("self_attention", "encoder_decoder_attention", "mlp"),
    }.items()
    for block in names
}
FEED_FORWARD = {"encoder/layers/mlp", "decoder/layers/mlp"}
# Flan-T5-small.
SMALL = T5Config(embed_dim=512, num_heads=6, mlp_dim=1024, num_encoder_layers=8, num_decoder_layers=8)


def adapted_blocks(method, base=GATED):
    """Paths of the blocks with an adapter."""
    return {path.partition("/adapter/")[0] for path in added_paths(dataclasses.replace(base, added=(method,)))}


def with_values(module, seed):
    """A described module with values drawn for its parameters."""
    rng = np.random.default_rng(seed)
    graphdef, state = nnx.split(module)
    drawn = []
    for path, p in nnx.to_flat_state(state):
        drawn.append((path, p.replace(rng.standard_normal(p.get_value().shape, np.float32))))
    return nnx.merge(graphdef, nnx.from_flat_state(drawn))


def by_hand(bottleneck, x):
    """`f(x)` in NumPy."""
    down, down_bias, up, up_bias = (
        np.asarray(getattr(bottleneck, name)[...], np.float64) for name in ("down", "down_bias", "up", "up_bias")
    )
    return np.maximum(x @ down + down_bias, 0) @ up + up_bias


@pytest.mark.parametrize("style", ["houlsby", "pfeiffer", "parallel"])
def test_each_style_is_its_published_formula(style):
    method = BottleneckAdapter(style=style, bottleneck=3, activation="relu", scale=2.5)
    x = np.random.default_rng(0).standard_normal((2, 5, 16)).astype(np.float32)
    plain = with_values(Mlp(GATED), 1)
    y = np.asarray(plain(x, NO_DROPOUT), np.float64)
    bottleneck = with_values(Bottleneck(plain, method), 2)
    plain.attach("adapter", bottleneck)
    expected = y + 2.5 * by_hand(bottleneck, x if style == "parallel" else y)
    np.testing.assert_allclose(plain(x, NO_DROPOUT), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("style", ["houlsby", "parallel"])
def test_attention_is_adapted_behind_its_output_or_beside_it(style):
    method = BottleneckAdapter(style=style, bottleneck=3, activation="relu")
    draw = np.random.default_rng(0).standard_normal
    x, memory = draw((2, 5, 16), np.float32), draw((2, 7, 16), np.float32)
    attention = with_values(MultiHeadAttention(GATED, "xla"), 1)
    y = np.asarray(attention(x, memory, NO_DROPOUT), np.float64)
    bottleneck = with_values(Bottleneck(attention, method), 2)
    attention.attach("adapter", bottleneck)
    expected = y + by_hand(bottleneck, x if style == "parallel" else y)
    np.testing.assert_allclose(attention(x, memory, NO_DROPOUT), expected, rtol=1e-3, atol=1e-3)


def test_each_style_has_its_blocks():
    assert adapted_blocks(BottleneckAdapter()) == EVERYWHERE
    assert adapted_blocks(BottleneckAdapter(style="pfeiffer")) == FEED_FORWARD
    assert adapted_blocks(BottleneckAdapter(style="parallel")) == FEED_FORWARD
    assert adapted_blocks(BottleneckAdapter(blocks="decoder/.*")) == {b for b in EVERYWHERE if b.startswith("decoder")}


def test_houlsby_alone_trains_the_layer_norms():
    def moved(style):
        labels = Partition.of(dataclasses.replace(GATED, added=(BottleneckAdapter(style=style),))).labels
        return {path for path, label in labels.items() if label == "trainable"}

    norms = {path for path in flatten(abstract_params(GATED)) if path.endswith("norm/scale")}
    assert len(norms) == 7  # two of an encoder layer, three of a decoder layer, two at the ends
    assert {path for path in moved("houlsby") if "/adapter/" not in path} == norms
    assert all("/adapter/" in path for path in moved("pfeiffer") | moved("parallel"))


def test_houlsby_on_flan_t5_small_has_as_many_parameters_as_by_hand():
    model = dataclasses.replace(SMALL, added=(BottleneckAdapter(bottleneck=64),))
    trainable, frozen = Partition.of(model).split(abstract_params(model))
    one = 512 * 64 + 64 + 64 * 512 + 512
    adapters = 8 * 2 * one + 8 * 3 * one
    norms = 8 * 2 * 512 + 8 * 3 * 512 + 2 * 512
    assert sum(leaf.size for leaf in jax.tree.leaves(trainable)) == adapters + norms == 2_665_984
    assert sum(leaf.size for leaf in jax.tree.leaves(frozen)) == 76_961_152 - norms


def test_the_start_is_zero_or_of_the_given_deviation():
    small = dataclasses.replace(GATED, embed_dim=64)
    params = init_params(dataclasses.replace(small, added=(BottleneckAdapter(bottleneck=32),)), 0)
    found = params["encoder"]["layers"]["mlp"]["adapter"]
    assert not any(found[name].any() for name in ("up", "up_bias", "down_bias"))
    assert 0.95 / 8 < np.abs(found["down"]).max() <= 1 / 8
    near = BottleneckAdapter(bottleneck=32, init_std=0.01)
    found = init_params(dataclasses.replace(small, added=(near,)), 0)["encoder"]["layers"]["mlp"]["adapter"]
    for name in ("down", "up"):
        np.testing.assert_allclose(np.std(found[name]), 0.01, rtol=0.05)
    assert not any(found[name].any() for name in ("up_bias", "down_bias"))


def test_dropout_falls_on_the_hidden_layer_alone():
    method = BottleneckAdapter(style="pfeiffer", bottleneck=400, activation="linear", dropout=0.5)
    mlp = with_values(Mlp(GATED), 1)
    bottleneck = with_values(Bottleneck(mlp, method), 2)
    out = np.random.default_rng(0).standard_normal((2, 5, 16)).astype(np.float32)
    quiet = bottleneck.after(out, out, NO_DROPOUT)
    first, second = (bottleneck.after(out, out, Dropout(0.0, jax.random.key(seed))) for seed in (1, 2))
    assert np.abs(first - quiet).max() > 1
    assert np.abs(first - second).max() > 1
    model = dataclasses.replace(GATED, added=(method,))
    assert model.draws_dropout
    batch = np.ones((1, 4), np.int32)
    fresh = build(model, Compute(), init_params(model, 0))
    np.testing.assert_array_equal(
        fresh.encode(batch, batch, dropout_key=jax.random.key(1)), fresh.encode(batch, batch)
    )  # what is zero stays zero


def test_a_projection_inside_an_adapted_block_may_be_adapted_too(tuned, batch):
    methods = (LoRA(rank=2, targets=".*/mlp/wo"), BottleneckAdapter(style="pfeiffer", bottleneck=2))
    one, params = tuned(GATED, *methods, moved=True)
    other = dataclasses.replace(GATED, added=methods[::-1])
    np.testing.assert_array_equal(
        *(np.asarray(build(model, Compute(), params)(batch)) for model in (one, other))
    )  # one lies inside the other whatever their order


@pytest.mark.parametrize("methods", [(BottleneckAdapter(),), (Train(), BottleneckAdapter(style="parallel"))])
def test_a_nonlinearity_is_not_merged(tuned, methods):
    with pytest.raises(TuningError, match=r"BottleneckAdapter cannot be merged: .*nonlinearity.*flanjax\.load opens"):
        merged(*tuned(GATED, *methods))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"style": "houlsbi"}, "style is 'houlsbi': choose one of houlsby, pfeiffer, parallel"),
        ({"activation": "swish"}, "activation is 'swish': choose one of exact_gelu, gelu"),
        ({"bottleneck": 0}, "bottleneck is 0: it must be a whole number"),
        ({"dropout": 1.0}, r"dropout is 1\.0: it must lie in"),
        ({"init_std": 0.0}, r"init_std is 0\.0: it must be positive, or None"),
        ({"blocks": "(mlp"}, r"blocks = '\(mlp' is no regular expression"),
    ],
)
def test_settings_that_mean_nothing_are_refused(fields, message):
    with pytest.raises(TuningError, match=f"BottleneckAdapter.{message}"):
        BottleneckAdapter(**fields)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (".*/self_atention", "matches nothing in this model .did you mean 'self_attention'"),
        (".*/wo", "such as '.*layers/.*attention' with .*attention, .*mlp"),
    ],
)
def test_blocks_that_are_not_there_are_refused_with_the_nearest(pattern, message):
    with pytest.raises(TuningError, match=message):
        Partition.of(dataclasses.replace(GATED, added=(BottleneckAdapter(blocks=pattern),)))
