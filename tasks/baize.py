"""Baize: ChatGPT in conversation with itself (Xu et al. 2023, arXiv 2304.01196).

Published as a JSON array of {"topic", "input"} for each of four sources of topics; the input is the transcript, which
ends with an empty turn: "The conversation between human and AI assistant.\\n[|Human|] ...\\n[|AI|] ...\\n[|Human|] ".

Tasks: `baize_quora`, `baize_stackoverflow`, `baize_medquad`, `baize_alpaca`; mixture `baize` has them all, by size.
Each reply is an example; each hundredth conversation of a file is validation.
"""

import functools
import re
from collections.abc import Iterator

from flanjax.data.conversations import ReplyText, Unrolled, reply_rows
from flanjax.data.records import read_records
from flanjax.data.sources import BadRow, excerpt, text_field
from flanjax.data.tasks import Dataset, Download, Family, Row, TextTask, Turn, dataset_folder, with_validation

FILES = {
    "quora": "quora_chat_data.json",
    "stackoverflow": "stackoverflow_chat_data.json",
    "medquad": "medical_chat_data.json",
    "alpaca": "alpaca_chat_data.json",
}
SPEAKERS = {"Human": "user", "AI": "assistant"}

DATASETS = (
    Dataset(
        name="baize",
        title="Baize: self-chat of ChatGPT on questions of Quora, Stack Overflow, MedQuAD and Alpaca",
        paper="Xu et al. 2023, arXiv 2304.01196",
        licence="research use only, commercial use prohibited (as its page says)",
        page="https://github.com/project-baize/baize-chatbot",
        size="54,456 conversations on Quora, 57,046 on Stack Overflow, 46,867 on MedQuAD, 51,942 on Alpaca",
        downloads=tuple(
            Download(
                url=f"https://raw.githubusercontent.com/project-baize/baize-chatbot/main/data/{file}",
                file=file,
            )
            for file in FILES.values()
        ),
        tested_on="hand-made file of the published schema",
    ),
)

_MARK = re.compile(r"\[\|(Human|AI)\|\]")


def family(data_dir: str = "", *, max_source: int = 1024) -> Family:
    """The four tasks and their mixture.

    Args:
        data_dir: the folder, or the address of one, that holds the four files.
        max_source: tokens of an input; the oldest turns are left out where they do not fit.
    """
    folder = dataset_folder("baize", data_dir)
    tasks = []
    for name, file in FILES.items():
        transcripts = functools.partial(read_transcripts, f"{folder}/{file}")
        source = {split: Unrolled(rows=rows, read=dialogue) for split, rows in with_validation(transcripts).items()}
        tasks.append(TextTask(name=f"baize_{name}", source=source, render=ReplyText(max_source=max_source)))
    return Family(tasks=tasks, mixtures={"baize": {task.name: None for task in tasks}}, datasets=DATASETS)


def read_transcripts(file: str, seed: int = 0) -> Iterator[tuple[str, Row]]:
    """(place, record) pairs of a file as published."""
    del seed
    yield from read_records(file)


def dialogue(record: Row, place: str) -> Iterator[Row]:
    """The rows of a transcript.

    A transcript is used up to its first empty turn, with which every one ends; the sentence before the first mark is
    the system text.

    Raises:
        BadRow: there is no mark in it, or the two do not take turns.
    """
    opening, *marked = _MARK.split(text_field(record, "input", place))
    turns = [Turn(role="system", text=opening.strip())] if opening.strip() else []
    if not marked:
        raise BadRow(f"{place}: field 'input' has no [|Human|] and no [|AI|] in it: {excerpt(record)}")
    for number, (speaker, text) in enumerate(zip(marked[::2], marked[1::2], strict=True)):
        if not text.strip():
            break
        if speaker != ("Human", "AI")[number % 2]:
            raise BadRow(f"{place}: turn {number + 1} of field 'input' is of [|{speaker}|], as the one before it")
        turns.append(Turn(role=SPEAKERS[speaker], text=text.strip()))
    yield from reply_rows(turns, topic=record.get("topic"))
