"""Prompts and prefixes of peft: equal logits both ways; its shapes, and what it makes of them."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from flanjax import convert
from flanjax.generation import greedy
from flanjax.interchange.folders import ModelFolderError
from flanjax.interchange.hf_t5 import read_hf_t5
from flanjax.interchange.peft import adapter_on, read_peft, write_peft
from flanjax.models.config import Compute, T5Config
from flanjax.models.decoder_config import DecoderConfig
from flanjax.models.model import init_params as init_any
from flanjax.models.t5 import build, init_params
from flanjax.tuning.method import Method, TuningError
from flanjax.tuning.p_tuning import PTuning
from flanjax.tuning.partition import flatten
from flanjax.tuning.prefix import PrefixTuning, folded
from flanjax.tuning.prompt import PromptTuning, prompt_table

from .test_peft import our_logits, peft_logits
from .with_peft import moved, write_with_peft

EMBEDDING = "encoder/prompt/embedding"

SEQ2SEQ = {"task_type": "SEQ_2_SEQ_LM", "num_virtual_tokens": 4}
PROMPT = {**SEQ2SEQ, "peft_type": "PROMPT_TUNING"}
P_TUNING = {**SEQ2SEQ, "peft_type": "P_TUNING", "encoder_hidden_size": 8}
# The heads together are 12 wide, the model 32: peft's own default would be wrong. It takes the encoder's depth, too.
PREFIX = {**SEQ2SEQ, "peft_type": "PREFIX_TUNING", "token_dim": 12, "num_layers": 3}
FROM_PEFT = {
    "prompt_of_2n_rows": PROMPT,
    "prompt": {**PROMPT, "num_transformer_submodules": 1},
    "p_tuning": P_TUNING,
    "p_tuning_lstm": {**P_TUNING, "encoder_reparameterization_type": "LSTM", "num_transformer_submodules": 1},
    "prefix": PREFIX,
    "prefix_of_a_network": {**PREFIX, "prefix_projection": True, "encoder_hidden_size": 8},
    "prefix_of_an_even_number": {**PREFIX, "num_layers": 4},
}


@pytest.mark.parametrize("settings", FROM_PEFT.values(), ids=FROM_PEFT)
def test_what_peft_wrote_computes_the_same(hf_folder: Callable[..., Path], tmp_path: Path, settings: dict) -> None:

    folder = hf_folder("flan")
    adapter = write_with_peft(folder, tmp_path / "adapter", **settings)
    base, params = read_hf_t5(folder)
    found = read_peft(adapter, base)
    assert [method.length for method in found.methods] == [4]
    np.testing.assert_allclose(our_logits(*adapter_on(found, base, params)), peft_logits(folder, adapter), atol=1e-4)


def test_layers_that_share_a_pair_in_peft_share_it_here(hf_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = hf_folder("v1.1", num_layers=4, d_kv=8, num_heads=4)
    settings = {**PREFIX, "token_dim": None, "num_layers": None}
    adapter = write_with_peft(folder, tmp_path / "adapter", **settings)
    base, params = read_hf_t5(folder)
    found = read_peft(adapter, base)
    key = found.params["decoder/layers/self_attention/prefix/key"]
    np.testing.assert_array_equal(key[:2], key[2:])
    assert not np.array_equal(key[0], key[1])
    np.testing.assert_allclose(our_logits(*adapter_on(found, base, params)), peft_logits(folder, adapter), atol=1e-4)


TO_PEFT = {
    "prompt": PromptTuning(length=3, init="random"),
    "p_tuning": PTuning(length=3, hidden_dim=8),
    "p_tuning_lstm": PTuning(length=3, encoder="lstm", hidden_dim=8),
    "prefix": PrefixTuning(length=3),
    "prefix_of_a_network": PrefixTuning(length=3, hidden_dim=8),
}


@pytest.mark.parametrize(
    ("method", "variant"),
    [*((method, "flan") for method in TO_PEFT.values()), (TO_PEFT["prefix"], "v1.0")],
    ids=[*TO_PEFT, "prefix_v1.0"],
)
def test_what_is_written_computes_the_same_in_peft_and_comes_back(
    hf_folder: Callable[..., Path], tmp_path: Path, method: Method, variant: str
) -> None:
    folder = hf_folder(variant)
    base, params = read_hf_t5(folder)
    model = dataclasses.replace(base, added=(method,))
    params = moved(model, params)
    write_peft(tmp_path / "adapter", model, params)
    np.testing.assert_allclose(peft_logits(folder, tmp_path / "adapter"), our_logits(model, params), atol=1e-4)
    found = read_peft(tmp_path / "adapter", base)
    if isinstance(method, PTuning):  # the network stays behind
        assert found.methods == (PromptTuning(length=3, init="random"),)
        np.testing.assert_array_equal(found.params[EMBEDDING], prompt_table(model, params))
        return
    if isinstance(method, PrefixTuning):
        method, expected = folded(method, model, params)
    else:
        expected = flatten(params)
    assert found.methods == (method,)
    for path, value in found.params.items():
        np.testing.assert_array_equal(value, expected[path])


@pytest.mark.parametrize(
    "method",
    [PromptTuning(tasks=("a", "b"), length=3), PTuning(tasks=("a", "b"), length=3)],
    ids=["prompt", "p_tuning"],
)
def test_prompts_of_tasks_are_adapters_that_peft_switches_between(
    hf_folder: Callable[..., Path], tmp_path: Path, method: Method
) -> None:
    import torch
    from peft import PeftModel
    from transformers import T5ForConditionalGeneration

    folder = hf_folder("flan")
    base, params = read_hf_t5(folder)
    model = dataclasses.replace(base, added=(method,))
    params = moved(model, params)
    assert write_peft(tmp_path / "out", model, params) == ("a", "b")
    plain = T5ForConditionalGeneration.from_pretrained(folder)
    theirs = PeftModel.from_pretrained(plain, tmp_path / "out" / "a", adapter_name="a").eval()
    theirs.load_adapter(tmp_path / "out" / "b", adapter_name="b")
    inputs, targets = np.array([[5, 6, 7, 1], [9, 2, 30, 1]]), np.array([[0, 4], [0, 8]])
    segments, found = np.ones((2, 7), np.int32), []
    for number, task in enumerate(("a", "b", "a")):
        theirs.set_adapter(task)
        with torch.no_grad():
            given = {"input_ids": torch.tensor(inputs), "attention_mask": torch.ones(2, 4, dtype=torch.long)}
            expected = theirs(**given, decoder_input_ids=torch.tensor(targets)).logits.numpy()
        tokens = np.pad(inputs, ((0, 0), (3, 0)), constant_values=number % 2)
        built = build(model, Compute(), params)
        encoded = built.encode(tokens, segments)
        found.append(built.logits(built.decode(targets, np.ones((2, 2), np.int32), encoded, segments)))
        np.testing.assert_allclose(found[-1], expected, atol=1e-4)
    assert np.abs(found[0] - found[1]).max() > 1e-2
    for path in (tmp_path / "out").rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644)
    # Written by peft itself they lie the same way.
    theirs.save_pretrained(tmp_path / "again")
    assert {path.name for path in (tmp_path / "again").iterdir() if path.is_dir()} == {"a", "b"}
    for task in ("a", "b"):
        ours, again = (read_peft(tmp_path / name / task, base).params[EMBEDDING] for name in ("out", "again"))
        np.testing.assert_array_equal(ours, again)
    for name in ("out", "again"):
        together = read_peft(tmp_path / name, base)
        assert together.methods == (PromptTuning(tasks=("a", "b"), length=3, init="random"),)
        np.testing.assert_array_equal(together.params[EMBEDDING], prompt_table(model, params))
    # All of them or none.
    params["encoder"]["prompt"]["embedding"][1, 0, 0] = np.nan
    with pytest.raises(ModelFolderError, match="bad/b: prompt_embeddings holds NaN"):
        write_peft(tmp_path / "bad", model, params)
    assert not [path for path in tmp_path.iterdir() if "bad" in path.name]


def test_folders_of_other_adapters_are_not_read_together(tmp_path: Path) -> None:
    def write(name: str, method: Method) -> None:
        model = dataclasses.replace(BASE, added=(method,))
        write_peft(tmp_path / name, model, moved(model, jax.device_get(init_params(BASE, 0))))

    write("prompts/a", PromptTuning(length=3, init="random"))
    write("prompts/b", PromptTuning(length=4, init="random"))
    with pytest.raises(ModelFolderError, match=r"prompts: prompts of one model have one length, .* a has 3, b has 4"):
        read_peft(tmp_path / "prompts", BASE)
    write("mixed/a", PromptTuning(length=3, init="random"))
    write("mixed/b", PrefixTuning(length=3))
    with pytest.raises(ModelFolderError, match="an adapter that has a name lies in a folder of it: a, b"):
        read_peft(tmp_path / "mixed", BASE)


def test_checkpoints_of_one_training_are_not_taken_for_tasks(tmp_path: Path) -> None:
    def write(name: str, *tasks: str) -> None:
        model = dataclasses.replace(BASE, added=(PromptTuning(length=3, init="random", tasks=tasks),))
        write_peft(tmp_path / name, model, moved(model, jax.device_get(init_params(BASE, 0))))

    for step in (500, 1500, 1000):
        write(f"trainer/checkpoint-{step}")
    with pytest.raises(
        ModelFolderError, match=r"checkpoints of one training, .*one of them, .*trainer/checkpoint-1500"
    ):
        read_peft(tmp_path / "trainer", BASE)
    assert read_peft(tmp_path / "trainer" / "checkpoint-500", BASE).methods[0].prompt_tasks == ()
    with pytest.raises(TuningError, match="'checkpoint-7', which is no name of a folder"):
        write("ours", "a", "checkpoint-7")
    assert not (tmp_path / "ours").exists()
    write("ours", "a", "checkpointed")
    assert read_peft(tmp_path / "ours", BASE).methods[0].prompt_tasks == ("a", "checkpointed")


DECODER = DecoderConfig(vocab_size=64, embed_dim=32, num_layers=3, num_heads=3, num_kv_heads=3, head_dim=4, mlp_dim=48)


@pytest.mark.parametrize(
    "method", [PromptTuning(length=3, init="random"), PrefixTuning(length=3)], ids=["prompt", "prefix"]
)
def test_what_was_trained_on_one_kind_of_model_does_not_open_on_the_other(tmp_path: Path, method: Method) -> None:
    def write(name: str, base: T5Config | DecoderConfig, **changes: object) -> Path:
        model = dataclasses.replace(base, added=(method,))
        write_peft(tmp_path / name, model, moved(model, jax.device_get(init_any(base, 0))))
        path = tmp_path / name / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
        return path.parent

    for_t5, for_decoder = write("t5", BASE), write("decoder", DECODER)
    with pytest.raises(
        ModelFolderError, match=r"task_type is 'SEQ_2_SEQ_LM': .* an encoder-decoder, and this .* a decoder"
    ):
        read_peft(for_t5, DECODER)
    with pytest.raises(
        ModelFolderError, match=r"task_type is 'CAUSAL_LM': .* a decoder, and this .* an encoder-decoder"
    ):
        read_peft(for_decoder, BASE)
    unsaid = write("unsaid", DECODER, task_type=None, num_transformer_submodules=None)
    assert read_peft(unsaid, DECODER).methods == (method,)
    two = write("two", DECODER, task_type=None, num_transformer_submodules=2)
    with pytest.raises(ModelFolderError, match=r"num_transformer_submodules is 2: .* an encoder-decoder"):
        read_peft(two, DECODER)


def test_a_decoder_has_no_second_half_of_a_prompt(tmp_path: Path) -> None:
    model = dataclasses.replace(DECODER, added=(PromptTuning(length=4, init="random"),))
    write_peft(tmp_path / "adapter", model, moved(model, jax.device_get(init_any(DECODER, 0))))
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_virtual_tokens": 2}))
    with pytest.raises(ModelFolderError, match=r"prompt_embeddings is \(4, 32\), not \(2, 32\)"):
        read_peft(tmp_path / "adapter", DECODER)


def test_peft_opens_what_a_network_made_without_one_and_goes_on_from_it(
    hf_folder: Callable[..., Path], tmp_path: Path
) -> None:
    import torch
    from peft import PeftConfig, get_peft_model
    from transformers import T5ForConditionalGeneration

    folder = hf_folder("flan")
    base, params = read_hf_t5(folder)
    model = dataclasses.replace(base, added=(PrefixTuning(length=4, hidden_dim=8),))
    params = moved(model, params)
    write_peft(tmp_path / "ours", model, params)
    expected = our_logits(model, params)
    np.testing.assert_allclose(peft_logits(folder, tmp_path / "ours"), expected, atol=1e-4)
    # A configuration that tells of the network opens to the same: peft makes none for inference.
    path = tmp_path / "ours" / "adapter_config.json"
    written = json.loads(path.read_text())
    path.write_text(json.dumps({**written, "prefix_projection": True, "encoder_hidden_size": 8}))
    np.testing.assert_allclose(peft_logits(folder, tmp_path / "ours"), expected, atol=1e-4)
    # Training goes on from the table, which peft takes where there is no network.
    table = torch.tensor(load_file(tmp_path / "ours" / "adapter_model.safetensors")["prompt_embeddings"])
    for network in (False, True):
        plain = T5ForConditionalGeneration.from_pretrained(folder)
        settings = {**written, "inference_mode": False, "prefix_projection": network, "encoder_hidden_size": 8}
        encoder = get_peft_model(plain, PeftConfig.from_peft_type(**settings)).prompt_encoder["default"]
        if network:
            with pytest.raises(ValueError, match="prefix_projection=True"):
                encoder.load_prompt_embeddings(table)
        else:
            encoder.load_prompt_embeddings(table)
            assert encoder.embedding.weight.requires_grad
            assert torch.equal(encoder.embedding.weight, table)


@pytest.mark.parametrize("name", ["prompt", "prefix"])
def test_answers_are_those_of_peft(hf_folder: Callable[..., Path], tmp_path: Path, name: str) -> None:
    import torch
    from peft import PeftModel
    from transformers import T5ForConditionalGeneration

    folder = hf_folder("v1.1")
    base, params = read_hf_t5(folder)
    model = dataclasses.replace(base, added=(TO_PEFT[name],))
    params = moved(model, params)
    write_peft(tmp_path / "adapter", model, params)
    other = PeftModel.from_pretrained(T5ForConditionalGeneration.from_pretrained(folder), tmp_path / "adapter").eval()
    inputs = [[5, 6, 7, 8, 9], [10, 11, 12, 3, 1]]
    ids = torch.tensor(inputs)
    found = other.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
    answers = greedy.greedy(model, Compute(), params, inputs, 6, prompts=[0, 0])
    for row, answer in zip(found.tolist(), answers, strict=True):
        until_eos = row[1 : row.index(1)] if 1 in row else row[1:]
        assert [token for token in until_eos if token != 0] == answer


def test_a_prompt_has_no_dead_rows_and_runs_no_code_of_others(hf_folder: Callable[..., Path], tmp_path: Path) -> None:

    folder = hf_folder("flan")
    adapter = write_with_peft(folder, tmp_path / "adapter", **PROMPT)
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tokenizer_kwargs": {"trust_remote_code": True}}))
    base, params = read_hf_t5(folder)
    write_peft(tmp_path / "again", *adapter_on(read_peft(adapter, base), base, params))
    stored = load_file(adapter / "adapter_model.safetensors")["prompt_embeddings"]
    again = load_file(tmp_path / "again" / "adapter_model.safetensors")["prompt_embeddings"]
    assert stored.shape == (8, 32)
    np.testing.assert_array_equal(again, stored[:4])
    assert "trust_remote_code" not in (tmp_path / "again" / "adapter_config.json").read_text()


BASE = T5Config(
    vocab_size=64, embed_dim=32, num_heads=3, head_dim=4, mlp_dim=48, num_encoder_layers=2, num_decoder_layers=3
)


@pytest.mark.parametrize(
    ("method", "change", "message"),
    [
        (PrefixTuning(length=3), {"token_dim": 30}, "token_dim is 30 for 3 heads, .* or peft sized it by d_model"),
        (PrefixTuning(length=3), {"num_attention_heads": 4}, "for 4 heads, and this model has 3 of 4, 12 together"),
        (PrefixTuning(length=3), {"num_layers": 2}, "num_layers is 2, and the decoder has 3"),
        (PrefixTuning(length=3), {"num_layers": 3}, r"wrong shape: prompt_embeddings is \(3, 144\), not \(3, 72\)"),
        (PrefixTuning(length=3), {"num_transformer_submodules": 1}, "no prefix of an encoder-decoder"),
        (PromptTuning(length=3, init="random"), {"num_virtual_tokens": 4}, r"is \(3, 32\), not \(4, 32\)"),
        (PromptTuning(length=3, init="random"), {"num_virtual_tokens": None}, "num_virtual_tokens is None"),
        (PromptTuning(length=3, init="random"), {"peft_type": "MULTITASK_PROMPT_TUNING"}, "read are IA3, LORA, PRE"),
    ],
)
def test_a_configuration_that_contradicts_the_tensor_is_refused(
    tmp_path: Path, method: Method, change: dict[str, object], message: str
) -> None:
    model = dataclasses.replace(BASE, added=(method,))
    write_peft(tmp_path / "adapter", model, moved(model, jax.device_get(init_params(BASE, 0))))
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ModelFolderError, match=message):
        read_peft(tmp_path / "adapter", BASE)


# --- published prompts -----------------------------------------------------------------------------------------------

WIDE = dataclasses.replace(BASE, embed_dim=768, num_heads=12, head_dim=64)


@pytest.mark.parametrize("task", ["sst2", "mrpc", "rte"])
def test_a_published_prompt_becomes_a_folder_of_peft_and_comes_back(
    test_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], task: str
) -> None:
    source = test_data / "adapters" / "prompt_tuning_t5_1_1_lm100k_base" / f"{task}.npy"
    assert convert.main([f"--input={source}", f"--output={tmp_path / 'out'}", "--format=peft"]) == 0
    assert "a prompt for a T5 of width 768" in capsys.readouterr().out
    found = read_peft(tmp_path / "out", WIDE)
    assert found.methods == (PromptTuning(length=100, init="random"),)
    np.testing.assert_array_equal(found.params[EMBEDDING][0], np.load(source))
    # A run that began with the file itself has the same folder to export.
    model = dataclasses.replace(WIDE, added=(PromptTuning(init="file", init_file=str(source)),))
    params = jax.device_get(init_params(model, 0))
    params["encoder"]["prompt"]["embedding"] = np.load(source)[None]
    write_peft(tmp_path / "run", model, params)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


@pytest.mark.parametrize(
    "value", [np.zeros((3, 4)), np.zeros(4, np.float32), np.zeros((0, 4), np.float32), np.array([{"a": 1}])]
)
def test_other_arrays_are_no_prompt(tmp_path: Path, value: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", value, allow_pickle=True)
    with pytest.raises(ModelFolderError, match=r"a\.npy: (holds no prompt|cannot be read)"):
        convert.convert(tmp_path / "a.npy", tmp_path / "out", format="peft")
    assert not (tmp_path / "out").exists()
