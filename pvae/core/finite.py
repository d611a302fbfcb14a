"""Values that are not finite, and memory that does not suffice, as errors of one line that name the tensor."""

from __future__ import annotations

import contextlib
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence

from pvae.core.errors import TrainingError

__all__ = ["NotFiniteError", "check_finite", "is_of_memory", "listed", "named", "no_memory_for", "one_voice"]


class NotFiniteError(ArithmeticError):
    """A value is NaN or infinite where the training needs a finite one; the message names its tensor."""


@contextlib.contextmanager
def one_voice() -> Iterator[None]:
    """Silence Pyro's warning of a NaN in a loss, because the step that ends with it raises `NotFiniteError`."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Encountered ")
        yield


@contextlib.contextmanager
def named() -> Iterator[None]:
    """Replace the error of a distribution that refuses its parameters by one that names them.

    Raises:
        NotFiniteError: a distribution was given parameters that are NaN or out of their range.
    """
    try:
        yield
    except ValueError as error:
        refusal = re.match(r"Expected parameter (\w+) .* of distribution (\w+)\(", str(error))
        if refusal is None:
            raise
        raise NotFiniteError(f"the {refusal[1]} of a {refusal[2]} is NaN, infinite or out of its range") from error


def check_finite(record: object, name: str = "") -> None:
    """Refuse a record that contains a NaN or an infinity, and name the value: "anatomy.rate.mean".

    Args:
        record: a number, or a mapping or a sequence of records; other values are ignored.
        name: the name of the record.

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


def is_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that the memory of the machine or of a GPU does not suffice."""
    says_so = re.search("allocate memory|out of memory|failed to map segment", str(error)) is not None
    return isinstance(error, MemoryError) or (isinstance(error, (RuntimeError, ImportError)) and says_so)


@contextlib.contextmanager
def no_memory_for(what: str) -> Iterator[None]:
    """Replace torch's exceptions for missing memory by one that says what to do.

    Args:
        what: what needed the memory.

    Raises:
        TrainingError: memory does not suffice.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_of_memory(error):
            raise
        raise TrainingError(f"out of memory at {what}: give a smaller --batch-size or fewer --particles") from error


def listed(names: Sequence[str]) -> str:
    """Return the first three names and the number of the others."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
