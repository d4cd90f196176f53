"""Learning-rate schedules over optax: a linear warm-up, then constant, linear, cosine or inverse square root.

With s the number of updates made so far, w = `warmup_steps`, T = `total_steps`, f = `final_fraction`, and
p = min(1, max(0, s - w) / (T - w)) the share of the decay that is done:

    warm-up    min(1, s / w), a factor on all of the following (1 when w = 0)
    constant   learning_rate
    linear     learning_rate * (1 - p (1 - f))
    cosine     learning_rate * (f + (1 - f) (1 + cos(pi p)) / 2)
    rsqrt      learning_rate / sqrt(max(s, h, 1)),  h = `rsqrt_hold_steps`, w where that is not given

A warm-up may be told as a share of the run, `warmup_ratio`: of 1,000 steps 0.06 are 60, of 20 they are 2 (rounded up,
as transformers does).

`rsqrt` is T5X's `constant * linear_warmup * rsqrt_decay`: its `learning_rate` is not the highest rate reached but
sqrt(h) times it. T5's pre-training (rate 1.0, held at 0.01 for 10,000 steps without a ramp) is `warmup_steps=0,
rsqrt_hold_steps=10_000`.

The first update of a warm-up has rate 0, as in T5X and optax. A skipped step makes no update and uses nothing up.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import optax

from flanjax.errors import FlanjaxError

SCHEDULES = ("constant", "linear", "cosine", "rsqrt")


class ScheduleError(FlanjaxError):
    """A schedule that does not exist or whose steps do not add up."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """A learning rate as a function of the number of updates; the formulas are in the module's docstring.

    Attributes:
      schedule: `constant`, `linear`, `cosine` or `rsqrt`.
      learning_rate: the rate after warm-up (for `rsqrt`, times sqrt(hold)).
      warmup_steps: updates over which the rate rises from 0.
      warmup_ratio: the same as a share of the run's updates, where `warmup_steps` is 0.
      final_fraction: what is left of the rate at the end of `linear` and `cosine`.
      rsqrt_hold_steps: updates before `rsqrt` starts to fall; None means `warmup_steps`.

    Raises:
      ScheduleError: an unknown name, or a value outside its range.
    """

    schedule: str = "constant"
    learning_rate: float = 1e-3
    warmup_steps: int = 0
    warmup_ratio: float = 0.0
    final_fraction: float = 0.0
    rsqrt_hold_steps: int | None = None

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ScheduleError(f"schedule is {self.schedule!r}: choose one of {', '.join(SCHEDULES)}")
        if not 0 <= self.learning_rate < math.inf:
            raise ScheduleError(f"learning_rate is {self.learning_rate!r}: it must be 0 or positive")
        if self.warmup_steps < 0:
            raise ScheduleError(f"warmup_steps is {self.warmup_steps}: it must be 0 or positive")
        if not 0 <= self.warmup_ratio < 1:
            raise ScheduleError(f"warmup_ratio is {self.warmup_ratio!r}: it must lie in [0, 1)")
        if self.warmup_steps and self.warmup_ratio:
            raise ScheduleError(
                f"warmup_steps is {self.warmup_steps} and warmup_ratio {self.warmup_ratio!r}: a run has one warm-up, "
                "set one of them to 0"
            )
        if not 0 <= self.final_fraction <= 1:
            raise ScheduleError(f"final_fraction is {self.final_fraction!r}: it must lie in [0, 1]")


def make_schedule(config: ScheduleConfig, total_steps: int) -> optax.Schedule:
    """The rate as a function of the number of updates made so far.

    Arguments:
      config: which schedule.
      total_steps: updates of the whole run; `linear` and `cosine` end there, `warmup_ratio` is a share of them.

    Raises:
      ScheduleError: the warm-up is not shorter than a run that has to decay after it.
    """
    if config.warmup_ratio:
        steps = math.ceil(config.warmup_ratio * total_steps)
        config = dataclasses.replace(config, warmup_steps=steps, warmup_ratio=0.0)
    decay_steps = total_steps - config.warmup_steps
    if config.schedule in ("linear", "cosine") and decay_steps < 1:
        raise ScheduleError(
            f"warmup_steps is {config.warmup_steps} and the run {total_steps} steps: a {config.schedule} schedule "
            "needs steps left to decay in; shorten the warm-up or train longer"
        )
    rate = config.learning_rate
    if config.schedule == "rsqrt":
        return _rsqrt(config)
    after = {
        "constant": lambda: optax.constant_schedule(rate),
        "linear": lambda: optax.linear_schedule(rate, rate * config.final_fraction, decay_steps),
        "cosine": lambda: optax.cosine_decay_schedule(rate, decay_steps, alpha=config.final_fraction),
    }[config.schedule]()
    if not config.warmup_steps:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, rate, config.warmup_steps), after], [config.warmup_steps])


def _rsqrt(config: ScheduleConfig) -> optax.Schedule:
    hold = config.warmup_steps if config.rsqrt_hold_steps is None else config.rsqrt_hold_steps

    def rate(count: jax.typing.ArrayLike) -> jax.Array:
        count = jnp.asarray(count, jnp.float32)
        warmup = jnp.minimum(1.0, count / config.warmup_steps) if config.warmup_steps else 1.0
        return config.learning_rate * warmup / jnp.sqrt(jnp.maximum(count, max(hold, 1)))

    return rate
