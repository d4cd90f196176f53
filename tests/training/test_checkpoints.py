"""Checkpoints: what is saved comes back on any mesh; what is damaged, foreign or does not fit is explained."""

import errno
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from flanjax.sharding.mesh import MeshConfig, make_mesh
from flanjax.training.checkpoints import CheckpointError, Checkpoints, restore_params, whole_steps
from flanjax.training.step import TrainState

CONFIG = {"model": {"mlp_dim": 16, "mlp_activations": ["gelu", "linear"]}, "init_from": None}
POSITION = {"batches": {"window": 3, "row": 4}, "window": {"steps": 1, "sums": {"loss": 0.1 + 0.2}}, "evaluated": -1}


def state(step: int, devices: int = 1) -> TrainState:
    mesh = make_mesh(MeshConfig(data=1, fsdp=devices), jax.devices()[:devices])
    place = NamedSharding(mesh, PartitionSpec("fsdp"))
    everywhere = NamedSharding(mesh, PartitionSpec())
    kernel = jax.random.normal(jax.random.key(step), (8, 16))
    moment = {"mu": {"dense": {"kernel": kernel * 2}}, "count": jnp.int32(step)}
    tree = TrainState(
        step=jnp.int32(step),
        params={"dense": {"kernel": kernel}},
        opt_state=(moment,),
        skipped=jnp.int32(1),
        skipped_in_a_row=jnp.int32(0),
    )
    return jax.tree.map(lambda x: jax.device_put(x, place if x.ndim else everywhere), tree)


def layout(tree: TrainState) -> TrainState:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def save(folder, *steps: int, **options) -> None:
    with Checkpoints(folder, **options) as checkpoints:
        for step in steps:
            checkpoints.save(step, state(step), POSITION, CONFIG, {"validation/loss": abs(step - 2.5)})


def assert_equal(a, b) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 8), (8, 1), (8, 4)])
def test_a_state_comes_back_bit_for_bit_on_any_mesh(tmp_path, before, after):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, state(5, before), POSITION, CONFIG)
    wanted = state(5, after)
    restored = Checkpoints(tmp_path).restore(5, layout(wanted))
    assert_equal(restored.state, wanted)
    assert restored.position == POSITION
    assert Checkpoints(tmp_path).config(5) == CONFIG
    kernel = restored.state.params["dense"]["kernel"]
    assert len(kernel.sharding.device_set) == after
    assert kernel.addressable_shards[0].data.shape == (8 // after, 16)


def test_saving_does_not_wait_and_the_arrays_may_be_given_away(tmp_path):
    change = jax.jit(lambda tree: jax.tree.map(lambda x: x * 2, tree), donate_argnums=0)
    tree = state(1)
    expected = jax.device_get(tree)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, tree, POSITION, CONFIG)
        tree = jax.block_until_ready(change(tree))
    assert_equal(jax.device_get(Checkpoints(tmp_path).restore(1, layout(tree)).state), expected)


def test_the_newest_and_the_best_are_kept(tmp_path):
    save(tmp_path, 1, 2, 3, 4, 5, keep_latest=2)
    assert whole_steps(tmp_path) == [4, 5]
    save(tmp_path / "best", 1, 2, 4, 5, keep_latest=1, keep_best=1)
    assert whole_steps(tmp_path / "best") == [2, 5]
    save(tmp_path / "highest", 6, 1, 4, 5, keep_latest=1, keep_best=1, best_is_lowest=False)
    assert whole_steps(tmp_path / "highest") == [5, 6]


def test_not_a_number_is_never_the_best(tmp_path):
    with Checkpoints(tmp_path, keep_latest=1, keep_best=1) as checkpoints:
        for step, value in ((1, 2.0), (2, float("nan")), (3, None), (4, 5.0)):
            values = None if value is None else {"validation/loss": value}
            checkpoints.save(step, state(step), POSITION, CONFIG, values)
    assert whole_steps(tmp_path) == [1, 4]


def test_parameters_alone_come_back_as_numpy(tmp_path):
    save(tmp_path, 1, 2)
    params, step = restore_params(tmp_path)
    assert step == 2
    assert isinstance(params["dense"]["kernel"], np.ndarray)
    assert_equal(params, jax.device_get(state(2).params))
    assert restore_params(tmp_path, 1)[1] == 1


def test_a_missing_step_or_folder_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        restore_params(tmp_path / "nowhere")
    save(tmp_path, 1, 2)
    with pytest.raises(CheckpointError, match="step 7; there are 1, 2"):
        restore_params(tmp_path, 7)


@pytest.mark.parametrize(
    "missing", ["_CHECKPOINT_METADATA", "params/manifest.ocdbt", "optimizer/_METADATA", "data/data.json", "config"]
)
def test_what_is_not_whole_is_passed_over_with_a_notice_and_can_be_written_again(tmp_path, missing):
    save(tmp_path, 1, 2)
    path = tmp_path / "2" / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    (tmp_path / "3.orbax-checkpoint-tmp" / "params").mkdir(parents=True)
    notices = []
    with Checkpoints(tmp_path, notice=notices.append) as checkpoints:
        checkpoints.report_unfinished()
        assert checkpoints.latest() == 1
        checkpoints.save(2, state(2), POSITION, CONFIG)
    assert [notice.split(" was")[0] for notice in notices] == [
        f"{tmp_path / name}" for name in ("2", "3.orbax-checkpoint-tmp")
    ]
    assert whole_steps(tmp_path) == [1, 2]
    assert_equal(Checkpoints(tmp_path).restore(2, layout(state(2))).state, state(2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2", "2.incomplete"]


def test_unfinished_folders_do_not_add_up(tmp_path):
    def damage(step):
        (tmp_path / str(step) / "params" / "manifest.ocdbt").unlink()

    save(tmp_path, 1)
    for _ in range(2):  # the same step comes to nothing twice
        save(tmp_path, 2)
        damage(2)
    save(tmp_path, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2.incomplete", "3"]
    damage(3)
    save(tmp_path, 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "3.incomplete", "4"]


def test_a_checkpoint_of_another_shape_names_the_path_and_both_shapes(tmp_path):
    save(tmp_path, 1)
    wanted = layout(state(1))
    kernel = wanted.params["dense"]["kernel"]
    other = jax.ShapeDtypeStruct((8, 24), kernel.dtype, sharding=kernel.sharding)
    with pytest.raises(CheckpointError, match=r"params/dense/kernel: \(8, 16\) in the checkpoint, \(8, 24\) in this"):
        Checkpoints(tmp_path).restore(1, wanted._replace(params={"dense": {"kernel": other}}))
    with pytest.raises(CheckpointError, match=r"params/other: absent in the checkpoint, \(8, 16\) in this run"):
        Checkpoints(tmp_path).restore(1, wanted._replace(params={"other": kernel}))


def test_damaged_arrays_are_an_error_not_numbers(tmp_path):
    save(tmp_path, 1)
    for path in (tmp_path / "1" / "params" / "d").iterdir():
        path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match="cannot be read"):
        Checkpoints(tmp_path).restore(1, layout(state(1)))
    with pytest.raises(CheckpointError, match="cannot be read"):
        restore_params(tmp_path)


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        # What tensorstore makes of it.
        ValueError("RESOURCE_EXHAUSTED: Failed writing: No space left on device [os_error_code='28']"),
    ],
)
@pytest.mark.parametrize("when", ["at once", "in the background"])
def test_a_full_disk_is_a_clear_error_and_the_older_checkpoint_stays(tmp_path, monkeypatch, failure, when):
    checkpoints = Checkpoints(tmp_path, keep_latest=1)
    checkpoints.save(1, state(1), POSITION, CONFIG)
    checkpoints.wait()

    class Failing:
        def result(self):
            raise failure

    def fail(*arguments, **options):
        if when == "at once":
            raise failure
        return Failing()

    def fail_again():
        raise failure

    monkeypatch.setattr(checkpoints._orbax, "save_checkpointables_async", fail)
    monkeypatch.setattr(checkpoints._orbax, "close", fail_again)

    def save_and_look():
        with checkpoints:
            checkpoints.save(2, state(2), POSITION, CONFIG)
            checkpoints.poll()

    with pytest.raises(CheckpointError, match=r"the disk is full\. Whole checkpoints there: 1\. Make room"):
        save_and_look()
    assert_equal(Checkpoints(tmp_path).restore(1, layout(state(1))).state, state(1))


def test_a_run_that_cannot_fit_is_refused_before_it_starts(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    with pytest.raises(CheckpointError, match=r"GiB left.*make room"):
        Checkpoints(tmp_path / "run" / "checkpoints").check_room(layout(state(1)))
    assert not list(tmp_path.iterdir())


def test_an_error_while_saving_does_not_hide_the_error_that_came_first(tmp_path, monkeypatch):
    notices = []
    checkpoints = Checkpoints(tmp_path, notice=notices.append)

    def close():
        raise CheckpointError("disk")

    monkeypatch.setattr(checkpoints, "close", close)
    with pytest.raises(KeyError, match="first"), checkpoints:
        raise KeyError("first")
    assert notices == ["disk"]


def test_position_and_configuration_are_plain_json(tmp_path):
    save(tmp_path, 1)
    assert json.loads((tmp_path / "1" / "data" / "data.json").read_text()) == POSITION
    assert json.loads((tmp_path / "1" / "config" / "data.json").read_text()) == CONFIG
