"""Checks of the values of a tensor: run at once, or collected by a recording, which runs them at each replay."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import NamedTuple

from torch import Tensor

__all__ = ["Check", "deferred", "require"]


class Check(NamedTuple):
    """A condition on a tensor, and the error to raise where it is false."""

    holds: Callable[[Tensor], Tensor]
    x: Tensor
    error: Callable[[], Exception]


_collected: ContextVar[list[Check] | None] = ContextVar("_collected", default=None)


def require(holds: Callable[[Tensor], Tensor], x: Tensor, error: Callable[[], Exception]) -> None:
    """Raise `error()` unless `holds(x)`; inside `deferred`, only collect the check.

    Args:
        holds: returns a boolean scalar.
        x: the tensor to check.
        error: creates the exception; it must hold no tensor, since a recording keeps it.
    """
    checks = _collected.get()
    if checks is not None:
        checks.append(Check(holds, x, error))
    elif not bool(holds(x)):
        raise error()


@contextlib.contextmanager
def deferred() -> Iterator[list[Check]]:
    """Collect the checks of this block in a list, instead of running them."""
    checks: list[Check] = []
    token = _collected.set(checks)
    try:
        yield checks
    finally:
        _collected.reset(token)
