"""Which rows a process holds; tests/training/test_hosts.py has the processes."""

from types import SimpleNamespace

import jax
import pytest

from flanjax.sharding import hosts
from flanjax.sharding.hosts import RowShards, row_shards_of_host
from flanjax.sharding.mesh import MeshConfig, ShardingError, make_mesh


def test_one_process_has_all_rows():
    shards = row_shards_of_host(make_mesh(MeshConfig(data=2, fsdp=2, model=2)))
    assert shards == RowShards((0, 1, 2, 3), 4)
    assert shards.rows(8) == list(range(8))


def test_the_rows_of_a_process_need_not_lie_side_by_side(monkeypatch):
    # Two of the four shards of rows, each on the two devices of an axis `model`.
    indices = {device: (slice(shard, shard + 1),) for device, shard in enumerate((2, 0, 2, 0))}
    sharding = SimpleNamespace(addressable_devices_indices_map=lambda shape: indices)
    monkeypatch.setattr(hosts, "batch_sharding", lambda mesh: sharding)
    shards = row_shards_of_host(make_mesh(MeshConfig(data=4, model=2), jax.devices()))
    assert shards == RowShards((0, 2), 4)
    assert shards.rows(8) == [0, 1, 4, 5]
    assert shards.batch_rows(len(shards.rows(8))) == 8


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ShardingError, match=r"6 rows does not divide over the 4.*multiple of 4"):
        RowShards((0, 1), 4).rows(6)
