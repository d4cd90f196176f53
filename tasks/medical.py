"""Medicine: the conversations of ChatDoctor, and the radiology reports that Radiology-GPT is tuned on.

chatdoctor_healthcaremagic  HealthCareMagic-100k.json {instruction, input, output}: patients and real doctors
chatdoctor_5k               chatdoctor5k.json, likewise: generated with ChatGPT and a list of diseases
                            Li et al. 2023, arXiv 2303.14070; both together are the mixture `chatdoctor`
radiology                   mimic_cxr_sectioned.csv {study, impression, findings, ...}, which the MIMIC code
                            repository makes of the reports of MIMIC-CXR: the impression is to be written from the
                            findings. Liu et al. 2023, Radiology-GPT, arXiv 2306.08666; mixture `radiology`
"""

from dataclasses import dataclass

from flanjax.data.instructions import Instruct, instruction_task, published
from flanjax.data.schemas import optional_text
from flanjax.data.tasks import Context, Dataset, Download, Family, Row, Text, dataset_folder

DATASETS = (
    Dataset(
        name="chatdoctor",
        title="ChatDoctor: patients' questions and doctors' answers",
        paper="Li et al. 2023, ChatDoctor, arXiv 2303.14070",
        licence="Apache-2.0 by the repository; its README allows academic use only",
        page="https://github.com/Kent0n-Li/ChatDoctor",
        size="112,165 conversations of HealthCareMagic, 5,452 generated ones",
        # HealthCareMagic-100k.json is on Google Drive; the page links to it.
        downloads=(
            Download(
                url="https://raw.githubusercontent.com/Kent0n-Li/ChatDoctor/main/chatdoctor5k.json",
                file="chatdoctor5k.json",
            ),
        ),
        tested_on="published file of the 5K; hand-made file of the published schema for HealthCareMagic",
    ),
    Dataset(
        name="radiology",
        title="Radiology-GPT: findings and impressions of the radiology reports of MIMIC-CXR",
        paper="Liu et al. 2023, Radiology-GPT: A Large Language Model for Radiology, arXiv 2306.08666",
        licence="PhysioNet Credentialed Health Data License",
        page="https://physionet.org/content/mimic-cxr/",
        tested_on="hand-made file of the published schema",
    ),
)

RADIOLOGY_INSTRUCTION = "Write the impression that follows from the findings of this radiology report."


def family(
    data_dir: str = "", radiology_dir: str = "", instruction: str = RADIOLOGY_INSTRUCTION, style: str = "alpaca"
) -> Family:
    """The tasks and mixtures of the module.

    Args:
        data_dir: of ChatDoctor's files: a folder or an address of one.
        radiology_dir: of the reports' sections: a folder, an address of one, or a file with columns findings and
            impression.
        instruction: what a radiology report is given with.
        style: "alpaca", the prompt that both were trained with, or "plain".

    Raises:
        FlanjaxError: there is no such style.
    """
    folder = dataset_folder("chatdoctor", data_dir)
    render = Instruct(style=style)
    magic = published(folder, "HealthCareMagic-100k.json", "data/train-*.parquet")
    reports = published(dataset_folder("radiology", radiology_dir), "mimic_cxr_sectioned.csv")
    tasks = [
        instruction_task("chatdoctor_healthcaremagic", magic, render, total=112_165),
        instruction_task("chatdoctor_5k", published(folder, "chatdoctor5k.json"), render, total=5_452),
        instruction_task("radiology", reports, Radiology(instruction=instruction, instruct=render)),
    ]
    mixtures: dict[str, dict[str, float | None]] = {
        "chatdoctor": {"chatdoctor_healthcaremagic": None, "chatdoctor_5k": None},
        "radiology": {"radiology": 1.0},
    }
    return Family(tasks=tasks, mixtures=mixtures, datasets=DATASETS)


@dataclass(frozen=True, kw_only=True)
class Radiology:
    """Renders the sections of a report; one without findings or impression is left out, as in the paper."""

    instruction: str
    instruct: Instruct

    def __call__(self, row: Row, context: Context) -> Text | None:
        """The text of a report; raises BadRow where a section is no string."""
        findings, impression = (optional_text(row, name, context.place).strip() for name in ("findings", "impression"))
        if not findings or not impression:
            return None
        return self.instruct({"instruction": self.instruction, "input": findings, "output": impression}, context)
