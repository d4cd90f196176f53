"""Greedy answers to real prompts: tokens per second beside transformers, and the time of the 1st, 101st, ... token.

    python tools/bench/generate.py --model=FLAN_T5_SMALL_FOLDER
    python tools/bench/generate.py --model=SMOLLM2_FOLDER --max_new_tokens=64
    python tools/bench/generate.py --model=SMOLLM2_FOLDER --per_token=512       # one answer, token by token

The prompts are definition and input of Super-NaturalInstructions, one instance of each task after the other, those of
at most `--longest` tokens. Both programs are given the same token ids, answer greedily in float32 up to the same limit
with 16 rows at a time, and must give the same tokens. flanjax is `generate`, whose engine fills a row that has ended
with the next prompt. transformers is `model.generate` on padded batches of 16, once in the order of the prompts and
once sorted by length; its cache and its scaled-dot-product attention are what it chooses by itself.
"""

import itertools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import common

Ids = list[list[int]]


def prompts(folder: Path, data: Path, count: int, longest: int) -> Ids:
    """Token ids of the first prompts that are short enough."""
    import flanjax

    tasks = [json.loads(path.read_text()) for path in sorted((data / common.SUPER_NI / "tasks").glob("*.json"))]
    encode = flanjax.load(folder)._tokens
    found: Ids = []
    for number in range(count):
        for task in tasks:
            if number < len(task["Instances"]):
                text = f"Definition: {task['Definition'][0]}\n\nInput: {task['Instances'][number]['input']}\n\nOutput:"
                (ids,) = encode([text])
                found += [ids] if len(ids) <= longest else []
                if len(found) == count:
                    return found
    return found


def random_prompts(count: int, longest: int, vocab: int) -> Ids:
    """For a tiny model."""
    import numpy as np

    rng = np.random.default_rng(0)
    return [rng.integers(3, vocab, rng.integers(4, longest)).tolist() for _ in range(count)]


def build_flanjax(folder: Path, inputs: Ids, limit: int, rows: int) -> Callable[[], Ids]:
    """All answers."""
    import flanjax
    from flanjax.generation.decoding import DecodingConfig
    from flanjax.generation.generate import generate

    model = flanjax.load(folder)
    decoding = DecodingConfig(max_new_tokens=limit, eos_ids=(model.vocabulary.eos_id,))
    return lambda: generate(model.config, model.compute, model.params, inputs, decoding, batch_rows=rows)


def build_transformers(folder: Path, inputs: Ids, limit: int, rows: int, by_length: bool) -> Callable[[], Ids]:
    """All answers, up to EOS and without padding."""
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    kind = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    model = kind.from_pretrained(folder, dtype=torch.float32).eval()
    eos = model.generation_config.eos_token_id
    order = sorted(range(len(inputs)), key=lambda i: len(inputs[i])) if by_length else range(len(inputs))

    def batch(chosen: Sequence[int]) -> Ids:
        length = max(len(inputs[i]) for i in chosen)
        ids, mask = torch.zeros(2, len(chosen), length, dtype=torch.long)
        for row, i in enumerate(chosen):
            place = slice(len(inputs[i])) if config.is_encoder_decoder else slice(length - len(inputs[i]), length)
            ids[row, place], mask[row, place] = torch.tensor(inputs[i]), 1
        with torch.no_grad():
            made = model.generate(ids, attention_mask=mask, max_new_tokens=limit, do_sample=False, pad_token_id=0)
        made = made[:, 1 if config.is_encoder_decoder else length :].tolist()
        cut = [row[: row.index(eos)] if eos in row else row for row in made]
        return [[token for token in row if token] for row in cut] if config.is_encoder_decoder else cut

    def work() -> Ids:
        answers: Ids = [[] for _ in inputs]
        for start in range(0, len(inputs), rows):
            chosen = order[start : start + rows]
            for i, ids in zip(chosen, batch(chosen), strict=True):
                answers[i] = ids
        return answers

    return work


def build_per_token(folder: Path, ids: list[int], limit: int) -> Callable[[], list[float]]:
    """Seconds that each token of one answer takes."""
    import flanjax
    from flanjax.generation.decoding import DecodingConfig
    from flanjax.generation.engine import Engine

    model = flanjax.load(folder)

    def work() -> list[float]:
        engine, times = Engine(model.config, model.compute, model.params, slots=1), [time.perf_counter()]
        decoding = DecodingConfig(max_new_tokens=limit, eos_ids=())
        engine.submit(ids, decoding, on_piece=lambda piece: times.append(time.perf_counter()))
        while engine.run_once():
            pass
        return [later - earlier for earlier, later in itertools.pairwise(times)]

    return work


def compare(arguments: Any, folder: Path, inputs: Ids) -> None:
    """Tokens per second of all, in turn, and how many of their answers agree."""
    given = (folder, inputs, arguments.max_new_tokens, arguments.rows)
    contenders = [
        common.Contender("flanjax", build_flanjax, *given, cores=arguments.cores),
        common.Contender("transformers, as they come", build_transformers, *given, False, cores=arguments.cores),
        common.Contender("transformers, by length", build_transformers, *given, True, cores=arguments.cores),
    ]
    answers = contenders[0].first_result
    tokens = sum(map(len, answers))
    print(f"{len(inputs)} prompts of {sum(map(len, inputs))} tokens, {tokens} tokens of answers, {arguments.rows} rows")
    for other in contenders[1:]:
        same = sum(a == b for a, b in zip(answers, other.first_result, strict=True))
        print(f"the same tokens as {other.name}: {same} of {len(inputs)}")
    seconds = common.in_turn(contenders, arguments.repetitions)
    for contender in contenders:
        common.print_seconds(contender, seconds[contender.name])
        print(f"{'':34s} {tokens / statistics.median(seconds[contender.name]):8.1f} tokens/s")
    for other in contenders[1:]:
        ratio = common.times_faster(seconds, "flanjax", other.name)
        common.print_ratio(ratio, f"greedy answers, float32: flanjax against {other.name}")
        other.close()
    contenders[0].close()


def per_token(arguments: Any, folder: Path, ids: list[int]) -> None:
    """Milliseconds of a token as the answer grows, and their slope."""
    import numpy as np

    contender = common.Contender("flanjax", build_per_token, folder, ids, arguments.per_token, cores=arguments.cores)
    runs = [contender.run()[1] for _ in range(arguments.repetitions)]
    contender.close()
    milliseconds = 1000 * np.median(runs, axis=0)
    for start in range(0, arguments.per_token, 100):
        print(f"token {start + 1:5d}: {np.median(milliseconds[max(start, 1) : start + 32]):7.2f} ms")
    slope = np.polyfit(np.arange(1, len(milliseconds)), milliseconds[1:], 1)[0]
    print(f"slope {1000 * slope:.2f} ms per 1000 tokens, prompt of {len(ids)} tokens; the first token reads the prompt")


def main() -> None:
    """Measures and prints."""
    parser = common.parser(__doc__)
    parser.add_argument("--data", type=Path, default=common.DATA, help="folder with super_natural_instructions")
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--longest", type=int, default=512, help="tokens of a prompt")
    parser.add_argument("--max_new_tokens", type=int, default=64)
    parser.add_argument("--rows", type=int, default=16, help="rows decoded together")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--per_token", type=int, help="measure one answer of so many tokens instead, alone")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.prompts, arguments.longest, arguments.max_new_tokens, arguments.repetitions = 6, 12, 5, 1
    print(common.machine(arguments.cores))
    if arguments.smoke:
        inputs = random_prompts(arguments.prompts, arguments.longest, 40)
    else:
        inputs = prompts(arguments.model, arguments.data, arguments.prompts, arguments.longest)
    if arguments.per_token:
        per_token(arguments, arguments.model, inputs[0])
    else:
        compare(arguments, arguments.model, inputs)


if __name__ == "__main__":
    main()
