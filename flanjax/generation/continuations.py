"""A text and what may follow it as token ids, to be scored.

    continuation_ids(t5, "Is 7 odd?", " yes")        # ids of the text with EOS, for the encoder; ids of "yes"
    continuation_ids(llama, "Is 7 odd?", " yes")     # BOS and ids of the text; the ids of the whole beyond as many

A decoder reads both as one text, whose tokens beyond as many as the text alone has are the continuation's: the rule of
lm-evaluation-harness. EOS is in no continuation.
"""

from flanjax.data.vocabularies import Vocabulary


def continuation_ids(vocabulary: Vocabulary, text: str, continuation: str) -> tuple[list[int], list[int]]:
    """The ids of a text as a model reads it, and of its continuation."""
    before = vocabulary.encode(text)
    if vocabulary.separate_inputs:
        return vocabulary.as_inputs(before), vocabulary.encode(continuation.lstrip())
    return vocabulary.as_inputs(before), vocabulary.encode(text + continuation)[len(before) :]
