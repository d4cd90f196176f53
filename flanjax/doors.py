"""What every command-line door shares: flags, gin files, and errors for people.

A door is a module with a `main(argv) -> int`. It parses its flags here, lets gin build the typed objects of the
library, and makes one call. gin is imported by the doors alone; nothing here imports jax, so that `--help` is instant.

    python -m flanjax.train --gin_file=demo.gin --gin.TRAIN_STEPS=100 --gin.MODEL_DIR=/data/run1

A gin file is looked for as a path, then by bare name in `gin_configs/` (runs, tuning, models). A value after
`--gin.NAME=` that is not a Python literal is taken as a string, so that paths need no quotes inside quotes.
"""

import argparse
import ast
import dataclasses
import logging
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from flanjax.errors import FlanjaxError, nearest

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
    """`text` as gin reads it: literals, references and containers as they are, anything else as a quoted string."""
    if text[:1] in "@%[{(":
        return text
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return repr(text)
    return text


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
            gin.external_configurable(configurable, module="flanjax")
            _registered.add(configurable)
    paths = [find_gin_file(name) for name in sources.files]
    macros = Macros()
    for path in paths:
        macros.read(path)
    with gin.unlock_config():
        for path in paths:
            _parse(gin.parse_config_file, str(path), str(path), configurables)
        for name, value in sources.overrides:
            if re.fullmatch(r"[A-Z][A-Z0-9_]*", name):
                macros.check_used(name)
                macros.defined[name] = Path(f"--gin.{name}")
            _parse(gin.parse_config, f"{name} = {value}", f"--gin.{name}", configurables)
    macros.check_complete()


_registered: set[type] = set()


class Macros:
    """Which macros the gin files define and which they use; gin itself accepts a misspelt one without a word."""

    def __init__(self) -> None:
        self.defined: dict[str, Path] = {}
        self.used: set[str] = set()

    def read(self, path: Path) -> None:
        """Takes in a file and all that it includes."""
        import gin

        # gin resolves `include` through its search paths; ours are the shipped folders and the file's own.
        for folder in (path.parent, *config_folders()):
            gin.add_config_file_search_path(str(folder))
        text = re.sub(r"#.*", "", path.read_text())
        for name in re.findall(r"^([A-Z][A-Z0-9_]*)\s*=", text, flags=re.MULTILINE):
            self.defined.setdefault(name, path)
        self.used.update(re.findall(r"%([A-Z][A-Z0-9_]*)", text))
        for included in re.findall(r"^include\s+['\"](.+?)['\"]", text, flags=re.MULTILINE):
            beside = path.parent / included
            self.read(beside if beside.is_file() else find_gin_file(included))

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
    except (ValueError, SyntaxError, TypeError, AttributeError, OSError) as error:
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
      GinError: a required field or macro has no value; the message names it.
    """
    import gin

    try:
        return gin.get_configurable(configurable)()
    except (ValueError, TypeError, RuntimeError) as error:
        # gin appends where it was; the first line is the message for a person.
        text = str(error)
        missing = re.search(r"missing \d+ required keyword-only arguments?: (.+?)(?:\n|$)", text)
        if missing:
            owner = re.search(r"(\w+)\.__init__", text)
            name = owner[1] if owner else configurable.__name__
            raise GinError(f"{name}: {missing[1]} must be set, in a gin file or as --gin.{name}.FIELD=VALUE") from error
        raise GinError(text) from error


def operative_config() -> str:
    """The parsed configuration as gin text, to be saved beside the run."""
    import gin

    return gin.config_str()


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
