"""Several processes that work as one: torch's process group, and what each of them takes of the work."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from pvae.core.errors import InputError, LostError, brief
from pvae.core.torchrun import place_of

__all__ = ["ALONE", "Share", "World", "is_of_processes", "joined"]

_PATIENCE = timedelta(minutes=5)  # for the slowest process to come


class Share(NamedTuple):
    """A process's rows of a batch.

    Args:
        start: its first row.
        stop: the row after its last one.
        total: rows of the whole batch.
        weight: of the mean over its rows in the mean over the batch; 0 where it has no row: it then computes
            one anyway, since the others wait for its part in the sum of the gradients.
    """

    start: int
    stop: int
    total: int
    weight: float

    @property
    def rows(self) -> slice:
        """The rows, of something that has one for each of the batch."""
        return slice(self.start, self.stop)


@dataclass(frozen=True)
class World:
    """The processes of a training, and which of them this one is.

    Args:
        rank: its number, from 0; the first one alone writes and prints.
        size: how many there are.
        store: what they all know, which outlives any of them.
    """

    rank: int = 0
    size: int = 1
    store: Store | None = field(default=None, compare=False, repr=False)

    @property
    def is_first(self) -> bool:
        """Whether it is the one that writes."""
        return self.rank == 0

    def share(self, total: int) -> Share:
        """Return this process's rows of a batch of `total`; processes differ by at most one row."""
        start, stop = total * self.rank // self.size, total * (self.rank + 1) // self.size
        if start == stop:
            start = min(start, total - 1)
            return Share(start, start + 1, total, 0.0)
        return Share(start, stop, total, (stop - start) / total)

    def takes(self, number: int) -> bool:
        """Whether the part of that number, of work in many equal parts, is this process's."""
        return number % self.size == self.rank

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Write into each tensor the sum over all processes; one message for all of them."""
        if self.size == 1:
            return
        bucket = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(bucket)
        for tensor, part in zip(tensors, bucket.split([tensor.numel() for tensor in tensors])):
            tensor.copy_(part.view(tensor.shape))

    def any(self, flag: bool) -> bool:
        """Return whether the flag is true in any process."""
        if self.size == 1:
            return flag
        found = torch.tensor([float(flag)])
        self.sum_([found])
        return bool(found.item())

    def agreed(self, name: str, text: str) -> str:
        """Return the first process's text; each name is for one text."""
        if self.store is None:
            return text
        if self.is_first:
            self.store.set(name, text)
        return self.store.get(name).decode()

    def speaks_first(self) -> bool:
        """Whether no other process has asked this before: of those that are left one tells that another has gone."""
        try:
            return self.store is None or self.store.add("spoken", 1) == 1
        except RuntimeError:  # the store has gone too
            return True


ALONE = World()


@contextmanager
def joined(device: str | None = None, environment: Mapping[str, str] = os.environ) -> Iterator[World]:
    """Join the processes that torchrun started, or be alone.

    Args:
        device: a name that starts with "cuda", or None or "auto" where there are GPUs: they talk by nccl, else by gloo.
        environment: where torchrun says how many they are.

    Raises:
        InputError: they do not find each other.
        LostError: one of them has ended before its time.
    """
    place = place_of(environment)
    if place is None:
        yield ALONE
        return
    is_on_gpus = torch.cuda.is_available() and (device in (None, "auto") or str(device).startswith("cuda"))
    # torchrun keeps its store over a restart, and with it the addresses of the processes that have gone.
    try:
        store, rank, size = next(rendezvous("env://", timeout=_PATIENCE))
    except (RuntimeError, ValueError, OSError) as error:
        raise InputError(f"the processes do not find each other ({brief(error)}): start them by torchrun") from None
    fresh = PrefixStore(f"attempt {environment.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    if is_on_gpus:
        torch.cuda.set_device(place.local_rank)
    # Sums over images lie on the CPU wherever the VAE is.
    dist.init_process_group("cpu:gloo,cuda:nccl" if is_on_gpus else "gloo", store=fresh, rank=rank, world_size=size)
    world = World(rank, size, fresh)
    try:
        yield world
        dist.barrier()  # who leaves first closes connections that the others still hear of
    except RuntimeError as error:
        if isinstance(error, LostError) or not is_of_processes(error):
            raise
        why = "another process of this command has ended, and so does this one: start it again"
        raise LostError(why if world.speaks_first() else "") from error
    finally:
        dist.destroy_process_group()


def is_of_processes(error: BaseException) -> bool:
    """Whether an exception is torch's way to say that another process has gone, or does not answer."""
    return isinstance(error, dist.DistError) or any(word in str(error) for word in ("gloo", "NCCL", "Connection"))
