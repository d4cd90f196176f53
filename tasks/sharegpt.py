"""ShareGPT, the conversations that users shared and Vicuna was trained on.

Vicuna (Chiang et al. 2023, https://lmsys.org/blog/2023-03-30-vicuna) used some 70,000 of them and published none;
copies are about, in its format: a JSON array of {"id", "conversations": [{"from": "human" or "gpt", "value"}]}.
The cleaning is FastChat's: what comes before the user's first turn goes (a system text stays), and so does a
conversation with fewer than two turns left, with an empty turn, or in which the two do not alternate.

Mixture: `sharegpt`. Each reply is an example; each hundredth conversation is validation.
"""

import functools
from collections.abc import Iterator, Sequence

from flanjax.data.conversations import ReplyText, Unrolled, alternating, reply_rows, turns_of
from flanjax.data.records import read_records
from flanjax.data.sources import text_field
from flanjax.data.tasks import Dataset, Family, Row, TextTask, Turn, dataset_folder, with_validation

DATASETS = (
    Dataset(
        name="sharegpt",
        title="ShareGPT: conversations with ChatGPT that users shared, as Vicuna was trained on",
        paper="Chiang et al. 2023, https://lmsys.org/blog/2023-03-30-vicuna (no paper)",
        licence="none given; the answers are ChatGPT's, whose terms apply",
        page="https://github.com/lm-sys/FastChat (its authors do not publish the data; bring a copy in this format)",
        size="about 70,000 conversations",
        tested_on="published file",
    ),
)


def family(
    data_dir: str = "",
    *,
    languages: str | Sequence[str] = (),
    max_source: int = 1024,
    max_conversation: int | None = None,
) -> Family:
    """The task `sharegpt`.

    Args:
        data_dir: a file, a folder of files, or an address.
        languages: keep conversations whose "language" or "lang" is among these; a record must then have such a field.
        max_source: tokens of an input; the oldest turns are left out where they do not fit.
        max_conversation: tokens of the pieces that long conversations are cut into first, as Vicuna did with 2,048;
            None cuts none.
    """
    languages = (languages,) if isinstance(languages, str) else tuple(languages)
    records = functools.partial(read_conversations, dataset_folder("sharegpt", data_dir))
    read = functools.partial(cleaned_replies, languages=languages)
    source = {split: Unrolled(rows=rows, read=read) for split, rows in with_validation(records).items()}
    render = ReplyText(max_source=max_source, max_conversation=max_conversation)
    task = TextTask(name="sharegpt", source=source, render=render, whole=max_conversation is None)
    return Family(tasks=[task], mixtures={"sharegpt": {"sharegpt": None}}, datasets=DATASETS)


def read_conversations(path: str, seed: int = 0) -> Iterator[tuple[str, Row]]:
    """(place, record) pairs of files as published."""
    del seed
    yield from read_records(path)


def cleaned_replies(record: Row, place: str, languages: Sequence[str]) -> Iterator[Row]:
    """The rows of a conversation; none where the cleaning or the languages leave it out.

    Raises:
        BadRow: it has no list of turns, or no language where languages are chosen.
    """
    turns = turns_of(record.get("conversations"), place, role="from", text="value")
    if languages:
        field = "lang" if "lang" in record else "language"
        if text_field(record, field, place) not in languages:
            return
    turns = cleaned(turns)
    if turns:
        yield from reply_rows(turns, id=record.get("id"), model=record.get("model"))


def cleaned(turns: Sequence[Turn]) -> list[Turn]:
    """The conversation from the user's first turn on, after its system text; empty where it is not to be used."""
    users = [number for number, turn in enumerate(turns) if turn.role == "user"]
    if not users:
        return []
    system = [turn for turn in turns[: users[0]] if turn.role == "system"]
    kept = [*system, *turns[users[0] :]]
    return kept if len(kept) - len(system) >= 2 and alternating(kept) else []
