"""Decoder-only models: one `Decoder`, whose parts `DecoderConfig` chooses, over one plain tree of parameters.

    params = init_params(config, seed=0)
    model = build(config, Compute(), params)      # cheap, also under jit and grad
    logits = model.logits(model(batch))

The tree is as T5's: `token_embedder` and `decoder`, layers joined on a leading `layers` axis, kernels [in, out] with
their heads joined. `batch` has T5X's feature names (`decoder_input_tokens`, `decoder_segment_ids`): rows are packed or
not, and a token sees the earlier tokens of its own segment. `decoder_positions`, where given, says where a token stands
in its segment, and `decoder_causal_attention` marks a prefix whose tokens see each other (prefix LM).
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Num

from flanjax.models.attention import MASKED, segment_mask, written
from flanjax.models.config import Compute, ModelConfigError
from flanjax.models.decoder_config import DecoderConfig
from flanjax.models.decoder_layers import Context, DecoderOnlyLayer, norm_of
from flanjax.models.head import Head
from flanjax.models.layers import NO_DROPOUT, Dropout, Linear, cached_layout, parameter
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
from flanjax.models.positions import alibi_bias, alibi_bias_of_first, rotary_angles, rounded_alibi_bias
from flanjax.models.prompts import (
    Prefix,
    insert_prompts,
    positions_in_segments,
    prefixes_of,
    prompt_of,
    with_prefixes,
)
from flanjax.sharding.rules import constrain


class Cache(NamedTuple):
    """Keys (rotated) and values of one decoding, stacked over layers; see `Decoder.start_cache` and `prefill`."""

    keys: Float[Array, "layers batch kv_heads max_length head_dim"] | Apart
    values: Float[Array, "layers batch kv_heads max_length head_dim"] | Apart

    def written(self, new: tuple[Array | Apart, Array | Apart], position: Int[Array, " batch"]) -> "Cache":
        """With the keys and values of one position of each row, as `Decoder.decode_one` gives them."""
        return Cache(*(written(old, one, position) for old, one in zip(self, new, strict=True)))


class Beginning(NamedTuple):
    """Keys (rotated) and values of a text that every row of a batch goes on from; see `Decoder.begin`."""

    keys: Float[Array, "layers length kv_heads head_dim"]
    values: Float[Array, "layers length kv_heads head_dim"]
    length: Int[Array, ""]  # of the text; what follows it is padding


class _Kept(Prefix):
    """The keys and values of a beginning, as what the attention of every layer sees before its own."""

    def __init__(self, beginning: Beginning):
        self.keys, self.values = nnx.Param(beginning.keys), nnx.Param(beginning.values)

    def __call__(self) -> tuple[Float[Array, "prefix heads head_dim"], Float[Array, "prefix heads head_dim"]]:
        return self.keys[...], self.values[...]


class Table(nnx.Module):
    """`embedding`, a vector for each token or position."""

    def __init__(self, rows: int, width: int, axis: str, stddev: float):
        self.embedding = parameter((rows, width), (axis, "embed"), stddev)


class DecoderStack(nnx.Module):
    """Stacked layers, final norm and, when untied, the head.

    Where asked, learned positions and a norm before the layers, and projections from and to a narrower embedding.
    """

    def __init__(self, config: DecoderConfig, compute: Compute):
        self.config = config
        deviation = config.init_stddev
        if config.positions == "learned":
            rows = config.max_positions + config.position_offset
            self.position_embedder = Table(rows, config.embed_dim, "abspos_buckets", deviation)
        if config.word_embed_dim:
            self.project_in = Linear(config.word_embed_dim, config.embed_dim, ("embed", "embed"), deviation)
            self.project_out = Linear(config.embed_dim, config.word_embed_dim, ("embed", "embed"), deviation)
        self.embedding_norm = norm_of(config) if config.embedding_norm else None
        layer = DecoderOnlyLayer(config, compute.attention)
        self.prefix = prefixes_of(config.added, layer, config.num_layers, "decoder/layers")
        self.layers = stacked(layer, config.num_layers, config.added, "decoder/layers")
        self.prompt = prompt_of(config)
        self.decoder_norm = None if config.residual == "sequential_post_norm" else norm_of(config)
        if not config.tied_head:
            axes = ("embed", "vocab")
            self.logits_dense = Linear(config.input_dim, config.vocab_size, axes, deviation, bias=config.head_bias)

    def enter(
        self, x: Float[Array, "batch length word_embed"], positions: Int[Array, "batch length"]
    ) -> Float[Array, "batch length embed"]:
        """What the first layer is given for embedded tokens."""
        if self.config.word_embed_dim:
            x = self.project_in(x)
        if self.config.positions == "learned":
            # NaN beyond the table: indexing would clamp, and every later token stand at the last position.
            rows = self.position_embedder.embedding[...].at[positions + self.config.position_offset]
            x = x + rows.get(mode="fill", fill_value=jnp.nan).astype(x.dtype)
        return x if self.embedding_norm is None else self.embedding_norm(x)

    def leave(self, x: Float[Array, "batch length embed"]) -> Float[Array, "batch length word_embed"]:
        """What the head is given for the last layer's output."""
        x = x if self.decoder_norm is None else self.decoder_norm(x)
        return self.project_out(x) if self.config.word_embed_dim else x

    def __call__(
        self,
        x: Float[Array, "batch length word_embed"],
        segments: Int[Array, "batch length"],
        positions: Int[Array, "batch length"],
        bidirectional: Num[Array, "batch length"] | None,
        drop: Dropout,
        compute: Compute,
        *,
        beginning: Beginning | None = None,
        branching: bool = False,
    ) -> Float[Array, "batch length word_embed"]:
        """Embedded tokens to the decoder's output."""
        layers = with_prefixes(self.layers, self.prefix)
        context = self._context(segments, positions, bidirectional, segments == 1 if branching else None)
        if beginning is not None:
            layers = with_prefixes(self.layers, lambda: {"self_attention": _Kept(beginning)})
            padding = jnp.arange(beginning.keys.shape[1]) >= beginning.length
            context = context._replace(prefix_bias=jnp.where(padding, MASKED, 0.0)[None, None, None])

        def body(x: Array, layer_and_index: tuple[DecoderOnlyLayer, Array, Array]) -> tuple[Array, None]:
            layer, index, windowed = layer_and_index
            return constrain(layer(x, drop.at(index), context, windowed)[0], "batch", None, None), None

        x = constrain(drop.at("embedding")(self.enter(x, positions)), "batch", None, None)
        x, _ = over_layers(body, x, (layers, layer_numbers(layers), self._windowed()), compute)
        return self.leave(x)

    def prefill(
        self,
        x: Float[Array, "batch length word_embed"],
        segments: Int[Array, "batch length"],
        positions: Int[Array, "batch length"],
        bidirectional: Num[Array, "batch length"] | None,
        compute: Compute,
    ) -> tuple[Array, Array]:
        """Keys and values of every layer, [layers, batch, kv_heads, length, head_dim], for embedded tokens."""
        context, layers = self._context(segments, positions, bidirectional), with_prefixes(self.layers, self.prefix)

        def body(x: Array, layer_and_windowed: tuple[DecoderOnlyLayer, Array]) -> tuple[Array, tuple[Array, Array]]:
            layer, windowed = layer_and_windowed
            x, keys_and_values = layer(x, NO_DROPOUT, context, windowed)
            return constrain(x, "batch", None, None), cached_layout(*keys_and_values)

        return over_layers(body, self.enter(x, positions), (layers, self._windowed()), compute)[1]

    def _windowed(self) -> Bool[Array, " layers"]:
        return jnp.asarray(self.config.window_of_layers)

    def _context(
        self,
        segments: Int[Array, "batch length"],
        positions: Int[Array, "batch length"],
        bidirectional: Array | None,
        trunk: Bool[Array, "batch length"] | None = None,
    ) -> Context:
        config = self.config
        masks = functools.partial(
            segment_mask, segments, segments, causal=True, bidirectional=bidirectional, trunk=trunk
        )
        mask, rows = masks(), jnp.arange(segments.shape[1])
        angles, bias = None, None
        if config.positions == "alibi":
            bias = rounded_alibi_bias(positions, config) if config.alibi_rounded else alibi_bias(rows, rows, config)
        if config.positions == "rotary":
            same = (segments[:, :, None] == segments[:, None, :]) & (segments != 0)[:, None]
            angles = rotary_angles(config, positions, same.sum(axis=-1) + config.prefix_length)
        prefix_bias, windowed_prefix_bias = _prefix_biases(config, positions)
        return Context(
            mask=mask,
            windowed_mask=masks(window=config.window) if config.window else mask,
            bias=bias,
            angles=angles,
            prefix_bias=prefix_bias,
            windowed_prefix_bias=windowed_prefix_bias,
        )

    def step(
        self, x: Float[Array, "batch 1 word_embed"], position: Int[Array, " batch"], cache: Cache, compute: Compute
    ) -> tuple[Float[Array, "batch 1 word_embed"], tuple[Array | Apart, Array | Apart]]:
        """The decoder's output at each row's position, and that position's keys and values."""
        config, layers = self.config, with_prefixes(self.layers, self.prefix)
        length, position = cache.keys.shape[3], position[:, None]
        columns, here = jnp.arange(length), position + config.prefix_length
        mask = (columns < position)[:, None, None]
        window = (columns > position - config.window)[:, None, None]
        prefix_bias, windowed_prefix_bias = _prefix_biases(config, here)
        bias, own_bias = None, None
        if config.alibi_rounded:
            bias = rounded_alibi_bias(columns[None] + config.prefix_length, config)
            own_bias = rounded_alibi_bias(here, config)
        elif config.positions == "alibi":
            bias = alibi_bias_of_first(position, length, config)
        context = Context(
            mask=mask,
            windowed_mask=mask & window if config.window else mask,
            bias=bias,
            own_bias=own_bias,
            angles=rotary_angles(config, here, here + 1) if config.positions == "rotary" else None,
            prefix_bias=prefix_bias,
            windowed_prefix_bias=windowed_prefix_bias,
        )

        def body(x: Array, xs: tuple[DecoderOnlyLayer, Array, Array, Array]) -> tuple[Array, tuple[Array, Array]]:
            layer, windowed, keys, values = xs
            return layer.step(x, (keys, values), context, windowed)

        # The loop only reads the cache; one write afterwards stays in place, where returning it would copy all.
        x, new = over_layers(body, self.enter(x, here), (layers, self._windowed(), *cache), compute)
        return self.leave(x), new


def _prefix_biases(
    config: DecoderConfig, positions: Int[Array, "batch queries"]
) -> tuple[Float[Array, "#batch #heads #queries prefix"] | None, Float[Array, "batch #heads queries prefix"] | None]:
    """The bias of a prefix's keys, in layers without and with the window; it leaves a window as earlier tokens do."""
    length = config.prefix_length
    if not length:
        return None, None
    alibi = None
    if config.alibi_rounded:
        alibi = rounded_alibi_bias(jnp.arange(length)[None], config)
    elif config.positions == "alibi":
        alibi = alibi_bias_of_first(positions, length, config)
    if not config.window:
        return alibi, None
    beyond = positions[:, None, :, None] - jnp.arange(length) >= config.window
    return alibi, jnp.where(beyond, MASKED, 0.0 if alibi is None else alibi)


class Decoder(nnx.Module):
    """Embedding, layers and head; made by `build`.

    Tokens and segment ids are int32 [batch, length]; segment 0 is padding, equal numbers see each other. Without a
    `dropout_key` the model is deterministic.
    """

    def __init__(self, config: DecoderConfig, compute: Compute):
        self.config = config
        self.compute = compute
        self.token_embedder = Table(config.vocab_size, config.input_dim, "vocab", config.init_stddev)
        self.decoder = DecoderStack(config, compute)

    @property
    def stacks(self) -> dict[str, DecoderStack]:
        """The one stack by its path."""
        return {"decoder": self.decoder}

    def _embed(
        self,
        tokens: Int[Array, "batch length"],
        offsets: Int[Array, "batch length"],
        segments: Int[Array, "batch length"],
    ) -> Float[Array, "batch length word_embed"]:
        """Tokens at these distances from the start of their segments, and the prompt at the first ones."""
        x = self.token_embedder.embedding[...][tokens].astype(self.compute.jax_dtype)
        x = x * jnp.asarray(self.config.embedding_scale, x.dtype)
        prompt = self.decoder.prompt
        return x if prompt is None else insert_prompts(x, prompt(), tokens, offsets, segments)

    def _enter(
        self,
        tokens: Int[Array, "batch length"],
        segment_ids: Int[Array, "batch length"],
        positions: Int[Array, "batch length"] | None,
    ) -> tuple[Float[Array, "batch length word_embed"], Int[Array, "batch length"]]:
        """Embedded tokens, and where each stands behind the prefix in its segment."""
        positions = positions_in_segments(segment_ids) if positions is None else positions
        positions = jnp.where(segment_ids == 0, 0, positions)  # however long padding is
        return self._embed(tokens, positions, segment_ids), positions + self.config.prefix_length

    def decode(
        self,
        input_tokens: Int[Array, "batch length"],
        segment_ids: Int[Array, "batch length"],
        *,
        positions: Int[Array, "batch length"] | None = None,
        bidirectional: Num[Array, "batch length"] | None = None,
        beginning: Beginning | None = None,
        branching: bool = False,
        dropout_key: Array | None = None,
    ) -> Float[Array, "batch length word_embed"]:
        """What `logits` takes: the last layer's output after the norm.

        `positions` count from the start of each segment unless they are given; `bidirectional` is 1 on the tokens of
        a prefix that see each other. With a `beginning` every token sees that text before its own, and with
        `branching` the segments 2, 3, ... of a row each go on from its segment 1; both need `positions`, counted from
        the start of the text, and `config.can_branch`.
        """
        x, positions = self._enter(input_tokens, segment_ids, positions)
        drop = Dropout(self.config.dropout_rate, dropout_key).at("decoder")
        return self.decoder(
            x, segment_ids, positions, bidirectional, drop, self.compute, beginning=beginning, branching=branching
        )

    def begin(self, tokens: Int[Array, " length"], segment_ids: Int[Array, " length"]) -> Beginning:
        """One text, with padding (segment 0) after it, for the rows of `decode` to go on from."""
        x, positions = self._enter(tokens[None], segment_ids[None], None)
        kept = self.decoder.prefill(x, segment_ids[None], positions, None, self.compute)
        # A prefix's keys have their heads after the positions.
        keys, values = (x[:, 0].swapaxes(1, 2) for x in kept)
        return Beginning(keys, values, (segment_ids != 0).sum())

    def __call__(
        self, batch: Mapping[str, Array], *, dropout_key: Array | None = None
    ) -> Float[Array, "batch length word_embed"]:
        """`decode` for a batch in T5X's feature names."""
        return self.decode(
            batch["decoder_input_tokens"],
            batch["decoder_segment_ids"],
            positions=batch.get("decoder_positions"),
            bidirectional=batch.get("decoder_causal_attention"),
            dropout_key=dropout_key,
        )

    def head(self) -> Head:
        """`logits_dense` with its bias, or the embedding; and the soft cap of the logits."""
        cap = self.config.logits_softcap
        if self.config.tied_head:
            return Head(self.token_embedder.embedding[...], softcap=cap, tied=True)
        dense = self.decoder.logits_dense
        return Head(dense.weight(), None if dense.bias is None else dense.bias[...], cap)

    def logits(self, hidden: Float[Array, "*batch word_embed"]) -> Float[Array, "*batch vocab"]:
        """Float32 logits of decoder outputs, with the head's bias and soft cap where the model has them."""
        return self.head().logits(hidden)

    def start_cache(self, batch: int, max_length: int) -> Cache:
        """An empty cache for `batch` rows of `max_length` positions; a row is one text, not a packed row.

        Raises:
          ModelConfigError: as `require_positions`.
        """
        config = self.config
        require_positions(config, max_length)
        shape = (config.num_layers, batch, config.num_kv_heads, max_length, config.head_dim)
        empty = jnp.zeros(shape, self.compute.jax_dtype)
        return Cache(empty, empty)

    def prefill(
        self,
        tokens: Int[Array, "batch length"],
        segment_ids: Int[Array, "batch length"],
        max_length: int,
        *,
        bidirectional: Num[Array, "batch length"] | None = None,
    ) -> Cache:
        """A cache of `max_length` positions that holds these texts, one a row, each computed in one pass.

        Texts begin together, and padding (segment 0) follows them: `[5, 6, 0, 0]` goes on at position 2, whose key
        in the cache is then written anew. Whether the longest fits, ask `require_positions` before.
        """
        x, positions = self._enter(tokens, segment_ids, None)
        kept = self.decoder.prefill(x, segment_ids, positions, bidirectional, self.compute)
        room = (0, max_length - tokens.shape[1])
        return Cache(*(jnp.pad(x, ((0, 0), (0, 0), (0, 0), room, (0, 0))) for x in kept))

    def decode_step(
        self, tokens: Int[Array, " batch"], position: Int[Array, "#batch"] | Int[Array, ""], cache: Cache
    ) -> tuple[Float[Array, "batch word_embed"], Cache]:
        """One position for every row: `tokens` enter at `position`, one for all or each row's own; 0 is the first.

        Returns what `decode` gives at that position, and the cache for the next one.
        """
        position = jnp.broadcast_to(position, tokens.shape)
        hidden, new = self.decode_one(tokens, position, cache)
        return hidden, cache.written(new, position)

    def decode_one(
        self, tokens: Int[Array, " batch"], position: Int[Array, " batch"], cache: Cache
    ) -> tuple[Float[Array, "batch word_embed"], tuple[Array | Apart, Array | Apart]]:
        """`decode_step` but for the cache: the keys and values that `cache.written` is to be given."""
        tokens = tokens[:, None]
        x = self._embed(tokens, position[:, None], jnp.ones_like(tokens))
        hidden, new = self.decoder.step(x, position, cache, self.compute)
        return hidden[:, 0], new


def require_positions(config: DecoderConfig, length: int) -> None:
    """Refuses a text that a decoding with a cache cannot hold.

    Raises:
      ModelConfigError: it is beyond a learned table, or beyond where `dynamic` scaling would turn the keys that are
        already in the cache anew.
    """
    length += config.prefix_length
    if config.positions == "learned" and length > config.max_positions:
        raise ModelConfigError(
            f"a cache of {length} positions: the model has learned {config.max_positions} (max_positions)"
        )
    dynamic = config.positions == "rotary" and config.rotary.scaling == "dynamic"
    if dynamic and length > config.rotary.original_max_positions:
        raise ModelConfigError(
            f"a cache of {length} positions: dynamic scaling changes the angles of all positions with every token "
            f"after {config.rotary.original_max_positions}; decode at most so many, or use yarn or linear"
        )


@functools.cache
def _describe(config: DecoderConfig, compute: Compute) -> tuple[nnx.GraphDef[Decoder], nnx.State]:
    """The module's structure and the descriptions of its parameters."""
    return nnx.split(Decoder(config, compute))


def abstract_params(config: DecoderConfig) -> Params:
    """The parameter tree as `jax.ShapeDtypeStruct`s, float32."""
    return map_parameters(_describe(config, Compute())[1], lambda _, p: p.get_value())


def logical_axes(config: DecoderConfig) -> Params:
    """The parameter tree with a tuple of axis names a parameter, such as `("layers", "embed", "heads")`."""
    return map_parameters(_describe(config, Compute())[1], lambda _, p: p.axes)


def init_params(config: DecoderConfig, seed: int) -> Params:
    """Fresh parameters: normal with deviation `init_stddev`, norms that change nothing, biases 0; works under jit."""
    return draw_parameters(_describe(config, Compute())[1], seed)


def build(config: DecoderConfig, compute: Compute, params: Params) -> Decoder:
    """The model over these parameters (arrays or tracers); works under jit and grad.

    Raises:
      ModelConfigError: a parameter is missing, unknown or of another shape; the message names its path.
    """
    return fill_parameters(*_describe(config, compute), params)
