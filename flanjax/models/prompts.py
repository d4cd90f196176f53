"""Learnt vectors that are no weights: a prompt before an example's tokens, a prefix before the keys of an attention.

A row with a prompt of 3 positions and two examples, [5, 6, 1] and [7, 1], whose prompts are number 0 and number 2:

    encoder_input_tokens   0 0 0 5 6 1 2 2 2 7 1 0
    encoder_segment_ids    1 1 1 1 1 1 2 2 2 2 2 0

The first 3 positions of every segment hold the number of its prompt, and the vectors of that prompt take the place of
their embeddings. So packed rows are right by themselves: distances, masks and lengths count the prompt as part of its
example. A prefix needs no positions: every segment of a row sees the same keys and values. A decoder's rows have their
prompts in `decoder_input_tokens` in the same way.
"""

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from flanjax.models.config import Addition, Extensible

Layer = TypeVar("Layer", bound=nnx.Module)


class Prompt(nnx.Module):
    """What a tuning method puts before an example; its parameters lie in the lowest stack, `encoder/prompt` or so."""

    @abc.abstractmethod
    def __call__(self) -> Float[Array, "prompts length embed"]:
        """The vectors of every prompt."""


class Prefix(nnx.Module):
    """What a tuning method puts before the keys and values of one attention, in every layer of a stack."""

    length: int

    @abc.abstractmethod
    def __call__(self) -> tuple[Float[Array, "prefix heads head_dim"], Float[Array, "prefix heads head_dim"]]:
        """Keys and values of one layer."""


class Prefixes(nnx.Module):
    """What makes prefixes out of parameters that the layers of a stack share; it lies under `encoder/prefix` or so."""

    @abc.abstractmethod
    def __call__(self) -> dict[str, Prefix]:
        """The prefix of each attention by the attention's name, stacked over layers."""


def prompt_of(config: Extensible) -> Prompt | None:
    """The prompt that a tuning method adds to a model, where one does."""
    return next((addition.prompt(config) for addition in config.added if addition.prompt_length), None)


def prefixes_of(added: Sequence[Addition], layer: nnx.Module, count: int, path: str) -> Prefixes | None:
    """What makes the prefixes of a stack of such layers, where a tuning method has it."""
    found = (addition.prefixes(layer, count, path) for addition in added)
    return next((prefixes for prefixes in found if prefixes is not None), None)


def with_prefixes(layers: Layer, prefixes: Callable[[], Mapping[str, Prefix]] | None) -> Layer:
    """Stacked layers whose attentions have the prefixes; the module that is given stays as it is."""
    if prefixes is None:
        return layers
    layers = jax.tree.map(lambda leaf: leaf, layers)
    for name, prefix in prefixes().items():
        getattr(layers, name).prefix = prefix
    return layers


def positions_in_segments(segment_ids: Int[Array, "batch length"]) -> Int[Array, "batch length"]:
    """The distance of each position from the start of its segment; segments [1, 1, 1, 2, 2] give [0, 1, 2, 0, 1]."""
    positions = jnp.arange(segment_ids.shape[1])
    starts = jnp.pad(segment_ids[:, 1:] != segment_ids[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    return positions - jax.lax.cummax(jnp.where(starts, positions, 0), axis=1)


def insert_prompts(
    x: Float[Array, "batch length embed"],
    prompts: Float[Array, "prompts prompt_length embed"],
    tokens: Int[Array, "batch length"],
    offsets: Int[Array, "batch length"],
    segment_ids: Int[Array, "batch length"],
) -> Float[Array, "batch length embed"]:
    """`x` with each segment's first positions replaced by its prompt, whose number `tokens` holds there.

    `offsets` are the distances from the start of the segment, as `positions_in_segments` gives them.
    """
    count, length, embed = prompts.shape
    inside = (offsets < length) & (segment_ids != 0)
    index = jnp.where(inside, jnp.clip(tokens, 0, count - 1) * length + offsets, 0)
    return jnp.where(inside[..., None], prompts.reshape(-1, embed).astype(x.dtype)[index], x)
