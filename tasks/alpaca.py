"""Alpaca: 52,002 instructions and answers of text-davinci-003, and the same instructions answered by GPT-4.

    alpaca          alpaca_data.json            Taori et al. 2023, https://crfm.stanford.edu/2023/03/13/alpaca.html
    alpaca_gpt4     alpaca_gpt4_data.json       Peng et al. 2023 (GPT-4-LLM), arXiv 2304.03277
    alpaca_gpt4_zh  alpaca_gpt4_data_zh.json    the same in Chinese

All are arrays of {instruction, input, output}, the input often empty. Each is a task and a mixture of its own.
"""

from flanjax.data.instructions import Instruct, instruction_task, published
from flanjax.data.tasks import Dataset, Download, Family, dataset_folder

_ALPACA = "https://raw.githubusercontent.com/tatsu-lab/stanford_alpaca/main"
_GPT4 = "https://raw.githubusercontent.com/Instruction-Tuning-with-GPT-4/GPT-4-LLM/main/data"

DATASETS = (
    Dataset(
        name="alpaca",
        title="Stanford Alpaca: instructions in the manner of Self-Instruct, answered by text-davinci-003",
        paper="Taori et al. 2023, Stanford Alpaca",
        licence="CC BY-NC 4.0",
        page="https://github.com/tatsu-lab/stanford_alpaca",
        size="52,002 examples",
        downloads=(Download(url=f"{_ALPACA}/alpaca_data.json", file="alpaca_data.json"),),
        tested_on="published records (100 of them)",
    ),
    Dataset(
        name="alpaca_gpt4",
        title="GPT-4-LLM: Alpaca's instructions answered by GPT-4, in English and in Chinese",
        paper="Peng et al. 2023, Instruction Tuning with GPT-4, arXiv 2304.03277",
        licence="CC BY-NC 4.0",
        page="https://github.com/Instruction-Tuning-with-GPT-4/GPT-4-LLM",
        size="52,002 examples in English, 48,818 in Chinese",
        downloads=(
            Download(url=f"{_GPT4}/alpaca_gpt4_data.json", file="alpaca_gpt4_data.json"),
            Download(url=f"{_GPT4}/alpaca_gpt4_data_zh.json", file="alpaca_gpt4_data_zh.json"),
        ),
        tested_on="hand-made file of the published schema",
    ),
)


def family(data_dir: str = "", gpt4_dir: str = "", style: str = "alpaca") -> Family:
    """The tasks and mixtures of the module.

    Args:
        data_dir: of alpaca_data.json: a folder, an address of one, or a file.
        gpt4_dir: of the files of GPT-4-LLM.
        style: "alpaca", the prompt it was trained with, or "plain", the instruction and its input alone.

    Raises:
        FlanjaxError: there is no such style.
    """
    render = Instruct(style=style)
    alpaca, gpt4 = dataset_folder("alpaca", data_dir), dataset_folder("alpaca_gpt4", gpt4_dir)
    english = published(gpt4, "alpaca_gpt4_data.json", "data/alpaca_gpt4_data.json", "data/train-*.parquet")
    chinese = published(gpt4, "alpaca_gpt4_data_zh.json", "data/alpaca_gpt4_data_zh.json")
    tasks = [
        instruction_task("alpaca", published(alpaca, "alpaca_data.json", "data/train-*.parquet"), render, total=52_002),
        instruction_task("alpaca_gpt4", english, render, total=52_002),
        instruction_task("alpaca_gpt4_zh", chinese, render, total=48_818),
    ]
    return Family(tasks=tasks, mixtures={task.name: {task.name: 1.0} for task in tasks}, datasets=DATASETS)
