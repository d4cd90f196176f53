"""Tiny random T5 folders, of transformers' own making and of T5X's form, and a small trained vocabulary."""

import errno
import functools
import http.server
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flanjax.data.vocabularies import Vocabulary, train_vocabulary

from .t5x_tiny import TINY, random_params

SIZES = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 3}
VARIANTS: dict[str, dict[str, Any]] = {
    "v1.0": {"feed_forward_proj": "relu"},
    "v1.1": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    # As Flan-T5-small: the heads together are narrower than the model; and stacks of different depth.
    "flan": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "d_kv": 4, "num_decoder_layers": 3},
}


def make_model(variant: str, **overrides: Any) -> Any:
    """A random `T5ForConditionalGeneration` whose norms and biases are random too, not ones and zeros."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(**{**SIZES, **VARIANTS[variant], **overrides}, decoder_start_token_id=0)
    model = T5ForConditionalGeneration(config)
    if not config.scale_decoder_outputs:
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.shared.weight))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.2)
    return model.eval()


class Server(http.server.SimpleHTTPRequestHandler):
    """Serves a folder and remembers what was asked for."""

    asked: list[str]

    def send_head(self) -> Any:
        self.asked.append(self.path)
        return super().send_head()

    def log_message(self, *_: Any) -> None:
        """Nothing: the list is the log."""


@pytest.fixture
def fill_the_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A function after which weights find no room on the disk, until the patch is undone."""

    def full(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if "w" in mode and path.suffix == ".safetensors":
            raise OSError(errno.ENOSPC, "No space left on device")
        return open(path, mode, *args, **kwargs)

    return lambda: monkeypatch.setattr(Path, "open", full)


@pytest.fixture
def hf_folder(tmp_path: Path) -> Callable[..., Path]:
    """A function that saves a tiny model as transformers does and gives the folder."""

    def save(variant: str = "v1.1", *, dtype: str = "float32", max_shard_size: str = "5GB", **overrides: Any) -> Path:
        import torch

        folder = tmp_path / "hf"
        model = make_model(variant, **overrides).to(getattr(torch, dtype))
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        return folder

    return save


@pytest.fixture(scope="module")
def t5x_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A T5X checkpoint of `t5x_tiny.TINY` at step 7, not to be changed."""
    from flanjax.interchange.t5x import write_t5x

    return write_t5x(tmp_path_factory.mktemp("t5x") / "model", TINY, random_params(TINY), step=7)


@pytest.fixture
def t5x_copy(t5x_checkpoint: Path, tmp_path: Path) -> Path:
    """The same, to be damaged."""
    return Path(shutil.copytree(t5x_checkpoint, tmp_path / "checkpoint_7"))


@pytest.fixture
def served(t5x_checkpoint: Path) -> Iterator[tuple[str, list[str]]]:
    """The address of a checkpoint, and the list of what is asked for there."""
    asked: list[str] = []
    handler = type("Handler", (Server,), {"asked": asked})
    with http.server.ThreadingHTTPServer(
        ("localhost", 0), functools.partial(handler, directory=t5x_checkpoint)
    ) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://localhost:{server.server_port}", asked
        server.shutdown()
        thread.join()


@pytest.fixture
def t5x_legacy(test_data: Path) -> Path:
    """Checkpoints that T5X itself was tested with."""
    return test_data / "fixtures" / "t5x_tiny_legacy"


@pytest.fixture(scope="session")
def small_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    texts = [f"the {a} fox of {b} sorts {i} words, counts {i * 7} dates and says yes or no: why?"
             for i in range(60) for a, b in (("quick", "March"), ("slow", "Mai"))]  # fmt: skip
    return train_vocabulary(texts, 80, tmp_path_factory.mktemp("vocabulary") / "spiece.model", extra_ids=10)


@pytest.fixture(scope="session")
def write_gguf() -> Callable[..., Path]:
    """A function that writes a file with the gguf package: float32 arrays, each as the type that is named or as F32.

    Texts, truth values, whole numbers (uint32), other numbers (float32) and lists are metadata.
    """
    from gguf import GGMLQuantizationType, GGUFWriter, quantize

    def write(
        path: Path,
        architecture: str,
        metadata: Mapping[str, Any],
        tensors: Mapping[str, np.ndarray] = {},
        types: Mapping[str, str] | str = "F32",
    ) -> Path:
        writer = GGUFWriter(path, architecture)
        adders = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
        for key, value in metadata.items():
            adders.get(type(value), writer.add_array)(key, value)
        if "general.alignment" in metadata:
            writer.data_alignment = metadata["general.alignment"]
        for name, array in tensors.items():
            kind = types if isinstance(types, str) else types.get(name, "F32")
            # As llama.cpp does: norms and biases stay float32.
            kind = GGMLQuantizationType[kind if array.ndim > 1 else "F32"]
            writer.add_tensor(name, quantize(array, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write
