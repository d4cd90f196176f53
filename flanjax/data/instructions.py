"""What single-turn instruction data has in common: its published files, and an instruction's text in a style.

    Instruct(style="alpaca")(row, context)     "Below is an instruction that describes a task. ...", and the output
    published(folder, "alpaca_data.json")      the rows of that file below a folder, or of a file named itself

A family gives `Instruct` its own names of columns. Datasets without a split get one by `with_validation`; `sizes` says
how many examples both sides then have.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from flanjax.data.records import FORMATS, RecordsError, format_of, read_records, record_files
from flanjax.data.schemas import optional_text
from flanjax.data.sources import BadRow, report_bad_row, text_field
from flanjax.data.tasks import Context, Render, Row, Rows, Text, TextTask, with_validation
from flanjax.errors import FlanjaxError, nearest

# style -> the text of an instruction with an input, and of one without. That of Alpaca is as its README publishes it:
# https://github.com/tatsu-lab/stanford_alpaca#data-release
STYLES = {
    "alpaca": (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:",
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{instruction}\n\n### Response:",
    ),
    "plain": ("{instruction}\n\n{input}", "{instruction}"),
}

VALIDATION_EVERY = 100


@dataclass(frozen=True, kw_only=True)
class Instruct:
    """Renders a row of an instruction, an optional input and an output; the attributes name its columns.

    There need be no column of inputs. Without one of outputs the text has no target: such prompts can be looked at and
    answered, and materialising leaves them out.

    Raises:
        FlanjaxError: there is no such style.
    """

    style: str = "alpaca"
    instruction: str = "instruction"
    input: str = "input"
    output: str = "output"

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise FlanjaxError(f"style={self.style!r}{nearest(self.style, STYLES)}: the styles are {', '.join(STYLES)}")

    def __call__(self, row: Row, context: Context) -> Text:
        """The text of a row; raises BadRow where a column is no string."""
        instruction = text_field(row, self.instruction, context.place)
        given = optional_text(row, self.input, context.place) if self.input else ""
        with_input, without_input = STYLES[self.style]
        return Text(
            inputs=(with_input if given else without_input).format(instruction=instruction, input=given),
            targets=text_field(row, self.output, context.place) if self.output else "",
        )


def published(folder: str, *names: str) -> Rows:
    """The rows of the first of these files, or patterns of files, that is below a folder; packed by gzip or not.

    Args:
        folder: a local folder or an address, or one file, which is then read whatever its name.
        names: the names that the file is published under.
    """
    return functools.partial(_read_published, folder, names)


def _read_published(folder: str, names: Sequence[str], seed: int) -> Iterator[tuple[str, Row]]:
    del seed
    for file in published_files(folder, names):
        yield from read_records(file)


def published_files(folder: str, names: Sequence[str]) -> list[str]:
    """The files that `published` reads.

    Raises:
        RecordsError: none of them is there.
    """
    if format_of(folder) in FORMATS:
        return record_files(folder)
    missing: RecordsError | None = None
    for name in (name + ending for name in names for ending in ("", ".gz")):
        try:
            return record_files(f"{folder.rstrip('/')}/{name}")
        except RecordsError as error:
            missing = missing or error
    raise RecordsError(
        f"{folder} has none of {', '.join(names)}: {missing}; `python -m flanjax.data fetch NAME` downloads what is "
        "published"
    ) from missing


def only(rows: Rows, column: str, values: Sequence[str]) -> Rows:
    """The rows with one of these values in a column; all of them where none is named."""
    return functools.partial(_only, rows, column, tuple(values)) if values else rows


def _only(rows: Rows, column: str, values: tuple[str, ...], seed: int) -> Iterator[tuple[str, Row]]:
    seen: dict[str, None] = {}
    for place, row in rows(seed):
        try:
            value = text_field(row, column, place)
        except BadRow as error:
            report_bad_row(error)
            continue
        seen[value] = None
        if value in values:
            yield place, row
    if absent := [value for value in values if value not in seen]:
        there = ", ".join(sorted(seen)) or "none"
        raise FlanjaxError(f"no row has {column} {absent[0]!r}{nearest(absent[0], seen)}; there are {there}")


def sizes(total: int, every: int = VALIDATION_EVERY) -> Mapping[str, int]:
    """How many of `total` rows `with_validation` makes train and validation."""
    validation = -(-total // every)
    return {"train": total - validation, "validation": validation}


def instruction_task(name: str, rows: Rows, render: Render, *, total: int | None = None) -> TextTask:
    """A task over rows that have no published split.

    Args:
        name: of the task.
        rows: all of them.
        render: makes their text.
        total: the published number of rows, where it is sure.
    """
    source = with_validation(rows, VALIDATION_EVERY)
    return TextTask(name=name, source=source, render=render, examples=sizes(total) if total else {})
