"""The most likely answers, and the log-likelihood of given ones, for models of either kind.

    greedy(config, compute, params, [[5, 6, 1], [7, 1]], max_new_tokens=32)          -> [[8, 9], [4]]
    score(config, compute, params, [[5, 6, 1], [7, 1]], [[8, 9, 1], [4, 1]])         -> [-2.3, -0.7]

Both take lists of token ids of any length. An encoder-decoder answers its inputs, a decoder goes on from them. A row
sees only itself: its neighbours in the batch, and the padding, do not change its answer.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from flanjax.data.cache import Example
from flanjax.data.packing import pack_rows
from flanjax.generation.batches import Tokens, batches, behind_prompts, length_bucket, row_bucket
from flanjax.generation.decoding import EOS_ID, DecodingConfig
from flanjax.generation.generate import generate
from flanjax.models.config import Compute
from flanjax.models.decoder_config import DecoderConfig
from flanjax.models.model import ModelConfig, build
from flanjax.models.parameters import Params
from flanjax.sharding.rules import constrain


def greedy(
    config: ModelConfig,
    compute: Compute,
    params: Params,
    inputs: Sequence[Tokens],
    max_new_tokens: int,
    *,
    eos_ids: Sequence[int] = (EOS_ID,),
    prefix_lm: bool = False,
    prompts: Sequence[int] | None = None,
    batch_rows: int = 16,
) -> list[list[int]]:
    """The most likely next token, again and again, until EOS or `max_new_tokens`: the plain case of `generate`.

    Returns:
      One list of ids for each input, in order, up to and without EOS, without padding.

    Raises:
      ValueError: as `generate`.
      ModelConfigError: as `generate`.
    """
    decoding = DecodingConfig(max_new_tokens=max_new_tokens, eos_ids=tuple(eos_ids))
    return generate(
        config, compute, params, inputs, decoding, prefix_lm=prefix_lm, prompts=prompts, batch_rows=batch_rows
    )


@functools.partial(jax.jit, static_argnames=("config", "compute"))
def _score(
    config: ModelConfig, compute: Compute, params: Params, batch: dict[str, Int[Array, "batch length"]]
) -> Float[Array, " batch"]:
    """The summed log-likelihood of each row's weighted targets; a batch is as in training."""
    model = build(config, compute, params)

    def row(xs: tuple[Array, Array, Array]) -> Float[Array, ""]:
        hidden, targets, weights = xs
        logits = model.logits(hidden)
        chosen = jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
        return jnp.sum((chosen - jax.nn.logsumexp(logits, axis=1)) * weights)

    # A row at a time: float32 logits of the whole batch would be its largest array by far.
    rows = (model(batch), batch["decoder_target_tokens"], batch["decoder_loss_weights"])
    return constrain(jax.lax.map(row, rows), None)


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
) -> list[float]:
    """Natural-log likelihood of each target given its input, summed over the target's tokens, in float32.

    Arguments:
      config: the model.
      compute: how to run it.
      params: its parameters.
      inputs: token ids; a decoder's are not empty.
      targets: token ids, as many lists as inputs; EOS counts where it is given.
      prefix_lm: as `greedy`.
      prompts: as `greedy`.
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
    scores = [0.0] * len(inputs)
    for batch in batches([max(len(x.inputs), len(x.targets)) for x in examples], batch_rows):
        rows = [[examples[i]] for i in batch] + [[]] * (row_bucket(len(batch)) - len(batch))
        packed = pack_rows(rows, _row_lengths(config, [examples[i] for i in batch]), prefix_lm=prefix_lm)
        for i, total in zip(batch, np.asarray(_score(config, compute, params, packed)), strict=False):
            scores[i] = float(total)
    return scores


def _row_lengths(config: ModelConfig, examples: Sequence[Example]) -> tuple[int, ...]:
    """Rows that hold any of these examples."""
    if isinstance(config, DecoderConfig):
        return (length_bucket(max(len(x.inputs) + len(x.targets) for x in examples)),)
    return tuple(length_bucket(max(len(getattr(x, side)) for x in examples)) for side in ("inputs", "targets"))
