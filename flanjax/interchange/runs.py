"""A run directory read back: its model, the parameters of one checkpoint, its vocabulary, and its recipe in words.

config.json      the resolved settings; `model` holds those of `flanjax.models.model.model_settings`
vocabulary/      spiece.model and vocabulary.json
checkpoints/     one folder a step
"""

import dataclasses
import json
from collections.abc import Mapping
from itertools import starmap
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from flanjax.data.vocabularies import Vocabulary
from flanjax.files import address_of
from flanjax.interchange.folders import ModelFolderError, read_json
from flanjax.interchange.stored import shardings_on
from flanjax.models.config import ModelConfigError
from flanjax.models.model import ModelConfig, abstract_params, init_params, model_from_settings
from flanjax.models.parameters import Params
from flanjax.tuning.method import Flat, TuningError
from flanjax.tuning.methods import from_settings
from flanjax.tuning.partition import Partition, added_paths, begin, digest, flatten, unflatten, unquantized

SETTINGS = "config.json"
CHECKPOINTS = "checkpoints"
VOCABULARY = "vocabulary"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """What a run directory holds at one checkpoint.

    Attributes:
      model: the configuration of the model.
      params: its parameters.
      begun: those that its tuning methods added, as tuning began with them, by path.
      vocabulary: the run's own copy.
      step: the checkpoint's step.
      settings: the whole resolved configuration of the run.
    """

    model: ModelConfig
    params: Params
    begun: Flat
    vocabulary: Vocabulary
    step: int
    settings: Mapping[str, Any]

    @property
    def is_prefix_lm(self) -> bool:
        """Whether it is a decoder whose inputs see each other in both directions."""
        return bool(self.settings.get("data", {}).get("layout") == "prefix_lm")

    @property
    def recipe(self) -> dict[str, str]:
        """How the model was trained, label to value, for a model card."""
        return recipe(self.settings, self.step)


def is_run(folder: Path) -> bool:
    """Whether `folder` is a run directory and not a Hugging Face folder; both have a `config.json`."""
    return (folder / SETTINGS).is_file() and isinstance(read_json(folder / SETTINGS).get("model"), dict)


def read_settings(folder: Path) -> tuple[ModelConfig, dict[str, Any]]:
    """The model of a run directory with its tuning methods, and the whole resolved configuration that it is a part of.

    Raises:
      ModelFolderError: it is no run directory, or its settings are damaged.
    """
    if not is_run(folder):
        raise ModelFolderError(f"{folder}: this is no run directory: it needs {SETTINGS} with a `model` in it")
    settings = read_json(folder / SETTINGS)
    try:
        methods = from_settings(settings.get("tuning") or ())
        return model_from_settings(settings["model"], methods), settings
    except (TypeError, ModelConfigError, TuningError) as error:
        raise ModelFolderError(f"{folder / SETTINGS}: model: {error}") from error


def read_run(
    folder: str | Path, *, step: int | None = None, quantized: bool = True, mesh: Mesh | None = None
) -> TrainedRun:
    """Opens a run directory at `step`, or at its latest whole checkpoint.

    With a mesh the checkpoint is read straight onto its devices; without one it is numpy arrays.

    With `quantized=False` methods that quantize are left out: what was trained lies on the base that they had rounded,
    in full precision, which can be merged.

    Raises:
      FlanjaxError: it is no run directory, its settings, vocabulary or checkpoint are missing or damaged, or there is
        no checkpoint of that step.
    """
    folder = Path(folder)
    model, settings = read_settings(folder)
    if not quantized:
        model = unquantized(model)
    vocabulary = Vocabulary.load(folder / VOCABULARY)
    # Here, for Orbax takes seconds to import and a Hugging Face folder does without it.
    from flanjax.training.checkpoints import restore_params

    layout = None if mesh is None else _layout(model, mesh)
    params, step = restore_params(folder / CHECKPOINTS, step, layout)
    _check_shapes(folder, step, model, params)
    begun: Flat = {}
    if model.added:
        # The checkpoint has what moved, the base everything else.
        base = _base(folder, model, settings, mesh)
        start = begin(model, base, vocabulary.encode, settings["train"]["seed"])
        added = added_paths(model)
        begun = {path: value for path, value in flatten(start).items() if path in added}
        params = unflatten(flatten(start) | flatten(params))
    return TrainedRun(model=model, params=params, begun=begun, vocabulary=vocabulary, step=step, settings=settings)


def _check_shapes(folder: Path, step: int, model: ModelConfig, params: Params) -> None:
    """Refuses a checkpoint that is of another model than the settings beside it.

    Raises:
      ModelFolderError: a parameter is missing, unknown or of another shape.
    """
    found = {path: tuple(value.shape) for path, value in flatten(params).items()}
    wanted = {path: leaf.shape for path, leaf in flatten(Partition.of(model).split(abstract_params(model))[0]).items()}
    for path in sorted(found.keys() | wanted.keys()):
        if found.get(path) != wanted.get(path):
            raise ModelFolderError(
                f"{folder}: {path} is {found.get(path, 'absent')} in the checkpoint of step {step}, but by {SETTINGS} "
                f"it would be {wanted.get(path, 'absent')}: one of the two is of another run"
            )


def _layout(model: ModelConfig, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    shapes, shardings = flatten(abstract_params(model)), flatten(shardings_on(mesh, model))
    return {path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shardings[path]) for path, x in shapes.items()}


def _base(folder: Path, model: ModelConfig, settings: Mapping[str, Any], mesh: Mesh | None) -> Params:
    """The parameters that a tuned run started from.

    Raises:
      FlanjaxError: they are not there any more, or are not the ones that it was tuned on.
    """
    source = settings["init_from"]
    if source is None:
        plain = dataclasses.replace(model, added=())
        places = None if mesh is None else shardings_on(mesh, plain)
        drawn: Params = jax.jit(init_params, static_argnums=(0, 1), out_shardings=places)(
            plain, settings["train"]["seed"]
        )
        return drawn
    if not Path(source).exists() and address_of(source) is None:
        raise ModelFolderError(
            f"{folder} has only what was tuned of {source}, and that is not there: put it back, or correct init_from "
            f"in {folder / SETTINGS}"
        )
    # Here, for it reads runs with this module.
    from flanjax.interchange.any_model import read_model

    _, params = read_model(source)
    if digest(params) != settings["base"]:
        raise ModelFolderError(
            f"{folder} was tuned on a base model {settings['base']}, but {source} is {digest(params)}: "
            "what it learnt means nothing to other parameters"
        )
    return params


_RECIPE = (
    ("Base model", ("init_from",)),
    ("Adapter it went on with", ("adapter_from",)),
    ("Tuning methods", ("tuning",)),
    ("Mixture", ("data", "mixture")),
    ("Mixing rates", ("data", "rates")),
    ("Planned steps", ("train", "train_steps")),
    ("Packed rows per step", ("data", "batch_rows")),
    ("Row lengths in tokens (inputs, targets)", ("data", "row_lengths")),
    ("Optimizer", ("optimizer", "name")),
    ("Learning rate", ("optimizer", "learning_rate")),
    ("Schedule", ("optimizer", "schedule")),
    ("Warm-up steps", ("optimizer", "warmup_steps")),
    ("Warm-up, share of the steps", ("optimizer", "warmup_ratio")),
    ("Dropout", ("model", "dropout_rate")),
    ("Compute", ("compute", "dtype")),
    ("Seed", ("train", "seed")),
)
_WHERE_SET = (("adapter_from",), ("optimizer", "warmup_steps"), ("optimizer", "warmup_ratio"))
_ABSENT = object()


def recipe(settings: Mapping[str, Any], step: int) -> dict[str, str]:
    """The lines of a model card that say how a run was trained; settings that a run does not have are left out.

    Worked example: `recipe({"init_from": None, "data": {"mixture": "demo", "row_lengths": [256, 32]}}, 300)` is
    {"Base model": "none (random parameters)", "Mixture": "demo", "Row lengths in tokens (inputs, targets)":
    "256, 32", "Steps": "300"}.
    """
    lines = {}
    for label, path in _RECIPE:
        value: Any = settings
        for key in path:
            value = value.get(key, _ABSENT) if isinstance(value, Mapping) else _ABSENT
        if path == ("data", "row_lengths") and value is not _ABSENT and len(value) == 1:
            label = "Row length in tokens"  # a decoder's
        if value is not _ABSENT and (value or path not in _WHERE_SET):
            lines[label] = _readable(path[-1], value)
    return {**lines, "Steps": str(step)}


def _setting(name: str, value: Any) -> str:
    return f"{name}={Path(value).name if name.endswith('_file') and value else value}"


def _readable(key: str, value: Any) -> str:
    if key in ("init_from", "adapter_from"):
        # The folder's name alone: where it lay on somebody's disk is nobody's business.
        return Path(value).name if value else "none (random parameters)"
    if key == "tuning":
        return "; ".join(", ".join(starmap(_setting, method.items())) for method in value) or "none"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return value if isinstance(value, str) else json.dumps(value)
