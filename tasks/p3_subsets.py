"""The datasets of P3 that T0 was trained on or Flan 2022 took in: where each is published, and its subsets.

A subset of P3 is a dataset in one template of PromptSource; its name is made of both (`subset_name`).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from flanjax.tasks.flan_counts import P3_SUBSETS


@dataclass(frozen=True, kw_only=True)
class P3Dataset:
    """A dataset of P3.

    Attributes:
        name: in P3, with its configuration; its rows lie in a folder of this name.
        templates: the folder of its templates in PromptSource.
        hub: where Hugging Face has it: "user/name:config".
        examples: of its training split.
        subsets: their names in P3.
        t0: whether T0 was trained on it (T0+ and T0++ were on more).
    """

    name: str
    templates: str
    hub: str
    examples: int
    subsets: tuple[str, ...]
    t0: bool


def subset_name(dataset: str, template: str) -> str:
    """The name in P3: "quartz", "use_info_from_question_paragraph"; signs other than letters and digits become _."""
    return f"{dataset}_{re.sub('[^A-Za-z0-9]+', '_', template)}"


# dataset=training examples, then its subsets: those that Flan 2022 left out, for their datasets are in Flan 2021.
_MORE = """
ag_news=120000 classify classify_question_first classify_with_choices classify_with_choices_question_first recommend
which_section which_section_choices cnn_dailymail_3.0.0=287113 2_or_3_sentences generate_story news_card_view
news_stock news_summary spice_up_story sum_in_brief tldr_summary write_an_outline common_gen=67389 Example_prompt
Given_concepts_type_1 Given_concepts_type_2 Put_together choice_in_concept_centric_sentence_generation
random_task_template_prompt sentence_to_concepts topic_to_sentence topics_from_the_sentence commonsense_qa=9741
answer_given_question_without_options answer_to_question most_suitable_answer question_answering
question_to_answer_index cosmos_qa=25262 context_answer_to_question context_description_question_answer_id
context_description_question_answer_text context_description_question_text context_question_description_answer_id
context_question_description_answer_text context_question_description_text description_context_question_answer_id
description_context_question_answer_text description_context_question_text no_prompt_id no_prompt_text
only_question_answer gigaword=3803957 TLDR first_sentence_title generate_summary_for_this in_a_nutshell make_a_title
reverse_writing write_a_title_for_this_sentence write_an_article write_its_sentence glue_mrpc=3668 equivalent
generate_paraphrase generate_sentence paraphrase replace same_thing want_to_know glue_qqp=363846 answer duplicate
duplicate_or_not meaning quora same_thing imdb=25000 Movie_Expressed_Sentiment Movie_Expressed_Sentiment_2
Negation_template_for_positive_and_negative Reviewer_Enjoyment Reviewer_Enjoyment_Yes_No Reviewer_Expressed_Sentiment
Reviewer_Opinion_bad_good_choices Reviewer_Sentiment_Feeling Sentiment_with_choices_ Text_Expressed_Sentiment
Writer_Expressed_Sentiment multi_news=44972 distill expand_reverse_task_ summarize summary_scenario synthesize
what_are_the_key_points paws_labeled_final=49401 Concatenation Concatenation_no_label Meaning Meaning_no_label
PAWS_ANLI_GPT3 PAWS_ANLI_GPT3_no_label Rewrite Rewrite_no_label context_question context_question_no_label
paraphrase_task task_description_no_label rotten_tomatoes=8530 Movie_Expressed_Sentiment Movie_Expressed_Sentiment_2
Reviewer_Enjoyment Reviewer_Enjoyment_Yes_No Reviewer_Expressed_Sentiment Reviewer_Opinion_bad_good_choices
Reviewer_Sentiment_Feeling Sentiment_with_choices_ Text_Expressed_Sentiment Writer_Expressed_Sentiment samsum=14732
Generate_a_summary_for_this_dialogue Given_the_above_dialogue_write_a_summary Sum_up_the_following_dialogue Summarize_
Summarize_this_dialogue_ To_sum_up_this_dialog Write_a_dialogue_that_match_this_summary trec=5452 fine_grained_ABBR
fine_grained_ABBR_context_first fine_grained_DESC fine_grained_DESC_context_first fine_grained_ENTY fine_grained_HUM
fine_grained_HUM_context_first fine_grained_LOC fine_grained_LOC_context_first fine_grained_NUM
fine_grained_NUM_context_first fine_grained_open fine_grained_open_context_first pick_the_best_descriptor trec1 trec2
what_category_best_describe which_category_best_describes xsum=204045 DOC_boils_down_to_simple_idea_that
DOC_given_above_write_one_sentence DOC_how_would_you_rephrase_few_words DOC_tldr DOC_write_summary_of_above
article_DOC_summary college_roommate_asked_DOC_so_I_recap read_below_DOC_write_abstract summarize_DOC
summarize_this_DOC_summary yelp_review_full=650000 based_on_that format_rating format_score format_star on_a_scale
so_i_would this_place
"""

# dataset=PromptSource's folder=Hugging Face's name and configuration; * for what T0 was not trained on.
_PUBLISHED = """
adversarial_qa_dbert=adversarial_qa/dbert=UCLNLP/adversarial_qa:dbert
adversarial_qa_dbidaf=adversarial_qa/dbidaf=UCLNLP/adversarial_qa:dbidaf
adversarial_qa_droberta=adversarial_qa/droberta=UCLNLP/adversarial_qa:droberta
ag_news=ag_news=fancyzhx/ag_news
amazon_polarity=amazon_polarity=fancyzhx/amazon_polarity:amazon_polarity
app_reviews=app_reviews=sealuzh/app_reviews
cnn_dailymail_3.0.0=cnn_dailymail/3.0.0=abisee/cnn_dailymail:3.0.0
common_gen=common_gen=allenai/common_gen
commonsense_qa*=commonsense_qa=tau/commonsense_qa
cos_e_v1.11=cos_e/v1.11=Salesforce/cos_e:v1.11
cosmos_qa=cosmos_qa=allenai/cosmos_qa
dbpedia_14=dbpedia_14=fancyzhx/dbpedia_14:dbpedia_14
dream=dream=dataset-org/dream:plain_text
duorc_ParaphraseRC=duorc/ParaphraseRC=ibm-research/duorc:ParaphraseRC
duorc_SelfRC=duorc/SelfRC=ibm-research/duorc:SelfRC
gigaword=gigaword=Harvard/gigaword
glue_mrpc=glue/mrpc=nyu-mll/glue:mrpc
glue_qqp=glue/qqp=nyu-mll/glue:qqp
imdb=imdb=stanfordnlp/imdb:plain_text
kilt_tasks_hotpotqa=kilt_tasks/hotpotqa=facebook/kilt_tasks:hotpotqa
multi_news=multi_news=alexfabbri/multi_news
paws_labeled_final=paws/labeled_final=google-research-datasets/paws:labeled_final
qasc=qasc=allenai/qasc
quail=quail=textmachinelab/quail:quail
quarel=quarel=community-datasets/quarel
quartz=quartz=allenai/quartz
quoref=quoref=allenai/quoref
race_high*=race/high=ehovy/race:high
race_middle*=race/middle=ehovy/race:middle
ropes=ropes=allenai/ropes:plain_text
rotten_tomatoes=rotten_tomatoes=cornell-movie-review-data/rotten_tomatoes
samsum=samsum=knkarthick/samsum
sciq=sciq=allenai/sciq
social_i_qa=social_i_qa=allenai/social_i_qa
trec=trec=CogComp/trec
web_questions*=web_questions=stanfordnlp/web_questions
wiki_bio=wiki_bio=michaelauli/wiki_bio
wiki_hop_original=wiki_hop/original=MoE-UNC/wikihop
wiki_qa=wiki_qa=microsoft/wiki_qa
wiqa=wiqa=allenai/wiqa
xsum=xsum=EdinburghNLP/xsum
yelp_review_full=yelp_review_full=Yelp/yelp_review_full:yelp_review_full
"""


def _datasets() -> Iterator[P3Dataset]:
    examples: dict[str, int] = {}
    subsets: dict[str, list[str]] = {}
    for subset in P3_SUBSETS.values():
        examples[subset.dataset] = max(examples.get(subset.dataset, 0), subset.counts.zero_shot)
        subsets.setdefault(subset.dataset, []).append(subset.name)
    dataset = ""
    for word in _MORE.split():
        if "=" in word:
            dataset, count = word.split("=")
            examples[dataset] = int(count)
        else:
            subsets.setdefault(dataset, []).append(subset_name(dataset, word))
    for line in _PUBLISHED.split():
        name, templates, hub = line.split("=")
        t0, name = not name.endswith("*"), name.removesuffix("*")
        yield P3Dataset(
            name=name, templates=templates, hub=hub, examples=examples[name], subsets=tuple(subsets[name]), t0=t0
        )


P3_DATASETS = {dataset.name: dataset for dataset in _datasets()}
