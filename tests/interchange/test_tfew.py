"""T-Few's file of (IA)3 vectors, read without unpickling it, and the PEFT folder made of it."""

import collections
import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from flanjax import convert
from flanjax.interchange.folders import ModelFolderError
from flanjax.interchange.peft import read_peft
from flanjax.interchange.tfew import convert_tfew
from flanjax.interchange.torch_zip import read_torch_zip
from flanjax.models.config import T5Config
from flanjax.tuning.ia3 import IA3

# T0-3B is the T5 v1.1 of 3 billion parameters.
T0_3B = T5Config(embed_dim=2048, num_heads=32, head_dim=64, mlp_dim=5120, num_encoder_layers=24, num_decoder_layers=24)


@pytest.fixture
def published(test_data: Path) -> Path:
    return test_data / "adapters" / "tfew_t03b_ia3" / "t03b_ia3_finish.pt"


def vectors(layers: int = 2, **changes: Any) -> dict[str, Any]:
    """What a T-Few file of a tiny T5 holds, with these taken over."""
    import torch

    places = [("encoder", 0, "SelfAttention"), ("decoder", 0, "SelfAttention"), ("decoder", 1, "EncDecAttention")]
    found = {
        f"{stack}.block.{block}.layer.{layer}.{attention}.{name}": torch.rand(8, 1)
        for block in range(layers)
        for stack, layer, attention in places
        for name in "kv"
    }
    for stack, layer in (("encoder", 1), ("decoder", 2)):
        for block in range(layers):
            found[f"{stack}.block.{block}.layer.{layer}.DenseReluDense.wi_1"] = torch.rand(12, 1)
    found = {f"{name}.multi_lora_b": vector for name, vector in found.items()} | changes
    return {name: vector for name, vector in found.items() if vector is not None}


@pytest.fixture
def save(tmp_path: Path) -> Callable[[Any], Path]:
    def write(value: Any) -> Path:
        import torch

        torch.save(value, tmp_path / "saved.pt")
        return tmp_path / "saved.pt"

    return write


def with_description(path: Path, description: bytes, output: Path) -> Path:
    """A copy of the archive with another data.pkl."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(output, "w") as new:
        for name in old.namelist():
            new.writestr(name, description if name.endswith("data.pkl") else old.read(name))
    return output


# --- reading -------------------------------------------------------------------------------------------------------


def test_the_published_file_is_read_as_torch_reads_it(published: Path) -> None:
    import torch

    expected = torch.load(published, weights_only=True)
    found = read_torch_zip(published)
    assert list(found) == list(expected)
    assert len(found) == 192
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name].numpy())


def test_views_dtypes_and_ordered_dicts_are_read(save: Callable[[Any], Path]) -> None:
    import torch

    whole = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    tensors = collections.OrderedDict(
        whole=whole,
        transposed=whole.T,
        part=whole[1:3, 2:5],
        spread=whole[0, :1].expand(3),
        double=whole.double(),
        half=whole.half(),
        bfloat16=whole.bfloat16(),
        number=torch.tensor(3.0),
        none=torch.zeros(0, 4),
    )
    found = read_torch_zip(save(tensors))
    assert list(found) == list(tensors)
    for name, array in found.items():
        assert str(tensors[name].dtype) == f"torch.{array.dtype}"
        np.testing.assert_array_equal(array.astype(np.float64), tensors[name].double().numpy())


class Harm:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("echo harm > harm",)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": Harm()}, r"data\.pkl: GLOBAL at byte \d+: 'posix system' is refused"),
        ({"a": {1, 2}}, r"data\.pkl: \w+ at byte \d+: .*set.* is refused"),
        ({"a": 3.5}, r"BINFLOAT at byte \d+: 3\.5 is refused"),
        ({"a": "text"}, "something else than a dict of float tensors"),
        (["a"], r"EMPTY_LIST at byte \d+: this is refused"),
    ],
)
def test_whatever_is_no_dict_of_tensors_is_refused_where_it_stands(
    save: Callable[[Any], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelFolderError, match=message):
        read_torch_zip(save(value))
    assert not (tmp_path / "harm").exists()


def test_whole_numbers_are_refused(save: Callable[[Any], Path]) -> None:
    import torch

    with pytest.raises(ModelFolderError, match=r"GLOBAL at byte .*'torch LongStorage' is refused"):
        read_torch_zip(save({"a": torch.arange(3)}))


def test_every_cut_and_every_changed_byte_of_a_description_is_harmless(
    save: Callable[[Any], Path], tmp_path: Path
) -> None:
    """It is refused, or describes tensors that lie within their storages."""
    import torch

    path = save({"a": torch.ones(3), "b": torch.ones(2, 2)})
    with zipfile.ZipFile(path) as archive:
        program = archive.read("saved/data.pkl")
    rng = np.random.default_rng(0)
    changed = [program[:cut] for cut in range(len(program))]
    for at in range(len(program)):
        changed.append(program[:at] + bytes([rng.integers(256)]) + program[at + 1 :])
    refused = 0
    for description in changed:
        try:
            found = read_torch_zip(with_description(path, description, tmp_path / "changed.pt"))
        except ModelFolderError:
            refused += 1
        else:
            assert all(array.size <= 4 for array in found.values())
    assert refused > len(program)


def described(shape: tuple[int, ...], strides: tuple[int, ...]) -> bytes:
    """A description of one tensor "a" over the storage "0" of 3 numbers, as torch writes it but for its numbers."""

    def whole(number: int) -> bytes:
        digits = pickle.encode_long(number)
        return pickle.LONG1 + bytes([len(digits)]) + digits

    def text(word: str) -> bytes:
        return pickle.BINUNICODE + len(word).to_bytes(4, "little") + word.encode()

    def numbers(of: tuple[int, ...]) -> bytes:
        return pickle.MARK + b"".join(map(whole, of)) + pickle.TUPLE

    storage = text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + whole(3)
    called = pickle.MARK + storage + pickle.TUPLE + pickle.BINPERSID + whole(0) + numbers(shape) + numbers(strides)
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n" + pickle.MARK + called + pickle.TUPLE + pickle.REDUCE
    return pickle.PROTO + b"\x02" + pickle.EMPTY_DICT + text("a") + tensor + pickle.SETITEM + pickle.STOP


@pytest.mark.parametrize(
    ("shape", "strides"),
    [
        ((3, 1), (1, 2**63)),
        ((1,), (2**200,)),
        ((0, 2**40), (2**40, 1)),
        ((0, 2**62, 2**62), (0, 0, 0)),
        ((0, 2**70), (1, 1)),
    ],
)
def test_numbers_beyond_64_bits_are_refused_or_harmless(
    save: Callable[[Any], Path], tmp_path: Path, shape: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    import torch

    path = save({"a": torch.arange(3.0)})
    plain = with_description(path, described((3,), (1,)), tmp_path / "plain.pt")
    np.testing.assert_array_equal(read_torch_zip(plain)["a"], [0, 1, 2])
    changed = with_description(path, described(shape, strides), tmp_path / "changed.pt")
    if shape == (0, 2**40):  # an empty tensor, which needs no room
        assert read_torch_zip(changed)["a"].shape == shape
        return
    with pytest.raises(ModelFolderError, match=r"changed\.pt: a \(.*\) with strides \(.*\): "):
        read_torch_zip(changed)


def test_a_plain_pickle_a_cut_file_and_none_are_refused(save: Callable[[Any], Path], tmp_path: Path) -> None:
    import torch

    (tmp_path / "old.pt").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ModelFolderError, match="plain pickles, which are not read"):
        read_torch_zip(tmp_path / "old.pt")
    path = save({"a": torch.ones(3)})
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ModelFolderError, match="truncated, or not a zip archive"):
        read_torch_zip(path)
    with pytest.raises(ModelFolderError, match="No such file"):
        read_torch_zip(tmp_path / "absent.pt")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a", "b")
    with pytest.raises(ModelFolderError, match=r"without a data\.pkl"):
        read_torch_zip(tmp_path / "other.zip")


def test_storages_that_are_not_as_described_are_refused(save: Callable[[Any], Path], tmp_path: Path) -> None:
    import torch

    path = save({"a": torch.ones(3)})
    for change, message in (
        (lambda name, content: content[:8] if "/data/" in name else content, "has 8 bytes, described are 3 values"),
        (lambda name, content: b"big" if name.endswith("byteorder") else content, "big-endian"),
        (lambda name, content: None if "/data/" in name else content, "is not in the archive"),
    ):
        changed = io.BytesIO()
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(changed, "w") as new:
            for name in old.namelist():
                content = change(name, old.read(name))
                if content is not None:
                    new.writestr(name, content)
        (tmp_path / "changed.pt").write_bytes(changed.getvalue())
        with pytest.raises(ModelFolderError, match=message):
            read_torch_zip(tmp_path / "changed.pt")


# --- converting ----------------------------------------------------------------------------------------------------


def test_the_published_vectors_become_an_adapter_of_t0_3b(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert.main([f"--input={published}", f"--output={tmp_path / 'out'}", "--format=peft"]) == 0
    assert "24 and 24 layers, with heads of 2048 together and a gated feed-forward of 5120" in capsys.readouterr().out
    stored, source = load_file(tmp_path / "out" / "adapter_model.safetensors"), read_torch_zip(published)
    assert len(stored) == 192
    for name, vector in source.items():
        same = stored[f"base_model.model.{name.replace('multi_lora_b', 'ia3_l')}"]
        np.testing.assert_array_equal(same, vector)
    adapter = read_peft(tmp_path / "out", T0_3B)
    assert isinstance(adapter.methods[0], IA3)
    factors = adapter.params["decoder/layers/mlp/wi_1/ia3/output"]
    np.testing.assert_array_equal(factors[7], source["decoder.block.7.layer.2.DenseReluDense.wi_1.multi_lora_b"][:, 0])
    assert {value.shape for value in adapter.params.values()} == {(24, 2048), (24, 5120)}


def test_peft_opens_what_was_converted(save: Callable[[Any], Path], tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import T5Config as HfT5Config
    from transformers import T5ForConditionalGeneration

    source = vectors()
    convert_tfew(save(source), tmp_path / "out")
    sizes = {"vocab_size": 32, "d_model": 16, "d_kv": 4, "num_heads": 2, "d_ff": 12, "num_layers": 2}
    base = T5ForConditionalGeneration(HfT5Config(**sizes, feed_forward_proj="gated-gelu"))
    model = PeftModel.from_pretrained(base, tmp_path / "out")
    found = {name: p for name, p in model.named_parameters() if "ia3_l" in name}
    assert len(found) == len(source)
    for name, vector in source.items():
        key = f"base_model.model.{name.replace('multi_lora_b', 'ia3_l.default')}"
        torch.testing.assert_close(found[key].data, vector, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("encoder.block.1.layer.0.SelfAttention.k", None, "no vector for encoder.block.1 SelfAttention.k"),
        ("encoder.block.1.layer.0.SelfAttention.q", (8, 1), r"SelfAttention\.q\.multi_lora_b \(8, 1\) is no vector"),
        ("encoder.block.1.layer.0.SelfAttention.k", (8, 2), "is no vector of T-Few"),
        ("encoder.block.1.layer.0.SelfAttention.k", (9, 1), r"differ in length: \[8, 9\]"),
        ("decoder.block.3.layer.2.DenseReluDense.wi_1", (12, 1), "no vector for decoder.block.2"),
    ],
)
def test_vectors_that_are_not_whole_are_refused(
    save: Callable[[Any], Path], tmp_path: Path, name: str, shape: tuple[int, int] | None, message: str
) -> None:
    import torch

    changed = vectors(**{f"{name}.multi_lora_b": None if shape is None else torch.ones(shape)})
    with pytest.raises(ModelFolderError, match=message):
        convert_tfew(save(changed), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_vectors_that_diverged_and_an_empty_file_are_refused(save: Callable[[Any], Path], tmp_path: Path) -> None:
    import torch

    name = "encoder.block.0.layer.0.SelfAttention.k.multi_lora_b"
    for value, message in ((vectors(**{name: torch.full((8, 1), torch.nan)}), "holds NaN"), ({}, "no vector for")):
        with pytest.raises(ModelFolderError, match=message):
            convert_tfew(save(value), tmp_path / "out")
    assert not (tmp_path / "out").exists()
