"""Flan 2022 ("The Flan Collection", arXiv 2301.13688), which Flan-T5 (arXiv 2210.11416) was tuned on: five parts.

    family(data_dir="/data")                      flan2022_paper, flan2022_release, flan2021_submix, t0_submix, ...
    family(data_dir="/data", missing="skip")      what there is of it under /data, the shares of the rest scaled up
    family(source="hub")                          Flan 2021 and P3 from Hugging Face, the rest from /data

| part             | from                                             | arms                          | cap     |
|------------------|--------------------------------------------------|-------------------------------|---------|
| flan2021_submix  | 71 datasets, as in `flan2021`, all training rows | zsopt fsopt zsnoopt fsnoopt   | 30,000  |
| t0_submix        | 193 subsets of P3                                | the same                      | 20,000  |
| niv2_submix      | 1,556 tasks of Super-NaturalInstructions         | zsopt fsopt                   | 5,000   |
| cot_submix       | 9 sets with rationales; inverted at 0.3          | zsopt fsopt                   | 100,000 |
| dialog_submix    | wiki_dialog, qrecc; inverted at 0.3              | zsopt fsopt                   | 200,000 |

Arms of a part weigh the same; "fsopt" has two entries for a dataset, fsopt_five and fsopt_x, each with its own cap; an
entry's rate is its published number of examples, up to the cap. Shares of the parts are those of Flan-T5's paper (Table
23; its "Muffin" had the conversations, which are published apart) or of the release (flan/v2/run_example.py).

Two deviations. In the release Super-NI is one task whose cap acts on all of it; here each of its tasks has the cap that
the paper means. And of the 1,613 that the release lists (41 of them twice) those made from MMLU, numbered 664-667 and
685-737, are all left out, 57 where the paper counts 44.
"""

import os
from collections.abc import Mapping, Sequence

from flanjax.tasks import flan2022_parts, p3
from flanjax.tasks.flan2021 import ARM_MIXTURES
from flanjax.tasks.flan2022_parts import NatInstRender, NatInstRows, natural_instruction
from flanjax.tasks.flan_arms import ARMS, Published, arm_settings, arm_tasks
from flanjax.tasks.flan_counts import COT_COUNTS, DIALOG_COUNTS, FLAN_COUNTS, P3_SUBSETS, Counts
from flanjax.tasks.flan_datasets import DATASETS, source_of, there
from flanjax.tasks.flan_datasets_base import FlanDataset, MissingDataset, Source
from flanjax.tasks.flan_wording import task_type
from flanjax.tasks.scoring import super_ni_scores

from flanjax.data.exemplars import Exemplars
from flanjax.data.prompts import Arm, ArmSettings
from flanjax.data.tasks import Dataset, Family, Rows, TextTask, dataset_folder
from flanjax.errors import FlanjaxError

SHARES = {
    "flan2022_paper": {"flan2021_submix": 46.0, "t0_submix": 27.9, "niv2_submix": 24.2, "cot_submix": 1.8},
    "flan2022_release": {
        **{"flan2021_submix": 40.0, "t0_submix": 32.0, "niv2_submix": 20.0},
        **{"cot_submix": 5.0, "dialog_submix": 3.0},
    },
}
CAPS = {
    **{"flan2021_submix": 30_000, "t0_submix": 20_000, "niv2_submix": 5_000},
    **{"cot_submix": 100_000, "dialog_submix": 200_000},
}
INVERSION = 0.3  # as often as a rationale or a reply is asked for, its question or what led to it is
RATES = ("published", "counted")
PREFIX = "flan2022_"
EVERY_ARM = ("flan2021_submix", "t0_submix")  # the others have no options, of which there would be nothing to hide
WITH_OPTIONS = (Arm.ZSOPT, Arm.FSOPT_FIVE, Arm.FSOPT_X)

Weights = Mapping[str, float]
Parts = Mapping[str, Sequence[FlanDataset]]


def family(
    data_dir: str = "",
    *,
    source: Source = "files",
    missing: str = "error",
    rates: str = "published",
    limit: int | None = None,
    styles: str = "distinct",
    flatten_p3: bool = False,
    templates: str = "",
    branched: str = "",
) -> Family:
    """The tasks of Flan 2022, `flan2022_<name>_<arm>`, its parts, and the two mixtures of them.

    Args:
        data_dir: has the folders of Flan 2021's datasets, p3, super_natural_instructions, flan_cot, wiki_dialog and
            qrecc; without it each lies where `fetch` puts it.
        source: "hub" takes Flan 2021 and P3 from Hugging Face, "tfds" Flan 2021 and the conversations from TensorFlow
            Datasets, and the rest, or all, comes from "files".
        missing: "error", once rows of what is not there are asked for; or "skip", which leaves it out.
        rates: "published", as above; or "counted", by which every task weighs what it has, without caps or shares.
        limit: the most training rows that are read of a dataset of any part but Super-NI. A run draws few of the 41
            million of wmt14_enfr, which has the rate of 30,000; this leaves the others out of the cache.
        styles: of option blocks: "distinct", or "release" for the release's own frequencies.
        flatten_p3: newlines of P3 become spaces in inputs, nothing in targets, as in the release.
        templates: the release's templates.py, for its own wording; where none of it fits our instances
            (`flan_published` says where), ours stays.
        branched: the release's flan_templates_branched.py, its wording without options.

    Raises:
        FlanjaxError: an option means nothing here.
        MissingDataset: under "skip", nothing is there.
    """
    if rates not in RATES:
        raise FlanjaxError(f"rates={rates!r}: give one of {', '.join(RATES)}")
    settings, published = arm_settings(styles), Published(templates=templates, branched=branched)
    wanted = _wanted(flatten_p3)
    places = {part: (data_dir, _source(part, source)) for part in wanted}
    places["t0_submix"] = (_folder("p3", data_dir), _source("t0_submix", source))
    parts = {part: there(datasets, *places[part], missing) for part, datasets in wanted.items()}
    folder = _folder("super_natural_instructions", data_dir)
    niv2 = _niv2_there(folder, missing)
    if not niv2 and not any(parts.values()):
        raise MissingDataset(f"nothing of Flan 2022 is in {data_dir or 'the folders of its datasets'}")
    tasks = _niv2_tasks(niv2, folder, settings, published)
    for part, datasets in parts.items():
        arms = ARMS if part in EVERY_ARM else WITH_OPTIONS
        for dataset in datasets:
            rows = source_of(dataset, *places[part], missing, limit=limit)
            name = f"{PREFIX}{dataset.name}"
            tasks += arm_tasks(name, dataset, rows, settings=settings, published=published, arms=arms)
    submixes = _submixes(parts, niv2)
    mixtures: dict[str, Mapping[str, float | None]] = {**submixes}
    mixtures |= {name: nested(shares, submixes) for name, shares in SHARES.items()}
    if rates == "counted":
        mixtures = {name: dict.fromkeys(mixture) for name, mixture in mixtures.items()}
    described = (_described(wanted, parts, niv2), *flan2022_parts.DATASETS)
    return Family(tasks=tasks, mixtures=mixtures, datasets=described)


def nested(shares: Weights, mixtures: Mapping[str, Weights]) -> dict[str, float]:
    """The flat rates of a mixture of mixtures: each has its share of the whole, and divides it as its own rates say.

        nested({"a": 1, "b": 3}, {"a": {"x": 5, "y": 5}, "b": {"z": 7}})      {"x": 0.5, "y": 0.5, "z": 3.0}

    As in seqio: rate(mixture) * mixture.rate(task) / sum of its rates. A mixture without tasks leaves its share to the
    others; a task of several mixtures has what each gives it.
    """
    rates: dict[str, float] = {}
    for name, share in shares.items():
        total = sum(mixtures[name].values())
        for task, rate in mixtures[name].items():
            rates[task] = rates.get(task, 0.0) + share * rate / total
    return rates


def capped(counts: Mapping[str, Counts], arm: str, cap: int) -> dict[str, float]:
    """Task -> rate of one arm: the published number of examples, up to the cap, of each of its entries."""
    return {
        f"{PREFIX}{name}_{entry}": float(min(cap, counted.of(entry)))
        for entry in ARM_MIXTURES[arm]
        for name, counted in counts.items()
    }


def _wanted(flatten_p3: bool) -> dict[str, list[FlanDataset]]:
    return {
        "flan2021_submix": list(DATASETS.values()),
        "t0_submix": [subset for subset in p3.published_subsets(flatten_p3) if subset.name in P3_SUBSETS],
        "cot_submix": [*flan2022_parts.COT, *map(flan2022_parts.inverted, flan2022_parts.COT)],
        "dialog_submix": [*flan2022_parts.DIALOG, *map(flan2022_parts.inverted, flan2022_parts.DIALOG)],
    }


def _source(part: str, source: Source) -> Source:
    """What a part is read from: none but Flan 2021 is everywhere."""
    elsewhere = {"t0_submix": "hub", "dialog_submix": "tfds", "flan2021_submix": source}
    return source if elsewhere.get(part) == source else "files"


def _folder(name: str, data_dir: str) -> str:
    return dataset_folder(name, f"{data_dir.rstrip('/')}/{name}" if data_dir else "")


def _niv2_there(folder: str, missing: str) -> dict[str, Counts]:
    names = {name: Counts(count, count, count) for name, count in flan2022_parts.niv2_names().items()}
    if missing == "error" or "://" in folder:
        return names
    tasks = f"{folder}/tasks"
    there = (
        {file.removesuffix(".gz").removesuffix(".json") for file in os.listdir(tasks)} if os.path.isdir(tasks) else ()
    )
    return {name: counts for name, counts in names.items() if name in there}


def _niv2_tasks(
    names: Mapping[str, Counts], folder: str, settings: ArmSettings, published: Published
) -> list[TextTask]:
    type = task_type("natinst")
    tasks = []
    for name in names:
        spellings = dict.fromkeys((name, _plain(name)))
        rows = NatInstRows(
            files=tuple(f"{folder}/tasks/{name}.json{packed}" for name in spellings for packed in ("", ".gz"))
        )
        source: dict[str, Rows] = {"train": rows}
        exemplars = Exemplars(source=rows, to_instance=natural_instruction)
        tasks += [
            TextTask(
                name=f"{PREFIX}{_plain(name)}_{arm}",
                source=source,
                render=NatInstRender(type=type, published=published, arm=arm, exemplars=exemplars, settings=settings),
                metric_fns=(super_ni_scores,),
            )
            for arm in WITH_OPTIONS
        ]
    return tasks


def _plain(name: str) -> str:
    return name.replace("-", "_")  # seqio allows no hyphen


def _submixes(parts: Parts, niv2: Mapping[str, Counts]) -> dict[str, dict[str, float]]:
    """Part -> its tasks' rates; the arms of a part weigh the same."""
    t0 = {name: subset.counts for name, subset in P3_SUBSETS.items()}
    published = {**FLAN_COUNTS, **t0, **COT_COUNTS, **DIALOG_COUNTS}
    published |= {flan2022_parts.inverted_name(name): counts for name, counts in (COT_COUNTS | DIALOG_COUNTS).items()}
    submixes = {"niv2_submix": _submix("niv2_submix", {_plain(name): counts for name, counts in niv2.items()}, {})}
    for part, datasets in parts.items():
        straight = {one.name: published[one.name] for one in datasets if not flan2022_parts.is_inverted(one)}
        inverted = {one.name: published[one.name] for one in datasets if flan2022_parts.is_inverted(one)}
        submixes[part] = _submix(part, straight, inverted)
    return submixes


def _submix(part: str, straight: Mapping[str, Counts], inverted: Mapping[str, Counts]) -> dict[str, float]:
    arms = tuple(ARM_MIXTURES) if part in EVERY_ARM else ("zsopt", "fsopt")
    weights = {"straight": 1.0, "inverted": INVERSION}
    rates = {}
    for arm in arms:
        capped_rates = {"straight": capped(straight, arm, CAPS[part]), "inverted": capped(inverted, arm, CAPS[part])}
        rates[arm] = nested(weights, capped_rates)
    return nested(dict.fromkeys(arms, 1.0), rates)


def _described(wanted: Parts, parts: Parts, niv2: Mapping[str, Counts]) -> Dataset:
    there = {part: f"{len(parts[part])} of {len(datasets)}" for part, datasets in wanted.items()}
    there["niv2_submix"] = f"{len(niv2):,} of {len(flan2022_parts.niv2_names()):,}"
    all_there = all(len(parts[part]) == len(datasets) for part, datasets in wanted.items())
    counted = "; there: " + ", ".join(f"{part} {count}" for part, count in there.items())
    return Dataset(
        name="flan2022",
        title="Flan 2022, the mixture of Flan-T5"
        + ("" if all_there and len(niv2) == len(flan2022_parts.niv2_names()) else counted),
        paper="arXiv 2301.13688, 2210.11416",
        licence="those of its datasets",
        page="https://github.com/google-research/FLAN/tree/main/flan/v2",
        size="71 datasets, 193 subsets of P3, 1,556 tasks, 9 sets with rationales, 2 of conversations",
        tested_on="those of its datasets",
    )
