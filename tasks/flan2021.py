"""Flan 2021 ("Finetuned Language Models Are Zero-Shot Learners", arXiv 2109.01652): 69 datasets in 17 clusters.

    family()                                                  flan2021, flan_zsopt, flan_fsopt, ...; sst2_zsopt, ...
    family(held_out_clusters=("entailment",))                 flan2021 without them, and flan2021_held_out
    family(data_dir="/data", missing="skip")                  what there is of them under /data
    family(source="hub")                                      from Hugging Face, without a copy

A dataset's folder, /data/sst2 or $FLANJAX_DATA_DIR/sst2, has train, validation and test files in the format of TFDS,
of Hugging Face, or of the authors; `flan_datasets_labels` and `flan_datasets_texts` are the table of them. Wording is
the project's own (`flan_wording`); each dataset is a task in five arms, `<dataset>_<arm>`: zsopt and zsnoopt are
zero-shot, fsopt_five, fsopt_x and fsnoopt few-shot; "noopt" shows no options.

Splits and rates are those of the paper: of each dataset at most 30,000 training rows, 200 validation rows, from the end
of training where none are published (50 of WSC, CB and COPA); a rate is the number of examples, 3,000 at most. `flan_*`
are the arms of Flan 2022, from the same rows, with its cap of 30,000; two more datasets are only in those.
"""

from collections.abc import Collection, Sequence

from flanjax.tasks.flan_arms import Published, arm_settings, arm_tasks
from flanjax.tasks.flan_counts import FLAN_COUNTS
from flanjax.tasks.flan_datasets import DATASETS, described, some, source_of
from flanjax.tasks.flan_datasets_base import FlanDataset, Source

from flanjax.data.prompts import Arm
from flanjax.data.tasks import Family
from flanjax.errors import FlanjaxError, nearest

CLUSTERS = tuple(dict.fromkeys(dataset.cluster for dataset in DATASETS.values() if dataset.cluster))
TRAIN_LIMIT = 30_000
CAP_2021 = 3_000
CAP_2022 = 30_000

# What is not trained on either when a cluster is held out, because it asks nearly the same (section 2.1 of the paper).
RELATED = {
    "entailment": ("paraphrase",),
    "paraphrase": ("entailment",),
    "reading_comprehension": ("read_comp_and_common_sense",),
    "common_sense": ("read_comp_and_common_sense",),
    "read_comp_and_common_sense": ("reading_comprehension", "common_sense"),
}

ARM_MIXTURES = {
    "zsopt": (Arm.ZSOPT,),
    "fsopt": (Arm.FSOPT_FIVE, Arm.FSOPT_X),
    "zsnoopt": (Arm.ZSNOOPT,),
    "fsnoopt": (Arm.FSNOOPT,),
}


def family(
    data_dir: str = "",
    *,
    source: Source = "files",
    splits: str = "flan2021",
    missing: str = "error",
    arms: str | Sequence[str] = "zsopt",
    held_out_clusters: str | Sequence[str] = (),
    styles: str = "distinct",
    templates: str = "",
    branched: str = "",
) -> Family:
    """The tasks of Flan 2021 and their mixtures.

    Args:
        data_dir: has a folder for each dataset; an address may be one.
        source: "files", "hub" (Hugging Face), or "tfds" (TensorFlow Datasets).
        splits: "flan2021", or "published" for whole published splits, whatever there is of them.
        missing: "error", once rows of a dataset that is not there are asked for; or "skip", which leaves out what has
            no training rows there, and splits that are not.
        arms: of the mixtures `flan2021` and `flan2021_held_out`: one, or several, such as ("zsopt", "fsopt").
        held_out_clusters: one, or several, that are evaluated on and not trained on, nor is what is too much like them.
        styles: of option blocks: "distinct", or "release" for Flan 2022's own frequencies.
        templates: FLAN's templates.py, of either release, for its own wording; where none of it fits our instances
            (`flan_published` says where), ours stays.
        branched: flan_templates_branched.py, its wording without options.

    Raises:
        FlanjaxError: an option means nothing here.
        MissingDataset: under "skip", nothing is there.
    """
    arms = [arms] if isinstance(arms, str) else arms
    held_out = {held_out_clusters} if isinstance(held_out_clusters, str) else set(held_out_clusters)
    _check(splits, arms, held_out)
    datasets = some(DATASETS.values(), data_dir, source, missing)
    settings, published = arm_settings(styles), Published(templates=templates, branched=branched)
    tasks = []
    for dataset in datasets:
        limit = TRAIN_LIMIT if splits == "flan2021" else None
        rows = source_of(dataset, data_dir, source, missing, published=splits == "published", limit=limit)
        tasks += arm_tasks(dataset.name, dataset, rows, settings=settings, published=published)
    clustered = [dataset for dataset in datasets if dataset.cluster]
    avoided = held_out.union(*(RELATED.get(cluster, ()) for cluster in held_out))
    mixtures = {
        "flan2021": rated([dataset for dataset in clustered if dataset.cluster not in avoided], arms, CAP_2021),
        "flan2021_held_out": rated([dataset for dataset in clustered if dataset.cluster in held_out], arms, CAP_2021),
    }
    mixtures |= {f"flan_{arm}": rated(datasets, (arm,), CAP_2022) for arm in ARM_MIXTURES}
    return Family(tasks=tasks, mixtures=mixtures, datasets=described(list(DATASETS.values())))


def rated(datasets: Sequence[FlanDataset], arms: Sequence[str], cap: int) -> dict[str, float | None]:
    """Task -> rate: the number of its dataset's examples in that arm, and no more than the cap."""
    return {
        f"{dataset.name}_{arm}": float(min(cap, FLAN_COUNTS[dataset.name].of(arm)))
        for name in arms
        for arm in ARM_MIXTURES[name]
        for dataset in datasets
    }


def _check(splits: str, arms: Sequence[str], clusters: Collection[str]) -> None:
    if splits not in ("flan2021", "published"):
        raise FlanjaxError(f"splits={splits!r}: give flan2021 or published")
    for values, known, name in ((arms, ARM_MIXTURES, "arms"), (clusters, CLUSTERS, "held_out_clusters")):
        if unknown := [value for value in values if value not in known]:
            raise FlanjaxError(
                f"{name}: {unknown[0]!r} is none{nearest(unknown[0], known)}; there are {', '.join(known)}"
            )
