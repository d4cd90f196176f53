"""Aspect-based sentiment analysis by instruction, in the manner of Varia et al. 2022 (arXiv 2210.06629).

Five tasks of rising difficulty are made of the same sentences, and a text-to-text model is trained on them together:

    absa_ae      aspect terms                               "battery life; screen"
    absa_alsc    the sentiment of one aspect                "positive"
    absa_aesc    (aspect, sentiment) pairs                  "battery life, positive; screen, negative"
    absa_tasd    (aspect, category, sentiment) triplets     "battery life, BATTERY#QUALITY, positive"
    absa_aste    (aspect, opinion, sentiment) triplets      "battery life, great, positive"
    absa_asqp    quadruplets of all four

Read are the XML files of SemEval 2014 task 4 (aspectTerms, aspectCategories), 2015 task 12 and 2016 task 5 (Opinions);
lines "text####[['aspect', 'category', 'sentiment', 'opinion'], ...]" (ASQP, Zhang et al. 2021, .txt); and JSON
{"raw_words", "aspects": [{"index", "term", "polarity"}], "opinions": [{"index", "term"}]} (Yan et al. 2021). A sentence
is used for the tasks of which it has all elements. A file is of the split that its name says: train, dev or trial, test
or gold. Mixture: `absa`.
"""

import ast
import functools
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from flanjax.tasks.scoring import exact_match

from flanjax.data.records import format_of, read_lines, read_records, record_files
from flanjax.data.sources import BadRow, excerpt, report_bad_row, text_field
from flanjax.data.tasks import Context, Dataset, Family, Row, Text, TextTask, dataset_folder

# Elements of an opinion that each task asks for, and its question.
TASKS = {
    "ae": (("aspect",), "Which aspects does the sentence have an opinion on?"),
    "aesc": (("aspect", "sentiment"), "Which aspects does the sentence have an opinion on, and what sentiment is it?"),
    "tasd": (
        ("aspect", "category", "sentiment"),
        "Which aspects does the sentence have an opinion on, of what category are they, and what sentiment is it?",
    ),
    "aste": (
        ("aspect", "opinion", "sentiment"),
        "Which aspects does the sentence have an opinion on, in which words, and what sentiment is it?",
    ),
    "asqp": (
        ("aspect", "category", "opinion", "sentiment"),
        "Which aspects does the sentence have an opinion on, of what category are they, in which words is it, "
        "and what sentiment is it?",
    ),
}
IMPLIED = "NULL"  # an aspect that no words of the sentence name
SENTIMENTS = {"POS": "positive", "NEG": "negative", "NEU": "neutral"}
SPLITS = {
    "train": "train",
    "dev": "validation",
    "trial": "validation",
    "valid": "validation",
    "test": "test",
    "gold": "test",
}
FORMATS = (".xml", ".gold", ".txt", ".json", ".jsonl")  # SemEval names a test file with answers x.xml.gold

DATASETS = (
    Dataset(
        name="absa",
        title="SemEval 2014 to 2016 aspect-based sentiment analysis, as instructions",
        paper="Varia et al. 2022, arXiv 2210.06629, on Pontiki et al. 2014, 2015, 2016",
        licence="META-SHARE licences: research only, no redistribution (as far as known)",
        page="https://alt.qcri.org/semeval2016/task5 (registration)",
        size="3,041 and 3,045 training sentences on restaurants and laptops (2014)",
        tested_on="hand-made file of the published schema",
    ),
)


def family(data_dir: str = "") -> Family:
    """The six tasks and their mixture.

    Args:
        data_dir: a folder of files of the three formats, or the address of one.
    """
    folder = dataset_folder("absa", data_dir)
    source = {split: functools.partial(read_sentences, folder, split=split) for split in dict.fromkeys(SPLITS.values())}
    aspects = {split: functools.partial(read_aspects, folder, split=split) for split in source}
    tasks = [
        TextTask(name=f"absa_{name}", source=source, render=Extraction(elements=elements, question=question))
        for name, (elements, question) in TASKS.items()
    ]
    tasks.insert(1, TextTask(name="absa_alsc", source=aspects, render=aspect_sentiment, metric_fns=(exact_match,)))
    return Family(tasks=tasks, mixtures={"absa": {task.name: None for task in tasks}}, datasets=DATASETS)


def read_sentences(path: str, seed: int = 0, *, split: str) -> Iterator[tuple[str, Row]]:
    """(place, row) for each sentence: {"id", "text", "opinions": [{"aspect", "category", "sentiment", "opinion"}]}.

    An element that a format does not have is "" in it, and an aspect that is only implied is `IMPLIED`, as published.
    """
    del seed
    for file in record_files(path, FORMATS):
        if split_of(file) != split:
            continue
        reader = {".txt": _read_quadruplets, ".xml": _read_xml, ".gold": _read_xml}.get(format_of(file), _read_json)
        yield from reader(file)


def read_aspects(path: str, seed: int = 0, *, split: str) -> Iterator[tuple[str, Row]]:
    """(place, row) for each aspect of each sentence: {"id", "text", "aspect", "sentiment"}.

    An aspect that has several sentiments in its sentence has no one answer, and is left out.
    """
    for place, row in read_sentences(path, seed, split=split):
        sentiments: dict[str, set[str]] = {}
        for opinion in row["opinions"]:
            if opinion["aspect"] not in ("", IMPLIED):
                sentiments.setdefault(opinion["aspect"], set()).add(opinion["sentiment"])
        for aspect, found in sentiments.items():
            if len(found) == 1:
                yield place, {"id": row["id"], "text": row["text"], "aspect": aspect, "sentiment": found.pop()}


def split_of(file: str) -> str:
    """The split that the name of a file says; "train" where it says none."""
    name = PurePosixPath(file).name.lower()
    return next((split for word, split in SPLITS.items() if word in name), "train")


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """A render function: all opinions of a sentence, with some of their elements.

    Attributes:
        elements: of an opinion, in the order of the answer.
        question: what is asked.
    """

    elements: tuple[str, ...]
    question: str

    def __call__(self, row: Row, context: Context) -> Text | None:
        """The text of a row; None where an opinion lacks an element, or where there is none and more is asked for."""
        opinions = [opinion for opinion in _opinions(row, context.place) if opinion["aspect"]]
        if "category" not in self.elements:  # without it nothing tells what is implied
            opinions = [opinion for opinion in opinions if opinion["aspect"] != IMPLIED]
        if any(not opinion[element] for opinion in opinions for element in self.elements):
            return None
        if not opinions and self.elements != ("aspect",):
            return None
        answers = (", ".join(opinion[element] for element in self.elements) for opinion in opinions)
        format_line = f'Answer with "{", ".join(self.elements)}", separated by "; ", or with "none".'
        sentence = text_field(row, "text", context.place).strip()
        inputs = f"{self.question} {format_line}\nSentence: {sentence}\nAnswer:"
        return Text(inputs=inputs, targets="; ".join(dict.fromkeys(answers)) or "none", id=str(row.get("id", "")))


def aspect_sentiment(row: Row, context: Context) -> Text:
    """The text of one aspect: its sentence in, its sentiment out."""
    sentence, aspect, sentiment = (text_field(row, name, context.place) for name in ("text", "aspect", "sentiment"))
    question = f'What sentiment does the sentence express about "{aspect}"?'
    return Text(
        inputs=f"{question}\nSentence: {sentence.strip()}\nAnswer:", targets=sentiment, id=str(row.get("id", ""))
    )


def _opinions(row: Row, place: str) -> list[Mapping[str, str]]:
    found = row.get("opinions")
    if not isinstance(found, list) or not all(isinstance(opinion, dict) for opinion in found):
        raise BadRow(f"{place}: field 'opinions' must be a list of objects: {excerpt(row)}")
    names = ("aspect", "category", "opinion", "sentiment")
    return [{name: text_field({name: "", **opinion}, name, place) for name in names} for opinion in found]


def _read_quadruplets(file: str) -> Iterator[tuple[str, Row]]:
    for number, line in read_lines(file):
        place = f"{file}:{number}"
        if not line.strip():
            continue
        try:
            text, mark, written = line.decode().strip().partition("####")
            found = ast.literal_eval(written)
            names = ("aspect", "category", "sentiment", "opinion")
            if not isinstance(found, list) or not all(isinstance(quadruplet, list | tuple) for quadruplet in found):
                raise ValueError(f"a list of lists is expected after {mark!r}")
            listed = [dict(zip(names, quadruplet, strict=True)) for quadruplet in found]
            row = {"id": "", "text": text, "opinions": _opinions({"opinions": listed}, place)}
        except BadRow as error:
            report_bad_row(error)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
            shown = excerpt(line.decode(errors="replace"))
            report_bad_row(
                BadRow(f"{place}: not text####[[aspect, category, sentiment, opinion], ...]: {error}: {shown}")
            )
        else:
            yield place, row


def _read_json(file: str) -> Iterator[tuple[str, Row]]:
    for place, record in read_records(file):
        try:
            text = text_field(record, "raw_words", place)
            words = {opinion["index"]: _term(opinion, place) for opinion in record.get("opinions") or []}
            opinions = [
                {
                    "aspect": _term(aspect, place),
                    "category": "",
                    "sentiment": _sentiment(text_field(aspect, "polarity", place)),
                    "opinion": words.get(aspect["index"], ""),
                }
                for aspect in record["aspects"]
            ]
        except BadRow as error:
            report_bad_row(error)
        except (KeyError, TypeError) as error:
            shown = f"{type(error).__name__}: {error}: {excerpt(record)}"
            report_bad_row(BadRow(f"{place}: fields 'aspects' and 'opinions' are malformed: {shown}"))
        else:
            yield place, {"id": "", "text": text, "opinions": opinions}


def _term(item: Mapping[str, Any], place: str) -> str:
    """The words of an aspect or an opinion, which may come as a list."""
    term = item["term"]
    return text_field({"term": " ".join(term) if isinstance(term, list) else term}, "term", place)


def _sentiment(polarity: str) -> str:
    return SENTIMENTS.get(polarity, polarity)


def _read_xml(file: str) -> Iterator[tuple[str, Row]]:
    """The sentences of a SemEval file; a place is the line on which a sentence ends."""
    target = _Sentences(file)
    parser = ElementTree.XMLParser(target=target)
    number = 1
    try:
        for number, line in read_lines(file):
            parser.feed(line)
            for sentence in target.taken():
                try:
                    yield f"{file}:{number}", _xml_row(sentence, f"{file}:{number}")
                except BadRow as error:
                    report_bad_row(error)
        parser.close()
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        report_bad_row(BadRow(f"{file}:{number}: not XML: {error}"), always=True)


class _Sentences:
    """Collects the <sentence> elements of an XML file, one after the other, and refuses a document type.

    A document type may define entities that grow to any size when they are expanded; no published file has one.
    """

    def __init__(self, file: str) -> None:
        self._file = file
        self._builder: ElementTree.TreeBuilder | None = None
        self._made: list[ElementTree.Element] = []

    def taken(self) -> list[ElementTree.Element]:
        """The sentences that have ended since the last call."""
        made, self._made = self._made, []
        return made

    def doctype(self, name: str, public: str | None, system: str | None) -> None:
        """Called by the parser for <!DOCTYPE>, before what it defines."""
        report_bad_row(BadRow(f"{self._file}: it declares the document type {name!r}, which is refused"), always=True)

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        """Called for a start tag."""
        if tag == "sentence":
            self._builder = ElementTree.TreeBuilder()
        if self._builder is not None:
            self._builder.start(tag, attributes)

    def data(self, text: str) -> None:
        """Called for text."""
        if self._builder is not None:
            self._builder.data(text)

    def end(self, tag: str) -> None:
        """Called for an end tag."""
        if self._builder is not None:
            self._builder.end(tag)
            if tag == "sentence":
                self._made.append(self._builder.close())
                self._builder = None

    def close(self) -> None:
        """Called at the end of the file."""


def _xml_row(sentence: ElementTree.Element, place: str) -> Row:
    text = sentence.findtext("text")
    if text is None:
        raise BadRow(f"{place}: sentence {sentence.get('id')!r} has no <text>")
    opinions = []
    for tag, aspect in (("aspectTerms/aspectTerm", "term"), ("Opinions/Opinion", "target")):
        for element in sentence.iterfind(tag):
            found = {name: text_field(element.attrib, name, place) for name in (aspect, "polarity")}
            category = element.get("category", "")
            opinions.append({"aspect": found[aspect], "category": category, "sentiment": found["polarity"]})
    for element in sentence.iterfind("aspectCategories/aspectCategory"):
        found = {name: text_field(element.attrib, name, place) for name in ("category", "polarity")}
        opinions.append({"aspect": "", "category": found["category"], "sentiment": found["polarity"]})
    opinions = [{"opinion": "", **opinion} for opinion in opinions]
    return {"id": sentence.get("id", ""), "text": text, "opinions": opinions}
