"""`NotFiniteError`, and context managers that raise it in place of longer errors."""

from __future__ import annotations

import contextlib
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence

__all__ = ["GradientError", "NotFiniteError", "check_finite", "listed", "naming_refused_parameters", "no_nan_warnings"]


class NotFiniteError(ArithmeticError):
    """A value is NaN or infinite where the training needs a finite one; the message names its tensor."""


class GradientError(NotFiniteError):
    """A gradient is NaN or infinite; of several processes, which sum their gradients, each raises this error."""


@contextlib.contextmanager
def no_nan_warnings() -> Iterator[None]:
    """Silence Pyro's warning of a NaN in a loss, since the step raises `NotFiniteError` anyway."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Encountered ")
        yield


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


def listed(names: Sequence[str]) -> str:
    """Return the first three names, and the number of the others."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
