"""One of several processes that place a decoder's folder over all their devices and ask what it is known by.

What it read for either is printed as JSON.

python tests/interchange/placing_host.py FOLDER localhost:1234 2 0        # process 0 of 2
"""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flanjax.interchange.hf_decoder import read_hf_decoder
from flanjax.interchange.stored import in_memory, place
from flanjax.models.decoder import abstract_params, logical_axes
from flanjax.sharding.hosts import join
from flanjax.sharding.mesh import MeshConfig, make_mesh
from flanjax.sharding.rules import param_shardings
from flanjax.starting_point import StartingPoint
from flanjax.tuning.lora import LoRA


def main(folder: Path, address: str, count: int, index: int) -> None:
    join(address, count, index)
    read = count_bytes()
    config, params = read_hf_decoder(folder)
    mesh = make_mesh(MeshConfig(data=1, fsdp=-1))
    shardings, _ = param_shardings(logical_axes(config), abstract_params(config), mesh)
    placed = place(params, shardings)
    total = sum(read)
    start = StartingPoint(
        model=None, dropout_rate=None, tuning=(LoRA(rank=2),), init_from=str(folder), adapter_from=None, seed=0
    )
    base = start.base()
    hashed = sum(read) - total
    whole = jax.tree.leaves(in_memory(params))

    def equal(leaf: jax.Array, expected: np.ndarray) -> bool:
        return all(np.array_equal(shard.data, expected[shard.index]) for shard in leaf.addressable_shards)

    equals = all(map(equal, jax.tree.leaves(placed), whole))
    print(json.dumps({"read": total, "equal": equals, "base": base, "hashed": hashed}), flush=True)


def count_bytes() -> list[int]:
    """Grows from now on by the size of every part that is taken out of a file."""
    sizes: list[int] = []
    memmap = np.memmap

    class Mapped:
        def __init__(self, *arguments: Any):
            self.array = memmap(*arguments)

        def __getitem__(self, slices: tuple[slice, ...]) -> np.ndarray:
            part = self.array[slices]
            sizes.append(part.nbytes)
            return part

    np.memmap = Mapped  # type: ignore[misc, assignment]
    return sizes


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
