"""Some rows of a split: the first ones, or ones drawn evenly from all of them in one pass.

    drawn_rows(task, "train", 3, seed=0)    Sample(rows=[(17, "train.jsonl:18", {...}), ...], seen=51974)

The reservoir is Vitter's Algorithm R (https://doi.org/10.1145/3147.3165): no more rows are held than are drawn.
"""

from dataclasses import dataclass

from flanjax.data.chat import Chat
from flanjax.data.draws import Draw
from flanjax.data.rendering import NumberedRow, rows_of
from flanjax.data.tasks import TextTask, take


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Rows in file order, and how many were gone through for them."""

    rows: list[NumberedRow]
    seen: int


def first_rows(task: TextTask, split: str, count: int, *, seed: int, chat: Chat | None = None) -> Sample:
    """The first rows of a split; no others are read."""
    rows = list(take(rows_of(task, split, seed=seed, chat=chat), count))
    return Sample(rows=rows, seen=len(rows))


def drawn_rows(task: TextTask, split: str, count: int, *, seed: int, chat: Chat | None = None) -> Sample:
    """Rows that the seed draws, each as likely; all of the split is read, and none of it rendered."""
    draw = Draw(seed, "sample", task.name, split)
    rows: list[NumberedRow] = []
    seen = 0
    for seen, row in enumerate(rows_of(task, split, seed=seed, chat=chat), 1):
        if seen <= count:
            rows.append(row)
        elif (place := draw.below(seen)) < count:
            rows[place] = row
    return Sample(rows=sorted(rows, key=lambda row: row[0]), seen=seen)
