"""Evol-Instruct: instructions that a model made harder step by step, for WizardLM and for WizardCoder.

    wizardlm            alpaca_evol_instruct_70k.json {instruction, output}           Xu et al. 2023, arXiv 2304.12244
    wizardlm_v2         WizardLM_evol_instruct_V2_143k.json {idx, conversations}, each of one question and one answer
    wizardcoder         EvolInstruct-Code-80k.json {instruction, output}, an open copy of what WizardCoder was trained
                        on, which is not published itself                             Luo et al. 2023, arXiv 2306.08568
    wizardlm_prompts    WizardLM_testset.jsonl {idx, Skill, Difficulty, Instruction}, 218 test instructions

The first three are mixtures too. The test instructions have no answers: they can be looked at and answered, and
materialising leaves them out.
"""

import functools
from collections.abc import Iterator

from flanjax.data.instructions import Instruct, instruction_task, published
from flanjax.data.schemas import Conversation, Schema
from flanjax.data.sources import BadRow, excerpt, report_bad_row
from flanjax.data.tasks import Dataset, Download, Family, Row, Rows, TextTask, dataset_folder

_FILES = "https://huggingface.co/datasets"
_V2_FILE = "WizardLM_evol_instruct_V2_143k.json"
_V2 = Schema(name="ShareGPT", prompt="conversations")

DATASETS = (
    Dataset(
        name="wizardlm",
        title="WizardLM's Evol-Instruct: Alpaca's and ShareGPT's instructions made harder, with answers",
        paper="Xu et al. 2023, WizardLM, arXiv 2304.12244",
        licence="MIT for the 70K (Hugging Face); CC BY-NC 4.0 for the test set",
        page="https://huggingface.co/datasets/WizardLMTeam/WizardLM_evol_instruct_70k",
        size="70,000 examples; V2: 143,000; test set: 218 prompts",
        downloads=(
            Download(
                url=f"{_FILES}/WizardLMTeam/WizardLM_evol_instruct_70k/resolve/main/alpaca_evol_instruct_70k.json",
                file="alpaca_evol_instruct_70k.json",
            ),
            Download(
                url=f"{_FILES}/WizardLMTeam/WizardLM_evol_instruct_V2_196k/resolve/main/{_V2_FILE}", file=_V2_FILE
            ),
            Download(
                url="https://raw.githubusercontent.com/nlpxucan/WizardLM/main/WizardLM/data/WizardLM_testset.jsonl",
                file="WizardLM_testset.jsonl",
            ),
        ),
        tested_on="published test set; hand-made files of the published schemas for training",
    ),
    Dataset(
        name="wizardcoder",
        title="EvolInstruct-Code-80k: CodeAlpaca's instructions made harder, with answers",
        paper="Luo et al. 2023, WizardCoder, arXiv 2306.08568",
        licence="CC BY-NC-SA 4.0",
        page="https://huggingface.co/datasets/nickrosh/Evol-Instruct-Code-80k-v1",
        size="78,264 examples",
        downloads=(
            Download(
                url=f"{_FILES}/nickrosh/Evol-Instruct-Code-80k-v1/resolve/main/EvolInstruct-Code-80k.json",
                file="EvolInstruct-Code-80k.json",
            ),
        ),
        tested_on="hand-made file of the published schema",
    ),
)


def family(data_dir: str = "", code_dir: str = "", style: str = "alpaca") -> Family:
    """The tasks and mixtures of the module.

    Args:
        data_dir: of WizardLM's files: a folder or an address of one.
        code_dir: of EvolInstruct-Code-80k.json: a folder, an address of one, or a file.
        style: "alpaca", as WizardCoder was trained, or "plain".

    Raises:
        FlanjaxError: there is no such style.
    """
    folder = dataset_folder("wizardlm", data_dir)
    render = Instruct(style=style)
    first = published(folder, "alpaca_evol_instruct_70k.json")
    second = published(folder, _V2_FILE, "data/train-*.parquet")
    code = published(dataset_folder("wizardcoder", code_dir), "EvolInstruct-Code-80k.json")
    tasks = [
        instruction_task("wizardlm", first, render, total=70_000),
        instruction_task("wizardlm_v2", functools.partial(_exchanges, second), render, total=143_000),
        instruction_task("wizardcoder", code, render, total=78_264),
    ]
    prompts = TextTask(
        name="wizardlm_prompts",
        source={"test": published(folder, "WizardLM_testset.jsonl")},
        render=Instruct(style=style, instruction="Instruction", output=""),
        examples={"test": 218},
    )
    mixtures = {task.name: {task.name: 1.0} for task in tasks}
    return Family(tasks=[*tasks, prompts], mixtures=mixtures, datasets=DATASETS)


def _exchanges(records: Rows, seed: int) -> Iterator[tuple[str, Row]]:
    """Rows of instruction and output from conversations of one question and one answer."""
    for place, record in records(seed):
        try:
            said = _V2.read(record, place)
            if not isinstance(said, Conversation) or [turn.role for turn in said.turns] != ["user", "assistant"]:
                raise BadRow(f"{place}: one question and one answer are expected: {excerpt(record)}")
        except BadRow as error:
            report_bad_row(error)
            continue
        question, answer = said.turns
        yield place, {"instruction": question.text, "output": answer.text}
