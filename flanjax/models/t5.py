"""T5: encoder, decoder and head over one plain tree of parameters.

    params = init_params(config, seed=0)
    model = build(config, Compute(), params)      # cheap, also under jit and grad
    logits = model.logits(model(batch))

The tree is a nested dict: `token_embedder`, `encoder`, `decoder`, with the layers of a stack joined on a leading
`layers` axis, kernels [in, out] with their heads joined (T5X's names and orientation). Scanned or unrolled,
recomputing or not, float32 or bfloat16 (`Compute`): the parameters are the same.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from flanjax.models.attention import CachedKeys, segment_mask, written
from flanjax.models.config import Compute, T5Config
from flanjax.models.head import Head
from flanjax.models.layers import DecoderLayer, Dropout, EncoderLayer, Linear, RMSNorm, cached_layout, parameter
from flanjax.models.parameters import (
    Apart,
    Params,
    draw_parameters,
    fill_parameters,
    layer_numbers,
    map_parameters,
    over_layers,
    stacked,
)
from flanjax.models.positions import RelativePositionBias
from flanjax.models.prompts import Prompt, insert_prompts, positions_in_segments, prefixes_of, prompt_of, with_prefixes
from flanjax.sharding.rules import constrain


class Cache(NamedTuple):
    """Keys and values of one decoding, stacked over layers; see `T5.start_cache`."""

    self_keys: Float[Array, "layers batch heads max_length head_dim"] | Apart
    self_values: Float[Array, "layers batch heads max_length head_dim"] | Apart
    cross_keys: Float[Array, "layers batch heads encoder_length head_dim"] | Apart
    cross_values: Float[Array, "layers batch heads encoder_length head_dim"] | Apart
    cross_mask: Bool[Array, "batch encoder_length"]

    def written(self, new: tuple[Array | Apart, Array | Apart], position: Int[Array, " batch"]) -> "Cache":
        """With the keys and values of one position of each row, as `T5.decode_one` gives them."""
        keys, values = (written(old, one, position) for old, one in zip(self[:2], new, strict=True))
        return self._replace(self_keys=keys, self_values=values)


class Embedder(nnx.Module):
    """The token table `embedding` [vocab, embed], shared by encoder and decoder."""

    def __init__(self, config: T5Config):
        self.embedding = parameter((config.vocab_size, config.embed_dim), ("vocab", "embed"), 1.0)


Bias = TypeVar("Bias")


class Stack(nnx.Module):
    """What encoder and decoder share: a table of relative positions for all layers, or one in each of them."""

    relpos_bias: RelativePositionBias | None = None

    def place_table(self, layer: EncoderLayer | DecoderLayer, config: T5Config, *, bidirectional: bool) -> None:
        """Gives the table to the stack, or to the layer that is going to be stacked."""
        owner = layer if config.relpos_per_layer else self
        owner.relpos_bias = RelativePositionBias(config, bidirectional=bidirectional)

    def bias_of_layers(
        self, bias: Callable[[RelativePositionBias], Bias]
    ) -> Callable[[EncoderLayer | DecoderLayer], Bias]:
        """What gives a layer the bias that is made of its table; made once where all layers have the same table."""
        if self.relpos_bias is not None:
            shared = bias(self.relpos_bias)
            return lambda layer: shared

        def of_its_own(layer: EncoderLayer | DecoderLayer) -> Bias:
            assert layer.relpos_bias is not None
            return bias(layer.relpos_bias)

        return of_its_own


class Encoder(Stack):
    """The encoder's position table, stacked layers and final norm, and a prompt where a tuning method has one."""

    prompt: Prompt | None = None

    def __init__(self, config: T5Config, compute: Compute):
        layer = EncoderLayer(config, compute.attention)
        self.place_table(layer, config, bidirectional=True)
        self.prefix = prefixes_of(config.added, layer, config.num_encoder_layers, "encoder/layers")
        self.layers = stacked(layer, config.num_encoder_layers, config.added, "encoder/layers")
        self.encoder_norm = RMSNorm(config)
        self.prompt = prompt_of(config)

    def __call__(
        self,
        x: Float[Array, "batch length embed"],
        segments: Int[Array, "batch length"],
        drop: Dropout,
        compute: Compute,
    ) -> Float[Array, "batch length embed"]:
        """Embedded tokens to encoder output."""
        positions = jnp.arange(x.shape[1])
        bias_of = self.bias_of_layers(lambda table: table(positions, positions))
        mask = segment_mask(segments, segments)
        layers = with_prefixes(self.layers, self.prefix)

        def body(x: Array, layer_and_index: tuple[EncoderLayer, Array]) -> tuple[Array, None]:
            layer, index = layer_and_index
            return constrain(layer(x, drop.at(index), bias=bias_of(layer), mask=mask), "batch", None, None), None

        x = constrain(drop.at("embedding")(x), "batch", None, None)
        x, _ = over_layers(body, x, (layers, layer_numbers(layers)), compute)
        return drop.at("output")(self.encoder_norm(x))


class Decoder(Stack):
    """The decoder's position table, stacked layers, final norm and, when untied, the head."""

    prompt: Prompt | None = None

    def __init__(self, config: T5Config, compute: Compute):
        layer = DecoderLayer(config, compute.attention)
        self.place_table(layer, config, bidirectional=False)
        self.prefix = prefixes_of(config.added, layer, config.num_decoder_layers, "decoder/layers")
        self.layers = stacked(layer, config.num_decoder_layers, config.added, "decoder/layers")
        self.decoder_norm = RMSNorm(config)
        if not config.tied_head:
            self.logits_dense = Linear(config.embed_dim, config.vocab_size, ("embed", "vocab"), config.embed_dim**-0.5)

    def __call__(
        self,
        x: Float[Array, "batch length embed"],
        segments: Int[Array, "batch length"],
        encoded: Float[Array, "batch encoder_length embed"],
        encoder_segments: Int[Array, "batch encoder_length"],
        drop: Dropout,
        compute: Compute,
        encoder_segment_of: Int[Array, "batch length"] | None = None,
    ) -> Float[Array, "batch length embed"]:
        """Embedded decoder inputs to decoder output, before the tied head's scale."""
        positions = jnp.arange(x.shape[1])
        bias_of = self.bias_of_layers(lambda table: table(positions, positions))
        mask = segment_mask(segments, segments, causal=True)
        cross_mask = segment_mask(segments if encoder_segment_of is None else encoder_segment_of, encoder_segments)
        layers = with_prefixes(self.layers, self.prefix)
        prefix_bias_of = self._prefix_bias_of(layers, positions_in_segments(segments))

        def body(x: Array, layer_and_index: tuple[DecoderLayer, Array]) -> tuple[Array, None]:
            """The residual stream [batch, length, embed] after one layer more."""
            layer, index = layer_and_index
            x = layer(
                x,
                encoded,
                drop.at(index),
                bias=bias_of(layer),
                mask=mask,
                cross_mask=cross_mask,
                prefix_bias=prefix_bias_of(layer),
            )
            return constrain(x, "batch", None, None), None

        x = constrain(drop.at("embedding")(x), "batch", None, None)
        x, _ = over_layers(body, x, (layers, layer_numbers(layers)), compute)
        return drop.at("output")(self.decoder_norm(x))

    def _prefix_bias_of(
        self, layers: DecoderLayer, positions: Int[Array, "batch length"]
    ) -> Callable[[EncoderLayer | DecoderLayer], Float[Array, "batch heads length prefix"] | None]:
        """Of the self-attention's prefix, which lies before every segment as earlier tokens would."""
        prefix = layers.self_attention.prefix
        return self.bias_of_layers(lambda table: None if prefix is None else table.of_prefix(positions, prefix.length))

    def step(
        self, x: Float[Array, "batch 1 embed"], position: Int[Array, " batch"], cache: Cache, compute: Compute
    ) -> tuple[Float[Array, "batch 1 embed"], tuple[Array | Apart, Array | Apart]]:
        """The decoder's output at each row's position, and that position's keys and values."""
        relative = jnp.arange(cache.self_keys.shape[3]) - position[:, None]
        bias_of = self.bias_of_layers(lambda table: jnp.moveaxis(table.of_relative(relative), 0, 1))
        own_bias_of = self.bias_of_layers(lambda table: table.of_relative(jnp.zeros(1, jnp.int32)))
        layers = with_prefixes(self.layers, self.prefix)
        prefix_bias_of = self._prefix_bias_of(layers, position[:, None])

        def body(x: Array, xs: tuple[DecoderLayer, Array, Array, Array, Array]) -> tuple[Array, tuple[Array, Array]]:
            layer, own_keys, own_values, cross_keys, cross_values = xs
            return layer.step(
                x,
                CachedKeys(own_keys, own_values, bias_of(layer), relative < 0),
                CachedKeys(cross_keys, cross_values, None, cache.cross_mask),
                own_bias=own_bias_of(layer),
                prefix_bias=prefix_bias_of(layer),
            )

        # The loop only reads the caches; one write afterwards stays in place, where returning them would copy all.
        x, new = over_layers(body, x, (layers, *cache[:4]), compute)
        return self.decoder_norm(x), new


class T5(nnx.Module):
    """Encoder, decoder and head; made by `build`.

    Tokens and segment ids are int32 [batch, length]; segment 0 is padding, equal numbers see each other. Without a
    `dropout_key` the model is deterministic.
    """

    def __init__(self, config: T5Config, compute: Compute):
        self.config = config
        self.compute = compute
        self.token_embedder = Embedder(config)
        self.encoder = Encoder(config, compute)
        self.decoder = Decoder(config, compute)

    @property
    def stacks(self) -> dict[str, Encoder | Decoder]:
        """The stacks by their path, lowest first."""
        return {"encoder": self.encoder, "decoder": self.decoder}

    def _embed(self, tokens: Int[Array, "batch length"]) -> Float[Array, "batch length embed"]:
        return self.token_embedder.embedding[...][tokens].astype(self.compute.jax_dtype)

    def _dropout(self, key: Array | None, stack: str) -> Dropout:
        return Dropout(self.config.dropout_rate, key).at(stack)

    def encode(
        self,
        tokens: Int[Array, "batch length"],
        segment_ids: Int[Array, "batch length"],
        *,
        dropout_key: Array | None = None,
    ) -> Float[Array, "batch length embed"]:
        """The encoder's output, normalised; with a prompt, see `flanjax.models.prompts` for what the tokens hold."""
        x = self._embed(tokens)
        if self.encoder.prompt is not None:
            x = insert_prompts(x, self.encoder.prompt(), tokens, positions_in_segments(segment_ids), segment_ids)
        return self.encoder(x, segment_ids, self._dropout(dropout_key, "encoder"), self.compute)

    def decode(
        self,
        input_tokens: Int[Array, "batch length"],
        segment_ids: Int[Array, "batch length"],
        encoded: Float[Array, "batch encoder_length embed"],
        encoder_segment_ids: Int[Array, "batch encoder_length"],
        *,
        encoder_segment_of: Int[Array, "batch length"] | None = None,
        dropout_key: Array | None = None,
    ) -> Float[Array, "batch length embed"]:
        """What `head` is multiplied by: decoder output after norm, dropout and the tied head's scale.

        A position sees the encoder's segment of its own number, or that of `encoder_segment_of`.
        """
        drop = self._dropout(dropout_key, "decoder")
        x = self._embed(input_tokens)
        hidden = self.decoder(x, segment_ids, encoded, encoder_segment_ids, drop, self.compute, encoder_segment_of)
        return hidden * self.config.head_scale

    def __call__(
        self, batch: Mapping[str, Array], *, dropout_key: Array | None = None
    ) -> Float[Array, "batch length embed"]:
        """`decode` over `encode` for a batch in T5X's feature names."""
        encoder_segments = batch["encoder_segment_ids"]
        encoded = self.encode(batch["encoder_input_tokens"], encoder_segments, dropout_key=dropout_key)
        return self.decode(
            batch["decoder_input_tokens"],
            batch["decoder_segment_ids"],
            encoded,
            encoder_segments,
            dropout_key=dropout_key,
        )

    def head(self) -> Head:
        """`logits_dense`, or the embedding."""
        if self.config.tied_head:
            return Head(self.token_embedder.embedding[...], tied=True)
        return Head(self.decoder.logits_dense.weight())

    def logits(self, hidden: Float[Array, "*batch embed"]) -> Float[Array, "*batch vocab"]:
        """Float32 logits of decoder outputs."""
        return self.head().logits(hidden)

    def start_cache(
        self,
        encoded: Float[Array, "batch encoder_length embed"],
        encoder_segment_ids: Int[Array, "batch encoder_length"],
        max_length: int,
    ) -> Cache:
        """An empty cache for `max_length` positions, with the encoder's keys and values of every layer.

        Here a row is one example, not a packed row: every non-padding encoder position is seen.
        """

        def body(_: None, layer: DecoderLayer) -> tuple[None, tuple[Array, Array]]:
            return None, cached_layout(*layer.encoder_decoder_attention.keys_and_values(encoded))

        _, (cross_keys, cross_values) = over_layers(body, None, self.decoder.layers, self.compute)
        layers, batch, heads, _, head_dim = cross_keys.shape
        empty = jnp.zeros((layers, batch, heads, max_length, head_dim), encoded.dtype)
        return Cache(empty, empty, cross_keys, cross_values, encoder_segment_ids != 0)

    def decode_step(
        self, tokens: Int[Array, " batch"], position: Int[Array, "#batch"] | Int[Array, ""], cache: Cache
    ) -> tuple[Float[Array, "batch embed"], Cache]:
        """One decoder position for every row: `tokens` enter at `position`, one for all or each row's own.

        The first is 0, with the start token 0.

        Returns what `decode` gives at that position, and the cache for the next one.
        """
        position = jnp.broadcast_to(position, tokens.shape)
        hidden, new = self.decode_one(tokens, position, cache)
        return hidden, cache.written(new, position)

    def decode_one(
        self, tokens: Int[Array, " batch"], position: Int[Array, " batch"], cache: Cache
    ) -> tuple[Float[Array, "batch embed"], tuple[Array | Apart, Array | Apart]]:
        """`decode_step` but for the cache: the keys and values that `cache.written` is to be given."""
        hidden, new = self.decoder.step(self._embed(tokens[:, None]), position, cache, self.compute)
        return hidden[:, 0] * self.config.head_scale, new


@functools.cache
def _describe(config: T5Config, compute: Compute) -> tuple[nnx.GraphDef[T5], nnx.State]:
    """The module's structure and the descriptions of its parameters."""
    return nnx.split(T5(config, compute))


def abstract_params(config: T5Config) -> Params:
    """The parameter tree as `jax.ShapeDtypeStruct`s; a model's own are float32."""
    return map_parameters(_describe(config, Compute())[1], lambda _, p: p.get_value())


def logical_axes(config: T5Config) -> Params:
    """The parameter tree with a tuple of axis names a parameter, such as `("layers", "embed", "heads")`."""
    return map_parameters(_describe(config, Compute())[1], lambda _, p: p.axes)


def init_params(config: T5Config, seed: int) -> Params:
    """Fresh parameters with T5's deviations (Mesh TensorFlow T5); works under jit."""
    return draw_parameters(_describe(config, Compute())[1], seed)


def build(config: T5Config, compute: Compute, params: Params) -> T5:
    """The model over these parameters (arrays or tracers); works under jit and grad.

    Raises:
      ModelConfigError: a parameter is missing, unknown or of another shape; the message names its path.
    """
    return fill_parameters(*_describe(config, compute), params)
