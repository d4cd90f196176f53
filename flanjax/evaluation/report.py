"""The report of an evaluation: every figure beside what needs no understanding, as JSON, Markdown and HTML.

    write_report("runs/a/evaluation", "Flan-T5 small", [Measured(result=result, baselines=baseline_results)])

    report.json          all figures; percentages under "metrics", "baselines", "by_task", shares elsewhere
    report.md            the same as tables
    report.html          the same with plots, in one file that needs no other
    NAME.answers.jsonl   each answer with its scores; `read_predictions` reads it

Two runs are compared from the answers that they kept:

    a, b = read_results("runs/a/evaluation"), read_results("runs/b/evaluation")
    write_comparison("runs/b/against_a", ("a", "b"), [(a["mmlu"].result, b["mmlu"].result)])    # comparison.json, ...
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from flanjax.evaluation.benchmark import (
    Benchmark,
    BenchmarkError,
    Instance,
    Outcome,
    Prediction,
    Result,
    Scores,
    evaluate,
    read_predictions,
)
from flanjax.evaluation.calibration import confidences_of, expected_calibration_error, reliability
from flanjax.evaluation.perturbations import worst_case
from flanjax.evaluation.report_pages import Block, Heading, Picture, Table, Words, html_page, markdown_page
from flanjax.evaluation.report_plots import plot_averages, plot_reliability, plot_tasks
from flanjax.evaluation.significance import SAMPLES, compare, interval
from flanjax.evaluation.word_lists import associations, representation, toxic_fraction
from flanjax.files import read_json_lines, write_whole

Summary = dict[str, Any]
_PROBES = (
    "In brackets what a probe has more than the model has, and the 95 % interval of that: a model that loses nothing "
    "by a simplified definition or by wrong examples has not used them."
)
_LIMITS = (512, 1024, 2048)  # lengths that models are commonly trained with, in tokens


def answers_name(benchmark: str) -> str:
    """The file that a benchmark's answers are in; its name may have that of another file in it."""
    return f"{benchmark.replace('/', '_')}.answers.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured on one benchmark.

    Attributes:
      result: of the model.
      baselines: of `flanjax.evaluation.baselines`, and of other models to stand beside it, by name.
      probes: of the model on the benchmark's probes, by name.
      perturbed: of the model on `flanjax.evaluation.perturbations`, by name.
      seconds: that the model took to answer all instances.
      prompt_tokens: of each instance's prompt, as the model counts them.
      answer_tokens: likewise of what it wrote, or of all choices that it scored.
    """

    result: Result
    baselines: Mapping[str, Result] = dataclasses.field(default_factory=dict)
    probes: Mapping[str, Result] = dataclasses.field(default_factory=dict)
    perturbed: Mapping[str, Result] = dataclasses.field(default_factory=dict)
    seconds: float | None = None
    prompt_tokens: Sequence[int] = ()
    answer_tokens: Sequence[int] = ()


def summarize(measured: Measured, *, samples: int = SAMPLES, seed: int = 0) -> Summary:
    """All figures of a benchmark, as JSON has them; percentages have four places, as published ones."""
    result, metrics = measured.result, measured.result.benchmark.metrics
    sure: _Sure = {"samples": samples, "seed": seed}
    summary: Summary = {
        "benchmark": result.benchmark.name,
        "prompts_sha256": _prompts_hash(result),
        "instances": len(result.outcomes),
        "mean_over": result.benchmark.average,
        "metrics": {metric: _rounded(dataclasses.asdict(interval(result, metric, **sure))) for metric in metrics},
        "baselines": {name: _averages(baseline) for name, baseline in measured.baselines.items()},
        "by_task": _table(result, "task", sure),
        "by_category": _table(result, "category", sure),
    }
    if measured.baselines:
        best = max(measured.baselines, key=lambda name: measured.baselines[name].average(metrics[0]))
        gain = _gains(measured.baselines[best], result, metrics[:1], sure)[metrics[0]]
        summary["above_baseline"] = {"baseline": best, **gain}
    if measured.probes:
        summary["probes"] = {name: _gains(result, probe, metrics, sure) for name, probe in measured.probes.items()}
    if result.benchmark.tables:
        summary["tables"] = {
            heading: {name: _rounded(row) for name, row in table(result).items()}
            for heading, table in result.benchmark.tables.items()
        }
    if calibration := _calibration(result):
        summary["calibration"] = calibration
    if result.benchmark.mode != "choices":
        texts = [outcome.prediction.text for outcome in result.outcomes]
        summary["words"] = {
            "toxic_fraction": toxic_fraction(texts),
            "gender_representation": representation(texts),
            "gender_of_professions": associations(texts),
        }
    if measured.perturbed:
        forms = [result, *measured.perturbed.values()]
        summary["robustness"] = {name: _averages(rough) for name, rough in measured.perturbed.items()}
        summary["robustness"]["worst of all"] = _rounded({m: worst_case(forms, m) for m in metrics})
    if measured.prompt_tokens:
        summary["lengths"] = _lengths(measured)
    if measured.seconds:
        summary["efficiency"] = _efficiency(measured, measured.seconds)
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kept:
    """What a report kept of a benchmark.

    Attributes:
      result: as it was scored then; of the instances it knows names, tasks and categories.
      prompts: the hash of what was asked.
    """

    result: Result
    prompts: str


def read_results(folder: str | Path) -> dict[str, Kept]:
    """What `write_report` kept of each benchmark, by name; the data that were asked are not read.

    Raises:
      BenchmarkError: there is no whole report.
    """
    report, found = Path(folder) / "report.json", {}
    try:
        for summary in json.loads(report.read_text())["benchmarks"]:
            found[summary["benchmark"]] = Kept(
                result=_kept(Path(folder) / answers_name(summary["benchmark"]), summary),
                prompts=summary["prompts_sha256"],
            )
    except (OSError, ValueError, KeyError) as error:
        raise BenchmarkError(
            f"{folder}: the evaluation there is not finished, or was by another version ({error!r}): "
            "give its command again"
        ) from error
    return found


def _kept(file: Path, summary: Summary) -> Result:
    lines = {line["id"]: line for line in read_json_lines(file)}
    instances = [Instance(id=i, task=line["task"], category=line["category"], prompt="") for i, line in lines.items()]

    def read(instance: Instance, prediction: Prediction) -> str:
        return str(lines[instance.id]["answer"])

    def score(instance: Instance, prediction: Prediction, answer: str) -> Scores:
        return {metric: tuple(values) for metric, values in lines[instance.id]["scores"].items()}

    benchmark = Benchmark(
        name=summary["benchmark"],
        load=lambda: iter(instances),
        read=read,
        score=score,
        metrics=tuple(summary["metrics"]),
        average=summary["mean_over"],
    )
    return evaluate(benchmark, read_predictions(file))


def write_comparison(
    folder: str | Path,
    names: tuple[str, str],
    pairs: Sequence[tuple[Result, Result]],
    *,
    prompts: Mapping[str, str] | None = None,
    samples: int = SAMPLES,
    seed: int = 0,
) -> list[Summary]:
    """Writes comparison.json, .md and .html of two runs, and returns what each metric of each benchmark has gained.

    Args:
      folder: where; it is made.
      names: of the first and of the second run, which is measured against the first.
      pairs: the results of both on each benchmark, over the same instances.
      prompts: of benchmarks that were not asked alike in both runs, what was different, by name.
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
            asked = (prompts or {}).get(first.benchmark.name, "the same")
            names_of = {"benchmark": first.benchmark.name, "metric": metric}
            found.append({**names_of, **_rounded(averages | gain), "prompts": asked})
    columns = ("benchmark", "metric", *names, "difference (95 % interval)", "p", "better", "worse", "equal", "prompts")
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
    p_value = f"{each['p_value']:.4f}"
    return (each["benchmark"], each["metric"], *scores, difference, p_value, *counts, each["prompts"])


class _Sure(TypedDict):
    """How an interval is found."""

    samples: int
    seed: int


def _rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in values.items()}


def _averages(result: Result) -> dict[str, Any]:
    return _rounded({metric: result.average(metric) for metric in result.benchmark.metrics})


def _gains(first: Result, second: Result, metrics: Sequence[str], sure: _Sure) -> dict[str, dict[str, Any]]:
    """Of each metric the second result's average, and what it has more than the first."""
    return {
        metric: _rounded({"mean": second.average(metric)} | dataclasses.asdict(compare(first, second, metric, **sure)))
        for metric in metrics
    }


def _calibration(result: Result) -> dict[str, Any] | None:
    found = confidences_of(result)
    if found is None:
        return None
    confidences, right = found
    scored = result.benchmark.mode == "choices"
    return {
        "confidence": "softmax of the choices" if scored else "probability of the text",
        "instances": len(right),
        "ece_10_bin": round(expected_calibration_error(confidences, right), 4),
        "ece_1_bin": round(expected_calibration_error(confidences, right, bins=1), 4),
        "bins": [_rounded(dataclasses.asdict(each)) for each in reliability(confidences, right)],
    }


def _prompts_hash(result: Result) -> str:
    """Of all that is asked and what is right: two runs with another were not asked the same."""
    instances = [outcome.instance for outcome in result.outcomes]
    asked = [
        [each.id, each.prompt, [(turn.role, turn.text) for turn in each.turns], each.choices, each.references]
        for each in instances
    ]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]


def _lengths(measured: Measured) -> dict[str, Any]:
    lengths = measured.prompt_tokens
    return {
        "mean": round(sum(lengths) / len(lengths), 1),
        "longest": max(lengths),
        **{f"over_{limit}": sum(length > limit for length in lengths) for limit in _LIMITS},
        "cut": sum(outcome.instance.cut for outcome in measured.result.outcomes),
    }


def _efficiency(measured: Measured, seconds: float) -> dict[str, Any]:
    found = {"seconds": seconds, "instances_per_second": len(measured.result.outcomes) / seconds}
    if measured.prompt_tokens:
        found["prompt_tokens_per_second"] = sum(measured.prompt_tokens) / seconds
        found["answer_tokens_per_second"] = sum(measured.answer_tokens) / seconds
    return {name: round(value, 3) for name, value in found.items()}


def _table(result: Result, field: str, sure: _Sure) -> dict[str, dict[str, Any]]:
    """Of each task or category its instances, its means, and of several instances the first metric's interval."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in result.outcomes:
        groups.setdefault(getattr(outcome.instance, field), []).append(outcome)
    if set(groups) == {""}:
        return {}
    plain = dataclasses.replace(result.benchmark, average="instances")
    rows: dict[str, dict[str, Any]] = {}
    for name in sorted(groups):
        part = Result(benchmark=plain, outcomes=tuple(groups[name]))
        there = [metric for metric in plain.metrics if part.by_task(metric)]
        rows[name] = {"instances": len(part.outcomes)} | _rounded({metric: part.average(metric) for metric in there})
        if plain.metrics[0] in there and len(part.outcomes) > 1:
            found = interval(part, plain.metrics[0], **sure)
            rows[name] |= _rounded({"low": found.low, "high": found.high})
    return rows


def _line(outcome: Outcome) -> dict[str, Any]:
    scores = {metric: list(values) for metric, values in outcome.scores.items()}
    instance = outcome.instance
    found = {"task": instance.task, "category": instance.category, "answer": outcome.answer, "scores": scores}
    return outcome.prediction.to_json() | found


def _blocks(title: str, facts: Mapping[str, str], summaries: Sequence[Summary]) -> list[Block]:
    blocks: list[Block] = [Heading(1, title)]
    if facts:
        blocks.append(Table(("fact", "value"), [(name, value) for name, value in facts.items()]))
    rows = []
    for summary in summaries:
        metric, figure = next(iter(summary["metrics"].items()))
        beside = above = "none"
        if found := summary.get("above_baseline"):
            beside = f"{summary['baselines'][found['baseline']][metric]:.2f} ({found['baseline']})"
            above = _with_sign(found)
        name, count = summary["benchmark"], str(summary["instances"])
        rows.append((name, metric, _with_interval(figure), beside, above, count))
    columns = ("benchmark", "metric", "score (95 % interval)", "best baseline", "above it", "instances")
    blocks += [Heading(2, "Overview"), Table(columns, rows)]
    blocks.append(Picture(plot_averages(summaries), "Scores with their intervals, the baselines and the probes"))
    for summary in summaries:
        blocks += _benchmark_blocks(summary)
    return blocks


def _benchmark_blocks(summary: Summary) -> list[Block]:
    metrics = list(summary["metrics"])
    blocks: list[Block] = [Heading(2, summary["benchmark"])]
    blocks.append(
        Words(
            f"{summary['instances']:,} instances; scores are percentages, means over {summary['mean_over']}. "
            f"SHA-256 of the prompts: {summary['prompts_sha256']}."
        )
    )
    rows = [("the model", *(_with_interval(figure) for figure in summary["metrics"].values()))]
    for name, gains in summary.get("probes", {}).items():
        rows.append((f"the model, {name}", *(f"{gain['mean']:.2f} ({_with_sign(gain)})" for gain in gains.values())))
    rows += [(name, *(f"{found[metric]:.2f}" for metric in metrics)) for name, found in summary["baselines"].items()]
    blocks.append(Table(("answers", *metrics), rows))
    if "probes" in summary:
        blocks.append(Words(_PROBES))
    for field, heading in (("by_category", "Categories"), ("by_task", "Tasks")):
        if len(summary[field]) > 1:
            blocks += [
                Heading(3, heading),
                _scores(heading.lower(), summary[field], ("instances", *metrics), metrics[0]),
            ]
    if len(summary["by_task"]) > 1:
        blocks.append(Picture(plot_tasks(summary), f"{metrics[0]} of each task"))
    for heading, table in summary.get("tables", {}).items():
        columns = tuple(dict.fromkeys(column for row in table.values() for column in row))
        blocks += [Heading(3, heading), _scores("", table, columns)]
    if found := summary.get("calibration"):
        text = (
            f"Expected calibration error {found['ece_10_bin']:.4f} (ten bins), {found['ece_1_bin']:.4f} (one bin), "
            f"over {found['instances']:,} instances; the confidence is the {found['confidence']}."
        )
        blocks += [Heading(3, "Calibration"), Words(text)]
        blocks.append(Picture(plot_reliability(found["bins"]), "Accuracy against confidence"))
    if found := summary.get("robustness"):
        blocks += [Heading(3, "Robustness"), _scores("questions", found, tuple(metrics))]
    if found := summary.get("words"):
        shown = [(name, "none" if value is None else f"{value:.4f}") for name, value in found.items()]
        blocks += [Heading(3, "Listed words"), Table(("count", "value"), shown)]
    for key, heading in (("lengths", "Lengths of prompts, in tokens"), ("efficiency", "Efficiency")):
        if found := summary.get(key):
            figures = [(name.replace("_", " "), f"{value:,}") for name, value in found.items()]
            blocks += [Heading(3, heading), Table(("", "value"), figures)]
    return blocks


def _with_interval(figure: Mapping[str, float]) -> str:
    return f"{figure['mean']:.2f} ({figure['low']:.2f} to {figure['high']:.2f})"


def _with_sign(gain: Mapping[str, float]) -> str:
    return f"{gain['difference']:+.2f}; {gain['low']:+.2f} to {gain['high']:+.2f}"


def _scores(
    first: str, rows: Mapping[str, Mapping[str, Any]], columns: tuple[str, ...], sure_of: str | None = None
) -> Table:
    """A table of rows by name; the metric `sure_of` has its interval beside it."""

    def cell(row: Mapping[str, Any], column: str) -> str:
        value = row.get(column)
        text = "" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)
        return f"{text} ({row['low']:.2f} to {row['high']:.2f})" if column == sure_of and "low" in row else text

    return Table((first, *columns), [(name, *(cell(row, column) for column in columns)) for name, row in rows.items()])
