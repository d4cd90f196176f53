"""`python -m flanjax.evaluate --mixture`: the held-out split of any task, and the metrics that it brings along."""

import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import flanjax
from flanjax import evaluate
from flanjax.data.vocabularies import Vocabulary
from flanjax.files import read_json_lines
from flanjax.interchange.any_model import write_hf_model
from flanjax.models.config import T5Config
from flanjax.models.model import init_params

pytestmark = pytest.mark.usefixtures("quick_compilation")

# Written for T5X, but for the vocabulary: a field that its postprocessor reads, texts and scores in its metrics.
MODULE = """
    import numpy as np, seqio, tensorflow as tf

    FEATURES = {{
        "inputs": seqio.Feature(seqio.SentencePieceVocabulary({spiece!r})),
        "targets": seqio.Feature(seqio.SentencePieceVocabulary({spiece!r})),
    }}

    @seqio.map_over_dataset
    def parse(line):
        inputs, targets = tf.io.decode_csv(line, ["", ""], field_delim="\\t", use_quote_delim=False)
        return {{"inputs": inputs, "targets": targets, "length": tf.strings.length(targets)}}

    def postprocess(text, *, example=None, is_target=False):
        return (text.upper(), int(example["length"])) if is_target else text.upper()

    def longest(targets, predictions):
        return {{"length": float(np.mean([len(p) / (1 + length) for (_, length), p in zip(targets, predictions)]))}}

    def firsts(targets, predictions):
        firsts = {{text[:1] for text, _ in targets}}
        return {{"firsts": seqio.metrics.Scalar(np.mean([p[:1] in firsts for p in predictions])),
                "said": seqio.metrics.Text("|".join(predictions))}}

    def likelihood(targets, scores):
        return {{"likelihood": np.mean(scores), "weighted": float(np.dot(scores, [n for _, n in targets]))}}

    def sure(targets, predictions, aux_values):
        right = np.array([p == text for (text, _), p in zip(targets, predictions)])
        return {{"sure": np.mean(aux_values["scores"]), "said": seqio.metrics.Text("|".join(predictions)),
                "off": float(np.mean(np.abs(np.exp(aux_values["scores"]) - right)))}}

    class Inside(seqio.metrics.CollectingMetric):
        model_output_type = seqio.metrics.ModelOutputType.SCORE_WITH_INTERMEDIATES

    for name, metrics in {{"both_of_mine": [longest, firsts, likelihood], "text_of_mine": [firsts],
                          "aux_of_mine": [sure], "inside_of_mine": [longest]}}.items():
        seqio.TaskRegistry.remove(name)
        seqio.TaskRegistry.add(
            name,
            source=seqio.TextLineDataSource({{"train": {file!r}, "test": {file!r}}}),
            preprocessors=[parse, seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
            output_features=FEATURES,
            postprocess_fn=postprocess,
            metric_fns=metrics,
            metric_objs=[Inside] * (name == "inside_of_mine"),
        )
    seqio.MixtureRegistry.remove("all_of_mine")
    seqio.MixtureRegistry.add("all_of_mine", ["both_of_mine", "text_of_mine"], default_rate=1.0)
"""


@pytest.fixture(scope="module")
def model(t5_spiece: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = T5Config(
        vocab_size=32128, embed_dim=8, num_heads=2, head_dim=4, mlp_dim=16, num_encoder_layers=1, num_decoder_layers=1
    )
    folder = tmp_path_factory.mktemp("models") / "t5"
    params = jax.tree.map(lambda leaf: 4 * np.asarray(leaf), init_params(config, 3))
    write_hf_model(folder, config, params, Vocabulary.from_file(t5_spiece))
    return folder


@pytest.fixture
def module(tmp_path: Path, t5_spiece: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    file = tmp_path / "rows.tsv"
    rows = ["Say yes: {x} ~\tyes", "Two and two\tfour", "Wie geht's?\tGut, danke <3", "b, a\ta, b", "Again\tyes"]
    file.write_text("".join(f"{row}\n" for row in rows))
    source = textwrap.dedent(MODULE.format(spiece=str(t5_spiece), file=str(file)))
    (tmp_path / "tasks_of_mine.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    yield "tasks_of_mine"
    sys.modules.pop("tasks_of_mine", None)


def run(*flags: str) -> int:
    return evaluate.main(flags)


def answers(file: Path) -> dict[str, dict[str, Any]]:
    return {line["id"]: line for line in read_json_lines(file)}


def by_seqio(task: str, lines: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What seqio's own evaluator makes of the same texts and scores."""
    import seqio

    found = {int(name.rpartition("/")[2]): line for name, line in lines.items() if name.startswith(f"{task}/")}
    evaluator = seqio.Evaluator(task, seqio.EncDecFeatureConverter(pack=False), eval_split="test")
    values, _ = evaluator.evaluate(
        compute_metrics=True,
        predict_fn=lambda dataset: [(number, line["prediction"]) for number, line in found.items()],
        predict_with_aux_fn=lambda dataset: with_aux(evaluator.eval_tasks[0], found),
        score_fn=lambda dataset: [(number, line["loglikelihoods"][0]) for number, line in found.items()],
    )
    return values.result()[task]


def with_aux(task: Any, found: dict[int, dict[str, Any]]) -> Any:
    """Token ids and scores as T5X gives them to seqio, in another order than the examples."""
    vocabulary, backwards = task.output_features["targets"].vocabulary, sorted(found, reverse=True)
    ids = [vocabulary.encode(found[number]["prediction"]) for number in backwards]
    longest = max(map(len, ids))
    rows = [(number, each + [0] * (longest - len(each))) for number, each in zip(backwards, ids, strict=True)]
    return rows, {"scores": [found[number]["text_loglikelihood"] for number in backwards]}


def plain(value: Any) -> Any:
    return getattr(value, "textdata", getattr(value, "value", value))


def test_a_seqio_tasks_own_metrics_are_what_seqio_gives(module: str, model: Path, tmp_path: Path) -> None:
    flags = (f"--model={model}", "--mixture=all_of_mine", f"--tasks={module}", f"--output={tmp_path / 'report'}")
    assert run(*flags) == 0
    (report,) = json.loads((tmp_path / "report" / "report.json").read_text())["benchmarks"]
    assert (report["benchmark"], report["instances"]) == ("all_of_mine", 10)
    lines = answers(tmp_path / "report" / "all_of_mine.answers.jsonl")
    table = report["tables"]["Metrics of the tasks"]
    assert table.keys() == {"both_of_mine", "text_of_mine"}
    assert table["both_of_mine"].keys() == {"length", "firsts", "said", "likelihood", "weighted"}
    assert any(line["prediction"] for line in lines.values())
    for task, values in table.items():
        for name, value in by_seqio(task, lines).items():
            assert values[name] == (pytest.approx(plain(value), abs=1e-4) if name != "said" else plain(value)), name
    loaded = flanjax.load(model)
    scores = loaded.score(["Two and two", "b, a"], ["four", "a, b"])
    found = [lines[f"both_of_mine/{number}"]["loglikelihoods"][0] for number in (1, 3)]
    np.testing.assert_allclose(found, scores, rtol=1e-4)
    assert lines["text_of_mine/1"]["prediction"] == loaded.generate(["Two and two"], 128)[0]
    assert "Metrics of the tasks" in (tmp_path / "report" / "report.html").read_text()
    before = (tmp_path / "report" / "all_of_mine.answers.jsonl").read_bytes()
    assert run(*flags) == 0, "it goes on, and there is nothing left to ask"
    assert (tmp_path / "report" / "all_of_mine.answers.jsonl").read_bytes() == before
    assert run(*flags[:-1], f"--output={tmp_path / 'few'}", "--limit=2") == 0
    few = answers(tmp_path / "few" / "all_of_mine.answers.jsonl")
    assert [*few] == [f"{task}/{number}" for task in table for number in range(2)]


def test_metrics_over_aux_values_get_the_scores_of_the_answers(module: str, model: Path, tmp_path: Path) -> None:
    output = tmp_path / "report"
    assert run(f"--model={model}", "--mixture=aux_of_mine", f"--tasks={module}", f"--output={output}") == 0
    (report,) = json.loads((output / "report.json").read_text())["benchmarks"]
    found = report["tables"]["Metrics of the tasks"]["aux_of_mine"]
    lines = answers(output / "aux_of_mine.answers.jsonl")
    scores = [line["text_loglikelihood"] for line in lines.values()]
    assert max(scores) < 0
    assert found["sure"] == pytest.approx(np.mean(scores), abs=1e-4)
    expected = by_seqio("aux_of_mine", lines)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == (pytest.approx(plain(value), abs=1e-4) if name != "said" else plain(value)), name


def test_text_tasks_are_scored_by_the_metrics_that_they_bring(model: Path, test_data: Path, tmp_path: Path) -> None:
    """On real rows of SST-2, held out of Flan 2021."""
    options = (f"data_dir={test_data / 'classic'}", "held_out_clusters=sentiment", "missing=skip")
    flags = ["--mixture=flan2021_held_out", *(f"--option={option}" for option in options), "--limit=3"]
    assert run(f"--model={model}", *flags, f"--output={tmp_path / 'report'}") == 0
    (report,) = json.loads((tmp_path / "report" / "report.json").read_text())["benchmarks"]
    assert report["by_task"].keys() == {"sst2_zsopt"}
    assert report["by_task"]["sst2_zsopt"]["instances"] == 3
    own = report["tables"]["Metrics of the tasks"]["sst2_zsopt"]
    assert own == {name: report["by_task"]["sst2_zsopt"][name] for name in ("exact_match", "rouge1", "rougeL")}
    assert report["baselines"].keys() == {"majority-label", "random-label"}


def test_what_is_not_there_is_refused_before_the_model_is_read(
    module: str, model: Path, test_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = f"--output={tmp_path / 'report'}"
    for flags, said in [
        ((f"--tasks={module}", "--mixture=both_of_mien"), "both_of_mine"),
        ((f"--tasks={module}", "--mixture=both_of_mine", "--split=validation"), "its tasks have test, train"),
        (("--tasks=no_such_module", "--mixture=both_of_mine"), "no_such_module"),
    ]:
        assert run(f"--model={tmp_path / 'none'}", *flags, output) == 2
        assert said in capsys.readouterr().err
    assert run(f"--model={model}", f"--tasks={module}", "--mixture=inside_of_mine", output) == 2
    said = capsys.readouterr().err
    assert "task 'inside_of_mine' has a metric, Inside, over score_with_intermediates, which is not given" in said
    text = (
        f"--option=data_dir={test_data / 'classic'}",
        "--option=held_out_clusters=sentiment",
        "--option=missing=skip",
    )
    for flags, asked in [
        ((f"--tasks={module}", "--mixture=text_of_mine"), "text_of_mine/0"),
        ((*text, "--mixture=flan2021_held_out"), "sst2_zsopt/0"),
    ]:
        assert run(f"--model={model}", *flags, "--perturb=typos_hard", output) == 2
        assert f"'{asked}' is a task's whole text, tokens or conversation, in which nobody" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()
