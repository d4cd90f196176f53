"""The published questions and answers of LLaVA and MultiInstruct, every record once, with a token for each image."""

import json

import pytest
from flanjax.tasks.multimodal_text import MultimodalTextError, family

from flanjax.data.rendering import rows_of, texts_of
from flanjax.data.sources import BadRow


class Words:
    def encode(self, text):
        return text.split()

    def decode(self, ids):
        return " ".join(ids)


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def texts(name, splits=("train", "validation"), **options):
    (task,) = [task for task in family(**options).tasks if task.name == name]
    return [
        text
        for split in splits
        for _, text in texts_of(task, split, rows_of(task, split, seed=0), seed=0, tokenizer=Words())
    ]


def test_the_published_evaluation_questions(test_data):
    folder = test_data / "llava"
    questions = read(folder / "coco2014_val_qa_eval" / "qa90_questions.jsonl")
    answers = {
        record["question_id"]: record["text"]
        for record in read(folder / "coco2014_val_qa_eval" / "qa90_gpt4_answer.jsonl")
    }
    found = texts("llava_qa90", ["test"], data_dir=str(folder))
    assert len(found) == len(questions) == 90
    assert [(text.inputs, text.targets, text.id) for text in found] == [
        (f"<image>\n{record['text']}", answers[record["question_id"]], str(record["question_id"]))
        for record in questions
    ]
    triples = read(folder / "coco2014_val_gpt4_qa_30x3.jsonl")
    found = texts("llava_30x3", ["test"], data_dir=str(folder))
    assert len(found) == 90
    assert [(text.inputs, text.targets) for text in found] == [
        (f"<image>\n{record['instruction']}", record["output"]) for record in triples
    ]


def test_the_published_sample_of_multi_instruct(test_data):
    published = read(test_data / "multi_instruct" / "train.jsonl")
    found = texts("multi_instruct", multi_instruct_dir=str(test_data / "multi_instruct"))
    assert len(found) == len(published) == 59
    assert sorted((text.inputs, text.targets) for text in found) == sorted(
        (f"<image>\n{record['prompt'].strip()}", record["target"].strip()) for record in published
    )


def test_a_rendered_example(test_data):
    text = texts("multi_instruct", ["train"], multi_instruct_dir=str(test_data / "multi_instruct"))[0]
    assert text.inputs == "<image>\nLook at image and tell me what is the content."
    assert text.targets == "A parade float of a dog on a skateboard with on lookers."
    assert text.id == "mscoco_caption2014_392260"


def test_paths_of_images_stay_in_the_rows(test_data):
    (task,) = [task for task in family(str(test_data / "llava")).tasks if task.name == "llava_qa90"]
    assert next(row["image"] for _, _, row in rows_of(task, "test", seed=0)) == "000000441147.jpg"


def chat(name, *texts, **fields):
    turns = [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(texts)]
    return {"id": name, **fields, "conversations": turns}


@pytest.fixture
def llava(tmp_path):
    (tmp_path / "llava_instruct").mkdir()
    chats = [
        chat("0", "Hi", "Ho"),
        chat("1", "<image>\nWhat is it?", "A cup.", "What colour?", "Red.", image="000000033471.jpg"),
        chat("2", "Hello", "Good day"),
        chat("3", "Look: <image>", "I see."),
    ]
    (tmp_path / "llava_instruct" / "llava_instruct_150k.json").write_text(json.dumps(chats))
    return str(tmp_path)


def test_conversations_keep_the_token_of_their_image(llava):
    found = texts("llava_instruct", ["train"], data_dir=llava)
    assert [(text.id, text.inputs, text.targets) for text in found] == [
        ("1-1", "User: <image>\nWhat is it?\nAssistant:", "A cup."),
        ("1-2", "User: <image>\nWhat is it?\nAssistant: A cup.\nUser: What colour?\nAssistant:", "Red."),
        ("2-1", "User: Hello\nAssistant:", "Good day"),
        ("3-1", "User: Look: <image>\nAssistant:", "I see."),
    ]
    (task,) = [task for task in family(llava).tasks if task.name == "llava_instruct"]
    assert [row["image"] for _, _, row in rows_of(task, "train", seed=0)] == ["000000033471.jpg"] * 2 + [None] * 2


def test_what_has_an_image_can_be_left_out(llava, test_data):
    assert [text.id for text in texts("llava_instruct", data_dir=llava, images="leave_out")] == ["2-1", "0-1"]
    assert not texts("llava_qa90", ["test"], data_dir=str(test_data / "llava"), images="leave_out")
    with pytest.raises(MultimodalTextError, match=r"images='keep': give one of token, leave_out"):
        family(images="keep")


def test_a_question_without_its_answer_is_named(tmp_path):
    folder = tmp_path / "coco2014_val_qa_eval"
    folder.mkdir()
    (folder / "qa90_questions.jsonl").write_text('{"question_id": 1, "text": "a"}\n{"question_id": 2, "text": "b"}\n')
    (folder / "qa90_gpt4_answer.jsonl").write_text('{"question_id": 1, "text": "c"}\n')
    with pytest.raises(BadRow, match=r"qa90_questions\.jsonl:2: question 2 has no answer in .*qa90_gpt4_answer\.jsonl"):
        texts("llava_qa90", ["test"], data_dir=str(tmp_path))
