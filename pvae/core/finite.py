"""What is not finite, or does not fit into memory, as one line that names the tensor."""

from __future__ import annotations

import contextlib
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence

from pvae.core.errors import TrainingError

__all__ = ["NotFiniteError", "check_finite", "is_of_memory", "listed", "named", "no_memory_for", "one_voice"]


class NotFiniteError(ArithmeticError):
    """A number that is NaN or infinite, where the training needs a finite one; the message names its tensor.

    Attributes:
        steps_since: how many steps were begun after the one that it stopped, and were not taken either.
    """

    steps_since = 0


@contextlib.contextmanager
def one_voice() -> Iterator[None]:
    """Let Pyro not warn of a NaN in a loss: here it ends the step, and is named by whoever does that."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Encountered ")
        yield


@contextlib.contextmanager
def named() -> Iterator[None]:
    """Name what a distribution refused, its parameters of NaN among them.

    Raises:
        NotFiniteError: a distribution was given parameters out of their range.
    """
    try:
        yield
    except ValueError as error:
        refusal = re.match(r"Expected parameter (\w+) .* of distribution (\w+)\(", str(error))
        if refusal is None:
            raise
        raise NotFiniteError(f"the {refusal[1]} of a {refusal[2]} is NaN, infinite or out of its range") from error


def check_finite(record: object, name: str = "") -> None:
    """Refuse a NaN or an infinity among the figures of a record, by its name: "anatomy.rate.mean".

    Args:
        record: a number, or a mapping or a sequence of records; all else is passed over.
        name: the record's own.

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
    """Whether an exception says that memory, the machine's or a GPU's, does not suffice."""
    says_so = re.search("allocate memory|out of memory|failed to map segment", str(error)) is not None
    return isinstance(error, MemoryError) or (isinstance(error, (RuntimeError, ImportError)) and says_so)


@contextlib.contextmanager
def no_memory_for(what: str) -> Iterator[None]:
    """Say what to do where memory does not suffice.

    Raises:
        TrainingError: in place of torch's exceptions.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_of_memory(error):
            raise
        raise TrainingError(f"out of memory at {what}: give a smaller --batch-size or fewer --particles") from error


def listed(names: Sequence[str]) -> str:
    """Return the first three names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
