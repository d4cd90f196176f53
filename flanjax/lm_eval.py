"""The model `flanjax` of lm-evaluation-harness: `lm_eval --model flanjax --model_args path=DIR ...`.

The harness (0.4.13) looks for models of other packages nowhere; `flanjax_lm_eval.pth`, installed beside this package,
tells its command of this class when that starts. `python -m flanjax.lm_eval` is the same command after an import of
this module, which registers the class. In Python:

    import flanjax.lm_eval
    lm_eval.simple_evaluate(model="flanjax", model_args="path=runs/mine,adapter=lora", tasks=["mmlu"])

`path` is whatever `flanjax.load` opens. Requests are scored as the harness's own `hf` model does (its rules for
encoder-decoders included: EOS after the context, none after the continuation), but for these, and for what
docs/evaluation.md says besides:

  An encoder-decoder reads contexts of any length, where `hf` cuts those of a T5 at the 512 tokens of its configuration.
  What is cut, at `max_length` or the positions that a decoder has, is warned of and counted in the results.
  An encoder-decoder's answers have `max_gen_toks` tokens at most; `hf` allows the context's length on top.
  A template that refuses a conversation ends the run; `hf` leaves the system's words out and goes on.
"""

import functools
import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lm_eval.models  # noqa: F401  # the harness does so only where nothing is registered yet
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from flanjax.doors import run_door
from flanjax.errors import FlanjaxError

if TYPE_CHECKING:  # registered without jax
    from lm_eval.api.instance import Instance

    from flanjax.data.chat import Chat
    from flanjax.generation.decoding import DecodingConfig

# What `DecodingConfig` calls the same; the harness's other names for a number of tokens it has read by then.
_OPTIONS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "num_beams", "length_penalty", "seed")
_OF_DRAWING = ("top_k", "top_p", "min_p")
_BATCH_SIZE = 16

_log = logging.getLogger(__name__)


class HarnessError(FlanjaxError):
    """A request that cannot be answered, or arguments that make no model."""


@register_model("flanjax")
class FlanjaxLM(TemplateLM):
    """A model of `flanjax.load`, as the harness asks it.

    Arguments:
      path: a run directory or a Hugging Face folder.
      adapter: a PEFT folder put on it.
      step: of a run's checkpoint; the latest by default.
      prompt: the task whose learnt prompt is used, for a model that has one for each task.
      batch_size: contexts that go through the model together; "auto" is 16.
      max_length: tokens of a context (an encoder-decoder) or of a whole text (a decoder), what is beyond is cut from
        the left; by default the positions that a decoder was made for, and no limit of an encoder-decoder's.
      max_gen_toks: tokens of an answer where a task does not say.
      dtype: of activations, "float32" or "bfloat16".
      mesh: the devices, "data=2:model=4" say; by default the first alone.
      max_batch_size: of no meaning here, for the harness gives it.
      device: likewise; jax chooses (`JAX_PLATFORMS`).

    Raises:
      FlanjaxError: as `flanjax.load`, or a number below 1.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        adapter: str | Path | None = None,
        step: int | None = None,
        prompt: str | None = None,
        batch_size: int | str | None = None,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        dtype: str = "float32",
        mesh: str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
    ):
        from flanjax.loading import load
        from flanjax.models.config import Compute
        from flanjax.models.decoder_config import DecoderConfig
        from flanjax.sharding.mesh import mesh_config

        super().__init__()
        if device is not None:
            _log.warning("device=%s has no effect: jax chooses the device (JAX_PLATFORMS)", device)
        self.batch_size = _BATCH_SIZE if batch_size is None or str(batch_size).startswith("auto") else int(batch_size)
        for name, value in {
            "batch_size": self.batch_size,
            "max_length": max_length,
            "max_gen_toks": max_gen_toks,
        }.items():
            if value is not None and value < 1:
                raise HarnessError(f"{name} is {value}: it must be at least 1")
        devices = None if mesh is None else mesh_config(mesh)
        self.model = load(path, step=step, adapter=adapter, compute=Compute(dtype=dtype), mesh=devices)
        self.prompts = functools.partial(self.model.prompts, prompt)
        self.prompts(0)  # says what is wrong with the prompt
        config = self.model.config
        self.backend = "causal" if isinstance(config, DecoderConfig) else "seq2seq"
        made_for = config.text_positions - config.prompt_length if isinstance(config, DecoderConfig) else None
        self.max_length, self.max_gen_toks = max_length or made_for, max_gen_toks
        self.requests = self.truncated = 0

    # --- tokens ------------------------------------------------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        """What ends a text."""
        return self.model.vocabulary.eos_id

    @property
    def prefix_token_id(self) -> int:
        """What an empty context is: BOS, or EOS where there is none."""
        bos = self.model.vocabulary.bos_id
        return self.eot_token_id if bos is None else bos

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **options: Any) -> list[int]:
        """The ids of a text, by default as inputs; a decoder's tokens of control are read where it spells them."""
        vocabulary = self.model.vocabulary
        if self.backend == "seq2seq":
            ids = vocabulary.encode(string)
        else:
            ids = [id_ for id_, _, _ in vocabulary.encode_rendered(string)]
        # A template's text may have BOS of its own.
        begun = bool(vocabulary.prefix) and tuple(ids[: len(vocabulary.prefix)]) == vocabulary.prefix
        return ids if add_special_tokens is False or begun else vocabulary.as_inputs(ids)

    def _fitting(self, contexts: Iterable[Sequence[int]], rooms: Iterable[int | None]) -> list[list[int]]:
        """The contexts, cut from the left to so many tokens; what was cut is counted, and told once for all of them."""
        fitting, cut = [], 0
        for context, room in zip(contexts, rooms, strict=True):
            if room is not None and room < 1:
                raise HarnessError(f"max_length={self.max_length} leaves no room for a context beside what is asked")
            kept = list(context if room is None else context[-room:])
            cut += len(kept) < len(context)
            fitting.append(kept)
        self.requests, self.truncated = self.requests + len(fitting), self.truncated + cut
        if cut:
            _log.warning("%d of %d contexts are cut from the left to fit %s tokens", cut, len(fitting), self.max_length)
        return fitting

    def get_model_info(self) -> dict[str, Any]:
        """What the harness puts into its results."""
        return {
            "model_vocabulary": self.model.vocabulary.identity,
            "model_max_length": self.max_length,
            "requests": self.requests,
            "truncated_requests": self.truncated,
        }

    # --- scores ------------------------------------------------------------------------------------------------------

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **options: Any
    ) -> list[tuple[float, bool]]:
        from flanjax.generation.scoring import score

        model, whole = self.model, self.max_length
        if longest := max((len(ids) for _, _, ids in requests if whole and len(ids) > whole), default=0):
            raise HarnessError(f"a continuation of {longest} tokens: the most is max_length={whole}")
        # The last token of a decoder's text is never read.
        rooms = [
            None if whole is None else whole if self.backend == "seq2seq" else whole + 1 - len(ids)
            for _, _, ids in requests
        ]
        contexts = self._fitting([context for _, context, _ in requests], rooms)
        scores = score(
            model.config,
            model.compute,
            model.params,
            contexts,
            [ids for _, _, ids in requests],
            prefix_lm=model.prefix_lm,
            prompts=self.prompts(len(contexts)),
            batch_rows=self.batch_size,
        )
        answers = [(score.total, score.is_greedy) for score in scores]
        for (texts, _, _), answer in zip(requests, answers, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def loglikelihood_rolling(self, requests: "Sequence[Instance]", disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of whole texts, each token once, in windows of `max_length` behind BOS or EOS.

        An encoder-decoder's encoder is given EOS alone, its decoder the window with EOS after the text, as by `hf`.
        """
        windows, counts = [], []
        for request in requests:
            ids = self.tok_encode(request.args[0])
            room = self.max_length or max(len(ids), 1)
            found = list(get_rolling_token_windows(ids, self.prefix_token_id, max_seq_len=room, context_len=1))
            windows += [(None, *make_disjoint_window(window)) for window in found]
            counts.append(len(found))
        values = iter(self._loglikelihood_tokens(windows))
        totals = [sum(next(values)[0] for _ in range(count)) for count in counts]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    # --- texts -------------------------------------------------------------------------------------------------------

    def generate_until(self, requests: "Sequence[Instance]", disable_tqdm: bool = False) -> list[str]:
        """The answer to each context up to the first of its stop texts, decoded as its `generation_kwargs` say.

        Raises:
          HarnessError: an argument that there is not.
          DecodingError: one outside its range.
        """
        groups: dict[tuple[DecodingConfig, tuple[str, ...]], list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(self._decoding(request.args[1]), []).append(i)
        answers: list[str] = [""] * len(requests)
        for (decoding, stop), chosen in groups.items():
            texts = self._generate([requests[i].args[0] for i in chosen], decoding, stop)
            for i, text in zip(chosen, texts, strict=True):
                answers[i] = text
                self.cache_hook.add_partial("generate_until", requests[i].args, text)
        return answers

    def _generate(self, contexts: Sequence[str], decoding: "DecodingConfig", stop: Sequence[str]) -> list[str]:
        from flanjax.generation.generate import generate
        from flanjax.generation.stopping import before_stop

        model, room = self.model, self.max_length
        if room is not None and self.backend == "causal":
            room -= decoding.max_new_tokens
        answers = generate(
            model.config,
            model.compute,
            model.params,
            self._fitting(map(self.tok_encode, contexts), [room] * len(contexts)),
            decoding,
            decode=lambda ids: model.vocabulary.decode(list(ids)),
            prefix_lm=model.prefix_lm,
            prompts=self.prompts(len(contexts)),
            batch_rows=self.batch_size,
        )
        return [before_stop(model.vocabulary.decode(ids), stop)[0] for ids in answers]

    def _decoding(self, generation_kwargs: Mapping[str, Any]) -> "tuple[DecodingConfig, tuple[str, ...]]":
        """The harness's arguments, which are those of `transformers.generate`, as ours; and the stop texts.

        As by `hf`, what chooses among drawn tokens says nothing where none is drawn. Beams do not look for stop texts:
        their answers are cut afterwards.
        """
        from flanjax.generation.decoding import DecodingConfig

        asked: dict[str, Any] = dict(normalize_gen_kwargs(dict(generation_kwargs), self.max_gen_toks))
        until, drawn = asked.pop("until", None) or [], asked.pop("do_sample")
        if drawn and not asked.get("temperature"):
            asked["temperature"] = 1.0
        limit = asked.pop("max_gen_toks")
        if unknown := sorted(set(asked) - {*_OPTIONS, "early_stopping"}):
            raise HarnessError(
                f"generation_kwargs {', '.join(unknown)}: there are until, do_sample, max_gen_toks, early_stopping, "
                + ", ".join(_OPTIONS)
            )
        if not asked.get("temperature"):
            asked = {name: value for name, value in asked.items() if name not in _OF_DRAWING}
        stop = (until,) if isinstance(until, str) else tuple(text for text in until if text)
        sought = stop if asked.get("num_beams", 1) == 1 else ()
        return DecodingConfig(max_new_tokens=limit, stop=sought, eos_ids=self.model.eos_ids, **asked), stop

    # --- chats -------------------------------------------------------------------------------------------------------

    @functools.cached_property
    def chat(self) -> "Chat":
        """The model's chat template."""
        from flanjax.data.chat import own_chat

        found = own_chat(self.model.vocabulary)
        if found is None:
            raise HarnessError(
                f"{self.model.vocabulary.path} brings no chat template: leave --apply_chat_template out, or put a "
                "chat_template.jinja beside it"
            )
        return found

    @property
    def tokenizer_name(self) -> str:
        """What the harness keeps requests apart by that were made with a template."""
        return f"{self.model.vocabulary.identity}-{self.chat.template.identity}"

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The text of the template, which the results have; None where none is asked for.

        Raises:
          HarnessError: the model has none, or one is asked for by a name: there is one only.
        """
        if not chat_template:
            return None
        if isinstance(chat_template, str):
            raise HarnessError(f"chat template {chat_template!r}: the model's own is the only one, give no name")
        return self.chat.template.text

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation up to where the assistant is to speak, or to the end of what it has begun to say."""
        text = self.chat.template.render(chat_history, add_generation_prompt=add_generation_prompt)
        if add_generation_prompt:
            return text
        begun = chat_history[-1]["content"].strip()
        return text[: text.rindex(begun) + len(begun)]


def main() -> int:
    """The harness's own command."""
    from lm_eval.__main__ import cli_evaluate

    return run_door(lambda: cli_evaluate() or 0)


if __name__ == "__main__":
    sys.exit(main())
