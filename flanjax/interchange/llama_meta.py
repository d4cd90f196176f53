"""Meta's own folders of a Llama: `params.json`, and the tensors in `consolidated.00.pth`, a file of torch.save.

    config, params = read_llama_meta("Llama-2-7b")           # nothing is unpickled, nor read before it is asked for

The names are those of the code that came with Llama 2 (github.com/meta-llama/llama, llama/model.py), such as
`layers.0.attention.wq.weight`, matrices [out, in]. Rotated pairs lie side by side, as in llama2.c, which follows it.
`params.json` has the heads, the epsilon and the base of the positions; all sizes are those of the tensors. How long a
text the model was made for neither says: 2,048 tokens, LLaMA's, unless `max_seq_len` is there.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from flanjax.interchange.folders import ModelFolderError, read_json
from flanjax.interchange.hf_decoder_keys import Keys
from flanjax.interchange.llama2c import array_shapes, params_of
from flanjax.interchange.safetensors_files import disagreements
from flanjax.interchange.stored import Lazy, StoredArray, cast, stacked
from flanjax.interchange.torch_zip import stored_torch_zip
from flanjax.models.config import ModelConfigError
from flanjax.models.decoder_config import DecoderConfig, Rotary
from flanjax.models.parameters import Params

SETTINGS = "params.json"
_WEIGHTS = "consolidated.*.pth"
_WHOLE = {"embedding": "tok_embeddings", "final_norm": "norm", "head": "output"}
_LAYERED = {
    "attention_norm": "attention_norm",
    "query": "attention.wq",
    "key": "attention.wk",
    "value": "attention.wv",
    "out": "attention.wo",
    "mlp_norm": "ffn_norm",
    "wi_0": "feed_forward.w1",
    "wo": "feed_forward.w2",
    "wi_1": "feed_forward.w3",
}
_FREQUENCIES = "rope.freqs"  # which follow from the base
# What the tensors say, or what changes nothing that is computed.
_SAID = ("vocab_size", "multiple_of", "ffn_dim_multiplier", "max_batch_size")
_CONVERTED = (
    "give the Hugging Face folder of the same model, or make one with transformers' convert_llama_weights_to_hf.py"
)


def is_llama_meta(path: Path) -> bool:
    """Whether it is such a folder."""
    return (path / SETTINGS).is_file() and any(path.glob(_WEIGHTS))


def read_llama_meta(folder: str | Path) -> tuple[DecoderConfig, Params]:
    """The configuration of the model in such a folder and its parameters, float32, as they lie in the file.

    Raises:
      ModelFolderError: a file is missing or damaged, the model is in several parts, `params.json` has a key that is
        unknown or not supported, or tensors are missing, unknown or of other shapes; all of these are listed.
    """
    folder = Path(folder)
    weights = sorted(folder.glob(_WEIGHTS))
    if len(weights) != 1:
        raise ModelFolderError(f"{folder}: {len(weights)} files {_WEIGHTS}, and one part alone is read: {_CONVERTED}")
    stored = stored_torch_zip(weights[0])
    stored.pop(_FREQUENCIES, None)
    config = _config(folder / SETTINGS, weights[0], stored)
    shapes = {name: shape for name, shape in array_shapes(config).items() if name in _WHOLE or name in _LAYERED}
    names = {name: _names(name, config.num_layers) for name in shapes}
    expected = {one: shapes[name][name in _LAYERED :] for name in shapes for one in names[name]}
    if wrong := disagreements(expected, stored):
        raise ModelFolderError(f"{weights[0]}: tensors do not fit {SETTINGS}:\n  " + "\n  ".join(wrong))
    arrays: dict[str, StoredArray] = {}
    for name, theirs in names.items():
        parts = [cast(stored[one], np.float32) for one in theirs]
        arrays[name] = stacked(parts) if name in _LAYERED else parts[0]
    return config, params_of(config, arrays)


def _names(name: str, layers: int) -> list[str]:
    """The tensors of an array: one, or one for each layer."""
    if name in _WHOLE:
        return [f"{_WHOLE[name]}.weight"]
    return [f"layers.{layer}.{_LAYERED[name]}.weight" for layer in range(layers)]


def _config(path: Path, weights: Path, stored: Mapping[str, Lazy]) -> DecoderConfig:
    keys = Keys(path, read_json(path))
    keys.known.update(_SAID)
    layers = sum(name.startswith("layers.") and name.endswith(".attention.wq.weight") for name in stored)
    needed = [_names(name, 1)[0] for name in ("embedding", "query", "wi_0")]
    if missing := [name for name in needed if len(stored[name].shape if name in stored else ()) != 2]:
        raise ModelFolderError(f"{weights}: no Llama of Meta's: no matrix {', '.join(missing)} is in it")
    (vocab, embed), (inner, _), (mlp, _) = (stored[name].shape for name in needed)
    heads = keys.whole("n_heads")
    keys.only("dim", embed, "the tensors say otherwise")
    keys.only("n_layers", layers, "the tensors say otherwise")
    keys.only("use_scaled_rope", False, f"the numbers of the scaling are not in it; {_CONVERTED}")
    try:
        config = DecoderConfig(
            vocab_size=vocab,
            embed_dim=embed,
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=keys.whole("n_kv_heads", heads),
            head_dim=inner // heads,
            mlp_dim=mlp,
            max_positions=keys.whole("max_seq_len", 2048),
            layer_norm_epsilon=keys.number("norm_eps", 1e-5),
            rotary=Rotary(theta=keys.number("rope_theta", 10000.0)),
            tied_head=False,
        )
    except ModelConfigError as error:
        raise ModelFolderError(f"{path}: {error}") from error
    keys.check_rest()
    return config
