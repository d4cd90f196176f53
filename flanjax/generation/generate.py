"""Answers of a model of either kind: greedy, drawn, or found by beam search, with a key-value cache.

    generate(config, compute, params, [[5, 6, 1], [7, 1]], DecodingConfig(temperature=0.8, num_samples=2, seed=1))
    # -> [[8, 9], [8, 4, 4], [4], [2, 9]]: two samples of the first input, two of the second

Two programs for each shape: one reads the inputs, one goes on token by token until all rows have ended or the host
wants to look (for stop texts, or to show what is there). A row sees only itself, and what is drawn for it follows from
the seed, its own ids and the number of the sample: its neighbours, the batch and the order do not change its answer.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from flanjax.generation import beam
from flanjax.generation.batches import PAD_ID, Tokens, batches, behind_prompts, length_bucket, padded, row_bucket
from flanjax.generation.cache import Cache, prefill, step
from flanjax.generation.decoding import DecodingConfig
from flanjax.generation.sampling import Processors, choose, row_keys, row_numbers
from flanjax.generation.stopping import Decode, OnText, Watch
from flanjax.models.config import Compute
from flanjax.models.decoder import require_positions
from flanjax.models.decoder_config import DecoderConfig
from flanjax.models.model import ModelConfig, build
from flanjax.models.parameters import Params
from flanjax.sharding.rules import constrain


class State(NamedTuple):
    """A decoding under way; `step` tokens of each row's answer are in `output`."""

    step: Int[Array, ""]
    position: Int[Array, ""]  # where the last token enters the cache
    last: Int[Array, " rows"]
    done: Bool[Array, " rows"]
    output: Int[Array, "rows max_length"]  # ends in EOS where a row ended, padding after it
    cache: Cache
    keys: Array | None  # of each row, where tokens are drawn
    seen: Bool[Array, "rows vocab"] | None  # where repetition is penalized


@functools.partial(
    jax.jit, static_argnames=("config", "compute", "max_length", "prefix_lm", "num_samples", "remembers")
)
def _start(
    config: ModelConfig,
    compute: Compute,
    params: Params,
    tokens: Int[Array, "batch length"],
    segments: Int[Array, "batch length"],
    numbers: Int[Array, "rows 2"] | None,
    seed: Int[Array, ""],
    *,
    max_length: int,
    prefix_lm: bool,
    num_samples: int,
    remembers: bool,
) -> State:
    """The inputs read, `num_samples` rows for each, and no token decoded."""
    model = build(config, compute, params)
    start = prefill(model, tokens, segments, max_length, prefix_lm=prefix_lm).repeated(num_samples)
    return State(
        step=jnp.int32(0),
        position=start.position,
        last=start.last,
        done=start.empty,
        output=jnp.full((len(start.last), max_length), PAD_ID, jnp.int32),
        cache=start.cache,
        keys=None if numbers is None else row_keys(seed, numbers),
        seen=start.seen if remembers else None,
    )


@functools.partial(jax.jit, static_argnames=("config", "compute"), donate_argnames=("state",))
def _advance(
    config: ModelConfig,
    compute: Compute,
    params: Params,
    state: State,
    processors: Processors,
    stopped: Bool[Array, " rows"],
    until: Int[Array, ""],
    eos_ids: Int[Array, " eos"],
) -> State:
    """Tokens until `until` of them are there, or all rows have ended or are `stopped`."""
    model = build(config, compute, params)

    def unfinished(state: State) -> Bool[Array, ""]:
        return (state.step < until) & ~state.done.all()

    def extend(state: State) -> State:
        logits, cache = step(model, state.last, state.position, state.cache)
        drawn = choose(processors(logits, state.seen), state.keys, state.step)
        token = jnp.where(state.done, PAD_ID, drawn)
        seen = None if state.seen is None else state.seen.at[jnp.arange(len(token)), token].set(True)
        return state._replace(
            step=state.step + 1,
            position=state.position + 1,
            last=token,
            done=state.done | jnp.isin(token, eos_ids),
            output=state.output.at[:, state.step].set(token),
            cache=cache,
            seen=seen,
        )

    state = jax.lax.while_loop(unfinished, extend, state._replace(done=state.done | stopped))
    # Whole on every host, as each of them reads these.
    return state._replace(output=constrain(state.output, None, None), done=constrain(state.done, None))


class _Batch(NamedTuple):
    """Inputs of like length, and how they are run."""

    config: ModelConfig
    compute: Compute
    params: Params
    tokens: np.ndarray
    segments: np.ndarray


def _answer(
    batch: _Batch, decoding: DecodingConfig, numbers: np.ndarray, watch: Watch, *, prefix_lm: bool
) -> list[Tokens]:
    """What is decoded token by token, `num_samples` answers for each row of the batch."""
    rows, limit = decoding.num_samples * len(batch.tokens), decoding.max_new_tokens
    processors, eos_ids = Processors.of(decoding), np.array(decoding.eos_ids, np.int32)
    how = {"max_length": length_bucket(limit), "prefix_lm": prefix_lm, "num_samples": decoding.num_samples}
    drawn = numbers if decoding.temperature else None
    remembers = processors.repetition_penalty is not None
    state = _start(*batch, drawn, np.uint32(decoding.seed), **how, remembers=remembers)
    reached, stopped = 0, np.zeros(rows, bool)
    while True:
        reached = min(reached + (watch.steps or limit), limit)
        state = _advance(*batch[:3], state, processors, stopped, np.int32(reached), eos_ids)
        output, done = np.asarray(state.output)[:, :reached], np.asarray(state.done) | (reached == limit)
        watch.look([_until_eos(ids, decoding.eos_ids) for ids in output[: len(watch.tokens)]], done.tolist())
        stopped[: len(watch.tokens)] = watch.stopped
        if (done | stopped).all():
            return watch.tokens


def _until_eos(ids: np.ndarray, eos_ids: Sequence[int]) -> list[int]:
    ended = np.flatnonzero(np.isin(ids, eos_ids))
    return ids[: ended[0] if len(ended) else len(ids)].tolist()


def generate(
    config: ModelConfig,
    compute: Compute,
    params: Params,
    inputs: Sequence[Tokens],
    decoding: DecodingConfig,
    *,
    decode: Decode | None = None,
    on_text: OnText | None = None,
    prefix_lm: bool = False,
    prompts: Sequence[int] | None = None,
    batch_rows: int = 16,
) -> list[list[int]]:
    """Answers to inputs of any lengths. An encoder-decoder answers its inputs, a decoder goes on from them.

    Arguments:
      config: the model, with what tuning methods added to it: adapters apply as they are.
      compute: how to run it.
      params: its parameters; on a mesh, with `jax.set_mesh`, the rows of a batch are spread over it.
      inputs: token ids, BOS or EOS included where the model expects one; a decoder's are not empty.
      decoding: how tokens are chosen and where answers end.
      decode: makes text of token ids; needed for stop texts and `on_text`.
      on_text: is given each piece of text as soon as no later token can change it, with the numbers of its input and
        sample: `lambda i, sample, piece: print(piece, end="", flush=True)`. Looks after every token.
      prefix_lm: whether a decoder's inputs all see each other, as it was trained.
      prompts: for a model with a learnt prompt for each task (`config.prompt_tasks`), the number of each input's.
      batch_rows: inputs answered together; each of them is `num_samples` or `num_beams` rows of the cache.

    Returns:
      Lists of ids, `num_samples` for each input next to each other (beams by falling worth), up to and without EOS,
      without padding. Where a stop text ended an answer, its last token is the one that completed that text:
      `stopping.before_stop` cuts the text.

    Raises:
      ValueError: not as many numbers of prompts as inputs, or one that there is not; an empty input of a decoder;
        stop texts or `on_text` without `decode`; `on_text` for beams, which have no text before their end.
      ModelConfigError: the longest answer would be beyond the positions that a decoder has.
    """
    if decode is None and (decoding.stop or on_text):
        raise ValueError("stop texts and on_text need decode, which makes text of token ids")
    if decoding.num_beams > 1 and on_text:
        raise ValueError("beam search has no text before its end: leave out on_text or num_beams")
    inputs = behind_prompts(config, inputs, prompts)
    of_decoder, samples = isinstance(config, DecoderConfig), decoding.num_samples
    if isinstance(config, DecoderConfig):
        require_positions(config, max(map(len, inputs), default=0) + decoding.max_new_tokens)
    numbers = row_numbers(inputs, samples)
    answers: list[list[int]] = [[] for _ in range(len(inputs) * samples)]
    for chosen in batches([len(ids) for ids in inputs], batch_rows):
        count = row_bucket(len(chosen))
        read = padded([inputs[i] for i in chosen], count, left=of_decoder)
        batch = _Batch(config, compute, params, *read)
        places = [(i, sample) for i in chosen for sample in range(samples)]
        if decoding.num_beams > 1:
            rows = beam.search(*batch, decoding, max_length=length_bucket(decoding.max_new_tokens), prefix_lm=prefix_lm)
            found: list[Tokens] = [_until_eos(ids, decoding.eos_ids) for ids in rows[: len(places)]]
        else:
            own = np.zeros((count, samples, 2), np.uint32)
            own[: len(chosen)] = numbers[chosen]
            watch = Watch(places, decoding.stop, decode, on_text)
            found = _answer(batch, decoding, own.reshape(-1, 2), watch, prefix_lm=prefix_lm)
        for (i, sample), ids in zip(places, found, strict=True):
            # T5's padding is no word of its own; a decoder's id 0 may be one.
            answers[i * samples + sample] = [token for token in ids if of_decoder or token != PAD_ID]
    return answers
