"""A tiny T5 and a tiny Llama of transformers, and the same as flanjax reads them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flanjax.generation.generate import generate
from flanjax.generation.slots import advance
from flanjax.interchange.hf_decoder import read_hf_decoder
from flanjax.interchange.hf_t5 import read_hf_t5
from flanjax.interchange.stored import in_memory
from flanjax.models.config import Compute

EOS = {"t5": (1, 17, 51), "llama": (1, 40)}
INPUTS = [[2, 5, 6, 1], [2, 7], [2, 9, 3, 3, 8, 4, 4, 10, 11, 12], [2, 9, 9], [30, 1]]


def with_room_for(most, odd=()):
    """Decoding that is out of memory with more rows than `most` under way, or with one of an input of this length."""

    def advancing(config, compute, params, kept, rows, *how, **more):
        lengths = (rows.position - rows.made + 1)[rows.active].tolist()
        if len(lengths) > most or len(odd) in lengths:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nMore of it.")
        return advance(config, compute, params, kept, rows, *how, **more)

    return advancing


class Pair(NamedTuple):
    theirs: Any
    config: Any
    params: Any
    eos_ids: tuple[int, ...]

    def answers(self, decoding, inputs=INPUTS, **options):
        return generate(self.config, Compute(), self.params, inputs, decoding, **options)

    def transformers_answers(self, inputs, **options):
        """As `generate` gives them: padding and EOS cut away."""
        import torch

        length, decoder = max(map(len, inputs)), self.eos_ids == EOS["llama"]
        padded, mask = np.zeros((2, len(inputs), length), int)
        for row, ids in enumerate(inputs):
            place = slice(length - len(ids), length) if decoder else slice(len(ids))
            padded[row, place], mask[row, place] = ids, 1
        with torch.no_grad():
            made = self.theirs.generate(
                torch.tensor(padded), attention_mask=torch.tensor(mask), do_sample=False, pad_token_id=0,
                eos_token_id=list(self.eos_ids), **options,
            )  # fmt: skip
        made = made[:, length if decoder else 1 :].tolist()
        cut = [ids[: next((i for i, x in enumerate(ids) if x in self.eos_ids), len(ids))] for ids in made]
        return cut if decoder else [[token for token in ids if token] for ids in cut]


@pytest.fixture(scope="package")
def pairs(tmp_path_factory):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(1)
    t5 = transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=64, d_model=32, d_kv=8, d_ff=40, num_layers=2, num_heads=4, tie_word_embeddings=False,
            decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
        )
    )  # fmt: skip
    # With its embedding for a head, a random model repeats what it is given.
    t5.lm_head.weight = torch.nn.Parameter(torch.randn(64, 32))
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3,
        )
    )  # fmt: skip
    found = {}
    for name, theirs, read in (("t5", t5, read_hf_t5), ("llama", llama, read_hf_decoder)):
        folder = tmp_path_factory.mktemp("models") / name
        theirs.eval().save_pretrained(folder)
        config, params = read(folder)
        found[name] = Pair(theirs, config, jax.tree.map(jnp.asarray, in_memory(params)), EOS[name])
    return found
