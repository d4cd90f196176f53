"""Text tasks as ordinary seqio tasks, and what is of use to task modules that are written in seqio.

    add_family(flanjax.tasks.dolly.family())        # seqio.get_mixture_or_task("dolly") is there then, for T5X too

seqio's seed reaches the source, which hands it on with each row: the text is that of `flanjax.data.rendering`.
"""

import functools
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from flanjax.data.records import read_json_lines
from flanjax.data.rendering import kept_text, rows_of, texts_of
from flanjax.data.sources import BadRow, report_bad_row, text_field
from flanjax.data.tasks import Family, TextTask

_CHUNK = 128
_ROW = ("row", "number", "place", "split", "seed")


def text_features() -> dict[str, seqio.Feature]:
    """`inputs` and `targets` for a task that leaves the choice of vocabulary to the run.

    Materialising puts the run's vocabulary in place of the bytes; without one the task is an ordinary seqio task over
    bytes.
    """
    return {name: seqio.Feature(vocabulary=seqio.ByteVocabulary(), add_eos=True) for name in ("inputs", "targets")}


def add_task(name: str, **arguments: Any) -> seqio.Task:
    """`seqio.TaskRegistry.add` that replaces a task of the same name."""
    seqio.TaskRegistry.remove(name)
    return seqio.TaskRegistry.add(name, **arguments)


def add_mixture(
    name: str, tasks: Iterable[str] | Mapping[str, Any], *, default_rate: float | None = None
) -> seqio.Mixture | None:
    """`seqio.MixtureRegistry.add` that replaces a mixture of the same name.

    `tasks` are names, or names with rates. seqio has no empty mixtures: without tasks, nothing has the name afterwards.
    """
    seqio.MixtureRegistry.remove(name)
    rated = list(tasks.items()) if isinstance(tasks, Mapping) else list(tasks)
    return seqio.MixtureRegistry.add(name, rated, default_rate=default_rate) if rated else None


def add_family(family: Family) -> None:
    """Puts the tasks and mixtures of a family into seqio's registry, in place of what has their names."""
    for task in family.tasks:
        add_task(
            task.name,
            source=seqio.FunctionDataSource(
                functools.partial(_rows_dataset, task=task),
                splits=task.splits,
                num_input_examples=dict(task.examples) or None,
            ),
            preprocessors=[Rendered(task), seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
            output_features=text_features(),
            postprocess_fn=references,
            metric_fns=list(task.metric_fns),
        )
    for name, rates in family.mixtures.items():
        by_size = seqio.mixing_rate_num_examples
        add_mixture(name, {task: by_size if rate is None else rate for task, rate in rates.items()})


def references(output: str, *, example: Mapping[str, Any] | None = None, is_target: bool = False) -> Any:
    """A seqio postprocessor: all accepted answers of a target, the text of a prediction."""
    if not is_target or example is None:
        return output
    accepted = example["references"]
    return [text.decode() for text in (accepted.tolist() if accepted.ndim else [accepted.item()])]


class Rendered:
    """The seqio preprocessor of a text task: rows in; `inputs`, `targets`, `references` and `id` out."""

    def __init__(self, task: TextTask) -> None:
        self.task = task

    def __call__(self, dataset: tf.data.Dataset, output_features: Mapping[str, seqio.Feature]) -> tf.data.Dataset:
        """Renders each row; a row that the task leaves out is gone."""
        tokenizer = output_features["inputs"].vocabulary

        def in_python(row: bytes, number: bytes, place: bytes, split: bytes, seed: bytes) -> tuple[Any, ...]:
            numbered = (int(number), place.decode(), json.loads(row))
            texts = texts_of(self.task, split.decode(), [numbered], seed=int(seed), tokenizer=tokenizer)
            for number_, text in texts:
                kept = kept_text(self.task, split.decode(), number_, text)
                accepted = np.array([reference.encode() for reference in kept["references"]], dtype=object)
                return True, text.inputs.encode(), text.targets.encode(), accepted, kept["id"].encode()
            return False, b"", b"", np.array([], dtype=object), b""

        def render(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            """A row's texts, rendered by the family's own Python."""
            arguments = [example[name] for name in _ROW]
            kinds = (tf.bool, tf.string, tf.string, tf.string, tf.string)
            kept, inputs, targets, accepted, identity = tf.numpy_function(in_python, arguments, kinds)
            return {
                "kept": tf.ensure_shape(kept, []),
                "inputs": tf.ensure_shape(inputs, []),
                "targets": tf.ensure_shape(targets, []),
                "references": tf.ensure_shape(accepted, [None]),
                "id": tf.ensure_shape(identity, []),
            }

        def without_mark(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            return {name: value for name, value in example.items() if name != "kept"}

        return dataset.map(render).filter(lambda example: example["kept"]).map(without_mark)


def _rows_dataset(split: str, shuffle_files: bool, seed: int | None = None, *, task: TextTask) -> tf.data.Dataset:
    del shuffle_files  # what reads the dataset shuffles

    def rows() -> Iterator[dict[str, str]]:
        for number, place, row in rows_of(task, split, seed=seed or 0):
            values = (json.dumps(row), str(number), place, split, str(seed or 0))
            yield dict(zip(_ROW, values, strict=True))

    return string_dataset(rows, _ROW)


def string_dataset(rows: Callable[[], Iterator[Mapping[str, str]]], fields: Sequence[str]) -> tf.data.Dataset:
    """A dataset of string scalars from a generator of rows that have these fields.

    Rows cross into TensorFlow by the hundred, which is twenty times as fast as one by one.
    """

    def chunks() -> Iterator[dict[str, list[str]]]:
        remaining = rows()
        while chunk := list(itertools.islice(remaining, _CHUNK)):
            yield {name: [row[name] for row in chunk] for name in fields}

    signature = dict.fromkeys(fields, tf.TensorSpec([None], tf.string))
    return tf.data.Dataset.from_generator(chunks, output_signature=signature).unbatch()


def json_lines(files: Mapping[str, str | Path], *, fields: Sequence[str]) -> seqio.FunctionDataSource:
    """A seqio source over JSON-lines files, one a split; every field is a string.

    Args:
        files: file of each split; .gz is unpacked.
        fields: what every row must have; other keys of a row are ignored.
    """
    paths = {split: Path(file) for split, file in files.items()}
    return seqio.FunctionDataSource(
        functools.partial(_json_lines_dataset, files=paths, fields=tuple(fields)), splits=tuple(paths)
    )


def _json_lines_dataset(
    split: str, shuffle_files: bool, seed: int | None = None, *, files: Mapping[str, Path], fields: tuple[str, ...]
) -> tf.data.Dataset:
    del shuffle_files, seed  # the loader shuffles

    def rows() -> Iterator[dict[str, str]]:
        for place, row in read_json_lines(files[split]):
            try:
                example = {name: text_field(row, name, place) for name in fields}
            except BadRow as error:
                report_bad_row(error)
            else:
                yield example

    if not files[split].is_file():
        raise BadRow(f"{files[split]}, the {split!r} split, is not there")
    return string_dataset(rows, fields)
