"""Turns the int8 Flan-T5-small of the shared test data into an ordinary float32 Hugging Face folder.

    python tools/dequantize_flan_t5_small.py INPUT_DIR VOCAB_DIR OUTPUT_DIR

INPUT_DIR holds `model.int8.safetensors.gz`, `scales.json` ({tensor: [scale, zero point]}) and `config.json`; VOCAB_DIR
the T5 tokenizer files. A quantised weight is `(int8 - zero_point) * scale`; the layer norms are float32 already.
"""

import argparse
import gzip
import shutil
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from flanjax.errors import FlanjaxError
from flanjax.interchange.folders import ModelFolderError, new_folder, read_json, write_json

WEIGHTS = "model.int8.safetensors.gz"
TOKENIZER = ("spiece.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
COPIED = (*TOKENIZER, "generation_config.json")


def dequantize(input_dir: Path, vocab_dir: Path, output_dir: Path) -> None:
    """Writes `output_dir`, which must be new; it appears whole or not at all.

    Raises:
      ModelFolderError: a file is missing, a quantised tensor has no scale, or `output_dir` is not new.
    """
    wanted = [input_dir / name for name in (WEIGHTS, "scales.json", "config.json")]
    wanted += [vocab_dir / name for name in COPIED]
    if missing := [str(path) for path in wanted if not path.is_file()]:
        raise ModelFolderError(f"missing: {', '.join(missing)}")
    config = read_json(input_dir / "config.json")
    # transformers 5 goes by the second key where transformers 4 went by tie_word_embeddings.
    config["scale_decoder_outputs"] = config["tie_word_embeddings"]
    with new_folder(output_dir) as folder:
        tensors = dict(_dequantized(input_dir))
        safetensors.numpy.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        write_json(folder / "config.json", config)
        for name in COPIED:
            shutil.copyfile(vocab_dir / name, folder / name)


def _dequantized(input_dir: Path) -> Iterator[tuple[str, np.ndarray]]:
    scales = read_json(input_dir / "scales.json")
    try:
        stored = safetensors.numpy.load(gzip.decompress((input_dir / WEIGHTS).read_bytes()))
    except (OSError, EOFError, zlib.error, SafetensorError) as error:
        raise ModelFolderError(f"{input_dir / WEIGHTS}: truncated or damaged ({error})") from error
    for name, weight in stored.items():
        if weight.dtype == np.float32:
            yield name, weight
        elif name in scales:
            scale, zero_point = scales[name]
            yield name, (weight.astype(np.float32) - np.float32(zero_point)) * np.float32(scale)
        else:
            raise ModelFolderError(f"{input_dir / 'scales.json'}: no scale for {name} ({weight.dtype})")


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input_dir", type=Path)
    parser.add_argument("vocab_dir", type=Path)
    parser.add_argument("output_dir", type=Path)
    arguments = parser.parse_args(argv)
    try:
        dequantize(arguments.input_dir, arguments.vocab_dir, arguments.output_dir)
    except FlanjaxError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {arguments.output_dir}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
