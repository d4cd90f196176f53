"""Pairs of inputs and targets as rows in which what they have in common stands once.

    decoder_rows((2, 5, 6), {0: [8, 9, 1], 1: [8, 4], 2: [7, 3]}, begin=0, branching=True)

gives one row, in which the second and third segment each go on from the first:

    tokens     2 5 6 8 9 7       places of target 0: 2 3 4
    segments   1 1 1 2 2 3       places of target 1: 2 3
    positions  0 1 2 3 4 3       places of target 2: 2 5

A place is where a target's token is predicted. The last token of a target is never read, and a target that begins as
another one shares its segment: choices of one token each add nothing to their context.
"""

import bisect
import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from flanjax.generation.batches import PAD_ID, Tokens

# What branches of a context, or targets of an encoder's inputs, may add to a row that is shorter than this itself.
BRANCHES = 256
# A beginning that contexts share is worth a pass of its own from so many tokens on.
LEAST_BEGINNING = 32


@dataclasses.dataclass(frozen=True)
class Row:
    """A context with targets of it.

    Attributes:
      inputs: the context, of which a decoder's row may lack the beginning.
      targets: of the context, by number; the row may have a part of them.
      tokens: what the decoder reads.
      segments: of each token, from 1.
      positions: of each token in its text.
      places: of each target in the row, where in the row each of its tokens is predicted.
    """

    inputs: Tokens
    targets: Mapping[int, Tokens]
    tokens: list[int] = dataclasses.field(default_factory=list)
    segments: list[int] = dataclasses.field(default_factory=list)
    positions: list[int] = dataclasses.field(default_factory=list)
    places: dict[int, list[int]] = dataclasses.field(default_factory=dict)

    def add(self, tokens: Tokens, segment: int, position: int) -> int:
        """Puts the tokens of a segment at the end of the row, and returns where they begin."""
        start = len(self.tokens)
        self.tokens.extend(tokens)
        self.segments.extend([segment] * len(tokens))
        self.positions.extend(range(position, position + len(tokens)))
        return start


def _paths(targets: Mapping[int, Tokens]) -> dict[tuple[int, ...], list[int]]:
    """What is read of targets without their last tokens, each path with the targets that lie on it."""
    heads = sorted({tuple(target[:-1]) for target in targets.values()})
    # Sorted, what a path begins with stands right before it.
    longest = [a for a, b in zip(heads, [*heads[1:], None], strict=True) if b is None or b[: len(a)] != a]
    paths: dict[tuple[int, ...], list[int]] = {path: [] for path in longest}
    for i, target in targets.items():
        paths[longest[bisect.bisect_left(longest, tuple(target[:-1]))]].append(i)
    return paths


def _portions(paths: Mapping[tuple[int, ...], list[int]], room: int) -> Iterator[list[tuple[int, ...]]]:
    """The paths in portions of so many tokens together, or of one path that is longer."""
    portion: list[tuple[int, ...]] = []
    for path in paths:
        if portion and sum(map(len, portion)) + len(path) > room:
            yield portion
            portion = []
        portion.append(path)
    yield portion


def decoder_rows(context: Tokens, targets: Mapping[int, Tokens], *, begin: int, branching: bool) -> Iterator[Row]:
    """Rows of a decoder: the context from `begin` on, and what its targets (none is empty) go on with.

    Without `branching` each path of targets has a row of its own.
    """
    paths = _paths(targets)
    room = max(BRANCHES, len(context)) if branching else 0
    for portion in _portions(paths, room):
        row = Row(context, targets)
        row.add(context[begin:], 1, begin)
        last = len(row.tokens) - 1
        for path in portion:
            # The only path is the context's own end.
            segment = 1 if len(portion) == 1 else max(row.segments) + 1
            start = row.add(path, segment, len(context))
            row.places.update({i: [last, *range(start, start + len(targets[i]) - 1)] for i in paths[path]})
        yield row


def encoder_decoder_rows(inputs: Tokens, targets: Mapping[int, Tokens]) -> Iterator[Row]:
    """Rows of an encoder-decoder: each path of targets (none is empty) is a segment behind T5's start token."""
    paths = _paths(targets)
    for portion in _portions(paths, max(BRANCHES, len(inputs))):
        row = Row(inputs, targets)
        for segment, path in enumerate(portion, start=1):
            start = row.add((PAD_ID, *path), segment, 0)
            row.places.update({i: list(range(start, start + len(targets[i]))) for i in paths[path]})
        yield row


def _common(a: Tokens, b: Tokens) -> int:
    """How many tokens two texts have in common before the first that differs."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def shared_beginnings(contexts: Sequence[tuple[int, ...]]) -> Iterator[tuple[int, list[tuple[int, ...]]]]:
    """Different contexts in groups, each with how many first tokens they share; 0 for those that share too little.

    Neighbours in sorted order are of one group where half of the longer is common to both: few-shot prompts with the
    same examples. At least a token of each is left, which predicts what follows.
    """
    alone: list[tuple[int, ...]] = []
    group: list[tuple[int, ...]] = []
    shared = 0
    ordered = sorted(contexts)
    for context, after in zip(ordered, [*ordered[1:], ()], strict=True):
        group.append(context)
        shared = min(shared or len(context), len(context) - 1)
        common = _common(context, after)
        if common >= LEAST_BEGINNING and 2 * common >= max(len(context), len(after)):
            shared = min(shared, common)
            continue
        if len(group) > 1:
            yield shared, group
        else:
            alone += group
        group, shared = [], 0
    if alone:
        yield 0, alone
