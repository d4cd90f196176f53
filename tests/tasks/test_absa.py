"""SemEval's XML of both schemas, ASQP's lines and the JSON of triplets give the same opinions, for six tasks."""

import json

import pytest
from flanjax.tasks.absa import family, read_sentences, split_of

from flanjax.data.rendering import rows_of, texts_of
from flanjax.data.sources import BadRow, bad_row_policy

SEMEVAL_2014 = """<?xml version="1.0" encoding="UTF-8" standalone="yes"?>
<sentences>
    <sentence id="813">
        <text>All the appetizers &amp; salads were fabulous, the waiters not.</text>
        <aspectTerms>
            <aspectTerm term="appetizers" polarity="positive" from="8" to="18"/>
            <aspectTerm term="salads" polarity="positive" from="21" to="27"/>
            <aspectTerm term="waiters" polarity="negative" from="47" to="54"/>
        </aspectTerms>
        <aspectCategories>
            <aspectCategory category="food" polarity="positive"/>
        </aspectCategories>
    </sentence>
    <sentence id="814">
        <text>We came at nine.</text>
    </sentence>
</sentences>
"""
SEMEVAL_2016 = """<?xml version="1.0" encoding="UTF-8" standalone="yes"?>
<Reviews>
    <Review rid="1004293">
        <sentences>
            <sentence id="1004293:0">
                <text>Judging from previous posts this used to be a good place.</text>
                <Opinions>
                    <Opinion target="place" category="RESTAURANT#GENERAL" polarity="negative" from="51" to="56"/>
                    <Opinion target="NULL" category="SERVICE#GENERAL" polarity="positive" from="0" to="0"/>
                </Opinions>
            </sentence>
            <sentence id="1004293:1" OutOfScope="TRUE"><text>Never mind.</text></sentence>
        </sentences>
    </Review>
</Reviews>
"""
QUADRUPLETS = (
    "Great food .####[['food', 'food quality', 'positive', 'Great']]\n\n"
    "Slow .####[['NULL', 'service general', 'negative', 'Slow']]\n"
)
TRIPLETS = [
    {
        "raw_words": "good battery life .",
        "words": ["good", "battery", "life", "."],
        "aspects": [{"index": 0, "from": 1, "to": 3, "polarity": "POS", "term": ["battery", "life"]}],
        "opinions": [{"index": 0, "from": 0, "to": 1, "term": ["good"]}],
    }
]


@pytest.fixture
def write(tmp_path):
    def written(**files):
        for name, content in files.items():
            stem, ending = name.rsplit("_", 1)
            (tmp_path / f"{stem}.{ending}").write_text(content if isinstance(content, str) else json.dumps(content))
        return str(tmp_path)

    return written


def texts(folder, name, split="train"):
    (task,) = [task for task in family(folder).tasks if task.name == f"absa_{name}"]
    return [text for _, text in texts_of(task, split, rows_of(task, split, seed=0), seed=0, tokenizer=None)]


def answers(folder, name, split="train"):
    return [text.targets for text in texts(folder, name, split)]


def opinion(aspect="", category="", sentiment="", words=""):
    return {"aspect": aspect, "category": category, "sentiment": sentiment, "opinion": words}


def test_the_opinions_of_each_published_schema(write):
    folder = write(a_train_xml=SEMEVAL_2014, b_train_xml=SEMEVAL_2016, c_train_txt=QUADRUPLETS, d_train_json=TRIPLETS)
    found = list(read_sentences(folder, split="train"))
    assert [place.removeprefix(folder + "/") for place, _ in found] == [
        *("a_train.xml:13", "a_train.xml:16", "b_train.xml:11", "b_train.xml:12"),
        *("c_train.txt:1", "c_train.txt:3", "d_train.json:1"),
    ]
    assert [row["id"] for _, row in found] == ["813", "814", "1004293:0", "1004293:1", "", "", ""]
    assert found[0][1]["text"] == "All the appetizers & salads were fabulous, the waiters not."
    assert [row["opinions"] for _, row in found] == [
        [
            opinion("appetizers", sentiment="positive"),
            opinion("salads", sentiment="positive"),
            opinion("waiters", sentiment="negative"),
            opinion(category="food", sentiment="positive"),
        ],
        [],
        [opinion("place", "RESTAURANT#GENERAL", "negative"), opinion("NULL", "SERVICE#GENERAL", "positive")],
        [],
        [opinion("food", "food quality", "positive", "Great")],
        [opinion("NULL", "service general", "negative", "Slow")],
        [opinion("battery life", "", "positive", "good")],
    ]
    assert all(json.loads(json.dumps(row)) == row for _, row in found)


def test_the_answers_of_each_task(write):
    folder = write(a_train_xml=SEMEVAL_2014, b_train_xml=SEMEVAL_2016, c_train_txt=QUADRUPLETS, d_train_json=TRIPLETS)
    pairs = "appetizers, positive; salads, positive; waiters, negative"
    assert answers(folder, "ae") == [
        *("appetizers; salads; waiters", "none", "place", "none", "food", "none", "battery life"),
    ]
    assert answers(folder, "alsc") == ["positive", "positive", "negative", "negative", "positive", "positive"]
    assert answers(folder, "aesc") == [pairs, "place, negative", "food, positive", "battery life, positive"]
    assert answers(folder, "tasd") == [
        "place, RESTAURANT#GENERAL, negative; NULL, SERVICE#GENERAL, positive",
        "food, food quality, positive",
        "NULL, service general, negative",
    ]
    assert answers(folder, "aste") == ["food, Great, positive", "battery life, good, positive"]
    assert answers(folder, "asqp") == [
        "food, food quality, Great, positive",
        "NULL, service general, Slow, negative",
    ]


def test_rendered_examples(write):
    folder = write(train_txt=QUADRUPLETS)
    assert texts(folder, "aesc")[0].inputs == (
        "Which aspects does the sentence have an opinion on, and what sentiment is it? "
        'Answer with "aspect, sentiment", separated by "; ", or with "none".\nSentence: Great food .\nAnswer:'
    )
    assert texts(folder, "alsc")[0].inputs == (
        'What sentiment does the sentence express about "food"?\nSentence: Great food .\nAnswer:'
    )


def test_an_aspect_of_two_minds_has_no_one_sentiment(write):
    folder = write(train_txt="Food .####[['food', 'a', 'positive', 'x'], ['food', 'b', 'negative', 'y']]")
    assert answers(folder, "alsc") == []
    assert answers(folder, "aesc") == ["food, positive; food, negative"]


@pytest.mark.parametrize(
    ("file", "split"),
    [
        ("Restaurants_Train_v2.xml", "train"),
        ("ABSA16_Restaurants_Train_SB1_v2.xml", "train"),
        ("restaurants-trial.xml", "validation"),
        ("rest15/dev.txt", "validation"),
        ("EN_REST_SB1_TEST.xml.gold", "test"),
        ("Laptops_Test_Gold.xml", "test"),
        ("train_folder/test.txt", "test"),
        ("laptops.xml", "train"),
    ],
)
def test_the_name_of_a_file_says_its_split(file, split):
    assert split_of(f"/data/{file}") == split


def test_a_document_type_is_refused_before_anything_is_expanded(write):
    bomb = """<?xml version="1.0"?>
<!DOCTYPE sentences [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>
<sentences><sentence id="1"><text>&b;</text></sentence></sentences>"""
    folder = write(train_xml=bomb)
    with bad_row_policy("skip"), pytest.raises(BadRow, match=r"train\.xml: it declares the document type 'sentences'"):
        answers(folder, "ae")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train_xml": "<sentences>\n<sentence>"}, r"train\.xml:2: not XML"),
        ({"train_xml": "<sentences>\n<sentence id='7'/></sentences>"}, r"train\.xml:2: sentence '7' has no <text>"),
        (
            {"train_xml": "<s><sentence><text>a</text><Opinions><Opinion target='a'/></Opinions></sentence></s>"},
            r"train\.xml:1: field 'polarity' is missing",
        ),
        ({"train_txt": "\na b"}, r"train\.txt:2: not text####"),
        ({"train_txt": "a####[[1, 2]]"}, r"train\.txt:1: not text####"),
        ({"train_txt": "a####[['a', 'b', 'c', 1]]"}, r"train\.txt:1: field 'opinion' must be a string"),
        ({"train_txt": "a####__import__('os')"}, r"train\.txt:1: not text####"),
        ({"train_json": [{"raw_words": "a"}]}, r"train\.json:1: fields 'aspects' and 'opinions' are malformed"),
    ],
)
def test_what_is_malformed_is_named(write, files, message):
    with pytest.raises(BadRow, match=message):
        answers(write(**files), "ae")
