"""LIMA: 1,030 conversations chosen with care, nearly all of them of one question and one answer.

Zhou et al. 2023, "LIMA: Less Is More for Alignment", arXiv 2305.11206. train.jsonl has a line {conversations, source},
the conversations being strings that the user and the assistant say in turn; test.jsonl has 300 questions.

    lima            one row for each answer, with all that was said before; mixture `lima`
    lima_prompts    the test questions, which have no answers; in no mixture
"""

import functools
from collections.abc import Iterator, Sequence

from flanjax.tasks.own import OwnText, instruction_rows

from flanjax.data.conversations import ReplyText, history_text
from flanjax.data.instructions import VALIDATION_EVERY, Instruct, only, published
from flanjax.data.schemas import Schema
from flanjax.data.sources import BadRow, excerpt, report_bad_row
from flanjax.data.tasks import Dataset, Download, Family, Row, Rows, TextTask, Turn, dataset_folder, with_validation

_FILES = "https://huggingface.co/datasets/GAIR/lima/resolve/main"
_FORM = Schema(name="LIMA", prompt="conversations")

DATASETS = (
    Dataset(
        name="lima",
        title="LIMA: a thousand conversations chosen with care from forums, wikiHow and authors",
        paper="Zhou et al. 2023, LIMA: Less Is More for Alignment, arXiv 2305.11206",
        licence="CC BY-NC-SA, or stricter where a source is",
        page="https://huggingface.co/datasets/GAIR/lima",
        size="1,030 conversations for training, 300 test prompts",
        # The page asks to accept its conditions first.
        downloads=tuple(Download(url=f"{_FILES}/{file}", file=file) for file in ("train.jsonl", "test.jsonl")),
        tested_on="hand-made file of the published schema",
    ),
)


def family(data_dir: str = "", sources: Sequence[str] = (), max_source: int = 1024) -> Family:
    """The tasks and the mixture of the module.

    Args:
        data_dir: a folder or an address of one.
        sources: only the conversations of these (stackexchange, wikihow, ...); all where none is named.
        max_source: tokens of an input; what was said first is left out where it would be more.
    """
    folder = dataset_folder("lima", data_dir)
    train = only(published(folder, "train.jsonl", "*/train-*.parquet"), "source", sources)
    questions = functools.partial(_questions, published(folder, "test.jsonl", "*/test-*.parquet"))
    lima = TextTask(
        name="lima",
        source={
            split: functools.partial(instruction_rows, rows, _FORM)
            for split, rows in with_validation(train, VALIDATION_EVERY).items()
        },
        render=OwnText(instruct=Instruct(style="plain"), reply=ReplyText(max_source=max_source)),
    )
    prompts = TextTask(
        name="lima_prompts",
        source={"test": questions},
        render=Instruct(style="plain", output=""),
        examples={"test": 300},
    )
    return Family(tasks=[lima, prompts], mixtures={"lima": {"lima": 1.0}}, datasets=DATASETS)


def _questions(rows: Rows, seed: int) -> Iterator[tuple[str, Row]]:
    """The one string of each test conversation, in the words that training puts around a first turn."""
    for place, record in rows(seed):
        said = record.get("conversations")
        if isinstance(said, list) and len(said) == 1 and isinstance(said[0], str):
            yield place, {"instruction": history_text([Turn(role="user", text=said[0])])}
        else:
            report_bad_row(BadRow(f"{place}: field 'conversations' must have one question: {excerpt(record)}"))
