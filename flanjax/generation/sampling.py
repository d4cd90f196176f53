"""From logits to the next token: `transformers`' logits processors in its order, and draws of each row's own.

    processors = Processors.of(DecodingConfig(temperature=0.7, top_p=0.9))
    tokens = choose(processors(logits, seen), keys, step)        # [batch]

Every function takes logits [batch, vocab] and gives logits of the same shape, -inf where a token cannot be drawn.
"""

import dataclasses
import zlib
from collections import Counter
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from flanjax.generation.decoding import DecodingConfig

Logits = Float[Array, "batch vocab"]
Number = float | Float[Array, ""]


def penalize_repetition(logits: Logits, seen: Bool[Array, "batch vocab"], penalty: Number) -> Logits:
    """Tokens that a row has `seen` become less likely where `penalty` is above 1 (CTRL, arXiv 1909.05858)."""
    return jnp.where(seen, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)


def keep_top_k(logits: Logits, k: int) -> Logits:
    """The `k` highest of each row, and what equals the lowest of them."""
    lowest = jax.lax.top_k(logits, min(k, logits.shape[-1]))[0][:, -1:]
    return jnp.where(logits < lowest, -jnp.inf, logits)


def keep_top_p(logits: Logits, p: Number) -> Logits:
    """The fewest tokens of each row whose probabilities add up to `p`, and what equals the lowest of them."""
    rising = jnp.sort(logits, axis=-1)
    kept = jnp.cumsum(jax.nn.softmax(rising, axis=-1), axis=-1) > 1 - p
    first = jnp.argmax(kept.at[:, -1].set(True), axis=-1)  # the highest stays, whatever rounding says
    return jnp.where(logits < jnp.take_along_axis(rising, first[:, None], axis=-1), -jnp.inf, logits)


def keep_min_p(logits: Logits, p: Number) -> Logits:
    """The tokens of each row that are at least `p` times as likely as its likeliest."""
    likelihoods = jax.nn.softmax(logits, axis=-1)
    return jnp.where(likelihoods < p * likelihoods.max(axis=-1, keepdims=True), -jnp.inf, logits)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Processors:
    """What is done to logits, None for what is not; a pytree, so that another number is no other program.

    Attributes:
      repetition_penalty: as `DecodingConfig` has it, and the others too.
      temperature: None where nothing is drawn.
      top_p: as there.
      min_p: as there.
      top_k: as there; part of the program.
    """

    repetition_penalty: Number | None = None
    temperature: Number | None = None
    top_p: Number | None = None
    min_p: Number | None = None
    top_k: int | None = dataclasses.field(default=None, metadata={"static": True})

    @classmethod
    def of(cls, decoding: DecodingConfig) -> "Processors":
        """Those that change anything."""
        return cls(
            repetition_penalty=None if decoding.repetition_penalty == 1 else float(decoding.repetition_penalty),
            temperature=float(decoding.temperature) or None,
            top_p=None if decoding.top_p == 1 else float(decoding.top_p),
            min_p=float(decoding.min_p) or None,
            top_k=decoding.top_k or None,
        )

    def __call__(self, logits: Logits, seen: Bool[Array, "batch vocab"] | None) -> Logits:
        """The processed logits; `seen` is used by the repetition penalty alone."""
        if self.repetition_penalty is not None and seen is not None:
            logits = penalize_repetition(logits, seen, self.repetition_penalty)
        if self.temperature is not None:
            logits = logits / self.temperature
        if self.top_k is not None:
            logits = keep_top_k(logits, self.top_k)
        if self.top_p is not None:
            logits = keep_top_p(logits, self.top_p)
        if self.min_p is not None:
            logits = keep_min_p(logits, self.min_p)
        return logits


def row_numbers(inputs: Sequence[Sequence[int]], num_samples: int) -> np.ndarray:
    """Two numbers for each sample of each input, from which its draws follow; uint32 [inputs, num_samples, 2].

    They are a checksum of the input's ids and the number of the sample, so that neither the batch nor the order
    changes what is drawn. An input that is asked twice is twice as many samples of one: `[x, x]` with one sample each
    is answered as `[x]` with two.
    """
    times: Counter[int] = Counter()
    numbers = np.zeros((len(inputs), num_samples, 2), np.uint32)
    for i, ids in enumerate(inputs):
        name = zlib.crc32(np.asarray(ids, np.int32).tobytes())
        numbers[i] = [(name, times[name] + sample) for sample in range(num_samples)]
        times[name] += num_samples
    return numbers


def row_keys(seed: Int[Array, ""], numbers: Int[Array, "rows 2"]) -> Array:
    """One key for each row of `row_numbers`, [rows]."""
    base = jax.random.key(seed)
    return jax.vmap(lambda pair: jax.random.fold_in(jax.random.fold_in(base, pair[0]), pair[1]))(numbers)


def choose(logits: Logits, keys: Array | None, step: Int[Array, ""]) -> Int[Array, " batch"]:
    """The most likely token of each row, or with keys [batch] one drawn for this step by its probability."""
    if keys is None:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    keys = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)
