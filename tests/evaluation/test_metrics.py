"""Exact match and ROUGE as the official Super-NaturalInstructions evaluation counts them; the reference libraries."""

import json
import string

import pytest
import sacrebleu
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer

from flanjax.evaluation.metrics import (
    METRICS,
    MetricError,
    bleu,
    byte_pieces,
    chrf,
    exact_match,
    normalize_answer,
    rouge_1,
    rouge_l,
    score,
    score_by_task,
    score_each,
)

texts = st.text(max_size=40)


def test_normalisation_keeps_articles():
    assert normalize_answer("  The  Answer, is: B. ") == "the answer is b"
    assert normalize_answer("don't\tstop\n") == "dont stop"
    assert normalize_answer("¿Qué?") == "¿qué"  # ASCII punctuation alone is removed


@settings(max_examples=100, deadline=None)
@given(text=texts)
def test_normalisation_is_idempotent_and_squeezed(text):
    once = normalize_answer(text)
    assert normalize_answer(once) == once
    assert not set(once) & set(string.punctuation)
    assert once == " ".join(once.split())


@settings(max_examples=100, deadline=None)
@given(text=texts, others=st.lists(texts, max_size=3))
def test_a_prediction_matches_itself_among_any_references(text, others):
    decorated = f"  {text}!! "
    assert exact_match(decorated, [*others, text]) == 1.0


words = st.lists(st.sampled_from(["cat", "cats", "sat", "mat", "runs", "a"]), min_size=1, max_size=8).map(" ".join)


@settings(max_examples=100, deadline=None)
@given(prediction=words, references=st.lists(words, min_size=1, max_size=3))
def test_rouge_lies_between_zero_and_one_and_takes_the_best_reference(prediction, references):
    for metric in (rouge_1, rouge_l):
        best = metric(prediction, references)
        assert 0 <= best <= 1
        assert best == max(metric(prediction, [reference]) for reference in references)
        assert metric(prediction, [*references, prediction]) == pytest.approx(1.0)
    assert rouge_l(prediction, references) <= rouge_1(prediction, references) + 1e-9


def test_rouge_values():
    # Longest common subsequence "the cat sat" of 3 and 6 words: precision 1, recall 1/2.
    assert rouge_l("the cat sat", ["the cat sat on the mat"]) == pytest.approx(2 / 3)
    assert rouge_1("sat cat the", ["the cat sat"]) == 1.0
    assert rouge_l("sat cat the", ["the cat sat"]) == pytest.approx(1 / 3)
    assert rouge_l("running", ["runs"]) == 1.0  # stemmed
    assert rouge_l("", ["word"]) == 0.0


def test_means_run_over_instances_and_are_percentages():
    overall, by_task = score_by_task(["a", "b", "a"], ["yes", "No.", "maybe"], [["yes"], ["no", "never"], ["yes"]])
    assert overall.instances == 3
    assert overall.metrics["exact_match"] == 66.6667
    assert list(by_task) == ["a", "b"]
    assert by_task["a"].metrics["exact_match"] == 50.0
    assert by_task["b"].metrics == dict.fromkeys(METRICS, 100.0)
    assert (by_task["a"].instances, by_task["b"].instances) == (2, 1)


@settings(max_examples=30, deadline=None)
@given(rows=st.lists(st.tuples(st.sampled_from("ab"), words, words), min_size=1, max_size=8))
def test_tasks_weighted_by_instances_give_the_overall_mean(rows):
    tasks, predictions, answers = zip(*rows, strict=True)
    references = [[answer] for answer in answers]
    overall, by_task = score_by_task(tasks, predictions, references)
    assert overall == score(predictions, references)
    for name in METRICS:
        weighted = sum(scores.instances * scores.metrics[name] for scores in by_task.values()) / overall.instances
        assert weighted == pytest.approx(overall.metrics[name], abs=1e-3)


def test_what_does_not_belong_together_is_refused():
    with pytest.raises(MetricError, match="2 predictions for 1 lists"):
        score(["a", "b"], [["a"]])
    with pytest.raises(MetricError, match="1 task names for 2 predictions"):
        score_by_task(["t"], ["a", "b"], [["a"], ["b"]])
    with pytest.raises(MetricError, match="no predictions"):
        score([], [])
    with pytest.raises(MetricError, match="'a': give a list of at least one"):
        score(["a"], [[]])
    with pytest.raises(MetricError, match="give a list"):
        exact_match("a", "a")


@pytest.fixture(scope="module")
def davinci(test_data):
    """Predictions of text-davinci-003 for the user-oriented instructions of Self-Instruct, and their targets."""
    file = test_data / "self_instruct" / "text-davinci-003_predictions.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [row["response"] for row in rows], [[row["target"]] for row in rows]


def test_rouge_is_the_reference_librarys_on_real_predictions(davinci):
    scorer = rouge_scorer.RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
    predictions, references = davinci
    rows = score_each(predictions, references)
    assert len(rows) == 252
    for row, prediction, (reference,) in zip(rows, predictions, references, strict=True):
        theirs = scorer.score(reference, prediction)
        assert (row["rouge1"], row["rougeL"]) == (theirs["rouge1"].fmeasure, theirs["rougeL"].fmeasure)
    means = score(predictions, references).metrics
    assert means["rougeL"] == round(100 * sum(row["rougeL"] for row in rows) / 252, 4)


def test_bleu_and_chrf_are_the_reference_librarys_on_real_predictions(davinci):
    predictions, references = davinci
    stream = [[reference for (reference,) in references]]
    assert bleu(predictions, references) == sacrebleu.BLEU().corpus_score(predictions, stream).score
    assert chrf(predictions, references) == sacrebleu.CHRF().corpus_score(predictions, stream).score
    assert bleu(predictions, references) == pytest.approx(12.38, abs=0.01)
    for metric in (bleu, chrf):
        # A second reference for some that is the prediction itself, and an order that does not matter.
        better = [[*refs, text] if n % 2 else refs for n, (text, refs) in enumerate(zip(*davinci, strict=True))]
        assert metric(predictions, references) < metric(predictions, better) < 100
        assert metric(predictions[::-1], better[::-1]) == pytest.approx(metric(predictions, better))
        assert metric(predictions, [[text] for text in predictions]) == pytest.approx(100)
        with pytest.raises(MetricError, match="1 predictions for 0 lists"):
            metric(["a"], [])
        with pytest.raises(MetricError, match="give each one that is not empty"):
            metric(["a"], [[]])
        with pytest.raises(MetricError, match="not empty"):
            metric(["a"], [[""]])


def test_words_of_the_cross_lingual_track_are_the_pieces_of_a_byte_level_tokenizer(bpe_folder, tmp_path):
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(bpe_folder / "tokenizer.json"))
    words = byte_pieces(bpe_folder)
    texts = ["Der Hund schläft nicht.", "犬は寝ていない", " spaces  between ", ""]
    for text in texts:
        assert words(text) == [piece.lstrip("Ġ") for piece in tokenizer.tokenize(text)]
    (row,) = score_each(["犬は寝ていない"], [["犬は寝ている"]], words)
    assert 0 < row["rougeL"] < 1
    assert score_each(["犬は寝ていない"], [["犬は寝ている"]])[0]["rougeL"] == 0  # its own words are of a to z
    assert score_each(["runs"], [["running"]], words)[0]["rougeL"] < 1  # and here nothing is stemmed
    model = json.loads((bpe_folder / "tokenizer.json").read_text())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    pairs = (pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"])
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(pairs))
    assert byte_pieces(tmp_path)(texts[0]) == words(texts[0])
    with pytest.raises(MetricError, match=r"no tokenizer.json, nor vocab.json and merges.txt"):
        byte_pieces(tmp_path / "none")
