"""Kung and Peng's probe by delusive examples: demonstrations whose outputs are those of other instances.

    benchmark = with_delusive(benchmark, load_with_wrong_demonstrations)
    wrong_output(Draw("delusive", seed, task, 0), "(A)", ["(A)", "(B)", "(C)"], "navigate.txt")      # "(B)" or "(C)"

Wrong as they are, the outputs have the right form: an option, a number of another problem, a chain of thought to
another answer. A model that scores as well after these has learnt the form of an answer from them and nothing else.
Source: Kung and Peng 2023 (arXiv 2305.11383), who train with them as well.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator

from flanjax.data.draws import Draw
from flanjax.data.sources import BadRow
from flanjax.evaluation.benchmark import Benchmark, Instance


def with_delusive(benchmark: Benchmark, load: Callable[[], Iterator[Instance]]) -> Benchmark:
    """The benchmark with the probe: the instances of `load`, which are its own after wrong demonstrations."""
    probe = dataclasses.replace(benchmark, name=f"{benchmark.name}-delusive", load=load)
    return dataclasses.replace(benchmark, probes={**benchmark.probes, "delusive examples": probe})


def wrong_output(draw: Draw, right: str, outputs: Iterable[str], place: str) -> str:
    """One of the outputs that is not the right one, each other text equally likely.

    Raises:
      BadRow: there is no other.
    """
    others = sorted({*outputs} - {right})
    if not others:
        raise BadRow(f"{place}: delusive examples need another output than {right!r}: give the published files")
    return draw.choice(others)
