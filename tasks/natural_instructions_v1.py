"""Natural Instructions v1: 61 crowdsourcing tasks with their instructions (Mishra et al. 2021, arXiv 2104.08773).

Published as a JSON file for each task in tasks/ (.json or .json.gz), {"Title", "Prompt", "Definition", "Things to
Avoid", "Emphasis & Caution", "Examples": {"Positive Examples": [{"input", "output", "reason"}], "Negative Examples":
[{..., "suggestion"}]}, "Instances": [{"input", "output": [...]}]}; "-" says that there is nothing.

    family(encoding="prompt_definition")              one of `ENCODINGS`, the instructions that the paper compares
    family(held_out=["*_mctaco_*"])                   the paper's leave-one-dataset-out

Every file is a task of the same name. Mixture `natural_instructions_v1` has the tasks to train on,
`natural_instructions_v1_test` those held out: by default the twelve, two of each category, on which the paper evaluates
(its random split). The encoding is that of the authors' `encodeinstruction`, with two deviations: the suggestion of a
negative example stands on a line of its own, and white space around a text goes. The second
version, Super-NaturalInstructions, is `flanjax.tasks.natural_instructions`.
"""

import fnmatch
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from flanjax.tasks.scoring import super_ni_scores

from flanjax.data.records import read_json_file, record_files
from flanjax.data.sources import BadRow, excerpt, report_bad_row, text_field
from flanjax.data.tasks import (
    Context,
    Dataset,
    Family,
    Row,
    Rows,
    Text,
    TextTask,
    dataset_folder,
    take,
    with_validation,
)
from flanjax.errors import FlanjaxError

TRAIN_MIXTURE = "natural_instructions_v1"
TEST_MIXTURE = "natural_instructions_v1_test"

_NAMES = """
    quoref_question_generation quoref_answer_generation
    mctaco_question_generation_event_duration mctaco_answer_generation_event_duration
    mctaco_wrong_answer_generation_event_duration mctaco_question_generation_transient_stationary
    mctaco_answer_generation_transient_stationary mctaco_wrong_answer_generation_transient_stationary
    mctaco_question_generation_event_ordering mctaco_answer_generation_event_ordering
    mctaco_wrong_answer_generation_event_ordering mctaco_question_generation_absolute_timepoint
    mctaco_answer_generation_absolute_timepoint mctaco_wrong_answer_generation_absolute_timepoint
    mctaco_question_generation_frequency mctaco_answer_generation_frequency
    mctaco_wrong_answer_generation_frequency mctaco_temporal_reasoning_presence
    mctaco_temporal_reasoning_category mctaco_span_based_question mctaco_grammatical_logical
    cosmosqa_passage_inappropriate_binary cosmosqa_question_generation cosmosqa_answer_generation
    cosmosqa_incorrect_answer_generation drop_question_generation drop_answer_type_generation
    drop_answer_generation winogrande_full_object winogrande_full_person
    winogrande_question_generation_object winogrande_question_generation_person winogrande_answer_generation
    winogrande_question_modification_object winogrande_question_modification_person
    qasc_topic_word_to_generate_related_fact qasc_generate_related_fact qasc_combined_fact
    qasc_find_overlapping_words qasc_question_generation qasc_answer_generation
    qasc_incorrect_option_generation essential_terms_answering_incomplete_questions
    essential_terms_identifying_essential_words miscellaneous_sentence_paraphrasing
    miscellaenous_question_typing misc_answering_science_questions multirc_question_generation
    multirc_questions_needed_to_answer multirc_answerability multirc_correct_answer_single_sentence
    multirc_identify_bad_question multirc_correct_bad_question multirc_write_correct_answer
    multirc_write_incorrect_answer multirc_classify_correct_answer multirc_classify_incorrect_answer
    multirc_question_answering ropes_story_generation ropes_question_generation ropes_answer_generation
"""
TASKS = tuple(f"subtask{number:03}_{name}" for number, name in enumerate(_NAMES.split(), 1))

# The evaluation tasks of the paper's random split, for which its predictions are published.
EVALUATION_TASKS = tuple(TASKS[number - 1] for number in (2, 3, 5, 8, 22, 33, 34, 39, 40, 44, 45, 52))

DATASETS = (
    Dataset(
        name="natural_instructions_v1",
        title="Natural Instructions v1: 61 tasks with the instructions that crowdworkers were given",
        paper="Mishra et al. 2021, arXiv 2104.08773",
        licence="Apache-2.0",
        page="https://instructions.apps.allenai.org",
        size="61 tasks, 193,000 instances",
    ),
)


class NaturalInstructionsV1Error(FlanjaxError):
    """Options that mean nothing here."""


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """What stands before the query.

    Attributes:
        fields: of the instructions, by their published names, in order.
        positives: number of positive examples.
        negatives: number of negative examples.
        explanations: whether examples have their reason, and a negative one its suggestion.
    """

    fields: tuple[str, ...] = ()
    positives: int = 0
    negatives: int = 0
    explanations: bool = False


_ALL_FIELDS = ("Definition", "Prompt", "Things to Avoid", "Emphasis & Caution")

ENCODINGS = {
    "none": Encoding(),
    "prompt": Encoding(fields=("Prompt",)),
    "prompt_definition": Encoding(fields=("Definition", "Prompt")),
    "prompt_avoid": Encoding(fields=("Prompt", "Things to Avoid")),
    "prompt_caution": Encoding(fields=("Prompt", "Emphasis & Caution")),
    "no_examples": Encoding(fields=_ALL_FIELDS),
    "positives": Encoding(positives=2),
    "prompt_definition_positives": Encoding(fields=("Definition", "Prompt"), positives=2),
    "full": Encoding(fields=_ALL_FIELDS, positives=2, negatives=2, explanations=True),
}


def family(
    data_dir: str = "",
    *,
    encoding: str = "full",
    held_out: str | Sequence[str] = EVALUATION_TASKS,
    max_source: int = 1024,
    train_instances_per_task: int | None = None,
    test_instances_per_task: int = 100,
) -> Family:
    """A task for every file, and the two mixtures.

    Args:
        data_dir: holds `tasks/`; the files in it are the tasks, and where it is not given, the 61 published ones. A
            folder or an address.
        encoding: one of `ENCODINGS`.
        held_out: names or patterns of the test tasks, such as "*_wrong_answer_generation_*"; one may be given as it is.
        max_source: tokens of an input, its end-of-sequence id included; examples that do not fit are left out, and
            what is too long without any is cut at its end, as Super-NaturalInstructions is.
        train_instances_per_task: of each training task, the first ones, before the split; None for all.
        test_instances_per_task: of each test task, the first ones; the paper takes 100.

    Raises:
        NaturalInstructionsV1Error: no such encoding, or nothing of that name to hold out.
        RecordsError: there is no file in the folder.
    """
    if encoding not in ENCODINGS:
        raise NaturalInstructionsV1Error(f"encoding={encoding!r}: give one of {', '.join(ENCODINGS)}")
    held_out = (held_out,) if isinstance(held_out, str) else tuple(held_out)
    files = _files(dataset_folder("natural_instructions_v1", data_dir), listed=bool(data_dir))
    for pattern in held_out:
        if not fnmatch.filter((*files, *TASKS), pattern):
            raise NaturalInstructionsV1Error(f"held_out: no task matches {pattern!r}")
    tasks, train, test = [], [], []
    for name, file in files.items():
        rows = functools.partial(read_task, file)
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in held_out):
            test.append(name)
            source: Mapping[str, Rows] = dict.fromkeys(
                ("test", "validation"), functools.partial(first_rows, rows=rows, count=test_instances_per_task)
            )
        else:
            train.append(name)
            source = with_validation(functools.partial(first_rows, rows=rows, count=train_instances_per_task))
        render = Instructed(encoding=ENCODINGS[encoding], max_source=max_source)
        tasks.append(TextTask(name=name, source=source, render=render, metric_fns=(super_ni_scores,)))
    mixtures = {TRAIN_MIXTURE: dict.fromkeys(train), TEST_MIXTURE: dict.fromkeys(test)}
    return Family(tasks=tasks, mixtures={name: rates for name, rates in mixtures.items() if rates}, datasets=DATASETS)


def read_task(file: str, seed: int = 0) -> Iterator[tuple[str, Row]]:
    """(place, row) for each instance of a file: {"id", "input", "outputs"} and, in each, the instructions.

    The file is one JSON object, so that the line of an instance is not known: a place says which one it is.

    Raises:
        BadRow: the file is no task; a malformed instance is reported as the policy says.
    """
    del seed
    found, name = False, _task_name(file)
    for place, task in read_json_file(next(iter(record_files(file)))):
        found = True
        try:
            instructions = _instructions(task, place)
            instances = task.get("Instances")
            if not isinstance(instances, list):
                raise BadRow(f"{place}: field 'Instances' must be a list")
        except BadRow as error:
            report_bad_row(error, always=True)
            raise
        for number, instance in enumerate(instances, 1):
            where = f"{place}: instance {number}"
            try:
                row = _instance(instance, where)
            except BadRow as error:
                report_bad_row(error)
            else:
                yield where, {**row, "id": f"{name}-{number}", "instructions": instructions}
    if not found:
        report_bad_row(BadRow(f"{file}: it holds no task"), always=True)


def first_rows(seed: int = 0, *, rows: Rows, count: int | None) -> Iterator[tuple[str, Row]]:
    """The first `count` rows of another source; None for all."""
    return rows(seed) if count is None else take(rows(seed), count)


@dataclass(frozen=True, kw_only=True)
class Instructed:
    """A render function: the encoded instructions and the input; trained on one drawn output, evaluated on them all.

    Attributes:
        encoding: what stands before the query.
        max_source: tokens of an input.
    """

    encoding: Encoding
    max_source: int

    def __call__(self, row: Row, context: Context) -> Text:
        """The text of a row."""
        instructions, outputs = row["instructions"], tuple(row["outputs"])
        parts = [
            f"{field}: {instructions['fields'][field].strip()}"
            for field in self.encoding.fields
            if instructions["fields"][field].strip() not in _NOTHING
        ]
        query = f"input: {row['input'].strip()}\noutput:"

        def fits(lines: Sequence[str]) -> bool:
            return len(context.tokenizer.encode("\n".join([*lines, query]))) + 1 <= self.max_source

        for kind, most in (("Negative", self.encoding.negatives), ("Positive", self.encoding.positives)):
            for number, example in enumerate(instructions[kind][:most], 1):
                shown = _example(kind, number, example, self.encoding.explanations)
                if not fits([*parts, shown]):
                    break
                parts.append(shown)
        target = context.draw.choice(outputs) if context.split == "train" else outputs[0]
        inputs = "\n".join([*parts, query])
        if not fits(parts):
            inputs = context.tokenizer.decode(context.tokenizer.encode(inputs)[: self.max_source - 1])
        return Text(inputs=inputs, targets=target.strip(), references=outputs, id=row["id"])


_NOTHING = ("", "-")


def _example(kind: str, number: int, example: Mapping[str, str], explain: bool) -> str:
    lines = [f"input: {example['input'].strip()}", f"output: {example['output'].strip()}"]
    if explain:
        lines = [f"{kind} Example{number}- ", *lines]
        lines += [f"{name}: {text}" for name in ("reason", "suggestion") if (text := example[name].strip()) != ""]
    return "\n".join(lines)


def _files(folder: str, listed: bool) -> dict[str, str]:
    """Task name -> its file, or the pattern of it, in order of the names."""
    if not listed:
        return {name: f"{folder}/tasks/{name}.json*" for name in TASKS}
    return {_task_name(file): file for file in record_files(f"{folder}/tasks")}


def _task_name(file: str) -> str:
    return re.sub(r"\W", "_", PurePosixPath(file).name.split(".json")[0])


def _instructions(task: Mapping[str, Any], place: str) -> dict[str, Any]:
    examples = task.get("Examples")
    if not isinstance(examples, dict):
        raise BadRow(f"{place}: field 'Examples' must be an object: {excerpt(task)}")
    return {
        "fields": {field: text_field(task, field, place) for field in _ALL_FIELDS},
        "Positive": _examples(examples, "Positive Examples", place),
        "Negative": _examples(examples, "Negative Examples", place),
    }


def _examples(examples: Mapping[str, Any], kind: str, place: str) -> list[dict[str, str]]:
    """The examples of a kind; a "-" in their list means that there are none."""
    listed = examples.get(kind)
    if not isinstance(listed, list):
        raise BadRow(f"{place}: field {kind!r} must be a list: {excerpt(examples)}")
    found = []
    for number, example in enumerate(listed, 1):
        where = f"{place}: {kind}, number {number}"
        if isinstance(example, str) and example.strip() in _NOTHING:
            continue
        if not isinstance(example, dict):
            raise BadRow(f"{where}: an object is expected, not {type(example).__name__}: {excerpt(example)}")
        filled = {"reason": "", "suggestion": "", **example}
        found.append({name: text_field(filled, name, where) for name in ("input", "output", "reason", "suggestion")})
    return found


def _instance(instance: Any, place: str) -> dict[str, Any]:
    if not isinstance(instance, dict):
        raise BadRow(f"{place}: an object is expected, not {type(instance).__name__}: {excerpt(instance)}")
    outputs = instance.get("output")
    outputs = [outputs] if isinstance(outputs, str) else outputs
    if not isinstance(outputs, list) or not outputs:
        raise BadRow(f"{place}: field 'output' must be a string or a list of strings: {excerpt(instance)}")
    return {
        "input": text_field(instance, "input", place),
        "outputs": [text_field({"output": output}, "output", place) for output in outputs],
    }
