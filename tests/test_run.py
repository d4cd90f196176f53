"""The parts of a run are found to belong together, or the run is refused before anything is computed."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import flax.serialization
import jax
import numpy as np
import pytest

from flanjax import doors
from flanjax.data.cache import Example
from flanjax.data.cache_writer import write_mixture, write_split
from flanjax.data.loader import DataConfig
from flanjax.data.packing import PackingError
from flanjax.data.vocabularies import Vocabulary, VocabularySource, train_vocabulary
from flanjax.evaluation.evaluators import EvaluationConfig
from flanjax.files import FileError
from flanjax.interchange.folders import ModelFolderError
from flanjax.interchange.hf_t5 import read_hf_t5, write_hf_t5
from flanjax.interchange.peft import read_peft, write_peft
from flanjax.interchange.runs import TrainedRun, read_run
from flanjax.interchange.t5x import write_t5x
from flanjax.models.config import Compute, T5Config
from flanjax.models.t5 import init_params
from flanjax.run import CONFIGURABLES, Prepared, Run, RunError, describe, is_described, prepare, train_run
from flanjax.sharding.mesh import MeshConfig
from flanjax.training.checkpoints import restore_params
from flanjax.training.interfaces import TrainConfig, TrainingError
from flanjax.training.losses import LossConfig
from flanjax.training.optimizers import OptimizerConfig
from flanjax.training.resume import check_config
from flanjax.tuning.adapter import BottleneckAdapter
from flanjax.tuning.bitfit import BitFit
from flanjax.tuning.lora import LoRA
from flanjax.tuning.method import Method, TuningError
from flanjax.tuning.p_tuning import PTuning
from flanjax.tuning.partition import flatten
from flanjax.tuning.prefix import PrefixTuning
from flanjax.tuning.prompt import PromptTuning
from flanjax.tuning.select import Train

MODEL = T5Config(
    vocab_size=64,
    embed_dim=16,
    num_heads=2,
    head_dim=8,
    mlp_dim=32,
    num_encoder_layers=1,
    num_decoder_layers=1,
    dropout_rate=0.2,
)
ROW = {"inputs": 16, "targets": 8}
WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu"]


@pytest.fixture(scope="session")
def vocabularies(tmp_path_factory: pytest.TempPathFactory) -> tuple[Vocabulary, Vocabulary]:
    """Two of one size and different pieces."""
    folder = tmp_path_factory.mktemp("vocabularies")
    texts = [" ".join(WORDS[(i * k + k) % len(WORDS)] for k in range(1, 9)) + f" {i}" for i in range(300)]
    ours, other = (
        train_vocabulary(map(case, texts), 48, folder / f"{case.__name__}.model", extra_ids=4)
        for case in (str.lower, str.upper)
    )
    return ours, other


@pytest.fixture
def vocabulary(vocabularies: tuple[Vocabulary, Vocabulary]) -> Vocabulary:
    return vocabularies[0]


@pytest.fixture
def other_vocabulary(vocabularies: tuple[Vocabulary, Vocabulary]) -> Vocabulary:
    return vocabularies[1]


@pytest.fixture
def add(tmp_path: Path, vocabulary: Vocabulary) -> Callable[..., None]:
    """add("mix", train=[(inputs, targets), ...]) writes a mixture of one task with examples of these lengths."""

    def write(mixture: str, *, made_with: Vocabulary = vocabulary, **splits: Sequence[tuple[int, int]]) -> None:
        for split, lengths in splits.items():
            text = None if split == "train" else {"inputs": "alpha", "targets": "beta"}
            examples = (
                Example(**{name: np.array([3] * (n - 1) + [1]) for name, n in zip(ROW, pair, strict=True)}, text=text)
                for pair in lengths
            )
            write_split(
                tmp_path / "cache",
                f"{mixture}_task",
                split,
                examples,
                vocabulary_id=made_with.identity,
                fingerprint="made up",
                seed=0,
            )
        tasks = [{"task": f"{mixture}_task", "rate": None, "splits": dict.fromkeys(splits, "made up")}]
        write_mixture(tmp_path / "cache", mixture, made_with, seed=0, tasks=tasks)

    return write


@pytest.fixture
def run(tmp_path: Path, add: Callable[..., None]) -> Run:
    """A run on the mixture "mix", which has held-out examples."""
    add("mix", train=[(5, 3)] * 40, validation=[(5, 3)] * 4)
    return Run(
        model_dir=str(tmp_path / "run"),
        model=MODEL,
        compute=Compute(),
        mesh=MeshConfig(),
        init_from=None,
        tasks={},
        vocabulary=VocabularySource(),
        data=DataConfig(mixture="mix", cache_dir=str(tmp_path / "cache"), feature_lengths=ROW, batch_rows=8),
        loss=LossConfig(),
        optimizer=OptimizerConfig(learning_rate=0.1),
        train=TrainConfig(train_steps=2),
        evaluation=EvaluationConfig(questions=4),
        export_to=None,
    )


def prepared(run: Run, **changes: Any) -> tuple[Prepared, list[str]]:
    """The prepared run and the notices."""
    notices: list[str] = []

    def materialize(mixtures: Sequence[str]) -> None:
        raise AssertionError(f"{mixtures} are in the cache")

    return prepare(dataclasses.replace(run, **changes), materialize, notices.append), notices


def test_a_description_that_was_cut_short_is_none(tmp_path: Path) -> None:
    run, path = SimpleNamespace(model_dir=str(tmp_path)), tmp_path / "config.json"
    assert not is_described(run)
    whole = json.dumps({"model": {"mlp_dim": 32}})
    path.write_text(whole)
    assert is_described(run)
    for cut in range(len(whole)):
        path.write_text(whole[:cut])
        assert not is_described(run)


def test_a_held_out_mixture_of_another_vocabulary_is_written_again_or_refused(
    run: Run, add: Callable[..., None], vocabulary: Vocabulary, other_vocabulary: Vocabulary
) -> None:
    add("held_out", validation=[(5, 3)])
    evaluation = EvaluationConfig(mixtures="held_out", questions=0)
    assert list(prepared(run, evaluation=evaluation)[0].evaluators) == ["mix", "held_out"]
    add("held_out", validation=[(5, 3)], made_with=other_vocabulary)
    asked: list[Sequence[str]] = []
    with pytest.raises(RunError, match=f"held_out.*{other_vocabulary.identity}, mix.*{vocabulary.identity}"):
        prepare(dataclasses.replace(run, evaluation=evaluation), asked.append, lambda notice: None)
    assert asked == [["mix", "held_out"]]


@pytest.mark.parametrize("kept", ["spiece.model", "tokenizer.json"])
def test_a_model_of_another_vocabulary_is_refused_by_whatever_it_brings_of_it(
    run: Run, tmp_path: Path, vocabulary: Vocabulary, other_vocabulary: Vocabulary, kept: str
) -> None:
    for name, own in (("same", vocabulary), ("other", other_vocabulary)):
        write_hf_t5(tmp_path / name, MODEL, jax.device_get(init_params(MODEL, 0)), own)
        for file in {"spiece.model", "tokenizer.json"} - {kept}:
            (tmp_path / name / file).unlink()
    assert prepared(run, init_from=str(tmp_path / "same"))[1] == []
    with pytest.raises(
        RunError, match=rf"{vocabulary.identity}.*other was trained with.*Set VOCABULARY.*spiece\.model"
    ):
        prepared(run, init_from=str(tmp_path / "other"))


def test_another_model_than_init_froms_is_refused_before_anything_is_read(run: Run, tmp_path: Path) -> None:
    write_hf_t5(tmp_path / "folder", MODEL, jax.device_get(init_params(MODEL, 0)), None)
    trained, _ = prepared(dataclasses.replace(run, model_dir=str(tmp_path / "trained")))
    describe(trained, "", "")
    for source in ("folder", "trained"):
        with_dropout = dataclasses.replace(MODEL, dropout_rate=0.4)
        assert prepared(run, init_from=str(tmp_path / source), model=with_dropout)[0].model == with_dropout
        with pytest.raises(RunError, match=f"INIT_FROM=.*{source} holds another model: mlp_dim is 32 there, 48 in the"):
            prepared(run, init_from=str(tmp_path / source), model=dataclasses.replace(MODEL, mlp_dim=48))


@pytest.mark.parametrize(("file", "named"), [("finetune.gin", False), ("common.gin", True)])
def test_the_dropout_macro_replaces_the_models_own(run: Run, tmp_path: Path, file: str, named: bool) -> None:
    write_hf_t5(tmp_path / "model", MODEL, jax.device_get(init_params(MODEL, 0)), None)
    values = {
        "MODEL_DIR": run.model_dir,
        "MIXTURE": run.data.mixture,
        "CACHE_DIR": run.data.cache_dir,
        "INIT_FROM": str(tmp_path / "model"),
        "FEATURE_LENGTHS": ROW,
        "TRAIN_STEPS": 1,
        "LEARNING_RATE": 0.1,
        **({f"T5Config.{name}": value for name, value in dataclasses.asdict(MODEL).items()} if named else {}),
    }
    for dropout, expected in ((None, 0.2), (0.3, 0.3), (0, 0)):
        overrides = tuple((name, repr(value)) for name, value in {**values, "DROPOUT": dropout}.items())
        doors.configure(doors.GinSources(files=(file,), overrides=overrides), CONFIGURABLES)
        built = doors.build(Run)
        assert isinstance(built, Run)
        assert prepared(built)[0].model == dataclasses.replace(MODEL, dropout_rate=expected)


GOING_ON: dict[str, tuple[Method, ...]] = {
    "lora": (LoRA(rank=2, targets=".*/(query|wo)"), Train()),
    "prompt": (PromptTuning(length=3, init="random"),),
}


@pytest.fixture(params=GOING_ON)
def adapters(run: Run, tmp_path: Path, request: pytest.FixtureRequest) -> Run:
    """The run on a base model with a PEFT adapter for it; another adapter is beside it."""
    write_hf_t5(tmp_path / "base", MODEL, jax.device_get(init_params(MODEL, 0)), None)
    tuned = dataclasses.replace(MODEL, added=GOING_ON[request.param])
    rng = np.random.default_rng(0)
    for name in ("adapter", "other"):
        params = jax.tree.map(
            lambda leaf: leaf + 0.1 * rng.standard_normal(leaf.shape, np.float32), init_params(tuned, 0)
        )
        write_peft(tmp_path / name, tuned, params)
    loop = TrainConfig(train_steps=3, checkpoint_every=1)
    return dataclasses.replace(
        run, init_from=str(tmp_path / "base"), adapter_from=str(tmp_path / "adapter"), model=None, train=loop
    )


def trained(run: Run, steps: int, folder: Path) -> TrainedRun:
    """The run directory after so many steps."""
    loop = dataclasses.replace(run.train, train_steps=steps)
    ready, _ = prepared(run, train=loop, model_dir=str(folder))
    describe(ready, "", "")
    told = SimpleNamespace(**dict.fromkeys(("notice", "progress", "logged", "resumed"), lambda *told, **more: None))
    assert train_run(ready, told).step == steps
    return read_run(folder)


def test_training_goes_on_from_an_adapter_of_peft(adapters: Run, tmp_path: Path) -> None:
    adapter = read_peft(str(adapters.adapter_from), MODEL)
    whole = trained(adapters, 3, tmp_path / "whole")
    assert whole.model.added == adapter.methods
    assert whole.recipe["Adapter it went on with"] == "adapter"
    base, now = flatten(read_hf_t5(tmp_path / "base")[1]), flatten(whole.params)
    for path, value in now.items():
        if path in adapter.params:
            assert 0 < np.abs(value - adapter.params[path]).max() < 2
        else:
            np.testing.assert_array_equal(value, base[path])
    # The checkpoint has all that is needed beside the base.
    shutil.rmtree(str(adapters.adapter_from))
    jax.tree.map(np.testing.assert_array_equal, read_run(tmp_path / "whole").params, whole.params)


def test_resumed_from_an_adapter_equals_uninterrupted_and_another_one_is_refused(adapters: Run, tmp_path: Path) -> None:
    whole = trained(adapters, 3, tmp_path / "whole")
    trained(adapters, 1, tmp_path / "parts")
    resumed = trained(adapters, 3, tmp_path / "parts")
    jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)
    other = dataclasses.replace(adapters, adapter_from=str(tmp_path / "other"))
    with pytest.raises(TrainingError, match="adapter: it was '"):
        trained(other, 4, tmp_path / "parts")


def test_an_adapter_brings_its_methods_and_needs_its_base(adapters: Run, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"ADAPTER_FROM=.*leave TUNING empty.* and set INIT_FROM"):
        prepared(adapters, tuning=(LoRA(),))
    with pytest.raises(RunError, match=r"ADAPTER_FROM=.*set INIT_FROM"):
        prepared(adapters, model=MODEL, init_from=None)
    wide = dataclasses.replace(MODEL, embed_dim=32)
    write_hf_t5(tmp_path / "wide", wide, jax.device_get(init_params(wide, 0)), None)
    with pytest.raises(ModelFolderError, match="adapter of another model"):
        prepared(adapters, init_from=str(tmp_path / "wide"))


def test_an_adapter_of_a_base_of_another_name_is_told(adapters: Run, tmp_path: Path) -> None:
    config = Path(str(adapters.adapter_from)) / "adapter_config.json"
    for name, told in ((None, False), ("google/Ba_se", False), ("google/flan-t5-small", True), (str(tmp_path), True)):
        config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": name}))
        notices = [text for text in prepared(adapters)[1] if text.startswith("ADAPTER_FROM=")]
        assert [f"it was trained on {name!r}, and the model at hand is 'base'" in text for text in notices] == [
            True
        ] * told


def test_over_long_held_out_examples_are_told_and_treated_as_those_of_training(
    run: Run, add: Callable[..., None]
) -> None:
    add("held_out", validation=[(5, 3), (30, 3), (5, 3), (5, 9)])
    evaluation = EvaluationConfig(mixtures="held_out", questions=4)
    tokens = {}
    for policy, done in (("truncate", "truncated"), ("drop", "dropped")):
        data = dataclasses.replace(run.data, overlong=policy)
        found, (notice,) = prepared(run, evaluation=evaluation, data=data)
        assert notice == (
            f"held_out, split 'validation': 2 examples (50.00%) are longer than a row and are {done}: "
            "1 by inputs, 1 by targets"
        )
        evaluator = found.evaluators["held_out"]
        targets = sum(batch["decoder_loss_weights"].sum() for batch in evaluator._batches())
        tokens[policy] = targets, [len(question.inputs) for question in evaluator._questions]
    assert tokens == {"truncate": (3 + 3 + 3 + 8, [5, 16, 5, 5]), "drop": (3 + 3, [5, 5])}
    with pytest.raises(PackingError, match="example 1 of task 'held_out_task' has 30 input"):
        prepared(run, evaluation=evaluation, data=dataclasses.replace(run.data, overlong="error"))


def test_rows_that_fill_no_batch_are_told_when_the_data_ends(run: Run, add: Callable[..., None]) -> None:
    add("mix", train=[(5, 3)] * 11)
    data = dataclasses.replace(run.data, epochs=1, pack=False)
    notices: list[str] = []
    told = SimpleNamespace(notice=notices.append, progress=lambda progress: None, logged=lambda *line: None)
    ready, _ = prepared(run, data=data)
    assert train_run(ready, told).step == 1
    assert notices[-1] == "3 rows at the end of the data filled no batch of 8 and were left out"


def test_a_model_that_brings_no_vocabulary_is_taken_with_a_notice(run: Run, tmp_path: Path) -> None:
    write_hf_t5(tmp_path / "model", MODEL, jax.device_get(init_params(MODEL, 0)), None)
    (notice,) = prepared(run, init_from=str(tmp_path / "model"))[1]
    assert "neither spiece.model nor tokenizer.json" in notice


def test_a_run_starts_from_a_t5x_checkpoint_whose_model_its_gin_file_knows(run: Run, tmp_path: Path) -> None:
    silu = dataclasses.replace(MODEL, mlp_activations=("silu", "linear"))
    params = jax.device_get(init_params(silu, 3))
    folder = write_t5x(tmp_path / "t5x", silu, params, step=9)
    ready, notices = prepared(run, init_from=str(folder), model=silu)
    assert ready.model == silu
    assert notices[0].startswith(f"INIT_FROM={folder}: step 9; its optimizer's state")
    started = ready.initial_params(jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    assert jax.tree.all(jax.tree.map(np.array_equal, started, params))
    assert prepared(run, init_from=str(folder), model=None)[0].model == dataclasses.replace(MODEL, dropout_rate=0.1)
    with pytest.raises(RunError, match=r"INIT_FROM=.* holds another model: mlp_dim is 32 there, 48 in the run"):
        prepared(run, init_from=str(folder), model=dataclasses.replace(silu, mlp_dim=48))
    with pytest.raises(ModelFolderError, match="give one of them: checkpoint_9"):
        prepared(run, init_from=str(folder.parent))


def test_a_run_goes_on_with_the_adafactor_of_a_t5x_checkpoint(run: Run, tmp_path: Path) -> None:
    params = jax.device_get(init_params(MODEL, 3))
    folder = write_t5x(tmp_path / "t5x", MODEL, params, step=1000)
    tree = flax.serialization.msgpack_restore((folder / "checkpoint").read_bytes())
    large = jax.tree.map(
        lambda slot: slot if slot.shape == (1,) else slot + 100, tree["optimizer"]["state"]["param_states"]
    )
    tree["optimizer"]["state"]["param_states"] = large
    (folder / "checkpoint").write_bytes(flax.serialization.msgpack_serialize(tree))

    def moved(name: str, **changes: Any) -> float:
        ready, notices = prepared(run, model_dir=str(tmp_path / name), init_from=str(folder), **changes)
        assert any("is left out" in notice for notice in notices) == (name == "anew")
        train_run(ready, SimpleNamespace(notice=print, progress=lambda progress: None, logged=lambda *line: None))
        after, _ = restore_params(tmp_path / name / "checkpoints")
        return float(np.abs(after["token_embedder"]["embedding"] - params["token_embedder"]["embedding"]).max())

    # Against second moments that large a gradient is small.
    once = TrainConfig(train_steps=1)
    assert 0 < moved("on", optimizer_from=str(folder), train=once) < 0.1 * moved("anew", train=once)
    with pytest.raises(ModelFolderError, match="this optimizer is another"):
        prepared(run, optimizer_from=str(folder), optimizer=OptimizerConfig(name="adamw", learning_rate=0.1))
    with pytest.raises(ModelFolderError, match=r"moments that do not fit .*(?s:.*)lora/a/v: missing"):
        prepared(run, optimizer_from=str(folder), tuning=(LoRA(rank=2),))


def test_what_cannot_be_merged_is_told_and_its_promised_export_refused_at_the_start(run: Run, tmp_path: Path) -> None:
    _, notices = prepared(run, tuning=(BitFit(),))
    assert [notice for notice in notices if "to a model without biases, as T5, they are added" in notice]
    with pytest.raises(RunError, match=r"EXPORT_TO=.*/hf: what BitFit, BottleneckAdapter adds fits no plain"):
        prepared(run, tuning=(BitFit(), BottleneckAdapter()), export_to=str(tmp_path / "hf"))
    for method in (PromptTuning(length=3, init="random"), PTuning(length=3), PrefixTuning(length=3)):
        with pytest.raises(RunError, match=f"what {type(method).__name__} adds fits no plain .* --format=peft"):
            prepared(run, tuning=(LoRA(), method), export_to=str(tmp_path / "hf"))


def test_an_export_that_an_adapter_makes_impossible_is_refused_at_the_start(adapters: Run, tmp_path: Path) -> None:
    if "prompt" not in {method.name for method in read_peft(str(adapters.adapter_from), MODEL).methods}:
        assert prepared(adapters, export_to=str(tmp_path / "hf"))[0].run.export_to == str(tmp_path / "hf")
        return
    with pytest.raises(RunError, match="what PromptTuning adds fits no plain"):
        prepared(adapters, export_to=str(tmp_path / "hf"))


def test_a_rank_that_nobody_would_choose_is_refused_before_data_is_looked_at(run: Run) -> None:
    nowhere = dataclasses.replace(run.data, mixture="nowhere")
    with pytest.raises(TuningError, match=r"LoRA.rank = 17 is larger than a target of 16 x 16: give at most 16 for"):
        prepared(run, tuning=(LoRA(rank=17),), data=nowhere)
    with pytest.raises(TuningError, match=r"LoRA.rank_pattern = 33 is larger than a target of 32 x 16"):
        prepared(run, tuning=(LoRA(targets=".*/(key|wo)", rank_pattern={".*/wo": 33}),), data=nowhere)


def test_a_run_is_not_written_to_an_address(run: Run) -> None:
    cache = dataclasses.replace(run.data, cache_dir="gs://bucket/place")
    for changes in ({"model_dir": "gs://bucket/place"}, {"data": cache}, {"export_to": "gs://bucket/place"}):
        with pytest.raises(FileError, match="gs://bucket/place is an address, and nothing is written to one"):
            prepared(run, **changes)


def test_a_selection_is_part_of_what_a_run_is(run: Run) -> None:
    whole = prepared(run)[0].settings.data.to_dict()
    assert whole["examples_per_task"] is None
    assert "select" not in whole
    data = dataclasses.replace(run.data, examples_per_task=0.5, select="longest_targets")
    few = prepared(run, data=data)[0].settings.data.to_dict()
    with pytest.raises(TrainingError, match=r"data\.examples_per_task: it was None, now it is 0\.5\n.*data\.select"):
        check_config({"data": whole}, {"data": few}, fixed=("data",), free=(), where="here")
