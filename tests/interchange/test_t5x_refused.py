"""T5X checkpoints that are damaged, or are none: refused with the place and the remedy."""

import json
import shutil

import numpy as np
import pytest

from flanjax.interchange.folders import ModelFolderError
from flanjax.interchange.t5x import read_t5x
from flanjax.interchange.t5x_files import is_t5x

from .t5x_tiny import TINY, random_params, rewrite


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
def test_bad_checkpoints_are_refused_with_the_place(t5x_copy, damage, message):
    damage(t5x_copy)
    with pytest.raises(ModelFolderError, match=message) as error:
        read_t5x(t5x_copy)
    assert str(t5x_copy) in str(error.value)


def test_whatever_befalls_the_file_it_is_read_or_refused(t5x_copy):
    whole = (t5x_copy / "checkpoint").read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(200):
        damaged = bytearray(whole)
        for position in rng.integers(0, len(whole), 2):
            damaged[position] = rng.integers(0, 256)
        cut = int(rng.integers(0, len(whole))) if rng.random() < 0.2 else len(whole)
        (t5x_copy / "checkpoint").write_bytes(damaged[:cut])
        try:
            read_t5x(t5x_copy)
        except ModelFolderError:
            refused += 1
    assert refused > 50


def test_a_lost_chunk_is_an_error_and_not_zeros(t5x_copy):
    (t5x_copy / "target.encoder.layers_1.mlp.wo.kernel" / "0.0").unlink()
    _, params = read_t5x(t5x_copy)
    kernel = params["encoder"]["layers"]["mlp"]["wo"]["kernel"]
    np.testing.assert_array_equal(
        kernel[0:1, :, :][0], random_params(TINY)["encoder"]["layers"]["mlp"]["wo"]["kernel"][0]
    )
    with pytest.raises(ModelFolderError, match=r"encoder/layers_1/mlp/wo/kernel: chunk .* missing; copy or download"):
        np.asarray(kernel)


def test_the_folder_above_lists_its_steps(t5x_checkpoint, tmp_path):
    for step in (10, 9, 100):
        shutil.copytree(t5x_checkpoint, tmp_path / f"checkpoint_{step}")
    assert is_t5x(tmp_path)
    with pytest.raises(ModelFolderError, match=r"give one of them: checkpoint_9, checkpoint_10, checkpoint_100$"):
        read_t5x(tmp_path)


def test_what_is_no_t5x_checkpoint(tmp_path, t5x_checkpoint):
    assert is_t5x(t5x_checkpoint)
    assert is_t5x(t5x_checkpoint / "checkpoint")
    assert not is_t5x(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "checkpoint").write_bytes(b"")
    assert not is_t5x(tmp_path)
    assert not is_t5x(tmp_path / "prompt.npy")
