"""Exceptions for errors that a user can correct; each message is one line that says what to do."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Iterable

__all__ = [
    "InputError",
    "InterruptedTrainingError",
    "LostError",
    "TrainingError",
    "brief",
    "check_count",
    "check_name",
    "one_line",
    "shown",
]

_MOST_CHARACTERS = 4000  # of a message; the longest possible path fits


class InputError(ValueError):
    """An input from the user cannot be used.

    Args:
        message: what is wrong, and what to do; line breaks in it are escaped, so that it is one line.
    """

    def __init__(self, message: str = "") -> None:
        # Pyro raises an error of model or guide anew, with the shapes of all sites after its message.
        super().__init__(one_line(re.split(r"\n *Trace Shapes:", message, maxsplit=1)[0]))


class TrainingError(RuntimeError):
    """A training could not continue; the message names the step and the last good checkpoint."""


class InterruptedTrainingError(KeyboardInterrupt):
    """Ctrl-C or SIGTERM during a training; the message says what was saved and how to resume.

    Args:
        message: one line.
        status: the exit status of the process.
    """

    def __init__(self, message: str, status: int = 130) -> None:
        super().__init__(message)
        self.status = status


class LostError(RuntimeError):
    """A running training lost a resource that it needs: space on the disk, its folder, another process.

    The message is empty if another process reports the loss.
    """


def one_line(text: str) -> str:
    r"""Return a text with line breaks and control characters escaped.

    >>> one_line("two" + chr(10) + "lines")
    'two\\nlines'
    """
    if len(text) > _MOST_CHARACTERS:
        text = f"{text[: _MOST_CHARACTERS // 2]} ... {text[-_MOST_CHARACTERS // 2 :]}"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def shown(value: object) -> str:
    """Return the representation of a value for a message, shortened if it is long."""
    if isinstance(value, int) and abs(value) >= 10**30:
        return "a whole number of more than 30 digits"  # Python raises an error for very long ones
    quoting = reprlib.Repr()
    quoting.maxstring = quoting.maxother = 200
    quoting.maxlong = 40
    return quoting.repr(value)


def brief(error: BaseException) -> str:
    """Return the first sentence of an exception's text, without line breaks or terminal codes."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", " ".join(str(error).split()))
    sentence = re.split(r"(?<=\w)[.:] ", text)[0]
    return sentence[:150] or type(error).__name__


def check_count(name: str, count: int, least: int = 1) -> None:
    """Check an argument that is a number of things.

    Raises:
        InputError: it is less than `least`.
    """
    if count < least:
        raise InputError(f"{name} must be at least {least}, not {count}")


def check_name(kind: str, name: str, names: Iterable[str]) -> str:
    """Return `name` if it is one of `names`.

    Args:
        kind: what the name stands for, in the user's words ("ELBO").
        name: the name given.
        names: the names that exist.

    Returns:
        `name`, unchanged.

    Raises:
        InputError: `name` is unknown; the message gives the nearest names, or all of them.

    >>> check_name("ELBO", "analitic", ("trace", "analytic"))
    Traceback (most recent call last):
        ...
    pvae.core.errors.InputError: unknown ELBO 'analitic': did you mean 'analytic'? (known: trace, analytic)
    """
    known = list(names)
    if name in known:
        return name
    near = difflib.get_close_matches(shown(name).strip("'"), known, n=2, cutoff=0.5)
    guess = ": did you mean " + " or ".join(repr(n) for n in near) + "?" if near else ""
    raise InputError(f"unknown {kind} {shown(name)}{guess} (known: {', '.join(known)})")
