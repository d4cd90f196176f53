"""What counts in the loss is what the assistant says and the token that ends its turn, whatever the template."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flanjax.data.chat import Chat
from flanjax.data.chat_templates import ChatTemplate, ChatTemplateError, find_template, named_templates
from flanjax.data.sources import BadRow
from flanjax.data.tasks import Turn
from flanjax.data.vocabularies import Vocabulary

# ChatML as models bring it, without marks.
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# It leaves the thoughts of all but the last reply out.
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + (m.content if loop.last else "
    "m.content.split('</think>')[-1]) + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Its cue opens a thought, and it leaves the thoughts of all replies out.
OPENING = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content.split('</think>')[-1] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)

CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>")
words = st.text(max_size=20).filter(lambda text: not any(token in text for token in CONTROL))


def chat(vocabulary, choice="chatml", text=None):
    if text is None:
        return Chat(find_template(choice, vocabulary), vocabulary)
    return Chat(ChatTemplate(name=choice, text=text, special_tokens=dict(vocabulary.special_tokens)), vocabulary)


def turns(*said, system=None):
    spoken = [Turn(role=("user", "assistant")[at % 2], text=text) for at, text in enumerate(said)]
    return [Turn(role="system", text=system), *spoken] if system else spoken


def messages(spoken):
    return [{"role": turn.role, "content": turn.text} for turn in spoken]


def learnt(example, vocabulary):
    """The texts of the runs of tokens that count, control tokens written out."""
    names = {id_: token for token, id_ in vocabulary.control_tokens.items()}
    pieces = example.pieces[len(example.inputs) :]
    runs, counts = [], 0
    for id_, piece, weight in zip(example.targets, pieces, example.weights, strict=True):
        if weight and not counts:
            runs.append("")
        if weight:
            runs[-1] += names.get(id_, piece)
        counts = weight
    return runs


def test_a_conversation_literally(bpe):
    (example,) = chat(bpe).examples(turns("Hi", "Yes", "Bye", "No", system="S"))
    names = {id_: token for token, id_ in bpe.control_tokens.items()}

    def shown(ids):
        return [names.get(id_) or bpe.decode([id_]) for id_ in ids]

    start, end = "<|im_start|>", "<|im_end|>"
    assert "".join(shown(example.inputs)) == f"{start}system\nS{end}\n{start}user\nHi{end}\n{start}assistant\n"
    assert example.prompt == "".join(shown(example.inputs))
    table = list(zip(shown(example.targets), example.weights, strict=True))
    joined = [(text, weight) for text, weight in table if weight or text in (start, end)]
    assert [text for text, weight in joined if weight] == [
        *shown(bpe.encode("Yes")),
        end,
        *shown(bpe.encode("No")),
        end,
    ]
    assert [text for text, weight in joined if not weight] == [start, end, start]
    assert table[-1] == ("\n", 0)
    assert (example.reply, "".join(example.pieces)) == ("Yes", example.prompt + "".join(shown(example.targets)))


# What of each format is learnt, of the replies "One." and "Two.".
LEARNT = {
    "alpaca": "One.{e}",
    "chatml": "One.<|im_end|>",
    "falcon": " One.{e}",
    "gemma": "One.<end_of_turn>",
    "guanaco": " One.{e}",
    "llama2": " One. {e}",
    "llama3": "One.<|eot_id|>",
    "mistral": " One.{e}",
    "openassistant": "One.{e}",
    "phi3": "One.<|end|>",
    "phi4": "One.<|im_end|>",
    "plain": "One.{e}",
    "tulu": "One.{e}",
    "vicuna": " One.{e}",
    "zephyr": "One.{e}",
}


@pytest.mark.parametrize("name", LEARNT)
@pytest.mark.parametrize("which", ["bpe", "llama"])
def test_what_each_format_learns(request, which, name):
    vocabulary = request.getfixturevalue(which)
    (example,) = chat(vocabulary, name).examples(turns("First?", "One.", "Second?", "Two.", system="Be brief."))
    first = LEARNT[name].format(e=vocabulary.special_tokens["eos_token"])
    assert learnt(example, vocabulary) == [first, first.replace("One", "Two")]
    assert LEARNT.keys() == named_templates().keys()


def test_a_named_format_begins_with_bos_where_every_text_does(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    pieces = ("<s>", "</s>", "?", "###", "Human", ":", "Hi", "Assistant", "Yes", "Bye", "No")
    tokenizer = Tokenizer(models.WordLevel({piece: id_ for id_, piece in enumerate(pieces)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(names))
    #        ### Human :  Hi ### Assistant :  Yes </s> ### Human :  Bye ### Assistant :  No </s>
    table = [3, 4, 5, 6, 3, 7, 5, 8, 1, 3, 4, 5, 9, 3, 7, 5, 10, 1]
    learnt = [0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 1, 1]
    for begins in (False, True):
        if begins:
            tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        vocabulary = Vocabulary.from_file(tmp_path)
        one, bos = chat(vocabulary, "guanaco"), [0] * begins
        (example,) = one.examples(turns("Hi", "Yes", "Bye", "No"))
        assert [*example.inputs, *example.targets] == [*bos, *table]
        assert [*[0] * len(example.inputs), *example.weights] == [*bos, *learnt]
        assert one.prompt(messages(turns("Hi"))) == [*bos, *table[:7]]
        assert one.check() == []
        assert one.template.text == "{{- bos_token }}" * begins + named_templates()["guanaco"]


@pytest.mark.parametrize("name", LEARNT)
def test_a_named_format_is_tokenised_as_any_text_with_bos_once(llama, tmp_path, name):
    from transformers import AutoTokenizer

    llama.save(tmp_path)
    automatic, one, spoken = AutoTokenizer.from_pretrained(tmp_path), chat(llama, name), turns("a", "One.")
    (example,) = one.examples(spoken)
    ids = [*example.inputs, *example.targets]
    assert ids.count(llama.bos_id) == 1
    assert ids == automatic(one.template.render(messages(spoken)).removeprefix("<s>")).input_ids
    assert ids == automatic.apply_chat_template(messages(spoken), chat_template=one.template.text).input_ids


def test_tokens_and_mask_are_those_of_transformers(bpe, bpe_folder, test_data):
    from transformers import AutoTokenizer

    automatic = AutoTokenizer.from_pretrained(bpe_folder)
    records = json.loads((test_data / "fastchat" / "dummy_conversation.json").read_text())[:30]
    for name in ("chatml", "zephyr", "llama2"):
        one = chat(bpe, name)
        for record in records:
            spoken = turns(*(turn["value"] for turn in record["conversations"]))
            (example,) = one.examples(spoken)
            expected = automatic.apply_chat_template(
                messages(spoken), chat_template=one.template.text, return_dict=True, return_assistant_tokens_mask=True
            )
            assert [*example.inputs, *example.targets] == expected["input_ids"]
            assert [*[0] * len(example.inputs), *example.weights] == expected["assistant_masks"]


@settings(max_examples=80)
@given(said=st.lists(words, min_size=2, max_size=7), system=st.sampled_from([None, "Be brief."]))
def test_marks_and_beginnings_tell_the_same_words(bpe, said, system):
    spoken = turns(*said, system=system)
    marked, plain = chat(bpe).examples(spoken), chat(bpe, "mine", CHATML).examples(spoken)
    assert plain == marked
    replies = [text for text in said[1::2] if text.strip()]
    assert len(marked) == bool(replies)
    for example in marked:
        assert learnt(example, bpe) == [f"{text}<|im_end|>" for text in replies]
        last = max(at for at, turn in enumerate(spoken) if turn.role == "assistant" and turn.text.strip())
        assert "".join(example.pieces) == find_template("chatml", bpe).render(messages(spoken[: last + 1]))
        assert example.weights[0] == 1


@settings(max_examples=60)
@given(said=st.lists(words, min_size=2, max_size=6))
def test_the_prompt_of_an_answer_is_how_its_example_begins(bpe, said):
    spoken = turns(*said)
    for example in chat(bpe).examples(spoken):
        before = next(at for at, turn in enumerate(spoken) if turn.role == "assistant" and turn.text.strip())
        assert tuple(chat(bpe).prompt(messages(spoken[:before]))) == example.inputs


def test_replies_that_were_only_there_to_be_answered_are_not_learnt(bpe):
    first = Turn(role="assistant", text="One.", learnt=False)
    (example,) = chat(bpe).examples([Turn(role="user", text="a"), first, *turns("b", "Two.", "and then")])
    assert learnt(example, bpe) == ["Two.<|im_end|>"]
    assert "One.<|im_end|>" in example.prompt
    assert not example.prompt.endswith("and then")
    assert chat(bpe).examples([Turn(role="user", text="a"), first]) == []
    assert chat(bpe).examples(turns("a", " \n")) == []


def test_earlier_turns_that_are_rewritten_give_an_example_for_each_reply(bpe):
    spoken = turns("a", "<think>x</think>One.", "b", "<think>y</think>Two.")
    examples = chat(bpe, "thinking", THINKING).examples(spoken)
    assert [learnt(example, bpe) for example in examples] == [
        ["<think>x</think>One.<|im_end|>"],
        ["<think>y</think>Two.<|im_end|>"],
    ]
    assert "assistant\nOne.<|im_end|>" in examples[1].prompt
    assert [example.reply for example in examples] == [turn.text for turn in spoken if turn.role == "assistant"]


def test_a_cue_that_is_not_how_a_reply_begins_is_refused(bpe):
    text = CHATML.replace("assistant\n' }}", "assistant\n<think>\n' }}")
    with pytest.raises(ChatTemplateError, match=r"(?s)'cue': a reply does not begin with the cue .*mark them with"):
        chat(bpe, "cue", text).examples(turns("a", "b"))
    text = "{% generation %}{{ messages[1].content }}{% endgeneration %}"
    with pytest.raises(ChatTemplateError, match=r"'marks' marks 1 replies of 2"):
        chat(bpe, "marks", text).examples(turns("a", "b", "c", "d"))


@pytest.mark.parametrize("token", ["<|im_end|>", "<|endoftext|>", "</s>"])
def test_a_token_of_control_in_what_is_said_is_refused(bpe, token):
    for spoken in (turns(f"say {token}", "no"), turns("say it", f"it is {token}"), turns("a", "b", system=token)):
        with pytest.raises(BadRow, match=r"here:3: turn \d, of \w+, has .* is read as a token of control"):
            chat(bpe).examples(spoken, "here:3")
    with pytest.raises(BadRow, match=r"'<\|user\|>' in its text"):  # which zephyr writes, in pieces
        chat(bpe, "zephyr").examples(turns("say <|user|>", "no"))
    with pytest.raises(BadRow, match="is read as a token of control"):
        chat(bpe).prompt([{"role": "user", "content": f"say {token}"}])
    almost = token.replace("|", "").replace("/", "-")
    assert len(chat(bpe).examples(turns(f"say {almost}", almost))) == 1


def test_a_conversation_that_a_format_refuses_is_a_bad_row_with_its_place(bpe):
    tool = [Turn(role="user", text="a"), Turn(role="tool", text="b"), Turn(role="assistant", text="c")]
    with pytest.raises(BadRow, match=r"here:3: chat template 'mistral', line \d+: .*turn 2 is of tool"):
        chat(bpe, "mistral").examples(tool, "here:3")
    assert learnt(chat(bpe).examples(tool)[0], bpe) == ["c<|im_end|>"]


def test_for_an_encoder_each_reply_is_an_example(t5_spiece):
    vocabulary = Vocabulary.from_file(t5_spiece)
    examples = chat(vocabulary, "vicuna").examples(turns("a", "One.", "b", "Two."))
    assert [example.reply for example in examples] == ["One.", "Two."]
    for example in examples:
        assert example.inputs == (*vocabulary.encode(example.prompt), vocabulary.eos_id)
        assert example.targets == (*vocabulary.encode(example.reply), vocabulary.eos_id)
        assert set(example.weights) == {1}
    assert examples[1].prompt.endswith("USER: a ASSISTANT: One.USER: b ASSISTANT:")


def test_what_ends_an_answer(bpe, llama):
    assert chat(bpe).end_ids == (bpe.eos_id,)
    assert chat(bpe, "zephyr").end_ids == (bpe.eos_id,)
    other = CHATML.replace("<|im_end|>", "<|endoftext|>")
    assert chat(bpe, "other", other).end_ids == (bpe.control_tokens["<|endoftext|>"], bpe.eos_id)
    assert chat(llama).end_ids == (llama.eos_id,)


def test_a_cue_that_no_reply_begins_with_can_be_answered_and_not_learnt(bpe):
    opening = chat(bpe, "opening", OPENING)
    asked = opening.prompt([{"role": "user", "content": "Hi"}])
    assert bpe.decode(asked[asked.index(bpe.eos_id) + 1 :]).endswith("assistant\n<think>\n")
    assert (opening.turn_end, opening.end_ids) == (None, (bpe.eos_id,))
    for refuse in (opening.check, lambda: opening.examples(turns("a", "b"))):
        with pytest.raises(ChatTemplateError, match="a reply does not begin with the cue for it"):
            refuse()


def test_what_does_not_fit_is_told(bpe, llama):
    assert chat(bpe).check() == []
    assert [line.split(": ", 1)[1] for line in chat(llama, "mine", CHATML).check()] == [
        "the tokenizer puts BOS before every text, the template does not: chats begin without it",
        "it writes <|im_start|>, <|im_end|>, which the tokenizer reads as text, not as tokens of control",
        "no token of control ends a reply: the model does not learn where to stop",
    ]
    assert chat(llama, "llama2").check() == []
    with pytest.raises(ChatTemplateError, match="'twice' begins every text with BOS twice, <s><s>"):
        chat(llama, "twice", "{{ bos_token }}" + named_templates()["llama2"]).check()
    with pytest.raises(ChatTemplateError, match=r"'broken', line 1: 'missing' is undefined"):
        chat(bpe, "broken", "{{ missing.x }}").check()
    (line,) = chat(bpe, "final", CHATML + "{% if not add_generation_prompt %}{{ pad_token }}{% endif %}").check()
    assert line.endswith("it writes earlier turns in another way when later ones follow: each reply is an example")
    assert chat(bpe, "sep", CHATML + "{{ sep_token }}{{ cls_token }}").check() == [
        "chat template 'sep': it writes cls_token, sep_token, which the tokenizer does not have: nothing stands there"
    ]


def test_another_template_than_the_tokenizers_own_is_told(bpe_folder, tmp_path):
    import shutil

    folder = shutil.copytree(bpe_folder, tmp_path / "own")
    (folder / "chat_template.jinja").write_text(CHATML)
    vocabulary = Vocabulary.from_file(folder)
    assert chat(vocabulary, "tokenizer").check() == []
    assert chat(vocabulary, "tokenizer").examples(turns("a", "b")) == chat(vocabulary).examples(turns("a", "b"))
    assert ["template of its own" in line for line in chat(vocabulary, "zephyr").check()][-1:] == [True]
