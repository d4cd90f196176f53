"""Which parameters move: one label for each, from the methods of a run.

    model = dataclasses.replace(base, added=(LoRA(rank=8),))
    partition = Partition.of(model)
    trainable, frozen = partition.split(params)          # two trees, each without the other's parameters
    params = merge(trainable, frozen)

Gradients, optimizer state and checkpoints are of the trainable tree alone. With no method everything moves.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from flanjax.models.config import Compute
from flanjax.models.model import ModelConfig, abstract_params, build, init_params, logical_axes
from flanjax.models.parameters import Params
from flanjax.tuning.method import Encode, Flat, Method, TuningError

TRAINABLE, FROZEN = "trainable", "frozen"


def flatten(params: Mapping[str, Any]) -> Flat:
    """A nested tree by path, "encoder/layers/attention/query/kernel"."""
    return {"/".join(path): value for path, value in nnx.traversals.flatten_mapping(params).items()}


def unflatten(flat: Mapping[str, Any]) -> Params:
    """The nested tree of paths."""
    return nnx.traversals.unflatten_mapping({tuple(path.split("/")): value for path, value in flat.items()})


def merge(trainable: Params, frozen: Params) -> Params:
    """The whole tree of two that have no parameter in common."""
    return unflatten(flatten(trainable) | flatten(frozen))


@dataclasses.dataclass(frozen=True)
class Partition:
    """A label, `trainable` or `frozen`, for the path of every parameter."""

    labels: Mapping[str, str]

    @classmethod
    def of(cls, model: ModelConfig) -> "Partition":
        """The labels of a model with its methods (`model.added`); a parameter moves if any of them moves it.

        Raises:
          TuningError: a method does not fit the model, or nothing would move.
        """
        methods = methods_of(model)
        # What a method adds is found again by the method's name; codes lie in the place of kernels and have none.
        names = [type(method).__name__ for method in methods if not method.quantizes]
        if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            raise TuningError(f"TUNING has {twice[0]} more than once: give one, whose patterns match all that is meant")
        paths = list(flatten(abstract_params(model)))
        for method in methods:
            method.check(model, paths)
        moved = {path for path in paths if not methods or any(method.trains(path) for method in methods)}
        if not moved:
            raise TuningError(
                f"no parameter would be trained by {', '.join(type(method).__name__ for method in methods)}: "
                "let one of them match something, or give none to train everything"
            )
        return cls({path: TRAINABLE if path in moved else FROZEN for path in paths})

    def split(self, tree: Params) -> tuple[Params, Params]:
        """The trainable and the frozen part of a tree over the parameters, of arrays, shapes, axes or shardings."""
        flat = flatten(tree)
        parts = ({path: flat[path] for path in flat if self.labels[path] == label} for label in (TRAINABLE, FROZEN))
        trainable, frozen = (unflatten(part) for part in parts)
        return trainable, frozen


def methods_of(model: ModelConfig) -> tuple[Method, ...]:
    """The tuning methods of a model, in their order."""
    assert all(isinstance(method, Method) for method in model.added)
    return cast(tuple[Method, ...], model.added)


def trainable_axes(model: ModelConfig) -> Params:
    """The logical axes of the parameters that move, for `make_optimizer`."""
    return Partition.of(model).split(logical_axes(model))[0]


def added_paths(model: ModelConfig) -> set[str]:
    """Paths of the parameters that methods add to the model's own."""
    own = abstract_params(dataclasses.replace(model, added=()))
    return flatten(abstract_params(model)).keys() - flatten(own).keys()


def added_params(model: ModelConfig, seed: int) -> Params:
    """Fresh values of the parameters that methods add; works under jit."""
    added, drawn = added_paths(model), flatten(init_params(model, seed))
    return unflatten({path: drawn[path] for path in drawn if path in added})


def unquantized(model: ModelConfig) -> ModelConfig:
    """The model with the methods alone that leave the kernels what they are."""
    return dataclasses.replace(model, added=tuple(method for method in methods_of(model) if not method.quantizes))


def counted(model: ModelConfig) -> dict[str, int]:
    """How many weights have each label; of a quantized kernel those that it stands for, and not bytes of codes."""
    plain = unquantized(model)
    labels, counts = Partition.of(plain).labels, {TRAINABLE: 0, FROZEN: 0}
    for path, leaf in flatten(abstract_params(plain)).items():
        counts[labels[path]] += leaf.size
    return counts


def begin(model: ModelConfig, base: Params, encode: Encode, seed: int) -> Params:
    """The parameters that tuning starts from: the base's and those added, as the methods begin them.

    They begin in their order, and those that quantize last: what the others make of a kernel is what is quantized.

    Arguments:
      model: with its methods.
      base: parameters of the model without them.
      encode: token ids of a text, for methods that start from words.
      seed: of what is drawn.

    Raises:
      TuningError: a method cannot begin with this base.
    """
    if not added_paths(model):
        return base
    flat = flatten(base) | flatten(jax.jit(added_params, static_argnums=(0, 1))(model, seed))
    for method in sorted(methods_of(model), key=lambda method: method.quantizes):
        flat = method.begin(model, flat, encode)
    return unflatten(flat)


def digest(params: Params) -> str:
    """What a base model is known by: 16 hex digits over names, shapes and bytes of its parameters."""
    found = hashlib.sha256()
    for path, value in sorted(flatten(params).items()):
        found.update(f"{path} {value.shape} {value.dtype};".encode())
        for part in _parts(value):
            found.update(np.ascontiguousarray(part).data)
    return found.hexdigest()[:16]


def digest_of_few(params: Params) -> str:
    """`digest` of the first numbers of each parameter, up to 64 of one row: little is read, and training moves them."""
    few = {}
    for path, value in flatten(params).items():
        few[path] = value[((slice(1),) * (value.ndim - 1) + (slice(64),))[: value.ndim]]
    return digest(unflatten(few))


def _parts(value: Any) -> Iterator[Any]:
    """A kernel of a stack layer by layer, whatever else as a whole: what lies in a file is read tensor by tensor."""
    if value.ndim < 3 or isinstance(value, jax.Array):
        yield value
        return
    for layer in range(value.shape[0]):
        yield value[(slice(layer, layer + 1), *(slice(None),) * (value.ndim - 1))]


def merged(model: ModelConfig, params: Params) -> tuple[ModelConfig, Params]:
    """The model and its parameters without what methods added: the effect is in the model's own parameters.

    Raises:
      TuningError: a method adds something that a plain model has no place for, or has quantized the kernels.
    """
    if model != unquantized(model):
        raise TuningError(
            "a quantised base cannot be merged without its full-precision original: rounding the sum again would lose "
            "what was learnt. Merge `unquantized(model)` over the original's parameters and the trained ones, as "
            "`python -m flanjax.export --merge` does from the run's INIT_FROM"
        )
    flat = flatten(params)
    for method in methods_of(model):  # in the order in which they lie around a projection
        flat = method.merge(flat)
    return dataclasses.replace(model, added=()), unflatten(flat)


def logit_difference(one: tuple[ModelConfig, Params], other: tuple[ModelConfig, Params]) -> float:
    """The largest absolute difference of a logit between two models, float32, over a few random tokens."""
    rows = jax.random.randint(jax.random.key(0), (2, 2, 32), 2, one[0].vocab_size)
    ones = jnp.ones_like(rows[0])
    batch = {"encoder_input_tokens": rows[0], "encoder_segment_ids": ones}
    batch |= {"decoder_input_tokens": rows[1], "decoder_segment_ids": ones}

    def logits(model: ModelConfig, params: Params) -> jax.Array:
        built = build(model, Compute(), jax.tree.map(jnp.asarray, params))
        return built.logits(built(batch))

    return float(jnp.abs(logits(*one) - logits(*other)).max())
