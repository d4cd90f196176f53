"""Instructions that a language model made up: Self-Instruct (GPT-3) and Unnatural Instructions (text-davinci-002).

Self-Instruct, Wang et al. 2022, arXiv 2212.10560:
    self_instruct               all_instances_82K.jsonl {instruction, input, output}, or the fine-tuning file
                                gpt3_finetuning_data.jsonl {prompt, completion}; the split `test` is
                                user_oriented_instructions.jsonl, 252 tasks that people wrote
    self_instruct_seed          seed_tasks.jsonl, the 175 tasks it began with; not in a mixture

Unnatural Instructions, Honovich et al. 2022, arXiv 2212.09689:
    unnatural_instructions      core_data.jsonl {instruction, instances: [{input, instruction_with_input, constraints,
                                output}]}
    unnatural_instructions_full full_data.jsonl, which adds reformulations: [{instruction_with_input, output, ...}]

Each name is a mixture too, but for the seed tasks. A record gives a row for each of its instances.
"""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from flanjax.data.instructions import VALIDATION_EVERY, Instruct, instruction_task, published
from flanjax.data.records import FORMATS, format_of
from flanjax.data.schemas import optional_text
from flanjax.data.sources import BadRow, excerpt, report_bad_row, text_field
from flanjax.data.tasks import (
    Context,
    Dataset,
    Download,
    Family,
    Row,
    Rows,
    Text,
    TextTask,
    dataset_folder,
    with_validation,
)

_SELF_INSTRUCT = "https://raw.githubusercontent.com/yizhongw/self-instruct/main"
_UNNATURAL = "https://github.com/orhonovich/unnatural-instructions/raw/main/data"
_END = "<|endoftext|>"  # what ended a completion for GPT-3

DATASETS = (
    Dataset(
        name="self_instruct",
        title="Self-Instruct: instructions and instances that GPT-3 made up from 175 seed tasks",
        paper="Wang et al. 2022, Self-Instruct: Aligning Language Models with Self-Generated Instructions, 2212.10560",
        licence="Apache-2.0",
        page="https://github.com/yizhongw/self-instruct",
        size="52K instructions with 82K instances, 175 seed tasks, 252 user-oriented test tasks",
        downloads=(
            Download(
                url=f"{_SELF_INSTRUCT}/data/gpt3_generations/batch_221203/all_instances_82K.jsonl",
                file="all_instances_82K.jsonl",
            ),
            Download(
                url=f"{_SELF_INSTRUCT}/human_eval/user_oriented_instructions.jsonl",
                file="user_oriented_instructions.jsonl",
            ),
            Download(url=f"{_SELF_INSTRUCT}/data/seed_tasks.jsonl", file="seed_tasks.jsonl"),
        ),
        tested_on="published files of the seed and test tasks, hand-made ones of the published schema for the others",
    ),
    Dataset(
        name="unnatural_instructions",
        title="Unnatural Instructions: instructions, inputs and outputs made with almost no human labour",
        paper="Honovich et al. 2022, Unnatural Instructions, arXiv 2212.09689",
        licence="MIT",
        page="https://github.com/orhonovich/unnatural-instructions",
        size="68,478 examples, 240,670 with the reformulations",
        downloads=(
            Download(url=f"{_UNNATURAL}/core_data.zip", file="core_data.zip", unpack=True),
            Download(url=f"{_UNNATURAL}/full_data.zip", file="full_data.zip", unpack=True),
        ),
        tested_on="hand-made file of the published schema",
    ),
)


def family(data_dir: str = "", unnatural_dir: str = "", constraints: bool = True, style: str = "plain") -> Family:
    """The tasks and mixtures of the module.

    Args:
        data_dir: of Self-Instruct's files: a folder, an address of one, or a file to train on.
        unnatural_dir: of Unnatural Instructions.
        constraints: whether an instruction of Unnatural Instructions says what its output may be, where that is known.
        style: "plain" or "alpaca"; prompts of the fine-tuning file are left as they are.

    Raises:
        FlanjaxError: there is no such style.
    """
    folder = dataset_folder("self_instruct", data_dir)
    instruct = Instruct(style=style)
    made = published(folder, "all_instances_82K.jsonl", "gpt3_finetuning_data.jsonl", "*/*train*.parquet")
    main = instruction_task("self_instruct", made, SelfInstruct(instruct=instruct), total=82_612)
    test = published(folder, "user_oriented_instructions.jsonl", "human_eval/user_oriented_instructions.jsonl")
    if format_of(folder) not in FORMATS:
        main = TextTask(
            name=main.name,
            source={**main.source, "test": functools.partial(_instances, test)},
            render=main.render,
            examples={**main.examples, "test": 252},
        )
    seeds = functools.partial(_instances, published(folder, "seed_tasks.jsonl", "data/seed_tasks.jsonl"))
    unnatural = dataset_folder("unnatural_instructions", unnatural_dir)
    tasks = [
        main,
        TextTask(name="self_instruct_seed", source={"train": seeds}, render=instruct, examples={"train": 175}),
        _unnatural_task("unnatural_instructions", published(unnatural, "core_data.jsonl"), constraints, instruct),
        _unnatural_task("unnatural_instructions_full", published(unnatural, "full_data.jsonl"), constraints, instruct),
    ]
    names = [task.name for task in tasks if task.name != "self_instruct_seed"]
    return Family(tasks=tasks, mixtures={name: {name: 1.0} for name in names}, datasets=DATASETS)


@dataclass(frozen=True, kw_only=True)
class SelfInstruct:
    """Renders a row of either file."""

    instruct: Instruct

    def __call__(self, row: Row, context: Context) -> Text:
        """The text of a row; raises BadRow where a column is no string."""
        if "prompt" not in row:
            return self.instruct(row, context)
        completion = text_field(row, "completion", context.place)
        return Text(
            inputs=text_field(row, "prompt", context.place).strip(),
            targets=completion.strip().removesuffix(_END).strip(),
        )


def _instances(tasks: Rows, seed: int) -> Iterator[tuple[str, Row]]:
    """Rows of instruction, input and output from tasks with instances."""
    for place, task, instance in _below(tasks, "instances", seed):
        yield place, {"instruction": task.get("instruction"), **instance}


def _unnatural_task(name: str, records: Rows, constraints: bool, render: Instruct) -> TextTask:
    """Records are split before they become rows: the paraphrases of an instruction stay on its side."""
    parts = with_validation(records, VALIDATION_EVERY)
    source = {split: functools.partial(_unnatural, rows, constraints) for split, rows in parts.items()}
    return TextTask(name=name, source=source, render=render)


def _unnatural(records: Rows, constraints: bool, seed: int) -> Iterator[tuple[str, Row]]:
    """Rows of instruction and output; the instruction has its input in it, as the authors joined them."""
    for place, _, instance in _below(records, "instances", seed, "reformulations"):
        try:
            instruction = text_field(instance, "instruction_with_input", place)
            limits = optional_text(instance, "constraints", place).strip()
        except BadRow as error:
            report_bad_row(error)
            continue
        if constraints and limits and limits.lower().rstrip(".") != "none":
            instruction = f"{instruction}\nConstraints: {limits}"
        yield place, {"instruction": instruction, "output": instance.get("output")}


def _below(records: Rows, column: str, seed: int, optional: str = "") -> Iterator[tuple[str, Row, Mapping[str, Any]]]:
    """(place, record, item) for every item in a column of lists, and in an optional second one."""
    for place, record in records(seed):
        for name in filter(None, (column, optional)):
            items = record.get(name, [] if name == optional else None)
            if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
                report_bad_row(BadRow(f"{place}: field {name!r} must be a list of objects: {excerpt(record)}"))
                continue
            yield from ((place, record, item) for item in items)
