"""Where a text ends: before the first of the stop texts, and what of an unfinished one can already be shown.

    before_stop("4\\n\\nQ: next", ("\\n\\n",))       -> ("4", True)
    settled("4\\n", ("\\n\\n",))                     -> "4"      # the line break may be half of a stop text

Stop texts are looked for in the text, not in the tokens, as one text has many tokenisations.
"""

from collections.abc import Callable, Sequence

from flanjax.generation.batches import Tokens

Decode = Callable[[Tokens], str]
OnText = Callable[[int, int, str], None]  # number of the input, number of the sample, more of its text

STEPS_BETWEEN_LOOKS = 16  # a row runs on for half as many in vain; each look costs a way to the host and back

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # bytes of a character whose others are in the next token


def before_stop(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """The text before the first of the stop texts in it, and whether there was one."""
    places = [place for place in (text.find(one) for one in stop) if place >= 0]
    return (text[: min(places)], True) if places else (text, False)


def settled(text: str, stop: Sequence[str]) -> str:
    """The beginning of an unfinished text that no further token takes back."""
    text = text.rstrip(_UNFINISHED)
    longest = max(map(len, stop), default=1) - 1
    for start in range(max(len(text) - longest, 0), len(text)):
        if any(one.startswith(text[start:]) for one in stop):
            return text[:start]
    return text


def until_stop(tokens: Tokens, stop: Sequence[str], decode: Decode) -> tuple[Tokens, bool]:
    """The fewest tokens whose text has a stop text in it, and True; all of them and False where none has."""
    if not stop or not before_stop(decode(tokens), stop)[1]:
        return tokens, False
    few, many = 0, len(tokens)  # a text grows with its tokens: halve until the first that has it
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if before_stop(decode(tokens[:middle]), stop)[1] else (middle, many)
    return tokens[:many], True


class Watch:
    """What the host does with rows that are being decoded: ends them at stop texts, and shows what is settled.

    Attributes:
      tokens: of each row, up to and with the token that completed a stop text.
      stopped: which rows have met a stop text.
      steps: tokens until the next look; None for no look before the end.

    Arguments:
      places: numbers of the input and the sample of each row, given to `on_text`.
      stop: texts; none are looked for where there are none.
      decode: makes text of token ids; not needed without stop texts and `on_text`.
      on_text: is shown each further piece of a row's text.
    """

    def __init__(
        self,
        places: Sequence[tuple[int, int]],
        stop: Sequence[str],
        decode: Decode | None = None,
        on_text: OnText | None = None,
    ):
        self.tokens: list[Tokens] = [[] for _ in places]
        self.stopped = [False] * len(places)
        self.steps = 1 if on_text else STEPS_BETWEEN_LOOKS if stop else None
        self._places, self._stop = places, stop
        self._decode, self._on_text = decode, on_text
        self._shown = [0] * len(places)  # characters

    def look(self, tokens: Sequence[Tokens], ended: Sequence[bool]) -> None:
        """Takes what each row has so far, without EOS, and whether it gets no more."""
        for row, (ids, last) in enumerate(zip(tokens, ended, strict=False)):
            if self.stopped[row]:
                continue
            self.tokens[row] = ids
            if self._decode is not None and self.steps:
                self.tokens[row], self.stopped[row] = until_stop(ids, self._stop, self._decode)
                self._show(row, self._decode(self.tokens[row]), last=self.stopped[row] or bool(last))

    def _show(self, row: int, text: str, *, last: bool) -> None:
        text = before_stop(text, self._stop)[0] if last else settled(text, self._stop)
        if self._on_text is not None and len(text) > self._shown[row]:
            self._on_text(*self._places[row], text[self._shown[row] :])
            self._shown[row] = len(text)
