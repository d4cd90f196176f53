"""Every dataset of Flan 2021: a hand-made row of each published schema becomes the instance it should."""

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from flanjax.tasks.flan_arms import ARMS, Published, arm_settings, arm_tasks
from flanjax.tasks.flan_counts import FLAN_COUNTS
from flanjax.tasks.flan_datasets import DATASETS
from flanjax.tasks.flan_wording import task_type
from hypothesis import given
from hypothesis import strategies as st

from flanjax.data.sources import BadRow
from flanjax.data.tasks import Text
from flanjax.data.vocabularies import ByteTokens

NLI = ["yes", "maybe", "no"]
FEELINGS = ["negative", "positive"]
ENDS = ["He ate.", "He flew."]
PAIR = {"sentence1": "A cat sat.", "sentence2": "A cat was sitting."}
PREMISE = {"premise": "It rains.", "hypothesis": "It is wet."}
TOPICS = ["World", "Sports", "Business", "Science and technology"]
KINDS = ["description", "entity", "abbreviation", "human", "number", "location"]
QUAIL = [{"text": ["ice", "fire", "air", "rock"], "label": ["A", "B", "C", "D"]}, {"label": [0, 1, 2, 3]}]
QUAIL[1]["text"] = QUAIL[0]["text"]
STORY = "Tom had no food. He was hungry. He went to a shop. It was open."
SENTENCES = [f"{sentence}." for sentence in STORY.rstrip(".").split(". ")]
GEM = {"gem_id": "1", "target": "Ada lives in Rome.", "references": ["Ada's home is Rome."]}
GEM_ANSWERS = {"answer": "Ada lives in Rome.", "answers": ["Ada lives in Rome.", "Ada's home is Rome."]}
SPAN = {"text": "Mark told Pete lies, so Pete thought he lied.", "span1_text": "Mark", "span2_text": "he"}
SPAN |= {"span1_index": 0, "span2_index": 7}
MARKED = "Mark told Pete lies, so Pete thought *he* lied."
SCHOOL = "Which is cold? \\n (A) ice (B) fire (C) air (D) rock"


def said(**fields: Any) -> dict[str, Any]:
    """An instance with one accepted answer, which it lists."""
    return {**fields, "answers": [fields["answer"]]}


def pick(options: list[str], index: int, **fields: Any) -> dict[str, Any]:
    """An instance with options."""
    return {**fields, "options": options, "answer": options[index]}


# dataset -> (a row as it is published, its instance), for each schema that it is published in.
ROWS: dict[str, list[tuple[dict[str, Any], dict[str, Any] | None]]] = {
    "anli_r1": [
        ({"uid": "u", "context": "It rains.", "hypothesis": "It is wet.", "label": 2}, pick(NLI, 2, **PREMISE)),
        ({**PREMISE, "uid": "u", "label": 1, "reason": ""}, pick(NLI, 1, **PREMISE)),
    ],
    "cb": [
        ({**PREMISE, "label": 1}, pick(["yes", "no", "maybe"], 1, **PREMISE)),
        ({**PREMISE, "label": "neutral", "idx": 3}, pick(["yes", "no", "maybe"], 2, **PREMISE)),
    ],
    "rte": [
        ({**PREMISE, "label": 0, "idx": 1}, pick(["yes", "no"], 0, **PREMISE)),
        ({**PREMISE, "label": "not_entailment"}, pick(["yes", "no"], 1, **PREMISE)),
        ({**PREMISE, "label": -1}, None),
    ],
    "mnli_matched": [({**PREMISE, "label": 0}, pick(NLI, 0, **PREMISE))],
    "qnli": [
        (
            {"question": "Who?", "sentence": "Ada did.", "label": 0},
            pick(["yes", "no"], 0, context="Ada did.", question='Does the text answer the question "Who?"?'),
        )
    ],
    "wnli": [
        (
            {"sentence1": "It rains.", "sentence2": "It is wet.", "label": 1},
            pick(["no", "yes"], 1, **PREMISE),
        )
    ],
    "snli": [({**PREMISE, "label": 2}, pick(NLI, 2, **PREMISE)), ({**PREMISE, "label": -1}, None)],
    "glue_mrpc": [({**PAIR, "label": 1}, pick(["no", "yes"], 1, **PAIR))],
    "glue_qqp": [
        (
            {"question1": PAIR["sentence1"], "question2": PAIR["sentence2"], "label": 0},
            pick(["no", "yes"], 0, **PAIR),
        )
    ],
    "paws_wiki": [({**PAIR, "id": 1, "label": 1}, pick(["no", "yes"], 1, **PAIR))],
    "stsb": [
        ({**PAIR, "label": 3.8}, pick(list("012345"), 4, **PAIR)),
        ({**PAIR, "score": "0.4"}, pick(list("012345"), 0, **PAIR)),
    ],
    "wic": [({**PAIR, "word": "sit", "label": True}, pick(["no", "yes"], 1, word="sit", **PAIR))],
    "imdb_reviews": [({"text": "Fine.<br />Very.", "label": 1}, pick(FEELINGS, 1, text="Fine.\nVery."))],
    "sentiment140": [
        ({"polarity": 4, "text": "yay", "date": "d", "query": "q", "user": "u"}, pick(FEELINGS, 1, text="yay")),
        ({"sentiment": 0, "text": "boo"}, pick(FEELINGS, 0, text="boo")),
    ],
    "yelp_polarity_reviews": [
        ({"text": 'A \\""bar\\"".\\nGood.', "label": 1}, pick(FEELINGS, 1, text='A "bar".\nGood.')),
        ({"label": "1", "text": "Bad."}, pick(FEELINGS, 0, text="Bad.")),
    ],
    "sst2": [({"sentence": "fine", "label": 1, "idx": 0}, pick(FEELINGS, 1, text="fine"))],
    "ag_news_subset": [
        ({"title": "Goal", "description": "They won.", "label": 1}, pick(TOPICS, 1, text="Goal\nThey won.")),
        ({"text": "Goal They won.", "label": 1}, pick(TOPICS, 1, text="Goal They won.")),
        ({"class": "4", "title": "Chip", "description": "New."}, pick(TOPICS, 3, text="Chip\nNew.")),
    ],
    "cola": [({"sentence": "Cats sleeps.", "label": 0}, pick(["unacceptable", "acceptable"], 0, text="Cats sleeps."))],
    "trec": [
        ({"text": "Who is it?", "label-coarse": 3, "label-fine": 2}, pick(KINDS, 3, question="Who is it?")),
        ({"text": "What is it?", "coarse_label": 0, "fine_label": 2}, pick(KINDS, 2, question="What is it?")),
        ({"text": "When?", "coarse_label": 5}, pick(KINDS, 4, question="When?")),
    ],
    "bool_q": [
        (
            {"question": "is it", "passage": "It is.", "title": "It", "answer": True},
            pick(["no", "yes"], 1, context="It is.", question="is it"),
        ),
        (
            {"question": "is it", "passage": "No.", "label": False},
            pick(["no", "yes"], 0, context="No.", question="is it"),
        ),
    ],
    "multirc": [
        (
            {"paragraph": "Ada ran.", "question": "Who ran?", "answer": "Ada", "label": 1, "idx": {}},
            pick(["no", "yes"], 1, context="Ada ran.", question="Who ran? Is it right to answer: Ada?"),
        )
    ],
    "openbookqa": [
        (
            {
                "question": {
                    "stem": "Cold?",
                    **{f"choice_{k}": v for k, v in zip("ABCD", QUAIL[0]["text"], strict=True)},
                },
                "answerKey": 0,
                "fact1": "f",
            },
            pick(QUAIL[0]["text"], 0, question="Cold?"),
        ),
        (
            {"id": "1", "question_stem": "Cold?", "choices": QUAIL[0], "answerKey": "D"},
            pick(QUAIL[0]["text"], 3, question="Cold?"),
        ),
    ],
    "arc_easy": [
        ({"question": "Cold?", "choices": QUAIL[1], "answerKey": 0}, pick(QUAIL[0]["text"], 0, question="Cold?")),
        ({"question": "Cold?", "choices": QUAIL[0], "answerKey": "B"}, pick(QUAIL[0]["text"], 1, question="Cold?")),
        ({"question": "Cold?", "choices": {"text": ["a", "b", "c"], "label": [0, 1, 2]}, "answerKey": 0}, None),
    ],
    "unified_qa_science_inst": [
        ({"input": SCHOOL, "output": "air"}, pick(QUAIL[0]["text"], 2, question="Which is cold?")),
        ({"input": "Cold? (A) ice (B) fire (C) air", "output": "ice"}, None),
    ],
    "cosmos_qa": [
        (
            {"context": "c", "question": "q", "label": 3, **{f"answer{i}": f"a{i}" for i in range(4)}},
            pick(["a0", "a1", "a2", "a3"], 3, context="c", question="q"),
        )
    ],
    "record": [
        (
            {
                "passage": "Ada met Bo.\n@highlight\nBo won",
                "query": "@placeholder was glad",
                "entities": ["Ada", "Bo"],
                "answers": ["Bo"],
            },
            {
                **{"context": "Ada met Bo.", "query": "_ was glad", "options": ["Ada", "Bo"]},
                **{"answer": "Bo", "answers": ["Bo"]},
            },
        )
    ],
    "copa": [
        (
            {"premise": "It broke.", "choice1": "It fell.", "choice2": "It hung.", "question": "cause", "label": 0},
            pick(["It fell.", "It hung."], 0, premise="It broke.", question="cause"),
        )
    ],
    "hellaswag": [
        (
            {"context": "[header] Eat [step] Tom sat. He", "endings": ["ate.", "flew.", "rang.", "fell."], "label": 0},
            pick(["ate.", "flew.", "rang.", "fell."], 0, context="Eat Tom sat. He"),
        ),
        (
            {"ctx": "Tom sat. He", "endings": ["ate.", "flew."], "label": "1"},
            pick(["ate.", "flew."], 1, context="Tom sat. He"),
        ),
        ({"ctx": "Tom sat. He", "endings": ["ate.", "flew."], "label": ""}, None),
    ],
    "story_cloze": [
        ({"context": STORY, "endings": ENDS, "label": 1}, pick(ENDS, 0, context=STORY)),
        (
            {
                **{f"input_sentence_{i}": SENTENCES[i - 1] for i in range(1, 5)},
                **{"sentence_quiz1": ENDS[0], "sentence_quiz2": ENDS[1], "answer_right_ending": 2},
            },
            pick(ENDS, 1, context=STORY),
        ),
        (
            {
                **{f"InputSentence{i}": SENTENCES[i - 1] for i in range(1, 5)},
                **{"RandomFifthSentenceQuiz1": ENDS[0], "RandomFifthSentenceQuiz2": ENDS[1], "AnswerRightEnding": "1"},
            },
            pick(ENDS, 0, context=STORY),
        ),
    ],
    "piqa": [
        ({"goal": "dry", "sol1": "sun", "sol2": "rain", "label": 0}, pick(["sun", "rain"], 0, goal="dry")),
        ({"goal": "dry", "sol1": "sun", "sol2": "rain", "label": -1}, None),
    ],
    "definite_pronoun_resolution": [
        (
            {"sentence": "A hit B; he ran.", "pronoun": "he", "candidates": ["A", "B"], "label": 1},
            pick(["A", "B"], 1, text="A hit B; he ran.", pronoun="he"),
        )
    ],
    "winogrande": [
        ({"sentence": "_ ran.", "option1": "A", "option2": "B", "label": 1}, pick(["A", "B"], 1, text="_ ran.")),
        ({"sentence": "_ ran.", "option1": "A", "option2": "B", "answer": "1"}, pick(["A", "B"], 0, text="_ ran.")),
        ({"sentence": "_ ran.", "option1": "A", "option2": "B", "answer": ""}, None),
    ],
    "wsc": [
        ({**SPAN, "label": 1}, pick(["no", "yes"], 1, context=MARKED, question="Does *he* mean Mark?")),
        (
            {"text": SPAN["text"], "target": {k: v for k, v in SPAN.items() if k != "text"}, "label": False},
            pick(["no", "yes"], 0, context=MARKED, question="Does *he* mean Mark?"),
        ),
    ],
    "aeslc": [({"email_body": "Hi.", "subject_line": "Greeting"}, said(document="Hi.", answer="Greeting"))],
    "cnn_dailymail": [
        ({"article": "Long.", "highlights": "Short.", "id": "1"}, said(document="Long.", answer="Short."))
    ],
    "gigaword": [
        ({"document": "long text", "summary": "short"}, {"document": "long text", "answer": "short"}),
        ({"document": "UNK text", "summary": "short"}, None),
        ({"document": "## text", "summary": "short"}, None),
    ],
    "multi_news": [({"document": "Long.", "summary": "Short."}, said(document="Long.", answer="Short."))],
    "newsroom": [({"text": "Long.", "title": "T", "summary": "Short."}, said(document="Long.", answer="Short."))],
    "samsum": [
        ({"id": "1", "dialogue": "A: hi\r\nB: yo", "summary": "s"}, {"document": "A: hi\nB: yo", "answer": "s"}),
        ({"id": "1", "dialogue": "", "summary": "s"}, None),
    ],
    "xsum": [({"document": "Long.", "summary": "Short.", "id": "1"}, said(document="Long.", answer="Short."))],
    "opinion_abstracts_rotten_tomatoes": [
        (
            {
                "_movie_name": "M",
                "_critics": {"key": ["1", "2"], "value": ["Good.", "Bad."]},
                "_critic_consensus": "So.",
            },
            {"document": "Good.\nBad.", "answer": "So."},
        )
    ],
    "opinion_abstracts_idebate": [
        (
            {"_debate_name": "D", "_argument_sentences": {"key": ["1"], "value": ["Because."]}, "_claim": "Ban it."},
            {"document": "Because.", "answer": "Ban it."},
        )
    ],
    "wiki_lingua_english_en": [
        ({"source": "Long.", "target": "Short.", "references": []}, said(document="Long.", answer="Short."))
    ],
    "common_gen": [
        ({**GEM, "concepts": ["Ada", "Rome"]}, {"concepts": "Ada, Rome", **GEM_ANSWERS}),
        ({"concepts": ["a", "b"], "target": "a b."}, said(concepts="a, b", answer="a b.")),
    ],
    "dart": [
        ({**GEM, "tripleset": ["Ada | home | Rome"]}, {"data": "Ada | home | Rome", **GEM_ANSWERS}),
        ({**GEM, "tripleset": [["Ada", "home", "Rome"]]}, {"data": "Ada | home | Rome", **GEM_ANSWERS}),
    ],
    "e2e_nlg": [({**GEM, "meaning_representation": "name[Ada]"}, {"data": "name[Ada]", **GEM_ANSWERS})],
    "web_nlg_en": [({**GEM, "input": ["Ada | a | b", "c"]}, {"data": "Ada | a | b\nc", **GEM_ANSWERS})],
    "squad_v1": [
        (
            {"context": "c", "question": "q", "title": "t", "answers": {"text": ["x", "y"], "answer_start": [1, 2]}},
            {"context": "c", "question": "q", "answer": "x", "answers": ["x", "y"]},
        )
    ],
    "squad_v2": [
        (
            {"context": "c", "question": "q", "is_impossible": True, "answers": {"text": [], "answer_start": []}},
            said(context="c", question="q", answer="unanswerable"),
        )
    ],
    "drop": [
        (
            {"passage": "p", "question": "q", "answer": "3", "query_id": "1"},
            said(context="p", question="q", answer="3"),
        ),
        (
            {"passage": "p", "question": "q", "answers_spans": {"spans": ["a", "b"], "types": ["span", "span"]}},
            said(context="p", question="q", answer="a, b"),
        ),
    ],
    "quac": [
        (
            {"context": "c CANNOTANSWER", "question": "q", "orig_answer": {"text": "x", "answer_start": 1}},
            said(context="c", history=[], question="q", answer="x"),
        ),
        (
            {"context": "c", "history": ["p", "o"], "question": "q", "orig_answer": {"text": "CANNOTANSWER"}},
            said(context="c", history=["p", "o"], question="q", answer="unanswerable"),
        ),
    ],
    "coqa": [
        (
            {"story": "s", "questions": ["q"], "answers": {"input_text": ["a"], "answer_start": [0]}},
            said(context="s", history=[], question="q", answer="a"),
        )
    ],
    "natural_questions": [
        ({"question": "who", "answer": ["Ada", "Bo"]}, {"question": "who?", "answer": "Ada", "answers": ["Ada", "Bo"]})
    ],
    "trivia_qa": [
        (
            {"question": "Who?", "answer": {"value": "Ada", "aliases": ["A. Lovelace", "Ada"]}},
            {"question": "Who?", "answer": "Ada", "answers": ["Ada", "A. Lovelace"]},
        ),
        ({"question": "Who?", "answer": {"value": "<unk>", "aliases": []}}, None),
    ],
    "math_dataset": [
        ({"question": "Solve 2*x = 4 for x.", "answer": "2"}, {"question": "Solve 2*x = 4 for x.", "answer": "2"}),
        (
            {"question": "b'Solve 2*x = 4 for x.\\n'", "answer": "b'2\\n'"},
            {"question": "Solve 2*x = 4 for x.", "answer": "2"},
        ),
    ],
    "lambada": [
        ({"passage": "He came home"}, {"context": "He came", "answer": "home"}),
        ({"text": "He came home", "domain": "x"}, {"context": "He came", "answer": "home"}),
    ],
    "para_crawl_enes": [
        (
            {"en": "Yes", "es": "Sí"},
            {"source": "Yes", "source_language": "English", "target_language": "Spanish", "answer": "Sí"},
        )
    ],
    "wmt14_enfr": [
        (
            {"translation": {"en": "Yes", "fr": "Oui"}},
            {"source": "Yes", "source_language": "English", "target_language": "French", "answer": "Oui"},
        )
    ],
    **{
        f"wmt16_translate_{code}en": [
            (
                {"en": "Yes", code: "X"},
                {"source": "Yes", "source_language": "English", "target_language": language, "answer": "X"},
            )
        ]
        for code, language in {
            **{"de": "German", "tr": "Turkish", "cs": "Czech"},
            **{"fi": "Finnish", "ro": "Romanian", "ru": "Russian"},
        }.items()
    },
    "true_case": [
        ({"en": "Rome is big.", "da": "x"}, {"text": "rome is big.", "answer": "Rome is big."}),
        ({"en": "so it is", "da": "x"}, None),
    ],
    "fix_punct": [
        ({"translation": {"en": "So, it is.", "da": "x"}}, {"text": "So it is", "answer": "So, it is."}),
        ({"en": "so it is", "da": "x"}, None),
    ],
    "word_segment": [({"en": "So it is.", "da": "x"}, {"text": "Soitis.", "answer": "So it is."})],
}
SAME = {"anli_r2": "anli_r1", "anli_r3": "anli_r1", "mnli_mismatched": "mnli_matched", "arc_challenge": "arc_easy"}
ROWS |= {name: ROWS[other] for name, other in SAME.items()}
CASES = [(name, row, wanted) for name, cases in ROWS.items() for row, wanted in cases]


def test_every_dataset_has_a_row_here_and_its_published_counts() -> None:
    assert set(ROWS) == set(DATASETS) == set(FLAN_COUNTS)
    assert len(DATASETS) == 71
    assert all(any(wanted is not None for _, wanted in cases) for cases in ROWS.values())


@pytest.mark.parametrize(("name", "row", "wanted"), CASES, ids=[name for name, _, _ in CASES])
def test_published_rows_become_instances_that_every_arm_can_show(
    name: str, row: dict[str, Any], wanted: dict[str, Any] | None
) -> None:
    dataset, before = DATASETS[name], copy.deepcopy(row)
    assert dataset.instance(row, "file:1") == wanted
    assert row == before
    if wanted is None:
        return
    type = task_type(dataset.type)
    assert type.has_options == ("options" in wanted)
    assert set(type.fields) <= set(wanted)
    shown = arm_tasks(name, dataclasses.replace(dataset, instance=_Shown(wanted)), {"train": _Rows([{}, {"other": 1}])})
    assert [task.name for task in shown] == [f"{name}_{arm}" for arm in ARMS]
    for task in shown:
        text = task.text({}, 0, "file:1", split="train", seed=0, tokenizer=ByteTokens())
        assert text is not None
        assert text.targets
        assert ("Once more." in text.inputs) == (not task.render.arm.zero_shot)


def test_flan_s_own_wording_shows_the_instances_that_it_fits(test_data: Path) -> None:
    copies = test_data / "flan"
    published = Published(
        templates=str(copies / "v2_templates.json"), branched=str(copies / "v2_templates_branched.json")
    )
    unfit = set()
    for name, row, wanted in CASES:
        if wanted is None:
            continue
        dataset = dataclasses.replace(DATASETS[name], instance=_Shown(wanted))
        for task in arm_tasks(name, dataset, {"train": _Rows([{}, {"other": 1}])}, published=published):
            text = task.text(row and {}, 0, "file:1", split="train", seed=0, tokenizer=ByteTokens())
            assert text is not None
            assert text.targets
            render = task.render
            if published.type(render.key, render.type) is render.type:
                unfit.add(name)
    assert unfit == {"wsc", "multirc", "winogrande", "record", "coqa", "quac", "newsroom", "openbookqa", "qnli"}


class _Shown:
    """An instance; and, for another row, one that asks something else."""

    def __init__(self, instance: dict[str, Any]) -> None:
        self.instance = instance

    def __call__(self, row: Any, place: str) -> dict[str, Any]:
        if not row:
            return self.instance
        return {
            name: f"{value} Once more." if isinstance(value, str) and name != "answer" else value
            for name, value in self.instance.items()
        } | {"answer": f"{self.instance['answer']} Once more."}


class _Rows:
    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __call__(self, seed: int) -> Any:
        return (("file:2", row) for row in self.rows)


def test_unlabelled_options_and_wrong_labels_are_told_apart() -> None:
    cola = DATASETS["cola"].instance
    assert cola({"sentence": "s", "label": -1}, "f:1") is None
    with pytest.raises(BadRow, match="f:7: field 'label' must be one of unacceptable, acceptable, or its number"):
        cola({"sentence": "s", "label": 2}, "f:7")
    with pytest.raises(BadRow, match="f:8: field 'title' is missing"):
        DATASETS["ag_news_subset"].instance({"class": "1"}, "f:8")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)


@given(data=st.data(), case=st.sampled_from(CASES), junk=JSON)
def test_a_damaged_row_gives_text_or_an_error_with_its_place(data: st.DataObject, case: Any, junk: Any) -> None:
    name, row, _ = case
    row = json.loads(json.dumps(row))
    holder, key = data.draw(st.sampled_from(list(_places(row))))
    if data.draw(st.booleans()):
        holder[key] = junk
    else:
        del holder[key]
    dataset = DATASETS[name]
    tasks = arm_tasks(name, dataset, {"train": _Rows([])}, settings=arm_settings("release"))
    try:
        text, message = tasks[0].text(row, 0, "file:5", split="train", seed=1, tokenizer=ByteTokens()), ""
    except BadRow as error:
        text, message = None, str(error)
    assert message.startswith("file:5: ") or not message
    assert text is None or isinstance(text, Text)


def _places(value: Any) -> Any:
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])
