"""Where a text ends: before the first of the stop texts, and what of an unfinished one can already be shown.

    before_stop("4\\n\\nQ: next", ("\\n\\n",))       -> ("4", True)
    settled("4\\n", ("\\n\\n",))                     -> "4"      # the line break may be half of a stop text

Stop texts are looked for in the text, not in the tokens, as one text has many tokenisations.
"""

from collections.abc import Callable, Sequence
from typing import Literal

from flanjax.generation.batches import Tokens

Decode = Callable[[Tokens], str]
Finish = Literal["stop", "length"]  # EOS or a stop text, or the limit

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # bytes of a character whose others are in the next token


def before_stop(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """The text before the first of the stop texts in it, and whether there was one."""
    places = [place for place in (text.find(one) for one in stop) if place >= 0]
    return (text[: min(places)], True) if places else (text, False)


def whole_characters(text: str) -> str:
    """The text without a character at its end whose other bytes are in a further token."""
    return text.rstrip(_UNFINISHED)


def settled(text: str, stop: Sequence[str]) -> str:
    """The beginning of an unfinished text that no further token takes back."""
    text = whole_characters(text)
    longest = max(map(len, stop), default=1) - 1
    for start in range(max(len(text) - longest, 0), len(text)):
        if any(one.startswith(text[start:]) for one in stop):
            return text[:start]
    return text


def continuing(decode: Decode, before: Tokens) -> Decode:
    """Tells of tokens what text they add to that of the tokens `before`: a space before the first word, say."""
    known = len(whole_characters(decode(before)))
    return lambda ids: decode([*before, *ids])[known:]


def until_stop(tokens: Tokens, stop: Sequence[str], decode: Decode) -> tuple[Tokens, bool]:
    """The fewest tokens whose text has a stop text in it, and True; all of them and False where none has."""
    if not stop or not before_stop(decode(tokens), stop)[1]:
        return tokens, False
    few, many = 0, len(tokens)  # a text grows with its tokens: halve until the first that has it
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if before_stop(decode(tokens[:middle]), stop)[1] else (middle, many)
    return tokens[:many], True


class Answer:
    """One answer as it grows: where a stop text ends it, and what of its text is settled.

        answer = Answer(("\\n\\n",), decode)
        answer.grow([8, 9], ended=False)        # "Four"; then `answer.stopped`

    Attributes:
      tokens: up to and with the token that completed a stop text.
      text: what is settled of it; all of it once it has ended or is stopped.
      stopped: whether a stop text ended it.
    """

    def __init__(self, stop: Sequence[str], decode: Decode):
        self.tokens: Tokens = []
        self.text = ""
        self.stopped = False
        self._stop, self._decode = stop, decode

    def grow(self, tokens: Tokens, *, ended: bool) -> str:
        """Takes all tokens that there are, without EOS, and whether no more will come; what the text has more."""
        self.tokens, self.stopped = until_stop(tokens, self._stop, self._decode)
        whole = self._decode(self.tokens)
        text = before_stop(whole, self._stop)[0] if ended or self.stopped else settled(whole, self._stop)
        # A text that seems shorter than before has something at its end that is not settled.
        more = text[len(self.text) :]
        self.text += more
        return more
