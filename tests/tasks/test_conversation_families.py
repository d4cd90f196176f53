"""What holds for every family of conversations and structured data, whatever its files: it is listed without reading,
crosses into other processes, gives one text for one seed anywhere, and names the place of whatever is malformed."""

import copy
import importlib
import json
import pickle
import re
import subprocess
import sys

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flanjax.data.fingerprints import fingerprint
from flanjax.data.rendering import rows_of, texts_of
from flanjax.data.sources import BadRow, bad_row_policy
from flanjax.data.tasks import DATA_DIR_VARIABLE

FAMILIES = (
    *("oasst", "sharegpt", "baize", "instructdial", "instruct_uie", "slot_tagging", "absa", "multimodal_text"),
    "natural_instructions_v1",
)
MIXTURES = {
    *("oasst1", "oasst2", "sharegpt", "baize", "instructdial", "instruct_uie", "cl_benchmark", "slot_tagging", "absa"),
    *("llava_text", "llava_text_test", "multi_instruct", "natural_instructions_v1", "natural_instructions_v1_test"),
}


class Words:
    """A token a word."""

    def encode(self, text):
        return text.split()

    def decode(self, ids):
        return " ".join(ids)


def family(name, *args, **options):
    return importlib.import_module(f"flanjax.tasks.{name}").family(*args, **options)


def texts(task, split, seed=0):
    return [text for _, text in texts_of(task, split, rows_of(task, split, seed=seed), seed=seed, tokenizer=Words())]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_listed_without_its_data(name, tmp_path, monkeypatch):
    monkeypatch.setenv(DATA_DIR_VARIABLE, str(tmp_path / "nothing"))
    found = family(name)
    names = [task.name for task in found.tasks]
    assert len(set(names)) == len(names) > 0
    assert all(re.fullmatch(r"[\w.:]+", task) for task in names)
    assert all(task.splits for task in found.tasks)
    assert found.datasets
    assert all(set(rates) <= set(names) for rates in found.mixtures.values())
    assert all(dataset.title and dataset.paper and dataset.licence and dataset.page for dataset in found.datasets)


def test_the_mixtures_have_the_names_people_use():
    found = [mixture for name in FAMILIES for mixture in family(name).mixtures]
    assert len(found) == len(set(found))
    assert set(found) == MIXTURES


@pytest.mark.parametrize("name", FAMILIES)
def test_tasks_cross_into_other_processes_and_have_a_fingerprint(name):
    for task, again in zip(family(name).tasks[:3], family(name).tasks[:3], strict=True):
        twin = pickle.loads(pickle.dumps(task))
        assert (twin.name, twin.splits) == (task.name, task.splits)
        assert fingerprint(again) == fingerprint(task)


def test_no_family_imports_what_training_must_not():
    modules = ", ".join(f"flanjax.tasks.{name}" for name in FAMILIES)
    script = f"import sys, {modules}; print(sorted({{'jax', 'seqio', 'tensorflow'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"


def lines(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


MESSAGE = {"message_id": "m1", "parent_id": None, "role": "prompter", "text": "Hi", "lang": "en", "deleted": False}
REPLY = {**MESSAGE, "message_id": "m2", "parent_id": "m1", "role": "assistant", "rank": 0, "text": "Hello!"}
TREE = {"message_tree_id": "m1", "prompt": {**MESSAGE, "replies": [{**REPLY, "replies": []}]}}
CHAT = {
    "id": "a",
    "image": "b.jpg",
    "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}],
}
DIALOGUE = {"prompt": "Instruction: x", "output": "y", "all_outputs": ["y"], "task": "summarization", "split": "train"}
UTTERANCE = {"id": "1", "locale": "en-US", "partition": "train", "intent": "alarm_set", "annot_utt": "at [time : nine]"}
NER = {"sentence": "Ada in Rome", "entities": [{"name": "Ada", "type": "person"}]}
RE = {"sentence": "Ada of Rome", "relations": [{"head": {"name": "Ada"}, "type": "from", "tail": {"name": "Rome"}}]}
EE = {
    "sentence": "Ada left",
    "events": [{"trigger": "left", "type": "leave", "arguments": [{"name": "Ada", "role": "who"}]}],
}
V1 = {
    **{name: "Do it." for name in ("Title", "Prompt", "Definition", "Things to Avoid", "Emphasis & Caution")},
    "Examples": {
        "Positive Examples": [{"input": "a", "output": "b", "reason": "c"}],
        "Negative Examples": [{"input": "a", "output": "b", "reason": "c", "suggestion": "-"}],
    },
    "Instances": [{"input": "a", "output": ["b", "c"]}],
}
OPINIONS = {
    "raw_words": "Good food .",
    "aspects": [{"index": 0, "term": ["food"], "polarity": "POS"}],
    "opinions": [{"index": 0, "term": ["Good"]}],
}

# family, the file to be malformed and its records, other files, and options
CASES = [
    ("oasst", "trees.jsonl", [TREE], {}, {}),
    ("oasst", "messages.jsonl", [MESSAGE, REPLY], {}, {"languages": "en", "max_rank": 0}),
    ("sharegpt", "chat.jsonl", [CHAT], {}, {}),
    ("baize", "quora_chat_data.json", [{"topic": "t", "input": "Talk.\n[|Human|] Hi\n[|AI|] Ho\n[|Human|] "}], {}, {}),
    ("instructdial", "train.json", [DIALOGUE, DIALOGUE], {}, {"tasks": "summarization", "max_per_task": 1}),
    ("instruct_uie", "NER/x/train.json", [NER], {"NER/x/labels.json": ["person"]}, {}),
    ("instruct_uie", "RE/x/train.json", [RE], {"RE/x/labels.json": ["from"]}, {}),
    ("instruct_uie", "EE/x/train.json", [EE], {"EE/x/labels.json": [["leave"], ["who"]]}, {}),
    ("instruct_uie", "NER/x/labels.json", ["person"], {"NER/x/train.json": NER}, {}),
    ("slot_tagging", "1.1/data/en-US.jsonl", [UTTERANCE, UTTERANCE], {}, {"locales": "en-US"}),
    ("absa", "train.json", [OPINIONS], {}, {}),
    ("multimodal_text", "llava_instruct/a.jsonl", [CHAT], {}, {}),
    ("natural_instructions_v1", "tasks/subtask001_x.json", [V1], {}, {}),
]
NAMES = [f"{name}-{file}" for name, file, *_ in CASES]


def written(folder, files):
    for file, content in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(content if isinstance(content, str) else json.dumps(content))


def read_all(name, folder, options, file):
    """The texts of everything in a folder; what is malformed is counted, and must name the file."""
    with bad_row_policy("skip") as bad:
        found = family(name, str(folder), **options)
        made = [
            text
            for task in found.tasks
            if not task.name.startswith(("cl_benchmark", "baize_s", "baize_m", "baize_a", "llava_", "multi_"))
            or task.name == "llava_instruct"
            for split in task.splits
            for text in texts(task, split)
        ]
    assert all(f"{folder}/{file}" in message for message in bad.first)
    return made


def ends_well_or_names_the_file(name, folder, options, file):
    """Whether reading ends well, or in an error that names the file."""
    try:
        read_all(name, folder, options, file)
    except BadRow as error:
        return f"{folder}/{file}" in str(error)
    return True


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    counter = iter(range(1 << 20))
    root = tmp_path_factory.mktemp("fuzzed")
    return lambda: root / str(next(counter))


@pytest.mark.parametrize(("name", "file", "records", "others", "options"), CASES, ids=NAMES)
def test_the_well_formed_file_gives_text(name, file, records, others, options, folder):
    where = folder()
    written(where, {file: records if file.endswith("labels.json") else lines(*records), **others})
    assert read_all(name, where, options, file)


@pytest.mark.parametrize(("name", "file", "records", "others", "options"), CASES, ids=NAMES)
def test_an_address_gives_the_same_text_as_a_folder(name, file, records, others, options, folder):
    where = folder()
    files = {file: records if file.endswith("labels.json") else lines(*records), **others}
    written(where, files)
    memory = fsspec.filesystem("memory")
    for path in files:
        memory.pipe(f"/{where.name}/{path}", (where / path).read_bytes())
    local = read_all(name, where, options, file)
    assert read_all(name, f"memory://{where.name}", options, file) == local


def paths(value, here=()):
    """The places of all values inside of a JSON value."""
    found = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in found:
        yield (*here, key)
        yield from paths(inner, (*here, key))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


@pytest.mark.parametrize(("name", "file", "records", "others", "options"), CASES, ids=NAMES)
@given(data=st.data())
@settings(max_examples=40)
def test_a_malformed_value_gives_text_or_its_place(name, file, records, others, options, folder, data):
    records = copy.deepcopy(records)
    *above, last = data.draw(st.sampled_from(list(paths(records))))
    holder = records
    for key in above:
        holder = holder[key]
    if data.draw(st.booleans()):
        del holder[last]
    else:
        holder[last] = data.draw(JSON)
    where = folder()
    written(where, {file: records if file.endswith("labels.json") else lines(*records), **others})
    assert ends_well_or_names_the_file(name, where, options, file)


TEXT_FILES = {
    "train.xml": '<sentences>\n<sentence id="1"><text>Good food.</text><aspectTerms>'
    '<aspectTerm term="food" polarity="positive"/></aspectTerms></sentence>\n</sentences>\n',
    "train.txt": "Good food .####[['food', 'FOOD#QUALITY', 'positive', 'Good']]\n",
}


@pytest.mark.parametrize("case", [*CASES, *(("absa", file, text, {}, {}) for file, text in TEXT_FILES.items())])
@given(data=st.data())
@settings(max_examples=25)
def test_a_damaged_file_gives_text_or_its_place(case, folder, data):
    name, file, records, others, options = case
    content = records if isinstance(records, str) else lines(*records)
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(start, min(len(content), start + 20)))
    where = folder()
    written(where, {**others, file: ""})
    (where / file).write_bytes(content[:start].encode() + data.draw(st.binary(max_size=8)) + content[end:].encode())
    assert ends_well_or_names_the_file(name, where, options, file)


def test_one_seed_gives_one_text_in_any_process(tmp_path):
    utterances = [{**UTTERANCE, "id": str(n), "annot_utt": f"wake me at [time : {n} am]"} for n in range(20)]
    written(tmp_path, {"massive/1.1/data/en-US.jsonl": lines(*utterances)})
    written(tmp_path, {"uie/NER/x/train.json": lines(*[NER] * 20), "uie/NER/x/labels.json": ["person"]})
    many = [{"instruction_type": "zero-shot", "instruction": f"{n}. Find them."} for n in range(5)]
    written(tmp_path, {"config.json": {"NER": many}})
    v1 = {**V1, "Instances": [{"input": f"a{n}", "output": ["b", "c", "d"]} for n in range(20)]}
    written(tmp_path, {"v1/tasks/subtask001_x.json": v1})
    script = f"""
import sys; sys.path.insert(0, {str(__import__("pathlib").Path(__file__).parent)!r})
import test_conversation_families as here
for name, folder, options in (
    ("slot_tagging", "massive", dict(locales="en-US")),
    ("instruct_uie", "uie", dict(instructions={str(tmp_path / "config.json")!r})),
    ("natural_instructions_v1", "v1", dict()),
):
    for seed in (0, 1):
        task = here.family(name, f"{tmp_path}/{{folder}}", **options).tasks[0]
        print([(text.inputs, text.targets) for text in here.texts(task, "train", seed)])
"""
    runs = [
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert runs[0] == runs[1]
    printed = runs[0].splitlines()
    assert len(printed) == 6
    assert all(first != second for first, second in zip(printed[::2], printed[1::2], strict=True))
