"""Annotated utterances become LINGUIST's prompt and target; what is shown comes from training alone."""

import json

import pytest
from flanjax.tasks.slot_tagging import LANGUAGES, family, slots

from flanjax.data.rendering import rows_of, texts_of
from flanjax.data.sources import BadRow, bad_row_policy


def utterance(number, annotated, partition="train", intent="alarm_set", locale="en-US"):
    return {
        **{"id": str(number), "locale": locale, "partition": partition, "scenario": "alarm", "intent": intent},
        **{"utt": annotated.replace("[", ""), "annot_utt": annotated, "worker_id": "1"},
    }


UTTERANCES = [
    utterance(0, "wake me at [time : five am]"),
    utterance(1, "play [song_name : hello]", intent="play_music"),
    utterance(2, "alarm for [date : today]"),
    utterance(3, "stop", partition="test"),
    utterance(4, "wake me up at [time : nine am] on [date : friday]", partition="dev"),
    utterance(5, "alarm at [time : ten] and at [time : eleven]"),
]


@pytest.fixture
def write(tmp_path):
    def written(utterances=UTTERANCES, locale="en-US"):
        file = tmp_path / "1.1" / "data" / f"{locale}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(json.dumps(record) for record in utterances))
        return str(tmp_path)

    return written


def texts(folder, split, seed=0, **options):
    (task,) = family(folder, **{"locales": "en-US", **options}).tasks
    return [text for _, text in texts_of(task, split, rows_of(task, split, seed=seed), seed=seed, tokenizer=None)]


def test_the_partitions_are_the_splits(write):
    folder = write()
    found = {split: [text.id for text in texts(folder, split)] for split in ("train", "validation", "test")}
    assert found == {"train": ["0", "1", "2", "5"], "validation": ["4"], "test": ["3"]}


def test_a_rendered_example(write):
    (text,) = texts(write(), "validation")
    assert text.inputs == (
        "<language> English </language> <intent> alarm_set </intent> "
        "<include> [1 nine am ] , [2 friday ] </include> <labels> [1=time , [2=date </labels> "
        "<examples> wake me at [1 five am ] <br> alarm for [2 today ] </examples>"
    )
    assert text.targets == "wake me up at [1 nine am ] on [2 friday ]"


def test_an_utterance_without_slots_and_without_examples(write):
    (text,) = texts(write([utterance(0, "stop", "test")]), "test")
    assert text.inputs == (
        "<language> English </language> <intent> alarm_set </intent> <include> </include> <labels> </labels> "
        "<examples> </examples>"
    )
    assert text.targets == "stop"


def test_only_earlier_training_utterances_of_the_intent_are_shown_and_never_itself(write):
    many = [utterance(number, f"at [time : {number} am]", ("train", "dev", "test")[number % 3]) for number in range(60)]
    folder = write(many)
    for split, remainder in (("train", 0), ("validation", 1), ("test", 2)):
        for text in texts(folder, split, wildcards=0):
            own = int(text.id)
            assert own % 3 == remainder
            shown = text.inputs.split("<examples>")[1].removesuffix("</examples>").split("<br>")
            numbers = [int(example.split("[1 ")[1].split()[0]) for example in shown if example.strip()]
            assert len(numbers) <= 10
            assert len(set(numbers)) == len(numbers)
            assert all(number < own and number % 3 == 0 for number in numbers)


def test_wildcards_hide_values_in_training_only(write):
    folder = write(
        [utterance(number, f"at [time : {number} am]", ("train", "test")[number % 2]) for number in range(80)]
    )
    hidden = ["<include> [1 * ] </include>" in text.inputs for text in texts(folder, "train")]
    assert 5 < sum(hidden) < 35
    assert not any("*" in text.inputs for text in texts(folder, "train", wildcards=0))
    assert all("<include> [1 * ] </include>" in text.inputs for text in texts(folder, "train", wildcards=1))
    assert not any("*" in text.inputs for text in texts(folder, "test", wildcards=1))
    assert all("*" not in text.targets for text in texts(folder, "train"))


def test_one_seed_gives_one_text(write):
    folder = write([utterance(number, f"at [time : {number} am]") for number in range(40)])
    assert texts(folder, "train", seed=3) == texts(folder, "train", seed=3)
    assert texts(folder, "train", seed=3) != texts(folder, "train", seed=4)


def test_every_locale_is_a_task(write):
    assert len(LANGUAGES) == 52
    found = family()
    assert len(found.tasks) == 52
    assert {"slot_tagging_en_us", "slot_tagging_zh_tw"} < set(found.mixtures["slot_tagging"])
    folder = write([utterance(0, "um [time : neun uhr]", "test", locale="de-DE")], "de-DE")
    (text,) = texts(folder, "test", locales=["de-DE"])
    assert text.inputs.startswith("<language> German </language>")


@pytest.mark.parametrize(
    ("annotated", "expected"),
    [
        ("stop", []),
        ("at [time : five am] on [date :  friday ]", [("time", "five am"), ("date", "friday")]),
        ("um [time:neun : dreissig]", [("time", "neun : dreissig")]),
    ],
)
def test_slots(annotated, expected):
    assert slots(annotated, "here") == expected


@pytest.mark.parametrize("annotated", ["at [time five", "at ]", "at [time]", "[a : [b : c]]"])
def test_a_bracket_of_no_slot_is_named_with_its_line_and_counted_once(write, annotated):
    folder = write([*UTTERANCES, utterance(6, annotated)])
    with pytest.raises(BadRow, match=r"en-US\.jsonl:7: field 'annot_utt' has a bracket"):
        texts(folder, "train")
    with bad_row_policy("skip") as bad:
        assert sum(len(texts(folder, split)) for split in ("train", "validation", "test")) == 6
    assert bad.skipped == 1


def test_an_unknown_partition_is_named(write):
    with pytest.raises(BadRow, match=r"en-US\.jsonl:1: field 'partition' is 'eval'"):
        texts(write([utterance(0, "stop", "eval")]), "train")
