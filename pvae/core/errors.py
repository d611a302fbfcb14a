"""Exceptions for errors that a user can correct; each message is one line that says what to do."""

from __future__ import annotations

import contextlib
import difflib
import math
import os
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence


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
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def shown(value: object) -> str:
    """Return the representation of a value for a message, shortened if it is long."""
    quoting = reprlib.Repr()
    quoting.maxstring = quoting.maxother = 200
    text = quoting.repr(value)
    if len(text) > 300:  # of a container of several
        return f"{text[:300]}..."
    return text


def brief(error: BaseException) -> str:
    """Return the first sentence of an exception's text, without line breaks or terminal codes."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", " ".join(str(error).split()))
    sentence = re.split(r"(?<=\w)[.:] ", text)[0]
    return sentence[:150] or type(error).__name__


def joined(*notes: str) -> str:
    """Return notes on one line, without those that are empty."""
    return "; ".join(filter(None, notes))


def check_name(kind: str, name: str, names: Iterable[str]) -> str:
    """Return `name` if it is one of `names`.

    Args:
        kind: what the name stands for, in the user's words ("ELBO").
        name: the name given.
        names: the names that exist.

    Returns:
        `name`, unchanged.

    Raises:
        InputError: `name` is unknown; the message gives the nearest names, or the first ones.

    >>> check_name("ELBO", "analitic", ("trace", "analytic"))
    Traceback (most recent call last):
        ...
    pvae.core.errors.InputError: unknown ELBO 'analitic': did you mean 'analytic'?
    """
    known = list(names)
    if name in known:
        return name
    near = difflib.get_close_matches(shown(name).strip("'"), known, n=2, cutoff=0.5)
    guess = f"known: {listed(known, most=15) or 'none'}"
    if near:
        guess = f"did you mean {' or '.join(map(shown, near))}?"
    raise InputError(f"unknown {kind} {shown(name)}: {guess}")


class NotFiniteError(ArithmeticError):
    """A value is NaN or infinite where the training needs a finite one; the message names its tensor."""


class GradientError(NotFiniteError):
    """A gradient is NaN or infinite; of several processes, which sum their gradients, each raises this error."""


@contextlib.contextmanager
def naming_refused_parameters() -> Iterator[None]:
    """Replace the long error of a distribution that refuses its parameters by one line that names the parameter.

    Raises:
        NotFiniteError: a parameter of a distribution is NaN or out of range.
    """
    try:
        yield
    except ValueError as error:
        refused = re.match(r"Expected parameter (\w+) .* of distribution (\w+)\(", str(error))
        if refused is None:
            raise
        raise NotFiniteError(f"the {refused[1]} of a {refused[2]} is NaN, infinite or out of its range") from error


def check_finite(record: object, name: str = "") -> None:
    """Refuse a record that contains a NaN or an infinity, and name the value, for example "elbo_parts.rate.mean".

    Args:
        record: a number, or a mapping or a sequence of records; other values are ignored.
        name: the name of the record in messages.

    Raises:
        NotFiniteError: a number is not finite.
    """
    if isinstance(record, float) and not math.isfinite(record):
        raise NotFiniteError(f"{name} is {record}")
    if isinstance(record, (list, tuple)):
        record = dict(enumerate(record))
    if isinstance(record, Mapping):
        for key, value in record.items():
            check_finite(value, f"{name}.{key}".removeprefix("."))


def listed(names: Sequence[str], most: int = 3) -> str:
    """Return the first names, and the number of the others."""
    text = ", ".join(names[:most])
    if len(names) > most:
        text += f" and {len(names) - most} more"
    return text


def either(names: Sequence[str]) -> str:
    """Return the names as "one, two or three"."""
    *rest, last = names
    if not rest:
        return last
    return f"{', '.join(rest)} or {last}"


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that the machine or a GPU is out of memory."""
    says_so = re.search("allocate memory|out of memory|failed to map segment", str(error)) is not None
    return isinstance(error, MemoryError) or (isinstance(error, (RuntimeError, ImportError)) and says_so)


def total_memory() -> float:
    """Return the memory of the machine in bytes, or infinity where the system does not tell."""
    if not hasattr(os, "sysconf"):
        return math.inf
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
