"""Peak memory and time of weights from files to devices, and from one folder to another, beside transformers.

    python tools/bench/loading.py                       # a random Llama of 2 GB in files of 256 MB
    python tools/bench/loading.py --gigabytes 8 --dtype bfloat16

Each contender works once in a process of its own. Its libraries are loaded and its backend is running before resident
memory is read the first time; what is told is the highest resident memory since then, less the parameters that it
holds in the end. On the CPU backend the memory of the devices is the host's, so exactly the parameters' bytes are taken
off. RATIO compares what is left with one file of the folder and its largest tensor together.
"""

import dataclasses
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import Contender, machine, parser, print_ratio

DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2}
MEGABYTE = 10**6


@dataclasses.dataclass(frozen=True)
class Measured:
    """One piece of work: the highest resident memory beyond what there was before, what stays held, and CPU time."""

    peak: int  # bytes
    held: int  # bytes
    cpu: float  # seconds of all threads


@dataclasses.dataclass(frozen=True)
class Folder:
    """What lies in the folder that is read, in bytes."""

    files: int
    largest_file: int
    largest_tensor: int


def resident(key: str) -> int:
    """A line of this process's status, in bytes: VmRSS (now) or VmHWM (the highest since it was reset)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{key}:")).split()[1]) * 1024


def measured(work: Callable[[], tuple[Any, int]]) -> Callable[[], Measured]:
    """`work` returns what is to stay in memory, and its bytes."""

    def run() -> Measured:
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again
        start = time.process_time()
        kept, held = work()
        seconds, peak = time.process_time() - start, resident("VmHWM") - before
        del kept
        return Measured(peak, held, seconds)

    return run


def write_model(folder: Path, gigabytes: float, shard_megabytes: int, dtype: str) -> None:
    """A Llama of random numbers, which are made tensor by tensor as they are written."""
    import jax
    import numpy as np

    from flanjax.interchange.hf_decoder import write_hf_decoder
    from flanjax.interchange.stored import Lazy, lazy
    from flanjax.models.decoder import abstract_params
    from flanjax.models.decoder_config import DecoderConfig

    embed, mlp, vocab = (1024, 4096, 32_000) if gigabytes >= 1 else (64, 256, 512)
    heads = embed // 64
    layer, around = 4 * embed**2 + 3 * embed * mlp, 2 * vocab * embed
    layers = max(1, round((gigabytes * 1e9 / DTYPES[dtype] - around) / layer))
    config = DecoderConfig(
        vocab_size=vocab,
        embed_dim=embed,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=64,
        num_layers=layers,
        mlp_dim=mlp,
        max_positions=2048,
    )
    random = np.random.default_rng(0)

    def drawn(leaf: jax.ShapeDtypeStruct) -> Lazy:
        def part(slices: tuple[slice, ...]) -> np.ndarray:
            return random.standard_normal([one.stop - one.start for one in slices], np.float32)

        return lazy(leaf.shape, np.float32, part)

    params = jax.tree.map(drawn, abstract_params(config))
    write_hf_decoder(folder, config, params, dtype=dtype, shard_bytes=shard_megabytes * MEGABYTE)


def look_into(folder: Path) -> Folder:
    """The sizes of the folder's files and of their largest tensor."""
    import numpy as np

    from flanjax.interchange.safetensors_files import stored_tensors

    files = [file.stat().st_size for file in folder.glob("*.safetensors")]
    tensors = stored_tensors(folder).values()
    largest = max(int(np.prod(tensor.shape)) * DTYPES[tensor.dtype] for tensor in tensors)
    return Folder(sum(files), max(files), largest)


def on_devices(folder: Path, devices: int) -> Callable[[], Measured]:
    """flanjax: read and placed on so many virtual CPU devices."""
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax
    import numpy as np

    from flanjax.interchange.hf_decoder import read_hf_decoder
    from flanjax.interchange.stored import place
    from flanjax.models.decoder import abstract_params, logical_axes
    from flanjax.sharding.mesh import MeshConfig, make_mesh
    from flanjax.sharding.rules import batch_sharding, param_shardings

    mesh = make_mesh(MeshConfig(data=1, fsdp=-1, model=min(2, devices)))
    place({"a": np.zeros(16, np.float32)}, batch_sharding(mesh))

    def work() -> tuple[Any, int]:
        config, params = read_hf_decoder(folder)
        shardings, _ = param_shardings(logical_axes(config), abstract_params(config), mesh)
        placed = place(params, shardings)
        shards = [shard.data for leaf in jax.tree.leaves(placed) for shard in leaf.addressable_shards]
        return placed, sum(
            shard.nbytes for shard in {shard.unsafe_buffer_pointer(): shard for shard in shards}.values()
        )

    return measured(work)


def rewritten(folder: Path, output: Path) -> Callable[[], Measured]:
    """flanjax: from this folder to another one."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    from flanjax.interchange.hf_decoder import read_hf_decoder, write_hf_decoder

    jax.devices()
    shard_bytes = max(file.stat().st_size for file in folder.glob("*.safetensors"))

    def work() -> tuple[Any, int]:
        write_hf_decoder(output, *read_hf_decoder(folder), source=folder, shard_bytes=shard_bytes)
        return None, 0

    return measured(work)


def in_transformers(folder: Path, output: Path | None) -> Callable[[], Measured]:
    """transformers: the model in float32; with `output` in its own type and written again."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes))  # imports what is imported at first use
    shard_bytes = max(file.stat().st_size for file in folder.glob("*.safetensors"))

    def work() -> tuple[Any, int]:
        dtype: Any = torch.float32 if output is None else "auto"
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        if output is None:
            # Sums touch every number, as flanjax has copied every one: what is only mapped is not yet loaded.
            assert all(bool(torch.isfinite(parameter.sum())) for parameter in model.parameters())
            return model, sum(parameter.nbytes for parameter in model.parameters())
        model.save_pretrained(output, max_shard_size=shard_bytes)
        return None, 0

    return measured(work)


def report(name: str, build: Callable[..., Any], *arguments: Any, folder: Folder) -> None:
    """Measures one contender and prints its line."""
    contender = Contender(name, build, *arguments)
    found: Measured = contender.first_result
    contender.close()
    beyond = found.peak - found.held
    print(
        f"{name:32s} {contender.first_seconds:6.1f} s (CPU {found.cpu:5.1f})   peak {found.peak / MEGABYTE:7.0f} MB, "
        f"parameters {found.held / MEGABYTE:7.0f} MB, beyond them {beyond / MEGABYTE:7.0f} MB",
        flush=True,
    )
    print_ratio(beyond / (folder.largest_file + folder.largest_tensor), f"{name}: beyond them, to a file and a tensor")


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--gigabytes", type=float, default=2.0, help="size of the files together")
    flags.add_argument("--shard_megabytes", type=int, default=256, help="size of one file")
    flags.add_argument("--dtype", choices=DTYPES, default="float32", help="of the files; parameters are float32")
    flags.add_argument("--folder", type=Path, help="where the model is written for the time being (default: temporary)")
    given = flags.parse_args()
    if given.smoke:
        given.gigabytes, given.shard_megabytes = 0.005, 1
    work = Path(tempfile.mkdtemp(prefix="flanjax-loading-", dir=given.folder))
    try:
        print(machine(given.cores))
        source = work / "model"
        write_model(source, given.gigabytes, given.shard_megabytes, given.dtype)
        folder = look_into(source)
        print(
            f"{folder.files / MEGABYTE:.0f} MB of {given.dtype}, largest file {folder.largest_file / MEGABYTE:.0f} MB, "
            f"largest tensor {folder.largest_tensor / MEGABYTE:.0f} MB"
        )
        report("flanjax, 1 device", on_devices, source, 1, folder=folder)
        report("flanjax, 8 devices", on_devices, source, 8, folder=folder)
        report("transformers, from_pretrained", in_transformers, source, None, folder=folder)
        report("flanjax, folder to folder", rewritten, source, work / "ours", folder=folder)
        shutil.rmtree(work / "ours")
        report("transformers, folder to folder", in_transformers, source, work / "theirs", folder=folder)
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    sys.exit(main())
