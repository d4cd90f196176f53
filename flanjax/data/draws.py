"""Random choices that depend on nothing but their key, on any machine and in any process.

`Draw(seed, task, split, number)` is what one example's template, exemplars and options are drawn with.
"""

import functools
import random
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


class Draw:
    """Random choices that depend on nothing but their key, on any machine and in any process.

    Everything is made of `random.Random.random`, the one stream that Python promises to keep for a given seed.
    """

    def __init__(self, *key: str | int) -> None:
        self._key = key

    @functools.cached_property
    def _uniform(self) -> Callable[[], float]:
        # Made when it is first drawn from: seeding costs more than most rows' whole text.
        return random.Random("/".join(str(part) for part in self._key)).random

    def below(self, bound: int) -> int:
        """An integer from 0 to bound - 1."""
        return int(self._uniform() * bound)

    def between(self, low: int, high: int) -> int:
        """An integer from low to high, both included."""
        return low + self.below(high - low + 1)

    def choice(self, items: Sequence[T]) -> T:
        """One of the items, each equally likely."""
        return items[self.below(len(items))]

    def weighted(self, items: Sequence[T], weights: Sequence[float]) -> T:
        """One of the items, likely in proportion to its weight; one of weight zero is never drawn."""
        left = self._uniform() * sum(weights)
        for item, weight in zip(items, weights, strict=True):
            left -= weight
            if left < 0:
                return item
        return next(item for item, weight in zip(items, weights, strict=True) if weight)  # rounding used it all up

    def sample(self, items: Sequence[T], count: int) -> list[T]:
        """`count` different places of the sequence, in random order."""
        left = list(items)
        return [left.pop(self.below(len(left))) for _ in range(count)]
