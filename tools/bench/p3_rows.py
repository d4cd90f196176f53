"""The family that materialize.py measures: P3's prompts and completions of a tab-separated file, in one template."""

import functools
from collections.abc import Iterator

from flanjax.data.records import read_table
from flanjax.data.tasks import Context, Family, Row, Text, TextTask

TEMPLATE = ("Read this and answer. ", " The answer:")


def family(path: str) -> Family:
    """One task over the file."""
    task = TextTask(name="bench", source={"train": functools.partial(rows_of, path)}, render=render)
    return Family(tasks=[task], mixtures={})


def rows_of(path: str, seed: int) -> Iterator[tuple[str, Row]]:
    """The rows of the file."""
    del seed
    return read_table(path, names=("prompt", "completion"), quoted=False)


def render(row: Row, context: Context) -> Text:
    """The template."""
    del context
    return Text(inputs=TEMPLATE[0] + row["prompt"] + TEMPLATE[1], targets=row["completion"])
