"""Prefix tuning: learnt keys and values before those of an attention, in every layer (Li and Liang 2021).

    attention(q, [P_k; K], [P_v; V])        P_k, P_v [length, heads, head_dim], learnt, of each layer

arXiv 2101.00190. The default is what peft's PREFIX_TUNING does to a T5: the decoder's self-attention alone has a
prefix, which lies before position 0 as earlier tokens would. `attentions=".*attention"` is the paper's, all three kinds
each with their own; in the encoder's and over the encoder's output a prefix has no position, and no position's bias.

With `hidden_dim` a network makes the prefix in training, which the paper finds steadier (section 4.3):

    [P_k; P_v] of layer l = W_l tanh(W E + b) + b_l        E [length, embed], W and b are of all layers of a stack

peft calls it prefix_projection. What it made is a prefix as any other, and all that anyone needs: `folded`.

peft 0.21 keeps a table [length, layers, 2, heads, head_dim] and hands decoder layer i the entry 2 i modulo the layers.
With an odd number of layers each has its own; with an even number two share one, and half of the table is unused.

Every segment of a packed row sees the prefix and no room is lost for it. There is no start that leaves the base model's
answers alone: the keys are drawn at random, as large as a T5's own, and draw attention to themselves.
"""

import dataclasses
import re
from typing import ClassVar, NoReturn

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from flanjax.models.config import Compute
from flanjax.models.layers import Attention, parameter
from flanjax.models.model import ModelConfig, build
from flanjax.models.parameters import Params
from flanjax.models.prompts import Prefix, Prefixes, with_prefixes
from flanjax.tuning.method import Flat, Method, TuningError, check_pattern, matching, no_match, projections
from flanjax.tuning.p_tuning import Dense

DECODER = r"decoder/layers/self_attention"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrefixTuning(Method):
    """Keys and values before those of attentions.

    Attributes:
      length: of the prefix.
      attentions: regular expression that has to match an attention's whole path, such as
        "decoder/layers/encoder_decoder_attention".
      hidden_dim: width of the network that makes the prefix, one for each kind of attention; None: there is none, and
        the keys and values are learnt themselves.

    Raises:
      TuningError: a length or a width below 1, or a pattern that is none.
    """

    name: ClassVar[str] = "prefix"
    merges: ClassVar[bool] = False
    length: int = 30
    attentions: str = DECODER
    hidden_dim: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.length, int) or self.length < 1:
            raise TuningError(f"PrefixTuning.length is {self.length!r}: give a whole number of at least 1")
        if self.hidden_dim is not None and (not isinstance(self.hidden_dim, int) or self.hidden_dim < 1):
            raise TuningError(
                f"PrefixTuning.hidden_dim is {self.hidden_dim!r}: give a whole number of at least 1, or None"
            )
        check_pattern(self, "attentions")

    @property
    def prefix_length(self) -> int:
        """The `length`."""
        return self.length

    def attach(self, layer: nnx.Module, path: str) -> None:
        """Puts a prefix into every attention that matches, where no network makes it."""
        for _, module in matching(layer, path, self.attentions, Attention):
            if module.implementation == "blockwise":
                raise TuningError("attention 'blockwise' has no place for a prefix: set Compute.attention to 'auto'")
            if self.hidden_dim is None:
                module.prefix = KeysAndValues.of(module, self.length)

    def prefixes(self, layer: nnx.Module, count: int, path: str) -> Prefixes | None:
        """The networks of every attention that matches."""
        found = matching(layer, path, self.attentions, Attention)
        if self.hidden_dim is None or not found:
            return None
        return Networks({name.rpartition("/")[2]: Network(self, module, count) for name, module in found})

    def trains(self, path: str) -> bool:
        """The prefixes alone, or what they are made from."""
        return f"/{self.name}/" in path

    def check(self, model: ModelConfig, paths: list[str]) -> None:
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
    """The arrays `key` and `value` [length, heads, head_dim] of one attention; stacked, [layers, ...]."""

    def __init__(self, key: nnx.Param, value: nnx.Param, length: int):
        self.key, self.value, self.length = key, value, length

    @classmethod
    def of(cls, attention: Attention, length: int) -> "KeysAndValues":
        """Learnt themselves, and normal at the start as peft's are."""
        heads, width = attention.kv_heads, attention.key.shape[1]
        shape, axes = (length, heads, width // heads), ("prompt_length", "heads", "kv")
        return cls(parameter(shape, axes, 1.0), parameter(shape, axes, 1.0), length)

    def __call__(self) -> tuple[Float[Array, "prefix heads head_dim"], Float[Array, "prefix heads head_dim"]]:
        """Keys and values."""
        return self.key[...], self.value[...]


class Networks(Prefixes):
    """The `Network` of each attention of a stack, under the attention's name."""

    def __init__(self, networks: dict[str, "Network"]):
        self.names = tuple(networks)
        for name, network in networks.items():
            setattr(self, name, network)

    def __call__(self) -> dict[str, Prefix]:
        """What they make."""
        return {name: getattr(self, name)() for name in self.names}


class Network(nnx.Module):
    """Makes one attention's prefixes of all layers: `embedding` [length, embed], `dense`, and `key` and `value`."""

    def __init__(self, method: PrefixTuning, attention: Attention, layers: int):
        assert method.hidden_dim is not None
        (embed, inner), hidden = attention.key.shape, method.hidden_dim
        self.heads = attention.kv_heads
        self.embedding = parameter((method.length, embed), ("prompt_length", "embed"), 1.0)
        self.dense = Dense(embed, hidden, ("prompt_hidden", "prompt_hidden"))
        self.key = Projections(layers, hidden, inner)
        self.value = Projections(layers, hidden, inner)

    def __call__(self) -> KeysAndValues:
        """Keys and values, in float32."""
        hidden = jnp.tanh(self.dense(self.embedding[...]))
        key, value = (made.reshape(*made.shape[:2], self.heads, -1) for made in (self.key(hidden), self.value(hidden)))
        return KeysAndValues(nnx.Param(key), nnx.Param(value), len(hidden))


class Projections(nnx.Module):
    """`x kernel + bias` of each layer by itself, uniform in +-1/sqrt(in) at the start."""

    def __init__(self, layers: int, size_in: int, size_out: int):
        stddev = (3 * size_in) ** -0.5
        self.kernel = parameter((layers, size_in, size_out), ("layers", "prompt_hidden", "heads"), stddev, uniform=True)
        self.bias = parameter((layers, size_out), ("layers", "heads"), stddev, uniform=True)

    def __call__(self, x: Float[Array, "length in"]) -> Float[Array, "layers length out"]:
        """What each layer makes of `x`."""
        return x @ self.kernel[...] + self.bias[...][:, None]


def folded(method: PrefixTuning, model: ModelConfig, params: Params) -> tuple[PrefixTuning, Flat]:
    """The prefix that a network made, in float32, as one that is learnt itself; any other as it is.

    Arguments:
      method: of the model.
      model: with its tuning methods.
      params: all of its parameters.
    """
    built = build(model, Compute(), params)
    made: Flat = {}
    for path, stack in built.stacks.items():
        layers = with_prefixes(stack.layers, stack.prefix)
        for name, attention in matching(layers, f"{path}/layers", method.attentions, Attention):
            assert attention.prefix is not None
            key, value = attention.prefix()
            made |= {f"{name}/{method.name}/key": np.asarray(key), f"{name}/{method.name}/value": np.asarray(value)}
    return dataclasses.replace(method, hidden_dim=None), made
