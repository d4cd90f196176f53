"""A tokenizer of Hugging Face gives the ids that transformers gives; what is typed as data is no token of control."""

import json
import shutil

import numpy as np
import pytest
import sentencepiece
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from flanjax.data.hf_vocabulary import HFVocabulary
from flanjax.data.vocabularies import SentencePieces, Vocabulary, VocabularyError
from flanjax.interchange.tokenizer import read_vocabulary, write_tokenizer

TEXTS = [
    "Hello world",
    "  two  spaces\tand a tab\n\nand lines \n",
    "naïve café № 5, ½ ﬁne, “quoted”… 日本語 🙂",
    "def f(x):\n    return {x: [1, 2.5]} < y",
    "",
    " ",
]


@pytest.fixture(scope="module")
def automatic(bpe_folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(bpe_folder)


@pytest.fixture(scope="module")
def real_texts(test_data):
    records = json.loads((test_data / "llama_factory" / "glaive_toolcall_en_demo.json").read_text())
    return [turn["value"] for record in records[:40] for turn in record["conversations"]]


def test_ids_are_those_of_transformers_on_real_text(bpe, automatic, real_texts):
    assert isinstance(bpe, HFVocabulary)
    assert bpe.encode_batch(TEXTS + real_texts) == automatic(TEXTS + real_texts, add_special_tokens=False).input_ids
    assert (bpe.bos_id, bpe.eos_id, bpe.pad_id) == (
        automatic.bos_token_id,
        automatic.eos_token_id,
        automatic.pad_token_id,
    )
    assert bpe.size == len(automatic)


def test_the_published_t5_tokenizer_gives_the_ids_of_its_sentencepiece_model(test_data, t5_spiece):
    published, own = Vocabulary.from_file(test_data / "vocab/t5/tokenizer.json"), Vocabulary.from_file(t5_spiece)
    assert isinstance(own, SentencePieces)
    for text in map(str.strip, TEXTS):
        assert published.encode(text) == own.encode(text)
        assert published.as_inputs(published.encode(text)) == own.as_inputs(own.encode(text))
    assert (published.pad_id, published.eos_id, published.unk_id) == (0, 1, 2)
    assert published.separate_inputs
    assert 1 not in published.encode("to the end </s> and on")


@settings(max_examples=150)
@given(text=st.text(max_size=60))
def test_any_text_comes_back_and_its_pieces_join_to_it(bpe, text):
    ids = bpe.encode(text)
    assert bpe.decode(ids) == text
    assert [id_ for id_, _ in bpe.pieces(text)] == ids
    assert "".join(part for _, part in bpe.pieces(text)) == text


@settings(max_examples=60)
@given(
    text=st.text(max_size=30).filter(lambda text: ">" not in text),
    control=st.sampled_from(["<|im_end|>", "<|endoftext|>", "</s>"]),
)
def test_a_token_of_control_is_read_where_a_template_writes_it_and_nowhere_else(bpe, text, control):
    id_ = bpe.control_tokens[control]
    assert id_ not in bpe.encode(text + control + text)
    rendered = bpe.encode_rendered(text + control + text)
    assert (id_, len(text), len(text + control)) in rendered
    assert bpe.decode([token for token, *_ in rendered if token != bpe.eos_id]) == text + text


@settings(max_examples=150)
@given(text=st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=40))
def test_a_sentencepiece_model_alone_gives_the_ids_of_sentencepiece(llama, llama_folder, text):
    processor = sentencepiece.SentencePieceProcessor(str(llama_folder / "tokenizer.model"))
    assume("\0" not in text and "▁" not in text)  # sentencepiece ends at the one and takes the other for a space
    assert llama.encode(text) == processor.encode(text)


def test_llamas_kind_has_bos_in_front_bytes_for_what_it_lacks_and_no_end_before_targets(
    llama, real_texts, llama_folder
):
    processor = sentencepiece.SentencePieceProcessor(str(llama_folder / "tokenizer.model"))
    assert llama.encode_batch(real_texts) == processor.encode(real_texts)
    assert (llama.bos_id, llama.eos_id, llama.unk_id) == (1, 2, 0)
    assert llama.as_inputs([5, 6]) == [1, 5, 6]
    assert llama.as_targets([7]) == [7, 2]
    assert not llama.separate_inputs
    assert len(llama.encode("🙂")) == 5
    assert llama.decode([1, *llama.encode("🙂 yes"), 2, 9]) == "🙂 yes"
    assert {1, 2}.isdisjoint(llama.encode("<s> typed </s>"))


def test_what_is_saved_is_read_back_and_told_from_another(bpe, llama, tmp_path):
    for vocabulary in (bpe, llama):
        vocabulary.save(tmp_path / vocabulary.identity)
        again = Vocabulary.load(tmp_path / vocabulary.identity)
        assert (again.identity, again.sha256, again.size) == (vocabulary.identity, vocabulary.sha256, vocabulary.size)
        assert (again.prefix, again.eos_id, again.pad_id) == (vocabulary.prefix, vocabulary.eos_id, vocabulary.pad_id)
        assert again.encode(TEXTS[2]) == vocabulary.encode(TEXTS[2])
    assert bpe.identity != llama.identity
    shutil.copy(tmp_path / bpe.identity / "tokenizer.json", tmp_path / llama.identity / "tokenizer.json")
    with pytest.raises(VocabularyError):
        Vocabulary.load(tmp_path / llama.identity)


def test_a_template_is_saved_with_its_vocabulary_and_goes_when_that_has_none(bpe, bpe_folder, tmp_path):
    folder = shutil.copytree(bpe_folder, tmp_path / "with")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    Vocabulary.from_file(folder).save(tmp_path / "saved")
    saved = Vocabulary.load(tmp_path / "saved")
    assert saved.own_templates == {"default": "{{ messages }}"}
    assert saved.identity == bpe.identity
    bpe.save(tmp_path / "saved")
    assert Vocabulary.load(tmp_path / "saved").own_templates == {}
    config = json.loads((folder / "tokenizer_config.json").read_text())
    several = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": several}))
    assert Vocabulary.from_file(folder).own_templates == {"default": "{{ messages }}"}
    (folder / "chat_template.jinja").unlink()
    assert Vocabulary.from_file(folder).own_templates == {"default": "a", "tool_use": "b"}


def test_an_exported_folder_is_the_same_tokenizer_to_transformers(llama, tmp_path, real_texts):
    from transformers import AutoTokenizer

    write_tokenizer(tmp_path, llama)
    automatic = AutoTokenizer.from_pretrained(tmp_path)
    assert automatic(real_texts).input_ids == [llama.as_inputs(llama.encode(text)) for text in real_texts]
    assert read_vocabulary(tmp_path).identity == llama.identity


def edited(folder, tmp_path, **changes):
    """A copy of a folder whose tokenizer_config.json has these values, or lacks those that are None."""
    shutil.copytree(folder, tmp_path / "edited")
    file = tmp_path / "edited" / "tokenizer_config.json"
    config = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
    return tmp_path / "edited"


def test_a_configuration_adds_tokens_and_tokenizer_json_says_what_is_put_in_front(bpe, bpe_folder, tmp_path):
    from transformers import AutoTokenizer

    added = {str(bpe.size): {"content": "<|extra|>", "special": True}}
    folder = edited(bpe_folder, tmp_path, added_tokens_decoder=added, add_bos_token=True)
    found, automatic = Vocabulary.from_file(folder), AutoTokenizer.from_pretrained(folder)
    assert found.size == bpe.size + 1
    assert found.encode_rendered("a<|extra|>")[-1] == (bpe.size, 1, 10)
    assert found.as_inputs(found.encode("Hello")) == automatic("Hello").input_ids == bpe.encode("Hello")
    assert found.identity != bpe.identity


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eos_token": "<|stop|>"}, r"tokenizer_config\.json names the token '<\|stop\|>', which .* does not have"),
        ({"eos_token": None}, r"says which token ends a sequence: set eos_token"),
        (
            {"added_tokens_decoder": {"9999": {"content": "<|x|>"}}},
            r"'<\|x\|>' as 9999, which tokenizer\.json makes \d+",
        ),
        ({"added_tokens_decoder": {"x": {}}}, r"added_tokens_decoder must have an object for each id"),
        ({"added_tokens_decoder": {"9999": {}}}, r"added_tokens_decoder must have an object for each id"),
        ({"chat_template": [1]}, r"chat_template is neither a text nor a list"),
    ],
)
def test_a_configuration_of_another_tokenizer_is_refused(bpe_folder, tmp_path, changes, message):
    with pytest.raises(VocabularyError, match=message):
        Vocabulary.from_file(edited(bpe_folder, tmp_path, **changes))


def test_damaged_files_are_named(bpe_folder, tmp_path):
    folder = shutil.copytree(bpe_folder, tmp_path / "damaged")
    (folder / "tokenizer_config.json").write_text("[1]")
    with pytest.raises(VocabularyError, match=r"tokenizer_config\.json: a JSON object is expected, not list"):
        Vocabulary.from_file(folder)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(VocabularyError, match=r"tokenizer\.json is not a tokenizer that can be read"):
        Vocabulary.from_file(folder)


def test_a_tokenizer_json_alone_ends_with_the_usual_token(bpe, bpe_folder, tmp_path):
    shutil.copy(bpe_folder / "tokenizer.json", tmp_path)
    assert Vocabulary.from_file(tmp_path).eos_id == bpe.eos_id


def test_in_seqio_it_gives_the_same_ids(bpe):
    import tensorflow as tf

    from flanjax.data.seqio_vocabularies import seqio_vocabulary

    vocabulary = seqio_vocabulary(bpe)
    for text in TEXTS:
        assert vocabulary.encode(text) == bpe.encode(text)
        np.testing.assert_array_equal(vocabulary.encode_tf(tf.constant(text)), bpe.encode(text))
        assert vocabulary.decode_tf(tf.constant(bpe.encode(text), tf.int32)).numpy().decode() == text
    ragged = vocabulary.encode_tf(tf.constant(["Hello", "two words"]))
    assert ragged.to_list() == [bpe.encode("Hello"), bpe.encode("two words")]
    assert (vocabulary.eos_id, vocabulary.vocab_size) == (bpe.eos_id, bpe.size)
