"""The report of an evaluation: its figures are those of the results, and its three forms say the same."""

import dataclasses
import html.parser
import json
import math
import re

import pytest

from flanjax.data.tasks import Turn
from flanjax.evaluation.baselines import baselines
from flanjax.evaluation.bbh import bbh
from flanjax.evaluation.benchmark import (
    Benchmark,
    BenchmarkError,
    Instance,
    Prediction,
    evaluate,
    read_predictions,
)
from flanjax.evaluation.perturbations import perturbed
from flanjax.evaluation.report import Measured, read_results, summarize, write_comparison, write_report
from flanjax.evaluation.report_pages import Heading, Picture, Table, Words, html_page, markdown_page
from flanjax.evaluation.super_ni import super_ni
from flanjax.evaluation.truthfulqa import truthfulqa


@pytest.fixture(scope="module")
def measured(test_data):
    """The first reference for every second question of Super-NI; the longest choice of TruthfulQA."""
    ni = super_ni(test_data / "super_natural_instructions", instances_per_task=20)

    def texts(benchmark):
        return [
            Prediction(id=instance.id, text=instance.references[0] if number % 2 else "she said idiot")
            for number, instance in enumerate(benchmark.load())
        ]

    truth = truthfulqa(test_data / "truthfulqa" / "TruthfulQA.csv")
    lengths = [
        Prediction(id=instance.id, loglikelihoods=tuple(-10.0 / len(choice) for choice in instance.choices))
        for instance in truth.load()
    ]
    return [
        Measured(
            result=evaluate(ni, texts(ni)),
            baselines={name: evaluate(ni, found) for name, found in baselines(ni).items()},
            probes={
                name: evaluate(probe, [Prediction(id=i.id, text="yes") for i in probe.load()])
                for name, probe in ni.probes.items()
            },
            perturbed={"lower_case": evaluate(perturbed(ni, "lower_case"), texts(ni))},
            seconds=2.0,
            prompt_tokens=[100] * 39 + [600],
            answer_tokens=[10] * 40,
        ),
        Measured(
            result=evaluate(truth, lengths),
            baselines={name: evaluate(truth, found) for name, found in baselines(truth).items()},
        ),
    ]


@pytest.fixture(scope="module")
def folder(measured, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "evaluation"
    write_report(folder, "Half <right>", measured, facts={"checkpoint": "none | of them"}, samples=100)
    return folder


def test_the_figures_are_those_of_the_results(measured):
    ni, truth = (summarize(each, samples=50) for each in measured)
    result = measured[0].result
    assert list(ni) == [
        *("benchmark", "prompts_sha256", "instances", "mean_over", "metrics", "baselines", "by_task", "by_category"),
        *("above_baseline", "probes", "tables", "words", "robustness", "lengths", "efficiency"),
    ]
    assert ni["metrics"]["rougeL"]["mean"] == round(result.average("rougeL"), 4)
    assert ni["metrics"]["exact_match"]["mean"] == 50
    assert ni["metrics"]["exact_match"]["low"] < 50 < ni["metrics"]["exact_match"]["high"]
    assert list(ni["baselines"]) == ["copy-input", "copy-demonstration", "majority-label", "random-label"]
    assert {name: row["instances"] for name, row in ni["by_category"].items()} == {
        "Cause Effect Classification": 20,
        "Data to Text": 20,
    }
    assert ni["words"] == {"toxic_fraction": 0.5, "gender_representation": 0.5, "gender_of_professions": None}
    assert ni["robustness"]["worst of all"] == ni["robustness"]["lower_case"]
    assert ni["lengths"] == {"mean": 112.5, "longest": 600, "over_512": 1, "over_1024": 0, "over_2048": 0, "cut": 0}
    assert ni["efficiency"] == {
        "seconds": 2.0,
        "instances_per_second": 20.0,
        "prompt_tokens_per_second": 2250.0,
        "answer_tokens_per_second": 200.0,
    }
    for probe in ni["probes"].values():
        assert (probe["exact_match"]["mean"], probe["exact_match"]["difference"]) == (0, -50)
    above, metric = ni["above_baseline"], "rougeL"
    best = max(row[metric] for row in ni["baselines"].values())
    assert ni["baselines"][above["baseline"]][metric] == best
    assert above["difference"] == pytest.approx(ni["metrics"][metric]["mean"] - best, abs=1e-3)
    for row in ni["by_task"].values():
        assert row["low"] <= row[metric] <= row["high"]
    (official,) = ni["tables"].values()
    assert official["Cause Effect Classification"] == {"metric": "exact_match", "score": 50.0}
    assert list(truth)[-1] == "calibration"
    assert sum(each["instances"] for each in truth["calibration"]["bins"]) == 817
    assert len(truth["by_task"]) == 38
    assert summarize(measured[0], samples=50) == ni


def test_written_answers_judged_by_exact_match_have_a_calibration_in_every_form(tmp_path):
    """By hand: the model is 20 % sure of what is wrong and 90 % of what is right."""
    instances = [Instance(id=str(n), task="t", prompt=f"{n}", references=("yes",)) for n in range(4)]
    benchmark = Benchmark(
        name="own",
        load=lambda: iter(instances),
        read=lambda instance, prediction: prediction.text,
        score=lambda instance, prediction, answer: {"exact_match": (float(answer == "yes"),)},
        metrics=("exact_match",),
    )
    given = [("no", 0.2), ("yes", 0.9), ("no", 0.2), ("yes", 0.9)]
    predictions = [
        Prediction(id=str(n), text=text, text_loglikelihood=math.log(p)) for n, (text, p) in enumerate(given)
    ]
    measured = Measured(result=evaluate(benchmark, predictions))
    (summary,) = write_report(tmp_path, "Own", [measured], samples=10)
    assert summary["calibration"] == {
        "confidence": "probability of the text",
        "instances": 4,
        "ece_10_bin": 0.15,
        "ece_1_bin": 0.05,
        "bins": [
            {"instances": 2, "confidence": 0.2, "accuracy": 0.0},
            {"instances": 2, "confidence": 0.9, "accuracy": 1.0},
        ],
    }
    assert "words" in summary
    (told,) = json.loads((tmp_path / "report.json").read_text())["benchmarks"]
    assert told["calibration"] == summary["calibration"]
    for form in ("report.md", "report.html"):
        text = (tmp_path / form).read_text()
        assert "Expected calibration error 0.1500 (ten bins), 0.0500 (one bin), over 4 instances" in text
        assert "the confidence is the probability of the text" in text
    assert list(read_predictions(tmp_path / "own.answers.jsonl")) == predictions
    untold = [Prediction(id=each.id, text=each.text) for each in predictions]
    assert "calibration" not in summarize(Measured(result=evaluate(benchmark, untold)), samples=10)


class Page(html.parser.HTMLParser):
    """Headings, rows and pictures of an HTML page, and the tags that are open."""

    def __init__(self, text):
        super().__init__()
        self.headings, self.rows, self.pictures, self.open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag == "img":
            self.pictures.append(dict(attributes)["src"])
        elif tag != "meta":
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings.append(f"{'#' * int(self.open[-1][1])} {data}")
        if self.open and self.open[-1] in ("th", "td"):
            self.rows[-1][-1] += data


def test_html_and_markdown_have_the_same_headings_and_tables(folder):
    text = (folder / "report.html").read_text()
    page = Page(text)
    markdown = (folder / "report.md").read_text()
    assert page.open == []
    assert page.headings == re.findall(r"^#+ .*$", markdown, re.MULTILINE)
    assert page.headings == [
        "# Half <right>",
        "## Overview",
        "## super_ni-def_pos2",
        "### Categories",
        "### Tasks",
        "### Categories, each by the metric that the paper reports",
        "### Robustness",
        "### Listed words",
        "### Lengths of prompts, in tokens",
        "### Efficiency",
        "## truthfulqa",
        "### Categories",
        "### Tasks",
        "### Calibration",
    ]
    rows = [re.split(r" (?<!\\)\| ", line[2:-2]) for line in markdown.splitlines() if line.startswith("| ")]
    rows = [[cell.replace("\\|", "|") for cell in row] for row in rows if set(row) != {"---"}]
    assert rows == page.rows
    assert len(page.pictures) == 4
    assert all(picture.startswith("data:image/png;base64,iVBORw0KGgo") for picture in page.pictures)
    assert "http" not in text  # nothing is loaded


def test_the_json_says_what_the_tables_say(folder):
    report = json.loads((folder / "report.json").read_text())
    assert list(report) == ["title", "facts", "samples", "seed", "benchmarks"]
    markdown = (folder / "report.md").read_text()
    for summary in report["benchmarks"]:
        metric, figure = next(iter(summary["metrics"].items()))
        shown = f"{figure['mean']:.2f} ({figure['low']:.2f} to {figure['high']:.2f})"
        best, values = max(summary["baselines"].items(), key=lambda item: item[1][metric])
        above = summary["above_baseline"]
        gain = f"{above['difference']:+.2f}; {above['low']:+.2f} to {above['high']:+.2f}"
        row = (summary["benchmark"], metric, shown, f"{values[metric]:.2f} ({best})", gain, str(summary["instances"]))
        assert f"| {' | '.join(row)} |" in markdown
        for name, found in summary["by_task"].items():
            sure = f"({found['low']:.2f} to {found['high']:.2f})"
            assert f"| {name} | {found['instances']} | {found[metric]:.2f} {sure} |" in markdown


def test_answers_are_kept_and_can_be_scored_again(folder, measured):
    for each in measured:
        benchmark = each.result.benchmark
        again = evaluate(benchmark, read_predictions(folder / f"{benchmark.name}.answers.jsonl"))
        assert again.outcomes == each.result.outcomes


def test_what_a_report_kept_is_its_results_without_the_data(folder, measured, tmp_path):
    kept = read_results(folder)
    assert list(kept) == [each.result.benchmark.name for each in measured]
    for each in measured:
        result, again = each.result, kept[each.result.benchmark.name].result
        assert [o.scores for o in again.outcomes] == [o.scores for o in result.outcomes]
        assert [o.answer for o in again.outcomes] == [o.answer for o in result.outcomes]
        assert again.benchmark.average == result.benchmark.average
        for metric in result.benchmark.metrics:
            assert again.average(metric) == result.average(metric)
            assert again.by_task(metric) == result.by_task(metric)
            assert again.by_category(metric) == result.by_category(metric)
    with pytest.raises(BenchmarkError, match=r"none: the evaluation there is not finished, .*: give its command again"):
        read_results(tmp_path / "none")


def test_the_hash_of_prompts_is_of_all_that_is_asked_and_of_what_is_right(measured):
    result = measured[0].result
    (first, *others) = result.outcomes
    hashes = {summarize(Measured(result=result), samples=10)["prompts_sha256"]}
    for change in (
        {"prompt": first.instance.prompt + " "},
        {"references": ("other",)},
        {"turns": (Turn(role="user", text="Hi"),)},
    ):
        changed = dataclasses.replace(first, instance=dataclasses.replace(first.instance, **change))
        other = Measured(result=dataclasses.replace(result, outcomes=(changed, *others)))
        hashes.add(summarize(other, samples=10)["prompts_sha256"])
    assert len(hashes) == 4


def test_a_report_needs_each_benchmark_once(measured, tmp_path):
    for wrong in ([], [measured[0], measured[0]]):
        with pytest.raises(BenchmarkError, match="each measured once"):
            write_report(tmp_path / "r", "t", wrong)
    assert not (tmp_path / "r").exists()


def test_two_runs_are_compared_from_their_kept_answers(folder, measured, tmp_path):
    ni = measured[0].result
    kept = evaluate(ni.benchmark, read_predictions(folder / f"{ni.benchmark.name}.answers.jsonl"))
    right = evaluate(ni.benchmark, [Prediction(id=o.instance.id, text=o.instance.references[0]) for o in ni.outcomes])
    found = write_comparison(tmp_path, ("half", "whole"), [(kept, right)], samples=200)
    exact = next(each for each in found if each["metric"] == "exact_match")
    assert (exact["first"], exact["second"], exact["difference"]) == (50, 100, 50)
    assert (exact["better"], exact["worse"], exact["equal"]) == (20, 0, 20)
    assert 0 < exact["low"] < 50 < exact["high"]
    assert exact["p_value"] == round(1 / 201, 4)
    assert json.loads((tmp_path / "comparison.json").read_text())["metrics"] == found
    page = Page((tmp_path / "comparison.html").read_text())
    assert page.headings == ["# whole against half"]
    assert page.rows[0][:4] == ["benchmark", "metric", "half", "whole"]
    assert ["exact_match", "50.00", "100.00"] in [row[1:4] for row in page.rows]
    assert {each["prompts"] for each in found} == {"the same"}
    assert "| exact_match | 50.00 | 100.00 | +50.00 (" in (tmp_path / "comparison.md").read_text()
    other = {ni.benchmark.name: "other ones"}
    same = write_comparison(tmp_path, ("half", "half"), [(ni, kept)], prompts=other, samples=20)
    assert {row[-1] for row in Page((tmp_path / "comparison.html").read_text()).rows[1:]} == {"other ones"}
    assert {(each["difference"], each["p_value"]) for each in same} == {(0.0, 1.0)}
    with pytest.raises(BenchmarkError, match="nothing to compare"):
        write_comparison(tmp_path / "none", ("a", "b"), [])


def test_a_page_of_every_block_is_escaped():
    blocks = [Heading(2, "a < b"), Words("x & y"), Table(("c|d",), [("1\n2",)]), Picture(b"\x89", 'the "one"')]
    assert markdown_page(blocks) == "## a < b\n\nx & y\n\n| c\\|d |\n| --- |\n| 1 2 |\n"
    page = html_page("t < u", blocks)
    assert "<title>t &lt; u</title>" in page
    assert "<h2>a &lt; b</h2>\n<p>x &amp; y</p>\n<table>\n<tr><th>c|d</th></tr>" in page
    assert '<img alt="the &quot;one&quot;" src="data:image/png;base64,iQ==">' in page


def test_a_benchmark_of_many_tasks_and_no_baseline_is_reported(test_data, tmp_path):
    benchmark = bbh(test_data / "bbh", shots=0)
    first = {}
    for instance in benchmark.load():
        first.setdefault(instance.task, instance)
    small = dataclasses.replace(benchmark, load=lambda: iter(first.values()))
    result = evaluate(small, [Prediction(id=each.id, text="(A)") for each in first.values()])
    (summary,) = write_report(tmp_path, "t", [Measured(result=result)], samples=20)
    assert (len(summary["by_task"]), len(summary["by_category"])) == (27, 23)
    assert not any("low" in row for row in summary["by_task"].values())  # nothing is known of one instance's spread
    assert {name for name, row in summary["by_category"].items() if "low" in row} == {
        "logical_deduction",
        "tracking_shuffled_objects",
    }
    assert "| navigate | 1 | 0.00 |" in (tmp_path / "report.md").read_text()
    assert "| none | none | 27 |" in (tmp_path / "report.md").read_text()
