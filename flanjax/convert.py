"""Rewrites a model: `python -m flanjax.convert --input=DIR --output=DIR --format=hf`.

The input is a Hugging Face T5 folder or a run directory; it passes through flanjax's own parameters. A Hugging Face
folder comes out with the same tensors bit for bit, in one layout and with every flag that transformers 4 and 5 need.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from flanjax import doors

FORMATS = ("hf",)


def convert(input: str | Path, output: str | Path, *, format: str = "hf", dtype: str | None = None) -> None:
    """Writes the model in `input` to the new folder `output`.

    Arguments:
      input: a Hugging Face T5 folder, whose tokenizer files, model card and dtypes are kept, or a run directory, of
        which the latest checkpoint is taken.
      output: a new folder.
      format: of `output`, one of `FORMATS`.
      dtype: of the tensors; by default as in `input` (float32 for a run).

    Raises:
      FlanjaxError: `input` is neither kind of folder or is damaged, `output` is not new, or the disk is full.
    """
    from flanjax.export import export
    from flanjax.interchange.folders import ModelFolderError, require_new
    from flanjax.interchange.hf_t5 import read_hf_t5, write_hf_t5
    from flanjax.interchange.runs import is_run
    from flanjax.interchange.tokenizer import TOKENIZER, read_vocabulary
    from flanjax.loading import require_model_folder

    if format not in FORMATS:
        raise ModelFolderError(f"format is {format!r}: choose one of {', '.join(FORMATS)}")
    source = Path(input)
    require_new(Path(output))
    require_model_folder(source)
    if is_run(source):
        export(source, output, dtype=dtype)
        return
    model, params = read_hf_t5(source)
    # Tokenizer files that are there are copied as they are, so only a bare spiece.model has to be understood.
    bare = (source / "spiece.model").is_file() and not (source / TOKENIZER).is_file()
    write_hf_t5(output, model, params, read_vocabulary(source) if bare else None, source=source, dtype=dtype)


def main(argv: Sequence[str] | None = None) -> int:
    """The door: flags in, one call; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m flanjax.convert", description="Rewrites a model in a format.")
    parser.add_argument("--input", required=True, metavar="DIR", help="a Hugging Face T5 folder or a run directory")
    parser.add_argument("--output", required=True, metavar="DIR", help="a new folder")
    parser.add_argument("--format", required=True, choices=FORMATS, help="hf: a Hugging Face T5 folder")
    parser.add_argument("--dtype", metavar="NAME", help="float32, bfloat16 or float16; as in the input unless given")
    flags = parser.parse_args(argv)
    return doors.run_door(lambda: _convert(flags))


def _convert(flags: argparse.Namespace) -> int:
    convert(flags.input, flags.output, format=flags.format, dtype=flags.dtype)
    print(f"wrote {flags.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
