"""One run, from its typed configuration to a trained and exported model.

    cache (made when missing) -> vocabulary -> model and first parameters -> packed rows -> train -> answers -> export

`flanjax.train` is the command line of this; everything here takes objects.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
import optax

from flanjax.data.catalog import resolve_all
from flanjax.data.loader import DataConfig, PackedBatches
from flanjax.data.mixing import Proportional
from flanjax.data.packing import Layout, RowLengths
from flanjax.data.placeholders import Placeholders
from flanjax.data.provenance import Request, is_current
from flanjax.data.vocabularies import CHAT_TEMPLATE_FILE, Vocabulary, VocabularySource
from flanjax.evaluation.evaluators import EvaluationConfig
from flanjax.evaluation.measuring import chosen, questions_of
from flanjax.files import require_path, write_whole
from flanjax.interchange.folders import ModelFolderError
from flanjax.interchange.runs import SETTINGS, VOCABULARY, is_run
from flanjax.interchange.t5x_files import open_checkpoint
from flanjax.interchange.t5x_optimizer import resume_adafactor
from flanjax.models.config import Compute, T5Config
from flanjax.models.decoder_config import DecoderConfig, Rotary
from flanjax.models.model import ModelConfig, abstract_params, build, model_settings, require_t5
from flanjax.models.parameters import Params
from flanjax.run_evaluations import Evaluators, Trained, make_evaluators, with_best
from flanjax.sharding.hosts import agree, is_first, row_shards_of_host, wait_for_all
from flanjax.sharding.mesh import MeshConfig, make_mesh
from flanjax.starting_point import RunError, StartingPoint
from flanjax.training.interfaces import Observer, TrainConfig, TrainResult
from flanjax.training.losses import LossConfig
from flanjax.training.optimizers import OptimizerConfig, make_optimizer
from flanjax.training.schedules import make_schedule
from flanjax.training.step import MemoryUse, StateLayout, batch_shapes, compile_step, make_train_step
from flanjax.training.trainer import train
from flanjax.tuning.method import Method
from flanjax.tuning.methods import METHODS, to_settings
from flanjax.tuning.partition import Partition, added_paths, digest, methods_of, trainable_axes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """Everything a run is made of; gin_configs/runs/common.gin binds it to the macros.

    Attributes:
      model_dir: the run directory.
      model: the model; None takes it from `init_from`.
      tuning: methods that say which parameters move, and add some; none trains all of the model's own.
      dropout_rate: replaces the model's own; None leaves it.
      init_from: a model as `flanjax.interchange.any_model` opens it, such as a Hugging Face folder or a run
        directory; None starts from random parameters.
      adapter_from: a PEFT folder for that model, which training goes on with; its methods are the run's.
      optimizer_from: a T5X checkpoint, often `init_from` itself, whose Adafactor the run goes on with; None begins
        anew.
      tasks: task modules and their options.
      task_seed: of all that tasks draw; the order of rows has a seed of its own, so that runs that differ in it share a
        cache.
      chat_template: makes the text of every example (`flanjax.data.chat_templates.find_template`); None for none.
      on_bad_row: what a malformed row of theirs does: "error", or "skip", which counts it.
      export_to: a Hugging Face folder written when the run is whole; None writes none.
    """

    model_dir: str
    model: ModelConfig | None
    tuning: tuple[Method, ...] = ()
    dropout_rate: float | None = None
    compute: Compute
    mesh: MeshConfig
    init_from: str | None
    adapter_from: str | None = None
    optimizer_from: str | None = None
    tasks: Mapping[str, Mapping[str, Any]]
    task_seed: int = 0
    on_bad_row: str = "error"
    vocabulary: VocabularySource
    chat_template: str | None = None
    data: DataConfig
    loss: LossConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    evaluation: EvaluationConfig
    export_to: str | None


# What gin files may name.
CONFIGURABLES: tuple[type, ...] = (
    Compute,
    DataConfig,
    DecoderConfig,
    EvaluationConfig,
    LossConfig,
    MeshConfig,
    OptimizerConfig,
    Proportional,
    Rotary,
    Run,
    T5Config,
    TrainConfig,
    VocabularySource,
    *METHODS.values(),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """A run whose parts were opened and found to belong together; `settings` is its resolved configuration."""

    run: Run
    model: ModelConfig
    vocabulary: Vocabulary
    batches: PackedBatches
    evaluators: Evaluators
    mesh: jax.sharding.Mesh
    settings: ml_collections.ConfigDict
    initial_params: Callable[[Params], Params]
    initial_optimizer: Callable[[Any], Any] | None


def with_modules(run: Run) -> Run:
    """The run with the task modules that its mixtures need; see `flanjax.data.catalog.resolve_all`.

    Raises:
        FlanjaxError: there is nothing to read at a path, or its records have no known form.
    """
    names, tasks = resolve_all((run.data.mixture, *run.evaluation.mixtures), run.tasks, run.data.cache_dir)
    return dataclasses.replace(
        run,
        tasks=tasks,
        data=dataclasses.replace(run.data, mixture=names[0]),
        evaluation=dataclasses.replace(run.evaluation, mixtures=tuple(names[1:])),
    )


def prepare(run: Run, materialize: Callable[[Sequence[str]], None], notice: Callable[[str], None]) -> Prepared:
    """Opens everything a run needs, in the order in which mistakes are cheapest to find.

    Arguments:
      run: the configuration.
      materialize: writes these mixtures to the cache; called when one is missing or was made from something else.
      notice: told of what a person should know.

    Raises:
      FlanjaxError: a part is missing or does not fit the others; the message says which and what to do.
    """
    for written in (run.model_dir, run.data.cache_dir, run.export_to or ""):
        require_path(written)
    start = StartingPoint(
        model=run.model,
        dropout_rate=run.dropout_rate,
        tuning=run.tuning,
        init_from=run.init_from,
        adapter_from=run.adapter_from,
        seed=run.train.seed,
    )
    run = _with_layout(run, decoder=start.is_decoder)
    start.check_model()
    _check_methods(run, start, notice)
    of_suites = run.evaluation.suites, run.evaluation.suite_data, run.evaluation.suite_limit
    chosen(*of_suites)  # they are there: before hours of materialising
    mesh = make_mesh(run.mesh)
    rows = row_shards_of_host(mesh).rows(run.data.batch_rows)
    if is_first():
        _ensure_cache(run, materialize, notice)
    wait_for_all("cache")
    model = start.model
    longest = start.tuned.text_positions if isinstance(start.tuned, DecoderConfig) else None
    batches = PackedBatches(run.data, rows=rows, placeholders=_placeholders(start.methods), longest=longest)
    _check_positions(start.tuned, batches.row_lengths)
    vocabulary = batches.mixture.vocabulary
    start.tell_what_is_left_out(notice, but_optimizer=run.optimizer_from is not None)
    start.tell_of_another_base(notice)
    start.check_vocabulary(vocabulary, notice)
    if vocabulary.size > model.vocab_size:
        raise RunError(
            f"the vocabulary of {run.data.mixture!r} has {vocabulary.size} ids, the model only {model.vocab_size}: "
            f"set {type(model).__name__}.vocab_size to at least that, or VOCABULARY to the model's own"
        )
    model = start.tuned
    build(model, run.compute, abstract_params(model))  # refuses what cannot be computed in this way
    adapter = None if start.adapter is None else digest(start.adapter.params)
    settings = _settings(run, model, batches, base=start.base(), adapter=adapter)
    agree("the configuration and the data of the run", settings.to_json(sort_keys=True))
    suites = chosen(*of_suites, vocabulary)
    questions = {name: questions_of(benchmark)[1] for name, benchmark in suites.items()}  # reads all of them
    agree("the questions of EvaluationConfig.suites", json.dumps(questions))
    evaluators = make_evaluators(
        run.evaluation,
        run.data,
        Trained(
            model=model,
            compute=run.compute,
            loss=run.loss,
            mesh=mesh,
            vocabulary=vocabulary,
            template=batches.mixture.chat_template,
            row_lengths=batches.row_lengths,
        ),
        suites,
        notice,
    )
    return Prepared(
        run=dataclasses.replace(run, train=with_best(run.train, evaluators)),
        model=model,
        vocabulary=vocabulary,
        batches=batches,
        evaluators=evaluators,
        mesh=mesh,
        settings=settings,
        initial_params=functools.partial(start.params, vocabulary),
        initial_optimizer=_initial_optimizer(run, model),
    )


def _with_layout(run: Run, *, decoder: bool) -> Run:
    """The run with the layout of rows that its model has."""
    of_model: tuple[Layout, ...] = ("causal", "prefix_lm") if decoder else ("encoder_decoder",)
    layout = run.data.layout or of_model[0]
    if layout not in of_model:
        raise RunError(
            f"DataConfig.layout is {layout!r}, and the model is {'a decoder' if decoder else 'a T5'}: leave it out, or "
            f"give {' or '.join(map(repr, of_model))}"
        )
    return dataclasses.replace(run, data=dataclasses.replace(run.data, layout=layout))


def _check_positions(model: ModelConfig, row_lengths: RowLengths) -> None:
    """Refuses rows in which an example could stand beyond a learnt table of positions."""
    if not isinstance(model, DecoderConfig) or model.positions != "learned":
        return
    if row_lengths[0] > model.text_positions:
        behind = f", {model.prefix_length} of which stand before the text" if model.prefix_length else ""
        raise RunError(
            f"rows of {row_lengths[0]} tokens: the model has learned {model.max_positions} positions "
            f"(max_positions){behind}. Set FEATURE_LENGTHS to {{'tokens': {model.text_positions}}} at most"
        )


def _check_methods(run: Run, start: StartingPoint, notice: Callable[[str], None]) -> None:
    """Tells what a person should know of the methods; refuses senseless ones, and an export that cannot be kept."""
    for method in start.methods:
        if method.notice is not None:
            notice(method.notice)
    for method in run.tuning:
        method.check_choice(start.model)
    apart = [method for method in start.methods if not method.merges] if run.export_to is not None else []
    # BitFit adds nothing where a model has biases.
    unmergeable = [type(m).__name__ for m in apart if added_paths(dataclasses.replace(start.model, added=(m,)))]
    if unmergeable:
        raise RunError(
            f"EXPORT_TO={run.export_to}: what {', '.join(unmergeable)} adds fits no plain Hugging Face model: "
            "leave EXPORT_TO out. flanjax.load opens the run directory as it is, and a prompt or a prefix becomes an "
            "adapter by flanjax.export --format=peft"
        )


def _ensure_cache(run: Run, materialize: Callable[[Sequence[str]], None], notice: Callable[[str], None]) -> None:
    """Has the mixtures written that are missing, damaged, or made from something else than the run asks for."""
    config = run.evaluation
    request = Request(
        tasks=run.tasks,
        vocabulary=run.vocabulary,
        seed=run.task_seed,
        splits=("train", config.split),
        chat_template=run.chat_template,
    )
    needed = {run.data.mixture: ["train"]}
    for mixture in config.mixtures:
        needed.setdefault(mixture, []).append(config.split)
    ignored = (run.data.cache_dir, run.model_dir)
    if not is_current(run.data.cache_dir, needed, request, notice=notice, ignored=ignored):
        # All of them: a vocabulary trained on the first serves the others.
        materialize(list(needed))


def _placeholders(methods: Sequence[Method]) -> Placeholders:
    """What methods keep in front of every example; of them alone, as the model may not be read yet."""
    tasks = [task for method in methods for task in method.prompt_tasks]
    return Placeholders(sum(method.prompt_length for method in methods), tuple(tasks))


def _settings(
    run: Run, model: ModelConfig, batches: PackedBatches, *, base: str | None, adapter: str | None
) -> ml_collections.ConfigDict:
    """The resolved configuration: what was asked for, and what came of it, as JSON holds it."""
    settings = _plain(dataclasses.asdict(run))
    settings["model"] = _plain(model_settings(model))
    settings["tuning"] = _plain(to_settings(methods_of(model)))
    settings["base"], settings["adapter"] = base, adapter
    vocabulary = batches.mixture.vocabulary
    settings["vocabulary"] = {"identity": vocabulary.identity, "size": vocabulary.size}
    template = batches.mixture.chat_template
    settings["chat_template"] = template and {"name": template.name, "identity": template.identity}
    # What decides nothing is left out, as a run from before there was a choice has none.
    if template is None:
        del settings["chat_template"]
    if run.data.examples_per_task is None:
        del settings["data"]["select"]
    if run.data.layout == "encoder_decoder":
        del settings["data"]["layout"]
    # Of the tokens themselves: a run goes on when the same ones were written again for a reason of no account.
    digests = [shard.sha256 for task in batches.mixture.tasks for shard in task.manifest.shards]
    settings["data"] |= {
        "row_lengths": list(batches.row_lengths),
        "contents": hashlib.sha256("".join(digests).encode()).hexdigest()[:16],
    }
    return ml_collections.ConfigDict(settings, allow_dotted_keys=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def is_described(run: Run) -> bool:
    """Whether the run's directory says already, and readably, what the run is."""
    try:
        return is_run(Path(run.model_dir))
    except ModelFolderError:
        return False


def describe(prepared: Prepared, operative_config: str, parameters: str) -> None:
    """Writes what a run is into its directory: config.json, config.gin, parameters.txt and the vocabulary.

    `flanjax.load` and `flanjax.export` read the run from these and its checkpoints. Of several processes one writes.
    """
    if not is_first():
        return
    folder = Path(prepared.run.model_dir)
    write_whole(folder / "config.gin", operative_config)
    write_whole(folder / "parameters.txt", parameters)
    prepared.vocabulary.save(folder / VOCABULARY)
    if template := prepared.batches.mixture.chat_template:
        write_whole(folder / VOCABULARY / CHAT_TEMPLATE_FILE, template.text)  # the tokenizer's own, from now on
    # Last: where it is, the others are.
    write_whole(folder / SETTINGS, prepared.settings.to_json(indent=1) + "\n")


def layout_of(prepared: Prepared) -> StateLayout:
    """Shapes and places of the training state on the run's mesh."""
    return StateLayout.of(prepared.model, _optimizer(prepared.run, prepared.model), prepared.mesh)


def compile_run(prepared: Prepared, layout: StateLayout) -> MemoryUse | None:
    """Compiles the train step, runs nothing; what it needs on each device, where the backend says."""
    run = prepared.run
    step = make_train_step(
        prepared.model,
        run.compute,
        run.loss,
        _optimizer(prepared.run, prepared.model),
        make_schedule(run.optimizer, run.train.train_steps),
        layout,
        seed=run.train.seed,
        microbatches=run.train.microbatches,
    )
    *encoder, length = prepared.batches.row_lengths
    prefix_lm = run.data.layout == "prefix_lm"
    shapes = batch_shapes(
        run.data.batch_rows, encoder[0] if encoder else None, length, prepared.mesh, prefix_lm=prefix_lm
    )
    return compile_step(step, layout, shapes).memory


def _initial_optimizer(run: Run, model: ModelConfig) -> Callable[[Any], Any] | None:
    """What puts the moments of OPTIMIZER_FROM into the run's optimizer; refused here if they do not fit it."""
    if run.optimizer_from is None:
        return None
    checkpoint = open_checkpoint(run.optimizer_from)
    resume = functools.partial(
        resume_adafactor, checkpoint=checkpoint, config=require_t5(model, f"OPTIMIZER_FROM={run.optimizer_from}")
    )
    trainable, _ = Partition.of(model).split(abstract_params(model))
    resume(jax.eval_shape(_optimizer(run, model).init, trainable))
    return resume


def _optimizer(run: Run, model: ModelConfig) -> optax.GradientTransformation:
    return make_optimizer(run.optimizer, trainable_axes(model), total_steps=run.train.train_steps, stacks=model.stacks)


def train_run(prepared: Prepared, observer: Observer) -> TrainResult:
    """Trains, or resumes, to the run's last step; see `flanjax.training.trainer.train`."""
    run = prepared.run
    result = train(
        model=prepared.model,
        compute=run.compute,
        loss=run.loss,
        optimizer=run.optimizer,
        config=run.train,
        mesh=prepared.mesh,
        batches=prepared.batches,
        initial_params=prepared.initial_params,
        initial_optimizer=prepared.initial_optimizer,
        evaluators=prepared.evaluators,
        run_dir=Path(run.model_dir),
        run_config=prepared.settings.to_dict(),
        observer=observer,
    )
    left = prepared.batches.dropped_rows
    if left and result.stopped_by is None and result.step < run.train.train_steps:
        observer.notice(
            f"{left} rows at the end of the data filled no batch of {run.data.batch_rows} and were left out"
        )
    return result
