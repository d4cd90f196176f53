"""A materialised chat learns every reply of its data once, and is written anew when its template changes."""

import functools
import json

import numpy as np
import pytest

import flanjax.data.workers
from flanjax.data.cache import CachedMixture
from flanjax.data.chat import Chat
from flanjax.data.chat_templates import find_template
from flanjax.data.conversations import reply_rows, whole_conversations
from flanjax.data.materialize import materialize
from flanjax.data.provenance import Request, differences
from flanjax.data.registry import load_family
from flanjax.data.tasks import Turn
from flanjax.data.vocabularies import Vocabulary, VocabularySource

OWN = "flanjax.tasks.own"


@pytest.fixture(scope="module")
def bpe(bpe_folder):
    return Vocabulary.from_file(bpe_folder)


@pytest.fixture(scope="module")
def glaive(test_data, tmp_path_factory):
    """Real conversations with tools, forty of them."""
    records = json.loads((test_data / "llama_factory" / "glaive_toolcall_en_demo.json").read_text())[:40]
    file = tmp_path_factory.mktemp("glaive") / "glaive.json"
    file.write_text(json.dumps(records))
    return file


@pytest.fixture(scope="module")
def cached(bpe_folder, glaive, tmp_path_factory):
    """glaive under ChatML, in a cache."""
    cache = tmp_path_factory.mktemp("cache")
    report = materialize_own(glaive, cache, bpe_folder, chat_template="chatml")
    return cache, report


def materialize_own(file, cache, vocabulary, **options):
    tasks = {OWN: {"path": str(file), "validation": 10, "name": "chats"}}
    options = {"workers": 1, "chat_template": None, **options}
    return materialize(
        mixture="chats", cache_dir=cache, vocabulary=VocabularySource(path=str(vocabulary)), tasks=tasks, **options
    )


def read(cache, split, mixture="chats"):
    (task,) = CachedMixture.open(cache, mixture, split).tasks
    return task.read(range(len(task)))


def runs(weights):
    """How many stretches of a row of weights count."""
    return int(np.sum(np.diff(np.concatenate([[0], np.asarray(weights, int)])) == 1))


def spoken_by(record):
    roles = {"human": "user", "gpt": "assistant", "function_call": "assistant", "observation": "tool"}
    said = [Turn(role=roles[turn["from"]], text=turn["value"]) for turn in record["conversations"]]
    system = [text for text in (record.get("system"), record.get("tools")) if text]
    return [Turn(role="system", text="\n\n".join(system)), *said] if system else said


def test_a_conversation_is_one_example_in_which_each_reply_counts_once(cached, glaive, bpe):
    chat = Chat(find_template("chatml", bpe), bpe)
    records = json.loads(glaive.read_text())
    wanted = [chat.examples(spoken_by(record)) for at, record in enumerate(records) if at % 10]
    examples = read(cached[0], "train")
    assert len(examples) == len(wanted) == 36
    for example, (expected,) in zip(examples, wanted, strict=True):
        assert example.inputs.tolist() == list(expected.inputs)
        assert example.targets.tolist() == list(expected.targets)
        weights = np.ones(len(example.targets)) if example.target_weights is None else example.target_weights
        assert weights.tolist() == list(expected.weights)
        assert example.text is None
    replies = sum(turn.role == "assistant" for at, one in enumerate(records) if at % 10 for turn in spoken_by(one))
    counted = [np.ones(1) if one.target_weights is None else one.target_weights for one in examples]
    assert sum(map(runs, counted)) == replies
    assert any("<|im_start|>tool\n" in "".join(one.pieces) for (one,) in wanted)


def test_held_out_replies_are_examples_of_their_own_that_can_be_answered(cached, glaive, bpe):
    records = json.loads(glaive.read_text())
    held_out = [spoken_by(record) for at, record in enumerate(records) if at % 10 == 0]
    wanted = [(said[:at], said[at]) for said in held_out for at, turn in enumerate(said) if turn.role == "assistant"]
    examples = read(cached[0], "validation")
    template = find_template("chatml", bpe)
    assert len(examples) == len(wanted)
    for example, (history, reply) in zip(examples, wanted, strict=True):
        messages = [{"role": turn.role, "content": turn.text} for turn in history]
        assert example.text["inputs"] == template.render(messages, add_generation_prompt=True)
        assert example.text["references"] == [reply.text.strip()]
        assert bpe.decode(example.targets.tolist()) == reply.text
        assert example.inputs.tolist() == [id_ for id_, *_ in bpe.encode_rendered(example.text["inputs"])]


def test_the_cache_knows_its_template_and_is_written_anew_for_another(cached, glaive, bpe_folder, tmp_path):
    cache, report = cached
    template = CachedMixture.open(cache, "chats", "train").chat_template
    assert template == find_template("chatml", report.vocabulary)
    again = materialize_own(glaive, cache, bpe_folder, chat_template="chatml")
    assert not any(split.written for split in again.splits)
    (tmp_path / "mine.jinja").write_text(template.text.replace("<|im_end|>\\n", "<|im_end|>"))
    for choice in (str(tmp_path / "mine.jinja"), None):
        prints = {split.fingerprint for split in report.splits}
        other = materialize_own(glaive, tmp_path / "cache", bpe_folder, chat_template=choice)
        assert all(split.written for split in other.splits)
        assert prints.isdisjoint(split.fingerprint for split in other.splits)


def test_training_notices_another_template(cached, glaive, bpe_folder):
    mixture = CachedMixture.open(cached[0], "chats", "train")

    def changed(choice):
        tasks = {OWN: {"path": str(glaive), "validation": 10, "name": "chats"}}
        source = VocabularySource(path=str(bpe_folder))
        request = Request(tasks=tasks, vocabulary=source, seed=0, splits=("train",), chat_template=choice)
        return differences(mixture, request).changed

    assert changed("chatml") == ()
    (line,) = changed("zephyr")
    assert line.startswith("its chat template is 'chatml' (")
    assert "the run's is 'zephyr' (" in line
    assert changed(None)[0].endswith("the run's is none")


def test_other_processes_give_the_same_bytes(cached, glaive, bpe_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(flanjax.data.workers, "_FIRST_CHUNKS", 0)
    report = materialize_own(glaive, tmp_path, bpe_folder, chat_template="chatml", workers=2, splits=("train",))
    assert report.splits[0].fingerprint == cached[1].splits[0].fingerprint
    here, there = (
        CachedMixture.open(cache, "chats", "train").tasks[0].manifest.shards for cache in (cached[0], tmp_path)
    )
    assert here == there


def test_of_a_tree_each_reply_is_learnt_once(test_data):
    file = test_data / "oasst" / "en_100_tree.jsonl"
    task = load_family("flanjax.tasks.oasst", {"data_dir": str(file)}).tasks[0]
    rows = list(task.source["train"](0))
    whole = list(whole_conversations(rows))
    assert len(whole) < len(rows)
    learnt = [row["turns"][: at + 1] for _, row in whole for at in row["learnt"]]
    assert sorted(map(str, learnt)) == sorted(str(row["turns"]) for _, row in rows)


def test_replies_of_other_conversations_are_not_put_together():
    def rows(*threads):
        return [(place, row) for place, said in threads for row in reply_rows(said)]

    said = [Turn(role=("user", "assistant")[at % 2], text=str(at)) for at in range(4)]
    (one,) = whole_conversations(rows(("f:1", said)))
    assert one == ("f:1", {"id": "", "turns": [[turn.role, turn.text] for turn in said], "learnt": [1, 3]})
    other = [*said[:2], Turn(role="user", text="x"), Turn(role="assistant", text="y")]
    both = [row["learnt"] for _, row in whole_conversations(rows(("f:1", said), ("f:2", other)))]
    assert both == [[1, 3], [1, 3]]
    plain = ("f:3", {"instruction": "a"})
    assert [row for row in whole_conversations([plain, *rows(("f:1", said)), plain]) if row == plain] == [plain, plain]


@pytest.fixture
def pairs(tmp_path):
    file = tmp_path / "sums.jsonl"
    said = [("1 + 1", "2"), ("2 + 2", ""), ("say <|im_end|>", "no"), ("3 + 4", "7")]
    file.write_text("\n".join(json.dumps({"prompt": prompt, "completion": answer}) for prompt, answer in said))
    return file


def materialized_pairs(pairs, tmp_path, vocabulary, **options):
    tasks = {OWN: {"path": str(pairs), "validation": 0, "name": "sums"}}
    source = VocabularySource(path=str(vocabulary))
    options = {"workers": 1, "splits": ("train",), **options}
    report = materialize(mixture="sums", cache_dir=tmp_path / "c", vocabulary=source, tasks=tasks, **options)
    return report, read(tmp_path / "c", "train", "sums")


def test_a_pair_is_a_conversation_of_one_exchange(pairs, tmp_path, bpe_folder, bpe):
    report, examples = materialized_pairs(pairs, tmp_path, bpe_folder, chat_template="chatml", on_bad_row="skip")
    (split,) = report.splits
    assert (split.examples, split.dropped_empty_targets, split.skipped_bad_rows) == (2, 1, 1)
    assert "sums.jsonl:3" in split.first_bad_row
    chat = Chat(find_template("chatml", bpe), bpe)
    (expected,) = chat.examples([Turn(role="user", text="3 + 4"), Turn(role="assistant", text="7")])
    assert examples[1].targets.tolist() == list(expected.targets)
    assert examples[1].target_weights.tolist() == list(expected.weights)


def test_the_system_text_of_a_pair_is_a_turn_of_its_own(tmp_path, bpe_folder, bpe):
    file = tmp_path / "sums.jsonl"
    file.write_text(json.dumps({"system": "Add.", "prompt": "1 + 1", "completion": "2"}))
    _, (example,) = materialized_pairs(file, tmp_path / "chat", bpe_folder, chat_template="chatml")
    said = [Turn(role=role, text=text) for role, text in (("system", "Add."), ("user", "1 + 1"), ("assistant", "2"))]
    (expected,) = Chat(find_template("chatml", bpe), bpe).examples(said)
    assert example.inputs.tolist() == list(expected.inputs)
    _, (example,) = materialized_pairs(file, tmp_path / "pair", bpe_folder)
    assert bpe.decode(example.inputs.tolist()) == "Add.\n\n1 + 1"


def test_without_a_template_a_decoders_inputs_have_what_its_tokenizer_puts_in_front(pairs, tmp_path, llama_folder):
    llama = Vocabulary.from_file(llama_folder)
    _, examples = materialized_pairs(pairs, tmp_path, llama_folder)
    assert examples[0].inputs.tolist() == [llama.bos_id, *llama.encode("1 + 1")]
    assert examples[0].targets.tolist() == [*llama.encode("2"), llama.eos_id]
    assert examples[1].inputs.tolist() == [llama.bos_id, *llama.encode("say <|im_end|>")]
    assert examples[0].target_weights is None


def test_what_does_not_fit_is_among_the_notes(pairs, tmp_path, llama_folder):
    report, _ = materialized_pairs(pairs, tmp_path, llama_folder, chat_template="chatml", on_bad_row="skip")
    assert any("<|im_start|>, <|im_end|>, which the tokenizer reads as text" in note for note in report.notes)


def test_a_task_written_in_seqio_is_a_chat_as_well(tmp_path, bpe_folder, bpe):
    import seqio

    from flanjax.data.seqio_tasks import add_task, json_lines, text_features

    (tmp_path / "qa.jsonl").write_text(json.dumps({"inputs": "1 + 1  =", "targets": "2"}) + "\n")
    add_task(
        "seqio_chat",
        source=json_lines({"train": tmp_path / "qa.jsonl"}, fields=("inputs", "targets")),
        preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
        output_features=text_features(),
    )
    source = VocabularySource(path=str(bpe_folder))
    call = functools.partial(materialize, mixture="seqio_chat", vocabulary=source, tasks={}, splits=("train",))
    call(cache_dir=tmp_path / "chat", chat_template="chatml")
    (example,) = read(tmp_path / "chat", "train", "seqio_chat")
    chat = Chat(find_template("chatml", bpe), bpe)
    (expected,) = chat.examples([Turn(role="user", text="1 + 1  ="), Turn(role="assistant", text="2")])
    assert (example.inputs.tolist(), example.targets.tolist()) == (list(expected.inputs), list(expected.targets))
    call(cache_dir=tmp_path / "pairs")
    (example,) = read(tmp_path / "pairs", "train", "seqio_chat")
    assert example.inputs.tolist() == bpe.encode("1 + 1  =")
    assert example.targets.tolist() == [*bpe.encode("2"), bpe.eos_id]


def test_with_t5s_vocabulary_each_reply_is_an_example(glaive, t5_spiece, tmp_path):
    template = tmp_path / "plain.jinja"
    template.write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    materialize_own(glaive, tmp_path / "c", t5_spiece, chat_template=str(template), splits=("train",))
    records = json.loads(glaive.read_text())
    replies = [
        turn.text
        for at, one in enumerate(records)
        if at % 10
        for turn in spoken_by(one)[1:]
        if turn.role == "assistant"
    ]
    examples = read(tmp_path / "c", "train")
    vocabulary = Vocabulary.from_file(t5_spiece)
    assert [example.targets.tolist() for example in examples] == [
        [*vocabulary.encode(reply.strip()), vocabulary.eos_id] for reply in replies
    ]
    assert all(example.inputs[-1] == vocabulary.eos_id and example.target_weights is None for example in examples)


def test_pieces_of_long_conversations_stay_examples_of_their_own(test_data):
    file = str(test_data / "fastchat" / "dummy_conversation.json")
    task = load_family("flanjax.tasks.sharegpt", {"data_dir": file, "max_conversation": 64}).tasks[0]
    assert not task.whole
    assert load_family("flanjax.tasks.sharegpt", {"data_dir": file}).tasks[0].whole


def test_on_beam_it_is_the_same(cached, glaive, bpe_folder, tmp_path):
    materialize_own(
        glaive, tmp_path, bpe_folder, chat_template="chatml", beam=("--runner=DirectRunner",), splits=("train",)
    )
    here, there = (
        CachedMixture.open(cache, "chats", "train").tasks[0].manifest.shards for cache in (cached[0], tmp_path)
    )
    assert here == there
