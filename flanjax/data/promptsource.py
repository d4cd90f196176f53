"""PromptSource templates, read from a user's own copy of bigscience-workshop/promptsource (arXiv 2202.01279).

    templates = read_promptsource("promptsource/templates/ag_news/templates.yaml")
    templates["recommend"].render({"text": ..., "label": 2}, draw, place).text()

A file has the templates of one dataset: Jinja over the fields of a row, in which ||| stands between the input and the
target (and between several targets), and answer choices, Jinja as well, which the template sees as `answer_choices`.
They are read as plain data and rendered in Jinja's sandbox, with PromptSource's `zip`, `choice` and `most_frequent`.
`choice` and `random` take their choice from the draw. Unlike there, a field that a row lacks is an error, nothing is
cut at 2,048 characters, and ||| in a row is text at any depth.
"""

import collections
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import fsspec
import jinja2
import jinja2.sandbox
import yaml

from flanjax.data.draws import Draw
from flanjax.data.prompts import Instance, PromptError
from flanjax.data.sources import BadRow, excerpt
from flanjax.data.tasks import Row, Text

SEPARATOR = "|||"
_IN_ROW = "\ue000\ue001\ue002"  # stands for a separator that is text of the row while the template is rendered
_DRAW = "_draw"


@dataclass(frozen=True, kw_only=True)
class Prompted:
    """What a template makes of a row."""

    inputs: str
    targets: tuple[str, ...]
    options: tuple[str, ...] = ()

    def text(self) -> Text:
        """The first target; all of them are references."""
        return Text(inputs=self.inputs, targets=self.targets[0], references=self.targets)

    def instance(self) -> Instance:
        """An instance of the task types t0_*."""
        return {"prompt": self.inputs, "answer": self.targets[0], "options": list(self.options)}


@dataclass(frozen=True, kw_only=True)
class PromptTemplate:
    """One template of a dataset.

    Attributes:
        name: as published.
        jinja: input ||| target.
        answer_choices: choice ||| choice ..., or None.
        dataset, subset: what it is for, as Hugging Face names it.
        original_task: whether it asks for what the dataset was made for; None where that is not said.
        choices_in_prompt: whether the choices can be read in the input; likewise.
        metrics, languages: as published.
        file: where it is from.

    Raises:
        PromptError: it is no Jinja.
    """

    name: str
    jinja: str
    answer_choices: str | None = None
    dataset: str = ""
    subset: str = ""
    original_task: bool | None = None
    choices_in_prompt: bool | None = None
    metrics: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    file: str = ""

    def __post_init__(self) -> None:
        try:
            for source in (self.jinja, self.answer_choices or ""):
                _environment().parse(source)
        except jinja2.TemplateError as error:
            raise PromptError(f"{self.file}: template {self.name!r}: {error}") from error

    def render(self, row: Row, draw: Draw, place: str) -> Prompted | None:
        """The row in this template; None where the template says nothing of it.

        Raises:
            BadRow: the template fails on the row; the message has its name.
        """
        try:
            if "answer_choices" in row:
                raise ValueError("a row may not have a field 'answer_choices', which a template uses for itself")
            values = {**_protected(row), _DRAW: draw}
            choices = None if self.answer_choices is None else _parts(self.answer_choices, values)
            parts = _parts(self.jinja, {**values, "answer_choices": _protected(choices)})
        except Exception as error:  # whatever an expression can raise
            raise BadRow(f"{place}: template {self.name!r}: {type(error).__name__}: {error}: {excerpt(row)}") from error
        if len(parts) == 1 and parts[0]:
            raise BadRow(f"{place}: template {self.name!r} gives no target: {excerpt(row)}")
        if not parts[0] or not parts[1]:
            return None
        return Prompted(inputs=parts[0], targets=tuple(parts[1:]), options=tuple(choices or ()))


def read_promptsource(file: str) -> dict[str, PromptTemplate]:
    """The templates of one templates.yaml, by name.

    Raises:
        PromptError: it cannot be read, or is no file of templates.
    """
    try:
        with fsspec.open(file, "rt", encoding="utf-8") as stream:
            content = yaml.load(stream.read(), Loader=_Loader)
        templates = [_template(entry, content, file) for entry in content["templates"].values()]
    except yaml.YAMLError as error:
        raise PromptError(f"{file} is not YAML, or has tags that are no data: {error}") from error
    except (OSError, ValueError, ImportError, KeyError, TypeError, AttributeError) as error:
        raise PromptError(f"{file} is no file of templates: {type(error).__name__}: {error}") from error
    return {template.name: template for template in templates}


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Plain data only."""


def _mapping(loader: Any, node: yaml.MappingNode) -> dict[str, Any]:
    mapping: dict[str, Any] = loader.construct_mapping(node, deep=True)
    return mapping


for _tag in ("!Template", "!TemplateMetadata"):
    _Loader.add_constructor(_tag, _mapping)


def _template(entry: Mapping[str, Any], content: Mapping[str, Any], file: str) -> PromptTemplate:
    metadata = entry["metadata"]
    texts = {"name": entry["name"], "jinja": entry["jinja"], "answer_choices": entry["answer_choices"] or ""}
    if wrong := [key for key, value in texts.items() if not isinstance(value, str)]:
        raise TypeError(f"{wrong[0]} of template {entry['name']!r} is no text")
    return PromptTemplate(
        **{**texts, "answer_choices": entry["answer_choices"]},
        dataset=content["dataset"],
        subset=content.get("subset") or "",
        original_task=metadata["original_task"],
        choices_in_prompt=metadata["choices_in_prompt"],
        metrics=tuple(metadata["metrics"]),
        languages=tuple(metadata["languages"]),
        file=file,
    )


def _parts(source: str, values: Mapping[str, Any]) -> list[str]:
    rendered = _compiled(source).render(values)
    return [part.replace(_IN_ROW, SEPARATOR).strip() for part in rendered.split(SEPARATOR)]


def _protected(value: Any) -> Any:
    """A copy, which a template may change (some append to its lists), without separators."""
    if isinstance(value, str):
        return value.replace(SEPARATOR, _IN_ROW)
    if isinstance(value, Mapping):
        return {name: _protected(item) for name, item in value.items()}
    if isinstance(value, Sequence):
        return [_protected(item) for item in value]
    return value


@functools.lru_cache(maxsize=4096)
def _compiled(source: str) -> jinja2.Template:
    return _environment().from_string(source)


@functools.cache
def _environment() -> jinja2.Environment:
    # Not the immutable one: published templates append to lists of their own, 212 times.
    environment = jinja2.sandbox.SandboxedEnvironment(undefined=jinja2.StrictUndefined)
    environment.globals["zip"] = zip
    filters = {"choice": _choice, "random": _choice, "most_frequent": _most_frequent}
    environment.filters.update(filters)
    return environment


@jinja2.pass_context
def _choice(context: jinja2.runtime.Context, items: Sequence[Any]) -> Any:
    draw: Draw = context[_DRAW]
    return draw.choice(list(items))


def _most_frequent(items: Sequence[Any]) -> list[Any] | None:
    """All items that occur as often as the most frequent one."""
    counts = collections.Counter(items)
    most = max(counts.values(), default=0)
    return [item for item, count in counts.items() if count == most] or None
