"""What a run starts from: random parameters or a model that lies somewhere, and an adapter that was trained on it.

It is asked first what it is, then for the first parameters, then never again: what was read is let go of.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from flanjax.data.byte_vocabulary import Bytes
from flanjax.data.vocabularies import MODEL_FILE, SentencePieces, Vocabulary
from flanjax.errors import FlanjaxError
from flanjax.interchange.any_model import RUN, format_of
from flanjax.interchange.folders import ModelFolderError
from flanjax.interchange.peft import Adapter, adapter_on, another_base, read_peft, vocabulary_of_adapter
from flanjax.interchange.stored import place
from flanjax.interchange.tokenizer import TOKENIZER, has_pieces_of
from flanjax.models.decoder_config import DecoderConfig
from flanjax.models.model import ModelConfig, abstract_params, init_params
from flanjax.models.parameters import Params
from flanjax.sharding.hosts import agree, of_first
from flanjax.tuning.method import Method
from flanjax.tuning.partition import begin, digest, digest_of_few, flatten, unflatten


class RunError(FlanjaxError):
    """Parts of a run that do not belong together."""


class StartingPoint:
    """The model that a run starts from: read once, and only as much of it as is asked for.

    Args:
      model: the run's own; None takes that of `init_from`.
      dropout_rate: replaces the model's; None leaves it.
      tuning: the run's methods.
      init_from: where the model lies; None for random parameters.
      adapter_from: a PEFT folder that training goes on with; None for none.
      seed: of random parameters.

    Raises:
      RunError: there is no model there, or an adapter is given beside methods or without a model.
    """

    def __init__(
        self,
        *,
        model: ModelConfig | None,
        dropout_rate: float | None,
        tuning: Sequence[Method],
        init_from: str | None,
        adapter_from: str | None,
        seed: int,
    ):
        self._model = model
        self._dropout_rate = dropout_rate
        self._tuning = tuple(tuning)
        self._adapter_from = adapter_from
        self._seed = seed
        self._read: tuple[ModelConfig, Params] | None = None
        self._folder = None if init_from is None else Path(init_from)
        if self._folder is not None:
            try:
                self._format = format_of(self._folder)
            except ModelFolderError as error:
                raise RunError(f"there is no such model: INIT_FROM={error}. Give None for random parameters") from error
        if adapter_from is not None and (self._tuning or self._folder is None):
            raise RunError(
                f"ADAPTER_FROM={adapter_from} says itself which parameters move, and on which model they were learnt: "
                "leave TUNING empty, without a file of gin_configs/tuning/, and set INIT_FROM to that model"
            )

    @property
    def is_decoder(self) -> bool:
        """Whether the model is a decoder, by its configuration alone."""
        model = self._model
        if model is None and self._folder is not None:
            model = self._format.config(self._folder)
        return isinstance(model, DecoderConfig)

    @property
    def model(self) -> ModelConfig:
        """The run's model, or INIT_FROM's where the run names none; where both are there they must agree."""
        model = self._model
        if model is None:
            if self._folder is None:
                raise RunError("the run names neither a model nor INIT_FROM: include a file of gin_configs/models/")
            model = self._source()[0]
        if self._dropout_rate is not None:
            model = dataclasses.replace(model, dropout_rate=self._dropout_rate)
        return model

    @property
    def tuned(self) -> ModelConfig:
        """The model with what the run's methods add to it, or those of the adapter that it goes on with."""
        return dataclasses.replace(self.model, added=self.methods)

    @property
    def methods(self) -> tuple[Method, ...]:
        """Those of the run, or of the adapter that it goes on with."""
        return self._tuning if self.adapter is None else self.adapter.methods

    @functools.cached_property
    def adapter(self) -> Adapter | None:
        """What ADAPTER_FROM holds for the run's model."""
        return None if self._adapter_from is None else read_peft(self._adapter_from, self.model)

    def params(self, vocabulary: Vocabulary, shardings: Params) -> Params:
        """The first parameters; random ones come into being where they are to lie."""
        if self._folder is None:
            places, own = flatten(shardings), flatten(abstract_params(self.model))
            places = unflatten({path: places.get(path) for path in own})
            base = jax.jit(init_params, static_argnums=(0, 1), out_shardings=places)(self.model, self._seed)
        else:
            found, base = self._source()
            self._check_shape(found)
            self._read = None  # they are on the devices from now on
        if self.adapter is not None:
            return place(adapter_on(self.adapter, self.model, base)[1], shardings)
        return place(begin(self.tuned, base, vocabulary.encode, self._seed), shardings)

    def base(self) -> str | None:
        """What the frozen parameters of a run that has some are known by; None where everything moves.

        The first process reads all of them for it. The others look at a few: a model of its own disk is noticed.
        """
        if not self.tuned.added:
            return None
        if self._folder is None:
            return f"random, of seed {self._seed}"
        params = self._source()[1]
        agree(f"the model in INIT_FROM={self._folder}", digest_of_few(params))
        return of_first("base", lambda: digest(params))

    def _source(self) -> tuple[ModelConfig, Params]:
        if self._read is None:
            assert self._folder is not None
            self._read = self._format.read(self._folder)
        return self._read

    def check_model(self) -> None:
        """Refuses a model that is not INIT_FROM's, by its config.json alone; `params` looks at the tensors too."""
        if self._folder is None or self._model is None:
            return
        found = self._format.config(self._folder)
        if self._format is not RUN:
            # Whether the head is tied a T5's tensors alone say, and a folder of others says nothing of training.
            found = dataclasses.replace(found, tied_head=self._model.tied_head)
        self._check_shape(found)

    def _check_shape(self, found: ModelConfig) -> None:
        if type(found) is not type(self.model):
            kinds = ["a decoder" if isinstance(model, DecoderConfig) else "a T5" for model in (found, self.model)]
            raise RunError(f"INIT_FROM={self._folder} holds {kinds[0]}, and the model of the run is {kinds[1]}")
        unsaid = {name: getattr(found, name) for name in ("dropout_rate", *self._format.unsaid)}
        wanted = dataclasses.asdict(dataclasses.replace(self.model, **unsaid))
        differing = [
            f"{name} is {value!r} there, {wanted[name]!r} in the run"
            for name, value in dataclasses.asdict(found).items()
            if value != wanted[name]
        ]
        if differing:
            raise RunError(
                f"INIT_FROM={self._folder} holds another model: {'; '.join(differing)}. "
                "Include the file of gin_configs/models/ that fits it"
            )

    def tell_what_is_left_out(self, notice: Callable[[str], None], *, but_optimizer: bool) -> None:
        """Tells of what lies beside the model and is not taken, unless the optimizer's state is."""
        left_out = None if self._folder is None else self._format.left_out(self._folder)
        if left_out is not None and not but_optimizer:
            notice(f"INIT_FROM={left_out}")

    def tell_of_another_base(self, notice: Callable[[str], None]) -> None:
        """Tells where ADAPTER_FROM names another base model than INIT_FROM."""
        if self.adapter is not None and self._folder is not None and (told := another_base(self.adapter, self._folder)):
            notice(f"ADAPTER_FROM={self._adapter_from}: {told}")

    def check_vocabulary(self, vocabulary: Vocabulary, notice: Callable[[str], None]) -> None:
        """Refuses a vocabulary that is not the one INIT_FROM was trained with; gives notice where it brings none.

        A tokenizer beside ADAPTER_FROM is that of the later training, and goes before INIT_FROM's. The pieces decide;
        sentinels on top of them do not change what a token means.
        """
        if self._folder is None:
            return
        trained = f"INIT_FROM={self._folder}"
        own = None if self._adapter_from is None else vocabulary_of_adapter(self._adapter_from)
        if own is not None:
            trained = f"ADAPTER_FROM={self._adapter_from}"
        else:
            own = self._format.vocabulary(self._folder)
        if own is None:
            notice(
                f"INIT_FROM={self._folder} has neither {MODEL_FILE} nor {TOKENIZER}: whether it was trained with the "
                f"tasks' vocabulary {vocabulary.identity} ({vocabulary.size} ids) cannot be checked"
            )
            return
        if has_pieces_of(own, vocabulary):
            return
        name, remedy = f"{own.identity} ({own.size} ids)", f"={own.path}"
        if isinstance(vocabulary, SentencePieces) and not isinstance(own, SentencePieces | Bytes):
            name, remedy = f"that of its {TOKENIZER}", f" to the {MODEL_FILE} of the model it comes from"
        raise RunError(
            f"the tasks were tokenised with vocabulary {vocabulary.identity} ({vocabulary.size} ids), {trained} was "
            f"trained with {name}: its parameters mean nothing to these tokens. Set VOCABULARY{remedy}"
        )
