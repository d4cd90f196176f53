"""Prompt tuning: learnt vectors before an example's tokens, everything else frozen (Lester et al. 2021).

    input of an example = [P; E(x)]        P [length, embed], learnt; E(x) the embeddings of its tokens

They stand before the encoder's tokens in a T5, before the first token of a text in a decoder.

The published recipe (arXiv 2104.08691, google-research/prompt-tuning) has 100 positions and finds that beginning with
embeddings of the vocabulary, or of the class labels, beats random numbers for all but the largest models. With `tasks`
each task has a prompt of its own, and examples of several tasks share a packed row all the same.

There is no start that leaves the base model's answers alone: any vector before the text has an effect.
"""

import dataclasses
import re
import zlib
from pathlib import Path
from typing import ClassVar, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flanjax.errors import nearest
from flanjax.models.config import Compute
from flanjax.models.layers import parameter
from flanjax.models.model import ModelConfig, build
from flanjax.models.parameters import Params
from flanjax.models.prompts import Prompt
from flanjax.tuning.method import Encode, Flat, Method, TuningError

# In the lowest stack: the encoder's of a T5, a decoder's own.
_PROMPT = re.compile(r"(encoder|decoder)/prompt/.*")
INITS = ("random", "vocabulary", "class_labels", "text", "file")
# The drawn values of `random`, and what the other inits draw their sample from.
_BOUND = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptMethod(Method):
    """A method that learns a prompt, one or one for each task.

    Attributes:
      length: positions of a prompt; as many fewer are left of a row for the text of every example.
      tasks: names of the cache's tasks that have a prompt of their own; none: one serves all.

    Raises:
      TuningError: a length below 1, or a task twice.
    """

    merges: ClassVar[bool] = False
    length: int = 100
    tasks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "tasks", (self.tasks,) if isinstance(self.tasks, str) else tuple(self.tasks))
        if not isinstance(self.length, int) or self.length < 1:
            raise TuningError(f"{type(self).__name__}.length is {self.length!r}: give a whole number of at least 1")
        if twice := sorted({task for task in self.tasks if self.tasks.count(task) > 1}):
            raise TuningError(f"{type(self).__name__}.tasks has {', '.join(twice)} twice: a task has one prompt")

    @property
    def prompt_length(self) -> int:
        """The `length`."""
        return self.length

    @property
    def prompt_tasks(self) -> tuple[str, ...]:
        """The `tasks`."""
        return self.tasks

    @property
    def prompts(self) -> int:
        """How many prompts there are."""
        return max(len(self.tasks), 1)

    def trains(self, path: str) -> bool:
        """The prompt, and what it is made from."""
        return _PROMPT.fullmatch(path) is not None

    def check(self, model: ModelConfig, paths: list[str]) -> None:
        """A prompt fits every model."""

    def merge(self, params: Flat) -> NoReturn:
        """Refuses: a prompt is input.

        Raises:
          TuningError: always.
        """
        raise TuningError(
            f"{type(self).__name__} learns a prompt, which is input and in no weight, so it cannot be merged into the "
            "model's own parameters: use the run as it is (flanjax.load), or export it as a PEFT folder"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptTuning(PromptMethod):
    """The prompt itself is learnt.

    Attributes:
      init: what the prompt begins with. `random`: uniform in +-0.5. `vocabulary`: embeddings of sampled tokens.
        `class_labels`: the embedding of each of `init_labels`, a label of several tokens being their mean, and sampled
        tokens after them. `text`: the embeddings of `init_text`, repeated or cut to the length. `file`: `init_file`.
      init_text: of `text`.
      init_labels: of `class_labels`, such as ("positive", "negative").
      init_file: a `.npy` of float32 [length, embed], as google-research/prompt-tuning stores prompts; every loading of
        the run reads it again.
      vocabulary_ids: tokens are sampled from the first so many ids, which are the most frequent ones.

    Raises:
      TuningError: an unknown init, or one without what it begins with, or more labels than positions.
    """

    name: ClassVar[str] = "prompt"
    init: str = "vocabulary"
    init_text: str = ""
    init_labels: tuple[str, ...] = ()
    init_file: str | None = None
    vocabulary_ids: int = 5000

    def __post_init__(self) -> None:
        super().__post_init__()
        labels = (self.init_labels,) if isinstance(self.init_labels, str) else tuple(self.init_labels)
        object.__setattr__(self, "init_labels", labels)
        if self.init not in INITS:
            raise TuningError(
                f"PromptTuning.init is {self.init!r}{nearest(str(self.init), INITS)}: choose one of {', '.join(INITS)}"
            )
        needed = {"text": "init_text", "class_labels": "init_labels", "file": "init_file"}
        for init, field in needed.items():
            if (self.init == init) != bool(getattr(self, field)):
                verb = "needs" if self.init == init else "does not use"
                raise TuningError(f"PromptTuning.init={self.init!r} {verb} {field}, which is {getattr(self, field)!r}")
        if len(labels) > self.length:
            raise TuningError(f"PromptTuning.init_labels are {len(labels)}, the prompt has {self.length} positions")
        if not isinstance(self.vocabulary_ids, int) or self.vocabulary_ids < 1:
            raise TuningError(f"PromptTuning.vocabulary_ids is {self.vocabulary_ids!r}: it must be at least 1")

    def prompt(self, model: ModelConfig) -> Prompt:
        """The table of all prompts."""
        return PromptEmbedding(self.prompts, self.length, model.input_dim, uniform=True, stddev=_BOUND / 3**0.5)

    def check(self, model: ModelConfig, paths: list[str]) -> None:
        """Refuses a file that is not there or does not fit."""
        if self.init == "file":
            self._read(model.input_dim)

    def begin(self, model: ModelConfig, params: Flat, encode: Encode) -> Flat:
        """The prompts as `init` says; those that sample do so by the seed of the run."""
        path = prompt_path(model)
        drawn = params[path]
        if self.init == "random":
            return params
        if self.init == "file":
            each = self._read(drawn.shape[2])
            return {**params, path: np.broadcast_to(each, drawn.shape)}
        table = jnp.asarray(params["token_embedder/embedding"])
        prompts = [self._tokens(np.asarray(one), encode, len(table)) for one in drawn]
        means = _means(table, [ids for prompt in prompts for ids in prompt]) * model.embedding_scale
        return {**params, path: means.reshape(drawn.shape)}

    def _tokens(self, drawn: np.ndarray, encode: Encode, vocab_size: int) -> list[list[int]]:
        """The ids whose mean embedding each position begins with."""
        if self.init == "text":
            ids = encode(self.init_text)
            if not ids:
                raise TuningError(f"PromptTuning.init_text = {self.init_text!r} has no token in this vocabulary")
            return [[ids[position % len(ids)]] for position in range(self.length)]
        labels = [encode(label) for label in self.init_labels]
        if [] in labels:
            empty = self.init_labels[labels.index([])]
            raise TuningError(f"PromptTuning.init_labels: {empty!r} has no token in this vocabulary")
        # The drawn values are of the run's seed, and others for every prompt.
        random = np.random.default_rng(zlib.crc32(drawn.tobytes()))
        choices, wanted = min(self.vocabulary_ids, vocab_size), self.length - len(labels)
        sampled = random.choice(choices, wanted, replace=choices < wanted)
        return [*labels, *([id_] for id_ in sampled.tolist())]

    def _read(self, embed_dim: int) -> Float[np.ndarray, "length embed"]:
        assert self.init_file is not None
        path, wanted = Path(self.init_file), (self.length, embed_dim)
        try:
            found = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise TuningError(f"PromptTuning.init_file={path} cannot be read as a .npy of numbers: {error}") from error
        if not isinstance(found, np.ndarray) or found.dtype != np.float32 or found.shape != wanted:
            what = f"{found.dtype} {found.shape}" if isinstance(found, np.ndarray) else "an archive"
            raise TuningError(
                f"PromptTuning.init_file={path} holds {what}, not float32 {wanted} (length, width of the model): set "
                "PromptTuning.length to the file's, and take the model that it was made for"
            )
        if not np.isfinite(found).all():
            raise TuningError(f"PromptTuning.init_file={path} has values that are not finite")
        return found


def _means(table: Float[Array, "vocab embed"], rows: list[list[int]]) -> Float[Array, "rows embed"]:
    """The mean embedding of each list of ids."""
    ids = np.concatenate([np.asarray(row, np.int32) for row in rows])
    row_of = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    shares = np.asarray([1 / len(row) for row in rows], np.float32)[row_of]
    return jax.ops.segment_sum(table[ids] * shares[:, None], row_of, num_segments=len(rows))


def prompt_path(model: ModelConfig) -> str:
    """The path of the table of a model's prompts."""
    return f"{next(iter(model.stacks))}/prompt/embedding"


class PromptEmbedding(Prompt):
    """The table `embedding` [prompts, length, embed]."""

    def __init__(self, prompts: int, length: int, embed_dim: int, *, stddev: float, uniform: bool = False):
        axes = ("prompts", "prompt_length", "embed")
        self.embedding = parameter((prompts, length, embed_dim), axes, stddev, uniform=uniform)

    def __call__(self) -> Float[Array, "prompts length embed"]:
        """The table."""
        return self.embedding[...]


def prompt_table(model: ModelConfig, params: Params) -> Float[Array, "prompts length embed"]:
    """The vectors that a model puts before its inputs, in float32, whatever they are made from.

    Arguments:
      model: with its tuning methods.
      params: all of its parameters.

    Raises:
      TuningError: no method of the model has a prompt.
    """
    first, *_ = build(model, Compute(), params).stacks.values()
    if first.prompt is None:
        raise TuningError("this model has no prompt: none of its tuning methods is PromptTuning or PTuning")
    return first.prompt()
