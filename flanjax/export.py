"""Writes a trained run for others: `python -m flanjax.export --run=DIR --output=DIR [--step=N] [--format=peft]`.

A model that transformers opens: configuration, safetensors, tokenizer files, and a model card with the run's recipe.
Or, as `peft`, an adapter alone, which peft opens on the base model; of prompts of several tasks, a folder for each.
Or, as `t5x`, a checkpoint that T5X restores; `t5x_scanned` is for its scalable_t5, `t5x_orbax` for T5X with Orbax.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flanjax import doors

if TYPE_CHECKING:
    from flanjax.interchange.runs import TrainedRun

FORMATS = ("hf", "peft", "t5x", "t5x_scanned", "t5x_orbax", "t5x_orbax_scanned")
QUANTIZED = (
    "the run's base is quantized, and what was exported goes with the full-precision original: "
    "the two differ by the rounding of the base"
)
BASE_NAME = (
    "adapter_config.json calls the base model {name!r}, after its folder: PeftModel.from_pretrained, which is given "
    "the model, does not look; AutoPeftModel looks for that name. --base_name gives it a hub id, or a path, to open"
)
PREFIX_LM = (
    "the run is a prefix LM, whose inputs see each other in both directions, and a Hugging Face folder has no word for "
    "that: transformers will read its inputs from left to right"
)


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was exported.

    Attributes:
      step: the checkpoint's.
      logit_difference: the largest between the run's model and the merged one; None where nothing was merged.
      notices: what a person should know of the export.
      tasks: those that have a folder of their own, an adapter, in the output.
      hf_class: the class of transformers that opens it.
    """

    step: int
    logit_difference: float | None
    notices: tuple[str, ...]
    tasks: tuple[str, ...] = ()
    hf_class: str = ""


def export(
    run: str | Path,
    output: str | Path,
    *,
    step: int | None = None,
    dtype: str | None = None,
    merge: bool = False,
    format: str = "hf",
    base_name: str | None = None,
) -> Exported:
    """Writes the checkpoint of `step`, or the latest, of the run directory `run` to the new folder `output`.

    `dtype` is float32 unless given. With `merge` the parameters that tuning methods added are put into the model's own;
    where the run had quantized those, into the originals that it was made from. With the format "peft" they are
    written alone, for a base model that is called `base_name`, by default as the folder that it lies in.

    Raises:
      FlanjaxError: `run` is no run directory or has no such checkpoint, it has adapters and is not to be merged, no
        PEFT folder can express its methods, a name is given where none is written, `output` is not new, or the disk is
        full; what was trained is not finite.
    """
    from flanjax.interchange.any_model import HF_DECODER, format_of, hf_class, write_hf_model
    from flanjax.interchange.folders import ModelFolderError, require_new
    from flanjax.interchange.runs import read_run
    from flanjax.interchange.t5x import write_t5x
    from flanjax.models.decoder_config import DecoderConfig
    from flanjax.models.model import require_t5
    from flanjax.tuning.method import TuningError
    from flanjax.tuning.partition import added_paths, logit_difference, merged, methods_of, unquantized

    if format not in FORMATS:
        raise ModelFolderError(f"format is {format!r}: choose one of {', '.join(FORMATS)}")
    if format == "peft" and merge:
        raise TuningError("a PEFT folder is what is not merged: give either --format=peft or --merge")
    if format != "peft" and base_name is not None:
        raise TuningError(f"--base_name={base_name}: a whole model names no base: give it with --format=peft")
    require_new(Path(output))
    trained = read_run(run, step=step)
    _check_finite(trained)
    quantized = trained.model != unquantized(trained.model)
    # A decoder may be said in the words of several families: in those of the model that it was tuned from.
    base = trained.settings["init_from"]
    known = isinstance(trained.model, DecoderConfig) and base is not None and Path(base).exists()
    source = base if known and format_of(base) is HF_DECODER else None
    told = {QUANTIZED: quantized, PREFIX_LM: trained.is_prefix_lm}
    notices = tuple(notice for notice, holds in told.items() if holds)
    if format != "peft" and added_paths(trained.model) and not merge:
        raise TuningError(
            f"{run} was tuned by methods that add parameters ({', '.join(m.name for m in methods_of(trained.model))}), "
            "and a plain model has no place for them: give --merge to put them into its own, or "
            "--format=peft for an adapter folder"
        )
    whole = read_run(run, step=trained.step, quantized=False) if quantized else trained
    if format == "peft":
        return _export_adapter(whole, output, notices, base_name=base_name, source=source, dtype=dtype)
    model, params = merged(whole.model, whole.params)
    difference = None
    if added_paths(trained.model):
        difference = logit_difference((trained.model, trained.params), (model, params))
    if format != "hf":
        t5, layout = require_t5(model, "a T5X checkpoint"), {"scanned": "scanned" in format, "orbax": "orbax" in format}
        write_t5x(output, t5, params, step=trained.step, **layout, dtype=dtype or "float32")
        return Exported(trained.step, difference, notices)
    write_hf_model(
        output,
        model,
        params,
        trained.vocabulary,
        recipe=trained.recipe,
        source=source,
        dtype=dtype or "float32",
    )
    return Exported(trained.step, difference, notices, hf_class=hf_class(model))


def _export_adapter(
    trained: "TrainedRun",
    output: str | Path,
    notices: tuple[str, ...],
    *,
    base_name: str | None,
    source: str | None,
    dtype: str | None,
) -> Exported:
    """What was tuned alone, without a word of how its base was kept.

    `source` is the Hugging Face folder of the decoder that it was tuned from, None where it was another base.
    """
    from flanjax.interchange.folders import read_json
    from flanjax.interchange.peft import base_name as name_of
    from flanjax.interchange.peft import write_peft

    base = trained.settings["init_from"]
    tasks = write_peft(
        output,
        trained.model,
        trained.params,
        begun=trained.begun,
        base_name=base_name or name_of(base),
        recipe=trained.recipe,
        dtype=dtype,
        model_type=None if source is None else read_json(Path(source) / "config.json")["model_type"],
        vocabulary=trained.vocabulary,
    )
    if base_name is None and base is not None:
        notices = (*notices, BASE_NAME.format(name=name_of(base)))
    return Exported(trained.step, None, notices, tasks)


def _check_finite(trained: "TrainedRun") -> None:
    """Refuses a checkpoint of a training that diverged."""
    import numpy as np

    from flanjax.interchange.folders import ModelFolderError
    from flanjax.tuning.partition import Partition, flatten

    moved, _ = Partition.of(trained.model).split(trained.params)
    for path, value in flatten(moved).items():
        if not np.isfinite(np.asarray(value)).all():
            raise ModelFolderError(
                f"{path} holds NaN or infinity in the checkpoint of step {trained.step}: the training diverged. Give "
                "an earlier one, with --step"
            )


def main(argv: Sequence[str] | None = None) -> int:
    """The door: flags in, one call; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m flanjax.export", description="Writes a run for transformers.")
    parser.add_argument("--run", required=True, metavar="DIR", help="a run directory (MODEL_DIR of the training)")
    parser.add_argument("--output", required=True, metavar="DIR", help="a new folder")
    parser.add_argument("--step", type=int, metavar="N", help="a checkpoint's step; the latest unless given")
    parser.add_argument("--dtype", metavar="NAME", help="of the tensors: float32 (default), bfloat16 or float16")
    parser.add_argument("--format", choices=FORMATS, default="hf", help="hf or t5x: a whole model; peft: an adapter")
    parser.add_argument("--base_name", metavar="ID", help="what an adapter calls its base: a hub id, or a path")
    parser.add_argument("--merge", action="store_true", help="put what tuning methods added into the model's own")
    flags = parser.parse_args(argv)
    return doors.run_door(lambda: _export(flags))


def _export(flags: argparse.Namespace) -> int:
    done = export(
        flags.run,
        flags.output,
        step=flags.step,
        dtype=flags.dtype,
        merge=flags.merge,
        format=flags.format,
        base_name=flags.base_name,
    )
    if done.logit_difference is not None:
        print(f"merged; the largest difference of a logit is {done.logit_difference:.2g}")
    for notice in done.notices:
        print(f"notice: {notice}")
    of_tasks = f", a folder for each of {', '.join(done.tasks)}" if done.tasks else ""
    print(f"step {done.step} of {flags.run} is in {flags.output}{of_tasks}; load it with")
    if flags.format == "peft":
        print(f'  peft.PeftModel.from_pretrained(BASE, "{Path(flags.output, *done.tasks[:1])}")')
        asked = f'.generate(["..."], prompt="{done.tasks[0]}")' if done.tasks else ""
        print(f'  flanjax.load(BASE, adapter="{flags.output}"){asked}')
        return 0
    if flags.format != "hf":
        print(f'  --gin.INITIAL_CHECKPOINT_PATH=\\"{Path(flags.output, f"checkpoint_{done.step}")}\\"  # T5X')
        return 0
    print(f'  transformers.{done.hf_class}.from_pretrained("{flags.output}")')
    print(f'  flanjax.load("{flags.output}")')
    return 0


if __name__ == "__main__":
    sys.exit(main())
