"""The tuning methods by name, for the settings of a run."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from flanjax.errors import nearest
from flanjax.tuning.adapter import BottleneckAdapter
from flanjax.tuning.bitfit import BitFit
from flanjax.tuning.ia3 import IA3
from flanjax.tuning.lora import LoRA
from flanjax.tuning.method import Method, TuningError
from flanjax.tuning.p_tuning import PTuning
from flanjax.tuning.prefix import PrefixTuning
from flanjax.tuning.prompt import PromptTuning
from flanjax.tuning.quantize import NF4
from flanjax.tuning.select import Freeze, Train

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (BitFit, BottleneckAdapter, Freeze, IA3, LoRA, NF4, PrefixTuning, PromptTuning, PTuning, Train)
}


def to_settings(methods: Sequence[Method]) -> list[dict[str, Any]]:
    """Methods as JSON holds them: their name beside their fields."""
    return [{"name": method.name, **dataclasses.asdict(method)} for method in methods]


def from_settings(settings: Sequence[Mapping[str, Any]]) -> tuple[Method, ...]:
    """Methods from what `to_settings` made of them.

    Raises:
      TuningError: a method or a field that this flanjax does not know.
    """
    return tuple(_method(dict(fields)) for fields in settings)


def _method(fields: dict[str, Any]) -> Method:
    name = str(fields.pop("name", None))
    if name not in METHODS:
        raise TuningError(f"tuning method {name!r} is not known{nearest(name, METHODS)}")
    try:
        return METHODS[name](**fields)
    except TypeError as error:
        raise TuningError(f"tuning method {name!r}: {error}") from error
