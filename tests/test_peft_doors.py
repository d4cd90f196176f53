"""Adapters through the doors: a run exported for peft, a folder of peft's opened on its base or merged into it."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flanjax
from flanjax import convert, export
from flanjax.data.vocabularies import Vocabulary, train_vocabulary
from flanjax.errors import FlanjaxError
from flanjax.interchange.any_model import write_hf_model
from flanjax.interchange.peft import read_peft
from flanjax.interchange.tokenizer import write_tokenizer
from flanjax.models.config import T5Config
from flanjax.models.decoder_config import DecoderConfig
from flanjax.models.model import init_params, model_settings
from flanjax.starting_point import StartingPoint
from flanjax.training.checkpoints import Checkpoints, restore_params
from flanjax.training.step import TrainState
from flanjax.tuning.ia3 import IA3
from flanjax.tuning.lora import LoRA
from flanjax.tuning.method import Method
from flanjax.tuning.methods import to_settings
from flanjax.tuning.partition import Partition, added_paths, begin, digest, flatten
from flanjax.tuning.prompt import PromptTuning
from flanjax.tuning.quantize import NF4
from flanjax.tuning.select import Freeze, Train

CONFIG = T5Config(
    vocab_size=64, embed_dim=16, num_heads=2, head_dim=4, mlp_dim=24, num_encoder_layers=2, num_decoder_layers=2
)
DECODER = DecoderConfig(
    vocab_size=64, embed_dim=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4, mlp_dim=24, init_stddev=0.2
)
QUESTIONS, ANSWERS = ["sort 7 words", "yes or no?", "3 of 12 words"], ["yes", "no", "sort 12 words"]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    texts = [f"sort {i} and {i * 7} words of March: yes or no?" for i in range(40)]
    return train_vocabulary(texts, 40, tmp_path_factory.mktemp("vocabulary") / "spiece.model", extra_ids=10)


@pytest.fixture(scope="module", params=[CONFIG, DECODER], ids=["t5", "decoder"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, vocabulary: Vocabulary) -> Path:
    folder, config = tmp_path_factory.mktemp("models") / "base", request.param
    params = jax.tree.map(lambda leaf: np.asarray(leaf) * 2, init_params(config, 3))
    write_hf_model(folder, config, params, vocabulary)
    return folder


@pytest.fixture
def tuned(base: Path, vocabulary: Vocabulary, tmp_path: Path) -> Callable[..., Path]:
    """tuned(LoRA()) is a run directory whose trainable parameters have values at random; `last` is one of them."""

    def make(*methods: Method, last: float | None = None) -> Path:
        opened = flanjax.load(base)
        folder, model, plain = tmp_path / "run", dataclasses.replace(opened.config, added=methods), opened.params
        trainable, _ = Partition.of(model).split(begin(model, plain, vocabulary.encode, 0))
        rng = np.random.default_rng(0)
        trainable = jax.tree.map(lambda leaf: leaf + 0.3 * jnp.asarray(rng.standard_normal(leaf.shape)), trainable)
        if last is not None:
            *leaves, leaf = jax.tree.leaves(trainable)
            leaves.append(leaf.at[(-1,) * leaf.ndim].set(last))
            trainable = jax.tree.unflatten(jax.tree.structure(trainable), leaves)
        settings = {
            "model": model_settings(model),
            "tuning": to_settings(methods),
            "base": digest(plain),
            "init_from": str(base),
            "train": {"seed": 0},
        }
        vocabulary.save(folder / "vocabulary")
        (folder / "config.json").write_text(json.dumps(settings))
        checkpoints = Checkpoints(folder / "checkpoints")
        counts = {name: jnp.zeros((), jnp.int32) for name in ("skipped", "skipped_in_a_row")}
        state = TrainState(step=jnp.int32(5), params=trainable, opt_state={}, **counts)
        checkpoints.save(5, state, position={}, config=settings)
        checkpoints.close()
        return folder

    return make


@pytest.mark.parametrize(
    "methods",
    [(LoRA(rank=2), Train()), (IA3(),), (LoRA(rank=2, init="pissa"),), (LoRA(rank=2, dora=True),)],
    ids=["lora", "ia3", "pissa", "dora"],
)
def test_a_run_an_adapter_on_its_base_and_both_merged_are_one_model(
    base: Path,
    tuned: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    methods: tuple[Method, ...],
) -> None:
    run, adapter, whole = tuned(*methods), tmp_path / "adapter", tmp_path / "whole"
    assert export.main([f"--run={run}", f"--output={adapter}", "--format=peft"]) == 0
    told = capsys.readouterr().out
    assert f'flanjax.load(BASE, adapter="{adapter}")' in told
    assert "calls the base model 'base', after its folder" in told
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "base"
    assert str(base.parent) not in (adapter / "README.md").read_text() + json.dumps(config)
    flags = [f"--input={base}", f"--adapter={adapter}", f"--output={whole}", "--format=hf"]
    assert convert.main(flags) == 0
    assert "merged; the largest difference of a logit is" in capsys.readouterr().out
    assert "| Adapter | adapter |" in (whole / "README.md").read_text()
    expected = flanjax.load(run).score(QUESTIONS, ANSWERS)
    assert np.abs(np.subtract(flanjax.load(base).score(QUESTIONS, ANSWERS), expected)).max() > 1e-2
    np.testing.assert_allclose(flanjax.load(base, adapter=adapter).score(QUESTIONS, ANSWERS), expected, rtol=1e-4)
    np.testing.assert_allclose(flanjax.load(whole).score(QUESTIONS, ANSWERS), expected, rtol=1e-4)


def test_a_base_has_the_name_that_it_is_given(
    base: Path, tuned: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from peft import AutoPeftModelForCausalLM, AutoPeftModelForSeq2SeqLM

    run, adapter = tuned(IA3()), tmp_path / "adapter"
    assert export.main([f"--run={run}", f"--output={adapter}", "--format=peft", f"--base_name={base}"]) == 0
    assert "after its folder" not in capsys.readouterr().out
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)
    opened = AutoPeftModelForSeq2SeqLM if config["task_type"] == "SEQ_2_SEQ_LM" else AutoPeftModelForCausalLM
    assert opened.from_pretrained(adapter).peft_config["default"].base_model_name_or_path == str(base)
    assert export.main([f"--run={run}", f"--output={tmp_path / 'whole'}", "--merge", "--base_name=google/t5"]) == 2
    assert "--base_name=google/t5: a whole model names no base" in capsys.readouterr().err


TEMPLATE = "{% for message in messages %}{{ message.content }} words: {% endfor %}"
CHAT = [[{"role": "user", "content": "sort 3"}]]


def test_an_adapter_brings_tokenizer_and_chat_template_of_its_training(
    base: Path, tuned: Callable[..., Path], tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    run, adapter = tuned(LoRA(rank=2)), tmp_path / "adapter"
    (run / "vocabulary" / "chat_template.jinja").write_text(TEMPLATE)
    export.export(run, adapter, format="peft")
    expected = flanjax.load(run).chat(CHAT, 8)
    with pytest.raises(FlanjaxError, match="brings no chat template"):
        flanjax.load(base).chat(CHAT)
    assert flanjax.load(base, adapter=adapter).chat(CHAT, 8) == expected
    automatic = AutoTokenizer.from_pretrained(adapter)
    assert automatic.apply_chat_template(CHAT[0], tokenize=False) == "sort 3 words: "
    convert.convert(base, tmp_path / "whole", adapter=adapter)
    assert flanjax.load(tmp_path / "whole").chat(CHAT, 8) == expected
    # As a trainer saves them beside an adapter: in files of transformers' making.
    automatic.chat_template = "{{ messages[0].content }}?"
    automatic.save_pretrained(adapter)
    assert (adapter / "chat_template.jinja").is_file()
    opened = flanjax.load(base, adapter=adapter)
    assert opened.vocabulary.own_templates == {"default": "{{ messages[0].content }}?"}
    assert opened.vocabulary.size == flanjax.load(base).vocabulary.size
    assert opened.chat(CHAT, 8) == flanjax.load(base, adapter=adapter).generate(["sort 3?"], 8)


def test_a_run_from_an_adapter_is_held_to_the_tokenizer_beside_it(
    base: Path, tuned: Callable[..., Path], tmp_path: Path, vocabulary: Vocabulary
) -> None:
    from transformers import AutoTokenizer

    adapter, texts = tmp_path / "adapter", [f"SORT {i} AND {i * 7} WORDS OF MARCH: YES OR NO?" for i in range(40)]
    other = train_vocabulary(texts, 40, tmp_path / "other" / "spiece.model", extra_ids=10)
    export.export(tuned(LoRA(rank=2)), adapter, format="peft")

    def check(own: Vocabulary) -> None:
        start = StartingPoint(
            model=None, dropout_rate=None, tuning=(), init_from=str(base), adapter_from=str(adapter), seed=0
        )
        start.check_vocabulary(own, pytest.fail)

    def check_one_of(same: Vocabulary, different: Vocabulary, told: str) -> None:
        check(same)
        with pytest.raises(FlanjaxError, match=rf"{told} was trained with .*Set VOCABULARY"):
            check(different)

    check_one_of(vocabulary, other, f"ADAPTER_FROM={adapter}")
    resaved = AutoTokenizer.from_pretrained(adapter)
    (adapter / "spiece.model").unlink()
    resaved.save_pretrained(adapter)
    check_one_of(vocabulary, other, f"ADAPTER_FROM={adapter}")
    for file in adapter.glob("*token*"):
        file.unlink()
    check_one_of(vocabulary, other, f"INIT_FROM={base}")
    write_tokenizer(adapter, other)
    check_one_of(other, vocabulary, f"ADAPTER_FROM={adapter}")


def test_the_card_of_an_adapter_says_which_class_opens_its_base(
    base: Path, tuned: Callable[..., Path], tmp_path: Path
) -> None:
    export.export(tuned(LoRA(rank=2)), tmp_path / "adapter", format="peft")
    card = (tmp_path / "adapter" / "README.md").read_text()
    is_t5 = isinstance(flanjax.load(base).config, T5Config)
    assert ("AutoModelForSeq2SeqLM.from_pretrained(" in card, "AutoModelForCausalLM.from_pretrained(" in card) == (
        is_t5,
        not is_t5,
    )
    assert ("- t5\n" in card) == is_t5


def test_a_prompt_is_opened_on_its_base_and_cannot_be_merged(
    base: Path, tuned: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, adapter = tuned(PromptTuning(length=3, tasks=("sorting",))), tmp_path / "adapter"
    assert export.main([f"--run={run}", f"--output={adapter}", "--format=peft"]) == 0
    expected = flanjax.load(run).score(QUESTIONS, ANSWERS, prompt="sorting")
    np.testing.assert_allclose(flanjax.load(base, adapter=adapter).score(QUESTIONS, ANSWERS), expected, rtol=1e-4)
    flags = [f"--input={base}", f"--adapter={adapter}", f"--output={tmp_path / 'whole'}", "--format=hf"]
    assert convert.main(flags) == 2
    assert "cannot be merged" in capsys.readouterr().err
    assert not (tmp_path / "whole").exists()


def test_prompts_of_several_tasks_are_an_adapter_each_and_one_together(
    base: Path, tuned: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = ("sorting", "no:1")
    run, output = tuned(PromptTuning(length=3, tasks=tasks)), tmp_path / "adapters"
    assert export.main([f"--run={run}", f"--output={output}", "--format=peft"]) == 0
    told = capsys.readouterr().out
    assert "a folder for each of sorting, no:1; load it with" in told
    assert f'peft.PeftModel.from_pretrained(BASE, "{output / "sorting"}")' in told
    assert f'flanjax.load(BASE, adapter="{output}").generate(["..."], prompt="sorting")' in told
    assert sorted(path.name for path in output.iterdir()) == ["no:1", "sorting"]
    together, scores = flanjax.load(base, adapter=output), []
    for task in tasks:
        assert f"# {task}\n" in (output / task / "README.md").read_text()
        expected = flanjax.load(run).score(QUESTIONS, ANSWERS, prompt=task)
        found = flanjax.load(base, adapter=output / task).score(QUESTIONS, ANSWERS)
        np.testing.assert_allclose(found, expected, rtol=1e-4)
        np.testing.assert_allclose(together.score(QUESTIONS, ANSWERS, prompt=task), expected, rtol=1e-4)
        scores.append(found)
    assert np.abs(np.subtract(*scores)).max() > 1e-2
    with pytest.raises(FlanjaxError, match="this model has prompts of the tasks no:1, sorting: choose one"):
        together.score(QUESTIONS, ANSWERS)
    # Training goes on with all of them.
    further = StartingPoint(
        model=None, dropout_rate=None, tuning=(), init_from=str(base), adapter_from=str(output), seed=0
    )
    assert further.methods == (PromptTuning(length=3, init="random", tasks=("no:1", "sorting")),)
    assert added_paths(further.tuned) == set(further.adapter.params)


def test_the_doors_say_what_does_not_go_together(
    base: Path, tuned: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, adapter, output = tuned(LoRA(rank=2), IA3()), tmp_path / "adapter", tmp_path / "out"

    def refused(door: Callable[[list[str]], int], *flags: str) -> str:
        assert door([*flags, f"--output={output}"]) == 2
        assert not output.exists()
        return capsys.readouterr().err

    assert "LoRA, IA3 are adapters of more than one kind" in refused(export.main, f"--run={run}", "--format=peft")
    assert "either --format=peft or --merge" in refused(export.main, f"--run={run}", "--format=peft", "--merge")
    assert "--format=peft for an adapter folder" in refused(export.main, f"--run={run}")
    flags = [f"--input={base}", f"--adapter={adapter}"]
    assert f"{adapter}: there is no such folder" in refused(convert.main, *flags, "--format=hf")
    assert "goes a file of T-Few (.pt) or a soft prompt (.npy)" in refused(
        convert.main, f"--input={base}", "--format=peft"
    )
    flags = [f"--input={run}", f"--adapter={adapter}"]
    assert "is a run: export it first" in refused(convert.main, *flags, "--format=hf")
    with pytest.raises(FlanjaxError, match="has adapters of its own"):
        flanjax.load(run, adapter=adapter)


@pytest.mark.parametrize("methods", [(LoRA(rank=2),), (PromptTuning(length=3),), (Freeze(parameters=".*/key/.*"),)])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_training_that_diverged_is_not_exported(
    base: Path, tuned: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], methods, value: float
) -> None:
    run, output = tuned(*methods, last=value), tmp_path / "out"
    for flags in (["--merge"], ["--format=peft"], ["--format=t5x", "--merge"], ["--merge", "--dtype=bfloat16"]):
        assert export.main([f"--run={run}", f"--output={output}", *flags]) == 2
        told = capsys.readouterr().err
        assert "holds NaN or infinity in the checkpoint of step 5: the training diverged" in told
        assert not output.exists()


def test_a_rank_beyond_its_matrix_goes_through_every_door(
    base: Path, tuned: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Rank 6 of PiSSA is 12 on the unchanged base, and a decoder's value has 8 outputs, as a T5's has.
    run, adapter, whole = tuned(LoRA(rank=6, init="pissa")), tmp_path / "adapter", tmp_path / "whole"
    assert export.main([f"--run={run}", f"--output={adapter}", "--format=peft"]) == 0
    assert json.loads((adapter / "adapter_config.json").read_text())["r"] == 12
    expected = flanjax.load(run).score(QUESTIONS, ANSWERS)
    np.testing.assert_allclose(flanjax.load(base, adapter=adapter).score(QUESTIONS, ANSWERS), expected, rtol=1e-4)
    assert convert.main([f"--input={base}", f"--adapter={adapter}", f"--output={whole}", "--format=hf"]) == 0
    np.testing.assert_allclose(flanjax.load(whole).score(QUESTIONS, ANSWERS), expected, rtol=1e-4)
    further = StartingPoint(
        model=None, dropout_rate=None, tuning=(), init_from=str(base), adapter_from=str(adapter), seed=0
    )
    assert added_paths(further.tuned) == set(further.adapter.params)


def test_what_was_learnt_on_a_base_in_4_bits_is_an_adapter_of_the_original(
    base: Path, tuned: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, adapter, whole = tuned(NF4(block=8), LoRA(rank=2)), tmp_path / "adapter", tmp_path / "whole"
    assert export.main([f"--run={run}", f"--output={adapter}", "--format=peft"]) == 0
    assert f"notice: {export.QUANTIZED}" in capsys.readouterr().out
    trained, _ = restore_params(run / "checkpoints")
    found = read_peft(adapter, flanjax.load(base).config)
    assert found.methods == (LoRA(rank=2),)
    assert found.params.keys() == flatten(trained).keys()
    for path, value in flatten(trained).items():
        np.testing.assert_array_equal(found.params[path], value)
    assert export.main([f"--run={run}", f"--output={whole}", "--merge"]) == 0
    on_original = flanjax.load(base, adapter=adapter).score(QUESTIONS, ANSWERS)
    np.testing.assert_allclose(on_original, flanjax.load(whole).score(QUESTIONS, ANSWERS), rtol=1e-4)
    assert np.abs(np.subtract(on_original, flanjax.load(run).score(QUESTIONS, ANSWERS))).max() > 1e-3


def test_another_base_than_the_adapters_is_told(
    base: Path, tuned: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, adapter = tuned(LoRA(rank=2)), tmp_path / "adapter"
    told = "says that it was trained on 'google/other-model', and the model at hand is 'base'"
    flags = [f"--output={adapter}", "--format=peft", "--base_name=google/other-model"]
    assert export.main([f"--run={run}", *flags]) == 0
    with pytest.warns(UserWarning, match=told):
        flanjax.load(base, adapter=adapter)
    capsys.readouterr()
    assert convert.main([f"--input={base}", f"--adapter={adapter}", f"--output={tmp_path / 'hf'}", "--format=hf"]) == 0
    assert told in capsys.readouterr().out


def test_a_run_without_adapters_has_none_to_export(base: Path, tuned: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(FlanjaxError, match="Train adds no parameters to the model's own"):
        export.export(tuned(Train()), tmp_path / "out", format="peft")
    with pytest.raises(FlanjaxError, match="format is 'gguf': choose one of hf, peft"):
        export.export(tmp_path / "run", tmp_path / "out", format="gguf")
    assert not (tmp_path / "out").exists()
