"""The real SmolLM2-135M-Instruct, from a 4-bit GGUF file to an answer, as transformers and the gguf package have it."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flanjax.interchange.gguf import read_gguf
from flanjax.interchange.gguf_file import read_gguf_file
from flanjax.interchange.hf_decoder import read_hf_decoder
from flanjax.interchange.stored import in_memory
from flanjax.models.config import Compute
from flanjax.models.decoder import build

ROOT = Path(__file__).resolve().parents[2]
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris.<|im_end|>"
PROMPT = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
)


@pytest.fixture(scope="module")
def tokenizer(smollm2):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2)


def test_its_tensors_are_those_of_the_gguf_package(smollm2_gguf):
    import gguf

    for name, tensor in read_gguf_file(smollm2_gguf).tensors.items():
        rows, kind = min(64, tensor.shape[0]), gguf.GGMLQuantizationType[tensor.type.name]
        shape = gguf.quants.quant_shape_to_byte_shape((rows, *tensor.shape[1:]), kind)
        expected = gguf.dequantize(np.memmap(smollm2_gguf, np.uint8, "r", tensor.start, shape), kind)
        assert tensor[(slice(rows), slice(None))[: len(tensor.shape)]].tobytes() == expected.tobytes(), name


def test_the_folder_holds_the_same_model(smollm2_gguf, smollm2):
    config, params = read_gguf(smollm2_gguf)
    folder_config, folder_params = read_hf_decoder(smollm2)
    assert config == folder_config
    assert (config.num_layers, config.embed_dim, config.num_heads, config.num_kv_heads) == (30, 576, 9, 3)
    assert (config.rotary.theta, config.layer_norm_epsilon, config.tied_head) == (100_000.0, 1e-5, True)
    assert sum(leaf.size for leaf in jax.tree.leaves(folder_params)) == 134_515_008

    def same_ends(ours, theirs):
        for ends in (slice(0, 1), slice(theirs.shape[0] - 1, theirs.shape[0])):
            index = (ends, *(slice(None),) * (theirs.ndim - 1))
            np.testing.assert_array_equal(ours[index], theirs[index])

    jax.tree.map(same_ends, params, folder_params)


def test_it_answers_as_transformers_does(smollm2, tokenizer):
    import torch
    from transformers import AutoModelForCausalLM

    prompt = tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    assert prompt == PROMPT
    asked, answered = tokenizer(prompt)["input_ids"], tokenizer(ANSWER)["input_ids"]
    tokens = np.array([asked + answered])

    theirs = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits[0].numpy()

    @jax.jit
    def logits(params, tokens):
        model = build(config, Compute(), params)
        return model.logits(model.decode(tokens, jnp.ones_like(tokens)))

    config, params = read_hf_decoder(smollm2)
    ours = np.asarray(logits(in_memory(params), tokens))[0]
    # Each token of the answer is the most likely one: greedy decoding says it word for word.
    assert ours[len(asked) - 1 : -1].argmax(axis=-1).tolist() == answered
    # Logits reach 38, and transformers' own are up to 1.1e-4 from those that it computes in float64.
    np.testing.assert_allclose(ours[len(asked) - 1], expected[len(asked) - 1], atol=1e-4, rtol=0)
    np.testing.assert_allclose(ours, expected, atol=2e-4, rtol=0)


def test_the_documented_example_says_so(smollm2_gguf, tmp_path, monkeypatch, capsys):
    documented = (ROOT / "docs" / "models.md").read_text().split("### A small model that answers")[1]
    lines = [line[4:] for line in documented.split("## ")[0].splitlines() if line.startswith("    ")]
    (tmp_path / smollm2_gguf.name).symlink_to(smollm2_gguf)
    monkeypatch.chdir(tmp_path)
    exec("\n".join(lines), {})
    assert capsys.readouterr().out == "The capital of France is Paris.\n"


def test_numbers_are_cut_into_digits(tokenizer):
    assert tokenizer.tokenize("In 2026, 45.7") == ["In", "Ġ", "2", "0", "2", "6", ",", "Ġ", "4", "5", ".", "7"]


def test_its_chats_are_tokens_as_transformers_has_them_with_each_reply_marked(smollm2, tokenizer, test_data):
    import json

    from flanjax.data.chat import Chat
    from flanjax.data.chat_templates import find_template
    from flanjax.data.tasks import Turn
    from flanjax.data.vocabularies import Vocabulary

    vocabulary = Vocabulary.from_file(smollm2)
    chat = Chat(find_template("tokenizer", vocabulary), vocabulary)
    assert chat.check() == []
    assert chat.prompt(QUESTION) == tokenizer.encode(PROMPT, add_special_tokens=False)
    assert chat.end_ids == (tokenizer.convert_tokens_to_ids("<|im_end|>"),)
    records = json.loads((test_data / "fastchat" / "dummy_conversation.json").read_text())[:100]
    for record in records:
        said = [
            Turn(role={"human": "user", "gpt": "assistant"}[turn["from"]], text=turn["value"])
            for turn in record["conversations"]
        ]
        messages = [{"role": turn.role, "content": turn.text} for turn in said]
        (example,) = chat.examples(said)
        assert [*example.inputs, *example.targets] == tokenizer.apply_chat_template(messages)["input_ids"]
        counted = [id_ for id_, weight in zip(example.targets, example.weights, strict=True) if weight]
        replies = [turn.text + "<|im_end|>" for turn in said if turn.role == "assistant"]
        assert tokenizer.decode(counted) == "".join(replies)
