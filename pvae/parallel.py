"""Several processes that train as one: torch's process group, each process's share of a batch, the noise of all of it.

The randomness is the run's, and not the processes': each draws the noise of the whole batch from the same generator and
keeps its own rows, so that N processes compute what one computes, to rounding.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pvae.errors import InputError
from pvae.handwritten import Terms
from pvae.perdatum import PerDatumELBO, PyroFunction

__all__ = ["ALONE", "Share", "SharedELBO", "WholeBatchNoise", "World", "is_of_processes", "joined"]

_ATEN = torch.ops.aten


class Share(NamedTuple):
    """A process's rows of a batch.

    Args:
        start: its first row.
        stop: the row after its last one.
        total: rows of the whole batch.
        weight: of the mean over its rows in the mean over the batch; 0 where it has no row, and looks at one all the
            same, since its part in the sum of the gradients is waited for.
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
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether it is the one that writes."""
        return self.rank == 0

    def share(self, total: int) -> Share:
        """Return this process's rows of a batch of so many: they differ by at most one row between processes."""
        start, stop = total * self.rank // self.size, total * (self.rank + 1) // self.size
        if start == stop:
            start = min(start, total - 1)
            return Share(start, start + 1, total, 0.0)
        return Share(start, stop, total, (stop - start) / total)

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Write into each tensor the sum over all processes; one message for all of them."""
        if self.size == 1:
            return
        bucket = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(bucket)
        for tensor, part in zip(tensors, bucket.split([tensor.numel() for tensor in tensors])):
            tensor.copy_(part.view(tensor.shape))

    def agreed(self, texts: tuple[str, ...]) -> tuple[str, ...]:
        """Return the first process's texts."""
        if self.size == 1:
            return texts
        given = list(texts)
        dist.broadcast_object_list(given)
        return tuple(given)


ALONE = World()


@contextmanager
def joined(device: str | None = None, environment: Mapping[str, str] = os.environ) -> Iterator[World]:
    """Join the processes that torchrun started, or be alone.

    Args:
        device: a name that starts with "cuda", or None or "auto" where there are GPUs: they talk by nccl, else by gloo.
        environment: where torchrun says how many they are.
    """
    size = int(environment.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    is_on_gpus = torch.cuda.is_available() and (device in (None, "auto") or str(device).startswith("cuda"))
    dist.init_process_group("nccl" if is_on_gpus else "gloo")
    try:
        yield World(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()


def is_of_processes(error: BaseException) -> bool:
    """Whether an exception is torch's way to say that another process has gone, or does not answer."""
    return isinstance(error, dist.DistError) or any(word in str(error) for word in ("gloo", "NCCL", "Connection"))


class SharedELBO(PerDatumELBO):
    """An ELBO of a process's rows of a batch: its loss is their part in the mean over the whole batch.

    The losses of all processes sum to the loss of the batch, and so do their gradients; z is drawn as one process that
    has the whole batch would draw it.

    Args:
        elbo: a mean over the batch of what each datum gives.

    Attributes:
        share: the rows that the next batch holds.
    """

    def __init__(self, elbo: PerDatumELBO) -> None:
        super().__init__(elbo.num_particles, elbo.beta)  # type: ignore[arg-type]
        if elbo.free_bits:
            raise InputError("--free-bits looks at the mean rate of a whole batch: train it in one process")
        self.elbo = elbo
        self.share = Share(0, 1, 1, 1.0)

    def differentiable_loss(self, model: PyroFunction, guide: PyroFunction, x: Tensor) -> Tensor:
        """Return the part in the loss of the rows x (B / N, C, H, W)."""
        before, self.elbo.beta = self.elbo.beta, self.beta
        try:
            with WholeBatchNoise(self.share):
                loss = self.elbo.differentiable_loss(model, guide, x)
        finally:
            self.elbo.beta = before
        self.terms = Terms(*self.elbo.terms[:2])
        return self.share.weight * loss


class WholeBatchNoise(TorchDispatchMode):
    """Draw normal noise of shape (..., B / N, L) as rows of what (..., B, L) would be.

    Args:
        share: which rows.

    Raises:
        InputError: (inside) something else is drawn, of which it is not known where the rows lie.
    """

    def __init__(self, share: Share) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.share = share

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **(kwargs or {}))
        if func is _ATEN.normal_.default:
            target, mean, std = (*args, 0.0, 1.0)[:3] if len(args) < 3 else args
            return target.copy_(self._rows_of_noise(target) * std + mean)
        if func is _ATEN.normal.Tensor_Tensor:
            mean, std = args
            return self._rows_of_noise(mean) * std + mean
        raise InputError(f"several processes cannot draw by {func}: train it in one process")

    def _rows_of_noise(self, like: Tensor) -> Tensor:
        share = self.share
        if like.dim() < 2 or like.shape[-2] != share.stop - share.start:
            raise InputError(f"several processes cannot share noise of shape {tuple(like.shape)}: train it in one")
        whole = like.new_empty((*like.shape[:-2], share.total, like.shape[-1])).normal_()
        return whole[..., share.rows, :]
