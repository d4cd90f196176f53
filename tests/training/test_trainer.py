"""The loop: whatever stops a run, the same command ends it as if nothing had happened."""

import json
import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flanjax.errors import FlanjaxError
from flanjax.files import read_json_lines
from flanjax.models.t5 import init_params
from flanjax.sharding.mesh import MeshConfig, make_mesh
from flanjax.training import trainer
from flanjax.training.checkpoints import CheckpointError, restore_params, whole_steps
from flanjax.training.interfaces import Silence, TrainConfig, TrainingError
from flanjax.training.optimizers import OptimizerConfig

TIMINGS = {"seconds", "tokens_per_second"}


class Recorder(Silence):
    """Keeps what it is told; calls `at[step]` when the run tells of that step."""

    def __init__(self, at=None):
        self.notices, self.steps, self.lines, self.at = [], [], [], at or {}

    def progress(self, progress):
        self.steps.append(progress)
        self.at.get(progress.step, lambda: None)()

    def logged(self, step, split, values):
        self.lines.append((step, split))

    def notice(self, message):
        self.notices.append(message)


def terminate():
    signal.raise_signal(signal.SIGTERM)


def log_of(folder):
    lines = read_json_lines(folder / "metrics.jsonl")
    return [{key: value for key, value in line.items() if key not in TIMINGS} for line in lines]


def assert_same_run(folder, reference):
    """Same parameters, optimizer state, position and log, to the last bit."""
    for name in ("params", "optimizer", "data"):
        ours, theirs = (_contents(f, name) for f in (folder, reference))
        assert jax.tree.structure(ours) == jax.tree.structure(theirs)
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert log_of(folder) == log_of(reference)


def _contents(folder, name):
    step = whole_steps(folder / "checkpoints")[-1]
    path = folder / "checkpoints" / str(step)
    if name == "data":
        return json.loads((path / "data" / "data.json").read_text())
    from orbax.checkpoint import v1 as ocp

    return ocp.load_checkpointables(path, {name: None})[name]


@pytest.fixture(scope="module", autouse=True)
def _each_program_compiled_once():
    """All runs here have one optimizer and schedule, so model, mesh and options tell their programs apart."""
    make, compile_, programs = trainer.make_train_step, trainer.compile_step, {}

    def make_named(model, compute, loss, optimizer, schedule, layout, **options):
        step = make(model, compute, loss, optimizer, schedule, layout, **options)
        step.name = model, compute, loss, layout.mesh, jax.tree.structure(layout.state), *options.items()
        return step

    def compile_once(step, layout, batch):
        if step.name not in programs:
            programs[step.name] = compile_(step, layout, batch)
        return programs[step.name]

    trainer.make_train_step, trainer.compile_step = make_named, compile_once
    yield
    trainer.make_train_step, trainer.compile_step = make, compile_


@pytest.fixture(scope="module")
def uninterrupted(tiny_run, tmp_path_factory):
    """The folder of the run that nothing stops."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    tiny_run.start(folder)
    return folder


def test_a_run_leaves_a_log_a_plot_events_and_its_last_checkpoint(uninterrupted):
    lines = log_of(uninterrupted)
    assert [(line["step"], line["split"]) for line in lines] == [
        (3, "train"),
        (4, "validation"),
        (6, "train"),
        (8, "train"),
        (8, "validation"),
    ]
    assert all(np.isfinite(value) for line in lines for value in line["values"].values())
    assert (uninterrupted / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert list((uninterrupted / "tensorboard").iterdir())
    assert whole_steps(uninterrupted / "checkpoints") == [6, 8]
    assert not list((uninterrupted / "checkpoints").glob("*tmp*"))


def test_a_run_asked_for_again_trains_nothing(tiny_run, uninterrupted):
    before = (uninterrupted / "metrics.jsonl").read_bytes()
    batches, told = tiny_run.Batches(), Recorder()
    result = tiny_run.start(uninterrupted, batches=batches, observer=told)
    assert (result.step, result.stopped_by, batches.given) == (8, None, [])
    assert "step 8 and is whole: nothing is trained" in told.notices[0]
    assert (uninterrupted / "metrics.jsonl").read_bytes() == before


def test_a_run_asked_for_fewer_steps_than_it_has_says_so(tiny_run, uninterrupted):
    told = Recorder()
    assert tiny_run.start(uninterrupted, train_steps=5, observer=told).step == 8
    assert "step 8 and is past the 5 steps asked for" in told.notices[0]


@pytest.mark.parametrize("step", [1, 4, 7])
def test_stopped_after_any_step_and_resumed_equals_uninterrupted(tiny_run, uninterrupted, tmp_path, step):
    first, second = tiny_run.Batches(), tiny_run.Batches()
    result = tiny_run.start(tmp_path, batches=first, observer=Recorder(at={step: terminate}))
    assert result.stopped_by == "SIGTERM"
    assert step <= result.step <= step + 1
    result = tiny_run.start(tmp_path, batches=second)
    assert (result.step, result.stopped_by) == (8, None)
    # A batch may be made and not used when the signal comes; none is used twice.
    assert first.given[: 8 - len(second.given)] + second.given == list(range(8))
    assert_same_run(tmp_path, uninterrupted)


def test_a_longer_run_goes_on_from_a_shorter_one(tiny_run, uninterrupted, tmp_path):
    tiny_run.start(tmp_path, train_steps=5)
    tiny_run.start(tmp_path, train_steps=8)
    ours, theirs = (restore_params(folder / "checkpoints")[0] for folder in (tmp_path, uninterrupted))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_sigterm_within_an_evaluation(tiny_run, uninterrupted, tmp_path):
    seen = []

    def slow(params, should_stop):
        terminate_from_elsewhere()
        while not should_stop():
            time.sleep(0.01)
        seen.append("stopped")
        return {"loss": 0.0}

    result = tiny_run.start(tmp_path, evaluators={"validation": slow})
    assert (result.step, result.stopped_by, result.work_left_behind, seen) == (4, "SIGTERM", False, ["stopped"])
    assert [line["split"] for line in log_of(tmp_path)] == ["train"]
    tiny_run.start(tmp_path)
    assert_same_run(tmp_path, uninterrupted)


def test_what_a_signal_cut_off_the_last_step_is_made_up_for_once(tiny_run, uninterrupted, tmp_path):
    def stops(params, should_stop):
        terminate_from_elsewhere()
        return {"loss": 0.0}

    result = tiny_run.start(tmp_path, evaluators={"validation": stops}, eval_every=8)
    assert (result.step, result.stopped_by) == (8, "SIGTERM")
    counted = []

    def counts(params, should_stop):
        counted.append(1)
        return {"loss": 1.0}

    for _ in range(2):
        tiny_run.start(tmp_path, evaluators={"validation": counts}, eval_every=8)
    assert counted == [1]
    assert [(line["step"], line["split"]) for line in log_of(tmp_path)][-2:] == [(8, "train"), (8, "validation")]


def terminate_from_elsewhere():
    signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)


def test_killed_after_a_made_up_evaluation_logs_it_once(tiny_run, uninterrupted, tmp_path):
    def stops(params, should_stop):
        terminate_from_elsewhere()
        return {"loss": 0.0}

    class Killed(Exception):
        pass

    def kill():
        raise Killed

    tiny_run.start(tmp_path, evaluators={"validation": stops})
    with pytest.raises(Killed):
        tiny_run.start(tmp_path, observer=Recorder(at={5: kill}))
    tiny_run.start(tmp_path)
    assert_same_run(tmp_path, uninterrupted)


def test_sigterm_while_compiling_does_not_wait(tiny_run, tmp_path, monkeypatch):
    released = threading.Event()

    def endless(*arguments):
        terminate_from_elsewhere()
        released.wait(60)

    monkeypatch.setattr("flanjax.training.trainer.compile_step", endless)
    result = tiny_run.start(tmp_path)
    released.set()
    assert (result.step, result.stopped_by, result.work_left_behind) == (0, "SIGTERM", True)
    assert not (tmp_path / "checkpoints").exists()


def test_an_evaluation_that_does_not_listen_is_left_behind(tiny_run, uninterrupted, tmp_path):
    released = threading.Event()

    def deaf(params, should_stop):
        terminate_from_elsewhere()
        released.wait(60)
        return {"loss": 0.0}

    result = tiny_run.start(tmp_path, evaluators={"validation": deaf})
    released.set()
    assert (result.step, result.stopped_by, result.work_left_behind) == (4, "SIGTERM", True)
    tiny_run.start(tmp_path)
    assert_same_run(tmp_path, uninterrupted)


def test_the_handlers_of_signals_are_put_back(tiny_run, uninterrupted):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    tiny_run.start(uninterrupted)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_an_evaluation_before_the_first_step(tiny_run, tmp_path):
    told = Recorder()
    tiny_run.start(tmp_path, train_steps=2, eval_at_start=True, observer=told)
    assert told.lines == [(0, "validation"), (2, "train"), (2, "validation")]


def test_the_end_of_the_data_ends_the_run(tiny_run, tmp_path):
    told = Recorder()
    result = tiny_run.start(tmp_path, batches=tiny_run.Batches(count=5), observer=told)
    assert (result.step, result.stopped_by) == (5, None)
    assert any("data ended at step 5 of 8" in notice for notice in told.notices)
    assert told.lines[-2:] == [(5, "train"), (5, "validation")]
    assert whole_steps(tmp_path / "checkpoints")[-1] == 5


def test_non_finite_steps_are_told_logged_and_end_the_run(tiny_run, tmp_path):
    def not_a_number(shardings):
        params = init_params(tiny_run.TINY, 0)
        params["encoder"]["encoder_norm"]["scale"] = params["encoder"]["encoder_norm"]["scale"].at[0].set(jnp.nan)
        return params

    told = Recorder()
    with pytest.raises(TrainingError, match=r"4 times in a row.*global_norm_clip"):
        tiny_run.start(tmp_path, initial_params=not_a_number, stop_after_skipped=4, checkpoint_every=0, observer=told)
    assert sum("update was skipped" in notice for notice in told.notices) == 4
    line = log_of(tmp_path)[0]
    assert line["values"]["skipped"] == 3
    assert np.isnan(line["values"]["loss"])
    assert not whole_steps(tmp_path / "checkpoints")


def test_one_bad_batch_is_skipped_and_the_run_goes_on(tiny_run, tmp_path):
    class OneBad(tiny_run.Batches):
        def __next__(self):
            batch = super().__next__()
            # Token ids out of the vocabulary have no logit: their loss is NaN.
            if self.given[-1] == 2:
                batch["decoder_target_tokens"] = batch["decoder_target_tokens"] + 1000
            return batch

    told = Recorder()
    result = tiny_run.start(tmp_path, batches=OneBad(), observer=told, train_steps=6)
    assert (result.step, result.skipped) == (6, 1)
    assert [notice for notice in told.notices if "skipped" in notice] == [
        "step 3: loss or gradient not finite, the update was skipped (1 in a row)"
    ]
    assert [line["values"]["skipped"] for line in log_of(tmp_path) if line["split"] == "train"] == [1, 0]


def test_a_half_written_checkpoint_is_passed_over(tiny_run, uninterrupted, tmp_path):
    tiny_run.start(tmp_path, observer=Recorder(at={7: terminate}))
    newest = whole_steps(tmp_path / "checkpoints")[-1]
    assert newest in (7, 8)
    (tmp_path / "checkpoints" / str(newest) / "optimizer" / "manifest.ocdbt").unlink()
    told = Recorder()
    tiny_run.start(tmp_path, observer=told)
    assert any(f"checkpoints/{newest} was never finished" in notice for notice in told.notices)
    assert any("checkpoint of step 6" in notice for notice in told.notices)
    assert_same_run(tmp_path, uninterrupted)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"model": {"mlp_dim": 48}}, ["model.mlp_dim: it was 32, now it is 48"]),
        ({"data": {"mixture": "p3"}}, ["data.mixture: it was 'demo', now it is 'p3'"]),
        ({"data": {"mixture": "demo", "seed": 1}}, ["data.seed: it was None, now it is 1"]),
    ],
)
def test_another_model_or_data_is_refused_by_name(tiny_run, uninterrupted, changed, words):
    config = {"model": {"mlp_dim": 32}, "data": {"mixture": "demo"}, **changed}
    before = (uninterrupted / "metrics.jsonl").read_bytes()
    with pytest.raises(TrainingError) as error:
        tiny_run.start(uninterrupted, run_config=config, train_steps=12)
    assert all(word in str(error.value) for word in words)
    assert (uninterrupted / "metrics.jsonl").read_bytes() == before


def test_another_optimizer_is_refused_by_path(tiny_run, uninterrupted):
    with pytest.raises(CheckpointError, match=r"optimizer/opt_state/\S+: absent in the checkpoint"):
        tiny_run.start(uninterrupted, optimizer=OptimizerConfig(name="adamw"), train_steps=12)


def test_the_mesh_may_change_between_two_parts_of_a_run(tiny_run, uninterrupted, tmp_path):
    tiny_run.start(tmp_path, observer=Recorder(at={5: terminate}))
    tiny_run.start(tmp_path, mesh=make_mesh(MeshConfig(data=2, fsdp=2, model=2)))
    ours, theirs = ([line["values"]["loss"] for line in log_of(f)] for f in (tmp_path, uninterrupted))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


def test_rows_that_do_not_divide_leave_nothing_behind(tiny_run, tmp_path):
    with pytest.raises(TrainingError, match="micro-batches"):
        tiny_run.start(tmp_path / "run", microbatches=3)
    assert not (tmp_path / "run").exists()


def test_the_loop_moves_nothing_to_the_device_by_accident(tiny_run, tmp_path):
    with jax.transfer_guard("disallow"):
        result = tiny_run.start(tmp_path, train_steps=4)
    assert result.step == 4


def test_progress_tells_speed_padding_and_time_left(tiny_run, tmp_path):
    told = Recorder()
    tiny_run.start(tmp_path, train_steps=4, observer=told)
    assert [progress.step for progress in told.steps] == [1, 2, 3, 4]
    assert all(progress.tokens_per_second > 0 and 0 < progress.encoder_padding < 1 for progress in told.steps)
    assert told.steps[-1].seconds_left == 0


def test_the_best_checkpoint_is_kept_by_its_own_evaluation(tiny_run, tmp_path):
    values = iter([3.0, 1.0, 2.0, 4.0])

    def evaluator(params, should_stop):
        return {"loss": next(values)}

    tiny_run.start(
        tmp_path, evaluators={"validation": evaluator}, eval_every=2, checkpoint_every=2, keep_latest=1, keep_best=1
    )
    assert whole_steps(tmp_path / "checkpoints") == [4, 8]


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, [2, 6]),
        ({"best_metric": "second/loss"}, [4, 6]),
        ({"best_metric": "first/score"}, [2, 6]),
        ({"best_metric": "first/score", "best_is_lowest": True}, [4, 6]),
    ],
)
def test_the_best_is_by_the_first_evaluations_loss_unless_another_is_named(tiny_run, tmp_path, options, kept):
    def evaluator(*losses):
        left = iter(losses)
        return lambda params, should_stop: {"loss": (loss := next(left)), "score": -loss}

    tiny_run.start(
        tmp_path,
        evaluators={"first": evaluator(1.0, 3.0, 2.0), "second": evaluator(2.0, 1.0, 3.0)},
        train_steps=6,
        eval_every=2,
        checkpoint_every=2,
        keep_latest=1,
        keep_best=1,
        **options,
    )
    assert whole_steps(tmp_path / "checkpoints") == kept


@pytest.mark.parametrize(
    "bad", [{"train_steps": 0}, {"microbatches": 0}, {"eval_every": -1}, {"log_every": 1.5}, {"keep_best": 1}]
)
def test_settings_that_cannot_be_are_named(bad):
    with pytest.raises(FlanjaxError, match=next(iter(bad))):
        TrainConfig(**{"train_steps": 1, **bad})
