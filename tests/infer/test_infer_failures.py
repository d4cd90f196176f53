"""`python -m flanjax.infer` when something fails: a memory that is not enough, a kill, a full disk, another command."""

import errno
import json
import os
import pkgutil
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest

import flanjax
from flanjax import doors, infer
from flanjax.batch_inference import Answers
from tests.infer.conftest import NEW, SMALL, T5, WAYS, Row, read, run, save, write

pytestmark = pytest.mark.usefixtures("quick_compilation")

# --- a memory that is not enough ------------------------------------------------------------------------------------

# What each way of working gives the device, and how large it is.
PROGRAMS: dict[str, tuple[str, str, Callable[..., int]]] = {
    "reading": ("answers", "flanjax.generation.engine.read", lambda tokens, segments: tokens.size),
    "decoding": ("answers", "flanjax.generation.engine.advance", lambda kept, *more: kept.cache.cross_mask.size),
    "beams": ("beams", "flanjax.generation.beam.search", lambda tokens, *more: tokens.size),
    "scoring": (
        "scores",
        "flanjax.generation.scoring._encoder_decoder_likelihoods",
        lambda rows, asked: rows["inputs"].size,
    ),
}


def fails(monkeypatch: pytest.MonkeyPatch, program: str, error: Exception, most: int) -> list[int]:
    """A program fails for what is larger; the sizes that it fails for."""
    _, path, size = PROGRAMS[program]
    whole, failed = pkgutil.resolve_name(path), []

    def limited(config: Any, compute: Any, params: Any, *given: Any, **how: Any) -> Any:
        if size(*given) > most:
            failed.append(size(*given))
            raise error
        return whole(config, compute, params, *given, **how)

    monkeypatch.setattr(path, limited)
    return failed


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_row_too_large_for_the_memory_takes_no_other_with_it(
    t5: Path, instances: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    rows = [{"input": row["input"], "target": row["output"][0]} for row in instances]
    options = WAYS[PROGRAMS[program][0]] | {"batch_size": 8}
    whole = read(infer.infer(t5, write(tmp_path / "alone.jsonl", rows), tmp_path / "whole", **options).output)
    large = {"input": " ".join(row["input"] for row in rows), "target": "A"}
    source = write(tmp_path / "rows.jsonl", [*rows[:5], large, *rows[5:]])
    error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nMore of it.")
    failed = fails(monkeypatch, program, error, most=512)
    done = infer.infer(t5, source, tmp_path / "out", **options)
    assert len(failed) > 1, "it was tried again, alone"
    found = read(done.output)
    assert found.pop(5) == {**large, "error": done.first_errors[0]}
    assert done.first_errors == (
        "line 6: too much for the memory, even alone (RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.): "
        "shorten it",
    )
    if "score" in whole[0]:
        totals = [[row.pop("score")["total"] for row in each] for each in (found, whole)]
        assert totals[0] == pytest.approx(totals[1], rel=1e-5)
    assert found == whole


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_is_not_the_rows_fault_is_not_written_for_it(
    t5: Path, instances: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    source = write(tmp_path / "rows.jsonl", [{"input": row["input"], "target": "A"} for row in instances])
    for number, error in enumerate((TypeError("a slip"), jax.errors.JaxRuntimeError("INTERNAL: the device is lost"))):
        fails(monkeypatch, program, error, most=0)
        output = tmp_path / f"out{number}"
        with pytest.raises(type(error), match=str(error)):
            infer.infer(t5, source, output, **WAYS[PROGRAMS[program][0]])
        monkeypatch.undo()
        assert not output.exists()
        assert infer.infer(t5, source, output, **WAYS[PROGRAMS[program][0]]).errors == 0


# --- kills and other beginnings -------------------------------------------------------------------------------------


def settings_of(output: Path) -> Path:
    return output.with_name(output.name + ".settings.json")


def partial_of(output: Path) -> Path:
    return output.with_name(output.name + ".partial")


KILLED: dict[str, tuple[str, Row, int]] = {
    "t5": ("t5", {"temperature": 1.0, "seed": 3, "max_new_tokens": 8}, 2),
    "decoder": ("chat", {"temperature": 1.0, "seed": 3, "max_new_tokens": 8}, 1),
    "scores": ("t5", {"mode": "score"}, 1),
}


@pytest.mark.parametrize("which", KILLED)
def test_killed_at_random_moments_equals_uninterrupted(
    request: pytest.FixtureRequest, instances: list[Row], tmp_path: Path, which: str
) -> None:
    folder, options, kills = KILLED[which]
    model: Path = request.getfixturevalue(folder)
    rows = [{"input": row["input"], "target": row["output"][0]} for row in instances]
    seed = random.randrange(10**6)
    print("seed", seed)
    chance = random.Random(seed)
    source, output, whole = write(tmp_path / "rows.jsonl", rows * 24), tmp_path / "out", tmp_path / "whole"
    options = {**options, "batch_size": 4, "window": 4}
    infer.infer(model, source, whole, **options)
    flags = [f"--{name}={value}" for name, value in options.items()]
    command = [
        sys.executable,
        "-m",
        "flanjax.infer",
        f"--model={model}",
        f"--input={source}",
        f"--output={output}",
        *flags,
    ]
    environment, kept = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}, 0
    for _ in range(kills):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
        # Until it has come further: then at any moment, in the middle of a line say.
        while process.poll() is None and (not settings_of(output).exists() or rows_of(output) <= kept):
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kept = rows_of(output)
        with partial_of(output).open("ab") as partial:
            partial.write(b'{"input": "half a li')
    assert kept > 0
    assert not output.exists()
    done = infer.infer(model, source, output, **options)
    assert done.resumed == kept
    assert done.errors == 0, done.first_errors
    assert output.read_bytes() == whole.read_bytes()
    assert not partial_of(output).exists()
    before = output.stat()
    assert infer.infer(model, source, output, **options).resumed == done.rows  # whole, and left alone
    assert output.stat() == before


def rows_of(output: Path) -> int:
    return int(json.loads(settings_of(output).read_text())["progress"]["rows"])


def test_what_was_begun_otherwise_is_refused(
    t5: Path, instances: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = write(tmp_path / "rows.jsonl", instances), tmp_path / "out.jsonl"
    flags = {"model": str(t5), "input": str(source), "output": str(output), "max_new_tokens": "4", "window": "4"}

    def told(**changes: str) -> str:
        assert run(*(f"--{name}={value}" for name, value in {**flags, **changes}.items())) == 2
        return capsys.readouterr().err

    answer, calls = Answers.__call__, []

    def two_windows(self: Answers, *arguments: Any) -> list[Row]:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(1)
        return answer(self, *arguments)

    monkeypatch.setattr(Answers, "__call__", two_windows)
    assert run(*(f"--{name}={value}" for name, value in flags.items())) == doors.INTERRUPTED
    assert "the same command goes on" in capsys.readouterr().out
    monkeypatch.undo()
    another = save(T5, flanjax.load(t5).vocabulary, tmp_path / "another", seed=4)
    rows = write(tmp_path / "other.jsonl", instances[1:])
    begun = partial_of(output).read_bytes()
    for changes, name in (
        ({"max_new_tokens": "5"}, "max_new_tokens"),
        ({"input": str(rows)}, "input"),
        ({"model": str(another)}, "model"),
    ):
        message = told(**changes)
        assert f"was begun with other settings: {name} was" in message
        assert f"to begin anew remove {partial_of(output)}" in message
        assert partial_of(output).read_bytes() == begun
    # How many rows go together is no part of what is asked for.
    assert run(*(f"--{name}={value}" for name, value in {**flags, "window": "3", "batch_size": "2"}.items())) == 0
    assert [row["id"] for row in read(output)] == [row["id"] for row in instances]
    assert "was made with other settings: max_new_tokens was 4 and is 5 now" in told(max_new_tokens="5")


def test_a_disk_that_fills_up_loses_nothing_that_was_whole(
    t5: Path,
    answered: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, output = answered[0], tmp_path / "out"
    flags = (f"--model={t5}", f"--input={source}", f"--output={output}", f"--max_new_tokens={NEW}", *SMALL)
    sync, calls = os.fsync, []

    def fills_up(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 3:  # the first window is two: its lines, and what is known of them
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fills_up)
    assert run(*flags) == 2
    assert "could not be written: the disk is full" in capsys.readouterr().err
    monkeypatch.undo()
    assert rows_of(output) == 5
    assert run(*flags) == 0
    assert output.read_bytes() == answered[1].read_bytes()
