"""What every command-line door shares: flags, gin files, and errors for people.

A door is a module with a `main(argv) -> int`. It parses its flags here, lets gin build the typed objects of the
library, and makes one call. gin is imported by the doors alone; nothing here imports jax, so that `--help` is instant.

    python -m flanjax.train --gin_file=demo.gin --gin.TRAIN_STEPS=100 --gin.MODEL_DIR=/data/run1

A gin file is looked for as a path, then by bare name in `gin_configs/` (runs, tuning, models). A value after
`--gin.NAME=` that is not a Python literal is taken as a string, so that paths need no quotes inside quotes. So is what
was meant as another type, `false` for a flag say: numbers, flags and texts are compared with the types of the fields.
"""

import argparse
import ast
import dataclasses
import functools
import inspect
import logging
import os
import re
import sys
import tokenize
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flanjax.errors import FlanjaxError, nearest

if TYPE_CHECKING:  # a door that only prints its help imports no jax
    from flanjax.sharding.mesh import MeshConfig

INTERRUPTED = 130  # what a shell reports for a command ended by Ctrl-C


class GinError(FlanjaxError):
    """A gin file that is not found, does not parse, or names something that does not exist."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GinSources:
    """The gin files, in order, and the `(name, value)` overrides of a command line."""

    files: tuple[str, ...] = ()
    overrides: tuple[tuple[str, str], ...] = ()


def gin_parser(module: str, description: str) -> argparse.ArgumentParser:
    """A parser with `--gin_file`; `--gin.NAME=VALUE` is taken out before by `parse_gin_flags`."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        epilog="--gin.NAME=VALUE sets a macro (NAME in capitals) or a parameter (Config.field) after all gin files.",
    )
    parser.add_argument(
        "--gin_file",
        action="append",
        default=[],
        metavar="FILE",
        help="a gin file, by path or by bare name; may be repeated, later files override earlier ones",
    )
    return parser


def parse_gin_flags(parser: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[argparse.Namespace, GinSources]:
    """Parses `argv`; returns the plain flags and the gin sources.

    Worked example: `--gin_file=demo.gin --gin.MODEL_DIR=/data/run1` gives files ("demo.gin",) and overrides
    (("MODEL_DIR", "'/data/run1'"),).
    """
    overrides, plain = [], []
    for argument in argv:
        if match := re.fullmatch(r"--gin\.([\w./]+)=(.*)", argument, flags=re.DOTALL):
            overrides.append((match[1], gin_literal(match[2])))
        elif argument.startswith("--gin."):
            raise GinError(f"{argument}: write --gin.NAME=VALUE, with an equals sign")
        else:
            plain.append(argument)
    flags = parser.parse_args(plain)
    return flags, GinSources(files=tuple(flags.gin_file), overrides=tuple(overrides))


def gin_literal(text: str) -> str:
    """`text` as gin reads it: literals, references and containers as they are, anything else as a quoted string.

    `~/` at its beginning is the home folder, which a shell puts in only at the beginning of a word.
    """
    if text[:1] in "@%[{(":
        return text
    if text.startswith("~/"):
        text = os.path.expanduser(text)
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return repr(text)
    return text


def option_values(pairs: Sequence[str]) -> Mapping[str, Any]:
    """`["data_dir=x", "max_source=512"]` -> {"data_dir": "x", "max_source": 512}."""
    options = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise FlanjaxError(f"--option={pair}: write --option=NAME=VALUE")
        try:
            options[name] = ast.literal_eval(gin_literal(value))
        except (ValueError, SyntaxError) as error:
            raise FlanjaxError(
                f"--option={pair}: {value} is no Python literal; close what it opens, or put a text in quotes of its "
                f"own: --option={name}='\"...\"'"
            ) from error
    return options


def config_folders() -> list[Path]:
    """The folders searched for a gin file given by bare name."""
    from importlib.resources import files

    root = Path(str(files("flanjax.gin_configs")))
    return [root / name for name in ("runs", "tuning", "models")] + [root]


def find_gin_file(name: str) -> Path:
    """The file that `name` means: a path, or a bare name in the shipped folders."""
    if Path(name).is_file():
        return Path(name)
    for folder in config_folders():
        if (folder / name).is_file():
            return folder / name
    known = sorted({path.name for folder in config_folders() for path in folder.glob("*.gin")})
    raise GinError(f"--gin_file={name}: there is no such file here or among the shipped ones{nearest(name, known)}")


def configure(sources: GinSources, configurables: Sequence[type]) -> None:
    """Registers `configurables` with gin and parses the sources, files first.

    Raises:
      GinError: a file is missing or does not parse; a macro is set that no file uses; a parameter does not exist.
        The message names the file or flag and the nearest name that does exist.
    """
    import gin

    gin.clear_config()
    for configurable in configurables:
        if configurable not in _registered:
            _registered[configurable] = gin.external_configurable(_typed(configurable), module="flanjax")
    paths = [find_gin_file(name) for name in sources.files]
    macros = Macros()
    for path in paths:
        macros.read(path)
    with gin.unlock_config():
        for path in paths:
            _parse(gin.parse_config_file, str(path), str(path), configurables)
        for name, value in sources.overrides:
            if "." not in name:
                macros.check_used(name)
                macros.defined[name] = Path(f"--gin.{name}")
            _parse(gin.parse_config, f"{name} = {value}", f"--gin.{name}", configurables)
    macros.check_complete()


_registered: dict[type, Callable[[], object]] = {}
_SCALARS = {int: "a whole number", float: "a number", str: "a text", bool: "True or False", types.NoneType: "None"}


def _typed(configurable: type) -> Callable[..., object]:
    """The maker of a dataclass that refuses a number, flag or text where a field is of another of these types."""
    hints = typing.get_type_hints(configurable)

    @functools.wraps(configurable, updated=())
    def make(**given: object) -> object:
        for name, value in given.items():
            hint = hints.get(name)
            wanted = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
            if set(wanted) <= _SCALARS.keys() and not any(_is_of(value, kind) for kind in wanted):
                kinds = " or ".join(_SCALARS[kind] for kind in wanted)
                quotes = f"; a text that looks like a number is given as '\"{value}\"'" if str in wanted else ""
                raise GinError(f"{configurable.__name__}.{name} is {value!r}: it must be {kinds}{quotes}")
        return configurable(**given)

    del make.__wrapped__  # gin would look through it for parameters
    make.__signature__ = inspect.signature(configurable)  # type: ignore[attr-defined]
    return make


def _is_of(value: object, kind: type) -> bool:
    if kind in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if kind is float else kind)


class Macros:
    """Which macros the gin files define and which they use; gin itself accepts a misspelt one without a word."""

    def __init__(self) -> None:
        self.defined: dict[str, Path] = {}
        self.used: set[str] = set()

    def read(self, path: Path, including: tuple[Path, ...] = ()) -> None:
        """Takes in a file and all that it includes.

        Raises:
          GinError: an included file is not found, or includes itself.
        """
        import gin

        if path.resolve() in including:
            raise GinError(f"{path} includes itself, by way of the file {including[-1]}: give one of them another name")
        # gin resolves `include` from the current folder, then by its search paths: the file's own and the shipped ones.
        for folder in (path.parent, *config_folders()):
            gin.add_config_file_search_path(str(folder))
        text = re.sub(r"""("[^"\n]*"|'[^'\n]*')|#.*""", lambda match: match[1] or "", path.read_text())
        for name in re.findall(r"^(\w+)\s*=", text, flags=re.MULTILINE):
            self.defined.setdefault(name, path)
        self.used.update(re.findall(r"%(\w+)", re.sub(r""""[^"\n]*"|'[^'\n]*'""", "", text)))
        for included in re.findall(r"^include\s+['\"](.+?)['\"]", text, flags=re.MULTILINE):
            candidates = (Path(included), path.parent / included)
            found = next((file for file in candidates if file.is_file()), None) or find_gin_file(included)
            self.read(found, (*including, path.resolve()))

    def check_used(self, name: str) -> None:
        """Refuses a macro of the command line that no file uses."""
        if name not in self.used:
            raise GinError(f"--gin.{name}: no gin file given uses a macro of this name{nearest(name, self.used)}")

    def check_complete(self) -> None:
        """Refuses a macro that is defined and not used, or used and not defined."""
        for name, path in self.defined.items():
            if name not in self.used:
                raise GinError(f"{path}: the macro {name} is used nowhere{nearest(name, self.used)}")
        if missing := sorted(self.used - self.defined.keys()):
            raise GinError(f"{', '.join(missing)} must be set: add --gin.{missing[0]}=VALUE, or a line to a gin file")


def _parse(parse: Callable[[str], object], what: str, place: str, configurables: Sequence[type]) -> None:
    try:
        logging.disable(logging.ERROR)  # gin logs each folder in which an included file is not
        parse(what)
    except (ValueError, SyntaxError, tokenize.TokenError, TypeError, AttributeError, OSError) as error:
        message = str(error).splitlines()[0].rstrip(".")
        raise GinError(f"{place}: {message}{_suggestion(message, configurables)}") from error
    finally:
        logging.disable(logging.NOTSET)


def _suggestion(message: str, configurables: Sequence[type]) -> str:
    """The nearest existing name for the first quoted name of one of gin's messages."""
    parameter = re.search(r"doesn't have a parameter named '(\w+)'", message)
    if parameter:
        owner = re.search(r"[Cc]onfigurable '(?:[\w.]*\.)?(\w+)'", message)
        fields = [
            field.name for c in configurables if not owner or c.__name__ == owner[1] for field in dataclasses.fields(c)
        ]
        return nearest(parameter[1], fields)
    unknown = re.search(r"No configurable matching '(?:[\w.]*\.)?(\w+)'", message)
    return nearest(unknown[1], [c.__name__ for c in configurables]) if unknown else ""


def build(configurable: type) -> object:
    """The object that the parsed gin files describe.

    Raises:
      GinError: a required field has no value, or one is refused; the message names it.
    """
    try:
        return _registered[configurable]()
    except (FlanjaxError, ValueError, TypeError, RuntimeError) as error:
        # gin appends where it was, innermost first, in words for those who know its insides.
        text, *where = re.split(r"\n\s+In call to configurable '(\w+)'.*", str(error))
        missing = re.search(r"(\w+)\.__init__\(\) missing \d+ required keyword-only arguments?: (.+)", text)
        if missing:
            name = missing[1]
            raise GinError(f"{name}: {missing[2]} must be set, in a gin file or as --gin.{name}.FIELD=VALUE") from error
        raise GinError(text if not where or where[0] in text else f"{where[0]}: {text}") from error


def operative_config() -> str:
    """The parsed configuration as gin text, to be saved beside the run."""
    import gin

    return gin.config_str()


def _early_stopping(text: str) -> bool | str:
    return {"true": True, "false": False}.get(text.lower(), text)


# How flags say the fields of `flanjax.generation.decoding.DecodingConfig`, its own ends apart.
_DECODING: Mapping[str, tuple[Callable[[str], Any], str]] = {
    "max_new_tokens": (int, "tokens of an answer at most"),
    "temperature": (float, "what logits are divided by before a token is drawn; 0 takes the likeliest (default)"),
    "top_k": (int, "draw of so many of the likeliest tokens"),
    "top_p": (float, "draw of the fewest tokens that have this probability together"),
    "min_p": (float, "draw of tokens at least this part as likely as the likeliest"),
    "repetition_penalty": (float, "above 1 makes tokens that are there already less likely"),
    "num_samples": (int, "answers to each input"),
    "seed": (int, "of what is drawn"),
    "num_beams": (int, "hypotheses of beam search"),
    "length_penalty": (float, "beams: the power of a hypothesis's length that divides its log-likelihood"),
    "early_stopping": (_early_stopping, "beams: True, False or never"),
}


def add_decoding_flags(parser: argparse.ArgumentParser, *, leaving_out: Sequence[str] = ()) -> None:
    """Adds a flag for each way of decoding; `decoding_options` gives those that were used."""
    group = parser.add_argument_group("decoding, as transformers.generate means these words")
    for name, (kind, text) in _DECODING.items():
        if name not in leaving_out:
            group.add_argument(f"--{name}", type=kind, default=argparse.SUPPRESS, metavar="X", help=text)
    group.add_argument(
        "--stop",
        action="append",
        default=argparse.SUPPRESS,
        metavar="TEXT",
        help="an answer ends before it; repeat for more",
    )


def decoding_options(flags: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `DecodingConfig` that were given."""
    return {name: value for name, value in vars(flags).items() if name in (*_DECODING, "stop")}


def add_model_flags(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Adds what `flanjax.load` takes."""
    parser.add_argument(
        "--model", required=required, metavar="DIR", help="a run directory, a Hugging Face folder or a .gguf"
    )
    parser.add_argument("--adapter", metavar="DIR", help="a PEFT folder put on the model")
    parser.add_argument("--step", type=int, metavar="N", help="of a run's checkpoint (default: the latest)")
    parser.add_argument(
        "--mesh", metavar="AXIS=N,...", help="spreads it over all devices: data=2,model=4 say (default: one device)"
    )


def mesh_of(flags: argparse.Namespace) -> "MeshConfig | None":
    """The mesh of `--mesh`.

    Raises:
      ShardingError: as `flanjax.sharding.mesh.mesh_config`.
    """
    from flanjax.sharding.mesh import mesh_config

    return None if flags.mesh is None else mesh_config(flags.mesh)


def run_door(door: Callable[[], int]) -> int:
    """Calls `door`; an expected error becomes a message on stderr and exit status 2, never a traceback."""
    try:
        return door()
    except FlanjaxError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
