"""`check_domain`: whether data can be values of a likelihood."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pvae.core.errors import InputError
from pvae.data.dataset import Column, value_name

__all__ = ["check_domain"]

_ROWS = 1000  # data that are checked at once


def check_domain(
    check: Callable[[Tensor], Tensor] | None,
    values: Tensor,
    source: str,
    names: str | Sequence[str],
    columns: Sequence[Column] = (),
) -> None:
    """Check that data can be values of a likelihood.

    Args:
        check: raises an `InputError` if a batch is outside the domain of the likelihood; None for a likelihood that has
            no such method.
        values: x, (N, *shape).
        source: where the data are from, for the message.
        names: the name of each datum, or of their split.
        columns: the columns, if the data are a table.

    Raises:
        InputError: a datum is outside the domain; the message names the first such datum, and its value.
    """
    if check is None:
        return
    for start in range(0, len(values), _ROWS):
        with contextlib.suppress(InputError):
            check(values[start : start + _ROWS])
            continue
        for row in range(start, start + _ROWS):
            try:
                check(values[row : row + 1])
            except InputError as error:
                name = f"{names}[{row}]" if isinstance(names, str) else names[row]
                place = _first_outside(check, values[row])
                where = f"{value_name(place, values.shape[1:], columns)} of {name} is {values[row].flatten()[place]:g}"
                raise InputError(f"{source}: {where}, and {error}") from None


def _first_outside(check: Callable[[Tensor], Tensor], datum: Tensor) -> int:
    """Return the flat index of the first value that is outside the domain, by bisection; 0 is inside."""
    low, high = 0, datum.numel()  # with the first `high` values, and 0 for the others, the check fails
    while low + 1 < high:
        middle = (low + high) // 2
        part = torch.where(torch.arange(datum.numel(), device=datum.device).view(datum.shape) < middle, datum, 0)
        try:
            check(part[None])
            low = middle
        except InputError:
            high = middle
    return low
