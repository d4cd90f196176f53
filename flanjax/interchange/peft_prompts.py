"""Prompts and prefixes as PEFT keeps them: one tensor `prompt_embeddings`, under no module's name.

    prompt    [n, embed]                           encoder/prompt/embedding [1, n, embed], or decoder/...
    prefix    [n, slots * heads * head_dim]        decoder/layers/self_attention/prefix/{key,value}

For an encoder-decoder peft gives a prompt 2 n rows and uses the first n, so those are read and no others written. A
prompt that a network made (P-tuning) is saved as what it made; it is read, and written, as a prompt. Prompts of
several tasks are as many adapters, each in a folder of its task's name, as peft lays out a model whose adapters have
names. (Its MULTITASK_PROMPT_TUNING is another method, one prompt times a matrix of rank 1 for each task.)

A prefix has 2 slots, a key and a value, for each of `num_layers`, with the heads that keys have. In a decoder layer i
has the pair i. Of an encoder-decoder peft joins them to themselves and deals four out to
each layer, a pair for its self-attention and a pair for its cross-attention, and then throws the latter away
(peft_model.py, get_prompt). So layer i has the pair 2 i mod `num_layers`: with as many as the decoder has, two layers
share a pair wherever their number is even. Written are twice as many, of which every second is unused zeros, so that
each layer has its own. The width of a head is token_dim / heads, which has to be the model's head_dim; peft's default
of d_model / heads is another for Flan-T5-small and fits no model of that shape. Of a network (`prefix_projection`) peft
saves what it made too, and makes none when it opens a folder, whatever the configuration says. What is written says
that there is none, for only then does peft go on training from such a table (PrefixEncoder.load_prompt_embeddings).
"""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from flanjax.interchange.folders import ModelFolderError
from flanjax.interchange.peft_base import Base
from flanjax.interchange.peft_config import AdapterConfig, AdapterTensors
from flanjax.interchange.peft_layers import Adapter, Content
from flanjax.models.config import T5Config
from flanjax.models.decoder_config import DecoderConfig
from flanjax.models.model import ModelConfig
from flanjax.models.parameters import Params
from flanjax.tuning.method import Flat, TuningError
from flanjax.tuning.prefix import DECODER, PrefixTuning
from flanjax.tuning.prompt import PromptMethod, PromptTuning, prompt_path, prompt_table

TENSOR = "prompt_embeddings"
# Folders of one training, as transformers' Trainer names them.
_CHECKPOINT = re.compile(r"checkpoint-\d+")
_PREFIX = f"{DECODER}/{PrefixTuning.name}"


def read_prompt(config: AdapterConfig, base: Base, tensors: AdapterTensors) -> Adapter:
    """An adapter of type PROMPT_TUNING or P_TUNING.

    Raises:
      ModelFolderError: see `flanjax.interchange.peft.read_peft`.
    """
    config.refuse_other_kind(base)
    length = config.number("num_virtual_tokens", whole=True)
    given = tensors.shapes().get(TENSOR, ())
    rows = 2 * length if not base.causal and given[:1] == (2 * length,) else length
    embedding = tensors.take({TENSOR: (rows, base.config.input_dim)})[TENSOR][:length]
    return Adapter((PromptTuning(length=length, init="random"),), {prompt_path(base.config): embedding[None]})


def as_prompts(method: PromptMethod, model: ModelConfig, params: Params) -> dict[str, tuple[PromptTuning, Flat]]:
    """Each prompt of a method, whatever it is made from, as one that is learnt itself.

    They go by the folders that they lie in: their tasks' names, and "" for a single one.

    Raises:
      TuningError: a task cannot name a folder.
    """
    tasks = method.tasks if method.prompts > 1 else ("",)
    # As a cache's tasks are named: none may lead out of the folder, or be taken for something else.
    if bad := [task for task in method.tasks if not re.fullmatch(r"\w[\w.:+-]*", task) or _CHECKPOINT.fullmatch(task)]:
        raise TuningError(f"{type(method).__name__}.tasks has {bad[0]!r}, which is no name of a folder for its prompt")
    table = np.asarray(prompt_table(model, params))
    alone = PromptTuning(length=method.length, init="random")
    return {task: (alone, {prompt_path(model): prompt[None]}) for task, prompt in zip(tasks, table, strict=True)}


def prompts_together(folder: Path, of_tasks: Mapping[str, Adapter]) -> Adapter:
    """The prompts of tasks as one adapter; what `as_prompts` took apart.

    Raises:
      ModelFolderError: they are of more than one length, or a trainer's checkpoints.
    """
    if checkpoints := [name for name in of_tasks if _CHECKPOINT.fullmatch(name)]:
        raise ModelFolderError(
            f"{folder}: {', '.join(checkpoints)} are checkpoints of one training, not prompts of several tasks: give "
            f"one of them, {folder / max(checkpoints, key=lambda name: int(name.rpartition('-')[2]))}"
        )
    lengths = {task: adapter.methods[0].prompt_length for task, adapter in of_tasks.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{task} has {length}" for task, length in lengths.items())
        raise ModelFolderError(
            f"{folder}: prompts of one model have one length, and of these {told}: give one of the folders"
        )
    first = next(iter(of_tasks.values()))
    method = PromptTuning(length=first.methods[0].prompt_length, init="random", tasks=tuple(of_tasks))
    return Adapter(
        (method,),
        {path: np.concatenate([one.params[path] for one in of_tasks.values()]) for path in first.params},
        first.base_name,
    )


def write_prompt(method: PromptTuning, base: Base, added: Flat) -> Content:
    """The one prompt."""
    config = {
        "peft_type": "PROMPT_TUNING",
        "num_virtual_tokens": method.length,
        "token_dim": base.config.input_dim,
        "num_transformer_submodules": 1,
        "prompt_tuning_init": "RANDOM",
    }
    return Content(config, {TENSOR: np.asarray(added[prompt_path(base.config)])[0]})


def read_npy(source: Path) -> tuple[T5Config, Content]:
    """A prompt as google-research/prompt-tuning keeps it, .npy of float32 [length, embed], and a T5 that it fits.

    Of the T5 the width alone is known, and the rest as small as can be.

    Raises:
      ModelFolderError: the file is something else.
    """
    try:
        found = np.load(source, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ModelFolderError(f"{source}: cannot be read as a .npy of numbers: {error}") from error
    if not isinstance(found, np.ndarray) or found.dtype != np.float32 or found.ndim != 2 or not found.size:
        raise ModelFolderError(f"{source}: holds no prompt, which is float32 [length, embed]")
    length, embed = found.shape
    base = T5Config(embed_dim=embed, num_heads=1, head_dim=1, mlp_dim=1, num_encoder_layers=1, num_decoder_layers=1)
    return base, write_prompt(
        PromptTuning(length=length, init="random"), Base.of(base), {prompt_path(base): found[None]}
    )


def _heads(model: ModelConfig) -> int:
    return model.num_kv_heads if isinstance(model, DecoderConfig) else model.num_heads


def read_prefix(config: AdapterConfig, base: Base, tensors: AdapterTensors) -> Adapter:
    """An adapter of type PREFIX_TUNING.

    Raises:
      ModelFolderError: see `flanjax.interchange.peft.read_peft`.
    """
    config.refuse_other_kind(base)
    length, layers = config.number("num_virtual_tokens", whole=True), base.config.stacks["decoder"]
    own_heads, head_dim = _heads(base.config), base.config.head_dim
    pairs = config.number("num_layers", layers, whole=True)
    width = config.number("token_dim", own_heads * head_dim, whole=True)
    heads = config.number("num_attention_heads", own_heads, whole=True)
    if (width, heads) != (own_heads * head_dim, own_heads):
        raise config.error(
            f"token_dim is {width} for {heads} heads, and this model has {own_heads} of {head_dim}, "
            f"{own_heads * head_dim} together, for its keys: it is a prefix of another, or peft sized it by d_model"
        )
    if pairs < layers or (base.causal and pairs != layers):
        raise config.error(f"num_layers is {pairs}, and the decoder has {layers}: peft itself leaves some without")
    submodules = 1 if base.causal else 2
    if config.number("num_transformer_submodules", submodules, whole=True) != submodules:
        raise config.error(f"num_transformer_submodules is not {submodules}: it is no prefix of an encoder-decoder")
    flat = tensors.take({TENSOR: (length, 2 * pairs * width)})[TENSOR]
    slots = flat.reshape(length, pairs, 2, heads, head_dim)
    of_layer = slots[:, [submodules * layer % pairs for layer in range(layers)]].transpose(2, 1, 0, 3, 4)
    params = {f"{_PREFIX}/{part}": values.copy() for part, values in zip(("key", "value"), of_layer, strict=True)}
    return Adapter((PrefixTuning(length=length),), params)


def write_prefix(method: PrefixTuning, base: Base, added: Flat) -> Content:
    """The prefix of the decoder's self-attention.

    Raises:
      TuningError: other attentions have one.
    """
    if others := sorted(path for path in added if not path.startswith(f"{_PREFIX}/")):
        raise TuningError(
            f"PrefixTuning has {others[0]}, and PEFT gives a T5 a prefix in the decoder's self-attention alone: use "
            "the run as it is (flanjax.load)"
        )
    key, value = (np.asarray(added[f"{_PREFIX}/{part}"], np.float32) for part in ("key", "value"))
    layers, submodules, heads, head_dim = len(key), 1 if base.causal else 2, *key.shape[2:]
    slots = np.zeros((method.length, submodules * layers, 2, heads, head_dim), np.float32)
    slots[:, ::submodules] = np.stack([key, value]).transpose(2, 1, 0, 3, 4)
    config = {
        "peft_type": "PREFIX_TUNING",
        "num_virtual_tokens": method.length,
        "token_dim": heads * head_dim,
        "num_attention_heads": heads,
        "num_layers": submodules * layers,
        "num_transformer_submodules": submodules,
        "prefix_projection": False,
    }
    return Content(config, {TENSOR: slots.reshape(method.length, -1)})
