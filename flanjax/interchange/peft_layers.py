"""LoRA and (IA)3 as PEFT keeps them, one layer at a time, to and from flanjax's, whose layers are stacked.

    LoRA   <module>.lora_A.weight [rank, in], .lora_B.weight [out, rank]      lora/a [layers, in, rank], lora/b
    (IA)3  <module>.ia3_l [out, 1], or [1, in] where it scales the input      ia3/output [layers, out], ia3/input

PEFT may give each layer a choice of its own, a stack may not. Where ranks differ, the smaller are filled with zeros;
where scales do, they are folded into B; a layer without an adapter gets one that does nothing, zeros or ones. Zeros in
both A and B have no gradient, so such a layer stays without in training too.
"""

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from flanjax.interchange.hf_t5 import Place
from flanjax.interchange.peft_config import (
    AdapterConfig,
    AdapterTensors,
    ends_with,
    modules,
    norms,
    pattern_of,
    selects,
    shortest,
)
from flanjax.models.config import T5Config
from flanjax.models.t5 import abstract_params
from flanjax.tuning.ia3 import IA3
from flanjax.tuning.lora import ALL_LINEAR, ATTENTION, LoRA
from flanjax.tuning.method import Flat, Method, TuningError, projections, split_adapter
from flanjax.tuning.partition import flatten
from flanjax.tuning.select import LAYER_NORMS, Train

# PEFT's targets for model_type "t5".
LORA_TARGETS = ("q", "v")
IA3_TARGETS, IA3_FEEDFORWARD = ("k", "v", "wo"), ("wo",)
# What changes the function, or the base model, in a way that flanjax has no place for.
_LORA_REFUSED = {
    "fan_in_fan_out": "T5 keeps no weight that way round; set it to false if the adapter was trained on a T5",
    "lora_bias": "T5's projections have no bias",
    "alora_invocation_tokens": "activated LoRA depends on the tokens",
    "layer_replication": "the layers of the base are repeated",
    "trainable_token_indices": "rows of the embedding were trained",
    "target_parameters": "it adapts parameters that are no projections",
    **dict.fromkeys(
        ("use_qalora", "use_bdlora", "arrow_config", "kasa_config", "velora_config", "monteclora_config"),
        "a variant of LoRA that flanjax does not have; merge it where it was trained, with merge_and_unload()",
    ),
}
_HARMLESS_INITS = (None, True, False, "gaussian", "eva", "orthogonal")


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
    """What a PEFT folder is written from: keys of its configuration, and tensors by name without prefix."""

    config: dict[str, Any]
    tensors: dict[str, np.ndarray]


def read_lora(config: AdapterConfig, base: T5Config, tensors: AdapterTensors) -> Adapter:
    """An adapter of type LORA.

    Raises:
      ModelFolderError: see `flanjax.interchange.peft.read_peft`.
    """
    config.refuse(_LORA_REFUSED)
    if config.raw.get("bias") not in (None, "none"):
        raise config.error(f"bias is {config.raw['bias']!r}: a T5 has no biases")
    if config.raw.get("init_lora_weights") not in _HARMLESS_INITS:
        raise config.error(
            f"init_lora_weights is {config.raw['init_lora_weights']!r}, which changed the base model: save the adapter "
            "again with path_initial_model_for_weight_conversion, which makes it one for the unchanged base"
        )
    rank, alpha = config.number("r", 8, whole=True), config.number("lora_alpha", 8)
    if not alpha:
        raise config.error("lora_alpha is 0: the adapter would do nothing")
    stabilized = bool(config.raw.get("use_rslora"))
    chosen = config.targets(base, LORA_TARGETS)
    ranks = {name: config.by_pattern("rank_pattern", name, rank, whole=True) for name in chosen}
    scales = {
        name: config.by_pattern("alpha_pattern", name, alpha) / _divisor(ranks[name], stabilized) for name in chosen
    }
    shapes: dict[str, tuple[int, ...]] = {}
    for name, place in chosen.items():
        size_in, size_out = place.shape
        shapes[f"{name}.lora_A.weight"] = (ranks[name], size_in)
        shapes[f"{name}.lora_B.weight"] = (size_out, ranks[name])
    own = _saved_norms(config, base)
    arrays = tensors.take(shapes | own)

    largest, scale = max(ranks.values()), alpha / _divisor(rank, stabilized)
    params = {
        f"{path}/lora/{part}": np.zeros((count, *shape), np.float32)
        for path, (count, size_in, size_out) in _kernels(base, chosen).items()
        for part, shape in (("a", (size_in, largest)), ("b", (largest, size_out)))
    }
    for name, place in chosen.items():
        used, b = slice(ranks[name]), arrays[f"{name}.lora_B.weight"].T
        params[f"{place.path.removesuffix('/kernel')}/lora/a"][place.layer, :, used] = arrays[f"{name}.lora_A.weight"].T
        b = b if scales[name] == scale else b * np.float32(scales[name] / scale)
        params[f"{place.path.removesuffix('/kernel')}/lora/b"][place.layer, used] = b
    method = LoRA(
        rank=largest,
        alpha=alpha if largest == rank else scale * _divisor(largest, stabilized),
        targets=_pattern(chosen, base, (ATTENTION, ALL_LINEAR)),
        dropout=config.number("lora_dropout", 0.0),
        rank_stabilized=stabilized,
    )
    return _with_norms(Adapter((method,), params), base, own, arrays)


def _divisor(rank: int, stabilized: bool) -> float:
    return math.sqrt(rank) if stabilized else rank


def write_lora(method: LoRA, base: T5Config, added: Flat) -> Content:
    """LoRA's parameters layer by layer.

    Raises:
      TuningError: B is zero everywhere.
    """
    adapters, _ = split_adapter(added, LoRA.name)
    if not any(np.asarray(parts["b"]).any() for parts in adapters.values()):
        raise TuningError("LoRA's B is zero everywhere: nothing was learnt, and the adapter would be the base itself")
    tensors = {}
    for name, place, parts in _by_module(base, adapters):
        tensors[f"{name}.lora_A.weight"] = np.asarray(parts["a"][place.layer]).T
        tensors[f"{name}.lora_B.weight"] = np.asarray(parts["b"][place.layer]).T
    config = {
        "peft_type": "LORA",
        "r": method.rank,
        "lora_alpha": _whole(method.alpha),
        "lora_dropout": method.dropout,
        "target_modules": shortest({name for name, _, _ in _by_module(base, adapters)}, base),
        "use_rslora": method.rank_stabilized,
        "use_dora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
    }
    return Content(config, tensors)


def _whole(value: float) -> float:
    return int(value) if float(value).is_integer() else value


def read_ia3(config: AdapterConfig, base: T5Config, tensors: AdapterTensors) -> Adapter:
    """An adapter of type IA3.

    Raises:
      ModelFolderError: see `flanjax.interchange.peft.read_peft`.
    """
    config.refuse({"fan_in_fan_out": _LORA_REFUSED["fan_in_fan_out"]})
    chosen = config.targets(base, IA3_TARGETS)
    feedforward = config.rule("feedforward_modules", IA3_FEEDFORWARD)
    scaled_before = {
        name
        for name in chosen
        if (selects(feedforward, name) if isinstance(feedforward, str) else ends_with(feedforward, name))
    }
    shapes: dict[str, tuple[int, ...]] = {
        f"{name}.ia3_l": (1, place.shape[0]) if name in scaled_before else (place.shape[1], 1)
        for name, place in chosen.items()
    }
    own = _saved_norms(config, base)
    arrays = tensors.take(shapes | own)
    before = {name: place for name, place in chosen.items() if name in scaled_before}
    after = {name: place for name, place in chosen.items() if name not in scaled_before}
    params = {}
    for part, places, axis in (("output", after, 2), ("input", before, 1)):
        for path, kernel in _kernels(base, places).items():
            params[f"{path}/ia3/{part}"] = np.ones((kernel[0], kernel[axis]), np.float32)
        for name, place in places.items():
            factors = params[f"{place.path.removesuffix('/kernel')}/ia3/{part}"]
            factors[place.layer] = arrays[f"{name}.ia3_l"].reshape(-1)
    method = IA3(
        targets=_pattern(after, base, (IA3.targets,)) if after else "",
        input_targets=_pattern(before, base, (IA3.input_targets,)) if before else "",
    )
    return _with_norms(Adapter((method,), params), base, own, arrays)


def write_ia3(method: IA3, base: T5Config, added: Flat) -> Content:
    """The factors layer by layer."""
    adapters, _ = split_adapter(added, IA3.name)
    tensors, before = {}, set()
    for name, place, parts in _by_module(base, adapters):
        if "input" in parts:
            before.add(name)
            tensors[f"{name}.ia3_l"] = np.asarray(parts["input"][place.layer])[None]
        else:
            tensors[f"{name}.ia3_l"] = np.asarray(parts["output"][place.layer])[:, None]
    targets = shortest({name for name, _, _ in _by_module(base, adapters)}, base)
    feedforward = shortest(before, base, ends_with)
    if not set(feedforward) <= set(targets):  # PEFT wants the one list to hold the other
        targets, feedforward = sorted(name for name, _, _ in _by_module(base, adapters)), sorted(before)
    config = {
        "peft_type": "IA3",
        "target_modules": targets,
        "feedforward_modules": feedforward,
        "fan_in_fan_out": False,
        "init_ia3_weights": True,
    }
    return Content(config, tensors)


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
        f"{name}.weight": np.asarray(own[place.path] if place.layer is None else own[place.path][place.layer])
        for name, place in chosen.items()
    }
    return Content({"modules_to_save": shortest(chosen, base, ends_with) or None}, tensors)


def _saved_norms(config: AdapterConfig, base: T5Config) -> dict[str, tuple[int, ...]]:
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


def _with_norms(adapter: Adapter, base: T5Config, own: Collection[str], arrays: Mapping[str, np.ndarray]) -> Adapter:
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


def _pattern(chosen: Mapping[str, Place], base: T5Config, known: Collection[str]) -> str:
    everything = projections(flatten(abstract_params(dataclasses.replace(base, added=()))))
    return pattern_of({place.path.removesuffix("/kernel") for place in chosen.values()}, everything, known)


def _kernels(base: T5Config, chosen: Mapping[str, Place]) -> dict[str, tuple[int, int, int]]:
    """The projections of these modules, with layers, inputs and outputs."""
    leaves = flatten(abstract_params(dataclasses.replace(base, added=())))
    paths = sorted({place.path for place in chosen.values()})
    return {path.removesuffix("/kernel"): leaves[path].shape for path in paths}


def _by_module(base: T5Config, adapters: Mapping[str, dict[str, Any]]) -> list[tuple[str, Place, dict[str, Any]]]:
    """Each module that has an adapter, its place, and the stacked parameters of it."""
    return [
        (name, place, adapters[place.path.removesuffix("/kernel")])
        for name, place in modules(base).items()
        if place.path.removesuffix("/kernel") in adapters
    ]
