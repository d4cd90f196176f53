"""Tiny T5X checkpoints for the tests: their models, and what lies in the file `checkpoint`."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import flax.serialization
import jax
import numpy as np

from flanjax.models.config import T5Config
from flanjax.models.t5 import abstract_params
from flanjax.tuning.partition import flatten

TINY = T5Config(
    vocab_size=40,
    embed_dim=16,
    num_heads=2,
    head_dim=4,
    mlp_dim=24,
    num_encoder_layers=2,
    num_decoder_layers=3,
    dropout_rate=0.1,
)
UMT5 = dataclasses.replace(TINY, relpos_per_layer=True)
V1_0 = dataclasses.replace(TINY, tied_head=True, mlp_activations=("relu",))


def random_params(config: T5Config, seed: int = 0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), abstract_params(config))


def assert_same_bits(left, right):
    left, right = flatten(left), flatten(right)
    assert left.keys() == right.keys()
    for name, leaf in left.items():
        one, other = np.asarray(leaf), np.asarray(right[name])
        assert one.dtype == other.dtype, name
        np.testing.assert_array_equal(one.view(np.uint32), other.view(np.uint32), name)


def contents(folder: Path):
    """The file `checkpoint` as flax reads it."""
    return flax.serialization.msgpack_restore((folder / "checkpoint").read_bytes())


def rewrite(folder: Path, change: Callable[[dict], dict | None]):
    tree = contents(folder)
    tree = change(tree) or tree
    (folder / "checkpoint").write_bytes(flax.serialization.msgpack_serialize(tree))


def specs(node, name=""):
    """The specifications in a tree by name."""
    if isinstance(node, dict) and "kvstore" in node:
        yield name, node
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from specs(value, f"{name}.{key}" if name else key)
