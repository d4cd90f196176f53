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
from typing import TYPE_CHECKING

from flanjax import doors

if TYPE_CHECKING:  # a door that only prints its help imports no jax
    from flanjax.models.model import ModelConfig
    from flanjax.models.parameters import Params

FORMATS = ("hf", "peft", "t5x", "t5x_scanned", "t5x_orbax", "t5x_orbax_scanned")


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
    from flanjax.interchange.any_model import HF_DECODER, HF_T5, RUN, format_of
    from flanjax.interchange.folders import ModelFolderError, require_new
    from flanjax.interchange.gguf_file import is_gguf
    from flanjax.interchange.t5x_files import is_t5x

    if format not in FORMATS:
        raise ModelFolderError(f"format is {format!r}: choose one of {', '.join(FORMATS)}")
    source, written = Path(input), Path(output)
    require_new(written)
    if format == "peft":
        return _convert_adapter(source, written, adapter, dtype)
    if is_gguf(source):
        _convert_gguf(source, written, format, adapter, dtype)
        return None
    if is_t5x(input):
        return _convert_t5x(str(input), written, format, adapter, dtype)
    found = format_of(source)
    if found is RUN:
        _convert_run(source, written, format, adapter, dtype)
        return None
    model, params = found.read(source)
    origin = source if found in (HF_DECODER, HF_T5) else None
    return "\n".join(_write(written, model, params, format, adapter, dtype, source=source, origin=origin))


def _convert_adapter(source: Path, output: Path, adapter: str | Path | None, dtype: str | None) -> str:
    """A published adapter of another format, to a PEFT folder; returns what it is for."""
    from flanjax.interchange.folders import ModelFolderError
    from flanjax.interchange.peft import write_folder
    from flanjax.interchange.peft_base import Base
    from flanjax.interchange.peft_prompts import read_npy
    from flanjax.interchange.tfew import convert_tfew

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


def _convert_gguf(source: Path, output: Path, format: str, adapter: str | Path | None, dtype: str | None) -> None:
    from flanjax.interchange.folders import ModelFolderError
    from flanjax.interchange.gguf import convert_gguf

    if adapter is not None:
        raise ModelFolderError(f"{source} is a GGUF file: convert it first, and give that folder as --input")
    if format != "hf":
        raise ModelFolderError(f"{source} is a decoder, and a T5X checkpoint holds a T5: give --format=hf")
    convert_gguf(source, output, dtype=dtype)


def _convert_t5x(source: str, output: Path, format: str, adapter: str | Path | None, dtype: str | None) -> str:
    from flanjax.interchange.t5x import read_t5x
    from flanjax.interchange.t5x_files import open_checkpoint

    checkpoint = open_checkpoint(source)
    told = [checkpoint.left_out]
    if format == "hf":
        told.append(f"{output} has no vocabulary, as T5X keeps none beside a model: put its spiece.model there")
    model, params = read_t5x(source)
    told += _write(output, model, params, format, adapter, dtype, source=Path(source), step=checkpoint.step)
    return "\n".join(told)


def _convert_run(source: Path, output: Path, format: str, adapter: str | Path | None, dtype: str | None) -> None:
    from flanjax.export import export
    from flanjax.interchange.folders import ModelFolderError

    if adapter is not None:
        raise ModelFolderError(f"{source} is a run: export it first, and give that folder as --input")
    export(source, output, dtype=dtype, format=format)


def _write(
    output: Path,
    model: "ModelConfig",
    params: "Params",
    format: str,
    adapter: str | Path | None,
    dtype: str | None,
    *,
    source: Path,
    origin: Path | None = None,
    step: int = 0,
) -> list[str]:
    """Writes a model with the adapter merged into it; returns what there is to tell.

    The vocabulary is the adapter's, or else the one in `source`; of `origin`, a Hugging Face folder, what is no tensor
    is kept too.
    """
    from flanjax.interchange.any_model import write_hf_model
    from flanjax.interchange.peft import adapter_on, another_base, read_peft, vocabulary_of_adapter
    from flanjax.interchange.stored import in_memory
    from flanjax.interchange.t5x import write_t5x
    from flanjax.interchange.tokenizer import TOKENIZER, has_vocabulary, read_vocabulary
    from flanjax.models.model import require_t5
    from flanjax.tuning.partition import logit_difference, merged

    told, recipe = [], None
    if adapter is not None:
        read = read_peft(adapter, model)
        told += [notice] if (notice := another_base(read, source)) else []
        tuned = adapter_on(read, model, in_memory(params))
        model, params = merged(*tuned)
        told.append(f"merged; the largest difference of a logit is {logit_difference(tuned, (model, params)):.2g}")
        recipe = {"Base model": source.absolute().name, "Adapter": Path(adapter).absolute().name}
    if format != "hf":
        t5, layout = require_t5(model, "a T5X checkpoint"), {"scanned": "scanned" in format, "orbax": "orbax" in format}
        write_t5x(output, t5, params, step=step, **layout, dtype=dtype or "float32")
        return told
    vocabulary = None if adapter is None else vocabulary_of_adapter(adapter)
    # Tokenizer files of `origin` are copied as they are, so only a bare spiece.model has to be understood.
    copied = origin is not None and ((source / TOKENIZER).is_file() or not (source / "spiece.model").is_file())
    if vocabulary is None and not copied and has_vocabulary(source):
        vocabulary = read_vocabulary(source)
    write_hf_model(output, model, params, vocabulary, source=origin, recipe=recipe, dtype=dtype)
    return told


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
        help="hf: a Hugging Face folder; peft: an adapter; t5x: a T5X checkpoint, t5x_scanned: for scalable_t5, "
        "t5x_orbax: in Orbax's layout",
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
