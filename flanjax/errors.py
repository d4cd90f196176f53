"""The one base class of every error that flanjax raises on purpose.

A door catches it, prints its message without a traceback and exits with status 2; anything else is a bug and keeps
its traceback. A message names the thing, the place (file and line, gin key, parameter path) and the remedy.
"""


class FlanjaxError(Exception):
    """Bad input or a bad environment, explained for the person who can mend it."""
