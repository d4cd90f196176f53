"""Win rates from pairwise judgements, such as AlpacaEval's.

    win_rate(read_judgements("annotations.json.gz", "alpaca-7b"))      # WinRate(percent=26.46, error=1.54, judged=805)
    answer_length("model_outputs.json.gz")                             # 396: judges like long answers

A judge has two answers to an instruction and prefers the first (1), the second (2) or neither (0). A draw counts half.
The standard error is that of the mean over instructions. Source: AlpacaEval 1 (Li et al. 2023) and its annotations.
"""

import math
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from flanjax.data.records import read_json_file
from flanjax.data.sources import BadRow, excerpt, report_bad_row, text_field
from flanjax.evaluation.benchmark import BenchmarkError

_DRAW, _FIRST, _SECOND = 0, 1, 2


@dataclass(frozen=True, kw_only=True)
class WinRate:
    """How often one side is preferred, in percent, with its standard error, over so many judgements."""

    percent: float
    error: float
    judged: int


def win_rate(wins: Iterable[float]) -> WinRate:
    """The mean of judgements, each 1.0 for a win, 0.5 for a draw and 0.0 for a loss.

    Raises:
      BenchmarkError: there are fewer than two, or others.
    """
    values = list(wins)
    if len(values) < 2 or not set(values) <= {0.0, 0.5, 1.0}:
        raise BenchmarkError(f"a win rate needs at least two judgements of 0, 0.5 or 1, not {values[:5]}")
    error = statistics.stdev(values) / math.sqrt(len(values))
    return WinRate(percent=100 * statistics.fmean(values), error=100 * error, judged=len(values))


def read_judgements(file: str | Path, model: str) -> Iterator[float]:
    """What each judgement of a JSON file is for a model, which is "generator_1" or "generator_2" in all of them.

    Raises:
      BadRow: a judgement is of other models, or its preference is none of 0, 1, 2.
    """
    for place, row in read_json_file(str(file)):
        try:
            sides = {_FIRST: text_field(row, "generator_1", place), _SECOND: text_field(row, "generator_2", place)}
            preference = row.get("preference")
            if list(sides.values()).count(model) != 1:
                raise BadRow(f"{place}: {' against '.join(sides.values())} is no judgement of {model!r} and another")
            if preference not in (_DRAW, _FIRST, _SECOND):
                raise BadRow(f"{place}: field 'preference' must be 0, 1 or 2: {excerpt(preference)}")
        except BadRow as error:
            report_bad_row(error)
            continue
        yield 0.5 if preference == _DRAW else float(sides[preference] == model)


def answer_length(file: str | Path) -> int:
    """The mean length of the field "output" in a JSON file, in whole characters, as AlpacaEval's leaderboard has it.

    Raises:
      BadRow: a row has no output.
      BenchmarkError: there are no rows.
    """
    lengths = [len(text_field(row, "output", place)) for place, row in read_json_file(str(file))]
    if not lengths:
        raise BenchmarkError(f"{file}: there are no outputs in it")
    return int(statistics.fmean(lengths))
