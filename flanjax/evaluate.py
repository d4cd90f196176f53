"""Measures a model: `python -m flanjax.evaluate --model=DIR --suite=mmlu-flan --output=DIR`.

The model is a run directory or whatever `flanjax.load` opens. Each suite is a published test set in one way of
prompting (`flanjax.evaluation.suites`); its figures stand beside those of copying and guessing, in report.json, .md and
.html, with the answers. Two such folders are compared by `--compare A B --output=DIR`.
"""

import argparse
import datetime
import importlib.metadata
import json
import platform
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flanjax import doors

if TYPE_CHECKING:  # a door that only prints its help imports no jax
    from flanjax.console import Console
    from flanjax.evaluation.benchmark import Benchmark, Instance, Prediction, Result
    from flanjax.evaluation.report import Measured
    from flanjax.loading import Model

SETTINGS = "evaluation.json"
_AT_ONCE = 64  # instances handed to the model together; it sorts them by length


class Answers:
    """A loaded model as `flanjax.evaluation.benchmark.Model` wants one.

    Arguments:
      model: of `flanjax.load`.
      chat: whether it is asked in its chat template.
      batch_size: texts that go through it together.
    """

    def __init__(self, model: "Model", *, chat: bool = False, batch_size: int = 16):
        self._model, self._chat, self._batch_size = model, chat, batch_size

    def generate(self, instances: "Sequence[Instance]", max_new_tokens: int, stop: Sequence[str]) -> list[str]:
        """The greedy answer to each instance, up to the first of the stop texts."""
        how: dict[str, Any] = {"stop": tuple(stop), "batch_size": self._batch_size}
        if not self._chat:
            return self._model.generate([instance.prompt for instance in instances], max_new_tokens, **how)
        conversations = [
            [{"role": turn.role, "content": turn.text} for turn in instance.conversation] for instance in instances
        ]
        return self._model.chat(conversations, max_new_tokens, **how)

    def tokens(self, texts: Iterable[str]) -> int:
        """How many tokens texts are, without those that begin or end one, or make a turn of chat."""
        return sum(len(self._model.vocabulary.encode(text)) for text in texts)

    def loglikelihoods(self, instances: "Sequence[Instance]") -> list[tuple[float, ...]]:
        """The log-likelihood of each choice after the prompt and one space, its end not counted."""
        pairs = [(instance.prompt, f" {choice}") for instance in instances for choice in instance.choices]
        texts, choices = zip(*pairs, strict=True)
        scores = iter(self._model.score_continuations(texts, choices, batch_size=self._batch_size))
        return [tuple(next(scores) for _ in instance.choices) for instance in instances]


def evaluate(
    model: str | Path,
    suites: Sequence[str],
    output: str | Path,
    *,
    data: str = "",
    adapter: str | Path | None = None,
    limit: int | None = None,
    perturbations: Sequence[str] = (),
    chat: bool = False,
    batch_size: int = 16,
    seed: int = 0,
    console: "Console | None" = None,
) -> dict[str, dict[str, float]]:
    """Answers the suites, writes the report, and returns the averages: suite, metric, percent.

    Arguments:
      model: as `flanjax.load` opens it.
      suites: names in `flanjax.evaluation.suites.SUITES`.
      output: the folder of the report; it is made.
      data: where the suite's files are; "" for the dataset's own folder (`flanjax.data.tasks.dataset_folder`).
      adapter: a PEFT folder put on the model.
      limit: instances of each task; None for all.
      perturbations: of `flanjax.evaluation.perturbations`; each asks everything once more.
      chat: whether the model is asked in its chat template.
      batch_size: texts that go through the model together.
      seed: of the guesses, the perturbations and the bootstrap.
      console: told of progress.

    Raises:
      FlanjaxError: there is no such suite, no data, no model, or the folder cannot be written.
    """
    from flanjax.evaluation.benchmark import BenchmarkError
    from flanjax.evaluation.perturbations import perturbed
    from flanjax.evaluation.report import write_report
    from flanjax.evaluation.suites import first_of_each_task, suite
    from flanjax.files import write_whole
    from flanjax.loading import load

    if data and len({suite(name).dataset for name in suites}) > 1:
        raise BenchmarkError(f"--data={data} is of one dataset, and the suites are of several: one call for each")
    for name in suites:
        benchmark = first_of_each_task(suite(name).benchmark(data), limit)
        if chat and benchmark.mode == "choices":
            raise BenchmarkError(f"suite {name!r} scores choices after a plain text: leave --chat out")
        for perturbation in perturbations:
            perturbed(benchmark, perturbation)
    loaded = load(model, adapter=adapter)
    answers = Answers(loaded, chat=chat, batch_size=batch_size)
    measured = []
    for name in suites:
        whole = suite(name).benchmark(data, loaded.vocabulary)
        benchmark = first_of_each_task(whole, limit)
        forms = {perturbation: perturbed(benchmark, perturbation, seed=seed) for perturbation in perturbations}
        measured.append(_measure(benchmark, whole, forms, answers, seed, console))
    settings = {"model": str(model), "suites": list(suites), "data": data, "limit": limit, "chat": chat, "seed": seed}
    settings |= {"adapter": None if adapter is None else str(adapter), "perturbations": list(perturbations)}
    facts = {name: json.dumps(value) for name, value in settings.items()}
    write_report(output, str(model), measured, facts=facts | _facts(loaded), seed=seed)
    write_whole(Path(output) / SETTINGS, json.dumps(settings, indent=2) + "\n")
    return {
        name: {metric: each.result.average(metric) for metric in each.result.benchmark.metrics}
        for name, each in zip(suites, measured, strict=True)
    }


def _measure(
    benchmark: "Benchmark",
    whole: "Benchmark",
    forms: "Mapping[str, Benchmark]",
    answers: Answers,
    seed: int,
    console: "Console | None",
) -> "Measured":
    from flanjax.evaluation.baselines import baselines
    from flanjax.evaluation.benchmark import evaluate as score
    from flanjax.evaluation.report import Measured

    started = time.monotonic()
    result = _answered(benchmark, answers, console)
    seconds = time.monotonic() - started
    return Measured(
        result=result,
        baselines={name: score(benchmark, found) for name, found in baselines(benchmark, seed, whole).items()},
        probes={name: _answered(probe, answers, console) for name, probe in benchmark.probes.items()},
        perturbed={name: _answered(form, answers, console) for name, form in forms.items()},
        seconds=seconds,
        prompt_tokens=[answers.tokens([each.instance.prompt]) for each in result.outcomes],
        answer_tokens=[
            answers.tokens([each.prediction.text] if benchmark.mode == "generate" else each.instance.choices)
            for each in result.outcomes
        ],
    )


def _facts(model: "Model") -> dict[str, str]:
    """What was measured with, beside the settings."""
    import jax

    device = jax.devices()[0]
    facts = {name: importlib.metadata.version(name) for name in ("flanjax", "jax", "numpy", "rouge-score")}
    facts["python"] = platform.python_version()
    facts["device"] = f"{device.platform}, {device.device_kind}"
    facts["computed in"] = model.compute.dtype
    facts["parameters"] = f"{sum(leaf.size for leaf in jax.tree.leaves(model.params)):,}"
    facts["date"] = datetime.date.today().isoformat()
    return facts


def _answered(benchmark: "Benchmark", answers: Answers, console: "Console | None") -> "Result":
    from flanjax.evaluation.benchmark import evaluate as score
    from flanjax.evaluation.benchmark import predict

    total = sum(1 for _ in benchmark.load())

    def predictions() -> "Iterator[Prediction]":
        for done, prediction in enumerate(predict(benchmark, answers, _AT_ONCE), 1):
            if console is not None:
                console.progress("evaluating", done, total, benchmark.name)
            yield prediction
        if console is not None:
            console.close_progress("evaluating")

    return score(benchmark, predictions())


def compare(first: str | Path, second: str | Path, output: str | Path) -> list[dict[str, Any]]:
    """Compares the answers that two evaluations kept, on the benchmarks that both have; returns each metric's gain.

    Raises:
      FlanjaxError: a folder has no evaluation, they have no benchmark in common, or not the same instances.
    """
    from flanjax.evaluation.benchmark import BenchmarkError, read_predictions
    from flanjax.evaluation.benchmark import evaluate as score
    from flanjax.evaluation.report import write_comparison
    from flanjax.evaluation.suites import first_of_each_task, suite

    settings = [_settings(Path(folder)) for folder in (first, second)]
    both = [name for name in settings[0]["suites"] if name in settings[1]["suites"]]
    if not both or settings[0]["limit"] != settings[1]["limit"]:
        raise BenchmarkError(
            f"{first} has {settings[0]['suites']} with {settings[0]['limit']} instances of a task, {second} "
            f"{settings[1]['suites']} with {settings[1]['limit']}: evaluate both on the same"
        )
    pairs = []
    for name in both:
        benchmark = first_of_each_task(suite(name).benchmark(settings[0]["data"]), settings[0]["limit"])
        files = [Path(folder) / f"{benchmark.name}.answers.jsonl" for folder in (first, second)]
        one, other = (score(benchmark, read_predictions(file)) for file in files)
        pairs.append((one, other))
    return write_comparison(output, (Path(first).name, Path(second).name), pairs, seed=settings[0]["seed"])


def _settings(folder: Path) -> dict[str, Any]:
    from flanjax.evaluation.benchmark import BenchmarkError

    try:
        settings = json.loads((folder / SETTINGS).read_text())
    except (OSError, ValueError) as error:
        raise BenchmarkError(f"{folder}: no evaluation lies there ({error}): flanjax.evaluate writes one") from error
    return dict(settings)


def main(argv: Sequence[str] | None = None) -> int:
    """The door: flags in, one call; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m flanjax.evaluate", description="Measures a model on test sets.")
    parser.add_argument("--model", metavar="DIR", help="a run directory, a Hugging Face folder or a .gguf")
    parser.add_argument(
        "--suite", action="append", default=[], metavar="NAME", help="a test set; may be repeated; `list` lists them"
    )
    parser.add_argument("--data", default="", metavar="DIR", help="its files (default: $FLANJAX_DATA_DIR/<dataset>)")
    parser.add_argument("--output", metavar="DIR", help="the report's folder")
    parser.add_argument("--adapter", metavar="DIR", help="a PEFT folder put on the model")
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
        if not flags.compare and not (flags.model and flags.suite):
            parser.error("--model and --suite say what is measured")
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
                [each["benchmark"], each["metric"], f"{each['difference']:+.2f}", each["p_value"]] for each in gains
            ]
            console.table(("benchmark", "metric", "difference", "p"), rows)
        else:
            found = evaluate(
                flags.model,
                flags.suite,
                flags.output,
                data=flags.data,
                adapter=flags.adapter,
                limit=flags.limit,
                perturbations=flags.perturb,
                chat=flags.chat,
                batch_size=flags.batch_size,
                seed=flags.seed,
                console=console,
            )
            rows = [[name, metric, f"{value:.2f}"] for name, each in found.items() for metric, value in each.items()]
            console.table(("suite", "metric", "%"), rows)
        console.line(f"wrote {flags.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
