"""A template renders to the text that transformers gives; what it must not do it cannot."""

import pickle
import tracemalloc
from datetime import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flanjax.data.chat_templates import ChatTemplate, ChatTemplateError, find_template, named_templates
from flanjax.data.vocabularies import Vocabulary

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
SYSTEM = {"role": "system", "content": " Be brief. "}
TURNS = [
    {"role": "user", "content": "Hi\n"},
    {"role": "assistant", "content": " Hello! "},
    {"role": "user", "content": "{{ 1 + 1 }} <b> é 日本"},
    {"role": "assistant", "content": ""},
]
TOOL = [{"role": "tool", "content": '{"price": 3}'}, {"role": "assistant", "content": "It is 3."}]

# The rendered text of SYSTEM and TURNS, and what of it the assistant writes.
TEXTS = {
    "alpaca": (
        "Be brief.\n\n### Instruction:\nHi\n\n### Response:\n[Hello!</s>]\n\n"
        "### Instruction:\n{{ 1 + 1 }} <b> é 日本\n\n### Response:\n[</s>]\n\n"
    ),
    "chatml": (
        "<|im_start|>system\n Be brief. <|im_end|>\n<|im_start|>user\nHi\n<|im_end|>\n"
        "<|im_start|>assistant\n[ Hello! <|im_end|>]\n<|im_start|>user\n{{ 1 + 1 }} <b> é 日本<|im_end|>\n"
        "<|im_start|>assistant\n[<|im_end|>]\n"
    ),
    "falcon": ("System: Be brief.\nUser: Hi\nFalcon:[ Hello!</s>]\nUser: {{ 1 + 1 }} <b> é 日本\nFalcon:[ </s>]\n"),
    "gemma": (
        "<s><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\n[Hello!<end_of_turn>]\n"
        "<start_of_turn>user\n{{ 1 + 1 }} <b> é 日本<end_of_turn>\n<start_of_turn>model\n[<end_of_turn>]\n"
    ),
    "guanaco": (
        "Be brief.\n### Human: Hi\n### Assistant:[ Hello!</s>]\n### Human: {{ 1 + 1 }} <b> é 日本\n"
        "### Assistant:[ </s>]\n"
    ),
    "llama2": (
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST][ Hello! </s>]<s>[INST] {{ 1 + 1 }} <b> é 日本 [/INST]"
        "[  </s>]"
    ),
    "llama3": (
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[Hello!<|eot_id|>]"
        "<|start_header_id|>user<|end_header_id|>\n\n{{ 1 + 1 }} <b> é 日本<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[<|eot_id|>]"
    ),
    "mistral": "<s>[INST] Be brief.\n\nHi [/INST][ Hello!</s>][INST] {{ 1 + 1 }} <b> é 日本 [/INST][ </s>]",
    "openassistant": (
        "<|system|> Be brief. </s><|prompter|>Hi\n</s><|assistant|>[ Hello! </s>]"
        "<|prompter|>{{ 1 + 1 }} <b> é 日本</s><|assistant|>[</s>]"
    ),
    "phi3": (
        "<|system|>\n Be brief. <|end|>\n<|user|>\nHi\n<|end|>\n<|assistant|>\n[ Hello! <|end|>]\n"
        "<|user|>\n{{ 1 + 1 }} <b> é 日本<|end|>\n<|assistant|>\n[<|end|>]\n"
    ),
    "phi4": (
        "<|im_start|>system<|im_sep|> Be brief. <|im_end|><|im_start|>user<|im_sep|>Hi\n<|im_end|>"
        "<|im_start|>assistant<|im_sep|>[ Hello! <|im_end|>]<|im_start|>user<|im_sep|>{{ 1 + 1 }} <b> é 日本<|im_end|>"
        "<|im_start|>assistant<|im_sep|>[<|im_end|>]"
    ),
    "plain": "<s>Be brief.\nHi\n[Hello!</s>]\n{{ 1 + 1 }} <b> é 日本\n[</s>]\n",
    "tulu": (
        "<|system|>\n Be brief. \n<|user|>\nHi\n\n<|assistant|>\n[ Hello! </s>]\n"
        "<|user|>\n{{ 1 + 1 }} <b> é 日本\n<|assistant|>\n[</s>]\n"
    ),
    "vicuna": "Be brief. USER: Hi ASSISTANT:[ Hello!</s>]USER: {{ 1 + 1 }} <b> é 日本 ASSISTANT:[ </s>]",
    "zephyr": (
        "<|system|>\n Be brief. </s>\n<|user|>\nHi\n</s>\n<|assistant|>\n[ Hello! </s>]\n"
        "<|user|>\n{{ 1 + 1 }} <b> é 日本</s>\n<|assistant|>\n[</s>]\n"
    ),
}

# As models bring them, written here: without marks, with tools, with thoughts of earlier replies left out, with a date.
FOREIGN = {
    "tools": (
        "{% for message in messages %}{% if message.role == 'tool' %}<tool>{{ message['content'] }}</tool>\n"
        "{% elif not loop.first and loop.previtem.role == message.role %}{{ raise_exception('Twice ' + message.role) }}"
        "{% else %}{{ '<|' + message.role + '|>' }}\n{{ message.content | trim | tojson }}{{ eos_token }}\n"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    ),
    "thinking": (
        "{%- set ns = namespace(last=-1) %}{%- for m in messages %}{%- if m.role == 'user' %}"
        "{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}"
        "{%- for m in messages %}\n  {%- set text = m.content.split('</think>')[-1].lstrip('\\n') "
        "if loop.index0 < ns.last else m.content %}\n"
        "<|im_start|>{{ m.role }}\n{{ text }}<|im_end|>\n{% endfor %}"
        "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "dated": (
        "{{- bos_token }}{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}\n"
        "{% for m in messages %}{% if loop.index > 20 %}{% break %}{% endif %}{{ m.role[:1] | upper }}: "
        "{{ m.content }}\n"
        "{% endfor %}{% if tools is not none or documents %}no{% endif %}"
    ),
}


@pytest.fixture(scope="module")
def automatic(bpe_folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(bpe_folder, **TOKENS)


def template(name, text=None, **options):
    return ChatTemplate(name=name, text=text or named_templates()[name], special_tokens=TOKENS, **options)


def outcome(render):
    """What a rendering gives, and how it is refused."""
    try:
        return render(), ""
    except Exception as error:
        return None, str(error)


def marked(name, messages):
    text, spans = template(name).render_marked(messages)
    for start, end in reversed(spans):
        text = f"{text[:start]}[{text[start:end]}]{text[end:]}"
    return text


def test_every_named_template_is_in_the_table():
    assert named_templates().keys() == TEXTS.keys()


@pytest.mark.parametrize("name", TEXTS)
def test_the_text_of_a_conversation_and_what_the_assistant_writes(name):
    assert marked(name, [SYSTEM, *TURNS]) == TEXTS[name]
    without = template(name).render(TURNS)
    assert "Be brief." not in without
    assert without.count("Hello!") == 1


@pytest.mark.parametrize("name", TEXTS)
def test_the_cue_is_what_stands_before_a_reply(name):
    text, spans = template(name).render_marked([SYSTEM, *TURNS])
    for number, (start, _) in enumerate(spans):
        before = [SYSTEM, *TURNS][: 2 * number + 2]
        assert template(name).render(before, add_generation_prompt=True) == text[:start]


@pytest.mark.parametrize("name", [*TEXTS, *FOREIGN])
def test_transformers_renders_the_same_text(name, automatic, monkeypatch):
    now = datetime(2025, 3, 9)
    ours = template(name, FOREIGN.get(name), day=now)
    import transformers.utils.chat_template_utils as theirs

    class Clock(datetime):
        @classmethod
        def now(cls):
            return now

    monkeypatch.setattr(theirs, "datetime", Clock)
    for messages in ([SYSTEM, *TURNS], TURNS, TURNS[:3], TURNS[:1], [SYSTEM, *TURNS[:3], *TOOL]):
        for cue in (False, True):
            arguments = {"chat_template": ours.text, "tokenize": False, "add_generation_prompt": cue}
            expected, refusal = outcome(lambda: automatic.apply_chat_template(messages, **arguments))  # noqa: B023
            text, reason = outcome(lambda: ours.render(messages, add_generation_prompt=cue))  # noqa: B023
            assert text == expected
            assert refusal in reason
            assert bool(reason) == bool(refusal)


@settings(max_examples=40)
@given(
    st.lists(st.text(max_size=12).filter(lambda text: "</s>" not in text), min_size=2, max_size=5),
    st.sampled_from(sorted(TEXTS)),
)
def test_marks_are_found_whatever_is_said(said, name):
    messages = [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(said)]
    text, spans = template(name).render_marked(messages)
    assert text == template(name).render(messages)
    assert len(spans) == len(said) // 2
    for (start, end), reply in zip(spans, said[1::2], strict=True):
        assert reply.strip() in text[start:end]
        assert not text[end:].startswith("</s>")


def test_a_turn_that_a_format_has_no_place_for_is_refused_by_name():
    with pytest.raises(ChatTemplateError, match=r"'llama2', line \d+: .*turn 3 is of tool"):
        template("llama2").render([*TURNS[:2], TOOL[0]])
    with pytest.raises(ChatTemplateError, match=r"'zephyr', line \d+: zephyr has no turn of tool"):
        template("zephyr").render(TOOL)
    assert "<|im_start|>tool\n" in template("chatml").render(TOOL)
    assert "<|start_header_id|>ipython<|end_header_id|>" in template("llama3").render(TOOL)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{% for m in messages %}\n{{ m }", r"line 2: unexpected '}'"),
        ("{% for m in messages %}", "line 1: Unexpected end of template"),
        ("\n\n{{ messages[0].content.nothing.more }}", "line 3: .*no attribute 'nothing'"),
        ("a\n{{ raise_exception('Only one turn') }}", "line 2: Only one turn"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ cycler.__init__.__globals__.os.system('true') }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "line 1: .*does not seem"),
        (
            "{% for a in range(99999) recursive %}{{ loop(range(99999)) if loop.depth0 < 1 }}{% endfor %}",
            "does not seem",
        ),
        ("{% for a in range(10**9) %}{% endfor %}", "line 1: .*Range too big"),
        ("{% macro f() %}{{ f() }}{% endmacro %}\n{{ f() }}", "calls itself without end"),
        ("{% set n = namespace(x='x') %}{% for a in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}", "more than"),
        ("{% set n = namespace(x='x') %}{% for a in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}", "more than"),
        ("{{ 'x' * 10 ** 10 }}", "too long"),
        ("{{ 'x'.ljust(10 ** 8) }}", "too long"),
        ("{{ 'x'.zfill(10 ** 8) }}", "too long"),
        ("{{ 'x' | center(10 ** 8) }}", "too long"),
        ("{{ ('%100000000d' | format(1)) | length }}", "too long"),
        ("{{ '%100000000d' % 1 }}", "too long"),
        ("{{ '%(a)100000000d' % {'a': 1} }}", "too long"),
        ("{{ '%*d' % (10 ** 8, 1) }}", "depends on a value"),
        ("{{ '%.100000000f' % 1 }}", "too long"),
        ("{{ '{:100000000}'.format(1) }}", "too long"),
        ("{{ '{:{}}'.format(1, 10 ** 8) }}", "depends on a value"),
        ("{{ strftime_now('%100000000d') }}", "too long"),
        ("{{ 'a\nb' | indent(10 ** 8) }}", "too long"),
        ("{{ [1] | tojson(indent=10 ** 8) }}", "indent of more than 64"),
        ("{{ 1 | round(10 ** 9, 'floor') }}", "more than 64 decimals"),
        ("{{ ('x' * 10000).replace('x', 'y' * 10000) }}", "too long"),
        ("{{ ('x' * 10000) | replace('x', 'y' * 10000) }}", "too long"),
        ("{{ ('y' * 10000).join('x' * 10000) }}", "too long"),
        ("{{ (['y' * 10000] * 10000) | join }}", "too long"),
        ("{{ ('x' * 10000) | list | join('y' * 10000) }}", "too long"),
        ("{{ '{0}{0}{0}'.format('x' * 10000000) }}", "too long"),
        ("{{ '%(a)s%(a)s%(a)s' % {'a': 'x' * 10000000} }}", "too long"),
        ("{% set a = ['x'] * 1000 %}{% set b = [a] * 1000 %}{{ [b] * 1000 }}", "too long"),
        ("{% set a = ['x'] * 1000 %}{% set b = [a] * 1000 %}{{ ([b] * 1000) | tojson | length }}", "too long"),
        ("{% set a = 'x' * 10000000 %}{{ a ~ a ~ a }}", "too long"),
        ("{% set a = 'x' * 10000000 %}{{ a }}{{ a }}", "too long"),
        ("{% macro m() %}{{ 'x' * 10000000 }}{{ 'x' * 10000000 }}{% endmacro %}{{ m() | length }}", "too long"),
        (
            "{% set n = namespace(l=[]) %}{% for a in range(99999) %}{% set n.l = n.l + ['x' * 9999999 ~ a] %}"
            "{% endfor %}",
            "on its way",
        ),
        ("{% set n = namespace(x=9) %}{% for a in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}", "4,096 bits"),
        ("{{ ('f' * 10000000) | int(base=16) }}", "4,096 bits"),
        ("{{ (5).to_bytes(10 ** 8, 'big') }}", "unsafe"),
        ("{{ 'x'.encode().ljust(10 ** 8) }}", "unsafe"),
        ("{{ '\t'.expandtabs(10 ** 8) }}", "unsafe"),
        ("{{ lipsum(10 ** 9) }}", "'lipsum' is undefined"),
        ("{{ [1] | batch(10 ** 8, 0) | list }}", "line 1: No filter named 'batch'"),
        ("{{ 9 ** 99999 }}", "too large a power"),
        ("{% include '/etc/passwd' %}", "line 1: "),
    ],
)
def test_what_a_template_must_not_do(text, message):
    with pytest.raises(ChatTemplateError, match=f"(?s)chat template 'bad'.*{message}"):
        template("bad", text).render(TURNS)


def test_what_is_refused_was_not_made():
    tracemalloc.start()
    constants = "{{ 'x' | center(9 * 10**6) | length }}" * 20
    for text in (
        constants + "{{ 1 | center(10 ** 8) }}",
        "{{ 'x'.ljust(4 * 10**8) }}",
        "{{ ('%400000000d' | format(1)) | length }}",
    ):
        with pytest.raises(ChatTemplateError, match="too long"):
            template("bad", text).render(TURNS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * 10**7


@pytest.mark.parametrize(
    "text",
    [
        "{{ '%-6s|%05.1f|%d%%' % ('a', 2.25, 7) }}{{ '%(b)s' % {'b': 3} }}{{ '%s' | format('x') }}",
        "{{ '{{\"a\": {0!r:>8}, {b}}}'.format('x', b=messages | length) }}",
        "{{ 'a-b'.replace('-', '+').ljust(6, '.').rjust(8).center(10).zfill(12) }}{{ 'ab' | replace('a', 'c') }}",
        "{{ ', '.join(messages | map(attribute='role')) }}{{ messages | map(attribute='content') | join('\n') }}",
        "{{ 'a\nb' | indent(2, first=true) }}{{ 'a' | center(5) }}{{ [3, 1] | sort | sum }}",
        "{{ [[1], [2]] | sum(start=[]) }}",
        "{{ messages | tojson(indent=2) }}{{ messages }}{{ {'a': 1} | items | list }}{{ 2 ** 60 % 7 + 3 * 4 - 1 }}",
        "{% for a, b in {'x': 1}.items() %}{{ a ~ b ~ none ~ missing }}{% endfor %}",
        "{{ 'abc'[1:] ~ 'abc'[::-1] }}{{ 2.5 | round }}",
        "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}",
        "{{ 'x' * 3 ~ [1] * 2 }}{{ 'a b' | title }}",
    ],
)
def test_what_a_template_may_do_is_as_in_transformers(text, automatic):
    expected = automatic.apply_chat_template(TURNS, chat_template=text, tokenize=False)
    assert template("good", text).render(TURNS) == expected


def test_a_huge_template_is_refused():
    with pytest.raises(ChatTemplateError, match="has 2,000,000 characters"):
        template("huge", "x" * 2_000_000)


def test_words_that_are_changed_after_they_were_marked_cannot_be_told():
    text = "{% set said %}{% generation %}{{ messages[1].content }}{% endgeneration %}{% endset %}{{ said | length }}"
    with pytest.raises(ChatTemplateError, match=r"\{% generation %\} block is changed"):
        template("twisted", text).render_marked(TURNS)


def test_the_day_is_fixed_and_a_template_travels_to_other_processes():
    dated = ChatTemplate(name="dated", text="{{ strftime_now('%Y-%m-%d') }}")
    assert dated.render([]) == "2024-07-26"
    again = pickle.loads(pickle.dumps(template("chatml")))
    assert again == template("chatml")
    assert again.identity == template("chatml").identity != dated.identity
    assert again.identity != ChatTemplate(name="chatml", text=again.text).identity


def test_a_template_is_asked_for_by_name_by_file_or_as_the_tokenizers_own(bpe_folder, tmp_path):
    vocabulary = Vocabulary.from_file(bpe_folder)
    assert find_template(None, vocabulary) is None
    assert find_template("chatml", vocabulary).text == named_templates()["chatml"]
    assert find_template("chatml", vocabulary).special_tokens["eos_token"] == "<|im_end|>"
    (tmp_path / "mine.jinja").write_text("{{ messages[0].content }}")
    assert find_template(str(tmp_path / "mine.jinja"), vocabulary).render(TURNS) == "Hi\n"
    with pytest.raises(ChatTemplateError, match=r"has no chat template of its own; the named ones are alpaca, chatml"):
        find_template("tokenizer", vocabulary)
    with pytest.raises(ChatTemplateError, match=r"CHAT_TEMPLATE='chatm'.*'chatml'"):
        find_template("chatm", vocabulary)
