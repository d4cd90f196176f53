"""What adapters on projections share on their way between PEFT, which keeps one layer at a time, and flanjax's stacks.

PEFT may give each layer a choice of its own, a stack may not: see `flanjax.interchange.peft_lora` and `peft_ia3` for
what becomes of it. Layer norms that were trained beside an adapter lie in the same folder (`modules_to_save`).
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from flanjax.interchange.hf_t5 import Place
from flanjax.interchange.peft_config import PREFIX, AdapterConfig, ends_with, modules, norms, pattern_of, shortest
from flanjax.models.config import T5Config
from flanjax.models.t5 import abstract_params
from flanjax.tuning.method import Flat, Method, TuningError, projections
from flanjax.tuning.partition import flatten
from flanjax.tuning.select import LAYER_NORMS, Train

FAN_IN_FAN_OUT = "T5 keeps no weight that way round; set it to false if the adapter was trained on a T5"


@dataclasses.dataclass(frozen=True)
class Adapter:
    """An adapter on a base model.

    Attributes:
      methods: what it is.
      params: float32, by path: all that the methods add, and the base's own parameters that it brings instead.
    """

    methods: tuple[Method, ...]
    params: Flat


@dataclasses.dataclass(frozen=True)
class Content:
    """What a PEFT folder is written from: keys of its configuration, and tensors by their names in the file."""

    config: dict[str, Any]
    tensors: dict[str, np.ndarray]


def write_norms(base: T5Config, own: Flat) -> Content:
    """Layer norms that were trained beside an adapter, which PEFT saves whole.

    Raises:
      TuningError: other parameters of the base are among them.
    """
    places = norms(base)
    if others := sorted(own.keys() - {place.path for place in places.values()}):
        raise TuningError(
            f"{others[0]} was trained beside the adapter, and of the base's own parameters only layer norms go into a "
            "PEFT folder: give --merge"
        )
    chosen = {name: place for name, place in places.items() if place.path in own}
    tensors = {
        f"{PREFIX}{name}.weight": np.asarray(own[place.path] if place.layer is None else own[place.path][place.layer])
        for name, place in chosen.items()
    }
    return Content({"modules_to_save": shortest(chosen, base, ends_with) or None}, tensors)


def saved_norms(config: AdapterConfig, base: T5Config) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the layer norms in `modules_to_save`."""
    rule = config.rule("modules_to_save", ())
    if isinstance(rule, str):
        raise config.error(f"modules_to_save is {rule!r}: it must be a list of names")
    chosen = {name: place for name, place in norms(base).items() if ends_with(rule, name)}
    others = [one for one in rule if not any(name.endswith(one) for name in chosen)]
    if others:
        raise config.error(
            f"modules_to_save has {', '.join(others)}: of the base's own parameters only layer norms are read; merge "
            "the adapter where it was trained, with merge_and_unload()"
        )
    for path in {place.path for place in chosen.values()}:
        if left := [name for name, place in norms(base).items() if place.path == path and name not in chosen]:
            raise config.error(
                f"modules_to_save leaves out {left[0]} and takes the same norm of other layers: layers are trained "
                "together here; merge the adapter where it was trained, with merge_and_unload()"
            )
    return {f"{name}.weight": place.shape for name, place in chosen.items()}


def with_norms(adapter: Adapter, base: T5Config, own: Collection[str], arrays: Mapping[str, np.ndarray]) -> Adapter:
    """The adapter with the norms of `saved_norms` beside it, which are then trained with it."""
    if not own:
        return adapter
    leaves = flatten(abstract_params(dataclasses.replace(base, added=())))
    params: Flat = {}
    for name in own:
        place = norms(base)[name.removesuffix(".weight")]
        leaf = params.setdefault(place.path, np.empty(leaves[place.path].shape, np.float32))
        leaf[... if place.layer is None else place.layer] = arrays[name]
    method = Train(parameters=pattern_of(params, leaves, (LAYER_NORMS,)))
    return Adapter((*adapter.methods, method), adapter.params | params)


def pattern(chosen: Mapping[str, Place], base: T5Config, known: Collection[str]) -> str:
    """A regular expression of the paths of these projections."""
    everything = projections(flatten(abstract_params(dataclasses.replace(base, added=()))))
    return pattern_of({place.path.removesuffix("/kernel") for place in chosen.values()}, everything, known)


def kernels(base: T5Config, chosen: Mapping[str, Place]) -> dict[str, tuple[int, int, int]]:
    """The projections of these modules, with layers, inputs and outputs."""
    leaves = flatten(abstract_params(dataclasses.replace(base, added=())))
    paths = sorted({place.path for place in chosen.values()})
    return {path.removesuffix("/kernel"): leaves[path].shape for path in paths}


def by_module(base: T5Config, adapters: Mapping[str, dict[str, Any]]) -> list[tuple[str, Place, dict[str, Any]]]:
    """Each module that has an adapter, its place, and the stacked parameters of it."""
    return [
        (name, place, adapters[place.path.removesuffix("/kernel")])
        for name, place in modules(base).items()
        if place.path.removesuffix("/kernel") in adapters
    ]
