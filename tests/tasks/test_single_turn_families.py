"""What holds for every family of single-turn data: listing reads nothing, and tasks can be sent and told apart."""

import importlib
import json
import pickle
import re
import subprocess
import sys

import pytest

from flanjax.data.fingerprints import fingerprint
from flanjax.data.tasks import Family

NAMES = ("alpaca", "code", "dolly", "editing", "evol_instruct", "goat", "instruction_wild", "lima", "medical", "own")
MODULES = [f"flanjax.tasks.{name}" for name in (*NAMES, "self_instruct")]

LIST_ALL = """
import importlib, json, sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
modules = [importlib.import_module(name) for name in sys.argv[1:]]
opened.clear()
names = [task.name for module in modules for task in module.family().tasks]
heavy = sorted({"jax", "seqio", "tensorflow", "torch", "pyarrow"} & sys.modules.keys())
print(json.dumps({"names": names, "heavy": heavy, "opened": opened}))
"""


@pytest.fixture(scope="module")
def listed():
    """What listing all families in a new process gives, imports and opens."""
    run = subprocess.run([sys.executable, "-c", LIST_ALL, *MODULES], capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


def test_listing_imports_nothing_heavy_and_opens_no_file(listed):
    assert listed["heavy"] == []
    assert listed["opened"] == []


def test_names_are_legal_and_each_has_one_task(listed):
    assert len(set(listed["names"])) == len(listed["names"]) > 15
    assert all(re.fullmatch(r"[a-z0-9_]+", name) for name in listed["names"])


@pytest.mark.parametrize("module", MODULES)
def test_a_family_says_what_it_has(module):
    made = importlib.import_module(module).family()
    assert isinstance(made, Family)
    names = {task.name for task in made.tasks}
    assert {name for mixture in made.mixtures.values() for name in mixture} <= names
    for dataset in made.datasets:
        assert all((dataset.name, dataset.title, dataset.paper, dataset.licence, dataset.tested_on))
        assert dataset.page.startswith("https://")
        assert all(download.url.startswith("https://") for download in dataset.downloads)
    for task in made.tasks:
        assert set(task.examples) <= set(task.splits)


def test_the_mixtures_that_people_look_for_are_there():
    mixtures = {name for module in MODULES for name in importlib.import_module(module).family().mixtures}
    assert mixtures >= {
        *("alpaca", "alpaca_gpt4", "dolly", "lima", "self_instruct", "unnatural_instructions", "wizardlm"),
        *("wizardcoder", "code_alpaca", "coedit", "writing_alpaca", "chatdoctor", "radiology", "goat"),
        "instruction_wild",
    }


@pytest.mark.parametrize("module", MODULES)
def test_tasks_can_be_sent_to_another_process_and_told_apart(module):
    tasks = importlib.import_module(module).family().tasks
    assert [task.name for task in pickle.loads(pickle.dumps(tasks))] == [task.name for task in tasks]
    prints = [fingerprint([task.source, task.render]) for task in tasks]
    assert len(set(prints)) == len(prints)
