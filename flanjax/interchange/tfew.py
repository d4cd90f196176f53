"""The (IA)3 vectors of T-Few (github.com/r-three/t-few) as a PEFT adapter.

T-Few keeps `<module>.multi_lora_b` [out, 1] for k, v and wi_1 in a file of torch.save. PEFT's `<module>.ia3_l` [out, 1]
is the same, so the numbers pass unchanged. (A factor on what `wi_1` gives is one on what `wo` is given, for a gated
block multiplies in between; `IA3` says it either way.)
"""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from flanjax.interchange.folders import ModelFolderError
from flanjax.interchange.peft import write_folder
from flanjax.interchange.peft_base import Base
from flanjax.interchange.peft_config import PREFIX
from flanjax.interchange.peft_layers import Content
from flanjax.interchange.torch_zip import read_torch_zip
from flanjax.models.config import T5Config

_NAME = re.compile(
    r"(encoder|decoder)\.block\.(\d+)\.layer\.\d\."
    r"((?:SelfAttention|EncDecAttention)\.(?:k|v)|DenseReluDense\.wi_1)\.multi_lora_b"
)
_ATTENTION = ("SelfAttention.k", "SelfAttention.v")
_IN_A_BLOCK = {
    "encoder": {*_ATTENTION, "DenseReluDense.wi_1"},
    "decoder": {*_ATTENTION, "EncDecAttention.k", "EncDecAttention.v", "DenseReluDense.wi_1"},
}


def convert_tfew(source: str | Path, output: str | Path, *, dtype: str | None = None) -> str:
    """Writes the vectors of a T-Few file as a PEFT folder; returns in words which model they fit.

    Raises:
      ModelFolderError: it is no file of torch.save, holds anything but such vectors or not those of every block, one
        is not finite, or `output` is not new.
    """
    vectors = read_torch_zip(source)
    base = _fitting(Path(source), vectors)
    fits = (
        f"a T5 of {base.num_encoder_layers} and {base.num_decoder_layers} layers, with heads of {base.attention_dim} "
        f"together and a gated feed-forward of {base.mlp_dim}"
    )
    tensors = {f"{PREFIX}{name.removesuffix('.multi_lora_b')}.ia3_l": vector for name, vector in vectors.items()}
    config = {
        "peft_type": "IA3",
        "target_modules": ["k", "v", "wi_1"],
        "feedforward_modules": [],
        "fan_in_fan_out": False,
        "init_ia3_weights": True,
    }
    recipe = {"Converted from": Path(source).name, "For": fits}
    write_folder(output, Base.of(base), {"": Content(config, tensors)}, recipe=recipe, dtype=dtype)
    return fits


def _fitting(source: Path, vectors: Mapping[str, np.ndarray]) -> T5Config:
    """The sizes that the vectors tell of; the residual stream's width is not among them, and nothing here asks for it.

    Raises:
      ModelFolderError: something else is among them, or one is missing or of another length.
    """
    found: dict[str, set[tuple[int, str]]] = {stack: set() for stack in _IN_A_BLOCK}
    lengths: dict[bool, set[int]] = {True: set(), False: set()}
    for name, vector in vectors.items():
        match = _NAME.fullmatch(name)
        if match is None or vector.ndim != 2 or vector.shape[1] != 1:
            raise ModelFolderError(f"{source}: {name} {vector.shape} is no vector of T-Few's (IA)3")
        stack, block, projection = match.groups()
        found[stack].add((int(block), projection))
        lengths[projection.endswith("wi_1")].add(len(vector))
    layers = {stack: len({block for block, _ in blocks}) for stack, blocks in found.items()}
    for stack, names in _IN_A_BLOCK.items():
        wanted = {(block, name) for block in range(max(layers[stack], 1)) for name in names}
        if missing := sorted(wanted - found[stack]):
            raise ModelFolderError(f"{source}: no vector for {stack}.block.{missing[0][0]} {missing[0][1]}")
    if uneven := [sizes for sizes in lengths.values() if len(sizes) > 1]:
        raise ModelFolderError(f"{source}: vectors of one kind differ in length: {sorted(uneven[0])}")
    (mlp,), (attention,) = lengths[True], lengths[False]
    return T5Config(
        embed_dim=attention,
        num_heads=attention,
        head_dim=1,
        mlp_dim=mlp,
        num_encoder_layers=layers["encoder"],
        num_decoder_layers=layers["decoder"],
    )
