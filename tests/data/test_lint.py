"""Every planted defect is found at its place, a clean set has none, and no row whatever makes the linter stop."""

import functools
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flanjax.data.draws import Draw
from flanjax.data.lint import KINDS, Finding, LintReport, lint
from flanjax.data.ngrams import EvaluationIndex, evaluation_texts
from flanjax.data.records import read_records
from flanjax.data.sources import BadRow, text_field
from flanjax.data.tasks import Context, Row, Text, TextTask
from flanjax.data.vocabularies import Vocabulary

NOUNS = [
    "river",
    "garden",
    "letter",
    "window",
    "market",
    "teacher",
    "painter",
    "village",
    "engine",
    "forest",
    "castle",
    "doctor",
]
VERBS = [
    "visits",
    "paints",
    "repairs",
    "describes",
    "follows",
    "discovers",
    "measures",
    "protects",
    "remembers",
    "explains",
]
PLACES = ["quietly", "together", "tomorrow", "carefully", "without", "help", "during", "winter", "before", "dinner"]


@pytest.fixture(scope="module")
def t5(t5_spiece: Path) -> Vocabulary:
    return Vocabulary.from_file(t5_spiece)


def sentence(number: int, words: int = 14) -> str:
    """A sentence that no other number has."""
    draw = Draw("sentence", number)
    chosen = [draw.choice((NOUNS, VERBS, PLACES)[place % 3]) for place in range(words)]
    return f"The {' '.join(chosen)}."


def clean(count: int) -> list[tuple[Any, Any]]:
    return [(f"Repeat what comes next: {sentence(2 * n)}", sentence(2 * n + 1)) for n in range(count)]


def pairs_of(seed: int, *, pairs: tuple[tuple[Any, Any], ...]) -> Iterator[tuple[str, Row]]:
    del seed
    for number, (inputs, targets) in enumerate(pairs, 1):
        yield f"made_up.jsonl:{number}", {"inputs": inputs, "targets": targets}


def render(row: Row, context: Context) -> Text:
    return Text(inputs=text_field(row, "inputs", context.place), targets=text_field(row, "targets", context.place))


def made_up(pairs: Sequence[tuple[Any, Any]], name: str = "made_up") -> TextTask:
    return TextTask(name=name, source={"train": functools.partial(pairs_of, pairs=tuple(pairs))}, render=render)


def looked(vocabulary: Vocabulary, pairs: Sequence[tuple[Any, Any]], **options: Any) -> LintReport:
    return lint([made_up(pairs)], "train", vocabulary=vocabulary, **options)


def only(report: LintReport) -> Finding:
    (finding,) = report.findings
    assert finding.kind in KINDS
    assert report.counts == {finding.kind: {"made_up": 1}}
    return finding


def test_a_clean_set_has_no_findings(t5: Vocabulary) -> None:
    report = looked(t5, clean(400), evaluation=EvaluationIndex([("exam:1", sentence(-1, 40))]))
    assert (report.examples, report.counts, report.findings, report.lost_characters) == (400, {}, (), {})
    assert (report.evaluation_texts, report.evaluation_too_short) == (1, 0)


INPUTS, TARGETS = clean(1000)[999]
PLANTED = {
    "empty_targets": ((INPUTS, ""), "the targets are empty"),
    "tokenizer": ((INPUTS, "The <b> {x} <c>."), "the targets lose '<' (2), '{' (1), '}' (1)"),
    "whitespace": (("Repeat\nthis\tnow", TARGETS), "the inputs lose '\\n' (1), '\\t' (1)"),
    "copy": ((INPUTS, INPUTS[5:40]), "the targets are in the inputs word for word"),
    "bad_row": ((INPUTS, None), "field 'targets' must be a string, not NoneType: "),
}


@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_defect_is_found_where_it_is(t5: Vocabulary, kind: str) -> None:
    pair, message = PLANTED[kind]
    finding = only(looked(t5, [*clean(30), pair, *clean(60)[30:]]))
    assert (finding.kind, finding.task, finding.place) == (kind, "made_up", "made_up.jsonl:31")
    assert finding.message.startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("The cafÃ© is open.", "'Ã©', UTF-8 that was read as Latin-1"),
        ("It\u00e2\u20ac\u2122s open.", "UTF-8 that was read as Latin-1"),
        ("Привет.".encode().decode("cp1252"), "UTF-8 that was read as Latin-1"),
        ("It is \ufffdpen.", "U+FFFD, where a character was lost: 'It is \ufffdpen.'"),
        ("It is \x07open.", r"the control character '\x07'"),
    ],
)
def test_broken_encodings(t5: Vocabulary, text: str, message: str) -> None:
    report = looked(t5, [(INPUTS, text)])
    (finding,) = [finding for finding in report.findings if finding.kind == "encoding"]
    assert message in finding.message


def test_other_languages_are_not_broken(t5: Vocabulary) -> None:
    texts = [
        "Où êtes-vous, à «l'été»?",
        "«FIANCÉ»",
        "Größe, Ärger, Übung",
        "ÅSE og ÆRE",
        "Привет, мир",
        "São Paulo — não",
    ]
    report = looked(t5, [(INPUTS, text) for text in texts])
    assert "encoding" not in report.counts


def test_duplicates_in_one_task_and_in_two(t5: Vocabulary) -> None:
    pairs = clean(40)
    repeated = (pairs[3][0].upper(), f"  {pairs[3][1].replace(' ', '  ')}")
    report = lint([made_up([*pairs, repeated]), made_up([pairs[5]], "other")], "train", vocabulary=t5)
    found = [finding for finding in report.findings if finding.kind == "duplicate"]
    assert [(one.task, one.place, one.message) for one in found] == [
        ("made_up", "made_up.jsonl:41", "the same text as row 4 of made_up"),
        ("other", "made_up.jsonl:1", "the same text as row 6 of made_up"),
    ]
    assert "near_duplicate" not in report.counts


TEMPLATE = (
    "In this task you are given a sentence about people and things. Say it again in other words, keep its length. "
)


@pytest.mark.parametrize("place", [10, 290])
def test_near_duplicates_are_found_and_a_common_template_is_none(t5: Vocabulary, place: int) -> None:
    pairs = [(TEMPLATE + sentence(2 * n, 40), sentence(2 * n + 1)) for n in range(300)]
    changed = (pairs[7][0].replace("The ", "One ", 1), pairs[7][1])
    pairs.insert(place, changed)
    finding = only(looked(t5, pairs))
    assert (finding.kind, finding.place) == ("near_duplicate", f"made_up.jsonl:{place + 1}")
    assert finding.message == "nearly the same text as row 8 of made_up"
    assert looked(t5, pairs, near=False).findings == ()


def test_targets_that_end_in_a_word_among_ones_that_do_not(t5: Vocabulary) -> None:
    pairs = [*clean(40), (INPUTS, f"{sentence(-3)[:-1]} and then it was discov")]
    finding = only(looked(t5, pairs))
    assert (finding.kind, finding.place) == ("truncated", "made_up.jsonl:41")
    assert finding.message.startswith("the targets end in 'd then it was discov'")
    without = [(inputs, targets.rstrip(".")) for inputs, targets in clean(40)]
    assert looked(t5, without).counts == {}, "where none ends in punctuation, none is cut"
    listed = [*clean(40), (INPUTS, "These are some of the things that there are:\n- river\n- garden")]
    assert "truncated" not in looked(t5, listed).counts


@pytest.mark.parametrize(("unit", "cap"), [("characters", 200), ("words", 64), ("tokens with EOS", 128)])
def test_targets_that_reach_a_common_cap(t5: Vocabulary, unit: str, cap: int) -> None:
    def cut(text: str) -> str:
        if unit == "characters":
            return text[: cap - 1] + "."
        if unit == "words":
            return " ".join(text.split()[:cap]) + "."
        return t5.decode(t5.encode(text.replace(".", ""))[: cap - 2]) + "."

    capped = [(INPUTS + str(number), cut(sentence(-number, 150))) for number in range(1, 5)]
    report = looked(t5, [*clean(20), *capped])
    assert report.counts == {"truncated": {"made_up": 4}}
    assert report.findings[0].message == f"the targets have exactly {cap} {unit}, as 3 others; none has more"
    assert [finding.place for finding in report.findings] == [f"made_up.jsonl:{n}" for n in range(21, 25)]
    longer = (INPUTS, sentence(-9, 200))
    assert "truncated" not in looked(t5, [*clean(20), *capped, longer]).counts


def test_evaluation_texts_that_are_trained_on(t5: Vocabulary) -> None:
    question = sentence(-5, 30)
    hidden = f"Read on: {question.upper().replace(' ', ', ')} What follows?"
    index = EvaluationIndex([("exam:1", sentence(-6, 30)), ("exam:2", question), ("exam:3", "too short a text")])
    report = looked(t5, [*clean(5), (hidden, TARGETS)], evaluation=index)
    finding = only(report)
    assert (finding.kind, finding.place) == ("leak", "made_up.jsonl:6")
    assert finding.message.startswith("19 of its ")
    assert finding.message.endswith(" runs of words are in exam:2")
    assert (report.evaluation_texts, report.evaluation_too_short) == (3, 1)
    in_targets = only(looked(t5, [("Go on:", question)], evaluation=index))
    assert in_targets.kind == "leak"
    twelve = " ".join(question.split()[:12])
    assert looked(t5, [(twelve, TARGETS)], evaluation=index).counts == {}


def test_counts_are_whole_and_few_findings_are_kept(t5: Vocabulary) -> None:
    pairs = [*((inputs, "") for inputs, _ in clean(9)), *((INPUTS, number) for number in range(12))]
    report = lint(
        [made_up(pairs), made_up(clean(3), "fine"), made_up([("a", "")], "last")], "train", vocabulary=t5, shown=2
    )
    assert report.counts == {"bad_row": {"made_up": 12}, "empty_targets": {"made_up": 9, "last": 1}}
    assert [finding.kind for finding in report.findings] == ["empty_targets"] * 2 + ["bad_row"] * 2
    seen: list[int] = []
    other = lint([made_up(clean(3))], "validation", vocabulary=t5, progress=seen.append)
    assert (other.examples, seen) == (0, [])
    lint([made_up(clean(3))], "train", vocabulary=t5, progress=seen.append)
    assert seen == [1, 2, 3]


def test_a_file_that_cannot_be_read_is_an_error(t5: Vocabulary, tmp_path: Path) -> None:
    task = TextTask(
        name="gone", source={"train": functools.partial(records, file=str(tmp_path / "x.jsonl"))}, render=render
    )
    (tmp_path / "x.jsonl").write_bytes(b'{"inputs": "a", "targets": "b"}\n')
    assert lint([task], "train", vocabulary=t5).examples == 1
    (tmp_path / "x.jsonl").rename(tmp_path / "x.jsonl.gz")
    gone = TextTask(
        name="gone", source={"train": functools.partial(records, file=f"{tmp_path}/x.jsonl.gz")}, render=render
    )
    with pytest.raises(BadRow, match=r"x\.jsonl\.gz:1: cannot be read"):
        lint([gone], "train", vocabulary=t5)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(), max_size=30),
    lambda inside: st.lists(inside, max_size=2) | st.dictionaries(st.text(max_size=3), inside, max_size=2),
    max_leaves=4,
)


@settings(max_examples=60, deadline=None)
@given(pairs=st.lists(st.tuples(json_values, json_values), max_size=8))
def test_any_rows_are_looked_at(t5: Vocabulary, pairs: list[tuple[Any, Any]]) -> None:
    report = looked(t5, pairs, shown=100)
    bad = [finding for finding in report.findings if finding.kind == "bad_row"]
    assert report.examples + report.counts.get("bad_row", {}).get("made_up", 0) == len(pairs)
    assert all(finding.place.startswith("made_up.jsonl:") for finding in bad)


def records(seed: int, *, file: str) -> Iterator[tuple[str, Row]]:
    del seed
    yield from read_records(file)


def instruction(row: Row, context: Context) -> Text:
    inputs = [text_field(row, name, context.place) for name in ("instruction", "input")]
    return Text(inputs="\n".join(filter(None, inputs)), targets=text_field(row, "output", context.place))


def test_the_alpaca_sample(t5: Vocabulary, test_data: Path) -> None:
    file = test_data / "llama_factory" / "alpaca_en_demo.json"
    task = TextTask(name="alpaca", source={"train": functools.partial(records, file=str(file))}, render=instruction)
    report = lint([task], "train", vocabulary=t5, shown=99)
    rows = [(place, " ".join(row.values()).lower().split()) for place, row in read_records(file)]
    seen: set[str] = set()
    twice = [place for place, row in rows if " ".join(row) in seen or seen.add(" ".join(row))]
    assert [finding.place for finding in report.findings if finding.kind == "duplicate"] == twice
    assert len(twice) == 14
    characters = "".join(value for _, row in read_records(file) for value in row.values())
    assert report.lost_characters["<"] == characters.count("<")
    assert report.lost_characters["{"] == characters.count("{")
    assert any("it may need to be re'" in finding.message for finding in report.findings)


def instances(seed: int, *, file: str) -> Iterator[tuple[str, Row]]:
    del seed
    task = json.loads(Path(file).read_text())
    for number, instance in enumerate(task["Instances"]):
        yield f"{file}:{number}", {"definition": task["Definition"][0], **instance}


def natural(row: Row, context: Context) -> Text:
    parts = [text_field(row, name, context.place) for name in ("definition", "input")]
    return Text(inputs=f"{parts[0]}\n\nInput: {parts[1]}\nOutput:", targets=row["output"][0])


def super_ni(test_data: Path, pattern: str) -> TextTask:
    (file,) = (test_data / "super_natural_instructions" / "tasks").glob(pattern)
    source = {"train": functools.partial(instances, file=str(file))}
    return TextTask(name=file.stem, source=source, render=natural)


def test_super_ni_has_mmlu_in_it(t5: Vocabulary, test_data: Path) -> None:
    index = EvaluationIndex(
        evaluation_texts(str(test_data / "mmlu" / "data" / "test" / "high_school_geography_test.csv"))
    )
    leaking = super_ni(test_data, "*_high_school_geography.json")
    copa = super_ni(test_data, "task1393_*")
    report = lint([leaking, copa], "train", vocabulary=t5, evaluation=index)
    assert copa.name not in report.counts["leak"]
    assert report.counts["leak"][leaking.name] > 0.3 * len(
        json.loads(Path(leaking.source["train"].keywords["file"]).read_text())["Instances"]
    )
    assert "near_duplicate" not in report.counts, "the definition that all have is no likeness"
    assert report.lost_characters["\n"] > report.examples


def test_gsm8k_has_questions_of_its_test_split(test_data: Path, t5: Vocabulary) -> None:
    index = EvaluationIndex(evaluation_texts(str(test_data / "gsm8k" / "test.jsonl")))
    assert index.texts == 1319
    rows = [row for _, row in read_records(test_data / "gsm8k" / "train.jsonl.gz")][:100]
    report = looked(t5, [(row["question"], row["answer"]) for row in rows], evaluation=index)
    (leak,) = [finding for finding in report.findings if finding.kind == "leak"]
    assert leak.place == "made_up.jsonl:21"
    assert leak.message.endswith("test.jsonl:633")


def test_another_process_finds_the_same(t5: Vocabulary, t5_spiece: Path) -> None:
    pairs = [(TEMPLATE + sentence(n // 2, 40), f"{n} {sentence(n // 2)}") for n in range(60)]
    here = looked(t5, pairs, shown=1000)
    assert here.counts["near_duplicate"]["made_up"] > 20
    script = f"""
import importlib.util
spec = importlib.util.spec_from_file_location("test_lint", {__file__!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
pairs = [(module.TEMPLATE + module.sentence(n // 2, 40), f"{{n}} {{module.sentence(n // 2)}}") for n in range(60)]
print(module.looked(module.Vocabulary.from_file({str(t5_spiece)!r}), pairs, shown=1000))
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == str(here)
