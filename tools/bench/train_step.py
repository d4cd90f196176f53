"""Full train steps of flanjax and of transformers, in turn: forward, backward, AdamW, dropout on.

    python tools/bench/train_step.py                  # float32: flanjax unrolled and scanned, transformers
    python tools/bench/train_step.py --dtype=bfloat16 # bf16 compute; transformers under torch.autocast

T5 v1.1-small, 4 rows of 512/128 tokens without padding. flanjax takes its rows as packed ones, with several segments
and the masks that go with them; transformers takes them as one sequence each. Both move every parameter.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import common


@dataclasses.dataclass(frozen=True)
class Shapes:
    """A model and a batch."""

    embed: int = 512
    heads: int = 6
    head_dim: int = 64
    mlp: int = 1024
    layers: int = 8
    vocab: int = 32128
    rows: int = 4
    encoder: int = 512
    decoder: int = 128
    segments: int = 4

    @property
    def tokens(self) -> int:
        """Encoder and decoder tokens of a batch."""
        return self.rows * (self.encoder + self.decoder)


SMOKE = Shapes(embed=32, heads=2, head_dim=16, mlp=64, layers=2, vocab=128, rows=2, encoder=32, decoder=16)
DROPOUT = 0.1
LEARNING_RATE = 1e-4


def t5_config(shapes: Shapes) -> Any:
    """The model as flanjax knows it."""
    from flanjax.models.config import T5Config

    return T5Config(
        vocab_size=shapes.vocab,
        embed_dim=shapes.embed,
        num_heads=shapes.heads,
        head_dim=shapes.head_dim,
        mlp_dim=shapes.mlp,
        num_encoder_layers=shapes.layers,
        num_decoder_layers=shapes.layers,
        dropout_rate=DROPOUT,
    )


def flanjax_trainer(config: Any, dtype: str, *, scan: bool) -> Callable[[Any], Any]:
    """A function that takes a numpy batch through one step of a model of either kind and waits for it.

    It is compiled for the first batch's shapes, and the process keeps its memory as that of `flanjax.train` does.
    """
    import jax

    from flanjax.models.config import Compute
    from flanjax.models.model import init_params, logical_axes
    from flanjax.sharding.host_memory import keep_freed_memory
    from flanjax.sharding.mesh import MeshConfig, make_mesh
    from flanjax.training.losses import LossConfig
    from flanjax.training.optimizers import OptimizerConfig, make_optimizer
    from flanjax.training.schedules import make_schedule
    from flanjax.training.step import StateLayout, compile_step, make_train_step, put_batch

    keep_freed_memory()
    settings = OptimizerConfig(name="adamw", learning_rate=LEARNING_RATE)
    optimizer = make_optimizer(settings, logical_axes(config), total_steps=1000)
    schedule = make_schedule(settings, 1000)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    layout = StateLayout.of(config, optimizer, mesh)
    compute = Compute(dtype=dtype, scan_layers=scan)
    step = make_train_step(config, compute, LossConfig(), optimizer, schedule, layout, seed=0)
    state = layout.start(jax.jit(lambda: init_params(config, 0))(), optimizer)
    compiled = None

    def train(batch: Any) -> Any:
        nonlocal compiled, state
        on_device = put_batch(batch, mesh)
        compiled = compiled or compile_step(step, layout, on_device)
        state, metrics = compiled(state, on_device)
        return jax.block_until_ready((state, metrics))[1]

    return train


def packed_rows(shapes: Shapes) -> Any:
    """A numpy batch of random packed rows without padding."""
    import numpy as np

    from flanjax.data.cache import Example
    from flanjax.data.packing import pack_rows

    draw = np.random.default_rng(0).integers

    def example() -> Example:
        inputs, targets = shapes.encoder // shapes.segments, shapes.decoder // shapes.segments
        return Example(inputs=draw(3, shapes.vocab, inputs), targets=draw(3, shapes.vocab, targets))

    rows = [[example() for _ in range(shapes.segments)] for _ in range(shapes.rows)]
    return pack_rows(rows, (shapes.encoder, shapes.decoder))


def build_flanjax(shapes: Shapes, dtype: str, scan: bool) -> Callable[[], float]:
    """A step on random packed rows; returns the mean loss."""
    batch = packed_rows(shapes)
    train = flanjax_trainer(t5_config(shapes), dtype, scan=scan)

    def work() -> float:
        metrics = train(batch)
        return float(metrics.loss / metrics.tokens)

    return work


def transformers_t5(shapes: Shapes) -> Any:
    """The model as transformers knows it."""
    import torch
    import transformers

    config = transformers.T5Config(
        vocab_size=shapes.vocab,
        d_model=shapes.embed,
        d_kv=shapes.head_dim,
        d_ff=shapes.mlp,
        num_layers=shapes.layers,
        num_heads=shapes.heads,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        dropout_rate=DROPOUT,
        decoder_start_token_id=0,
    )
    model = transformers.T5ForConditionalGeneration(config)
    # transformers 5 ties the head of a model made from a configuration, whatever that says.
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    return model


def transformers_trainer(make_model: Callable[[Any], Any], shapes: Any, dtype: str) -> Callable[..., float]:
    """A function that takes the keyword tensors of `make_model(shapes)` through one step; returns the loss."""
    import os

    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    model = make_model(shapes).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)

    def train(**tensors: Any) -> float:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = model(**tensors).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return train


def build_transformers(shapes: Shapes, dtype: str) -> Callable[[], float]:
    """A step on random rows; returns the mean loss."""
    import torch

    train = transformers_trainer(transformers_t5, shapes, dtype)
    inputs = torch.randint(3, shapes.vocab, (shapes.rows, shapes.encoder))
    labels = torch.randint(3, shapes.vocab, (shapes.rows, shapes.decoder))
    return lambda: train(input_ids=inputs, attention_mask=torch.ones_like(inputs), labels=labels)


def compare(
    what: str, text: str | None, full: Any, smoke: Any, flanjax: Callable[..., Any], transformers: Callable[..., Any]
) -> None:
    """The command line of a bench of train steps: flanjax unrolled and scanned beside transformers.

    Arguments:
      what: is measured, for the lines that are printed.
      text: the module's docstring.
      full: the shapes.
      smoke: those of `--smoke`.
      flanjax: called with shapes, dtype and whether layers are scanned; returns the step.
      transformers: called with shapes and dtype.
    """
    parser = common.parser(text)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the matrix products")
    parser.add_argument("--repetitions", type=int, default=7, help="steps of each program that are timed")
    flags = parser.parse_args()
    shapes = smoke if flags.smoke else full
    print(common.machine(flags.cores))
    print(f"{what}, {flags.dtype} compute, {shapes}, AdamW")
    contenders = [
        common.Contender("transformers", transformers, shapes, flags.dtype, cores=flags.cores),
        common.Contender("flanjax unrolled", flanjax, shapes, flags.dtype, False, cores=flags.cores),
        common.Contender("flanjax scanned", flanjax, shapes, flags.dtype, True, cores=flags.cores),
    ]
    seconds = common.in_turn(contenders, 1 if flags.smoke else flags.repetitions)
    for contender in contenders:
        common.print_seconds(contender, seconds[contender.name])
        contender.close()
    for name in ("flanjax unrolled", "flanjax scanned"):
        ratio = common.times_faster(seconds, name, "transformers")
        common.print_ratio(ratio, f"{what}, {flags.dtype}: {name} against transformers")


if __name__ == "__main__":
    compare("train step", __doc__, Shapes(), SMOKE, build_flanjax, build_transformers)
