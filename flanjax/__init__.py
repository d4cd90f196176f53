"""flanjax: instruction tuning on JAX, from seqio tasks to Hugging Face checkpoints.

`flanjax.load(folder)` opens a run directory or a Hugging Face T5 folder. It is resolved on first use, so that
`import flanjax` stays instant for the command-line doors.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flanjax.loading import load as load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from flanjax.loading import load

        return load
    raise AttributeError(f"module 'flanjax' has no attribute {name!r}")
