"""The one base class of every error that flanjax raises on purpose.

A door catches it, prints its message without a traceback and exits with status 2; anything else is a bug and keeps
its traceback. A message names the thing, the place (file and line, gin key, parameter path) and the remedy.
"""

import difflib
from collections.abc import Iterable


class FlanjaxError(Exception):
    """Bad input or a bad environment, explained for the person who can mend it."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A phrase for a message, ` (did you mean 'x'?)`; the empty string where no known name is near."""
    spelled = {candidate.lower(): candidate for candidate in known}
    matches = difflib.get_close_matches(name.lower(), list(spelled), n=1, cutoff=0.5)
    return f" (did you mean {spelled[matches[0]]!r}?)" if matches else ""
