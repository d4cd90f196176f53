"""The tensors of a T5X checkpoint and the parameters of flanjax: which lies where.

Names and orientation are the same, and only the layers of a stack differ. flanjax joins them on a leading axis. T5X has
a tensor for each, `encoder/layers_0/mlp/wo/kernel` (t5x/examples/t5), or, scanned (t5x/examples/scalable_t5), one with
the layers on axis 1, `encoder/encoder/mlp/wo/kernel`. A scanned model has a table of relative positions in every layer.
"""

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np

from flanjax.interchange.stored import StoredArray, stacked, transposed
from flanjax.models.config import T5Config
from flanjax.models.t5 import abstract_params
from flanjax.tuning.partition import flatten

RELPOS = "relpos_bias/rel_embedding"
_LAYERS = "layers/"


@dataclasses.dataclass(frozen=True)
class Place:
    """Where one parameter lies in a T5X checkpoint.

    Attributes:
      path: of the parameter.
      shape: of the parameter.
      names: of the T5X tensors: one for each layer, or one for all.
      scanned: the layers are on axis 1 of the one tensor.
      copies: the tensor is a position table in every one of so many layers, where the parameter is one for all.
    """

    path: str
    shape: tuple[int, ...]
    names: tuple[str, ...]
    scanned: bool = False
    copies: int | None = None

    @property
    def is_layered(self) -> bool:
        """Whether the parameter is that of all layers of a stack."""
        return self.path.partition("/")[2].startswith(_LAYERS)

    @property
    def tensor_shape(self) -> tuple[int, ...]:
        """The shape of each T5X tensor."""
        first, *rest = self.shape
        if self.copies is not None:
            return (first, self.copies, *rest)
        if self.scanned:
            return (rest[0], first, *rest[1:])
        return tuple(rest) if self.is_layered else self.shape

    def read(self, tensors: Mapping[str, StoredArray]) -> StoredArray:
        """The parameter, of all tensors by name."""
        own = [tensors[name] for name in self.names]
        if self.copies is not None:
            return np.asarray(own[0])[:, 0]
        if self.scanned:
            return transposed(own[0], _swapped(len(self.shape)))
        return stacked(own) if self.is_layered else own[0]

    def parts(self, parameter: np.ndarray) -> list[np.ndarray]:
        """The tensors, one for each of `names`, of the parameter."""
        if self.copies is not None:
            return [np.repeat(parameter[:, None], self.copies, axis=1)]
        if self.scanned:
            return [parameter.transpose(_swapped(parameter.ndim))]
        return list(parameter) if self.is_layered else [parameter]


def _swapped(ndim: int) -> tuple[int, ...]:
    """The axes with the first two in each other's place."""
    return (1, 0, *range(2, ndim))


def t5x_places(config: T5Config, *, scanned: bool = False) -> list[Place]:
    """Where every parameter of `config` lies, in the order of the parameter tree.

    Worked example: `encoder/layers/mlp/wo/kernel` of two layers, (2, 1024, 512), lies in
    `encoder/layers_0/mlp/wo/kernel` and `encoder/layers_1/mlp/wo/kernel`, (1024, 512) each; scanned, in
    `encoder/encoder/mlp/wo/kernel`, (1024, 2, 512).
    """
    places = []
    for path, leaf in flatten(abstract_params(dataclasses.replace(config, added=()))).items():
        stack, _, rest = path.partition("/")
        layer = rest.removeprefix(_LAYERS)
        if scanned and rest == RELPOS:
            places.append(Place(path, leaf.shape, (f"{stack}/{stack}/{rest}",), copies=config.stacks[stack]))
        elif layer == rest:
            places.append(Place(path, leaf.shape, (path,)))
        elif scanned:
            places.append(Place(path, leaf.shape, (f"{stack}/{stack}/{layer}",), scanned=True))
        else:
            names = tuple(f"{stack}/layers_{number}/{layer}" for number in range(leaf.shape[0]))
            places.append(Place(path, leaf.shape, names))
    return places


def is_scanned(names: Iterable[str]) -> bool:
    """Whether a checkpoint with tensors of these names keeps all layers of a stack in one."""
    return any(name.startswith("encoder/encoder/") for name in names)
