"""What turns a model's output into logits: a matrix, and for some families a bias and a soft cap.

    logits = cap * tanh((hidden @ kernel + bias) / cap)

Phi's head has a bias, Gemma 2's a cap of 30; T5's has neither. The loss takes a head apart, so that logits of a whole
batch never exist (`flanjax.training.losses`); `Head.logits` is for where they may.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Head:
    """A head as arrays; a pytree, of which the cap and `tied` are no part.

    Attributes:
      kernel: the float32 output matrix.
      bias: added to the product; None for none.
      softcap: bound of the logits; 0 for none.
      tied: the kernel is the embedding of the tokens, as it lies: turned round, it would be copied for every loss.
    """

    kernel: Float[Array, "embed vocab"] | Float[Array, "vocab embed"]
    bias: Float[Array, " vocab"] | None = None
    softcap: float = dataclasses.field(default=0.0, metadata={"static": True})
    tied: bool = dataclasses.field(default=False, metadata={"static": True})

    @property
    def axes(self) -> tuple[str, str]:
        """The logical axes of the kernel."""
        return ("vocab", "embed") if self.tied else ("embed", "vocab")

    @property
    def letters(self) -> str:
        """The kernel's subscripts in an einsum: its axes' first letters."""
        return "".join(axis[0] for axis in self.axes)

    def logits(self, hidden: Float[Array, "*batch embed"]) -> Float[Array, "*batch vocab"]:
        """Float32 logits of a model's output."""
        # Two dimensions: XLA:CPU computes the weight gradient of a three-dimensional product at half the speed.
        flat = hidden.reshape(-1, hidden.shape[-1])
        kernel = self.kernel.astype(flat.dtype)
        product = jnp.einsum(f"te,{self.letters}->tv", flat, kernel, preferred_element_type=jnp.float32)
        return self.bounded(product).reshape(*hidden.shape[:-1], product.shape[-1])

    def bounded(self, product: Float[Array, "*batch vocab"]) -> Float[Array, "*batch vocab"]:
        """The logits of a product with the kernel: bias and soft cap."""
        logits = product if self.bias is None else product + self.bias
        return self.softcap * jnp.tanh(logits / self.softcap) if self.softcap else logits
