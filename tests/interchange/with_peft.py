"""Adapters on either kind of model for the tests against peft: of its own making, and of ours with random values."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from flanjax.models.model import ModelConfig
from flanjax.models.parameters import Params
from flanjax.tuning.partition import added_paths, begin, flatten, unflatten


def write_with_peft(base: Path, output: Path, **settings: Any) -> Path:
    """An adapter of peft's own making with these settings, none of whose numbers is at its beginning."""
    import torch
    from peft import PeftConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    torch.manual_seed(0)
    kind = AutoModelForCausalLM if settings["task_type"] == "CAUSAL_LM" else AutoModelForSeq2SeqLM
    model = get_peft_model(kind.from_pretrained(base), PeftConfig.from_peft_type(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(output)
    return output


def begun(model: ModelConfig, base: Params) -> Params:
    """A model's parameters as tuning begins with them."""
    return jax.device_get(begin(model, base, lambda text: [], 0))


def moved(model: ModelConfig, base: Params, *own: str) -> Params:
    """The same with random additions, and random values of these own ones."""
    rng = np.random.default_rng(1)
    chosen = added_paths(model) | set(own)

    def move(value: np.ndarray) -> np.ndarray:
        return (value + 0.2 * rng.standard_normal(value.shape, np.float32)).astype(value.dtype)

    return unflatten({p: move(v) if p in chosen else v for p, v in flatten(begun(model, base)).items()})
