"""Solved instances for few-shot prompts: a sample of a split, drawn once a process.

    exemplars = Exemplars(source=task_source["train"], to_instance=to_instance)
    exemplars.pool(seed)      up to 1,000 instances, the same for a seed in any process

A render function gives `exemplars.pool(context.seed)` to `flanjax.data.prompts.render_arm`; it should be one object for
all arms of a dataset, so that the split is read once for all of them.
"""

import functools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flanjax.data.draws import Draw
from flanjax.data.prompts import Instance
from flanjax.data.sources import BadRow, bad_row_policy
from flanjax.data.tasks import Row, Rows

POOLS = 256  # held at a time, for a seqio mixture reads all of its tasks at once

_one_at_a_time = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class Exemplars:
    """The pool that a dataset's few-shot prompts draw from.

    Attributes:
        source: the rows of the train split.
        to_instance: (row, place) -> the instance, or None for a row that is none; it may raise BadRow.
        size: of the pool.
    """

    source: Rows
    to_instance: Callable[[Row, str], Instance | None]
    size: int = 1000

    def pool(self, seed: int) -> Sequence[Instance]:
        """A uniform sample of the instances, in no particular order.

        Malformed rows are no exemplars; they are reported where their own split is rendered, and only there.

        Raises:
            BadRow: the file is missing or damaged.
        """
        with _one_at_a_time:
            return _sample(self, seed)


@functools.lru_cache(maxsize=POOLS)
def _sample(exemplars: Exemplars, seed: int) -> Sequence[Instance]:
    """Algorithm R (Vitter 1985, "Random Sampling with a Reservoir"); only rows that are kept become instances."""
    draw = Draw(seed, "exemplars")
    kept: list[Instance] = []
    with bad_row_policy("skip"):
        for number, (place, row) in enumerate(exemplars.source(seed)):
            index = len(kept) if len(kept) < exemplars.size else draw.below(number + 1)
            if index >= exemplars.size:
                continue
            try:
                instance = exemplars.to_instance(row, place)
            except BadRow:
                continue
            if instance is not None:
                kept[index : index + 1] = [instance]
    return tuple(kept)
