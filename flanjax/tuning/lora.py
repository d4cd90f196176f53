"""LoRA: a product of two thin matrices beside a frozen projection (Hu et al. 2021, arXiv 2106.09685).

    y = x W + s drop(x) A B        A [in, rank], B [rank, out], s = alpha / rank, or alpha / sqrt(rank) for rsLoRA

A starts uniform in +-1/sqrt(in) and B at zero, as in peft, so that the first model is exactly the base.
"""

import dataclasses
import math
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flanjax.models.config import T5Config
from flanjax.models.layers import Adapter, Dropout, Linear, parameter, project
from flanjax.tuning.method import (
    Flat,
    Method,
    TuningError,
    check_pattern,
    no_match,
    projections,
    split_adapter,
    targets,
)

# What a pattern may name: the projections of the layers. The head and the tables are not projections of a layer.
ATTENTION = r".*attention/(query|value)"
ALL_LINEAR = r".*/(query|key|value|out|wi|wi_0|wi_1|wo)"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRA(Method):
    """Low-rank adaptation of projections.

    Attributes:
      rank: columns of A and rows of B.
      alpha: numerator of the scale.
      dropout: rate of what A is given; one mask serves the whole length of a row.
      targets: regular expression that has to match a projection's whole path, "decoder/layers/mlp/wi_0"; the default is
        query and value of every attention, as in peft's table for T5.
      rank_stabilized: divide by the root of the rank (Kalajdzievski 2023, arXiv 2312.03732).

    Raises:
      TuningError: a rank below 1, a dropout rate outside [0, 1), or a pattern that is none.
    """

    name: ClassVar[str] = "lora"
    rank: int = 8
    alpha: float = 8.0
    targets: str = ATTENTION
    dropout: float = 0.0
    rank_stabilized: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.rank, int) or self.rank < 1:
            raise TuningError(f"LoRA.rank is {self.rank!r}: it must be a whole number of at least 1")
        if not 0 <= self.dropout < 1:
            raise TuningError(f"LoRA.dropout is {self.dropout!r}: it must lie in [0, 1)")
        check_pattern(self, "targets")

    @property
    def dropout_rate(self) -> float:
        """The rate of `dropout`."""
        return self.dropout

    @property
    def scale(self) -> float:
        """What A B is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)

    def attach(self, layer: nnx.Module, path: str) -> None:
        """Puts A and B beside every target."""
        for linear in targets(layer, path, self.targets):
            linear.attach(self.name, LowRank(linear, self))

    def trains(self, path: str) -> bool:
        """A and B alone."""
        return f"/{self.name}/" in path

    def check(self, model: T5Config, paths: list[str]) -> None:
        """Refuses targets that are not there; `LowRank` refuses a rank that is too large."""
        if not any(map(self.trains, paths)):
            raise no_match(self, "targets", projections(paths))

    def merge(self, params: Flat) -> Flat:
        """W + s A B, in float32."""
        adapters, merged = split_adapter(params, self.name)
        for projection, parts in adapters.items():
            kernel = f"{projection}/kernel"
            delta = jnp.matmul(parts["a"], parts["b"], precision="highest")
            merged[kernel] = merged[kernel] + self.scale * delta
        return merged


class LowRank(Adapter):
    """A and B of one projection."""

    def __init__(self, linear: Linear, method: LoRA):
        (size_in, size_out), (axis_in, axis_out) = linear.shape, linear.axes
        if method.rank > min(size_in, size_out):
            raise TuningError(
                f"LoRA.rank = {method.rank} is larger than a target of {size_in} x {size_out}: "
                f"give at most {min(size_in, size_out)}, or other targets"
            )
        self.scale = method.scale
        self.rate = method.dropout
        self.a = parameter((size_in, method.rank), (axis_in, "rank"), (3 * size_in) ** -0.5, uniform=True)
        self.b = parameter((method.rank, size_out), ("rank", axis_out), 0.0)

    def after(
        self, x: Float[Array, "batch length in"], out: Float[Array, "batch length out"], dropout: Dropout
    ) -> Float[Array, "batch length out"]:
        """`out` with the low-rank product added."""
        x = dataclasses.replace(dropout, rate=self.rate)(x)
        return out + self.scale * project(project(x, self.a[...]), self.b[...])
