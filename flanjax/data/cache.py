"""The cache on disk: tokenised tasks in ArrayRecord shards, with a length index and a manifest.

    CACHE_DIR/vocabularies/<identity>/spiece.model, vocabulary.json
    CACHE_DIR/tasks/<task>/<split>/data-00000-of-00002.array_record ..., lengths.npy, manifest.json
    CACHE_DIR/mixtures/<mixture>.json

A record is msgpack {"inputs": int32 bytes, "targets": int32 bytes, "target_weights": uint8 bytes, "text": {...}},
little-endian, tokens untrimmed. "target_weights" is there where some target tokens do not count, "text" in splits that
are evaluated, not in "train". `lengths.npy` holds uint32 [examples, 2],
the tokens of inputs and targets. A split's folder is built under another name and renamed when its manifest, written
last, is on the disk: a folder that exists is whole. A mixture's file has the fingerprint of every split that it was
written with, so that a split of another call is told from its own. The same examples give the same bytes.

`flanjax.data.cache_writer` writes this, `flanjax.data.loader` trains from it; neither needs TensorFlow.
"""

import hashlib
import json
import re
import resource
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from flanjax.data.chat_templates import ChatTemplate
from flanjax.data.vocabularies import Vocabulary, VocabularyError
from flanjax.errors import FlanjaxError, nearest

FORMAT = 1
FEATURES = ("inputs", "targets")
MANIFEST_FILE = "manifest.json"
LENGTHS_FILE = "lengths.npy"
# Opening a shard costs as much as reading ten records, so many stay open; half of the descriptors are for others.
_DESCRIPTORS = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
# A mapped file keeps its descriptor, and a mixture may have two thousand tasks: lengths of so many examples are mapped.
_MAPPED_EXAMPLES = 1 << 17
_MAX_OPEN_SHARDS = 2048 if _DESCRIPTORS == resource.RLIM_INFINITY else min(2048, _DESCRIPTORS // 2)


class CacheError(FlanjaxError):
    """A cache that is missing, half-written, damaged, or cannot be written."""


class NotCachedError(CacheError):
    """A mixture that was never written to this cache."""


class NoSuchSplitError(CacheError):
    """A mixture that is in the cache, but none of whose tasks has the split."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One tokenised example.

    For an encoder-decoder inputs and targets each end in EOS. For a decoder they are one text, cut where the first
    token to be learnt is: what stands between and around them (BOS, separators, EOS) was put there when it was
    tokenised.

    Args:
        inputs: int32 [tokens].
        targets: int32 [tokens].
        target_weights: 1 on the targets that count in the loss, 0 on the others, such as a later turn of the user;
            None: all count.
        text: the untokenised strings, if kept.
    """

    inputs: np.ndarray
    targets: np.ndarray
    target_weights: np.ndarray | None = None
    text: dict[str, Any] | None = None


class EncodedExample(NamedTuple):
    """The bytes of an example's record, and its numbers of tokens."""

    record: bytes
    inputs: int
    targets: int


def encode_example(example: Example) -> EncodedExample:
    """An example as the writer takes it from another process."""
    return EncodedExample(encode_record(example), len(example.inputs), len(example.targets))


def encode_record(example: Example) -> bytes:
    """The bytes of one record; equal examples give equal bytes.

    Raises:
        CacheError: the weights are not one for each target, or another number than 0 and 1.
    """
    record: dict[str, Any] = {name: np.asarray(getattr(example, name), dtype="<i4").tobytes() for name in FEATURES}
    if example.target_weights is not None:
        record["target_weights"] = _checked_weights(example).tobytes()
    if example.text is not None:
        record["text"] = dict(sorted(example.text.items()))
    return msgpack.packb(record)


def _checked_weights(example: Example) -> np.ndarray:
    weights = np.asarray(example.target_weights)
    if weights.shape != (len(example.targets),) or not np.isin(weights, (0, 1)).all():
        raise CacheError(
            f"target_weights {weights.tolist()} of an example with {len(example.targets)} target tokens: give one for "
            "each token, 1 where it counts and 0 where it does not"
        )
    return weights.astype(np.uint8)


def decode_record(record: bytes) -> Example:
    """The example of one record; its arrays are read-only views of the bytes."""
    content = msgpack.unpackb(record)
    weights = content.get("target_weights")
    return Example(
        inputs=np.frombuffer(content["inputs"], dtype="<i4"),
        targets=np.frombuffer(content["targets"], dtype="<i4"),
        target_weights=None if weights is None else np.frombuffer(weights, dtype=np.uint8),
        text=content.get("text"),
    )


@dataclass(frozen=True, kw_only=True)
class FeatureStatistics:
    """Total and largest number of tokens, and how many examples have at most so many (powers of two)."""

    tokens: int
    max: int
    histogram: dict[str, int]


def feature_statistics(lengths: np.ndarray) -> FeatureStatistics:
    """Statistics of one feature from its lengths [examples].

    Lengths 1, 3, 4 and 6 give the histogram {"1": 1, "4": 2, "8": 1}: keys are the bins' upper bounds.
    """
    bounds = np.int64(1) << np.arange(33, dtype=np.int64)
    counts = np.zeros(len(bounds), dtype=np.int64)
    # By parts: the lengths may be a mapped file that is larger than the memory.
    for start in range(0, len(lengths), 1 << 20):
        counts += np.bincount(np.searchsorted(bounds, lengths[start : start + (1 << 20)]), minlength=len(bounds))
    return FeatureStatistics(
        tokens=int(np.sum(lengths, dtype=np.int64)),
        max=int(np.max(lengths, initial=0)),
        histogram={str(bound): int(count) for bound, count in zip(bounds, counts, strict=True) if count},
    )


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One ArrayRecord file of a split."""

    file: str
    examples: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What `manifest.json` says of one split of one task.

    `fingerprint` is the writer's digest of everything that decides the contents; `vocabulary` is its identity.
    """

    task: str
    split: str
    fingerprint: str
    seed: int
    vocabulary: str
    examples: int
    features: dict[str, FeatureStatistics]
    dropped_empty_targets: int
    skipped_bad_rows: int
    shards: tuple[Shard, ...]

    def to_json(self) -> str:
        """The text of the file, the same for equal manifests."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Reads `to_json`'s text; raises ValueError, KeyError or TypeError where it is not of this format."""
        content = json.loads(text)
        version = content.pop("format")
        if version != FORMAT:
            raise ValueError(f"it has format {version!r}, this flanjax reads format {FORMAT}")
        features = {name: FeatureStatistics(**values) for name, values in content.pop("features").items()}
        shards = tuple(Shard(**shard) for shard in content.pop("shards"))
        return cls(features=features, shards=shards, **content)


def task_folder(cache_dir: str | Path, task: str, split: str) -> Path:
    """The folder of one split of a task."""
    return Path(cache_dir) / "tasks" / _checked(task) / _checked(split)


def mixture_file(cache_dir: str | Path, mixture: str) -> Path:
    """The file that lists a mixture's tasks and rates."""
    return Path(cache_dir) / "mixtures" / f"{_checked(mixture)}.json"


def is_cached(cache_dir: str | Path, mixture: str) -> bool:
    """Whether a mixture of this name was written to the cache."""
    return mixture_file(cache_dir, mixture).is_file()


def vocabulary_folder(cache_dir: str | Path, identity: str) -> Path:
    """The folder of the vocabulary of this identity."""
    return Path(cache_dir) / "vocabularies" / _checked(identity)


def file_sha256(file: Path) -> str:
    """The hex sha256 of a file's bytes."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _checked(name: str) -> str:
    # Names come from registries and from JSON: none of them may lead out of the cache.
    if not re.fullmatch(r"\w[\w.:+-]*", name):
        raise CacheError(f"{name!r} cannot name a folder of the cache: use letters, digits and _ . : + -")
    return name


def _remedy(cache_dir: str | Path, mixture: str) -> str:
    return f"write it with `python -m flanjax.materialize --mixture={mixture} --cache_dir={cache_dir}`"


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a split's folder; None where there is none.

    Raises:
        CacheError: there is one, but it cannot be read or has another format version.
    """
    file = folder / MANIFEST_FILE
    try:
        return Manifest.from_json(file.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CacheError(f"{file} is not a manifest that can be read: {error}") from error


class CachedTask:
    """One split of one task: its lengths memory-mapped, its records read by index.

    Attributes:
        name: the task.
        manifest: what was written.
        lengths: uint32 [examples, 2], tokens of inputs and targets, memory-mapped.
    """

    def __init__(self, folder: Path, manifest: Manifest, lengths: np.ndarray, remedy: str):
        self.folder = folder
        self.manifest = manifest
        self.lengths = lengths
        self.name = manifest.task
        self._remedy = remedy
        self._ends = np.cumsum([shard.examples for shard in manifest.shards], dtype=np.int64)

    @classmethod
    def open(cls, cache_dir: str | Path, task: str, split: str, *, mixture: str | None = None) -> "CachedTask":
        """Opens a split and checks that all of it is there; contents are checked as they are read.

        Args:
            cache_dir: the cache.
            task: name of the task.
            split: name of the split.
            mixture: the mixture that brought us here, named in the remedy.

        Raises:
            CacheError: the folder, its manifest, its length index or a shard is missing, truncated or of another
                version; the message says which file and how to write it again.
        """
        folder, remedy = task_folder(cache_dir, task, split), _remedy(cache_dir, mixture or task)
        if not folder.is_dir():
            raise CacheError(f"split {split!r} of task {task!r} is not in the cache: no folder {folder}; {remedy}")
        try:
            manifest = read_manifest(folder)
        except CacheError as error:
            raise CacheError(f"{error}; {remedy}") from error
        if manifest is None:
            raise CacheError(f"{folder} has no {MANIFEST_FILE}, so it was never finished; {remedy}")
        opened = cls(folder, manifest, _read_lengths(folder / LENGTHS_FILE, manifest.examples, remedy), remedy)
        if int(opened._ends[-1] if len(opened._ends) else 0) != manifest.examples:
            raise CacheError(f"{folder / MANIFEST_FILE} contradicts itself: its shards do not add up; {remedy}")
        for number in range(len(manifest.shards)):
            opened._open_shard(number).close()
        return opened

    def __len__(self) -> int:
        return self.manifest.examples

    def read(self, indices: Sequence[int] | np.ndarray) -> list[Example]:
        """The examples at these indices, in this order; an index may occur more than once.

        Raises:
            CacheError: a shard is damaged, or the split was written again since it was opened.
            IndexError: an index is not in the split.
        """
        wanted = np.asarray(indices, dtype=np.int64)
        lowest, highest = (np.min(wanted), np.max(wanted)) if len(wanted) else (0, -1)
        if lowest < 0 or highest >= len(self):
            raise IndexError(f"task {self.name!r} has {len(self)} examples, asked for {lowest}..{highest}")
        found: dict[int, Example] = {}
        # Ascending order reads each file front to back, which is a good deal faster than hopping about in it.
        order = np.argsort(wanted, kind="stable")
        shard_of = np.searchsorted(self._ends, wanted[order], side="right")
        cuts = np.searchsorted(shard_of, np.arange(len(self._ends) + 1))
        for number in np.unique(shard_of):
            positions = order[cuts[number] : cuts[number + 1]]
            start = int(self._ends[number]) - self.manifest.shards[number].examples
            for position, record in zip(
                positions.tolist(), self._records(number, wanted[positions] - start), strict=True
            ):
                found[position] = decode_record(record)
        return [found[position] for position in range(len(wanted))]

    def verify(self) -> None:
        """Reads every byte of the split and compares it with the manifest.

        Raises:
            CacheError: a shard's sha256, or a statistic of the length index, is not the manifest's.
        """
        for number, shard in enumerate(self.manifest.shards):
            if file_sha256(self._shard_path(number)) != shard.sha256:
                raise CacheError(f"{self._shard_path(number)} is damaged (its sha256 differs); {self._remedy}")
        for column, name in enumerate(FEATURES):
            if feature_statistics(self.lengths[:, column]) != self.manifest.features[name]:
                raise CacheError(f"{self.folder / LENGTHS_FILE} is damaged (column {name}); {self._remedy}")

    def _records(self, number: int, local: np.ndarray) -> list[bytes]:
        try:
            with _open_shards.lock:
                return _open_shards.get(self, number).read(local.tolist())
        except RuntimeError as error:
            raise CacheError(f"{self._shard_path(number)} is damaged ({error}); {self._remedy}") from error

    def _shard_path(self, number: int) -> Path:
        return self.folder / self.manifest.shards[number].file

    def _open_unchanged_shard(self, number: int) -> ArrayRecordReader:
        """A shard of the split that was opened; the manifest is read after it, so that no newer one passes for it."""
        reader = self._open_shard(number)
        if read_manifest(self.folder) != self.manifest:
            reader.close()
            raise CacheError(
                f"{self.folder} was written again while it was being read: a materialising of other options, another "
                "seed or changed sources came in between. Start again; give the other one a cache of its own if both "
                "are to run at once"
            )
        return reader

    def _open_shard(self, number: int) -> ArrayRecordReader:
        shard, path = self.manifest.shards[number], self._shard_path(number)
        if not path.is_file():
            raise CacheError(f"{path} is missing; {self._remedy}")
        reader = ArrayRecordReader(str(path), "readahead_buffer_size:0,max_parallelism:0")
        if not reader.ok():
            raise CacheError(f"{path} is truncated or damaged; {self._remedy}")
        if reader.num_records() != shard.examples:
            raise CacheError(
                f"{path} holds {reader.num_records()} examples, its manifest says {shard.examples}; {self._remedy}"
            )
        return reader


class _OpenShards:
    """The shards read last, kept open: a mixture of two thousand tasks must not run out of file descriptors."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._readers: OrderedDict[tuple[int, int], tuple[CachedTask, ArrayRecordReader]] = OrderedDict()

    def get(self, task: CachedTask, number: int) -> ArrayRecordReader:
        """An open reader; the caller holds the lock while it uses it."""
        key = (id(task), number)
        if key not in self._readers:
            self._readers[key] = (task, task._open_unchanged_shard(number))
            if len(self._readers) > _MAX_OPEN_SHARDS:
                self._readers.popitem(last=False)[1][1].close()
        self._readers.move_to_end(key)
        return self._readers[key][1]


_open_shards = _OpenShards()


def _read_lengths(file: Path, examples: int, remedy: str) -> np.ndarray:
    try:
        lengths = np.load(file, mmap_mode="r" if examples >= _MAPPED_EXAMPLES else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CacheError(f"{file} is missing or truncated ({error}); {remedy}") from error
    if lengths.shape != (examples, len(FEATURES)) or lengths.dtype != np.dtype("<u4"):
        raise CacheError(f"{file} has shape {lengths.shape}, its manifest says {examples} examples; {remedy}")
    return lengths


class CachedMixture:
    """The tasks of a mixture that have this split, their registered rates, and their vocabulary.

    Attributes:
        name: the mixture.
        split: the split.
        tasks: the opened tasks, in the mixture's order.
        rates: the rate seqio gives each of them, or None where it has none.
        vocabulary: the one all of them were tokenised with.
        chat_template: the one that their text was made with; None where it was made without.
        made_from: what was asked for and read (`flanjax.data.provenance`); empty where it was not kept.
    """

    def __init__(
        self,
        name: str,
        split: str,
        tasks: list[CachedTask],
        rates: list[float | None],
        vocabulary: Vocabulary,
        made_from: Mapping[str, Any],
        chat_template: ChatTemplate | None = None,
    ):
        self.name = name
        self.split = split
        self.tasks = tasks
        self.rates = rates
        self.vocabulary = vocabulary
        self.made_from = made_from
        self.chat_template = chat_template

    @classmethod
    def open(cls, cache_dir: str | Path, mixture: str, split: str) -> "CachedMixture":
        """Opens every task of a mixture.

        Raises:
            NoSuchSplitError: no task has the split.
            CacheError: the mixture, one of its tasks or its vocabulary is missing or damaged, or a task was written
                again since the mixture was.
        """
        file, remedy = mixture_file(cache_dir, mixture), _remedy(cache_dir, mixture)
        try:
            content = json.loads(file.read_text())
            if content["format"] != FORMAT:
                raise ValueError(f"format {content['format']!r}, this flanjax reads format {FORMAT}")
            entries = [entry for entry in content["tasks"] if split in entry["splits"]]
            prints = [entry["splits"][split] for entry in entries]
            rates = [entry["rate"] for entry in entries]
            identity, made_from = content["vocabulary"], content["made_from"]
            given = content.get("chat_template")
            template = None if given is None else ChatTemplate(**given)
        except FileNotFoundError as error:
            known = [path.stem for path in file.parent.glob("*.json")]
            raise NotCachedError(
                f"mixture {mixture!r} is not in the cache: no {file}{nearest(mixture, known)}; {remedy}"
            ) from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CacheError(f"{file} cannot be read ({error!r}); {remedy}") from error
        if not entries:
            raise NoSuchSplitError(
                f"mixture {mixture!r} is empty: {file} lists no task with a split {split!r}; {remedy}"
            )
        try:
            vocabulary = Vocabulary.load(vocabulary_folder(cache_dir, identity))
        except VocabularyError as error:
            raise CacheError(f"{error}; {remedy}") from error
        tasks = [CachedTask.open(cache_dir, entry["task"], split, mixture=mixture) for entry in entries]
        for task, written in zip(tasks, prints, strict=True):
            if task.manifest.vocabulary != identity:
                raise CacheError(
                    f"{task.folder} was tokenised with vocabulary {task.manifest.vocabulary}, mixture {mixture!r} "
                    f"with {identity}; {remedy}"
                )
            if task.manifest.fingerprint != written:
                raise CacheError(
                    f"{task.folder} was written again since mixture {mixture!r} was: by a call that was stopped before "
                    "its end, or for another mixture that has this task with other options or another seed (give that "
                    f"one a cache of its own); {remedy}"
                )
        return cls(mixture, split, tasks, rates, vocabulary, made_from, template)
