"""IFEval: every published row has its rules, and each rule tells what follows it from what does not."""

# ruff: noqa: RUF001 - samples of other scripts look like Latin letters

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flanjax.data.sources import BadRow
from flanjax.evaluation.benchmark import Prediction, evaluate
from flanjax.evaluation.ifeval import by_instruction, ifeval, loose_forms
from flanjax.evaluation.ifeval_rules import RULES, RuleError, check_arguments, follows, sentences
from flanjax.evaluation.languages import identify

LOREM = "Bells ring. Birds sing."
# type: arguments, responses that follow it, responses that do not
CASES = {
    "keywords:existence": ({"keywords": ["sun", "Moon"]}, ["SUNNY moon"], ["sun only", "s.n moon"]),
    "keywords:frequency": (
        {"keyword": "rain", "frequency": 2, "relation": "at least"},
        ["Rain and raining."],
        ["One rain."],
    ),
    "keywords:forbidden_words": ({"forbidden_words": ["cat", "dog"]}, ["concatenate dogma"], ["A Cat.", "my dog!"]),
    "keywords:letter_frequency": (
        {"letter": "!", "let_frequency": 2, "let_relation": "less than"},
        ["Oh!", "none"],
        ["Oh!!"],
    ),
    "language:response_language": (
        {"language": "de"},
        ["Der Hund ist nicht im Haus.", "12345"],
        ["The dog is not in the house."],
    ),
    "length_constraints:number_sentences": (
        {"num_sentences": 3, "relation": "less than"},
        [LOREM, "Mr. Smith met Dr. Jones. They left."],
        [LOREM + " It is spring!"],
    ),
    "length_constraints:number_paragraphs": (
        {"num_paragraphs": 2},
        ["a\n***\nb", "***\na *** b\n***"],
        ["a", "a\n***\n***\nb", "a\n***\nb\n***\nc"],
    ),
    "length_constraints:number_words": (
        {"num_words": 4, "relation": "at least"},
        [LOREM, "it's one-two"],
        ["Bells ring now."],
    ),
    "length_constraints:nth_paragraph_first_word": (
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Birds"},
        ["Bells ring.\n\nBirds sing.", "Bells ring.\n\n'birds, sing.\n\n"],
        ["Bells ring.\n\nThe birds sing.", "Birds sing.", "a\n\n\n\nBirds", "a\n\nBirds\n\nc"],
    ),
    "detectable_content:number_placeholders": ({"num_placeholders": 2}, ["Dear [name] of [place]"], ["Dear [name]"]),
    "detectable_content:postscript": (
        {"postscript_marker": "P.S."},
        ["Bye.\nP.S. Write.", "bye p. s. Write"],
        ["Bye.", "PS write"],
    ),
    "detectable_format:number_bullet_lists": (
        {"num_bullets": 2},
        ["* one\n* two", "- one\n  - two\nthree"],
        ["* one", "**bold**\n* one", "* a\n* b\n- c"],
    ),
    "detectable_format:constrained_response": ({}, ["My answer is yes.", "I say: My answer is maybe. "], ["Yes."]),
    "detectable_format:number_highlighted_sections": (
        {"num_highlights": 2},
        ["*one* and *two*", "*one* and **bold**"],
        ["*one*", "**bold**", "* * ** **", "*a\nb*"],
    ),
    "detectable_format:multiple_sections": (
        {"section_spliter": "SECTION", "num_sections": 2},
        ["SECTION 1\na\nSECTION 2\nb"],
        ["SECTION 1\na", "Section 1\nSection 2", "SECTION one SECTION two"],
    ),
    "detectable_format:json_format": ({}, ['{"a": [1]}', '```json\n{"a": 1}\n```'], ["a: 1", "```{```"]),
    "detectable_format:title": ({}, ["<<Spring>>\nBells."], ["<Spring>", "<< >>", "<<a\nb>>"]),
    "combination:two_responses": (
        {},
        ["one\n******\ntwo", "******one******two"],
        ["one", "a******a", "a******b******c"],
    ),
    "combination:repeat_prompt": ({"prompt_to_repeat": "Write a poem."}, ["write a poem. Roses"], ["Roses"]),
    "startend:end_checker": ({"end_phrase": "The end."}, ['"Bells. the END."', "The end. "], ["The end. Bye."]),
    "startend:quotation": ({}, ['"Bells"', ' "Bells" '], ['"', '"Bells', "'Bells'"]),
    "change_case:capital_word_frequency": (
        {"capital_frequency": 2, "capital_relation": "at least"},
        ["I SAW it", "WELL-KNOWN NASA."],
        ["I saw it", "WELL-KNOWN"],
    ),
    "change_case:english_capital": ({}, ["THE BELLS ARE LOUD."], ["The bells.", "DER HUND IST NICHT IM HAUS."]),
    "change_case:english_lowercase": ({}, ["the bells are loud."], ["The bells.", "der hund ist nicht im haus."]),
    "punctuation:no_comma": ({}, ["Bells; birds"], ["Bells, birds"]),
}


@pytest.mark.parametrize("instruction", RULES)
def test_each_rule_passes_what_follows_it_and_fails_what_does_not(instruction):
    arguments, followed, failed = CASES[instruction]
    assert {response: follows(instruction, response, arguments) for response in followed + failed} == {
        **dict.fromkeys(followed, True),
        **dict.fromkeys(failed, False),
    }
    assert not follows(instruction, " \n", arguments)


@settings(max_examples=50)
@given(response=st.text(st.sampled_from('aB, .!*#[]<>"\n-1{}é'), max_size=40))
def test_rules_take_any_response_and_loose_accepts_all_that_strict_does(response):
    for instruction, (arguments, _, _) in CASES.items():
        strict = follows(instruction, response, arguments)
        assert isinstance(strict, bool)
        assert strict <= any(follows(instruction, form, arguments) for form in loose_forms(response))


@pytest.fixture(scope="module")
def benchmark(test_data):
    return ifeval(test_data / "ifeval" / "input_data.jsonl")


def test_every_published_row_is_read_and_has_a_rule_for_each_instruction(benchmark):
    instances = list(benchmark.load())
    types = [name for instance in instances for name in instance.details["instructions"]]
    assert (len(instances), len(types), set(types)) == (541, 834, set(RULES))
    assert len({instance.id for instance in instances}) == 541
    assert [instance.task for instance in instances[:2]] == ["3 instructions", "1 instruction"]
    assert instances[1].category == "punctuation"


def test_prompt_and_instruction_accuracy(benchmark):
    instances = {instance.id: instance for instance in benchmark.load()}
    three = instances["1000"]  # no comma, three highlighted sections, at least 300 words
    text = "*one* *two* *three* " + "word " * 300
    scores = benchmark.score(three, Prediction(id="1000", text=text), text)
    assert scores == {
        "prompt_strict": (1.0,),
        "instruction_strict": (1.0, 1.0, 1.0),
        "prompt_loose": (1.0,),
        "instruction_loose": (1.0, 1.0, 1.0),
    }
    scores = benchmark.score(three, Prediction(id="1000"), "Sure, here it is:\n" + text)
    assert (scores["prompt_strict"], scores["instruction_strict"]) == ((0.0,), (0.0, 1.0, 1.0))
    assert (scores["prompt_loose"], scores["instruction_loose"]) == ((1.0,), (1.0, 1.0, 1.0))


def test_accuracies_over_all_prompts(benchmark):
    predictions = [Prediction(id=instance.id, text="Bells ring") for instance in benchmark.load()]
    result = evaluate(benchmark, predictions)
    strict = by_instruction(result, "strict")
    assert list(strict) == sorted(RULES)
    assert strict["punctuation:no_comma"] == 100
    assert strict["startend:quotation"] == 0
    assert 0 < result.average("prompt_strict") < result.average("instruction_strict") < 100
    assert result.average("prompt_loose") >= result.average("prompt_strict")
    types = [name for instance in benchmark.load() for name in instance.details["instructions"]]
    weighted = sum(types.count(name) * value for name, value in strict.items()) / len(types)
    assert weighted == pytest.approx(result.average("instruction_strict"))


def test_another_identifier_of_languages_may_be_given(benchmark, test_data):
    german = ifeval(test_data / "ifeval" / "input_data.jsonl", detect=lambda text: "de")
    instance = next(i for i in german.load() if i.details["arguments"][0].get("language") == "de")
    prediction = Prediction(id=instance.id, text="Bells ring")
    assert german.score(instance, prediction, prediction.text)["instruction_strict"][0] == 1.0
    assert benchmark.score(instance, prediction, prediction.text)["instruction_strict"][0] == 0.0


def test_loose_forms_are_the_eight_published_ones():
    assert loose_forms("*a*\nb\nc") == ["*a*\nb\nc", "b\nc", "*a*\nb", "b", "a\nb\nc", "b\nc", "a\nb", "b"]


def test_arguments_that_are_not_of_the_instruction_are_refused():
    assert check_arguments("punctuation:no_comma", {"num_words": None}) == {}
    with pytest.raises(RuleError, match=r"no instruction type 'punctuation:no_coma' \(did you mean"):
        check_arguments("punctuation:no_coma", {})
    with pytest.raises(RuleError, match="takes num_words, relation, not num_words"):
        check_arguments("length_constraints:number_words", {"num_words": 3})
    with pytest.raises(RuleError, match="relation must be one of less than, at least, not 'more'"):
        check_arguments("length_constraints:number_words", {"num_words": 3, "relation": "more"})
    with pytest.raises(RuleError, match="num_words must be int, not '3'"):
        check_arguments("length_constraints:number_words", {"num_words": "3", "relation": "at least"})
    with pytest.raises(RuleError, match="keywords must be list"):
        check_arguments("keywords:existence", {"keywords": ["a", 1]})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "instruction_id_list": ["a:b"], "kwargs": [{}]}, "no instruction type 'a:b'"),
        ({"prompt": "p", "instruction_id_list": ["punctuation:no_comma"], "kwargs": []}, "must be lists of as many"),
        ({"prompt": "p"}, "must be lists of as many"),
        ({"instruction_id_list": [], "kwargs": []}, "field 'prompt' is missing"),
    ],
)
def test_malformed_rows_are_named_with_their_place(tmp_path, row, message):
    file = tmp_path / "input_data.jsonl"
    file.write_text(json.dumps(row))
    with pytest.raises(BadRow, match=rf"input_data.jsonl:1: .*{message}"):
        list(ifeval(file).load())


def test_abbreviations_end_no_sentence():
    assert sentences("Dr. Smith lives in Washington D.C. now. He left at 3.30 p.m. today! Why?") == [
        "Dr. Smith lives in Washington D.C. now.",
        "He left at 3.30 p.m. today!",
        "Why?",
    ]


SAMPLES = {
    "en": "The children were not at home when we came.",
    "de": "Wir haben gestern ein neues Auto gekauft und sind damit gefahren.",
    "fr": "Nous avons acheté une voiture et elle est dans la rue.",
    "es": "Ayer compramos un coche nuevo y lo llevamos a la ciudad.",
    "it": "Ieri abbiamo comprato una macchina nuova che non è molto grande.",
    "pt": "Ontem nós não fomos à cidade, mas você também não foi.",
    "nl": "Wij hebben gisteren een nieuwe auto gekocht en die is van mij.",
    "fi": "Tämä on hyvin vanha talo, mutta se ei ole kaunis.",
    "vi": "Hôm nay tôi không đi học vì trời mưa rất nhiều.",
    "sw": "Mtoto huyu ni mzuri sana na watu wa mji wanampenda.",
    "ru": "Мы не были дома, когда они пришли, но это было хорошо.",
    "bg": "Това е къщата, която ще купим, но не сме сигурни.",
    "uk": "Ми не були вдома, коли вони прийшли, але це було добре.",
    "hi": "यह किताब बहुत अच्छी है और मैं इसे रोज पढ़ता हूँ।",
    "mr": "हे पुस्तक खूप चांगले आहे आणि मी ते रोज वाचतो.",
    "ne": "यो किताब धेरै राम्रो छ र म यो हरेक दिन पढ्छु।",
    "ar": "هذا الكتاب جميل جدا وأنا أقرأه في كل يوم.",
    "fa": "این کتاب بسیار خوب است و من آن را هر روز می‌خوانم.",
    "ur": "یہ کتاب بہت اچھی ہے اور میں اسے روز پڑھتا ہوں۔",
    "kn": "ಈ ಪುಸ್ತಕ ತುಂಬಾ ಚೆನ್ನಾಗಿದೆ.",
    "te": "ఈ పుస్తకం చాలా బాగుంది.",
    "ta": "இந்த புத்தகம் மிகவும் நல்லது.",
    "gu": "આ પુસ્તક ખૂબ સારું છે.",
    "pa": "ਇਹ ਕਿਤਾਬ ਬਹੁਤ ਚੰਗੀ ਹੈ।",
    "bn": "এই বইটি খুব ভালো।",
    "th": "หนังสือเล่มนี้ดีมาก",
    "ko": "이 책은 아주 좋습니다.",
    "ja": "この本はとても良いです。",
    "zh": "这本书非常好。",
}


def test_languages_are_told_apart():
    assert {language: identify(text) for language, text in SAMPLES.items()} == {name: name for name in SAMPLES}
    assert identify("12:30 !") is None


def test_every_language_that_a_published_prompt_asks_for_is_known(benchmark):
    asked = {a["language"] for i in benchmark.load() for a in i.details["arguments"] if "language" in a}
    assert asked <= SAMPLES.keys()
