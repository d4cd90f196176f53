"""The key-value cache of either kind of model, as decoding uses it: filled, repeated, reordered, stepped.

start = prefill(model, tokens, segments, max_length=32)       # [batch] rows
start = start.repeated(4)                                     # four rows of each, next to each other
logits, cache = step(model, start.last, start.position, start.cache)
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flanjax.generation.batches import PAD_ID
from flanjax.models import decoder, t5
from flanjax.models.decoder import Decoder
from flanjax.models.t5 import T5
from flanjax.sharding.rules import constrain

Cache = t5.Cache | decoder.Cache

_ROWS_FIRST = ("cross_mask",)  # the other arrays are stacked over layers
_OF_ONE_INPUT = ("cross_keys", "cross_values", *_ROWS_FIRST)  # the same for all rows of one input


class Start(NamedTuple):
    """Where decoding begins.

    Attributes:
      last: the token that enters first: T5's start token, or the last of a decoder's text.
      position: where it enters the cache, of each row.
      cache: of the inputs.
      empty: rows that only fill up the batch.
      seen: which tokens stand in a row before its answer.
    """

    last: Int[Array, " batch"]
    position: Int[Array, " batch"]
    cache: Cache
    empty: Bool[Array, " batch"]
    seen: Bool[Array, "batch vocab"]

    def repeated(self, times: int) -> "Start":
        """Each row so many times, one after the other."""
        if times == 1:
            return self
        cache = self.cache._replace(
            **{name: x.repeat(times, axis=0 if name in _ROWS_FIRST else 1) for name, x in self.cache._asdict().items()}
        )
        last, position, empty, seen = (
            x.repeat(times, axis=0) for x in (self.last, self.position, self.empty, self.seen)
        )
        return Start(constrain(last, "batch"), position, cache, empty, seen)


def prefill(
    model: T5 | Decoder,
    tokens: Int[Array, "batch length"],
    segments: Int[Array, "batch length"],
    max_length: int,
    *,
    prefix_lm: bool = False,
) -> Start:
    """The cache of these inputs with room for `max_length` tokens more; padding follows the inputs."""
    tokens, segments = (constrain(jnp.asarray(x), "batch", None) for x in (tokens, segments))
    batch, length = tokens.shape
    rows, vocab = jnp.arange(batch)[:, None], model.config.vocab_size
    empty = ~segments.any(axis=1)
    if isinstance(model, T5):
        start = jnp.zeros_like(tokens[:, 0])  # PAD_ID, at position 0
        cache: Cache = model.start_cache(model.encode(tokens, segments), segments, max_length)
        return Start(start, start, cache, empty, jnp.zeros((batch, vocab), bool).at[:, PAD_ID].set(True))
    cache = model.prefill(tokens, segments, length + max_length, bidirectional=segments if prefix_lm else None)
    # Placeholders of a learnt prompt are no words, and padding is none.
    words = (segments != 0) & (jnp.cumsum(segments, axis=1) > model.config.prompt_length)
    seen = jnp.zeros((batch, vocab), bool).at[rows, jnp.where(words, tokens, vocab)].set(True, mode="drop")
    # The last token of the text enters again, in its own place, so that there is one way to the next token.
    position = jnp.maximum(segments.sum(axis=1) - 1, 0)
    last = jnp.take_along_axis(tokens, position[:, None], axis=1)[:, 0]
    return Start(last, position, cache, empty, seen)


def step(
    model: T5 | Decoder, last: Int[Array, " batch"], position: Int[Array, " batch"], cache: Any
) -> tuple[Float[Array, "batch vocab"], Any]:
    """Logits of the token after `last`, which enters at `position`, and the cache with it."""
    hidden, cache = model.decode_step(last, position, cache)
    return model.logits(hidden), cache


def reordered(cache: Any, rows: Int[Array, " batch"]) -> Any:
    """A cache whose row i goes on from what row `rows[i]`, of the same input, has held so far."""
    moved = {name: jnp.take(x, rows, axis=1) for name, x in cache._asdict().items() if name not in _OF_ONE_INPUT}
    return cache._replace(**moved)
