"""The instances of the demo tasks: small, regular questions whose answers are computed, never looked up.

`instance(task, split, index)` is a pure function: the same three arguments give the same fields in every process. Which
split an instance belongs to is decided by a hash of the instance itself, so a question of the validation split is never
seen in training. Every instance has an `answer` and a `rationale` (the steps that lead to the answer).

    instance("compare_numbers", "train", 0)
    -> {"which": "larger", "first": "52", "second": "17", "answer": "52", "rationale": "52 is larger than 17."}
"""

import hashlib
import itertools
from collections.abc import Callable, Sequence

from flanjax.data.prompts import Draw

ANIMALS = ("cat", "dog", "horse", "cow", "sheep", "goat", "lion", "duck")
FRUITS = ("apple", "pear", "plum", "cherry", "lemon", "orange", "melon", "kiwi")
TOOLS = ("hammer", "saw", "drill", "spoon", "knife", "fork", "brush", "needle")
COLOURS = ("red", "blue", "green", "yellow", "black", "white", "brown", "pink")
THINGS = ANIMALS + FRUITS + TOOLS
CATEGORIES = {"animals": ANIMALS, "fruits": FRUITS, "tools": TOOLS, "colours": COLOURS}
NAMES = ("Anna", "Ben", "Carla", "David", "Emma", "Felix", "Greta", "Hugo", "Ida", "Jonas")
CITIES = ("Rome", "Paris", "Oslo", "Lima", "Cairo", "Delhi", "Tokyo", "Madrid")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
)
NUMBER_WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
)
OPPOSITES = (
    *(("hot", "cold"), ("big", "small"), ("old", "new"), ("fast", "slow"), ("light", "dark"), ("wet", "dry")),
    *(("hard", "soft"), ("long", "short"), ("full", "empty"), ("loud", "quiet"), ("clean", "dirty")),
)
SUBJECTS = ("soup", "room", "box", "bag", "street", "bread", "cup", "wall", "shop", "coat", "road", "table")
UNITS = (
    *(("metres", "centimetres", 100), ("kilometres", "metres", 1000), ("hours", "minutes", 60)),
    *(("weeks", "days", 7), ("days", "hours", 24), ("years", "months", 12)),
)
LARGEST = 40  # of the numbers that are sorted and compared

Instance = dict[str, str]


def pick_word(draw: Draw) -> Instance:
    """The first or the last of some words."""
    words = draw.sample(THINGS + COLOURS, draw.between(3, 4))
    which = draw.choice(("first", "last"))
    answer = words[0 if which == "first" else -1]
    rationale = f"The words are {', '.join(words)}."
    return {"words": ", ".join(words), "which": which, "answer": answer, "rationale": rationale}


def reverse_words(draw: Draw) -> Instance:
    """Three words, last one first."""
    words = draw.sample(THINGS + COLOURS, 3)
    rationale = f"The last word is {words[-1]}."
    return {"words": ", ".join(words), "answer": " ".join(reversed(words)), "rationale": rationale}


def sort_words(draw: Draw) -> Instance:
    """Three words in the order of the alphabet."""
    words = draw.sample(THINGS, 3)
    rationale = f"{min(words)} comes first, {max(words)} comes last."
    return {"words": ", ".join(words), "answer": " ".join(sorted(words)), "rationale": rationale}


def sort_numbers(draw: Draw) -> Instance:
    """Three numbers, smallest first."""
    numbers = draw.sample(range(1, LARGEST + 1), 3)
    rationale = f"The smallest is {min(numbers)}, the largest is {max(numbers)}."
    return {
        "numbers": ", ".join(str(number) for number in numbers),
        "answer": " ".join(str(number) for number in sorted(numbers)),
        "rationale": rationale,
    }


def compare_numbers(draw: Draw) -> Instance:
    """The larger or the smaller of two numbers."""
    first, second = draw.sample(range(1, LARGEST + 1), 2)
    which, pick = draw.choice((("larger", max), ("smaller", min)))
    answer = pick(first, second)
    rationale = f"{answer} is {which} than {first + second - answer}."
    return {"which": which, "first": str(first), "second": str(second), "answer": str(answer), "rationale": rationale}


def count_items(draw: Draw) -> Instance:
    """How many things a list has."""
    items = draw.sample(THINGS, draw.between(2, 6))
    counted = ", ".join(f"{number} {item}" for number, item in enumerate(items, 1))
    return {"words": ", ".join(items), "answer": str(len(items)), "rationale": f"Counting: {counted}."}


def odd_one_out(draw: Draw) -> Instance:
    """The one word of another category."""
    many, other = draw.sample(tuple(CATEGORIES), 2)
    answer = draw.choice(CATEGORIES[other])
    words = draw.sample([*draw.sample(CATEGORIES[many], 3), answer], 4)
    return {"words": ", ".join(words), "answer": answer, "rationale": f"The others are {many}."}


def lookup_field(draw: Draw) -> Instance:
    """One value of a small record."""
    record = {
        "name": draw.choice(NAMES),
        "city": draw.choice(CITIES),
        "age": str(draw.between(20, 60)),
        "colour": draw.choice(COLOURS),
    }
    keys = draw.sample(tuple(record), 3)
    key = draw.choice(keys)
    text = "; ".join(f"{name}: {record[name]}" for name in keys)
    rationale = f"The record says {key}: {record[key]}."
    return {"record": text, "key": key, "answer": record[key], "rationale": rationale}


def extract_email(draw: Draw) -> Instance:
    """The email address in a sentence."""
    name, city, day = draw.choice(NAMES), draw.choice(CITIES), draw.choice(DAYS)
    answer = f"{name.lower()}@{draw.choice(FRUITS)}.org"
    sentence = draw.choice(
        (
            f"On {day} please write to {answer} about {city}.",
            f"{name} from {city} reads {answer} every {day}.",
            f"Send the news from {city} to {answer} before {day}.",
        )
    )
    return {"sentence": sentence, "answer": answer, "rationale": "The address is the part with the @ sign."}


def yes_no(draw: Draw) -> Instance:
    """Whether a tiny fact follows from two others."""
    facts, names, things = _facts(draw, "has the", FRUITS + TOOLS, 2)
    asked, claimed = draw.below(2), draw.below(2)
    rationale = f"{names[asked]} has the {things[asked]}."
    answer = "yes" if asked == claimed else "no"
    return {"facts": facts, "name": names[asked], "thing": things[claimed], "answer": answer, "rationale": rationale}


def who_has(draw: Draw) -> Instance:
    """Which of three people has a thing."""
    return _person(draw, "has the", FRUITS + TOOLS, "thing")


def what_has(draw: Draw) -> Instance:
    """What one of three people has."""
    return _thing(draw, "has the", FRUITS + TOOLS)


def who_likes(draw: Draw) -> Instance:
    """Which of three people likes a colour."""
    return _person(draw, "likes", COLOURS, "colour")


def where_lives(draw: Draw) -> Instance:
    """In which city one of three people lives."""
    return _thing(draw, "lives in", CITIES)


def who_lives(draw: Draw) -> Instance:
    """Which of three people lives in a city: the question of `who_has` about the facts of `where_lives`."""
    return _person(draw, "lives in", CITIES, "city")


def add_words(draw: Draw) -> Instance:
    """A sum or a difference in words, as a story."""
    first, second = draw.between(1, 9), draw.between(1, 9)
    gains = first <= second or draw.below(2) == 0
    answer = NUMBER_WORDS[first + second if gains else first - second]
    words = NUMBER_WORDS[first], NUMBER_WORDS[second]
    return {
        "name": draw.choice(NAMES),
        "first": words[0],
        "change": f"{'gets' if gains else 'loses'} {words[1]}",
        "item": draw.choice(("coins", "books", "stamps", "shells", "cards")),
        "answer": answer,
        "rationale": f"{words[0]} {'plus' if gains else 'minus'} {words[1]} is {answer}.",
    }


def days_later(draw: Draw) -> Instance:
    """The weekday some days after another."""
    start, count = draw.below(7), draw.between(1, 4)
    passed = [DAYS[(start + step) % 7] for step in range(1, count + 1)]
    return {
        "name": draw.choice(NAMES),
        "city": draw.choice(CITIES),
        "day": DAYS[start],
        "count": f"{NUMBER_WORDS[count]} day{'s' if count > 1 else ''}",
        "answer": passed[-1],
        "rationale": f"After {DAYS[start]}: {', '.join(passed)}.",
    }


def format_date(draw: Draw) -> Instance:
    """A date in figures, written out."""
    year, month, day = draw.between(2015, 2026), draw.between(1, 12), draw.between(1, 28)
    answer = f"{day} {MONTHS[month - 1]} {year}"
    return {
        "date": f"{day} / {month} / {year}",
        "answer": answer,
        "rationale": f"Month {month} is {MONTHS[month - 1]}.",
    }


def opposite(draw: Draw) -> Instance:
    """The opposite of an adjective in a sentence."""
    word, answer = draw.sample(draw.choice(OPPOSITES), 2)
    sentence = f"{draw.choice(NAMES)} says the {draw.choice(SUBJECTS)} is {word}."
    return {"sentence": sentence, "word": word, "answer": answer, "rationale": f"{word} and {answer} are opposites."}


def convert_units(draw: Draw) -> Instance:
    """A small amount in a smaller unit."""
    unit, target, factor = draw.choice(UNITS)
    amount = draw.between(2, 9)
    return {
        "name": draw.choice(NAMES),
        "amount": f"{amount} {unit}",
        "target": target,
        "answer": f"{amount * factor} {target}",
        "rationale": f"One of the {unit} is {factor} {target}.",
    }


GENERATORS: dict[str, Callable[[Draw], Instance]] = {
    generator.__name__: generator
    for generator in (
        *(pick_word, reverse_words, sort_words, sort_numbers, compare_numbers, count_items, odd_one_out, lookup_field),
        *(extract_email, yes_no, who_has, what_has, who_likes, where_lives, who_lives, add_words, days_later),
        *(format_date, opposite, convert_units),
    )
}


def split_of(task: str, fields: Instance) -> str:
    """Where an instance belongs, from its own hash: one in eight to "validation", the rest to "train"."""
    content = "\n".join([task, *(f"{key}={fields[key]}" for key in sorted(fields))])
    return "validation" if hashlib.sha256(content.encode()).digest()[0] < 32 else "train"


def instance(task: str, split: str, index: int) -> Instance:
    """The fields of instance `index` of a split: drawn again until the instance belongs to that split."""
    for attempt in itertools.count():
        fields = GENERATORS[task](Draw(task, split, index, attempt))
        if split_of(task, fields) == split:
            return fields
    raise AssertionError("unreachable")


def _facts(draw: Draw, verb: str, things: Sequence[str], count: int) -> tuple[str, list[str], list[str]]:
    """Some people, something that each of them has, likes or lives in, and the sentences that say so."""
    names, chosen = draw.sample(NAMES, count), draw.sample(things, count)
    return " ".join(f"{name} {verb} {thing}." for name, thing in zip(names, chosen, strict=True)), names, chosen


def _person(draw: Draw, verb: str, things: Sequence[str], key: str) -> Instance:
    """Facts about three people, and the question which of them it is; `key` is the field of what is known."""
    facts, names, chosen = _facts(draw, verb, things, 3)
    asked = draw.below(3)
    rationale = f"{names[asked]} {verb} {chosen[asked]}."
    return {"facts": facts, key: chosen[asked], "answer": names[asked], "rationale": rationale}


def _thing(draw: Draw, verb: str, things: Sequence[str]) -> Instance:
    """Facts about three people, and the question what holds for one of them."""
    facts, names, chosen = _facts(draw, verb, things, 3)
    asked = draw.below(3)
    rationale = f"{names[asked]} {verb} {chosen[asked]}."
    return {"facts": facts, "name": names[asked], "answer": chosen[asked], "rationale": rationale}
