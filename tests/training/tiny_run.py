"""A tiny T5 and a tiny decoder, batches for them, and a whole training run as a script: what the tests kill and resume.

python tests/training/tiny_run.py RUN_DIR '{"train_steps": 20}'
python tests/training/tiny_run.py RUN_DIR '{}' localhost:1234 2 0        # process 0 of 2, over all their devices
python tests/training/tiny_run.py RUN_DIR '{"hold": 8}'     # no batch after the eighth until RUN_DIR.go is there
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from flanjax.files import read_json_lines
from flanjax.models.config import Compute, T5Config
from flanjax.models.decoder_config import DecoderConfig
from flanjax.models.model import ModelConfig, init_params
from flanjax.sharding.hosts import join, row_shards_of_host
from flanjax.sharding.mesh import MeshConfig, make_mesh
from flanjax.training.interfaces import Silence, TrainConfig
from flanjax.training.losses import LossConfig
from flanjax.training.optimizers import OptimizerConfig, make_optimizer
from flanjax.training.schedules import make_schedule
from flanjax.training.signals import exit_now
from flanjax.training.step import DECODER_FEATURES, StateLayout, batch_shapes, compile_step, make_train_step, put_batch
from flanjax.training.trainer import train
from flanjax.tuning.partition import flatten, trainable_axes

VOCAB, ENCODER, DECODER, ROWS = 64, 16, 8, 8
TINY = T5Config(
    vocab_size=VOCAB,
    embed_dim=16,
    num_heads=2,
    head_dim=8,
    mlp_dim=32,
    num_encoder_layers=2,
    num_decoder_layers=3,
    dropout_rate=0.1,
)
# Grouped heads, a window in every other layer, biases, a soft cap: what only a decoder has.
DECODER_ONLY = DecoderConfig(
    vocab_size=VOCAB,
    embed_dim=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    mlp_dim=32,
    window=5,
    windowed=(True, False),
    qkv_bias=True,
    head_bias=True,
    logits_softcap=3.0,
    dropout_rate=0.1,
    init_stddev=0.2,
)
FLOAT32 = Compute()
LOOP = {"train_steps": 8, "log_every": 3, "eval_every": 4, "checkpoint_every": 3}


def random_batch(seed: int, rows: int = ROWS) -> dict[str, np.ndarray]:
    """Rows of one segment of random length on both sides; other seeds, other tokens."""
    rng = np.random.default_rng(seed)

    def side(length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        lengths = rng.integers(1, length + 1, rows)
        segments = (np.arange(length)[None] < lengths[:, None]).astype(np.int32)
        tokens = rng.integers(2, VOCAB, (rows, length)).astype(np.int32) * segments
        return tokens, segments, np.arange(length, dtype=np.int32) * segments

    encoder, encoder_segments, encoder_positions = side(ENCODER)
    decoder, decoder_segments, decoder_positions = side(DECODER)
    return {
        "encoder_input_tokens": encoder,
        "encoder_segment_ids": encoder_segments,
        "encoder_positions": encoder_positions,
        "decoder_input_tokens": np.pad(decoder, ((0, 0), (1, 0)))[:, :-1] * decoder_segments,
        "decoder_target_tokens": decoder,
        "decoder_loss_weights": decoder_segments,
        "decoder_segment_ids": decoder_segments,
        "decoder_positions": decoder_positions,
    }


def causal_rows(examples: list[list[tuple[list[int], list[int]]]], length: int) -> dict[str, np.ndarray]:
    """Rows of (inputs, targets), one after the other, as a decoder takes them: inputs are read and not learnt."""
    batch = {name: np.zeros((len(examples), length), np.int32) for name in DECODER_FEATURES}
    for r, row in enumerate(examples):
        start = 0
        for segment, (inputs, targets) in enumerate(row, 1):
            tokens = np.array([*inputs, *targets])
            part = slice(start, start := start + len(tokens) - 1)
            batch["decoder_input_tokens"][r, part] = tokens[:-1]
            batch["decoder_target_tokens"][r, part] = tokens[1:]
            batch["decoder_loss_weights"][r, part] = np.arange(1, len(tokens)) >= len(inputs)
            batch["decoder_segment_ids"][r, part] = segment
            batch["decoder_positions"][r, part] = np.arange(len(tokens) - 1)
    return batch


def random_examples(seed: int, rows: int = ROWS) -> list[list[tuple[list[int], list[int]]]]:
    """Two examples for each row of `ENCODER` positions."""
    rng = np.random.default_rng(seed)

    def tokens(least: int) -> list[int]:
        return rng.integers(2, VOCAB, rng.integers(least, 5)).tolist()

    return [[(tokens(1), tokens(2)), (tokens(1), tokens(2))] for _ in range(rows)]


def batch_for(model: ModelConfig, seed: int) -> dict[str, np.ndarray]:
    """`random_batch`, or rows of `random_examples` for a decoder; a prompt leaves place for one in a row."""
    if not isinstance(model, DecoderConfig):
        return random_batch(seed)
    prompt = [0] * model.prompt_length
    rows = [row[:1] if prompt else row for row in random_examples(seed)]
    return causal_rows([[(prompt + inputs, targets) for inputs, targets in row] for row in rows], ENCODER)


class Batches:
    """Batch n is `batch_for(model, n)`, or its given part; the position is n, and every batch given is noted down."""

    def __init__(
        self,
        count: int = 10**9,
        pause: float = 0.0,
        part: Sequence[int] = range(ROWS),
        model: ModelConfig = TINY,
    ):
        self.position, self.count, self.pause, self.part, self.model = 0, count, pause, part, model
        self.given: list[int] = []

    def __next__(self) -> dict[str, np.ndarray]:
        if self.position >= self.count:
            raise StopIteration
        time.sleep(self.pause)
        self.given.append(self.position)
        self.position += 1
        return {name: rows[list(self.part)] for name, rows in batch_for(self.model, self.given[-1]).items()}

    def get_state(self) -> dict[str, int]:
        return {"window": 0, "row": self.position}

    def set_state(self, state: dict[str, int]) -> None:
        self.position = state["row"]


def parameter_sum(params, should_stop) -> dict[str, float]:
    """An evaluation that depends on every parameter."""
    leaves = jax.device_get(jax.tree.leaves(params))
    return {"loss": float(sum(np.abs(leaf.astype(np.float64)).sum() for leaf in leaves))}


def assert_same_run(resumed, resumed_dir, whole, whole_dir):
    """Every line of the log, and each parameter by name, so that a difference says where it begins.

    A signal to the process of the tests, such as that of a time limit around them, ends a run early and in good order:
    what is then different says nothing of resuming.
    """
    for result in (resumed, whole):
        assert result.stopped_by is None, f"{result.stopped_by} from outside stopped a run at step {result.step}"

    def log(run_dir):
        lines = read_json_lines(Path(run_dir) / "metrics.jsonl")
        return {(line["step"], line["split"]): line["values"] for line in lines}

    found, expected = log(resumed_dir), log(whole_dir)
    # Where it was stopped the resumed run has one evaluation more.
    for place, values in expected.items():
        assert found.get(place) == values, f"{place}: {found.get(place)} is not {values}"
    params = flatten(resumed.params)
    for path, value in flatten(whole.params).items():
        np.testing.assert_array_equal(params[path], value, err_msg=path)


def start(run_dir, *, batches=None, mesh=None, observer=None, evaluators=None, initial_params=None, **given):
    """Trains the tiny model; keywords are those of `TrainConfig`, or of `train` where that has them."""
    own = {name: given.pop(name) for name in ("model", "compute", "optimizer", "run_config") if name in given}
    arguments = {
        "model": TINY,
        "compute": FLOAT32,
        "optimizer": OptimizerConfig(learning_rate=0.05, min_dim_size_to_factor=16, warmup_steps=2),
        "run_config": {"model": {"mlp_dim": 32}, "data": {"mixture": "demo"}, "train": given},
        **own,
    }
    return train(
        loss=LossConfig(chunk_tokens=16),
        config=TrainConfig(**{**LOOP, **given}),
        mesh=mesh or make_mesh(MeshConfig(), jax.devices()[:1]),
        batches=batches if batches is not None else Batches(model=arguments["model"]),
        initial_params=initial_params or (lambda shardings: jax.jit(lambda: init_params(TINY, 0))()),
        evaluators={"validation": parameter_sum} if evaluators is None else evaluators,
        run_dir=Path(run_dir),
        observer=observer,
        **arguments,
    )


class Program:
    """A compiled step of a model with random parameters, and a run of it batch by batch."""

    def __init__(self, model, optimizer, *, mesh=None, microbatches=1):
        self.model = model
        self.mesh = make_mesh(mesh or MeshConfig(), None if mesh else jax.devices()[:1])
        self.optimizer = make_optimizer(optimizer, trainable_axes(model), total_steps=100, stacks=model.stacks)
        self.layout = StateLayout.of(model, self.optimizer, self.mesh)
        self.step = make_train_step(
            model,
            FLOAT32,
            LossConfig(chunk_tokens=16),
            self.optimizer,
            make_schedule(optimizer, 100),
            self.layout,
            seed=0,
            microbatches=microbatches,
        )
        lengths = (None, ENCODER) if isinstance(model, DecoderConfig) else (ENCODER, DECODER)
        self.compiled = compile_step(self.step, self.layout, batch_shapes(ROWS, *lengths, self.mesh))

    def start(self, *, moved=False):
        """The first state; `moved` away from matrices that are zero, whose gradients are rounding alone."""
        params = jax.device_get(init_params(self.model, seed=0))
        if moved:
            rng = np.random.default_rng(0)
            params = jax.tree.map(
                lambda p: (p + 0.1 * rng.standard_normal(p.shape, np.float32)).astype(p.dtype), params
            )
        return self.layout.start(params, self.optimizer)

    def run(self, batches, state=None):
        """The last state, and the metrics of every step, on the host."""
        state, history = state or self.start(), []
        for batch in batches:
            state, metrics = self.compiled(state, put_batch(batch, self.mesh))
            history.append(jax.device_get(metrics))
        return jax.device_get(state), history


class Printer(Silence):
    """Tells the test that started the process how far it is."""

    def progress(self, progress):
        print("step", progress.step, flush=True)

    def notice(self, message):
        print(message, flush=True)


class ToldBatches(Batches):
    """The first batch is given out right before the step is compiled; after `hold` of them it waits to be let go.

    A test can so send a signal that comes before the run is over however slow the machine is. After it the batches
    come slowly: several processes need some steps, or the time of some, to agree on where to stop.
    """

    def __init__(self, go, hold=None, **given):
        super().__init__(**given)
        self.go, self.hold = go, hold

    def __next__(self):
        if not self.given:
            print("compiling", flush=True)
        if self.hold is not None and self.position >= self.hold:
            while not self.go.exists():
                time.sleep(0.01)
            time.sleep(0.5)
        return super().__next__()


if __name__ == "__main__":
    run_dir, loop, *host = sys.argv[1:]
    if host:
        join(host[0], int(host[1]), int(host[2]))
    # One device alone; of two processes with four each, the rows of one are strewn over the batch, as on a TPU pod.
    strewn = sorted(jax.devices(), key=lambda device: (device.id % 4 // 2, device.process_index))
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, model=2), strewn) if host else make_mesh(MeshConfig(), strewn[:1])
    loop = json.loads(loop)
    part = row_shards_of_host(mesh).rows(ROWS)
    batches = ToldBatches(Path(f"{run_dir}.go"), loop.pop("hold", None), pause=0.01, part=part)
    result = start(run_dir, batches=batches, mesh=mesh, observer=Printer(), **loop)
    print(f"ended at {result.step} {result.stopped_by}, work left behind {result.work_left_behind}", flush=True)
    if result.work_left_behind:
        exit_now(0)
