"""Questions as people also write them: in small letters, contracted, with typing errors; and what that costs a model.

    rough = perturbed(benchmark, "mild_mix", seed=1)
    worst_case([evaluate(benchmark, ...), evaluate(rough, ...)], "exact_match")

The question of an instance is changed; definition, demonstrations and references stay. HELM (Liang et al. 2022, arXiv
2211.09110) calls a model robust by the worst score of an instance over its forms, averaged over instances, and takes
`mild_mix`, which keeps the meaning: small letters, contractions, a tenth of the words that have a common misspelling,
one to three spaces for one. Typing errors hit a neighbouring key. Its list of misspellings is a few thousand words of
Wikipedia's; here is a short list of our own, and `misspelling` takes a file of yours in Wikipedia's form. What needs a
model or a translator (synonyms, dialects, paraphrases proper) is not here.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from flanjax.data.draws import Draw
from flanjax.data.records import read_lines
from flanjax.data.sources import BadRow
from flanjax.errors import nearest
from flanjax.evaluation.benchmark import Benchmark, BenchmarkError, Instance, Result

Perturbation = Callable[[str, Draw], str]

# Word after which another is contracted, and what follows the one in the short form.
_CONTRACTED = {
    ("not", "n't"): "is are was were do does did has have had could would should might must need",
    ("are", "'re"): "you we they",
    ("have", "'ve"): "i you we they could would should might must",
    ("will", "'ll"): "i you he she it we they who",
    ("would", "'d"): "i you he she it we they that there",
    ("is", "'s"): "he she it that there what who where when how why",
}
_CONTRACTIONS = {
    f"{word} {long}": word + short for (long, short), words in _CONTRACTED.items() for word in words.split()
}
_CONTRACTIONS |= {"cannot": "can't", "will not": "won't", "shall not": "shan't", "i am": "i'm"}
_EXPANSIONS = {short: long for long, short in _CONTRACTIONS.items()}
_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_MISSPELLINGS = """
absence absense; accommodate accomodate; achieve acheive; across accross; already allready; amount ammount;
answer anwser; appear apear; argument arguement; available availible; because becuase; before befor;
beginning begining; believe beleive; between betwen; business buisness; calendar calender; chief cheif;
children childern; coming comming; committee commitee; completely completly; conscious concious;
country coutry; could coud; decision desicion; definitely definately; describe discribe; difference diffrence;
different diffrent; disappear dissapear; during durring; embarrass embarass; environment enviroment;
especially especialy; example exemple; exercise excercise; existence existance; experience experiance;
explain explane; familiar familar; father fahter; favorite favorate; february febuary; finally finaly;
first frist; foreign foriegn; forty fourty; friend freind; government goverment; grammar grammer; group gruop;
guarantee garantee; happened happend; height heigth; house huose; immediately immediatly; important importent;
independent independant; information infomation; interesting intresting; knowledge knowlege; language langauge;
large lagre; letter leter; library libary; listen lisen; maintenance maintainance; many mnay; minute minuet;
money moeny; mother mohter; necessary neccessary; neighbor nieghbor; number nubmer; occasion ocassion;
occurred occured; often offen; opinion opinon; original orignal; other ohter; people poeple; piece peice;
place palce; possible possable; president presedent; probably probaly; problem probelm; question quesiton;
really realy; receive recieve; recommend recomend; remember remeber; restaurant restaraunt; school shcool;
science sience; sentence sentance; separate seperate; several severel; should shoud; similar similiar;
since sicne; something somthing; sometimes sometims; statement statment; stopped stoped; succeed suceed;
successful succesful; surprise suprise; temperature temperture; their thier; there ther; these theese;
thing hting; think htink; though thuogh; through throught; together togather; tomorrow tommorow; truly truely;
until untill; usually usualy; water watre; weather wether; weird wierd; where wher; which wich; while whlie;
would woud; writing writting; written writen; yesterday yesterady"""


def perturbed(benchmark: Benchmark, name: str, *, seed: int = 0, misspellings: str | Path | None = None) -> Benchmark:
    """The benchmark with every question changed; its instances keep their names.

    Args:
      benchmark: whose instances have their question in the prompt.
      name: one of `PERTURBATIONS`.
      seed: of what is drawn, for each instance apart.
      misspellings: a file of lines "wrong->right, right", for "misspelling" and "mild_mix".

    Raises:
      BenchmarkError: there is no such perturbation, or, when it is loaded, a prompt without its question.
    """
    if name not in PERTURBATIONS:
        raise BenchmarkError(
            f"there is no perturbation {name!r}{nearest(name, PERTURBATIONS)}; there are {', '.join(PERTURBATIONS)}"
        )
    change = PERTURBATIONS[name]
    if misspellings is not None:
        if name not in ("misspelling", "mild_mix"):
            raise BenchmarkError(f"the perturbation {name!r} takes no misspellings: give misspelling or mild_mix")
        change = functools.partial(change, wrong=read_misspellings(misspellings))
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
    return _replaced(text, _CONTRACTIONS, r"\b(?=\s)")


def expansion(text: str, draw: Draw) -> str:
    """ "isn't" becomes "is not"."""
    return _replaced(text, _EXPANSIONS, r"\b")


def space(text: str, draw: Draw) -> str:
    """One to three spaces for each run of them."""
    return re.sub(" +", lambda match: " " * draw.between(1, 3), text)


def typos(text: str, draw: Draw, *, rate: float) -> str:
    """Each letter with probability `rate` that of a key beside it."""

    def hit(match: re.Match[str]) -> str:
        if draw.below(1_000_000) >= rate * 1_000_000:
            return match[0]
        key = draw.choice(_NEIGHBOURS[match[0].lower()])
        return key.upper() if match[0].isupper() else key

    return re.sub("[a-zA-Z]", hit, text)


def misspelling(text: str, draw: Draw, *, rate: float = 0.5, wrong: Mapping[str, Sequence[str]] | None = None) -> str:
    """Each word of the list with probability `rate` as it is commonly misspelt."""
    known = _OWN_MISSPELLINGS if wrong is None else wrong

    def spell(match: re.Match[str]) -> str:
        spellings = known.get(match[0].lower())
        if not spellings or draw.below(1_000_000) >= rate * 1_000_000:
            return match[0]
        return _in_case_of(match[0], draw.choice(spellings))

    return re.sub(r"[^\W\d_]+", spell, text)


def mild_mix(text: str, draw: Draw, *, wrong: Mapping[str, Sequence[str]] | None = None) -> str:
    """HELM's canonical perturbation: small letters, contractions, a tenth of the misspellings, spaces."""
    contracted = contraction(lower_case(text, draw), draw)
    return space(misspelling(contracted, draw, rate=0.1, wrong=wrong), draw)


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
}


def _changed(benchmark: Benchmark, name: str, change: Perturbation, seed: int) -> Iterator[Instance]:
    for instance in benchmark.load():
        question = instance.input.strip()
        before, found, after = instance.prompt.rpartition(question)
        if not found:
            raise BenchmarkError(f"{benchmark.name}: the prompt of {instance.id!r} has not its question in it")
        new = change(question, Draw(seed, name, instance.id))
        yield dataclasses.replace(instance, prompt=before + new + after, input=new)


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


def _neighbours() -> dict[str, str]:
    """Of each letter those on keys that touch its own; each row lies half a key to the right of the one above."""
    places = {key: (column + 0.5 * row, row) for row, keys in enumerate(_ROWS) for column, key in enumerate(keys)}
    return {
        key: "".join(
            other
            for other, (x, y) in places.items()
            if other != key and abs(y - row) <= 1 and abs(x - column) <= 1 - 0.5 * abs(y - row)
        )
        for key, (column, row) in places.items()
    }


_NEIGHBOURS = _neighbours()
_OWN_MISSPELLINGS = {
    right: [wrong] for right, wrong in (pair.split() for pair in _MISSPELLINGS.replace("\n", "").split(";"))
}
