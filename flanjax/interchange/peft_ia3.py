"""(IA)3 as PEFT keeps it: `<module>.ia3_l` [out, 1] behind a projection, or [1, in] before one of the feed-forward.

In flanjax that is `ia3/output` [layers, out] and `ia3/input` [layers, in]. A layer without factors gets ones.
"""

import numpy as np

from flanjax.interchange.peft_config import PREFIX, AdapterConfig, AdapterTensors, ends_with, selects, shortest
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
from flanjax.tuning.ia3 import IA3
from flanjax.tuning.method import Flat, split_adapter

# PEFT's targets for model_type "t5".
TARGETS, FEEDFORWARD = ("k", "v", "wo"), ("wo",)


def read_ia3(config: AdapterConfig, base: T5Config, tensors: AdapterTensors) -> Adapter:
    """An adapter of type IA3.

    Raises:
      ModelFolderError: see `flanjax.interchange.peft.read_peft`.
    """
    config.refuse({"fan_in_fan_out": FAN_IN_FAN_OUT})
    chosen = config.targets(base, TARGETS)
    feedforward = config.rule("feedforward_modules", FEEDFORWARD)
    scaled_before = {
        name
        for name in chosen
        if (selects(feedforward, name) if isinstance(feedforward, str) else ends_with(feedforward, name))
    }
    shapes: dict[str, tuple[int, ...]] = {
        f"{name}.ia3_l": (1, place.shape[0]) if name in scaled_before else (place.shape[1], 1)
        for name, place in chosen.items()
    }
    own = saved_norms(config, base)
    arrays = tensors.take(shapes | own)
    before = {name: place for name, place in chosen.items() if name in scaled_before}
    after = {name: place for name, place in chosen.items() if name not in scaled_before}
    params = {}
    for part, places, axis in (("output", after, 2), ("input", before, 1)):
        for path, kernel in kernels(base, places).items():
            params[f"{path}/ia3/{part}"] = np.ones((kernel[0], kernel[axis]), np.float32)
        for name, place in places.items():
            factors = params[f"{place.path.removesuffix('/kernel')}/ia3/{part}"]
            factors[place.layer] = arrays[f"{name}.ia3_l"].reshape(-1)
    method = IA3(
        targets=pattern(after, base, (IA3.targets,)) if after else "",
        input_targets=pattern(before, base, (IA3.input_targets,)) if before else "",
    )
    return with_norms(Adapter((method,), params), base, own, arrays)


def write_ia3(method: IA3, base: T5Config, added: Flat) -> Content:
    """The factors layer by layer."""
    adapters, _ = split_adapter(added, IA3.name)
    tensors, before = {}, set()
    for name, place, parts in by_module(base, adapters):
        if "input" in parts:
            before.add(name)
            tensors[f"{PREFIX}{name}.ia3_l"] = np.asarray(parts["input"][place.layer])[None]
        else:
            tensors[f"{PREFIX}{name}.ia3_l"] = np.asarray(parts["output"][place.layer])[:, None]
    targets = shortest({name for name, _, _ in by_module(base, adapters)}, base)
    feedforward = shortest(before, base, ends_with)
    if not set(feedforward) <= set(targets):  # PEFT wants the one list to hold the other
        targets, feedforward = sorted(name for name, _, _ in by_module(base, adapters)), sorted(before)
    config = {
        "peft_type": "IA3",
        "target_modules": targets,
        "feedforward_modules": feedforward,
        "fan_in_fan_out": False,
        "init_ia3_weights": True,
    }
    return Content(config, tensors)
