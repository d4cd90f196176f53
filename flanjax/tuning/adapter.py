"""Bottleneck adapters: a small network with one hidden layer behind, or beside, whole blocks of a layer.

    f(h) = s (drop(act(h D + d)) U + u)        D [embed, bottleneck], U [bottleneck, embed]

    houlsby    y + f(y)       y = block(x): every attention and the feed-forward; the layer norms are trained too
    pfeiffer   y + f(y)       the feed-forward alone
    parallel   y + f(x)       beside the feed-forward, from the same normalised input

Houlsby et al. 2019 (arXiv 1902.00751), Pfeiffer et al. 2021 (arXiv 2005.00247), He et al. 2022 (arXiv 2110.04366).
All of it lies inside the residual branch, before the residual's dropout. U, u and d start at zero, so that the first
model is exactly the base, and D uniform in +-1/sqrt(embed), as He et al. do.
"""

import dataclasses
import re
from typing import ClassVar

from flax import nnx
from jaxtyping import Array, Float

from flanjax.models.config import ACTIVATIONS
from flanjax.models.layers import (
    ACTIVATION_FUNCTIONS,
    Adaptable,
    Adapter,
    Attention,
    Dropout,
    Mlp,
    parameter,
    project,
)
from flanjax.models.model import ModelConfig
from flanjax.tuning.method import Flat, Method, TuningError, blocks, cannot_merge, check_pattern, matching, no_match
from flanjax.tuning.select import LAYER_NORMS

# The blocks of each style.
STYLES = {"houlsby": r".*/(mlp|\w*attention)", "pfeiffer": r".*/mlp", "parallel": r".*/mlp"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BottleneckAdapter(Method):
    """Adapters around blocks.

    Attributes:
      style: `houlsby`, `pfeiffer` or `parallel`; see above.
      bottleneck: units of the hidden layer.
      activation: of the hidden layer.
      scale: what the output is multiplied by; He et al. take 4 for `parallel`.
      dropout: rate of the hidden layer's; one mask serves the whole length of a row.
      blocks: regular expression that has to match a block's whole path, "decoder/layers/encoder_decoder_attention" or
        "encoder/layers/mlp"; None takes those of the style.
      init_std: None starts from zero as above; a number draws D and U with this deviation, near the identity and not
        at it (Houlsby et al.: 0.01).

    Raises:
      TuningError: a style or activation that there is not, a bottleneck below 1, a dropout rate outside [0, 1), a
        deviation that is not positive, or a pattern that is none.
    """

    name: ClassVar[str] = "adapter"
    merges: ClassVar[bool] = False
    style: str = "houlsby"
    bottleneck: int = 64
    activation: str = "gelu"
    scale: float = 1.0
    dropout: float = 0.0
    blocks: str | None = None
    init_std: float | None = None

    def __post_init__(self) -> None:
        for field, choices in (("style", tuple(STYLES)), ("activation", ACTIVATIONS)):
            if getattr(self, field) not in choices:
                raise TuningError(
                    f"BottleneckAdapter.{field} is {getattr(self, field)!r}: choose one of {', '.join(choices)}"
                )
        if not isinstance(self.bottleneck, int) or self.bottleneck < 1:
            raise TuningError(
                f"BottleneckAdapter.bottleneck is {self.bottleneck!r}: it must be a whole number of at least 1"
            )
        if not 0 <= self.dropout < 1:
            raise TuningError(f"BottleneckAdapter.dropout is {self.dropout!r}: it must lie in [0, 1)")
        if self.init_std is not None and not self.init_std > 0:
            raise TuningError(
                f"BottleneckAdapter.init_std is {self.init_std!r}: it must be positive, or None to start from zero"
            )
        if self.blocks is None:
            object.__setattr__(self, "blocks", STYLES[self.style])
        check_pattern(self, "blocks")

    @property
    def dropout_rate(self) -> float:
        """The rate of `dropout`."""
        return self.dropout

    def attach(self, layer: nnx.Module, path: str) -> None:
        """Puts a bottleneck around every block that matches."""
        for _, block in matching(layer, path, str(self.blocks), Mlp, Attention):
            block.attach(self.name, Bottleneck(block, self))

    def trains(self, path: str) -> bool:
        """The bottlenecks, and in Houlsby's style the layer norms."""
        return f"/{self.name}/" in path or (self.style == "houlsby" and re.fullmatch(LAYER_NORMS, path) is not None)

    def check(self, model: ModelConfig, paths: list[str]) -> None:
        """Refuses blocks that are not there."""
        if not any(f"/{self.name}/" in path for path in paths):
            raise no_match(self, "blocks", blocks(paths))

    def merge(self, params: Flat) -> Flat:
        """Impossible: what stands between D and U is not linear."""
        raise cannot_merge(self, "between its two matrices is a nonlinearity, which no matrix of a plain T5 can hold")


class Bottleneck(Adapter):
    """The small network of one block."""

    def __init__(self, block: Adaptable, method: BottleneckAdapter):
        size, axis, hidden, std = block.shape[-1], block.axes[-1], method.bottleneck, method.init_std
        self.parallel = method.style == "parallel"
        self.activation, self.scale, self.rate = method.activation, method.scale, method.dropout
        self.down = parameter((size, hidden), (axis, "rank"), std or (3 * size) ** -0.5, uniform=std is None)
        self.down_bias = parameter((hidden,), ("rank",), 0.0)
        self.up = parameter((hidden, size), ("rank", axis), std or 0.0)
        self.up_bias = parameter((size,), (axis,), 0.0)

    def after(
        self, x: Float[Array, "batch length in"], out: Float[Array, "batch length out"], dropout: Dropout
    ) -> Float[Array, "batch length out"]:
        """`out` with the network's output added."""
        hidden = project(x if self.parallel else out, self.down[...]) + self.down_bias[...].astype(out.dtype)
        hidden = ACTIVATION_FUNCTIONS[self.activation](hidden)
        hidden = dataclasses.replace(dropout, rate=self.rate)(hidden)
        return out + self.scale * (project(hidden, self.up[...]) + self.up_bias[...].astype(out.dtype))
