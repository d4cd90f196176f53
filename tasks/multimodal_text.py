"""The text side of two multimodal instruction datasets: LLaVA and MultiInstruct. Images are never read.

LLaVA (Liu et al. 2023, arXiv 2304.08485) publishes conversations as a JSON array of {"id", "image", "conversations":
[{"from": "human", "value": "<image>\\nWhat is it?"}, {"from": "gpt", "value"}]}, and for evaluation the 90 questions
and GPT-4 answers `coco2014_val_qa_eval/qa90_*.jsonl` and `coco2014_val_gpt4_qa_30x3.jsonl`. MultiInstruct (Xu, Shen and
Huang 2022, arXiv 2212.10773) publishes JSON lines {"unique_id", "task_name", "image_path", "prompt", "target", ...}.

An image stands in a text as the token <image>; with `images="leave_out"` rows that have one are left out. The path of
the image stays in the row. Tasks: `llava_instruct`, `llava_qa90`, `llava_30x3`, `multi_instruct`; mixtures:
`llava_text` (the first), `llava_text_test` (the next two), `multi_instruct`.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from flanjax.data.conversations import ReplyText, Unrolled, reply_rows, turns_of
from flanjax.data.records import read_records
from flanjax.data.sources import BadRow, report_bad_row, text_field
from flanjax.data.tasks import Context, Dataset, Download, Family, Row, Text, TextTask, dataset_folder, with_validation
from flanjax.errors import FlanjaxError

IMAGE = "<image>"
IMAGES = ("token", "leave_out")

_HUB = "https://huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K"
_EVALUATION = "https://raw.githubusercontent.com/haotian-liu/LLaVA/main/playground/data"
_EVALUATION_FILES = (
    "coco2014_val_qa_eval/qa90_questions.jsonl",
    "coco2014_val_qa_eval/qa90_gpt4_answer.jsonl",
    "coco2014_val_gpt4_qa_30x3.jsonl",
)

DATASETS = (
    Dataset(
        name="llava",
        title="LLaVA-Instruct-150K: conversations, descriptions and reasoning about COCO images, by GPT-4",
        paper="Liu et al. 2023, arXiv 2304.08485",
        licence="CC BY 4.0, and OpenAI's terms",
        page=_HUB,
        size="158,000 samples: 58,000 conversations, 23,000 descriptions, 77,000 of reasoning",
        downloads=(
            Download(
                url=f"{_HUB}/resolve/main/llava_instruct_150k.json", file="llava_instruct/llava_instruct_150k.json"
            ),
            *(Download(url=f"{_EVALUATION}/{file}", file=file) for file in _EVALUATION_FILES),
        ),
    ),
    Dataset(
        name="multi_instruct",
        title="MultiInstruct: 62 multimodal tasks with expert-written instructions",
        paper="Xu, Shen and Huang 2022, arXiv 2212.10773",
        licence="Apache-2.0 (the repository); each source dataset has its own",
        page="https://github.com/VT-NLP/MultiInstruct",
        size="62 tasks, 5 instructions each",
    ),
)


class MultimodalTextError(FlanjaxError):
    """An option that means nothing here."""


def family(
    data_dir: str = "", *, multi_instruct_dir: str = "", images: str = "token", max_source: int = 1024
) -> Family:
    """The four tasks and the mixtures.

    Args:
        data_dir: the folder of LLaVA, or its address: conversations in `llava_instruct/`, and the evaluation files.
        multi_instruct_dir: the folder or the file of MultiInstruct; its split has the name of the file, train.jsonl.
        images: "token" leaves a token for an image in the text, "leave_out" leaves out the rows that have one.
        max_source: tokens of an input of a conversation; the oldest turns are left out where they do not fit.

    Raises:
        MultimodalTextError: `images` is neither.
    """
    if images not in IMAGES:
        raise MultimodalTextError(f"images={images!r}: give one of {', '.join(IMAGES)}")
    keep = images == "token"
    folder = dataset_folder("llava", data_dir)
    questions, answers, triples = (f"{folder}/{file}" for file in _EVALUATION_FILES)
    conversations = with_validation(functools.partial(read_file, f"{folder}/llava_instruct"))
    described = with_validation(functools.partial(read_file, dataset_folder("multi_instruct", multi_instruct_dir)))
    read = functools.partial(image_replies, keep=keep)
    tasks = [
        TextTask(
            name="llava_instruct",
            source={split: Unrolled(rows=rows, read=read) for split, rows in conversations.items()},
            render=ReplyText(max_source=max_source),
        ),
        TextTask(
            name="llava_qa90",
            source={"test": functools.partial(read_answered, questions, answers=answers)},
            render=ImageText(question="text", answer="answer", name="question_id", keep=keep),
        ),
        TextTask(
            name="llava_30x3",
            source={"test": functools.partial(read_file, triples)},
            render=ImageText(question="instruction", answer="output", keep=keep),
        ),
        TextTask(
            name="multi_instruct",
            source=described,
            render=ImageText(question="prompt", answer="target", name="unique_id", image="image_path", keep=keep),
        ),
    ]
    mixtures: dict[str, dict[str, float | None]] = {
        "llava_text": {"llava_instruct": None},
        "llava_text_test": {"llava_qa90": None, "llava_30x3": None},
        "multi_instruct": {"multi_instruct": None},
    }
    return Family(tasks=tasks, mixtures=mixtures, datasets=DATASETS)


def read_file(path: str, seed: int = 0) -> Iterator[tuple[str, Row]]:
    """(place, record) pairs of a file or a folder, as published."""
    del seed
    yield from read_records(path)


def read_answered(questions: str, seed: int = 0, *, answers: str) -> Iterator[tuple[str, Row]]:
    """(place, question with its "answer") of two files that go by "question_id".

    Raises:
        BadRow: an answer is malformed, or a question has none.
    """
    del seed
    answered: dict[Any, str] = {}
    for place, record in read_records(answers):
        try:
            answered[record["question_id"]] = text_field(record, "text", place)
        except BadRow as error:
            report_bad_row(error)
        except (KeyError, TypeError):
            report_bad_row(BadRow(f"{place}: field 'question_id' must be a number or a string"))
    for place, record in read_records(questions):
        number = record.get("question_id")
        if isinstance(number, int | str) and number in answered:
            yield place, {**record, "answer": answered[number]}
        else:
            report_bad_row(BadRow(f"{place}: question {number!r} has no answer in {answers}"))


def image_replies(record: Row, place: str, keep: bool) -> Iterator[Row]:
    """The rows of a conversation, with the path of its image; none where it has one and `keep` is not set."""
    turns = turns_of(record.get("conversations"), place, role="from", text="value")
    has_image = bool(record.get("image")) or any(IMAGE in turn.text for turn in turns)
    if keep or not has_image:
        yield from reply_rows(turns, id=record.get("id"), image=record.get("image"))


@dataclass(frozen=True, kw_only=True)
class ImageText:
    """A render function: a question about an image in, the answer out.

    Attributes:
        question: the field of the question.
        answer: the field of the answer.
        image: the field with the path of the image, if the row has one.
        name: the field with the row's name.
        keep: whether rows with an image are kept, a token for it before the question.
    """

    question: str
    answer: str
    image: str = "image"
    name: str = "id"
    keep: bool = True

    def __call__(self, row: Row, context: Context) -> Text | None:
        """The text of a row; raises BadRow where a field is missing or of another type."""
        question = text_field(row, self.question, context.place).strip()
        answer = text_field(row, self.answer, context.place).strip()
        if row.get(self.image) or IMAGE in question:
            if not self.keep:
                return None
            if IMAGE not in question:
                question = f"{IMAGE}\n{question}"
        return Text(inputs=question, targets=answer, id=str(row.get(self.name, "")))
