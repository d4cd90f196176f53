"""The parts of a block: projection, RMSNorm, feed-forward, attention, dropout, encoder and decoder layer.

Constructors only describe: every `nnx.Param` holds a `jax.ShapeDtypeStruct`, its logical `axes` and the `stddev` of
its initialiser (None: ones). `flanjax.models.t5.build` puts arrays in their place. Nothing is shared between
modules, and activations take the dtype of the layer's input.
"""

import abc
import dataclasses
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Optional

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from flanjax.models.attention import CachedKeys, PrefixKeys, attention, attention_of_one
from flanjax.models.config import T5Config
from flanjax.models.decoder_config import DecoderConfig
from flanjax.models.prompts import Prefix

if TYPE_CHECKING:
    from flanjax.models.positions import RelativePositionBias

ACTIVATION_FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "exact_gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu": lambda x: jax.nn.gelu(x, approximate=True),
    "linear": lambda x: x,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "squared_relu": lambda x: jnp.square(jax.nn.relu(x)),
    "tanh": jnp.tanh,
}


def parameter(
    shape: tuple[int, ...],
    axes: tuple[str, ...],
    stddev: float | None,
    *,
    uniform: bool = False,
    dtype: DTypeLike = jnp.float32,
) -> nnx.Param:
    """The description of a parameter; normal or uniform with this deviation at the start, or ones."""
    return nnx.Param(jax.ShapeDtypeStruct(shape, dtype), axes=axes, stddev=stddev, uniform=uniform)


@dataclasses.dataclass(frozen=True)
class Dropout:
    """Inverted dropout from an explicit key; the identity when the key is None.

    One mask serves the whole length of a row, as in Mesh TensorFlow T5 and T5X: a feature (or a head's key, inside
    attention) is dropped for every query alike. That is the published recipe, and it draws a length-th of the bits.
    """

    rate: float
    key: Array | None

    def at(self, site: int | str | Array) -> "Dropout":
        """The same rate under a key of its own for this layer number or named place."""
        if self.key is None:
            return self
        number = zlib.crc32(site.encode()) if isinstance(site, str) else site
        return dataclasses.replace(self, key=jax.random.fold_in(self.key, number))

    def __call__(self, x: Array, *, broadcast_axis: int = 1) -> Array:
        """`x` [batch, length, ...] with entries zeroed, the rest scaled by 1 / (1 - rate)."""
        if self.key is None or self.rate == 0:
            return x
        shape = tuple(1 if axis == broadcast_axis % x.ndim else size for axis, size in enumerate(x.shape))
        keep = jax.random.bernoulli(self.key, 1 - self.rate, shape)
        return x * (keep / (1 - self.rate)).astype(x.dtype)


NO_DROPOUT = Dropout(0.0, None)


def project(x: Float[Array, "batch length in"], kernel: Float[Array, "in out"]) -> Float[Array, "batch length out"]:
    """`x @ kernel`, in the dtype of x."""
    # Two dimensions: XLA:CPU computes the weight gradient of a three-dimensional product at half the speed.
    flat = x.reshape(-1, x.shape[-1]) @ kernel.astype(x.dtype)
    return flat.reshape(*x.shape[:-1], kernel.shape[-1])


class Adapter(nnx.Module):
    """What a tuning method puts around a module: it may change what goes in, and what comes out."""

    def before(self, x: Float[Array, "batch length in"]) -> Float[Array, "batch length in"]:
        """What the module is given instead of `x`."""
        return x

    def after(
        self, x: Float[Array, "batch length in"], out: Float[Array, "batch length out"], dropout: Dropout
    ) -> Float[Array, "batch length out"]:
        """What is given instead of `out`, which the module makes of `before(x)`."""
        return out

    def around(
        self, module: "Adaptable", inner: Callable[[Array], Array], dropout: Dropout
    ) -> Callable[[Array], Array]:
        """`inner`, the module with the adapters before this one, with this one around it.

        Only an adapter that asks for the module's own parameters needs another way.
        """
        return lambda x: self.after(x, inner(self.before(x)), dropout)


class Packed(nnx.Module):
    """A frozen kernel that is kept in another form than an array of floats, in the place of `Linear.kernel`."""

    @abc.abstractmethod
    def unpack(self) -> Float[Array, "in out"]:
        """The kernel that it stands for, float32."""


class Adaptable(nnx.Module):
    """A module that adapters are attached to by name, each around those before it.

    Attributes:
      shape: the width of what goes in first, of what comes out last.
      axes: their logical names.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    adapters: tuple[str, ...] = ()

    def attach(self, name: str, adapter: Adapter) -> None:
        """Adds an adapter, whose parameters lie under `name`."""
        setattr(self, name, adapter)
        self.adapters = (*self.adapters, name)

    def adapted(self, own: Callable[[Array], Array], x: Array, dropout: Dropout = NO_DROPOUT) -> Array:
        """`own(x)`, what the module computes by itself, with its adapters around it; the dropout is theirs alone."""
        for name in self.adapters:
            own = getattr(self, name).around(self, own, dropout.at(name))
        return own(x)


class Linear(Adaptable):
    """A projection; `kernel` [in, out], and `bias` [out] where it is asked for (T5 has none)."""

    kernel: nnx.Param | Packed
    bias: nnx.Param | None = None

    def __init__(self, size_in: int, size_out: int, axes: tuple[str, str], stddev: float, *, bias: bool = False):
        self.shape, self.axes = (size_in, size_out), axes
        self.kernel = parameter(self.shape, axes, stddev)
        if bias:
            self.bias = parameter((size_out,), axes[1:], 0.0)

    def __call__(
        self, x: Float[Array, "batch length in"], dropout: Dropout = NO_DROPOUT
    ) -> Float[Array, "batch length out"]:
        """`x @ kernel + bias` with its adapters, in the dtype of x; the dropout is theirs alone."""
        return self.adapted(self._affine, x, dropout)

    def _affine(self, x: Array) -> Array:
        product = self._product(x)
        return product if self.bias is None else product + self.bias[...].astype(x.dtype)

    def _product(self, x: Array) -> Array:
        """`x @ kernel`."""
        if isinstance(self.kernel, Packed):
            # The backward pass unpacks again: what the loop over layers keeps for it, it keeps for every layer.
            return jax.checkpoint(lambda x: project(x, self.weight()))(x)
        return project(x, self.weight())

    def weight(self) -> Float[Array, "in out"]:
        """What an input is multiplied by without the adapters: the kernel, whatever form it is kept in."""
        return self.kernel.unpack() if isinstance(self.kernel, Packed) else self.kernel[...]


class RMSNorm(Adaptable):
    """Scale by the reciprocal root mean square, in float32; no mean, no bias (Zhang and Sennrich 2019).

    It is over the residual's width, or over a head's where `head_dim` says so. With `plus_one`, `scale` is kept as its
    distance from 1 (Gemma).
    """

    def __init__(self, config: T5Config | DecoderConfig, *, head_dim: int | None = None, plus_one: bool = False):
        self.epsilon = config.layer_norm_epsilon
        self.plus_one = plus_one
        self.shape, self.axes = ((config.embed_dim,), ("embed",)) if head_dim is None else ((head_dim,), ("kv",))
        self.scale = parameter(self.shape, self.axes, 0.0 if plus_one else None)

    def __call__(self, x: Float[Array, "*batch embed"]) -> Float[Array, "*batch embed"]:
        """Normalised `x` in its own dtype, with its adapters."""
        return self.adapted(self._normalised, x)

    def _normalised(self, x: Array) -> Array:
        x32 = x.astype(jnp.float32)
        variance = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
        scale = self.scale[...] + 1 if self.plus_one else self.scale[...]
        return (x32 * jax.lax.rsqrt(variance + self.epsilon)).astype(x.dtype) * scale.astype(x.dtype)


class LayerNorm(RMSNorm):
    """Mean to 0 and variance to 1, in float32, then scale and bias (Ba et al. 2016)."""

    def __init__(self, config: DecoderConfig, *, head_dim: int | None = None):
        super().__init__(config, head_dim=head_dim)
        self.bias = parameter(self.shape, self.axes, 0.0)

    def _normalised(self, x: Array) -> Array:
        x32 = x.astype(jnp.float32)
        scaled = super()._normalised(x32 - jnp.mean(x32, axis=-1, keepdims=True))
        return (scaled + self.bias[...]).astype(x.dtype)


class Mlp(Adaptable):
    """Feed-forward block: `wi` and `wo`, or gated `wi_0`, `wi_1` and `wo`. Adapters are around the whole of it."""

    def __init__(self, config: T5Config | DecoderConfig):
        embed, inner = config.embed_dim, config.mlp_dim
        decoder = config if isinstance(config, DecoderConfig) else None
        deviations = (embed**-0.5, inner**-0.5) if decoder is None else (decoder.init_stddev, decoder.init_stddev)
        bias = decoder is not None and decoder.mlp_bias
        self.shape, self.axes = (embed, embed), ("embed", "embed")
        self.activations = config.mlp_activations
        for name in self._input_names():
            setattr(self, name, Linear(embed, inner, ("embed", "mlp"), deviations[0], bias=bias))
        self.wo = Linear(inner, embed, ("mlp", "embed"), deviations[1], bias=bias)

    def _input_names(self) -> tuple[str, ...]:
        return ("wi",) if len(self.activations) == 1 else ("wi_0", "wi_1")

    def __call__(self, x: Float[Array, "batch length embed"], dropout: Dropout) -> Float[Array, "batch length embed"]:
        """The block's output, before the residual's dropout."""
        return self.adapted(lambda x: self._feed_forward(x, dropout), x, dropout)

    def _feed_forward(self, x: Array, dropout: Dropout) -> Array:
        hidden: Array | float = 1.0
        for name, activation in zip(self._input_names(), self.activations, strict=True):
            hidden = hidden * ACTIVATION_FUNCTIONS[activation](getattr(self, name)(x, dropout.at(name)))
        return self.wo(dropout.at("mlp")(jnp.asarray(hidden)), dropout.at("wo"))


def cached_layout(
    keys: Float[Array, "batch length kv_heads head_dim"], values: Float[Array, "batch length kv_heads head_dim"]
) -> tuple[Float[Array, "batch kv_heads length head_dim"], Float[Array, "batch kv_heads length head_dim"]]:
    """Keys and values as a cache keeps them."""
    return keys.swapaxes(1, 2), values.swapaxes(1, 2)


class Attention(Adaptable):
    """What attention is to a tuning method, in either kind of model: four projections whose kernels join the heads.

    Adapters are around the whole of `attend`: they see what the queries are made of, and what goes to the residual.

    Attributes:
      prefix: keys and values that a method sets before all others.
      kv_heads: heads of keys and values.
      implementation: of `flanjax.models.attention.attention`.
    """

    prefix: Prefix | None = None
    kv_heads: int
    implementation: str
    query: Linear
    key: Linear
    value: Linear
    out: Linear

    def prefix_keys(self, q: Array, bias: Array | None, dropout: Dropout) -> PrefixKeys | None:
        """The prefix for these queries [batch, queries, heads, head_dim], with dropout on its weights."""
        if self.prefix is None:
            return None
        keys, values = (x.astype(q.dtype) for x in self.prefix())
        values = jnp.broadcast_to(values, (len(q), *values.shape))
        return PrefixKeys(keys, dropout.at("prefix_weights")(values, broadcast_axis=-1), bias)

    def attend_cached(
        self,
        q: Float[Array, "batch 1 heads head_dim"],
        among: Sequence[CachedKeys],
        prefix_bias: Float[Array, "#batch #heads 1 prefix"] | None = None,
        softcap: float = 0.0,
    ) -> Float[Array, "batch 1 inner"]:
        """One query of each row over these keys and the prefix's, heads joined."""
        prefix = self.prefix_keys(q, prefix_bias, NO_DROPOUT)
        if prefix is not None:
            keys, values = (jnp.moveaxis(x, -2, -3) for x in (prefix.keys, prefix.values))
            bias = None if prefix.bias is None else prefix.bias[:, :, 0]
            among = (CachedKeys(jnp.broadcast_to(keys, values.shape), values, bias), *among)
        return attention_of_one(q[:, 0], among, softcap=softcap).reshape(len(q), 1, -1)


class MultiHeadAttention(Attention):
    """T5's: as many heads of keys as of queries, over the same sequence or another."""

    def __init__(self, config: T5Config, implementation: str):
        embed, inner = config.embed_dim, config.attention_dim
        self.shape, self.axes = (embed, embed), ("embed", "embed")
        self.kv_heads = config.num_heads
        self.implementation = implementation
        # The query's deviation carries the 1/sqrt(head_dim) that attention leaves out.
        self.query = Linear(embed, inner, ("embed", "heads"), (embed * config.head_dim) ** -0.5)
        self.key = Linear(embed, inner, ("embed", "heads"), embed**-0.5)
        self.value = Linear(embed, inner, ("embed", "heads"), embed**-0.5)
        self.out = Linear(inner, embed, ("heads", "embed"), inner**-0.5)

    def _split(self, x: Array) -> Float[Array, "batch length heads head_dim"]:
        return x.reshape(*x.shape[:-1], self.kv_heads, -1)

    def keys_and_values(
        self, memory: Float[Array, "batch keys embed"], dropout: Dropout = NO_DROPOUT
    ) -> tuple[Array, Array]:
        """What queries attend to: two arrays [batch, keys, heads, head_dim]."""
        keys, values = self.key(memory, dropout.at("key")), self.value(memory, dropout.at("value"))
        return self._split(keys), self._split(values)

    def attend(
        self,
        x: Float[Array, "batch queries embed"],
        k: Float[Array, "batch keys heads head_dim"],
        v: Float[Array, "batch keys heads head_dim"],
        dropout: Dropout = NO_DROPOUT,
        *,
        bias: Float[Array, "1 heads queries keys"] | None = None,
        mask: Bool[Array, "batch 1 queries keys"] | None = None,
        prefix_bias: Float[Array, "#batch heads queries prefix"] | None = None,
    ) -> Float[Array, "batch queries embed"]:
        """Queries from `x` over given keys and values, projected back to the residual's width."""

        def own(x: Array) -> Array:
            q = self._split(self.query(x, dropout.at("query")))
            prefix = self.prefix_keys(q, prefix_bias, dropout)
            heads = attention(q, k, v, bias=bias, mask=mask, prefix=prefix, implementation=self.implementation)
            return self.out(heads.reshape(*heads.shape[:2], -1), dropout.at("out"))

        return self.adapted(own, x, dropout)

    def step(
        self,
        x: Float[Array, "batch 1 embed"],
        among: Sequence[CachedKeys],
        prefix_bias: Float[Array, "#batch heads 1 prefix"] | None = None,
    ) -> Float[Array, "batch 1 embed"]:
        """`attend` of one query of each row."""
        return self.adapted(lambda x: self.out(self.attend_cached(self._split(self.query(x)), among, prefix_bias)), x)

    def __call__(
        self,
        x: Float[Array, "batch queries embed"],
        memory: Float[Array, "batch keys embed"],
        dropout: Dropout,
        *,
        bias: Float[Array, "1 heads queries keys"] | None = None,
        mask: Bool[Array, "batch 1 queries keys"] | None = None,
        prefix_bias: Float[Array, "#batch heads queries prefix"] | None = None,
    ) -> Float[Array, "batch queries embed"]:
        """Attention of `x` over `memory`, with dropout on the attention weights."""
        k, v = self.keys_and_values(memory, dropout)
        # A weight mask that is the same for every query scales the values, so no [queries, keys] array is dropped.
        v = dropout.at("weights")(v, broadcast_axis=-1)
        return self.attend(x, k, v, dropout, bias=bias, mask=mask, prefix_bias=prefix_bias)


class EncoderLayer(nnx.Module):
    """Self-attention and feed-forward, each normalised before and added after.

    `relpos_bias` is the layer's own table of relative positions, where it is not the stack's.
    """

    relpos_bias: Optional["RelativePositionBias"] = None

    def __init__(self, config: T5Config, implementation: str):
        self.pre_attention_layer_norm = RMSNorm(config)
        self.attention = MultiHeadAttention(config, implementation)
        self.pre_mlp_layer_norm = RMSNorm(config)
        self.mlp = Mlp(config)

    def __call__(
        self,
        x: Float[Array, "batch length embed"],
        dropout: Dropout,
        *,
        bias: Float[Array, "1 heads length length"],
        mask: Bool[Array, "batch 1 length length"],
    ) -> Float[Array, "batch length embed"]:
        """The residual stream after this layer."""
        h = self.pre_attention_layer_norm(x)
        x = x + dropout.at("attention")(self.attention(h, h, dropout.at("self"), bias=bias, mask=mask))
        return x + dropout.at("mlp_out")(self.mlp(self.pre_mlp_layer_norm(x), dropout))


class DecoderLayer(nnx.Module):
    """Causal self-attention, attention over the encoder, feed-forward; `relpos_bias` as in `EncoderLayer`."""

    relpos_bias: Optional["RelativePositionBias"] = None

    def __init__(self, config: T5Config, implementation: str):
        self.pre_self_attention_layer_norm = RMSNorm(config)
        self.self_attention = MultiHeadAttention(config, implementation)
        self.pre_cross_attention_layer_norm = RMSNorm(config)
        self.encoder_decoder_attention = MultiHeadAttention(config, implementation)
        self.pre_mlp_layer_norm = RMSNorm(config)
        self.mlp = Mlp(config)

    def __call__(
        self,
        x: Float[Array, "batch length embed"],
        encoded: Float[Array, "batch encoder_length embed"],
        dropout: Dropout,
        *,
        bias: Float[Array, "1 heads length length"],
        mask: Bool[Array, "batch 1 length length"],
        cross_mask: Bool[Array, "batch 1 length encoder_length"],
        prefix_bias: Float[Array, "batch heads length prefix"] | None = None,
    ) -> Float[Array, "batch length embed"]:
        """The residual stream after this layer."""
        h = self.pre_self_attention_layer_norm(x)
        attended = self.self_attention(h, h, dropout.at("self"), bias=bias, mask=mask, prefix_bias=prefix_bias)
        x = x + dropout.at("attention")(attended)
        h = self.pre_cross_attention_layer_norm(x)
        cross = self.encoder_decoder_attention(h, encoded, dropout.at("cross"), mask=cross_mask)
        x = x + dropout.at("cross_attention")(cross)
        return x + dropout.at("mlp_out")(self.mlp(self.pre_mlp_layer_norm(x), dropout))

    def step(
        self,
        x: Float[Array, "batch 1 embed"],
        earlier: CachedKeys,
        encoded: CachedKeys,
        *,
        own_bias: Float[Array, "heads 1"],
        prefix_bias: Float[Array, "batch heads 1 prefix"] | None = None,
    ) -> tuple[Float[Array, "batch 1 embed"], tuple[Array, Array]]:
        """One position, with the keys and values of the earlier ones and of the encoder.

        Returns the residual stream and this position's own key and value [batch, heads, 1, head_dim].
        """
        h = self.pre_self_attention_layer_norm(x)
        own = cached_layout(*self.self_attention.keys_and_values(h))
        x = x + self.self_attention.step(h, (earlier, CachedKeys(*own, own_bias[None])), prefix_bias)
        h = self.pre_cross_attention_layer_norm(x)
        x = x + self.encoder_decoder_attention.step(h, (encoded,))
        return x + self.mlp(self.pre_mlp_layer_norm(x), NO_DROPOUT), own
