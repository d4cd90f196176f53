"""What is asked of a task whichever way it is written: as a text task, or in seqio, for which TensorFlow is loaded."""

from collections.abc import Iterator
from typing import Any

from flanjax.data.cache import FORMAT
from flanjax.data.registry import AnyTask
from flanjax.data.rendering import text_fingerprint, training_text
from flanjax.data.source_files import SourceFiles
from flanjax.data.sources import BadRows
from flanjax.data.tasks import TextTask


def split_fingerprint(
    task: AnyTask, split: str, *, seed: int, vocabulary_id: str, files: SourceFiles, chat: str = ""
) -> str:
    """A digest of everything that decides what the cache holds of a split; the files it is made from go to `files`.

    `chat` is the identity of the chat template; empty where there is none.
    """
    how: dict[str, Any] = {
        "seed": seed,
        "vocabulary_id": vocabulary_id,
        "version": FORMAT,
        "files": files,
        "chat": chat,
    }
    if isinstance(task, TextTask):
        return text_fingerprint(task, split, **how)
    from flanjax.data.seqio_stream import task_fingerprint

    return task_fingerprint(task, split, **how)


def training_lines(task: AnyTask, *, seed: int, limit: int, bad_rows: BadRows) -> Iterator[str]:
    """Inputs and targets of the first `limit` training examples as text.

    Raises:
        FlanjaxError: the task's own code or data failed.
    """
    how: dict[str, Any] = {"seed": seed, "limit": limit, "bad_rows": bad_rows}
    if isinstance(task, TextTask):
        return training_text(task, "train", **how)
    from flanjax.data.seqio_stream import texts

    return texts(task, "train", **how)
