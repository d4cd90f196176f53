"""The 71 datasets of Flan 2021 and of Flan 2022's Flan part, by name; where each lies, and which are there."""

from collections.abc import Iterable, Sequence

from flanjax.tasks import flan_datasets_labels, flan_datasets_texts
from flanjax.tasks.flan_counts import FLAN_COUNTS
from flanjax.tasks.flan_datasets_base import SOURCES, FlanDataset, MissingDataset, PublishedRows, Source, split_files

from flanjax.data.tasks import Dataset, Download, Rows, dataset_folder
from flanjax.errors import FlanjaxError

DATASETS = {
    dataset.name: dataset for module in (flan_datasets_labels, flan_datasets_texts) for dataset in module.DATASETS
}
MISSING = ("error", "skip")
_HUB = "https://huggingface.co/datasets"
# Those whose training split is so large that Hugging Face has it in several files: read them from there.
_SEVERAL_FILES = (
    *("cnn_dailymail", "multi_news", "gigaword", "para_crawl_enes", "para_crawl_enda", "wmt14_enfr"),
    *(f"wmt16_translate_{code}en" for code in ("de", "cs", "fi", "ru")),
)


def folder_of(dataset: FlanDataset, data_dir: str = "") -> str:
    """Where a dataset's files are looked for."""
    name = dataset.folder or dataset.name
    return dataset_folder(name, f"{data_dir.rstrip('/')}/{name}" if data_dir else "")


def source_of(
    dataset: FlanDataset,
    data_dir: str,
    source: Source,
    missing: str = "error",
    *,
    published: bool = False,
    limit: int | None = None,
) -> dict[str, Rows]:
    """The splits of a dataset.

    Args:
        dataset: whose.
        data_dir: has its folder.
        source: of its rows.
        missing: "skip" leaves out the splits that are not there.
        published: whether they are to be whole, as published, instead of as in Flan 2021.
        limit: the most rows of training.
    """
    splits = {split: part for split, part in vars(dataset.splits).items() if part}
    if published:
        whole = {split: part.split("[")[0] for split, part in splits.items()}
        splits = {split: part for split, part in whole.items() if split == "train" or part != whole["train"]}
    folder = folder_of(dataset, data_dir)
    return {
        split: PublishedRows(
            dataset=dataset, part=part, folder=folder, source=source, limit=limit if split == "train" else None
        )
        for split, part in splits.items()
        if missing == "error" or _has(dataset, part, folder, source)
    }


def is_there(dataset: FlanDataset, data_dir: str, source: Source) -> bool:
    """Whether a source has a dataset's training rows, as far as names tell."""
    return _has(dataset, dataset.splits.train, folder_of(dataset, data_dir), source)


def _has(dataset: FlanDataset, part: str, folder: str, source: Source) -> bool:
    if source != "files":
        return bool(getattr(dataset, source))
    if "://" in folder:
        return True  # there is no telling without going there
    try:
        return bool(split_files(folder, part.split("[")[0]))
    except MissingDataset:
        return False


def there(datasets: Iterable[FlanDataset], data_dir: str, source: Source, missing: str) -> list[FlanDataset]:
    """The datasets to make tasks of: all of them, or under "skip" those that are there.

    Raises:
        FlanjaxError: an option means nothing here.
    """
    for name, value, values in (("source", source, SOURCES), ("missing", missing, MISSING)):
        if value not in values:
            raise FlanjaxError(f"{name}={value!r}: give one of {', '.join(values)}")
    return [dataset for dataset in datasets if missing == "error" or is_there(dataset, data_dir, source)]


def some(datasets: Iterable[FlanDataset], data_dir: str, source: Source, missing: str) -> list[FlanDataset]:
    """As `there`, and at least one.

    Raises:
        FlanjaxError: an option means nothing here.
        MissingDataset: none is there.
    """
    wanted = list(datasets)
    found = there(wanted, data_dir, source, missing)
    if not found:
        example = f"{wanted[0].name} would be {folder_of(wanted[0], data_dir)}"
        raise MissingDataset(f"none of {len(wanted)} datasets is there: {example}")
    return found


def described(datasets: Sequence[FlanDataset]) -> list[Dataset]:
    """What is known of them, for people and for `fetch`; datasets that share a folder are one."""
    folders: dict[str, list[FlanDataset]] = {}
    for dataset in datasets:
        folders.setdefault(dataset.folder or dataset.name, []).append(dataset)
    return [_described(name, sharing) for name, sharing in folders.items()]


def _described(name: str, sharing: Sequence[FlanDataset]) -> Dataset:
    dataset = sharing[0]
    counts = FLAN_COUNTS.get(dataset.name)
    downloads = dict.fromkeys(download for each in sharing for download in _downloads(each))
    return Dataset(
        name=name,
        title=dataset.title,
        paper=dataset.paper,
        licence=dataset.licence,
        page=dataset.page or f"{_HUB}/{dataset.hub.partition(':')[0]}",
        size=f"{counts.zero_shot:,} training examples in Flan 2022" if counts else "",
        downloads=() if name in _SEVERAL_FILES else tuple(downloads),
        tested_on=dataset.tested_on,
    )


def _downloads(dataset: FlanDataset) -> list[Download]:
    repository, _, config = dataset.hub.partition(":")
    if not repository:
        return []
    published = dict(dataset.hub_splits)
    parts = dict.fromkeys(part.split("[")[0] for part in vars(dataset.splits).values() if part)
    base = f"{_HUB}/{repository}/resolve/refs%2Fconvert%2Fparquet/{config or 'default'}"
    return [Download(url=f"{base}/{published.get(part, part)}/0000.parquet", file=f"{part}.parquet") for part in parts]
