"""Which mesh axis each logical axis lies on: one table for parameters, batches and activations."""

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from flanjax.sharding.mesh import ShardingError

MeshAxes = str | tuple[str, ...] | None
Rules = tuple[tuple[str, MeshAxes], ...]

DEFAULT_RULES: Rules = (
    ("batch", ("data", "fsdp")),
    ("vocab", "model"),
    ("heads", "model"),
    ("mlp", "model"),
    ("embed", "fsdp"),
    ("kv", None),
    ("layers", None),
    ("relpos_buckets", None),
    ("abspos_buckets", None),
    ("rank", None),
    ("blocks", None),
    ("prompts", None),
    ("prompt_length", None),
    ("prompt_hidden", None),
)


def _partition(
    shape: Sequence[int], axes: Sequence[str | None], mesh: Mesh | AbstractMesh, table: Mapping[str, MeshAxes]
) -> tuple[PartitionSpec, list[str]]:
    """The spec of one array, and a note for each dimension that stays whole because it does not divide."""
    sizes = dict(zip(mesh.axis_names, mesh.axis_sizes, strict=True))
    used: set[str] = set()
    spec: list[MeshAxes] = []
    notes = []
    for size, axis in zip(shape, axes, strict=True):
        wanted = table[axis] if axis is not None else None
        names = (wanted,) if isinstance(wanted, str) else (wanted or ())
        # A mesh axis splits an array once: the first dimension to ask for it has it.
        names = tuple(name for name in names if sizes.get(name, 1) > 1 and name not in used)
        parts = math.prod(sizes[name] for name in names)
        if size % parts:
            notes.append(f"{axis} of {size} does not divide by {parts} ({', '.join(names)}): kept whole")
            names = ()
        used.update(names)
        spec.append(names[0] if len(names) == 1 else names or None)
    return PartitionSpec(*spec), notes


def _is_axes(x: Any) -> bool:
    return isinstance(x, tuple)


def _name(path: tuple[Any, ...]) -> str:
    return "/".join(str(getattr(entry, "key", entry)) for entry in path)


def param_shardings(
    axes_tree: Any, shapes_tree: Any, mesh: Mesh, rules: Rules = DEFAULT_RULES
) -> tuple[Any, list[str]]:
    """Where every parameter lies: a tree of `NamedSharding`, and notes on dimensions that could not be split.

    Arguments:
      axes_tree: tuples of logical axis names, the tree of `flanjax.models.t5.logical_axes`.
      shapes_tree: the same tree of arrays or `jax.ShapeDtypeStruct`.
      mesh: the mesh of `make_mesh`.
      rules: pairs (logical axis, mesh axis, tuple of them or None); every logical axis needs one.

    Raises:
      ShardingError: an axis has no rule; the message names the parameter and the axis.
    """
    table = dict(rules)
    notes: list[str] = []

    def shard(path: tuple[Any, ...], axes: tuple[str | None, ...], leaf: Any) -> NamedSharding:
        name = _name(path)
        for axis in axes:
            if axis is not None and axis not in table:
                known = ", ".join(table)
                raise ShardingError(f"parameter {name}: no sharding rule for axis {axis!r}; add one beside {known}")
        spec, found = _partition(leaf.shape, axes, mesh, table)
        notes.extend(f"{name}: {note}" for note in found)
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(shard, axes_tree, shapes_tree, is_leaf=_is_axes), notes


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over `data` and `fsdp`; the other dimensions whole."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def mesh_of(params: Any) -> contextlib.AbstractContextManager[Any]:
    """A context in which the mesh that the parameters are spread over is set, in whatever thread it is entered.

    It does nothing where another mesh is set already, or where they lie on one device.
    """
    shardings = (getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(params))
    meshes = (sharding.mesh for sharding in shardings if isinstance(sharding, NamedSharding))
    mesh = next(meshes, None) if jax.sharding.get_abstract_mesh().empty else None
    return jax.set_mesh(mesh) if isinstance(mesh, Mesh) and mesh.size > 1 else contextlib.nullcontext()


def constrain(x: jax.Array, *logical_axes: str | None) -> jax.Array:
    """`x` held to the default rules when a mesh is set (`jax.set_mesh`); itself without one."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    spec, _ = _partition(x.shape, logical_axes, mesh, dict(DEFAULT_RULES))
    return jax.lax.with_sharding_constraint(x, spec)


def _param_suffix(path: tuple[Any, ...], params: Mapping[tuple[str, ...], Any]) -> tuple[str, ...] | None:
    """The parameter whose path ends this optimizer leaf's path."""
    names = tuple(str(getattr(entry, "key", getattr(entry, "name", getattr(entry, "idx", "")))) for entry in path)
    return next((names[start:] for start in range(len(names)) if names[start:] in params), None)


def _factored_spec(shape: tuple[int, ...], param_shape: tuple[int, ...], spec: PartitionSpec) -> PartitionSpec:
    """The parameter's spec without the one dimension a factored moment has averaged away; whole if unclear."""
    padded = (*spec, *(None,) * (len(param_shape) - len(spec)))
    without = {
        PartitionSpec(*padded[:drop], *padded[drop + 1 :])
        for drop in range(len(param_shape))
        if (*param_shape[:drop], *param_shape[drop + 1 :]) == shape
    }
    return without.pop() if len(without) == 1 else PartitionSpec()


def state_shardings(opt_state_shapes: Any, param_shapes: Any, shardings: Any, mesh: Mesh) -> Any:
    """Where every leaf of an optimizer state lies.

    A leaf whose path ends in a parameter's path and has its shape lies as the parameter; one with a single dimension
    missing (Adafactor's row and column moments) as the parameter without it; anything else is whole everywhere.

    Arguments:
      opt_state_shapes: the state of `jax.eval_shape(optimizer.init, params)`.
      param_shapes: the parameter tree of arrays or shapes, a nested dict.
      shardings: the tree of `param_shardings`.
      mesh: the mesh they lie on.
    """
    flat_shapes = jax.tree_util.tree_flatten_with_path(param_shapes)[0]
    specs = {
        tuple(str(entry.key) for entry in path): (tuple(leaf.shape), sharding.spec)
        for (path, leaf), sharding in zip(flat_shapes, jax.tree.leaves(shardings), strict=True)
    }

    def shard(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = _param_suffix(path, specs)
        if name is None:
            return NamedSharding(mesh, PartitionSpec())
        param_shape, spec = specs[name]
        shape = tuple(leaf.shape)
        return NamedSharding(mesh, spec if shape == param_shape else _factored_spec(shape, param_shape, spec))

    return jax.tree_util.tree_map_with_path(shard, opt_state_shapes)
