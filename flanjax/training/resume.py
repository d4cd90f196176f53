"""May this run go on from that checkpoint? The settings that make a run what it is, compared by name."""

from collections.abc import Mapping, Sequence
from typing import Any

from flanjax.training.interfaces import TrainingError


def check_config(
    saved: Mapping[str, Any], current: Mapping[str, Any], *, fixed: Sequence[str], free: Sequence[str], where: str
) -> None:
    """Refuses to go on with another model, vocabulary or data than a checkpoint was written with.

    Worked example: with `fixed=("model",)`, `{"model": {"mlp_dim": 32}}` and `{"model": {"mlp_dim": 48}}` differ in
    `model.mlp_dim`; a changed `train.train_steps` is not looked at.

    Arguments:
      saved: the configuration of the checkpoint.
      current: that of this run.
      fixed: dotted keys, or the beginnings of them, that must agree.
      free: exceptions among them.
      where: the run directory, for the message.

    Raises:
      TrainingError: a key differs; the message has each with both values.
    """
    before, now = _flat(saved), _flat(current)
    differing = [
        f"{key}: it was {before.get(key)!r}, now it is {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if _covered(key, fixed) and not _covered(key, free) and before.get(key) != now.get(key)
    ]
    if differing:
        raise TrainingError(
            f"{where} holds a run with other settings, which cannot go on under these:\n  "
            + "\n  ".join(differing)
            + "\nset them back, or give another MODEL_DIR"
        )


def _covered(key: str, prefixes: Sequence[str]) -> bool:
    return any(key == prefix or key.startswith(prefix + ".") for prefix in prefixes)


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys to values; sequences as lists, as JSON would give them back."""
    if not isinstance(value, Mapping):
        return {prefix: list(value) if isinstance(value, tuple) else value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}.{key}" if prefix else str(key))
    return flat
