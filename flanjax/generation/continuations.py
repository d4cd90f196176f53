"""A text and what may follow it as token ids, to be scored.

    continuation_ids(t5, "Is 7 odd?", [" yes", " no"])    # ids of the text with EOS; ids of "yes", ids of "no"
    continuation_ids(llama, "Is 7 odd?", [" yes"])        # BOS and ids of the text; the whole's ids beyond as many

A decoder reads both as one text, whose tokens beyond as many as the text alone has are the continuation's: the rule of
lm-evaluation-harness. EOS is in no continuation.
"""

from collections.abc import Sequence

from flanjax.data.vocabularies import Vocabulary


def continuation_ids(
    vocabulary: Vocabulary, text: str, continuations: Sequence[str]
) -> tuple[list[int], list[list[int]]]:
    """The ids of a text as a model reads it, and of each of its continuations."""
    before = vocabulary.encode(text)
    if vocabulary.separate_inputs:
        targets = [vocabulary.encode(continuation.lstrip()) for continuation in continuations]
    else:
        targets = [vocabulary.encode(text + continuation)[len(before) :] for continuation in continuations]
    return vocabulary.as_inputs(before), targets
