"""Measures a model: `python -m flanjax.evaluate --model=DIR --suite=mmlu-flan --output=DIR`.

The model is a run directory or whatever `flanjax.load` opens. Each suite is a published test set in one way of
prompting (`flanjax.evaluation.suites`), each `--mixture` the held-out split of a mixture or task, of ours or of seqio,
with the metrics that its tasks bring. Figures stand beside those of copying and guessing, in report.json, .md and
.html, with the answers. The same command goes on where it was killed. Two such folders are compared by
`--compare A B --output=DIR`.
"""

import argparse
import functools
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flanjax import doors

if TYPE_CHECKING:  # a door that only prints its help imports no jax
    from flanjax.console import Console
    from flanjax.data.catalog import Modules
    from flanjax.evaluation.asking import Asked
    from flanjax.evaluation.benchmark import Benchmark, Prediction, Result
    from flanjax.loading import Model
    from flanjax.sharding.mesh import MeshConfig

_BY_CONTENT = ("model", "adapter", "data")  # a model and its questions are known by what they hold, not where they lie


def evaluate(
    model: str | Path,
    suites: Sequence[str],
    output: str | Path,
    *,
    mixtures: Sequence[str] = (),
    tasks: "Modules | None" = None,
    split: str | None = None,
    data: str = "",
    adapter: str | Path | None = None,
    step: int | None = None,
    limit: int | None = None,
    perturbations: Sequence[str] = (),
    chat: bool = False,
    batch_size: int = 16,
    seed: int = 0,
    mesh: "MeshConfig | None" = None,
    console: "Console | None" = None,
) -> dict[str, dict[str, Any]]:
    """Answers suites and mixtures, writes the report, and returns the averages: its name, metric, percent.

    A metric that a mixture's task brings is under `task/metric` and as the task gives it.

    Called again with an output that it was killed over, it goes on with the answers that are there.

    Arguments:
      model: as `flanjax.load` opens it.
      suites: names in `flanjax.evaluation.suites.SUITES`.
      output: the folder of the report; it is made.
      mixtures: mixtures or tasks, or paths of one's own data, whose held-out split is answered.
      tasks: task modules that they need and their options; a shipped mixture needs none.
      split: of the mixtures; None for validation or else test.
      data: where the suite's files are; "" for the dataset's own folder (`flanjax.data.tasks.dataset_folder`).
      adapter: a PEFT folder put on the model.
      step: of a run's checkpoint; None for the latest.
      limit: instances of each task; None for all.
      perturbations: of `flanjax.evaluation.perturbations`; each asks everything once more.
      chat: whether the model is asked in its chat template.
      batch_size: texts that go through the model together.
      seed: of the guesses, the perturbations and the bootstrap.
      mesh: the devices, as `flanjax.load` has it.
      console: told of progress.

    Raises:
      FlanjaxError: there is no such suite, no data, no model, a question that the model cannot be asked or that a
        perturbation cannot change, the output holds another evaluation, or it cannot be written.
    """
    from flanjax.evaluation.measuring import chosen, measure, write_evaluation
    from flanjax.evaluation.mixtures import find, of_mixture
    from flanjax.evaluation.perturbations import perturbed
    from flanjax.evaluation.suites import first_of_each_task
    from flanjax.files import require_path
    from flanjax.loading import load

    require_path(output)
    found = [find(mixture, tasks or {}, split=split) for mixture in mixtures]
    _check_suites(suites, data, limit, perturbations, chat=chat)
    settings: dict[str, Any] = {"model": str(model), "adapter": None if adapter is None else str(adapter)}
    settings |= {"suites": list(suites), "data": data, "limit": limit, "chat": chat, "seed": seed}
    settings |= {"perturbations": list(perturbations), "mixtures": list(mixtures), "split": split}
    _refuse_another(Path(output), settings)
    loaded = load(model, step=step, adapter=adapter, mesh=mesh)
    asked = _asked(loaded, chat=chat, batch_size=batch_size)
    benchmarks = chosen(suites, data, limit, asked.vocabulary)
    for each in found:
        benchmark = of_mixture(each, asked.vocabulary, limit=limit, seed=seed)
        benchmarks[each.name] = first_of_each_task(benchmark, limit)
    settings["parameters"] = loaded.identity
    forms = {
        name: {change: perturbed(benchmark, change, seed=seed) for change in perturbations}
        for name, benchmark in benchmarks.items()
    }
    every = [form for name, one in benchmarks.items() for form in (one, *one.probes.values(), *forms[name].values())]
    _settle(Path(output), settings, every, asked)
    answered = functools.partial(_answered, asked=asked, output=Path(output), console=console)
    measured = {
        name: measure(benchmark, answered, asked.tokens, perturbed=forms[name], seed=seed)
        for name, benchmark in benchmarks.items()
    }
    write_evaluation(Path(output), str(model), measured, settings, asked.facts)
    return {name: _figures(each.result) for name, each in measured.items()}


def _settle(output: Path, settings: dict[str, Any], forms: "Sequence[Benchmark]", asked: "Asked") -> None:
    """Refuses what cannot be asked, and writes what is going to be, before the first question."""
    from flanjax.evaluation.measuring import questions_of, write_settings

    settings["questions"] = {form.name: questions_of(form)[1] for form in forms}
    _refuse_another(output, settings)
    for form in forms:
        asked.check(form)
    write_settings(output, settings)


def _check_suites(
    suites: Sequence[str], data: str, limit: int | None, perturbations: Sequence[str], *, chat: bool
) -> None:
    """Finds what forbids an evaluation before the model is read."""
    from flanjax.evaluation.benchmark import BenchmarkError
    from flanjax.evaluation.measuring import chosen
    from flanjax.evaluation.perturbations import perturbed

    for name, benchmark in chosen(suites, data, limit).items():
        if chat and benchmark.mode == "choices":
            raise BenchmarkError(f"suite {name!r} scores choices after a plain text: leave --chat out")
        for change in perturbations:
            next(perturbed(benchmark, change).load(), None)  # says whether its questions are known


def _figures(result: "Result") -> dict[str, Any]:
    """Averages in percent, and what the tasks' own metrics give."""
    from flanjax.evaluation.mixtures import OWN_METRICS

    figures: dict[str, Any] = {metric: result.average(metric) for metric in result.benchmark.metrics}
    if own := result.benchmark.tables.get(OWN_METRICS):
        figures |= {f"{task}/{name}": value for task, row in own(result).items() for name, value in row.items()}
    return figures


def _asked(model: "Model", *, chat: bool, batch_size: int) -> "Asked":
    from flanjax.data.chat import own_chat
    from flanjax.evaluation.asking import Asked
    from flanjax.evaluation.benchmark import BenchmarkError

    template = own_chat(model.vocabulary) if chat else None
    if chat and template is None:
        raise BenchmarkError(
            f"{model.vocabulary.path} brings no chat template: leave --chat out, or put a chat_template.jinja beside it"
        )
    return Asked(
        config=model.config,
        compute=model.compute,
        params=model.params,
        vocabulary=model.vocabulary,
        prefix_lm=model.prefix_lm,
        further_eos_ids=model.further_eos_ids,
        chat=template,
        batch_size=batch_size,
    )


def _answered(
    benchmark: "Benchmark", asked: "Asked", output: Path, console: "Console | None"
) -> "Iterator[Prediction]":
    """The predictions, kept in the output as they come, with a bar."""
    from flanjax.evaluation.measuring import ask
    from flanjax.evaluation.report import answers_name

    total = sum(1 for _ in benchmark.load())
    for done, prediction in enumerate(ask(benchmark, asked, file=output / answers_name(benchmark.name)), 1):
        if console is not None:
            console.progress("evaluating", done, total, benchmark.name)
        yield prediction
    if console is not None:
        console.close_progress("evaluating")


def _refuse_another(folder: Path, settings: dict[str, Any]) -> None:
    """Refuses a folder with an evaluation of another model or with other settings, of those that are known yet."""
    from flanjax.evaluation.benchmark import BenchmarkError
    from flanjax.evaluation.measuring import SETTINGS

    if not (folder / SETTINGS).exists():
        return
    before = _settings(folder)
    differing = [
        f"{name}: it was {before.get(name)!r}, now it is {value!r}"
        for name, value in settings.items()
        if name not in _BY_CONTENT and before.get(name) != value
    ]
    if differing:
        raise BenchmarkError(
            f"{folder} holds another evaluation, which cannot go on:\n  "
            + "\n  ".join(differing)
            + "\ngive another --output, or remove that folder"
        )


def compare(first: str | Path, second: str | Path, output: str | Path) -> list[dict[str, Any]]:
    """Compares the answers that two evaluations kept, on the benchmarks that both have; returns each metric's gain.

    Where the two were not asked alike, with other prompts or a chat template, each gain says so under "prompts".

    Raises:
      FlanjaxError: a folder has no evaluation, they have no benchmark in common, or not the same instances.
    """
    from flanjax.evaluation.benchmark import BenchmarkError
    from flanjax.evaluation.report import read_results, write_comparison

    folders = (Path(first), Path(second))
    settings = [_settings(folder) for folder in folders]
    ours, theirs = (read_results(folder) for folder in folders)
    both = [name for name in ours if name in theirs]
    if not both:
        raise BenchmarkError(f"{first} has {', '.join(ours)}, {second} {', '.join(theirs)}: evaluate both on the same")
    prompts = {name: "other ones" for name in both if ours[name].prompts != theirs[name].prompts}
    if settings[0]["chat"] != settings[1]["chat"]:
        prompts = dict.fromkeys(both, "one in a chat template") | prompts
    pairs = [(ours[name].result, theirs[name].result) for name in both]
    return write_comparison(output, _apart(*folders), pairs, prompts=prompts, seed=settings[0]["seed"])


def _apart(first: Path, second: Path) -> tuple[str, str]:
    """The shortest ends of two paths that differ: ("base/mmlu", "mine/mmlu")."""
    one, two = (Path(os.path.abspath(path)).parts for path in (first, second))
    same = next((count for count, (a, b) in enumerate(zip(one[::-1], two[::-1], strict=False)) if a != b), 0)
    return str(Path(*one[-same - 1 :])), str(Path(*two[-same - 1 :]))


def _settings(folder: Path) -> dict[str, Any]:
    from flanjax.evaluation.benchmark import BenchmarkError
    from flanjax.evaluation.measuring import SETTINGS

    try:
        settings = json.loads((folder / SETTINGS).read_text())
    except (OSError, ValueError) as error:
        raise BenchmarkError(f"{folder}: no evaluation lies there ({error}): flanjax.evaluate writes one") from error
    return dict(settings)


def main(argv: Sequence[str] | None = None) -> int:
    """The door: flags in, one call; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m flanjax.evaluate", description="Measures a model on test sets.")
    doors.add_model_flags(parser, required=False)
    parser.add_argument(
        "--suite", action="append", default=[], metavar="NAME", help="a test set; may be repeated; `list` lists them"
    )
    parser.add_argument(
        "--mixture", action="append", default=[], metavar="NAME", help="a mixture or task, held out; may be repeated"
    )
    parser.add_argument("--tasks", action="append", default=[], metavar="MODULE", help="a task module of your own")
    parser.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="for each --tasks module, or the mixture's"
    )
    parser.add_argument("--split", metavar="NAME", help="of the mixtures (default: validation, or else test)")
    parser.add_argument("--data", default="", metavar="DIR", help="its files (default: $FLANJAX_DATA_DIR/<dataset>)")
    parser.add_argument("--output", metavar="DIR", help="the report's folder")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N instances of each task (default: all)")
    parser.add_argument(
        "--perturb",
        action="append",
        default=[],
        metavar="NAME[:FILE]",
        help="ask in another form as well; may be repeated",
    )
    parser.add_argument("--chat", action="store_true", help="ask in the model's chat template")
    parser.add_argument("--batch_size", type=int, default=16, metavar="N", help="texts that go through it together")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of guesses, perturbations and the bootstrap")
    parser.add_argument(
        "--compare", nargs=2, metavar=("A", "B"), help="instead: B's answers against A's, both evaluated"
    )
    flags = parser.parse_args(argv)
    if "list" not in flags.suite:
        if flags.output is None:
            parser.error("--output says where the report goes")
        if not flags.compare and not (flags.model and (flags.suite or flags.mixture)):
            parser.error("--model, and --suite or --mixture, say what is measured")
        if (flags.tasks or flags.option or flags.split) and not flags.mixture:
            parser.error("--tasks, --option and --split go with --mixture")
    return doors.run_door(lambda: _main(flags))


def _main(flags: argparse.Namespace) -> int:
    from flanjax.console import Console
    from flanjax.evaluation.suites import SUITES

    with Console() as console:
        if "list" in flags.suite:
            console.table(("suite", "what it is", "dataset"), [(n, s.says, s.dataset) for n, s in SUITES.items()])
            return 0
        if flags.compare:
            gains = compare(flags.compare[0], flags.compare[1], flags.output)
            rows = [
                [each["benchmark"], each["metric"], f"{each['difference']:+.2f}", each["p_value"], each["prompts"]]
                for each in gains
            ]
            console.table(("benchmark", "metric", "difference", "p", "prompts"), rows)
        else:
            found = evaluate(
                flags.model,
                flags.suite,
                flags.output,
                mixtures=flags.mixture,
                tasks=_modules(flags),
                split=flags.split,
                data=flags.data,
                adapter=flags.adapter,
                step=flags.step,
                limit=flags.limit,
                perturbations=flags.perturb,
                chat=flags.chat,
                batch_size=flags.batch_size,
                seed=flags.seed,
                mesh=doors.mesh_of(flags),
                console=console,
            )
            rows = [
                [name, metric, f"{value:.2f}" if isinstance(value, float) else value]
                for name, each in found.items()
                for metric, value in each.items()
            ]
            console.table(("measured", "metric", "value"), rows)
        console.line(f"wrote {flags.output}")
    return 0


def _modules(flags: argparse.Namespace) -> "Modules":
    """The task modules that the flags name, each with the options."""
    if not flags.mixture:
        return {}
    from flanjax.data.catalog import bringing

    options = doors.option_values(flags.option)
    return dict.fromkeys(flags.tasks or (options and [bringing(mixture) for mixture in flags.mixture]) or (), options)


if __name__ == "__main__":
    sys.exit(main())
