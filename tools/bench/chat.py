"""Useful tokens a second of chats: packed flanjax against padded transformers, in turn.

    python tools/bench/chat.py --tokenizer=SMOLLM2_FOLDER

Both train SmolLM2-135M's shapes with AdamW on the ShareGPT sample of FastChat, under the tokenizer's own template, each
on at least the given number of conversations. flanjax: loader over the cache, rows of 512 positions, step.
transformers: batches of 8 shuffled conversations, padded to the longest (what the collators of transformers and TRL
do), or all to 512 (what FastChat's own trainer does with the length of its model). A token is useful where it is no
padding.
"""

import dataclasses
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import decoder_step
import train_step
from end_to_end import EXAMPLES_A_BATCH, Work, race

MIXTURE, LENGTH = "sharegpt", 512


def _materialize(conversations: Path, tokenizer: Path, cache_dir: Path) -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from flanjax.data.materialize import materialize
    from flanjax.data.vocabularies import VocabularySource

    materialize(
        mixture=MIXTURE,
        cache_dir=cache_dir,
        vocabulary=VocabularySource(path=str(tokenizer)),
        tasks={"flanjax.tasks.sharegpt": {"data_dir": str(conversations)}},
        splits=("train",),
        chat_template="tokenizer",
    )


def shuffled(cache_dir: Path) -> list[Any]:
    """The conversations in one fixed random order: ids, and for each whether it is learnt."""
    import numpy as np

    from flanjax.data.cache import CachedMixture

    tasks = CachedMixture.open(cache_dir, MIXTURE, "train").tasks
    examples = [example for task in tasks for example in task.read(range(len(task)))]

    def labelled(example: Any) -> tuple[Any, Any]:
        weights = np.ones(len(example.targets)) if example.target_weights is None else example.target_weights
        learnt = np.concatenate([np.zeros(len(example.inputs)), weights]) != 0
        return np.concatenate([example.inputs, example.targets]), learnt

    return [labelled(examples[i]) for i in np.random.default_rng(0).permutation(len(examples))]


def build_flanjax(shapes: decoder_step.Shapes, cache_dir: Path) -> Callable[[], Work]:
    """One batch from the loader and one step."""
    from flanjax.data.loader import DataConfig, PackedBatches

    config = DataConfig(
        mixture=MIXTURE,
        cache_dir=str(cache_dir),
        layout="causal",
        feature_lengths={"tokens": shapes.length},
        batch_rows=shapes.rows,
    )
    batches = PackedBatches(config)
    train = train_step.flanjax_trainer(decoder_step.decoder_config(shapes), "float32", scan=True)

    def work() -> Work:
        batch = next(batches)
        train(batch)
        segments = batch["decoder_segment_ids"]
        examples = int(segments.max(axis=1).sum())
        # A conversation of n tokens takes n - 1 positions.
        return Work(examples, int((segments != 0).sum()) + examples, segments.size + examples)

    return work


def build_transformers(shapes: decoder_step.Shapes, cache_dir: Path, rows: int, to_length: bool) -> Callable[[], Work]:
    """One padded batch and one step."""
    import itertools

    import torch

    train = train_step.transformers_trainer(decoder_step.transformers_llama, shapes, "float32")
    examples = itertools.cycle(shuffled(cache_dir))

    def work() -> Work:
        batch = [(ids[: shapes.length], learnt[: shapes.length]) for ids, learnt in itertools.islice(examples, rows)]
        length = shapes.length if to_length else max(len(ids) for ids, _ in batch)
        inputs = torch.zeros((rows, length), dtype=torch.long)
        mask, labels = torch.zeros_like(inputs), torch.full_like(inputs, -100)
        for row, (ids, learnt) in enumerate(batch):
            tokens = torch.from_numpy(ids.astype("int64"))
            inputs[row, : len(ids)], mask[row, : len(ids)] = tokens, 1
            labels[row, : len(ids)] = torch.where(torch.from_numpy(learnt), tokens, -100)
        train(input_ids=inputs, attention_mask=mask, labels=labels)
        return Work(rows, int(mask.sum()), mask.numel())

    return work


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--tokenizer", type=Path, required=True, help="a Hugging Face folder of a chat model")
    parser.add_argument(
        "--conversations", type=Path, default=common.DATA / "fastchat" / "dummy_conversation.json", help="ShareGPT file"
    )
    parser.add_argument(
        "--cache_dir", type=Path, default=common.ROOT / "runs" / "bench_cache", help="kept between runs"
    )
    parser.add_argument("--examples", type=int, default=240, help="conversations that each loop trains on")
    flags = parser.parse_args()
    print(common.machine(flags.cores))
    shapes = decoder_step.Shapes(length=LENGTH)
    if flags.smoke:
        shapes = dataclasses.replace(decoder_step.SMOKE, vocab=shapes.vocab, length=LENGTH)
    # In a process of its own: what tokenising takes must not weigh on what is measured.
    process = multiprocessing.get_context("spawn").Process(
        target=_materialize, args=(flags.conversations, flags.tokenizer, flags.cache_dir)
    )
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit("materialising failed")
    padded = {"transformers": False, f"transformers to {LENGTH}": True}
    contenders = [
        common.Contender(name, build_transformers, shapes, flags.cache_dir, EXAMPLES_A_BATCH, full, cores=flags.cores)
        for name, full in padded.items()
    ]
    contenders.append(common.Contender("flanjax", build_flanjax, shapes, flags.cache_dir, cores=flags.cores))
    done = race(contenders, 16 if flags.smoke else flags.examples)
    speeds = {}
    for contender in contenders:
        seconds, work = done[contender.name]
        speeds[contender.name] = speed = work.tokens / seconds
        print(
            f"{contender.name:20s} {work.examples:5d} conversations, {work.tokens:7d} useful tokens "
            f"({work.tokens / work.slots:.1%} of the positions) in {seconds:6.1f} s: {speed:7.0f} tokens/s"
        )
        contender.close()
    for name in padded:
        to = f"to {LENGTH}" if padded[name] else "to the longest of 8"
        claim = f"useful tokens/s of chats: flanjax, packed, against transformers, padded {to}"
        common.print_ratio(speeds["flanjax"] / speeds[name], claim)


if __name__ == "__main__":
    main()
