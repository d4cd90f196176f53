"""What a tuning method is: what it adds to the layers, which parameters it moves, and how it is merged away.

    model = dataclasses.replace(base, added=(LoRA(rank=8), Train(parameters=".*norm/scale")))

Methods are frozen dataclasses without arrays: a run keeps them in its settings, jit takes them as part of the model.
Paths are the parameters' own, "encoder/layers/attention/query/kernel".
"""

import abc
import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, TypeVar

from flax import nnx

from flanjax.errors import FlanjaxError
from flanjax.models.layers import Adaptable, Linear
from flanjax.models.model import ModelConfig
from flanjax.models.prompts import Prefixes, Prompt
from flanjax.tuning import patterns

Flat = dict[str, Any]
# A text's token ids, without EOS.
Encode = Callable[[str], list[int]]


class TuningError(FlanjaxError):
    """A tuning method that does not fit the model, or that would train nothing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method(abc.ABC):
    """A method that adds nothing; each says what it moves, and what it does differently.

    Attributes:
      name: in settings and in the paths of what it adds.
      quantizes: whether it keeps kernels of the model's own in another form, as `flanjax.models.layers.Packed`. It then
        begins after all methods that do not, which read and change the kernels themselves, and a model is merged
        without it, into the kernels that it was made from.
      merges: whether a plain model can hold what it adds; if not, `merge` raises where it added something.
      notice: what a person should know when a run starts.
    """

    name: ClassVar[str]
    quantizes: ClassVar[bool] = False
    merges: ClassVar[bool] = True
    notice: ClassVar[str | None] = None

    @property
    def dropout_rate(self) -> float:
        """Of a dropout of the method's own."""
        return 0.0

    @property
    def prompt_length(self) -> int:
        """Positions of a learnt prompt before every example's inputs."""
        return 0

    @property
    def prompt_tasks(self) -> tuple[str, ...]:
        """The tasks that have a prompt of their own."""
        return ()

    @property
    def prefix_length(self) -> int:
        """Positions of a learnt prefix before every text of a decoder."""
        return 0

    def prompt(self, model: ModelConfig) -> Prompt:
        """The prompt of a method that has a `prompt_length`.

        Raises:
          TuningError: this one has none.
        """
        raise TuningError(f"{type(self).__name__} has no prompt")

    def prefixes(self, layer: nnx.Module, count: int, path: str) -> Prefixes | None:
        """What makes prefixes for all layers of a stack together, where the method has that.

        Arguments:
          layer: one of them, of which the sizes are read.
          count: how many there are.
          path: of the stacked layers.
        """
        return None

    def attach(self, layer: nnx.Module, path: str) -> None:  # noqa: B027  some methods add nothing
        """Puts what the method adds into one layer of a stack."""

    @abc.abstractmethod
    def trains(self, path: str) -> bool:
        """Whether the method moves this parameter."""

    @abc.abstractmethod
    def check(self, model: ModelConfig, paths: list[str]) -> None:
        """Refuses a model that the method cannot tune.

        Arguments:
          model: with the method's own additions.
          paths: of all its parameters.

        Raises:
          TuningError: it does not fit; the message says what does.
        """

    def check_choice(self, model: ModelConfig) -> None:  # noqa: B027  most choices make sense
        """Refuses what can be computed, and nobody would choose.

        A person's own methods are asked, those that were read from an adapter are not.

        Arguments:
          model: without methods.

        Raises:
          TuningError: it makes no sense; the message says what does.
        """

    def begin(self, model: ModelConfig, params: Flat, encode: Encode) -> Flat:
        """The parameters that tuning begins with, by path, where they hang on the base model or its vocabulary.

        A pure function: a checkpoint has only what moves, and the rest is made again.

        Arguments:
          model: with its methods.
          params: the base's, arrays or still in files, and the method's own as they were drawn.
          encode: of the run's vocabulary.

        Raises:
          TuningError: the method cannot begin with what there is.
        """
        return params

    def merge(self, params: Flat) -> Flat:
        """The parameters, by path, without the method's own, whose effect is in the others.

        Raises:
          TuningError: what the method adds cannot be put into the model's own parameters.
        """
        return params


Kind = TypeVar("Kind", bound=Adaptable)


def matching(layer: nnx.Module, path: str, pattern: str, *kinds: type[Kind]) -> list[tuple[str, Kind]]:
    """The modules of these kinds in a layer whose whole path matches a regular expression, with these paths."""
    named = (("/".join((path, *map(str, inner))), module) for inner, module in nnx.iter_modules(layer))
    return [(name, module) for name, module in named if isinstance(module, kinds) and re.fullmatch(pattern, name)]


def targets(layer: nnx.Module, path: str, pattern: str) -> list[Linear]:
    """The projections of a layer whose whole path matches a regular expression."""
    return [linear for _, linear in matching(layer, path, pattern, Linear)]


def check_pattern(method: Method, field: str) -> None:
    """Refuses a text that is no regular expression.

    Raises:
      TuningError: it is not.
    """
    pattern = getattr(method, field)
    for one in [pattern] if isinstance(pattern, str) else pattern:
        patterns.check_pattern(one, f"{type(method).__name__}.{field}", TuningError)


def projections(paths: Iterable[str]) -> list[str]:
    """The projections that `targets` can find, of the paths of all parameters."""
    found = (path.rpartition("/kernel") for path in paths if "/layers/" in path)
    # A packed kernel has parameters below it.
    return list(dict.fromkeys(path for path, kernel, rest in found if kernel and rest[:1] in ("", "/")))


def blocks(paths: Iterable[str]) -> list[str]:
    """The blocks, attention and feed-forward, of the paths of all parameters."""
    return list(dict.fromkeys(path.rpartition("/")[0] for path in projections(paths)))


def no_match(method: Method, field: str, candidates: list[str]) -> TuningError:
    """The error of a pattern that nothing matches, with the nearest names."""
    return TuningError(patterns.unmatched(getattr(method, field), candidates, f"{type(method).__name__}.{field}"))


def cannot_merge(method: Method, reason: str) -> TuningError:
    """The error of a method whose effect no plain model can have."""
    return TuningError(
        f"{type(method).__name__} cannot be merged: {reason}. Keep the run directory: flanjax.load opens it as it is"
    )


def split_adapter(params: Mapping[str, Any], name: str) -> tuple[dict[str, dict[str, Any]], Flat]:
    """Adapters called `name`, by the path of their projection, as {part: array}; and all other parameters."""
    adapters: dict[str, dict[str, Any]] = {}
    others: Flat = {}
    for path, value in params.items():
        projection, found, part = path.rpartition(f"/{name}/")
        if found:
            adapters.setdefault(projection, {})[part] = value
        else:
            others[path] = value
    return adapters, others
