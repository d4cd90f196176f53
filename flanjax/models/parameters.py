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
import numpy as np
from flax import nnx
from jaxtyping import Array

from flanjax.models.config import Addition, Compute, ModelConfigError

ATTENTION = "attention"  # what `checkpoint_name` calls the results of attention that `minimal` saves

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


class Apart(tuple[Array, ...]):
    """What stacked layers have, as an array for each instead of one with a leading axis.

    A program on a CPU copies a layer's share out of the stack before it multiplies with it, which for the few rows of
    a decoding takes longer than the product; other devices read it where it lies.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the layers together."""
        return (len(self), *self[0].shape)


jax.tree_util.register_pytree_node(Apart, lambda parts: (parts, None), lambda _, parts: Apart(parts))


def layers_apart(params: Params) -> Params:
    """The same parameters, where they are on one CPU device the layers of a stack `Apart`: views, nothing is copied.

    On other devices, and where numpy does not know the type (bfloat16), they stay as they are.
    """

    def views(path: tuple[Any, ...], x: Any) -> Any:
        in_stack = any(getattr(key, "key", None) == "layers" for key in path)
        if not in_stack or not isinstance(x, Array) or x.dtype == jnp.bfloat16:
            return x
        if [device.platform for device in x.devices()] != ["cpu"]:
            return x
        layers: Any = np.from_dlpack(x)  # type: ignore[arg-type]
        # On the device itself: the sharding, where x lies on a mesh of one device, is of all axes.
        return Apart(jax.device_put(layer, *x.devices(), may_alias=True) for layer in layers)

    return jax.tree_util.tree_map_with_path(views, params)


def are_apart(tree: Any) -> bool:
    """Whether any of its stacked layers are `Apart`."""
    return any(_is_apart(x) for x in jax.tree.leaves(tree, is_leaf=_is_apart))


def each_layer(function: Callable[..., Array], first: Array | Apart, *others: Array | Apart) -> Array | Apart:
    """A function of one layer's arrays, for every layer; the layers stay as they are in `first`."""
    if isinstance(first, Apart):
        return Apart(function(*layer) for layer in zip(first, *others, strict=True))
    return jax.vmap(function)(first, *others)


def _is_apart(x: Any) -> bool:
    return isinstance(x, Apart)


def over_layers(body: Callable[[Any, Any], tuple[Any, Any]], carry: Any, layers: Any, compute: Compute) -> Any:
    """`jax.lax.scan` over stacked layers, as a loop or in line, recomputing what the remat policy does not save.

    Where anything of the layers is `Apart`, in line, and so is what they return.
    """
    if counts := {len(x) for x in jax.tree.leaves(layers, is_leaf=_is_apart) if _is_apart(x)}:
        found = []
        for i in range(*counts):
            carry, y = body(carry, jax.tree.map(lambda x, i=i: x[i], layers, is_leaf=_is_apart))
            found.append(y)
        return carry, jax.tree.map(lambda *y: Apart(y), *found)
    policies = {
        "minimal": jax.checkpoint_policies.save_from_both_policies(
            jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
            jax.checkpoint_policies.save_only_these_names(ATTENTION),
        ),
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
        """The first value of one parameter, in its shape and dtype."""
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
        """The parameter with the array that is given for its path."""
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
