"""Several processes as one run, each with its own devices: joining, taking turns, and knowing one's rows.

Every host runs the same command and sees the same CACHE_DIR and MODEL_DIR. The first process (index 0) materialises,
writes the logs and prints; all of them compute, and all of them write their part of a checkpoint.
"""

import dataclasses
import hashlib
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils
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
    """Until every process has come to this place; an error in those that wait where one of them ends instead."""
    if jax.process_count() > 1:
        everyone = set(range(jax.process_count()))
        multihost.sync_global_processes(f"flanjax {place}", timeout=_DAY, processes=everyone)


def agree(what: str, value: str) -> None:
    """Makes sure that all processes have the same value.

    Arguments:
      what: names the value in the message.
      value: this process's.

    Raises:
      ShardingError: another process has another value.
    """
    if jax.process_count() == 1:
        return
    digest = np.frombuffer(hashlib.sha256(value.encode()).digest(), np.uint8)
    others = multihost_utils.process_allgather(digest)
    different = [index for index, other in enumerate(others) if not np.array_equal(other, others[0])]
    if different:
        raise ShardingError(
            f"{what}: process 0 and process {', '.join(map(str, different))} do not have the same (here: {value}). "
            "Every host must run the same command, and see the same files under CACHE_DIR, MODEL_DIR and INIT_FROM"
        )


def of_first(what: str, find: Callable[[], str]) -> str:
    """What the first process finds, in every process; the others wait for it.

    Arguments:
      what: names it, for those that wait.
      find: called in the first process alone.
    """
    if jax.process_count() == 1:
        return find()
    found = find().encode() if is_first() else b""
    wait_for_all(what)  # which is patient; a collective is not
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(found))))
    text = multihost_utils.broadcast_one_to_all(np.frombuffer(found.ljust(size, b" "), np.uint8))
    return bytes(np.asarray(text)).decode()


@dataclasses.dataclass(frozen=True)
class RowShards:
    """Which rows of a batch belong to a process: of `count` equal parts, those numbered in `mine`, ascending.

    Processes that only differ along `model` hold the same parts. On a TPU pod the parts of one host need not lie side
    by side.
    """

    mine: tuple[int, ...] = (0,)
    count: int = 1

    def rows(self, batch_rows: int) -> list[int]:
        """The process's rows of a batch of so many, ascending.

        Raises:
          ShardingError: the batch does not divide into the parts.
        """
        if batch_rows % self.count:
            raise ShardingError(
                f"a batch of {batch_rows} rows does not divide over the {self.count} devices, or groups of them, that "
                f"take rows (mesh data x fsdp): make BATCH_ROWS a multiple of {self.count}"
            )
        part = batch_rows // self.count
        return [row for shard in self.mine for row in range(shard * part, (shard + 1) * part)]

    def batch_rows(self, own_rows: int) -> int:
        """Rows of the whole batch where this process has so many of them."""
        return own_rows * self.count // len(self.mine)


def row_shards_of_host(mesh: Mesh) -> RowShards:
    """The rows that the devices of this process hold."""
    count = mesh.shape["data"] * mesh.shape["fsdp"]
    # Of a batch with one row a shard, the rows of this process.
    indices = batch_sharding(mesh).addressable_devices_indices_map((count,))
    mine = {row for index in indices.values() if index is not None for row in range(count)[index[0]]}
    return RowShards(tuple(sorted(mine)), count)
