"""Training on a few examples of each task: as many as a low-resource setting has, or the ones with the longest answers.

    select(task, 1000, "random", seed=0)            1,000 of them, which the seed and the task's name decide
    select(task, 0.1, "longest_targets", seed=0)    the tenth that has the most target tokens

Selecting is a list of indices over a split of the cache: nothing is tokenised again. Fewer random ones are always among
more. Few chosen examples may align as well as many: LIMA (https://arxiv.org/abs/2305.11206) takes 1,000 written with
care; the longest answers are a strong and simple choice of them (https://arxiv.org/abs/2402.04833).
"""

import hashlib
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from jaxtyping import Int64

from flanjax.data.cache import FEATURES, CachedTask, Example
from flanjax.data.shuffling import hash64, permute
from flanjax.errors import FlanjaxError

Select = Literal["random", "longest_targets"]


class SelectionError(FlanjaxError):
    """A number of examples or a way of choosing them that makes no sense."""


def check_selection(examples_per_task: int | float | None, how: str) -> None:
    """Raises SelectionError where there is no such number or way."""
    if how not in get_args(Select):
        raise SelectionError(f"select={how!r}: give one of {', '.join(get_args(Select))}")
    number = examples_per_task
    is_count = isinstance(number, int) and not isinstance(number, bool) and number >= 1
    is_part = isinstance(number, float) and 0 < number < 1
    if not (number is None or is_count or is_part):
        raise SelectionError(
            f"examples_per_task={number!r}: give a whole number from 1 on, a fraction below 1 of each task, or None"
        )


def select(task: CachedTask, examples_per_task: int | float | None, how: Select, *, seed: int) -> CachedTask:
    """The task with no other than the chosen examples, in their order; the task itself where all are.

    Args:
        task: a split of a task.
        examples_per_task: how many, or what part of them (at least one); None for all.
        how: "random", or "longest_targets", of equally long ones the first.
        seed: with the task's name decides which are drawn.

    Raises:
        SelectionError: the arguments make no sense.
    """
    check_selection(examples_per_task, how)
    size = len(task)
    if examples_per_task is None:
        return task
    count = examples_per_task if isinstance(examples_per_task, int) else max(round(examples_per_task * size), 1)
    if count >= size:
        return task
    if how == "longest_targets":
        targets = np.asarray(task.lengths[:, FEATURES.index("targets")], dtype=np.int64)
        chosen = np.argsort(-targets, kind="stable")[:count]
    else:
        name = int.from_bytes(hashlib.sha256(task.name.encode()).digest()[:8], "little")
        chosen = permute(np.arange(count), size, hash64(seed % (1 << 64), name))
    return _SelectedTask(task, np.sort(chosen))


class _SelectedTask(CachedTask):
    """Some examples of a task as if there were no others."""

    def __init__(self, task: CachedTask, chosen: Int64[np.ndarray, " examples"]):
        super().__init__(task.folder, task.manifest, np.asarray(task.lengths[chosen]), task._remedy)
        self._task = task
        self._chosen = chosen

    def __len__(self) -> int:
        return len(self._chosen)

    def read(self, indices: Sequence[int] | np.ndarray) -> list[Example]:
        wanted = np.asarray(indices, dtype=np.int64)
        if np.any(wanted < 0) or np.any(wanted >= len(self)):
            raise IndexError(f"{len(self)} examples of task {self.name!r} are selected, asked for {wanted.tolist()}")
        return self._task.read(self._chosen[wanted])

    def verify(self) -> None:
        self._task.verify()
