"""Tokens as text: together they are the text of all, whatever bytes a character is in."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flanjax.data.byte_vocabulary import Bytes
from flanjax.data.vocabularies import Vocabulary
from flanjax.generation.decoding import DecodingConfig
from flanjax.generation.engine import Piece, TokenLogprob
from flanjax.generation.stopping import continuing, whole_characters
from flanjax.serving.answers import ChatWriter, CompletionWriter, Speller
from flanjax.serving.requests import Job

TEXTS = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\N{REPLACEMENT CHARACTER}"))


@pytest.fixture(params=["bytes", "bpe", "llama", "t5"], scope="module")
def vocabulary(request, bpe_folder, llama_folder, t5_spiece):
    found = {"bytes": Bytes(), "bpe": bpe_folder, "llama": llama_folder, "t5": t5_spiece}[request.param]
    return found if isinstance(found, Bytes) else Vocabulary.from_file(found)


def test_the_texts_of_tokens_are_the_text(vocabulary):
    @given(st.lists(TEXTS, max_size=8).map(" ".join))
    def check(text):
        ids = vocabulary.encode(text)
        speller = Speller(vocabulary.decode, {})
        spelled = [speller.spell(token, TokenLogprob(-1.0, ((token, -1.0),))) for token in ids]
        whole = vocabulary.decode(ids)
        assert "".join(token.text for token in spelled) == whole.rstrip("\N{REPLACEMENT CHARACTER}")
        offsets = [token.offset for token in spelled]
        assert all(whole[at:].startswith(token.text) for at, token in zip(offsets, spelled, strict=True))
        for token in spelled:
            assert token.top[0][0].rstrip("\N{REPLACEMENT CHARACTER}") == token.text

    check()


@pytest.mark.parametrize("name", ["stories", "smollm2", "llama_folder"])
def test_a_text_that_goes_on_is_the_rest_of_the_whole(request, name):
    vocabulary = Vocabulary.from_file(request.getfixturevalue(name))

    @given(st.lists(TEXTS, max_size=8).map(" ".join), st.data())
    @settings(deadline=None)
    def check(text, data):
        ids = vocabulary.encode(text)
        cut = data.draw(st.integers(0, len(ids)))
        before = whole_characters(vocabulary.decode(ids[:cut]))
        assert before + continuing(vocabulary.decode, ids[:cut])(ids[cut:]) == vocabulary.decode(ids)

    check()


def test_tokens_of_control_have_names_and_no_text():
    speller = Speller(Bytes().decode, {1: "</s>"})
    spelled = [
        speller.spell(token, TokenLogprob(-1.0, ())) for token in (*Bytes().encode("é"), 1, *Bytes().encode("!"))
    ]
    assert [token.text for token in spelled] == ["", "é", "</s>", "!"]
    assert [token.offset for token in spelled] == [0, 0, 1, 1]


@pytest.mark.parametrize("writer", [CompletionWriter, ChatWriter])
def test_numbers_that_json_does_not_have(writer):
    job = Job(model="m", inputs=((5,),), decoding=DecodingConfig(), logprobs=2, is_chat=writer is ChatWriter)
    told = (TokenLogprob(-math.inf, ((5, math.nan), (6, -math.inf))), TokenLogprob(math.nan, ()))
    piece = Piece(tokens=tuple(Bytes().encode("ab")), text="ab", logprobs=told, finish="stop")
    whole = writer(job, decode=Bytes().decode, names={}).whole([piece])
    assert json.loads(json.dumps(whole, allow_nan=False)) == whole
    assert whole["usage"] == {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
