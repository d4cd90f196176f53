"""T5X checkpoints both ways: written as T5X reads them, and read exactly."""

import dataclasses
import json
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
from flanjax.interchange.folders import ModelFolderError
from flanjax.interchange.stored import Lazy
from flanjax.interchange.t5x import from_tensors, read_t5x, write_t5x
from flanjax.interchange.t5x_files import chunk_shape, is_t5x, open_checkpoint
from flanjax.interchange.t5x_places import t5x_places
from flanjax.models.config import T5Config
from flanjax.tuning.partition import flatten, unflatten

from .t5x_tiny import TINY, UMT5, V1_0, assert_same_bits, contents, random_params, specs

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


def test_scanned_and_not_are_the_same_model(tmp_path, t5x_checkpoint):
    config, params = read_t5x(t5x_checkpoint)
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


@pytest.mark.parametrize("scanned", [False, True])
def test_orbax_restores_what_is_written_for_it_and_it_is_read_back(tmp_path, scanned):
    import orbax.checkpoint as ocp

    params = random_params(TINY)
    folder = write_t5x(tmp_path / "model", TINY, params, step=7, scanned=scanned, orbax=True)
    assert is_t5x(folder)
    assert is_t5x(folder.parent)
    config, found = read_t5x(folder)
    assert config == TINY
    assert_same_bits(found, params)
    own, other = (
        open_checkpoint(folder),
        open_checkpoint(write_t5x(tmp_path / "own", TINY, params, step=7, scanned=scanned)),
    )
    assert (own.step, own.version) == (7, None)
    # As T5X's OrbaxCheckpointManagerInterface opens them.
    options = ocp.CheckpointManagerOptions(step_prefix="checkpoint", read_only=True)
    handlers = {"state": ocp.PyTreeCheckpointHandler(use_ocdbt=False)}
    with ocp.CheckpointManager(
        folder.parent, item_names=("state",), item_handlers=handlers, options=options
    ) as manager:
        assert manager.all_steps() == [7]
        restored = manager.restore(7, args=ocp.args.Composite(state=ocp.args.PyTreeRestore()))["state"]
    assert restored.keys() == {"target", "state"}
    assert restored["state"]["step"] == 7
    for part in ("target", "state"):
        leaves, expected = flatten(restored[part]), other.opened(part)
        assert leaves.keys() == expected.keys() == own.opened(part).keys()
        for name, leaf in leaves.items():
            np.testing.assert_array_equal(np.asarray(leaf), np.asarray(expected[name]), name)
            assert leaf.dtype == expected[name].dtype


def test_the_written_files_are_what_another_reader_finds(t5x_checkpoint):
    tree = contents(t5x_checkpoint)
    assert tree["version"] == 3
    assert int(tree["optimizer"]["state"]["step"]) == 7
    found = dict(specs(tree["optimizer"]))
    folders = {path.name for path in t5x_checkpoint.iterdir() if path.is_dir()}
    assert folders == {spec["kvstore"]["path"].rstrip("/") for spec in found.values()} == set(found)
    params = random_params(TINY)
    for name, spec in found.items():
        path = f"{t5x_checkpoint / spec['kvstore']['path']}/"
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


def test_the_tree_written_is_that_of_a_published_checkpoint(t5x_legacy, tmp_path):
    published = flax.serialization.msgpack_restore((t5x_legacy / "test_t5_tiny.checkpoint_0").read_bytes())
    folder = write_t5x(tmp_path / "model", *read_t5x(t5x_legacy / "test_t5_tiny.checkpoint_0"))
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


def test_another_configuration_is_compared_and_kept(t5x_checkpoint):
    silu = dataclasses.replace(TINY, mlp_activations=("silu", "linear"), layer_norm_epsilon=1e-5)
    assert read_t5x(t5x_checkpoint, silu)[0] == silu
    with pytest.raises(
        ModelFolderError, match=r"(?s)wrong shape: token_embedder/embedding.*missing: .*|missing"
    ) as error:
        read_t5x(t5x_checkpoint, dataclasses.replace(TINY, vocab_size=41, num_encoder_layers=3))
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
