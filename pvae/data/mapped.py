"""Batches of an iterable, checked and alike, written into a file that is mapped into memory."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pvae.core.errors import InputError, brief
from pvae.core.files import cache_dir


def in_file(batches: Iterable[Sequence[Tensor]]) -> tuple[Tensor, Tensor | None]:
    """Write x of all batches, (x,) or (x, y), into a file; return it mapped into memory, (N, *shape), and y or None.

    Raises:
        InputError: the file cannot be written.
    """
    folder, labels, count = cache_dir(), list[Tensor](), 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            for x, *y in batches:
                file.write(x.contiguous().numpy().tobytes())
                count += len(x)
                labels += y
            file.flush()
            if not count:
                return torch.empty(0, 0), None
            rows = np.memmap(file, x.numpy().dtype, "c", shape=(count, *x.shape[1:]))  # torch warns of read-only memory
    except OSError as error:
        raise InputError(f"{folder} cannot hold the data ({error.strerror or error}): set XDG_CACHE_HOME") from None
    return torch.from_numpy(rows), torch.cat(labels) if labels else None


def batches_of(
    source: Iterable[Any], name: str, on_batch: Callable[[], object] = lambda: None
) -> Iterator[tuple[Any, ...]]:
    """Yield the batches of an iterable, (x,), (x, y) or (frame,), that are not empty and are all alike.

    Raises:
        InputError: as for `data_in_batches`.
    """
    layout = ""
    try:
        for given in source:
            on_batch()
            batch = _batch(given, name)
            if not len(batch[0]):
                continue
            own = _layout(batch)
            layout = layout or own
            if own != layout:
                raise InputError(f"{name} yields {own} after {layout}: yield data of one shape, type and columns")
            yield batch
    except (InputError, GeneratorExit):
        raise
    except Exception as error:  # of any type: it is the user's code
        raise InputError(f"{name} cannot be read ({type(error).__name__}: {brief(error)})") from error


def _batch(given: Any, name: str) -> tuple[Any, ...]:
    """Return a batch as tensors, or as a data frame."""
    if hasattr(given, "to_pandas"):
        given = given.to_pandas()
    if hasattr(given, "iloc"):
        from pvae.tables.parsing import checked

        return (checked(given.reset_index(drop=True), name),)
    items = [*given] if isinstance(given, (list, tuple)) else [given]
    items = [torch.from_numpy(tensor) if isinstance(tensor, np.ndarray) else tensor for tensor in items]
    if len(items) not in (1, 2) or not all(isinstance(tensor, Tensor) for tensor in items):
        types = ", ".join(type(tensor).__name__ for tensor in items)
        raise InputError(f"{name} yields {types}: yield batches of x, of x and a label, or data frames")
    x, *y = items
    if x.dim() < 2 or (y and len(y[0]) != len(x)):
        shapes = " and ".join(str(tuple(tensor.shape)) for tensor in items)
        raise InputError(f"{name} yields tensors of shape {shapes}: yield x of shape (B, *shape), and (B, ...) labels")
    return tuple(map(plain, items))


def _layout(batch: tuple[Any, ...]) -> str:
    """Return a text of what all batches have in common."""
    if not isinstance(batch[0], Tensor):
        return f"columns {', '.join(map(str, batch[0]))}"
    return " and ".join(
        f"{str(tensor.dtype).removeprefix('torch.')} (B, *{tuple(tensor.shape[1:])})" for tensor in batch
    )


def plain(x: Tensor) -> Tensor:
    """Return a tensor that numpy takes: dense, on the CPU, without a gradient, and in float32 in place of bfloat16."""
    if x.layout != torch.strided:
        x = x.to_dense()
    if x.dtype == torch.bfloat16:
        x = x.float()
    return x.detach().cpu()
