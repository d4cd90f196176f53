"""Tiny models of both generations and of UMT5, and a packed batch beside the same examples unpacked."""

import numpy as np
import pytest

from flanjax.models.config import T5Config

VOCAB = 64
SIZES = {
    "vocab_size": VOCAB,
    "embed_dim": 16,
    "num_heads": 2,
    "head_dim": 4,
    "mlp_dim": 24,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "relpos_buckets": 8,
    "relpos_max_distance": 12,
}
GENERATIONS = {
    "v1.0": T5Config(**SIZES, mlp_activations=("relu",), tied_head=True),
    "v1.1": T5Config(**SIZES),
    "umt5": T5Config(**{**SIZES, "num_decoder_layers": 3}, relpos_per_layer=True),
}


@pytest.fixture(params=GENERATIONS)
def config(request) -> T5Config:
    return GENERATIONS[request.param]


@pytest.fixture
def v1_1() -> T5Config:
    return GENERATIONS["v1.1"]


@pytest.fixture(params=["v1.1", "umt5"])
def untied(request) -> T5Config:
    return GENERATIONS[request.param]


def pack(rows, encoder_length, decoder_length):
    """Rows of (inputs, targets) pairs in T5X's feature names."""
    sizes = {"encoder": encoder_length, "decoder": decoder_length}
    names = ["encoder_input_tokens", "encoder_segment_ids", "decoder_input_tokens", "decoder_segment_ids"]
    names += ["decoder_target_tokens", "decoder_loss_weights"]
    batch = {name: np.zeros((len(rows), sizes[name[:7]]), np.int32) for name in names}
    for r, row in enumerate(rows):
        e = d = 0
        for segment, (inputs, targets) in enumerate(row, start=1):
            encoder, decoder = slice(e, e + len(inputs)), slice(d, d + len(targets))
            batch["encoder_input_tokens"][r, encoder] = inputs
            batch["encoder_segment_ids"][r, encoder] = segment
            batch["decoder_input_tokens"][r, decoder] = [0, *targets[:-1]]
            batch["decoder_target_tokens"][r, decoder] = targets
            batch["decoder_segment_ids"][r, decoder] = segment
            batch["decoder_loss_weights"][r, decoder] = 1
            e, d = encoder.stop, decoder.stop
    return batch


@pytest.fixture
def examples() -> list[tuple[list[int], list[int]]]:
    """Six (inputs, targets) pairs of different lengths."""
    rng = np.random.default_rng(0)
    lengths = [(9, 4), (5, 2), (7, 6), (12, 3), (3, 5), (4, 1)]
    return [tuple([*rng.integers(3, VOCAB, n - 1).tolist(), 1] for n in pair) for pair in lengths]


@pytest.fixture
def packed(examples):
    """Two packed rows, the second one with much padding."""
    return pack([examples[:4], examples[4:]], 36, 18)


@pytest.fixture
def unpacked(examples):
    """One example a row."""
    return pack([[example] for example in examples], 12, 6)
