"""The environment variables by which torchrun describes its processes, read without importing torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from pvae.core.errors import InputError

__all__ = ["Place", "is_first_process", "place_of"]

_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Place(NamedTuple):
    """Rank of a process, number of all processes, and rank among those of the same machine."""

    rank: int
    size: int
    local_rank: int


def place_of(environment: Mapping[str, str] | None = None) -> Place | None:
    """Return the place of this process among those that torchrun started, or None if it is the only one.

    Args:
        environment: environment variables; those of this process if left out.

    Raises:
        InputError: all variables of torchrun are set, but to values that torchrun does not set.
    """
    variables = os.environ if environment is None else environment
    if not all(name in variables for name in _NEEDED) or variables["WORLD_SIZE"] == "1":
        return None
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
    try:
        rank, size, local_rank, port = (int(variables.get(name, "0")) for name in names)
    except ValueError:
        rank, size, local_rank, port = -1, 0, 0, 0
    if not (0 <= rank < size and 0 <= local_rank < size and 0 < port < 2**16):
        values = ", ".join(f"{name}={variables.get(name, '')}" for name in names)
        raise InputError(f"the environment has {values}, which torchrun does not set: start by torchrun, or unset them")
    return Place(rank, size, local_rank)


def is_first_process() -> bool:
    """Return whether this is the first process that torchrun started, or the only one; only this one prints."""
    try:
        place = place_of()
    except InputError:
        return True
    return place is None or place.rank == 0
