"""`flanjax.load` and the two doors that write Hugging Face folders."""

import dataclasses
import json
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import flanjax
from flanjax import convert, export
from flanjax.data.vocabularies import train_vocabulary
from flanjax.errors import FlanjaxError
from flanjax.interchange.hf_t5 import write_hf_t5
from flanjax.models.config import Compute, T5Config
from flanjax.models.model import model_settings
from flanjax.models.t5 import init_params
from flanjax.training.checkpoints import Checkpoints
from flanjax.training.step import TrainState

SENTENCES = [f"sort {i} and {i * 7} words of March: yes or no?" for i in range(40)]
CONFIG = T5Config(
    vocab_size=64, embed_dim=16, num_heads=2, head_dim=4, mlp_dim=24, num_encoder_layers=2, num_decoder_layers=2
)
PROMPTS = ["sort 7 words", "yes or no?", "March: 3 of 12 words and 5 words and 4"]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    return train_vocabulary(SENTENCES, 40, tmp_path_factory.mktemp("vocabulary") / "spiece.model", extra_ids=10)


@pytest.fixture(scope="module")
def params():
    # Twice the usual deviations: a fresh model says nearly the same whatever it is asked.
    return jax.tree.map(lambda leaf: np.asarray(leaf) * 2, init_params(CONFIG, seed=3))


@pytest.fixture(scope="module")
def hf(tmp_path_factory, vocabulary, params):
    folder = tmp_path_factory.mktemp("models") / "hf"
    write_hf_t5(folder, CONFIG, params, vocabulary)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, vocabulary, params):
    """A run directory with checkpoints of steps 10 and 20; those of step 10 are zeros."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    vocabulary.save(folder / "vocabulary")
    settings = {"model": model_settings(CONFIG), "data": {"mixture": "demo"}, "init_from": None}
    (folder / "config.json").write_text(json.dumps(settings))
    checkpoints = Checkpoints(folder / "checkpoints")
    counts = {name: jnp.zeros((), jnp.int32) for name in ("skipped", "skipped_in_a_row")}
    for step, tree in ((10, jax.tree.map(np.zeros_like, params)), (20, params)):
        tree = jax.tree.map(jnp.asarray, tree)
        state = TrainState(step=jnp.int32(step), params=tree, opt_state={}, **counts)
        checkpoints.save(step, state, position={}, config=settings)
    checkpoints.close()
    return folder


@pytest.fixture(scope="module")
def model(hf):
    return flanjax.load(hf)


@pytest.fixture(scope="module")
def torch_model(hf):
    from transformers import AutoTokenizer, T5ForConditionalGeneration

    return AutoTokenizer.from_pretrained(hf), T5ForConditionalGeneration.from_pretrained(hf).eval()


# --- score and generate --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eos", [True, False])
def test_scores_are_the_log_likelihoods_of_transformers(model, torch_model, eos):
    import torch

    tokenizer, torch_t5 = torch_model
    targets = ["yes", "no", "sort sort 12 words and 7"]
    for got, prompt, target in zip(model.score(PROMPTS, targets, eos=eos), PROMPTS, targets, strict=True):
        labels = tokenizer(target, return_tensors="pt").input_ids
        labels = labels if eos else labels[:, :-1]
        with torch.no_grad():
            logits = torch_t5(**tokenizer(prompt, return_tensors="pt"), labels=labels).logits
        expected = torch.log_softmax(logits, -1).gather(-1, labels[..., None]).sum()
        assert got == pytest.approx(expected.item(), abs=1e-3)


def test_neither_batch_nor_neighbours_change_an_answer_or_a_score(model):
    answers = model.generate(PROMPTS, 6)
    assert model.generate(PROMPTS, max_new_tokens=6, batch_size=1) == answers
    assert model.generate(PROMPTS[::-1], max_new_tokens=6) == answers[::-1]
    scores = model.score(PROMPTS, ["yes", "no", "sort"])
    np.testing.assert_allclose(model.score(PROMPTS, ["yes", "no", "sort"], batch_size=1), scores, rtol=1e-5)


def test_answers_are_those_of_transformers(model, torch_model):
    import torch

    tokenizer, torch_t5 = torch_model
    for prompt, answer in zip(PROMPTS, model.generate(PROMPTS, max_new_tokens=8), strict=True):
        with torch.no_grad():
            ids = torch_t5.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=8, do_sample=False)
        assert answer == model.vocabulary.decode(ids[0, 1:].tolist())


def test_options_are_those_of_transformers(model, torch_model):
    import torch

    tokenizer, torch_t5 = torch_model
    found = model.generate(PROMPTS, 8, num_beams=3, num_samples=2, length_penalty=0.5, repetition_penalty=1.2)
    for i, prompt in enumerate(PROMPTS):
        with torch.no_grad():
            ids = torch_t5.generate(
                **tokenizer(prompt, return_tensors="pt"), max_new_tokens=8, do_sample=False, num_beams=3,
                num_return_sequences=2, length_penalty=0.5, repetition_penalty=1.2,
            )  # fmt: skip
        cut = [[x for x in row[1:].tolist() if x > 1] for row in ids]
        assert found[2 * i : 2 * i + 2] == [model.vocabulary.decode(row) for row in cut]


def test_what_is_shown_is_the_answer_cut_at_its_stop_text(model):
    options = {"temperature": 1.5, "num_samples": 2, "seed": 4, "max_new_tokens": 12}
    whole = model.generate(PROMPTS, **options)
    stop = next(text for text in whole if len(text) > 8)[4:6]
    shown = [""] * len(whole)

    def show(row, sample, piece):
        shown[2 * row + sample] += piece

    assert model.generate(PROMPTS, **options, stop=stop, on_text=show) == [text.split(stop)[0] for text in whole]
    assert shown == [text.split(stop)[0] for text in whole]
    with pytest.raises(FlanjaxError, match="beam search draws nothing"):
        model.generate(PROMPTS, num_beams=2, temperature=1)


def test_no_inputs_and_empty_texts(model):
    assert model.generate([]) == []
    assert model.score([], []) == []
    assert model.score(["yes"], [""], eos=False) == [0.0]
    assert model.score([""], [""])[0] < 0


def test_a_chat_is_the_text_of_its_template(model, hf, tmp_path):
    question = [{"role": "user", "content": PROMPTS[0]}]
    with pytest.raises(FlanjaxError, match=r"brings no chat template: ask the model by `generate`"):
        model.chat([question])
    shutil.copytree(hf, tmp_path / "chat")
    (tmp_path / "chat" / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %} yes")
    chatting = flanjax.load(tmp_path / "chat")
    assert chatting.chat([question], max_new_tokens=6) == model.generate([f"{PROMPTS[0]} yes"], 6)
    assert chatting.chat([]) == []
    with pytest.raises(FlanjaxError, match="max_new_tokens is 0"):
        chatting.chat([question], max_new_tokens=0)


def test_texts_that_cannot_be_scored(model):
    with pytest.raises(FlanjaxError, match="give a list of texts"):
        model.generate("yes")
    with pytest.raises(FlanjaxError, match="give a list of texts"):
        model.score(["yes"], [3])
    with pytest.raises(FlanjaxError, match="2 inputs but 1 targets"):
        model.score(["a", "b"], ["a"])
    with pytest.raises(FlanjaxError, match="max_new_tokens is 0"):
        model.generate(["a"], max_new_tokens=0)
    with pytest.raises(FlanjaxError, match="batch_size is 0"):
        model.score(["a"], ["a"], batch_size=0)


def test_compute_changes_how_not_what(hf, model):
    unrolled = flanjax.load(hf, compute=Compute(scan_layers=False))
    scores = [m.score(PROMPTS, ["yes", "no", "sort"]) for m in (model, unrolled)]
    np.testing.assert_allclose(*scores, rtol=1e-4)


def test_flan_t5_small_gives_the_golden_answers(flan_t5_small, test_data):
    golden = json.loads((test_data / "checkpoints" / "flan_t5_small_int8" / "expected_greedy.json").read_text())
    flan = flanjax.load(flan_t5_small)
    for example in golden:
        assert [*flan.vocabulary.encode(example["input"]), 1] == example["input_ids"]
    assert flan.generate([example["input"] for example in golden], max_new_tokens=20) == [e["text"] for e in golden]
    review = "Is the following review positive or negative? I loved this movie, it was great."
    positive, negative = flan.score([review] * 2, ["positive", "negative"])
    assert positive > negative


# --- folders that cannot be opened ---------------------------------------------------------------------------------


def test_folders_that_are_no_model(hf, tmp_path, vocabulary, params):
    with pytest.raises(FlanjaxError, match="no such folder"):
        flanjax.load(tmp_path / "absent")
    with pytest.raises(FlanjaxError, match=r"no config\.json, so no model; known are a run directory"):
        flanjax.load(tmp_path)
    with pytest.raises(FlanjaxError, match="step=3 needs a run directory"):
        flanjax.load(hf, step=3)
    write_hf_t5(tmp_path / "mute", CONFIG, params, None)
    with pytest.raises(FlanjaxError, match=r"no spiece\.model"):
        flanjax.load(tmp_path / "mute")
    small = dataclasses.replace(CONFIG, vocab_size=45)
    write_hf_t5(tmp_path / "small", small, init_params(small, seed=0), vocabulary)
    with pytest.raises(FlanjaxError, match="the vocabulary has 50 ids, the model only 45"):
        flanjax.load(tmp_path / "small")


def test_a_run_opens_at_its_latest_checkpoint_or_at_a_step(run, model):
    latest = flanjax.load(run)
    assert latest.vocabulary.identity == model.vocabulary.identity
    assert latest.score(PROMPTS, ["yes", "no", "sort"]) == model.score(PROMPTS, ["yes", "no", "sort"])
    # All parameters zero: every one of the 64 ids is equally likely.
    zeros = flanjax.load(run, step=10)
    ids = len(zeros.vocabulary.encode("yes")) + 1
    assert zeros.score(["sort"], ["yes"])[0] == pytest.approx(-ids * np.log(64), rel=1e-5)


def test_runs_that_cannot_be_opened(run, tmp_path):
    with pytest.raises(FlanjaxError, match="no checkpoint of step 15; there are 10, 20"):
        flanjax.load(run, step=15)
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "vocabulary" / "spiece.model").unlink()
    with pytest.raises(FlanjaxError, match=r"no vocabulary at .*spiece\.model"):
        flanjax.load(copy)
    shutil.copytree(run / "vocabulary", copy / "vocabulary", dirs_exist_ok=True)
    settings = json.loads((run / "config.json").read_text())
    settings["model"]["mlp_dim"] *= 2
    (copy / "config.json").write_text(json.dumps(settings))
    with pytest.raises(FlanjaxError, match=r"decoder/layers/mlp/wi_0/kernel is .* in the checkpoint of step 20, but"):
        flanjax.load(copy)
    shutil.copy(run / "config.json", copy)
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(FlanjaxError, match="no whole checkpoint"):
        flanjax.load(copy)


# --- export ----------------------------------------------------------------------------------------------------------


def test_exported_run_is_opened_by_transformers_and_flanjax(run, hf, model, tmp_path, capsys):
    output = tmp_path / "exported"
    assert export.main([f"--run={run}", f"--output={output}"]) == 0
    assert f'flanjax.load("{output}")' in capsys.readouterr().out
    assert (output / "model.safetensors").read_bytes() == (hf / "model.safetensors").read_bytes()
    assert flanjax.load(output).generate(PROMPTS, 6) == model.generate(PROMPTS, 6)
    card = (output / "README.md").read_text()
    for line in ("| Mixture | demo |", "| Steps | 20 |", "| Base model | none (random parameters) |"):
        assert line in card
    for name in ("tokenizer.json", "spiece.model", "generation_config.json"):
        assert (output / name).read_bytes() == (hf / name).read_bytes()


def test_export_takes_a_step_and_a_dtype(run, tmp_path):
    flags = [f"--run={run}", f"--output={tmp_path / 'out'}", "--step=10", "--dtype=bfloat16"]
    assert export.main(flags) == 0
    for array in load_file(tmp_path / "out" / "model.safetensors").values():
        assert array.dtype.name == "bfloat16"
        assert not array.astype(np.float32).any()


def test_export_explains_itself(run, hf, tmp_path, capsys):
    assert export.main([f"--run={hf}", f"--output={tmp_path / 'out'}"]) == 2
    assert "no run directory" in capsys.readouterr().err
    assert export.main([f"--run={run}", f"--output={tmp_path / 'out'}", "--step=15"]) == 2
    assert "there are 10, 20" in capsys.readouterr().err
    assert export.main([f"--run={run}", f"--output={hf}"]) == 2
    assert "not empty" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# --- convert -------------------------------------------------------------------------------------------------------


def test_convert_keeps_tensors_and_tokenizer(hf, tmp_path):
    assert convert.main([f"--input={hf}", f"--output={tmp_path / 'out'}", "--format=hf"]) == 0
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (hf / "model.safetensors").read_bytes()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in hf.iterdir()}
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json", "README.md"):
        assert (tmp_path / "out" / name).read_bytes() == (hf / name).read_bytes()


def test_convert_takes_a_run_too(run, hf, tmp_path):
    convert.convert(run, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (hf / "model.safetensors").read_bytes()


def test_convert_to_another_dtype_and_from_a_bare_spiece_model(hf, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors", "spiece.model"):
        (bare / name).write_bytes((hf / name).read_bytes())
    convert.convert(bare, tmp_path / "out", dtype="bfloat16")
    assert {array.dtype.name for array in load_file(tmp_path / "out" / "model.safetensors").values()} == {"bfloat16"}
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_convert_explains_itself(hf, tmp_path, capsys):
    assert convert.main([f"--input={tmp_path}", f"--output={tmp_path / 'out'}", "--format=hf"]) == 2
    assert "no config.json, so no model" in capsys.readouterr().err
    assert convert.main([f"--input={hf}", f"--output={hf}", "--format=hf"]) == 2
    assert "not empty" in capsys.readouterr().err
    assert convert.main([f"--input={hf}", f"--output={tmp_path / 'out'}", "--format=hf", "--dtype=int8"]) == 2
    assert "dtype is 'int8'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# --- imports -------------------------------------------------------------------------------------------------------


def test_loading_and_doors_never_import_tensorflow(hf):
    program = (
        "import sys, flanjax, flanjax.export, flanjax.convert\n"
        "assert not {'jax', 'numpy'} & sys.modules.keys(), 'a door must answer --help at once'\n"
        "import flanjax.evaluation.metrics, flanjax.interchange.runs\n"
        f"print(flanjax.load({str(hf)!r}).generate(['yes'], 2))\n"
        "assert not {'tensorflow', 'seqio', 'torch', 'transformers', 'gin'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_answer_ends_at_each_eos_of_the_generation_config(hf, tmp_path):
    folder = shutil.copytree(hf, tmp_path / "hf")
    config = json.loads((folder / "generation_config.json").read_text())
    whole = flanjax.load(folder)
    assert whole.eos_ids == (whole.vocabulary.eos_id,)
    every = list(range(1, CONFIG.vocab_size))
    (folder / "generation_config.json").write_text(json.dumps(config | {"eos_token_id": every}))
    model = flanjax.load(folder)
    assert set(model.eos_ids) == set(every)
    assert model.generate(PROMPTS[:1]) == [""] != whole.generate(PROMPTS[:1])
    (folder / "generation_config.json").write_text(json.dumps(config | {"eos_token_id": "</s>"}))
    with pytest.raises(FlanjaxError, match=r"generation_config\.json: eos_token_id is '</s>'"):
        flanjax.load(folder)
