"""OpenAssistant conversations, oasst1 and oasst2 (Köpf et al. 2023, arXiv 2304.07327).

Published as trees, a line each, {"message_tree_id", "tree_state", "prompt": {message with "replies"}}, and as flat
messages {"message_id", "parent_id", "message_tree_id", "text", "role", "lang", "rank", "deleted", "synthetic",
"review_result", ...}, those of a tree together and each after its parent (also as Parquet). Either is read, and a
message with its replies nested in it, as the export tool writes single trees.

    family(data_dir="oasst1/2023-04-12_oasst_ready.trees.jsonl.gz")     a file: a copy of the whole repository has
                                                                       every message several times
    family(languages=["en", "de"], max_rank=0)                         the selection of Guanaco (arXiv 2305.14314)

Mixtures: `oasst1`, `oasst2`. Each reply of the assistant is an example, once, with the thread that leads to it. The
files have no split: each hundredth tree is validation.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flanjax.data.conversations import SPEAKERS, ReplyText, Unrolled
from flanjax.data.records import read_records
from flanjax.data.sources import BadRow, excerpt, report_bad_row, text_field
from flanjax.data.tasks import Dataset, Download, Family, Row, TextTask, dataset_folder, with_validation

Message = Mapping[str, Any]

_HUB = "https://huggingface.co/datasets/OpenAssistant"

DATASETS = (
    Dataset(
        name="oasst1",
        title="OpenAssistant Conversations 1: trees of messages by volunteers, in 35 languages",
        paper="Köpf et al. 2023, arXiv 2304.07327",
        licence="Apache-2.0",
        page=f"{_HUB}/oasst1",
        size="66,497 trees, 161,443 messages; 10,364 trees and 88,838 messages of them ready for export",
        downloads=(
            Download(
                url=f"{_HUB}/oasst1/resolve/main/2023-04-12_oasst_ready.trees.jsonl.gz",
                file="2023-04-12_oasst_ready.trees.jsonl.gz",
            ),
        ),
    ),
    Dataset(
        name="oasst2",
        title="OpenAssistant Conversations 2: the final state of the collection",
        paper="Köpf et al. 2023, arXiv 2304.07327",
        licence="Apache-2.0",
        page=f"{_HUB}/oasst2",
        downloads=(
            Download(
                url=f"{_HUB}/oasst2/resolve/main/2023-11-05_oasst2_ready.trees.jsonl.gz",
                file="2023-11-05_oasst2_ready.trees.jsonl.gz",
            ),
        ),
        tested_on="hand-made file of the published schema",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which messages of a tree are kept; one that is left out takes its replies with it.

    Attributes:
        languages: as in "lang"; empty for all.
        max_rank: keep the `max_rank + 1` best among the replies to a message, by "rank", those without one last, in
            file order; None keeps all. 0 gives one thread a tree.
        keep_deleted: also what was deleted; the files that are ready for export have none.
        keep_rejected: also what reviewers rejected (review_result false: spam); likewise.
        keep_synthetic: also what a model wrote.
    """

    languages: tuple[str, ...] = ()
    max_rank: int | None = None
    keep_deleted: bool = False
    keep_rejected: bool = False
    keep_synthetic: bool = True

    def of(self, messages: Sequence[Message]) -> list[Message]:
        """The ones to keep among all replies to one message."""
        kept = [message for message in messages if self._keeps(message)]
        if self.max_rank is not None:
            kept = sorted(kept, key=_rank)[: self.max_rank + 1]
        return kept

    def _keeps(self, message: Message) -> bool:
        return (
            (not self.languages or message.get("lang") in self.languages)
            and (self.keep_deleted or not message.get("deleted"))
            and (self.keep_rejected or message.get("review_result") is not False)
            and (self.keep_synthetic or not message.get("synthetic"))
        )


def family(
    data_dir: str = "",
    *,
    languages: str | Sequence[str] = (),
    max_rank: int | None = None,
    keep_deleted: bool = False,
    keep_rejected: bool = False,
    keep_synthetic: bool = True,
    max_source: int = 1024,
) -> Family:
    """The tasks `oasst1` and `oasst2`, from the same file where `data_dir` is given.

    Args:
        data_dir: a file, a folder or an address.
        languages: see `Selection`, as for the next four.
        max_rank: 0 for the best reply at each level.
        keep_deleted: also deleted messages.
        keep_rejected: also messages that reviewers rejected.
        keep_synthetic: also messages that a model wrote.
        max_source: tokens of an input; the oldest turns are left out where they do not fit.
    """
    selection = Selection(
        languages=(languages,) if isinstance(languages, str) else tuple(languages),
        max_rank=max_rank,
        keep_deleted=keep_deleted,
        keep_rejected=keep_rejected,
        keep_synthetic=keep_synthetic,
    )
    tasks = []
    for dataset in DATASETS:
        trees = functools.partial(read_trees, dataset_folder(dataset.name, data_dir))
        threads = functools.partial(tree_threads, selection=selection)
        source = {split: Unrolled(rows=rows, read=threads) for split, rows in with_validation(trees).items()}
        tasks.append(TextTask(name=dataset.name, source=source, render=ReplyText(max_source=max_source)))
    return Family(tasks=tasks, mixtures={task.name: {task.name: None} for task in tasks}, datasets=DATASETS)


def read_trees(path: str, seed: int = 0) -> Iterator[tuple[str, Row]]:
    """(place, root message with nested "replies") for each tree of files of either layout.

    Raises:
        BadRow: a record is no tree and no message, or a message stands apart from its tree.
    """
    del seed
    root: dict[str, Any] | None = None
    root_place = ""
    known: dict[str, dict[str, Any]] = {}
    for place, record in read_records(path):
        try:
            if "prompt" in record:
                tree = record["prompt"]
                if not isinstance(tree, dict):
                    raise BadRow(f"{place}: field 'prompt' must be an object: {excerpt(record)}")
                yield place, tree
                continue
            name, parent = text_field(record, "message_id", place), record.get("parent_id")
            if parent is None:
                if root is not None:
                    yield root_place, root
                root, root_place, known = {**record, "replies": list(record.get("replies") or ())}, place, {}
                known[name] = root
            elif parent in known:
                known[name] = {**record, "replies": list(record.get("replies") or ())}
                known[parent]["replies"].append(known[name])
            else:
                raise BadRow(
                    f"{place}: message {name} answers {parent}, which is not among the messages of its tree "
                    "before it: the messages of a tree must stand together, parents first"
                )
        except BadRow as error:
            report_bad_row(error)
        except TypeError as error:
            report_bad_row(BadRow(f"{place}: 'parent_id' or 'replies' is malformed ({error}): {excerpt(record)}"))
    if root is not None:
        yield root_place, root


def tree_threads(root: Row, place: str, selection: Selection) -> Iterator[Row]:
    """For each kept reply of the assistant, depth first: a row with the thread that ends in it, and its metadata.

    Raises:
        BadRow: a message is malformed; the place names it.
    """
    stack: list[tuple[Message, list[list[str]]]] = [(message, []) for message in selection.of([root])]
    while stack:
        message, before = stack.pop()
        where = f"{place}: message {message.get('message_id')}"
        role = SPEAKERS.get(text_field(message, "role", where))
        if role is None:
            raise BadRow(f"{where}: field 'role' is {message['role']!r}, not prompter or assistant")
        thread = [*before, [role, text_field(message, "text", where)]]
        if role == "assistant":
            known = {name: message.get(name) for name in ("lang", "rank", "synthetic", "model_name")}
            yield {"id": text_field(message, "message_id", where), "turns": thread, **known}
        replies = message.get("replies") or []
        if not isinstance(replies, list) or not all(isinstance(reply, dict) for reply in replies):
            raise BadRow(f"{where}: field 'replies' must be a list of messages: {excerpt(replies)}")
        stack += [(reply, thread) for reply in reversed(selection.of(replies))]


def _rank(message: Message) -> tuple[bool, float]:
    rank = message.get("rank")
    return (False, rank) if isinstance(rank, int | float) else (True, 0)
