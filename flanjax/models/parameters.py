"""From a module that only describes its parameters to one over arrays: the same way for every model.

Constructors leave a `jax.ShapeDtypeStruct`, logical axes and a deviation in every `nnx.Param`
(`flanjax.models.layers.parameter`). Here such a description becomes the tree of shapes, of axes or of first values,
and arrays are put in its places. The layers of a stack are one description with a leading `layers` axis.
"""

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from flanjax.models.config import Addition, Compute, ModelConfigError

Params = dict[str, Any]
Layer = TypeVar("Layer", bound=nnx.Module)
Model = TypeVar("Model", bound=nnx.Module)


def _is_parameter(x: Any) -> bool:
    return isinstance(x, nnx.Variable)


def stacked(layer: Layer, count: int, added: Sequence[Addition], path: str) -> Layer:
    """The layer's description with a leading `layers` axis of `count` on every parameter, with what is added to each.

    Their parameters will lie under `path`.
    """
    for addition in added:
        addition.attach(layer, path)

    def stack(p: nnx.Variable) -> nnx.Variable:
        shape = jax.ShapeDtypeStruct((count, *p.get_value().shape), p.get_value().dtype)
        return p.replace(shape, axes=("layers", *p.axes))

    graphdef, state = nnx.split(layer)
    return nnx.merge(graphdef, jax.tree.map(stack, state, is_leaf=_is_parameter))


def over_layers(body: Callable[[Any, Any], tuple[Any, Any]], carry: Any, layers: Any, compute: Compute) -> Any:
    """`jax.lax.scan` over stacked layers, as a loop or in line, recomputing what the remat policy does not save."""
    policies = {
        "minimal": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        "full": jax.checkpoint_policies.nothing_saveable,
    }
    if compute.remat != "none":
        body = jax.checkpoint(body, policy=policies[compute.remat], prevent_cse=not compute.scan_layers)
    return jax.lax.scan(body, carry, layers, unroll=1 if compute.scan_layers else True)


def layer_numbers(layers: nnx.Module) -> Array:
    """0, 1, ... as many as there are stacked layers."""
    return jnp.arange(jax.tree.leaves(layers)[0].shape[0])


def map_parameters(state: nnx.State, function: Callable[[str, nnx.Variable], Any]) -> Params:
    """A tree of the described parameters' paths, filled with `function(path, description)`."""
    flat = {path: function("/".join(map(str, path)), p) for path, p in nnx.to_flat_state(state)}
    return nnx.traversals.unflatten_mapping(flat)


def draw_parameters(state: nnx.State, seed: int) -> Params:
    """First values with the described deviations.

    Each parameter draws from the seed and its own path, so neither sharding nor the presence of other parameters
    changes a value.
    """
    key = jax.random.key(seed)

    def draw(path: str, p: nnx.Variable) -> Array:
        shape, dtype = p.get_value().shape, p.get_value().dtype
        if p.stddev is None:
            return jnp.ones(shape, dtype)
        if not p.stddev:
            return jnp.zeros(shape, dtype)
        own = jax.random.fold_in(key, zlib.crc32(path.encode()))
        if p.uniform:
            bound = math.sqrt(3) * p.stddev
            return jax.random.uniform(own, shape, jnp.float32, -bound, bound).astype(dtype)
        return (p.stddev * jax.random.normal(own, shape, jnp.float32)).astype(dtype)

    return map_parameters(state, draw)


def fill_parameters(graphdef: nnx.GraphDef[Model], state: nnx.State, params: Mapping[str, Any]) -> Model:
    """The described model over these parameters.

    Raises:
      ModelConfigError: a parameter is missing, unknown or of another shape; the message names its path.
    """
    given = {"/".join(path): value for path, value in nnx.traversals.flatten_mapping(params).items()}

    def fill(path: tuple[Any, ...], p: nnx.Variable) -> nnx.Variable:
        name, shape = "/".join(map(str, path)), tuple(p.get_value().shape)
        if name not in given:
            raise ModelConfigError(f"parameter {name} {shape} is missing: the parameters are of another model")
        value = given.pop(name)
        if tuple(value.shape) != shape:
            raise ModelConfigError(
                f"parameter {name} has shape {tuple(value.shape)}, the configuration asks for {shape}"
            )
        return p.replace(value)

    filled = nnx.from_flat_state([(path, fill(path, p)) for path, p in nnx.to_flat_state(state)])
    if given:
        raise ModelConfigError(
            f"unknown parameters {', '.join(sorted(given))}: the configuration has no place for them"
        )
    return nnx.merge(graphdef, filled)
