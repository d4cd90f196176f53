"""How many training examples each task of Flan 2022 has, as its release counts them; rates are made from these.

    FLAN_COUNTS["rte"]      Counts(zero_shot=2290, x_shot=2290, five_shot=2288)
    P3_SUBSETS["qasc_is_correct_1"].type     "t0_separated_options"

Source: google-research/FLAN at e9e4ec6, flan/v2. They hold for inputs of 2,048
tokens and targets of 512, whose longer examples are left out, and for complete groups of as many examples as there are
templates.
"""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Counts:
    """The examples of a task, by the kind of prompt."""

    zero_shot: int
    x_shot: int
    five_shot: int

    def of(self, arm: str) -> int:
        """The count that an arm's rate comes from."""
        if arm == "fsopt_five":
            return self.five_shot
        return self.x_shot if arm.startswith("fs") else self.zero_shot


@dataclass(frozen=True, kw_only=True)
class P3Subset:
    """One of the 193 subsets of P3 that Flan 2022 keeps: a dataset in one template of PromptSource.

    Attributes:
        name: in P3, the dataset's and the template's.
        dataset: that of P3, with its configuration.
        template: its name.
        type: of `flanjax.tasks.flan_wording`.
        counts: of the training split.
    """

    name: str
    dataset: str
    template: str
    type: str
    counts: Counts


P3_TYPES = {"Q": "t0_question_answer", "M": "t0_multiple_choice", "S": "t0_separated_options"}


def _counts(text: str) -> Counts:
    """ "7": all alike; "7/6/5": zero-shot, x-shot, five-shot."""
    numbers = [int(number) for number in text.split("/")]
    return Counts(*(numbers if len(numbers) == 3 else numbers * 3))


def _table(text: str) -> dict[str, Counts]:
    pairs = (word.split("=") for word in text.split())
    return {name: _counts(counts) for name, counts in pairs}


FLAN_COUNTS = _table("""
bool_q=9220 rte=2290/2290/2288 wsc=500 wic=5220 natural_questions=87720 record=100520/100520/100448 trivia_qa=87420
arc_challenge=910/910/912 arc_easy=2040 math_dataset=1999780 aeslc=14430/14275/14275
cnn_dailymail=287040/198109/179512 gigaword=2044370/2044370/2044416 multi_news=44960/3118/1927
newsroom=994560/646889/646099 opinion_abstracts_rotten_tomatoes=3130 opinion_abstracts_idebate=1650/1650/1655
coqa=7090/7077/7085 samsum=14730/14730/14728 xsum=203560/192545/190400 squad_v1=87390/87390/87397
squad_v2=130110/130109/130110 drop=77200/77021/77015 quac=83360/79325/79290 multirc=27040/27040/27042
ag_news_subset=119800/119800/119798 anli_r1=16940/16940/16944 anli_r2=45460/45460/45456 anli_r3=100450/100450/100456
sentiment140=1599800/1599800/1599780 story_cloze=1670 imdb_reviews=24800/24761/24791 paws_wiki=49400
definite_pronoun_resolution=1120 glue_mrpc=3460/3460/3465 glue_qqp=363640 copa=350/350/348
winogrande=40190/40190/40194 yelp_polarity_reviews=559800/559774/559798 cosmos_qa=25060
para_crawl_enes=30000/30000/29997 wmt14_enfr=40835840/40827181/40827169 wmt16_translate_deen=4548800/4548675/4548715
wmt16_translate_tren=205750/205750/205752 wmt16_translate_csen=52335360/52325532/52325751
wmt16_translate_fien=2073360/2073357/2073342 wmt16_translate_roen=610320 wmt16_translate_ruen=2516160/2516137/2516133
common_gen=67180/67180/67185 dart=62450/62450/62454 e2e_nlg=33320 web_nlg_en=35220/35220/35224
wiki_lingua_english_en=99000/96918/96486 true_case=29260 fix_punct=28070 word_segment=30000/30000/29995 cb=200
cola=8350/8350/8348 sst2=67140/67140/67148 mnli_matched=392500/392500/392499 mnli_mismatched=392500/392500/392499
qnli=104540/104540/104536 wnli=600/600/603 snli=549360 trec=5250/5250/5248 stsb=5640/5640/5646 piqa=16010/16010/16009
openbookqa=4950/4950/4956 hellaswag=39700/39700/39699 lambada=4860 unified_qa_science_inst=590
""")

# "stream": of low quality, in the words of the release.
COT_COUNTS = _table("""
cot_gsm8k=7470/7470/7473 cot_strategyqa=2060/2060/2061 cot_creak=6910/6910/6914 cot_qasc=1080/1080/1084
cot_esnli=36170/36170/36174 cot_ecqa=7110/7110/7112 cot_sensemaking=6070/6070/6069 stream_aqua=2715/2720/2728
stream_qed=5145/5140/5145
""")

DIALOG_COUNTS = _table("wiki_dialog=11264000/11263998/11263997 qrecc=10170")

# Dataset=zero-shot/five-shot count, then its templates with their types. The x-shot count is the zero-shot one, and so
# is the five-shot count of type M; of wiki_hop_original, whose inputs are long, few exemplars are left (_WIKI_HOP).
_P3 = """
adversarial_qa_dbert=10000/9999 answer_the_following_q:Q based_on:Q generate_question:Q question_context_answer:Q
tell_what_it_is:Q adversarial_qa_dbidaf=10000/9999 answer_the_following_q:Q based_on:Q generate_question:Q
question_context_answer:Q tell_what_it_is:Q adversarial_qa_droberta=10000/9999 answer_the_following_q:Q based_on:Q
generate_question:Q question_context_answer:Q tell_what_it_is:Q amazon_polarity=3600000/3600000
Is_this_product_review_positive:S Is_this_review:M Is_this_review_negative:S User_recommend_this_product:S
convey_negative_or_positive_sentiment:M flattering_or_not:M negative_or_positive_tone:M user_satisfied:M
would_you_buy:M app_reviews=288060/288063 categorize_rating_using_review:M convert_to_rating:Q
convert_to_star_rating:M generate_review:Q cos_e_v1.11=9740/9738 aligned_with_common_sense:Q
description_question_option_id:M description_question_option_text:M explain_why_human:Q
generate_explanation_given_text:Q i_think:Q question_description_option_id:M question_description_option_text:M
question_option_description_id:M question_option_description_text:M rationale:Q dbpedia_14=560000/560000
given_a_choice_of_categories_:M given_a_list_of_category_what_does_the_title_belong_to:M
given_list_what_category_does_the_paragraph_belong_to:M pick_one_category_for_the_following_text:M dream=6110/6111
answer_to_dialogue:Q baseline:M generate_first_utterance:Q generate_last_utterance:Q
read_the_following_conversation_and_answer_the_question:M duorc_ParaphraseRC=69520/69516 answer_question:Q
decide_worth_it:Q extract_answer:Q movie_director:Q question_answering:Q title_generation:Q
duorc_ParaphraseRC=58750/58752 build_story_around_qa:Q generate_question:Q generate_question_by_answer:Q
duorc_SelfRC=60720/60714 answer_question:Q decide_worth_it:Q extract_answer:Q movie_director:Q question_answering:Q
title_generation:Q duorc_SelfRC=60090/60093 build_story_around_qa:Q generate_question:Q generate_question_by_answer:Q
kilt_tasks_hotpotqa=88860/88866 combining_facts:Q complex_question:Q final_exam:Q formulate:Q straighforward_qa:Q
qasc=8130/8127 is_correct_1:S is_correct_2:S qa_with_combined_facts_1:M qa_with_separated_facts_1:M
qa_with_separated_facts_2:M qa_with_separated_facts_3:S qa_with_separated_facts_4:M qa_with_separated_facts_5:S
quail=10240/10242 context_description_question_answer_id:M context_description_question_answer_text:M
context_description_question_text:S context_question_answer_description_id:M
context_question_answer_description_text:M context_question_description_answer_id:M
context_question_description_answer_text:M context_question_description_text:S
description_context_question_answer_id:M description_context_question_answer_text:M
description_context_question_text:S no_prompt_id:M no_prompt_text:M quarel=1940/1940 choose_between:M do_not_use:M
heres_a_story:M logic_test:M testing_students:M quartz=2690/2690 answer_question_based_on:M answer_question_below:M
given_the_fact_answer_the_q:M having_read_above_passage:M paragraph_question_plain_concat:M
read_passage_below_choose:M use_info_from_paragraph_question:M use_info_from_question_paragraph:M quoref=19390/19395
Answer_Friend_Question:Q Answer_Question_Given_Context:Q Answer_Test:Q Context_Contains_Answer:Q Find_Answer:Q
Found_Context_Online:Q Given_Context_Answer_Question:Q Guess_Answer:Q Guess_Title_For_Context:Q Read_And_Extract_:Q
What_Is_The_Answer:Q race_high=62440/62442 Is_this_the_right_answer:M
Read_the_article_and_answer_the_question_no_option_:S Select_the_best_answer:M Select_the_best_answer_generate_span_:M
Select_the_best_answer_no_instructions_:M Taking_a_test:M Write_a_multi_choice_question_for_the_following_article:Q
Write_a_multi_choice_question_options_given_:Q race_middle=25420/25416 Is_this_the_right_answer:M
Read_the_article_and_answer_the_question_no_option_:S Select_the_best_answer:M Select_the_best_answer_generate_span_:M
Select_the_best_answer_no_instructions_:M Taking_a_test:M Write_a_multi_choice_question_for_the_following_article:Q
Write_a_multi_choice_question_options_given_:Q ropes=10920/10917 background_new_situation_answer:Q
background_situation_middle:Q given_background_situation:Q new_situation_background_answer:Q
plain_background_situation:Q plain_bottom_hint:Q plain_no_background:Q prompt_beginning:Q
prompt_bottom_hint_beginning:Q prompt_bottom_no_hint:Q prompt_mix:Q read_background_situation:Q sciq=11670/11673
Direct_Question:S Direct_Question_Closed_Book_:S Multiple_Choice:M Multiple_Choice_Closed_Book_:M
Multiple_Choice_Question_First:M social_i_qa=33410/33408 Check_if_a_random_answer_is_valid_or_not:S Generate_answer:S
Generate_the_question_from_the_answer:Q I_was_wondering:S Show_choices_and_generate_answer:M
Show_choices_and_generate_index:M web_questions=3770/3771 get_the_answer:Q potential_correct_answer:Q
question_answer:Q short_general_knowledge_q:Q whats_the_answer:Q wiki_bio=582630/582633 comprehension:Q guess_person:Q
key_content:Q what_content:Q who:Q wiki_hop_original=43730/43730 choose_best_object_affirmative_1:M
choose_best_object_affirmative_2:M choose_best_object_affirmative_3:M choose_best_object_interrogative_1:M
choose_best_object_interrogative_2:M explain_relation:Q generate_object:Q generate_subject:Q
generate_subject_and_object:Q wiki_qa=20360/20358 Decide_good_answer:M Is_This_True_:S automatic_system:S exercise:M
found_on_google:M wiki_qa=1040/1035 Direct_Answer_to_Question:Q Generate_Question_from_Topic:Q Jeopardy_style:Q
Topic_Prediction_Answer_Only:Q Topic_Prediction_Question_Only:Q Topic_Prediction_Question_and_Answer_Pair:Q
wiqa=29800/29808 does_the_supposed_perturbation_have_an_effect:Q effect_with_label_answer:Q
effect_with_string_answer:Q what_is_the_final_step_of_the_following_process:Q what_is_the_missing_first_step:Q
what_might_be_the_first_step_of_the_process:Q what_might_be_the_last_step_of_the_process:Q
which_of_the_following_is_the_supposed_perturbation:Q
"""

_WIKI_HOP = _table("""
choose_best_object_affirmative_1=43730/7569/7541 choose_best_object_affirmative_2=43730/7505/7522
choose_best_object_affirmative_3=43730/7350/7398 choose_best_object_interrogative_1=43730/7679/7713
choose_best_object_interrogative_2=43730/7766/7799 explain_relation=43730/8907/8778 generate_object=43730/8878/8767
generate_subject=43730/8778/8670 generate_subject_and_object=43730/8778/8670
""")


def _p3_subsets() -> Iterator[P3Subset]:
    dataset, zero_shot, five_shot = "", 0, 0
    for word in _P3.split():
        if "=" in word:
            dataset, counts = word.split("=")
            zero_shot, five_shot = (int(count) for count in counts.split("/"))
            continue
        template, kind = word.rsplit(":", 1)
        counted = Counts(zero_shot, zero_shot, zero_shot if kind == "M" else five_shot)
        if dataset == "wiki_hop_original":
            counted = _WIKI_HOP[template]
        yield P3Subset(
            name=f"{dataset}_{template}", dataset=dataset, template=template, type=P3_TYPES[kind], counts=counted
        )


P3_SUBSETS = {subset.name: subset for subset in _p3_subsets()}
