"""Tells a person about a run: what starts, how it goes, what the model answers before and after.

The training loop reports to it as its observer; what should be read later also goes to files of the run directory.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flanjax.console import Console, byte_size, duration
from flanjax.evaluation.answers import Report
from flanjax.evaluation.evaluators import MixtureEvaluator, SuiteEvaluator
from flanjax.evaluation.run_reports import keep_evaluation
from flanjax.files import read_json_lines, write_whole
from flanjax.models.model import ModelConfig, logical_axes
from flanjax.run import Prepared
from flanjax.sharding.hosts import is_first
from flanjax.training.interfaces import Progress
from flanjax.training.metrics import LOG
from flanjax.training.optimizers import rate_factors
from flanjax.training.step import MemoryUse, StateLayout
from flanjax.tuning.partition import FROZEN, TRAINABLE, counted, flatten, trainable_axes

SAMPLES = "samples.jsonl"
SHOWN_ANSWERS = 6
_WIDTH = 100


class Narrator:
    """An observer of one run (`flanjax.training.interfaces.Observer`)."""

    def __init__(self, console: Console, prepared: Prepared):
        self._console = console
        self._prepared = prepared
        self._samples = Path(prepared.run.model_dir) / SAMPLES
        self._values: dict[str, float] = {}  # of the evaluation that is being told
        for name, evaluator in prepared.evaluators.items():
            if isinstance(evaluator, SuiteEvaluator):
                evaluator.told = functools.partial(self._answered, name)

    def start(self, layout: StateLayout) -> None:
        """The start-up lines: configuration, data, parameters."""
        prepared, console = self._prepared, self._console
        console.heading("Configuration")
        for name, value in prepared.settings.to_dict().items():
            console.line(f"{name}: {_listed(value) if isinstance(value, dict) else value}")
        console.heading("Data")
        console.lines(prepared.batches.report.lines())
        console.heading("Model")
        devices = prepared.mesh.devices
        axes = ", ".join(f"{name} {size}" for name, size in prepared.mesh.shape.items())
        console.line(f"{devices.size} {devices.flat[0].device_kind} device(s): {axes}")
        rows = size_rows(layout, prepared.model)
        console.line(f"{rows[0][1]} of {rows[-1][1]} parameters are trained; in one copy, over all devices:")
        console.table(("", "parameters", "arrays", "weights", "gradients", "optimizer state"), rows)
        origin = prepared.run.init_from
        console.line(f"initial parameters: {origin or 'random, from the seed (INIT_FROM is None)'}")
        if prepared.run.adapter_from is not None:
            console.line(f"going on with the adapter {prepared.run.adapter_from}")
        for note in layout.notes:
            console.notice(note)

    def memory(self, memory: MemoryUse | None) -> None:
        """The compiler's figures of the compiled step, beside what a device has."""
        if memory is None:
            self._console.notice("this backend does not say how much memory the step needs")
            return
        self._console.line(
            f"memory per device: {byte_size(memory.total)} = {byte_size(memory.arguments)} state and batch "
            f"+ {byte_size(memory.temporaries)} temporaries + {byte_size(memory.outputs - memory.aliased)} new outputs "
            f"+ {byte_size(memory.code)} code"
        )
        if (room := _room(self._prepared.mesh.local_devices)) is None:
            self._console.line("whether it fits is not known: these devices do not say how much memory they have")
        elif memory.total <= room:
            self._console.line(f"it fits: a device has {byte_size(room)}, {byte_size(room - memory.total)} are left")
        else:
            self._console.notice(
                f"it does not fit: a device has {byte_size(room)}, {byte_size(memory.total - room)} are missing. Raise "
                "MICROBATCHES, lower BATCH_ROWS or FEATURE_LENGTHS, or spread the parameters (MeshConfig.fsdp)"
            )

    def progress(self, progress: Progress) -> None:
        """Moves the bar."""
        padding = [share for share in (progress.encoder_padding, progress.decoder_padding) if share is not None]
        self._console.progress(
            "training",
            progress.step,
            progress.train_steps,
            f"loss {progress.loss:.3f}  {progress.tokens_per_second:,.0f} tokens/s  "
            f"padding {'/'.join(f'{share:.1%}' for share in padding)}  "
            f"{duration(progress.seconds_left)} left",
        )

    def logged(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Prints an evaluation, and keeps its answers."""
        evaluator = self._prepared.evaluators.get(split)
        if evaluator is None:
            return
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        self._console.line(f"step {step:,}  {split}: {shown}")
        if not is_first():
            return
        if isinstance(evaluator, MixtureEvaluator) and evaluator.report is not None:
            self._keep(step, split, evaluator.report)
        self._values |= {f"{split}/{name}": value for name, value in values.items()}
        if split == [*self._prepared.evaluators][-1]:
            self._keep_suites(step)
            self._values = {}

    def notice(self, message: str) -> None:
        """Prints a notice."""
        self._console.notice(message)

    def _keep(self, step: int, split: str, report: Report) -> None:
        # Lines past this step, or of this very evaluation, are of a run that was killed and went on from before.
        lines = [
            line
            for line in read_json_lines(self._samples)
            if line["step"] < step or (line["step"] == step and line["mixture"] != split)
        ]
        lines += [
            {
                "step": step,
                "mixture": split,
                "task": answer.question.task,
                "prompt": answer.question.prompt,
                "references": list(answer.question.references),
                "answer": answer.text,
                **scores,
            }
            for answer, scores in zip(report.answers, report.scores, strict=True)
        ]
        write_whole(self._samples, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))

    def _answered(self, suite: str, done: int, total: int) -> None:
        """Moves the bar of a suite, until it is whole."""
        self._console.progress("evaluating", done, total, suite)
        if done == total:
            self._console.close_progress("evaluating")

    def _keep_suites(self, step: int) -> None:
        """Keeps the reports of this evaluation's suites, the last of which was told just now."""
        measured = {
            name: evaluator.measured
            for name, evaluator in self._prepared.evaluators.items()
            if isinstance(evaluator, SuiteEvaluator) and evaluator.measured is not None
        }
        if not measured:
            return
        run = self._prepared.run
        config, metric = run.evaluation, run.train.best_metric
        assert metric is not None  # that of a suite at the least
        settings = {"suites": list(measured), "data": config.suite_data, "limit": config.suite_limit}
        settings |= {"chat": config.suite_chat, "seed": config.suite_seed}
        keep_evaluation(
            Path(run.model_dir),
            step,
            measured,
            settings,
            metric=metric,
            value=self._values[metric],
            lowest=run.train.lowest_is_best,
        )

    def answers(self) -> None:
        """Answers and scores per task of the first and the last evaluation, side by side."""
        self._suites()
        lines = read_json_lines(self._samples)
        for mixture in self._prepared.evaluators:
            steps = sorted({line["step"] for line in lines if line["mixture"] == mixture})
            if not steps:
                continue
            first, last = (
                [line for line in lines if line["mixture"] == mixture and line["step"] == step]
                for step in (steps[0], steps[-1])
            )
            self._console.heading(f"Answers on held-out examples of {mixture}, before (step {steps[0]}) and after")
            shown: set[str] = set()
            for before, after in zip(first, last, strict=False):
                if before["task"] not in shown and len(shown) < SHOWN_ANSWERS:
                    shown.add(before["task"])
                    self._console.line(f"[{before['task']}] {_short(before['prompt'])}")
                    self._console.line(f"    before: {_short(before['answer'])}")
                    self._console.line(f"    after:  {_short(after['answer'])}")
                    self._console.line(f"    wanted: {_short(after['references'][0])}")
            for metric in self._prepared.run.evaluation.metrics:
                self._scores(metric, first, last)

    def _suites(self) -> None:
        """Averages of the suites in the first and the last evaluation."""
        lines = read_json_lines(Path(self._prepared.run.model_dir) / LOG)
        rows = []
        for name, evaluator in self._prepared.evaluators.items():
            told = [line for line in lines if line["split"] == name and isinstance(evaluator, SuiteEvaluator)]
            for metric in evaluator.values if told else ():
                figures = [f"{line['values'][metric]:.2f} (step {line['step']})" for line in (told[0], told[-1])]
                rows.append((f"{name}/{metric}", *figures))
        if rows:
            self._console.heading("Test sets, %")
            self._console.table(("", "first", "last"), rows)

    def _scores(self, metric: str, first: list[dict], last: list[dict]) -> None:
        rows = []
        for task in [*dict.fromkeys(line["task"] for line in last), None]:
            means = [
                np.mean([line[metric] for line in lines if task in (None, line["task"])]) for lines in (first, last)
            ]
            rows.append((task or "all", *(f"{100 * mean:.1f}" for mean in means)))
        self._console.line()
        self._console.table((f"{metric}, %", "before", "after"), rows)


def _bytes(leaves: Sequence[Any]) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def _listed(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in settings.items())


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _WIDTH else text[: _WIDTH - 3] + "..."


def size_rows(layout: StateLayout, model: ModelConfig) -> list[tuple[str, ...]]:
    """Trainable, frozen and all parameters: their number, arrays, and bytes of weights, gradients, optimizer state.

    The number is that of weights: a quantized kernel has fewer bytes, and not fewer of them.
    """
    trained, frozen, state = (
        jax.tree.leaves(part) for part in (layout.state.params, layout.state.frozen, layout.state.opt_state)
    )

    def row(name: str, weights: int, leaves: list[Any], gradients: int, state: int) -> tuple[str, ...]:
        sizes = (_bytes(leaves), gradients, state)
        return (name, f"{weights:,}", f"{len(leaves):,}", *(map(byte_size, sizes)))

    # They are taken in float32 whatever the parameters are.
    moving = 4 * sum(p.size for p in trained), _bytes(state)
    counts = counted(model)
    return [
        row("trainable", counts[TRAINABLE], trained, *moving),
        row("frozen", counts[FROZEN], frozen, 0, 0),
        row("all", sum(counts.values()), trained + frozen, *moving),
    ]


def _times(factors: Any) -> str:
    """The text ` x 16` for an array of factors; nothing for ones, or for a parameter without."""
    if factors is None or (factors == 1).all():
        return ""
    return f" x {' '.join(f'{factor:.4g}' for factor in factors.ravel())}"


def parameter_table(prepared: Prepared, layout: StateLayout) -> str:
    """Every parameter, one a line: path, shape, logical axes, mesh axes, whether it moves, factor of its rate."""
    labels, model = layout.partition.labels, prepared.model
    factors = flatten(rate_factors(prepared.run.optimizer, trainable_axes(model), model.stacks))
    shapes = jax.tree_util.tree_leaves_with_path(layout.state.all_params)
    axes = jax.tree.leaves(logical_axes(prepared.model), is_leaf=lambda x: isinstance(x, tuple))
    lines = [
        f"{(name := '/'.join(str(key.key) for key in path)):<60} {leaf.shape!s:<22} {names!s:<34} "
        f"{leaf.sharding.spec!s:<36} {labels[name]}{_times(factors.get(name))}"
        for (path, leaf), names in zip(shapes, axes, strict=True)
    ]
    return "\n".join(lines) + "\n"


def _room(devices: Sequence[jax.Device]) -> int | None:
    """Bytes that jax may use on the smallest of these devices; None where they do not say."""
    found = [(device.memory_stats() or {}).get("bytes_limit") for device in devices]
    return min((limit for limit in found if limit), default=None)
