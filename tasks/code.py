"""Code Alpaca: 20,022 instructions to write or change code, with the code.

Chaudhary 2023, https://github.com/sahil280114/codealpaca. code_alpaca_20k.json is an array of {instruction, input,
output}, made as Alpaca's was. One task and mixture, `code_alpaca`. For WizardCoder see `evol_instruct`.
"""

from flanjax.data.instructions import Instruct, instruction_task, published
from flanjax.data.tasks import Dataset, Download, Family, dataset_folder

FILE = "code_alpaca_20k.json"

DATASETS = (
    Dataset(
        name="code_alpaca",
        title="Code Alpaca: instructions about code in the manner of Self-Instruct, answered by text-davinci-003",
        paper="Chaudhary 2023, Code Alpaca: An Instruction-following LLaMA model for code generation",
        licence="CC BY 4.0 by its page",
        page="https://huggingface.co/datasets/sahil2801/CodeAlpaca-20k",
        size="20,022 examples",
        downloads=(
            Download(url=f"https://raw.githubusercontent.com/sahil280114/codealpaca/master/data/{FILE}", file=FILE),
        ),
        tested_on="hand-made file of the published schema",
    ),
)


def family(data_dir: str = "", style: str = "alpaca") -> Family:
    """The task and the mixture of the module.

    Args:
        data_dir: a folder, an address of one, or a file.
        style: "alpaca", the prompt it was trained with, or "plain".

    Raises:
        FlanjaxError: there is no such style.
    """
    rows = published(dataset_folder("code_alpaca", data_dir), FILE, f"data/{FILE}", "data/train-*.parquet")
    task = instruction_task("code_alpaca", rows, Instruct(style=style), total=20_022)
    return Family(tasks=[task], mixtures={"code_alpaca": {"code_alpaca": 1.0}}, datasets=DATASETS)
