"""Dolly: 15,011 instructions and answers written by the employees of Databricks, in eight categories.

Conover et al. 2023, "Free Dolly". databricks-dolly-15k.jsonl has a line {instruction, context, response, category};
the context, a passage of Wikipedia, is empty in most. One task and mixture, `dolly`, which may be limited to some of
the categories: brainstorming, classification, closed_qa, creative_writing, general_qa, information_extraction,
open_qa, summarization.
"""

from collections.abc import Sequence

from flanjax.data.instructions import Instruct, instruction_task, only, published
from flanjax.data.tasks import Dataset, Download, Family, dataset_folder

FILE = "databricks-dolly-15k.jsonl"

DATASETS = (
    Dataset(
        name="dolly",
        title="databricks-dolly-15k: instructions and answers written by people, in eight categories",
        paper="Conover et al. 2023, Free Dolly: Introducing the World's First Truly Open Instruction-Tuned LLM",
        licence="CC BY-SA 3.0",
        page="https://huggingface.co/datasets/databricks/databricks-dolly-15k",
        size="15,011 examples",
        downloads=(
            Download(
                url=f"https://huggingface.co/datasets/databricks/databricks-dolly-15k/resolve/main/{FILE}", file=FILE
            ),
        ),
        tested_on="hand-made file of the published schema",
    ),
)


def family(data_dir: str = "", categories: Sequence[str] = (), style: str = "plain") -> Family:
    """The task and the mixture of the module.

    Args:
        data_dir: a folder, an address of one, or a file.
        categories: only the rows of these; all where none is named.
        style: "plain", the instruction and its context alone, or "alpaca".

    Raises:
        FlanjaxError: there is no such style.
    """
    rows = only(published(dataset_folder("dolly", data_dir), FILE), "category", categories)
    render = Instruct(style=style, input="context", output="response")
    task = instruction_task("dolly", rows, render, total=None if categories else 15_011)
    return Family(tasks=[task], mixtures={"dolly": {"dolly": 1.0}}, datasets=DATASETS)
