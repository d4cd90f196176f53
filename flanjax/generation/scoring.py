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
      likeliest: in each of their places, (id, logprob) of the likeliest tokens, falling; as many as were asked for.
    """

    logprobs: tuple[float, ...]
    is_greedy: bool
    likeliest: tuple[tuple[tuple[int, float], ...], ...] = ()

    @property
    def total(self) -> float:
        """The natural-log likelihood of the whole target: 0 of an empty one."""
        return sum(self.logprobs)


class _Told(NamedTuple):
    """What is told of every target token of a batch."""

    logprobs: Float[Array, "batch length"]
    is_best: Bool[Array, "batch length"]
    likeliest_ids: Int[Array, "batch length likeliest"]
    likeliest_logprobs: Float[Array, "batch length likeliest"]


@functools.partial(jax.jit, static_argnames=("config", "compute", "likeliest"))
def _score(
    config: ModelConfig,
    compute: Compute,
    params: Params,
    batch: dict[str, Int[Array, "batch length"]],
    *,
    likeliest: int,
) -> _Told:
    """Of every target token of a batch as in training."""
    model = build(config, compute, params)

    def row(xs: tuple[Array, Array]) -> _Told:
        hidden, targets = xs
        logits = model.logits(hidden)
        chosen, total = (
            jnp.take_along_axis(logits, targets[:, None], axis=1),
            jax.nn.logsumexp(logits, 1, keepdims=True),
        )
        highest, ids = jax.lax.top_k(logits, min(likeliest, logits.shape[1]))
        return _Told((chosen - total)[:, 0], jnp.argmax(logits, axis=1) == targets, ids, highest - total)

    # A row at a time: float32 logits of the whole batch would be its largest array by far.
    told = jax.lax.map(row, (model(batch), batch["decoder_target_tokens"]))
    return _Told(*(constrain(x, *[None] * x.ndim) for x in told))


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
    likeliest: int = 0,
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
      likeliest: how many of the likeliest tokens are told with each token.

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
        told = [np.asarray(x) for x in _score(config, compute, params, packed, likeliest=likeliest)]
        for row, i in enumerate(batch):
            at = np.flatnonzero(packed["decoder_loss_weights"][row])
            logprobs, is_best, ids, values = (x[row, at].tolist() for x in told)
            top = [tuple(zip(*pair, strict=True)) for pair in zip(ids, values, strict=True)]
            scores[i] = Score(tuple(logprobs), all(is_best), tuple(top))
    return scores


def _row_lengths(config: ModelConfig, examples: Sequence[Example]) -> tuple[int, ...]:
    """Rows that hold any of these examples."""
    if isinstance(config, DecoderConfig):
        return (length_bucket(max(len(x.inputs) + len(x.targets) for x in examples)),)
    return tuple(length_bucket(max(len(getattr(x, side)) for x in examples)) for side in ("inputs", "targets"))
