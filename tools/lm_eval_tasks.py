"""Suites of `python -m flanjax.evaluate` as tasks of lm-evaluation-harness that need no network.

    python tools/lm_eval_tasks.py --suite mmlu bbh --data=data --limit=4 --output=local
    lm_eval --model flanjax --model_args path=runs/mine --include_path local --tasks local_mmlu

Each suite NAME becomes the task `local_NAME`: NAME.jsonl with the whole prompts, few-shot examples in them, and
NAME.yaml. Choices are scored after one space (`acc`), answers are decoded greedily (`exact_match` with the first
reference). `--data` is a folder in which each dataset has its own, as `$FLANJAX_DATA_DIR`.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from flanjax.evaluation.benchmark import Benchmark
from flanjax.evaluation.suites import first_of_each_task, suite
from flanjax.files import write_whole


def task(name: str, benchmark: Benchmark, rows: Path) -> dict[str, Any]:
    """The configuration of a task over the rows."""
    choices = benchmark.mode == "choices"
    metric = {"metric": "acc" if choices else "exact_match", "aggregation": "mean", "higher_is_better": True}
    config = {
        "task": f"local_{name}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(rows.resolve())}},
        "test_split": "test",
        "doc_to_text": "prompt",
        "doc_to_target": "answer",
        "metric_list": [metric],
        "metadata": {"version": 1},
    }
    if choices:
        return config | {"output_type": "multiple_choice", "doc_to_choice": "choices"}
    stops = {"until": list(benchmark.stop), "max_gen_toks": benchmark.max_new_tokens, "do_sample": False}
    return config | {"output_type": "generate_until", "generation_kwargs": stops}


def write_task(name: str, data: Path, output: Path, *, limit: int | None = None, tasks: Sequence[str] = ()) -> None:
    """Writes a suite's rows and configuration.

    Arguments:
      name: of the suite.
      data: a folder with the dataset's own in it.
      output: where NAME.jsonl and NAME.yaml go.
      limit: instances of each of the suite's own tasks; None takes all.
      tasks: those of the suite's own tasks that are taken; empty takes all.
    """
    benchmark = first_of_each_task(suite(name).benchmark(str(data / suite(name).dataset)), limit)
    rows = [
        {
            "id": instance.id,
            "prompt": instance.prompt,
            "choices": list(instance.choices),
            "answer": instance.correct[0] if instance.choices else instance.references[0],
        }
        for instance in benchmark.load()
        if not tasks or instance.task in tasks
    ]
    file = output / f"{name}.jsonl"
    write_whole(file, "".join(json.dumps(row) + "\n" for row in rows))
    write_whole(output / f"{name}.yaml", yaml.safe_dump(task(name, benchmark, file), sort_keys=False))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--suite", nargs="+", required=True, help="names of --suite=list")
    arguments.add_argument("--data", type=Path, required=True, help="a folder with a folder of each dataset")
    arguments.add_argument("--output", type=Path, required=True, help="where the tasks are written")
    arguments.add_argument("--limit", type=int, help="instances of each of a suite's own tasks (default: all)")
    flags = arguments.parse_args()
    for name in flags.suite:
        write_task(name, flags.data, flags.output, limit=flags.limit)


if __name__ == "__main__":
    main()
