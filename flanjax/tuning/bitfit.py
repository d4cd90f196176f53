"""BitFit: the biases alone are trained (Ben Zaken et al. 2022, arXiv 2106.10199).

    y = x W + b        b [out], for a norm  y = norm(x) + b  with b [embed]

A model that has biases of its own, as most decoders from GPT-2 on, trains those, all of them. T5 and Llama have none:
there they are added, at zero, to the projections and the norms of the layers, so that the first model is exactly the
base. A T5's key needs none: it adds the same number to all scores of a query, and the softmax takes it away again.
"""

import dataclasses
import re
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
      targets: regular expression that has to match the whole path of a projection or norm,
        "decoder/layers/mlp/wo" or "encoder/layers/pre_mlp_layer_norm": its own bias is trained, and one is added to
        those in layers that have none. None takes all biases of a model that has some in its layers; in another model
        all projections and norms of the layers, but keys, are given one.

    Raises:
      TuningError: a pattern that is none.
    """

    name: ClassVar[str] = "bitfit"
    merges: ClassVar[bool] = False
    notice: ClassVar[str | None] = (
        "BitFit: to a model without biases, as T5, they are added, at zero; such a run cannot become a plain Hugging "
        "Face model"
    )
    targets: str | None = None

    def __post_init__(self) -> None:
        if self.targets is not None:
            check_pattern(self, "targets")

    def attach(self, layer: nnx.Module, path: str) -> None:
        """Puts a bias behind every target that has none."""
        own = [target for _, target in matching(layer, path, ".*", Linear, RMSNorm) if _has_bias(target)]
        if own and self.targets is None:
            return
        for _, target in matching(layer, path, self.targets or PROJECTIONS_AND_NORMS, Linear, RMSNorm):
            if not _has_bias(target):
                target.attach(self.name, Bias(target))

    def trains(self, path: str) -> bool:
        """The biases alone."""
        target, is_bias, _ = path.rpartition("/bias")
        added = target.endswith(f"/{self.name}")
        return bool(is_bias) and (added or self.targets is None or re.fullmatch(self.targets, target) is not None)

    def check(self, model: ModelConfig, paths: list[str]) -> None:
        """Refuses targets that are not there."""
        if not any(map(self.trains, paths)):
            norms = [path.removesuffix("/scale") for path in paths if "/layers/" in path and path.endswith("/scale")]
            raise no_match(self, "targets", projections(paths) + norms)

    def merge(self, params: Flat) -> Flat:
        """Nothing to do for a model's own biases; impossible for those that were added."""
        if any(f"/{self.name}/" in path for path in params):
            raise cannot_merge(self, "the plain model, as Hugging Face has it, has no biases that could hold these")
        return params


def _has_bias(target: Adaptable) -> bool:
    return getattr(target, "bias", None) is not None


class Bias(Adapter):
    """A bias for each output."""

    def __init__(self, target: Adaptable):
        self.bias = parameter(target.shape[-1:], target.axes[-1:], 0.0)

    def after(
        self, x: Float[Array, "batch length in"], out: Float[Array, "batch length out"], dropout: Dropout
    ) -> Float[Array, "batch length out"]:
        """`out` plus the bias."""
        return out + self.bias[...].astype(out.dtype)
