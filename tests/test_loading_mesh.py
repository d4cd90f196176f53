"""A model over a mesh of devices answers and scores as one on one device, and each device has its part alone."""

import dataclasses
import json
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
from lm_eval.api.registry import get_model

import flanjax
import flanjax.lm_eval  # registers the model
from flanjax import infer
from flanjax.data.chat_templates import named_templates
from flanjax.data.vocabularies import Vocabulary, train_vocabulary
from flanjax.generation.decoding import DecodingConfig
from flanjax.interchange import stored
from flanjax.interchange.any_model import write_hf_model
from flanjax.interchange.peft import write_peft
from flanjax.interchange.runs import read_run
from flanjax.models.config import T5Config
from flanjax.models.decoder_config import DecoderConfig
from flanjax.models.model import init_params, model_settings
from flanjax.serving.service import Settings, engine_of
from flanjax.sharding.mesh import MeshConfig, ShardingError, make_mesh
from flanjax.training.checkpoints import Checkpoints
from flanjax.training.step import TrainState
from flanjax.tuning.lora import ALL_LINEAR, LoRA
from flanjax.tuning.methods import to_settings
from flanjax.tuning.partition import Partition, added_paths, digest, flatten, unflatten

pytestmark = pytest.mark.usefixtures("quick_compilation")
MESH = MeshConfig(data=2, fsdp=2, model=2)
SENTENCES = [f"sort {i} and {i * 7} words of March: yes or no?" for i in range(40)]
TEXTS, TARGETS = ["sort 7 words", "yes or no?", "March: 3 of 12 words and 5 words"], ["yes", "no", "sort 12"]
SAID = [{"role": "user", "content": "Who are you?"}]
T5 = T5Config(
    vocab_size=64, embed_dim=16, num_heads=2, head_dim=4, mlp_dim=24, num_encoder_layers=2, num_decoder_layers=2
)
KINDS = ("t5", "decoder", "adapted", "run")


def moved(config, seed=0):
    """Three times the usual deviations, and adapters that do something: a fresh model always says the same."""
    rng, params = np.random.default_rng(seed), flatten(init_params(config, seed))
    added = added_paths(config)
    return unflatten(
        {
            path: rng.normal(scale=0.3, size=x.shape).astype(np.float32) if path in added else 3 * np.asarray(x)
            for path, x in params.items()
        }
    )


def write_run(folder: Path, base: Path, model, params, vocabulary):
    """A run that has tuned `base` for a step."""
    vocabulary.save(folder / "vocabulary")
    settings = {"model": model_settings(model), "tuning": to_settings(model.added), "train": {"seed": 0}}
    settings |= {"init_from": str(base), "base": digest(flanjax.load(base).params), "data": {}}
    (folder / "config.json").write_text(json.dumps(settings))
    trainable, frozen = Partition.of(model).split(jax.tree.map(jax.numpy.asarray, params))
    count = jax.numpy.int32(0)
    state = TrainState(step=count, params=trainable, opt_state={}, skipped=count, skipped_in_a_row=count, frozen=frozen)
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(1, state, position={}, config=settings)


@pytest.fixture(scope="module")
def folders(bpe_folder, tmp_path_factory):
    """What `flanjax.load` is given, by kind."""
    root = tmp_path_factory.mktemp("mesh")
    words = train_vocabulary(SENTENCES, 40, root / "spiece.model", extra_ids=10)
    write_hf_model(root / "t5", T5, moved(T5), words)
    chats = Vocabulary.from_file(bpe_folder)
    decoder = DecoderConfig(
        vocab_size=chats.size, embed_dim=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=48
    )
    write_hf_model(root / "decoder", decoder, moved(decoder), chats)
    (root / "decoder" / "chat_template.jinja").write_text(named_templates()["chatml"])
    tuned = dataclasses.replace(decoder, added=(LoRA(rank=2, alpha=4, targets=ALL_LINEAR),))
    write_peft(root / "lora", tuned, moved(tuned, 1), model_type="llama")
    write_run(root / "run", root / "decoder", tuned, moved(tuned, 1), Vocabulary.from_file(root / "decoder"))
    return {
        "t5": {"folder": root / "t5"},
        "decoder": {"folder": root / "decoder"},
        "adapted": {"folder": root / "decoder", "adapter": root / "lora"},
        "run": {"folder": root / "run"},
    }


@pytest.fixture(scope="module")
def pair(folders, request):
    return flanjax.load(**folders[request.param]), flanjax.load(**folders[request.param], mesh=MESH)


@pytest.mark.parametrize("pair", KINDS, indirect=True)
def test_parameters_are_the_same_and_spread(pair):
    one, spread = pair
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(one.params), jax.device_get(spread.params))
    leaves = jax.tree.leaves(spread.params)
    held = {device: 0 for device in jax.devices()}
    for leaf in leaves:
        for shard in leaf.addressable_shards:
            held[shard.device] += shard.data.size
    # A quarter of nearly all: fsdp and model split it, data does not.
    assert max(held.values()) < 0.35 * sum(leaf.size for leaf in leaves)
    assert all(leaf.devices() == {jax.devices()[0]} for leaf in jax.tree.leaves(one.params))
    assert one.identity == spread.identity


@pytest.mark.parametrize("pair", KINDS, indirect=True)
def test_answers_and_scores_are_those_of_one_device(pair):
    one, spread = pair
    answers = spread.generate(TEXTS, 6)
    assert answers == one.generate(TEXTS, 6)
    assert len(set(answers)) > 1
    assert spread.generate(TEXTS, 6, temperature=1.0, seed=3) == one.generate(TEXTS, 6, temperature=1.0, seed=3)
    np.testing.assert_allclose(spread.score(TEXTS, TARGETS), one.score(TEXTS, TARGETS), rtol=1e-4)
    assert jax.sharding.get_abstract_mesh().empty


@pytest.mark.parametrize("pair", ["decoder"], indirect=True)
def test_beams_chats_and_the_engine_of_another_thread(pair):
    one, spread = pair
    assert spread.generate(TEXTS, 4, num_beams=2) == one.generate(TEXTS, 4, num_beams=2)
    assert spread.chat([SAID], 6) == one.chat([SAID], 6)
    engine, found = engine_of(spread, Settings(name="m", slots=4)), []

    def drive():
        request = engine.submit(spread.vocabulary.encode(TEXTS[0]), DecodingConfig(max_new_tokens=6))
        while engine.run_once():
            pass
        found.append(request.text)

    thread = threading.Thread(target=drive)
    thread.start()
    thread.join()
    assert found == one.generate(TEXTS[:1], 6)


def test_a_device_gets_its_part_straight_from_the_file(folders, monkeypatch):
    """No parameter is ever whole, neither on the host nor on one device."""
    read, sizes = stored.read, []
    monkeypatch.setattr(stored, "read", lambda source, slices: sizes.append(part := read(source, slices)) or part)
    spread = flanjax.load(**folders["decoder"], mesh=MESH)
    largest = max(leaf.size for leaf in jax.tree.leaves(spread.params))
    assert max(part.size for part in sizes) == largest // 4
    run = read_run(folders["run"]["folder"], mesh=make_mesh(MESH))
    added = added_paths(run.model)
    for path, value in flatten(run.params).items():
        assert len(value.devices()) == 8 if path in added else isinstance(value, stored.Lazy)


def test_the_door_writes_the_same_file(folders, tmp_path, capsys):
    rows, folder = tmp_path / "rows.jsonl", folders["t5"]["folder"]
    rows.write_text("".join(json.dumps({"input": text}) + "\n" for text in TEXTS))
    flags = [f"--model={folder}", f"--input={rows}", "--max_new_tokens=6", "--batch_size=4"]
    assert infer.main([*flags, f"--output={tmp_path / 'one.jsonl'}"]) == 0
    assert infer.main([*flags, f"--output={tmp_path / 'spread.jsonl'}", "--mesh=data=2,fsdp=2,model=2"]) == 0
    assert (tmp_path / "spread.jsonl").read_text() == (tmp_path / "one.jsonl").read_text()
    assert infer.main([*flags, f"--output={tmp_path / 'no.jsonl'}", "--mesh=data=2,model=3"]) == 2
    assert "does not divide the 8 devices" in capsys.readouterr().err
    assert infer.main([*flags, f"--output={tmp_path / 'no.jsonl'}", "--mesh=rows=2"]) == 2
    assert "write data=2,model=4" in capsys.readouterr().err


def test_lm_eval_takes_a_mesh_among_its_arguments(folders):
    folder = folders["t5"]["folder"]
    one = get_model("flanjax").create_from_arg_string(f"path={folder}")
    spread = get_model("flanjax").create_from_arg_string(f"path={folder},mesh=data=2:fsdp=2:model=2")
    assert len(jax.tree.leaves(spread.model.params)[0].devices()) == 8
    requests = [
        (None, one.tok_encode(text), one.tok_encode(target, False)) for text, target in zip(TEXTS, TARGETS, strict=True)
    ]
    found, expected = (model._loglikelihood_tokens(requests) for model in (spread, one))
    np.testing.assert_allclose([total for total, _ in found], [total for total, _ in expected], rtol=1e-4)


def test_a_mesh_that_does_not_fit_is_said_before_the_model_is_read(tmp_path):
    with pytest.raises(ShardingError, match="does not divide the 8 devices"):
        flanjax.load(tmp_path / "absent", mesh=MeshConfig(data=3))
