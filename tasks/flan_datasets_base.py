"""A dataset of Flan 2021: what is known of it, and how the rows of its splits are read.

    FlanDataset(name="sst2", splits=cut(200, test="validation"), tfds="glue/sst2", hub="nyu-mll/glue:sst2", ...)

Splits are written as TFDS writes them: "train[:-200]" leaves the last 200 rows out. Rows come from

    files    a folder with train, validation and test files, or folders, in any format of `flanjax.data.records`, in the
             format of TFDS, of Hugging Face, or of the authors where the entry says how that is read;
    hub      the Parquet files that Hugging Face makes of every dataset, read from there;
    tfds     TensorFlow Datasets, which downloads and prepares it.
"""

import glob
import itertools
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from flanjax.data import tasks
from flanjax.data.records import FORMATS, RecordsError, format_of, read_records, read_table, record_files
from flanjax.data.tasks import Row
from flanjax.errors import FlanjaxError

Source = Literal["files", "hub", "tfds"]
SOURCES = ("files", "hub", "tfds")
PUBLISHED = "published file"
HAND_MADE = "hand-made file of the published schema"
_OTHER_NAMES = {"validation": ("dev", "valid", "val"), "dev": ("validation", "valid", "val")}


class MissingDataset(FlanjaxError):
    """A dataset, or a split of one, that is not where it is looked for."""


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The published rows that make up each split; "" where there are none."""

    train: str = "train"
    validation: str = "validation[:200]"
    test: str = "test"


def cut(count: int, *, test: str = "test", train: str = "train") -> Splits:
    """Validation rows are the last of the training split."""
    return Splits(train=f"{train}[:-{count}]", validation=f"{train}[-{count}:]", test=test)


@dataclass(frozen=True, kw_only=True)
class FlanDataset:
    """One dataset of Flan 2021.

    Attributes:
        name: as in the paper's code.
        type: its task type, of `flanjax.tasks.flan_wording`.
        instance: (row, place) -> an instance of that type, or None.
        key: of its templates in the release, where that is not the one of its name; None: they do not fit.
        cluster: of the paper; "" for the two that only Flan 2022 has.
        splits: as in Flan 2021.
        tfds, hub: where it is published: "name/config" and "user/name:config"; "" where it is not.
        hub_splits: what the three published splits are called there, where that is something else.
        columns: of a CSV or TSV file without a header.
        unquoted: whether quotation marks in such a file are characters like others.
        rows: the rows of a record, where the published file nests them.
        folder: where it lies, if that is not its name.
        part_of: what `fetch` gets it with, if that is not its folder's name.
        title, paper, licence, page, size: for people to read; `page` may be left out where `hub` says it.
        tested_on: see `flanjax.data.tasks.Dataset`.
    """

    name: str
    type: str
    instance: Callable[[Row, str], Any]
    key: str | None = ""
    cluster: str = ""
    splits: Splits = Splits()
    tfds: str = ""
    hub: str = ""
    hub_splits: tuple[tuple[str, str], ...] = ()
    columns: tuple[str, ...] = ()
    unquoted: bool = False
    rows: Callable[[Row, str], Iterator[Row]] | None = None
    folder: str = ""
    part_of: str = ""
    title: str = ""
    paper: str = ""
    licence: str = ""
    page: str = ""
    size: str = ""
    tested_on: str = HAND_MADE


@dataclass(frozen=True, kw_only=True)
class PublishedRows:
    """The rows of a split, as the function that a task has for it.

    Attributes:
        dataset: whose.
        part: which: "train", "train[:-200]", "train[-200:]", "train[100:200]".
        folder: where it lies, for "files".
        source: of the rows.
        limit: the most rows there may be.
    """

    dataset: FlanDataset
    part: str
    folder: str
    source: Source = "files"
    limit: int | None = None

    def __call__(self, seed: int) -> Iterator[tuple[str, Row]]:
        """(place, row) pairs in published order; the seed changes nothing.

        Raises:
            MissingDataset: there is no such folder, or no file of the split in it.
            BadRow: a file is damaged.
        """
        split, start, stop = parse_part(self.part)
        rows = sliced(self._published(split), start, stop)
        return rows if self.limit is None else tasks.take(rows, self.limit)

    def _published(self, split: str) -> Iterator[tuple[str, Row]]:
        if self.source == "tfds":
            return tfds_rows(self.dataset, split)
        files = hub_files(self.dataset, split) if self.source == "hub" else self._files(split)
        return itertools.chain.from_iterable(map(self._file_rows, files))

    def _files(self, split: str) -> list[str]:
        dataset = self.dataset
        try:
            if files := split_files(self.folder, split):
                return files
            reason = f"no file of the split {split!r} in {self.folder}"
        except MissingDataset as error:
            reason = str(error)
        ways = [f"`python -m flanjax.data fetch {dataset.part_of or dataset.folder or dataset.name}` gets it"]
        published = " or ".join(repr(name) for name in ("hub", "tfds") if vars(dataset)[name])
        ways += [f"source={published} reads it where it is published"] if published else []
        ways.append("missing='skip' leaves it out")
        raise MissingDataset(f"{dataset.name}: {reason}; {', '.join(ways)}{_others_missing(self)}")

    def _file_rows(self, file: str) -> Iterator[tuple[str, Row]]:
        dataset = self.dataset
        if dataset.columns and format_of(file) in (".csv", ".tsv"):
            records = read_table(file, names=dataset.columns, quoted=not dataset.unquoted)
            records = (pair for pair in records if tuple(pair[1].values()) != dataset.columns)  # a header after all
        else:
            records = read_records(file)
        if dataset.rows is None:
            return records
        return ((place, row) for place, record in records for row in dataset.rows(record, place))


def _others_missing(rows: PublishedRows) -> str:
    """Which of Flan 2021's datasets have no folder either, where this one is one of them."""
    from flanjax.tasks.flan_datasets import DATASETS, is_there

    dataset = rows.dataset
    if DATASETS.get(dataset.name) is not dataset or os.path.basename(rows.folder) != (dataset.folder or dataset.name):
        return ""
    beside = os.path.dirname(rows.folder)
    absent = [other.folder or other.name for other in DATASETS.values() if not is_there(other, beside, "files")]
    names = list(dict.fromkeys(absent))
    return f". Of Flan 2021 {len(names)} have no folder there: {', '.join(names)}" if names else ""


def parse_part(part: str) -> tuple[str, int | None, int | None]:
    """The split, and the first and last row of "split[first:last]"."""
    found = re.fullmatch(r"([^\[\]]+)(?:\[(-?\d+)?:(-?\d+)?\])?", part)
    if found is None:
        raise ValueError(f"{part!r} is not a split, with or without [first:last]")
    split, start, stop = found.groups()
    return split, None if start is None else int(start), None if stop is None else int(stop)


def sliced(rows: Iterator[Any], start: int | None, stop: int | None) -> Iterator[Any]:
    """`rows[start:stop]` of a stream; what is counted from its end is held, and no more.

    Where `start` is counted from the end, so must `stop` be.
    """
    if start is not None and start < 0:
        rows, start = tasks.last(rows, -start), None
    if stop is not None and stop < 0:
        return tasks.all_but_last(itertools.islice(rows, start, None), -stop)
    return itertools.islice(rows, start, stop)


def split_files(folder: str, split: str) -> list[str]:
    """The files of a split: those whose names, or whose folders' names, have a word that begins with it.

    "dev" and "val" are other names for validation. Without a local folder, a file "<folder>.jsonl", of any format,
    is the training split.

    Raises:
        MissingDataset: there is neither.
    """
    try:
        files = record_files(folder)
    except RecordsError as error:
        return _single_file(folder, split, error)
    base = folder if "://" in folder else os.path.abspath(folder)
    inside = {file: file.removeprefix(base).removeprefix(folder) for file in files}
    for name in (split, *_OTHER_NAMES.get(split, ()), split.split("_")[0]):
        pattern = re.compile(rf"(^|[/\\_.-]){re.escape(name)}")
        if found := [file for file, path in inside.items() if pattern.search(path)]:
            return found
    return []


def _single_file(folder: str, split: str, error: RecordsError) -> list[str]:
    if "://" in folder:
        raise MissingDataset(str(error)) from error
    files = [file for file in sorted(glob.glob(f"{glob.escape(folder)}.*")) if format_of(file) in FORMATS]
    if not files:
        raise MissingDataset(str(error)) from error
    return files if split == "train" else []


def hub_files(dataset: FlanDataset, split: str) -> list[str]:
    """The addresses of a split's Parquet files on Hugging Face.

    Raises:
        MissingDataset: it is not published there, or cannot be reached.
    """
    address = hub_address(dataset, split)
    try:
        return record_files(address)
    except RecordsError as error:
        raise MissingDataset(f"{dataset.name} is not on Hugging Face: {error}") from error


def hub_address(dataset: FlanDataset, split: str) -> str:
    """Where Hugging Face has a split in Parquet.

    Raises:
        MissingDataset: it is not published there.
    """
    if not dataset.hub:
        raise MissingDataset(f"{dataset.name} is not published on Hugging Face: {dataset.page}")
    repository, _, config = dataset.hub.partition(":")
    published = dict(dataset.hub_splits).get(split, split)
    return f"hf://datasets/{repository}@refs/convert/parquet/{config or 'default'}/{published}/*.parquet"


def tfds_rows(dataset: FlanDataset, split: str) -> Iterator[tuple[str, Row]]:
    """The rows of a split in TensorFlow Datasets, which is imported here and nowhere else.

    Raises:
        MissingDataset: it is not published there, or cannot be downloaded.
    """
    import tensorflow_datasets as tfds

    if not dataset.tfds:
        raise MissingDataset(f"{dataset.name} is not in TensorFlow Datasets: {dataset.page}")
    try:
        stream = tfds.as_numpy(tfds.load(dataset.tfds, split=split, try_gcs=False, shuffle_files=False))
    except Exception as error:  # what it raises depends on the dataset's own code
        raise MissingDataset(f"tfds.load({dataset.tfds!r}) failed: {type(error).__name__}: {error}") from error
    return ((f"{dataset.tfds}:{split}: row {number}", jsonable(row)) for number, row in enumerate(stream, 1))


def jsonable(value: Any) -> Any:
    """What JSON can hold, from what TensorFlow Datasets gives: bytes as text, arrays as lists."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, dict):
        return {name: jsonable(item) for name, item in value.items()}
    if isinstance(value, list):
        return [jsonable(item) for item in value]
    return jsonable(value.tolist()) if hasattr(value, "tolist") else value
