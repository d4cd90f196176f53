"""GGUF files: the numbers that the gguf package makes of every block, no more read than asked, nothing broken read."""

import dataclasses
import itertools
import struct
import tracemalloc

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flanjax.interchange.folders import ModelFolderError
from flanjax.interchange.gguf_file import is_gguf, read_gguf_file
from flanjax.interchange.gguf_types import OTHER_TYPES, TYPES

METADATA = {
    "a.text": "größe",
    "a.flag": True,
    "a.count": 7,
    "a.small": 1e-5,
    "a.texts": ["one", "", "drei"],
    "a.numbers": [1.5, -2.0],
    "a.whole": [3, -4],
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, write_gguf):
    tensors = {
        "matrix": np.arange(192, dtype=np.float32).reshape(3, 64) / 7,
        "vector": np.arange(5, dtype=np.float32),
        "cube": np.arange(128, dtype=np.float32).reshape(2, 2, 32) / 9,
    }
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return write_gguf(path, "any", METADATA, tensors, {"matrix": "Q4_1", "cube": "Q8_0"})


def same_bits(ours, theirs):
    assert ours.dtype == theirs.dtype == np.float32
    np.testing.assert_array_equal(ours, theirs)
    numbers = ~np.isnan(theirs)  # also the signs of zeros; which of the many NaNs is not said
    np.testing.assert_array_equal(ours.view("u4")[numbers], theirs.view("u4")[numbers])


# --- the same numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", TYPES)
@given(seed=st.integers(0, 2**32 - 1), blocks=st.integers(1, 40))
@settings(max_examples=40)
@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered")
def test_random_blocks_are_the_numbers_of_the_gguf_package(number, seed, blocks):
    kind = TYPES[number]
    raw = np.random.default_rng(seed).integers(0, 256, blocks * kind.block.itemsize, dtype=np.uint8)
    expected = gguf.dequantize(raw.copy(), gguf.GGMLQuantizationType(number))
    same_bits(kind.numbers(raw.view(kind.block)).astype(np.float32).ravel(), expected.ravel())


def test_types_have_the_names_and_sizes_of_ggml():
    for number, kind in TYPES.items():
        assert gguf.GGMLQuantizationType(number).name == kind.name
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(number)] == (kind.size, kind.block.itemsize)
    assert {int(kind): kind.name for kind in gguf.GGMLQuantizationType if int(kind) not in TYPES} == OTHER_TYPES


def test_a_block_by_example():
    block = np.zeros(1, TYPES[3].block)
    block["d"], block["m"], block["q"][0, 0] = 0.5, -1, 0x31
    numbers = TYPES[3].numbers(block)[0]
    assert (numbers[0], numbers[16], numbers[1]) == (-0.5, 0.5, -1)


def test_all_of_a_file_equals_what_the_gguf_package_reads(tiny):
    file, reader = read_gguf_file(tiny), gguf.GGUFReader(tiny)
    assert file.tensors.keys() == {tensor.name for tensor in reader.tensors}
    for tensor in reader.tensors:
        same_bits(np.asarray(file.tensors[tensor.name]), gguf.dequantize(tensor.data, tensor.tensor_type))
    assert {key: file.metadata[key] for key in list(METADATA)[:5]} == dict(list(METADATA.items())[:5])
    for key in ("a.numbers", "a.whole"):
        assert file.metadata[key].tolist() == METADATA[key]
    assert file.metadata.keys() == {key for key in reader.fields if not key.startswith("GGUF.")}


@given(data=st.data())
@settings(max_examples=60)
def test_a_part_is_the_part_of_the_whole(tiny, data):
    tensor = read_gguf_file(tiny).tensors[data.draw(st.sampled_from(["matrix", "vector", "cube"]))]
    index = []
    for size in tensor.shape:
        start = data.draw(st.integers(0, size))
        index.append(slice(start, data.draw(st.integers(start, size))))
    np.testing.assert_array_equal(tensor[tuple(index)], np.asarray(tensor)[tuple(index)])


def test_blocks_of_256_in_a_file(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "k.gguf"
    writer = gguf.GGUFWriter(path, "any")
    for kind in (type_ for type_ in gguf.GGMLQuantizationType if type_.name.endswith("_K") and type_ in TYPES):
        raw = rng.integers(0, 60, (3, 2 * TYPES[kind].block.itemsize), dtype=np.uint8)  # so small, no scale is a NaN
        writer.add_tensor(kind.name, raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ours, theirs = read_gguf_file(path).tensors, gguf.GGUFReader(path).tensors
    assert ours.keys() == {"Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"}
    for tensor in theirs:
        expected = gguf.dequantize(tensor.data, tensor.tensor_type)
        assert expected.shape == (3, 512)
        same_bits(np.asarray(ours[tensor.name]), expected)
        same_bits(ours[tensor.name][1:2, 250:300], expected[1:2, 250:300])


def test_only_the_blocks_that_are_asked_for_are_dequantised(tiny):
    seen = []

    def numbers(blocks):
        seen.append(blocks.shape)
        return TYPES[3].numbers(blocks)

    tensor = read_gguf_file(tiny).tensors["matrix"]
    tensor = dataclasses.replace(tensor, type=dataclasses.replace(tensor.type, numbers=numbers))
    assert tensor[1:3, 33:40].shape == (2, 7)
    assert seen == [(2, 1)]


def test_version_2_and_other_alignments_are_read(tiny, tmp_path, write_gguf):
    content = tiny.read_bytes()
    (tmp_path / "2.gguf").write_bytes(content[:4] + struct.pack("<I", 2) + content[8:])
    matrix = np.ones((2, 32), np.float32)
    path = write_gguf(tmp_path / "128.gguf", "any", {"general.alignment": 128}, {"a": matrix, "b": 2 * matrix})
    np.testing.assert_array_equal(read_gguf_file(tmp_path / "2.gguf").tensors["vector"], np.arange(5))
    file = read_gguf_file(path)
    assert [tensor.start % 128 for tensor in file.tensors.values()] == [0, 0]
    np.testing.assert_array_equal(file.tensors["b"], 2 * matrix)


# --- nothing broken is read ------------------------------------------------------------------------------------------


def test_what_is_no_gguf_file(tmp_path, tiny):
    path = tmp_path / "file"
    with pytest.raises(ModelFolderError, match="No such file"):
        read_gguf_file(path)
    assert not is_gguf(path)
    assert is_gguf(tiny)
    content = tiny.read_bytes()
    for wrong, message in (
        (b"", "does not begin with GGUF"),
        (b"PK\3\4" + content[4:], "does not begin with GGUF"),
        (content[:6], "at byte 4 of 6: version: 4 bytes do not fit"),
        (content[:4] + struct.pack("<I", 1) + content[8:], "version 1 of GGUF; read are .*: write it anew"),
        (content[:4] + struct.pack(">I", 3) + content[8:], "big-endian .* gguf_convert_endian"),
        (content[:8] + struct.pack("<QQ", 3, 2**60), f"{2**60} keys do not fit"),
        (content[:8] + struct.pack("<Q", 2**60) + content[16:], f"{2**60} tensors do not fit"),
    ):
        path.write_bytes(wrong)
        with pytest.raises(ModelFolderError, match=message):
            read_gguf_file(path)


def header(keys=b"", key_count=0, tensors=b"", tensor_count=0):
    return b"GGUF" + struct.pack("<IQQ", 3, tensor_count, key_count) + keys + tensors


def text(value):
    return struct.pack("<Q", len(value)) + value


def tensor(name=b"t", shape=(4,), kind=0, offset=0):
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


KEY = text(b"k")
# Content, and what is said of it.
BROKEN = [
    (header(KEY + struct.pack("<I", 99), 1), "k has a value of the unknown type 99"),
    (header(KEY + struct.pack("<IB", 7, 3), 1), "k is 3, and not true or false"),
    (header(KEY + struct.pack("<IQ", 8, 2**63), 1), f"k: {2**63} bytes do not fit"),
    (header(KEY + struct.pack("<I", 8) + text(b"\xff"), 1), "k is not UTF-8"),
    (header(KEY + struct.pack("<IIQ", 9, 8, 2**50), 1), f"k: {2**50} texts do not fit"),
    (header(KEY + struct.pack("<IIQ", 9, 5, 2**62), 1), f"k: {2**62} numbers: {2**64} bytes do not fit"),
    (header(KEY + struct.pack("<IIQ", 9, 9, 1), 1), "k is an array of the type 9, which is not read"),
    (header((KEY + struct.pack("<IB", 7, 1)) * 2, 2), "the key k is there twice"),
    (header(text(b"general.alignment") + struct.pack("<II", 4, 0), 1), "general.alignment is 0"),
    (header(tensors=tensor(shape=()) + b"\0" * 99, tensor_count=1), "t has 0 axes"),
    (header(tensors=tensor(shape=(1,) * 5) + b"\0" * 99, tensor_count=1), "t has 5 axes"),
    (header(tensors=tensor(shape=(0, 4)) + b"\0" * 99, tensor_count=1), r"t has the shape \(4, 0\)"),
    (header(tensors=tensor(shape=(2**40, 2**40)) + b"\0" * 99, tensor_count=1), r"t \(.*\) would end at byte"),
    (header(tensors=tensor(offset=2**40) + b"\0" * 99, tensor_count=1), "t .* would end at byte"),
    (header(tensors=tensor(offset=8) + b"\0" * 99, tensor_count=1), "t at offset 8 is not aligned to 32"),
    (header(tensors=tensor(shape=(48,), kind=3) + b"\0" * 99, tensor_count=1), "Q4_1: no whole blocks of 32"),
    (header(tensors=tensor() + tensor(b"u") + b"\0" * 199, tensor_count=2), "lies in another tensor"),
    (header(tensors=tensor() + tensor(offset=32) + b"\0" * 199, tensor_count=2), "the tensor t is there twice"),
]


@pytest.mark.parametrize(("content", "message"), BROKEN, ids=[message for _, message in BROKEN])
def test_what_is_broken_is_named_with_its_place(tmp_path, content, message):
    path = tmp_path / "broken.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelFolderError, match=rf"broken\.gguf: at byte \d+ of {len(content)}: .*{message}.*download"):
        read_gguf_file(path)


def test_other_types_are_named_with_the_remedy(tmp_path):
    path = tmp_path / "k.gguf"
    several = tensor(b"a", kind=16) + tensor(b"b", kind=16) + tensor(b"c", kind=99)
    path.write_bytes(header(tensors=several + b"\0" * 99, tensor_count=3))
    with pytest.raises(ModelFolderError, match=r"IQ2_XXS \(2, the first a\), number 99 \(1, .*llama-quantize .* Q8_0"):
        read_gguf_file(path)


def read_in_little_memory(path):
    """Reads the file and every tensor, or is refused; what either takes is of the size of the file."""
    tracemalloc.start()
    try:
        for stored in read_gguf_file(path).tensors.values():
            assert np.asarray(stored).shape == stored.shape
    except ModelFolderError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 200_000 + 100 * path.stat().st_size


def test_every_truncation_is_refused(tiny, tmp_path):
    content = tiny.read_bytes()
    path = tmp_path / "cut.gguf"
    end = max(stored.start + stored.stored_bytes for stored in read_gguf_file(tiny).tensors.values())
    for length in itertools.chain(range(0, end, 3), [end - 1]):
        path.write_bytes(content[:length])
        with pytest.raises(ModelFolderError):
            read_gguf_file(path)


@given(data=st.data())
@settings(max_examples=200)
@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered")
def test_damaged_files_are_read_or_refused(tiny, tmp_path_factory, data):
    content = bytearray(tiny.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 8))
        content[place : place + 8] = data.draw(
            st.one_of(st.binary(min_size=8, max_size=8), st.integers(0, 2**64 - 1).map(lambda n: struct.pack("<Q", n)))
        )
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    path.write_bytes(content)
    read_in_little_memory(path)


@given(st.binary(max_size=400))
@settings(max_examples=100)
def test_any_bytes_after_the_magic_are_read_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.gguf"
    path.write_bytes(b"GGUF\3\0\0\0" + content)
    read_in_little_memory(path)
