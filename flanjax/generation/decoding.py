"""How an answer is decoded: one frozen `DecodingConfig`, whose names and meanings are those of `transformers.generate`.

DecodingConfig(max_new_tokens=32)                                       # greedy
DecodingConfig(temperature=0.7, top_p=0.9, num_samples=4, seed=1)       # four samples for each input
DecodingConfig(num_beams=4, length_penalty=0.6, early_stopping=True)    # beam search
DecodingConfig(stop=("\\n\\n",))                                          # an answer ends before a blank line
"""

import dataclasses
import math
from typing import Any, Literal

from flanjax.errors import FlanjaxError

EOS_ID = 1  # T5's


class DecodingError(FlanjaxError):
    """A way of decoding that there is not, or settings that exclude each other."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodingConfig:
    """How answers are made from the model's logits.

    Attributes:
      max_new_tokens: tokens at most, EOS counted while decoding and never part of an answer.
      temperature: what logits are divided by before a token is drawn; 0 takes the most likely token.
      top_k: only so many of the most likely tokens are drawn; 0 for all.
      top_p: only the fewest tokens are drawn that have this probability together (Holtzman et al. 2020,
        arXiv 1904.09751); 1 for all.
      min_p: only tokens are drawn that are at least this part as likely as the likeliest (Nguyen et al. 2024,
        arXiv 2407.01082); 0 for all.
      repetition_penalty: logits of tokens already there, in a decoder's input too, are divided by this where they are
        positive and multiplied where negative (Keskar et al. 2019, arXiv 1909.05858); 1 changes nothing.
      num_samples: answers for each input: drawn ones, or the best of `num_beams`.
      seed: of what is drawn.
      num_beams: hypotheses that beam search keeps; 1 for no beam search.
      length_penalty: a hypothesis of n tokens, EOS counted, is worth log-likelihood / n ** length_penalty.
      early_stopping: when beam search of an input ends that has `num_beams` whole hypotheses: True at once; False once
        the best unfinished one is worth less as it stands than the worst whole one; "never" once it would be at any
        length, if no more likelihood were lost.
      stop: texts; an answer ends before the first of them that is complete.
      eos_ids: any of these ends an answer.

    Raises:
      DecodingError: a value outside its range, or two that exclude each other.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    num_samples: int = 1
    seed: int = 0
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    stop: tuple[str, ...] = ()
    eos_ids: tuple[int, ...] = (EOS_ID,)

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop))
        object.__setattr__(self, "eos_ids", tuple(self.eos_ids))
        for name, least in {"max_new_tokens": 1, "top_k": 0, "num_samples": 1, "seed": 0, "num_beams": 1}.items():
            value = getattr(self, name)
            self._require(name, _is_int(value) and value >= least, f"a whole number of at least {least}")
        self._require("seed", self.seed < 2**32, "below 2**32")
        self._require("temperature", _is_finite(self.temperature) and self.temperature >= 0, "0 or more")
        self._require("top_p", _is_finite(self.top_p) and 0 < self.top_p <= 1, "above 0 and at most 1")
        self._require("min_p", _is_finite(self.min_p) and 0 <= self.min_p <= 1, "from 0 to 1")
        self._require("repetition_penalty", _is_finite(self.repetition_penalty) and self.repetition_penalty > 0, "> 0")
        self._require("length_penalty", _is_finite(self.length_penalty), "a finite number")
        self._require("early_stopping", self.early_stopping in (True, False, "never"), 'True, False or "never"')
        self._require("stop", all(isinstance(x, str) and x for x in self.stop), "texts that are not empty")
        self._require("eos_ids", all(_is_int(x) and x >= 0 for x in self.eos_ids), "token ids")
        self._require_together()

    def _require(self, name: str, holds: bool, wanted: str) -> None:
        if not holds:
            raise DecodingError(f"{name} is {getattr(self, name)!r}: it must be {wanted}")

    def _require_together(self) -> None:
        drawing = [name for name, off in (("top_k", 0), ("top_p", 1), ("min_p", 0)) if getattr(self, name) != off]
        if drawing and not self.temperature:
            raise DecodingError(f"{drawing[0]} chooses what is drawn, but temperature 0 draws nothing: set temperature")
        if self.num_beams == 1:
            if self.num_samples > 1 and not self.temperature:
                raise DecodingError(
                    f"num_samples={self.num_samples} with temperature 0 and one beam would be one answer many times: "
                    "set temperature or num_beams"
                )
            if self.early_stopping or self.length_penalty != 1:
                raise DecodingError("early_stopping and length_penalty are of beam search: set num_beams")
            return
        if self.temperature:
            raise DecodingError("beam search draws nothing: leave out temperature or num_beams")
        if self.num_samples > self.num_beams:
            raise DecodingError(f"num_samples is {self.num_samples}: there are only num_beams={self.num_beams}")
        if self.stop:
            raise DecodingError("beam search does not look for stop texts: leave out stop or num_beams")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
