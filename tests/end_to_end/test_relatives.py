"""A relative of T5 from the command line: a UMT5 on bytes is trained, exported, opened by transformers, trained on."""

from pathlib import Path

import pytest

import flanjax as library
from flanjax.data.chat import own_chat
from flanjax.data.chat_templates import named_templates

from .conftest import Flanjax

TEMPLATE = "guanaco"
RELATIVE = [
    "--gin.VOCABULARY=bytes",
    "--gin.VocabularySource.train_size=None",
    "--gin.T5Config.vocab_size=384",
    "--gin.T5Config.relpos_per_layer=True",
    "--gin.T5Config.num_encoder_layers=2",
    "--gin.EVAL_MIXTURES=()",
]


@pytest.fixture(scope="module")
def trained(tiny: Path, tmp_path_factory: pytest.TempPathFactory, flanjax: Flanjax) -> Path:
    folder = tmp_path_factory.mktemp("relative")
    flanjax(
        "train",
        f"--gin_file={tiny / 'tiny.gin'}",
        *RELATIVE,
        f"--gin.CHAT_TEMPLATE={TEMPLATE}",
        f"--gin.CACHE_DIR={folder / 'cache'}",
        f"--gin.MODEL_DIR={folder / 'run'}",
        f"--gin.EXPORT_TO={folder / 'hf'}",
    )
    return folder


def test_exported_answers_as_the_run_does_and_as_transformers(trained: Path) -> None:
    import torch
    from transformers import AutoModelForSeq2SeqLM, ByT5Tokenizer, UMT5ForConditionalGeneration

    run, exported = library.load(trained / "run"), library.load(trained / "hf")
    inputs, targets = ["sort: b a c", "trois, 三"], ["a b c", "drei"]
    assert run.score(inputs, targets) == exported.score(inputs, targets)
    # By its own name: AutoTokenizer takes a UMT5 for one with a tokenizer.json.
    tokenizer = ByT5Tokenizer.from_pretrained(trained / "hf")
    model = AutoModelForSeq2SeqLM.from_pretrained(trained / "hf").eval()
    assert isinstance(model, UMT5ForConditionalGeneration)
    batch = tokenizer(inputs, return_tensors="pt", padding=True)
    with torch.no_grad():
        ids = model.generate(**batch, max_new_tokens=8, do_sample=False, num_beams=1)
    assert [run.vocabulary.decode(row) for row in ids[:, 1:].tolist()] == run.generate(inputs, max_new_tokens=8)


def test_the_chat_template_of_its_training_stays_with_it(trained: Path) -> None:
    from transformers import ByT5Tokenizer

    said = [{"role": "user", "content": "Trois, 三?"}]
    run, exported = library.load(trained / "run"), library.load(trained / "hf")
    chat = own_chat(run.vocabulary)
    assert chat is not None
    assert chat.template.text == named_templates()[TEMPLATE]
    assert own_chat(exported.vocabulary) is not None
    assert exported.vocabulary.own_templates == run.vocabulary.own_templates
    asked = "### Human: Trois, 三?\n### Assistant:"
    assert chat.prompt(said) == [*run.vocabulary.encode(asked), run.vocabulary.eos_id]
    assert run.chat([said], 8) == exported.chat([said], 8) == run.generate([asked], 8)
    tokenizer = ByT5Tokenizer.from_pretrained(trained / "hf")
    assert tokenizer.apply_chat_template(said, add_generation_prompt=True, tokenize=False) == asked


def test_training_goes_on_from_the_export_with_its_own_vocabulary_alone(
    trained: Path, tiny: Path, flanjax: Flanjax, tmp_path: Path
) -> None:
    start = [f"--gin_file={tiny / 'tiny.gin'}", *RELATIVE, f"--gin.MODEL_DIR={tmp_path}", "--dry_run"]
    start += [f"--gin.INIT_FROM={trained / 'hf'}"]
    flanjax("train", *start, f"--gin.CACHE_DIR={trained / 'cache'}", f"--gin.CHAT_TEMPLATE={TEMPLATE}")
    other = [f"--gin.VOCABULARY={tiny / 'whole_hf'}", f"--gin.CACHE_DIR={tiny / 'cache'}"]
    done = flanjax("train", *start, *other, status=2)
    told = " ".join((done.stdout + done.stderr).split())
    assert "its parameters mean nothing to these tokens" in told
    assert "384 ids" in told
