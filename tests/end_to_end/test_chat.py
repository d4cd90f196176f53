"""A decoder trained on real chats: its template goes from the gin file to the run, the export, and the answers."""

import json
from pathlib import Path

import jax
import pytest

import flanjax as library
from flanjax import batch_inference
from flanjax.data.cache import CachedMixture
from flanjax.data.chat import own_chat
from flanjax.data.chat_templates import named_templates
from flanjax.data.vocabularies import Vocabulary
from flanjax.files import read_json_lines
from flanjax.generation.decoding import DecodingConfig
from flanjax.generation.generate import generate
from flanjax.interchange.hf_decoder import write_hf_decoder
from flanjax.models.decoder import init_params
from flanjax.models.decoder_config import DecoderConfig
from flanjax.serving import requests
from flanjax.serving.fields import Fields
from tests.end_to_end.conftest import Flanjax

TEMPLATE = "zephyr"
# Its cue opens a thought, which no reply in a history begins with.
OPENING = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def base(bpe_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama that knows nothing, with a tokenizer that has no chat template."""
    vocabulary = Vocabulary.from_file(bpe_folder)
    config = DecoderConfig(
        vocab_size=vocabulary.size, embed_dim=32, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=16, mlp_dim=48
    )
    folder = tmp_path_factory.mktemp("base") / "llama"
    write_hf_decoder(folder, config, jax.device_get(init_params(config, 0)), vocabulary, model_type="llama")
    return folder


@pytest.fixture(scope="module")
def flags(base: Path, test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("chats")
    given = {
        "INIT_FROM": base,
        "MIXTURE": test_data / "fastchat" / "dummy_conversation.json",
        "CHAT_TEMPLATE": TEMPLATE,
        "CACHE_DIR": folder / "cache",
        "MODEL_DIR": folder / "run",
        "EXPORT_TO": folder / "hf",
        "FEATURE_LENGTHS": {"tokens": 256},
        "BATCH_ROWS": 4,
        "TRAIN_STEPS": 8,
        "LEARNING_RATE": 1e-2,
        "EVAL_EVERY": 8,
        "CHECKPOINT_EVERY": 8,
        "EVAL_MIXTURES": (),
        "Compute.dtype": "float32",
        "OptimizerConfig.warmup_steps": 0,
        "TrainConfig.eval_at_start": True,
        "TrainConfig.log_every": 1,
        "EvaluationConfig.questions": 2,
        "EvaluationConfig.max_new_tokens": 4,
    }
    return ["--gin_file=alpaca_llama.gin", *(f"--gin.{name}={value}" for name, value in given.items())]


@pytest.fixture(scope="module")
def trained(flags: list[str], flanjax: Flanjax) -> Path:
    """The folder with `run`, `hf` and `cache`."""
    flanjax("train", *flags)
    (folder,) = (Path(flag.split("=", 1)[1]).parent for flag in flags if flag.startswith("--gin.MODEL_DIR="))
    return folder


def test_it_learns_and_answers_in_the_template_of_its_training(trained: Path) -> None:
    losses = {line["step"]: line["values"]["loss"] for line in read_json_lines(trained / "run" / "metrics.jsonl")}
    assert losses[8] < losses[1] - 0.5
    assert (trained / "run" / "vocabulary" / "chat_template.jinja").read_text() == named_templates()[TEMPLATE]
    settings = json.loads((trained / "run" / "config.json").read_text())
    assert settings["chat_template"]["name"] == TEMPLATE
    samples = read_json_lines(trained / "run" / "samples.jsonl")
    assert all(line["prompt"].endswith("<|assistant|>\n") for line in samples)


def test_the_export_is_the_same_chat_to_transformers(trained: Path, test_data: Path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(trained / "hf")
    (task,) = CachedMixture.open(trained / "cache", "dummy_conversation", "train").tasks
    turns = json.loads((test_data / "fastchat" / "dummy_conversation.json").read_text())[1]["conversations"]
    roles = {"human": "user", "gpt": "assistant"}
    messages = [{"role": roles[turn["from"]], "content": turn["value"]} for turn in turns]
    (example,) = task.read([0])
    told = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    assert told["input_ids"] == [*example.inputs, *example.targets]
    assert told["assistant_masks"] == [*[0] * len(example.inputs), *example.target_weights]
    generation = json.loads((trained / "hf" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == tokenizer.eos_token_id
    ours, exported = library.load(trained / "run"), library.load(trained / "hf")
    said = [{"role": "user", "content": "Who are you?"}]
    (answer,) = ours.chat([said], max_new_tokens=8)
    assert exported.chat([said], max_new_tokens=8) == [answer]
    prompt = tokenizer.apply_chat_template(said, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(trained / "hf").eval()
    with torch.no_grad():
        generated = model.generate(**prompt, max_new_tokens=8, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert ours.vocabulary.decode(generated.tolist()) == answer


def test_another_template_is_another_run(flags: list[str], trained: Path, flanjax: Flanjax) -> None:
    refused = flanjax("train", *flags, "--gin.CHAT_TEMPLATE=chatml", status=2)
    assert "\n  chat_template.identity: it was " in refused.stderr
    del trained


def test_an_end_of_turn_that_is_not_the_end_of_a_sequence_ends_answers_too(base: Path, tmp_path: Path) -> None:
    vocabulary = Vocabulary.from_file(base)
    vocabulary.save(tmp_path / "run")
    ending = named_templates()["chatml"].replace("<|im_end|>", "<|endoftext|>")
    (tmp_path / "run" / "chat_template.jinja").write_text(ending)
    config = DecoderConfig(
        vocab_size=vocabulary.size, embed_dim=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8, mlp_dim=8
    )
    tuned = Vocabulary.load(tmp_path / "run")
    params = jax.device_get(init_params(config, 0))
    write_hf_decoder(tmp_path / "hf", config, params, tuned, model_type="llama", source=base)
    told = json.loads((tmp_path / "hf" / "generation_config.json").read_text())
    assert told["eos_token_id"] == [vocabulary.eos_id, vocabulary.control_tokens["<|endoftext|>"]]


def test_a_template_whose_replies_cannot_be_told_is_exported_and_answers(base: Path, tmp_path: Path) -> None:
    Vocabulary.from_file(base).save(tmp_path / "run")
    (tmp_path / "run" / "chat_template.jinja").write_text(OPENING)
    vocabulary, model = Vocabulary.load(tmp_path / "run"), library.load(base)
    write_hf_decoder(tmp_path / "hf", model.config, model.params, vocabulary, model_type="llama", source=base)
    generation = tmp_path / "hf" / "generation_config.json"
    assert json.loads(generation.read_text()) == json.loads((base / generation.name).read_text())
    ends = [vocabulary.eos_id, vocabulary.control_tokens["<|endoftext|>"]]
    generation.write_text(json.dumps({"eos_token_id": ends}))

    model, said = library.load(tmp_path / "hf"), [{"role": "user", "content": "Who are you?"}]
    chat = own_chat(model.vocabulary)
    assert chat is not None
    asked = chat.prompt(said)
    assert model.vocabulary.decode(asked[asked.index(vocabulary.eos_id) + 1 :]).endswith("<think>\n")
    row = batch_inference.Reader(model, 8).read({"messages": said}, "line 1")
    assert (row.ids, list(row.eos_ids)) == (asked, ends)
    job = requests.Reader(model, name="m", max_length=64, most_answers=4).chat(Fields({"model": "m", "messages": said}))
    assert job.decoding is not None
    assert (list(job.inputs[0]), list(job.decoding.eos_ids)) == (asked, ends)
    # Whatever is likeliest first, an answer that it ends is empty.
    (first,) = generate(model.config, model.compute, model.params, [asked], DecodingConfig(max_new_tokens=1))[0]
    generation.write_text(json.dumps({"eos_token_id": [vocabulary.eos_id, first]}))
    assert library.load(tmp_path / "hf").chat([said], max_new_tokens=8) == [""]
