"""A map-style `torch.utils.data.Dataset` or a `DataLoader`, read into tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pvae.core.errors import InputError, brief

__all__ = ["held_out", "read_torch"]

_AT_ONCE = 1000  # data in a batch


def read_torch(source: Any, split: str) -> tuple[Tensor, Tensor | None, str]:
    """Return the data of a source, their labels if it has any, and a note on what it leaves out.

    Args:
        source: a map-style dataset of x or (x, label), which is read in batches, or a `DataLoader`, whose workers and
            order are its own.
        split: its name, for messages.

    Raises:
        InputError: it raises an exception, holds nothing, or yields something else.
    """
    loader = source if isinstance(source, DataLoader) else DataLoader(source, batch_size=_AT_ONCE)
    data, labels = list[Tensor](), list[Tensor]()
    try:
        for batch in loader:
            items = batch if isinstance(batch, (list, tuple)) else [batch]
            others = sorted({type(one).__name__ for one in items if not isinstance(one, Tensor)})
            if len(items) not in (1, 2) or others:
                what = f"a {others[0]}" if others else f"{len(items)} tensors"
                raise InputError(f"{split} yields {what}: yield a tensor x, or x and a label")
            data.append(items[0])
            labels += items[1:]
        if not data:
            raise InputError(f"{split} holds no data")
        x, y = torch.cat(data), torch.cat(labels) if labels else None
    except InputError:
        raise
    except Exception as error:  # of any type: it is the user's code
        raise InputError(f"{split} cannot be read ({type(error).__name__}: {brief(error)})") from None
    try:
        missing = len(loader.dataset) - len(x)  # type: ignore[arg-type]
    except TypeError:  # an iterable dataset has no length
        missing = 0
    return x, y, f"{missing:,} {split} data are left out by drop_last or a sampler" if missing > 0 else ""


def held_out(data: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Return nine tenths and a tenth of data, in a random order that is always the same, and of their labels."""
    order = torch.from_numpy(np.random.RandomState(len(data)).permutation(len(data)))  # in every version of numpy
    num_test = max(2, len(data) // 10)
    parts = data[order].tensor_split([len(data) - num_test])
    of_labels = (None, None) if labels is None else labels[order].tensor_split([len(data) - num_test])
    return parts[0], parts[1], of_labels[0], of_labels[1]
