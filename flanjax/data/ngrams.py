"""Texts as runs of words, hashed: how a linter finds what occurs twice without keeping any text.

    runs(hashed_words("The cat, the CAT sat"), 2)    uint64 of "the cat", "cat the", "the cat", "cat sat"

Words are lowercased runs of letters and digits, so that punctuation and spacing hide nothing; a Chinese or Japanese
character is one. The hashes are the same on every machine. `EvaluationIndex` holds 12 bytes for each run of 13 words of
the evaluation texts, as GPT-3's overlap study takes them (https://arxiv.org/abs/2005.14165, appendix C);
`NearDuplicates` is MinHash with banding (https://doi.org/10.1109/SEQUEN.1997.666900).
"""

import functools
import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt64

from flanjax.data.records import format_of, read_records
from flanjax.data.shuffling import hash64

RUN_WORDS = 13
# A run in more evaluation texts than this is a phrase of their format, not a question that leaked.
_FORMAT_TEXTS = 10
_WORD = re.compile("[\u3040-\u30ff\u3400-\u9fff]|[^\\W\u3040-\u30ff\u3400-\u9fff]+")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


def hashed_words(text: str) -> UInt64[np.ndarray, " words"]:
    """A hash of each word of a text."""
    return np.fromiter((_hash(word) for word in _WORD.findall(text.lower())), dtype=np.uint64)


@functools.lru_cache(maxsize=1 << 18)
def _hash(word: str) -> int:
    return digest(word)


def digest(text: str) -> int:
    """64 bits of a text's hash."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "little")


def runs(words: UInt64[np.ndarray, " words"], length: int) -> UInt64[np.ndarray, " runs"]:
    """A hash of each run of so many words; none where the text is shorter."""
    count = len(words) - length + 1
    if count < 1:
        return np.empty(0, dtype=np.uint64)
    state = np.zeros(count, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for offset in range(length):
            state = state * _FACTOR + words[offset : offset + count]
    return hash64(state)


def evaluation_texts(path: str) -> Iterator[tuple[str, str]]:
    """(place, text) of everything that records say: for every object, its strings together.

    Args:
        path: a file, a folder, a pattern or an address, as `read_records` takes it. The first line of a table counts as
            a text too: some have no header.

    Raises:
        RecordsError, BadRow: it cannot be read.
    """
    last_file = ""
    for place, record in read_records(path):
        file = place.rpartition(":")[0]
        if file != last_file and format_of(file) in (".csv", ".tsv"):
            yield f"{file}:1", " ".join(str(name) for name in record)
        last_file = file
        for number, text in enumerate(_texts(record)):
            yield (f"{place}, text {number + 1}" if number else place), text


def _texts(value: Any) -> Iterator[str]:
    """The strings of an object joined, after those of the objects inside of it."""
    inside = list(value.values()) if isinstance(value, Mapping) else value
    strings: list[str] = []
    for item in inside:
        if isinstance(item, str):
            strings.append(item)
        elif isinstance(item, list) and all(isinstance(one, str) for one in item):
            strings.extend(item)
        elif isinstance(item, Mapping | list):
            yield from _texts(item)
    if strings:
        yield "\n".join(strings)


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """How much of a text is in an evaluation text: runs that are, of all its runs, and where the first one is."""

    runs: int
    of: int
    place: str


class EvaluationIndex:
    """The runs of words of evaluation texts.

    Args:
        texts: (place, text) pairs.
        length: words of a run.

    Attributes:
        texts: how many there are.
        too_short: how many of them have fewer words than a run, and are not compared.
    """

    def __init__(self, texts: Iterable[tuple[str, str]], length: int = RUN_WORDS):
        self._length = length
        self._places: list[str] = []
        self.too_short = 0
        parts: list[np.ndarray] = []
        for place, text in texts:
            found = np.unique(runs(hashed_words(text), length))
            self.too_short += not len(found)
            self._places.append(place)
            parts.append(found)
        self.texts = len(self._places)
        every = np.concatenate(parts) if parts else np.empty(0, dtype=np.uint64)
        owners = np.repeat(np.arange(self.texts, dtype=np.int32), [len(part) for part in parts])
        self._runs, first, counts = np.unique(every, return_index=True, return_counts=True)
        kept = counts <= _FORMAT_TEXTS
        self._runs, self._owners = self._runs[kept], owners[first][kept]

    def overlap(self, words: UInt64[np.ndarray, " words"]) -> Overlap | None:
        """What a text has in common with them; None where it is nothing."""
        if not len(self._runs):
            return None
        asked = runs(words, self._length)
        places = np.minimum(np.searchsorted(self._runs, asked), len(self._runs) - 1)
        there = self._runs[places] == asked
        if not np.any(there):
            return None
        owner = self._owners[places[np.argmax(there)]]
        return Overlap(runs=int(there.sum()), of=len(asked), place=self._places[owner])


class NearDuplicates:
    """Which texts share at least about `similar` of their runs of words (Jaccard), told as each one comes.

    A signature is the least of 32 hashes over a text's runs, of which two texts share as large a part as of the runs.
    Eight bands of four of them are looked up: of pairs that share 0.8 of their runs, 98 % are found. A text costs about
    a kilobyte, and one with fewer than `_FEWEST` runs is not looked at.
    """

    _BANDS, _ROWS, _FEWEST = 8, 4, 8

    def __init__(self, similar: float = 0.75):
        self._similar = similar
        self._keys = hash64(np.arange(self._BANDS * self._ROWS) + 1)
        self._bands: list[dict[bytes, int]] = [{} for _ in range(self._BANDS)]
        self._signatures: list[np.ndarray] = []
        self._names: list[Any] = []

    def add(self, text_runs: UInt64[np.ndarray, " runs"], name: Any) -> Any | None:
        """Remembers a text; returns the name of an earlier one that is nearly the same, None where there is none."""
        if len(text_runs) < self._FEWEST:
            return None
        signature = np.min(hash64(self._keys[:, None], text_runs[None, :]), axis=1).astype(np.uint32)
        keys = [part.tobytes() for part in signature.reshape(self._BANDS, self._ROWS)]
        seen = {band[key] for band, key in zip(self._bands, keys, strict=True) if key in band}
        alike = {other: float(np.mean(self._signatures[other] == signature)) for other in sorted(seen)}
        best = max(alike, key=lambda other: alike[other], default=None)
        if best is not None and alike[best] >= self._similar:
            return self._names[best]
        for band, key in zip(self._bands, keys, strict=True):
            band.setdefault(key, len(self._names))
        self._signatures.append(signature)
        self._names.append(name)
        return None


def common_runs(texts: Iterable[UInt64[np.ndarray, " runs"]], share: float = 0.05, least: int = 4) -> np.ndarray:
    """The runs that so large a share of texts have, at least so many of them: their templates, sorted."""
    counts: defaultdict[int, int] = defaultdict(int)
    total = 0
    for text_runs in texts:
        total += 1
        for run in np.unique(text_runs).tolist():
            counts[run] += 1
    needed = max(least, share * total)
    return np.array(sorted(run for run, count in counts.items() if count >= needed), dtype=np.uint64)
