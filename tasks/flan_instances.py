"""Rows of the datasets of Flan 2021, as TFDS, Hugging Face or their authors publish them, made instances of task types.

    choice(row, place, fields=(("text", "sentence"),), labels=("negative", "positive"))
    {"sentence": "a fine film", "label": 1}  ->  {"text": "a fine film", "options": [...], "answer": "positive"}

Each function takes (row, place) and gives the fields of a task type of `flanjax.tasks.flan_wording`, its answer, its
options, and `answers` where more than one is accepted; None leaves a row out that is published without its label. It
raises BadRow, with the place, the field and an excerpt, for a row that is not what was published.
"""

import re
from collections.abc import Mapping
from typing import Any

from flanjax.tasks.flan_fields import find, first_of, label_of, number_of, one_of, text_of, texts_of

from flanjax.data.draws import Draw
from flanjax.data.sources import BadRow, excerpt
from flanjax.data.tasks import Row

Instance = Mapping[str, Any]
Fields = tuple[tuple[str, str], ...]  # (field of the instance, field of the row; or several, "a/b", the first there is)

FALSE_TRUE = ("False", "True")
YES_NO = ("yes", "no")
NO_YES = ("no", "yes")
UNANSWERABLE = "unanswerable"


def choice(
    row: Row,
    place: str,
    *,
    fields: Fields,
    labels: tuple[str, ...],
    options: tuple[str, ...] = (),
    label: str = "label",
) -> Instance | None:
    """Fields, and one of a fixed set of labels.

    Args:
        row: as published.
        place: of the row.
        fields: of the instance, and where the row has them.
        labels: their published names, in the order of their numbers.
        options: what they are called in text, in the same order; none: as published.
        label: where the row has it.
    """
    answer = one_of(options or labels, label_of(row, label, labels, place), place)
    return answer and {name: text_of(row, names, place) for name, names in fields} | answer


def options_of(
    row: Row, place: str, *, fields: Fields, options: tuple[str, ...], label: str = "label", first: int = 0
) -> Instance | None:
    """Fields, and options that the row has in fields of their own; a label in text numbers them from `first` on."""
    numbers = tuple(str(first + index) for index in range(len(options)))
    index = label_of(row, label, numbers, place)
    answer = one_of([text_of(row, option, place) for option in options], index, place)
    return answer and {name: text_of(row, names, place) for name, names in fields} | answer


def text_to_text(row: Row, place: str, *, fields: Fields, answer: str, references: str = "") -> Instance:
    """Fields and an answer, in plain text; `references` are more accepted answers, where the row has them."""
    instance = {name: text_of(row, names, place) for name, names in fields}
    target = text_of(row, answer, place)
    more = texts_of(row, references, place) if references and references in row else []
    return instance | {"answer": target, "answers": list(dict.fromkeys([target, *more]))}


# Inference and sentence pairs.


def qnli(row: Row, place: str) -> Instance | None:
    """Whether a sentence answers a question."""
    instance = choice(
        row, place, fields=(("context", "sentence"),), labels=("entailment", "not_entailment"), options=YES_NO
    )
    question = text_of(row, "question", place)
    return instance and {**instance, "question": f'Does the text answer the question "{question}"?'}


def stsb(row: Row, place: str) -> Instance | None:
    """Similarity from 0 to 5, to the nearest whole number."""
    score = number_of(row, "label/score", place)
    answer = one_of(tuple("012345"), None if score == -1 else round(score), place)
    return answer and {name: text_of(row, name, place) for name in ("sentence1", "sentence2")} | answer


def wsc(row: Row, place: str) -> Instance | None:
    """Whether a pronoun, which is marked in the text, means a name."""
    words = text_of(row, "text", place).split(" ")
    name, pronoun = (text_of(row, f"{span}_text/target.{span}_text", place) for span in ("span1", "span2"))
    start = int(number_of(row, "span2_index/target.span2_index", place))
    if not 0 <= start < len(words):
        raise BadRow(f"{place}: field 'span2_index' is no word of the text: {excerpt(row)}")
    text = " ".join([*words[:start], " ".join(words[start:]).replace(pronoun, f"*{pronoun}*", 1)])
    answer = one_of(NO_YES, label_of(row, "label", FALSE_TRUE, place), place)
    return answer and {"context": text, "question": f"Does *{pronoun}* mean {name}?"} | answer


def pronoun(row: Row, place: str) -> Instance | None:
    """Which of two candidates a pronoun means."""
    candidates = texts_of(row, "candidates", place)
    answer = one_of(candidates, label_of(row, "label", ("0", "1"), place), place)
    fields = {"text": text_of(row, "sentence", place), "pronoun": text_of(row, "pronoun", place)}
    return answer and fields | answer


def winogrande(row: Row, place: str) -> Instance | None:
    """TFDS numbers the options from 0 on; the published file has "1" or "2"."""
    label = "answer" if isinstance(row.get("answer"), str) else "label"
    return options_of(
        row, place, fields=(("text", "sentence"),), options=("option1", "option2"), label=label, first=label == "answer"
    )


# Questions and texts.


def boolq(row: Row, place: str) -> Instance | None:
    """SuperGLUE calls the answer a label."""
    fields = (("context", "passage"), ("question", "question"))
    return choice(row, place, fields=fields, labels=FALSE_TRUE, options=NO_YES, label="answer/label")


def multirc(row: Row, place: str) -> Instance | None:
    """Whether an answer to a question is right."""
    question, response = (text_of(row, name, place) for name in ("question", "answer"))
    answer = one_of(NO_YES, label_of(row, "label", FALSE_TRUE, place), place)
    return answer and {
        "context": text_of(row, "paragraph", place),
        "question": f"{question} Is it right to answer: {response}?",
        **answer,
    }


def squad(row: Row, place: str) -> Instance:
    """SQuAD 1.1 and 2.0: a question without an answer in the text is said to be unanswerable."""
    answers = texts_of(row, "answers.text", place)
    return {
        "context": text_of(row, "context", place),
        "question": text_of(row, "question", place),
        **first_of(answers or [UNANSWERABLE], place),
    }


def drop(row: Row, place: str) -> Instance:
    """An answer, or spans that make it up together."""
    answer = row.get("answer")
    if not isinstance(answer, str):
        answer = ", ".join(texts_of(row, "answers_spans.spans", place))
    return {
        "context": text_of(row, "passage", place),
        "question": text_of(row, "question", place),
        **first_of([answer] if answer else [], place),
    }


def quac(row: Row, place: str) -> Instance:
    """One question of a conversation about a text; TFDS publishes it without what was said before."""
    answer = text_of(row, "orig_answer.text", place)
    return {
        "context": text_of(row, "context", place).removesuffix("CANNOTANSWER").rstrip(),
        "history": texts_of(row, "history", place) if "history" in row else [],
        "question": text_of(row, "question", place),
        **first_of([UNANSWERABLE if answer == "CANNOTANSWER" else answer], place),
    }


def coqa(row: Row, place: str) -> Instance:
    """One turn of a conversation about a story, drawn from the story's own text."""
    story = text_of(row, "story", place)
    questions, answers = texts_of(row, "questions", place), texts_of(row, "answers.input_text", place)
    if not questions or len(questions) != len(answers):
        raise BadRow(f"{place}: {len(questions)} questions and {len(answers)} answers: {excerpt(row)}")
    turn = Draw("coqa", story).below(len(questions))
    history = [said for pair in zip(questions[:turn], answers[:turn], strict=True) for said in pair]
    return {"context": story, "history": history, "question": questions[turn], **first_of([answers[turn]], place)}


def natural_questions(row: Row, place: str) -> Instance:
    """A question as it was typed, without its question mark."""
    question = text_of(row, "question", place).rstrip("?")
    return {"question": f"{question}?", **first_of(texts_of(row, "answer", place), place)}


def trivia_qa(row: Row, place: str) -> Instance | None:
    """The test split has no answers."""
    question, value = text_of(row, "question", place), text_of(row, "answer.value", place)
    if value in ("", "<unk>"):
        return None
    aliases = texts_of(row, "answer.aliases", place)
    return {"question": question, **first_of(list(dict.fromkeys([value, *aliases])), place)}


def arc(row: Row, place: str) -> Instance | None:
    """Questions with four options; the few that have three or five are left out, as in Flan 2021."""
    options = texts_of(row, "choices.text", place)
    key, keys = find(row, "answerKey", place), find(row, "choices.label", place)
    if len(options) != 4:
        return None
    if not isinstance(keys, list) or key not in keys:
        raise BadRow(f"{place}: answerKey {key!r} is no label of its choices: {excerpt(row)}")
    answer = one_of(options, keys.index(key), place)
    return answer and {"question": text_of(row, "question/question_stem/question.stem", place), **answer}


def openbookqa(row: Row, place: str) -> Instance | None:
    """TFDS has its options in four fields, Hugging Face in a list."""
    if not isinstance(row.get("question"), Mapping):
        return arc(row, place)
    options = tuple(f"question.choice_{letter}" for letter in "ABCD")
    answers = label_of(row, "answerKey", tuple("ABCD"), place)
    answer = one_of([text_of(row, option, place) for option in options], answers, place)
    return answer and {"question": text_of(row, "question.stem", place), **answer}


def science(row: Row, place: str) -> Instance | None:
    r"""UnifiedQA: "question \n (A) option (B) option ...", of which those with exactly four options are kept."""
    text = text_of(row, "input", place).replace("\\n", "\n")
    question, *options = re.split(r"\s*\([A-D]\)\s*", text.strip())
    answer = text_of(row, "output", place).strip()
    if len(options) != 4 or "(E)" in text:
        return None
    if answer not in options:
        raise BadRow(f"{place}: the answer is none of the options: {excerpt(row)}")
    return {"question": question, "options": options, "answer": answer}


def record(row: Row, place: str) -> Instance | None:
    """A summary's sentence with a gap for a name; the text's own summary points are cut off, for they tell the answer.

    The test split has no answers.
    """
    answers = texts_of(row, "answers", place)
    options = list(dict.fromkeys([*texts_of(row, "entities", place), *answers]))
    if not answers:
        return None
    return {
        "context": text_of(row, "passage", place).split("\n@highlight")[0],
        "query": text_of(row, "query", place).replace("@placeholder", "_"),
        "options": options,
        **first_of(list(dict.fromkeys(answers)), place),
    }


# What comes next.


def story_cloze(row: Row, place: str) -> Instance | None:
    """Two endings, numbered from 1 on, in the format of TFDS, of Hugging Face or of the authors' CSV."""
    if "context" in row:
        context, endings = text_of(row, "context", place), texts_of(row, "endings", place)
    else:
        sentences = [f"InputSentence{number}/input_sentence_{number}" for number in (1, 2, 3, 4)]
        context = " ".join(text_of(row, names, place) for names in sentences)
        quiz = [f"RandomFifthSentenceQuiz{number}/sentence_quiz{number}" for number in (1, 2)]
        endings = [text_of(row, names, place) for names in quiz]
    label = number_of(row, "label/answer_right_ending/AnswerRightEnding", place)
    answer = one_of(endings, None if label == -1 else int(label) - 1, place)
    return answer and {"context": context, **answer}


def hellaswag(row: Row, place: str) -> Instance | None:
    """Marks such as [header] and [step] of the how-to texts are taken out."""
    endings = [_unmarked(ending) for ending in texts_of(row, "endings", place)]
    label = label_of(row, "label", tuple(str(index) for index in range(len(endings))), place)
    answer = one_of(endings, label, place)
    return answer and {"context": _unmarked(text_of(row, "context/ctx", place)), **answer}


def _unmarked(text: str) -> str:
    return re.sub(r"\[(header|title|step|substeps)\]\s*", "", text)


def copa(row: Row, place: str) -> Instance | None:
    """The cause or the effect of what the premise says."""
    if row.get("question") not in ("cause", "effect"):
        raise BadRow(f"{place}: field 'question' must be 'cause' or 'effect': {excerpt(row)}")
    fields = (("premise", "premise"), ("question", "question"))
    return options_of(row, place, fields=fields, options=("choice1", "choice2"))


def lambada(row: Row, place: str) -> Instance:
    """A passage, and its last word."""
    context, space, word = text_of(row, "passage/text", place).strip().rpartition(" ")
    if not space:
        raise BadRow(f"{place}: a passage of several words is expected: {excerpt(row)}")
    return {"context": context, "answer": word}


# Texts to texts.


def ag_news(row: Row, place: str) -> Instance | None:
    """The authors' CSV numbers the classes from 1 on and has title and description apart."""
    label, labels = ("class", "1234") if "class" in row else ("label", "0123")
    topics = ("World", "Sports", "Business", "Science and technology")
    if "text" in row:
        text = text_of(row, "text", place)
    else:
        text = "\n".join(text_of(row, name, place) for name in ("title", "description"))
    answer = one_of(topics, label_of(row, label, tuple(labels), place), place)
    return answer and {"text": text, **answer}


def trec(row: Row, place: str) -> Instance | None:
    """The kind of thing a question asks for; TFDS and the present Hugging Face file number the kinds differently."""
    names = {"DESC": "description", "ENTY": "entity", "ABBR": "abbreviation", "HUM": "human"}
    names |= {"NUM": "number", "LOC": "location"}
    field, labels = "coarse_label", ["ABBR", "ENTY", "DESC", "HUM", "LOC", "NUM"]
    if field not in row:
        field, labels = "label-coarse", list(names)
    index = label_of(row, field, labels, place)
    answer = None if index is None else one_of(list(names.values()), list(names).index(labels[index]), place)
    return answer and {"question": text_of(row, "text", place), **answer}


def sentiment140(row: Row, place: str) -> Instance:
    """Polarity 0 to 4, of which 3 and 4 count as positive."""
    polarity = number_of(row, "polarity/sentiment", place)
    if polarity not in range(5):
        raise BadRow(f"{place}: field 'polarity' must be 0 to 4: {excerpt(row)}")
    return {
        "text": text_of(row, "text", place),
        "options": ["negative", "positive"],
        "answer": "positive" if polarity >= 3 else "negative",
    }


def imdb(row: Row, place: str) -> Instance | None:
    """Line breaks are published as HTML."""
    instance = choice(row, place, fields=(("text", "text"),), labels=("neg", "pos"), options=("negative", "positive"))
    return instance and {**instance, "text": instance["text"].replace("<br />", "\n")}


def yelp(row: Row, place: str) -> Instance | None:
    """Quotation marks and line breaks are published with backslashes; the authors' CSV numbers from 1 on."""
    instance = choice(row, place, fields=(("text", "text"),), labels=("1", "2"), options=("negative", "positive"))
    return instance and {**instance, "text": instance["text"].replace('\\""', '"').replace("\\n", "\n")}


def samsum(row: Row, place: str) -> Instance | None:
    """A conversation, a turn a line; one is published empty."""
    dialogue = text_of(row, "dialogue", place).replace("\r\n", "\n")
    return {"document": dialogue, "answer": text_of(row, "summary", place)} if dialogue.strip() else None


def gigaword(row: Row, place: str) -> Instance | None:
    """Texts with words that were replaced (UNK, #) are left out, as in Flan 2021."""
    document, summary = text_of(row, "document", place), text_of(row, "summary", place)
    masked = re.search("UNK|#", document + summary)
    return None if masked else {"document": document, "answer": summary}


def rotten_tomatoes(row: Row, place: str) -> Instance:
    """The critics' consensus from the first ten of their reviews."""
    reviews = texts_of(row, "_critics.value", place)[:10]
    return {"document": "\n".join(reviews), "answer": text_of(row, "_critic_consensus", place)}


def idebate(row: Row, place: str) -> Instance:
    """The claim that the first ten sentences of an argument support."""
    sentences = texts_of(row, "_argument_sentences.value", place)[:10]
    return {"document": "\n".join(sentences), "answer": text_of(row, "_claim", place)}


def data_to_text(row: Row, place: str, *, data: str) -> Instance:
    """Triples or slots, a line each, and a text that says the same."""
    value = find(row, data, place)
    if not isinstance(value, list):
        text = text_of(row, data, place)
    else:  # a triple is a text, or a list of its parts
        parts = [" | ".join(map(str, item)) if isinstance(item, list) else item for item in value]
        text = "\n".join(texts_of({data: parts}, data, place))
    return {"data": text, **text_to_text(row, place, fields=(), answer="target", references="references")}


def common_gen(row: Row, place: str) -> Instance:
    """A sentence that has all of some words."""
    concepts = ", ".join(texts_of(row, "concepts", place))
    return {"concepts": concepts, **text_to_text(row, place, fields=(), answer="target", references="references")}


def translation(row: Row, place: str, *, source: str, target: str, languages: tuple[str, str]) -> Instance:
    """A pair of sentences, which Hugging Face has under "translation"."""
    return {
        "source": text_of(row, f"{source}/translation.{source}", place),
        "source_language": languages[0],
        "target_language": languages[1],
        "answer": text_of(row, f"{target}/translation.{target}", place),
    }


def mathematics(row: Row, place: str) -> Instance:
    r"""On Hugging Face the texts are those of Python bytes: b'...\n'."""
    question, answer = (text_of(row, name, place) for name in ("question", "answer"))
    cut = [text.removeprefix("b'").removesuffix("\\n'") if text[:2] == "b'" else text for text in (question, answer)]
    return {"question": cut[0].strip(), "answer": cut[1].strip()}


def true_case(row: Row, place: str) -> Instance | None:
    """The English side of a sentence pair in small letters; None where that changes nothing."""
    answer = _english(row, place)
    text = answer.lower()
    return None if text == answer else {"text": text, "answer": answer}


def fix_punctuation(row: Row, place: str) -> Instance | None:
    """The English side of a sentence pair without punctuation; None where it has none."""
    answer = _english(row, place)
    text = re.sub(r"[^\w\s]", "", answer)
    return None if text == answer else {"text": text, "answer": answer}


def word_segment(row: Row, place: str) -> Instance:
    """The English side of a sentence pair without spaces."""
    answer = _english(row, place)
    return {"text": answer.replace(" ", ""), "answer": answer}


def _english(row: Row, place: str) -> str:
    return text_of(row, "en/translation.en", place)
