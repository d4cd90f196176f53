"""LoRA and its kin as PEFT keeps them: `<module>.lora_A.weight` [rank, in], `<module>.lora_B.weight` [out, rank].

In flanjax that is `lora/a` [layers, in, rank] and `lora/b` [layers, rank, out]; DoRA adds `lora_magnitude_vector` [out]
there and `lora/magnitude` [layers, out] here.

Read: where the layers of one projection differ in rank, the smaller are filled with zeros; where they differ in scale,
it is folded into B; a layer without an adapter gets zeros. Zeros in both A and B have no gradient, so what is filled
stays so in training too.

Written: PiSSA changed the base, W - s A0 B0, and is written for the base as it was:

    W - s A0 B0 + s A B = W + s [A A0] [B; -B0]      rank and alpha double; rsLoRA's alpha grows by sqrt(2)

Where transformers keeps queries, keys and values in one module, its adapter is one of all three with the same A, and
each has the rows of B that are its own. Back again, three that have the same A are that adapter; others become one of
their ranks together, whose B is zero outside the blocks that belong to each of its A:

    A = [A_q A_k A_v]      B = [B_q 0 0; 0 B_k 0; 0 0 B_v]
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from flanjax.interchange.peft_base import Base
from flanjax.interchange.peft_config import PREFIX, AdapterConfig, AdapterTensors, shortest
from flanjax.interchange.peft_layers import (
    Adapter,
    Content,
    by_layer,
    by_module,
    kernels,
    pattern,
    refuse_fan_in_fan_out,
    saved_norms,
    with_norms,
)
from flanjax.tuning.lora import ALL_LINEAR, ATTENTION, LoRA
from flanjax.tuning.method import Flat, TuningError, split_adapter
from flanjax.tuning.patterns import decide

# PEFT's targets for model_type "t5".
TARGETS = ("q", "v")
# What changes the function, or the base model, in a way that flanjax has no place for.
_REFUSED = {
    "lora_bias": "the adapter has a bias of its own",
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


def read_lora(config: AdapterConfig, base: Base, tensors: AdapterTensors) -> Adapter:
    """An adapter of type LORA.

    Raises:
      ModelFolderError: see `flanjax.interchange.peft.read_peft`.
    """
    config.refuse(_REFUSED)
    refuse_fan_in_fan_out(config, base)
    if config.raw.get("bias") not in (None, "none"):
        raise config.error(
            f"bias is {config.raw['bias']!r}: biases trained beside LoRA are not read; merge the adapter where it was "
            "trained, with merge_and_unload()"
        )
    if config.raw.get("init_lora_weights") not in _HARMLESS_INITS:
        raise config.error(
            f"init_lora_weights is {config.raw['init_lora_weights']!r}, which changed the base model: save the adapter "
            "again with path_initial_model_for_weight_conversion, which makes it one for the unchanged base"
        )
    rank, alpha = config.number("r", 8, whole=True), config.number("lora_alpha", 8)
    stabilized, dora = bool(config.raw.get("use_rslora")), bool(config.raw.get("use_dora"))
    chosen = config.targets(base, () if base.causal else TARGETS)
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
    for name, module in chosen.items():
        size_in, size_out = module.shape
        shapes[f"{name}.lora_A.weight"] = (settings[name][0], size_in)
        shapes[f"{name}.lora_B.weight"] = (size_out, settings[name][0])
        if dora:
            shapes[f"{name}.lora_magnitude_vector"] = (size_out,)
    own = saved_norms(config, base)
    arrays = tensors.take(shapes | own)

    params: Flat = {}
    ranks, alphas = {}, {}
    for path, (count, size_in, size_out) in kernels(base, chosen).items():
        names = by_layer(chosen, path)
        if dora and len(names) < count:
            raise config.error(f"use_dora is true, and of {path} not all layers have an adapter: a stack holds all")
        # Of the layer with the largest rank; it fits the others with zeros, and the scale with a factor.
        largest, its_alpha = max(settings[name] for name, _ in names.values())
        a, b = np.zeros((count, size_in, largest), np.float32), np.zeros((count, largest, size_out), np.float32)
        for layer, (name, outputs) in names.items():
            own_rank, own_alpha = settings[name]
            factor = (own_alpha / _divisor(own_rank, stabilized)) / (its_alpha / _divisor(largest, stabilized))
            a[layer, :, :own_rank] = arrays[f"{name}.lora_A.weight"].T
            b[layer, :own_rank] = arrays[f"{name}.lora_B.weight"][outputs].T * np.float32(factor)
        params |= {f"{path}/lora/a": a, f"{path}/lora/b": b}
        if dora:
            vectors = (
                (arrays[f"{name}.lora_magnitude_vector"], outputs) for _, (name, outputs) in sorted(names.items())
            )
            params[f"{path}/lora/magnitude"] = np.stack([vector[outputs] for vector, outputs in vectors])
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


def as_modules(method: LoRA, base: Base, added: Flat) -> tuple[LoRA, Flat]:
    """An adapter whose projections have the same A wherever transformers has them in one module; it computes the same.

    Raises:
      TuningError: DoRA has norms of a part of such a module alone.
    """
    adapters, _ = split_adapter(added, LoRA.name)
    params, ranks, alphas = dict(added), [], []
    for paths in dict.fromkeys(module.paths for module in base.modules.values() if len(module.paths) > 1):
        own = [path for path in paths if path in adapters]
        if not own or (len(own) == len(paths) and all(_same_a(adapters[path], adapters[own[0]]) for path in own)):
            continue
        if method.dora and len(own) < len(paths):
            (missing, *_) = (path for path in paths if path not in own)
            raise TuningError(
                f"LoRA.dora leaves {missing} out, which a {base.model_type} has in one module with {own[0]}: PEFT "
                "needs the norms of all; export with --format=hf and --merge, or take all as targets"
            )
        a = np.concatenate([adapters[path]["a"] for path in own], axis=-1)
        blocks = np.cumsum([0, *(method.rank_of(path) for path in own)])
        for path, (_, _, size_out) in kernels(base, base.modules).items():
            if path in paths:
                params[f"{path}/lora/a"] = a
                params[f"{path}/lora/b"] = np.zeros((len(a), a.shape[-1], size_out), np.float32)
        for path, start, end in zip(own, blocks, blocks[1:], strict=False):
            # In terms of the first one's scale, which all have from now on.
            factor = np.float32(method.scale_of(path) / method.scale_of(own[0]))
            params[f"{path}/lora/b"][:, start:end] = np.asarray(adapters[path]["b"]) * factor
        rank, scale = a.shape[-1], method.scale_of(own[0])
        ranks += [(re.escape(path), rank) for path in paths]
        alphas += [(re.escape(path), scale * _divisor(rank, method.rank_stabilized)) for path in paths]
    joint = dataclasses.replace(
        method, rank_pattern=(*ranks, *method.rank_pattern), alpha_pattern=(*alphas, *method.alpha_pattern)
    )
    return joint, params


def _same_a(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return one is other or (one["a"].shape == other["a"].shape and np.array_equal(one["a"], other["a"]))


def write_lora(method: LoRA, base: Base, added: Flat) -> Content:
    """LoRA's parameters layer by layer, as `as_modules` gives them.

    Raises:
      TuningError: B is zero everywhere.
    """
    adapters, _ = split_adapter(added, LoRA.name)
    if not any(np.asarray(parts["b"]).any() for parts in adapters.values()):
        raise TuningError("LoRA's B is zero everywhere: nothing was learnt, and the adapter would be the base itself")
    tensors, ranks, alphas = {}, {}, {}
    for name, module, parts in by_module(base, adapters):
        first = module.paths[0]
        tensors[f"{PREFIX}{name}.lora_A.weight"] = parts[first]["a"].T
        tensors[f"{PREFIX}{name}.lora_B.weight"] = module.joined({path: part["b"].T for path, part in parts.items()})
        if method.dora:
            magnitudes = {path: part["magnitude"] for path, part in parts.items()}
            tensors[f"{PREFIX}{name}.lora_magnitude_vector"] = module.joined(magnitudes)
        ranks[name] = method.rank_of(first)
        alphas[name] = decide(method.alpha_pattern, first, method.alpha)
    rank = method.rank if method.rank in ranks.values() else min(ranks.values())
    alpha = method.alpha if method.alpha in alphas.values() else min(alphas.values())
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": _whole(alpha),
        "lora_dropout": method.dropout,
        "target_modules": shortest(ranks, base),
        "use_rslora": method.rank_stabilized,
        "use_dora": method.dora,
        "rank_pattern": _by_pattern(ranks, rank, base),
        "alpha_pattern": _by_pattern(alphas, alpha, base),
        "bias": "none",
        "fan_in_fan_out": base.conv1d,
        "init_lora_weights": True,
    }
    return Content(config, tensors)


def _by_pattern(values: Mapping[str, Any], default: float, base: Base) -> dict[str, float]:
    """`rank_pattern` or `alpha_pattern` for the modules whose value is another than the default."""
    found: dict[str, float] = {}
    for value in sorted(set(values.values()) - {default}):
        modules = {name for name, own in values.items() if own == value}
        found |= dict.fromkeys(shortest(modules, base), _whole(value))
    return found


def _whole(value: float) -> float:
    return int(value) if float(value).is_integer() else value
