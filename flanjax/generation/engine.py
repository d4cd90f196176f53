"""Continuous batching: requests come and go while others are decoded, and each is answered as if it were alone.

    engine = Engine(config, compute, params, slots=16, decode=vocabulary.decode)
    request = engine.submit([5, 6, 1], DecodingConfig(temperature=0.8, seed=1), on_piece=print)
    while engine.run_once():
        pass
    request.text, request.finish            # ("Four.", "stop")

A slot is a row of the key-value cache. A waiting request takes a free slot, is read by a program for inputs of its
length, and goes on with its neighbours, token by token, in a program whose rows each have their own position, sampling
values and limit. `submit` and `cancel` may be called from any thread, `run_once` from one at a time.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

from flanjax.generation.batches import Tokens
from flanjax.generation.decoding import DecodingConfig
from flanjax.generation.stopping import Decode
from flanjax.models.config import Compute
from flanjax.models.model import ModelConfig
from flanjax.models.parameters import Params

Finish = Literal["stop", "length"]


class TokenLogprob(NamedTuple):
    """How likely a token was by the model's own distribution, before temperature, penalties and what is cut off.

    Attributes:
      logprob: natural logarithm of its probability.
      top: ids and natural logarithms of the likeliest tokens, falling; as many as the request asked for.
    """

    logprob: float
    top: tuple[tuple[int, float], ...]


class Piece(NamedTuple):
    """What an answer has more than before.

    Attributes:
      tokens: ids, without EOS.
      text: what no later token can change; the pieces' texts together are the request's.
      logprobs: of each of the tokens, where the request asks for them.
      finish: in the last piece, "stop" for EOS or a stop text and "length" for the limit; None before.
    """

    tokens: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprob, ...]
    finish: Finish | None


OnPiece = Callable[[Piece], None]


@dataclasses.dataclass(eq=False)
class Request:
    """A submitted input and its answer so far; made by `Engine.submit` and changed by `run_once` alone.

    Attributes:
      done: whether nothing more will come.
      ids: the answer without EOS; where a stop text ended it, the last token is the one that completed that text.
      text: the answer in words, cut before a stop text; "" for an engine without `decode`.
      finish: as in `Piece`; None before the end, for a cancelled request and for one that failed.
      logprobs: of each of `ids`, where they were asked for.
      error: what `on_piece` or `decode` raised; it ends this request alone.
    """

    done: bool = False
    ids: list[int] = dataclasses.field(default_factory=list)
    text: str = ""
    finish: Finish | None = None
    logprobs: list[TokenLogprob] = dataclasses.field(default_factory=list)
    error: Exception | None = None


class Engine:
    """Decodes any number of requests, `slots` at a time.

    Attributes:
      steps: tokens' worth of steps that all rows have gone together.

    Arguments:
      config: the model, with what tuning methods added to it: adapters apply as they are.
      compute: how to run it.
      params: its parameters; on a mesh, with `jax.set_mesh`, the slots are spread over it.
      slots: rows decoded together.
      decode: makes text of token ids; needed for stop texts and for the text of pieces.
      prefix_lm: whether a decoder's inputs all see each other, as it was trained.
    """

    steps: int

    def __init__(
        self,
        config: ModelConfig,
        compute: Compute,
        params: Params,
        *,
        slots: int = 16,
        decode: Decode | None = None,
        prefix_lm: bool = False,
    ):
        raise NotImplementedError

    def submit(
        self,
        ids: Tokens,
        decoding: DecodingConfig,
        *,
        sample: int = 0,
        prompt: int = 0,
        logprobs: int | None = None,
        on_piece: OnPiece | None = None,
    ) -> Request:
        """Queues an input, from any thread. What is drawn follows from the seed, the ids and `sample` alone.

        Arguments:
          ids: BOS or EOS included where the model expects one; a decoder's are not empty.
          decoding: one answer's; `num_samples` is not looked at, each sample is a request.
          sample: the number of the sample, as `generate` counts them.
          prompt: the number of the learnt prompt, for a model with one for each task.
          logprobs: how many of the likeliest tokens are given with each token's own log-probability; None for neither.
          on_piece: is given each piece, in the thread of `run_once`; with it every token is handed out as it comes.

        Raises:
          ValueError: beams; stop texts without `decode`; an empty input of a decoder, or a number of a prompt that
            there is not.
          ModelConfigError: the longest answer would be beyond the positions that a decoder has.
        """
        raise NotImplementedError

    def cancel(self, request: Request) -> None:
        """Lets go of a request, from any thread: it is `done`, without a `finish`, and gets no further piece."""
        raise NotImplementedError

    def run_once(self) -> bool:
        """Admits waiting requests into free slots, advances all, hands out pieces; False when nothing is under way."""
        raise NotImplementedError
