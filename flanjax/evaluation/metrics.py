"""Exact match and ROUGE of texts, as the official Super-NaturalInstructions evaluation defines them; BLEU and chrF.

    score(["the cat sat"], [["the cat sat on the mat", "it sat"]]).metrics["rougeL"]      # 80.0
    bleu(translations, references)                                                       # 27.3, of the whole corpus

Each prediction takes the best of its references, a mean runs over instances (never over tasks), and figures are
percentages rounded to four places. Source: Wang et al. 2022 (arXiv 2204.07705) and its Tk-Instruct `compute_metrics`.
Its cross-lingual track takes the pieces of GPT-2's tokenizer for words (`byte_pieces`), and no stems, for ROUGE's own
words are of letters a to z. BLEU and chrF are no means over texts but counts over a corpus; they are sacreBLEU's.
"""

import collections
import dataclasses
import functools
import itertools
import string
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flanjax.errors import FlanjaxError

Words = Callable[[str], list[str]]
METRICS = ("exact_match", "rouge1", "rougeL")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


class MetricError(FlanjaxError):
    """Predictions and references that do not belong together."""


def normalize_answer(text: str) -> str:
    """Lower case, ASCII punctuation removed, white space squeezed; articles stay.

    Worked example: `normalize_answer("  The  Answer, is: B. ") == "the answer is b"`.
    """
    return " ".join(text.lower().translate(_WITHOUT_PUNCTUATION).split())


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1.0 when the normalised prediction equals any normalised reference, else 0.0."""
    return _best(prediction, references, lambda p, r: float(normalize_answer(p) == normalize_answer(r)))


def rouge_1(prediction: str, references: Sequence[str], words: Words | None = None) -> float:
    """F1 of unigram overlap, in [0, 1], of stemmed words or of what `words` gives; the best over `references`."""
    return _best(prediction, references, lambda p, r: _scorer(words).score(r, p)["rouge1"].fmeasure)


def rouge_l(prediction: str, references: Sequence[str], words: Words | None = None) -> float:
    """F1 of the longest common subsequence of stemmed words, or of `words`, in [0, 1]; the best over `references`."""
    return _best(prediction, references, lambda p, r: _scorer(words).score(r, p)["rougeL"].fmeasure)


def bleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """BLEU of a corpus, in percent: sacreBLEU's defaults, 13a tokens and exponential smoothing (Post 2018, W18-6319).

    Raises:
      MetricError: nothing to score, unequal numbers, or an instance without references.
    """
    from sacrebleu import corpus_bleu

    return float(corpus_bleu(list(predictions), _streams(predictions, references)).score)


def chrf(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """chrF2 of a corpus, in percent: the F score of sequences of up to six letters (Popovic 2015, W15-3049).

    Raises:
      MetricError: nothing to score, unequal numbers, or an instance without references.
    """
    from sacrebleu import corpus_chrf

    return float(corpus_chrf(list(predictions), _streams(predictions, references)).score)


def byte_pieces(folder: str | Path) -> Words:
    """What a byte-level tokenizer such as GPT-2's cuts a text into, without the marks of the spaces before.

    Args:
      folder: with tokenizer.json, or with vocab.json and merges.txt, as GPT-2 was published.

    Raises:
      MetricError: it has neither.
    """
    from tokenizers import ByteLevelBPETokenizer, Tokenizer

    whole, vocabulary, merges = (Path(folder) / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    if whole.exists():
        tokenizer = Tokenizer.from_file(str(whole))
    elif vocabulary.exists() and merges.exists():
        tokenizer = ByteLevelBPETokenizer(str(vocabulary), str(merges))
    else:
        raise MetricError(f"{folder}: there is no tokenizer.json, nor vocab.json and merges.txt: put GPT-2's there")
    return lambda text: [piece.lstrip("\u0120") for piece in tokenizer.encode(text, add_special_tokens=False).tokens]


def _best(prediction: str, references: Sequence[str], score: Callable[[str, str], float]) -> float:
    if isinstance(references, str) or not references:
        raise MetricError(f"references of the prediction {prediction!r}: give a list of at least one text")
    return max(score(prediction, reference) for reference in references)


def _streams(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """The first reference of each prediction, the second of each, and so on; empty where there is none."""
    if len(predictions) != len(references) or not references or not all(map(any, references)):
        raise MetricError(
            f"{len(predictions)} predictions for {len(references)} lists of references: give each one that is not empty"
        )
    return list(itertools.zip_longest(*references, fillvalue=""))


@dataclasses.dataclass(frozen=True)
class _Tokenizer:
    """`words` as rouge_score wants them."""

    tokenize: Words


@functools.cache
def _scorer(words: Words | None = None) -> Any:
    from rouge_score import rouge_scorer  # here: it brings nltk, which no other metric needs

    tokenizer = None if words is None else _Tokenizer(words)
    return rouge_scorer.RougeScorer(["rouge1", "rougeL"], use_stemmer=words is None, tokenizer=tokenizer)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """Percentages over `instances`, by metric name (`METRICS`)."""

    instances: int
    metrics: Mapping[str, float]


def score(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
    """All metrics, averaged over instances.

    Raises:
      MetricError: nothing to score, unequal numbers, or an instance without references.
    """
    return _mean(score_each(predictions, references))


def score_by_task(
    tasks: Sequence[str], predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[Scores, dict[str, Scores]]:
    """The metrics over all instances, and per task (or category) in order of first appearance.

    Worked example: two instances of task "a", one right, and one of "b", right: over all 66.6667 exact match (the
    mean over instances), for "a" 50.0, for "b" 100.0.

    Raises:
      MetricError: nothing to score, unequal numbers, or an instance without references.
    """
    if len(tasks) != len(predictions):
        raise MetricError(f"{len(tasks)} task names for {len(predictions)} predictions: give one for each")
    rows = score_each(predictions, references)
    by_task: dict[str, list[dict[str, float]]] = collections.defaultdict(list)
    for task, row in zip(tasks, rows, strict=True):
        by_task[task].append(row)
    return _mean(rows), {task: _mean(task_rows) for task, task_rows in by_task.items()}


def score_each(
    predictions: Sequence[str], references: Sequence[Sequence[str]], words: Words | None = None
) -> list[dict[str, float]]:
    """All metrics of each instance, in [0, 1]; ROUGE is of stemmed words, or of what `words` gives.

    Raises:
      MetricError: unequal numbers, or an instance without references.
    """
    if len(predictions) != len(references):
        raise MetricError(f"{len(predictions)} predictions for {len(references)} lists of references")
    return [
        {
            "exact_match": exact_match(prediction, refs),
            "rouge1": rouge_1(prediction, refs, words),
            "rougeL": rouge_l(prediction, refs, words),
        }
        for prediction, refs in zip(predictions, references, strict=True)
    ]


def _mean(rows: Sequence[Mapping[str, float]]) -> Scores:
    if not rows:
        raise MetricError("no predictions to score")
    means = {name: round(100 * sum(row[name] for row in rows) / len(rows), 4) for name in METRICS}
    return Scores(instances=len(rows), metrics=means)
