"""Slot tagging in the manner of LINGUIST (Rosenbaum et al. 2022, arXiv 2209.09900), on MASSIVE.

LINGUIST's own data was not published; MASSIVE (FitzGerald et al. 2022, arXiv 2204.08582) has the annotation that it
needs: JSON lines, a file <locale>.jsonl for each of 51 locales, {"id", "locale", "partition", "intent", "utt",
"annot_utt"}, with annotated utterances such as "wake me up at [time : nine am] on [date : friday]". The model is given
an intent, the numbers of its slots, what slots to include, and annotated examples, and writes an annotated utterance:

    <language> English </language> <intent> alarm_set </intent> <include> [1 nine am ] , [2 * ] </include>
    <labels> [1=time , [2=date </labels> <examples> wake me at [1 five am ] <br> alarm for [2 today ] </examples>
    -> wake me up at [1 nine am ] on [2 friday ]

A slot value may be hidden as the wildcard *, which the model fills as it likes. The five blocks are the paper's, their
spelling may differ from it in details. Tasks: `slot_tagging_<locale>`, such as `slot_tagging_en_us`; mixture:
`slot_tagging`. The splits are the partitions of the files.
"""

import functools
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flanjax.data.records import read_records
from flanjax.data.sources import BadRow, excerpt, report_bad_row, text_field
from flanjax.data.tasks import Context, Dataset, Download, Family, Row, Text, TextTask, dataset_folder

LANGUAGES = {
    **{"af-ZA": "Afrikaans", "am-ET": "Amharic", "ar-SA": "Arabic", "az-AZ": "Azerbaijani", "bn-BD": "Bengali"},
    **{"cy-GB": "Welsh", "da-DK": "Danish", "de-DE": "German", "el-GR": "Greek", "en-US": "English"},
    **{"es-ES": "Spanish", "fa-IR": "Persian", "fi-FI": "Finnish", "fr-FR": "French", "he-IL": "Hebrew"},
    **{"hi-IN": "Hindi", "hu-HU": "Hungarian", "hy-AM": "Armenian", "id-ID": "Indonesian", "is-IS": "Icelandic"},
    **{"it-IT": "Italian", "ja-JP": "Japanese", "jv-ID": "Javanese", "ka-GE": "Georgian", "km-KH": "Khmer"},
    **{"kn-IN": "Kannada", "ko-KR": "Korean", "lv-LV": "Latvian", "ml-IN": "Malayalam", "mn-MN": "Mongolian"},
    **{"ms-MY": "Malay", "my-MM": "Burmese", "nb-NO": "Norwegian", "nl-NL": "Dutch", "pl-PL": "Polish"},
    **{"pt-PT": "Portuguese", "ro-RO": "Romanian", "ru-RU": "Russian", "sl-SL": "Slovenian", "sq-AL": "Albanian"},
    **{"sv-SE": "Swedish", "sw-KE": "Swahili", "ta-IN": "Tamil", "te-IN": "Telugu", "th-TH": "Thai"},
    **{"tl-PH": "Tagalog", "tr-TR": "Turkish", "ur-PK": "Urdu", "vi-VN": "Vietnamese", "zh-CN": "Chinese"},
    **{"zh-TW": "Chinese (traditional)", "ca-ES": "Catalan"},
}
PARTITIONS = {"train": "train", "dev": "validation", "test": "test"}

DATASETS = (
    Dataset(
        name="massive",
        title="MASSIVE 1.1: utterances to an assistant in 52 locales, with intents and slots",
        paper="FitzGerald et al. 2022, arXiv 2204.08582; the prompts: Rosenbaum et al. 2022, arXiv 2209.09900",
        licence="CC BY 4.0",
        page="https://github.com/alexa/massive",
        size="19,521 utterances a locale, 16,521 of them published; 51 locales, and Catalan since version 1.1",
        downloads=(
            Download(
                url="https://amazon-massive-nlu-dataset.s3.amazonaws.com/amazon-massive-dataset-1.1.tar.gz",
                file="amazon-massive-dataset-1.1.tar.gz",
                sha256="4cba5faa11c71437928e17cb1b9b3d8b8e727e7ea363a3a9a8045e19c0491577",
                unpack=True,
            ),
        ),
        tested_on="hand-made file of the published schema",
    ),
)

_SLOT = re.compile(r"\[([^\[\]:]+):([^\[\]]*)\]")
_KEPT_EXAMPLES = 20


def family(
    data_dir: str = "",
    *,
    locales: str | Sequence[str] = tuple(LANGUAGES),
    examples: int = 10,
    wildcards: float = 0.5,
) -> Family:
    """A task for each locale, and the mixture of them all.

    Args:
        data_dir: the folder that the archive unpacks to, with 1.1/data/<locale>.jsonl in it, or an address of such.
        locales: as in the names of the files.
        examples: annotated utterances shown with each prompt at most, of the same intent and of the training partition;
            the paper shows up to ten. Any number up to that is drawn in training.
        wildcards: how often a slot value is hidden in training; elsewhere all are shown.
    """
    locales = (locales,) if isinstance(locales, str) else tuple(locales)
    folder = dataset_folder("massive", data_dir)
    tasks = [
        TextTask(
            name=f"slot_tagging_{locale.lower().replace('-', '_')}",
            source={
                split: functools.partial(read_utterances, f"{folder}/1.1/data/{locale}.jsonl", partition=partition)
                for partition, split in PARTITIONS.items()
            },
            render=Linguist(examples=examples, wildcards=wildcards),
            examples={"train": 11_514, "validation": 2_033, "test": 2_974},
        )
        for locale in locales
    ]
    return Family(tasks=tasks, mixtures={"slot_tagging": {task.name: None for task in tasks}}, datasets=DATASETS)


def read_utterances(file: str, seed: int = 0, *, partition: str) -> Iterator[tuple[str, Row]]:
    """(place, record) pairs of a partition, each with "examples": training utterances of its intent before it.

    A file is in the order of its ids, which mixes the partitions, so that it takes one reading and little memory.
    """
    del seed
    seen: dict[str, deque[str]] = {}
    for place, record in read_records(file):
        try:
            intent, named = text_field(record, "intent", place), text_field(record, "partition", place)
            annotated = text_field(record, "annot_utt", place)
            if named not in PARTITIONS:
                raise BadRow(f"{place}: field 'partition' is {named!r}, which is none of {', '.join(PARTITIONS)}")
            slots(annotated, place)
        except BadRow as error:
            if partition == "train":  # or it would be counted once for every split
                report_bad_row(error)
            continue
        before = seen.setdefault(intent, deque(maxlen=_KEPT_EXAMPLES))
        if named == partition:
            yield place, {**record, "examples": list(before)}
        if named == "train":
            before.append(annotated)


def slots(annotated: str, place: str) -> list[tuple[str, str]]:
    """(label, value) for each slot of an annotated utterance, in order.

    Raises:
        BadRow: a bracket that is no slot's.
    """
    rest = _SLOT.sub("", annotated)
    if "[" in rest or "]" in rest:
        raise BadRow(f"{place}: field 'annot_utt' has a bracket that is not of a [slot : value]: {excerpt(annotated)}")
    return [(label.strip(), value.strip()) for label, value in _SLOT.findall(annotated)]


@dataclass(frozen=True, kw_only=True)
class Linguist:
    """A render function: the prompt of LINGUIST and the annotated utterance, with numbered slots.

    Attributes:
        examples: shown at most.
        wildcards: how often a slot value is hidden in training.
    """

    examples: int = 10
    wildcards: float = 0.5

    def __call__(self, row: Row, context: Context) -> Text:
        """The text of a row; raises BadRow where a field is missing or an annotation malformed."""
        locale = text_field(row, "locale", context.place)
        annotated = text_field(row, "annot_utt", context.place)
        shown = list(row["examples"])
        if context.split == "train":
            most = min(self.examples, len(shown))
            shown = context.draw.sample(shown, context.draw.between(min(1, most), most))
        else:
            shown = shown[-self.examples :] if self.examples else []
        wanted = slots(annotated, context.place)
        found = [label for example in shown for label, _ in slots(example, context.place)]
        numbers = {label: number for number, label in enumerate(dict.fromkeys([*(s for s, _ in wanted), *found]), 1)}
        included = [f"[{numbers[label]} {self._shown(value, context)} ]" for label, value in wanted]
        parts = {
            "language": LANGUAGES.get(locale, locale),
            "intent": text_field(row, "intent", context.place),
            "include": " , ".join(included),
            "labels": " , ".join(f"[{number}={label}" for label, number in numbers.items()),
            "examples": " <br> ".join(_numbered(example, numbers) for example in shown),
        }
        inputs = " ".join(" ".join(f"<{name}> {part} </{name}>".split()) for name, part in parts.items())
        return Text(inputs=inputs, targets=_numbered(annotated, numbers), id=str(row.get("id", "")))

    def _shown(self, value: str, context: Context) -> str:
        hidden = context.split == "train" and context.draw.weighted((True, False), (self.wildcards, 1 - self.wildcards))
        return "*" if hidden else value


def _numbered(annotated: str, numbers: dict[str, int]) -> str:
    """An annotated utterance with a number for each label: "[time : nine am]" as "[1 nine am ]"."""
    return _SLOT.sub(lambda slot: f"[{numbers[slot[1].strip()]} {slot[2].strip()} ]", annotated).strip()
