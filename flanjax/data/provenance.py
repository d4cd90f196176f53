"""What a cache was made from, and whether that is still so: asked before every training, without TensorFlow.

A mixture's file keeps the request (task modules with their options, seed, vocabulary, splits) and what was there to
answer it: the source of the task modules and of every module of ours or the user's own that they import, the versions
of the libraries they import, and sizes and times of the files and folders that options and tasks name. Materialising
redoes only what differs in its fingerprint, so that a difference found here without need costs little.
"""

import ast
import contextlib
import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flanjax.data.cache import CachedMixture, CacheError, NoSuchSplitError, NotCachedError
from flanjax.data.chat_templates import find_template
from flanjax.data.fingerprints import is_own_code
from flanjax.data.source_files import Stamp, changes, existing_paths, stamp_of
from flanjax.data.vocabularies import Vocabulary, VocabularySource

_SHOWN = 3  # differences that a message names


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked of materialising, as far as it decides what is written; see `materialize` for the fields."""

    tasks: Mapping[str, Mapping[str, Any]]
    vocabulary: VocabularySource
    seed: int
    splits: Sequence[str]
    chat_template: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The request as JSON gives it back."""
        return {
            "options": json.loads(json.dumps(self.tasks, default=_plain)),
            "vocabulary": _described(self.vocabulary),
            "seed": self.seed,
            "splits": list(self.splits),
        }


@dataclass(frozen=True, kw_only=True)
class Differences:
    """How a request and its sources differ from those of a cache, each in words.

    Attributes:
        changed: what must be materialised again.
        gone: sources that are no longer there; what they gave is in the cache.
    """

    changed: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()


def record(request: Request, code: Mapping[str, str | None], files: Mapping[str, Stamp]) -> dict[str, Any]:
    """What a mixture's file keeps: the request, `code_identities` and the stamps of its files."""
    return {"request": request.to_json(), "code": {name: it for name, it in code.items() if it}, "files": dict(files)}


def differences(
    mixture: CachedMixture, request: Request, ignored: Iterable[str | os.PathLike[str]] = ()
) -> Differences:
    """Compares a mixture of the cache with what is asked for now.

    A request that names no task modules can only take the mixture as it is, whatever it was made from.

    Args:
        mixture: from the cache.
        request: what is asked for.
        ignored: folders whose files do not count: the cache, the run.

    Raises:
        VocabularyError: the request's vocabulary file is not there.
        ChatTemplateError: there is no such chat template.
    """
    changed: list[str] = []
    gone: list[str] = []
    wanted = mixture.vocabulary
    if request.vocabulary.path is not None:
        wanted = Vocabulary.from_file(request.vocabulary.path, request.vocabulary.extra_ids)
        if wanted.identity != mixture.vocabulary.identity:
            changed.append(f"its vocabulary is {mixture.vocabulary.identity}, the run's is {wanted.identity}")
    asked, had = find_template(request.chat_template, wanted), mixture.chat_template
    if (asked and asked.identity) != (had and had.identity):
        names = ["none" if one is None else f"{one.name!r} ({one.identity})" for one in (had, asked)]
        changed.append(f"its chat template is {names[0]}, the run's is {names[1]}")
    if not request.tasks:
        return Differences(changed=tuple(changed))
    if not mixture.made_from:
        return Differences(changed=(*changed, "it does not say what it was made from"))
    changed += _request_changes(mixture.made_from["request"], request)
    for compare in (
        _code_changes(mixture.made_from["code"], request.tasks),
        _file_changes(mixture.made_from["files"], request.tasks, [os.path.realpath(folder) for folder in ignored]),
    ):
        changed += compare.changed
        gone += compare.gone
    return Differences(changed=tuple(changed), gone=tuple(gone))


def is_current(
    cache_dir: str | Path,
    needed: Mapping[str, Sequence[str]],
    request: Request,
    *,
    notice: Callable[[str], None],
    ignored: Iterable[str | os.PathLike[str]] = (),
) -> bool:
    """Whether the cache holds what a run needs, made from what it asks for.

    Args:
        cache_dir: the cache.
        needed: mixtures, and the splits that each of them must have; another split of the request may be absent.
        request: what is asked for. The vocabulary of the first mixture is that of all.
        notice: told what is missing or has changed, and what is used although its sources are gone.
        ignored: folders whose files do not count.

    Raises:
        VocabularyError: the request's vocabulary file is not there.
    """
    current = True
    for mixture, splits in needed.items():
        try:
            opened = _open_splits(cache_dir, mixture, splits, request.splits)
        except NotCachedError:
            notice(f"{mixture} is not in {cache_dir} yet and is materialised first")
            current = False
            continue
        except CacheError as error:
            notice(f"{mixture} has to be materialised: {error}")
            current = False
            continue
        found = differences(opened, request, ignored)
        if found.changed:
            notice(f"{mixture} has to be materialised again: {_in_words(found.changed)}")
            current = False
        elif found.gone:
            notice(f"{mixture} is used as it was materialised: no longer there is {_in_words(found.gone)}")
        vocabulary = opened.vocabulary
        given = VocabularySource(path=str(vocabulary.path), extra_ids=vocabulary.extra_ids)
        request = dataclasses.replace(request, vocabulary=given)
    return current


def _open_splits(cache_dir: str | Path, mixture: str, needed: Sequence[str], wanted: Sequence[str]) -> CachedMixture:
    """Opens a mixture's splits, so that damage to any of them is found; returns one of those that it must have."""
    opened = [CachedMixture.open(cache_dir, mixture, split) for split in needed]
    for split in set(wanted) - set(needed):
        with contextlib.suppress(NoSuchSplitError):
            CachedMixture.open(cache_dir, mixture, split)
    return opened[0]


def _in_words(items: Sequence[str]) -> str:
    """The first few of some differences."""
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return "; ".join(items[:_SHOWN]) + more


def code_identities(modules: Iterable[str]) -> dict[str, str | None]:
    """The modules and all that they import, found without importing any of them.

    Returns:
        sha256 of the source of a module of ours or the user's own; the version of a library, by its top-level name;
        None for what is not there. The standard library does not count.
    """
    found: dict[str, str | None] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        top = name.split(".")[0]
        if top in sys.stdlib_module_names or name in found:
            continue
        file = _source_of(name)
        if file is not None and is_own_code(file, name):
            source = Path(file).read_bytes()
            found[name] = hashlib.sha256(source).hexdigest()
            waiting.extend(_imported(source, name, is_package=os.path.basename(file) == "__init__.py"))
        elif file is not None:
            found[top] = _version(top)
        else:
            found[name] = None
            if _source_of(top) is None:
                found[top] = None
    return dict(sorted(found.items()))


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else str(value)


def _described(source: VocabularySource) -> str:
    if source.path is not None:
        return "given"
    if source.train_size is not None:
        return f"{source.train_size} pieces and {source.extra_ids} extra ids, trained on the mixture"
    return "the tasks' own"


def _request_changes(before: Mapping[str, Any], request: Request) -> list[str]:
    now = request.to_json()
    found = []
    if before["seed"] != now["seed"]:
        found.append(f"its seed is {before['seed']}, the run's is {now['seed']}")
    # A given vocabulary is known by its pieces, whichever way these have come into the cache.
    if now["vocabulary"] not in ("given", before["vocabulary"]):
        found.append(f"its vocabulary was to be {before['vocabulary']}, the run's is to be {now['vocabulary']}")
    if missing := [split for split in now["splits"] if split not in before["splits"]]:
        found.append(f"it was not asked for split {' or '.join(missing)}")
    for name in sorted(before["options"].keys() | now["options"].keys()):
        then, options = before["options"].get(name), now["options"].get(name)
        if then is None or options is None:
            found.append(f"task module {name} was {'not ' if then is None else ''}among its tasks")
            continue
        for key in sorted(then.keys() | options.keys()):
            if (key in then, then.get(key)) != (key in options, options.get(key)):
                values = [repr(given[key]) if key in given else "not given" for given in (then, options)]
                found.append(f"option {key} of {name} was {values[0]}, it is {values[1]}")
    return found


def _code_changes(before: Mapping[str, str | None], tasks: Iterable[str]) -> Differences:
    now = code_identities(tasks)
    missing = [f"module {name}" for name, identity in now.items() if identity is None and before.get(name)]
    if any(now.get(name) is None for name in tasks):
        return Differences(gone=tuple(missing))  # what it imported cannot be told any more
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    return Differences(
        changed=tuple(f"the code of {name} has changed" for name in names if f"module {name}" not in missing),
        gone=tuple(missing),
    )


def _file_changes(before: Mapping[str, Stamp], tasks: Mapping[str, Any], ignored: Sequence[str]) -> Differences:
    changed, gone = [], []
    for path, stamp in before.items():
        now = stamp_of(path, ignored)
        if now is None:
            gone.append(path)
        else:
            changed += changes(path, stamp, now)
    named = sorted({os.path.abspath(path) for path in existing_paths(tasks)})
    changed += [path for path in named if not any(_covers(root, path) for root in before)]
    return Differences(changed=tuple(f"{path} has changed" for path in changed), gone=tuple(gone))


def _covers(root: str, path: str) -> bool:
    return path == root or path.startswith(root + os.sep)


def _source_of(module: str) -> str | None:
    """The file of a module, without importing the packages that it lies in, as `importlib.util.find_spec` would."""
    name, path = "", None
    spec = None
    for part in module.split("."):
        name = f"{name}.{part}" if name else part
        if spec is not None and path is None:
            return None  # the last one was no package
        try:
            specs = (finder.find_spec(name, path) for finder in sys.meta_path if hasattr(finder, "find_spec"))
            spec = next((spec for spec in specs if spec is not None), None)
        except (ImportError, ValueError):
            return None
        if spec is None:
            return None
        path = spec.submodule_search_locations
    return spec.origin if spec is not None and spec.origin and os.path.isfile(spec.origin) else None


def _imported(source: bytes, module: str, *, is_package: bool) -> Iterator[str]:
    """The names of modules that a source imports anywhere in it."""
    package = module if is_package else module.rpartition(".")[0]
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return  # whoever imports it will say so
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                try:
                    base = importlib.util.resolve_name("." * node.level + base, package)
                except ImportError:
                    continue
            yield base
            # Names of a package may be modules of it.
            names = (f"{base}.{alias.name}" for alias in node.names)
            yield from (name for name in names if _source_of(name) is not None)


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"
