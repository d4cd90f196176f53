"""Writes a trained run as a Hugging Face folder: `python -m flanjax.export --run=DIR --output=DIR [--step=N]`.

transformers opens the folder: configuration, safetensors, tokenizer files, and a model card with the run's recipe.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from flanjax import doors


def export(run: str | Path, output: str | Path, *, step: int | None = None, dtype: str | None = None) -> int:
    """Writes the checkpoint of `step`, or the latest, of the run directory `run` to the new folder `output`.

    Returns the step that was exported. `dtype` is float32 unless given.

    Raises:
      FlanjaxError: `run` is no run directory or has no such checkpoint, `output` is not new, or the disk is full.
    """
    from flanjax.interchange.folders import require_new
    from flanjax.interchange.hf_t5 import write_hf_t5
    from flanjax.interchange.runs import read_run

    require_new(Path(output))
    trained = read_run(run, step=step)
    write_hf_t5(output, trained.model, trained.params, trained.vocabulary, recipe=trained.recipe, dtype=dtype)
    return trained.step


def main(argv: Sequence[str] | None = None) -> int:
    """The door: flags in, one call; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m flanjax.export", description="Writes a run for transformers.")
    parser.add_argument("--run", required=True, metavar="DIR", help="a run directory (MODEL_DIR of the training)")
    parser.add_argument("--output", required=True, metavar="DIR", help="a new folder")
    parser.add_argument("--step", type=int, metavar="N", help="a checkpoint's step; the latest unless given")
    parser.add_argument("--dtype", metavar="NAME", help="of the tensors: float32 (default), bfloat16 or float16")
    flags = parser.parse_args(argv)
    return doors.run_door(lambda: _export(flags))


def _export(flags: argparse.Namespace) -> int:
    step = export(flags.run, flags.output, step=flags.step, dtype=flags.dtype)
    print(f"step {step} of {flags.run} is in {flags.output}; load it with")
    print(f'  transformers.T5ForConditionalGeneration.from_pretrained("{flags.output}")')
    print(f'  flanjax.load("{flags.output}")')
    return 0


if __name__ == "__main__":
    sys.exit(main())
