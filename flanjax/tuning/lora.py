"""LoRA: a product of two thin matrices beside a frozen projection (Hu et al. 2021, arXiv 2106.09685), and its kin.

    LoRA     y = x W + s drop(x) A B     A [in, rank], B [rank, out], s = alpha / rank
    rsLoRA   s = alpha / sqrt(rank)                                     (Kalajdzievski 2023, arXiv 2312.03732)
    DoRA     y = x m (W + s A B) / ||W + s A B||     m [out], norms of columns    (Liu et al. 2024, arXiv 2402.09353)
                                                     a bias is added afterwards
    PiSSA    A B starts as the best approximation of W / s, W becomes W - s A B    (Meng et al. 2024, arXiv 2404.02948)

A starts uniform in +-1/sqrt(in) and B at zero, as in peft, so that the first model is exactly the base; m starts as the
norms of W, so that of DoRA, and PiSSA too, the first model is the base to rounding.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flanjax.models.config import DTYPES
from flanjax.models.layers import Adaptable, Adapter, Dropout, Linear, parameter, project
from flanjax.models.model import ModelConfig, abstract_params
from flanjax.tuning.method import (
    Encode,
    Flat,
    Method,
    TuningError,
    check_pattern,
    matching,
    no_match,
    projections,
    split_adapter,
)
from flanjax.tuning.partition import flatten
from flanjax.tuning.patterns import Patterns, as_patterns, check_each_decides, decide

# What a pattern may name: the projections of the layers. The head and the tables are not projections of a layer.
ATTENTION = r".*attention/(query|value)"
ALL_LINEAR = r".*/(query|key|value|out|wi|wi_0|wi_1|wo)"
INITS = ("default", "gaussian", "pissa")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRA(Method):
    """Low-rank adaptation of projections.

    Attributes:
      rank: columns of A and rows of B.
      alpha: numerator of the scale.
      dropout: rate of what A is given; one mask serves the whole length of a row.
      targets: regular expression that has to match a projection's whole path, "decoder/layers/mlp/wi_0"; the default is
        query and value of every attention, as in peft's table for T5.
      rank_pattern: {regular expression: rank} of the targets that have another; the first that matches decides.
      alpha_pattern: {regular expression: alpha} likewise.
      rank_stabilized: divide by the root of the rank (rsLoRA).
      dora: learn the norms of the columns apart from their directions. The norm is taken as a constant by the gradient
        (section 4.3 of the paper); dropout falls on what passes through the directions, as in peft.
      init: of A and B: "default"; "gaussian", A normal of deviation 1 / rank; "pissa", principal singular vectors.
      dtype: of A and B, "float32" or "bfloat16", which rounds away an update of less than 1/256 of an entry. The norms
        of `dora` are float32 either way.

    Raises:
      TuningError: a rank below 1, an alpha that is not positive, a dropout rate outside [0, 1), an unknown name, or a
        pattern that is none.
    """

    name: ClassVar[str] = "lora"
    rank: int = 8
    alpha: float = 8.0
    targets: str = ATTENTION
    dropout: float = 0.0
    rank_pattern: Patterns = ()
    alpha_pattern: Patterns = ()
    rank_stabilized: bool = False
    dora: bool = False
    init: str = "default"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_pattern(self, "targets")
        for field in ("rank_pattern", "alpha_pattern"):
            # gin gives a mapping, JSON lists; the method must stay hashable.
            object.__setattr__(self, field, as_patterns(getattr(self, field), f"LoRA.{field}", TuningError))
        for field, rank in _values("rank", self.rank, self.rank_pattern):
            if not isinstance(rank, int) or rank < 1:
                raise TuningError(f"LoRA.{field} is {rank!r}: it must be a whole number of at least 1")
        for field, alpha in _values("alpha", self.alpha, self.alpha_pattern):
            if not isinstance(alpha, int | float) or not 0 < alpha < math.inf:
                raise TuningError(f"LoRA.{field} is {alpha!r}: it must be a positive number")
        if not 0 <= self.dropout < 1:
            raise TuningError(f"LoRA.dropout is {self.dropout!r}: it must lie in [0, 1)")
        for field, choices in (("init", INITS), ("dtype", DTYPES)):
            if getattr(self, field) not in choices:
                raise TuningError(f"LoRA.{field} is {getattr(self, field)!r}: choose one of {', '.join(choices)}")

    @property
    def dropout_rate(self) -> float:
        """The rate of `dropout`."""
        return self.dropout

    def rank_of(self, projection: str) -> int:
        """The rank at the path of a projection."""
        return decide(self.rank_pattern, projection, self.rank)

    def scale_of(self, projection: str) -> float:
        """What A B is multiplied by there."""
        rank = self.rank_of(projection)
        return decide(self.alpha_pattern, projection, self.alpha) / (math.sqrt(rank) if self.rank_stabilized else rank)

    def attach(self, layer: nnx.Module, path: str) -> None:
        """Puts A and B beside every target."""
        for projection, linear in matching(layer, path, self.targets, Linear):
            if self.dora and linear.adapters:
                raise TuningError(
                    f"LoRA.dora measures the kernel of {projection}, around which {', '.join(linear.adapters)} lies "
                    "already: let LoRA come first in TUNING"
                )
            adapter = (Decomposed if self.dora else LowRank)(linear, self, projection)
            linear.attach(self.name, adapter)

    def trains(self, path: str) -> bool:
        """A and B, and the norms, alone."""
        return f"/{self.name}/" in path

    def check(self, model: ModelConfig, paths: list[str]) -> None:
        """Refuses targets and patterns that are not there."""
        adapters, _ = split_adapter(dict.fromkeys(paths), self.name)
        if not adapters:
            raise no_match(self, "targets", projections(paths))
        for field in ("rank_pattern", "alpha_pattern"):
            check_each_decides(getattr(self, field), list(adapters), f"LoRA.{field}", TuningError)

    def check_choice(self, model: ModelConfig) -> None:
        """Refuses a rank that a target cannot have; an adapter that PEFT keeps for several together may be of one."""
        params = abstract_params(dataclasses.replace(model, added=(self,)))
        adapters, _ = split_adapter(flatten(params), self.name)
        for projection, parts in adapters.items():
            self._check_rank(projection, parts["a"].shape[-2], parts["b"].shape[-1])

    def _check_rank(self, projection: str, *sizes: int) -> None:
        rank = self.rank_of(projection)
        if rank > min(sizes):
            field = "rank" if rank == self.rank else "rank_pattern"
            raise TuningError(
                f"LoRA.{field} = {rank} is larger than a target of {' x '.join(map(str, sizes))}: "
                f"give at most {min(sizes)} for {projection}, or other targets"
            )

    def begin(self, model: ModelConfig, params: Flat, encode: Encode) -> Flat:
        """The norms of DoRA, and of PiSSA A, B and what they leave of the kernel, all from the base's kernels.

        On another kind of device A and B may have other signs; what they leave of the kernel is the same to rounding.
        """
        adapters, _ = split_adapter(params, self.name)
        begun = dict(params)
        for projection in adapters:
            kernel, adapter = params[f"{projection}/kernel"], f"{projection}/{self.name}"
            if self.dora:
                begun[f"{adapter}/magnitude"] = jax.jit(_column_norms)(jnp.asarray(kernel))
            if self.init == "pissa":
                self._check_rank(projection, *kernel.shape[-2:])
                begun[f"{adapter}/a"], begun[f"{adapter}/b"], begun[f"{projection}/kernel"] = _principal(
                    jnp.asarray(kernel), self.rank_of(projection), self.scale_of(projection), self.dtype
                )
        return begun

    def merge(self, params: Flat) -> Flat:
        """W + s A B, with the columns' norms where they are learnt, in float32."""
        adapters, merged = split_adapter(params, self.name)
        for projection, parts in adapters.items():
            kernel = jnp.asarray(merged[f"{projection}/kernel"])
            kernel = kernel + self.scale_of(projection) * _product(parts["a"], parts["b"])
            if "magnitude" in parts:
                kernel = kernel * _over(parts["magnitude"], _column_norms(kernel))[..., None, :]
            merged[f"{projection}/kernel"] = kernel
        return merged


def _values(field: str, value: Any, patterns: Patterns) -> list[tuple[str, Any]]:
    return [(field, value), *((f"{field}_pattern[{pattern!r}]", each) for pattern, each in patterns)]


class LowRank(Adapter):
    """A and B of one projection."""

    def __init__(self, linear: Linear, method: LoRA, projection: str):
        (size_in, size_out), (axis_in, axis_out) = linear.shape, linear.axes
        rank, dtype = method.rank_of(projection), jnp.dtype(method.dtype)
        self.scale = method.scale_of(projection)
        self.rate = method.dropout
        # PiSSA puts its own values in their place.
        uniform = method.init != "gaussian"
        deviation = (3 * size_in) ** -0.5 if uniform else 1 / rank
        self.a = parameter((size_in, rank), (axis_in, "rank"), deviation, uniform=uniform, dtype=dtype)
        self.b = parameter((rank, size_out), ("rank", axis_out), 0.0, dtype=dtype)

    def _delta(self, x: Float[Array, "batch length in"]) -> Float[Array, "batch length out"]:
        return self.scale * project(project(x, self.a[...]), self.b[...])

    def after(
        self, x: Float[Array, "batch length in"], out: Float[Array, "batch length out"], dropout: Dropout
    ) -> Float[Array, "batch length out"]:
        """`out` with the low-rank product added."""
        return out + self._delta(dataclasses.replace(dropout, rate=self.rate)(x))


class Decomposed(LowRank):
    """A, B and the columns' norms of one projection (DoRA)."""

    def __init__(self, linear: Linear, method: LoRA, projection: str):
        super().__init__(linear, method, projection)
        self.magnitude = parameter(linear.shape[1:], linear.axes[1:], None)

    def around(self, module: Adaptable, inner: Callable[[Array], Array], dropout: Dropout) -> Callable[[Array], Array]:
        """Multiplies by W' = m (W + s A B) / ||W + s A B||; with dropout, x W + drop(x) (W' - W)."""
        assert isinstance(module, Linear)
        adapted = module.weight() + self.scale * _product(self.a[...], self.b[...])
        factor = _over(self.magnitude[...], jax.lax.stop_gradient(_column_norms(adapted)))

        def decomposed(x: Float[Array, "batch length in"]) -> Float[Array, "batch length out"]:
            dropped = dataclasses.replace(dropout, rate=self.rate)(x)
            out = inner(x)
            product = out if dropped is x else inner(dropped)
            if module.bias is not None:
                product = product - module.bias[...].astype(x.dtype)
            # The difference from 1 is small: bfloat16 keeps more of it than of the factor.
            return out + (factor - 1).astype(x.dtype) * product + factor.astype(x.dtype) * self._delta(dropped)

        return decomposed


def _product(a: Float[Array, "*layers in rank"], b: Float[Array, "*layers rank out"]) -> Float[Array, "*layers in out"]:
    """A B in float32."""
    return jnp.matmul(a.astype(jnp.float32), b.astype(jnp.float32), precision="highest")


def _column_norms(kernel: Float[Array, "*layers in out"]) -> Float[Array, "*layers out"]:
    return jnp.linalg.norm(kernel, axis=-2)


def _over(magnitude: Float[Array, "*layers out"], norms: Float[Array, "*layers out"]) -> Float[Array, "*layers out"]:
    """Their quotient; 0 for a column that is 0 and stays it."""
    return magnitude / jnp.maximum(norms, jnp.finfo(jnp.float32).tiny)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _principal(
    kernel: Float[Array, "layers in out"], rank: int, scale: float, dtype: str
) -> tuple[Float[Array, "layers in rank"], Float[Array, "layers rank out"], Float[Array, "layers in out"]]:
    """A and B, whose product is the best approximation of kernel / scale, and the kernel without scale A B."""

    def one(kernel: Float[Array, "in out"]) -> tuple[Array, Array, Array]:
        left, values, right = jnp.linalg.svd(kernel, full_matrices=False)
        roots = jnp.sqrt(values[:rank] / scale)
        a, b = (left[:, :rank] * roots).astype(dtype), (roots[:, None] * right[:rank]).astype(dtype)
        # Of A and B as they were rounded, so that the first model is the base all the same.
        return a, b, kernel - scale * _product(a, b)

    # One after the other: the singular vectors of all layers are as large as their kernels.
    return jax.lax.map(one, kernel)
