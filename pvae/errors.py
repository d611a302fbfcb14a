"""What goes wrong on a person's side, as exceptions whose text is one line that says what to do."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

__all__ = ["InputError", "InterruptedTrainingError", "LostError", "TrainingError", "brief", "check_name"]


class InputError(ValueError):
    """Something given to pvae cannot be used; the message is one line for the person who gave it."""


class TrainingError(RuntimeError):
    """A training could not go on; the message names the step and the last good checkpoint."""


class InterruptedTrainingError(KeyboardInterrupt):
    """Ctrl-C or SIGTERM during a training; the message says what is on disk and how to go on.

    Args:
        message: one line.
        status: the exit status of a process that ends by it.
    """

    def __init__(self, message: str, status: int = 130) -> None:
        super().__init__(message)
        self.status = status


class LostError(RuntimeError):
    """What a training needs was taken from it while it ran: the disk, the folder, another process."""


def brief(error: BaseException) -> str:
    """Return the first sentence of an exception's text, without line breaks or terminal codes."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", " ".join(str(error).split()))
    sentence = re.split(r"(?<=\w)[.:] ", text)[0]
    return sentence[:150] or type(error).__name__


def check_name(kind: str, name: str, names: Iterable[str]) -> str:
    """Return `name` if it is one of `names`.

    Args:
        kind: what the name stands for, as the person calls it ("ELBO").
        name: the name given.
        names: the names that exist.

    Returns:
        `name`, unchanged.

    Raises:
        InputError: `name` is unknown; the message gives the nearest names, or all of them.

    >>> check_name("ELBO", "analitic", ("trace", "analytic"))
    Traceback (most recent call last):
        ...
    pvae.errors.InputError: unknown ELBO 'analitic': did you mean 'analytic'? (known: trace, analytic)
    """
    known = list(names)
    if name in known:
        return name
    near = difflib.get_close_matches(str(name), known, n=2, cutoff=0.5)
    guess = ": did you mean " + " or ".join(repr(n) for n in near) + "?" if near else ""
    raise InputError(f"unknown {kind} {name!r}{guess} (known: {', '.join(known)})")
