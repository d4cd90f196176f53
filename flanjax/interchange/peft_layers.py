"""What adapters on projections share on their way between PEFT, which keeps one layer at a time, and flanjax's stacks.

PEFT may give each layer a choice of its own, a stack may not: see `flanjax.interchange.peft_lora` and `peft_ia3` for
what becomes of it, and of modules that are several projections here. Layer norms that were trained beside an adapter
lie in the same folder (`modules_to_save`).
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from flanjax.interchange.peft_base import Base, Module
from flanjax.interchange.peft_config import PREFIX, AdapterConfig, ends_with, pattern_of, shortest
from flanjax.models.model import abstract_params
from flanjax.tuning.method import Flat, Method, TuningError, projections
from flanjax.tuning.partition import flatten
from flanjax.tuning.select import LAYER_NORMS, Train

# What a norm's tensors are called there, and here.
_NORM_LEAVES = {"weight": "scale", "bias": "bias"}


@dataclasses.dataclass(frozen=True)
class Adapter:
    """An adapter on a base model.

    Attributes:
      methods: what it is.
      params: float32, by path: all that the methods add, and the base's own parameters that it brings instead.
      base_name: what its configuration calls the base model; None where it says nothing.
    """

    methods: tuple[Method, ...]
    params: Flat
    base_name: str | None = None


@dataclasses.dataclass(frozen=True)
class Content:
    """What a PEFT folder is written from: keys of its configuration, and tensors by their names in the file."""

    config: dict[str, Any]
    tensors: dict[str, np.ndarray]


def refuse_fan_in_fan_out(config: AdapterConfig, base: Base) -> None:
    """Refuses weights that lie the other way round than the base's; PEFT sets the key itself for a GPT-2.

    Raises:
      ModelFolderError: they do.
    """
    if not base.conv1d:
        reason = f"a {base.model_type} keeps no weight that way round; set it to false if it was trained on one"
        config.refuse({"fan_in_fan_out": reason})


def _norm_leaves(base: Base, module: Module) -> dict[str, str]:
    """Paths of a norm's parameters by the last part of their tensors' names."""
    leaves, (path,) = flatten(abstract_params(base.config)), module.paths
    return {theirs: f"{path}/{leaf}" for theirs, leaf in _NORM_LEAVES.items() if f"{path}/{leaf}" in leaves}


def write_norms(base: Base, own: Flat) -> Content:
    """Layer norms that were trained beside an adapter, which PEFT saves whole.

    Raises:
      TuningError: other parameters of the base are among them, or a norm without its bias.
    """
    of_norms = {name: _norm_leaves(base, module) for name, module in base.norms.items()}
    if others := sorted(own.keys() - {path for leaves in of_norms.values() for path in leaves.values()}):
        raise TuningError(
            f"{others[0]} was trained beside the adapter, and of the base's own parameters only layer norms go into a "
            "PEFT folder: give --merge"
        )
    chosen = {name: leaves for name, leaves in of_norms.items() if own.keys() & leaves.values()}
    if left := sorted({path for leaves in chosen.values() for path in leaves.values()} - own.keys()):
        raise TuningError(
            f"{left[0]} was not trained with the rest of its norm, and PEFT saves norms whole: give --merge"
        )
    tensors = {}
    for name, leaves in chosen.items():
        layer = base.norms[name].layer
        for theirs, path in leaves.items():
            tensors[f"{PREFIX}{name}.{theirs}"] = np.asarray(own[path] if layer is None else own[path][layer])
    return Content({"modules_to_save": shortest(chosen, base, ends_with) or None}, tensors)


def saved_norms(config: AdapterConfig, base: Base) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the layer norms in `modules_to_save`."""
    rule = config.rule("modules_to_save", ())
    if isinstance(rule, str):
        raise config.error(f"modules_to_save is {rule!r}: it must be a list of names")
    chosen = {name: module for name, module in base.norms.items() if ends_with(rule, name)}
    others = [one for one in rule if not any(name.endswith(one) for name in chosen)]
    if others:
        raise config.error(
            f"modules_to_save has {', '.join(others)}: of the base's own parameters only layer norms are read; merge "
            "the adapter where it was trained, with merge_and_unload()"
        )
    taken = {module.paths for module in chosen.values()}
    if left := [name for name, module in base.norms.items() if module.paths in taken and name not in chosen]:
        raise config.error(
            f"modules_to_save leaves out {left[0]} and takes the same norm of other layers: layers are trained "
            "together here; merge the adapter where it was trained, with merge_and_unload()"
        )
    return {
        f"{name}.{theirs}": module.shape for name, module in chosen.items() for theirs in _norm_leaves(base, module)
    }


def with_norms(adapter: Adapter, base: Base, own: Collection[str], arrays: Mapping[str, np.ndarray]) -> Adapter:
    """The adapter with the norms of `saved_norms` beside it, which are then trained with it."""
    if not own:
        return adapter
    leaves = flatten(abstract_params(base.config))
    params: Flat = {}
    for tensor in own:
        name, _, theirs = tensor.rpartition(".")
        module = base.norms[name]
        path = _norm_leaves(base, module)[theirs]
        leaf = params.setdefault(path, np.empty(leaves[path].shape, np.float32))
        leaf[... if module.layer is None else module.layer] = arrays[tensor]
    method = Train(parameters=pattern_of(params, leaves, (LAYER_NORMS,)))
    return Adapter((*adapter.methods, method), adapter.params | params)


def pattern(chosen: Mapping[str, Module], base: Base, known: Collection[str]) -> str:
    """A regular expression of the paths of these projections."""
    everything = projections(flatten(abstract_params(base.config)))
    return pattern_of({path for module in chosen.values() for path in module.paths}, everything, known)


def kernels(base: Base, chosen: Mapping[str, Module]) -> dict[str, tuple[int, int, int]]:
    """The projections of these modules, with layers, inputs and outputs."""
    leaves = flatten(abstract_params(base.config))
    paths = sorted({path for module in chosen.values() for path in module.paths})
    return {path: leaves[f"{path}/kernel"].shape for path in paths}


def by_layer(chosen: Mapping[str, Module], path: str) -> dict[int, tuple[str, np.ndarray]]:
    """Of the modules that a projection lies in: by layer the name, and which of the module's outputs are its own."""
    return {
        int(module.layer or 0): (name, module.parts[module.paths.index(path)])
        for name, module in chosen.items()
        if path in module.paths
    }


def by_module(
    base: Base, adapters: Mapping[str, dict[str, Any]]
) -> list[tuple[str, Module, dict[str, dict[str, Any]]]]:
    """Each module that has an adapter, and this layer's parameters of each of its projections that has one."""
    found = []
    for name, module in base.modules.items():
        layer = int(module.layer or 0)
        own = {
            path: {part: np.asarray(value[layer]) for part, value in adapters[path].items()}
            for path in module.paths
            if path in adapters
        }
        if own:
            found.append((name, module, own))
    return found
