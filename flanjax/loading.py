"""`flanjax.load(folder)`: a trained run or a Hugging Face folder as a model that scores and answers.

model = flanjax.load("runs/demo")
model.generate(["Sort: 3 1 2"])                          # ["1 2 3"]
model.generate(["A story:"], temperature=0.8, top_p=0.9, num_samples=2, stop=("\\n",))
model.score(["Is 7 odd?"] * 2, ["yes", "no"])            # log-likelihoods, natural logarithm
model.chat([[{"role": "user", "content": "Hi"}]])        # ["Hello!"], in its chat template

load("big", mesh=MeshConfig(data=2, model=4))            # over eight devices, its parameters split over four
"""

import dataclasses
import functools
import hashlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import SingleDeviceSharding

from flanjax.data.chat import Chat, own_chat
from flanjax.data.chat_templates import Message
from flanjax.data.placeholders import Placeholders
from flanjax.data.vocabularies import Vocabulary
from flanjax.errors import FlanjaxError
from flanjax.generation.continuations import continuation_ids
from flanjax.generation.decoding import DecodingConfig
from flanjax.generation.generate import OnText, generate
from flanjax.generation.scoring import Score, score
from flanjax.generation.stopping import before_stop
from flanjax.interchange.any_model import RUN, format_of
from flanjax.interchange.folders import read_json
from flanjax.interchange.hf_decoder import GENERATION_CONFIG
from flanjax.interchange.peft import adapter_on, another_base, read_peft, vocabulary_of_adapter
from flanjax.interchange.runs import read_run
from flanjax.interchange.stored import place, shardings_on
from flanjax.interchange.tokenizer import read_vocabulary
from flanjax.models.config import Compute
from flanjax.models.model import ModelConfig, model_settings
from flanjax.models.parameters import Params
from flanjax.sharding.mesh import MeshConfig, make_mesh
from flanjax.tuning.methods import to_settings
from flanjax.tuning.partition import digest, methods_of


class LoadingError(FlanjaxError):
    """A model that cannot be asked in words, or texts that cannot be scored."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A model with its vocabulary; made by `load`.

    Attributes:
      config: the model.
      params: its float32 parameters, on the device or the mesh on which all is computed.
      vocabulary: turns texts into token ids.
      compute: how it is run.
      prefix_lm: whether a decoder sees all of its inputs, as it was trained.
      further_eos_ids: what ends an answer beside the vocabulary's EOS.
    """

    config: ModelConfig
    params: Params
    vocabulary: Vocabulary
    compute: Compute
    prefix_lm: bool = False
    further_eos_ids: tuple[int, ...] = ()

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """What ends an answer: the vocabulary's EOS, and what generation_config.json of a Hugging Face folder adds."""
        return (self.vocabulary.eos_id, *self.further_eos_ids)

    def chat_eos_ids(self, chat: Chat) -> tuple[int, ...]:
        """What ends an answer in a chat: the end of a turn, where its template says one, and what ends any answer."""
        return tuple(dict.fromkeys((*chat.end_ids, *self.eos_ids)))

    @functools.cached_property
    def identity(self) -> str:
        """16 hex digits of what decides its answers: numbers, shape, vocabulary, chat templates; reads all numbers."""
        shape = [model_settings(self.config), to_settings(methods_of(self.config)), self.prefix_lm, self.eos_ids]
        words = [self.vocabulary.identity, sorted(self.vocabulary.own_templates.items())]
        decides = [digest(self.params), shape, words]
        return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:16]

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

        Inputs have BOS or EOS around them, as in training. Targets end in EOS, and it is scored; `eos=False` leaves it
        out, as lm-evaluation-harness does. `prompt` is as in `generate`.

        Raises:
          LoadingError: one text instead of a list, not one target for each input, a batch size below 1, or no such
            prompt.
        """
        return [
            score.total for score in self.score_tokens(inputs, targets, prompt=prompt, eos=eos, batch_size=batch_size)
        ]

    def score_tokens(
        self,
        inputs: Sequence[str],
        targets: Sequence[str],
        *,
        prompt: str | None = None,
        eos: bool = True,
        batch_size: int = 16,
    ) -> list[Score]:
        """`score` token by token, and whether each target is what greedy decoding would give.

        Raises:
          LoadingError: as `score`.
        """
        _require_pairs("inputs", inputs, "targets", targets)
        end = [self.vocabulary.eos_id] if eos else []
        labels = [self.vocabulary.encode(text) + end for text in targets]
        return self._scores(self._tokens(inputs), labels, prompt, batch_size)

    def score_continuations(
        self, texts: Sequence[str], continuations: Sequence[str], *, prompt: str | None = None, batch_size: int = 16
    ) -> list[float]:
        """The log-likelihood of each continuation of its text: natural logarithm, summed over its tokens, without EOS.

        A decoder reads both as one text, whose tokens beyond as many as the text alone has are the continuation's (the
        rule of lm-evaluation-harness). For an encoder-decoder it is `score` with `eos=False`.

        Raises:
          LoadingError: as `score`.
        """
        _require_pairs("texts", texts, "continuations", continuations)
        read = [
            continuation_ids(self.vocabulary, *pair) for pair in zip(texts, ([c] for c in continuations), strict=True)
        ]
        inputs, targets = [ids for ids, _ in read], [ids for _, (ids,) in read]
        return [score.total for score in self._scores(inputs, targets, prompt, batch_size)]

    def _scores(
        self, inputs: list[list[int]], targets: list[list[int]], prompt: str | None, batch_size: int
    ) -> list[Score]:
        _require_positive("batch_size", batch_size)
        return score(
            self.config,
            self.compute,
            self.params,
            inputs,
            targets,
            prefix_lm=self.prefix_lm,
            prompts=self.prompts(prompt, len(inputs)),
            batch_rows=batch_size,
        )

    def generate(
        self,
        inputs: Sequence[str],
        max_new_tokens: int = 64,
        *,
        prompt: str | None = None,
        batch_size: int = 16,
        on_text: OnText | None = None,
        **options: Any,
    ) -> list[str]:
        """Answers to each input, up to EOS, a stop text or `max_new_tokens`; greedy without further options.

        `options` are those of `DecodingConfig`: temperature, top_k, top_p, min_p, repetition_penalty, seed,
        num_samples, num_beams, length_penalty, early_stopping, stop. With `num_samples` the answers to an input stand
        next to each other, as `transformers` gives them. `on_text` is shown pieces of text as they come, as
        `flanjax.generation.generate.generate` has it. `prompt` is the task whose learnt prompt is used, for a model
        that has one for each task.

        Raises:
          LoadingError: one text instead of a list, a batch size below 1, or no such prompt.
          DecodingError: an option outside its range, or two that exclude each other.
        """
        _require_texts(inputs)
        _require_positive("batch_size", batch_size)
        decoding = DecodingConfig(max_new_tokens=max_new_tokens, eos_ids=self.eos_ids, **options)
        return self._answers(self._tokens(inputs), decoding, prompt, batch_size, on_text)

    def chat(
        self,
        conversations: Sequence[Sequence[Message]],
        max_new_tokens: int = 256,
        *,
        prompt: str | None = None,
        batch_size: int = 16,
        on_text: OnText | None = None,
        **options: Any,
    ) -> list[str]:
        """What the assistant says next in each conversation, up to the end of its turn.

        The chat template is the one beside its vocabulary: that of the training (CHAT_TEMPLATE), else the tokenizer's
        own, which an instruct model keeps that was tuned further on plain texts. `prompt`, `on_text` and `options` are
        as in `generate`.

        Raises:
          LoadingError: there is no template, the batch size is below 1, or no such prompt.
          DecodingError: as `generate`.
          BadRow: a message has what is read as a token of control in its text.
          ChatTemplateError: the template refuses a conversation.
        """
        _require_positive("batch_size", batch_size)
        chat = own_chat(self.vocabulary)
        if chat is None:
            raise LoadingError(
                f"{self.vocabulary.path} brings no chat template: ask the model by `generate`, or put a "
                "chat_template.jinja beside its vocabulary"
            )
        decoding = DecodingConfig(max_new_tokens=max_new_tokens, eos_ids=self.chat_eos_ids(chat), **options)
        tokens = [chat.prompt(messages) for messages in conversations]
        return self._answers(tokens, decoding, prompt, batch_size, on_text)

    def _answers(
        self,
        tokens: list[list[int]],
        decoding: DecodingConfig,
        prompt: str | None,
        batch_size: int,
        on_text: OnText | None,
    ) -> list[str]:
        answers = generate(
            self.config,
            self.compute,
            self.params,
            tokens,
            decoding,
            decode=self._text,
            on_text=on_text,
            prefix_lm=self.prefix_lm,
            prompts=self.prompts(prompt, len(tokens)),
            batch_rows=batch_size,
        )
        return [before_stop(self._text(ids), decoding.stop)[0] for ids in answers]

    def _text(self, ids: Sequence[int]) -> str:
        return self.vocabulary.decode(list(ids))

    def prompts(self, prompt: str | None, count: int) -> list[int]:
        """The number of a task's learnt prompt, so many times: what `generate` and `score` take for so many inputs.

        Raises:
          LoadingError: there is no such prompt, or the model has some and none is named.
        """
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


def _require_pairs(first: str, texts: Sequence[str], second: str, others: Sequence[str]) -> None:
    _require_texts(texts)
    _require_texts(others)
    if len(texts) != len(others):
        raise LoadingError(f"{len(texts)} {first} but {len(others)} {second}: give one for each")


def _require_positive(name: str, value: int) -> None:
    if value < 1:
        raise LoadingError(f"{name} is {value}: it must be at least 1")


def _own_eos_ids(folder: Path) -> list[int]:
    """What ends an answer by a Hugging Face folder's generation_config.json: one id, or a list of them."""
    path = folder / GENERATION_CONFIG
    ids = read_json(path).get("eos_token_id") if path.is_file() else None
    found = ids if isinstance(ids, list) else [] if ids is None else [ids]
    if not all(isinstance(token, int) and not isinstance(token, bool) and token >= 0 for token in found):
        raise LoadingError(f"{path}: eos_token_id is {ids!r}, which is neither a token id nor a list of them")
    return found


def load(
    folder: str | Path,
    *,
    step: int | None = None,
    adapter: str | Path | None = None,
    compute: Compute | None = None,
    mesh: MeshConfig | None = None,
) -> Model:
    """Opens a run directory (its latest checkpoint, or that of `step`) or a Hugging Face folder.

    Arguments:
      folder: of the model.
      step: of a run's checkpoint.
      adapter: a PEFT folder, put on the model; a tokenizer in it goes before the model's, and a warning tells where it
        names another base model.
      compute: how the model is run.
      mesh: spreads rows and parameters over all devices, as in training; each device gets its part straight from the
        file. None takes the first device alone.

    Raises:
      FlanjaxError: the mesh does not fit the devices, the folder is neither, a file in it is missing or damaged, there
        is no checkpoint of that step, the vocabulary has more ids than the model, or the adapter does not fit it.
    """
    devices = None if mesh is None else make_mesh(mesh)
    folder, prefix_lm, further_eos_ids = Path(folder), False, list[int]()
    found = format_of(folder)
    own = None if adapter is None else vocabulary_of_adapter(adapter)
    if found is RUN:
        run = read_run(folder, step=step, mesh=devices)
        config, params, vocabulary = run.model, run.params, own or run.vocabulary
        prefix_lm = run.is_prefix_lm
    elif step is not None:
        raise LoadingError(f"{folder}: step={step} needs a run directory, and this is {found.holds}")
    else:
        # First, for it is quick and most often what is missing.
        own = own or found.vocabulary(folder)
        if own is None and folder.is_file():
            raise LoadingError(f"{folder} is {found.holds}, which has no vocabulary: give a folder with its tokenizer")
        vocabulary = own or read_vocabulary(folder)  # which says what is missing
        config, params = found.read(folder)
        further_eos_ids = [token for token in _own_eos_ids(folder) if token != vocabulary.eos_id]
    if vocabulary.size > config.vocab_size:
        raise LoadingError(f"{folder}: the vocabulary has {vocabulary.size} ids, the model only {config.vocab_size}")
    if adapter is not None:
        if config.added:
            raise LoadingError(f"{folder} has adapters of its own: export it with --merge, and load {adapter} on that")
        put_on = read_peft(adapter, config)
        if told := another_base(put_on, folder):
            warnings.warn(f"{adapter}: {told}", stacklevel=2)
        config, params = adapter_on(put_on, config, params)
    one_device = SingleDeviceSharding(jax.devices()[0])
    return Model(
        config=config,
        params=place(params, one_device if devices is None else shardings_on(devices, config)),
        vocabulary=vocabulary,
        compute=compute or Compute(),
        prefix_lm=prefix_lm,
        further_eos_ids=tuple(further_eos_ids),
    )
