"""The demo: instruction tasks that the project makes itself, small enough for a tiny T5 to learn in minutes.

Mixtures: `demo` (19 tasks, train and validation) and `demo_heldout` (one task that is never trained on, validation
only: `who_lives` asks the question of `who_has` about the facts of `where_lives`). Training text mixes zero-shot,
few-shot and chain-of-thought prompts; validation text is zero-shot, and its `references` are the bare answer.
"""

import functools
from collections.abc import Iterator

import seqio
import tensorflow as tf
from flanjax.tasks.demo_instances import GENERATORS, instance
from flanjax.tasks.demo_prompts import PROMPTS
from flanjax.tasks.scoring import exact_match, references

from flanjax.data.prompts import render_prompts
from flanjax.data.registry import add_mixture, add_task, text_features
from flanjax.data.sources import string_dataset

HELD_OUT = "who_lives"
EASY = ("demo_convert_units", "demo_extract_email", "demo_opposite")  # half the rate is enough to learn these
EXEMPLARS = 64  # solved training instances that few-shot prompts draw from


def register(train_examples: int = 1800, validation_examples: int = 64) -> None:
    """Registers the demo's tasks, named `demo_<task>`, and its two mixtures.

    Args:
        train_examples: training instances of each task.
        validation_examples: validation instances of each task, none of which occurs in training.
    """
    for task in GENERATORS:
        sizes = {"train": train_examples, "validation": validation_examples}
        if task == HELD_OUT:
            del sizes["train"]
        fields = sorted(instance(task, "train", 0))
        add_task(
            f"demo_{task}",
            source=seqio.FunctionDataSource(
                functools.partial(_instances, task=task, fields=fields, sizes=sizes),
                splits=tuple(sizes),
                num_input_examples=sizes,
            ),
            preprocessors=[
                render_prompts(PROMPTS[task], fields=fields, pool=functools.partial(_exemplars, task)),
                seqio.preprocessors.tokenize,
                seqio.preprocessors.append_eos,
            ],
            output_features=text_features(),
            postprocess_fn=references,
            metric_fns=[exact_match],
        )
    trained = [f"demo_{task}" for task in GENERATORS if task != HELD_OUT]
    add_mixture("demo", {name: 0.5 if name in EASY else 1.0 for name in trained})
    add_mixture("demo_heldout", [f"demo_{HELD_OUT}"], default_rate=1.0)


def _instances(
    split: str, shuffle_files: bool, seed: int | None = None, *, task: str, fields: list[str], sizes: dict[str, int]
) -> tf.data.Dataset:
    """The rows of one split; instances depend on their index alone, so shuffling and the seed have no say here."""
    del shuffle_files, seed

    def rows() -> Iterator[dict[str, str]]:
        for index in range(sizes[split]):
            row = instance(task, split, index)
            yield {**row, "split": split, "id": f"demo_{task}-{split}-{index}", "references": row["answer"]}

    return string_dataset(rows, [*fields, "split", "id", "references"])


def _exemplars(task: str) -> list[dict[str, str]]:
    return [instance(task, "train", index) for index in range(EXEMPLARS)]
