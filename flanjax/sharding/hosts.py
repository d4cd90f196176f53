"""Several processes as one run, each with its own devices: joining, taking turns, and knowing one's rows.

Every host runs the same command and sees the same CACHE_DIR and MODEL_DIR. The first process (index 0) materialises,
writes the logs and prints; all of them compute, and all of them write their part of a checkpoint.
"""

import jax
from jax.sharding import Mesh
from orbax.checkpoint import multihost

from flanjax.sharding.mesh import ShardingError
from flanjax.sharding.rules import batch_sharding

_DAY = 24 * 3600  # seconds; materialising may take hours


def join(coordinator_address: str | None, process_count: int | None, process_index: int | None) -> None:
    """Makes this process one of the run's; before anything else is asked of jax.

    What is None is found out by jax: on a TPU pod, and under Slurm, Open MPI or Kubernetes.

    Arguments:
      coordinator_address: `host:port` of process 0.
      process_count: how many there are.
      process_index: which one this is, from 0.

    Raises:
      ShardingError: the others cannot be found or reached.
    """
    try:
        jax.distributed.initialize(coordinator_address, process_count, process_index)
    except (ValueError, RuntimeError) as error:
        raise ShardingError(
            f"the other hosts of this run cannot be joined: {str(error).splitlines()[0]} "
            "Give --coordinator_address=HOST:PORT, --process_count=N and --process_index=I on every host"
        ) from error


def is_first() -> bool:
    """Whether this process writes and prints for all."""
    return jax.process_index() == 0


def wait_for_all(place: str) -> None:
    """Until every process has come to this place."""
    if jax.process_count() > 1:
        multihost.sync_global_processes(f"flanjax {place}", timeout=_DAY)


def rows_of_host(mesh: Mesh) -> tuple[int, int]:
    """This process's part of a batch as (index, count): it holds part number `index` of `count` equal parts.

    Processes that only differ along `model` hold the same part.

    Raises:
      ShardingError: the rows of its devices are no such part, as when a host's devices are strewn over the mesh.
    """
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    # Of a batch with one row a shard, the rows of this process.
    indices = batch_sharding(mesh).addressable_devices_indices_map((shards,))
    mine = sorted({row for (rows,) in indices.values() for row in range(*rows.indices(shards))})
    first, count = mine[0], len(mine)
    if mine != list(range(first, first + count)) or first % count or shards % count:
        raise ShardingError(
            f"the devices of process {jax.process_index()} hold rows {mine} of {shards}, which is no contiguous part "
            "of a batch: let data x fsdp be a multiple of the number of hosts, or model of the devices of one"
        )
    return first // count, shards // count
