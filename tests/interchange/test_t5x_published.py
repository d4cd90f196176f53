"""What T5X has written over the years, and Orbax and Mesh TensorFlow beside it: each form is read exactly."""

import json
import shutil
from pathlib import Path

import flax.serialization
import jax
import numpy as np
import pytest

from flanjax.interchange.folders import ModelFolderError
from flanjax.interchange.t5x import read_t5x, write_t5x
from flanjax.interchange.t5x_files import is_t5x, open_checkpoint
from flanjax.interchange.t5x_mesh import from_mesh_tensorflow, t5x_names
from flanjax.models.config import T5Config
from flanjax.tuning.partition import flatten, unflatten

from .t5x_tiny import TINY, assert_same_bits, random_params, rewrite, specs


def test_a_published_single_file(t5x_legacy):
    file = t5x_legacy / "test_t5_tiny.checkpoint_0"
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
def test_published_folders_of_either_format(t5x_legacy, tmp_path, name, compressor, count):
    """The copies lack the `.zarray` of each array, as archives without hidden files do; these give them one."""
    with pytest.raises(ModelFolderError, match=r"arrays that cannot be opened(.|\n)*kernel/\.zarray.* does not exist"):
        open_checkpoint(t5x_legacy / name).opened("state")
    folder = Path(shutil.copytree(t5x_legacy / name, tmp_path / "copy", copy_function=shutil.copyfile))
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
def test_specifications_of_other_stores_are_read_where_the_checkpoint_is(t5x_copy, form):
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

    rewrite(t5x_copy, elsewhere)
    assert_same_bits(read_t5x(t5x_copy)[1], random_params(TINY))


def inlined(folder: Path):
    """Puts the arrays of a checkpoint into its file `checkpoint`."""
    arrays = {name: np.asarray(array) for name, array in open_checkpoint(folder).opened("target").items()}
    shutil.rmtree(folder)
    folder.mkdir()
    tree = {"version": 3, "optimizer": {"target": unflatten(arrays), "state": {"step": np.asarray(7, np.int32)}}}
    (folder / "checkpoint").write_bytes(flax.serialization.msgpack_serialize(tree))


def test_large_arrays_inside_the_file_come_in_pieces(t5x_copy, monkeypatch):
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 1000)
    inlined(t5x_copy)
    assert b"__msgpack_chunked_array__" in (t5x_copy / "checkpoint").read_bytes()
    assert_same_bits(read_t5x(t5x_copy)[1], random_params(TINY))


@pytest.mark.parametrize("form", ["zarr", "ocdbt", "zarr3", "placeholders"])
def test_checkpoints_of_orbax(t5x_checkpoint, tmp_path, form):
    import orbax.checkpoint

    arrays = {name: np.asarray(array) for name, array in open_checkpoint(t5x_checkpoint).opened("target").items()}
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


def test_variables_of_mesh_tensorflow(t5x_legacy):
    lines = (t5x_legacy / "mtf_tiny_t5_model-info.txt").read_text().splitlines()
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
