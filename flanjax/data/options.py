"""The blocks that list the options of a question, or the turns of a conversation, inside a prompt.

    OPTIONS.text(["yes", "no"])                               "OPTIONS:\n- yes\n- no"
    DISTINCT.options.draw(draw, 2).text(["yes", "no"])        "Choices: (a). yes; (b). no;", or another style

A block is a start, then each item between its name and an end; the three are drawn apart, each equally likely. Where
the names of a block tell its items from each other, `target` gives the name in place of the answer, so that whoever
reads the block is asked for what it shows. `RELEASE` has the styles of the Flan 2022 release as often as they occur
there (87 of names, 63 of them different); `DISTINCT`, the default, has each once; `PLAIN` has only those of few-shot
prompts, `OPTIONS` and `DIALOG`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from flanjax.data.draws import Draw

Names = tuple[str, ...]  # of the items, in order; one alone is a bullet, and two alternate between speakers


@dataclass(frozen=True, kw_only=True)
class Block:
    """One style of a block."""

    start: str
    names: Names
    end: str = ""

    def name(self, index: int) -> str:
        """What stands before item `index`."""
        return self.names[index % len(self.names)]

    def text(self, items: Sequence[str], *, open_ended: bool = False) -> str:
        """The block; an open one ends in the name of an item that is yet to come."""
        listed = "".join(self.name(index) + item + self.end for index, item in enumerate(items))
        return self.start + listed + (self.name(len(items)).rstrip(" ") if open_ended else "")

    def target(self, answer: str, options: Sequence[str]) -> str:
        """The name of the option that equals the answer, where names differ and there is one; else the answer."""
        stripped = [option.strip() for option in options]
        if len(self.names) < max(2, len(options)) or answer.strip() not in stripped:
            return answer
        return self.name(stripped.index(answer.strip())).strip()


@dataclass(frozen=True, kw_only=True)
class BlockStyles:
    """What blocks are drawn from."""

    starts: tuple[str, ...]
    names: tuple[Names, ...]
    ends: tuple[str, ...] = ("",)

    def draw(self, draw: Draw, items: int = 0) -> Block:
        """A block whose names suffice for this many items."""
        names = [names for names in self.names if len(names) <= 2 or len(names) >= items]
        return Block(start=draw.choice(self.starts), names=draw.choice(names), end=draw.choice(self.ends))

    def distinct(self) -> "BlockStyles":
        """The same with each style once."""
        return BlockStyles(
            starts=tuple(dict.fromkeys(self.starts)),
            names=tuple(dict.fromkeys(self.names)),
            ends=tuple(dict.fromkeys(self.ends)),
        )


@dataclass(frozen=True, kw_only=True)
class Styles:
    """How the options of a question and the turns of a conversation may be listed."""

    options: BlockStyles
    dialog: BlockStyles


OPTIONS = Block(start="OPTIONS:", names=("\n- ",))
DIALOG = Block(start="DIALOG:", names=("\n- ",))

_MOST = 26
_LOWER = tuple(chr(ord("a") + index) for index in range(_MOST))
_UPPER = tuple(letter.upper() for letter in _LOWER)
_NUMBERS = tuple(str(index + 1) for index in range(_MOST))
_ROMAN = tuple(
    tens + ones for tens in ("", "x", "xx") for ones in ("", "i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix")
)[1 : _MOST + 1]
_ROMAN_UPPER = tuple(number.upper() for number in _ROMAN)

# Flan 2022, flan/v2/constants.py and preprocessors.py: a sign after a newline or a space, with or without spaces.
_BULLETS = tuple(
    (name,)
    for name in (
        *("\n - ", "\n -", "\n -- ", "\n --", "\n + ", "\n +", "\n * ", "\n *", "\n- ", "\n+ ", "\n* "),
        *("\n[-] ", "\n[+] ", " - ", " -- ", " + ", " * ", " -", " --", " +", " *", " [+] ", " [-] "),
    )
)
_ROMAN_FORMS = tuple(lead + form for lead in " \n" for form in ("{}. ", "[{}] ", "({}) ", "({}). "))
_LETTER_FORMS = ("\n[{}]. ", "\n({}). ", "\n{}). ", "\n ({}). ", "\n {}). ", " ({}). ", " {}). ", " {}. ")
_ENDS = ("", ";", ".")


def _names(forms: Sequence[str], *numberings: Names) -> tuple[Names, ...]:
    return tuple(tuple(form.format(number) for number in numbers) for form in forms for numbers in numberings)


def _pairs(*pairs: tuple[str, str]) -> tuple[Names, ...]:
    return tuple((f"\n{first} ", f"\n{second} ") for first, second in pairs)


_SPEAKERS = _pairs(
    *(("  A.", "  B."), ("A.", "B."), ("[A].", "[B]."), ("[1].", "[2]."), ("[a].", "[b]."), ("[a].", "[b].")),
    *(("(A)", "(B)"), ("(1)", "(2)"), ("[x].", "[y].")),
    *((f"{who} {one}:", f"{who} {two}:") for who in ("Speaker", "Person") for one, two in ("12", "AB")),
    *((f"{who} {one})", f"{who} {two})") for who in ("Speaker", "Person", "Anonymous") for one, two in ("12", "AB")),
    *(("  Person 1)", "  Person 2)"), (" Person A)", " Person B)"), (" Anonymous 1)", " Anonymous 2)")),
    *(("  Anonymous A)", "  Anonymous B)"), ("Person X:", "Person Y:"), ("Speaker X)", "Speaker Y)")),
    *(("P1:", "P2:"), (" P1)", " P2)")),
)

RELEASE = Styles(
    options=BlockStyles(
        starts=(
            *("", "OPTIONS:", "Possible answers:", "Available choices:", "Options:", "OPT:", "Choose from:"),
            *("Choose your answer from:", "Available options:", "Options are:", "Choices:", "Pick your answer from:"),
            *("Select from:", "Pick from:", "Select from the following.", "pick from the following."),
        ),
        # The release has each letter style twice, its second kind being meant to end in a colon.
        names=_BULLETS
        + _names(_ROMAN_FORMS, _ROMAN, _ROMAN_UPPER)
        + 2 * _names(_LETTER_FORMS, _LOWER, _UPPER, _NUMBERS),
        ends=_ENDS,
    ),
    dialog=BlockStyles(
        starts=(
            *("", "DIALOG:", "Dialog:", "CONVERSATION:Conversation:", "Convo:", "Read the following conversation:"),
            *("A 2 person conversation:", "A 2 person dialog:", "A dialog between 2 people:"),
            *("See the 2 person dialog:", "Conversation transcript:", "Phone call:", "2-way dialog:"),
        ),
        names=_BULLETS + _SPEAKERS,
        ends=_ENDS,
    ),
)

DISTINCT = Styles(
    options=RELEASE.options.distinct(),
    dialog=BlockStyles(
        starts=tuple(start.removeprefix("CONVERSATION:") for start in RELEASE.dialog.starts),  # two that ran together
        names=RELEASE.dialog.distinct().names,
    ),
)

PLAIN = Styles(
    options=BlockStyles(starts=(OPTIONS.start,), names=(OPTIONS.names,)),
    dialog=BlockStyles(starts=(DIALOG.start,), names=(DIALOG.names,)),
)
