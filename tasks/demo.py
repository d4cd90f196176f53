"""The demo: instruction tasks that the project makes itself, small enough for a tiny T5 to learn in minutes.

Mixtures: `demo` (19 tasks, train and validation) and `demo_heldout` (one task that is never trained on, validation
only: `who_lives` asks the question of `who_has` about the facts of `where_lives`). Training text mixes zero-shot,
few-shot and chain-of-thought prompts; validation text is zero-shot, and its `references` are the bare answer.
"""

import functools
from collections.abc import Iterator

from flanjax.tasks.demo_instances import GENERATORS, instance
from flanjax.tasks.demo_prompts import PROMPTS
from flanjax.tasks.scoring import exact_match

from flanjax.data.tasks import Context, Family, Row, Text, TextTask

HELD_OUT = "who_lives"
EASY = ("demo_convert_units", "demo_extract_email", "demo_opposite")  # half the rate is enough to learn these
EXEMPLARS = 64  # solved training instances that few-shot prompts draw from


def family(train_examples: int = 1800, validation_examples: int = 64) -> Family:
    """The demo's tasks, named `demo_<task>`, and its two mixtures.

    Args:
        train_examples: training instances of each task.
        validation_examples: validation instances of each task, none of which occurs in training.
    """
    tasks = []
    for task in GENERATORS:
        sizes = {"train": train_examples, "validation": validation_examples}
        if task == HELD_OUT:
            del sizes["train"]
        PROMPTS[task].check(sorted(instance(task, "train", 0)))
        source = {split: functools.partial(_instances, task, split, size) for split, size in sizes.items()}
        render = functools.partial(_text, task)
        tasks.append(
            TextTask(name=f"demo_{task}", source=source, render=render, metric_fns=(exact_match,), examples=sizes)
        )
    trained = [f"demo_{task}" for task in GENERATORS if task != HELD_OUT]
    return Family(
        tasks=tasks,
        mixtures={
            "demo": {name: 0.5 if name in EASY else 1.0 for name in trained},
            "demo_heldout": {f"demo_{HELD_OUT}": 1.0},
        },
    )


def _instances(task: str, split: str, size: int, seed: int) -> Iterator[tuple[str, Row]]:
    """The rows of one split; instances depend on their index alone, so the seed has no say here."""
    del seed
    for index in range(size):
        yield f"demo_{task}, {split}: {index}", instance(task, split, index)


def _text(task: str, row: Row, context: Context) -> Text:
    pool = _exemplars(task) if context.split == "train" else None
    inputs, targets = PROMPTS[task].render(row, context.draw, pool)
    return Text(inputs=inputs, targets=targets, references=(row["answer"],))


@functools.cache
def _exemplars(task: str) -> tuple[Row, ...]:
    return tuple(instance(task, "train", index) for index in range(EXEMPLARS))
