"""(IA)3 as PEFT keeps it: `<module>.ia3_l` [out, 1] behind a projection, or [1, in] before one of the feed-forward.

In flanjax that is `ia3/output` [layers, out] and `ia3/input` [layers, in]. A layer without factors gets ones, and so
does a projection that lies in one module with others that have some.
"""

import numpy as np

from flanjax.interchange.peft_base import Base
from flanjax.interchange.peft_config import PREFIX, AdapterConfig, AdapterTensors, ends_with, selects, shortest
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
from flanjax.tuning.ia3 import IA3
from flanjax.tuning.method import Flat, TuningError, split_adapter

# PEFT's targets for model_type "t5".
TARGETS, FEEDFORWARD = ("k", "v", "wo"), ("wo",)


def read_ia3(config: AdapterConfig, base: Base, tensors: AdapterTensors) -> Adapter:
    """An adapter of type IA3.

    Raises:
      ModelFolderError: see `flanjax.interchange.peft.read_peft`.
    """
    refuse_fan_in_fan_out(config, base)
    chosen = config.targets(base, () if base.causal else TARGETS)
    feedforward = config.rule("feedforward_modules", () if base.causal else FEEDFORWARD)
    scaled_before = {
        name
        for name in chosen
        if (selects(feedforward, name) if isinstance(feedforward, str) else ends_with(feedforward, name))
    }
    shapes: dict[str, tuple[int, ...]] = {
        f"{name}.ia3_l": (1, module.shape[0]) if name in scaled_before else (module.shape[1], 1)
        for name, module in chosen.items()
    }
    own = saved_norms(config, base)
    arrays = tensors.take(shapes | own)
    before = {name: module for name, module in chosen.items() if name in scaled_before}
    after = {name: module for name, module in chosen.items() if name not in scaled_before}
    params = {}
    for part, of_part, axis in (("output", after, 2), ("input", before, 1)):
        for path, kernel in kernels(base, of_part).items():
            factors = np.ones((kernel[0], kernel[axis]), np.float32)
            for layer, (name, outputs) in by_layer(of_part, path).items():
                vector = arrays[f"{name}.ia3_l"].reshape(-1)
                factors[layer] = vector[outputs] if part == "output" else vector
            params[f"{path}/ia3/{part}"] = factors
    method = IA3(
        targets=pattern(after, base, (IA3.targets,)) if after else "",
        input_targets=pattern(before, base, (IA3.input_targets,)) if before else "",
    )
    return with_norms(Adapter((method,), params), base, own, arrays)


def as_modules(method: IA3, base: Base, added: Flat) -> tuple[IA3, Flat]:
    """Factors of all projections of a module of transformers where one of them has some; it computes the same.

    Raises:
      TuningError: inputs are scaled of projections that lie in one module.
    """
    adapters, _ = split_adapter(added, IA3.name)
    params = dict(added)
    for paths in dict.fromkeys(module.paths for module in base.modules.values() if len(module.paths) > 1):
        own = [path for path in paths if path in adapters]
        if inputs := [path for path in own if "input" in adapters[path]]:
            raise TuningError(
                f"IA3.input_targets has {inputs[0]}: a {base.model_type} has it in one module with others, and PEFT "
                "scales what goes into all of them; use the run as it is (flanjax.load)"
            )
        for path, (layers, _, size_out) in kernels(base, base.modules).items():
            if own and path in paths and path not in own:
                params[f"{path}/ia3/output"] = np.ones((layers, size_out), np.float32)
    return method, params


def write_ia3(method: IA3, base: Base, added: Flat) -> Content:
    """The factors layer by layer, as `as_modules` gives them."""
    adapters, _ = split_adapter(added, IA3.name)
    tensors, before = {}, set()
    for name, module, parts in by_module(base, adapters):
        first = parts[module.paths[0]]
        if "input" in first:
            before.add(name)
            tensors[f"{PREFIX}{name}.ia3_l"] = first["input"][None]
        else:
            factors = module.joined({path: part["output"] for path, part in parts.items()})
            tensors[f"{PREFIX}{name}.ia3_l"] = factors[:, None]
    targets = shortest({name for name, _, _ in by_module(base, adapters)}, base)
    feedforward = shortest(before, base, ends_with)
    if not set(feedforward) <= set(targets):  # PEFT wants the one list to hold the other
        targets, feedforward = sorted(name for name, _, _ in by_module(base, adapters)), sorted(before)
    config = {
        "peft_type": "IA3",
        "target_modules": targets,
        "feedforward_modules": feedforward,
        "fan_in_fan_out": base.conv1d,
        "init_ia3_weights": True,
    }
    return Content(config, tensors)
