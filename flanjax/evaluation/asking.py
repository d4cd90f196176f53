"""Parameters with their vocabulary as what answers a benchmark: a loaded model, or the one that is being trained.

    model = Asked(config=config, compute=Compute(), params=params, vocabulary=vocabulary)
    evaluate(benchmark, predict(benchmark, model))

On a mesh, with `jax.set_mesh`, the texts of a batch are spread over it, and every process gets all answers.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax

from flanjax.data.chat import Chat
from flanjax.data.placeholders import Placeholders
from flanjax.data.vocabularies import Vocabulary
from flanjax.evaluation.benchmark import Benchmark, BenchmarkError, Instance, Written
from flanjax.generation.continuations import continuation_ids
from flanjax.generation.decoding import DecodingConfig
from flanjax.generation.generate import answers
from flanjax.generation.scoring import score
from flanjax.models.config import Compute, ModelConfigError
from flanjax.models.decoder import require_positions
from flanjax.models.decoder_config import DecoderConfig
from flanjax.models.model import ModelConfig
from flanjax.models.parameters import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """A model that writes and scores texts (`flanjax.evaluation.benchmark.Model`).

    Attributes:
      config: the model; where prompts go by tasks, an instance has that of its own task.
      compute: how it is run.
      params: its parameters.
      vocabulary: turns texts into token ids.
      prefix_lm: whether a decoder's inputs all see each other, as it was trained.
      further_eos_ids: what ends an answer beside the vocabulary's EOS.
      chat: asks for texts in a chat template, whose turns end by themselves; None asks as the prompt stands.
      batch_size: texts that go through the model together.
    """

    config: ModelConfig
    compute: Compute
    params: Params
    vocabulary: Vocabulary
    prefix_lm: bool = False
    further_eos_ids: tuple[int, ...] = ()
    chat: Chat | None = None
    batch_size: int = 16

    def generate(self, instances: Sequence[Instance], max_new_tokens: int, stop: Sequence[str]) -> list[Written]:
        """The greedy answer to each instance, up to the first of the stop texts, and its log-likelihood with its end.

        Raises:
          PackingError: prompts go by tasks, and the task of an instance has none.
          ModelConfigError: the longest answer would be beyond the positions that a decoder has.
        """
        ends = (*(self.chat.end_ids if self.chat else ()), self.vocabulary.eos_id, *self.further_eos_ids)
        found = answers(
            self.config,
            self.compute,
            self.params,
            [self.question(instance) for instance in instances],
            DecodingConfig(max_new_tokens=max_new_tokens, eos_ids=tuple(dict.fromkeys(ends)), stop=tuple(stop)),
            decode=self._text,
            prefix_lm=self.prefix_lm,
            prompts=self._prompts(instances),
            batch_rows=self.batch_size,
            logprobs=0,
        )
        return [Written(request.text, request.loglikelihood) for request in found]

    def loglikelihoods(self, instances: Sequence[Instance]) -> list[tuple[float, ...]]:
        """The log-likelihood of each choice after the prompt and one space, its end not counted, or as its ids say.

        Raises:
          PackingError: as `generate`.
        """
        read = [self._pairs(instance) for instance in instances]
        found = score(
            self.config,
            self.compute,
            self.params,
            [inputs for inputs, choices in read for _ in choices],
            [choice for _, choices in read for choice in choices],
            prefix_lm=self.prefix_lm,
            prompts=self._prompts([instance for instance in instances for _ in instance.choices]),
            batch_rows=self.batch_size,
        )
        scores = iter(found)
        return [tuple(next(scores).total for _ in instance.choices) for instance in instances]

    def _pairs(self, instance: Instance) -> tuple[list[int], list[list[int]]]:
        if instance.ids:
            return list(instance.ids), [list(ids) for ids in instance.choice_ids]
        return continuation_ids(self.vocabulary, instance.prompt, [f" {choice}" for choice in instance.choices])

    def tokens(self, text: str) -> int:
        """How many tokens a text is, without those that begin or end one, or make a turn of chat."""
        return len(self.vocabulary.encode(text))

    @functools.cached_property
    def facts(self) -> dict[str, str]:
        """What a reader of its figures wants to know of the model and where it runs."""
        device = jax.devices()[0]
        return {
            "device": f"{device.platform}, {device.device_kind}",
            "computed in": self.compute.dtype,
            "parameters": f"{sum(leaf.size for leaf in jax.tree.leaves(self.params)):,}",
        }

    def check(self, benchmark: Benchmark) -> None:
        """Reads all questions, before any is asked, where there is what may forbid one of them.

        Raises:
          FlanjaxError: prompts go by tasks and one has none, a template refuses a conversation, or a question and its
            longest answer are beyond the positions that a decoder has.
        """
        bounded = isinstance(self.config, DecoderConfig) and not _has_positions(self.config, 2**31)
        if not (bounded or self.chat or self.config.prompt_tasks):
            return
        for instance in benchmark.load():
            self._prompts([instance])
            asked = len(self.question(instance))
            written = 0 if benchmark.mode == "choices" else benchmark.max_new_tokens
            longest = max([written, *map(len, self._pairs(instance)[1])])
            if isinstance(self.config, DecoderConfig):
                try:
                    require_positions(self.config, self.config.prompt_length + asked + longest)
                except ModelConfigError as error:
                    raise BenchmarkError(
                        f"{benchmark.name}, {instance.id}: {asked} tokens, and up to {longest} of an answer: {error}"
                    ) from error

    def question(self, instance: Instance) -> list[int]:
        """The ids that an instance's text is asked for with.

        Raises:
          BadRow: a turn has what is read as a token of control in its text.
          ChatTemplateError: the template refuses the conversation.
        """
        if self.chat is not None:
            return self.chat.prompt([{"role": turn.role, "content": turn.text} for turn in instance.conversation])
        return list(instance.ids) or self.vocabulary.as_inputs(self.vocabulary.encode(instance.prompt))

    def _prompts(self, instances: Sequence[Instance]) -> list[int] | None:
        tasks = self.config.prompt_tasks
        placeholders = Placeholders(self.config.prompt_length, tasks)
        return placeholders.numbers([instance.task for instance in instances]) if tasks else None

    def _text(self, ids: Sequence[int]) -> str:
        return self.vocabulary.decode(list(ids))


def _has_positions(config: DecoderConfig, length: int) -> bool:
    try:
        require_positions(config, length)
    except ModelConfigError:
        return False
    return True
