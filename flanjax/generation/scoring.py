"""The log-likelihood of given answers, token by token, for models of either kind.

    scores = score(config, compute, params, [[5, 6, 1], [7, 1]], [[8, 9, 1], [4, 1]])
    scores[0].logprobs, scores[0].total, scores[0].is_greedy    # (-1.5, -0.5, -0.3), -2.3, True

Inputs and targets are lists of token ids of any length. An encoder-decoder answers its inputs, a decoder goes on from
them. A pair sees only itself: its neighbours in the batch, and the padding, do not change its score.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from flanjax.data.cache import Example
from flanjax.data.packing import pack_rows
from flanjax.generation.batches import Tokens, batches, behind_prompts, length_bucket, row_bucket
from flanjax.models.config import Compute
from flanjax.models.decoder_config import DecoderConfig
from flanjax.models.model import ModelConfig, build
from flanjax.models.parameters import Params
from flanjax.sharding.rules import constrain


class Score(NamedTuple):
    """How likely a target is given its input.

    Attributes:
      logprobs: natural-log likelihood of each of the target's tokens after those before it, float32.
      is_greedy: whether each of them is the most likely one in its place; so too where there is none.
    """

    logprobs: tuple[float, ...]
    is_greedy: bool

    @property
    def total(self) -> float:
        """The natural-log likelihood of the whole target: 0 of an empty one."""
        return sum(self.logprobs)


@functools.partial(jax.jit, static_argnames=("config", "compute"))
def _score(
    config: ModelConfig, compute: Compute, params: Params, batch: dict[str, Int[Array, "batch length"]]
) -> tuple[Float[Array, "batch length"], Bool[Array, "batch length"]]:
    """The log-likelihood of every target token, and whether it is the most likely; a batch is as in training."""
    model = build(config, compute, params)

    def row(xs: tuple[Array, Array]) -> tuple[Float[Array, " length"], Bool[Array, " length"]]:
        hidden, targets = xs
        logits = model.logits(hidden)
        chosen = jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
        return chosen - jax.nn.logsumexp(logits, axis=1), jnp.argmax(logits, axis=1) == targets

    # A row at a time: float32 logits of the whole batch would be its largest array by far.
    logprobs, is_best = jax.lax.map(row, (model(batch), batch["decoder_target_tokens"]))
    return constrain(logprobs, None, None), constrain(is_best, None, None)


def score(
    config: ModelConfig,
    compute: Compute,
    params: Params,
    inputs: Sequence[Tokens],
    targets: Sequence[Tokens],
    *,
    prefix_lm: bool = False,
    prompts: Sequence[int] | None = None,
    batch_rows: int = 16,
) -> list[Score]:
    """The log-likelihoods of each target's tokens given its input.

    Arguments:
      config: the model.
      compute: how to run it.
      params: its parameters.
      inputs: token ids; a decoder's are not empty.
      targets: token ids, as many lists as inputs; EOS counts where it is given.
      prefix_lm: as `generate`.
      prompts: as `generate`.
      batch_rows: pairs scored together.

    Raises:
      ValueError: not as many targets, or numbers of prompts, as inputs, or a number that there is not; an empty input
        of a decoder.
    """
    if len(inputs) != len(targets):
        raise ValueError(f"{len(inputs)} inputs but {len(targets)} targets: each input needs its target")
    inputs = behind_prompts(config, inputs, prompts)
    examples = [
        Example(inputs=np.array(x, np.int32), targets=np.array(y, np.int32))
        for x, y in zip(inputs, targets, strict=True)
    ]
    scores = [Score((), True)] * len(inputs)
    for batch in batches([max(len(x.inputs), len(x.targets)) for x in examples], batch_rows):
        rows = [[examples[i]] for i in batch] + [[]] * (row_bucket(len(batch)) - len(batch))
        packed = pack_rows(rows, _row_lengths(config, [examples[i] for i in batch]), prefix_lm=prefix_lm)
        logprobs, is_best = map(np.asarray, _score(config, compute, params, packed))
        for row, i in enumerate(batch):
            at = np.flatnonzero(packed["decoder_loss_weights"][row])
            scores[i] = Score(tuple(logprobs[row, at].tolist()), bool(is_best[row, at].all()))
    return scores


def _row_lengths(config: ModelConfig, examples: Sequence[Example]) -> tuple[int, ...]:
    """Rows that hold any of these examples."""
    if isinstance(config, DecoderConfig):
        return (length_bucket(max(len(x.inputs) + len(x.targets) for x in examples)),)
    return tuple(length_bucket(max(len(getattr(x, side)) for x in examples)) for side in ("inputs", "targets"))
