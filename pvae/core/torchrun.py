"""What torchrun says of the processes of a command, read without torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from pvae.core.errors import InputError

__all__ = ["Place", "is_first_process", "place_of"]

_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Place(NamedTuple):
    """Which of how many processes this one is, and which of this machine's."""

    rank: int
    size: int
    local_rank: int


def place_of(environment: Mapping[str, str] | None = None) -> Place | None:
    """Return the place of this process among those that torchrun started, or None if it is alone.

    Args:
        environment: this process's if left out.

    Raises:
        InputError: the variables that torchrun sets are all there, and cannot be.
    """
    found = os.environ if environment is None else environment
    if not all(name in found for name in _NEEDED) or found["WORLD_SIZE"] == "1":
        return None
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
    try:
        rank, size, local_rank, port = (int(found.get(name, "0")) for name in names)
    except ValueError:
        rank, size, local_rank, port = -1, 0, 0, 0
    if not (0 <= rank < size and 0 <= local_rank < size and 0 < port < 2**16):
        given = ", ".join(f"{name}={found.get(name, '')}" for name in names)
        raise InputError(f"{given} in the environment are no process of torchrun: start it by torchrun, or unset them")
    return Place(rank, size, local_rank)


def is_first_process() -> bool:
    """Whether this process is the one that prints, of those that torchrun may have started."""
    try:
        place = place_of()
    except InputError:
        return True
    return place is None or place.rank == 0
