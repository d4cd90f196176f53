"""PEFT folders: what peft wrote computes the same here, and what flanjax wrote there; what does not fit is refused."""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from flanjax.interchange.folders import ModelFolderError
from flanjax.interchange.hf_t5 import read_hf_t5
from flanjax.interchange.peft import adapter_on, base_name, read_peft, write_peft
from flanjax.interchange.stored import in_memory
from flanjax.models.config import Compute, T5Config
from flanjax.models.t5 import Params, build, init_params
from flanjax.tuning.ia3 import IA3
from flanjax.tuning.lora import ALL_LINEAR, ATTENTION, LoRA
from flanjax.tuning.method import Method, TuningError
from flanjax.tuning.partition import added_paths, flatten, unflatten
from flanjax.tuning.prefix import PrefixTuning
from flanjax.tuning.prompt import PromptTuning
from flanjax.tuning.select import Freeze, Train

from .with_peft import begun, moved, write_with_peft

BLOCK = "base_model.model.encoder.block.0.layer.0.SelfAttention"


def batch(vocab_size: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    encoder, decoder = (rng.integers(3, vocab_size, (2, n)).astype(np.int32) for n in (11, 6))
    segments = np.ones_like(encoder)
    segments[1, 7:] = 0
    return {
        "encoder_input_tokens": encoder * segments,
        "encoder_segment_ids": segments,
        "decoder_input_tokens": decoder,
        "decoder_segment_ids": np.ones_like(decoder),
    }


def our_logits(model: T5Config, params: Params) -> np.ndarray:
    rows = batch(model.vocab_size)
    for name, fill in (("encoder_input_tokens", 0), ("encoder_segment_ids", 1)):
        rows[name] = np.pad(rows[name], ((0, 0), (model.prompt_length, 0)), constant_values=fill)

    @jax.jit
    def logits(params: Params) -> jax.Array:
        built = build(model, Compute(), params)
        return built.logits(built(rows))

    return np.asarray(logits(in_memory(params)))


def peft_logits(base: Path, adapter: Path) -> np.ndarray:
    """Of peft's own model, opened from both folders; the adapter has an effect."""
    import torch
    from peft import PeftModel
    from transformers import T5ForConditionalGeneration

    model = PeftModel.from_pretrained(T5ForConditionalGeneration.from_pretrained(base), adapter).eval()
    rows = batch(model.config.vocab_size)
    inputs = {
        "input_ids": torch.tensor(rows["encoder_input_tokens"], dtype=torch.long),
        "attention_mask": torch.tensor(rows["encoder_segment_ids"], dtype=torch.long),
        "decoder_input_ids": torch.tensor(rows["decoder_input_tokens"], dtype=torch.long),
    }
    with torch.no_grad():
        adapted = model(**inputs).logits.numpy()
        with model.disable_adapter():
            assert np.abs(model(**inputs).logits.numpy() - adapted).max() > 1e-2
    return adapted


# --- from peft -----------------------------------------------------------------------------------------------------

LORA = {"peft_type": "LORA", "task_type": "SEQ_2_SEQ_LM"}
IA3_TYPE = {"peft_type": "IA3", "task_type": "SEQ_2_SEQ_LM"}
ALL = ["q", "k", "v", "o", "wi_0", "wi_1", "wo"]
FROM_PEFT = {
    "lora": {**LORA, "r": 3, "lora_alpha": 6, "lora_dropout": 0.1},
    "rslora": {**LORA, "r": 4, "lora_alpha": 6, "use_rslora": True, "target_modules": ALL},
    "all_linear": {**LORA, "r": 2, "target_modules": "all-linear"},
    "decoder_only": {**LORA, "r": 2, "target_modules": r"decoder.*\.(q|wo)"},
    "patterns": {
        **LORA,
        "r": 2,
        "target_modules": ["q", "v", "wo"],
        "rank_pattern": {"v": 4, r"encoder\.block\.1\.layer\.0\.SelfAttention\.q": 1},
        "alpha_pattern": {"wo": 3, r"block\.1.*q": 5},
    },
    "rslora_patterns": {**LORA, "r": 2, "use_rslora": True, "rank_pattern": {"EncDecAttention.v": 4, "block.0.*q": 1}},
    "dora": {**LORA, "r": 2, "lora_alpha": 6, "use_dora": True, "target_modules": ["q", "v", "wo"]},
    "one_layer": {**LORA, "r": 2, "target_modules": ["q", "v"], "layers_to_transform": [1], "layers_pattern": "block"},
    "without_some": {**LORA, "r": 2, "target_modules": ["q", "v"], "exclude_modules": ["EncDecAttention.v"]},
    "norms": {**LORA, "r": 2, "target_modules": ["q"], "modules_to_save": ["layer_norm"]},
    "ia3": IA3_TYPE,
    "ia3_outputs": {**IA3_TYPE, "target_modules": ["k", "v", "wi_1"], "feedforward_modules": []},
    "ia3_inputs": {**IA3_TYPE, "target_modules": ["wo", "o"], "feedforward_modules": ["wo", "o"]},
}


@pytest.mark.parametrize("settings", FROM_PEFT.values(), ids=FROM_PEFT)
def test_what_peft_wrote_computes_the_same(hf_folder: Callable[..., Path], tmp_path: Path, settings: dict) -> None:
    folder = hf_folder("flan")
    adapter = write_with_peft(folder, tmp_path / "adapter", **settings)
    base, params = read_hf_t5(folder)
    model, tuned = adapter_on(read_peft(adapter, base), base, params)
    expected = peft_logits(folder, adapter)
    np.testing.assert_allclose(our_logits(model, tuned), expected, atol=1e-4)


def test_methods_are_those_that_peft_was_told(hf_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = hf_folder("flan")
    base, _ = read_hf_t5(folder)

    def methods(name: str) -> tuple[Method, ...]:
        return read_peft(write_with_peft(folder, tmp_path / name, **FROM_PEFT[name]), base).methods

    assert methods("lora") == (LoRA(rank=3, alpha=6, dropout=0.1, targets=ATTENTION),)
    assert methods("all_linear") == (LoRA(rank=2, alpha=8, targets=ALL_LINEAR),)
    assert methods("ia3") == (IA3(),)
    assert methods("norms")[1] == Train()


def test_layers_without_an_adapter_get_one_that_does_nothing(hf_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = hf_folder("flan")
    written = write_with_peft(folder, tmp_path / "adapter", **FROM_PEFT["one_layer"])
    adapter = read_peft(written, read_hf_t5(folder)[0])
    assert adapter.params["decoder/layers/self_attention/query/lora/a"].shape[0] == 3
    for value in adapter.params.values():
        assert value[1].all()
        assert not value[0].any()


def test_a_factor_behind_wi_1_is_one_before_wo(hf_folder: Callable[..., Path]) -> None:
    base, params = read_hf_t5(hf_folder("v1.1"))
    behind, before = IA3(targets=".*/mlp/wi_1", input_targets=""), IA3(targets="", input_targets=".*/mlp/wo")
    model = dataclasses.replace(base, added=(behind,))
    tuned = moved(model, params)
    other = {p.replace("wi_1/ia3/output", "wo/ia3/input"): v for p, v in flatten(tuned).items()}
    logits = our_logits(dataclasses.replace(base, added=(before,)), unflatten(other))
    np.testing.assert_allclose(logits, our_logits(model, tuned), atol=1e-5)


# --- to peft -------------------------------------------------------------------------------------------------------

NORM = "decoder/layers/pre_mlp_layer_norm/scale"
TO_PEFT: dict[str, tuple[tuple[Method, ...], tuple[str, ...]]] = {
    "lora": ((LoRA(rank=3, alpha=6),), ()),
    "rslora": ((LoRA(rank=2, alpha=3, rank_stabilized=True, targets=ALL_LINEAR),), ()),
    "patterns": (
        (LoRA(rank=2, targets=ALL_LINEAR, rank_pattern=((".*/wo", 4),), alpha_pattern=(("decoder/.*query", 3),)),),
        (),
    ),
    "dora": ((LoRA(rank=2, alpha=6, dora=True),), ()),
    "pissa": ((LoRA(rank=2, alpha=6, init="pissa", rank_pattern=((".*/self_attention/.*", 3),)),), ()),
    # Rank and alpha double, to more than the 12 outputs of a query have.
    "pissa_of_a_high_rank": ((LoRA(rank=9, init="pissa"),), ()),
    "rs_pissa": ((LoRA(rank=2, alpha=6, init="pissa", rank_stabilized=True),), ()),
    "pissa_dora": ((LoRA(rank=2, init="pissa", dora=True),), ()),
    "bfloat16": ((LoRA(rank=2, dtype="bfloat16"),), ()),
    "some": ((LoRA(rank=2, targets="decoder/layers/(self_attention/out|mlp/wo)"),), ()),
    "ia3": ((IA3(),), ()),
    "ia3_outputs": ((IA3(targets=r".*attention/(key|value)|.*/mlp/wi_1", input_targets=""),), ()),
    "ia3_both": ((IA3(targets=".*/mlp/wo", input_targets=".*attention/out"),), ()),
    "norms": ((LoRA(rank=2), Train(parameters=NORM)), (NORM,)),
}


V1_0 = {
    "v1.0": ((LoRA(rank=2, targets=ALL_LINEAR),), (), "v1.0"),
    "v1.0_ia3": ((IA3(targets=r".*attention/(key|value)|.*/mlp/wi", input_targets=""),), (), "v1.0"),
}


@pytest.mark.parametrize(
    ("methods", "own", "variant"), [*((*case, "flan") for case in TO_PEFT.values()), *V1_0.values()], ids=TO_PEFT | V1_0
)
def test_what_is_written_computes_the_same_in_peft_and_comes_back(
    hf_folder: Callable[..., Path],
    tmp_path: Path,
    methods: tuple[Method, ...],
    own: tuple[str, ...],
    variant: str,
) -> None:
    folder = hf_folder(variant)
    base, params = read_hf_t5(folder)
    model = dataclasses.replace(base, added=methods)
    tuned = moved(model, params, *own)
    start = flatten(begun(model, params))
    write_peft(tmp_path / "adapter", model, tuned, begun=start, base_name="google/tiny", recipe={"Steps": "3"})
    expected = our_logits(model, tuned)
    np.testing.assert_allclose(peft_logits(folder, tmp_path / "adapter"), expected, atol=1e-4)
    found = read_peft(tmp_path / "adapter", base)
    assert found.params.keys() == added_paths(model) | set(own)
    if getattr(methods[0], "init", "default") == "default":
        for path, value in found.params.items():
            np.testing.assert_array_equal(value, flatten(tuned)[path])
    else:
        np.testing.assert_allclose(our_logits(*adapter_on(found, base, params)), expected, atol=1e-4)
    text = (tmp_path / "adapter" / "adapter_config.json").read_text()
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n"
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "base_model: google/tiny" in card
    assert "| Steps | 3 |" in card


def test_flan_t5_small_opens_in_peft(flan_t5_small: Path, tmp_path: Path) -> None:
    base, params = read_hf_t5(flan_t5_small)
    model = dataclasses.replace(base, added=(LoRA(rank=4, targets=ALL_LINEAR),))
    rng = np.random.default_rng(0)
    params = unflatten(
        {
            path: value + 0.01 * rng.standard_normal(value.shape, np.float32) if "/lora/" in path else value
            for path, value in flatten(begun(model, params)).items()
        }
    )
    write_peft(tmp_path / "adapter", model, params)
    expected = our_logits(model, params)
    np.testing.assert_allclose(peft_logits(flan_t5_small, tmp_path / "adapter"), expected, atol=1e-3, rtol=1e-4)


def test_another_dtype_is_read_back(hf_folder: Callable[..., Path], tmp_path: Path) -> None:
    base, params = read_hf_t5(hf_folder("flan"))
    model = dataclasses.replace(base, added=(LoRA(rank=2),))
    params = moved(model, params)
    write_peft(tmp_path / "adapter", model, params, dtype="bfloat16")
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {array.dtype.name for array in stored.values()} == {"bfloat16"}
    for path, value in read_peft(tmp_path / "adapter", base).params.items():
        np.testing.assert_allclose(value, flatten(params)[path], rtol=2**-7)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("runs/flan-t5", "flan-t5"),
        ("/home/me/flan-t5", "flan-t5"),
        ("../models/flan", "flan"),
        (None, None),
    ],
)
def test_no_path_of_a_machine_is_written(source: str | None, name: str | None) -> None:
    assert base_name(source) == name


class Other(IA3):
    """A method that PEFT has no type for."""

    name = "other"


# --- refused -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ((LoRA(rank=2), IA3()), "LoRA, IA3 are adapters of more than one kind, .* --format=hf and --merge"),
        ((LoRA(rank=2), Train(parameters=".*/wo/kernel")), "mlp/wo/kernel was trained beside .* give --merge"),
        ((Other(),), "PEFT has no type for Other: .* --merge"),
        ((Train(),), "Train adds no parameters .* --format=hf"),
        ((Freeze(parameters="token_embedder.*"),), "Freeze adds no parameters"),
        ((), "full tuning adds no parameters"),
        *(
            ((PromptTuning(length=3, tasks=("a", task), init="random"),), f"'{re.escape(task)}', which is no name")
            for task in ("../b", "..", "")
        ),
        ((PrefixTuning(length=3, attentions=".*attention"),), "in the decoder's self-attention alone"),
        ((PrefixTuning(length=3, attentions=".*attention", hidden_dim=4),), "in the decoder's self-attention alone"),
        ((PromptTuning(length=3, init="random"), LoRA(rank=2)), "PromptTuning, LoRA are adapters of more than one"),
        ((PromptTuning(length=3, init="random"), Train()), "was trained beside a PromptTuning"),
    ],
)
def test_what_a_folder_cannot_express_is_refused(
    hf_folder: Callable[..., Path], tmp_path: Path, methods: tuple[Method, ...], message: str
) -> None:
    base, params = read_hf_t5(hf_folder("flan"))
    model = dataclasses.replace(base, added=methods)
    with pytest.raises(TuningError, match=message):
        write_peft(tmp_path / "adapter", model, moved(model, params))
    assert not (tmp_path / "adapter").exists()


def test_pissa_is_not_written_without_its_beginning(hf_folder: Callable[..., Path], tmp_path: Path) -> None:
    base, params = read_hf_t5(hf_folder("flan"))
    model = dataclasses.replace(base, added=(LoRA(rank=2, init="pissa"),))
    with pytest.raises(TuningError, match="PiSSA changed the base"):
        write_peft(tmp_path / "adapter", model, moved(model, params))


def test_an_adapter_that_learnt_nothing_or_diverged_is_not_written(
    hf_folder: Callable[..., Path], tmp_path: Path
) -> None:
    base, params = read_hf_t5(hf_folder("flan"))
    model = dataclasses.replace(base, added=(LoRA(rank=2),))
    with pytest.raises(TuningError, match="B is zero everywhere"):
        write_peft(tmp_path / "adapter", model, jax.device_get(init_params(model, 0)))
    tuned = moved(model, params)
    tuned["encoder"]["layers"]["attention"]["query"]["lora"]["a"][0, 0, 0] = np.nan
    with pytest.raises(ModelFolderError, match=r"SelfAttention\.q\.lora_A\.weight holds NaN"):
        write_peft(tmp_path / "adapter", model, tuned)
    tuned["encoder"]["layers"]["attention"]["query"]["lora"]["a"][0, 0, 0] = 1e6
    with pytest.raises(ModelFolderError, match="holds NaN or infinity as float16"):
        write_peft(tmp_path / "adapter", model, tuned, dtype="float16")
    assert list(tmp_path.iterdir()) == [tmp_path / "hf"]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, T5Config]:
    """A folder of LoRA that flanjax wrote, and its base's sizes."""
    base = T5Config(
        vocab_size=64, embed_dim=32, num_heads=3, head_dim=4, mlp_dim=48, num_encoder_layers=2, num_decoder_layers=3
    )
    model = dataclasses.replace(base, added=(LoRA(rank=2),))
    folder = tmp_path_factory.mktemp("adapters") / "lora"
    write_peft(folder, model, moved(model, jax.device_get(init_params(base, 0))))
    return folder, base


def edited(folder: Path, **changes: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def with_tensors(folder: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


def pickled(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def infinite(tensors: dict[str, np.ndarray]) -> None:
    tensors[f"{BLOCK}.q.lora_B.weight"][0, 0] = np.inf


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (
        lambda f: with_tensors(f, lambda t: t.pop(f"{BLOCK}.q.lora_A.weight")),
        r"missing: encoder\.block\.0\.layer\.0\.SelfAttention\.q\.lora_A\.weight \(2, 32\)",
    ),
    "extra": (
        lambda f: with_tensors(f, lambda t: t.update({f"{BLOCK}.k.lora_A.weight": np.ones((2, 32), np.float32)})),
        r"unknown: encoder\.block\.0\.layer\.0\.SelfAttention\.k\.lora_A\.weight \(2, 32\)",
    ),
    "no_tensors": (lambda f: with_tensors(f, lambda t: t.clear()), "holds no tensors"),
    "a_tensor_without_numbers": (
        lambda f: with_tensors(f, lambda t: t.update({f"{BLOCK}.q.lora_A.weight": np.zeros((0, 32), np.float32)})),
        r"wrong shape: .*SelfAttention\.q\.lora_A\.weight is \(0, 32\), not \(2, 32\)",
    ),
    "only_tensors_without_numbers": (
        lambda f: with_tensors(f, lambda t: t.update({k: np.zeros((0, 2), np.float32) for k in t})),
        r"wrong shape: .*lora_A\.weight is \(0, 2\)",
    ),
    "empty_file": (lambda f: (f / "adapter_model.safetensors").write_bytes(b""), "truncated or not a safetensors"),
    "infinity": (lambda f: with_tensors(f, infinite), r"SelfAttention\.q\.lora_B\.weight holds NaN or infinity"),
    "whole_numbers": (
        lambda f: with_tensors(f, lambda t: t.update({k: v.astype(np.int32) for k, v in t.items()})),
        "wrong type: .* is I32",
    ),
    "another_rank": (lambda f: edited(f, r=4), r"wrong shape: .*lora_A\.weight is \(2, 32\), not \(4, 32\)"),
    "a_wrong_rank": (lambda f: edited(f, r=0), "r is 0: it must be a whole number of at least 1"),
    "a_wrong_alpha": (lambda f: edited(f, lora_alpha="8"), "lora_alpha is '8': it must be a number"),
    "no_alpha": (lambda f: edited(f, lora_alpha=0), "lora_alpha is 0"),
    "a_wrong_pattern": (lambda f: edited(f, rank_pattern={"(q": 2}), "rank_pattern holds .* no regular expression"),
    "a_wrong_dropout": (lambda f: edited(f, lora_dropout=1.5), r"adapter_config\.json: LoRA\.dropout is 1\.5"),
    "type": (lambda f: edited(f, peft_type="VERA"), r"peft_type is 'VERA'.*merge_and_unload\(\)"),
    "no_type": (lambda f: edited(f, peft_type=None), "peft_type is missing"),
    "fan_in_fan_out": (lambda f: edited(f, fan_in_fan_out=True), "fan_in_fan_out is true: .*set it to false"),
    "pissa": (lambda f: edited(f, init_lora_weights="pissa"), "path_initial_model_for_weight_conversion"),
    "bias": (lambda f: edited(f, bias="lora_only"), "biases trained beside LoRA are not read"),
    "qalora": (lambda f: edited(f, use_qalora=True), "use_qalora is true: .*merge_and_unload"),
    "head": (lambda f: edited(f, target_modules=["q", "lm_head"]), "names lm_head: only projections"),
    "another_kind": (lambda f: edited(f, target_modules=["q_proj"]), "names nothing in this model.*wi_0, wi_1, wo"),
    "embedding": (lambda f: edited(f, modules_to_save=["shared"]), "modules_to_save has shared: .*merge_and_unload"),
    "part_of_norms": (
        lambda f: edited(f, modules_to_save=["encoder.block.0.layer.0.layer_norm"]),
        r"leaves out encoder\.block\.1\.layer\.0\.layer_norm",
    ),
    "pickled": (pickled, r"only adapter_model\.bin here, and nothing is ever unpickled; .*save_pretrained"),
    "no_weights": (lambda f: (f / "adapter_model.safetensors").unlink(), r"no adapter_model\.safetensors"),
    "no_config": (lambda f: (f / "adapter_config.json").unlink(), r"no adapter_config\.json, so no PEFT adapter"),
    "no_json": (lambda f: (f / "adapter_config.json").write_text("{"), "not valid JSON"),
    "no_folder": (shutil.rmtree, "there is no such folder"),
}


@pytest.mark.parametrize(("harm", "message"), BAD.values(), ids=BAD)
def test_a_folder_that_is_not_whole_or_asks_for_more_is_refused(
    adapter: tuple[Path, T5Config], tmp_path: Path, harm: Callable[[Path], object], message: str
) -> None:
    folder, base = adapter
    copy = shutil.copytree(folder, tmp_path / "adapter")
    assert read_peft(copy, base).params.keys() == read_peft(folder, base).params.keys()
    harm(copy)
    with pytest.raises(ModelFolderError, match=message) as error:
        read_peft(copy, base)
    assert str(copy) in str(error.value)


def test_dora_on_some_layers_is_refused(hf_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = hf_folder("flan")
    settings = {**FROM_PEFT["dora"], "layers_to_transform": [1]}
    adapter = write_with_peft(folder, tmp_path / "adapter", **settings)
    with pytest.raises(ModelFolderError, match=r"use_dora is true, and of .* not all layers have an adapter"):
        read_peft(adapter, read_hf_t5(folder)[0])


@pytest.mark.parametrize("change", [{"embed_dim": 64}, {"num_encoder_layers": 3}, {"head_dim": 8}])
def test_an_adapter_of_another_model_is_refused(adapter: tuple[Path, T5Config], change: dict[str, int]) -> None:
    folder, base = adapter
    with pytest.raises(ModelFolderError, match="Is it an adapter of another model"):
        read_peft(folder, dataclasses.replace(base, **change))


def test_an_adapter_that_has_a_name_is_found_in_the_message(adapter: tuple[Path, T5Config], tmp_path: Path) -> None:
    shutil.copytree(adapter[0], tmp_path / "outer" / "poems")
    with pytest.raises(ModelFolderError, match=re.escape("lies in a folder of it: poems")):
        read_peft(tmp_path / "outer", adapter[1])


def test_what_is_written_is_read_before_it_is_kept(
    adapter: tuple[Path, T5Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flanjax.interchange import peft

    _, base = adapter
    model = dataclasses.replace(base, added=(LoRA(rank=2),))

    def damaged(path: Path, arrays: dict[str, np.ndarray]) -> None:
        save_file({name: np.ascontiguousarray(array) + 1 for name, array in arrays.items()}, path)

    monkeypatch.setattr(peft, "write_file", damaged)
    with pytest.raises(ModelFolderError, match="is read otherwise than it was written"):
        write_peft(tmp_path / "adapter", model, moved(model, jax.device_get(init_params(base, 0))))
    assert list(tmp_path.iterdir()) == []
