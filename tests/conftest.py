"""Shared by all tests: eight virtual CPU devices, a compile cache, and the folder of real data."""

import contextlib
import gc
import os
import pathlib
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parent.parent
TEST_DATA = pathlib.Path(os.environ.get("FLANJAX_TEST_DATA", ROOT / ".." / "shared" / "data")).resolve()

# Before jax is imported: eight devices let the sharding tests run anywhere; code that runs for milliseconds is not
# worth LLVM's optimizations, which take most of the suite's time; and the compile cache lets two workers and reruns
# share what XLA built.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
FAST_COMPILE = "--xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), FAST_COMPILE, "--xla_force_host_platform_device_count=8"]
).strip()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(tempfile.gettempdir()) / "flanjax-test-jit-cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# A torch with CUDA brings Triton along, which ends the process if it is loaded after TensorFlow.
with contextlib.suppress(ImportError):
    import triton  # noqa: F401

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

# How long an example takes is the machine's affair: nothing here is a test of time.
hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("untimed")

# Linux lets a process have 65,530 memory maps; each program that XLA compiles takes some, and without any left it
# ends in a segmentation fault.
MAPS = pathlib.Path("/proc/self/maps")
MANY_MAPS = 20_000


@pytest.fixture(autouse=True)
def few_programs() -> Iterator[None]:
    """Lets go of compiled programs before they are too many for one process."""
    yield
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > MANY_MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="module")
def quick_compilation() -> Iterator[None]:
    """XLA takes a third of the time for programs that run for milliseconds; for rooms whose properties allow it."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="session")
def test_data() -> pathlib.Path:
    """The folder of real published files; tests that need it are skipped where it is absent."""
    if not TEST_DATA.is_dir():
        pytest.skip(f"no real data at {TEST_DATA}: set FLANJAX_TEST_DATA")
    return TEST_DATA


@pytest.fixture(scope="session")
def t5_spiece(test_data: pathlib.Path) -> pathlib.Path:
    """The real T5 SentencePiece model."""
    return test_data / "vocab" / "t5" / "spiece.model"


@pytest.fixture(scope="session")
def coordinator_address() -> Iterator[str]:
    """An address for process 0 of several, kept from every other process until the session ends.

    The socket is bound and does not listen: gRPC, which also sets SO_REUSEPORT, may bind the port and is given all of
    its connections, while the kernel gives it to nobody who asks for a free one.
    """
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind(("localhost", 0))
        yield f"localhost:{reserved.getsockname()[1]}"


@pytest.fixture(scope="session")
def flan_t5_small(test_data: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The real Flan-T5-small as an ordinary Hugging Face folder, made once for all workers of a session."""
    temporary = tmp_path_factory.getbasetemp()
    folder = (temporary.parent if "PYTEST_XDIST_WORKER" in os.environ else temporary) / "flan_t5_small"
    if not folder.exists():
        # The folder appears whole or not at all, so where two workers convert at once the second one's failure is fine.
        tool = ROOT / "tools" / "dequantize_flan_t5_small.py"
        source = test_data / "checkpoints" / "flan_t5_small_int8"
        subprocess.run([sys.executable, tool, source, test_data / "vocab" / "t5", folder], check=False)
    assert folder.exists(), "the conversion failed, see stderr"
    return folder


@pytest.fixture(scope="session")
def stories(test_data: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The real stories260K as a Hugging Face folder of a Llama, with the tokenizer.model that it came with."""
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    source, folder = test_data / "checkpoints" / "stories260K", tmp_path_factory.mktemp("models") / "stories260K"
    shutil.copytree(source / "hf", folder)
    content, position, proto = (source / "tok512.bin").read_bytes(), 4, ModelProto()
    kinds = proto.SentencePiece
    while position < len(content):
        score, length = struct.unpack_from("<fi", content, position)
        position += 8 + length
        number, text = len(proto.pieces), content[position - length : position].decode()
        kind = (
            kinds.NORMAL
            if number > 258
            else kinds.BYTE
            if number > 2
            else (kinds.UNKNOWN, *[kinds.CONTROL] * 2)[number]
        )
        proto.pieces.add(piece=text.replace(" ", "▁") if number > 2 else text.strip(), score=score, type=kind)
    proto.trainer_spec.model_type = proto.trainer_spec.BPE
    proto.trainer_spec.byte_fallback = True
    proto.normalizer_spec.remove_extra_whitespaces = False
    (folder / "tokenizer.model").write_bytes(proto.SerializeToString())
    return folder


@pytest.fixture(scope="session")
def smollm2_gguf() -> pathlib.Path:
    """The real SmolLM2-135M-Instruct in 4 bits, downloaded once into a cache outside the repository."""
    tool = ROOT / "tools" / "fetch_smollm2.py"
    fetched = subprocess.run([sys.executable, tool], capture_output=True, text=True, check=False)
    if fetched.returncode == 3 and not os.environ.get("CI"):
        pytest.skip(f"SmolLM2 cannot be downloaded: {fetched.stderr.strip()}")
    assert fetched.returncode == 0, fetched.stderr
    return pathlib.Path(fetched.stdout.strip())


@pytest.fixture(scope="session")
def smollm2(smollm2_gguf: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The same as a Hugging Face folder with float32 weights, made once for all workers of a session."""
    from flanjax.interchange.folders import ModelFolderError
    from flanjax.interchange.gguf import convert_gguf

    temporary = tmp_path_factory.getbasetemp()
    folder = (temporary.parent if "PYTEST_XDIST_WORKER" in os.environ else temporary) / "smollm2"
    if not folder.exists():
        try:
            convert_gguf(smollm2_gguf, folder)
        except ModelFolderError:  # the folder appears whole: another worker may have been first
            if not folder.exists():
                raise
    return folder


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """In CI a test that is skipped although the real data is there counts as a failure of the session."""
    skipped = terminalreporter.stats.get("skipped", [])
    if os.environ.get("CI") and TEST_DATA.is_dir() and skipped:
        terminalreporter.write_line(f"{len(skipped)} skipped although {TEST_DATA} is there", red=True)
        terminalreporter._session.exitstatus = pytest.ExitCode.TESTS_FAILED


CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>")


@pytest.fixture(scope="session")
def bpe_folder(test_data: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A tokenizer of GPT-2's kind with ChatML's tokens, trained on real conversations, in a Hugging Face folder."""
    import json

    from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
    from tokenizers.models import BPE

    records = json.loads((test_data / "fastchat" / "dummy_conversation.json").read_text())
    lines = [turn["value"] for record in records for turn in record["conversations"]]
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=list(CONTROL_TOKENS), initial_alphabet=alphabet)
    tokenizer.train_from_iterator(lines, trainer)
    folder = tmp_path_factory.mktemp("bpe")
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def llama_folder(test_data: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder with a SentencePiece model of Llama 2's kind alone: BPE, bytes for unknown characters, BOS 1, EOS 2."""
    import json

    import sentencepiece

    records = json.loads((test_data / "fastchat" / "dummy_conversation.json").read_text())
    folder = tmp_path_factory.mktemp("llama")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([turn["value"] for record in records for turn in record["conversations"]]),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=600,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=0.999,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        num_threads=1,
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
    return folder
