"""What a T5 is (`T5Config`) and how it is computed (`Compute`), kept apart on purpose.

`T5Config` fixes the shapes and the function: it is saved with a run and compared on resume. `Compute` may change
between two runs of one checkpoint without changing what the checkpoint means.
"""

import dataclasses
import math
from typing import Any, ClassVar, Protocol

import jax.numpy as jnp

from flanjax.errors import FlanjaxError

ACTIVATIONS = ("exact_gelu", "gelu", "linear", "relu", "silu", "squared_relu", "tanh")
DTYPES = ("float32", "bfloat16")
REMAT_POLICIES = ("none", "minimal", "full")
ATTENTION_IMPLEMENTATIONS = ("auto", "xla", "blockwise")


class ModelConfigError(FlanjaxError):
    """A model or compute setting that cannot be built."""


def require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuses a value that is none of `choices`, with a `ModelConfigError` that lists them."""
    if value not in choices:
        raise ModelConfigError(f"{name} is {value!r}: choose one of {', '.join(choices)}")


class Addition(Protocol):
    """Parameters and computation that a tuning method adds to a model; frozen and hashable, as the configuration is."""

    @property
    def dropout_rate(self) -> float:
        """Of a dropout that the addition has of its own; 0 for none."""

    @property
    def prompt_length(self) -> int:
        """Positions of a learnt prompt before every example's inputs; 0 for none."""

    @property
    def prompt_tasks(self) -> tuple[str, ...]:
        """The tasks that have a prompt of their own, number 0 first; none where one prompt serves all."""

    @property
    def prefix_length(self) -> int:
        """Learnt keys that stand before every text in the attention of a decoder; 0 for none."""

    def prompt(self, model: Any) -> Any:
        """The prompt of the first stack, a `flanjax.models.prompts.Prompt`, where `prompt_length` is not 0."""

    def prefixes(self, layer: Any, count: int, path: str) -> Any:
        """What makes prefixes for `count` layers as this one, a `flanjax.models.prompts.Prefixes`; None for none."""

    def attach(self, layer: Any, path: str) -> None:
        """Puts adapters into one layer (`flanjax.models.layers.Adaptable`), whose parameters lie under `path`."""


class Extensible:
    """A configuration of a model that tuning methods add to."""

    added: tuple[Addition, ...]
    dropout_rate: float
    embed_dim: int

    def check_added(self) -> None:
        """Refuses more than one prompt.

        Raises:
          ModelConfigError: there are two.
        """
        with_prompt = [type(addition).__name__ for addition in self.added if addition.prompt_length]
        if len(with_prompt) > 1:
            names = " and ".join(with_prompt)
            raise ModelConfigError(f"{type(self).__name__}.added has {names}: a model has one prompt")

    @property
    def input_dim(self) -> int:
        """Width of an embedded token, and so of a prompt's vectors: the model's, unless it widens them."""
        return self.embed_dim

    @property
    def draws_dropout(self) -> bool:
        """Whether training needs a key: some dropout, the model's or an addition's, has a rate."""
        return any(rate > 0 for rate in (self.dropout_rate, *(addition.dropout_rate for addition in self.added)))

    @property
    def prompt_length(self) -> int:
        """Positions of a learnt prompt, which the first ones of every example are kept for."""
        return sum(addition.prompt_length for addition in self.added)

    @property
    def prefix_length(self) -> int:
        """Learnt keys that stand before every text in the attention of a decoder, which positions count."""
        return sum(addition.prefix_length for addition in self.added)

    @property
    def prompt_tasks(self) -> tuple[str, ...]:
        """The tasks that have a prompt of their own, number 0 first; none where one prompt serves all."""
        return tuple(task for addition in self.added for task in addition.prompt_tasks)


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Config(Extensible):
    """The shape and the function of a T5 (Raffel et al. 2020; v1.1: Shazeer 2020, "GLU variants").

    Attributes:
      vocab_size: rows of the embedding, padding included (32,128 for every published English T5).
      embed_dim: width of the residual stream (Hugging Face `d_model`).
      num_heads: attention heads; the inner width is `num_heads * head_dim`, which need not equal `embed_dim`.
      head_dim: width of one head (`d_kv`).
      mlp_dim: inner width of the feed-forward block (`d_ff`).
      num_encoder_layers: encoder blocks.
      num_decoder_layers: decoder blocks.
      mlp_activations: one name for a plain block (`("relu",)`, v1.0), two for a gated one, whose branches are
        multiplied (`("gelu", "linear")`, v1.1). `gelu` is the tanh approximation, as in T5X and `gelu_new`.
      tied_head: logits from the embedding, with the decoder output scaled by `embed_dim**-0.5` (v1.0).
      dropout_rate: 0.1 is T5's fine-tuning value.
      relpos_per_layer: a relative-position table in every layer (UMT5) and not one for all layers of a stack.
      relpos_buckets: rows of each relative-position table.
      relpos_max_distance: from this distance on every position shares the last bucket.
      layer_norm_epsilon: added to the variance in every RMSNorm.
      added: what tuning methods add to the layers (`flanjax.tuning`); nothing in a model by itself.

    Raises:
      ModelConfigError: a size below 1, an unknown activation, a rate outside [0, 1), two prompts.
    """

    vocab_size: int = 32128
    embed_dim: int
    num_heads: int
    head_dim: int = 64
    mlp_dim: int
    num_encoder_layers: int
    num_decoder_layers: int
    mlp_activations: tuple[str, ...] = ("gelu", "linear")
    tied_head: bool = False
    dropout_rate: float = 0.0
    relpos_per_layer: bool = False
    relpos_buckets: int = 32
    relpos_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    added: tuple[Addition, ...] = ()

    # Embedded tokens go to the layers as they are.
    embedding_scale: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        # gin and JSON give lists; the configuration must stay hashable, jit uses it as a static argument.
        object.__setattr__(self, "mlp_activations", tuple(self.mlp_activations))
        object.__setattr__(self, "added", tuple(self.added))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int and (not isinstance(value, int) or value < 1):
                raise ModelConfigError(f"T5Config.{field.name} is {value!r}: it must be a whole number of at least 1")
        if len(self.mlp_activations) not in (1, 2):
            raise ModelConfigError(
                f"T5Config.mlp_activations is {self.mlp_activations!r}: give one activation, or two for a gated block"
            )
        for activation in self.mlp_activations:
            require_choice("T5Config.mlp_activations", activation, ACTIVATIONS)
        if not 0 <= self.dropout_rate < 1:
            raise ModelConfigError(f"T5Config.dropout_rate is {self.dropout_rate!r}: it must lie in [0, 1)")
        if self.relpos_buckets % 4 or self.relpos_max_distance <= self.relpos_buckets // 2:
            raise ModelConfigError(
                f"T5Config.relpos_buckets is {self.relpos_buckets} and relpos_max_distance {self.relpos_max_distance}: "
                "the buckets must be a multiple of 4 and the distance more than half of them (T5 has 32 and 128)"
            )
        self.check_added()

    @property
    def stacks(self) -> dict[str, int]:
        """Layers of each stack, lowest first."""
        return {"encoder": self.num_encoder_layers, "decoder": self.num_decoder_layers}

    @property
    def attention_dim(self) -> int:
        """Width of all heads together."""
        return self.num_heads * self.head_dim

    @property
    def head_scale(self) -> float:
        """What the decoder output is multiplied by before the logits."""
        return 1 / math.sqrt(self.embed_dim) if self.tied_head else 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compute:
    """How a model is run: nothing here changes the parameters or their layout.

    Attributes:
      dtype: of activations and matrix products, `float32` or `bfloat16`; parameters, norms, softmax and logits are
        float32 either way.
      scan_layers: one compiled layer in a loop (compiles fast) or every layer in line.
      remat: what the backward pass recomputes: `none`, `minimal` (everything but the outputs of projections and of
        attention in blocks: passes over single elements, for half of the memory) or `full` (each layer from its input).
      attention: implementation behind `flanjax.models.attention.attention`.

    Raises:
      ModelConfigError: an unknown name, or float16.
    """

    dtype: str = "float32"
    scan_layers: bool = True
    remat: str = "minimal"
    attention: str = "auto"

    def __post_init__(self) -> None:
        if self.dtype in ("float16", "fp16", "half"):
            raise ModelConfigError(
                f"Compute.dtype is {self.dtype!r}: T5's feed-forward output (`wo`) exceeds the largest float16 number "
                "(65504) and training turns to NaN or zero loss; use bfloat16 or float32"
            )
        require_choice("Compute.dtype", self.dtype, DTYPES)
        require_choice("Compute.remat", self.remat, REMAT_POLICIES)
        require_choice("Compute.attention", self.attention, ATTENTION_IMPLEMENTATIONS)

    @property
    def jax_dtype(self) -> jnp.dtype:
        """The dtype object of `dtype`."""
        return jnp.dtype(self.dtype)
