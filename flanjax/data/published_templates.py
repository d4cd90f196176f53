"""The templates of the Flan collection, read from a user's own copy of google-research/FLAN, as task types.

    types = read_flan_templates("FLAN/flan/v2/templates.py", branched="FLAN/flan/v2/flan_templates_branched.py")
    render_arm(types["rte"], {"premise": ..., "hypothesis": ..., "options": [...], "answer": ...}, context, Arm.ZSOPT)

A file is Python, of which nothing is run: only literals are read, `FewShotPattern(...)` of literals, and one key set to
another's value; or JSON of the same tables. PATTERNS are zero-shot, (inputs, targets) by task key; FEWSHOT_PATTERNS
stand among exemplars; INLINE_FS_PATTERNS, whose one exemplar is a part of the template, become "<key>_inline".

Fields keep their published names, but for the option block {options_} or {options_str}, which becomes {options}; the
turns {dialog_}, {dialog}, or {history} in a target; {cot} or {chain_of_thought}, {rationale}; and what a key asks for
in most of its templates ({summary}, {highlights}, {target}, ...), {answer}. `with_names` renames others.

Without options, the release takes the older wording of `branched` where that has the key, and deletes the block with
what leads to it (flan/v2/templates.py, PATTERNS_NO_OPTIONS and FEWSHOT_PATTERNS_NO_OPTIONS).
"""

import ast
import collections
import dataclasses
import json
import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import fsspec

from flanjax.data.prompts import PromptError, TaskType, TypeTemplate

_TABLES = ("PATTERNS", "FEWSHOT_PATTERNS", "INLINE_FS_PATTERNS")
_SPECIAL = {"options_": "options", "options_str": "options", "cot": "rationale", "chain_of_thought": "rationale"}
_LAYOUT = {  # FewShotPattern's fields, and the defaults of those that a template may leave out
    "inputs_prefix": ("inputs_prefix", ""),
    "targets_prefix": ("targets_prefix", ""),
    "x_y_delimiter": ("delimiter", "\n\n"),
    "example_separator": ("separator", "\n\n\n"),
    "in_template_mix": ("mixed", True),
}
_INPUT_PATTERN = "{{inputs}}{final_suffix}"
_DELETED = ("\n\n{options_}", "\n{options_}", "{options_}", "\n\n{options_str}")
_DELETED_FEW_SHOT = (
    *("\n\n{options_}", "\n{options_}", " | {options_}", " {options_}", " ({options_})", "{options_}"),
    *("\n\n{options_str}", "\n{options_str}"),
)

Pair = Sequence[str]
Tables = dict[str, dict[str, list[Any]]]


def read_flan_templates(path: str, *, branched: str = "") -> dict[str, TaskType]:
    """The task types of a file of templates, by task key.

    Args:
        path: flan/v2/templates.py or flan/templates.py, or JSON {"PATTERNS": {key: [[inputs, targets], ...]}, ...}.
        branched: flan/v2/flan_templates_branched.py, or the same in JSON.

    Raises:
        PromptError: a file cannot be read, or has something else where a template should be.
    """
    tables = _read_tables(path)
    older = _read_tables(branched)["PATTERNS"] if branched else {}
    few_shot = tables.get("FEWSHOT_PATTERNS", {})
    types = {}
    for key, pairs in tables["PATTERNS"].items():
        without = [_deleted(pair, _DELETED) for pair in older.get(key, pairs)]
        types[key] = _type(key, pairs, without, few_shot.get(key, []), path)
    for key, pairs in tables.get("INLINE_FS_PATTERNS", {}).items():
        types[f"{key}_inline"] = _type(f"{key}_inline", pairs, pairs, [], path)
    return types


def flan_key(task: str) -> str:
    """The key of a Flan 2022 task's templates; P3 subsets have those of their type, and NIv2 has natinst_v2."""
    for start in ("para_crawl", "wmt16_translate", "arc", "anli", "mnli"):
        if task.startswith(f"{start}_"):
            return start
    return task


def with_names(type: TaskType, names: Mapping[str, str]) -> TaskType:
    """The type with fields renamed, {published name: name}; a name that it does not have is no error."""

    def renamed(templates: Iterable[TypeTemplate]) -> tuple[TypeTemplate, ...]:
        """The templates with the fields under their new names."""
        return tuple(
            dataclasses.replace(
                template,
                inputs=_renamed(template.inputs, names),
                targets=_renamed(template.targets, names),
                opening=_renamed(template.opening, names),
            )
            for template in templates
        )

    return dataclasses.replace(
        type,
        fields=tuple(dict.fromkeys(names.get(field, field) for field in type.fields if names.get(field) != "answer")),
        templates=renamed(type.templates),
        hidden=renamed(type.hidden),
        few_shot=renamed(type.few_shot),
        few_shot_hidden=renamed(type.few_shot_hidden),
    )


def over_fields(type: TaskType, fields: Sequence[str]) -> TaskType:
    """The type whose instances have these fields: templates that ask for others are left out.

    Raises:
        PromptError: there would be no template in some form.
    """
    known = {*fields, "answer", "options", "rationale", *(("dialog",) if "history" in fields else ())}

    def kept(templates: Sequence[TypeTemplate]) -> tuple[TypeTemplate, ...]:
        left = tuple(template for template in templates if template.field_names() <= known)
        if templates and not left:
            raise PromptError(f"{type.name}: all templates ask for more than {', '.join(fields)}")
        return left

    return dataclasses.replace(
        type,
        fields=tuple(fields),
        templates=kept(type.templates),
        hidden=kept(type.hidden),
        few_shot=kept(type.few_shot),
        few_shot_hidden=kept(type.few_shot_hidden),
    )


def _type(key: str, pairs: Sequence[Pair], without: Sequence[Pair], few_shot: Sequence[Any], path: str) -> TaskType:
    try:
        shown = [_pair_template(pair) for pair in pairs]
        hidden = [_pair_template(pair) for pair in without]
        among = [_few_shot_template(pattern) for pattern in few_shot]
        among_hidden = [_few_shot_template(_deleted_fields(pattern)) for pattern in few_shot]
    except ValueError as error:
        raise PromptError(f"{path}: templates of {key!r}: {error}") from error
    names = set().union(*(template.field_names() for template in (*shown, *hidden, *among)))
    if unnamed := sorted(name for name in names if not name.isidentifier()):
        raise PromptError(f"{path}: templates of {key!r}: {unnamed[0]!r} is no name of a field")
    published = TaskType(
        name=key,
        fields=tuple(sorted(names - {"answer", "options", "rationale", "dialog", "history"}))
        + (("history",) if names & {"dialog", "history"} else ()),
        templates=tuple(shown),
        hidden=tuple(hidden) if hidden != shown else (),
        few_shot=tuple(among),
        few_shot_hidden=tuple(among_hidden) if among_hidden != among else (),
        rationale="rationale" in names,
    )
    return published if "answer" in names else with_names(published, {_asked_for(published): "answer"})


def _asked_for(type: TaskType) -> str:
    """The field that is the whole target of most templates."""
    wanted = collections.Counter(template.targets.strip() for template in type.templates)
    return next((target[1:-1] for target, _ in wanted.most_common() if target[1:-1] in type.fields), "")


def _pair_template(pair: Pair) -> TypeTemplate:
    inputs, targets = pair
    names = {**_SPECIAL, "dialog_": "dialog"}
    return TypeTemplate(inputs=_renamed(inputs, names), targets=_renamed(targets, {**_SPECIAL, "dialog_": "history"}))


def _few_shot_template(pattern: Mapping[str, Any]) -> TypeTemplate:
    pair = _pair_template((pattern["inputs"], pattern["targets"]))
    layout = {ours: pattern.get(name, default) for name, (ours, default) in _LAYOUT.items()}
    suffix = pattern.get("final_suffix", "")
    opening, middle, ending = (
        pattern.get("input_pattern", _INPUT_PATTERN).format(final_suffix=suffix).partition("{inputs}")
    )
    if not middle or ending:
        raise ValueError(f"input_pattern {pattern.get('input_pattern')!r} has more than an opening before the inputs")
    return dataclasses.replace(pair, opening=opening, **layout)


def _deleted(pair: Pair, blocks: Sequence[str]) -> Pair:
    inputs, targets = pair
    for block in blocks:
        inputs, targets = inputs.replace(block, ""), targets.replace(block, "")
    return inputs, targets


def _deleted_fields(pattern: Mapping[str, Any]) -> dict[str, Any]:
    inputs, targets = _deleted((pattern["inputs"], pattern["targets"]), _DELETED_FEW_SHOT)
    return {**pattern, "inputs": inputs, "targets": targets}


def _renamed(text: str, names: Mapping[str, str]) -> str:
    """A format string with other names in its braces."""
    pieces = []
    for literal, name, _, _ in string.Formatter().parse(text):
        pieces.append(literal.replace("{", "{{").replace("}", "}}"))
        pieces.append("" if name is None else f"{{{names.get(name, name)}}}")
    return "".join(pieces)


def _read_tables(path: str) -> Tables:
    try:
        with fsspec.open(path, "rt", encoding="utf-8") as file:
            text = file.read()
        tables = json.loads(text) if path.endswith(".json") else _literal_tables(text, path)
    except (OSError, ValueError, SyntaxError, RecursionError, ImportError) as error:
        raise PromptError(f"{path} is no file of templates: {error}") from error
    tables = {name: table for name, table in tables.items() if name in _TABLES} if isinstance(tables, dict) else {}
    if not tables.get("PATTERNS"):
        raise PromptError(f"{path} has no PATTERNS")
    for name, table in tables.items():
        for key, templates in table.items():
            for index, template in enumerate(templates):
                _check(name, template, f"{path}: {name}[{key!r}][{index}]")
    return tables


def _check(table: str, template: Any, place: str) -> None:
    values = list(template.values()) if isinstance(template, dict) else template
    pair = table != "FEWSHOT_PATTERNS" and isinstance(template, list) and len(values) == 2
    pattern = table == "FEWSHOT_PATTERNS" and isinstance(template, dict) and {"inputs", "targets"} <= set(template)
    if not (pair or pattern) or not all(isinstance(value, str | bool) for value in values):
        raise PromptError(f"{place} is no template: {template!r:.80}")


def _literal_tables(source: str, path: str) -> Tables:
    tables: Tables = {}
    for statement in ast.parse(source, path).body:
        if not isinstance(statement, ast.Assign) or len(statement.targets) != 1:
            continue
        match statement.targets[0], statement.value:
            case ast.Name(id=name), value if name in _TABLES:
                tables[name] = _literal(value, path)
            case (
                ast.Subscript(value=ast.Name(id=name), slice=ast.Constant(value=str(key))),
                ast.Subscript(value=ast.Name(id=other), slice=ast.Constant(value=str(old))),
            ) if name in tables and old in tables.get(other, {}):
                tables[name][key] = tables[other][old]
    return tables


def _literal(node: ast.expr, path: str) -> Any:
    match node:
        case ast.Constant(value=str() | bool() as value):
            return value
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_literal(item, path) for item in items]
        case ast.Dict(keys=keys, values=values) if all(isinstance(key, ast.Constant) for key in keys):
            return {_literal(key, path): _literal(value, path) for key, value in zip(keys, values, strict=True) if key}
        case ast.Call(func=ast.Name(id="FewShotPattern"), args=[], keywords=keywords):
            return {word.arg: _literal(word.value, path) for word in keywords if word.arg}
    raise PromptError(f"{path}:{node.lineno}: not a literal: {ast.unparse(node):.80}")
