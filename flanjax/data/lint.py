"""Looks once through the rendered texts of tasks for what spoils training, and says where.

    report = lint(tasks, "train", vocabulary=vocabulary, evaluation=EvaluationIndex(evaluation_texts("data/mmlu")))
    report.counts       {"leak": {"my_task": 3}, "empty_targets": {"my_task": 1}}
    report.findings     (Finding("leak", "my_task", "train.jsonl:812", "9 of its 40 runs of words are in ..."), ...)

`KINDS` says what is looked for. No text is kept: 100 bytes or so of each example for exact duplicates, about a kilobyte
for near ones (`near=False` leaves those out), and what `flanjax.data.ngrams` holds of the evaluation texts. What the
examples of a task have in common, their instructions and templates, is found from its first ones and does not make them
near duplicates of each other.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from flanjax.data.ngrams import EvaluationIndex, NearDuplicates, common_runs, digest, hashed_words, runs
from flanjax.data.rendering import rows_of, texts_of
from flanjax.data.sources import bad_row_policy, excerpt
from flanjax.data.tasks import Text, TextTask
from flanjax.data.vocabularies import Vocabulary

KINDS = {
    "bad_row": "a row that is not what its task expects",
    "empty_targets": "nothing to learn: the targets are empty or blank",
    "duplicate": "the same inputs and targets as an earlier example, but for case and white space",
    "near_duplicate": "most runs of three words, templates aside, are those of an earlier example",
    "leak": "a run of 13 words is one of an evaluation text",
    "truncated": "the targets seem to be cut: they end in a word where others have punctuation, or at a common cap",
    "tokenizer": "characters that the vocabulary cannot say, or changes",
    "whitespace": "line ends or other white space that the vocabulary makes a space of (not an error in itself)",
    "encoding": "U+FFFD, control characters, or UTF-8 that was once read as Latin-1",
    "copy": "the targets are in the inputs word for word (not an error in itself)",
}

_NEAR_WORDS = 3
_TEMPLATE_EXAMPLES = 256
_CUT_WORDS = 8  # shorter targets are labels and names, which need no full stop
_CUT_SIBLINGS, _CUT_SHARE = 20, 0.9  # where most of so many end in punctuation, all should
_CAPS = {64, 100, 128, 200, 250, 256, 300, 400, 500, 512, 1000, 1024, 1500, 2000, 2048, 3000, 4000, 4096}
_CAPPED = 3  # so many examples of exactly that length, and none longer
_COPIED_WORDS = 5


@dataclass(frozen=True)
class Finding:
    """One thing that was found; `kind` is of `KINDS`, `place` "file:line"."""

    kind: str
    task: str
    place: str
    message: str
    excerpt: str


@dataclass(frozen=True, kw_only=True)
class LintReport:
    """What was found.

    Attributes:
        examples: how many were looked at.
        counts: {kind: {task: how often}}, kinds that were not found left out.
        findings: the first few of each kind, as they were found.
        lost_characters: {character: how often} of what did not survive tokenising, the most frequent first.
        evaluation_texts: how many the examples were compared with.
        evaluation_too_short: how many of them are shorter than a run of words, and could not be compared.
    """

    examples: int
    counts: Mapping[str, Mapping[str, int]]
    findings: tuple[Finding, ...]
    lost_characters: Mapping[str, int]
    evaluation_texts: int
    evaluation_too_short: int


def lint(
    tasks: Iterable[TextTask],
    split: str,
    *,
    vocabulary: Vocabulary,
    seed: int = 0,
    evaluation: EvaluationIndex | None = None,
    near: bool = True,
    shown: int = 5,
    progress: Callable[[int], None] = lambda examples: None,
) -> LintReport:
    """Renders every example of a split of tasks and looks at it; malformed rows are findings.

    Args:
        tasks: those that lack the split are left out.
        split: the split.
        vocabulary: what the texts must survive.
        seed: of the rendering.
        evaluation: what must not be trained on.
        near: whether near duplicates are looked for.
        shown: findings kept of each kind.
        progress: told the number of examples after each.

    Raises:
        BadRow: a file cannot be read.
    """
    notes = _Notes(shown)
    evaluation = evaluation or EvaluationIndex(())
    duplicates = _Duplicates(notes, near)
    examples = 0
    for task in tasks:
        if split not in task.splits:
            continue
        endings = _Endings(notes, task.name)
        for example in _examples(task, split, seed=seed, vocabulary=vocabulary, notes=notes):
            _look(example, evaluation, notes)
            duplicates.look(example)
            endings.look(example)
            examples += 1
            progress(examples)
        endings.finish()
        duplicates.finish()
    return LintReport(
        examples=examples,
        counts={kind: dict(notes.counts[kind]) for kind in KINDS if kind in notes.counts},
        findings=tuple(notes.findings),
        lost_characters=dict(notes.lost.most_common()),
        evaluation_texts=evaluation.texts,
        evaluation_too_short=evaluation.too_short,
    )


@dataclass
class _Notes:
    """Findings counted, and the first few of each kind kept."""

    shown: int
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    lost: Counter[str] = field(default_factory=Counter)

    def add(self, finding: Finding, count: int = 1) -> None:
        """`count` others are counted with it and not kept."""
        counts = self.counts.setdefault(finding.kind, Counter())
        if counts.total() < self.shown:
            self.findings.append(finding)
        counts[finding.task] += count


@dataclass(frozen=True, kw_only=True)
class _Example:
    task: str
    number: int
    place: str
    text: Text
    words: np.ndarray
    ids: tuple[list[int], list[int]]
    decoded: tuple[str, str]

    @property
    def sides(self) -> tuple[tuple[str, str], ...]:
        return ("inputs", self.text.inputs), ("targets", self.text.targets)

    def finding(self, kind: str, message: str, shown: str | None = None) -> Finding:
        return Finding(kind, self.task, self.place, message, excerpt(self.text.inputs if shown is None else shown))


def _examples(task: TextTask, split: str, *, seed: int, vocabulary: Vocabulary, notes: _Notes) -> Iterator[_Example]:
    with bad_row_policy("skip") as bad:
        for row in rows_of(task, split, seed=seed):
            for number, text in texts_of(task, split, [row], seed=seed, tokenizer=vocabulary):
                ids = tuple(vocabulary.encode_batch([text.inputs, text.targets]))
                yield _Example(
                    task=task.name,
                    number=number,
                    place=row[1],
                    text=text,
                    words=hashed_words(f"{text.inputs}\n{text.targets}"),
                    ids=(ids[0], ids[1]),
                    decoded=(vocabulary.decode(ids[0]), vocabulary.decode(ids[1])),
                )
    for number, message in enumerate(bad.first):
        rest = bad.skipped - len(bad.first) if number + 1 == len(bad.first) else 0
        place, _, reason = message.partition(": ")
        notes.add(Finding("bad_row", task.name, place, reason, ""), 1 + rest)


def _look(example: _Example, evaluation: EvaluationIndex, notes: _Notes) -> None:
    """What an example shows by itself."""
    targets = example.text.targets
    if not targets.strip():
        notes.add(example.finding("empty_targets", "the targets are empty"))
    elif len(targets.split()) >= _COPIED_WORDS and targets.strip() in example.text.inputs:
        notes.add(example.finding("copy", "the targets are in the inputs word for word", targets))
    if overlap := evaluation.overlap(example.words):
        message = f"{overlap.runs} of its {overlap.of} runs of words are in {overlap.place}"
        notes.add(example.finding("leak", message))
    found: dict[str, list[str]] = {}
    for (side, text), decoded in zip(example.sides, example.decoded, strict=True):
        if text != decoded:
            lost = Counter(text) - Counter(decoded)
            notes.lost.update(lost)
            kind = "whitespace" if text.split() == decoded.split() else "tokenizer"
            found.setdefault(kind, []).append(f"the {side} lose {_listed(lost, kind)}")
        if broken := _broken(text):
            found.setdefault("encoding", []).append(f"the {side} have {broken}")
    for kind, messages in found.items():
        notes.add(example.finding(kind, "; ".join(messages)))


def _listed(lost: Counter[str], kind: str) -> str:
    signs = Counter({sign: count for sign, count in lost.items() if kind == "whitespace" or not sign.isspace()})
    shown = ", ".join(f"{sign!r} ({count})" for sign, count in signs.most_common(5))
    return shown + (f" and {len(signs) - 5} more" if len(signs) > 5 else "") if shown else "how their words are spaced"


def _continuation() -> str:
    """What the bytes 0x80 to 0xBF become when they are read as Latin-1 or Windows-1252."""
    latin = [chr(byte) for byte in range(0x80, 0xC0)]
    windows = [bytes([byte]).decode("cp1252", "ignore") for byte in range(0x80, 0xC0)]
    return f"[{re.escape(''.join(sorted({*latin, *windows})))}]"


# Two bytes read as two characters, where the first is one that begins accented Latin letters and their punctuation.
# Others may begin ordinary text, "É»" at the end of a French quotation say; Cyrillic has to have two pairs.
_AGAIN = _continuation()
_MOJIBAKE = re.compile(f"[ÃÂÅÄ]{_AGAIN}|[âãä]{_AGAIN}{{2}}|ð{_AGAIN}{{3}}|(?:[ÐÑ]{_AGAIN}){{2}}")


def _broken(text: str) -> str | None:
    """What is wrong with the characters of a text, and what is around it."""
    if text.isascii() and text.isprintable():
        return None
    if (place := text.find("\ufffd")) >= 0:
        return f"U+FFFD, where a character was lost: {_around(text, place)}"
    if found := _MOJIBAKE.search(text):
        return f"{found[0]!r}, UTF-8 that was read as Latin-1 or Windows-1252: {_around(text, found.start())}"
    for place, sign in enumerate(text):
        if unicodedata.category(sign) == "Cc" and sign not in "\n\r\t":
            return f"the control character {sign!r}: {_around(text, place)}"
    return None


def _around(text: str, place: int) -> str:
    return repr(text[max(place - 15, 0) : place + 15])


class _Duplicates:
    """Examples that came before, in any of the tasks."""

    def __init__(self, notes: _Notes, near: bool):
        self._notes = notes
        self._near = NearDuplicates() if near else None
        self._seen: dict[int, int] = {}
        self._tasks: list[str] = []
        # The runs of a task's first examples, until its template is known from them.
        self._waiting: list[tuple[Finding, int, np.ndarray]] | None = []
        self._template = np.empty(0, dtype=np.uint64)

    def look(self, example: _Example) -> None:
        """Compares an example with those before it."""
        if not self._tasks or self._tasks[-1] != example.task:
            self._tasks.append(example.task)
        # One integer names an example: a place's text for each would be most of what is held.
        name = (len(self._tasks) - 1) << 40 | example.number
        key = digest("\0".join(" ".join(text.lower().split()) for _, text in example.sides))
        if (first := self._seen.setdefault(key, name)) != name:
            self._notes.add(example.finding("duplicate", f"the same text as {self._named(first)}"))
        elif self._near:
            self._wait(example.finding("near_duplicate", ""), name, runs(example.words, _NEAR_WORDS))

    def finish(self) -> None:
        """A task has ended."""
        self._settle()
        self._waiting = []

    def _named(self, name: int) -> str:
        return f"row {(name & ((1 << 40) - 1)) + 1} of {self._tasks[name >> 40]}"

    def _wait(self, finding: Finding, name: int, found: np.ndarray) -> None:
        if self._waiting is None:
            self._compare(finding, name, found)
            return
        self._waiting.append((finding, name, found))
        if len(self._waiting) == _TEMPLATE_EXAMPLES:
            self._settle()

    def _settle(self) -> None:
        waiting, self._waiting = self._waiting or [], None
        if waiting:
            self._template = common_runs(found for _, _, found in waiting)
        for one in waiting:
            self._compare(*one)

    def _compare(self, finding: Finding, name: int, found: np.ndarray) -> None:
        assert self._near is not None
        first = self._near.add(np.setdiff1d(found, self._template), name)
        if first is not None:
            message = f"nearly the same text as {self._named(first)}"
            self._notes.add(Finding(finding.kind, finding.task, finding.place, message, finding.excerpt))


class _Endings:
    """How the targets of a task end: known to be odd when all of them were seen."""

    def __init__(self, notes: _Notes, task: str):
        self._notes = notes
        self._task = task
        self._long = self._open = 0
        self._first_open: list[Finding] = []
        self._longest: dict[str, tuple[int, int, list[Finding]]] = {}

    def look(self, example: _Example) -> None:
        """Counts an example."""
        targets = example.text.targets.strip()
        words = len(targets.split())
        # A list ends in an item, which needs no full stop.
        if words and len(targets.splitlines()[-1].split()) >= _CUT_WORDS:
            self._long += 1
            if targets[-1].isalnum() or targets[-1] in ",-":
                self._open += 1
                message = f"the targets end in {targets[-20:]!r}, most others of the task in punctuation"
                self._keep(self._first_open, example.finding("truncated", message, targets))
        lengths = {"characters": len(targets), "words": words, "tokens": len(example.ids[1])}
        for unit, length in {**lengths, "tokens with EOS": len(example.ids[1]) + 1}.items():
            longest, count, first = self._longest.get(unit, (0, 0, []))
            if length > longest:
                count, first = 0, []
            if length >= longest:
                self._keep(first, example.finding("truncated", f"the targets have exactly {length} {unit}", targets))
                self._longest[unit] = length, count + 1, first

    def finish(self) -> None:
        """The task has ended."""
        if self._long >= _CUT_SIBLINGS and self._open <= (1 - _CUT_SHARE) * self._long:
            self._add(self._first_open, self._open, "")
        for length, count, first in self._longest.values():
            if length in _CAPS and count >= _CAPPED:
                self._add(first, count, f", as {count - 1} others; none has more")

    def _keep(self, first: list[Finding], finding: Finding) -> None:
        if len(first) < self._notes.shown:
            first.append(finding)

    def _add(self, first: list[Finding], count: int, more: str) -> None:
        for number, one in enumerate(first):
            rest = count - len(first) if number + 1 == len(first) else 0
            self._notes.add(Finding(one.kind, one.task, one.place, one.message + more, one.excerpt), 1 + rest)
