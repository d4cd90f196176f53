"""Scoring of MMLU's letters behind five examples: flanjax and lm-evaluation-harness's own `hf` model, in turn.

    python tools/bench/scoring.py --model=flan_t5_small --subjects=6 --questions=8
    python tools/bench/scoring.py --model=smollm2

Both are models of the harness and are given the same requests, four continuations of each question; they tokenize,
batch and score. `hf` has max_length=2048, so that it reads of Flan-T5's contexts what flanjax reads: all. Beside the
ratio stands how far apart the log-likelihoods of the two are.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import DATA, Contender, in_turn, machine, parser, print_ratio, print_seconds, times_faster

Answers = list[tuple[float, bool]]


def requests(data: Path, subjects: int, questions: int) -> list[Any]:
    """The first questions of the first subjects, each letter one request."""
    from lm_eval.api.instance import Instance

    from flanjax.evaluation.suites import first_of_each_task, suite

    benchmark = first_of_each_task(suite("mmlu").benchmark(str(data / "mmlu")), questions)
    pairs, seen = [], []
    for instance in benchmark.load():
        seen += [] if instance.task in seen else [instance.task]
        if len(seen) > subjects:
            break
        pairs += [(instance.prompt, f" {choice}", instance.correct[0]) for choice in instance.choices]
    return [Instance("loglikelihood", {"correct": correct}, (a, b), i) for i, (a, b, correct) in enumerate(pairs)]


def accuracy(asked: list[Any], answers: Answers) -> float:
    """Percent of the questions whose right letter is the likeliest."""
    right = [
        max(range(4), key=lambda choice: answers[start + choice][0]) == asked[start].doc["correct"]
        for start in range(0, len(asked), 4)
    ]
    return 100 * sum(right) / len(right)


def build_flanjax(flags: argparse.Namespace) -> Callable[[], Answers]:
    """The model that flanjax has for the harness."""
    from flanjax.lm_eval import FlanjaxLM

    model, asked = FlanjaxLM(flags.model, batch_size=flags.batch_size), requests(*work_of(flags))
    return lambda: model.loglikelihood(asked, disable_tqdm=True)


def build_hf(flags: argparse.Namespace) -> Callable[[], Answers]:
    """The harness's own over transformers."""
    import transformers
    from lm_eval.models.huggingface import HFLM

    config = transformers.AutoConfig.from_pretrained(flags.model)
    kind = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    loaded = kind.from_pretrained(flags.model, dtype="float32")
    if config.is_encoder_decoder:
        # transformers 5 takes every T5 for a tied one, and the harness, when it loads it, would tie Flan-T5's head.
        loaded.config.tie_word_embeddings = False
    tokenizer = transformers.AutoTokenizer.from_pretrained(flags.model)
    model = HFLM(loaded, tokenizer=tokenizer, batch_size=flags.batch_size, max_length=2048)
    asked = requests(*work_of(flags))
    return lambda: model.loglikelihood(asked, disable_tqdm=True)


def work_of(flags: argparse.Namespace) -> tuple[Path, int, int]:
    """What both are given."""
    return (flags.data, 1, 2) if flags.smoke else (flags.data, flags.subjects, flags.questions)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--model", type=Path, required=True, help="a Hugging Face folder")
    arguments.add_argument("--data", type=Path, default=DATA, help="folder with mmlu in it")
    arguments.add_argument("--subjects", type=int, default=3)
    arguments.add_argument("--questions", type=int, default=8, help="of each subject")
    arguments.add_argument("--batch_size", type=int, default=8)
    arguments.add_argument("--repetitions", type=int, default=3)
    flags = arguments.parse_args()
    print(machine(flags.cores))
    contenders = [
        Contender("flanjax", build_flanjax, flags, cores=flags.cores),
        Contender("lm-eval hf", build_hf, flags, cores=flags.cores),
    ]
    seconds = in_turn(contenders, 1 if flags.smoke else flags.repetitions)
    ours, theirs = (contender.first_result for contender in contenders)
    for contender in contenders:
        print_seconds(contender, seconds[contender.name])
        contender.close()
    furthest = max(abs(a - b) for (a, _), (b, _) in zip(ours, theirs, strict=True))
    same = sum(a == b for (_, a), (_, b) in zip(ours, theirs, strict=True))
    asked = requests(*work_of(flags))
    print(f"accuracy: flanjax {accuracy(asked, ours):.2f}, hf {accuracy(asked, theirs):.2f}")
    print(f"{len(ours)} requests: log-likelihoods at most {furthest:.2e} apart, is_greedy equal in {same}")
    print_ratio(times_faster(seconds, "flanjax", "lm-eval hf"), f"scoring MMLU, {flags.model.name}: flanjax against hf")


if __name__ == "__main__":
    main()
