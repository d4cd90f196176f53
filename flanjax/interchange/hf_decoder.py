"""Hugging Face folders of decoders: read into flanjax's parameters and written from them, exactly.

    config, params = read_hf_decoder("meta-llama/...")        # config.json and safetensors, sharded or not
    write_hf_decoder("new folder", config, params, source="meta-llama/...")

The two differ in names, in orientation (torch keeps a linear layer's weight [out, in], flanjax its kernel [in, out]),
in that flanjax stacks the layers on a leading axis, and in that some families keep queries, keys and values, or both
inputs of a gated block, in one tensor. What each family calls its keys and tensors is in
`flanjax.interchange.hf_decoder_families`. Import then export gives the same bits, and every missing, unknown or
mis-shaped tensor is listed in one message.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from flanjax.data.chat import own_chat
from flanjax.data.vocabularies import Vocabulary
from flanjax.interchange.folders import ModelFolderError, new_folder, read_json, write_json
from flanjax.interchange.hf_decoder_families import FAMILIES, Family
from flanjax.interchange.hf_decoder_keys import HARMLESS, Keys
from flanjax.interchange.model_card import CARD, model_card
from flanjax.interchange.safetensors_files import (
    FLOATS,
    SHARD_BYTES,
    NewTensor,
    StoredTensor,
    disagreements,
    in_dtype,
    stored_tensors,
    write_tensors,
)
from flanjax.interchange.stored import StoredArray, equal, gather, layer_of, taken, transposed
from flanjax.interchange.tokenizer import write_tokenizer
from flanjax.models.config import ModelConfigError
from flanjax.models.decoder import abstract_params
from flanjax.models.decoder_config import DecoderConfig
from flanjax.models.parameters import Params

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
# What stands beside the weights and is the same for any weights: copied byte for byte.
COMPANIONS = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "chat_template.jinja", GENERATION_CONFIG, CARD),
)
_EMBEDDING, _HEAD = "token_embedder/embedding", "decoder/logits_dense/kernel"
_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}
# Masks and tables that old files carry along although they follow from the configuration.
_IGNORED = re.compile(
    r"\.(attn|attention|self_attn|self_attention)\.(bias|masked_bias|causal_mask)$|\.rotary(_pos)?_emb\.inv_freq$"
)


@dataclasses.dataclass(frozen=True)
class Place:
    """Where one Hugging Face tensor lies in the parameters.

    Attributes:
      paths: one path, or those of several that lie in one tensor.
      layer: of leaves that are stacked.
      shapes: of one layer of each leaf.
      transposed: whether torch keeps it the other way round.
      groups: equal groups of which the file's last axis consists, each with a share of every leaf one after the other.
    """

    paths: tuple[str, ...]
    layer: int | None
    shapes: tuple[tuple[int, ...], ...]
    transposed: bool
    groups: int

    @property
    def hf_shape(self) -> tuple[int, ...]:
        """Its shape in the Hugging Face file."""
        joined = (*self.shapes[0][:-1], sum(shape[-1] for shape in self.shapes))
        return joined[::-1] if self.transposed else joined

    @property
    def parts(self) -> list[np.ndarray]:
        """Which entries of the joined last axis belong to each leaf, in its order."""
        shares = [shape[-1] // self.groups for shape in self.shapes]
        by_group = np.arange(self.groups * sum(shares)).reshape(self.groups, -1)
        return [part.reshape(-1) for part in np.split(by_group, np.cumsum(shares)[:-1], axis=1)]

    def split(self, array: StoredArray) -> list[StoredArray]:
        """The leaves' parts of the file's array."""
        array = transposed(array) if self.transposed else array
        return [array] if len(self.paths) == 1 else [taken(array, -1, part) for part in self.parts]

    def join(self, leaves: list[StoredArray]) -> StoredArray:
        """The file's array of the leaves' parts."""
        if len(leaves) == 1:
            (array,) = leaves
        else:
            array = np.concatenate(leaves, axis=-1)[..., np.argsort(np.concatenate(self.parts))]
        return transposed(array) if self.transposed else array


def hf_places(family: Family, config: DecoderConfig) -> dict[str, Place]:
    """Every Hugging Face tensor of `config` in this family and its place in the parameters.

    Worked example: GPT-2's `transformer.h.1.attn.c_attn.weight` [768, 2304] is `query`, `key` and `value` [768, 768] of
    `decoder/layers/self_attention`, layer 1, one after the other.
    """
    leaves = _flat(abstract_params(config))
    places: dict[str, Place] = {}
    named: set[str] = set()
    for module, name in family.modules(config).items():
        stem, _, last = module.rpartition("/")
        modules = [f"{stem}/{part}" if stem else part for part in last.split("+")]
        for leaf, theirs in _LEAVES.items():
            paths = tuple(f"{path}/{leaf}" for path in modules)
            if paths[0] not in leaves:
                continue
            named.update(paths)
            stacked = "{}" in name
            shapes = tuple(tuple(leaves[path].shape[stacked:]) for path in paths)
            transposed = leaf == "kernel" and not (family.conv1d and stacked)
            for layer in range(config.num_layers) if stacked else (None,):
                key = f"{name.format(layer)}.{theirs}"
                places[key] = Place(paths, layer, shapes, transposed, family.groups(config))
    if unnamed := sorted(leaves.keys() - named):
        raise ModelFolderError(f"{family.architecture} has no tensors for {', '.join(unnamed)}")
    return places


def _flat(params: Params) -> dict[str, Any]:
    return flatten_dict(params, sep="/")


@dataclasses.dataclass(frozen=True)
class HfDecoder:
    """A checked `config.json`: its family, the model with the head that it says, and all of its keys."""

    path: Path
    family: Family
    model: DecoderConfig
    raw: dict[str, Any]


def read_hf_decoder_config(folder: Path) -> HfDecoder:
    """Reads and checks `config.json`.

    Raises:
      ModelFolderError: no such folder or file, a family that is not known, a missing or wrong value, a key that is
        unknown or changes the function in a way that is not supported; the message names file and key.
    """
    if not folder.is_dir():
        raise ModelFolderError(f"{folder}: there is no such folder")
    path = folder / CONFIG
    raw = read_json(path)
    return HfDecoder(path, *parse_config(path, raw), raw)


def parse_config(path: Path, raw: Mapping[str, Any]) -> tuple[Family, DecoderConfig]:
    """The family and the model of the content of `config.json`."""
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ModelFolderError(f"{path}: model_type is {model_type!r}; the decoders are {', '.join(FAMILIES)}")
    family, keys = FAMILIES[model_type], Keys(path, raw)
    tied = keys.flag("tie_word_embeddings", family.tied)
    try:
        fields = {"vocab_size": keys.whole(family.vocab_key), **family.read(keys)}
        model = DecoderConfig(**fields, tied_head=tied)
    except ModelConfigError as error:
        raise ModelFolderError(f"{path}: {error}") from error
    keys.check_rest()
    return family, model


def read_hf_decoder(folder: str | Path) -> tuple[DecoderConfig, Params]:
    """Reads a decoder's folder of safetensors, sharded or not.

    Returns the configuration and the parameters as they lie in the files: float32 arrays (bfloat16 and float16 are
    widened exactly) of which `flanjax.interchange.stored` reads what is asked for.

    Raises:
      ModelFolderError: the folder, its `config.json` or its tensors are missing, damaged or of a model that is not
        supported; all tensors that do not fit are listed at once.
    """
    folder = Path(folder)
    hf = read_hf_decoder_config(folder)
    stored = _canonical(hf, stored_tensors(folder, auto_class="AutoModelForCausalLM"))
    places = hf_places(hf.family, hf.model)
    head = _copy_of_the_head(hf, stored)
    _check(hf, places, stored)
    leaves = gather(
        (path, place.layer, part)
        for name, place in places.items()
        for path, part in zip(place.paths, place.split(stored[name].float32()), strict=True)
    )
    for name, tensor in head.items():
        if not equal(tensor.float32(), leaves[_EMBEDDING]):
            raise ModelFolderError(
                f"{hf.path}: tie_word_embeddings is true, but {name} differs from the embedding; set it to false if "
                "the head is the model's own, or remove that tensor"
            )
    return hf.model, unflatten_dict(leaves, sep="/")


def _canonical(hf: HfDecoder, stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors under their full names, without those that say nothing."""
    prefix = hf.family.prefix
    head = hf.family.modules(hf.model)["decoder/logits_dense"]
    short = not any(name.startswith(prefix) for name in stored)
    names = {name: prefix + name if short and not name.startswith(f"{head}.") else name for name in stored}
    return {names[name]: tensor for name, tensor in stored.items() if not _IGNORED.search(names[name])}


def _copy_of_the_head(hf: HfDecoder, stored: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Takes the embedding's copy out of the tensors of a model whose head is tied."""
    name = f"{hf.family.modules(hf.model)['decoder/logits_dense']}.weight"
    return {name: stored.pop(name)} if hf.model.tied_head and name in stored else {}


def _check(hf: HfDecoder, places: Mapping[str, Place], stored: Mapping[str, StoredTensor]) -> None:
    """All disagreements between the configuration and the files, in one message."""
    wrong = disagreements({name: place.hf_shape for name, place in places.items()}, stored)
    if wrong:
        raise ModelFolderError(f"{hf.path.parent}: tensors do not fit {hf.path.name}:\n  " + "\n  ".join(wrong))


def hf_decoder_config(config: DecoderConfig, model_type: str | None = None) -> dict[str, Any]:
    """The content of `config.json` for `config`, in this family or in the first that has such a model.

    Raises:
      ModelFolderError: the family, or any, has no such model; the message names what it would lose.
    """
    if model_type is not None and model_type not in FAMILIES:
        raise ModelFolderError(f"model_type is {model_type!r}; the decoders are {', '.join(FAMILIES)}")
    lost = {}
    for name in FAMILIES if model_type is None else (model_type,):
        lost[name] = _lost(config, name, keys := _written(config, name))
        if not lost[name]:
            return keys
    listed = "; ".join(f"{name} loses {', '.join(fields)}" for name, fields in lost.items())
    raise ModelFolderError(f"no config.json says what this model is: {listed}")


def _written(config: DecoderConfig, model_type: str) -> dict[str, Any]:
    family = FAMILIES[model_type]
    return {
        **family.write(config),
        "model_type": model_type,
        "architectures": [family.architecture],
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tied_head,
    }


def _lost(config: DecoderConfig, model_type: str, keys: Mapping[str, Any]) -> list[str]:
    """Fields that reading `keys` gives another value: what this family cannot say."""
    try:
        _, again = parse_config(Path(CONFIG), keys)
    except ModelFolderError as error:
        return [str(error)]
    names = [field.name for field in dataclasses.fields(config) if field.name not in _TRAINING]
    return [name for name in names if _meaning(config, name) != _meaning(again, name)]


# Of training alone: a Hugging Face folder says nothing that flanjax reads about them.
_TRAINING = ("dropout_rate", "init_stddev")


def _meaning(config: DecoderConfig, field: str) -> Any:
    """A field's value, or what it comes to where it can be said in several ways or does not matter."""
    if field == "windowed":
        return config.window_of_layers
    if field == "attention_scale":
        return np.float32(config.query_scale)
    if field == "rotary" and config.positions != "rotary":
        return None
    if field == "max_positions" and config.positions in ("alibi", "none"):
        return None
    return getattr(config, field)


def write_hf_decoder(
    output: str | Path,
    config: DecoderConfig,
    params: Params,
    vocabulary: Vocabulary | None = None,
    *,
    recipe: Mapping[str, str] | None = None,
    source: str | Path | None = None,
    model_type: str | None = None,
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a folder that transformers opens: configuration, weights, tokenizer and model card.

    Args:
      output: a new folder; it appears whole or not at all.
      config: the model.
      params: its parameters: numpy or jax arrays, or in files, of which one tensor at a time is read.
      vocabulary: for the tokenizer files; None takes those of `source`, if there are any.
      recipe: label to value, printed as a table on the model card; None takes the card of `source`, if there is one.
      source: the Hugging Face folder that this model was read from. Its family, its configuration keys, its generation
        config, with the end of a turn in its chats, and each tensor's dtype are taken over.
      model_type: the family; by default that of `source`, or the first that has such a model.
      dtype: dtype of all tensors; by default that of `source`, or float32.
      shard_bytes: largest weights file.

    Raises:
      ModelFolderError: `output` is not new, `dtype` or the family is unknown, the family has no such model, a value
        is too large for the dtype, parameters do not fit `config`, or the disk refuses.
    """
    if dtype not in (None, *FLOATS):
        raise ModelFolderError(f"dtype is {dtype!r}: choose one of {', '.join(FLOATS)}")
    hf = None if source is None else read_hf_decoder_config(Path(source))
    if hf is not None and model_type is None:
        model_type = hf.raw["model_type"]
    keys = hf_decoder_config(config, model_type)
    dtypes: dict[str, str] = {}
    if hf is not None:
        extras = {key: value for key, value in hf.raw.items() if key in HARMLESS}
        keys = {**extras, **keys} if hf.model != config or hf.raw["model_type"] != model_type else dict(hf.raw)
        keys.pop("auto_map", None)  # its code is not copied
        if dtype is None:
            stored = stored_tensors(hf.path.parent, auto_class="AutoModelForCausalLM")
            dtypes = {name: tensor.dtype for name, tensor in _canonical(hf, stored).items()}
    places = hf_places(FAMILIES[keys["model_type"]], config)
    embedding = next(name for name, place in places.items() if place.paths == (_EMBEDDING,))
    default = dtypes.get(embedding, dtype or "float32")
    tensors = _new_tensors(config, params, places, lambda name: dtypes.get(name, default))
    keys.pop("dtype", None)  # transformers 5's name of the same, which transformers 4 does not read
    with new_folder(Path(output)) as folder:
        write_json(folder / CONFIG, {**keys, "torch_dtype": default})
        write_tensors(folder, tensors, shard_bytes)
        beside = [] if hf is None else [path for name in COMPANIONS if (path := hf.path.parent / name).is_file()]
        for path in beside:
            if vocabulary is None or path.name == GENERATION_CONFIG:
                (folder / path.name).write_bytes(path.read_bytes())
        if vocabulary is not None:
            write_tokenizer(folder, vocabulary)
            path = folder / GENERATION_CONFIG
            own = read_json(path) if path.is_file() else _generation_config(vocabulary)
            write_json(path, _also_ending(own, vocabulary))
        if recipe is not None:
            (folder / CARD).write_text(model_card(Path(output).name, config, recipe), encoding="utf-8")


def _generation_config(vocabulary: Vocabulary) -> dict[str, Any]:
    ids = {"bos": vocabulary.bos_id, "eos": vocabulary.eos_id, "pad": vocabulary.pad_id}
    return {f"{name}_token_id": token for name, token in ids.items() if token is not None}


def _also_ending(config: dict[str, Any], vocabulary: Vocabulary) -> dict[str, Any]:
    """The configuration with the end of a turn of the vocabulary's chat template among what ends an answer.

    As it is where the template does not say one.
    """
    chat = own_chat(vocabulary)
    if chat is None or chat.turn_end is None:
        return config
    given = config.get("eos_token_id")
    ends = [*(given if isinstance(given, list) else [given]), *chat.end_ids]
    ends = list(dict.fromkeys(end for end in ends if end is not None))
    return {**config, "eos_token_id": ends if len(ends) > 1 else ends[0]}


def _new_tensors(
    config: DecoderConfig, params: Params, places: Mapping[str, Place], dtype_of: Callable[[str], str]
) -> dict[str, NewTensor]:
    leaves = _flat(params)
    expected = {path: tuple(leaf.shape) for path, leaf in _flat(abstract_params(config)).items()}
    given = {path: tuple(leaf.shape) for path, leaf in leaves.items()}
    if wrong := sorted(path for path in expected.keys() | given.keys() if expected.get(path) != given.get(path)):
        listed = "\n  ".join(f"{p}: {given.get(p, 'missing')}, expected {expected.get(p, 'none')}" for p in wrong)
        raise ModelFolderError(f"parameters do not fit the configuration:\n  {listed}")

    def tensor(name: str, place: Place) -> NewTensor:
        def array() -> np.ndarray:
            parts = [layer_of(leaves[path], place.layer) for path in place.paths]
            return in_dtype(name, np.asarray(place.join(parts)), dtype_of(name))

        return NewTensor(place.hf_shape, dtype_of(name), array)

    return {name: tensor(name, place) for name, place in places.items()}
