"""The evaluations of a run, by name: its own held-out split, other mixtures, and published test sets.

All of them are opened before training starts, so that a suite that is not there, or a question that the model cannot
be asked, is found then. A run's log, its best checkpoint and its observer know them as `name/value`: `demo/loss`,
`super_ni/rougeL`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from jax.sharding import Mesh

from flanjax.data.cache import CachedMixture, NoSuchSplitError
from flanjax.data.chat import Chat
from flanjax.data.chat_templates import ChatTemplate
from flanjax.data.loader import DataConfig, eval_batches
from flanjax.data.packing import RowLengths
from flanjax.data.placeholders import Placeholders
from flanjax.data.report import overlong_line, survey
from flanjax.data.vocabularies import Vocabulary
from flanjax.errors import nearest
from flanjax.evaluation.answers import questions
from flanjax.evaluation.asking import Asked
from flanjax.evaluation.benchmark import Benchmark
from flanjax.evaluation.evaluators import DECODE_ROWS, EvaluationConfig, MixtureEvaluator, SuiteEvaluator
from flanjax.models.config import Compute
from flanjax.models.decoder_config import DecoderConfig
from flanjax.models.model import ModelConfig
from flanjax.sharding.hosts import row_shards_of_host
from flanjax.starting_point import RunError
from flanjax.training.interfaces import TrainConfig
from flanjax.training.losses import LossConfig

Evaluators = Mapping[str, MixtureEvaluator | SuiteEvaluator]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """What a run evaluates: its model, and how that is computed, written and read.

    Attributes:
      model: with what methods added.
      compute: how it is computed.
      loss: of training.
      mesh: where the parameters lie.
      vocabulary: of the run.
      template: of the run's chats; None where there is none.
      row_lengths: of its rows.
    """

    model: ModelConfig
    compute: Compute
    loss: LossConfig
    mesh: Mesh
    vocabulary: Vocabulary
    template: ChatTemplate | None
    row_lengths: RowLengths


def make_evaluators(
    config: EvaluationConfig,
    data: DataConfig,
    trained: Trained,
    suites: Mapping[str, Benchmark],
    notice: Callable[[str], None],
) -> Evaluators:
    """One evaluator for the run's own mixture, where it has held-out examples, one for each other mixture and suite.

    Arguments:
      config: what is measured.
      data: of the run.
      trained: what is evaluated.
      suites: the test sets, by name.
      notice: told of what a person should know.

    Raises:
      FlanjaxError: a mixture is not in the cache or of another vocabulary, a suite has the name of a mixture, or the
        model cannot be asked one of the questions.
    """
    found: dict[str, MixtureEvaluator | SuiteEvaluator] = {}
    for mixture in dict.fromkeys([data.mixture, *config.mixtures]):
        try:
            opened = CachedMixture.open(data.cache_dir, mixture, config.split)
        except NoSuchSplitError:
            if mixture in config.mixtures:
                raise
            notice(f"{mixture} has no split {config.split!r}: it is not evaluated")
            continue
        found[mixture] = _mixture_evaluator(config, data, trained, opened, notice)
    for name, benchmark in suites.items():
        if name in found:
            raise RunError(f"a suite and a mixture that is evaluated have the name {name!r}: give the mixture another")
        found[name] = _suite_evaluator(config, data, trained, benchmark)
    return found


def with_best(config: TrainConfig, evaluators: Evaluators) -> TrainConfig:
    """The loop with the value that evaluations are compared by, where there is one: the first, if none is named.

    Raises:
      RunError: nobody measures what is named, or the best checkpoints shall be kept and nothing is measured.
    """
    measured = [f"{name}/{value}" for name, evaluator in evaluators.items() for value in evaluator.values]
    if config.keep_best and not measured:
        raise RunError(
            f"TrainConfig.keep_best is {config.keep_best}, but nothing is evaluated: set EVAL_MIXTURES or EVAL_SUITES"
        )
    if config.best_metric is not None and config.best_metric not in measured:
        raise RunError(
            f"TrainConfig.best_metric={config.best_metric}: no evaluation of this run gives it"
            f"{nearest(config.best_metric, measured)}; there are {', '.join(measured) or 'none'}"
        )
    return dataclasses.replace(config, best_metric=config.best_metric or next(iter(measured), None))


def _mixture_evaluator(
    config: EvaluationConfig,
    data: DataConfig,
    trained: Trained,
    opened: CachedMixture,
    notice: Callable[[str], None],
) -> MixtureEvaluator:
    model, vocabulary, tasks = trained.model, trained.vocabulary, opened.tasks
    if opened.vocabulary.identity != vocabulary.identity:
        raise RunError(
            f"{opened.name} was tokenised with vocabulary {opened.vocabulary.identity}, {data.mixture} with "
            f"{vocabulary.identity}: a run has one. Set VOCABULARY={vocabulary.path} to materialise both with it"
        )
    placeholders = Placeholders(model.prompt_length, model.prompt_tasks)
    placeholders.numbers([task.name for task in tasks])  # each has one, or the run is refused here
    text_room, prefix_lm = placeholders.text_room(trained.row_lengths), data.layout == "prefix_lm"
    surveyed = survey(tasks, [float(len(task) > 0) for task in tasks], text_room, data.overlong)
    if line := overlong_line(surveyed, data.overlong):
        notice(f"{opened.name}, split {config.split!r}: {line}")

    def batches() -> Any:
        """The batches of the split from the first on, for each evaluation anew."""
        return eval_batches(
            tasks,
            trained.row_lengths,
            data.batch_rows,
            rows=row_shards_of_host(trained.mesh).rows(data.batch_rows),
            window=data.window,
            overlong=data.overlong,
            pack=data.pack,
            prefix_lm=prefix_lm,
            max_examples_per_task=_share(config.loss_examples, len(tasks)),
            placeholders=placeholders,
        )

    return MixtureEvaluator(
        model=model,
        compute=trained.compute,
        loss=trained.loss,
        mesh=trained.mesh,
        batches=batches,
        questions=questions(
            tasks,
            _share(config.questions, len(tasks)) or 0,
            _question_room(model, text_room, config.max_new_tokens),
            data.overlong,
        ),
        prefix_lm=prefix_lm,
        vocabulary=vocabulary,
        end_ids=None if opened.chat_template is None else Chat(opened.chat_template, vocabulary).end_ids,
        max_new_tokens=config.max_new_tokens,
        metrics=config.metrics,
    )


def _suite_evaluator(
    config: EvaluationConfig, data: DataConfig, trained: Trained, benchmark: Benchmark
) -> SuiteEvaluator:
    if config.suite_chat and trained.template is None:
        raise RunError("EvaluationConfig.suite_chat asks in a chat template, and the run has none: set CHAT_TEMPLATE")
    if config.suite_chat and benchmark.mode == "choices":
        raise RunError(f"{benchmark.name} scores choices after a plain text: leave EvaluationConfig.suite_chat out")
    asked = functools.partial(
        Asked,
        config=trained.model,
        compute=trained.compute,
        vocabulary=trained.vocabulary,
        prefix_lm=data.layout == "prefix_lm",
        chat=Chat(trained.template, trained.vocabulary) if trained.template and config.suite_chat else None,
        batch_size=DECODE_ROWS,
    )
    asked(params={}).check(benchmark)
    return SuiteEvaluator(benchmark, lambda params: asked(params=params), seed=config.suite_seed)


def _question_room(model: ModelConfig, text_room: RowLengths, max_new_tokens: int) -> RowLengths:
    """Room for a question whose answer still stands in positions that the model has.

    Raises:
      RunError: there is none.
    """
    if not isinstance(model, DecoderConfig):
        return text_room
    left = model.text_positions - model.prompt_length - max_new_tokens
    if left < 2:
        raise RunError(
            f"EvaluationConfig.max_new_tokens is {max_new_tokens}, and the model has {model.max_positions} positions: "
            "no question has room before such an answer"
        )
    return (min(text_room[0], left - 1),)


def _share(examples: int | None, tasks: int) -> int | None:
    """Examples of each task, at least one where there are any."""
    return examples and max(examples // tasks, 1)
