"""Adafactor with T5's settings and AdamW, built from optax, right for layers stacked on a leading axis.

Adafactor factors a second moment over the two largest axes, clips each parameter's update by its root mean square and
scales it by the parameter's own. All three are defined for one weight matrix, so a leaf that holds the matrices of
all layers is updated by `jax.vmap` over its `layers` axis: exactly what the same layers would get one by one.
AdamW works element by element and needs none of it.

Parameters may have factors of the learning rate (LoRA+, layer-wise decay). They are applied to the finished updates:
a factor may differ from layer to layer of one stacked leaf, which no partition of whole leaves expresses, and the
state is the same with and without them. Whatever dtype the parameters have, all of it is computed in float32.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flanjax.errors import FlanjaxError
from flanjax.training.schedules import ScheduleConfig, make_schedule
from flanjax.tuning.patterns import Patterns, as_patterns, check_each_decides, decide

OPTIMIZERS = ("adafactor", "adamw")
# Shrinking these towards 0 would switch off norms, forget positions and shrink frozen kernels with their norms (DoRA).
WITHOUT_DECAY = ("scale", "rel_embedding", "magnitude")
EMBEDDING = "token_embedder"
_RATE_FACTORS = "OptimizerConfig.rate_factors"


class OptimizerError(FlanjaxError):
    """An optimizer that does not exist or a setting outside its range."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig(ScheduleConfig):
    """Which optimizer; the defaults of Adafactor are T5X's (t5x/adafactor.py; Shazeer and Stern 2018).

    Attributes:
      name: `adafactor` or `adamw`.
      global_norm_clip: scale the gradient down to this norm over all parameters; None leaves it alone, as T5 does.
      weight_decay: share of each parameter taken away per update; times the learning rate for `adamw`, as it is for
        `adafactor`. Norm scales, relative-position tables and DoRA's magnitudes keep their values.
      beta1: momentum; None means 0.9 for `adamw` and none for `adafactor`.
      beta2: second moment of `adamw`.
      epsilon: added to the root of the second moment of `adamw`.
      decay_rate: the second moment of `adafactor` at update t (from 1) keeps 1 - t**-decay_rate of itself.
      step_offset: added to T5X's step numbers with its own sign, `t = step - step_offset + 1`. The state starts from
        zeros at step 0, so 0 or a negative number (a slower moving average, as after that many updates).
      clipping_threshold: largest root mean square of one parameter's update in `adafactor`, before the learning rate.
      multiply_by_parameter_scale: `adafactor`'s updates are relative to each parameter's root mean square.
      min_dim_size_to_factor: matrices with a side below it keep a full second moment.
      epsilon1: added to squared gradients in `adafactor`.
      epsilon2: smallest root mean square of a parameter in `adafactor`.
      rate_factors: {regular expression of a parameter's whole path: factor of its learning rate}; the first that
        matches decides, 1 where none does. LoRA+ (Hayou et al. 2024, arXiv 2402.12354) is {".*/lora/b": 16}. What is
        times the learning rate, as the weight decay of `adamw` is, has the factor too.
      layer_decay: layer-wise decay of the learning rate, times `rate_factors`: layer l (from 0) of the L layers of all
        stacks, encoder below decoder, has the factor `layer_decay ** (L - l)`, the token embedding
        `layer_decay ** (L + 1)`, everything else, such as final norms, position tables and the head, 1. The idea is
        ELECTRA's (Clark et al. 2020, section 3.1), the exponents are BEiT's (Bao et al. 2022). None decays nothing.

    Raises:
      OptimizerError: an unknown name, or a value outside its range.
    """

    name: str = "adafactor"
    global_norm_clip: float | None = None
    weight_decay: float = 0.0
    beta1: float | None = None
    beta2: float = 0.999
    epsilon: float = 1e-8
    decay_rate: float = 0.8
    step_offset: int = 0
    clipping_threshold: float | None = 1.0
    multiply_by_parameter_scale: bool = True
    min_dim_size_to_factor: int = 128
    epsilon1: float = 1e-30
    epsilon2: float = 1e-3
    rate_factors: Patterns = ()
    layer_decay: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name not in OPTIMIZERS:
            raise OptimizerError(f"OptimizerConfig.name is {self.name!r}: choose one of {', '.join(OPTIMIZERS)}")
        if self.step_offset > 0:
            raise OptimizerError(
                f"OptimizerConfig.step_offset is {self.step_offset}: the second moments start from zeros at step 0, so "
                "a positive offset would raise a negative number to a power; T5X's positive offsets go with step "
                "counts that continue a pre-training, leave it at 0"
            )
        for name in ("global_norm_clip", "clipping_threshold"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise OptimizerError(f"OptimizerConfig.{name} is {value!r}: it must be positive, or None for none")
        # gin gives a mapping, JSON lists.
        object.__setattr__(self, "rate_factors", as_patterns(self.rate_factors, _RATE_FACTORS, OptimizerError))
        for pattern, factor in self.rate_factors:
            if not isinstance(factor, int | float) or not 0 < factor < math.inf:
                raise OptimizerError(
                    f"{_RATE_FACTORS}[{pattern!r}] is {factor!r}: it must be a positive number; to leave parameters as "
                    "they are, freeze them with TUNING = (@Freeze(),)"
                )
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise OptimizerError(
                f"OptimizerConfig.layer_decay is {self.layer_decay!r}: it must lie in (0, 1], or be None for none"
            )


def make_optimizer(
    config: OptimizerConfig, params_axes: Any, *, total_steps: int, stacks: Mapping[str, int] | None = None
) -> optax.GradientTransformationExtraArgs:
    """The optimizer for a tree of parameters.

    Arguments:
      config: which optimizer and schedule.
      params_axes: logical axes of every parameter (`flanjax.models.t5.logical_axes`); a leaf whose first axis is
        `layers` is updated layer by layer.
      total_steps: updates of the whole run, where a schedule ends.
      stacks: layers of each stack, lowest first (`T5Config.stacks`); `layer_decay` asks for them.

    Returns:
      A transformation of the mean gradient into what is added to the parameters. Its `update` takes `finite`, True by
      default: where it is False the state stays as it is, and the updates mean nothing.

    Raises:
      OptimizerError: a pattern of `rate_factors` decides for no parameter.
    """
    steps = [] if config.global_norm_clip is None else [optax.clip_by_global_norm(config.global_norm_clip)]
    rate = optax.scale_by_learning_rate(make_schedule(config, total_steps))
    if config.rate_factors or config.layer_decay is not None:
        rate = _times(rate, rate_factors(config, params_axes, stacks))
    build = _adafactor if config.name == "adafactor" else _adamw
    return _in_float32(optax.chain(*steps, *build(config, params_axes, _held(rate))))


def rate_factors(config: OptimizerConfig, params_axes: Any, stacks: Mapping[str, int] | None = None) -> Any:
    """The factor of every parameter's learning rate: a tree of arrays, [] or [layers, 1, ...].

    Worked example: with `layer_decay=0.5` and stacks {"encoder": 1, "decoder": 2} the token embedding has 1/16, the
    encoder's layer 1/8, the decoder's layers [1/4, 1/2], the head 1.

    Arguments:
      config: with `rate_factors` and `layer_decay`.
      params_axes: logical axes of the parameters that move.
      stacks: layers of each stack, lowest first.

    Raises:
      OptimizerError: a pattern decides for no parameter, or `layer_decay` is set and a leaf's stack is not in `stacks`.
    """
    paths = jax.tree.leaves(_map_axes(lambda path, _: _name(path), params_axes))
    check_each_decides(config.rate_factors, paths, _RATE_FACTORS, OptimizerError)

    def factor(path: tuple[Any, ...], axes: tuple[str | None, ...]) -> np.ndarray:
        own = decide(config.rate_factors, _name(path), 1.0)
        return np.asarray(own * _layer_factor(config.layer_decay, _name(path), axes, stacks or {}), np.float32)

    return _map_axes(factor, params_axes)


def _layer_factor(
    decay: float | None, path: str, axes: tuple[str | None, ...], stacks: Mapping[str, int]
) -> float | np.ndarray:
    """The factor of `layer_decay` for one parameter."""
    stack, total = path.partition("/")[0], sum(stacks.values())
    if decay is None:
        return 1.0
    if stack == EMBEDDING:
        return decay ** (total + 1)
    if axes[:1] != ("layers",):
        return 1.0
    if stack not in stacks:
        raise OptimizerError(
            f"OptimizerConfig.layer_decay = {decay}: how many layers are below those of {path} is not known; "
            f"make_optimizer was told of {', '.join(stacks) or 'no stacks'}"
        )
    names = list(stacks)
    first = sum(stacks[name] for name in names[: names.index(stack)])
    layers = np.arange(first, first + stacks[stack])
    return (decay ** (total - layers)).reshape(-1, *(1,) * (len(axes) - 1))


def _times(transform: optax.GradientTransformation, factors: Any) -> optax.GradientTransformation:
    """`transform` with each update multiplied by a factor; the state is that of `transform`."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = transform.update(updates, state, params)
        return jax.tree.map(jnp.multiply, updates, factors), state

    return optax.GradientTransformation(transform.init, update)


def _in_float32(transform: optax.GradientTransformation) -> optax.GradientTransformation:
    """`transform` over float32 gradients and parameters: a second moment in bfloat16 would not move."""

    def cast(tree: Any) -> Any:
        return jax.tree.map(lambda x: x.astype(jnp.float32), tree)

    transform = optax.with_extra_args_support(transform)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        return transform.update(cast(updates), state, cast(params), **extra)

    return optax.GradientTransformationExtraArgs(lambda params: transform.init(cast(params)), update)


def _held(transform: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """`transform`, whose state stays as it is in an update that is not `finite`."""

    def update(updates: Any, state: Any, params: Any = None, *, finite: Any = True, **_: Any) -> tuple[Any, Any]:
        updates, new = transform.update(updates, state, params)
        return updates, jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, state)

    return optax.GradientTransformationExtraArgs(transform.init, update)


def _adafactor(
    config: OptimizerConfig, axes: Any, rate: optax.GradientTransformation
) -> list[optax.GradientTransformation]:
    one_matrix = [
        optax.scale_by_factored_rms(
            decay_rate=config.decay_rate,
            step_offset=config.step_offset,
            min_dim_size_to_factor=config.min_dim_size_to_factor,
            epsilon=config.epsilon1,
        )
    ]
    if config.clipping_threshold is not None:
        one_matrix.append(optax.clip_by_block_rms(config.clipping_threshold))
    if config.multiply_by_parameter_scale:
        one_matrix.append(optax.scale_by_param_block_rms(config.epsilon2))
    steps = [_held(per_layer(optax.chain(*one_matrix), axes)), rate]
    if config.beta1 is not None:
        steps.append(_held(optax.ema(config.beta1, debias=False)))
    if config.weight_decay:
        # The updates are negative already, and so is the decay, which T5X does not scale by the learning rate.
        steps.append(optax.add_decayed_weights(-config.weight_decay, mask=_decayed(axes)))
    return steps


def _adamw(
    config: OptimizerConfig, axes: Any, rate: optax.GradientTransformation
) -> list[optax.GradientTransformation]:
    beta1 = 0.9 if config.beta1 is None else config.beta1
    steps = [_scale_by_adam(beta1, config.beta2, config.epsilon)]
    if config.weight_decay:
        steps.append(optax.add_decayed_weights(config.weight_decay, mask=_decayed(axes)))
    return [*steps, rate]


def _scale_by_adam(beta1: float, beta2: float, epsilon: float) -> optax.GradientTransformationExtraArgs:
    """`optax.scale_by_adam` whose moments are written where the old ones lie, also as `_held`.

    XLA:CPU computes new moments once more in the pass over the parameters, from the old ones, which it copies before
    they are overwritten: 8 bytes a parameter, and more than half of the update's time. So the update is computed
    here from the moments that are kept, behind a barrier; elsewhere one pass writes all three.
    """
    adam = optax.scale_by_adam(b1=beta1, b2=beta2, eps=epsilon)
    held = _held(adam)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        _, kept = held.update(updates, state, params, **extra)
        kept = jax.lax.platform_dependent(kept, cpu=jax.lax.optimization_barrier, default=lambda kept: kept)
        mu = optax.tree.bias_correction(kept.mu, beta1, kept.count)
        nu = optax.tree.bias_correction(kept.nu, beta2, kept.count)
        return jax.tree.map(lambda mu, nu: mu / (jnp.sqrt(nu) + epsilon), mu, nu), kept

    return optax.GradientTransformationExtraArgs(adam.init, update)


def per_layer(transform: optax.GradientTransformation, params_axes: Any) -> optax.GradientTransformation:
    """`transform` applied to each parameter of each layer by itself.

    Leaves whose first logical axis is `layers` are taken apart by `jax.vmap`, one group for each top-level module, as
    encoder and decoder may have different numbers of layers. The state keeps the stacking: [layers, ...] leaves.
    """
    whole = ""

    def label(path: tuple[Any, ...], axes: tuple[str | None, ...]) -> str:
        return str(path[0].key) if axes[:1] == ("layers",) else whole

    labels = _map_axes(label, params_axes)
    transforms = {
        name: transform if name == whole else _over_layers(transform) for name in sorted(set(jax.tree.leaves(labels)))
    }
    return optax.partition(transforms, labels)


def _over_layers(transform: optax.GradientTransformation) -> optax.GradientTransformation:
    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return jax.vmap(transform.update)(updates, state, params)

    return optax.GradientTransformation(jax.vmap(transform.init), update)


def _decayed(params_axes: Any) -> Any:
    """True on the parameters that weight decay shrinks."""
    return _map_axes(lambda path, _: path[-1].key not in WITHOUT_DECAY, params_axes)


def _map_axes(function: Any, params_axes: Any) -> Any:
    return jax.tree_util.tree_map_with_path(function, params_axes, is_leaf=lambda x: isinstance(x, tuple))


def _name(path: tuple[Any, ...]) -> str:
    return "/".join(str(entry.key) for entry in path)
