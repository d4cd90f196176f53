"""Trains a model from a gin file: `python -m flanjax.train --gin_file=demo.gin [--gin.NAME=VALUE ...] [--dry_run]`.

The same command again resumes a run that was stopped or killed, and says so when the run is already whole.
`--dry_run` builds the data, the shapes and the parameter table, compiles the step, prints the memory it needs on each
device and whether the device has it, and trains nothing.

With `--multihost` the same command on every host of a pod or a cluster is one run.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from flanjax import doors

if TYPE_CHECKING:
    from flanjax.console import Console
    from flanjax.run import Run


def main(argv: Sequence[str] | None = None) -> int:
    """The door: flags and gin in, one call; returns the exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    return doors.run_door(lambda: _train(argv))


def _train(argv: Sequence[str]) -> int:
    parser = doors.gin_parser("flanjax.train", "Instruction-tunes a model as a gin file says.")
    parser.add_argument("--dry_run", action="store_true", help="build and compile everything, train nothing")
    hosts = parser.add_argument_group("several hosts, each started with this same command")
    hosts.add_argument("--multihost", action="store_true", help="join the others of a TPU pod, Slurm or MPI job")
    hosts.add_argument("--coordinator_address", metavar="HOST:PORT", help="process 0, where nothing else tells it")
    hosts.add_argument("--process_count", type=int, metavar="N", help="likewise")
    hosts.add_argument("--process_index", type=int, metavar="I", help="likewise, from 0")
    flags, sources = doors.parse_gin_flags(parser, argv)
    if not sources.files:
        parser.error("name a gin file, such as --gin_file=demo.gin")

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    where = flags.coordinator_address, flags.process_count, flags.process_index
    if flags.multihost or any(value is not None for value in where):
        from flanjax.sharding.hosts import join

        join(*where)
    from flanjax.run import CONFIGURABLES, Run, with_modules

    doors.configure(sources, CONFIGURABLES)
    from flanjax.sharding.host_memory import keep_freed_memory
    from flanjax.training.schedules import make_schedule

    built = doors.build(Run)
    assert isinstance(built, Run)
    keep_freed_memory()
    run = with_modules(built)
    make_schedule(run.optimizer, run.train.train_steps)  # may refuse the steps: before hours of materialising

    def materialize(mixtures: Sequence[str]) -> None:
        # In a process of its own: TensorFlow's memory and threads are gone when training starts.
        forwarded = [f"--gin_file={file}" for file in sources.files]
        forwarded += [f"--gin.{name}={value}" for name, value in sources.overrides]
        command = [sys.executable, "-m", "flanjax.materialize", *forwarded, f"--mixture={','.join(mixtures)}"]
        if code := _run_process(command):
            raise SystemExit(code)

    return _run(run, materialize, operative_config=doors.operative_config(), dry_run=flags.dry_run)


def _run_process(command: Sequence[str]) -> int:
    """The exit status of a process that a SIGTERM to this one ends too: nothing writes on after the run has gone."""

    def terminate(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.getsignal(signal.SIGTERM)
    if before is None:  # jax's own, of several processes, which cannot be put back
        return subprocess.run(command, check=False).returncode
    signal.signal(signal.SIGTERM, terminate)
    try:
        return subprocess.run(command, check=False).returncode
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(run: "Run", materialize: Callable[[Sequence[str]], None], *, operative_config: str, dry_run: bool) -> int:
    from flanjax.console import Console
    from flanjax.interchange.any_model import hf_class
    from flanjax.narrator import Narrator, parameter_table
    from flanjax.run import compile_run, describe, is_described, layout_of, prepare, train_run
    from flanjax.sharding.hosts import is_first, wait_for_all
    from flanjax.training.signals import exit_now

    with Console(quiet=not is_first()) as console:
        prepared = prepare(run, materialize, console.notice)
        narrator = Narrator(console, prepared)
        layout = layout_of(prepared)
        narrator.start(layout)
        parameters = parameter_table(prepared, layout)
        if dry_run:
            console.heading("Dry run")
            console.line(parameters)
            narrator.memory(compile_run(prepared, layout))
            console.line("dry run: everything was built and compiled; nothing was trained, no run directory written")
            return 0
        # A resumed run is described anew only after it was accepted: a refused one must not change the description.
        if not is_described(run):
            describe(prepared, operative_config, parameters)
        console.heading("Training")
        result = train_run(prepared, narrator)
        describe(prepared, operative_config, parameters)
        console.close_progress("training")
        if result.stopped_by is not None:
            console.line(f"stopped by {result.stopped_by} at step {result.step}; the same command goes on from there")
        elif is_first():
            narrator.answers()
            _finish(run, hf_class(prepared.model), console)
        wait_for_all("end")
    if result.work_left_behind:
        exit_now(0)
    return 0


def _finish(run: "Run", hf_class: str, console: "Console") -> None:
    """Says where things are, and exports what was asked for, which this class of transformers opens."""
    from flanjax.export import export

    console.heading("Done")
    kept = "metrics.jsonl, loss.png, samples.jsonl, tensorboard, checkpoints"
    kept += ", evaluations" if run.evaluation.suites else ""
    console.line(f"run directory: {run.model_dir} ({kept})")
    if run.export_to is None:
        console.line(f"export it: python -m flanjax.export --run={run.model_dir} --output=DIR")
        return
    if Path(run.export_to).exists():
        console.notice(f"{run.export_to} is there already and was not written again; remove it to export anew")
    else:
        for notice in export(run.model_dir, run.export_to, merge=True).notices:
            console.notice(notice)
    console.line(f"Hugging Face folder: {run.export_to}; load it with")
    console.line(f'  transformers.{hf_class}.from_pretrained("{run.export_to}")')
    console.line(f'  flanjax.load("{run.export_to}").generate(["..."])')


if __name__ == "__main__":
    sys.exit(main())
