"""`adapter_config.json` and PEFT's rules of which modules it means, for a base model of known sizes.

PEFT names modules as transformers does, "encoder.block.0.layer.0.SelfAttention.q". A list of targets holds whole names
or ends of names, a text is a regular expression of the whole name (huggingface/peft, tuners_utils.py).
"""

import dataclasses
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flanjax.interchange.folders import ModelFolderError, read_json
from flanjax.interchange.peft_base import Base, Module
from flanjax.interchange.safetensors_files import FLOATS, StoredTensor, file_tensors

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLED = "adapter_model.bin"
PREFIX = "base_model.model."


def selects(rule: str | Sequence[str], name: str) -> bool:
    """Whether `target_modules` or its like means this module."""
    if isinstance(rule, str):
        return re.fullmatch(rule, name) is not None
    return any(name == one or name.endswith(f".{one}") for one in rule)


def ends_with(rule: Iterable[str], name: str) -> bool:
    """Whether `modules_to_save`, or a list of `feedforward_modules`, means this module: the dot need not be there."""
    return any(name.endswith(one) for one in rule)


def shortest(chosen: Collection[str], base: Base, rule: Callable[[list[str], str], bool] = selects) -> list[str]:
    """What to write for a set of modules: the last parts of their names where those mean no other, else whole names."""
    last = sorted({name.rpartition(".")[2] for name in chosen})
    everything = [*base.modules, *base.norms, *base.elsewhere]
    meant = {name for name in everything if rule(last, name)}
    return last if meant == set(chosen) else sorted(chosen)


def pattern_of(paths: Collection[str], everything: Iterable[str], known: Iterable[str]) -> str:
    """A regular expression of these paths among all: a known one where it means the same, else each of them."""
    everything = list(everything)
    for pattern in known:
        if {path for path in everything if re.fullmatch(pattern, path)} == set(paths):
            return pattern
    return "|".join(sorted(paths))


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """An `adapter_config.json`; what it asks for is checked where it is used."""

    path: Path
    raw: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "AdapterConfig":
        """Reads it.

        Raises:
          ModelFolderError: no such folder or file, or no JSON object with a `peft_type`.
        """
        if not folder.is_dir():
            raise ModelFolderError(f"{folder}: there is no such folder")
        if not (folder / CONFIG).is_file():
            inside = cls.named(folder)
            hint = f"; an adapter that has a name lies in a folder of it: {', '.join(inside)}" if inside else ""
            raise ModelFolderError(f"{folder}: no {CONFIG}, so no PEFT adapter{hint}")
        config = cls(folder / CONFIG, read_json(folder / CONFIG))
        if not isinstance(config.raw.get("peft_type"), str):
            raise ModelFolderError(f"{config.path}: peft_type is missing")
        return config

    @classmethod
    def named(cls, folder: Path) -> dict[str, "AdapterConfig"]:
        """Those of the adapters that lie in folders of their names, where `folder` itself holds none.

        Raises:
          ModelFolderError: one of them is no JSON object with a `peft_type`.
        """
        inside = [] if (folder / CONFIG).is_file() else sorted(folder.glob(f"*/{CONFIG}"))
        return {path.parent.name: cls.read(path.parent) for path in inside}

    def error(self, message: str) -> ModelFolderError:
        """An error of this file."""
        return ModelFolderError(f"{self.path}: {message}")

    @property
    def base_name(self) -> str | None:
        """What it calls the base model; None where it says nothing."""
        name = self.raw.get("base_model_name_or_path")
        return name if isinstance(name, str) and name else None

    def refuse_other_kind(self, base: Base) -> None:
        """Refuses what was trained before the inputs of an encoder-decoder for a decoder, and the other way round.

        Only what lies under no module's name needs it: names tell the two apart.

        Raises:
          ModelFolderError: `task_type` or `num_transformer_submodules` is of the other kind.
        """
        kinds = {"SEQ_2_SEQ_LM": "an encoder-decoder", "CAUSAL_LM": "a decoder"}
        own, task = "CAUSAL_LM" if base.causal else "SEQ_2_SEQ_LM", self.raw.get("task_type")
        if task in kinds and task != own:
            raise self.error(f"task_type is {task!r}: it was trained on {kinds[task]}, and this model is {kinds[own]}")
        if base.causal and self.number("num_transformer_submodules", 1, whole=True) != 1:
            raise self.error(
                f"num_transformer_submodules is {self.raw['num_transformer_submodules']}: it was trained on "
                f"{kinds['SEQ_2_SEQ_LM']}, and this model is {kinds[own]}"
            )

    def number(self, key: str, default: float | None = None, *, whole: bool = False) -> Any:
        """A number of at least 0; whole ones at least 1.

        Raises:
          ModelFolderError: it is another thing, or missing and without default.
        """
        return self._checked(key, default if self.raw.get(key) is None else self.raw[key], whole)

    def _checked(self, key: str, value: Any, whole: bool) -> Any:
        kind = int if whole else int | float
        if isinstance(value, bool) or not isinstance(value, kind) or value < int(whole):
            wanted = "a whole number of at least 1" if whole else "a number of at least 0"
            raise self.error(f"{key} is {value!r}: it must be {wanted}")
        return value

    def by_pattern(self, key: str, name: str, default: float, *, whole: bool = False) -> Any:
        """`rank_pattern` or `alpha_pattern` for one module: of the first expression that ends where its name ends.

        Raises:
          ModelFolderError: it is no such table.
        """
        table = self.raw.get(key) or {}
        if not isinstance(table, dict):
            raise self.error(f"{key} is {table!r}: it must map names of modules to numbers")
        for pattern, value in table.items():
            if self._matches(rf"(.*\.)?({pattern})$", name, key):
                return self._checked(f"{key}[{pattern!r}]", value, whole)
        return default

    def _matches(self, pattern: str, name: str, key: str) -> re.Match[str] | None:
        try:
            return re.match(pattern, name)
        except re.error as error:
            raise self.error(f"{key} holds {pattern!r}, which is no regular expression: {error}") from error

    def refuse(self, reasons: Mapping[str, str]) -> None:
        """Refuses keys that are set and would change the function.

        Raises:
          ModelFolderError: one is.
        """
        for key, reason in reasons.items():
            if self.raw.get(key):
                raise self.error(f"{key} is {json.dumps(self.raw[key])}: {reason}")

    def rule(self, key: str, default: Sequence[str]) -> str | list[str]:
        """A list of names, or a regular expression.

        Raises:
          ModelFolderError: it is neither.
        """
        value = self.raw.get(key)
        if value is None:
            return list(default)
        if isinstance(value, list) and all(isinstance(one, str) for one in value):
            return value
        if not isinstance(value, str):
            raise self.error(f"{key} is {value!r}: it must be a list of names or a regular expression")
        self._matches(value, "", key)
        return value

    def targets(self, base: Base, default: Sequence[str]) -> dict[str, Module]:
        """The projections that carry an adapter.

        Raises:
          ModelFolderError: there is none, or the embedding or the head is among them.
        """
        rule, excluded = self.rule("target_modules", default), self.rule("exclude_modules", ())
        known = base.modules
        if rule == "all-linear":
            rule = list(known)
        chosen = {
            name
            for name in (*known, *base.elsewhere)
            if selects(rule, name) and not selects(excluded, name) and self._in_chosen_layer(name, rule)
        }
        if others := sorted(chosen - known.keys()):
            raise self.error(f"target_modules names {', '.join(others)}: only projections of layers have adapters here")
        if not chosen:
            names = sorted({name.rpartition(".")[2] for name in known})
            raise self.error(
                f"target_modules {rule!r} names nothing in this model, whose projections are {', '.join(names)}: "
                "it is an adapter of another one"
            )
        return {name: module for name, module in known.items() if name in chosen}

    def _in_chosen_layer(self, name: str, rule: str | Sequence[str]) -> bool:
        layers = self.raw.get("layers_to_transform")
        if layers is None or layers == [] or isinstance(rule, str):
            return True
        patterns = self.raw.get("layers_pattern") or []
        patterns = [patterns] if isinstance(patterns, str) else patterns
        found = [rf"(?:^|.*?\.){pattern}\.(\d+)\." for pattern in patterns] or [r".*?\.[^.]*\.(\d+)\."]
        match = next((m for m in (self._matches(p, name, "layers_pattern") for p in found) if m), None)
        return match is not None and int(match[1]) in (layers if isinstance(layers, list) else [layers])


@dataclasses.dataclass(frozen=True)
class AdapterTensors:
    """The tensors of an adapter's file, by name without `base_model.model.`."""

    config: AdapterConfig

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """What there is, by name."""
        return {name: tensor.shape for name, tensor in self._stored().items()}

    def _stored(self) -> dict[str, StoredTensor]:
        file = _weights(self.config.path.parent)
        stored = file_tensors(file)
        if not stored:
            raise ModelFolderError(f"{file}: holds no tensors: whatever wrote it saved nothing; save the adapter again")
        return {name.removeprefix(PREFIX): tensor for name, tensor in stored.items()}

    def take(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
        """All tensors in float32; they are to be these.

        Raises:
          ModelFolderError: the file is empty or damaged; a tensor is missing, unknown, of another shape or type, or
            not finite.
        """
        by_name, file = self._stored(), self.config.path.parent / WEIGHTS
        if wrong := list(_disagreements(shapes, by_name)):
            listed = "\n  ".join(wrong)
            raise ModelFolderError(
                f"{file}: the tensors fit not what {CONFIG} and the sizes of this model ask for:\n  {listed}\n"
                "Is it an adapter of another model, or a file of another configuration?"
            )
        arrays = {name: np.asarray(tensor.float32()) for name, tensor in by_name.items()}
        if bad := [name for name, array in arrays.items() if not np.isfinite(array).all()]:
            raise ModelFolderError(f"{file}: {bad[0]} holds NaN or infinity: its training diverged; take another one")
        return arrays


def _weights(folder: Path) -> Path:
    if (folder / WEIGHTS).is_file():
        return folder / WEIGHTS
    if (folder / PICKLED).exists():
        raise ModelFolderError(
            f"{folder}: only {PICKLED} here, and nothing is ever unpickled; convert it once where peft is installed: "
            "PeftModel.from_pretrained(BASE, FOLDER).save_pretrained(NEW_FOLDER)"
        )
    raise ModelFolderError(f"{folder}: no {WEIGHTS} in this folder")


def _disagreements(shapes: Mapping[str, tuple[int, ...]], stored: Mapping[str, Any]) -> Iterator[str]:
    for name, shape in shapes.items():
        if name not in stored:
            yield f"missing: {name} {shape}"
        elif stored[name].shape != shape:
            yield f"wrong shape: {name} is {stored[name].shape}, not {shape}"
        elif stored[name].dtype not in FLOATS:
            yield f"wrong type: {name} is {stored[name].dtype}, not one of {', '.join(FLOATS)}"
    for name in sorted(stored.keys() - shapes.keys()):
        yield f"unknown: {name} {stored[name].shape}"
