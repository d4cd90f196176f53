import jax
import pytest

from flanjax.sharding.mesh import MeshConfig, ShardingError, make_mesh, mesh_config


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (MeshConfig(), (8, 1, 1)),
        (MeshConfig(fsdp=4), (2, 4, 1)),
        (MeshConfig(data=2, fsdp=-1, model=2), (2, 2, 2)),
        (MeshConfig(data=1, fsdp=1, model=8), (1, 1, 8)),
    ],
)
def test_the_rest_goes_to_the_open_axis(config, shape):
    mesh = make_mesh(config)
    assert mesh.axis_names == ("data", "fsdp", "model")
    assert mesh.devices.shape == shape
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


def test_devices_can_be_chosen():
    mesh = make_mesh(MeshConfig(fsdp=2), devices=jax.devices()[2:6])
    assert set(mesh.devices.flat) == set(jax.devices()[2:6])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MeshConfig(fsdp=3), r"fsdp=3.*8 devices"),
        (MeshConfig(data=2, fsdp=2), r"data=2, fsdp=2, model=1.*8 devices"),
        (MeshConfig(fsdp=-1), "at most one"),
        (MeshConfig(model=0), "at least 1"),
    ],
)
def test_a_mesh_that_does_not_fit_says_so(config, message):
    with pytest.raises(ShardingError, match=message):
        make_mesh(config)


@pytest.mark.parametrize(
    ("text", "config"),
    [
        ("data=2,model=4", MeshConfig(data=2, model=4)),
        ("data=2:model=4", MeshConfig(data=2, model=4)),
        ("model=8", MeshConfig(model=8)),
        ("fsdp=-1,data=1", MeshConfig(data=1, fsdp=-1)),
    ],
)
def test_a_mesh_in_words(text, config):
    assert mesh_config(text) == config


@pytest.mark.parametrize("text", ["", "8", "data", "data=", "data=x", "data=2,data=2", "data=2,", "data=1.5", "dat=2"])
def test_words_that_name_no_mesh(text):
    with pytest.raises(ShardingError, match="write data=2,model=4, each of data, fsdp, model at most once"):
        mesh_config(text)
    with pytest.raises(ShardingError, match="did you mean 'model'"):
        mesh_config("modl=2")
