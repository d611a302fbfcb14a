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

_AT_ONCE = 1000  # data in a batch, and data of a file that are read together
_PARTS = 16  # of _AT_ONCE data each, that are shuffled together


def read_torch(source: Any, split: str, is_shuffled: bool = False) -> tuple[Tensor, Tensor | None, str]:
    """Return the data of a source, their labels if it has any, and a note on what it leaves out.

    Args:
        source: a map-style dataset of x or (x, label), which is read in batches, or a `DataLoader`, whose workers and
            order are its own.
        split: its name, for messages.
        is_shuffled: return them in a random order, always the same one; so are data that do not fit into memory.

    Raises:
        InputError: it raises an exception, holds nothing, yields something else, ends before its last batch, or is
            larger than memory and leaves some data out.
    """
    loader = source if isinstance(source, DataLoader) else DataLoader(source, batch_size=_AT_ONCE)
    try:
        count, num_batches = len(loader.dataset), len(loader)  # type: ignore[arg-type]
    except TypeError:  # an iterable dataset has no length
        count = num_batches = 0
    data, labels, in_file, rows, places = list[Tensor](), list[Tensor](), None, torch.empty(0), torch.empty(0)
    read = batches_read = 0
    try:
        for batch in loader:
            items = batch if isinstance(batch, (list, tuple)) else [batch]
            others = sorted({type(one).__name__ for one in items if not isinstance(one, Tensor)})
            if len(items) not in (1, 2) or others:
                what = f"a {others[0]}" if others else f"{len(items)} tensors"
                raise InputError(f"{split} yields {what}: yield a tensor x, or x and a label")
            x = items[0]
            if not read and count * x[0].nbytes > _large():
                kind = x.dtype if x.dtype == torch.uint8 and x.dim() == 4 else torch.float32
                in_file, rows = _in_temporary_file((count, *x.shape[1:]), kind)
                places = _order(count).argsort()
            if in_file is None:
                data.append(x)
            else:
                rows[places[read : read + len(x)]] = x.to(rows.dtype)
            read, batches_read = read + len(x), batches_read + 1
            labels += items[1:]
        if not read:
            raise InputError(f"{split} holds no data")
        if batches_read < num_batches:
            raise InputError(f"{split} ends after {batches_read:,} of its {num_batches:,} batches")
        if in_file is not None and read != count:
            raise InputError(f"{split} yields {read:,} of {count:,} data: of data larger than memory all are needed")
        x, y = torch.cat(data) if in_file is None else in_file, torch.cat(labels) if labels else None
    except InputError:
        raise
    except Exception as error:  # of any type: it is the user's code
        raise InputError(f"{split} cannot be read ({type(error).__name__}: {brief(error)})") from None
    if is_shuffled or in_file is not None:
        order = _order(read)
        x, y = x[order] if in_file is None else x, None if y is None else y[order]
    return x, y, f"{count - read:,} {split} data are left out by drop_last or a sampler" if count > read else ""


def is_in_file(data: Tensor) -> bool:
    """Return whether the memory of a tensor is a file, as that of data larger than memory."""
    return data.untyped_storage().filename is not None


def in_random_order(data: Tensor) -> Tensor:
    """Return the indices of data in a random order for an epoch, int64 (N,).

    Data in a file, whose order is random once and for all, are visited in parts that lie together, which a disk reads
    in one piece: the parts in a random order, and the data of every few parts in a random order.
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


def _in_temporary_file(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return a tensor of zeros whose memory is a file, and the same file as another tensor, for writing rows anywhere.

    The system removes the file when both are gone. Of the second it does not read ahead: around each row that is
    written it would read a hundred others.
    """
    size = torch.Size(shape).numel()
    with tempfile.NamedTemporaryFile(prefix="pvae-") as file:
        file.truncate(size * dtype.itemsize)
        memory = mmap.mmap(file.fileno(), 0)
        if hasattr(memory, "madvise"):
            memory.madvise(mmap.MADV_RANDOM)
        rows = torch.frombuffer(memory, dtype=dtype)
        return torch.from_file(file.name, shared=True, size=size, dtype=dtype).view(shape), rows.view(shape)
