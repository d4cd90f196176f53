"""Tokenising a dataset once: flanjax's materialising, seqio's offline caching and datasets.map, one core each.

    python tools/bench/materialize.py

The rows are P3's published prompts and completions, as a tab-separated file, put into one template. Each side reads
that file, renders, tokenises with T5's vocabulary and writes what its trainer reads: flanjax ArrayRecord shards with
their length index; seqio's `cache_tasks_main` on Beam's DirectRunner ArrayRecord too, from a task of native TensorFlow
preprocessors; `datasets.map` Arrow, by batches of 1,000 with the fast tokenizer of transformers. Then the peak memory
of each at 1, 4 and 16 times the rows, which must not grow with them.

The start of a process (imports, the pipeline's construction on first use) is not in the times: each program has done
the work once before.
"""

import gzip
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
from p3_rows import TEMPLATE

SIZES = (1, 4, 16)
ROWS = 10_000
OURS = "flanjax"


def build_flanjax(file: str, vocabulary: str, output: str) -> Callable[[], tuple[int, int]]:
    """`materialize` in this process; gives examples and tokens."""
    sys.path.insert(0, str(Path(__file__).parent))
    from flanjax.data.materialize import materialize
    from flanjax.data.vocabularies import VocabularySource

    def work() -> tuple[int, int]:
        shutil.rmtree(output, ignore_errors=True)
        report = materialize(
            mixture="bench",
            cache_dir=output,
            vocabulary=VocabularySource(path=f"{vocabulary}/spiece.model"),
            tasks={"p3_rows": {"path": file}},
            workers=1,
        )
        (split,) = report.splits
        return split.examples, sum(split.tokens.values())

    return work


def build_seqio(file: str, vocabulary: str, output: str) -> Callable[[], tuple[int, int]]:
    """Seqio's own script over a native task."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import apache_beam
    import seqio
    import tensorflow as tf
    from absl import flags
    from seqio.scripts import cache_tasks_main

    flags.FLAGS(["bench"])
    spiece = seqio.SentencePieceVocabulary(f"{vocabulary}/spiece.model")

    @seqio.map_over_dataset
    def parse(line: Any) -> dict[str, Any]:
        prompt, completion = tf.io.decode_csv(line, ["", ""], field_delim="\t", use_quote_delim=False)
        return {"inputs": tf.strings.join([TEMPLATE[0], prompt, TEMPLATE[1]]), "targets": completion}

    seqio.TaskRegistry.add(
        "bench",
        source=seqio.TextLineDataSource({"train": file}),
        preprocessors=[
            parse,
            seqio.preprocessors.tokenize,
            seqio.CacheDatasetPlaceholder(),
            seqio.preprocessors.append_eos,
        ],
        output_features=dict.fromkeys(("inputs", "targets"), seqio.Feature(spiece, add_eos=True)),
    )

    def work() -> tuple[int, int]:
        shutil.rmtree(output, ignore_errors=True)
        with apache_beam.Pipeline() as pipeline:
            cache_tasks_main.run_pipeline(pipeline, ["bench"], output, output_format="arrayrecord")
        stats = json.loads((Path(output) / "bench" / "stats.train.json").read_text())
        return stats["examples"], stats["inputs_tokens"] + stats["targets_tokens"]

    return work


def build_datasets(file: str, vocabulary: str, output: str) -> Callable[[], tuple[int, int]]:
    """`datasets.map` with the fast tokenizer."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["HF_HOME"] = output
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(vocabulary)

    def tokenize(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        inputs = [TEMPLATE[0] + prompt + TEMPLATE[1] for prompt in batch["prompt"]]
        return {
            "input_ids": tokenizer(inputs)["input_ids"],
            "labels": tokenizer(batch["completion"])["input_ids"],
        }

    def work() -> tuple[int, int]:
        shutil.rmtree(output, ignore_errors=True)
        read = datasets.load_dataset(
            "csv",
            data_files=file,
            delimiter="\t",
            column_names=["prompt", "completion"],
            quoting=3,
            split="train",
            cache_dir=output,
            keep_default_na=False,
        )
        made = read.map(tokenize, batched=True, remove_columns=["prompt", "completion"])
        lengths = [made.data.column(name).combine_chunks().values for name in ("input_ids", "labels")]
        return len(made), sum(map(len, lengths))

    return work


BUILDS = {OURS: build_flanjax, "seqio, cache_tasks_main": build_seqio, "datasets.map": build_datasets}


def measured(build: Callable[..., Callable[[], Any]], *arguments: str) -> Callable[[], int]:
    """The peak memory of doing the work, in bytes."""
    work = build(*arguments)

    def once() -> int:
        work()
        status = Path("/proc/self/status").read_text()
        (peak,) = (int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
        return peak * 1024

    return once


def write_rows(data: Path, file: Path, rows: int) -> None:
    """The first rows of the published samples, taken again from the start where there are not so many."""
    published = sorted((data / "t0_p3_samples").glob("*.jsonl.gz"))
    written = 0
    with file.open("w") as out:
        while written < rows:
            for path in published:
                with gzip.open(path, "rt") as lines:
                    for line in lines:
                        if written == rows:
                            return
                        record = json.loads(line)
                        # No quoting and one line a row: what all three readers take to mean the same.
                        cells = [" ".join(record[name].split()) for name in ("prompt", "completion")]
                        if all(cells):
                            out.write("\t".join(cells) + "\n")
                            written += 1


def main() -> None:
    """Times in turn, then memory by size."""
    parser = common.parser(__doc__)
    parser.add_argument("--data", type=Path, default=common.DATA, help="folder with t0_p3_samples and vocab")
    parser.add_argument("--repetitions", type=int, default=3)
    flags = parser.parse_args()
    rows, repetitions = (200, 1) if flags.smoke else (ROWS, flags.repetitions)
    vocabulary = str(flags.data / "vocab" / "t5")
    print(common.machine(1))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.tsv"
        write_rows(flags.data, file, rows)
        contenders = [
            common.Contender(name, build, str(file), vocabulary, f"{folder}/{number}", cores=1)
            for number, (name, build) in enumerate(BUILDS.items())
        ]
        seconds = common.in_turn(contenders, repetitions)
        print(f"{'':34s} {'s':>8s} {'examples/s':>12s} {'tokens/s':>12s}")
        for contender in contenders:
            examples, tokens = contender.first_result
            median = statistics.median(seconds[contender.name])
            print(f"{contender.name:34s} {median:8.3f} {examples / median:12,.0f} {tokens / median:12,.0f}", flush=True)
            contender.close()
        for name in list(BUILDS)[1:]:
            common.print_ratio(
                common.times_faster(seconds, OURS, name), f"examples/s of one core: flanjax against {name}"
            )
        peaks: dict[str, list[float]] = {name: [] for name in BUILDS}
        for size in SIZES:
            write_rows(flags.data, file, rows * size)
            for number, (name, build) in enumerate(BUILDS.items()):
                if name != OURS and (flags.smoke or size == SIZES[-1]):
                    continue
                arguments = (build, str(file), vocabulary, f"{folder}/{number}")
                contender = common.Contender(name, measured, *arguments, cores=1)
                peaks[name].append(contender.first_result / 2**20)
                contender.close()
        for name, found in ((name, found) for name, found in peaks.items() if found):
            shown = ", ".join(f"{peak:,.0f}" for peak in found)
            print(f"{name:34s} peak MiB at {', '.join(map(str, SIZES[: len(found)]))} times {rows:,} rows: {shown}")
        common.print_ratio(
            peaks[OURS][-1] / peaks[OURS][0], f"peak memory: flanjax at {SIZES[-1]} times the rows, to once"
        )


if __name__ == "__main__":
    main()
