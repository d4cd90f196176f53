"""P-tuning: a prompt made by a small network from a learnt table (Liu et al. 2021, arXiv 2103.10385).

    P = f(E)        E [length, embed], learnt; f, learnt too, is one of
    MLP             W_2 relu(W_1 relu(W_0 E))
    LSTM            W_1 relu(W_0 h), h of two LSTM layers along the prompt, each in both directions

The network ties the positions of the prompt together and is needed in training alone: `prompt_table` has what it made.
Sizes and first values are those of peft's PromptEncoder.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flanjax.errors import nearest
from flanjax.models.layers import parameter
from flanjax.models.model import ModelConfig
from flanjax.models.prompts import Prompt
from flanjax.tuning.method import TuningError
from flanjax.tuning.prompt import PromptMethod

ENCODERS = ("mlp", "lstm")
_LSTM_LAYERS = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class PTuning(PromptMethod):
    """A network and the table that it makes the prompt from are learnt.

    Attributes:
      encoder: `mlp` or `lstm`.
      hidden_dim: the network's width, in each direction of an LSTM; None takes the model's.

    Raises:
      TuningError: an unknown encoder or a width below 1.
    """

    name: ClassVar[str] = "p_tuning"
    length: int = 20
    encoder: str = "mlp"
    hidden_dim: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.encoder not in ENCODERS:
            raise TuningError(
                f"PTuning.encoder is {self.encoder!r}{nearest(str(self.encoder), ENCODERS)}: "
                f"choose one of {', '.join(ENCODERS)}"
            )
        if self.hidden_dim is not None and (not isinstance(self.hidden_dim, int) or self.hidden_dim < 1):
            raise TuningError(f"PTuning.hidden_dim is {self.hidden_dim!r}: give a whole number of at least 1, or None")

    def prompt(self, model: ModelConfig) -> Prompt:
        """The table and its network."""
        return PromptEncoder(self, model.input_dim)


class Dense(nnx.Module):
    """`x kernel + bias`, both uniform in +-1/sqrt(in) at the start."""

    def __init__(self, size_in: int, size_out: int, axes: tuple[str, str]):
        stddev = (3 * size_in) ** -0.5
        self.kernel = parameter((size_in, size_out), axes, stddev, uniform=True)
        self.bias = parameter((size_out,), axes[1:], stddev, uniform=True)

    def __call__(self, x: Float[Array, "*batch in"]) -> Float[Array, "*batch out"]:
        """The projection."""
        return x @ self.kernel[...] + self.bias[...]


class Lstm(nnx.Module):
    """One direction of an LSTM layer, its gates in the order input, forget, cell, output."""

    def __init__(self, size_in: int, hidden: int, *, reverse: bool):
        self.hidden, self.reverse = hidden, reverse
        axes, stddev = ("prompt_hidden", "prompt_hidden"), (3 * hidden) ** -0.5
        self.input_kernel = parameter((size_in, 4 * hidden), axes, stddev, uniform=True)
        self.state_kernel = parameter((hidden, 4 * hidden), axes, stddev, uniform=True)
        self.bias = parameter((4 * hidden,), axes[1:], stddev, uniform=True)

    def __call__(self, x: Float[Array, "prompts length in"]) -> Float[Array, "prompts length hidden"]:
        """The state at every position."""
        state_kernel = self.state_kernel[...]

        def step(carry: tuple[Array, Array], given: Array) -> tuple[tuple[Array, Array], Array]:
            state, cell = carry
            into, forget, new, out = jnp.split(given + state @ state_kernel, 4, axis=-1)
            cell = jax.nn.sigmoid(forget) * cell + jax.nn.sigmoid(into) * jnp.tanh(new)
            state = jax.nn.sigmoid(out) * jnp.tanh(cell)
            return (state, cell), state

        given = (x @ self.input_kernel[...] + self.bias[...]).swapaxes(0, 1)
        zeros = jnp.zeros((len(x), self.hidden), x.dtype)
        _, states = jax.lax.scan(step, (zeros, zeros), given, reverse=self.reverse)
        return states.swapaxes(0, 1)


class PromptEncoder(Prompt):
    """`embedding` [prompts, length, embed] and the layers of its network, `lstm_*` and `dense_*`."""

    def __init__(self, method: PTuning, embed: int):
        hidden = method.hidden_dim or embed
        self.embedding = parameter((method.prompts, method.length, embed), ("prompts", "prompt_length", "embed"), 1.0)
        self.lstm_names: tuple[tuple[str, str], ...] = ()
        if method.encoder == "lstm":
            sizes = [2 * hidden, 2 * hidden, embed]
            for layer in range(_LSTM_LAYERS):
                names = f"lstm_{layer}_forward", f"lstm_{layer}_backward"
                for name, reverse in zip(names, (False, True), strict=True):
                    setattr(self, name, Lstm(2 * hidden if layer else embed, hidden, reverse=reverse))
                self.lstm_names = (*self.lstm_names, names)
        else:
            sizes = [embed, hidden, hidden, embed]
        self.dense_names = tuple(f"dense_{number}" for number in range(len(sizes) - 1))
        for name, size_in, size_out in zip(self.dense_names, sizes, sizes[1:], strict=False):
            last = name == self.dense_names[-1]
            axes = ("prompt_hidden", "embed" if last else "prompt_hidden")
            setattr(self, name, Dense(size_in, size_out, axes))

    def __call__(self) -> Float[Array, "prompts length embed"]:
        """What the network makes of the table, in float32."""
        x = self.embedding[...]
        for names in self.lstm_names:
            x = jnp.concatenate([getattr(self, name)(x) for name in names], axis=-1)
        for name in self.dense_names:
            x = getattr(self, name)(x if name == "dense_0" else jax.nn.relu(x))
        return x
