"""Real tokens a second of whole training loops: packed flanjax against padded transformers, in turn.

    python tools/bench/end_to_end.py

Both train T5 v1.1-small with AdamW and dropout on Super-NaturalInstructions with two demonstrations, each on at least
the given number of examples. flanjax: loader over the cache, packed rows whose lengths it chooses, step. transformers:
batches of 8 shuffled examples, padded to the longest, as its collator for sequence-to-sequence models does.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import train_step

EXAMPLES_A_BATCH = 8


@dataclasses.dataclass
class Work:
    """What one update, or several, trained on: examples, real tokens and positions of both sides."""

    examples: int = 0
    tokens: int = 0
    slots: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.examples + other.examples, self.tokens + other.tokens, self.slots + other.slots)


def build_flanjax(shapes: train_step.Shapes, cache_dir: Path, rows: int) -> Callable[[], Work]:
    """One batch from the loader and one step."""
    from flanjax.data.loader import DataConfig, PackedBatches

    batches = PackedBatches(DataConfig(mixture=common.SUPER_NI, cache_dir=str(cache_dir), batch_rows=rows))
    train = train_step.flanjax_trainer(train_step.t5_config(shapes), "float32", scan=False)

    def work() -> Work:
        batch = next(batches)
        train(batch)
        encoder, decoder = batch["encoder_segment_ids"], batch["decoder_segment_ids"]
        tokens = int((encoder != 0).sum() + (decoder != 0).sum())
        return Work(int(encoder.max(axis=1).sum()), tokens, encoder.size + decoder.size)

    return work


def build_transformers(shapes: train_step.Shapes, cache_dir: Path, rows: int) -> Callable[[], Work]:
    """One padded batch and one step."""
    import itertools

    import torch
    from torch.nn.utils.rnn import pad_sequence

    train = train_step.transformers_trainer(train_step.transformers_t5, shapes, "float32")
    examples = itertools.cycle(common.shuffled_examples(cache_dir))

    def padded(sequences: list[Any], value: int) -> torch.Tensor:
        return pad_sequence([torch.from_numpy(s.astype("int64")) for s in sequences], True, value)

    def work() -> Work:
        batch = list(itertools.islice(examples, rows))
        inputs, labels = padded([e.inputs for e in batch], 0), padded([e.targets for e in batch], -100)
        train(input_ids=inputs, attention_mask=(inputs != 0).long(), labels=labels)
        tokens = sum(len(e.inputs) + len(e.targets) for e in batch)
        return Work(len(batch), tokens, inputs.numel() + labels.numel())

    return work


def race(contenders: list[common.Contender], examples: int) -> dict[str, tuple[float, Work]]:
    """Lets the one that has seen fewer examples make the next update, until each has seen enough of them."""
    done = {contender.name: (0.0, Work()) for contender in contenders}
    while True:
        behind = min(contenders, key=lambda contender: done[contender.name][1].examples)
        if done[behind.name][1].examples >= examples:
            return done
        seconds, work = behind.run()
        done[behind.name] = (done[behind.name][0] + seconds, done[behind.name][1] + work)


def main() -> None:
    parser = common.parser(__doc__)
    common.add_data_flags(parser)
    parser.add_argument("--examples", type=int, default=160, help="examples that each loop trains on")
    parser.add_argument("--rows", type=int, default=3, help="packed rows of an update of flanjax")
    flags = parser.parse_args()
    print(common.machine(flags.cores))
    common.super_ni_cache(flags.data, flags.cache_dir, tasks=2 if flags.smoke else None)
    shapes = train_step.Shapes()
    if flags.smoke:
        shapes = dataclasses.replace(train_step.SMOKE, vocab=shapes.vocab)
    contenders = [
        common.Contender(
            "transformers", build_transformers, shapes, flags.cache_dir, EXAMPLES_A_BATCH, cores=flags.cores
        ),
        common.Contender("flanjax", build_flanjax, shapes, flags.cache_dir, flags.rows, cores=flags.cores),
    ]
    done = race(contenders, 16 if flags.smoke else flags.examples)
    for contender in contenders:
        seconds, work = done[contender.name]
        real, speed = work.tokens / work.slots, work.tokens / seconds
        print(
            f"{contender.name:14s} {work.examples:5d} examples, {work.tokens:7d} real tokens ({real:.1%} of the "
            f"positions) in {seconds:6.1f} s: {speed:7.0f} tokens/s"
        )
        contender.close()
    speeds = {name: work.tokens / seconds for name, (seconds, work) in done.items()}
    claim = "real tokens/s of the whole loop: flanjax, packed, against transformers, padded"
    common.print_ratio(speeds["flanjax"] / speeds["transformers"], claim)


if __name__ == "__main__":
    main()
