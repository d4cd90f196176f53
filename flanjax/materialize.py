"""Tokenises a mixture once: `python -m flanjax.materialize --mixture=NAME --cache_dir=DIR`.

What the mixture is made of comes from a run's gin file, or from flags:

    python -m flanjax.materialize --gin_file=demo.gin
    python -m flanjax.materialize --mixture=alpaca --cache_dir=cache --vocabulary=spiece.model --option=data_dir=alpaca
    python -m flanjax.materialize --mixture=reviews.jsonl --cache_dir=cache --vocabulary=spiece.model

A mixture that no shipped module has needs its module: --tasks=my_tasks, which then gets the options. Run again, it
redoes only what changed.
"""

import argparse
import os
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from flanjax import doors

if TYPE_CHECKING:
    from flanjax.data.materialize import MaterializeReport


def main(argv: Sequence[str] | None = None) -> int:
    """The door: flags and gin in, one call a mixture; returns the exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    return doors.run_door(lambda: _materialize(argv))


def _parser() -> argparse.ArgumentParser:
    parser = doors.gin_parser("flanjax.materialize", "Tokenises a mixture once, for training to read.")
    parser.add_argument(
        "--mixture", help="mixtures, tasks or paths of your own data, separated by commas (default: the gin file's)"
    )
    parser.add_argument("--cache_dir", help="where the tokens go (default: the gin file's)")
    parser.add_argument("--vocabulary", help="a SentencePiece model, a tokenizer.json, or a folder with one")
    parser.add_argument("--chat_template", help="a name, a Jinja file or `tokenizer` (default: the gin file's)")
    parser.add_argument("--tasks", action="append", default=[], metavar="MODULE", help="a task module of your own")
    parser.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="for each --tasks module, or the mixture's"
    )
    parser.add_argument("--workers", type=int, help="processes that tokenise (default: one for each core)")
    parser.add_argument(
        "--beam",
        metavar="OPTIONS",
        help="options of an Apache Beam pipeline to do it on: --runner=DirectRunner",
    )
    parser.add_argument("--seed", type=int, help="of templates and few-shot sampling (default: the gin file's, or 0)")
    parser.add_argument("--splits", help="separated by commas (default: the gin file's, or train,validation)")
    parser.add_argument(
        "--on_bad_row", choices=("error", "skip"), help="for a malformed row (default: the gin file's, or error)"
    )
    return parser


def _materialize(argv: Sequence[str]) -> int:
    parser = _parser()
    flags, sources = doors.parse_gin_flags(parser, argv)
    if not sources.files and not (flags.mixture and flags.cache_dir):
        parser.error("give --gin_file, or --mixture and --cache_dir")
    if flags.option and not (flags.tasks or flags.mixture):
        parser.error("--option goes with --tasks or --mixture; TASKS of the gin file has the options of its modules")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # tokenising needs no accelerator; leave it to training

    request = _from_gin(sources) if sources.files else {"tasks": {}, "vocabulary": None}
    if flags.splits:
        request["splits"] = tuple(flags.splits.split(","))
    for name in ("cache_dir", "seed", "on_bad_row", "chat_template", "workers"):
        if getattr(flags, name) is not None:
            request[name] = getattr(flags, name)
    if flags.beam is not None:
        request["beam"] = tuple(shlex.split(flags.beam))
    mixtures = flags.mixture.split(",") if flags.mixture else request["mixtures"]

    from flanjax.data.catalog import bringing, resolve_all
    from flanjax.data.vocabularies import VocabularySource

    options = doors.option_values(flags.option)
    if modules := flags.tasks or (options and [bringing(mixture) for mixture in mixtures]):
        request["tasks"] = dict.fromkeys(modules, options)
    # The gin file's as well: training names the mixture that comes of a path there.
    names, request["tasks"] = resolve_all([*request.pop("mixtures", []), *mixtures], request["tasks"], None)
    mixtures = names[-len(mixtures) :]

    if flags.vocabulary or request["vocabulary"] is None:
        request["vocabulary"] = VocabularySource(path=flags.vocabulary)
    _materialize_all(mixtures, request)
    return 0


def _materialize_all(mixtures: Sequence[str], request: dict[str, Any]) -> None:
    """Writes the mixtures in turn; a vocabulary trained on the first serves the others."""
    from flanjax.console import Console, duration
    from flanjax.data.catalog import OWN
    from flanjax.data.materialize import materialize
    from flanjax.data.registry import load_family
    from flanjax.data.vocabularies import VocabularySource

    with Console() as console:

        def progress(task: str, split: str, done: int, total: int | None) -> None:
            console.progress("materializing", done, total, f"{task} {split}")

        if OWN in request["tasks"]:  # which form its records were taken to have
            family = load_family(OWN, request["tasks"][OWN])
            console.lines(f"{dataset.name}: {dataset.title}" for dataset in (family.datasets if family else ()))
        for mixture in mixtures:
            report = materialize(mixture=mixture, progress=progress, **request)
            vocabulary = report.vocabulary
            request["vocabulary"] = VocabularySource(path=str(vocabulary.path), extra_ids=vocabulary.extra_ids)
            written, splits = sum(split.written for split in report.splits), len(report.splits)
            there = "" if written == splits else ", the others were there"
            examples = sum(split.examples for split in report.splits)
            tokens = sum(sum(split.tokens.values()) for split in report.splits)
            console.close_progress("materializing")
            console.line(
                f"materialized {mixture}: {examples:,} examples, {tokens:,} tokens, vocabulary {vocabulary.size:,}; "
                f"{written} of {splits} splits written{there}; {duration(report.seconds)}"
            )
            for note in (*_left_out(report), *report.notes):
                console.notice(note)


def _left_out(report: "MaterializeReport") -> Iterator[str]:
    """What became no example. By split, for one row of a file that serves two of them is met in both."""
    for what in ("dropped_empty_targets", "skipped_bad_rows"):
        counts: Counter[str] = Counter()
        for split in report.splits:
            counts[split.split] += getattr(split, what)
        told = ", ".join(f"{count:,} in {split}" for split, count in counts.items() if count)
        if told:
            yield f"{report.mixture}: {what.replace('_', ' ')}: {told}"
    if first := next((split.first_bad_row for split in report.splits if split.first_bad_row), None):
        yield f"the first bad row: {first}"


def _from_gin(sources: doors.GinSources) -> dict[str, Any]:
    """The part of a run's configuration that materialising needs."""
    from flanjax.run import CONFIGURABLES, Run

    doors.configure(sources, CONFIGURABLES)
    run = doors.build(Run)
    assert isinstance(run, Run)
    return {
        "mixtures": [run.data.mixture, *run.evaluation.mixtures],
        "cache_dir": run.data.cache_dir,
        "vocabulary": run.vocabulary,
        "tasks": run.tasks,
        "seed": run.task_seed,
        "splits": tuple(dict.fromkeys(("train", run.evaluation.split))),
        "on_bad_row": run.on_bad_row,
        "chat_template": run.chat_template,
    }


if __name__ == "__main__":
    sys.exit(main())
