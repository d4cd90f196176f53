"""A model of either kind, an encoder-decoder (`T5Config`) or a decoder (`DecoderConfig`), behind the same functions.

    params = init_params(config, seed=0)
    model = build(config, Compute(), params)
    hidden = model(batch)                       # [batch, length, embed], from a batch in T5X's feature names
    logits = model.logits(hidden)

Training, tuning and checkpoints know a model by these alone. What a run keeps of its configuration goes through
`model_settings` and `model_from_settings`, which tell the kinds apart.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, overload

from flanjax.models import decoder, t5
from flanjax.models.config import Addition, Compute, ModelConfigError, T5Config
from flanjax.models.decoder import Decoder
from flanjax.models.decoder_config import DecoderConfig
from flanjax.models.parameters import Params
from flanjax.models.t5 import T5

ModelConfig = T5Config | DecoderConfig
Model = T5 | Decoder

# A run from before there was a choice has no kind: it is a T5.
_KIND, _DECODER = "kind", "decoder"
# Fields that came after the first runs. Left out where they change nothing, so that those runs go on.
_LATER = {"relpos_per_layer": False, "word_embed_dim": 0, "alibi_scale": 1.0, "alibi_rounded": False}


def abstract_params(config: ModelConfig) -> Params:
    """The parameter tree as `jax.ShapeDtypeStruct`s; a model's own are float32."""
    return decoder.abstract_params(config) if isinstance(config, DecoderConfig) else t5.abstract_params(config)


def logical_axes(config: ModelConfig) -> Params:
    """The parameter tree with a tuple of axis names a parameter, such as `("layers", "embed", "heads")`."""
    return decoder.logical_axes(config) if isinstance(config, DecoderConfig) else t5.logical_axes(config)


def init_params(config: ModelConfig, seed: int) -> Params:
    """Fresh parameters with the deviations of the model's kind; works under jit."""
    return decoder.init_params(config, seed) if isinstance(config, DecoderConfig) else t5.init_params(config, seed)


@overload
def build(config: T5Config, compute: Compute, params: Params) -> T5: ...
@overload
def build(config: DecoderConfig, compute: Compute, params: Params) -> Decoder: ...
@overload
def build(config: ModelConfig, compute: Compute, params: Params) -> Model: ...
def build(config: ModelConfig, compute: Compute, params: Params) -> Model:
    """The model over these parameters (arrays or tracers); works under jit and grad.

    Raises:
      ModelConfigError: a parameter is missing, unknown or of another shape; the message names its path.
    """
    if isinstance(config, DecoderConfig):
        return decoder.build(config, compute, params)
    return t5.build(config, compute, params)


def model_settings(config: ModelConfig) -> dict[str, Any]:
    """The fields of a configuration, without what tuning methods added, and the kind of a model that is no T5.

    Worked example: of `DecoderConfig(vocab_size=256, ...)` it is {"kind": "decoder", "vocab_size": 256, ...}.
    """
    fields = dataclasses.asdict(dataclasses.replace(config, added=()))
    del fields["added"]
    fields = {name: value for name, value in fields.items() if name not in _LATER or value != _LATER[name]}
    return {_KIND: _DECODER, **fields} if isinstance(config, DecoderConfig) else fields


def model_from_settings(settings: Mapping[str, Any], added: tuple[Addition, ...] = ()) -> ModelConfig:
    """The configuration that `model_settings` was given, with what methods add to it.

    Raises:
      TypeError: a field is unknown or missing.
      ModelConfigError: a kind that there is not, or a field outside its range.
    """
    fields = dict(settings)
    kind = fields.pop(_KIND, None)
    if kind not in (None, _DECODER):
        raise ModelConfigError(f"a model of the kind {kind!r} is not known: there is {_DECODER!r}, and none for a T5")
    return (T5Config if kind is None else DecoderConfig)(**fields, added=added)


def require_t5(config: ModelConfig, what: str) -> T5Config:
    """The configuration, of what only a T5 can be used for.

    Raises:
      ModelConfigError: it is a decoder; the message begins with `what` it was to be used for.
    """
    if isinstance(config, DecoderConfig):
        raise ModelConfigError(f"{what} takes a T5, and this model is a decoder")
    return config
