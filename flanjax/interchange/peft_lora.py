"""LoRA and its kin as PEFT keeps them: `<module>.lora_A.weight` [rank, in], `<module>.lora_B.weight` [out, rank].

In flanjax that is `lora/a` [layers, in, rank] and `lora/b` [layers, rank, out]; DoRA adds `lora_magnitude_vector` [out]
there and `lora/magnitude` [layers, out] here.

Read: where the layers of one projection differ in rank, the smaller are filled with zeros; where they differ in scale,
it is folded into B; a layer without an adapter gets zeros. Zeros in both A and B have no gradient, so what is filled
stays so in training too.

Written: PiSSA changed the base, W - s A0 B0, and is written for the base as it was:

    W - s A0 B0 + s A B = W + s [A A0] [B; -B0]      rank and alpha double; rsLoRA's alpha grows by sqrt(2)
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from flanjax.interchange.peft_config import PREFIX, AdapterConfig, AdapterTensors, shortest
from flanjax.interchange.peft_layers import (
    FAN_IN_FAN_OUT,
    Adapter,
    Content,
    by_module,
    kernels,
    pattern,
    saved_norms,
    with_norms,
)
from flanjax.models.config import T5Config
from flanjax.tuning.lora import ALL_LINEAR, ATTENTION, LoRA
from flanjax.tuning.method import Flat, TuningError, split_adapter
from flanjax.tuning.patterns import decide

# PEFT's targets for model_type "t5".
TARGETS = ("q", "v")
# What changes the function, or the base model, in a way that flanjax has no place for.
_REFUSED = {
    "fan_in_fan_out": FAN_IN_FAN_OUT,
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
# Beginnings that leave the base as it is.
_HARMLESS_INITS = (None, True, False, "gaussian", "eva", "orthogonal")


def read_lora(config: AdapterConfig, base: T5Config, tensors: AdapterTensors) -> Adapter:
    """An adapter of type LORA.

    Raises:
      ModelFolderError: see `flanjax.interchange.peft.read_peft`.
    """
    config.refuse(_REFUSED)
    if config.raw.get("bias") not in (None, "none"):
        raise config.error(f"bias is {config.raw['bias']!r}: a T5 has no biases")
    if config.raw.get("init_lora_weights") not in _HARMLESS_INITS:
        raise config.error(
            f"init_lora_weights is {config.raw['init_lora_weights']!r}, which changed the base model: save the adapter "
            "again with path_initial_model_for_weight_conversion, which makes it one for the unchanged base"
        )
    rank, alpha = config.number("r", 8, whole=True), config.number("lora_alpha", 8)
    stabilized, dora = bool(config.raw.get("use_rslora")), bool(config.raw.get("use_dora"))
    chosen = config.targets(base, TARGETS)
    settings = {
        name: (
            config.by_pattern("rank_pattern", name, rank, whole=True),
            config.by_pattern("alpha_pattern", name, alpha),
        )
        for name in chosen
    }
    if not all(own_alpha for _, own_alpha in settings.values()):
        raise config.error("lora_alpha is 0: the adapter would do nothing")
    shapes: dict[str, tuple[int, ...]] = {}
    for name, place in chosen.items():
        size_in, size_out = place.shape
        shapes[f"{name}.lora_A.weight"] = (settings[name][0], size_in)
        shapes[f"{name}.lora_B.weight"] = (size_out, settings[name][0])
        if dora:
            shapes[f"{name}.lora_magnitude_vector"] = (size_out,)
    own = saved_norms(config, base)
    arrays = tensors.take(shapes | own)

    params: Flat = {}
    ranks, alphas = {}, {}
    for path, (count, size_in, size_out) in kernels(base, chosen).items():
        names = {place.layer: name for name, place in chosen.items() if place.path == f"{path}/kernel"}
        if dora and len(names) < count:
            raise config.error(f"use_dora is true, and of {path} not all layers have an adapter: a stack holds all")
        # Of the layer with the largest rank; it fits the others with zeros, and the scale with a factor.
        largest, its_alpha = max(settings[name] for name in names.values())
        a, b = np.zeros((count, size_in, largest), np.float32), np.zeros((count, largest, size_out), np.float32)
        for layer, name in names.items():
            own_rank, own_alpha = settings[name]
            factor = (own_alpha / _divisor(own_rank, stabilized)) / (its_alpha / _divisor(largest, stabilized))
            a[layer, :, :own_rank] = arrays[f"{name}.lora_A.weight"].T
            b[layer, :own_rank] = arrays[f"{name}.lora_B.weight"].T * np.float32(factor)
        params |= {f"{path}/lora/a": a, f"{path}/lora/b": b}
        if dora:
            vectors = [arrays[f"{names[layer]}.lora_magnitude_vector"] for layer in range(count)]
            params[f"{path}/lora/magnitude"] = np.stack(vectors)
        ranks[path], alphas[path] = largest, its_alpha
    method = LoRA(
        rank=rank,
        alpha=alpha,
        targets=pattern(chosen, base, (ATTENTION, ALL_LINEAR)),
        dropout=config.number("lora_dropout", 0.0),
        rank_pattern=tuple((path, its) for path, its in ranks.items() if its != rank),
        alpha_pattern=tuple((path, its) for path, its in alphas.items() if its != alpha),
        rank_stabilized=stabilized,
        dora=dora,
    )
    return with_norms(Adapter((method,), params), base, own, arrays)


def _divisor(rank: int, stabilized: bool) -> float:
    return math.sqrt(rank) if stabilized else rank


def on_unchanged_base(method: LoRA, added: Flat, begun: Flat | None) -> tuple[LoRA, Flat]:
    """PiSSA's adapter as LoRA's on the base that PiSSA found; another one as it is.

    Arguments:
      method: of the run.
      added: its parameters.
      begun: the same as tuning began with them.

    Raises:
      TuningError: PiSSA without `begun`.
    """
    if method.init != "pissa":
        return method, added
    if begun is None:
        raise TuningError("PiSSA changed the base: what it began with is needed to write it for the unchanged one")
    params = dict(added)
    for path, value in added.items():
        if path.endswith("/lora/a"):
            params[path] = np.concatenate([value, begun[path]], axis=-1)
        elif path.endswith("/lora/b"):
            params[path] = np.concatenate([value, -np.asarray(begun[path])], axis=-2)
    factor = math.sqrt(2) if method.rank_stabilized else 2
    plain = dataclasses.replace(
        method,
        init="default",
        rank=2 * method.rank,
        alpha=factor * method.alpha,
        rank_pattern=tuple((pattern, 2 * rank) for pattern, rank in method.rank_pattern),
        alpha_pattern=tuple((pattern, factor * alpha) for pattern, alpha in method.alpha_pattern),
    )
    return plain, params


def write_lora(method: LoRA, base: T5Config, added: Flat) -> Content:
    """LoRA's parameters layer by layer.

    Raises:
      TuningError: B is zero everywhere.
    """
    adapters, _ = split_adapter(added, LoRA.name)
    if not any(np.asarray(parts["b"]).any() for parts in adapters.values()):
        raise TuningError("LoRA's B is zero everywhere: nothing was learnt, and the adapter would be the base itself")
    tensors, paths = {}, {}
    for name, place, parts in by_module(base, adapters):
        paths[name] = place.path.removesuffix("/kernel")
        tensors[f"{PREFIX}{name}.lora_A.weight"] = np.asarray(parts["a"][place.layer]).T
        tensors[f"{PREFIX}{name}.lora_B.weight"] = np.asarray(parts["b"][place.layer]).T
        if "magnitude" in parts:
            tensors[f"{PREFIX}{name}.lora_magnitude_vector"] = np.asarray(parts["magnitude"][place.layer])
    ranks = {name: method.rank_of(path) for name, path in paths.items()}
    alphas = {name: decide(method.alpha_pattern, path, method.alpha) for name, path in paths.items()}
    config = {
        "peft_type": "LORA",
        "r": method.rank,
        "lora_alpha": _whole(method.alpha),
        "lora_dropout": method.dropout,
        "target_modules": shortest(paths, base),
        "use_rslora": method.rank_stabilized,
        "use_dora": method.dora,
        "rank_pattern": _by_pattern(ranks, method.rank, base),
        "alpha_pattern": _by_pattern(alphas, method.alpha, base),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
    }
    return Content(config, tensors)


def _by_pattern(values: Mapping[str, Any], default: float, base: T5Config) -> dict[str, float]:
    """`rank_pattern` or `alpha_pattern` for the modules whose value is another than the default."""
    found: dict[str, float] = {}
    for value in sorted(set(values.values()) - {default}):
        modules = {name for name, own in values.items() if own == value}
        found |= dict.fromkeys(shortest(modules, base), _whole(value))
    return found


def _whole(value: float) -> float:
    return int(value) if float(value).is_integer() else value
