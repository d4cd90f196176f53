"""One way to open a model wherever it lies: a run directory, or what others published.

    config, params = read_model("runs/demo")            # whatever it is
    config = read_model_config("meta-llama/...")        # no tensor is read
    vocabulary = vocabulary_of("meta-llama/...")        # None: it brings none
    write_hf_model("new folder", config, params, vocabulary)

`FORMATS` has the forms there are, each with how it is told from the others; a new one is a line there.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flanjax.data.vocabularies import Vocabulary
from flanjax.files import address_of
from flanjax.interchange.folders import ModelFolderError, read_json
from flanjax.interchange.gguf import open_gguf, read_gguf
from flanjax.interchange.gguf_file import is_gguf
from flanjax.interchange.gguf_tokenizer import gguf_vocabulary
from flanjax.interchange.hf_config import ARCHITECTURES, hf_architecture, read_hf_config
from flanjax.interchange.hf_decoder import CONFIG, read_hf_decoder, read_hf_decoder_config, write_hf_decoder
from flanjax.interchange.hf_decoder_families import FAMILIES
from flanjax.interchange.hf_t5 import read_hf_t5, write_hf_t5
from flanjax.interchange.llama2c import read_llama2c
from flanjax.interchange.llama_meta import is_llama_meta, read_llama_meta
from flanjax.interchange.runs import VOCABULARY, is_run, read_run, read_settings
from flanjax.interchange.safetensors_files import NOT_SAFETENSORS, find_pickled
from flanjax.interchange.t5x import read_t5x
from flanjax.interchange.t5x_files import is_t5x, open_checkpoint
from flanjax.interchange.tokenizer import has_vocabulary, read_vocabulary
from flanjax.models.decoder_config import DecoderConfig
from flanjax.models.model import ModelConfig
from flanjax.models.parameters import Params
from flanjax.tuning.partition import merged


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    """A form in which models lie on disks.

    Attributes:
      holds: what it is, with what is in it, for messages.
      is_at: whether a path that is there holds one.
      config: its model, no tensor read; of a T5 the tensors alone say whether the head is tied.
      read: its model and its parameters, what tuning methods added merged into them.
      vocabulary: the one it was trained with, None where it brings none.
      unsaid: fields of the configuration that it does not hold, of which `config` and `read` give the usual values.
      left_out: what a person should know of that is there and not read.
    """

    holds: str
    is_at: Callable[[Path], bool]
    config: Callable[[Path], ModelConfig]
    read: Callable[[Path], tuple[ModelConfig, Params]]
    vocabulary: Callable[[Path], Vocabulary | None]
    unsaid: tuple[str, ...] = ()
    left_out: Callable[[Path], str | None] = lambda path: None


def _read_run(folder: Path) -> tuple[ModelConfig, Params]:
    trained = read_run(folder, quantized=False)
    return merged(trained.model, trained.params)


def _is_hf(folder: Path, model_types: Mapping[str, Any]) -> bool:
    """Whether it has a config.json of one of these types."""
    model_type = read_json(folder / CONFIG).get("model_type") if (folder / CONFIG).is_file() else None
    return isinstance(model_type, str) and model_type in model_types


def _hf_vocabulary(folder: Path) -> Vocabulary | None:
    return read_vocabulary(folder) if has_vocabulary(folder) else None


RUN = Format(
    holds="a run directory (config.json, checkpoints/, vocabulary/)",
    is_at=is_run,
    config=lambda folder: dataclasses.replace(read_settings(folder)[0], added=()),
    read=_read_run,
    vocabulary=lambda folder: Vocabulary.load(folder / VOCABULARY),
)
HF_DECODER = Format(
    holds=f"a Hugging Face folder of a decoder (config.json of {', '.join(FAMILIES)}; safetensors; tokenizer.json)",
    is_at=lambda folder: _is_hf(folder, FAMILIES),
    config=lambda folder: read_hf_decoder_config(folder).model,
    read=read_hf_decoder,
    vocabulary=_hf_vocabulary,
    unsaid=("init_stddev",),
)
HF_T5 = Format(
    holds="a Hugging Face folder of a T5, mT5 or UMT5 (config.json, model.safetensors, spiece.model)",
    is_at=lambda folder: _is_hf(folder, ARCHITECTURES),
    config=lambda folder: read_hf_config(folder).model,
    read=read_hf_t5,
    vocabulary=_hf_vocabulary,
)
LLAMA2C = Format(
    holds="a .bin file of llama2.c",
    is_at=lambda path: path.is_file() and path.suffix == ".bin" and find_pickled(path) is None,
    config=lambda path: read_llama2c(path)[0],
    read=read_llama2c,
    vocabulary=lambda path: None,
    unsaid=("init_stddev",),
)
LLAMA_META = Format(
    holds="Meta's own folder of a Llama (params.json, consolidated.00.pth, tokenizer.model)",
    is_at=is_llama_meta,
    config=lambda folder: read_llama_meta(folder)[0],
    read=read_llama_meta,
    vocabulary=_hf_vocabulary,
    unsaid=("init_stddev", "max_positions"),
)
T5X = Format(
    holds="a T5X checkpoint (a folder checkpoint_<step> with a file checkpoint), or the address of one",
    is_at=is_t5x,
    config=lambda path: read_t5x(path)[0],
    read=read_t5x,
    vocabulary=_hf_vocabulary,
    unsaid=("mlp_activations", "relpos_max_distance", "layer_norm_epsilon"),
    left_out=lambda path: open_checkpoint(path).left_out,
)
GGUF = Format(
    holds="a .gguf file of a decoder",
    is_at=is_gguf,
    config=lambda path: open_gguf(path).config,
    read=read_gguf,
    vocabulary=gguf_vocabulary,
    unsaid=("init_stddev",),
)
# The first that fits is taken.
FORMATS = (RUN, HF_DECODER, HF_T5, LLAMA2C, LLAMA_META, GGUF, T5X)


def format_of(path: str | Path) -> Format:
    """The form of what lies at `path`.

    Raises:
      ModelFolderError: there is nothing, or nothing of any of these forms; the message says what they hold, or what
        makes one of it.
    """
    path = Path(path)
    if not path.exists() and address_of(path) is None:
        raise ModelFolderError(f"{path}: there is no such folder or file")
    for found in FORMATS:
        if found.is_at(path):
            return found
    if (path / CONFIG).is_file():
        raise ModelFolderError(
            f"{path / CONFIG}: model_type is {read_json(path / CONFIG).get('model_type')!r}; the encoder-decoders are "
            f"{', '.join(ARCHITECTURES)}, the decoders {', '.join(FAMILIES)}"
        )
    if (pickled := find_pickled(path)) is not None:
        auto_class = "AutoModelForCausalLM (of a T5 AutoModelForSeq2SeqLM)"
        raise ModelFolderError(f"{pickled}: a file of weights {NOT_SAFETENSORS.format(auto_class=auto_class)}")
    known = "; ".join(dict.fromkeys(each.holds for each in FORMATS))
    raise ModelFolderError(f"{path}: {'no config.json, so ' if path.is_dir() else ''}no model; known are {known}")


def read_model(path: str | Path) -> tuple[ModelConfig, Params]:
    """The model at `path` and its parameters: of a run its latest checkpoint, merged.

    Raises:
      FlanjaxError: there is none, or it is damaged or not supported.
    """
    return format_of(path).read(Path(path))


def read_model_config(path: str | Path) -> ModelConfig:
    """The model at `path`, no tensor read: whether a T5's head is tied, its tensors alone say.

    Raises:
      FlanjaxError: as `read_model`.
    """
    return format_of(path).config(Path(path))


def vocabulary_of(path: str | Path) -> Vocabulary | None:
    """The vocabulary that comes with the model at `path`; None where it brings none.

    Raises:
      FlanjaxError: as `read_model`, or the vocabulary is damaged.
    """
    return format_of(path).vocabulary(Path(path))


def hf_class(config: ModelConfig) -> str:
    """The class of transformers that opens what `write_hf_model` writes."""
    return "AutoModelForCausalLM" if isinstance(config, DecoderConfig) else hf_architecture(config)


def write_hf_model(
    output: str | Path,
    config: ModelConfig,
    params: Params,
    vocabulary: Vocabulary | None,
    *,
    recipe: Mapping[str, str] | None = None,
    source: str | Path | None = None,
    dtype: str | None = None,
) -> None:
    """Writes a Hugging Face folder of either kind of model, as `write_hf_t5` or `write_hf_decoder`.

    Raises:
      ModelFolderError: as they do.
    """
    if isinstance(config, DecoderConfig):
        write_hf_decoder(output, config, params, vocabulary, recipe=recipe, source=source, dtype=dtype)
    else:
        write_hf_t5(output, config, params, vocabulary, recipe=recipe, source=source, dtype=dtype)
