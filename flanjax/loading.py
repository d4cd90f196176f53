"""`flanjax.load(folder)`: a trained run or a Hugging Face T5 folder as a model that scores and answers.

model = flanjax.load("runs/demo")
model.generate(["Sort: 3 1 2"])                          # ["1 2 3"]
model.score(["Is 7 odd?"] * 2, ["yes", "no"])            # log-likelihoods, natural logarithm
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from flanjax.data.placeholders import Placeholders
from flanjax.data.vocabularies import Vocabulary
from flanjax.errors import FlanjaxError
from flanjax.generation import greedy
from flanjax.interchange.hf_t5 import read_hf_t5
from flanjax.interchange.peft import adapter_on, read_peft
from flanjax.interchange.runs import is_run, read_run
from flanjax.interchange.tokenizer import read_vocabulary
from flanjax.models.config import Compute, T5Config
from flanjax.models.model import require_t5
from flanjax.models.parameters import Params


class LoadingError(FlanjaxError):
    """A folder that is neither a run nor a Hugging Face T5 folder, or texts that cannot be scored."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A T5 with its vocabulary; made by `load`.

    Attributes:
      config: the model.
      params: its float32 parameters.
      vocabulary: turns texts into token ids.
      compute: how it is run.
    """

    config: T5Config
    params: Params
    vocabulary: Vocabulary
    compute: Compute

    def score(
        self,
        inputs: Sequence[str],
        targets: Sequence[str],
        *,
        prompt: str | None = None,
        eos: bool = True,
        batch_size: int = 16,
    ) -> list[float]:
        """The log-likelihood of each target given its input: natural logarithm, summed over the target's tokens.

        Inputs end in EOS, as in training. So do targets, and their EOS is scored; `eos=False` leaves it out, as
        lm-evaluation-harness does. `prompt` is as in `generate`.

        Raises:
          LoadingError: one text instead of a list, not one target for each input, a batch size below 1, or no such
            prompt.
        """
        _require_texts(inputs)
        _require_texts(targets)
        _require_positive("batch_size", batch_size)
        if len(inputs) != len(targets):
            raise LoadingError(f"{len(inputs)} inputs but {len(targets)} targets: give one target for each input")
        end = [self.vocabulary.eos_id] if eos else []
        labels = [self.vocabulary.encode(text) + end for text in targets]
        return greedy.score(
            self.config,
            self.compute,
            self.params,
            self._tokens(inputs),
            labels,
            prompts=self._prompts(prompt, len(inputs)),
            batch_rows=batch_size,
        )

    def generate(
        self, inputs: Sequence[str], max_new_tokens: int = 64, *, prompt: str | None = None, batch_size: int = 16
    ) -> list[str]:
        """The greedy answer to each input, up to EOS or `max_new_tokens`.

        `prompt` is the task whose learnt prompt is used, for a model that has one for each task.

        Raises:
          LoadingError: one text instead of a list, `max_new_tokens` or the batch size below 1, or no such prompt.
        """
        _require_texts(inputs)
        _require_positive("max_new_tokens", max_new_tokens)
        _require_positive("batch_size", batch_size)
        answers = greedy.greedy(
            self.config,
            self.compute,
            self.params,
            self._tokens(inputs),
            max_new_tokens,
            prompts=self._prompts(prompt, len(inputs)),
            batch_rows=batch_size,
        )
        return [self.vocabulary.decode(ids) for ids in answers]

    def _prompts(self, prompt: str | None, count: int) -> list[int]:
        tasks = self.config.prompt_tasks
        if (prompt is None) == bool(tasks):
            there = f"prompts of the tasks {', '.join(tasks)}: choose one" if tasks else "none to choose from"
            raise LoadingError(f"prompt={prompt!r}: this model has {there}")
        return [Placeholders(self.config.prompt_length, tasks).number(prompt or "")] * count

    def _tokens(self, inputs: Sequence[str]) -> list[list[int]]:
        return [self.vocabulary.as_inputs(self.vocabulary.encode(text)) for text in inputs]


def _require_texts(texts: Sequence[str]) -> None:
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise LoadingError("give a list of texts, also for a single one")


def _require_positive(name: str, value: int) -> None:
    if value < 1:
        raise LoadingError(f"{name} is {value}: it must be at least 1")


def load(
    folder: str | Path,
    *,
    step: int | None = None,
    adapter: str | Path | None = None,
    compute: Compute | None = None,
) -> Model:
    """Opens a run directory (its latest checkpoint, or that of `step`) or a Hugging Face T5 folder.

    Arguments:
      folder: of the model.
      step: of a run's checkpoint.
      adapter: a PEFT folder, put on the model.
      compute: how the model is run.

    Raises:
      FlanjaxError: the folder is neither, a file in it is missing or damaged, there is no checkpoint of that step, the
        vocabulary has more ids than the model, or the adapter does not fit it.
    """
    folder = Path(folder)
    require_model_folder(folder)
    if is_run(folder):
        run = read_run(folder, step=step)
        config, params, vocabulary = require_t5(run.model, "flanjax.load"), run.params, run.vocabulary
    elif step is not None:
        raise LoadingError(f"{folder}: step={step} needs a run directory, and this is a Hugging Face folder")
    else:
        vocabulary = read_vocabulary(folder)  # first, for it is quick and most often what is missing
        config, params = read_hf_t5(folder)
    if vocabulary.size > config.vocab_size:
        raise LoadingError(f"{folder}: the vocabulary has {vocabulary.size} ids, the model only {config.vocab_size}")
    if adapter is not None:
        if config.added:
            raise LoadingError(f"{folder} has adapters of its own: export it with --merge, and load {adapter} on that")
        adapted, params = adapter_on(read_peft(adapter, config), config, params)
        config = require_t5(adapted, "flanjax.load")
    return Model(
        config=config,
        params=jax.tree.map(jnp.asarray, params),
        vocabulary=vocabulary,
        compute=compute or Compute(),
    )


def require_model_folder(folder: Path) -> None:
    """Checks that `folder` may be a run or a Hugging Face folder: both have a `config.json`.

    Raises:
      LoadingError: it does not exist or has none; the message says what either kind holds.
    """
    if not folder.is_dir():
        raise LoadingError(f"{folder}: there is no such folder")
    if not (folder / "config.json").is_file():
        raise LoadingError(
            f"{folder}: no config.json, so neither a run directory (config.json, checkpoints/, vocabulary/) nor a "
            "Hugging Face T5 folder (config.json, model.safetensors, spiece.model)"
        )
