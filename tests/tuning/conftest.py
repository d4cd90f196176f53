"""Tiny models of both kinds, bases that are not at their initial values, and batches of packed rows."""

import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from flanjax.models.config import T5Config
from flanjax.models.decoder_config import DecoderConfig
from flanjax.models.model import ModelConfig, init_params
from flanjax.models.parameters import Params
from flanjax.tuning.method import Method
from flanjax.tuning.partition import begin

GATED = T5Config(
    vocab_size=64, embed_dim=16, num_heads=2, head_dim=4, mlp_dim=32, num_encoder_layers=2, num_decoder_layers=3
)
PLAIN = dataclasses.replace(GATED, mlp_activations=("relu",), tied_head=True)
# Grouped heads, a window in every other layer, norms of heads and after blocks, soft caps: as decoders without biases.
DECODER = DecoderConfig(
    vocab_size=64,
    embed_dim=16,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    mlp_dim=32,
    norm="rms_plus_one",
    post_norms=True,
    qk_norm=True,
    window=3,
    windowed=(True, False),
    attention_softcap=5.0,
    logits_softcap=8.0,
    embedding_scale=4.0,
    init_stddev=0.2,
)
BASES = {"gated": GATED, "plain": PLAIN, "decoder": DECODER}


def regular_expressions(paths: list[str]) -> st.SearchStrategy[str]:
    """What people write for some of these paths: wildcards, groups, classes, anchors, alternatives; or for none."""
    parts = sorted({part for path in paths for part in path.split("/")})

    def either(names: list[str]) -> str:
        return f"({'|'.join(map(re.escape, names))})"

    def one_for(part: str) -> st.SearchStrategy[str]:
        wild = (
            ".*",
            "[^/]*",
            r"\w+",
            "[a-z_]+[0-9]?",
            rf"{part[:1]}.*",
            rf".*{part[-1:]}",
            rf"(?:{part})",
            rf"{part}?",
        )
        among = st.lists(st.sampled_from(parts), min_size=1, max_size=3).map(lambda names: either([part, *names]))
        return st.one_of(st.just(re.escape(part)), st.sampled_from(wild), among)

    def like(path: str) -> st.SearchStrategy[str]:
        each = st.tuples(*map(one_for, path.split("/")))
        end, begin = each.map(lambda parts: f".*/{parts[-1]}"), each.map(lambda parts: f"{parts[0]}/.*")
        return st.one_of(each.map("/".join), end, begin)

    one = st.sampled_from(paths).flatmap(like)
    anchored = st.tuples(st.sampled_from(("", "^", r"\A")), one, st.sampled_from(("", "$", r"\Z"))).map("".join)
    return st.lists(anchored, min_size=1, max_size=3).map("|".join)


@pytest.fixture(scope="module", autouse=True)
def _quick_compilation(quick_compilation: None) -> Iterator[None]:
    """For the whole room, whose many models' programs are let go of after each module."""
    yield
    jax.clear_caches()


@pytest.fixture(params=["gated", "plain"])
def base(request: pytest.FixtureRequest) -> T5Config:
    return GATED if request.param == "gated" else PLAIN


@pytest.fixture(params=BASES)
def any_base(request: pytest.FixtureRequest) -> ModelConfig:
    return BASES[request.param]


@pytest.fixture
def tuned() -> Callable[..., tuple[ModelConfig, Params]]:
    """tuned(base, LoRA()): the model with these methods, begun; `moved` adds a random value to every parameter."""

    def make(base: ModelConfig, *methods: Method, moved: bool = False, seed: int = 0) -> tuple[ModelConfig, Params]:
        model = dataclasses.replace(base, added=methods)
        params = begin(model, init_params(base, seed), lambda text: [], seed)
        if moved:
            rng = np.random.default_rng(seed)
            params = jax.tree.map(
                lambda p: (p + 0.1 * rng.standard_normal(p.shape, np.float32)).astype(p.dtype), params
            )
        return model, params

    return make


@pytest.fixture
def batch() -> dict[str, Any]:
    """Two rows with two examples each, of different lengths, and padding."""
    rng = np.random.default_rng(3)

    def side(spans: list[list[int]], length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        segments, positions = np.zeros((2, 2, length), np.int32)
        for row, lengths in enumerate(spans):
            start = 0
            for number, size in enumerate(lengths, 1):
                segments[row, start : start + size] = number
                positions[row, start : start + size] = range(size)
                start += size
        return rng.integers(2, 64, segments.shape).astype(np.int32) * (segments > 0), segments, positions

    encoder, encoder_segments, encoder_positions = side([[5, 6], [9, 2]], 12)
    decoder, decoder_segments, decoder_positions = side([[3, 4], [2, 5]], 8)
    return {
        "encoder_input_tokens": encoder,
        "encoder_segment_ids": encoder_segments,
        "encoder_positions": encoder_positions,
        "decoder_input_tokens": decoder,
        "decoder_target_tokens": np.roll(decoder, -1, axis=1),
        "decoder_loss_weights": (decoder_segments > 0).astype(np.int32),
        "decoder_segment_ids": decoder_segments,
        "decoder_positions": decoder_positions,
    }
