"""One optimizer step as one compiled program: micro-batches, gradient, clip, update, and the non-finite skip.

    layout = StateLayout.of(config, optimizer, mesh, rules)
    step = make_train_step(config, compute, loss, optimizer, schedule, layout, seed=0, microbatches=2)
    compiled = compile_step(step, layout, batch_shapes(rows, encoder_length, decoder_length, mesh))
    state, metrics = compiled(state, batch)          # the old state's memory is used again

Gradients and losses are summed over micro-batches, rows and devices and divided once, by the number of target tokens
of the whole batch, so neither the number of micro-batches nor an uneven spread of tokens changes the update.
Everything is computed on the devices: no value is needed on the host to take the next step.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from flanjax.models.config import Compute
from flanjax.models.model import ModelConfig, abstract_params, build, logical_axes
from flanjax.models.parameters import Params
from flanjax.sharding.hosts import row_shards_of_host
from flanjax.sharding.rules import DEFAULT_RULES, Rules, batch_sharding, constrain, param_shardings, state_shardings
from flanjax.training.interfaces import TrainingError
from flanjax.training.losses import LossConfig, LossSums, cross_entropy
from flanjax.tuning.partition import Partition, merge

DeviceBatch = Mapping[str, Int[Array, "rows length"]]
ENCODER_FEATURES = ("encoder_input_tokens", "encoder_segment_ids", "encoder_positions")
DECODER_FEATURES = (
    "decoder_input_tokens",
    "decoder_target_tokens",
    "decoder_loss_weights",
    "decoder_segment_ids",
    "decoder_positions",
)
PREFIX_FEATURE = "decoder_causal_attention"


class TrainState(NamedTuple):
    """All that a step changes; a pytree."""

    step: Int[Array, ""]  # steps taken, skipped ones included
    params: Params  # those that move
    opt_state: Any  # counts updates, so a schedule does not move on a skipped step
    skipped: Int[Array, ""]  # steps without an update because loss or gradient was not finite
    skipped_in_a_row: Int[Array, ""]
    frozen: Params = {}  # noqa: RUF012  the others, handed through: no gradient, no optimizer state, no checkpoint

    @property
    def all_params(self) -> Params:
        """The model's parameters."""
        return merge(self.params, self.frozen)


class StepMetrics(NamedTuple):
    """What one step measured, float32 scalars on the devices; sums unless said otherwise."""

    loss: Float[Array, ""]
    z_loss: Float[Array, ""]
    correct: Float[Array, ""]
    tokens: Float[Array, ""]  # target tokens
    encoder_tokens: Float[Array, ""]  # positions that are not padding, of `encoder_slots`; a decoder has none of either
    encoder_slots: Float[Array, ""]
    decoder_tokens: Float[Array, ""]
    decoder_slots: Float[Array, ""]
    skipped: Float[Array, ""]  # 1 for a step without an update
    skipped_in_a_row: Float[Array, ""]  # not a sum
    grad_norm: Float[Array, ""]  # not a sum: of the mean gradient, before clipping
    learning_rate: Float[Array, ""]  # not a sum


@dataclasses.dataclass(frozen=True)
class StateLayout:
    """Shapes and places of a training state.

    Attributes:
      mesh: the mesh they lie on.
      state: a `TrainState` of `jax.ShapeDtypeStruct`, each with its sharding.
      notes: dimensions that the mesh does not divide and that are kept whole.
      partition: which parameters move.
    """

    mesh: Mesh
    state: TrainState
    notes: tuple[str, ...]
    partition: Partition

    @classmethod
    def of(
        cls,
        config: ModelConfig,
        optimizer: optax.GradientTransformation,
        mesh: Mesh,
        rules: Rules = DEFAULT_RULES,
    ) -> Self:
        """The layout of a model's parameters and their optimizer state on a mesh."""
        partition = Partition.of(config)
        shapes = abstract_params(config)
        places, notes = param_shardings(logical_axes(config), shapes, mesh, rules)
        params, frozen = partition.split(shapes)
        shardings, frozen_shardings = partition.split(places)
        opt_state = jax.eval_shape(optimizer.init, params)
        count: Any = jax.ShapeDtypeStruct((), jnp.int32, sharding=_whole(mesh))
        state = TrainState(
            step=count,
            params=_placed(params, shardings),
            opt_state=_placed(opt_state, state_shardings(opt_state, params, shardings, mesh)),
            skipped=count,
            skipped_in_a_row=count,
            frozen=_placed(frozen, frozen_shardings),
        )
        return cls(mesh, state, tuple(notes), partition)

    @property
    def shardings(self) -> TrainState:
        """The shardings alone."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.state)

    def start(self, params: Params, optimizer: optax.GradientTransformation) -> TrainState:
        """The state before the first step, over numpy arrays of parameters or jax arrays, placed or not."""
        params, frozen = self.place(params)

        def first(params: Params) -> tuple[Any, ...]:
            zero = jnp.zeros((), jnp.int32)
            return zero, optimizer.init(params), zero, zero

        step, opt_state, skipped, in_a_row = jax.jit(
            first,
            out_shardings=(
                self.shardings.step,
                self.shardings.opt_state,
                self.shardings.skipped,
                self.shardings.skipped_in_a_row,
            ),
        )(params)
        return TrainState(step, params, opt_state, skipped, in_a_row, frozen)

    def with_optimizer(self, state: TrainState, opt_state: Any) -> TrainState:
        """The state with another optimizer state of the same shapes, numpy or jax arrays, put where it belongs."""
        return state._replace(opt_state=jax.tree.map(_place, opt_state, self.shardings.opt_state))

    def place(self, params: Params) -> tuple[Params, Params]:
        """The trainable and the frozen ones of a model's parameters, on their devices."""
        shardings = self.shardings
        trainable, frozen = self.partition.split(params)
        return jax.tree.map(_place, trainable, shardings.params), jax.tree.map(_place, frozen, shardings.frozen)


def _place(array: Any, sharding: NamedSharding) -> Array:
    """The array on its devices; of several processes each copies what its own devices hold."""
    if isinstance(array, jax.Array):
        return jax.device_put(array, sharding)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _whole(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def _placed(shapes: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, shardings)


def row_shards(mesh: Mesh) -> int:
    """Devices, or groups of them, that the rows of a batch are spread over."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def batch_shapes(
    rows: int, encoder_length: int | None, decoder_length: int, mesh: Mesh, *, prefix_lm: bool = False
) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes and places of a batch over all hosts, for `compile_step` without data.

    A decoder's has no `encoder_length`, and with `prefix_lm` the feature that marks prefixes.
    """

    def shape(length: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, length), jnp.int32, sharding=batch_sharding(mesh))

    decoder = (*DECODER_FEATURES, PREFIX_FEATURE) if prefix_lm else DECODER_FEATURES
    encoder = {} if encoder_length is None else dict.fromkeys(ENCODER_FEATURES, encoder_length)
    lengths = encoder | dict.fromkeys(decoder, decoder_length)
    return {feature: shape(length) for feature, length in lengths.items()}


def check_rows(rows: int, microbatches: int, mesh: Mesh) -> None:
    """Refuses a batch that does not divide into micro-batches over the mesh.

    Raises:
      TrainingError: it does not.
    """
    shards = row_shards(mesh)
    if rows % (microbatches * shards):
        raise TrainingError(
            f"a batch of {rows} rows does not divide into {microbatches} micro-batches over {shards} devices "
            f"(mesh data x fsdp): make BATCH_ROWS a multiple of {microbatches * shards}, or change MICROBATCHES"
        )


TrainStep = Callable[[TrainState, DeviceBatch], tuple[TrainState, StepMetrics]]


def make_train_step(
    config: ModelConfig,
    compute: Compute,
    loss: LossConfig,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    layout: StateLayout,
    *,
    seed: int,
    microbatches: int = 1,
) -> TrainStep:
    """The function (state, batch) -> (state, metrics), to be compiled.

    A step whose loss or gradient is not finite leaves parameters and optimizer state bit for bit as they were, and is
    counted. Dropout keys come from (seed, step, micro-batch): no random state is carried along.

    Arguments:
      config: the model.
      compute: how it is computed.
      loss: z-loss, smoothing, chunks.
      optimizer: of `make_optimizer`.
      schedule: the optimizer's learning rate, for the metrics.
      layout: where the state lies.
      seed: of the dropout masks.
      microbatches: parts the rows are computed in.
    """

    def train_step(state: TrainState, batch: DeviceBatch) -> tuple[TrainState, StepMetrics]:
        """The state after one update from a batch of arrays [rows, length], and what to report of it."""
        check_rows(len(batch["decoder_target_tokens"]), microbatches, layout.mesh)
        key = jax.random.fold_in(jax.random.key(seed), state.step) if config.draws_dropout else None

        def gradient(batch: DeviceBatch, index: Array | int) -> tuple[Params, LossSums]:
            """The summed gradient of the trainable parameters over one micro-batch, and its sums."""
            dropout_key = None if key is None else jax.random.fold_in(key, index)

            def loss_of(trainable: Params) -> tuple[Array, LossSums]:
                params = merge(trainable, state.frozen)
                sums = loss_sums(config, compute, loss, params, batch, layout.mesh, dropout_key=dropout_key)
                return sums.loss, sums

            # A gradient has the dtype of what it is taken of: in bfloat16 it would be rounded before it is summed.
            wide = jax.tree.map(lambda p: p.astype(jnp.float32), state.params)
            grads, sums = jax.grad(loss_of, has_aux=True)(wide)
            # Without it the sums would lie as XLA guesses, whole on each device at the worst.
            return jax.lax.with_sharding_constraint(grads, layout.shardings.params), sums

        grads, sums = _over_microbatches(gradient, batch, microbatches)
        tokens = jnp.maximum(sums.tokens, 1)
        # Of the sums: squares of the mean would be an array that the norm and the second moments share.
        norm = optax.global_norm(grads) / tokens
        grads = jax.tree.map(lambda g: g / tokens, grads)
        finite = jnp.isfinite(sums.loss) & jnp.isfinite(norm)
        rate = schedule(state.step - state.skipped)
        state = _updated(state, optimizer, grads, finite)
        return state, _metrics(batch, sums, state, finite=finite, norm=norm, rate=rate)

    return train_step


def _over_microbatches(
    gradient: Callable[[DeviceBatch, Array | int], tuple[Params, LossSums]], batch: DeviceBatch, microbatches: int
) -> tuple[Params, LossSums]:
    """Sums of gradients and losses over micro-batches; micro-batch k has the rows k, k + microbatches, ..."""
    if microbatches == 1:
        return gradient(batch, 0)

    def cut(x: Array) -> Array:
        # Taking every n-th row leaves each device with its own rows: contiguous parts would move all of them.
        x = x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1)
        return constrain(x, None, "batch", None)

    def add(sums: Any, part: tuple[DeviceBatch, Array]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, gradient(*part)), None

    parts = jax.tree.map(cut, batch), jnp.arange(microbatches)
    shapes = jax.eval_shape(gradient, *jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shapes)
    return jax.lax.scan(add, zeros, parts)[0]


def loss_sums(
    config: ModelConfig,
    compute: Compute,
    loss: LossConfig,
    params: Params,
    batch: DeviceBatch,
    mesh: Mesh,
    *,
    dropout_key: Array | None = None,
) -> LossSums:
    """Loss sums of a batch, float32 scalars; the gradient of `loss` is what training follows."""
    model = build(config, compute, params)
    hidden = model(batch, dropout_key=dropout_key)
    return cross_entropy(
        hidden.reshape(-1, hidden.shape[-1]),
        model.head(),
        batch["decoder_target_tokens"].reshape(-1),
        batch["decoder_loss_weights"].reshape(-1),
        loss,
        shards=row_shards(mesh),
    )


def _updated(state: TrainState, optimizer: optax.GradientTransformation, grads: Params, finite: Array) -> TrainState:
    """The state after the step; parameters and optimizer state as they were where it is not `finite`."""
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params, finite=finite)
    # A choice between two values fuses into the update's last pass; a branch would copy every parameter.
    moved = optax.apply_updates(state.params, updates)
    params = jax.tree.map(lambda new, old: jnp.where(finite, new, old), moved, state.params)
    failed = 1 - finite.astype(jnp.int32)
    return TrainState(
        step=state.step + 1,
        params=params,
        opt_state=opt_state,
        skipped=state.skipped + failed,
        skipped_in_a_row=(state.skipped_in_a_row + failed) * failed,
        frozen=state.frozen,
    )


def _metrics(
    batch: DeviceBatch, sums: LossSums, state: TrainState, *, finite: Array, norm: Array, rate: Array
) -> StepMetrics:
    encoder, decoder = batch.get("encoder_segment_ids"), batch["decoder_segment_ids"]
    values = {
        **sums._asdict(),
        "encoder_tokens": 0 if encoder is None else jnp.count_nonzero(encoder),
        "encoder_slots": 0 if encoder is None else encoder.size,
        "decoder_tokens": jnp.count_nonzero(decoder),
        "decoder_slots": decoder.size,
        "skipped": ~finite,
        "skipped_in_a_row": state.skipped_in_a_row,
        "grad_norm": norm,
        "learning_rate": rate,
    }
    return StepMetrics(**{name: jnp.asarray(value, jnp.float32) for name, value in values.items()})


@dataclasses.dataclass(frozen=True)
class MemoryUse:
    """The compiler's figures for one device, in bytes; arguments hold the state and a batch."""

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    code: int

    @property
    def total(self) -> int:
        """What has to fit: outputs written over arguments are counted once."""
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.code


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """A step ready to run, and what it needs on each device (None where the backend does not say)."""

    run: TrainStep
    memory: MemoryUse | None

    def __call__(self, state: TrainState, batch: DeviceBatch) -> tuple[TrainState, StepMetrics]:
        """The state after one step, made in the memory of the old one, and what was measured."""
        return self.run(state, batch)


def compile_step(step: TrainStep, layout: StateLayout, batch: Mapping[str, Any]) -> CompiledStep:
    """Compiles a train step ahead of time; nothing is run and no parameter is needed.

    Arguments:
      step: of `make_train_step`.
      layout: shapes and places of the state.
      batch: of `batch_shapes`, or arrays.
    """
    whole = _whole(layout.mesh)
    with jax.set_mesh(layout.mesh):
        jitted = jax.jit(step, donate_argnums=0, out_shardings=(layout.shardings, whole))
        shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for name, x in batch.items()}
        compiled = jitted.lower(layout.state, shapes).compile()
    stats = compiled.memory_analysis()
    memory = stats and MemoryUse(
        arguments=stats.argument_size_in_bytes,
        outputs=stats.output_size_in_bytes,
        aliased=stats.alias_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        code=stats.generated_code_size_in_bytes,
    )
    return CompiledStep(compiled, memory or None)


def make_eval_step(
    config: ModelConfig, compute: Compute, loss: LossConfig, mesh: Mesh
) -> Callable[[Params, DeviceBatch], LossSums]:
    """A jitted (params, batch) -> `LossSums`, without dropout, gradient or logits of a whole batch."""

    @jax.jit
    def eval_step(params: Params, batch: DeviceBatch) -> LossSums:
        return loss_sums(config, compute, loss, params, batch, mesh)

    return eval_step


def put_batch(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, Array]:
    """The numpy rows of every host as arrays over the mesh; each host gives its own."""
    sharding, shards = batch_sharding(mesh), row_shards_of_host(mesh)

    def put(rows: Any) -> Array:
        return jax.make_array_from_process_local_data(sharding, rows, (shards.batch_rows(len(rows)), *rows.shape[1:]))

    return {name: put(rows) for name, rows in batch.items()}
