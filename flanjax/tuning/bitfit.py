"""BitFit: the biases alone are trained (Ben Zaken et al. 2022, arXiv 2106.10199).

    y = x W + b        b [out], for a norm  y = norm(x) + b  with b [embed]

T5 has no biases: here they are added, at zero, to the projections and the norms of the layers, so that the first model
is exactly the base. A key's bias is left out: it adds the same number to all scores of a query, and the softmax takes
it away again.
"""

import dataclasses
from typing import ClassVar

from flax import nnx
from jaxtyping import Array, Float

from flanjax.models.layers import Adaptable, Adapter, Dropout, Linear, RMSNorm, parameter
from flanjax.models.model import ModelConfig
from flanjax.tuning.method import Flat, Method, cannot_merge, check_pattern, matching, no_match, projections

PROJECTIONS_AND_NORMS = r".*/(query|value|out|wi|wi_0|wi_1|wo|\w*norm)"


@dataclasses.dataclass(frozen=True, kw_only=True)
class BitFit(Method):
    """Biases on projections and norms.

    Attributes:
      targets: regular expression that has to match the whole path of a projection or norm of a layer,
        "decoder/layers/mlp/wo" or "encoder/layers/pre_mlp_layer_norm"; the default is all of them but the keys'.

    Raises:
      TuningError: a pattern that is none.
    """

    name: ClassVar[str] = "bitfit"
    merges: ClassVar[bool] = False
    notice: ClassVar[str | None] = (
        "BitFit: T5 has no biases, so they are added, at zero; the run cannot become a plain Hugging Face model"
    )
    targets: str = PROJECTIONS_AND_NORMS

    def __post_init__(self) -> None:
        check_pattern(self, "targets")

    def attach(self, layer: nnx.Module, path: str) -> None:
        """Puts a bias behind every target."""
        for _, target in matching(layer, path, self.targets, Linear, RMSNorm):
            target.attach(self.name, Bias(target))

    def trains(self, path: str) -> bool:
        """The biases alone."""
        return f"/{self.name}/" in path

    def check(self, model: ModelConfig, paths: list[str]) -> None:
        """Refuses targets that are not there."""
        if not any(map(self.trains, paths)):
            norms = [path.removesuffix("/scale") for path in paths if "/layers/" in path and path.endswith("/scale")]
            raise no_match(self, "targets", projections(paths) + norms)

    def merge(self, params: Flat) -> Flat:
        """Impossible: a plain T5 has no biases."""
        raise cannot_merge(self, "a plain T5, and Hugging Face's with it, has no biases that could hold these")


class Bias(Adapter):
    """A bias for each output."""

    def __init__(self, target: Adaptable):
        self.bias = parameter(target.shape[-1:], target.axes[-1:], 0.0)

    def after(
        self, x: Float[Array, "batch length in"], out: Float[Array, "batch length out"], dropout: Dropout
    ) -> Float[Array, "batch length out"]:
        """`out` plus the bias."""
        return out + self.bias[...].astype(out.dtype)
