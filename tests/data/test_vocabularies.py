"""Vocabularies encode as seqio does, are trained alike every time, and say what is wrong with a bad one."""

import hashlib
import json
from pathlib import Path

import pytest

from flanjax.data.vocabularies import Vocabulary, VocabularyError, VocabularySource, train_vocabulary

SENTENCES = [
    "Hello world",
    "<extra_id_0> hello <extra_id_1>",
    "I like <extra_id_3>ly food, jel<extra_id_5> too",
    "  spaces   and\ttabs\nand lines ",
    "Straße, naïve café — 东京 \U0001f642 ﬁne",
    "a { b } < c ~ d \\n",
    "",
]


def test_encodes_and_decodes_as_seqio(t5_spiece: Path) -> None:
    seqio = pytest.importorskip("seqio")
    reference = seqio.SentencePieceVocabulary(str(t5_spiece), extra_ids=100)
    vocabulary = Vocabulary.from_file(t5_spiece)
    assert vocabulary.size == reference.vocab_size == 32100
    for text in SENTENCES:
        ids = vocabulary.encode(text)
        assert ids == reference.encode(text), text
        assert vocabulary.decode(ids) == reference.decode(ids), text
    for ids in ([8774, 32099, 2, 296, 1, 5], [8774, 0, 0], [32000, 5], [40000, 8774], []):
        assert vocabulary.decode(ids) == reference.decode(ids), ids


def test_known_ids_of_t5(t5_spiece: Path) -> None:
    vocabulary = Vocabulary.from_file(t5_spiece)
    assert vocabulary.encode("Hello world") == [8774, 296]
    assert vocabulary.encode("<extra_id_0>") == [32099]
    assert vocabulary.encode("<extra_id_99>") == [32000]
    assert vocabulary.decode([8774, 0, 296, 1, 8774]) == "Hello world"


def test_a_folder_stands_for_its_model(t5_spiece: Path) -> None:
    assert Vocabulary.from_file(t5_spiece.parent).identity == Vocabulary.from_file(t5_spiece).identity


def test_identity_is_of_model_and_extra_ids(t5_spiece: Path) -> None:
    model = t5_spiece.read_bytes()
    assert Vocabulary.from_file(t5_spiece).identity == hashlib.sha256(model + b"100").hexdigest()[:16]
    assert Vocabulary.from_file(t5_spiece, extra_ids=0).identity != Vocabulary.from_file(t5_spiece).identity
    assert Vocabulary.from_file(t5_spiece, extra_ids=0).size == 32000


def test_training_twice_gives_the_same_bytes(texts: list[str], tmp_path: Path) -> None:
    first = train_vocabulary(texts, 48, tmp_path / "a" / "spiece.model")
    second = train_vocabulary(iter(texts), 48, tmp_path / "b" / "spiece.model")
    assert first.path.read_bytes() == second.path.read_bytes()
    assert first.identity == second.identity
    assert first.size == 48 + 100
    assert not list(tmp_path.rglob(".*")), "a partial file is left"


def test_trained_vocabulary_round_trips_and_has_t5_ids(texts: list[str], tiny_vocabulary: Vocabulary) -> None:
    for text in texts:
        ids = tiny_vocabulary.encode(text)
        assert tiny_vocabulary.decode([*ids, 1, 5]) == text
        assert not {0, 1, 2} & set(ids)
    assert tiny_vocabulary.encode("alpha <extra_id_0>")[-1] == tiny_vocabulary.size - 1
    assert 2 in tiny_vocabulary.encode("日")


@pytest.mark.parametrize(("size", "words"), [(5000, "the text allows at most"), (5, "characters alone need")])
def test_a_size_the_text_does_not_allow(texts: list[str], tmp_path: Path, size: int, words: str) -> None:
    with pytest.raises(VocabularyError, match=words):
        train_vocabulary(texts, size, tmp_path / "spiece.model")
    assert not list(tmp_path.iterdir())


def test_training_on_nothing(tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match="gave no text"):
        train_vocabulary(["", "\n"], 64, tmp_path / "spiece.model")


def test_missing_and_broken_files(tmp_path: Path, tiny_vocabulary: Vocabulary) -> None:
    with pytest.raises(VocabularyError, match=r"no vocabulary at .*nowhere"):
        Vocabulary.from_file(tmp_path / "nowhere")
    with pytest.raises(VocabularyError, match=r"no vocabulary at .*spiece\.model"):
        Vocabulary.from_file(tmp_path)
    for content in (b"", b"not a model", tiny_vocabulary.model[:500]):
        (tmp_path / "bad.model").write_bytes(content)
        with pytest.raises(VocabularyError, match=r"bad\.model"):
            Vocabulary.from_file(tmp_path / "bad.model")


def test_a_model_with_other_special_ids(test_data: Path) -> None:
    with pytest.raises(VocabularyError, match=r"pad, eos, unk = \(-1, 2, 0\)"):
        Vocabulary.from_file(test_data / "vocab" / "torchtune_tiny" / "m.model")


def test_save_and_load(tmp_path: Path, tiny_vocabulary: Vocabulary) -> None:
    tiny_vocabulary.save(tmp_path)
    loaded = Vocabulary.load(tmp_path)
    assert loaded.identity == tiny_vocabulary.identity
    assert json.loads((tmp_path / "vocabulary.json").read_text()) == {
        "sha256": hashlib.sha256(tiny_vocabulary.model).hexdigest(),
        "extra_ids": 100,
        "size": tiny_vocabulary.size,
        "identity": tiny_vocabulary.identity,
    }
    (tmp_path / "vocabulary.json").write_text("{}")
    with pytest.raises(VocabularyError, match=r"vocabulary\.json"):
        Vocabulary.load(tmp_path)


def test_load_refuses_another_model(tmp_path: Path, texts: list[str], tiny_vocabulary: Vocabulary) -> None:
    tiny_vocabulary.save(tmp_path)
    train_vocabulary(texts, 45, tmp_path / "spiece.model")
    with pytest.raises(VocabularyError, match="sha256 differs"):
        Vocabulary.load(tmp_path)


def test_a_source_is_one_thing() -> None:
    with pytest.raises(VocabularyError, match="give one of them"):
        VocabularySource(path="x", train_size=100)
    with pytest.raises(VocabularyError, match="negative"):
        VocabularySource(extra_ids=-1)
