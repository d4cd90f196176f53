"""Tokenizer files: transformers must see the same ids as flanjax."""

import json
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flanjax.data.byte_vocabulary import Bytes
from flanjax.data.hf_vocabulary import HFVocabulary
from flanjax.data.vocabularies import SentencePieces, Vocabulary, VocabularyError
from flanjax.interchange.folders import ModelFolderError
from flanjax.interchange.tokenizer import build_tokenizer, has_pieces_of, read_vocabulary, write_tokenizer

TEXTS = [
    "Hello world",
    "the quick fox of March sorts 12 words, counts 7 dates and says yes or no: why?",
    "  leading, \t tab \n\n newline   and runs of spaces  ",
    "",
    "   ",
    "naïve café № 5, ½ ﬁne, “quoted”…",
    "日本語 {x} < y \\ ^ ` ~",
    "Definition: sort.\n\n Positive Example 1 -\nInput: b a.\n Output: a b.",
    "xylophone" * 5,
]


@pytest.fixture(scope="session")
def t5_vocabulary(t5_spiece):
    return Vocabulary.from_file(t5_spiece)


@pytest.fixture(scope="session")
def t5_tokenizer(t5_vocabulary):
    return build_tokenizer(t5_vocabulary)


def automatic_tokenizer(folder):
    from transformers import AutoTokenizer

    (folder / "config.json").write_text('{"model_type": "t5"}')
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("which", ["t5_vocabulary", "small_vocabulary"])
def test_transformers_gives_the_same_ids(request, tmp_path, which):
    vocabulary = request.getfixturevalue(which)
    write_tokenizer(tmp_path, vocabulary)
    tokenizer = automatic_tokenizer(tmp_path)
    assert len(tokenizer) == vocabulary.size
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    for text in TEXTS:
        assert tokenizer(text).input_ids == [*vocabulary.encode(text), vocabulary.eos_id], text
    assert tokenizer.convert_tokens_to_ids("<extra_id_0>") == vocabulary.size - 1
    ids = vocabulary.encode("the quick fox says yes")
    assert tokenizer.decode(ids, skip_special_tokens=True) == vocabulary.decode(ids)


ordinary = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "Zs"], max_codepoint=0x24F), max_size=60)


@settings(max_examples=60, deadline=None)
@given(text=ordinary)
def test_built_tokenizer_gives_the_same_ids_on_any_latin_text(t5_vocabulary, t5_tokenizer, text):
    assert t5_tokenizer.encode(text).ids == [*t5_vocabulary.encode(text), t5_vocabulary.eos_id]


def test_published_tokenizer_agrees_with_the_one_built(test_data, t5_tokenizer):
    from tokenizers import Tokenizer

    published = Tokenizer.from_file(str(test_data / "vocab" / "t5" / "tokenizer.json"))
    assert t5_tokenizer.get_vocab() == published.get_vocab()
    for text in map(str.strip, TEXTS):  # the published file alone leaves a space at the end, SentencePiece does not
        assert t5_tokenizer.encode(text).ids == published.encode(text).ids


def test_a_tokenizer_is_known_by_its_pieces(test_data, tmp_path, t5_vocabulary, small_vocabulary):
    published = HFVocabulary.read(test_data / "vocab" / "t5" / "tokenizer.json")
    assert has_pieces_of(published, t5_vocabulary)
    assert not has_pieces_of(published, small_vocabulary)
    write_tokenizer(tmp_path, small_vocabulary)
    built = HFVocabulary.read(tmp_path / "tokenizer.json")
    assert not has_pieces_of(built, t5_vocabulary)
    # Sentinels are no pieces.
    assert has_pieces_of(built, SentencePieces(small_vocabulary.model, extra_ids=3, path=small_vocabulary.path))
    assert not has_pieces_of(t5_vocabulary, small_vocabulary)
    assert not has_pieces_of(Bytes(), published)


def test_a_tokenizer_that_was_written_otherwise_is_the_same_one(bpe_folder, tmp_path):
    ours, state = Vocabulary.from_file(bpe_folder), json.loads((bpe_folder / "tokenizer.json").read_text())
    shutil.copytree(bpe_folder, tmp_path / "again")
    file = tmp_path / "again" / "tokenizer.json"
    file.write_text(json.dumps(state | {"padding": None}))
    again = Vocabulary.from_file(file.parent)
    assert again.sha256 != ours.sha256
    assert has_pieces_of(again, ours)
    added = {**state["added_tokens"][-1], "id": ours.size, "content": "<|user|>"}
    file.write_text(json.dumps(state | {"added_tokens": [*state["added_tokens"], added]}))
    assert not has_pieces_of(Vocabulary.from_file(file.parent), ours)


def test_source_files_are_copied_byte_for_byte(test_data, tmp_path, small_vocabulary):
    source = test_data / "vocab" / "t5"
    write_tokenizer(tmp_path, None, source)
    for name in ("spiece.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        assert (tmp_path / name).read_bytes() == (source / name).read_bytes()
    (tmp_path / "own").mkdir()
    write_tokenizer(tmp_path / "own", small_vocabulary, source)
    assert read_vocabulary(tmp_path / "own").identity == small_vocabulary.identity


def test_a_source_with_spiece_alone_gets_the_rest_built(tmp_path, small_vocabulary):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "spiece.model").write_bytes(small_vocabulary.model)
    (tmp_path / "out").mkdir()
    write_tokenizer(tmp_path / "out", small_vocabulary, tmp_path / "source")
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_without_vocabulary_and_source_nothing_is_written(tmp_path):
    write_tokenizer(tmp_path, None)
    assert list(tmp_path.iterdir()) == []


def test_written_folder_is_read_back_as_the_same_vocabulary(tmp_path, small_vocabulary):
    write_tokenizer(tmp_path, small_vocabulary)
    vocabulary = read_vocabulary(tmp_path)
    assert (vocabulary.identity, vocabulary.extra_ids) == (small_vocabulary.identity, 10)


def test_a_folder_without_spiece_model_says_where_to_get_it(tmp_path):
    with pytest.raises(ModelFolderError, match=r"no spiece\.model, .*copy it from"):
        read_vocabulary(tmp_path)


def test_sentinels_are_counted_where_their_number_is_not_said(tmp_path, small_vocabulary):
    write_tokenizer(tmp_path, small_vocabulary)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["extra_ids"]
    added = {str(80 + number): {"content": f"<extra_id_{299 - number}>"} for number in range(300)}  # as UMT5 has them
    path.write_text(json.dumps({**config, "added_tokens_decoder": added}))
    vocabulary = read_vocabulary(tmp_path)
    assert (vocabulary.extra_ids, vocabulary.size) == (300, 380)
    assert vocabulary.encode("<extra_id_0>")[-1] == 379


def test_added_tokens_that_sentencepiece_cannot_encode_are_refused(tmp_path, small_vocabulary):
    write_tokenizer(tmp_path, small_vocabulary)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "added_tokens_decoder": {"90": {"content": "<brace>"}}}))
    with pytest.raises(ModelFolderError, match="'<brace>'"):
        read_vocabulary(tmp_path)


@pytest.mark.parametrize("which", ["bpe_folder", "llama_folder"])
def test_an_export_gives_the_text_and_tokens_of_a_chat_as_it_was_trained(request, tmp_path, which):
    from transformers import AutoTokenizer

    from flanjax.data.chat import Chat
    from flanjax.data.chat_templates import find_template
    from flanjax.data.tasks import Turn

    tuned_on = Vocabulary.from_file(request.getfixturevalue(which))
    trained = Chat(find_template("zephyr", tuned_on), tuned_on)
    said = [Turn(role="user", text="Hi"), Turn(role="assistant", text="Hello!"), Turn(role="user", text="Bye {x}")]
    said += [Turn(role="assistant", text="See you.")]
    (example,) = trained.examples(said)
    # As a run directory has it: the template of training stands beside the tokenizer.
    tuned_on.save(tmp_path / "run")
    (tmp_path / "run" / "chat_template.jinja").write_text(trained.template.text)
    (tmp_path / "export").mkdir()
    write_tokenizer(tmp_path / "export", Vocabulary.load(tmp_path / "run"))
    automatic = AutoTokenizer.from_pretrained(tmp_path / "export")
    messages = [{"role": turn.role, "content": turn.text} for turn in said]
    tokens = automatic.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    assert tokens["input_ids"] == [*example.inputs, *example.targets]
    assert tokens["assistant_masks"] == [*[0] * len(example.inputs), *example.weights]
    assert automatic.apply_chat_template(messages[:1], add_generation_prompt=True).input_ids == list(example.inputs)
    again = read_vocabulary(tmp_path / "export")
    assert find_template("tokenizer", again).text == trained.template.text
    assert again.identity == tuned_on.identity


def test_an_export_of_t5_has_its_chat_template(tmp_path, small_vocabulary):
    (tmp_path / "run").mkdir()
    small_vocabulary.save(tmp_path / "run")
    (tmp_path / "run" / "chat_template.jinja").write_text("{{ messages[-1].content }}")
    vocabulary = Vocabulary.load(tmp_path / "run")
    assert vocabulary.identity == small_vocabulary.identity
    (tmp_path / "export").mkdir()
    write_tokenizer(tmp_path / "export", vocabulary)
    tokenizer = automatic_tokenizer(tmp_path / "export")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "the fox"}], tokenize=False) == "the fox"
    assert read_vocabulary(tmp_path / "export").own_templates == vocabulary.own_templates
    for damage, message in (
        ("[1]", "a JSON object is expected"),
        ('{"chat_template": 3}', "neither a text nor a list"),
    ):
        (tmp_path / "export" / "tokenizer_config.json").write_text(damage)
        with pytest.raises(VocabularyError, match=rf"tokenizer_config\.json: .*{message}"):
            Vocabulary.from_file(tmp_path / "export")
