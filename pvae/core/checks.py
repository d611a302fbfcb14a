"""Checks of the values of a tensor: made at once, or collected by a recording, which repeats them at each replay."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import NamedTuple

from torch import Tensor

__all__ = ["Check", "deferred", "require"]


class Check(NamedTuple):
    """What must hold of a tensor, and what is raised where it does not."""

    holds: Callable[[Tensor], Tensor]
    x: Tensor
    error: Callable[[], Exception]


_later: ContextVar[list[Check] | None] = ContextVar("_later", default=None)


def require(holds: Callable[[Tensor], Tensor], x: Tensor, error: Callable[[], Exception]) -> None:
    """Raise `error()` unless `holds(x)`; inside `deferred` leave that to its caller.

    Args:
        holds: gives a boolean scalar.
        x: an input of the step.
        error: makes the exception; it must hold no tensor, since a recording keeps it.
    """
    checks = _later.get()
    if checks is not None:
        checks.append(Check(holds, x, error))
    elif not bool(holds(x)):
        raise error()


@contextlib.contextmanager
def deferred() -> Iterator[list[Check]]:
    """Collect what is required in this block instead of looking at it."""
    checks: list[Check] = []
    token = _later.set(checks)
    try:
        yield checks
    finally:
        _later.reset(token)
