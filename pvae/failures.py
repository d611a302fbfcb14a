"""What is not finite, or does not fit into memory, as one line that names the tensor."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator, Sequence

import torch

from pvae.errors import TrainingError

__all__ = ["NotFiniteError", "is_of_memory", "listed", "named", "no_memory_for", "one_voice"]


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


def is_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory, the machine's or a GPU's, does not suffice."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in str(error)


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
