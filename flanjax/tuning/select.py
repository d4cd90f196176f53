"""Tuning some of the model's own parameters: chosen by regular expressions, such as the layer norms alone."""

import dataclasses
import re
from typing import ClassVar

from flanjax.models.model import ModelConfig
from flanjax.tuning.method import Method, check_pattern, no_match

LAYER_NORMS = r".*norm/(scale|bias)"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(Method):
    """Moves the parameters whose whole path matches, and no other.

    Attributes:
      parameters: regular expression; the default is every layer norm (LN tuning).

    Raises:
      TuningError: a pattern that is none.
    """

    name: ClassVar[str] = "train"
    parameters: str = LAYER_NORMS

    def __post_init__(self) -> None:
        check_pattern(self, "parameters")

    def trains(self, path: str) -> bool:
        """Whether the whole path matches."""
        return re.fullmatch(self.parameters, path) is not None

    def check(self, model: ModelConfig, paths: list[str]) -> None:
        """Refuses a pattern that nothing matches."""
        if not any(map(self.trains, paths)):
            raise no_match(self, "parameters", paths)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Freeze(Method):
    """Moves every parameter of the base model but those whose whole path matches.

    Attributes:
      parameters: regular expression of what stays as it is.

    Raises:
      TuningError: a pattern that is none.
    """

    name: ClassVar[str] = "freeze"
    parameters: str

    def __post_init__(self) -> None:
        check_pattern(self, "parameters")

    def trains(self, path: str) -> bool:
        """Whether the path does not match."""
        return re.fullmatch(self.parameters, path) is None

    def check(self, model: ModelConfig, paths: list[str]) -> None:
        """Refuses a pattern that freezes nothing."""
        if all(map(self.trains, paths)):
            raise no_match(self, "parameters", paths)
