"""Prompts: an instance's fields in, the text of an input and of its target out.

A task's `Prompts` hold its templates in three styles (zero-shot, few-shot, chain of thought) and how often training
draws each style. Rendering is a pure function of the fields and of a `Draw`, so that one seed gives the same text.

    opposites = Prompts(
        zero_shot=(Template(inputs="What is the opposite of {word}?"),),
        few_shot=(FewShotTemplate(layout=Template(inputs="Q: {word} A:"), shots=1, separator=" "),),
        chain_of_thought=(Template(inputs="Opposite of {word}? Think first.", targets=CHAIN_OF_THOUGHT),),
    )

For word = hot and the solved instance up -> down, the first reads "What is the opposite of hot?" -> "cold", the second
"Q: up A: down Q: hot A:" -> "cold".

The arms of the Flan mixtures ask for more: a `TaskType` has the wording that all datasets of one kind share, and
`render_arm` renders an instance of it zero-shot or few-shot, with its options shown or hidden.
"""

import enum
import itertools
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flanjax.data.draws import Draw
from flanjax.data.options import DIALOG, DISTINCT, OPTIONS, Block, Styles
from flanjax.data.sources import BadRow, excerpt, text_field
from flanjax.data.tasks import Context, Text
from flanjax.errors import FlanjaxError

Fields = Mapping[str, str]

CHAIN_OF_THOUGHT = "{rationale} The answer is {answer}."


class PromptError(FlanjaxError):
    """A template asks for a field that the task's instances do not have."""


@dataclass(frozen=True, kw_only=True)
class Template:
    """Two format strings over the fields of an instance."""

    inputs: str
    targets: str = "{answer}"

    def render(self, fields: Fields) -> tuple[str, str]:
        """The input and the target text."""
        return self.inputs.format_map(fields), self.targets.format_map(fields)

    def field_names(self) -> set[str]:
        """The fields that the two strings ask for."""
        parts = [*string.Formatter().parse(self.inputs), *string.Formatter().parse(self.targets)]
        return {name for _, name, _, _ in parts if name}


@dataclass(frozen=True, kw_only=True)
class FewShotTemplate:
    """Solved exemplars and then the query, all in one layout.

    opening + separator + (exemplar inputs + delimiter + exemplar targets + separator) for each exemplar + query inputs.
    """

    layout: Template
    shots: int = 2
    opening: str = ""
    delimiter: str = " "
    separator: str = "\n\n"

    def render(self, fields: Fields, exemplars: Sequence[Fields]) -> tuple[str, str]:
        """The whole input, and the target of the query."""
        solved = [self.delimiter.join(self.layout.render(exemplar)) for exemplar in exemplars]
        query, target = self.layout.render(fields)
        parts = [self.opening] if self.opening else []
        return self.separator.join([*parts, *solved, query]), target


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """The templates of one task, and the share of each style (zero-shot, few-shot, chain of thought) in training.

    Evaluation reads zero-shot templates only, so that a prediction can be compared with the bare answer.
    """

    zero_shot: tuple[Template, ...]
    few_shot: tuple[FewShotTemplate, ...] = ()
    chain_of_thought: tuple[Template, ...] = ()
    shares: tuple[float, float, float] = (0.74, 0.12, 0.14)

    def render(self, fields: Fields, draw: Draw, pool: Sequence[Fields] | None) -> tuple[str, str]:
        """Input and target in a drawn template; exemplars come from `pool`, and None means zero-shot only."""
        if pool is None:
            return draw.choice(self.zero_shot).render(fields)
        few_shot = self.few_shot if pool else ()
        styles: tuple[tuple[Template | FewShotTemplate, ...], ...] = (self.zero_shot, few_shot, self.chain_of_thought)
        weights = [share if templates else 0.0 for share, templates in zip(self.shares, styles, strict=True)]
        template = draw.choice(draw.weighted(styles, weights))
        if isinstance(template, Template):
            return template.render(fields)
        # One too many, and the query itself thrown out: an example must not be shown its own answer.
        drawn = draw.sample(pool, min(template.shots + 1, len(pool)))
        exemplars = [exemplar for exemplar in drawn if exemplar != fields][: template.shots]
        return template.render(fields, exemplars)

    def check(self, fields: Sequence[str]) -> None:
        """Raises PromptError when a template asks for a field outside `fields`."""
        layouts = [*self.zero_shot, *(template.layout for template in self.few_shot), *self.chain_of_thought]
        for layout in layouts:
            unknown = layout.field_names() - set(fields)
            if unknown:
                raise PromptError(
                    f"template {layout.inputs!r} -> {layout.targets!r} asks for {', '.join(sorted(unknown))}, "
                    f"but the instances have only {', '.join(sorted(fields))}"
                )


# What a row of a dataset is made into: {field: text, ..., "answer": text}, "options": [text, ...] and "rationale": text
# where its type has them. The field "history" is a list of turns.
Instance = Mapping[str, Any]

FIVE_SHOTS = 5
X_SHOTS = (2, 3)  # fewest and most; Flan 2022 shows those of 25 that happen to be in the query's template, 1 in 10
SEPARATORS = ("\n", "\n\n", "\n\n\n")
TOKEN_BUDGET = 1920


class Arm(enum.StrEnum):
    """The ways in which the Flan 2022 mixtures show an instance (arXiv 2301.13688)."""

    ZSOPT = "zsopt"  # zero-shot, options in a drawn style
    ZSNOOPT = "zsnoopt"
    FSOPT_FIVE = "fsopt_five"  # five exemplars, each in a template of its own
    FSOPT_X = "fsopt_x"  # two or three exemplars in the query's template
    FSNOOPT = "fsnoopt"  # likewise, without options

    @property
    def zero_shot(self) -> bool:
        """Whether no exemplars are shown."""
        return self in (Arm.ZSOPT, Arm.ZSNOOPT)

    @property
    def shows_options(self) -> bool:
        """Whether the options of an instance that has some are in its text."""
        return self not in (Arm.ZSNOOPT, Arm.FSNOOPT)


@dataclass(frozen=True, kw_only=True)
class TypeTemplate(Template):
    """A template, and how it is laid out among exemplars.

    `inputs` and `targets` may ask for the fields of the type, {answer}, {options} (a block of them), {history} (a block
    of its turns) and {dialog} (the same, ending in the name of who speaks next).

    Attributes:
        inputs_prefix, targets_prefix, delimiter, separator: in few-shot prompts, an exemplar is
            inputs_prefix + inputs + delimiter + targets_prefix + targets + separator.
        opening: stands once before the first exemplar.
        mixed: may stand among others in a prompt that mixes templates.
    """

    inputs_prefix: str = ""
    targets_prefix: str = ""
    delimiter: str = "\n"
    separator: str = "\n\n"
    opening: str = ""
    mixed: bool = True

    @property
    def shows_options(self) -> bool:
        """Whether its text has the options."""
        return "{options}" in self.inputs + self.targets

    def field_names(self) -> set[str]:
        """The fields that its strings ask for."""
        parsed = (string.Formatter().parse(text) for text in (self.inputs, self.targets, self.opening))
        parts = itertools.chain.from_iterable(parsed)
        # A conversion or a format is no part of the language: with it the field is none that a type has.
        return {f"{name}{how or ''}{kind or ''}" for _, name, how, kind in parts if name is not None}

    def solved(self, values: Fields) -> str:
        """An exemplar among others, without what separates it from the next."""
        inputs, targets = self.render(values)
        return self.inputs_prefix + inputs + self.delimiter + self.targets_prefix + targets.strip()

    def query(self, values: Fields) -> str:
        """What is to be solved, in the layout of the exemplars."""
        return (self.inputs_prefix + self.inputs.format_map(values) + self.delimiter + self.targets_prefix).rstrip(" ")


@dataclass(frozen=True, kw_only=True)
class TaskType:
    """The wording of all datasets of one kind.

    Attributes:
        name: of the kind.
        fields: what an instance has beside its answer (and its options, and its rationale).
        templates: zero-shot, with options shown where there are any.
        hidden: the same without a word of options; empty for a type without options.
        few_shot, few_shot_hidden: likewise among exemplars; where empty, the zero-shot ones serve.
        rationale: whether an instance has one.

    Raises:
        PromptError: a template asks for a field that instances of the type do not have.
    """

    name: str
    fields: tuple[str, ...]
    templates: tuple[TypeTemplate, ...]
    hidden: tuple[TypeTemplate, ...] = ()
    few_shot: tuple[TypeTemplate, ...] = ()
    few_shot_hidden: tuple[TypeTemplate, ...] = ()
    rationale: bool = False

    def __post_init__(self) -> None:
        known = {*self.fields, "answer", "options"}
        known |= {"rationale"} if self.rationale else set()
        known |= {"dialog"} if "history" in self.fields else set()
        for template in (*self.templates, *self.hidden, *self.few_shot, *self.few_shot_hidden):
            if unknown := template.field_names() - known:
                raise PromptError(
                    f"{self.name}: template {template.inputs!r} -> {template.targets!r} asks for "
                    f"{', '.join(sorted(unknown))}, but instances have only {', '.join(sorted(known))}"
                )

    @property
    def has_options(self) -> bool:
        """Whether instances have options."""
        return any(template.shows_options for template in self.templates)

    def forms(self, arm: Arm) -> tuple[TypeTemplate, ...]:
        """The templates of an arm."""
        shown = self.few_shot or self.templates
        hidden = self.few_shot_hidden or self.hidden or shown
        if arm.zero_shot:
            shown, hidden = self.templates, self.hidden or self.templates
        return shown if arm.shows_options else hidden


@dataclass(frozen=True, kw_only=True)
class ArmSettings:
    """What the arms of one run have in common.

    Attributes:
        styles: what the blocks of zero-shot prompts are drawn from.
        budget: tokens of a query and its exemplars together.
        zero_shot_instead: whether a query beside which no exemplar fits is rendered zero-shot; else it is left out.
    """

    styles: Styles = DISTINCT
    budget: int = TOKEN_BUDGET
    zero_shot_instead: bool = False


def render_arm(
    type: TaskType,
    instance: Instance,
    context: Context,
    arm: Arm,
    exemplars: Sequence[Instance] = (),
    *,
    settings: ArmSettings = ArmSettings(),
) -> Text | None:
    """An instance as an arm shows it; None when it is few-shot and not one exemplar fits beside it.

    Args:
        type: its kind.
        instance: the query.
        context: all choices are drawn from its draw, and tokens counted with its tokenizer.
        arm: how it is shown.
        exemplars: what few-shot arms draw from, the query among them or not.
        settings: see there.

    Raises:
        BadRow: the instance lacks a field of its type.
        PromptError: a few-shot arm is given no exemplars.
    """
    if not arm.zero_shot:
        text = _few_shot(type, instance, context, arm, exemplars, settings.budget)
        if text is not None or not settings.zero_shot_instead:
            return text
        arm = Arm.ZSOPT if arm.shows_options else Arm.ZSNOOPT
    template = context.draw.choice(type.forms(arm))
    options, dialog = OPTIONS, DIALOG
    if template.shows_options:
        options = settings.styles.options.draw(context.draw, len(_texts(instance, "options", context.place)))
    # A target in a drawn style could not be foreseen from the input.
    if arm is Arm.ZSOPT and "history" in type.fields and "{history}" not in template.targets:
        dialog = settings.styles.dialog.draw(context.draw)
    inputs, targets = template.render(_values(type, template, instance, context.place, options, dialog))
    return Text(inputs=inputs, targets=targets)


def _few_shot(
    type: TaskType, instance: Instance, context: Context, arm: Arm, exemplars: Sequence[Instance], budget: int
) -> Text | None:
    """The exemplars that fit into the budget and then the query; None where none fits."""
    if not exemplars:
        raise PromptError(f"{type.name}: the arm {arm} shows exemplars, and there are none to draw from")
    draw = context.draw
    forms = type.forms(arm)
    mixing = arm is Arm.FSOPT_FIVE
    if mixing:
        forms = tuple(form for form in forms if form.mixed) or forms
    own = draw.choice(forms)
    separator = draw.choice(SEPARATORS) if mixing else own.separator
    values = _values(type, own, instance, context.place)
    opening, query, target = own.opening.format_map(values), own.query(values), own.targets.format_map(values)
    left = budget - len(context.tokenizer.encode(opening + query))
    shots: list[str] = []
    for exemplar in _others(type, instance, exemplars, FIVE_SHOTS if mixing else draw.between(*X_SHOTS), draw):
        form = draw.choice(forms) if mixing else own
        shot = form.solved(_values(type, form, exemplar, f"{context.place}: an exemplar")) + separator
        left -= len(context.tokenizer.encode(shot))
        if left < 0:
            break
        shots.append(shot)
    return Text(inputs=opening + "".join(shots) + query, targets=target) if shots else None


def _others(
    type: TaskType, instance: Instance, exemplars: Sequence[Instance], count: int, draw: Draw
) -> Iterator[Instance]:
    """Up to `count` drawn exemplars; one that asks what the query asks would give its answer away."""
    left = list(exemplars)
    while left and count:
        drawn = left.pop(draw.below(len(left)))
        if any(drawn.get(name) != instance[name] for name in type.fields):
            count -= 1
            yield drawn


def _values(
    type: TaskType,
    template: TypeTemplate,
    instance: Instance,
    place: str,
    options: Block = OPTIONS,
    dialog: Block = DIALOG,
) -> dict[str, str]:
    """What a template may ask for, as text."""
    names = (*type.fields, "answer", *(("rationale",) if type.rationale else ()))
    values = {name: text_field(instance, name, place) for name in names if name != "history"}
    if "history" in names:
        turns = _texts(instance, "history", place)
        values["history"] = dialog.text(turns) if turns else ""
        values["dialog"] = dialog.text(turns, open_ended=True)
    if template.shows_options:
        listed = _texts(instance, "options", place)
        if not listed:
            raise BadRow(f"{place}: field 'options' is empty: {excerpt(instance)}")
        values["options"] = options.text(listed)
        values["answer"] = options.target(values["answer"], listed)
    return values


def _texts(instance: Instance, name: str, place: str) -> list[str]:
    """A field that must be a list of strings."""
    items = instance.get(name)
    if not isinstance(items, list | tuple):
        raise BadRow(f"{place}: field {name!r} must be a list of strings: {excerpt(instance)}")
    return [text_field({f"{name}[{index}]": item}, f"{name}[{index}]", place) for index, item in enumerate(items)]
