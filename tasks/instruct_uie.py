"""InstructUIE: information extraction by instruction (Wang et al. 2023, arXiv 2304.08085), and its sister benchmark.

Published layout of the extraction data: NER/, RE/ and EE/, in each a folder for every dataset, in that train.json,
dev.json, test.json (JSON arrays) and labels.json:

    NER   {"sentence", "entities": [{"name", "type", "pos"}]}              labels ["type", ...]
    RE    {"sentence", "relations": [{"head": {"name"}, "type", "tail": {"name"}}]}
    EE    {"sentence", "events": [{"trigger", "type", "arguments": [{"name", "role"}]}]}    labels [[event], [role]]
    any   {"Instance": {"instruction", "sentence", "label"}}               an instance whose text is made already

The classification benchmark of O-LoRA (Wang et al. 2023, arXiv 2310.14152) is laid out likewise, SC/SST-2/train.json,
with records {"sentence", "label"}.

Every dataset folder is a task, `instruct_uie_ner_conll_2003` or `cl_benchmark_sc_sst_2`, and one of extraction gives
the paper's auxiliary tasks as well (`AUXILIARY`), as `instruct_uie_es_conll_2003`, entity spans without their types.
Mixtures: `instruct_uie` and `cl_benchmark`. The instructions are those of the user's copy of `instruction_config.json`;
without one, our own.
"""

import functools
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import fsspec
from flanjax.tasks.scoring import exact_match

from flanjax.data.records import RecordsError, read_lines, read_records
from flanjax.data.sources import BadRow, excerpt, report_bad_row, text_field
from flanjax.data.tasks import Context, Dataset, Family, Row, Text, TextTask, dataset_folder

SPLITS = {"train": "train", "dev": "validation", "test": "test"}

# Folders of the published collections, for a list before there is a copy.
EXTRACTION = {
    "NER": (
        *("ACE 2004", "ACE 2005", "AnatEM", "bc2gm", "bc4chemd", "bc5cdr", "Broad Tweet Corpus", "CoNLL 2003"),
        *("FabNER", "FindVehicle", "GENIA_NER", "HarveyNER", "mit-movie", "mit-restaurant", "MultiNERD", "ncbi"),
        *("Ontonotes", "PolyglotNER", "TweetNER7", "WikiANN en", "WikiNeural"),
    ),
    "RE": ("ADE_corpus", "NYT11", "New-York-Times-RE", "semval-RE", "conll04", "GIDS", "SciERC", "kbp37"),
    "EE": ("GENIA", "PHEE", "ACE05", "CASIE"),
}
CLASSIFICATION = {
    "SC": ("amazon", "yelp", "IMDB", "SST-2"),
    "TC": ("agnews", "dbpedia", "yahoo"),
    "NLI": ("MNLI", "RTE", "CB"),
    "QQP": ("QQP",),
    "WiC": ("WiC",),
    "COPA": ("COPA",),
    "MultiRC": ("MultiRC",),
    "BoolQA": ("BoolQA",),
}

# The parts of extraction that the paper trains together with the whole, and whose datasets they are made of.
AUXILIARY = {
    "ES": "NER",  # the entities without their types
    "ET": "NER",  # the types of given entities
    "EP": "RE",  # the pairs that are related
    "EPR": "RE",  # the relations of given pairs
    "EET": "EE",  # the event types and their triggers
    "EEA": "EE",  # the arguments of one given event
}

INSTRUCTIONS = {
    "NER": 'Find every entity of the given types in the text. Answer with "type: entity", separated by "; ".',
    "RE": 'Find what is related in the text by the given relations. Answer with "relation: first, second", '
    'separated by "; ".',
    "EE": "Find every event of the given types in the text, with its trigger and its arguments. "
    'Answer with "(type: ..., trigger: ..., arguments: (name: ..., role: ...))".',
    "ES": 'Find every entity of the given types in the text. Answer with the entities, separated by ", ".',
    "ET": 'Give the type of each of the entities. Answer with "type: entity", separated by "; ".',
    "EP": "Find the pairs that are related in the text by one of the given relations. "
    'Answer with "first, second", separated by "; ".',
    "EPR": 'Give the relation of each of the pairs. Answer with "relation: first, second", separated by "; ".',
    "EET": 'Find every event of the given types in the text. Answer with "type: trigger", separated by "; ".',
    "EEA": 'Give the arguments of the event. Answer with "argument: role", separated by "; ".',
    "SC": "Which of the given sentiments does the text express?",
    "TC": "Which of the given topics is the text about?",
    "NLI": "Which of the given relations does the first sentence have to the second?",
    "QQP": "Do the two sentences mean the same? Choose from the options.",
    "WiC": "Is the word used in the same sense in both sentences? Choose from the options.",
    "COPA": "Choose the better one of the options.",
    "MultiRC": "Judge the answer by the paragraph. Choose from the options.",
    "BoolQA": "Answer the question by the passage. Choose from the options.",
}

DATASETS = (
    Dataset(
        name="instruct_uie",
        title="IE INSTRUCTIONS: 32 datasets of information extraction with instructions",
        paper="Wang et al. 2023, arXiv 2304.08085",
        licence="MIT (the repository); each dataset has its own",
        page="https://github.com/BeyonderXX/InstructUIE (links the data, which lies on a drive)",
        size="32 datasets",
        tested_on="hand-made file of the published schema",
    ),
    Dataset(
        name="cl_benchmark",
        title="The continual learning benchmark of O-LoRA: 15 classification datasets in one format",
        paper="Wang et al. 2023, arXiv 2310.14152",
        licence="MIT (the repository); each dataset has its own",
        page="https://github.com/cmnfriend/O-LoRA",
        size="15 datasets",
    ),
)


_NO_TYPE = ("", "NA")  # how the files say that something has no type


def family(data_dir: str = "", *, cl_data_dir: str = "", instructions: str = "", auxiliary: bool = True) -> Family:
    """A task for every dataset folder, and the two mixtures.

    Args:
        data_dir: holds NER/, RE/ and EE/. The datasets in it are those of the tasks; where it is not given, they are
            the published ones. A folder or an address.
        cl_data_dir: the same for the classification benchmark.
        instructions: an `instruction_config.json`, {"NER": [{"instruction_type", "instruction"}], ...}; one of the
            zero-shot instructions for its kind is drawn for each training example, the first is used elsewhere.
        auxiliary: also the auxiliary tasks.
    """
    derived = {
        kind: [kind, *(name for name, whole in AUXILIARY.items() if auxiliary and whole == kind)] for kind in EXTRACTION
    }
    tasks: dict[str, list[TextTask]] = {}
    for dataset, given, published in (
        ("instruct_uie", data_dir, EXTRACTION),
        ("cl_benchmark", cl_data_dir, CLASSIFICATION),
    ):
        folder = dataset_folder(dataset, given)
        tasks[dataset] = [
            TextTask(
                name=task_name(dataset, kind, name),
                source={
                    SPLITS[part]: functools.partial(
                        read_instances, f"{folder}/{whole}/{name}", part=part, kind=kind, instructions=instructions
                    )
                    for part in parts
                },
                render=extraction_text,
                metric_fns=(exact_match,) if whole in CLASSIFICATION else (),
            )
            for whole, name, parts in (_found(folder, published) if given else _published(published))
            for kind in derived.get(whole, [whole])
        ]
    # A mixture is for training: datasets of which a copy has a test file only stay out.
    mixtures = {
        dataset: {task.name: None for task in made if "train" in task.splits} for dataset, made in tasks.items()
    }
    return Family(tasks=[*tasks["instruct_uie"], *tasks["cl_benchmark"]], mixtures=mixtures, datasets=DATASETS)


def task_name(dataset: str, kind: str, name: str) -> str:
    """The name of the task of a dataset folder: lower case, with an underscore for what a name may not have."""
    return "_".join((dataset, *re.findall(r"[a-z0-9]+", f"{kind} {name}".lower())))


def read_instances(folder: str, seed: int = 0, *, part: str, kind: str, instructions: str) -> Iterator[tuple[str, Row]]:
    """(place, row) pairs of a split of a dataset folder; a row has its kind, options and instructions with it.

    Raises:
        BadRow: labels.json or the file of instructions is missing or malformed.
    """
    del seed
    shared = {
        "kind": kind,
        "options": _labels(f"{folder}/labels.json", AUXILIARY.get(kind, kind)),
        "instructions": [INSTRUCTIONS[kind]],
    }
    if instructions:
        shared["instructions"] = _instructions(instructions, kind)
    for place, record in read_records(f"{folder}/{part}.json"):
        events = record.get("events")
        if kind == "EEA" and isinstance(events, list):
            for event in events:
                yield place, {**record, **shared, "events": [event]}
        else:
            yield place, {**record, **shared}


def extraction_text(row: Row, context: Context) -> Text | None:
    """Instruction, options and text, as InstructUIE puts them; the answer in the format that the instruction names.

    A label "-" (MNLI: its annotators did not agree) leaves the row out, as does nothing to be told about.

    Raises:
        BadRow: a field is missing or of another type, or a label is not among the options.
    """
    if "Instance" in row:
        return _made_already(_object(row, "Instance", context.place), context.place)
    if row.get("label") == "-":
        return None
    kind, instructions = row["kind"], row["instructions"]
    instruction = context.draw.choice(instructions) if context.split == "train" else instructions[0]
    sentence = text_field(row, "sentence", context.place).strip()
    if kind in CLASSIFICATION:  # there the sentences say themselves what they are
        lines, answer = [sentence], _class_answer(row, context.place)
    else:
        given, answer = _extraction(kind, row, context.place)
        if given == "":
            return None
        lines = [f"Text: {sentence}", *([given] if given else [])]
    inputs = "\n".join([instruction.strip(), f"Option: {_option_line(kind, row['options'])}", *lines, "Answer:"])
    return Text(inputs=inputs, targets=answer or "None")


def _made_already(instance: Mapping[str, Any], place: str) -> Text:
    instruction, sentence, label = (text_field(instance, name, place) for name in ("instruction", "sentence", "label"))
    return Text(inputs=instruction.replace("{0}", sentence).strip(), targets=label.strip())


def _option_line(kind: str, options: Any) -> str:
    if AUXILIARY.get(kind, kind) != "EE":
        return ", ".join(options)
    types, roles = (", ".join(names) for names in options)
    return {"EE": f"Event type: {types}. Arguments type: {roles}.", "EET": types, "EEA": roles}[kind]


def _class_answer(row: Row, place: str) -> str:
    """The label as labels.json spells it."""
    label = text_field(row, "label", place)
    spelled = {_plain(option).lower(): option for option in row["options"]}
    if _plain(label).lower() not in spelled:
        raise BadRow(f"{place}: field 'label' is {label!r}, which is none of {', '.join(row['options'])}")
    return spelled[_plain(label).lower()]


def _extraction(kind: str, row: Row, place: str) -> tuple[str | None, str]:
    """What is given beside the text, and the answer; "" for what ought to be given and is not there."""
    whole = AUXILIARY.get(kind, kind)
    if whole == "EE":
        return _events(kind, row, place)
    if whole == "NER":
        found = [(_plain(item["type"]), _name(item, place)) for item in _typed(row, "entities", place)]
        between, title = ", ", "Entities"
    else:
        found = [
            (_plain(item["type"]), ", ".join(_name(_object(item, end, place), place) for end in ("head", "tail")))
            for item in _typed(row, "relations", place)
        ]
        between, title = "; ", "Pairs"
    bare = between.join(dict.fromkeys(name for _, name in found))
    typed = "; ".join(f"{type_}: {name}" for type_, name in found)
    if kind in ("ES", "EP"):
        return None, bare
    if kind in ("ET", "EPR"):
        return bare and f"{title}: {bare}", typed
    return None, typed


def _events(kind: str, row: Row, place: str) -> tuple[str | None, str]:
    whole, triggers, given, arguments = [], [], "", ""
    for event in _typed(row, "events", place):
        type_, trigger = _plain(event["type"]), _plain(text_field(event, "trigger", place))
        named = [
            (_name(argument, place), _plain(text_field(argument, "role", place)))
            for argument in _objects(event, "arguments", place)
        ]
        listed = ", ".join(f"(name: {name}, role: {role})" for name, role in named) or "None"
        whole.append(f"(type: {type_}, trigger: {trigger}, arguments: {listed})")
        triggers.append(f"{type_}: {trigger}")
        given = f"Event type: {type_}. Trigger: {trigger}."
        arguments = "; ".join(f"{name}: {role}" for name, role in named)
    if kind == "EEA":
        return given, arguments
    return None, ", ".join(whole) if kind == "EE" else "; ".join(triggers)


def _name(item: Mapping[str, Any], place: str) -> str:
    return _plain(text_field(item, "name", place))


def _typed(row: Row, field: str, place: str) -> list[Mapping[str, Any]]:
    found = _objects(row, field, place)
    return [item for item in found if _plain(text_field(item, "type", place)) not in _NO_TYPE]


def _objects(row: Mapping[str, Any], field: str, place: str) -> list[Mapping[str, Any]]:
    found = row.get(field)
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise BadRow(f"{place}: field {field!r} must be a list of objects: {excerpt(row)}")
    return found


def _object(row: Mapping[str, Any], field: str, place: str) -> Mapping[str, Any]:
    if not isinstance(row.get(field), dict):
        raise BadRow(f"{place}: field {field!r} must be an object: {excerpt(row)}")
    return dict(row[field])


def _plain(text: str) -> str:
    """White space as single spaces."""
    return " ".join(text.split())


def _labels(file: str, kind: str) -> Any:
    """["label", ...]; for events [["event type", ...], ["role", ...]]."""
    labels = _json(file)
    parts = labels if kind == "EE" else [labels]
    if not isinstance(parts, list) or not all(isinstance(part, list) for part in parts):
        report_bad_row(
            BadRow(f"{file}: a list of labels, or of two lists, is expected: {excerpt(labels)}"), always=True
        )
    if kind == "EE" and len(parts) != 2:
        report_bad_row(BadRow(f"{file}: event types and roles are expected, not {len(parts)} lists"), always=True)
    try:
        named = [[text_field({"label": label}, "label", file) for label in part] for part in parts]
    except BadRow as error:
        report_bad_row(error, always=True)
        raise
    kept = [[label for label in part if label not in _NO_TYPE] for part in named]
    return kept if kind == "EE" else kept[0]


def _instructions(file: str, kind: str) -> list[str]:
    """The zero-shot instructions of a kind."""
    config = _json(file)
    listed = config.get(kind) if isinstance(config, dict) else None
    try:
        found = [
            text_field(entry, "instruction", f"{file}: {kind}")
            for entry in listed or ()
            if entry["instruction_type"] == "zero-shot"
        ]
    except (TypeError, KeyError) as error:
        raise BadRow(f"{file}: {kind} must be a list of instructions: {type(error).__name__}: {error}") from error
    return found or [INSTRUCTIONS[kind]]


def _json(file: str) -> Any:
    text = b"".join(line for _, line in read_lines(file))
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        report_bad_row(BadRow(f"{file}: not JSON ({error})"), always=True)


def _published(names: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    for kind, datasets in names.items():
        for name in datasets:
            yield kind, name, tuple(SPLITS)


def _found(folder: str, kinds: Mapping[str, Any]) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """(kind, dataset, parts) for the dataset folders below a folder, in order of their names."""
    system, local = fsspec.core.url_to_fs(folder)
    files = [f"{part}.json" for part in SPLITS]
    parts: dict[tuple[str, str], list[str]] = {}
    for file in sorted(system.find(local)):
        path = PurePosixPath(os.path.relpath(file, local))
        if len(path.parts) == 3 and path.parts[0] in kinds and path.name in files:
            parts.setdefault((path.parts[0], path.parts[1]), []).append(path.stem)
    if not parts:
        raise RecordsError(f"{folder}: no dataset folder such as {next(iter(kinds))}/<name>/train.json in it")
    for (kind, name), there in parts.items():
        yield kind, name, tuple(part for part in SPLITS if part in there)
