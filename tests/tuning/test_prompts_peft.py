"""Prompts, P-tuning and prefixes beside peft: the same numbers give the same logits."""

import dataclasses

import numpy as np
import peft
import pytest
import torch
import transformers

from flanjax.interchange.hf_t5 import read_hf_t5
from flanjax.interchange.stored import in_memory
from flanjax.models.config import Compute
from flanjax.models.t5 import build, init_params
from flanjax.tuning.p_tuning import PTuning
from flanjax.tuning.partition import flatten, unflatten
from flanjax.tuning.prefix import PrefixTuning, folded
from flanjax.tuning.prompt import PromptTuning, prompt_table

EMBEDDING = "encoder/prompt/embedding"

LENGTH, EMBED, HEADS, HIDDEN = 3, 8, 2, 6


@pytest.fixture(scope="module", params=[3, 4], ids=["three_layers", "four_layers"])
def layers(request):
    return request.param


@pytest.fixture(scope="module")
def folder(tmp_path_factory, layers):
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=64,
        d_model=EMBED,
        d_kv=EMBED // HEADS,
        num_heads=HEADS,
        d_ff=16,
        num_layers=2,
        num_decoder_layers=layers,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
    )
    path = tmp_path_factory.mktemp("peft") / "base"
    transformers.T5ForConditionalGeneration(config).save_pretrained(path)
    return path


@pytest.fixture
def assert_same_logits(folder):
    """assert_same_logits(peft config, method, {path: array of the peft model}) asserts it; returns both models."""

    def check(config, method, arrays):
        torch.manual_seed(1)
        theirs = peft.get_peft_model(transformers.T5ForConditionalGeneration.from_pretrained(folder), config).eval()
        base, params = read_hf_t5(folder)
        model = dataclasses.replace(base, added=(method,))
        encoder = theirs.prompt_encoder["default"]
        own = {path: array.detach().numpy() for path, array in arrays(encoder).items()}
        params = unflatten(flatten(in_memory(params)) | own)
        random = np.random.default_rng(0)
        inputs, targets = random.integers(2, 64, (2, 7)), random.integers(2, 64, (2, 5))
        with torch.no_grad():
            expected = theirs(input_ids=torch.tensor(inputs), decoder_input_ids=torch.tensor(targets)).logits.numpy()
        inputs = np.pad(inputs, ((0, 0), (model.prompt_length, 0)))
        batch = {"encoder_input_tokens": inputs, "encoder_segment_ids": np.ones_like(inputs)}
        batch |= {"decoder_input_tokens": targets, "decoder_segment_ids": np.ones_like(targets)}
        built = build(model, Compute(), params)
        np.testing.assert_allclose(built.logits(built(batch)), expected, rtol=1e-4, atol=1e-4)
        return encoder, model, params

    return check


def test_prompt_tuning(assert_same_logits):
    config = peft.PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=LENGTH, num_transformer_submodules=1)
    assert_same_logits(config, PromptTuning(length=LENGTH), lambda encoder: {EMBEDDING: encoder.embedding.weight[None]})


@pytest.mark.parametrize("kind", ["MLP", "LSTM"])
def test_p_tuning_and_the_prompt_that_it_makes(assert_same_logits, kind):
    config = peft.PromptEncoderConfig(
        task_type="SEQ_2_SEQ_LM",
        num_virtual_tokens=LENGTH,
        num_transformer_submodules=1,
        encoder_reparameterization_type=kind,
        encoder_hidden_size=HIDDEN,
        encoder_num_layers=2,
        encoder_dropout=0.0,
    )

    def arrays(encoder):
        found = {EMBEDDING: encoder.embedding.weight[None]}
        for number, dense in enumerate(layer for layer in encoder.mlp_head if isinstance(layer, torch.nn.Linear)):
            found[f"encoder/prompt/dense_{number}/kernel"] = dense.weight.T
            found[f"encoder/prompt/dense_{number}/bias"] = dense.bias
        for layer in range(2 if kind == "LSTM" else 0):
            for ending, direction in (("", "forward"), ("_reverse", "backward")):
                of = lambda name: getattr(encoder.lstm_head, f"{name}_l{layer}{ending}")  # noqa: B023, E731
                ours = f"encoder/prompt/lstm_{layer}_{direction}"
                found[f"{ours}/input_kernel"], found[f"{ours}/state_kernel"] = of("weight_ih").T, of("weight_hh").T
                found[f"{ours}/bias"] = of("bias_ih") + of("bias_hh")
        return found

    method = PTuning(length=LENGTH, hidden_dim=HIDDEN, encoder=kind.lower())
    encoder, model, params = assert_same_logits(config, method, arrays)
    expected = encoder(torch.arange(LENGTH)[None]).detach().numpy()
    np.testing.assert_allclose(prompt_table(model, params), expected, rtol=1e-5, atol=1e-5)


def test_prefix_tuning(assert_same_logits, layers):
    def arrays(encoder):
        table = encoder.embedding.weight.view(LENGTH, layers, 2, HEADS, EMBED // HEADS)
        # peft deals out entries by four, of which a T5 uses the first two: see `flanjax.tuning.prefix`.
        used = table[:, [2 * layer % layers for layer in range(layers)]].transpose(0, 1)
        place = "decoder/layers/self_attention/prefix"
        return {f"{place}/key": used[:, :, 0], f"{place}/value": used[:, :, 1]}

    config = peft.PrefixTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=LENGTH, num_layers=layers)
    assert_same_logits(config, PrefixTuning(length=LENGTH), arrays)


def test_prefix_tuning_by_a_network_and_the_prefix_that_it_makes(assert_same_logits, layers):
    place = "decoder/prefix/self_attention"

    def arrays(encoder):
        first, _, last = encoder.transform
        # A pair of projections for each entry; peft deals them out as above.
        weight = last.weight.T.view(HIDDEN, layers, 2, EMBED)[:, [2 * layer % layers for layer in range(layers)]]
        bias = last.bias.view(layers, 2, EMBED)[[2 * layer % layers for layer in range(layers)]]
        found = {f"{place}/embedding": encoder.embedding.weight}
        found |= {f"{place}/dense/kernel": first.weight.T, f"{place}/dense/bias": first.bias}
        for number, part in enumerate(("key", "value")):
            found[f"{place}/{part}/kernel"] = weight[:, :, number].transpose(0, 1)
            found[f"{place}/{part}/bias"] = bias[:, number]
        return found

    config = peft.PrefixTuningConfig(
        task_type="SEQ_2_SEQ_LM",
        num_virtual_tokens=LENGTH,
        num_layers=layers,
        prefix_projection=True,
        encoder_hidden_size=HIDDEN,
    )
    method = PrefixTuning(length=LENGTH, hidden_dim=HIDDEN)
    encoder, model, params = assert_same_logits(config, method, arrays)
    plain, made = folded(method, model, params)
    assert plain == PrefixTuning(length=LENGTH)
    table = encoder(torch.arange(LENGTH)[None])[0].detach().view(LENGTH, layers, 2, HEADS, EMBED // HEADS)
    for number, part in enumerate(("key", "value")):
        expected = table[:, [2 * layer % layers for layer in range(layers)], number].transpose(0, 1)
        found = made[f"decoder/layers/self_attention/prefix/{part}"]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_first_values_are_as_large_as_those_of_peft(folder):
    """Deviations of peft's fresh parameters and of ours, kind by kind."""
    base, _ = read_hf_t5(folder)
    method = PTuning(length=200, hidden_dim=50)
    params = init_params(dataclasses.replace(base, added=(method,)), 0)["encoder"]["prompt"]
    torch.manual_seed(0)
    config = peft.PromptEncoderConfig(
        num_virtual_tokens=200, token_dim=EMBED, num_transformer_submodules=1, encoder_hidden_size=50
    )
    theirs = peft.PromptEncoder(config)
    assert np.std(params["embedding"]) == pytest.approx(theirs.embedding.weight.std().item(), rel=0.1)
    for number, place in enumerate((0, 2, 4)):
        dense = theirs.mlp_head[place]
        assert np.std(params[f"dense_{number}"]["kernel"]) == pytest.approx(dense.weight.std().item(), rel=0.1)
        bound = dense.in_features**-0.5
        assert 0.5 * bound < np.abs(params[f"dense_{number}"]["bias"]).max() <= bound


def test_a_prefix_by_a_network_begins_as_large_as_that_of_peft(folder, layers):
    base, _ = read_hf_t5(folder)
    model = dataclasses.replace(base, added=(PrefixTuning(length=200, hidden_dim=50),))
    _, made = folded(model.added[0], model, init_params(model, 0))
    torch.manual_seed(0)
    config = peft.PrefixTuningConfig(
        num_virtual_tokens=200,
        token_dim=EMBED,
        num_layers=layers,
        num_attention_heads=HEADS,
        num_transformer_submodules=2,
        prefix_projection=True,
        encoder_hidden_size=50,
    )
    theirs = peft.PrefixEncoder(config)(torch.arange(200)[None]).std().item()
    assert np.std(np.concatenate([*made.values()])) == pytest.approx(theirs, rel=0.1)
