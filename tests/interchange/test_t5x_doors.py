"""T5X checkpoints through the doors: the real Flan-T5-small to T5X and back, a run exported."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import flanjax
from flanjax import convert, export
from flanjax.interchange.folders import ModelFolderError
from flanjax.interchange.hf_t5 import read_hf_t5, write_hf_t5
from flanjax.interchange.peft import adapter_on, read_peft, write_peft
from flanjax.interchange.runs import read_run
from flanjax.interchange.t5x import read_t5x, write_t5x
from flanjax.interchange.t5x_files import open_checkpoint
from flanjax.models.config import T5Config
from flanjax.models.model import model_settings
from flanjax.models.t5 import init_params
from flanjax.training.checkpoints import Checkpoints
from flanjax.training.step import TrainState
from flanjax.tuning.lora import LoRA
from flanjax.tuning.methods import to_settings
from flanjax.tuning.partition import Partition, digest, flatten, unflatten

from .t5x_tiny import TINY

CONFIG = T5Config(
    vocab_size=96, embed_dim=16, num_heads=2, head_dim=4, mlp_dim=24, num_encoder_layers=2, num_decoder_layers=2
)


def same(left, right) -> bool:
    left, right = flatten(left), flatten(right)
    return left.keys() == right.keys() and all(np.array_equal(left[name], right[name]) for name in left)


def test_the_real_flan_t5_small_to_t5x_and_back(flan_t5_small, t5_spiece, test_data, tmp_path, capsys):
    t5x, back = tmp_path / "t5x", tmp_path / "back"
    assert convert.main([f"--input={flan_t5_small}", f"--output={t5x}", "--format=t5x"]) == 0
    assert convert.main([f"--input={t5x / 'checkpoint_0'}", f"--output={back}", "--format=hf"]) == 0
    told = capsys.readouterr().out
    assert "checkpoint_0: step 0; its optimizer's state (760 arrays) is left out" in told
    assert f"{back} has no vocabulary" in told
    before, after = (load_file(folder / "model.safetensors") for folder in (flan_t5_small, back))
    assert len(after) == 190
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name].view(np.uint32), after[name].view(np.uint32)) for name in after)
    shutil.copy(t5_spiece, back)
    # With a vocabulary beside it, the checkpoint itself is opened as well.
    shutil.copy(t5_spiece, t5x / "checkpoint_0")
    golden = json.loads((test_data / "checkpoints" / "flan_t5_small_int8" / "expected_greedy.json").read_text())
    for folder in (back, t5x / "checkpoint_0"):
        answers = flanjax.load(folder).generate([example["input"] for example in golden], max_new_tokens=20)
        assert answers == [example["text"] for example in golden]


def saved_run(folder: Path, vocabulary, settings, params) -> Path:
    """A run directory with a checkpoint of step 5."""
    vocabulary.save(folder / "vocabulary")
    (folder / "config.json").write_text(json.dumps(settings))
    counts = {name: jnp.zeros((), jnp.int32) for name in ("skipped", "skipped_in_a_row")}
    state = TrainState(step=jnp.int32(5), params=params, opt_state={}, **counts)
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoints.save(5, state, position={}, config=settings)
    checkpoints.close()
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, small_vocabulary) -> Path:
    settings = {"model": model_settings(CONFIG), "init_from": None, "train": {"seed": 0}}
    return saved_run(tmp_path_factory.mktemp("runs") / "run", small_vocabulary, settings, init_params(CONFIG, 1))


def test_a_run_that_was_tuned_from_an_address_is_opened_and_exported(served, small_vocabulary, tmp_path, capsys):
    address, _ = served
    _, base = read_t5x(address)
    tuned = dataclasses.replace(TINY, added=(LoRA(rank=2),))
    settings = {"model": model_settings(tuned), "tuning": to_settings(tuned.added), "train": {"seed": 0}}
    settings |= {"init_from": address, "base": digest(base)}
    rng = np.random.default_rng(0)
    moved, _ = Partition.of(tuned).split(init_params(tuned, 0))
    moved = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), moved)
    folder = saved_run(tmp_path / "run", small_vocabulary, settings, moved)
    params = flatten(read_run(folder).params)
    expected = flatten(base) | flatten(moved)
    assert params.keys() == expected.keys()
    assert all(np.array_equal(params[name], expected[name]) for name in params)
    assert export.main([f"--run={folder}", f"--output={tmp_path / 'adapter'}", "--format=peft"]) == 0
    _, params = adapter_on(read_peft(tmp_path / "adapter", TINY), TINY, base)
    assert same(params, unflatten(expected))
    lost = json.loads((folder / "config.json").read_text()) | {"init_from": str(tmp_path / "absent")}
    (folder / "config.json").write_text(json.dumps(lost))
    with pytest.raises(ModelFolderError, match="absent, and that is not there: put it back"):
        read_run(folder)


@pytest.mark.parametrize("door", [export, convert])
def test_nothing_is_written_to_an_address(run, tmp_path, monkeypatch, capsys, door):
    monkeypatch.chdir(tmp_path)
    given = f"--{'run' if door is export else 'input'}={run}"
    assert door.main([given, "--output=gs://bucket/out", "--format=hf"]) == 2
    assert "gs://bucket/out is an address, and nothing is written to one: give a path" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", ["t5x", "t5x_scanned", "t5x_orbax", "t5x_orbax_scanned"])
def test_a_run_as_a_checkpoint_of_its_step(run, tmp_path, capsys, form):
    out = tmp_path / "out"
    assert export.main([f"--run={run}", f"--output={out}", f"--format={form}"]) == 0
    assert f'INITIAL_CHECKPOINT_PATH=\\"{out}/checkpoint_5\\"' in capsys.readouterr().out
    config, params = read_t5x(out / "checkpoint_5")
    assert config == dataclasses.replace(CONFIG, dropout_rate=0.1)
    assert same(params, init_params(CONFIG, 1))
    assert open_checkpoint(out / "checkpoint_5").step == 5
    written = open_checkpoint(out / "checkpoint_5")
    assert ("encoder/encoder/mlp/wo/kernel" in written.contents["target"]) == form.endswith("scanned")
    assert (written.version is None) == ("orbax" in form)
    assert convert.main([f"--input={run}", f"--output={tmp_path / 'again'}", f"--format={form}"]) == 0
    assert same(read_t5x(tmp_path / "again" / "checkpoint_5")[1], params)


def test_from_t5x_to_t5x_the_step_is_kept_and_the_type_is_chosen(tmp_path):
    params = jax.tree.map(np.asarray, init_params(CONFIG, 2))
    source = write_t5x(tmp_path / "source", CONFIG, params, step=30)
    told = convert.convert(source, tmp_path / "out", format="t5x_scanned", dtype="bfloat16")
    assert "step 30; its optimizer's state" in told
    narrow = jax.tree.map(lambda leaf: leaf.astype("bfloat16").astype(np.float32), params)
    assert same(read_t5x(tmp_path / "out" / "checkpoint_30")[1], narrow)


def test_an_adapter_is_merged_into_a_checkpoint_as_into_a_folder(tmp_path):
    params = jax.tree.map(np.asarray, init_params(CONFIG, 2))
    base = write_t5x(tmp_path / "t5x", CONFIG, params, step=30)
    write_hf_t5(tmp_path / "hf", CONFIG, params, None)
    tuned, rng = dataclasses.replace(CONFIG, added=(LoRA(rank=2),)), np.random.default_rng(0)
    moved = jax.tree.map(lambda leaf: leaf + 0.1 * rng.standard_normal(leaf.shape), init_params(tuned, 0))
    write_peft(tmp_path / "adapter", tuned, moved)
    told = convert.convert(base, tmp_path / "one", format="t5x", adapter=tmp_path / "adapter")
    assert "step 30" in told
    assert "merged; the largest difference of a logit is" in told
    convert.convert(tmp_path / "hf", tmp_path / "other", adapter=tmp_path / "adapter")
    merged = read_t5x(tmp_path / "one" / "checkpoint_30")[1]
    assert same(merged, read_hf_t5(tmp_path / "other")[1])
    assert not same(merged, params)


def test_what_the_doors_refuse(tmp_path, capsys):
    source = write_t5x(tmp_path / "source", CONFIG, init_params(CONFIG, 2), step=30)
    assert convert.main([f"--input={source.parent}", f"--output={tmp_path / 'a'}", "--format=hf"]) == 2
    assert "give one of them: checkpoint_30" in capsys.readouterr().err
    assert convert.main([f"--input={source}", f"--output={source}", "--format=t5x"]) == 2
    assert "is not empty" in capsys.readouterr().err
    write_hf_t5(tmp_path / "hf", CONFIG, read_t5x(source)[1], None)
    assert same(read_hf_t5(tmp_path / "hf")[1], init_params(CONFIG, 2))
    assert (
        convert.main([f"--input={tmp_path / 'hf'}", f"--output={tmp_path / 'b'}", "--format=t5x", "--dtype=int8"]) == 2
    )
    assert "dtype is 'int8'" in capsys.readouterr().err
    (tmp_path / "decoder.gguf").write_bytes(b"GGUF" + bytes(20))
    assert convert.main([f"--input={tmp_path / 'decoder.gguf'}", f"--output={tmp_path / 'c'}", "--format=t5x"]) == 2
    assert "decoder.gguf is a decoder, and a T5X checkpoint holds a T5" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["decoder.gguf", "hf", "source"]
