"""The vocabulary of a mixture: a file, the one its tasks bring, or one trained on its text; it is kept in the cache."""

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from flanjax.data.any_task import split_fingerprint, training_lines
from flanjax.data.cache import CacheError, vocabulary_folder
from flanjax.data.fingerprints import fingerprint
from flanjax.data.registry import Found
from flanjax.data.source_files import SourceFiles
from flanjax.data.sources import BadRows, bad_row_policy
from flanjax.data.tasks import TextTask
from flanjax.data.vocabularies import Vocabulary, VocabularyError, VocabularySource, train_vocabulary
from flanjax.files import FileError

VOCABULARY_EXAMPLES = 20_000  # most examples whose text a vocabulary is trained on, shared evenly among the tasks


def resolve_vocabulary(
    cache: Path, found: Found, source: VocabularySource, *, seed: int, on_bad_row: str, files: SourceFiles
) -> Vocabulary:
    """The run's vocabulary, stored in the cache."""
    if source.train_size is not None:
        with bad_row_policy(on_bad_row) as bad_rows:
            return _trained_vocabulary(cache, found, source, seed=seed, bad_rows=bad_rows, files=files)
    if source.path is not None:
        vocabulary = Vocabulary.from_file(source.path, source.extra_ids)
    else:
        vocabulary = _own_vocabulary(found)
        files.add(vocabulary.path)
    return _stored(cache, vocabulary)


def _own_vocabulary(found: Found) -> Vocabulary:
    """The vocabulary that tasks written in seqio bring."""
    if any(isinstance(task, TextTask) for task in found.tasks):
        raise VocabularyError(
            f"the tasks of {found.name!r} bring no vocabulary: give a vocabulary file (--gin.VOCABULARY=FILE, "
            "--vocabulary=FILE), or a size to train one"
        )
    from flanjax.data.seqio_stream import own_vocabulary

    return own_vocabulary(found.tasks)


def _stored(cache: Path, vocabulary: Vocabulary) -> Vocabulary:
    folder = vocabulary_folder(cache, vocabulary.identity)
    try:
        vocabulary.save(folder)
    except (OSError, FileError) as error:
        raise CacheError(f"cannot write {folder}: {error}; free some space or give another cache folder") from error
    return Vocabulary.load(folder)


def _trained_vocabulary(
    cache: Path, found: Found, source: VocabularySource, *, seed: int, bad_rows: BadRows, files: SourceFiles
) -> Vocabulary:
    """A vocabulary of the mixture's training text; `vocabularies/trained` remembers which one a text has given.

    Raises:
        VocabularyError: no task of the mixture has a training split.
        VocabularyError: the text does not allow this size.
    """
    tasks = [task for task in found.tasks if "train" in task.splits]
    if not tasks:
        raise VocabularyError(
            f"no task of {found.name!r} has a train split to train a vocabulary on: give the vocabulary of the mixture "
            f"that is trained, for instance a spiece.model under {cache / 'vocabularies'}"
        )
    limit = max(VOCABULARY_EXAMPLES // len(tasks), 1)
    how: dict[str, Any] = {"seed": seed, "limit": limit, "bad_rows": bad_rows}
    prints = [split_fingerprint(task, "train", seed=seed, vocabulary_id="", files=files) for task in tasks]
    asked = [source.train_size, source.extra_ids, limit, prints, fingerprint(training_lines)]
    key = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]
    remembered = cache / "vocabularies" / "trained" / f"{key}.json"
    try:
        identity = json.loads(remembered.read_text())["vocabulary"]
        return Vocabulary.load(vocabulary_folder(cache, identity))
    except (OSError, ValueError, KeyError, TypeError, VocabularyError):
        pass  # not trained yet, or not whole
    text = (line for task in tasks for line in training_lines(task, **how))
    try:
        remembered.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=remembered.parent) as folder:
            assert source.train_size is not None
            model = train_vocabulary(text, source.train_size, Path(folder) / "model", extra_ids=source.extra_ids)
            vocabulary = _stored(cache, model)
            (Path(folder) / "key").write_text(json.dumps({"vocabulary": vocabulary.identity}) + "\n")
            os.replace(Path(folder) / "key", remembered)
    except OSError as error:
        raise CacheError(f"cannot write {remembered}: {error}; free some space or give another folder") from error
    return vocabulary
