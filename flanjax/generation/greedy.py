"""The most likely answers of a model of either kind.

    greedy(config, compute, params, [[5, 6, 1], [7, 1]], max_new_tokens=32)          -> [[8, 9], [4]]

An encoder-decoder answers its inputs, a decoder goes on from them. A row sees only itself: its neighbours in the batch,
and the padding, do not change its answer.
"""

from collections.abc import Sequence

from flanjax.generation.batches import Tokens
from flanjax.generation.decoding import EOS_ID, DecodingConfig
from flanjax.generation.generate import generate
from flanjax.models.config import Compute
from flanjax.models.model import ModelConfig
from flanjax.models.parameters import Params


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
