"""Variables of the Mesh TensorFlow T5 (Raffel et al. 2020) by T5X's names.

T5's first checkpoints, gs://t5-data/pretrained_models, are TensorFlow's; the arrays are those of T5X, the names are
not. Where TensorFlow is installed, they are read in three lines:

    reader = tensorflow.train.load_checkpoint("gs://t5-data/pretrained_models/t5.1.1.small/model.ckpt-1000000")
    variables = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    config, params = from_mesh_tensorflow(variables)

Worked example: `decoder/block_003/layer_001/EncDecAttention/o` is
`decoder/layers_3/encoder_decoder_attention/out/kernel`.
"""

import re
from collections.abc import Iterable, Mapping

from flanjax.interchange.folders import ModelFolderError
from flanjax.interchange.stored import StoredArray
from flanjax.interchange.t5x import from_tensors
from flanjax.models.config import T5Config
from flanjax.models.t5 import Params

_WHOLE = {
    "shared/embedding": "token_embedder/embedding",
    "decoder/logits/kernel": "decoder/logits_dense/kernel",
    "encoder/block_000/layer_000/SelfAttention/relative_attention_bias": "encoder/relpos_bias/rel_embedding",
    "decoder/block_000/layer_000/SelfAttention/relative_attention_bias": "decoder/relpos_bias/rel_embedding",
} | {
    f"{stack}/{norm}/scale": f"{stack}/{stack}_norm/scale"
    for stack in ("encoder", "decoder")
    for norm in ("rms_norm", "layer_norm", "final_layer_norm")
}
_IN_LAYER = re.compile(r"(encoder|decoder)/block_(\d+)/layer_(\d+)/(.+)")
_PROJECTIONS = {"q": "query", "k": "key", "v": "value", "o": "out"}
_NORMS = {
    "encoder": ("pre_attention_layer_norm", "pre_mlp_layer_norm"),
    "decoder": ("pre_self_attention_layer_norm", "pre_cross_attention_layer_norm", "pre_mlp_layer_norm"),
}
_ATTENTION = {
    ("encoder", "SelfAttention"): "attention",
    ("decoder", "SelfAttention"): "self_attention",
    ("decoder", "EncDecAttention"): "encoder_decoder_attention",
}
# The step, and the optimizer's second moments beside each variable.
_NOT_PARAMETERS = re.compile(r"global_step|.*_slot_v[rc]?|.*_slot_m")


def t5x_name(name: str) -> str | None:
    """T5X's name of a variable; None where it has none."""
    if name in _WHOLE:
        return _WHOLE[name]
    if (found := _IN_LAYER.fullmatch(name)) is None:
        return None
    stack, block, part, rest = found[1], int(found[2]), int(found[3]), found[4].split("/")
    inside = None
    match rest:
        case [attention, letter] if letter in _PROJECTIONS and (stack, attention) in _ATTENTION:
            inside = f"{_ATTENTION[stack, attention]}/{_PROJECTIONS[letter]}/kernel"
        case ["DenseReluDense", projection, "kernel"]:
            inside = f"mlp/{projection}/kernel"
        case ["rms_norm" | "layer_norm", "scale"] if part < len(_NORMS[stack]):
            inside = f"{_NORMS[stack][part]}/scale"
    return None if inside is None else f"{stack}/layers_{block}/{inside}"


def t5x_names(variables: Iterable[str]) -> dict[str, str]:
    """T5X's name of each variable that is a parameter.

    Raises:
      ModelFolderError: variables that are of no T5; all are listed.
    """
    names = {name: t5x_name(name) for name in variables if not _NOT_PARAMETERS.fullmatch(name)}
    if unknown := [name for name, translated in names.items() if translated is None]:
        raise ModelFolderError(f"variables that no T5 of Mesh TensorFlow has: {', '.join(unknown)}")
    return {name: translated for name, translated in names.items() if translated is not None}


def from_mesh_tensorflow(
    variables: Mapping[str, StoredArray], config: T5Config | None = None
) -> tuple[T5Config, Params]:
    """The model of Mesh TensorFlow's variables, as `flanjax.interchange.t5x.read_t5x` gives that of a T5X checkpoint.

    Raises:
      ModelFolderError: they are of no T5, or do not fit each other or `config`; all that is wrong is listed.
    """
    names = t5x_names(variables)
    return from_tensors({names[name]: variables[name] for name in names}, config, where="Mesh TensorFlow variables")
