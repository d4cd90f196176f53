"""Rewrites a model: `python -m flanjax.convert --input=DIR --output=DIR --format=hf`.

The input is a Hugging Face folder of a T5 or a decoder, a T5X checkpoint or a run directory, or another of the forms
that `flanjax.interchange.any_model` opens; it passes through flanjax's own parameters. A Hugging Face folder comes out
with the same tensors bit for bit, in one layout and with every flag that transformers 4 and 5 need; with
`--adapter=DIR` a PEFT adapter is merged into it. With `--format=t5x` a T5X checkpoint is written. A GGUF file of a
decoder becomes a Hugging Face folder, with its tokenizer and chat template. With `--format=peft` published adapters of
other formats become PEFT folders: T-Few's (IA)3 (.pt) and soft prompts (.npy).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from flanjax import doors

FORMATS = ("hf", "peft", "t5x", "t5x_scanned")


def convert(
    input: str | Path,
    output: str | Path,
    *,
    format: str = "hf",
    adapter: str | Path | None = None,
    dtype: str | None = None,
) -> str | None:
    """Writes the model in `input` to the new folder `output`.

    Arguments:
      input: a Hugging Face folder, whose tokenizer files, model card and dtypes are kept, a T5X checkpoint or its
        address, or a run directory, of which the latest checkpoint is taken, or a GGUF file; for the format "peft" a
        file of T-Few (.pt) or a soft prompt (.npy).
      output: a new folder.
      format: of `output`, one of `FORMATS`.
      adapter: a PEFT folder for the model in `input`, to be merged into it.
      dtype: of the tensors; by default as in `input` (float32 for a run, and from or to T5X).

    Returns what there is to tell about the conversion.

    Raises:
      FlanjaxError: `input` is none of these or is damaged, the adapter does not fit it or cannot be merged, `output` is
        not new, or the disk is full.
    """
    from flanjax.export import export
    from flanjax.interchange.any_model import HF_DECODER, HF_T5, RUN, format_of, write_hf_model
    from flanjax.interchange.folders import ModelFolderError, require_new
    from flanjax.interchange.gguf import convert_gguf
    from flanjax.interchange.gguf_file import is_gguf
    from flanjax.interchange.peft import adapter_on, read_peft, write_folder
    from flanjax.interchange.peft_base import Base
    from flanjax.interchange.peft_prompts import read_npy
    from flanjax.interchange.stored import in_memory
    from flanjax.interchange.t5x import read_t5x, write_t5x
    from flanjax.interchange.t5x_files import is_t5x, open_checkpoint
    from flanjax.interchange.tfew import convert_tfew
    from flanjax.interchange.tokenizer import TOKENIZER, read_vocabulary
    from flanjax.models.model import ModelConfig, require_t5
    from flanjax.tuning.partition import logit_difference, merged

    if format not in FORMATS:
        raise ModelFolderError(f"format is {format!r}: choose one of {', '.join(FORMATS)}")
    source = Path(input)
    require_new(Path(output))
    if format == "peft":
        if source.is_dir() or adapter is not None:
            raise ModelFolderError(
                f"{source}: to a PEFT folder goes a file of T-Few (.pt) or a soft prompt (.npy); a run's adapter is "
                "written by python -m flanjax.export --format=peft"
            )
        if source.suffix == ".npy":
            fitting, content = read_npy(source)
            write_folder(output, Base.of(fitting), {"": content}, recipe={"Converted from": source.name}, dtype=dtype)
            return f"a prompt for a T5 of width {fitting.embed_dim}"
        return f"factors for {convert_tfew(source, output, dtype=dtype)}"
    if is_gguf(source):
        if adapter is not None:
            raise ModelFolderError(f"{source} is a GGUF file: convert it first, and give that folder as --input")
        if format != "hf":
            raise ModelFolderError(f"{source} is a decoder, and a T5X checkpoint holds a T5: give --format=hf")
        convert_gguf(source, output, dtype=dtype)
        return None
    told: list[str] = []
    step, origin = 0, None
    model: ModelConfig
    if is_t5x(input):
        checkpoint = open_checkpoint(input)
        told.append(checkpoint.left_out)
        if format == "hf":
            told.append(f"{output} has no vocabulary, as T5X keeps none beside a model: put its spiece.model there")
        step = checkpoint.step
        model, params = read_t5x(input)
    else:
        found = format_of(source)
        if found is RUN:
            if adapter is not None:
                raise ModelFolderError(f"{source} is a run: export it first, and give that folder as --input")
            export(source, output, dtype=dtype, format=format)
            return None
        origin = source if found in (HF_DECODER, HF_T5) else None
        model, params = found.read(source)
    if adapter is not None:
        tuned = adapter_on(read_peft(adapter, model), model, in_memory(params))
        model, params = merged(*tuned)
        told.append(f"merged; the largest difference of a logit is {logit_difference(tuned, (model, params)):.2g}")
    if format != "hf":
        t5, scanned = require_t5(model, "a T5X checkpoint"), format == "t5x_scanned"
        write_t5x(output, t5, params, step=step, scanned=scanned, dtype=dtype or "float32")
        return "\n".join(told)
    # Tokenizer files that are there are copied as they are, so only a bare spiece.model has to be understood.
    bare = (source / "spiece.model").is_file() and not (source / TOKENIZER).is_file()
    vocabulary = read_vocabulary(source) if bare else None
    recipe = (
        None if adapter is None else {"Base model": source.absolute().name, "Adapter": Path(adapter).absolute().name}
    )
    write_hf_model(output, model, params, vocabulary, source=origin, recipe=recipe, dtype=dtype)
    return "\n".join(told)


def main(argv: Sequence[str] | None = None) -> int:
    """The door: flags in, one call; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m flanjax.convert", description="Rewrites a model in a format.")
    parser.add_argument(
        "--input",
        required=True,
        metavar="PATH",
        help="a Hugging Face folder, a T5X checkpoint, a run, a .gguf, or a .pt or .npy",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="a new folder")
    parser.add_argument(
        "--format",
        required=True,
        choices=FORMATS,
        help="hf: a Hugging Face folder; peft: an adapter; t5x: a T5X checkpoint, t5x_scanned: for scalable_t5",
    )
    parser.add_argument("--adapter", metavar="DIR", help="a PEFT folder, merged into the model of --input")
    parser.add_argument("--dtype", metavar="NAME", help="float32, bfloat16 or float16; as in the input unless given")
    flags = parser.parse_args(argv)
    return doors.run_door(lambda: _convert(flags))


def _convert(flags: argparse.Namespace) -> int:
    told = convert(flags.input, flags.output, format=flags.format, adapter=flags.adapter, dtype=flags.dtype)
    if told:
        print(told)
    print(f"wrote {flags.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
