"""PEFT folders of decoders: what peft wrote computes the same here, and what flanjax wrote there."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from flanjax.interchange import peft
from flanjax.interchange.folders import ModelFolderError
from flanjax.interchange.hf_decoder import read_hf_decoder
from flanjax.interchange.peft import adapter_on, read_peft, write_peft
from flanjax.interchange.stored import in_memory
from flanjax.models.config import Compute
from flanjax.models.model import build
from flanjax.tuning.ia3 import IA3
from flanjax.tuning.lora import ALL_LINEAR, LoRA
from flanjax.tuning.method import TuningError
from flanjax.tuning.p_tuning import PTuning
from flanjax.tuning.partition import added_paths, flatten
from flanjax.tuning.prefix import PrefixTuning
from flanjax.tuning.prompt import PromptTuning
from flanjax.tuning.select import Train

from .with_peft import begun, moved, write_with_peft

VOCAB = 64
LLAMA = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
NEOX = {name: value for name, value in LLAMA.items() if name != "num_key_value_heads"}
# Grouped heads; one module in GPT-2's orientation; one whose heads are interleaved, beside the feed-forward block.
FAMILIES = {
    "llama": LLAMA,
    "qwen2": LLAMA,
    "gpt2": {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "gpt_neox": NEOX,
}
FUSED = {"gpt2": "c_attn", "gpt_neox": "query_key_value"}
TOKENS = np.random.default_rng(0).integers(3, VOCAB, (2, 7))
each_family = pytest.mark.parametrize("family", FAMILIES)
OPT = {name: value for name, value in NEOX.items() if name != "intermediate_size"}
# One key head for all queries, norms after blocks, positions as biases, names of their own.
OTHERS = {
    "bloom": {"vocab_size": VOCAB, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "falcon": {**OPT, "multi_query": True, "parallel_attn": True, "bias": True},
    "gemma2": {**LLAMA, "head_dim": 8, "sliding_window": 4},
    "gpt_bigcode": FAMILIES["gpt2"],
    "codegen": {**FAMILIES["gpt2"], "rotary_dim": 4},
    "opt": {**OPT, "ffn_dim": 40},
    "phi": NEOX,
}
RW = {**OPT, "multi_query": False, "parallel_attn": False, "bias": True, "alibi": True}
NARROW = {"model_type": "opt", **OTHERS["opt"], "do_layer_norm_before": False, "word_embed_proj_dim": 16}  # OPT 350M
SPECIAL = {"opt_350m": NARROW, "falcon_rw": {"model_type": "falcon", **RW}}


@pytest.fixture(scope="module", autouse=True)
def _quick_compilation(quick_compilation):
    """No property here depends on how well a program is optimized."""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """base(family): the folder of a tiny model as transformers saves it, its configuration and its parameters here."""

    @functools.cache
    def make(family):
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        torch.manual_seed(0)
        settings = {"model_type": family, **(FAMILIES | OTHERS | SPECIAL)[family]}
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        folder = tmp_path_factory.mktemp(family) / "hf"
        model.save_pretrained(folder)
        config, params = read_hf_decoder(folder)
        return folder, config, in_memory(params)

    return make


def our_logits(model, params):
    tokens = np.pad(TOKENS, ((0, 0), (model.prompt_length, 0))).astype(np.int32)

    @jax.jit
    def logits(params):
        built = build(model, Compute(), params)
        return built.logits(built.decode(tokens, np.ones_like(tokens)))

    return np.asarray(logits(params))


def peft_logits(folder, adapter):
    """Of peft's own model, opened from both folders; the adapter has an effect."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), adapter).eval()
    inputs = {"input_ids": torch.tensor(TOKENS), "attention_mask": torch.ones(TOKENS.shape, dtype=torch.long)}
    with torch.no_grad():
        adapted = model(**inputs).logits.numpy()
        with model.disable_adapter():
            assert np.abs(model(**inputs).logits.numpy() - adapted[:, -TOKENS.shape[1] :]).max() > 1e-2
    return adapted


def assert_same_tensors(one, other):
    one, other = (load_file(folder / "adapter_model.safetensors") for folder in (one, other))
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        np.testing.assert_array_equal(tensor, other[name], err_msg=name)


CAUSAL = {"task_type": "CAUSAL_LM"}
LORA = {**CAUSAL, "peft_type": "LORA", "r": 3, "lora_alpha": 6}
VIRTUAL = {**CAUSAL, "num_virtual_tokens": 5}
FROM_PEFT = {
    "lora": LORA,
    "rslora_all": {**LORA, "use_rslora": True, "target_modules": "all-linear"},
    "dora": {**LORA, "use_dora": True},
    "ia3": {**CAUSAL, "peft_type": "IA3"},
    "prompt": {"peft_type": "PROMPT_TUNING", **VIRTUAL},
    "prefix": {"peft_type": "PREFIX_TUNING", **VIRTUAL},
    "prefix_of_a_network": {
        "peft_type": "PREFIX_TUNING",
        **VIRTUAL,
        "prefix_projection": True,
        "encoder_hidden_size": 8,
    },
    "p_tuning": {"peft_type": "P_TUNING", **VIRTUAL, "encoder_hidden_size": 8},
}


def assert_read_and_written_back(base, tmp_path, family, settings, model_type=None):
    folder, config, params = base(family)
    adapter = write_with_peft(folder, tmp_path / "adapter", **settings)
    model, tuned = adapter_on(read_peft(adapter, config), config, params)
    found, expected = our_logits(model, tuned), peft_logits(folder, adapter)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-4)
    write_peft(tmp_path / "again", model, tuned, model_type=model_type or family)
    assert_same_tensors(tmp_path / "again", adapter)


@each_family
@pytest.mark.parametrize("settings", FROM_PEFT.values(), ids=FROM_PEFT)
def test_what_peft_wrote_computes_the_same_and_is_written_back(base, tmp_path, family, settings):
    assert_read_and_written_back(base, tmp_path, family, settings)


@pytest.mark.parametrize("family", OTHERS)
@pytest.mark.parametrize("settings", [FROM_PEFT["rslora_all"], FROM_PEFT["prompt"]], ids=["all_linear", "prompt"])
def test_other_families_too(base, tmp_path, family, settings):
    assert_read_and_written_back(base, tmp_path, family, settings)


def test_a_prompt_is_as_wide_as_the_embedded_tokens_that_it_stands_before(base, tmp_path):
    folder, config, _ = base("opt_350m")
    narrow = {**FROM_PEFT["prompt"], "token_dim": 16}
    assert_read_and_written_back(base, tmp_path, "opt_350m", narrow, "opt")
    # peft's own default is the width of the model, with which it cannot compute either.
    wide = write_with_peft(folder, tmp_path / "wide", **FROM_PEFT["prompt"])
    with pytest.raises(ModelFolderError, match=r"\(5, 32\), .*\(5, 16\)"):
        read_peft(wide, config)


def test_a_prefix_counts_as_earlier_tokens_where_alibi_is_rounded(base, tmp_path):
    assert_read_and_written_back(base, tmp_path, "falcon_rw", FROM_PEFT["prefix"], "falcon")


def test_an_adapter_of_the_projections_of_a_narrow_embedding_is_refused(base, tmp_path):
    folder, config, _ = base("opt_350m")
    adapter = write_with_peft(folder, tmp_path / "adapter", **FROM_PEFT["rslora_all"])
    with pytest.raises(ModelFolderError, match=r"project_in"):
        read_peft(adapter, config)


NORMS = r"decoder/(layers/pre_mlp_layer_norm|decoder_norm)/(scale|bias)"
TO_PEFT = {
    "lora": (LoRA(rank=2, alpha=4),),
    "everything": (LoRA(rank=2, alpha=4, targets=ALL_LINEAR, rank_stabilized=True),),
    "ranks": (LoRA(rank=2, targets=ALL_LINEAR, rank_pattern={".*/value": 4, ".*/wo": 3}, alpha_pattern={".*/key": 5}),),
    "dora_norms": (LoRA(rank=2, targets=".*/(out|wo)", dora=True), Train(parameters=NORMS)),
    "pissa": (LoRA(rank=2, init="pissa"),),
    "ia3": (IA3(),),
    "ia3_outputs": (IA3(targets=".*/(query|value|wo)", input_targets=""),),
    "prompt": (PromptTuning(length=5, init="random"),),
    "p_tuning": (PTuning(length=5, encoder="lstm"),),
    "prefix": (PrefixTuning(length=5),),
    "prefix_network": (PrefixTuning(length=5, hidden_dim=6),),
}


@each_family
@pytest.mark.parametrize("methods", TO_PEFT.values(), ids=TO_PEFT)
def test_what_flanjax_wrote_computes_the_same_in_peft(base, tmp_path, family, methods):
    folder, config, params = base(family)
    model = dataclasses.replace(config, added=methods)
    trained = [path for path in flatten(params) if any(isinstance(m, Train) and m.trains(path) for m in methods)]
    tuned = moved(model, params, *trained)
    start = flatten(begun(model, params))
    added = {path: start[path] for path in added_paths(model)}
    write_peft(tmp_path / "adapter", model, tuned, begun=added, model_type=family)
    expected = our_logits(model, tuned)
    np.testing.assert_allclose(peft_logits(folder, tmp_path / "adapter"), expected, rtol=1e-4, atol=2e-4)
    config_json = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config_json["task_type"] == "CAUSAL_LM"


@pytest.mark.parametrize("family", FUSED)
def test_queries_and_values_of_one_module_become_one_adapter_of_their_ranks_together(base, tmp_path, family):
    _, config, params = base(family)
    model = dataclasses.replace(config, added=(LoRA(rank=2, alpha=6),))
    write_peft(tmp_path / "adapter", model, moved(model, params), model_type=family)
    written = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (written["r"], written["lora_alpha"], written["target_modules"]) == (4, 12, [FUSED[family]])
    assert written["fan_in_fan_out"] == (family == "gpt2")
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    b = next(array for name, array in tensors.items() if "lora_B" in name)
    assert b.shape == (96, 4)
    # A third of the rows is each of queries, keys (zero) and values.
    assert [int((b != 0)[:, column].sum()) for column in range(4)] == [32] * 4
    assert int((b != 0).any(axis=1).sum()) == 64


def test_ranks_together_may_be_more_than_the_one_key_head_is_wide(base, tmp_path):
    folder, config, params = base("falcon")
    model = dataclasses.replace(config, added=(LoRA(rank=4, targets=ALL_LINEAR),))
    tuned = moved(model, params)
    write_peft(tmp_path / "adapter", model, tuned, model_type="falcon")
    expected = our_logits(model, tuned)
    np.testing.assert_allclose(peft_logits(folder, tmp_path / "adapter"), expected, rtol=1e-4, atol=2e-4)
    again, back = adapter_on(read_peft(tmp_path / "adapter", config), config, params)
    a = flatten(back)["decoder/layers/self_attention/key/lora/a"]
    assert a.shape[-1] == 3 * 4 > config.num_kv_heads * config.head_dim
    np.testing.assert_allclose(our_logits(again, back), expected, rtol=1e-4, atol=2e-4)


def test_what_is_written_is_put_on_its_base_before_it_is_kept(base, tmp_path, monkeypatch):
    _, config, params = base("llama")
    model = dataclasses.replace(config, added=(LoRA(rank=2),))
    reads = peft.read_peft

    def without_one(*args, **kwargs):
        adapter = reads(*args, **kwargs)
        kept = dict(list(adapter.params.items())[1:])
        return dataclasses.replace(adapter, params=kept)

    monkeypatch.setattr(peft, "read_peft", without_one)
    with pytest.raises(TuningError, match="of the adapter is None, and its methods ask for"):
        write_peft(tmp_path / "adapter", model, moved(model, params))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("family", FUSED)
def test_norms_of_a_part_of_a_module_are_refused(base, tmp_path, family):
    _, config, params = base(family)
    model = dataclasses.replace(config, added=(LoRA(rank=2, dora=True),))
    with pytest.raises(TuningError, match=f"leaves decoder/layers/self_attention/key out, which a {family} has in one"):
        write_peft(tmp_path / "adapter", model, moved(model, params), model_type=family)
    model = dataclasses.replace(config, added=(IA3(input_targets=".*/query", targets=".*/value"),))
    with pytest.raises(TuningError, match="has it in one module with others"):
        write_peft(tmp_path / "adapter", model, moved(model, params), model_type=family)
    assert not (tmp_path / "adapter").exists()


def test_an_adapter_of_another_family_is_refused(base, tmp_path):
    _, llama, _ = base("llama")
    _, neox, params = base("gpt_neox")
    model = dataclasses.replace(neox, added=(LoRA(rank=2),))
    write_peft(tmp_path / "adapter", model, moved(model, params))
    with pytest.raises(ModelFolderError, match="names nothing in this model, whose projections are down_proj"):
        read_peft(tmp_path / "adapter", llama)
    with pytest.raises(ModelFolderError, match="model_type is 'lama'"):
        read_peft(tmp_path / "adapter", llama, model_type="lama")
    prefix = dataclasses.replace(neox, added=(PrefixTuning(length=2),))
    write_peft(tmp_path / "prefix", prefix, moved(prefix, params))
    with pytest.raises(ModelFolderError, match="this model has 2 of 8, 16 together, for its keys"):
        read_peft(tmp_path / "prefix", llama)
