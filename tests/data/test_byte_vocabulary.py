"""UTF-8 bytes as a vocabulary: the ids of transformers' ByT5Tokenizer and of seqio's ByteVocabulary."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flanjax.data.byte_vocabulary import Bytes
from flanjax.data.vocabularies import Vocabulary, VocabularyError
from flanjax.interchange.tokenizer import read_vocabulary, write_tokenizer

BYTES = Bytes()
texts = st.text(st.characters(codec="utf-8"), max_size=40)
# Sentinels, and what only looks like them.
marks = st.sampled_from(
    [f"<extra_id_{number}>" for number in (0, 7, 99, 124, 125, 1000000)] + ["<extra_id_07>", "</s>"]
)
mixed = st.lists(texts | marks, max_size=6).map("".join)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import ByT5Tokenizer

    return ByT5Tokenizer()


def test_real_texts_have_the_ids_of_transformers(test_data: Path, tokenizer: Any) -> None:
    tasks = test_data / "super_natural_instructions" / "tasks"
    task = json.loads((tasks / "task1435_ro_sts_parallel_language_translation_ro_to_en.json").read_text())
    answers = json.loads(
        gzip.decompress((test_data / "alpaca_eval/text_davinci_003/model_outputs.json.gz").read_bytes())
    )
    texts = [instance["input"] for instance in task["Instances"]] + [answer["output"] for answer in answers]
    assert {"ă", "ș"} <= {character for text in texts for character in text}
    for text in texts:
        ids = BYTES.encode(text)
        assert BYTES.as_inputs(ids) == tokenizer(text).input_ids
        assert BYTES.decode([*ids, 1, 75]) == text == tokenizer.decode(ids)
    assert BYTES.encode_batch(texts) == [BYTES.encode(text) for text in texts]


def test_known_ids(tokenizer: Any) -> None:
    assert BYTES.encode("é <extra_id_0>") == [198, 172, 35, 259]
    assert BYTES.size == len(tokenizer) == 384
    assert BYTES.encode("<extra_id_124>") == [383]
    assert BYTES.encode("</s>") == [63, 50, 118, 65], "what is typed ends nothing"


@given(text=mixed)
def test_any_text_comes_back_and_its_pieces_are_the_text(text: str) -> None:
    ids = BYTES.encode(text)
    assert BYTES.decode(ids) == text
    assert all(3 <= id_ < BYTES.size for id_ in ids)
    pieces = BYTES.pieces(text)
    assert [id_ for id_, _ in pieces] == ids
    assert "".join(part for _, part in pieces) == text
    spans = BYTES.encode_rendered(text)
    assert [id_ for id_, _, _ in spans] == ids
    for id_, start, end in spans:
        # A byte lies in the character that it is a part of, a sentinel is the whole of its own.
        assert text[start:end] == f"<extra_id_{id_ - 259}>" if id_ >= 259 else id_ - 3 in text[start:end].encode()


@given(text=texts | marks.filter(lambda mark: mark != "</s>"))
def test_ids_are_those_of_transformers_for_any_text(tokenizer: Any, text: str) -> None:
    # transformers reads typed tokens of control, which end a sequence there and are text here.
    if not any(token in text for token in ("<pad>", "</s>", "<unk>")):
        assert BYTES.as_inputs(BYTES.encode(text)) == tokenizer(text).input_ids


@given(ids=st.lists(st.integers(3, 383), max_size=30))
def test_any_ids_are_decoded_as_transformers_does(tokenizer: Any, ids: list[int]) -> None:
    assert BYTES.decode(ids) == tokenizer.decode(ids, skip_special_tokens=False)
    assert BYTES.decode([0, *ids, 2, 400, 0]) == BYTES.decode(ids)


def test_tasks_of_seqio_get_the_same_ids() -> None:
    seqio, tf = pytest.importorskip("seqio"), pytest.importorskip("tensorflow")
    from flanjax.data.seqio_vocabularies import seqio_vocabulary

    ours, theirs = seqio_vocabulary(BYTES), seqio.ByteVocabulary()
    text = "Straße, 东京 \U0001f642\n"
    assert list(ours.encode(text)) == list(theirs.encode(text)) == BYTES.encode(text)
    assert ours.encode_tf(tf.constant(text)).numpy().tolist() == BYTES.encode(text)
    assert ours.decode(BYTES.encode(text)) == text


def test_it_is_named_found_in_folders_and_saved(tmp_path: Path, tokenizer: Any) -> None:
    named = Vocabulary.from_file("bytes")
    named.save(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "theirs")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer", "extra_ids": 125}')
    saved = Vocabulary.load(tmp_path / "saved")
    found = [Vocabulary.from_file(tmp_path / name) for name in ("saved", "theirs", "old")]
    # A worker opens what it is told of by path.
    for vocabulary in (named, saved, *found, Vocabulary.from_file(saved.path), Vocabulary.from_file(str(named.path))):
        assert isinstance(vocabulary, Bytes)
        assert (vocabulary.identity, vocabulary.sha256, vocabulary.extra_ids) == (BYTES.identity, BYTES.sha256, 125)
    fewer = Bytes(extra_ids=3)
    assert (fewer.identity == BYTES.identity, fewer.sha256 == BYTES.sha256, fewer.size) == (False, True, 262)
    assert fewer.encode("<extra_id_3>") == [byte + 3 for byte in b"<extra_id_3>"]


def test_transformers_opens_what_is_written_and_a_source_is_copied(tmp_path: Path, tokenizer: Any) -> None:
    from transformers import AutoTokenizer, ByT5Tokenizer

    for name in ("built", "copied"):
        (tmp_path / name).mkdir()
    write_tokenizer(tmp_path / "built", BYTES)
    (tmp_path / "built" / "config.json").write_text('{"model_type": "t5"}')  # as every ByT5 says
    opened = AutoTokenizer.from_pretrained(tmp_path / "built")
    assert isinstance(opened, ByT5Tokenizer)
    assert opened("日 <extra_id_5>").input_ids == [*BYTES.encode("日 <extra_id_5>"), 1]
    assert (opened.pad_token_id, opened.eos_token_id, opened.unk_token_id, len(opened)) == (0, 1, 2, 384)
    assert read_vocabulary(tmp_path / "built").identity == BYTES.identity
    tokenizer.save_pretrained(tmp_path / "source")
    write_tokenizer(tmp_path / "copied", None, tmp_path / "source")
    config = "tokenizer_config.json"
    assert (tmp_path / "copied" / config).read_bytes() == (tmp_path / "source" / config).read_bytes()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"tokenizer_class": "T5Tokenizer"}, r"tokenizer_config\.json names no ByT5Tokenizer.*VOCABULARY='bytes'"),
        ({"tokenizer_class": "ByT5Tokenizer", "extra_ids": -1}, "extra_ids is -1"),
        (
            {"tokenizer_class": "ByT5Tokenizer", "added_tokens_decoder": {"259": {"content": "<tag>"}}},
            "'<tag>' as 259",
        ),
        (
            {"tokenizer_class": "ByT5Tokenizer", "added_tokens_decoder": {"260": {"content": "<extra_id_1>"}}},
            "sentinels with gaps",
        ),
    ],
)
def test_what_is_no_vocabulary_of_bytes_is_refused(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(VocabularyError, match=message):
        Vocabulary.from_file(tmp_path / "tokenizer_config.json")
    with pytest.raises(VocabularyError, match=r"no vocabulary at .*spiece\.model"):
        Vocabulary.from_file(tmp_path.parent)
