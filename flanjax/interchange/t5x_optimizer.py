"""Adafactor's state in T5X checkpoints: begun anew on export, gone on with after import.

T5X keeps four slots for each tensor (t5x/adafactor.py): the second moment `v`, or `v_row` and `v_col` where it is
factored, and the momentum `m`; what is not in use is a zero of shape [1]. `optax.scale_by_factored_rms` has the same
slots by the same rule, over the two longest axes if both are at least 128 long, so a checkpoint with a tensor for each
layer is taken over bit for bit. Worked example: of `encoder/layers_0/mlp/wo/kernel` [1024, 512], `v_row` is [512],
`v_col` [1024], `v` and `m` [1].

Scanned checkpoints are factored by the axes' names instead, whatever their lengths, with `embed` as the row.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
import optax

from flanjax.interchange.folders import ModelFolderError
from flanjax.interchange.stored import StoredArray, stacked
from flanjax.interchange.t5x_files import Checkpoint
from flanjax.interchange.t5x_places import Place, is_scanned, t5x_places
from flanjax.models.config import T5Config

SLOTS = ("v_row", "v_col", "v")
_UNUSED = (1,)
# Kernels back into the residual stream: their last axis is `embed`, that of all others the first.
_INTO_RESIDUAL = ("out", "wo")


def fresh_adafactor(places: Iterable[Place]) -> dict[str, np.ndarray]:
    """The state of an Adafactor that has seen no gradient, `param_states/NAME/SLOT`, with T5X's default settings."""
    state: dict[str, np.ndarray] = {}
    for place in places:
        slots = _scanned_slots(place) if place.scanned or place.copies is not None else _slots(place.tensor_shape)
        for name in place.names:
            state |= {f"param_states/{name}/{slot}": np.zeros(shape, np.float32) for slot, shape in slots.items()}
    return state


def _slots(shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    state = jax.eval_shape(optax.scale_by_factored_rms().init, jax.ShapeDtypeStruct(shape, np.float32))
    return {"m": _UNUSED, **{slot: getattr(state, slot).shape for slot in SLOTS}}


def _scanned_slots(place: Place) -> dict[str, tuple[int, ...]]:
    *_, module, leaf = place.path.split("/")
    if leaf != "kernel":
        return {"m": _UNUSED, "v_row": _UNUSED, "v_col": _UNUSED, "v": place.tensor_shape}
    first, layers, last = place.tensor_shape
    row, col = ((layers, last), (first, layers)) if module in _INTO_RESIDUAL else ((first, layers), (layers, last))
    return {"m": _UNUSED, "v_row": row, "v_col": col, "v": _UNUSED}


def resume_adafactor(state: optax.OptState, checkpoint: Checkpoint, config: T5Config) -> optax.OptState:
    """`state`, of an optimizer that `flanjax.training.optimizers` made, with the moments of a checkpoint in it.

    The moments go on as T5X would have gone on with them, from its step; the learning rate's schedule is the run's own.
    What the optimizer does not move is left out.

    Arguments:
      state: of Adafactor without momentum, over the parameters of `config` or some of them.
      checkpoint: with a tensor for each layer.
      config: the model.

    Raises:
      ModelFolderError: the checkpoint is scanned, has a momentum or no Adafactor state, or its moments have other
        shapes, as those of another setting of `min_dim_size_to_factor`; or `state` is not Adafactor's.
    """
    where = checkpoint.where
    if is_scanned(checkpoint.contents["target"]):
        raise ModelFolderError(
            f"{where}: its layers are scanned, and their moments factored by the names of axes, not by length as in "
            "flanjax: the optimizer cannot go on from them exactly; begin it anew"
        )
    slots = checkpoint.opened("state")
    if momentum := [name for name, slot in slots.items() if name.endswith("/m") and tuple(slot.shape) != _UNUSED]:
        raise ModelFolderError(f"{where}: Adafactor with momentum ({momentum[0]}) is not gone on with; begin it anew")
    moments = _moments(slots, config)
    factored = [node for node in jax.tree.leaves(state, is_leaf=_is_factored) if _is_factored(node)]
    if not factored:
        raise ModelFolderError(f"{where} has the moments of Adafactor, and this optimizer is another")
    if wrong := [line for node in factored for line in _disagreements(node, moments)]:
        raise ModelFolderError(f"{where}: moments that do not fit this Adafactor:\n  " + "\n  ".join(wrong))

    def filled(node: Any) -> Any:
        """The node, with the checkpoint's step and moments where it is Adafactor's."""
        if not _is_factored(node):
            return node
        by_slot = {
            slot: jax.tree_util.tree_map_with_path(
                lambda path, _, slot=slot: np.asarray(moments[_name(path), slot]), getattr(node, slot)
            )
            for slot in SLOTS
        }
        return optax.FactoredState(np.full(node.count.shape, checkpoint.step, node.count.dtype), **by_slot)

    return jax.tree.map(filled, state, is_leaf=_is_factored)


def _is_factored(node: Any) -> bool:
    return isinstance(node, optax.FactoredState)


def _name(path: tuple[Any, ...]) -> str:
    return "/".join(str(entry.key) for entry in path)


def _moments(slots: Mapping[str, StoredArray], config: T5Config) -> dict[tuple[str, str], StoredArray]:
    """The moments that are there by parameter and slot, joined over layers as the parameters are."""
    moments: dict[tuple[str, str], StoredArray] = {}
    for place in t5x_places(config):
        for slot in SLOTS:
            names = [f"param_states/{name}/{slot}" for name in place.names]
            if all(name in slots for name in names):
                own = [slots[name] for name in names]
                moments[place.path, slot] = stacked(own) if place.is_layered else own[0]
    return moments


def _disagreements(node: optax.FactoredState, moments: Mapping[tuple[str, str], StoredArray]) -> list[str]:
    wrong = []
    for slot in SLOTS:
        for path, leaf in jax.tree_util.tree_leaves_with_path(getattr(node, slot)):
            there = moments.get((_name(path), slot))
            shape = "missing" if there is None else tuple(there.shape)
            if shape != leaf.shape:
                wrong.append(f"{_name(path)}/{slot}: {shape}, here {leaf.shape}")
    return wrong
