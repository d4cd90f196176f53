"""The README.md of an exported folder: what the model is, how it was trained, how to load it."""

from collections.abc import Mapping

from flanjax.models.config import T5Config
from flanjax.models.model import ModelConfig

CARD = "README.md"


def model_card(name: str, config: ModelConfig, recipe: Mapping[str, str] | None = None) -> str:
    """Markdown for the model called `name`, with `recipe` (label to value) as a table.

    The licence is left for the person who publishes it: it depends on the base model and the data.
    """
    is_t5 = isinstance(config, T5Config)
    tags = "- t5\n- flanjax" if is_t5 else "- flanjax"
    front = f"---\nlibrary_name: transformers\ntags:\n{tags}\n---"
    loading = _LOADING if is_t5 else _LOADING.replace("Seq2SeqLM", "CausalLM")
    return "\n\n".join((front, f"# {name}", _description(config), _recipe(recipe), _LICENCE, loading)) + "\n"


def _description(config: ModelConfig) -> str:
    if not isinstance(config, T5Config):
        return (
            f"A decoder of {config.num_layers} layers of width {config.embed_dim}, {config.num_heads} heads of "
            f"{config.head_dim} over {config.num_kv_heads} of keys and values, feed-forward width {config.mlp_dim} "
            f"({' x '.join(config.mlp_activations)}), a vocabulary of {config.vocab_size} and "
            f"{'a tied' if config.tied_head else 'an untied'} head. Written by flanjax."
        )
    return (
        f"A T5 with {config.num_encoder_layers} encoder and {config.num_decoder_layers} decoder layers of width "
        f"{config.embed_dim}, {config.num_heads} heads of {config.head_dim}, feed-forward width {config.mlp_dim} "
        f"({' x '.join(config.mlp_activations)}), a vocabulary of {config.vocab_size} and "
        f"{'a tied' if config.tied_head else 'an untied'} head. Written by flanjax."
    )


def _recipe(recipe: Mapping[str, str] | None) -> str:
    if not recipe:
        return "## Training\n\nConverted by flanjax; not trained by it."
    rows = "\n".join(f"| {label} | {_cell(value)} |" for label, value in recipe.items())
    return f"## Training\n\n| | |\n|---|---|\n{rows}"


def _cell(value: str) -> str:
    return " ".join(value.split()).replace("|", "\\|")


_LICENCE = (
    "## Licence\n\nNot stated yet: it follows from the base model and the training data. Whoever publishes this folder "
    "adds it here and as `license:` above."
)
_LOADING = """## Loading

```python
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = AutoModelForSeq2SeqLM.from_pretrained("FOLDER")
batch = tokenizer("Your instruction", return_tensors="pt")
print(tokenizer.decode(model.generate(**batch, max_new_tokens=64)[0], skip_special_tokens=True))
```

or, in JAX:

```python
import flanjax

model = flanjax.load("FOLDER")
print(model.generate(["Your instruction"]))
```"""


def adapter_card(
    name: str, peft_type: str, base: str | None, recipe: Mapping[str, str] | None = None, *, causal: bool = False
) -> str:
    """Markdown for a PEFT adapter called `name` on the model `base`, with `recipe` as a table.

    `causal` says that the model is a decoder.
    """
    # The hub takes an id alone.
    model = [f"base_model: {base}"] if base and "/" in base else []
    front = ["---", "library_name: peft", *model, "tags:", *([] if causal else ["- t5"]), "- flanjax", "---"]
    trained_on = "the decoder that it was trained on" if causal else "the T5 that it was trained on"
    description = (
        f"A PEFT adapter of type {peft_type} for {base or trained_on}; it means nothing to another model. Written by "
        "flanjax."
    )
    loading = (_ADAPTER_LOADING.replace("Seq2SeqLM", "CausalLM") if causal else _ADAPTER_LOADING).replace(
        "BASE", base or "BASE"
    )
    return "\n\n".join(("\n".join(front), f"# {name}", description, _recipe(recipe), _LICENCE, loading)) + "\n"


_ADAPTER_LOADING = """## Loading

```python
from peft import PeftModel
from transformers import AutoModelForSeq2SeqLM

model = PeftModel.from_pretrained(AutoModelForSeq2SeqLM.from_pretrained("BASE"), "FOLDER")
```

or, in JAX:

```python
import flanjax

model = flanjax.load("BASE", adapter="FOLDER")
```"""
