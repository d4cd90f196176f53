"""The tokenizer of a GGUF file: the tokens that it was made of, opened by transformers with template and specials."""

import json
import struct

import numpy as np
import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, pre_tokenizers, trainers
from tokenizers.models import BPE

from flanjax.data.vocabularies import Vocabulary, VocabularyError
from flanjax.interchange.folders import ModelFolderError
from flanjax.interchange.gguf_file import read_gguf_file
from flanjax.interchange.gguf_tokenizer import build_gguf_tokenizer, gguf_vocabulary, special_ids, tokenizer_files

TEXTS = [
    "The quick brown fox doesn't jump over 12,345 lazy dogs; they'll say: WHY? ¿Por qué? 为什么 ??",
    "def main(argument):\n    return argument ** 2  # squares\n\n\t\tif x != y: pass",
    "numbers 7 42 365 2026 and spaces   in    runs, it's fine, we've seen it: naïve café Ωmega",
] * 3
TEMPLATE = "{% for m in messages %}{{ '<|start|>' + m['role'] + ':' + m['content'] + '<|end|>' }}{% endfor %}"
MARKS = ["<|start|>", "<|end|>"]
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
some_text = st.one_of(st.text(max_size=30), st.text("ab cd'TLst 19\n\t.é<|>", max_size=30), st.sampled_from(TEXTS))


def trained(words):
    """A byte-level BPE that a library trained: its tokens and merges, without a word about how text is cut."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = words
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=450, initial_alphabet=alphabet))
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


@pytest.fixture(scope="module")
def byte_level():
    return trained(pre_tokenizers.ByteLevel(add_prefix_space=False))


def byte_level_metadata(byte_level, pre, **more):
    vocab, merges = byte_level
    tokens = [*sorted(vocab, key=vocab.get), *MARKS, "<|more|>"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [NORMAL] * len(vocab) + [CONTROL, CONTROL, USER_DEFINED],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in merges],
        "tokenizer.ggml.bos_token_id": len(vocab),
        "tokenizer.ggml.eos_token_id": len(vocab) + 1,
        "tokenizer.ggml.padding_token_id": len(vocab) + 1,
        "tokenizer.chat_template": TEMPLATE,
        **{f"tokenizer.ggml.{key}": value for key, value in more.items()},
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory, write_gguf, byte_level):
    """A function that builds the tokenizer of a file with this rule."""
    folder = tmp_path_factory.mktemp("built")
    made = {}

    def build(pre, **more):
        if (pre, *more) not in made:
            path = write_gguf(folder / f"{len(made)}.gguf", "llama", byte_level_metadata(byte_level, pre, **more))
            made[(pre, *more)] = build_gguf_tokenizer(read_gguf_file(path))
        return made[(pre, *more)]

    return build


@pytest.fixture(scope="module")
def theirs(byte_level):
    """What transformers itself makes of the same tokens and merges."""
    from transformers import GPT2Tokenizer, Qwen2Tokenizer
    from transformers.convert_slow_tokenizer import TikTokenConverter

    vocab, merges = byte_level
    llama3 = Tokenizer(BPE(vocab, merges, ignore_merges=True))
    split = pre_tokenizers.Split(Regex(TikTokenConverter().pattern), "isolated")
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    llama3.pre_tokenizer = pre_tokenizers.Sequence([split, last])
    # SmolLM, StarCoder: the words of GPT-2 between single digits.
    smollm = Tokenizer(BPE(vocab, merges))
    digits = pre_tokenizers.Split(Regex(r"\p{N}"), "isolated")
    smollm.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return {
        "gpt-2": GPT2Tokenizer(vocab=vocab, merges=merges).backend_tokenizer,
        "qwen2": Qwen2Tokenizer(vocab=vocab, merges=merges).backend_tokenizer,
        "llama-bpe": llama3,
        "smollm": smollm,
    }


@pytest.mark.parametrize("pre", ["gpt-2", "qwen2", "llama-bpe", "smollm"])
@given(text=some_text)
@settings(max_examples=150)
@example("a 123456 b'LL '\n\n  x")
def test_tokens_are_those_of_transformers_and_come_back_as_text(built, theirs, pre, text):
    tokenizer, expected = built(pre), theirs[pre]
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    if not any(mark in text for mark in (*MARKS, "<|endoftext|>")):
        assert ids == expected.encode(text, add_special_tokens=False).ids
    if pre != "qwen2":  # which normalises first
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize(
    ("pre", "words"),
    [("gpt-2", "a Ġ12345"), ("smollm", "a Ġ 1 2 3 4 5"), ("qwen2", "a Ġ 1 2 3 4 5"), ("llama-bpe", "a Ġ 123 45")],
)
def test_digits_by_example(built, pre, words):
    assert " ".join(word for word, _ in built(pre).pre_tokenizer.pre_tokenize_str("a 12345")) == words


def test_special_tokens_in_text_and_around_it(built):
    plain, around = built("gpt-2"), built("gpt-2", add_bos_token=True, add_eos_token=True)
    start, end, more = (plain.token_to_id(token) for token in (*MARKS, "<|more|>"))
    assert plain.encode("<|start|>a<|end|>").ids == [start, plain.token_to_id("a"), end]
    ids = plain.encode("a<|more|>").ids
    assert ids[-1] == more
    assert plain.decode([start, *ids, end]) == "a<|more|>"  # that somebody defined is text, that controls is none
    assert around.encode("a").ids == [start, plain.token_to_id("a"), end]
    assert built("llama-bpe").encode("a").ids == [start, plain.token_to_id("a")]  # BOS unless the file denies it
    assert built("llama-bpe", add_bos_token=False).encode("a").ids == [plain.token_to_id("a")]


def test_transformers_opens_it_with_template_and_special_tokens(tmp_path, write_gguf, byte_level):
    from transformers import AutoTokenizer

    file = read_gguf_file(write_gguf(tmp_path / "a.gguf", "llama", byte_level_metadata(byte_level, "smollm")))
    (tmp_path / "out").mkdir()
    for name, content in tokenizer_files(file).items():
        (tmp_path / "out" / name).write_bytes(content)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<|start|>", "<|end|>", "<|end|>")
    chat = [{"role": "user", "content": "Count 12."}]
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    assert text == "<|start|>user:Count 12.<|end|>"
    assert tokenizer(text)["input_ids"] == build_gguf_tokenizer(file).encode(text).ids
    first, *_, last = tokenizer(text)["input_ids"]
    assert {"bos_token_id": first, "eos_token_id": last, "pad_token_id": last} == special_ids(file)


def test_the_vocabulary_of_the_file_is_that_of_the_folder(tmp_path, write_gguf, byte_level):
    path = write_gguf(tmp_path / "a.gguf", "llama", byte_level_metadata(byte_level, "smollm"))
    for name, content in tokenizer_files(read_gguf_file(path)).items():
        (tmp_path / name).write_bytes(content)
    ours, folder = gguf_vocabulary(path), Vocabulary.from_file(tmp_path)
    assert ours.identity == folder.identity
    assert ours.own_templates == folder.own_templates
    assert ours.encode("Count <|end|> 12.") == folder.encode("Count <|end|> 12.")
    assert [id_ for id_, *_ in ours.encode_rendered("<|start|><|end|>")] == [ours.bos_id, ours.eos_id]


def test_a_file_where_a_vocabulary_is_wanted_is_told_what_to_do(tmp_path):
    with pytest.raises(VocabularyError, match=r"model.gguf is a GGUF file: give the folder that .*flanjax.convert"):
        Vocabulary.from_file(tmp_path / "model.gguf")


def test_the_end_of_a_turn_ends_generation_too(tmp_path, write_gguf, byte_level):
    metadata = byte_level_metadata(byte_level, "llama-bpe", eot_token_id=0)
    file = read_gguf_file(write_gguf(tmp_path / "a.gguf", "llama", metadata))
    assert special_ids(file)["eos_token_id"] == [metadata["tokenizer.ggml.eos_token_id"], 0]


# --- SentencePiece ---------------------------------------------------------------------------------------------------


def piece_type(model, number):
    kinds = {2: model.is_unknown, CONTROL: model.is_control, 6: model.is_byte, 5: model.is_unused}
    return next((kind for kind, holds in kinds.items() if holds(number)), NORMAL)


@pytest.fixture(scope="module")
def sentencepiece_model(tmp_path_factory):
    prefix = tmp_path_factory.mktemp("spm") / "m"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 5),
        model_prefix=str(prefix),
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_file=f"{prefix}.model")


@pytest.fixture(scope="module")
def of_sentencepiece(tmp_path_factory, write_gguf, sentencepiece_model):
    model = sentencepiece_model
    numbers = range(model.vocab_size())
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [model.id_to_piece(number) for number in numbers],
        "tokenizer.ggml.scores": [float(model.get_score(number)) for number in numbers],
        "tokenizer.ggml.token_type": [piece_type(model, number) for number in numbers],
        "tokenizer.ggml.bos_token_id": model.bos_id(),
        "tokenizer.ggml.eos_token_id": model.eos_id(),
        "tokenizer.ggml.unknown_token_id": model.unk_id(),
    }
    path = tmp_path_factory.mktemp("spm") / "m.gguf"
    return build_gguf_tokenizer(read_gguf_file(write_gguf(path, "llama", metadata)))


@given(text=some_text)
@settings(max_examples=150)
def test_scores_give_the_tokens_of_sentencepiece(of_sentencepiece, sentencepiece_model, text):
    if "\0" in text or "▁" in text:  # SentencePiece ends at the one, and its own sign for a space is no text
        return
    ids = of_sentencepiece.encode(text).ids
    expected = sentencepiece_model.encode(text)
    assert ids == [sentencepiece_model.bos_id(), *expected]
    assert of_sentencepiece.decode(ids) == text


def test_the_golden_text_of_stories260k(test_data, tmp_path, write_gguf):
    """llama2.c's tokenizer file: the same pieces and scores as the SentencePiece model that it was made of."""
    folder = test_data / "checkpoints" / "stories260K"
    content, position, tokens, scores = (folder / "tok512.bin").read_bytes(), 4, [], []
    while position < len(content):
        score, length = struct.unpack_from("<fi", content, position)
        position += 8 + length
        scores.append(score)
        tokens.append(content[position - length : position].decode().strip("\n" if "s>" in tokens else ""))
    tokens = ["<unk>", "<s>", "</s>", *(token.replace(" ", "▁") for token in tokens[3:])]
    types = [2, CONTROL, CONTROL] + [6] * 256 + [NORMAL] * (len(tokens) - 259)
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    tokenizer = build_gguf_tokenizer(read_gguf_file(write_gguf(tmp_path / "s.gguf", "llama", metadata)))
    golden = json.loads((folder / "expected_greedy.json").read_text())
    assert tokenizer.encode(golden["text"].removeprefix(" ")).ids == golden["token_ids"]
    assert tokenizer.decode(golden["token_ids"]) == golden["text"].removeprefix(" ")


# --- refused by name -------------------------------------------------------------------------------------------------

REFUSED = [
    ("gpt-2", {"model": "bert"}, "tokenizer.ggml.model is 'bert'; read are gpt2 .* and llama"),
    ("tekken", {}, "tokenizer.ggml.pre is 'tekken'; read are gpt-2, gpt2, smollm"),
    ("gpt-2", {"tokens": []}, "tokenizer.ggml.tokens is missing"),
    ("gpt-2", {"tokens": ["a", "b", "a"], "token_type": [1, 1, 1]}, "tokenizer.ggml.tokens has 'a' twice"),
    ("gpt-2", {"token_type": [1]}, "tokenizer.ggml.token_type must have a number for each of the"),
    ("gpt-2", {"merges": ["a b c"]}, "tokenizer.ggml.merges has 'a b c', which is no pair"),
    ("gpt-2", {"merges": ["a zzz"]}, "its tokenizer cannot be built: .*zzz"),
    ("gpt-2", {"bos_token_id": 100_000}, "tokenizer.ggml.bos_token_id is 100000, which is none of the"),
    ("gpt-2", {"add_bos_token": 2}, "tokenizer.ggml.add_bos_token is 2, and not true or false"),
]


@pytest.mark.parametrize(("pre", "wrong", "message"), REFUSED, ids=[message[:40] for *_, message in REFUSED])
def test_what_is_wrong_is_named(tmp_path, write_gguf, byte_level, pre, wrong, message):
    path = write_gguf(tmp_path / "wrong.gguf", "llama", byte_level_metadata(byte_level, pre, **wrong))
    with pytest.raises(ModelFolderError, match=f"wrong.gguf: {message}"):
        build_gguf_tokenizer(read_gguf_file(path))


def test_scores_must_be_there_for_each_piece(tmp_path, write_gguf):
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["a", "b"],
        "tokenizer.ggml.token_type": [1, 1],
        "tokenizer.ggml.scores": np.float32([0.5]).tolist(),
    }
    with pytest.raises(ModelFolderError, match=r"tokenizer\.ggml\.scores must have a number for each of the 2 tokens"):
        build_gguf_tokenizer(read_gguf_file(write_gguf(tmp_path / "s.gguf", "llama", metadata)))
