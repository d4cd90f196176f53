"""Safetensors files: what is written is what safetensors writes, and of what is read not a byte more than asked for."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from flanjax.interchange.folders import ModelFolderError
from flanjax.interchange.hf_decoder import read_hf_decoder, write_hf_decoder
from flanjax.interchange.hf_t5 import read_hf_t5
from flanjax.interchange.safetensors_files import file_tensors, write_file
from flanjax.interchange.stored import in_memory, lazy, place
from flanjax.models import decoder, t5
from flanjax.models.decoder_config import DecoderConfig
from flanjax.sharding.mesh import MeshConfig, make_mesh
from flanjax.sharding.rules import param_shardings
from flanjax.tuning.partition import digest, digest_of_few

from .placing_host import count_bytes

SCRIPT = Path(__file__).parent / "placing_host.py"
SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "embed_dim": 32,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "mlp_dim": 48,
    "num_layers": 3,
}
LLAMA = DecoderConfig(**SIZES)
# Queries, keys and values of each key head lie together in one tensor.
FALCON = DecoderConfig(
    **SIZES, norm="layer", layer_norm_epsilon=1e-5, mlp_activations=("exact_gelu",), residual="parallel",
    max_positions=2048,
)  # fmt: skip


def random_arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "b": rng.normal(size=(3, 5)).astype(np.float16),
        "a.ö": rng.normal(size=(2, 3)).astype(np.float32).T,
        "scalar": np.asarray(2.5, np.float32),
        "none": np.zeros((0, 4), np.float32),
        "half": rng.normal(size=7).astype(ml_dtypes.bfloat16),
    }


def test_the_bytes_are_those_of_safetensors(tmp_path: Path) -> None:
    arrays = random_arrays()
    write_file(tmp_path / "ours", arrays)
    contiguous = {name: np.array(array, order="C") for name, array in arrays.items()}
    save_file(contiguous, tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    arrays = random_arrays()
    write_file(tmp_path / "file", arrays)
    tensors = file_tensors(tmp_path / "file")
    assert tensors.keys() == arrays.keys()
    for name, tensor in tensors.items():
        assert (tensor.shape, tensor.dtype) == (arrays[name].shape, arrays[name].dtype.name)
        np.testing.assert_array_equal(np.asarray(tensor.float32()), arrays[name].astype(np.float32))


def header(**tensors: list[int]) -> bytes:
    """A header of float32 vectors that say where they lie."""
    text = json.dumps(
        {
            name: {"dtype": "F32", "shape": [(stop - start) // 4], "data_offsets": [start, stop]}
            for name, (start, stop) in tensors.items()
        }
    ).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        struct.pack("<Q", 1 << 40) + b"{}",
        struct.pack("<Q", 100) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        header(a=[0, 8], b=[4, 12]) + bytes(12),
        header(a=[0, 8], b=[12, 16]) + bytes(16),
        header(a=[0, 8], b=[8, 16]) + bytes(12),
        header(a=[0, 8]) + bytes(12),
    ],
    ids=[
        "empty",
        "endless header",
        "header beyond the end",
        "a list",
        "overlap",
        "gap",
        "cut off",
        "too long",
    ],
)
def test_a_damaged_header_is_refused_before_anything_is_read(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ModelFolderError, match="file: truncated or not a safetensors file"):
        file_tensors(tmp_path / "file")


def test_a_file_that_shrinks_or_goes_after_its_header_was_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_file(path, {"a": np.ones((4, 4), np.float32)})
    array = file_tensors(path)["a"].float32()
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelFolderError, match="file: has changed since its header was read"):
        np.asarray(array)
    path.unlink()
    with pytest.raises(ModelFolderError, match="file: has changed since its header was read"):
        np.asarray(array)


# --- no byte too many ----------------------------------------------------------------------------------------------


@pytest.fixture
def bytes_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the size of every part that is taken out of a file."""
    monkeypatch.setattr(np, "memmap", np.memmap)  # so that it is put back
    return count_bytes()


def random_folder(folder: Path, config: DecoderConfig, dtype: str = "float32") -> Path:
    leaves = jax.tree.map(
        lambda leaf: np.random.default_rng(leaf.size).standard_normal(leaf.shape, np.float32),
        decoder.abstract_params(config),
    )
    write_hf_decoder(folder, config, leaves, dtype=dtype, shard_bytes=20_000)
    return folder


def tensor_bytes(folder: Path) -> int:
    return sum(array.nbytes for file in folder.glob("*.safetensors") for array in load_file(file).values())


@pytest.mark.parametrize("config", [LLAMA, FALCON], ids=["llama", "falcon"])
@pytest.mark.parametrize(
    "mesh", [MeshConfig(), MeshConfig(fsdp=4, model=2), MeshConfig(data=2, fsdp=2, model=2)], ids=str
)
def test_devices_are_filled_with_every_byte_read_once(
    tmp_path: Path, bytes_read: list[int], config: DecoderConfig, mesh: MeshConfig
) -> None:
    folder = random_folder(tmp_path / "hf", config, "bfloat16")
    found, params = read_hf_decoder(folder)
    assert found == config
    assert bytes_read == [], "names, shapes and types are in the headers"
    devices = make_mesh(mesh)
    shardings, _ = param_shardings(decoder.logical_axes(config), decoder.abstract_params(config), devices)
    placed = place(params, shardings)
    assert sum(bytes_read) == tensor_bytes(folder)
    whole = in_memory(params)
    for file in folder.glob("*.safetensors"):
        file.write_bytes(bytes(file.stat().st_size))  # the devices have their own
    jax.tree.map(np.testing.assert_array_equal, placed, whole)
    assert jax.tree.map(lambda leaf: leaf.sharding, placed) == shardings


def test_the_real_flan_t5_small_lies_on_eight_devices_as_in_its_file(
    flan_t5_small: Path, bytes_read: list[int]
) -> None:
    config, params = read_hf_t5(flan_t5_small)
    assert bytes_read == []
    shardings, _ = param_shardings(
        t5.logical_axes(config), t5.abstract_params(config), make_mesh(MeshConfig(fsdp=4, model=2))
    )
    placed = place(params, shardings)
    assert sum(bytes_read) == tensor_bytes(flan_t5_small)
    for leaf, array in zip(jax.tree.leaves(placed), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(leaf, array)


def test_a_part_is_all_that_is_read(tmp_path: Path, bytes_read: list[int]) -> None:
    _, params = read_hf_decoder(random_folder(tmp_path / "hf", FALCON))
    key = params["decoder"]["layers"]["self_attention"]["key"]["kernel"]
    assert key.shape == (3, 32, 16)
    part = key[1:2, 8:16, 4:12]  # of two heads
    assert sum(bytes_read) == part.nbytes == 4 * 8 * 8
    np.testing.assert_array_equal(part, np.asarray(key)[1:2, 8:16, 4:12])


def test_a_model_is_told_by_the_same_digest_in_files_and_in_memory(tmp_path: Path, bytes_read: list[int]) -> None:
    folder = random_folder(tmp_path / "hf", FALCON)
    _, params = read_hf_decoder(folder)
    found = digest(params)
    assert sum(bytes_read) == tensor_bytes(folder)
    assert found == digest(in_memory(params))
    other = jax.tree.map(lambda leaf: np.asarray(leaf) + 1, params)
    assert found != digest(other)
    assert digest_of_few(params) == digest_of_few(in_memory(params)) != digest_of_few(other)


def test_writing_takes_one_tensor_at_a_time(tmp_path: Path) -> None:
    asked = []

    def once(leaf: jax.ShapeDtypeStruct) -> Any:
        def part(slices: tuple[slice, ...]) -> np.ndarray:
            shape = tuple(one.stop - one.start for one in slices)
            asked.append(shape)
            return np.ones(shape, np.float32)

        return lazy(leaf.shape, np.float32, part)

    write_hf_decoder(tmp_path / "out", LLAMA, jax.tree.map(once, decoder.abstract_params(LLAMA)), shard_bytes=20_000)
    tensors = [array for file in (tmp_path / "out").glob("*.safetensors") for array in load_file(file).values()]
    assert len(asked) == len(tensors)
    assert max(np.prod(shape) for shape in asked) == max(array.size for array in tensors)


# --- a host of several ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hosts(coordinator_address: str, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """What two processes with four devices each counted while they placed one folder."""
    folder = random_folder(tmp_path_factory.mktemp("hosts") / "hf", LLAMA)
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}

    def process(index: int) -> subprocess.Popen:
        command = [sys.executable, SCRIPT, folder, coordinator_address, "2", str(index)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)

    processes = [process(index) for index in range(2)]
    outputs = [one.communicate(timeout=300)[0] for one in processes]
    assert [one.returncode for one in processes] == [0, 0], "\n---\n".join(outputs)
    return SimpleNamespace(
        folder=folder, counts=[json.loads(output.splitlines()[-1]) for output in outputs], bytes=tensor_bytes(folder)
    )


def test_each_of_two_hosts_reads_the_half_that_its_devices_hold(hosts: SimpleNamespace) -> None:
    assert [count["read"] for count in hosts.counts] == [hosts.bytes // 2] * 2
    assert [count["equal"] for count in hosts.counts] == [True, True]


def test_the_first_of_two_hosts_reads_a_base_for_its_digest_and_the_other_a_row_of_each_parameter(
    hosts: SimpleNamespace,
) -> None:
    _, params = read_hf_decoder(hosts.folder)
    assert [count["base"] for count in hosts.counts] == [digest(params)] * 2
    first, second = (count["hashed"] for count in hosts.counts)
    assert second == sum(4 * min(64, leaf.shape[-1]) for leaf in jax.tree.leaves(params))
    assert first == second + hosts.bytes
    assert second < hosts.bytes / 10
