"""PEFT adapter folders: `adapter_config.json` and `adapter_model.safetensors`, read and written.

    write_peft("adapter", model, params, base_name="google/flan-t5-small")   # peft.PeftModel.from_pretrained opens it
    adapter = read_peft("adapter", base)                                     # and what peft wrote comes back
    model, params = adapter_on(adapter, base, base_params)

A folder holds one adapter of one type, and layer norms that were trained beside it; prompts of several tasks are a
folder of as many folders, both ways. The tokenizer with its chat template may lie beside it, as trainers put it. What
is written is read again before it takes its name. Nothing is unpickled.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from flanjax.data.vocabularies import Vocabulary
from flanjax.errors import nearest
from flanjax.interchange import peft_ia3, peft_lora
from flanjax.interchange.folders import ModelFolderError, new_folder, write_json
from flanjax.interchange.hf_decoder_families import FAMILIES
from flanjax.interchange.model_card import CARD, adapter_card
from flanjax.interchange.peft_base import Base
from flanjax.interchange.peft_config import CONFIG, WEIGHTS, AdapterConfig, AdapterTensors
from flanjax.interchange.peft_ia3 import read_ia3, write_ia3
from flanjax.interchange.peft_layers import Adapter, Content, write_norms
from flanjax.interchange.peft_lora import on_unchanged_base, read_lora, write_lora
from flanjax.interchange.peft_prompts import (
    as_prompts,
    prompts_together,
    read_prefix,
    read_prompt,
    write_prefix,
    write_prompt,
)
from flanjax.interchange.safetensors_files import FLOATS, write_file
from flanjax.interchange.tokenizer import has_vocabulary, read_vocabulary, write_tokenizer
from flanjax.models.model import ModelConfig, abstract_params
from flanjax.models.parameters import Params
from flanjax.tuning.ia3 import IA3
from flanjax.tuning.lora import LoRA
from flanjax.tuning.method import Flat, Method, TuningError
from flanjax.tuning.partition import TRAINABLE, Partition, added_paths, flatten, methods_of, unflatten
from flanjax.tuning.prefix import PrefixTuning, folded
from flanjax.tuning.prompt import PromptMethod, PromptTuning

_READERS: dict[str, Callable[[AdapterConfig, Base, AdapterTensors], Adapter]] = {
    "IA3": read_ia3,
    "LORA": read_lora,
    "PREFIX_TUNING": read_prefix,
    "PROMPT_TUNING": read_prompt,
    "P_TUNING": read_prompt,
}
_PROMPTS = {kind for kind, read in _READERS.items() if read is read_prompt}
_WRITERS: dict[type, Callable[..., Content]] = {
    IA3: write_ia3,
    LoRA: write_lora,
    PrefixTuning: write_prefix,
    PromptTuning: write_prompt,
}
_COMMON = {
    "auto_mapping": None,
    "inference_mode": True,
    "revision": None,
}


def read_peft(folder: str | Path, base: ModelConfig, *, model_type: str | None = None) -> Adapter:
    """Reads an adapter for a base model of these sizes.

    `model_type` is the family whose names a decoder's modules have; None takes the first that has such a model and the
    names of the adapter's tensors. A folder of prompts in folders of their own is one adapter, with a prompt for each
    task that a folder is named after.

    Raises:
      ModelFolderError: there is no such folder, a file in it is missing, damaged or pickled; its type is not read here;
        the configuration asks for what would change the function and is not supported; tensors are missing, unknown,
        of another shape than configuration and model ask for (all are listed at once), or not finite; a folder of
        adapters has others than prompts of one length.
    """
    folder = Path(folder)
    if (named := AdapterConfig.named(folder)) and all(one.raw["peft_type"] in _PROMPTS for one in named.values()):
        return prompts_together(folder, {name: read_peft(folder / name, base, model_type=model_type) for name in named})
    config = AdapterConfig.read(folder)
    kind = config.raw["peft_type"]
    if kind not in _READERS:
        raise config.error(
            f"peft_type is {kind!r}{nearest(kind, _READERS)}: read are {', '.join(_READERS)}; another one "
            "may be merged where it was trained, with merge_and_unload()"
        )
    try:
        tensors = AdapterTensors(config)
        adapter = _READERS[kind](config, _named(base, model_type, tensors), tensors)
    except TuningError as error:
        raise config.error(str(error)) from error
    return dataclasses.replace(adapter, base_name=config.base_name)


def vocabulary_of_adapter(folder: str | Path) -> Vocabulary | None:
    """The tokenizer that lies beside an adapter, with the chat template that it was trained with; None for none.

    Of a folder of adapters it is the first one's.

    Raises:
      ModelFolderError, VocabularyError: a file of it is damaged.
    """
    folder = Path(folder)
    places = (folder, *(folder / name for name in AdapterConfig.named(folder)))
    return next((read_vocabulary(place) for place in places if has_vocabulary(place)), None)


def _named(base: ModelConfig, model_type: str | None, tensors: AdapterTensors) -> Base:
    """The base by the names that the tensors have, or those that it has first."""
    first = Base.of(base, model_type)
    if model_type is not None or not first.causal:
        return first
    names = [name.rpartition(".")[0] for name in tensors.shapes()]
    for family in FAMILIES:
        try:
            one = Base.of(base, family)
        except ModelFolderError:  # it has no such model
            continue
        known = one.modules.keys() | one.norms.keys()
        if all(name in known or name.rpartition(".")[0] in known for name in names if name):
            return one
    return first


def adapter_on(adapter: Adapter, base: ModelConfig, params: Params) -> tuple[ModelConfig, Params]:
    """The base model with an adapter on it, whatever its rank.

    Raises:
      TuningError: the methods do not fit the base model, or the parameters not the methods.
    """
    model = dataclasses.replace(base, added=adapter.methods)
    Partition.of(model)  # which looks at every method
    wanted = flatten(abstract_params(model))
    for path in sorted(added_paths(model) | adapter.params.keys()):
        shapes = [getattr(of.get(path), "shape", None) for of in (adapter.params, wanted)]
        if shapes[0] != shapes[1]:
            raise TuningError(f"{path} of the adapter is {shapes[0]}, and its methods ask for {shapes[1]}")
    return model, unflatten(flatten(params) | adapter.params)


def write_peft(
    output: str | Path,
    model: ModelConfig,
    params: Params,
    *,
    begun: Flat | None = None,
    base_name: str | None = None,
    recipe: Mapping[str, str] | None = None,
    dtype: str | None = None,
    model_type: str | None = None,
    vocabulary: Vocabulary | None = None,
) -> tuple[str, ...]:
    """Writes what tuning methods added as a folder that PEFT opens on the base model.

    Prompts of several tasks become a folder of such folders, one for each task; the tasks are returned.

    Arguments:
      output: a new folder; it appears whole or not at all.
      model: with its methods.
      params: all of its parameters.
      begun: those that the methods added, as tuning began with them; PiSSA alone needs them.
      base_name: of the base model, for the configuration and the card; None leaves it out.
      recipe: label to value, printed as a table on the card.
      dtype: of the tensors; float32 by default.
      model_type: as `read_peft`.
      vocabulary: for tokenizer files, with the chat template of the training; None writes none.

    Raises:
      TuningError: no PEFT folder can express the methods; the message says why, and what to do instead.
      ModelFolderError: `output` is not new, `dtype` is unknown, a value is not finite, or the disk refuses.
    """
    base = Base.of(model, model_type)
    flat, own_paths = flatten(params), added_paths(model)
    method = _only_adapter(model)
    moved = {path for path, label in Partition.of(model).labels.items() if label == TRAINABLE} - own_paths
    beside = {path: flat[path] for path in moved}
    if beside and not isinstance(method, LoRA | IA3):
        raise TuningError(f"{min(beside)} was trained beside a {type(method).__name__}, and PEFT saves that alone")
    norms = write_norms(base, beside) if beside else Content({}, {})
    contents, meant = {}, {}
    for name, (one, values) in _in_peft(method, base, model, params, begun).items():
        content = _WRITERS[type(one)](one, base, values)
        contents[name] = Content(content.config | norms.config, content.tensors | norms.tensors)
        meant[name] = values | beside
    write_folder(
        output, base, contents, base_name=base_name, recipe=recipe, dtype=dtype, meant=meant, vocabulary=vocabulary
    )
    return tuple(name for name in contents if name)


def _in_peft(
    method: Method, base: Base, model: ModelConfig, params: Params, begun: Flat | None
) -> Mapping[str, tuple[Method, Flat]]:
    """The adapters that PEFT has for a method, with their parameters, by the folders that they lie in; "" for none."""
    if isinstance(method, PromptMethod):
        return as_prompts(method, model, params)
    if isinstance(method, PrefixTuning):
        return {"": folded(method, model, params)}
    flat = flatten(params)
    added = {path: flat[path] for path in added_paths(model)}
    if isinstance(method, LoRA):
        plain, added = on_unchanged_base(method, added, begun)
        return {"": peft_lora.as_modules(plain, base, added)}
    assert isinstance(method, IA3)
    return {"": peft_ia3.as_modules(method, base, added)}


def write_folder(
    output: str | Path,
    base: Base,
    contents: Mapping[str, Content],
    *,
    base_name: str | None = None,
    recipe: Mapping[str, str] | None = None,
    dtype: str | None = None,
    meant: Mapping[str, Flat] | None = None,
    vocabulary: Vocabulary | None = None,
) -> None:
    """Writes PEFT folders for a base model of these sizes, and reads them again; see `write_peft`.

    The contents go by the name of their folder in `output`, "" for `output` itself. With `meant`, by the same names,
    what is read has to be those parameters, all of them.
    """
    if dtype not in (None, *FLOATS):
        raise ModelFolderError(f"dtype is {dtype!r}: choose one of {', '.join(FLOATS)}")
    output = Path(output)
    with new_folder(output) as folder:
        for name, content in contents.items():
            with np.errstate(over="ignore"):
                tensors = {tensor: array.astype(dtype or "float32") for tensor, array in content.tensors.items()}
            if bad := [tensor for tensor, array in tensors.items() if not np.isfinite(array).all()]:
                raise ModelFolderError(
                    f"{output / name}: {bad[0]} holds NaN or infinity as {dtype or 'float32'}: it is not written"
                )
            (folder / name).mkdir(exist_ok=True)
            task = {"task_type": "CAUSAL_LM" if base.causal else "SEQ_2_SEQ_LM"}
            common = {**task, **_COMMON, "base_model_name_or_path": base_name}
            write_json(folder / name / CONFIG, {**common, **content.config})
            write_file(folder / name / WEIGHTS, tensors)
            kind = content.config["peft_type"]
            card = adapter_card((output / name).name, kind, base_name, recipe, causal=base.causal)
            (folder / name / CARD).write_text(card, encoding="utf-8")
            write_tokenizer(folder / name, vocabulary)
            family = base.model_type if base.causal else None
            adapter = read_peft(folder / name, base.config, model_type=family)
            adapter_on(adapter, base.config, {})
            found = adapter.params
            for path, value in ({} if meant is None else found | meant[name]).items():
                wanted = np.asarray(value).astype(dtype or "float32").astype(np.float32)
                if path not in found or not np.array_equal(found[path], wanted):
                    raise ModelFolderError(f"{output / name}: {path} is read otherwise than it was written: not kept")


def _only_adapter(model: ModelConfig) -> Method:
    """The one method that adds parameters.

    Raises:
      TuningError: there is none, more than one, or one that PEFT has no type for.
    """
    adding = [method for method in methods_of(model) if added_paths(dataclasses.replace(model, added=(method,)))]
    names = ", ".join(type(method).__name__ for method in methods_of(model))
    if not adding:
        raise TuningError(f"{names or 'full tuning'} adds no parameters to the model's own: export with --format=hf")
    if len(adding) > 1:
        raise TuningError(
            f"{names} are adapters of more than one kind, and a PEFT folder holds one: "
            "export with --format=hf and --merge, if they can be merged"
        )
    if not isinstance(adding[0], PromptMethod) and type(adding[0]) not in _WRITERS:
        raise TuningError(f"PEFT has no type for {names}: export with --format=hf, and --merge where it can be merged")
    return adding[0]


def another_base(adapter: Adapter, source: str | Path) -> str | None:
    """What to tell where an adapter names another base model than the one that lies at a path; None where it does not.

    Compared are the last parts, letters and digits alone: what a folder is called is its owner's choice, so this may be
    told and not refused. A snapshot in the hub's cache has no name.

    Worked example: "google/flan-t5-small" is the model in "/data/flan_t5_small", and not the one in "models/t5-base".
    """
    own = base_name(str(source))
    if adapter.base_name is None or own is None or re.fullmatch(r"[0-9a-f]{40}", own):
        return None
    theirs = Path(adapter.base_name).name
    if re.sub(r"[\W_]", "", theirs).lower() == re.sub(r"[\W_]", "", own).lower():
        return None
    return (
        f"the adapter's {CONFIG} says that it was trained on {adapter.base_name!r}, and the model at hand is {own!r}: "
        "on another base what it learnt means nothing"
    )


def base_name(source: str | None) -> str | None:
    """What to call the base model that lies at a path, in a folder that others read: its last part; None for none.

    A path that looks like a hub id is one of this machine all the same: elsewhere it would name somebody else's model.

    Worked example: "/home/me/models/flan", "runs/flan" and "../flan" are "flan".
    """
    return None if source is None else Path(source).absolute().name
