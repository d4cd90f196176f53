"""Prefix tuning: learnt keys and values before those of an attention, in every layer (Li and Liang 2021).

    attention(q, [P_k; K], [P_v; V])        P_k, P_v [length, heads, head_dim], learnt, of each layer

arXiv 2101.00190. The default is what peft's PREFIX_TUNING does to a T5: the decoder's self-attention alone has a
prefix, which lies before position 0 as earlier tokens would. `attentions=".*attention"` is the paper's, all three kinds
each with their own; in the encoder's and over the encoder's output a prefix has no position, and no position's bias.

peft 0.21 keeps a table [length, layers, 2, heads, head_dim] and hands decoder layer i the entry 2 i modulo the layers.
With an odd number of layers each has its own; with an even number two share one, and half of the table is unused.

Every segment of a packed row sees the prefix and no room is lost for it. There is no start that leaves the base model's
answers alone: the keys are drawn at random, as large as a T5's own, and draw attention to themselves.
"""

import dataclasses
import re
from typing import ClassVar, NoReturn

from flax import nnx
from jaxtyping import Array, Float

from flanjax.models.config import T5Config
from flanjax.models.layers import MultiHeadAttention, parameter
from flanjax.models.prompts import Prefix
from flanjax.tuning.method import Flat, Method, TuningError, check_pattern, matching, no_match, projections

DECODER = r"decoder/layers/self_attention"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrefixTuning(Method):
    """Keys and values before those of attentions.

    Attributes:
      length: of the prefix.
      attentions: regular expression that has to match an attention's whole path, such as
        "decoder/layers/encoder_decoder_attention".

    Raises:
      TuningError: a length below 1, or a pattern that is none.
    """

    name: ClassVar[str] = "prefix"
    length: int = 30
    attentions: str = DECODER

    def __post_init__(self) -> None:
        if not isinstance(self.length, int) or self.length < 1:
            raise TuningError(f"PrefixTuning.length is {self.length!r}: give a whole number of at least 1")
        check_pattern(self, "attentions")

    def attach(self, layer: nnx.Module, path: str) -> None:
        """Puts a prefix into every attention that matches."""
        for _, module in matching(layer, path, self.attentions, MultiHeadAttention):
            if module.implementation == "per_head":
                raise TuningError("attention 'per_head' has no place for a prefix: set Compute.attention to 'auto'")
            module.prefix = KeysAndValues(module, self.length)

    def trains(self, path: str) -> bool:
        """The prefixes alone."""
        return f"/{self.name}/" in path

    def check(self, model: T5Config, paths: list[str]) -> None:
        """Refuses a pattern that no attention matches."""
        attentions = sorted({path.rpartition("/")[0] for path in projections(paths) if path.endswith("attention/key")})
        if not any(re.fullmatch(self.attentions, path) for path in attentions):
            raise no_match(self, "attentions", attentions)

    def merge(self, params: Flat) -> NoReturn:
        """Refuses: a prefix is in no weight.

        Raises:
          TuningError: always.
        """
        raise TuningError(
            "PrefixTuning learns keys and values of positions that are not in the text, and no weight of the model "
            "makes them, so they cannot be merged into its own parameters: use the run as it is (flanjax.load), or "
            "export it as a PEFT folder"
        )


class KeysAndValues(Prefix):
    """The arrays `key` and `value` [length, heads, head_dim] of one attention, normal at the start as peft's are."""

    def __init__(self, attention: MultiHeadAttention, length: int):
        self.length = length
        heads, width = attention.num_heads, attention.key.shape[1]
        shape, axes = (length, heads, width // heads), ("prompt_length", "heads", "kv")
        self.key = parameter(shape, axes, 1.0)
        self.value = parameter(shape, axes, 1.0)

    def __call__(self) -> tuple[Float[Array, "prefix heads head_dim"], Float[Array, "prefix heads head_dim"]]:
        """Keys and values."""
        return self.key[...], self.value[...]
