"""Positions that are kept for a learnt prompt in front of every example's inputs.

With two prompts of 3 positions, for the tasks "sort" and "add", inputs [5, 6, 1] of "add" become [1, 1, 1, 5, 6, 1]:
placeholders hold the number of the prompt, and the model puts its vectors there (`flanjax.models.prompts`). Rows are
planned with these longer inputs; what is cut from an over-long example is its text.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32

from flanjax.data.packing import PackingError, RowLengths
from flanjax.errors import nearest

# Of an example's text at the least: a token and its EOS.
_TEXT = 2


@dataclass(frozen=True)
class Placeholders:
    """How many positions, and the tasks that have a prompt of their own, number 0 first; none: one serves all."""

    length: int = 0
    tasks: tuple[str, ...] = ()

    def number(self, task: str) -> int:
        """The number of a task's prompt.

        Raises:
            PackingError: prompts go by tasks, and this one has none.
        """
        if not self.tasks:
            return 0
        if task not in self.tasks:
            raise PackingError(
                f"task {task!r} has no prompt{nearest(task, self.tasks)}: prompts go by tasks, and there are those of "
                f"{', '.join(self.tasks)}. Give it one, or leave it out"
            )
        return self.tasks.index(task)

    def numbers(self, tasks: Sequence[str]) -> list[int]:
        """The number of each task's prompt; raises as `number`."""
        return [self.number(task) for task in tasks]

    def before(self, inputs: Int32[np.ndarray, " tokens"], number: int) -> Int32[np.ndarray, " longer"]:
        """The inputs behind the placeholders of this prompt."""
        return np.concatenate([np.full(self.length, number, np.int32), inputs]) if self.length else inputs

    def text_room(self, row_lengths: RowLengths) -> RowLengths:
        """What rows leave for the text of one example on each side.

        Raises:
            PackingError: nothing.
        """
        if self.length and row_lengths[0] < self.length + _TEXT:
            raise PackingError(
                f"rows of {row_lengths[0]} {'input ' if len(row_lengths) == 2 else ''}tokens have no room for a prompt "
                f"of {self.length} positions and a text: take rows of {self.length + _TEXT} at the very least, or a "
                "shorter prompt"
            )
        return (row_lengths[0] - self.length, *row_lengths[1:])


NO_PROMPT = Placeholders()
