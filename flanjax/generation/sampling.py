"""From logits to the next token: `transformers`' logits processors in its order, and draws of each row's own.

    processors = Processors.of([DecodingConfig(temperature=0.7, top_p=0.9), DecodingConfig()])
    tokens = choose(processors(logits, seen), keys, steps, processors.temperature > 0)        # [batch]

Every function takes logits [batch, vocab] and gives logits of the same shape, -inf where a token cannot be drawn. Each
row has its own values, and a row is what it would be alone: others only decide whether something is computed at all.
"""

import functools
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from flanjax.generation.decoding import DecodingConfig

Logits = Float[Array, "batch vocab"]
PerRow = Float[Array, "#batch"]  # a value of each row, or one for all


def penalize_repetition(logits: Logits, seen: Bool[Array, "batch vocab"], penalty: PerRow) -> Logits:
    """Tokens that a row has `seen` become less likely where `penalty` is above 1 (CTRL, arXiv 1909.05858)."""
    penalty = jnp.asarray(penalty)[..., None]
    return jnp.where(seen, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)


def keep_top_k(logits: Logits, k: Int[Array, "#batch"]) -> Logits:
    """The `k` highest of each row, and what equals the lowest of them; all where `k` is 0."""
    vocab = logits.shape[-1]
    place = jnp.broadcast_to(jnp.where(k > 0, jnp.maximum(vocab - k, 0), 0), logits.shape[:1])
    lowest = jnp.take_along_axis(jnp.sort(logits, axis=-1), place[:, None], axis=-1)
    return jnp.where(logits < lowest, -jnp.inf, logits)


def keep_top_p(logits: Logits, p: PerRow) -> Logits:
    """The fewest tokens of each row that have probability `p` together, and what equals the lowest; all for `p` 1."""
    p = jnp.asarray(p)[..., None]
    rising = jnp.sort(logits, axis=-1)
    kept = jnp.cumsum(jax.nn.softmax(rising, axis=-1), axis=-1) > 1 - p
    first = jnp.argmax(kept.at[:, -1].set(True), axis=-1)  # the highest stays, whatever rounding says
    cut = logits < jnp.take_along_axis(rising, first[:, None], axis=-1)
    return jnp.where(cut & (p < 1), -jnp.inf, logits)


def keep_min_p(logits: Logits, p: PerRow) -> Logits:
    """The tokens of each row that are at least `p` times as likely as its likeliest."""
    likelihoods = jax.nn.softmax(logits, axis=-1)
    least = jnp.asarray(p)[..., None] * likelihoods.max(axis=-1, keepdims=True)
    return jnp.where(likelihoods < least, -jnp.inf, logits)


def _if_any(needed: Bool[Array, "#batch"], process: Callable[[Logits], Logits], logits: Logits) -> Logits:
    return jax.lax.cond(jnp.any(needed), process, lambda logits: logits, logits)


class Processors(NamedTuple):
    """What is done to the logits of each row: `DecodingConfig`'s values as arrays, so that no mix of them is a program.

    Attributes:
      repetition_penalty: 1 for none.
      temperature: 0 where nothing is drawn.
      top_k: 0 for all.
      top_p: 1 for all.
      min_p: 0 for all.
    """

    repetition_penalty: PerRow
    temperature: PerRow
    top_k: Int[Array, "#batch"]
    top_p: PerRow
    min_p: PerRow

    @classmethod
    def of(cls, rows: Sequence[DecodingConfig]) -> "Processors":
        """The values of these rows, as numpy arrays."""
        fields: dict[str, Any] = {
            name: np.array([getattr(row, name) for row in rows], np.int32 if name == "top_k" else np.float32)
            for name in cls._fields
        }
        return cls(**fields)

    def __call__(self, logits: Logits, seen: Bool[Array, "batch vocab"] | None) -> Logits:
        """The processed logits; `seen` is used by the repetition penalty alone."""
        if seen is not None:
            penalize = functools.partial(penalize_repetition, seen=seen, penalty=self.repetition_penalty)
            logits = _if_any(self.repetition_penalty != 1, penalize, logits)
        temperature = jnp.asarray(self.temperature)
        logits = logits / jnp.where(temperature > 0, temperature, 1)[..., None]
        logits = _if_any(self.top_k > 0, functools.partial(keep_top_k, k=self.top_k), logits)
        logits = _if_any(self.top_p < 1, functools.partial(keep_top_p, p=self.top_p), logits)
        return _if_any(self.min_p > 0, functools.partial(keep_min_p, p=self.min_p), logits)


def sample_numbers(inputs: Sequence[Sequence[int]], num_samples: int) -> list[range]:
    """The numbers of each input's samples, which go on where it is asked again: `[x, x]` is two samples of `[x]`."""
    times: Counter[tuple[int, ...]] = Counter()
    numbers = []
    for ids in map(tuple, inputs):
        numbers.append(range(times[ids], times[ids] + num_samples))
        times[ids] += num_samples
    return numbers


def row_number(ids: Sequence[int], sample: int) -> tuple[int, int]:
    """Two numbers of 32 bits from which the draws of a sample follow: a checksum of its input, and its own.

    So neither the batch nor the order changes what is drawn.
    """
    return zlib.crc32(np.asarray(ids, np.int32).tobytes()), sample


def row_keys(seeds: Int[Array, " rows"], numbers: Int[Array, "rows 2"]) -> Array:
    """One key for each row, [rows], of its seed and its two numbers."""

    def key(seed: Array, pair: Array) -> Array:
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), pair[0]), pair[1])

    return jax.vmap(key)(seeds, numbers)


def choose(
    logits: Logits, keys: Array, steps: Int[Array, " batch"], drawn: Bool[Array, " batch"]
) -> Int[Array, " batch"]:
    """The most likely token of each row, or where it is `drawn` one for its step by probability, from its key."""
    likeliest = jnp.argmax(logits, axis=-1)

    def draw() -> Array:
        own = jax.vmap(jax.random.fold_in)(keys, steps)
        return jnp.where(drawn, jax.vmap(jax.random.categorical)(own, logits), likeliest)

    return jax.lax.cond(jnp.any(drawn), draw, lambda: likeliest).astype(jnp.int32)
