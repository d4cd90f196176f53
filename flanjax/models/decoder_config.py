"""What a decoder-only model is: one frozen `DecoderConfig`, of which every published family is a setting.

A family is no class of its own. What tells Llama from Falcon or BLOOM is a choice among a few parts: the norm and
where it stands, the positions, the heads, the feed-forward block, the biases. Each choice is a field here;
`flanjax.models.decoder` composes them, and `flanjax.interchange.hf_decoder_families` names them as Hugging Face does.
"""

import dataclasses
from typing import Any

from flanjax.models.config import ACTIVATIONS, Addition, Extensible, ModelConfigError, require_choice

NORMS = ("rms", "rms_plus_one", "layer")
POSITIONS = ("rotary", "alibi", "learned", "none")
RESIDUALS = ("sequential", "sequential_post_norm", "parallel", "parallel_one_norm")
SCALINGS = ("none", "linear", "dynamic", "llama3", "yarn")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rotary:
    """Rotary positions (Su et al. 2021, arXiv 2104.09864) and how they are stretched beyond the trained length.

    Attributes:
      theta: base of the wavelengths.
      fraction: of the head's width that is rotated, its first part; the rest stays as it is.
      interleaved: whether pair i is numbers 2i and 2i + 1 (as the paper has it, and GLM), not i and i + pairs.
      scaling: `none`; `linear` divides every frequency by `factor`; `dynamic` (NTK) enlarges theta with the length of
        the text once it is beyond `original_max_positions`; `llama3` divides the low frequencies alone (Llama 3.1);
        `yarn` divides by a ramp over the frequencies and scales the result (Peng et al. 2023, arXiv 2309.00071).
      factor: of the stretching.
      original_max_positions: the length before stretching.
      low_freq_factor: `llama3`: wavelengths above `original_max_positions` over this are divided.
      high_freq_factor: `llama3`: wavelengths below `original_max_positions` over this stay; between the two, a ramp.
      beta_fast: `yarn`: dimensions that turn more often than this over the original length stay.
      beta_slow: `yarn`: those that turn less often are divided.
      truncate: `yarn`: whether the ramp begins and ends at whole dimensions.
      attention_factor: `yarn`: what cosine and sine are multiplied by; None for `0.1 ln(factor) + 1`.

    Raises:
      ModelConfigError: an unknown scaling, or a number outside its range.
    """

    theta: float = 10_000.0
    fraction: float = 1.0
    interleaved: bool = False
    scaling: str = "none"
    factor: float = 1.0
    original_max_positions: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        require_choice("Rotary.scaling", self.scaling, SCALINGS)
        if not self.theta > 1 or not 0 < self.fraction <= 1 or self.factor < 1:
            raise ModelConfigError(
                f"Rotary has theta {self.theta!r}, fraction {self.fraction!r} and factor {self.factor!r}: theta must "
                "be above 1, the fraction in (0, 1], the factor at least 1"
            )
        if self.scaling in ("dynamic", "llama3", "yarn") and self.original_max_positions < 1:
            raise ModelConfigError(
                f"Rotary.original_max_positions is {self.original_max_positions!r}: {self.scaling} needs the length "
                "that the model was trained with"
            )
        if self.scaling == "llama3" and not 0 < self.low_freq_factor < self.high_freq_factor:
            raise ModelConfigError(
                f"Rotary.low_freq_factor is {self.low_freq_factor!r}: it must be positive and below high_freq_factor "
                f"({self.high_freq_factor!r})"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig(Extensible):
    """The shape and the function of a decoder.

    Attributes:
      vocab_size: rows of the embedding.
      embed_dim: width of the residual stream.
      word_embed_dim: width of the embedding, where it is another: tokens are projected from it to `embed_dim`, and the
        output back to it before the head (OPT 350M); 0 where it is `embed_dim`.
      num_layers: blocks.
      num_heads: query heads.
      num_kv_heads: key and value heads: as many as queries (multi-head), fewer (grouped), one (multi-query).
      head_dim: width of one head; `num_heads * head_dim` need not equal `embed_dim`.
      mlp_dim: inner width of the feed-forward block.
      mlp_activations: one name for a plain block, two for a gated one, as `T5Config`.
      norm: `rms`, `rms_plus_one` (its stored scale is the distance from 1: Gemma) or `layer` (mean and bias too).
      layer_norm_epsilon: added to the variance.
      post_norms: a norm after attention and after the feed-forward block as well, before the residual (Gemma 2).
      embedding_norm: a norm on the embedded tokens (BLOOM).
      residual: `sequential`; `sequential_post_norm`: each norm stands after the sum and not before the block, and none
        follows the last layer (Vaswani et al. 2017, arXiv 1706.03762; OPT 350M); `parallel`: attention and
        feed-forward block both read the layer's input, each through a norm of its own (GPT-NeoX);
        `parallel_one_norm`: through one norm (Phi, Falcon 7B).
      positions: `rotary`, `alibi` (Press et al. 2022, arXiv 2108.12409), `learned`, or `none`.
      rotary: of rotary positions.
      alibi_scale: what ALiBi's slopes are multiplied by (Falcon RW: `head_dim**-0.5`, as scores are).
      alibi_rounded: whether slopes, positions and their products are rounded to bfloat16, as Falcon RW was trained: a
        key's bias then follows from its position in the text, and no longer from its distance alone.
      max_positions: rows of the learned table that positions use, and the length that the model was made for.
      position_offset: unused rows at the start of the learned table (OPT has 2).
      attention_scale: what queries are multiplied by; None for `head_dim**-0.5`.
      attention_softcap: scores become `cap * tanh(score / cap)`; 0 for none (Gemma 2).
      qk_norm: a norm over each head of queries and keys, before they are rotated (Qwen 3).
      window: keys that a query sees at most, itself the last of them; 0 for all (Mistral).
      windowed: which layers have the window, repeated over the layers: (True, False) is every other one, the first
        included (Gemma 2).
      qkv_bias: a bias on queries, keys and values.
      out_bias: a bias on the attention's output.
      mlp_bias: biases in the feed-forward block.
      head_bias: a bias on the logits (Phi).
      embedding_scale: what embedded tokens are multiplied by (Gemma: `embed_dim**0.5`).
      logits_softcap: as `attention_softcap`, of the logits.
      tied_head: logits from the embedding.
      dropout_rate: on embedded tokens, attention weights, and what both blocks add to the residual.
      init_stddev: of fresh kernels and embeddings.
      added: what tuning methods add to the layers (`flanjax.tuning`); nothing in a model by itself.

    Raises:
      ModelConfigError: a size below 1, an unknown name, heads that do not share evenly, a rate outside [0, 1), two
        prompts.
    """

    vocab_size: int
    embed_dim: int
    word_embed_dim: int = 0
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    mlp_activations: tuple[str, ...] = ("silu", "linear")
    norm: str = "rms"
    layer_norm_epsilon: float = 1e-6
    post_norms: bool = False
    embedding_norm: bool = False
    residual: str = "sequential"
    positions: str = "rotary"
    rotary: Rotary = Rotary()
    alibi_scale: float = 1.0
    alibi_rounded: bool = False
    max_positions: int = 2048
    position_offset: int = 0
    attention_scale: float | None = None
    attention_softcap: float = 0.0
    qk_norm: bool = False
    window: int = 0
    windowed: tuple[bool, ...] = (True,)
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    embedding_scale: float = 1.0
    logits_softcap: float = 0.0
    tied_head: bool = False
    dropout_rate: float = 0.0
    init_stddev: float = 0.02
    added: tuple[Addition, ...] = ()

    def __post_init__(self) -> None:
        # gin and JSON give lists and dicts; the configuration must stay hashable, jit uses it as a static argument.
        object.__setattr__(self, "mlp_activations", tuple(self.mlp_activations))
        object.__setattr__(self, "windowed", tuple(self.windowed))
        object.__setattr__(self, "added", tuple(self.added))
        rotary: Any = self.rotary
        if isinstance(rotary, dict):
            object.__setattr__(self, "rotary", Rotary(**rotary))
        self._check_sizes()
        for name, choices in (("norm", NORMS), ("positions", POSITIONS), ("residual", RESIDUALS)):
            require_choice(f"DecoderConfig.{name}", getattr(self, name), choices)
        if len(self.mlp_activations) not in (1, 2):
            raise ModelConfigError(
                f"DecoderConfig.mlp_activations is {self.mlp_activations!r}: give one activation, or two for a gated "
                "block"
            )
        for activation in self.mlp_activations:
            require_choice("DecoderConfig.mlp_activations", activation, ACTIVATIONS)
        if not 0 <= self.dropout_rate < 1:
            raise ModelConfigError(f"DecoderConfig.dropout_rate is {self.dropout_rate!r}: it must lie in [0, 1)")
        if self.positions == "rotary" and (self.rotary_dim < 2 or self.rotary_dim % 2):
            raise ModelConfigError(
                f"DecoderConfig.rotary turns {self.rotary_dim} of the {self.head_dim} numbers of a head: it must be "
                "pairs of them"
            )
        if self.rotary.scaling == "dynamic" and self.rotary_dim < 4:
            raise ModelConfigError("DecoderConfig.rotary scales dynamically, which needs at least 4 rotated numbers")
        if self.positions != "alibi" and (self.alibi_rounded or self.alibi_scale != 1):
            raise ModelConfigError(
                f"DecoderConfig.alibi_scale is {self.alibi_scale!r} and alibi_rounded {self.alibi_rounded!r}: they are "
                f"of 'alibi' positions, and these are {self.positions!r}"
            )
        if not self.alibi_scale > 0:
            raise ModelConfigError(f"DecoderConfig.alibi_scale is {self.alibi_scale!r}: it must be positive")
        if self.head_bias and self.tied_head:
            raise ModelConfigError("DecoderConfig.head_bias is set: a tied head has no bias")
        if self.residual == "sequential_post_norm" and self.post_norms:
            raise ModelConfigError(
                "DecoderConfig.post_norms is set: with residual 'sequential_post_norm' the norms already stand after "
                "the blocks"
            )
        self.check_added()

    def _check_sizes(self) -> None:
        may_be_zero = ("position_offset", "window", "word_embed_dim")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in may_be_zero else 1
            if field.type is int and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise ModelConfigError(
                    f"DecoderConfig.{field.name} is {value!r}: it must be a whole number of at least {least}"
                )
        if self.word_embed_dim == self.embed_dim:
            raise ModelConfigError(
                f"DecoderConfig.word_embed_dim is {self.word_embed_dim}, as embed_dim is: leave it out (0), there is "
                "nothing to project"
            )
        if self.num_heads % self.num_kv_heads:
            raise ModelConfigError(
                f"DecoderConfig.num_kv_heads is {self.num_kv_heads}: the {self.num_heads} query heads cannot share "
                "them evenly"
            )
        if not self.windowed or not all(isinstance(layer, bool) for layer in self.windowed):
            raise ModelConfigError(f"DecoderConfig.windowed is {self.windowed!r}: give True or False for each layer")

    @property
    def stacks(self) -> dict[str, int]:
        """Layers of each stack, lowest first."""
        return {"decoder": self.num_layers}

    @property
    def input_dim(self) -> int:
        """Width of an embedded token, of a prompt's vectors, and of what the head is given."""
        return self.word_embed_dim or self.embed_dim

    @property
    def text_positions(self) -> int:
        """How many of the positions that the model was made for a learnt prefix leaves to a text."""
        return self.max_positions - self.prefix_length

    @property
    def can_branch(self) -> bool:
        """Whether a token's own position is all that it needs to know of places, as a row that branches takes it."""
        by_position = self.positions == "learned" or (self.positions == "rotary" and self.rotary.scaling != "dynamic")
        return by_position and not self.window and not self.prefix_length

    @property
    def rotary_dim(self) -> int:
        """How many numbers of each head are rotated."""
        return int(self.head_dim * self.rotary.fraction)

    @property
    def query_scale(self) -> float:
        """What queries are multiplied by."""
        return self.head_dim**-0.5 if self.attention_scale is None else self.attention_scale

    @property
    def window_of_layers(self) -> tuple[bool, ...]:
        """Whether each layer has the window."""
        return tuple(self.window > 0 and self.windowed[i % len(self.windowed)] for i in range(self.num_layers))
