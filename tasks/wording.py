"""How a task type's wording is written down: one line a wording, from which its zero-shot and few-shot forms are made.

    NLI = worded(
        "nli",
        ("premise", "hypothesis"),
        ask("{premise}\nDoes it follow that {hypothesis}?", "\nAnswer:"),
        invert("Write a sentence that follows from this one: {premise}", "{hypothesis}"),
        options=True,
    )

An instance of a type with options is asked in two forms, stored apart: "...Does it follow that ...?\n{options}" and
then the cue, "\nAnswer:"; and the same without the block, which must not speak of options either. Among exemplars the
cue gives way to what introduces their answers (`FRAMES`).
"""

from dataclasses import dataclass

from flanjax.data.prompts import TaskType, TypeTemplate


@dataclass(frozen=True)
class Frame:
    """What stands around the exemplars of one prompt."""

    inputs_prefix: str = ""
    targets_prefix: str = ""
    delimiter: str = "\n"
    separator: str = "\n\n"


FRAMES = (
    Frame(),
    Frame("Q: ", "A: "),
    Frame("Input: ", "Output: "),
    Frame("Problem: ", "Solution: ", separator="\n\n\n"),
    Frame(targets_prefix="Answer: "),
    Frame("Task: ", "Result: ", "\n\n", "\n\n\n"),
    Frame("[in] ", "[out] "),
    Frame(targets_prefix="=> "),
    Frame("Example. ", "Its answer: "),
    Frame(delimiter="\n\n", separator="\n---\n"),
)


@dataclass(frozen=True)
class Wording:
    """One way to ask for one thing; see `ask` and `invert`."""

    shown: str
    hidden: str
    cue: str
    targets: str
    framed: bool
    mixed: bool

    def zero_shot(self, *, shown: bool) -> TypeTemplate:
        """The template by itself."""
        return TypeTemplate(inputs=(self.shown if shown else self.hidden) + self.cue, targets=self.targets)

    def few_shot(self, frame: Frame, *, shown: bool) -> TypeTemplate:
        """The template among exemplars."""
        body = self.shown if shown else self.hidden
        if self.framed:
            return TypeTemplate(inputs=body, targets=self.targets, mixed=self.mixed, **vars(frame))
        delimiter = " " if self.cue or body.endswith("{dialog}") else "\n"
        return TypeTemplate(inputs=body + self.cue, targets=self.targets, mixed=self.mixed, delimiter=delimiter)


def ask(body: str, cue: str = "", *, shown: str = "", targets: str = "{answer}", framed: bool = True) -> Wording:
    """A wording that asks for the answer.

    Args:
        body: what is asked, without a word of options.
        cue: what a zero-shot prompt ends in.
        shown: the body with {options}; where it is not given, they follow the body on a new line.
        targets: what is to be given.
        framed: False where the body has labels of its own ("Question: ..."): it stays as it is among exemplars.
    """
    shown = shown or body + "\n{options}"
    return Wording(shown=shown, hidden=body, cue=cue, targets=targets, framed=framed, mixed=True)


def invert(inputs: str, targets: str) -> Wording:
    """A wording that gives the answer, or nothing, and asks for what it belongs to; it shows no options."""
    return Wording(shown=inputs, hidden=inputs, cue="", targets=targets, framed=False, mixed=False)


def worded(
    name: str, fields: tuple[str, ...], *wordings: Wording, options: bool = False, rationale: bool = False
) -> TaskType:
    """The type that has these wordings.

    Args:
        name: of the type.
        fields: of its instances.
        wordings: each in zero-shot and few-shot form, the latter in one of `FRAMES` in turn.
        options: whether its instances have any.
        rationale: whether its instances have one.
    """
    framed = [(wording, FRAMES[index % len(FRAMES)]) for index, wording in enumerate(wordings)]
    return TaskType(
        name=name,
        fields=fields,
        templates=tuple(wording.zero_shot(shown=options) for wording in wordings),
        hidden=tuple(wording.zero_shot(shown=False) for wording in wordings) if options else (),
        few_shot=tuple(wording.few_shot(frame, shown=options) for wording, frame in framed),
        few_shot_hidden=tuple(wording.few_shot(frame, shown=False) for wording, frame in framed) if options else (),
        rationale=rationale,
    )
