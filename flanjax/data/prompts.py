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
"""

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flanjax.data.draws import Draw
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
