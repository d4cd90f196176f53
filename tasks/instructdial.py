"""InstructDial: 48 dialogue tasks over 59 datasets as text to text (Gupta et al. 2022, arXiv 2205.12673).

Its scripts write JSON lines {"prompt", "output", "all_outputs", "task", "dataset", "split", "index", "metadata", ...}
(in files that end in .json), where the prompt already holds the instruction and the dialogue, as the paper encodes it.

Tasks: `instructdial`, which reads every record once, and `instructdial_<task>` for the tasks of the published sample,
or for those that are named, with rates of their own; mixture `instructdial` has the first. A record is of the split
that it names; those that name none, or "train", are parted: each hundredth is validation.
"""

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flanjax.tasks.scoring import super_ni_scores

from flanjax.data.records import read_records
from flanjax.data.sources import BadRow, excerpt, report_bad_row, text_field
from flanjax.data.tasks import Context, Dataset, Family, Row, Rows, Text, TextTask, dataset_folder, with_validation

# The tasks of the published sample; a name with "-poluteoptions" is the same task with "none of the above" to choose.
_TASKS = """
    act_classification act_generation advice_generation advice_present answer_generation count_response_words
    db_based_generation deal_present document_grounded_generation edit_generation emotion_generation emotion_tagging
    endswith_controlled_generation fill_missing_utterance find_incoherent_utterance find_missing_utterance
    graph_based_generation intent_classification intent_present keyword_controlled_generation nli_classification
    nontoxic_feedback_generation persona_grounded_generation persuasion_generation persuasion_present
    persuasion_strategy question_generation recovery_generation response_generation response_generation_with_n_words
    schema_based_generation slot_present slot_value_generation summarization target_controlled_generation
    toxic_classification
"""
TASKS = tuple(_TASKS.split())
NONE_OF_THE_ABOVE = "-poluteoptions"
SPLITS = {"train": "train", "valid": "validation", "validation": "validation", "dev": "validation", "test": "test"}

DATASETS = (
    Dataset(
        name="instructdial",
        title="InstructDial: dialogue tasks with instructions, text to text",
        paper="Gupta et al. 2022, arXiv 2205.12673",
        licence="Apache-2.0 (the repository); each dialogue dataset has its own",
        page="https://github.com/prakharguptaz/Instructdial (its scripts make the files from the 59 datasets)",
        size="48 tasks, 59 datasets",
    ),
)


def family(
    data_dir: str = "",
    *,
    tasks: str | Sequence[str] = TASKS,
    max_per_task: int | None = None,
    max_per_dataset: int | None = None,
) -> Family:
    """The tasks and the mixture.

    Args:
        data_dir: a file, a folder of files, or an address.
        tasks: the ones that get a task of their own.
        max_per_task: records of each task in a split at most, the first ones; None for all.
        max_per_dataset: the same for each dataset within a task.
    """
    tasks = (tasks,) if isinstance(tasks, str) else tuple(tasks)
    folder = dataset_folder("instructdial", data_dir)
    made = []
    for only in (None, *tasks):
        read = functools.partial(read_split, folder, only=only)
        unparted = with_validation(functools.partial(read, split="train"))
        chains: dict[str, tuple[Rows, ...]] = {
            "train": (unparted["train"],),
            "validation": (unparted["validation"], functools.partial(read, split="validation")),
            "test": (functools.partial(read, split="test"),),
        }
        source = {
            split: Capped(sources=sources, caps=(("task", max_per_task), ("dataset", max_per_dataset)))
            for split, sources in chains.items()
        }
        name = "instructdial" if only is None else f"instructdial_{only}"
        made.append(TextTask(name=name, source=source, render=dialogue_text, metric_fns=(super_ni_scores,)))
    return Family(tasks=made, mixtures={"instructdial": {"instructdial": None}}, datasets=DATASETS)


def read_split(path: str, seed: int = 0, *, split: str, only: str | None = None) -> Iterator[tuple[str, Row]]:
    """(place, record) pairs of a split, or of one task in it; a record that names no split is of "train"."""
    del seed
    for place, record in read_records(path):
        try:
            named = text_field({"split": "train"} | record, "split", place)
            if named not in SPLITS:
                raise BadRow(f"{place}: field 'split' is {named!r}, which is none of {', '.join(SPLITS)}")
            task = text_field(record, "task", place)
        except BadRow as error:
            if split == "train":  # or it would be counted once for every split
                report_bad_row(error)
            continue
        if SPLITS[named] == split and only in (None, task.removesuffix(NONE_OF_THE_ABOVE)):
            yield place, record


@dataclass(frozen=True, kw_only=True)
class Capped:
    """Sources one after the other, with no more than so many rows for each combination of values.

    Attributes:
        sources: read in turn.
        caps: (field, most): the second one counts within a value of the first, and so on; None is no limit.
    """

    sources: tuple[Rows, ...]
    caps: tuple[tuple[str, int | None], ...]

    def __call__(self, seed: int) -> Iterator[tuple[str, Row]]:
        """The rows that no cap leaves out."""
        seen: Counter[tuple[str, ...]] = Counter()
        for rows in self.sources:
            for place, row in rows(seed):
                values = tuple(str(row.get(field)) for field, _ in self.caps)
                keys = [values[: number + 1] for number in range(len(values))]
                if all(most is None or seen[key] < most for key, (_, most) in zip(keys, self.caps, strict=True)):
                    seen.update(keys)
                    yield place, row


def dialogue_text(row: Row, context: Context) -> Text:
    """The published prompt and its output; that and every other accepted output are references.

    Raises:
        BadRow: a field is missing or of another type.
    """
    target = text_field(row, "output", context.place)
    accepted = row.get("all_outputs") or [target]
    if not isinstance(accepted, list):
        raise BadRow(f"{context.place}: field 'all_outputs' must be a list of strings: {excerpt(row)}")
    references = tuple(
        text_field({f"all_outputs[{number}]": output}, f"all_outputs[{number}]", context.place)
        for number, output in enumerate(accepted)
    )
    inputs = text_field(row, "prompt", context.place).strip()
    return Text(inputs=inputs, targets=target.strip(), references=tuple(dict.fromkeys((target, *references))))
