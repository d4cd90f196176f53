"""A run's model decides its rows: a decoder's are packed, evaluated, answered and read back as they were trained."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import flanjax
from flanjax import doors
from flanjax.data.cache import CachedMixture, Example
from flanjax.data.cache_writer import write_mixture, write_split
from flanjax.data.loader import DataConfig
from flanjax.data.vocabularies import Vocabulary, VocabularySource, train_vocabulary
from flanjax.evaluation.evaluators import EvaluationConfig
from flanjax.export import PREFIX_LM, export
from flanjax.generation.scoring import score
from flanjax.interchange.hf_decoder import write_hf_decoder
from flanjax.loading import Model
from flanjax.models.config import Compute, ModelConfigError, T5Config
from flanjax.models.decoder import init_params
from flanjax.models.decoder_config import DecoderConfig
from flanjax.run import CONFIGURABLES, Prepared, Run, RunError, compile_run, describe, layout_of, prepare, train_run
from flanjax.sharding.mesh import MeshConfig
from flanjax.training.interfaces import Silence, TrainConfig, TrainingError
from flanjax.training.losses import LossConfig
from flanjax.training.optimizers import OptimizerConfig
from flanjax.tuning.bitfit import BitFit
from flanjax.tuning.partition import merge
from flanjax.tuning.prefix import PrefixTuning
from flanjax.tuning.prompt import PromptTuning

MODEL = DecoderConfig(
    vocab_size=64, embed_dim=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=32, init_stddev=0.2
)
LEARNED = dataclasses.replace(MODEL, positions="learned", max_positions=24)
T5 = T5Config(
    vocab_size=64, embed_dim=16, num_heads=2, head_dim=8, mlp_dim=32, num_encoder_layers=1, num_decoder_layers=1
)
RANDOM = np.random.default_rng(0)
pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    texts = [f"{i} and {i * 7} words of March" for i in range(300)]
    return train_vocabulary(texts, 40, tmp_path_factory.mktemp("vocabulary") / "spiece.model", extra_ids=4)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, vocabulary: Vocabulary) -> Path:
    """Examples of 4 to 18 tokens, some of whose target tokens do not count."""
    folder = tmp_path_factory.mktemp("cache")
    for split, count in (("train", 60), ("validation", 6)):
        examples = [
            Example(
                inputs=RANDOM.integers(3, 40, RANDOM.integers(2, 12)),
                targets=(targets := np.array([*RANDOM.integers(3, 40, RANDOM.integers(1, 6)), 1])),
                target_weights=RANDOM.integers(0, 2, len(targets)) | (targets == 1),
                text=None if split == "train" else {"inputs": "3 and", "targets": "21"},
            )
            for _ in range(count)
        ]
        settings = {"vocabulary_id": vocabulary.identity, "fingerprint": "made up", "seed": 0}
        write_split(folder, "chats", split, iter(examples), **settings)
    tasks = [{"task": "chats", "rate": None, "splits": dict.fromkeys(("train", "validation"), "made up")}]
    write_mixture(folder, "mix", vocabulary, seed=0, tasks=tasks)
    return folder


@pytest.fixture
def run(tmp_path: Path, cache: Path) -> Run:
    return Run(
        model_dir=str(tmp_path / "run"),
        model=MODEL,
        compute=Compute(),
        mesh=MeshConfig(),
        init_from=None,
        tasks={},
        vocabulary=VocabularySource(),
        data=DataConfig(mixture="mix", cache_dir=str(cache), feature_lengths={"tokens": 24}, batch_rows=8),
        loss=LossConfig(z_loss=0.0),
        optimizer=OptimizerConfig(learning_rate=1e-2, name="adamw"),
        train=TrainConfig(train_steps=4, eval_every=4, checkpoint_every=2),
        evaluation=EvaluationConfig(questions=4, max_new_tokens=6),
        export_to=None,
    )


def prepared(run: Run, **changes: Any) -> Prepared:
    def materialize(mixtures: Sequence[str]) -> None:
        raise AssertionError(f"{mixtures} are in the cache")

    return prepare(dataclasses.replace(run, **changes), materialize, lambda notice: None)


def with_data(run: Run, **changes: Any) -> Run:
    return dataclasses.replace(run, data=dataclasses.replace(run.data, **changes))


def test_the_layout_follows_from_the_model(run: Run) -> None:
    found = prepared(run)
    assert found.run.data.layout == "causal"
    assert found.settings["data"]["layout"] == "causal"
    assert found.settings["model"]["kind"] == "decoder"
    assert "decoder_causal_attention" in next(prepared(with_data(run, layout="prefix_lm")).batches)
    t5 = prepared(with_data(run, feature_lengths={"inputs": 16, "targets": 8}), model=T5)
    assert "layout" not in t5.settings["data"], "a run from before there was a choice goes on"
    for model, layout in ((MODEL, "encoder_decoder"), (T5, "causal")):
        lengths = {"feature_lengths": "auto"}
        with pytest.raises(RunError, match=f"DataConfig.layout is '{layout}', and the model is a"):
            prepared(with_data(run, layout=layout, **lengths), model=model)


def test_biases_of_a_models_own_can_be_exported_and_added_ones_cannot(run: Run, tmp_path: Path) -> None:
    to = {"tuning": (BitFit(),), "export_to": str(tmp_path / "hf")}
    biased = dataclasses.replace(MODEL, qkv_bias=True)
    assert prepared(run, model=biased, **to).run.export_to == to["export_to"]
    with pytest.raises(RunError, match="what BitFit adds fits no plain Hugging Face model"):
        prepared(run, **to)


@pytest.mark.parametrize("layout", ["causal", "prefix_lm"])
def test_what_was_measured_while_it_trained_is_what_is_read_back(run: Run, layout: str) -> None:
    found = prepared(with_data(run, layout=layout))
    describe(found, "", "")
    result = train_run(found, Silence())
    assert result.step == 4
    lines = [json.loads(line) for line in (Path(run.model_dir) / "metrics.jsonl").read_text().splitlines()]
    measured = next(line["values"] for line in lines if line["split"] == "mix" and line["step"] == 4)
    model = flanjax.load(run.model_dir)
    assert model.prefix_lm == (layout == "prefix_lm")
    # The examples one by one: what the loaded model says of each target token that counts.
    total, count = 0.0, 0
    for example in CachedMixture.open(run.data.cache_dir, "mix", "validation").tasks[0].read(range(6)):
        weights = example.target_weights
        assert weights is not None
        total -= weighted_score(model, example.inputs, example.targets, weights)
        count += int(weights.sum())
    assert measured["loss"] == pytest.approx(total / count, rel=1e-4)
    told = export(run.model_dir, Path(run.model_dir).parent / "hf").notices
    assert told == ((PREFIX_LM,) if model.prefix_lm else ())
    report = found.evaluators["mix"].report
    assert report is not None
    assert len(report.answers) == 4


def weighted_score(model: Model, inputs: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> float:
    how = {"prefix_lm": model.prefix_lm}
    (found,) = score(model.config, model.compute, model.params, [inputs], [targets], **how)
    return float(np.dot(found.logprobs, weights))


def test_an_uninterrupted_run_and_a_resumed_one_are_equal_and_another_layout_is_refused(
    run: Run, tmp_path: Path
) -> None:
    whole = train_run(prepared(run), Silence())
    short = dataclasses.replace(run, model_dir=str(tmp_path / "short"))
    train_run(prepared(short, train=TrainConfig(train_steps=2, checkpoint_every=2)), Silence())
    resumed = train_run(prepared(short), Silence())
    jax.tree.map(np.testing.assert_array_equal, whole.params, resumed.params)
    with pytest.raises(TrainingError, match=r"data\.layout: it was 'causal', now it is 'prefix_lm'"):
        train_run(prepared(with_data(short, layout="prefix_lm")), Silence())


def test_a_learnt_prompt_on_a_mesh_of_every_axis_measures_and_answers_as_on_one_of_one(run: Run) -> None:
    prompted = dataclasses.replace(run, tuning=(PromptTuning(length=3),))
    measured = []
    for mesh in (MeshConfig(), MeshConfig(data=2, fsdp=2, model=2)):
        found = prepared(prompted, mesh=mesh)
        assert found.model.prompt_length == 3
        layout = layout_of(found)
        params = merge(*layout.place(found.initial_params(layout.shardings.all_params)))
        with jax.set_mesh(found.mesh):
            values = found.evaluators["mix"](params, lambda: False)
        report = found.evaluators["mix"].report
        assert report is not None
        measured.append((values["loss"], [answer.text for answer in report.answers]))
    assert measured[0][0] == pytest.approx(measured[1][0], rel=1e-5)
    assert measured[0][1] == measured[1][1]


def test_it_compiles_without_data(run: Run) -> None:
    for layout in ("causal", "prefix_lm"):
        found = prepared(with_data(run, layout=layout))
        memory = compile_run(found, layout_of(found))
        assert memory is None or memory.total > 0


def test_positions_that_were_not_learned_are_never_asked_for(run: Run) -> None:
    chosen = prepared(with_data(run, feature_lengths="auto"), model=LEARNED)
    assert chosen.batches.row_lengths == (24,)
    # Questions leave room for their answers: none of these stands beyond position 24.
    asked = chosen.evaluators["mix"]
    values = asked(jax.device_put(init_params(LEARNED, 0)), lambda: False)
    assert np.isfinite(values["loss"])
    assert "exact_match" in values
    with pytest.raises(
        RunError, match=r"rows of 25 tokens: the model has learned 24 positions .* \{'tokens': 24\} at most"
    ):
        prepared(with_data(run, feature_lengths={"tokens": 25}), model=LEARNED)
    prefix = (PrefixTuning(length=4),)
    assert prepared(with_data(run, feature_lengths="auto"), model=LEARNED, tuning=prefix).batches.row_lengths == (20,)
    with pytest.raises(RunError, match=r"24 positions \(max_positions\), 4 of which .* \{'tokens': 20\} at most"):
        prepared(with_data(run, feature_lengths={"tokens": 21}), model=LEARNED, tuning=prefix)
    with pytest.raises(RunError, match="max_new_tokens is 23, and the model has 24 positions"):
        prepared(run, model=LEARNED, evaluation=EvaluationConfig(max_new_tokens=23))


def test_a_decoder_of_random_parameters_from_gin_files(tmp_path: Path) -> None:
    (tmp_path / "own.gin").write_text(
        'include "models/smollm2_135m.gin"\ninclude "common.gin"\nRun.model = @DecoderConfig()\n'
    )
    given = {"MODEL_DIR": "'x'", "MIXTURE": "'x'", "TRAIN_STEPS": "1", "LEARNING_RATE": "0.1"}
    given |= {"FEATURE_LENGTHS": "{'tokens': 512}", "DataConfig.layout": "'prefix_lm'"}
    doors.configure(doors.GinSources(files=(str(tmp_path / "own.gin"),), overrides=tuple(given.items())), CONFIGURABLES)
    built = doors.build(Run)
    assert isinstance(built, Run)
    assert isinstance(built.model, DecoderConfig)
    assert (built.model.num_layers, built.model.rotary.theta) == (30, 100_000.0)
    assert built.data.layout == "prefix_lm"


def test_a_model_of_the_other_kind_is_refused(run: Run, tmp_path: Path) -> None:
    write_hf_decoder(tmp_path / "model", MODEL, jax.device_get(init_params(MODEL, 0)))
    source = str(tmp_path / "model")
    assert prepared(run, init_from=source).model == MODEL
    with pytest.raises(RunError, match="holds a decoder, and the model of the run is a T5"):
        prepared(with_data(run, feature_lengths={"inputs": 16, "targets": 8}), model=T5, init_from=source)
    with pytest.raises(RunError, match="holds another model: mlp_dim is 32 there, 48 in the run"):
        prepared(run, model=dataclasses.replace(MODEL, mlp_dim=48), init_from=source)
    with pytest.raises(ModelConfigError, match="head_dim"):
        dataclasses.replace(MODEL, head_dim=0)
