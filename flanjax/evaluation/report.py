"""The report of an evaluation: every figure beside what needs no understanding, as JSON, Markdown and HTML.

    write_report("runs/a/evaluation", "Flan-T5 small", [Measured(result=result, baselines=baseline_results)])

    report.json          all figures; percentages under "metrics", "baselines", "by_task", shares elsewhere
    report.md            the same as tables
    report.html          the same with plots, in one file that needs no other
    NAME.answers.jsonl   each answer with its scores; `read_predictions` reads it

Two runs are compared from the answers that they kept:

    write_comparison("runs/b/against_a", ("a", "b"), [(result_of_a, result_of_b)])      # comparison.json, .md, .html
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flanjax.evaluation.benchmark import BenchmarkError, Outcome, Result
from flanjax.evaluation.calibration import choice_confidences, expected_calibration_error, reliability
from flanjax.evaluation.perturbations import worst_case
from flanjax.evaluation.report_pages import Block, Heading, Picture, Table, Words, html_page, markdown_page
from flanjax.evaluation.report_plots import plot_averages, plot_reliability, plot_tasks
from flanjax.evaluation.significance import SAMPLES, compare, interval
from flanjax.evaluation.word_lists import associations, representation, toxic_fraction
from flanjax.files import write_whole

Summary = dict[str, Any]


def answers_name(benchmark: str) -> str:
    """The file that a benchmark's answers are in."""
    return f"{benchmark}.answers.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured on one benchmark.

    Attributes:
      result: of the model.
      baselines: of `flanjax.evaluation.baselines`, and of other models to stand beside it, by name.
      perturbed: of the model on `flanjax.evaluation.perturbations`, by name.
      seconds: that the model took to answer all instances.
    """

    result: Result
    baselines: Mapping[str, Result] = dataclasses.field(default_factory=dict)
    perturbed: Mapping[str, Result] = dataclasses.field(default_factory=dict)
    seconds: float | None = None


def summarize(measured: Measured, *, samples: int = SAMPLES, seed: int = 0) -> Summary:
    """All figures of a benchmark, as JSON has them; percentages have four places, as published ones."""
    result = measured.result
    benchmark = result.benchmark
    summary: Summary = {
        "benchmark": benchmark.name,
        "instances": len(result.outcomes),
        "mean_over": benchmark.average,
        "metrics": {
            metric: _rounded(dataclasses.asdict(interval(result, metric, samples=samples, seed=seed)))
            for metric in benchmark.metrics
        },
        "baselines": {
            name: _rounded({metric: baseline.average(metric) for metric in benchmark.metrics})
            for name, baseline in measured.baselines.items()
        },
        "by_task": _table(result, "task"),
        "by_category": _table(result, "category"),
    }
    if benchmark.mode == "choices":
        confidences, right = choice_confidences(result)
        summary["calibration"] = {
            "ece_10_bin": round(expected_calibration_error(confidences, right), 4),
            "ece_1_bin": round(expected_calibration_error(confidences, right, bins=1), 4),
            "bins": [_rounded(dataclasses.asdict(each)) for each in reliability(confidences, right)],
        }
    else:
        texts = [outcome.prediction.text for outcome in result.outcomes]
        summary["words"] = {
            "toxic_fraction": toxic_fraction(texts),
            "gender_representation": representation(texts),
            "gender_of_professions": associations(texts),
        }
    if measured.perturbed:
        summary["robustness"] = {
            name: _rounded({metric: rough.average(metric) for metric in benchmark.metrics})
            for name, rough in measured.perturbed.items()
        }
        forms = [result, *measured.perturbed.values()]
        summary["robustness"]["worst of all"] = _rounded({m: worst_case(forms, m) for m in benchmark.metrics})
    if measured.seconds is not None:
        summary["efficiency"] = {
            "seconds": round(measured.seconds, 3),
            "instances_per_second": round(len(result.outcomes) / measured.seconds, 3) if measured.seconds else None,
        }
    return summary


def write_report(
    folder: str | Path,
    title: str,
    measured: Sequence[Measured],
    *,
    facts: Mapping[str, str] | None = None,
    samples: int = SAMPLES,
    seed: int = 0,
) -> list[Summary]:
    """Writes the report's files, each whole or not at all, and returns the figures.

    Args:
      folder: where; it is made.
      title: such as the model's name.
      measured: one for each benchmark.
      facts: what a reader has to know to measure again: checkpoint, versions, hash of the prompts.
      samples: of the bootstrap.
      seed: of the bootstrap.

    Raises:
      BenchmarkError: nothing was measured, or a benchmark twice.
      FileError: a file cannot be written.
    """
    names = [each.result.benchmark.name for each in measured]
    if not names or len(set(names)) < len(names):
        raise BenchmarkError(f"a report needs benchmarks that are each measured once, not {names}")
    summaries = [summarize(each, samples=samples, seed=seed) for each in measured]
    blocks = _blocks(title, dict(facts or {}), summaries)
    report = {"title": title, "facts": dict(facts or {}), "samples": samples, "seed": seed, "benchmarks": summaries}
    folder = Path(folder)
    for each in measured:
        lines = [json.dumps(_line(outcome), ensure_ascii=False) + "\n" for outcome in each.result.outcomes]
        write_whole(folder / answers_name(each.result.benchmark.name), "".join(lines))
    write_whole(folder / "report.md", markdown_page(blocks))
    write_whole(folder / "report.html", html_page(title, blocks))
    write_whole(folder / "report.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    return summaries


def write_comparison(
    folder: str | Path,
    names: tuple[str, str],
    pairs: Sequence[tuple[Result, Result]],
    *,
    samples: int = SAMPLES,
    seed: int = 0,
) -> list[Summary]:
    """Writes comparison.json, .md and .html of two runs, and returns what each metric of each benchmark has gained.

    Args:
      folder: where; it is made.
      names: of the first and of the second run, which is measured against the first.
      pairs: the results of both on each benchmark, over the same instances.
      samples: of the bootstrap and of the permutations.
      seed: of both.

    Raises:
      BenchmarkError: there are no pairs, or one is not of the same instances.
      FileError: a file cannot be written.
    """
    if not pairs:
        raise BenchmarkError("there is nothing to compare: give the results of two runs on a benchmark")
    found = []
    for first, second in pairs:
        for metric in first.benchmark.metrics:
            averages = {"first": first.average(metric), "second": second.average(metric)}
            gain = dataclasses.asdict(compare(first, second, metric, samples=samples, seed=seed))
            found.append({"benchmark": first.benchmark.name, "metric": metric, **_rounded(averages | gain)})
    columns = ("benchmark", "metric", *names, "difference (95 % interval)", "p", "better", "worse", "equal")
    title = f"{names[1]} against {names[0]}"
    text = "p is that of a paired permutation test over instances; better and worse count instances of the second run."
    blocks: list[Block] = [Heading(1, title), Words(text), Table(columns, [_gain(each) for each in found])]
    report = {"first": names[0], "second": names[1], "samples": samples, "seed": seed, "metrics": found}
    folder = Path(folder)
    write_whole(folder / "comparison.md", markdown_page(blocks))
    write_whole(folder / "comparison.html", html_page(title, blocks))
    write_whole(folder / "comparison.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    return found


def _gain(each: Mapping[str, Any]) -> tuple[str, ...]:
    difference = f"{each['difference']:+.2f} ({each['low']:+.2f} to {each['high']:+.2f})"
    counts = (str(each[count]) for count in ("better", "worse", "equal"))
    scores = (f"{each[side]:.2f}" for side in ("first", "second"))
    return (each["benchmark"], each["metric"], *scores, difference, f"{each['p_value']:.4f}", *counts)


def _rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in values.items()}


def _table(result: Result, field: str) -> dict[str, dict[str, Any]]:
    counts = Counter(getattr(outcome.instance, field) for outcome in result.outcomes)
    if set(counts) == {""}:
        return {}
    by = result.by_task if field == "task" else result.by_category
    means = {metric: by(metric) for metric in result.benchmark.metrics}
    return {
        name: {"instances": counts[name]} | _rounded({m: found[name] for m, found in means.items() if name in found})
        for name in sorted(counts)
    }


def _line(outcome: Outcome) -> dict[str, Any]:
    scores = {metric: list(values) for metric, values in outcome.scores.items()}
    found = {"task": outcome.instance.task, "answer": outcome.answer, "scores": scores}
    return outcome.prediction.to_json() | found


def _blocks(title: str, facts: Mapping[str, str], summaries: Sequence[Summary]) -> list[Block]:
    blocks: list[Block] = [Heading(1, title)]
    if facts:
        blocks.append(Table(("fact", "value"), [(name, value) for name, value in facts.items()]))
    rows = []
    for summary in summaries:
        metric, figure = next(iter(summary["metrics"].items()))
        best = max(summary["baselines"].items(), key=lambda item: item[1][metric], default=None)
        beside = "none" if best is None else f"{best[1][metric]:.2f} ({best[0]})"
        rows.append((summary["benchmark"], metric, _with_interval(figure), beside, str(summary["instances"])))
    blocks.append(Heading(2, "Overview"))
    blocks.append(Table(("benchmark", "metric", "score (95 % interval)", "best baseline", "instances"), rows))
    blocks.append(Picture(plot_averages(summaries), "Scores with their intervals, and the baselines"))
    for summary in summaries:
        blocks += _benchmark_blocks(summary)
    return blocks


def _benchmark_blocks(summary: Summary) -> list[Block]:
    metrics = list(summary["metrics"])
    blocks: list[Block] = [Heading(2, summary["benchmark"])]
    blocks.append(
        Words(f"{summary['instances']:,} instances; scores are percentages, means over {summary['mean_over']}.")
    )
    rows = [("the model", *(_with_interval(figure) for figure in summary["metrics"].values()))]
    rows += [(name, *(f"{found[metric]:.2f}" for metric in metrics)) for name, found in summary["baselines"].items()]
    blocks.append(Table(("answers", *metrics), rows))
    for field, heading in (("by_category", "Categories"), ("by_task", "Tasks")):
        if len(summary[field]) > 1:
            blocks += [Heading(3, heading), _scores(heading.lower(), summary[field], ("instances", *metrics))]
    if len(summary["by_task"]) > 1:
        blocks.append(Picture(plot_tasks(summary), f"{metrics[0]} of each task"))
    if found := summary.get("calibration"):
        text = f"Expected calibration error {found['ece_10_bin']:.4f} (ten bins), {found['ece_1_bin']:.4f} (one bin)."
        blocks += [Heading(3, "Calibration"), Words(text)]
        blocks.append(Picture(plot_reliability(found["bins"]), "Accuracy against confidence"))
    if found := summary.get("robustness"):
        blocks += [Heading(3, "Robustness"), _scores("questions", found, tuple(metrics))]
    if found := summary.get("words"):
        shown = [(name, "none" if value is None else f"{value:.4f}") for name, value in found.items()]
        blocks += [Heading(3, "Listed words"), Table(("count", "value"), shown)]
    if found := summary.get("efficiency"):
        text = f"{found['seconds']:,} seconds, {found['instances_per_second']} instances a second."
        blocks += [Heading(3, "Efficiency"), Words(text)]
    return blocks


def _with_interval(figure: Mapping[str, float]) -> str:
    return f"{figure['mean']:.2f} ({figure['low']:.2f} to {figure['high']:.2f})"


def _scores(first: str, rows: Mapping[str, Mapping[str, Any]], columns: tuple[str, ...]) -> Table:
    def cell(value: Any) -> str:
        return "" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)

    return Table(
        (first, *columns), [(name, *(cell(row.get(column)) for column in columns)) for name, row in rows.items()]
    )
