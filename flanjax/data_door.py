"""Looks at data and fetches it: `python -m flanjax.data list|show|stats|lint|fetch`.

    python -m flanjax.data list                          every dataset, its mixtures, size and licence
    python -m flanjax.data list flan2021                 the tasks of a mixture, with their rates
    python -m flanjax.data fetch dolly                   into data/dolly, or $FLANJAX_DATA_DIR/dolly
    python -m flanjax.data show dolly --vocabulary=spiece.model
    python -m flanjax.data stats dolly --vocabulary=spiece.model --plot=lengths.png
    python -m flanjax.data lint reviews.jsonl --vocabulary=spiece.model --against=data/mmlu

A name is that of a mixture, a task or a dataset, or a file, a folder or an address of one's own data. Options of its
module are given as --option=NAME=VALUE; a module of one's own as --tasks=MODULE.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flanjax import doors
from flanjax.errors import FlanjaxError

if TYPE_CHECKING:
    from flanjax.console import Console
    from flanjax.data.catalog import Entry
    from flanjax.data.preview import PreviewedRow, Span
    from flanjax.data.tasks import Dataset, Download, Family
    from flanjax.data.vocabularies import Vocabulary

# How a token is shown on a terminal: two shades, so that neighbours differ, and a mark for what the model cannot read.
_SHADES = ("on grey15", "on grey30")
_UNKNOWN = "bold white on red"
_SEGMENTS = ("cyan", "green", "yellow", "magenta", "bright_blue")


def main(argv: Sequence[str] | None = None) -> int:
    """The door: flags in, one of the commands; returns the exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    return doors.run_door(lambda: _main(argv))


def _main(argv: Sequence[str]) -> int:
    flags = _parser().parse_args(argv)
    from flanjax.console import Console

    command: Callable[[argparse.Namespace, Console], int] = flags.command
    with Console() as console:
        return command(flags, console)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m flanjax.data", description="Looks at data and fetches it.")
    commands = parser.add_subparsers(required=True, metavar="list|show|stats|lint|fetch")

    def add(name: str, command: Callable[..., int], help: str, *, named: str | None) -> argparse.ArgumentParser:
        found = commands.add_parser(name, help=help, description=help)
        found.set_defaults(command=command)
        found.add_argument("name", nargs=named, help="a mixture, a task, a dataset, or a path of your own data")
        found.add_argument("--tasks", action="append", default=[], metavar="MODULE", help="a task module of your own")
        found.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="for the name's module")
        return found

    add("list", _list, "datasets and their mixtures; of a name, its tasks", named="?")
    show = add("show", _show, "rendered examples, token by token, in their packed row", named=None)
    show.add_argument("--number", type=int, default=3, help="how many (default: 3)")
    show.add_argument("--chat_template", metavar="NAME", help="as chats: a name, a Jinja file, or `tokenizer`")
    show.add_argument("--drawn", action="store_true", help="drawn from the whole split, not the first ones")
    stats = add("stats", _stats, "shares in examples and tokens, and lengths", named=None)
    stats.add_argument("--cache_dir", help="count a materialised mixture, in place of rendering a sample")
    stats.add_argument("--sample", type=int, default=500, help="rows of each task that are rendered (default: 500)")
    stats.add_argument("--plot", metavar="FILE.png", help="histograms of the lengths")
    lint = add("lint", _lint, "duplicates, leaked evaluation texts, cut targets, what a vocabulary loses", named=None)
    lint.add_argument(
        "--against", action="append", default=[], metavar="PATH", help="evaluation texts; repeat for more"
    )
    lint.add_argument("--no_near", action="store_true", help="leave out near duplicates, which take more memory")
    for one in (show, stats, lint):
        one.add_argument("--vocabulary", help="a SentencePiece model, a tokenizer.json, or a folder")
        one.add_argument("--split", default="train", help="(default: train)")
        one.add_argument("--seed", type=int, default=0, help="of templates and drawing (default: 0)")
    fetch = add("fetch", _fetch, "downloads a dataset from its official address", named=None)
    fetch.add_argument("--to", metavar="DIR", help="where to (default: data/NAME, or $FLANJAX_DATA_DIR/NAME)")
    fetch.add_argument("--accept_licence", action="store_true", help="do not ask")
    return parser


def _list(flags: argparse.Namespace, console: "Console") -> int:
    from flanjax.data.catalog import shipped

    if flags.name is None:
        for module, family in shipped().items():
            if lines := list(_family_lines(family)):
                console.heading(module)
                console.lines(lines)
        console.line("\n`python -m flanjax.data list NAME` shows the tasks of one; --gin.MIXTURE=NAME trains on it,")
        console.line("and so does the path of your own data")
        return 0
    entry = _entry(flags)
    console.line(f"{entry.name}, of {entry.module}: {len(entry.rates):,} tasks")
    for dataset in entry.family.datasets:
        console.line(f"  {dataset.title} ({dataset.paper}); licence: {dataset.licence}; {dataset.page}")
    total = sum(rate or 0 for rate in entry.rates.values())
    rows = [
        (task.name, " ".join(task.splits), "by size" if rate is None else f"{rate:g}", _share(rate, total))
        for task, rate in zip(entry.tasks, entry.rates.values(), strict=True)
    ]
    console.table(("task", "splits", "rate", "share"), rows)
    return 0


def _share(rate: float | None, total: float) -> str:
    return "" if rate is None or not total else f"{rate / total:.2%}"


def _family_lines(family: "Family") -> Iterator[str]:
    for dataset in family.datasets:
        known = [part for part in (dataset.title, dataset.size, dataset.licence) if part]
        yield f"  {dataset.name}: {'; '.join(known)}"
    mixtures = [f"{name} ({len(rates):,})" for name, rates in family.mixtures.items() if rates]
    if mixtures:
        yield f"  mixtures (tasks): {', '.join(mixtures)}"


def _entry(flags: argparse.Namespace) -> "Entry":
    """What the name means, under the options given for its module."""
    from flanjax.data.catalog import bringing, find

    modules: dict[str, Mapping[str, Any]] = {name: {} for name in flags.tasks}
    options = doors.option_values(flags.option)
    if options and not modules:
        modules = {bringing(flags.name): options}
    elif options:
        modules = dict.fromkeys(modules, options)
    return find(flags.name, modules)


def _entry_with_split(flags: argparse.Namespace) -> "Entry":
    """What the name means, where some task of it has the split that is asked for."""
    entry = _entry(flags)
    splits = list(dict.fromkeys(split for task in entry.tasks for split in task.splits))
    if not splits:
        raise FlanjaxError(f"{entry.name} has no tasks before its data is there: --option=data_dir=FOLDER says where")
    if flags.split not in splits:
        raise FlanjaxError(f"{entry.name} has no split {flags.split!r}; it has {', '.join(splits)}")
    return entry


def _vocabulary(flags: argparse.Namespace) -> "Vocabulary":
    from flanjax.data.vocabularies import Vocabulary

    if flags.vocabulary is None:
        raise FlanjaxError(
            "give --vocabulary: a SentencePiece model such as T5's spiece.model, a tokenizer.json, or a folder"
        )
    return Vocabulary.from_file(flags.vocabulary)


def _show(flags: argparse.Namespace, console: "Console") -> int:
    from flanjax.data.chat import Chat
    from flanjax.data.chat_templates import find_template
    from flanjax.data.preview import preview
    from flanjax.data.sampling import drawn_rows, first_rows

    vocabulary = _vocabulary(flags)
    template = find_template(flags.chat_template, vocabulary)
    chat = None if template is None else Chat(template, vocabulary)
    for note in chat.check() if chat is not None else ():
        console.notice(note)
    pick = drawn_rows if flags.drawn else first_rows
    shown = 0
    for task in _entry_with_split(flags).tasks:
        if flags.split not in task.splits:
            continue
        rows = pick(task, flags.split, flags.number, seed=flags.seed, chat=chat).rows
        for row in preview(task, flags.split, rows, vocabulary=vocabulary, seed=flags.seed, chat=chat):
            console.heading(f"{task.name}, {flags.split}")
            _show_row(row, console)
            shown += len(row.examples)
        if shown >= flags.number and not flags.drawn:
            break
    if not shown:
        raise FlanjaxError(f"the rows of {flags.name}, split {flags.split!r}, give no example")
    return 0


def _show_row(row: "PreviewedRow", console: "Console") -> None:
    for side, spans, padding in zip(("inputs", "targets"), (row.inputs, row.targets), row.padding, strict=True):
        console.line(f"{side}: {len(spans):,} tokens, {padding:,} of padding")
        console.styled(_parts(spans))
        if unknown := sorted({span.text for span in spans if span.kind == "unknown"}):
            console.line(f"  the vocabulary has no piece for: {' '.join(unknown)}")
    for example in row.examples:
        cut = ", cut to the row" if example.truncated else ""
        console.line(f"  segment {example.segment}: row {example.number + 1}, {example.place}{cut}")
        if example.text.references:
            console.line(f"    accepted: {' | '.join(example.text.references)}")


def _parts(spans: "Sequence[Span]") -> Iterator[tuple[str, str]]:
    """The tokens as (text, style), each segment under its number; where the weight changes it is told again."""
    segment, weight = 0, 0
    learns = any(span.weight for span in spans)
    for number, span in enumerate(spans):
        if span.segment != segment:
            yield f"{'' if number == 0 else chr(10)}[{span.segment}; weight {span.weight}] ", "bold"
        elif span.weight != weight:
            yield f"[weight {span.weight}] ", "bold"
        segment, weight = span.segment, span.weight
        text = "</s>" if span.kind == "end" and not span.text else span.text
        shade = _SHADES[number % 2]
        colour = "dim" if learns and not weight else _SEGMENTS[(segment - 1) % len(_SEGMENTS)]
        yield text, _UNKNOWN if span.kind == "unknown" else f"{colour} {shade}"


def _stats(flags: argparse.Namespace, console: "Console") -> int:
    from flanjax.data.statistics import cached_statistics, sampled_statistics

    if flags.cache_dir:
        from flanjax.data.cache import CachedMixture

        found = cached_statistics(CachedMixture.open(flags.cache_dir, flags.name, flags.split))
    else:
        entry = _entry_with_split(flags)
        rated = list(zip(entry.tasks, entry.rates.values(), strict=True))
        how: dict[str, Any] = {"split": flags.split, "seed": flags.seed, "sample": flags.sample}
        found = sampled_statistics(entry.name, rated, vocabulary=_vocabulary(flags), **how)
    console.line(
        f"{found.name}, {found.split}: {found.examples:,} examples; of an example {found.mean('inputs'):.1f} input and "
        f"{found.mean('targets'):.1f} target tokens"
    )
    rows = [
        (
            task.name,
            f"{task.examples:,}",
            f"{task.example_share:.2%}",
            f"{task.token_shares['inputs']:.2%}",
            f"{task.token_shares['targets']:.2%}",
            f"{task.mean('inputs'):.1f}",
            f"{task.mean('targets'):.1f}",
            f"{task.features['inputs'].max:,}",
            f"{task.features['targets'].max:,}",
        )
        for task in sorted(found.tasks, key=lambda task: -task.example_share)
    ]
    columns = ("task", "examples", "share", "of input tokens", "of target tokens", "inputs", "targets", "most", "most")
    console.table(columns, rows)
    for name, reason in found.left_out:
        console.notice(f"{name} is left out: {reason}")
    if flags.plot:
        from flanjax.data.plots import draw_lengths

        draw_lengths(found, flags.plot)
        console.line(f"lengths: {flags.plot}")
    return 0


def _lint(flags: argparse.Namespace, console: "Console") -> int:
    from flanjax.data.lint import KINDS, lint
    from flanjax.data.ngrams import EvaluationIndex, evaluation_texts

    evaluation = EvaluationIndex(pair for path in flags.against for pair in evaluation_texts(path))

    def progress(examples: int) -> None:
        if examples % 1000 == 0:
            console.progress("looking", examples, None)

    report = lint(
        _entry_with_split(flags).tasks,
        flags.split,
        vocabulary=_vocabulary(flags),
        seed=flags.seed,
        evaluation=evaluation,
        near=not flags.no_near,
        progress=progress,
    )
    console.close_progress("looking")
    compared = f", compared with {report.evaluation_texts:,} evaluation texts" if flags.against else ""
    console.line(f"{report.examples:,} examples{compared}")
    if report.evaluation_too_short:
        console.notice(f"{report.evaluation_too_short:,} of them are too short to compare")
    for kind, tasks in report.counts.items():
        console.heading(f"{kind}: {sum(tasks.values()):,} ({KINDS[kind]})")
        for finding in (one for one in report.findings if one.kind == kind):
            console.line(f"  {finding.task}, {finding.place}: {finding.message}")
            console.line(f"    {finding.excerpt}")
    if not report.counts:
        console.line("nothing was found")
    return 0


def _fetch(flags: argparse.Namespace, console: "Console") -> int:
    from flanjax.data.fetch import fetch, fetched_lines
    from flanjax.data.tasks import dataset_folder

    dataset = _dataset(flags)
    folder = flags.to or dataset_folder(dataset.name)

    def progress(download: "Download", done: int, total: int | None) -> None:
        console.progress(download.file, done, total, "bytes")

    def accept(dataset: "Dataset") -> bool:
        return _accepts(dataset, flags.accept_licence, console)

    fetched = fetch(dataset, folder, accept=accept, progress=progress)
    console.lines(fetched_lines(fetched))
    console.line(f"in {folder}")
    return 0


def _dataset(flags: argparse.Namespace) -> "Dataset":
    """The dataset of a name, or of the module that has a mixture or task of it."""
    from flanjax.data.catalog import shipped

    every = {one.name: one for family in shipped().values() for one in family.datasets}
    if flags.name in every:
        return every[flags.name]
    datasets = _entry(flags).family.datasets
    if len(datasets) == 1:
        return datasets[0]
    names = ", ".join(one.name for one in datasets)
    raise FlanjaxError(f"{flags.name} is made of {len(datasets)} datasets, fetched one by one: {names}")


def _accepts(dataset: "Dataset", accepted: bool, console: "Console") -> bool:
    from flanjax.data.fetch import licence_lines

    console.lines(licence_lines(dataset))
    if accepted:
        return True
    if not sys.stdin.isatty():
        console.notice("nobody is there to accept the licence: give --accept_licence if you do")
        return False
    return console.ask("Do you accept this licence? [y/N] ").strip().lower() in ("y", "yes")
