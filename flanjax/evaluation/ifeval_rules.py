"""The 25 instruction types of IFEval, each a function (response, published arguments) -> whether it is followed.

    follows("length_constraints:number_words", "Three little words", {"relation": "at least", "num_words": 3})  # True

Definitions: Zhou et al. 2023 (arXiv 2311.07911) and its published checks, which count signs and words, not sense. Two
need more than the standard library, and are as near as they can be without downloads: sentences are split by NLTK's
Punkt algorithm with a list of abbreviations in place of its trained model, and a language is told by
`flanjax.evaluation.languages` unless another identifier is given.
"""

import functools
import inspect
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from flanjax.errors import FlanjaxError, nearest
from flanjax.evaluation.languages import identify

Detect = Callable[[str], str | None]
RELATIONS = ("less than", "at least")
ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_ABBREVIATIONS = """a.m adj al apr approx assn aug ave blvd c.o capt cf co col comdr corp cpl d.c dec dept dr e.g ed esq
est etc feb fig ft gen gov hon i.e inc jan jr lt ltd maj mar mr mrs ms mt no nov oct op p.m p.s ph.d pp prof rep rev
sen sept sgt sr st tel u.k u.n u.s u.s.a univ v viz vol vs"""


class RuleError(FlanjaxError):
    """An instruction type that there is not, or arguments that are not its own."""


def follows(instruction: str, response: str, arguments: Mapping[str, Any], detect: Detect = identify) -> bool:
    """Whether a response, which must not be blank, follows an instruction.

    Args:
      instruction: one of `RULES`.
      response: the text.
      arguments: as published; those that are None do not count.
      detect: the language of a text, as an ISO 639-1 code.

    Raises:
      RuleError: there is no such type, or the arguments are not what it takes.
    """
    given = check_arguments(instruction, arguments)
    if not response.strip():
        return False
    if instruction in _IN_A_LANGUAGE:
        given["detect"] = detect
    return RULES[instruction](response, **given)


def check_arguments(instruction: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that are not None; raises RuleError unless they are just what the instruction type takes."""
    if instruction not in RULES:
        raise RuleError(f"there is no instruction type {instruction!r}{nearest(instruction, RULES)}")
    given = {name: value for name, value in arguments.items() if value is not None}
    taken = {
        name: parameter.annotation
        for name, parameter in inspect.signature(RULES[instruction]).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name != "detect"
    }
    if given.keys() != taken.keys():
        raise RuleError(f"{instruction} takes {', '.join(taken) or 'no arguments'}, not {', '.join(given) or 'none'}")
    for name, kind in taken.items():
        right = type(given[name]) is (list if kind == list[str] else kind)
        if not right or (isinstance(given[name], list) and not all(isinstance(word, str) for word in given[name])):
            raise RuleError(f"{instruction}: {name} must be {getattr(kind, '__name__', kind)}, not {given[name]!r}")
        if name.endswith("relation") and given[name] not in RELATIONS:
            raise RuleError(f"{instruction}: {name} must be one of {', '.join(RELATIONS)}, not {given[name]!r}")
    return given


def sentences(text: str) -> list[str]:
    """The sentences of an English text."""
    return list(_splitter().tokenize(text))


@functools.cache
def _splitter() -> Any:
    from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer  # here: NLTK takes long to import

    parameters = PunktParameters()
    parameters.abbrev_types = set(_ABBREVIATIONS.split())
    return PunktSentenceTokenizer(parameters)


def _compare(count: int, relation: str, threshold: int) -> bool:
    return count < threshold if relation == "less than" else count >= threshold


def _occurrences(word: str, text: str) -> int:
    return len(re.findall(re.escape(word.strip()), text, re.IGNORECASE))


def _has_keywords(response: str, *, keywords: list[str]) -> bool:
    return all(_occurrences(word, response) for word in keywords)


def _keyword_frequency(response: str, *, keyword: str, frequency: int, relation: str) -> bool:
    return _compare(_occurrences(keyword, response), relation, frequency)


def _avoids_words(response: str, *, forbidden_words: list[str]) -> bool:
    return not any(re.search(rf"\b{re.escape(word)}\b", response, re.IGNORECASE) for word in forbidden_words)


def _letter_frequency(response: str, *, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _compare(response.lower().count(letter.strip().lower()), let_relation, let_frequency)


def _is_in_language(response: str, *, language: str, detect: Detect) -> bool:
    # What no language can be told of, such as figures alone, is not held against the response.
    return detect(response) in (language, None)


def _sentence_count(response: str, *, num_sentences: int, relation: str) -> bool:
    return _compare(len(sentences(response)), relation, num_sentences)


def _word_count(response: str, *, num_words: int, relation: str) -> bool:
    return _compare(len(re.findall(r"\w+", response)), relation, num_words)


def _divided(response: str, divider: str) -> list[str] | None:
    """The parts between dividers, which may also stand at either end; None where an inner part is blank."""
    first, *inner, last = parts if len(parts := re.split(divider, response)) > 1 else [*parts, ""]
    if not all(part.strip() for part in inner):
        return None
    return [part for part in (first, *inner, last) if part.strip()]


def _paragraph_count(response: str, *, num_paragraphs: int) -> bool:
    paragraphs = _divided(response, r"\s?\*\*\*\s?")
    return paragraphs is not None and len(paragraphs) == num_paragraphs


def _first_word(response: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """The n-th of all parts between blank lines, blank ones counted in, must begin with the word."""
    paragraphs = response.split("\n\n")
    filled = sum(bool(paragraph.strip()) for paragraph in paragraphs)
    if filled != num_paragraphs or nth_paragraph > filled or not (words := paragraphs[nth_paragraph - 1].split()):
        return False
    word = words[0].lstrip("'").lstrip('"')
    return re.split(r"[.,?!'\"]", word)[0].lower() == first_word.lower()


def _placeholders(response: str, *, num_placeholders: int) -> bool:
    return len(re.findall(r"\[.*?\]", response)) >= num_placeholders


def _postscript(response: str, *, postscript_marker: str) -> bool:
    patterns = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    marker = postscript_marker.strip()
    return re.search(patterns.get(marker, re.escape(marker.lower())), response.lower()) is not None


def _bullet_count(response: str, *, num_bullets: int) -> bool:
    bullets = re.findall(r"^\s*\*[^*].*$", response, re.MULTILINE) + re.findall(r"^\s*-.*$", response, re.MULTILINE)
    return len(bullets) == num_bullets


def _is_one_of_the_answers(response: str) -> bool:
    return any(answer in response for answer in ANSWERS)


def _highlight_count(response: str, *, num_highlights: int) -> bool:
    """Italic and bold sections; in a bold one the single pattern meets its empty pairs of marks alone."""
    single = [text for text in re.findall(r"\*[^\n*]*\*", response) if text.strip("*").strip()]
    double = [text for text in re.findall(r"\*\*[^\n*]*\*\*", response) if text.strip("*").strip()]
    return len(single) + len(double) >= num_highlights


def _section_count(response: str, *, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"\s?{re.escape(section_spliter.strip())}\s?\d+\s?", response)) >= num_sections


def _is_json(response: str) -> bool:
    text = response.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def _has_title(response: str) -> bool:
    return any(title.lstrip("<").rstrip(">").strip() for title in re.findall(r"<<[^\n]+>>", response))


def _two_responses(response: str) -> bool:
    responses = _divided(response, r"\*{6}")
    return responses is not None and len(responses) == 2 and responses[0].strip() != responses[1].strip()


def _repeats_prompt(response: str, *, prompt_to_repeat: str) -> bool:
    return response.strip().lower().startswith(prompt_to_repeat.strip().lower())


def _ends_with(response: str, *, end_phrase: str) -> bool:
    return response.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def _is_quoted(response: str) -> bool:
    text = response.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def _capital_words(response: str, *, capital_frequency: int, capital_relation: str) -> bool:
    from nltk.tokenize.destructive import NLTKWordTokenizer

    words = [word for sentence in sentences(response) for word in NLTKWordTokenizer().tokenize(sentence)]
    return _compare(sum(word.isupper() for word in words), capital_relation, capital_frequency)


def _is_upper_case(response: str, *, detect: Detect) -> bool:
    return response.isupper() and _is_in_language(response, language="en", detect=detect)


def _is_lower_case(response: str, *, detect: Detect) -> bool:
    return response.islower() and _is_in_language(response, language="en", detect=detect)


def _has_no_comma(response: str) -> bool:
    return "," not in response


RULES: Mapping[str, Callable[..., bool]] = {
    "keywords:existence": _has_keywords,
    "keywords:frequency": _keyword_frequency,
    "keywords:forbidden_words": _avoids_words,
    "keywords:letter_frequency": _letter_frequency,
    "language:response_language": _is_in_language,
    "length_constraints:number_sentences": _sentence_count,
    "length_constraints:number_paragraphs": _paragraph_count,
    "length_constraints:number_words": _word_count,
    "length_constraints:nth_paragraph_first_word": _first_word,
    "detectable_content:number_placeholders": _placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _bullet_count,
    "detectable_format:constrained_response": _is_one_of_the_answers,
    "detectable_format:number_highlighted_sections": _highlight_count,
    "detectable_format:multiple_sections": _section_count,
    "detectable_format:json_format": _is_json,
    "detectable_format:title": _has_title,
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": _repeats_prompt,
    "startend:end_checker": _ends_with,
    "startend:quotation": _is_quoted,
    "change_case:capital_word_frequency": _capital_words,
    "change_case:english_capital": _is_upper_case,
    "change_case:english_lowercase": _is_lower_case,
    "punctuation:no_comma": _has_no_comma,
}
_IN_A_LANGUAGE = {name for name, rule in RULES.items() if "detect" in inspect.signature(rule).parameters}
