"""LoRA and its kin: patterns decide ranks, DoRA and PiSSA start from the base's kernels, all compute what peft does."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from flanjax.interchange.hf_t5 import hf_places, read_hf_t5
from flanjax.models.config import Compute
from flanjax.models.t5 import abstract_params, build, init_params
from flanjax.tuning.ia3 import IA3
from flanjax.tuning.lora import ALL_LINEAR, LoRA
from flanjax.tuning.method import TuningError
from flanjax.tuning.methods import from_settings, to_settings
from flanjax.tuning.partition import Partition, begin, flatten, unflatten

from .conftest import GATED, regular_expressions

QUERY = "encoder/layers/attention/query"
PROJECTIONS = sorted(
    path.removesuffix("/kernel") for path in flatten(abstract_params(GATED)) if path.endswith("/kernel")
)
PROJECTIONS.remove("decoder/logits_dense")


@functools.partial(jax.jit, static_argnums=0)
def hidden(model, params, batch, key=None):
    return build(model, Compute(), params)(batch, dropout_key=key)


def matched_by(pattern):
    return {path for path in PROJECTIONS if re.compile(pattern).fullmatch(path)}


some = regular_expressions(PROJECTIONS)


@settings(max_examples=50, deadline=None)
@given(targets=some, ranks=st.lists(st.tuples(some, st.integers(1, 6)), max_size=3), alpha=st.floats(0.5, 64))
def test_the_first_pattern_that_matches_decides(targets, ranks, alpha):
    chosen = matched_by(targets)
    assume(chosen)
    # As LoRA asks for it: what no pattern before matches.
    left, expected, patterns = set(chosen), dict.fromkeys(chosen, 7), {}
    for pattern, rank in ranks:
        if pattern not in patterns and left & matched_by(pattern):
            expected |= dict.fromkeys(left & matched_by(pattern), rank)
            left -= matched_by(pattern)
            patterns[pattern] = rank
    method = LoRA(rank=7, alpha=alpha, targets=targets, rank_pattern=patterns, alpha_pattern=patterns)
    model = dataclasses.replace(GATED, added=(method,))
    Partition.of(model)
    shapes = flatten(abstract_params(model))
    assert {path.removesuffix("/lora/a"): s.shape[-1] for path, s in shapes.items() if path.endswith("/a")} == expected
    for name in chosen:
        # The same patterns give rank and alpha, so what a pattern decides has the scale 1.
        assert method.scale_of(name) == (alpha / 7 if name in left else 1)
    assert from_settings(to_settings((method,))) == (method,)
    assert hash(method) == hash(dataclasses.replace(method, rank_pattern=patterns))


def test_dora_starts_with_the_norms_of_the_columns(base, tuned):
    _, params = tuned(base, LoRA(rank=2, dora=True, dtype="bfloat16"))
    query = params["encoder"]["layers"]["attention"]["query"]
    assert query["lora"]["a"].dtype == query["lora"]["b"].dtype == jnp.bfloat16
    assert query["lora"]["magnitude"].dtype == jnp.float32
    norms = np.sqrt(np.square(query["kernel"], dtype=np.float64).sum(axis=1))
    np.testing.assert_allclose(query["lora"]["magnitude"], norms, rtol=1e-6)


def test_dora_has_any_norm_for_the_columns(base, tuned, batch):
    """Whatever A and B are, the columns of the kernel that acts are as long as the magnitudes say."""
    model, params = tuned(base, LoRA(rank=2, dora=True, targets=QUERY), moved=True)
    own = flatten(params)
    a, b, magnitude = (own.pop(f"{QUERY}/lora/{part}") for part in ("a", "b", "magnitude"))
    adapted = own[f"{QUERY}/kernel"] + 4 * np.einsum("lir,lro->lio", a, b)
    own[f"{QUERY}/kernel"] = adapted * (magnitude / np.linalg.norm(adapted, axis=1))[:, None]
    np.testing.assert_allclose(hidden(model, params, batch), hidden(base, unflatten(own), batch), rtol=1e-4, atol=1e-4)


def test_dropout_of_dora_leaves_the_base_alone(base, tuned, batch):
    method = LoRA(rank=2, dora=True, dropout=0.5)
    model, params = tuned(base, method)
    _, plain = tuned(base)
    first = hidden(model, params, batch, jax.random.key(1))
    np.testing.assert_allclose(first, hidden(base, plain, batch), rtol=1e-4, atol=1e-4)
    _, params = tuned(base, method, moved=True)
    one, other = (hidden(model, params, batch, jax.random.key(seed)) for seed in (1, 2))
    assert np.abs(one - other).max() > 1e-3
    # A rate at which nothing falls out goes the longer way and comes to the same.
    almost = dataclasses.replace(base, added=(dataclasses.replace(method, dropout=1e-9),))
    kept = hidden(almost, params, batch, jax.random.key(1))
    np.testing.assert_allclose(kept, hidden(model, params, batch), rtol=1e-4, atol=1e-4)


def test_a_column_of_zeros_stays_finite_with_dora(batch):
    base = init_params(GATED, 0)
    base["encoder"]["layers"]["attention"]["query"]["kernel"] *= np.arange(8) != 3
    model = dataclasses.replace(GATED, added=(LoRA(rank=2, dora=True),))
    params = begin(model, base, lambda text: [], 0)
    gradient = jax.jit(jax.grad(lambda p: jnp.square(build(model, Compute(), p)(batch)).sum()))(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pissa_takes_the_principal_part_out_of_the_kernel(base, tuned, dtype):
    method = LoRA(rank=3, alpha=6, targets=QUERY, init="pissa", dtype=dtype)
    _, plain = tuned(base)
    _, params = tuned(base, method)
    _, again = tuned(base, method)
    jax.tree.map(np.testing.assert_array_equal, params, again)
    own, kernel = flatten(params), flatten(plain)[f"{QUERY}/kernel"]
    a, b = (np.asarray(own[f"{QUERY}/lora/{part}"], np.float32) for part in "ab")
    np.testing.assert_allclose(own[f"{QUERY}/kernel"] + 2 * a @ b, kernel, atol=1e-6)
    values = np.linalg.svd(kernel, compute_uv=False)
    tolerance = 1e-5 if dtype == "float32" else 1e-2
    np.testing.assert_allclose(np.linalg.svd(2 * a @ b, compute_uv=False)[:, :3], values[:, :3], rtol=tolerance)
    if dtype == "float32":
        left = np.linalg.svd(own[f"{QUERY}/kernel"], compute_uv=False)
        np.testing.assert_allclose(left[:, :5], values[:, 3:], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(left[:, 5:], 0, atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=2), rtol=1e-4)


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ((LoRA(rank_pattern={".*/valeu": 2}),), r"LoRA\.rank_pattern = '\.\*/valeu' matches nothing .*mean 'value'"),
        ((LoRA(alpha_pattern={".*/wo": 2}),), r"LoRA\.alpha_pattern = '\.\*/wo' matches nothing"),
        ((LoRA(rank_pattern={".*": 2, ".*/value": 3}),), "rank_pattern: '.*/value' decides nothing"),
        ((IA3(), LoRA(dora=True)), r"LoRA\.dora measures the kernel of \S+/value, .*ia3.*let LoRA come first"),
        ((LoRA(), LoRA(targets=".*/wo")), "LoRA more than once"),
    ],
)
def test_patterns_and_orders_that_do_not_fit_are_refused(methods, message):
    with pytest.raises(TuningError, match=message):
        Partition.of(dataclasses.replace(GATED, added=methods))


def test_a_rank_of_a_pattern_that_a_target_cannot_have_is_refused():
    with pytest.raises(TuningError, match=r"LoRA\.rank_pattern = 9 is larger than a target of 16 x 8.*/value"):
        LoRA(rank_pattern={".*/value": 9}).check_choice(GATED)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rank_pattern": {".*": 0}}, r"LoRA\.rank_pattern\['\.\*'\] is 0"),
        ({"alpha_pattern": {".*": -1.0}}, r"LoRA\.alpha_pattern\['\.\*'\] is -1\.0: it must be a positive number"),
        ({"alpha": 0}, "LoRA.alpha is 0"),
        ({"rank_pattern": {"(": 2}}, r"LoRA\.rank_pattern = '\(' is no regular expression"),
        ({"rank_pattern": 3}, "LoRA.rank_pattern is 3: it must map regular expressions to values"),
        ({"init": "olora"}, "LoRA.init is 'olora': choose one of default, gaussian, pissa"),
        ({"dtype": "float16"}, "LoRA.dtype is 'float16': choose one of float32, bfloat16"),
    ],
)
def test_fields_that_mean_nothing_are_refused(given, message):
    with pytest.raises(TuningError, match=message):
        LoRA(**given)


# Parity with peft, on a tiny random T5 of transformers.


@pytest.fixture(scope="module")
def torch_model(tmp_path_factory):
    """make(): a fresh copy of one random Hugging Face T5; and the same as flanjax reads it."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "d_model": 48, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 3}
    model = T5ForConditionalGeneration(
        T5Config(**sizes, feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.2)
    folder = tmp_path_factory.mktemp("hf")
    model.save_pretrained(folder)
    return lambda: T5ForConditionalGeneration.from_pretrained(folder).eval(), *read_hf_t5(folder)


def places(model, wrapped):
    """Of every projection that peft adapted: its module, and path and layer here."""
    modules = dict(wrapped.base_model.model.named_modules())
    for name, place in hf_places(dataclasses.replace(model, added=())).items():
        module = modules.get(name.removesuffix(".weight"))
        if hasattr(module, "lora_A"):
            yield module, place.path.removesuffix("/kernel"), place.layer


def copied(model, params, wrapped):
    """The parameters with what peft's adapters hold."""
    flat = {path: np.array(value) for path, value in flatten(params).items()}
    for module, path, layer in places(model, wrapped):
        flat[f"{path}/lora/a"][layer] = module.lora_A["default"].weight.detach().numpy().T
        flat[f"{path}/lora/b"][layer] = module.lora_B["default"].weight.detach().numpy().T
        if f"{path}/lora/magnitude" in flat:
            flat[f"{path}/lora/magnitude"][layer] = module.lora_magnitude_vector["default"].weight.detach().numpy()
    return unflatten(flat)


PEFT = {
    "lora": (LoRA(rank=4, alpha=10), {"r": 4, "lora_alpha": 10, "target_modules": ["q", "v"]}),
    "rslora": (
        LoRA(rank=4, alpha=3, targets=ALL_LINEAR, rank_stabilized=True, rank_pattern={".*/wo": 2}),
        {"r": 4, "lora_alpha": 3, "use_rslora": True, "rank_pattern": {"wo": 2}},
    ),
    "dora": (LoRA(rank=4, alpha=6, targets=ALL_LINEAR, dora=True), {"r": 4, "lora_alpha": 6, "use_dora": True}),
}
ALL = ["q", "k", "v", "o", "wi_0", "wi_1", "wo"]


@pytest.mark.parametrize("name", PEFT)
def test_logits_and_gradients_are_those_of_peft(torch_model, name):
    import torch
    from peft import LoraConfig, get_peft_model

    make, base, plain = torch_model
    method, fields = PEFT[name]
    wrapped = get_peft_model(make(), LoraConfig(**{"target_modules": ALL, **fields}))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model = dataclasses.replace(base, added=(method,))
    params = copied(model, begin(model, plain, lambda text: [], 0), wrapped)
    rng = np.random.default_rng(0)
    tokens, answer = rng.integers(2, 64, (2, 9)), rng.integers(2, 64, (2, 5))
    theirs = wrapped(input_ids=torch.tensor(tokens), decoder_input_ids=torch.tensor(answer)).logits
    weights = rng.standard_normal(theirs.shape).astype(np.float32)
    (theirs * torch.tensor(weights)).sum().backward()
    batch = {"encoder_input_tokens": tokens, "encoder_segment_ids": np.ones_like(tokens)}
    batch |= {"decoder_input_tokens": answer, "decoder_segment_ids": np.ones_like(answer)}

    @jax.jit
    def weighted(trainable, frozen):
        built = build(model, Compute(), unflatten(trainable | frozen))
        logits = built.logits(built(batch))
        return (logits * weights).sum(), logits

    labels = Partition.of(model).labels
    trainable, frozen = (
        {path: value for path, value in flatten(params).items() if labels[path] == label}
        for label in ("trainable", "frozen")
    )
    gradient, ours = jax.grad(weighted, has_aux=True)(trainable, frozen)
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-4, atol=1e-4)
    for module, path, layer in places(model, wrapped):
        pairs = {"a": module.lora_A["default"].weight.grad.T, "b": module.lora_B["default"].weight.grad.T}
        if method.dora:
            pairs["magnitude"] = module.lora_magnitude_vector["default"].weight.grad
        for part, expected in pairs.items():
            found = np.asarray(gradient[f"{path}/lora/{part}"][layer])
            np.testing.assert_allclose(
                found, expected.numpy(), rtol=1e-3, atol=1e-3 * float(expected.abs().max()), err_msg=f"{path} {part}"
            )


@pytest.mark.parametrize(("init", "theirs"), [("default", True), ("gaussian", "gaussian")])
def test_the_first_a_is_distributed_as_in_peft(torch_model, init, theirs):
    import torch
    from peft import LoraConfig, get_peft_model

    make, base, plain = torch_model
    torch.manual_seed(2)
    fields = {"r": 16, "target_modules": ["wi_0", "wi_1"], "init_lora_weights": theirs}
    wrapped = get_peft_model(make(), LoraConfig(**fields))
    expected = np.stack([module.lora_A["default"].weight.detach().numpy() for module, *_ in places(base, wrapped)])
    model = dataclasses.replace(base, added=(LoRA(rank=16, targets=".*/wi_.", init=init),))
    params = flatten(begin(model, plain, lambda text: [], 0))
    found = np.concatenate([value for path, value in params.items() if path.endswith("/lora/a")])
    assert found.size == expected.size
    quantiles = np.linspace(0.02, 0.98, 13)
    scale = expected.std()
    np.testing.assert_allclose(np.quantile(found, quantiles), np.quantile(expected, quantiles), atol=0.08 * scale)


def test_pissa_leaves_the_kernel_that_peft_leaves(torch_model):
    from peft import LoraConfig, get_peft_model

    make, base, plain = torch_model
    wrapped = get_peft_model(
        make(), LoraConfig(r=4, lora_alpha=8, target_modules=["q", "wo"], init_lora_weights="pissa")
    )
    model = dataclasses.replace(base, added=(LoRA(rank=4, alpha=8, targets=".*/(query|wo)", init="pissa"),))
    params = flatten(begin(model, plain, lambda text: [], 0))
    seen = 0
    for module, path, layer in places(model, wrapped):
        kernel = module.base_layer.weight.detach().numpy().T
        np.testing.assert_allclose(params[f"{path}/kernel"][layer], kernel, atol=2e-5)
        seen += 1
    assert seen == 10
