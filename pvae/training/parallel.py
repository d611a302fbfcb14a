"""Train in several processes: torch's process group, and the share of the work of each process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from pvae.core.errors import InputError, LostError, brief, shown
from pvae.core.terminal import is_torchrun

__all__ = ["ALONE", "Share", "World", "is_lost_process", "joined", "resolve_device"]

_TIMEOUT = timedelta(minutes=5)  # for the slowest process to join


class Share(NamedTuple):
    """The rows of a batch that one process computes.

    Args:
        start: its first row.
        stop: the row after its last one.
        total: number of rows of the whole batch.
        weight: the batch mean is the sum over processes of weight times the mean over their rows. It is 0 if there are
            more processes than rows; the process then computes one row anyway, because the others wait for its
            gradients.
    """

    start: int
    stop: int
    total: int
    weight: float

    @property
    def rows(self) -> slice:
        """The slice of its rows."""
        return slice(self.start, self.stop)


@dataclass(frozen=True)
class World:
    """The processes of a training, and the rank of this process among them.

    Args:
        rank: the number of this process, from 0; only process 0 writes and prints.
        size: number of processes.
        store: key-value store shared by all processes, which outlives each of them; None if there is one process.
    """

    rank: int = 0
    size: int = 1
    store: Store | None = field(default=None, compare=False, repr=False)

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def share(self, total: int) -> Share:
        """Return this process's rows of a batch of `total` rows; processes differ by at most one row."""
        start, stop = total * self.rank // self.size, total * (self.rank + 1) // self.size
        if start == stop:
            start = min(start, total - 1)
            return Share(start, start + 1, total, 0.0)
        return Share(start, stop, total, (stop - start) / total)

    def takes(self, number: int) -> bool:
        """Whether part `number` of a divided work belongs to this process."""
        return number % self.size == self.rank

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Write into each tensor its sum over all processes, in one message for all tensors."""
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
        count = torch.tensor([float(flag)])
        self.sum_([count])
        return bool(count.item())

    def broadcast(self, name: str, compute: Callable[[], str]) -> str:
        """Return in every process what `compute` returns in the first one, which alone calls it.

        Args:
            name: a name that is not used twice.
            compute: returns a text.

        Raises:
            InputError: `compute` raised it; every process raises it.
        """
        if self.store is None:
            return compute()
        if self.is_first:
            try:
                message = "=" + compute()
            except InputError as error:
                message = f"!{error}"
            self.store.set(name, message)
        message = self.store.get(name).decode()
        if message.startswith("!"):
            raise InputError(message[1:])
        return message[1:]

    def reports_first(self) -> bool:
        """Return True in the first process that calls this, so that only one reports that another process has ended."""
        try:
            return self.store is None or self.store.add("reports", 1) == 1
        except RuntimeError:  # the store has ended too
            return True


ALONE = World()


@contextmanager
def joined(device: str | None = None, environment: Mapping[str, str] = os.environ) -> Iterator[World]:
    """Join the processes that torchrun started, if it did.

    Args:
        device: the name of a device; the processes use nccl if it is a GPU ("cuda...", or None or "auto" if there are
            GPUs), else gloo.
        environment: the environment variables that torchrun sets.

    Raises:
        InputError: the processes do not find each other.
        LostError: another process ended early.
    """
    if not is_torchrun(environment):
        yield ALONE
        return
    is_on_gpus = torch.cuda.is_available() and (device in (None, "auto") or str(device).startswith("cuda"))
    # A restart by torchrun keeps the store and the addresses of ended processes in it; a prefix for each attempt hides
    # them.
    try:
        store, rank, size = next(rendezvous("env://", timeout=_TIMEOUT))
    except (RuntimeError, ValueError, OSError) as error:
        raise InputError(f"the processes do not find each other ({brief(error)}): start them by torchrun") from None
    fresh = PrefixStore(f"attempt {environment.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    if is_on_gpus:
        torch.cuda.set_device(int(environment.get("LOCAL_RANK", "0")))
    # gloo too, since sums over images are on the CPU.
    dist.init_process_group("cpu:gloo,cuda:nccl" if is_on_gpus else "gloo", store=fresh, rank=rank, world_size=size)
    world = World(rank, size, fresh)
    try:
        yield world
        dist.barrier()  # a process that leaves early closes connections that the others still use
    except RuntimeError as error:
        if isinstance(error, LostError) or not is_lost_process(error):
            raise
        why = "another process of this command has ended, and so does this one: start it again"
        raise LostError(why if world.reports_first() else "") from error
    finally:
        dist.destroy_process_group()


def is_lost_process(error: BaseException) -> bool:
    """Whether an exception of torch means that another process has ended, or does not answer."""
    return isinstance(error, dist.DistError) or any(word in str(error) for word in ("gloo", "NCCL", "Connection"))


def resolve_device(name: str) -> torch.device:
    """Return the device of that name; "auto" is the GPU if there is one.

    Raises:
        InputError: the name is unknown, or this machine has no such device.
    """
    local = os.environ.get("LOCAL_RANK", "")  # set by torchrun: the number of the process on this machine
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and local.isdigit():
        name = f"cuda:{local}"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise InputError(f"unknown device {shown(name)}: --device takes auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device {name}: torch sees {torch.cuda.device_count()} GPUs here; use --device cpu or auto")
    return device
