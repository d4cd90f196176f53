"""Answers or scores a file of rows: `python -m flanjax.infer --model=DIR --input=rows.jsonl --output=answers.jsonl`.

    {"id": 7, "input": "Is 7 odd?"}                     ->  {"id": 7, "input": "Is 7 odd?", "prediction": "yes", ...}
    {"messages": [{"role": "user", "content": "Hi"}]}   ->  {"messages": [...], "prediction": "Hello!", ...}
    {"input": "Is 7 odd?", "target": "yes"}, scored     ->  {..., "score": {"total": -0.7, "logprobs": [...], ...}}
    not JSON                                            ->  {"error": "line 4: not JSON (...)"}

A line for each line, in its order. The same command goes on after a kill, and the file is then, byte for byte, that of
a run without one. In Python the same is one call:

    done = infer("runs/demo", "rows.jsonl", "answers.jsonl", temperature=0.7, num_samples=4)
"""

import argparse
import dataclasses
import hashlib
import itertools
import json
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flanjax import doors

if TYPE_CHECKING:  # a door that only prints its help imports no jax
    from flanjax.batch_inference import Answers
    from flanjax.console import Console
    from flanjax.files import ResumableFile
    from flanjax.generation.decoding import DecodingConfig
    from flanjax.sharding.mesh import MeshConfig

MODES = ("generate", "score")
ROWS_FAILED = 3  # the exit status where the output is whole and some of its rows have an error
_TOLD = 5  # errors that are said again at the end

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Inferred:
    """What was written.

    Attributes:
      output: the file.
      rows: lines in it.
      errors: how many of them have an error in place of an answer.
      first_errors: the first few of these.
      resumed: rows that were there when the call began.
    """

    output: Path
    rows: int
    errors: int
    first_errors: tuple[str, ...]
    resumed: int


def infer(
    model: str | Path,
    input: str | Path,
    output: str | Path,
    *,
    mode: str = "generate",
    adapter: str | Path | None = None,
    step: int | None = None,
    eos: bool = True,
    max_length: int | None = None,
    batch_size: int = 16,
    window: int | None = None,
    mesh: "MeshConfig | None" = None,
    console: "Console | None" = None,
    **options: Any,
) -> Inferred:
    """Writes a line with an answer, or with scores, for each line of a file; goes on where a killed call stopped.

    A row has `input` (or `inputs`), or `messages` for the model's chat template; a `task`, where the model has a learnt
    prompt for each; and for scoring a text as `target`, or a list of them as `targets`. All of its fields are carried
    over. An answer is a text, or a list of `num_samples`, and so is why it ended: "stop" or "length". A row's answer
    follows from the row, the options and the seed: equal rows have equal answers.

    Arguments:
      model: as `flanjax.load` opens it.
      input: JSON lines, compressed as its name says (.gz, .bz2, .xz, .zst), local or at an address.
      output: the file to write. OUTPUT.partial grows beside it, and OUTPUT.settings.json says what it was made with.
      mode: "generate", or "score" for log-likelihoods.
      adapter: a PEFT folder put on the model.
      step: of a run's checkpoint.
      eos: whether the end of a target is scored, too.
      max_length: tokens of input and answer at most, what is longer is an error; None for a decoder's positions, and
        for no limit where an encoder has none.
      batch_size: rows that go through the model together.
      window: rows that are sorted by length together, and written together; 16 batches unless given.
      mesh: the devices, as `flanjax.load` has it.
      console: told of progress.
      options: of `flanjax.generation.decoding.DecodingConfig`, for "generate".

    Raises:
      FlanjaxError: no such mode, option, input or model; the output cannot be written, would not fit, is there
        already, or was begun with another model, input or options.
    """
    import flanjax
    from flanjax.batch_inference import Answers
    from flanjax.errors import FlanjaxError
    from flanjax.files import ResumableFile
    from flanjax.loading import load

    decoding = _decoding(mode, eos, options)
    window = 16 * batch_size if window is None else window
    for name, value in {"batch_size": batch_size, "window": window, "max_length": max_length}.items():
        if value is not None and value < 1:
            raise FlanjaxError(f"{name} is {value}: it must be at least 1")
    source = _Source.read(input)
    output = Path(output)
    with ResumableFile(output) as file:
        settings: Row = {"mode": mode, "input": source.sha256, "max_length": max_length}
        settings |= {"eos": eos} if decoding is None else dataclasses.asdict(decoding)
        settings.pop("eos_ids", None)  # are the model's
        file.require(settings)
        _require_room(output, source.bytes - file.size)
        loaded = load(model, adapter=adapter, step=step, mesh=mesh)
        file.require({"model": loaded.identity})
        resumed = file.progress.get("rows", 0)
        if not file.whole:
            about = {"model": str(model), "input": str(input), "flanjax": flanjax.__version__}
            told = _Progress(console, source.rows, resumed)
            answers = Answers(loaded, decoding, eos=eos, max_length=max_length, batch_size=batch_size)
            _write(file, source, answers, window, about, told)
        done = file.progress
    return Inferred(output, done["rows"], done["errors"], tuple(done["first_errors"]), resumed)


def _decoding(mode: str, eos: bool, options: Mapping[str, Any]) -> "DecodingConfig | None":
    from flanjax.errors import FlanjaxError, nearest
    from flanjax.generation.decoding import DecodingConfig

    if mode not in MODES:
        raise FlanjaxError(f"mode is {mode!r}{nearest(mode, MODES)}: it must be one of {', '.join(MODES)}")
    if mode == "generate":
        if not eos:
            raise FlanjaxError("no_eos: it leaves out the end of what is scored, and mode is 'generate'")
        return DecodingConfig(**options)
    if options:
        raise FlanjaxError(
            f"{', '.join(options)}: scoring makes no answers, so there is nothing to choose: leave it out"
        )
    return None


def _require_room(output: Path, needed: int) -> None:
    """Refuses a disk that cannot hold what is carried over, which is less than what will be written."""
    from flanjax.console import byte_size
    from flanjax.files import FileError

    if (free := shutil.disk_usage(output.absolute().parent).free) < needed:
        raise FileError(f"{output}: {byte_size(free)} are free there, and it will be larger than {byte_size(needed)}")


@dataclasses.dataclass(frozen=True)
class _Source:
    """A file of JSON lines; blank ones are no rows."""

    file: str
    sha256: str
    rows: int
    bytes: int

    @classmethod
    def read(cls, path: str | Path) -> "_Source":
        """Counts a file's rows and takes its hash; refuses several files, and one without rows."""
        from flanjax.data.records import RecordsError, read_lines, record_files

        files = record_files(path, (".jsonl", ".ndjson"))
        if len(files) > 1:
            raise RecordsError(f"{path}: {len(files)} files, and one output for all: join them, or give one at a time")
        found, rows, size = hashlib.sha256(), 0, 0
        for _, line in read_lines(files[0]):
            found.update(line)
            rows, size = rows + bool(line.strip()), size + len(line)
        if not rows:
            raise RecordsError(f"{path}: there is no row in it")
        return cls(files[0], found.hexdigest()[:16], rows, size)

    def lines(self) -> Iterator[tuple[int, bytes]]:
        from flanjax.data.records import read_lines

        return ((number, line) for number, line in read_lines(self.file) if line.strip())


def _write(
    file: "ResumableFile", source: _Source, answers: "Answers", window: int, about: Mapping[str, Any], told: "_Progress"
) -> None:
    """Writes what is missing, a window at a time, and gives the file its name."""
    from flanjax.data.records import RecordsError

    so_far: dict[str, Any] = {"rows": 0, "errors": 0, "first_errors": []} | file.progress
    lines = itertools.islice(source.lines(), so_far["rows"], None)
    while chunk := list(itertools.islice(lines, window)):
        answered = answers(chunk, told)
        told.add(len(chunk))
        errors = [row["error"] for row in answered if "error" in row]
        so_far["rows"] += len(chunk)
        so_far["errors"] += len(errors)
        so_far["first_errors"] = [*so_far["first_errors"], *errors][:_TOLD]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in answered)
        # Half of a character, which JSON can say and UTF-8 cannot, stays as JSON says it.
        file.append(text.encode(errors="backslashreplace"), {**so_far, **about})
    if so_far["rows"] != source.rows:
        raise RecordsError(
            f"{source.file} had {source.rows} rows, now {so_far['rows']}: it was changed while it was read"
        )
    file.finish()


class _Progress:
    """Shows how far the rows are and how fast they go: called with rows and tokens of the window that are done."""

    def __init__(self, console: "Console | None", total: int, rows: int):
        self._console, self._total, self._rows, self._before = console, total, rows, rows
        self._tokens = self._of_window = 0
        self._started = time.monotonic()

    def __call__(self, rows: int, tokens: int) -> None:
        self._of_window = tokens
        if self._console is not None:
            seconds, done = max(time.monotonic() - self._started, 1e-3), self._rows + rows
            speed = (done - self._before) / seconds, (self._tokens + tokens) / seconds
            self._console.progress("rows", done, self._total, f"{speed[0]:.2f} rows/s, {speed[1]:.1f} tokens/s")

    def add(self, rows: int) -> None:
        """A window of so many rows is done."""
        self._rows, self._tokens, self._of_window = self._rows + rows, self._tokens + self._of_window, 0
        self(0, 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m flanjax.infer",
        description="Answers or scores each row of a file; the same command goes on after a kill.",
        epilog=f"Exit status: 0 when every row has its answer, {ROWS_FAILED} when the output is whole and some rows "
        "have an error in place of one, 2 when it is not whole, 130 after Ctrl-C.",
    )
    doors.add_model_flags(parser)
    parser.add_argument(
        "--input", required=True, metavar="FILE", help="JSON lines, also compressed (.gz, .bz2, .xz, .zst)"
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="the answers, as JSON lines in the same order")
    parser.add_argument("--mode", default="generate", choices=MODES, help="answers, or log-likelihoods of targets")
    parser.add_argument("--no_eos", action="store_true", help="scores: leave out the end of each target")
    parser.add_argument(
        "--max_length", type=int, metavar="N", help="tokens of input and answer at most (default: the model's)"
    )
    parser.add_argument("--batch_size", type=int, default=16, metavar="N", help="rows that go through it together")
    parser.add_argument(
        "--window",
        type=int,
        metavar="N",
        help="rows sorted and written together (default: 16 batches); a kill costs one",
    )
    doors.add_decoding_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The door: flags in, one call; returns the exit status."""
    flags = _parser().parse_args(argv)
    return doors.run_door(lambda: _main(flags))


def _main(flags: argparse.Namespace) -> int:
    from flanjax.console import Console

    with Console() as console:
        try:
            done = infer(
                flags.model,
                flags.input,
                flags.output,
                mode=flags.mode,
                adapter=flags.adapter,
                step=flags.step,
                eos=not flags.no_eos,
                max_length=flags.max_length,
                batch_size=flags.batch_size,
                window=flags.window,
                mesh=doors.mesh_of(flags),
                console=console,
                **doors.decoding_options(flags),
            )
        except KeyboardInterrupt:
            console.close_progress("rows")
            console.line("the same command goes on from the last whole window")
            raise
        if done.resumed:
            console.line(f"{done.resumed:,} of {done.rows:,} rows were there already")
        console.line(f"wrote {done.output}: {done.rows:,} rows, {done.errors:,} of them with an error")
        console.lines(f"  {error}" for error in done.first_errors)
        if done.errors > len(done.first_errors):
            console.line("  ...")
    return ROWS_FAILED if done.errors else 0


if __name__ == "__main__":
    sys.exit(main())
