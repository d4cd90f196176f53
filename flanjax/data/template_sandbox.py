r"""Jinja for the templates of strangers: its sandbox, with bounds on what a rendering makes.

    environment = Sandbox(trim_blocks=True)
    running.set(Rendering())                                # one for each rendering
    environment.from_string("{{ 'ab'.ljust(6, '.') }}").render()        # 'ab....'
    environment.from_string("{{ 'ab'.ljust(10**10) }}").render()        # TemplateRuntimeError, and nothing was made

Jinja's own sandbox keeps a template from what is not its business, and lets it fill the memory. Here whatever makes
more than it is given (a width, a repetition, a replacement, a join, a format, a product) is asked for the length of
its result before it is called; numbers have a limit, and so have all texts and lists of a rendering together, its
iterations and its calls. Filters and methods that no chat needs and that have other ways to grow are not there.
"""

import contextvars
import dataclasses
import functools
import json
import re
import string
from collections.abc import Callable, Iterable, Iterator, KeysView, Mapping, ValuesView
from typing import Any

import jinja2
import jinja2.utils
import jinja2.visitor
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

MOST = 1 << 24  # characters of a text; an entry of a list counts as 8
_MOST_TOGETHER = 1 << 28  # characters of all that a rendering makes
_MOST_STEPS = 1 << 20  # iterations and calls of a rendering
_MOST_BITS = 1 << 12  # of a whole number
_MOST_POWER = 64  # exponents, decimals of `round`, and columns of an indent in JSON

_TEXT_METHODS = frozenset(
    {
        "capitalize", "casefold", "center", "count", "endswith", "find", "format", "index", "isalnum", "isalpha",
        "isascii", "isdecimal", "isdigit", "isidentifier", "islower", "isnumeric", "isprintable", "isspace", "istitle",
        "isupper", "join", "ljust", "lower", "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind",
        "rindex", "rjust", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "swapcase",
        "title", "upper", "zfill"
    }
)  # fmt: skip
_ABSENT_FILTERS = ("batch", "pprint", "random", "slice", "urlize", "wordwrap", "xmlattr")
# These hand on what is there, and make no text of a list.
_LOOKING = frozenset(
    {
        "abs", "attr", "count", "d", "default", "dictsort", "first", "float", "groupby", "int", "items", "last",
        "length", "list", "map", "max", "min", "reject", "rejectattr", "reverse", "round", "select", "selectattr",
        "sort", "sum", "unique"
    }
)  # fmt: skip
# The width and the precision of a conversion; a `*` takes them from the values.
_CONVERSION = re.compile(r"%(?:\([^()]*\))?[-#0 +]*(\*|\d*)(?:\.(\*|\d*))?")


@dataclasses.dataclass(kw_only=True)
class Rendering:
    """How much a rendering has done: iterations and calls, and characters made."""

    steps: int = 0
    made: int = 0

    def step(self) -> None:
        """One more iteration or call."""
        self.steps += 1
        if self.steps > _MOST_STEPS:
            raise jinja2.TemplateRuntimeError(f"more than {_MOST_STEPS:,} steps: it does not seem to end")

    def make(self, size: int) -> None:
        """So many more characters."""
        self.made += size
        if self.made > _MOST_TOGETHER:
            raise jinja2.TemplateRuntimeError(f"it makes more than {_MOST_TOGETHER:,} characters on its way")


running: contextvars.ContextVar[Rendering] = contextvars.ContextVar("running")


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with the bounds."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **options: Any):
        # Not optimized: constants would be computed while a template is compiled, which nobody counts.
        super().__init__(finalize=_written, optimized=False, **options)
        del self.globals["lipsum"]  # made up of random words, as many as one likes
        for name in _ABSENT_FILTERS:
            del self.filters[name]
        self.filters["tojson"] = _tojson
        self.filters = {name: _guarded(name, function) for name, function in self.filters.items()}
        self.filters |= {"counted": _counted, "bounded": bounded}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        counted: nodes.Template = _Counting().visit(super()._parse(source, name, filename))
        return counted

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Of texts the usual methods, of numbers none."""
        if isinstance(obj, str):
            return attr in _TEXT_METHODS
        return not isinstance(obj, int | float) and super().is_safe_attribute(obj, attr, value)

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        """An operator, its result bounded."""
        for one, other in ((left, right), (right, left)):
            if operator == "*" and isinstance(other, int):
                _require(_own_size(one) * other)
        if operator == "**" and (not isinstance(right, int | float) or abs(right) > _MOST_POWER):
            raise jinja2.TemplateRuntimeError(f"{right!r} is too large a power")
        if operator == "%" and isinstance(left, str):
            _require(_size_of_printf(left, right))
        return bounded(super().call_binop(context, operator, left, right))

    def call(__self, __context: jinja2.runtime.Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """A call, its result bounded."""
        running.get().step()
        method = getattr(__obj, "__wrapped__", __obj)  # `format` is wrapped by Jinja
        text = getattr(method, "__self__", None)
        if isinstance(text, str):
            args = tuple(list(value) if isinstance(value, Iterator) else value for value in args)
            _require(_size_of_text_method(method.__name__, text, args, kwargs))
        if isinstance(__obj, jinja2.runtime.LoopContext):  # a recursive loop
            args = tuple(map(_counted, args))
        return bounded(super().call(__context, __obj, *args, **kwargs))

    @staticmethod
    def concat(pieces: Iterable[str]) -> str:
        """What is written, as long as it is not too much."""
        written, size = [], 0
        for piece in pieces:
            size += len(piece)
            _require(size)
            written.append(piece)
        text: str = bounded("".join(written))
        return text


class _Counting(jinja2.visitor.NodeTransformer):
    """Puts what is counted into a parsed template: what a loop goes over, texts that are joined, and slices."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _filtered("counted", node.iter)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [_filtered("string", one) for one in node.nodes]
        return _filtered("bounded", node)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _filtered("bounded", node) if isinstance(node.arg, nodes.Slice) else node


def _filtered(name: str, node: nodes.Node) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def bounded(value: Any) -> Any:
    """A value that a template has made, unless it is too large, or too much with all before it.

    Raises:
        jinja2.TemplateRuntimeError: it is.
    """
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        raise jinja2.TemplateRuntimeError(f"it makes a whole number of more than {_MOST_BITS:,} bits")
    size = _own_size(value)
    _require(size)
    running.get().make(size)
    return value


def require_short(format: str) -> None:
    """Refuses a format of `%`, of texts or of dates, that writes too much by itself.

    Raises:
        jinja2.TemplateRuntimeError: it does.
    """
    _require(_size_of_printf(format, ()))


def _require(size: int) -> None:
    if size > MOST:
        raise jinja2.TemplateRuntimeError(f"it makes more than {MOST:,} characters: too long a text or list")


def _own_size(value: Any) -> int:
    """Of a text or list alone, whatever its entries are."""
    if isinstance(value, str):
        return len(value)
    return 8 * len(value) if isinstance(value, list | tuple | Mapping) else 0


def _size(value: Any) -> int:
    """About how long the text of a value is; of one that is too long, something that is too long."""
    size, waiting = 0, [value]
    while waiting and size <= MOST:
        one = waiting.pop()
        if isinstance(one, jinja2.utils.Namespace):
            raise jinja2.TemplateRuntimeError("a namespace is no text: write one of its values")
        if isinstance(one, str):
            size += len(one)
        elif isinstance(one, Mapping):
            size += 8 * len(one)
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple | KeysView | ValuesView | type({}.items())):
            size += 8 * len(one)
            waiting += one
        else:
            size += one.bit_length() // 3 if isinstance(one, int) else 8
    return size


def _size_of_text_method(name: str, text: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """How long the result of a method of a text will be at most."""
    if name in ("center", "ljust", "rjust", "zfill"):
        return max([len(text), *(value for value in args if isinstance(value, int))])
    if name == "join":
        return _size(args) + len(text) * sum(map(len, args))
    if name == "replace":
        return _size_of_replacing(text, *args[:2])
    if name == "format":
        return _size_of_format(text, [*args, *kwargs.values()])
    return len(text)


def _size_of_replacing(text: str, old: Any = "", new: Any = "") -> int:
    return len(text) + text.count(str(old)) * len(str(new))


def _size_of_format(text: str, values: list[Any]) -> int:
    """Of `str.format`."""
    specs = [spec or "" for _, field, spec, _ in string.Formatter().parse(text) if field is not None]
    if any("{" in spec for spec in specs):
        raise jinja2.TemplateRuntimeError("a format that depends on a value is refused: write it out")
    widths = sum(int(digits) for spec in specs for digits in re.findall(r"\d+", spec))
    return len(text) + widths + len(specs) * max(map(_size, values), default=0)


def _size_of_printf(text: str, values: Any) -> int:
    """Of `text % values`."""
    found = [one for match in _CONVERSION.findall(text) for one in match if one]
    if "*" in found or re.search(r"%\([^()]*\(", text):
        raise jinja2.TemplateRuntimeError("a format that depends on a value is refused: write it out")
    times = text.count("%") if isinstance(values, Mapping) else 1
    return len(text) + sum(map(int, found)) + times * _size(values)


def _size_of_filter(name: str, value: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """How long the result of a filter that makes texts, or of `sum`, will be at most."""
    given = [*args, *kwargs.values()]
    if name == "center":
        return max([0, *(width for width in given if isinstance(width, int))])
    if name == "format":
        return _size_of_printf(str(value), kwargs or args)
    if name == "indent":
        width = max([4, *(one if isinstance(one, int) else _size(one) for one in given)])
        return (len(str(value).splitlines()) + 1) * width + len(str(value))
    if name == "join":
        return _size(value) + len(value) * max([0, *map(_size, given)])
    if name == "replace":
        named = dict(zip(("old", "new"), args, strict=False)) | dict(kwargs)
        return _size_of_replacing(str(value), named.get("old", ""), named.get("new", ""))
    if name == "sum" and given:
        return _size(value) * (1 if all(isinstance(one, int | float | str) for one in given) else len(value))
    return 0


def _guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that is asked for the length of its result first; of what it yields each entry is counted."""
    leading = 1 if hasattr(function, "jinja_pass_arg") else 0  # Jinja's own argument

    @functools.wraps(function)
    def guarded(*everything: Any, **kwargs: Any) -> Any:
        before, (value, *rest) = everything[:leading], everything[leading:]
        args = tuple(rest)
        if name in ("join", "sum") and not isinstance(value, str | list | tuple):
            value = list(value)
        if name not in _LOOKING:
            _require(_size([value, *args, *kwargs.values()]))
        if name == "round" and any(
            isinstance(one, int) and abs(one) > _MOST_POWER for one in (*args, *kwargs.values())
        ):
            raise jinja2.TemplateRuntimeError(f"round: more than {_MOST_POWER} decimals")
        _require(_size_of_filter(name, value, args, kwargs))
        made = function(*before, value, *args, **kwargs)
        return _counted(made) if isinstance(made, Iterator) else bounded(made)

    return guarded


def _counted(values: Iterable[Any]) -> Iterator[Any]:
    """What is gone over, counted."""
    for value in values:
        running.get().step()
        yield value


@jinja2.pass_context
def _written(context: jinja2.runtime.Context, value: Any) -> Any:
    """A value that is to be written, unless its text would be too long."""
    _require(_size(value))
    return value


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """As transformers has it, up to the bound."""
    if (len(indent) if isinstance(indent, str) else indent or 0) > _MOST_POWER:
        raise jinja2.TemplateRuntimeError(f"tojson: an indent of more than {_MOST_POWER} columns")
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    return Sandbox.concat(encoder.iterencode(value))
