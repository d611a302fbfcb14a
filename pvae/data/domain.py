"""`check_domain`: whether data can be values of a likelihood."""

from __future__ import annotations

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
    for start in range(0, len(values) if check else 0, _ROWS):
        part = values[start : start + _ROWS]
        if _fault(check, part) is None:
            continue
        row = next(row for row in range(len(part)) if _fault(check, part[row : row + 1]))
        datum, places = part[row], torch.arange(part[row].numel(), device=part.device).view(part[row].shape)
        alone = (torch.where(places == place, datum, 0)[None] for place in range(datum.numel()))  # 0 is inside
        faults = ((place, fault) for place, one in enumerate(alone) if (fault := _fault(check, one)))
        place, fault = next(faults, (0, _fault(check, datum[None])))
        name = f"{names}[{start + row}]" if isinstance(names, str) else names[start + row]
        where = f"{value_name(place, datum.shape, columns)} of {name} is {datum.flatten()[place]:g}"
        raise InputError(f"{source}: {where}, and {fault}")


def _fault(check: Callable[[Tensor], Tensor] | None, values: Tensor) -> InputError | None:
    """Return the error of a check, or None."""
    try:
        if check:
            check(values)
    except InputError as error:
        return error
    return None
