"""The harness's figures of a model are the same by flanjax as by its own `hf` model, request by request."""

import importlib.util
import inspect
import json
import logging
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lm_eval")

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from flanjax.errors import FlanjaxError
from flanjax.evaluation.mmlu import mmlu
from flanjax.lm_eval import FlanjaxLM

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("flan_t5_small", "smollm2")
TEXT = "The following are multiple choice questions (with answers) about anatomy. Which bone is the longest?"


def tool(name: str) -> Any:
    """A script of tools/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tasks(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions with letters, and texts to be written, of real test sets."""
    folder = tmp_path_factory.mktemp("tasks")
    write_task = tool("lm_eval_tasks").write_task
    write_task("mmlu-flan", test_data, folder, limit=1, tasks=("anatomy", "virology"))
    write_task("bbh", test_data, folder, limit=2, tasks=("boolean_expressions",))
    return folder


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def ours(folder: Path) -> FlanjaxLM:
    return FlanjaxLM(folder, batch_size=4)


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return hf(folder)


def hf(folder: Path) -> Any:
    """As the harness loads it, but for its head: transformers 5 takes every T5 for a tied one, and Flan-T5 is not."""
    transformers = pytest.importorskip("transformers")
    from lm_eval.models.huggingface import HFLM

    config = transformers.AutoConfig.from_pretrained(folder)
    kind = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    loaded = kind.from_pretrained(folder, dtype="float32")
    if config.is_encoder_decoder:
        loaded.config.tie_word_embeddings = False
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return HFLM(loaded, tokenizer=tokenizer, batch_size=4, max_length=2048)


def asked(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, each, i) for i, each in enumerate(arguments)]


def test_accuracies_log_likelihoods_and_texts_are_those_of_hf(ours: FlanjaxLM, theirs: Any, tasks: Path) -> None:
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    names = ["local_mmlu-flan", "local_bbh"]
    mine, other = (
        simple_evaluate(model, tasks=names, task_manager=manager, bootstrap_iters=0, batch_size=4)
        for model in (ours, theirs)
    )
    assert mine["results"].keys() == {*names}
    for name in names:
        figures = {key: value for key, value in mine["results"][name].items() if "stderr" not in key}
        assert figures == {key: value for key, value in other["results"][name].items() if "stderr" not in key}
        assert len(mine["samples"][name]) == 2
    for one, two in zip(mine["samples"][names[0]], other["samples"][names[0]], strict=True):
        for (found, is_greedy), (expected, theirs_greedy) in zip(
            one["filtered_resps"], two["filtered_resps"], strict=True
        ):
            assert found == pytest.approx(expected, abs=1e-3)
            assert is_greedy == theirs_greedy
    texts = [[sample["resps"] for sample in each["samples"][names[1]]] for each in (mine, other)]
    assert texts[0] == texts[1]
    assert any(text for ((text,),) in texts[0])
    assert mine["config"]["truncated_requests"] == 0


def test_continuations_and_whole_texts_are_scored_as_hf_scores_them(ours: FlanjaxLM, theirs: Any) -> None:
    pairs = asked(
        "loglikelihood",
        (TEXT, " the femur"),
        (TEXT, " the"),
        (TEXT + " ", "the skull"),
        ("", "Hello there"),
        (TEXT, "no"),
    )
    for (found, greedy), (expected, theirs_greedy) in zip(
        ours.loglikelihood(pairs), theirs.loglikelihood(pairs, disable_tqdm=True), strict=True
    ):
        assert found == pytest.approx(expected, abs=1e-3)
        assert greedy == theirs_greedy
    texts = asked("loglikelihood_rolling", (TEXT,), ("Yes.",))
    np.testing.assert_allclose(
        ours.loglikelihood_rolling(texts), theirs.loglikelihood_rolling(texts, disable_tqdm=True), atol=1e-3
    )


def test_what_is_cut_is_cut_as_by_hf_and_told(
    ours: FlanjaxLM, theirs: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(theirs, "_max_length", 12)
    monkeypatch.setattr(ours, "max_length", 12)
    before = ours.get_model_info()["truncated_requests"]
    pairs = asked("loglikelihood", (TEXT, " the femur"), ("Which bone?", " the femur"))
    with caplog.at_level(logging.WARNING, "flanjax.lm_eval"):
        found = ours.loglikelihood(pairs)
    assert "1 of 2 contexts are cut from the left to fit 12 tokens" in caplog.text
    assert ours.get_model_info()["truncated_requests"] == before + 1
    expected = theirs.loglikelihood(pairs, disable_tqdm=True)
    np.testing.assert_allclose([total for total, _ in found], [total for total, _ in expected], atol=1e-3)
    texts = asked("loglikelihood_rolling", (TEXT,))
    np.testing.assert_allclose(
        ours.loglikelihood_rolling(texts), theirs.loglikelihood_rolling(texts, disable_tqdm=True), atol=1e-3
    )
    with pytest.raises(FlanjaxError, match=r"a continuation of .* tokens: the most is max_length=12"):
        ours.loglikelihood(asked("loglikelihood", ("a", TEXT)))
    if ours.backend == "causal":
        with pytest.raises(FlanjaxError, match="max_length=12 leaves no room"):
            ours.generate_until(asked("generate_until", (TEXT, {"max_gen_toks": 12})))


def test_answers_are_decoded_as_asked(ours: FlanjaxLM) -> None:
    greedy, stopped, drawn, *same = ours.generate_until(
        asked(
            "generate_until",
            (TEXT, {"max_gen_toks": 8}),
            (TEXT, {"max_gen_toks": 8, "until": "e"}),
            (TEXT, {"max_gen_toks": 8, "do_sample": True, "temperature": 2.0, "seed": 1}),
            (TEXT, {"max_new_tokens": 8, "until": [""], "temperature": 0}),
            # What chooses among drawn tokens says nothing where none is drawn: `mimic_repsum` sends the first of these.
            (TEXT, {"max_gen_toks": 8, "top_p": 0.95}),
            (TEXT, {"max_gen_toks": 8, "do_sample": False, "temperature": 0.5, "top_k": 5, "min_p": 0.1}),
        )
    )
    assert stopped == greedy.split("e")[0] != greedy
    assert drawn != greedy
    assert same == [greedy] * 3
    with pytest.raises(FlanjaxError, match="generation_kwargs typical_p: there are until"):
        ours.generate_until(asked("generate_until", (TEXT, {"typical_p": 0.5})))


def test_long_contexts_are_read_whole_as_by_hf_with_room_for_them(
    flan_t5_small: Path, test_data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Five-shot MMLU, which does not fit into the 512 tokens of a T5's configuration."""
    benchmark = mmlu(test_data / "mmlu" / "data", form="flan", shots=5)
    question = next(each for each in benchmark.load() if each.task == "college_computer_science")
    pairs = asked("loglikelihood", *((question.prompt, f" {choice}") for choice in question.choices))
    text = asked("generate_until", (question.prompt, {"max_gen_toks": 6}))
    ours = FlanjaxLM(flan_t5_small, batch_size=4)
    tokens = len(ours.tok_encode(question.prompt))
    assert 700 < tokens < 1500
    with caplog.at_level(logging.WARNING, "flanjax.lm_eval"):
        whole, answer = [total for total, _ in ours.loglikelihood(pairs)], ours.generate_until(text)
        assert (ours.get_model_info()["truncated_requests"], caplog.text) == (0, "")
        ours.max_length = 512
        cut = [total for total, _ in ours.loglikelihood(pairs)]
        assert ours.get_model_info()["truncated_requests"] == 4
        assert "4 of 4 contexts are cut from the left to fit 512 tokens" in caplog.text
    theirs = hf(flan_t5_small)
    for length, found in ((2048, whole), (512, cut)):
        theirs._max_length = length
        expected = [total for total, _ in theirs.loglikelihood(pairs, disable_tqdm=True)]
        np.testing.assert_allclose(found, expected, atol=1e-3)
    assert np.abs(np.subtract(whole, cut)).max() > 0.01
    theirs._max_length = 2048
    assert answer == theirs.generate_until(text, disable_tqdm=True)


def test_beams_are_those_of_hf_and_end_at_the_stop_texts(ours: FlanjaxLM, theirs: Any) -> None:
    beams = {"max_gen_toks": 8, "num_beams": 3}
    context = "Question: Which bone is the longest? Answer:"
    (plain,) = theirs.generate_until(asked("generate_until", (context, beams)), disable_tqdm=True)
    stop = plain[len(plain) // 2]
    found = ours.generate_until(
        asked("generate_until", *((context, beams | {"until": until}) for until in ("zzz", [stop, "zzz"])))
    )
    assert found == [plain, plain.split(stop)[0]]
    assert found[1] != plain


def test_chats_are_those_of_hf(smollm2: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer, lm = transformers.AutoTokenizer.from_pretrained(smollm2), FlanjaxLM(smollm2)
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "The answer"}]
    for messages, begin in ((turns[:1], True), (turns, False)):
        text = lm.apply_chat_template(messages, add_generation_prompt=begin)
        assert text == tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=begin, continue_final_message=not begin
        )
        assert lm.tok_encode(text) == tokenizer.encode(text)
    assert lm.chat_template(True) == tokenizer.chat_template
    assert lm.chat_template(False) is None
    assert lm.tokenizer_name
    with pytest.raises(FlanjaxError, match="chat template 'tools': the model's own is the only one"):
        lm.chat_template("tools")


def test_arguments_that_make_no_model(flan_t5_small: Path, tmp_path: Path) -> None:
    with pytest.raises(FlanjaxError, match="batch_size is 0: it must be at least 1"):
        FlanjaxLM(flan_t5_small, batch_size=0)
    with pytest.raises(FlanjaxError, match="step=3 needs a run directory"):
        FlanjaxLM(flan_t5_small, step=3)
    with pytest.raises(FlanjaxError, match=r"adapter_config\.json"):
        FlanjaxLM(flan_t5_small, adapter=tmp_path)
    with pytest.raises(FlanjaxError, match="prompt='sort': this model has none to choose from"):
        FlanjaxLM(flan_t5_small, prompt="sort")
    lm = FlanjaxLM(flan_t5_small, batch_size="auto")
    assert (lm.batch_size, lm.max_length) == (16, None)
    with pytest.raises(FlanjaxError, match="brings no chat template: leave --apply_chat_template out"):
        lm.chat_template(True)


def test_commands_that_are_shown_are_the_harnesss() -> None:
    from lm_eval._cli import HarnessCLI

    shown = re.findall(r"^ {4}lm_eval (.*)", (ROOT / "docs" / "evaluation.md").read_text(), re.M)
    assert len(shown) == 3
    for line in shown:
        flags = HarnessCLI()._parser.parse_args(["run", *shlex.split(line)])
        assert flags.model == "flanjax"
        assert {*flags.model_args} <= inspect.signature(FlanjaxLM).parameters.keys()


@pytest.mark.parametrize(
    "launcher", [[Path(sys.executable).with_name("lm_eval")], [sys.executable, "-m", "flanjax.lm_eval"]]
)
def test_the_harnesss_command_finds_the_model(
    launcher: list[str | Path], flan_t5_small: Path, tasks: Path, tmp_path: Path
) -> None:
    command = [*map(str, launcher), "--model", "flanjax", "--include_path", str(tasks)]
    command += ["--model_args", f"path={flan_t5_small},max_length=64", "--tasks", "local_mmlu-flan", "--limit", "1"]
    command += ["--batch_size", "4", "--output_path", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "local_mmlu-flan" in done.stdout
    (file,) = (tmp_path / "out").rglob("results_*.json")
    config = json.loads(file.read_text())["config"]
    assert (config["model"], config["requests"], config["model_max_length"]) == ("flanjax", 4, 64)


def test_only_the_harnesss_command_is_told_of_the_model() -> None:
    """Every other start of Python reads the installed file too."""
    loaded = [sys.executable, "-c", "import sys; print('lm_eval' in sys.modules)", "--model", "lm_eval"]
    done = subprocess.run(loaded, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("False\n", "")
