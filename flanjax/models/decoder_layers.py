"""The layer of a decoder: attention over the earlier tokens, the feed-forward block, and how the residual joins them.

`DecoderConfig` chooses norms, positions, heads and biases; `flanjax.models.decoder` stacks the layers, and computes
once for all of them what depends on the tokens alone (`Context`).
"""

from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from flanjax.models.attention import CachedKeys, attention
from flanjax.models.decoder_config import DecoderConfig
from flanjax.models.layers import NO_DROPOUT, Attention, Dropout, LayerNorm, Linear, Mlp, RMSNorm, cached_layout
from flanjax.models.positions import Angles, rotate


class Context(NamedTuple):
    """What every layer of a stack is given beside the residual stream."""

    mask: Bool[Array, "batch 1 queries keys"]
    windowed_mask: Bool[Array, "batch 1 queries keys"]
    bias: Float[Array, "#batch heads #queries keys"] | None
    angles: Angles | None
    own_bias: Float[Array, "batch heads 1 1"] | None = None  # of the query's own key, in a step
    prefix_bias: Float[Array, "#batch #heads #queries prefix"] | None = None
    windowed_prefix_bias: Float[Array, "batch #heads queries prefix"] | None = None

    def of_layer(self, windowed: Bool[Array, ""]) -> "Context":
        """What a layer is given that has the window or not."""
        if self.windowed_mask is self.mask:
            return self
        bias = self.prefix_bias
        if self.windowed_prefix_bias is not None:
            bias = jnp.where(windowed, self.windowed_prefix_bias, 0.0 if bias is None else bias)
        return self._replace(mask=jnp.where(windowed, self.windowed_mask, self.mask), prefix_bias=bias)


def norm_of(config: DecoderConfig, head_dim: int | None = None) -> RMSNorm:
    """The norm of the family, over the residual's width or a head's."""
    if config.norm == "layer":
        return LayerNorm(config, head_dim=head_dim)
    return RMSNorm(config, head_dim=head_dim, plus_one=config.norm == "rms_plus_one")


class CausalAttention(Attention):
    """Over the same sequence, with as many heads of keys as of queries or fewer."""

    def __init__(self, config: DecoderConfig, implementation: str):
        embed, deviation = config.embed_dim, config.init_stddev
        inner, inner_kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.shape, self.axes = (embed, embed), ("embed", "embed")
        self.head_dim, self.kv_heads = config.head_dim, config.num_kv_heads
        self.interleaved = config.rotary.interleaved
        self.scale, self.softcap = config.query_scale, config.attention_softcap
        self.implementation = implementation
        self.query = Linear(embed, inner, ("embed", "heads"), deviation, bias=config.qkv_bias)
        self.key = Linear(embed, inner_kv, ("embed", "heads"), deviation, bias=config.qkv_bias)
        self.value = Linear(embed, inner_kv, ("embed", "heads"), deviation, bias=config.qkv_bias)
        self.out = Linear(inner, embed, ("heads", "embed"), deviation, bias=config.out_bias)
        self.query_norm = norm_of(config, config.head_dim) if config.qk_norm else None
        self.key_norm = norm_of(config, config.head_dim) if config.qk_norm else None

    def _heads(self, x: Array, norm: RMSNorm | None, angles: Angles | None) -> Array:
        """Projected `x`, a head apart, normalised and rotated where the model does."""
        x = x.reshape(*x.shape[:-1], -1, self.head_dim)
        x = x if norm is None else norm(x)
        return x if angles is None else rotate(x, angles, interleaved=self.interleaved)

    def keys_and_values(
        self, x: Float[Array, "batch keys embed"], angles: Angles | None, dropout: Dropout = NO_DROPOUT
    ) -> tuple[Array, Array]:
        """What queries attend to: two arrays [batch, keys, kv_heads, head_dim]."""
        keys = self._heads(self.key(x, dropout.at("key")), self.key_norm, angles)
        return keys, self._heads(self.value(x, dropout.at("value")), None, None)

    def attend(
        self,
        x: Float[Array, "batch queries embed"],
        k: Float[Array, "batch keys kv_heads head_dim"],
        v: Float[Array, "batch keys kv_heads head_dim"],
        context: Context,
        dropout: Dropout = NO_DROPOUT,
    ) -> Float[Array, "batch queries embed"]:
        """Queries from `x` over given keys and values, projected back to the residual's width."""

        def own(x: Array) -> Array:
            """What is computed without adapters, [batch, queries, embed]."""
            q = self._heads(self.query(x, dropout.at("query")), self.query_norm, context.angles) * self.scale
            heads = attention(
                q,
                k,
                v,
                bias=context.bias,
                mask=context.mask,
                prefix=self.prefix_keys(q, context.prefix_bias, dropout),
                softcap=self.softcap,
                implementation=self.implementation,
            )
            return self.out(heads.reshape(*heads.shape[:2], -1), dropout.at("out"))

        return self.adapted(own, x, dropout)

    def step(
        self,
        x: Float[Array, "batch 1 embed"],
        earlier: tuple[Float[Array, "batch kv_heads length head_dim"], Float[Array, "batch kv_heads length head_dim"]],
        own: tuple[Float[Array, "batch kv_heads 1 head_dim"], Float[Array, "batch kv_heads 1 head_dim"]],
        context: Context,
    ) -> Float[Array, "batch 1 embed"]:
        """`attend` of one query of each row, over earlier keys and values, with this mask and bias, and its own."""
        bias, own_bias = (None if x is None else x[:, :, 0] for x in (context.bias, context.own_bias))
        among = (CachedKeys(*earlier, bias, context.mask[:, 0, 0]), CachedKeys(*own, own_bias))

        def of_query(x: Array) -> Array:
            q = self._heads(self.query(x), self.query_norm, context.angles) * self.scale
            return self.out(self.attend_cached(q, among, context.prefix_bias, self.softcap))

        return self.adapted(of_query, x)


class DecoderOnlyLayer(nnx.Module):
    """Causal self-attention and feed-forward block around one residual stream, after one another or side by side."""

    def __init__(self, config: DecoderConfig, implementation: str):
        self.residual = config.residual
        after = config.residual == "sequential_post_norm"
        self.pre_self_attention_layer_norm = None if after else norm_of(config)
        self.self_attention = CausalAttention(config, implementation)
        self.pre_mlp_layer_norm = None if after or config.residual == "parallel_one_norm" else norm_of(config)
        self.mlp = Mlp(config)
        self.post_self_attention_layer_norm = norm_of(config) if after or config.post_norms else None
        self.post_mlp_layer_norm = norm_of(config) if after or config.post_norms else None

    def __call__(
        self, x: Float[Array, "batch length embed"], dropout: Dropout, context: Context, windowed: Bool[Array, ""]
    ) -> tuple[Float[Array, "batch length embed"], tuple[Array, Array]]:
        """The residual stream after this layer, and its keys and values [batch, length, kv_heads, head_dim]."""
        h = _normed(self.pre_self_attention_layer_norm, x)
        k, v = self.self_attention.keys_and_values(h, context.angles, dropout.at("self"))
        # A weight mask that is the same for every query scales the values, as in `MultiHeadAttention`.
        v = dropout.at("weights")(v, broadcast_axis=-1)
        attended = self.self_attention.attend(h, k, v, context.of_layer(windowed), dropout.at("self"))
        return self._rest(x, h, attended, dropout), (k, v)

    def step(
        self,
        x: Float[Array, "batch 1 embed"],
        earlier: tuple[Array, Array],
        context: Context,
        windowed: Bool[Array, ""],
    ) -> tuple[Float[Array, "batch 1 embed"], tuple[Array, Array]]:
        """One position, with the keys and values of the earlier ones [batch, kv_heads, length, head_dim].

        Returns the residual stream and this position's own key and value [batch, kv_heads, 1, head_dim].
        """
        h = _normed(self.pre_self_attention_layer_norm, x)
        own = cached_layout(*self.self_attention.keys_and_values(h, context.angles))
        attended = self.self_attention.step(h, earlier, own, context.of_layer(windowed))
        return self._rest(x, h, attended, NO_DROPOUT), own

    def _rest(self, x: Array, h: Array, attended: Array, dropout: Dropout) -> Array:
        """What follows attention: norms after it, the feed-forward block, and the residual sums."""
        if self.residual == "sequential_post_norm":
            after = _normed(self.post_self_attention_layer_norm, x + dropout.at("attention")(attended))
            return _normed(self.post_mlp_layer_norm, after + dropout.at("mlp_out")(self.mlp(after, dropout)))
        after = x + dropout.at("attention")(_normed(self.post_self_attention_layer_norm, attended))
        if self.pre_mlp_layer_norm is not None:
            h = self.pre_mlp_layer_norm(after if self.residual == "sequential" else x)
        return after + dropout.at("mlp_out")(_normed(self.post_mlp_layer_norm, self.mlp(h, dropout)))


def _normed(norm: RMSNorm | None, x: Array) -> Array:
    return x if norm is None else norm(x)
