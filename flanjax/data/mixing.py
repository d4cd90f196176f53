"""Mixing rates, and the order in which a mixture's examples come.

The order is a pure function of a seed and a position: any position is found without walking to it. Positions come in
blocks. A block holds each task a fixed number of times, by its rate, in an order shuffled anew for every block. A task
goes on from block to block through its own examples, pass after pass, each pass in an order of its own, so that at the
end of every block none of them has come more than once oftener than another. Inside a block the places of a task are
shuffled whole: passes that meet there overlap, and an example may come again before another has come. With rates
proportional to the numbers of examples a block is an epoch of the whole mixture, globally shuffled.

Grain's `MapDataset.mix` gives the same kind of order, but looks for an element's task in Python, one task after the
other: 34,000 addresses a second with 59 tasks and 7,000 with 1,000, where arrays give millions with any number.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int64

from flanjax.data.shuffling import hash64, permute
from flanjax.errors import FlanjaxError, nearest

_MAX_BLOCK = 1 << 40


class MixingError(FlanjaxError):
    """Rates that do not fit the mixture, or leave nothing to train on."""


@dataclass(frozen=True, kw_only=True)
class Proportional:
    """Rates from numbers of examples: min(examples * scale, cap) ** (1 / temperature).

    As `seqio.mixing_rate_num_examples`: the cap comes after the scale and before the temperature. With examples
    100 and 1,000 and a cap of 400, temperature 2 gives rates 10 and 20.
    """

    cap: int | None = None
    temperature: float = 1.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not (self.temperature > 0 and self.scale > 0 and (self.cap is None or self.cap > 0)):
            raise MixingError(f"{self}: cap, temperature and scale must be positive")

    def rate(self, examples: int) -> float:
        """The rate of a task with so many examples."""
        rate = examples * self.scale
        if self.cap is not None:
            rate = min(rate, self.cap)
        return float(rate ** (1.0 / self.temperature))


Rates = Literal["mixture"] | Mapping[str, float] | Proportional


def resolve_rates(
    rates: Rates, names: Sequence[str], sizes: Sequence[int], registered: Sequence[float | None]
) -> list[float]:
    """The rate of each task, not normalised; a task of rate 0 is left out of the mixture.

    Args:
        rates: "mixture" takes the registered rates; a mapping gives every task's; `Proportional` computes them.
        names: the tasks of the mixture.
        sizes: their numbers of examples.
        registered: their rates in the registry; where no task has one, its number of examples is taken.

    Raises:
        MixingError: a rate is missing, for an unknown task, negative or not finite, is given to a task without
            examples, or all of them are zero.
    """
    if not names:
        raise MixingError("the mixture is empty: it has no tasks")
    if isinstance(rates, Proportional):
        resolved = [rates.rate(size) for size in sizes]
    elif isinstance(rates, Mapping):
        _check_names(rates, names)
        resolved = [float(rates[name]) for name in names]
    elif rates == "mixture":
        resolved = _registered_rates(names, sizes, registered)
    else:
        raise MixingError(f"rates={rates!r}: give 'mixture', a mapping of tasks to numbers, or Proportional(...)")
    for name, size, rate in zip(names, sizes, resolved, strict=True):
        if not (math.isfinite(rate) and rate >= 0):
            raise MixingError(f"task {name!r} has rate {rate}: a rate is a finite number, 0 or more")
        if rate > 0 and size == 0:
            raise MixingError(f"task {name!r} has rate {rate} but no examples: give it rate 0, or mend its source")
    if not any(resolved):
        raise MixingError(f"all {len(names)} tasks of the mixture have rate 0: there is nothing to train on")
    return resolved


def _check_names(rates: Mapping[str, float], names: Sequence[str]) -> None:
    for name in rates:
        if name not in names:
            raise MixingError(f"rates name task {name!r}, which is not in the mixture{nearest(name, names)}")
    if missing := [name for name in names if name not in rates]:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise MixingError(f"rates lack {', '.join(missing[:5])}{more}: name every task; rate 0 leaves one out")


def _registered_rates(names: Sequence[str], sizes: Sequence[int], registered: Sequence[float | None]) -> list[float]:
    unrated = [name for name, rate in zip(names, registered, strict=True) if rate is None]
    if len(unrated) == len(names):
        return [float(size) for size in sizes]
    if unrated:
        raise MixingError(f"task {unrated[0]!r} is registered without a rate, others have one: give rates for all")
    return [float(rate) for rate in registered if rate is not None]


class MixtureOrder:
    """The order of a mixture: position -> (task, example), a pure function of the seed.

    An epoch is as many positions as the tasks with a rate have examples together.

    Args:
        sizes: examples of each task.
        rates: from `resolve_rates`; realised in every block to within a hundredth of each rate.
        seed: chooses the order.
        epochs: how often, or None to go on for ever.

    Attributes:
        length: number of positions, or None for ever.
        block: number of positions in which each task has come as often as its rate says.
        shares: what part of the positions each task has.
    """

    def __init__(self, sizes: Sequence[int], rates: Sequence[float], seed: int, epochs: int | None = None):
        if not any(rate > 0 for rate in rates) or any(
            rate > 0 and not size for size, rate in zip(sizes, rates, strict=True)
        ):
            raise MixingError(f"rates {list(rates)} of tasks with {list(sizes)} examples leave nothing to train on")
        if epochs is not None and epochs < 1:
            raise MixingError(f"epochs={epochs}: give 1 or more, or None to go on for ever")
        self._seed = hash64(seed % (1 << 64))
        # A task of rate 0 keeps a size that can be divided by, and is never looked at.
        self._sizes = np.maximum(np.asarray(sizes, dtype=np.int64), 1)
        self._epoch = sum(size for size, rate in zip(sizes, rates, strict=True) if rate > 0)
        self._counts = _block_counts(np.asarray(rates, dtype=np.float64), self._epoch)
        self._ends = np.cumsum(self._counts)
        self.block = int(self._ends[-1])
        self.length = None if epochs is None else epochs * self._epoch
        self.shares: Float[np.ndarray, " tasks"] = self._counts / self.block

    def addresses(self, start: int, stop: int) -> Int64[np.ndarray, "positions 2"]:
        """(task, example) of the positions from start up to stop, or to the end of the order."""
        if self.length is not None:
            stop = min(stop, self.length)
        position = np.arange(start, max(start, stop), dtype=np.int64)
        block, slot = np.divmod(position, self.block)
        slot = permute(slot, self.block, hash64(self._seed, 0, block))
        task = np.searchsorted(self._ends, slot, side="right")
        count, size = self._counts[task], self._sizes[task]
        draw = block * count + slot - (self._ends[task] - count)
        epoch, offset = np.divmod(draw, size)
        return np.stack([task, permute(offset, size, hash64(self._seed, 1, task, epoch))], axis=1)

    def __getitem__(self, position: int) -> tuple[int, int]:
        found = self.addresses(position, position + 1)
        if position < 0 or not len(found):
            raise IndexError(f"position {position} of an order of {self.length}")
        return int(found[0, 0]), int(found[0, 1])


def _block_counts(rates: Float[np.ndarray, " tasks"], epoch: int) -> Int64[np.ndarray, " tasks"]:
    """How often each task comes in a block: an epoch, or as many of them as it takes to realise the rates."""
    share = rates / rates.sum()
    block = epoch
    while True:
        counts = _apportion(share, block)
        wanted = share * block
        if np.all(np.abs(counts - wanted) <= 0.01 * wanted) or block > _MAX_BLOCK:
            return counts
        block *= 2


def _apportion(share: Float[np.ndarray, " tasks"], total: int) -> Int64[np.ndarray, " tasks"]:
    """Whole numbers nearest to share * total that sum to it (largest remainders)."""
    exact = share * total
    # Rates proportional to sizes give whole numbers; rounding errors of theirs must not reach the floor.
    exact = np.where(np.abs(exact - np.rint(exact)) < 1e-6, np.rint(exact), exact)
    counts = np.floor(exact).astype(np.int64)
    short = total - int(counts.sum())
    counts[np.argsort(counts - exact, kind="stable")[:short]] += 1
    return counts
