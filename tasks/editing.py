"""Text editing by instruction: CoEdIT, and the data of Writing-Alpaca.

    coedit              train.jsonl, validation.jsonl {_id, task, src, tgt}: src begins with the instruction ("Fix
                        grammar: ..."); the task is gec (grammar), paraphrase, ...
                        Raheja et al. 2023, arXiv 2305.09857
    writing_alpaca      writing_alpaca.json {instruction, input, output}: seven writing tasks in Alpaca's form, made of
                        EditEval and other sets; the authors publish no file, so the name is ours
                        Zhang et al. 2023, arXiv 2305.13225

Both are mixtures too.
"""

from collections.abc import Sequence

from flanjax.data.instructions import Instruct, instruction_task, only, published
from flanjax.data.records import FORMATS, format_of
from flanjax.data.tasks import Dataset, Download, Family, TextTask, dataset_folder

_COEDIT = "https://huggingface.co/datasets/grammarly/coedit/resolve/main"
_SIZES = {"train": 69_071, "validation": 1_712}

DATASETS = (
    Dataset(
        name="coedit",
        title="CoEdIT: sentences with an instruction to edit them, and the edited sentences",
        paper="Raheja et al. 2023, CoEdIT: Text Editing by Task-Specific Instruction Tuning, arXiv 2305.09857",
        licence="Apache-2.0",
        page="https://huggingface.co/datasets/grammarly/coedit",
        size="82K examples in the paper; 69,071 for training and 1,712 for validation are published",
        downloads=tuple(Download(url=f"{_COEDIT}/{file}", file=file) for file in ("train.jsonl", "validation.jsonl")),
        tested_on="hand-made file of the published schema",
    ),
    Dataset(
        name="writing_alpaca",
        title="Writing-Alpaca: writing assistance as instructions in Alpaca's form",
        paper="Zhang et al. 2023, Multi-Task Instruction Tuning of LLaMa for Specific Scenarios, arXiv 2305.13225",
        licence="of its sources; see the paper",
        page="https://arxiv.org/abs/2305.13225",
        tested_on="hand-made file of the described schema",
    ),
)


def family(data_dir: str = "", writing_dir: str = "", tasks: Sequence[str] = (), style: str = "alpaca") -> Family:
    """The tasks and mixtures of the module.

    Args:
        data_dir: of CoEdIT: a folder, an address of one, or a file, of which a part is then kept for validation.
        writing_dir: of Writing-Alpaca's file.
        tasks: only the rows of these tasks of CoEdIT (gec, ...); all where none is named.
        style: of Writing-Alpaca, "alpaca" or "plain"; CoEdIT's inputs are its own.

    Raises:
        FlanjaxError: there is no such style.
    """
    folder = dataset_folder("coedit", data_dir)
    render = Instruct(style="plain", instruction="src", input="", output="tgt")
    train = only(published(folder, "train.jsonl", "data/train-*.parquet"), "task", tasks)
    validation = only(published(folder, "validation.jsonl", "data/validation-*.parquet"), "task", tasks)
    if format_of(folder) in FORMATS:
        coedit = instruction_task("coedit", train, render)
    else:
        source = {"train": train, "validation": validation}
        coedit = TextTask(name="coedit", source=source, render=render, examples={} if tasks else _SIZES)
    writing = published(dataset_folder("writing_alpaca", writing_dir), "writing_alpaca.json", "writing_alpaca.jsonl")
    both = [coedit, instruction_task("writing_alpaca", writing, Instruct(style=style))]
    return Family(tasks=both, mixtures={task.name: {task.name: 1.0} for task in both}, datasets=DATASETS)
