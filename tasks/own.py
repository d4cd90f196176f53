"""One's own data as a task: a file or folder of JSON, JSON lines, CSV, Parquet or Arrow, local or at an address.

    own:  path="reviews.jsonl"                           task and mixture "reviews", splits train and validation
          path="hf://datasets/user/name"                 "name", with the splits that the names of its files say
          path="qa.csv", fields={"instruction": "question", "output": "answer"}

The form of the records (`flanjax.data.schemas`: Alpaca, ShareGPT, messages, prompt/completion, inputs/targets, ...) is
that of the first one, which is read when `family` is called; the dataset's title tells it, and a record of another
form is a bad row. A conversation gives one example for each reply of the assistant's, with all that was said before
as its input.

Files of a folder whose names have train, validation (valid, val, dev) or test in them, also as
"train-00000-of-00003.parquet" or "train/data-00000-of-00001.arrow", are those splits. Without a validation or test
split every hundredth record is kept for validation.
"""

import functools
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from flanjax.data import records
from flanjax.data.conversations import ReplyText, replies
from flanjax.data.instructions import VALIDATION_EVERY, Instruct
from flanjax.data.schemas import Conversation, Pair, Schema, detect
from flanjax.data.sources import BadRow, bad_row_policy, report_bad_row
from flanjax.data.tasks import Context, Dataset, Family, Row, Rows, Text, TextTask, Turn, with_validation
from flanjax.errors import FlanjaxError, nearest

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    "test": "test",
}
READERS: Mapping[str, Callable[[str], Iterator[tuple[str, records.Record]]]] = {
    "json": records.read_json_file,
    "jsonl": records.read_json_lines,
    "csv": functools.partial(records.read_table, delimiter=","),
    "tsv": functools.partial(records.read_table, delimiter="\t"),
    "parquet": records.read_parquet,
    "arrow": records.read_arrow,
}


class OwnDataError(FlanjaxError):
    """A path without records, or a name that a task cannot have."""


def family(
    path: str = "",
    name: str = "",
    validation: int = VALIDATION_EVERY,
    format: str = "",
    fields: Mapping[str, str] | None = None,
    style: str = "plain",
    max_source: int = 1024,
) -> Family:
    """The task and the mixture over one's own data; nothing without a path.

    Args:
        path: a file, a folder, a pattern of files ("data/*.jsonl"), or an address of one.
        name: of the task and the mixture; by default that of the file or folder.
        validation: each how many-th record is kept for validation where the files have no such split; 0 keeps none.
        format: json, jsonl, csv, tsv, parquet or arrow, for one file whose name does not tell.
        fields: the file's names of columns, by those of the form: {"instruction": "question"}.
        style: "plain" or "alpaca", for what an instruction is wrapped in.
        max_source: tokens of a conversation's input; what was said first is left out where it would be more.

    Raises:
        RecordsError: there are no files.
        SchemaError: the first record has no known form.
        OwnDataError: only some files' names say a split, there is no record, or a name is not legal.
    """
    if not path:
        return Family(tasks=[], mixtures={})
    if format and format not in READERS:
        raise OwnDataError(f"format={format!r}{nearest(format, READERS)}: the formats are {', '.join(READERS)}")
    path = path if "://" in path else os.path.expanduser(path)
    name = _checked(name) if name else _name_of(path)
    parts = {split: tuple(files) for split, files in _split(path, format).items()}
    place, record = _first_record(path, parts, format)
    schema = detect(record, place, fields)
    sources: dict[str, Rows] = {split: functools.partial(_read, files, format) for split, files in parts.items()}
    if validation and sources.keys() == {"train"}:
        sources = with_validation(sources["train"], validation)
    task = TextTask(
        name=name,
        # Records are split before they become rows, or the replies of one conversation would be on both sides.
        source={split: functools.partial(instruction_rows, rows, schema) for split, rows in sources.items()},
        render=OwnText(instruct=Instruct(style=style), reply=ReplyText(max_source=max_source)),
    )
    count = sum(map(len, parts.values()))
    title = f"own data: {count} {'file' if count == 1 else 'files'}, {schema}"
    dataset = Dataset(name=name, title=title, paper="", licence="", page=path, tested_on="")
    return Family(tasks=[task], mixtures={name: {name: 1.0}}, datasets=[dataset])


def instruction_rows(rows: Rows, schema: Schema, seed: int) -> Iterator[tuple[str, Row]]:
    """Rows of instruction, input and output from records of a form; or of turns, for each reply of a conversation."""
    for place, record in rows(seed):
        try:
            said = schema.read(record, place)
        except BadRow as error:
            report_bad_row(error)
            continue
        yield from ((place, row) for row in _rows(said))


def _rows(said: Pair | Conversation) -> Iterator[Row]:
    if isinstance(said, Pair):
        system = {"system": said.system} if said.system else {}
        yield {"instruction": said.instruction, "input": said.input, "output": said.output, **system}
        return
    for history, reply in replies(said.turns):
        if len(history) >= said.given:
            yield {"turns": [[turn.role, turn.text] for turn in (*history, reply)]}


@dataclass(frozen=True, kw_only=True)
class OwnText:
    """A render function for both kinds of row, an instruction and a reply of a conversation."""

    instruct: Instruct
    reply: ReplyText

    def __call__(self, row: Row, context: Context) -> Text | None:
        """The text of a row."""
        if "turns" in row:
            return self.reply(row, context)
        system = row.get("system", "")
        text = self.instruct(row, context)
        if not system:
            return text
        turns = (Turn(role="system", text=system), *text.conversation)
        joined = "\n\n".join((system, str(row["instruction"])))
        return replace(self.instruct({**row, "instruction": joined}, context), turns=turns)


def _read(files: Sequence[str], format: str, seed: int) -> Iterator[tuple[str, Row]]:
    del seed
    for file in files:
        yield from READERS[format](file) if format else records.read_records(file)


def _first_record(path: str, parts: Mapping[str, Sequence[str]], format: str) -> tuple[str, Row]:
    """The place and the record; malformed ones before it are left to the reading of the task."""
    with bad_row_policy("skip"):
        for files in parts.values():
            for place, record in _read(files, format, 0):
                return place, record
    raise OwnDataError(f"{path}: there is no record in it")


def _split(path: str, format: str) -> dict[str, list[str]]:
    """The files of each split."""
    if format:
        return {"train": [path]}
    files = records.record_files(path)
    if len(files) == 1:
        return {"train": files}
    paths = [file.split("/") for file in files]
    shared = next(depth for depth, names in enumerate(zip(*paths, strict=False)) if len(set(names)) > 1)
    splits: dict[str, list[str]] = {}
    for file, path_parts in zip(files, paths, strict=True):
        splits.setdefault(_split_of(path_parts[shared:]), []).append(file)
    if splits.keys() == {""}:
        return {"train": files}
    if unnamed := splits.get(""):
        raise OwnDataError(
            f"{path}: {os.path.basename(unnamed[0])} has no split in its name, though other files have ("
            f"{', '.join(filter(None, splits))}): move it away, or name a pattern of the files that you mean"
        )
    return {split: splits[split] for split in ("train", "validation", "test") if split in splits}


def _split_of(path: Sequence[str]) -> str:
    """The split that a file's name says, or else the folder it is in; empty where neither does."""
    for part in reversed(path):
        for word in re.split(r"[^a-z]+", part.lower()):
            if word in SPLITS:
                return SPLITS[word]
    return ""


def _name_of(path: str) -> str:
    """A legal name: the file's or folder's, or that of the folder around a file that is named for its split."""
    names = []
    for part in reversed(path.split("/")):
        ending = records.format_of(part)
        stem = part[: part.lower().rfind(ending)] if ending in records.FORMATS else part
        if legal := re.sub(r"[^A-Za-z0-9]+", "_", stem).strip("_"):
            names.append(legal)
    if not names:
        raise OwnDataError(f"{path}: no name of a task can be made of it; give one, name=...")
    return next((name for name in names if name.lower() not in SPLITS), names[0])


def _checked(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.:]+", name):
        raise OwnDataError(f"name={name!r}: a task's name has letters, digits and _ . : only")
    return name
