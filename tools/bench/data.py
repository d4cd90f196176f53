"""Rows, padding and speed of flanjax's loader, seqio's packing, Grain's packers and plain padding, in turn.

    python tools/bench/data.py

All of them make batches of the same examples, Super-NaturalInstructions with two demonstrations, in the same kind of
random order, into rows of 1024/256 tokens. flanjax reads and plans them from the ArrayRecord cache on the disk; the
others are handed arrays in memory, so that only their packing is measured. tokens/s counts real tokens of both sides.
"""

import dataclasses
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import common

ROW = (1024, 256)
BATCH_ROWS = 8
GRAIN_BINS = 256


@dataclasses.dataclass
class Fill:
    """What went into batches: rows, and real tokens and positions [inputs, targets]."""

    rows: int = 0
    tokens: tuple[int, int] = (0, 0)
    slots: tuple[int, int] = (0, 0)

    @classmethod
    def of(cls, batches: Iterable[tuple[Any, Any]]) -> "Fill":
        """Counts pairs of arrays [rows, length], inputs and targets, that are 0 where there is padding."""
        fill = cls()
        for inputs, targets in batches:
            fill.rows += len(inputs)
            fill.tokens = (fill.tokens[0] + int((inputs != 0).sum()), fill.tokens[1] + int((targets != 0).sum()))
            fill.slots = (fill.slots[0] + inputs.size, fill.slots[1] + targets.size)
        return fill


def build_flanjax(cache_dir: Path, lengths: Any) -> Callable[[], Fill]:
    """One pass of the loader over the cache, opening it included."""
    from flanjax.data.loader import DataConfig, PackedBatches

    config = DataConfig(
        mixture=common.SUPER_NI, cache_dir=str(cache_dir), feature_lengths=lengths, batch_rows=BATCH_ROWS, epochs=1
    )

    def work() -> Fill:
        batches = PackedBatches(config)
        fill = Fill.of((batch["encoder_segment_ids"], batch["decoder_segment_ids"]) for batch in batches)
        batches.close()
        return fill

    return work


def build_seqio(cache_dir: Path) -> Callable[[], Fill]:
    """`seqio.utils.trim_and_pack_dataset`, as T5X trains from it without its custom operations."""
    import os

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import seqio
    import tensorflow as tf

    examples = common.shuffled_examples(cache_dir)
    ragged = {
        name: tf.RaggedTensor.from_row_lengths(
            tf.concat([getattr(example, name) for example in examples], axis=0),
            [len(getattr(example, name)) for example in examples],
        )
        for name in ("inputs", "targets")
    }
    lengths = dict(zip(("inputs", "targets"), ROW, strict=True))
    source = tf.data.Dataset.from_tensor_slices(ragged)

    def work() -> Fill:
        packed = seqio.utils.trim_and_pack_dataset(source, lengths, use_custom_ops=False).batch(BATCH_ROWS)
        batches = packed.prefetch(tf.data.AUTOTUNE).as_numpy_iterator()
        return Fill.of((batch["inputs_segment_ids"], batch["targets_segment_ids"]) for batch in batches)

    return work


def build_grain(cache_dir: Path, packer: str) -> Callable[[], Fill]:
    """A streaming packer of Grain with `GRAIN_BINS` open rows."""
    import grain

    pack = getattr(grain.experimental, packer)
    examples = [{"inputs": e.inputs, "targets": e.targets} for e in common.shuffled_examples(cache_dir)]
    lengths = dict(zip(("inputs", "targets"), ROW, strict=True))

    def work() -> Fill:
        source = grain.MapDataset.source(examples).to_iter_dataset()
        packed = pack(source, length_struct=lengths, num_packing_bins=GRAIN_BINS).batch(BATCH_ROWS)
        return Fill.of((batch["inputs_segment_ids"], batch["targets_segment_ids"]) for batch in packed)

    return work


def build_padding(cache_dir: Path, longest: bool) -> Callable[[], Fill]:
    """An example a row, padded to the longest of its batch or to the whole row."""
    import numpy as np

    examples = common.shuffled_examples(cache_dir)

    def padded(sequences: list[Any], row: int) -> Any:
        width = min(row, max(map(len, sequences))) if longest else row
        return np.stack([np.pad(tokens[:width], (0, width - len(tokens[:width]))) for tokens in sequences])

    def batches() -> Iterator[tuple[Any, Any]]:
        for start in range(0, len(examples), BATCH_ROWS):
            batch = examples[start : start + BATCH_ROWS]
            yield padded([e.inputs for e in batch], ROW[0]), padded([e.targets for e in batch], ROW[1])

    return lambda: Fill.of(batches())


def contenders(cache_dir: Path, cores: int | None) -> list[common.Contender]:
    """All of them, each warmed up by one pass."""
    fixed = dict(zip(("inputs", "targets"), ROW, strict=True))
    built: dict[str, tuple[Any, ...]] = {
        "flanjax, planned": (build_flanjax, cache_dir, fixed),
        "flanjax, row lengths chosen": (build_flanjax, cache_dir, "auto"),
        "seqio": (build_seqio, cache_dir),
        f"Grain first-fit, {GRAIN_BINS} bins": (build_grain, cache_dir, "FirstFitPackIterDataset"),
        f"Grain best-fit, {GRAIN_BINS} bins": (build_grain, cache_dir, "BestFitPackIterDataset"),
        f"padded to the longest of {BATCH_ROWS}": (build_padding, cache_dir, True),
        "padded to the maximum": (build_padding, cache_dir, False),
    }
    return [common.Contender(name, *parts, cores=cores) for name, parts in built.items()]


def print_table(entries: list[common.Contender], seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """A line for each contender; returns their real tokens a second."""
    print(f"{'':32s} {'rows':>6s} {'of':>9s} {'inputs real':>12s} {'targets real':>13s} {'tokens/s':>10s}")
    speeds = {}
    for entry in entries:
        fill: Fill = entry.first_result
        speeds[entry.name] = sum(fill.tokens) / statistics.median(seconds[entry.name])
        share = [tokens / slots for tokens, slots in zip(fill.tokens, fill.slots, strict=True)]
        shape = "/".join(str(slots // fill.rows) for slots in fill.slots)
        print(
            f"{entry.name:32s} {fill.rows:6d} {shape:>9s} {share[0]:12.1%} {share[1]:13.1%} {speeds[entry.name]:10,.0f}"
        )
    return speeds


def step_speed(smoke: bool, cores: int | None) -> float:
    """Tokens a second that flanjax's fastest train step takes in on this machine."""
    import train_step

    shapes = train_step.SMOKE if smoke else train_step.Shapes()
    step = common.Contender("train step", train_step.build_flanjax, shapes, "float32", False, cores=cores)
    seconds = common.in_turn([step], 1 if smoke else 5)["train step"]
    step.close()
    return shapes.tokens / statistics.median(seconds)


def main() -> None:
    parser = common.parser(__doc__)
    common.add_data_flags(parser)
    parser.add_argument("--repetitions", type=int, default=5, help="passes over the data that are timed")
    flags = parser.parse_args()
    print(common.machine(flags.cores))
    common.super_ni_cache(flags.data, flags.cache_dir, tasks=2 if flags.smoke else None)
    entries = contenders(flags.cache_dir, flags.cores)
    seconds = common.in_turn(entries, 1 if flags.smoke else flags.repetitions)
    speeds = print_table(entries, seconds)
    ours, rows = entries[0].name, {entry.name: entry.first_result.rows for entry in entries}
    for entry in entries[2:5]:
        common.print_ratio(speeds[ours] / speeds[entry.name], f"tokens/s: {ours} against {entry.name}")
        common.print_ratio(rows[entry.name] / rows[ours], f"rows needed: {entry.name} against {ours}")
    for entry in entries:
        entry.close()
    consumed = step_speed(flags.smoke, flags.cores)
    print(f"the train step takes {consumed:,.0f} tokens/s")
    common.print_ratio(speeds[ours] / consumed, "tokens/s: the loader against what the train step takes")


if __name__ == "__main__":
    main()
