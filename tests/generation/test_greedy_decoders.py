"""A decoder goes on from prompts of any lengths in one batch as it would from each alone, and as transformers does."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flanjax.generation.greedy import greedy
from flanjax.generation.slots import advance, read
from flanjax.interchange.hf_decoder import read_hf_decoder
from flanjax.interchange.stored import in_memory
from flanjax.models.config import Compute, ModelConfigError
from flanjax.models.decoder import build, init_params
from flanjax.models.decoder_config import DecoderConfig, Rotary

LLAMA = DecoderConfig(
    vocab_size=32, embed_dim=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=24, init_stddev=0.3
)
PLAIN = {"norm": "layer", "mlp_activations": ("exact_gelu",), "num_kv_heads": 4, "qkv_bias": True}
CONFIGS = {
    "llama": LLAMA,
    "gemma2": dataclasses.replace(LLAMA, window=4, windowed=(True, False), attention_softcap=2.0, logits_softcap=3.0),
    "bloom": dataclasses.replace(LLAMA, **PLAIN, positions="alibi", embedding_norm=True),
    "opt": dataclasses.replace(LLAMA, **PLAIN, positions="learned", max_positions=24, position_offset=2),
}
EOS = (1, 30)
PROMPTS = [[2, 5, 6], [2], [2, 9, 0, 3, 8, 4, 4, 10, 11, 12], [2, 9, 9, 3], [0, 0]]
LIMIT = 10
pytestmark = pytest.mark.usefixtures("quick_compilation")


@functools.cache
def params_of(config):
    """Random, but for one that says an EOS now and then, so that rows end at different lengths."""
    params = init_params(config, 3)
    head = params["decoder"]["logits_dense"]["kernel"]
    params["decoder"]["logits_dense"]["kernel"] = head.at[:, EOS[1]].multiply(2)
    return params


@functools.partial(jax.jit, static_argnums=(0, 1))
def padded_logits(config, prefix_lm, params, tokens, prompt):
    model = build(config, Compute(), params)
    batch = {"decoder_input_tokens": tokens, "decoder_segment_ids": jnp.ones_like(tokens)}
    if prefix_lm:
        batch["decoder_causal_attention"] = (jnp.arange(tokens.shape[1]) < prompt)[None]
    return model.logits(model(batch))[0]


def forced_logits(config, prompt, answer, prefix_lm=False):
    """Logits [length, vocab] of the answer's tokens, of one text in one pass, without a cache."""
    tokens = np.zeros((1, 24), np.int32)
    text = [*prompt, *answer]
    tokens[0, : len(text)] = text
    logits = padded_logits(config, prefix_lm, params_of(config), tokens, len(prompt))
    return logits[len(prompt) - 1 : len(text) - 1]


def answers_of(config, prompts=PROMPTS, limit=LIMIT, **options):
    return greedy(config, Compute(), params_of(config), prompts, limit, eos_ids=EOS, **options)


@pytest.mark.parametrize(
    ("name", "prefix_lm"), [*((name, False) for name in CONFIGS), ("llama", True), ("bloom", True)]
)
def test_every_token_is_the_most_likely_one_of_its_text_alone(name, prefix_lm):
    config = CONFIGS[name]
    answers = answers_of(config, prefix_lm=prefix_lm)
    assert len({len(answer) for answer in answers}) > 1, "the rows should end at different lengths"
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        chosen = forced_logits(config, prompt, [*answer, 0], prefix_lm).argmax(-1).tolist()
        assert chosen[:-1] == answer
        assert chosen[-1] in EOS or len(answer) == LIMIT
        assert not set(EOS) & set(answer)


def test_a_row_does_not_depend_on_its_neighbours():
    together = answers_of(LLAMA)
    assert [answers_of(LLAMA, [prompt])[0] for prompt in PROMPTS] == together
    assert answers_of(LLAMA, PROMPTS[::-1], batch_rows=2)[::-1] == together


def test_the_limit_is_a_prefix_and_needs_no_new_program():
    longest = answers_of(LLAMA, limit=8)
    compiled = read._cache_size(), advance._cache_size()
    for limit in (7, 1):
        assert answers_of(LLAMA, limit=limit) == [answer[:limit] for answer in longest]
    assert answers_of(LLAMA, [[7], *PROMPTS[1:]], limit=8)[1:] == longest[1:]
    assert (read._cache_size(), advance._cache_size()) == compiled


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_token_for_token_as_transformers(kind, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    made = {
        "llama": transformers.LlamaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3,
        ),
        "gpt2": transformers.GPT2Config(
            vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.3
        ),
    }[kind]  # fmt: skip
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(made).eval()
    theirs.save_pretrained(tmp_path)
    config, params = read_hf_decoder(tmp_path)
    prompts = [[2, 5, 6], [2], [2, 9, 0, 3, 8, 4, 4, 10, 11, 12], [2, 63, 9, 3]]
    padded = np.array([[0] * (10 - len(prompt)) + prompt for prompt in prompts])
    mask = np.array([[0] * (10 - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    with torch.no_grad():
        generated = theirs.generate(
            torch.tensor(padded), attention_mask=torch.tensor(mask), max_new_tokens=24, do_sample=False,
            eos_token_id=[1, 40], pad_token_id=0,
        )[:, 10:].tolist()  # fmt: skip
    wanted = [ids[: next((i for i, token in enumerate(ids) if token in (1, 40)), 24)] for ids in generated]
    assert greedy(config, Compute(), in_memory(params), prompts, 24, eos_ids=(1, 40)) == wanted


def test_the_golden_tokens_of_a_real_model(test_data):
    stories = test_data / "checkpoints" / "stories260K"
    ids = json.loads((stories / "expected_greedy.json").read_text())["token_ids"]
    config, params = read_hf_decoder(stories / "hf")
    prompts = [ids[:1], ids[:50], ids[:7]]
    answers = greedy(config, Compute(), in_memory(params), prompts, len(ids) - 1, eos_ids=(2,))
    for prompt, answer in zip(prompts, answers, strict=True):
        assert [*prompt, *answer][: len(ids)] == ids


def test_what_cannot_be_decoded_is_refused():
    with pytest.raises(ValueError, match="an input without a token: a decoder goes on from one at the least"):
        answers_of(LLAMA, [[2], []])
    with pytest.raises(ModelConfigError, match="a cache of 25 positions: the model has learned 24"):
        answers_of(CONFIGS["opt"], [[2] * 5], limit=20)
    dynamic = dataclasses.replace(LLAMA, rotary=Rotary(scaling="dynamic", factor=2.0, original_max_positions=6))
    with pytest.raises(ModelConfigError, match="a cache of 12 positions: dynamic scaling"):
        answers_of(dynamic, [[2] * 5], limit=7)
    # Padding takes no position of a model's: the longest text alone counts.
    assert len(answers_of(CONFIGS["opt"], [[2] * 14, [2]], limit=10)) == 2
    assert answers_of(LLAMA, []) == []
