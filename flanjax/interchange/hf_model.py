"""Hugging Face folders of either kind of model: a T5 or a decoder, as `model_type` in `config.json` says."""

from pathlib import Path

from flanjax.interchange.folders import read_json
from flanjax.interchange.hf_config import read_hf_config
from flanjax.interchange.hf_decoder import CONFIG, read_hf_decoder, read_hf_decoder_config
from flanjax.interchange.hf_decoder_families import FAMILIES
from flanjax.interchange.hf_t5 import read_hf_t5
from flanjax.models.model import ModelConfig
from flanjax.models.parameters import Params


def read_hf_model(folder: Path) -> tuple[ModelConfig, Params]:
    """The model of a folder and its parameters, as `read_hf_t5` or `read_hf_decoder` give them.

    Raises:
      ModelFolderError: the folder is missing, damaged or of a model that is not supported.
    """
    return read_hf_decoder(folder) if _is_decoder(folder) else read_hf_t5(folder)


def read_hf_model_config(folder: Path) -> ModelConfig:
    """The model by its `config.json` alone; whether a T5's head is tied, its tensors alone say.

    Raises:
      ModelFolderError: the file is missing, damaged or of a model that is not supported.
    """
    return read_hf_decoder_config(folder).model if _is_decoder(folder) else read_hf_config(folder).model


def _is_decoder(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and read_json(folder / CONFIG).get("model_type") in FAMILIES
