"""Tuning methods side by side: parameters, memory and time of a train step, beside the same method in peft.

    python tools/bench/tuning.py --model=FLAN_T5_SMALL_FOLDER               # real weights
    python tools/bench/tuning.py --model=flan_t5_base.gin                   # random weights of that shape
    python tools/bench/tuning.py --model=flan_t5_xl.gin --compile_only --scan --dtype=bfloat16 --remat=full
    python tools/bench/tuning.py --quality_steps=60 --gin.DATA_DIR=super_natural_instructions \\
        --gin.INIT_FROM=FLAN_T5_SMALL_FOLDER --gin.VOCABULARY=FLAN_T5_SMALL_FOLDER      # what each has learnt by then

A method is a gin file of gin_configs/tuning/: a new file is a new row. Each side of a row is a process of its own, and
the two work in turn. Both are given the same 4 rows of 512/128 tokens: flanjax packs each as 4 examples, with their
masks, transformers reads it as one sequence; where there is a prompt, it is one sequence on both sides and the prompt
before it. AdamW with one rate everywhere. So the losses may be compared: of the same tokens, after as many updates; the
masks differ as said, and so do what dropout draws and weights that are random.

Gradients and optimizer state are of what is trained alone. For flanjax the compiler's own figures stand beside them:
what goes in (weights, optimizer state, batch), what is held meanwhile, and the arithmetic of a step, which is less
where no gradient of a weight is taken (with --scan one layer of a stack is counted). The peak is that of the whole
process while it takes steps (VmHWM), of which the libraries' part was there before the model.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import common
import train_step

FULL = "full"
ALL_LINEAR = ["q", "k", "v", "o", "wi_0", "wi_1", "wo"]
# What peft has for a row of this name: the class and its settings, those of the gin file.
PEFT: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("LoraConfig", {"r": 8, "lora_alpha": 8, "target_modules": ["q", "v"]}),
    "lora_plus": ("LoraConfig", {"r": 8, "lora_alpha": 8, "target_modules": ["q", "v"]}),
    "lora_all_linear": (
        "LoraConfig",
        {"r": 64, "lora_alpha": 16, "lora_dropout": 0.1, "target_modules": ALL_LINEAR},
    ),
    "rslora": ("LoraConfig", {"r": 64, "lora_alpha": 16, "use_rslora": True, "target_modules": ["q", "v"]}),
    "dora": (
        "LoraConfig",
        {
            "r": 32,
            "lora_alpha": 64,
            "lora_dropout": 0.05,
            "use_dora": True,
            "target_modules": ["q", "k", "v", "wi_0", "wi_1", "wo"],
        },
    ),
    "pissa": (
        "LoraConfig",
        {"r": 128, "lora_alpha": 128, "init_lora_weights": "pissa", "target_modules": ALL_LINEAR},
    ),
    "ia3": ("IA3Config", {"target_modules": ["k", "v", "wo"], "feedforward_modules": ["wo"]}),
    "layer_norms": ("LNTuningConfig", {"target_modules": ["layer_norm", "final_layer_norm"]}),
    "prompt": ("PromptTuningConfig", {"num_virtual_tokens": 100}),
    "p_tuning": ("PromptEncoderConfig", {"num_virtual_tokens": 20}),
    "prefix": ("PrefixTuningConfig", {"num_virtual_tokens": 30}),
}
TINY = {"embed_dim": 32, "num_heads": 2, "head_dim": 16, "mlp_dim": 64, "vocab_size": 512}
TINY |= {"num_encoder_layers": 2, "num_decoder_layers": 2}


# A row of the table: the method's gin files, after a run's own.
Row = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Case:
    """A model and a batch; `model` is a Hugging Face folder, or the fields of a `T5Config` of random weights."""

    model: str | dict[str, Any]
    shapes: train_step.Shapes
    dtype: str
    scan: bool
    remat: str

    def rank(self, published: int) -> int:
        """Of a low-rank method; the kernels of the tiny model have none as high as some of the published ones."""
        return min(published, 8) if self.shapes == train_step.SMOKE else published


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known of a step, in numbers and bytes; None where a side does not say."""

    trained: int
    total: int
    gradients: int
    optimizer: int
    arguments: int | None = None
    temporaries: int | None = None
    step: int | None = None
    flops: float | None = None
    peak: int | None = None
    libraries: int | None = None
    loss: float | None = None


def rows(names: str | None) -> dict[str, Row]:
    """The rows of the table, or those chosen by name."""
    from flanjax import doors

    folder = Path(doors.find_gin_file("lora.gin")).parent
    found: dict[str, Row] = {FULL: ()}
    found |= {path.stem: (path.name,) for path in sorted(folder.glob("*.gin"))}
    if unknown := [name for name in (names or "").split(",") if name and name not in found]:
        raise SystemExit(f"--methods: there is no {', '.join(unknown)}; there are {', '.join(found)}")
    return {name: found[name] for name in (names.split(",") if names else found)}


def shape_of(model: str, smoke: bool) -> str | dict[str, Any]:
    """The model of a case, from what `--model` says."""
    from flanjax import doors
    from flanjax.models.config import T5Config

    if Path(model).is_dir():
        return model
    overrides = tuple((f"T5Config.{name}", str(size)) for name, size in TINY.items()) if smoke else ()
    doors.configure(doors.GinSources(files=(f"models/{model}",), overrides=overrides), (T5Config,))
    fields = dataclasses.asdict(doors.build(T5Config))  # type: ignore[call-overload]
    del fields["added"]
    return fields


def memory(name: str) -> int:
    """A line of /proc/self/status in bytes: VmRSS, what the process holds; VmHWM, the most it held since the reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def reset_peak() -> None:
    """VmHWM begins anew."""
    Path("/proc/self/clear_refs").write_text("5")


@dataclasses.dataclass(frozen=True)
class Program:
    """A row's step in flanjax, not yet compiled."""

    config: Any
    optimizer: Any
    layout: Any
    step: Any


def program(case: Case, row: Row) -> tuple[Program, Callable[[], Any]]:
    """The step, and a function that makes its first parameters."""
    import jax

    from flanjax import doors
    from flanjax.interchange.hf_t5 import read_hf_t5
    from flanjax.interchange.tokenizer import read_vocabulary
    from flanjax.models.config import Compute, T5Config
    from flanjax.models.t5 import init_params
    from flanjax.run import CONFIGURABLES, Run
    from flanjax.sharding.mesh import MeshConfig, make_mesh
    from flanjax.training.optimizers import make_optimizer
    from flanjax.training.schedules import make_schedule
    from flanjax.training.step import StateLayout, make_train_step
    from flanjax.tuning.lora import LoRA
    from flanjax.tuning.partition import begin, trainable_axes

    required = (("MODEL_DIR", "'none'"), ("MIXTURE", "'none'"), ("INIT_FROM", "'none'"))
    sources = doors.GinSources(files=("finetune.gin", *row), overrides=required)
    doors.configure(sources, CONFIGURABLES)
    run = doors.build(Run)
    assert isinstance(run, Run)
    if isinstance(case.model, str):
        base, weights = read_hf_t5(case.model)
        encode = read_vocabulary(Path(case.model)).encode
    else:
        base, weights = T5Config(**case.model), None
        encode = lambda text: [3 + byte % 100 for byte in text.encode()]  # noqa: E731
    base = dataclasses.replace(base, dropout_rate=train_step.DROPOUT)
    tuning = [
        dataclasses.replace(method, rank=case.rank(method.rank)) if isinstance(method, LoRA) else method
        for method in run.tuning
    ]
    config = dataclasses.replace(base, added=tuple(tuning))
    # One rate for all rows and both sides, so that the losses may be compared.
    constant = {
        "learning_rate": train_step.LEARNING_RATE,
        "schedule": "constant",
        "warmup_steps": 0,
        "warmup_ratio": 0.0,
    }
    settings = dataclasses.replace(run.optimizer, name="adamw", **constant)
    optimizer = make_optimizer(settings, trainable_axes(config), total_steps=1000, stacks=config.stacks)
    layout = StateLayout.of(config, optimizer, make_mesh(MeshConfig(), jax.devices()[:1]))
    compute = Compute(dtype=case.dtype, scan_layers=case.scan, remat=case.remat)
    schedule = make_schedule(settings, 1000)
    step = make_train_step(config, compute, run.loss, optimizer, schedule, layout, seed=0)

    def first() -> Any:
        own = jax.jit(init_params, static_argnums=(0, 1))(base, 0) if weights is None else weights
        return begin(config, own, encode, 0)

    return Program(config, optimizer, layout, step), first


def compiled_facts(made: Program, compiled: Any) -> Facts:
    """What the shapes of the state and the compiler say."""
    import jax

    from flanjax.tuning.partition import TRAINABLE, counted

    def size(tree: Any) -> int:
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

    state, use, counts = made.layout.state, compiled.memory, counted(made.config)
    return Facts(
        trained=counts[TRAINABLE],
        total=sum(counts.values()),
        gradients=4 * counts[TRAINABLE],  # float32
        optimizer=size(state.opt_state),
        arguments=use.arguments,
        temporaries=use.temporaries,
        step=use.total,
        flops=compiled.run.cost_analysis()["flops"],
    )


def with_prompt(shapes: train_step.Shapes, length: int) -> train_step.Shapes:
    """Rows with room for a prompt before their one sequence; as they are without a prompt."""
    return dataclasses.replace(shapes, encoder=shapes.encoder + length, segments=1) if length else shapes


def tokens_of(shapes: train_step.Shapes) -> tuple[Any, Any]:
    """The rows that both sides are given: ids of inputs and of targets, without padding."""
    import numpy as np

    draw = np.random.default_rng(0).integers
    return tuple(draw(3, shapes.vocab, (shapes.rows, length)) for length in (shapes.encoder, shapes.decoder))


def packed(shapes: train_step.Shapes, prompt_length: int) -> Any:
    """These rows as packed ones, each cut into examples; or as one example each, with the places of a prompt."""
    import numpy as np

    from flanjax.data.cache import Example
    from flanjax.data.packing import pack_rows

    shapes = with_prompt(shapes, prompt_length)
    prompt = np.zeros(prompt_length, int)  # the number of the prompt
    inputs, targets = tokens_of(dataclasses.replace(shapes, encoder=shapes.encoder - prompt_length))
    rows = [
        [
            Example(inputs=np.concatenate([prompt, question]), targets=answer)
            for question, answer in zip(
                *(np.split(side[row], shapes.segments) for side in (inputs, targets)), strict=True
            )
        ]
        for row in range(shapes.rows)
    ]
    return pack_rows(rows, (shapes.encoder, shapes.decoder))


def build_compiled(case: Case, row: Row) -> Callable[[], Facts]:
    """The step compiled for its shapes; no weight is made."""
    from flanjax.training.step import batch_shapes, compile_step

    made, _ = program(case, row)
    shapes = with_prompt(case.shapes, made.config.prompt_length)
    batch = batch_shapes(shapes.rows, shapes.encoder, shapes.decoder, made.layout.mesh)
    facts = compiled_facts(made, compile_step(made.step, made.layout, batch))
    return lambda: facts


def build_flanjax(case: Case, row: Row) -> Callable[[], Facts]:
    """A step on the packed rows."""
    import jax

    from flanjax.training.step import compile_step, put_batch

    libraries = memory("VmRSS")
    made, first = program(case, row)
    batch = put_batch(packed(case.shapes, made.config.prompt_length), made.layout.mesh)
    compiled = compile_step(made.step, made.layout, batch)
    state = made.layout.start(first(), made.optimizer)
    del first  # it holds the weights that were read

    def work() -> Facts:
        nonlocal state
        reset_peak()
        state, metrics = jax.block_until_ready(compiled(state, batch))
        loss = float(metrics.loss / metrics.tokens)
        facts = compiled_facts(made, compiled)
        return dataclasses.replace(facts, peak=memory("VmHWM"), libraries=libraries, loss=loss)

    return work


def build_peft(case: Case, name: str) -> Callable[[], Facts]:
    """A step of transformers with peft's method around the model; the same rows, one sequence each."""
    import os

    import peft
    import torch
    import transformers

    libraries = memory("VmRSS")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    if isinstance(case.model, str):
        model = transformers.T5ForConditionalGeneration.from_pretrained(
            case.model, dtype=torch.float32, dropout_rate=train_step.DROPOUT
        )
    else:
        model = transformers.T5ForConditionalGeneration(_hf_config(case.model))
        if not case.model["tied_head"]:
            # transformers 5 ties whatever the configuration says, and begins a head as large as an embedding: T5's, and
            # flanjax's, begins with logits of a deviation of 1.
            head = torch.randn_like(model.lm_head.weight) * model.config.d_model**-0.5
            model.lm_head.weight = torch.nn.Parameter(head)
    if name != FULL:
        kind, settings = PEFT[name]
        if "r" in settings:
            settings = {**settings, "r": case.rank(settings["r"])}
        if name == "prefix":  # peft takes the model's width for that of the keys, which on the small model it is not
            settings = {**settings, "token_dim": model.config.num_heads * model.config.d_kv}
        model = peft.get_peft_model(model, getattr(peft, kind)(task_type="SEQ_2_SEQ_LM", **settings))
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=train_step.LEARNING_RATE, weight_decay=0.0)
    inputs, labels = map(torch.from_numpy, tokens_of(case.shapes))

    def work() -> Facts:
        reset_peak()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=case.dtype == "bfloat16"):
            loss = model(input_ids=inputs, attention_mask=torch.ones_like(inputs), labels=labels).loss
        loss.backward()
        optimizer.step()
        state = [value for part in optimizer.state.values() for value in part.values() if torch.is_tensor(value)]
        gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
        optimizer.zero_grad()
        return Facts(
            trained=sum(p.numel() for p in trained),
            total=sum(p.numel() for p in model.parameters()),
            gradients=gradients,
            optimizer=sum(value.nbytes for value in state),
            peak=memory("VmHWM"),
            libraries=libraries,
            loss=loss.item(),
        )

    return work


def _hf_config(fields: Mapping[str, Any]) -> Any:
    """A `transformers.T5Config` of the same shape."""
    import transformers

    gated = len(fields["mlp_activations"]) == 2
    return transformers.T5Config(
        vocab_size=fields["vocab_size"],
        d_model=fields["embed_dim"],
        d_kv=fields["head_dim"],
        d_ff=fields["mlp_dim"],
        num_heads=fields["num_heads"],
        num_layers=fields["num_encoder_layers"],
        num_decoder_layers=fields["num_decoder_layers"],
        feed_forward_proj="gated-gelu" if gated else "relu",
        tie_word_embeddings=fields["tied_head"],
        dropout_rate=train_step.DROPOUT,
        decoder_start_token_id=0,
    )


HEAD = (
    f"{'method':26s} {'trained':>12s} {'share':>8s} {'gradients':>10s} {'optimizer':>10s} {'arguments':>10s} "
    f"{'temporary':>10s} {'step':>10s} {'GFLOP':>9s} {'peak RSS':>10s} {'libraries':>10s} {'s/step':>8s} {'loss':>7s}"
)


def line(name: str, facts: Facts, seconds: Sequence[float] = ()) -> str:
    """One line of the table; sizes in MiB."""

    def size(value: int | None) -> str:
        return f"{'' if value is None else f'{value / 2**20:,.1f}':>10s}"

    return (
        f"{name:26s} {facts.trained:12,d} {facts.trained / facts.total:8.3%} {size(facts.gradients)} "
        f"{size(facts.optimizer)} {size(facts.arguments)} {size(facts.temporaries)} {size(facts.step)} "
        f"{'' if facts.flops is None else f'{facts.flops / 1e9:,.1f}':>9s} {size(facts.peak)} {size(facts.libraries)} "
        f"{f'{statistics.median(seconds):.3f}' if seconds else '':>8s} "
        f"{'' if facts.loss is None else f'{facts.loss:.3f}':>7s}"
    )


def compare(name: str, row: Row, case: Case, flags: argparse.Namespace) -> None:
    """Takes steps of both sides in turn and prints them."""
    contenders = [common.Contender(f"{name}, flanjax", build_flanjax, case, row, cores=flags.cores)]
    if name == FULL or name in PEFT:
        contenders.append(common.Contender(f"{name}, peft", build_peft, case, name, cores=flags.cores))
    repetitions = 1 if flags.smoke else flags.repetitions
    rounds = [[contender.run() for contender in contenders] for _ in range(repetitions)]
    medians, peaks = [], []
    for i, contender in enumerate(contenders):
        contender.close()
        seconds = [round[i][0] for round in rounds]
        peaks.append(max(round[i][1].peak for round in rounds))
        medians.append(statistics.median(seconds))
        print(line(contender.name, dataclasses.replace(rounds[-1][i][1], peak=peaks[-1]), seconds), flush=True)
    if len(contenders) == 2:
        common.print_ratio(medians[1] / medians[0], f"step time: {name}, flanjax against peft")
        common.print_ratio(peaks[1] / peaks[0], f"peak memory: {name}, peft's over flanjax's")


def quality(name: str, row: Row, flags: argparse.Namespace, given: Sequence[str]) -> None:
    """Trains through `flanjax.train` and prints the held-out losses before and after; the file's own optimizer."""
    steps = flags.quality_steps
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "MODEL_DIR": f"{folder}/run",
            "CACHE_DIR": str(flags.cache_dir),
            "TRAIN_STEPS": steps,
            "EVAL_EVERY": steps,
            "CHECKPOINT_EVERY": steps,
            "EXPORT_TO": None,
            "TrainConfig.eval_at_start": True,
            "EvaluationConfig.questions": 0,
        }
        command = [sys.executable, "-m", "flanjax.train", f"--gin_file={flags.quality_run}"]
        command += [f"--gin_file={file}" for file in row]
        command += [f"--gin.{key}={value}" for key, value in settings.items()] + list(given)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{name}: {' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
        lines = [json.loads(text) for text in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()]
    losses: dict[str, dict[int, float]] = {}
    for entry in lines:
        if entry["split"] != "train":
            losses.setdefault(entry["split"], {})[entry["step"]] = entry["values"]["loss"]
    for split, found in losses.items():
        print(f"QUALITY {name:26s} {split}: loss {found[0]:.4f} -> {found[steps]:.4f} after {steps} steps", flush=True)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument(
        "--model", default="flan_t5_small.gin", help="a Hugging Face folder, or a file of gin_configs/models"
    )
    parser.add_argument("--methods", help="names of rows, with commas between them (default: all)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the matrix products")
    parser.add_argument("--scan", action="store_true", help="layers in a loop, which compiles fast")
    parser.add_argument("--remat", default="minimal", choices=("none", "minimal", "full"), help="what is recomputed")
    parser.add_argument(
        "--compile_only", action="store_true", help="the compiler's figures; no weights, no steps, no peft"
    )
    parser.add_argument("--repetitions", type=int, default=7, help="steps of each program that are timed")
    parser.add_argument(
        "--quality_steps", type=int, help="instead: train so many steps by flanjax.train, losses held out"
    )
    parser.add_argument(
        "--quality_run", default="super_ni_flan_t5_small.gin", help="its run file; --gin.NAME=VALUE is passed on"
    )
    parser.add_argument(
        "--cache_dir", type=Path, default=common.ROOT / "runs" / "bench_quality", help="its cache, kept"
    )
    flags, given = parser.parse_known_args()
    if foreign := [argument for argument in given if not argument.startswith("--gin.")]:
        parser.error(f"unknown: {' '.join(foreign)}")
    if given and not flags.quality_steps:
        parser.error("--gin.NAME=VALUE goes with --quality_steps")
    print(f"{common.machine(flags.cores)}, peft {importlib.metadata.version('peft')}")
    chosen = rows(flags.methods)
    if flags.quality_steps:
        for name, row in chosen.items():
            quality(name, row, flags, given)
        return
    model = shape_of(flags.model, flags.smoke)
    shapes = train_step.SMOKE if flags.smoke else train_step.Shapes()
    case = Case(model, shapes, flags.dtype, flags.scan, flags.remat)
    print(
        f"{flags.model}, {flags.dtype}, layers {'scanned' if flags.scan else 'unrolled'}, remat {flags.remat}, "
        f"{shapes.rows} rows of {shapes.encoder}/{shapes.decoder}, AdamW; MiB"
    )
    print(HEAD)
    for name, row in chosen.items():
        if flags.compile_only:
            contender = common.Contender(name, build_compiled, case, row, cores=flags.cores)
            print(line(name, contender.first_result), flush=True)
            contender.close()
        else:
            compare(name, row, case, flags)


if __name__ == "__main__":
    main()
