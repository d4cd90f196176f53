"""T5X checkpoints: read into flanjax's parameters and written from them, exactly.

    config, params = read_t5x("flan_t5_small/checkpoint_1198000")     # nothing is read until a parameter is
    write_t5x("out", config, params, step=1198000)                    # out/checkpoint_1198000; orbax=True for Orbax's

The parameters have T5X's names and orientation; only the layers differ. flanjax joins them on a leading `layers` axis,
T5X has `encoder/layers_0` and so on, or, scanned (t5x/examples/scalable_t5), `encoder/encoder` with the layers on axis
1, and there a position table in every layer, as UMT5. Import then export gives the same bits.

T5X keeps its model in gin files, not in the checkpoint. Sizes are taken from shapes; what no shape says is that of the
published T5: `("gelu", "linear")` for a gated feed-forward block and `("relu",)` for a plain one, tables that reach
128 positions, epsilon 1e-6, dropout 0.1. Give `config` for a model with others.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flanjax.interchange.folders import ModelFolderError, new_folder
from flanjax.interchange.safetensors_files import FLOATS, disagreements, in_dtype
from flanjax.interchange.stored import StoredArray, cast
from flanjax.interchange.t5x_files import STATE, open_checkpoint, write_arrays, write_contents, write_metadata
from flanjax.interchange.t5x_optimizer import fresh_adafactor
from flanjax.interchange.t5x_places import RELPOS, is_scanned, t5x_places
from flanjax.models.config import ModelConfigError, T5Config
from flanjax.models.t5 import Params
from flanjax.tuning.partition import flatten, unflatten

_EMBEDDING = "token_embedder/embedding"
_HEAD = "decoder/logits_dense/kernel"


def read_t5x(place: str | Path, config: T5Config | None = None) -> tuple[T5Config, Params]:
    """Reads the parameters of a T5X checkpoint of an encoder-decoder, of any version and layout of this module.

    The optimizer's state is left alone (`flanjax.interchange.t5x_optimizer`).

    Arguments:
      place: a folder `checkpoint_<step>`, its file `checkpoint`, or an address such as `gs://bucket/checkpoint_1000`.
      config: the model; inferred from the shapes where None.

    Returns:
      The configuration, and float32 parameters (bfloat16 and float16 are widened exactly) that are read from where
      they lie when they are indexed, one tensor at a time.

    Raises:
      ModelFolderError: there is no checkpoint, it is damaged, or of a model that is no T5; all tensors that are
        missing, unknown or of another shape or type are listed at once.
    """
    checkpoint = open_checkpoint(place)
    return from_tensors(checkpoint.opened("target"), config, where=checkpoint.where)


def from_tensors(
    tensors: Mapping[str, StoredArray], config: T5Config | None = None, *, where: str = "T5X tensors"
) -> tuple[T5Config, Params]:
    """`read_t5x` of tensors by T5X's names, wherever they are; `where` is for messages.

    Raises:
      ModelFolderError: they are of no T5, or do not fit each other or `config`; all that is wrong is listed.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    scanned = is_scanned(shapes)
    model = _inferred(where, tensors) if config is None else dataclasses.replace(config, added=())
    places = t5x_places(model, scanned=scanned)
    expected = {name: place.tensor_shape for place in places for name in place.names}
    wrong = disagreements(expected, tensors)
    tables = [place.names[0] for place in places if place.copies is not None and place.names[0] in tensors]
    wrong += [f"differs between layers, relpos_per_layer is False: {t}" for t in tables if _layers_differ(tensors[t])]
    if wrong:
        raise ModelFolderError(f"{where}: tensors do not fit the model:\n  " + "\n  ".join(wrong))
    return model, unflatten({place.path: cast(place.read(tensors), np.float32) for place in places})


def _layers_differ(table: StoredArray) -> bool:
    array = np.asarray(table)
    return array.ndim == 3 and not np.array_equal(array, np.broadcast_to(array[:, :1], array.shape))


def _inferred(where: str, tensors: Mapping[str, StoredArray]) -> T5Config:
    """The configuration that tensors are of; see the module for what their shapes do not say."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if not any(name.startswith("encoder/") for name in shapes):
        what = "a decoder-only model" if shapes else "no parameter is in it"
        raise ModelFolderError(f"{where}: no encoder in this checkpoint: {what}, and only a T5 is read")
    layers = {stack: _layers(shapes, stack) for stack in ("encoder", "decoder")}
    scanned = is_scanned(shapes)
    inner = "encoder/encoder" if scanned else "encoder/layers_0"
    shared = f"encoder/{RELPOS}"
    table = shared if shared in shapes else f"{inner}/{RELPOS}"
    query = f"{inner}/attention/query/kernel"
    gated = f"{inner}/mlp/wi_0/kernel" in shapes
    wi = f"{inner}/mlp/wi_0/kernel" if gated else f"{inner}/mlp/wi/kernel"
    if wrong := [name for name in (_EMBEDDING, table, query, wi) if len(shapes.get(name, ())) < 2]:
        there = ", ".join(sorted(shapes)[:3])
        raise ModelFolderError(
            f"{where}: no T5: a matrix is needed, and missing, at {', '.join(wrong)} (there are {there}, ...)"
        )
    # A scanned model has tables in all layers, be they those of a model with one.
    tables = [name for name in shapes if name.endswith(f"/{RELPOS}")]
    per_layer = any(_layers_differ(tensors[name]) for name in tables) if scanned else table != shared
    heads = shapes[table][0]
    try:
        return T5Config(
            vocab_size=shapes[_EMBEDDING][0],
            embed_dim=shapes[_EMBEDDING][1],
            num_heads=heads,
            head_dim=shapes[query][-1] // heads,
            mlp_dim=shapes[wi][-1],
            num_encoder_layers=layers["encoder"],
            num_decoder_layers=layers["decoder"],
            mlp_activations=("gelu", "linear") if gated else ("relu",),
            tied_head=_HEAD not in shapes,
            relpos_per_layer=per_layer,
            relpos_buckets=shapes[table][-1],
            dropout_rate=0.1,
        )
    except ModelConfigError as error:
        raise ModelFolderError(f"{where}: the shapes of its tensors give no T5: {error}") from error


def _layers(shapes: Mapping[str, tuple[int, ...]], stack: str) -> int:
    scanned = shapes.get(f"{stack}/{stack}/pre_mlp_layer_norm/scale")
    if scanned is not None:
        return scanned[-1]
    numbers = [int(found[1]) for name in shapes if (found := re.match(rf"{stack}/layers_(\d+)/", name))]
    return max(numbers, default=-1) + 1


def write_t5x(
    output: str | Path,
    config: T5Config,
    params: Params,
    *,
    step: int = 0,
    scanned: bool = False,
    orbax: bool = False,
    dtype: str = "float32",
) -> Path:
    """Writes a checkpoint that T5X restores and trains on, of its own format, version 3, or of Orbax's.

    Its Adafactor begins anew: the state holds the step and moments of zero. One parameter is in memory at a time.

    Arguments:
      output: a new folder, T5X's MODEL_DIR; it appears whole or not at all.
      config: the model.
      params: its parameters: NumPy, JAX or stored arrays.
      step: the training step, which names the checkpoint.
      scanned: as the model of t5x/examples/scalable_t5 has it, not as that of t5x/examples/t5.
      orbax: in the layout of T5X's OrbaxCheckpointManagerInterface, in which all arrays are zarr folders.
      dtype: of the tensors.

    Returns:
      The folder of the checkpoint, `checkpoint_<step>` in `output`.

    Raises:
      ModelFolderError: `output` is not new, `dtype` is unknown or too small for a value, parameters do not fit
        `config`, or the disk refuses.
    """
    output = Path(output)
    if dtype not in FLOATS:
        raise ModelFolderError(f"dtype is {dtype!r}: choose one of {', '.join(FLOATS)}")
    places = t5x_places(config, scanned=scanned)
    leaves = flatten(params)
    expected, given = {place.path: place.shape for place in places}, {p: tuple(x.shape) for p, x in leaves.items()}
    if wrong := sorted(path for path in expected.keys() | given.keys() if expected.get(path) != given.get(path)):
        listed = "\n  ".join(f"{p}: {given.get(p, 'missing')}, expected {expected.get(p, 'none')}" for p in wrong)
        raise ModelFolderError(f"parameters do not fit the configuration:\n  {listed}")
    specs: dict[str, dict[str, Any]] = {}
    with new_folder(output) as partial:
        folder = partial / f"checkpoint_{step}" / (STATE if orbax else "")
        folder.mkdir(parents=True)
        for place in places:
            parts = place.parts(np.asarray(leaves[place.path]))
            tensors = {name: in_dtype(name, part, dtype) for name, part in zip(place.names, parts, strict=True)}
            specs |= write_arrays(folder, tensors, "target")
        state = {"step": np.asarray(step, np.int32), **fresh_adafactor(places)}
        if orbax:
            write_arrays(folder, state, "state")
            write_metadata(folder, [f"target/{name}" for name in specs] + [f"state/{name}" for name in state])
        else:
            write_contents(folder, specs, state)
    return output / f"checkpoint_{step}"
