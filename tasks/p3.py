"""P3, on which T0 was trained ("Multitask Prompted Training ...", arXiv 2110.08207), and xP3 (arXiv 2211.01786).

    family(data_dir="/data/p3")                   p3_<subset>, t0_train, p3_flan2022
    family(templates="promptsource/templates")    the same from raw rows, in PromptSource's templates
    family(xp3_dir="/data/xP3", languages=("en", "sw"))      xp3_en, xp3_sw, xp3

A subset is a dataset in one template, 339 of them here. Published: a folder, or a file, for each of them, with rows

    {"inputs_pretokenized": "...", "targets_pretokenized": "\n...", "answer_choices": ["...", ...]}     Hugging Face
    {"prompt": "...", "completion": "...<|endoftext|>"}                                                  Self-Instruct

Rendered here: the rows of the dataset itself, in /data/<dataset>, through `flanjax.data.promptsource`. xP3 has a folder
for each language, of JSON lines {"inputs": "...", "targets": "..."}.

`t0_train` has T0's training datasets; a dataset of more than 500,000 examples counts as 500,000, which its subsets
share, as in the paper. `p3_flan2022` has the 193 subsets that Flan 2022 keeps, at most 20,000 examples of each.
"""

import functools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flanjax.tasks.flan_counts import P3_SUBSETS
from flanjax.tasks.flan_datasets import folder_of, some
from flanjax.tasks.flan_datasets_base import PUBLISHED, FlanDataset, PublishedRows, Source, Splits
from flanjax.tasks.flan_fields import text_of, texts_of
from flanjax.tasks.p3_subsets import P3_DATASETS, P3Dataset, subset_name
from flanjax.tasks.scoring import super_ni_scores

from flanjax.data.prompts import Instance
from flanjax.data.promptsource import PromptTemplate, read_promptsource
from flanjax.data.records import read_records
from flanjax.data.sources import BadRow
from flanjax.data.tasks import Context, Dataset, Family, Row, Text, TextTask, dataset_folder, with_validation
from flanjax.errors import FlanjaxError, nearest

CAP = 500_000
CAP_FLAN2022 = 20_000
_INPUTS = "inputs_pretokenized/prompt/inputs"
_TARGETS = "targets_pretokenized/completion/targets"
_END = "<|endoftext|>"
_KEYS = {"t0_separated_options": "t0_multiple_choice_separated_options"}  # of FLAN's templates

LANGUAGES = (
    *("ak", "ar", "as", "bm", "bn", "ca", "code", "en", "es", "eu", "fon", "fr", "gu", "hi", "id", "ig", "ki", "kn"),
    *("lg", "ln", "ml", "mr", "ne", "nso", "ny", "or", "pa", "pt", "rn", "rw", "sn", "st", "sw", "ta", "te", "tn"),
    *("ts", "tum", "tw", "ur", "vi", "wo", "xh", "yo", "zh", "zu"),
)

P3 = Dataset(
    name="p3",
    title="P3: datasets in the templates of PromptSource, as T0 was trained on them",
    paper="arXiv 2110.08207",
    licence="those of its sources; templates Apache-2.0",
    page="https://huggingface.co/datasets/bigscience/P3",
    size="339 subsets of 42 datasets here",
    tested_on=PUBLISHED,
)
XP3 = Dataset(
    name="xp3",
    title="xP3: prompted datasets in 46 languages",
    paper="arXiv 2211.01786",
    licence="Apache-2.0; those of its sources",
    page="https://huggingface.co/datasets/bigscience/xP3",
    size="78,883,588 examples",
    tested_on="hand-made file of the published schema",
)


def family(
    data_dir: str = "",
    *,
    templates: str = "",
    source: Source = "files",
    splits: str | Sequence[str] = "train",
    flatten: bool = False,
    missing: str = "error",
    xp3_dir: str = "",
    languages: str | Sequence[str] = LANGUAGES,
) -> Family:
    """The subsets of P3 and the languages of xP3, and their mixtures.

    Args:
        data_dir: has a folder or a file for each subset; with `templates`, a folder for each dataset.
        templates: PromptSource's folder of templates, where rows are to be rendered here.
        source: "files", or "hub" for Hugging Face.
        splits: one, or several, as published; they differ from subset to subset, but all have "train".
        flatten: newlines of an input become spaces and those of a target nothing, as Flan 2022 has it.
        missing: "error", once rows of what is not there are asked for; or "skip", which leaves it out.
        xp3_dir: has a folder for each language.
        languages: of xP3, one or several.

    Raises:
        FlanjaxError: an option means nothing here.
        MissingDataset: under "skip", nothing is there.
    """
    splits, languages = ([given] if isinstance(given, str) else given for given in (splits, languages))
    if unknown := [language for language in languages if language not in LANGUAGES]:
        raise FlanjaxError(f"languages: {unknown[0]!r} is none of xP3's{nearest(unknown[0], LANGUAGES)}")
    if templates:
        tasks = _rendered_here(data_dir, templates, source, splits, flatten, missing)
    else:
        subsets = some(published_subsets(), data_dir or dataset_folder("p3"), source, missing)
        tasks = [_published(subset, data_dir or dataset_folder("p3"), source, splits, flatten) for subset in subsets]
    spoken = [_language(language, dataset_folder("xp3", xp3_dir)) for language in languages]
    there = {task.name for task in tasks}
    mixtures: dict[str, dict[str, float | None]] = {
        "t0_train": {name: rate for name, rate in _t0_rates().items() if name in there},
        "p3_flan2022": {
            f"p3_{subset.name}": float(min(CAP_FLAN2022, subset.counts.zero_shot))
            for subset in P3_SUBSETS.values()
            if f"p3_{subset.name}" in there
        },
        "xp3": dict.fromkeys((task.name for task in spoken), None),
    }
    return Family(tasks=[*tasks, *spoken], mixtures=mixtures, datasets=(P3, XP3))


def prompted(row: Row, place: str, *, flatten: bool = False) -> tuple[str, str]:
    """Input and target of a published row.

    Raises:
        BadRow: it has none.
    """
    inputs = text_of(row, _INPUTS, place).strip()
    targets = text_of(row, _TARGETS, place).removesuffix(_END).strip()
    if flatten:
        inputs, targets = inputs.replace("\n", " "), targets.replace("\n", "")
    return inputs, targets


def instance(row: Row, place: str, *, options: bool, flatten: bool = False) -> Instance:
    """An instance of the types t0_*: with its answer choices, where its type shows them apart.

    Raises:
        BadRow: it is no row of P3, or lacks its answer choices.
    """
    prompt, answer = prompted(row, place, flatten=flatten)
    if not options:
        return {"prompt": prompt, "answer": answer}
    choices = [choice.strip() for choice in texts_of(row, "answer_choices", place)]
    if answer not in choices:
        raise BadRow(f"{place}: the target {answer!r} is none of 'answer_choices': {choices}")
    return {"prompt": prompt, "answer": answer, "options": choices}


@functools.cache
def published_subsets(flatten: bool = False) -> tuple[FlanDataset, ...]:
    """All subsets of P3 here, as datasets; their instances have newlines flattened or not."""
    return tuple(
        FlanDataset(
            name=name,
            type=P3_SUBSETS[name].type if name in P3_SUBSETS else "",
            instance=functools.partial(
                instance,
                options=name in P3_SUBSETS and P3_SUBSETS[name].type == "t0_separated_options",
                flatten=flatten,
            ),
            key=_KEYS.get(P3_SUBSETS[name].type, P3_SUBSETS[name].type) if name in P3_SUBSETS else None,
            splits=Splits(validation="", test=""),
            hub=f"bigscience/P3:{name}",
            part_of="p3",
            page=P3.page,
        )
        for dataset in P3_DATASETS.values()
        for name in dataset.subsets
    )


@dataclass(frozen=True, kw_only=True)
class PublishedText:
    """A render function: the text of a row as it was published."""

    flatten: bool = False

    def __call__(self, row: Row, context: Context) -> Text:
        """The text of a row; raises BadRow."""
        inputs, targets = prompted(row, context.place, flatten=self.flatten)
        return Text(inputs=inputs, targets=targets)


@dataclass(frozen=True, kw_only=True)
class TemplateText:
    """A render function: a dataset's row in one template of PromptSource.

    Attributes:
        file: of the dataset's templates.
        dataset: in P3.
        subset: which names the template.
        flatten: see `family`.
    """

    file: str
    dataset: str
    subset: str
    flatten: bool = False

    def __call__(self, row: Row, context: Context) -> Text | None:
        """The text of a row; None where the template says nothing of it; raises BadRow."""
        templates = _templates(self.file, self.dataset)
        if self.subset not in templates:
            raise FlanjaxError(f"{self.file} has no template for {self.subset}{nearest(self.subset, templates)}")
        made = templates[self.subset].render(row, context.draw, context.place)
        if made is None:
            return None
        inputs, targets = prompted(
            {"inputs": made.inputs, "targets": made.targets[0]}, context.place, flatten=self.flatten
        )
        return Text(inputs=inputs, targets=targets, references=made.targets)


@functools.lru_cache(maxsize=64)
def _templates(file: str, dataset: str) -> dict[str, PromptTemplate]:
    return {subset_name(dataset, name): template for name, template in read_promptsource(file).items()}


def _published(subset: FlanDataset, data_dir: str, source: Source, splits: Sequence[str], flatten: bool) -> TextTask:
    folder = folder_of(subset, data_dir)
    rows = {split: PublishedRows(dataset=subset, part=split, folder=folder, source=source) for split in splits}
    return TextTask(
        name=f"p3_{subset.name}", source=rows, render=PublishedText(flatten=flatten), metric_fns=(super_ni_scores,)
    )


def _rendered_here(
    data_dir: str, templates: str, source: Source, splits: Sequence[str], flatten: bool, missing: str
) -> list[TextTask]:
    raw = {dataset.name: _raw(dataset) for dataset in P3_DATASETS.values()}
    return [
        TextTask(
            name=f"p3_{subset}",
            source={
                split: PublishedRows(dataset=rows, part=split, folder=folder_of(rows, data_dir), source=source)
                for split in splits
            },
            render=TemplateText(
                file=os.path.join(templates, P3_DATASETS[rows.name].templates, "templates.yaml"),
                dataset=rows.name,
                subset=subset,
                flatten=flatten,
            ),
            metric_fns=(super_ni_scores,),
        )
        for rows in some(raw.values(), data_dir, source, missing)
        for subset in P3_DATASETS[rows.name].subsets
    ]


def _raw(dataset: P3Dataset) -> FlanDataset:
    return FlanDataset(name=dataset.name, type="", instance=prompted, hub=dataset.hub, page=P3.page)


def _t0_rates() -> dict[str, float | None]:
    return {
        f"p3_{subset}": float(dataset.examples if dataset.examples <= CAP else CAP / len(dataset.subsets))
        for dataset in P3_DATASETS.values()
        if dataset.t0
        for subset in dataset.subsets
    }


def _language(language: str, folder: str) -> TextTask:
    return TextTask(
        name=f"xp3_{language}",
        source=with_validation(functools.partial(_records, folder=f"{folder}/{language}")),
        render=PublishedText(),
        metric_fns=(super_ni_scores,),
    )


def _records(seed: int, *, folder: str) -> Iterator[tuple[str, Row]]:
    del seed  # they come in the order of the files
    yield from read_records(folder)
