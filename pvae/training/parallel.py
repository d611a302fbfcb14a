"""Several processes that train one VAE through torch.distributed, each on its rows of every batch.

All processes have the same random state. Each draws the noise of the whole batch and keeps its own rows, so that N
processes compute the same as one process, to rounding.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad
from torch.utils._python_dispatch import TorchDispatchMode

from pvae.core.batch import LossAndTerms, Terms
from pvae.core.errors import InputError, LostError, brief
from pvae.core.terminal import is_torchrun
from pvae.elbos.base import PerDatumELBO, PyroFunction

__all__ = ["ALONE", "Share", "SharedELBO", "WholeBatchNoise", "World", "is_lost_process", "joined_processes"]


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


class World(NamedTuple):
    """The processes of a training, and the rank of this process among them.

    Args:
        rank: the number of this process, from 0; only process 0 writes and prints.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

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
        count = torch.tensor([float(flag)])
        self.sum_([count])
        return bool(count.item())

    def broadcast(self, compute: Callable[[], str]) -> str:
        """Return in every process the text that `compute` returns in the first one, which alone calls it.

        Raises:
            InputError: `compute` raised it; every process raises it.
        """
        message: list[Any] = [None]
        if self.is_first:
            try:
                message = [compute()]
            except InputError as error:
                message = [error]
        if self.size > 1:
            dist.broadcast_object_list(message)
        if isinstance(message[0], InputError):
            raise message[0]
        return str(message[0])


ALONE = World()


@contextmanager
def joined_processes(device: str | None = None) -> Iterator[World]:
    """Join the processes that torchrun started, if it did.

    Args:
        device: the name of a device; the processes use nccl if it is a GPU ("cuda...", or None or "auto" if there are
            GPUs), else gloo.

    Raises:
        InputError: the processes do not find each other.
        LostError: another process ended early.
    """
    if not is_torchrun():
        yield ALONE
        return
    is_on_gpus = torch.cuda.is_available() and (device in (None, "auto") or str(device).startswith("cuda"))
    if is_on_gpus:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    try:
        # gloo too, since sums over images are on the CPU
        dist.init_process_group("cpu:gloo,cuda:nccl" if is_on_gpus else "gloo")
    except (RuntimeError, ValueError) as error:
        raise InputError(f"the processes do not find each other ({brief(error)}): start them by torchrun") from None
    try:
        yield World(dist.get_rank(), dist.get_world_size())
        dist.barrier()  # a process that ends early closes connections that the others still use
    except RuntimeError as error:
        if isinstance(error, LostError) or not is_lost_process(error):
            raise
        raise LostError("another process of this command has ended, and so does this one: start it again") from error
    finally:
        dist.destroy_process_group()


def is_lost_process(error: BaseException) -> bool:
    """Whether an exception of torch means that another process has ended, or does not answer."""
    return isinstance(error, dist.DistError) or any(word in str(error) for word in ("gloo", "NCCL", "Connection"))


class SharedELBO(PerDatumELBO):
    """An ELBO of several processes: all are given the whole batch, and each computes its own rows.

    The losses and the terms of all processes sum to those of the batch, and their gradients to its gradient. z is the
    same as if one process drew it for the whole batch.

    Args:
        elbo: its loss is a mean over the batch of one term for each datum, so it has no free bits.
        world: the processes.
    """

    def __init__(self, elbo: PerDatumELBO, world: World) -> None:
        super().__init__(elbo.num_particles, beta=elbo.beta)
        self.elbo, self.world = elbo, world

    def loss_and_terms(
        self, model: PyroFunction, guide: PyroFunction, *batch: Tensor, beta: float | Tensor | None = None
    ) -> LossAndTerms:
        """Return this process's part in the loss of x (B, *D), and in the terms (B,), which are 0 for other rows."""
        share = self.world.share(len(batch[0]))
        own = (part if len(part) == 1 else part[share.rows] for part in batch)  # one label is that of all
        with WholeBatchNoise(share):
            loss, (distortion, rate) = self.elbo.loss_and_terms(model, guide, *own, beta=beta)
        if not share.weight:
            distortion, rate = torch.zeros_like(distortion), torch.zeros_like(rate)
        around = share.start, share.total - share.stop
        return LossAndTerms(share.weight * loss, Terms(pad(distortion, around), pad(rate, around)))


class WholeBatchNoise(TorchDispatchMode):
    """Draw normal noise of shape (..., B / N, L) as the rows of noise of shape (..., B, L).

    Args:
        share: which rows.

    Raises:
        InputError: (inside the block) other random numbers are drawn, whose rows are not known.
    """

    def __init__(self, share: Share) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.share = share

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **(kwargs or {}))
        if func is torch.ops.aten.normal_.default and len(args) == 1 and not kwargs:
            return args[0].copy_(self._rows_of_noise(args[0]))
        if func is torch.ops.aten.normal.Tensor_Tensor and not kwargs:
            mean, std = args
            return self._rows_of_noise(mean) * std + mean
        raise InputError(f"several processes cannot draw by {func}: train it in one process")

    def _rows_of_noise(self, like: Tensor) -> Tensor:
        share = self.share
        if like.dim() < 2 or like.shape[-2] != share.stop - share.start:
            raise InputError(f"several processes cannot share noise of shape {tuple(like.shape)}: train it in one")
        whole = like.new_empty((*like.shape[:-2], share.total, like.shape[-1])).normal_()
        return whole[..., share.rows, :]
