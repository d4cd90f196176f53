"""The device mesh: axes `data` (batch), `fsdp` (batch and parameters) and `model` (heads, feed-forward, vocabulary).

mesh = make_mesh(MeshConfig(fsdp=4))
with jax.set_mesh(mesh):
    ...                                   # jit with NamedShardings of flanjax.sharding.rules
"""

import dataclasses
import math
import re
from collections.abc import Sequence

import jax

from flanjax.errors import FlanjaxError, nearest

MESH_AXES = ("data", "fsdp", "model")


class ShardingError(FlanjaxError):
    """A mesh or a sharding that does not fit the devices or the parameters."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each axis; one of them may be -1 and takes what the others leave.

    Attributes:
      data: rows of the batch; parameters are whole on each.
      fsdp: rows of the batch, and parameters split along `embed`.
      model: heads, feed-forward and vocabulary split; every device of the axis sees the same rows.
    """

    data: int = -1
    fsdp: int = 1
    model: int = 1


def mesh_config(text: str) -> MeshConfig:
    """The mesh that a command line names: "data=2,model=4" is `MeshConfig(data=2, model=4)`.

    Colons may stand for the commas, where those divide something else.

    Raises:
      ShardingError: an axis that there is not, or that is named twice, or a size that is no whole number.
    """
    sizes: dict[str, int] = {}
    for part in re.split("[,:]", text):
        axis, _, size = part.partition("=")
        if axis not in MESH_AXES or axis in sizes or not re.fullmatch(r"-?\d{1,9}", size):
            raise ShardingError(
                f"mesh {text!r}: {part!r} is not an axis and its devices; write data=2,model=4, each of "
                f"{', '.join(MESH_AXES)} at most once{nearest(axis, MESH_AXES)}"
            )
        sizes[axis] = int(size)
    return MeshConfig(**sizes)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """A mesh over `devices` (default: all), with XLA choosing what the rules leave open (`AxisType.Auto`).

    Raises:
      ShardingError: the product of the axes is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [getattr(config, axis) for axis in MESH_AXES]
    known = math.prod(size for size in sizes if size != -1)
    asked = ", ".join(f"{axis}={size}" for axis, size in zip(MESH_AXES, sizes, strict=True))
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise ShardingError(f"MeshConfig({asked}): sizes are at least 1, and at most one of them is -1 (the rest)")
    if len(devices) % known or (-1 not in sizes and known != len(devices)):
        raise ShardingError(f"MeshConfig({asked}) does not divide the {len(devices)} devices: change a size, or set -1")
    shape = tuple(len(devices) // known if size == -1 else size for size in sizes)
    types = (jax.sharding.AxisType.Auto,) * len(MESH_AXES)
    return jax.make_mesh(shape, MESH_AXES, axis_types=types, devices=devices)
