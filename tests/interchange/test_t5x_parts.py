"""Of a T5X checkpoint as little is read as is asked for, from a disk or from an address."""

import dataclasses
import http.server
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tensorstore

from flanjax.interchange import t5x_files
from flanjax.interchange.any_model import read_model_config
from flanjax.interchange.folders import ModelFolderError
from flanjax.interchange.stored import place
from flanjax.interchange.t5x import read_t5x, write_t5x
from flanjax.interchange.t5x_files import is_t5x, open_checkpoint
from flanjax.models.t5 import abstract_params

from .t5x_tiny import TINY, assert_same_bits, random_params, rewrite, specs


def test_an_address_is_read_parameter_by_parameter(served):
    address, asked = served
    # A path of it too: it has one of the two slashes.
    assert is_t5x(address)
    assert is_t5x(Path(address))
    config, params = read_t5x(Path(address))
    assert config == TINY == read_model_config(address)
    assert {Path(path).name for path in asked} <= {"checkpoint", "_METADATA", ".zarray"}
    asked.clear()
    layer = params["decoder"]["layers"]["self_attention"]["query"]["kernel"][1:2, :, 2:4]
    assert asked == ["/target.decoder.layers_1.self_attention.query.kernel/0.0"]
    expected = random_params(TINY)
    np.testing.assert_array_equal(
        layer, expected["decoder"]["layers"]["self_attention"]["query"]["kernel"][1:2, :, 2:4]
    )
    assert_same_bits(params, expected)
    with pytest.raises(ModelFolderError, match=r"there is no file checkpoint; give the address of one step"):
        read_t5x(f"{address}/target.token_embedder.embedding")


def test_placed_on_a_mesh_as_read_into_memory(t5x_checkpoint):
    _, params = read_t5x(t5x_checkpoint)
    mesh = jax.make_mesh((4,), ("model",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "model"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    shardings = jax.tree.map(lambda leaf: sharding if leaf.ndim == 3 else whole, params)
    assert_same_bits(place(params, shardings), random_params(TINY))


# Of the process itself, where the system's own count of the peak goes on from the parent's.
PEAK = """
import re, sys
from pathlib import Path
import jax, numpy as np
from flanjax.interchange.stored import Lazy, place
from flanjax.interchange.t5x import read_t5x

def status(field):
    return 1024 * int(re.search(rf"{field}:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

_, params = read_t5x(sys.argv[1])
sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
place({"warm": np.zeros((1, 1), np.float32)}, sharding)
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
leaves = jax.tree.leaves(place(params, sharding))
print(status("VmHWM") - before, sum(leaf.nbytes for leaf in leaves), max(leaf.nbytes for leaf in leaves))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_beyond_the_model_one_tensor_is_in_memory_packed_and_unpacked(tmp_path):
    config = dataclasses.replace(
        TINY, vocab_size=8192, embed_dim=512, mlp_dim=2048, num_encoder_layers=8, num_decoder_layers=8, tied_head=True
    )
    params = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, np.float32), abstract_params(config))
    rng = np.random.default_rng(0)
    params["token_embedder"]["embedding"] = rng.standard_normal((8192, 512), np.float32)
    folder = write_t5x(tmp_path / "model", config, params)
    command = [sys.executable, "-c", PEAK, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    grown, model, largest = map(int, done.stdout.split())
    assert model > 6 * largest
    assert model < grown < model + 2.5 * largest


def test_an_address_of_google_cloud_storage_has_its_own_bucket_and_not_the_placeholder(t5x_copy):
    """As far as it goes without the network: where an array would be asked for."""
    rewrite(t5x_copy, lambda tree: [spec["kvstore"].update(driver="gcs", bucket="t5x-dummy-bucket")
                                  for _, spec in specs(tree["optimizer"])] and tree)  # fmt: skip
    there = dataclasses.replace(open_checkpoint(t5x_copy), folder=t5x_files._store("gs://t5-data/flan/checkpoint_7"))
    name = "encoder/encoder_norm/scale"
    path = t5x_files._path_of(there.where, name, there.contents["target"][name])
    assert (there.folder / path).spec().to_json() == {
        "driver": "gcs",
        "bucket": "t5-data",
        "path": "flan/checkpoint_7/target.encoder.encoder_norm.scale",
    }


def test_addresses_that_lead_nowhere(monkeypatch):
    impatient = tensorstore.Context({"http_request_retries": {"max_retries": 1}})
    monkeypatch.setattr(t5x_files, "_context", lambda: impatient)
    with pytest.raises(ModelFolderError, match=r"nowhere://host: TensorStore does not open this address"):
        read_t5x("nowhere://host")
    with http.server.HTTPServer(("localhost", 0), http.server.BaseHTTPRequestHandler) as closed:
        address = f"http://localhost:{closed.server_port}/checkpoint_7"
    with pytest.raises(ModelFolderError, match=rf"{address}/checkpoint: cannot be read: .*[Cc]onnect"):
        read_t5x(address)
