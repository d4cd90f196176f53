"""The parts of Flan 2022 (arXiv 2301.13688) that are neither Flan 2021 nor P3: rationales, conversations, Super-NI.

COT         nine sets of questions with a rationale, as tab-separated lines: question, answer, rationale
DIALOG      wiki_dialog {"utterances": [...]} and qrecc {"context": [...], "turn_id": 7}: the reply to a conversation
niv2_names  the tasks of Super-NaturalInstructions, without those made from MMLU
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flanjax.tasks.flan_arms import Instance, Published
from flanjax.tasks.flan_counts import COT_COUNTS
from flanjax.tasks.flan_counts_niv2 import niv2_counts
from flanjax.tasks.flan_datasets_base import PUBLISHED, FlanDataset, MissingDataset, Splits
from flanjax.tasks.flan_fields import number_of, text_of, texts_of
from flanjax.tasks.natural_instructions import read_task

from flanjax.data.draws import Draw
from flanjax.data.exemplars import Exemplars
from flanjax.data.prompts import Arm, ArmSettings, TaskType, render_arm
from flanjax.data.records import RecordsError, record_files
from flanjax.data.sources import BadRow, excerpt
from flanjax.data.tasks import Context, Dataset, Download, Row, Text

MOST_PAIRS = 20  # of turns of a conversation that may come before a reply
FIRST_TURN = 6  # of QReCC, up to which a conversation is too short
MMLU_TASKS = (*range(664, 668), *range(685, 738))  # by number, as Flan 2022 leaves them out
_GITHUB = "https://raw.githubusercontent.com/google-research/FLAN/main/flan/v2/cot_data"
_DIALOG = "https://storage.googleapis.com/gresearch/dialog-inpainting/WikiDialog_OQ"
_HAND_MADE = "hand-made file of the published schema"

_COT_SETS = tuple(name.partition("_")[2] for name in COT_COUNTS)

DATASETS = (
    Dataset(
        name="flan_cot",
        title="The questions with rationales of Flan 2022, from nine datasets",
        paper="arXiv 2301.13688",
        licence="Apache-2.0; those of its sources",
        page="https://github.com/google-research/FLAN/tree/main/flan/v2/cot_data",
        size="74,671 questions",
        downloads=tuple(Download(url=f"{_GITHUB}/{name}_train.tsv", file=f"{name}_train.tsv") for name in _COT_SETS),
    ),
    Dataset(
        name="wiki_dialog",
        title="WikiDialog: articles of Wikipedia, made conversations",
        paper="arXiv 2205.09073",
        licence="CC BY-SA 3.0, as Wikipedia",
        page="https://github.com/google-research/dialog-inpainting",
        size="11 million conversations",
        downloads=tuple(
            Download(
                url=f"{_DIALOG}/data_train.jsonl-{number:05}-of-00099.gz", file=f"train-{number:05}-of-00099.jsonl.gz"
            )
            for number in range(99)
        ),
        tested_on=_HAND_MADE,
    ),
    Dataset(
        name="qrecc",
        title="QReCC: questions in conversations, and their answers from the web",
        paper="arXiv 2010.04898",
        licence="CC BY-SA 3.0",
        page="https://github.com/apple/ml-qrecc",
        size="14,000 conversations with 80,000 questions",
        downloads=(
            Download(
                url="https://github.com/apple/ml-qrecc/raw/main/dataset/qrecc_data.zip",
                file="qrecc_data.zip",
                unpack=True,
            ),
        ),
        tested_on=_HAND_MADE,
    ),
)


def cot(row: Row, place: str) -> Instance:
    r"""A question with its rationale; \n in a line of the table means a new line. GSM8K's own lines are read as well.

    GSM8K has rationale and answer in one, "... <<48/2=24>>24 clips ... #### 72", with its calculator's notes.
    """
    answer = text_of(row, "answer", place)
    rationale = row.get("rationale")
    if rationale is None:
        rationale, mark, answer = answer.rpartition("####")
        if not mark:
            raise BadRow(f"{place}: field 'rationale' is missing, and 'answer' has no ####: {excerpt(row)}")
        rationale = re.sub("<<.*?>>", "", rationale)
    texts = {"question": text_of(row, "question", place), "answer": answer}
    texts["rationale"] = text_of({"rationale": rationale}, "rationale", place)
    return {name: text.replace("\\n", "\n").strip() for name, text in texts.items()}


def wiki_dialog(row: Row, place: str) -> Instance | None:
    """A reply, drawn from the conversation's own text, to what comes before it; the assistant's greeting is dropped."""
    return _reply(texts_of(row, "utterances", place)[1:])


def qrecc(row: Row, place: str) -> Instance | None:
    """Likewise; conversations of six turns and fewer are left out."""
    if number_of(row, "turn_id/Turn_no", place) <= FIRST_TURN:
        return None
    return _reply(texts_of(row, "context/Context", place))


def _reply(turns: list[str]) -> Instance | None:
    pairs = min(len(turns) // 2, MOST_PAIRS)
    if not pairs:
        return None
    turn = 2 * Draw("reply", *turns).below(pairs) + 1
    return {"history": turns[:turn], "answer": turns[turn]}


COT = tuple(
    FlanDataset(
        name=name,
        type="cot",
        instance=cot,
        splits=Splits(train=name.partition("_")[2], validation="", test=""),
        columns=("question", "answer", "rationale"),
        unquoted=True,
        folder="flan_cot",
        page=DATASETS[0].page,
        tested_on=_HAND_MADE if name in ("cot_esnli", "stream_qed") else PUBLISHED,
    )
    for name in COT_COUNTS
)

DIALOG = tuple(
    FlanDataset(
        name=dataset.name,
        type="dialog_reply",
        instance=instance,
        splits=Splits(validation="", test=""),
        tfds=tfds,
        folder=dataset.name,
        page=dataset.page,
    )
    for dataset, instance, tfds in ((DATASETS[1], wiki_dialog, "wiki_dialog/OQ"), (DATASETS[2], qrecc, "q_re_cc"))
)


_INVERSIONS = {"cot": "cot_inversion", "dialog_reply": "dialog_inversion"}


def inverted(dataset: FlanDataset) -> FlanDataset:
    """The same rows, to be asked the other way round: the question from its answer, the talk from its end."""
    kind, _, name = dataset.name.partition("_")
    key = f"{kind}_input_inversion_{name}" if dataset.type == "cot" else f"{dataset.name}_input_inversion"
    return dataclasses.replace(dataset, name=inverted_name(dataset.name), type=_INVERSIONS[dataset.type], key=key)


def inverted_name(name: str) -> str:
    """What the inversion of a dataset is called."""
    return f"{name}_inversion"


def is_inverted(dataset: FlanDataset) -> bool:
    """Whether a dataset is the inversion of one."""
    return dataset.type in _INVERSIONS.values()


def is_mmlu(name: str) -> bool:
    """Whether a Super-NI task was made from MMLU, by its number.

    Raises:
        ValueError: the name has none.
    """
    number = re.match(r"task(\d+)", name)
    if number is None:
        raise ValueError(f"{name!r} is no name of a Super-NaturalInstructions task")
    return int(number[1]) in MMLU_TASKS


def niv2_names() -> dict[str, int]:
    """The Super-NI tasks of Flan 2022, with their numbers of examples."""
    return {name: count for name, count in niv2_counts().items() if not is_mmlu(name)}


@dataclass(frozen=True, kw_only=True)
class NatInstRows:
    """The rows of a Super-NI task file.

    Attributes:
        files: where it may be: as published, or packed.
    """

    files: tuple[str, ...]

    def __call__(self, seed: int) -> Iterator[tuple[str, Row]]:
        """(place, row) pairs in file order; the seed changes nothing.

        Raises:
            MissingDataset: there is no such file.
            BadRow: it is no task.
        """
        for file in self.files:
            try:
                found = record_files(file)[0]
            except RecordsError:
                continue
            return ((row["place"], row) for row in read_task(found))
        raise MissingDataset(
            f"{self.files[0]}: there is no such file; it is part of Super-NaturalInstructions, which "
            "`python -m flanjax.data fetch super_natural_instructions` gets"
        )


def natural_instruction(row: Row, place: str) -> Instance:
    """An instance, with the first of its outputs for an answer."""
    del place  # the rows of a task file are checked when it is read
    return {
        "definition": row["definition"],
        "input": row["input"],
        "answer": row["outputs"][0],
        "answers": row["outputs"],
    }


@dataclass(frozen=True, kw_only=True)
class NatInstRender:
    """A render function for Super-NI: "fsopt_five" shows the task's own positive examples, "fsopt_x" other instances.

    An instance with several outputs is trained on one of them; all are references.
    """

    type: TaskType
    published: Published
    arm: Arm
    exemplars: Exemplars
    settings: ArmSettings

    def __call__(self, row: Row, context: Context) -> Text | None:
        """The text of a row; None beside which no exemplar fits; raises BadRow."""
        instance = natural_instruction(row, context.place)
        if context.split == "train":
            instance = {**instance, "answer": context.draw.choice(row["outputs"])}
        pool: Sequence[Instance] = [
            {"definition": row["definition"], "input": example["input"], "answer": example["output"]}
            for example in row["positives"]
        ]
        if self.arm is not Arm.FSOPT_FIVE or not pool:
            pool = () if self.arm.zero_shot else self.exemplars.pool(context.seed)
        type = self.published.type("natinst_v2", self.type)
        text = render_arm(type, instance, context, self.arm, pool, settings=self.settings)
        return text and dataclasses.replace(text, references=tuple(instance["answers"]))
