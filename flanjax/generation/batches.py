"""Lists of token ids of any length as batches of a few shapes.

Examples are sorted by length, cut into batches and padded to powers of two and the halves between them, so that a
program is compiled once for each shape and reused.

    padded([[5, 6, 1], [7, 1]], 2)      # [[5, 6, 1, 0, 0, 0, 0, 0], [7, 1, 0, ...]], and 1 on the ids
"""

from collections.abc import Iterator, Sequence

import numpy as np

from flanjax.models.decoder_config import DecoderConfig
from flanjax.models.model import ModelConfig

PAD_ID = 0

Tokens = Sequence[int]


def length_bucket(length: int, smallest: int = 8) -> int:
    """The smallest of 8, 12, 16, 24, 32, 48, ... that holds `length`."""
    size = smallest
    while size < length:
        size = size + size // 2 if size & (size - 1) == 0 else size // 3 * 4
    return size


def row_bucket(rows: int) -> int:
    """The smallest power of two that holds `rows`."""
    return 1 << (rows - 1).bit_length()


def padded(rows: Sequence[Tokens], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of ids as int32 [count, bucket of the longest], and 1 on the ids of each row, 0 on its padding.

    Padding follows the ids, and empty rows fill up the count.
    """
    length = length_bucket(max(map(len, rows)))
    return filled(rows, count, length), filled([[1] * len(ids) for ids in rows], count, length)


def filled(rows: Sequence[Tokens], count: int, length: int) -> np.ndarray:
    """The rows as int32 [count, length], zeros after them."""
    array = np.zeros((count, length), np.int32)
    for row, values in enumerate(rows):
        array[row, : len(values)] = values
    return array


def behind_prompts(config: ModelConfig, inputs: Sequence[Tokens], prompts: Sequence[int] | None) -> Sequence[Tokens]:
    """The inputs behind the placeholders of the model's learnt prompt (`flanjax.models.prompts`), where it has one.

    Raises:
      ValueError: not as many numbers of prompts as inputs, or one that there is not; an empty input of a decoder.
    """
    if isinstance(config, DecoderConfig) and not all(map(len, inputs)):
        raise ValueError("an input without a token: a decoder goes on from one at the least, such as BOS")
    if not config.prompt_length:
        return inputs
    numbers = [0] * len(inputs) if prompts is None and not config.prompt_tasks else prompts
    if numbers is None or len(numbers) != len(inputs):
        raise ValueError(f"{len(inputs)} inputs need as many numbers of prompts, not {numbers}")
    if not set(numbers) <= set(range(max(len(config.prompt_tasks), 1))):
        raise ValueError(f"prompts {sorted(set(numbers))}: the model's are numbered from 0, {config.prompt_tasks}")
    return [[number] * config.prompt_length + list(ids) for number, ids in zip(numbers, inputs, strict=True)]


def batches(lengths: Sequence[int], batch_rows: int) -> Iterator[list[int]]:
    """Indices of examples of like length, at most `batch_rows` at a time."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    for start in range(0, len(order), batch_rows):
        yield order[start : start + batch_rows]
