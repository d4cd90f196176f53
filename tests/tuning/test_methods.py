"""Every method: zero delta at the start, packed equals unpacked, scan equals unrolled, merged equals adapted."""

import dataclasses
import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from flanjax.models.config import Compute
from flanjax.models.decoder_config import DecoderConfig
from flanjax.models.model import abstract_params, build, init_params
from flanjax.tuning.adapter import BottleneckAdapter
from flanjax.tuning.bitfit import BitFit
from flanjax.tuning.ia3 import IA3
from flanjax.tuning.lora import ALL_LINEAR, LoRA
from flanjax.tuning.method import TuningError, projections
from flanjax.tuning.methods import METHODS, from_settings, to_settings
from flanjax.tuning.partition import (
    Partition,
    added_params,
    added_paths,
    digest,
    flatten,
    logit_difference,
    merge,
    merged,
    unflatten,
)
from flanjax.tuning.select import Freeze, Train

from .conftest import GATED, regular_expressions

EXACT = {
    "lora": (LoRA(rank=2, alpha=4),),
    "all_linear": (LoRA(rank=3, alpha=4, targets=ALL_LINEAR, rank_stabilized=True),),
    "ia3": (IA3(),),
    "both": (LoRA(rank=2, targets=".*/(key|wo)"), IA3(), Train()),
    "the_other_way": (IA3(), LoRA(rank=2, targets=".*/(key|wo)")),
    "patterns": (
        LoRA(
            rank=2,
            targets=ALL_LINEAR,
            rank_pattern={".*/wo": 5, "decoder/.*": 3},
            alpha_pattern={".*/key": 2},
            init="gaussian",
            dtype="bfloat16",
        ),
    ),
}
# What starts from the base's own values gives the base to rounding.
BEGUN = {
    "dora": (LoRA(rank=2, alpha=4, targets=ALL_LINEAR, dora=True),),
    "pissa_dora": (LoRA(rank=3, rank_stabilized=True, init="pissa", dora=True, dtype="bfloat16"), IA3(), Train()),
    "pissa": (IA3(), LoRA(rank=2, targets=".*/(key|wo)", init="pissa")),
}
MERGEABLE = EXACT | BEGUN
# What a plain model has no place for; it starts as the base exactly too.
APART = {
    "houlsby": (BottleneckAdapter(bottleneck=3),),
    "pfeiffer": (BottleneckAdapter(style="pfeiffer", bottleneck=3, activation="relu"),),
    "parallel": (BottleneckAdapter(style="parallel", bottleneck=3, scale=4.0, blocks=".*/(mlp|.*attention)"),),
    "bitfit": (BitFit(),),
    "around_lora": (LoRA(rank=2, targets=".*/(query|wo)"), BottleneckAdapter(bottleneck=2), BitFit(targets=".*/wo")),
}
ADDING = MERGEABLE | APART
SELECTING = {"norms": (Train(),), "frozen_embedding": (Freeze(parameters="token_embedder/.*"),)}
METHOD_SETS = ADDING | SELECTING
each_mergeable = pytest.mark.parametrize("methods", MERGEABLE.values(), ids=MERGEABLE)
each_adding = pytest.mark.parametrize("methods", ADDING.values(), ids=ADDING)
each = pytest.mark.parametrize("methods", METHOD_SETS.values(), ids=METHOD_SETS)


def logits(model, params, batch, **compute):
    return np.asarray(_logits(model, Compute(**compute), params, batch))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _logits(model, compute, params, batch):
    built = build(model, compute, params)
    return built.logits(built(batch))


@pytest.mark.parametrize("methods", (EXACT | APART | SELECTING).values(), ids=EXACT | APART | SELECTING)
def test_the_first_model_is_exactly_the_base(any_base, tuned, batch, methods):
    model, params = tuned(any_base, *methods)
    _, plain = tuned(any_base)
    own = {path: value for path, value in flatten(params).items() if path not in added_paths(model)}
    assert own.keys() == flatten(plain).keys()
    jax.tree.map(np.testing.assert_array_equal, own, flatten(plain))
    np.testing.assert_array_equal(logits(model, params, batch), logits(any_base, plain, batch))


@pytest.mark.parametrize("methods", BEGUN.values(), ids=BEGUN)
def test_the_first_model_is_the_base_to_rounding(any_base, tuned, batch, methods):
    model, params = tuned(any_base, *methods)
    _, plain = tuned(any_base)
    np.testing.assert_allclose(logits(model, params, batch), logits(any_base, plain, batch), rtol=1e-4, atol=1e-4)


@each_adding
def test_what_is_added_has_an_effect_once_it_has_moved(any_base, tuned, batch, methods):
    model, params = tuned(any_base, *methods, moved=True)
    own = {path: value for path, value in flatten(params).items() if path not in added_paths(model)}
    assert np.abs(logits(model, params, batch) - logits(any_base, unflatten(own), batch)).max() > 1e-2


@each_mergeable
def test_merged_equals_adapted(any_base, tuned, batch, methods):
    model, params = tuned(any_base, *methods, moved=True)
    plain, own = merged(model, params)
    assert plain == any_base
    assert not added_paths(plain)
    np.testing.assert_allclose(logits(plain, own, batch), logits(model, params, batch), rtol=1e-4, atol=1e-4)
    assert 0 < logit_difference((model, params), (plain, own)) < 1e-4


@each_adding
def test_scanned_equals_unrolled_equals_recomputed(any_base, tuned, batch, methods):
    model, params = tuned(any_base, *methods, moved=True)
    unrolled = logits(model, params, batch, scan_layers=False)
    for compute in ({}, {"remat": "full"}, {"remat": "minimal", "scan_layers": False}):
        np.testing.assert_allclose(logits(model, params, batch, **compute), unrolled, rtol=1e-5, atol=1e-5)


@each_adding
def test_packed_equals_unpacked(any_base, tuned, batch, methods):
    model, params = tuned(any_base, *methods, moved=True)
    packed = logits(model, params, batch)
    for row in range(2):
        for segment in (1, 2):
            own = {}
            for name, values in batch.items():
                inside = batch[f"{name.partition('_')[0]}_segment_ids"][row] == segment
                # Padded to the row's length, so that all examples are one program.
                own[name] = np.zeros_like(values[:1])
                own[name][0, : inside.sum()] = 1 if name.endswith("segment_ids") else values[row][inside]
            inside = batch["decoder_segment_ids"][row] == segment
            alone = logits(model, params, own)[0][: inside.sum()]
            np.testing.assert_allclose(alone, packed[row][inside], rtol=1e-4, atol=1e-4)


@each_adding
def test_cached_decoding_equals_teacher_forcing(any_base, tuned, batch, methods):
    model, params = tuned(any_base, *methods, moved=True)
    built = build(model, Compute(), params)
    inputs = np.asarray(batch["decoder_input_tokens"])[:, :4]
    if isinstance(model, DecoderConfig):
        forced = built.decode(inputs, np.ones_like(inputs))
        cache = built.start_cache(len(inputs), max_length=5)
    else:
        tokens, segments = batch["encoder_input_tokens"], (batch["encoder_segment_ids"] > 0).astype(np.int32)
        encoded = built.encode(tokens, segments)
        forced = built.decode(inputs, np.ones_like(inputs), encoded, segments)
        cache = built.start_cache(encoded, segments, max_length=5)
    step = jax.jit(lambda tokens, position, cache: built.decode_step(tokens, position, cache))
    for position in range(inputs.shape[1]):
        hidden, cache = step(inputs[:, position], position, cache)
        np.testing.assert_allclose(hidden, forced[:, position], rtol=1e-4, atol=1e-4)


@each
def test_methods_come_back_from_the_settings_of_a_run(methods):
    assert from_settings(to_settings(methods)) == methods
    assert from_settings(json.loads(json.dumps(to_settings(methods)))) == methods
    assert {method.name for method in methods} <= METHODS.keys()


@pytest.mark.parametrize("methods", (EXACT | APART).values(), ids=EXACT | APART)
def test_what_is_added_alone_is_drawn_as_with_the_rest(any_base, tuned, methods):
    model, params = tuned(any_base, *methods)
    alone = flatten(added_params(model, 0))
    assert alone.keys() == added_paths(model)
    for path, value in alone.items():
        np.testing.assert_array_equal(value, flatten(params)[path])


def test_lora_starts_as_in_peft_and_has_its_scales(base, tuned):
    _, params = tuned(base, LoRA(rank=4))
    adapter = params["encoder"]["layers"]["attention"]["query"]["lora"]
    assert adapter["a"].shape == (2, 16, 4)
    assert adapter["b"].shape == (2, 4, 8)
    assert not adapter["b"].any()
    assert np.abs(adapter["a"]).max() <= 1 / 4
    assert np.abs(adapter["a"]).max() > 0.9 / 4
    assert LoRA(rank=16, alpha=32).scale_of("any") == 2
    assert LoRA(rank=16, alpha=32, rank_stabilized=True).scale_of("any") == 8


def test_lora_is_the_published_formula(base, tuned, batch):
    method = LoRA(rank=2, alpha=6, targets="encoder/layers/attention/query")
    model, params = tuned(base, method, moved=True)
    own = flatten(params)
    a, b = (own.pop(f"encoder/layers/attention/query/lora/{part}") for part in "ab")
    own["encoder/layers/attention/query/kernel"] += 3 * np.einsum("lir,lro->lio", a, b)
    plain = logits(base, unflatten(own), batch)
    np.testing.assert_allclose(logits(model, params, batch), plain, rtol=1e-4, atol=1e-4)


def test_lora_dropout_falls_on_the_adapter_alone(base, tuned, batch):
    model, params = tuned(base, LoRA(rank=2, dropout=0.5), moved=True)
    assert model.draws_dropout
    assert not base.draws_dropout

    def run(key):
        built = build(model, Compute(), params)
        return np.asarray(built(batch, dropout_key=key))

    assert np.abs(run(jax.random.key(1)) - run(jax.random.key(2))).max() > 1e-3
    fresh = init_params(model, 0)
    built = build(model, Compute(), fresh)
    np.testing.assert_array_equal(built(batch, dropout_key=jax.random.key(1)), built(batch))


def test_a_partition_covers_every_parameter_once(base, tuned):
    model, params = tuned(base, LoRA(rank=2), Train(parameters="decoder/decoder_norm/scale"))
    partition = Partition.of(model)
    assert partition.labels.keys() == flatten(params).keys()
    trainable, frozen = partition.split(params)
    moved = set(flatten(trainable))
    assert moved == added_paths(model) | {"decoder/decoder_norm/scale"}
    assert not moved & flatten(frozen).keys()
    together = merge(trainable, frozen)
    assert jax.tree.structure(together) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, together, params)


def test_without_methods_everything_moves(base, tuned):
    _, params = tuned(base)
    trainable, frozen = Partition.of(base).split(params)
    assert frozen == {}
    assert flatten(trainable).keys() == flatten(params).keys()


PATHS = sorted(flatten(abstract_params(GATED)))


@settings(max_examples=100, deadline=None)
@given(regular_expressions(PATHS))
def test_any_regular_expression_selects_what_python_says_it_matches(pattern):
    chosen = {path for path in PATHS if re.compile(pattern).fullmatch(path)}
    for method, label, possible in (
        (Train(parameters=pattern), "trainable", chosen),
        (Freeze(parameters=pattern), "frozen", chosen and chosen != set(PATHS)),
    ):
        model = dataclasses.replace(GATED, added=(method,))
        if not possible:
            with pytest.raises(TuningError, match=r"matches nothing in this model|no parameter would be trained"):
                Partition.of(model)
            continue
        assert {path for path, its in Partition.of(model).labels.items() if its == label} == chosen


@settings(max_examples=30, deadline=None)
@given(regular_expressions(projections(PATHS)))
def test_lora_lies_where_python_says_that_its_targets_match(pattern):
    chosen = {path for path in projections(PATHS) if re.compile(pattern).fullmatch(path)}
    model = dataclasses.replace(GATED, added=(LoRA(rank=2, targets=pattern),))
    if not chosen:
        with pytest.raises(TuningError, match="matches nothing in this model"):
            Partition.of(model)
        return
    assert {path.partition("/lora/")[0] for path in added_paths(model)} == chosen


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ((LoRA(targets=".*/quary"),), r"LoRA\.targets = '\.\*/quary' matches nothing .*did you mean 'query'"),
        ((LoRA(targets="query"),), "has to match a whole path, such as 'decoder/layers/"),
        ((LoRA(targets="decoder/logits_dense"),), "matches nothing"),
        ((IA3(input_targets=".*/w"),), r"IA3\.input_targets = .* matches nothing"),
        ((IA3(targets=".*/wo"),), "both match encoder/layers/mlp/wo: a projection has one factor"),
        ((Train(), Train(parameters=".*/wo/kernel")), "TUNING has Train more than once"),
        ((Train(parameters=".*bias"),), r"Train\.parameters = '\.\*bias' matches nothing"),
        ((Freeze(parameters="encoder"),), r"Freeze\.parameters = 'encoder' matches nothing"),
        ((Freeze(parameters=".*"),), "no parameter would be trained by Freeze"),
    ],
)
def test_methods_that_do_not_fit_are_refused(base, methods, message):
    with pytest.raises(TuningError, match=message):
        Partition.of(dataclasses.replace(base, added=methods))


def test_a_rank_beyond_its_target_is_no_choice_and_computes_all_the_same(base, tuned, batch):
    high = LoRA(rank=9)
    with pytest.raises(TuningError, match=r"LoRA.rank = 9 is larger than a target of 16 x 8: give at most 8"):
        high.check_choice(base)
    LoRA(rank=8).check_choice(base)
    model, params = tuned(base, high, moved=True)
    plain, own = merged(model, params)
    np.testing.assert_allclose(logits(plain, own, batch), logits(model, params, batch), rtol=1e-4, atol=1e-4)
    with pytest.raises(TuningError, match=r"LoRA.rank = 9 is larger than a target of 16 x 8"):
        tuned(base, LoRA(rank=9, init="pissa"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LoRA(rank=0), "LoRA.rank is 0"),
        (lambda: LoRA(dropout=1.0), r"LoRA.dropout is 1\.0"),
        (lambda: LoRA(targets="(query"), r"LoRA\.targets = '\(query' is no regular expression"),
        (lambda: from_settings([{"name": "lorra"}]), r"'lorra' is not known \(did you mean 'lora'"),
        (lambda: from_settings([{"name": "lora", "rnk": 3}]), "'lora': .*rnk"),
    ],
)
def test_settings_that_mean_nothing_are_refused(make, message):
    with pytest.raises(TuningError, match=message):
        make()


def test_a_base_is_known_by_every_byte(base, tuned):
    _, params = tuned(base)
    known = digest(params)
    assert known == digest(jax.tree.map(np.asarray, params))
    changed = jax.tree.map(jnp.copy, params)
    changed["encoder"]["encoder_norm"]["scale"] = changed["encoder"]["encoder_norm"]["scale"].at[3].add(1e-6)
    assert digest(changed) != known
