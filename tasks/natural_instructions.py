"""Super-NaturalInstructions: the published folder of task files, in the official Tk-Instruct encoding.

    family(data_dir="natural-instructions")       # tasks/*.json or .json.gz, splits/default/*_tasks.txt

Every task file becomes one seqio task of the same name, with `_` for what seqio allows in no name (the hyphen of
task602). The tasks of `test_tasks.txt` are held out: mixture `super_natural_instructions_test`, whose splits `test` and
`validation` are both the official first 100 instances. Mixture `super_natural_instructions` has the tasks of
`train_tasks.txt`, or, in a copy without that list, all others but those of `excluded_tasks.txt`; its splits are `train`
and, from the instances after those, `validation`.

Source of protocol and strings: Wang et al. 2022 (arXiv 2204.07705) and its Tk-Instruct code. One deviation: an input
that is too long even without examples is cut so that it and its end-of-sequence id fit `max_source`, where the original
cuts one token later and its tokenizer drops that token again.
"""

import fnmatch
import functools
import os
import posixpath
import re
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from flanjax.tasks.scoring import super_ni_scores

from flanjax.data.draws import Draw
from flanjax.data.records import RecordsError, format_of, read_json, record_files
from flanjax.data.sources import BadRow, report_bad_row, text_field
from flanjax.data.tasks import Context, Dataset, Download, Family, Rows, Text, TextTask, Tokenizer, dataset_folder
from flanjax.errors import FlanjaxError

DATASET = Dataset(
    name="super_natural_instructions",
    title="Super-NaturalInstructions: 1,616 tasks with definitions and examples",
    paper="Wang et al. 2022, arXiv 2204.07705",
    licence="Apache-2.0; each task names the licence of its instances",
    page="https://github.com/allenai/natural-instructions",
    size="1,616 tasks, 5 million instances",
    downloads=(
        Download(
            url="https://github.com/allenai/natural-instructions/archive/refs/heads/master.zip",
            file="natural-instructions.zip",
            unpack=True,
        ),
    ),
)
ARCHIVE = "natural-instructions-master"  # the folder that everything in it lies in
LISTS = "splits/default"
TRAIN_MIXTURE = "super_natural_instructions"
TEST_MIXTURE = "super_natural_instructions_test"


class NaturalInstructionsError(FlanjaxError):
    """A folder that does not hold Super-NaturalInstructions, or options that do not fit it."""


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """What stands before the query: the definition, and how many examples."""

    definition: bool = True
    positives: int = 0
    negatives: int = 0
    explanations: bool = False


ENCODINGS = {
    "def": Encoding(),
    "pos2": Encoding(definition=False, positives=2),
    "def_pos2": Encoding(positives=2),
    "def_pos2_neg2": Encoding(positives=2, negatives=2),
    "def_pos2_expl": Encoding(positives=2, explanations=True),
}


def family(
    data_dir: str = "",
    *,
    split_list: str | None = None,
    held_out: str | Sequence[str] = (),
    encoding: str = "def_pos2",
    max_source: int = 1024,
    train_instances_per_task: int | None = 100,
    validation_instances_per_task: int = 10,
    test_instances_per_task: int = 100,
) -> Family:
    """Every task of a folder and the two mixtures; task files are read when they are materialised.

    Args:
        data_dir: a folder, or the address of one; it holds `tasks/` and, unless `split_list` says otherwise,
            `splits/default/test_tasks.txt`; the lists of training and of excluded tasks are read where they are there.
            Without it the dataset's own folder is meant, and where that is not there either the family has no tasks.
        split_list: file with the name of one test task a line.
        held_out: more test tasks: names, or patterns such as "task73*"; one of them may be given as it is.
        encoding: one of `ENCODINGS`, or "random", which draws one of them for each training instance and evaluates
            with "def_pos2" (what the authors call Tk-Instruct).
        max_source: tokens of an input, its end-of-sequence id included; examples that do not fit are left out.
        train_instances_per_task: of each training task, drawn by the seed; None for all but the validation ones.
        validation_instances_per_task: of each training task, after the training ones in the same draw.
        test_instances_per_task: of each test task, the first ones in the file.

    Raises:
        NaturalInstructionsError: no such folder, no task in it, or an option that means nothing here.
    """
    folder = dataset_folder(DATASET.name, data_dir)
    if os.path.isdir(f"{folder}/{ARCHIVE}"):
        folder = f"{folder}/{ARCHIVE}"
    if not data_dir and not os.path.isdir(folder):
        return Family(tasks=(), mixtures={TRAIN_MIXTURE: {}, TEST_MIXTURE: {}}, datasets=(DATASET,))
    files = _task_files(folder)
    if encoding not in (*ENCODINGS, "random"):
        raise NaturalInstructionsError(f"encoding={encoding!r}: give one of {', '.join(ENCODINGS)} or random")
    held_out = [held_out] if isinstance(held_out, str) else held_out
    test_tasks = _test_tasks(folder, split_list, held_out, files)
    train_tasks = _train_tasks(folder, files) - test_tasks
    training = functools.partial(
        _training_rows, train=train_instances_per_task, validation=validation_instances_per_task
    )
    testing = functools.partial(_first_rows, count=test_instances_per_task)
    render = functools.partial(encode_instance, encoding=encoding, max_source=max_source)
    tasks = []
    for name in sorted(train_tasks | test_tasks):
        splits, divide = (
            (("test", "validation"), testing) if name in test_tasks else (("train", "validation"), training)
        )
        source: dict[str, Rows] = {split: functools.partial(_rows, files[name], divide, split) for split in splits}
        tasks.append(TextTask(name=name, source=source, render=render, metric_fns=(super_ni_scores,)))
    mixtures = {
        TRAIN_MIXTURE: dict.fromkeys(sorted(train_tasks), 1.0),
        TEST_MIXTURE: dict.fromkeys(sorted(test_tasks), 1.0),
    }
    return Family(tasks=tasks, mixtures=mixtures, datasets=(DATASET,))


def encode_instance(row: Mapping[str, Any], context: Context, *, encoding: str, max_source: int) -> Text:
    """The text of an instance; one with several outputs is trained on one of them, and all are `references`."""
    training = context.split == "train"
    name = encoding
    if encoding == "random":
        name = context.draw.choice(tuple(ENCODINGS)) if training else "def_pos2"
    outputs = row["outputs"]
    target = context.draw.choice(outputs) if training else outputs[0]
    source = encode_source(row, ENCODINGS[name], context.tokenizer, max_source)
    return Text(inputs=source, targets=target, references=tuple(outputs), id=row["id"])


def encode_source(instance: Mapping[str, Any], encoding: Encoding, vocabulary: Tokenizer, max_source: int) -> str:
    """The official input text of an instance {"definition", "positives", "negatives", "input"}.

    Examples are added one at a time while everything fits `max_source` tokens; the first that does not ends its kind.
    """
    query = f"Now complete the following example -\n{_sentence('Input: ', instance['input'])}Output: "
    definition = ""
    if encoding.definition:
        definition = _sentence("Definition: ", instance["definition"]) + "\n"

    def fits(text: str) -> bool:
        return len(vocabulary.encode(text)) + 1 <= max_source

    chosen: dict[str, list[str]] = {"Positive": [], "Negative": []}
    for kind, examples in (
        ("Positive", instance["positives"][: encoding.positives]),
        ("Negative", instance["negatives"][: encoding.negatives]),
    ):
        for number, example in enumerate(examples, 1):
            text = _example(kind, number, example, encoding.explanations)
            # The length is taken with spaces between the examples, the text itself has none, as in the original.
            before = definition + " ".join(chosen["Positive"]) + " ".join(chosen["Negative"])
            if not fits(before + text + query):
                break
            chosen[kind].append(text)
    source = definition + "".join(chosen["Positive"]) + "".join(chosen["Negative"]) + query
    if fits(source):
        return source
    return vocabulary.decode(vocabulary.encode(source)[: max_source - 1])


def _example(kind: str, number: int, example: Mapping[str, str], explain: bool) -> str:
    text = f" {kind} Example {number} -\n" + _sentence("Input: ", example["input"])
    text += _sentence(" Output: ", example["output"])
    if explain and "explanation" in example:
        text += _sentence(" Explanation: ", example["explanation"])
    return text + "\n"


def _sentence(label: str, text: str) -> str:
    """One line, with a full stop unless it ends in punctuation; the line of an empty text ends in its label's space."""
    line = label + text.strip()
    return line + ("" if line[-1] in string.punctuation else ".") + "\n"


def _task_files(data_dir: str) -> dict[str, str]:
    """Task name -> file, in order of the names."""
    folder = f"{data_dir}/tasks"
    try:
        files = [file for file in record_files(folder) if format_of(file) == ".json"]
    except RecordsError as error:
        raise NaturalInstructionsError(
            f"no folder {folder} with tasks in it ({error}): data_dir must be a copy of Super-NaturalInstructions, "
            "with tasks/ and splits/ in it"
        ) from error
    named: dict[str, str] = {}
    for file in files:
        name = _task_name(posixpath.basename(file).split(".json")[0])
        if name in named:
            raise NaturalInstructionsError(f"{named[name]} and {file} are both task {name}: keep one of them")
        named[name] = file
    return named


def _task_name(name: str) -> str:
    """The seqio name of a published task name, or of a pattern of them."""
    return re.sub(r"[^\w.*?\[\]!]", "_", name)


def _test_tasks(data_dir: str, split_list: str | None, held_out: Sequence[str], files: Mapping[str, str]) -> set[str]:
    path = split_list or f"{data_dir}/{LISTS}/test_tasks.txt"
    listed = _read_list(path)
    if listed is None:
        raise NaturalInstructionsError(
            f"no list of test tasks at {path}: give split_list, a file with one task name a line"
        )
    for pattern in held_out:
        matching = fnmatch.filter(files, _task_name(pattern))
        if not matching:
            raise NaturalInstructionsError(f"held_out: no task in {data_dir}/tasks matches {pattern!r}")
        listed.update(matching)
    return listed & set(files)


def _train_tasks(data_dir: str, files: Mapping[str, str]) -> set[str]:
    """The official training tasks; without their list, all that are not excluded. Test tasks may be among them."""
    listed = _read_list(f"{data_dir}/{LISTS}/train_tasks.txt")
    if listed is not None:
        return listed & set(files)
    return set(files) - (_read_list(f"{data_dir}/{LISTS}/excluded_tasks.txt") or set())


def _read_list(path: str) -> set[str] | None:
    """The names in a list; None where there is none."""
    try:
        with fsspec.open(path, "rt", encoding="utf-8") as stream:
            return {_task_name(name) for name in stream.read().split()}
    except FileNotFoundError:
        return None


Divide = Callable[[Sequence[dict[str, Any]], str, int], Sequence[dict[str, Any]]]


def _rows(file: str, divide: Divide, split: str, seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    return ((row["place"], row) for row in divide(read_task(file), split, seed))


def _first_rows(rows: Sequence[dict[str, Any]], split: str, seed: int, *, count: int) -> Sequence[dict[str, Any]]:
    del split, seed
    return rows[:count]


def _training_rows(
    rows: Sequence[dict[str, Any]], split: str, seed: int, *, train: int | None, validation: int
) -> Sequence[dict[str, Any]]:
    """The part of a training task that a split gets: one draw of all rows, training first, then validation.

    Where a task is too small for both, training gives way, but keeps at least half.
    """
    validation = min(validation, len(rows) // 2)
    train = len(rows) - validation if train is None else min(train, len(rows) - validation)
    drawn = Draw("instances", seed).sample(rows, train + validation)
    return drawn[:train] if split == "train" else drawn[train:]


def read_task(file: str | Path) -> list[dict[str, Any]]:
    """The instances of a task file, each with all its encoding needs: id, input, outputs, definition, examples.

    Raises:
        BadRow: the file is no task; a malformed instance is reported as the policy says.
    """
    try:
        task = read_json(file)
        shared = {
            "definition": _definition(task, str(file)),
            "positives": _examples(task, "Positive Examples", str(file)),
            "negatives": _examples(task, "Negative Examples", str(file)),
        }
        if not isinstance(task.get("Instances"), list):
            raise BadRow(f"{file}: field 'Instances' must be a list")
    except BadRow as error:
        report_bad_row(error, always=True)
        raise
    rows = []
    for number, instance in enumerate(task["Instances"], 1):
        try:
            place = f"{file}: instance {number}"
            rows.append({"place": place} | _instance(instance, place) | shared)
        except BadRow as error:
            report_bad_row(error)
    return rows


def _instance(instance: Any, place: str) -> dict[str, Any]:
    if not isinstance(instance, dict):
        raise BadRow(f"{place}: an object is expected, not {type(instance).__name__}")
    outputs = instance.get("output")
    outputs = [outputs] if isinstance(outputs, str) else outputs
    if not isinstance(outputs, list) or not outputs or not all(isinstance(output, str) for output in outputs):
        raise BadRow(f"{place}: field 'output' must be a string or a list of strings: {str(instance)[:80]}")
    return {
        "id": text_field({"id": place, **instance}, "id", place),
        "input": text_field(instance, "input", place),
        "outputs": [text_field({"output": output}, "output", place) for output in outputs],
    }


def _definition(task: Mapping[str, Any], place: str) -> str:
    definition = task.get("Definition")
    first = definition[0] if isinstance(definition, list) and definition else definition
    return text_field({"Definition": first}, "Definition", place)


def _examples(task: Mapping[str, Any], key: str, place: str) -> list[dict[str, str]]:
    """The examples under a key that have an input and an output; a task may have none."""
    examples = task.get(key) or []
    if not isinstance(examples, list) or not all(isinstance(example, dict) for example in examples):
        raise BadRow(f"{place}: field {key!r} must be a list of objects")
    found = []
    for number, example in enumerate(examples, 1):
        where = f"{place}: {key}, number {number}"
        fields = ("input", "output", "explanation") if "explanation" in example else ("input", "output")
        found.append({name: text_field(example, name, where) for name in fields})
    return found
