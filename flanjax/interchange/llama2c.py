"""The checkpoint file of llama2.c (its first format): seven int32 sizes, then float32 arrays in a fixed order.

    config, params = read_llama2c("stories260K.bin")

The sizes are embed, feed-forward, layers, heads, key heads, vocabulary (negative where the head is not the embedding)
and length. The arrays are those of `array_shapes`, each for all layers at once, matrices [out, in]. The rotated pairs
lie side by side, numbers 2i and 2i + 1 of a head, where flanjax turns number i with number i + half; the rows of
queries and keys are reordered to match, which changes no score. Two tables of cosines and sines follow from the sizes
and are passed over.
"""

import math
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from flanjax.interchange.folders import ModelFolderError
from flanjax.interchange.stored import StoredArray, in_file, taken, transposed
from flanjax.models.config import ModelConfigError
from flanjax.models.decoder_config import DecoderConfig
from flanjax.models.parameters import Params

_HEADER = struct.Struct("<7i")


def read_llama2c(path: str | Path) -> tuple[DecoderConfig, Params]:
    """The configuration of a llama2.c file and its parameters, float32, as they lie in it (`interchange.stored`).

    Raises:
      ModelFolderError: the file is absent, has impossible sizes, or is not as long as they say.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            header, length = file.read(_HEADER.size), path.stat().st_size
    except OSError as error:
        raise ModelFolderError(f"{path}: {error.strerror or error}") from error
    config = _config(path, header)
    shapes = array_shapes(config)
    expected = _HEADER.size + 4 * sum(map(math.prod, shapes.values()))
    if length != expected:
        raise ModelFolderError(f"{path}: {length} bytes, its header asks for {expected}: truncated, or not llama2.c")
    arrays: dict[str, StoredArray] = {}
    offset = _HEADER.size
    for name, shape in shapes.items():
        arrays[name] = in_file(path, "<f4", shape, offset)
        offset += 4 * math.prod(shape)
    return config, params_of(config, arrays)


def _config(path: Path, header: bytes) -> DecoderConfig:
    if len(header) < _HEADER.size:
        raise ModelFolderError(f"{path}: {len(header)} bytes are too few for the header of a llama2.c file")
    embed, mlp, layers, heads, kv_heads, vocab, length = _HEADER.unpack(header)
    if heads < 1 or embed % heads:
        raise ModelFolderError(
            f"{path}: {embed} numbers in {heads} heads: this is no llama2.c file of the first format"
        )
    try:
        return DecoderConfig(
            vocab_size=abs(vocab),
            embed_dim=embed,
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=embed // heads,
            mlp_dim=mlp,
            max_positions=length,
            layer_norm_epsilon=1e-5,
            tied_head=vocab > 0,
        )
    except ModelConfigError as error:
        raise ModelFolderError(f"{path}: {error}: this is no llama2.c file of the first format") from error


def array_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """The arrays of the file in their order, those of layers stacked."""
    layers, embed, mlp = config.num_layers, config.embed_dim, config.mlp_dim
    inner, inner_kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    table = (config.max_positions, config.head_dim // 2)
    head = {} if config.tied_head else {"head": (config.vocab_size, embed)}
    return {
        "embedding": (config.vocab_size, embed),
        "attention_norm": (layers, embed),
        "query": (layers, inner, embed),
        "key": (layers, inner_kv, embed),
        "value": (layers, inner_kv, embed),
        "out": (layers, embed, inner),
        "mlp_norm": (layers, embed),
        "wi_0": (layers, mlp, embed),
        "wo": (layers, embed, mlp),
        "wi_1": (layers, mlp, embed),
        "final_norm": (embed,),
        "cosines": table,
        "sines": table,
        **head,
    }


def params_of(config: DecoderConfig, arrays: Mapping[str, StoredArray]) -> Params:
    """The parameters of arrays by the names of `array_shapes`, rotated pairs side by side."""

    def kernel(name: str) -> Params:
        axes = range(len(arrays[name].shape))
        return {"kernel": transposed(arrays[name], (*axes[:-2], axes[-1], axes[-2]))}

    def halves(name: str) -> Params:
        """The kernel with the pairs of every head taken apart: first numbers, then second ones."""
        rows = np.arange(arrays[name].shape[1]).reshape(-1, config.head_dim // 2, 2).swapaxes(1, 2)
        return {"kernel": transposed(taken(arrays[name], 1, rows.reshape(-1)), (0, 2, 1))}

    layers = {
        "pre_self_attention_layer_norm": {"scale": arrays["attention_norm"]},
        "self_attention": {
            "query": halves("query"),
            "key": halves("key"),
            "value": kernel("value"),
            "out": kernel("out"),
        },
        "pre_mlp_layer_norm": {"scale": arrays["mlp_norm"]},
        "mlp": {name: kernel(name) for name in ("wi_0", "wi_1", "wo")},
    }
    decoder: Params = {"layers": layers, "decoder_norm": {"scale": arrays["final_norm"]}}
    if not config.tied_head:
        decoder["logits_dense"] = kernel("head")
    return {"token_embedder": {"embedding": arrays["embedding"]}, "decoder": decoder}
