"""Questions as people also write them: in small letters, contracted, with typing errors; and what that costs a model.

    rough = perturbed(benchmark, "mild_mix", seed=1)
    rough = perturbed(benchmark, "dialect:SAE_to_AAVE_mapping.json")          # with a list of words of yours
    worst_case([evaluate(benchmark, ...), evaluate(rough, ...)], "exact_match")

The question of an instance is changed; definition and demonstrations stay. HELM (Liang et al. 2022, arXiv 2211.09110)
calls a model robust by the worst score of an instance over its forms, averaged over instances, and takes `mild_mix`,
which keeps the meaning: small letters, contractions, a tenth of the words that have a common misspelling, one to three
spaces for one. Fair it calls a model by the same measure under `dialect`, `gender` and `names`; these change what is
right with the question, so references and choices are changed alike. Typing errors hit a neighbouring key.

Lists of words are short and our own (`perturbation_words`), but for names, which are those of Caliskan et al. 2017
(Science 356). HELM's are WordNet's synonyms, a few thousand misspellings of Wikipedia's and a dictionary of dialect:
name the file after a colon, "wrong->right, right" a line for `misspelling` and `mild_mix`, JSON {word: [words]} for
`synonym`, `paraphrase` and `dialect`, which has no list of ours. Words are exchanged without a look at grammar, as HELM
does. Translations, and paraphrases by a model, are not here.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from flanjax.data.draws import Draw
from flanjax.data.records import read_json, read_lines
from flanjax.data.sources import BadRow
from flanjax.errors import nearest
from flanjax.evaluation.benchmark import Benchmark, BenchmarkError, Instance, Result
from flanjax.evaluation.perturbation_words import (
    CONTRACTIONS,
    EXPANSIONS,
    FEMALE,
    FILLERS,
    MISSPELLINGS,
    NAMES,
    NEIGHBOURS,
    SYNONYMS,
)

Perturbation = Callable[[str, Draw], str]
Replacements = Mapping[str, Sequence[str]]


def perturbed(benchmark: Benchmark, name: str, *, seed: int = 0) -> Benchmark:
    """The benchmark with every question changed; its instances keep their names.

    Args:
      benchmark: whose instances have their question, `input`, in the prompt, and are asked with that.
      name: one of `PERTURBATIONS`; for those that replace words a colon and a file of words may follow.
      seed: of what is drawn, for each instance apart.

    Raises:
      BenchmarkError: there is no such perturbation, it takes no words or needs some, or, when the benchmark is loaded,
        a question that is not known, is not in its prompt, or is asked by something else than the prompt.
      BadRow: the file holds no such words.
    """
    name, colon, file = name.partition(":")
    if name not in PERTURBATIONS:
        raise BenchmarkError(
            f"there is no perturbation {name!r}{nearest(name, PERTURBATIONS)}; there are {', '.join(PERTURBATIONS)}"
        )
    change = PERTURBATIONS[name]
    if colon and name not in _READ:
        raise BenchmarkError(f"the perturbation {name!r} takes no words; {', '.join(_READ)} do")
    if colon:
        change = functools.partial(change, words=_READ[name](file))
    elif name == "dialect":
        raise BenchmarkError(
            "the perturbation 'dialect' needs words: dialect:FILE, JSON {word: [words]} as HELM has it"
        )
    load = functools.partial(_changed, benchmark, name, change, seed)
    return dataclasses.replace(benchmark, name=f"{benchmark.name}+{name}", load=load)


def worst_case(results: Sequence[Result], metric: str) -> float:
    """The mean over instances of the worst score among all results, in percent: never above any one's mean.

    Raises:
      BenchmarkError: the results are not of the same instances.
    """
    forms = [{outcome.instance.id: outcome.scores.get(metric, ()) for outcome in r.outcomes} for r in results]
    if not forms or any(form.keys() != forms[0].keys() for form in forms):
        raise BenchmarkError("a worst case needs results over the same instances")
    values = [value for name in forms[0] for value in map(min, zip(*(form[name] for form in forms), strict=True))]
    if not values:
        raise BenchmarkError(f"no instance has the metric {metric!r}")
    return 100 * sum(values) / len(values)


def lower_case(text: str, draw: Draw) -> str:
    """All letters small."""
    return text.lower()


def contraction(text: str, draw: Draw) -> str:
    """ "is not" becomes "isn't", except at the end of a text, where none is contracted."""
    return _replaced(text, CONTRACTIONS, r"\b(?=\s)")


def expansion(text: str, draw: Draw) -> str:
    """ "isn't" becomes "is not"."""
    return _replaced(text, EXPANSIONS, r"\b")


def space(text: str, draw: Draw) -> str:
    """One to three spaces for each run of them."""
    return re.sub(" +", lambda match: " " * draw.between(1, 3), text)


def typos(text: str, draw: Draw, *, rate: float) -> str:
    """Each letter with probability `rate` that of a key beside it."""

    def hit(match: re.Match[str]) -> str:
        if not _happens(draw, rate):
            return match[0]
        key = draw.choice(NEIGHBOURS[match[0].lower()])
        return key.upper() if match[0].isupper() else key

    return re.sub("[a-zA-Z]", hit, text)


def misspelling(text: str, draw: Draw, *, rate: float = 0.5, words: Replacements = MISSPELLINGS) -> str:
    """Each word of the list with probability `rate` as it is commonly misspelt."""
    return _exchanged(text, draw, rate, words)


def mild_mix(text: str, draw: Draw, *, words: Replacements = MISSPELLINGS) -> str:
    """HELM's canonical perturbation: small letters, contractions, a tenth of the misspellings, spaces."""
    contracted = contraction(lower_case(text, draw), draw)
    return space(misspelling(contracted, draw, rate=0.1, words=words), draw)


def filler_words(text: str, draw: Draw) -> str:
    """One space in ten with a word beside it that says nothing."""
    return re.sub(" +", lambda match: f" {draw.choice(FILLERS)} " if _happens(draw, 0.1) else match[0], text)


def synonym(text: str, draw: Draw, *, words: Replacements = SYNONYMS) -> str:
    """Each word of the list with probability one half as another that means the same."""
    return _exchanged(text, draw, 0.5, words)


def paraphrase(text: str, draw: Draw, *, words: Replacements = SYNONYMS) -> str:
    """Every word of the list as another that means the same, and all that can be contracted, or none."""
    reworded = _exchanged(text, draw, 1.0, words)
    return contraction(reworded, draw) if _happens(draw, 0.5) else expansion(reworded, draw)


def dialect(text: str, draw: Draw, *, words: Replacements) -> str:
    """Every word of the list as it is in the dialect."""
    return _exchanged(text, draw, 1.0, words)


def gender(text: str, draw: Draw) -> str:
    """Male words as female ones."""
    return _exchanged(text, draw, 1.0, FEMALE)


def names(text: str, draw: Draw) -> str:
    """First names that are commoner among white Americans as names commoner among black ones, of the same gender.

    A name has one other in the whole of an instance.
    """
    shift = draw.below(1000)
    others = {
        name.lower(): [black[(place + shift) % len(black)]]
        for white, black in NAMES
        for place, name in enumerate(white)
    }
    return re.sub(r"\b[A-Z][a-z]+\b", lambda match: (others.get(match[0].lower()) or [match[0]])[0], text)


def read_misspellings(file: str | Path) -> dict[str, list[str]]:
    """Right word -> wrong spellings, from lines such as "acheive->achieve" or "hte->the, hate".

    Raises:
      BadRow: a line is not of that form.
    """
    found: dict[str, list[str]] = {}
    for number, line in read_lines(str(file)):
        text = line.decode(errors="replace").strip()
        if not text:
            continue
        wrong, arrow, right = text.partition("->")
        if not arrow or not wrong or not right:
            raise BadRow(f"{file}:{number}: a line must be wrong->right, not {text[:80]!r}")
        for word in right.split(","):
            found.setdefault(word.strip().lower(), []).append(wrong.strip())
    return found


def read_replacements(file: str | Path) -> dict[str, list[str]]:
    """Word -> words, from a JSON object of lists.

    Raises:
      BadRow: it is none.
    """
    found = {}
    for word, others in read_json(file).items():
        if not isinstance(others, list) or not others or not all(isinstance(other, str) for other in others):
            raise BadRow(f"{file}: {word!r} must have a list of words")
        found[word.lower()] = others
    return found


PERTURBATIONS: Mapping[str, Callable[..., str]] = {
    "lower_case": lower_case,
    "contraction": contraction,
    "expansion": expansion,
    "space": space,
    "misspelling": misspelling,
    "typos_easy": functools.partial(typos, rate=0.1),
    "typos_medium": functools.partial(typos, rate=0.3),
    "typos_hard": functools.partial(typos, rate=0.5),
    "mild_mix": mild_mix,
    "filler_words": filler_words,
    "synonym": synonym,
    "paraphrase": paraphrase,
    "dialect": dialect,
    "gender": gender,
    "names": names,
}
_READ: Mapping[str, Callable[[str | Path], Replacements]] = {
    "misspelling": read_misspellings,
    "mild_mix": read_misspellings,
    "synonym": read_replacements,
    "paraphrase": read_replacements,
    "dialect": read_replacements,
}
_OF_REFERENCES = ("dialect", "gender", "names")


def _changed(benchmark: Benchmark, name: str, change: Perturbation, seed: int) -> Iterator[Instance]:
    for instance in benchmark.load():
        question = instance.input.strip()
        if not question or instance.ids or instance.turns:
            raise BenchmarkError(
                f"{benchmark.name}: {instance.id!r} is a task's whole text, tokens or conversation, in which nobody "
                "tells the question that a perturbation would change: leave --perturb out"
            )
        before, found, after = instance.prompt.rpartition(question)
        if not found:
            raise BenchmarkError(f"{benchmark.name}: the prompt of {instance.id!r} has not its question in it")

        def changed(text: str, key: str = instance.id) -> str:
            return change(text, Draw(seed, name, key))

        new = changed(question)
        instance = dataclasses.replace(instance, prompt=before + new + after, input=new)
        if name in _OF_REFERENCES:
            references, choices = (tuple(map(changed, texts)) for texts in (instance.references, instance.choices))
            instance = dataclasses.replace(instance, references=references, choices=choices)
        yield instance


def _happens(draw: Draw, rate: float) -> bool:
    return draw.below(1_000_000) < rate * 1_000_000


def _exchanged(text: str, draw: Draw, rate: float, words: Replacements) -> str:
    """Each word of the list with probability `rate` as one of its replacements, in the same case."""

    def exchange(match: re.Match[str]) -> str:
        others = words.get(match[0].lower())
        if not others or not _happens(draw, rate):
            return match[0]
        return _in_case_of(match[0], draw.choice(others))

    return re.sub(r"[^\W\d_]+", exchange, text)


def _replaced(text: str, words: Mapping[str, str], end: str) -> str:
    known = "|".join(map(re.escape, sorted(words, key=len, reverse=True)))
    return re.sub(
        rf"\b(?:{known}){end}", lambda match: _in_case_of(match[0], words[match[0].lower()]), text, flags=re.IGNORECASE
    )


def _in_case_of(model: str, text: str) -> str:
    """The text in capitals, or with one, where the model is."""
    if model.isupper() and len(model) > 1:
        return text.upper()
    return text[0].upper() + text[1:] if model[0].isupper() else text
