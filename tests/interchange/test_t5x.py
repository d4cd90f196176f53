"""T5X checkpoints: read exactly in every form that T5X has written, written exactly, refused clearly."""

import dataclasses
import functools
import http.server
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import flax.serialization
import gin
import jax
import numpy as np
import pytest
import tensorstore
from hypothesis import given, settings
from hypothesis import strategies as st

from flanjax.doors import GinSources, configure
from flanjax.interchange import t5x_files
from flanjax.interchange.any_model import read_model_config
from flanjax.interchange.folders import ModelFolderError
from flanjax.interchange.stored import Lazy, place
from flanjax.interchange.t5x import from_tensors, read_t5x, write_t5x
from flanjax.interchange.t5x_files import chunk_shape, is_t5x, open_checkpoint
from flanjax.interchange.t5x_mesh import from_mesh_tensorflow, t5x_names
from flanjax.interchange.t5x_places import t5x_places
from flanjax.models.config import T5Config
from flanjax.models.t5 import abstract_params
from flanjax.tuning.partition import flatten, unflatten

TINY = T5Config(
    vocab_size=40,
    embed_dim=16,
    num_heads=2,
    head_dim=4,
    mlp_dim=24,
    num_encoder_layers=2,
    num_decoder_layers=3,
    dropout_rate=0.1,
)
UMT5 = dataclasses.replace(TINY, relpos_per_layer=True)
V1_0 = dataclasses.replace(TINY, tied_head=True, mlp_activations=("relu",))


def random_params(config: T5Config, seed: int = 0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), abstract_params(config))


def assert_same_bits(left, right):
    left, right = flatten(left), flatten(right)
    assert left.keys() == right.keys()
    for name, leaf in left.items():
        one, other = np.asarray(leaf), np.asarray(right[name])
        assert one.dtype == other.dtype, name
        np.testing.assert_array_equal(one.view(np.uint32), other.view(np.uint32), name)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """A checkpoint of TINY at step 7, not to be changed."""
    return write_t5x(tmp_path_factory.mktemp("t5x") / "model", TINY, random_params(TINY), step=7)


@pytest.fixture
def copied(written, tmp_path) -> Path:
    """The same, to be damaged."""
    return Path(shutil.copytree(written, tmp_path / "checkpoint_7"))


@pytest.fixture
def legacy(test_data) -> Path:
    return test_data / "fixtures" / "t5x_tiny_legacy"


def contents(folder: Path):
    """The file `checkpoint` as flax reads it."""
    return flax.serialization.msgpack_restore((folder / "checkpoint").read_bytes())


def rewrite(folder: Path, change: Callable[[dict], dict | None]):
    tree = contents(folder)
    tree = change(tree) or tree
    (folder / "checkpoint").write_bytes(flax.serialization.msgpack_serialize(tree))


def specs(node, name=""):
    """The specifications in a tree by name."""
    if isinstance(node, dict) and "kvstore" in node:
        yield name, node
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from specs(value, f"{name}.{key}" if name else key)


# --- both ways -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scanned", [False, True], ids=["layers", "scanned"])
@pytest.mark.parametrize("config", [TINY, V1_0, UMT5], ids=["v1.1", "v1.0", "umt5"])
def test_export_then_import_gives_the_same_model_bit_for_bit(tmp_path, config, scanned):
    params = random_params(config)
    folder = write_t5x(tmp_path / "model", config, params, step=3, scanned=scanned)
    assert folder == tmp_path / "model" / "checkpoint_3"
    read_config, read = read_t5x(folder)
    assert read_config == config
    assert_same_bits(read, params)
    again = write_t5x(tmp_path / "again", read_config, read, step=3, scanned=scanned)
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert all((folder / file).read_bytes() == (again / file).read_bytes() for file in files)


@settings(max_examples=8)
@given(
    heads=st.integers(1, 3),
    head_dim=st.integers(1, 3),
    embed=st.integers(1, 5),
    layers=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    scanned=st.booleans(),
    tied=st.booleans(),
)
def test_sizes_are_read_off_the_shapes(tmp_path_factory, heads, head_dim, embed, layers, scanned, tied):
    config = T5Config(
        vocab_size=7,
        embed_dim=embed,
        num_heads=heads,
        head_dim=head_dim,
        mlp_dim=embed + 1,
        num_encoder_layers=layers[0],
        num_decoder_layers=layers[1],
        relpos_buckets=8,
        tied_head=tied,
        dropout_rate=0.1,
    )
    params = random_params(config)
    folder = write_t5x(tmp_path_factory.mktemp("sizes") / "model", config, params, scanned=scanned)
    read_config, read = read_t5x(folder)
    assert read_config == config
    assert_same_bits(read, params)


MODELS = Path(__file__).parents[2] / "gin_configs" / "models"
PUBLISHED = sorted({p.stem for kind in ("*t5_*", "t0_*", "*ul2*") for p in MODELS.glob(f"{kind}.gin")})


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_are_read_off_the_shapes_and_no_tensor_is_read_for_it(name):
    configure(GinSources(files=(str(MODELS / f"{name}.gin"),)), [T5Config])
    try:
        config = gin.get_configurable("T5Config")()
    finally:
        gin.clear_config()

    def unread(slices, out):
        # A scanned checkpoint says by the tables of positions alone whether its layers have one each.
        assert out.size < 1e5
        out[...] = np.arange(out.size).reshape(out.shape)

    for scanned in {False, config.relpos_per_layer}:
        tensors = {
            tensor: Lazy(place.tensor_shape, np.dtype(np.float32), unread)
            for place in t5x_places(config, scanned=scanned)
            for tensor in place.names
        }
        # silu or gelu, and what dropout, the gin file of T5X says.
        told = {"dropout_rate": config.dropout_rate, "mlp_activations": config.mlp_activations}
        assert dataclasses.replace(from_tensors(tensors)[0], **told) == config


def test_scanned_and_not_are_the_same_model(tmp_path, written):
    config, params = read_t5x(written)
    scanned = write_t5x(tmp_path / "scanned", config, params, scanned=True)
    assert_same_bits(read_t5x(scanned)[1], params)
    kernel = np.asarray(params["encoder"]["layers"]["mlp"]["wi_0"]["kernel"])
    there = open_checkpoint(scanned).opened("target")
    np.testing.assert_array_equal(np.asarray(there["encoder/encoder/mlp/wi_0/kernel"])[:, 1], kernel[1])
    table = np.asarray(there["decoder/decoder/relpos_bias/rel_embedding"])
    assert table.shape == (2, 3, 32)
    np.testing.assert_array_equal(table[:, 2], params["decoder"]["relpos_bias"]["rel_embedding"])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_types_are_written_rounded_and_read_exactly(tmp_path, dtype):
    params = random_params(TINY)
    folder = write_t5x(tmp_path / "model", TINY, params, dtype=dtype)
    assert {spec["dtype"] for _, spec in specs(contents(folder))} == {dtype}
    rounded = jax.tree.map(lambda leaf: leaf.astype(dtype).astype(np.float32), params)
    assert_same_bits(read_t5x(folder)[1], rounded)


# --- what T5X reads ------------------------------------------------------------------------------------------------


def test_the_written_files_are_what_another_reader_finds(written):
    tree = contents(written)
    assert tree["version"] == 3
    assert int(tree["optimizer"]["state"]["step"]) == 7
    found = dict(specs(tree["optimizer"]))
    folders = {path.name for path in written.iterdir() if path.is_dir()}
    assert folders == {spec["kvstore"]["path"].rstrip("/") for spec in found.values()} == set(found)
    params = random_params(TINY)
    for name, spec in found.items():
        path = f"{written / spec['kvstore']['path']}/"
        store = tensorstore.open({**spec, "kvstore": {"driver": "file", "path": path}}).result()
        *parts, last = name.removeprefix("target.").split(".")
        node, layer = params, None
        for part in parts:
            if part.startswith("layers_"):
                part, layer = "layers", int(part.removeprefix("layers_"))
            node = node[part]
        expected = node[last] if layer is None else node[last][layer]
        np.testing.assert_array_equal(store.read().result(), expected, name)
        assert json.loads((Path(path) / ".zarray").read_text())["compressor"] == {"id": "gzip", "level": 1}


def test_the_tree_written_is_that_of_a_published_checkpoint(legacy, tmp_path):
    published = flax.serialization.msgpack_restore((legacy / "test_t5_tiny.checkpoint_0").read_bytes())
    folder = write_t5x(tmp_path / "model", *read_t5x(legacy / "test_t5_tiny.checkpoint_0"))
    tree = contents(folder)
    there = {spec: tuple(leaf["metadata"]["shape"]) for spec, leaf in specs(tree["optimizer"])}
    leaves = flatten(published["optimizer"])
    assert there == {n.replace("/", "."): x.shape for n, x in leaves.items() if n.startswith("target")}
    # The state as well, so that T5X restores the checkpoint as it restores its own.
    state = flatten(tree["optimizer"]["state"])
    assert {n: (x.shape, x.dtype) for n, x in state.items()} == {
        n.removeprefix("state/"): (x.shape, x.dtype) for n, x in leaves.items() if n.startswith("state")
    }


@pytest.mark.parametrize(
    ("shape", "chunks"),
    [
        ((512, 384), [512, 384]),
        ((32128, 512), [32128, 512]),
        ((32128, 4096), [4016, 4096]),
        ((4096, 10240), [4096, 2560]),
        ((4096, 24, 10240), [512, 24, 1024]),
        ((16777259,), [1]),
        ((), []),
    ],
)
def test_chunks_hold_at_most_64_mib_and_are_equal(shape, chunks):
    assert chunk_shape(shape, 4) == chunks


def test_a_tensor_of_many_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(t5x_files, "CHUNK_BYTES", 500)
    params = random_params(TINY)
    folder = write_t5x(tmp_path / "model", TINY, params)
    assert len(list((folder / "target.decoder.layers_0.mlp.wi_0.kernel").glob("[0-9]*"))) == 4
    assert_same_bits(read_t5x(folder)[1], params)


# --- what T5X has written ------------------------------------------------------------------------------------------


def test_a_published_single_file(legacy):
    file = legacy / "test_t5_tiny.checkpoint_0"
    config, params = read_t5x(file)
    assert config == T5Config(
        vocab_size=32128,
        embed_dim=8,
        num_heads=4,
        head_dim=3,
        mlp_dim=16,
        num_encoder_layers=2,
        num_decoder_layers=2,
        dropout_rate=0.1,
    )
    target = flax.serialization.msgpack_restore(file.read_bytes())["optimizer"]["target"]
    params = jax.tree.map(np.asarray, params)
    for stack in ("encoder", "decoder"):
        layers = [target[stack].pop(f"layers_{i}") for i in range(2)]
        assert_same_bits(params[stack].pop("layers"), jax.tree.map(lambda *x: np.stack(x), *layers))
    assert_same_bits(params, target)
    assert open_checkpoint(file).left_out == f"{file}: step 0; its optimizer's state (208 arrays) is left out"


ZARR = {"zarr_format": 2, "fill_value": None, "filters": None, "order": "C"}
SHAPES = {"bias": ([5], "<f4"), "kernel": ([10, 5], "<f8"), "step": ([], "<i4")}


@pytest.mark.parametrize(
    ("name", "compressor", "count"),
    [("tiny_t5/checkpoint_1", {"id": "gzip", "level": 1}, 4), ("tiny_orbax/1", {"id": "zstd", "level": 1}, 4)],
)
def test_published_folders_of_either_format(legacy, tmp_path, name, compressor, count):
    """The copies lack the `.zarray` of each array, as archives without hidden files do; these give them one."""
    with pytest.raises(ModelFolderError, match=r"arrays that cannot be opened(.|\n)*kernel/\.zarray.* does not exist"):
        open_checkpoint(legacy / name).opened("state")
    folder = Path(shutil.copytree(legacy / name, tmp_path / "copy", copy_function=shutil.copyfile))
    for path in [folder, *folder.iterdir()]:
        path.chmod(0o755 if path.is_dir() else 0o644)
        if path.is_dir() and path != folder:
            shape, dtype = SHAPES[path.name.rpartition(".")[2]]
            header = {**ZARR, "shape": shape, "chunks": shape, "dtype": dtype, "compressor": compressor}
            (path / ".zarray").write_text(json.dumps(header))
    checkpoint = open_checkpoint(folder)
    found = {name: np.asarray(array) for name, array in checkpoint.opened("state").items()}
    assert len(found) == count
    assert found["param_states/kernel"].dtype == np.float64
    assert ((found["param_states/kernel"] > 0) & (found["param_states/kernel"] < 1)).all()
    np.testing.assert_allclose(found["param_states/kernel"][0, :2], [0.15038408, 0.70071733], rtol=1e-7)
    assert found["param_states/bias"].shape == (5,)
    assert checkpoint.version == (3 if name.startswith("tiny_t5") else None)
    with pytest.raises(ModelFolderError, match="no encoder in this checkpoint: no parameter is in it"):
        read_t5x(folder)


def test_version_2_keeps_the_bits_of_bfloat16_as_integers(tmp_path):
    params = random_params(TINY)
    folder = write_t5x(tmp_path / "model", TINY, params, dtype="bfloat16")
    expected = jax.tree.map(np.asarray, read_t5x(folder)[1])

    def as_integers(tree):
        tree["version"] = 2
        for _, spec in specs(tree["optimizer"]):
            spec["dtype"] = "uint16"
            header = folder / spec["kvstore"]["path"] / ".zarray"
            header.write_text(json.dumps({**json.loads(header.read_text()), "dtype": "<u2"}))

    rewrite(folder, as_integers)
    assert_same_bits(read_t5x(folder)[1], expected)
    rewrite(folder, lambda tree: {**tree, "version": 3})
    with pytest.raises(ModelFolderError, match=r"wrong type: token_embedder/embedding is uint16"):
        read_t5x(folder)


@pytest.mark.parametrize("form", ["gcs", "gfile", "old path", "bare"])
def test_specifications_of_other_stores_are_read_where_the_checkpoint_is(copied, form):
    def elsewhere(tree):
        for name, spec in specs(tree["optimizer"]):
            if form == "old path":
                spec["kvstore"], spec["path"] = {"driver": "file"}, name
            elif form == "bare":
                del spec["metadata"], spec["dtype"]
            else:
                spec["kvstore"]["driver"] = form
            if form == "gcs":
                spec["kvstore"]["bucket"] = "t5x-dummy-bucket"

    rewrite(copied, elsewhere)
    assert_same_bits(read_t5x(copied)[1], random_params(TINY))


def inlined(folder: Path):
    """Puts the arrays of a checkpoint into its file `checkpoint`."""
    arrays = {name: np.asarray(array) for name, array in open_checkpoint(folder).opened("target").items()}
    shutil.rmtree(folder)
    folder.mkdir()
    tree = {"version": 3, "optimizer": {"target": unflatten(arrays), "state": {"step": np.asarray(7, np.int32)}}}
    (folder / "checkpoint").write_bytes(flax.serialization.msgpack_serialize(tree))


def test_large_arrays_inside_the_file_come_in_pieces(copied, monkeypatch):
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 1000)
    inlined(copied)
    assert b"__msgpack_chunked_array__" in (copied / "checkpoint").read_bytes()
    assert_same_bits(read_t5x(copied)[1], random_params(TINY))


@pytest.mark.parametrize("form", ["zarr", "ocdbt", "zarr3", "placeholders"])
def test_checkpoints_of_orbax(written, tmp_path, form):
    import orbax.checkpoint

    arrays = {name: np.asarray(array) for name, array in open_checkpoint(written).opened("target").items()}
    tree = {"version": 3, "optimizer": {"target": unflatten(arrays), "state": {"step": np.int32(7)}}}
    handler = orbax.checkpoint.PyTreeCheckpointHandler(use_ocdbt=form == "ocdbt", use_zarr3=form == "zarr3")
    folder = tmp_path / "checkpoint_7"
    orbax.checkpoint.Checkpointer(handler).save(folder, tree)
    if form == "placeholders":
        # As until 2024: the names in a msgpack file, and in nothing else.
        (folder / "_METADATA").unlink()
        names = jax.tree_util.tree_map_with_path(
            lambda path, _: "PLACEHOLDER://" + ".".join(key.key for key in path), tree["optimizer"]
        )
        names = {
            "version": 3,
            "optimizer": unflatten({n: v.replace("://", "://optimizer.") for n, v in flatten(names).items()}),
        }
        (folder / "checkpoint").write_bytes(flax.serialization.msgpack_serialize(names))
    assert is_t5x(folder)
    config, params = read_t5x(folder)
    assert config == TINY
    assert_same_bits(params, random_params(TINY))
    assert open_checkpoint(folder).step == 7


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "_METADATA: not valid JSON"),
        ("[1]", "_METADATA: not valid JSON"),
        ('{"tree_metadata": {"a": {}}}', "_METADATA: not as Orbax writes it: KeyError"),
        ('{"tree_metadata": [1]}', "_METADATA: not as Orbax writes it: AttributeError"),
        ('{"tree_metadata": {}}', "no T5X checkpoint"),
    ],
)
def test_names_of_orbax_that_are_damaged(tmp_path, content, message):
    (tmp_path / "_METADATA").write_text(content)
    with pytest.raises(ModelFolderError, match=message):
        open_checkpoint(tmp_path)


def test_variables_of_mesh_tensorflow(legacy):
    lines = (legacy / "mtf_tiny_t5_model-info.txt").read_text().splitlines()
    shapes = {}
    for line in lines:
        if line.startswith("Variable "):
            shape = line.partition("Shape[")[2].partition("]")[0]
            shapes[line.split()[1]] = tuple(int(axis.partition("=")[2]) for axis in shape.split(", "))
    rng = np.random.default_rng(0)
    variables = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    slots = {f"{name}_slot_v": array for name, array in variables.items()}
    config, params = from_mesh_tensorflow({**variables, **slots, "global_step": np.int64(5)})
    assert (config.num_heads, config.head_dim, config.embed_dim, config.mlp_dim) == (2, 64, 32, 64)
    assert (config.num_encoder_layers, config.num_decoder_layers, config.tied_head) == (2, 2, False)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(params)) == 4 * 2_179_584
    for name, path, layer in (
        ("shared/embedding", "token_embedder/embedding", None),
        ("decoder/rms_norm/scale", "decoder/decoder_norm/scale", None),
        ("encoder/block_001/layer_001/rms_norm/scale", "encoder/layers/pre_mlp_layer_norm/scale", 1),
        ("decoder/block_001/layer_001/rms_norm/scale", "decoder/layers/pre_cross_attention_layer_norm/scale", 1),
        ("decoder/block_000/layer_001/EncDecAttention/o", "decoder/layers/encoder_decoder_attention/out/kernel", 0),
        ("encoder/block_001/layer_001/DenseReluDense/wi_0/kernel", "encoder/layers/mlp/wi_0/kernel", 1),
    ):
        leaf = np.asarray(flatten(params)[path])
        np.testing.assert_array_equal(leaf if layer is None else leaf[layer], variables[name], name)
    with pytest.raises(ModelFolderError, match=r"no T5 of Mesh TensorFlow has: decoder/block_000/layer_000/Gate/w"):
        t5x_names(["decoder/block_000/layer_000/Gate/w", "shared/embedding"])


# --- as little as is asked for -------------------------------------------------------------------------------------


class Server(http.server.SimpleHTTPRequestHandler):
    """Serves a folder and remembers what was asked for."""

    asked: list[str]

    def send_head(self):
        self.asked.append(self.path)
        return super().send_head()

    def log_message(self, *_):
        """Nothing: the list is the log."""


@pytest.fixture
def served(written) -> Iterator[tuple[str, list[str]]]:
    """The address of a checkpoint, and the list of what is asked for there."""
    asked: list[str] = []
    handler = type("Handler", (Server,), {"asked": asked})
    with http.server.ThreadingHTTPServer(("localhost", 0), functools.partial(handler, directory=written)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://localhost:{server.server_port}", asked
        server.shutdown()
        thread.join()


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


def test_placed_on_a_mesh_as_read_into_memory(written):
    _, params = read_t5x(written)
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


# --- refused -------------------------------------------------------------------------------------------------------


def without(name):
    return lambda folder: shutil.rmtree(folder / name)


def truncated(folder):
    (folder / "checkpoint").write_bytes((folder / "checkpoint").read_bytes()[:-50])


def edited(change):
    return lambda folder: rewrite(folder, change)


def decoder_only(tree):
    del tree["optimizer"]["target"]["encoder"]


def renamed(tree):
    wi = tree["optimizer"]["target"]["decoder"]["layers_1"]["mlp"].pop("wi_0")
    tree["optimizer"]["target"]["decoder"]["layers_1"]["mlp"]["gate"] = wi


def outside(tree):
    tree["optimizer"]["target"]["token_embedder"]["embedding"]["kvstore"]["path"] = "../../secret/"


def misnamed(folder):
    header = folder / "target.encoder.encoder_norm.scale" / ".zarray"
    header.write_text(json.dumps({**json.loads(header.read_text()), "dtype": "<i4"}))


def headless(tree):
    del tree["optimizer"]["target"]["token_embedder"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "there is no such folder"),
        (lambda folder: (folder / "checkpoint").unlink(), "neither checkpoint nor folders"),
        (truncated, r"checkpoint is truncated or no msgpack file \(.+\); copy or download"),
        (lambda folder: (folder / "checkpoint").write_bytes(b""), "truncated"),
        (lambda folder: (folder / "checkpoint").write_bytes(b'model_checkpoint_path: "model.ckpt"'), "Mesh TensorFlow"),
        (edited(lambda tree: {"params": {}}), "optimizer/target is not in it, only params"),
        (edited(lambda tree: {**tree, "version": 1}), "version 1 of T5X's format; read are 2 and 3"),
        (edited(lambda tree: {**tree, "version": 4}), "version 4 of T5X's format"),
        (without("target.encoder.encoder_norm.scale"), r"cannot be opened:\n  encoder/encoder_norm/scale: .*not exist"),
        (misnamed, r"encoder/encoder_norm/scale: it is \[16\] int32, by checkpoint \[16\] float32"),
        (edited(decoder_only), "no encoder in this checkpoint: a decoder-only model"),
        (
            edited(renamed),
            r"(?s)missing: decoder/layers_1/mlp/wi_0/kernel \(16, 24\).*unknown: decoder/layers_1/mlp/gate",
        ),
        (edited(headless), "no T5: a matrix is needed, and missing, at token_embedder/embedding"),
        (edited(outside), r"token_embedder/embedding lies at '../../secret/', which is no folder in this checkpoint"),
    ],
)
def test_bad_checkpoints_are_refused_with_the_place(copied, damage, message):
    damage(copied)
    with pytest.raises(ModelFolderError, match=message) as error:
        read_t5x(copied)
    assert str(copied) in str(error.value)


def test_whatever_befalls_the_file_it_is_read_or_refused(copied):
    whole = (copied / "checkpoint").read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(200):
        damaged = bytearray(whole)
        for position in rng.integers(0, len(whole), 2):
            damaged[position] = rng.integers(0, 256)
        cut = int(rng.integers(0, len(whole))) if rng.random() < 0.2 else len(whole)
        (copied / "checkpoint").write_bytes(damaged[:cut])
        try:
            read_t5x(copied)
        except ModelFolderError:
            refused += 1
    assert refused > 50


def test_a_lost_chunk_is_an_error_and_not_zeros(copied):
    (copied / "target.encoder.layers_1.mlp.wo.kernel" / "0.0").unlink()
    _, params = read_t5x(copied)
    kernel = params["encoder"]["layers"]["mlp"]["wo"]["kernel"]
    np.testing.assert_array_equal(
        kernel[0:1, :, :][0], random_params(TINY)["encoder"]["layers"]["mlp"]["wo"]["kernel"][0]
    )
    with pytest.raises(ModelFolderError, match=r"encoder/layers_1/mlp/wo/kernel: chunk .* missing; copy or download"):
        np.asarray(kernel)


def test_the_folder_above_lists_its_steps(written, tmp_path):
    for step in (10, 9, 100):
        shutil.copytree(written, tmp_path / f"checkpoint_{step}")
    assert is_t5x(tmp_path)
    with pytest.raises(ModelFolderError, match=r"give one of them: checkpoint_9, checkpoint_10, checkpoint_100$"):
        read_t5x(tmp_path)


def test_an_address_of_google_cloud_storage_has_its_own_bucket_and_not_the_placeholder(copied):
    """As far as it goes without the network: where an array would be asked for."""
    rewrite(copied, lambda tree: [spec["kvstore"].update(driver="gcs", bucket="t5x-dummy-bucket")
                                  for _, spec in specs(tree["optimizer"])] and tree)  # fmt: skip
    there = dataclasses.replace(open_checkpoint(copied), folder=t5x_files._store("gs://t5-data/flan/checkpoint_7"))
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
    with http.server.HTTPServer(("localhost", 0), Server) as closed:
        address = f"http://localhost:{closed.server_port}/checkpoint_7"
    with pytest.raises(ModelFolderError, match=rf"{address}/checkpoint: cannot be read: .*[Cc]onnect"):
        read_t5x(address)


def test_another_configuration_is_compared_and_kept(written):
    silu = dataclasses.replace(TINY, mlp_activations=("silu", "linear"), layer_norm_epsilon=1e-5)
    assert read_t5x(written, silu)[0] == silu
    with pytest.raises(
        ModelFolderError, match=r"(?s)wrong shape: token_embedder/embedding.*missing: .*|missing"
    ) as error:
        read_t5x(written, dataclasses.replace(TINY, vocab_size=41, num_encoder_layers=3))
    lines = str(error.value).splitlines()[1:]
    assert len(lines) == 2 + 9
    assert sum("missing: encoder/layers_2/" in line for line in lines) == 9


def test_a_scanned_model_has_one_table_of_positions_where_all_layers_have_the_same(tmp_path):
    folder = write_t5x(tmp_path / "model", TINY, random_params(TINY), scanned=True)
    tensors = open_checkpoint(folder).opened("target")
    assert read_t5x(folder)[0] == TINY
    name = "decoder/decoder/relpos_bias/rel_embedding"
    table = np.array(tensors[name])
    table[0, 1, 3] += 1
    config, params = from_tensors({**tensors, name: table})
    assert config == UMT5
    np.testing.assert_array_equal(params["decoder"]["layers"]["relpos_bias"]["rel_embedding"], np.moveaxis(table, 1, 0))
    with pytest.raises(ModelFolderError, match=rf"differs between layers, relpos_per_layer is False: {name}$"):
        from_tensors({**tensors, name: table}, TINY)


def test_nothing_half_written_is_left(tmp_path, monkeypatch):
    params = random_params(TINY)
    with pytest.raises(ModelFolderError, match=r"encoder/encoder_norm/scale: missing, expected \(16,\)"):
        write_t5x(
            tmp_path / "a", TINY, unflatten({n: x for n, x in flatten(params).items() if "encoder_norm" not in n})
        )
    with pytest.raises(ModelFolderError, match="dtype is 'float64': choose one of"):
        write_t5x(tmp_path / "a", TINY, params, dtype="float64")
    params["decoder"]["decoder_norm"]["scale"] *= 1e6
    with pytest.raises(ModelFolderError, match="beyond float16"):
        write_t5x(tmp_path / "a", TINY, params, dtype="float16")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ModelFolderError, match=r"file: cannot be written: .*Not a directory"):
        t5x_files.write_arrays(tmp_path / "file", {"scale": np.ones(3, np.float32)}, "target")
    (tmp_path / "file").unlink()
    monkeypatch.setattr(t5x_files, "CHECKPOINT", "no/such/folder")
    with pytest.raises(ModelFolderError, match="cannot be written"):
        write_t5x(tmp_path / "a", TINY, params)
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    write_t5x(tmp_path / "a", TINY, params)
    with pytest.raises(ModelFolderError, match="not empty"):
        write_t5x(tmp_path / "a", TINY, params)


def test_what_is_no_t5x_checkpoint(tmp_path, written):
    assert is_t5x(written)
    assert is_t5x(written / "checkpoint")
    assert not is_t5x(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "checkpoint").write_bytes(b"")
    assert not is_t5x(tmp_path)
    assert not is_t5x(tmp_path / "prompt.npy")
