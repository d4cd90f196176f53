"""The base model of an adapter by transformers' names: its projections and norms, and where each lies in flanjax.

Worked example: of a GPT-2, `transformer.h.1.attn.c_attn` is the module of `query`, `key` and `value` of layer 1 of
`decoder/layers/self_attention`, whose outputs lie one after the other in its own. PEFT knows that module alone, so an
adapter of it is one of all three here, and the other way round (`flanjax.interchange.peft_lora`).
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Self

import numpy as np

from flanjax.interchange.folders import ModelFolderError
from flanjax.interchange.hf_decoder import hf_decoder_config
from flanjax.interchange.hf_decoder import hf_places as decoder_places
from flanjax.interchange.hf_decoder_families import FAMILIES
from flanjax.interchange.hf_t5 import hf_places as t5_places
from flanjax.models.decoder_config import DecoderConfig
from flanjax.models.model import ModelConfig

_T5 = "t5"


@dataclasses.dataclass(frozen=True)
class Module:
    """One module of transformers.

    Attributes:
      paths: of the parameters' modules that it is, one or several whose outputs are joined.
      layer: of stacked ones.
      shape: of its kernel, in and out; of a norm its width alone.
      parts: which of its outputs belong to each path, in that one's order.
    """

    paths: tuple[str, ...]
    layer: int | None
    shape: tuple[int, ...]
    parts: tuple[np.ndarray, ...]

    def joined(self, of_paths: Mapping[str, np.ndarray]) -> np.ndarray:
        """An array over all outputs, its first axis, of arrays over those of each path."""
        first = of_paths[self.paths[0]]
        array = np.empty((self.shape[-1], *first.shape[1:]), first.dtype)
        for path, part in zip(self.paths, self.parts, strict=True):
            array[part] = of_paths[path]
        return array


@dataclasses.dataclass(frozen=True)
class Base:
    """A model without tuning methods, and the family whose names its modules have."""

    config: ModelConfig
    model_type: str

    @classmethod
    def of(cls, config: ModelConfig, model_type: str | None = None) -> Self:
        """The base of a model; of a decoder in this family, or the first that has such a model.

        Raises:
          ModelFolderError: no family, or not this one, has such a decoder.
        """
        config = dataclasses.replace(config, added=())
        if isinstance(config, DecoderConfig):
            return cls(config, str(hf_decoder_config(config, model_type)["model_type"]))
        if model_type is not None:
            raise ModelFolderError(f"model_type is {model_type!r}: this model is a T5, which has one set of names")
        return cls(config, _T5)

    @property
    def causal(self) -> bool:
        """Whether it is a decoder."""
        return self.model_type != _T5

    @property
    def conv1d(self) -> bool:
        """Whether transformers keeps its projections as GPT-2 does, [in, out]."""
        return self.causal and FAMILIES[self.model_type].conv1d

    @property
    def modules(self) -> dict[str, Module]:
        """The projections of the layers by name."""
        return {name: module for name, (leaf, module) in _modules(self).items() if leaf == "kernel"}

    @property
    def norms(self) -> dict[str, Module]:
        """The norms by name."""
        return {name: module for name, (leaf, module) in _modules(self).items() if leaf == "scale"}

    @property
    def elsewhere(self) -> tuple[str, ...]:
        """What `target_modules` may name beside projections, and flanjax has no adapters for."""
        if not isinstance(self.config, DecoderConfig):
            return ("lm_head", "shared", "encoder.embed_tokens", "decoder.embed_tokens")
        names = FAMILIES[self.model_type].modules(self.config)
        tables = ("token_embedder", "decoder/position_embedder")
        outside = (*tables, "decoder/project_in", "decoder/project_out", "decoder/logits_dense")
        return tuple(names[path] for path in outside if path in names)


@functools.cache
def _modules(base: Base) -> Mapping[str, tuple[str, Module]]:
    """Each module's leaf that gives its shape, and the module."""
    found: dict[str, tuple[str, Module]] = {}
    if isinstance(base.config, DecoderConfig):
        for name, place in decoder_places(FAMILIES[base.model_type], base.config).items():
            paths, leaf = tuple(path.rpartition("/")[0] for path in place.paths), place.paths[0].rpartition("/")[2]
            shape = (*place.shapes[0][:-1], sum(shape[-1] for shape in place.shapes))
            parts = place.parts if len(paths) > 1 else [np.arange(shape[-1])]
            if leaf == "scale" or (leaf == "kernel" and place.layer is not None):
                found[name.removesuffix(".weight")] = leaf, Module(paths, place.layer, shape, tuple(parts))
        return found
    for name, own in t5_places(base.config).items():
        path, _, leaf = own.path.rpartition("/")
        if leaf == "scale" or (leaf == "kernel" and own.layer is not None):
            module = Module((path,), own.layer, own.shape, (np.arange(own.shape[-1]),))
            found[name.removesuffix(".weight")] = leaf, module
    return found
