"""FLAN's own wording for the instances of our task types, from a user's copy of google-research/FLAN.

    types = published_types("FLAN/flan/v2/templates.py", branched="FLAN/flan/v2/flan_templates_branched.py")
    render_arm(types[flan_key("anli_r1")], {"premise": ..., "hypothesis": ..., ...}, context, Arm.ZSOPT)

A task key has its templates over the fields of the type that our instances of it have. Templates that ask for more (the
title of an article, say) are left out. Keys that would be left with none, or whose published fields mean something
else, are not there: wsc and multirc (spans and responses apart), winogrande and record (a sentence cut at its gap),
coqa (numbered questions), quac (background), newsroom (title), openbookqa (its fact).
"""

from flanjax.tasks.flan_wording import task_type

from flanjax.data.prompts import TaskType
from flanjax.data.published_templates import over_fields, read_flan_templates, with_names

_AS_THEY_ARE: dict[str, str] = {}
_TEXT = {"sentence": "text"}
_DOCUMENT = {"text": "document"}
_TRANSLATION = {"sent1": "source", "lang1": "source_language", "lang2": "target_language"}
_PROMPT = {"question": "prompt"}

# Task key -> our type, and the published names of its fields that are not ours.
KEYS = {
    **dict.fromkeys(("rte", "cb", "mnli", "snli"), ("nli", _AS_THEY_ARE)),
    "anli": ("nli", {"context": "premise"}),
    "wnli": ("nli", {"sentence1": "premise", "sentence2": "hypothesis"}),
    "qnli": ("boolean_qa", {"sentence": "context"}),
    "bool_q": ("boolean_qa", {"text": "context"}),
    **dict.fromkeys(("glue_mrpc", "paws_wiki"), ("paraphrase", _AS_THEY_ARE)),
    "glue_qqp": ("paraphrase", {"question1": "sentence1", "question2": "sentence2"}),
    "stsb": ("sentence_similarity", _AS_THEY_ARE),
    "wic": ("word_sense", _AS_THEY_ARE),
    **dict.fromkeys(("imdb_reviews", "sentiment140", "yelp_polarity_reviews"), ("sentiment", _AS_THEY_ARE)),
    "sst2": ("sentiment", _TEXT),
    "cola": ("acceptability", _TEXT),
    "ag_news_subset": ("topic", _AS_THEY_ARE),
    "trec": ("question_type", {"text": "question"}),
    **dict.fromkeys(("arc", "unified_qa_science_inst"), ("multiple_choice", _AS_THEY_ARE)),
    "cosmos_qa": ("passage_choice", _AS_THEY_ARE),
    "copa": ("commonsense_cause", _AS_THEY_ARE),
    **dict.fromkeys(("hellaswag", "story_cloze"), ("story_completion", _AS_THEY_ARE)),
    "piqa": ("physical_choice", _AS_THEY_ARE),
    "definite_pronoun_resolution": ("coreference", _TEXT),
    **dict.fromkeys(("squad_v1", "squad_v2", "drop"), ("reading_qa", _AS_THEY_ARE)),
    **dict.fromkeys(("natural_questions", "trivia_qa"), ("closed_qa", _AS_THEY_ARE)),
    "math_dataset": ("math", _AS_THEY_ARE),
    "lambada": ("last_word", {"sentence": "context"}),
    "aeslc": ("headline", {"body": "document"}),
    "gigaword": ("headline", _DOCUMENT),
    **dict.fromkeys(("cnn_dailymail", "multi_news", "xsum"), ("summarization", _DOCUMENT)),
    "samsum": ("summarization", {"dialogue": "document"}),
    "wiki_lingua_english_en": ("summarization", {"source": "document"}),
    "opinion_abstracts_rotten_tomatoes": ("summarization", {"numbered_reviews": "document"}),
    "opinion_abstracts_idebate": ("summarization", {"argument_sentences": "document"}),
    "common_gen": ("concepts_to_text", _AS_THEY_ARE),
    "dart": ("data_to_text", {"tripleset": "data"}),
    "e2e_nlg": ("data_to_text", {"meaning_representation": "data"}),
    "web_nlg_en": ("data_to_text", {"input_string": "data"}),
    **dict.fromkeys(("para_crawl", "wmt14_enfr", "wmt16_translate"), ("translation", _TRANSLATION)),
    "true_case": ("true_case", {"lower": "text"}),
    "fix_punct": ("fix_punctuation", {"no_punct": "text"}),
    "word_segment": ("word_segment", {"no_space": "text"}),
    **{
        f"cot_{name}": ("cot", _AS_THEY_ARE)
        for name in ("gsm8k", "strategyqa", "creak", "qasc", "esnli", "ecqa", "sensemaking")
    },
    **{
        f"cot_input_inversion_{name}": ("cot_inversion", _AS_THEY_ARE)
        for name in ("gsm8k", "strategyqa", "creak", "qasc", "esnli", "ecqa", "sensemaking")
    },
    **dict.fromkeys(("stream_aqua", "stream_qed"), ("cot", _AS_THEY_ARE)),
    **dict.fromkeys(("stream_input_inversion_aqua", "stream_input_inversion_qed"), ("cot_inversion", _AS_THEY_ARE)),
    **dict.fromkeys(("wiki_dialog", "qrecc"), ("dialog_reply", _AS_THEY_ARE)),
    **dict.fromkeys(("wiki_dialog_input_inversion", "qrecc_input_inversion"), ("dialog_inversion", _AS_THEY_ARE)),
    "t0_question_answer": ("t0_question_answer", _PROMPT),
    "t0_multiple_choice": ("t0_multiple_choice", _PROMPT),
    "t0_multiple_choice_separated_options": ("t0_separated_options", _PROMPT),
    "natinst_v2": ("natinst", {"Definition": "definition"}),
}


def published_types(path: str, *, branched: str = "") -> dict[str, TaskType]:
    """Task key -> its published templates, over our fields.

    Args:
        path: flan/v2/templates.py, or the same tables in JSON.
        branched: flan/v2/flan_templates_branched.py, likewise.

    Raises:
        PromptError: a file is none of templates.
    """
    published = read_flan_templates(path, branched=branched)
    return {
        key: over_fields(with_names(published[key], names), task_type(type).fields)
        for key, (type, names) in KEYS.items()
        if key in published
    }
