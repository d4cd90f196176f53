"""What a loader found out before its first batch, as data and as start-up lines."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flanjax.data.cache import CachedTask
from flanjax.data.lengths import PackingFigures
from flanjax.data.packing import Overlong, PackingError, RowLengths, row_sizes

_LISTED_TASKS = 20
_PART = 1 << 20


@dataclass(frozen=True, kw_only=True)
class TaskSurvey:
    """One task against the rows: its parts of the mixture, and its examples longer than a row on each side, on any."""

    name: str
    examples: int
    example_share: float
    token_share: float
    overlong_sides: tuple[int, ...]
    overlong: int


@dataclass(frozen=True, kw_only=True)
class LoaderReport:
    """Row lengths, padding, over-long examples and shares of a mixture.

    `packing` comes from the first windows of the run, as does `rows`, the rows until the data ends (None where it does
    not); the rest comes from the whole length index. Shares are of what is trained on: tokens are counted on all
    sides, after truncation or dropping. `prompt_length` positions in front of every example's inputs are kept for a
    learnt prompt: they count in `packing`, and not as tokens of a task.
    """

    mixture: str
    row_lengths: RowLengths
    prompt_length: int
    chosen: bool
    overlong: Overlong
    packing: PackingFigures
    batch_rows: int
    rows: int | None
    tasks: tuple[TaskSurvey, ...]

    def lines(self) -> list[str]:
        """The start-up lines."""
        examples = sum(task.examples for task in self.tasks)
        size, padding = f"{self.row_lengths[0]}", f"{self.packing.padding[0]:.1%}"
        if len(self.row_lengths) == 2:
            size = f"{size} input and {self.row_lengths[1]} target"
            padding = f"{padding} of inputs, {self.packing.padding[1]:.1%} of targets"
        origin = "chosen from the lengths" if self.chosen else "as given"
        lines = [
            f"mixture {self.mixture}: {len(self.tasks)} tasks, {examples:,} examples",
            f"rows of {size} tokens ({origin}), {self.packing.examples / max(self.packing.rows, 1):.1f} examples in a "
            f"row; padding {padding}",
            overlong_line(self.tasks, self.overlong) or "no example is longer than a row",
        ]
        if self.prompt_length:
            lines.append(
                f"a prompt of {self.prompt_length} positions is in front of every example's inputs; it takes its part "
                "of a row, and is no padding"
            )
        if self.rows is not None:
            lines.append(
                f"the data ends after about {self.rows // self.batch_rows:,} batches of {self.batch_rows} rows; what "
                "fills no batch at its end is left out"
            )
        listed = sorted(self.tasks, key=lambda task: -task.example_share)
        width = max(len(task.name) for task in listed[:_LISTED_TASKS])
        for task in listed[:_LISTED_TASKS]:
            note = f", {task.overlong:,} over-long" if task.overlong else ""
            lines.append(
                f"  {task.name:<{width}}  {task.examples:>9,} examples, {task.example_share:6.1%} of the mixture, "
                f"{task.token_share:6.1%} of its tokens{note}"
            )
        if len(listed) > _LISTED_TASKS:
            rest = sum(task.example_share for task in listed[_LISTED_TASKS:])
            lines.append(f"  and {len(listed) - _LISTED_TASKS} tasks more, {rest:.1%} of the mixture")
        return lines


def overlong_line(tasks: Sequence[TaskSurvey], policy: Overlong) -> str:
    """How many examples are longer than a row and what becomes of them; empty where there are none."""
    overlong = sum(task.overlong for task in tasks)
    if not overlong:
        return ""
    done = {"truncate": "truncated", "drop": "dropped"}.get(policy, policy)
    line = f"{overlong:,} examples ({overlong / sum(task.examples for task in tasks):.2%}) are longer than a row"
    sides = [sum(counts) for counts in zip(*(task.overlong_sides for task in tasks), strict=True)]
    by_side = f": {sides[0]:,} by inputs, {sides[1]:,} by targets" if len(sides) == 2 else ""
    return f"{line} and are {done}{by_side}"


def survey(
    tasks: Sequence[CachedTask], shares: Sequence[float] | np.ndarray, row_lengths: RowLengths, policy: Overlong
) -> tuple[TaskSurvey, ...]:
    """Counts every task of the mixture against the room that a row has for a text; tasks with no share are left out.

    Raises:
        PackingError: an example is over-long and the policy is "error", or all of a task's are and it is "drop".
    """
    found = []
    for task, share in zip(tasks, shares, strict=True):
        if share > 0:
            counts, tokens = _count(task, row_lengths, policy)
            found.append((task, float(share), counts, float(share) * tokens / len(task)))
    total = sum(weight for *_, weight in found)
    return tuple(
        TaskSurvey(
            name=task.name,
            examples=len(task),
            example_share=share,
            token_share=weight / max(total, 1e-9),
            overlong_sides=counts[:-1],
            overlong=counts[-1],
        )
        for task, share, counts, weight in found
    )


def _count(task: CachedTask, row_lengths: RowLengths, policy: Overlong) -> tuple[tuple[int, ...], int]:
    """((over-long on each side, on any), tokens that are kept); by parts, the index may be larger than memory."""
    counts, tokens = np.zeros(len(row_lengths) + 1, dtype=np.int64), 0
    limits = np.asarray(row_lengths)
    for start in range(0, len(task), _PART):
        sizes = row_sizes(task.lengths[start : start + _PART], row_lengths)
        over = sizes > limits
        any_side = over.any(axis=1)
        if policy == "error" and any_side.any():
            _refuse(task, start + int(np.argmax(any_side)), row_lengths)
        counts += [*over.sum(axis=0), any_side.sum()]
        kept = sizes[~any_side] if policy == "drop" else np.minimum(sizes, limits)
        tokens += int(kept.sum(dtype=np.int64))
    if policy == "drop" and counts[-1] == len(task):
        raise PackingError(
            f"all {counts[-1]} examples of task {task.name!r} are longer than rows of {_shown(row_lengths)} and would "
            "be dropped: take longer rows or overlong='truncate', or leave the task out"
        )
    return tuple(counts.tolist()), tokens


def _refuse(task: CachedTask, index: int, row_lengths: RowLengths) -> None:
    inputs, targets = task.lengths[index].tolist()
    raise PackingError(
        f"example {index} of task {task.name!r} has {inputs} input and {targets} target tokens, a row has room for "
        f"{_shown(row_lengths)}: take longer rows, or overlong='truncate' or 'drop'"
    )


def _shown(row_lengths: RowLengths) -> RowLengths | int:
    return row_lengths if len(row_lengths) == 2 else row_lengths[0] + 1  # whose last token is a target alone
