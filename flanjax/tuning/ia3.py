"""(IA)3: one learnt factor for each key, each value and each inner unit of the feed-forward (Liu et al. 2022, T-Few).

Keys and values are multiplied after their projection, the feed-forward's inner units before `wo`, which for a gated
block is the same as after `wi_1`. All factors start at 1 (arXiv 2205.05638).
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flanjax.models.layers import Adapter, Dropout, Linear, parameter
from flanjax.models.model import ModelConfig
from flanjax.tuning.method import (
    Flat,
    Method,
    TuningError,
    check_pattern,
    matching,
    no_match,
    projections,
    split_adapter,
    targets,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class IA3(Method):
    """Factors on activations.

    Attributes:
      targets: regular expression of the projections whose output is scaled; "" for none.
      input_targets: regular expression of the projections whose input is; "" for none.

    Raises:
      TuningError: a pattern that is none.
    """

    name: ClassVar[str] = "ia3"
    targets: str = r".*attention/(key|value)"
    input_targets: str = r".*/mlp/wo"

    def __post_init__(self) -> None:
        check_pattern(self, "targets")
        check_pattern(self, "input_targets")

    def attach(self, layer: nnx.Module, path: str) -> None:
        """Puts a factor behind, or before, every target."""
        for linear in targets(layer, path, self.targets):
            linear.attach(self.name, OutputFactor(linear))
        for projection, linear in matching(layer, path, self.input_targets, Linear):
            if self.name in linear.adapters:
                raise TuningError(
                    f"IA3.targets and IA3.input_targets both match {projection}: a projection has one factor, of its "
                    "output or of its input"
                )
            linear.attach(self.name, InputFactor(linear))

    def trains(self, path: str) -> bool:
        """The factors alone."""
        return f"/{self.name}/" in path

    def check(self, model: ModelConfig, paths: list[str]) -> None:
        """Refuses targets that are not there."""
        for field, part in (("targets", "output"), ("input_targets", "input")):
            if getattr(self, field) and not any(path.endswith(f"/{self.name}/{part}") for path in paths):
                raise no_match(self, field, projections(paths))

    def merge(self, params: Flat) -> Flat:
        """Columns of a kernel, and its bias, times the factors of its output, rows times those of its input."""
        adapters, merged = split_adapter(params, self.name)
        for projection, parts in adapters.items():
            kernel = jnp.asarray(merged[f"{projection}/kernel"])
            if "output" in parts:
                kernel = kernel * parts["output"][..., None, :]
                if (bias := merged.get(f"{projection}/bias")) is not None:
                    merged[f"{projection}/bias"] = bias * parts["output"]
            if "input" in parts:
                kernel = kernel * parts["input"][..., :, None]
            merged[f"{projection}/kernel"] = kernel
        return merged


class OutputFactor(Adapter):
    """A factor for each output of a projection."""

    def __init__(self, linear: Linear):
        self.output = parameter(linear.shape[1:], linear.axes[1:], None)

    def after(
        self, x: Float[Array, "batch length in"], out: Float[Array, "batch length out"], dropout: Dropout
    ) -> Float[Array, "batch length out"]:
        """`out` times the factors."""
        return out * self.output[...].astype(out.dtype)


class InputFactor(Adapter):
    """A factor for each input of a projection."""

    def __init__(self, linear: Linear):
        self.input = parameter(linear.shape[:1], linear.axes[:1], None)

    def before(self, x: Float[Array, "batch length in"]) -> Float[Array, "batch length in"]:
        """`x` times the factors."""
        return x * self.input[...].astype(x.dtype)
