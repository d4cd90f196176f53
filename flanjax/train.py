"""Trains a model from a gin file: `python -m flanjax.train --gin_file=demo.gin [--gin.NAME=VALUE ...] [--dry_run]`.

The same command again resumes a run that was stopped or killed, and says so when the run is already whole.
`--dry_run` builds the data, the shapes and the parameter table, compiles the step, prints the memory it needs on each
device, and trains nothing.
"""

import os
import subprocess
import sys
from collections.abc import Sequence

from flanjax import doors


def main(argv: Sequence[str] | None = None) -> int:
    """The door: flags and gin in, one call; returns the exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    return doors.run_door(lambda: _train(argv))


def _train(argv: Sequence[str]) -> int:
    parser = doors.gin_parser("flanjax.train", "Instruction-tunes a model as a gin file says.")
    parser.add_argument("--dry_run", action="store_true", help="build and compile everything, train nothing")
    flags, sources = doors.parse_gin_flags(parser, argv)
    if not sources.files:
        parser.error("name a gin file, such as --gin_file=demo.gin")

    # The jit cache makes the second start of a run, and the resume after a kill, quick.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from flanjax.console import Console
    from flanjax.run import CONFIGURABLES, Run, run

    doors.configure(sources, CONFIGURABLES)
    configuration = doors.build(Run)
    assert isinstance(configuration, Run)

    def materialize(mixtures: Sequence[str]) -> None:
        # In a process of its own: TensorFlow's memory and threads are gone when training starts.
        forwarded = [argument for argument in argv if argument != "--dry_run"]
        command = [sys.executable, "-m", "flanjax.materialize", *forwarded]
        done = subprocess.run([*command, f"--mixture={','.join(mixtures)}"], check=False)
        if done.returncode:
            raise SystemExit(done.returncode)

    with Console() as console:
        run(
            configuration,
            materialize=materialize,
            console=console,
            operative_config=doors.operative_config(),
            dry_run=flags.dry_run,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
