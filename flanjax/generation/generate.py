"""Answers of a model of either kind: greedy, drawn, or found by beam search, with a key-value cache.

    generate(config, compute, params, [[5, 6, 1], [7, 1]], DecodingConfig(temperature=0.8, num_samples=2, seed=1))
    # -> [[8, 9], [8, 4, 4], [4], [2, 9]]: two samples of the first input, two of the second

Token by token it is the `Engine` that answers, beams are a search of their own. A row sees only itself, and what is
drawn for it follows from the seed, its own ids and the number of the sample: its neighbours and the order do not change
its answer.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np

from flanjax.generation import beam
from flanjax.generation.batches import PAD_ID, Tokens, batches, behind_prompts, length_bucket, padded, row_bucket
from flanjax.generation.decoding import DecodingConfig
from flanjax.generation.engine import Engine, Piece, Request
from flanjax.generation.sampling import sample_numbers
from flanjax.generation.stopping import Decode
from flanjax.models.config import Compute
from flanjax.models.decoder import require_positions
from flanjax.models.decoder_config import DecoderConfig
from flanjax.models.model import ModelConfig
from flanjax.models.parameters import Params
from flanjax.sharding.rules import mesh_of

OnText = Callable[[int, int, str], None]  # number of the input, number of the sample, more of its text


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

    What is too much for the memory is made with fewer rows at once (`Engine`).

    Arguments:
      config: the model, with what tuning methods added to it: adapters apply as they are.
      compute: how to run it.
      params: its parameters; over the mesh that they lie on the rows of a batch are spread.
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
    if decoding.num_beams > 1:
        if on_text:
            raise ValueError("beam search has no text before its end: leave out on_text or num_beams")
        found = beam_search(
            config, compute, params, inputs, decoding, prefix_lm=prefix_lm, prompts=prompts, batch_rows=batch_rows
        )
        return [hypothesis.ids for hypotheses in found for hypothesis in hypotheses]
    requests = answers(
        config,
        compute,
        params,
        inputs,
        decoding,
        decode=decode if decoding.stop or on_text else None,
        on_text=on_text,
        prefix_lm=prefix_lm,
        prompts=prompts,
        batch_rows=batch_rows,
    )
    return [request.ids for request in requests]


def answers(
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
    logprobs: int | None = None,
) -> list[Request]:
    """The answers of `generate` without beams, each with what the engine tells of it: text, end, log-probabilities.

    Arguments beside those of `generate`:
      logprobs: as `Engine.submit` has it.

    Raises:
      ValueError: as `generate`, or beams.
      ModelConfigError: as `generate`.
    """
    whole = behind_prompts(config, inputs, prompts)
    if isinstance(config, DecoderConfig):
        # Before any of them is answered.
        require_positions(config, max(map(len, whole), default=0) + decoding.max_new_tokens)
    slots = row_bucket(max(min(len(inputs), batch_rows), 1)) * decoding.num_samples
    engine = Engine(config, compute, params, slots=slots, decode=decode, prefix_lm=prefix_lm)
    requests: dict[tuple[int, int], Request] = {}
    numbers = sample_numbers(whole, decoding.num_samples)
    for i in sorted(range(len(inputs)), key=lambda i: len(inputs[i])):
        for sample, number in enumerate(numbers[i]):
            show = functools.partial(_show, on_text, i, sample) if on_text else None
            prompt = prompts[i] if prompts else 0
            requests[i, sample] = engine.submit(
                inputs[i], decoding, sample=number, prompt=prompt, logprobs=logprobs, on_piece=show
            )
    while engine.run_once():
        for request in requests.values():
            if request.error is not None:
                raise request.error
    return [requests[i, sample] for i in range(len(inputs)) for sample in range(decoding.num_samples)]


def _show(on_text: OnText, row: int, sample: int, piece: Piece) -> None:
    if piece.text:
        on_text(row, sample, piece.text)


def beam_search(
    config: ModelConfig,
    compute: Compute,
    params: Params,
    inputs: Sequence[Tokens],
    decoding: DecodingConfig,
    *,
    prefix_lm: bool = False,
    prompts: Sequence[int] | None = None,
    batch_rows: int = 16,
) -> list[list[beam.Hypothesis]]:
    """The best `num_samples` hypotheses of each input with their worth, falling; arguments as `generate`.

    Raises:
      ValueError: as `generate`.
      ModelConfigError: as `generate`.
    """
    inputs = behind_prompts(config, inputs, prompts)
    of_decoder = isinstance(config, DecoderConfig)
    if isinstance(config, DecoderConfig):
        require_positions(config, max(map(len, inputs), default=0) + decoding.max_new_tokens)
    found: list[list[beam.Hypothesis]] = [[] for _ in inputs]
    for chosen in batches([len(ids) for ids in inputs], batch_rows):
        read = padded([inputs[i] for i in chosen], row_bucket(len(chosen)))
        room = length_bucket(decoding.max_new_tokens)
        with mesh_of(params):
            ids, worths = beam.search(config, compute, params, *read, decoding, max_length=room, prefix_lm=prefix_lm)
        for i, rows, values in zip(chosen, ids, worths, strict=False):
            for row, worth in zip(rows, values, strict=True):
                made = _until_eos(row, decoding.eos_ids)
                # T5's padding is no word of its own; a decoder's id 0 may be one.
                kept = [token for token in made if of_decoder or token != PAD_ID]
                found[i].append(beam.Hypothesis(kept, float(worth), "stop" if len(made) < len(row) else "length"))
    return found


def _until_eos(ids: np.ndarray, eos_ids: Sequence[int]) -> list[int]:
    ended = np.flatnonzero(np.isin(ids, eos_ids))
    return ids[: ended[0] if len(ended) else len(ids)].tolist()
