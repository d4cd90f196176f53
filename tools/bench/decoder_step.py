"""Full train steps of a decoder, flanjax and transformers, in turn: forward, backward, AdamW.

    python tools/bench/decoder_step.py                  # float32: flanjax unrolled and scanned, transformers
    python tools/bench/decoder_step.py --dtype=bfloat16 # bf16 compute; transformers under torch.autocast

The shapes of SmolLM2-135M (a Llama with grouped heads and a tied head), 4 rows of 512 tokens without padding. Both take
the same packed rows, in which a token sees its own segment alone, move every parameter and learn every token; neither
has dropout, as the model was published.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import train_step


@dataclasses.dataclass(frozen=True)
class Shapes:
    """A model and a batch."""

    embed: int = 576
    heads: int = 9
    kv_heads: int = 3
    head_dim: int = 64
    mlp: int = 1536
    layers: int = 30
    vocab: int = 49152
    rows: int = 4
    length: int = 512
    segments: int = 4


SMOKE = Shapes(embed=32, heads=2, kv_heads=1, head_dim=16, mlp=64, layers=2, vocab=128, rows=2, length=32)
THETA = 100_000.0


def decoder_config(shapes: Shapes) -> Any:
    """The model as flanjax knows it."""
    from flanjax.models.decoder_config import DecoderConfig, Rotary

    return DecoderConfig(
        vocab_size=shapes.vocab,
        embed_dim=shapes.embed,
        num_layers=shapes.layers,
        num_heads=shapes.heads,
        num_kv_heads=shapes.kv_heads,
        head_dim=shapes.head_dim,
        mlp_dim=shapes.mlp,
        mlp_activations=("silu", "linear"),
        layer_norm_epsilon=1e-5,
        rotary=Rotary(theta=THETA),
        max_positions=8192,
        tied_head=True,
        dropout_rate=0.0,
    )


def transformers_llama(shapes: Shapes) -> Any:
    """The model as transformers knows it."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=shapes.vocab,
        hidden_size=shapes.embed,
        num_hidden_layers=shapes.layers,
        num_attention_heads=shapes.heads,
        num_key_value_heads=shapes.kv_heads,
        head_dim=shapes.head_dim,
        intermediate_size=shapes.mlp,
        rms_norm_eps=1e-5,
        rope_theta=THETA,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    return transformers.LlamaForCausalLM(config)


def packed_rows(shapes: Shapes) -> Any:
    """A numpy batch of random packed rows without padding; every token but the first of a segment is learnt."""
    import numpy as np

    from flanjax.data.cache import Example
    from flanjax.data.packing import pack_rows

    draw = np.random.default_rng(0).integers

    def example() -> Example:
        # So many tokens give one position less.
        tokens = draw(3, shapes.vocab, shapes.length // shapes.segments + 1)
        return Example(inputs=tokens[:1], targets=tokens[1:])

    return pack_rows([[example() for _ in range(shapes.segments)] for _ in range(shapes.rows)], (shapes.length,))


def build_flanjax(shapes: Shapes, dtype: str, scan: bool) -> Callable[[], float]:
    """A step on random packed rows; returns the mean loss."""
    batch = packed_rows(shapes)
    train = train_step.flanjax_trainer(decoder_config(shapes), dtype, scan=scan)

    def work() -> float:
        metrics = train(batch)
        return float(metrics.loss / metrics.tokens)

    return work


def torch_rows(shapes: Shapes) -> dict[str, Any]:
    """The same rows, int64 tensors [rows, length], as transformers' decoders take them."""
    import torch

    batch = {name: torch.from_numpy(array).long() for name, array in packed_rows(shapes).items()}
    return {
        "input_ids": batch["decoder_input_tokens"],
        "labels": batch["decoder_target_tokens"],
        "shift_labels": batch["decoder_target_tokens"],
        # Where they start anew a segment begins, if there is no cache.
        "position_ids": batch["decoder_positions"],
        "use_cache": False,
    }


def build_transformers(shapes: Shapes, dtype: str) -> Callable[[], float]:
    """A step on the same rows; returns the mean loss."""
    train = train_step.transformers_trainer(transformers_llama, shapes, dtype)
    rows = torch_rows(shapes)
    return lambda: train(**rows)


if __name__ == "__main__":
    train_step.compare("decoder train step", __doc__, Shapes(), SMOKE, build_flanjax, build_transformers)
