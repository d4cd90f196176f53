"""NF4: the published codes, a bounded error, one function however it is computed, at most 4.2 bits a weight."""

import dataclasses
import functools
import json
import statistics
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flanjax.generation.greedy import greedy
from flanjax.generation.scoring import score
from flanjax.interchange.hf_t5 import read_hf_t5
from flanjax.interchange.stored import in_memory
from flanjax.models.config import Compute, T5Config
from flanjax.models.decoder_config import DecoderConfig
from flanjax.models.model import ModelConfig, abstract_params, build, init_params
from flanjax.models.parameters import Params
from flanjax.tuning.ia3 import IA3
from flanjax.tuning.lora import ALL_LINEAR, LoRA
from flanjax.tuning.method import Method, TuningError
from flanjax.tuning.methods import from_settings, to_settings
from flanjax.tuning.partition import Partition, begin, flatten, merge, merged, unflatten, unquantized
from flanjax.tuning.prefix import PrefixTuning
from flanjax.tuning.prompt import PromptTuning
from flanjax.tuning.quantize import DYNAMIC, NF4, NORMAL_FLOAT, dequantize, quantize
from flanjax.tuning.select import Freeze, Train

from .conftest import DECODER, GATED, PLAIN

# Blocks that divide the tiny models' inputs of 8, 16 and 32; nested blocks that end inside a row of them.
SMALL = NF4(block=8, double_block=3)
SETS = {
    "lora": (GATED, (SMALL, LoRA(rank=2, alpha=4, targets=ALL_LINEAR))),
    "lora_first": (PLAIN, (LoRA(rank=2), dataclasses.replace(SMALL, double=False))),
    "dora_pissa": (GATED, (NF4(block=4), IA3(), LoRA(rank=2, targets=".*/query", init="pissa", dora=True))),
}
DECODERS = {"decoder": (DECODER, (SMALL, LoRA(rank=2, alpha=4, targets=ALL_LINEAR)))}
# What no plain model can hold: a prompt before the inputs, keys and values before every attention's.
APART = {
    "prompt": (GATED, (SMALL, PromptTuning(length=1, init="random"))),
    "prefix": (PLAIN, (PrefixTuning(length=2, attentions=".*attention"), SMALL)),
}
SIZES = {
    "small": T5Config(embed_dim=512, num_heads=6, mlp_dim=1024, num_encoder_layers=8, num_decoder_layers=8),
    "xl": T5Config(embed_dim=2048, num_heads=32, mlp_dim=5120, num_encoder_layers=24, num_decoder_layers=24),
    # Llama 3 8B's.
    "llama": DecoderConfig(
        vocab_size=128256,
        embed_dim=4096,
        num_layers=32,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        mlp_dim=14336,
        tied_head=False,
    ),
}


WHOLE_BASE = {"small": 16.05, "xl": 5.42, "llama": 7.77}  # bits a weight, with the embedding and the head in float32


def no_words(text):
    raise AssertionError("quantising needs no vocabulary")


def moved_base(base):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda p: p + 0.1 * rng.standard_normal(p.shape, np.float32), init_params(base, 0))


def begun(base, methods):
    """The model and its first parameters, those that train moved away from where they start."""
    model = dataclasses.replace(base, added=methods)
    trainable, frozen = Partition.of(model).split(begin(model, moved_base(base), no_words, 0))
    rng = np.random.default_rng(1)
    trainable = jax.tree.map(lambda p: p + 0.1 * rng.standard_normal(p.shape, np.float32), trainable)
    return model, merge(trainable, frozen)


@pytest.fixture(scope="module", params=SETS | DECODERS | APART)
def quantized(request: pytest.FixtureRequest) -> tuple[ModelConfig, Params]:
    """A model with a quantised base and adapters that have moved, and its parameters."""
    return begun(*(SETS | DECODERS | APART)[request.param])


def rounded(model, params):
    """The same without NF4: an ordinary model over the kernels that the codes stand for."""
    method = next(method for method in model.added if isinstance(method, NF4))
    flat, kernels = flatten(params), {}
    for path in [path for path in flat if "/kernel/" in path]:
        kernel, _, part = path.rpartition("/")
        kernels.setdefault(kernel, {})[part] = flat.pop(path)
    unpack = jax.vmap(functools.partial(dequantize, double_block=method.double_block))
    return unquantized(model), unflatten(flat | {path: unpack(parts) for path, parts in kernels.items()})


@functools.partial(jax.jit, static_argnums=(0, 1))
def logits(model, compute, params, batch):
    built = build(model, compute, params)
    return built.logits(built(batch))


def test_the_code_books_are_the_published_ones():
    # The paper's section 3: quantiles of equal probability on either side of an exact zero, scaled to [-1, 1].
    quantile = statistics.NormalDist().inv_cdf
    above = [quantile(p) for p in np.linspace(0.9677083, 0.5, 9)[:-1]]
    below = [-quantile(p) for p in np.linspace(0.9677083, 0.5, 8)[:-1]]
    np.testing.assert_allclose(NORMAL_FLOAT, np.sort([*below, 0, *above]) / max(above), atol=1e-6)
    assert DYNAMIC.shape == (256,)
    assert (np.diff(DYNAMIC) > 0).all()
    np.testing.assert_array_equal(DYNAMIC[:127], -DYNAMIC[254:127:-1])
    known = {0: -0.992968738079071, 126: -5.500000384017767e-07, 127: 0, 128: 5.500000384017767e-07, 255: 1}
    known |= {130: 7.749999895168003e-06, 180: 0.07046874612569809, 254: 0.992968738079071}
    assert {index: float(DYNAMIC[index]) for index in known} == pytest.approx(known, rel=1e-7)


# Of bitsandbytes 0.50.2: quantize_4bit(kernel.T, blocksize=64, compress_statistics=True, quant_type="nf4").
CODES = (
    "0123579cdef113579bdef113479bdef012469bdef012468bdef012468bcef012468acef012358acee012358acde012357acde0123579cdef"
    "113579bdef113479469bdef012469bdef012468bdef012468acef012358acef012358acee012357acde0123579cdef113579bdef113479bd"
    "ef012469bdef012468bdef012468bcefcef012358acee012358acde012357acde0123579cdef113579bdef113479bdef012469bdef012469"
    "bdef012468bdef012468acef012358acef012358acee0123"
)


def test_codes_and_scales_are_those_of_bitsandbytes():
    number = np.arange(128 * 3).reshape(128, 3)
    kernel = ((number * 37 % 101 - 50) * (1 + number % 3) / 256).astype(np.float32)
    parts = quantize(kernel, 64, 256)
    assert np.asarray(parts["codes"]).T.tobytes().hex() == CODES
    assert np.asarray(parts["absmax"]).T.ravel().tolist() == [2, 2, 91, 161, 255, 250]
    np.testing.assert_allclose(parts["nested_absmax"], [0.1985677182674408], rtol=1e-6)
    np.testing.assert_allclose(parts["nested_offset"], 0.3873697817325592, rtol=1e-6)


packed_by = jax.jit(quantize, static_argnums=(1, 2))


@settings(max_examples=10, deadline=None)
@given(st.data())
def test_blocks_are_those_of_the_flat_torch_weight(data):
    block = data.draw(st.sampled_from([2, 4, 8, 64]))
    size_in, size_out = block * data.draw(st.integers(1, 4)), data.draw(st.integers(1, 6))
    double_block = data.draw(st.none() | st.integers(1, 9))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    kernel = rng.standard_normal((size_in, size_out), np.float32) * 10.0 ** rng.integers(-3, 3, size_out)
    kernel = (kernel * data.draw(st.sampled_from([1.0, 0.0]))).astype(np.float32)
    parts = {name: np.asarray(part) for name, part in packed_by(kernel, block, double_block).items()}

    flat, packed = kernel.T.ravel(), parts["codes"].T.ravel()
    codes = np.stack([packed >> 4, packed & 15], 1).ravel()
    absmax = np.array([np.abs(flat[start : start + block]).max() for start in range(0, flat.size, block)])
    if double_block is None:
        scales = parts["absmax"].T.ravel()
        np.testing.assert_array_equal(scales, absmax)
    else:
        scale_codes, scales = parts["absmax"].T.ravel(), np.zeros_like(absmax)
        offset = absmax.mean()
        np.testing.assert_allclose(parts["nested_offset"], offset, rtol=1e-6)
        for number, start in enumerate(range(0, absmax.size, double_block)):
            some = slice(start, start + double_block)
            largest = np.abs(absmax[some] - offset).max()
            np.testing.assert_allclose(parts["nested_absmax"][number], largest, rtol=1e-5, atol=1e-5 * offset)
            entries = DYNAMIC[scale_codes[some]]
            scales[some] = entries * parts["nested_absmax"][number] + parts["nested_offset"]
            if largest > 1e-5 * offset:
                assert_nearest(entries, (absmax[some] - offset) / largest, DYNAMIC, 1e-4)
    for number, largest in enumerate(absmax):
        some = slice(number * block, (number + 1) * block)
        if largest:
            assert_nearest(NORMAL_FLOAT[codes[some]], flat[some] / largest, NORMAL_FLOAT, 1e-6)

    again = np.asarray(dequantize(parts, double_block or 1))
    by_hand = NORMAL_FLOAT[codes] * np.repeat(scales, block)
    np.testing.assert_allclose(again.T.ravel(), by_hand, rtol=1e-5, atol=1e-7)
    # Half of the widest gap between two entries, and what the scale itself was rounded by.
    bound = np.diff(NORMAL_FLOAT).max() / 2 * absmax + np.abs(scales - absmax)
    assert (np.abs(again.T.ravel() - flat) <= np.repeat(bound, block) * (1 + 1e-5) + 1e-7).all()


def assert_nearest(entries, values, table, tolerance):
    best = np.abs(table[None] - values[:, None]).min(1)
    assert (np.abs(entries - values) <= best + tolerance).all()


@pytest.mark.parametrize("size", SIZES)
def test_at_most_four_and_a_fifth_bits_a_weight(size):
    base = SIZES[size]
    weights = sum(p.size for path, p in flatten(abstract_params(base)).items() if is_kernel(path))
    for method, most in ((NF4(), 4.1275), (NF4(double=False), 4.5)):
        model = dataclasses.replace(base, added=(method, LoRA(targets=ALL_LINEAR)))
        start = flatten(jax.eval_shape(lambda model=model: begin(model, init_params(base, 0), no_words, 0)))
        assert start == flatten(abstract_params(model))
        stored = sum(p.size * p.dtype.itemsize for path, p in start.items() if "/kernel/" in path)
        assert not any(map(is_kernel, start))
        assert 4 < 8 * stored / weights <= most
        # All that is frozen: codes, and the embedding, the head, the norms and the position tables in float32.
        frozen = sum(p.size * p.dtype.itemsize for p in jax.tree.leaves(Partition.of(model).split(unflatten(start))[1]))
        rest = sum(4 * p.size for path, p in flatten(abstract_params(base)).items() if not is_kernel(path))
        assert frozen == stored + rest
        # As docs/tuning.md has it of the whole base.
        if method == NF4():
            every = sum(p.size for p in flatten(abstract_params(base)).values())
            assert round(8 * frozen / every, 2) == WHOLE_BASE[size]


def is_kernel(path):
    return "/layers/" in path and path.endswith("/kernel")


def test_the_quantised_model_is_that_of_the_rounded_kernels(quantized, batch):
    model, params = quantized
    expected = logits(rounded(model, params)[0], Compute(), rounded(model, params)[1], batch)
    found = logits(model, Compute(), params, batch)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    plain = dataclasses.replace(model, added=())
    assert np.abs(found - logits(plain, Compute(), moved_base(plain), batch)).max() > 1e-2
    half = logits(model, Compute(dtype="bfloat16"), params, batch)
    np.testing.assert_allclose(half, found, atol=0.1 * np.abs(found).max())


def test_scanned_equals_unrolled_equals_recomputed(quantized, batch):
    model, params = quantized
    unrolled = logits(model, Compute(scan_layers=False), params, batch)
    for compute in (Compute(), Compute(remat="full"), Compute(remat="minimal", scan_layers=False)):
        np.testing.assert_allclose(logits(model, compute, params, batch), unrolled, rtol=1e-5, atol=1e-5)


def test_packed_equals_unpacked(quantized, batch):
    model, params = quantized
    packed = np.asarray(logits(model, Compute(), params, batch))
    for segment in (1, 2):
        alone = {}
        for name, values in batch.items():  # the other example of each row gone
            own = batch[f"{name.partition('_')[0]}_segment_ids"] == segment
            alone[name] = (own if name.endswith("segment_ids") else values * own).astype(np.int32)
        inside = batch["decoder_segment_ids"] == segment
        assert inside.any(axis=1).all()
        unpacked = np.asarray(logits(model, Compute(), params, alone))
        np.testing.assert_allclose(unpacked[inside], packed[inside], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("compute", [Compute(), Compute(scan_layers=False, remat="full")], ids=["scan", "unrolled"])
@pytest.mark.parametrize("given", [SETS["lora"], DECODERS["decoder"]], ids=["t5", "decoder"])
def test_adapters_get_the_gradient_of_the_rounded_kernels(batch, given, compute):
    model, params = begun(*given)
    plain, own = rounded(model, params)

    def gradient(model, params):
        trainable, frozen = Partition.of(model).split(params)
        loss = lambda trainable: jnp.square(logits(model, compute, merge(trainable, frozen), batch)).sum()  # noqa: E731
        return jax.jit(jax.grad(loss))(trainable)

    expected = gradient(plain, own)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(expected))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max()),
        gradient(model, params),
        expected,
    )


def test_answers_are_those_of_the_rounded_kernels():
    model, params = begun(*SETS["lora"])
    plain, own = rounded(model, params)
    inputs, targets = [[5, 6, 1], [7, 1], [9, 3, 3, 8, 4, 1]], [[4, 9, 1], [8, 1], [3, 1]]
    assert greedy(model, Compute(), params, inputs, 6) == greedy(plain, Compute(), own, inputs, 6)
    found, expected = (
        score(*model, inputs, targets) for model in ((model, Compute(), params), (plain, Compute(), own))
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, rtol=1e-5)


def test_one_layer_is_unpacked_at_a_time():
    """Neither the forward nor the backward pass holds the weights of all layers: not more for more layers."""

    def temporaries(layers):
        base = T5Config(
            vocab_size=8, embed_dim=64, num_heads=2, mlp_dim=256, num_encoder_layers=layers, num_decoder_layers=layers
        )
        model = dataclasses.replace(base, added=(NF4(), LoRA(rank=1, targets=ALL_LINEAR)))
        tokens = jnp.ones((1, 4), jnp.int32)
        names = ("encoder_input_tokens", "encoder_segment_ids", "decoder_input_tokens", "decoder_segment_ids")

        def loss(trainable, frozen):
            return logits(model, Compute(), merge(trainable, frozen), dict.fromkeys(names, tokens)).sum()

        split = Partition.of(model).split(abstract_params(model))
        compiled = jax.jit(jax.grad(loss)).lower(*split).compile()
        kernels = sum(4 * p.size for path, p in flatten(abstract_params(base)).items() if is_kernel(path))
        return compiled.memory_analysis().temp_size_in_bytes, kernels

    (few, few_kernels), (many, many_kernels) = temporaries(2), temporaries(8)
    # What is kept of a layer is at most its codes, an eighth of the float32 kernels.
    assert many - few < 0.2 * (many_kernels - few_kernels)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Doubled(Method):
    """Begins with twice the kernels."""

    name: ClassVar[str] = "doubled"

    def trains(self, path):
        return path.endswith("norm/scale")

    def check(self, model, paths):
        pass

    def begin(self, model, params, encode):
        return {path: 2 * value if is_kernel(path) else value for path, value in params.items()}


def test_quantising_is_the_last_thing_whatever_the_order():
    base = moved_base(GATED)
    before, after = (
        begin(dataclasses.replace(GATED, added=methods), base, no_words, 0)
        for methods in ((Doubled(), SMALL), (SMALL, Doubled()))
    )
    jax.tree.map(np.testing.assert_array_equal, before, after)
    twice = {path: 2 * value if is_kernel(path) else value for path, value in flatten(base).items()}
    expected = begin(dataclasses.replace(GATED, added=(SMALL,)), unflatten(twice), no_words, 0)
    jax.tree.map(np.testing.assert_array_equal, before, expected)


def test_only_the_targets_are_quantised():
    _, params = begun(GATED, (dataclasses.replace(SMALL, targets="decoder/layers/mlp/w.*"), LoRA(rank=2)))
    packed = {path.rpartition("/kernel/")[0] for path in flatten(params) if "/kernel/" in path}
    assert packed == {f"decoder/layers/mlp/{name}" for name in ("wi_0", "wi_1", "wo")}
    both = (
        dataclasses.replace(SMALL, targets="encoder/.*", double=False),
        dataclasses.replace(SMALL, targets="decoder/layers/.*"),
    )
    _, params = begun(GATED, (*both, Train()))
    assert params["encoder"]["layers"]["mlp"]["wo"]["kernel"]["absmax"].dtype == jnp.float32
    assert params["decoder"]["layers"]["mlp"]["wo"]["kernel"]["absmax"].dtype == jnp.uint8


@pytest.mark.parametrize("quantized", SETS | DECODERS, indirect=True)
def test_merged_into_the_original_and_only_there(quantized, batch):
    model, params = quantized
    with pytest.raises(TuningError, match="cannot be merged without its full-precision original"):
        merged(model, params)
    # As a run is opened for merging: the start without NF4, and what was trained.
    whole, base = unquantized(model), moved_base(dataclasses.replace(model, added=()))
    trained, _ = Partition.of(model).split(params)
    over = unflatten(flatten(begin(whole, base, no_words, 0)) | flatten(trained))
    plain, own = merged(whole, over)
    assert plain.added == ()
    np.testing.assert_allclose(
        logits(plain, Compute(), own, batch), logits(whole, Compute(), over, batch), rtol=1e-4, atol=1e-4
    )


def test_it_comes_back_from_the_settings_of_a_run():
    methods = (NF4(block=32, double_block=8, double=False, targets=".*/wo"),)
    assert from_settings(json.loads(json.dumps(to_settings(methods)))) == methods


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ((NF4(), LoRA(rank=2)), r"NF4\.block = 64 does not divide the input of a target of 16 x 8"),
        ((NF4(targets=".*/quary"), LoRA(rank=2)), r"NF4\.targets = .* matches nothing .*did you mean 'query'"),
        ((SMALL, LoRA(rank=2, targets=".*/quary")), r"LoRA\.targets = .* matches nothing .*did you mean 'query'"),
        ((SMALL,), "no parameter would be trained by NF4"),
        ((SMALL, SMALL, Train()), "two methods quantize one kernel under encoder/layers"),
        ((SMALL, Train(parameters=".*")), "Train would train .*/kernel/.*, which is quantized"),
        ((Freeze(parameters="token_embedder/.*"), SMALL), "Freeze would train .*/kernel/.*, which is quantized"),
    ],
)
def test_what_does_not_fit_is_refused(methods, message):
    with pytest.raises(TuningError, match=message):
        Partition.of(dataclasses.replace(GATED, added=methods))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"block": 7}, "NF4.block is 7: it must be an even number"),
        ({"block": 0}, "NF4.block is 0"),
        ({"double_block": 0}, "NF4.double_block is 0"),
        ({"targets": "(query"}, r"NF4\.targets = '\(query' is no regular expression"),
    ],
)
def test_settings_that_mean_nothing_are_refused(fields, message):
    with pytest.raises(TuningError, match=message):
        NF4(**fields)


def test_flan_t5_small_stays_close(flan_t5_small, test_data):
    golden = json.loads((test_data / "checkpoints" / "flan_t5_small_int8" / "expected_greedy.json").read_text())
    base, own = read_hf_t5(flan_t5_small)
    own = in_memory(own)
    model = dataclasses.replace(base, added=(NF4(), LoRA()))

    def padded(rows):
        return np.array([row + [0] * (max(map(len, rows)) - len(row)) for row in rows], np.int32)

    inputs, answers = padded([g["input_ids"] for g in golden]), padded([g["greedy_ids"] for g in golden])
    segments = np.array([np.arange(answers.shape[1]) < len(g["greedy_ids"]) - 1 for g in golden], np.int32)
    batch = {"encoder_input_tokens": inputs, "encoder_segment_ids": (inputs != 0).astype(np.int32)}
    batch |= {"decoder_input_tokens": answers, "decoder_segment_ids": segments}
    full = logits(base, Compute(), own, batch)
    rough = logits(model, Compute(), begin(model, own, no_words, 0), batch)

    def likelihood(logits):
        each = np.take_along_axis(jax.nn.log_softmax(logits)[:, :-1], answers[:, 1:, None], 2)[..., 0]
        return (each * segments[:, :-1]).sum() / segments.sum()

    # Measured: 0.054 of the logits' root mean square, and 0.545 and 0.664 nats a token of the full model's answers.
    inside = segments[..., None]
    assert np.sqrt((np.square(full - rough) * inside).sum() / (np.square(full) * inside).sum()) < 0.1
    assert likelihood(full) - 0.2 < likelihood(rough) < likelihood(full)
