"""ChatDoctor's published file, field by field, and the sections of radiology reports."""

import gzip
import json

import pytest
from flanjax.tasks.medical import RADIOLOGY_INSTRUCTION, family

from flanjax.data.sources import BadRow

RECORD = {"instruction": "Answer as a doctor.", "input": "It hurts.", "output": "Rest."}


def _tasks(**options):
    return {task.name: task for task in family(**options).tasks}


def test_every_published_conversation_is_a_row(test_data, texts):
    task = _tasks(data_dir=str(test_data / "chatdoctor"), style="plain")["chatdoctor_5k"]
    records = json.loads(gzip.decompress((test_data / "chatdoctor" / "chatdoctor5k.json.gz").read_bytes()))
    validation, train = texts(task, "validation"), texts(task, "train")
    assert (len(train), len(validation)) == (task.examples["train"], task.examples["validation"])
    assert len(records) == len(train) + len(validation) == 5452
    assert [(text.inputs, text.targets) for text in validation] == [
        (f"{record['instruction']}\n\n{record['input']}", record["output"]) for record in records[::100]
    ]
    assert validation[0].inputs == (
        "If you are a doctor, please answer the medical questions based on the patient's description.\n\n"
        "Doctor, I have been experiencing sudden and frequent panic attacks. I don't know what to do."
    )


def test_the_mixture_has_both_files_by_their_sizes(written, texts, tmp_path):
    written(tmp_path / "HealthCareMagic-100k.json", [RECORD])
    (text,) = texts(_tasks(data_dir=str(tmp_path))["chatdoctor_healthcaremagic"], "validation")
    assert "### Input:\nIt hurts." in text.inputs
    assert family().mixtures["chatdoctor"] == {"chatdoctor_healthcaremagic": None, "chatdoctor_5k": None}


def test_an_impression_is_written_from_the_findings_where_both_are_there(texts, tmp_path):
    (tmp_path / "mimic_cxr_sectioned.csv").write_text(
        "study,impression,findings,last_paragraph,comparison\n"
        's1,No pneumonia.,"Clear lungs,\nno effusion.",,\n'
        "s2,,Clear lungs.,,\n"
        "s3,Normal.,,,\n"
        "s4,Effusion.,Blunted angle.,,\n"
    )
    task = _tasks(radiology_dir=str(tmp_path), style="plain")["radiology"]
    made = texts(task, "validation") + texts(task)
    assert [(text.inputs, text.targets) for text in made] == [
        (f"{RADIOLOGY_INSTRUCTION}\n\nClear lungs,\nno effusion.", "No pneumonia."),
        (f"{RADIOLOGY_INSTRUCTION}\n\nBlunted angle.", "Effusion."),
    ]
    other = _tasks(radiology_dir=str(tmp_path), instruction="Sum up.", style="plain")["radiology"]
    assert texts(other)[0].inputs == "Sum up.\n\nBlunted angle."


def test_a_row_with_too_few_columns_is_named(texts, tmp_path):
    file = tmp_path / "mimic_cxr_sectioned.csv"
    file.write_text("study,impression,findings\ns1,Normal.\n")
    with pytest.raises(BadRow, match=f"{file}:2: 2 columns, not 3"):
        texts(_tasks(radiology_dir=str(tmp_path))["radiology"])


def test_any_row_gives_text_or_an_error_with_its_place(fuzzed, tmp_path):
    reports = tmp_path / "reports.jsonl"
    tasks = _tasks(data_dir=str(tmp_path), radiology_dir=str(reports))
    fuzzed(tasks["chatdoctor_5k"], "validation", tmp_path / "chatdoctor5k.json", RECORD)
    fuzzed(tasks["radiology"], "validation", reports, {"findings": "Clear.", "impression": "Normal."})
