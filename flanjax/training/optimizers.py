"""Adafactor with T5's settings and AdamW, built from optax, right for layers stacked on a leading axis.

Adafactor factors a second moment over the two largest axes, clips each parameter's update by its root mean square and
scales it by the parameter's own. All three are defined for one weight matrix, so a leaf that holds the matrices of
all layers is updated by `jax.vmap` over its `layers` axis: exactly what the same layers would get one by one.
AdamW works element by element and needs none of it.
"""

import dataclasses
from typing import Any

import jax
import optax

from flanjax.errors import FlanjaxError
from flanjax.training.schedules import ScheduleConfig, make_schedule

OPTIMIZERS = ("adafactor", "adamw")
# Shrinking these towards 0 would switch off norms and forget positions.
WITHOUT_DECAY = ("scale", "rel_embedding")


class OptimizerError(FlanjaxError):
    """An optimizer that does not exist or a setting outside its range."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig(ScheduleConfig):
    """Which optimizer; the defaults of Adafactor are T5X's (t5x/adafactor.py; Shazeer and Stern 2018).

    Attributes:
      name: `adafactor` or `adamw`.
      global_norm_clip: scale the gradient down to this norm over all parameters; None leaves it alone, as T5 does.
      weight_decay: share of each parameter taken away per update; times the learning rate for `adamw`, as it is for
        `adafactor`. Norm scales and relative-position tables keep their values.
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


def make_optimizer(config: OptimizerConfig, params_axes: Any, *, total_steps: int) -> optax.GradientTransformation:
    """The optimizer for a tree of parameters.

    Arguments:
      config: which optimizer and schedule.
      params_axes: logical axes of every parameter (`flanjax.models.t5.logical_axes`); a leaf whose first axis is
        `layers` is updated layer by layer.
      total_steps: updates of the whole run, where a schedule ends.

    Returns:
      A transformation of the mean gradient into what is added to the parameters.
    """
    steps = [] if config.global_norm_clip is None else [optax.clip_by_global_norm(config.global_norm_clip)]
    build = _adafactor if config.name == "adafactor" else _adamw
    return optax.chain(*steps, *build(config, params_axes, make_schedule(config, total_steps)))


def _adafactor(config: OptimizerConfig, axes: Any, schedule: optax.Schedule) -> list[optax.GradientTransformation]:
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
    steps = [per_layer(optax.chain(*one_matrix), axes), optax.scale_by_learning_rate(schedule)]
    if config.beta1 is not None:
        steps.append(optax.ema(config.beta1, debias=False))
    if config.weight_decay:
        # The updates are negative already, and so is the decay, which T5X does not scale by the learning rate.
        steps.append(optax.add_decayed_weights(-config.weight_decay, mask=_decayed(axes)))
    return steps


def _adamw(config: OptimizerConfig, axes: Any, schedule: optax.Schedule) -> list[optax.GradientTransformation]:
    beta1 = 0.9 if config.beta1 is None else config.beta1
    steps = [optax.scale_by_adam(b1=beta1, b2=config.beta2, eps=config.epsilon)]
    if config.weight_decay:
        steps.append(optax.add_decayed_weights(config.weight_decay, mask=_decayed(axes)))
    return [*steps, optax.scale_by_learning_rate(schedule)]


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
