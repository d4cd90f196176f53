"""Token cross-entropy over the vocabulary, computed in chunks so that float32 logits never exist for a whole batch.

    sums = cross_entropy(hidden, model.head(), targets, weights, LossConfig())
    mean = sums.loss / sums.tokens                      # over the tokens of every row, micro-batch and host

The loss of one token, with logits x [vocab], target t and log Z = logsumexp(x), is T5X's (t5x/losses.py):

    log Z - sum_v soft(v) x(v)  -  c  +  z_loss (log Z)^2

`soft` holds `1 - label_smoothing` at the target and `label_smoothing / (vocab - 1)` elsewhere; the constant
c = -sum_v soft(v) log soft(v) makes the best possible prediction cost 0. z_loss (1e-4 in the published recipes)
keeps log Z near 0, so that logits do not drift away in bfloat16.

The gradient of a sum is linear in its scalar cotangent, so the forward pass under differentiation already computes
d_hidden and d_head, chunk by chunk, and the backward pass multiplies them by that scalar: three products with the
head instead of the four that recomputing the logits costs. Without differentiation only the sums are computed.

A head's bias and soft cap (`flanjax.models.head`) are part of the logits x, and of their gradient.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

from flanjax.errors import FlanjaxError
from flanjax.models.head import Head
from flanjax.sharding.rules import constrain


class LossConfigError(FlanjaxError):
    """A loss setting outside its range."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What is added to plain cross-entropy, and how many tokens are computed at once.

    Attributes:
      z_loss: coefficient of (log Z)^2; 0 turns it off.
      label_smoothing: probability mass spread over the other tokens, in [0, 1).
      chunk_tokens: tokens a device computes logits for at once; a chunk's float32 logits take
        `4 * chunk_tokens * vocab` bytes (131 MB for 1,024 tokens and T5's vocabulary), three times at the worst.

    Raises:
      LossConfigError: a value outside its range.
    """

    z_loss: float = 1e-4
    label_smoothing: float = 0.0
    chunk_tokens: int = 1024

    def __post_init__(self) -> None:
        if not 0 <= self.z_loss < math.inf:
            raise LossConfigError(f"LossConfig.z_loss is {self.z_loss!r}: it must be 0 or positive")
        if not 0 <= self.label_smoothing < 1:
            raise LossConfigError(f"LossConfig.label_smoothing is {self.label_smoothing!r}: it must lie in [0, 1)")
        if self.chunk_tokens < 1:
            raise LossConfigError(f"LossConfig.chunk_tokens is {self.chunk_tokens!r}: it must be at least 1")


class LossSums(NamedTuple):
    """Weighted sums over tokens, float32 scalars; only `loss` carries a gradient."""

    loss: Float[Array, ""]  # cross-entropy with label smoothing and z-loss
    z_loss: Float[Array, ""]  # the z-loss part of it
    correct: Float[Array, ""]  # weights of the tokens whose target has the largest logit (a tie counts)
    tokens: Float[Array, ""]  # the weights


def cross_entropy(
    hidden: Float[Array, "tokens embed"],
    head: Head,
    targets: Int[Array, " tokens"],
    weights: Num[Array, " tokens"],
    config: LossConfig,
    *,
    shards: int = 1,
) -> LossSums:
    """Sums of the token losses of the head's logits of `hidden` against `targets`.

    The product takes the kernel in the dtype of `hidden` and accumulates in float32, as `Head.logits` does.

    Arguments:
      hidden: decoder outputs, rows one after the other.
      head: of the model, float32.
      targets: token ids; those of weight 0 do not matter.
      weights: 1 on tokens that count, 0 on padding.
      config: z-loss, smoothing and chunk size.
      shards: devices the rows are spread over. Each then adds up its own chunks, and the head's gradient crosses
        the network once instead of once a chunk.

    Returns:
      Sums, not means: divide by the tokens of every row, micro-batch and host together.
    """
    loss, rest = _loss_sums(hidden, head, targets, weights.astype(jnp.float32), config, shards)
    return LossSums(loss, *jax.lax.stop_gradient(rest))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _loss_sums(hidden: Array, head: Head, targets: Array, weights: Array, config: LossConfig, shards: int) -> tuple:
    cut = _Cut.of(len(targets), config.chunk_tokens, shards)
    cast = dataclasses.replace(head, kernel=head.kernel.astype(hidden.dtype))

    def add(sums: LossSums, chunk: _Chunk) -> tuple[LossSums, None]:
        return jax.tree.map(jnp.add, sums, _sums(_score(chunk, cast), config)), None

    sums, _ = jax.lax.scan(add, _zero_sums(), cut.split(_Chunk(hidden, targets, weights)))
    return sums.loss, sums[1:]


def _loss_sums_forward(
    hidden: Array, head: Head, targets: Array, weights: Array, config: LossConfig, shards: int
) -> tuple[tuple, tuple]:
    cut = _Cut.of(len(targets), config.chunk_tokens, shards)
    cast = dataclasses.replace(head, kernel=head.kernel.astype(hidden.dtype))

    def add(carry: tuple[LossSums, Head], chunk: _Chunk) -> tuple[tuple[LossSums, Head], Array]:
        """One chunk more in the sums and the head's gradient; and d_hidden of it, [shards, size, embed]."""
        sums, d_head = carry
        scored = _score(chunk, cast)
        sums = jax.tree.map(jnp.add, sums, _sums(scored, config))
        d_product = _d_product(scored, head, config)
        d_bias = None if head.bias is None else d_product.sum(axis=1)
        d_product = d_product.astype(hidden.dtype)
        d_hidden = jnp.einsum(f"stv,{head.letters}->ste", d_product, cast.kernel)
        d_kernel = jnp.einsum(f"ste,stv->s{head.letters}", chunk.hidden, d_product, preferred_element_type=jnp.float32)
        d_chunk = dataclasses.replace(head, kernel=d_kernel, bias=d_bias)
        # Adding to zero is a pass over the whole head, worth leaving out where one chunk is all there is.
        return (sums, jax.tree.map(jnp.add, d_head, d_chunk) if cut.number > 1 else d_chunk), d_hidden

    def zero(x: Array, *axes: str | None) -> Array:
        return constrain(jnp.zeros((cut.shards, *x.shape), jnp.float32), "batch", *axes)

    bias = None if head.bias is None else zero(head.bias, "vocab")
    # The shards of rows lie where the embedding's width would: only the vocabulary is spread as well.
    by_vocab = [axis if axis == "vocab" else None for axis in head.axes]
    zeros = dataclasses.replace(head, kernel=zero(head.kernel, *by_vocab), bias=bias)
    chunks = cut.split(_Chunk(hidden, targets, weights))
    (sums, d_head), d_hidden = jax.lax.scan(add, (_zero_sums(), zeros), chunks)
    d_head = jax.tree.map(lambda d, x: d.sum(axis=0).astype(x.dtype), d_head, head)
    d_head = dataclasses.replace(d_head, kernel=constrain(d_head.kernel, *head.axes))
    return (sums.loss, sums[1:]), (cut.join(d_hidden), d_head)


def _loss_sums_backward(config: LossConfig, shards: int, gradients: tuple[Array, Head], cotangents: tuple) -> tuple:
    scale = cotangents[0]
    return (*jax.tree.map(lambda d: d * scale.astype(d.dtype), gradients), None, None)


_loss_sums.defvjp(_loss_sums_forward, _loss_sums_backward)


class _Chunk(NamedTuple):
    """A chunk of every shard's tokens: hidden [shards, size, embed], targets and weights [shards, size]."""

    hidden: Array
    targets: Array
    weights: Array


class _Cut(NamedTuple):
    """How tokens are cut: `shards` equal runs side by side, each in `number` chunks of `size` tokens."""

    tokens: int
    shards: int
    number: int
    size: int

    @classmethod
    def of(cls, tokens: int, chunk_tokens: int, shards: int) -> "_Cut":
        """The fewest chunks, or a few more where these divide the tokens; else fewer padding tokens than chunks."""
        shards = shards if tokens % shards == 0 else 1
        each = tokens // shards
        least = max(1, math.ceil(each / chunk_tokens))
        number = next((n for n in range(least, 2 * least) if each % n == 0), least)
        return cls(tokens, shards, number, math.ceil(each / number))

    def split(self, whole: _Chunk) -> _Chunk:
        """Arrays [tokens, ...] as [number, shards, size, ...], padded with zeros."""
        return jax.tree.map(self._split_one, whole)

    def _split_one(self, x: Array) -> Array:
        x = x.reshape(self.shards, -1, *x.shape[1:])
        padding = self.number * self.size - x.shape[1]
        if padding:
            x = jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))
        x = x.reshape(self.shards, self.number, self.size, *x.shape[2:]).swapaxes(0, 1)
        return constrain(x, None, "batch", *[None] * (x.ndim - 2)) if self.shards > 1 else x

    def join(self, x: Array) -> Array:
        """The inverse of `split`, without the padding."""
        x = x.swapaxes(0, 1).reshape(self.shards, self.number * self.size, *x.shape[3:])
        return x[:, : self.tokens // self.shards].reshape(self.tokens, *x.shape[2:])


class _Scored(NamedTuple):
    """Logits and their exponentials [shards, size, vocab]; the rest [shards, size, 1]."""

    logits: Array
    exponentials: Array  # of the logits less the largest
    total: Array  # of the exponentials
    largest: Array
    at_target: Array
    targets: Array
    weights: Array

    @property
    def log_z(self) -> Array:
        return jnp.log(self.total) + self.largest


def _zero_sums() -> LossSums:
    return LossSums(*[jnp.zeros((), jnp.float32)] * 4)


def _score(chunk: _Chunk, head: Head) -> _Scored:
    product = jnp.einsum(f"ste,{head.letters}->stv", chunk.hidden, head.kernel, preferred_element_type=jnp.float32)
    logits = head.bounded(product)
    targets = chunk.targets[..., None]
    largest, at_target = jnp.max(logits, axis=-1, keepdims=True), jnp.take_along_axis(logits, targets, axis=-1)
    # The barrier keeps the exponentials, in the place of the logits: XLA would compute them again in their sum and in
    # the gradient, on a CPU at half the speed.
    exponentials = jnp.exp(logits - largest)
    exponentials, largest, at_target = jax.lax.optimization_barrier((exponentials, largest, at_target))
    total = jnp.sum(exponentials, axis=-1, keepdims=True)
    return _Scored(logits, exponentials, total, largest, at_target, targets, chunk.weights[..., None])


def _smoothing(config: LossConfig, vocab: int) -> tuple[float, float, float]:
    """Probability at the target, elsewhere, and the entropy of that distribution."""
    on, off = 1 - config.label_smoothing, config.label_smoothing / (vocab - 1)
    entropy = -on * math.log(on) - ((vocab - 1) * off * math.log(off) if off else 0.0)
    return on, off, entropy


def _sums(scored: _Scored, config: LossConfig) -> LossSums:
    on, off, entropy = _smoothing(config, scored.logits.shape[-1])
    expected, log_z, weights = (on - off) * scored.at_target, scored.log_z, scored.weights
    if off:
        expected = expected + off * jnp.sum(scored.logits, axis=-1, keepdims=True)
    z_loss = config.z_loss * jnp.square(log_z)
    loss = log_z - expected - entropy + z_loss
    correct = scored.at_target >= scored.largest
    return LossSums(
        loss=jnp.sum(loss * weights),
        z_loss=jnp.sum(z_loss * weights),
        correct=jnp.sum(correct * weights),
        tokens=jnp.sum(weights),
    )


def _d_product(scored: _Scored, head: Head, config: LossConfig) -> Array:
    """The gradient of what the soft cap is given."""
    vocab = scored.logits.shape[-1]
    on, off, _ = _smoothing(config, vocab)
    # A comparison with every token id fuses into the product's pass; scattering at the targets does not.
    soft = jnp.where(scored.targets == jnp.arange(vocab), on, off)
    of_exponentials = (1 + 2 * config.z_loss * scored.log_z) / scored.total
    d_logits = (of_exponentials * scored.exponentials - soft) * scored.weights
    # The derivative of cap * tanh(x / cap) is 1 - tanh(x / cap)^2.
    return d_logits * (1 - jnp.square(scored.logits / head.softcap)) if head.softcap else d_logits
