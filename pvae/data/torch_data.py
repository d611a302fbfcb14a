"""A map-style `torch.utils.data.Dataset` or a `DataLoader`, read into tensors."""

from __future__ import annotations

import mmap
import os
import tempfile
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pvae.core.errors import InputError, brief

__all__ = ["in_random_order", "is_in_file", "read_torch"]

_AT_ONCE = 1000  # data in a batch, and neighbours in a file that are read together
_PARTS = 16  # of _AT_ONCE data each, which are shuffled together


def read_torch(source: Any, split: str, is_shuffled: bool = False) -> tuple[Tensor, Tensor | None, str]:
    """Return the data of a source, their labels or None, and a note on what the source leaves out.

    Args:
        source: a map-style dataset of x or (x, label), which is read in batches, or a `DataLoader`, whose workers and
            order are its own.
        split: the name of the split, for messages.
        is_shuffled: return the data in a random order, always the same one; data larger than memory always are.

    Raises:
        InputError: the source raises an exception, holds nothing, yields something else, ends before its last batch, or
            is larger than memory and leaves some data out.
    """
    loader = source if isinstance(source, DataLoader) else DataLoader(source, batch_size=_AT_ONCE)
    try:
        count, num_batches = len(loader.dataset), len(loader)  # type: ignore[arg-type]
    except TypeError:  # an iterable dataset has no length
        count = num_batches = 0
    xs, ys, on_disk = list[Tensor](), list[Tensor](), None
    num_read = batches_read = 0
    try:
        for batch in loader:
            x, *y = _checked(batch, split)
            if not num_read and count * x[0].nbytes > _large():
                on_disk = _OnDisk(count, x[0])
            if on_disk is None:
                xs.append(x)
            else:
                on_disk.write(num_read, x)
            ys += y
            num_read, batches_read = num_read + len(x), batches_read + 1
        if not num_read:
            raise InputError(f"{split} holds no data")
        if batches_read < num_batches:
            raise InputError(f"{split} ends after {batches_read:,} of its {num_batches:,} batches")
        if on_disk is not None and num_read != count:
            raise InputError(
                f"{split} yields {num_read:,} of {count:,} data: of data larger than memory all are needed"
            )
        together, labels = torch.cat(xs) if on_disk is None else on_disk.x, torch.cat(ys) if ys else None
    except InputError:
        raise
    except Exception as error:  # of any type: it is the user's code
        raise InputError(f"{split} cannot be read ({type(error).__name__}: {brief(error)})") from None
    if is_shuffled or on_disk is not None:
        order = _order(num_read)
        together = together[order] if on_disk is None else together
        labels = None if labels is None else labels[order]
    left_out = f"{count - num_read:,} {split} data are left out by drop_last or a sampler"
    return together, labels, left_out if count > num_read else ""


def _checked(batch: Any, split: str) -> list[Tensor]:
    """Return what a batch holds: x, or x and the labels."""
    items = list(batch) if isinstance(batch, (list, tuple)) else [batch]
    others = sorted({type(item).__name__ for item in items if not isinstance(item, Tensor)})
    if len(items) not in (1, 2) or others:
        what = f"a {others[0]}" if others else f"{len(items)} tensors"
        raise InputError(f"{split} yields {what}: yield a tensor x, or x and a label")
    return items


class _OnDisk:
    """Data larger than memory in a temporary file, which the system removes when its tensors are gone.

    Images as bytes stay bytes, and other data become float32. They are in a random order, always the same one.

    Attributes:
        x: the data, (count, ...).
    """

    def __init__(self, count: int, datum: Tensor) -> None:
        dtype = datum.dtype if datum.dtype == torch.uint8 and datum.dim() == 3 else torch.float32
        shape = torch.Size((count, *datum.shape))
        with tempfile.NamedTemporaryFile(prefix="pvae-") as file:
            file.truncate(shape.numel() * dtype.itemsize)
            memory = mmap.mmap(file.fileno(), 0)
            self.x = torch.from_file(file.name, shared=True, size=shape.numel(), dtype=dtype).view(shape)
        if hasattr(
            memory, "madvise"
        ):  # `memory` is for writing single rows: the system shall not read their neighbours
            memory.madvise(mmap.MADV_RANDOM)
        self._rows = torch.frombuffer(memory, dtype=dtype).view(shape)
        self._places = _order(count).argsort()

    def write(self, start: int, x: Tensor) -> None:
        """Write the data from number `start` on."""
        self._rows[self._places[start : start + len(x)]] = x.to(self._rows.dtype)


def is_in_file(data: Tensor) -> bool:
    """Return whether a tensor lies in a file, as data larger than memory do."""
    return data.untyped_storage().filename is not None


def in_random_order(data: Tensor) -> Tensor:
    """Return the indices of data in a random order for an epoch, int64 (N,).

    Data in a file, which were written in a random order, are visited in parts that a disk reads in one piece: the parts
    in a random order, and the data of every few parts in a random order.
    """
    if not is_in_file(data):
        return torch.randperm(len(data))
    parts = torch.arange(len(data)).split(_AT_ONCE)
    order = torch.cat([parts[number] for number in torch.randperm(len(parts)).tolist()])
    return torch.cat([part[torch.randperm(len(part))] for part in order.split(_PARTS * _AT_ONCE)])


def _order(count: int) -> Tensor:
    """Return a permutation of `count` data, the same in every version of numpy."""
    return torch.from_numpy(np.random.RandomState(count).permutation(count))


def _large() -> float:
    """Return half of the memory, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2 if hasattr(os, "sysconf") else float("inf")
