"""The project's own wording for the task types of Flan 2021 (arXiv 2109.01652) and of the Flan 2022 mixture.

`task_type("nli")` has at least ten templates; `flanjax.data.prompts.render_arm` renders an instance in them. Every
instance has an `answer` (text), and `options` (a list of texts) where the type is marked *.

    nli*(premise, hypothesis)            sentiment*(text)                      topic*(text)
    paraphrase*(sentence1, sentence2)    sentence_similarity*(sentence1, sentence2)
    coreference*(text, pronoun)          winogrande*(text: the gap is written _)
    word_sense*(word, sentence1, sentence2)    acceptability*(text)            question_type*(question)
    reading_qa(context, question)        closed_qa(question)                   boolean_qa*(context, question)
    multiple_choice*(question)           passage_choice*(context, question)    entity_cloze*(context, query: with _)
    conversational_qa(context, history, question)                              math(question)
    cot(question; rationale)             cot_inversion(question; rationale)
    story_completion*(context)           physical_choice*(goal)                commonsense_cause*(premise, question)
    summarization(document)              headline(document)                    last_word(context: without its last word)
    data_to_text(data)                   concepts_to_text(concepts)            translation(source, source_language,
    true_case(text)                      fix_punctuation(text)                     target_language)
    word_segment(text)                   dialog_reply(history)                 dialog_inversion(history)
    t0_question_answer(prompt)           t0_multiple_choice(prompt: its options are in it)
    t0_separated_options*(prompt)        natinst(definition, input)

`history` is a list of turns, the last of which is replied to in `dialog_*`. The `question` of `commonsense_cause`
is "cause" or "effect". `flan_published` has FLAN's wording for the same instances.
"""

from flanjax.tasks import wording_labels, wording_questions, wording_sentences, wording_texts

from flanjax.data.prompts import PromptError, TaskType
from flanjax.errors import nearest

_MODULES = (wording_sentences, wording_labels, wording_questions, wording_texts)
TASK_TYPES = {type.name: type for module in _MODULES for type in module.TYPES}


def task_type(name: str) -> TaskType:
    """The type of this name.

    Raises:
        PromptError: there is none.
    """
    if name not in TASK_TYPES:
        raise PromptError(f"there is no task type {name!r}{nearest(name, TASK_TYPES)}")
    return TASK_TYPES[name]
