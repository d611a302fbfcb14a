"""A map-style `torch.utils.data.Dataset` or a `DataLoader`, read into tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pvae.core.errors import InputError, brief, is_out_of_memory, total_memory

__all__ = ["read_torch"]

_AT_ONCE = 1000  # data in a batch


def read_torch(source: Any, split: str, is_shuffled: bool = False) -> tuple[Tensor, Tensor | None, str]:
    """Return the data of a source, their labels or None, and a note on what the source leaves out.

    Args:
        source: a map-style dataset of x or (x, label), which is read in batches, or a `DataLoader`, whose workers and
            order are its own.
        split: the name of the split, for messages.
        is_shuffled: return the data in a random order, always the same one.

    Raises:
        InputError: the source raises an exception, holds nothing, yields something else, ends before its last batch, or
            does not fit into memory.
    """
    loader = source if isinstance(source, DataLoader) else DataLoader(source, batch_size=_AT_ONCE)
    try:
        count, num_batches = len(loader.dataset), len(loader)  # type: ignore[arg-type]
    except TypeError:  # an iterable dataset has no length
        count = num_batches = 0
    too_large = f"{split} does not fit into memory: give fewer data, by torch.utils.data.Subset, or smaller ones"
    xs, ys = list[Tensor](), list[Tensor]()
    try:
        for batch in loader:
            x, *y = _checked(batch, split)
            if not xs and 2 * count * x[0].nbytes > total_memory():  # in batches, and together
                raise InputError(too_large)
            xs.append(x)
            ys += y
        if not xs:
            raise InputError(f"{split} holds no data")
        if len(xs) < num_batches:
            raise InputError(f"{split} ends after {len(xs):,} of its {num_batches:,} batches")
        together, labels = torch.cat(xs), torch.cat(ys) if ys else None
    except InputError:
        raise
    except Exception as error:  # of any type: it is the user's code
        why = f"{split} cannot be read ({type(error).__name__}: {brief(error)})"
        raise InputError(too_large if is_out_of_memory(error) else why) from None
    if is_shuffled:  # in the same order in every version of numpy
        order = torch.from_numpy(np.random.RandomState(len(together)).permutation(len(together)))
        together, labels = together[order], None if labels is None else labels[order]
    left_out = f"{count - len(together):,} {split} data are left out by drop_last or a sampler"
    return together, labels, left_out if count > len(together) else ""


def _checked(batch: Any, split: str) -> list[Tensor]:
    """Return what a batch holds: x, or x and the labels."""
    items = list(batch) if isinstance(batch, (list, tuple)) else [batch]
    others = sorted({type(item).__name__ for item in items if not isinstance(item, Tensor)})
    if len(items) not in (1, 2) or others:
        what = f"a {others[0]}" if others else f"{len(items)} tensors"
        raise InputError(f"{split} yields {what}: yield a tensor x, or x and a label")
    return items
